//! The requests to Google Cloud Storage.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::Inner;
use super::answers::{Object, Page, page_of, parsed};
use super::parts::{Piece, Sum, part_name};
use crate::storage::http::client::Call;
use crate::storage::object::fault::text;
use crate::storage::object::metadata;
use crate::storage::object::pages::Pages;
use crate::storage::object::store::{in_query, text as key_text};
use crate::storage::remote::{Answer, Class, Fault, Kept, Key, Thing, all, nonce};

impl Inner {
    /// Where an object is, for all but its data.
    pub fn url(&self, name: &str) -> String {
        format!("{}/storage/v1/b/{}/o/{}", self.base, self.config.bucket, in_query(name))
    }

    pub fn list_url(&self, prefix: &str, query: &str) -> String {
        let (base, bucket, prefix) = (&self.base, &self.config.bucket, in_query(prefix));
        let fields = format!("kind,nextPageToken,prefixes,items({FIELDS})");
        format!(
            "{base}/storage/v1/b/{bucket}/o?prefix={prefix}&fields={}{query}",
            in_query(&fields)
        )
    }

    pub async fn page(&self, prefix: &str, query: &str, next: Option<&str>) -> Answer<Page> {
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
    pub async fn insert(&self, name: &str, data: Vec<Bytes>, kept: &Kept) -> Answer<Piece> {
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

    pub async fn compose_of(&self, sources: &[Value], to: &str, kept: &Kept) -> Answer<Object> {
        let body = json!({ "sourceObjects": sources, "destination": self.resource(kept) });
        let url = format!("{}/compose?fields={}", self.url(to), in_query(FIELDS));
        let call = with_json(Call::new(Method::POST, url), &body);
        parsed(&self.server.body(&call).await?)
    }

    /// Composes as many objects as there are, by way of others if they are too many for one step.
    pub async fn compose_all(
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

    pub async fn remove(&self, name: &str) -> Answer<()> {
        self.server.maybe(&Call::new(Method::DELETE, self.url(name))).await.map(drop)
    }

    pub async fn remove_all(&self, names: &[String]) -> Vec<Answer<()>> {
        let removals: Vec<_> = names.iter().map(|name| self.remove(name)).collect();
        all(removals, self.properties.requests).await
    }

    /// All temporary objects of an upload.
    pub async fn temporary(&self, key: &Key, id: &str) -> Answer<Vec<Object>> {
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

/// What a query asks so that only the version that is meant answers.
pub fn condition(thing: &Thing) -> String {
    let tag = thing.tag.as_deref().map(String::from_utf8_lossy);
    tag.map(|tag| format!("ifGenerationMatch={}", in_query(&tag))).unwrap_or_default()
}

pub fn with_json(call: Call, body: &Value) -> Call {
    call.header("content-type", "application/json; charset=UTF-8")
        .body(vec![body.to_string().into()])
}

/// What of an object's description is wanted.
pub const FIELDS: &str = "name,generation,size,crc32c,timeCreated,metadata";

const CONTENT_TYPE: &str = "application/octet-stream";

/// What is kept beside temporary objects.
pub const NOTHING: Kept = Kept { mtime: None, mode: None, root: None };

/// How many objects can be composed with one request.
const MAX_COMPOSED: usize = 32;
