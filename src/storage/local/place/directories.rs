//! Directories, from their first touch to their last.
//!
//! In: entries of directories, and what is there for them. Out: directories that stay writable for
//! us until [`Inner::finish`] gives them their metadata, when nothing changes in them any more.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{FileType, Mode as FsMode, OFlags, Stat};
use rustix::io::Errno;

use super::super::attributes::{self, DEFAULT_ACL, Sort};
use super::super::beneath;
use super::super::metadata::{Subject, Target, open_looked_at, set_mode};
use super::super::tree::Place;
use super::super::write::{Inner, Step, at};
use super::created;
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{Attribute, Changes, Entry, Kind, Metadata, Mode};
use crate::storage::{Operation, Placed, StorageError};

/// What a directory is to be in the end.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    mode: Mode,
    mtime: Timestamp,
    owner: u32,
    group: u32,
    /// The mode that it had, if we did not make it.
    original: Option<u32>,
    pub state: State,
}

/// What became of a directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    There,
    /// In a dry run: it would have been made.
    Missing,
    /// The options say that nothing is made, neither it nor anything in it.
    Left,
    /// It could not be made.
    Failed,
}

/// The ACLs that directories get in the end, each different list once.
#[derive(Debug, Default)]
pub struct DirectoryAcls {
    lists: HashMap<[u8; 32], Arc<[Attribute]>>,
    of: HashMap<EntryId, [u8; 32]>,
    /// All lists together, in bytes.
    len: usize,
}

/// How much memory the ACLs of directories may take until the end, in bytes.
const MAX_ACLS_LEN: usize = 64 << 20;

impl Inner {
    pub fn place_directory(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let makes = !self.dry_run && !self.update.existing_only;
        let existing = if makes {
            match rustix::fs::mkdirat(dir, name, FsMode::RWXU) {
                Ok(()) => None,
                Err(Errno::EXIST) => self.look(dir, name, entry)?,
                Err(cause) => return Err(self.error(entry)((Operation::Create, cause))),
            }
        } else {
            self.look(dir, name, entry)?
        };
        if let Some(stat) = &existing
            && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
        {
            return self.keep_directory(dir, name, stat, entry);
        }
        let is_left = match &existing {
            Some(_) => self.update.ignore_existing,
            None => self.update.existing_only,
        };
        if is_left {
            self.remember_if_directory(entry, name, None, State::Left);
            return Ok(Placed::Left);
        }
        if let Some(stat) = &existing {
            self.check_room(dir, name, stat, entry)?;
            if !self.dry_run {
                self.make_directory_over(dir, name, entry)?;
            }
        }
        let state = if self.dry_run { State::Missing } else { State::There };
        self.remember_if_directory(entry, name, None, state);
        if !self.dry_run {
            if !attributes::is_privileged()
                && let Some(stat) = self.look(dir, name, entry)?
            {
                // The default ACL of its parent may have taken our rights away.
                make_usable(dir, name, &stat).map_err(self.error(entry))?;
            }
            self.begin_directory(dir, name, entry)?;
        }
        Ok(created(entry).with(Changes::TYPE.when(existing.is_some())))
    }

    /// Makes a directory where something else is.
    fn make_directory_over(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let temp = self.temp_name(name);
        let make = || rustix::fs::mkdirat(dir, &temp, FsMode::RWXU);
        self.make_temp(dir, &temp, make).map_err(self.error(entry))?;
        self.put_in_place(dir, &temp, name, entry)
    }

    /// An existing directory: tells what is different, and lets us work in it.
    fn keep_directory(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        if self.removes_sources && self.is_source((stat.st_dev, stat.st_ino)) {
            return Err(StorageError::SameFile { path: self.path(entry) });
        }
        let target = self.target(&entry.metadata, FileType::Directory, None);
        let (changes, _) = self.compare(dir, name, stat, &target).map_err(self.error(entry))?;
        if !self.dry_run {
            make_usable(dir, name, stat).map_err(self.error(entry))?;
        }
        self.remember_if_directory(entry, name, Some(stat.st_mode & 0o7777), State::There);
        if !self.dry_run && changes.has(Changes::ATTRIBUTES) {
            self.begin_directory(dir, name, entry)?;
        }
        Ok(Placed::Settled(changes))
    }

    /// Gives a directory the attributes that do not hinder us, so that they need not be remembered.
    fn begin_directory(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StorageError> {
        if !self.preserve.attributes {
            return Ok(());
        }
        let begin = || {
            let fd = beneath::open_child(dir, name, OFlags::PATH).map_err(at(Operation::Open))?;
            let stat = rustix::fs::fstat(&fd).map_err(at(Operation::Stat))?;
            let target = Target::of_xattrs(&entry.metadata, FileType::Directory);
            self.apply(fd.as_fd(), &stat, &target, Subject { path: &|| self.path(entry) });
            Ok(())
        };
        begin().map_err(self.error(entry))
    }

    pub fn remember_if_directory(
        &self,
        entry: &Entry,
        name: &[u8],
        original: Option<u32>,
        state: State,
    ) {
        if entry.kind != Kind::Directory {
            return;
        }
        let Metadata { mode, mtime, owner, group, .. } = entry.metadata;
        let wish = Wish { mode, mtime, owner, group, original, state };
        self.tree.insert(Place { id: entry.id, parent: entry.parent, name }, wish, None);
        if state == State::There && self.preserve.acls && !self.dry_run {
            let is_kept = self.lock_acls().insert(entry.id, &entry.metadata.attributes);
            if !is_kept {
                let (name, path) = (DEFAULT_ACL.to_vec(), self.path(entry));
                let cause = std::io::ErrorKind::OutOfMemory.into();
                self.complain(StorageError::Attribute { name, path, cause });
            }
        }
    }

    fn lock_acls(&self) -> MutexGuard<'_, DirectoryAcls> {
        self.directory_acls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives directories their metadata, the last first: children come after their parents, and a
    /// parent without write permission would not let us touch its children.
    pub fn finish(&self) -> Vec<StorageError> {
        if self.dry_run {
            return Vec::new();
        }
        self.sweep();
        let finish = |at| {
            let (id, parent, name, wish) = self.tree.at(at)?;
            let finished = match wish.state {
                State::There => self.finish_directory(id, parent, &name, wish),
                State::Missing | State::Left | State::Failed => Ok(()),
            };
            let (operation, cause) = finished.err()?;
            let path = self.tree.path(parent, &name);
            Some(StorageError::io(operation, &path)(cause))
        };
        let failed = (0..self.tree.len()).rev().filter_map(finish).collect();
        self.finish_root();
        failed
    }

    fn finish_directory(&self, id: EntryId, parent: EntryId, name: &[u8], wish: Wish) -> Step<()> {
        let dir = self.tree.parent_of(id, parent).map_err(at(Operation::Open))?;
        let fd =
            beneath::open_child(dir.as_fd(), name, OFlags::PATH).map_err(at(Operation::Open))?;
        let stat = rustix::fs::fstat(&fd).map_err(at(Operation::Stat))?;
        let acls = self.lock_acls().get(id);
        let Wish { mode, mtime, owner, group, original, .. } = wish;
        let attributes = acls.map_or_else(Vec::new, |acls| acls.to_vec());
        let metadata = Metadata { mode, mtime, owner, group, attributes };
        let new_in = original.is_none().then_some(dir.as_fd());
        let mut target = self.target(&metadata, FileType::Directory, new_in);
        target.xattrs = false;
        target.mode = target.mode.or(original);
        let path = || self.tree.path(parent, name);
        self.apply(fd.as_fd(), &stat, &target, Subject { path: &path });
        Ok(())
    }

    /// Gives the destination's own directory the metadata that [`Inner::keep_root`] was told.
    fn finish_root(&self) {
        let metadata = self.root_metadata.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(metadata), Some(root)) = (metadata, &self.root) else { return };
        let target = self.target(&metadata, FileType::Directory, None);
        let path = || b".".to_vec();
        let subject = Subject { path: &path };
        match rustix::fs::fstat(root) {
            Ok(stat) => self.apply(root.as_fd(), &stat, &target, subject),
            Err(cause) => {
                self.complain(StorageError::io(Operation::Stat, b".")(cause));
            }
        }
    }

    /// Takes note of what the destination's own directory is to be like in the end. Returns what is
    /// different about it now.
    pub fn keep_root(&self, metadata: Metadata) -> Changes {
        if !self.keeps_root {
            return Changes::NONE;
        }
        let changes = self.root_changes(&metadata);
        if !self.dry_run {
            let mut kept = self.root_metadata.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = Some(metadata);
        }
        changes
    }

    fn root_changes(&self, metadata: &Metadata) -> Changes {
        let Some(root) = self.root.as_ref().filter(|_| !self.is_root_new) else {
            return Changes::CREATED_WITH_CONTENT;
        };
        // What is wrong with it will show when its metadata is set.
        let Ok(stat) = rustix::fs::fstat(root) else { return Changes::NONE };
        let target = self.target(metadata, FileType::Directory, None);
        let compared = self.compare(root.as_fd(), b".", &stat, &target);
        compared.map_or(Changes::NONE, |(changes, _)| changes)
    }
}

impl DirectoryAcls {
    /// Takes the ACLs among a directory's attributes; `false` if there is no room for them.
    fn insert(&mut self, id: EntryId, attributes: &[Attribute]) -> bool {
        let is_acl = |it: &&Attribute| Sort::of(&it.name) == Some(Sort::Acl);
        let acls: Vec<_> = attributes.iter().filter(is_acl).cloned().collect();
        if acls.is_empty() {
            return true;
        }
        let mut hasher = blake3::Hasher::new();
        for Attribute { name, value } in &acls {
            for bytes in [name, value] {
                hasher.update(&bytes.len().to_le_bytes()).update(bytes);
            }
        }
        let hash = *hasher.finalize().as_bytes();
        if !self.lists.contains_key(&hash) {
            self.len += acls.iter().map(|it| it.name.len() + it.value.len()).sum::<usize>();
            if self.len > MAX_ACLS_LEN {
                return false;
            }
            self.lists.insert(hash, acls.into());
        }
        self.of.insert(id, hash);
        true
    }

    fn get(&self, id: EntryId) -> Option<Arc<[Attribute]>> {
        self.lists.get(self.of.get(&id)?).cloned()
    }
}

/// Lets us work in a directory of ours that does not allow it, until its mode is set in the end.
fn make_usable(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Step<()> {
    let mode = stat.st_mode & 0o7777;
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if mode & 0o700 == 0o700 || !is_ours {
        return Ok(());
    }
    let file = open_looked_at(dir, name, stat)?;
    set_mode(file.as_fd(), mode | 0o700).map_err(at(Operation::SetMode))
}
