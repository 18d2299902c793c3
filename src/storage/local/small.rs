//! Whole small files.
//!
//! In: verified files. Out: each under its final name, at once: it is written without any name and
//! gets one when it is complete, so that a killed process leaves nothing. Where the file system
//! cannot do that, a temporary name and a rename do.

use std::sync::atomic::Ordering;

use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{AtFlags, Mode as FsMode, OFlags};
use rustix::io::Errno;

use super::beneath;
use super::write::{Inner, Step, at, create_new, write_all};
use crate::protocol::message::Entry;
use crate::storage::{Operation, StorageError};

/// Files without a name cannot be had here.
struct Unsupported;

impl Inner {
    /// Writes a whole file and puts it in its place.
    pub fn write_small(&self, data: &[u8], entry: &Entry) -> Result<(), StorageError> {
        let name = self.name_of(entry)?;
        let dir = self.parent(entry)?;
        let dir = dir.as_fd();
        let unnamed = if self.no_unnamed.load(Ordering::Relaxed) {
            Err(Unsupported)
        } else {
            self.write_unnamed(dir, name, data, entry)
        };
        unnamed
            .unwrap_or_else(|Unsupported| self.write_named(dir, name, data, entry))
            .map_err(self.error(entry))
    }

    fn write_unnamed(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        data: &[u8],
        entry: &Entry,
    ) -> Result<Step<()>, Unsupported> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY;
        let file = match beneath::open_name(dir, b".", flags, FsMode::RUSR | FsMode::WUSR) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                self.no_unnamed.store(true, Ordering::Relaxed);
                return Err(Unsupported);
            }
            Err(cause) => return Ok(Err((Operation::Create, cause))),
        };
        let file = file.as_fd();
        let filled = self.fill(file, data, entry);
        if filled.is_err() {
            return Ok(filled);
        }
        match self.link(file, dir, name) {
            Err(Errno::EXIST) => Ok(self.link_over(file, dir, name)),
            // Without /proc there is no way to give it a name.
            Err(Errno::NOENT) => {
                self.no_unnamed.store(true, Ordering::Relaxed);
                Err(Unsupported)
            }
            answer => Ok(answer.map_err(at(Operation::Link))),
        }
    }

    fn fill(&self, file: BorrowedFd<'_>, data: &[u8], entry: &Entry) -> Step<()> {
        write_all(file, data, 0).map_err(at(Operation::Write))?;
        self.set_metadata(file, entry)
    }

    /// Replaces what has the name, by way of the temporary one.
    fn link_over(&self, file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Step<()> {
        let temp = self.temp_name(name);
        let linked = match self.link(file, dir, &temp) {
            Err(Errno::EXIST) => rustix::fs::unlinkat(dir, &temp, AtFlags::empty())
                .and_then(|()| self.link(file, dir, &temp)),
            answer => answer,
        };
        linked.map_err(at(Operation::Link))?;
        rename_or_remove(dir, &temp, name)
    }

    /// Gives a file without a name this one.
    fn link(&self, file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        if !self.no_empty_path.load(Ordering::Relaxed) {
            match rustix::fs::linkat(file, c"", dir, name, AtFlags::EMPTY_PATH) {
                // Before Linux 6.10, only with a capability that lets one read everything.
                Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {
                    self.no_empty_path.store(true, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        beneath::link_by_proc(file, dir, name)
    }

    fn write_named(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        data: &[u8],
        entry: &Entry,
    ) -> Step<()> {
        let temp = self.temp_name(name);
        let file = create_new(dir, &temp, OFlags::WRONLY)?;
        if let Err(step) = self.fill(file.as_fd(), data, entry) {
            let _ = rustix::fs::unlinkat(dir, &temp, AtFlags::empty());
            return Err(step);
        }
        rename_or_remove(dir, &temp, name)
    }
}

fn rename_or_remove(dir: BorrowedFd<'_>, temp: &[u8], name: &[u8]) -> Step<()> {
    rustix::fs::renameat(dir, temp, dir, name).map_err(|cause| {
        let _ = rustix::fs::unlinkat(dir, temp, AtFlags::empty());
        (Operation::Rename, cause)
    })
}
