//! The control channel's messages and their encoding: the only file that knows a serializer.
//!
//! A message travels as a 32-bit little-endian length and that many bytes of bincode 2 in its
//! standard configuration, which `protocol-spec/02-session.md` writes out. Every limit is checked
//! before memory is taken, and what decodes has only valid values in it.

use bincode::BorrowDecode;
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
pub(super) use bincode::{Decode, Encode};
use thiserror::Error;

use super::buffer::Pool;
use super::chunk::{ChunkSize, Digest, EntryId, MAX_FILE_LEN};
use super::manifest::{Name, Timestamp, Totals, is_obeyed};
use super::measure::{Measure, Measured};
use super::third_party::{Peer, Told};

/// What one end says to the other. The table of who may say what when is in [`super::session`].
#[expect(clippy::large_enum_variant, reason = "the large ones come once in a session")]
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
    /// that the destination may be its new name (ENTRY-1); and what the directory is like whose
    /// contents are the source, if that is to be kept (META-1); and which they are (SEL-3).
    Sources { single_file: bool, root: Option<Metadata>, whereabouts: Whereabouts },
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
    Complaint(Complaint),
    /// Receiver: all is in its place; this is what I count.
    ReceiverDone { summary: Summary, durable: bool, deletions: Deletions },
    /// Receiver: nothing of the session is left but the destination's files.
    Closed,
    /// Sender, before the entries that have them: what owners and groups are called (META-3).
    Owners { users: Vec<Owner>, groups: Vec<Owner> },
    /// Sender: all that is in these directories has been announced, without an error (DEL-2).
    Listed(Vec<EntryId>),
    /// Sender, in answer to [`Verdict::Hash`]: what the source's data amounts to (ENTRY-15).
    Root { entry: EntryId, version: u16, root: Digest },
    /// Receiver: these are not there any more, or in a dry run would not be (DEL-5).
    Deleted(Vec<Deleted>),
    /// Client, if it receives: what of the sources is meant (SEL-4). The last one is marked.
    Paths { paths: Vec<Vec<u8>>, last: bool },
    /// Client, after Accept: I listen for data channels here; dial me (PATH-4).
    Dial(Dial),
    /// Agent: every address of Dial has failed, and why; I go on trying (PATH-5).
    NotReached(Failure),
    /// Client, in a session that measures: do this (MEASURE-2).
    Measure(Measure),
    /// Agent: this came of it.
    Measured(Measured),
    /// Agent that sends to another one, on a stream of its own: what happens there (THIRD-4).
    Told(Vec<Told>),
}

/// Where the client listens for data channels.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Dial {
    pub carrier: Carrier,
    pub port: u16,
    /// Addresses of the client's host, best first, as text.
    pub addresses: Vec<String>,
}

/// What a data channel's byte stream runs over, where one end dials an address of the other.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, Hash, PartialEq)]
pub enum Carrier {
    Tcp,
    Quic,
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
    /// Measure, with files without names in this directory, likewise (MEASURE-1).
    Measure { directory: Vec<u8> },
    /// Send these paths, likewise, to another agent, whom the client connects (THIRD-1).
    SendTo { sources: Vec<Vec<u8>>, to: Box<Peer> },
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
    pub preserve: Preserve,
    pub select: Select,
    pub update: Update,
    /// Remove at the destination what the source does not have.
    pub delete: Option<Delete>,
    /// Remove files of the source once they are durably at the destination (DEL-6).
    pub remove_source_files: bool,
    /// The agent listens on a port in this range, both ends included.
    pub port_range: Option<(u16, u16)>,
    /// The agent listens on the loopback address only.
    pub loopback: bool,
    pub sockets: SocketOptions,
    pub listen: Listen,
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
        if self.select.filters.iter().map(|rule| rule.len() + 8).sum::<usize>() > MAX_FILTERS_LEN {
            return Err("the filter rules are longer than 256 KiB");
        }
        if self.remove_source_files && self.durability == Durability::None {
            return Err("sources are removed only after durable copies, and durability is none");
        }
        if self.delete.is_some() && self.select.has_paths {
            return Err("deletion needs whole directories, and a list of paths was given");
        }
        self.preserve.check()?;
        self.update.check()
    }
}

/// How the agent is to be ready for data channels, beside the control channel itself (PATH-2).
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Listen {
    pub tcp: bool,
    pub quic: bool,
    /// On its own host, for processes that further logins start.
    pub join: bool,
}

impl Default for Listen {
    fn default() -> Self {
        Self { tcp: true, quic: false, join: false }
    }
}

/// What to ask of the kernel for data channels, at both ends. `None` leaves it to the kernel.
#[derive(Clone, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct SocketOptions {
    /// `SO_SNDBUF`, in bytes; setting it turns the kernel's own tuning off.
    pub send_buffer: Option<u32>,
    /// `SO_RCVBUF`, in bytes; likewise.
    pub receive_buffer: Option<u32>,
    /// `TCP_CONGESTION`, such as `cubic` or `bbr`; QUIC's too, if it has one of this name.
    pub congestion: Option<String>,
    /// Send one datagram of QUIC at a time, for networks where segmentation offload does harm.
    pub no_offload: bool,
}

/// What of an entry is kept beside its content (META-1).
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Preserve {
    /// The permission bits, `0o777`.
    pub permissions: bool,
    /// The set-user-id, set-group-id and sticky bits, where permissions are kept.
    pub special_bits: bool,
    /// Modification times of what is no directory.
    pub times: bool,
    pub directory_times: bool,
    pub owner: Keep,
    pub group: Keep,
    /// Owners and groups by number, even where both hosts know the name.
    pub numeric_ids: bool,
    /// Owner and group that everything gets instead of its own: names or numbers at the receiver.
    pub chown: (Option<Vec<u8>>, Option<Vec<u8>>),
    /// Changes of permission bits, as `chmod` and `rsync --chmod` take them; made by the sender.
    pub chmod: Vec<u8>,
    pub hard_links: bool,
    /// Extended attributes other than ACLs.
    pub attributes: bool,
    pub acls: bool,
    pub devices: bool,
    /// FIFOs and sockets.
    pub specials: bool,
    /// The metadata of the very directory whose contents are the source.
    pub root: bool,
}

impl Preserve {
    fn check(&self) -> Result<(), &'static str> {
        let owners = [&self.chown.0, &self.chown.1].into_iter().flatten();
        if owners.into_iter().any(|name| !is_owner_name(name)) {
            return Err("the owner or group for everything has no valid name");
        }
        if self.chmod.len() > MAX_PATH_LEN {
            return Err("the changes of permission bits are longer than 4096 bytes");
        }
        Ok(())
    }
}

/// What is kept without being asked for: permissions and times.
impl Default for Preserve {
    fn default() -> Self {
        Self {
            permissions: true,
            special_bits: false,
            times: true,
            directory_times: true,
            owner: Keep::No,
            group: Keep::No,
            numeric_ids: false,
            chown: (None, None),
            chmod: Vec::new(),
            hard_links: false,
            attributes: false,
            acls: false,
            devices: false,
            specials: false,
            root: false,
        }
    }
}

/// Whether owners are kept.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub enum Keep {
    #[default]
    No,
    /// As far as the receiver's user may; what is beyond that is no failure, as for `rsync -a`.
    IfAllowed,
    /// What cannot be kept is a [`Message::Complaint`].
    Always,
}

/// Which of the things at the source are meant (SEL-1).
#[derive(Clone, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct Select {
    pub links: Links,
    /// Do not enter directories on other file systems.
    pub one_file_system: bool,
    /// Rules in the syntax of `rsync --filter`, in order.
    pub filters: Vec<Vec<u8>>,
    /// Leave out what `.gitignore` files name.
    pub gitignore: bool,
    /// Sizes of files, in bytes, both included.
    pub min_size: Option<u64>,
    pub max_size: Option<u64>,
    /// How many levels below ROOT are taken; 1 is what lies directly in it.
    pub max_depth: Option<u32>,
    /// Only certain paths are meant; the client has them, or tells them by [`Message::Paths`].
    pub has_paths: bool,
    /// Of a directory among those paths, all of it.
    pub whole_directories: bool,
}

/// What is done with symlinks.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub enum Links {
    /// They are copied as they are.
    #[default]
    Keep,
    /// What they lead to is copied in their place.
    Follow,
    /// Likewise for those that lead out of the tree.
    FollowUnsafe,
    /// Those that lead out of the tree are left out.
    OnlySafe,
}

/// What is done about what the destination has already (UPD-1).
#[derive(Clone, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct Update {
    pub compare: Compare,
    /// By how many seconds modification times may differ and still count as equal.
    pub modify_window: u32,
    /// In which steps, in nanoseconds, the sender is told its times; 0 if as they are.
    pub time_step: u32,
    /// Leave alone what is newer at the destination.
    pub keep_newer: bool,
    /// Leave alone what exists at the destination.
    pub ignore_existing: bool,
    /// Make nothing new at the destination.
    pub existing_only: bool,
    /// What may be removed where something of another type has an entry's name.
    pub make_room: MakeRoom,
    /// Write into existing files instead of replacing them.
    pub in_place: bool,
    pub backup: Option<Backup>,
    /// Directories at the receiver, relative to the destination, of which equal files are linked.
    pub link_dest: Vec<Vec<u8>>,
}

impl Update {
    /// Whether the modification time of what is at the destination counts as one that the sender tells
    /// (UPD-1), if the destination keeps times as they are.
    pub fn is_same_time(&self, found: Timestamp, wanted: Timestamp) -> bool {
        let apart = found.seconds.abs_diff(wanted.seconds);
        let window = u64::from(self.modify_window);
        found == wanted
            || (window > 0 && apart <= window)
            || wanted.is_left_of(found, self.time_step.into())
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.time_step > MAX_TIME_STEP {
            return Err("times in steps of more than two seconds");
        }
        if self.link_dest.len() > MAX_LINK_DEST {
            return Err("there are more than 20 directories to link from");
        }
        let backups = self.backup.iter().filter_map(|backup| backup.directory.as_ref());
        if self.link_dest.iter().chain(backups).any(|path| !is_path(path)) {
            return Err("a directory at the receiver has no valid path of at most 4096 bytes");
        }
        let is_ok = |Backup { directory, suffix }: &Backup| {
            let shortest = usize::from(directory.is_none());
            (shortest..=Name::MAX_LEN).contains(&suffix.len())
                && !suffix.iter().any(|byte| matches!(byte, b'/' | 0))
        };
        if !self.backup.iter().all(is_ok) {
            return Err("the suffix of backups is no part of a name");
        }
        Ok(())
    }
}

/// When two files count as equal.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub enum Compare {
    /// By size and modification time.
    #[default]
    Quick,
    SizeOnly,
    /// By BLAKE3 root, whatever their times are.
    Checksum,
    /// Never.
    Always,
}

/// What may be removed to make room for an entry of another type.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub enum MakeRoom {
    /// Files, symlinks and special files give way to each other; directories neither give way nor
    /// are put in their place.
    #[default]
    Files,
    /// A directory is put in the place of a file too, and an empty directory gives way.
    EmptyDirectories,
    /// A directory gives way with all that is in it.
    All,
}

/// Keeping what is replaced or deleted.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Backup {
    /// Where it goes, with its path; beside the new one if `None`. Relative to the destination.
    pub directory: Option<Vec<u8>>,
    /// What its name ends in: not empty without a directory.
    pub suffix: Vec<u8>,
}

/// How what the source does not have is removed (DEL-1).
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct Delete {
    /// Also what filters leave out at the source, unless a rule protects it.
    pub excluded: bool,
    /// How many things are removed at the most.
    pub max: Option<u64>,
    /// Even if the source has nothing at all.
    pub allow_empty_source: bool,
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
    /// Before success is reported, and before a file's new name; many files at a time.
    #[default]
    Batch,
    /// Each file with its name, before it is reported as done.
    File,
}

/// The agent's answer to [`Open`].
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Accept {
    /// The options as the agent will honour them: equal to those of Open (SES-6).
    pub options: Options,
    /// The TCP port on which data channels are accepted, and the UDP port; 0 if there is none.
    pub port: u16,
    pub udp_port: u16,
    /// The name of the abstract socket at which further processes join; empty if there is none.
    pub join: Vec<u8>,
    /// Addresses of the agent's host, best first, as text.
    pub addresses: Vec<String>,
    /// Why a port that was wanted is 0, for people; empty if there is nothing to say.
    pub refusal: String,
}

/// Something that exists at the source.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Entry {
    pub id: EntryId,
    /// An announced directory, or [`EntryId::ROOT`].
    pub parent: EntryId,
    pub name: Name,
    pub kind: Kind,
    /// Other entries may be [`Kind::HardLink`]s to it.
    pub is_linked: bool,
    pub metadata: Metadata,
}

/// What is known of an entry beside its content.
#[derive(Clone, Debug, Default, Encode, Eq, PartialEq)]
pub struct Metadata {
    /// The permission bits, `0o7777` at most.
    pub mode: Mode,
    pub mtime: Timestamp,
    /// The numbers of owner and group at the sender.
    pub owner: u32,
    pub group: u32,
    /// Extended attributes, ACLs among them, in the order of their names; empty unless asked for.
    pub attributes: Vec<Attribute>,
}

/// An extended attribute: its whole name, such as `user.comment`, and its value (xattr(7)).
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Attribute {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// What a number of a user or group is called at the sender.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    pub id: u32,
    /// From 1 to 255 bytes, without zero bytes and colons (META-3): any other cannot be sent.
    pub name: Vec<u8>,
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
    Special(Special),
    /// Another name of an entry that was announced before, with [`Entry::is_linked`].
    HardLink {
        leader: EntryId,
    },
    /// It is there and is not meant: nothing is done with it, and nothing is deleted in its place.
    Unselected,
}

/// What is neither a file nor a directory nor a symlink.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Special {
    Fifo,
    Socket,
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
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
    /// Say what the file's data amounts to; another verdict follows (ENTRY-15).
    Hash,
    /// Announce a hard link anew as what it is by itself, as its leader is not there (ENTRY-16).
    Alone,
}

/// How an entry ended.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Outcome {
    /// It is in its place, and this had to be changed.
    Done(Changes),
    /// It was there already, or is left alone.
    Skipped,
    /// In a dry run: this would be changed.
    Would(Changes),
    Failed(Failure),
    /// The options say that it is left alone, whatever is there.
    Left,
}

/// What is different about an entry at the destination.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Changes(u16);

impl Changes {
    pub const NONE: Self = Self(0);
    /// There was nothing of this type under its name.
    pub const CREATED: Self = Self(1 << 0);
    /// Its content was written: a file's data, a symlink's target, a device's number.
    pub const CONTENT: Self = Self(1 << 1);
    pub const SIZE: Self = Self(1 << 2);
    pub const TIME: Self = Self(1 << 3);
    pub const PERMISSIONS: Self = Self(1 << 4);
    pub const OWNER: Self = Self(1 << 5);
    pub const GROUP: Self = Self(1 << 6);
    pub const ACL: Self = Self(1 << 7);
    pub const ATTRIBUTES: Self = Self(1 << 8);
    /// It was made a hard link: of another entry, or of an equal file (`--link-dest`).
    pub const LINKED: Self = Self(1 << 9);
    /// Its data was compared and is different.
    pub const CHECKSUM: Self = Self(1 << 10);
    /// Something of another type had its name, and gave way.
    pub const TYPE: Self = Self(1 << 11);
    pub const CREATED_WITH_CONTENT: Self = Self(Self::CREATED.0 | Self::CONTENT.0);
    const ALL: u16 = (1 << 12) - 1;

    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// These changes if the condition holds, else none.
    #[must_use]
    pub fn when(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }

    /// Whether any of the other's changes is among these.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Something that was removed at the destination.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Deleted {
    /// Relative to the destination, components joined by slashes, for people and reports only: from 1
    /// to [`MAX_TOLD_PATH_LEN`] bytes, without zero bytes (DEL-5). A longer one is cut.
    pub path: Vec<u8>,
    pub is_directory: bool,
}

/// Something that did not come out as it was to, and is no entry that failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Complaint {
    path: Vec<u8>,
    pub failure: Failure,
}

impl Complaint {
    /// A path that is longer than [`MAX_TOLD_PATH_LEN`] is cut.
    pub fn new(mut path: Vec<u8>, failure: Failure) -> Self {
        path.truncate(MAX_TOLD_PATH_LEN);
        Self { path, failure }
    }

    /// Relative to the destination, components joined by slashes, for people and reports only; empty
    /// if it is about the whole.
    pub fn path(&self) -> &[u8] {
        &self.path
    }
}

/// Which directories and files the sources are, as far as the receiver needs to know if it is on the
/// same host (SEL-3).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Whereabouts {
    /// The boot id of the sender's host: device and inode numbers mean something for the same one only.
    pub boot: [u8; 16],
    /// No more than [`MAX_SOURCE_NODES`].
    pub nodes: Vec<SourceNode>,
}

/// Which directory or file a source is.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub struct SourceNode {
    pub device: u64,
    pub inode: u64,
    pub kind: SourceKind,
}

/// How a source comes to be below the destination.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub enum SourceKind {
    /// It is no directory, or a symlink leads there that is not followed.
    Other,
    /// A directory, by its name.
    Directory,
    /// A directory of which only the contents are meant.
    Contents,
}

/// How many things were removed at the destination.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct Deletions {
    pub done: u64,
    /// Left there because of [`Delete::max`].
    pub over_limit: u64,
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
        Self { code, text: Text::new(text).0 }
    }

    /// The sentence.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A sentence for people, at most [`MAX_TEXT_LEN`] long, with nothing in it that a terminal obeys
/// (ERR-2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Text(String);

impl Text {
    pub fn new(text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        truncate(&mut text);
        let mut text = if text.chars().any(is_obeyed) {
            let show = |c: char| if is_obeyed(c) { c.escape_default().collect() } else { c.into() };
            text.chars().map(show).collect::<Vec<String>>().concat()
        } else {
            text
        };
        truncate(&mut text);
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_string(self) -> String {
        self.0
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

impl Entry {
    /// The size of a file, in bytes; 0 for anything else.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::File(file) => file.size,
            _ => 0,
        }
    }

    /// What it counts for among the entries that are open: 1, and 1 more for each KiB beyond what
    /// every entry has (ENTRY-4). An attribute takes memory even if there is nothing in it.
    pub fn weight(&self) -> u32 {
        let more = match &self.kind {
            Kind::Symlink { target } => target.len(),
            Kind::Unsendable(failure) => failure.text().len(),
            _ => 0,
        };
        let attributes = self.metadata.attributes.len() * ATTRIBUTE_OVERHEAD;
        let weight = 1 + (more + self.metadata.attributes_len() + attributes) / 1024;
        u32::try_from(weight).unwrap_or(u32::MAX)
    }
}

impl Metadata {
    /// All names and values of its attributes, in bytes.
    pub fn attributes_len(&self) -> usize {
        self.attributes.iter().map(|it| it.name.len() + it.value.len()).sum()
    }

    /// Names the first thing about it that no correct sender says (META-2). What was decoded has
    /// been checked.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.attributes.len() > MAX_ATTRIBUTES {
            return Err("it has more than 16,384 attributes");
        }
        if self.attributes_len() > MAX_ATTRIBUTES_LEN {
            return Err("its attributes are longer than 512 KiB");
        }
        for Attribute { name, value } in &self.attributes {
            if !(1..=255).contains(&name.len()) || name.contains(&0) {
                return Err("an attribute has no valid name");
            }
            if value.len() > MAX_ATTRIBUTE_LEN {
                return Err("an attribute is longer than 64 KiB");
            }
        }
        if self.attributes.windows(2).any(|pair| pair[0].name >= pair[1].name) {
            return Err("its attributes are not in order");
        }
        Ok(())
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

/// The longest that all filter rules may be together, in bytes.
pub const MAX_FILTERS_LEN: usize = 256 << 10;

/// The longest value of an extended attribute, and all names and values of an entry, in bytes.
pub const MAX_ATTRIBUTE_LEN: usize = 64 << 10;
pub const MAX_ATTRIBUTES_LEN: usize = 512 << 10;

/// The most extended attributes of an entry: more than Linux can list.
pub const MAX_ATTRIBUTES: usize = 16_384;

/// What an attribute counts for beside its name and value, in bytes.
const ATTRIBUTE_OVERHEAD: usize = 128;

/// The longest path in [`Options`], in bytes, and the longest changes of permission bits.
pub const MAX_PATH_LEN: usize = 4096;

/// The longest [`Update::time_step`], in nanoseconds.
pub const MAX_TIME_STEP: u32 = 2_000_000_000;

/// The most directories of [`Update::link_dest`].
pub const MAX_LINK_DEST: usize = 20;

/// How many sources the receiver is told of by their inodes.
pub const MAX_SOURCE_NODES: usize = 65_536;

/// The longest path of a [`Deleted`] or a [`Complaint`], in bytes.
pub const MAX_TOLD_PATH_LEN: usize = 64 << 10;

/// How many owners, and how many groups, a session tells of at the most (META-3).
pub const MAX_OWNERS: usize = 65_536;

/// Whether a path in [`Options`] can lead anywhere.
fn is_path(path: &[u8]) -> bool {
    (1..=MAX_PATH_LEN).contains(&path.len()) && !path.contains(&0)
}

/// Whether an owner or group can be called this: what a line of `passwd` has room for.
fn is_owner_name(name: &[u8]) -> bool {
    (1..=255).contains(&name.len()) && !name.iter().any(|byte| matches!(byte, b':' | 0))
}

/// Whether a path can be one that the peer is told of.
pub fn is_told_path(path: &[u8]) -> bool {
    path.len() <= MAX_TOLD_PATH_LEN && !path.contains(&0)
}

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
checked!(Changes, u16, |changes| changes.0, |raw| (raw <= Self::ALL).then_some(Self(raw)));
checked!(Owner, (u32, Vec<u8>), |owner| (owner.id, &owner.name), |raw| {
    is_owner_name(&raw.1).then_some(Self { id: raw.0, name: raw.1 })
});
checked!(Deleted, (Vec<u8>, bool), |deleted| (&deleted.path, deleted.is_directory), |raw| {
    let is_path = !raw.0.is_empty() && is_told_path(&raw.0);
    is_path.then_some(Self { path: raw.0, is_directory: raw.1 })
});
checked!(Whereabouts, ([u8; 16], Vec<SourceNode>), |it| (it.boot, &it.nodes), |raw| {
    (raw.1.len() <= MAX_SOURCE_NODES).then_some(Self { boot: raw.0, nodes: raw.1 })
});
checked!(Complaint, (Vec<u8>, Failure), |complaint| (&complaint.path, &complaint.failure), |raw| {
    is_told_path(&raw.0).then_some(Self { path: raw.0, failure: raw.1 })
});
checked!(Failure, (FailureCode, String), |failure| (failure.code, &failure.text), |raw| {
    Some(Self::new(raw.0, raw.1))
});
checked!(Text, String, |text| text.0, |raw| Some(Self::new(raw)));
checked!(Timestamp, (i64, u32), |time| (time.seconds, time.nanoseconds()), |raw| {
    Self::new(raw.0, raw.1)
});

/// The parts in order, and then the check, so that no other metadata comes from a peer (META-2).
impl<Context> Decode<Context> for Metadata {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let mode = Decode::decode(decoder)?;
        let mtime = Decode::decode(decoder)?;
        let owner = Decode::decode(decoder)?;
        let group = Decode::decode(decoder)?;
        let count = usize::try_from(u64::decode(decoder)?).ok().filter(|it| *it <= MAX_ATTRIBUTES);
        let count = count.ok_or(DecodeError::Other("too many attributes"))?;
        // Claimed beside the bytes that they are read from, since they take far more room.
        decoder.claim_container_read::<Attribute>(count)?;
        let mut attributes = Vec::with_capacity(count);
        for _ in 0..count {
            attributes.push(Decode::decode(decoder)?);
        }
        let metadata = Self { mode, mtime, owner, group, attributes };
        metadata.check().map_err(DecodeError::Other)?;
        Ok(metadata)
    }
}

impl<'de, Context> BorrowDecode<'de, Context> for Metadata {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        <Self as Decode<Context>>::decode(decoder)
    }
}

/// How many entries may be announced and not ended, at the most (ENTRY-4).
pub const MAX_OPEN_ENTRIES: u32 = 65_536;
