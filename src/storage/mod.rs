//! Where bytes rest: the two ends of a transfer.
//!
//! A [`Source`] gives entries and chunks; a [`Sink`] takes verified chunks and nothing else.
//! Storage knows files and nothing of networks.

mod any;
mod error;
pub mod filter;
pub mod http;
pub mod local;
pub mod memory;
mod names;
pub mod object;
pub mod remote;
mod select;
pub mod sftp;
mod upload;

use std::sync::Arc;

pub use any::AnyEndpoint;
pub use error::{Operation, StorageError};
pub use names::NameSet;
pub use upload::{Left, Receipt, Remembers, Reopened, Token};

use crate::protocol::buffer::{Buffer, Pool};
use crate::protocol::chunk::{
    ByteRange, Chunk, Digest, EntryId, Pack, VerifiedChunk, VerifiedFile,
};
use crate::protocol::message::{
    Changes, Complaint, Deleted, Deletions, Entry, Metadata, Owner, Whereabouts,
};

/// Gives what exists, and its data, already hashed.
///
/// A clone is another handle on the same source.
pub trait Source: Clone + Send + Sync + 'static {
    /// An open file. A clone is another handle on it.
    type File: Clone + Send + Sync + 'static;

    /// Whether the only source is something else than a directory (ENTRY-1).
    fn is_single_file(&self) -> bool;

    /// What the directory is like whose contents are the source, if that is to be kept (META-1).
    fn root(&self) -> Option<Metadata>;

    /// Which directories and files the sources are (SEL-3).
    fn whereabouts(&self) -> Whereabouts;

    /// Finds every entry and hands it to `found`, parents before their children, with identities
    /// counted from 1. Things that cannot be read become entries too ([`Kind::Unsendable`]).
    ///
    /// What is found comes in groups, in order, so that the listener is not woken for every entry.
    ///
    /// Ends early, without an error, when nobody listens any more.
    ///
    /// [`Kind::Unsendable`]: crate::protocol::message::Kind::Unsendable
    fn walk(
        &self,
        found: flume::Sender<Vec<Found>>,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Opens a file, and checks that it still is what the entry says.
    ///
    /// # Errors
    ///
    /// [`StorageError::Changed`] if it is not, [`StorageError::Vanished`] if it is gone.
    fn open(
        &self,
        entry: Arc<Entry>,
    ) -> impl Future<Output = Result<Self::File, StorageError>> + Send;

    /// Reads a range of an open file and hashes it while it is in the cache; finds holes.
    fn read(
        &self,
        file: Self::File,
        range: ByteRange,
        version: u16,
        pool: &Pool,
    ) -> impl Future<Output = Result<Chunk, StorageError>> + Send;

    /// Checks that an open file is what it was when it was opened, to be called after its last read.
    ///
    /// # Errors
    ///
    /// [`StorageError::Changed`] if it is not.
    fn confirm(&self, file: Self::File) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// What is stored with an open file as its root: a claim, to be held against what was read.
    fn known_root(&self, _: &Self::File) -> Option<Digest> {
        None
    }

    /// Reads whole small files into one pack. Each is opened, read, and checked for changes.
    ///
    /// `buffer` is long enough for the table and all of the files as announced. A file that cannot
    /// be read is left out of the pack and named with its error; the pack is `None` if none is left.
    fn read_pack(
        &self,
        number: u64,
        files: Vec<(Arc<Entry>, u16)>,
        buffer: Buffer,
    ) -> impl Future<Output = PackRead> + Send;

    /// Looks at an entry again, after it was found changed: the same identity, parent and name, and
    /// what it is now.
    fn look_again(
        &self,
        entry: Arc<Entry>,
    ) -> impl Future<Output = Result<Entry, StorageError>> + Send;

    /// Removes files that are durably at the destination, each only if it still is what its entry
    /// says. The answers are in the order of the entries.
    fn remove(
        &self,
        entries: Vec<Arc<Entry>>,
    ) -> impl Future<Output = Vec<Result<(), StorageError>>> + Send;

    /// The entry's path for people and reports: relative to the destination, components joined by
    /// slashes.
    fn path(&self, entry: &Entry) -> Vec<u8>;
}

/// What a walk comes across.
#[derive(Clone, Debug)]
pub enum Found {
    Entry(Entry),
    /// What numbers are called that entries after this have as their owners and groups.
    Owners {
        users: Vec<Owner>,
        groups: Vec<Owner>,
    },
    /// All that is in this directory was found, without an error.
    Listed(EntryId),
    /// What is wrong with an entry before this, or with the whole.
    Complaint(Complaint),
}

/// What became of reading a pack.
#[derive(Debug)]
pub struct PackRead {
    pub pack: Option<Pack>,
    pub failed: Vec<(EntryId, StorageError)>,
    /// The roots of the files in the pack.
    pub roots: Vec<(EntryId, Digest)>,
}

/// Keeps data that was verified, and no other.
///
/// A clone is another handle on the same sink.
pub trait Sink: Clone + Send + Sync + 'static {
    /// A file that is being written, under a temporary name. A clone is another handle on it.
    type File: Clone + Send + Sync + 'static;

    /// A small file that is complete and not in its place yet.
    type Prepared: Send + 'static;

    /// Takes note of what owners and groups are called at the sender, before entries that have them.
    fn learn_owners(&self, users: Vec<Owner>, groups: Vec<Owner>);

    /// Takes note of what the destination's own directory is to be like in the end. Returns what is
    /// different about it now.
    fn keep_root(&self, metadata: Metadata) -> Changes;

    /// Looks at what is there for each entry, in order; makes directories, symlinks and special
    /// files, and corrects the metadata of files whose content is right. The answers are in the order
    /// of the entries.
    fn place(
        &self,
        entries: Vec<Arc<Entry>>,
    ) -> impl Future<Output = Vec<Result<Placed, StorageError>>> + Send;

    /// Goes on with a file after [`Placed::Compare`], when it is known whether its data is equal.
    fn place_compared(
        &self,
        entry: Arc<Entry>,
        is_equal: bool,
    ) -> impl Future<Output = Result<Placed, StorageError>> + Send;

    /// Opens the file that is in an entry's place, for [`Self::digest`].
    fn open_existing(
        &self,
        entry: Arc<Entry>,
    ) -> impl Future<Output = Result<Self::File, StorageError>> + Send;

    /// Makes an entry a hard link of another, which is in its place.
    fn link(
        &self,
        entry: Arc<Entry>,
        leader: Arc<Entry>,
    ) -> impl Future<Output = Result<Placed, StorageError>> + Send;

    /// What could not be kept of entries whose content is there, since the last call.
    fn complaints(&self) -> Vec<StorageError>;

    /// What had to go for entries of another type, since the last call; in a dry run, what would.
    fn removed(&self) -> Removed;

    /// How much of what was written a later run may count on.
    fn remembers(&self) -> Remembers;

    /// Whether [`Self::sync_files`] makes a difference.
    fn syncs(&self) -> bool;

    /// Whether all that was put in its place is on stable storage after [`Self::sync_all`].
    fn lasts(&self) -> bool;

    /// Creates the temporary file for an entry, empty of data and of the entry's size. What an
    /// earlier run left under that name is removed. `root` is what its data amounts to, if that is
    /// known already.
    fn create(
        &self,
        entry: Arc<Entry>,
        root: Option<Digest>,
    ) -> impl Future<Output = Result<Self::File, StorageError>> + Send;

    /// Opens the temporary file that an earlier run of the job left for an entry, if it is the very
    /// one ([`Self::identity`]) and has the entry's size.
    fn reopen(
        &self,
        entry: Arc<Entry>,
        left: Left,
    ) -> impl Future<Output = Result<Option<Reopened<Self::File>>, StorageError>> + Send;

    /// What tells this temporary file from another that took its name.
    fn identity(&self, file: &Self::File) -> Token;

    /// Hashes a range of a temporary file.
    fn digest(
        &self,
        file: Self::File,
        range: ByteRange,
        pool: &Pool,
    ) -> impl Future<Output = Result<Digest, StorageError>> + Send;

    /// Which of these ranges of a temporary file, whose offsets ascend, still hold what was written to them.
    /// What each amounts to is given. One that cannot be read does not hold it.
    fn holds(
        &self,
        file: Self::File,
        ranges: Vec<(ByteRange, Digest)>,
        pool: &Pool,
    ) -> impl Future<Output = Vec<bool>> + Send {
        async move {
            let mut holds = Vec::with_capacity(ranges.len());
            for (range, value) in ranges {
                let found = self.digest(file.clone(), range, pool).await;
                holds.push(found.is_ok_and(|found| found == value));
            }
            holds
        }
    }

    /// Writes a chunk in its place in the temporary file. A hole stays one where possible.
    fn write(
        &self,
        file: Self::File,
        chunk: VerifiedChunk,
    ) -> impl Future<Output = Result<Receipt, StorageError>> + Send;

    /// Puts a complete temporary file in its place, with its mode and times. Until the rename that
    /// ends this, the old file stays whole. `root` is what its data amounts to, if that was hashed.
    fn commit(
        &self,
        file: Self::File,
        entry: Arc<Entry>,
        root: Option<Digest>,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Removes a temporary file.
    fn discard(&self, file: Self::File) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Removes the temporary file that an earlier run left for an entry which this run has not
    /// announced. `path` is as [`Self::path`] gave it.
    fn discard_left_over(&self, path: Vec<u8>, identity: Token) -> impl Future<Output = ()> + Send;

    /// Waits until nothing is left there of small files that were being written when the session was given up.
    fn give_up(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Writes whole small files, with their metadata. The answers are in their order.
    fn prepare_files(
        &self,
        files: Vec<(VerifiedFile, Arc<Entry>)>,
    ) -> impl Future<Output = Vec<Result<Self::Prepared, StorageError>>> + Send;

    /// Waits until the data of everything that was prepared is on stable storage.
    fn sync_prepared(&self) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// How many prepared files may wait to be committed.
    fn max_prepared(&self) -> usize;

    /// Puts small files in their places. The answers are in their order.
    fn commit_files(
        &self,
        files: Vec<(Self::Prepared, Arc<Entry>)>,
    ) -> impl Future<Output = Vec<Result<(), StorageError>>> + Send;

    /// Waits until an entry's name is on stable storage.
    fn sync_name(&self, entry: Arc<Entry>)
    -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Whether the sink reaches the source by itself, so that data need not pass through here.
    fn can_copy(&self) -> bool;

    /// Copies whole small files from the source, with their metadata, if [`Self::can_copy`]. The
    /// answers are in their order; a source that changed is [`StorageError::Changed`].
    fn copy_files(
        &self,
        entries: Vec<Arc<Entry>>,
    ) -> impl Future<Output = Vec<Result<Self::Prepared, StorageError>>> + Send;

    /// Copies a range of the source's file into the temporary one, holes as holes. The whole file
    /// shares the source's blocks afterwards, and `true` comes back, where the file system can do
    /// that at once.
    fn copy_range(
        &self,
        file: Self::File,
        range: ByteRange,
    ) -> impl Future<Output = Result<bool, StorageError>> + Send;

    /// Checks that the source of a copy is what it was when the first range was copied.
    fn confirm_copy(
        &self,
        file: Self::File,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Removes what is in complete directories and is not among the names, as the options say, and
    /// tells of each. In a dry run it only tells. What could not be removed is in
    /// [`Self::complaints`].
    fn delete(
        &self,
        complete: Vec<EntryId>,
        names: NameSet,
        deleted: flume::Sender<Deleted>,
    ) -> impl Future<Output = Result<Deletions, StorageError>> + Send;

    /// Waits until the data of temporary files is on stable storage.
    fn sync_files(
        &self,
        files: Vec<Self::File>,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Gives directories their metadata, the deepest first. What could not be kept is in
    /// [`Self::complaints`].
    fn finish(&self) -> impl Future<Output = ()> + Send;

    /// What else people may want to know after [`Self::finish`].
    fn note(&self) -> Option<String> {
        None
    }

    /// Waits until everything is on stable storage: contents, names, metadata.
    fn sync_all(&self) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// The entry's path for people, reports and the journal: relative to the destination's root,
    /// components joined by slashes.
    fn path(&self, entry: &Entry) -> Vec<u8>;
}

/// What had to go so that something of another type could take its place.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    pub deleted: Vec<Deleted>,
    /// How much more there was to remove than [`Delete::max`] allows.
    ///
    /// [`Delete::max`]: crate::protocol::message::Delete::max
    pub over_limit: u64,
}

/// What a sink found for an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Placed {
    /// It is as it is to be, and this had to be changed for it; in a dry run, would have to be.
    Settled(Changes),
    /// A file's data is to be sent, and this is different about it.
    Wanted(Changes),
    /// Whether a file's data is to be sent shows when it is known what it amounts to at both ends.
    Compare(Existing),
    /// The options say that it is left alone.
    Left,
}

/// How it shows what the file in an entry's place amounts to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Existing {
    /// It has to be read.
    Unread,
    /// It was stored with it.
    Root(Digest),
    /// It does not matter: the sink has to know what the new data amounts to before it comes.
    Replaced,
}

impl Placed {
    /// The same, with more that is different.
    #[must_use]
    pub fn with(self, more: Changes) -> Self {
        match self {
            Self::Settled(changes) => Self::Settled(changes.with(more)),
            Self::Wanted(changes) => Self::Wanted(changes.with(more)),
            Self::Compare(_) | Self::Left => self,
        }
    }
}
