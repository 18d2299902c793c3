//! Finding what a source has.
//!
//! In: origins. Out: entries, one by one, parents before their children. One directory is listed at
//! a time and its subdirectories wait in a stack of identities, so that memory grows with the
//! directories only, depth costs nothing, and no recursion is needed.

use std::collections::HashMap;
use std::mem::MaybeUninit;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use super::origin::Origin;
use super::tree::{Place, Tree};
use super::{Look, STATE_NAME, beneath, mtime, source_error};
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::{Escaped, Name, Timestamp};
use crate::protocol::message::{Entry, Failure, FailureCode, FileKind, Kind, Mode, Stamp};
use crate::storage::{Operation, StorageError};

/// Room for names that the kernel lists at once, in bytes.
const LIST_LEN: usize = 64 << 10;

/// Nobody listens any more.
struct Gone;

/// Sends every entry below the origins.
pub fn walk(
    origins: &[Origin],
    tree: &Tree<()>,
    found: flume::Sender<Entry>,
) -> Result<(), StorageError> {
    let mut walk = Walk {
        origins,
        tree,
        found,
        last: 0,
        origin: 0,
        pending: Vec::new(),
        taken: HashMap::new(),
        first_error: None,
    };
    match walk.run() {
        Ok(()) => walk.first_error.map_or(Ok(()), Err),
        Err(Gone) => Ok(()),
    }
}

struct Walk<'a> {
    origins: &'a [Origin],
    tree: &'a Tree<()>,
    found: flume::Sender<Entry>,
    /// The identity that was given last.
    last: u64,
    /// The index of the origin that is being walked.
    origin: usize,
    /// Directories that are not listed yet.
    pending: Vec<EntryId>,
    /// Names at the top and the origins that they came from; unused with a single origin.
    taken: HashMap<Name, usize>,
    /// What could not be listed to its end. There is no entry that could carry it.
    first_error: Option<StorageError>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), Gone> {
        let mut buffer = Vec::with_capacity(LIST_LEN);
        let origins = self.origins;
        for (index, origin) in origins.iter().enumerate() {
            self.origin = index;
            self.tree.begin_root(EntryId(self.last + 1));
            let root = origin.root.as_fd();
            match &origin.name {
                Some(name) => {
                    self.visit(root, EntryId::ROOT, name.as_bytes(), FileType::Unknown)?;
                }
                None => self.list(root, EntryId::ROOT, buffer.spare_capacity_mut())?,
            }
            while let Some(id) = self.pending.pop() {
                match self.tree.directory(id) {
                    Ok(dir) => self.list(dir.as_fd(), id, buffer.spare_capacity_mut())?,
                    Err(cause) => self.note(id, cause),
                }
            }
        }
        Ok(())
    }

    /// Sends what is in one directory.
    fn list(
        &mut self,
        dir: BorrowedFd<'_>,
        id: EntryId,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<(), Gone> {
        if let Err(cause) = rustix::fs::seek(dir, SeekFrom::Start(0)) {
            self.note(id, cause);
        }
        let mut names = RawDir::new(dir, buffer);
        while let Some(answer) = names.next() {
            match answer {
                Ok(item) => match item.file_name().to_bytes() {
                    b"." | b".." => {}
                    name => self.visit(dir, id, name, item.file_type())?,
                },
                Err(Errno::INTR) => {}
                Err(cause) => {
                    self.note(id, cause);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Sends one thing, and remembers it if it is a directory.
    fn visit(
        &mut self,
        dir: BorrowedFd<'_>,
        parent: EntryId,
        raw_name: &[u8],
        hint: FileType,
    ) -> Result<(), Gone> {
        let Ok(name) = Name::new(raw_name) else {
            // Linux has no such names; another system's file system might.
            self.note(parent, Errno::ILSEQ);
            return Ok(());
        };
        self.last += 1;
        let id = EntryId(self.last);
        let (name, found) = match self.admit(parent, name) {
            Ok(name) => {
                let found = Found::examine(dir, name.as_bytes(), hint, || {
                    self.tree.path(parent, name.as_bytes())
                });
                (name, found)
            }
            Err((name, failure)) => (name, Found::unsendable(failure)),
        };
        if let Some(fd) = found.directory {
            self.tree.insert(Place { id, parent, name: name.as_bytes() }, (), Some(fd));
            self.pending.push(id);
        }
        let (kind, mode, mtime) = (found.kind, found.mode, found.mtime);
        self.found.send(Entry { id, parent, name, kind, mode, mtime }).map_err(|_| Gone)
    }

    /// Decides whether something may be sent. If not, it gets a name under which that can be told.
    fn admit(&mut self, parent: EntryId, name: Name) -> Result<Name, (Name, Failure)> {
        if parent != EntryId::ROOT {
            return Ok(name);
        }
        if self.origins.len() > 1 {
            if let Some(first) = self.taken.get(&name) {
                let failure = self.conflict(*first, name.as_bytes());
                return Err((self.substitute(name), failure));
            }
            self.taken.insert(name.clone(), self.origin);
        }
        if name.as_bytes() == STATE_NAME {
            let text = ".fastsync holds the state of unfinished jobs and is not transferred";
            return Err((name, Failure::new(FailureCode::Unsupported, text)));
        }
        Ok(name)
    }

    /// Another name for an entry whose own is taken, as no two entries may have the same.
    fn substitute(&mut self, name: Name) -> Name {
        let bytes = name.as_bytes();
        let start = bytes.get(..200).unwrap_or(bytes);
        let free = (self.last..).find_map(|number| {
            let candidate = [start, format!("~{number}").as_bytes()].concat();
            Name::new(&candidate).ok().filter(|name| !self.taken.contains_key(name))
        });
        let name = free.unwrap_or(name);
        self.taken.insert(name.clone(), self.origin);
        name
    }

    fn conflict(&self, first: usize, name: &[u8]) -> Failure {
        let path = |index: usize| {
            use std::os::unix::ffi::OsStrExt as _;
            let origin = self.origins.get(index);
            let argument = origin.map_or(&b""[..], |origin| origin.argument.as_os_str().as_bytes());
            let mut path = argument.to_vec();
            if origin.is_some_and(|origin| origin.name.is_none()) {
                if !path.is_empty() && !path.ends_with(b"/") {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
            }
            path
        };
        let text = format!(
            "{} is left out: {} has the same name at the destination; transfer them separately",
            Escaped(&path(self.origin)),
            Escaped(&path(first)),
        );
        Failure::new(FailureCode::Conflict, text)
    }

    fn note(&mut self, id: EntryId, cause: Errno) {
        let path = self.tree.path(id, b"");
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        self.first_error.get_or_insert_with(|| source_error(Operation::List, path, cause));
    }
}

/// What a name leads to.
pub struct Found {
    pub kind: Kind,
    pub mode: Mode,
    pub mtime: Timestamp,
    /// A directory, open for listing.
    pub directory: Option<OwnedFd>,
}

impl Found {
    /// Looks at a name, and makes of every failure something that can be told.
    fn examine(
        dir: BorrowedFd<'_>,
        name: &[u8],
        hint: FileType,
        path: impl Fn() -> Vec<u8>,
    ) -> Self {
        Self::look(dir, name, hint, &path).unwrap_or_else(|(operation, cause)| {
            Self::unsendable(source_error(operation, path(), cause).to_failure())
        })
    }

    /// Looks at a name. `hint` is the type that a listing gave, which saves a system call.
    pub fn look(
        dir: BorrowedFd<'_>,
        name: &[u8],
        hint: FileType,
        path: impl Fn() -> Vec<u8>,
    ) -> Result<Self, (Operation, Errno)> {
        if hint == FileType::Directory {
            match Self::open(dir, name) {
                // It became something else since it was listed.
                Err((_, Errno::NOTDIR | Errno::LOOP)) => {}
                answer => return answer,
            }
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|cause| (Operation::Stat, cause))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Self::open(dir, name),
            FileType::RegularFile => Kind::File(file_kind(&stat)),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())
                    .map_err(|cause| (Operation::Read, cause))?;
                Kind::Symlink { target: target.into_bytes() }
            }
            special => Kind::Unsendable(unsupported(special, &path())),
        };
        Ok(Self::with(&stat, kind, None))
    }

    fn open(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Self, (Operation, Errno)> {
        let fd = beneath::open_child(dir, name, OFlags::RDONLY)
            .map_err(|cause| (Operation::Open, cause))?;
        let stat = rustix::fs::fstat(&fd).map_err(|cause| (Operation::Stat, cause))?;
        Ok(Self::with(&stat, Kind::Directory, Some(fd)))
    }

    fn with(stat: &Stat, kind: Kind, directory: Option<OwnedFd>) -> Self {
        Self { kind, mode: Mode::from_raw(stat.st_mode), mtime: mtime(stat), directory }
    }

    fn unsendable(failure: Failure) -> Self {
        let kind = Kind::Unsendable(failure);
        Self { kind, mode: Mode::default(), mtime: Timestamp::default(), directory: None }
    }
}

fn file_kind(stat: &Stat) -> FileKind {
    let look = Look::new(stat);
    FileKind { size: look.size, stamp: Stamp { inode: look.inode, ctime: look.ctime } }
}

fn unsupported(kind: FileType, path: &[u8]) -> Failure {
    let kind = match kind {
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "of an unknown type",
    };
    let text = format!("{} is {kind}, and special files are not transferred", Escaped(path));
    Failure::new(FailureCode::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::PathBuf;

    use super::super::testing::walk;
    use super::*;
    use crate::storage::Source as _;

    fn failure(entry: &Entry) -> &Failure {
        match &entry.kind {
            Kind::Unsendable(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn names_are_bytes() {
        let temp = tempfile::tempdir().unwrap();
        let mut names =
            vec![b"-rf".to_vec(), b"a\nb".to_vec(), b"\xff\xfe".to_vec(), vec![b'x'; 255]];
        for name in &names {
            fs::write(temp.path().join(OsStr::from_bytes(name)), b"").unwrap();
        }
        let (source, entries) = walk(&[temp.path().join("")]).await;
        let mut found: Vec<_> = entries.iter().map(|entry| source.path(entry)).collect();
        found.sort();
        names.sort();
        assert_eq!(found, names);
        assert!(!source.is_single_file());
    }

    #[tokio::test]
    async fn special_files_are_told_and_never_opened() {
        let temp = tempfile::tempdir().unwrap();
        let fifo = temp.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        std::os::unix::fs::symlink("../nowhere", temp.path().join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(temp.path().join("socket")).unwrap();
        let (_, entries) = walk(&[temp.path().to_path_buf()]).await;
        assert_eq!(entries.len(), 4);
        for entry in &entries {
            match entry.name.as_bytes() {
                b"link" => {
                    assert_eq!(entry.kind, Kind::Symlink { target: b"../nowhere".to_vec() });
                }
                b"fifo" | b"socket" => {
                    assert_eq!(failure(entry).code, FailureCode::Unsupported);
                    assert!(failure(entry).text().contains("special files are not transferred"));
                }
                _ => assert_eq!(entry.kind, Kind::Directory),
            }
        }
    }

    /// ENTRY-1.
    #[tokio::test]
    async fn a_slash_decides_what_is_at_the_top() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("dir")).unwrap();
        fs::write(temp.path().join("dir/file"), b"x").unwrap();
        std::os::unix::fs::symlink("dir", temp.path().join("link")).unwrap();
        let paths = async |name: &str| {
            let (source, entries) = walk(&[temp.path().join(name)]).await;
            let paths = entries.iter().map(|entry| source.path(entry)).collect::<Vec<_>>();
            (source.is_single_file(), String::from_utf8(paths.join(&b' ')).unwrap())
        };
        assert_eq!(paths("dir").await, (false, "dir dir/file".to_owned()));
        assert_eq!(paths("dir/").await, (false, "file".to_owned()));
        assert_eq!(paths("dir/.").await, (false, "file".to_owned()));
        assert_eq!(paths("link").await, (true, "link".to_owned()));
        assert_eq!(paths("link/").await, (false, "file".to_owned()));
        assert_eq!(paths("dir/file").await, (true, "file".to_owned()));
    }

    #[tokio::test]
    async fn no_two_entries_share_a_name_at_the_top() {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["a", "b", "c/same"] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        fs::write(temp.path().join("a/same"), b"").unwrap();
        fs::write(temp.path().join("b/same"), b"").unwrap();
        let sources: Vec<PathBuf> =
            ["a/", "b/", "c/same"].iter().map(|name| temp.path().join(name)).collect();
        let (_, entries) = walk(&sources).await;
        let mut names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!((entries.len(), names.len()), (3, 3));
        for (entry, own) in entries[1..].iter().zip(["b/same", "c/same"]) {
            let failure = failure(entry);
            assert_eq!(failure.code, FailureCode::Conflict);
            assert!(failure.text().contains(own) && failure.text().contains("a/same"), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_opened_is_told() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("gone")).unwrap();
        let dir = beneath::open_operator(temp.path(), OFlags::RDONLY).unwrap();
        fs::remove_dir(temp.path().join("gone")).unwrap();
        let found = Found::examine(dir.as_fd(), b"gone", FileType::Directory, || b"p".to_vec());
        assert!(
            matches!(found.kind, Kind::Unsendable(failure) if failure.code == FailureCode::Vanished)
        );
    }

    /// T56. Root may open everything, so there is nothing to see for it.
    #[tokio::test]
    async fn a_directory_without_permission_is_told() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("closed")).unwrap();
        fs::set_permissions(temp.path().join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        let (_, entries) = walk(&[temp.path().join("")]).await;
        if !rustix::process::geteuid().is_root() {
            assert_eq!(failure(&entries[0]).code, FailureCode::Permission);
        }
    }

    #[tokio::test]
    async fn the_walk_ends_when_nobody_listens() {
        let temp = tempfile::tempdir().unwrap();
        (0..100).for_each(|n| fs::write(temp.path().join(n.to_string()), b"").unwrap());
        let source = super::super::LocalSource::open(&[temp.path().to_path_buf()]).unwrap();
        let (sender, receiver) = flume::bounded(1);
        drop(receiver);
        source.walk(sender).await.unwrap();
    }
}
