//! The stages of a chunk's journey, one at a time: `cargo bench`.
//!
//! Whole transfers are measured by `scripts/bench-against`, beside the neighbours. What is timed
//! here shows which stage a change made slower; the figures are per second of one core.

#![allow(clippy::expect_used, clippy::unwrap_used)] // a benchmark has nobody to tell

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use fastsync::protocol::chunk::{
    Chunk, ChunkData, ChunkSize, Digest, EntryId, Pack, PackMember, RangeHasher,
};
use fastsync::protocol::frame::{Frame, Header};
use fastsync::protocol::manifest::{Name, Timestamp};
use fastsync::protocol::message::{Entry, FileKind, Kind, Message, Metadata, Mode, Stamp};
use fastsync::protocol::sparse::{Extent, Sparse};
use fastsync::protocol::tree::RootBuilder;

fn main() {
    divan::main();
}

const CHUNK: ChunkSize = ChunkSize::DEFAULT;

/// Data that no compiler can foresee.
fn data(len: usize) -> Bytes {
    let mut data = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut data);
    data.into()
}

fn chunk() -> Chunk {
    let data = data(8 << 20);
    let range = CHUNK.range(EntryId(1), 3, 1 << 30).expect("a chunk of a large file");
    let mut hasher = RangeHasher::new(range);
    hasher.update(&data);
    let digest = hasher.finish().expect("all of it");
    Chunk::received(range, 0, digest, ChunkData::Bytes(data))
}

fn pack(files: usize, len: usize) -> Pack {
    let file = data(len);
    let member = |n: usize| PackMember {
        entry: EntryId(n as u64 + 1),
        version: 0,
        len: u32::try_from(len).expect("a small file"),
        root: Digest::of(&file),
    };
    let members: Vec<PackMember> = (0..files).map(member).collect();
    let mut payload = vec![0; Pack::table_len(files)];
    let digest = Pack::write_table(&members, &mut payload);
    (0..files).for_each(|_| payload.extend_from_slice(&file));
    Pack { number: 1, digest, payload: payload.into() }
}

/// What the sender does with a chunk that it has read, in the pieces in which it reads.
#[divan::bench]
fn hash_a_chunk(bencher: Bencher<'_, '_>) {
    let chunk = chunk();
    let ChunkData::Bytes(data) = &chunk.data else { return };
    bencher.counter(BytesCount::new(data.len())).bench_local(|| {
        let mut hasher = RangeHasher::new(chunk.range);
        data.chunks(1 << 20).for_each(|piece| hasher.update(piece));
        hasher.finish()
    });
}

/// What the receiver does before it writes.
#[divan::bench]
fn verify_a_chunk(bencher: Bencher<'_, '_>) {
    let chunk = chunk();
    bencher
        .counter(BytesCount::new(8_usize << 20))
        .with_inputs(|| chunk.clone())
        .bench_local_values(Chunk::verify);
}

/// The same with every second block a hole, which is hashed as well.
#[divan::bench]
fn verify_a_sparse_chunk(bencher: Bencher<'_, '_>) {
    let ChunkData::Bytes(data) = chunk().data else { return };
    let range = CHUNK.range(EntryId(1), 3, 1 << 30).expect("a chunk of a large file");
    let extents: Vec<Extent> = (0..1024).map(|n| Extent { start: n * 8192, len: 4096 }).collect();
    let len = Sparse::payload_len(range.len(), &extents).expect("holes are worth it");
    let mut payload = data[..len].to_vec();
    let mut hasher = RangeHasher::new(range);
    for block in payload[Sparse::table_len(extents.len())..].chunks(4096) {
        hasher.update(block);
        hasher.update_zeros(4096);
    }
    let digest = hasher.finish().expect("all of it");
    Sparse::write_table(range.len(), digest, &extents, &mut payload);
    let chunk = Chunk::sparse(range, 0, payload.into()).expect("a right table");
    bencher
        .counter(BytesCount::new(8_usize << 20))
        .with_inputs(|| chunk.clone())
        .bench_local_values(Chunk::verify);
}

#[divan::bench(args = [0, 1 << 10, 8 << 10, 64 << 10])]
fn verify_a_pack_of_512_files(bencher: Bencher<'_, '_>, len: usize) {
    let pack = pack(512, len);
    bencher
        .counter(BytesCount::new(pack.payload.len()))
        .with_inputs(|| pack.clone())
        .bench_local_values(Pack::verify);
}

/// A terabyte's worth of chunk values, as they come from eight channels.
#[divan::bench]
fn merge_131072_values() -> Option<Digest> {
    let chunks = 131_072;
    let mut tree = RootBuilder::new(chunks);
    for first in 0..8 {
        for index in (first..chunks).step_by(8) {
            tree.insert(index, Digest([first.to_le_bytes()[0]; 32]));
        }
    }
    tree.root()
}

#[divan::bench]
fn frame_header_there_and_back(bencher: Bencher<'_, '_>) {
    let frame = Frame::Chunk(chunk());
    bencher.bench_local(|| Header::decode(&black_box(&frame).header(7).encode()));
}

/// The control channel's cost of announcing files.
#[divan::bench]
fn announce_512_files(bencher: Bencher<'_, '_>) {
    let entry = |n: u64| Entry {
        id: EntryId(n),
        parent: EntryId::ROOT,
        name: Name::new(format!("frame-{n:08}.dat").as_bytes()).expect("a name"),
        kind: Kind::File(FileKind { size: n << 10, stamp: Stamp::default() }),
        is_linked: false,
        metadata: Metadata {
            mode: Mode::from_raw(0o644),
            mtime: Timestamp::new(1_700_000_000, 123_456_789).expect("a time"),
            ..Metadata::default()
        },
    };
    let message = Message::Entries((1..=512).map(entry).collect());
    bencher.bench_local(|| {
        let bytes = message.encode().expect("a short message");
        Message::decode(&bytes[4..])
    });
}
