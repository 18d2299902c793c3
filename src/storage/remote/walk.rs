//! Finding what an endpoint has.
//!
//! In: origins, and what of them is meant. Out: entries, parents before their children. Where
//! directories are things of their own, several are listed at a time; where they are only implied,
//! one long listing tells of all keys, and directories are made of their slashes.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use tokio::task::JoinSet;

use super::source::{Inner, Origin, kind_of, metadata};
use super::{Answer, Endpoint, Fault, Key, Listed, Thing, ThingKind};
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::{Escaped, Name};
use crate::protocol::message::{Complaint, Entry, Failure, FailureCode, Kind, Metadata};
use crate::storage::filter::{Scope, Side};
use crate::storage::{Found, Operation, StorageError};

/// Nobody listens any more.
struct Gone;

/// Sends every entry that is meant.
pub async fn walk<E: Endpoint>(
    inner: &Inner<E>,
    found: flume::Sender<Vec<Found>>,
) -> Result<(), StorageError> {
    let mut walk = Walk {
        inner,
        found,
        group: Vec::new(),
        to_stat: Vec::new(),
        last: 0,
        taken: HashSet::new(),
        asked: HashSet::new(),
        is_root_complete: true,
        first_error: None,
    };
    match walk.run().await {
        Ok(()) => walk.first_error.map_or(Ok(()), Err),
        Err(Gone) => Ok(()),
    }
}

struct Walk<'a, E> {
    inner: &'a Inner<E>,
    found: flume::Sender<Vec<Found>>,
    /// What was found and is not handed over yet.
    group: Vec<Found>,
    /// Files in it of which a listing has not told all.
    to_stat: Vec<(EntryId, Key)>,
    last: u64,
    /// Names at the top; unused with a single origin.
    taken: HashSet<Name>,
    /// The paths that were asked for and found.
    asked: HashSet<Vec<u8>>,
    is_root_complete: bool,
    first_error: Option<StorageError>,
}

/// A directory in which things are looked for.
#[derive(Clone, Debug)]
struct Directory {
    id: EntryId,
    key: Key,
    /// From the top of the transfer; empty for the top.
    path: Vec<u8>,
    depth: u32,
    scope: Option<Scope>,
}

/// What is meant of a path, where only some were asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wanted {
    No,
    /// It leads to something that is.
    Way,
    Yes,
}

impl<E: Endpoint> Walk<'_, E> {
    async fn run(&mut self) -> Result<(), Gone> {
        let inner = self.inner;
        let refused = inner.selection.paths.as_ref().map_or(&[][..], |paths| &paths.refused);
        for path in refused {
            let text = format!("{} is no path below the source, and is left out", Escaped(path));
            self.complain(path.clone(), Failure::new(FailureCode::Io, text)).await?;
        }
        let mut lists_root = false;
        for origin in &inner.origins {
            lists_root |= origin.name.is_none();
            self.walk_origin(origin).await?;
        }
        for (name, failure) in &inner.missing {
            self.is_root_complete = false;
            let kind = Kind::Unsendable(failure.clone());
            self.emit(EntryId::ROOT, name.clone(), kind, Metadata::default()).await?;
        }
        self.tell_not_found().await?;
        if lists_root && self.is_root_complete && !inner.selection.is_by_name() {
            self.send(Found::Listed(EntryId::ROOT)).await?;
        }
        self.hand_over().await
    }

    async fn walk_origin(&mut self, origin: &Origin) -> Result<(), Gone> {
        let inner = self.inner;
        let base = origin.base();
        inner.begin_origin(EntryId(self.last + 1), base.clone());
        let scope = inner.selection.rules.as_ref().map(super::super::filter::Rules::root);
        let scope = scope.map(|scope| inside(&scope, b""));
        let top = Directory { id: EntryId::ROOT, key: base, path: Vec::new(), depth: 0, scope };
        if !inner.selection.enters(0) {
            return Ok(());
        }
        let start = match &origin.name {
            None => Some(top),
            Some(_) => self.visit(&top, &origin.key, origin.thing.clone()).await?,
        };
        let Some(start) = start else { return Ok(()) };
        if inner.endpoint.properties().keeps.directories {
            self.list_all(start).await
        } else {
            self.list_deep(start).await
        }
    }

    /// Lists directories, several at a time, until there are no more.
    async fn list_all(&mut self, start: Directory) -> Result<(), Gone> {
        let mut waiting = vec![start];
        let mut listing: JoinSet<(Directory, Answer<()>)> = JoinSet::new();
        let (tell, heard) = flume::bounded::<(u64, Vec<Listed>)>(LISTINGS);
        let mut under_way: HashMap<u64, Listing> = HashMap::new();
        loop {
            while listing.len() < LISTINGS
                && let Some(directory) = waiting.pop()
            {
                let (endpoint, tell) = (self.inner.endpoint.clone(), tell.clone());
                under_way.insert(directory.id.0, Listing::new(directory.clone()));
                listing.spawn(async move {
                    let (found, finds) = flume::bounded::<Vec<Listed>>(4);
                    let number = directory.id.0;
                    let pass_on = async {
                        while let Ok(group) = finds.recv_async().await {
                            if tell.send_async((number, group)).await.is_err() {
                                return;
                            }
                        }
                    };
                    let listing = endpoint.list(&directory.key, false, found);
                    let (answer, ()) = tokio::join!(listing, pass_on);
                    (directory, answer)
                });
            }
            tokio::select! {
                biased;
                Ok((number, group)) = heard.recv_async() => {
                    let Some(mut listing) = under_way.remove(&number) else { continue };
                    for listed in group {
                        self.take(&mut listing, listed, &mut waiting).await?;
                    }
                    under_way.insert(number, listing);
                }
                Some(joined) = listing.join_next() => {
                    let (directory, answer) = match joined {
                        Ok(ended) => ended,
                        Err(error) => match error.try_into_panic() {
                            Ok(panic) => std::panic::resume_unwind(panic),
                            // The runtime is shutting down, and will drop this too.
                            Err(_) => return Err(Gone),
                        },
                    };
                    // What it said last may still be under way.
                    while let Ok((number, group)) = heard.try_recv() {
                        let Some(mut listing) = under_way.remove(&number) else { continue };
                        for listed in group {
                            self.take(&mut listing, listed, &mut waiting).await?;
                        }
                        under_way.insert(number, listing);
                    }
                    let Some(listing) = under_way.remove(&directory.id.0) else { continue };
                    self.end(listing, answer).await?;
                }
                else => return Ok(()),
            }
            if listing.is_empty() && waiting.is_empty() && heard.is_empty() {
                return Ok(());
            }
        }
    }

    /// A directory was listed to its end, or not.
    async fn end(&mut self, listing: Listing, answer: Answer<()>) -> Result<(), Gone> {
        let Listing { directory, is_complete } = listing;
        if let Err(fault) = answer {
            return self.note(&directory, fault).await;
        }
        if directory.id == EntryId::ROOT {
            self.is_root_complete &= is_complete;
        } else if is_complete {
            self.send(Found::Listed(directory.id)).await?;
        }
        Ok(())
    }

    async fn take(
        &mut self,
        listing: &mut Listing,
        listed: Listed,
        waiting: &mut Vec<Directory>,
    ) -> Result<(), Gone> {
        match listed {
            Listed::Thing(key, thing) => {
                // Whatever it is, it is not in this directory. An endpoint that does not know whether it
                // tells all tells of the directory itself.
                if key.parent().as_ref() != Some(&listing.directory.key) {
                    listing.is_complete = false;
                    return Ok(());
                }
                let child = self.visit(&listing.directory, &key, thing).await?;
                waiting.extend(child);
            }
            Listed::Unusable { shown, reason } => {
                listing.is_complete = false;
                self.refuse(&shown, &reason.to_string()).await?;
            }
            Listed::Unknown(key, fault) => {
                listing.is_complete = false;
                self.tell_unknown(&key, fault).await?;
            }
        }
        Ok(())
    }

    /// Lists all keys below a directory, and makes directories of their slashes.
    async fn list_deep(&mut self, start: Directory) -> Result<(), Gone> {
        let inner = self.inner;
        let (found, finds) = flume::bounded::<Vec<Listed>>(16);
        let mut deep = Deep::new(start.id);
        deep.known.insert(Vec::new(), Some(start.clone()));
        let take = async {
            // Dropped at the end, so that a listing that nobody listens to ends too.
            let finds = finds;
            while let Ok(group) = finds.recv_async().await {
                for listed in group {
                    self.take_deep(&mut deep, &start, listed).await?;
                }
            }
            Ok(())
        };
        // At the same time: a listing that waits for its turn must not keep others from having theirs.
        let (answer, taken) = tokio::join!(inner.endpoint.list(&start.key, true, found), take);
        taken?;
        if let Err(fault) = answer {
            return self.note(&start, fault).await;
        }
        for id in deep.ids.into_iter().filter(|_| deep.is_complete) {
            if id != EntryId::ROOT {
                self.send(Found::Listed(id)).await?;
            }
        }
        self.is_root_complete &= deep.is_complete;
        Ok(())
    }

    async fn take_deep(
        &mut self,
        deep: &mut Deep,
        start: &Directory,
        listed: Listed,
    ) -> Result<(), Gone> {
        let (key, thing) = match listed {
            Listed::Thing(key, thing) => (key, thing),
            Listed::Unusable { shown, reason } => {
                deep.is_complete = false;
                return self.refuse(&shown, &reason.to_string()).await;
            }
            Listed::Unknown(key, fault) => {
                deep.is_complete = false;
                return self.tell_unknown(&key, fault).await;
            }
        };
        let Some(below) = key.below(&start.key) else { return Ok(()) };
        let parent =
            below.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &below[..at]);
        // The directories on the way, the highest first.
        let slashes = (0..=parent.len())
            .filter(|at| !parent.is_empty() && (*at == parent.len() || parent[*at] == b'/'));
        for end in slashes {
            let path = &parent[..end];
            if deep.known.contains_key(path) {
                continue;
            }
            let above =
                path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &path[..at]);
            let Some(Some(above)) = deep.known.get(above).cloned() else {
                deep.known.insert(path.to_vec(), None);
                continue;
            };
            let Ok(own) = start.key.join(path) else { continue };
            if deep.has_file(path) {
                deep.is_complete = false;
                deep.known.insert(path.to_vec(), None);
                let shown = self.inner.endpoint.shown(&own);
                self.refuse(&shown, "a key and the beginning of others have this name").await?;
                continue;
            }
            let made = self.visit(&above, &own, implied()).await?;
            deep.ids.extend(made.as_ref().map(|directory| directory.id));
            deep.known.insert(path.to_vec(), made);
        }
        if thing.kind == ThingKind::Directory {
            return Ok(());
        }
        let Some(Some(directory)) = deep.known.get(parent).cloned() else { return Ok(()) };
        if deep.known.contains_key(below) {
            deep.is_complete = false;
            let shown = self.inner.endpoint.shown(&key);
            return self.refuse(&shown, "other keys have it for a directory").await;
        }
        deep.add_file(below);
        self.visit(&directory, &key, thing).await?;
        Ok(())
    }

    /// Looks at one thing and sends it, if it is meant; returns it if it is a directory to list.
    async fn visit(
        &mut self,
        at: &Directory,
        key: &Key,
        thing: Thing,
    ) -> Result<Option<Directory>, Gone> {
        let Ok(name) = Name::new(key.name()) else { return Ok(None) };
        let path = if at.path.is_empty() {
            name.as_bytes().to_vec()
        } else {
            [&at.path, &b"/"[..], name.as_bytes()].concat()
        };
        let is_directory = thing.kind == ThingKind::Directory;
        let wanted = self.wanted(&path);
        if wanted == Wanted::No || wanted == Wanted::Way && !is_directory {
            return Ok(None);
        }
        let is_left_out = |scope: &Scope| !scope.admits(Side::Sender, &path, is_directory);
        if wanted == Wanted::Yes && at.scope.as_ref().is_some_and(is_left_out) {
            return Ok(None);
        }
        if name.as_bytes().starts_with(OWN_PREFIX) {
            return Ok(None);
        }
        let mut kind = kind_of(&thing, self.inner.links, &path);
        if at.id == EntryId::ROOT
            && self.inner.origins.len() > 1
            && !self.taken.insert(name.clone())
        {
            let text = format!("{} is left out: another source has this name", Escaped(&path));
            return self
                .refuse_with(&path, Failure::new(FailureCode::Conflict, text))
                .await
                .map(|()| None);
        }
        if let Kind::File(file) = &kind
            && !self.inner.selection.takes_size(file.size)
        {
            kind = Kind::Unselected;
        }
        let metadata = metadata(&thing);
        if matches!(kind, Kind::File(_)) {
            let id = EntryId(self.last + 1);
            self.inner.add_thing(id, thing);
            if self.inner.is_stat_needed {
                self.to_stat.push((id, key.clone()));
            }
        }
        let is_file = kind != Kind::Directory;
        let id = self.emit(at.id, name.clone(), kind, metadata).await?;
        if is_file {
            return Ok(None);
        }
        self.inner.add_directory(id, at.id, name, key.clone());
        let scope = at.scope.as_ref().map(|scope| inside(scope, &path));
        let directory = Directory { id, key: key.clone(), path, depth: at.depth + 1, scope };
        let is_entered = self.inner.selection.enters(directory.depth);
        Ok(Some(directory).filter(|_| is_entered))
    }

    /// What is meant of a path.
    fn wanted(&mut self, path: &[u8]) -> Wanted {
        let selection = &self.inner.selection;
        let Some(paths) = selection.paths.as_ref().filter(|_| selection.is_by_name()) else {
            return Wanted::Yes;
        };
        let is_below = |below: &[u8], above: &[u8]| {
            below.strip_prefix(above).is_some_and(|rest| rest.starts_with(b"/"))
        };
        let mut answer = Wanted::No;
        for asked in &paths.sorted {
            if asked == path {
                self.asked.insert(path.to_vec());
                answer = Wanted::Yes;
            } else if selection.whole_directories && is_below(path, asked) {
                answer = Wanted::Yes;
            } else if is_below(asked, path) && answer == Wanted::No {
                answer = Wanted::Way;
            }
        }
        answer
    }

    /// Tells what was asked for and is not there.
    async fn tell_not_found(&mut self) -> Result<(), Gone> {
        let selection = &self.inner.selection;
        let Some(paths) = selection.paths.as_ref().filter(|_| selection.is_by_name()) else {
            return Ok(());
        };
        for path in paths
            .sorted
            .iter()
            .filter(|path| !self.asked.contains(*path))
            .cloned()
            .collect::<Vec<_>>()
        {
            let fault = Fault::new(super::Class::Missing, "there is nothing of this name");
            let error = StorageError::at(Operation::Stat, &path)(fault);
            self.refuse_with(&path, error.to_failure()).await?;
        }
        Ok(())
    }

    /// Tells of something that cannot be an entry of its name.
    async fn refuse(&mut self, shown: &[u8], why: &str) -> Result<(), Gone> {
        let text = format!("{} is left out: {why}", Escaped(shown));
        self.refuse_with(shown, Failure::new(FailureCode::Unsupported, text)).await
    }

    /// Tells of something of which nothing is known but its name.
    async fn tell_unknown(&mut self, key: &Key, fault: Fault) -> Result<(), Gone> {
        let shown = self.inner.endpoint.shown(key);
        let error = StorageError::at(Operation::Stat, &shown)(fault);
        self.refuse_with(&shown, error.to_failure()).await
    }

    async fn refuse_with(&mut self, path: &[u8], failure: Failure) -> Result<(), Gone> {
        self.complain(path.to_vec(), failure).await
    }

    async fn emit(
        &mut self,
        parent: EntryId,
        name: Name,
        kind: Kind,
        metadata: Metadata,
    ) -> Result<EntryId, Gone> {
        self.last += 1;
        let id = EntryId(self.last);
        self.send(Found::Entry(Entry { id, parent, name, kind, is_linked: false, metadata }))
            .await?;
        Ok(id)
    }

    /// Tells that a directory could not be listed to its end.
    async fn note(&mut self, directory: &Directory, fault: Fault) -> Result<(), Gone> {
        self.is_root_complete &= directory.id != EntryId::ROOT;
        let shown = self.inner.endpoint.shown(&directory.key);
        let is_fatal = fault.is_fatal();
        let error = StorageError::at(Operation::List, &shown)(fault);
        if is_fatal {
            self.first_error.get_or_insert(error);
            return Ok(());
        }
        self.complain(directory.path.clone(), error.to_failure()).await
    }

    async fn complain(&mut self, path: Vec<u8>, failure: Failure) -> Result<(), Gone> {
        self.send(Found::Complaint(Complaint::new(path, failure))).await
    }

    async fn send(&mut self, found: Found) -> Result<(), Gone> {
        self.group.push(found);
        // What has to be asked for is asked for many at a time.
        let is_due =
            self.group.len() >= MIN_GROUP && self.found.is_empty() && self.to_stat.is_empty();
        if is_due || self.group.len() >= MAX_GROUP { self.hand_over().await } else { Ok(()) }
    }

    async fn hand_over(&mut self) -> Result<(), Gone> {
        let mut group = std::mem::take(&mut self.group);
        if group.is_empty() {
            return Ok(());
        }
        self.complete(&mut group).await;
        self.found.send_async(group).await.map_err(|_| Gone)
    }
}

impl<E: Endpoint> Walk<'_, E> {
    /// Tells of files what their listing did not.
    async fn complete(&mut self, group: &mut [Found]) {
        let inner = self.inner;
        let to_stat = std::mem::take(&mut self.to_stat);
        let stats: Vec<_> = to_stat.iter().map(|(_, key)| inner.endpoint.stat(key)).collect();
        let stats = super::all(stats, inner.endpoint.properties().requests).await;
        let mut stats = to_stat.iter().map(|(id, _)| *id).zip(stats).peekable();
        // Both are in the order of identities.
        for found in group {
            let Found::Entry(entry) = found else { continue };
            let Some((_, stat)) = stats.next_if(|(id, _)| *id == entry.id) else { continue };
            let path = inner.path_of(entry.parent, entry.name.as_bytes());
            let failure = match stat {
                Ok(Some(thing)) => {
                    entry.kind = kind_of(&thing, inner.links, &path);
                    entry.metadata = metadata(&thing);
                    inner.set_thing(entry.id, thing);
                    continue;
                }
                Ok(None) => StorageError::Vanished { path }.to_failure(),
                Err(fault) => {
                    let is_fatal = fault.is_fatal();
                    let error = StorageError::at(Operation::Stat, &path)(fault);
                    let failure = error.to_failure();
                    if is_fatal {
                        self.first_error.get_or_insert(error);
                    }
                    failure
                }
            };
            (entry.kind, entry.metadata) = (Kind::Unsendable(failure), Metadata::default());
        }
    }
}

/// A directory that is being listed.
struct Listing {
    directory: Directory,
    is_complete: bool,
}

impl Listing {
    fn new(directory: Directory) -> Self {
        Self { directory, is_complete: true }
    }
}

/// What a long listing has come to so far.
struct Deep {
    /// Directories by their paths below the start; `None` for what is left out.
    known: HashMap<Vec<u8>, Option<Directory>>,
    ids: Vec<EntryId>,
    /// Hashes of the paths of files, as a path may be a directory's too.
    files: HashSet<u64>,
    hasher: RandomState,
    is_complete: bool,
}

impl Deep {
    fn new(start: EntryId) -> Self {
        Self {
            known: HashMap::new(),
            ids: vec![start],
            files: HashSet::new(),
            hasher: RandomState::new(),
            is_complete: true,
        }
    }

    fn add_file(&mut self, path: &[u8]) {
        self.files.insert(self.hasher.hash_one(path));
    }

    fn has_file(&self, path: &[u8]) -> bool {
        self.files.contains(&self.hasher.hash_one(path))
    }
}

/// The rules in a directory that has no files of rules.
fn inside(scope: &Scope, path: &[u8]) -> Scope {
    // Nothing is read, so nothing can be wrong with it.
    scope.enter(path, &mut |_| Ok(None)).unwrap_or_else(|_| scope.clone())
}

/// A directory of which nothing is known but that there is something in it.
pub fn implied() -> Thing {
    Thing {
        kind: ThingKind::Directory,
        size: 0,
        mtime: None,
        modified: None,
        mode: None,
        owners: None,
        tag: None,
        root: None,
        target: None,
    }
}

/// What our own temporary files begin with, at any endpoint.
pub const OWN_PREFIX: &[u8] = b".fastsync-";

/// How many directories are listed at the same time.
const LISTINGS: usize = 16;

/// How many finds are handed over together: at the least while nothing waits for the listener (but
/// for the last ones), and at the most.
const MIN_GROUP: usize = 32;
const MAX_GROUP: usize = 256;
