//! Azure Blob Storage, as an endpoint.
//!
//! Blobs are whole or not there: a large one goes up as blocks, which become a blob at the end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::credentials::{self, AzureAccount, AzureKeys};
use super::fault::{Meaning, by_status, coded, text};
use super::metadata;
use super::stages;
use super::store::{
    Open, REQUESTS, Server, checked_url, if_tag, in_path, in_query, listed, pages, prefix_of,
    properties, text as key_text, with_kept,
};
use super::upload::{Limits, PartStore as _, Upload};
use super::xml;
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::message::Changes;
use crate::storage::http::client::{Call, Client, Sign};
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

pub(super) struct Inner {
    pub server: Server,
    config: AzureConfig,
    /// The container's URL, without a slash at its end.
    base: String,
    /// The account's name, as far as it is known.
    account: Option<String>,
    /// What lets the service read a blob by itself.
    links: Option<Sign>,
    pub limits: Limits,
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
            None => AzureAccount::from_environment(config.account.as_deref()),
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

impl Inner {
    pub fn url(&self, key: &Key) -> String {
        format!("{}/{}", self.base, in_path(key))
    }

    fn list_url(&self, prefix: &str, query: &str) -> String {
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

    async fn head(&self, key: &Key) -> Answer<Option<HeaderMap>> {
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
    async fn wait_for_copy(&self, to: &Key, mut headers: HeaderMap) -> Answer<()> {
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

impl Inner {
    /// Fails if a blob is not there: nothing is not the version that was meant, either.
    async fn check_there(&self, file: &Open) -> Answer<()> {
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

/// How much of a copy is there already, in bytes.
fn copied(headers: &HeaderMap) -> Option<u64> {
    let progress = headers.get("x-ms-copy-progress")?.to_str().ok()?;
    progress.split_once('/')?.0.parse().ok()
}

/// A request to the service as it was at a time: what it answers depends on that.
pub(super) fn call(method: Method, url: String) -> Call {
    Call::new(method, url).header("x-ms-version", VERSION)
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

fn thing_of(blob: &xml::Blob) -> Thing {
    let metadata = |name: &str| {
        let found = blob.metadata.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    };
    // What stands for a directory where an account has them as things of their own.
    if metadata("hdi_isfolder") == Some("true") {
        return implied();
    }
    let tag = blob.tag.trim_matches('"');
    let mut thing = Thing {
        kind: ThingKind::File,
        size: blob.size,
        modified: metadata::http_date(&blob.modified),
        tag: (!tag.is_empty()).then(|| format!("\"{tag}\"").into_bytes().into()),
        ..implied()
    };
    metadata::AZURE.read(&mut thing, metadata);
    thing
}

/// The MD5 of data, as headers have it.
pub(super) fn checksum(data: &[Bytes]) -> String {
    let mut context = md5::Context::new();
    for piece in data {
        context.consume(piece);
    }
    BASE64.encode(context.finalize().0)
}

/// Why a request failed, by its answer.
fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Fault {
    let code = headers.get("x-ms-error-code").and_then(|it| it.to_str().ok());
    match code.map(str::to_owned).or_else(|| xml::text_of(body, "Error/Code")) {
        Some(code) => {
            let message = xml::text_of(body, "Error/Message").unwrap_or_default();
            // Behind its first line it tells of the request, not of what is wrong.
            coded(MEANINGS, &code, message.lines().next().unwrap_or_default())
        }
        None => by_status(status),
    }
}

const MEANINGS: &[Meaning] = &[
    Meaning {
        codes: &["ContainerNotFound", "ContainerBeingDeleted"],
        class: Class::Credentials,
        text: "there is no such container; make it first, or check its name",
    },
    Meaning {
        codes: &["BlobNotFound", "ResourceNotFound"],
        class: Class::Missing,
        text: text::NO_OBJECT,
    },
    Meaning {
        codes: &["AuthenticationFailed", "InvalidAuthenticationInfo"],
        class: Class::Credentials,
        text: "the credentials are wrong or have expired; check AZURE_STORAGE_KEY or \
               AZURE_STORAGE_SAS_TOKEN, and this host's clock",
    },
    Meaning {
        codes: &["AuthorizationFailure"],
        class: Class::Credentials,
        text: "the credentials are wrong, or the account's firewall keeps this host out; check \
               AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or ask the owner",
    },
    Meaning {
        codes: &["NoAuthenticationInformation", "PublicAccessNotPermitted"],
        class: Class::Credentials,
        text: "the container is not open to everybody; leave --anonymous out",
    },
    Meaning {
        codes: &[
            "AuthorizationPermissionMismatch",
            "AuthorizationProtocolMismatch",
            "AuthorizationResourceTypeMismatch",
            "AuthorizationServiceMismatch",
            "AuthorizationSourceIPMismatch",
            "InsufficientAccountPermissions",
            "UnauthorizedBlobOverwrite",
        ],
        class: Class::Denied,
        text: text::DENIED,
    },
    Meaning {
        codes: &["AccountIsDisabled"],
        class: Class::Credentials,
        text: "the storage account is disabled; ask its owner",
    },
    Meaning {
        codes: &["ConditionNotMet", "SourceConditionNotMet", "TargetConditionNotMet"],
        class: Class::Changed,
        text: text::OTHER_VERSION,
    },
    Meaning { codes: &["Md5Mismatch"], class: Class::Busy, text: text::DAMAGED },
    Meaning {
        codes: &["ServerBusy", "InternalError", "OperationTimedOut"],
        class: Class::Busy,
        text: text::BUSY,
    },
    Meaning {
        codes: &["InvalidBlockList"],
        class: Class::Changed,
        text: "somebody else has written this blob, and the server dropped what was sent; run it again",
    },
    Meaning {
        codes: &["InvalidBlobOrBlock"],
        class: Class::Exists,
        text: "another program's unfinished upload to this name is in the way, for a week at most",
    },
    Meaning {
        codes: &["CannotVerifyCopySource"],
        class: Class::Denied,
        text: "the service may not read what was sent to it with these credentials; they need the \
               right to read",
    },
    Meaning {
        codes: &["BlobArchived"],
        class: Class::Denied,
        text: "the blob is in the archive; have it brought back first",
    },
    Meaning {
        codes: &["LeaseIdMissing", "BlobImmutableDueToPolicy", "SnapshotsPresent"],
        class: Class::Denied,
        text: "the blob is held by a lease, a policy or its snapshots",
    },
    Meaning {
        codes: &["InvalidResourceName", "OutOfRangeInput"],
        class: Class::Name,
        text: "the service does not take this name",
    },
];

/// Of 2021: names with characters that XML has not, and errors' codes in headers.
const VERSION: &str = "2021-12-02";

pub(super) const CHECKSUM: &str = "content-md5";

/// The longest block, in bytes.
const MAX_BLOCK_LEN: u64 = 4000 << 20;

/// Between two looks at a copy that the server makes.
const COPY_PAUSE: Duration = Duration::from_millis(500);

/// How many times a copy may be found no further than before: half an hour.
const MAX_COPY_PAUSES: u32 = 3600;

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

    #[test]
    fn refusals_say_what_to_do() {
        let body = b"<?xml version=\"1.0\"?><Error><Code>Strange</Code><Message>It is so.\nRequestId:1</Message></Error>";
        let fault = refused(StatusCode::BAD_REQUEST, &HeaderMap::new(), body);
        assert_eq!(fault.text, "the server says Strange: It is so.");
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-error-code", "AuthenticationFailed".parse().unwrap());
        let fault = refused(StatusCode::FORBIDDEN, &headers, b"");
        assert_eq!(fault.class, Class::Credentials);
        assert!(fault.text.contains("AZURE_STORAGE_KEY"), "{fault}");
    }
}
