//! Finding what a source has.
//!
//! In: origins, and what of them is meant. Out: entries, one by one, parents before their children.
//! One directory is listed at a time and its subdirectories wait in a stack of identities, so that
//! memory grows with the directories only, depth costs nothing, and no recursion is needed.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use super::examine::Examiner;
use super::links::HardLinks;
use super::origin::{Missing, Origin};
use super::rules;
use super::told::Told;
use super::tree::Tree;
use super::visit::{Aim, Spot, Visit};
use super::{Look, beneath, source_error};
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::{Escaped, Name};
use crate::protocol::message::{Complaint, Entry, Failure, FailureCode, Kind, Metadata, Preserve};
use crate::storage::filter::Scope;
use crate::storage::select::Selection;
use crate::storage::{Found, Operation, StorageError};

/// Room for names that the kernel lists at once, in bytes.
const LIST_LEN: usize = 64 << 10;

/// How many finds are handed over together: at the least while nothing waits for the listener (but
/// for the last ones), and at the most.
const MIN_GROUP: usize = 32;
const MAX_GROUP: usize = 256;

/// What is to be found, and how.
#[derive(Debug)]
pub struct Survey {
    pub origins: Vec<Origin>,
    pub missing: Vec<Missing>,
    pub examiner: Examiner,
    pub selection: Selection,
    pub preserve: Preserve,
    /// What the directory is like whose contents are the source, if that is kept.
    pub root: Option<(Metadata, Option<Failure>)>,
    /// What leaders of hard links are, if their other names are to be removed some day.
    pub leaders: Option<Mutex<HashMap<EntryId, Leader>>>,
}

/// A file of which hard links were found: its device, and what it is.
pub type Leader = (u64, Look);

/// What is known of each directory of a source: which one it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Node {
    device: u64,
    inode: u64,
}

impl Node {
    pub fn new(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// Nobody listens any more.
pub struct Gone;

/// Sends every entry that is meant, but for what is in the directory that everything goes to.
pub fn walk(
    survey: &Survey,
    tree: &Tree<Node>,
    sink: Option<Node>,
    found: flume::Sender<Vec<Found>>,
) -> Result<(), StorageError> {
    let mut walk = Walk {
        survey,
        tree,
        sink,
        found,
        group: Vec::new(),
        last: 0,
        origin: 0,
        pending: Vec::new(),
        taken: HashMap::new(),
        hard_links: HardLinks::default(),
        told: Told::new(&survey.preserve),
        lists_root: false,
        is_root_complete: true,
        buffer: Vec::with_capacity(LIST_LEN),
        first_error: None,
    };
    match walk.run().and_then(|()| walk.hand_over()) {
        Ok(()) => walk.first_error.map_or(Ok(()), Err),
        Err(Gone) => Ok(()),
    }
}

pub struct Walk<'a> {
    pub survey: &'a Survey,
    pub tree: &'a Tree<Node>,
    /// The directory that everything goes to, if it may be in a source.
    pub sink: Option<Node>,
    found: flume::Sender<Vec<Found>>,
    /// What was found and is not handed over yet.
    group: Vec<Found>,
    /// The identity that was given last.
    pub last: u64,
    /// The index of the origin that is being walked.
    pub origin: usize,
    /// Directories that are not listed yet, with what applies around them.
    pub pending: Vec<Directory>,
    /// Names at the top and the origins that they came from; unused with a single origin.
    pub taken: HashMap<Name, usize>,
    pub hard_links: HardLinks,
    told: Told,
    /// Whether contents of a source lie directly in ROOT, and whether they all were found.
    lists_root: bool,
    is_root_complete: bool,
    buffer: Vec<u8>,
    /// What could not be listed to its end. There is no entry that could carry it.
    first_error: Option<StorageError>,
}

/// A directory in which things are looked for.
#[derive(Clone, Debug)]
pub struct Directory {
    pub id: EntryId,
    /// How many levels below ROOT it is.
    pub depth: u32,
    /// The device on which the walk is to stay, if that matters and is known by now.
    pub device: Option<u64>,
    /// The filter rules in force: until it is listed, those of the directory around it. `None` if
    /// nothing is filtered.
    pub scope: Option<Scope>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), Gone> {
        if let Some((metadata, complaint)) = &self.survey.root {
            self.tell_owners(metadata)?;
            if let Some(failure) = complaint {
                self.complain(Vec::new(), failure.clone())?;
            }
        }
        let paths = self.survey.selection.paths.as_ref();
        for path in paths.map_or(&[][..], |paths| &paths.refused) {
            let text = format!("{} is no path below the source, and is left out", Escaped(path));
            self.complain(path.clone(), Failure::new(FailureCode::Io, text))?;
        }
        match paths {
            Some(paths) if self.survey.selection.is_by_name() => self.find_paths(paths)?,
            _ => self.find_all()?,
        }
        self.tell_missing()?;
        if self.lists_root && self.is_root_complete {
            self.send(Found::Listed(EntryId::ROOT))?;
        }
        Ok(())
    }

    fn find_all(&mut self) -> Result<(), Gone> {
        let survey = self.survey;
        for (index, origin) in survey.origins.iter().enumerate() {
            let top = self.begin(index)?;
            if !survey.selection.enters(0) {
                continue;
            }
            let dir = origin.root.as_fd();
            if let Some(name) = &origin.name {
                let spot = Spot { dir, at: &top, prefix: b"" };
                let visit = self.visit(
                    &spot,
                    name.as_bytes(),
                    FileType::Unknown,
                    Aim::Named { whole: true },
                )?;
                self.is_root_complete &= !matches!(visit, Visit::Refused { is_known: false });
            } else {
                self.lists_root = true;
                self.list(dir, top)?;
            }
            self.list_pending()?;
        }
        Ok(())
    }

    /// Goes on with the next origin, and returns its top.
    pub fn begin(&mut self, origin: usize) -> Result<Directory, Gone> {
        self.origin = origin;
        self.tree.begin_root(EntryId(self.last + 1));
        let scope = self.survey.selection.rules.as_ref().map(super::super::filter::Rules::root);
        let mut top = Directory { id: EntryId::ROOT, depth: 0, device: None, scope };
        let origin = self.survey.origins.get(origin);
        let starts = !self.survey.selection.is_by_name();
        if let Some(origin) = origin.filter(|origin| starts && origin.name.is_none()) {
            match rustix::fs::fstat(&origin.root) {
                Ok(stat) => top.device = Some(stat.st_dev),
                Err(cause) => self.note(EntryId::ROOT, cause)?,
            }
        }
        Ok(top)
    }

    /// Lists what was found to be a directory, and what is found in it.
    pub fn list_pending(&mut self) -> Result<(), Gone> {
        let is_by_name = self.survey.selection.is_by_name();
        while let Some(directory) = self.pending.pop() {
            let opened = self.tree.directory(directory.id).and_then(|dir| {
                if is_by_name {
                    beneath::open_child(dir.as_fd(), b".", OFlags::RDONLY).map(Arc::new)
                } else {
                    Ok(dir)
                }
            });
            match opened {
                Ok(dir) => self.list(dir.as_fd(), directory)?,
                Err(cause) => self.note(directory.id, cause)?,
            }
        }
        Ok(())
    }

    /// Sends what is in one directory.
    fn list(&mut self, dir: BorrowedFd<'_>, mut at: Directory) -> Result<(), Gone> {
        let prefix = self.tree.path(at.id, b"");
        let is_complete = self.enter(dir, &mut at, &prefix)?
            && self.list_entered(&Spot { dir, at: &at, prefix: &prefix })?;
        if at.id == EntryId::ROOT {
            self.is_root_complete &= is_complete;
        } else if is_complete {
            self.send(Found::Listed(at.id))?;
        }
        Ok(())
    }

    /// Puts the filter rules of a directory in force, or tells why that cannot be.
    pub fn enter(
        &mut self,
        dir: BorrowedFd<'_>,
        at: &mut Directory,
        prefix: &[u8],
    ) -> Result<bool, Gone> {
        let Some(scope) = &at.scope else { return Ok(true) };
        let path = prefix.strip_suffix(b"/").unwrap_or(prefix);
        match rules::enter(scope, dir, path) {
            Ok(scope) => at.scope = Some(scope),
            Err(error) => {
                let cause = io::Error::other(error);
                self.note_error(StorageError::io(Operation::List, path)(cause))?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether everything was found.
    fn list_entered(&mut self, spot: &Spot<'_>) -> Result<bool, Gone> {
        if let Err(cause) = rustix::fs::seek(spot.dir, SeekFrom::Start(0)) {
            self.note(spot.at.id, cause)?;
            return Ok(false);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut is_complete = true;
        let mut names = RawDir::new(spot.dir, buffer.spare_capacity_mut());
        while let Some(answer) = names.next() {
            match answer {
                Ok(item) => match item.file_name().to_bytes() {
                    b"." | b".." => {}
                    name => {
                        let visit = self.visit(spot, name, item.file_type(), Aim::Listed)?;
                        is_complete &= !matches!(visit, Visit::Refused { is_known: false });
                    }
                },
                Err(Errno::INTR) => {}
                Err(cause) => {
                    self.note(spot.at.id, cause)?;
                    is_complete = false;
                    break;
                }
            }
        }
        self.buffer = buffer;
        Ok(is_complete)
    }

    /// Tells of the sources that could not be opened, under names that others have not taken.
    fn tell_missing(&mut self) -> Result<(), Gone> {
        for missing in &self.survey.missing {
            self.is_root_complete = false;
            let error = missing.error();
            let Some(name) = missing.name.clone() else {
                self.note_error(error)?;
                continue;
            };
            let name = if self.taken.contains_key(&name) {
                self.substitute(name)
            } else {
                self.taken.insert(name.clone(), self.origin);
                name
            };
            self.last += 1;
            self.send(Found::Entry(Entry {
                id: EntryId(self.last),
                parent: EntryId::ROOT,
                name,
                kind: Kind::Unsendable(error.to_failure()),
                is_linked: false,
                metadata: Metadata::default(),
            }))?;
        }
        Ok(())
    }

    pub fn tell_owners(&mut self, metadata: &Metadata) -> Result<(), Gone> {
        match self.told.learn(metadata) {
            Some(owners) => self.send(owners),
            None => Ok(()),
        }
    }

    pub fn complain(&mut self, path: Vec<u8>, failure: Failure) -> Result<(), Gone> {
        self.send(Found::Complaint(Complaint::new(path, failure)))
    }

    pub fn send(&mut self, found: Found) -> Result<(), Gone> {
        self.group.push(found);
        // A listener that waits is not kept waiting for more than it can begin with.
        let is_full = self.group.len() >= MAX_GROUP;
        if is_full || (self.group.len() >= MIN_GROUP && self.found.is_empty()) {
            return self.hand_over();
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), Gone> {
        if self.group.is_empty() {
            return Ok(());
        }
        self.found.send(std::mem::take(&mut self.group)).map_err(|_| Gone)
    }

    /// Takes note that a directory could not be listed to its end.
    pub fn note(&mut self, id: EntryId, cause: Errno) -> Result<(), Gone> {
        let path = self.tree.path(id, b"");
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        self.note_error(source_error(Operation::List, path, cause))
    }

    /// The first error is the answer of the walk; later ones are told at once.
    fn note_error(&mut self, error: StorageError) -> Result<(), Gone> {
        if self.first_error.is_some() {
            return self.send(Found::Complaint(error.to_complaint()));
        }
        self.first_error = Some(error);
        Ok(())
    }
}
