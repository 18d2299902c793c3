//! How quick a file system is, with files that leave nothing behind.
//!
//! In: the operator's directory and limits. Out: speeds. The large file has no name, so that it is
//! gone with the process, however that ends; where a file system cannot do that, it has one for a
//! moment. Of the small files there is one at a time.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{Advice, AtFlags, Mode, OFlags, StatVfs};
use rustix::io::Errno;

use super::beneath;
use super::write::write_all;
use crate::protocol::measure::{DiskLimits, DiskSpeed};
use crate::storage::{Operation, StorageError};

/// A temporary file without a name, in some directory.
#[derive(Debug)]
pub struct Scratch {
    file: OwnedFd,
    directory: PathBuf,
}

impl Scratch {
    /// Makes one. The directory must be there.
    ///
    /// # Errors
    ///
    /// If the directory cannot be entered or written to.
    pub fn create(directory: &Path) -> Result<Self, StorageError> {
        let failed = |operation| StorageError::io(operation, directory.as_os_str().as_bytes());
        let held = open(directory).map_err(failed(Operation::Open))?;
        let mode = Mode::RUSR | Mode::WUSR;
        let unnamed = beneath::open_name(held.as_fd(), b".", OFlags::TMPFILE | OFlags::RDWR, mode);
        let file = match unnamed {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let name = temporary_name();
                let file = make(&held, &name, OFlags::RDWR).map_err(failed(Operation::Create))?;
                rustix::fs::unlinkat(&held, &name, AtFlags::empty())
                    .map_err(failed(Operation::Remove))?;
                file
            }
            answer => answer.map_err(failed(Operation::Create))?,
        };
        Ok(Self { file, directory: directory.to_owned() })
    }

    fn room(&self) -> Result<u64, StorageError> {
        let stat = rustix::fs::fstatvfs(&self.file).map_err(self.failed(Operation::Stat))?;
        Ok(half_of(&stat))
    }

    /// Writes some bytes.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<(), StorageError> {
        write_all(self.file.as_fd(), data, offset).map_err(self.failed(Operation::Write))
    }

    /// Fills `out` from an offset on.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<(), StorageError> {
        let mut filled = 0;
        while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let read = rustix::io::retry_on_intr(|| {
                rustix::io::pread(&self.file, &mut *rest, offset + filled as u64)
            });
            match read.map_err(self.failed(Operation::Read))? {
                0 => {
                    let cause = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                    return Err(self.failed(Operation::Read)(cause));
                }
                read => filled += read,
            }
        }
        Ok(())
    }

    /// Waits until all of it is on stable storage.
    pub fn sync(&self) -> Result<(), StorageError> {
        rustix::fs::fsync(&self.file).map_err(self.failed(Operation::Sync))
    }

    /// Asks the system to forget what it has of it in memory; where it does not, reading it is
    /// quicker than the disk.
    pub fn forget(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
    }

    /// Writes blocks until `bytes` are written, the time is over or it is stopped, and syncs them.
    /// Returns how much was written, and how long it took to write and to sync.
    pub fn fill(
        &self,
        block: &[u8],
        bytes: u64,
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<(u64, Duration, Duration), StorageError> {
        let (begun, len) = (Instant::now(), block.len() as u64);
        let bytes = bytes.min(self.room()?);
        let (mut written, mut unsynced, mut syncing) = (0, 0, Duration::ZERO);
        while len > 0 && written + len <= bytes && !stop.load(Ordering::Relaxed) {
            self.write(block, written)?;
            (written, unsynced) = (written + len, unsynced + len);
            if unsynced >= SYNC_EVERY {
                // So that what is still to be synced at the end never takes long.
                let begun = Instant::now();
                self.sync()?;
                (syncing, unsynced) = (syncing + begun.elapsed(), 0);
            }
            if begun.elapsed() >= limit {
                break;
            }
        }
        let begun_sync = Instant::now();
        self.sync()?;
        syncing += begun_sync.elapsed();
        Ok((written, begun.elapsed().saturating_sub(syncing), syncing))
    }

    fn failed<E: Into<std::io::Error>>(
        &self,
        operation: Operation,
    ) -> impl FnOnce(E) -> StorageError {
        let path = self.directory.as_os_str().as_bytes().to_vec();
        move |cause| StorageError::io(operation, &path)(cause)
    }
}

/// Half of what the file system of a directory has room for, in bytes: a measurement takes no more.
///
/// # Errors
///
/// If the directory cannot be entered.
pub fn room(directory: &Path) -> Result<u64, StorageError> {
    let failed = |operation| StorageError::io(operation, directory.as_os_str().as_bytes());
    let held = open(directory).map_err(failed(Operation::Open))?;
    let stat = rustix::fs::fstatvfs(&held).map_err(failed(Operation::Stat))?;
    Ok(half_of(&stat))
}

fn half_of(stat: &StatVfs) -> u64 {
    stat.f_bavail.saturating_mul(stat.f_frsize) / 2
}

/// Measures the file system of a directory: writing and syncing, reading, and making small files.
///
/// # Errors
///
/// If the directory cannot be written to, or the disk fails.
pub fn disk_speed(
    directory: &Path,
    limits: DiskLimits,
    block: &[u8],
    stop: &AtomicBool,
) -> Result<DiskSpeed, StorageError> {
    let limit = Duration::from_millis(limits.millis.into());
    let file = Scratch::create(directory)?;
    let (written, writing, syncing) = file.fill(block, limits.bytes, limit, stop)?;
    file.forget();
    let mut room = vec![0; block.len()];
    let (begun, mut read) = (Instant::now(), 0);
    while read < written && begun.elapsed() < limit && !stop.load(Ordering::Relaxed) {
        file.read(&mut room, read)?;
        read += room.len() as u64;
    }
    let reading = begun.elapsed();
    drop(file);
    let (files, making) = small_files(directory, limits.files, limit, stop)?;
    Ok(DiskSpeed {
        written,
        write_micros: micros(writing),
        sync_micros: micros(syncing),
        read,
        read_micros: micros(reading),
        files,
        files_micros: micros(making),
    })
}

/// Makes small files and removes each before the next. Only the making counts.
fn small_files(
    directory: &Path,
    count: u32,
    limit: Duration,
    stop: &AtomicBool,
) -> Result<(u32, Duration), StorageError> {
    let failed = |operation| StorageError::io(operation, directory.as_os_str().as_bytes());
    let held = open(directory).map_err(failed(Operation::Open))?;
    let (begun, content) = (Instant::now(), [0x5a; SMALL]);
    let (mut made, mut making) = (0, Duration::ZERO);
    while made < count && begun.elapsed() < limit && !stop.load(Ordering::Relaxed) {
        let (name, begun) = (temporary_name(), Instant::now());
        let file = make(&held, &name, OFlags::WRONLY).map_err(failed(Operation::Create))?;
        let written = write_all(file.as_fd(), &content, 0);
        drop(file);
        making += begun.elapsed();
        let removed = rustix::fs::unlinkat(&held, &name, AtFlags::empty());
        written.map_err(failed(Operation::Write))?;
        removed.map_err(failed(Operation::Remove))?;
        made += 1;
    }
    Ok((made, making))
}

fn open(directory: &Path) -> Result<OwnedFd, Errno> {
    match beneath::open_operator(directory, OFlags::RDONLY) {
        Err(Errno::ACCESS) => beneath::open_operator(directory, OFlags::PATH),
        answer => answer,
    }
}

fn make(directory: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CREATE | OFlags::EXCL;
    beneath::open_name(directory.as_fd(), name, flags, Mode::RUSR | Mode::WUSR)
}

/// A name that nobody else has: of this process, at this time.
fn temporary_name() -> Vec<u8> {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!(".fastsync-measure-{}-{}", std::process::id(), now.as_nanos()).into_bytes()
}

/// A time in microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// How much is written between two syncs, in bytes.
const SYNC_EVERY: u64 = 32 << 20;

/// The size of a small file, in bytes.
const SMALL: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const GENEROUS: u32 = 60_000;

    fn names(directory: &Path) -> usize {
        std::fs::read_dir(directory).unwrap().count()
    }

    /// MEASURE-5: it takes what it may and leaves nothing.
    #[test]
    fn a_measurement_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let limits = DiskLimits { bytes: 1 << 20, files: 10, millis: GENEROUS };
        let stop = AtomicBool::new(false);
        let speed = disk_speed(temp.path(), limits, &[7; 4096], &stop).unwrap();
        assert_eq!((speed.written, speed.read, speed.files), (1 << 20, 1 << 20, 10));
        assert!(speed.read_micros > 0 && speed.files_micros > 0 && speed.sync_micros > 0);
        assert_eq!(names(temp.path()), 0);
        let none = DiskLimits { bytes: 0, files: 0, millis: GENEROUS };
        let speed = disk_speed(temp.path(), none, &[7; 4096], &stop).unwrap();
        assert_eq!((speed.written, speed.read, speed.files), (0, 0, 0));
    }

    #[test]
    fn what_is_written_has_no_name_and_is_read_again() {
        let temp = tempfile::tempdir().unwrap();
        let file = Scratch::create(temp.path()).unwrap();
        assert_eq!(names(temp.path()), 0);
        file.write(b"there", 10).unwrap();
        file.sync().unwrap();
        file.forget();
        let mut read = [0; 5];
        file.read(&mut read, 10).unwrap();
        assert_eq!(&read, b"there");
        assert!(file.read(&mut read, 11).is_err(), "beyond the end");
        assert_eq!(file.room().unwrap() > 0, room(temp.path()).unwrap() > 0);
    }

    /// MEASURE-5: time is a limit as well, and whoever stops it is heard.
    #[test]
    fn time_and_a_stop_end_it() {
        let temp = tempfile::tempdir().unwrap();
        let limits = DiskLimits { bytes: 1 << 20, files: 10, millis: 0 };
        let speed = disk_speed(temp.path(), limits, &[7; 4096], &AtomicBool::new(false)).unwrap();
        assert_eq!((speed.written, speed.read, speed.files), (4096, 0, 0));
        let limits = DiskLimits { millis: GENEROUS, ..limits };
        let speed = disk_speed(temp.path(), limits, &[7; 4096], &AtomicBool::new(true)).unwrap();
        assert_eq!((speed.written, speed.read, speed.files), (0, 0, 0));
    }

    #[test]
    fn what_is_no_directory_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("file"), "x").unwrap();
        for name in ["file", "none"] {
            let error = Scratch::create(&temp.path().join(name)).unwrap_err().to_string();
            assert!(error.contains("cannot open") && error.contains(name), "{error}");
        }
    }
}
