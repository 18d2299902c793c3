//! Making room for what is of another type.
//!
//! In: something new that is complete, and what has its name. Out: the new one under that name, if
//! what was there may give way (UPD-4), and what had to go: counted against the limit that the
//! deletion at the end has too, and told. What gives way is gone wholly, or is where it was.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::backup::backup_error;
use super::remover::{self, Backups, Remover};
use super::replace::{exchange, is_directory, look};
use super::write::Inner;
use crate::protocol::message::{Deletions, Entry, Kind, MakeRoom};
use crate::storage::filter::Scope;
use crate::storage::{Operation, Removed, StorageError};

/// What had to go for others.
#[derive(Debug, Default)]
pub struct Room(Mutex<Made>);

#[derive(Debug, Default)]
struct Made {
    /// How much was removed in all, or will be in a moment.
    count: u64,
    /// What nobody has asked for yet.
    news: Removed,
}

impl Room {
    fn made(&self) -> MutexGuard<'_, Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has gone since the last call.
    pub fn take_news(&self) -> Removed {
        std::mem::take(&mut self.made().news)
    }

    /// How many things have gone.
    pub fn count(&self) -> u64 {
        self.made().count
    }
}

/// A directory that will give way.
struct Claim {
    /// The rules that are in force where it is.
    scope: Scope,
    /// How many things it was counted as.
    count: u64,
}

impl Inner {
    /// Checks that something of another type may be removed for an entry. In a dry run, which
    /// replaces nothing, tells what would go.
    pub fn check_room(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        existing: &Stat,
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let is_directory = is_directory(existing);
        let has_room = match self.update.make_room {
            MakeRoom::Files => !is_directory && entry.kind != Kind::Directory,
            MakeRoom::EmptyDirectories => {
                !is_directory || remover::is_empty(dir, name).map_err(self.error(entry))?
            }
            MakeRoom::All if is_directory && self.dry_run => {
                return self.claim(dir, name, entry).map(drop);
            }
            MakeRoom::All => true,
        };
        if has_room { Ok(()) } else { Err(self.in_the_way(entry, existing)) }
    }

    /// Replaces where a directory is replaced or takes the place of something else.
    pub fn make_room(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let find = |name: &[u8]| {
            look(dir, name)
                .and_then(|stat| stat.ok_or((Operation::Stat, Errno::NOENT)))
                .map_err(self.error(entry))
        };
        let (new, old) = (find(temp)?, find(name)?);
        match (is_directory(&new), is_directory(&old), self.update.make_room) {
            (true, false, MakeRoom::EmptyDirectories | MakeRoom::All) => {
                self.exchange_and_drop(dir, temp, name, entry, AtFlags::empty())
            }
            (false, true, MakeRoom::EmptyDirectories)
                if remover::is_empty(dir, name).map_err(self.error(entry))? =>
            {
                self.exchange_and_drop(dir, temp, name, entry, AtFlags::REMOVEDIR)
            }
            (false, true, MakeRoom::All) => self.replace_directory(dir, temp, name, entry),
            _ => Err(self.in_the_way(entry, &old)),
        }
    }

    /// Exchanges, and removes what was there, which is a single thing.
    fn exchange_and_drop(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
        flags: AtFlags,
    ) -> Result<(), StorageError> {
        exchange(dir, temp, name).map_err(|cause| self.cannot_exchange(entry, cause))?;
        match rustix::fs::unlinkat(dir, temp, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // Perhaps somebody put something into it since it was looked at.
            Err(cause) => {
                let error = self.error(entry)((Operation::Remove, cause));
                Err(self.exchange_back(dir, temp, name, entry).err().unwrap_or(error))
            }
        }
    }

    /// Replaces a directory with all that is in it.
    fn replace_directory(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let claim = self.claim(dir, name, entry)?;
        let mut removed = Removed::default();
        let replaced = self.replace_claimed(dir, temp, name, entry, &claim, &mut removed);
        let mut made = self.room.made();
        made.count = made.count - claim.count + removed.deleted.len() as u64;
        made.news.deleted.append(&mut removed.deleted);
        replaced
    }

    fn replace_claimed(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
        claim: &Claim,
        removed: &mut Removed,
    ) -> Result<(), StorageError> {
        let path = self.path(entry);
        match &self.update.backup {
            Some(backup) if backup.directory.is_none() => {
                let moved = self.move_directory_aside(dir, name, backup);
                let moved = moved.map_err(|step| backup_error(&path, step))?;
                let moved = moved.ok_or_else(|| older_backup(&path))?;
                let renamed = rustix::fs::renameat(dir, temp, dir, name);
                if renamed.is_err() {
                    moved.undo(dir, name);
                }
                return renamed.map_err(|cause| self.error(entry)((Operation::Rename, cause)));
            }
            Some(_) => self.back_up_contents(dir, name, entry, claim)?,
            None => {}
        }
        exchange(dir, temp, name).map_err(|cause| self.cannot_exchange(entry, cause))?;
        let (tell, told) = flume::unbounded();
        // Under the path that it had, as that is what rules are about.
        let mut remover = Remover::without_backups(self);
        remover.is_top_free = true;
        remover.tell = Some(&tell);
        let is_gone = remover.remove_directory(dir, temp, &path, &claim.scope);
        let mut errors = remover.take_errors().into_iter();
        drop(tell);
        removed.deleted = told.into_iter().collect();
        if is_gone {
            return Ok(());
        }
        // Nothing of anybody's stays under a name that nobody would look for.
        let back = self.exchange_back(dir, temp, name, entry);
        let error = errors.next().unwrap_or_else(|| conflict(path, "a directory"));
        errors.for_each(|error| self.complain(error));
        Err(back.err().unwrap_or(error))
    }

    /// Makes backups of all that is in a directory which will give way.
    fn back_up_contents(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        claim: &Claim,
    ) -> Result<(), StorageError> {
        let path = self.path(entry);
        let mut remover = Remover::new(self);
        (remover.dry_run, remover.backups) = (true, Backups::Make);
        let is_kept = remover.remove_directory(dir, name, &path, &claim.scope);
        match remover.take_errors().into_iter().next() {
            Some(error) => Err(error),
            None if is_kept => Ok(()),
            None => Err(conflict(path, "a directory")),
        }
    }

    /// Checks that a directory may go with all that is in it, and counts that.
    ///
    /// # Errors
    ///
    /// [`StorageError::Conflict`] if something in it stays: filters protect it, something is mounted
    /// there, it is a source; or if it is more than may be removed.
    fn claim(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<Claim, StorageError> {
        let path = self.path(entry);
        let Ok(scope) = self.scope_in(entry.parent) else {
            return Err(conflict(path, "a directory"));
        };
        let (tell, told) = flume::unbounded();
        let mut remover = Remover::without_backups(self);
        (remover.dry_run, remover.is_top_free) = (true, true);
        remover.tell = self.dry_run.then_some(&tell);
        let is_free = remover.remove_directory(dir, name, &path, &scope);
        let Deletions { done: count, .. } = remover.count;
        drop(tell);
        if !is_free {
            return Err(conflict(path, "a directory with something in it that has to stay"));
        }
        if let Some(backup) = self.update.backup.as_ref().filter(|it| it.directory.is_none()) {
            // It is moved, and nothing is removed.
            let older = look(dir, &[name, &backup.suffix].concat()).map_err(self.error(entry))?;
            return match older {
                Some(_) => Err(older_backup(&path)),
                None => Ok(Claim { scope, count: 0 }),
            };
        }
        let mut made = self.room.made();
        let max = self.delete.and_then(|delete| delete.max);
        if max.is_some_and(|max| made.count.saturating_add(count) > max) {
            made.news.over_limit += count;
            return Err(conflict(path, "a directory with more in it than may still be deleted"));
        }
        made.count += count;
        made.news.deleted.extend(told);
        Ok(Claim { scope, count })
    }

    /// Gives what was there its name back.
    fn exchange_back(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StorageError> {
        exchange(dir, temp, name).map_err(|cause| {
            let text = format!(
                "{cause}; what was there is now called {}",
                crate::protocol::manifest::Escaped(temp)
            );
            let cause = std::io::Error::other(text);
            StorageError::io(Operation::Rename, &self.path(entry))(cause)
        })
    }

    fn in_the_way(&self, entry: &Entry, existing: &Stat) -> StorageError {
        let existing = match FileType::from_raw_mode(existing.st_mode) {
            FileType::Directory => "a directory",
            FileType::RegularFile => "a file",
            FileType::Symlink => "a symlink",
            _ => "a special file",
        };
        conflict(self.path(entry), existing)
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

fn conflict(path: Vec<u8>, existing: &'static str) -> StorageError {
    StorageError::Conflict { path, existing }
}

fn older_backup(path: &[u8]) -> StorageError {
    conflict(path.to_vec(), "a directory whose backup would replace an older one")
}
