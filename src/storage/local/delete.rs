//! What the source does not have.
//!
//! In: directories of which all is known that the source has, and the names of that. Out: the
//! destination's directories without what else was in them, but for what filters protect, what
//! belongs to a job, and backups. A directory of which the source could not tell everything, and
//! whatever is below it, stays as it is (DEL-2).

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::sync::Arc;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode as FsMode, OFlags};
use rustix::io::Errno;

use super::remover::{Listed, Remover, list};
use super::write::{Inner, Step, at, is_any_temp_name};
use super::{STATE_NAME, beneath};
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{Deleted, Deletions, MakeRoom, Options};
use crate::storage::filter::{FilterError, FilterOptions, Rules, Scope, Side};
use crate::storage::{NameSet, Operation, StorageError};

/// The rules that protect things from deletion; none if nothing is deleted.
///
/// # Errors
///
/// If a rule cannot be used.
pub fn protection(options: &Options) -> Result<Rules, FilterError> {
    if options.delete.is_none() && options.update.make_room != MakeRoom::All {
        return Rules::new(&[], FilterOptions::default());
    }
    let delete_excluded = options.delete.is_some_and(|delete| delete.excluded);
    let mut texts = options.select.filters.clone();
    if let Some(backup) = options.update.backup.as_ref().filter(|it| it.directory.is_none())
        && !delete_excluded
    {
        texts.push(protect_suffix(&backup.suffix));
    }
    Rules::new(&texts, FilterOptions { gitignore: options.select.gitignore, delete_excluded })
}

/// Whether a destination's own files would be read for rules, of which errors and deletions tell.
pub fn reads_rules(options: &Options) -> bool {
    protection(options).is_ok_and(|rules| rules.reads_files())
}

/// The rule that keeps backups, as rsync has it behind all others.
fn protect_suffix(suffix: &[u8]) -> Vec<u8> {
    let mut rule = b"P *".to_vec();
    for byte in suffix {
        if b"*?[]\\".contains(byte) {
            rule.push(b'\\');
        }
        rule.push(*byte);
    }
    rule
}

/// A directory that is compared.
struct Compared {
    id: EntryId,
    path: Vec<u8>,
    fd: OwnedFd,
    scope: Scope,
    /// The file system that it is on.
    device: u64,
    /// Whether it is a source of this run itself, or the one that contents come from.
    is_source: bool,
}

impl Inner {
    /// Removes what is in complete directories and is not among the names. What could not be
    /// removed is complained about.
    ///
    /// # Errors
    ///
    /// [`StorageError::EmptySource`] if a source has nothing at all and the destination would lose
    /// all that it has, and that is not allowed.
    pub fn delete(
        &self,
        complete: &[EntryId],
        names: &NameSet,
        deleted: &flume::Sender<Deleted>,
    ) -> Result<Deletions, StorageError> {
        let Some(delete) = self.delete.filter(|_| self.root.is_some()) else {
            return Ok(Deletions::default());
        };
        let complete: HashSet<EntryId> = complete.iter().copied().collect();
        if !delete.allow_empty_source {
            self.refuse_empty_sources(&complete, names)?;
        }
        let mut remover = Remover::new(self);
        remover.max = delete.max.map(|max| max.saturating_sub(self.room.count()));
        remover.tell = Some(deleted);
        let mut scopes: HashMap<EntryId, (Scope, u64)> = HashMap::new();
        for position in 0..=self.tree.len() {
            // The root comes first, and every directory after the one that it is in.
            let (id, parent) = match position.checked_sub(1).map(|at| self.tree.at(at)) {
                None => (EntryId::ROOT, EntryId::ROOT),
                Some(Some((id, parent, ..))) => (id, parent),
                Some(None) => break,
            };
            let is_top = self.is_top(id, parent, &complete);
            if !complete.contains(&id) || !is_top && !scopes.contains_key(&parent) {
                continue;
            }
            let above: Option<&(Scope, u64)> = scopes.get(&parent).filter(|_| !is_top);
            let device = above.map(|(_, device)| *device);
            match self.compared(id, above.map(|(scope, _)| scope)) {
                // With -x, what is mounted at the destination is nobody's to clear, nor what is
                // below it: it gets no scope.
                Ok(directory)
                    if self.one_file_system
                        && device.is_some_and(|device| device != directory.device) => {}
                // What it has and does not announce is not to be lost, nor what is below it.
                Ok(directory) if directory.is_source => self.spare_source(&directory, names),
                Ok(directory) => {
                    self.clear(&directory, names, &mut remover);
                    scopes.insert(id, (directory.scope, directory.device));
                }
                // It was not made, or is not there any more.
                Err(StorageError::Io { cause, .. })
                    if cause.kind() == std::io::ErrorKind::NotFound => {}
                // In a dry run something else is still in its place.
                Err(StorageError::Io { cause, .. })
                    if self.dry_run && cause.kind() == std::io::ErrorKind::NotADirectory => {}
                Err(error) => self.complain(error),
            }
        }
        Ok(remover.count)
    }

    /// Whether a directory is one that the operator named, or the one whose contents are meant.
    fn is_top(&self, id: EntryId, parent: EntryId, complete: &HashSet<EntryId>) -> bool {
        id == EntryId::ROOT || parent == EntryId::ROOT && !complete.contains(&EntryId::ROOT)
    }

    /// An unmounted or mistyped source must not empty the destination.
    fn refuse_empty_sources(
        &self,
        complete: &HashSet<EntryId>,
        names: &NameSet,
    ) -> Result<(), StorageError> {
        let all = (0..self.tree.len()).filter_map(|at| self.tree.at(at));
        let tops = all.filter(|(id, parent, ..)| self.is_top(*id, *parent, complete));
        let tops = std::iter::once(EntryId::ROOT).chain(tops.map(|(id, ..)| id));
        for id in tops.filter(|id| complete.contains(id) && !names.has_any_in(*id)) {
            let Ok(directory) = self.compared(id, None) else { continue };
            let loses_some = match self.extra(&directory, names) {
                Ok(extra) => extra.iter().any(|listed| {
                    let path = join(&directory.path, &listed.name);
                    directory.scope.admits(Side::Receiver, &path, listed.is_directory)
                }),
                Err(_) => true,
            };
            if loses_some {
                let path = [&self.root_path_bytes()[..], b"/", &directory.path].concat();
                let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
                return Err(StorageError::EmptySource { path });
            }
        }
        Ok(())
    }

    /// Opens a directory, and reads the rules that are in force in it. `above` is the scope of the
    /// directory that it is in; without it, this one is at the top.
    fn compared(&self, id: EntryId, above: Option<&Scope>) -> Result<Compared, StorageError> {
        let path = self.directory_path(id);
        let shown = self.shown_path(&path);
        let failed = |(operation, cause)| StorageError::io::<Errno>(operation, &shown)(cause);
        let dir = self.directory(id).map_err(at(Operation::Open)).map_err(failed)?;
        let fd = beneath::open_child(dir.as_fd(), b".", OFlags::RDONLY)
            .map_err(at(Operation::Open))
            .map_err(failed)?;
        let scope = above.cloned().unwrap_or_else(|| self.rules.root());
        let scope = if above.is_none() && id != EntryId::ROOT {
            // What is around a directory that the operator named is not part of the transfer.
            scope.enter(b"", &mut |_| Ok(None)).map_err(|error| filter_error(&shown, error))?
        } else {
            scope
        };
        let scope = self.enter_scope(&scope, &path, fd.as_fd())?;
        let stat = rustix::fs::fstat(&fd).map_err(at(Operation::Stat)).map_err(failed)?;
        let is_source = self.is_source((stat.st_dev, stat.st_ino));
        Ok(Compared { id, path, fd, scope, device: stat.st_dev, is_source })
    }

    /// Complains about a directory from which nothing is removed because it is a source.
    fn spare_source(&self, directory: &Compared, names: &NameSet) {
        if self.extra(directory, names).is_ok_and(|extra| extra.is_empty()) {
            return;
        }
        let text = "it is a source of this run; nothing in it was deleted";
        let cause = std::io::Error::new(std::io::ErrorKind::ResourceBusy, text);
        let path = self.shown_path(&directory.path);
        self.complain(StorageError::io(Operation::Remove, &path)(cause));
    }

    /// Removes what the source does not have from one directory.
    fn clear(&self, directory: &Compared, names: &NameSet, remover: &mut Remover<'_>) {
        if !self.dry_run {
            self.sweep_directory(directory.id, directory.fd.as_fd());
        }
        match self.extra(directory, names) {
            Ok(extra) => {
                for listed in extra.iter().rev() {
                    let path = join(&directory.path, &listed.name);
                    remover.remove(directory.fd.as_fd(), listed, &path, &directory.scope);
                }
            }
            Err((operation, cause)) => {
                self.complain(StorageError::io(operation, &self.shown_path(&directory.path))(
                    cause,
                ));
            }
        }
        for error in remover.take_errors() {
            self.complain(error);
        }
    }

    /// What is in a directory and not among the names, in the reverse order of names.
    fn extra(&self, directory: &Compared, names: &NameSet) -> Step<Vec<Listed>> {
        list(directory.fd.as_fd(), |name| {
            let is_state = directory.id == EntryId::ROOT && name == STATE_NAME;
            !is_state && !is_any_temp_name(name) && !names.contains(directory.id, name)
        })
    }

    /// The rules in force in the directory of an entry.
    pub fn scope_in(&self, directory: EntryId) -> Result<Scope, StorageError> {
        let mut way = vec![directory];
        while let Some(parent) = way.last().and_then(|id| self.tree.parent(*id)) {
            way.push(parent);
        }
        let enter = |scope: Scope, id: EntryId| {
            let path = self.directory_path(id);
            let dir = self.directory(id).map_err(StorageError::io(Operation::Open, &path))?;
            self.enter_scope(&scope, &path, dir.as_fd())
        };
        way.into_iter().rev().try_fold(self.rules.root(), enter)
    }

    /// The scope inside a directory, in which files with rules are read.
    pub fn enter_scope(
        &self,
        above: &Scope,
        path: &[u8],
        dir: BorrowedFd<'_>,
    ) -> Result<Scope, StorageError> {
        above
            .enter(path, &mut |name| read_rules(dir, name))
            .map_err(|it| filter_error(&self.shown_path(path), it))
    }

    fn directory(&self, id: EntryId) -> Result<Arc<OwnedFd>, Errno> {
        match &self.root {
            Some(root) if id == EntryId::ROOT => Ok(Arc::clone(root)),
            _ => self.tree.directory(id),
        }
    }

    fn directory_path(&self, id: EntryId) -> Vec<u8> {
        let path = self.tree.path(id, b"");
        path.strip_suffix(b"/").unwrap_or(&path).to_vec()
    }

    /// A path for messages, where the root has to have one too.
    fn shown_path(&self, path: &[u8]) -> Vec<u8> {
        if path.is_empty() { self.root_path_bytes() } else { path.to_vec() }
    }

    fn root_path_bytes(&self) -> Vec<u8> {
        use std::os::unix::ffi::OsStrExt as _;
        let path = self.root_path.as_os_str().as_bytes();
        path.strip_suffix(b"/").unwrap_or(path).to_vec()
    }
}

/// The path of a name in a directory.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Reads a file with rules, if there is one.
fn read_rules(dir: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let fd = match beneath::open_name(dir, name, flags, FsMode::empty()) {
        Ok(fd) => fd,
        // A socket has no rules. What a symlink leads to might have, and would protect something.
        Err(Errno::NOENT | Errno::NXIO | Errno::NOTDIR) => return Ok(None),
        Err(cause) => return Err(cause.into()),
    };
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let mut content = Vec::new();
    std::fs::File::from(fd).take(MAX_RULES_LEN + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_RULES_LEN {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(Some(content))
}

/// The longest file with rules, in bytes.
const MAX_RULES_LEN: u64 = 1 << 20;

/// Rules that cannot be used are an error with what is in their directory: nothing of it is removed.
fn filter_error(path: &[u8], error: FilterError) -> StorageError {
    let cause = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    StorageError::io(Operation::List, path)(cause)
}
