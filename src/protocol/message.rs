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
use super::chunk::{ChunkSize, Digest, EntryId, MAX_FILE_LEN};
use super::manifest::{Name, Timestamp, Totals, is_obeyed};

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
    /// Receiver: something about an entry could not be kept, though its content is there. Sender:
    /// something could not be listed, and so has no entry (ENTRY-14).
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

    /// Whether a file of this size has more chunks than an end keeps count of (ENTRY-12).
    pub fn is_too_large(&self, size: u64) -> bool {
        size > MAX_FILE_LEN || self.chunk_size.count(size) > MAX_CHUNKS
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
#[derive(Clone, Debug, Eq, PartialEq, Error)]
#[error("{text}")]
pub struct Failure {
    pub code: FailureCode,
    /// One sentence with operation, path and cause, and nothing that a terminal obeys (ERR-2).
    text: String,
}

impl Failure {
    /// Paths in the text should be [`Escaped`] already: here only control characters are, so
    /// that a peer's text shows as what it was.
    ///
    /// [`Escaped`]: super::manifest::Escaped
    pub fn new(code: FailureCode, text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        truncate(&mut text);
        let mut text = if text.chars().any(is_obeyed) {
            let show = |c: char| if is_obeyed(c) { c.escape_default().collect() } else { c.into() };
            text.chars().map(show).collect::<Vec<String>>().concat()
        } else {
            text
        };
        truncate(&mut text);
        Self { code, text }
    }

    /// The sentence.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Cuts a text at [`MAX_TEXT_LEN`] (ERR-3).
fn truncate(text: &mut String) {
    if text.len() > MAX_TEXT_LEN {
        let end = (0..=MAX_TEXT_LEN).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
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

/// The most chunks of one file: 512 TiB of the default size.
const MAX_CHUNKS: u64 = 1 << 26;

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
checked!(Failure, (FailureCode, String), |failure| (failure.code, &failure.text), |raw| {
    Some(Self::new(raw.0, raw.1))
});
checked!(Timestamp, (i64, u32), |time| (time.seconds, time.nanoseconds()), |raw| {
    Self::new(raw.0, raw.1)
});

/// How many entries may be announced and not ended, at the most (ENTRY-4).
pub const MAX_OPEN_ENTRIES: u32 = 65_536;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn digest() -> impl Strategy<Value = Digest> {
        any::<[u8; 32]>().prop_map(Digest)
    }

    fn id() -> impl Strategy<Value = EntryId> {
        // Both sides of every width that a number can have.
        let edges = [0, 250, 251, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX];
        prop_oneof![any::<u64>(), prop::sample::select(edges.to_vec())].prop_map(EntryId)
    }

    fn time() -> impl Strategy<Value = Timestamp> {
        (any::<i64>(), 0..1_000_000_000_u32)
            .prop_filter_map("a time", |(s, n)| Timestamp::new(s, n))
    }

    fn name() -> impl Strategy<Value = Name> {
        vec(any::<u8>(), 1..=Name::MAX_LEN)
            .prop_filter_map("not a name", |bytes| Name::new(&bytes).ok())
    }

    fn failure() -> impl Strategy<Value = Failure> {
        let codes = [
            FailureCode::Permission,
            FailureCode::Vanished,
            FailureCode::Changed,
            FailureCode::Verification,
            FailureCode::DestinationFull,
            FailureCode::Io,
            FailureCode::Conflict,
            FailureCode::Unsupported,
            FailureCode::Violation,
            FailureCode::Version,
            FailureCode::Startup,
            FailureCode::Interrupted,
            FailureCode::Disconnected,
            FailureCode::NoDataPath,
            FailureCode::Mismatch,
        ];
        (prop::sample::select(codes.to_vec()), any::<String>())
            .prop_map(|(code, text)| Failure::new(code, text))
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Directory),
            (any::<(u64, u64)>(), time()).prop_map(|((size, inode), ctime)| {
                Kind::File(FileKind { size, stamp: Stamp { inode, ctime } })
            }),
            vec(any::<u8>(), 0..300).prop_map(|target| Kind::Symlink { target }),
            failure().prop_map(Kind::Unsendable),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        (id(), id(), name(), kind(), 0..=0o7777_u32, time()).prop_map(
            |(id, parent, name, kind, mode, mtime)| {
                let mode = Mode::from_raw(mode);
                Entry { id, parent, name, kind, mode, mtime }
            },
        )
    }

    fn unit() -> impl Strategy<Value = Unit> {
        prop_oneof![
            (id(), any::<(u16, u64)>()).prop_map(|(entry, (version, offset))| Unit::Chunk {
                entry,
                version,
                offset
            }),
            any::<u64>().prop_map(Unit::Pack),
            (id(), any::<u16>()).prop_map(|(entry, version)| Unit::Packed { entry, version }),
        ]
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Done),
            Just(Outcome::Skipped),
            Just(Outcome::Would),
            failure().prop_map(Outcome::Failed),
        ]
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![Just(Verdict::Need), Just(Verdict::Resume), outcome().prop_map(Verdict::Ended),]
    }

    fn summary() -> impl Strategy<Value = Summary> {
        any::<([u64; 4], [u8; 32])>().prop_map(|([done, skipped, failed, bytes], digest)| Summary {
            done,
            skipped,
            failed,
            bytes,
            digest,
        })
    }

    fn sockets() -> impl Strategy<Value = SocketOptions> {
        any::<(Option<u32>, Option<u32>, Option<String>)>().prop_map(
            |(send_buffer, receive_buffer, congestion)| SocketOptions {
                send_buffer,
                receive_buffer,
                congestion,
            },
        )
    }

    fn options() -> impl Strategy<Value = Options> {
        let resume = prop::sample::select(vec![Resume::Trust, Resume::Verify, Resume::Never]);
        let durability = prop::sample::select(vec![Durability::None, Durability::Batch]);
        let chunk_size = (16..=26_u8).prop_filter_map("a size", ChunkSize::from_log2);
        let numbers = any::<(u16, u32, u64, Option<(u16, u16)>)>();
        (chunk_size, numbers, resume, durability, any::<[bool; 5]>(), sockets()).prop_map(
            |(chunk_size, numbers, resume, durability, flags, sockets)| {
                let (streams, pack_threshold, buffer_size, port_range) = numbers;
                let [encrypt, dry_run, preserve_mode, preserve_times, loopback] = flags;
                Options {
                    chunk_size,
                    streams,
                    pack_threshold,
                    buffer_size,
                    encrypt,
                    resume,
                    durability,
                    dry_run,
                    preserve_mode,
                    preserve_times,
                    port_range,
                    loopback,
                    sockets,
                }
            },
        )
    }

    fn greeting() -> impl Strategy<Value = Hello> {
        let numbers = any::<((u16, u16), u64, u32)>();
        let texts = any::<(String, String)>();
        (numbers, texts, any::<[u8; 32]>(), vec(any::<u8>(), 0..400)).prop_map(
            |((versions, features, max_open_entries), (build, platform), nonce, certificate)| {
                Hello { versions, features, build, platform, nonce, certificate, max_open_entries }
            },
        )
    }

    fn opening() -> impl Strategy<Value = Open> {
        let path = || vec(any::<u8>(), 0..100);
        let task = prop_oneof![
            path().prop_map(|destination| Task::Receive { destination }),
            vec(path(), 0..5).prop_map(|sources| Task::Send { sources }),
        ];
        (task, any::<[u8; 32]>(), any::<[u8; 16]>(), options()).prop_map(
            |(task, secret, job, options)| Open {
                task,
                channel_secret: Secret(secret),
                job,
                options,
            },
        )
    }

    /// Any message, with any valid values.
    fn message() -> impl Strategy<Value = Message> {
        let accept =
            (options(), any::<(u16, Vec<String>)>()).prop_map(|(options, (port, addresses))| {
                Message::Accept(Accept { options, port, addresses })
            });
        let start = prop_oneof![
            greeting().prop_map(Message::Hello),
            opening().prop_map(|open| Message::Open(Box::new(open))),
            accept,
            failure().prop_map(Message::Abort),
            Just(Message::Ping),
        ];
        let sender =
            prop_oneof![
                any::<bool>().prop_map(|single_file| Message::Sources { single_file }),
                vec(entry(), 0..8).prop_map(Message::Entries),
                (id(), any::<u16>(), digest())
                    .prop_map(|(entry, version, root)| Message::FileEnd { entry, version, root }),
                (entry(), any::<u16>())
                    .prop_map(|(entry, version)| Message::Restart { entry, version }),
                (id(), failure()).prop_map(|(entry, failure)| Message::Withdraw { entry, failure }),
                summary().prop_map(Message::SourceDone),
                any::<bool>().prop_map(|agreed| Message::Finish { agreed }),
            ];
        let receiver = prop_oneof![
            vec((id(), verdict()), 0..8).prop_map(Message::Verdicts),
            (id(), any::<u64>(), vec(digest(), 0..8))
                .prop_map(|(entry, first, values)| Message::Have { entry, first, values }),
            vec(unit(), 0..8).prop_map(Message::Written),
            vec(unit(), 0..8).prop_map(Message::Again),
            vec((id(), outcome()), 0..8).prop_map(Message::Outcomes),
            (id(), failure()).prop_map(|(entry, failure)| Message::Complaint { entry, failure }),
            (summary(), any::<bool>())
                .prop_map(|(summary, durable)| Message::ReceiverDone { summary, durable }),
            Just(Message::Closed),
        ];
        prop_oneof![start, sender, receiver]
    }

    proptest! {
        /// SES-2, SES-10: what we encode, we decode, and every part of it is needed.
        #[test]
        fn round_trips(message in message(), cut in any::<prop::sample::Index>()) {
            let bytes = message.encode().unwrap();
            let (len, body) = bytes.split_at(4);
            prop_assert_eq!(u32::from_le_bytes(len.try_into().unwrap()) as usize, body.len());
            prop_assert_eq!(&Message::decode(body).unwrap(), &message);
            prop_assert!(Message::decode(&body[..cut.index(body.len())]).is_err());
            let longer = [body, &[0]].concat();
            prop_assert!(matches!(Message::decode(&longer), Err(MessageError::Trailing)));
        }

        /// SES-2: whatever a peer sends, we decide, and what we accept we could have said.
        #[test]
        fn any_input_is_decided(kind in 0_u8..22, mut bytes in vec(any::<u8>(), 1..600)) {
            bytes[0] = kind;
            if let Ok(message) = Message::decode(&bytes) {
                let again = message.encode().unwrap();
                prop_assert!(again.len() - 4 <= bytes.len());
                prop_assert_eq!(Message::decode(&again[4..]).unwrap(), message);
            }
        }

        /// SES-10: a wrong bit is refused or makes a valid message. Numbers have longer forms, so it
        /// may even be the same message.
        #[test]
        fn a_flipped_bit_makes_a_message_or_none(
            message in message(),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut bytes = message.encode().unwrap().split_off(4);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = Message::decode(&bytes) {
                let again = other.encode().unwrap();
                prop_assert_eq!(Message::decode(&again[4..]).unwrap(), other);
            }
        }
    }

    /// SES-3: a count that the message cannot hold costs neither much time nor much memory.
    #[test]
    fn counts_that_lie_are_refused_at_once() {
        let counts = [1_u64 << 20, 1 << 24, 1 << 31, 1 << 32, 1 << 48, u64::MAX / 48, u64::MAX];
        let mut hostile = Vec::new();
        for count in counts {
            let count = [&[253][..], &count.to_le_bytes()].concat();
            // Entries, Verdicts, Written, Again, Outcomes: a list directly after the number.
            for kind in [6, 12, 14, 15, 16] {
                hostile.push([&[kind][..], &count].concat());
            }
            hostile.push([&[13, 1, 0][..], &count].concat()); // the values of Have
            hostile.push([&[1, 1][..], &count].concat()); // the sources of Open
            hostile.push([&[1, 1, 1][..], &count].concat()); // the first source of Open
            hostile.push([&[6, 1, 1, 0][..], &count].concat()); // the name of an entry
            hostile.push([&[3, 0][..], &count].concat()); // the text of a failure
        }
        let start = Instant::now();
        for bytes in &hostile {
            assert!(Message::decode(bytes).is_err(), "{bytes:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    /// SES-3: a list of the shortest elements that fills a message is not taken for an attack.
    #[test]
    fn the_longest_lists_of_the_shortest_elements_are_accepted() {
        let count = u32::try_from((MAX_MESSAGE_LEN - 6) / 2).unwrap();
        let mut bytes = vec![12, 252]; // Verdicts: each is an id and Need
        bytes.extend(count.to_le_bytes());
        bytes.resize(MAX_MESSAGE_LEN, 0);
        match Message::decode(&bytes).unwrap() {
            Message::Verdicts(verdicts) => assert_eq!(verdicts.len(), count as usize),
            other => panic!("{other:?}"),
        }
        let count = u32::try_from(MAX_MESSAGE_LEN - 200).unwrap();
        let mut bytes = vec![1, 1, 252]; // Open: Send, each source is empty
        bytes.extend(count.to_le_bytes());
        bytes.resize(bytes.len() + count as usize, 0);
        bytes.extend([0; 48]);
        bytes.extend([16, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]);
        assert!(matches!(Message::decode(&bytes), Ok(Message::Open(_))));
        let one = [6, 1, 1, 0, 1, b'a', 0, 0, 0, 0]; // Entries: one directory
        let count = u32::try_from((MAX_MESSAGE_LEN - 6) / 8).unwrap();
        assert!(Message::decode(&one).is_ok());
        let mut bytes = vec![6, 252];
        bytes.extend(count.to_le_bytes());
        bytes.extend((0..count).flat_map(|_| one[2..].iter().copied()));
        assert!(Message::decode(&bytes).is_ok());
    }

    /// SES-3: both sides of the limit.
    #[test]
    fn lengths_are_limited() {
        for (len, allowed) in
            [(0, false), (1, true), (MAX_MESSAGE_LEN, true), (MAX_MESSAGE_LEN + 1, false)]
        {
            assert_eq!(Message::check_len(len).is_ok(), allowed, "{len}");
        }
        assert!(Message::check_len(u32::MAX as usize).is_err());
        assert!(matches!(Message::decode(&[]), Err(MessageError::Length { len: 0 })));
        let message =
            |len| Message::Entries(vec![entry_with(Kind::Symlink { target: vec![0; len] })]);
        let overhead = message(1 << 16).encode().unwrap().len() - 4 - (1 << 16);
        assert!(message(MAX_MESSAGE_LEN - overhead).encode().is_ok());
        let refused = message(MAX_MESSAGE_LEN - overhead + 1).encode();
        let len = MAX_MESSAGE_LEN + 1;
        assert!(matches!(refused, Err(MessageError::Length { len: found }) if found == len));
    }

    fn entry_with(kind: Kind) -> Entry {
        Entry {
            id: EntryId(1),
            parent: EntryId::ROOT,
            name: Name::new(b"a").unwrap(),
            kind,
            mode: Mode::default(),
            mtime: Timestamp::default(),
        }
    }

    /// Entries with one entry of these parts, each already encoded.
    fn raw_entry(name: &[u8], kind: &[u8], mode: &[u8], mtime: &[u8]) -> Vec<u8> {
        [&[6, 1, 1, 0][..], name, kind, mode, mtime].concat()
    }

    /// SES-10, ENTRY-2, ERR-1: a value out of its range makes the message invalid.
    #[test]
    fn values_out_of_range_are_refused() {
        let second = [252, 0x00, 0xca, 0x9a, 0x3b]; // 1,000,000,000
        let below = [252, 0xff, 0xc9, 0x9a, 0x3b];
        let ok = |name: &[u8], kind: &[u8], mode: &[u8], mtime: &[u8]| {
            Message::decode(&raw_entry(name, kind, mode, mtime)).is_ok()
        };
        assert!(ok(&[1, b'a'], &[0], &[0], &[0, 0]));
        let long = [&[251, 0, 1][..], &[b'x'; 256]].concat();
        for name in [&[0][..], &[1, b'.'], &[2, b'.', b'.'], &[3, b'a', b'/', b'b'], &[1, 0], &long]
        {
            assert!(!ok(name, &[0], &[0], &[0, 0]), "name {name:?}");
        }
        assert!(ok(&[1, b'a'], &[0], &[251, 0xff, 0x0f], &[0, 0]), "mode 7777");
        assert!(!ok(&[1, b'a'], &[0], &[251, 0x00, 0x10], &[0, 0]), "mode 10000");
        assert!(ok(&[1, b'a'], &[0], &[0], &[&[0][..], &below].concat()));
        assert!(!ok(&[1, b'a'], &[0], &[0], &[&[0][..], &second].concat()), "a whole second");
        let file = |nanoseconds: &[u8]| [&[1, 0, 0, 0][..], nanoseconds].concat();
        assert!(ok(&[1, b'a'], &file(&below), &[0], &[0, 0]));
        assert!(!ok(&[1, b'a'], &file(&second), &[0], &[0, 0]), "a whole second of the ctime");
        assert!(!ok(&[1, b'a'], &[4], &[0], &[0, 0]), "a kind that does not exist");
        assert!(Message::decode(&[3, 14, 0]).is_ok(), "Abort with the last code");
        assert!(Message::decode(&[3, 15, 0]).is_err(), "a code that does not exist");
        assert!(Message::decode(&[3, 0, 1, 0xff]).is_err(), "a text that is no text");
        assert!(Message::decode(&[5, 2]).is_err(), "a bool that is neither");
        assert!(Message::decode(&[20]).is_err(), "a message that does not exist");
    }

    /// SES-10: the chunk size is refused outside its limits, and nothing else about the message is.
    #[test]
    fn chunk_sizes_out_of_range_are_refused() {
        for log2 in 0..=u8::MAX {
            let mut bytes = vec![1, 0, 0]; // Open: Receive into ""
            bytes.extend([0; 48]);
            bytes.extend([log2, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]);
            assert_eq!(Message::decode(&bytes).is_ok(), (16..=26).contains(&log2), "{log2}");
        }
    }

    /// SES-10: longer forms of a number are read; a number too wide for its field is not.
    #[test]
    fn numbers_have_longer_forms_and_limits() {
        let file_end = |version: &[u8]| [&[7, 1][..], version, &[0; 32]].concat();
        let plain = Message::decode(&file_end(&[5])).unwrap();
        assert_eq!(Message::decode(&file_end(&[251, 5, 0])).unwrap(), plain);
        assert!(Message::decode(&file_end(&[252, 5, 0, 0, 0])).is_err());
        for first in [254, 255] {
            assert!(Message::decode(&[&[7, first][..], &[0; 60]].concat()).is_err());
        }
    }

    /// ERR-3: a text is cut where a character ends, and is always a text.
    #[test]
    fn long_texts_are_cut() {
        for extra in 0..4 {
            let text = "x".repeat(extra) + &"€".repeat(MAX_TEXT_LEN);
            let failure = Failure::new(FailureCode::Io, text);
            assert!((MAX_TEXT_LEN - 2..=MAX_TEXT_LEN).contains(&failure.text.len()));
            assert!(failure.text.ends_with('€'));
        }
    }

    /// ERR-2: what a peer wrote about a failure is shown on one line, and obeyed by no terminal.
    #[test]
    fn a_peers_text_can_be_shown() {
        let failure = Failure::new(FailureCode::Io, "gone\r\n\u{1b}[2Jall \u{202e}well");
        let bytes = Message::Abort(failure).encode().unwrap();
        let Message::Abort(failure) = Message::decode(&bytes[4..]).unwrap() else { panic!() };
        assert_eq!(failure.text(), "gone\\r\\n\\u{1b}[2Jall \\u{202e}well");
    }
}
