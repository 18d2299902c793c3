//! Storage in a local Linux file system.
//!
//! In: paths of the operator, and entries whose names cannot leave their directory. Out: a
//! [`LocalSource`] and a [`LocalSink`]. Both resolve every name below held directory descriptors
//! and follow no symlink there, so that nothing outside the operator's roots can be reached, even
//! while somebody swaps directories for symlinks.
//!
//! | File | What it holds |
//! | --- | --- |
//! | `beneath.rs` | the only system calls that resolve paths |
//! | `fence.rs` | a directory that a whole process does not leave |
//! | `tree.rs` | directories by identity: names, paths, open descriptors |
//! | `origin.rs` | what the operator's source arguments mean |
//! | `select.rs` | which of the things at a source are meant |
//! | `walk.rs` | finding what a source has |
//! | `visit.rs` | what becomes of one thing that was come across |
//! | `by_name.rs` | finding only what was asked for |
//! | `examine.rs` | looking at one thing of a source |
//! | `links.rs` | hard links by inode; symlinks that lead out |
//! | `chmod.rs` | changes of permission bits |
//! | `told.rs` | names of owners, before the entries that have them |
//! | `read.rs` | [`LocalSource`]: files as chunks and packs |
//! | `remove.rs` | removing source files that were transferred |
//! | `destination.rs` | what the operator's destination argument means |
//! | `place.rs` | directories, and which files are wanted; directories' last touches |
//! | `nodes.rs` | symlinks, special files, hard links |
//! | `link_dest.rs` | equal files of earlier copies |
//! | `metadata.rs` | what metadata is different, and making it right |
//! | `attributes.rs` | extended attributes |
//! | `acl.rs` | POSIX ACLs as the kernel passes them |
//! | `owners.rs` | users and groups: names and numbers |
//! | `granularity.rs` | how finely a file system keeps times |
//! | `write/` | [`LocalSink`]: chunks into files |
//! | `small.rs` | whole small files |
//! | `replace.rs` | giving what is complete its final name |
//! | `room.rs` | what gives way to something of another type |
//! | `leftovers.rs` | temporary names, and what killed runs left under them |
//! | `backup.rs` | keeping what is replaced or deleted |
//! | `copy.rs` | copying from a source on this machine |
//! | `sync.rs` | waiting for stable storage |
//! | `delete.rs` | what the source does not have |
//! | `remover.rs` | removing one thing with all that is in it |
//! | `host.rs` | what the engine must know of this host |
//! | `measure.rs` | how quick a file system is |
//! | `state.rs` | the directory and the lock of the journal |

mod acl;
mod attributes;
mod backup;
mod beneath;
mod by_name;
pub mod chmod;
mod copy;
mod delete;
mod destination;
mod examine;
mod fence;
mod granularity;
mod host;
mod left_behind;
mod leftovers;
mod link_dest;
mod links;
mod measure;
mod metadata;
mod nodes;
mod origin;
mod owners;
mod place;
mod read;
mod remove;
mod remover;
mod replace;
mod room;
mod rules;
mod small;
mod state;
mod sync;
mod told;
mod tree;
mod visit;
mod walk;
mod write;

#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod delete_tests;
#[cfg(test)]
mod in_place_tests;
#[cfg(test)]
mod replace_tests;
#[cfg(test)]
mod source_tests;
#[cfg(test)]
mod testing;

use rustix::fs::{Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

pub use delete::reads_rules;
pub use fence::{confine, is_confined};
pub use host::{boot_id, processor_time, raise_file_limit};
pub use left_behind::{LeftBehind, journals_left_behind, left_behind};
pub use links::is_unsafe as is_unsafe_link;
pub use measure::{Scratch, disk_speed, micros, room};
pub use read::{LocalSource, SourceFile};
pub use state::StateDir;
pub use write::{LocalSink, SinkFile};

use super::{Operation, StorageError};
use crate::protocol::manifest::Timestamp;

/// The directory below a destination's root in which unfinished jobs keep their journals. No entry
/// may have this name at the top.
const STATE_NAME: &[u8] = b".fastsync";

/// What has to stay equal for a file to be the one that was looked at before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Look {
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
    inode: u64,
}

impl Look {
    fn new(stat: &Stat) -> Self {
        Self {
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            mtime: mtime(stat),
            ctime: timestamp(stat.st_ctime, stat.st_ctime_nsec),
            inode: stat.st_ino,
        }
    }
}

fn mtime(stat: &Stat) -> Timestamp {
    timestamp(stat.st_mtime, stat.st_mtime_nsec)
}

/// A time as the kernel gave it. It never gives a second or more of nanoseconds.
fn timestamp(seconds: i64, nanoseconds: u64) -> Timestamp {
    let nanoseconds = u32::try_from(nanoseconds).unwrap_or_default();
    Timestamp::new(seconds, nanoseconds).unwrap_or_default()
}

/// For `utimensat`: sets the mtime and leaves the atime.
fn only_mtime(time: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: time.seconds,
            tv_nsec: i64::from(time.nanoseconds()),
        },
    }
}

/// The error for something that has to be read: gone, changed its type, or refused.
fn source_error(operation: Operation, path: Vec<u8>, cause: Errno) -> StorageError {
    match cause {
        Errno::NOENT => StorageError::Vanished { path },
        // A symlink, a socket, or a file among the parents, where none was before.
        Errno::LOOP | Errno::NOTDIR | Errno::NXIO => StorageError::Changed { path },
        cause => StorageError::Io { operation, path, cause: cause.into() },
    }
}

/// Runs what may wait for a disk where waiting hurts nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and will drop this future too.
            Err(_) => std::future::pending().await,
        },
    }
}
