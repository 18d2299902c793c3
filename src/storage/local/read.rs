//! Files of a source as chunks and packs.
//!
//! In: entries that the walk found, and ranges. Out: data with its digest, made while the data is
//! in the processor's cache; or that the file is no longer what it was. A file is compared with
//! what is known of it when it is opened and again after its last read.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{Advice, AtFlags, FileType, Mode as FsMode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use tokio::sync::watch;

use super::examine::{Examiner, Target};
use super::origin::Origin;
use super::remove::Unlinked;
use super::tree::Tree;
use super::walk::{self, Node, Survey};
use super::{Look, beneath, blocking, origin, source_error};
use crate::protocol::buffer::{Buffer, BufferError, Pool};
use crate::protocol::chunk::{ByteRange, Chunk, Digest, Pack, PackMember, RangeHasher};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{
    Entry, Failure, FailureCode, Kind, MAX_SOURCE_NODES, Metadata, Options, Whereabouts,
};
use crate::protocol::sparse::{Extent, Sparse};
use crate::storage::select::Selection;
use crate::storage::{self, Operation, PackRead, Source, StorageError};

/// How much is read and then hashed at a time, in bytes.
pub const PIECE_LEN: usize = 1 << 20;

/// Files and directories that the operator named, as a [`Source`].
#[derive(Clone, Debug)]
pub struct LocalSource {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub survey: Survey,
    pub tree: Tree<Node>,
    /// What was removed, as far as other names of it may be still to be removed.
    pub unlinked: Unlinked,
    /// Set when the system refused to leave access times alone: only a file's owner may ask that.
    touches_atime: AtomicBool,
    /// Where everything goes, as far as that is in this process.
    sink: watch::Sender<SinkPlace>,
}

/// Whether the walk may come across the directory that everything goes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum SinkPlace {
    /// It will be told.
    Awaited,
    /// It is this directory; or one of another process, or none yet.
    Known(Option<Node>),
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
    /// Opens the directories that hold the sources. Of what is in them, only `paths` are meant if
    /// there are any, relative to the top of the transfer.
    ///
    /// # Errors
    ///
    /// If none of the sources exists and can be entered, or if a filter rule or a change of
    /// permissions in the options means nothing.
    pub fn open(
        sources: &[PathBuf],
        options: &Options,
        paths: Option<Vec<Vec<u8>>>,
    ) -> Result<Self, StorageError> {
        let preserve = options.preserve.clone();
        let examiner = Examiner::new(options).map_err(|text| {
            StorageError::io(Operation::Read, b"--chmod")(std::io::Error::other(text))
        })?;
        let selection = Selection::new(options, paths)?;
        let (origins, missing) = origin::open_all(sources, options.select.links)?;
        let contents = origins.iter().find(|origin| origin.name.is_none());
        let root = match contents.filter(|_| selection.has_top()) {
            Some(origin) => {
                let shown = origin.argument.as_os_str().as_encoded_bytes();
                let sight = examiner
                    .directory(origin.root.as_fd())
                    .map_err(StorageError::io(Operation::Stat, shown))?;
                Some((sight.metadata, sight.complaint))
            }
            None => None,
        };
        let roots = origins.iter().map(|origin| Arc::clone(&origin.root)).collect();
        // Going through a directory takes fewer rights than listing it.
        let flags = if selection.is_by_name() { OFlags::PATH } else { OFlags::RDONLY };
        let tree = Tree::new(roots, flags).following(examiner.follows());
        let leaders = (options.remove_source_files && preserve.hard_links).then(Mutex::default);
        let survey = Survey { origins, missing, examiner, selection, preserve, root, leaders };
        let (touches_atime, unlinked) = (AtomicBool::new(false), Unlinked::default());
        let sink = watch::Sender::new(SinkPlace::Known(None));
        Ok(Self { inner: Arc::new(Inner { survey, tree, unlinked, touches_atime, sink }) })
    }
}

/// For a sink on the same machine.
impl LocalSource {
    /// Lets the walk wait until a sink has said where it is, so that it is not found among what the
    /// source has.
    #[must_use]
    pub fn awaiting_sink(self) -> Self {
        self.inner.sink.send_replace(SinkPlace::Awaited);
        self
    }

    /// Takes note of the directory that everything goes to, if it exists.
    pub(super) fn sink_is_at(&self, root: Option<&Stat>) {
        self.inner.sink.send_replace(SinkPlace::Known(root.map(Node::new)));
    }

    /// Opens a file as [`Source::open`] does.
    pub(super) fn open_copied(&self, entry: &Arc<Entry>) -> Result<CopiedFile, StorageError> {
        let (fd, stat) = self.inner.open(entry)?;
        let look = Look::new(&stat);
        let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
        let sparse = blocks.saturating_mul(512) < look.size;
        let file = OpenFile { fd, entry: Arc::clone(entry), look, sparse };
        Ok(CopiedFile { file, device: stat.st_dev })
    }

    /// Checks that an open file, and what its name leads to, is still what was opened.
    pub(super) fn confirm_copied(&self, file: &CopiedFile) -> Result<(), StorageError> {
        self.inner.confirm(&file.file)
    }

    /// Checks that an open file is still what was opened.
    pub(super) fn confirm_content(&self, file: &CopiedFile) -> Result<(), StorageError> {
        let OpenFile { fd, entry, look, .. } = &file.file;
        let now = rustix::fs::fstat(fd).map_err(self.inner.error(Operation::Stat, entry))?;
        if Look::new(&now) == *look { Ok(()) } else { Err(self.inner.changed(entry)) }
    }

    /// The error for a file that ended before its size.
    pub(super) fn changed(&self, file: &CopiedFile) -> StorageError {
        self.inner.changed(&file.file.entry)
    }

    /// For `map_err` on reading.
    pub(super) fn read_error(&self, file: &CopiedFile) -> impl FnOnce(Errno) -> StorageError {
        self.inner.error(Operation::Read, &file.file.entry)
    }
}

/// A file of a source that is open for copying.
#[derive(Debug)]
pub(super) struct CopiedFile {
    file: OpenFile,
    /// The file system that it is on.
    pub device: u64,
}

impl CopiedFile {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.fd.as_fd()
    }

    pub fn size(&self) -> u64 {
        self.file.look.size
    }

    /// Whether it has fewer blocks than its size needs.
    pub fn is_sparse(&self) -> bool {
        self.file.sparse
    }
}

impl Inner {
    pub fn path(&self, entry: &Entry) -> Vec<u8> {
        self.tree.path(entry.parent, entry.name.as_bytes())
    }

    /// For `map_err` on what was done with an entry.
    pub fn error(&self, operation: Operation, entry: &Entry) -> impl FnOnce(Errno) -> StorageError {
        move |cause| source_error(operation, self.path(entry), cause)
    }

    pub fn changed(&self, entry: &Entry) -> StorageError {
        StorageError::Changed { path: self.path(entry) }
    }

    /// Opens a regular file that is what its entry says, and nothing else.
    fn open(&self, entry: &Entry) -> Result<(OwnedFd, Stat), StorageError> {
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
            match self.open_name(dir, name, flags | OFlags::NOATIME) {
                Err(Errno::PERM) => self.touches_atime.store(true, Ordering::Relaxed),
                answer => return answer,
            }
        }
        self.open_name(dir, name, flags)
    }

    /// Opens a file, through a symlink only where symlinks are followed.
    fn open_name(&self, dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        if self.survey.examiner.follows() {
            beneath::open_through(dir, name, flags)
        } else {
            beneath::open_name(dir, name, flags, FsMode::empty())
        }
    }

    /// Looks at a name, and through a symlink only where symlinks are followed.
    pub fn stat_name(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
        let follows = self.survey.examiner.follows();
        let flags = if follows { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        rustix::fs::statat(dir, name, flags)
    }

    /// Checks that a file, and what its name leads to, is still what was opened.
    fn confirm(&self, file: &OpenFile) -> Result<(), StorageError> {
        let entry = &file.entry;
        let now = rustix::fs::fstat(&file.fd).map_err(self.error(Operation::Stat, entry))?;
        let dir = self
            .tree
            .parent_of(entry.id, entry.parent)
            .map_err(self.error(Operation::Stat, entry))?;
        let named = self
            .stat_name(dir.as_fd(), entry.name.as_bytes())
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
        let extents = if file.sparse { self.extents(file, range)? } else { None };
        if let Some(extents) = extents {
            if extents.is_empty() {
                drop(buffer);
                return Ok(Chunk::hole(range, version));
            }
            if let Some(len) = Sparse::payload_len(range.len(), &extents) {
                buffer.truncate(len);
                return self.read_extents(file, range, version, &extents, buffer);
            }
        }
        let mut hasher = RangeHasher::new(range);
        self.read_hashed(file, range.offset(), &mut buffer, &mut hasher)?;
        let digest = hasher.finish().map_err(|_| self.changed(&file.entry))?;
        Ok(Chunk::hashed(range, version, digest, buffer.freeze()))
    }

    /// Reads what has data, behind its table, and hashes zeros between.
    fn read_extents(
        &self,
        file: &OpenFile,
        range: ByteRange,
        version: u16,
        extents: &[Extent],
        mut buffer: Buffer,
    ) -> Result<Chunk, StorageError> {
        let mut hasher = RangeHasher::new(range);
        let (table, mut data) = buffer.split_at_mut(Sparse::table_len(extents.len()));
        let mut at = 0;
        for extent in extents {
            hasher.update_zeros(u64::from(extent.start - at));
            let (place, rest) = data.split_at_mut(extent.len as usize);
            let offset = range.offset() + u64::from(extent.start);
            self.read_hashed(file, offset, place, &mut hasher)?;
            (data, at) = (rest, extent.start + extent.len);
        }
        hasher.update_zeros(u64::from(range.len() - at));
        let digest = hasher.finish().map_err(|_| self.changed(&file.entry))?;
        Sparse::write_table(range.len(), digest, extents, table);
        let chunk = Chunk::sparse(range, version, buffer.freeze());
        chunk.ok_or_else(|| self.changed(&file.entry))
    }

    /// Fills `place` from an offset of the file, and hashes each piece while it is in the cache.
    fn read_hashed(
        &self,
        file: &OpenFile,
        offset: u64,
        place: &mut [u8],
        hasher: &mut RangeHasher,
    ) -> Result<(), StorageError> {
        let mut at = offset;
        for piece in place.chunks_mut(PIECE_LEN) {
            let read = read_full(file.fd.as_fd(), piece, at)
                .map_err(self.error(Operation::Read, &file.entry))?;
            if read < piece.len() {
                return Err(self.changed(&file.entry));
            }
            hasher.update(piece);
            at += read as u64;
        }
        Ok(())
    }

    /// Where the range has data, in whole blocks; `None` if that is not known or is in too many
    /// pieces.
    fn extents(
        &self,
        file: &OpenFile,
        range: ByteRange,
    ) -> Result<Option<Vec<Extent>>, StorageError> {
        let (start, len) = (range.offset(), range.len());
        let end = start + u64::from(len);
        let within = |at: u64| u32::try_from(at.saturating_sub(start)).unwrap_or(len).min(len);
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = 0;
        while at < len {
            let data = match rustix::fs::seek(&file.fd, SeekFrom::Data(start + u64::from(at))) {
                Ok(data) if data < end => data,
                Ok(_) => break,
                // No data up to the end, which may have come nearer.
                Err(Errno::NXIO) => {
                    self.check_reaches(file, end)?;
                    break;
                }
                // This file system does not know.
                Err(_) => return Ok(None),
            };
            let Ok(hole) = rustix::fs::seek(&file.fd, SeekFrom::Hole(data)) else {
                return Ok(None);
            };
            let first = within(data) / Sparse::ALIGNMENT * Sparse::ALIGNMENT;
            // A hole that was filled meanwhile must not keep this from going on.
            let past = within(hole.max(data + 1)).next_multiple_of(Sparse::ALIGNMENT).min(len);
            let is_full = extents.len() == Sparse::MAX_EXTENTS;
            match extents.last_mut() {
                Some(last) if last.start + last.len >= first => last.len = past - last.start,
                _ if is_full => return Ok(None),
                _ => extents.push(Extent { start: first, len: past - first }),
            }
            at = past;
        }
        Ok(Some(extents))
    }

    fn check_reaches(&self, file: &OpenFile, end: u64) -> Result<(), StorageError> {
        let now = rustix::fs::fstat(&file.fd).map_err(self.error(Operation::Stat, &file.entry))?;
        if Look::new(&now).size < end { Err(self.changed(&file.entry)) } else { Ok(()) }
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
        let path = || self.path(entry);
        let target = Target { dir: dir.as_fd(), name: entry.name.as_bytes(), path: &path };
        let sight = self
            .survey
            .examiner
            .look(target, FileType::Unknown, OFlags::PATH)
            .map_err(|refusal| refusal.into_error(path()))?;
        let became = |what: &str| {
            let text = format!("{} became {what} meanwhile", Escaped(&path()));
            Kind::Unsendable(Failure::new(FailureCode::Changed, text))
        };
        let kind = match sight.kind {
            // Its content was never announced, and cannot be any more.
            Kind::Directory if entry.kind != Kind::Directory => became("a directory"),
            Kind::Unselected => became("a symlink that leads out of the source"),
            kind => kind,
        };
        Ok(Entry { kind, metadata: sight.metadata, ..entry.clone() })
    }
}

impl Source for LocalSource {
    type File = SourceFile;

    fn is_single_file(&self) -> bool {
        let survey = &self.inner.survey;
        survey.missing.is_empty()
            && matches!(survey.origins.as_slice(), [origin] if origin.is_single)
    }

    fn root(&self) -> Option<Metadata> {
        self.inner.survey.root.as_ref().map(|(metadata, _)| metadata.clone())
    }

    fn whereabouts(&self) -> Whereabouts {
        let nodes = self.inner.survey.origins.iter().flat_map(Origin::nodes);
        Whereabouts { boot: super::boot_id(), nodes: nodes.take(MAX_SOURCE_NODES).collect() }
    }

    async fn remove(&self, entries: Vec<Arc<Entry>>) -> Vec<Result<(), StorageError>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || entries.iter().map(|entry| inner.remove(entry)).collect()).await
    }

    async fn walk(&self, found: flume::Sender<Vec<storage::Found>>) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        let mut sink = inner.sink.subscribe();
        let known = sink.wait_for(|sink| *sink != SinkPlace::Awaited).await.map(|sink| *sink);
        let sink = match known {
            Ok(SinkPlace::Known(sink)) => sink,
            Ok(SinkPlace::Awaited) | Err(_) => None,
        };
        blocking(move || walk::walk(&inner.survey, &inner.tree, sink, found)).await
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
                mtime: entry.metadata.mtime,
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
    use crate::protocol::chunk::ChunkData;
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

    /// T53, FRAME-10: what has no data is not read, unless that saves too little.
    #[tokio::test]
    async fn a_chunk_with_holes_travels_without_them() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("sparse");
        let file = fs::File::create(&path).unwrap();
        let size = (2 << 20) + 5000;
        file.set_len(size).unwrap();
        let write = |at, data: &[u8]| {
            std::os::unix::fs::FileExt::write_all_at(&file, data, at).unwrap();
        };
        (0..128).for_each(|n| write(n * 8192 + 4000, &[1; 50]));
        write(1 << 20, &vec![2; (1 << 20) - 65_536]);
        write((2 << 20) + 4999, b"x");
        let (source, entry) = only(&path).await;
        let file = source.open(Arc::clone(&entry)).await.unwrap();
        let plain = fs::read(&path).unwrap();
        for (index, sent) in [(0, Some(40 + 128 * 8 + 128 * 4096)), (1, None), (2, None)] {
            let range = range(&entry, index, size);
            let chunk = source.read(file.clone(), range, 0, &pool()).await.unwrap();
            let payload = match &chunk.data {
                ChunkData::Sparse(sparse) => Some(sparse.payload().len()),
                _ => None,
            };
            assert_eq!(payload, sent, "chunk {index}");
            let mut hasher = RangeHasher::new(range);
            hasher.update(&plain[usize::try_from(range.offset()).unwrap()..]);
            assert_eq!(hasher.finish(), Ok(chunk.digest));
            assert!(chunk.verify().is_ok());
        }
    }
}
