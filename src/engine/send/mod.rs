//! The sender's half: `plan.next → source.read → channel.send`.
//!
//! Entries stream ahead on the control channel while the walk is still running (`announce`); the
//! receiver's verdicts fill the [`Plan`], or ask for roots only (`hash`); one task for each data
//! channel empties it.

mod announce;
mod hash;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::task::JoinSet;

use super::control::{ControlError, Inbox, Outbox};
use super::event::{EntryReport, Event};
use super::plan::{Again, FileWork, Plan, SmallFile, Work, lock};
use super::session::{ChannelEnd, Channels, Newest, Observer, Replaced, SessionError, first_error};
use crate::protocol::buffer::{BufferError, Pool};
use crate::protocol::chunk::{Digest, EntryId};
use crate::protocol::frame::Frame;
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::manifest::{Fate, FinalEntry, Totals};
use crate::protocol::message::{
    Changes, Complaint, Deleted, Deletions, Entry, Failure, FailureCode, Kind, MAX_OPEN_ENTRIES,
    Message, Options, Outcome, Summary, Unit, Verdict,
};
use crate::protocol::tree::RootBuilder;
use crate::storage::{Source, StorageError};
use crate::transport::{FrameSender, TransportError};

/// Everything that the sender's tasks share.
pub struct Sender<S: Source> {
    source: S,
    plan: Plan<S::File>,
    pool: Pool,
    outbox: Outbox,
    options: Options,
    observer: Observer,
    /// Entries that are announced and have not ended.
    open: Mutex<HashMap<EntryId, Announced<S::File>>>,
    /// One permit for each entry that may still be announced (ENTRY-4).
    window: Semaphore,
    /// How much the window has in all.
    max_open: u32,
    /// Takes files of which the receiver wants the root only, and hard links without a leader.
    to_hash: flume::Sender<SmallFile>,
    /// The entries that others are hard links to, for reports.
    leaders: Mutex<HashMap<EntryId, Arc<Entry>>>,
    /// What is to be removed here once it is durable there; unused unless that was asked for.
    removable: Mutex<Vec<Arc<Entry>>>,
    totals: Mutex<Totals>,
    /// Every entry has been announced.
    walk_done: AtomicBool,
    /// Something ended: maybe all has.
    ended: Notify,
}

impl<S: Source> std::fmt::Debug for Sender<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

/// What the sender knows of an entry that has not ended.
struct Announced<F> {
    entry: Arc<Entry>,
    /// How often it was announced anew because it had changed (ENTRY-6).
    version: u16,
    /// What its data amounted to, once it was all read.
    root: Option<Digest>,
    /// Where its chunks are counted, from the first [`Message::Have`] or the verdict on.
    file: Option<Arc<FileWork<F>>>,
    /// What it takes of the window, from its first announcement to its end.
    weight: u32,
    /// The receiver has asked what this version amounts to, and what that is once it is known.
    is_hashing: bool,
    hashed: Option<Digest>,
    /// The receiver has said what it wants of this version: it says so once.
    is_placed: bool,
    /// It is only waited for the receiver to end it (ENTRY-7).
    is_withdrawn: bool,
    /// What it was, and amounted to, before it was announced anew: that may cross with its end.
    before: Option<(Arc<Entry>, Option<Digest>)>,
}

impl<F> Announced<F> {
    fn new(entry: Arc<Entry>, weight: u32) -> Self {
        Self {
            entry,
            version: 0,
            root: None,
            file: None,
            weight,
            is_hashing: false,
            hashed: None,
            is_placed: false,
            is_withdrawn: false,
            before: None,
        }
    }
}

/// Sends everything of a source, to its end. Returns what both ends agree was done.
pub async fn run<S: Source, R: AsyncRead + Unpin + Send, C: FrameSender>(
    source: S,
    inbox: &mut Inbox<R>,
    outbox: Outbox,
    mut channels: Channels<C>,
    options: Options,
    max_open_entries: u32,
    observer: Observer,
) -> Result<SenderEnd, SessionError> {
    if !(1..=MAX_OPEN_ENTRIES).contains(&max_open_entries) {
        let text = format!("the receiver would keep {max_open_entries} entries open (SES-8)");
        return Err(SessionError::violation(text));
    }
    let (to_hash, hashing) = flume::unbounded();
    let sender = Arc::new(Sender {
        source,
        plan: Plan::new(options.max_payload()).for_single(options.streams == 1),
        pool: options.pool(),
        outbox,
        options,
        observer,
        open: Mutex::default(),
        window: Semaphore::new(max_open_entries as usize),
        max_open: max_open_entries,
        to_hash,
        leaders: Mutex::default(),
        removable: Mutex::default(),
        totals: Mutex::default(),
        walk_done: AtomicBool::new(false),
        ended: Notify::new(),
    });
    let (single_file, root) = (sender.source.is_single_file(), sender.source.root());
    let whereabouts = sender.source.whereabouts();
    sender.say(&Message::Sources { single_file, root, whereabouts })?;
    let mut tasks: JoinSet<Result<(), SessionError>> = JoinSet::new();
    tasks.spawn(Arc::clone(&sender).announce_all());
    for _ in 0..hash::workers() {
        tasks.spawn(Arc::clone(&sender).hash_all(hashing.clone()));
    }
    let mut streams: JoinSet<ChannelEnd> = JoinSet::new();
    let mut newest = Newest::default();
    let mut source_done = false;
    loop {
        tokio::select! {
            message = inbox.next() => {
                if let Some(end) = sender.hear(message?)? {
                    if !source_done {
                        let text = "the receiver is done before the sender is (END-2)";
                        return Err(SessionError::violation(text));
                    }
                    // All has ended, so that nothing of worth can be on them any more; a receiver
                    // that does not read must not keep us.
                    let all_ended = async { while streams.join_next().await.is_some() {} };
                    let _ = tokio::time::timeout(STREAMS_PATIENCE, all_ended).await;
                    return sender.agree(end, inbox).await;
                }
            }
            Some(joined) = tasks.join_next() => first_error(joined)?,
            Some(arrival) = channels.next() => {
                let (slot, channel) = arrival?;
                sender.observer.stream_up();
                let replaced = newest.replace(slot);
                streams.spawn(Arc::clone(&sender).send_on(slot, channel, replaced));
            }
            Some(joined) = streams.join_next() => {
                sender.observer.stream_down();
                channels.ended(first_error(joined.map(Ok))?, &sender.observer)?;
            }
            () = sender.all_ended(), if !source_done => {
                source_done = true;
                sender.plan.close();
                channels.close();
                let totals = *lock(&sender.totals);
                sender.say(&Message::SourceDone(Summary::from(totals)))?;
            }
        }
    }
}

/// How a sender's session ended.
#[derive(Clone, Copy, Debug)]
pub struct SenderEnd {
    pub totals: Totals,
    pub durable: bool,
    pub deletions: Deletions,
}

impl<S: Source> Sender<S> {
    fn say(&self, message: &Message) -> Result<(), SessionError> {
        self.outbox.say(message).map_err(SessionError::from)
    }

    /// Waits until the walk is over and every entry has ended (END-1).
    async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            if self.walk_done.load(Ordering::Acquire) && lock(&self.open).is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Takes a message from the receiver. Returns its summary once it is done.
    fn hear(&self, message: Message) -> Result<Option<ReceiverSummary>, SessionError> {
        match message {
            Message::Verdicts(verdicts) => {
                for (id, verdict) in verdicts {
                    self.obey(id, verdict)?;
                }
            }
            Message::Have { entry, first, values } => self.has(entry, first, &values)?,
            Message::Written(units) => units.into_iter().for_each(|unit| self.written(unit)),
            Message::Again(units) => {
                for unit in units {
                    self.send_again(unit)?;
                }
            }
            Message::Outcomes(outcomes) => {
                for (id, outcome) in outcomes {
                    if let Some(metadata) = self.source.root().filter(|_| id == EntryId::ROOT) {
                        self.observer.tell(Event::Ended(EntryReport::of_root(metadata, outcome)));
                        continue;
                    }
                    self.crossed(id);
                    self.end(id, outcome)?;
                }
            }
            Message::Complaint(complaint) => self.observer.complain(complaint),
            Message::Deleted(deleted) => {
                for Deleted { path, is_directory } in deleted {
                    self.observer.tell(Event::Deleted { path, is_directory });
                }
            }
            Message::ReceiverDone { summary, durable, deletions } => {
                return Ok(Some(ReceiverSummary { summary, durable, deletions }));
            }
            Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
            Message::Paths { .. } => {
                return Err(SessionError::violation("paths came after the source was opened"));
            }
            // The state machine lets nothing else through in this role.
            Message::Ping
            | Message::Hello(_)
            | Message::Open(_)
            | Message::Accept(_)
            | Message::Sources { .. }
            | Message::Entries(_)
            | Message::FileEnd { .. }
            | Message::Restart { .. }
            | Message::Withdraw { .. }
            | Message::SourceDone(_)
            | Message::Finish { .. }
            | Message::Owners { .. }
            | Message::Listed(_)
            | Message::Root { .. }
            | Message::Dial(_)
            | Message::NotReached(_)
            | Message::Measure(_)
            | Message::Measured(_)
            | Message::Told(_)
            | Message::Closed => {}
        }
        Ok(None)
    }

    fn obey(&self, id: EntryId, verdict: Verdict) -> Result<(), SessionError> {
        match verdict {
            Verdict::Ended(outcome) => self.end(id, outcome),
            Verdict::Hash => self.hash(id),
            Verdict::Alone => self.announce_alone(id),
            Verdict::Need | Verdict::Resume => {
                let mut open = lock(&self.open);
                let known = open.get_mut(&id).ok_or_else(|| unknown(id))?;
                let Kind::File(kind) = known.entry.kind else { return Err(unknown(id)) };
                if std::mem::replace(&mut known.is_placed, true) {
                    return Err(SessionError::violation(format!("{id} has two verdicts")));
                }
                if self.options.is_packed(kind.size) {
                    let entry = Arc::clone(&known.entry);
                    self.plan.add_small(SmallFile { entry, version: known.version });
                } else {
                    let file = self.file_work(known);
                    self.plan.add_file(file);
                }
                Ok(())
            }
        }
    }

    /// The receiver has these chunks from an earlier run.
    fn has(&self, id: EntryId, first: u64, values: &[Digest]) -> Result<(), SessionError> {
        let mut open = lock(&self.open);
        let known = open.get_mut(&id).ok_or_else(|| unknown(id))?;
        let is_chunked = !self.options.is_packed(known.entry.size());
        if !is_chunked || known.is_placed || first >= known.entry.size() {
            return Err(SessionError::violation(format!("{id} has nothing to resume (ENTRY-11)")));
        }
        let file = self.file_work(known);
        let mut tree = lock(&file.tree);
        let mut resumed = 0;
        for (index, value) in (first..).zip(values) {
            if !tree.insert(index, *value) {
                return Err(SessionError::violation(format!("{id} has no such chunk to resume")));
            }
            let range = file.chunk_size.range(id, index, file.entry.size());
            resumed += range.map_or(0, |range| u64::from(range.len()));
        }
        self.observer.progress.bytes_resumed.add(resumed);
        Ok(())
    }

    fn file_work(&self, known: &mut Announced<S::File>) -> Arc<FileWork<S::File>> {
        let chunk_size = self.options.chunk_size;
        let file = known.file.get_or_insert_with(|| {
            Arc::new(FileWork {
                entry: Arc::clone(&known.entry),
                version: known.version,
                chunk_size,
                open: OnceCell::new(),
                tree: Mutex::new(RootBuilder::new(chunk_size.count(known.entry.size()))),
                cancelled: AtomicBool::new(false),
            })
        });
        Arc::clone(file)
    }

    fn written(&self, unit: Unit) {
        let was_under_way = self.plan.written(unit);
        if let (true, Unit::Chunk { entry, offset, .. }) = (was_under_way, unit) {
            let open = lock(&self.open);
            let size = open.get(&entry).map_or(0, |known| known.entry.size());
            let len = size.saturating_sub(offset).min(self.options.chunk_size.bytes());
            self.observer.progress.bytes_verified.add(len);
        }
    }

    fn send_again(&self, unit: Unit) -> Result<(), SessionError> {
        let packed = match unit {
            Unit::Packed { entry, version } => lock(&self.open)
                .get(&entry)
                // It was read, and so maybe sent, if its root is known.
                .filter(|known| {
                    let is_packed = self.options.is_packed(known.entry.size());
                    is_packed && known.version == version && known.root.is_some()
                })
                .filter(|known| !known.is_withdrawn)
                .map(|known| SmallFile { entry: Arc::clone(&known.entry), version }),
            Unit::Chunk { .. } | Unit::Pack(_) => None,
        };
        match self.plan.send_again(unit, packed) {
            Again::Unknown => {}
            Again::Queued => self.observer.tell(Event::Mismatch { what: format!("{unit:?}") }),
            Again::GivenUp(entries) => {
                for id in entries {
                    let path = self.path_of(id);
                    let text = format!(
                        "{} did not match its digest in four attempts; a host's memory or network \
                         card may be faulty",
                        crate::protocol::manifest::Escaped(&path)
                    );
                    self.withdraw(id, Failure::new(FailureCode::Verification, text))?;
                }
            }
        }
        Ok(())
    }

    fn path_of(&self, id: EntryId) -> Vec<u8> {
        let entry = lock(&self.open).get(&id).map(|known| Arc::clone(&known.entry));
        entry.map(|entry| self.source.path(&entry)).unwrap_or_default()
    }

    /// An outcome that comes in place of the verdict on a new version crossed with its
    /// announcement: it is about the version before, the last that the receiver took note of.
    fn crossed(&self, id: EntryId) {
        let mut open = lock(&self.open);
        if let Some(known) = open.get_mut(&id).filter(|known| !known.is_placed)
            && let Some((entry, root)) = known.before.take()
        {
            (known.entry, known.root) = (entry, root);
        }
    }

    /// An entry is over: the receiver says so, and only it does (ENTRY-5).
    fn end(&self, id: EntryId, outcome: Outcome) -> Result<(), SessionError> {
        let known = lock(&self.open).remove(&id).ok_or_else(|| unknown(id))?;
        if let Some(file) = &known.file {
            self.plan.cancel(file);
        }
        let root = match outcome {
            Outcome::Done(changes) if changes.has(Changes::CONTENT) => known.root,
            _ => None,
        };
        let final_entry = FinalEntry {
            id,
            parent: known.entry.parent,
            name: &known.entry.name,
            size: known.entry.size(),
            fate: Fate::from(&outcome),
            root: root.unwrap_or_default(),
        };
        lock(&self.totals).add(&final_entry);
        let is_packed = self.options.is_packed(known.entry.size());
        let is_there = matches!(outcome, Outcome::Done(_) | Outcome::Skipped);
        if self.options.remove_source_files && is_there && known.entry.kind != Kind::Directory {
            lock(&self.removable).push(Arc::clone(&known.entry));
        }
        let path = self.source.path(&known.entry);
        let leader = match known.entry.kind {
            Kind::HardLink { leader } => lock(&self.leaders).get(&leader).cloned(),
            _ => None,
        };
        let leader = leader.map(|leader| self.source.path(&leader));
        let root = root.or(known.hashed);
        let report = EntryReport::new(path, &known.entry, leader, root, outcome);
        self.observer.ended(report, is_packed);
        self.window.add_permits(known.weight as usize);
        self.ended.notify_one();
        Ok(())
    }

    /// Asks the receiver to end an entry as failed (ENTRY-7).
    fn withdraw(&self, id: EntryId, failure: Failure) -> Result<(), SessionError> {
        let file = {
            let mut open = lock(&self.open);
            let Some(known) = open.get_mut(&id).filter(|known| !known.is_withdrawn) else {
                return Ok(());
            };
            known.is_withdrawn = true;
            known.file.clone()
        };
        if let Some(file) = file {
            self.plan.cancel(&file);
        }
        self.say(&Message::Withdraw { entry: id, failure })
    }

    /// Sends over one channel until there is nothing left, or the channel is lost.
    async fn send_on(
        self: Arc<Self>,
        slot: ChannelSlot,
        mut channel: impl FrameSender,
        replaced: Replaced,
    ) -> ChannelEnd {
        let end = self.send_units(slot, &mut channel, replaced).await;
        self.plan.channel_lost(slot);
        match end {
            Ok(()) => ChannelEnd::finished(slot),
            Err(SendError::Channel(error)) => ChannelEnd::lost(slot, error),
            Err(SendError::Session(error)) => ChannelEnd::failed(slot, error),
        }
    }

    async fn send_units(
        &self,
        slot: ChannelSlot,
        channel: &mut impl FrameSender,
        replaced: Replaced,
    ) -> Result<(), SendError> {
        let mut replaced = std::pin::pin!(replaced.wait());
        loop {
            if channel.is_worn() {
                return channel.finish().await.map_err(SendError::Channel);
            }
            let work = tokio::select! {
                work = self.plan.next(slot) => work,
                error = channel.closed() => return Err(SendError::Channel(error)),
                () = &mut replaced => return Err(SendError::Channel(TransportError::Closed)),
            };
            let Some(work) = work else {
                return channel.finish().await.map_err(SendError::Channel);
            };
            if let Some(frame) = self.read(work).await.map_err(SendError::Session)? {
                tokio::select! {
                    sent = channel.send(&frame) => sent.map_err(SendError::Channel)?,
                    () = &mut replaced => return Err(SendError::Channel(TransportError::Closed)),
                }
                self.observer.progress.bytes_sent.add(frame.payload().len() as u64);
            }
        }
    }

    /// Makes the frame for a unit. `None` where there is nothing to send, or not any more.
    async fn read(&self, work: Work<S::File>) -> Result<Option<Frame>, SessionError> {
        match work {
            Work::Pack { number, files } => self.read_pack(number, files).await,
            Work::Chunk { file, index } => {
                let size = file.entry.size();
                let Some(range) = file.chunk_size.range(file.entry.id, index, size) else {
                    return Ok(None);
                };
                let read = async {
                    let open = self.open_file(&file).await?;
                    self.source.read(open, range, file.version, &self.pool).await
                };
                match read.await {
                    Ok(chunk) => {
                        lock(&file.tree).insert(index, chunk.digest);
                        self.end_file(&file).await?;
                        Ok((!file.is_cancelled()).then_some(Frame::Chunk(chunk)))
                    }
                    Err(error) => self.source_failed(&file.entry, file.version, &error).await,
                }
            }
            Work::End { file } => match self.open_file(&file).await {
                Ok(_) => self.end_file(&file).await.map(|()| None),
                Err(error) => self.source_failed(&file.entry, file.version, &error).await,
            },
        }
    }

    async fn open_file(&self, file: &FileWork<S::File>) -> Result<S::File, StorageError> {
        let open = || self.source.open(Arc::clone(&file.entry));
        file.open.get_or_try_init(open).await.cloned()
    }

    /// Tells the receiver that all of a file was read and is of one piece (INT-7).
    async fn end_file(&self, file: &FileWork<S::File>) -> Result<(), SessionError> {
        let Some(root) = lock(&file.tree).root() else { return Ok(()) };
        let confirmed = async {
            let open = self.open_file(file).await?;
            if self.source.known_root(&open).is_some_and(|known| known != root) {
                return Err(StorageError::Corrupt { path: self.source.path(&file.entry) });
            }
            self.source.confirm(open).await
        };
        if let Err(error) = confirmed.await {
            self.source_failed(&file.entry, file.version, &error).await?;
            return Ok(());
        }
        let (entry, version) = (file.entry.id, file.version);
        {
            let mut open = lock(&self.open);
            let Some(known) = open.get_mut(&entry).filter(|known| known.version == version) else {
                return Ok(());
            };
            known.root = Some(root);
        }
        self.say(&Message::FileEnd { entry, version, root })
    }

    async fn read_pack(
        &self,
        number: u64,
        files: Vec<SmallFile>,
    ) -> Result<Option<Frame>, SessionError> {
        let len = crate::protocol::chunk::Pack::table_len(files.len());
        let data: u64 = files.iter().map(|file| file.entry.size()).sum();
        let len = usize::try_from(data).unwrap_or(usize::MAX).saturating_add(len);
        let buffer = self.pool.take(len).await.map_err(no_buffer)?;
        let wanted = files.iter().map(|file| (Arc::clone(&file.entry), file.version)).collect();
        let read = self.source.read_pack(number, wanted, buffer).await;
        {
            let mut open = lock(&self.open);
            for (id, root) in read.roots {
                if let Some(known) = open.get_mut(&id) {
                    known.root = Some(root);
                }
            }
        }
        for (id, error) in read.failed {
            if let Some(file) = files.iter().find(|file| file.entry.id == id) {
                self.source_failed(&file.entry, file.version, &error).await?;
            }
        }
        if read.pack.is_none() {
            self.plan.drop_unit(Unit::Pack(number));
        }
        Ok(read.pack.map(Frame::Pack))
    }

    /// A file could not be read: it is announced anew if it changed, and withdrawn if that does not
    /// help, or cannot (ENTRY-6).
    async fn source_failed(
        &self,
        entry: &Arc<Entry>,
        version: u16,
        error: &StorageError,
    ) -> Result<Option<Frame>, SessionError> {
        let id = entry.id;
        check_there(error)?;
        if !lock(&self.open).get(&id).is_some_and(|known| is_at(known, version)) {
            return Ok(None);
        }
        let is_hopeless = !matches!(error, StorageError::Changed { .. }) || version >= MAX_RESTARTS;
        if is_hopeless {
            self.withdraw(id, error.to_failure())?;
            return Ok(None);
        }
        let now = match self.source.look_again(Arc::clone(entry)).await {
            Ok(now) if self.options.is_too_large(now.size()) => {
                self.withdraw(id, too_large(&self.source.path(&now)))?;
                return Ok(None);
            }
            Ok(now) if !matches!(now.kind, Kind::File(_)) => {
                self.withdraw(id, no_file(&self.source.path(&now)))?;
                return Ok(None);
            }
            Ok(now) => now,
            Err(error) => {
                check_there(&error)?;
                self.withdraw(id, error.to_failure())?;
                return Ok(None);
            }
        };
        self.announce_anew(now, version)?;
        Ok(None)
    }

    /// Says what an entry is now, unless that was done already, or it has ended.
    fn announce_anew(&self, now: Entry, version: u16) -> Result<(), SessionError> {
        let old = {
            let mut open = lock(&self.open);
            // Several channels may find the same change: the first announces it.
            let is_current = |known: &&mut Announced<S::File>| is_at(known, version);
            let Some(known) = open.get_mut(&now.id).filter(is_current) else { return Ok(()) };
            known.version += 1;
            let before = std::mem::replace(&mut known.entry, Arc::new(now.clone()));
            // What was a link had no verdict that could cross with this (ENTRY-16).
            let is_link = matches!(before.kind, Kind::HardLink { .. });
            known.before = (!is_link).then(|| (before, known.root.take()));
            (known.is_placed, known.is_hashing, known.hashed) = (false, false, None);
            known.file.take()
        };
        if let Some(old) = old {
            self.plan.cancel(&old);
        }
        self.say(&Message::Restart { entry: now, version: version + 1 })
    }

    /// Removes what is durably at the other end, if that was asked for (DEL-6).
    async fn remove_sources(&self, durable: bool) -> Result<(), SessionError> {
        let entries = std::mem::take(&mut *lock(&self.removable));
        if entries.is_empty() || self.options.dry_run {
            return Ok(());
        }
        if !durable {
            let text = "no source was removed: the destination does not say that it is durable";
            return self.complain(Complaint::new(Vec::new(), Failure::new(FailureCode::Io, text)));
        }
        for batch in entries.chunks(MAX_REMOVED) {
            let removed = self.source.remove(batch.to_vec()).await;
            for (entry, removed) in batch.iter().zip(removed) {
                if let Err(error) = removed {
                    self.complain(Complaint::new(self.source.path(entry), error.to_failure()))?;
                }
            }
        }
        Ok(())
    }

    /// Something is wrong with an entry, though it is where it is to be: both ends tell.
    fn complain(&self, complaint: Complaint) -> Result<(), SessionError> {
        self.say(&Message::Complaint(complaint.clone()))?;
        self.observer.complain(complaint);
        Ok(())
    }

    /// Compares both ends' counts, and says whether they agree (END-3, END-4).
    async fn agree<R: AsyncRead + Unpin>(
        &self,
        theirs: ReceiverSummary,
        inbox: &mut Inbox<R>,
    ) -> Result<SenderEnd, SessionError> {
        let totals = *lock(&self.totals);
        let agreed = Summary::from(totals) == theirs.summary;
        if agreed {
            self.remove_sources(theirs.durable).await?;
        }
        self.say(&Message::Finish { agreed })?;
        if !agreed {
            return Err(SessionError::mismatch(&totals.into(), &theirs.summary));
        }
        loop {
            match inbox.next().await? {
                Message::Closed => {
                    let ReceiverSummary { durable, deletions, .. } = theirs;
                    return Ok(SenderEnd { totals, durable, deletions });
                }
                Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
                _ => {}
            }
        }
    }
}

/// What the receiver counts.
struct ReceiverSummary {
    summary: Summary,
    durable: bool,
    deletions: Deletions,
}

/// Whether the receiver has said what it wants of this version, and waits for it.
fn is_at<F>(known: &Announced<F>, version: u16) -> bool {
    let has_verdict = known.is_placed || known.is_hashing;
    known.version == version && has_verdict && !known.is_withdrawn
}

enum SendError {
    Channel(TransportError),
    Session(SessionError),
}

fn unknown(id: EntryId) -> SessionError {
    SessionError::violation(format!("the receiver speaks of {id}, which is not open"))
}

/// Where there is no connection to the source any more, nothing else can be read either: the session ends,
/// and the next one goes on.
fn check_there(error: &StorageError) -> Result<(), SessionError> {
    if error.is_gone() { Err(SessionError::Local(error.to_failure())) } else { Ok(()) }
}

fn no_buffer(error: BufferError) -> SessionError {
    match error {
        BufferError::TooLong { .. } => SessionError::bug(error),
        BufferError::Map(_) => SessionError::local(FailureCode::Io, error.to_string()),
    }
}

fn no_file(path: &[u8]) -> Failure {
    let path = crate::protocol::manifest::Escaped(path);
    Failure::new(FailureCode::Changed, format!("{path} is no regular file any more"))
}

pub(super) fn too_large(path: &[u8]) -> Failure {
    let path = crate::protocol::manifest::Escaped(path);
    let text = format!("{path} has too many chunks of this size; choose a larger one with -c");
    Failure::new(FailureCode::Unsupported, text)
}

impl From<&Outcome> for Fate {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done(_) => Self::Done,
            Outcome::Skipped | Outcome::Would(_) | Outcome::Left => Self::Skipped,
            Outcome::Failed(_) => Self::Failed,
        }
    }
}

/// How many sources are removed in one go.
const MAX_REMOVED: usize = 1024;

/// How often a file that changes while it is read is begun anew (ENTRY-6).
pub(super) const MAX_RESTARTS: u16 = 2;

/// How long data channels may take to end when there is nothing left to send.
const STREAMS_PATIENCE: Duration = Duration::from_secs(2);
