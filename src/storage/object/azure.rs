//! Azure Blob Storage, as an endpoint.
//!
//! Blobs are whole or not there: a large one goes up as blocks, which become a blob when their list is
//! put in its place. Blocks that are in no list belong to a blob's name, not to an upload, and vanish
//! when anybody writes a blob of that name, or after a week. So the identifiers of an upload's blocks
//! begin with what only this upload has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use super::credentials::{self, AzureAccount, AzureKeys};
use super::fault::{Meaning, by_status, coded, text};
use super::metadata;
use super::pages::Pages;
use super::store::{
    MAX_PAGE_LEN, Open, REQUESTS, Server, Whole, begun, check_count, check_sum, checked_url, id_of,
    if_tag, in_path, in_query, listed, pages, prefix_of, text as key_text, token, upload_id,
    with_kept,
};
use super::xml;
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::message::Changes;
use crate::storage::http::client::{Call, Client, read_body};
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Keeps, KeepsRoot, Kept, Key, Listed, Parts, Properties,
    Replaces, Thing, ThingKind, Unfinished, all, implied, pieces,
};
use crate::storage::{Left, Receipt, Remembers, Token};

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
}

/// A container.
#[derive(Clone, Debug)]
pub struct AzureEndpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    server: Server,
    config: AzureConfig,
    /// The container's URL, without a slash at its end.
    base: String,
    properties: Properties,
}

/// A blob that is coming.
#[derive(Clone, Debug)]
pub struct Upload {
    key: Key,
    size: u64,
    /// What its blocks' identifiers begin with; `None` of one that goes up whole.
    id: Option<Arc<str>>,
    whole: Whole,
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
        let encrypts = base.starts_with("https://");
        let requests = config.requests.unwrap_or(REQUESTS).max(1);
        let mut client = Client::new(requests)?;
        if !config.anonymous {
            let name = account.name.as_deref();
            let sign = credentials::azure(client.plain(), &account.keys, name);
            client = client.signing(sign);
        }
        let properties = Properties {
            name: "azure",
            replaces: Replaces::Atomically,
            remembers: Remembers::Always,
            syncs: true,
            lasts: true,
            keeps: Keeps {
                times: Some(Duration::from_nanos(1)),
                time_range: (i64::MIN, i64::MAX),
                modes: true,
                symlinks: false,
                directories: false,
                directory_times: false,
                roots: KeepsRoot::ToTheEnd,
                any_bytes: false,
            },
            parts: Parts { min_len: 0, max_count: 50_000, in_order: false },
            requests,
            lists_all: true,
            // A source is believed by the signature of the request only where that is of the account's key.
            copies: account.keys.key.is_some(),
            encrypts,
        };
        let server = Server { client, refused };
        Ok(Self { inner: Arc::new(Inner { server, config, base, properties }) })
    }
}

impl Inner {
    fn url(&self, key: &Key) -> String {
        format!("{}/{}", self.base, in_path(key))
    }

    fn list_url(&self, prefix: &str, query: &str) -> String {
        // The signer leaves out what is empty, and the service does not.
        let prefix =
            if prefix.is_empty() { prefix } else { &format!("&prefix={}", in_query(prefix)) };
        format!("{}?restype=container&comp=list{prefix}{query}", self.base)
    }

    async fn page(&self, prefix: &str, query: &str, next: Option<&str>) -> Answer<xml::Blobs> {
        let more = next.map(|next| format!("&marker={}", in_query(next))).unwrap_or_default();
        let url = self.list_url(prefix, &format!("{query}{more}"));
        xml::blobs(&self.server.body(&call(Method::GET, url)).await?)
    }

    async fn head(&self, key: &Key) -> Answer<Option<HeaderMap>> {
        let response = self.server.maybe(&call(Method::HEAD, self.url(key))).await?;
        Ok(response.map(|response| response.headers().clone()))
    }

    fn with_kept(&self, call: Call, kept: &Kept) -> Call {
        let call = with_kept(call, &metadata::AZURE, kept);
        match &self.config.storage_class {
            Some(tier) => call.header("x-ms-access-tier", tier),
            None => call,
        }
    }

    async fn put_whole(&self, key: &Key, data: Vec<Bytes>, kept: &Kept) -> Answer<()> {
        let checksum = checksum(&data);
        let call = call(Method::PUT, self.url(key))
            .header("x-ms-blob-type", "BlockBlob")
            .header(CHECKSUM, &checksum)
            .body(data);
        let response = self.server.done(&self.with_kept(call, kept)).await?;
        check_sum(response.headers(), CHECKSUM, &checksum)
    }

    /// Blocks that are in no list yet, by their identifiers, and their sizes.
    async fn uncommitted(&self, key: &Key) -> Answer<HashMap<String, u64>> {
        let url = format!("{}?comp=blocklist&blocklisttype=uncommitted", self.url(key));
        let response = self.server.maybe(&call(Method::GET, url)).await?;
        let Some(response) = response else { return Ok(HashMap::new()) };
        xml::uncommitted_blocks(&read_body(response, MAX_PAGE_LEN).await?)
    }

    /// The names of all empty blobs, or of those too that are blocks without a list.
    async fn empty(&self, prefix: &str, query: &str) -> Answer<HashSet<String>> {
        let (mut names, mut pages) = (HashSet::new(), Pages::default());
        while !pages.is_over() {
            let page = self.page(prefix, query, pages.marker()).await?;
            pages.turn(page.next, page.all.iter().map(|blob| &blob.name))?;
            let empty = page.all.into_iter().filter(|blob| blob.size == 0);
            names.extend(empty.map(|blob| blob.name));
        }
        Ok(names)
    }

    /// What uploads have left under a name.
    async fn left(&self, name: &str) -> Answer<Vec<Unfinished>> {
        let key = Key::new(name.as_bytes())?;
        let mut uploads: HashMap<String, u64> = HashMap::new();
        for (block, size) in self.uncommitted(&key).await? {
            if let Some(id) = upload_of(&block) {
                *uploads.entry(id).or_default() += size;
            }
        }
        let left = uploads.into_iter().map(|(id, size)| Unfinished {
            key: key.clone(),
            token: Some(token(0, Some(&id))),
            size,
            since: begun(&id),
        });
        Ok(left.collect())
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

    async fn begin(&self, key: &Key, size: u64, parts: u64, _: &Kept) -> Answer<Upload> {
        check_count(parts, self.inner.properties.parts.max_count)?;
        let id = (parts > 1).then(|| upload_id().into());
        Ok(Upload { key: key.clone(), size, id, whole: Whole::default() })
    }

    fn token(&self, upload: &Upload) -> Token {
        token(upload.size, upload.id.as_deref())
    }

    async fn resume(
        &self,
        key: &Key,
        size: u64,
        left: &Left,
    ) -> Answer<Option<(Upload, Vec<u64>)>> {
        let id = id_of(&left.token).filter(|(of, _)| *of == size);
        let Some((_, id)) = id else { return Ok(None) };
        let found = self.inner.uncommitted(key).await?;
        if !found.keys().any(|block| is_block_of(block, &id)) {
            return Ok(None);
        }
        let numbers = left.receipts.iter().map(|(number, _)| *number);
        let lost = numbers.filter(|number| !found.contains_key(&block_id(&id, *number))).collect();
        let upload =
            Upload { key: key.clone(), size, id: Some(id.into()), whole: Whole::default() };
        Ok(Some((upload, lost)))
    }

    async fn write(
        &self,
        upload: &Upload,
        number: u64,
        range: ByteRange,
        data: ChunkData,
    ) -> Answer<Receipt> {
        let data = pieces(range, &data);
        let Some(id) = &upload.id else {
            upload.whole.set(data);
            return Ok(Receipt::default());
        };
        let block = in_query(&block_id(id, number));
        let url = format!("{}?comp=block&blockid={block}", self.inner.url(&upload.key));
        let checksum = checksum(&data);
        let call = call(Method::PUT, url).header(CHECKSUM, &checksum).body(data);
        let response = self.inner.server.done(&call).await?;
        check_sum(response.headers(), CHECKSUM, &checksum)?;
        // Its identifier says everything about a block.
        Ok(Receipt::default())
    }

    async fn reread(&self, _: &Upload, _: u64, _: &mut [u8]) -> Answer<()> {
        Err(Fault::new(Class::Unsupported, "blocks of an upload cannot be read"))
    }

    async fn sync(&self, _: &Upload) -> Answer<()> {
        // What a store has acknowledged, it keeps.
        Ok(())
    }

    async fn finish(
        &self,
        upload: Upload,
        key: &Key,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        let Some(id) = &upload.id else {
            return self.inner.put_whole(key, upload.whole.get(), kept).await;
        };
        let blocks = receipts.iter().map(|(number, _)| block_id(id, *number));
        let call = block_list(&self.inner.url(key), blocks);
        self.inner.server.done(&self.inner.with_kept(call, kept)).await.map(drop)
    }

    async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
        let Some((_, id)) = id_of(token) else { return Ok(()) };
        let found = self.inner.uncommitted(key).await?;
        // Blocks go all at once or not at all, and those of others are not ours to remove.
        if found.is_empty() || !found.keys().all(|block| is_block_of(block, &id)) {
            return Ok(());
        }
        // A blob of no blocks makes them go, if there is none that it would replace. Where there is one,
        // the server forgets them by itself.
        let call =
            block_list(&self.inner.url(key), std::iter::empty()).header("if-none-match", "*");
        let response = self.inner.server.client.send(&call).await?;
        match response.status() {
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => return Ok(()),
            status if status.is_success() => {}
            _ => return Err(self.inner.server.refusal(response).await),
        }
        let tag = response.headers().get(http::header::ETAG).and_then(|it| it.to_str().ok());
        self.inner.remove(key, tag).await
    }

    async fn unfinished(
        &self,
        directory: &Key,
        found: flume::Sender<Vec<Unfinished>>,
    ) -> Answer<()> {
        let prefix = prefix_of(directory)?;
        // Blocks without a list look like empty blobs, and are not listed unless asked for.
        let there = self.inner.empty(&prefix, "").await?;
        let mut names = self.inner.empty(&prefix, "&include=uncommittedblobs").await?;
        names.retain(|name| !there.contains(name) && name.starts_with(&prefix));
        let looks = names.iter().map(|name| self.inner.left(name)).collect();
        for left in all(looks, self.inner.properties.requests).await {
            if found.send_async(left?).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn make_directory(&self, _: &Key) -> Answer<()> {
        Ok(())
    }

    async fn make_symlink(&self, _: &Key, _: &[u8], _: &Kept) -> Answer<()> {
        Err(Fault::new(Class::Unsupported, "object stores have no symlinks"))
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

    async fn remove(&self, key: &Key, tag: Option<&str>) -> Answer<()> {
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
fn call(method: Method, url: String) -> Call {
    Call::new(method, url).header("x-ms-version", VERSION)
}

/// A request that makes a blob of blocks. Those that were sent last are meant, and after an answer that
/// was lost, those that are in the blob already.
fn block_list(url: &str, blocks: impl Iterator<Item = String>) -> Call {
    let mut body = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
    for block in blocks {
        body.push_str("<Latest>");
        body.push_str(&block);
        body.push_str("</Latest>");
    }
    body.push_str("</BlockList>");
    let body = vec![Bytes::from(body)];
    let checksum = checksum(&body);
    call(Method::PUT, format!("{url}?comp=blocklist")).header(CHECKSUM, &checksum).body(body)
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

/// A block's identifier: all of a blob's have the same length.
fn block_id(id: &str, number: u64) -> String {
    BASE64.encode(format!("{id}-{number:07}"))
}

fn is_block_of(block: &str, id: &str) -> bool {
    BASE64.decode(block).is_ok_and(|block| block.starts_with(id.as_bytes()))
}

/// The upload of ours that a block is of.
fn upload_of(block: &str) -> Option<String> {
    let block = String::from_utf8(BASE64.decode(block).ok()?).ok()?;
    let (id, _) = block.split_once('-').filter(|(id, _)| begun(id).is_some())?;
    Some(id.to_owned())
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
fn checksum(data: &[Bytes]) -> String {
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

const CHECKSUM: &str = "content-md5";

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
    fn blocks_of_an_upload_are_told_from_others() {
        let (one, other) = ("0123456789abcdef", "fedcba9876543210");
        assert_eq!(upload_of(&block_id(one, 3)).as_deref(), Some(one));
        assert_eq!(upload_of(&BASE64.encode("00000001")), None);
        let block = block_id(one, 49_999);
        assert!(is_block_of(&block, one) && !is_block_of(&block, other));
        assert!(!is_block_of("no base64", one));
        assert_eq!(block.len(), block_id(other, 0).len());
        assert!(block.len() <= 64);
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
