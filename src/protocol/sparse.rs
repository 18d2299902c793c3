//! A chunk with holes in it: a table that says where its data is, and the data.
//!
//! The source writes table and data into one buffer, which is the frame's payload as it is; the sink
//! writes the data where it belongs and leaves the holes. Layout and rules: FRAME-10 in
//! `protocol-spec/03-frames.md`.

use bytes::Bytes;
use thiserror::Error;

use super::chunk::Digest;

/// Data of which parts are holes, with a table that is right for it. It is not verified yet.
#[derive(Clone, Debug)]
pub struct Sparse {
    payload: Bytes,
    len: u32,
    count: usize,
    digest: Digest,
}

/// Where there is data in a chunk, in bytes from the chunk's first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    pub start: u32,
    pub len: u32,
}

impl Extent {
    /// Encoded size in bytes.
    const SIZE: usize = 8;

    fn encode(self, out: &mut [u8; Self::SIZE]) {
        out[..4].copy_from_slice(&self.start.to_le_bytes());
        out[4..].copy_from_slice(&self.len.to_le_bytes());
    }

    fn decode(bytes: [u8; Self::SIZE]) -> Self {
        let [s0, s1, s2, s3, l0, l1, l2, l3] = bytes;
        let start = u32::from_le_bytes([s0, s1, s2, s3]);
        Self { start, len: u32::from_le_bytes([l0, l1, l2, l3]) }
    }
}

/// What a sparse chunk consists of, from its first byte to its last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part<'a> {
    /// So many bytes of zeros.
    Hole(u32),
    Data(&'a [u8]),
}

impl Part<'_> {
    /// How many bytes of the chunk it is.
    #[expect(clippy::len_without_is_empty, reason = "a part is never empty")]
    pub fn len(&self) -> u64 {
        match self {
            Self::Hole(len) => u64::from(*len),
            Self::Data(data) => data.len() as u64,
        }
    }
}

impl Sparse {
    /// Holes begin and end at multiples of this, in bytes, but for one at the chunk's end.
    pub const ALIGNMENT: u32 = 4096;

    /// The most extents of a chunk: each second block of the longest.
    pub const MAX_EXTENTS: usize = 8192;

    /// What holes have to save, in bytes, for a source to tell of them.
    pub const MIN_SAVING: u64 = 64 << 10;

    /// What is in front of the extents: the chunk's length 4, their count 4, the chunk's digest 32.
    const HEAD_LEN: usize = 40;

    /// How long the table of `count` extents is.
    pub fn table_len(count: usize) -> usize {
        Self::HEAD_LEN + count * Extent::SIZE
    }

    /// How long a chunk with these extents is on its way, if that is worth it for `len` bytes.
    pub fn payload_len(len: u32, extents: &[Extent]) -> Option<usize> {
        if !(1..=Self::MAX_EXTENTS).contains(&extents.len()) {
            return None;
        }
        let data: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
        let payload = data + Self::table_len(extents.len()) as u64;
        let is_worth_it = payload + Self::MIN_SAVING <= u64::from(len);
        usize::try_from(payload).ok().filter(|_| is_worth_it)
    }

    /// Writes the table of a chunk of `len` bytes into the start of `out`, which must be at least
    /// [`Self::table_len`] long.
    pub fn write_table(len: u32, digest: Digest, extents: &[Extent], out: &mut [u8]) {
        out[..4].copy_from_slice(&len.to_le_bytes());
        // There are at most MAX_EXTENTS.
        out[4..8].copy_from_slice(&u32::try_from(extents.len()).unwrap_or(u32::MAX).to_le_bytes());
        out[8..Self::HEAD_LEN].copy_from_slice(&digest.0);
        let places = out[Self::HEAD_LEN..].as_chunks_mut().0;
        extents.iter().zip(places).for_each(|(extent, place)| extent.encode(place));
    }

    /// Takes a frame's payload apart, if its table has the digest `claimed` (FRAME-10).
    pub fn parse(payload: Bytes, claimed: Digest) -> Result<Self, SparseError> {
        Self::take_apart(payload, Some(claimed))
    }

    /// Takes a payload apart that was made here.
    pub(super) fn trusted(payload: Bytes) -> Option<Self> {
        Self::take_apart(payload, None).ok()
    }

    fn take_apart(payload: Bytes, claimed: Option<Digest>) -> Result<Self, SparseError> {
        // Until the digest has been compared, a strange table is damage and no lie.
        let head: [u8; 8] = *payload.first_chunk().ok_or(SparseError::Digest)?;
        let Extent { start: len, len: count } = Extent::decode(head);
        let count = usize::try_from(count).ok().filter(|count| *count <= Self::MAX_EXTENTS);
        let count = count.ok_or(SparseError::Digest)?;
        let table = payload.get(..Self::table_len(count)).ok_or(SparseError::Digest)?;
        if claimed.is_some_and(|claimed| Digest::of(table) != claimed) {
            return Err(SparseError::Digest);
        }
        let (head, extents) = table.split_at(Self::HEAD_LEN);
        let digest = Digest(head[8..].try_into().unwrap_or_default());
        let data = (payload.len() - table.len()) as u64;
        if data != check(extents, len)? || payload.len() as u64 >= u64::from(len) {
            return Err(SparseError::Table);
        }
        Ok(Self { payload, len, count, digest })
    }

    /// The length of the chunk with its holes, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a chunk is never empty")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The digest that is claimed for the chunk, with zeros where its holes are.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Table and data, as they travel.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The part of the payload that is not data.
    pub fn table(&self) -> &[u8] {
        self.payload.get(..Self::table_len(self.count)).unwrap_or_default()
    }

    /// All of the chunk, in order.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let (table, mut data) = self.payload.split_at(self.table().len());
        let extents = table.get(Self::HEAD_LEN..).unwrap_or_default().as_chunks().0;
        let mut at = 0;
        let parts = extents.iter().flat_map(move |extent| {
            let Extent { start, len } = Extent::decode(*extent);
            // The table was checked: extents rise, and their data is there.
            let hole = Part::Hole(start.saturating_sub(at));
            let (part, rest) = data.split_at_checked(len as usize).unwrap_or_default();
            (data, at) = (rest, start.saturating_add(len));
            [hole, Part::Data(part)]
        });
        let last = extents.last().map_or(0, |last| {
            let Extent { start, len } = Extent::decode(*last);
            self.len.saturating_sub(start.saturating_add(len))
        });
        parts.chain([Part::Hole(last)]).filter(|part| *part != Part::Hole(0))
    }
}

/// Checks that extents rise, do not touch, and lie in a chunk of `len` bytes; returns how much data
/// they have.
fn check(extents: &[u8], len: u32) -> Result<u64, SparseError> {
    let mut data = 0;
    let mut last_end = None;
    for extent in extents.as_chunks().0 {
        let extent = Extent::decode(*extent);
        let end = extent.start.checked_add(extent.len).filter(|end| *end <= len);
        let end = end.ok_or(SparseError::Table)?;
        let is_aligned = extent.start.is_multiple_of(Sparse::ALIGNMENT)
            && (end.is_multiple_of(Sparse::ALIGNMENT) || end == len);
        if extent.len == 0 || !is_aligned || last_end.is_some_and(|last| extent.start <= last) {
            return Err(SparseError::Table);
        }
        data += u64::from(extent.len);
        last_end = Some(end);
    }
    if last_end.is_some() { Ok(data) } else { Err(SparseError::Table) }
}

/// A payload that is no chunk with holes.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SparseError {
    /// The table is not the one that its digest was made of.
    #[error("the table of a sparse chunk does not match its digest")]
    Digest,
    /// The table matches its digest and still makes no sense: the peer broke a rule.
    #[error("the table of a sparse chunk does not describe its payload")]
    Table,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::chunk::{
        ByteRange, Chunk, ChunkData, ChunkSize, EntryId, MAX_CHUNK_LEN, RangeHasher,
    };

    fn range(len: u32) -> ByteRange {
        ChunkSize::MAX.range(EntryId(5), 1, (64 << 20) + u64::from(len)).unwrap()
    }

    fn extents(list: &[(u32, u32)]) -> Vec<Extent> {
        list.iter().map(|(start, len)| Extent { start: *start, len: *len }).collect()
    }

    /// A payload with this table, whatever it says, and all ones for data.
    fn payload(len: u32, list: &[(u32, u32)]) -> Vec<u8> {
        let extents = extents(list);
        let data: usize = extents.iter().map(|extent| extent.len as usize).sum();
        let mut out = vec![1; Sparse::table_len(extents.len()) + data];
        let mut hasher = RangeHasher::new(range(len));
        let mut at = 0;
        for extent in &extents {
            hasher.update_zeros(u64::from(extent.start.saturating_sub(at)));
            hasher.update(&vec![1; extent.len as usize]);
            at = extent.start.saturating_add(extent.len);
        }
        hasher.update_zeros(u64::from(len.saturating_sub(at)));
        Sparse::write_table(len, hasher.finish().unwrap_or_default(), &extents, &mut out);
        out
    }

    fn parse(payload: Vec<u8>) -> Result<Sparse, SparseError> {
        let count = u32::from_le_bytes(payload[4..8].try_into().unwrap()) as usize;
        let digest = Digest::of(payload.get(..Sparse::table_len(count)).unwrap_or_default());
        Sparse::parse(payload.into(), digest)
    }

    /// FRAME-10, INT-3: what the parts say is what is verified.
    #[test]
    fn holes_are_zeros_and_data_is_data() {
        let len = (1 << 20) + 5;
        for list in [
            &[(0, 4096)][..],
            &[(4096, 8192)],
            &[(1 << 20, 5)],
            &[(0, 4096), (8192, 4096), (65_536, 40_960), ((1 << 20) - 4096, 4101)],
        ] {
            let payload = payload(len, list);
            let chunk = Chunk::sparse(range(len), 3, payload.clone().into()).unwrap();
            let verified = chunk.clone().verify().unwrap();
            let ChunkData::Sparse(sparse) = verified.data() else { panic!("{verified:?}") };
            let mut plain = Vec::new();
            for part in sparse.parts() {
                match part {
                    Part::Hole(len) => plain.resize(plain.len() + len as usize, 0),
                    Part::Data(data) => plain.extend_from_slice(data),
                }
            }
            assert_eq!(plain.len(), len as usize);
            let data = ChunkData::Bytes(plain.into());
            assert!(
                Chunk::received(chunk.range, 0, chunk.digest, data).verify().is_ok(),
                "the same digest"
            );
            let mut bad = payload;
            *bad.last_mut().unwrap() ^= 1;
            let bad = Chunk::sparse(range(len), 3, bad.into()).unwrap();
            assert!(bad.verify().is_err());
            let elsewhere = ChunkSize::MAX.range(EntryId(5), 0, 1 << 40).unwrap();
            assert!(
                Chunk::received(elsewhere, 0, chunk.digest, chunk.data).verify().is_err(),
                "another length"
            );
        }
    }

    /// FRAME-10: both sides of every limit.
    #[test]
    fn a_table_must_describe_its_payload() {
        let len = 1 << 20;
        let is_ok = |list: &[(u32, u32)]| parse(payload(len, list)).is_ok();
        assert!(is_ok(&[(0, 4096), (8192, 4096)]));
        assert!(!is_ok(&[]), "no data at all is a hole");
        assert!(!is_ok(&[(0, 4096), (4096, 4096)]), "they touch");
        assert!(!is_ok(&[(8192, 4096), (0, 4096)]), "they fall");
        assert!(!is_ok(&[(0, 8192), (4096, 8192)]), "they overlap");
        assert!(!is_ok(&[(0, 0)]) && !is_ok(&[(0, 4096), (8192, 0)]), "an empty one");
        assert!(!is_ok(&[(1, 4095)]) && !is_ok(&[(2048, 2048)]) && !is_ok(&[(0, 4095)]));
        assert!(is_ok(&[(len - 4096, 4096)]) && !is_ok(&[(len - 4096, 8192)]));
        assert!(!is_ok(&[(len, 4096)]));
        assert!(parse(payload(4096 + 100, &[(4096, 100)])).is_ok(), "the end of the chunk");
        assert!(parse(payload(4096 + 100, &[(4096, 99)])).is_err());
        let saves_nothing = |len| parse(payload(len, &[(0, 4096)])).is_err();
        assert!(saves_nothing(4096 + 48) && !saves_nothing(4096 + 49));
        let good = payload(len, &[(4096, 4096)]);
        assert!(parse([&good[..], &[0]].concat()).is_err(), "data without an extent");
        assert!(parse(good[..good.len() - 1].to_vec()).is_err(), "an extent without data");
        let mut wraps = good;
        wraps[40..44].copy_from_slice(&(u32::MAX - 4095).to_le_bytes());
        wraps[44..48].copy_from_slice(&8192_u32.to_le_bytes());
        assert_eq!(parse(wraps).unwrap_err(), SparseError::Table);
    }

    /// FRAME-10: as many extents as the longest chunk can have, and no more.
    #[test]
    fn every_second_block_of_the_longest_chunk() {
        let list: Vec<(u32, u32)> = (0..8192).map(|n| (n * 8192, 4096)).collect();
        let extents = extents(&list);
        let payload_len = Sparse::payload_len(MAX_CHUNK_LEN, &extents).unwrap();
        let mut payload = vec![0; payload_len];
        Sparse::write_table(MAX_CHUNK_LEN, Digest::default(), &extents, &mut payload);
        assert_eq!(parse(payload).unwrap().parts().count(), 2 * 8192);
        let more = [&extents[..], &extents[..1]].concat();
        assert_eq!(Sparse::payload_len(MAX_CHUNK_LEN, &more), None);
        let mut payload = vec![0; Sparse::table_len(8193) + 8193];
        Sparse::write_table(MAX_CHUNK_LEN, Digest::default(), &more, &mut payload);
        assert_eq!(parse(payload).unwrap_err(), SparseError::Digest, "a count that damage made");
    }

    #[test]
    fn what_saves_little_travels_plain() {
        let len = |hole: u32| {
            let list = extents(&[(0, 4096), (4096 + hole, 4096)]);
            Sparse::payload_len(8192 + hole, &list)
        };
        assert_eq!(len(65_536), None);
        assert_eq!(len(65_536 + 4096), Some(8192 + 56));
        assert_eq!(Sparse::payload_len(1 << 20, &[]), None);
    }

    proptest! {
        /// FRAME-10, INT-4: whatever the payload is, we decide, without a panic; and what we accept
        /// covers its chunk.
        #[test]
        fn any_table_is_decided(
            words in proptest::collection::vec(0_u32..12, 0..12),
            len in 0_u32..60_000,
            extra in 0_usize..20_000,
        ) {
            let count = words.len() / 2;
            let mut payload = vec![0; Sparse::HEAD_LEN];
            payload[..4].copy_from_slice(&len.to_le_bytes());
            payload[4..8].copy_from_slice(&u32::try_from(count).unwrap().to_le_bytes());
            words[..count * 2].iter().for_each(|word| payload.extend((word * 4096).to_le_bytes()));
            payload.resize(payload.len() + extra / 4096 * 4096, 7);
            if let Ok(sparse) = parse(payload) {
                let parts = sparse.parts().map(|part| part.len());
                prop_assert_eq!(parts.sum::<u64>(), u64::from(len));
            }
        }

        /// FRAME-10: any damage to the table is noticed.
        #[test]
        fn a_flipped_bit_of_the_table_is_damage(bit in 0..8 * 56_usize) {
            let good = payload(1 << 20, &[(4096, 4096), (16_384, 8192)]);
            let digest = Digest::of(&good[..56]);
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Sparse::parse(good.into(), digest).is_ok());
            prop_assert_eq!(Sparse::parse(bad.into(), digest).unwrap_err(), SparseError::Digest);
        }
    }
}
