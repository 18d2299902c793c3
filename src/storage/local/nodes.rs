//! What has no data of its own: symlinks, special files, and further names of files.
//!
//! In: entries, and the directories that they go into. Out: each in its place, made under its
//! temporary name, so that what it replaces is never missing.

use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{AtFlags, Dev, FileType, Mode as FsMode, OFlags, Stat};
use rustix::io::Errno;

use super::fence;
use super::metadata::Subject;
use super::place::{State, created};
use super::write::{Inner, Step, at};
use super::{Look, beneath, mtime};
use crate::protocol::message::{Changes, Entry, FileKind, Kind, Links, Special};
use crate::storage::{Operation, Placed, StorageError};

impl Inner {
    pub fn place_symlink(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        target: &[u8],
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        if self.is_unsafe(entry, target) {
            return Ok(Placed::Left);
        }
        let is_same = |stat: &Stat| {
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                return Ok(None);
            }
            let existing = rustix::fs::readlinkat(dir, name, Vec::new())?;
            Ok(Some(existing.as_bytes() == target))
        };
        let make = |temp: &[u8]| rustix::fs::symlinkat(target, dir, temp);
        self.place_node(dir, name, entry, is_same, make)
    }

    pub fn place_special(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        special: Special,
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let (kind, device) = raw(special);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let is_asked_for = if is_device { self.preserve.devices } else { self.preserve.specials };
        // A device made at a peer's will could give anybody anything.
        if !is_asked_for || is_device && fence::is_confined() {
            return Err(self.error(entry)((Operation::Create, Errno::OPNOTSUPP)));
        }
        let is_same = |stat: &Stat| {
            let is_kind = FileType::from_raw_mode(stat.st_mode) == kind;
            Ok(is_kind.then_some(!is_device || stat.st_rdev == device))
        };
        let mode = FsMode::RUSR | FsMode::WUSR;
        let make = |temp: &[u8]| rustix::fs::mknodat(dir, temp, kind, mode, device);
        self.place_node(dir, name, entry, is_same, make)
    }

    /// `is_same` tells whether what is there is the same, or `None` if it is of another type.
    fn place_node(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        is_same: impl Fn(&Stat) -> Result<Option<bool>, Errno>,
        make: impl Fn(&[u8]) -> Result<(), Errno>,
    ) -> Result<Placed, StorageError> {
        let placed = match self.look(dir, name, entry)? {
            None if self.update.existing_only => return Ok(Placed::Left),
            None => created(entry),
            Some(_) if self.update.ignore_existing => return Ok(Placed::Left),
            Some(stat) => match is_same(&stat).map_err(at(Operation::Read)) {
                Ok(Some(_))
                    if self.removes_sources && self.is_source((stat.st_dev, stat.st_ino)) =>
                {
                    return Err(StorageError::SameFile { path: self.path(entry) });
                }
                Ok(Some(true)) => return self.correct(dir, name, &stat, entry),
                Ok(Some(false)) => Placed::Settled(self.replacement(dir, name, &stat, entry)?),
                Ok(None) => {
                    self.check_room(dir, name, &stat, entry)?;
                    created(entry).with(Changes::TYPE)
                }
                Err(step) => return Err(self.error(entry)(step)),
            },
        };
        if !self.dry_run {
            let temp = self.temp_name(name);
            self.make_node(dir, &temp, entry, make).map_err(self.error(entry))?;
            self.put_in_place(dir, &temp, name, entry)?;
        }
        Ok(placed)
    }

    /// Makes something with its metadata under the temporary name.
    fn make_node(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        entry: &Entry,
        make: impl Fn(&[u8]) -> Result<(), Errno>,
    ) -> Step<()> {
        self.make_temp(dir, temp, || make(temp))?;
        let file = beneath::open_name(dir, temp, OFlags::PATH, FsMode::empty())
            .map_err(at(Operation::Open))?;
        let stat = rustix::fs::fstat(&file).map_err(at(Operation::Stat))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if type_of(&entry.kind) != Some(kind) {
            return Err((Operation::Create, Errno::STALE));
        }
        let target = self.target(&entry.metadata, kind, Some(dir));
        self.apply(file.as_fd(), &stat, &target, Subject { path: &|| self.path(entry) });
        Ok(())
    }

    /// Whether a symlink is left out because it leads out of the tree.
    pub fn is_unsafe(&self, entry: &Entry, target: &[u8]) -> bool {
        self.links == Links::OnlySafe && leads_out(&self.path(entry), target)
    }

    /// Makes an entry another name of one that is in its place.
    pub fn place_link(&self, entry: &Entry, leader: &Entry) -> Result<Placed, StorageError> {
        let (name, leader_name) = (self.name_of(entry)?, self.name_of(leader)?);
        match self.state_of_parent(entry) {
            State::Left => return Ok(Placed::Left),
            State::Missing => return Ok(linked()),
            State::Failed => return Err(StorageError::NoParent { path: self.path(entry) }),
            State::There => {}
        }
        let dir = match self.parent(entry) {
            Err(_) if self.dry_run => return Ok(linked()),
            dir => dir?,
        };
        let existing = self.look(dir.as_fd(), name, entry)?;
        let is_left = match &existing {
            Some(stat) => self.update.ignore_existing || self.is_kept(stat, leader),
            None => self.update.existing_only,
        };
        if is_left {
            return Ok(Placed::Left);
        }
        let leader_at = match self.parent(leader) {
            Ok(leader_dir) => {
                self.look(leader_dir.as_fd(), leader_name, leader)?.map(|stat| (leader_dir, stat))
            }
            Err(_) if self.dry_run => None,
            Err(error) => return Err(error),
        };
        let changes = match &existing {
            Some(stat) => {
                let is_linked = leader_at.as_ref().is_some_and(|(_, leader)| {
                    (leader.st_ino, leader.st_dev) == (stat.st_ino, stat.st_dev)
                });
                if is_linked {
                    return Ok(Placed::Settled(Changes::NONE));
                }
                self.link_changes(dir.as_fd(), name, stat, entry, leader)?
            }
            None => Changes::CREATED.with(Changes::LINKED),
        };
        if !self.dry_run {
            let Some((leader_dir, leader_stat)) = leader_at else {
                return Err(self.error(entry)((Operation::Link, Errno::NOENT)));
            };
            let from = (leader_dir.as_fd(), leader_name, &leader_stat);
            self.link_existing(from, dir.as_fd(), name, entry)?;
        }
        Ok(Placed::Settled(changes))
    }

    /// Whether a file is newer than what would take its place, and is to stay for that (UPD-3).
    pub fn is_kept(&self, existing: &Stat, new: &Entry) -> bool {
        let (wanted, found) = (new.metadata.mtime, mtime(existing));
        let is_file = FileType::from_raw_mode(existing.st_mode) == FileType::RegularFile;
        let is_newer = found > wanted && !self.is_same_time(found, wanted);
        self.update.keep_newer && is_file && is_newer
    }

    /// Refuses to take a file for its own copy where the source is to be removed (DEL-6).
    pub fn check_other_than_source(
        &self,
        existing: &Stat,
        file: FileKind,
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let look = Look::new(existing);
        let is_source = (look.inode, look.ctime) == (file.stamp.inode, file.stamp.ctime);
        if self.removes_sources && is_source {
            return Err(StorageError::SameFile { path: self.path(entry) });
        }
        Ok(())
    }

    /// What changes where a link takes the place of something.
    fn link_changes(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        entry: &Entry,
        leader: &Entry,
    ) -> Result<Changes, StorageError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if type_of(&leader.kind) != Some(kind) {
            self.check_room(dir, name, stat, entry)?;
            return Ok(Changes::CREATED.with(Changes::LINKED).with(Changes::TYPE));
        }
        let target = self.target(&leader.metadata, kind, None);
        let (changes, _) = self.compare(dir, name, stat, &target).map_err(self.error(entry))?;
        let is_file = kind == FileType::RegularFile;
        let is_other_size = is_file && u64::try_from(stat.st_size) != Ok(leader.size());
        Ok(changes.with(Changes::LINKED).with(Changes::SIZE.when(is_other_size)))
    }

    /// Gives what was looked at another name, by way of the temporary one.
    pub fn link_existing(
        &self,
        (from_dir, from_name, looked): (BorrowedFd<'_>, &[u8], &Stat),
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let temp = self.temp_name(name);
        let link = || {
            let link = || rustix::fs::linkat(from_dir, from_name, dir, &temp, AtFlags::empty());
            self.make_temp(dir, &temp, link).map_err(|(_, cause)| (Operation::Link, cause))?;
            let stat = rustix::fs::statat(dir, &temp, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(at(Operation::Stat))?;
            if (stat.st_ino, stat.st_dev) == (looked.st_ino, looked.st_dev) {
                return Ok(());
            }
            // Somebody put something else there meanwhile.
            let _ = rustix::fs::unlinkat(dir, &temp, AtFlags::empty());
            Err((Operation::Link, Errno::STALE))
        };
        link().map_err(self.error(entry))?;
        self.put_in_place(dir, &temp, name, entry)
    }
}

fn linked() -> Placed {
    Placed::Settled(Changes::CREATED.with(Changes::LINKED))
}

/// The type of what an entry becomes here.
fn type_of(kind: &Kind) -> Option<FileType> {
    match kind {
        Kind::Directory => Some(FileType::Directory),
        Kind::File(_) => Some(FileType::RegularFile),
        Kind::Symlink { .. } => Some(FileType::Symlink),
        Kind::Special(special) => Some(raw(*special).0),
        Kind::Unsendable(_) | Kind::HardLink { .. } | Kind::Unselected => None,
    }
}

/// A special file as mknod(2) takes it.
fn raw(special: Special) -> (FileType, Dev) {
    match special {
        Special::Fifo => (FileType::Fifo, 0),
        Special::Socket => (FileType::Socket, 0),
        Special::CharacterDevice { major, minor } => {
            (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
        }
        Special::BlockDevice { major, minor } => {
            (FileType::BlockDevice, rustix::fs::makedev(major, minor))
        }
    }
}

/// Whether a symlink at this path may lead out of the tree, by the rules of rsync(1): an absolute
/// target does, and one that goes further up than the path goes down, or up after going down.
fn leads_out(path: &[u8], target: &[u8]) -> bool {
    let ends_up = target.len() > 3 && target.ends_with(b"/..");
    if target.is_empty() || target.starts_with(b"/") || ends_up {
        return true;
    }
    let (mut rest, mut ups) = (target, usize::from(target == b".."));
    while let Some(after) = rest.strip_prefix(b"../") {
        let slashes = after.iter().take_while(|byte| **byte == b'/').count();
        rest = after.get(slashes..).unwrap_or_default();
        ups += 1;
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let depth = names.count().saturating_sub(1);
    ups > depth || rest.windows(4).any(|window| window == b"/../")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_out_are_unsafe() {
        for (path, target) in [
            (&b"link"[..], &b"a"[..]),
            (b"link", b"a/b"),
            (b"link", b"..x/..y"),
            (b"d/link", b"../a"),
            (b"d/link", b".."),
            (b"d/e/link", b"..//../a"),
        ] {
            assert!(!leads_out(path, target), "{target:?}");
        }
        for (path, target) in [
            (&b"link"[..], &b""[..]),
            (b"link", b"/a"),
            (b"link", b".."),
            (b"link", b"../a"),
            (b"d/link", b"../../a"),
            (b"d/link", b"..//../a"),
            (b"d/link", b"x/../../../a"),
            (b"d/link", b"x/.."),
            (b"d/link", b"./../a"),
        ] {
            assert!(leads_out(path, target), "{target:?}");
        }
    }
}
