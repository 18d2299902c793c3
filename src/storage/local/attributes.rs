//! Extended attributes of open files, ACLs among them.
//!
//! In: descriptors, of any kind. Out: attributes as the wire has them, in the order of their names.
//! A peer only ever chooses among the names that are handled here: those of the `user`, `trusted`
//! and `security` namespaces, and the two that hold POSIX ACLs (xattr(7), acl(5)).

use rustix::buffer::spare_capacity;
use rustix::fd::BorrowedFd;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::beneath;
use crate::protocol::message::{Attribute, MAX_ATTRIBUTES_LEN};

/// The ACL by which access is decided.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// The ACL of a directory that new things in it get.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// The label that the host's own policy gives to every file.
pub const SELINUX: &[u8] = b"security.selinux";

/// Room for most lists and values; for longer ones the kernel is asked again, in bytes.
const USUAL_LEN: usize = 256;

/// How often a list or a value may have grown between asking for its length and reading it.
const MAX_ATTEMPTS: u32 = 10;

/// What sort of attribute a name means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sort {
    Acl,
    User,
    /// Only the superuser handles these: `trusted` and `security`.
    Privileged,
}

impl Sort {
    /// `None` for what is neither read nor set.
    pub fn of(name: &[u8]) -> Option<Self> {
        let has_rest = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
        match name {
            ACCESS_ACL | DEFAULT_ACL => Some(Self::Acl),
            _ if has_rest(b"user.") => Some(Self::User),
            _ if has_rest(b"trusted.") || has_rest(b"security.") => Some(Self::Privileged),
            _ => None,
        }
    }
}

/// Whether this process handles the attributes that only the superuser has.
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Reads the attributes of what a descriptor stands for, even if it is open as `O_PATH` only.
/// `xattrs` are those that are no ACLs. A file system that has none is not an error.
///
/// # Errors
///
/// `E2BIG` if there is more than an entry can have; `EACCES` if a value may not be read.
pub fn read(file: BorrowedFd<'_>, xattrs: bool, acls: bool) -> Result<Vec<Attribute>, Errno> {
    if !xattrs && !acls {
        return Ok(Vec::new());
    }
    let names = match list(file) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        names => names?,
    };
    let is_privileged = is_privileged();
    let mut names: Vec<_> = names
        .split(|byte| *byte == 0)
        .filter(|name| match Sort::of(name) {
            Some(Sort::Acl) => acls,
            Some(Sort::User) => xattrs,
            Some(Sort::Privileged) => xattrs && is_privileged,
            None => false,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    let (mut found, mut len) = (Vec::with_capacity(names.len()), 0);
    for name in names {
        // Attributes may disappear while they are read.
        let Some(value) = get(file, name)? else { continue };
        len += name.len() + value.len();
        if len > MAX_ATTRIBUTES_LEN {
            return Err(Errno::TOOBIG);
        }
        found.push(Attribute { name: name.to_vec(), value });
    }
    Ok(found)
}

/// An attribute's value, or `None` if there is no such attribute, or can be none.
pub fn get(file: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let read = |value: &mut Vec<u8>| {
        let direct = rustix::fs::fgetxattr(file, name, spare_capacity(value));
        if direct != Err(Errno::BADF) {
            return direct;
        }
        rustix::fs::getxattr(beneath::proc_path(file), name, spare_capacity(value))
    };
    let query = || {
        let direct = rustix::fs::fgetxattr_query(file, name);
        if direct != Err(Errno::BADF) {
            return direct;
        }
        rustix::fs::getxattr_query(beneath::proc_path(file), name)
    };
    match read_growing(read, query) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// Sets an attribute, whether it is there already or not.
pub fn set(file: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    match rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) {
        Err(Errno::BADF) => {
            rustix::fs::setxattr(beneath::proc_path(file), name, value, XattrFlags::empty())
        }
        answer => answer,
    }
}

/// Removes an attribute; that it is not there is no error.
pub fn remove(file: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let removed = match rustix::fs::fremovexattr(file, name) {
        Err(Errno::BADF) => rustix::fs::removexattr(beneath::proc_path(file), name),
        answer => answer,
    };
    match removed {
        Err(Errno::NODATA) => Ok(()),
        answer => answer,
    }
}

/// All names, each with a zero behind it.
fn list(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let read = |names: &mut Vec<u8>| match rustix::fs::flistxattr(file, spare_capacity(names)) {
        Err(Errno::BADF) => rustix::fs::listxattr(beneath::proc_path(file), spare_capacity(names)),
        answer => answer,
    };
    let query = || match rustix::fs::flistxattr_query(file) {
        Err(Errno::BADF) => rustix::fs::listxattr_query(beneath::proc_path(file)),
        answer => answer,
    };
    read_growing(read, query)
}

/// Reads what `query` tells the length of, with ever more room.
fn read_growing(
    read: impl Fn(&mut Vec<u8>) -> Result<usize, Errno>,
    query: impl Fn() -> Result<usize, Errno>,
) -> Result<Vec<u8>, Errno> {
    let mut buffer = Vec::with_capacity(USUAL_LEN);
    for _ in 0..MAX_ATTEMPTS {
        match read(&mut buffer) {
            Err(Errno::RANGE) => buffer = Vec::with_capacity(query()?.max(USUAL_LEN)),
            answer => return answer.map(|_| buffer),
        }
    }
    Err(Errno::RANGE)
}

#[cfg(test)]
mod tests {
    use rustix::fd::AsFd as _;
    use rustix::fs::{Mode, OFlags};

    use super::super::beneath::{open_name, open_operator};
    use super::*;

    #[test]
    fn only_names_of_known_namespaces_are_handled() {
        assert_eq!(Sort::of(b"user.x"), Some(Sort::User));
        assert_eq!(Sort::of(b"security.capability"), Some(Sort::Privileged));
        assert_eq!(Sort::of(DEFAULT_ACL), Some(Sort::Acl));
        for bad in [&b"user."[..], b"system.nfs4_acl", b"", b"user", b"users.x", b"lustre.lov"] {
            assert_eq!(Sort::of(bad), None);
        }
    }

    #[test]
    fn attributes_are_read_and_set_by_both_kinds_of_descriptor() {
        let temp = tempfile::tempdir().unwrap();
        let dir = open_operator(temp.path(), OFlags::PATH).unwrap();
        let create = OFlags::CREATE | OFlags::RDWR;
        let open = open_name(dir.as_fd(), b"file", create, Mode::RUSR | Mode::WUSR).unwrap();
        let path = open_name(dir.as_fd(), b"file", OFlags::PATH, Mode::empty()).unwrap();
        let long = vec![7; 3000];
        if set(open.as_fd(), b"user.b", &long) == Err(Errno::OPNOTSUPP) {
            return; // no attributes in this file system
        }
        set(path.as_fd(), b"user.a", b"").unwrap();
        for file in [open.as_fd(), path.as_fd()] {
            let found = read(file, true, true).unwrap();
            let found: Vec<_> = found.iter().filter(|it| it.name.starts_with(b"user.")).collect();
            assert_eq!(found[0].name, b"user.a");
            assert_eq!((&found[1].name[..], &found[1].value), (&b"user.b"[..], &long));
            assert_eq!(read(file, false, true).unwrap(), []);
            assert_eq!(get(file, b"user.none").unwrap(), None);
        }
        for file in [open.as_fd(), path.as_fd()] {
            remove(file, b"user.a").unwrap();
        }
        remove(path.as_fd(), b"user.b").unwrap();
        let left = read(open.as_fd(), true, false).unwrap();
        assert!(left.iter().all(|it| !it.name.starts_with(b"user.")));
    }
}
