//! Equal files of earlier copies, to be linked instead of sent (`--link-dest`).
//!
//! In: the operator's directories, and files that are not at the destination. Out: hard links of
//! files with equal content and metadata. Nothing is ever written in those directories.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode as FsMode, OFlags, Stat};
use rustix::io::Errno;

use super::place::created;
use super::write::Inner;
use super::{Look, beneath, mtime};
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{Changes, Compare, Entry, FileKind};
use crate::storage::{Existing, Operation, Placed, StorageError};

/// The directories, in the operator's order.
#[derive(Debug, Default)]
pub struct LinkDest {
    roots: Vec<Arc<OwnedFd>>,
    /// What corresponds to the directory that was last asked for: files come by directories.
    last: Mutex<Option<(EntryId, Vec<Arc<OwnedFd>>)>>,
}

/// A file that may be linked.
#[derive(Debug)]
struct Candidate {
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
    stat: Stat,
}

impl LinkDest {
    /// Opens the directories; relative ones are relative to the destination. One that does not exist
    /// has no equal files.
    pub fn open(destination: &Path, paths: &[Vec<u8>]) -> Result<Self, StorageError> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut roots = Vec::new();
        for path in paths {
            let full = destination.join(std::ffi::OsStr::from_bytes(path));
            match beneath::open_operator(&full, OFlags::PATH) {
                Ok(root) => roots.push(Arc::new(root)),
                Err(Errno::NOENT) => {}
                Err(cause) => return Err(StorageError::io(Operation::Open, path)(cause)),
            }
        }
        Ok(Self { roots, last: Mutex::default() })
    }

    /// The directories at a path below each root, as far as they exist.
    fn directories(&self, parent: EntryId, path: impl Fn() -> Vec<u8>) -> Vec<Arc<OwnedFd>> {
        if parent == EntryId::ROOT {
            return self.roots.clone();
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, dirs)) = &*last
            && *known == parent
        {
            return dirs.clone();
        }
        let path = path();
        let open = |root: &Arc<OwnedFd>| {
            beneath::open_directory(root.as_fd(), &path, OFlags::PATH).ok().map(Arc::new)
        };
        let dirs: Vec<_> = self.roots.iter().filter_map(open).collect();
        *last = Some((parent, dirs.clone()));
        dirs
    }
}

impl Inner {
    /// A file for which there is none of its type in its place.
    pub fn place_absent(&self, file: FileKind, entry: &Entry) -> Result<Placed, StorageError> {
        match self.update.compare {
            Compare::Always => Ok(created(entry)),
            Compare::Checksum => Ok(self
                .candidate(file, entry)
                .map_or(created(entry), |_| Placed::Compare(Existing::Unread))),
            Compare::Quick | Compare::SizeOnly => self.link_equal(file, entry),
        }
    }

    /// Links the file that counts as equal, if there is one.
    pub fn link_equal(&self, file: FileKind, entry: &Entry) -> Result<Placed, StorageError> {
        let Some(found) = self.candidate(file, entry) else { return Ok(created(entry)) };
        if !self.dry_run {
            let name = self.name_of(entry)?;
            let dir = self.parent(entry)?;
            let from = (found.dir.as_fd(), found.name.as_slice(), &found.stat);
            match self.link_existing(from, dir.as_fd(), name, entry) {
                // On another file system, linked too often, or not ours to link: then it is sent.
                Err(StorageError::Io { operation: Operation::Link, .. }) => {
                    return Ok(created(entry));
                }
                linked => linked?,
            }
        }
        Ok(Placed::Settled(Changes::CREATED.with(Changes::LINKED)))
    }

    /// Opens the data of the file that may be linked, if there is one.
    pub fn open_candidate(&self, file: FileKind, entry: &Entry) -> Option<OwnedFd> {
        let found = self.candidate(file, entry)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        beneath::open_name(found.dir.as_fd(), &found.name, flags, FsMode::empty()).ok()
    }

    /// The first file with equal metadata, and data that counts as equal unless it is compared.
    fn candidate(&self, file: FileKind, entry: &Entry) -> Option<Candidate> {
        if self.link_dest.roots.is_empty() {
            return None;
        }
        let path = self.path(entry);
        let (parent_path, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (path.get(..slash)?, path.get(slash + 1..)?),
            None => (&b""[..], path.as_slice()),
        };
        let target = self.target(&entry.metadata, FileType::RegularFile, None);
        let dirs = self.link_dest.directories(entry.parent, || parent_path.to_vec());
        dirs.into_iter().find_map(|dir| {
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let is_equal = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && Look::new(&stat).size == file.size
                && (self.update.compare != Compare::Quick
                    || self.is_same_time(mtime(&stat), entry.metadata.mtime));
            let is_equal = is_equal
                && self.compare(dir.as_fd(), name, &stat, &target).is_ok_and(|it| it.0.is_empty());
            is_equal.then(|| Candidate { name: name.to_vec(), stat, dir })
        })
    }
}
