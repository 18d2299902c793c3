//! The requests to Azure that are about whole blobs.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};

use super::Inner;
use super::answers::copied;
use crate::storage::http::client::Call;
use crate::storage::object::fault::text;
use crate::storage::object::store::{Open, in_path, in_query, with_kept};
use crate::storage::object::{metadata, xml};
use crate::storage::remote::{Answer, Class, Fault, Kept, Key};

impl Inner {
    pub fn url(&self, key: &Key) -> String {
        format!("{}/{}", self.base, in_path(key))
    }

    pub fn list_url(&self, prefix: &str, query: &str) -> String {
        // The signer leaves out what is empty, and the service does not.
        let prefix =
            if prefix.is_empty() { prefix } else { &format!("&prefix={}", in_query(prefix)) };
        format!("{}?restype=container&comp=list{prefix}{query}", self.base)
    }

    pub async fn page(&self, prefix: &str, query: &str, next: Option<&str>) -> Answer<xml::Blobs> {
        let more = next.map(|next| format!("&marker={}", in_query(next))).unwrap_or_default();
        let url = self.list_url(prefix, &format!("{query}{more}"));
        xml::blobs(&self.server.body(&call(Method::GET, url)).await?)
    }

    pub async fn head(&self, key: &Key) -> Answer<Option<HeaderMap>> {
        let response = self.server.maybe(&call(Method::HEAD, self.url(key))).await?;
        Ok(response.map(|response| response.headers().clone()))
    }

    pub fn with_kept(&self, call: Call, kept: &Kept) -> Call {
        let call = with_kept(call, &metadata::AZURE, kept);
        match &self.config.storage_class {
            Some(tier) => call.header("x-ms-access-tier", tier),
            None => call,
        }
    }

    /// A blob as the service itself gets to it: its URL, and what admits to that beside it.
    pub async fn link(&self, key: &Key) -> Answer<(String, Option<HeaderValue>)> {
        let url = self.url(key);
        let Some(sign) = &self.links else { return Ok((url, None)) };
        // What is signed is the blob's name at the service, whatever its URL is.
        let (account, container) = (self.account.as_deref(), &self.config.container);
        let host = format!("https://{}.blob.core.windows.net", account.unwrap_or("account"));
        let named = http::Request::get(format!("{host}/{container}/{}", in_path(key))).body(());
        let wrong = |_| Fault::new(Class::Name, "the blob's URL is none");
        let (mut parts, ()) = named.map_err(wrong)?.into_parts();
        sign(&mut parts).await?;
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let authorization = parts.headers.remove(http::header::AUTHORIZATION);
        Ok((format!("{url}{query}"), authorization))
    }

    /// Waits until the server has copied a blob, which it does at once within an account as a rule.
    pub async fn wait_for_copy(&self, to: &Key, mut headers: HeaderMap) -> Answer<()> {
        let (mut pauses, mut progress) = (0, None);
        loop {
            let status = headers.get("x-ms-copy-status").and_then(|it| it.to_str().ok());
            match status {
                Some("pending") if pauses < MAX_COPY_PAUSES => {
                    tokio::time::sleep(COPY_PAUSE).await;
                }
                Some("pending") => return Err(Fault::new(Class::Busy, text::BUSY)),
                Some("success") | None => return Ok(()),
                Some(_) => return Err(Fault::new(Class::Other, "the server gave the copy up")),
            }
            let found = self.head(to).await?;
            headers = found.ok_or_else(|| Fault::new(Class::Missing, text::NO_OBJECT))?;
            let copied = copied(&headers);
            pauses = if copied > progress { 0 } else { pauses + 1 };
            progress = progress.max(copied);
        }
    }

    /// Fails if a blob is not there: nothing is not the version that was meant, either.
    pub async fn check_there(&self, file: &Open) -> Answer<()> {
        let found = self.server.maybe(&call(Method::HEAD, file.url().to_owned())).await?;
        found.map(drop).ok_or_else(|| Fault::new(Class::Missing, text::NO_OBJECT))
    }

    pub async fn remove(&self, key: &Key, tag: Option<&str>) -> Answer<()> {
        let call = call(Method::DELETE, self.url(key));
        let call = match tag {
            Some(tag) => call.header("if-match", tag),
            None => call,
        };
        self.server.maybe(&call).await.map(drop)
    }
}

/// A request to the service as it was at a time: what it answers depends on that.
pub fn call(method: Method, url: String) -> Call {
    Call::new(method, url).header("x-ms-version", VERSION)
}

/// The MD5 of data, as headers have it.
pub fn checksum(data: &[Bytes]) -> String {
    let mut context = md5::Context::new();
    for piece in data {
        context.consume(piece);
    }
    BASE64.encode(context.finalize().0)
}

/// Of 2021: names with characters that XML has not, and errors' codes in headers.
const VERSION: &str = "2021-12-02";

pub const CHECKSUM: &str = "content-md5";

/// Between two looks at a copy that the server makes.
const COPY_PAUSE: Duration = Duration::from_millis(500);

/// How many times a copy may be found no further than before: half an hour.
const MAX_COPY_PAUSES: u32 = 3600;
