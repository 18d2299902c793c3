//! What goes at an endpoint: what the source does not have, and directories in the places of files.
//!
//! In: the directories of which all is known at the source, and the names in them. Out: what was
//! removed, or in a dry run would be. What is protected stays, and whatever it is in.

use std::collections::HashSet;

use super::place::{self, Directory, State};
use super::sink::{Inner, STATE_NAME};
use super::walk::OWN_PREFIX;
use super::{Class, Endpoint, Key, Listed, Thing, ThingKind};
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::Name;
use crate::protocol::message::{Delete, Deleted, Deletions, Entry, MakeRoom};
use crate::storage::filter::{Scope, Side};
use crate::storage::{NameSet, Operation, StorageError};

impl<E: Endpoint> Inner<E> {
    /// Removes what is in complete directories and is not among the names.
    pub async fn delete(
        &self,
        complete: Vec<EntryId>,
        names: NameSet,
        deleted: flume::Sender<Deleted>,
    ) -> Result<Deletions, StorageError> {
        let Some(delete) = self.delete else { return Ok(Deletions::default()) };
        let complete: HashSet<EntryId> = complete.into_iter().collect();
        let tops = self.to_clear(&complete);
        if !delete.allow_empty_source {
            self.check_not_empty(&tops, &complete, &names).await?;
        }
        let mut doomed: Vec<Doomed> = Vec::new();
        let mut unknown: HashSet<EntryId> = HashSet::new();
        for id in tops {
            let Some((key, path)) = self.directory(id) else { continue };
            let parent = self.state().directories.get(&id).map(|it| it.parent);
            if parent.is_some_and(|parent| id != EntryId::ROOT && unknown.contains(&parent)) {
                unknown.insert(id);
                continue;
            }
            let extra = match self.extra(id, &key, &names).await {
                Ok(extra) => extra,
                Err(error) => {
                    unknown.insert(id);
                    self.complain(error);
                    continue;
                }
            };
            if !extra.is_empty() {
                self.touch(id);
            }
            for (name, thing) in extra {
                let below = join(&path, name.as_bytes());
                let Ok(own) = key.child(&name) else { continue };
                if thing.kind != ThingKind::Directory {
                    doomed.push((own, below, thing.kind));
                    continue;
                }
                match self.contents(&own, &below).await {
                    Ok(mut contents) => {
                        doomed.append(&mut contents.doomed);
                        if contents.is_all && self.endpoint.properties().keeps.directories {
                            doomed.push((own, below, thing.kind));
                        }
                    }
                    Err(error) => self.complain(error),
                }
            }
        }
        self.remove_doomed(doomed, delete, &deleted).await
    }

    /// Refuses to clear a directory of the source's top that has nothing in it there.
    async fn check_not_empty(
        &self,
        tops: &[EntryId],
        complete: &HashSet<EntryId>,
        names: &NameSet,
    ) -> Result<(), StorageError> {
        let is_outermost = |id: &&EntryId| {
            let parent = self.state().directories.get(*id).map(|it| it.parent);
            **id == EntryId::ROOT
                || parent == Some(EntryId::ROOT) && !complete.contains(&EntryId::ROOT)
        };
        for id in tops.iter().filter(is_outermost).copied() {
            if names.has_any_in(id) {
                continue;
            }
            let Some((key, _)) = self.directory(id) else { continue };
            if !self.extra(id, &key, names).await?.is_empty() {
                let path = self.endpoint.shown(&key);
                return Err(StorageError::EmptySource { path });
            }
        }
        Ok(())
    }

    /// What is in a directory and neither known nor protected.
    async fn extra(
        &self,
        id: EntryId,
        key: &Key,
        names: &NameSet,
    ) -> Result<Vec<(Name, Thing)>, StorageError> {
        let (_, path) = self.directory(id).unwrap_or_default();
        let listed = match place::list(&self.endpoint, key, false).await {
            Ok(listed) => listed,
            Err(fault) if fault.class == Class::Missing => Vec::new(),
            Err(fault) => {
                let shown = self.endpoint.shown(key);
                return Err(StorageError::at(Operation::List, &shown)(fault));
            }
        };
        let scope = self.scope(&path);
        let mut extra = Vec::new();
        for listed in listed {
            let Listed::Thing(own, thing) = listed else { continue };
            let Ok(name) = Name::new(own.name()) else { continue };
            let is_directory = thing.kind == ThingKind::Directory;
            let is_ours = name.as_bytes().starts_with(OWN_PREFIX)
                || id == EntryId::ROOT && name.as_bytes() == STATE_NAME;
            let below = join(&path, name.as_bytes());
            if !is_ours
                && !names.contains(id, name.as_bytes())
                && scope.admits(Side::Receiver, &below, is_directory)
            {
                extra.push((name, thing));
            }
        }
        extra.sort_by(|one, other| other.0.cmp(&one.0));
        Ok(extra)
    }

    fn scope(&self, path: &[u8]) -> Scope {
        let enter = |scope: Scope, path: &[u8]| {
            // Nothing is read, so nothing can be wrong with it.
            scope.enter(path, &mut |_| Ok(None)).unwrap_or(scope)
        };
        let mut scope = enter(self.rules.root(), b"");
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            scope = enter(scope, &path[..at]);
        }
        if path.is_empty() { scope } else { enter(scope, path) }
    }

    /// The directories that may be cleared, each after the one that it is in: a directory of which
    /// the source could not tell everything stays as it is, and whatever is below it (DEL-2).
    fn to_clear(&self, complete: &HashSet<EntryId>) -> Vec<EntryId> {
        let state = self.state();
        let mut ids: Vec<EntryId> = complete.iter().copied().collect();
        ids.sort_unstable();
        let mut reached = HashSet::new();
        let is_reached = |id: &EntryId| {
            let parent = match state.directories.get(id) {
                _ if *id == EntryId::ROOT => return reached.insert(*id),
                Some(Directory { state: State::There | State::New, parent, .. }) => *parent,
                _ => return false,
            };
            let is_top = parent == EntryId::ROOT && !complete.contains(&EntryId::ROOT);
            (is_top || reached.contains(&parent)) && reached.insert(*id)
        };
        ids.into_iter().filter(is_reached).collect()
    }

    /// What is in a directory and may go, the deepest first.
    ///
    /// # Errors
    ///
    /// If it cannot be listed to its end.
    async fn contents(&self, key: &Key, path: &[u8]) -> Result<Contents, StorageError> {
        let listed = place::list(&self.endpoint, key, true).await;
        let listed = listed.map_err(StorageError::at(Operation::List, path))?;
        let mut contents = Contents { doomed: Vec::new(), is_all: true };
        // What stays; and what something that stays is in.
        let (mut kept, mut above) = (HashSet::new(), HashSet::new());
        for listed in listed {
            let Listed::Thing(own, thing) = listed else {
                contents.is_all = false;
                continue;
            };
            let Some(below) = own.below(key) else { continue };
            let below = join(path, below);
            let is_directory = thing.kind == ThingKind::Directory;
            let scope = self.scope(parent_of(&below)).in_removed_directory();
            let is_ours = own.name().starts_with(OWN_PREFIX);
            if is_ours || !scope.admits(Side::Receiver, &below, is_directory) {
                contents.is_all = false;
                above.extend(ways(&below).map(<[u8]>::to_vec));
                kept.insert(below);
            } else {
                contents.doomed.push((own, below, thing.kind));
            }
        }
        let keeps_directories = self.endpoint.properties().keeps.directories;
        // A name that is no key may be anywhere.
        let may_remove_directories = keeps_directories && (contents.is_all || !kept.is_empty());
        let is_protected = |path: &[u8]| {
            above.contains(path) || !kept.is_empty() && ways(path).any(|way| kept.contains(way))
        };
        let doomed = contents.doomed.iter().map(|(_, path, _)| is_protected(path));
        contents.is_all &= !doomed.clone().any(|is_protected| is_protected);
        contents.doomed.retain(|(_, path, kind)| {
            !is_protected(path) && (*kind != ThingKind::Directory || may_remove_directories)
        });
        contents.doomed.sort_by(|one, other| other.1.cmp(&one.1));
        Ok(contents)
    }

    /// Checks that a directory may go for a file, and in a dry run tells what would go with it.
    pub async fn check_room(&self, key: &Key, entry: &Entry) -> Result<(), StorageError> {
        let path = self.path(entry);
        let conflict = |existing| Err(StorageError::Conflict { path: path.clone(), existing });
        let contents = self.contents(key, &path).await?;
        let has_any = !contents.is_all || !contents.doomed.is_empty();
        if has_any && self.update.make_room != MakeRoom::All {
            return conflict("a directory that is not empty");
        }
        if !contents.is_all {
            return conflict("a directory with something in it that has to stay");
        }
        let count = contents.doomed.len() as u64;
        let mut state = self.state();
        let max = self.delete.and_then(|delete| delete.max);
        if max.is_some_and(|max| state.gone.saturating_add(count) > max) {
            state.removed.over_limit += count;
            return conflict("a directory with more in it than may still be deleted");
        }
        if self.dry_run {
            state.gone += count;
            state.removed.deleted.extend(contents.doomed.into_iter().map(told));
        } else {
            state.rooms.insert(entry.id);
        }
        Ok(())
    }

    /// Removes the directory that is in a file's place, if one is.
    pub async fn clear_room(&self, key: &Key, entry: &Entry) -> Result<(), StorageError> {
        if !self.state().rooms.contains(&entry.id) {
            return Ok(());
        }
        // Somebody may have put something into it since.
        self.check_room(key, entry).await?;
        let contents = self.contents(key, &self.path(entry)).await?;
        let own = (key.clone(), self.path(entry), ThingKind::Directory);
        let keeps_directories = self.endpoint.properties().keeps.directories;
        for doomed in contents.doomed.into_iter().chain(keeps_directories.then(|| own.clone())) {
            let removed = self.endpoint.remove(vec![(doomed.0.clone(), doomed.2)]).await;
            let removed = removed.into_iter().next().unwrap_or(Ok(()));
            removed.map_err(StorageError::at(Operation::Remove, &doomed.1))?;
            if doomed.1 != own.1 {
                let mut state = self.state();
                state.gone += 1;
                state.removed.deleted.push(told(doomed));
            }
        }
        self.state().rooms.remove(&entry.id);
        self.forget(key);
        Ok(())
    }

    async fn remove_doomed(
        &self,
        mut doomed: Vec<Doomed>,
        delete: Delete,
        deleted: &flume::Sender<Deleted>,
    ) -> Result<Deletions, StorageError> {
        let mut count = Deletions::default();
        let gone_before = self.state().gone;
        let max = delete.max.map_or(u64::MAX, |max| max.saturating_sub(gone_before));
        let allowed = usize::try_from(max).unwrap_or(usize::MAX).min(doomed.len());
        count.over_limit = (doomed.len() - allowed) as u64;
        doomed.truncate(allowed);
        let mut rest = &doomed[..];
        while !rest.is_empty() {
            // A directory goes after what is in it: it waits for the answers to all before it.
            let is_directory = |kind: ThingKind| kind == ThingKind::Directory;
            let first_kind = rest.first().is_some_and(|it| is_directory(it.2));
            let run = rest.iter().take_while(|it| is_directory(it.2) == first_kind && !first_kind);
            let len = run.count().clamp(1, MAX_REMOVED);
            let (now, later) = rest.split_at(len);
            rest = later;
            let removed = if self.dry_run {
                now.iter().map(|_| Ok(())).collect()
            } else {
                let things = now.iter().map(|(key, _, kind)| (key.clone(), *kind)).collect();
                self.endpoint.remove(things).await
            };
            for ((_, path, kind), answer) in now.iter().zip(removed) {
                match answer {
                    Ok(()) => {
                        count.done += 1;
                        let told =
                            Deleted { path: path.clone(), is_directory: is_directory(*kind) };
                        let _ = deleted.send_async(told).await;
                    }
                    Err(fault) if fault.is_fatal() => {
                        return Err(StorageError::at(Operation::Remove, path)(fault));
                    }
                    Err(fault) => self.complain(StorageError::at(Operation::Remove, path)(fault)),
                }
            }
        }
        Ok(count)
    }
}

/// Something that is to be removed: where it is, its path for people, and what it is.
type Doomed = (Key, Vec<u8>, ThingKind);

/// What is in a directory.
struct Contents {
    doomed: Vec<Doomed>,
    /// Nothing in it has to stay.
    is_all: bool,
}

fn told((_, path, kind): Doomed) -> Deleted {
    Deleted { path, is_directory: kind == ThingKind::Directory }
}

/// The paths of the directories that something is in.
fn ways(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.filter_map(|(at, _)| path.get(..at))
}

fn parent_of(path: &[u8]) -> &[u8] {
    ways(path).last().unwrap_or_default()
}

/// The path of a name in a directory.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// How many things are removed with one call.
const MAX_REMOVED: usize = 1000;
