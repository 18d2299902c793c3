//! What speaks S3, as an endpoint.
//!
//! Objects are whole or not there: a large one goes up in parts, under an upload's identifier, and gets
//! its key when all parts are there. What is kept beside it has to be known when the upload begins.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use super::credentials;
use super::fault::{Meaning, by_status, coded, text};
use super::metadata;
use super::pages::Pages;
use super::stages;
use super::store::{
    MAX_PAGE_LEN, Open, REQUESTS, Server, checked_url, if_tag, in_path, in_query, listed, pages,
    prefix_of, properties, token, with_kept,
};
use super::upload::{Limits, PartStore as _, Upload};
use super::xml;
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::message::Changes;
use crate::storage::http::client::{Call, Client, read_body};
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Keeps, KeepsRoot, Kept, Key, Listed, Parts, Properties, Thing,
    ThingKind, Unfinished, all, implied, temporary_files,
};
use crate::storage::{Left, Receipt, Token};

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
    /// How many parts an object may have; 10,000 if `None`, as at Amazon's.
    pub max_parts: Option<u64>,
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
pub(super) struct Inner {
    pub server: Server,
    pub config: S3Config,
    /// What the URLs of the bucket's objects begin with, without a slash at its end.
    pub base: String,
    pub limits: Limits,
    pub properties: Properties,
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
        let max_parts = config.max_parts.unwrap_or(10_000);
        let limits = Limits { max_parts, max_copy_len: MAX_COPY_LEN, requests };
        let common = properties("s3", requests, &base);
        let properties = Properties {
            // Metadata is said when an upload begins.
            keeps: Keeps { roots: KeepsRoot::FromTheBeginning, ..common.keeps },
            max_size: limits.max_size(),
            parts: Parts { min_len: 5 << 20, max_count: max_parts, ..common.parts },
            lists_all: false,
            ..common
        };
        let server = Server { client, refused };
        Ok(Self { inner: Arc::new(Inner { server, config, base, limits, properties }) })
    }
}

impl Inner {
    pub fn url(&self, key: &Key) -> String {
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

    pub async fn page(&self, prefix: &str, query: &str, next: Option<&str>) -> Answer<xml::Page> {
        let prefix = in_query(prefix);
        let more = next.map(|next| format!("&continuation-token={}", in_query(next)));
        let more = more.unwrap_or_default();
        let url =
            format!("{}/?list-type=2&encoding-type=url&prefix={prefix}{query}{more}", self.base);
        xml::page(&self.server.body(&Call::new(Method::GET, url)).await?)
    }

    pub fn with_kept(&self, call: Call, kept: &Kept) -> Call {
        let call = with_kept(call, &metadata::S3, kept);
        match &self.config.storage_class {
            Some(class) => call.header("x-amz-storage-class", class),
            None => call,
        }
    }

    /// What there is of an upload.
    async fn left(&self, upload: &xml::Upload) -> Answer<Option<Unfinished>> {
        let Ok(key) = Key::new(&upload.key) else { return Ok(None) };
        let parts = self.parts(&key, &upload.id).await?;
        Ok(parts.map(|parts| Unfinished {
            key,
            token: Some(token(0, Some(&upload.id))),
            size: parts.iter().map(|part| part.size).sum(),
            since: parts.iter().map(|part| part.modified).max().flatten().max(upload.begun),
        }))
    }

    /// Copies an object onto itself or elsewhere, with the metadata that a request to there has.
    async fn copy_object(&self, from: Version<'_>, call: Call) -> Answer<()> {
        if from.thing.size > MAX_COPY_LEN {
            let text = "objects of more than 5 GiB cannot be copied at once";
            return Err(Fault::new(Class::Unsupported, text));
        }
        let call = from.source_of(call.header("x-amz-metadata-directive", "REPLACE"));
        let body = self.server.body(&call).await?;
        check_result(&body, "CopyObjectResult")
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
        let page = self.inner.page(&prefix_of(key)?, "&max-keys=1", None).await?;
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
            let page = self.inner.page(&prefix, delimiter, next.as_deref()).await?;
            let objects = page.objects.iter().map(|object| (&object.key, thing_of(object)));
            let prefixes = page.prefixes.iter().map(|prefix| (prefix, implied()));
            let group = objects.chain(prefixes);
            let group = group.filter_map(|(name, thing)| listed(&top, name, thing));
            Ok((group.collect(), page.next))
        };
        pages(found, page).await
    }

    async fn open(&self, key: &Key, thing: &Thing) -> Answer<Open> {
        let call = |method| if_tag(Call::new(method, self.inner.url(key)), "if-match", thing);
        Ok(Open::new(call(Method::GET), call(Method::HEAD), thing, "etag"))
    }

    async fn read(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        self.inner.server.read(file, offset, into).await
    }

    async fn confirm(&self, file: &Open) -> Answer<bool> {
        self.inner.server.confirm(file).await
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
        let (prefix, mut pages) = (prefix_of(directory)?, Pages::default());
        let mut all_left = Vec::new();
        while !pages.is_over() {
            let uploads = self.inner.uploads(&prefix, &mut pages).await?;
            // A server may not care what was asked for.
            let uploads = uploads.iter().filter(|it| it.key.starts_with(prefix.as_bytes()));
            let looks = uploads.map(|upload| self.inner.left(upload)).collect();
            let left = all(looks, self.inner.properties.requests).await;
            let left: Vec<Option<Unfinished>> = left.into_iter().collect::<Answer<_>>()?;
            all_left.extend(left.into_iter().flatten());
        }
        // Of a file of very many parts, some may be whole objects already.
        let (sender, objects) = flume::unbounded();
        temporary_files(self, directory, sender).await?;
        all_left.extend(objects.drain().flatten());
        stages::share_times(&mut all_left);
        let _ = found.send_async(all_left).await;
        Ok(())
    }

    async fn set(&self, key: &Key, thing: &Thing, kept: &Kept, _: Changes) -> Answer<()> {
        let call = Call::new(Method::HEAD, self.inner.url(key));
        let found = self.inner.server.maybe(&call).await?;
        let found = found.ok_or_else(|| Fault::new(Class::Missing, text::NO_OBJECT))?;
        let from = Version { bucket: &self.inner.config.bucket, key, thing };
        let call = Call::new(Method::PUT, self.inner.url(key));
        // What is not named here would be gone.
        let call = with_kept(with_found(call, found.headers()), &metadata::S3, kept);
        self.inner.copy_object(from, call).await
    }

    async fn remove(&self, things: Vec<(Key, ThingKind)>) -> Vec<Answer<()>> {
        let groups: Vec<_> = things
            .chunks(1000)
            .map(async |group| {
                let keys: Vec<&Key> = group.iter().map(|(key, _)| key).collect();
                self.inner.remove_group(&keys).await
            })
            .collect();
        all(groups, self.inner.properties.requests).await.into_iter().flatten().collect()
    }

    fn copies_from(&self, source: &Self) -> bool {
        let bucket = source.inner.config.bucket.clone();
        S3Config { bucket, ..self.inner.config.clone() } == source.inner.config
    }

    async fn copy(
        &self,
        source: &Self,
        from: &Key,
        thing: &Thing,
        to: &Key,
        kept: &Kept,
    ) -> Answer<()> {
        let from = Version { bucket: &source.inner.config.bucket, key: from, thing };
        if thing.size <= PART_OF_COPY {
            let call = Call::new(Method::PUT, self.inner.url(to));
            return self.inner.copy_object(from, self.inner.with_kept(call, kept)).await;
        }
        let id = self.inner.begin_parts(to, Some(kept)).await?;
        let copied = self.inner.copy_in_parts(from, to, &id).await;
        if copied.is_err() {
            let _ = self.inner.abort_parts(to, &id).await;
        }
        copied
    }
}

impl Inner {
    /// Removes up to 1,000 objects with one request.
    pub async fn remove_group(&self, keys: &[&Key]) -> Vec<Answer<()>> {
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
        let call = Call::new(Method::POST, format!("{}/?delete", self.base))
            .header(CHECKSUM, &checksum)
            .header("content-type", "application/xml")
            .body(body);
        let answer = async {
            let body = self.server.body(&call).await?;
            check_late_error(&body)?;
            xml::not_removed(&body)
        };
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

/// An object as it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version<'a> {
    pub bucket: &'a str,
    pub key: &'a Key,
    pub thing: &'a Thing,
}

impl Version<'_> {
    /// Makes it the source of a copy, as long as it is still this version.
    pub fn source_of(self, call: Call) -> Call {
        let source = format!("/{}/{}", self.bucket, in_path(self.key));
        let call = call.header("x-amz-copy-source", &source);
        if_tag(call, "x-amz-copy-source-if-match", self.thing)
    }
}

/// A request with what an answer says of an object, so that it stays so.
fn with_found(mut call: Call, found: &HeaderMap) -> Call {
    for (name, value) in found {
        let is_kept = DESCRIBED_BY.contains(&name.as_str())
            || name.as_str().starts_with(metadata::S3.header_prefix);
        if let Some(value) = value.to_str().ok().filter(|_| is_kept) {
            call = call.header(name.as_str(), value);
        }
    }
    call
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
pub(super) fn checksum(data: &[Bytes]) -> String {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    for piece in data {
        digest.update(piece);
    }
    base64::engine::general_purpose::STANDARD.encode(digest.finalize().to_be_bytes())
}

/// An error in an answer that began well.
pub(super) fn check_late_error(body: &[u8]) -> Answer<()> {
    match xml::text_of(body, "Error/Code") {
        None => Ok(()),
        Some(code) => {
            Err(coded(MEANINGS, &code, &xml::text_of(body, "Error/Message").unwrap_or_default()))
        }
    }
}

/// Whether an answer says that an object was made: a server may say yes first and no at the end.
pub(super) fn check_result(body: &[u8], root: &str) -> Answer<()> {
    check_late_error(body)?;
    match xml::text_of(body, &format!("{root}/ETag")) {
        Some(tag) if !tag.is_empty() => Ok(()),
        _ => {
            let text = "the server does not say that the object is there";
            Err(Fault::new(Class::Violation, text))
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
    Meaning {
        codes: &["PreconditionFailed", "InvalidRange"],
        class: Class::Changed,
        text: text::OTHER_VERSION,
    },
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

/// What is said of an object beside metadata of users' own.
const DESCRIBED_BY: &[&str] = &[
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
    "x-amz-storage-class",
    "x-amz-website-redirect-location",
];

pub(super) const CHECKSUM: &str = "x-amz-checksum-crc64nvme";

/// What is larger is copied in parts, many at a time, of at least this length, in bytes.
pub(super) const PART_OF_COPY: u64 = 256 << 20;

/// The longest object that can be copied with one request, in bytes.
pub(super) const MAX_COPY_LEN: u64 = 5 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_result_says_that_an_object_is_there() {
        let check = |body: &str| check_result(body.as_bytes(), "CopyObjectResult");
        assert_eq!(check("<CopyObjectResult><ETag>\"x\"</ETag></CopyObjectResult>"), Ok(()));
        for body in
            ["", "<CopyObjectResult/>", "<x><ETag>x</ETag></x>", "<CopyObjectResult><ETag/>"]
        {
            assert_eq!(check(body).unwrap_err().class, Class::Violation, "{body}");
        }
        let error = "<Error><Code>InternalError</Code></Error>";
        assert_eq!(check(error).unwrap_err().class, Class::Busy);
    }

    #[test]
    fn what_others_said_of_an_object_stays() {
        let names = ["content-type", "x-amz-storage-class", "x-amz-meta-other", "etag", "date"];
        let found = names.iter().map(|name| (name.parse().unwrap(), "x".parse().unwrap()));
        let found: HeaderMap = found.collect();
        let call = Call::new(Method::PUT, "http://h/".to_owned());
        let kept = with_found(call, &found).headers;
        let is_kept = names.map(|name| kept.contains_key(name));
        assert_eq!(is_kept, [true, true, true, false, false]);
    }
}
