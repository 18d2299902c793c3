//! Files that may be equal: this end hashes what it has, and the sender says what it has (ENTRY-15).
//!
//! A few tasks hash ranges, of one large file or of many. They read into buffers of their own, so
//! that data which comes at the same time never waits for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;

use super::open::{Comparison, Incoming, Ours, State};
use super::place::ToPlace;
use super::{Receiver, workers};
use crate::engine::plan::lock;
use crate::engine::session::SessionError;
use crate::protocol::chunk::{Digest, EntryId};
use crate::protocol::message::{Entry, Verdict};
use crate::protocol::tree::RootBuilder;
use crate::storage::{Existing, Sink, StorageError};

/// A file at the destination of which the ranges are being hashed. It is closed when the last task
/// lets go of this.
pub struct Hashing<F> {
    entry: Arc<Entry>,
    version: u16,
    file: OnceCell<F>,
    /// The chunk that is hashed next.
    next: AtomicU64,
    tree: Mutex<RootBuilder>,
}

impl<K: Sink> Receiver<K> {
    /// Begins to hash a file, and asks the sender to do so too.
    pub fn compare(&self, entry: &Arc<Entry>, version: u16, existing: Existing) -> Option<Verdict> {
        let chunks = self.options.chunk_size.count(entry.size());
        let tree = RootBuilder::new(chunks);
        let ours = match existing {
            Existing::Unread => tree.root().map_or(Ours::Coming, Ours::Root),
            Existing::Root(root) => Ours::Root(root),
            Existing::Replaced => Ours::Unreadable,
        };
        lock(&self.open).at(entry.id, version)?.state =
            State::Comparing(Comparison { ours, theirs: None });
        if existing != Existing::Unread {
            return Some(Verdict::Hash);
        }
        let hashing = Arc::new(Hashing {
            entry: Arc::clone(entry),
            version,
            file: OnceCell::new(),
            next: AtomicU64::new(0),
            tree: Mutex::new(tree),
        });
        for _ in 0..chunks.min(workers() as u64) {
            self.to_hash.push(Arc::clone(&hashing));
        }
        Some(Verdict::Hash)
    }

    /// Hashes what it is told to, until the session ends.
    pub async fn hash_files(self: Arc<Self>) -> Result<(), SessionError> {
        loop {
            let hashing = self.to_hash.next().await;
            let (id, version) = (hashing.entry.id, hashing.version);
            match self.hash_ranges(&hashing).await {
                Ok(Some(root)) => self.hashed(id, version, Ours::Root(root)),
                Ok(None) => {}
                Err(error) => {
                    // What is replaced need not be readable; what is only compared must be.
                    if self.options.dry_run && self.is_coming(id, version) {
                        self.complain(error.to_complaint())?;
                    }
                    self.hashed(id, version, Ours::Unreadable);
                }
            }
        }
    }

    /// Hashes ranges of a file until there are no more. Whoever adds the last one gets the root.
    async fn hash_ranges(
        &self,
        hashing: &Hashing<K::File>,
    ) -> Result<Option<Digest>, StorageError> {
        let entry = &hashing.entry;
        loop {
            let index = hashing.next.fetch_add(1, Ordering::Relaxed);
            let range = self.options.chunk_size.range(entry.id, index, entry.size());
            let Some(range) = range.filter(|_| self.is_coming(entry.id, hashing.version)) else {
                return Ok(None);
            };
            let open = || self.sink.open_existing(Arc::clone(entry));
            let file = hashing.file.get_or_try_init(open).await?.clone();
            let value = self.sink.digest(file, range, &self.reading_pool).await?;
            self.observer.progress.bytes_hashed.add(range.len().into());
            let mut tree = lock(&hashing.tree);
            tree.insert(index, value);
            if let Some(root) = tree.root() {
                return Ok(Some(root));
            }
        }
    }

    /// Whether it is still of interest what a file amounts to.
    fn is_coming(&self, id: EntryId, version: u16) -> bool {
        let mut open = lock(&self.open);
        open.at(id, version).is_some_and(|incoming| {
            matches!(incoming.state, State::Comparing(Comparison { ours: Ours::Coming, .. }))
        })
    }

    fn hashed(&self, id: EntryId, version: u16, found: Ours) {
        let mut open = lock(&self.open);
        let Some(incoming) = open.at(id, version) else { return };
        if let State::Comparing(Comparison { ours: ours @ Ours::Coming, .. }) = &mut incoming.state
        {
            *ours = found;
            self.go_on_if_compared(incoming);
        }
    }

    /// The sender has hashed what it has.
    pub fn root_told(&self, id: EntryId, version: u16, root: Digest) -> Result<(), SessionError> {
        let mut open = lock(&self.open);
        let Some(incoming) = open.get_mut(id) else { return self.check_announced(id) };
        match &mut incoming.state {
            _ if version < incoming.version => Ok(()),
            State::Comparing(Comparison { theirs: theirs @ None, .. })
                if version == incoming.version =>
            {
                *theirs = Some(root);
                self.go_on_if_compared(incoming);
                Ok(())
            }
            State::Alone
            | State::Comparing(_)
            | State::Placing
            | State::Packed(_)
            | State::Chunked(_)
            | State::Copying(_)
            | State::Grouped
            | State::Committing(_) => {
                let text = format!("nobody asked what {id} amounts to (ENTRY-15)");
                Err(SessionError::violation(text))
            }
        }
    }

    /// Lets the sink decide about a file once both ends know what they have.
    fn go_on_if_compared(&self, incoming: &mut Incoming<K::File>) {
        let State::Comparing(Comparison { ours, theirs: Some(theirs) }) = incoming.state else {
            return;
        };
        let is_equal = match ours {
            Ours::Coming => return,
            Ours::Unreadable => false,
            Ours::Root(root) => root == theirs,
        };
        incoming.compared = Some(theirs);
        incoming.state = State::Placing;
        let (entry, version) = (Arc::clone(&incoming.entry), incoming.version);
        self.to_place.push(ToPlace::Compared { entry, version, is_equal });
    }
}
