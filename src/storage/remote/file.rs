//! Files of a sink at an endpoint: coming, there, or copied by the endpoint itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;

use super::sink::Inner;
use super::{Class, Endpoint, Fault, Key};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{ByteRange, Digest, RangeHasher};
use crate::protocol::message::Entry;
use crate::storage::{Operation, Receipt, StorageError};

/// A file of a [`RemoteSink`](super::RemoteSink): one that is coming, or one that is there and is compared.
pub struct RemoteFile<E: Endpoint> {
    pub(super) inner: Arc<File<E>>,
}

impl<E: Endpoint> fmt::Debug for RemoteFile<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteFile").field("key", &self.inner.key).finish_non_exhaustive()
    }
}

impl<E: Endpoint> Clone for RemoteFile<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

pub(super) struct File<E: Endpoint> {
    pub key: Key,
    pub entry: Arc<Entry>,
    pub data: Data<E>,
    receipts: Mutex<BTreeMap<u64, Receipt>>,
}

pub(super) enum Data<E: Endpoint> {
    Coming(E::Upload),
    There(E::Open),
    /// It is copied at the end, with all that it has.
    Copied,
}

impl<E: Endpoint> RemoteFile<E> {
    pub(super) fn new(key: Key, entry: Arc<Entry>, data: Data<E>) -> Self {
        Self { inner: Arc::new(File { key, entry, data, receipts: Mutex::default() }) }
    }

    /// By the numbers of their chunks.
    pub fn receipts(&self) -> MutexGuard<'_, BTreeMap<u64, Receipt>> {
        self.inner.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing can be written to what is there already.
pub fn not_coming<E: Endpoint>(file: &RemoteFile<E>) -> StorageError {
    StorageError::Changed { path: file.inner.key.as_bytes().to_vec() }
}

impl<E: Endpoint> Inner<E> {
    /// Reads a range of a file that is there, or of which a part is.
    pub(super) async fn digest(
        &self,
        file: &File<E>,
        range: ByteRange,
        pool: &Pool,
    ) -> Result<Digest, StorageError> {
        let mut hasher = RangeHasher::new(range);
        let piece_len = pool.buffer_len().min(range.len() as usize);
        let buffer = pool.take(piece_len).await.map_err(|error| {
            let path = self.path(&file.entry);
            StorageError::io(Operation::Read, &path)(std::io::Error::other(error))
        });
        let mut buffer = buffer?;
        let mut done = 0;
        while done < range.len() as usize {
            let len = piece_len.min(range.len() as usize - done);
            let Some(piece) = buffer.get_mut(..len) else { break };
            let at = range.offset() + done as u64;
            let read = match &file.data {
                Data::Coming(upload) => self.endpoint.reread(upload, at, piece).await,
                Data::There(open) => self.endpoint.read(open, at, piece).await,
                Data::Copied => Err(Fault::new(Class::Unsupported, "nothing of it is there yet")),
            };
            read.map_err(self.error(Operation::Read, &file.entry))?;
            hasher.update(piece);
            done += len;
        }
        let short = |_| StorageError::Changed { path: self.path(&file.entry) };
        hasher.finish().map_err(short)
    }

    /// Which ranges of a file that is coming still hold what was written to them. What the endpoint does
    /// not tell is read back.
    pub(super) async fn holds(
        &self,
        file: &RemoteFile<E>,
        ranges: Vec<(ByteRange, Digest)>,
        pool: &Pool,
    ) -> Vec<bool> {
        let Data::Coming(upload) = &file.inner.data else { return vec![false; ranges.len()] };
        let parts: Vec<(ByteRange, Receipt)> = {
            let receipts = file.receipts();
            let receipt =
                |range: &ByteRange| receipts.get(&(range.offset() / self.chunk_size.bytes()));
            let parts = ranges.iter().map(|(range, _)| (*range, receipt(range).cloned()));
            parts.map(|(range, receipt)| (range, receipt.unwrap_or_default())).collect()
        };
        let told = self.endpoint.holds(upload, self.chunk_size, &parts).await;
        let told = told.into_iter().chain(std::iter::repeat(None));
        let looks = ranges.into_iter().zip(told).map(async |((range, value), told)| match told {
            Some(told) => told,
            None => self.digest(&file.inner, range, pool).await.is_ok_and(|it| it == value),
        });
        futures_util::stream::iter(looks).buffered(READ_BACK).collect().await
    }

    /// Has the endpoint copy a whole file.
    pub async fn copy(&self, key: &Key, entry: &Arc<Entry>) -> Result<(), StorageError> {
        let Some(near) = self.near.get() else { return Err(self.no_copy(entry)) };
        let (from, thing) = near.inner.find(entry).await?;
        let kept = self.kept(entry, thing.root);
        self.clear_room(key, entry).await?;
        self.touch(entry.parent);
        let endpoint = &self.endpoint;
        let copied = endpoint.copy(near.endpoint(), &from, &thing, key, &kept).await;
        copied.map_err(|fault| match fault.class {
            Class::Changed => StorageError::Changed { path: self.path(entry) },
            Class::Denied | Class::Unsupported => {
                let text = format!(
                    "the server does not copy it: {fault}; with --verify it goes through this machine"
                );
                self.error(Operation::Write, entry)(Fault::new(fault.class, text))
            }
            _ => self.error(Operation::Write, entry)(fault),
        })?;
        self.forget(key);
        Ok(())
    }

    fn no_copy(&self, entry: &Entry) -> StorageError {
        let fault = Fault::new(Class::Unsupported, "it cannot be copied there");
        self.error(Operation::Write, entry)(fault)
    }
}

/// How many ranges are read back at a time; the buffers bound it too.
const READ_BACK: usize = 4;
