//! How finely a file system keeps times.
//!
//! In: the destination's root. Out: the step in which it counts, so that a time which it could not
//! keep exactly is not taken for another. Asked only where it matters, and tried out if possible.

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::write::create_new;
use super::{beneath, mtime, only_mtime};
use crate::protocol::manifest::Timestamp;

/// The step in which a file system counts times, in nanoseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Granularity(u64);

/// No step is longer, in seconds: times that are further apart are different everywhere.
pub const MAX_SECONDS: u64 = 2;

const SECOND: u64 = 1_000_000_000;

/// The steps that exist, the finest first, in nanoseconds.
const STEPS: [u64; 7] = [1, 100, 1000, 1_000_000, 10_000_000, SECOND, 2 * SECOND];

/// Types of file systems (statfs(2)) and their steps, where nothing can be tried out.
const KNOWN: [(u64, u64); 8] = [
    (0x4d44, 2 * SECOND),      // vfat
    (0x2011_bab0, 10_000_000), // exfat
    (0x5346_544e, 100),        // ntfs
    (0x7366_746e, 100),        // ntfs3
    (0xff53_4d42, 100),        // cifs
    (0xfe53_4d42, 100),        // smb2
    (0x517b, 100),             // smb
    (0x482b, SECOND),          // hfsplus
];

impl Granularity {
    pub const FINEST: Self = Self(1);

    /// `temp` is a name for a file that may be made and removed again, if that is allowed.
    pub fn of(root: BorrowedFd<'_>, temp: Option<&[u8]>) -> Self {
        Self::probe(root, temp).unwrap_or_else(|_| Self::look_up(root))
    }

    /// Whether two times may be the same one as this file system keeps it.
    pub fn is_same(self, one: Timestamp, other: Timestamp) -> bool {
        one.steps(self.0) == other.steps(self.0)
    }

    /// Sets a time that needs every digit, and looks what is left of it.
    fn probe(root: BorrowedFd<'_>, temp: Option<&[u8]>) -> Result<Self, Errno> {
        let time = Timestamp::new(1_000_000_001, 123_456_789).unwrap_or_default();
        let (file, temp) = open_probe(root, temp)?;
        let kept = rustix::fs::futimens(&file, &only_mtime(time))
            .and_then(|()| rustix::fs::fstat(&file))
            .map(|stat| mtime(&stat));
        if let Some(temp) = temp {
            rustix::fs::unlinkat(root, temp, AtFlags::empty())?;
        }
        let kept = kept?;
        let step = STEPS.into_iter().find(|step| kept.is_left_of(time, *step));
        step.map(Self).ok_or(Errno::INVAL)
    }

    fn look_up(root: BorrowedFd<'_>) -> Self {
        let Ok(about) = rustix::fs::fstatfs(root) else { return Self(1) };
        // The field has another width and sign on every architecture.
        let magic = i128::from(about.f_type) & 0xffff_ffff;
        Self(
            KNOWN
                .iter()
                .find(|(known, _)| i128::from(*known) == magic)
                .map_or(1, |(_, step)| *step),
        )
    }
}

/// A file to try things with, and its name if it has one.
fn open_probe<'a>(
    root: BorrowedFd<'_>,
    temp: Option<&'a [u8]>,
) -> Result<(OwnedFd, Option<&'a [u8]>), Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    let unnamed = beneath::open_name(root, b".", OFlags::TMPFILE | OFlags::WRONLY, mode);
    match (unnamed, temp) {
        (Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL), Some(temp)) => {
            let file = create_new(root, temp, OFlags::WRONLY).map_err(|(_, cause)| cause)?;
            Ok((file, Some(temp)))
        }
        (unnamed, _) => Ok((unnamed?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(seconds: i64, nanoseconds: u32) -> Timestamp {
        Timestamp::new(seconds, nanoseconds).unwrap()
    }

    #[test]
    fn times_are_the_same_if_they_are_kept_alike() {
        let step = |nanoseconds| Granularity(nanoseconds);
        assert!(step(2 * SECOND).is_same(time(7, 999_999_999), time(6, 0)));
        assert!(!step(2 * SECOND).is_same(time(7, 0), time(8, 0)));
        assert!(step(SECOND).is_same(time(-1, 1), time(-1, 0)));
        assert!(!step(SECOND).is_same(time(-1, 1), time(0, 0)));
        assert!(step(100).is_same(time(0, 199), time(0, 100)));
        assert!(!step(1).is_same(time(0, 199), time(0, 100)));
    }

    #[test]
    fn the_file_system_here_is_found_to_keep_nanoseconds_or_less() {
        let temp = tempfile::tempdir().unwrap();
        let root = beneath::open_operator(temp.path(), OFlags::PATH).unwrap();
        let found = Granularity::of(rustix::fd::AsFd::as_fd(&root), None);
        assert!(STEPS.contains(&found.0));
        assert!(found.is_same(time(5, 5), time(5, 5)));
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }
}
