//! Keeping what is replaced or deleted.
//!
//! In: the name of something that is about to go. Out: the same thing under its backup's name, of
//! which an older one is replaced. A backup is a second name where that can be had, so that the
//! first never leads to nothing; else a copy; and only what can be neither is moved.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode as FsMode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::replace::{is_directory, look};
use super::write::{Inner, Step, at};
use super::{beneath, copy, mtime, only_mtime};
use crate::protocol::message::{Backup, Durability, Entry, Update};
use crate::storage::{Operation, StorageError};

/// The directories in which backups are kept, if they are not beside what they are of.
#[derive(Debug, Default)]
pub struct Backups {
    /// The operator's backup directory, once it was opened.
    root: OnceLock<Arc<OwnedFd>>,
    /// The directory below it that was used last, by its path.
    last: Mutex<Option<(Vec<u8>, Arc<OwnedFd>)>>,
}

/// Where the backup of something goes.
pub struct BackupPlace {
    /// `None` for the directory that the thing itself is in.
    directory: Option<Arc<OwnedFd>>,
    name: Vec<u8>,
}

impl BackupPlace {
    fn directory<'a>(&'a self, own: BorrowedFd<'a>) -> BorrowedFd<'a> {
        self.directory.as_ref().map_or(own, |directory| directory.as_fd())
    }

    /// Whether it is in the same directory as what it is of.
    pub fn is_beside(&self) -> bool {
        self.directory.is_none()
    }

    /// Moves something back that was moved here.
    pub fn undo(&self, dir: BorrowedFd<'_>, name: &[u8]) {
        let _ = rustix::fs::renameat(self.directory(dir), &self.name, dir, name);
    }
}

impl Inner {
    /// Makes a backup of what an entry is about to replace, if one is asked for and there is
    /// something that is no directory. Returns where it is if it had to be moved there.
    pub fn back_up(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<Option<BackupPlace>, StorageError> {
        let Some(backup) = &self.update.backup else { return Ok(None) };
        let Some(stat) = look(dir, name).map_err(self.error(entry))? else { return Ok(None) };
        if is_directory(&stat) {
            return Ok(None);
        }
        let path = self.path(entry);
        let kept = self.backup_place(backup, &path, name).and_then(|place| {
            let is_moved = self.keep(dir, name, &place, &stat)?;
            Ok(is_moved.then_some(place))
        });
        kept.map_err(|cause| backup_error(&path, cause))
    }

    /// Makes a backup of a file that is about to be written to, if one is asked for.
    pub fn copy_to_backup(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let Some(backup) = &self.update.backup else { return Ok(()) };
        let path = self.path(entry);
        self.backup_place(backup, &path, name)
            .and_then(|place| {
                self.clear_older_backup(&place)?;
                self.copy_into(dir, name, place.directory(dir), &place.name, stat)
            })
            .map_err(|cause| backup_error(&path, cause))
    }

    /// Moves something that is to be deleted, and is no directory, to where its backup goes.
    pub fn move_to_backup(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        place: &BackupPlace,
    ) -> Step<()> {
        let to = place.directory(dir);
        self.clear_older_backup(place)?;
        match rustix::fs::renameat(dir, name, to, &place.name) {
            Err(Errno::XDEV) => {}
            answer => return answer.map_err(at(Operation::BackUp)),
        }
        let Some(stat) = look(dir, name)? else { return Ok(()) };
        self.copy_into(dir, name, to, &place.name, &stat)?;
        rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(at(Operation::Remove))
    }

    /// Makes a backup of what is no directory and will be removed.
    pub fn make_backup(&self, dir: BorrowedFd<'_>, name: &[u8], place: &BackupPlace) -> Step<()> {
        let Some(stat) = look(dir, name)? else { return Ok(()) };
        self.keep(dir, name, place, &stat).map(drop)
    }

    /// Moves a directory with all that is in it to where its backup goes, beside it; returns where
    /// that is. `None` if an older backup is there, which may be the only one of something.
    pub fn move_directory_aside(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        backup: &Backup,
    ) -> Step<Option<BackupPlace>> {
        let place = BackupPlace { directory: None, name: [name, &backup.suffix].concat() };
        if look(dir, &place.name)?.is_some() {
            return Ok(None);
        }
        rustix::fs::renameat(dir, name, dir, &place.name).map_err(at(Operation::BackUp))?;
        Ok(Some(place))
    }

    /// Where the backup of something goes: `path` is its path below the root, and `name` the end of
    /// that. Directories on the way are made, like those that they stand for.
    pub fn backup_place(&self, backup: &Backup, path: &[u8], name: &[u8]) -> Step<BackupPlace> {
        let name = [name, &backup.suffix].concat();
        let Some(directory) = &backup.directory else {
            return Ok(BackupPlace { directory: None, name });
        };
        let parent = path.iter().rposition(|byte| *byte == b'/').and_then(|at| path.get(..at));
        let parent = parent.unwrap_or_default();
        let last = self.backups.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let directory = if let Some((_, directory)) = last.filter(|(known, _)| known == parent) {
            directory
        } else {
            let made = self.backup_directory(directory, parent).map_err(at(Operation::BackUp))?;
            let mut last = self.backups.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some((parent.to_vec(), Arc::clone(&made)));
            made
        };
        Ok(BackupPlace { directory: Some(directory), name })
    }

    /// Device and inode of the operator's backup directory, if there is one.
    pub fn backup_root(&self) -> Option<(u64, u64)> {
        let directory = self.update.backup.as_ref()?.directory.as_ref()?;
        let opened = if let Some(root) = self.backups.root.get() {
            Arc::clone(root)
        } else {
            let base = self.root.as_ref()?;
            Arc::new(beneath::open_operator_below(base.as_fd(), directory, false).ok()?)
        };
        let stat = rustix::fs::fstat(&opened).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    fn backup_directory(&self, directory: &[u8], path: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
        let base = self.root.as_ref().ok_or(Errno::NOENT)?;
        let root = if let Some(root) = self.backups.root.get() {
            Arc::clone(root)
        } else {
            let made = beneath::open_operator_below(base.as_fd(), directory, true)?;
            Arc::clone(self.backups.root.get_or_init(|| Arc::new(made)))
        };
        let (mut original, mut held) = (Some(Arc::clone(base)), root);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            original = original
                .and_then(|dir| beneath::open_child(dir.as_fd(), name, OFlags::PATH).ok())
                .map(Arc::new);
            let made = match make_like(held.as_fd(), name, original.as_deref()) {
                // The older backup was of something else than a directory.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    rustix::fs::unlinkat(&held, name, AtFlags::empty())?;
                    make_like(held.as_fd(), name, original.as_deref())
                }
                made => made,
            };
            held = Arc::new(made?);
        }
        Ok(held)
    }

    /// Removes an older backup that is a directory, as nothing else can replace one. Anything else
    /// is replaced when the new one is complete. What is beside the thing itself may be no backup.
    fn clear_older_backup(&self, place: &BackupPlace) -> Step<()> {
        let Some(to) = &place.directory else { return Ok(()) };
        if !look(to.as_fd(), &place.name)?.is_some_and(|stat| is_directory(&stat)) {
            return Ok(());
        }
        // What was used last may be in it.
        *self.backups.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.remove_wholly(to.as_fd(), &place.name)
    }

    /// Makes the backup of what is no directory; returns whether it was moved for that.
    fn keep(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        place: &BackupPlace,
        stat: &Stat,
    ) -> Step<bool> {
        let (to, backup) = (place.directory(dir), &place.name);
        self.clear_older_backup(place)?;
        match self.link_over(dir, name, to, backup) {
            Ok(()) => return Ok(false),
            Err((_, Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP)) => {}
            Err(step) => return Err(step),
        }
        match self.copy_into(dir, name, to, backup, stat) {
            Ok(()) => return Ok(false),
            Err((_, Errno::ACCESS | Errno::INVAL)) => {}
            Err(step) => return Err(step),
        }
        rustix::fs::renameat(dir, name, to, backup).map_err(at(Operation::BackUp))?;
        Ok(true)
    }

    /// Gives something that is no directory a second name, in the place of what has that.
    fn link_over(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        to: BorrowedFd<'_>,
        backup: &[u8],
    ) -> Step<()> {
        let link = |new: &[u8]| rustix::fs::linkat(dir, name, to, new, AtFlags::empty());
        match link(backup) {
            // It is gone, and needs no backup.
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(cause) => return Err((Operation::BackUp, cause)),
        }
        let temp = self.temp_name(backup);
        match link(&temp) {
            Err(Errno::EXIST) => {
                self.clear_temp(to, &temp)?;
                link(&temp)
            }
            answer => answer,
        }
        .map_err(at(Operation::BackUp))?;
        let renamed = rustix::fs::renameat(to, &temp, to, backup);
        // A rename between two names of one file does nothing.
        let _ = rustix::fs::unlinkat(to, &temp, AtFlags::empty());
        renamed.map_err(at(Operation::BackUp))
    }

    /// Copies a regular file, in the place of what has the new name.
    fn copy_into(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        to: BorrowedFd<'_>,
        backup: &[u8],
        stat: &Stat,
    ) -> Step<()> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err((Operation::BackUp, Errno::INVAL));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let from =
            beneath::open_name(dir, name, flags, FsMode::empty()).map_err(at(Operation::BackUp))?;
        let temp = self.temp_name(backup);
        let copy = self.create_temp(to, &temp, OFlags::RDWR)?;
        let made = copy::copy_whole(from.as_fd(), copy.as_fd())
            .map_err(at(Operation::BackUp))
            .and_then(|()| self.make_equal(copy.as_fd(), stat))
            .and_then(|()| {
                rustix::fs::renameat(to, &temp, to, backup).map_err(at(Operation::BackUp))
            });
        if made.is_err() {
            let _ = rustix::fs::unlinkat(to, &temp, AtFlags::empty());
        }
        made
    }

    fn make_equal(&self, copy: BorrowedFd<'_>, stat: &Stat) -> Step<()> {
        // Only some may give files away, and whoever may not keeps what is theirs.
        let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let is_owned = rustix::fs::fchown(copy, Some(owner), Some(group)).is_ok();
        let mode = stat.st_mode & if is_owned { 0o7777 } else { 0o777 };
        rustix::fs::fchmod(copy, FsMode::from_raw_mode(mode)).map_err(at(Operation::BackUp))?;
        rustix::fs::futimens(copy, &only_mtime(mtime(stat))).map_err(at(Operation::BackUp))?;
        if self.durability == Durability::None {
            return Ok(());
        }
        rustix::fs::fsync(copy).map_err(at(Operation::Sync))
    }
}

/// Checks that backups have other names than what they are of.
///
/// # Errors
///
/// If the backup directory is the destination and there is no suffix.
pub fn check(update: &Update, root: BorrowedFd<'_>) -> Result<(), StorageError> {
    let Some(Backup { directory: Some(directory), suffix }) = &update.backup else {
        return Ok(());
    };
    if !suffix.is_empty() {
        return Ok(());
    }
    // One that does not exist yet, or cannot be opened, is another.
    let Ok(opened) = beneath::open_operator_below(root, directory, false) else { return Ok(()) };
    let identity = |fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let failed = |cause: Errno| StorageError::io(Operation::Stat, directory)(cause);
    if identity(opened.as_fd()).map_err(failed)? != identity(root).map_err(failed)? {
        return Ok(());
    }
    let text = "backups without a suffix cannot be in the destination itself; choose another \
                directory, or a suffix";
    let cause = std::io::Error::new(std::io::ErrorKind::InvalidInput, text);
    Err(StorageError::io(Operation::BackUp, directory)(cause))
}

/// Opens a directory for backups, and makes it first if it is missing, as open to others as the one
/// that it stands for.
fn make_like(
    dir: BorrowedFd<'_>,
    name: &[u8],
    original: Option<&OwnedFd>,
) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(dir, name, FsMode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return beneath::open_child(dir, name, OFlags::PATH),
        Err(cause) => return Err(cause),
    }
    let made = beneath::open_child(dir, name, OFlags::PATH)?;
    if let Some(stat) = original.and_then(|original| rustix::fs::fstat(original).ok()) {
        let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if rustix::fs::chownat(dir, name, Some(owner), Some(group), flags).is_ok() {
            beneath::set_mode_of_path(made.as_fd(), stat.st_mode & 0o777 | 0o700)?;
        }
    }
    Ok(made)
}

/// The error for something that could not be backed up, by what failed.
pub fn backup_error(path: &[u8], (operation, cause): (Operation, Errno)) -> StorageError {
    let cause = match (operation, cause) {
        (Operation::BackUp, Errno::XDEV) => std::io::Error::new(
            std::io::ErrorKind::CrossesDevices,
            "the backup directory is on another file system",
        ),
        (_, cause) => cause.into(),
    };
    StorageError::io(Operation::BackUp, path)(cause)
}
