//! What is held against the suite: a place that files can be written to and read from.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;

use fastsync::protocol::manifest::Timestamp;
use fastsync::protocol::message::{Mode, Options};
use fastsync::storage::local::{LocalSink, LocalSource};
use fastsync::storage::memory::{FILES, Memory};
use fastsync::storage::remote::{KeepsRoot, Kept, Key, Properties, RemoteSink, RemoteSource};
use fastsync::storage::{Remembers, Sink, Source, StorageError};

/// The job that the suite's sinks belong to.
pub const JOB: [u8; 16] = [0xab; 16];

/// Files below a directory: their paths and their data.
pub type Files = BTreeMap<Vec<u8>, Vec<u8>>;

/// A place of one sort, with nothing in it when it is made.
pub trait Subject: Sized {
    type Source: Source;
    type Sink: Sink;

    /// What it can do.
    fn properties(&self) -> Properties;

    /// The contents of a directory as a source; of the top if `at` is empty.
    fn source(
        &self,
        at: &str,
        options: &Options,
    ) -> impl Future<Output = Result<Self::Source, StorageError>>;

    /// A directory as a destination, as a later process would open it.
    fn sink(
        &self,
        at: &str,
        options: &Options,
    ) -> impl Future<Output = Result<Self::Sink, StorageError>>;

    /// A sink that has the endpoint copy what this source has, if it can.
    fn beside(sink: Self::Sink, source: &Self::Source) -> Self::Sink {
        let _ = source;
        sink
    }

    /// Writes a file as somebody else would, with the directories above it.
    fn write(&self, path: &[u8], data: &[u8]) -> impl Future<Output = ()>;

    fn remove(&self, path: &[u8]) -> impl Future<Output = ()>;

    /// All files that are there, and empty data for what is no file and no directory.
    fn files(&self) -> impl Future<Output = Files>;

    /// Directories that are there, if they are things of their own.
    fn directories(&self) -> impl Future<Output = Vec<Vec<u8>>>;

    /// Whether a file that was written anew differs from the old one even in size and time alike.
    fn tells_versions(&self) -> bool {
        true
    }

    /// Whether a file that was opened is read as it was then, whatever has its place now.
    fn reads_old_versions(&self) -> bool {
        false
    }

    /// Whether no file may have a name.
    fn refuses(&self, name: &[u8]) -> bool {
        !self.properties().keeps.any_bytes && std::str::from_utf8(name).is_err()
    }

    /// Whether symlinks may have targets that do not begin with a slash, if there are any.
    fn keeps_relative_links(&self) -> bool {
        true
    }

    /// Whether a listing has names that begin with a dot.
    fn lists_hidden(&self) -> bool {
        true
    }

    /// Loses what was written of a part of a file that is coming. `false` if that cannot be done.
    fn lose_part(&self, path: &str, number: u64) -> bool;
}

/// What somebody else writes is of this time, in seconds since 1970.
pub const WRITTEN: i64 = 1_500_000_000;

/// A directory of this machine.
pub struct Local(tempfile::TempDir);

impl Local {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        self.0.path().join(std::ffi::OsStr::from_bytes(path))
    }

    fn find(&self) -> Vec<(Vec<u8>, std::fs::FileType)> {
        use std::os::unix::ffi::OsStrExt as _;
        let (mut found, mut pending) = (Vec::new(), vec![self.0.path().to_path_buf()]);
        while let Some(directory) = pending.pop() {
            for item in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
                let (path, kind) = (item.path(), item.file_type().unwrap());
                let below = path.strip_prefix(self.0.path()).unwrap().as_os_str().as_bytes();
                found.push((below.to_vec(), kind));
                if kind.is_dir() {
                    pending.push(path);
                }
            }
        }
        found
    }
}

impl Subject for Local {
    type Source = LocalSource;
    type Sink = LocalSink;

    fn properties(&self) -> Properties {
        let keeps = fastsync::storage::remote::Keeps { roots: KeepsRoot::Never, ..FILES.keeps };
        Properties { name: "local", remembers: Remembers::UntilBoot, keeps, ..FILES }
    }

    async fn source(&self, at: &str, options: &Options) -> Result<LocalSource, StorageError> {
        LocalSource::open(
            &[self.path(format!("{at}/").trim_start_matches('/').as_bytes())],
            options,
            None,
        )
    }

    async fn sink(&self, at: &str, options: &Options) -> Result<LocalSink, StorageError> {
        use std::os::unix::ffi::OsStrExt as _;
        LocalSink::open(self.path(at.as_bytes()).as_os_str().as_bytes(), false, JOB, options)
    }

    async fn write(&self, path: &[u8], data: &[u8]) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Another inode, as most programs replace files.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, data).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(WRITTEN.unsigned_abs());
        std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
    }

    async fn remove(&self, path: &[u8]) {
        std::fs::remove_file(self.path(path)).unwrap();
    }

    async fn files(&self) -> Files {
        let files = self.find().into_iter().filter(|(_, kind)| !kind.is_dir());
        files
            .map(|(path, kind)| {
                let data = if kind.is_file() {
                    std::fs::read(self.path(&path)).unwrap()
                } else {
                    Vec::new()
                };
                (path, data)
            })
            .collect()
    }

    async fn directories(&self) -> Vec<Vec<u8>> {
        let mut found: Vec<_> =
            self.find().into_iter().filter(|it| it.1.is_dir()).map(|it| it.0).collect();
        found.sort();
        found
    }

    fn lose_part(&self, _: &str, _: u64) -> bool {
        false
    }
}

/// A place in memory.
pub struct InMemory(pub Memory);

impl InMemory {
    pub fn new(properties: Properties) -> Self {
        let memory = Memory::new(properties);
        memory.set_page(3);
        Self(memory)
    }
}

pub fn key(path: &[u8]) -> Key {
    Key::new(path).unwrap()
}

impl Subject for InMemory {
    type Source = RemoteSource<Memory>;
    type Sink = RemoteSink<Memory>;

    fn properties(&self) -> Properties {
        *fastsync::storage::remote::Endpoint::properties(&self.0)
    }

    async fn source(&self, at: &str, options: &Options) -> Result<Self::Source, StorageError> {
        let sources = vec![(key(at.as_bytes()), true)];
        RemoteSource::open(self.0.clone(), sources, options, None).await
    }

    async fn sink(&self, at: &str, options: &Options) -> Result<Self::Sink, StorageError> {
        RemoteSink::open(self.0.clone(), key(at.as_bytes()), true, false, options).await
    }

    fn beside(sink: Self::Sink, source: &Self::Source) -> Self::Sink {
        sink.with_source(source)
    }

    async fn write(&self, path: &[u8], data: &[u8]) {
        let mtime = Timestamp::new(WRITTEN, 0);
        let kept = Kept { mtime, mode: Some(Mode::from_raw(0o644)), root: None };
        self.0.write_file(&key(path), data, &kept);
    }

    async fn remove(&self, path: &[u8]) {
        let things = vec![(key(path), fastsync::storage::remote::ThingKind::File)];
        let removed = fastsync::storage::remote::Endpoint::remove(&self.0, things).await;
        for answer in removed {
            answer.unwrap();
        }
    }

    async fn files(&self) -> Files {
        let things = self.0.keys().into_iter().filter_map(|key| Some((self.0.get(&key)?, key)));
        things
            .filter(|((thing, _), _)| thing.kind != fastsync::storage::remote::ThingKind::Directory)
            .map(|((_, data), key)| (key.as_bytes().to_vec(), data.to_vec()))
            .collect()
    }

    async fn directories(&self) -> Vec<Vec<u8>> {
        let things = self.0.keys().into_iter().filter_map(|key| Some((self.0.get(&key)?.0, key)));
        things
            .filter(|(thing, _)| thing.kind == fastsync::storage::remote::ThingKind::Directory)
            .map(|(_, key)| key.as_bytes().to_vec())
            .collect()
    }

    fn lose_part(&self, path: &str, number: u64) -> bool {
        self.0.lose_part(&key(path.as_bytes()), Some(number));
        true
    }
}
