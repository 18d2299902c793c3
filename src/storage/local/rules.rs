//! Files of filter rules in the directories of a source.

use std::io;

use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{FileType, Mode as FsMode, OFlags};
use rustix::io::Errno;

use super::beneath;
use super::read::read_full;
use crate::protocol::manifest::Name;
use crate::storage::filter::{FilterError, Scope};

/// The longest file with filter rules that is read, in bytes.
const MAX_RULES_LEN: usize = 1 << 20;

/// The rules in force in an open directory. `path` is its path from the top, without a slash behind.
///
/// # Errors
///
/// If a file with rules cannot be read, or understood.
pub fn enter(scope: &Scope, dir: BorrowedFd<'_>, path: &[u8]) -> Result<Scope, FilterError> {
    scope.enter(path, &mut |name| read_rules(dir, name))
}

/// Reads a file of filter rules, or tells that there is none.
fn read_rules(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    Name::new(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidFilename, error))?;
    // Opening a FIFO must not wait for somebody who writes into it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let fd = match beneath::open_name(dir, name, flags, FsMode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(io::Error::other("it is a symlink")),
        Err(cause) => return Err(cause.into()),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let mut text = vec![0; MAX_RULES_LEN + 1];
    let len = read_full(fd.as_fd(), &mut text, 0)?;
    if len > MAX_RULES_LEN {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    text.truncate(len);
    text.shrink_to_fit();
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_rules_are_read_where_they_are() {
        let temp = tempfile::tempdir().unwrap();
        let dir = beneath::open_operator(temp.path(), OFlags::PATH).unwrap();
        let read = |name: &str| read_rules(dir.as_fd(), name.as_bytes());
        std::fs::write(temp.path().join("rules"), b"- x").unwrap();
        std::fs::write(temp.path().join("long"), vec![b'x'; MAX_RULES_LEN + 1]).unwrap();
        std::fs::create_dir(temp.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("rules", temp.path().join("link")).unwrap();
        assert_eq!(read("rules").unwrap(), Some(b"- x".to_vec()));
        assert_eq!((read("none").unwrap(), read("dir").unwrap()), (None, None));
        for bad in ["long", "link", "..", "dir/x", ""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
