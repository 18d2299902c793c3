//! One file that is written in chunks.
//!
//! In: an entry, then its chunks in any order. Out: the file under its final name. A temporary file
//! has its size from the start, is checked to be the very one before each step that goes by its
//! name, and disappears when it is discarded. One that is written in place does not: it is the
//! operator's own, has its size in the end, and stays.

use std::sync::Arc;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode as FsMode, OFlags, Stat};
use rustix::io::Errno;

use super::{CopyState, Inner, SinkFile, Step, TempFile, at};
use crate::protocol::chunk::{ByteRange, ChunkData, Digest, RangeHasher, VerifiedChunk};
use crate::protocol::manifest::Name;
use crate::protocol::message::{Durability, Entry, Kind};
use crate::protocol::sparse::{Part, Sparse};
use crate::storage::local::beneath;
use crate::storage::local::read::{PIECE_LEN, read_full};
use crate::storage::local::replace::{Fresh, look};
use crate::storage::{Operation, StorageError};

impl TempFile {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    pub fn copy(&self) -> &CopyState {
        &self.copy
    }

    /// Whether nothing but zeros can be where nothing was written by this run.
    pub fn is_blank(&self) -> bool {
        !self.is_left_over
    }
}

/// A file that has the final name.
pub struct Existing {
    pub fd: OwnedFd,
    pub stat: Stat,
}

impl Inner {
    pub fn create(&self, entry: Arc<Entry>) -> Result<SinkFile, StorageError> {
        let name = self.name_of(&entry)?;
        let dir = self.parent(&entry)?;
        if self.update.in_place
            && let Some(file) = self.open_in_place(dir.as_fd(), name, OFlags::RDWR, &entry)?
        {
            self.devices.open(file.stat.st_dev, dir.as_fd());
            let inode = file.stat.st_ino;
            let file = TempFile::new(file.fd, entry, inode, true);
            return Ok(SinkFile { inner: Arc::new(TempFile { is_in_place: true, ..file }) });
        }
        let temp = self.temp_name(name);
        let fd = self.create_temp(dir.as_fd(), &temp, OFlags::RDWR).map_err(self.error(&entry))?;
        let made = rustix::fs::ftruncate(&fd, entry.size())
            .map_err(at(Operation::Create))
            .and_then(|()| rustix::fs::fstat(&fd).map_err(at(Operation::Stat)));
        match made {
            Ok(stat) => {
                self.devices.open(stat.st_dev, dir.as_fd());
                let file = TempFile::new(fd, entry, stat.st_ino, false);
                Ok(SinkFile { inner: Arc::new(file) })
            }
            Err(step) => {
                let _ = rustix::fs::unlinkat(&dir, &temp, AtFlags::empty());
                Err(self.error(&entry)(step))
            }
        }
    }

    /// Opens the regular file that has the final name, after a backup of it was made. `None` if there
    /// is none that could be written into: what is new gets its name when it is whole.
    pub fn open_in_place(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        access: OFlags,
        entry: &Entry,
    ) -> Result<Option<Existing>, StorageError> {
        let file = open_existing(dir, name, access).map_err(self.error(entry))?;
        if let Some(file) = &file {
            self.copy_to_backup(dir, name, &file.stat, entry)?;
        }
        Ok(file)
    }

    pub fn reopen(
        &self,
        entry: Arc<Entry>,
        identity: u64,
    ) -> Result<Option<SinkFile>, StorageError> {
        let name = self.name_of(&entry)?;
        let dir = self.parent(&entry)?;
        // What was made under a temporary name goes on under that.
        let is_in_place = self.update.in_place && check_inode(dir.as_fd(), name, identity).is_ok();
        let temp = if is_in_place { name.to_vec() } else { self.temp_name(name) };
        // Whatever may have taken the name, opening it must not wait.
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let fd = match beneath::open_name(dir.as_fd(), &temp, flags, FsMode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ISDIR | Errno::ACCESS) => {
                return Ok(None);
            }
            Err(cause) => return Err(self.error(&entry)((Operation::Open, cause))),
        };
        let stat =
            rustix::fs::fstat(&fd).map_err(|cause| self.error(&entry)((Operation::Stat, cause)))?;
        let is_whole = u64::try_from(stat.st_size) == Ok(entry.size()) && stat.st_nlink == 1;
        let is_ours = is_file(&stat) && stat.st_ino == identity && (is_in_place || is_whole);
        let file = TempFile { is_in_place, ..TempFile::new(fd, entry, identity, true) };
        Ok(is_ours.then(|| SinkFile { inner: Arc::new(file) }))
    }

    /// Opens the data that a file is compared by.
    pub fn open_existing(&self, entry: Arc<Entry>) -> Result<SinkFile, StorageError> {
        let name = self.name_of(&entry)?;
        let found = match self.parent(&entry) {
            Ok(dir) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                beneath::open_name(dir.as_fd(), name, flags, FsMode::empty()).ok()
            }
            Err(_) if self.dry_run => None,
            Err(error) => return Err(error),
        };
        let is_regular = |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|stat| is_file(&stat));
        let found = found.filter(is_regular).or_else(|| match entry.kind {
            Kind::File(file) => self.open_candidate(file, &entry),
            _ => None,
        });
        let opened = found.ok_or(Errno::NOENT).map_err(at(Operation::Open));
        let looked = opened.and_then(|fd| {
            let stat = rustix::fs::fstat(&fd).map_err(at(Operation::Stat))?;
            Ok((fd, stat.st_ino))
        });
        let (fd, inode) = looked.map_err(self.error(&entry))?;
        Ok(SinkFile { inner: Arc::new(TempFile::new(fd, entry, inode, true)) })
    }

    pub fn commit(&self, file: &TempFile, entry: &Entry) -> Result<(), StorageError> {
        let fd = file.fd.as_fd();
        if file.is_in_place {
            rustix::fs::ftruncate(fd, entry.size())
                .map_err(|cause| self.error(entry)((Operation::Write, cause)))?;
        }
        self.set_metadata(fd, entry).map_err(self.error(entry))?;
        if self.durability == Durability::File {
            rustix::fs::fsync(fd).map_err(|cause| self.error(entry)((Operation::Sync, cause)))?;
        }
        let name = self.name_of(entry)?;
        let dir = self.parent(entry)?;
        let temp = self.temp_name(name);
        let written = if file.is_in_place { name } else { &temp };
        check_inode(dir.as_fd(), written, file.inode)
            .map_err(|cause| self.error(entry)((Operation::Rename, cause)))?;
        if file.is_in_place {
            return Ok(());
        }
        self.replace(dir.as_fd(), &temp, name, entry, Fresh::Yes)
    }

    pub fn discard(&self, file: &TempFile) -> Result<(), StorageError> {
        if file.is_in_place {
            return Ok(());
        }
        let temp = self.temp_name(self.name_of(&file.entry)?);
        let dir = self.parent(&file.entry)?;
        match remove_if(dir.as_fd(), &temp, file.inode) {
            Ok(()) | Err(Errno::NOENT | Errno::STALE) => Ok(()),
            Err(cause) => Err(self.error(&file.entry)((Operation::Remove, cause))),
        }
    }

    /// The journal may have been tampered with, so its path is checked like a peer's.
    pub fn discard_left_over(&self, path: &[u8], identity: u64) -> Option<()> {
        let root = self.root.as_ref()?;
        let (dirs, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (path.get(..slash)?, path.get(slash + 1..)?),
            None => (&b""[..], path),
        };
        let name = Name::new(name).ok()?;
        let opened = if dirs.is_empty() {
            None
        } else {
            Some(beneath::open_directory(root.as_fd(), dirs, OFlags::PATH).ok()?)
        };
        let dir = opened.as_ref().map_or(root.as_fd(), |dir| dir.as_fd());
        remove_if(dir, &self.temp_name(name.as_bytes()), identity).ok()
    }

    pub fn write(&self, file: &TempFile, chunk: &VerifiedChunk) -> Result<(), StorageError> {
        let range = chunk.range();
        let is_untouched = file.is_untouched_for(chunk.version());
        let written = match chunk.data() {
            ChunkData::Bytes(data) => write_all(file.fd.as_fd(), data, range.offset()),
            ChunkData::Sparse(sparse) => write_parts(file, range, sparse, is_untouched),
            ChunkData::Hole if is_untouched => Ok(()),
            ChunkData::Hole => write_hole(file.fd(), range.offset(), range.len().into()),
        };
        written.map_err(|cause| self.error(&file.entry)((Operation::Write, cause)))
    }

    pub fn digest(
        &self,
        file: &TempFile,
        range: ByteRange,
        piece: &mut [u8],
    ) -> Result<Digest, StorageError> {
        let failed = |cause: std::io::Error| {
            StorageError::io(Operation::Read, &self.path(&file.entry))(cause)
        };
        let mut hasher = RangeHasher::new(range);
        let end = range.offset() + u64::from(range.len());
        let mut at = range.offset();
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(piece.len());
            let part = piece.get_mut(..want).unwrap_or_default();
            let mut read =
                read_full(file.fd.as_fd(), part, at).map_err(|cause| failed(cause.into()))?;
            if read == 0 {
                if !file.is_in_place {
                    break;
                }
                // It gets its size in the end, and what is missing until then are zeros.
                part.fill(0);
                read = want;
            }
            hasher.update(part.get(..read).unwrap_or_default());
            at += read as u64;
        }
        let short = |_| failed(std::io::ErrorKind::UnexpectedEof.into());
        hasher.finish().map_err(short)
    }

    /// Creates a file under a temporary name, and removes whatever an earlier run left there.
    pub fn create_temp(&self, dir: BorrowedFd<'_>, temp: &[u8], access: OFlags) -> Step<OwnedFd> {
        match create_new(dir, temp, access) {
            Err((Operation::Remove, _)) => {
                self.clear_temp(dir, temp)?;
                create_new(dir, temp, access)
            }
            answer => answer,
        }
    }
}

/// Opens a regular file to write into it. `None` if there is none.
fn open_existing(dir: BorrowedFd<'_>, name: &[u8], access: OFlags) -> Step<Option<Existing>> {
    match look(dir, name)? {
        // Opening a special file may do something.
        Some(stat) if is_file(&stat) => {}
        _ => return Ok(None),
    }
    let flags = access | OFlags::NONBLOCK;
    let fd = beneath::open_name(dir, name, flags, FsMode::empty()).map_err(at(Operation::Open))?;
    let stat = rustix::fs::fstat(&fd).map_err(at(Operation::Stat))?;
    if is_file(&stat) {
        Ok(Some(Existing { fd, stat }))
    } else {
        Err((Operation::Open, Errno::STALE))
    }
}

/// Creates a file under a temporary name, and removes what an earlier run left there.
pub fn create_new(dir: BorrowedFd<'_>, temp: &[u8], access: OFlags) -> Step<OwnedFd> {
    let flags = access | OFlags::CREATE | OFlags::EXCL;
    let open = || beneath::open_name(dir, temp, flags, FsMode::RUSR | FsMode::WUSR);
    match open() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(dir, temp, AtFlags::empty()).map_err(at(Operation::Remove))?;
            open().map_err(at(Operation::Create))
        }
        answer => answer.map_err(at(Operation::Create)),
    }
}

/// Writes all of `data` at an offset.
pub fn write_all(file: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pwrite(file, rest, offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

/// Writes what has data, and leaves or makes holes between.
fn write_parts(
    file: &TempFile,
    range: ByteRange,
    sparse: &Sparse,
    is_untouched: bool,
) -> Result<(), Errno> {
    let mut at = range.offset();
    for part in sparse.parts() {
        match part {
            Part::Data(data) => write_all(file.fd.as_fd(), data, at)?,
            Part::Hole(_) if is_untouched => {}
            Part::Hole(len) => write_hole(file.fd(), at, len.into())?,
        }
        at += part.len();
    }
    Ok(())
}

/// Makes a hole where there may be data.
pub fn write_hole(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), Errno> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, offset, len) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            let piece_len = usize::try_from(len).unwrap_or(PIECE_LEN).min(PIECE_LEN);
            let zeros = vec![0; piece_len];
            (0..len).step_by(PIECE_LEN).try_for_each(|start| {
                let take = usize::try_from(len - start).unwrap_or(PIECE_LEN).min(PIECE_LEN);
                let piece = zeros.get(..take).unwrap_or_default();
                write_all(file, piece, offset + start)
            })
        }
        Err(cause) => Err(cause),
    }
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Checks that a temporary name still leads to the file that was written.
fn check_inode(dir: BorrowedFd<'_>, temp: &[u8], inode: u64) -> Result<(), Errno> {
    let stat = rustix::fs::statat(dir, temp, AtFlags::SYMLINK_NOFOLLOW)?;
    if stat.st_ino == inode { Ok(()) } else { Err(Errno::STALE) }
}

fn remove_if(dir: BorrowedFd<'_>, temp: &[u8], inode: u64) -> Result<(), Errno> {
    check_inode(dir, temp, inode)?;
    rustix::fs::unlinkat(dir, temp, AtFlags::empty())
}
