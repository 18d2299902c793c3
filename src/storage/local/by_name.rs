//! Finding only what was asked for, by its path, without listing what is around it.
//!
//! In: paths, every directory before what is in it. Out: their entries, and those of the
//! directories that lead to them.

use rustix::fd::AsFd as _;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::examine::Refusal;
use super::origin::Origin;
use super::visit::{Aim, Spot, Visit};
use super::walk::{Directory, Gone, Walk};
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::Name;
use crate::storage::select::{Paths, components};
use crate::storage::{Found, Operation, StorageError};

/// The directories on the way to the path that was looked for last.
struct Way<'a> {
    top: Directory,
    below: Vec<(&'a [u8], Directory)>,
    /// What is done with everything below it: it was found whole, or cannot be found at all.
    settled: Option<&'a [u8]>,
}

impl Way<'_> {
    /// How many directories on the way lead to this path too; the others are left.
    fn rewind(&mut self, names: &[&[u8]]) -> usize {
        let pairs = self.below.iter().zip(names);
        let common = pairs.take_while(|((name, _), other)| name == *other).count();
        self.below.truncate(common);
        common
    }

    fn is_settled(&self, path: &[u8]) -> bool {
        let rest = self.settled.and_then(|settled| path.strip_prefix(settled));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }

    fn end(&self) -> &Directory {
        self.below.last().map_or(&self.top, |(_, directory)| directory)
    }
}

impl Walk<'_> {
    /// Sends what was asked for.
    pub fn find_paths(&mut self, paths: &Paths) -> Result<(), Gone> {
        let groups: Vec<_> = paths.sorted.chunk_by(|a, b| first(a) == first(b)).collect();
        let mut is_found = vec![false; groups.len()];
        let mut top = None;
        let survey = self.survey;
        for (index, origin) in survey.origins.iter().enumerate() {
            let begun = self.begin(index)?;
            for (group, is_found) in groups.iter().zip(&mut is_found) {
                if !*is_found && group.first().is_some_and(|path| self.is_in(index, first(path))) {
                    *is_found = true;
                    self.find_group(origin, begun.clone(), group)?;
                }
            }
            top = Some((origin, begun));
        }
        let left = groups.iter().zip(is_found).filter(|(_, is_found)| !is_found);
        for path in left.filter_map(|(group, _)| group.first()) {
            if let (Ok(name), Some((origin, at))) = (Name::new(first(path)), &top) {
                let spot = Spot { dir: origin.root.as_fd(), at, prefix: b"" };
                let refusal = Refusal::System(Operation::Stat, Errno::NOENT);
                self.emit(&spot, name, Err(refusal), Aim::Named { whole: false }, false)?;
            }
        }
        Ok(())
    }

    /// Whether a name at the top is to be looked for in this origin. If nobody has it, the last one
    /// that could is asked.
    fn is_in(&self, index: usize, name: &[u8]) -> bool {
        let could = |origin: &Origin| origin.name.as_ref().is_none_or(|own| own.as_bytes() == name);
        let origins = self.survey.origins.get(index..).unwrap_or_default();
        let Some((origin, later)) = origins.split_first().filter(|(origin, _)| could(origin))
        else {
            return false;
        };
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        !later.iter().any(could)
            || rustix::fs::statat(&origin.root, name, flags).map(|_| ()) != Err(Errno::NOENT)
    }

    /// Sends what was asked for below one name at the top.
    fn find_group(
        &mut self,
        origin: &Origin,
        mut top: Directory,
        group: &[Vec<u8>],
    ) -> Result<(), Gone> {
        if origin.name.is_none() && !self.enter(origin.root.as_fd(), &mut top, b"")? {
            return Ok(());
        }
        let mut way = Way { top, below: Vec::new(), settled: None };
        for path in group {
            if !way.is_settled(path) {
                self.find_path(origin, &mut way, path)?;
            }
        }
        self.list_pending()
    }

    fn find_path<'p>(
        &mut self,
        origin: &Origin,
        way: &mut Way<'p>,
        path: &'p [u8],
    ) -> Result<(), Gone> {
        let whole = self.survey.selection.whole_directories;
        let names: Vec<_> = components(path).collect();
        let common = way.rewind(&names);
        let mut start = names.iter().take(common).map(|name| name.len() + 1).sum();
        for (at, name) in names.iter().enumerate().skip(common) {
            let end = start + name.len();
            let (prefix, own) =
                (path.get(..start).unwrap_or_default(), path.get(..end).unwrap_or_default());
            let is_last = at + 1 == names.len();
            let aim = if is_last { Aim::Named { whole } } else { Aim::Way };
            match self.step(origin, way.end(), prefix, name, aim)? {
                Visit::Directory(_) if is_last && whole => way.settled = Some(own),
                Visit::Directory(mut directory) => {
                    if !self.enter_on_way(&mut directory, own)? {
                        way.settled = Some(own);
                        return Ok(());
                    }
                    way.below.push((name, directory));
                }
                Visit::Refused { .. } => {
                    way.settled = Some(own);
                    return Ok(());
                }
                Visit::Hidden | Visit::Leaf => return Ok(()),
                Visit::NoDirectory => {
                    let error = StorageError::io(Operation::Stat, path)(Errno::NOTDIR);
                    return self.send(Found::Complaint(error.to_complaint()));
                }
            }
            start = end + 1;
        }
        Ok(())
    }

    /// Looks at a name in a directory on the way.
    fn step(
        &mut self,
        origin: &Origin,
        at: &Directory,
        prefix: &[u8],
        name: &[u8],
        aim: Aim,
    ) -> Result<Visit, Gone> {
        let dir = match at.id {
            EntryId::ROOT => origin.root.clone(),
            id => match self.tree.directory(id) {
                Ok(dir) => dir,
                Err(cause) => {
                    self.note(id, cause)?;
                    return Ok(Visit::Hidden);
                }
            },
        };
        self.visit(&Spot { dir: dir.as_fd(), at, prefix }, name, FileType::Unknown, aim)
    }

    fn enter_on_way(&mut self, directory: &mut Directory, path: &[u8]) -> Result<bool, Gone> {
        if directory.scope.is_none() {
            return Ok(true);
        }
        match self.tree.directory(directory.id) {
            Ok(dir) => self.enter(dir.as_fd(), directory, path),
            Err(cause) => {
                self.note(directory.id, cause)?;
                Ok(false)
            }
        }
    }
}

/// The name at the top of a path.
fn first(path: &[u8]) -> &[u8] {
    components(path).next().unwrap_or_default()
}
