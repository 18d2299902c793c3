//! Objects that go up whole, in parts, or in stages, at stores whose parts belong to an upload.
//!
//! S3 and Azure do it alike. What they call it, and what they want to know when, is in [`PartStore`].

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::stages::Stages;
use super::store::{Whole, id_of, token};
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::storage::remote::{Answer, Kept, Key, pieces};
use crate::storage::{Left, Receipt, Token};

/// A store that takes objects in parts, in any order, and makes objects of others. Parts are counted
/// from 0.
pub trait PartStore {
    fn limits(&self) -> Limits;

    fn put_whole(
        &self,
        key: &Key,
        data: Vec<Bytes>,
        kept: &Kept,
    ) -> impl Future<Output = Answer<()>> + Send;

    /// Begins an upload and names it. What is kept beside the object is said here, and again when it is
    /// made of its parts; `None` of one that has nothing.
    fn begin_parts(
        &self,
        key: &Key,
        kept: Option<&Kept>,
    ) -> impl Future<Output = Answer<Arc<str>>> + Send;

    fn write_part(
        &self,
        key: &Key,
        id: &str,
        number: u64,
        data: Vec<Bytes>,
    ) -> impl Future<Output = Answer<Receipt>> + Send;

    /// Makes an object of the store a part, without its data passing through here.
    fn copy_part(
        &self,
        key: &Key,
        id: &str,
        number: u64,
        from: &Key,
    ) -> impl Future<Output = Answer<Receipt>> + Send;

    /// Makes an object of parts.
    fn end_parts(
        &self,
        key: &Key,
        id: &str,
        parts: Vec<(u64, Receipt)>,
        kept: Option<&Kept>,
    ) -> impl Future<Output = Answer<()>> + Send;

    /// The parts of an upload that are there, and what was said of each; `None` if nothing is known of
    /// the upload.
    fn parts_there(
        &self,
        key: &Key,
        id: &str,
    ) -> impl Future<Output = Answer<Option<HashMap<u64, String>>>> + Send;

    /// Removes what is there of an upload. What is not there is no error.
    fn abort_parts(&self, key: &Key, id: &str) -> impl Future<Output = Answer<()>> + Send;

    /// A page of the objects whose keys begin with a prefix; `next` is how the one before said to ask
    /// for it.
    fn objects(
        &self,
        prefix: &str,
        next: Option<&str>,
    ) -> impl Future<Output = Answer<Objects>> + Send;

    /// The keys of all uploads that begin with a prefix, and their names.
    fn begun(&self, prefix: &str) -> impl Future<Output = Answer<Vec<(Vec<u8>, String)>>> + Send;

    fn remove_all(&self, keys: Vec<Key>) -> impl Future<Output = Answer<()>> + Send;
}

/// The keys of objects and their lengths, and how to ask for the next page.
pub type Objects = (Vec<(Vec<u8>, u64)>, Option<String>);

/// What a store allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many parts an object may have.
    pub max_parts: u64,
    /// The longest part that is another object, in bytes.
    pub max_copy_len: u64,
    /// How many requests at a time.
    pub requests: usize,
}

impl Limits {
    /// The longest object that there can be, in bytes.
    pub fn max_size(self) -> u64 {
        self.max_parts.saturating_mul(self.max_copy_len)
    }
}

/// An object that is coming.
#[derive(Clone, Debug)]
pub struct Upload {
    key: Key,
    size: u64,
    shape: Shape,
}

/// How an object goes up.
#[derive(Clone, Debug)]
enum Shape {
    Whole(Whole),
    /// In parts, under an upload's identifier.
    Parts(Arc<str>),
    /// In more parts than an object may have.
    Stages(Arc<Stages>),
}

impl Upload {
    pub async fn begin<S: PartStore>(
        store: &S,
        key: &Key,
        size: u64,
        parts: u64,
        kept: &Kept,
    ) -> Answer<Self> {
        let limits = store.limits();
        let shape = if parts <= 1 {
            Shape::Whole(Whole::default())
        } else if parts <= limits.max_parts {
            Shape::Parts(store.begin_parts(key, Some(kept)).await?)
        } else {
            Shape::Stages(Arc::new(Stages::new(key, size, parts, limits)?))
        };
        Ok(Self { key: key.clone(), size, shape })
    }

    pub fn token(&self) -> Token {
        match &self.shape {
            Shape::Whole(_) => token(self.size, None),
            Shape::Parts(id) => token(self.size, Some(id)),
            Shape::Stages(stages) => token(self.size, Some(&stages.name())),
        }
    }

    /// Takes up what an earlier process began; and which chunks of those that it noted are lost.
    pub async fn resume<S: PartStore>(
        store: &S,
        key: &Key,
        size: u64,
        left: &Left,
    ) -> Answer<Option<(Self, Vec<u64>)>> {
        let id = id_of(&left.token).filter(|(of, _)| *of == size);
        let Some((_, id)) = id else { return Ok(None) };
        let found = if Stages::is_name(&id) {
            let found = Stages::resume(store, key, size, &id, &left.receipts).await?;
            found.map(|(stages, lost)| (Shape::Stages(Arc::new(stages)), lost))
        } else {
            let there = store.parts_there(key, &id).await?;
            let is_lost = |there: &HashMap<u64, String>, number: &u64, receipt: &Receipt| {
                there.get(number).is_none_or(|tag| tag.as_bytes() != receipt.as_bytes())
            };
            there.map(|there| {
                let receipts = left.receipts.iter();
                let lost = receipts.filter(|(number, receipt)| is_lost(&there, number, receipt));
                let lost = lost.map(|(number, _)| *number).collect();
                (Shape::Parts(id.into()), lost)
            })
        };
        Ok(found.map(|(shape, lost)| (Self { key: key.clone(), size, shape }, lost)))
    }

    pub async fn write<S: PartStore>(
        &self,
        store: &S,
        number: u64,
        range: ByteRange,
        data: ChunkData,
    ) -> Answer<Receipt> {
        let data = pieces(range, &data);
        match &self.shape {
            Shape::Whole(whole) => {
                whole.set(data);
                Ok(Receipt::default())
            }
            Shape::Parts(id) => store.write_part(&self.key, id, number, data).await,
            Shape::Stages(stages) => stages.write(store, number, data).await,
        }
    }

    pub async fn finish<S: PartStore>(
        &self,
        store: &S,
        key: &Key,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        match &self.shape {
            Shape::Whole(whole) => store.put_whole(key, whole.get(), kept).await,
            Shape::Parts(id) => store.end_parts(key, id, receipts, Some(kept)).await,
            Shape::Stages(stages) => stages.finish(store, receipts, kept).await,
        }
    }

    /// Removes what is there of an upload that will not be finished.
    pub async fn abandon<S: PartStore>(store: &S, key: &Key, token: &Token) -> Answer<()> {
        let Some((_, id)) = id_of(token) else { return Ok(()) };
        if Stages::is_name(&id) {
            return Stages::abandon(store, key, &id).await;
        }
        store.abort_parts(key, &id).await
    }
}
