//! Azure Blob Storage, as an endpoint.
//!
//! Blobs are whole or not there: a large one goes up as blocks, which become a blob at the end.
//!
//! - `requests`: about whole blobs, `blocks`: about blocks; `answers`: what they mean.

mod answers;
mod blocks;
mod requests;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;

use answers::{refused, thing_of};
use requests::call;

use super::credentials::{self, AzureAccount, AzureKeys};
use super::fault::text;
use super::store::{
    Open, REQUESTS, Server, checked_url, if_tag, listed, pages, prefix_of, properties,
    text as key_text, with_kept,
};
use super::upload::{Limits, PartStore as _, Upload};
use super::{metadata, stages};
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::message::Changes;
use crate::storage::http::client::{Client, Sign};
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Kept, Key, Listed, Parts, Properties, Thing, ThingKind,
    Unfinished, all, implied, temporary_files,
};
use crate::storage::{Left, Receipt, Token};

/// Which container, where, and as whom.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AzureConfig {
    pub container: String,
    /// The storage account; that of the environment if `None`.
    pub account: Option<String>,
    /// The URL of the account's blobs; that of the environment, or Microsoft's, if `None`.
    pub endpoint: Option<String>,
    /// Without any credentials.
    pub anonymous: bool,
    /// The secrets of the account; those that are found where Azure's tools find them if `None`.
    pub keys: Option<AzureKeys>,
    /// The access tier of new blobs.
    pub storage_class: Option<String>,
    /// How many requests at a time; 64 if `None`.
    pub requests: Option<usize>,
    /// How many blocks a blob may have; 50,000 if `None`, as it is.
    pub max_blocks: Option<u64>,
}

/// A container.
#[derive(Clone, Debug)]
pub struct AzureEndpoint {
    inner: Arc<Inner>,
}

struct Inner {
    server: Server,
    config: AzureConfig,
    /// The container's URL, without a slash at its end.
    base: String,
    /// The account's name, as far as it is known.
    account: Option<String>,
    /// What lets the service read a blob by itself.
    links: Option<Sign>,
    limits: Limits,
    properties: Properties,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("base", &self.base).finish_non_exhaustive()
    }
}

impl AzureEndpoint {
    /// Finds the container, and finds out whether it may be listed.
    ///
    /// # Errors
    ///
    /// [`Class::Credentials`] and others, with what to do about it.
    pub async fn connect(config: AzureConfig) -> Answer<Self> {
        let account = match &config.keys {
            Some(keys) => {
                let (name, keys) = (config.account.clone(), keys.clone());
                AzureAccount { name, endpoint: None, keys }
            }
            None => AzureAccount::from_environment(config.account.as_deref())?,
        };
        let endpoint = Self::new(config, &account)?;
        let asked = call(Method::GET, endpoint.inner.list_url("", "&maxresults=1"));
        let response = endpoint.inner.server.client.send(&asked).await?;
        if response.status().is_success() {
            return Ok(endpoint);
        }
        let fault = endpoint.inner.server.refusal(response).await;
        // Who may not list may still read and write.
        if fault.class == Class::Denied { Ok(endpoint) } else { Err(fault) }
    }

    fn new(config: AzureConfig, account: &AzureAccount) -> Answer<Self> {
        let container = &config.container;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-$".contains(&byte);
        if !(3..=63).contains(&container.len()) || !container.bytes().all(is_name) {
            return Err(Fault::new(Class::Name, "that is no name of a container"));
        }
        let base = base_url(&config, account)?;
        let requests = config.requests.unwrap_or(REQUESTS).max(1);
        let mut client = Client::new(requests)?;
        let mut links = None;
        if !config.anonymous {
            let name = account.name.as_deref();
            let signs = credentials::azure(client.plain(), &account.keys, name);
            client = client.signing(signs.requests);
            links = Some(signs.links);
        }
        let max_parts = config.max_blocks.unwrap_or(50_000);
        let limits = Limits { max_parts, max_copy_len: MAX_BLOCK_LEN, requests };
        let common = properties("azure", requests, &base);
        let properties = Properties {
            max_size: limits.max_size(),
            parts: Parts { max_count: max_parts, ..common.parts },
            // A source is believed by the signature of the request only where that is of the account's key.
            copies: account.keys.key.is_some(),
            ..common
        };
        let server = Server { client, refused };
        let account = account.name.clone();
        let inner = Inner { server, config, base, account, links, limits, properties };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Endpoint for AzureEndpoint {
    type Open = Open;
    type Upload = Upload;

    fn properties(&self) -> &Properties {
        &self.inner.properties
    }

    fn check(&self, key: &Key) -> Answer<()> {
        check_name(key)
    }

    fn shown(&self, key: &Key) -> Vec<u8> {
        [b"az://", self.inner.config.container.as_bytes(), b"/", key.as_bytes()].concat()
    }

    async fn stat(&self, key: &Key) -> Answer<Option<Thing>> {
        if key.is_top() {
            return Ok(Some(implied()));
        }
        if let Some(headers) = self.inner.head(key).await? {
            if headers.get("x-ms-meta-hdi_isfolder").is_some_and(|it| it == "true") {
                return Ok(Some(implied()));
            }
            let thing = metadata::AZURE.thing(&headers);
            return thing.map(Some).ok_or_else(|| {
                Fault::new(Class::Violation, "the server does not tell the blob's size")
            });
        }
        let page = self.inner.page(&prefix_of(key)?, "&maxresults=1", None).await?;
        Ok((!page.all.is_empty() || !page.prefixes.is_empty()).then(implied))
    }

    async fn list(
        &self,
        directory: &Key,
        deep: bool,
        found: flume::Sender<Vec<Listed>>,
    ) -> Answer<()> {
        let (prefix, top) = (prefix_of(directory)?, self.shown(&Key::default()));
        let query = if deep { "&include=metadata" } else { "&include=metadata&delimiter=%2F" };
        let page = async |next: Option<String>| {
            let page = self.inner.page(&prefix, query, next.as_deref()).await?;
            let blobs = page.all.iter().map(|blob| (&blob.name, thing_of(blob)));
            let prefixes = page.prefixes.iter().map(|prefix| (prefix, implied()));
            let group = blobs.chain(prefixes);
            let group = group.filter_map(|(name, thing)| listed(&top, name.as_bytes(), thing));
            Ok((group.collect(), page.next))
        };
        pages(found, page).await
    }

    async fn open(&self, key: &Key, thing: &Thing) -> Answer<Open> {
        let call = |method| if_tag(call(method, self.inner.url(key)), "if-match", thing);
        Ok(Open::new(call(Method::GET), call(Method::HEAD), thing, "etag"))
    }

    async fn read(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        match self.inner.server.read(file, offset, into).await {
            Err(fault) if fault.class == Class::Changed => {
                self.inner.check_there(file).await?;
                Err(fault)
            }
            answer => answer,
        }
    }

    async fn confirm(&self, file: &Open) -> Answer<bool> {
        let is_same = self.inner.server.confirm(file).await?;
        if !is_same {
            self.inner.check_there(file).await?;
        }
        Ok(is_same)
    }

    async fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
        self.inner.put_whole(key, vec![data], kept).await
    }

    async fn begin(&self, key: &Key, size: u64, parts: u64, kept: &Kept) -> Answer<Upload> {
        Upload::begin(&*self.inner, key, size, parts, kept).await
    }

    fn token(&self, upload: &Upload) -> Token {
        upload.token()
    }

    async fn resume(
        &self,
        key: &Key,
        size: u64,
        left: &Left,
    ) -> Answer<Option<(Upload, Vec<u64>)>> {
        Upload::resume(&*self.inner, key, size, left).await
    }

    async fn write(
        &self,
        upload: &Upload,
        number: u64,
        range: ByteRange,
        data: ChunkData,
    ) -> Answer<Receipt> {
        upload.write(&*self.inner, number, range, data).await
    }

    async fn finish(
        &self,
        upload: Upload,
        key: &Key,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        upload.finish(&*self.inner, key, receipts, kept).await
    }

    async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
        Upload::abandon(&*self.inner, key, token).await
    }

    async fn unfinished(
        &self,
        directory: &Key,
        found: flume::Sender<Vec<Unfinished>>,
    ) -> Answer<()> {
        let prefix = prefix_of(directory)?;
        let names = self.inner.names_without_blob(&prefix).await?;
        let looks = names.iter().map(|name| self.inner.left(name)).collect();
        let left = all(looks, self.inner.properties.requests).await;
        let left: Answer<Vec<Vec<Unfinished>>> = left.into_iter().collect();
        // Of a file of very many blocks, some may be whole blobs already.
        let mut all_left = left?.concat();
        let (sender, blobs) = flume::unbounded();
        temporary_files(self, directory, sender).await?;
        all_left.extend(blobs.drain().flatten());
        stages::share_times(&mut all_left);
        let _ = found.send_async(all_left).await;
        Ok(())
    }

    async fn set(&self, key: &Key, thing: &Thing, kept: &Kept, _: Changes) -> Answer<()> {
        let found = self.inner.head(key).await?;
        let found = found.ok_or_else(|| Fault::new(Class::Missing, text::NO_OBJECT))?;
        let call = call(Method::PUT, format!("{}?comp=metadata", self.inner.url(key)));
        let mut call = if_tag(call, "if-match", thing);
        // What is not named here would be gone.
        for (name, value) in &found {
            if name.as_str().starts_with(metadata::AZURE.header_prefix) {
                call = call.header(name.as_str(), value.to_str().unwrap_or_default());
            }
        }
        let call = with_kept(call, &metadata::AZURE, kept);
        self.inner.server.done(&call).await.map(drop)
    }

    async fn remove(&self, things: Vec<(Key, ThingKind)>) -> Vec<Answer<()>> {
        let removals: Vec<_> = things.iter().map(|(key, _)| self.inner.remove(key, None)).collect();
        all(removals, self.inner.properties.requests).await
    }

    fn copies_from(&self, source: &Self) -> bool {
        let container = source.inner.config.container.clone();
        let ours = AzureConfig { container, ..self.inner.config.clone() };
        self.inner.properties.copies && ours == source.inner.config
    }

    async fn copy(
        &self,
        source: &Self,
        from: &Key,
        thing: &Thing,
        to: &Key,
        kept: &Kept,
    ) -> Answer<()> {
        let source = source.inner.url(from);
        let call = call(Method::PUT, self.inner.url(to)).header("x-ms-copy-source", &source);
        let call = if_tag(call, "x-ms-source-if-match", thing);
        let response = self.inner.server.done(&self.inner.with_kept(call, kept)).await?;
        self.inner.wait_for_copy(to, response.headers().clone()).await
    }
}

/// What the URLs of the container's blobs begin with.
fn base_url(config: &AzureConfig, account: &AzureAccount) -> Answer<String> {
    let container = &config.container;
    let given = config.endpoint.as_deref().or(account.endpoint.as_deref());
    if let Some(endpoint) = given {
        return Ok(format!("{}/{container}", checked_url(endpoint)?));
    }
    let Some(name) = &account.name else {
        let text = "the storage account is not known; set AZURE_STORAGE_ACCOUNT or use \
                    --azure-account";
        return Err(Fault::new(Class::Credentials, text));
    };
    if !(3..=24).contains(&name.len()) || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Fault::new(Class::Name, "that is no name of a storage account"));
    }
    Ok(format!("https://{name}.blob.core.windows.net/{container}"))
}

/// Checks that the service would store a blob of this name under this name.
///
/// Source: "Naming and Referencing Containers, Blobs, and Metadata", Microsoft.
fn check_name(key: &Key) -> Answer<()> {
    let name = key_text(key)?;
    let is_wrong = |c: char| c.is_control() || matches!(c, '\\' | '\u{fffe}' | '\u{ffff}');
    let wrong = if name.chars().count() > 1024 {
        "names of blobs have at most 1,024 characters"
    } else if name.split('/').any(|it| it.ends_with('.')) {
        "names of blobs, and of directories in them, do not end with a dot"
    } else if name.contains(is_wrong) {
        "names of blobs have no backslashes and no control characters"
    } else {
        return Ok(());
    };
    Err(Fault::new(Class::Name, wrong))
}

/// The longest block, in bytes.
const MAX_BLOCK_LEN: u64 = 4000 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AzureAccount {
        AzureAccount { name: Some(name.to_owned()), ..AzureAccount::default() }
    }

    #[test]
    fn names_that_would_become_others_are_refused() {
        for name in ["a./b", "a.", "a\\b", "a\nb", "a\u{ffff}", &"n/".repeat(600)[..1199]] {
            let fault = check_name(&Key::new(name.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(fault.class, Class::Name, "{name}");
        }
        assert!(check_name(&Key::new("a.b/.c/ü %+?#".as_bytes()).unwrap()).is_ok());
    }

    #[test]
    fn the_container_is_where_the_account_is() {
        let config = AzureConfig { container: "con".into(), ..AzureConfig::default() };
        let base = |config: &AzureConfig, account: &AzureAccount| base_url(config, account);
        assert_eq!(
            base(&config, &account("acc")).unwrap(),
            "https://acc.blob.core.windows.net/con"
        );
        assert!(base(&config, &account("a.evil/")).is_err());
        let fault = base(&config, &AzureAccount::default()).unwrap_err();
        assert!(fault.text.contains("AZURE_STORAGE_ACCOUNT"), "{fault}");
        let endpoint = Some("http://h:1/acc/".to_owned());
        let config = AzureConfig { endpoint, ..config };
        assert_eq!(base(&config, &AzureAccount::default()).unwrap(), "http://h:1/acc/con");
    }
}
