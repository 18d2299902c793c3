//! The two halves of a transfer against each other in one process, and each of them against a peer
//! that follows no rules: lost channels, damaged data, sources that change, and lies.

#[cfg(test)]
mod hostile_receiver_tests;
#[cfg(test)]
mod hostile_sender_tests;
#[cfg(test)]
mod simulation_tests;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

use super::control::{Inbox, Outbox, Pulse, outbox};
use super::event::{Event, Progress};
use super::receive::ReceiverEnd;
use super::send::SenderEnd;
use super::session::{Channels, Observer, SessionError};
use super::{here, send};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{
    ByteRange, Chunk, ChunkData, ChunkSize, Digest, EntryId, Pack, PackMember, RangeHasher,
};
use crate::protocol::frame::Frame;
use crate::protocol::handshake::{self, ChannelSlot};
use crate::protocol::manifest::{Name, Timestamp, Totals};
use crate::protocol::message::{
    Accept, Changes, Complaint, Deletions, Durability, Entry, Failure, FailureCode, FileKind, Kind,
    MAX_OPEN_ENTRIES, Message, Metadata, Mode, Open, Options, Outcome, Preserve, Resume, Secret,
    Select, SocketOptions, Stamp, Summary, Task, Unit, Update, Verdict, Whereabouts,
};
use crate::protocol::session::{End, Role};
use crate::storage::local::LocalSource;
use crate::transport::memory::{self, CutSwitch, MemoryReceiver, MemorySender};
use crate::transport::{FrameReceiver as _, FrameSender, TransportError};

pub const JOB: [u8; 16] = [0x5a; 16];
pub const CHUNK: usize = 64 << 10;
pub const PATIENCE: Duration = Duration::from_mins(1);

pub fn options() -> Options {
    Options {
        chunk_size: ChunkSize::MIN,
        streams: 1,
        pack_threshold: 4096,
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

/// Bytes that no two seeds share.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// A directory with `src`, `dst` and an `outside` that nobody may touch.
pub struct Ground(pub tempfile::TempDir);

impl Ground {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        for name in ["src", "outside"] {
            fs::create_dir(temp.path().join(name)).unwrap();
        }
        fs::write(temp.path().join("outside/canary"), b"alive").unwrap();
        Self(temp)
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    pub fn write(&self, below: &str, data: &[u8]) {
        let path = self.path("src").join(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    /// The contents of `src`, with a trailing slash.
    pub fn source(&self) -> Vec<PathBuf> {
        vec![self.path("src/")]
    }

    /// Files of every sort: empty, small, of one chunk, of many, sparse; directories and symlinks.
    pub fn plant(&self) {
        for n in 0..40 {
            self.write(&format!("small/{n}"), &noise(n, usize::try_from(n).unwrap() * 101));
        }
        for (n, len) in [4095, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 9 * CHUNK + 5].iter().enumerate()
        {
            self.write(&format!("large/{n}"), &noise(1000 + n as u64, *len));
        }
        let sparse = fs::File::create(self.path("src/large/sparse")).unwrap();
        sparse.write_all_at(b"end", 5 * CHUNK as u64).unwrap();
        fs::create_dir_all(self.path("src/empty/deep")).unwrap();
        symlink("../outside/canary", self.path("src/link")).unwrap();
    }

    pub fn assert_equal(&self) {
        assert_eq!(tree(&self.path("src")), tree(&self.path("dst")));
        self.assert_canary();
    }

    pub fn assert_canary(&self) {
        let outside: Vec<_> = tree(&self.path("outside")).into_keys().collect();
        assert_eq!(outside, [Path::new("canary")]);
        assert_eq!(fs::read(self.path("outside/canary")).unwrap(), b"alive");
        let here: HashSet<_> =
            fs::read_dir(self.0.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
        assert!(here.iter().all(|name| ["src", "dst", "outside"].iter().any(|ours| name == ours)));
    }
}

pub type Look = (u32, i64, i64, Vec<u8>);

/// Everything below a directory: mode, mtime, and content or target.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Look> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for item in fs::read_dir(&dir).unwrap() {
            let path = item.unwrap().path();
            let data = fs::symlink_metadata(&path).unwrap();
            let content = if data.is_symlink() {
                fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else if data.is_file() {
                fs::read(&path).unwrap()
            } else {
                left.push(path.clone());
                Vec::new()
            };
            let below = path.strip_prefix(root).unwrap().to_owned();
            found.insert(below, (data.mode(), data.mtime(), data.mtime_nsec(), content));
        }
    }
    found
}

/// One end of a control channel.
pub struct Half {
    pub inbox: Inbox<ReadHalf<DuplexStream>>,
    pub outbox: Outbox,
    pub writer: JoinHandle<std::io::Result<()>>,
}

impl Half {
    pub fn new(stream: DuplexStream, me: End) -> Self {
        let (reader, writer): (_, WriteHalf<_>) = tokio::io::split(stream);
        let (outbox, writing) = outbox(writer);
        let inbox = Inbox::new(reader, me, PATIENCE, Pulse::new());
        Self { inbox, outbox, writer: tokio::spawn(writing) }
    }

    /// Plays a role, and tells the peer if it fails, as client and agent do.
    pub async fn run<T>(
        mut self,
        role: impl AsyncFnOnce(&mut Inbox<ReadHalf<DuplexStream>>, Outbox) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let result = role(&mut self.inbox, self.outbox.clone()).await;
        if let Some(failure) = result.as_ref().err().and_then(SessionError::to_tell) {
            let _ = self.outbox.say(&Message::Abort(failure));
        }
        drop(self.outbox);
        let _ = tokio::time::timeout(Duration::from_secs(1), self.writer).await;
        result
    }

    /// The next message that is neither a ping nor about a listing.
    pub async fn next(&mut self) -> Message {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.inbox.next()).await;
            let message = next.expect("the peer is silent").expect("the peer went away");
            if !matches!(message, Message::Ping | Message::Listed(_)) {
                return message;
            }
        }
    }

    pub fn say(&self, message: &Message) {
        self.outbox.say_encoded(message.encode().unwrap());
    }
}

/// Takes both ends through the greetings, as a push does.
pub async fn greet(client: &mut Half, agent: &mut Half, options: &Options) {
    let hello = Message::Hello(handshake::hello([1; 32], vec![1]));
    let task = Task::Receive { destination: Vec::new() };
    let open = Open { task, channel_secret: Secret([1; 32]), job: JOB, options: options.clone() };
    let accept = Accept {
        options: options.clone(),
        port: 1,
        udp_port: 0,
        join: Vec::new(),
        addresses: Vec::new(),
        refusal: String::new(),
    };
    client.say(&hello);
    client.say(&Message::Open(Box::new(open)));
    agent.say(&hello);
    agent.say(&Message::Accept(accept));
    for half in [client, agent] {
        half.next().await;
        half.next().await;
    }
}

pub fn damaged(frame: Frame) -> Frame {
    let flip = |data: &[u8]| {
        let mut data = data.to_vec();
        *data.last_mut().unwrap() ^= 1;
        data.into()
    };
    match frame {
        Frame::Chunk(chunk) => {
            let data = match &chunk.data {
                ChunkData::Bytes(data) => ChunkData::Bytes(flip(data)),
                ChunkData::Hole | ChunkData::Sparse(_) => {
                    let digest = Digest([9; 32]);
                    return Frame::Chunk(Chunk::received(
                        chunk.range,
                        chunk.version,
                        digest,
                        chunk.data,
                    ));
                }
            };
            Frame::Chunk(Chunk::received(chunk.range, chunk.version, chunk.digest, data))
        }
        Frame::Pack(pack) => Frame::Pack(Pack { payload: flip(&pack.payload), ..pack }),
        other => other,
    }
}

pub fn entry(id: u64, parent: u64, name: &str, kind: Kind) -> Entry {
    Entry {
        id: EntryId(id),
        parent: EntryId(parent),
        name: Name::new(name.as_bytes()).unwrap(),
        kind,
        is_linked: false,
        metadata: Metadata {
            mode: Mode::from_raw(0o644),
            mtime: Timestamp::new(1_000_000, 5).unwrap(),
            ..Metadata::default()
        },
    }
}

pub fn file(id: u64, name: &str, size: u64) -> Entry {
    entry(id, 0, name, Kind::File(FileKind { size, stamp: Stamp::default() }))
}

pub fn chunk(range: ByteRange, version: u16, data: &[u8]) -> Frame {
    let mut hasher = RangeHasher::new(range);
    hasher.update(data);
    let digest = hasher.finish().unwrap_or_default();
    Frame::Chunk(Chunk::received(range, version, digest, ChunkData::Bytes(data.to_vec().into())))
}

pub fn whole(id: u64, len: usize) -> ByteRange {
    ByteRange::new(EntryId(id), 0, u32::try_from(len).unwrap(), true).unwrap()
}

pub fn pack(number: u64, members: &[(u64, u16, &[u8])]) -> Frame {
    let table: Vec<_> = members
        .iter()
        .map(|(id, version, data)| PackMember {
            entry: EntryId(*id),
            version: *version,
            len: u32::try_from(data.len()).unwrap(),
            root: Digest::of(data),
        })
        .collect();
    let mut payload = vec![0; Pack::table_len(table.len())];
    for (_, _, data) in members {
        payload.extend_from_slice(data);
    }
    let digest = Pack::write_table(&table, &mut payload);
    Frame::Pack(Pack { number, digest, payload: payload.into() })
}

pub const NOTHING: Summary = Summary { done: 0, skipped: 0, failed: 0, bytes: 0, digest: [0; 32] };
