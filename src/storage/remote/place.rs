//! What is at an endpoint for each entry, and which files are wanted.
//!
//! In: entries, parents first. Out: what was there; and directories and symlinks that now are.
//! What is there is learnt by listing directories, not by asking for each name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::sink::Inner;
use super::source::{kind_of, metadata};
use super::{Answer, Class, Endpoint, Fault, KeepsRoot, Key, Listed, Thing, ThingKind, all};
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{
    Changes, Compare, Entry, FileKind, Kind, Links, MakeRoom, Metadata,
};
use crate::storage::{self, Operation, Placed, StorageError};

/// A directory of the destination.
#[derive(Clone, Debug)]
pub struct Directory {
    pub key: Key,
    pub parent: EntryId,
    pub state: State,
    depth: usize,
    metadata: Metadata,
    /// What is there is as it was.
    is_kept: bool,
}

impl Directory {
    pub fn of_root(key: Key, metadata: Metadata) -> Self {
        let (parent, state) = (EntryId::ROOT, State::There);
        Self { key, parent, state, depth: 0, metadata, is_kept: false }
    }
}

/// What became of a directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    There,
    /// This run made it, or would have: there was nothing in it.
    New,
    /// The options say that nothing is made, neither it nor anything in it.
    Left,
    /// It could not be made.
    Failed,
}

/// What is in a directory, once that was asked for.
#[derive(Debug, Default)]
pub struct Existing(OnceCell<Answer<Known>>);

/// The names in a directory; `None` if there are too many to be remembered.
type Known = Option<Mutex<HashMap<Box<[u8]>, Thing>>>;

impl Existing {
    fn names(&self) -> Option<std::sync::MutexGuard<'_, HashMap<Box<[u8]>, Thing>>> {
        let known = self.0.get()?.as_ref().ok()?.as_ref()?;
        Some(known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many names it takes memory for.
    fn len(&self) -> usize {
        self.names().map_or(0, |names| names.len())
    }

    pub fn forget(&self, name: &[u8]) {
        if let Some(mut names) = self.names() {
            names.remove(name);
        }
    }
}

impl<E: Endpoint> Inner<E> {
    /// Looks at what is there for many entries, and makes what is no file. Directories come before what
    /// is in them; all else of one depth goes on at the same time.
    pub async fn place(&self, entries: Vec<Arc<Entry>>) -> Vec<Result<Placed, StorageError>> {
        let mut answers: Vec<Option<Result<Placed, StorageError>>> =
            entries.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..entries.len()).collect();
        while !left.is_empty() {
            // Whose directory is among those that are left has to wait for it.
            let waiting: std::collections::HashSet<EntryId> = left
                .iter()
                .filter_map(|at| entries.get(*at))
                .filter(|entry| entry.kind == Kind::Directory)
                .map(|entry| entry.id)
                .collect();
            let is_due =
                |at: &usize| entries.get(*at).is_some_and(|entry| !waiting.contains(&entry.parent));
            let (due, rest): (Vec<usize>, Vec<usize>) = left.into_iter().partition(is_due);
            if due.is_empty() {
                break;
            }
            let places: Vec<_> = due
                .iter()
                .filter_map(|at| entries.get(*at))
                .map(|entry| self.place_one(entry))
                .collect();
            let placed = all(places, self.endpoint.properties().requests).await;
            for (at, placed) in due.into_iter().zip(placed) {
                if let Some(answer) = answers.get_mut(at) {
                    *answer = Some(placed);
                }
            }
            left = rest;
        }
        let unplaced = |entry: &Entry| StorageError::NoParent { path: self.path(entry) };
        let answers = answers.into_iter().zip(&entries);
        answers.map(|(answer, entry)| answer.unwrap_or_else(|| Err(unplaced(entry)))).collect()
    }

    async fn place_one(&self, entry: &Arc<Entry>) -> Result<Placed, StorageError> {
        let parent = self.state_of(entry.parent);
        match (&entry.kind, parent) {
            (Kind::Unselected, _) => return Ok(Placed::Left),
            (_, State::Failed) => {
                self.remember(entry, State::Failed, false);
                return Err(StorageError::NoParent { path: self.path(entry) });
            }
            (_, State::Left) => {
                self.remember(entry, State::Left, false);
                return Ok(Placed::Left);
            }
            (Kind::File(_), _) if !self.endpoint.properties().keeps.directories => {
                self.state().filled.insert(entry.parent);
            }
            _ => {}
        }
        let placed = self.place_in(entry, parent).await;
        if placed.is_err() {
            self.remember(entry, State::Failed, false);
        }
        placed
    }

    /// Why nothing of this kind can be there.
    fn not_kept(&self, kind: &Kind) -> Option<&'static str> {
        match kind {
            Kind::HardLink { .. } | Kind::Unsendable(_) => Some("it has no content of its own"),
            Kind::Special(_) => Some("special files are made on hosts with fastsync only"),
            Kind::Symlink { .. } if !self.endpoint.properties().keeps.symlinks => Some(
                "symlinks are not kept there; --copy-links copies what they lead to, if fastsync runs where they are",
            ),
            _ => None,
        }
    }

    async fn place_in(&self, entry: &Arc<Entry>, parent: State) -> Result<Placed, StorageError> {
        let key = self.key(entry)?;
        let existing = match parent {
            State::New => None,
            _ => self.look(&key, entry).await?,
        };
        let is_absent = existing.is_none();
        // What comes into a directory may be new all the same.
        let is_entered = entry.kind == Kind::Directory
            && existing.as_ref().is_some_and(|it| it.kind == ThingKind::Directory);
        let is_ignored = !is_absent && self.update.ignore_existing && !is_entered;
        if is_absent && self.update.existing_only || is_ignored {
            self.remember(entry, State::Left, true);
            return Ok(Placed::Left);
        }
        // Nothing gives way to what is not kept.
        if let Some(text) = self.not_kept(&entry.kind) {
            return Err(self.error(Operation::Create, entry)(Fault::new(Class::Unsupported, text)));
        }
        let in_the_way = existing.as_ref().filter(|thing| !thing.is_same_type(&entry.kind));
        let gave_way = match in_the_way {
            Some(thing) => {
                self.make_room(&key, thing, entry).await?;
                Changes::TYPE
            }
            None => Changes::NONE,
        };
        let existing = existing.filter(|thing| thing.is_same_type(&entry.kind));
        let placed = match &entry.kind {
            Kind::Directory => self.place_directory(&key, existing, entry).await?,
            Kind::Symlink { target } => self.place_symlink(&key, existing, target, entry).await?,
            Kind::File(file) => self.place_file(&key, existing, *file, entry).await?,
            // They were answered before.
            Kind::Special(_) | Kind::HardLink { .. } | Kind::Unsendable(_) | Kind::Unselected => {
                Placed::Left
            }
        };
        Ok(placed.with(gave_way))
    }

    /// What has a key, by the listing of its directory.
    async fn look(&self, key: &Key, entry: &Entry) -> Result<Option<Thing>, StorageError> {
        let Some(parent) = key.parent() else { return Ok(None) };
        let existing = self.existing(&parent).await;
        let shown = self.endpoint.shown(&parent);
        let existing = existing.map_err(StorageError::at(Operation::List, &shown))?;
        if let Some(names) = existing.names() {
            return Ok(names.get(key.name()).cloned());
        }
        self.endpoint.stat(key).await.map_err(self.error(Operation::Stat, entry))
    }

    /// What is in a directory. Whoever asks first lists it, and the others wait for that.
    async fn existing(&self, directory: &Key) -> Answer<Arc<Existing>> {
        let existing = {
            let mut state = self.state();
            if let Some(known) = state.existing.get(directory) {
                Arc::clone(known)
            } else {
                let mut names: usize = state.existing.values().map(|it| it.len()).sum();
                while !state.order.is_empty()
                    && (state.order.len() >= MAX_REMEMBERED || names > MAX_NAMES)
                {
                    let oldest = state.order.remove(0);
                    names -= state.existing.remove(&oldest).map_or(0, |oldest| oldest.len());
                }
                let existing = Arc::new(Existing::default());
                state.order.push(directory.clone());
                state.existing.insert(directory.clone(), Arc::clone(&existing));
                existing
            }
        };
        existing
            .0
            .get_or_init(|| self.list_names(directory))
            .await
            .as_ref()
            .map_err(Fault::clone)?;
        Ok(existing)
    }

    async fn list_names(&self, directory: &Key) -> Answer<Known> {
        let (found, finds) = flume::bounded::<Vec<Listed>>(16);
        let gather = async {
            let mut things = HashMap::new();
            while let Ok(group) = finds.recv_async().await {
                for listed in group {
                    // Whatever else it is, it is not in this directory.
                    if let Listed::Thing(key, thing) = listed
                        && key.parent().as_ref() == Some(directory)
                    {
                        let is_directory = thing.kind == ThingKind::Directory;
                        // Where directories are only implied, a file may have the name of one.
                        if is_directory || !things.contains_key(key.name()) {
                            things.insert(Box::from(key.name()), thing);
                        }
                    }
                }
                if things.len() > MAX_NAMES {
                    drop(finds);
                    return None;
                }
            }
            Some(Mutex::new(things))
        };
        let (answer, things) = tokio::join!(self.endpoint.list(directory, false, found), gather);
        match answer {
            Ok(()) => Ok(things),
            Err(fault) if fault.class == Class::Missing => Ok(Some(Mutex::default())),
            // Then each name is asked for.
            Err(fault) if fault.class == Class::Unsupported => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Lets something of another type give way, if the options allow it.
    async fn make_room(&self, key: &Key, thing: &Thing, entry: &Entry) -> Result<(), StorageError> {
        let is_directory = thing.kind == ThingKind::Directory;
        let may = match self.update.make_room {
            MakeRoom::Files => !is_directory && entry.kind != Kind::Directory,
            MakeRoom::EmptyDirectories | MakeRoom::All => true,
        };
        if !may {
            let (path, existing) = (self.path(entry), thing.what());
            return Err(StorageError::Conflict { path, existing });
        }
        if is_directory {
            self.check_room(key, entry).await?;
            // A file's data has to be there first.
            let is_now = matches!(entry.kind, Kind::Symlink { .. }) && !self.dry_run;
            return if is_now { self.clear_room(key, entry).await } else { Ok(()) };
        }
        // A file replaces another thing at once; anything else is made where nothing is.
        if self.dry_run || matches!(entry.kind, Kind::File(_)) {
            return Ok(());
        }
        let removed = self.endpoint.remove(vec![(key.clone(), thing.kind)]).await;
        let removed = removed.into_iter().next().unwrap_or(Ok(()));
        removed.map_err(self.error(Operation::Remove, entry))?;
        self.touch(entry.parent);
        self.forget(key);
        Ok(())
    }

    async fn place_directory(
        &self,
        key: &Key,
        existing: Option<Thing>,
        entry: &Arc<Entry>,
    ) -> Result<Placed, StorageError> {
        if let Some(thing) = existing {
            let changes = self.differences(&thing, entry);
            self.remember(entry, State::There, changes.is_empty());
            return Ok(Placed::Settled(changes));
        }
        if !self.dry_run {
            self.touch(entry.parent);
            let made = self.endpoint.make_directory(key).await;
            made.map_err(self.error(Operation::Create, entry))?;
        }
        self.remember(entry, State::New, false);
        // Nobody sees a directory that is only implied.
        if !self.endpoint.properties().keeps.directories {
            return Ok(Placed::Settled(Changes::NONE));
        }
        Ok(Placed::Settled(Changes::CREATED_WITH_CONTENT))
    }

    async fn place_symlink(
        &self,
        key: &Key,
        existing: Option<Thing>,
        target: &[u8],
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let changes = match existing {
            Some(thing) if has_target(&thing, target) => return Ok(Placed::Settled(Changes::NONE)),
            Some(_) => Changes::CONTENT,
            None => Changes::CREATED_WITH_CONTENT,
        };
        if !self.dry_run {
            self.touch(entry.parent);
            let made = self.endpoint.make_symlink(key, target, &self.kept(entry, None)).await;
            made.map_err(self.error(Operation::Create, entry))?;
        }
        Ok(Placed::Settled(changes))
    }

    async fn place_file(
        &self,
        key: &Key,
        existing: Option<Thing>,
        file: FileKind,
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let max = self.endpoint.properties().max_size;
        if file.size > max {
            let text = format!("it is longer than a file can be there, which is {max} bytes");
            return Err(self.error(Operation::Create, entry)(Fault::new(Class::Unsupported, text)));
        }
        let placed = self.compare_file(key, existing, file, entry).await?;
        let comes_in_parts = self.chunk_size.count(file.size) > 1;
        let is_first = self.endpoint.properties().keeps.roots == KeepsRoot::FromTheBeginning;
        let is_sent = !self.dry_run && self.near.get().is_none();
        match placed {
            // What its data amounts to has to be known before the first part goes there.
            Placed::Wanted(_) if is_first && comes_in_parts && is_sent => {
                Ok(Placed::Compare(storage::Existing::Replaced))
            }
            placed => Ok(placed),
        }
    }

    async fn compare_file(
        &self,
        key: &Key,
        existing: Option<Thing>,
        file: FileKind,
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let Some(mut thing) = existing else {
            return Ok(Placed::Wanted(Changes::CREATED_WITH_CONTENT));
        };
        let is_equal_size = thing.size == file.size;
        let matters = is_equal_size || self.update.keep_newer;
        if matters && !self.endpoint.properties().lists_all {
            let stat = self.endpoint.stat(key).await;
            let Some(found) = stat.map_err(self.error(Operation::Stat, entry))? else {
                return Ok(Placed::Wanted(Changes::CREATED_WITH_CONTENT));
            };
            thing = found;
        }
        let wanted = entry.metadata.mtime;
        if self.update.keep_newer
            && metadata(&thing).mtime > wanted
            && !self.is_same_time(metadata(&thing).mtime, wanted)
        {
            return Ok(Placed::Left);
        }
        let is_equal = is_equal_size
            && match self.update.compare {
                Compare::Quick => self.has_time(&thing, wanted),
                Compare::SizeOnly => true,
                Compare::Checksum => {
                    return Ok(Placed::Compare(match thing.root {
                        Some(root) => storage::Existing::Root(root),
                        None => storage::Existing::Unread,
                    }));
                }
                Compare::Always => false,
            };
        if is_equal {
            self.correct(key, &thing, entry).await
        } else {
            Ok(Placed::Wanted(self.replacement(&thing, file, entry)))
        }
    }

    /// Goes on with a file after its data was compared.
    pub async fn place_compared(
        &self,
        entry: &Arc<Entry>,
        is_equal: bool,
    ) -> Result<Placed, StorageError> {
        let Kind::File(file) = entry.kind else {
            let fault = Fault::new(Class::Other, "it is no file");
            return Err(self.error(Operation::Open, entry)(fault));
        };
        let key = self.key(entry)?;
        let found = self.endpoint.stat(&key).await;
        let found = found.map_err(self.error(Operation::Stat, entry))?;
        let gave_way = Changes::TYPE.when(found.as_ref().is_some_and(|it| !is_file(it)));
        match found.filter(is_file) {
            Some(thing) if is_equal => self.correct(&key, &thing, entry).await,
            Some(thing) => Ok(Placed::Wanted(self.replacement(&thing, file, entry))),
            None => Ok(Placed::Wanted(Changes::CREATED_WITH_CONTENT.with(gave_way))),
        }
    }

    /// What changes where a file replaces another.
    fn replacement(&self, thing: &Thing, file: FileKind, entry: &Entry) -> Changes {
        let is_told = self.update.compare == Compare::Checksum;
        self.differences(thing, entry)
            .with(Changes::CONTENT)
            .with(Changes::SIZE.when(thing.size != file.size))
            // It gets the time of now.
            .with(Changes::TIME.when(self.kept(entry, None).mtime.is_none()))
            .with(Changes::CHECKSUM.when(is_told))
    }

    /// A file whose data is right: corrects what is kept beside it.
    async fn correct(
        &self,
        key: &Key,
        thing: &Thing,
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let changes = self.differences(thing, entry);
        if !changes.is_empty() && !self.dry_run {
            let kept = super::Kept { root: thing.root, ..self.kept(entry, None) };
            let set = self.endpoint.set(key, thing, &kept, changes).await;
            if let Err(fault) = set {
                let is_fatal = fault.is_fatal();
                let error = self.error(Operation::SetTimes, entry)(fault);
                if is_fatal {
                    return Err(error);
                }
                self.complain(error);
            }
        }
        Ok(Placed::Settled(changes))
    }

    /// What of what is kept is different.
    fn differences(&self, thing: &Thing, entry: &Entry) -> Changes {
        let is_directory = entry.kind == Kind::Directory;
        if is_directory && !self.endpoint.properties().keeps.directories {
            return Changes::NONE;
        }
        let kept = self.kept(entry, None);
        let is_other_time = match (kept.mtime, thing.mtime) {
            (Some(wanted), Some(found)) => !self.is_same_time(found, wanted),
            // Where it could be kept and is not, somebody else has written it.
            (Some(_), None) => self.update.compare != Compare::Quick,
            (None, _) => false,
        };
        let is_other_mode = self.preserve.permissions
            && kept.mode.is_some_and(|wanted| thing.mode.is_some_and(|found| found != wanted));
        Changes::TIME.when(is_other_time).with(Changes::PERMISSIONS.when(is_other_mode))
    }

    /// Whether a file counts as one of this time. Where no time was stored with it, it does if it was
    /// written there later: whoever changes the source after that gives it a later time.
    fn has_time(&self, thing: &Thing, wanted: Timestamp) -> bool {
        match (thing.mtime, thing.modified) {
            (Some(found), _) => self.is_same_time(found, wanted),
            (None, Some(written)) => written >= wanted,
            (None, None) => false,
        }
    }

    fn is_same_time(&self, found: Timestamp, wanted: Timestamp) -> bool {
        let step = self.endpoint.properties().keeps.times.map_or(1, |step| step.as_nanos());
        let step = u64::try_from(step).unwrap_or(u64::MAX);
        self.update.is_same_time(found, wanted) || found.steps(step) == wanted.steps(step)
    }

    fn state_of(&self, directory: EntryId) -> State {
        if directory == EntryId::ROOT {
            return State::There;
        }
        self.state().directories.get(&directory).map_or(State::Failed, |it| it.state)
    }

    /// Takes note that a directory is not there and cannot be made, for what else would go into it.
    pub fn give_up_directory(&self, id: EntryId) {
        if let Some(directory) = self.state().directories.get_mut(&id) {
            directory.state = State::Failed;
        }
    }

    /// Remembers a directory, for what is in it.
    fn remember(&self, entry: &Entry, state: State, is_kept: bool) {
        if entry.kind != Kind::Directory {
            return;
        }
        let Some((above, _)) = self.directory(entry.parent) else { return };
        let Ok(key) = above.child(self.name(entry)) else { return };
        let depth = key.as_bytes().split(|byte| *byte == b'/').count();
        let metadata = Metadata { attributes: Vec::new(), ..entry.metadata.clone() };
        let directory = Directory { key, parent: entry.parent, state, depth, metadata, is_kept };
        self.state().directories.insert(entry.id, directory);
    }

    /// Gives directories their metadata, the deepest first.
    pub async fn finish_directories(&self) {
        if self.dry_run || !self.endpoint.properties().keeps.directories {
            return;
        }
        let mut directories: Vec<(EntryId, Directory)> = {
            let state = self.state();
            let is_due = |id: &EntryId, it: &Directory| match it.state {
                State::New => true,
                // What nothing was put into is as it was found to be.
                State::There => !it.is_kept || state.touched.contains(id),
                State::Left | State::Failed => false,
            };
            let all = state.directories.iter();
            all.filter(|(id, it)| is_due(id, it)).map(|(id, it)| (*id, it.clone())).collect()
        };
        directories.sort_by_key(|(_, it)| std::cmp::Reverse(it.depth));
        for same_depth in directories.chunk_by(|one, other| one.1.depth == other.1.depth) {
            let sets: Vec<_> = same_depth
                .iter()
                .map(|(id, directory)| self.finish_directory(*id, directory))
                .collect();
            all(sets, self.endpoint.properties().requests).await;
        }
    }

    /// How many directories that are not there have no file in or below them.
    pub fn empty_directories(&self) -> usize {
        let state = self.state();
        let mut filled = state.filled.clone();
        for id in &state.filled {
            let mut at = *id;
            while let Some(directory) = state.directories.get(&at) {
                at = directory.parent;
                if !filled.insert(at) {
                    break;
                }
            }
        }
        let is_new = |it: &Directory| it.state == State::New;
        let all = state.directories.iter();
        all.filter(|(id, it)| is_new(it) && !filled.contains(id)).count()
    }

    async fn finish_directory(&self, id: EntryId, directory: &Directory) {
        let name = crate::protocol::manifest::Name::new(b"-");
        let Ok(name) = name else { return };
        let entry = Entry {
            id,
            parent: directory.parent,
            name,
            kind: Kind::Directory,
            is_linked: false,
            metadata: directory.metadata.clone(),
        };
        let kept = self.kept(&entry, None);
        let kept = super::Kept { mode: kept.mode.filter(|_| self.preserve.permissions), ..kept };
        if kept == super::Kept::default() {
            return;
        }
        let thing = super::walk::implied();
        let changes = Changes::TIME.with(Changes::PERMISSIONS);
        let set = self.endpoint.set(&directory.key, &thing, &kept, changes).await;
        if let Err(fault) = set {
            let path = directory.key.below(&self.root).unwrap_or(b".").to_vec();
            self.complain(StorageError::at(Operation::SetTimes, &path)(fault));
        }
    }
}

/// Lists a directory to its end.
pub async fn list<E: Endpoint>(endpoint: &E, directory: &Key, deep: bool) -> Answer<Vec<Listed>> {
    let (found, finds) = flume::bounded::<Vec<Listed>>(16);
    let gather = async {
        let mut all = Vec::new();
        while let Ok(group) = finds.recv_async().await {
            all.extend(group);
        }
        all
    };
    let (answer, all) = tokio::join!(endpoint.list(directory, deep, found), gather);
    answer.map(|()| all)
}

/// What a thing that is there would be as an entry, for the same link target.
fn has_target(thing: &Thing, target: &[u8]) -> bool {
    matches!(kind_of(thing, Links::Keep, b""), Kind::Symlink { target: found } if found == target)
}

fn is_file(thing: &Thing) -> bool {
    thing.kind == ThingKind::File
}

/// The contents of how many directories are remembered, and about how many names in all of them.
const MAX_REMEMBERED: usize = 256;
const MAX_NAMES: usize = 1 << 17;
