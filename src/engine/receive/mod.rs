//! The receiver's half: `channel.receive → chunk.verify → sink.write → journal.record → sink.commit`.
//!
//! The control channel says what exists and the sink what is there already; verdicts go back in the
//! same order, without a round trip for each file. One task for each data channel takes what comes.
//!
//! What becomes of an entry, in the order of the files here:
//!
//! | File | |
//! | --- | --- |
//! | `listen` | the sender's words are checked, and what they announce is [`open`] |
//! | `place` | the sink looks at what is there; the verdict says what is to come |
//! | `compare` | both ends hash the file, if only that can tell |
//! | `resume` | what an earlier run left of it is taken up |
//! | `stream` | frames are taken from the data channels |
//! | `file` | chunks are verified, written and recorded; the whole file is put in its place |
//! | `pack` | small files are verified and written together |
//! | `copy` | where the sink reaches the source by itself, it does all that without frames |
//! | `group` | small files are synced and put in their places together |
//! | `link` | hard links are made when what they lead to is there |
//! | `delete` | what the source does not have is removed |
//! | `finish` | barriers now and then, and the last things at the end |

mod compare;
mod complain;
mod copy;
mod delete;
mod file;
mod finish;
mod group;
mod link;
mod listen;
mod open;
mod pack;
mod place;
mod resume;
mod stream;

#[cfg(test)]
mod compare_tests;
#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod delete_tests;
#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod testing;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::AsyncRead;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::control::{Inbox, Outbox};
use super::event::EntryReport;
use super::journal::{Begun, Journal};
use super::plan::lock;
use super::session::{ChannelEnd, Channels, Newest, Observer, SessionError, first_error};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{Digest, EntryId};
use crate::protocol::manifest::{Fate, FinalEntry, Totals};
use crate::protocol::message::{
    Changes, Deletions, Durability, Entry, Kind, Message, Options, Outcome,
};
use crate::storage::{Operation, Remembers, Sink, StorageError, Token};
use crate::transport::FrameReceiver;
use compare::Hashing;
use complain::Complaints;
use copy::{RangeCopy, SmallCopy};
pub(super) use finish::CHECKPOINT_PATIENCE;
use group::Batch;
use link::{Links, ToLink};
use listen::Listener;
use open::{Incoming, Open};
use place::ToPlace;

/// Everything that the receiver's tasks share.
struct Receiver<K: Sink> {
    sink: K,
    /// `None` in a dry run.
    journal: Option<Journal>,
    /// What earlier runs began and this one has not taken up.
    begun: Mutex<HashMap<Vec<u8>, Begun>>,
    pool: Pool,
    /// For reading what is at the destination: who hashes that must not take buffers from what comes.
    reading_pool: Pool,
    outbox: Outbox,
    options: Options,
    observer: Observer,
    /// Entries that are announced and have not ended.
    open: Mutex<Open<K::File>>,
    links: Mutex<Links>,
    /// The last entry that was announced.
    last_id: AtomicU64,
    /// Whether nothing of earlier runs can be unsynced any more.
    earlier_synced: AtomicBool,
    /// Set when units are of no interest any more.
    is_done: Mutex<bool>,
    totals: Mutex<Totals>,
    complaints: Complaints,
    /// What the sink had to remove for other entries.
    made_room: Mutex<Deletions>,
    /// Directories that could not be made.
    failed_directories: Mutex<HashSet<EntryId>>,
    /// One permit for each small file that may be prepared and not committed.
    preparing: Arc<Semaphore>,
    /// Something ended, so that what is gathered may be all that is left.
    ended: Notify,
    /// What the sink is to look at.
    to_place: Queue<ToPlace>,
    to_hash: Queue<Arc<Hashing<K::File>>>,
    to_copy: Queue<SmallCopy>,
    to_copy_ranges: Queue<Arc<RangeCopy<K::File>>>,
    to_commit: Queue<Batch<K::Prepared>>,
    to_link: Queue<ToLink>,
    /// Hard links whose leaders are not there.
    to_promote: Queue<Arc<Entry>>,
    /// Why the whole session cannot go on.
    fatal: Queue<SessionError>,
}

/// What a receiver works with beside its channels.
#[derive(Debug)]
pub struct Destination<K> {
    pub sink: K,
    /// `None` in a dry run.
    pub journal: Option<Journal>,
    pub begun: HashMap<Vec<u8>, Begun>,
    /// Temporary files of no use, by path and identity.
    pub stale: Vec<(Vec<u8>, Token)>,
}

/// How a receiver's session stands when the sender has agreed to its summary: all that is left is to
/// remove the journal and to say [`Message::Closed`].
#[derive(Clone, Copy, Debug)]
pub struct ReceiverEnd {
    pub totals: Totals,
    pub durable: bool,
    pub deletions: Deletions,
}

/// Receives everything into a sink, to its end.
pub async fn run<K: Sink, R: AsyncRead + Unpin + Send, C: FrameReceiver>(
    destination: Destination<K>,
    inbox: &mut Inbox<R>,
    outbox: Outbox,
    channels: Channels<C>,
    options: Options,
    observer: Observer,
) -> Result<ReceiverEnd, SessionError> {
    let stale = destination.stale;
    let max_prepared = destination.sink.max_prepared().clamp(1, MAX_PREPARED);
    let receiver = Arc::new(Receiver {
        sink: destination.sink,
        journal: destination.journal,
        earlier_synced: AtomicBool::new(destination.begun.is_empty()),
        is_done: Mutex::default(),
        begun: Mutex::new(destination.begun),
        pool: options.pool(),
        reading_pool: Pool::new(workers(), options.max_payload().min(READING_LEN)),
        outbox,
        options,
        observer,
        open: Mutex::default(),
        links: Mutex::default(),
        last_id: AtomicU64::new(0),
        totals: Mutex::default(),
        complaints: Complaints::default(),
        made_room: Mutex::default(),
        failed_directories: Mutex::default(),
        preparing: Arc::new(Semaphore::new(max_prepared)),
        ended: Notify::new(),
        to_place: Queue::new(),
        to_hash: Queue::new(),
        to_copy: Queue::new(),
        to_copy_ranges: Queue::new(),
        to_commit: Queue::new(),
        to_link: Queue::new(),
        to_promote: Queue::new(),
        fatal: Queue::new(),
    });
    let mut tasks: JoinSet<Result<(), SessionError>> = JoinSet::new();
    receiver.begin(&mut tasks, stale);
    let ended = receive_all(&receiver, inbox, channels, &mut tasks).await;
    tasks.shutdown().await;
    if ended.is_err() {
        let is_nothing_left = receiver.sink.remembers() == Remembers::Nothing;
        if is_nothing_left && lock(&receiver.totals).bytes == 0 {
            // Another session has to begin where this one did: nothing was gained.
            receiver.observer.progress.bytes_verified.set(0);
        }
        // Whatever happened: what has come holds across a reboot too, if the disk is quick, and of what has
        // not, nothing is left that no later run takes up.
        let last = async { tokio::join!(receiver.checkpoint(), receiver.sink.give_up()) };
        let _ = tokio::time::timeout(CHECKPOINT_PATIENCE, last).await;
    }
    ended
}

/// Takes messages, channels and what becomes of tasks, until the sender has agreed.
async fn receive_all<K: Sink, R: AsyncRead + Unpin + Send, C: FrameReceiver>(
    receiver: &Arc<Receiver<K>>,
    inbox: &mut Inbox<R>,
    mut channels: Channels<C>,
    tasks: &mut JoinSet<Result<(), SessionError>>,
) -> Result<ReceiverEnd, SessionError> {
    let mut listener = Listener::new(Arc::clone(receiver));
    let mut chores: JoinSet<Result<(), SessionError>> = JoinSet::new();
    let mut newest = Newest::default();
    let mut streams: JoinSet<ChannelEnd> = JoinSet::new();
    loop {
        tokio::select! {
            message = inbox.next() => {
                if let Some(theirs) = listener.hear(message?, &mut chores)? {
                    // The sender closes its channels; whatever is still on them is of no use.
                    streams.shutdown().await;
                    while let Some(joined) = chores.join_next().await {
                        first_error(joined)?;
                    }
                    return receiver.finish(theirs, listener.into_listing(), inbox).await;
                }
            }
            error = receiver.fatal.next() => return Err(error),
            () = receiver.observer.asked_to_stop() => return Err(SessionError::interrupted()),
            Some(joined) = tasks.join_next() => first_error(joined)?,
            Some(joined) = chores.join_next() => first_error(joined)?,
            Some(arrival) = channels.next() => {
                let (slot, channel) = arrival?;
                receiver.observer.stream_up();
                let replaced = newest.replace(slot);
                streams.spawn(Arc::clone(receiver).receive_on(slot, channel, replaced));
            }
            Some(joined) = streams.join_next() => {
                receiver.observer.stream_down();
                channels.ended(first_error(joined.map(Ok))?, &receiver.observer)?;
            }
        }
    }
}

impl<K: Sink> Receiver<K> {
    /// Starts what runs beside the control channel for as long as the session lasts.
    fn begin(
        self: &Arc<Self>,
        tasks: &mut JoinSet<Result<(), SessionError>>,
        stale: Vec<(Vec<u8>, Token)>,
    ) {
        tasks.spawn(Arc::clone(self).place_all(stale));
        tasks.spawn(Arc::clone(self).keep_barriers());
        tasks.spawn(Arc::clone(self).link_all());
        tasks.spawn(Arc::clone(self).promote_all());
        if self.options.durability == Durability::Batch {
            tasks.spawn(Arc::clone(self).commit_groups());
        }
        for _ in 0..workers() {
            tasks.spawn(Arc::clone(self).hash_files());
            if self.sink.can_copy() {
                tasks.spawn(Arc::clone(self).copy_small_files());
                tasks.spawn(Arc::clone(self).copy_large_files());
            }
        }
    }

    fn say(&self, message: &Message) -> Result<(), SessionError> {
        if matches!(message, Message::Written(_) | Message::Again(_)) {
            // A channel's task may still be at work on a unit of an entry that has ended, and after
            // ReceiverDone nobody may hear of that.
            let is_done = lock(&self.is_done);
            return if *is_done { Ok(()) } else { Ok(self.outbox.say(message)?) };
        }
        Ok(self.outbox.say(message)?)
    }

    /// Says something about many entries, in messages that are not too long (SES-3).
    fn say_in_pieces<T>(
        &self,
        items: Vec<(EntryId, T)>,
        len: impl Fn(&T) -> usize,
        message: impl Fn(Vec<(EntryId, T)>) -> Message,
    ) -> Result<(), SessionError> {
        let (mut piece, mut piece_len) = (Vec::new(), 0);
        for (id, item) in items {
            piece_len += 16 + len(&item);
            piece.push((id, item));
            if piece_len > MAX_PIECE_LEN {
                self.say(&message(std::mem::take(&mut piece)))?;
                piece_len = 0;
            }
        }
        if piece.is_empty() { Ok(()) } else { self.say(&message(piece)) }
    }

    fn say_outcomes(&self, outcomes: Vec<(EntryId, Outcome)>) -> Result<(), SessionError> {
        self.say_in_pieces(outcomes, Outcome::estimated_len, Message::Outcomes)
    }

    /// Ends an entry, once: `false` if it had ended, or has begun anew. `root` is of data that came
    /// in this session.
    fn end(&self, id: EntryId, version: u16, outcome: &Outcome, root: Option<Digest>) -> bool {
        let ended = {
            let mut open = lock(&self.open);
            let is_open = open.at(id, version).is_some();
            if is_open { open.remove(id) } else { None }
        };
        let Some(ended) = ended else { return false };
        self.count(&ended, outcome, root);
        true
    }

    /// Counts an entry that is not open any more, and tells whoever waits for that.
    fn count(&self, ended: &Incoming<K::File>, outcome: &Outcome, root: Option<Digest>) {
        let entry = &ended.entry;
        lock(&self.totals).add(&FinalEntry {
            id: entry.id,
            parent: entry.parent,
            name: &entry.name,
            size: entry.size(),
            fate: Fate::from(outcome),
            root: counted_root(outcome, root),
        });
        let is_failed = matches!(outcome, Outcome::Failed(_));
        if is_failed && entry.kind == Kind::Directory && self.options.delete.is_some() {
            lock(&self.failed_directories).insert(entry.id);
        }
        let root = root.or(ended.compared).filter(|_| !is_failed);
        let is_packed = self.options.is_packed(entry.size());
        let leader = self.leader_of(entry);
        let report = EntryReport::new(self.sink.path(entry), entry, leader, root, outcome.clone());
        self.observer.ended(report, is_packed);
        // A link without a leader may lead others.
        if entry.is_linked || matches!(entry.kind, Kind::HardLink { .. }) {
            self.leader_ended(entry, outcome);
        }
        self.ended.notify_one();
    }

    /// What was never announced cannot have ended (FRAME-7).
    fn check_announced(&self, id: EntryId) -> Result<(), SessionError> {
        if (1..=self.last_id.load(Ordering::Relaxed)).contains(&id.0) {
            return Ok(());
        }
        Err(SessionError::violation(format!("{id} was never announced, and something came of it")))
    }

    /// Writes a record, if there is a journal.
    fn record(
        &self,
        write: impl FnOnce(&Journal) -> std::io::Result<()>,
    ) -> Result<(), SessionError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        write(journal).map_err(|cause| {
            let error = StorageError::io(Operation::Write, b"the journal")(cause);
            SessionError::Local(error.to_failure())
        })
    }

    /// A destination that is full, or gone, ends the session: the next file would not fit either.
    fn check_fatal(&self, error: &StorageError) -> Result<(), SessionError> {
        if error.is_fatal() {
            let error = SessionError::storage(error);
            self.fatal.push(error.clone());
            return Err(error);
        }
        Ok(())
    }
}

/// A queue between tasks of one session. It has no limit of its own: what is in it is about open
/// entries, and those are counted.
struct Queue<T> {
    sender: flume::Sender<T>,
    receiver: flume::Receiver<T>,
}

impl<T> Queue<T> {
    fn new() -> Self {
        let (sender, receiver) = flume::unbounded();
        Self { sender, receiver }
    }

    fn push(&self, item: T) {
        // The other end is held by this very struct, so this cannot fail.
        let _ = self.sender.send(item);
    }

    async fn next(&self) -> T {
        match self.receiver.recv_async().await {
            Ok(item) => item,
            Err(_) => std::future::pending().await,
        }
    }

    fn try_next(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }
}

/// The root with which both ends count an entry (END-3): of a file whose data came in this session.
fn counted_root(outcome: &Outcome, root: Option<Digest>) -> Digest {
    match outcome {
        Outcome::Done(changes) if changes.has(Changes::CONTENT) => root.unwrap_or_default(),
        _ => Digest::default(),
    }
}

/// A sink's answers, one for each question.
fn answers<T>(answers: Vec<T>, count: usize) -> Result<Vec<T>, SessionError> {
    if answers.len() == count {
        return Ok(answers);
    }
    Err(SessionError::bug(format!("{count} answers were due, and the sink has {}", answers.len())))
}

impl Outcome {
    /// About how long it is when encoded, in bytes.
    fn estimated_len(&self) -> usize {
        match self {
            Self::Done(_) | Self::Skipped | Self::Would(_) | Self::Left => 3,
            Self::Failed(failure) => 8 + failure.text().len(),
        }
    }
}

/// How many tasks hash, and how many copy, at the same time.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16)
}

/// About how long a message about many entries may get, in bytes.
const MAX_PIECE_LEN: usize = 256 << 10;

/// How long the buffers are in which what is at the destination is read, in bytes.
const READING_LEN: usize = 1 << 20;

/// The most small files that are prepared and not committed, whatever a sink allows.
const MAX_PREPARED: usize = 65_536;
