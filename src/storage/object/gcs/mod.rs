//! Google Cloud Storage, as an endpoint, by its JSON API.
//!
//! Objects are whole or not there. A large one goes up as many temporary objects beside its key, at the
//! same time and each checked by the server, which then composes them, 32 at a time, without the data
//! passing through here again. Resumable uploads of this API take one part after the other; multipart
//! uploads of the XML API have to know all metadata when they begin.
//!
//! - `requests`: about objects, `answers`: what they mean; `parts`: temporary objects and their names.

mod answers;
mod parts;
mod requests;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;

use answers::{Object, parsed, refused};
use parts::{Piece, hash_of, part_name, part_number, upload_of};
use requests::{FIELDS, NOTHING, condition, with_json};

use super::fault::text;
use super::pages::Pages;
use super::store::{
    MAX_PAGE_LEN, Open, REQUESTS, Server, Whole, checked_url, id_of, in_query, listed, pages,
    prefix_of, properties, text as key_text, token, upload_id,
};
use super::{credentials, metadata};
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::message::Changes;
use crate::storage::http::client::{Call, Client, read_body};
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Kept, Key, Listed, Properties, Thing, ThingKind, Unfinished,
    all, implied, pieces,
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

/// The longest object, in bytes, however it was composed.
const MAX_SIZE: u64 = 5 << 40;

#[cfg(test)]
mod tests {
    use super::*;

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
