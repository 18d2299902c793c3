//! The directory and the lock of a job's journal.
//!
//! In: the destination's root and the job's name. Out: an open journal that no other process can
//! have at the same time. It lies at `.fastsync/<job>/journal` below the root, and nothing of it is
//! left when a job is done.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode as FsMode, OFlags};
use rustix::io::Errno;
use tokio::time::Instant;

use super::metadata::set_mtime;
use super::{STATE_NAME, beneath, blocking, mtime};
use crate::protocol::manifest::Timestamp;
use crate::storage::{Operation, StorageError};

/// How long to wait for another process to let go of the journal.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// How often to try meanwhile.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// What the directory of all jobs is called where it is the client's own.
const CLIENT_NAME: &[u8] = CLIENT_NAME_TEXT.as_bytes();

pub(super) const CLIENT_NAME_TEXT: &str = "jobs";

pub(super) const JOURNAL: &[u8] = b"journal";

/// A job's own directory below the destination, locked for as long as this value lives.
#[derive(Debug)]
pub struct StateDir {
    root: Arc<OwnedFd>,
    all_jobs: OwnedFd,
    dir: OwnedFd,
    /// What the directory of all jobs is called in the root.
    name: &'static [u8],
    job: String,
    journal: File,
    /// For messages.
    path: Vec<u8>,
    /// The root's mtime before and after our directory was made in it.
    touched: Option<(Timestamp, Timestamp)>,
}

/// Why there is no lock yet.
enum Refusal {
    /// Another process has it, or is just removing the directory.
    Busy,
    Failed(Operation, Errno),
    /// Another user could change it.
    Foreign,
}

impl StateDir {
    pub(super) async fn open(
        root: Option<&Arc<OwnedFd>>,
        root_path: &Path,
        job: [u8; 16],
    ) -> Result<Self, StorageError> {
        let Some(root) = root else {
            let path = root_path.as_os_str().as_bytes();
            return Err(StorageError::io(Operation::Open, path)(Errno::NOENT));
        };
        Self::open_within(root, root_path, STATE_NAME, job, LOCK_PATIENCE).await
    }

    /// The directory of a job whose destination has no place for one: below `base`, which is made if
    /// it is missing, in `jobs`.
    ///
    /// # Errors
    ///
    /// If it cannot be made or read, or another process keeps its lock.
    pub async fn of_client(base: PathBuf, job: [u8; 16]) -> Result<Self, StorageError> {
        let path = base.clone();
        let root = blocking(move || -> Result<OwnedFd, StorageError> {
            let shown = path.as_os_str().as_bytes();
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(&path);
            made.map_err(StorageError::io(Operation::Create, shown))?;
            let opened = beneath::open_operator(&path, OFlags::RDONLY);
            opened.map_err(StorageError::io(Operation::Open, shown))
        });
        let root = Arc::new(root.await?);
        Self::open_within(&root, &base, CLIENT_NAME, job, LOCK_PATIENCE).await
    }

    async fn open_within(
        root: &Arc<OwnedFd>,
        root_path: &Path,
        name: &'static [u8],
        job: [u8; 16],
        patience: Duration,
    ) -> Result<Self, StorageError> {
        let job = format!("{:032x}", u128::from_be_bytes(job));
        let path = root_path.join(OsStr::from_bytes(name)).join(&job).join("journal");
        let path = path.as_os_str().as_bytes();
        let deadline = Instant::now() + patience;
        loop {
            let (root, job) = (Arc::clone(root), job.clone());
            let for_messages = path.to_vec();
            match blocking(move || Self::try_open(root, name, job, for_messages)).await {
                Ok(state) => return Ok(state),
                Err(Refusal::Busy) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_INTERVAL).await;
                }
                Err(refusal) => return Err(refusal.into_error(path)),
            }
        }
    }

    fn try_open(
        root: Arc<OwnedFd>,
        name: &'static [u8],
        job: String,
        path: Vec<u8>,
    ) -> Result<Self, Refusal> {
        let look = || rustix::fs::fstat(&root).map(|stat| mtime(&stat)).ok();
        let before = look();
        let all_jobs = own_directory(root.as_fd(), name)?;
        let touched = before.zip(look()).filter(|(before, after)| before != after);
        let dir = own_directory(all_jobs.as_fd(), job.as_bytes())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
        let journal = beneath::open_name(dir.as_fd(), JOURNAL, flags, FsMode::RUSR | FsMode::WUSR)
            .map_err(busy_if_missing(Operation::Open))?;
        match rustix::fs::flock(&journal, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(Refusal::Busy),
            Err(cause) => return Err(Refusal::Failed(Operation::Lock, cause)),
        }
        let held = rustix::fs::fstat(&journal).map_err(busy_if_missing(Operation::Stat))?;
        // The last holder may have removed it between our opening and our locking it.
        let named = rustix::fs::statat(&dir, JOURNAL, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(busy_if_missing(Operation::Stat))?;
        if (named.st_ino, named.st_dev) != (held.st_ino, held.st_dev) {
            return Err(Refusal::Busy);
        }
        let is_ours = FileType::from_raw_mode(held.st_mode) == FileType::RegularFile
            && held.st_uid == rustix::process::geteuid().as_raw()
            && held.st_nlink == 1;
        if !is_ours {
            return Err(Refusal::Foreign);
        }
        Ok(Self { root, all_jobs, dir, name, job, journal: File::from(journal), path, touched })
    }

    /// The journal, open for reading and writing.
    pub fn journal(&self) -> &File {
        &self.journal
    }

    /// Removes the journal and its directories; others' journals stay.
    ///
    /// # Errors
    ///
    /// If something cannot be removed.
    pub fn remove(self) -> Result<(), StorageError> {
        let failed = |cause| StorageError::io(Operation::Remove, &self.path)(cause);
        // Still locked, so that nobody can have begun to use it.
        rustix::fs::unlinkat(&self.dir, JOURNAL, AtFlags::empty()).map_err(failed)?;
        remove_if_empty(self.all_jobs.as_fd(), self.job.as_bytes()).map_err(failed)?;
        let looked = rustix::fs::fstat(&self.root);
        remove_if_empty(self.root.as_fd(), self.name).map_err(failed)?;
        if let Ok(stat) = looked {
            // The destination's own times are set already; where nothing but this directory has come
            // and gone, they are as if it had not. Whose they are not to set keeps them.
            let now = mtime(&stat);
            let time = self.touched.filter(|(_, after)| *after == now).map_or(now, |it| it.0);
            let _ = set_mtime(self.root.as_fd(), time);
        }
        Ok(())
    }
}

impl Refusal {
    fn into_error(self, path: &[u8]) -> StorageError {
        use std::io::{Error, ErrorKind};
        match self {
            Self::Busy => StorageError::io(Operation::Lock, path)(Error::new(
                ErrorKind::WouldBlock,
                "another fastsync is writing there; wait for it to end",
            )),
            Self::Foreign => StorageError::io(Operation::Lock, path)(Error::new(
                ErrorKind::PermissionDenied,
                "it belongs to somebody else; remove it or choose another destination",
            )),
            Self::Failed(operation, cause) => StorageError::io(operation, path)(cause),
        }
    }
}

/// A predecessor that removes the directories may do so at any moment of our opening them.
fn busy_if_missing(operation: Operation) -> impl FnOnce(Errno) -> Refusal {
    move |cause| match cause {
        Errno::NOENT => Refusal::Busy,
        cause => Refusal::Failed(operation, cause),
    }
}

/// Opens a directory that only we can write to, and makes it first if it is missing.
fn own_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Refusal> {
    match rustix::fs::mkdirat(parent, name, FsMode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(cause) => return Err(busy_if_missing(Operation::Create)(cause)),
    }
    let dir = beneath::open_child(parent, name, OFlags::RDONLY)
        .map_err(busy_if_missing(Operation::Open))?;
    let stat = rustix::fs::fstat(&dir).map_err(busy_if_missing(Operation::Stat))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Refusal::Foreign);
    }
    if stat.st_mode & 0o777 != 0o700 {
        rustix::fs::fchmod(&dir, FsMode::RWXU).map_err(busy_if_missing(Operation::SetMode))?;
    }
    Ok(dir)
}

fn remove_if_empty(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        // Other jobs' journals, or a process that begins just now.
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};

    use super::*;

    fn root(path: &Path) -> Arc<OwnedFd> {
        Arc::new(beneath::open_operator(path, OFlags::RDONLY).unwrap())
    }

    async fn open(path: &Path, job: u8) -> Result<StateDir, StorageError> {
        let patience = Duration::from_millis(300);
        StateDir::open_within(&root(path), path, STATE_NAME, [job; 16], patience).await
    }

    /// JRN-9.
    #[tokio::test]
    async fn only_one_process_has_the_journal() {
        let temp = tempfile::tempdir().unwrap();
        let first = open(temp.path(), 1).await.unwrap();
        first.journal().write_all(b"kept").unwrap();
        let other = open(temp.path(), 2).await.unwrap();
        let refused = open(temp.path(), 1).await.unwrap_err().to_string();
        assert!(refused.starts_with("cannot lock ") && refused.contains("another fastsync"));
        drop(first);
        let again = open(temp.path(), 1).await.unwrap();
        let mut content = Vec::new();
        again.journal().read_to_end(&mut content).unwrap();
        assert_eq!(content, b"kept");
        again.remove().unwrap();
        let job = temp.path().join(".fastsync").join("02".repeat(16));
        assert!(job.join("journal").exists());
        other.remove().unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    /// JRN-12.
    #[tokio::test]
    async fn a_clients_own_jobs_have_a_directory_of_their_own() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().join("state/fastsync");
        let state = StateDir::of_client(base.clone(), [1; 16]).await.unwrap();
        assert!(base.join("jobs").join("01".repeat(16)).join("journal").exists());
        state.remove().unwrap();
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
        fs::write(temp.path().join("file"), b"x").unwrap();
        assert!(StateDir::of_client(temp.path().join("file/below"), [1; 16]).await.is_err());
    }

    /// JRN-9: the lock is worth nothing on a file that has lost its name.
    #[tokio::test]
    async fn who_waits_while_it_is_removed_starts_over() {
        let temp = tempfile::tempdir().unwrap();
        let first = open(temp.path(), 1).await.unwrap();
        let wait = open(temp.path(), 1);
        let remove = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            first.remove().unwrap();
        };
        let (second, ()) = tokio::join!(wait, remove);
        second.unwrap();
        assert!(temp.path().join(".fastsync").join("01".repeat(16)).join("journal").exists());
    }

    #[tokio::test]
    async fn a_symlink_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("canary")).unwrap();
        std::os::unix::fs::symlink("canary", temp.path().join(".fastsync")).unwrap();
        assert!(open(temp.path(), 1).await.is_err());
        fs::remove_file(temp.path().join(".fastsync")).unwrap();
        let job = temp.path().join(".fastsync").join("01".repeat(16));
        fs::create_dir_all(&job).unwrap();
        fs::write(temp.path().join("canary/file"), b"x").unwrap();
        std::os::unix::fs::symlink("../../canary/file", job.join("journal")).unwrap();
        assert!(open(temp.path(), 1).await.is_err());
        assert_eq!(fs::read(temp.path().join("canary/file")).unwrap(), b"x");
    }
}
