//! What the operator's source arguments mean.
//!
//! In: paths as they were typed. Out: [`Origin`]s. As in rsync, `dir` stands for the directory and
//! `dir/`, `dir/.`, `.` and `/` for what is in it; a symlink is followed only with a slash behind,
//! or where symlinks are followed anyway.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;

use super::fence;
use super::{beneath, links};
use crate::protocol::manifest::Name;
use crate::protocol::message::{Links, SourceKind, SourceNode};
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

/// A source argument that cannot be opened, among others that can.
#[derive(Debug)]
pub struct Missing {
    pub argument: PathBuf,
    /// The name that it would have at the destination, if it has one.
    pub name: Option<Name>,
    pub cause: Errno,
}

impl Missing {
    pub fn error(&self) -> StorageError {
        StorageError::io(Operation::Open, self.argument.as_os_str().as_bytes())(self.cause)
    }
}

/// Opens all arguments.
///
/// # Errors
///
/// If none can be opened: of the first.
pub fn open_all(
    arguments: &[PathBuf],
    links: Links,
) -> Result<(Vec<Origin>, Vec<Missing>), StorageError> {
    let (mut origins, mut missing) = (Vec::new(), Vec::new());
    for argument in arguments {
        match Origin::open(argument, links) {
            Ok(origin) => origins.push(origin),
            Err(absent) => missing.push(absent),
        }
    }
    match missing.first().filter(|_| origins.is_empty()) {
        Some(first) => Err(first.error()),
        None => Ok((origins, missing)),
    }
}

impl Origin {
    /// What it is, and what it leads to if it is a symlink; nothing that is gone by now.
    pub fn nodes(&self) -> impl Iterator<Item = SourceNode> {
        let stats = match &self.name {
            None => [rustix::fs::fstat(&self.root).ok(), None],
            Some(name) => [AtFlags::SYMLINK_NOFOLLOW, AtFlags::empty()].map(|flags| {
                // What a symlink leads to may be outside of what a peer may be told of.
                let is_told = !flags.is_empty() || !fence::is_confined();
                let stat = || rustix::fs::statat(&self.root, name.as_bytes(), flags).ok();
                is_told.then(stat).flatten()
            }),
        };
        let kind = match self.name {
            _ if self.is_single => SourceKind::Other,
            Some(_) => SourceKind::Directory,
            None => SourceKind::Contents,
        };
        stats.into_iter().flatten().map(move |stat| SourceNode {
            device: stat.st_dev,
            inode: stat.st_ino,
            kind,
        })
    }

    /// Opens one argument. `links` tells whether a symlink at its end stands for what it leads to.
    fn open(argument: &Path, links: Links) -> Result<Self, Missing> {
        let parts = split(argument.as_os_str().as_bytes());
        let name = parts.and_then(|(_, name)| Name::new(name).ok());
        let opened = match (parts, &name) {
            (None, _) => Self::open_contents(argument),
            (Some((parent, _)), Some(name)) => Self::open_named(argument, parent, name, links),
            (Some(_), None) => Err(Errno::NAMETOOLONG),
        };
        opened.map_err(|cause| Missing { argument: argument.to_path_buf(), name, cause })
    }

    fn open_contents(argument: &Path) -> Result<Self, Errno> {
        let path = if argument.as_os_str().is_empty() { Path::new(".") } else { argument };
        let root = beneath::open_operator(path, OFlags::RDONLY)?;
        let argument = argument.to_path_buf();
        Ok(Self { argument, root: Arc::new(root), name: None, is_single: false })
    }

    fn open_named(
        argument: &Path,
        parent: &[u8],
        name: &Name,
        links: Links,
    ) -> Result<Self, Errno> {
        let parent = Path::new(std::ffi::OsStr::from_bytes(parent));
        let root = beneath::open_operator(parent, OFlags::PATH)?;
        let mut stat = rustix::fs::statat(&root, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = rustix::fs::readlinkat(&root, name.as_bytes(), Vec::new())?;
            let is_followed = match links {
                Links::Follow => true,
                Links::FollowUnsafe => links::is_unsafe(target.as_bytes(), name.as_bytes()),
                Links::Keep | Links::OnlySafe => false,
            };
            if is_followed {
                // That it leads to nothing is found, and told, by the walk.
                stat = rustix::fs::statat(&root, name.as_bytes(), AtFlags::empty()).unwrap_or(stat);
            }
        }
        let is_single = FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        let argument = argument.to_path_buf();
        Ok(Self { argument, root: Arc::new(root), name: Some(name.clone()), is_single })
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
        let open = |paths: &[&str]| {
            let paths: Vec<_> = paths.iter().map(PathBuf::from).collect();
            open_all(&paths, Links::Keep)
        };
        let error = open(&["/nowhere/at all", "/nowhere/"]).unwrap_err();
        assert!(error.to_string().starts_with("cannot open /nowhere/at all: No such file"));
        assert!(open(&["/etc/passwd/"]).is_err());
        assert!(open(&[&"x".repeat(256)]).is_err());
        let (origins, missing) = open(&["/nowhere/at all", "/etc", "/nowhere/"]).unwrap();
        assert_eq!((origins.len(), missing.len()), (1, 2));
        assert_eq!(missing[0].name.as_ref().map(Name::as_bytes), Some(&b"at all"[..]));
        assert!(missing[1].name.is_none());
    }

    #[test]
    fn a_followed_symlink_is_what_it_leads_to() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("dir")).unwrap();
        for (name, target) in [("in", "dir"), ("out", "/etc"), ("dangling", "nowhere")] {
            std::os::unix::fs::symlink(target, temp.path().join(name)).unwrap();
        }
        let is_single =
            |name: &str, links| Origin::open(&temp.path().join(name), links).unwrap().is_single;
        assert!(is_single("in", Links::Keep) && is_single("in", Links::FollowUnsafe));
        assert!(!is_single("in", Links::Follow) && !is_single("out", Links::FollowUnsafe));
        assert!(is_single("out", Links::OnlySafe) && is_single("dangling", Links::Follow));
    }
}
