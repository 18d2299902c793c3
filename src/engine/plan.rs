//! Which unit goes next, and to whom: whoever asks first.
//!
//! Channels pull; nothing is dealt out in advance, so a slow channel takes fewer units and none
//! waits for another. Files are cut lazily, one chunk at a time: what is queued is proportional to
//! the files under way, not to their chunks. A unit stays assigned to its channel until the receiver
//! has acknowledged it; a channel that is lost gives its units back, and nothing else is sent again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OnceCell};

use crate::protocol::chunk::{ChunkSize, EntryId, MAX_PACK_MEMBERS, Pack};
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::message::{Entry, Unit};
use crate::protocol::tree::RootBuilder;

/// The units that no channel has taken yet, and those that are under way.
#[derive(Debug)]
pub struct Plan<F> {
    state: Mutex<State<F>>,
    changed: Notify,
    /// How long a pack may be with its table, in bytes.
    max_pack: usize,
}

/// One thing to be sent.
#[derive(Debug)]
pub enum Work<F> {
    Chunk {
        file: Arc<FileWork<F>>,
        index: u64,
    },
    Pack {
        number: u64,
        files: Vec<SmallFile>,
    },
    /// Nothing is to be sent of this file but word that it is complete: the receiver has it all.
    End {
        file: Arc<FileWork<F>>,
    },
}

impl<F> Clone for Work<F> {
    fn clone(&self) -> Self {
        match self {
            Self::Chunk { file, index } => Self::Chunk { file: Arc::clone(file), index: *index },
            Self::Pack { number, files } => Self::Pack { number: *number, files: files.clone() },
            Self::End { file } => Self::End { file: Arc::clone(file) },
        }
    }
}

/// A file that travels in a pack.
#[derive(Clone, Debug)]
pub struct SmallFile {
    pub entry: Arc<Entry>,
    pub version: u16,
}

/// A file that travels in chunks.
#[derive(Debug)]
pub struct FileWork<F> {
    pub entry: Arc<Entry>,
    pub version: u16,
    pub chunk_size: ChunkSize,
    /// Opened by whoever reads the first chunk.
    pub open: OnceCell<F>,
    /// The values of the chunks that were read, or that the receiver has.
    pub tree: Mutex<RootBuilder>,
    /// Set once the file is restarted, withdrawn or over: nothing more of it is to be sent.
    pub cancelled: AtomicBool,
}

impl<F> FileWork<F> {
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn unit(&self, index: u64) -> Unit {
        let offset = index * self.chunk_size.bytes();
        Unit::Chunk { entry: self.entry.id, version: self.version, offset }
    }

    fn size(&self) -> u64 {
        self.entry.size()
    }
}

#[derive(Debug)]
struct State<F> {
    /// What was given back, or asked for again: before anything else.
    again: VecDeque<Work<F>>,
    /// Files of which chunks are left, the largest first.
    files: BTreeMap<FileKey, Cutting<F>>,
    /// With a single channel, the file that was cut last: it is finished before anything else is begun,
    /// so that nobody waits for the rest of it.
    begun: Option<FileKey>,
    is_single: bool,
    small: VecDeque<SmallFile>,
    next_pack: u64,
    under_way: HashMap<Unit, Assigned<F>>,
    /// How often a unit did not match its digest.
    mismatches: HashMap<Unit, u8>,
    closed: bool,
}

/// The largest first.
type FileKey = (Reverse<u64>, EntryId);

/// A file that is being cut, and the next chunk to look at.
type Cutting<F> = (Arc<FileWork<F>>, u64);

#[derive(Debug)]
struct Assigned<F> {
    to: ChannelSlot,
    work: Work<F>,
}

/// What became of asking for a unit again.
#[derive(Debug)]
pub enum Again {
    Queued,
    /// Nobody has it under way: it was acknowledged, cancelled or never sent.
    Unknown,
    /// It has failed too often (INT-8): these entries cannot be transferred.
    GivenUp(Vec<EntryId>),
}

impl<F> Plan<F> {
    pub fn new(max_pack: usize) -> Self {
        let state = State {
            again: VecDeque::new(),
            files: BTreeMap::new(),
            begun: None,
            is_single: false,
            small: VecDeque::new(),
            next_pack: 1,
            under_way: HashMap::new(),
            mismatches: HashMap::new(),
            closed: false,
        };
        Self { state: Mutex::new(state), changed: Notify::new(), max_pack }
    }

    /// The same for a single channel.
    #[must_use]
    pub fn for_single(self, is_single: bool) -> Self {
        self.lock().is_single = is_single;
        self
    }

    /// Adds a file that the receiver wants in a pack.
    pub fn add_small(&self, file: SmallFile) {
        self.lock().small.push_back(file);
        self.changed.notify_one();
    }

    /// Adds a file that the receiver wants in chunks: those that its tree has no values of.
    pub fn add_file(&self, file: Arc<FileWork<F>>) {
        let is_complete = lock(&file.tree).missing() == 0;
        let mut state = self.lock();
        if is_complete {
            state.again.push_back(Work::End { file });
        } else {
            state.files.insert((Reverse(file.size()), file.entry.id), (file, 0));
        }
        drop(state);
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    /// Waits for the next unit for this channel. `None` once the plan is closed and empty.
    pub async fn next(&self, channel: ChannelSlot) -> Option<Work<F>> {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(work) = state.pick(channel, self.max_pack) {
                    let more = state.has_more();
                    drop(state);
                    if more {
                        // Wakes are not counted one by one: whoever took something passes it on.
                        self.changed.notify_one();
                    }
                    return Some(work);
                }
                if state.closed {
                    drop(state);
                    self.changed.notify_waiters();
                    return None;
                }
            }
            changed.await;
        }
    }

    /// The receiver has written this unit: forget it. Returns whether it was under way.
    pub fn written(&self, unit: Unit) -> bool {
        let mut state = self.lock();
        state.mismatches.remove(&unit);
        state.under_way.remove(&unit).is_some()
    }

    /// The receiver asks for a unit again, because it did not match its digest.
    pub fn send_again(&self, unit: Unit, packed: Option<SmallFile>) -> Again {
        let mut state = self.lock();
        let is_known = packed.is_some() || state.under_way.contains_key(&unit);
        if !is_known {
            // Nothing is kept of what a peer makes up.
            return Again::Unknown;
        }
        let mismatches = state.mismatches.entry(unit).or_insert(0);
        *mismatches = mismatches.saturating_add(1);
        let is_hopeless = *mismatches > MAX_MISMATCHES;
        let entries = |work: &Work<F>| match work {
            Work::Chunk { file, .. } | Work::End { file } => vec![file.entry.id],
            Work::Pack { files, .. } => files.iter().map(|file| file.entry.id).collect(),
        };
        let again = match (unit, packed) {
            (Unit::Packed { entry, .. }, Some(_)) if is_hopeless => Again::GivenUp(vec![entry]),
            (Unit::Packed { .. }, Some(file)) => {
                state.small.push_front(file);
                Again::Queued
            }
            (Unit::Packed { .. }, None) => Again::Unknown,
            (Unit::Chunk { .. } | Unit::Pack(_), _) => match state.under_way.remove(&unit) {
                None => Again::Unknown,
                Some(assigned) if is_hopeless => Again::GivenUp(entries(&assigned.work)),
                Some(assigned) => {
                    state.again.push_back(assigned.work);
                    Again::Queued
                }
            },
        };
        drop(state);
        self.changed.notify_one();
        again
    }

    /// A channel is lost: what it had under way goes to the others.
    pub fn channel_lost(&self, channel: ChannelSlot) {
        let mut state = self.lock();
        if state.closed {
            // Every entry has ended: what was not acknowledged yet is of no use any more.
            return;
        }
        let lost: Vec<Unit> = state
            .under_way
            .iter()
            .filter(|(_, assigned)| assigned.to == channel)
            .map(|(unit, _)| *unit)
            .collect();
        for unit in lost {
            if let Some(assigned) = state.under_way.remove(&unit) {
                state.again.push_front(assigned.work);
            }
        }
        drop(state);
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    /// Takes a unit back that its channel could not read.
    pub fn drop_unit(&self, unit: Unit) {
        self.lock().under_way.remove(&unit);
    }

    /// Forgets all of an entry that travels in chunks: it is over, or begins anew.
    pub fn cancel(&self, file: &FileWork<F>) {
        file.cancelled.store(true, Ordering::Relaxed);
        let id = file.entry.id;
        let mut state = self.lock();
        state.files.remove(&(Reverse(file.size()), id));
        state
            .under_way
            .retain(|unit, _| !matches!(unit, Unit::Chunk { entry, .. } if *entry == id));
        state
            .mismatches
            .retain(|unit, _| !matches!(unit, Unit::Chunk { entry, .. } if *entry == id));
    }

    /// Nothing will be added any more: channels that find nothing end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<F>> {
        lock(&self.state)
    }
}

impl<F> State<F> {
    fn pick(&mut self, channel: ChannelSlot, max_pack: usize) -> Option<Work<F>> {
        let work = self.pick_again().or_else(|| self.pick_begun()).or_else(|| {
            // A quarter of the channels look at packs first, so that neither kind starves (R18).
            if channel.channel.is_multiple_of(4) {
                self.pick_pack(max_pack).or_else(|| self.pick_chunk())
            } else {
                self.pick_chunk().or_else(|| self.pick_pack(max_pack))
            }
        })?;
        let unit = match &work {
            Work::Chunk { file, index } => file.unit(*index),
            Work::Pack { number, .. } => Unit::Pack(*number),
            Work::End { .. } => return Some(work),
        };
        self.under_way.insert(unit, Assigned { to: channel, work: work.clone() });
        Some(work)
    }

    fn pick_again(&mut self) -> Option<Work<F>> {
        while let Some(work) = self.again.pop_front() {
            match &work {
                Work::Chunk { file, .. } | Work::End { file } if file.is_cancelled() => {}
                Work::Chunk { .. } | Work::End { .. } | Work::Pack { .. } => return Some(work),
            }
        }
        None
    }

    fn pick_begun(&mut self) -> Option<Work<F>> {
        let key = self.begun.filter(|_| self.is_single)?;
        let work = self.cut(key);
        if work.is_none() {
            self.begun = None;
        }
        work
    }

    fn pick_chunk(&mut self) -> Option<Work<F>> {
        while let Some(key) = self.files.first_key_value().map(|(key, _)| *key) {
            if let Some(work) = self.cut(key) {
                self.begun = Some(key);
                return Some(work);
            }
        }
        None
    }

    /// Takes the next chunk of a file, and the file away with its last one.
    fn cut(&mut self, key: FileKey) -> Option<Work<F>> {
        let (file, cursor) = self.files.get_mut(&key)?;
        let index = lock(&file.tree).next_missing(*cursor);
        let Some(index) = index.filter(|_| !file.is_cancelled()) else {
            self.files.remove(&key);
            return None;
        };
        *cursor = index + 1;
        let file = Arc::clone(file);
        if *cursor >= file.chunk_size.count(file.size()) {
            self.files.remove(&key);
        }
        Some(Work::Chunk { file, index })
    }

    fn pick_pack(&mut self, max_pack: usize) -> Option<Work<F>> {
        let mut files = Vec::new();
        let mut data = 0;
        while let Some(next) = self.small.front() {
            let size = usize::try_from(next.entry.size()).unwrap_or(usize::MAX);
            let len = Pack::table_len(files.len() + 1).saturating_add(data).saturating_add(size);
            let is_full = len > max_pack || data >= PACK_TARGET || files.len() >= PACK_FILES;
            if is_full && !files.is_empty() {
                break;
            }
            data += size;
            files.extend(self.small.pop_front());
        }
        if files.is_empty() {
            return None;
        }
        let number = self.next_pack;
        self.next_pack += 1;
        Some(Work::Pack { number, files })
    }

    fn has_more(&self) -> bool {
        !self.again.is_empty() || !self.files.is_empty() || !self.small.is_empty()
    }
}

/// A lock on something that is whole after every operation, so that a panic elsewhere does not
/// spoil it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much data makes a pack, in bytes, where there is enough.
const PACK_TARGET: usize = 1 << 20;

/// How many files make a pack, where there are enough.
const PACK_FILES: usize = 512;

const _: () = assert!(PACK_FILES <= MAX_PACK_MEMBERS as usize);

/// How often a unit is sent again because it did not match its digest (INT-8).
const MAX_MISMATCHES: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::manifest::Name;
    use crate::protocol::message::{FileKind, Kind, Metadata, Stamp};

    const SLOT: ChannelSlot = ChannelSlot { channel: 1, generation: 1 };
    const PACKER: ChannelSlot = ChannelSlot { channel: 0, generation: 1 };

    fn entry(id: u64, size: u64) -> Arc<Entry> {
        Arc::new(Entry {
            id: EntryId(id),
            parent: EntryId::ROOT,
            name: Name::new(format!("f{id}").as_bytes()).unwrap(),
            kind: Kind::File(FileKind { size, stamp: Stamp::default() }),
            is_linked: false,
            metadata: Metadata::default(),
        })
    }

    fn file(id: u64, chunks: u64) -> Arc<FileWork<()>> {
        let chunk_size = ChunkSize::MIN;
        Arc::new(FileWork {
            entry: entry(id, chunks * chunk_size.bytes()),
            version: 0,
            chunk_size,
            open: OnceCell::new(),
            tree: Mutex::new(RootBuilder::new(chunks)),
            cancelled: AtomicBool::new(false),
        })
    }

    fn small(id: u64) -> SmallFile {
        SmallFile { entry: entry(id, 10), version: 0 }
    }

    async fn next(plan: &Plan<()>, slot: ChannelSlot) -> (u64, u64) {
        match plan.next(slot).await.unwrap() {
            Work::Chunk { file, index } => (file.entry.id.0, index),
            Work::Pack { files, .. } => (0, files.len() as u64),
            Work::End { file } => (file.entry.id.0, u64::MAX),
        }
    }

    #[tokio::test]
    async fn the_largest_file_first_and_packs_for_some_channels() {
        let plan = Plan::new(1 << 20);
        plan.add_file(file(1, 1));
        plan.add_file(file(2, 2));
        plan.add_small(small(3));
        plan.add_small(small(4));
        assert_eq!(next(&plan, SLOT).await, (2, 0));
        assert_eq!(next(&plan, PACKER).await, (0, 2));
        assert_eq!(next(&plan, PACKER).await, (2, 1));
        assert_eq!(next(&plan, SLOT).await, (1, 0));
        plan.close();
        assert!(plan.next(SLOT).await.is_none());
    }

    /// R20: and no other channel's.
    #[tokio::test]
    async fn a_lost_channel_gives_back_what_was_not_acknowledged() {
        let plan = Plan::new(1 << 20);
        plan.add_file(file(1, 4));
        let other = ChannelSlot { channel: 2, generation: 1 };
        assert_eq!(next(&plan, SLOT).await, (1, 0));
        assert_eq!(next(&plan, other).await, (1, 1));
        assert_eq!(next(&plan, SLOT).await, (1, 2));
        assert!(plan.written(Unit::Chunk { entry: EntryId(1), version: 0, offset: 0 }));
        plan.channel_lost(SLOT);
        assert_eq!(next(&plan, other).await, (1, 2));
        assert_eq!(next(&plan, other).await, (1, 3));
    }

    /// INT-8.
    #[tokio::test]
    async fn a_unit_is_sent_three_times_more_and_then_given_up() {
        let plan = Plan::new(1 << 20);
        plan.add_file(file(1, 1));
        let unit = Unit::Chunk { entry: EntryId(1), version: 0, offset: 0 };
        for _ in 0..3 {
            assert_eq!(next(&plan, SLOT).await, (1, 0));
            assert!(matches!(plan.send_again(unit, None), Again::Queued));
        }
        assert_eq!(next(&plan, SLOT).await, (1, 0));
        assert!(matches!(plan.send_again(unit, None), Again::GivenUp(ids) if ids == [EntryId(1)]));
        assert!(matches!(plan.send_again(unit, None), Again::Unknown));
    }

    #[tokio::test]
    async fn resumed_chunks_are_not_sent_and_a_complete_file_is_only_ended() {
        let plan = Plan::new(1 << 20);
        let partial = file(1, 3);
        partial.tree.lock().unwrap().insert(1, crate::protocol::chunk::Digest::default());
        plan.add_file(partial);
        let complete = file(2, 1);
        complete.tree.lock().unwrap().insert(0, crate::protocol::chunk::Digest::default());
        plan.add_file(complete);
        assert_eq!(next(&plan, SLOT).await, (2, u64::MAX));
        assert_eq!(next(&plan, SLOT).await, (1, 0));
        assert_eq!(next(&plan, SLOT).await, (1, 2));
    }

    #[tokio::test]
    async fn a_cancelled_file_is_not_sent_on() {
        let plan = Plan::new(1 << 20);
        let (one, two) = (file(1, 3), file(2, 1));
        plan.add_file(Arc::clone(&one));
        plan.add_file(two);
        assert_eq!(next(&plan, SLOT).await, (1, 0));
        plan.cancel(&one);
        plan.channel_lost(SLOT);
        assert_eq!(next(&plan, SLOT).await, (2, 0));
    }

    #[tokio::test]
    async fn packs_hold_what_fits_and_at_least_one_file() {
        let plan: Plan<()> = Plan::new(Pack::table_len(2) + 20);
        (1..=3).for_each(|id| plan.add_small(small(id)));
        plan.add_small(SmallFile { entry: entry(4, 5000), version: 0 });
        assert_eq!(next(&plan, PACKER).await, (0, 2));
        assert_eq!(next(&plan, PACKER).await, (0, 1));
        assert_eq!(next(&plan, PACKER).await, (0, 1));
    }
}
