//! What becomes of one thing that was come across: an entry, or nothing.
//!
//! In: a name in a directory, because it was listed or asked for. Out: its entry, if it is meant,
//! and the directory to go on with, if it is one.

use std::os::unix::ffi::OsStrExt as _;
use std::sync::PoisonError;

use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::examine::{Refusal, Sight, Target};
use super::links::Meeting;
use super::tree::Place;
use super::walk::{Directory, Gone, Node, Walk};
use super::{Look, STATE_NAME};
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::{Escaped, Name};
use crate::protocol::message::{Complaint, Entry, Failure, FailureCode, Kind, Metadata};
use crate::storage::Found;
use crate::storage::filter::{Scope, Side};

/// A directory in which things are being looked for.
pub struct Spot<'a> {
    pub dir: BorrowedFd<'a>,
    pub at: &'a Directory,
    /// Its path from the top, with a slash behind; empty for the top.
    pub prefix: &'a [u8],
}

impl Spot<'_> {
    fn path(&self, name: &[u8]) -> Vec<u8> {
        [self.prefix, name].concat()
    }

    fn admits(&self, name: &Name, is_directory: bool) -> bool {
        let admits =
            |scope: &Scope| scope.admits(Side::Sender, &self.path(name.as_bytes()), is_directory);
        self.at.scope.as_ref().is_none_or(admits)
    }
}

/// Why something is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Aim {
    /// It was listed.
    Listed,
    /// It was asked for, with all that is in it or without.
    Named { whole: bool },
    /// It is a directory on the way to something that was asked for.
    Way,
}

/// What became of looking at something.
#[derive(Debug)]
pub enum Visit {
    /// The filters leave it out.
    Hidden,
    /// It is an entry, and nothing is in it.
    Leaf,
    /// It is an entry, and a directory.
    Directory(Directory),
    /// It is an entry that says what is wrong. `is_known` if it is there all the same.
    Refused { is_known: bool },
    /// It should lead on, and does not. It is no entry.
    NoDirectory,
}

impl Walk<'_> {
    /// Looks at one thing and sends it, if it is meant; remembers it if it is a directory to list.
    pub fn visit(
        &mut self,
        spot: &Spot<'_>,
        raw_name: &[u8],
        hint: FileType,
        aim: Aim,
    ) -> Result<Visit, Gone> {
        let Ok(name) = Name::new(raw_name) else {
            // Linux has no such names; another system's file system might.
            self.note(spot.at.id, Errno::ILSEQ)?;
            return Ok(Visit::Refused { is_known: false });
        };
        let examiner = &self.survey.examiner;
        let is_filtered = spot.at.scope.is_some() && aim != Aim::Way;
        let listed_as = match hint {
            FileType::Unknown => None,
            FileType::Symlink if examiner.follows() => None,
            hint => Some(hint == FileType::Directory),
        };
        if is_filtered && listed_as.is_some_and(|is_directory| !spot.admits(&name, is_directory)) {
            return Ok(Visit::Hidden);
        }
        if self.is_state_of_sink(spot, raw_name) {
            return Ok(Visit::Hidden);
        }
        let path = || spot.path(name.as_bytes());
        let target = Target { dir: spot.dir, name: name.as_bytes(), path: &path };
        let is_entered = matches!(aim, Aim::Listed | Aim::Named { whole: true })
            && self.survey.selection.enters(spot.at.depth + 1);
        let access = if is_entered { OFlags::RDONLY } else { OFlags::PATH };
        let sight = examiner.look(target, hint, access);
        let found_as = sight.as_ref().ok().map(Sight::is_directory);
        let is_decided = listed_as
            .is_some_and(|listed| found_as.is_none_or(|is_directory| is_directory == listed));
        let is_hidden = is_filtered
            && !is_decided
            && match found_as {
                Some(is_directory) => !spot.admits(&name, is_directory),
                // What would be left out whatever it is need not be there.
                None => !spot.admits(&name, false) || !spot.admits(&name, true),
            };
        if is_hidden {
            return Ok(Visit::Hidden);
        }
        if aim == Aim::Way && found_as == Some(false) {
            return Ok(Visit::NoDirectory);
        }
        if let Ok(sight) = &sight
            && self.is_sink(spot, raw_name, sight.stat.as_ref(), aim)
        {
            return self.leave_out_sink(spot, name);
        }
        self.emit(spot, name, sight, aim, is_entered)
    }

    /// Whether something is where the running job keeps its journal.
    fn is_state_of_sink(&self, spot: &Spot<'_>, name: &[u8]) -> bool {
        name == STATE_NAME && self.sink.is_some() && self.sink == self.node_of(spot)
    }

    /// Whether a directory is the one that everything goes to, or what a source becomes there, and
    /// so would be copied into itself. A source that is that directory by itself is no such thing.
    fn is_sink(&self, spot: &Spot<'_>, name: &[u8], stat: Option<&Stat>, aim: Aim) -> bool {
        let (Some(sink), Some(stat)) = (self.sink, stat) else { return false };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return false;
        }
        let origin = self.survey.origins.get(self.origin).and_then(|origin| origin.name.as_ref());
        let is_origin = origin.is_some() && spot.at.id == EntryId::ROOT;
        if is_origin || aim == Aim::Way {
            return false;
        }
        let is_copy = |origin: &Name| origin.as_bytes() == name && self.node_of(spot) == Some(sink);
        Node::new(stat) == sink || origin.is_some_and(is_copy)
    }

    fn node_of(&self, spot: &Spot<'_>) -> Option<Node> {
        if spot.at.id == EntryId::ROOT {
            return rustix::fs::fstat(spot.dir).ok().map(|stat| Node::new(&stat));
        }
        self.tree.value(spot.at.id)
    }

    /// Announces the destination as what is not meant, and says so: nothing of it is copied into it,
    /// and what it has under that name stays.
    fn leave_out_sink(&mut self, spot: &Spot<'_>, name: Name) -> Result<Visit, Gone> {
        let path = spot.path(name.as_bytes());
        let (Ok(name) | Err((name, _))) = self.admit(spot.at.id, name);
        self.last += 1;
        let id = EntryId(self.last);
        self.send(Found::Entry(Entry {
            id,
            parent: spot.at.id,
            name,
            kind: Kind::Unselected,
            is_linked: false,
            metadata: Metadata::default(),
        }))?;
        let text = format!(
            "{} is left out: it is where everything is copied to; exclude it to be rid of this",
            Escaped(&path)
        );
        self.complain(path, Failure::new(FailureCode::Conflict, text))?;
        Ok(Visit::Leaf)
    }

    /// Makes an entry of what was seen, and sends it.
    pub fn emit(
        &mut self,
        spot: &Spot<'_>,
        name: Name,
        sight: Result<Sight, Refusal>,
        aim: Aim,
        is_entered: bool,
    ) -> Result<Visit, Gone> {
        if self.is_given_twice(spot, &name, sight.as_ref().ok()) {
            return Ok(Visit::Hidden);
        }
        let mut visit = Visit::Leaf;
        let (name, mut sight) = match (self.admit(spot.at.id, name), sight) {
            (Ok(name), Ok(sight)) => (name, sight),
            (Ok(name), Err(refusal)) => {
                visit = Visit::Refused { is_known: !refusal.is_uncertain() };
                let failure = refusal.failure(spot.path(name.as_bytes()), aim != Aim::Listed);
                (name, Sight::unsendable(failure))
            }
            (Err((name, failure)), _) => {
                visit = Visit::Refused { is_known: true };
                (name, Sight::unsendable(failure))
            }
        };
        self.last += 1;
        let id = EntryId(self.last);
        if let (Some(fd), Some(stat)) = (sight.directory.take(), sight.stat) {
            match self.child(spot, &name, id, &stat, aim) {
                Ok(child) => {
                    let is_mount = self.survey.selection.one_file_system
                        && spot.at.device.is_some_and(|device| device != stat.st_dev);
                    let is_listed = is_entered && !is_mount && !sight.is_closed;
                    if is_listed || matches!(aim, Aim::Named { whole: false } | Aim::Way) {
                        let place = Place { id, parent: spot.at.id, name: name.as_bytes() };
                        self.tree.insert(place, Node::new(&stat), Some(fd));
                    }
                    if is_listed {
                        self.pending.push(child.clone());
                    }
                    visit = Visit::Directory(child);
                }
                Err(failure) => {
                    visit = Visit::Refused { is_known: true };
                    sight = Sight::unsendable(failure);
                }
            }
        }
        let complaint = sight.complaint.take();
        let complaint = complaint.map(|it| Complaint::new(spot.path(name.as_bytes()), it));
        let entry = self.entry(
            Entry {
                id,
                parent: spot.at.id,
                name,
                kind: sight.kind,
                is_linked: false,
                metadata: sight.metadata,
            },
            sight.stat.as_ref(),
        );
        if !matches!(entry.kind, Kind::Unsendable(_) | Kind::Unselected) {
            self.tell_owners(&entry.metadata)?;
        }
        self.send(Found::Entry(entry))?;
        if let Some(complaint) = complaint {
            self.send(Found::Complaint(complaint))?;
        }
        Ok(visit)
    }

    /// A directory as one to look for things in, unless it leads back to where it is.
    fn child(
        &self,
        spot: &Spot<'_>,
        name: &Name,
        id: EntryId,
        stat: &Stat,
        aim: Aim,
    ) -> Result<Directory, Failure> {
        let node = Node::new(stat);
        if self.survey.examiner.follows()
            && let Some(above) = self.find_above(spot.at.id, node)
        {
            let path = spot.path(name.as_bytes());
            let text = format!(
                "{} leads back to {}, in which it is itself, and is not followed",
                Escaped(&path),
                Escaped(&above)
            );
            return Err(Failure::new(FailureCode::Unsupported, text));
        }
        let device = match aim {
            Aim::Listed | Aim::Named { whole: true } => spot.at.device.or(Some(stat.st_dev)),
            // On the way to something, file systems may be crossed.
            Aim::Named { whole: false } | Aim::Way => None,
        };
        let scope = spot.at.scope.clone();
        Ok(Directory { id, depth: spot.at.depth + 1, device, scope })
    }

    /// The path of a directory, from this one upwards, that is the same as another one.
    fn find_above(&self, id: EntryId, node: Node) -> Option<Vec<u8>> {
        if let Some(same) = self.tree.find_upwards(id, |above| above == node) {
            let path = self.tree.path(same, b"");
            return Some(path.strip_suffix(b"/").unwrap_or(&path).to_vec());
        }
        let origin = self.survey.origins.get(self.origin).filter(|it| it.name.is_none())?;
        let stat = rustix::fs::fstat(&origin.root).ok()?;
        (Node::new(&stat) == node).then(|| origin.argument.as_os_str().as_bytes().to_vec())
    }

    /// Decides what an entry is in the end: a file that is meant, another name of one before, or
    /// neither.
    fn entry(&mut self, mut entry: Entry, stat: Option<&Stat>) -> Entry {
        if let Kind::File(file) = &entry.kind
            && !self.survey.selection.takes_size(file.size)
        {
            entry.kind = Kind::Unselected;
        }
        let has_content =
            matches!(entry.kind, Kind::File(_) | Kind::Symlink { .. } | Kind::Special(_));
        if let Some(stat) = stat.filter(|stat| stat.st_nlink > 1)
            && self.survey.preserve.hard_links
            && has_content
        {
            match self.hard_links.meet(entry.id, stat) {
                Meeting::Again(leader) => entry.kind = Kind::HardLink { leader },
                Meeting::First => {
                    entry.is_linked = true;
                    if let Some(leaders) = &self.survey.leaders {
                        let mut leaders = leaders.lock().unwrap_or_else(PoisonError::into_inner);
                        leaders.insert(entry.id, (stat.st_dev, Look::new(stat)));
                    }
                }
            }
        }
        entry
    }

    /// Whether this very thing came from an earlier source already.
    fn is_given_twice(&self, spot: &Spot<'_>, name: &Name, sight: Option<&Sight>) -> bool {
        if spot.at.id != EntryId::ROOT || self.survey.origins.len() < 2 {
            return false;
        }
        let first = self.taken.get(name).and_then(|first| self.survey.origins.get(*first));
        let stat = sight.and_then(|sight| sight.stat.as_ref());
        let (Some(first), Some(stat)) = (first, stat) else { return false };
        let found_as = first.name.as_ref().unwrap_or(name).as_bytes();
        let is_followed = self.survey.examiner.follows();
        let flags = if is_followed { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        rustix::fs::statat(&first.root, found_as, flags)
            .is_ok_and(|earlier| Node::new(&earlier) == Node::new(stat))
    }

    /// Decides whether something may be sent. If not, it gets a name under which that can be told.
    fn admit(&mut self, parent: EntryId, name: Name) -> Result<Name, (Name, Failure)> {
        if parent != EntryId::ROOT {
            return Ok(name);
        }
        if self.survey.origins.len() + self.survey.missing.len() > 1 {
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
    pub fn substitute(&mut self, name: Name) -> Name {
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
            let origin = self.survey.origins.get(index);
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
}
