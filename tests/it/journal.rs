//! Another reading of `protocol-spec/05-journal.md`, to look at and to change what a killed run left.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

pub const BEGIN: u8 = 1;
pub const CHUNK: u8 = 2;
pub const BARRIER: u8 = 3;
pub const END: u8 = 4;

/// The length of a CHUNK record.
pub const CHUNK_LEN: u64 = 53;

/// A journal on disk.
pub struct Journal {
    pub path: PathBuf,
    pub header: [u8; 64],
    /// Type and body of each record, up to the first that is not whole.
    pub records: Vec<(u8, Vec<u8>)>,
    /// How long header and records are.
    pub len: u64,
}

impl Journal {
    /// The only journal below a destination.
    pub fn find(root: &Path) -> Option<PathBuf> {
        let job = fs::read_dir(root.join(".fastsync")).ok()?.next()?.ok()?;
        Some(job.path().join("journal")).filter(|path| path.exists())
    }

    /// Reads the journal of a destination that nobody writes to any more: waits for the agent that
    /// outlived its client.
    pub fn of(root: &Path) -> Self {
        let path = Self::find(root).expect("a journal");
        Self::wait_for_writer(&path);
        Self::read(&path)
    }

    /// Waits until nobody writes to it any more. It may be gone then.
    pub fn wait_for_writer(path: &Path) {
        if let Ok(file) = File::open(path) {
            file.lock().unwrap();
        }
    }

    pub fn read(path: &Path) -> Self {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        let header: [u8; 64] = bytes[..64].try_into().unwrap();
        assert_eq!(&header[..8], b"FSJRNL1\n");
        assert_eq!((u16_at(&header, 8), header[11]), (1, 0));
        assert!(header[12..16] == [0; 4] && header[48..60] == [0; 12]);
        assert_eq!(u32_at(&header, 60), crc32c(&header[..60]));
        let mut journal = Self { path: path.to_owned(), header, records: Vec::new(), len: 64 };
        while let Some(len) = journal.take(&bytes[usize::try_from(journal.len).unwrap()..]) {
            journal.len += len;
        }
        journal
    }

    fn take(&mut self, rest: &[u8]) -> Option<u64> {
        let len = u32_at(rest.get(..4)?, 0) as usize;
        let (body, code) = (rest.get(5..5 + len)?, rest.get(5 + len..9 + len)?);
        if u32_at(code, 0) != self.code(rest[4], body) {
            return None;
        }
        self.records.push((rest[4], body.to_vec()));
        Some(9 + len as u64)
    }

    fn code(&self, kind: u8, body: &[u8]) -> u32 {
        crc32c(&[&(self.records.len() as u64).to_le_bytes(), &[kind][..], body].concat())
    }

    /// Appends a record.
    pub fn append(&mut self, kind: u8, body: &[u8]) {
        let len = u32::try_from(body.len()).unwrap().to_le_bytes();
        let code = self.code(kind, body).to_le_bytes();
        let record = [&len[..], &[kind], body, &code].concat();
        let mut file = OpenOptions::new().append(true).open(&self.path).unwrap();
        file.write_all(&record).unwrap();
        self.records.push((kind, body.to_vec()));
    }

    /// Makes it a journal of an earlier boot of this host.
    pub fn set_boot(&mut self, boot: [u8; 16]) {
        self.header[16..32].copy_from_slice(&boot);
        let code = crc32c(&self.header[..60]).to_le_bytes();
        self.header[60..].copy_from_slice(&code);
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        file.write_all_at(&self.header, 0).unwrap();
    }

    pub fn job(&self) -> [u8; 16] {
        self.header[32..48].try_into().unwrap()
    }

    fn bodies(&self, kind: u8) -> impl Iterator<Item = &[u8]> {
        self.records.iter().filter(move |(found, _)| *found == kind).map(|(_, body)| &body[..])
    }

    /// Number and path of each file that was begun.
    pub fn begun(&self) -> Vec<(u32, &[u8])> {
        self.bodies(BEGIN).map(|body| (u32_at(body, 0), &body[56..])).collect()
    }

    /// Index and value of each chunk, of whatever file.
    pub fn chunks(&self) -> Vec<(u64, [u8; 32])> {
        self.bodies(CHUNK).map(|body| (u64_at(body, 4), body[12..].try_into().unwrap())).collect()
    }

    /// The files that were put in place, discarded or restarted.
    pub fn ended(&self) -> Vec<u32> {
        self.bodies(END).map(|body| u32_at(body, 0)).collect()
    }

    /// The temporary name of this job for a final one, as the program chooses it.
    pub fn temporary(&self, name: &Path) -> String {
        let hash = blake3::hash(name.as_os_str().as_bytes()).to_hex();
        let [a, b, c, d, ..] = self.job();
        format!(".fastsync-{a:02x}{b:02x}{c:02x}{d:02x}-{}", &hash[..16])
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let code = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(code).unwrap()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
