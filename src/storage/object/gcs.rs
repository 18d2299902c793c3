//! Google Cloud Storage, as an endpoint, by its JSON API.
//!
//! Objects are whole or not there. A large one goes up as many temporary objects beside its key, at the
//! same time and each checked by the server, which then composes them, 32 at a time, without the data
//! passing through here again. Resumable uploads of this API take one part after the other; multipart
//! uploads of the XML API have to know all metadata when they begin.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum_combine};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::credentials;
use super::fault::{Meaning, broken_off, by_status, coded, text};
use super::metadata;
use super::pages::Pages;
use super::store::{
    MAX_PAGE_LEN, Open, REQUESTS, Server, Whole, begun, checked_url, id_of, in_query, listed,
    pages, prefix_of, properties, text as key_text, token, upload_id,
};
use super::xml::timestamp;
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::message::Changes;
use crate::storage::http::client::{Call, Client, read_body};
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Kept, Key, Listed, OWN_PREFIX, Properties, Thing, ThingKind,
    Unfinished, all, implied, nonce, pieces,
};
use crate::storage::{Left, Receipt, Token};

/// Which bucket, where, and as whom.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GcsConfig {
    pub bucket: String,
    /// The server's URL; Google's if `None`. One of `http://` is an emulator's and gets no credentials.
    pub endpoint: Option<String>,
    /// Without any credentials.
    pub anonymous: bool,
    pub storage_class: Option<String>,
    /// How many requests at a time; 64 if `None`.
    pub requests: Option<usize>,
}

/// A bucket.
#[derive(Clone, Debug)]
pub struct GcsEndpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    server: Server,
    config: GcsConfig,
    /// The server's URL, without a slash at its end.
    base: String,
    properties: Properties,
}

/// An object that is coming.
#[derive(Clone, Debug)]
pub struct Upload {
    key: Key,
    size: u64,
    /// What its parts' names have in common: when it was begun, a number, and a hash of its key. `None` of one that goes up whole.
    id: Option<Arc<str>>,
    whole: Whole,
}

/// An object, as the server describes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Object {
    name: String,
    generation: String,
    /// A number, or one in a string.
    size: Value,
    crc32c: String,
    time_created: String,
    metadata: HashMap<String, Value>,
}

/// A page of a listing.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Page {
    /// What the answer is of.
    kind: String,
    items: Vec<Object>,
    prefixes: Vec<String>,
    next_page_token: Option<String>,
    error: Option<Value>,
}

/// An object that others are composed of.
#[derive(Clone, Debug)]
struct Piece {
    name: String,
    generation: String,
    sum: Sum,
}

/// The CRC-32C of so many bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Sum {
    crc: u64,
    len: u64,
}

impl GcsEndpoint {
    /// Finds the bucket, and finds out whether it may be listed.
    ///
    /// # Errors
    ///
    /// [`Class::Credentials`] and others, with what to do about it.
    pub async fn connect(config: GcsConfig) -> Answer<Self> {
        let endpoint = Self::new(config)?;
        let call = Call::new(Method::GET, endpoint.inner.list_url("", "&maxResults=1"));
        let response = endpoint.inner.server.client.send(&call).await?;
        match response.status() {
            status if status.is_success() => Ok(endpoint),
            StatusCode::NOT_FOUND => Err(Fault::new(Class::Credentials, text::NO_BUCKET)),
            // Who may not list may still read and write.
            StatusCode::FORBIDDEN => Ok(endpoint),
            _ => Err(endpoint.inner.server.refusal(response).await),
        }
    }

    fn new(config: GcsConfig) -> Answer<Self> {
        let bucket = &config.bucket;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if !(3..=222).contains(&bucket.len()) || !bucket.bytes().all(is_name) {
            return Err(Fault::new(Class::Name, "that is no name of a bucket"));
        }
        let base = config.endpoint.as_deref().unwrap_or("https://storage.googleapis.com");
        let base = checked_url(base)?.to_owned();
        let encrypts = base.starts_with("https://");
        let requests = config.requests.unwrap_or(REQUESTS).max(1);
        let mut client = Client::new(requests)?;
        if !config.anonymous && encrypts {
            let signer = credentials::google(client.plain());
            client = client.signing(signer);
        }
        let properties = Properties { max_size: MAX_SIZE, ..properties("gcs", requests, &base) };
        let server = Server { client, refused };
        Ok(Self { inner: Arc::new(Inner { server, config, base, properties }) })
    }
}

impl Inner {
    /// Where an object is, for all but its data.
    fn url(&self, name: &str) -> String {
        format!("{}/storage/v1/b/{}/o/{}", self.base, self.config.bucket, in_query(name))
    }

    fn list_url(&self, prefix: &str, query: &str) -> String {
        let (base, bucket, prefix) = (&self.base, &self.config.bucket, in_query(prefix));
        let fields = format!("kind,nextPageToken,prefixes,items({FIELDS})");
        format!(
            "{base}/storage/v1/b/{bucket}/o?prefix={prefix}&fields={}{query}",
            in_query(&fields)
        )
    }

    async fn page(&self, prefix: &str, query: &str, next: Option<&str>) -> Answer<Page> {
        let more = next.map(|next| format!("&pageToken={}", in_query(next))).unwrap_or_default();
        let url = self.list_url(prefix, &format!("{query}{more}"));
        page_of(&self.server.body(&Call::new(Method::GET, url)).await?)
    }

    /// What is to be stored beside an object, in the server's words.
    fn resource(&self, kept: &Kept) -> serde_json::Map<String, Value> {
        let metadata = metadata::GCS.entries(kept).into_iter();
        let metadata: serde_json::Map<_, _> =
            metadata.map(|(name, value)| (name.to_owned(), value.into())).collect();
        let mut resource = serde_json::Map::new();
        resource.insert("metadata".to_owned(), metadata.into());
        resource.insert("contentType".to_owned(), CONTENT_TYPE.into());
        if let Some(class) = &self.config.storage_class {
            resource.insert("storageClass".to_owned(), class.as_str().into());
        }
        resource
    }

    /// Writes a whole object, whose checksum the server compares before it is there.
    async fn insert(&self, name: &str, data: Vec<Bytes>, kept: &Kept) -> Answer<Piece> {
        let sum = Sum::of(&data);
        let mut resource = self.resource(kept);
        resource.insert("name".to_owned(), name.into());
        resource.insert("crc32c".to_owned(), sum.text().into());
        let boundary = format!("fastsync-{:016x}{:016x}", nonce(), nonce());
        let head = format!(
            "--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{}\r\n\
             --{boundary}\r\nContent-Type: {CONTENT_TYPE}\r\n\r\n",
            Value::from(resource)
        );
        let mut body = vec![Bytes::from(head)];
        body.extend(data);
        body.push(format!("\r\n--{boundary}--\r\n").into());
        let (base, bucket) = (&self.base, &self.config.bucket);
        let fields = in_query(FIELDS);
        let url =
            format!("{base}/upload/storage/v1/b/{bucket}/o?uploadType=multipart&fields={fields}");
        let call = Call::new(Method::POST, url)
            .header("content-type", &format!("multipart/related; boundary={boundary}"))
            .body(body);
        let object: Object = parsed(&self.server.body(&call).await?)?;
        self.checked(object, name, sum)
    }

    /// Makes an object of others, in their order.
    async fn compose(&self, from: &[Piece], to: &str, kept: &Kept) -> Answer<Piece> {
        let sources: Vec<Value> =
            from.iter().map(|it| json!({ "name": it.name, "generation": it.generation })).collect();
        let object = self.compose_of(&sources, to, kept).await?;
        let sum = from.iter().fold(Sum::of(&[]), |sum, piece| sum.followed_by(piece.sum));
        self.checked(object, to, sum)
    }

    async fn compose_of(&self, sources: &[Value], to: &str, kept: &Kept) -> Answer<Object> {
        let body = json!({ "sourceObjects": sources, "destination": self.resource(kept) });
        let url = format!("{}/compose?fields={}", self.url(to), in_query(FIELDS));
        let call = with_json(Call::new(Method::POST, url), &body);
        parsed(&self.server.body(&call).await?)
    }

    /// Composes as many objects as there are, by way of others if they are too many for one step.
    async fn compose_all(
        &self,
        id: &str,
        mut level: Vec<Piece>,
        key: &Key,
        kept: &Kept,
    ) -> Answer<()> {
        let mut temporary: Vec<String> = level.iter().map(|it| it.name.clone()).collect();
        for depth in 1.. {
            if level.len() <= MAX_COMPOSED {
                break;
            }
            let names: Vec<String> = (0..level.len().div_ceil(MAX_COMPOSED))
                .map(|number| part_name(key, id, &format!("{depth}-{number:06}")))
                .collect::<Answer<_>>()?;
            let composed: Vec<_> = level
                .chunks(MAX_COMPOSED)
                .zip(&names)
                .map(|(group, name)| self.compose(group, name, &NOTHING))
                .collect();
            let composed = all(composed, self.properties.requests).await;
            level = composed.into_iter().collect::<Answer<_>>()?;
            temporary.extend(names);
        }
        self.compose(&level, key_text(key)?, kept).await?;
        // The object is there; what cannot be removed is found by whoever cleans up.
        self.remove_all(&temporary).await;
        Ok(())
    }

    /// An object that was written, if it is what was sent.
    fn checked(&self, object: Object, name: &str, sum: Sum) -> Answer<Piece> {
        if object.generation.is_empty() || object.crc32c != sum.text() {
            return Err(Fault::new(Class::Violation, text::DAMAGED));
        }
        Ok(Piece { name: name.to_owned(), generation: object.generation, sum })
    }

    async fn remove(&self, name: &str) -> Answer<()> {
        self.server.maybe(&Call::new(Method::DELETE, self.url(name))).await.map(drop)
    }

    async fn remove_all(&self, names: &[String]) -> Vec<Answer<()>> {
        let removals: Vec<_> = names.iter().map(|name| self.remove(name)).collect();
        all(removals, self.properties.requests).await
    }

    /// All temporary objects of an upload.
    async fn temporary(&self, key: &Key, id: &str) -> Answer<Vec<Object>> {
        let prefix = part_name(key, id, "")?;
        let (mut found, mut pages) = (Vec::new(), Pages::default());
        while !pages.is_over() {
            let page = self.page(&prefix, "", pages.marker()).await?;
            pages.turn(page.next_page_token, page.items.iter().map(|it| &it.name))?;
            found.extend(page.items);
        }
        Ok(found)
    }
}

impl Endpoint for GcsEndpoint {
    type Open = Open;
    type Upload = Upload;

    fn properties(&self) -> &Properties {
        &self.inner.properties
    }

    fn shown(&self, key: &Key) -> Vec<u8> {
        [b"gs://", self.inner.config.bucket.as_bytes(), b"/", key.as_bytes()].concat()
    }

    async fn stat(&self, key: &Key) -> Answer<Option<Thing>> {
        if key.is_top() {
            return Ok(Some(implied()));
        }
        let url = format!("{}?fields={}", self.inner.url(key_text(key)?), in_query(FIELDS));
        if let Some(response) = self.inner.server.maybe(&Call::new(Method::GET, url)).await? {
            let object: Object = parsed(&read_body(response, MAX_PAGE_LEN).await?)?;
            return object.thing().map(Some);
        }
        let page = self.inner.page(&prefix_of(key)?, "&maxResults=1", None).await?;
        Ok((!page.items.is_empty() || !page.prefixes.is_empty()).then(implied))
    }

    async fn list(
        &self,
        directory: &Key,
        deep: bool,
        found: flume::Sender<Vec<Listed>>,
    ) -> Answer<()> {
        let (prefix, top) = (prefix_of(directory)?, self.shown(&Key::default()));
        let delimiter = if deep { "" } else { "&delimiter=%2F" };
        let page = async |next: Option<String>| {
            let page = self.inner.page(&prefix, delimiter, next.as_deref()).await?;
            let mut group = Vec::with_capacity(page.items.len() + page.prefixes.len());
            for object in &page.items {
                group.extend(listed(&top, object.name.as_bytes(), object.thing()?));
            }
            for prefix in &page.prefixes {
                group.extend(listed(&top, prefix.as_bytes(), implied()));
            }
            Ok((group, page.next_page_token))
        };
        pages(found, page).await
    }

    async fn open(&self, key: &Key, thing: &Thing) -> Answer<Open> {
        let (base, bucket) = (&self.inner.base, &self.inner.config.bucket);
        let name = key_text(key)?;
        let condition = condition(thing);
        let get = format!("{base}/download/storage/v1/b/{bucket}/o/{}?alt=media", in_query(name));
        let get = Call::new(Method::GET, format!("{get}&{condition}"));
        // What is stored compressed comes as it is stored.
        let get = get.header("accept-encoding", "gzip");
        let look = format!("{}?fields=generation&{condition}", self.inner.url(name));
        Ok(Open::new(get, Call::new(Method::GET, look), thing, "x-goog-generation"))
    }

    async fn read(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        self.inner.server.read(file, offset, into).await
    }

    async fn confirm(&self, file: &Open) -> Answer<bool> {
        self.inner.server.confirm(file).await
    }

    async fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
        self.inner.insert(key_text(key)?, vec![data], kept).await.map(drop)
    }

    async fn begin(&self, key: &Key, size: u64, parts: u64, _: &Kept) -> Answer<Upload> {
        let id = (parts > 1).then(|| format!("{}-{}", upload_id(), hash_of(key)).into());
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
        let id = id_of(&left.token).filter(|(of, id)| *of == size && id.ends_with(&hash_of(key)));
        let Some((_, id)) = id else { return Ok(None) };
        let found = self.inner.temporary(key, &id).await?;
        if found.is_empty() {
            return Ok(None);
        }
        let found: HashMap<&str, &Object> = found.iter().map(|it| (&*it.name, it)).collect();
        let mut lost = Vec::new();
        for (number, receipt) in &left.receipts {
            let name = part_name(key, &id, &part_number(*number))?;
            let is_there = Piece::of_receipt(name, receipt).is_some_and(|piece| {
                let found = found.get(&*piece.name);
                found.is_some_and(|it| {
                    it.generation == piece.generation && it.crc32c == piece.sum.text()
                })
            });
            if !is_there {
                lost.push(*number);
            }
        }
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
        let name = part_name(&upload.key, id, &part_number(number))?;
        let piece = self.inner.insert(&name, data, &NOTHING).await?;
        let receipt = Receipt::new(piece.receipt().as_bytes());
        receipt.ok_or_else(|| Fault::new(Class::Violation, "the server's generation is too long"))
    }

    async fn finish(
        &self,
        upload: Upload,
        key: &Key,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        let Some(id) = &upload.id else {
            return self.inner.insert(key_text(key)?, upload.whole.get(), kept).await.map(drop);
        };
        let mut pieces = Vec::with_capacity(receipts.len());
        for (number, receipt) in receipts {
            let name = part_name(key, id, &part_number(number))?;
            let piece = Piece::of_receipt(name, &receipt);
            pieces.push(piece.ok_or_else(|| Fault::new(Class::Changed, "a part is not known"))?);
        }
        self.inner.compose_all(id, pieces, key, kept).await
    }

    async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
        let Some((_, id)) = id_of(token) else { return Ok(()) };
        let found = self.inner.temporary(key, &id).await?;
        let names: Vec<String> = found.into_iter().map(|it| it.name).collect();
        self.inner.remove_all(&names).await.into_iter().collect()
    }

    async fn unfinished(
        &self,
        directory: &Key,
        found: flume::Sender<Vec<Unfinished>>,
    ) -> Answer<()> {
        let (prefix, mut pages) = (prefix_of(directory)?, Pages::default());
        let mut uploads: HashMap<(Key, String), Unfinished> = HashMap::new();
        while !pages.is_over() {
            let page = self.inner.page(&prefix, "", pages.marker()).await?;
            pages.turn(page.next_page_token, page.items.iter().map(|it| &it.name))?;
            for object in &page.items {
                let Some((key, id)) = upload_of(&object.name) else { continue };
                if key.below(directory).is_none() {
                    continue;
                }
                let thing = object.thing()?;
                let token = Some(token(0, Some(&id)));
                let left = || Unfinished { key: key.clone(), token, size: 0, since: None };
                let left = uploads.entry((key.clone(), id)).or_insert_with(left);
                left.size += thing.size;
                left.since = left.since.max(thing.modified);
            }
        }
        let _ = found.send_async(uploads.into_values().collect()).await;
        Ok(())
    }

    async fn set(&self, key: &Key, thing: &Thing, kept: &Kept, _: Changes) -> Answer<()> {
        let metadata: HashMap<_, _> = metadata::GCS.entries(kept).into_iter().collect();
        let url = format!("{}?{}", self.inner.url(key_text(key)?), condition(thing));
        let call = with_json(Call::new(Method::PATCH, url), &json!({ "metadata": metadata }));
        self.inner.server.done(&call).await.map(drop)
    }

    async fn remove(&self, things: Vec<(Key, ThingKind)>) -> Vec<Answer<()>> {
        let removals: Vec<_> = things
            .iter()
            .map(|(key, _)| async { self.inner.remove(key_text(key)?).await })
            .collect();
        all(removals, self.inner.properties.requests).await
    }

    fn copies_from(&self, source: &Self) -> bool {
        self.inner.config == source.inner.config
    }

    async fn copy(&self, _: &Self, from: &Key, thing: &Thing, to: &Key, kept: &Kept) -> Answer<()> {
        // An object composed of one other: the only copy with metadata of its own in one step.
        let source = match &thing.tag {
            Some(tag) => {
                json!({ "name": key_text(from)?, "generation": String::from_utf8_lossy(tag) })
            }
            None => json!({ "name": key_text(from)? }),
        };
        self.inner.compose_of(&[source], key_text(to)?, kept).await.map(drop)
    }
}

impl Object {
    fn thing(&self) -> Answer<Thing> {
        let size = match &self.size {
            Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        };
        let size = size.ok_or_else(|| {
            Fault::new(Class::Violation, "the server does not tell the object's size")
        })?;
        let mut thing = Thing {
            kind: ThingKind::File,
            size,
            modified: timestamp(&self.time_created),
            tag: (!self.generation.is_empty()).then(|| self.generation.as_bytes().into()),
            ..implied()
        };
        metadata::GCS.read(&mut thing, |name| self.metadata.get(name)?.as_str());
        Ok(thing)
    }
}

impl Sum {
    fn of(data: &[Bytes]) -> Self {
        let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
        for piece in data {
            digest.update(piece);
        }
        Self { crc: digest.finalize(), len: data.iter().map(|it| it.len() as u64).sum() }
    }

    /// That of both, one after the other.
    fn followed_by(self, next: Self) -> Self {
        let crc = checksum_combine(CrcAlgorithm::Crc32Iscsi, self.crc, next.crc, next.len);
        Self { crc, len: self.len + next.len }
    }

    /// As the server writes it: base64 of four bytes, the highest first.
    fn text(self) -> String {
        BASE64.encode(u32::try_from(self.crc).unwrap_or_default().to_be_bytes())
    }
}

impl Piece {
    fn receipt(&self) -> String {
        format!("{} {:08x} {}", self.generation, self.sum.crc, self.sum.len)
    }

    fn of_receipt(name: String, receipt: &Receipt) -> Option<Self> {
        let text = std::str::from_utf8(receipt.as_bytes()).ok()?;
        let mut words = text.split(' ');
        let (generation, crc, len) = (words.next()?, words.next()?, words.next()?);
        let crc = u32::from_str_radix(crc, 16).ok()?.into();
        let sum = Sum { crc, len: len.parse().ok()? };
        Some(Self { name, generation: generation.to_owned(), sum })
    }
}

/// Where a temporary object of an upload is: beside the upload's key.
fn part_name(key: &Key, id: &str, which: &str) -> Answer<String> {
    let prefix = prefix_of(&key.parent().unwrap_or_default())?;
    let own = String::from_utf8_lossy(OWN_PREFIX);
    Ok(format!("{prefix}{own}{id}-{which}"))
}

/// The upload that a temporary object is of, and a key beside which it is: which one it was to have is not
/// known.
fn upload_of(name: &str) -> Option<(Key, String)> {
    let key = Key::new(name.as_bytes()).ok()?;
    let own = std::str::from_utf8(key.name().strip_prefix(OWN_PREFIX)?).ok()?;
    let mut parts = own.splitn(3, '-');
    let (begun_at, hash, _) = (parts.next()?, parts.next()?, parts.next()?);
    let id = begun(begun_at).map(|_| format!("{begun_at}-{hash}"))?;
    let stem = [OWN_PREFIX, id.as_bytes()].concat();
    Some((key.parent()?.join(&stem).ok()?, id))
}

/// What tells the uploads to one key from those to others in its directory.
fn hash_of(key: &Key) -> String {
    blake3::hash(key.as_bytes()).to_hex().chars().take(16).collect()
}

/// So that they are listed in their order.
fn part_number(number: u64) -> String {
    format!("{number:08}")
}

/// What a query asks so that only the version that is meant answers.
fn condition(thing: &Thing) -> String {
    let tag = thing.tag.as_deref().map(String::from_utf8_lossy);
    tag.map(|tag| format!("ifGenerationMatch={}", in_query(&tag))).unwrap_or_default()
}

fn with_json(call: Call, body: &Value) -> Call {
    call.header("content-type", "application/json; charset=UTF-8")
        .body(vec![body.to_string().into()])
}

/// Reads a page of a listing, and believes nothing else.
fn page_of(body: &[u8]) -> Answer<Page> {
    let mut page: Page = parsed(body).map_err(|_| broken_off())?;
    page.next_page_token = page.next_page_token.filter(|token| !token.is_empty());
    let says_something =
        !page.items.is_empty() || !page.prefixes.is_empty() || page.next_page_token.is_some();
    let is_listing = match page.kind.as_str() {
        "" => says_something,
        kind => kind == "storage#objects",
    };
    if is_listing && page.error.is_none() { Ok(page) } else { Err(broken_off()) }
}

fn parsed<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Answer<T> {
    let wrong = |_| Fault::new(Class::Violation, "the server's answer is not what it should be");
    serde_json::from_slice(body).map_err(wrong)
}

/// Why a request failed, by its answer.
fn refused(status: StatusCode, _: &HeaderMap, body: &[u8]) -> Fault {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let of = |path: &str| answer.pointer(path).and_then(Value::as_str);
    match of("/error/errors/0/reason") {
        Some(reason) => coded(MEANINGS, reason, of("/error/message").unwrap_or_default()),
        None => by_status(status),
    }
}

const MEANINGS: &[Meaning] = &[
    Meaning { codes: &["notFound"], class: Class::Missing, text: text::NO_OBJECT },
    Meaning {
        codes: &["authError", "expired"],
        class: Class::Credentials,
        text: "the credentials are wrong or have expired; log in again, or check \
               GOOGLE_APPLICATION_CREDENTIALS",
    },
    Meaning {
        codes: &["required"],
        class: Class::Credentials,
        text: "the bucket is not open to everybody; leave --anonymous out",
    },
    Meaning {
        codes: &["forbidden", "insufficientPermissions", "domainPolicy"],
        class: Class::Denied,
        text: text::DENIED,
    },
    Meaning {
        codes: &["accountDisabled", "userProjectAccountProblem", "projectAccountClosed"],
        class: Class::Credentials,
        text: "the project's account is closed; ask its owner",
    },
    Meaning { codes: &["quotaExceeded"], class: Class::Full, text: text::FULL },
    Meaning {
        codes: &["conditionNotMet", "notModified"],
        class: Class::Changed,
        text: text::OTHER_VERSION,
    },
    Meaning {
        codes: &["rateLimitExceeded", "userRateLimitExceeded", "backendError", "internalError"],
        class: Class::Busy,
        text: text::BUSY,
    },
    Meaning {
        codes: &["retentionPolicyNotMet", "objectUnderActiveHold"],
        class: Class::Denied,
        text: "the object is held by the bucket's retention policy",
    },
];

/// What of an object's description is wanted.
const FIELDS: &str = "name,generation,size,crc32c,timeCreated,metadata";

const CONTENT_TYPE: &str = "application/octet-stream";

/// What is kept beside temporary objects.
const NOTHING: Kept = Kept { mtime: None, mode: None, root: None };

/// The longest object, in bytes, however it was composed.
const MAX_SIZE: u64 = 5 << 40;

/// How many objects can be composed with one request.
const MAX_COMPOSED: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_add_up() {
        let (one, other) = (Bytes::from_static(b"123"), Bytes::from_static(b"456789"));
        let whole = Sum::of(&[one.clone(), other.clone()]);
        // The check value of CRC-32C (iSCSI).
        assert_eq!((whole.crc, whole.text().as_str()), (0xe306_9283, "4waSgw=="));
        assert_eq!(Sum::of(&[one]).followed_by(Sum::of(&[other])), whole);
        assert_eq!(Sum::of(&[]).followed_by(whole), whole);
    }

    #[test]
    fn only_a_listing_is_a_page() {
        let next = |body: &str| page_of(body.as_bytes()).map(|it| it.next_page_token);
        let kind = r#"{"kind":"storage#objects","nextPageToken":""}"#;
        assert_eq!(next(kind), Ok(None));
        assert_eq!(next(r#"{"prefixes":["a/"],"nextPageToken":"t"}"#), Ok(Some("t".to_owned())));
        let error = r#"{"kind":"storage#objects","error":{"code":500}}"#;
        for body in ["", "{}", "[]", "<html>", error, r#"{"kind":"x","prefixes":["a/"]}"#] {
            assert_eq!(next(body).unwrap_err().class, Class::Violation, "{body}");
        }
    }

    #[test]
    fn a_receipt_comes_back() {
        let sum = Sum { crc: 7, len: 9 };
        let piece = Piece { name: "x".into(), generation: "1700".into(), sum };
        let receipt = Receipt::new(piece.receipt().as_bytes()).unwrap();
        let found = Piece::of_receipt("x".into(), &receipt).unwrap();
        assert_eq!((found.generation.as_str(), found.sum), ("1700", sum));
        for text in ["", "1 2", "1 x 3", "1 2 x"] {
            assert!(
                Piece::of_receipt("x".into(), &Receipt::new(text.as_bytes()).unwrap()).is_none()
            );
        }
    }

    #[test]
    fn parts_are_beside_their_object() {
        let key = Key::new(b"a/b").unwrap();
        assert_eq!(part_name(&key, "id", &part_number(7)).unwrap(), "a/.fastsync-id-00000007");
        let key = Key::new(b"b").unwrap();
        assert_eq!(part_name(&key, "id", "").unwrap(), ".fastsync-id-");
    }

    #[test]
    fn temporary_objects_tell_their_upload() {
        let key = Key::new(b"a/b").unwrap();
        let id = format!("{}-{}", upload_id(), hash_of(&key));
        let name = part_name(&key, &id, &part_number(7)).unwrap();
        let (stem, found) = upload_of(&name).unwrap();
        assert_eq!(found, id);
        // Which is enough to find its other parts.
        assert_eq!(part_name(&stem, &id, "").unwrap(), part_name(&key, &id, "").unwrap());
        for name in ["a/b", ".fastsync-x-00000001", ".fastsync-0123456789abcdef"] {
            assert_eq!(upload_of(name), None, "{name}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let body = br#"{"error":{"code":401,"message":"m","errors":[{"reason":"authError"}]}}"#;
        let fault = refused(StatusCode::UNAUTHORIZED, &HeaderMap::new(), body);
        assert_eq!(fault.class, Class::Credentials);
        assert!(fault.text.contains("log in again"), "{fault}");
        let fault = refused(StatusCode::PRECONDITION_FAILED, &HeaderMap::new(), b"<html>");
        assert_eq!(fault.class, Class::Changed);
    }

    #[test]
    fn a_token_does_not_travel_in_the_open() {
        let config = GcsConfig { bucket: "bucket".into(), ..GcsConfig::default() };
        assert!(GcsEndpoint::new(config.clone()).unwrap().properties().encrypts);
        let endpoint = Some("http://127.0.0.1:1".to_owned());
        let open = GcsEndpoint::new(GcsConfig { endpoint, ..config.clone() }).unwrap();
        assert!(!open.properties().encrypts);
        let bucket = "a/b".to_owned();
        assert!(GcsEndpoint::new(GcsConfig { bucket, ..config }).is_err());
    }
}
