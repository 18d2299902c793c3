//! What is there already, and so what is to come: the sink looks, and verdicts go back.

use std::sync::Arc;

use super::open::State;
use super::{Receiver, answers};
use crate::engine::plan::lock;
use crate::engine::session::SessionError;
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{
    Changes, Entry, Failure, FailureCode, FileKind, Kind, Message, Outcome, Owner, Special, Verdict,
};
use crate::storage::{Placed, Sink, StorageError, Token};

/// What the sink is to do, in the order in which the sender said it.
#[derive(Debug)]
pub enum ToPlace {
    Owners {
        users: Vec<Owner>,
        groups: Vec<Owner>,
    },
    /// Entries, each in this version.
    Entries(Vec<(Arc<Entry>, u16)>),
    /// A file that both ends have hashed.
    Compared {
        entry: Arc<Entry>,
        version: u16,
        is_equal: bool,
    },
}

impl<K: Sink> Receiver<K> {
    /// Lets the sink look at announced entries, batch by batch, and answers with verdicts.
    pub async fn place_all(
        self: Arc<Self>,
        stale: Vec<(Vec<u8>, Token)>,
    ) -> Result<(), SessionError> {
        self.discard_stale(stale).await;
        loop {
            match self.to_place.next().await {
                ToPlace::Owners { users, groups } => {
                    let sink = self.sink.clone();
                    // Names may have to be looked up.
                    let learning =
                        tokio::task::spawn_blocking(move || sink.learn_owners(users, groups));
                    learning.await.map_err(SessionError::bug)?;
                }
                ToPlace::Entries(batch) => self.place(batch).await?,
                ToPlace::Compared { entry, version, is_equal } => {
                    self.place_compared(entry, version, is_equal).await?;
                }
            }
        }
    }

    async fn place(&self, batch: Vec<(Arc<Entry>, u16)>) -> Result<(), SessionError> {
        let of_sink: Vec<Arc<Entry>> = batch
            .iter()
            .filter(|(entry, _)| self.is_for_sink(entry))
            .map(|(entry, _)| Arc::clone(entry))
            .collect();
        let count = of_sink.len();
        let placed = if count == 0 { Vec::new() } else { self.sink.place(of_sink).await };
        let mut placed = answers(placed, count)?.into_iter();
        self.pass_on_complaints()?;
        let mut verdicts = Vec::with_capacity(batch.len());
        for (entry, version) in batch {
            let verdict = if self.is_for_sink(&entry) {
                let placed = placed.next().ok_or_else(|| SessionError::bug("an answer is gone"))?;
                self.judge(&entry, version, placed).await?
            } else {
                self.judge_alone(&entry, version)
            };
            verdicts.extend(verdict.map(|verdict| (entry.id, verdict)));
        }
        self.say_verdicts(verdicts)
    }

    async fn place_compared(
        &self,
        entry: Arc<Entry>,
        version: u16,
        is_equal: bool,
    ) -> Result<(), SessionError> {
        if lock(&self.open).at(entry.id, version).is_none() {
            return Ok(());
        }
        let placed = self.sink.place_compared(Arc::clone(&entry), is_equal).await;
        if matches!(placed, Ok(Placed::Compare(_))) {
            return Err(SessionError::bug("the sink wants to compare what was compared"));
        }
        self.pass_on_complaints()?;
        let verdict = self.judge(&entry, version, placed).await?;
        self.say_verdicts(verdict.map(|verdict| (entry.id, verdict)).into_iter().collect())
    }

    fn say_verdicts(&self, verdicts: Vec<(EntryId, Verdict)>) -> Result<(), SessionError> {
        self.say_in_pieces(verdicts, Verdict::estimated_len, Message::Verdicts)
    }

    fn is_for_sink(&self, entry: &Entry) -> bool {
        match &entry.kind {
            Kind::Directory | Kind::File(_) | Kind::Symlink { .. } | Kind::Unselected => true,
            Kind::Special(special) => self.is_asked_for(*special),
            Kind::HardLink { .. } | Kind::Unsendable(_) => false,
        }
    }

    /// No peer makes devices or the like here that the user has not asked for.
    fn is_asked_for(&self, special: Special) -> bool {
        match special {
            Special::Fifo | Special::Socket => self.options.preserve.specials,
            Special::CharacterDevice { .. } | Special::BlockDevice { .. } => {
                self.options.preserve.devices
            }
        }
    }

    /// Judges what is nothing to look at. A link gets its verdict when its leader has ended.
    fn judge_alone(&self, entry: &Arc<Entry>, version: u16) -> Option<Verdict> {
        let failure = match &entry.kind {
            Kind::HardLink { leader } => {
                let is_alone = self.link_or_wait(entry, *leader);
                return is_alone.then(|| self.promote(entry)).flatten();
            }
            Kind::Unsendable(failure) => failure.clone(),
            _ => {
                let path = self.sink.path(entry);
                let text = format!("{} is a special file, and not asked for", Escaped(&path));
                Failure::new(FailureCode::Unsupported, text)
            }
        };
        self.verdict_of(entry.id, version, Outcome::Failed(failure))
    }

    async fn judge(
        &self,
        entry: &Arc<Entry>,
        version: u16,
        placed: Result<Placed, StorageError>,
    ) -> Result<Option<Verdict>, SessionError> {
        let outcome = match (&entry.kind, placed) {
            (_, Err(error)) => {
                self.check_fatal(&error)?;
                Outcome::Failed(error.to_failure())
            }
            (Kind::File(file), _) if self.options.is_too_large(file.size) => {
                Outcome::Failed(crate::engine::send::too_large(&self.sink.path(entry)))
            }
            (_, Ok(Placed::Left)) => Outcome::Left,
            (_, Ok(Placed::Settled(changes))) if changes.is_empty() => Outcome::Skipped,
            (_, Ok(Placed::Settled(changes) | Placed::Wanted(changes))) if self.options.dry_run => {
                Outcome::Would(changes)
            }
            (_, Ok(Placed::Settled(changes))) => Outcome::Done(changes),
            (Kind::File(file), Ok(Placed::Wanted(changes))) => {
                return self.want(entry, version, *file, changes).await;
            }
            (Kind::File(_), Ok(Placed::Compare(existing))) => {
                return Ok(self.compare(entry, version, existing));
            }
            (_, Ok(Placed::Wanted(_) | Placed::Compare(_))) => {
                return Err(SessionError::bug("the sink asks for data of what has none"));
            }
        };
        Ok(self.verdict_of(entry.id, version, outcome))
    }

    /// Ends an entry by its verdict, unless it was withdrawn or has begun anew meanwhile.
    fn verdict_of(&self, id: EntryId, version: u16, outcome: Outcome) -> Option<Verdict> {
        self.end(id, version, &outcome, None).then_some(Verdict::Ended(outcome))
    }

    /// A file's data is to come: in a pack, in chunks, or without the sender.
    async fn want(
        &self,
        entry: &Arc<Entry>,
        version: u16,
        file: FileKind,
        changes: Changes,
    ) -> Result<Option<Verdict>, SessionError> {
        if self.sink.can_copy() {
            self.copy(entry, version, changes).await?;
            return Ok(None);
        }
        let (state, verdict) = if self.options.is_packed(file.size) {
            (State::Packed(changes), Verdict::Need)
        } else {
            let (incomplete, verdict) = self.expect(entry, version, changes).await?;
            (State::Chunked(incomplete), verdict)
        };
        Ok(self.is_now(entry.id, version, state).await?.then_some(verdict))
    }

    /// Notes how far an entry is; `false` if it was withdrawn or has begun anew meanwhile.
    pub async fn is_now(
        &self,
        id: EntryId,
        version: u16,
        state: State<K::File>,
    ) -> Result<bool, SessionError> {
        let too_late = {
            let mut open = lock(&self.open);
            match open.at(id, version) {
                Some(incoming) => {
                    incoming.state = state;
                    return Ok(true);
                }
                None => state,
            }
        };
        if let Some(file) = too_late.incomplete() {
            self.discard(file).await?;
        }
        Ok(false)
    }
}

impl Verdict {
    /// About how long it is when encoded, in bytes.
    pub fn estimated_len(&self) -> usize {
        match self {
            Self::Need | Self::Resume | Self::Hash | Self::Alone => 1,
            Self::Ended(outcome) => 1 + outcome.estimated_len(),
        }
    }
}
