//! Removing one thing with all that is in it.
//!
//! In: a name in a held directory. Out: what was removed, children before their directories. No
//! symlink is followed, nothing that is mounted is entered, no source of this run is touched, and no
//! depth is too much: only the lowest few directories are kept open, and the way back up is checked
//! at each step.

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode as FsMode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::beneath;
use super::replace::is_directory;
use super::write::{Inner, Step, at};
use crate::protocol::message::{Deleted, Deletions};
use crate::storage::filter::{Scope, Side};
use crate::storage::{Operation, StorageError};

/// Removes things, and keeps count of them.
pub struct Remover<'a> {
    inner: &'a Inner,
    /// Only tell what would be removed.
    pub dry_run: bool,
    pub backups: Backups,
    /// The directory that is asked for is neither counted nor told of, only what is in it.
    pub is_top_free: bool,
    /// How many things may be removed.
    pub max: Option<u64>,
    /// Is told of each.
    pub tell: Option<&'a flume::Sender<Deleted>>,
    pub count: Deletions,
    /// Device and inode of the directory that backups go to, which stays.
    backup_root: Option<(u64, u64)>,
    errors: Vec<StorageError>,
}

/// What is done about backups, where they are asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Backups {
    /// What would be removed is moved to where its backup goes.
    Move,
    /// Backups are made, and nothing is removed: what is in a directory that will give way.
    Make,
    /// It is removed: its backup was made before, or it needs none.
    Ignore,
}

/// What became of something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Gone,
    /// It is still there, or its backup is in its directory.
    Stays,
    /// It is still there only because there was too much to remove.
    Over,
}

/// A directory that is being emptied.
struct Frame {
    /// `None` while it is too far up to be kept open.
    fd: Option<OwnedFd>,
    identity: (u64, u64),
    /// What is in it and was not looked at yet, the last first.
    names: Vec<Listed>,
    scope: Scope,
    /// The length of its path.
    path_len: usize,
    /// Whether something in it stays.
    is_kept: bool,
    /// Whether something in it stays only because there was too much to remove.
    is_over: bool,
    /// The mode that it had before it was made usable.
    original: Option<u32>,
}

/// A name in a directory.
pub struct Listed {
    pub name: Box<[u8]>,
    pub is_directory: bool,
}

impl<'a> Remover<'a> {
    pub fn new(inner: &'a Inner) -> Self {
        Self {
            inner,
            dry_run: inner.dry_run,
            backups: Backups::Move,
            is_top_free: false,
            max: None,
            tell: None,
            count: Deletions::default(),
            backup_root: None,
            errors: Vec::new(),
        }
    }

    /// For what has been given up: it needs no backup.
    pub fn without_backups(inner: &'a Inner) -> Self {
        Self { backups: Backups::Ignore, ..Self::new(inner) }
    }

    /// What could not be removed, since the last call.
    pub fn take_errors(&mut self) -> Vec<StorageError> {
        std::mem::take(&mut self.errors)
    }

    /// Removes something, unless it is protected by the scope of its directory. `path` is relative
    /// to the destination's root. Returns whether its name is free.
    pub fn remove(
        &mut self,
        dir: BorrowedFd<'_>,
        listed: &Listed,
        path: &[u8],
        scope: &Scope,
    ) -> bool {
        if !scope.admits(Side::Receiver, path, listed.is_directory) {
            return false;
        }
        if listed.is_directory {
            self.remove_directory(dir, &listed.name, path, scope)
        } else {
            self.remove_leaf(dir, &listed.name, path) == Fate::Gone
        }
    }

    /// Removes a directory with all that is in it and is not protected; returns whether it is gone.
    /// `scope` is that of the directory which it is in.
    pub fn remove_directory(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        scope: &Scope,
    ) -> bool {
        let mut path = path.to_vec();
        let Some(frame) = self.open(dir, name, &path, scope) else { return false };
        let mut stack = vec![frame];
        while let Some(frame) = stack.last_mut() {
            let Some(listed) = frame.names.pop() else {
                let Some(done) = stack.pop() else { break };
                let Some(above) = stack.last_mut() else {
                    return self.finish(&done, dir, name, &path, self.is_top_free) == Fate::Gone;
                };
                if let Err(cause) = reopen(above, &done) {
                    self.errors.push(StorageError::io(Operation::Open, &path)(cause));
                    return false;
                }
                let Some(fd) = &above.fd else { return false };
                let last = path.get(above.path_len + 1..).unwrap_or_default().to_vec();
                let fate = self.finish(&done, fd.as_fd(), &last, &path, false);
                above.note(fate);
                path.truncate(above.path_len);
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(&listed.name);
            let (scope, Some(fd)) = (&frame.scope, &frame.fd) else { return false };
            let fate = if !scope.admits(Side::Receiver, &path, listed.is_directory) {
                Fate::Stays
            } else if listed.is_directory {
                if let Some(child) = self.open(fd.as_fd(), &listed.name, &path, scope) {
                    stack.push(child);
                    close_far_above(&mut stack);
                    continue;
                }
                Fate::Stays
            } else {
                self.remove_leaf(fd.as_fd(), &listed.name, &path)
            };
            frame.note(fate);
            path.truncate(frame.path_len);
        }
        false
    }

    /// Opens and lists a directory that is to be emptied. `None` if it has to stay as it is.
    fn open(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        scope: &Scope,
    ) -> Option<Frame> {
        let opened = self.open_usable(dir, name).and_then(|(fd, stat, original)| {
            let names = list(fd.as_fd(), |_| true)?;
            Ok((fd, stat, original, names))
        });
        let (fd, stat, original, names) = match opened {
            Ok(opened) => opened,
            Err((_, Errno::NOENT)) => return None,
            Err((_, Errno::XDEV)) => {
                let text = "something is mounted there; it was left alone";
                let cause = std::io::Error::new(std::io::ErrorKind::CrossesDevices, text);
                self.errors.push(StorageError::io(Operation::Remove, path)(cause));
                return None;
            }
            Err((operation, cause)) => {
                self.errors.push(StorageError::io(operation, path)(cause));
                return None;
            }
        };
        let identity = (stat.st_dev, stat.st_ino);
        if self.backup_root() == Some(identity) {
            return None;
        }
        if self.inner.is_in_use(identity) {
            self.errors.push(in_use(path));
            return None;
        }
        match self.inner.enter_scope(scope, path, fd.as_fd()) {
            Ok(scope) => Some(Frame {
                fd: Some(fd),
                identity,
                names,
                scope: scope.in_removed_directory(),
                path_len: path.len(),
                is_kept: false,
                is_over: false,
                original,
            }),
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    /// Opens a directory for listing, and makes it writable if it is ours and is not. Returns the
    /// mode that it had if that was changed.
    fn open_usable(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Step<(OwnedFd, Stat, Option<u32>)> {
        let place =
            beneath::open_child_unmounted(dir, name, OFlags::PATH).map_err(at(Operation::Open))?;
        let stat = rustix::fs::fstat(&place).map_err(at(Operation::Stat))?;
        let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
        let is_locked = is_ours && stat.st_mode & 0o700 != 0o700 && !self.dry_run;
        let original = is_locked.then_some(stat.st_mode & 0o7777);
        if let Some(mode) = original {
            beneath::set_mode_of_path(place.as_fd(), mode | 0o700)
                .map_err(at(Operation::SetMode))?;
        }
        let fd = beneath::open_child(place.as_fd(), b".", OFlags::RDONLY)
            .map_err(at(Operation::Open))?;
        Ok((fd, stat, original))
    }

    /// Removes a directory that was gone through, if nothing in it stays.
    fn finish(
        &mut self,
        frame: &Frame,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        is_free: bool,
    ) -> Fate {
        let fate = if frame.is_kept {
            Fate::Stays
        } else if frame.is_over {
            self.count.over_limit += u64::from(!is_free);
            Fate::Over
        } else {
            self.remove_empty(dir, name, path, is_free)
        };
        if let (Some(mode), Some(fd)) = (frame.original, &frame.fd)
            && fate != Fate::Gone
        {
            let _ = rustix::fs::fchmod(fd, FsMode::from_raw_mode(mode));
        }
        fate
    }

    fn remove_empty(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        is_free: bool,
    ) -> Fate {
        if !is_free && !self.may_remove() {
            return Fate::Over;
        }
        if !self.dry_run {
            match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) => {}
                Err(Errno::NOENT) => return Fate::Gone,
                // The backups were just made in it.
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.backup_root().is_some() => {
                    return Fate::Stays;
                }
                Err(cause) => return self.fail(path, (Operation::Remove, cause)),
            }
        }
        if !is_free {
            self.told(path, true);
        }
        Fate::Gone
    }

    /// Removes what is no directory, or moves it to where its backup goes.
    fn remove_leaf(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Fate {
        if !self.may_remove() {
            return Fate::Over;
        }
        if self.inner.has_files_in_use() {
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
            if stat.is_ok_and(|stat| self.inner.is_in_use((stat.st_dev, stat.st_ino))) {
                self.errors.push(in_use(path));
                return Fate::Stays;
            }
        }
        let backup = self.inner.update.backup.as_ref().filter(|backup| {
            let is_backup = backup.directory.is_none() && name.ends_with(&backup.suffix);
            self.backups != Backups::Ignore && !is_backup
        });
        let mut fate = Fate::Gone;
        if let Some(backup) = backup.filter(|_| self.backups == Backups::Make) {
            let made = self
                .inner
                .backup_place(backup, path, name)
                .and_then(|place| self.inner.make_backup(dir, name, &place));
            if let Err(step) = made {
                self.errors.push(super::backup::backup_error(path, step));
                return Fate::Stays;
            }
        } else if let Some(backup) = backup.filter(|_| self.dry_run) {
            if backup.directory.is_none() {
                fate = Fate::Stays;
            }
        } else if let Some(backup) = backup {
            let moved = self.inner.backup_place(backup, path, name).and_then(|place| {
                self.inner.move_to_backup(dir, name, &place)?;
                Ok(place.is_beside())
            });
            match moved {
                Ok(is_beside) if is_beside => fate = Fate::Stays,
                Ok(_) => {}
                Err((_, Errno::NOENT)) => return Fate::Gone,
                Err(step) => {
                    self.errors.push(super::backup::backup_error(path, step));
                    return Fate::Stays;
                }
            }
        } else if !self.dry_run {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOENT) => return Fate::Gone,
                Err(cause) => return self.fail(path, (Operation::Remove, cause)),
            }
        }
        self.told(path, false);
        fate
    }

    /// The directory that backups go to, which may have been made since the last call.
    fn backup_root(&mut self) -> Option<(u64, u64)> {
        self.backup_root = self.backup_root.or_else(|| self.inner.backup_root());
        self.backup_root
    }

    /// Whether one more thing may be removed; counts it if not.
    fn may_remove(&mut self) -> bool {
        let may = self.max.is_none_or(|max| self.count.done < max);
        self.count.over_limit += u64::from(!may);
        may
    }

    fn told(&mut self, path: &[u8], is_directory: bool) {
        self.count.done += 1;
        if let Some(tell) = self.tell {
            // Whoever does not listen any more does not need to know.
            let _ = tell.send(Deleted { path: path.to_vec(), is_directory });
        }
    }

    fn fail(&mut self, path: &[u8], (operation, cause): (Operation, Errno)) -> Fate {
        self.errors.push(StorageError::io(operation, path)(cause));
        Fate::Stays
    }
}

impl Frame {
    fn note(&mut self, fate: Fate) {
        self.is_kept |= fate == Fate::Stays;
        self.is_over |= fate == Fate::Over;
    }
}

fn in_use(path: &[u8]) -> StorageError {
    let text = "it is a source of this run, or the destination itself; it was left alone";
    let cause = std::io::Error::new(std::io::ErrorKind::ResourceBusy, text);
    StorageError::io(Operation::Remove, path)(cause)
}

/// Opens a directory again from the one below it, unless it still is open.
fn reopen(above: &mut Frame, below: &Frame) -> Result<(), Errno> {
    if above.fd.is_none() {
        let from = below.fd.as_ref().ok_or(Errno::BADF)?;
        above.fd = Some(beneath::open_parent(from.as_fd(), above.identity)?);
    }
    Ok(())
}

/// Lets go of the directory that is farthest up of those that are open.
fn close_far_above(stack: &mut [Frame]) {
    let far = stack.len().checked_sub(MAX_OPEN + 1);
    if let Some(frame) = far.and_then(|far| stack.get_mut(far)) {
        frame.fd = None;
    }
}

/// How many directories of a way down are kept open.
const MAX_OPEN: usize = 32;

/// What is in a directory, of which `is_meant` holds, in the reverse order of names.
///
/// # Errors
///
/// If the listing broke off.
pub fn list(dir: BorrowedFd<'_>, is_meant: impl Fn(&[u8]) -> bool) -> Step<Vec<Listed>> {
    let mut listed = Vec::new();
    let mut buffer = Vec::with_capacity(LIST_LEN);
    let mut names = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(answer) = names.next() {
        let item = match answer {
            Ok(item) => item,
            Err(Errno::INTR) => continue,
            Err(cause) => return Err((Operation::List, cause)),
        };
        let name = item.file_name().to_bytes();
        if matches!(name, b"." | b"..") || !is_meant(name) {
            continue;
        }
        let is_directory = match item.file_type() {
            FileType::Unknown => match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => is_directory(&stat),
                Err(Errno::NOENT) => continue,
                Err(cause) => return Err((Operation::Stat, cause)),
            },
            known => known == FileType::Directory,
        };
        listed.push(Listed { name: name.into(), is_directory });
    }
    listed.sort_unstable_by(|a, b| b.name.cmp(&a.name));
    Ok(listed)
}

/// Room for names that the kernel lists at once, in bytes.
const LIST_LEN: usize = 32 << 10;

/// Whether a directory has nothing in it.
pub fn is_empty(dir: BorrowedFd<'_>, name: &[u8]) -> Step<bool> {
    let fd = beneath::open_child(dir, name, OFlags::RDONLY).map_err(at(Operation::Open))?;
    Ok(list(fd.as_fd(), |_| true)?.is_empty())
}
