//! Temporary names of this job, and what a killed run of it left under them.
//!
//! In: a temporary name, or directories to search for them. Out: the name is free. Whatever has one is
//! ours and of no use to anybody: it had not been finished, or it is a directory that gave way, and
//! all of it is backed up that had to be.

use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::beneath;
use super::place::State;
use super::remover::{Remover, list};
use super::write::{Inner, Step, at};
use crate::protocol::chunk::EntryId;
use crate::storage::filter::{FilterOptions, Rules};
use crate::storage::{Operation, StorageError};

impl Inner {
    /// Makes something under a temporary name, and removes what an earlier run left there.
    pub fn make_temp(
        &self,
        dir: BorrowedFd<'_>,
        temp: &[u8],
        make: impl Fn() -> Result<(), Errno>,
    ) -> Step<()> {
        let answer = match make() {
            Err(Errno::EXIST) => {
                self.clear_temp(dir, temp)?;
                make()
            }
            answer => answer,
        };
        answer.map_err(at(Operation::Create))
    }

    /// Removes whatever has a temporary name of this job.
    pub fn clear_temp(&self, dir: BorrowedFd<'_>, temp: &[u8]) -> Step<()> {
        match rustix::fs::unlinkat(dir, temp, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(cause) => return Err((Operation::Remove, cause)),
        }
        self.remove_wholly(dir, temp)
    }

    /// Removes a directory with all that is in it, whatever filters say.
    pub fn remove_wholly(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Step<()> {
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(cause) => return Err((Operation::Remove, cause)),
        }
        let rules = Rules::new(&[], FilterOptions::default())
            .map_err(|_| (Operation::Remove, Errno::INVAL))?;
        let mut remover = Remover::without_backups(self);
        if remover.remove_directory(dir, name, name, &rules.root()) {
            Ok(())
        } else {
            Err((Operation::Remove, Errno::NOTEMPTY))
        }
    }

    /// Removes what an earlier run of this job left, from every directory that is known: entries
    /// that it had begun may be gone from the source. To be called when every entry has ended.
    pub fn sweep(&self) {
        if self.is_first_run() {
            return;
        }
        if let Some(root) = &self.root {
            self.sweep_directory(EntryId::ROOT, root.as_fd());
        }
        for position in 0..self.tree.len() {
            let Some((id, _, _, wish)) = self.tree.at(position) else { break };
            if wish.state == State::There
                && let Ok(dir) = self.tree.directory(id)
            {
                self.sweep_directory(id, dir.as_fd());
            }
        }
    }

    /// What cannot be listed had nothing put into it either.
    pub fn sweep_directory(&self, id: EntryId, dir: BorrowedFd<'_>) {
        let opened = beneath::open_child(dir, b".", OFlags::RDONLY).map_err(at(Operation::Open));
        let left = opened.and_then(|dir| list(dir.as_fd(), |name| self.is_temp_name(name)));
        for listed in left.unwrap_or_default() {
            self.clear_left_over(id, dir, &listed.name);
        }
    }

    /// Removes whatever has a temporary name of this job, or complains.
    pub fn clear_left_over(&self, id: EntryId, dir: BorrowedFd<'_>, temp: &[u8]) {
        if let Err((operation, cause)) = self.clear_temp(dir, temp) {
            let path = self.tree.path(id, temp);
            self.complain(StorageError::io(operation, &path)(cause));
        }
    }
}

/// Removes what has just been made under a temporary name, and nothing else.
pub fn drop_temp(dir: BorrowedFd<'_>, temp: &[u8]) {
    if let Err(Errno::ISDIR | Errno::PERM) = rustix::fs::unlinkat(dir, temp, AtFlags::empty()) {
        let _ = rustix::fs::unlinkat(dir, temp, AtFlags::REMOVEDIR);
    }
}
