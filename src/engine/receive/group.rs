//! Small files get their names in groups, so that one wait for the disk serves many of them.
//!
//! One group gathers while the one before is synced and committed. It is gathered no longer than it
//! takes until it is large enough, until [`PATIENCE`] is over, or until nothing else is under way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{MAX_PREPARED, Receiver, answers};
use crate::engine::plan::lock;
use crate::engine::session::{SessionError, first_error};
use crate::protocol::chunk::{Digest, EntryId};
use crate::protocol::message::{Changes, Durability, Entry, Outcome};
use crate::storage::{Sink, StorageError};

/// A small file that is being prepared, and that nobody else prepares.
#[derive(Debug)]
pub struct Claimed {
    pub entry: Arc<Entry>,
    pub version: u16,
    /// What is different about it at the destination.
    pub changes: Changes,
    /// What its data amounts to, if that came from the sender.
    pub root: Option<Digest>,
}

/// Small files that are written and have no final names yet.
pub struct Batch<P> {
    files: Vec<(Claimed, P)>,
    /// The right to have so many. It ends when they are committed or dropped.
    permit: OwnedSemaphorePermit,
}

struct Group<P> {
    batches: Vec<Batch<P>>,
    files: usize,
    bytes: u64,
    /// When its first file came.
    since: Instant,
}

impl<P> Group<P> {
    fn new() -> Self {
        Self { batches: Vec::new(), files: 0, bytes: 0, since: Instant::now() }
    }

    fn add(&mut self, batch: Batch<P>) {
        if self.batches.is_empty() {
            self.since = Instant::now();
        }
        self.files += batch.files.len();
        self.bytes += batch.files.iter().map(|(file, _)| file.entry.size()).sum::<u64>();
        self.batches.push(batch);
    }
}

impl<K: Sink> Receiver<K> {
    /// How many small files are prepared in one go, and make a group: two groups may be there, and
    /// what is being prepared.
    pub fn part_len(&self) -> usize {
        (self.sink.max_prepared().min(MAX_PREPARED) / 2).max(1)
    }

    /// Waits until so many small files may be prepared: at most [`Self::part_len`].
    pub async fn may_prepare(&self, count: usize) -> Result<OwnedSemaphorePermit, SessionError> {
        let count = u32::try_from(count).map_err(SessionError::bug)?;
        let permits = Arc::clone(&self.preparing).acquire_many_owned(count);
        permits.await.map_err(SessionError::bug)
    }

    /// Small files have been prepared: those for which that failed end, and the others go on to get
    /// their names.
    pub async fn take_prepared(
        &self,
        files: Vec<Claimed>,
        prepared: Vec<Result<K::Prepared, StorageError>>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), SessionError> {
        let prepared = answers(prepared, files.len())?;
        let (mut complete, mut outcomes) = (Vec::with_capacity(files.len()), Vec::new());
        for (file, prepared) in files.into_iter().zip(prepared) {
            match prepared {
                Ok(prepared) => complete.push((file, prepared)),
                Err(error) => outcomes.extend(self.outcome(&file, Err(error))?),
            }
        }
        self.say_outcomes(outcomes)?;
        if complete.is_empty() {
            return Ok(());
        }
        let batch = Batch { files: complete, permit };
        match self.options.durability {
            Durability::Batch => {
                self.to_commit.push(batch);
                Ok(())
            }
            Durability::None | Durability::File => self.commit(vec![batch]).await,
        }
    }

    /// Gathers groups, and commits them one after the other.
    pub async fn commit_groups(self: Arc<Self>) -> Result<(), SessionError> {
        let mut group = Group::new();
        let mut committing: JoinSet<Result<(), SessionError>> = JoinSet::new();
        loop {
            let is_full = group.files >= self.part_len() || group.bytes >= GROUP_BYTES;
            let is_waiting = !group.batches.is_empty() && committing.is_empty();
            let due = group.since + PATIENCE;
            if is_waiting && (is_full || Instant::now() >= due || self.is_all_that_is_left(&group))
            {
                let group = std::mem::replace(&mut group, Group::new());
                committing.spawn(Arc::clone(&self).sync_and_commit(group.batches));
                continue;
            }
            tokio::select! {
                batch = self.to_commit.next(), if !is_full => group.add(batch),
                Some(joined) = committing.join_next() => first_error(joined)?,
                () = tokio::time::sleep_until(due), if is_waiting => {}
                () = self.ended.notified(), if is_waiting => {}
            }
        }
    }

    /// Whether nothing that is open could still join a group: what is gathered need not wait.
    fn is_all_that_is_left(&self, group: &Group<K::Prepared>) -> bool {
        let waiting_links = lock(&self.links).waiting;
        lock(&self.open).len() <= group.files + waiting_links
    }

    async fn sync_and_commit(
        self: Arc<Self>,
        batches: Vec<Batch<K::Prepared>>,
    ) -> Result<(), SessionError> {
        let Err(error) = self.sink.sync_prepared().await else { return self.commit(batches).await };
        self.check_fatal(&error)?;
        // The system says this once: a later sync of the same files would seem to succeed.
        let failure = error.to_failure();
        let mut outcomes = Vec::new();
        for (file, prepared) in batches.into_iter().flat_map(|batch| batch.files) {
            drop(prepared);
            let outcome = Outcome::Failed(failure.clone());
            if self.end(file.entry.id, file.version, &outcome, None) {
                outcomes.push((file.entry.id, outcome));
            }
        }
        self.say_outcomes(outcomes)
    }

    /// Gives files their names, and says so.
    async fn commit(&self, batches: Vec<Batch<K::Prepared>>) -> Result<(), SessionError> {
        let (mut permits, mut files, mut named) = (Vec::new(), Vec::new(), Vec::new());
        for batch in batches {
            permits.push(batch.permit);
            for (file, prepared) in batch.files {
                named.push((prepared, Arc::clone(&file.entry)));
                files.push(file);
            }
        }
        let committed = answers(self.sink.commit_files(named).await, files.len())?;
        drop(permits);
        let mut outcomes = Vec::with_capacity(files.len());
        for (file, committed) in files.iter().zip(committed) {
            let committed = match committed {
                Ok(()) if self.options.durability == Durability::File => {
                    self.sink.sync_name(Arc::clone(&file.entry)).await
                }
                committed => committed,
            };
            outcomes.extend(self.outcome(file, committed)?);
        }
        self.pass_on_complaints()?;
        self.say_outcomes(outcomes)
    }

    /// Ends a small file. `None` if it had ended.
    fn outcome(
        &self,
        file: &Claimed,
        result: Result<(), StorageError>,
    ) -> Result<Option<(EntryId, Outcome)>, SessionError> {
        let (outcome, root) = match result {
            Ok(()) => (Outcome::Done(file.changes), file.root),
            Err(error) => {
                self.check_fatal(&error)?;
                (Outcome::Failed(error.to_failure()), None)
            }
        };
        let id = file.entry.id;
        Ok(self.end(id, file.version, &outcome, root).then_some((id, outcome)))
    }
}

/// How much data makes a group, in bytes, where there is enough.
const GROUP_BYTES: u64 = 64 << 20;

/// How long a group is gathered while there is more to come.
const PATIENCE: Duration = Duration::from_millis(250);
