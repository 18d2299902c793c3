//! Where bytes rest: the two ends of a transfer.
//!
//! A [`Source`] gives entries and chunks; a [`Sink`] takes verified chunks and nothing else.
//! Storage knows files and nothing of networks.

mod error;
pub mod local;

use std::sync::Arc;

pub use error::{Operation, StorageError};

use crate::protocol::buffer::{Buffer, Pool};
use crate::protocol::chunk::{
    ByteRange, Chunk, Digest, EntryId, Pack, VerifiedChunk, VerifiedFile,
};
use crate::protocol::message::Entry;

/// Gives what exists, and its data, already hashed.
///
/// A clone is another handle on the same source.
pub trait Source: Clone + Send + Sync + 'static {
    /// An open file. A clone is another handle on it.
    type File: Clone + Send + Sync + 'static;

    /// Whether the only source is something else than a directory (ENTRY-1).
    fn is_single_file(&self) -> bool;

    /// Finds every entry and hands it to `found`, parents before their children, with identities
    /// counted from 1. Things that cannot be read become entries too ([`Kind::Unsendable`]).
    ///
    /// Ends early, without an error, when nobody listens any more.
    ///
    /// [`Kind::Unsendable`]: crate::protocol::message::Kind::Unsendable
    fn walk(
        &self,
        found: flume::Sender<Entry>,
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

    /// The entry's path for people and reports: relative to the destination, components joined by
    /// slashes.
    fn path(&self, entry: &Entry) -> Vec<u8>;
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

    /// Looks at what is there for each entry, in order, and makes directories and symlinks.
    /// The answers are in the order of the entries.
    fn place(
        &self,
        entries: Vec<Arc<Entry>>,
    ) -> impl Future<Output = Vec<Result<Placed, StorageError>>> + Send;

    /// Creates the temporary file for an entry, empty of data and of the entry's size. What an
    /// earlier run left under that name is removed.
    fn create(
        &self,
        entry: Arc<Entry>,
    ) -> impl Future<Output = Result<Self::File, StorageError>> + Send;

    /// Opens the temporary file that an earlier run of the job left for an entry, if it is the very
    /// one (`identity`, see [`Self::identity`]) and has the entry's size.
    fn reopen(
        &self,
        entry: Arc<Entry>,
        identity: u64,
    ) -> impl Future<Output = Result<Option<Self::File>, StorageError>> + Send;

    /// What tells this temporary file from another that took its name: its inode number.
    fn identity(&self, file: &Self::File) -> u64;

    /// Hashes a range of a temporary file.
    fn digest(
        &self,
        file: Self::File,
        range: ByteRange,
        pool: &Pool,
    ) -> impl Future<Output = Result<Digest, StorageError>> + Send;

    /// Writes a chunk in its place in the temporary file. A hole stays one where possible.
    fn write(
        &self,
        file: Self::File,
        chunk: VerifiedChunk,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Puts a complete temporary file in its place, with its mode and times. Until the rename that
    /// ends this, the old file stays whole.
    fn commit(
        &self,
        file: Self::File,
        entry: Arc<Entry>,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Removes a temporary file.
    fn discard(&self, file: Self::File) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Removes the temporary file that an earlier run left for an entry which this run has not
    /// announced. `path` is as [`Self::path`] gave it.
    fn discard_left_over(&self, path: Vec<u8>, identity: u64) -> impl Future<Output = ()> + Send;

    /// Writes whole small files and puts each in its place. The answers are in their order.
    fn write_files(
        &self,
        files: Vec<(VerifiedFile, Arc<Entry>)>,
    ) -> impl Future<Output = Vec<Result<(), StorageError>>> + Send;

    /// Waits until the data of temporary files is on stable storage.
    fn sync_files(
        &self,
        files: Vec<Self::File>,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Gives directories their modes and times, the deepest first. Returns what could not be kept.
    fn finish(&self) -> impl Future<Output = Vec<(EntryId, StorageError)>> + Send;

    /// Waits until everything is on stable storage: contents, names, metadata.
    fn sync_all(&self) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// The entry's path for people, reports and the journal: relative to the destination's root,
    /// components joined by slashes.
    fn path(&self, entry: &Entry) -> Vec<u8>;
}

/// What a sink found for an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Placed {
    /// A directory or a symlink was made, or given what it lacked.
    Made,
    /// It is there already; a file: with the same size and mtime.
    Same,
    /// A file is to be sent: there is none, or another one.
    Wanted,
    /// In a dry run: it would be made or sent.
    Would,
}
