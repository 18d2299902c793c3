//! What is there for each entry, and which files are wanted.
//!
//! In: entries, parents first. Out: what was there, and directories, symlinks and special files that
//! now are; files with the right content have the right metadata too.

mod directories;

#[cfg(test)]
mod tests;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

pub use directories::{DirectoryAcls, State, Wish};

use super::metadata::{Subject, Target, open_looked_at};
use super::write::{Inner, Step};
use super::{Look, mtime};
use crate::protocol::message::{Changes, Compare, Entry, FileKind, Kind};
use crate::storage::{Existing, Operation, Placed, StorageError};

impl Inner {
    /// Looks at what is there for an entry, and makes what is not a file.
    pub fn place(&self, entry: &Entry) -> Result<Placed, StorageError> {
        let name = self.name_of(entry)?;
        let placed = match (self.state_of_parent(entry), &entry.kind) {
            (_, Kind::Unselected) => return Ok(Placed::Left),
            (_, Kind::HardLink { .. } | Kind::Unsendable(_)) => {
                return Err(self.error(entry)((Operation::Create, Errno::INVAL)));
            }
            (State::Left, _) => Some((State::Left, Placed::Left)),
            (State::Failed, _) => {
                self.remember_if_directory(entry, name, None, State::Failed);
                return Err(StorageError::NoParent { path: self.path(entry) });
            }
            (State::Missing, _) => Some(self.place_nowhere(entry)),
            (State::There, _) => None,
        };
        if let Some((state, placed)) = placed {
            self.remember_if_directory(entry, name, None, state);
            return Ok(placed);
        }
        let dir = match self.parent(entry) {
            Ok(dir) => dir,
            // The root itself would have to be made first.
            Err(StorageError::Io { cause, .. })
                if self.dry_run && cause.kind() == std::io::ErrorKind::NotFound =>
            {
                let (state, placed) = self.place_nowhere(entry);
                self.remember_if_directory(entry, name, None, state);
                return Ok(placed);
            }
            Err(error) => return Err(error),
        };
        let dir = dir.as_fd();
        match &entry.kind {
            Kind::Directory => {
                let placed = self.place_directory(dir, name, entry);
                if placed.is_err() {
                    // For the paths of what is in it.
                    self.remember_if_directory(entry, name, None, State::Failed);
                }
                placed
            }
            Kind::Symlink { target } => self.place_symlink(dir, name, target, entry),
            Kind::File(file) => self.place_file(dir, name, *file, entry),
            Kind::Special(special) => self.place_special(dir, name, *special, entry),
            Kind::HardLink { .. } | Kind::Unsendable(_) | Kind::Unselected => Ok(Placed::Left),
        }
    }

    /// What became of the directory that an entry goes into, as far as it is known.
    pub fn state_of_parent(&self, entry: &Entry) -> State {
        self.tree.value(entry.parent).map_or(State::There, |wish| wish.state)
    }

    /// In a dry run: an entry whose directory does not exist.
    fn place_nowhere(&self, entry: &Entry) -> (State, Placed) {
        if self.update.existing_only {
            return (State::Left, Placed::Left);
        }
        if let Kind::Symlink { target } = &entry.kind
            && self.is_unsafe(entry, target)
        {
            return (State::Left, Placed::Left);
        }
        let placed = match &entry.kind {
            Kind::File(file) => self.place_absent(*file, entry),
            _ => Ok(created(entry)),
        };
        (State::Missing, placed.unwrap_or(created(entry)))
    }

    fn place_file(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        file: FileKind,
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let Some(stat) = self.look(dir, name, entry)? else {
            if self.update.existing_only {
                return Ok(Placed::Left);
            }
            return self.place_absent(file, entry);
        };
        if self.update.ignore_existing {
            return Ok(Placed::Left);
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.check_room(dir, name, &stat, entry)?;
            return self.place_absent(file, entry).map(|placed| placed.with(Changes::TYPE));
        }
        self.check_other_than_source(&stat, file, entry)?;
        if self.is_kept(&stat, entry) {
            return Ok(Placed::Left);
        }
        let (wanted, existing) = (entry.metadata.mtime, mtime(&stat));
        let is_size_equal = Look::new(&stat).size == file.size;
        let is_equal = is_size_equal
            && match self.update.compare {
                Compare::Quick => self.is_same_time(existing, wanted),
                Compare::SizeOnly => true,
                Compare::Checksum => return Ok(Placed::Compare(Existing::Unread)),
                Compare::Always => false,
            };
        if is_equal {
            self.correct(dir, name, &stat, entry)
        } else {
            self.want(dir, name, &stat, file, entry)
        }
    }

    /// Goes on with a file after its data was compared.
    pub fn place_compared(&self, entry: &Entry, is_equal: bool) -> Result<Placed, StorageError> {
        let Kind::File(file) = entry.kind else {
            return Err(self.error(entry)((Operation::Open, Errno::INVAL)));
        };
        let name = self.name_of(entry)?;
        let found = match self.parent(entry) {
            Ok(dir) => self.look(dir.as_fd(), name, entry)?.map(|stat| (dir, stat)),
            Err(_) if self.dry_run => None,
            Err(error) => return Err(error),
        };
        let regular = found
            .filter(|(_, stat)| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        match regular {
            Some((dir, stat)) if is_equal => self.correct(dir.as_fd(), name, &stat, entry),
            Some((dir, stat)) => self.want(dir.as_fd(), name, &stat, file, entry),
            None if is_equal => self.link_equal(file, entry),
            None => Ok(created(entry)),
        }
    }

    /// A file whose data is right: corrects its metadata.
    pub fn correct(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let target = self.target(&entry.metadata, kind, None);
        let correct = || {
            let (changes, file) = self.compare(dir, name, stat, &target)?;
            let path = || self.path(entry);
            let subject = Subject { path: &path };
            if changes.is_empty() {
                self.tell_withheld(&target, stat.st_mode, Some(stat.st_mode), subject);
            } else if !self.dry_run {
                let file = file.map_or_else(|| open_looked_at(dir, name, stat), Ok)?;
                self.apply(file.as_fd(), stat, &target, subject);
            }
            Ok(changes)
        };
        correct().map(Placed::Settled).map_err(self.error(entry))
    }

    /// A file whose data has to come: tells what is different about the one that is there.
    fn want(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        file: FileKind,
        entry: &Entry,
    ) -> Result<Placed, StorageError> {
        let changes = self.replacement(dir, name, stat, entry)?;
        let is_other_size = Look::new(stat).size != file.size;
        Ok(Placed::Wanted(changes.with(Changes::SIZE.when(is_other_size))))
    }

    /// What changes where something new of the same type takes the place of what is there.
    pub fn replacement(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        entry: &Entry,
    ) -> Result<Changes, StorageError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let target = self.target(&entry.metadata, kind, None);
        let (changes, _) = self.compare(dir, name, stat, &target).map_err(self.error(entry))?;
        let is_told = kind != FileType::RegularFile || self.update.compare == Compare::Checksum;
        Ok(changes
            .with(Changes::CONTENT)
            // It gets the time of now.
            .with(Changes::TIME.when(target.mtime.is_none()))
            .with(Changes::CHECKSUM.when(is_told)))
    }

    /// What of its metadata is different about something, and itself if it had to be opened.
    pub fn compare(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        target: &Target<'_>,
    ) -> Step<(Changes, Option<OwnedFd>)> {
        if !target.has_attributes() {
            return Ok((self.differences(target, stat, &[]), None));
        }
        let file = open_looked_at(dir, name, stat)?;
        let changes = if let Ok(existing) = target.read_attributes(file.as_fd()) {
            self.differences(target, stat, &existing)
        } else {
            // They will be tried to be set, which gives a complaint.
            let unknown = if target.xattrs { Changes::ATTRIBUTES } else { Changes::ACL };
            self.differences(target, stat, &[]).with(unknown)
        };
        Ok((changes, Some(file)))
    }

    /// What has a name, if anything.
    pub fn look(
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
}

/// There was nothing of its type under its name.
pub fn created(entry: &Entry) -> Placed {
    match entry.kind {
        Kind::File(_) => Placed::Wanted(Changes::CREATED_WITH_CONTENT),
        _ => Placed::Settled(Changes::CREATED_WITH_CONTENT),
    }
}
