//! Data channels: the fixed header in front of every frame.
//!
//! Sending, a transport hands in a [`Header`] and gets its bytes; receiving, it hands in the bytes
//! and gets the header. A chunk's data never passes through here: it goes from the source's buffer
//! to the socket, and from the socket to the sink's buffer.
//!
//! Layout and rules: `protocol-spec/03-frames.md`.

use bytes::Bytes;
use thiserror::Error;

use super::chunk::{ByteRange, Chunk, ChunkData, Digest, EntryId, Pack, RangeError};
use super::sparse::{Sparse, SparseError};

/// What travels on a data channel.
#[derive(Clone, Debug)]
pub enum Frame {
    /// As much as a path must carry before it counts as one.
    Probe,
    /// The channel is up, in both directions of its handshake.
    Ready,
    /// A range of a file; without a payload if it is a hole.
    Chunk(Chunk),
    /// Small files.
    Pack(Pack),
    /// Nothing more will come on this channel.
    End,
}

impl Frame {
    /// The frame's header, as the `sequence`-th frame of its channel.
    pub fn header(&self, sequence: u64) -> Header {
        let len = |data: &Bytes| u32::try_from(data.len()).unwrap_or(u32::MAX);
        let body = match self {
            Self::Probe => Body::Probe,
            Self::Ready => Body::Ready,
            Self::End => Body::End,
            Self::Chunk(Chunk { range, version, data: ChunkData::Sparse(sparse), .. }) => {
                Body::Sparse {
                    entry: range.entry(),
                    offset: range.offset(),
                    whole: range.is_whole(),
                    version: *version,
                    digest: Digest::of(sparse.table()),
                    len: len(sparse.payload()),
                }
            }
            Self::Chunk(chunk) => Body::Chunk {
                range: chunk.range,
                version: chunk.version,
                digest: chunk.digest,
                hole: matches!(chunk.data, ChunkData::Hole),
            },
            Self::Pack(pack) => {
                Body::Pack { number: pack.number, digest: pack.digest, len: len(&pack.payload) }
            }
        };
        Header { sequence, body }
    }

    /// The bytes that follow the header.
    pub fn payload(&self) -> &[u8] {
        match self {
            Self::Chunk(Chunk { data: ChunkData::Bytes(data), .. }) => data,
            Self::Chunk(Chunk { data: ChunkData::Sparse(sparse), .. }) => sparse.payload(),
            Self::Pack(pack) => &pack.payload,
            Self::Probe => &PROBE,
            Self::Chunk(Chunk { data: ChunkData::Hole, .. }) | Self::Ready | Self::End => &[],
        }
    }
}

/// The header of a frame: everything but its payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// The frame's number on its channel, from 0.
    pub sequence: u64,
    pub body: Body,
}

/// What a header announces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body {
    Probe,
    Ready,
    Chunk {
        range: ByteRange,
        version: u16,
        digest: Digest,
        hole: bool,
    },
    /// A chunk with holes. How long it is stands in its table, whose digest this is; `len` is that
    /// of the payload, in bytes.
    Sparse {
        entry: EntryId,
        offset: u64,
        whole: bool,
        version: u16,
        digest: Digest,
        len: u32,
    },
    Pack {
        number: u64,
        digest: Digest,
        len: u32,
    },
    End,
}

impl Header {
    /// Encoded size in bytes.
    pub const SIZE: usize = 64;

    /// How many bytes of payload follow.
    pub fn payload_len(&self) -> usize {
        match self.body {
            Body::Ready | Body::End | Body::Chunk { hole: true, .. } => 0,
            Body::Probe => PROBE_LEN,
            Body::Chunk { range, hole: false, .. } => range.len() as usize,
            Body::Sparse { len, .. } | Body::Pack { len, .. } => len as usize,
        }
    }

    /// Joins the header and its payload.
    ///
    /// # Errors
    ///
    /// If it is a chunk with holes and a table that is not right. [`SparseError::Digest`] is damage
    /// on the way, and no violation.
    pub fn with(self, payload: Bytes) -> Result<Frame, FrameError> {
        Ok(match self.body {
            Body::Probe => Frame::Probe,
            Body::Ready => Frame::Ready,
            Body::End => Frame::End,
            Body::Chunk { range, version, digest, hole } => {
                let data = if hole { ChunkData::Hole } else { ChunkData::Bytes(payload) };
                Frame::Chunk(Chunk::received(range, version, digest, data))
            }
            Body::Sparse { entry, offset, whole, version, digest, .. } => {
                let sparse = Sparse::parse(payload, digest)?;
                let range = ByteRange::new(entry, offset, sparse.len(), whole)?;
                let digest = sparse.digest();
                Frame::Chunk(Chunk::received(range, version, digest, ChunkData::Sparse(sparse)))
            }
            Body::Pack { number, digest, .. } => Frame::Pack(Pack { number, digest, payload }),
        })
    }

    /// The bytes that go on the wire (FRAME-1).
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let (kind, flags, version, len, entry, offset, digest) = match self.body {
            Body::Probe => (TYPE_PROBE, 0, 0, PROBE_LEN_U32, 0, 0, Digest::default()),
            Body::Ready => (TYPE_READY, 0, 0, 0, 0, 0, Digest::default()),
            Body::End => (TYPE_END, 0, 0, 0, 0, 0, Digest::default()),
            Body::Chunk { range, version, digest, hole } => {
                let kind = if hole { TYPE_HOLE } else { TYPE_CHUNK };
                let flags = if range.is_whole() { FLAG_WHOLE } else { 0 };
                (kind, flags, version, range.len(), range.entry().0, range.offset(), digest)
            }
            Body::Sparse { entry, offset, whole, version, digest, len } => {
                let flags = if whole { FLAG_WHOLE } else { 0 };
                (TYPE_SPARSE, flags, version, len, entry.0, offset, digest)
            }
            Body::Pack { number, digest, len } => (TYPE_PACK, 0, 0, len, number, 0, digest),
        };
        let mut out = [0; Self::SIZE];
        out[0] = kind;
        out[1] = flags;
        out[2..4].copy_from_slice(&version.to_le_bytes());
        out[4..8].copy_from_slice(&len.to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&entry.to_le_bytes());
        out[24..32].copy_from_slice(&offset.to_le_bytes());
        out[32..64].copy_from_slice(&digest.0);
        out
    }

    /// Parses what a peer sent. Payload lengths are checked here against the protocol's limits and
    /// by the transport against the session's, before any memory is taken (FRAME-3).
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, FrameError> {
        let (front, digest) = bytes.split_at(32);
        let words = front.as_chunks::<8>().0;
        let [first, sequence, entry, offset] = [words[0], words[1], words[2], words[3]];
        let [kind, flags, v0, v1, l0, l1, l2, l3] = first;
        let (version, len) = (u16::from_le_bytes([v0, v1]), u32::from_le_bytes([l0, l1, l2, l3]));
        let sequence = u64::from_le_bytes(sequence);
        let (entry, offset) = (u64::from_le_bytes(entry), u64::from_le_bytes(offset));
        let digest = Digest(digest.try_into().unwrap_or_default());
        let has_range = matches!(kind, TYPE_CHUNK | TYPE_HOLE | TYPE_SPARSE);
        let allowed = if has_range { FLAG_WHOLE } else { 0 };
        if flags & !allowed != 0 {
            return Err(FrameError::ReservedBitsSet);
        }
        let body = match kind {
            TYPE_READY | TYPE_END => {
                if (version, len, entry, offset, digest) != (0, 0, 0, 0, Digest::default()) {
                    return Err(FrameError::ReservedBitsSet);
                }
                if kind == TYPE_READY { Body::Ready } else { Body::End }
            }
            TYPE_PROBE => {
                let rest = (version, len as usize, entry, offset, digest);
                if rest != (0, PROBE_LEN, 0, 0, Digest::default()) {
                    return Err(FrameError::ReservedBitsSet);
                }
                Body::Probe
            }
            TYPE_CHUNK | TYPE_HOLE => {
                let range = ByteRange::new(EntryId(entry), offset, len, flags & FLAG_WHOLE != 0)?;
                Body::Chunk { range, version, digest, hole: kind == TYPE_HOLE }
            }
            TYPE_SPARSE => {
                // It is shorter than the chunk, so that every right one is a range as well.
                let (entry, whole) = (EntryId(entry), flags & FLAG_WHOLE != 0);
                ByteRange::new(entry, offset, len, whole)?;
                Body::Sparse { entry, offset, whole, version, digest, len }
            }
            TYPE_PACK => {
                if (version, offset) != (0, 0) {
                    return Err(FrameError::ReservedBitsSet);
                }
                if !(4..=MAX_PACK_LEN).contains(&len) {
                    return Err(FrameError::PackLength { len });
                }
                Body::Pack { number: entry, digest, len }
            }
            other => return Err(FrameError::UnknownType(other)),
        };
        Ok(Self { sequence, body })
    }
}

/// The peer sent a frame that no correct implementation sends.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum FrameError {
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(transparent)]
    Sparse(#[from] SparseError),
    #[error("reserved header bits are set")]
    ReservedBitsSet,
    #[error("unknown frame type {0:#04x}")]
    UnknownType(u8),
    #[error("a pack of {len} bytes is outside 4..={MAX_PACK_LEN}")]
    PackLength { len: u32 },
    #[error("frame {found} came where frame {expected} was due")]
    Sequence { expected: u64, found: u64 },
    #[error("a frame of {len} bytes is over this session's limit of {limit}")]
    TooLong { len: usize, limit: usize },
}

/// The most that one pack may carry with its table, in bytes: 65 MiB.
pub const MAX_PACK_LEN: u32 = 65 << 20;

/// The payload of a [`Frame::Probe`], in bytes: zeros, 64 KiB of them.
pub const PROBE_LEN: usize = PROBE_LEN_U32 as usize;
const PROBE_LEN_U32: u32 = 64 << 10;

static PROBE: [u8; PROBE_LEN] = [0; PROBE_LEN];

const TYPE_READY: u8 = 0x01;
const TYPE_CHUNK: u8 = 0x02;
const TYPE_HOLE: u8 = 0x03;
const TYPE_PACK: u8 = 0x04;
const TYPE_END: u8 = 0x05;
const TYPE_SPARSE: u8 = 0x06;
const TYPE_PROBE: u8 = 0x07;

/// The range is all of its file, and its digest the file's root.
const FLAG_WHOLE: u8 = 0x01;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::chunk::MAX_CHUNK_LEN;

    fn header() -> impl Strategy<Value = Header> {
        let chunk =
            (any::<u64>(), 0..1_u64 << 46, 1..=MAX_CHUNK_LEN, any::<(bool, bool, u16, [u8; 32])>())
                .prop_filter_map(
                    "not a range",
                    |(entry, place, len, (whole, hole, version, digest))| {
                        let offset = if whole { 0 } else { place << 16 };
                        let range = ByteRange::new(EntryId(entry), offset, len, whole).ok()?;
                        Some(Body::Chunk { range, version, digest: Digest(digest), hole })
                    },
                );
        let sparse = (any::<(u64, u16, [u8; 32], bool)>(), 0..1_u64 << 46, 1..=MAX_CHUNK_LEN)
            .prop_filter_map("not a range", |((entry, version, digest, whole), place, len)| {
                let (entry, digest) = (EntryId(entry), Digest(digest));
                let offset = if whole { 0 } else { place << 16 };
                ByteRange::new(entry, offset, len, whole).ok()?;
                Some(Body::Sparse { entry, offset, whole, version, digest, len })
            });
        let pack = (any::<u64>(), 4..=MAX_PACK_LEN, any::<[u8; 32]>())
            .prop_map(|(number, len, digest)| Body::Pack { number, len, digest: Digest(digest) });
        let body =
            prop_oneof![Just(Body::Probe), Just(Body::Ready), Just(Body::End), chunk, sparse, pack];
        (any::<u64>(), body).prop_map(|(sequence, body)| Header { sequence, body })
    }

    proptest! {
        /// FRAME-1: what we encode, we decode.
        #[test]
        fn round_trips(header in header()) {
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        /// FRAME-2: one wrong bit is refused, or makes another header; never a second spelling of
        /// the same one.
        #[test]
        fn a_flipped_bit_is_refused_or_canonical(header in header(), bit in 0..8 * Header::SIZE) {
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = Header::decode(&bytes) {
                prop_assert_ne!(other, header);
                prop_assert_eq!(other.encode(), bytes);
            }
        }

        /// FRAME-2: whatever a peer sends, we decide, and what we accept is canonical.
        #[test]
        fn any_input_is_decided(mut bytes in any::<[u8; Header::SIZE]>(), kind in 0_u8..9) {
            bytes[0] = kind;
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
                prop_assert!(header.payload_len() <= MAX_PACK_LEN as usize);
            }
        }
    }
}
