//! Metadata: what is different about something, and making it right.
//!
//! In: entries' metadata, and descriptors of what is there for them. Out: the differences, and
//! things with owner, attributes, ACLs, mode and times set in this order: giving something to
//! somebody else clears some mode bits and attributes, and an ACL changes mode bits. What could not
//! be set is a complaint and fails nothing.

use std::borrow::Cow;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode as FsMode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::acl::Acl;
use super::attributes::{self, ACCESS_ACL, DEFAULT_ACL, SELINUX, Sort};
use super::fence;
use super::granularity::{Granularity, MAX_SECONDS};
use super::write::{Inner, Step, at};
use super::{beneath, mtime, only_mtime};
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{Attribute, Changes, Entry, Metadata};
use crate::storage::{Operation, StorageError};

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;

/// What something is to be like here, in this host's numbers. What is `None` stays as it is.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub kind: FileType,
    pub mode: Option<u32>,
    /// Mode bits that stay set where they are set.
    kept_bits: u32,
    pub mtime: Option<Timestamp>,
    owner: Option<u32>,
    group: Option<u32>,
    attributes: &'a [Attribute],
    pub xattrs: bool,
    pub acls: bool,
    /// Its times are whatever they became while it was made, so they are set in any case.
    pub is_new: bool,
}

impl<'a> Target<'a> {
    /// Of all metadata, only the attributes that are no ACLs.
    pub fn of_xattrs(metadata: &'a Metadata, kind: FileType) -> Self {
        Self {
            kind,
            mode: None,
            kept_bits: 0,
            mtime: None,
            owner: None,
            group: None,
            attributes: &metadata.attributes,
            xattrs: true,
            acls: false,
            is_new: false,
        }
    }

    /// Whether attributes of any sort are compared and set.
    pub fn has_attributes(&self) -> bool {
        self.xattrs || (self.acls && self.kind != FileType::Symlink)
    }

    /// The attributes of what a descriptor stands for, as far as they are compared.
    pub fn read_attributes(&self, file: BorrowedFd<'_>) -> Result<Vec<Attribute>, Errno> {
        attributes::read(file, self.xattrs, self.acls)
    }

    /// The mode for something that has this one now; `None` if such things have none.
    fn mode_over(&self, current: u32) -> Option<u32> {
        let current = current & 0o7777;
        let mode = self.mode.map_or(current, |mode| mode | (current & self.kept_bits));
        (self.kind != FileType::Symlink).then_some(mode)
    }
}

/// Whose metadata it is, for complaints.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub path: &'a dyn Fn() -> Vec<u8>,
}

/// What has to be done about attributes.
struct AttributeChanges<'a> {
    set: Vec<(&'a [u8], Cow<'a, [u8]>)>,
    remove: Vec<&'a [u8]>,
    /// What cannot even be tried.
    refused: Vec<(&'a [u8], Errno)>,
}

impl AttributeChanges<'_> {
    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.set.iter().map(|(name, _)| *name).chain(self.remove.iter().copied())
    }
}

impl Inner {
    /// What metadata means here for something of a type. `new_in` is the directory in which it was
    /// just made; what was there before keeps what is not told.
    pub fn target<'a>(
        &self,
        metadata: &'a Metadata,
        kind: FileType,
        new_in: Option<BorrowedFd<'_>>,
    ) -> Target<'a> {
        let is_directory = kind == FileType::Directory;
        let (told, preserve) = (metadata.mode.bits(), &self.preserve);
        let mode = match new_in {
            _ if preserve.permissions && preserve.special_bits => Some(told),
            _ if preserve.permissions => Some(told & 0o777),
            Some(dir) => Some(told & self.default_permissions(dir)),
            None => None,
        };
        let times = if is_directory { preserve.directory_times } else { preserve.times };
        let inherits_group = is_directory && !(preserve.permissions && preserve.special_bits);
        Target {
            kind,
            mode,
            kept_bits: if inherits_group { SET_GROUP_ID } else { 0 },
            mtime: times.then_some(metadata.mtime),
            owner: self.owners.owner(metadata.owner),
            group: self.owners.group(metadata.group),
            attributes: &metadata.attributes,
            xattrs: preserve.attributes,
            acls: preserve.acls && kind != FileType::Symlink,
            is_new: new_in.is_some(),
        }
    }

    /// The permissions that new things in a directory may have.
    fn default_permissions(&self, dir: BorrowedFd<'_>) -> u32 {
        let acl = attributes::get(dir, DEFAULT_ACL).ok().flatten();
        match acl.and_then(|value| Acl::parse(&value)) {
            Some(acl) => acl.mode(),
            None => 0o777 & !self.umask,
        }
    }

    /// Gives a complete file under its temporary name, or under none, what its entry says.
    pub fn set_metadata(&self, file: BorrowedFd<'_>, entry: &Entry) -> Step<()> {
        let stat = rustix::fs::fstat(file).map_err(at(Operation::Stat))?;
        let mut target = self.target(&entry.metadata, FileType::RegularFile, None);
        target.is_new = true;
        if !self.preserve.permissions {
            target.mode = Some(self.inherited_mode(entry)?);
        }
        self.apply(file, &stat, &target, Subject { path: &|| self.path(entry) });
        Ok(())
    }

    /// The mode of the file that is replaced, or of a new one, where modes are not kept.
    fn inherited_mode(&self, entry: &Entry) -> Step<u32> {
        let dir = self.tree.parent_of(entry.id, entry.parent).map_err(at(Operation::Open))?;
        let name = self.name_of(entry).map_err(|_| (Operation::Stat, Errno::INVAL))?;
        let existing = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let existing = existing
            .filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
            .map(|stat| stat.st_mode & 0o777);
        let new = || entry.metadata.mode.bits() & self.default_permissions(dir.as_fd());
        Ok(existing.unwrap_or_else(new))
    }

    /// Whether a modification time counts as equal at the destination.
    pub fn is_same_time(&self, found: Timestamp, wanted: Timestamp) -> bool {
        self.update.is_same_time(found, wanted)
            || (found.seconds.abs_diff(wanted.seconds) <= MAX_SECONDS
                && self.granularity().is_same(found, wanted))
    }

    fn granularity(&self) -> Granularity {
        *self.granularity.get_or_init(|| match &self.root {
            Some(root) => {
                // No entry has an empty name, so that this one is free.
                let temp = (!self.dry_run).then(|| self.temp_name(b""));
                Granularity::of(root.as_fd(), temp.as_deref())
            }
            None => Granularity::FINEST,
        })
    }

    /// What of its metadata is different about something. `existing` are its attributes.
    pub fn differences(&self, target: &Target<'_>, stat: &Stat, existing: &[Attribute]) -> Changes {
        let is_other_owner = target.owner.is_some_and(|owner| owner != stat.st_uid);
        let is_other_group = target.group.is_some_and(|group| group != stat.st_gid);
        let may_give_group = target.group.is_some_and(|group| self.owners.may_give_group(group));
        let tries_group = target.group.is_some_and(|group| self.owners.tries_group(group));
        let mode = self.allowed_mode(
            target,
            stat.st_mode,
            !is_other_owner || self.owners.may_give_owner(),
            !is_other_group || may_give_group,
        );
        let is_other_mode = mode.is_some_and(|mode| mode != stat.st_mode & 0o7777);
        let is_other_time = target.mtime.is_some_and(|it| !self.is_same_time(mtime(stat), it));
        let changes = Changes::TIME
            .when(is_other_time)
            .with(Changes::PERMISSIONS.when(is_other_mode))
            .with(Changes::OWNER.when(is_other_owner && self.owners.tries_owner()))
            .with(Changes::GROUP.when(is_other_group && tries_group));
        if !target.has_attributes() {
            return changes;
        }
        let attributes = self.attribute_changes(target, mode.unwrap_or_default(), existing);
        attributes.names().fold(changes, |changes, name| {
            changes.with(match Sort::of(name) {
                Some(Sort::Acl) => Changes::ACL,
                _ => Changes::ATTRIBUTES,
            })
        })
    }

    /// The mode in the end: a program that runs as its owner must not come to run as another.
    fn allowed_mode(
        &self,
        target: &Target<'_>,
        current: u32,
        is_owner_kept: bool,
        is_group_kept: bool,
    ) -> Option<u32> {
        let mode = target.mode_over(current)?;
        if target.kind == FileType::Directory || !self.preserve.permissions {
            return Some(mode);
        }
        if fence::is_confined() {
            return Some(mode & !(SET_USER_ID | SET_GROUP_ID));
        }
        let lost = if is_owner_kept { 0 } else { SET_USER_ID };
        let lost = lost | if is_group_kept { 0 } else { SET_GROUP_ID };
        Some(mode & !lost)
    }

    /// Complains of setuid and setgid bits that were not given.
    pub fn tell_withheld(
        &self,
        target: &Target<'_>,
        current: u32,
        given: Option<u32>,
        subject: Subject<'_>,
    ) {
        let (Some(wanted), Some(given)) = (target.mode_over(current), given) else { return };
        if wanted & !given & (SET_USER_ID | SET_GROUP_ID) != 0 {
            let text = if fence::is_confined() {
                "its setuid or setgid bit is left out, as this key may not make such programs"
            } else {
                "its setuid or setgid bit is left out, as it has another owner or group here"
            };
            let cause = std::io::Error::new(std::io::ErrorKind::PermissionDenied, text);
            let path = (subject.path)();
            self.complain(StorageError::io(Operation::SetMode, &path)(cause));
        }
    }

    fn attribute_changes<'a>(
        &self,
        target: &Target<'a>,
        mode: u32,
        existing: &'a [Attribute],
    ) -> AttributeChanges<'a> {
        let (mut wanted, mut refused) = (Vec::new(), Vec::new());
        for Attribute { name, value } in target.attributes {
            let name = name.as_slice();
            match Sort::of(name) {
                Some(Sort::Acl) if target.acls => match self.acl_here(target, mode, name, value) {
                    Ok(Some(value)) => wanted.push((name, Cow::Owned(value))),
                    Ok(None) => {}
                    Err(cause) => refused.push((name, cause)),
                },
                Some(Sort::Privileged) if target.xattrs && !may_be_privileged() => {
                    refused.push((name, Errno::PERM));
                }
                Some(Sort::User | Sort::Privileged) if target.xattrs => {
                    wanted.push((name, Cow::Borrowed(value.as_slice())));
                }
                _ => {}
            }
        }
        // Both are in the order of their names.
        let is_wanted = |name: &[u8]| wanted.binary_search_by(|(it, _)| (*it).cmp(name)).is_ok();
        // What a file is labelled follows from this host's policy.
        refused.retain(|(name, _)| *name != SELINUX);
        let remove = existing.iter().map(|it| it.name.as_slice());
        let remove = remove.filter(|name| !is_wanted(name) && *name != SELINUX).collect();
        let is_there = |(name, value): &(&[u8], Cow<'_, [u8]>)| {
            let at = existing.binary_search_by(|it| it.name.as_slice().cmp(name));
            at.ok().and_then(|at| existing.get(at)).is_some_and(|it| canonical(it) == *value)
        };
        wanted.retain(|it| !is_there(it));
        AttributeChanges { set: wanted, remove, refused }
    }

    /// The value of an ACL for something of this mode, with the users and groups of this host.
    fn acl_here(
        &self,
        target: &Target<'_>,
        mode: u32,
        name: &[u8],
        value: &[u8],
    ) -> Result<Option<Vec<u8>>, Errno> {
        let is_access = name == ACCESS_ACL;
        if !is_access && target.kind != FileType::Directory {
            return Ok(None);
        }
        let mut acl = Acl::parse(value).ok_or(Errno::INVAL)?;
        acl.translate(|id| self.owners.user(id), |id| self.owners.group_here(id));
        if is_access {
            acl.set_mode(mode);
        }
        Ok((!(is_access && acl.is_mode_only())).then(|| acl.to_value()))
    }

    /// Makes the metadata of what a descriptor stands for what it is to be. `stat` tells what it
    /// was just now.
    pub fn apply(
        &self,
        file: BorrowedFd<'_>,
        stat: &Stat,
        target: &Target<'_>,
        subject: Subject<'_>,
    ) {
        let (is_owner_kept, is_group_kept) = self.give(file, stat, target, subject);
        let was_given = is_owner_kept && target.owner.is_some_and(|it| it != stat.st_uid)
            || is_group_kept && target.group.is_some_and(|it| it != stat.st_gid);
        let mode = self.allowed_mode(target, stat.st_mode, is_owner_kept, is_group_kept);
        self.tell_withheld(target, stat.st_mode, mode, subject);
        let were_set = target.has_attributes()
            && self.apply_attributes(file, stat, target, mode.unwrap_or_default(), subject);
        let is_spoilt = were_set || (was_given && stat.st_mode & 0o6000 != 0);
        if let Some(mode) = mode.filter(|mode| is_spoilt || *mode != stat.st_mode & 0o7777) {
            self.unless(set_mode(file, mode), Operation::SetMode, subject);
        }
        let is_set = |time| !target.is_new && self.is_same_time(mtime(stat), time);
        if let Some(time) = target.mtime.filter(|time| !is_set(*time)) {
            self.unless(set_mtime(file, time), Operation::SetTimes, subject);
        }
    }

    /// Gives something to its owner and group, and tells whether it has each now.
    fn give(
        &self,
        file: BorrowedFd<'_>,
        stat: &Stat,
        target: &Target<'_>,
        subject: Subject<'_>,
    ) -> (bool, bool) {
        let owners = &self.owners;
        let owner = target.owner.filter(|owner| *owner != stat.st_uid);
        let group = target.group.filter(|group| *group != stat.st_gid);
        let try_owner = owner.filter(|_| owners.tries_owner());
        let try_group = group.filter(|group| owners.tries_group(*group));
        let mut kept = (owner.is_none(), group.is_none());
        match (try_owner, try_group) {
            (None, None) => {}
            // Together first, as this is the usual case and one call.
            (Some(_), Some(_)) if set_owners(file, try_owner, try_group).is_ok() => {
                return (true, true);
            }
            _ => {
                if try_owner.is_some() {
                    let must = owners.must_give_owner();
                    let given = set_owners(file, try_owner, None);
                    kept.0 = self.is_given(given, must, Operation::SetOwner, subject);
                }
                if try_group.is_some() {
                    let must = owners.must_give_group();
                    let given = set_owners(file, None, try_group);
                    kept.1 = self.is_given(given, must, Operation::SetGroup, subject);
                }
            }
        }
        kept
    }

    fn is_given(
        &self,
        given: Result<(), Errno>,
        must: bool,
        operation: Operation,
        subject: Subject<'_>,
    ) -> bool {
        match given {
            Err(Errno::PERM | Errno::ACCESS) if !must => false,
            given => self.unless(given, operation, subject),
        }
    }

    /// Sets and removes attributes, ACLs last, and tells whether that may have changed the mode.
    fn apply_attributes(
        &self,
        file: BorrowedFd<'_>,
        stat: &Stat,
        target: &Target<'_>,
        mode: u32,
        subject: Subject<'_>,
    ) -> bool {
        let existing = match target.read_attributes(file) {
            Ok(existing) => existing,
            Err(cause) => {
                return self.unless(Err(cause), Operation::ReadAttributes, subject);
            }
        };
        let changes = self.attribute_changes(target, mode, &existing);
        for (name, cause) in &changes.refused {
            self.complain_of_attribute(name, *cause, subject);
        }
        if changes.set.is_empty() && changes.remove.is_empty() {
            return false;
        }
        let is_writable = stat.st_mode & 0o600 == 0o600;
        if !is_writable && target.kind != FileType::Symlink && !attributes::is_privileged() {
            // Even the owner may not set them otherwise. If this fails, so will they.
            let _ = set_mode(file, (stat.st_mode & 0o777) | 0o600);
        }
        for acls in [false, true] {
            let is_due = |name: &[u8]| acls == (Sort::of(name) == Some(Sort::Acl));
            for name in changes.remove.iter().filter(|name| is_due(name)) {
                if let Err(cause) = attributes::remove(file, name) {
                    self.complain_of_attribute(name, cause, subject);
                }
            }
            for (name, value) in changes.set.iter().filter(|(name, _)| is_due(name)) {
                if let Err(cause) = attributes::set(file, name, value) {
                    self.complain_of_attribute(name, cause, subject);
                }
            }
        }
        true
    }

    /// Complains of an error, and tells whether there was none.
    fn unless(
        &self,
        answer: Result<(), Errno>,
        operation: Operation,
        subject: Subject<'_>,
    ) -> bool {
        let Err(cause) = answer else { return true };
        self.complain(StorageError::io(operation, &(subject.path)())(cause));
        false
    }

    fn complain_of_attribute(&self, name: &[u8], cause: Errno, subject: Subject<'_>) {
        let (name, path) = (name.to_vec(), (subject.path)());
        self.complain(StorageError::Attribute { name, path, cause: cause.into() });
    }
}

/// Whether capabilities and the like are set: by the superuser, and not at the will of a key that is
/// restricted to a directory (SEC-10).
fn may_be_privileged() -> bool {
    attributes::is_privileged() && !fence::is_confined()
}

/// An attribute's value, in the form in which equal ones are equal bytes.
fn canonical(attribute: &Attribute) -> Cow<'_, [u8]> {
    let acl = match Sort::of(&attribute.name) {
        Some(Sort::Acl) => Acl::parse(&attribute.value),
        _ => None,
    };
    acl.map_or(Cow::Borrowed(&attribute.value), |acl| Cow::Owned(acl.to_value()))
}

/// Opens the very thing that was looked at, even if it may not be read.
pub fn open_looked_at(dir: BorrowedFd<'_>, name: &[u8], looked: &Stat) -> Step<OwnedFd> {
    let fd = beneath::open_name(dir, name, OFlags::PATH, FsMode::empty())
        .map_err(at(Operation::Open))?;
    let stat = rustix::fs::fstat(&fd).map_err(at(Operation::Stat))?;
    if (stat.st_ino, stat.st_dev) != (looked.st_ino, looked.st_dev) {
        return Err((Operation::Open, Errno::STALE));
    }
    Ok(fd)
}

/// Sets the mode of anything but a symlink.
pub fn set_mode(file: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    match rustix::fs::fchmod(file, FsMode::from_raw_mode(mode)) {
        Err(Errno::BADF) => beneath::set_mode_of_path(file, mode),
        answer => answer,
    }
}

/// Sets the modification time of anything.
pub fn set_mtime(file: BorrowedFd<'_>, time: Timestamp) -> Result<(), Errno> {
    match rustix::fs::futimens(file, &only_mtime(time)) {
        Err(Errno::BADF) => beneath::set_times_of_path(file, &only_mtime(time)),
        answer => answer,
    }
}

fn set_owners(file: BorrowedFd<'_>, owner: Option<u32>, group: Option<u32>) -> Result<(), Errno> {
    let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
    rustix::fs::chownat(file, c"", owner, group, AtFlags::EMPTY_PATH)
}
