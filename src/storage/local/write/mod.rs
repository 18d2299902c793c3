//! Verified chunks into files.
//!
//! In: entries and verified data. Out: complete files under their final names. Until its last
//! rename a file has a temporary name in the same directory, and the old file stays whole; but with
//! [`Update::in_place`], the old file itself is written to.
//!
//! Here are the sink and its names; `file.rs` has what is done with a single file.

mod file;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;

pub use file::{create_new, write_all, write_hole};

use super::backup::{self, Backups};
use super::copy::{CopyState, Pairs};
use super::delete;
use super::destination::Destination;
use super::fence;
use super::granularity::Granularity;
use super::link_dest::LinkDest;
use super::owners::Owners;
use super::place::{DirectoryAcls, Wish};
use super::read::{LocalSource, PIECE_LEN, take};
use super::room::Room;
use super::small::Prepared;
use super::state::StateDir;
use super::sync::Devices;
use super::tree::Tree;
use super::{STATE_NAME, beneath, blocking};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{ByteRange, Digest, EntryId, VerifiedChunk, VerifiedFile};
use crate::protocol::manifest::Name;
use crate::protocol::message::{
    Changes, Delete, Deleted, Deletions, Durability, Entry, Links, Metadata, Options, Owner,
    Preserve, SourceKind, SourceNode, Update, Whereabouts,
};
use crate::storage::filter::Rules;
use crate::storage::{
    Left, NameSet, Operation, Placed, Receipt, Remembers, Removed, Reopened, Sink, Source,
    StorageError, Token,
};

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
    /// Its device and inode.
    root_identity: Option<(u64, u64)>,
    pub tree: Tree<Wish>,
    pub job: [u8; 16],
    pub dry_run: bool,
    pub preserve: Preserve,
    pub links: Links,
    /// The sender removes each file that is here in the end.
    pub removes_sources: bool,
    /// Nothing is deleted on other file systems than the one above.
    pub one_file_system: bool,
    pub update: Update,
    pub owners: Owners,
    pub link_dest: LinkDest,
    /// Found when it first matters.
    pub granularity: OnceLock<Granularity>,
    pub directory_acls: Mutex<DirectoryAcls>,
    /// Whether the root's own metadata is set.
    pub keeps_root: bool,
    /// Whether this run has made the root.
    pub is_root_new: bool,
    /// What the root itself is to be like in the end.
    pub root_metadata: Mutex<Option<Metadata>>,
    /// Permission bits that new files do not get.
    pub umask: u32,
    /// What the only source is called here, and which entry that turned out to be.
    rename: Option<Name>,
    renamed: OnceLock<EntryId>,
    pub delete: Option<Delete>,
    /// What is protected from deletion; empty if nothing is deleted.
    pub rules: Rules,
    pub durability: Durability,
    pub backups: Backups,
    /// What had to go for entries of another type.
    pub room: Room,
    /// Whether no earlier run of this job can have left anything.
    is_first_run: AtomicBool,
    /// Devices and inodes of the sources, if they are on this machine.
    sources: OnceLock<Vec<SourceNode>>,
    /// The file systems that were written to.
    pub devices: Devices,
    /// Where files are copied from, if that is on this machine.
    pub source: OnceLock<LocalSource>,
    /// How files can be copied from one file system to another.
    pub pairs: Pairs,
    /// Set when the file system was found unable to hold files without a name.
    pub no_unnamed: AtomicBool,
    /// Set when it was found out how a file without a name can get one.
    pub can_name: AtomicBool,
    /// Set when the system was found to refuse giving a name to a bare descriptor.
    pub no_empty_path: AtomicBool,
    /// The job's lock, once it is held: writes that are still under way when a session ends keep it.
    lock: OnceLock<std::fs::File>,
    pub complaints: Mutex<Vec<StorageError>>,
}

/// A file of a [`LocalSink`] under its temporary name.
#[derive(Clone, Debug)]
pub struct SinkFile {
    inner: Arc<TempFile>,
}

#[derive(Debug)]
pub struct TempFile {
    fd: OwnedFd,
    entry: Arc<Entry>,
    inode: u64,
    /// Whether an earlier run may have written to it.
    is_left_over: bool,
    /// The version of the source that this run wrote first. What another version wrote may be
    /// where this one has a hole.
    version: OnceLock<u16>,
    /// Whether this is the file with the final name.
    is_in_place: bool,
    /// The file of the source, once something is copied from it.
    copy: CopyState,
}

impl TempFile {
    fn new(fd: OwnedFd, entry: Arc<Entry>, inode: u64, is_left_over: bool) -> Self {
        let (version, copy) = (OnceLock::new(), CopyState::default());
        Self { fd, entry, inode, is_left_over, version, is_in_place: false, copy }
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
    /// If something else than a directory is there, or the directory cannot be made or entered; or
    /// if a filter rule cannot be used.
    pub fn open(
        destination: &[u8],
        single_file: bool,
        job: [u8; 16],
        options: &Options,
    ) -> Result<Self, StorageError> {
        let rules = delete::protection(options)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))
            .map_err(StorageError::io(Operation::Open, destination))?;
        let found = Destination::open(destination, single_file, options.dry_run)?;
        let root = found.root.map(Arc::new);
        // What this run makes is made like the source's; what was there is changed only if asked for.
        let keeps_root = options.preserve.root || found.is_new;
        let owners = Owners::new(&options.preserve).map_err(|cause| {
            StorageError::io(Operation::SetOwner, destination)(std::io::Error::other(cause))
        })?;
        let link_dest = LinkDest::open(&found.path, &options.update.link_dest)?;
        if let Some(root) = &root {
            backup::check(&options.update, root.as_fd())?;
        }
        let stat = root.as_ref().and_then(|root| rustix::fs::fstat(root).ok());
        let missing = missing_link_dests(&found.path, &options.update.link_dest);
        let inner = Inner {
            root_path: found.path,
            tree: Tree::new(root.iter().cloned().collect(), OFlags::PATH),
            root,
            root_identity: stat.map(|stat| (stat.st_dev, stat.st_ino)),
            job,
            dry_run: options.dry_run,
            preserve: options.preserve.clone(),
            links: options.select.links,
            removes_sources: options.remove_source_files,
            one_file_system: options.select.one_file_system,
            update: options.update.clone(),
            owners,
            link_dest,
            granularity: OnceLock::new(),
            directory_acls: Mutex::default(),
            keeps_root,
            is_root_new: found.is_new,
            root_metadata: Mutex::default(),
            umask: umask(),
            rename: found.rename,
            renamed: OnceLock::new(),
            delete: options.delete,
            rules,
            durability: options.durability,
            backups: Backups::default(),
            room: Room::default(),
            is_first_run: AtomicBool::new(true),
            sources: OnceLock::new(),
            devices: Devices::default(),
            source: OnceLock::new(),
            pairs: Pairs::default(),
            no_unnamed: AtomicBool::new(false),
            can_name: AtomicBool::new(false),
            no_empty_path: AtomicBool::new(false),
            lock: OnceLock::new(),
            complaints: Mutex::new(missing),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What comes is from this source, which is not to be lost to a deletion, and is not to find
    /// the destination among what it has.
    #[must_use]
    pub fn beside(self, source: &LocalSource) -> Self {
        let root = self.inner.root.as_ref().and_then(|root| rustix::fs::fstat(root).ok());
        source.sink_is_at(root.as_ref());
        let _ = self.inner.sources.set(source.whereabouts().nodes);
        self
    }

    /// What comes is from these sources, perhaps of this very host: they are not to be lost to a
    /// deletion (SEL-3).
    ///
    /// # Errors
    ///
    /// If the destination is inside of a source: its sender would go on finding what it has sent. If
    /// it is a source, and sources are to be removed.
    pub fn apart_from(self, whereabouts: Whereabouts) -> Result<Self, StorageError> {
        if whereabouts.boot != super::boot_id() {
            return Ok(self);
        }
        let inner = &self.inner;
        let refused = |how| {
            let path = inner.root_path.as_os_str().as_encoded_bytes().to_vec();
            Err(StorageError::Overlap { path, how })
        };
        let kind_of = |(device, inode): (u64, u64)| {
            let node = |it: &&SourceNode| (it.device, it.inode) == (device, inode);
            whereabouts.nodes.iter().find(node).map(|it| it.kind)
        };
        for (above, identity) in ancestors(&inner.root_path).into_iter().enumerate() {
            match kind_of(identity) {
                Some(SourceKind::Contents) if above == 0 && !inner.removes_sources => {}
                Some(SourceKind::Contents) if above == 0 => {
                    return refused("is its own source, which was to be removed");
                }
                Some(SourceKind::Contents | SourceKind::Directory) => {
                    return refused("is inside of a source, so that copying would never end");
                }
                Some(SourceKind::Other) | None => {}
            }
        }
        let _ = inner.sources.set(whereabouts.nodes);
        Ok(self)
    }

    /// Copies from this source by itself: the entries that come are its own.
    #[must_use]
    pub fn with_source(self, source: LocalSource) -> Self {
        let _ = self.inner.source.set(source);
        self
    }

    #[cfg(test)]
    pub(super) fn inner(&self) -> &Inner {
        &self.inner
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
        let is_new = state.journal().metadata().is_ok_and(|journal| journal.len() == 0);
        inner.is_first_run.store(is_new, Ordering::Relaxed);
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

    /// Whether no earlier run of this job can have left anything.
    pub fn is_first_run(&self) -> bool {
        self.is_first_run.load(Ordering::Relaxed)
    }

    /// Whether something with this device and inode is a source of this run.
    pub fn is_source(&self, identity: (u64, u64)) -> bool {
        self.sources().iter().any(|source| (source.device, source.inode) == identity)
    }

    /// The same, or whether it is the destination itself.
    pub fn is_in_use(&self, identity: (u64, u64)) -> bool {
        self.is_source(identity) || self.root_identity == Some(identity)
    }

    /// Whether some source is no directory.
    pub fn has_files_in_use(&self) -> bool {
        self.sources().iter().any(|source| source.kind == SourceKind::Other)
    }

    fn sources(&self) -> &[SourceNode] {
        self.sources.get().map_or(&[], Vec::as_slice)
    }

    pub fn is_temp_name(&self, name: &[u8]) -> bool {
        is_any_temp_name(name) && name.starts_with(self.temp_prefix().as_bytes())
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

    /// Takes note of what could not be kept of an entry whose content is there.
    pub fn complain(&self, error: StorageError) {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(error);
    }
}

impl Sink for LocalSink {
    type File = SinkFile;
    type Prepared = Prepared;

    async fn place(&self, entries: Vec<Arc<Entry>>) -> Vec<Result<Placed, StorageError>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || entries.iter().map(|entry| inner.place(entry)).collect()).await
    }

    fn remembers(&self) -> Remembers {
        Remembers::UntilBoot
    }

    fn syncs(&self) -> bool {
        true
    }

    fn lasts(&self) -> bool {
        true
    }

    async fn create(&self, entry: Arc<Entry>, _: Option<Digest>) -> Result<SinkFile, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.create(entry)).await
    }

    async fn reopen(
        &self,
        entry: Arc<Entry>,
        left: Left,
    ) -> Result<Option<Reopened<SinkFile>>, StorageError> {
        let Some(inode) = left.token.number() else { return Ok(None) };
        let inner = Arc::clone(&self.inner);
        let reopened = blocking(move || inner.reopen(entry, inode)).await?;
        Ok(reopened.map(|file| Reopened { file, lost: Vec::new() }))
    }

    fn identity(&self, file: &SinkFile) -> Token {
        file.inner.inode.into()
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

    async fn write(&self, file: SinkFile, chunk: VerifiedChunk) -> Result<Receipt, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.write(&file.inner, &chunk)).await.map(|()| Receipt::default())
    }

    async fn commit(
        &self,
        file: SinkFile,
        entry: Arc<Entry>,
        _: Option<Digest>,
    ) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.commit(&file.inner, &entry)).await
    }

    async fn discard(&self, file: SinkFile) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.discard(&file.inner)).await
    }

    async fn discard_left_over(&self, path: Vec<u8>, identity: Token) {
        let Some(inode) = identity.number() else { return };
        let inner = Arc::clone(&self.inner);
        // What is not there, or not ours, stays as it is.
        let _ = blocking(move || inner.discard_left_over(&path, inode)).await;
    }

    async fn prepare_files(
        &self,
        files: Vec<(VerifiedFile, Arc<Entry>)>,
    ) -> Vec<Result<Prepared, StorageError>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.prepare_files(&files)).await
    }

    async fn sync_prepared(&self) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.sync_prepared()).await
    }

    fn max_prepared(&self) -> usize {
        super::small::max_prepared()
    }

    async fn commit_files(
        &self,
        files: Vec<(Prepared, Arc<Entry>)>,
    ) -> Vec<Result<(), StorageError>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            files.iter().map(|(file, entry)| inner.commit_prepared(file, entry)).collect()
        })
        .await
    }

    async fn sync_name(&self, entry: Arc<Entry>) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.sync_name(&entry)).await
    }

    fn learn_owners(&self, users: Vec<Owner>, groups: Vec<Owner>) {
        self.inner.owners.learn(users, groups);
    }

    fn keep_root(&self, metadata: Metadata) -> Changes {
        self.inner.keep_root(metadata)
    }

    async fn place_compared(
        &self,
        entry: Arc<Entry>,
        is_equal: bool,
    ) -> Result<Placed, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.place_compared(&entry, is_equal)).await
    }

    async fn open_existing(&self, entry: Arc<Entry>) -> Result<SinkFile, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.open_existing(entry)).await
    }

    async fn link(&self, entry: Arc<Entry>, leader: Arc<Entry>) -> Result<Placed, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.place_link(&entry, &leader)).await
    }

    fn complaints(&self) -> Vec<StorageError> {
        let complaints = self.inner.complaints.lock();
        std::mem::take(&mut *complaints.unwrap_or_else(PoisonError::into_inner))
    }

    fn removed(&self) -> Removed {
        self.inner.room.take_news()
    }

    fn can_copy(&self) -> bool {
        self.inner.source.get().is_some()
    }

    async fn copy_files(&self, entries: Vec<Arc<Entry>>) -> Vec<Result<Prepared, StorageError>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.copy_files(&entries)).await
    }

    async fn copy_range(&self, file: SinkFile, range: ByteRange) -> Result<bool, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.copy_range(&file.inner, range)).await
    }

    async fn confirm_copy(&self, file: SinkFile) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.confirm_copy(&file.inner)).await
    }

    async fn delete(
        &self,
        complete: Vec<EntryId>,
        names: NameSet,
        deleted: flume::Sender<Deleted>,
    ) -> Result<Deletions, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.delete(&complete, &names, &deleted)).await
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

    async fn finish(&self) {
        let inner = Arc::clone(&self.inner);
        let mut complaints = blocking(move || inner.finish()).await;
        let known = self.inner.complaints.lock();
        known.unwrap_or_else(PoisonError::into_inner).append(&mut complaints);
    }

    async fn sync_all(&self) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.sync_all()).await
    }

    fn path(&self, entry: &Entry) -> Vec<u8> {
        self.inner.path(entry)
    }
}

/// Device and inode of a directory and of all that it is in, from the inside out; of what does not
/// exist yet, nothing.
fn ancestors(directory: &Path) -> Vec<(u64, u64)> {
    let Some(found) = directory.ancestors().find_map(|it| std::fs::canonicalize(it).ok()) else {
        return Vec::new();
    };
    // A peer learns nothing of what is outside of what it may reach.
    let is_told = |it: &&Path| fence::of_process().is_none_or(|fence| fence.holds(it));
    let stats = found.ancestors().take_while(is_told).map_while(|it| rustix::fs::stat(it).ok());
    stats.map(|stat| (stat.st_dev, stat.st_ino)).collect()
}

/// Complaints about directories to link from that do not exist: all would be copied, silently.
fn missing_link_dests(destination: &Path, paths: &[Vec<u8>]) -> Vec<StorageError> {
    use std::os::unix::ffi::OsStrExt as _;
    let look = |path: &Vec<u8>| {
        let full = destination.join(std::ffi::OsStr::from_bytes(path));
        let cause = beneath::stat_operator(&full, true).err().filter(|it| *it == Errno::NOENT)?;
        Some(StorageError::io(Operation::Open, path)(cause))
    };
    paths.iter().filter_map(look).collect()
}

/// Whether a name is one that a job gives to what is not complete yet.
pub fn is_any_temp_name(name: &[u8]) -> bool {
    let is_hex = |part: &[u8], len| part.len() == len && part.iter().all(u8::is_ascii_hexdigit);
    let parts = name.strip_prefix(b".fastsync-").and_then(|rest| rest.split_at_checked(8));
    parts.is_some_and(|(job, hash)| {
        is_hex(job, 8) && hash.strip_prefix(b"-").is_some_and(|hash| is_hex(hash, 16))
    })
}

/// The process's umask. Asking the system for it would change it for a moment, in all threads.
pub fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests;
