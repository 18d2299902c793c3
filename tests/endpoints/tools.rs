//! What the checks are written with: options, entries made by hand, verified data, whole transfers.

use std::sync::Arc;

use fastsync::protocol::buffer::Pool;
use fastsync::protocol::chunk::{
    ByteRange, Chunk, ChunkData, ChunkSize, Digest, EntryId, Pack, PackMember, RangeHasher,
    VerifiedChunk, VerifiedFile,
};
use fastsync::protocol::manifest::{Name, Timestamp};
use fastsync::protocol::message::{
    Changes, Deleted, Durability, Entry, FileKind, Kind, Listen, Metadata, Mode, Options, Preserve,
    Resume, Select, SocketOptions, Stamp, Update,
};
use fastsync::storage::{Found, NameSet, Placed, Sink, Source, StorageError};

use crate::subject::WRITTEN;

pub const CHUNK: u64 = 64 << 10;
/// Smaller files travel whole.
pub const THRESHOLD: u32 = 32 << 10;

pub const CREATED: Changes = Changes::CREATED_WITH_CONTENT;

pub fn options() -> Options {
    Options {
        chunk_size: ChunkSize::MIN,
        streams: 1,
        pack_threshold: THRESHOLD,
        buffer_size: 64 << 20,
        encrypt: false,
        resume: Resume::Trust,
        durability: Durability::Batch,
        dry_run: false,
        preserve: Preserve::default(),
        select: Select::default(),
        update: Update::default(),
        delete: None,
        remove_source_files: false,
        port_range: None,
        loopback: true,
        sockets: SocketOptions::default(),
        listen: Listen::default(),
    }
}

pub fn updating(update: Update) -> Options {
    Options { update, ..options() }
}

pub fn pool() -> Pool {
    Pool::new(4, 1 << 20)
}

/// Bytes that are not the same at any two places where they could be mistaken for each other.
pub fn data(len: u64, seed: u64) -> Vec<u8> {
    let word =
        |n: u64| (n ^ seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let mut data: Vec<u8> = (0..len.div_ceil(8)).flat_map(word).collect();
    data.truncate(usize::try_from(len).unwrap());
    data
}

/// An entry as a sender announces it, of the time that files are of which somebody else wrote.
pub fn entry(id: u64, parent: u64, name: &[u8], kind: Kind) -> Arc<Entry> {
    let bits = if kind == Kind::Directory { 0o755 } else { 0o644 };
    Arc::new(Entry {
        id: EntryId(id),
        parent: EntryId(parent),
        name: Name::new(name).unwrap(),
        kind,
        is_linked: false,
        metadata: Metadata {
            mode: Mode::from_raw(bits),
            mtime: Timestamp::new(WRITTEN, 0).unwrap(),
            ..Metadata::default()
        },
    })
}

pub fn file(id: u64, parent: u64, name: &str, size: u64) -> Arc<Entry> {
    let kind = Kind::File(FileKind { size, stamp: Stamp::default() });
    entry(id, parent, name.as_bytes(), kind)
}

pub fn directory(id: u64, parent: u64, name: &str) -> Arc<Entry> {
    entry(id, parent, name.as_bytes(), Kind::Directory)
}

/// The same, of a time so many seconds later.
pub fn later(entry: &Entry, seconds: i64) -> Arc<Entry> {
    let mut entry = entry.clone();
    entry.metadata.mtime = Timestamp::new(WRITTEN + seconds, 0).unwrap();
    Arc::new(entry)
}

pub fn range(entry: &Entry, index: u64) -> ByteRange {
    ChunkSize::MIN.range(entry.id, index, entry.size()).unwrap()
}

pub fn part(range: ByteRange, whole: &[u8]) -> &[u8] {
    let start = usize::try_from(range.offset()).unwrap();
    &whole[start..start + range.len() as usize]
}

pub fn digest(range: ByteRange, data: &[u8]) -> Digest {
    let mut hasher = RangeHasher::new(range);
    hasher.update(data);
    hasher.finish().unwrap()
}

pub fn chunk(entry: &Entry, index: u64, whole: &[u8]) -> VerifiedChunk {
    let range = range(entry, index);
    let data = part(range, whole);
    let bytes = ChunkData::Bytes(data.to_vec().into());
    Chunk::received(range, 0, digest(range, data), bytes).verify().unwrap()
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

/// Looks at one entry, and goes on where the root has to be known first.
pub async fn place(sink: &impl Sink, entry: &Arc<Entry>) -> Result<Placed, StorageError> {
    let placed = sink.place(vec![Arc::clone(entry)]).await.pop().unwrap()?;
    match placed {
        Placed::Compare(fastsync::storage::Existing::Replaced) => {
            sink.place_compared(Arc::clone(entry), false).await
        }
        placed => Ok(placed),
    }
}

/// Writes a file whole, or in chunks.
pub async fn send(sink: &impl Sink, entry: &Arc<Entry>, data: &[u8]) -> Result<(), StorageError> {
    if entry.size() < u64::from(THRESHOLD) {
        let files = vec![(verified_file(entry.id, data), Arc::clone(entry))];
        let prepared = sink.prepare_files(files).await.pop().unwrap()?;
        sink.sync_prepared().await?;
        return sink.commit_files(vec![(prepared, Arc::clone(entry))]).await.pop().unwrap();
    }
    let root = Some(Digest::of(data));
    let file = sink.create(Arc::clone(entry), root).await?;
    for index in 0..ChunkSize::MIN.count(entry.size()) {
        sink.write(file.clone(), chunk(entry, index, data)).await?;
    }
    sink.sync_files(vec![file.clone()]).await?;
    sink.commit(file, Arc::clone(entry), root).await
}

/// Places a file that is wanted, and writes it.
pub async fn put(sink: &impl Sink, entry: &Arc<Entry>, data: &[u8]) -> Placed {
    let placed = place(sink, entry).await.unwrap();
    if matches!(placed, Placed::Wanted(_)) {
        send(sink, entry, data).await.unwrap();
    }
    placed
}

/// What a walk finds.
#[derive(Debug, Default)]
pub struct Walked {
    pub entries: Vec<Arc<Entry>>,
    pub listed: Vec<EntryId>,
    /// What was complained of, and what ended the walk.
    pub told: Vec<String>,
}

impl Walked {
    pub async fn new(source: &impl Source) -> Self {
        let (sender, finds) = flume::bounded(2);
        let gather = async {
            let mut walked = Self::default();
            while let Ok(group) = finds.recv_async().await {
                for found in group {
                    match found {
                        Found::Entry(entry) => walked.entries.push(Arc::new(entry)),
                        Found::Listed(id) => walked.listed.push(id),
                        Found::Complaint(it) => walked.told.push(it.failure.text().to_owned()),
                        Found::Owners { .. } => {}
                    }
                }
            }
            walked
        };
        let (answer, mut walked) = tokio::join!(source.walk(sender), gather);
        walked.told.extend(answer.err().map(|error| error.to_string()));
        walked
    }

    pub fn find(&self, source: &impl Source, path: &[u8]) -> Option<Arc<Entry>> {
        self.entries.iter().find(|entry| source.path(entry) == path).cloned()
    }
}

/// Reads a file of a source, whole or in chunks, and checks every digest.
pub async fn fetch(source: &impl Source, entry: &Arc<Entry>) -> Result<Vec<u8>, StorageError> {
    let size = entry.size();
    if size < u64::from(THRESHOLD) {
        let room = Pack::table_len(1) + usize::try_from(size).unwrap();
        let buffer = pool().take(room).await.unwrap();
        let mut read = source.read_pack(1, vec![(Arc::clone(entry), 0)], buffer).await;
        if let Some((_, error)) = read.failed.pop() {
            return Err(error);
        }
        let files = read.pack.unwrap().verify().unwrap().into_parts().0;
        assert_eq!(read.roots, [(entry.id, Digest::of(files[0].data()))]);
        return Ok(files[0].data().to_vec());
    }
    let file = source.open(Arc::clone(entry)).await?;
    let mut all = Vec::new();
    for index in 0..ChunkSize::MIN.count(size) {
        all.extend(read(source, &file, range(entry, index)).await?);
    }
    source.confirm(file).await?;
    Ok(all)
}

pub async fn read<S: Source>(
    source: &S,
    file: &S::File,
    range: ByteRange,
) -> Result<Vec<u8>, StorageError> {
    let chunk = source.read(file.clone(), range, 0, &pool()).await?;
    match chunk.verify().unwrap().data() {
        ChunkData::Bytes(bytes) => Ok(bytes.to_vec()),
        ChunkData::Hole => Ok(vec![0; range.len() as usize]),
        ChunkData::Sparse(_) => panic!("nothing here is sparse"),
    }
}

/// Deletes what is not among the names, and returns what was told, in order of paths.
pub async fn delete(
    sink: &impl Sink,
    complete: &[u64],
    names: NameSet,
) -> Result<(Vec<String>, u64), StorageError> {
    let (tell, told) = flume::unbounded::<Deleted>();
    let complete = complete.iter().map(|id| EntryId(*id)).collect();
    let deletions = sink.delete(complete, names, tell).await?;
    let mut told: Vec<_> =
        told.into_iter().map(|it| String::from_utf8_lossy(&it.path).into_owned()).collect();
    told.sort();
    assert_eq!(deletions.done, told.len() as u64);
    Ok((told, deletions.over_limit))
}

pub fn names(of: &[(u64, &str)]) -> NameSet {
    let mut names = NameSet::default();
    for (id, name) in of {
        names.insert(EntryId(*id), name.as_bytes());
    }
    names
}

/// Whether a file is one that a job keeps for itself until another is complete.
pub fn is_temporary(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').next().is_some_and(|it| it.starts_with(b".fastsync-"))
}
