//! Where the sink reaches the source by itself: files are copied without passing through here.
//!
//! What has been copied of a large file is journaled like chunks, without values. The sender only
//! hears how each file ended.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::group::Claimed;
use super::open::{Incomplete, State};
use super::{Receiver, workers};
use crate::engine::journal::UNHASHED;
use crate::engine::plan::lock;
use crate::engine::session::SessionError;
use crate::protocol::message::{Changes, Entry};
use crate::storage::{Receipt, Sink, StorageError};

/// A small file that is to be copied as a whole.
pub type SmallCopy = Claimed;

/// A large file that is being copied range by range, by one task or by several.
pub struct RangeCopy<F> {
    file: Arc<Incomplete<F>>,
    /// From which chunk on nobody copies it yet.
    cursor: Mutex<u64>,
    /// How much of it is there, in bytes.
    bytes: AtomicU64,
    /// The sink has copied all of it at once.
    is_whole: AtomicBool,
    /// Other tasks have been asked to help.
    has_help: AtomicBool,
    tasks: AtomicUsize,
}

impl<K: Sink> Receiver<K> {
    /// Has a file copied that is wanted.
    pub async fn copy(
        &self,
        entry: &Arc<Entry>,
        version: u16,
        changes: Changes,
    ) -> Result<(), SessionError> {
        if self.options.is_packed(entry.size()) {
            if self.is_now(entry.id, version, State::Copying(None)).await? {
                let entry = Arc::clone(entry);
                self.to_copy.push(SmallCopy { entry, version, changes, root: None });
            }
            return Ok(());
        }
        let (file, kept) = self.incomplete(entry, version, changes).await?;
        if self.is_now(entry.id, version, State::Copying(Some(Arc::clone(&file)))).await? {
            let chunk_size = self.options.chunk_size;
            let kept = kept.unwrap_or_default().into_iter();
            let kept =
                kept.filter_map(|(index, _)| chunk_size.range(entry.id, index, entry.size()));
            self.to_copy_ranges.push(Arc::new(RangeCopy {
                file,
                cursor: Mutex::new(0),
                bytes: AtomicU64::new(kept.map(|range| u64::from(range.len())).sum()),
                is_whole: AtomicBool::new(false),
                has_help: AtomicBool::new(false),
                tasks: AtomicUsize::new(0),
            }));
        }
        Ok(())
    }

    /// Copies small files, many at a time, until the session ends.
    pub async fn copy_small_files(self: Arc<Self>) -> Result<(), SessionError> {
        let max_files = MAX_FILES.min(self.part_len());
        loop {
            let first = self.to_copy.next().await;
            let mut bytes = first.entry.size();
            let mut files = vec![first];
            while files.len() < max_files
                && bytes < MAX_BYTES
                && let Some(next) = self.to_copy.try_next()
            {
                bytes += next.entry.size();
                files.push(next);
            }
            let permit = self.may_prepare(files.len()).await?;
            let entries = files.iter().map(|file| Arc::clone(&file.entry)).collect();
            let prepared = self.sink.copy_files(entries).await;
            self.take_prepared(files, prepared, permit).await?;
        }
    }

    /// Copies ranges of large files, until the session ends.
    pub async fn copy_large_files(self: Arc<Self>) -> Result<(), SessionError> {
        loop {
            let copy = self.to_copy_ranges.next().await;
            copy.tasks.fetch_add(1, Ordering::AcqRel);
            let copied = self.copy_ranges(&copy).await?;
            // The last one to leave puts it in its place, so that nobody writes to it any more.
            let is_last = copy.tasks.fetch_sub(1, Ordering::AcqRel) == 1;
            match copied {
                Err(error) => self.fail(&copy.file, &error).await?,
                Ok(()) if is_last && copy.is_done() && self.is_mine_to_commit(&copy.file) => {
                    self.confirm_and_put(&copy.file).await?;
                }
                Ok(()) => {}
            }
        }
    }

    /// Copies ranges of a file until there are no more.
    async fn copy_ranges(
        &self,
        copy: &Arc<RangeCopy<K::File>>,
    ) -> Result<Result<(), StorageError>, SessionError> {
        let entry = &copy.file.entry;
        while let Some(index) = copy.next() {
            let Some(range) = self.options.chunk_size.range(entry.id, index, entry.size()) else {
                break;
            };
            let copied = async {
                let temporary = self.temporary(&copy.file).await?;
                let is_whole = self.sink.copy_range(temporary.file, range).await?;
                Ok((temporary.number, is_whole))
            };
            let (number, is_whole) = match copied.await {
                Ok(copied) => copied,
                Err(error) => return Ok(Err(error)),
            };
            if is_whole {
                let before = copy.bytes.swap(entry.size(), Ordering::AcqRel);
                self.observer.progress.bytes_verified.add(entry.size().saturating_sub(before));
                copy.is_whole.store(true, Ordering::Release);
                break;
            }
            self.record(|journal| journal.chunk(number, index, UNHASHED, &Receipt::default()))?;
            copy.bytes.fetch_add(range.len().into(), Ordering::AcqRel);
            self.observer.progress.bytes_verified.add(range.len().into());
            let missing = {
                let mut tree = lock(&copy.file.tree);
                tree.insert(index, UNHASHED);
                tree.missing()
            };
            // Not before: where one call copies all of it, nobody else may write to it.
            if !copy.has_help.swap(true, Ordering::AcqRel) {
                for _ in 1..missing.min(workers() as u64) {
                    self.to_copy_ranges.push(Arc::clone(copy));
                }
            }
        }
        Ok(Ok(()))
    }

    async fn confirm_and_put(&self, file: &Arc<Incomplete<K::File>>) -> Result<(), SessionError> {
        let confirmed = async {
            let temporary = self.temporary(file).await?;
            self.sink.confirm_copy(temporary.file).await
        };
        match confirmed.await {
            Ok(()) => self.put_in_place(file, None).await,
            Err(error) => self.fail(file, &error).await,
        }
    }
}

impl<F> RangeCopy<F> {
    /// Takes the next range that nobody has copied or is copying.
    fn next(&self) -> Option<u64> {
        let is_over =
            self.file.is_abandoned.load(Ordering::Acquire) || self.is_whole.load(Ordering::Acquire);
        let mut cursor = lock(&self.cursor);
        let index = lock(&self.file.tree).next_missing(*cursor).filter(|_| !is_over)?;
        *cursor = index + 1;
        Some(index)
    }

    fn is_done(&self) -> bool {
        self.is_whole.load(Ordering::Acquire) || lock(&self.file.tree).missing() == 0
    }
}

/// How many small files are copied in one go, and about how much data of them, in bytes.
const MAX_FILES: usize = 256;
const MAX_BYTES: u64 = 8 << 20;
