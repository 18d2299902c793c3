//! What speaks S3, as an endpoint.
//!
//! Objects are whole or not there: a large one goes up in parts, under an upload's identifier, and gets
//! its key when all parts are there. What is kept beside it has to be known when the upload begins.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::credentials;
use super::fault::{Meaning, by_status, coded, text};
use super::metadata;
use super::store::{
    MAX_PAGE_LEN, REQUESTS, Server, Whole, check_count, checked_url, id_of, in_path, in_query,
    listed, pages, prefix_of, token, with_kept,
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
    server: Server,
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
    whole: Whole,
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
            let response = endpoint.inner.server.client.send(&call).await?;
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
                None => return Err(refused(status, &HeaderMap::new(), &body)),
            }
        }
        Err(Fault::new(Class::Other, "the server names another region each time"))
    }

    fn in_region(config: S3Config, region: &str) -> Answer<Self> {
        let requests = config.requests.unwrap_or(REQUESTS).max(1);
        let mut client = Client::new(requests)?;
        if !config.anonymous {
            let signer = credentials::amazon(client.plain(), region, &config);
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
        let server = Server { client, refused };
        Ok(Self { inner: Arc::new(Inner { server, config, base, properties }) })
    }
}

impl Inner {
    fn url(&self, key: &Key) -> String {
        format!("{}/{}", self.base, in_path(key))
    }

    async fn head(&self, key: &Key) -> Answer<Option<Thing>> {
        let response = self.server.maybe(&Call::new(Method::HEAD, self.url(key))).await?;
        let Some(response) = response else { return Ok(None) };
        let thing = metadata::S3.thing(response.headers());
        thing.map(Some).ok_or_else(|| {
            Fault::new(Class::Violation, "the server does not tell the object's size")
        })
    }

    async fn page(&self, prefix: &str, query: &str) -> Answer<xml::Page> {
        let prefix = in_query(prefix);
        let url = format!("{}/?list-type=2&encoding-type=url&prefix={prefix}{query}", self.base);
        xml::page(&self.server.body(&Call::new(Method::GET, url)).await?)
    }

    fn with_kept(&self, call: Call, kept: &Kept) -> Call {
        let call = with_kept(call, &metadata::S3, kept);
        match &self.config.storage_class {
            Some(class) => call.header("x-amz-storage-class", class),
            None => call,
        }
    }

    /// The parts of an upload, whose object's URL is given; `None` if there is no such upload.
    async fn parts(&self, url: &str, id: &str) -> Answer<Option<Vec<xml::Part>>> {
        let (mut found, mut marker) = (Vec::new(), String::new());
        loop {
            let url = format!("{url}?uploadId={}{marker}", in_query(id));
            let response = self.server.maybe(&Call::new(Method::GET, url)).await?;
            let Some(response) = response else { return Ok(None) };
            let (parts, next) = xml::parts(&read_body(response, MAX_PAGE_LEN).await?)?;
            found.extend(parts);
            match next.map(|next| format!("&part-number-marker={next}")) {
                Some(next) if next != marker => marker = next,
                _ => return Ok(Some(found)),
            }
        }
    }

    /// What there is of an upload.
    async fn left(&self, upload: &xml::Upload) -> Answer<Option<Unfinished>> {
        let Ok(key) = Key::new(&decoded(&upload.key)) else { return Ok(None) };
        let parts = self.parts(&self.url(&key), &upload.id).await?;
        Ok(parts.map(|parts| Unfinished {
            key,
            token: Some(token(Some(&upload.id))),
            size: parts.iter().map(|part| part.size).sum(),
            since: parts.iter().map(|part| part.modified).max().flatten().max(upload.begun),
        }))
    }

    async fn put_whole(&self, key: &Key, data: Vec<Bytes>, kept: &Kept) -> Answer<()> {
        let checksum = checksum(&data);
        let call = Call::new(Method::PUT, self.url(key)).header(CHECKSUM, &checksum).body(data);
        self.server.done(&self.with_kept(call, kept)).await.map(drop)
    }

    /// Copies an object onto itself or elsewhere within the bucket, with new metadata.
    async fn copy_object(&self, from: &Key, thing: &Thing, to: &Key, kept: &Kept) -> Answer<()> {
        if thing.size > MAX_COPY_LEN {
            let text = "objects of more than 5 GiB cannot be copied at once";
            return Err(Fault::new(Class::Unsupported, text));
        }
        let source = format!("/{}/{}", self.config.bucket, in_path(from));
        let mut call = Call::new(Method::PUT, self.url(to))
            .header("x-amz-copy-source", &source)
            .header("x-amz-metadata-directive", "REPLACE");
        if let Some(tag) = &thing.tag {
            call = call.header("x-amz-copy-source-if-match", &String::from_utf8_lossy(tag));
        }
        let body = self.server.body(&self.with_kept(call, kept)).await?;
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
            return Ok(Some(implied()));
        }
        if let Some(thing) = self.inner.head(key).await? {
            return Ok(Some(thing));
        }
        let page = self.inner.page(&prefix_of(key)?, "&max-keys=1").await?;
        let is_there = !page.objects.is_empty() || !page.prefixes.is_empty();
        Ok(is_there.then(implied))
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
            let more = next.map_or_else(String::new, |token| {
                format!("&continuation-token={}", in_query(&token))
            });
            let page = self.inner.page(&prefix, &format!("{delimiter}{more}")).await?;
            let objects = page.objects.iter().map(|object| (&object.key, thing_of(object)));
            let prefixes = page.prefixes.iter().map(|prefix| (prefix, implied()));
            let group = objects.chain(prefixes);
            let group = group.filter_map(|(name, thing)| listed(&top, &decoded(name), thing));
            Ok((group.collect(), page.next))
        };
        pages(found, page).await
    }

    async fn open(&self, key: &Key, thing: &Thing) -> Answer<Open> {
        let tag = thing.tag.as_ref().map(|tag| String::from_utf8_lossy(tag).as_ref().into());
        Ok(Open { url: self.inner.url(key).into(), tag, is_empty: thing.size == 0 })
    }

    async fn read(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        let call = Call::new(Method::GET, file.url.to_string());
        let call = match &file.tag {
            Some(tag) => call.header("if-match", tag),
            None => call,
        };
        self.inner.server.read(&call, offset, into).await
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
        match self.inner.server.done(&call).await {
            Ok(_) => Ok(true),
            Err(fault) if fault.class == Class::Changed => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    async fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
        self.inner.put_whole(key, vec![data], kept).await
    }

    async fn begin(&self, key: &Key, _: u64, parts: u64, kept: &Kept) -> Answer<Upload> {
        check_count(parts, self.inner.properties.parts.max_count)?;
        let whole = Whole::default();
        if parts <= 1 {
            return Ok(Upload { key: key.clone(), id: None, whole });
        }
        let call = Call::new(Method::POST, format!("{}?uploads", self.inner.url(key)))
            .header("x-amz-checksum-algorithm", "CRC64NVME")
            .header("x-amz-checksum-type", "FULL_OBJECT");
        let body = self.inner.server.body(&self.inner.with_kept(call, kept)).await?;
        let id = xml::text_of(&body, "InitiateMultipartUploadResult/UploadId");
        let id = id.filter(|id| !id.is_empty() && id.len() <= Token::MAX_LEN);
        let id = id.ok_or_else(|| Fault::new(Class::Violation, "the server gives no upload id"))?;
        Ok(Upload { key: key.clone(), id: Some(id.into()), whole })
    }

    fn token(&self, upload: &Upload) -> Token {
        token(upload.id.as_deref())
    }

    async fn resume(&self, key: &Key, _: u64, left: &Left) -> Answer<Option<(Upload, Vec<u64>)>> {
        let Some(id) = id_of(&left.token) else { return Ok(None) };
        let Some(parts) = self.inner.parts(&self.inner.url(key), &id).await? else {
            return Ok(None);
        };
        let known: HashMap<u64, String> = parts.into_iter().map(|it| (it.number, it.tag)).collect();
        let is_lost = |(number, receipt): &&(u64, Receipt)| {
            known.get(&(number + 1)).is_none_or(|tag| tag.as_bytes() != receipt.as_bytes())
        };
        let lost = left.receipts.iter().filter(is_lost).map(|(number, _)| *number).collect();
        let upload = Upload { key: key.clone(), id: Some(id.into()), whole: Whole::default() };
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
        let url = format!(
            "{}?partNumber={}&uploadId={}",
            self.inner.url(&upload.key),
            number + 1,
            in_query(id)
        );
        let checksum = checksum(&data);
        let call = Call::new(Method::PUT, url).header(CHECKSUM, &checksum).body(data);
        let response = self.inner.server.done(&call).await?;
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
            return self.inner.put_whole(key, upload.whole.get(), kept).await;
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
        check_late_error(&self.inner.server.body(&call).await?)
    }

    async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
        let Some(id) = id_of(token) else { return Ok(()) };
        let url = format!("{}?uploadId={}", self.inner.url(key), in_query(&id));
        self.inner.server.maybe(&Call::new(Method::DELETE, url)).await.map(drop)
    }

    async fn unfinished(
        &self,
        directory: &Key,
        found: flume::Sender<Vec<Unfinished>>,
    ) -> Answer<()> {
        let prefix = in_query(&prefix_of(directory)?);
        let mut marker = String::new();
        loop {
            let base = &self.inner.base;
            let url = format!("{base}/?uploads&encoding-type=url&prefix={prefix}{marker}");
            let body = self.inner.server.body(&Call::new(Method::GET, url)).await?;
            let (uploads, next) = xml::uploads(&body)?;
            let looks = uploads.iter().map(|upload| self.inner.left(upload)).collect();
            let left = all(looks, self.inner.properties.requests).await;
            let left: Vec<Option<Unfinished>> = left.into_iter().collect::<Answer<_>>()?;
            if found.send_async(left.into_iter().flatten().collect()).await.is_err() {
                return Ok(());
            }
            let next = next.map(|(key, id)| {
                let key = in_query(&String::from_utf8_lossy(&decoded(&key)));
                format!("&key-marker={key}&upload-id-marker={}", in_query(&id))
            });
            match next {
                Some(next) if next != marker => marker = next,
                _ => return Ok(()),
            }
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
        let answer = async { xml::not_removed(&self.inner.server.body(&call).await?) };
        let left = match answer.await {
            Ok(left) => left,
            Err(fault) => return keys.iter().map(|_| Err(fault.clone())).collect(),
        };
        let is_left =
            |key: &&&Key| left.iter().find(|(name, ..)| name.as_bytes() == key.as_bytes());
        keys.iter()
            .map(|key| match is_left(&key) {
                None => Ok(()),
                Some((_, code, message)) => Err(coded(MEANINGS, code, message)),
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
    let amazon = format!("https://s3.{region}.amazonaws.com");
    let endpoint = checked_url(config.endpoint.as_deref().unwrap_or(&amazon))?;
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    // Certificates for all buckets do not cover names with dots.
    let is_path = config.path_style.unwrap_or(config.endpoint.is_some() || bucket.contains('.'));
    Ok(if is_path { format!("{endpoint}/{bucket}") } else { format!("{scheme}://{bucket}.{rest}") })
}

fn region_of(headers: &HeaderMap) -> Option<String> {
    let region = headers.get("x-amz-bucket-region")?.to_str().ok()?;
    Some(region.to_owned())
}

/// A name from a listing, which the server encodes as in a URL.
fn decoded(name: &str) -> Vec<u8> {
    percent_decode_str(&name.replace('+', " ")).collect()
}

fn thing_of(object: &xml::Object) -> Thing {
    Thing {
        kind: ThingKind::File,
        size: object.size,
        modified: object.modified,
        tag: (!object.tag.is_empty()).then(|| object.tag.as_bytes().into()),
        ..implied()
    }
}

/// The CRC-64/NVME of data, as headers have it.
fn checksum(data: &[Bytes]) -> String {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    for piece in data {
        digest.update(piece);
    }
    base64::engine::general_purpose::STANDARD.encode(digest.finalize().to_be_bytes())
}

/// An error in an answer that began well.
fn check_late_error(body: &[u8]) -> Answer<()> {
    match xml::text_of(body, "Error/Code") {
        None => Ok(()),
        Some(code) => {
            Err(coded(MEANINGS, &code, &xml::text_of(body, "Error/Message").unwrap_or_default()))
        }
    }
}

/// Why a request failed, by its answer.
fn refused(status: StatusCode, _: &HeaderMap, body: &[u8]) -> Fault {
    match xml::text_of(body, "Error/Code") {
        Some(code) => {
            let message = xml::text_of(body, "Error/Message").unwrap_or_default();
            coded(MEANINGS, &code, &message)
        }
        // An answer to HEAD has no text that could say more.
        None => by_status(status),
    }
}

const MEANINGS: &[Meaning] = &[
    Meaning { codes: &["NoSuchBucket"], class: Class::Credentials, text: text::NO_BUCKET },
    Meaning { codes: &["NoSuchKey"], class: Class::Missing, text: text::NO_OBJECT },
    Meaning {
        codes: &["InvalidAccessKeyId"],
        class: Class::Credentials,
        text: "the access key is not known to the server; check AWS_ACCESS_KEY_ID or --aws-profile",
    },
    Meaning {
        codes: &["SignatureDoesNotMatch"],
        class: Class::Credentials,
        text: "the secret key is not that of the access key; check AWS_SECRET_ACCESS_KEY",
    },
    Meaning {
        codes: &["ExpiredToken", "TokenRefreshRequired", "InvalidToken"],
        class: Class::Credentials,
        text: text::EXPIRED,
    },
    Meaning { codes: &["RequestTimeTooSkewed"], class: Class::Credentials, text: text::CLOCK },
    Meaning {
        codes: &["AccessDenied", "AllAccessDisabled", "Forbidden"],
        class: Class::Denied,
        text: text::DENIED,
    },
    Meaning {
        codes: &["QuotaExceeded", "InsufficientStorage", "EntityTooLargeForQuota"],
        class: Class::Full,
        text: text::FULL,
    },
    Meaning {
        codes: &["PermanentRedirect", "AuthorizationHeaderMalformed"],
        class: Class::Credentials,
        text: "the bucket is in another region; name it with --region",
    },
    Meaning { codes: &["PreconditionFailed"], class: Class::Changed, text: text::OTHER_VERSION },
    Meaning {
        codes: &["BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"],
        class: Class::Busy,
        text: text::DAMAGED,
    },
    Meaning {
        codes: &["SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout"],
        class: Class::Busy,
        text: text::BUSY,
    },
    Meaning {
        codes: &["NotImplemented"],
        class: Class::Unsupported,
        text: "the server cannot do this",
    },
];

const CHECKSUM: &str = "x-amz-checksum-crc64nvme";

/// The longest object that can be copied with one request, in bytes.
const MAX_COPY_LEN: u64 = 5 << 30;
