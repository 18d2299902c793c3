//! What jobs left behind that never came to their end: temporary files and journals.
//!
//! In: a directory. Out: each of them, to be removed or left where it is. Directories are held while what
//! is in them is looked at, so that nothing is removed elsewhere. What another process works on is left
//! alone if it says so by a lock.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode as FsMode, OFlags, Stat};
use rustix::io::Errno;

use super::state::JOURNAL;
use super::write::is_any_temp_name;
use super::{STATE_NAME, beneath, mtime, remover};
use crate::protocol::manifest::Timestamp;
use crate::storage::{Operation, StorageError};

/// A file that a job left behind.
#[derive(Debug)]
pub struct LeftBehind<'a> {
    pub path: Vec<u8>,
    pub size: u64,
    pub modified: Timestamp,
    dir: BorrowedFd<'a>,
    name: &'a [u8],
}

impl LeftBehind<'_> {
    /// Removes it.
    ///
    /// # Errors
    ///
    /// If it cannot be removed. That it is gone is no error.
    pub fn remove(&self) -> Result<(), StorageError> {
        match rustix::fs::unlinkat(self.dir, self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(cause) => Err(StorageError::io(Operation::Remove, &self.path)(cause)),
        }
    }
}

/// Tells of everything that jobs left behind in a directory and below it. Other file systems that are
/// mounted there are looked at too.
///
/// # Errors
///
/// If a directory cannot be read; those after it are not looked at then.
pub fn left_behind(path: &Path, tell: &mut dyn FnMut(LeftBehind<'_>)) -> Result<(), StorageError> {
    let shown = path.as_os_str().as_bytes();
    let root = beneath::open_operator(path, OFlags::RDONLY);
    let root = root.map_err(StorageError::io(Operation::Open, shown))?;
    look(&root, shown, 0, tell)
}

/// Tells of the journals of this machine's transfers to places without an agent. `base` is where they
/// are; nothing is there if that is missing.
///
/// # Errors
///
/// As of [`left_behind`].
pub fn journals_left_behind(
    base: &Path,
    tell: &mut dyn FnMut(LeftBehind<'_>),
) -> Result<(), StorageError> {
    let path = base.join(super::state::CLIENT_NAME_TEXT);
    let shown = path.as_os_str().as_bytes();
    match beneath::open_operator(&path, OFlags::RDONLY) {
        Ok(jobs) => journals(&jobs, shown, tell),
        Err(Errno::NOENT) => Ok(()),
        Err(cause) => Err(StorageError::io(Operation::Open, shown)(cause)),
    }
}

fn look(
    dir: &OwnedFd,
    path: &[u8],
    depth: usize,
    tell: &mut dyn FnMut(LeftBehind<'_>),
) -> Result<(), StorageError> {
    let failed = |(operation, cause)| StorageError::io(operation, path)(cause);
    for item in remover::list(dir.as_fd(), |_| true).map_err(failed)? {
        let own = [path, b"/", &item.name].concat();
        if item.is_directory && depth < MAX_DEPTH {
            let Some(below) = open(dir, &item.name, &own)? else { continue };
            if depth == 0 && *item.name == *STATE_NAME {
                journals(&below, &own, tell)?;
            } else {
                look(&below, &own, depth + 1, tell)?;
            }
        } else if !item.is_directory && is_any_temp_name(&item.name) {
            tell_of(dir.as_fd(), &item.name, own, tell)?;
        }
    }
    Ok(())
}

fn open(dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Option<OwnedFd>, StorageError> {
    match beneath::open_child(dir.as_fd(), name, OFlags::RDONLY) {
        Ok(below) => Ok(Some(below)),
        // It was removed, or became something else, a moment ago.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(cause) => Err(StorageError::io(Operation::Open, path)(cause)),
    }
}

/// Journals in the directories of a directory.
fn journals(
    jobs: &OwnedFd,
    path: &[u8],
    tell: &mut dyn FnMut(LeftBehind<'_>),
) -> Result<(), StorageError> {
    let failed = |(operation, cause)| StorageError::io(operation, path)(cause);
    for item in remover::list(jobs.as_fd(), |_| true).map_err(failed)? {
        let own = [path, b"/", &item.name].concat();
        let Some(job) = open(jobs, &item.name, &own)? else { continue };
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let journal = beneath::open_name(job.as_fd(), JOURNAL, flags, FsMode::empty());
        // Held until it is told of: nobody begins to use it meanwhile.
        let Ok(journal) = journal else { continue };
        if rustix::fs::flock(&journal, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        tell_of(job.as_fd(), JOURNAL, [&own, &b"/"[..], JOURNAL].concat(), tell)?;
        // Only if it is empty.
        let _ = rustix::fs::unlinkat(jobs, &*item.name, AtFlags::REMOVEDIR);
    }
    Ok(())
}

fn tell_of(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: Vec<u8>,
    tell: &mut dyn FnMut(LeftBehind<'_>),
) -> Result<(), StorageError> {
    let stat: Stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(cause) => return Err(StorageError::io(Operation::Stat, &path)(cause)),
    };
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        tell(LeftBehind { path, size, modified: mtime(&stat), dir, name });
    }
    Ok(())
}

/// How deep directories are looked at.
const MAX_DEPTH: usize = 512;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::storage::local::StateDir;

    fn found(path: &Path, remove: bool) -> Vec<String> {
        let mut found = Vec::new();
        left_behind(path, &mut |left| {
            found
                .push(String::from_utf8(left.path[path.as_os_str().len() + 1..].to_vec()).unwrap());
            if remove {
                left.remove().unwrap();
            }
        })
        .unwrap();
        found.sort();
        found
    }

    #[tokio::test]
    async fn what_jobs_left_is_found_and_removed_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        let job = format!(".fastsync/{}/journal", "01".repeat(16));
        fs::create_dir_all(root.join(&job).parent().unwrap()).unwrap();
        let names =
            [".fastsync-00000000-0123456789abcdef", "a/b/.fastsync-00000001-0123456789abcdef"];
        for name in [names[0], names[1], &job, "file", "a/.fastsync-notes"] {
            fs::write(root.join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink("/", root.join("a/loop")).unwrap();
        assert_eq!(found(root, false), [names[0], &job, names[1]]);
        assert_eq!(found(root, true).len(), 3);
        assert_eq!(found(root, false).len(), 0);
        assert!(root.join("file").exists() && root.join("a/.fastsync-notes").exists());
        assert!(!root.join(&job).parent().unwrap().exists());
    }

    #[tokio::test]
    async fn a_journal_in_use_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().to_path_buf();
        let count = || {
            let mut count = 0;
            journals_left_behind(&base, &mut |_| count += 1).unwrap();
            count
        };
        assert_eq!(count(), 0);
        let state = StateDir::of_client(base.clone(), [1; 16]).await.unwrap();
        assert_eq!(count(), 0);
        drop(state);
        // The lock goes with the last descriptor, which may be a moment later.
        tokio::time::timeout(Duration::from_secs(10), async {
            while count() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
