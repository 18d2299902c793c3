//! What is moved: a range of one file or a pack of small files, its digest, its data.
//!
//! One value moves, and its type says how far it is: [`ByteRange`] → [`Chunk`] → [`VerifiedChunk`],
//! and for small files [`Pack`] → [`VerifiedPack`]. A sink takes nothing but the last of each, and
//! only verification makes one. Rules: `protocol-spec/04-integrity.md`.

use std::fmt;

use blake3::hazmat::{ChainingValue, HasherExt as _};
use bytes::Bytes;
use thiserror::Error;

use super::sparse::{Part, Sparse};

/// An entry's number in its session, from 1. 0 stands for the destination's root directory.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EntryId(pub u64);

impl EntryId {
    /// The directory that everything else is below.
    pub const ROOT: Self = Self(0);
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {}", self.0)
    }
}

/// A BLAKE3 value: the root of a whole input, or the chaining value of a subtree.
///
/// Source: the BLAKE3 paper, section 2.1; `blake3::hazmat`.
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest that `b3sum` prints for these bytes.
    pub fn of(data: &[u8]) -> Self {
        Self(blake3::hash(data).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How large a file's chunks are: a power of two from 64 KiB to 64 MiB.
///
/// A power of two, so that every chunk is a complete subtree of the file's BLAKE3 tree (INT-1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkSize(u8);

impl ChunkSize {
    /// 8 MiB.
    pub const DEFAULT: Self = Self(23);
    /// 64 KiB.
    pub const MIN: Self = Self(16);
    /// 64 MiB.
    pub const MAX: Self = Self(26);

    /// Accepts exactly the powers of two between the limits.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        if !bytes.is_power_of_two() {
            return None;
        }
        u8::try_from(bytes.trailing_zeros()).ok().and_then(Self::from_log2)
    }

    /// Accepts a base-2 logarithm between the limits.
    pub fn from_log2(log2: u8) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&log2).then_some(Self(log2))
    }

    /// The size's base-2 logarithm, as the wire carries it.
    pub fn log2(self) -> u8 {
        self.0
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        1 << self.0
    }

    /// How many chunks a file of `file_len` bytes has.
    pub fn count(self, file_len: u64) -> u64 {
        file_len.div_ceil(self.bytes())
    }

    /// The range of chunk `index` of a file of `file_len` bytes, if there is one.
    pub fn range(self, entry: EntryId, index: u64, file_len: u64) -> Option<ByteRange> {
        let offset = index.checked_mul(self.bytes())?;
        let len = u32::try_from(piece_len(file_len, self.bytes(), index)?).ok()?;
        Some(ByteRange { entry, offset, len, whole: u64::from(len) == file_len })
    }
}

/// How long piece `index` of a file is, in bytes, where all but the last have `len`; `None` if there is
/// no such piece.
pub fn piece_len(file_len: u64, len: u64, index: u64) -> Option<u64> {
    let before = len.checked_mul(index)?;
    file_len.checked_sub(before).filter(|left| *left > 0).map(|left| left.min(len))
}

/// Part of one file, of one chunk's size or less: never empty, never past the end of a `u64`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ByteRange {
    entry: EntryId,
    offset: u64,
    len: u32,
    whole: bool,
}

impl ByteRange {
    /// Checks the range once, so that nobody downstream has to (FRAME-4).
    ///
    /// `whole` says that this is all of its file, so that its digest is the file's root.
    pub fn new(entry: EntryId, offset: u64, len: u32, whole: bool) -> Result<Self, RangeError> {
        if !(1..=MAX_CHUNK_LEN).contains(&len) {
            return Err(RangeError::Length { len });
        }
        if offset.checked_add(u64::from(len)).is_none_or(|end| end > MAX_FILE_LEN) {
            return Err(RangeError::Overflow { offset, len });
        }
        // A subtree is no longer than the largest power of two that divides where it starts.
        let is_subtree = offset == 0 || u64::from(len) <= 1 << offset.trailing_zeros();
        if !offset.is_multiple_of(ChunkSize::MIN.bytes()) || (whole && offset != 0) || !is_subtree {
            return Err(RangeError::Misaligned { offset });
        }
        Ok(Self { entry, offset, len, whole })
    }

    /// The file.
    pub fn entry(self) -> EntryId {
        self.entry
    }

    /// Where it starts in the file, in bytes.
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// How many bytes it has.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u32 {
        self.len
    }

    /// Whether it is all of its file.
    pub fn is_whole(self) -> bool {
        self.whole
    }
}

/// Computes a range's digest piece by piece, while the data is still in the processor's cache.
///
/// A range that is all of its file has the file's root for a digest; any other has its subtree's
/// chaining value, which depends on where in the file it stands (INT-2).
#[derive(Debug)]
pub struct RangeHasher {
    hasher: blake3::Hasher,
    left: u64,
    whole: bool,
}

impl RangeHasher {
    /// Begins with the range's first byte.
    pub fn new(range: ByteRange) -> Self {
        let mut hasher = blake3::Hasher::new();
        // A `ByteRange` is a subtree, so that neither of hazmat's panics (an odd offset, too much
        // input for the offset) can be reached.
        hasher.set_input_offset(range.offset);
        Self { hasher, left: u64::from(range.len), whole: range.whole }
    }

    /// Takes the next bytes; what lies past the range's end is not looked at.
    pub fn update(&mut self, data: &[u8]) {
        let take = usize::try_from(self.left).map_or(data.len(), |left| left.min(data.len()));
        self.hasher.update(&data[..take]);
        self.left -= take as u64;
    }

    /// Takes so many bytes of zeros, which need not be anywhere.
    pub fn update_zeros(&mut self, len: u64) {
        let mut len = len.min(self.left);
        while len > 0 {
            let take = len.min(ZEROS.len() as u64);
            self.update(
                usize::try_from(take).ok().and_then(|take| ZEROS.get(..take)).unwrap_or(&ZEROS),
            );
            len -= take;
        }
    }

    /// The digest of the range.
    ///
    /// # Errors
    ///
    /// If fewer bytes than the range's length were given.
    pub fn finish(self) -> Result<Digest, ShortRange> {
        if self.left != 0 {
            return Err(ShortRange { missing: self.left });
        }
        Ok(Digest(if self.whole {
            self.hasher.finalize().into()
        } else {
            ChainingValue::from(self.hasher.finalize_non_root())
        }))
    }
}

/// A range's data ended before the range did.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{missing} bytes of the range are missing")]
pub struct ShortRange {
    pub missing: u64,
}

/// Data with a digest that somebody claims for it. It may be anything.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub range: ByteRange,
    /// Which reading of the source this is from: it rises when a file changed and is read anew.
    pub version: u16,
    pub digest: Digest,
    pub data: ChunkData,
    /// What the digest was made of, where that was in this process.
    made_of: Option<Memory>,
}

/// A chunk's payload in the memory of this process. Nothing changes what is there while a chunk has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Memory {
    range: ByteRange,
    digest: Digest,
    address: usize,
    len: usize,
}

impl Memory {
    fn new(range: ByteRange, digest: Digest, data: &[u8]) -> Self {
        Self { range, digest, address: data.as_ptr().addr(), len: data.len() }
    }
}

/// A chunk's bytes, without those that are in holes and need not travel.
#[derive(Clone, Debug)]
pub enum ChunkData {
    Bytes(Bytes),
    /// The source has parts of this chunk only, and the sink may leave holes between them.
    Sparse(Sparse),
    /// The source has a hole here, and the sink may leave one.
    Hole,
}

impl Chunk {
    /// A chunk as somebody sent it.
    pub fn received(range: ByteRange, version: u16, digest: Digest, data: ChunkData) -> Self {
        Self { range, version, digest, data, made_of: None }
    }

    /// A chunk with a digest that was made of this very memory. If it never leaves this process, it
    /// need not be hashed again.
    pub fn hashed(range: ByteRange, version: u16, digest: Digest, data: Bytes) -> Self {
        let made_of = Some(Memory::new(range, digest, &data));
        Self { range, version, digest, data: ChunkData::Bytes(data), made_of }
    }

    /// Whether the digest is known to be that of the data.
    fn is_hashed(&self) -> bool {
        matches!((&self.data, self.made_of), (ChunkData::Bytes(data), Some(made_of))
            if made_of == Memory::new(self.range, self.digest, data) && self.is_all(data))
    }

    fn is_all(&self, data: &Bytes) -> bool {
        data.len() as u64 == u64::from(self.range.len)
    }

    /// Checks the data against the range and the digest (INT-3).
    ///
    /// This is the only way to make a [`VerifiedChunk`], and a sink accepts nothing else, so data
    /// that was not verified cannot reach a file.
    pub fn verify(self) -> Result<VerifiedChunk, ChunkMismatch> {
        if self.is_hashed() {
            return Ok(VerifiedChunk(self));
        }
        let mut hasher = RangeHasher::new(self.range);
        match &self.data {
            ChunkData::Bytes(data) if self.is_all(data) => {
                hasher.update(data);
            }
            ChunkData::Sparse(sparse) if sparse.len() == self.range.len => {
                sparse.parts().for_each(|part| match part {
                    Part::Hole(len) => hasher.update_zeros(len.into()),
                    Part::Data(data) => hasher.update(data),
                });
            }
            ChunkData::Bytes(_) | ChunkData::Sparse(_) => {
                return Err(ChunkMismatch { range: self.range });
            }
            ChunkData::Hole => hasher.update_zeros(self.range.len.into()),
        }
        if hasher.finish() == Ok(self.digest) {
            Ok(VerifiedChunk(self))
        } else {
            Err(ChunkMismatch { range: self.range })
        }
    }

    /// A hole, with the digest of its zeros.
    pub fn hole(range: ByteRange, version: u16) -> Self {
        let mut hasher = RangeHasher::new(range);
        hasher.update_zeros(range.len.into());
        // All of the range was just given, so there is always a digest.
        let digest = hasher.finish().unwrap_or_default();
        Self::received(range, version, digest, ChunkData::Hole)
    }

    /// A chunk from a table of its extents, its digest among them, and their data; `None` if they
    /// are not of this range.
    pub fn sparse(range: ByteRange, version: u16, payload: Bytes) -> Option<Self> {
        let sparse = Sparse::trusted(payload).filter(|sparse| sparse.len() == range.len)?;
        let digest = sparse.digest();
        Some(Self::received(range, version, digest, ChunkData::Sparse(sparse)))
    }
}

/// What holes are made of.
static ZEROS: [u8; 128 * 1024] = [0; 128 * 1024];

/// A chunk whose data is all of its range and matched its digest.
#[derive(Debug)]
pub struct VerifiedChunk(Chunk);

impl VerifiedChunk {
    pub fn range(&self) -> ByteRange {
        self.0.range
    }

    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    pub fn version(&self) -> u16 {
        self.0.version
    }

    pub fn data(&self) -> &ChunkData {
        &self.0.data
    }
}

/// Many small files in one frame: the table first, then their bytes, one after the other.
#[derive(Clone, Debug)]
pub struct Pack {
    pub number: u64,
    /// The digest that is claimed for the table.
    pub digest: Digest,
    pub payload: Bytes,
}

/// One small file of a pack.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PackMember {
    pub entry: EntryId,
    pub version: u16,
    /// All of the file, in bytes.
    pub len: u32,
    pub root: Digest,
}

impl PackMember {
    /// Encoded size in bytes: entry 8, version 2, reserved 2, length 4, root 32.
    pub const SIZE: usize = 48;

    fn encode(&self, out: &mut [u8]) {
        out[..8].copy_from_slice(&self.entry.0.to_le_bytes());
        out[8..10].copy_from_slice(&self.version.to_le_bytes());
        out[10..12].fill(0);
        out[12..16].copy_from_slice(&self.len.to_le_bytes());
        out[16..48].copy_from_slice(&self.root.0);
    }

    fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, PackError> {
        let [e0, e1, e2, e3, e4, e5, e6, e7, v0, v1, r0, r1, l0, l1, l2, l3, root @ ..] = *bytes;
        if [r0, r1] != [0, 0] {
            return Err(PackError::Table);
        }
        Ok(Self {
            entry: EntryId(u64::from_le_bytes([e0, e1, e2, e3, e4, e5, e6, e7])),
            version: u16::from_le_bytes([v0, v1]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            root: Digest(root),
        })
    }
}

impl Pack {
    /// How long the table of `count` members is, with its count in front.
    pub fn table_len(count: usize) -> usize {
        4 + count * PackMember::SIZE
    }

    /// Writes the table into the start of `out`, which must be at least [`Self::table_len`] long,
    /// and returns its digest.
    pub fn write_table(members: &[PackMember], out: &mut [u8]) -> Digest {
        let len = Self::table_len(members.len());
        // A pack has at most MAX_PACK_MEMBERS members.
        out[..4].copy_from_slice(&u32::try_from(members.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (member, place) in members.iter().zip(out[4..].chunks_exact_mut(PackMember::SIZE)) {
            member.encode(place);
        }
        Digest::of(&out[..len])
    }

    /// Checks the table against its digest, and every member's bytes against its root (INT-4).
    ///
    /// # Errors
    ///
    /// If the table cannot be trusted. A member whose bytes are wrong is no error of the pack: it
    /// is listed by [`VerifiedPack::into_parts`], and only it has to be sent again.
    pub fn verify(self) -> Result<VerifiedPack, PackError> {
        let count = self.payload.first_chunk().map(|count| u32::from_le_bytes(*count));
        // Until the digest has been compared, a strange count is damage and no lie.
        let count = count.filter(|count| *count <= MAX_PACK_MEMBERS).ok_or(PackError::Digest)?;
        let table_len = Self::table_len(count as usize);
        let table = self.payload.get(..table_len).ok_or(PackError::Digest)?;
        if Digest::of(table) != self.digest {
            return Err(PackError::Digest);
        }
        let mut pack = VerifiedPack { files: Vec::new(), mismatched: Vec::new() };
        let mut at = table_len;
        for member in table[4..].as_chunks().0 {
            let member = PackMember::decode(member)?;
            let end = at + member.len as usize;
            if end > self.payload.len() {
                return Err(PackError::Table);
            }
            let data = self.payload.slice(at..end);
            if Digest::of(&data) == member.root {
                pack.files.push(VerifiedFile { member, data });
            } else {
                pack.mismatched.push(member);
            }
            at = end;
        }
        if at == self.payload.len() { Ok(pack) } else { Err(PackError::Table) }
    }
}

/// The files of a pack, each with bytes that matched its root.
#[derive(Debug)]
pub struct VerifiedPack {
    files: Vec<VerifiedFile>,
    mismatched: Vec<PackMember>,
}

impl VerifiedPack {
    /// The files that may be written, and the members that must be sent again.
    pub fn into_parts(self) -> (Vec<VerifiedFile>, Vec<PackMember>) {
        (self.files, self.mismatched)
    }
}

/// A whole small file whose bytes matched its root.
#[derive(Debug)]
pub struct VerifiedFile {
    member: PackMember,
    data: Bytes,
}

impl VerifiedFile {
    pub fn member(&self) -> PackMember {
        self.member
    }

    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

/// The data of a chunk is not what its range and digest say.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("corrupt chunk: {} at offset {}", range.entry, range.offset)]
pub struct ChunkMismatch {
    pub range: ByteRange,
}

/// A pack that cannot be used at all.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum PackError {
    /// The table is not the one that its digest was made of.
    #[error("corrupt pack: its table does not match its digest")]
    Digest,
    /// The table matches its digest and still makes no sense: the peer broke a rule.
    #[error("the table of the pack does not describe its payload")]
    Table,
}

/// These numbers are not a range that a chunk can have.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RangeError {
    #[error("chunk length {len} is outside 1..={MAX_CHUNK_LEN}")]
    Length { len: u32 },
    #[error("a chunk of {len} bytes at offset {offset} ends past the largest file size")]
    Overflow { offset: u64, len: u32 },
    #[error("no chunk of this length starts at offset {offset}")]
    Misaligned { offset: u64 },
}

/// The most data that one chunk may carry, in bytes: 64 MiB.
pub const MAX_CHUNK_LEN: u32 = 64 << 20;

/// The largest file, in bytes: what a signed 64-bit file offset can address.
pub const MAX_FILE_LEN: u64 = i64::MAX as u64;

/// The most files that one pack may carry.
pub const MAX_PACK_MEMBERS: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(range: ByteRange, data: &'static [u8]) -> Chunk {
        let mut hasher = RangeHasher::new(range);
        hasher.update(data);
        let digest = hasher.finish().unwrap();
        Chunk::received(range, 0, digest, ChunkData::Bytes(Bytes::from_static(data)))
    }

    /// FRAME-4: both sides of every limit.
    #[test]
    fn range_limits() {
        let range = |offset, len, whole| ByteRange::new(EntryId(1), offset, len, whole);
        let end = MAX_FILE_LEN + 1 - ChunkSize::MIN.bytes();
        assert_eq!(range(0, 0, true), Err(RangeError::Length { len: 0 }));
        assert!(range(0, 1, true).is_ok());
        assert!(range(0, MAX_CHUNK_LEN, false).is_ok());
        assert!(range(0, MAX_CHUNK_LEN + 1, false).is_err());
        assert!(range(end, 65_535, false).is_ok());
        assert_eq!(
            range(end, 65_536, false),
            Err(RangeError::Overflow { offset: end, len: 65_536 })
        );
        let last = u64::MAX - 65_535;
        assert_eq!(
            range(last, 65_536, false),
            Err(RangeError::Overflow { offset: last, len: 65_536 })
        );
        assert_eq!(range(1, 1, false), Err(RangeError::Misaligned { offset: 1 }));
        assert_eq!(range(65_536, 1, true), Err(RangeError::Misaligned { offset: 65_536 }));
    }

    /// INT-3.
    #[test]
    fn one_wrong_byte_is_caught() {
        let range = ByteRange::new(EntryId(3), 65_536, 5, false).unwrap();
        let good = sealed(range, b"hello");
        let bad = Chunk { data: ChunkData::Bytes(Bytes::from_static(b"hellp")), ..good.clone() };
        assert!(good.clone().verify().is_ok());
        assert_eq!(bad.verify().unwrap_err(), ChunkMismatch { range });
        let elsewhere = ByteRange::new(EntryId(3), 131_072, 5, false).unwrap();
        assert!(Chunk { range: elsewhere, ..good }.verify().is_err(), "same bytes, other place");
    }

    /// INT-3: what was hashed here is believed for as long as it is what was hashed.
    #[test]
    fn a_digest_made_here_is_of_its_data_only() {
        let range = ByteRange::new(EntryId(1), 0, 5, true).unwrap();
        let elsewhere = ByteRange::new(EntryId(2), 0, 4, true).unwrap();
        let Chunk { digest, .. } = sealed(range, b"hello");
        let data = Bytes::from_static(b"hello");
        let own = Chunk::hashed(range, 0, digest, data.clone());
        assert!(own.is_hashed());
        assert_eq!(own.clone().verify().unwrap().digest(), digest);
        let equal = Chunk { data: ChunkData::Bytes(b"hello".to_vec().into()), ..own.clone() };
        assert!(!equal.is_hashed() && equal.verify().is_ok(), "other memory");
        let wrong = Chunk { data: ChunkData::Bytes(b"hellp".to_vec().into()), ..own.clone() };
        assert!(!wrong.is_hashed() && wrong.verify().is_err());
        assert!(Chunk { digest: Digest([1; 32]), ..own.clone() }.verify().is_err());
        assert!(Chunk { range: elsewhere, ..own.clone() }.verify().is_err());
        let short = Chunk::hashed(range, 0, digest, data.slice(..4));
        assert!(!short.is_hashed() && short.verify().is_err());
    }

    /// INT-3: or a gap would be recorded as written.
    #[test]
    fn data_shorter_than_its_range_is_caught_though_the_digest_is_right() {
        let short = sealed(ByteRange::new(EntryId(3), 0, 4, true).unwrap(), b"hell");
        let range = ByteRange::new(EntryId(3), 0, 5, true).unwrap();
        assert_eq!(Chunk { range, ..short }.verify().unwrap_err(), ChunkMismatch { range });
    }

    /// INT-5: a hole is verified like the zeros it stands for.
    #[test]
    fn a_hole_is_zeros() {
        let range = ByteRange::new(EntryId(3), 1 << 20, 1 << 20, false).unwrap();
        let zeros = Chunk {
            data: ChunkData::Bytes(Bytes::from(vec![0; 1 << 20])),
            ..Chunk::hole(range, 0)
        };
        assert!(zeros.verify().is_ok());
        assert!(Chunk::hole(range, 0).verify().is_ok());
        let lie = Chunk { digest: Digest([1; 32]), ..Chunk::hole(range, 0) };
        assert!(lie.verify().is_err());
    }

    fn pack(files: &[&[u8]]) -> Pack {
        let members: Vec<PackMember> = files
            .iter()
            .zip(1..)
            .map(|(data, id)| PackMember {
                entry: EntryId(id),
                version: 0,
                len: u32::try_from(data.len()).unwrap(),
                root: Digest::of(data),
            })
            .collect();
        let mut payload = vec![0; Pack::table_len(files.len())];
        let digest = Pack::write_table(&members, &mut payload);
        payload.extend(files.concat());
        Pack { number: 1, digest, payload: payload.into() }
    }

    /// INT-4.
    #[test]
    fn only_the_damaged_member_of_a_pack_is_refused() {
        let good = pack(&[b"one", b"", b"three"]);
        let (files, mismatched) = good.clone().verify().unwrap().into_parts();
        assert_eq!(
            files.iter().map(|file| &file.data()[..]).collect::<Vec<_>>(),
            [&b"one"[..], b"", b"three"]
        );
        assert!(mismatched.is_empty());
        let mut bytes = good.payload.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let (files, mismatched) =
            Pack { payload: bytes.into(), ..good }.verify().unwrap().into_parts();
        assert_eq!((files.len(), mismatched[0].entry), (2, EntryId(3)));
    }

    /// INT-4: a damaged table condemns the pack; a table that lies is a violation.
    #[test]
    fn a_table_must_match_its_digest_and_its_payload() {
        let good = pack(&[b"one", b"two"]);
        for at in 0..Pack::table_len(2) {
            let mut bytes = good.payload.to_vec();
            bytes[at] ^= 1;
            assert!(Pack { payload: bytes.into(), ..good.clone() }.verify().is_err(), "byte {at}");
        }
        for cut in 0..good.payload.len() {
            let payload = good.payload.slice(..cut);
            assert!(Pack { payload, ..good.clone() }.verify().is_err(), "cut at {cut}");
        }
        let longer: Vec<u8> = good.payload.iter().copied().chain([0]).collect();
        let longer = Pack { payload: longer.into(), ..good };
        assert_eq!(longer.verify().unwrap_err(), PackError::Table);
    }
}
