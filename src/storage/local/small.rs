//! Whole small files.
//!
//! In: verified files. Out: each under its final name, at once: it is written without any name and
//! gets one when it is complete, so that a killed process leaves nothing. Where the file system
//! cannot do that, a temporary name and a rename do. With [`Update::in_place`], the file that has
//! the final name is written to.
//!
//! [`Update::in_place`]: crate::protocol::message::Update::in_place

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode as FsMode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::beneath;
use super::replace::Fresh;
use super::write::{Inner, Step, at, write_all};
use crate::protocol::chunk::{EntryId, VerifiedFile};
use crate::protocol::message::{Durability, Entry};
use crate::storage::{Operation, StorageError};

/// Files without a name cannot be had here.
struct Unsupported;

/// A small file that is complete and has no final name yet.
#[derive(Debug)]
pub enum Prepared {
    Unnamed(OwnedFd),
    /// Under its temporary name.
    Named,
    /// Under its final name, which it had before.
    InPlace,
}

/// Puts the content into a file that is open for writing, at its start.
pub type Fill<'a> = dyn FnMut(BorrowedFd<'_>) -> Result<(), StorageError> + 'a;

/// The directory that files are being written in, while one after another goes there.
#[derive(Default)]
pub struct Directory {
    held: Option<(EntryId, Arc<OwnedFd>)>,
    /// The file system that it is on.
    pub device: u64,
    devices: Vec<u64>,
}

impl Inner {
    /// Writes whole files, with their metadata.
    pub fn prepare_files(
        &self,
        files: &[(VerifiedFile, Arc<Entry>)],
    ) -> Vec<Result<Prepared, StorageError>> {
        let mut directory = Directory::default();
        let prepare = |(file, entry): &(VerifiedFile, Arc<Entry>)| {
            let dir = self.enter(&mut directory, entry)?;
            self.prepare(&dir, entry, &mut |file_fd| {
                self.write_sparse(file_fd, file.data())
                    .map_err(|cause| self.error(entry)((Operation::Write, cause)))
            })
        };
        let prepared = files.iter().map(prepare).collect();
        self.leave(&directory);
        prepared
    }

    /// The directory that an entry goes into.
    pub fn enter(
        &self,
        directory: &mut Directory,
        entry: &Entry,
    ) -> Result<Arc<OwnedFd>, StorageError> {
        if let Some((_, held)) = directory.held.as_ref().filter(|(id, _)| *id == entry.parent) {
            return Ok(Arc::clone(held));
        }
        let dir = self.parent(entry)?;
        let stat =
            rustix::fs::fstat(&dir).map_err(|cause| self.error(entry)((Operation::Stat, cause)))?;
        directory.device = stat.st_dev;
        if !directory.devices.contains(&stat.st_dev) {
            directory.devices.push(stat.st_dev);
            self.devices.open(stat.st_dev, dir.as_fd());
        }
        directory.held = Some((entry.parent, Arc::clone(&dir)));
        Ok(dir)
    }

    /// Takes note that files have been written.
    pub fn leave(&self, directory: &Directory) {
        directory.devices.iter().for_each(|device| self.devices.mark(*device));
    }

    /// Writes a whole file, with its metadata.
    pub fn prepare(
        &self,
        dir: &OwnedFd,
        entry: &Entry,
        fill: &mut Fill<'_>,
    ) -> Result<Prepared, StorageError> {
        let (dir, name) = (dir.as_fd(), self.name_of(entry)?);
        if self.update.in_place
            && let Some(file) = self.open_in_place(dir, name, OFlags::WRONLY, entry)?
        {
            self.fill(file.fd.as_fd(), entry, fill)?;
            return Ok(Prepared::InPlace);
        }
        if !self.no_unnamed.load(Ordering::Relaxed)
            && let Ok(prepared) = self.write_unnamed(dir, entry, fill)
        {
            return prepared;
        }
        self.write_named(dir, name, entry, fill)
    }

    /// Puts a file in its place.
    pub fn commit_prepared(&self, file: &Prepared, entry: &Entry) -> Result<(), StorageError> {
        if matches!(file, Prepared::InPlace) {
            return Ok(());
        }
        let name = self.name_of(entry)?;
        let dir = self.parent(entry)?;
        let dir = dir.as_fd();
        if let Prepared::Unnamed(file) = file {
            match self.link(file.as_fd(), dir, name) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(cause) => return Err(self.error(entry)((Operation::Link, cause))),
            }
            self.link_temp(file.as_fd(), dir, name).map_err(self.error(entry))?;
        }
        self.replace(dir, &self.temp_name(name), name, entry, Fresh::Yes)
    }

    fn write_unnamed(
        &self,
        dir: BorrowedFd<'_>,
        entry: &Entry,
        fill: &mut Fill<'_>,
    ) -> Result<Result<Prepared, StorageError>, Unsupported> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY;
        match beneath::open_name(dir, b".", flags, FsMode::RUSR | FsMode::WUSR) {
            Ok(file) => {
                self.find_out_how_to_name(file.as_fd(), dir)?;
                let filled = self.fill(file.as_fd(), entry, fill);
                Ok(filled.map(|()| Prepared::Unnamed(file)))
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                self.no_unnamed.store(true, Ordering::Relaxed);
                Err(Unsupported)
            }
            Err(cause) => Ok(Err(self.error(entry)((Operation::Create, cause)))),
        }
    }

    /// Finds out, once, by which way a file without a name can get one, if by any.
    fn find_out_how_to_name(
        &self,
        file: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
    ) -> Result<(), Unsupported> {
        if self.can_name.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Before Linux 6.10, only with a capability that lets one read everything.
        if self.no_empty_path.load(Ordering::Relaxed) || !beneath::can_link(file, dir) {
            self.no_empty_path.store(true, Ordering::Relaxed);
            if !beneath::can_link_by_proc(file, dir) {
                self.no_unnamed.store(true, Ordering::Relaxed);
                return Err(Unsupported);
            }
        }
        self.can_name.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Writes all of a new file, and leaves out blocks that hold nothing but zeros, so that the
    /// holes of a source come back, which a pack does not tell.
    fn write_sparse(&self, file: BorrowedFd<'_>, data: &[u8]) -> Result<(), Errno> {
        let is_hole = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        if self.update.in_place || !data.chunks(BLOCK).any(is_hole) {
            return write_all(file, data, 0);
        }
        let (mut rest, mut offset) = (data, 0);
        while let Some(first) = rest.chunks(BLOCK).next() {
            let is_first_hole = is_hole(first);
            let alike = rest.chunks(BLOCK).take_while(|block| is_hole(block) == is_first_hole);
            let (run, after) = rest.split_at(alike.map(<[u8]>::len).sum());
            if !is_first_hole {
                write_all(file, run, offset)?;
            }
            (rest, offset) = (after, offset + run.len() as u64);
        }
        rustix::fs::ftruncate(file, offset)
    }

    fn fill(
        &self,
        file: BorrowedFd<'_>,
        entry: &Entry,
        fill: &mut Fill<'_>,
    ) -> Result<(), StorageError> {
        fill(file)?;
        if self.update.in_place {
            rustix::fs::ftruncate(file, entry.size())
                .map_err(|cause| self.error(entry)((Operation::Write, cause)))?;
        }
        self.set_metadata(file, entry).map_err(self.error(entry))?;
        if self.durability == Durability::File {
            rustix::fs::fsync(file).map_err(|cause| self.error(entry)((Operation::Sync, cause)))?;
        }
        Ok(())
    }

    /// Gives a file without a name the temporary one.
    fn link_temp(&self, file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Step<()> {
        let temp = self.temp_name(name);
        let linked = match self.link(file, dir, &temp) {
            Err(Errno::EXIST) => {
                self.clear_temp(dir, &temp)?;
                self.link(file, dir, &temp)
            }
            answer => answer,
        };
        linked.map_err(at(Operation::Link))
    }

    /// Gives a file without a name this one.
    fn link(&self, file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        if self.no_empty_path.load(Ordering::Relaxed) {
            return beneath::link_by_proc(file, dir, name);
        }
        rustix::fs::linkat(file, c"", dir, name, AtFlags::EMPTY_PATH)
    }

    fn write_named(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        fill: &mut Fill<'_>,
    ) -> Result<Prepared, StorageError> {
        let temp = self.temp_name(name);
        let file = self.create_temp(dir, &temp, OFlags::WRONLY).map_err(self.error(entry))?;
        if let Err(error) = self.fill(file.as_fd(), entry, fill) {
            let _ = rustix::fs::unlinkat(dir, &temp, AtFlags::empty());
            return Err(error);
        }
        Ok(Prepared::Named)
    }
}

/// How many prepared files may wait, as each may keep a descriptor.
pub fn max_prepared() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 4).unwrap_or(usize::MAX).clamp(1, MAX_PREPARED)
}

const MAX_PREPARED: usize = 4096;

/// What file systems allocate at a time, in bytes.
const BLOCK: usize = 4096;
