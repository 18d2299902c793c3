//! What is safely written, so that a transfer that was cut off goes on where it stopped.
//!
//! An append-only file of checksummed records. A chunk is recorded once its write has returned, not
//! synced: as long as the host does not reboot, the page cache keeps what was written, so every
//! record holds. A barrier says that all before it is on stable storage, and is what holds after a
//! reboot. Format and rules: `protocol-spec/05-journal.md`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::sync::{Mutex, PoisonError};

use crate::protocol::chunk::{ChunkSize, Digest};
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{FileKind, Stamp};
use crate::storage::{Left, Receipt, Token};

/// An open journal. Records can be appended by many tasks.
#[derive(Debug)]
pub struct Journal {
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    /// How many records there are.
    records: u64,
    next_file: u32,
}

/// A file's number in its journal.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct FileNumber(u32);

/// A file that an earlier run began and did not finish.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Begun {
    pub number: FileNumber,
    pub source: SourceIdentity,
    /// What tells the temporary file from another.
    pub temporary: Token,
    /// The chunks that are written, in the order in which they were.
    pub chunks: Vec<Written>,
}

impl Begun {
    /// What the sink has to know to take it up.
    pub fn left(&self) -> Left {
        let receipts = self.chunks.iter().map(|it| (it.index, it.receipt.clone())).collect();
        Left { token: self.temporary.clone(), receipts }
    }
}

/// A chunk that is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Written {
    pub index: u64,
    pub value: Digest,
    pub receipt: Receipt,
    /// A barrier says that it is on stable storage.
    pub is_synced: bool,
    /// The number of its record.
    record: u64,
}

/// What must be equal for a partial copy to be of this very source (JRN-6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SourceIdentity {
    pub size: u64,
    pub mtime: Timestamp,
    pub stamp: Stamp,
}

impl SourceIdentity {
    pub fn new(file: FileKind, mtime: Timestamp) -> Self {
        Self { size: file.size, mtime, stamp: file.stamp }
    }
}

/// What a journal is for: another one is of no use.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    pub job: [u8; 16],
    pub chunk_size: ChunkSize,
    /// This host's boot id: another one means that the page cache was lost in between. Zeros where it
    /// does not matter which host has been booted.
    pub boot: [u8; 16],
}

/// A journal that was opened, and what it tells of earlier runs.
#[derive(Debug)]
pub struct Opened {
    pub journal: Journal,
    /// By path, as the sink gave it.
    pub begun: HashMap<Vec<u8>, Begun>,
    /// Files of earlier runs that are of no use: only their temporary files are still there.
    pub stale: Vec<(Vec<u8>, Token)>,
}

impl Journal {
    /// Reads what is in the file, cuts it off after the last good record, and goes on behind it.
    ///
    /// A file that is empty, damaged at its start, or was written for another purpose is begun anew
    /// (JRN-3, JRN-7): losing a journal costs time and never correctness.
    pub fn open(mut file: File, purpose: Purpose) -> io::Result<Opened> {
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let header = read_header(&mut reader)?;
        let mut replay = Replay::default();
        let mut good = 0;
        if let Some(header) = header {
            good = HEADER_LEN as u64;
            replay.boot = header.boot;
            while let Some(len) = replay.next(&mut reader)? {
                good += len;
            }
        }
        let is_ours = header.is_some_and(|header| {
            header.job == purpose.job && header.chunk_log2 == purpose.chunk_size.log2()
        });
        drop(reader);
        let mut stale = Vec::new();
        if is_ours {
            file.set_len(good)?;
            file.seek(SeekFrom::Start(good))?;
        } else {
            stale.extend(replay.begun.drain().map(|(_, (path, begun))| (path, begun.temporary)));
            replay = Replay { boot: purpose.boot, ..Replay::default() };
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&encode_header(purpose))?;
        }
        let writer = Writer { file, records: replay.records, next_file: replay.next_file };
        let journal = Self { writer: Mutex::new(writer) };
        if replay.boot != purpose.boot {
            replay.forget_unsynced();
            journal.append(TYPE_BOOT, &purpose.boot)?;
        }
        replay.note_synced();
        let begun = replay.begun.into_values().collect();
        Ok(Opened { journal, begun, stale })
    }

    /// Records that a file's temporary file was created.
    pub fn begin(
        &self,
        path: &[u8],
        source: &SourceIdentity,
        temporary: &Token,
    ) -> io::Result<FileNumber> {
        let mut writer = self.lock();
        let number = writer.next_file;
        writer.next_file = number.wrapping_add(1);
        let mut body = Vec::with_capacity(64 + path.len());
        body.extend(number.to_le_bytes());
        body.extend(source.size.to_le_bytes());
        put_time(&mut body, source.mtime);
        body.extend(source.stamp.inode.to_le_bytes());
        put_time(&mut body, source.stamp.ctime);
        let kind = if let Some(inode) = temporary.number() {
            body.extend(inode.to_le_bytes());
            TYPE_BEGIN
        } else {
            let token = temporary.as_bytes();
            body.extend(u32::try_from(token.len()).unwrap_or(u32::MAX).to_le_bytes());
            body.extend(token);
            TYPE_UPLOAD
        };
        body.extend(u32::try_from(path.len()).unwrap_or(u32::MAX).to_le_bytes());
        body.extend(path);
        if body.len() > MAX_BODY {
            // A path this long cannot be resumed; the file is transferred all the same.
            return Ok(FileNumber(number));
        }
        writer.append(kind, &body)?;
        Ok(FileNumber(number))
    }

    /// Records a chunk whose write has returned (JRN-4). One that was copied without being hashed has
    /// the value [`UNHASHED`].
    pub fn chunk(
        &self,
        file: FileNumber,
        index: u64,
        value: Digest,
        receipt: &Receipt,
    ) -> io::Result<()> {
        let mut body = Vec::with_capacity(44 + receipt.as_bytes().len());
        body.extend(file.0.to_le_bytes());
        body.extend(index.to_le_bytes());
        body.extend(value.0);
        body.extend(receipt.as_bytes());
        self.append(if receipt.is_empty() { TYPE_CHUNK } else { TYPE_PART }, &body)
    }

    /// Records that a file is committed, or thrown away.
    pub fn end(&self, file: FileNumber) -> io::Result<()> {
        self.append(TYPE_END, &file.0.to_le_bytes())
    }

    /// How many records there are: to be asked before the data is synced, and given to
    /// [`Self::barrier`] after it (JRN-5).
    pub fn records(&self) -> u64 {
        self.lock().records
    }

    /// Records that the data of all chunks recorded before number `records` is on stable storage,
    /// and waits until the journal itself is.
    pub fn barrier(&self, records: u64) -> io::Result<()> {
        self.append(TYPE_BARRIER, &records.to_le_bytes())?;
        let file = self.lock().file.try_clone()?;
        file.sync_data()
    }

    fn append(&self, kind: u8, body: &[u8]) -> io::Result<()> {
        self.lock().append(kind, body)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Writer> {
        // A panic while a record was written leaves at worst a bad record, at which replay stops.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn append(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let mut record = Vec::with_capacity(body.len() + 9);
        record.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        record.push(kind);
        record.extend(body);
        record.extend(checksum(self.records, kind, body).to_le_bytes());
        let at = self.file.stream_position()?;
        if let Err(cause) = self.file.write_all(&record) {
            // Half a record would hide every later one from the next run.
            self.file.set_len(at)?;
            self.file.seek(SeekFrom::Start(at))?;
            return Err(cause);
        }
        self.records += 1;
        Ok(())
    }
}

/// What the records that were read so far come to.
#[derive(Debug, Default)]
struct Replay {
    records: u64,
    next_file: u32,
    /// The boot under which the last records were written.
    boot: [u8; 16],
    /// Chunks recorded before this number are on stable storage.
    durable: u64,
    begun: HashMap<u32, (Vec<u8>, Begun)>,
}

impl Replay {
    /// Reads one record and returns its length. `None` at the end, or at the first bad record.
    fn next(&mut self, reader: &mut impl Read) -> io::Result<Option<u64>> {
        let mut prefix = [0; 5];
        if !fill(reader, &mut prefix)? {
            return Ok(None);
        }
        let [l0, l1, l2, l3, kind] = prefix;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if !(1..=MAX_BODY).contains(&len) {
            return Ok(None);
        }
        let mut body = vec![0; len];
        let mut check = [0; 4];
        if !fill(reader, &mut body)? || !fill(reader, &mut check)? {
            return Ok(None);
        }
        if u32::from_le_bytes(check) != checksum(self.records, kind, &body)
            || self.apply(kind, &body).is_none()
        {
            return Ok(None);
        }
        self.records += 1;
        Ok(Some(len as u64 + 9))
    }

    fn apply(&mut self, kind: u8, body: &[u8]) -> Option<()> {
        let mut fields = Fields(body);
        match kind {
            TYPE_BEGIN | TYPE_UPLOAD => {
                let number = fields.u32()?;
                let source = SourceIdentity {
                    size: fields.u64()?,
                    mtime: fields.time()?,
                    stamp: Stamp { inode: fields.u64()?, ctime: fields.time()? },
                };
                let temporary = if kind == TYPE_BEGIN {
                    fields.u64()?.into()
                } else {
                    let len = fields.u32()? as usize;
                    Token::new(fields.next(len)?)?
                };
                let len = fields.u32()? as usize;
                let path = fields.rest(len)?.to_vec();
                // A path begun again had its earlier temporary file replaced.
                self.begun.retain(|_, (other, _)| *other != path);
                let begun =
                    Begun { number: FileNumber(number), source, temporary, chunks: Vec::new() };
                self.begun.insert(number, (path, begun));
                self.next_file = self.next_file.max(number.wrapping_add(1));
            }
            TYPE_CHUNK | TYPE_PART => {
                let number = fields.u32()?;
                let index = fields.u64()?;
                let value = Digest(fields.array()?);
                let receipt = Receipt::new(fields.0)?;
                if receipt.is_empty() != (kind == TYPE_CHUNK) {
                    return None;
                }
                if let Some((_, begun)) = self.begun.get_mut(&number) {
                    let record = self.records;
                    begun.chunks.push(Written { index, value, receipt, is_synced: false, record });
                }
            }
            TYPE_BARRIER => {
                let durable = fields.u64()?;
                fields.rest(0)?;
                self.durable = self.durable.max(durable.min(self.records));
            }
            TYPE_END => {
                let number = fields.u32()?;
                fields.rest(0)?;
                self.begun.remove(&number);
            }
            TYPE_BOOT => {
                let boot = fields.array()?;
                fields.rest(0)?;
                self.forget_unsynced();
                self.boot = boot;
            }
            _ => return None,
        }
        Some(())
    }

    /// After a reboot: what was not behind a barrier may never have reached the disk (JRN-5).
    fn forget_unsynced(&mut self) {
        for (_, begun) in self.begun.values_mut() {
            let kept = begun.chunks.partition_point(|written| written.record < self.durable);
            begun.chunks.truncate(kept);
        }
    }

    fn note_synced(&mut self) {
        for (_, begun) in self.begun.values_mut() {
            for written in &mut begun.chunks {
                written.is_synced = written.record < self.durable;
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Header {
    chunk_log2: u8,
    boot: [u8; 16],
    job: [u8; 16],
}

fn encode_header(purpose: Purpose) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[10] = purpose.chunk_size.log2();
    out[16..32].copy_from_slice(&purpose.boot);
    out[32..48].copy_from_slice(&purpose.job);
    let check = crc32c(&[&out[..60]]);
    out[60..].copy_from_slice(&check.to_le_bytes());
    out
}

fn read_header(reader: &mut impl Read) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_LEN];
    if !fill(reader, &mut bytes)? {
        return Ok(None);
    }
    Ok(parse_header(&bytes))
}

fn parse_header(bytes: &[u8; HEADER_LEN]) -> Option<Header> {
    let mut fields = Fields(bytes);
    let magic: [u8; 8] = fields.array()?;
    let version = u16::from_le_bytes(fields.array()?);
    let [chunk_log2] = fields.array()?;
    fields.array::<5>()?;
    let (boot, job) = (fields.array()?, fields.array()?);
    fields.array::<12>()?;
    let check = fields.u32()?;
    let is_good = magic == *MAGIC && version == VERSION && check == crc32c(&[&bytes[..60]]);
    is_good.then_some(Header { chunk_log2, boot, job })
}

/// Reads a body's fields one after the other; `None` where it is too short.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*front)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Option<Timestamp> {
        let seconds = i64::from_le_bytes(self.array()?);
        Timestamp::new(seconds, self.u32()?)
    }

    fn next(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    /// What is left, if it is exactly `len` bytes.
    fn rest(&mut self, len: usize) -> Option<&'a [u8]> {
        (self.0.len() == len).then_some(self.0)
    }
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend(time.seconds.to_le_bytes());
    out.extend(time.nanoseconds().to_le_bytes());
}

/// Fills the buffer; `false` if the file ends before.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Covers the record's number, so that a record cannot be taken for another one.
fn checksum(number: u64, kind: u8, body: &[u8]) -> u32 {
    crc32c(&[&number.to_le_bytes(), &[kind], body])
}

fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    // The algorithm has 32 bits.
    u32::try_from(digest.finalize()).unwrap_or_default()
}

/// Stands for the value of a chunk that nobody has hashed: it can be gone on from only by who copies
/// in the same way.
pub const UNHASHED: Digest = Digest([0; 32]);

const MAGIC: &[u8; 8] = b"FSJRNL1\n";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 64;

/// The longest body of a record, in bytes: room for a path of Linux's `PATH_MAX` and more.
const MAX_BODY: usize = 8192;

const TYPE_BEGIN: u8 = 1;
const TYPE_CHUNK: u8 = 2;
const TYPE_BARRIER: u8 = 3;
const TYPE_END: u8 = 4;
const TYPE_BOOT: u8 = 5;
const TYPE_UPLOAD: u8 = 6;
const TYPE_PART: u8 = 7;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PURPOSE: Purpose =
        Purpose { job: [1; 16], chunk_size: ChunkSize::DEFAULT, boot: [2; 16] };

    fn identity(size: u64) -> SourceIdentity {
        let mtime = Timestamp::new(-5, 7).unwrap();
        SourceIdentity { size, mtime, stamp: Stamp { inode: 9, ctime: mtime } }
    }

    fn value(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn values(begun: &Begun) -> Vec<(u64, Digest)> {
        begun.chunks.iter().map(|written| (written.index, written.value)).collect()
    }

    fn open(file: &File, purpose: Purpose) -> Opened {
        Journal::open(file.try_clone().unwrap(), purpose).unwrap()
    }

    /// A journal with two files: `a` with chunks 0, 1 | barrier | 2, and `b`, which has ended.
    fn written() -> File {
        let file = tempfile::tempfile().unwrap();
        let journal = open(&file, PURPOSE).journal;
        let a = journal.begin(b"dir/a", &identity(30), &100.into()).unwrap();
        let b = journal.begin(b"b\n\xff", &identity(40), &101.into()).unwrap();
        journal.chunk(a, 0, value(0), &Receipt::default()).unwrap();
        journal.chunk(a, 1, value(1), &Receipt::default()).unwrap();
        journal.chunk(b, 0, value(9), &Receipt::default()).unwrap();
        journal.barrier(journal.records()).unwrap();
        journal.chunk(a, 2, value(2), &Receipt::default()).unwrap();
        journal.end(b).unwrap();
        file
    }

    /// JRN-1, JRN-5: the page cache lived on, so every record holds.
    #[test]
    fn under_the_same_boot_every_record_counts() {
        let opened = open(&written(), PURPOSE);
        let a = &opened.begun[&b"dir/a"[..]];
        assert_eq!(values(a), [(0, value(0)), (1, value(1)), (2, value(2))]);
        assert_eq!((a.source, a.temporary.number()), (identity(30), Some(100)));
        assert_eq!(opened.begun.len(), 1);
        assert!(opened.stale.is_empty());
    }

    /// JRN-5: and what a reboot made doubtful stays so, even behind a later barrier.
    #[test]
    fn after_a_reboot_only_what_a_barrier_covers_counts() {
        let file = written();
        let rebooted = Purpose { boot: [3; 16], ..PURPOSE };
        let opened = open(&file, rebooted);
        assert_eq!(values(&opened.begun[&b"dir/a"[..]]), [(0, value(0)), (1, value(1))]);
        opened.journal.barrier(opened.journal.records()).unwrap();
        let again = open(&file, rebooted);
        assert_eq!(values(&again.begun[&b"dir/a"[..]]), [(0, value(0)), (1, value(1))]);
        let number = again.begun[&b"dir/a"[..]].number;
        again.journal.chunk(number, 2, value(7), &Receipt::default()).unwrap();
        assert_eq!(values(&open(&file, rebooted).begun[&b"dir/a"[..]])[2], (2, value(7)));
    }

    /// JRN-3, T36: cut anywhere, a journal gives a prefix, and can be written on.
    #[test]
    fn a_journal_cut_at_any_byte_gives_what_came_before() {
        let whole = read_all(&written());
        for cut in 0..=whole.len() {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&whole[..cut]).unwrap();
            let opened = open(&file, PURPOSE);
            let chunks = opened.begun.get(&b"dir/a"[..]).map_or(0, |a| a.chunks.len());
            assert!(chunks <= 3, "cut at {cut}");
            let number = opened.journal.begin(b"new", &identity(1), &5.into()).unwrap();
            opened.journal.chunk(number, 0, value(5), &Receipt::default()).unwrap();
            let again = open(&file, PURPOSE);
            assert_eq!(values(&again.begun[&b"new"[..]]), [(0, value(5))], "cut at {cut}");
            assert_eq!(again.begun.get(&b"dir/a"[..]).map_or(0, |a| a.chunks.len()), chunks);
        }
    }

    /// The bytes of one vector of `protocol-spec/vectors/journal.hex`, or of all.
    fn vector(name: Option<&str>) -> Vec<u8> {
        let text = include_str!("../../protocol-spec/vectors/journal.hex");
        let mut current = "";
        let mut digits = String::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.strip_prefix('@') {
                Some(label) => current = label,
                None if name.is_none_or(|name| name == current) => digits.push_str(line.trim()),
                None => {}
            }
        }
        let pairs = digits.as_bytes().as_chunks::<2>().0;
        let byte =
            |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        pairs.iter().map(byte).collect()
    }

    /// JRN-1, JRN-10: the bytes of the specification's example, and nothing of them moves when a
    /// later run goes on behind them.
    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let purpose = Purpose { job: [0x33; 16], chunk_size: ChunkSize::MIN, boot: [0xb0; 16] };
        let mut file = tempfile::tempfile().unwrap();
        let journal = open(&file, purpose).journal;
        assert_eq!(read_all(&file), vector(Some("header")));
        journal.lock().next_file = 5;
        let mtime = Timestamp::new(-1, 999_999_999).unwrap();
        let ctime = Timestamp::new(1_700_000_000, 250).unwrap();
        let source =
            SourceIdentity { size: 131_073, mtime, stamp: Stamp { inode: 1 << 32, ctime } };
        let chunk = |record: &str| {
            let bytes = vector(Some(record));
            Digest(bytes[17..49].try_into().unwrap())
        };
        let number = journal.begin(b"run7/data", &source, &4711.into()).unwrap();
        journal.chunk(number, 0, chunk("chunk"), &Receipt::default()).unwrap();
        journal.barrier(journal.records()).unwrap();
        journal.append(TYPE_BOOT, &[0xb1; 16]).unwrap();
        journal.chunk(number, 2, chunk("chunk after boot"), &Receipt::default()).unwrap();
        let so_far = read_all(&file);
        let rebooted = Purpose { boot: [0xb1; 16], ..purpose };
        let opened = open(&file, rebooted);
        let found = &opened.begun[&b"run7/data"[..]];
        assert_eq!((found.source, found.temporary.number()), (source, Some(4711)));
        assert_eq!(values(found), [(0, chunk("chunk")), (2, chunk("chunk after boot"))]);
        assert_eq!(read_all(&file), so_far);
        opened.journal.end(number).unwrap();
        opened.journal.lock().next_file = 6;
        let token = Token::new(b"upload-12").unwrap();
        let upload = opened.journal.begin(b"key", &source, &token).unwrap();
        let receipt = Receipt::new(b"etag").unwrap();
        opened.journal.chunk(upload, 1, chunk("chunk"), &receipt).unwrap();
        assert_eq!(read_all(&file), vector(None));
        file.seek(SeekFrom::Start(0)).unwrap();
        file.set_len(so_far.len() as u64).unwrap();
        let elsewhere = Purpose { boot: [0xb2; 16], ..purpose };
        assert_eq!(values(&open(&file, elsewhere).begun[&b"run7/data"[..]]), [(0, chunk("chunk"))]);
    }

    /// JRN-12: what a place without an agent said of an upload and its parts comes back as it was, and
    /// what a barrier covers is told.
    #[test]
    fn an_upload_comes_back_with_its_receipts() {
        let file = tempfile::tempfile().unwrap();
        let journal = open(&file, PURPOSE).journal;
        let token = Token::new(&[b'u'; 300]).unwrap();
        let receipt = |n: u8| Receipt::new(&[n, 0, n]).unwrap();
        let number = journal.begin(b"key", &identity(3), &token).unwrap();
        journal.chunk(number, 1, value(1), &receipt(1)).unwrap();
        journal.barrier(journal.records()).unwrap();
        journal.chunk(number, 0, value(0), &receipt(9)).unwrap();
        let opened = open(&file, PURPOSE);
        let begun = &opened.begun[&b"key"[..]];
        assert_eq!(begun.left(), Left { token, receipts: vec![(1, receipt(1)), (0, receipt(9))] });
        assert_eq!(values(begun), [(1, value(1)), (0, value(0))]);
        assert_eq!(begun.chunks.iter().map(|it| it.is_synced).collect::<Vec<_>>(), [true, false]);
    }

    /// JRN-7.
    #[test]
    fn a_journal_of_another_purpose_is_begun_anew_and_its_leftovers_named() {
        for other in
            [Purpose { job: [8; 16], ..PURPOSE }, Purpose { chunk_size: ChunkSize::MIN, ..PURPOSE }]
        {
            let file = written();
            let opened = open(&file, other);
            assert!(opened.begun.is_empty());
            assert!(opened.stale.contains(&(b"dir/a".to_vec(), 100.into())));
            assert!(open(&file, other).stale.is_empty());
        }
    }

    proptest! {
        /// JRN-3, T37: one wrong bit costs records, and never makes one up.
        #[test]
        fn a_flipped_bit_never_makes_up_a_chunk(at in 0.0..1.0_f64, bit in 0_u8..8) {
            let mut bytes = read_all(&written());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let index = (at * bytes.len() as f64) as usize;
            bytes[index] ^= 1 << bit;
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            if let Some(a) = open(&file, PURPOSE).begun.get(&b"dir/a"[..]) {
                for (index, found) in values(a) {
                    prop_assert_eq!(found, value(u8::try_from(index).unwrap()));
                }
            }
        }

        #[test]
        fn any_file_can_be_opened(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            open(&file, PURPOSE);
        }
    }

    fn read_all(mut file: &File) -> Vec<u8> {
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }
}
