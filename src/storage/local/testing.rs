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
    Durability, Entry, FileKind, Kind, Mode, Options, Resume, SocketOptions, Stamp,
};
use crate::storage::{Placed, Sink, Source, StorageError};

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
        preserve_mode: true,
        preserve_times: true,
        port_range: None,
        loopback: true,
        sockets: SocketOptions::default(),
    }
}

pub fn pool() -> Pool {
    Pool::new(4, 8 << 20)
}

pub fn sink(path: &Path) -> LocalSink {
    LocalSink::open(path.as_os_str().as_bytes(), false, JOB, &options()).unwrap()
}

/// Everything that a walk of these paths finds, in order.
pub async fn walk(paths: &[PathBuf]) -> (LocalSource, Vec<Arc<Entry>>) {
    let source = LocalSource::open(paths).unwrap();
    let (sender, receiver) = flume::unbounded();
    source.walk(sender).await.unwrap();
    (source, receiver.into_iter().map(Arc::new).collect())
}

/// An entry made by hand, as a peer could.
pub fn entry(id: u64, parent: u64, name: &[u8], kind: Kind) -> Arc<Entry> {
    Arc::new(Entry {
        id: EntryId(id),
        parent: EntryId(parent),
        name: Name::new(name).unwrap(),
        kind,
        mode: Mode::from_raw(0o644),
        mtime: Timestamp::new(1_000_000, 5).unwrap(),
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
    Chunk { range, version: 0, digest, data }.verify().unwrap()
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

/// Sends one file in chunks and puts it in its place.
pub async fn copy_file(
    source: &LocalSource,
    sink: &LocalSink,
    entry: &Arc<Entry>,
) -> Result<(), StorageError> {
    let from = source.open(Arc::clone(entry)).await?;
    let to = sink.create(Arc::clone(entry)).await?;
    let (size, chunks) = (size(entry).unwrap(), ChunkSize::from_bytes(1 << 20).unwrap());
    for index in 0..chunks.count(size) {
        let range = chunks.range(entry.id, index, size).unwrap();
        let chunk = source.read(from.clone(), range, 0, &pool()).await?;
        sink.write(to.clone(), chunk.verify().unwrap()).await?;
    }
    source.confirm(from).await?;
    sink.commit(to, Arc::clone(entry)).await
}

/// Copies everything below these paths: small files in packs, others in chunks.
pub async fn copy(paths: &[PathBuf], destination: &Path, threshold: u64) -> LocalSink {
    let (source, entries) = walk(paths).await;
    let sink = sink(destination);
    for (entry, placed) in entries.iter().zip(sink.place(entries.clone()).await) {
        let placed = placed.unwrap();
        match size(entry).filter(|_| placed == Placed::Wanted) {
            Some(size) if size < threshold => {
                let room = Pack::table_len(1) + usize::try_from(size).unwrap();
                let buffer = pool().take(room).await.unwrap();
                let read = source.read_pack(0, vec![(Arc::clone(entry), 0)], buffer).await;
                let files = read.pack.unwrap().verify().unwrap().into_parts().0;
                let files = files.into_iter().map(|file| (file, Arc::clone(entry))).collect();
                sink.write_files(files).await.remove(0).unwrap();
            }
            Some(_) => copy_file(&source, &sink, entry).await.unwrap(),
            None => {}
        }
    }
    assert!(sink.finish().await.is_empty());
    sink.sync_all().await.unwrap();
    sink
}
