//! An endpoint as a sink.
//!
//! In: entries and verified data. Out: complete files under their keys. Small files go there whole;
//! large ones part by part, under no name that anybody sees before all of it is there.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::file::{Data, RemoteFile, not_coming};
use super::place::{Directory, Existing};
use super::source::RemoteSource;
use super::walk::OWN_PREFIX;
use super::{Class, Endpoint, Fault, Kept, Key, ThingKind, all};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{ByteRange, ChunkSize, Digest, EntryId, VerifiedChunk, VerifiedFile};
use crate::protocol::manifest::Name;
use crate::protocol::message::{
    Changes, Delete, Deleted, Deletions, Entry, Kind, MakeRoom, Metadata, Mode, Options, Owner,
    Preserve, Update,
};
use crate::storage::filter::{FilterOptions, Rules};
use crate::storage::{
    Left, NameSet, Operation, Placed, Receipt, Remembers, Removed, Reopened, Sink, StorageError,
    Token,
};

/// A place at an endpoint, as a [`Sink`].
#[derive(Clone, Debug)]
pub struct RemoteSink<E> {
    pub(super) inner: Arc<Inner<E>>,
}

#[derive(Debug)]
pub struct Inner<E> {
    pub endpoint: E,
    /// Everything is written below this.
    pub root: Key,
    /// What the only source is called there.
    rename: Option<Name>,
    /// Which entry that turned out to be.
    renamed: OnceLock<EntryId>,
    /// Whether this run has made the root.
    is_root_new: OnceLock<bool>,
    pub preserve: Preserve,
    pub update: Update,
    pub dry_run: bool,
    /// Whose files the endpoint copies by itself.
    pub near: OnceLock<RemoteSource<E>>,
    pub chunk_size: ChunkSize,
    pub delete: Option<Delete>,
    pub rules: Rules,
    pub state: Mutex<State>,
}

#[derive(Debug, Default)]
pub struct State {
    /// Directories by identity; ROOT is not among them.
    pub directories: HashMap<EntryId, Directory>,
    /// What is in directories, of which a few are remembered.
    pub existing: HashMap<Key, Arc<Existing>>,
    /// The keys of `existing`, the one that was asked for longest ago first.
    pub order: Vec<Key>,
    /// Directories that something was put into, or taken from.
    pub touched: HashSet<EntryId>,
    /// Directories with files in them, where directories are only implied.
    pub filled: HashSet<EntryId>,
    /// Files in whose places there are directories, which go when the data is there.
    pub rooms: HashSet<EntryId>,
    pub complaints: Vec<StorageError>,
    pub removed: Removed,
    /// How much had to go for others in all.
    pub gone: u64,
}

/// A small file is in its place as soon as it is prepared.
#[derive(Debug)]
pub struct Prepared(());

impl<E: Endpoint> RemoteSink<E> {
    /// Looks where everything goes. With a slash behind, a directory is meant (`is_directory`).
    ///
    /// # Errors
    ///
    /// If something else is there, or the endpoint does not answer.
    pub async fn open(
        endpoint: E,
        destination: Key,
        is_directory: bool,
        is_single_file: bool,
        options: &Options,
    ) -> Result<Self, StorageError> {
        let shown = endpoint.shown(&destination);
        let failed = |operation| StorageError::at(operation, &shown);
        refuse_options(options).map_err(failed(Operation::Open))?;
        let delete_excluded = options.delete.is_some_and(|delete| delete.excluded);
        let filters = FilterOptions { gitignore: options.select.gitignore, delete_excluded };
        let protects = options.delete.is_some() || options.update.make_room == MakeRoom::All;
        let texts = if protects { &options.select.filters[..] } else { &[] };
        let rules = Rules::new(texts, filters).map_err(|error| {
            failed(Operation::Open)(Fault::new(Class::Unsupported, error.to_string()))
        })?;
        if rules.reads_files() {
            let text = "files of filter rules, .gitignore among them, are read on hosts with fastsync only";
            return Err(failed(Operation::Open)(Fault::new(Class::Unsupported, text)));
        }
        let found = endpoint.stat(&destination).await.map_err(failed(Operation::Stat))?;
        let kind = found.map(|thing| thing.kind);
        let (root, rename) = match kind {
            // It may lead to a directory; whatever it is, what is written below it shows.
            Some(ThingKind::Symlink) if !is_single_file || is_directory => (destination, None),
            Some(ThingKind::File | ThingKind::Symlink) | None
                if is_single_file && !is_directory && !destination.is_top() =>
            {
                let name = Name::new(destination.name()).ok();
                (destination.parent().unwrap_or_default(), name)
            }
            Some(ThingKind::Directory) | None => (destination, None),
            Some(ThingKind::File | ThingKind::Symlink | ThingKind::Other) => {
                return Err(StorageError::Conflict { path: shown, existing: "a file" });
            }
        };
        let inner = Inner {
            endpoint,
            root,
            rename,
            renamed: OnceLock::new(),
            is_root_new: OnceLock::new(),
            preserve: options.preserve.clone(),
            update: options.update.clone(),
            dry_run: options.dry_run,
            near: OnceLock::new(),
            chunk_size: options.chunk_size,
            delete: options.delete,
            rules,
            state: Mutex::default(),
        };
        if !inner.dry_run {
            inner.make_root().await?;
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The same, with files copied by the endpoint itself where that can be done.
    #[must_use]
    pub fn with_source(self, source: &RemoteSource<E>) -> Self {
        if self.inner.endpoint.copies_from(source.endpoint()) {
            let _ = self.inner.near.set(source.clone());
        }
        self
    }
}

/// What works only where fastsync is at the other end.
fn refuse_options(options: &Options) -> Result<(), Fault> {
    let update = &options.update;
    let asked = [
        (update.in_place, "--inplace"),
        (update.backup.is_some(), "--backup"),
        (!update.link_dest.is_empty(), "--link-dest"),
    ];
    match asked.into_iter().find(|(is_asked, _)| *is_asked) {
        None => Ok(()),
        Some((_, flag)) => {
            let text = format!("{flag} works on hosts with fastsync only");
            Err(Fault::new(Class::Unsupported, text))
        }
    }
}

impl<E: Endpoint> Inner<E> {
    pub fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single step, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the directory that everything goes to, and those above it.
    async fn make_root(&self) -> Result<(), StorageError> {
        if !self.endpoint.properties().keeps.directories {
            return Ok(());
        }
        let mut missing = Vec::new();
        let mut at = Some(self.root.clone());
        while let Some(key) = at.take().filter(|key| !key.is_top()) {
            let found = self.endpoint.stat(&key).await;
            let found =
                found.map_err(StorageError::at(Operation::Stat, &self.endpoint.shown(&key)))?;
            if found.is_some() {
                break;
            }
            at = key.parent();
            missing.push(key);
        }
        let _ = self.is_root_new.set(!missing.is_empty());
        for key in missing.into_iter().rev() {
            let made = self.endpoint.make_directory(&key).await;
            made.map_err(StorageError::at(Operation::Create, &self.endpoint.shown(&key)))?;
        }
        Ok(())
    }

    /// What an entry is called here.
    pub fn name<'a>(&'a self, entry: &'a Entry) -> &'a Name {
        match &self.rename {
            Some(name) if entry.parent == EntryId::ROOT => name,
            _ => &entry.name,
        }
    }

    /// Where an entry goes.
    ///
    /// # Errors
    ///
    /// If the name is one of our own, which no peer may choose, or cannot be stored there.
    pub fn key(&self, entry: &Entry) -> Result<Key, StorageError> {
        let conflict = |existing| StorageError::Conflict { path: self.path(entry), existing };
        let name = self.name(entry).as_bytes();
        if name.starts_with(OWN_PREFIX) {
            return Err(conflict("a temporary file"));
        }
        if entry.parent == EntryId::ROOT {
            if name == STATE_NAME {
                return Err(conflict("the state of unfinished jobs"));
            }
            if self.rename.is_some() && *self.renamed.get_or_init(|| entry.id) != entry.id {
                return Err(conflict("the only source"));
            }
        }
        let directory = self.directory(entry.parent);
        let Some((directory, _)) = directory else {
            return Err(StorageError::NoParent { path: self.path(entry) });
        };
        let key = directory.child(self.name(entry)).map_err(Fault::from);
        let key = key.and_then(|key| self.endpoint.check(&key).map(|()| key));
        key.map_err(StorageError::at(Operation::Create, &self.path(entry)))
    }

    pub fn path(&self, entry: &Entry) -> Vec<u8> {
        match self.directory(entry.parent) {
            Some((_, path)) if !path.is_empty() => {
                [&path, &b"/"[..], self.name(entry).as_bytes()].concat()
            }
            _ => self.name(entry).as_bytes().to_vec(),
        }
    }

    /// A directory's key, and its path from the top.
    pub fn directory(&self, id: EntryId) -> Option<(Key, Vec<u8>)> {
        if id == EntryId::ROOT {
            return Some((self.root.clone(), Vec::new()));
        }
        let state = self.state();
        let directory = state.directories.get(&id)?;
        let path = directory.key.below(&self.root).unwrap_or_default().to_vec();
        Some((directory.key.clone(), path))
    }

    /// For `map_err` on what was done for an entry.
    pub fn error(
        &self,
        operation: Operation,
        entry: &Entry,
    ) -> impl FnOnce(Fault) -> StorageError + use<E> {
        let path = self.path(entry);
        move |fault| StorageError::Endpoint { operation, path, fault }
    }

    /// Why a file was not written. Without the directory that it goes to nothing else can be written there,
    /// and nothing at all without the one that everything goes to.
    async fn unwritten(&self, operation: Operation, entry: &Entry, fault: Fault) -> StorageError {
        let has_no_directory = fault.class == Class::NoDirectory;
        if has_no_directory && matches!(self.endpoint.stat(&self.root).await, Ok(Some(_))) {
            self.give_up_directory(entry.parent);
            return self.error(operation, entry)(Fault { class: Class::Unsupported, ..fault });
        }
        self.error(operation, entry)(fault)
    }

    pub fn complain(&self, error: StorageError) {
        self.state().complaints.push(error);
    }

    /// What is to be kept of an entry.
    pub fn kept(&self, entry: &Entry, root: Option<Digest>) -> Kept {
        let (keeps, preserve) = (self.endpoint.properties().keeps, &self.preserve);
        let is_directory = entry.kind == Kind::Directory;
        let keeps_times = if is_directory { preserve.directory_times } else { preserve.times };
        let (first, last) = keeps.time_range;
        let is_possible = (first..=last).contains(&entry.metadata.mtime.seconds);
        let has_time = keeps.times.is_some() && keeps_times && is_possible;
        let mode = entry.metadata.mode;
        let bits = if preserve.special_bits { 0o7777 } else { 0o777 };
        let bits = if preserve.permissions { bits } else { 0o777 & !0o022 };
        let mode = Mode::from_raw(mode.bits() & bits);
        Kept {
            mtime: has_time.then_some(entry.metadata.mtime),
            mode: keeps.modes.then_some(mode),
            root,
        }
    }

    async fn write_small(
        &self,
        file: &VerifiedFile,
        entry: &Arc<Entry>,
    ) -> Result<(), StorageError> {
        let key = self.key(entry)?;
        self.clear_room(&key, entry).await?;
        let kept = self.kept(entry, Some(file.member().root));
        self.touch(entry.parent);
        let put = self.endpoint.put(&key, file.data().clone(), &kept).await;
        if let Err(fault) = put {
            return Err(self.unwritten(Operation::Write, entry, fault).await);
        }
        self.forget(&key);
        Ok(())
    }

    /// What is in a directory will not be as it was.
    pub fn touch(&self, directory: EntryId) {
        self.state().touched.insert(directory);
    }

    /// What was known to be under a key is not there any more.
    pub fn forget(&self, key: &Key) {
        let Some(parent) = key.parent() else { return };
        let state = self.state();
        if let Some(existing) = state.existing.get(&parent) {
            existing.forget(key.name());
        }
    }
}

impl<E: Endpoint> Sink for RemoteSink<E> {
    type File = RemoteFile<E>;
    type Prepared = Prepared;

    fn learn_owners(&self, _: Vec<Owner>, _: Vec<Owner>) {}

    fn keep_root(&self, metadata: Metadata) -> Changes {
        let inner = &self.inner;
        let keeps = inner.endpoint.properties().keeps;
        let is_new = inner.is_root_new.get().copied().unwrap_or_default();
        // What this run makes is made like the source's; what was there is changed only if asked for.
        if keeps.directories && !inner.dry_run && (inner.preserve.root || is_new) {
            inner
                .state()
                .directories
                .insert(EntryId::ROOT, Directory::of_root(inner.root.clone(), metadata));
        }
        Changes::NONE
    }

    async fn place(&self, entries: Vec<Arc<Entry>>) -> Vec<Result<Placed, StorageError>> {
        self.inner.place(entries).await
    }

    async fn place_compared(
        &self,
        entry: Arc<Entry>,
        is_equal: bool,
    ) -> Result<Placed, StorageError> {
        self.inner.place_compared(&entry, is_equal).await
    }

    async fn open_existing(&self, entry: Arc<Entry>) -> Result<RemoteFile<E>, StorageError> {
        let key = self.inner.key(&entry)?;
        let opened = async {
            let thing = self.inner.endpoint.stat(&key).await?;
            let thing = thing.ok_or_else(|| Fault::new(Class::Missing, "it is gone"))?;
            self.inner.endpoint.open(&key, &thing).await
        };
        let open = opened.await.map_err(self.inner.error(Operation::Open, &entry))?;
        Ok(RemoteFile::new(key, entry, Data::There(open)))
    }

    async fn link(&self, entry: Arc<Entry>, _: Arc<Entry>) -> Result<Placed, StorageError> {
        let fault =
            Fault::new(Class::Unsupported, "hard links are made on hosts with fastsync only");
        Err(self.inner.error(Operation::Link, &entry)(fault))
    }

    fn complaints(&self) -> Vec<StorageError> {
        std::mem::take(&mut self.inner.state().complaints)
    }

    fn removed(&self) -> Removed {
        std::mem::take(&mut self.inner.state().removed)
    }

    fn remembers(&self) -> Remembers {
        self.inner.endpoint.properties().remembers
    }

    fn syncs(&self) -> bool {
        self.inner.endpoint.properties().syncs
    }

    fn lasts(&self) -> bool {
        self.inner.endpoint.properties().lasts
    }

    async fn create(
        &self,
        entry: Arc<Entry>,
        root: Option<Digest>,
    ) -> Result<RemoteFile<E>, StorageError> {
        let key = self.inner.key(&entry)?;
        if self.inner.near.get().is_some() {
            return Ok(RemoteFile::new(key, entry, Data::Copied));
        }
        let kept = self.inner.kept(&entry, root);
        self.inner.touch(entry.parent);
        let parts = self.inner.chunk_size.count(entry.size());
        let begun = self.inner.endpoint.begin(&key, entry.size(), parts, &kept).await;
        let upload = begun.map_err(self.inner.error(Operation::Create, &entry))?;
        Ok(RemoteFile::new(key, entry, Data::Coming(upload)))
    }

    async fn reopen(
        &self,
        entry: Arc<Entry>,
        left: Left,
    ) -> Result<Option<Reopened<RemoteFile<E>>>, StorageError> {
        let key = self.inner.key(&entry)?;
        if self.inner.near.get().is_some() {
            let _ = self.inner.endpoint.abandon(&key, &left.token).await;
            return Ok(None);
        }
        let resumed = self.inner.endpoint.resume(&key, entry.size(), &left).await;
        let resumed = resumed.map_err(self.inner.error(Operation::Open, &entry))?;
        let Some((upload, lost)) = resumed else { return Ok(None) };
        let file = RemoteFile::new(key, entry, Data::Coming(upload));
        let is_lost: HashSet<u64> = lost.iter().copied().collect();
        let receipts = left.receipts.into_iter().filter(|(number, _)| !is_lost.contains(number));
        *file.receipts() = receipts.collect();
        Ok(Some(Reopened { file, lost }))
    }

    fn identity(&self, file: &RemoteFile<E>) -> Token {
        match &file.inner.data {
            Data::Coming(upload) => self.inner.endpoint.token(upload),
            Data::There(_) | Data::Copied => Token::default(),
        }
    }

    async fn digest(
        &self,
        file: RemoteFile<E>,
        range: ByteRange,
        pool: &Pool,
    ) -> Result<Digest, StorageError> {
        self.inner.digest(&file.inner, range, pool).await
    }

    async fn holds(
        &self,
        file: RemoteFile<E>,
        ranges: Vec<(ByteRange, Digest)>,
        pool: &Pool,
    ) -> Vec<bool> {
        self.inner.holds(&file, ranges, pool).await
    }

    async fn write(
        &self,
        file: RemoteFile<E>,
        chunk: VerifiedChunk,
    ) -> Result<Receipt, StorageError> {
        let (range, entry) = (chunk.range(), &file.inner.entry);
        let Data::Coming(upload) = &file.inner.data else { return Err(not_coming(&file)) };
        let number = range.offset() / self.inner.chunk_size.bytes();
        let written = self.inner.endpoint.write(upload, number, range, chunk.data().clone()).await;
        let receipt = match written {
            Ok(receipt) => receipt,
            Err(fault) => return Err(self.inner.unwritten(Operation::Write, entry, fault).await),
        };
        file.receipts().insert(number, receipt.clone());
        Ok(receipt)
    }

    async fn commit(
        &self,
        file: RemoteFile<E>,
        entry: Arc<Entry>,
        root: Option<Digest>,
    ) -> Result<(), StorageError> {
        if matches!(file.inner.data, Data::Copied) {
            return self.inner.copy(&file.inner.key, &entry).await;
        }
        let Data::Coming(upload) = &file.inner.data else { return Err(not_coming(&file)) };
        let receipts: Vec<_> = std::mem::take(&mut *file.receipts()).into_iter().collect();
        let parts = self.inner.chunk_size.count(entry.size());
        // What can be read again needs no receipts, and a run that came back has none of it.
        let counts = self.inner.endpoint.properties().remembers == Remembers::Always;
        if counts && parts > 1 && receipts.len() as u64 != parts {
            let fault = Fault::new(Class::Other, "part of the file was never sent");
            return Err(self.inner.error(Operation::Rename, &entry)(fault));
        }
        let kept = self.inner.kept(&entry, root);
        let (upload, key) = (upload.clone(), &file.inner.key);
        self.inner.clear_room(key, &entry).await?;
        self.inner.touch(entry.parent);
        let finished = self.inner.endpoint.finish(upload, key, receipts, &kept).await;
        if let Err(fault) = finished {
            return Err(self.inner.unwritten(Operation::Write, &entry, fault).await);
        }
        self.inner.forget(key);
        Ok(())
    }

    async fn discard(&self, file: RemoteFile<E>) -> Result<(), StorageError> {
        let Data::Coming(upload) = &file.inner.data else { return Ok(()) };
        let token = self.inner.endpoint.token(upload);
        let abandoned = self.inner.endpoint.abandon(&file.inner.key, &token).await;
        abandoned.map_err(self.inner.error(Operation::Remove, &file.inner.entry))
    }

    async fn discard_left_over(&self, path: Vec<u8>, identity: Token) {
        // A journal may have been tampered with, so its path is checked like a peer's.
        if let Ok(key) = self.inner.root.join(&path) {
            // What cannot be removed is found by whoever cleans up.
            let _ = self.inner.endpoint.abandon(&key, &identity).await;
        }
    }

    async fn give_up(&self) {
        self.inner.endpoint.give_up().await;
    }

    async fn prepare_files(
        &self,
        files: Vec<(VerifiedFile, Arc<Entry>)>,
    ) -> Vec<Result<Prepared, StorageError>> {
        let writes: Vec<_> = files
            .iter()
            .map(|(file, entry)| async move {
                self.inner.write_small(file, entry).await.map(|()| Prepared(()))
            })
            .collect();
        all(writes, self.inner.endpoint.properties().requests).await
    }

    async fn sync_prepared(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn max_prepared(&self) -> usize {
        MAX_PREPARED
    }

    async fn commit_files(
        &self,
        files: Vec<(Prepared, Arc<Entry>)>,
    ) -> Vec<Result<(), StorageError>> {
        files.iter().map(|_| Ok(())).collect()
    }

    async fn sync_name(&self, _: Arc<Entry>) -> Result<(), StorageError> {
        Ok(())
    }

    fn can_copy(&self) -> bool {
        self.inner.near.get().is_some()
    }

    async fn copy_files(&self, entries: Vec<Arc<Entry>>) -> Vec<Result<Prepared, StorageError>> {
        let copies: Vec<_> = entries
            .iter()
            .map(|entry| async move {
                let key = self.inner.key(entry)?;
                self.inner.copy(&key, entry).await.map(|()| Prepared(()))
            })
            .collect();
        all(copies, self.inner.endpoint.properties().requests).await
    }

    async fn copy_range(&self, _: RemoteFile<E>, _: ByteRange) -> Result<bool, StorageError> {
        // All of it at once, when it is committed.
        Ok(true)
    }

    async fn confirm_copy(&self, _: RemoteFile<E>) -> Result<(), StorageError> {
        // The endpoint copies the very version that was found.
        Ok(())
    }

    async fn delete(
        &self,
        complete: Vec<EntryId>,
        names: NameSet,
        deleted: flume::Sender<Deleted>,
    ) -> Result<Deletions, StorageError> {
        self.inner.delete(complete, names, deleted).await
    }

    async fn sync_files(&self, files: Vec<RemoteFile<E>>) -> Result<(), StorageError> {
        let syncs: Vec<_> = files
            .iter()
            .map(|file| async move {
                let Data::Coming(upload) = &file.inner.data else { return Ok(()) };
                let synced = self.inner.endpoint.sync(upload).await;
                synced.map_err(self.inner.error(Operation::Sync, &file.inner.entry))
            })
            .collect();
        let synced = all(syncs, self.inner.endpoint.properties().requests).await;
        synced.into_iter().collect()
    }

    async fn finish(&self) {
        self.inner.finish_directories().await;
    }

    fn note(&self) -> Option<String> {
        if self.inner.endpoint.properties().keeps.directories {
            return None;
        }
        let count = self.inner.empty_directories();
        (count > 0).then(|| format!("directories without files are not kept there: {count}"))
    }

    async fn sync_all(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn path(&self, entry: &Entry) -> Vec<u8> {
        self.inner.path(entry)
    }
}

/// The directory below a destination in which other programs of this name keep journals.
pub const STATE_NAME: &[u8] = b".fastsync";

/// How many small files may have been written and not yet counted.
const MAX_PREPARED: usize = 4096;
