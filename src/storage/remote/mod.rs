//! Places without an agent: what each of them can do, and what makes a source and a sink of it.
//!
//! An [`Endpoint`] is a small set of operations on keys. Everything that is the same for all of them
//! is written once above it. What an endpoint can and cannot do is data ([`Properties`]), so that
//! nobody asks which one it is.

mod deletions;
mod fault;
mod file;
mod key;
mod place;
mod sink;
mod source;
mod unfinished;
mod walk;

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;

pub use fault::{Class, Fault};
pub use key::{Key, KeyError};
pub use sink::RemoteSink;
pub use source::RemoteSource;
pub use unfinished::{Unfinished, is_temporary, remove_unfinished, temporary_files};
pub use walk::{OWN_PREFIX, implied};

use super::{Left, Receipt, Remembers, Token};
use crate::protocol::chunk::{ByteRange, ChunkData, ChunkSize, Digest};
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{Changes, Kind, Mode};
use crate::protocol::sparse::Part;

/// A place that keeps files under keys, and that no program of ours runs at.
///
/// A clone is another handle on it. Every operation may be called many times at once. Operations
/// retry by themselves what is worth it; what they return is final for what was asked.
pub trait Endpoint: Clone + Send + Sync + 'static {
    /// A file that is being read. A clone is another handle on it.
    type Open: Clone + Send + Sync + 'static;

    /// A file that is coming and is not in its place yet. A clone is another handle on it.
    type Upload: Clone + Send + Sync + 'static;

    fn properties(&self) -> &Properties;

    /// A key for people, as they would write it: `s3://bucket/key`. Never with a secret.
    fn shown(&self, key: &Key) -> Vec<u8>;

    /// How many connections or requests at a time carry large files, for reports, where a session has so
    /// many channels.
    fn streams(&self, channels: u16) -> u16 {
        u16::try_from(self.properties().requests).map_or(channels, |most| most.min(channels))
    }

    /// What a path of the user's means, whether or not there is anything. One that was written as a
    /// directory's is told by `is_directory`, and may have slashes at its end.
    ///
    /// # Errors
    ///
    /// If it cannot be a key, or the endpoint cannot tell which.
    fn resolve(&self, path: &[u8], is_directory: bool) -> impl Future<Output = Answer<Key>> + Send {
        let _ = is_directory;
        std::future::ready(Key::of_path(path).map_err(Into::into))
    }

    /// Whether a file may have this key, as far as that is known without asking.
    ///
    /// # Errors
    ///
    /// [`Class::Name`] if it may not.
    fn check(&self, key: &Key) -> Answer<()> {
        if self.properties().keeps.any_bytes || std::str::from_utf8(key.as_bytes()).is_ok() {
            return Ok(());
        }
        Err(Fault::new(Class::Name, "the name is not UTF-8, and no other can be stored there"))
    }

    /// What is there, with all that the endpoint knows about it. Symlinks are not followed.
    ///
    /// Where directories are only implied, a key that others begin with is a directory.
    fn stat(&self, key: &Key) -> impl Future<Output = Answer<Option<Thing>>> + Send;

    /// Tells what is directly in a directory, or, if `deep`, all that is below it, in groups and in
    /// any order. A directory that is not there is [`Class::Missing`].
    ///
    /// Names that are no [`Key`] come as [`Listed::Unusable`]. Ends early, without an error, when
    /// nobody listens any more. Only a listing that ended well is complete.
    fn list(
        &self,
        directory: &Key,
        deep: bool,
        found: flume::Sender<Vec<Listed>>,
    ) -> impl Future<Output = Answer<()>> + Send;

    /// Opens a file that [`Self::list`] or [`Self::stat`] told of.
    ///
    /// # Errors
    ///
    /// [`Class::Changed`] if it is known to be another one already; later reads may find out too.
    fn open(&self, key: &Key, thing: &Thing) -> impl Future<Output = Answer<Self::Open>> + Send;

    /// Reads exactly this much from there on.
    ///
    /// # Errors
    ///
    /// [`Class::Changed`] if the file ends before, or is not what it was when it was opened.
    fn read(
        &self,
        file: &Self::Open,
        offset: u64,
        into: &mut [u8],
    ) -> impl Future<Output = Answer<()>> + Send;

    /// Whether a file is still what it was when it was opened, to be asked after the last read.
    fn confirm(&self, file: &Self::Open) -> impl Future<Output = Answer<bool>> + Send;

    /// Writes a whole small file and puts it in its place, replacing what was there as
    /// [`Properties::replaces`] says.
    fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> impl Future<Output = Answer<()>> + Send;

    /// Begins a file of this size and so many parts, which nobody sees under its key before [`Self::finish`].
    fn begin(
        &self,
        key: &Key,
        size: u64,
        parts: u64,
        kept: &Kept,
    ) -> impl Future<Output = Answer<Self::Upload>> + Send;

    /// What tells this upload from any other, for [`Self::resume`] and [`Self::abandon`] in a later
    /// process.
    fn token(&self, upload: &Self::Upload) -> Token;

    /// Takes up what an earlier process began, if it is still there, and says which chunks of those
    /// that it had written are lost. A chunk's number is its offset divided by the chunk size.
    fn resume(
        &self,
        key: &Key,
        size: u64,
        left: &Left,
    ) -> impl Future<Output = Answer<Option<(Self::Upload, Vec<u64>)>>> + Send;

    /// Writes part of a file, in any order, many parts at once, and the same part again if need be.
    /// `number` is the part's place in the file, counted from 0; every part but the last has the same
    /// length.
    fn write(
        &self,
        upload: &Self::Upload,
        number: u64,
        range: ByteRange,
        data: ChunkData,
    ) -> impl Future<Output = Answer<Receipt>> + Send;

    /// Reads back what was written, if [`Properties::remembers`] is [`Remembers::Reread`].
    fn reread(
        &self,
        upload: &Self::Upload,
        offset: u64,
        into: &mut [u8],
    ) -> impl Future<Output = Answer<()>> + Send {
        let _ = (upload, offset, into);
        let text = "what is under way there cannot be read";
        std::future::ready(Err(Fault::new(Class::Unsupported, text)))
    }

    /// Which of these parts, whose offsets ascend, hold what [`Self::write`] gave their receipts for, as far
    /// as the endpoint tells without their being read back; `None` where it does not.
    fn holds(
        &self,
        upload: &Self::Upload,
        chunk_size: ChunkSize,
        parts: &[(ByteRange, Receipt)],
    ) -> impl Future<Output = Vec<Option<bool>>> + Send {
        let _ = (upload, chunk_size);
        std::future::ready(vec![None; parts.len()])
    }

    /// Waits until what was written is on stable storage, if [`Properties::syncs`]. Where whatever was
    /// acknowledged is kept, there is nothing to wait for.
    fn sync(&self, upload: &Self::Upload) -> impl Future<Output = Answer<()>> + Send {
        let _ = upload;
        std::future::ready(Ok(()))
    }

    /// Puts a complete file in its place. `receipts` are those of all its parts, by number.
    fn finish(
        &self,
        upload: Self::Upload,
        key: &Key,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> impl Future<Output = Answer<()>> + Send;

    /// Removes what is there of an upload that will not be finished. What is not there is no error.
    fn abandon(&self, key: &Key, token: &Token) -> impl Future<Output = Answer<()>> + Send;

    /// Waits until nothing is left there of what was being made when nobody waited for it any more: of
    /// small files and symlinks, as [`Self::token`] is there for large ones.
    fn give_up(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Tells what is left of uploads in a directory, and below it, in groups and in any order: of all that
    /// were begun and neither finished nor abandoned, those that are still under way among them.
    ///
    /// Ends early, without an error, when nobody listens any more.
    fn unfinished(
        &self,
        directory: &Key,
        found: flume::Sender<Vec<Unfinished>>,
    ) -> impl Future<Output = Answer<()>> + Send {
        temporary_files(self, directory, found)
    }

    /// Makes a directory, whose parent is there. One that is there already is no error. Does nothing
    /// where directories are only implied.
    fn make_directory(&self, key: &Key) -> impl Future<Output = Answer<()>> + Send {
        let _ = key;
        std::future::ready(Ok(()))
    }

    /// Makes a symlink in place of any other symlink.
    fn make_symlink(
        &self,
        key: &Key,
        target: &[u8],
        kept: &Kept,
    ) -> impl Future<Output = Answer<()>> + Send {
        let _ = (key, target, kept);
        let text = "there are no symlinks there";
        std::future::ready(Err(Fault::new(Class::Unsupported, text)))
    }

    /// Corrects what is kept of a thing beside its data; only `changes` differ.
    fn set(
        &self,
        key: &Key,
        thing: &Thing,
        kept: &Kept,
        changes: Changes,
    ) -> impl Future<Output = Answer<()>> + Send;

    /// Removes things, directories only if they are empty. The answers are in the order of the keys.
    fn remove(&self, things: Vec<(Key, ThingKind)>)
    -> impl Future<Output = Vec<Answer<()>>> + Send;

    /// Whether files of this other endpoint can be copied here without passing through this process:
    /// both are at the same server, and for the same user.
    fn copies_from(&self, source: &Self) -> bool {
        let _ = source;
        false
    }

    /// Copies a whole file of `source`, of any size, without its data passing through here.
    ///
    /// # Errors
    ///
    /// [`Class::Unsupported`] where that is not possible, [`Class::Changed`] if it is another version.
    fn copy(
        &self,
        source: &Self,
        from: &Key,
        thing: &Thing,
        to: &Key,
        kept: &Kept,
    ) -> impl Future<Output = Answer<()>> + Send;
}

pub type Answer<T> = Result<T, Fault>;

/// What an endpoint can do, as it turned out when it was opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Properties {
    /// How reports name it: `sftp`.
    pub name: &'static str,
    pub replaces: Replaces,
    pub remembers: Remembers,
    /// What was written of a large file can be made to last across a power cut, or does anyway.
    pub syncs: bool,
    /// Whatever is in its place lasts across a power cut.
    pub lasts: bool,
    pub keeps: Keeps,
    /// The longest file, in bytes.
    pub max_size: u64,
    pub parts: Parts,
    /// How many requests are worth being made at a time.
    pub requests: usize,
    /// A listing tells as much about a thing as a stat of it.
    pub lists_all: bool,
    /// Files can be copied within it.
    pub copies: bool,
    /// Nobody on the way can read what travels.
    pub encrypts: bool,
}

/// What becomes of an old file when a new one takes its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Replaces {
    /// At every instant there is the old one or the new one.
    Atomically,
    /// The old one steps aside first, or is removed.
    ByRemoving,
}

/// What an endpoint keeps beside a file's data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Keeps {
    /// Modification times, in steps of this length; `None` if it has its own only.
    pub times: Option<Duration>,
    /// The first and the last that it can keep, in seconds since 1970.
    pub time_range: (i64, i64),
    pub modes: bool,
    pub symlinks: bool,
    /// Directories are things of their own. Otherwise they are where keys have slashes.
    pub directories: bool,
    /// When a directory was changed last is known.
    pub directory_times: bool,
    pub roots: KeepsRoot,
    /// Names that are not UTF-8.
    pub any_bytes: bool,
}

/// Whether a file's BLAKE3 root is kept beside it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeepsRoot {
    Never,
    /// If it is known when the file is begun.
    FromTheBeginning,
    /// Until the file is put in its place.
    ToTheEnd,
}

/// What the parts of a large file must be like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parts {
    /// All but the last are at least so long, in bytes.
    pub min_len: u32,
    pub max_count: u64,
    /// They are written in their order, and never again: the file is one request. What is not in its
    /// turn waits for it.
    pub in_order: bool,
}

/// What a listing comes across.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Listed {
    Thing(Key, Thing),
    /// It is there, and its name cannot be a path.
    Unusable {
        shown: Vec<u8>,
        reason: KeyError,
    },
    /// It is there, and what it is cannot be told.
    Unknown(Key, Fault),
}

/// Something that is at an endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Thing {
    pub kind: ThingKind,
    /// In bytes; 0 of what is no file.
    pub size: u64,
    /// When the file was written at its first place, if the endpoint keeps that.
    pub mtime: Option<Timestamp>,
    /// When it was written here.
    pub modified: Option<Timestamp>,
    pub mode: Option<Mode>,
    /// The numbers of user and group.
    pub owners: Option<(u32, u32)>,
    /// Another one if the content is another: an `ETag`, a generation.
    pub tag: Option<Box<[u8]>>,
    /// The root that was stored with it. It is a claim.
    pub root: Option<Digest>,
    /// Of a symlink.
    pub target: Option<Box<[u8]>>,
}

impl Thing {
    /// Whether it may stay in the place of an entry of this kind.
    pub fn is_same_type(&self, kind: &Kind) -> bool {
        matches!(
            (self.kind, kind),
            (ThingKind::File, Kind::File(_))
                | (ThingKind::Directory, Kind::Directory)
                | (ThingKind::Symlink, Kind::Symlink { .. })
        )
    }

    /// How it is called where it is in the way.
    pub fn what(&self) -> &'static str {
        match self.kind {
            ThingKind::File => "a file",
            ThingKind::Directory => "a directory",
            ThingKind::Symlink => "a symlink",
            ThingKind::Other => "a special file",
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ThingKind {
    File,
    Directory,
    Symlink,
    /// A device, a FIFO, a socket.
    Other,
}

/// What is to be kept of a file beside its data; `None` is left to the endpoint.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Kept {
    pub mtime: Option<Timestamp>,
    pub mode: Option<Mode>,
    pub root: Option<Digest>,
}

/// Does many things, at most so many at a time; the answers are in their order.
pub async fn all<F: Future>(futures: Vec<F>, limit: usize) -> Vec<F::Output> {
    let numbered = futures.into_iter().enumerate();
    let numbered = numbered.map(async |(number, future)| (number, future.await));
    let numbered: Vec<_> = numbered.collect();
    let answers = futures_util::stream::iter(numbered).buffer_unordered(limit.max(1));
    let mut answers: Vec<(usize, F::Output)> = answers.collect().await;
    answers.sort_unstable_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// A number that no other upload has.
pub fn nonce() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::time::Instant::now())
}

/// A chunk's data as it is to be written, zeros for holes, without a copy of it.
pub fn pieces(range: ByteRange, data: &ChunkData) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    match data {
        ChunkData::Bytes(bytes) => pieces.push(bytes.clone()),
        ChunkData::Hole => push_zeros(&mut pieces, u64::from(range.len())),
        ChunkData::Sparse(sparse) => {
            for part in sparse.parts() {
                match part {
                    Part::Hole(len) => push_zeros(&mut pieces, u64::from(len)),
                    Part::Data(data) => pieces.push(sparse.payload().slice_ref(data)),
                }
            }
        }
    }
    pieces
}

fn push_zeros(pieces: &mut Vec<Bytes>, mut len: u64) {
    while len > 0 {
        let take = usize::try_from(len).map_or(ZEROS.len(), |len| len.min(ZEROS.len()));
        pieces.push(Bytes::from_static(&ZEROS[..take]));
        len -= take as u64;
    }
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::chunk::EntryId;

    #[test]
    fn a_hole_is_written_as_zeros() {
        let range = ByteRange::new(EntryId(1), 0, 150_000, true).unwrap();
        let written = pieces(range, &ChunkData::Hole).concat();
        assert_eq!(written, vec![0; 150_000]);
        let data = ChunkData::Bytes(Bytes::from_static(b"data"));
        assert_eq!(pieces(range, &data).concat(), b"data");
    }
}
