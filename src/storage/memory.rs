//! An endpoint in memory, for tests of what is written above endpoints.
//!
//! In: [`Properties`], as the test wants them. Out: an [`Endpoint`] that keeps everything until its
//! last handle is gone, so that another handle is what a later process would find. Operations can
//! be counted, held up, and made to fail.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::remote::{
    Answer, Class, Endpoint, Fault, Keeps, KeepsRoot, Kept, Key, Listed, Parts, Properties,
    Replaces, Thing, ThingKind, implied, pieces,
};
use super::{Left, Receipt, Remembers, Token};
use crate::protocol::chunk::{ByteRange, ChunkData, Digest};
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{Changes, Mode};

/// Like a file server: directories, symlinks, times and modes, and nothing is forgotten.
pub const FILES: Properties = Properties {
    name: "memory",
    replaces: Replaces::Atomically,
    remembers: Remembers::Always,
    syncs: true,
    lasts: true,
    keeps: Keeps {
        times: Some(Duration::from_nanos(1)),
        time_range: (i64::MIN, i64::MAX),
        modes: true,
        symlinks: true,
        directories: true,
        directory_times: true,
        roots: KeepsRoot::ToTheEnd,
        any_bytes: true,
    },
    max_size: u64::MAX,
    parts: Parts { min_len: 1, max_count: u64::MAX, in_order: false },
    requests: 8,
    lists_all: true,
    copies: true,
    encrypts: true,
};

/// Like SFTP: whole seconds, no roots, and what was not synced has to be read again.
pub const SERVER: Properties = Properties {
    remembers: Remembers::Reread,
    keeps: Keeps {
        times: Some(Duration::from_secs(1)),
        time_range: (0, u32::MAX as i64),
        roots: KeepsRoot::Never,
        ..FILES.keeps
    },
    copies: false,
    encrypts: true,
    ..FILES
};

/// Like the simplest of object stores: no directories, times of its own only, and a root if it is
/// known when a file is begun; a listing does not tell it.
pub const OBJECTS: Properties = Properties {
    keeps: Keeps {
        times: None,
        modes: false,
        symlinks: false,
        directories: false,
        directory_times: false,
        roots: KeepsRoot::FromTheBeginning,
        any_bytes: false,
        ..FILES.keeps
    },
    lists_all: false,
    ..FILES
};

/// Like an object store that keeps times and modes beside a file, of which a listing tells nothing.
pub const STORE: Properties = Properties {
    keeps: Keeps { times: FILES.keeps.times, modes: true, ..OBJECTS.keeps },
    ..OBJECTS
};

/// A place in memory. A clone is another handle on it.
#[derive(Clone, Debug)]
pub struct Memory {
    properties: Properties,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The operations that wait until they are let go.
    held: watch::Sender<BTreeSet<Step>>,
    /// Whose turn it is: requests wait for each other, as they do for a credential or a connection.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    things: BTreeMap<Key, Stored>,
    uploads: HashMap<u64, Coming>,
    /// Told beside what is there, whatever is listed.
    planted: Vec<Listed>,
    faults: Vec<Planned>,
    counts: HashMap<Step, u64>,
    /// Rises with every change, and is the time.
    clock: i64,
    /// How many finds a listing tells of at once, if not all.
    page: Option<usize>,
}

#[derive(Clone, Debug)]
struct Stored {
    thing: Thing,
    data: Bytes,
}

#[derive(Debug)]
struct Coming {
    key: Key,
    size: u64,
    /// As it was told at the beginning.
    root: Option<Digest>,
    /// It has one part, and so is begun when it is finished.
    comes_whole: bool,
    /// By their numbers: where they begin, what they are, and whether they were synced.
    parts: BTreeMap<u64, (u64, Bytes, bool)>,
}

#[derive(Debug)]
struct Planned {
    step: Step,
    key: Option<Key>,
    fault: Fault,
    /// How many go well before.
    after: u64,
    times: u64,
}

/// An operation of an endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Step {
    Stat,
    List,
    Open,
    Read,
    Confirm,
    Put,
    Begin,
    Resume,
    Write,
    Reread,
    Sync,
    Finish,
    Abandon,
    MakeDirectory,
    MakeSymlink,
    Set,
    Remove,
    Copy,
}

/// A file that is being read.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    key: Key,
    tag: Option<Box<[u8]>>,
}

/// A file that is coming.
#[derive(Clone, Debug)]
pub struct MemoryUpload {
    number: u64,
    key: Key,
}

impl Memory {
    pub fn new(properties: Properties) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            held: watch::Sender::new(BTreeSet::default()),
            turn: tokio::sync::Mutex::default(),
        };
        Self { properties, shared: Arc::new(shared) }
    }

    /// Another handle on the same things, to which the endpoint is like this.
    #[must_use]
    pub fn with(&self, properties: Properties) -> Self {
        Self { properties, shared: Arc::clone(&self.shared) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an operation fail so often: with this key, or with any.
    pub fn fail(&self, step: Step, key: Option<Key>, fault: Fault, times: u64) {
        self.state().faults.push(Planned { step, key, fault, after: 0, times });
    }

    /// Lets an operation fail once, after so many more that do not.
    pub fn fail_after(&self, step: Step, after: u64, fault: Fault) {
        self.state().faults.push(Planned { step, key: None, fault, after, times: 1 });
    }

    /// Lets operations of this sort wait from now on.
    pub fn hold(&self, step: Step) {
        self.shared.held.send_modify(|held| {
            held.insert(step);
        });
    }

    /// Lets them go on.
    pub fn release(&self, step: Step) {
        self.shared.held.send_modify(|held| {
            held.remove(&step);
        });
    }

    /// How often an operation was asked for.
    pub fn count(&self, step: Step) -> u64 {
        self.state().counts.get(&step).copied().unwrap_or_default()
    }

    /// Tells of this in every listing, whatever is there.
    pub fn plant(&self, listed: Listed) {
        self.state().planted.push(listed);
    }

    /// Tells of no more than so many finds at once.
    pub fn set_page(&self, finds: usize) {
        self.state().page = Some(finds.max(1));
    }

    /// Puts a file there as somebody else would.
    pub fn write_file(&self, key: &Key, data: &[u8], kept: &Kept) {
        let mut state = self.state();
        state.insert(key, Bytes::copy_from_slice(data), kept, &self.properties);
    }

    /// What is under a key, and its data.
    pub fn get(&self, key: &Key) -> Option<(Thing, Bytes)> {
        self.state().things.get(key).map(|stored| (stored.thing.clone(), stored.data.clone()))
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<Key> {
        self.state().things.keys().cloned().collect()
    }

    /// How many files are coming.
    pub fn uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// Loses a part of whatever is coming under a key, or all that was not synced.
    pub fn lose_part(&self, key: &Key, lost: Option<u64>) {
        let mut state = self.state();
        for upload in state.uploads.values_mut().filter(|upload| upload.key == *key) {
            upload.parts.retain(|number, (_, _, is_synced)| match lost {
                Some(lost) => *number != lost,
                None => *is_synced,
            });
        }
    }

    /// Counts an operation, waits while it is held up, and fails if that is planned.
    async fn step(&self, step: Step, key: &Key) -> Answer<()> {
        *self.state().counts.entry(step).or_default() += 1;
        {
            let _turn = self.shared.turn.lock().await;
            tokio::task::yield_now().await;
        }
        let mut held = self.shared.held.subscribe();
        // The sender lives as long as this handle.
        let _ = held.wait_for(|held| !held.contains(&step)).await;
        let mut state = self.state();
        let is_meant = |planned: &&mut Planned| {
            planned.step == step
                && planned.times > 0
                && planned.key.as_ref().is_none_or(|meant| meant == key)
        };
        match state.faults.iter_mut().find(is_meant) {
            Some(planned) if planned.after > 0 => {
                planned.after -= 1;
                Ok(())
            }
            Some(planned) => {
                planned.times -= 1;
                Err(planned.fault.clone())
            }
            None => Ok(()),
        }
    }

    fn has_directories(&self) -> bool {
        self.properties.keeps.directories
    }
}

impl State {
    fn now(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp::new(EPOCH + self.clock, 0).unwrap_or_default()
    }

    fn insert(&mut self, key: &Key, data: Bytes, kept: &Kept, properties: &Properties) {
        let keeps = properties.keeps;
        let now = self.now();
        let thing = Thing {
            kind: ThingKind::File,
            size: data.len() as u64,
            mtime: keeps.times.map(|step| truncate(kept.mtime.unwrap_or(now), step)),
            modified: Some(now),
            mode: keeps.modes.then(|| kept.mode.unwrap_or(Mode::from_raw(0o600))),
            owners: None,
            tag: Some(now.seconds.to_le_bytes().into()),
            root: kept.root.filter(|_| keeps.roots != KeepsRoot::Never),
            target: None,
        };
        self.make_parents(key, keeps.directories);
        self.things.insert(key.clone(), Stored { thing, data });
    }

    /// For what somebody else puts there.
    fn make_parents(&mut self, key: &Key, has_directories: bool) {
        let mut above = key.parent().filter(|_| has_directories);
        while let Some(parent) = above.filter(|parent| !parent.is_top()) {
            above = parent.parent();
            if !self.things.contains_key(&parent) {
                let now = self.now();
                self.things.insert(parent, directory(now));
            }
        }
    }

    fn has_any_below(&self, key: &Key) -> bool {
        self.things.keys().any(|other| other.below(key).is_some())
    }

    /// Whether something can be put under a key.
    fn check_parent(&self, key: &Key, has_directories: bool) -> Answer<()> {
        let parent = key.parent().filter(|parent| has_directories && !parent.is_top());
        let Some(parent) = parent else { return Ok(()) };
        match self.things.get(&parent).map(|stored| stored.thing.kind) {
            Some(ThingKind::Directory) => Ok(()),
            Some(_) => Err(Fault::new(Class::Other, "what it is in is no directory")),
            None => Err(Fault::new(Class::Missing, "the directory is not there")),
        }
    }

    fn check_replaced(&self, key: &Key) -> Answer<()> {
        match self.things.get(key).map(|stored| stored.thing.kind) {
            Some(ThingKind::Directory) => Err(Fault::new(Class::Exists, "it is a directory")),
            _ => Ok(()),
        }
    }

    fn upload(&mut self, number: u64) -> Answer<&mut Coming> {
        self.uploads.get_mut(&number).ok_or_else(|| Fault::new(Class::Missing, "no such upload"))
    }

    fn remove(&mut self, key: &Key, kind: ThingKind, has_directories: bool) -> Answer<()> {
        if kind == ThingKind::Directory && !has_directories {
            return Ok(());
        }
        if kind == ThingKind::Directory && self.has_any_below(key) {
            return Err(Fault::new(Class::Other, "the directory is not empty"));
        }
        match self.things.remove(key) {
            None if has_directories => Err(missing()),
            // Object stores do not tell whether there was anything.
            Some(_) | None => Ok(()),
        }
    }
}

impl Endpoint for Memory {
    type Open = MemoryFile;
    type Upload = MemoryUpload;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn shown(&self, key: &Key) -> Vec<u8> {
        [&b"memory://"[..], key.as_bytes()].concat()
    }

    async fn stat(&self, key: &Key) -> Answer<Option<Thing>> {
        self.step(Step::Stat, key).await?;
        let state = self.state();
        if let Some(stored) = state.things.get(key) {
            return Ok(Some(stored.thing.clone()));
        }
        let is_directory = key.is_top() || !self.has_directories() && state.has_any_below(key);
        Ok(is_directory.then(implied))
    }

    async fn list(
        &self,
        directory: &Key,
        deep: bool,
        found: flume::Sender<Vec<Listed>>,
    ) -> Answer<()> {
        self.step(Step::List, directory).await?;
        let pages: Vec<Vec<Listed>> = {
            let state = self.state();
            let is_there = directory.is_top()
                || state.things.get(directory).is_some_and(|it| is_directory(&it.thing))
                || !self.has_directories() && state.has_any_below(directory);
            if !is_there {
                return Err(missing());
            }
            let mut listed = Vec::new();
            let mut prefixes = BTreeSet::new();
            for (key, stored) in &state.things {
                let Some(below) = key.below(directory) else { continue };
                let slash = below.iter().position(|byte| *byte == b'/').filter(|_| !deep);
                let Some(slash) = slash else {
                    listed.push(Listed::Thing(key.clone(), self.as_listed(&stored.thing)));
                    continue;
                };
                let Some(name) = below.get(..slash).filter(|_| !self.has_directories()) else {
                    continue;
                };
                let prefix = directory.join(name)?;
                if prefixes.insert(prefix.clone()) {
                    listed.push(Listed::Thing(prefix, implied()));
                }
            }
            listed.extend(state.planted.iter().cloned());
            let page = state.page.unwrap_or(1000);
            listed.chunks(page).map(<[Listed]>::to_vec).collect()
        };
        for (number, page) in pages.into_iter().enumerate() {
            // Every page but the first is a request of its own.
            if number > 0 {
                self.step(Step::List, directory).await?;
            }
            if found.send_async(page).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn open(&self, key: &Key, thing: &Thing) -> Answer<MemoryFile> {
        self.step(Step::Open, key).await?;
        let state = self.state();
        let stored = state.things.get(key).ok_or_else(missing)?;
        if stored.thing.tag != thing.tag {
            return Err(changed());
        }
        Ok(MemoryFile { key: key.clone(), tag: thing.tag.clone() })
    }

    async fn read(&self, file: &MemoryFile, offset: u64, into: &mut [u8]) -> Answer<()> {
        self.step(Step::Read, &file.key).await?;
        let state = self.state();
        let stored = state.things.get(&file.key).ok_or_else(changed)?;
        if stored.thing.tag != file.tag {
            return Err(changed());
        }
        let start = usize::try_from(offset).map_err(|_| changed())?;
        let end = start.checked_add(into.len()).ok_or_else(changed)?;
        into.copy_from_slice(stored.data.get(start..end).ok_or_else(changed)?);
        Ok(())
    }

    async fn confirm(&self, file: &MemoryFile) -> Answer<bool> {
        self.step(Step::Confirm, &file.key).await?;
        Ok(self.state().things.get(&file.key).is_some_and(|stored| stored.thing.tag == file.tag))
    }

    async fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
        self.step(Step::Put, key).await?;
        let mut state = self.state();
        state.check_parent(key, self.has_directories())?;
        state.check_replaced(key)?;
        // What is sliced from a larger buffer must not hold that.
        state.insert(key, Bytes::copy_from_slice(&data), kept, &self.properties);
        Ok(())
    }

    async fn begin(&self, key: &Key, size: u64, parts: u64, kept: &Kept) -> Answer<MemoryUpload> {
        self.step(Step::Begin, key).await?;
        let mut state = self.state();
        state.check_parent(key, self.has_directories())?;
        state.clock += 1;
        let number = state.clock.unsigned_abs();
        let coming = Coming {
            key: key.clone(),
            size,
            root: kept.root.filter(|_| parts > 1),
            comes_whole: parts <= 1,
            parts: BTreeMap::new(),
        };
        state.uploads.insert(number, coming);
        Ok(MemoryUpload { number, key: key.clone() })
    }

    fn token(&self, upload: &MemoryUpload) -> Token {
        upload.number.into()
    }

    async fn resume(
        &self,
        key: &Key,
        size: u64,
        left: &Left,
    ) -> Answer<Option<(MemoryUpload, Vec<u64>)>> {
        self.step(Step::Resume, key).await?;
        let state = self.state();
        let Some(number) = left.token.number() else { return Ok(None) };
        let is_it = |upload: &&Coming| upload.key == *key && upload.size == size;
        let Some(upload) = state.uploads.get(&number).filter(is_it) else { return Ok(None) };
        let is_lost = |(number, receipt): &&(u64, Receipt)| {
            upload.parts.get(number).is_none_or(|(_, data, _)| self.receipt(data) != *receipt)
        };
        let lost = left.receipts.iter().filter(is_lost).map(|(number, _)| *number).collect();
        Ok(Some((MemoryUpload { number, key: key.clone() }, lost)))
    }

    async fn write(
        &self,
        upload: &MemoryUpload,
        number: u64,
        range: ByteRange,
        data: ChunkData,
    ) -> Answer<Receipt> {
        self.step(Step::Write, &upload.key).await?;
        let data = Bytes::from(pieces(range, &data).concat());
        let receipt = self.receipt(&data);
        let is_synced = self.properties.remembers != Remembers::Reread;
        let mut state = self.state();
        let coming = state.upload(upload.number)?;
        coming.parts.insert(number, (range.offset(), data, is_synced));
        Ok(receipt)
    }

    async fn reread(&self, upload: &MemoryUpload, offset: u64, into: &mut [u8]) -> Answer<()> {
        self.step(Step::Reread, &upload.key).await?;
        if self.properties.remembers != Remembers::Reread {
            return Err(Fault::new(Class::Unsupported, "what was written cannot be read yet"));
        }
        let mut state = self.state();
        let coming = state.upload(upload.number)?;
        into.fill(0);
        for (start, data, _) in coming.parts.values() {
            for (at, byte) in (*start..).zip(data) {
                let place = at.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
                if let Some(place) = place.and_then(|at| into.get_mut(at)) {
                    *place = *byte;
                }
            }
        }
        Ok(())
    }

    async fn sync(&self, upload: &MemoryUpload) -> Answer<()> {
        self.step(Step::Sync, &upload.key).await?;
        let mut state = self.state();
        for part in state.upload(upload.number)?.parts.values_mut() {
            part.2 = true;
        }
        Ok(())
    }

    async fn finish(
        &self,
        upload: MemoryUpload,
        key: &Key,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        self.step(Step::Finish, key).await?;
        let mut state = self.state();
        state.check_replaced(key)?;
        let coming = state.upload(upload.number)?;
        let mut data = Vec::new();
        for (number, (start, part, _)) in &coming.parts {
            let receipt = receipts.iter().find(|(other, _)| other == number);
            let is_next = *start == data.len() as u64;
            if !is_next || receipt.is_none_or(|(_, receipt)| *receipt != self.receipt(part)) {
                return Err(Fault::new(Class::Violation, "these are not the parts that were sent"));
            }
            data.extend_from_slice(part);
        }
        if data.len() as u64 != coming.size || receipts.len() != coming.parts.len() {
            return Err(Fault::new(Class::Violation, "parts are missing"));
        }
        let root = match self.properties.keeps.roots {
            KeepsRoot::FromTheBeginning if !coming.comes_whole => coming.root,
            KeepsRoot::Never | KeepsRoot::FromTheBeginning | KeepsRoot::ToTheEnd => kept.root,
        };
        state.uploads.remove(&upload.number);
        state.insert(key, data.into(), &Kept { root, ..*kept }, &self.properties);
        Ok(())
    }

    async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
        self.step(Step::Abandon, key).await?;
        let mut state = self.state();
        if let Some(number) = token.number()
            && state.uploads.get(&number).is_some_and(|upload| upload.key == *key)
        {
            state.uploads.remove(&number);
        }
        Ok(())
    }

    async fn make_directory(&self, key: &Key) -> Answer<()> {
        self.step(Step::MakeDirectory, key).await?;
        if !self.has_directories() {
            return Ok(());
        }
        let mut state = self.state();
        state.check_parent(key, true)?;
        match state.things.get(key).map(|stored| stored.thing.kind) {
            Some(ThingKind::Directory) => Ok(()),
            Some(_) => Err(Fault::new(Class::Exists, "something else has this name")),
            None => {
                let now = state.now();
                state.things.insert(key.clone(), directory(now));
                Ok(())
            }
        }
    }

    async fn make_symlink(&self, key: &Key, target: &[u8], kept: &Kept) -> Answer<()> {
        self.step(Step::MakeSymlink, key).await?;
        if !self.properties.keeps.symlinks {
            return Err(Fault::new(Class::Unsupported, "symlinks are not kept here"));
        }
        let mut state = self.state();
        state.check_parent(key, self.has_directories())?;
        match state.things.get(key).map(|stored| stored.thing.kind) {
            Some(ThingKind::Symlink) | None => {}
            Some(_) => return Err(Fault::new(Class::Exists, "something else has this name")),
        }
        let now = state.now();
        let mtime = kept.mtime.or(Some(now));
        let thing = Thing {
            kind: ThingKind::Symlink,
            mtime,
            modified: Some(now),
            target: Some(target.into()),
            ..implied()
        };
        state.things.insert(key.clone(), Stored { thing, data: Bytes::new() });
        Ok(())
    }

    async fn set(&self, key: &Key, _: &Thing, kept: &Kept, changes: Changes) -> Answer<()> {
        self.step(Step::Set, key).await?;
        let keeps = self.properties.keeps;
        let mut state = self.state();
        let stored = state.things.get_mut(key).ok_or_else(missing)?;
        if let (Some(mtime), Some(step), true) =
            (kept.mtime, keeps.times, changes.has(Changes::TIME))
        {
            stored.thing.mtime = Some(truncate(mtime, step));
        }
        if kept.mode.is_some() && keeps.modes && changes.has(Changes::PERMISSIONS) {
            stored.thing.mode = kept.mode;
        }
        Ok(())
    }

    async fn remove(&self, things: Vec<(Key, ThingKind)>) -> Vec<Answer<()>> {
        let mut answers = Vec::with_capacity(things.len());
        for (key, kind) in things {
            answers.push(match self.step(Step::Remove, &key).await {
                Ok(()) => self.state().remove(&key, kind, self.has_directories()),
                Err(fault) => Err(fault),
            });
        }
        answers
    }

    fn copies_from(&self, source: &Self) -> bool {
        self.properties.copies && Arc::ptr_eq(&self.shared, &source.shared)
    }

    async fn copy(&self, _: &Self, from: &Key, thing: &Thing, to: &Key, kept: &Kept) -> Answer<()> {
        self.step(Step::Copy, to).await?;
        if !self.properties.copies {
            return Err(Fault::new(Class::Unsupported, "files cannot be copied here"));
        }
        let mut state = self.state();
        let stored = state.things.get(from).ok_or_else(missing)?;
        if stored.thing.tag != thing.tag {
            return Err(changed());
        }
        let data = stored.data.clone();
        state.check_parent(to, self.has_directories())?;
        state.check_replaced(to)?;
        state.insert(to, data, kept, &self.properties);
        Ok(())
    }
}

impl Memory {
    /// A thing as a listing tells of it.
    fn as_listed(&self, thing: &Thing) -> Thing {
        if self.properties.lists_all {
            return thing.clone();
        }
        Thing { mtime: None, mode: None, root: None, ..thing.clone() }
    }

    /// Where nothing is lost, what was written can be told from anything else.
    fn receipt(&self, data: &Bytes) -> Receipt {
        let hash = blake3::hash(data);
        let bytes = match self.properties.remembers {
            Remembers::Always => hash.as_bytes().first_chunk::<8>().map_or(&[][..], |it| it),
            Remembers::UntilBoot | Remembers::Reread | Remembers::Nothing => &[],
        };
        Receipt::new(bytes).unwrap_or_default()
    }
}

fn missing() -> Fault {
    Fault::new(Class::Missing, "there is nothing of this name")
}

fn changed() -> Fault {
    Fault::new(Class::Changed, "it is not what it was")
}

fn is_directory(thing: &Thing) -> bool {
    thing.kind == ThingKind::Directory
}

fn directory(now: Timestamp) -> Stored {
    let mode = Some(Mode::from_raw(0o755));
    let thing = Thing { mtime: Some(now), modified: Some(now), mode, ..implied() };
    Stored { thing, data: Bytes::new() }
}

/// A time as it is kept in steps of this length.
fn truncate(time: Timestamp, step: Duration) -> Timestamp {
    if step >= Duration::from_secs(1) {
        return Timestamp::new(time.seconds, 0).unwrap_or_default();
    }
    let step = step.subsec_nanos().max(1);
    Timestamp::new(time.seconds, time.nanoseconds() / step * step).unwrap_or_default()
}

/// When the clock of every place in memory begins: later than what tests give files, in seconds
/// since 1970.
const EPOCH: i64 = 2_000_000_000;
