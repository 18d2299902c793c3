//! Telling the receiver what files amount to, without sending them (ENTRY-15).
//!
//! A few tasks hash as many files at a time; small files many in one go, the ranges of a large one
//! at the same time.

use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;

use super::Sender;
use crate::engine::plan::{SmallFile, lock};
use crate::engine::session::{SessionError, first_error};
use crate::protocol::chunk::{Digest, EntryId, Pack};
use crate::protocol::message::{Entry, Kind, Message};
use crate::protocol::tree::RootBuilder;
use crate::storage::{Source, StorageError};

impl<S: Source> Sender<S> {
    /// The receiver wants to know what a file amounts to.
    pub(super) fn hash(&self, id: EntryId) -> Result<(), SessionError> {
        let mut open = lock(&self.open);
        let known = open.get_mut(&id).ok_or_else(|| super::unknown(id))?;
        let is_file = matches!(known.entry.kind, Kind::File(_));
        if !is_file || known.is_placed || std::mem::replace(&mut known.is_hashing, true) {
            return Err(SessionError::violation(format!("{id} cannot be hashed (ENTRY-15)")));
        }
        let file = SmallFile { entry: Arc::clone(&known.entry), version: known.version };
        drop(open);
        let _ = self.to_hash.send(file);
        Ok(())
    }

    /// The receiver wants a hard link as what it is by itself (ENTRY-16).
    pub(super) fn announce_alone(&self, id: EntryId) -> Result<(), SessionError> {
        let mut open = lock(&self.open);
        let known = open.get_mut(&id).ok_or_else(|| super::unknown(id))?;
        if !is_link(&known.entry) || std::mem::replace(&mut known.is_hashing, true) {
            let text = format!("{id} is no hard link that could be announced anew (ENTRY-16)");
            return Err(SessionError::violation(text));
        }
        let link = SmallFile { entry: Arc::clone(&known.entry), version: known.version };
        drop(open);
        let _ = self.to_hash.send(link);
        Ok(())
    }

    async fn look_at_link(&self, link: &SmallFile) -> Result<(), SessionError> {
        let id = link.entry.id;
        let path = || self.source.path(&link.entry);
        let now = match self.source.look_again(Arc::clone(&link.entry)).await {
            Ok(now) => Entry { is_linked: true, ..now },
            Err(error) => {
                super::check_there(&error)?;
                return self.withdraw(id, error.to_failure());
            }
        };
        match &now.kind {
            Kind::File(file) if self.options.is_too_large(file.size) => {
                self.withdraw(id, super::too_large(&path()))
            }
            Kind::File(_) | Kind::Symlink { .. } | Kind::Special(_) => {
                self.announce_anew(now, link.version)
            }
            Kind::Unsendable(failure) => self.withdraw(id, failure.clone()),
            Kind::Directory | Kind::HardLink { .. } | Kind::Unselected => {
                self.withdraw(id, super::no_file(&path()))
            }
        }
    }

    /// Hashes what it is told to, and looks at hard links again, until the session ends.
    pub(super) async fn hash_all(
        self: Arc<Self>,
        files: flume::Receiver<SmallFile>,
    ) -> Result<(), SessionError> {
        let mut next: Option<SmallFile> = None;
        loop {
            let first = match next.take() {
                Some(first) => first,
                None => match files.recv_async().await {
                    Ok(first) => first,
                    Err(_) => return Ok(()),
                },
            };
            if is_link(&first.entry) {
                self.look_at_link(&first).await?;
                continue;
            }
            if !self.options.is_packed(first.entry.size()) {
                self.hash_large(&first).await?;
                continue;
            }
            let mut len = first.entry.size();
            let mut batch = vec![first];
            while batch.len() < MAX_BATCH_FILES && len < MAX_BATCH_LEN {
                let Ok(file) = files.try_recv() else { break };
                let fits = len + file.entry.size() <= MAX_BATCH_LEN;
                if !fits || is_link(&file.entry) || !self.options.is_packed(file.entry.size()) {
                    next = Some(file);
                    break;
                }
                len += file.entry.size();
                batch.push(file);
            }
            self.hash_small(batch, len).await?;
        }
    }

    async fn hash_small(&self, files: Vec<SmallFile>, len: u64) -> Result<(), SessionError> {
        let data = usize::try_from(len).map_err(SessionError::bug)?;
        let room = Pack::table_len(files.len()) + data;
        let buffer = self.pool.take(room).await.map_err(super::no_buffer)?;
        let wanted = files.iter().map(|file| (Arc::clone(&file.entry), file.version)).collect();
        let read = self.source.read_pack(0, wanted, buffer).await;
        for (id, root) in read.roots {
            if let Some(file) = files.iter().find(|file| file.entry.id == id) {
                self.tell_root(file, root)?;
            }
        }
        for (id, error) in read.failed {
            if let Some(file) = files.iter().find(|file| file.entry.id == id) {
                self.source_failed(&file.entry, file.version, &error).await?;
            }
        }
        Ok(())
    }

    async fn hash_large(self: &Arc<Self>, file: &SmallFile) -> Result<(), SessionError> {
        match self.root_of(file).await? {
            Ok(root) => self.tell_root(file, root),
            Err(error) => self.source_failed(&file.entry, file.version, &error).await.map(drop),
        }
    }

    async fn root_of(
        self: &Arc<Self>,
        file: &SmallFile,
    ) -> Result<Result<Digest, StorageError>, SessionError> {
        let (id, size) = (file.entry.id, file.entry.size());
        let chunk_size = self.options.chunk_size;
        let open = match self.source.open(Arc::clone(&file.entry)).await {
            Ok(open) => open,
            Err(error) => return Ok(Err(error)),
        };
        let tree = Arc::new(Mutex::new(RootBuilder::new(chunk_size.count(size))));
        let mut reading: JoinSet<Result<Result<(), StorageError>, SessionError>> = JoinSet::new();
        for index in 0..chunk_size.count(size) {
            let Some(range) = chunk_size.range(id, index, size) else { continue };
            if reading.len() >= MAX_RANGES
                && let Some(joined) = reading.join_next().await
                && let Err(error) = first_error(joined)?
            {
                return Ok(Err(error));
            }
            let (this, open, tree) = (Arc::clone(self), open.clone(), Arc::clone(&tree));
            let version = file.version;
            reading.spawn(async move {
                let read = this.source.read(open, range, version, &this.pool).await;
                Ok(read.map(|chunk| {
                    lock(&tree).insert(index, chunk.digest);
                    this.observer.progress.bytes_hashed.add(range.len().into());
                }))
            });
        }
        while let Some(joined) = reading.join_next().await {
            if let Err(error) = first_error(joined)? {
                return Ok(Err(error));
            }
        }
        if let Err(error) = self.source.confirm(open).await {
            return Ok(Err(error));
        }
        let root = lock(&tree).root();
        root.map(Ok).ok_or_else(|| SessionError::bug("a file was hashed and has no root"))
    }

    fn tell_root(&self, file: &SmallFile, root: Digest) -> Result<(), SessionError> {
        let (entry, version) = (file.entry.id, file.version);
        {
            let mut open = lock(&self.open);
            let Some(known) = open.get_mut(&entry).filter(|known| known.version == version) else {
                return Ok(());
            };
            known.hashed = Some(root);
        }
        self.say(&Message::Root { entry, version, root })
    }
}

fn is_link(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::HardLink { .. })
}

/// How many files are hashed at the same time.
pub(super) fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16)
}

/// How many ranges of one file are hashed at the same time.
const MAX_RANGES: usize = 4;

/// How many small files are hashed in one go, and how much data of them, in bytes: any pack's
/// buffer has room for it.
const MAX_BATCH_FILES: usize = 128;
const MAX_BATCH_LEN: u64 = 512 << 10;
