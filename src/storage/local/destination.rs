//! What the operator's destination argument means.
//!
//! In: the path as it was typed. Out: the directory below which everything is written, and the new
//! name of a single file if the path gave one. As in `cp`: an existing directory takes things in; a
//! path that does not exist is the new name of a single file, or a directory to be made.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::{beneath, origin};
use crate::protocol::manifest::Name;
use crate::storage::{Operation, StorageError};

/// The destination argument, opened.
#[derive(Debug)]
pub struct Destination {
    pub path: PathBuf,
    /// `None` where a dry run would have to make it.
    pub root: Option<OwnedFd>,
    /// What the only source is called there.
    pub rename: Option<Name>,
    /// The directory was not there before.
    pub is_new: bool,
}

impl Destination {
    pub fn open(argument: &[u8], single_file: bool, dry_run: bool) -> Result<Self, StorageError> {
        let shown = if argument.is_empty() { b"." } else { argument };
        let path = Path::new(OsStr::from_bytes(shown));
        match beneath::stat_operator(path, true) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Self::at(path, None, dry_run),
                FileType::RegularFile if single_file => Self::renaming(shown, dry_run),
                FileType::RegularFile => Err(conflict(shown, "a file")),
                _ => Err(conflict(shown, "a special file")),
            },
            Err(Errno::NOENT) if single_file => Self::renaming(shown, dry_run),
            Err(Errno::NOENT) => Self::at(path, None, dry_run),
            Err(cause) => Err(StorageError::io(Operation::Open, shown)(cause)),
        }
    }

    /// The path's last component becomes the name, unless the path can only mean a directory.
    fn renaming(path: &[u8], dry_run: bool) -> Result<Self, StorageError> {
        let Some((parent, name)) = origin::split(path) else {
            return Self::at(Path::new(OsStr::from_bytes(path)), None, dry_run);
        };
        let name = Name::new(name)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidFilename))
            .map_err(StorageError::io(Operation::Create, path))?;
        Self::at(Path::new(OsStr::from_bytes(parent)), Some(name), dry_run)
    }

    /// Opens the directory, and makes it first if it is missing.
    fn at(path: &Path, rename: Option<Name>, dry_run: bool) -> Result<Self, StorageError> {
        let shown = path.as_os_str().as_bytes();
        let mut is_new = false;
        let root = match open_root(path) {
            Ok(root) => Some(root),
            Err(Errno::NOENT) if dry_run => None,
            Err(Errno::NOENT) => {
                is_new = true;
                beneath::make_operator(path).map_err(StorageError::io(Operation::Create, shown))?;
                Some(open_root(path).map_err(StorageError::io(Operation::Open, shown))?)
            }
            Err(cause) => return Err(StorageError::io(Operation::Open, shown)(cause)),
        };
        Ok(Self { path: path.to_path_buf(), root, rename, is_new })
    }
}

/// Opens for listing, as `syncfs` needs that; where only entering is allowed, that has to do.
fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    match beneath::open_operator(path, OFlags::RDONLY) {
        Err(Errno::ACCESS) => beneath::open_operator(path, OFlags::PATH),
        answer => answer,
    }
}

fn conflict(path: &[u8], existing: &'static str) -> StorageError {
    StorageError::Conflict { path: path.to_vec(), existing }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(path: &Path) -> &[u8] {
        path.as_os_str().as_bytes()
    }

    #[test]
    fn a_single_file_takes_the_name_that_the_path_gives() {
        let temp = tempfile::tempdir().unwrap();
        let open = |path: &str| Destination::open(bytes(&temp.path().join(path)), true, false);
        let new = open("new/name").unwrap();
        assert_eq!(new.path, temp.path().join("new"));
        assert_eq!(new.rename.unwrap().as_bytes(), b"name");
        assert!(temp.path().join("new").is_dir());
        let slash = open("other/").unwrap();
        assert_eq!((slash.rename, temp.path().join("other").is_dir()), (None, true));
        assert_eq!(open("other").unwrap().rename, None);
        std::fs::write(temp.path().join("old"), b"old").unwrap();
        assert_eq!(open("old").unwrap().rename.unwrap().as_bytes(), b"old");
        assert!(open("old/").is_err(), "a file is no directory");
        std::os::unix::fs::symlink("/dev/null", temp.path().join("null")).unwrap();
        assert!(open("null").is_err(), "a device is not replaced");
    }

    #[test]
    fn several_sources_need_a_directory() {
        let temp = tempfile::tempdir().unwrap();
        let open = |path: &str| Destination::open(bytes(&temp.path().join(path)), false, false);
        let made = open("a/b").unwrap();
        assert_eq!((made.path, made.rename), (temp.path().join("a/b"), None));
        std::os::unix::fs::symlink("a", temp.path().join("link")).unwrap();
        assert!(open("link").is_ok());
        std::fs::write(temp.path().join("file"), b"").unwrap();
        assert!(matches!(open("file").unwrap_err(), StorageError::Conflict { .. }));
    }

    #[test]
    fn a_dry_run_makes_no_directory() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        assert!(Destination::open(bytes(&path), false, true).unwrap().root.is_none());
        assert!(!temp.path().join("a").exists());
    }
}
