//! Files of a source as chunks and packs.
//!
//! In: entries that the walk found, and ranges. Out: data with its digest, made while the data is
//! in the processor's cache; or that the file is no longer what it was. A file is compared with
//! what is known of it when it is opened and again after its last read.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{Advice, AtFlags, FileType, Mode as FsMode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::origin::Origin;
use super::tree::Tree;
use super::walk::{self, Found};
use super::{Look, beneath, blocking, source_error};
use crate::protocol::buffer::{Buffer, BufferError, Pool};
use crate::protocol::chunk::{ByteRange, Chunk, ChunkData, Digest, Pack, PackMember, RangeHasher};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Entry, Failure, FailureCode, Kind};
use crate::storage::{Operation, PackRead, Source, StorageError};

/// How much is read and then hashed at a time, in bytes.
pub const PIECE_LEN: usize = 1 << 20;

/// Files and directories that the operator named, as a [`Source`].
#[derive(Clone, Debug)]
pub struct LocalSource {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    origins: Vec<Origin>,
    tree: Tree<()>,
    /// Set when the system refused to leave access times alone: only a file's owner may ask that.
    touches_atime: AtomicBool,
}

/// An open file of a [`LocalSource`].
#[derive(Clone, Debug)]
pub struct SourceFile {
    inner: Arc<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    fd: OwnedFd,
    entry: Arc<Entry>,
    look: Look,
    /// It has fewer blocks than its size needs, so looking for holes is worth a system call.
    sparse: bool,
}

impl LocalSource {
    /// Opens the directories that hold the sources.
    ///
    /// # Errors
    ///
    /// If one of the sources does not exist or cannot be entered.
    pub fn open(sources: &[PathBuf]) -> Result<Self, StorageError> {
        let origins =
            sources.iter().map(|path| Origin::open(path)).collect::<Result<Vec<_>, _>>()?;
        let roots = origins.iter().map(|origin| Arc::clone(&origin.root)).collect();
        let tree = Tree::new(roots, OFlags::RDONLY);
        let touches_atime = AtomicBool::new(false);
        Ok(Self { inner: Arc::new(Inner { origins, tree, touches_atime }) })
    }
}

impl Inner {
    fn path(&self, entry: &Entry) -> Vec<u8> {
        self.tree.path(entry.parent, entry.name.as_bytes())
    }

    /// For `map_err` on what was done with an entry.
    fn error(&self, operation: Operation, entry: &Entry) -> impl FnOnce(Errno) -> StorageError {
        move |cause| source_error(operation, self.path(entry), cause)
    }

    fn changed(&self, entry: &Entry) -> StorageError {
        StorageError::Changed { path: self.path(entry) }
    }

    /// Opens a regular file that is what its entry says, and nothing else.
    fn open(&self, entry: &Entry) -> Result<(OwnedFd, rustix::fs::Stat), StorageError> {
        let dir = self
            .tree
            .parent_of(entry.id, entry.parent)
            .map_err(self.error(Operation::Open, entry))?;
        let fd = self
            .open_for_reading(dir.as_fd(), entry.name.as_bytes())
            .map_err(self.error(Operation::Open, entry))?;
        let stat = rustix::fs::fstat(&fd).map_err(self.error(Operation::Stat, entry))?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if is_file && matches_entry(&Look::new(&stat), entry) {
            Ok((fd, stat))
        } else {
            Err(self.changed(entry))
        }
    }

    fn open_for_reading(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        // Opening a FIFO must not wait for somebody who writes into it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        if !self.touches_atime.load(Ordering::Relaxed) {
            match beneath::open_name(dir, name, flags | OFlags::NOATIME, FsMode::empty()) {
                Err(Errno::PERM) => self.touches_atime.store(true, Ordering::Relaxed),
                answer => return answer,
            }
        }
        beneath::open_name(dir, name, flags, FsMode::empty())
    }

    /// Checks that a file, and what its name leads to, is still what was opened.
    fn confirm(&self, file: &OpenFile) -> Result<(), StorageError> {
        let entry = &file.entry;
        let now = rustix::fs::fstat(&file.fd).map_err(self.error(Operation::Stat, entry))?;
        let dir = self
            .tree
            .parent_of(entry.id, entry.parent)
            .map_err(self.error(Operation::Stat, entry))?;
        let named = rustix::fs::statat(&dir, entry.name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.error(Operation::Stat, entry))?;
        let same_name = (named.st_ino, named.st_dev) == (now.st_ino, now.st_dev);
        if same_name && Look::new(&now) == file.look { Ok(()) } else { Err(self.changed(entry)) }
    }

    fn read(
        &self,
        file: &OpenFile,
        range: ByteRange,
        version: u16,
        mut buffer: Buffer,
    ) -> Result<Chunk, StorageError> {
        if file.sparse && self.is_hole(file, range)? {
            drop(buffer);
            return Ok(Chunk::hole(range, version));
        }
        let mut hasher = RangeHasher::new(range);
        let mut at = range.offset();
        for piece in buffer.chunks_mut(PIECE_LEN) {
            let read = read_full(file.fd.as_fd(), piece, at)
                .map_err(self.error(Operation::Read, &file.entry))?;
            if read < piece.len() {
                return Err(self.changed(&file.entry));
            }
            hasher.update(piece);
            at += read as u64;
        }
        let digest = hasher.finish().map_err(|_| self.changed(&file.entry))?;
        Ok(Chunk { range, version, digest, data: ChunkData::Bytes(buffer.freeze()) })
    }

    /// Whether no byte of the range was ever written.
    fn is_hole(&self, file: &OpenFile, range: ByteRange) -> Result<bool, StorageError> {
        let end = range.offset() + u64::from(range.len());
        match rustix::fs::seek(&file.fd, SeekFrom::Data(range.offset())) {
            Ok(data) => Ok(data >= end),
            // No data up to the end, which may have come nearer.
            Err(Errno::NXIO) => {
                let now = rustix::fs::fstat(&file.fd)
                    .map_err(self.error(Operation::Stat, &file.entry))?;
                if Look::new(&now).size < end { Err(self.changed(&file.entry)) } else { Ok(true) }
            }
            // This file system does not know.
            Err(_) => Ok(false),
        }
    }

    fn read_pack(&self, number: u64, files: &[(Arc<Entry>, u16)], mut buffer: Buffer) -> PackRead {
        let mut answer = PackRead { pack: None, failed: Vec::new(), roots: Vec::new() };
        let mut members = Vec::with_capacity(files.len());
        let start = Pack::table_len(files.len());
        let mut end = start;
        for (entry, version) in files {
            match self.read_whole(entry, buffer.get_mut(end..).unwrap_or_default()) {
                Ok((len, root)) => {
                    end += len as usize;
                    answer.roots.push((entry.id, root));
                    members.push(PackMember { entry: entry.id, version: *version, len, root });
                }
                Err(error) => answer.failed.push((entry.id, error)),
            }
        }
        if members.is_empty() {
            return answer;
        }
        // With fewer members the table is shorter, and the data follows it without a gap.
        let table_len = Pack::table_len(members.len());
        if table_len < start {
            buffer.copy_within(start..end, table_len);
            end -= start - table_len;
        }
        buffer.truncate(end);
        let digest = Pack::write_table(&members, &mut buffer);
        answer.pack = Some(Pack { number, digest, payload: buffer.freeze() });
        answer
    }

    /// Reads all of a small file to the start of `room`.
    fn read_whole(&self, entry: &Entry, room: &mut [u8]) -> Result<(u32, Digest), StorageError> {
        let (fd, stat) = self.open(entry)?;
        let look = Look::new(&stat);
        let place = usize::try_from(look.size).ok().and_then(|size| room.get_mut(..size));
        let (Some(place), Ok(len)) = (place, u32::try_from(look.size)) else {
            return Err(self.error(Operation::Read, entry)(Errno::FBIG));
        };
        let read = |piece: &mut [u8], at| {
            read_full(fd.as_fd(), piece, at).map_err(self.error(Operation::Read, entry))
        };
        let is_short = read(&mut *place, 0)? < place.len();
        let is_long = read(&mut [0], look.size)? > 0;
        let now = rustix::fs::fstat(&fd).map_err(self.error(Operation::Stat, entry))?;
        if is_short || is_long || Look::new(&now) != look {
            return Err(self.changed(entry));
        }
        Ok((len, Digest::of(place)))
    }

    fn look_again(&self, entry: &Entry) -> Result<Entry, StorageError> {
        let dir = self
            .tree
            .parent_of(entry.id, entry.parent)
            .map_err(self.error(Operation::Stat, entry))?;
        let found =
            Found::look(dir.as_fd(), entry.name.as_bytes(), FileType::Unknown, || self.path(entry))
                .map_err(|(operation, cause)| self.error(operation, entry)(cause))?;
        let kind = match found.kind {
            // Its content was never announced, and cannot be any more.
            Kind::Directory if entry.kind != Kind::Directory => {
                let text = format!("{} became a directory meanwhile", Escaped(&self.path(entry)));
                Kind::Unsendable(Failure::new(FailureCode::Changed, text))
            }
            kind => kind,
        };
        let (mode, mtime) = (found.mode, found.mtime);
        Ok(Entry { kind, mode, mtime, ..entry.clone() })
    }
}

impl Source for LocalSource {
    type File = SourceFile;

    fn is_single_file(&self) -> bool {
        matches!(self.inner.origins.as_slice(), [origin] if origin.is_single)
    }

    async fn walk(&self, found: flume::Sender<Entry>) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || walk::walk(&inner.origins, &inner.tree, found)).await
    }

    async fn open(&self, entry: Arc<Entry>) -> Result<SourceFile, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let (fd, stat) = inner.open(&entry)?;
            // Only a hint, so it does not matter whether it was taken.
            let _ = rustix::fs::fadvise(&fd, 0, None, Advice::Sequential);
            let look = Look::new(&stat);
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
            let sparse = blocks.saturating_mul(512) < look.size;
            Ok(SourceFile { inner: Arc::new(OpenFile { fd, entry, look, sparse }) })
        })
        .await
    }

    async fn read(
        &self,
        file: SourceFile,
        range: ByteRange,
        version: u16,
        pool: &Pool,
    ) -> Result<Chunk, StorageError> {
        let inner = Arc::clone(&self.inner);
        let buffer = take(pool, range.len() as usize).await.map_err(|cause| {
            StorageError::io(Operation::Read, &inner.path(&file.inner.entry))(cause)
        })?;
        blocking(move || inner.read(&file.inner, range, version, buffer)).await
    }

    async fn confirm(&self, file: SourceFile) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.confirm(&file.inner)).await
    }

    async fn read_pack(
        &self,
        number: u64,
        files: Vec<(Arc<Entry>, u16)>,
        buffer: Buffer,
    ) -> PackRead {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.read_pack(number, &files, buffer)).await
    }

    async fn look_again(&self, entry: Arc<Entry>) -> Result<Entry, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.look_again(&entry)).await
    }

    fn path(&self, entry: &Entry) -> Vec<u8> {
        self.inner.path(entry)
    }
}

/// Takes a buffer, or says why there is none, as storage does.
pub async fn take(pool: &Pool, len: usize) -> Result<Buffer, std::io::Error> {
    pool.take(len).await.map_err(|error| match error {
        BufferError::Map(cause) => cause,
        error @ BufferError::TooLong { .. } => std::io::Error::other(error),
    })
}

/// Fills `piece` from the file, and returns how much there was.
pub fn read_full(file: BorrowedFd<'_>, piece: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while let Some(rest) = piece.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(file, rest, offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(done)
}

fn matches_entry(look: &Look, entry: &Entry) -> bool {
    match &entry.kind {
        Kind::File(file) => {
            let known = Look {
                size: file.size,
                mtime: entry.mtime,
                ctime: file.stamp.ctime,
                inode: file.stamp.inode,
            };
            *look == known
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::testing::{pool, walk};
    use super::*;
    use crate::protocol::chunk::ChunkSize;

    async fn only(path: &Path) -> (LocalSource, Arc<Entry>) {
        let (source, mut entries) = walk(&[path.to_path_buf()]).await;
        assert_eq!(entries.len(), 1);
        (source, entries.remove(0))
    }

    fn range(entry: &Entry, index: u64, size: u64) -> ByteRange {
        ChunkSize::from_bytes(1 << 20).unwrap().range(entry.id, index, size).unwrap()
    }

    #[tokio::test]
    async fn chunks_carry_the_data_and_its_digest() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        fs::write(&path, &data).unwrap();
        let (source, entry) = only(&path).await;
        let file = source.open(Arc::clone(&entry)).await.unwrap();
        for index in 0..3 {
            let range = range(&entry, index, 3_000_000);
            let chunk = source.read(file.clone(), range, 7, &pool()).await.unwrap();
            let verified = chunk.verify().unwrap();
            let start = usize::try_from(range.offset()).unwrap();
            let expected = &data[start..start + range.len() as usize];
            assert!(matches!(verified.data(), ChunkData::Bytes(bytes) if bytes == expected));
        }
        source.confirm(file).await.unwrap();
    }

    #[tokio::test]
    async fn a_source_that_changed_is_found_out() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        fs::write(&path, vec![1; 100_000]).unwrap();
        let (source, entry) = only(&path).await;
        let file = source.open(Arc::clone(&entry)).await.unwrap();
        let range = range(&entry, 0, 100_000);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
        let read = source.read(file.clone(), range, 0, &pool()).await;
        assert!(matches!(read, Err(StorageError::Changed { .. })), "shrunk: {read:?}");
        assert!(matches!(source.confirm(file).await, Err(StorageError::Changed { .. })));
        let again = source.open(Arc::clone(&entry)).await;
        assert!(matches!(again, Err(StorageError::Changed { .. })));
        let now = source.look_again(Arc::clone(&entry)).await.unwrap();
        assert!(matches!(now.kind, Kind::File(file) if file.size == 10));
        fs::remove_file(&path).unwrap();
        assert!(matches!(source.open(entry.clone()).await, Err(StorageError::Vanished { .. })));
        assert!(matches!(source.look_again(entry).await, Err(StorageError::Vanished { .. })));
    }

    /// T43, T44: the same size and mtime are not enough.
    #[tokio::test]
    async fn a_replaced_or_rewritten_file_is_found_out() {
        let temp = tempfile::tempdir().unwrap();
        let (path, other) = (temp.path().join("file"), temp.path().join("other"));
        fs::write(&path, b"old").unwrap();
        let (source, entry) = only(&path).await;
        let file = source.open(Arc::clone(&entry)).await.unwrap();
        let mtime = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&other, b"new").unwrap();
        fs::File::open(&other).unwrap().set_modified(mtime).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(matches!(source.confirm(file).await, Err(StorageError::Changed { .. })));
        assert!(matches!(source.open(entry).await, Err(StorageError::Changed { .. })));
    }

    /// T45.
    #[tokio::test]
    async fn what_took_a_files_name_is_not_followed_or_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        fs::write(&path, b"old").unwrap();
        let (source, entry) = only(&path).await;
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        let opened = source.open(Arc::clone(&entry)).await;
        assert!(matches!(opened, Err(StorageError::Changed { .. })));
        fs::remove_file(&path).unwrap();
        let mode = FsMode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(source.open(entry).await, Err(StorageError::Changed { .. })));
    }

    #[tokio::test]
    async fn a_pack_leaves_out_what_cannot_be_read() {
        let temp = tempfile::tempdir().unwrap();
        for (name, content) in [("a", "first"), ("b", "second"), ("c", ""), ("d", "fourth")] {
            fs::write(temp.path().join(name), content).unwrap();
        }
        let (source, mut entries) = walk(&[temp.path().join("")]).await;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        fs::remove_file(temp.path().join("b")).unwrap();
        let files: Vec<_> = entries.iter().map(|entry| (Arc::clone(entry), 3)).collect();
        let buffer = pool().take(Pack::table_len(4) + 17).await.unwrap();
        let read = source.read_pack(9, files.clone(), buffer).await;
        let [(id, StorageError::Vanished { .. })] = read.failed.as_slice() else {
            panic!("{:?}", read.failed)
        };
        assert_eq!(*id, entries[1].id);
        assert_eq!(read.roots.len(), 3);
        let (files, mismatched) = read.pack.unwrap().verify().unwrap().into_parts();
        let data: Vec<_> = files.iter().map(|file| file.data().to_vec()).collect();
        assert_eq!(data, [&b"first"[..], b"", b"fourth"]);
        assert!(mismatched.is_empty() && files.iter().all(|file| file.member().version == 3));
        let buffer = pool().take(Pack::table_len(1) + 6).await.unwrap();
        let none = source.read_pack(9, vec![(Arc::clone(&entries[1]), 0)], buffer).await;
        assert!(none.pack.is_none() && none.failed.len() == 1);
    }

    #[tokio::test]
    async fn a_hole_is_found_and_needs_no_data() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("sparse");
        let file = fs::File::create(&path).unwrap();
        file.set_len(3 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 1 << 20).unwrap();
        let (source, entry) = only(&path).await;
        let file = source.open(Arc::clone(&entry)).await.unwrap();
        for (index, is_hole) in [(0, true), (1, false), (2, true)] {
            let range = range(&entry, index, 3 << 20);
            let chunk = source.read(file.clone(), range, 0, &pool()).await.unwrap();
            assert_eq!(matches!(chunk.data, ChunkData::Hole), is_hole);
            assert!(chunk.verify().is_ok());
        }
    }
}
