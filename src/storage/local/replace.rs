//! Giving what is complete its final name.
//!
//! In: something under a temporary name. Out: the same under its final name, which at no instant
//! leads to nothing or to something half done; and what it replaces backed up, where that is asked
//! for, before it is replaced.

use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, FileType, RenameFlags, Stat};
use rustix::io::Errno;

use super::remover::{self, Remover};
use super::write::{Inner, Step};
use crate::protocol::message::{Entry, MakeRoom};
use crate::storage::{Operation, StorageError};

/// Whether what has the temporary name is known to be a new file with no other name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fresh {
    Yes,
    Maybe,
}

impl Inner {
    /// Puts whatever has the temporary name under the final one. If that fails, the temporary one
    /// is gone.
    ///
    /// # Errors
    ///
    /// [`StorageError::Conflict`] if something is in the way that [`Update::make_room`] does not
    /// let go.
    ///
    /// [`Update::make_room`]: crate::protocol::message::Update::make_room
    pub fn put_in_place(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StorageError> {
        self.replace(dir, temp, name, entry, Fresh::Maybe)
    }

    /// The same, where it may be known that nothing else needs to be looked after.
    pub fn replace(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
        fresh: Fresh,
    ) -> Result<(), StorageError> {
        let replaced = self.try_replace(dir, temp, name, entry);
        // A rename between two names of one file does nothing, and says that it succeeded.
        if replaced.is_err() || fresh == Fresh::Maybe {
            let _ = self.clear_temp(dir, temp);
        }
        replaced
    }

    fn try_replace(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let backup = self.back_up(dir, name, entry)?;
        let placed = match rustix::fs::renameat(dir, temp, dir, name) {
            Err(Errno::ISDIR | Errno::NOTDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                self.make_room(dir, temp, name, entry)
            }
            answer => answer.map_err(|cause| self.error(entry)((Operation::Rename, cause))),
        };
        if placed.is_err()
            && let Some(moved) = backup
        {
            moved.undo(dir, name);
        }
        placed
    }

    /// Replaces where a directory is replaced or takes the place of something else.
    fn make_room(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let look = |name: &[u8]| {
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|cause| self.error(entry)((Operation::Stat, cause)))
        };
        let (new, old) = (look(temp)?, look(name)?);
        if !self.may_give_way(dir, name, &new, &old, entry)? {
            return Err(self.in_the_way(entry, &old));
        }
        if self.update.backup.is_some() && self.update.make_room == MakeRoom::All {
            self.reserve_backup_of_directory(dir, name, &old, entry)?;
        }
        exchange(dir, temp, name).map_err(|cause| self.cannot_exchange(entry, cause))?;
        if !is_directory(&old) {
            return rustix::fs::unlinkat(dir, temp, AtFlags::empty())
                .map_err(|cause| self.error(entry)((Operation::Remove, cause)));
        }
        self.remove_directory_that_gave_way(dir, temp, name, entry, &old)
    }

    fn may_give_way(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        new: &Stat,
        old: &Stat,
        entry: &Entry,
    ) -> Result<bool, StorageError> {
        match (is_directory(new), is_directory(old), self.update.make_room) {
            (true, false, make_room) => Ok(make_room != MakeRoom::Files),
            (false, true, MakeRoom::EmptyDirectories) => {
                remover::is_empty(dir, name).map_err(self.error(entry))
            }
            (false, true, MakeRoom::All) => Ok(!self.holds_what_stays(dir, name, entry)),
            _ => Ok(false),
        }
    }

    /// Whether filters protect something in a directory, or something is mounted there.
    fn holds_what_stays(&self, dir: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> bool {
        let mut remover = Remover::new(self);
        remover.dry_run = true;
        remover.ignore_backups = true;
        let path = self.path(entry);
        match self.scope_in(entry.parent) {
            Ok(scope) => !remover.remove_directory(dir, name, &path, &scope),
            Err(_) => true,
        }
    }

    fn remove_directory_that_gave_way(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
        old: &Stat,
    ) -> Result<(), StorageError> {
        match rustix::fs::unlinkat(dir, temp, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(cause) => {
                let _ = exchange(dir, temp, name);
                return Err(self.error(entry)((Operation::Remove, cause)));
            }
        }
        if self.update.make_room != MakeRoom::All {
            // Somebody put something into it since it was looked at.
            let _ = exchange(dir, temp, name);
            return Err(self.in_the_way(entry, old));
        }
        if self.update.backup.is_some() {
            let moved = self.move_directory_to_backup(dir, temp, name, entry);
            if moved.is_err() {
                let _ = exchange(dir, temp, name);
            }
            return moved;
        }
        // Under the path that it had, as that is what rules are about.
        let scope = self.scope_in(entry.parent)?;
        let mut remover = Remover::new(self);
        remover.ignore_backups = true;
        remover.remove_directory(dir, temp, &self.path(entry), &scope);
        for error in remover.take_errors() {
            self.complain(entry.id, error);
        }
        Ok(())
    }

    /// Removes whatever has a temporary name, which a killed run may have left. A directory with
    /// content can only be one that was replaced; it is removed where that was allowed.
    pub fn clear_temp(&self, dir: BorrowedFd<'_>, temp: &[u8]) -> Step<()> {
        match rustix::fs::unlinkat(dir, temp, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(cause) => return Err((Operation::Remove, cause)),
        }
        match rustix::fs::unlinkat(dir, temp, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST)
                if self.update.make_room == MakeRoom::All && self.update.backup.is_none() =>
            {
                let mut remover = Remover::new(self);
                remover.ignore_backups = true;
                if remover.remove_directory(dir, temp, temp, &self.rules.root()) {
                    Ok(())
                } else {
                    Err((Operation::Remove, Errno::NOTEMPTY))
                }
            }
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(cause) => Err((Operation::Remove, cause)),
        }
    }

    fn in_the_way(&self, entry: &Entry, existing: &Stat) -> StorageError {
        let existing = match FileType::from_raw_mode(existing.st_mode) {
            FileType::Directory => "a directory",
            FileType::RegularFile => "a file",
            FileType::Symlink => "a symlink",
            _ => "a special file",
        };
        StorageError::Conflict { path: self.path(entry), existing }
    }

    fn cannot_exchange(&self, entry: &Entry, cause: Errno) -> StorageError {
        match cause {
            Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => {
                let text = "the file system cannot exchange a directory and something else; remove \
                            what is there";
                let cause = std::io::Error::new(std::io::ErrorKind::Unsupported, text);
                StorageError::io(Operation::Rename, &self.path(entry))(cause)
            }
            cause => self.error(entry)((Operation::Rename, cause)),
        }
    }
}

fn exchange(dir: BorrowedFd<'_>, temp: &[u8], name: &[u8]) -> Result<(), Errno> {
    rustix::fs::renameat_with(dir, temp, dir, name, RenameFlags::EXCHANGE)
}

pub fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Looks at what has a name, if anything.
pub fn look(dir: BorrowedFd<'_>, name: &[u8]) -> Step<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(cause) => Err((Operation::Stat, cause)),
    }
}
