//! What is at an endpoint, as a source.
//!
//! In: keys that the user named. Out: entries and their data. What an endpoint tells is hashed here,
//! when it has come: nobody there vouches for it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::walk;
use super::{Answer, Class, Endpoint, Fault, Key, Listed, Thing, ThingKind};
use crate::protocol::buffer::{Buffer, Pool};
use crate::protocol::chunk::{ByteRange, Chunk, Digest, EntryId, Pack, PackMember, RangeHasher};
use crate::protocol::manifest::{Escaped, Name};
use crate::protocol::message::{
    Entry, Failure, FailureCode, FileKind, Kind, Links, Metadata, Mode, Options, Stamp, Whereabouts,
};
use crate::storage::select::Selection;
use crate::storage::{Found, Operation, PackRead, Source, StorageError};

/// Things at an endpoint, as a [`Source`].
#[derive(Clone, Debug)]
pub struct RemoteSource<E> {
    pub(super) inner: Arc<Inner<E>>,
}

#[derive(Debug)]
pub struct Inner<E> {
    pub endpoint: E,
    pub origins: Vec<Origin>,
    /// Sources that are not there, while others are.
    pub missing: Vec<(Name, Failure)>,
    pub selection: Selection,
    pub links: Links,
    /// A listing does not tell all that is to be kept of a file.
    pub is_stat_needed: bool,
    root: Option<Metadata>,
    state: Mutex<State>,
}

/// What the user named.
#[derive(Clone, Debug)]
pub struct Origin {
    pub key: Key,
    /// What it is called at the destination; `None` where its contents are meant.
    pub name: Option<Name>,
    pub thing: Thing,
}

/// What is known of what was found.
#[derive(Debug, Default)]
struct State {
    /// Directories by identity, in ascending order.
    directories: Vec<(EntryId, Key, EntryId, Name)>,
    /// The first identity below each origin, and the directory that its names are in.
    tops: Vec<(EntryId, Key)>,
    /// Things that were found last, so that files need not be looked at again when they are read.
    things: VecDeque<(EntryId, Thing)>,
}

/// An open file of a [`RemoteSource`].
pub struct RemoteFile<E: Endpoint> {
    open: E::Open,
    entry: Arc<Entry>,
    /// What was stored as its root.
    root: Option<Digest>,
}

impl<E: Endpoint> fmt::Debug for RemoteFile<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteFile").field("entry", &self.entry).finish_non_exhaustive()
    }
}

impl<E: Endpoint> Clone for RemoteFile<E> {
    fn clone(&self) -> Self {
        Self { open: self.open.clone(), entry: Arc::clone(&self.entry), root: self.root }
    }
}

impl<E: Endpoint> RemoteSource<E> {
    /// Looks at the sources. Each is a key, and whether it was written with a slash behind, so that its
    /// contents are meant. Of what is in them, only `paths` are meant if there are any.
    ///
    /// # Errors
    ///
    /// If none of them is there, or the options ask for what no endpoint can do.
    pub async fn open(
        endpoint: E,
        sources: Vec<(Key, bool)>,
        options: &Options,
        paths: Option<Vec<Vec<u8>>>,
    ) -> Result<Self, StorageError> {
        let selection = Selection::new(options, paths)?;
        let top = endpoint.shown(&Key::default());
        let refuse = |text: &str| {
            StorageError::at(Operation::Read, &top)(Fault::new(Class::Unsupported, text))
        };
        if selection.rules.as_ref().is_some_and(super::super::filter::Rules::reads_files) {
            let text = "files of filter rules, .gitignore among them, are read on hosts with fastsync only";
            return Err(refuse(text));
        }
        if !options.preserve.chmod.is_empty() {
            return Err(refuse("--chmod works on hosts with fastsync only"));
        }
        let (mut origins, mut missing, mut first_error) = (Vec::new(), Vec::new(), None);
        for (key, is_contents) in sources {
            match Origin::look(&endpoint, key.clone(), is_contents).await {
                Ok(origin) => origins.push(origin),
                Err(fault) => {
                    let is_fatal = fault.is_fatal();
                    let error = StorageError::at(Operation::Open, &endpoint.shown(&key))(fault);
                    if is_fatal {
                        return Err(error);
                    }
                    if let Ok(name) = Name::new(key.name()) {
                        missing.push((name, error.to_failure()));
                    }
                    first_error.get_or_insert(error);
                }
            }
        }
        if let Some(error) =
            first_error.filter(|_| origins.is_empty() || origins.len() + missing.len() < 2)
        {
            return Err(error);
        }
        let contents = origins.iter().find(|origin| origin.name.is_none());
        let keeps = endpoint.properties().keeps;
        let root = contents
            .filter(|_| selection.has_top() && keeps.directories && keeps.modes)
            .map(|origin| metadata(&origin.thing));
        let links = options.select.links;
        let state = Mutex::default();
        let preserve = &options.preserve;
        let tells = keeps.times.is_some() && preserve.times || keeps.modes && preserve.permissions;
        let is_stat_needed = tells && !endpoint.properties().lists_all;
        let inner =
            Inner { endpoint, origins, missing, selection, links, is_stat_needed, root, state };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn endpoint(&self) -> &E {
        &self.inner.endpoint
    }
}

impl Origin {
    async fn look(endpoint: &impl Endpoint, key: Key, is_contents: bool) -> Answer<Self> {
        let found = endpoint.stat(&key).await?;
        let Some(thing) = found else {
            // That it vanished is said only of what was seen.
            return Err(Fault::new(Class::Other, "there is nothing of this name"));
        };
        let mut thing = thing;
        if is_contents && thing.kind != ThingKind::Directory {
            // Where directories are only implied, one may have the name of a file.
            if endpoint.properties().keeps.directories || !has_any_in(endpoint, &key).await? {
                return Err(Fault::new(Class::Other, "it is no directory"));
            }
            thing = walk::implied();
        }
        let name = if is_contents || key.is_top() { None } else { Name::new(key.name()).ok() };
        Ok(Self { key, name, thing })
    }

    /// The directory that its names are in.
    pub fn base(&self) -> Key {
        match &self.name {
            None => self.key.clone(),
            Some(_) => self.key.parent().unwrap_or_default(),
        }
    }
}

/// Whether a listing tells of anything.
async fn has_any_in(endpoint: &impl Endpoint, key: &Key) -> Answer<bool> {
    let (found, finds) = flume::bounded::<Vec<Listed>>(1);
    let first = async {
        let has_any = finds.recv_async().await.is_ok_and(|group| !group.is_empty());
        drop(finds);
        has_any
    };
    let (listed, has_any) = tokio::join!(endpoint.list(key, false, found), first);
    match listed {
        Ok(()) => Ok(has_any),
        Err(fault) if fault.class == Class::Missing => Ok(false),
        Err(fault) => Err(fault),
    }
}

impl<E: Endpoint> Inner<E> {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single push, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is found from now on is of this origin.
    pub fn begin_origin(&self, first: EntryId, base: Key) {
        self.state().tops.push((first, base));
    }

    /// Remembers a directory. Identities ascend.
    pub fn add_directory(&self, id: EntryId, parent: EntryId, name: Name, key: Key) {
        self.state().directories.push((id, key, parent, name));
    }

    /// Remembers a file for when it is opened.
    pub fn add_thing(&self, id: EntryId, thing: Thing) {
        let mut state = self.state();
        if state.things.len() >= MAX_THINGS {
            state.things.pop_front();
        }
        state.things.push_back((id, thing));
    }

    /// Remembers what a file has turned out to be.
    pub fn set_thing(&self, id: EntryId, thing: Thing) {
        let mut state = self.state();
        if let Ok(at) = state.things.binary_search_by_key(&id, |(id, _)| *id)
            && let Some(known) = state.things.get_mut(at)
        {
            known.1 = thing;
        }
    }

    fn thing(&self, id: EntryId) -> Option<Thing> {
        let state = self.state();
        let at = state.things.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        state.things.get(at).map(|(_, thing)| thing.clone())
    }

    /// Where an entry is.
    fn key(&self, entry: &Entry) -> Result<Key, StorageError> {
        let directory = {
            let state = self.state();
            if entry.parent == EntryId::ROOT {
                let at = state.tops.partition_point(|(first, _)| *first <= entry.id);
                at.checked_sub(1).and_then(|at| state.tops.get(at)).map(|(_, key)| key.clone())
            } else {
                let at = state.directories.binary_search_by_key(&entry.parent, |it| it.0).ok();
                at.and_then(|at| state.directories.get(at)).map(|it| it.1.clone())
            }
        };
        let unknown = || Fault::new(Class::Other, "its directory is not known");
        let key = directory.ok_or_else(unknown).and_then(|it| Ok(it.child(&entry.name)?));
        key.map_err(self.error(Operation::Open, entry))
    }

    pub fn path_of(&self, parent: EntryId, name: &[u8]) -> Vec<u8> {
        let state = self.state();
        let mut names: Vec<&[u8]> = vec![name];
        let mut above = parent;
        while above != EntryId::ROOT {
            let Ok(at) = state.directories.binary_search_by_key(&above, |it| it.0) else { break };
            let Some((_, _, parent, name)) = state.directories.get(at) else { break };
            names.push(name.as_bytes());
            above = *parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn path(&self, entry: &Entry) -> Vec<u8> {
        self.path_of(entry.parent, entry.name.as_bytes())
    }

    /// For `map_err` on what was done with an entry.
    fn error(
        &self,
        operation: Operation,
        entry: &Entry,
    ) -> impl FnOnce(Fault) -> StorageError + use<E> {
        let path = self.path(entry);
        move |fault| match fault.class {
            Class::Changed => StorageError::Changed { path },
            Class::Missing => StorageError::Vanished { path },
            _ => StorageError::at(operation, &path)(fault),
        }
    }

    async fn open(&self, entry: &Arc<Entry>) -> Result<RemoteFile<E>, StorageError> {
        let (key, thing) = self.find(entry).await?;
        let opened = self.endpoint.open(&key, &thing).await;
        let open = opened.map_err(self.error(Operation::Open, entry))?;
        Ok(RemoteFile { open, entry: Arc::clone(entry), root: thing.root })
    }

    /// Where an entry is, and what is known of it.
    ///
    /// # Errors
    ///
    /// If it is known to be gone, or to be another one.
    pub async fn find(&self, entry: &Arc<Entry>) -> Result<(Key, Thing), StorageError> {
        let key = self.key(entry)?;
        let thing = if let Some(thing) = self.thing(entry.id) {
            thing
        } else {
            let found = self.endpoint.stat(&key).await;
            let found = found.map_err(self.error(Operation::Open, entry))?;
            found.ok_or_else(|| StorageError::Vanished { path: self.path(entry) })?
        };
        if !is_same(&thing, entry) {
            return Err(StorageError::Changed { path: self.path(entry) });
        }
        Ok((key, thing))
    }

    /// Reads a whole small file into the start of `room`.
    async fn read_whole(
        &self,
        entry: &Arc<Entry>,
        room: &mut [u8],
    ) -> Result<Digest, StorageError> {
        let file = self.open(entry).await?;
        let read = async {
            if !room.is_empty() {
                self.endpoint.read(&file.open, 0, room).await?;
            }
            self.endpoint.confirm(&file.open).await
        };
        if read.await.map_err(self.error(Operation::Read, entry))? {
            self.check_root(&file, Digest::of(room))
        } else {
            Err(StorageError::Changed { path: self.path(entry) })
        }
    }

    /// What was stored as a file's root has to be what was read.
    fn check_root(&self, file: &RemoteFile<E>, root: Digest) -> Result<Digest, StorageError> {
        if file.root.is_none_or(|stored| stored == root) {
            return Ok(root);
        }
        Err(StorageError::Corrupt { path: self.path(&file.entry) })
    }
}

impl<E: Endpoint> Source for RemoteSource<E> {
    type File = RemoteFile<E>;

    fn is_single_file(&self) -> bool {
        let inner = &self.inner;
        inner.missing.is_empty()
            && matches!(inner.origins.as_slice(), [origin] if origin.thing.kind != ThingKind::Directory)
    }

    fn root(&self) -> Option<Metadata> {
        self.inner.root.clone()
    }

    fn whereabouts(&self) -> Whereabouts {
        Whereabouts::default()
    }

    async fn walk(&self, found: flume::Sender<Vec<Found>>) -> Result<(), StorageError> {
        walk::walk(&self.inner, found).await
    }

    async fn open(&self, entry: Arc<Entry>) -> Result<RemoteFile<E>, StorageError> {
        self.inner.open(&entry).await
    }

    async fn read(
        &self,
        file: RemoteFile<E>,
        range: ByteRange,
        version: u16,
        pool: &Pool,
    ) -> Result<Chunk, StorageError> {
        let no_buffer = |error: crate::protocol::buffer::BufferError| {
            let cause = std::io::Error::other(error);
            StorageError::io(Operation::Read, &self.inner.path(&file.entry))(cause)
        };
        let mut buffer = pool.take(range.len() as usize).await.map_err(no_buffer)?;
        let read = self.inner.endpoint.read(&file.open, range.offset(), &mut buffer).await;
        read.map_err(self.inner.error(Operation::Read, &file.entry))?;
        let hashed = tokio::task::spawn_blocking(move || {
            let mut hasher = RangeHasher::new(range);
            hasher.update(&buffer);
            hasher.finish().map(|digest| (digest, buffer))
        });
        let changed = || StorageError::Changed { path: self.inner.path(&file.entry) };
        let (digest, buffer) = hashed.await.ok().and_then(Result::ok).ok_or_else(changed)?;
        if range.is_whole() {
            self.inner.check_root(&file, digest)?;
        }
        Ok(Chunk::hashed(range, version, digest, buffer.freeze()))
    }

    async fn confirm(&self, file: RemoteFile<E>) -> Result<(), StorageError> {
        let confirmed = self.inner.endpoint.confirm(&file.open).await;
        if confirmed.map_err(self.inner.error(Operation::Read, &file.entry))? {
            Ok(())
        } else {
            Err(StorageError::Changed { path: self.inner.path(&file.entry) })
        }
    }

    fn known_root(&self, file: &RemoteFile<E>) -> Option<Digest> {
        file.root
    }

    async fn read_pack(
        &self,
        number: u64,
        files: Vec<(Arc<Entry>, u16)>,
        mut buffer: Buffer,
    ) -> PackRead {
        let start = Pack::table_len(files.len());
        let mut answer = PackRead { pack: None, failed: Vec::new(), roots: Vec::new() };
        let mut reading = Vec::with_capacity(files.len());
        let mut room = buffer.get_mut(start..).unwrap_or_default();
        for (entry, version) in &files {
            let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
            let all = std::mem::take(&mut room);
            let Some((own, rest)) = all.split_at_mut_checked(size) else {
                let error = StorageError::Changed { path: self.inner.path(entry) };
                answer.failed.push((entry.id, error));
                continue;
            };
            room = rest;
            reading.push((entry, *version, size, own));
        }
        let reads: Vec<_> = reading
            .into_iter()
            .map(|(entry, version, size, own)| async move {
                (entry, version, size, self.inner.read_whole(entry, own).await)
            })
            .collect();
        let read = super::all(reads, self.inner.endpoint.properties().requests).await;
        // What could not be read leaves a gap, which what follows fills.
        let (mut members, mut from, mut to) = (Vec::with_capacity(read.len()), start, start);
        for (entry, version, size, result) in read {
            match result {
                Ok(root) => {
                    if from > to {
                        buffer.copy_within(from..from + size, to);
                    }
                    to += size;
                    answer.roots.push((entry.id, root));
                    let len = u32::try_from(size).unwrap_or(u32::MAX);
                    members.push(PackMember { entry: entry.id, version, len, root });
                }
                Err(error) => answer.failed.push((entry.id, error)),
            }
            from += size;
        }
        if members.is_empty() {
            return answer;
        }
        let table_len = Pack::table_len(members.len());
        if table_len < start {
            buffer.copy_within(start..to, table_len);
            to -= start - table_len;
        }
        buffer.truncate(to);
        let digest = Pack::write_table(&members, &mut buffer);
        answer.pack = Some(Pack { number, digest, payload: buffer.freeze() });
        answer
    }

    async fn look_again(&self, entry: Arc<Entry>) -> Result<Entry, StorageError> {
        let key = self.inner.key(&entry)?;
        let found = self.inner.endpoint.stat(&key).await;
        let found = found.map_err(self.inner.error(Operation::Stat, &entry))?;
        let path = || self.inner.path(&entry);
        let Some(thing) = found else { return Err(StorageError::Vanished { path: path() }) };
        let kind = match kind_of(&thing, self.inner.links, &path()) {
            Kind::Directory if entry.kind != Kind::Directory => {
                let text = format!("{} became a directory meanwhile", Escaped(&path()));
                Kind::Unsendable(Failure::new(FailureCode::Changed, text))
            }
            kind => kind,
        };
        let now = Entry { kind, metadata: metadata(&thing), ..Entry::clone(&entry) };
        self.inner.set_thing(entry.id, thing);
        Ok(now)
    }

    async fn remove(&self, entries: Vec<Arc<Entry>>) -> Vec<Result<(), StorageError>> {
        let removals: Vec<_> = entries
            .iter()
            .map(|entry| async move {
                let key = self.inner.key(entry)?;
                let found = self.inner.endpoint.stat(&key).await;
                let found = found.map_err(self.inner.error(Operation::Remove, entry))?;
                match found {
                    None => Ok(()),
                    Some(thing) if is_same(&thing, entry) => {
                        let removed = self.inner.endpoint.remove(vec![(key, thing.kind)]).await;
                        let removed = removed.into_iter().next().unwrap_or(Ok(()));
                        removed.map_err(self.inner.error(Operation::Remove, entry))
                    }
                    Some(_) => Err(StorageError::Changed { path: self.inner.path(entry) }),
                }
            })
            .collect();
        super::all(removals, self.inner.endpoint.properties().requests).await
    }

    fn path(&self, entry: &Entry) -> Vec<u8> {
        self.inner.path(entry)
    }
}

/// What a thing is for the receiver.
pub fn kind_of(thing: &Thing, links: Links, path: &[u8]) -> Kind {
    let unsendable = |code, why: &str| {
        Kind::Unsendable(Failure::new(code, format!("cannot read {}: {why}", Escaped(path))))
    };
    match thing.kind {
        ThingKind::Directory => Kind::Directory,
        ThingKind::File => Kind::File(FileKind { size: thing.size, stamp: stamp(thing) }),
        ThingKind::Symlink => match (&thing.target, links) {
            (_, Links::Follow | Links::FollowUnsafe) => unsendable(
                FailureCode::Unsupported,
                "symlinks are followed on hosts with fastsync only",
            ),
            (Some(target), Links::OnlySafe)
                if crate::storage::local::is_unsafe_link(target, path) =>
            {
                Kind::Unselected
            }
            (Some(target), _) => Kind::Symlink { target: target.to_vec() },
            (None, _) => unsendable(FailureCode::Io, "where the symlink leads is not known"),
        },
        ThingKind::Other => unsendable(FailureCode::Unsupported, "it is a special file"),
    }
}

/// What is known of a thing beside its content.
pub fn metadata(thing: &Thing) -> Metadata {
    let default = match thing.kind {
        ThingKind::Directory => 0o755,
        _ => 0o644,
    };
    let (owner, group) = thing.owners.unwrap_or_default();
    Metadata {
        mode: thing.mode.unwrap_or(Mode::from_raw(default)),
        mtime: thing.mtime.or(thing.modified).unwrap_or_default(),
        owner,
        group,
        attributes: Vec::new(),
    }
}

/// What tells a file from another version of it (JRN-6).
fn stamp(thing: &Thing) -> Stamp {
    let tag = thing.tag.as_deref().unwrap_or_default();
    let hash = *blake3::hash(tag).as_bytes();
    let inode = hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Stamp { inode, ctime: thing.modified.unwrap_or_default() }
}

fn is_same(thing: &Thing, entry: &Entry) -> bool {
    match entry.kind {
        Kind::File(file) => {
            thing.kind == ThingKind::File
                && thing.size == file.size
                && stamp(thing) == file.stamp
                // Where a tag tells, a time that a listing does not know is no change.
                && (thing.tag.is_some() || metadata(thing).mtime == entry.metadata.mtime)
        }
        _ => thing.kind != ThingKind::Directory,
    }
}

/// How many things are remembered: more than may be open, and found and not announced yet.
const MAX_THINGS: usize = 1 << 17;
