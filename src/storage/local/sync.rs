//! Waiting for stable storage.
//!
//! In: where files were written. Out: the system's word that they are kept. One call for a whole
//! file system costs less than one for each of many small files.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::beneath;
use super::write::Inner;
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{Durability, Entry};
use crate::storage::{Operation, StorageError};

/// The file systems that files were written to.
#[derive(Debug, Default)]
pub struct Devices {
    known: Mutex<Vec<Arc<Device>>>,
    /// Directories whose own names are on stable storage.
    named: Mutex<HashSet<EntryId>>,
}

#[derive(Debug)]
struct Device {
    number: u64,
    /// A directory on it. It was opened before anything was written: a descriptor is told of
    /// errors since it was opened. `None` if none can be listed there.
    directory: Option<OwnedFd>,
    /// Whether something was prepared there since it was last synced.
    is_dirty: AtomicBool,
    /// Held while it is synced. The system tells of an error once, and nobody knows which files it
    /// was about: from then on nothing there counts as kept.
    failed: Mutex<Option<Errno>>,
}

impl Device {
    fn sync(&self, only_dirty: bool) -> Result<(), Errno> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = *failed {
            return Err(cause);
        }
        if !self.is_dirty.swap(false, Ordering::AcqRel) && only_dirty {
            return Ok(());
        }
        let Some(directory) = &self.directory else {
            rustix::fs::sync();
            return Ok(());
        };
        rustix::fs::syncfs(directory).inspect_err(|cause| *failed = Some(*cause))
    }
}

impl Devices {
    /// Takes note of a file system, before a file is written in a directory of it.
    pub fn open(&self, number: u64, dir: BorrowedFd<'_>) {
        let mut known = self.known();
        if known.iter().all(|device| device.number != number) {
            let directory = beneath::open_child(dir, b".", OFlags::RDONLY).ok();
            let (is_dirty, failed) = (AtomicBool::new(false), Mutex::new(None));
            known.push(Arc::new(Device { number, directory, is_dirty, failed }));
        }
    }

    /// Takes note that files have been prepared on a file system.
    pub fn mark(&self, number: u64) {
        if let Some(device) = self.known().iter().find(|device| device.number == number) {
            device.is_dirty.store(true, Ordering::Release);
        }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Arc<Device>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Waits until the data of everything that was prepared is on stable storage.
    pub fn sync_prepared(&self) -> Result<(), StorageError> {
        if self.durability != Durability::Batch {
            return Ok(());
        }
        let devices = self.devices.known().clone();
        let mut synced = devices.iter().map(|device| device.sync(true));
        synced.try_for_each(|synced| synced.map_err(|cause| self.sync_error(cause)))
    }

    /// Waits until an entry's name is on stable storage, and the names of the directories that it
    /// is in.
    pub fn sync_name(&self, entry: &Entry) -> Result<(), StorageError> {
        let failed = |cause| StorageError::io(Operation::Sync, &self.path(entry))(cause);
        let mut directory = entry.parent;
        self.sync_directory(directory).map_err(failed)?;
        while directory != EntryId::ROOT && !self.named().contains(&directory) {
            let Some(parent) = self.tree.parent(directory) else { break };
            self.sync_directory(parent).map_err(failed)?;
            self.named().insert(directory);
            directory = parent;
        }
        Ok(())
    }

    fn named(&self) -> MutexGuard<'_, HashSet<EntryId>> {
        self.devices.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync_directory(&self, id: EntryId) -> Result<(), Errno> {
        let dir = self.tree.directory(id)?;
        // What is held can only be entered; syncing needs more.
        let synced = beneath::open_child(dir.as_fd(), b".", OFlags::RDONLY)
            .and_then(|dir| rustix::fs::fsync(&dir));
        match synced {
            // This file system does not sync directories.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF) => Ok(()),
            // It may be written to and not listed.
            Err(Errno::ACCESS) => {
                rustix::fs::sync();
                Ok(())
            }
            answer => answer,
        }
    }

    /// Waits until everything is on stable storage.
    pub fn sync_all(&self) -> Result<(), StorageError> {
        let Some(root) = self.root.as_ref().filter(|_| !self.dry_run) else { return Ok(()) };
        match rustix::fs::syncfs(root) {
            // The root could only be entered, not opened.
            Err(Errno::BADF) => {
                rustix::fs::sync();
                return Ok(());
            }
            answer => answer.map_err(|cause| self.sync_error(cause))?,
        }
        let own = rustix::fs::fstat(root).map(|stat| stat.st_dev);
        let devices = self.devices.known().clone();
        let others = devices.iter().filter(|device| own != Ok(device.number));
        let mut synced = others.map(|device| device.sync(false));
        synced.try_for_each(|synced| synced.map_err(|cause| self.sync_error(cause)))
    }

    fn sync_error(&self, cause: Errno) -> StorageError {
        use std::os::unix::ffi::OsStrExt as _;
        StorageError::io(Operation::Sync, self.root_path.as_os_str().as_bytes())(cause)
    }
}
