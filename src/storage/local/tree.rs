//! Directories by their identity: names, paths, and descriptors.
//!
//! In: every directory once, parents first. Out: its path, an open descriptor, and what its user
//! keeps with it. A few descriptors are kept open, and any other directory is opened again below
//! its root when it is needed; names lie in one piece of memory, as there may be millions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::beneath;
use crate::protocol::chunk::EntryId;

/// How many directories are kept open, beside the roots.
const MAX_OPEN: usize = 64;

/// On a longer way a directory this many levels above its end is kept open too, so that going back
/// up a deep tree does not start at the root each time.
const HALT_DEPTH: usize = 32;

/// The directories of one side, with a `T` for each.
#[derive(Debug)]
pub struct Tree<T> {
    /// Empty only where nothing exists yet, in a dry run.
    roots: Vec<Arc<OwnedFd>>,
    flags: OFlags,
    /// Whether directories may be reached through symlinks.
    follows: bool,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    /// In the order of their identities.
    records: Vec<Record<T>>,
    names: Vec<u8>,
    /// The first identity found below each root.
    starts: Vec<EntryId>,
    open: HashMap<EntryId, (Arc<OwnedFd>, u64)>,
    /// Counts uses, to tell which descriptor was not used for longest.
    clock: u64,
}

#[derive(Debug)]
struct Record<T> {
    id: EntryId,
    parent: EntryId,
    name_at: usize,
    name_len: u8,
    value: T,
}

/// How to get to a directory: from an open one, along a path.
struct Way {
    start: Arc<OwnedFd>,
    path: Vec<u8>,
    end: EntryId,
}

/// Something in a directory, by that directory's identity.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub id: EntryId,
    pub parent: EntryId,
    pub name: &'a [u8],
}

impl<T: Copy> Tree<T> {
    /// `flags` are those with which directories are opened.
    pub fn new(roots: Vec<Arc<OwnedFd>>, flags: OFlags) -> Self {
        let state = State {
            records: Vec::new(),
            names: Vec::new(),
            starts: Vec::new(),
            open: HashMap::new(),
            clock: 0,
        };
        Self { roots, flags, follows: false, state: Mutex::new(state) }
    }

    /// Reaches directories through symlinks too, if asked to: only for what the operator wants to
    /// be followed.
    #[must_use]
    pub fn following(self, follows: bool) -> Self {
        Self { follows, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Every change is a single push or assignment, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is found from now on is below the next root.
    pub fn begin_root(&self, first: EntryId) {
        self.state().starts.push(first);
    }

    /// Remembers a directory, and its descriptor if there is one. The first of an identity counts,
    /// and one that would come before its parent does not, so that every way up ends.
    pub fn insert(&self, place: Place<'_>, value: T, fd: Option<OwnedFd>) {
        let state = &mut *self.state();
        let at = state.records.partition_point(|record| record.id < place.id);
        let is_known = state.records.get(at).is_some_and(|record| record.id == place.id);
        if is_known || place.parent >= place.id {
            return;
        }
        let name_len = u8::try_from(place.name.len()).unwrap_or(u8::MAX);
        let name_at = state.names.len();
        state.names.extend_from_slice(place.name);
        let record = Record { id: place.id, parent: place.parent, name_at, name_len, value };
        state.records.insert(at, record);
        if let Some(fd) = fd {
            state.keep(place.id, Arc::new(fd));
        }
    }

    /// How many directories there are.
    pub fn len(&self) -> usize {
        self.state().records.len()
    }

    /// The directory at a position in the order of identities: itself, its parent, its name, its
    /// value.
    pub fn at(&self, position: usize) -> Option<(EntryId, EntryId, Vec<u8>, T)> {
        let state = self.state();
        let record = state.records.get(position)?;
        Some((record.id, record.parent, state.name(record).to_vec(), record.value))
    }

    /// What is kept with a directory.
    pub fn value(&self, id: EntryId) -> Option<T> {
        self.state().find(id).map(|record| record.value)
    }

    /// What a directory is in.
    pub fn parent(&self, id: EntryId) -> Option<EntryId> {
        self.state().find(id).map(|record| record.parent)
    }

    /// The nearest directory, from this one upwards, whose value passes a test.
    pub fn find_upwards(&self, mut id: EntryId, test: impl Fn(T) -> bool) -> Option<EntryId> {
        let state = self.state();
        while let Some(record) = state.find(id) {
            if test(record.value) {
                return Some(id);
            }
            id = record.parent;
        }
        None
    }

    /// The directory that something is in: `parent` is its directory's identity and `id` its own.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the directory is unknown.
    pub fn parent_of(&self, id: EntryId, parent: EntryId) -> Result<Arc<OwnedFd>, Errno> {
        // The second time starts at the halt, unless others closed that already.
        for halt in [HALT_DEPTH, usize::MAX] {
            let way = self.state().way_to(&self.roots, id, parent, halt).ok_or(Errno::NOENT)?;
            if way.path.is_empty() {
                return Ok(way.start);
            }
            let open = if self.follows {
                beneath::open_directory_through
            } else {
                beneath::open_directory
            };
            let fd = Arc::new(open(way.start.as_fd(), &way.path, self.flags)?);
            self.state().keep(way.end, Arc::clone(&fd));
            if way.end == parent {
                return Ok(fd);
            }
        }
        Err(Errno::NOENT)
    }

    /// The directory of this identity itself.
    pub fn directory(&self, id: EntryId) -> Result<Arc<OwnedFd>, Errno> {
        self.parent_of(id, id)
    }

    /// The path of a name in a directory: relative to the root, components joined by slashes.
    pub fn path(&self, parent: EntryId, name: &[u8]) -> Vec<u8> {
        let state = self.state();
        let mut parts = vec![name];
        let mut id = parent;
        while let Some(record) = state.find(id) {
            parts.push(state.name(record));
            id = record.parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }
}

impl<T> Record<T> {
    fn name_range(&self) -> std::ops::Range<usize> {
        self.name_at..self.name_at + usize::from(self.name_len)
    }
}

impl<T> State<T> {
    fn find(&self, id: EntryId) -> Option<&Record<T>> {
        let at = self.records.binary_search_by_key(&id, |record| record.id).ok()?;
        self.records.get(at)
    }

    fn name(&self, record: &Record<T>) -> &[u8] {
        self.names.get(record.name_range()).unwrap_or_default()
    }

    /// The way to `parent` from the nearest directory above that is open. `id` is in `parent`, and
    /// tells which root is meant if that is the root. A way that is longer than `halt` ends that
    /// much above `parent`.
    fn way_to(
        &mut self,
        roots: &[Arc<OwnedFd>],
        id: EntryId,
        parent: EntryId,
        halt: usize,
    ) -> Option<Way> {
        let (mut below, mut at, mut end) = (id, parent, parent);
        let mut parts = Vec::new();
        let start = loop {
            if at == EntryId::ROOT {
                let index = self.starts.partition_point(|first| *first <= below);
                break Arc::clone(roots.get(index.saturating_sub(1))?);
            }
            if let Some(fd) = self.reuse(at) {
                break fd;
            }
            if parts.len() == halt && end == parent {
                parts.clear();
                end = at;
            }
            let record = self.find(at)?;
            parts.push(record.name_range());
            (below, at) = (at, record.parent);
        };
        let names = parts.into_iter().rev().map(|part| self.names.get(part).unwrap_or_default());
        Some(Way { start, path: names.collect::<Vec<_>>().join(&b'/'), end })
    }

    fn reuse(&mut self, id: EntryId) -> Option<Arc<OwnedFd>> {
        let (fd, used) = self.open.get_mut(&id)?;
        self.clock += 1;
        *used = self.clock;
        Some(Arc::clone(fd))
    }

    fn keep(&mut self, id: EntryId, fd: Arc<OwnedFd>) {
        if self.open.len() >= MAX_OPEN {
            let oldest = self.open.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            oldest.map(|id| self.open.remove(&id));
        }
        self.clock += 1;
        self.open.insert(id, (fd, self.clock));
    }
}
