//! What the tests of this folder share: trees of files, whole transfers in one process, and
//! verified data.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{LocalSink, LocalSource};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{
    ByteRange, Chunk, ChunkData, ChunkSize, Digest, EntryId, Pack, PackMember, RangeHasher,
    VerifiedChunk, VerifiedFile,
};
use crate::protocol::manifest::{Name, Timestamp};
use crate::protocol::message::{
    Changes, Durability, Entry, FileKind, Kind, Metadata, Mode, Options, Preserve, Resume, Select,
    SocketOptions, Stamp, Update,
};
use crate::storage::{Found, Placed, Sink, Source, StorageError};

pub const JOB: [u8; 16] = [0xab; 16];

pub fn options() -> Options {
    Options {
        chunk_size: ChunkSize::DEFAULT,
        streams: 1,
        pack_threshold: 64 << 10,
        buffer_size: 64 << 20,
        encrypt: false,
        resume: Resume::Trust,
        durability: Durability::None,
        dry_run: false,
        preserve: Preserve::default(),
        select: Select::default(),
        update: Update::default(),
        delete: None,
        remove_source_files: false,
        port_range: None,
        loopback: true,
        sockets: SocketOptions::default(),
        listen: crate::protocol::message::Listen::default(),
    }
}

pub fn pool() -> Pool {
    Pool::new(4, 8 << 20)
}

pub fn sink(path: &Path) -> LocalSink {
    LocalSink::open(path.as_os_str().as_bytes(), false, JOB, &options()).unwrap()
}

pub fn sink_with(path: &Path, options: &Options) -> LocalSink {
    LocalSink::open(path.as_os_str().as_bytes(), false, JOB, options).unwrap()
}

/// What is in a directory, and in those below it, in order of paths.
pub fn tree(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![path.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for item in std::fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            if item.file_type().unwrap().is_dir() {
                pending.push(item.path());
            }
            found.push(item.path().strip_prefix(path).unwrap().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

/// Everything that a walk of these paths finds, in order.
pub async fn walk(paths: &[PathBuf]) -> (LocalSource, Vec<Arc<Entry>>) {
    let source = LocalSource::open(paths, &options(), None).unwrap();
    let (sender, receiver) = flume::unbounded();
    source.walk(sender).await.unwrap();
    let entries = receiver.into_iter().flatten().filter_map(|found| match found {
        Found::Entry(entry) => Some(Arc::new(entry)),
        _ => None,
    });
    let entries = entries.collect();
    (source, entries)
}

/// An entry made by hand, as a peer could.
pub fn entry(id: u64, parent: u64, name: &[u8], kind: Kind) -> Arc<Entry> {
    Arc::new(Entry {
        id: EntryId(id),
        parent: EntryId(parent),
        name: Name::new(name).unwrap(),
        kind,
        is_linked: false,
        metadata: Metadata {
            mode: Mode::from_raw(0o644),
            mtime: Timestamp::new(1_000_000, 5).unwrap(),
            ..Metadata::default()
        },
    })
}

pub fn file_kind(size: u64) -> Kind {
    Kind::File(FileKind { size, stamp: Stamp::default() })
}

pub fn verified_chunk(range: ByteRange, data: &[u8]) -> VerifiedChunk {
    let mut hasher = RangeHasher::new(range);
    hasher.update(data);
    let digest = hasher.finish().unwrap();
    let data = ChunkData::Bytes(data.to_vec().into());
    Chunk::received(range, 0, digest, data).verify().unwrap()
}

pub fn verified_file(id: EntryId, data: &[u8]) -> VerifiedFile {
    let len = u32::try_from(data.len()).unwrap();
    let member = PackMember { entry: id, version: 0, len, root: Digest::of(data) };
    let mut payload = vec![0; Pack::table_len(1)];
    payload.extend_from_slice(data);
    let digest = Pack::write_table(&[member], &mut payload);
    let pack = Pack { number: 0, digest, payload: payload.into() };
    pack.verify().unwrap().into_parts().0.pop().unwrap()
}

pub fn size(entry: &Entry) -> Option<u64> {
    match &entry.kind {
        Kind::File(file) => Some(file.size),
        _ => None,
    }
}

/// What an entry that was not there is said to need.
pub const CREATED: Changes = Changes::CREATED_WITH_CONTENT;

/// Writes small files and puts them in their places.
pub async fn write_files(
    sink: &LocalSink,
    files: Vec<(VerifiedFile, Arc<Entry>)>,
) -> Vec<Result<(), StorageError>> {
    let entries: Vec<_> = files.iter().map(|(_, entry)| Arc::clone(entry)).collect();
    let mut written = Vec::new();
    for (file, entry) in sink.prepare_files(files).await.into_iter().zip(entries) {
        written.push(match file {
            Ok(file) => sink.commit_files(vec![(file, entry)]).await.remove(0),
            Err(error) => Err(error),
        });
    }
    written
}

/// Finishes, and returns what could not be kept.
pub async fn finish(sink: &LocalSink) -> Vec<StorageError> {
    sink.finish().await;
    sink.complaints()
}

/// Sends one file in chunks and puts it in its place.
pub async fn copy_file(
    source: &LocalSource,
    sink: &LocalSink,
    entry: &Arc<Entry>,
) -> Result<(), StorageError> {
    let from = source.open(Arc::clone(entry)).await?;
    let to = sink.create(Arc::clone(entry), None).await?;
    let (size, chunks) = (size(entry).unwrap(), ChunkSize::from_bytes(1 << 20).unwrap());
    for index in 0..chunks.count(size) {
        let range = chunks.range(entry.id, index, size).unwrap();
        let chunk = source.read(from.clone(), range, 0, &pool()).await?;
        sink.write(to.clone(), chunk.verify().unwrap()).await?;
    }
    source.confirm(from).await?;
    sink.commit(to, Arc::clone(entry), None).await
}

/// Copies everything below these paths: small files in packs, others in chunks.
pub async fn copy(paths: &[PathBuf], destination: &Path, threshold: u64) -> LocalSink {
    let (source, entries) = walk(paths).await;
    let sink = sink(destination);
    for (entry, placed) in entries.iter().zip(sink.place(entries.clone()).await) {
        let placed = placed.unwrap();
        match size(entry).filter(|_| placed == Placed::Wanted(CREATED)) {
            Some(size) if size < threshold => {
                let room = Pack::table_len(1) + usize::try_from(size).unwrap();
                let buffer = pool().take(room).await.unwrap();
                let read = source.read_pack(0, vec![(Arc::clone(entry), 0)], buffer).await;
                let files = read.pack.unwrap().verify().unwrap().into_parts().0;
                let files = files.into_iter().map(|file| (file, Arc::clone(entry))).collect();
                write_files(&sink, files).await.remove(0).unwrap();
            }
            Some(_) => copy_file(&source, &sink, entry).await.unwrap(),
            None => {}
        }
    }
    assert!(finish(&sink).await.is_empty());
    sink.sync_all().await.unwrap();
    sink
}
