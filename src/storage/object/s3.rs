//! What speaks S3, as an endpoint.
//!
//! Objects are whole or not there: a large one goes up in parts, under an upload's identifier, and gets
//! its key when all parts are there. What is kept beside it has to be known when the upload begins.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::credentials;
use super::metadata;
use super::xml;
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::Changes;
use crate::storage::http::client::{Call, Client, fill, read_body};
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Keeps, KeepsRoot, Kept, Key, Listed, Parts, Properties,
    Replaces, Thing, ThingKind, all, pieces,
};
use crate::storage::{Left, Receipt, Remembers, Token};

/// Which bucket, where, and as whom.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct S3Config {
    pub bucket: String,
    /// The server's URL; Amazon's if `None`.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// A section of the user's configuration of Amazon's tools.
    pub profile: Option<String>,
    /// Instead of what the environment and the user's configuration say.
    pub keys: Option<S3Keys>,
    /// Without any credentials.
    pub anonymous: bool,
    /// The bucket is part of the path and not of the host's name; as it is usual there if `None`.
    pub path_style: Option<bool>,
    pub storage_class: Option<String>,
    /// How many requests at a time; 64 if `None`.
    pub requests: Option<usize>,
}

/// Who we are, said outright.
#[derive(Clone, Eq, PartialEq)]
pub struct S3Keys {
    pub access: String,
    pub secret: String,
}

impl std::fmt::Debug for S3Keys {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Keys").field("access", &self.access).finish_non_exhaustive()
    }
}

/// A bucket.
#[derive(Clone, Debug)]
pub struct S3Endpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    config: S3Config,
    /// What the URLs of the bucket's objects begin with, without a slash at its end.
    base: String,
    properties: Properties,
}

/// An object that is being read.
#[derive(Clone, Debug)]
pub struct Open {
    url: Arc<str>,
    tag: Option<Arc<str>>,
    /// It has nothing to be read.
    is_empty: bool,
}

/// An object that is coming.
#[derive(Clone, Debug)]
pub struct Upload {
    key: Key,
    /// `None` of one that goes up whole.
    id: Option<Arc<str>>,
    /// All of its data, once it has come.
    whole: Arc<Mutex<Vec<Bytes>>>,
}

impl S3Endpoint {
    /// Finds the bucket, and finds out whether it may be listed.
    ///
    /// # Errors
    ///
    /// [`Class::Credentials`] and others, with what to do about it.
    pub async fn connect(config: S3Config) -> Answer<Self> {
        let mut region = config.region.clone().unwrap_or_else(|| "us-east-1".to_owned());
        for _ in 0..2 {
            let endpoint = Self::in_region(config.clone(), &region)?;
            let query = "list-type=2&max-keys=1&encoding-type=url";
            let call = Call::new(Method::GET, format!("{}/?{query}", endpoint.inner.base));
            let response = endpoint.inner.client.send(&call).await?;
            if response.status().is_success() {
                return Ok(endpoint);
            }
            let named = region_of(response.headers());
            let status = response.status();
            let body = read_body(response, MAX_PAGE_LEN).await.unwrap_or_default();
            let named = named.or_else(|| xml::text_of(&body, "Error/Region"));
            match named.filter(|named| *named != region) {
                Some(named) => region = named,
                // Who may not list may still read and write.
                None if xml::text_of(&body, "Error/Code").as_deref() == Some("AccessDenied") => {
                    return Ok(endpoint);
                }
                None => return Err(refused(status, &body)),
            }
        }
        Err(Fault::new(Class::Other, "the server names another region each time"))
    }

    fn in_region(config: S3Config, region: &str) -> Answer<Self> {
        let requests = config.requests.unwrap_or(REQUESTS).max(1);
        let mut client = Client::new(requests)?;
        if !config.anonymous {
            let signer = credentials::signer(client.plain(), region, &config);
            client = client.signing(signer);
        }
        let base = base_url(&config, region)?;
        let properties = Properties {
            name: "s3",
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
                roots: KeepsRoot::FromTheBeginning,
                any_bytes: false,
            },
            parts: Parts { min_len: 5 << 20, max_count: 10_000 },
            requests,
            lists_all: false,
            copies: true,
            encrypts: base.starts_with("https://"),
        };
        Ok(Self { inner: Arc::new(Inner { client, config, base, properties }) })
    }
}

impl Inner {
    fn url(&self, key: &Key) -> String {
        format!("{}/{}", self.base, encoded(key))
    }

    /// Sends a request that is to succeed.
    async fn done(&self, call: &Call) -> Answer<reqwest::Response> {
        let response = self.client.send(call).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = read_body(response, MAX_PAGE_LEN).await.unwrap_or_default();
        Err(refused(status, &body))
    }

    async fn body(&self, call: &Call) -> Answer<Vec<u8>> {
        read_body(self.done(call).await?, MAX_PAGE_LEN).await
    }

    async fn head(&self, key: &Key) -> Answer<Option<Thing>> {
        let response = self.client.send(&Call::new(Method::HEAD, self.url(key))).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let thing = metadata::thing(response.headers());
                thing.map(Some).ok_or_else(|| {
                    Fault::new(Class::Violation, "the server does not tell the object's size")
                })
            }
            // An answer to HEAD has no text that could say more.
            status => Err(refused(status, &[])),
        }
    }

    async fn page(&self, prefix: &str, query: &str) -> Answer<xml::Page> {
        let url = format!(
            "{}/?list-type=2&encoding-type=url&prefix={}{query}",
            self.base,
            utf8_percent_encode(prefix, IN_QUERY)
        );
        xml::page(&self.body(&Call::new(Method::GET, url)).await?)
    }

    fn with_kept(&self, mut call: Call, kept: &Kept) -> Call {
        for (name, value) in metadata::headers(kept) {
            call = call.header(name, &value);
        }
        match &self.config.storage_class {
            Some(class) => call.header("x-amz-storage-class", class),
            None => call,
        }
    }

    async fn put_whole(&self, key: &Key, data: Vec<Bytes>, kept: &Kept) -> Answer<()> {
        let checksum = checksum(&data);
        let call = Call::new(Method::PUT, self.url(key)).header(CHECKSUM, &checksum).body(data);
        self.done(&self.with_kept(call, kept)).await.map(drop)
    }

    /// Copies an object onto itself or elsewhere within the bucket, with new metadata.
    async fn copy_object(&self, from: &Key, thing: &Thing, to: &Key, kept: &Kept) -> Answer<()> {
        if thing.size > MAX_COPY_LEN {
            let text = "objects of more than 5 GiB cannot be copied at once";
            return Err(Fault::new(Class::Unsupported, text));
        }
        let source = format!("/{}/{}", self.config.bucket, encoded(from));
        let mut call = Call::new(Method::PUT, self.url(to))
            .header("x-amz-copy-source", &source)
            .header("x-amz-metadata-directive", "REPLACE");
        if let Some(tag) = &thing.tag {
            call = call.header("x-amz-copy-source-if-match", &String::from_utf8_lossy(tag));
        }
        let body = self.body(&self.with_kept(call, kept)).await?;
        check_late_error(&body)
    }
}

impl Endpoint for S3Endpoint {
    type Open = Open;
    type Upload = Upload;

    fn properties(&self) -> &Properties {
        &self.inner.properties
    }

    fn shown(&self, key: &Key) -> Vec<u8> {
        [b"s3://", self.inner.config.bucket.as_bytes(), b"/", key.as_bytes()].concat()
    }

    async fn stat(&self, key: &Key) -> Answer<Option<Thing>> {
        if key.is_top() {
            return Ok(Some(directory()));
        }
        if let Some(thing) = self.inner.head(key).await? {
            return Ok(Some(thing));
        }
        let prefix = format!("{}/", text(key)?);
        let page = self.inner.page(&prefix, "&max-keys=1").await?;
        let is_there = !page.objects.is_empty() || !page.prefixes.is_empty();
        Ok(is_there.then(directory))
    }

    async fn list(
        &self,
        directory: &Key,
        deep: bool,
        found: flume::Sender<Vec<Listed>>,
    ) -> Answer<()> {
        let prefix =
            if directory.is_top() { String::new() } else { format!("{}/", text(directory)?) };
        let delimiter = if deep { "" } else { "&delimiter=%2F" };
        let mut next: Option<String> = None;
        loop {
            let more = next.as_ref().map_or_else(String::new, |token| {
                format!("&continuation-token={}", utf8_percent_encode(token, IN_QUERY))
            });
            let page = self.inner.page(&prefix, &format!("{delimiter}{more}")).await?;
            let mut group = Vec::with_capacity(page.objects.len() + page.prefixes.len());
            for object in page.objects {
                group.extend(listed(self, &object.key, |key| (key, thing_of(&object))));
            }
            for prefix in page.prefixes {
                group.extend(listed(self, &prefix, |key| (key, self::directory())));
            }
            if !group.is_empty() && found.send_async(group).await.is_err() {
                return Ok(());
            }
            match page.next {
                // A server that gives the same page for ever is not followed.
                Some(token) if next.as_ref() != Some(&token) => next = Some(token),
                _ => return Ok(()),
            }
        }
    }

    async fn open(&self, key: &Key, thing: &Thing) -> Answer<Open> {
        let tag = thing.tag.as_ref().map(|tag| String::from_utf8_lossy(tag).as_ref().into());
        Ok(Open { url: self.inner.url(key).into(), tag, is_empty: thing.size == 0 })
    }

    async fn read(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        let mut done = 0;
        for _ in 0..READ_ATTEMPTS {
            let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) else {
                return Ok(());
            };
            let first = offset + done as u64;
            let last = first + rest.len() as u64 - 1;
            let mut call = Call::new(Method::GET, file.url.to_string())
                .header("range", &format!("bytes={first}-{last}"));
            if let Some(tag) = &file.tag {
                call = call.header("if-match", tag);
            }
            let response = self.inner.done(&call).await?;
            let begins = response.headers().get(http::header::CONTENT_RANGE);
            let begins = begins.and_then(|it| it.to_str().ok());
            let is_ours = match begins {
                Some(range) => range.starts_with(&format!("bytes {first}-")),
                None => first == 0 && response.content_length() == Some(rest.len() as u64),
            };
            if !is_ours {
                let text = "the server sends another part than it was asked for";
                return Err(Fault::new(Class::Violation, text));
            }
            done += fill(response, rest).await?;
        }
        if done == into.len() {
            return Ok(());
        }
        Err(Fault::new(Class::Disconnected, "the connection broke off again and again"))
    }

    async fn confirm(&self, file: &Open) -> Answer<bool> {
        // Each answer was to a request for this very version, if there was one.
        if !file.is_empty {
            return Ok(true);
        }
        let mut call = Call::new(Method::HEAD, file.url.to_string());
        if let Some(tag) = &file.tag {
            call = call.header("if-match", tag);
        }
        match self.inner.done(&call).await {
            Ok(_) => Ok(true),
            Err(fault) if fault.class == Class::Changed => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    async fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
        self.inner.put_whole(key, vec![data], kept).await
    }

    async fn begin(&self, key: &Key, _: u64, parts: u64, kept: &Kept) -> Answer<Upload> {
        if parts > self.inner.properties.parts.max_count {
            let text = "it has more than 10,000 parts of this size; choose a larger one with -c";
            return Err(Fault::new(Class::Unsupported, text));
        }
        let whole = Arc::default();
        if parts <= 1 {
            return Ok(Upload { key: key.clone(), id: None, whole });
        }
        let call = Call::new(Method::POST, format!("{}?uploads", self.inner.url(key)))
            .header("x-amz-checksum-algorithm", "CRC64NVME")
            .header("x-amz-checksum-type", "FULL_OBJECT");
        let body = self.inner.body(&self.inner.with_kept(call, kept)).await?;
        let id = xml::text_of(&body, "InitiateMultipartUploadResult/UploadId");
        let id = id.filter(|id| !id.is_empty() && id.len() <= Token::MAX_LEN);
        let id = id.ok_or_else(|| Fault::new(Class::Violation, "the server gives no upload id"))?;
        Ok(Upload { key: key.clone(), id: Some(id.into()), whole })
    }

    fn token(&self, upload: &Upload) -> Token {
        let id = upload.id.as_deref().unwrap_or_default();
        Token::new(&[b"u", id.as_bytes()].concat()).unwrap_or_default()
    }

    async fn resume(&self, key: &Key, _: u64, left: &Left) -> Answer<Option<(Upload, Vec<u64>)>> {
        let Some(id) = id_of(&left.token) else { return Ok(None) };
        let mut known = std::collections::HashMap::new();
        let mut marker = String::new();
        loop {
            let url = format!("{}?uploadId={}{marker}", self.inner.url(key), in_query(&id));
            let response = self.inner.client.send(&Call::new(Method::GET, url)).await?;
            let status = response.status();
            let body = read_body(response, MAX_PAGE_LEN).await?;
            if status == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            if !status.is_success() {
                return Err(refused(status, &body));
            }
            let (parts, next) = xml::parts(&body)?;
            known.extend(parts);
            match next.map(|next| format!("&part-number-marker={next}")) {
                Some(next) if next != marker => marker = next,
                _ => break,
            }
        }
        let is_lost = |(number, receipt): &&(u64, Receipt)| {
            known.get(&(number + 1)).is_none_or(|tag| tag.as_bytes() != receipt.as_bytes())
        };
        let lost = left.receipts.iter().filter(is_lost).map(|(number, _)| *number).collect();
        let upload = Upload { key: key.clone(), id: Some(id.into()), whole: Arc::default() };
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
            *upload.whole.lock().unwrap_or_else(PoisonError::into_inner) = data;
            return Ok(Receipt::default());
        };
        let url = format!(
            "{}?partNumber={}&uploadId={}",
            self.inner.url(&upload.key),
            number + 1,
            in_query(id)
        );
        let checksum = checksum(&data);
        let call = Call::new(Method::PUT, url).header(CHECKSUM, &checksum).body(data);
        let response = self.inner.done(&call).await?;
        let tag = response.headers().get(http::header::ETAG).and_then(|it| it.to_str().ok());
        let receipt = tag.and_then(|tag| Receipt::new(tag.as_bytes()));
        receipt.ok_or_else(|| Fault::new(Class::Violation, "the server gives no tag for a part"))
    }

    async fn reread(&self, _: &Upload, _: u64, _: &mut [u8]) -> Answer<()> {
        Err(Fault::new(Class::Unsupported, "parts of an upload cannot be read"))
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
            let data = upload.whole.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return self.inner.put_whole(key, data, kept).await;
        };
        let mut body = String::from("<CompleteMultipartUpload>");
        for (number, receipt) in receipts {
            let tag = String::from_utf8_lossy(receipt.as_bytes());
            let tag = quick_xml::escape::escape(&*tag);
            let number = number + 1;
            body.push_str("<Part><PartNumber>");
            body.push_str(&number.to_string());
            body.push_str("</PartNumber><ETag>");
            body.push_str(&tag);
            body.push_str("</ETag></Part>");
        }
        body.push_str("</CompleteMultipartUpload>");
        let url = format!("{}?uploadId={}", self.inner.url(key), in_query(id));
        let call = Call::new(Method::POST, url).body(vec![body.into()]);
        // A server may say yes first and no at the end.
        check_late_error(&self.inner.body(&call).await?)
    }

    async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
        let Some(id) = id_of(token) else { return Ok(()) };
        let url = format!("{}?uploadId={}", self.inner.url(key), in_query(&id));
        let response = self.inner.client.send(&Call::new(Method::DELETE, url)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(()),
            status if status.is_success() => Ok(()),
            status => Err(refused(status, &read_body(response, MAX_PAGE_LEN).await?)),
        }
    }

    async fn make_directory(&self, _: &Key) -> Answer<()> {
        Ok(())
    }

    async fn make_symlink(&self, _: &Key, _: &[u8], _: &Kept) -> Answer<()> {
        Err(Fault::new(Class::Unsupported, "object stores have no symlinks"))
    }

    async fn set(&self, key: &Key, thing: &Thing, kept: &Kept, _: Changes) -> Answer<()> {
        self.inner.copy_object(key, thing, key, kept).await
    }

    async fn remove(&self, things: Vec<(Key, ThingKind)>) -> Vec<Answer<()>> {
        let groups: Vec<_> = things
            .chunks(1000)
            .map(async |group| {
                let keys: Vec<&Key> = group.iter().map(|(key, _)| key).collect();
                self.remove_group(&keys).await
            })
            .collect();
        all(groups, self.inner.properties.requests).await.into_iter().flatten().collect()
    }

    async fn copy(&self, from: &Key, thing: &Thing, to: &Key, kept: &Kept) -> Answer<()> {
        self.inner.copy_object(from, thing, to, kept).await
    }
}

impl S3Endpoint {
    /// Removes up to 1,000 objects with one request.
    async fn remove_group(&self, keys: &[&Key]) -> Vec<Answer<()>> {
        let mut body = String::from("<Delete><Quiet>true</Quiet>");
        for key in keys {
            let name = String::from_utf8_lossy(key.as_bytes());
            let name = quick_xml::escape::escape(&*name);
            body.push_str("<Object><Key>");
            body.push_str(&name);
            body.push_str("</Key></Object>");
        }
        body.push_str("</Delete>");
        let body = vec![Bytes::from(body)];
        let checksum = checksum(&body);
        let call = Call::new(Method::POST, format!("{}/?delete", self.inner.base))
            .header(CHECKSUM, &checksum)
            .header("content-type", "application/xml")
            .body(body);
        let answer = async { xml::not_removed(&self.inner.body(&call).await?) };
        let left = match answer.await {
            Ok(left) => left,
            Err(fault) => return keys.iter().map(|_| Err(fault.clone())).collect(),
        };
        let is_left =
            |key: &&&Key| left.iter().find(|(name, ..)| name.as_bytes() == key.as_bytes());
        keys.iter()
            .map(|key| match is_left(&key) {
                None => Ok(()),
                Some((_, code, message)) => Err(coded(code, message)),
            })
            .collect()
    }
}

/// What URLs of a bucket's objects begin with.
fn base_url(config: &S3Config, region: &str) -> Answer<String> {
    let bucket = &config.bucket;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_name) {
        return Err(Fault::new(Class::Name, "that is no name of a bucket"));
    }
    let endpoint = match &config.endpoint {
        Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
        None => format!("https://s3.{region}.amazonaws.com"),
    };
    let Some((scheme, rest)) =
        endpoint.split_once("://").filter(|(it, _)| matches!(*it, "http" | "https"))
    else {
        return Err(Fault::new(Class::Name, "the endpoint is no http:// or https:// URL"));
    };
    // Certificates for all buckets do not cover names with dots.
    let is_path = config.path_style.unwrap_or(config.endpoint.is_some() || bucket.contains('.'));
    Ok(if is_path { format!("{endpoint}/{bucket}") } else { format!("{scheme}://{bucket}.{rest}") })
}

fn region_of(headers: &HeaderMap) -> Option<String> {
    let region = headers.get("x-amz-bucket-region")?.to_str().ok()?;
    Some(region.to_owned())
}

/// A key from a listing, which a server encodes as in a URL.
fn listed(
    endpoint: &S3Endpoint,
    encoded: &str,
    make: impl FnOnce(Key) -> (Key, Thing),
) -> Option<Listed> {
    let name: Vec<u8> = percent_decode_str(&encoded.replace('+', " ")).collect();
    // What ends with a slash stands for a directory; a marker for one has it too.
    let name = name.strip_suffix(b"/").unwrap_or(&name);
    if encoded.ends_with('/') && !encoded.ends_with("//") {
        return Key::new(name).ok().map(|key| Listed::Thing(key, directory()));
    }
    Some(match Key::new(name) {
        Ok(key) => {
            let (key, thing) = make(key);
            Listed::Thing(key, thing)
        }
        Err(reason) => {
            let shown = [&endpoint.shown(&Key::default())[..], name].concat();
            Listed::Unusable { shown, reason }
        }
    })
}

fn thing_of(object: &xml::Object) -> Thing {
    Thing {
        kind: ThingKind::File,
        size: object.size,
        modified: object.modified,
        tag: (!object.tag.is_empty()).then(|| object.tag.as_bytes().into()),
        ..directory()
    }
}

fn directory() -> Thing {
    Thing {
        kind: ThingKind::Directory,
        size: 0,
        mtime: None,
        modified: None,
        mode: None,
        owners: None,
        tag: None,
        root: None,
        target: None,
    }
}

fn text(key: &Key) -> Answer<&str> {
    std::str::from_utf8(key.as_bytes())
        .map_err(|_| Fault::new(Class::Name, "the name is not UTF-8"))
}

/// A key as it stands in a path.
fn encoded(key: &Key) -> String {
    utf8_percent_encode(&String::from_utf8_lossy(key.as_bytes()), IN_PATH).to_string()
}

fn in_query(text: &str) -> String {
    utf8_percent_encode(text, IN_QUERY).to_string()
}

/// The CRC-64/NVME of data, as headers have it.
fn checksum(data: &[Bytes]) -> String {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    for piece in data {
        digest.update(piece);
    }
    base64::engine::general_purpose::STANDARD.encode(digest.finalize().to_be_bytes())
}

fn id_of(token: &Token) -> Option<String> {
    let id = token.as_bytes().strip_prefix(b"u").filter(|id| !id.is_empty())?;
    String::from_utf8(id.to_vec()).ok()
}

/// An error in an answer that began well.
fn check_late_error(body: &[u8]) -> Answer<()> {
    match xml::text_of(body, "Error/Code") {
        None => Ok(()),
        Some(code) => Err(coded(&code, &xml::text_of(body, "Error/Message").unwrap_or_default())),
    }
}

/// Why a request failed, by its answer.
fn refused(status: StatusCode, body: &[u8]) -> Fault {
    if let Some(code) = xml::text_of(body, "Error/Code") {
        return coded(&code, &xml::text_of(body, "Error/Message").unwrap_or_default());
    }
    let class = match status.as_u16() {
        401 => Class::Credentials,
        403 => Class::Denied,
        404 => Class::Missing,
        412 => Class::Changed,
        429 | 500..=599 => Class::Busy,
        _ => Class::Other,
    };
    Fault::new(class, format!("the server says {status}"))
}

/// What a code of S3 means, and what to do about it.
fn coded(code: &str, message: &str) -> Fault {
    let (class, text) = match code {
        "NoSuchBucket" => {
            (Class::Credentials, "there is no such bucket; make it first, or check its name")
        }
        "NoSuchKey" => (Class::Missing, "there is no such object"),
        "InvalidAccessKeyId" => (
            Class::Credentials,
            "the access key is not known to the server; check AWS_ACCESS_KEY_ID or --aws-profile",
        ),
        "SignatureDoesNotMatch" => (
            Class::Credentials,
            "the secret key is not that of the access key; check AWS_SECRET_ACCESS_KEY",
        ),
        "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken" => {
            (Class::Credentials, "the credentials have expired; log in again")
        }
        "RequestTimeTooSkewed" => {
            (Class::Credentials, "this host's clock is wrong; set it, with NTP for example")
        }
        "AccessDenied" | "AllAccessDisabled" | "Forbidden" => {
            (Class::Denied, "these credentials do not allow it; ask the bucket's owner")
        }
        "QuotaExceeded" | "InsufficientStorage" | "EntityTooLargeForQuota" => {
            (Class::Full, "the quota is used up; make room or have it raised")
        }
        "PermanentRedirect" | "AuthorizationHeaderMalformed" => {
            (Class::Credentials, "the bucket is in another region; name it with --region")
        }
        "PreconditionFailed" => (Class::Changed, "it is another version by now"),
        "BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" => {
            (Class::Busy, "the data was damaged on its way")
        }
        "SlowDown" | "ServiceUnavailable" | "InternalError" | "RequestTimeout" => {
            (Class::Busy, "the server has too much to do")
        }
        "NotImplemented" => (Class::Unsupported, "the server cannot do this"),
        _ => {
            let (code, message) = (Escaped(code.as_bytes()), Escaped(message.as_bytes()));
            return Fault::new(Class::Other, format!("the server says {code}: {message}"));
        }
    };
    Fault::new(class, format!("{text} ({code})"))
}

/// What stands for itself in a path: a slash does.
const IN_PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// What stands for itself in a query.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const CHECKSUM: &str = "x-amz-checksum-crc64nvme";

/// How many requests at a time unless somebody says otherwise.
const REQUESTS: usize = 64;

/// The longest answer that is no object, in bytes.
const MAX_PAGE_LEN: usize = 16 << 20;

/// The longest object that can be copied with one request, in bytes.
const MAX_COPY_LEN: u64 = 5 << 30;

/// How often reading one part is begun again where it broke off.
const READ_ATTEMPTS: u32 = 5;
