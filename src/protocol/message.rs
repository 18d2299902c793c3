//! The control channel's messages and their encoding: the only file that knows a serializer.
//!
//! A message travels as a 32-bit little-endian length and that many bytes of bincode 2 in its
//! standard configuration, which `protocol-spec/02-session.md` writes out. Every limit is checked
//! before memory is taken, and what decodes has only valid values in it.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};
use thiserror::Error;

use super::buffer::Pool;
use super::chunk::{ChunkSize, Digest, EntryId};
use super::manifest::{Name, Timestamp, Totals};

/// What one end says to the other. The table of who may say what when is in [`super::session`].
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Message {
    /// Both ends, first: who I am and what I can.
    Hello(Hello),
    /// Client to agent: what this session is to do.
    Open(Box<Open>),
    /// Agent to client: I will, and here is where data goes.
    Accept(Accept),
    /// Either end, at any time: the session is over, for this reason.
    Abort(Failure),
    /// Either end, at any time after Open: I am alive.
    Ping,
    /// Sender, before any entry: whether the only source is something else than a directory, so
    /// that the destination may be its new name (ENTRY-1).
    Sources { single_file: bool },
    /// Sender: things that exist at the source, parents before their children.
    Entries(Vec<Entry>),
    /// Sender: every chunk of this version has been read and the source did not change meanwhile.
    FileEnd { entry: EntryId, version: u16, root: Digest },
    /// Sender: the file changed while it was read; forget what came, this is what it is now.
    Restart { entry: Entry, version: u16 },
    /// Sender: this entry will not come, for this reason.
    Withdraw { entry: EntryId, failure: Failure },
    /// Sender: every entry has been announced and every one has ended.
    SourceDone(Summary),
    /// Sender: both summaries agree, or they do not.
    Finish { agreed: bool },
    /// Receiver: what is to become of announced entries.
    Verdicts(Vec<(EntryId, Verdict)>),
    /// Receiver, before a [`Verdict::Resume`]: values of consecutive chunks that it has.
    Have { entry: EntryId, first: u64, values: Vec<Digest> },
    /// Receiver: these units are verified and written; the sender may forget them.
    Written(Vec<Unit>),
    /// Receiver: these units did not match their digests; send them again.
    Again(Vec<Unit>),
    /// Receiver: these entries have ended.
    Outcomes(Vec<(EntryId, Outcome)>),
    /// Receiver: something about an entry could not be kept, though its content is there.
    Complaint { entry: EntryId, failure: Failure },
    /// Receiver: all is in its place; this is what I count.
    ReceiverDone { summary: Summary, durable: bool },
    /// Receiver: nothing of the session is left but the destination's files.
    Closed,
}

/// Who an end is and what it can.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Hello {
    /// The oldest and the newest protocol version that it speaks.
    pub versions: (u16, u16),
    /// Optional features that it knows, as bits. None are defined in version 1.
    pub features: u64,
    /// What built it, for messages to people only.
    pub build: String,
    /// The operating system and the processor, for messages to people only.
    pub platform: String,
    pub nonce: [u8; 32],
    /// The DER certificate that it will present on every data channel of this session.
    pub certificate: Vec<u8>,
    /// How many announced entries it keeps track of at once (ENTRY-4).
    pub max_open_entries: u32,
}

/// What a session is to do. Nothing that changes the outcome is implied: it is all in here.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Open {
    pub task: Task,
    /// From the client's random generator; proves data channels and keys their frames.
    pub channel_secret: Secret,
    /// Names this job at the destination, so that the same command finds its journal again.
    pub job: [u8; 16],
    pub options: Options,
}

/// What the agent is to do.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Task {
    /// Receive into this path, which is relative to the user's home directory if it is relative.
    Receive { destination: Vec<u8> },
    /// Send these paths, likewise.
    Send { sources: Vec<Vec<u8>> },
}

/// 32 secret bytes, which are never shown.
#[derive(Clone, Encode, Decode, Eq, PartialEq)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// How a session transfers: the same at both ends.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Options {
    pub chunk_size: ChunkSize,
    /// How many data channels the client opens.
    pub streams: u16,
    /// Files below this size, in bytes, travel in packs.
    pub pack_threshold: u32,
    /// Memory for chunks at each end, in bytes.
    pub buffer_size: u64,
    pub encrypt: bool,
    pub resume: Resume,
    pub durability: Durability,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    pub preserve_mode: bool,
    pub preserve_times: bool,
    /// The agent listens on a port in this range, both ends included.
    pub port_range: Option<(u16, u16)>,
    /// The agent listens on the loopback address only.
    pub loopback: bool,
    pub sockets: SocketOptions,
}

impl Options {
    /// The longest payload of a frame in this session, in bytes (FRAME-3).
    pub fn max_payload(&self) -> usize {
        let pack = u64::from(self.pack_threshold) + (1 << 20);
        usize::try_from(pack.max(self.chunk_size.bytes())).unwrap_or(usize::MAX)
    }

    /// Whether a file of this size travels in a pack (ENTRY-8).
    pub fn is_packed(&self, size: u64) -> bool {
        size < u64::from(self.pack_threshold.max(1))
    }

    /// The memory that an end has for chunks. At least two buffers, or nothing would flow.
    pub fn pool(&self) -> Pool {
        let count = usize::try_from(self.buffer_size).unwrap_or(usize::MAX) / self.max_payload();
        Pool::new(count.clamp(2, MAX_BUFFERS), self.max_payload())
    }

    /// Names the first setting that no correct client asks for (SES-6).
    pub fn check(&self) -> Result<(), &'static str> {
        if !(1..=MAX_STREAMS).contains(&self.streams) {
            return Err("the number of streams is outside 1..=512");
        }
        if self.pack_threshold > MAX_PACK_THRESHOLD {
            return Err("the pack threshold is over 64 MiB");
        }
        if self.port_range.is_some_and(|(low, high)| low == 0 || low > high) {
            return Err("the port range is empty");
        }
        Ok(())
    }
}

/// What to ask of the kernel for data channels, at both ends. `None` leaves it to the kernel.
#[derive(Clone, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct SocketOptions {
    /// `SO_SNDBUF`, in bytes; setting it turns the kernel's own tuning off.
    pub send_buffer: Option<u32>,
    /// `SO_RCVBUF`, in bytes; likewise.
    pub receive_buffer: Option<u32>,
    /// `TCP_CONGESTION`, such as `cubic` or `bbr`.
    pub congestion: Option<String>,
}

/// What to make of a journal that an earlier run of the job left.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub enum Resume {
    /// Go on from it.
    #[default]
    Trust,
    /// Read again what it says is there, and go on from what still matches.
    Verify,
    /// Throw it away.
    Never,
}

/// When the destination's data must be on stable storage.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub enum Durability {
    /// Whenever the system writes it.
    None,
    /// Before success is reported.
    #[default]
    Batch,
}

/// The agent's answer to [`Open`].
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Accept {
    /// The options as the agent will honour them: equal to those of Open (SES-6).
    pub options: Options,
    /// The TCP port on which data channels are accepted.
    pub port: u16,
    /// Addresses of the agent's host, best first, as text.
    pub addresses: Vec<String>,
}

/// Something that exists at the source.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Entry {
    pub id: EntryId,
    /// An announced directory, or [`EntryId::ROOT`].
    pub parent: EntryId,
    pub name: Name,
    pub kind: Kind,
    /// The permission bits, `0o7777` at most.
    pub mode: Mode,
    pub mtime: Timestamp,
}

/// Permission bits: at most `0o7777`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mode(u16);

impl Mode {
    /// Takes the permission bits of a file's mode and drops its type.
    pub fn from_raw(mode: u32) -> Self {
        Self(u16::try_from(mode & 0o7777).unwrap_or_default())
    }

    pub fn bits(self) -> u32 {
        self.0.into()
    }
}

/// What sort of thing an entry is.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Kind {
    Directory,
    File(FileKind),
    /// The target as it is stored; it is data, and never followed.
    Symlink {
        target: Vec<u8>,
    },
    /// It is there and cannot be transferred.
    Unsendable(Failure),
}

/// A regular file as it was found.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub struct FileKind {
    /// In bytes, at most 2^63 - 1.
    pub size: u64,
    /// What else must be equal for a partial copy to be of this very file (JRN-6).
    pub stamp: Stamp,
}

/// What changes when a file is replaced or written to, beside its size and mtime.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct Stamp {
    pub inode: u64,
    pub ctime: Timestamp,
}

/// What is to become of an announced entry.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Verdict {
    /// Send all of the file.
    Need,
    /// Send the file but for the chunks told by [`Message::Have`].
    Resume,
    /// Send nothing: the entry has ended, like this.
    Ended(Outcome),
}

/// How an entry ended.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Outcome {
    /// It is in its place.
    Done,
    /// It was there already.
    Skipped,
    /// In a dry run: it would be transferred.
    Would,
    Failed(Failure),
}

/// What the receiver acknowledges or asks for again.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, Hash, PartialEq)]
pub enum Unit {
    /// The chunk that starts here.
    Chunk { entry: EntryId, version: u16, offset: u64 },
    /// All of a pack.
    Pack(u64),
    /// One file that came in a pack.
    Packed { entry: EntryId, version: u16 },
}

/// Why something did not happen, for programs and for people.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq, Error)]
#[error("{text}")]
pub struct Failure {
    pub code: FailureCode,
    /// One sentence with operation, path and cause. Escaped before it is shown.
    pub text: String,
}

impl Failure {
    pub fn new(code: FailureCode, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.len() > MAX_TEXT_LEN {
            let end = (0..=MAX_TEXT_LEN).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
        }
        Self { code, text }
    }
}

/// The classes of failure; `protocol-spec/07-errors.md` lists who may send which.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub enum FailureCode {
    /// No right to read, write or enter.
    Permission,
    /// The source is not there any more.
    Vanished,
    /// The source changed each time it was read.
    Changed,
    /// Data did not match its digest, again and again.
    Verification,
    /// The destination has no room left, or its quota is used up.
    DestinationFull,
    /// Any other error of a file system.
    Io,
    /// Something else has this name and is not replaced.
    Conflict,
    /// This sort of entry is not transferred.
    Unsupported,
    /// The peer broke a rule of the protocol.
    Violation,
    /// There is no protocol version that both ends speak.
    Version,
    /// The session cannot start: no destination, a locked journal, no port.
    Startup,
    /// The user or the system stopped it.
    Interrupted,
    /// The connection was lost.
    Disconnected,
    /// No data channel could be opened.
    NoDataPath,
    /// The ends count differently at the end.
    Mismatch,
}

/// [`Totals`] as they travel.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Summary {
    pub done: u64,
    pub skipped: u64,
    pub failed: u64,
    pub bytes: u64,
    pub digest: [u8; 32],
}

impl From<Totals> for Summary {
    fn from(totals: Totals) -> Self {
        Self {
            done: totals.done,
            skipped: totals.skipped,
            failed: totals.failed,
            bytes: totals.bytes,
            digest: totals.digest.0,
        }
    }
}

impl Message {
    /// The message with its length in front, ready to be written.
    ///
    /// # Errors
    ///
    /// If it is over [`MAX_MESSAGE_LEN`]: a message that this end should have split.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let mut out = vec![0; 4];
        bincode::encode_into_std_write(self, &mut out, CONFIG).map_err(MessageError::Encode)?;
        let len = out.len() - 4;
        let wire = u32::try_from(len).ok().filter(|_| len <= MAX_MESSAGE_LEN);
        let wire = wire.ok_or(MessageError::Length { len })?;
        out[..4].copy_from_slice(&wire.to_le_bytes());
        Ok(out)
    }

    /// Parses the bytes that followed a length.
    ///
    /// # Errors
    ///
    /// If they are not exactly one message with valid values in it.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        Self::check_len(bytes.len())?;
        let (message, used) =
            bincode::decode_from_slice(bytes, CONFIG).map_err(MessageError::Decode)?;
        if used == bytes.len() { Ok(message) } else { Err(MessageError::Trailing) }
    }

    /// Checks a length that a peer sent, before memory is taken for it (SES-3).
    pub fn check_len(len: usize) -> Result<(), MessageError> {
        if (1..=MAX_MESSAGE_LEN).contains(&len) {
            Ok(())
        } else {
            Err(MessageError::Length { len })
        }
    }
}

/// Bytes that are not a message, or a message that has no bytes.
#[derive(Debug, Error)]
pub enum MessageError {
    #[error("a message of {len} bytes is outside 1..={MAX_MESSAGE_LEN}")]
    Length { len: usize },
    #[error("not a message: {0}")]
    Decode(DecodeError),
    #[error("bytes are left over after a message")]
    Trailing,
    #[error("a message cannot be encoded: {0}")]
    Encode(EncodeError),
}

/// The longest message, in bytes: 1 MiB.
pub const MAX_MESSAGE_LEN: usize = 1 << 20;

/// The most data channels of a session.
pub const MAX_STREAMS: u16 = 512;

/// The highest pack threshold, in bytes: 64 MiB.
pub const MAX_PACK_THRESHOLD: u32 = 64 << 20;

/// The most buffers of an end, whatever their size.
const MAX_BUFFERS: usize = 1024;

/// The longest text of a [`Failure`], in bytes.
pub const MAX_TEXT_LEN: usize = 2048;

/// The most memory that decoding one message may claim, in bytes: a short entry takes many times
/// more room decoded than encoded.
const MAX_DECODED: usize = 32 << 20;

type Config = Configuration<LittleEndian, Varint, Limit<MAX_DECODED>>;
const CONFIG: Config = bincode::config::standard().with_limit::<MAX_DECODED>();

/// Implements the serializer's traits for a type that is checked when it is made.
macro_rules! checked {
    ($type:ty, $wire:ty, |$value:ident| $encode:expr, |$raw:ident| $decode:expr) => {
        impl Encode for $type {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                let $value = self;
                Encode::encode(&$encode, encoder)
            }
        }

        impl<Context> Decode<Context> for $type {
            fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
                let $raw = <$wire as Decode<Context>>::decode(decoder)?;
                $decode.ok_or(DecodeError::Other(concat!("not a valid ", stringify!($type))))
            }
        }

        impl<'de, Context> BorrowDecode<'de, Context> for $type {
            fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(
                decoder: &mut D,
            ) -> Result<Self, DecodeError> {
                <Self as Decode<Context>>::decode(decoder)
            }
        }
    };
}

checked!(EntryId, u64, |id| id.0, |raw| Some(Self(raw)));
checked!(Digest, [u8; 32], |digest| digest.0, |raw| Some(Self(raw)));
checked!(Name, Vec<u8>, |name| name.as_bytes(), |raw| Self::new(&raw).ok());
checked!(ChunkSize, u8, |size| size.log2(), |raw| Self::from_log2(raw));
checked!(Mode, u16, |mode| mode.0, |raw| (raw <= 0o7777).then_some(Self(raw)));
checked!(Timestamp, (i64, u32), |time| (time.seconds, time.nanoseconds()), |raw| {
    Self::new(raw.0, raw.1)
});

/// How many entries may be announced and not ended, at the most (ENTRY-4).
pub const MAX_OPEN_ENTRIES: u32 = 65_536;
