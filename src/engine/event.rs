//! What happened, for whoever shows it.
//!
//! Numbers that change all the time are in [`Progress`], to be looked at as often as one likes;
//! things that happen once are [`Event`]s.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::measure::Finding;
use crate::protocol::chunk::Digest;
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{Complaint, Entry, Kind, Metadata, Outcome, Special};

/// Something that happened once.
#[derive(Clone, Debug)]
pub enum Event {
    /// The agent's program was not on the other host, and was stored there.
    Installed(Installed),
    /// The agent answered, and the first data channel is open.
    Connected(Connection),
    /// An entry has ended.
    Ended(EntryReport),
    /// Something was removed at the destination, or in a dry run would be.
    Deleted { path: Vec<u8>, is_directory: bool },
    /// Something about an entry could not be kept, though its content is there.
    Complaint(Complaint),
    /// The connection was lost; it will be made again after the pause.
    Retrying { cause: String, attempt: u32, pause: Duration },
    /// A data channel was lost and is being made again.
    ChannelLost { channel: u16, cause: String },
    /// A chunk or a pack did not match its digest, and is sent again.
    Mismatch { what: String },
    /// Something was measured.
    Found(Box<Finding>),
    /// Something is left of what was never finished.
    Leftover(Leftover),
    /// Something that people may want to know, such as what the remote shell printed.
    Note(String),
}

/// A program that was brought along.
#[derive(Clone, Debug)]
pub struct Installed {
    /// What it says of itself.
    pub version: String,
    pub host: String,
    /// Where it is on that host.
    pub path: String,
    /// In bytes.
    pub size: u64,
}

/// What is left of an upload or a transfer that was never finished.
#[derive(Clone, Debug)]
pub struct Leftover {
    /// Where it is, or was to be, as a user would write it.
    pub place: Vec<u8>,
    pub size: u64,
    /// When it was written to last, as far as that is known.
    pub since: Option<Timestamp>,
    pub outcome: LeftoverOutcome,
}

/// What became of a [`Leftover`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LeftoverOutcome {
    /// Nothing, as it may still be worked on.
    Kept,
    /// Nothing, as that was not asked for.
    Found,
    Removed,
    /// It could not be removed, and why.
    Failed(String),
}

impl LeftoverOutcome {
    pub(super) fn of<E: std::fmt::Display>(removed: Result<(), E>) -> Self {
        match removed {
            Ok(()) => Self::Removed,
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

/// How the ends are connected.
#[derive(Clone, Debug)]
pub struct Connection {
    /// `tcp+tls`, `tcp`, `quic` or `ssh`; `memory` within one process; `none` where nothing is to be sent.
    pub transport: &'static str,
    pub streams: u16,
    /// The other end of the data channels.
    pub peer: String,
    pub encrypted: bool,
    /// Which end dialled the other: `client` or `agent`; between two other hosts, `source` or
    /// `destination`.
    pub dialler: &'static str,
    /// Why it is this way: what became of those before it, for people.
    pub reason: String,
}

impl Connection {
    /// How many streams there were, of which so many were up at the same time: further logins may be
    /// refused, and others are only late.
    pub fn used(&self, most: u64) -> u16 {
        match u16::try_from(most) {
            Ok(most) if most > 0 && self.transport == "ssh" => self.streams.min(most),
            _ => self.streams,
        }
    }
}

/// How one entry ended: a line of the report.
#[derive(Clone, Debug)]
pub struct EntryReport {
    /// Relative to the destination.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub size: u64,
    /// As it is at the source.
    pub metadata: Metadata,
    /// Where a symlink leads; of a hard link, the path of the entry that it is another name of.
    pub target: Option<Vec<u8>>,
    /// Others may be hard links to it: they are among what is transferred.
    pub is_linked: bool,
    /// What `b3sum` prints, if the file was transferred or hashed in this session.
    pub root: Option<Digest>,
    pub outcome: Outcome,
}

impl EntryReport {
    pub(super) fn new(
        path: Vec<u8>,
        entry: &Entry,
        leader: Option<Vec<u8>>,
        root: Option<Digest>,
        outcome: Outcome,
    ) -> Self {
        let kind = match entry.kind {
            Kind::Directory => EntryKind::Directory,
            Kind::File(_) => EntryKind::File,
            Kind::Symlink { .. } => EntryKind::Symlink,
            Kind::Special(special) => EntryKind::Special(special),
            Kind::HardLink { .. } => EntryKind::HardLink,
            Kind::Unselected | Kind::Unsendable(_) => EntryKind::Other,
        };
        let target = match &entry.kind {
            Kind::Symlink { target } => Some(target.clone()),
            _ => leader,
        };
        let metadata = entry.metadata.clone();
        let (size, is_linked) = (entry.size(), entry.is_linked);
        Self { path, kind, size, metadata, target, is_linked, root, outcome }
    }
}

impl EntryReport {
    /// The path of the destination's own directory.
    pub const ROOT: &[u8] = b".";

    /// What was different about the destination's own directory, with the path `.`. It is no entry,
    /// and is not counted.
    pub(super) fn of_root(metadata: Metadata, outcome: Outcome) -> Self {
        let (path, kind) = (Self::ROOT.to_vec(), EntryKind::Directory);
        let (size, target, is_linked, root) = (0, None, false, None);
        Self { path, kind, size, metadata, target, is_linked, root, outcome }
    }
}

/// What sort of thing an entry is, for reports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EntryKind {
    Directory,
    File,
    Symlink,
    /// A FIFO, a socket or a device.
    Special(Special),
    /// Another name of an entry before it.
    HardLink,
    Other,
}

/// Counters that the engine moves and a display reads.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files that were found at the source, and their bytes.
    pub files_found: Counter,
    pub bytes_found: Counter,
    /// Whether everything has been found.
    pub walk_done: AtomicBool,
    /// Files that have ended, in whatever way.
    pub files_ended: Counter,
    /// Bytes that the receiver has verified and written in this run.
    pub bytes_verified: Counter,
    /// Bytes of files that were there already.
    pub bytes_skipped: Counter,
    /// Bytes of partial files that an earlier run had written.
    pub bytes_resumed: Counter,
    /// Bytes that this end has hashed to compare them or to tell what they amount to.
    pub bytes_hashed: Counter,
    /// Bytes of payload that this end handed to data channels or took from them, repetitions
    /// included.
    pub bytes_sent: Counter,
    /// Data channels that are up, and how many were at the same time at most.
    pub streams: Counter,
    pub most_streams: Counter,
}

impl Progress {
    /// Begins again, for another session of the same run.
    pub(super) fn reset(&self) {
        self.walk_done.store(false, Ordering::Relaxed);
        for counter in [
            &self.files_found,
            &self.bytes_found,
            &self.files_ended,
            &self.bytes_verified,
            &self.bytes_skipped,
            &self.bytes_resumed,
            &self.bytes_hashed,
            &self.bytes_sent,
            &self.streams,
            &self.most_streams,
        ] {
            counter.reset();
        }
    }
}

/// A number that may be moved by many tasks.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Makes it this, unless it is more.
    pub fn raise(&self, amount: u64) {
        self.0.fetch_max(amount, Ordering::Relaxed);
    }

    pub fn subtract(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    /// Takes over what another end has counted.
    pub fn set(&self, amount: u64) {
        self.0.store(amount, Ordering::Relaxed);
    }

    /// Begins at 0 again.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a transfer came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Entries that are there because of this run, that were there, that failed.
    pub done: u64,
    pub skipped: u64,
    pub failed: u64,
    /// Entries of those done that are new, that only got other metadata, that were made hard links.
    pub created: u64,
    pub attributes_only: u64,
    pub linked: u64,
    /// What was removed at the destination, and what stays because of [`Delete::max`].
    ///
    /// [`Delete::max`]: crate::protocol::message::Delete::max
    pub deleted: u64,
    pub over_limit: u64,
    /// In a dry run: entries that would be transferred.
    pub would: u64,
    /// Entries of those failed whose source vanished or changed.
    pub failed_changed: u64,
    /// Entries of those failed whose data never matched its digest.
    pub failed_verification: u64,
    /// Entries whose content is there and something else could not be kept.
    pub complaints: u64,
    /// Sizes of the files that are done, in bytes.
    pub bytes_done: u64,
    pub bytes_sent: u64,
    pub bytes_skipped: u64,
    pub bytes_resumed: u64,
    pub streams: u16,
    pub transport: &'static str,
    /// Which end dialled the other; empty if neither.
    pub dialler: &'static str,
    /// Why it was this way.
    pub reason: String,
    pub encrypted: bool,
    /// All data is on the destination's stable storage.
    pub durable: bool,
    pub dry_run: bool,
    /// How often the connection was made again.
    pub reconnects: u32,
    pub elapsed: Duration,
}
