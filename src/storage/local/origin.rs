//! What the operator's source arguments mean.
//!
//! In: paths as they were typed. Out: [`Origin`]s. As in rsync, `dir` stands for the directory and
//! `dir/`, `dir/.`, `.` and `/` for what is in it; a symlink is followed only with a slash behind.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags};

use super::beneath;
use crate::protocol::manifest::Name;
use crate::storage::{Operation, StorageError};

/// One source argument, opened.
#[derive(Debug)]
pub struct Origin {
    /// As the operator wrote it, for messages.
    pub argument: PathBuf,
    /// The directory that it is in, or whose contents it means.
    pub root: Arc<OwnedFd>,
    /// Its name in `root`, or `None` where the contents are meant.
    pub name: Option<Name>,
    /// Whether it is something else than a directory.
    pub is_single: bool,
}

impl Origin {
    pub fn open(argument: &Path) -> Result<Self, StorageError> {
        match split(argument.as_os_str().as_bytes()) {
            Some((parent, name)) => Self::open_named(argument, parent, name),
            None => Self::open_contents(argument),
        }
    }

    fn open_contents(argument: &Path) -> Result<Self, StorageError> {
        let path = if argument.as_os_str().is_empty() { Path::new(".") } else { argument };
        let root = beneath::open_operator(path, OFlags::RDONLY)
            .map_err(StorageError::io(Operation::Open, path.as_os_str().as_bytes()))?;
        let argument = argument.to_path_buf();
        Ok(Self { argument, root: Arc::new(root), name: None, is_single: false })
    }

    fn open_named(argument: &Path, parent: &[u8], name: &[u8]) -> Result<Self, StorageError> {
        let shown = argument.as_os_str().as_bytes();
        let invalid = |_| std::io::Error::from(std::io::ErrorKind::InvalidFilename);
        let name =
            Name::new(name).map_err(invalid).map_err(StorageError::io(Operation::Open, shown))?;
        let parent = Path::new(std::ffi::OsStr::from_bytes(parent));
        let root = beneath::open_operator(parent, OFlags::PATH)
            .map_err(StorageError::io(Operation::Open, shown))?;
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(&root, name.as_bytes(), flags)
            .map_err(StorageError::io(Operation::Open, shown))?;
        let is_single = FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        let argument = argument.to_path_buf();
        Ok(Self { argument, root: Arc::new(root), name: Some(name), is_single })
    }
}

/// Splits a path into its directory and its last component; `None` where the contents of a
/// directory are meant.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = match slash {
        None => (&b"."[..], path),
        Some(at) => {
            let (parent, name) = path.split_at(at);
            (if parent.is_empty() { &b"/"[..] } else { parent }, name.get(1..).unwrap_or(b""))
        }
    };
    let is_name = !matches!(name, b"" | b"." | b"..");
    is_name.then_some((parent, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_or_a_dot_at_the_end_means_the_contents() {
        for contents in [&b""[..], b".", b"/", b"a/", b"a/.", b"..", b"a/..", b"//"] {
            assert_eq!(split(contents), None, "{contents:?}");
        }
        assert_eq!(split(b"a"), Some((&b"."[..], &b"a"[..])));
        assert_eq!(split(b"/a"), Some((&b"/"[..], &b"a"[..])));
        assert_eq!(split(b"a/b/.c"), Some((&b"a/b"[..], &b".c"[..])));
    }

    #[test]
    fn a_missing_source_is_named() {
        let error = Origin::open(Path::new("/nowhere/at all")).unwrap_err();
        assert!(error.to_string().starts_with("cannot open /nowhere/at all: No such file"));
        assert!(Origin::open(Path::new("/nowhere/")).is_err());
        assert!(Origin::open(Path::new("/etc/passwd/")).is_err());
    }
}
