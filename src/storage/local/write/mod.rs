//! Verified chunks into files.
//!
//! In: entries and verified data. Out: complete files under their final names. Until its last
//! rename a file has a temporary name in the same directory, and the old file stays whole.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode as FsMode, OFlags};
use rustix::io::Errno;

use super::destination::Destination;
use super::place::Wish;
use super::read::{PIECE_LEN, read_full, take};
use super::state::StateDir;
use super::tree::Tree;
use super::{STATE_NAME, beneath, blocking, only_mtime};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{
    ByteRange, ChunkData, Digest, EntryId, RangeHasher, VerifiedChunk, VerifiedFile,
};
use crate::protocol::manifest::Name;
use crate::protocol::message::{Entry, Kind, Options};
use crate::storage::{Operation, Placed, Sink, StorageError};

/// A directory of the local file system, as a [`Sink`].
#[derive(Clone, Debug)]
pub struct LocalSink {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub struct Inner {
    pub root_path: PathBuf,
    /// `None` only in a dry run.
    pub root: Option<Arc<OwnedFd>>,
    pub tree: Tree<Wish>,
    pub job: [u8; 16],
    pub dry_run: bool,
    pub preserve_mode: bool,
    pub preserve_times: bool,
    /// Permission bits that new files do not get.
    pub umask: u32,
    /// What the only source is called here, and which entry that turned out to be.
    rename: Option<Name>,
    renamed: OnceLock<EntryId>,
    /// Set when the file system was found unable to hold files without a name.
    pub no_unnamed: AtomicBool,
    /// Set when the system was found to refuse giving a name to a bare descriptor.
    pub no_empty_path: AtomicBool,
    /// The job's lock, once it is held: writes that are still under way when a session ends keep it.
    lock: OnceLock<std::fs::File>,
}

/// A file of a [`LocalSink`] under its temporary name.
#[derive(Clone, Debug)]
pub struct SinkFile {
    inner: Arc<TempFile>,
}

#[derive(Debug)]
struct TempFile {
    fd: OwnedFd,
    entry: Arc<Entry>,
    inode: u64,
    /// Whether an earlier run may have written to it.
    is_left_over: bool,
    /// The version of the source that this run wrote first. What another version wrote may be
    /// where this one has a hole.
    version: OnceLock<u16>,
}

impl TempFile {
    fn new(fd: OwnedFd, entry: Arc<Entry>, inode: u64, is_left_over: bool) -> Self {
        Self { fd, entry, inode, is_left_over, version: OnceLock::new() }
    }

    /// Whether nothing but zeros can be where a chunk of this version goes.
    fn is_untouched_for(&self, version: u16) -> bool {
        *self.version.get_or_init(|| version) == version && !self.is_left_over
    }
}

/// What failed, before it has a path.
pub type Step<T> = Result<T, (Operation, Errno)>;

/// For `map_err`: names what was done.
pub fn at(operation: Operation) -> impl FnOnce(Errno) -> (Operation, Errno) {
    move |cause| (operation, cause)
}

impl LocalSink {
    /// Opens the destination, and makes its directory if it is missing.
    ///
    /// `single_file` says that the only source is something else than a directory, so that the
    /// destination may be its new name. Relative paths start at the current directory.
    ///
    /// # Errors
    ///
    /// If something else than a directory is there, or the directory cannot be made or entered.
    pub fn open(
        destination: &[u8],
        single_file: bool,
        job: [u8; 16],
        options: &Options,
    ) -> Result<Self, StorageError> {
        let found = Destination::open(destination, single_file, options.dry_run)?;
        let root = found.root.map(Arc::new);
        let inner = Inner {
            root_path: found.path,
            tree: Tree::new(root.iter().cloned().collect(), OFlags::PATH),
            root,
            job,
            dry_run: options.dry_run,
            preserve_mode: options.preserve_mode,
            preserve_times: options.preserve_times,
            umask: umask(),
            rename: found.rename,
            renamed: OnceLock::new(),
            no_unnamed: AtomicBool::new(false),
            no_empty_path: AtomicBool::new(false),
            lock: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The directory below which everything is written.
    pub fn root_path(&self) -> &Path {
        &self.inner.root_path
    }

    /// Opens and locks the directory that holds this job's journal. Waits a while for a predecessor
    /// to let go of it.
    ///
    /// # Errors
    ///
    /// If another process holds the lock, or the directory cannot be made or trusted.
    pub async fn open_state(&self) -> Result<StateDir, StorageError> {
        let inner = &self.inner;
        let state = StateDir::open(inner.root.as_ref(), &inner.root_path, inner.job).await?;
        // A duplicate of the descriptor is the same lock (flock(2)).
        if let Ok(lock) = state.journal().try_clone() {
            let _ = inner.lock.set(lock);
        }
        Ok(state)
    }
}

impl Inner {
    /// What an entry is called here.
    ///
    /// # Errors
    ///
    /// If the name is one of our own, which no peer may choose.
    pub fn name_of<'a>(&'a self, entry: &'a Entry) -> Result<&'a [u8], StorageError> {
        let conflict = |existing| StorageError::Conflict { path: self.path(entry), existing };
        let name = match &self.rename {
            Some(rename) if entry.parent == EntryId::ROOT => {
                if *self.renamed.get_or_init(|| entry.id) != entry.id {
                    return Err(conflict("the only source"));
                }
                rename.as_bytes()
            }
            _ => entry.name.as_bytes(),
        };
        if entry.parent == EntryId::ROOT && name == STATE_NAME {
            return Err(conflict("the state of unfinished jobs"));
        }
        if self.is_temp_name(name) {
            return Err(conflict("a temporary file"));
        }
        Ok(name)
    }

    /// The temporary name that belongs to a final one.
    pub fn temp_name(&self, name: &[u8]) -> Vec<u8> {
        let hash = blake3::hash(name).to_hex();
        let hash = hash.get(..16).unwrap_or_default();
        [self.temp_prefix().as_bytes(), hash.as_bytes()].concat()
    }

    fn temp_prefix(&self) -> String {
        let [a, b, c, d, ..] = self.job;
        format!(".fastsync-{:08x}-", u32::from_be_bytes([a, b, c, d]))
    }

    fn is_temp_name(&self, name: &[u8]) -> bool {
        let hash = name.strip_prefix(self.temp_prefix().as_bytes());
        hash.is_some_and(|hash| hash.len() == 16 && hash.iter().all(u8::is_ascii_hexdigit))
    }

    pub fn path(&self, entry: &Entry) -> Vec<u8> {
        match &self.rename {
            Some(rename) if entry.parent == EntryId::ROOT => rename.as_bytes().to_vec(),
            _ => self.tree.path(entry.parent, entry.name.as_bytes()),
        }
    }

    /// The directory that an entry goes into.
    pub fn parent(&self, entry: &Entry) -> Result<Arc<OwnedFd>, StorageError> {
        self.tree.parent_of(entry.id, entry.parent).map_err(|cause| {
            let is_known = entry.parent == EntryId::ROOT || self.tree.value(entry.parent).is_some();
            if is_known {
                self.error(entry)((Operation::Open, cause))
            } else {
                StorageError::NoParent { path: self.path(entry) }
            }
        })
    }

    /// For `map_err` on a step with an entry.
    pub fn error(&self, entry: &Entry) -> impl FnOnce((Operation, Errno)) -> StorageError {
        move |(operation, cause)| {
            let path = self.path(entry);
            match (operation, cause) {
                (Operation::Rename, Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                    StorageError::Conflict { path, existing: "a directory" }
                }
                (operation, cause) => StorageError::Io { operation, path, cause: cause.into() },
            }
        }
    }

    /// The permission bits that a file gets in the end.
    pub fn file_mode(&self, entry: &Entry) -> u32 {
        if self.preserve_mode { entry.mode.bits() & 0o777 } else { 0o666 & !self.umask }
    }

    /// Gives an open file its mode and times.
    pub fn set_metadata(&self, file: BorrowedFd<'_>, entry: &Entry) -> Step<()> {
        rustix::fs::fchmod(file, FsMode::from_raw_mode(self.file_mode(entry)))
            .map_err(at(Operation::SetMode))?;
        if self.preserve_times {
            rustix::fs::futimens(file, &only_mtime(entry.mtime))
                .map_err(at(Operation::SetTimes))?;
        }
        Ok(())
    }

    fn create(&self, entry: Arc<Entry>) -> Result<SinkFile, StorageError> {
        let temp = self.temp_name(self.name_of(&entry)?);
        let dir = self.parent(&entry)?;
        let fd = create_new(dir.as_fd(), &temp, OFlags::RDWR).map_err(self.error(&entry))?;
        let made = rustix::fs::ftruncate(&fd, size_of(&entry))
            .map_err(at(Operation::Create))
            .and_then(|()| rustix::fs::fstat(&fd).map_err(at(Operation::Stat)));
        match made {
            Ok(stat) => {
                let file = TempFile::new(fd, entry, stat.st_ino, false);
                Ok(SinkFile { inner: Arc::new(file) })
            }
            Err(step) => {
                let _ = rustix::fs::unlinkat(&dir, &temp, AtFlags::empty());
                Err(self.error(&entry)(step))
            }
        }
    }

    fn reopen(&self, entry: Arc<Entry>, identity: u64) -> Result<Option<SinkFile>, StorageError> {
        let temp = self.temp_name(self.name_of(&entry)?);
        let dir = self.parent(&entry)?;
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
        let is_ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_ino == identity
            && u64::try_from(stat.st_size) == Ok(size_of(&entry))
            && stat.st_nlink == 1;
        let file = TempFile::new(fd, entry, identity, true);
        Ok(is_ours.then(|| SinkFile { inner: Arc::new(file) }))
    }

    fn commit(&self, file: &TempFile, entry: &Entry) -> Result<(), StorageError> {
        self.set_metadata(file.fd.as_fd(), entry).map_err(self.error(entry))?;
        let name = self.name_of(entry)?;
        let temp = self.temp_name(name);
        let dir = self.parent(entry)?;
        let renamed = check_inode(dir.as_fd(), &temp, file.inode)
            .and_then(|()| rustix::fs::renameat(&dir, &temp, &dir, name));
        renamed.map_err(|cause| self.error(entry)((Operation::Rename, cause)))
    }

    fn discard(&self, file: &TempFile) -> Result<(), StorageError> {
        let temp = self.temp_name(self.name_of(&file.entry)?);
        let dir = self.parent(&file.entry)?;
        match remove_if(dir.as_fd(), &temp, file.inode) {
            Ok(()) | Err(Errno::NOENT | Errno::STALE) => Ok(()),
            Err(cause) => Err(self.error(&file.entry)((Operation::Remove, cause))),
        }
    }

    /// The journal may have been tampered with, so its path is checked like a peer's.
    fn discard_left_over(&self, path: &[u8], identity: u64) -> Option<()> {
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

    fn write(&self, file: &TempFile, chunk: &VerifiedChunk) -> Result<(), StorageError> {
        let range = chunk.range();
        let is_untouched = file.is_untouched_for(chunk.version());
        let written = match chunk.data() {
            ChunkData::Bytes(data) => write_all(file.fd.as_fd(), data, range.offset()),
            ChunkData::Hole if is_untouched => Ok(()),
            ChunkData::Hole => write_hole(file, range),
        };
        written.map_err(|cause| self.error(&file.entry)((Operation::Write, cause)))
    }

    fn digest(
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
            let read =
                read_full(file.fd.as_fd(), piece, at).map_err(|cause| failed(cause.into()))?;
            if read == 0 {
                break;
            }
            hasher.update(piece.get(..read).unwrap_or_default());
            at += read as u64;
        }
        let short = |_| failed(std::io::ErrorKind::UnexpectedEof.into());
        hasher.finish().map_err(short)
    }

    fn sync_all(&self) -> Result<(), StorageError> {
        use std::os::unix::ffi::OsStrExt as _;
        let Some(root) = self.root.as_ref().filter(|_| !self.dry_run) else { return Ok(()) };
        match rustix::fs::syncfs(root) {
            // The root could only be entered, not opened.
            Err(Errno::BADF) => {
                rustix::fs::sync();
                Ok(())
            }
            answer => answer
                .map_err(StorageError::io(Operation::Sync, self.root_path.as_os_str().as_bytes())),
        }
    }
}

impl Sink for LocalSink {
    type File = SinkFile;

    async fn place(&self, entries: Vec<Arc<Entry>>) -> Vec<Result<Placed, StorageError>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || entries.iter().map(|entry| inner.place(entry)).collect()).await
    }

    async fn create(&self, entry: Arc<Entry>) -> Result<SinkFile, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.create(entry)).await
    }

    async fn reopen(
        &self,
        entry: Arc<Entry>,
        identity: u64,
    ) -> Result<Option<SinkFile>, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.reopen(entry, identity)).await
    }

    fn identity(&self, file: &SinkFile) -> u64 {
        file.inner.inode
    }

    async fn digest(
        &self,
        file: SinkFile,
        range: ByteRange,
        pool: &Pool,
    ) -> Result<Digest, StorageError> {
        let inner = Arc::clone(&self.inner);
        let len = PIECE_LEN.min(range.len() as usize).min(pool.buffer_len());
        let mut piece = take(pool, len).await.map_err(|cause| {
            StorageError::io(Operation::Read, &inner.path(&file.inner.entry))(cause)
        })?;
        blocking(move || inner.digest(&file.inner, range, &mut piece)).await
    }

    async fn write(&self, file: SinkFile, chunk: VerifiedChunk) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.write(&file.inner, &chunk)).await
    }

    async fn commit(&self, file: SinkFile, entry: Arc<Entry>) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.commit(&file.inner, &entry)).await
    }

    async fn discard(&self, file: SinkFile) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.discard(&file.inner)).await
    }

    async fn discard_left_over(&self, path: Vec<u8>, identity: u64) {
        let inner = Arc::clone(&self.inner);
        // What is not there, or not ours, stays as it is.
        let _ = blocking(move || inner.discard_left_over(&path, identity)).await;
    }

    async fn write_files(
        &self,
        files: Vec<(VerifiedFile, Arc<Entry>)>,
    ) -> Vec<Result<(), StorageError>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            files.iter().map(|(file, entry)| inner.write_small(file.data(), entry)).collect()
        })
        .await
    }

    async fn sync_files(&self, files: Vec<SinkFile>) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            files.iter().try_for_each(|file| {
                rustix::fs::fdatasync(&file.inner.fd)
                    .map_err(|cause| inner.error(&file.inner.entry)((Operation::Sync, cause)))
            })
        })
        .await
    }

    async fn finish(&self) -> Vec<(EntryId, StorageError)> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.finish()).await
    }

    async fn sync_all(&self) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.sync_all()).await
    }

    fn path(&self, entry: &Entry) -> Vec<u8> {
        self.inner.path(entry)
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

/// Makes a hole where there may be data.
fn write_hole(file: &TempFile, range: ByteRange) -> Result<(), Errno> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let len = u64::from(range.len());
    match rustix::fs::fallocate(&file.fd, flags, range.offset(), len) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            let zeros = vec![0; PIECE_LEN.min(range.len() as usize)];
            (0..len).step_by(PIECE_LEN).try_for_each(|start| {
                let take = usize::try_from(len - start).unwrap_or(PIECE_LEN).min(PIECE_LEN);
                let piece = zeros.get(..take).unwrap_or_default();
                write_all(file.fd.as_fd(), piece, range.offset() + start)
            })
        }
        Err(cause) => Err(cause),
    }
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

fn size_of(entry: &Entry) -> u64 {
    match &entry.kind {
        Kind::File(file) => file.size,
        _ => 0,
    }
}

/// The process's umask. Asking the system for it would change it for a moment, in all threads.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests;
