//! The receiver's half: `channel.receive → chunk.verify → sink.write → journal.record → sink.commit`.
//!
//! The control channel says what exists and the sink what is there already; verdicts go back in the
//! same order, without a round trip for each file. One task for each data channel takes what comes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::control::{ControlError, Inbox, Outbox};
use super::event::{EntryReport, Event};
use super::journal::{Begun, FileNumber, Journal, SourceIdentity};
use super::plan::lock;
use super::send::MAX_RESTARTS;
use super::session::{ChannelEnd, Channels, Newest, Observer, Replaced, SessionError, first_error};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{Chunk, Digest, EntryId, MAX_FILE_LEN, Pack, PackError, VerifiedFile};
use crate::protocol::frame::Frame;
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::manifest::{Fate, FinalEntry, Totals};
use crate::protocol::message::{
    Durability, Entry, Failure, FailureCode, Kind, MAX_OPEN_ENTRIES, Message, Options, Outcome,
    Resume, Summary, Unit, Verdict,
};
use crate::protocol::tree::RootBuilder;
use crate::storage::{Placed, Sink, StorageError};
use crate::transport::{FrameReceiver, TransportError};

/// Everything that the receiver's tasks share.
struct Receiver<K: Sink> {
    sink: K,
    /// `None` in a dry run.
    journal: Option<Journal>,
    /// What earlier runs began and this one has not taken up.
    begun: Mutex<HashMap<Vec<u8>, Begun>>,
    pool: Pool,
    outbox: Outbox,
    options: Options,
    observer: Observer,
    /// Entries that are announced and have not ended.
    open: Mutex<HashMap<EntryId, Incoming<K::File>>>,
    /// The last entry that was announced.
    last_id: AtomicU64,
    /// Whether nothing of earlier runs can be unsynced any more.
    earlier_synced: AtomicBool,
    totals: Mutex<Totals>,
    /// Takes what the sink is to look at.
    to_place: flume::Sender<Vec<(Arc<Entry>, u16)>>,
    /// Takes the reason why the whole session cannot go on.
    fatal: flume::Sender<SessionError>,
}

/// An entry that has not ended.
struct Incoming<F> {
    entry: Arc<Entry>,
    version: u16,
    state: State<F>,
}

enum State<F> {
    /// The sink is looking at what is there.
    Placing,
    /// It will come in a pack.
    Packed,
    /// It comes in chunks.
    Chunked(Arc<Incomplete<F>>),
    /// It is whole and being put in its place.
    Committing(Arc<Incomplete<F>>),
}

/// A file of which chunks are still to come.
struct Incomplete<F> {
    entry: Arc<Entry>,
    version: u16,
    /// Made with the first chunk, so that files that wait hold nothing open.
    temporary: OnceCell<Temporary<F>>,
    tree: Mutex<RootBuilder>,
    /// Chunks that are being verified and written, so that two copies never are at once.
    claimed: Mutex<HashSet<u64>>,
    /// What the sender says the file's root is.
    end: Mutex<Option<Digest>>,
    /// Set when nothing more is to come of it, so that no temporary file is made any more.
    is_abandoned: AtomicBool,
}

#[derive(Clone)]
struct Temporary<F> {
    file: F,
    number: FileNumber,
}

/// What a receiver works with beside its channels.
#[derive(Debug)]
pub struct Destination<K> {
    pub sink: K,
    /// `None` in a dry run.
    pub journal: Option<Journal>,
    pub begun: HashMap<Vec<u8>, Begun>,
    /// Temporary files of no use, by path and identity.
    pub stale: Vec<(Vec<u8>, u64)>,
}

/// How a receiver's session stands when the sender has agreed to its summary: all that is left is to
/// remove the journal and to say [`Message::Closed`].
#[derive(Clone, Copy, Debug)]
pub struct ReceiverEnd {
    pub totals: Totals,
    pub durable: bool,
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
    let (fatal, fatalities) = flume::unbounded();
    let (to_place, placing) = flume::unbounded();
    let stale = destination.stale;
    let earlier_synced = AtomicBool::new(destination.begun.is_empty());
    let receiver = Arc::new(Receiver {
        sink: destination.sink,
        journal: destination.journal,
        begun: Mutex::new(destination.begun),
        pool: options.pool(),
        outbox,
        options,
        observer,
        open: Mutex::default(),
        last_id: AtomicU64::new(0),
        earlier_synced,
        totals: Mutex::default(),
        to_place,
        fatal,
    });
    let mut tasks: JoinSet<Result<(), SessionError>> = JoinSet::new();
    tasks.spawn(Arc::clone(&receiver).place_all(stale, placing));
    tasks.spawn(Arc::clone(&receiver).keep_barriers());
    let ended = receive_all(&receiver, inbox, channels, &mut tasks, &fatalities).await;
    tasks.shutdown().await;
    if ended.is_err() {
        // Whatever happened: what has come holds across a reboot too, if the disk is quick.
        let _ = tokio::time::timeout(CHECKPOINT_PATIENCE, receiver.checkpoint()).await;
    }
    ended
}

/// Takes messages, channels and what becomes of tasks, until the sender has agreed.
async fn receive_all<K: Sink, R: AsyncRead + Unpin + Send, C: FrameReceiver>(
    receiver: &Arc<Receiver<K>>,
    inbox: &mut Inbox<R>,
    mut channels: Channels<C>,
    tasks: &mut JoinSet<Result<(), SessionError>>,
    fatalities: &flume::Receiver<SessionError>,
) -> Result<ReceiverEnd, SessionError> {
    let mut listener = Listener { receiver: Arc::clone(receiver), directories: HashSet::new() };
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
                    return receiver.finish(theirs, inbox).await;
                }
            }
            Ok(error) = fatalities.recv_async() => return Err(error),
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

/// Takes the sender's messages. Decides nothing that could make it wait.
struct Listener<K: Sink> {
    receiver: Arc<Receiver<K>>,
    directories: HashSet<EntryId>,
}

impl<K: Sink> Listener<K> {
    /// Returns the sender's summary once it is done.
    fn hear(
        &mut self,
        message: Message,
        chores: &mut JoinSet<Result<(), SessionError>>,
    ) -> Result<Option<Summary>, SessionError> {
        match message {
            Message::Entries(entries) => self.announced(entries)?,
            Message::FileEnd { entry, version, root } => {
                if let Some(file) = self.receiver.file_end(entry, version, root)? {
                    chores.spawn(Arc::clone(&self.receiver).complete(file));
                }
            }
            Message::Restart { entry, version } => {
                if let Some((old, entry)) = self.restarted(entry, version)? {
                    chores.spawn(Arc::clone(&self.receiver).begin_anew(old, entry, version));
                }
            }
            Message::Withdraw { entry, failure } => {
                if let Some(old) = self.receiver.withdrawn(entry, failure)? {
                    chores.spawn(Arc::clone(&self.receiver).discard_old(old));
                }
            }
            Message::Complaint { entry, failure } => {
                self.receiver.observer.complain(format!("{entry}").into_bytes(), failure);
            }
            Message::SourceDone(summary) => {
                if !lock(&self.receiver.open).is_empty() {
                    return Err(SessionError::violation(
                        "the sender is done before all entries are",
                    ));
                }
                return Ok(Some(summary));
            }
            Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
            Message::Sources { .. } => {
                return Err(SessionError::violation("Sources came twice (ENTRY-1)"));
            }
            // The state machine lets nothing else through in this role.
            Message::Ping
            | Message::Hello(_)
            | Message::Open(_)
            | Message::Accept(_)
            | Message::Finish { .. }
            | Message::Verdicts(_)
            | Message::Have { .. }
            | Message::Written(_)
            | Message::Again(_)
            | Message::Outcomes(_)
            | Message::ReceiverDone { .. }
            | Message::Closed => {}
        }
        Ok(None)
    }

    /// Checks what the sender announces (ENTRY-3, ENTRY-4) and hands it to the sink.
    fn announced(&mut self, entries: Vec<Entry>) -> Result<(), SessionError> {
        let mut batch = Vec::with_capacity(entries.len());
        let mut open = lock(&self.receiver.open);
        for entry in entries {
            if entry.id.0 <= self.receiver.last_id.load(Ordering::Relaxed) {
                return Err(SessionError::violation(format!(
                    "{} is announced out of order",
                    entry.id
                )));
            }
            if entry.parent != EntryId::ROOT && !self.directories.contains(&entry.parent) {
                return Err(SessionError::violation(format!("{} has no directory", entry.id)));
            }
            self.receiver.last_id.store(entry.id.0, Ordering::Relaxed);
            match &entry.kind {
                Kind::Directory => {
                    self.directories.insert(entry.id);
                }
                Kind::File(file) if file.size > MAX_FILE_LEN => {
                    return Err(SessionError::violation(format!("{} is too large", entry.id)));
                }
                Kind::File(_) | Kind::Symlink { .. } | Kind::Unsendable(_) => {}
            }
            self.receiver.observer.found(&entry);
            let entry = Arc::new(entry);
            let incoming =
                Incoming { entry: Arc::clone(&entry), version: 0, state: State::Placing };
            open.insert(entry.id, incoming);
            batch.push((entry, 0));
        }
        if open.len() > MAX_OPEN_ENTRIES as usize {
            return Err(SessionError::violation("more entries are open than this end allows"));
        }
        drop(open);
        let _ = self.receiver.to_place.send(batch);
        Ok(())
    }

    /// The file is another one now (ENTRY-6). Returns what had come of the earlier one, which has to
    /// be gone before the new one is looked at: both have the same temporary name.
    fn restarted(
        &self,
        entry: Entry,
        version: u16,
    ) -> Result<Option<Begin<K::File>>, SessionError> {
        let mut open = lock(&self.receiver.open);
        let Some(known) = open.get_mut(&entry.id) else { return Ok(None) };
        let is_same_place = known.entry.parent == entry.parent && known.entry.name == entry.name;
        let was_file = matches!(known.entry.kind, Kind::File(_));
        let is_file = matches!(entry.kind, Kind::File(file) if file.size <= MAX_FILE_LEN);
        let was_placed = !matches!(known.state, State::Placing);
        let is_next = version <= MAX_RESTARTS && version == known.version + 1;
        if !is_same_place || !was_file || !is_file || !was_placed || !is_next {
            return Err(SessionError::violation(format!(
                "{} cannot begin anew like this",
                entry.id
            )));
        }
        let entry = Arc::new(entry);
        known.entry = Arc::clone(&entry);
        known.version = version;
        if matches!(known.state, State::Committing(_)) {
            // The earlier version is on its way to its place under the same temporary name: the
            // task that does it goes on with this one afterwards.
            return Ok(None);
        }
        let old = std::mem::replace(&mut known.state, State::Placing);
        Ok(Some(match old {
            State::Chunked(old) => (Some(old), entry),
            State::Placing | State::Packed | State::Committing(_) => (None, entry),
        }))
    }
}

/// A file that begins anew, and what had come of its earlier version.
type Begin<F> = (Option<Arc<Incomplete<F>>>, Arc<Entry>);

impl<K: Sink> Receiver<K> {
    fn say(&self, message: &Message) -> Result<(), SessionError> {
        self.outbox.say(message).map_err(SessionError::from)
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

    /// Lets the sink look at announced entries, batch by batch, and answers with verdicts.
    async fn place_all(
        self: Arc<Self>,
        stale: Vec<(Vec<u8>, u64)>,
        batches: flume::Receiver<Vec<(Arc<Entry>, u16)>>,
    ) -> Result<(), SessionError> {
        self.discard_stale(stale).await;
        while let Ok(batch) = batches.recv_async().await {
            let entries = batch.iter().map(|(entry, _)| Arc::clone(entry)).collect();
            let placed = self.sink.place(entries).await;
            let mut verdicts = Vec::with_capacity(batch.len());
            for ((entry, version), placed) in batch.into_iter().zip(placed) {
                if let Some(verdict) = self.judge(&entry, version, placed).await? {
                    verdicts.push((entry.id, verdict));
                }
            }
            self.say_in_pieces(verdicts, Verdict::estimated_len, Message::Verdicts)?;
        }
        Ok(())
    }

    async fn judge(
        &self,
        entry: &Arc<Entry>,
        version: u16,
        placed: Result<Placed, StorageError>,
    ) -> Result<Option<Verdict>, SessionError> {
        let outcome = match (&entry.kind, placed) {
            (Kind::Unsendable(failure), _) => Outcome::Failed(failure.clone()),
            (_, Err(error)) => {
                self.check_fatal(&error)?;
                Outcome::Failed(error.to_failure())
            }
            (Kind::File(file), _) if self.options.is_too_large(file.size) => {
                Outcome::Failed(super::send::too_large(&self.sink.path(entry)))
            }
            (_, Ok(Placed::Same)) => Outcome::Skipped,
            (_, Ok(Placed::Would)) => Outcome::Would,
            (Kind::File(file), Ok(Placed::Wanted)) => {
                let (state, verdict) = if self.options.is_packed(file.size) {
                    (State::Packed, Verdict::Need)
                } else {
                    let (incomplete, verdict) = self.expect(entry, version).await?;
                    (State::Chunked(incomplete), verdict)
                };
                return self.await_data(entry.id, version, state, verdict).await;
            }
            (_, Ok(Placed::Made | Placed::Wanted)) => Outcome::Done,
        };
        Ok(self.end(entry.id, version, &outcome, None).then_some(Verdict::Ended(outcome)))
    }

    /// Marks an entry as placed, unless it was withdrawn meanwhile.
    async fn await_data(
        &self,
        id: EntryId,
        version: u16,
        state: State<K::File>,
        verdict: Verdict,
    ) -> Result<Option<Verdict>, SessionError> {
        let too_late = {
            let mut open = lock(&self.open);
            match open.get_mut(&id).filter(|incoming| incoming.version == version) {
                Some(incoming) => {
                    incoming.state = state;
                    return Ok(Some(verdict));
                }
                None => state,
            }
        };
        if let State::Chunked(file) = too_late {
            self.discard(&file).await?;
        }
        Ok(None)
    }

    /// Prepares for a file in chunks, and takes up what an earlier run had of it.
    async fn expect(
        &self,
        entry: &Arc<Entry>,
        version: u16,
    ) -> Result<(Arc<Incomplete<K::File>>, Verdict), SessionError> {
        let count = self.options.chunk_size.count(entry.size());
        let mut tree = RootBuilder::new(count);
        let temporary = OnceCell::new();
        let begun = lock(&self.begun).remove(&self.sink.path(entry));
        let mut verdict = Verdict::Need;
        if let Some(begun) = begun
            && let Some(file) = self.take_up(entry, &begun).await?
        {
            let kept = self.kept_chunks(entry, &file, begun.chunks).await;
            for (first, values) in runs(kept) {
                for (index, value) in (first..).zip(&values) {
                    tree.insert(index, *value);
                }
                let bytes = values.len() as u64 * self.options.chunk_size.bytes();
                self.observer.resumed(bytes.min(entry.size()));
                self.outbox.room().await;
                self.say(&Message::Have { entry: entry.id, first, values })?;
            }
            verdict = Verdict::Resume;
            let _ = temporary.set(Temporary { file, number: begun.number });
        }
        let incomplete = Incomplete {
            entry: Arc::clone(entry),
            version,
            temporary,
            tree: Mutex::new(tree),
            claimed: Mutex::default(),
            end: Mutex::default(),
            is_abandoned: AtomicBool::new(false),
        };
        Ok((Arc::new(incomplete), verdict))
    }

    /// Opens the temporary file of an earlier run, if all of JRN-6 holds.
    async fn take_up(
        &self,
        entry: &Arc<Entry>,
        begun: &Begun,
    ) -> Result<Option<K::File>, SessionError> {
        let Kind::File(kind) = entry.kind else { return Ok(None) };
        if begun.source == SourceIdentity::new(kind, entry.mtime) {
            // Whatever is wrong with it, the file can be sent anew.
            let reopened = self.sink.reopen(Arc::clone(entry), begun.temporary).await;
            if let Ok(Some(file)) = reopened {
                return Ok(Some(file));
            }
        }
        self.sink.discard_left_over(self.sink.path(entry), begun.temporary).await;
        self.record(|journal| journal.end(begun.number))?;
        Ok(None)
    }

    /// The chunks of an earlier run that can be relied on, in order and once each.
    async fn kept_chunks(
        &self,
        entry: &Arc<Entry>,
        file: &K::File,
        chunks: Vec<(u64, Digest)>,
    ) -> Vec<(u64, Digest)> {
        let count = self.options.chunk_size.count(entry.size());
        let by_index: std::collections::BTreeMap<u64, Digest> =
            chunks.into_iter().filter(|(index, _)| *index < count).collect();
        if self.options.resume != Resume::Verify {
            return by_index.into_iter().collect();
        }
        let mut kept = Vec::new();
        for (index, value) in by_index {
            let Some(range) = self.options.chunk_size.range(entry.id, index, entry.size()) else {
                continue;
            };
            if self.sink.digest(file.clone(), range, &self.pool).await.is_ok_and(|d| d == value) {
                kept.push((index, value));
            }
        }
        kept
    }

    /// The sender has read all of a file. Returns the file if it may be complete.
    fn file_end(
        &self,
        id: EntryId,
        version: u16,
        root: Digest,
    ) -> Result<Option<Arc<Incomplete<K::File>>>, SessionError> {
        let open = lock(&self.open);
        let Some(incoming) = open.get(&id) else { return Ok(None) };
        match &incoming.state {
            State::Chunked(file) if incoming.version == version => {
                *lock(&file.end) = Some(root);
                Ok(Some(Arc::clone(file)))
            }
            State::Committing(_) => Ok(None),
            _ if version < incoming.version => Ok(None),
            State::Chunked(_) | State::Packed | State::Placing => {
                Err(SessionError::violation(format!("{id} ends before it was asked for")))
            }
        }
    }

    /// The sender cannot send an entry (ENTRY-7). Returns what had come of it.
    fn withdrawn(
        &self,
        id: EntryId,
        failure: Failure,
    ) -> Result<Option<Arc<Incomplete<K::File>>>, SessionError> {
        let incoming = {
            let mut open = lock(&self.open);
            if open.get(&id).is_some_and(|known| matches!(known.state, State::Committing(_))) {
                return Ok(None);
            }
            let Some(incoming) = open.remove(&id) else { return Ok(None) };
            incoming
        };
        let outcome = Outcome::Failed(failure);
        self.count(&incoming.entry, &outcome, None);
        self.say(&Message::Outcomes(vec![(id, outcome)]))?;
        Ok(match incoming.state {
            State::Chunked(file) => Some(file),
            State::Placing | State::Packed | State::Committing(_) => None,
        })
    }

    /// Ends an entry, once: `false` if it had ended, or has begun anew.
    fn end(&self, id: EntryId, version: u16, outcome: &Outcome, root: Option<Digest>) -> bool {
        let mut open = lock(&self.open);
        if open.get(&id).is_none_or(|incoming| incoming.version != version) {
            return false;
        }
        let Some(incoming) = open.remove(&id) else { return false };
        drop(open);
        self.count(&incoming.entry, outcome, root);
        true
    }

    fn count(&self, entry: &Entry, outcome: &Outcome, root: Option<Digest>) {
        let final_entry = FinalEntry {
            id: entry.id,
            parent: entry.parent,
            name: &entry.name,
            size: entry.size(),
            fate: Fate::from(outcome),
            root: root.unwrap_or_default(),
        };
        lock(&self.totals).add(&final_entry);
        let is_packed = self.options.is_packed(entry.size());
        let report = EntryReport::new(self.sink.path(entry), entry, root, outcome.clone());
        self.observer.ended(report, is_packed);
    }

    /// Receives from one channel until the sender ends it or it is lost.
    async fn receive_on(
        self: Arc<Self>,
        slot: ChannelSlot,
        mut channel: impl FrameReceiver,
        replaced: Replaced,
    ) -> ChannelEnd {
        let mut work: JoinSet<Result<(), SessionError>> = JoinSet::new();
        let mut replaced = std::pin::pin!(replaced.wait());
        loop {
            while work.len() >= WORK_PER_CHANNEL {
                if let Some(Err(error)) = work.join_next().await.map(first_error) {
                    return ChannelEnd::failed(slot, error);
                }
            }
            let received = channel.receive(&self.pool);
            let mut received = std::pin::pin!(received);
            let received = loop {
                tokio::select! {
                    received = &mut received => break received,
                    () = &mut replaced => break Err(TransportError::Closed),
                    // What failed must be known even if nothing more comes.
                    Some(joined) = work.join_next() => {
                        if let Err(error) = first_error(joined) {
                            return ChannelEnd::failed(slot, error);
                        }
                    }
                }
            };
            if let Ok(frame) = &received {
                self.observer.progress.bytes_sent.add(frame.payload().len() as u64);
            }
            let is_over = match received {
                Ok(Frame::Ready) => None,
                Ok(Frame::Chunk(chunk)) => {
                    work.spawn(Arc::clone(&self).take_chunk(chunk));
                    None
                }
                Ok(Frame::Pack(pack)) => {
                    work.spawn(Arc::clone(&self).take_pack(pack));
                    None
                }
                Ok(Frame::End) => Some(ChannelEnd::finished(slot)),
                Err(error) => Some(ChannelEnd::lost(slot, error)),
            };
            if let Some(end) = is_over {
                // What came whole counts, whatever became of the channel.
                while let Some(joined) = work.join_next().await {
                    if let Err(error) = first_error(joined) {
                        return ChannelEnd::failed(slot, error);
                    }
                }
                return end;
            }
        }
    }

    async fn take_chunk(self: Arc<Self>, chunk: Chunk) -> Result<(), SessionError> {
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
            self.sink.write(temporary.file.clone(), verified).await?;
            Ok(temporary.number)
        };
        let number = match written.await {
            Ok(number) => number,
            Err(error) => {
                lock(&file.claimed).remove(&index);
                return self.fail(&file, &error).await;
            }
        };
        self.record(|journal| journal.chunk(number, index, value))?;
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
        let Some(incoming) = open.get(&id) else {
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
            State::Placing | State::Packed => {
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

    /// What was never announced cannot have ended (FRAME-7).
    fn check_announced(&self, id: EntryId) -> Result<(), SessionError> {
        if (1..=self.last_id.load(Ordering::Relaxed)).contains(&id.0) {
            return Ok(());
        }
        Err(SessionError::violation(format!("data came of {id}, which was never announced")))
    }

    async fn temporary(
        &self,
        file: &Incomplete<K::File>,
    ) -> Result<Temporary<K::File>, StorageError> {
        let make = async || {
            let entry = &file.entry;
            let path = self.sink.path(entry);
            if file.is_abandoned.load(Ordering::Acquire) {
                return Err(StorageError::Vanished { path });
            }
            let made = self.sink.create(Arc::clone(entry)).await?;
            let Kind::File(kind) = entry.kind else {
                return Err(StorageError::Vanished { path });
            };
            let source = SourceIdentity::new(kind, entry.mtime);
            let identity = self.sink.identity(&made);
            let number = match &self.journal {
                Some(journal) => journal
                    .begin(&path, &source, identity)
                    .map_err(StorageError::io(crate::storage::Operation::Write, b"the journal"))?,
                None => FileNumber::default(),
            };
            Ok(Temporary { file: made, number })
        };
        file.temporary.get_or_try_init(make).await.cloned()
    }

    /// Commits a file once every chunk is there and the sender has said what the root is (INT-7).
    async fn complete(self: Arc<Self>, file: Arc<Incomplete<K::File>>) -> Result<(), SessionError> {
        let (id, version) = (file.entry.id, file.version);
        let (Some(root), Some(theirs)) = (lock(&file.tree).root(), *lock(&file.end)) else {
            return Ok(());
        };
        {
            // Two tasks may find the file complete: the one that takes it out of the map goes on.
            let mut open = lock(&self.open);
            let is_mine = open.get(&id).is_some_and(|incoming| {
                incoming.version == version && matches!(incoming.state, State::Chunked(_))
            });
            match open.get_mut(&id).filter(|_| is_mine) {
                Some(incoming) => incoming.state = State::Committing(Arc::clone(&file)),
                None => return Ok(()),
            }
        }
        self.put_in_place(&file, root, theirs).await?;
        self.go_on_with_restart(id, version);
        Ok(())
    }

    async fn put_in_place(
        &self,
        file: &Incomplete<K::File>,
        root: Digest,
        theirs: Digest,
    ) -> Result<(), SessionError> {
        if root != theirs {
            let path = self.sink.path(&file.entry);
            let text = format!(
                "{} arrived with another BLAKE3 root than it was sent with; it was not put in place",
                crate::protocol::manifest::Escaped(&path)
            );
            let failure = Failure::new(FailureCode::Verification, text);
            self.discard(file).await?;
            return self.finish_file(file, Outcome::Failed(failure), None);
        }
        let committed = async {
            let temporary = self.temporary(file).await?;
            if self.options.durability == Durability::Batch {
                self.sink.sync_files(vec![temporary.file.clone()]).await?;
            }
            self.sink.commit(temporary.file, Arc::clone(&file.entry)).await?;
            Ok(temporary.number)
        };
        match committed.await {
            Ok(number) => {
                self.record(|journal| journal.end(number))?;
                self.finish_file(file, Outcome::Done, Some(root))
            }
            Err(error) => self.fail(file, &error).await,
        }
    }

    /// If the file began anew while its earlier version was put in its place: now it can.
    fn go_on_with_restart(&self, id: EntryId, version: u16) {
        let mut open = lock(&self.open);
        let Some(incoming) = open.get_mut(&id).filter(|incoming| incoming.version != version)
        else {
            return;
        };
        if matches!(incoming.state, State::Committing(_)) {
            incoming.state = State::Placing;
            let _ = self.to_place.send(vec![(Arc::clone(&incoming.entry), incoming.version)]);
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
    async fn fail(
        &self,
        file: &Incomplete<K::File>,
        error: &StorageError,
    ) -> Result<(), SessionError> {
        self.check_fatal(error)?;
        self.discard(file).await?;
        self.finish_file(file, Outcome::Failed(error.to_failure()), None)
    }

    /// Throws away what had come of a file.
    async fn discard(&self, file: &Incomplete<K::File>) -> Result<(), SessionError> {
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

    async fn discard_old(
        self: Arc<Self>,
        file: Arc<Incomplete<K::File>>,
    ) -> Result<(), SessionError> {
        self.discard(&file).await
    }

    /// Throws away what had come of an earlier version, and looks at the new one after that.
    async fn begin_anew(
        self: Arc<Self>,
        old: Option<Arc<Incomplete<K::File>>>,
        entry: Arc<Entry>,
        version: u16,
    ) -> Result<(), SessionError> {
        if let Some(old) = old {
            self.discard(&old).await?;
        }
        let _ = self.to_place.send(vec![(entry, version)]);
        Ok(())
    }

    async fn take_pack(self: Arc<Self>, pack: Pack) -> Result<(), SessionError> {
        let unit = Unit::Pack(pack.number);
        let verified = tokio::task::spawn_blocking(move || pack.verify()).await;
        let pack = match verified.map_err(SessionError::bug)? {
            Ok(pack) => pack,
            Err(PackError::Digest) => {
                self.observer.tell(Event::Mismatch { what: format!("{unit:?}") });
                return self.say(&Message::Again(vec![unit]));
            }
            Err(error @ PackError::Table) => {
                return Err(SessionError::violation(error.to_string()));
            }
        };
        let (files, mismatched) = pack.into_parts();
        let again: Vec<Unit> = mismatched
            .into_iter()
            .map(|member| Unit::Packed { entry: member.entry, version: member.version })
            .collect();
        if !again.is_empty() {
            self.observer.tell(Event::Mismatch { what: format!("{again:?}") });
            self.say(&Message::Again(again))?;
        }
        let mut wanted = Vec::with_capacity(files.len());
        for file in files {
            if let Some(entry) = self.claim_packed(&file)? {
                wanted.push((file, entry));
            }
        }
        let members: Vec<_> =
            wanted.iter().map(|(file, entry)| (file.member(), Arc::clone(entry))).collect();
        let results = self.sink.write_files(wanted).await;
        let mut outcomes = Vec::with_capacity(members.len());
        for ((member, entry), result) in members.into_iter().zip(results) {
            let (outcome, root) = match result {
                Ok(()) => (Outcome::Done, Some(member.root)),
                Err(error) => {
                    self.check_fatal(&error)?;
                    (Outcome::Failed(error.to_failure()), None)
                }
            };
            self.count(&entry, &outcome, root);
            outcomes.push((entry.id, outcome));
        }
        self.say(&Message::Written(vec![unit]))?;
        self.say_in_pieces(outcomes, Outcome::estimated_len, Message::Outcomes)
    }

    /// Takes a packed file out of those that are awaited; `None` where it comes too late (FRAME-8).
    fn claim_packed(&self, file: &VerifiedFile) -> Result<Option<Arc<Entry>>, SessionError> {
        let member = file.member();
        let mut open = lock(&self.open);
        let Some(incoming) = open.get(&member.entry) else {
            self.check_announced(member.entry)?;
            return Ok(None);
        };
        if incoming.version > member.version {
            return Ok(None);
        }
        let size = incoming.entry.size();
        let is_expected = matches!(incoming.state, State::Packed)
            && incoming.version == member.version
            && self.options.is_packed(size);
        if !is_expected || size != u64::from(member.len) {
            let text = format!("{} came in a pack unasked", member.entry);
            return Err(SessionError::violation(text));
        }
        Ok(open.remove(&member.entry).map(|incoming| incoming.entry))
    }

    /// Writes a record, if there is a journal.
    fn record(
        &self,
        write: impl FnOnce(&Journal) -> std::io::Result<()>,
    ) -> Result<(), SessionError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        write(journal).map_err(|cause| {
            let error = StorageError::io(crate::storage::Operation::Write, b"the journal")(cause);
            SessionError::Local(error.to_failure())
        })
    }

    /// A destination that is full ends the session: the next file would not fit either.
    fn check_fatal(&self, error: &StorageError) -> Result<(), SessionError> {
        if error.is_destination_full() {
            let error = SessionError::Local(error.to_failure());
            let _ = self.fatal.send(error.clone());
            return Err(error);
        }
        Ok(())
    }

    /// Makes what was written hold across a reboot, now and then (JRN-5).
    async fn keep_barriers(self: Arc<Self>) -> Result<(), SessionError> {
        if self.journal.is_none() || self.options.durability == Durability::None {
            return Ok(());
        }
        let mut last = 0;
        loop {
            tokio::time::sleep(BARRIER_INTERVAL).await;
            let records = self.journal.as_ref().map_or(0, Journal::records);
            if records != last {
                self.barrier().await?;
                last = records + 1;
            }
        }
    }

    /// A last barrier before the session is given up.
    async fn checkpoint(self: &Arc<Self>) -> Result<(), SessionError> {
        if self.journal.is_none() || self.options.durability == Durability::None {
            return Ok(());
        }
        self.barrier().await
    }

    /// Syncs every file that has chunks in the journal, and only then says so in it.
    async fn barrier(self: &Arc<Self>) -> Result<(), SessionError> {
        let records = self.journal.as_ref().map_or(0, Journal::records);
        let files: Vec<Arc<Incomplete<K::File>>> = lock(&self.open)
            .values()
            .filter_map(|incoming| match &incoming.state {
                State::Chunked(file) | State::Committing(file) => Some(Arc::clone(file)),
                State::Placing | State::Packed => None,
            })
            .collect();
        if !self.earlier_synced.load(Ordering::Acquire) {
            // What earlier runs wrote is in files that this one may not have opened yet.
            if let Err(error) = self.sink.sync_all().await {
                return self.check_fatal(&error);
            }
            self.earlier_synced.store(true, Ordering::Release);
        }
        for file in files {
            let Some(made) = file.temporary.get().map(|made| made.file.clone()) else { continue };
            if let Err(error) = self.sink.sync_files(vec![made]).await {
                // The system says this once: a later sync of the same file would seem to succeed.
                self.fail(&file, &error).await?;
                return Ok(());
            }
        }
        let this = Arc::clone(self);
        let write = move || this.record(|journal| journal.barrier(records));
        tokio::task::spawn_blocking(write).await.map_err(SessionError::bug)?
    }

    async fn discard_stale(&self, stale: Vec<(Vec<u8>, u64)>) {
        for (path, identity) in stale {
            self.sink.discard_left_over(path, identity).await;
        }
    }

    /// Puts the last things in order; returns whether all of it is on stable storage.
    async fn settle(&self) -> Result<bool, SessionError> {
        let left_over = std::mem::take(&mut *lock(&self.begun));
        let left_over =
            left_over.into_iter().map(|(path, begun)| (path, begun.temporary)).collect();
        self.discard_stale(left_over).await;
        for (entry, error) in self.sink.finish().await {
            let failure = error.to_failure();
            self.observer.complain(format!("{entry}").into_bytes(), failure.clone());
            self.say(&Message::Complaint { entry, failure })?;
        }
        if self.options.durability == Durability::None || self.options.dry_run {
            return Ok(false);
        }
        self.sink.sync_all().await.map_err(|error| SessionError::Local(error.to_failure()))?;
        Ok(true)
    }

    /// Everything has come: puts the last things in order and compares counts (END-2, END-3).
    async fn finish<R: AsyncRead + Unpin>(
        self: &Arc<Self>,
        theirs: Summary,
        inbox: &mut Inbox<R>,
    ) -> Result<ReceiverEnd, SessionError> {
        let settling = self.settle();
        let mut settling = std::pin::pin!(settling);
        let durable = loop {
            // A slow disk may take minutes: the peer is heard meanwhile, and may give up.
            tokio::select! {
                durable = &mut settling => break durable?,
                message = inbox.next() => {
                    if let Message::Abort(failure) = message? {
                        return Err(ControlError::Aborted(failure).into());
                    }
                }
            }
        };
        let totals = *lock(&self.totals);
        let summary = Summary::from(totals);
        self.say(&Message::ReceiverDone { summary, durable })?;
        loop {
            match inbox.next().await? {
                Message::Finish { agreed: true } if summary == theirs => {
                    return Ok(ReceiverEnd { totals, durable });
                }
                Message::Finish { .. } => return Err(SessionError::mismatch(&theirs, &summary)),
                Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
                _ => {}
            }
        }
    }
}

/// Joins consecutive chunks, into pieces that fit a message.
fn runs(chunks: Vec<(u64, Digest)>) -> Vec<(u64, Vec<Digest>)> {
    let mut runs: Vec<(u64, Vec<Digest>)> = Vec::new();
    for (index, value) in chunks {
        match runs.last_mut() {
            Some((first, values))
                if *first + values.len() as u64 == index && values.len() < MAX_RUN =>
            {
                values.push(value);
            }
            _ => runs.push((index, vec![value])),
        }
    }
    runs
}

/// How many chunk values one message carries at the most: half of what its length allows.
const MAX_RUN: usize = 16_384;

impl Outcome {
    /// About how long it is when encoded, in bytes.
    fn estimated_len(&self) -> usize {
        match self {
            Self::Done | Self::Skipped | Self::Would => 1,
            Self::Failed(failure) => 8 + failure.text().len(),
        }
    }
}

impl Verdict {
    /// About how long it is when encoded, in bytes.
    fn estimated_len(&self) -> usize {
        match self {
            Self::Need | Self::Resume => 1,
            Self::Ended(outcome) => 1 + outcome.estimated_len(),
        }
    }
}

/// About how long a message about many entries may get, in bytes.
const MAX_PIECE_LEN: usize = 256 << 10;

/// How many frames of one channel are worked on while the next is received.
const WORK_PER_CHANNEL: usize = 2;

/// How long a session that is given up may take to make what has come hold across a reboot.
pub(super) const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(5);

/// How often what was written is made to hold across a reboot.
const BARRIER_INTERVAL: Duration = Duration::from_secs(5);
