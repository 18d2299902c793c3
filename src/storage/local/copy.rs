//! Copying from a source on this machine.
//!
//! In: entries of the source that the sink was given, and ranges of them. Out: files with the same
//! content, which the file system copies by itself where it can: by sharing blocks, or without the
//! data passing through here. Whether it can is remembered for each pair of file systems. Holes stay
//! holes, and a source that changed meanwhile is found out.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fd::BorrowedFd;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::read::{CopiedFile, LocalSource, PIECE_LEN, read_full};
use super::small::{Directory, Prepared};
use super::write::{Inner, TempFile, write_all, write_hole};
use crate::protocol::chunk::ByteRange;
use crate::protocol::message::Entry;
use crate::storage::{Operation, StorageError};

/// The file of the source that one of the sink is a copy of.
#[derive(Debug, Default)]
pub struct CopyState {
    from: OnceLock<CopiedFile>,
    /// Whether all of it shares the source's blocks, once that was tried.
    is_cloned: OnceLock<bool>,
}

/// What was found out about copying between file systems.
#[derive(Debug, Default)]
pub struct Pairs(Mutex<Vec<Pair>>);

#[derive(Clone, Copy, Debug)]
struct Pair {
    /// The devices of source and destination.
    devices: (u64, u64),
    clones: bool,
    copies: bool,
}

impl Pairs {
    fn known(&self) -> MutexGuard<'_, Vec<Pair>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, devices: (u64, u64)) -> Pair {
        let known = self.known().iter().find(|pair| pair.devices == devices).copied();
        known.unwrap_or(Pair { devices, clones: true, copies: true })
    }

    #[cfg(test)]
    pub fn forbid(&self, devices: (u64, u64)) {
        self.learn(Pair { devices, clones: false, copies: false });
    }

    /// Remembers what the file systems cannot do.
    fn learn(&self, learned: Pair) {
        let mut known = self.known();
        match known.iter_mut().find(|pair| pair.devices == learned.devices) {
            Some(pair) => {
                pair.clones &= learned.clones;
                pair.copies &= learned.copies;
            }
            None => known.push(learned),
        }
    }
}

/// At which end copying failed.
#[derive(Clone, Copy)]
enum CopyError {
    Read(Errno),
    Write(Errno),
    /// The source ended too early.
    Short,
}

impl Inner {
    /// Copies whole files from the source, with their metadata.
    pub fn copy_files(&self, entries: &[Arc<Entry>]) -> Vec<Result<Prepared, StorageError>> {
        let mut directory = Directory::default();
        let mut buffer = Vec::new();
        let copy = |entry: &Arc<Entry>| {
            let source = self.copy_source(entry)?;
            let from = source.open_copied(entry)?;
            let dir = self.enter(&mut directory, entry)?;
            let pair = self.pairs.get((from.device, directory.device));
            self.prepare(&dir, entry, &mut |to| {
                self.copy_small(source, &from, to, pair, &mut buffer, entry)
            })
        };
        let copied = entries.iter().map(copy).collect();
        self.leave(&directory);
        copied
    }

    /// Copies a range of a larger file; returns whether the whole file is copied by that.
    pub fn copy_range(&self, file: &TempFile, range: ByteRange) -> Result<bool, StorageError> {
        let entry = file.entry();
        let source = self.copy_source(entry)?;
        let from = self.copied(file, source)?;
        let to = rustix::fs::fstat(file.fd())
            .map_err(|cause| self.error(entry)((Operation::Stat, cause)))?;
        let mut pair = self.pairs.get((from.device, to.st_dev));
        let is_cloned = file.copy().is_cloned.get_or_init(|| {
            let is_cloned = clone(from.fd(), file.fd(), &mut pair);
            self.pairs.learn(pair);
            is_cloned
        });
        if *is_cloned {
            return Ok(true);
        }
        let range = range.offset()..range.offset() + u64::from(range.len());
        let mut copy = Copy {
            from: from.fd(),
            to: file.fd(),
            is_sparse: from.is_sparse(),
            is_blank: file.is_blank(),
            copies: pair.copies,
        };
        let copied = copy.extents(range, &mut Vec::new());
        if !copy.copies {
            self.pairs.learn(Pair { copies: false, ..pair });
        }
        copied.map_err(|error| self.copy_error(error, source, from, entry))?;
        Ok(false)
    }

    /// Checks that the source of a copy is what it was when it was opened for that.
    pub fn confirm_copy(&self, file: &TempFile) -> Result<(), StorageError> {
        let source = self.copy_source(file.entry())?;
        source.confirm_copied(self.copied(file, source)?)
    }

    /// The file of the source, which is opened by the first who needs it.
    fn copied<'a>(
        &self,
        file: &'a TempFile,
        source: &LocalSource,
    ) -> Result<&'a CopiedFile, StorageError> {
        if let Some(from) = file.copy().from.get() {
            return Ok(from);
        }
        let opened = source.open_copied(file.entry())?;
        Ok(file.copy().from.get_or_init(|| opened))
    }

    fn copy_source(&self, entry: &Entry) -> Result<&LocalSource, StorageError> {
        self.source.get().ok_or_else(|| self.error(entry)((Operation::Open, Errno::OPNOTSUPP)))
    }

    fn copy_small(
        &self,
        source: &LocalSource,
        from: &CopiedFile,
        to: BorrowedFd<'_>,
        known: Pair,
        buffer: &mut Vec<u8>,
        entry: &Entry,
    ) -> Result<(), StorageError> {
        let size = from.size();
        if size == 0 {
            return source.confirm_content(from);
        }
        let mut pair = known;
        if !clone(from.fd(), to, &mut pair) {
            let mut copy = Copy {
                from: from.fd(),
                to,
                is_sparse: from.is_sparse(),
                is_blank: !self.update.in_place,
                // For little data, two calls that copy beat one that splices pages.
                copies: pair.copies && size > MAX_BUFFERED,
            };
            let copied = copy.extents(0..size, buffer);
            pair.copies &= copy.copies || size <= MAX_BUFFERED;
            copied.map_err(|error| self.copy_error(error, source, from, entry))?;
            if from.is_sparse() {
                rustix::fs::ftruncate(to, size)
                    .map_err(|cause| self.error(entry)((Operation::Write, cause)))?;
            }
        }
        if (pair.clones, pair.copies) != (known.clones, known.copies) {
            self.pairs.learn(pair);
        }
        source.confirm_content(from)
    }

    fn copy_error(
        &self,
        error: CopyError,
        source: &LocalSource,
        from: &CopiedFile,
        entry: &Entry,
    ) -> StorageError {
        match error {
            CopyError::Read(cause) => source.read_error(from)(cause),
            CopyError::Short => source.changed(from),
            CopyError::Write(cause) => self.error(entry)((Operation::Write, cause)),
        }
    }
}

/// Lets a file share all blocks of another, if that is possible.
fn clone(from: BorrowedFd<'_>, to: BorrowedFd<'_>, pair: &mut Pair) -> bool {
    if !pair.clones {
        return false;
    }
    let cloned = rustix::io::retry_on_intr(|| rustix::fs::ioctl_ficlone(to, from));
    if let Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::PERM) = cloned
    {
        pair.clones = false;
    }
    cloned.is_ok()
}

/// Copies all of an open file, of which nothing is known, into an empty one.
pub fn copy_whole(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut pair = Pair { devices: (0, 0), clones: true, copies: true };
    if clone(from, to, &mut pair) {
        return Ok(());
    }
    let stat = rustix::fs::fstat(from)?;
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
    let is_sparse = blocks.saturating_mul(512) < size;
    let mut copy = Copy { from, to, is_sparse, is_blank: true, copies: true };
    copy.extents(0..size, &mut Vec::new()).map_err(|error| match error {
        CopyError::Read(cause) | CopyError::Write(cause) => cause,
        CopyError::Short => Errno::STALE,
    })?;
    rustix::fs::ftruncate(to, size)
}

/// Copying ranges of one file to the same places of another.
struct Copy<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    is_sparse: bool,
    /// Whether nothing but zeros is where nothing was written.
    is_blank: bool,
    /// Whether the kernel may be asked to do it; unset when it cannot.
    copies: bool,
}

impl Copy<'_> {
    /// Copies what is data in a range, and makes holes where there is none.
    fn extents(&mut self, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), CopyError> {
        let mut at = range.start;
        while at < range.end {
            let data = self.next_data(at, range.end);
            if data.start > at && !self.is_blank {
                write_hole(self.to, at, data.start - at).map_err(CopyError::Write)?;
            }
            self.data(data.clone(), buffer)?;
            at = data.end;
        }
        Ok(())
    }

    /// The first piece of data from here on, empty and at the end if there is none.
    fn next_data(&self, at: u64, end: u64) -> Range<u64> {
        if !self.is_sparse {
            return at..end;
        }
        let start = match rustix::fs::seek(self.from, SeekFrom::Data(at)) {
            Ok(start) => start.clamp(at, end),
            Err(Errno::NXIO) => end,
            // This file system does not know.
            Err(_) => return at..end,
        };
        match rustix::fs::seek(self.from, SeekFrom::Hole(start)) {
            Ok(hole) if hole > start => start..hole.min(end),
            _ => start..end,
        }
    }

    fn data(&mut self, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), CopyError> {
        let done = if self.copies { self.by_kernel(range.clone())? } else { 0 };
        self.by_buffer(range.start + done..range.end, buffer)
    }

    /// Returns how many bytes the kernel copied; the rest is for us.
    fn by_kernel(&mut self, range: Range<u64>) -> Result<u64, CopyError> {
        let (mut from, mut to) = (range.start, range.start);
        while from < range.end {
            let len = usize::try_from(range.end - from).unwrap_or(MAX_COPY).min(MAX_COPY);
            let copied = rustix::fs::copy_file_range(
                self.from,
                Some(&mut from),
                self.to,
                Some(&mut to),
                len,
            );
            match copied {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(cause @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                    return Err(CopyError::Write(cause));
                }
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::INVAL) => {
                    self.copies = false;
                    break;
                }
                // Which end it was shows when it is tried by hand.
                Err(_) => break,
            }
        }
        Ok(from - range.start)
    }

    fn by_buffer(&self, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<(), CopyError> {
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(range.end - at).unwrap_or(PIECE_LEN).min(PIECE_LEN);
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let piece = buffer.get_mut(..len).unwrap_or_default();
            if read_full(self.from, piece, at).map_err(CopyError::Read)? < len {
                return Err(CopyError::Short);
            }
            write_all(self.to, piece, at).map_err(CopyError::Write)?;
            at += len as u64;
        }
        Ok(())
    }
}

/// How much the kernel is asked to copy at once, in bytes: it cannot be stopped meanwhile.
const MAX_COPY: usize = 64 << 20;

/// Up to this size, in bytes, a file is copied through a buffer.
const MAX_BUFFERED: u64 = 128 << 10;
