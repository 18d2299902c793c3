//! Looking at one thing of a source.
//!
//! In: a name in an open directory, and the options. Out: what an entry says of it, or why nothing
//! can be said.

use std::io;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode as FsMode, OFlags, Stat};
use rustix::io::Errno;

use super::chmod::{self, Chmod};
use super::{Look, attributes, beneath, links, mtime, source_error};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{
    Attribute, Failure, FailureCode, FileKind, Kind, Links, MAX_ATTRIBUTE_LEN, MAX_ATTRIBUTES_LEN,
    Metadata, Mode, Options, Special, Stamp,
};
use crate::storage::{Operation, StorageError};

/// How things are looked at.
#[derive(Debug)]
pub struct Examiner {
    links: Links,
    devices: bool,
    specials: bool,
    attributes: bool,
    acls: bool,
    chmod: Chmod,
    umask: u32,
}

/// What a name leads to.
#[derive(Debug)]
pub struct Sight {
    pub kind: Kind,
    pub metadata: Metadata,
    /// What the system said, if it did.
    pub stat: Option<Stat>,
    /// A directory, open for listing or, as was asked, for going through.
    pub directory: Option<OwnedFd>,
    /// Whether a symlink was followed.
    is_followed: bool,
    /// It is a directory that may not be listed; the complaint says why.
    pub is_closed: bool,
    /// What of its metadata cannot be told.
    pub complaint: Option<Failure>,
}

/// Why a name leads to nothing that could be looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    System(Operation, Errno),
    /// A symlink that is to be followed leads to nothing.
    NoReferent,
}

/// Something in an open directory. Its path is made up only where it is needed.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub dir: BorrowedFd<'a>,
    pub name: &'a [u8],
    /// From the top of the transfer.
    pub path: &'a dyn Fn() -> Vec<u8>,
}

impl Examiner {
    /// # Errors
    ///
    /// A sentence, if the text for `--chmod` means nothing.
    pub fn new(options: &Options) -> Result<Self, String> {
        let preserve = &options.preserve;
        let chmod = match preserve.chmod.as_slice() {
            b"" => Chmod::default(),
            text => chmod::parse(text)?,
        };
        Ok(Self {
            links: options.select.links,
            devices: preserve.devices,
            specials: preserve.specials,
            attributes: preserve.attributes,
            acls: preserve.acls,
            umask: if chmod.needs_umask() { super::write::umask() } else { 0 },
            chmod,
        })
    }

    /// Whether symlinks are followed, some or all.
    pub fn follows(&self) -> bool {
        follows(self.links)
    }

    /// Looks at a name. `hint` is the type that a listing gave, which saves a system call; `access`
    /// is what directories are opened for.
    pub fn look(
        &self,
        target: Target<'_>,
        hint: FileType,
        access: OFlags,
    ) -> Result<Sight, Refusal> {
        let mut sight = self.find(target, hint, access)?;
        let is_sent = !matches!(sight.kind, Kind::Unsendable(_) | Kind::Unselected);
        if is_sent && (self.attributes || self.acls) {
            match self.read_attributes(target, &sight) {
                Ok(attributes) => sight.keep(attributes, target.path),
                Err(_) if sight.complaint.is_some() => {}
                Err(cause) => sight.complaint = Some(unreadable(&(target.path)(), cause)),
            }
        }
        Ok(sight)
    }

    /// What a directory that is open already is like.
    pub fn directory(&self, dir: BorrowedFd<'_>) -> Result<Sight, Errno> {
        let mut sight = self.sight(rustix::fs::fstat(dir)?, Kind::Directory, None);
        if self.attributes || self.acls {
            match attributes::read(dir, self.attributes, self.acls) {
                Ok(attributes) => sight.keep(attributes, &|| b".".to_vec()),
                Err(cause) => sight.complaint = Some(unreadable(b".", cause)),
            }
        }
        Ok(sight)
    }

    fn find(&self, target: Target<'_>, hint: FileType, access: OFlags) -> Result<Sight, Refusal> {
        if hint == FileType::Directory {
            match self.open(target, access, false) {
                // It became something else since it was listed.
                Err(Refusal::System(_, Errno::NOTDIR | Errno::LOOP)) => {}
                answer => return answer,
            }
        }
        if self.links == Links::Follow {
            return self.follow(target, access);
        }
        let stat = rustix::fs::statat(target.dir, target.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|cause| Refusal::System(Operation::Stat, cause))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.open(target, access, false),
            FileType::Symlink => self.symlink(target, stat, access),
            _ => Ok(self.no_directory(stat, target)),
        }
    }

    fn symlink(&self, target: Target<'_>, stat: Stat, access: OFlags) -> Result<Sight, Refusal> {
        let leads_to = rustix::fs::readlinkat(target.dir, target.name, Vec::new())
            .map_err(|cause| Refusal::System(Operation::Read, cause))?
            .into_bytes();
        let leads_out = || links::is_unsafe(&leads_to, &(target.path)());
        match self.links {
            Links::FollowUnsafe if leads_out() => self.follow(target, access),
            Links::OnlySafe if leads_out() => Ok(self.sight(stat, Kind::Unselected, None)),
            _ => Ok(self.sight(stat, Kind::Symlink { target: leads_to }, None)),
        }
    }

    /// Looks at what a name leads to in the end.
    fn follow(&self, target: Target<'_>, access: OFlags) -> Result<Sight, Refusal> {
        let stat = match rustix::fs::statat(target.dir, target.name, AtFlags::empty()) {
            Ok(stat) => stat,
            Err(cause) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let is_there = rustix::fs::statat(target.dir, target.name, flags).is_ok();
                let leads_nowhere = matches!(cause, Errno::NOENT | Errno::NOTDIR | Errno::LOOP);
                return Err(if is_there && leads_nowhere {
                    Refusal::NoReferent
                } else {
                    Refusal::System(Operation::Stat, cause)
                });
            }
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return self.open(target, access, true);
        }
        Ok(Sight { is_followed: true, ..self.no_directory(stat, target) })
    }

    fn open(
        &self,
        target: Target<'_>,
        access: OFlags,
        is_followed: bool,
    ) -> Result<Sight, Refusal> {
        let open = |access| {
            if is_followed {
                beneath::open_through(target.dir, target.name, access | OFlags::DIRECTORY)
            } else {
                beneath::open_child(target.dir, target.name, access)
            }
        };
        let (fd, closed) = match open(access) {
            // What cannot be listed is there all the same.
            Err(cause @ Errno::ACCESS) => (open(OFlags::PATH), Some(cause)),
            answer => (answer, None),
        };
        let fd = fd.map_err(|cause| Refusal::System(Operation::Open, cause))?;
        let stat =
            rustix::fs::fstat(&fd).map_err(|cause| Refusal::System(Operation::Stat, cause))?;
        let mut sight = Sight { is_followed, ..self.sight(stat, Kind::Directory, Some(fd)) };
        if let Some(cause) = closed {
            let refusal = Refusal::System(Operation::Open, cause);
            sight.complaint = Some(refusal.failure((target.path)(), false));
            sight.is_closed = true;
        }
        Ok(sight)
    }

    fn no_directory(&self, stat: Stat, target: Target<'_>) -> Sight {
        let kind = match (FileType::from_raw_mode(stat.st_mode), special(&stat)) {
            (FileType::RegularFile, _) => Kind::File(file_kind(&stat)),
            (_, Some(special)) if self.takes(special) => Kind::Special(special),
            (kind, _) => Kind::Unsendable(unsupported(kind, &(target.path)())),
        };
        self.sight(stat, kind, None)
    }

    fn takes(&self, special: Special) -> bool {
        match special {
            Special::Fifo | Special::Socket => self.specials,
            Special::CharacterDevice { .. } | Special::BlockDevice { .. } => self.devices,
        }
    }

    fn sight(&self, stat: Stat, kind: Kind, directory: Option<OwnedFd>) -> Sight {
        let mut metadata = metadata(&stat);
        if !self.chmod.is_empty() && !matches!(kind, Kind::Symlink { .. }) {
            let is_directory = kind == Kind::Directory;
            let mode = self.chmod.apply(metadata.mode.bits(), is_directory, self.umask);
            metadata.mode = Mode::from_raw(mode);
        }
        let stat = Some(stat);
        Sight {
            kind,
            metadata,
            stat,
            directory,
            is_followed: false,
            is_closed: false,
            complaint: None,
        }
    }

    fn read_attributes(&self, target: Target<'_>, sight: &Sight) -> Result<Vec<Attribute>, Errno> {
        if let Some(directory) = &sight.directory {
            return attributes::read(directory.as_fd(), self.attributes, self.acls);
        }
        let fd = if sight.is_followed {
            beneath::open_through(target.dir, target.name, OFlags::PATH)?
        } else {
            beneath::open_name(target.dir, target.name, OFlags::PATH, FsMode::empty())?
        };
        let now = rustix::fs::fstat(&fd)?;
        let is_same = |stat: &Stat| (stat.st_dev, stat.st_ino) == (now.st_dev, now.st_ino);
        if !sight.stat.as_ref().is_some_and(is_same) {
            return Err(Errno::STALE);
        }
        attributes::read(fd.as_fd(), self.attributes, self.acls)
    }
}

impl Sight {
    /// What stands for something that cannot be sent.
    pub fn unsendable(failure: Failure) -> Self {
        Self {
            kind: Kind::Unsendable(failure),
            metadata: Metadata::default(),
            stat: None,
            directory: None,
            is_followed: false,
            is_closed: false,
            complaint: None,
        }
    }

    /// Whether it is a directory, of whatever kind of entry.
    pub fn is_directory(&self) -> bool {
        self.directory.is_some() || self.kind == Kind::Directory
    }

    /// Takes attributes, as far as an entry may have them (META-2).
    fn keep(&mut self, mut attributes: Vec<Attribute>, path: &dyn Fn() -> Vec<u8>) {
        let found = attributes.len();
        attributes
            .retain(|it| it.value.len() <= MAX_ATTRIBUTE_LEN && (1..=255).contains(&it.name.len()));
        let len = |it: &Attribute| it.name.len() + it.value.len();
        let mut total: usize = attributes.iter().map(len).sum();
        while total > MAX_ATTRIBUTES_LEN {
            let largest = attributes.iter().enumerate().max_by_key(|(_, it)| len(it));
            let Some(at) = largest.map(|(at, _)| at) else { break };
            total -= len(&attributes.remove(at));
        }
        if attributes.len() < found {
            let text = format!(
                "the largest extended attributes of {} are left out: {} of {found} are too much \
                 to be sent",
                Escaped(&path()),
                found - attributes.len(),
            );
            self.complaint = Some(Failure::new(FailureCode::Unsupported, text));
        }
        self.metadata.attributes = attributes;
    }
}

impl Refusal {
    /// As it is told of something that was found by itself.
    pub fn into_error(self, path: Vec<u8>) -> StorageError {
        match self {
            Self::System(operation, cause) => source_error(operation, path, cause),
            Self::NoReferent => StorageError::Vanished { path },
        }
    }

    /// As it is told of an entry. That something which was asked for by name is not there is an
    /// error, and not a change of the source.
    pub fn failure(self, path: Vec<u8>, is_named: bool) -> Failure {
        match self {
            Self::NoReferent => {
                let text = format!("symlink {} has no referent", Escaped(&path));
                Failure::new(FailureCode::Io, text)
            }
            Self::System(operation, cause @ Errno::NOENT) if is_named => {
                StorageError::io(operation, &path)(cause).to_failure()
            }
            Self::System(..) => self.into_error(path).to_failure(),
        }
    }

    /// Whether the name may stand for anything by now, or for nothing.
    pub fn is_uncertain(self) -> bool {
        !matches!(self, Self::System(Operation::Open, Errno::ACCESS))
    }
}

/// Whether symlinks are followed, some or all.
pub fn follows(links: Links) -> bool {
    matches!(links, Links::Follow | Links::FollowUnsafe)
}

/// What sort of special file it is, if it is one.
pub fn special(stat: &Stat) -> Option<Special> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => Some(Special::Fifo),
        FileType::Socket => Some(Special::Socket),
        FileType::CharacterDevice => Some(Special::CharacterDevice { major, minor }),
        FileType::BlockDevice => Some(Special::BlockDevice { major, minor }),
        _ => None,
    }
}

fn metadata(stat: &Stat) -> Metadata {
    Metadata {
        mode: Mode::from_raw(stat.st_mode),
        mtime: mtime(stat),
        owner: stat.st_uid,
        group: stat.st_gid,
        attributes: Vec::new(),
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
    let text =
        format!("{} is {kind}, and special files are not transferred without -D", Escaped(path));
    Failure::new(FailureCode::Unsupported, text)
}

fn unreadable(path: &[u8], cause: Errno) -> Failure {
    let path = Escaped(path);
    let (code, text) = match cause {
        Errno::TOOBIG => {
            let text = format!("the extended attributes of {path} are left out: over 512 KiB");
            (FailureCode::Unsupported, text)
        }
        cause => {
            let code = match cause {
                Errno::ACCESS | Errno::PERM => FailureCode::Permission,
                _ => FailureCode::Io,
            };
            let cause = io::Error::from(cause);
            (code, format!("cannot read the extended attributes of {path}: {cause}"))
        }
    };
    Failure::new(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_beyond_the_limits_are_left_out_largest_first() {
        let attribute = |number: u8, len| Attribute {
            name: format!("user.{number:03}").into_bytes(),
            value: vec![number; len],
        };
        let mut all: Vec<_> = (0..9).map(|number| attribute(number, 60 << 10)).collect();
        all[4].value.push(4);
        all.push(attribute(100, MAX_ATTRIBUTE_LEN + 1));
        let mut sight = Sight::unsendable(Failure::new(FailureCode::Io, ""));
        sight.keep(all.clone(), &|| b"dir/file".to_vec());
        sight.metadata.check().unwrap();
        assert_eq!(sight.metadata.attributes.len(), 8);
        assert!(!sight.metadata.attributes.contains(&all[4]));
        let complaint = sight.complaint.take().unwrap();
        assert!(complaint.text().contains("dir/file") && complaint.text().contains("2 of 10"));
        sight.keep(all[..3].to_vec(), &Vec::new);
        assert!(sight.complaint.is_none() && sight.metadata.attributes == all[..3]);
    }
}
