//! Removing source files that are durably at the destination.
//!
//! In: entries. Out: whether each name is gone. Only what still is what its entry says is removed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{AtFlags, FileType, Mode as FsMode, OFlags, Stat};
use rustix::io::Errno;

use super::examine::special;
use super::read::Inner;
use super::{Look, beneath, mtime};
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{Entry, FileKind, Kind};
use crate::storage::{Operation, StorageError};

/// The change times that removing one of its names gave an inode which has others, by device and
/// number: they are no change of the file.
#[derive(Debug, Default)]
pub struct Unlinked(Mutex<HashMap<(u64, u64), Timestamp>>);

impl Unlinked {
    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, u64), Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an inode looks like, with the change time that it had before we touched it.
    fn undo(&self, stat: &Stat, before: Timestamp) -> Look {
        let look = Look::new(stat);
        let is_ours = self.lock().get(&(stat.st_dev, stat.st_ino)) == Some(&look.ctime);
        if is_ours { Look { ctime: before, ..look } } else { look }
    }

    /// Takes note of what removing a name has done to an inode.
    fn note(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(file)?;
        let key = (stat.st_dev, stat.st_ino);
        if stat.st_nlink == 0 {
            self.lock().remove(&key);
        } else {
            self.lock().insert(key, Look::new(&stat).ctime);
        }
        Ok(())
    }
}

impl Inner {
    /// Removes one file.
    pub fn remove(&self, entry: &Entry) -> Result<(), StorageError> {
        let dir = self
            .tree
            .parent_of(entry.id, entry.parent)
            .map_err(self.error(Operation::Remove, entry))?;
        let name = entry.name.as_bytes();
        let file = beneath::open_name(dir.as_fd(), name, OFlags::PATH, FsMode::empty())
            .map_err(self.error(Operation::Remove, entry))?;
        let stat = rustix::fs::fstat(&file).map_err(self.error(Operation::Stat, entry))?;
        let is_symlink = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        // The file was read through the symlink, and the symlink is what gets removed.
        let meant = if is_symlink && !matches!(entry.kind, Kind::Symlink { .. }) {
            self.stat_name(dir.as_fd(), name).map_err(self.error(Operation::Stat, entry))?
        } else {
            stat
        };
        if !self.is_as_announced(entry, file.as_fd(), &meant) {
            return Err(self.changed(entry));
        }
        rustix::fs::unlinkat(&dir, name, AtFlags::empty())
            .map_err(self.error(Operation::Remove, entry))?;
        if stat.st_nlink > 1 || !self.unlinked.lock().is_empty() {
            self.unlinked.note(file.as_fd()).map_err(self.error(Operation::Stat, entry))?;
        }
        Ok(())
    }

    fn is_as_announced(&self, entry: &Entry, file: BorrowedFd<'_>, stat: &Stat) -> bool {
        let is_as_old = mtime(stat) == entry.metadata.mtime;
        match &entry.kind {
            Kind::File(FileKind { size, stamp }) => {
                let before = Look {
                    size: *size,
                    mtime: entry.metadata.mtime,
                    ctime: stamp.ctime,
                    inode: stamp.inode,
                };
                FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                    && self.unlinked.undo(stat, before.ctime) == before
            }
            Kind::Symlink { target } => {
                let now = rustix::fs::readlinkat(file, "", Vec::new());
                is_as_old && now.is_ok_and(|now| now.as_bytes() == target)
            }
            Kind::Special(announced) => is_as_old && special(stat) == Some(*announced),
            Kind::HardLink { leader } => {
                let Some(leaders) = &self.survey.leaders else { return false };
                let leaders = leaders.lock().unwrap_or_else(PoisonError::into_inner);
                leaders.get(leader).is_some_and(|(device, before)| {
                    *device == stat.st_dev && self.unlinked.undo(stat, before.ctime) == *before
                })
            }
            Kind::Directory | Kind::Unsendable(_) | Kind::Unselected => false,
        }
    }
}
