//! What speaks S3, as an endpoint.
//!
//! Objects are whole or not there: a large one goes up in parts, under an upload's identifier, and gets
//! its key when all parts are there. What is kept beside it has to be known when the upload begins.
//!
//! - `requests`: about whole objects, `multipart`: about uploads in parts; `answers`: what they mean.

mod answers;
mod multipart;
mod requests;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method};

use answers::{refused, region_of, thing_of};
use requests::{MAX_COPY_LEN, PART_OF_COPY, Version, with_found};

use super::fault::text;
use super::pages::Pages;
use super::store::{
    MAX_PAGE_LEN, Open, REQUESTS, Server, checked_url, if_tag, listed, pages, prefix_of,
    properties, with_kept,
};
use super::upload::{Limits, PartStore as _, Upload};
use super::{credentials, metadata, stages, xml};
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
struct Inner {
    server: Server,
    config: S3Config,
    /// What the URLs of the bucket's objects begin with, without a slash at its end.
    base: String,
    limits: Limits,
    properties: Properties,
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
            let signer = credentials::amazon(client.plain(), region, &config)?;
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
