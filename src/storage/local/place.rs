//! Directories, symlinks, and which files are wanted.
//!
//! In: entries, parents first. Out: what was there, and directories and symlinks that now are. A
//! directory stays writable for us until [`Inner::finish`] gives it its mode and times, when
//! nothing changes in it any more.

use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{AtFlags, FileType, Mode as FsMode, OFlags, Stat};
use rustix::io::Errno;

use super::tree::Place;
use super::write::{Inner, Step, at};
use super::{Look, beneath, mtime, only_mtime};
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{Entry, FileKind, Kind};
use crate::storage::{Operation, Placed, StorageError};

/// What a directory is to be in the end.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    mode: u32,
    mtime: Timestamp,
    /// The mode that it had, if we did not make it.
    original: Option<u32>,
}

impl Inner {
    /// Looks at what is there for an entry, and makes what is not a file.
    pub fn place(&self, entry: &Entry) -> Result<Placed, StorageError> {
        let name = self.name_of(entry)?;
        let dir = match self.parent(entry) {
            Ok(dir) => dir,
            // Nothing can be there if its directory would have to be made first.
            Err(StorageError::Io { cause, .. })
                if self.dry_run && cause.kind() == std::io::ErrorKind::NotFound =>
            {
                if entry.kind == Kind::Directory {
                    self.remember(entry, name, None);
                }
                return Ok(Placed::Would);
            }
            Err(error) => return Err(error),
        };
        let dir = dir.as_fd();
        match &entry.kind {
            Kind::Directory => self.place_directory(dir, name, entry),
            Kind::Symlink { target } => self.place_symlink(dir, name, target, entry),
            Kind::File(file) => self.place_file(dir, name, *file, entry),
            Kind::Unsendable(_) => Err(self.error(entry)((Operation::Create, Errno::INVAL))),
        }
    }

    fn place_directory(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let existing = if self.dry_run {
            self.look(dir, name, entry)?
        } else {
            match rustix::fs::mkdirat(dir, name, FsMode::RWXU) {
                Ok(()) => None,
                Err(Errno::EXIST) => self.look(dir, name, entry)?,
                Err(cause) => return Err(self.error(entry)((Operation::Create, cause))),
            }
        };
        if let Some(stat) = &existing {
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Err(self.conflict(entry, stat));
            }
            if !self.dry_run {
                make_usable(dir, name, stat).map_err(self.error(entry))?;
            }
        }
        self.remember(entry, name, existing.as_ref().map(|stat| stat.st_mode & 0o7777));
        Ok(match existing {
            Some(_) => Placed::Same,
            None => self.made(),
        })
    }

    fn remember(&self, entry: &Entry, name: &[u8], original: Option<u32>) {
        let wish = Wish { mode: entry.mode.bits() & 0o777, mtime: entry.mtime, original };
        self.tree.insert(Place { id: entry.id, parent: entry.parent, name }, wish, None);
    }

    fn made(&self) -> Placed {
        if self.dry_run { Placed::Would } else { Placed::Made }
    }

    fn place_symlink(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        target: &[u8],
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        if let Some(stat) = self.look(dir, name, entry)? {
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => return Err(self.conflict(entry, &stat)),
                FileType::Symlink => {
                    let existing = rustix::fs::readlinkat(dir, name, Vec::new())
                        .map_err(|cause| self.error(entry)((Operation::Read, cause)))?;
                    if existing.as_bytes() == target {
                        return Ok(Placed::Same);
                    }
                }
                _ => {}
            }
        }
        if !self.dry_run {
            self.make_symlink(dir, name, target, entry).map_err(self.error(entry))?;
        }
        Ok(self.made())
    }

    /// Makes the symlink under the temporary name, so that what it replaces is never missing.
    fn make_symlink(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        target: &[u8],
        entry: &Entry,
    ) -> Step<()> {
        let temp = self.temp_name(name);
        let remove = || rustix::fs::unlinkat(dir, &temp, AtFlags::empty());
        let make = || rustix::fs::symlinkat(target, dir, &temp);
        match make() {
            Err(Errno::EXIST) => remove().and_then(|()| make()),
            answer => answer,
        }
        .map_err(at(Operation::Create))?;
        if self.preserve_times {
            let times = only_mtime(entry.mtime);
            let set = rustix::fs::utimensat(dir, &temp, &times, AtFlags::SYMLINK_NOFOLLOW);
            if let Err(cause) = set {
                let _ = remove();
                return Err((Operation::SetTimes, cause));
            }
        }
        rustix::fs::renameat(dir, &temp, dir, name).map_err(|cause| {
            let _ = remove();
            (Operation::Rename, cause)
        })
    }

    fn place_file(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        file: FileKind,
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let wanted = if self.dry_run { Placed::Would } else { Placed::Wanted };
        let Some(stat) = self.look(dir, name, entry)? else { return Ok(wanted) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Err(self.conflict(entry, &stat)),
            FileType::RegularFile => {}
            _ => return Ok(wanted),
        }
        if Look::new(&stat).size != file.size || mtime(&stat) != entry.mtime {
            return Ok(wanted);
        }
        let mode = self.file_mode(entry);
        if self.preserve_mode && !self.dry_run && stat.st_mode & 0o7777 != mode {
            set_mode(dir, name, stat.st_ino, mode).map_err(self.error(entry))?;
        }
        Ok(Placed::Same)
    }

    /// What has a name, if anything.
    fn look(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<Option<Stat>, StorageError> {
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(cause) => Err(self.error(entry)((Operation::Stat, cause))),
        }
    }

    fn conflict(&self, entry: &Entry, existing: &Stat) -> StorageError {
        let existing = match FileType::from_raw_mode(existing.st_mode) {
            FileType::Directory => "a directory",
            FileType::RegularFile => "a file",
            FileType::Symlink => "a symlink",
            _ => "a special file",
        };
        StorageError::Conflict { path: self.path(entry), existing }
    }

    /// Gives directories their modes and times, the last first: children come after their parents,
    /// and a parent without write permission would not let us touch its children.
    pub fn finish(&self) -> Vec<(EntryId, StorageError)> {
        if self.dry_run {
            return Vec::new();
        }
        let finish = |at| {
            let (id, parent, name, wish) = self.tree.at(at)?;
            let (operation, cause) = self.finish_directory(id, parent, &name, wish).err()?;
            let path = self.tree.path(parent, &name);
            Some((id, StorageError::io(operation, &path)(cause)))
        };
        (0..self.tree.len()).rev().filter_map(finish).collect()
    }

    fn finish_directory(&self, id: EntryId, parent: EntryId, name: &[u8], wish: Wish) -> Step<()> {
        let dir = self.tree.parent_of(id, parent).map_err(at(Operation::Open))?;
        let fd =
            beneath::open_child(dir.as_fd(), name, OFlags::RDONLY).map_err(at(Operation::Open))?;
        let stat = rustix::fs::fstat(&fd).map_err(at(Operation::Stat))?;
        let mode = match wish.original {
            _ if self.preserve_mode => wish.mode | (stat.st_mode & 0o2000),
            None => (0o777 & !self.umask) | (stat.st_mode & 0o2000),
            Some(original) => original,
        };
        if mode != stat.st_mode & 0o7777 {
            rustix::fs::fchmod(&fd, FsMode::from_raw_mode(mode)).map_err(at(Operation::SetMode))?;
        }
        if self.preserve_times && mtime(&stat) != wish.mtime {
            rustix::fs::futimens(&fd, &only_mtime(wish.mtime)).map_err(at(Operation::SetTimes))?;
        }
        Ok(())
    }
}

/// Lets us work in a directory of ours that does not allow it, until its mode is set in the end.
fn make_usable(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Step<()> {
    let mode = stat.st_mode & 0o7777;
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if mode & 0o700 == 0o700 || !is_ours {
        return Ok(());
    }
    set_mode(dir, name, stat.st_ino, mode | 0o700)
}

/// Sets the mode of the very thing that was looked at, even if it may not be opened.
fn set_mode(dir: BorrowedFd<'_>, name: &[u8], inode: u64, mode: u32) -> Step<()> {
    let fd = beneath::open_name(dir, name, OFlags::PATH, FsMode::empty())
        .map_err(at(Operation::Open))?;
    let stat = rustix::fs::fstat(&fd).map_err(at(Operation::Stat))?;
    if stat.st_ino != inode {
        return Err((Operation::SetMode, Errno::STALE));
    }
    beneath::set_mode_of_path(fd.as_fd(), mode).map_err(at(Operation::SetMode))
}
