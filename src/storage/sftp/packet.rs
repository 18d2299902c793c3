//! Packets of the SSH file transfer protocol, version 3 (draft-ietf-secsh-filexfer-02), and of
//! OpenSSH's extensions to it (its file PROTOCOL).
//!
//! Whatever comes from a server is checked here, and nothing is allocated by a length that was not.

use bytes::{Buf as _, Bytes};

use crate::protocol::manifest::Timestamp;
use crate::protocol::message::Mode;
use crate::storage::remote::{Thing, ThingKind};

/// The longest packet that is taken, in bytes: OpenSSH's own limit is 256 KiB.
pub const MAX_PACKET_LEN: usize = 257 << 10;

/// A request without its number, which is given to it when it is sent.
#[derive(Clone, Debug)]
pub struct Request {
    kind: u8,
    /// All fields but the data.
    fields: Vec<u8>,
    /// The data of a write, which follows the fields.
    pub data: Vec<Bytes>,
}

impl Request {
    fn new(kind: u8) -> Self {
        Self { kind, fields: Vec::new(), data: Vec::new() }
    }

    fn u32(mut self, value: u32) -> Self {
        self.fields.extend(value.to_be_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.fields.extend(value.to_be_bytes());
        self
    }

    fn string(mut self, value: &[u8]) -> Self {
        self.fields.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.fields.extend(value);
        self
    }

    fn attributes(self, attributes: &Attributes) -> Self {
        let flags = if attributes.size.is_some() { HAS_SIZE } else { 0 }
            | if attributes.permissions.is_some() { HAS_PERMISSIONS } else { 0 }
            | if attributes.times.is_some() { HAS_TIMES } else { 0 };
        let mut request = self.u32(flags);
        if let Some(size) = attributes.size {
            request = request.u64(size);
        }
        if let Some(permissions) = attributes.permissions {
            request = request.u32(permissions);
        }
        if let Some((accessed, modified)) = attributes.times {
            request = request.u32(accessed).u32(modified);
        }
        request
    }

    pub fn open(path: &[u8], flags: u32, attributes: &Attributes) -> Self {
        Self::new(OPEN).string(path).u32(flags).attributes(attributes)
    }

    pub fn close(handle: &[u8]) -> Self {
        Self::new(CLOSE).string(handle)
    }

    pub fn read(handle: &[u8], offset: u64, len: u32) -> Self {
        Self::new(READ).string(handle).u64(offset).u32(len)
    }

    pub fn write(handle: &[u8], offset: u64, data: Vec<Bytes>) -> Self {
        let len = data.iter().map(Bytes::len).sum::<usize>();
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        Self { data, ..Self::new(WRITE).string(handle).u64(offset).u32(len) }
    }

    pub fn lstat(path: &[u8]) -> Self {
        Self::new(LSTAT).string(path)
    }

    pub fn fstat(handle: &[u8]) -> Self {
        Self::new(FSTAT).string(handle)
    }

    pub fn setstat(path: &[u8], attributes: &Attributes) -> Self {
        Self::new(SETSTAT).string(path).attributes(attributes)
    }

    pub fn fsetstat(handle: &[u8], attributes: &Attributes) -> Self {
        Self::new(FSETSTAT).string(handle).attributes(attributes)
    }

    pub fn opendir(path: &[u8]) -> Self {
        Self::new(OPENDIR).string(path)
    }

    pub fn readdir(handle: &[u8]) -> Self {
        Self::new(READDIR).string(handle)
    }

    pub fn remove(path: &[u8]) -> Self {
        Self::new(REMOVE).string(path)
    }

    pub fn mkdir(path: &[u8], attributes: &Attributes) -> Self {
        Self::new(MKDIR).string(path).attributes(attributes)
    }

    pub fn rmdir(path: &[u8]) -> Self {
        Self::new(RMDIR).string(path)
    }

    pub fn realpath(path: &[u8]) -> Self {
        Self::new(REALPATH).string(path)
    }

    pub fn rename(from: &[u8], to: &[u8]) -> Self {
        Self::new(RENAME).string(from).string(to)
    }

    pub fn readlink(path: &[u8]) -> Self {
        Self::new(READLINK).string(path)
    }

    /// The target comes first, as OpenSSH has it and not the draft.
    pub fn symlink(target: &[u8], path: &[u8]) -> Self {
        Self::new(SYMLINK).string(target).string(path)
    }

    pub fn posix_rename(from: &[u8], to: &[u8]) -> Self {
        Self::new(EXTENDED).string(POSIX_RENAME).string(from).string(to)
    }

    pub fn fsync(handle: &[u8]) -> Self {
        Self::new(EXTENDED).string(FSYNC).string(handle)
    }

    pub fn statvfs(path: &[u8]) -> Self {
        Self::new(EXTENDED).string(STATVFS).string(path)
    }

    pub fn lsetstat(path: &[u8], attributes: &Attributes) -> Self {
        Self::new(EXTENDED).string(LSETSTAT).string(path).attributes(attributes)
    }

    /// Asks for the SHA-256 of each block of a part of a file. A length of 0 would be all of the rest.
    pub fn check_file(path: &[u8], offset: u64, len: u64, block_len: u32) -> Self {
        let request = Self::new(EXTENDED).string(CHECK_FILE_NAME).string(path).string(SHA256);
        request.u64(offset).u64(len).u32(block_len)
    }

    pub fn limits() -> Self {
        Self::new(EXTENDED).string(LIMITS)
    }

    /// All of the packet that is before its data.
    pub fn head(&self, number: u32) -> Vec<u8> {
        let len = 5 + self.fields.len() + self.data.iter().map(Bytes::len).sum::<usize>();
        let mut head = Vec::with_capacity(9 + self.fields.len());
        head.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        head.push(self.kind);
        head.extend(number.to_be_bytes());
        head.extend(&self.fields);
        head
    }
}

/// The first packet of a client.
pub fn init() -> [u8; 9] {
    [0, 0, 0, 5, INIT, 0, 0, 0, VERSION_3]
}

/// What a server says of itself first; `None` if that is not understood.
pub fn version(packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut fields = Fields(Bytes::copy_from_slice(packet));
    (fields.u8()? == VERSION).then_some(())?;
    (fields.u32()? >= u32::from(VERSION_3)).then_some(())?;
    let mut extensions = Vec::new();
    while !fields.0.is_empty() {
        let name = fields.string()?;
        fields.string()?;
        extensions.push(name.to_vec());
    }
    Some(extensions)
}

/// An answer to a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    Status { code: u32, text: Vec<u8> },
    Handle(Bytes),
    Data(Bytes),
    Names(Vec<(Bytes, Attributes)>),
    Attributes(Attributes),
    Extended(Bytes),
}

impl Answer {
    /// Reads a packet without its length; `None` if it is no answer. The number is that of the request.
    pub fn parse(packet: Bytes) -> Option<(u32, Self)> {
        let mut fields = Fields(packet);
        let kind = fields.u8()?;
        let number = fields.u32()?;
        let answer = match kind {
            STATUS => {
                let code = fields.u32()?;
                // Some servers leave the text away.
                let text = fields.string().unwrap_or_default().to_vec();
                Self::Status { code, text }
            }
            HANDLE => Self::Handle(fields.string().filter(|it| it.len() <= MAX_HANDLE_LEN)?),
            DATA => Self::Data(fields.string()?),
            NAME => {
                let count = fields.u32()? as usize;
                let mut names = Vec::with_capacity(count.min(256));
                for _ in 0..count {
                    let name = fields.string()?;
                    // What `ls -l` would say is of no use to a program.
                    fields.string()?;
                    names.push((name, fields.attributes()?));
                }
                Self::Names(names)
            }
            ATTRS => Self::Attributes(fields.attributes()?),
            EXTENDED_REPLY => Self::Extended(fields.0),
            _ => return None,
        };
        Some((number, answer))
    }
}

/// What a server says of a file, or is told.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attributes {
    /// In bytes.
    pub size: Option<u64>,
    /// The numbers of user and group.
    pub owners: Option<(u32, u32)>,
    /// The type of the file, and its mode, as stat(2) has them.
    pub permissions: Option<u32>,
    /// When it was read and written last, in seconds since 1970.
    pub times: Option<(u32, u32)>,
}

impl Attributes {
    /// What has these attributes; where the server does not tell a type, it is a file.
    pub fn to_thing(self) -> Thing {
        let kind = match self.permissions.map(|it| it & TYPE_MASK) {
            Some(TYPE_DIRECTORY) => ThingKind::Directory,
            Some(TYPE_SYMLINK) => ThingKind::Symlink,
            None | Some(0 | TYPE_FILE) => ThingKind::File,
            Some(_) => ThingKind::Other,
        };
        let mtime = self.times.and_then(|(_, it)| Timestamp::new(it.into(), 0));
        Thing {
            kind,
            size: if kind == ThingKind::File { self.size.unwrap_or_default() } else { 0 },
            mtime,
            modified: mtime,
            mode: self.permissions.map(Mode::from_raw),
            owners: self.owners,
            tag: None,
            root: None,
            target: None,
        }
    }
}

/// What a file system has room for, in bytes; `None` if that is no such answer.
pub fn available(statvfs: &[u8]) -> Option<u64> {
    let mut fields = Fields(Bytes::copy_from_slice(statvfs));
    let _block = fields.u64()?;
    let fragment = fields.u64()?;
    let all = fields.u64()?;
    let _free = fields.u64()?;
    let available = fields.u64()?;
    // Some file systems do not know.
    (all > 0).then(|| available.saturating_mul(fragment))
}

/// What a server takes and gives at a time: the longest read and write, in bytes, and how many handles; 0 is
/// no limit.
pub fn limits(answer: &[u8]) -> Option<(u64, u64, u64)> {
    let mut fields = Fields(Bytes::copy_from_slice(answer));
    let _packet = fields.u64()?;
    Some((fields.u64()?, fields.u64()?, fields.u64().unwrap_or_default()))
}

/// The hashes in an answer to [`Request::check_file`], one after the other; `None` if that is no such answer.
pub fn hashes(answer: Bytes) -> Option<Bytes> {
    let mut fields = Fields(answer);
    let mut name = fields.string()?;
    // Some servers repeat what was asked for, and `ProFTPD` does not.
    if &name[..] == CHECK_FILE {
        name = fields.string()?;
    }
    let is_whole = &name[..] == SHA256 && fields.0.len().is_multiple_of(HASH_LEN);
    is_whole.then_some(fields.0)
}

/// Takes fields from the front of a packet; `None` where it is too short.
struct Fields(Bytes);

impl Fields {
    fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64().ok()
    }

    fn string(&mut self) -> Option<Bytes> {
        let len = self.u32()? as usize;
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    fn attributes(&mut self) -> Option<Attributes> {
        let flags = self.u32()?;
        let mut attributes = Attributes::default();
        if flags & HAS_SIZE != 0 {
            attributes.size = Some(self.u64()?);
        }
        if flags & HAS_OWNERS != 0 {
            attributes.owners = Some((self.u32()?, self.u32()?));
        }
        if flags & HAS_PERMISSIONS != 0 {
            attributes.permissions = Some(self.u32()?);
        }
        if flags & HAS_TIMES != 0 {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        if flags & HAS_EXTENDED != 0 {
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Some(attributes)
    }
}

pub const POSIX_RENAME: &[u8] = b"posix-rename@openssh.com";
pub const FSYNC: &[u8] = b"fsync@openssh.com";
pub const STATVFS: &[u8] = b"statvfs@openssh.com";
pub const LSETSTAT: &[u8] = b"lsetstat@openssh.com";
pub const LIMITS: &[u8] = b"limits@openssh.com";

/// Names of draft-ietf-secsh-filexfer-extensions-00, section 3.
const CHECK_FILE: &[u8] = b"check-file";
const CHECK_FILE_NAME: &[u8] = b"check-file-name";
const SHA256: &[u8] = b"sha256";

/// The length of a SHA-256, in bytes.
pub const HASH_LEN: usize = 32;

/// Flags of [`Request::open`].
pub const FOR_READING: u32 = 1;
pub const FOR_WRITING: u32 = 2;
pub const CREATE: u32 = 8;
pub const EXCLUSIVE: u32 = 32;

/// Codes of [`Answer::Status`].
pub const OK: u32 = 0;
pub const EOF: u32 = 1;
pub const NO_SUCH_FILE: u32 = 2;
pub const PERMISSION_DENIED: u32 = 3;
pub const UNSUPPORTED: u32 = 8;

/// The longest handle that the draft allows, in bytes.
const MAX_HANDLE_LEN: usize = 256;

const VERSION_3: u8 = 3;
const HAS_SIZE: u32 = 1;
const HAS_OWNERS: u32 = 2;
const HAS_PERMISSIONS: u32 = 4;
const HAS_TIMES: u32 = 8;
const HAS_EXTENDED: u32 = 1 << 31;

const TYPE_MASK: u32 = 0o170_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_SYMLINK: u32 = 0o120_000;

const INIT: u8 = 1;
const VERSION: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const FSTAT: u8 = 8;
const SETSTAT: u8 = 9;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const REALPATH: u8 = 16;
const RENAME: u8 = 18;
const READLINK: u8 = 19;
const SYMLINK: u8 = 20;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED: u8 = 200;
const EXTENDED_REPLY: u8 = 201;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(kind: u8, number: u32, rest: &[u8]) -> Bytes {
        [&[kind][..], &number.to_be_bytes(), rest].concat().into()
    }

    /// Sections 6.3 and 6.4 of the draft.
    #[test]
    fn requests_are_laid_out_as_the_draft_says() {
        let attributes = Attributes { permissions: Some(0o600), ..Attributes::default() };
        let open = Request::open(b"/a", FOR_WRITING | CREATE, &attributes).head(7);
        let wanted = [
            &[0, 0, 0, 23, OPEN, 0, 0, 0, 7][..],
            &[0, 0, 0, 2, b'/', b'a', 0, 0, 0, 10],
            &[0, 0, 0, 4, 0, 0, 1, 0x80],
        ];
        assert_eq!(open, wanted.concat());
        let data = vec![Bytes::from_static(b"da"), Bytes::from_static(b"ta")];
        let write = Request::write(b"h", 258, data).head(1);
        let wanted = [
            &[0, 0, 0, 26, WRITE, 0, 0, 0, 1][..],
            &[0, 0, 0, 1, b'h', 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 4],
        ];
        assert_eq!(write, wanted.concat());
    }

    #[test]
    fn answers_are_read() {
        let status = packet(STATUS, 5, b"\0\0\0\x02\0\0\0\x04gone\0\0\0\0");
        let wanted = Answer::Status { code: NO_SUCH_FILE, text: b"gone".to_vec() };
        assert_eq!(Answer::parse(status), Some((5, wanted)));
        let attributes =
            b"\0\0\0\x0f\0\0\0\0\0\0\0\x09\0\0\0\x01\0\0\0\x02\0\0\x81\xa4\0\0\0\x03\0\0\0\x04";
        let name = [&b"\0\0\0\x01\0\0\0\x01f\0\0\0\x01l"[..], attributes].concat();
        let Some((6, Answer::Names(names))) = Answer::parse(packet(NAME, 6, &name)) else {
            panic!("no names")
        };
        let thing = names[0].1.to_thing();
        assert_eq!((thing.kind, thing.size, thing.owners), (ThingKind::File, 9, Some((1, 2))));
        assert_eq!(thing.mtime, Timestamp::new(4, 0));
        assert_eq!(Answer::parse(packet(NAME, 6, b"\xff\xff\xff\xff")), None);
        assert_eq!(Answer::parse(packet(DATA, 6, b"\0\0\0\x05data")), None);
        assert_eq!(Answer::parse(packet(99, 6, b"")), None);
        let version_packet = b"\x02\0\0\0\x03\0\0\0\x01x\0\0\0\x011";
        assert_eq!(version(version_packet), Some(vec![b"x".to_vec()]));
        assert_eq!(version(b"\x02\0\0\0\x02"), None);
    }

    /// Section 3 of draft-ietf-secsh-filexfer-extensions-00, and what `ProFTPD` 1.3.8 answers.
    #[test]
    fn hashes_are_asked_for_and_read() {
        let wanted = [
            &[0, 0, 0, 60, EXTENDED, 0, 0, 0, 7, 0, 0, 0, 15][..],
            b"check-file-name\0\0\0\x02/a\0\0\0\x06sha256",
            &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0],
        ];
        assert_eq!(Request::check_file(b"/a", 512, 256, 256).head(7), wanted.concat());
        let answer = |head: &[u8], len| hashes([head, &vec![7; len]].concat().into());
        let short = b"\0\0\0\x06sha256";
        let long = b"\0\0\0\x0acheck-file\0\0\0\x06sha256";
        for head in [&short[..], long] {
            assert_eq!(answer(head, 64), Some(Bytes::from_static(&[7; 64])));
            assert_eq!(answer(head, 63), None);
        }
        for head in [&b"\0\0\0\x03md5"[..], b"\0\0\0\x0acheck-file", b"\xff\xff\xff\xffsha256", b""]
        {
            assert_eq!(answer(head, 64), None);
        }
    }

    proptest! {
        #[test]
        fn any_packet_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 100_u8..107) {
            Answer::parse(bytes.clone().into());
            Answer::parse(packet(kind, 1, &bytes));
            version(&bytes);
            available(&bytes);
            limits(&bytes);
            hashes(bytes.into());
        }
    }
}
