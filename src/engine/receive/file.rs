//! A file in chunks: `chunk.verify → sink.write → journal.record`, and at last `sink.commit`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Receiver;
use super::open::{Incomplete, State, Temporary};
use super::place::ToPlace;
use crate::engine::event::Event;
use crate::engine::journal::{FileNumber, SourceIdentity};
use crate::engine::plan::lock;
use crate::engine::session::SessionError;
use crate::protocol::chunk::{Chunk, Digest, EntryId};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Durability, Failure, FailureCode, Kind, Message, Outcome, Unit};
use crate::storage::{Operation, Sink, StorageError};

impl<K: Sink> Receiver<K> {
    pub async fn take_chunk(self: Arc<Self>, chunk: Chunk) -> Result<(), SessionError> {
        let (range, version) = (chunk.range, chunk.version);
        let Some(file) = self.chunk_of(&chunk)? else { return Ok(()) };
        let index = range.offset() / self.options.chunk_size.bytes();
        let unit = Unit::Chunk { entry: range.entry(), version, offset: range.offset() };
        if lock(&file.tree).has(index) {
            return self.say(&Message::Written(vec![unit]));
        }
        if !lock(&file.claimed).insert(index) {
            return Ok(());
        }
        let verified = tokio::task::spawn_blocking(move || chunk.verify()).await;
        let Ok(verified) = verified.map_err(SessionError::bug)? else {
            lock(&file.claimed).remove(&index);
            self.observer.tell(Event::Mismatch { what: format!("{unit:?}") });
            return self.say(&Message::Again(vec![unit]));
        };
        let value = verified.digest();
        let written = async {
            let temporary = self.temporary(&file).await?;
            let receipt = self.sink.write(temporary.file.clone(), verified).await?;
            Ok((temporary.number, receipt))
        };
        let (number, receipt) = match written.await {
            Ok(written) => written,
            Err(error) => {
                lock(&file.claimed).remove(&index);
                return self.fail(&file, &error).await;
            }
        };
        self.record(|journal| journal.chunk(number, index, value, &receipt))?;
        lock(&file.tree).insert(index, value);
        lock(&file.claimed).remove(&index);
        self.observer.progress.bytes_verified.add(range.len().into());
        self.say(&Message::Written(vec![unit]))?;
        self.complete(file).await
    }

    /// The file that a chunk belongs to; `None` where it comes too late.
    fn chunk_of(&self, chunk: &Chunk) -> Result<Option<Arc<Incomplete<K::File>>>, SessionError> {
        let id = chunk.range.entry();
        let open = lock(&self.open);
        let Some(incoming) = open.get(id) else {
            self.check_announced(id)?;
            return Ok(None);
        };
        if incoming.version > chunk.version {
            return Ok(None);
        }
        if incoming.version < chunk.version {
            let text = format!("a chunk of {id} is of a version that was not announced (FRAME-7)");
            return Err(SessionError::violation(text));
        }
        let file = match &incoming.state {
            State::Chunked(file) => file,
            // Another copy of it came before, and completed the file.
            State::Committing(_) => return Ok(None),
            State::Placing
            | State::Alone
            | State::Comparing(_)
            | State::Packed(_)
            | State::Copying(_)
            | State::Grouped => {
                return Err(SessionError::violation(format!("a chunk of {id} came unasked")));
            }
        };
        let size = self.options.chunk_size;
        let index = chunk.range.offset() / size.bytes();
        if size.range(id, index, incoming.entry.size()) != Some(chunk.range) {
            return Err(SessionError::violation(format!("a chunk of {id} has a wrong range")));
        }
        Ok(Some(Arc::clone(file)))
    }

    pub async fn temporary(
        &self,
        file: &Incomplete<K::File>,
    ) -> Result<Temporary<K::File>, StorageError> {
        let make = async || {
            let entry = &file.entry;
            let path = self.sink.path(entry);
            if file.is_abandoned.load(Ordering::Acquire) {
                return Err(StorageError::Vanished { path });
            }
            let made = self.sink.create(Arc::clone(entry), file.compared).await?;
            let Kind::File(kind) = entry.kind else {
                return Err(StorageError::Vanished { path });
            };
            let source = SourceIdentity::new(kind, entry.metadata.mtime);
            let identity = self.sink.identity(&made);
            let number = match &self.journal {
                Some(journal) => journal
                    .begin(&path, &source, &identity)
                    .map_err(StorageError::io(Operation::Write, b"the journal"))?,
                None => FileNumber::default(),
            };
            Ok(Temporary { file: made, number })
        };
        file.temporary.get_or_try_init(make).await.cloned()
    }

    /// Commits a file once every chunk is there and the sender has said what the root is (INT-7).
    pub async fn complete(
        self: Arc<Self>,
        file: Arc<Incomplete<K::File>>,
    ) -> Result<(), SessionError> {
        let (Some(root), Some(theirs)) = (lock(&file.tree).root(), *lock(&file.end)) else {
            return Ok(());
        };
        if !self.is_mine_to_commit(&file) {
            return Ok(());
        }
        // What the root was said to be at first may be stored with the file.
        if root == theirs && file.compared.is_none_or(|first| first == root) {
            self.put_in_place(&file, Some(root)).await?;
        } else {
            let path = self.sink.path(&file.entry);
            let text = format!(
                "{} arrived with another BLAKE3 root than it was sent with; it was not put in place",
                Escaped(&path)
            );
            let failure = Failure::new(FailureCode::Verification, text);
            self.discard(&file).await?;
            self.finish_file(&file, Outcome::Failed(failure), None)?;
        }
        self.go_on_with_restart(file.entry.id, file.version);
        Ok(())
    }

    /// Two tasks may find a file complete: the one that changes its state goes on.
    pub fn is_mine_to_commit(&self, file: &Arc<Incomplete<K::File>>) -> bool {
        let mut open = lock(&self.open);
        let Some(incoming) = open.at(file.entry.id, file.version) else { return false };
        let is_mine = matches!(&incoming.state, State::Chunked(known) | State::Copying(Some(known))
            if Arc::ptr_eq(known, file));
        if is_mine {
            incoming.state = State::Committing(Arc::clone(file));
        }
        is_mine
    }

    /// Gives a whole file its name, as durably as is asked for.
    pub async fn put_in_place(
        &self,
        file: &Incomplete<K::File>,
        root: Option<Digest>,
    ) -> Result<(), SessionError> {
        let committed = async {
            let temporary = self.temporary(file).await?;
            if self.options.durability != Durability::None {
                self.sink.sync_files(vec![temporary.file.clone()]).await?;
            }
            self.sink.commit(temporary.file, Arc::clone(&file.entry), root).await?;
            if self.options.durability == Durability::File {
                self.sink.sync_name(Arc::clone(&file.entry)).await?;
            }
            Ok(temporary.number)
        };
        let committed = committed.await;
        self.pass_on_complaints()?;
        match committed {
            Ok(number) => {
                self.record(|journal| journal.end(number))?;
                self.finish_file(file, Outcome::Done(file.changes), root)
            }
            Err(error) => self.fail(file, &error).await,
        }
    }

    /// If the file began anew while its earlier version was put in its place: now it can.
    fn go_on_with_restart(&self, id: EntryId, version: u16) {
        let mut open = lock(&self.open);
        let Some(incoming) = open.get_mut(id).filter(|incoming| incoming.version != version) else {
            return;
        };
        if matches!(incoming.state, State::Committing(_)) {
            incoming.state = State::Placing;
            let batch = vec![(Arc::clone(&incoming.entry), incoming.version)];
            self.to_place.push(ToPlace::Entries(batch));
        }
    }

    fn finish_file(
        &self,
        file: &Incomplete<K::File>,
        outcome: Outcome,
        root: Option<Digest>,
    ) -> Result<(), SessionError> {
        if self.end(file.entry.id, file.version, &outcome, root) {
            self.say(&Message::Outcomes(vec![(file.entry.id, outcome)]))?;
        }
        Ok(())
    }

    /// A file cannot be written: that is its end, or everybody's.
    pub async fn fail(
        &self,
        file: &Incomplete<K::File>,
        error: &StorageError,
    ) -> Result<(), SessionError> {
        self.check_fatal(error)?;
        self.discard(file).await?;
        self.finish_file(file, Outcome::Failed(error.to_failure()), None)
    }

    /// Throws away what had come of a file.
    pub async fn discard(&self, file: &Incomplete<K::File>) -> Result<(), SessionError> {
        file.is_abandoned.store(true, Ordering::Release);
        // One that is just being made is waited for; after that none is made any more.
        let made = file.temporary.get_or_try_init(async || Err(())).await;
        if let Ok(temporary) = made.cloned() {
            // It may be gone already; what cannot be removed is found again by the next run.
            let _ = self.sink.discard(temporary.file).await;
            self.record(|journal| journal.end(temporary.number))?;
        }
        Ok(())
    }
}
