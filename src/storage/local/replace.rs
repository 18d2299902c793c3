//! Giving what is complete its final name.
//!
//! In: something under a temporary name. Out: the same under its final name, which at no instant
//! leads to nothing or to something half done; and what it replaces backed up, where that is asked
//! for, before it is replaced.

use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, FileType, RenameFlags, Stat};
use rustix::io::Errno;

use super::leftovers::drop_temp;
use super::write::{Inner, Step};
use crate::protocol::message::Entry;
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
            drop_temp(dir, temp);
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
}

pub fn exchange(dir: BorrowedFd<'_>, temp: &[u8], name: &[u8]) -> Result<(), Errno> {
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
