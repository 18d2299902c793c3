//! A directory that a whole process does not leave.
//!
//! In: the operator's directory, once, and paths that a peer chose. Out: what they lead to, as long
//! as it is below that directory. The kernel resolves them (`openat2` with `RESOLVE_BENEATH`), so
//! that no symlink, no `..` and no rename meanwhile leads out of it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::beneath;
use crate::storage::{Operation, StorageError};

/// Set at most once, before anything is opened.
static FENCE: OnceLock<Fence> = OnceLock::new();

/// From now on, this process opens and makes nothing outside of a directory that a peer asks for.
/// Returns the directory's path without symlinks.
///
/// # Errors
///
/// If the directory cannot be entered, or the kernel cannot do this.
pub fn confine(directory: &Path) -> Result<PathBuf, StorageError> {
    let shown = directory.as_os_str().as_bytes();
    let failed = StorageError::io(Operation::Open, shown);
    let path = match std::fs::canonicalize(directory) {
        Ok(path) => path,
        Err(error) => return Err(failed(error)),
    };
    let fence = match Fence::new(&path) {
        Ok(fence) => fence,
        Err(Errno::NOSYS | Errno::PERM) => {
            let text = "this kernel cannot confine a program to a directory (openat2)";
            return Err(failed(std::io::Error::other(text)));
        }
        Err(cause) => return Err(failed(cause.into())),
    };
    match FENCE.set(fence) {
        Ok(()) => Ok(path),
        Err(_) => Err(failed(std::io::Error::other("this process is confined already"))),
    }
}

/// What this process does not leave, if anything.
pub fn of_process() -> Option<&'static Fence> {
    FENCE.get()
}

/// Whether this process is confined to a directory, at the operator's will.
pub fn is_confined() -> bool {
    FENCE.get().is_some()
}

/// A directory and what is below it.
#[derive(Debug)]
pub struct Fence {
    root: OwnedFd,
    /// As it is called from the root on.
    path: Vec<u8>,
}

impl Fence {
    fn new(path: &Path) -> Result<Self, Errno> {
        let root = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let fence = Self { root, path: path.as_os_str().as_bytes().to_vec() };
        // A kernel that cannot is found out now, and not when a peer asks.
        fence.resolve(b".", OFlags::PATH)?;
        Ok(fence)
    }

    /// Whether a path without symlinks is of the directory or below it.
    pub fn holds(&self, path: &Path) -> bool {
        path.starts_with(OsStr::from_bytes(&self.path))
    }

    /// Opens what a path leads to: relative to the directory, or from the root on.
    ///
    /// # Errors
    ///
    /// `EACCES` if it leads out.
    pub fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(self.below(path)?, flags)
    }

    /// Looks at what a path leads to, through a symlink at its end or not.
    pub fn stat(&self, path: &[u8], follow: bool) -> Result<Stat, Errno> {
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        rustix::fs::fstat(self.open(path, flags)?)
    }

    /// Opens a directory, and makes what is missing of it.
    pub fn make(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let (flags, path) = (OFlags::PATH | OFlags::DIRECTORY, self.below(path)?);
        let mut held = self.resolve(b".", flags)?;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let so_far = path.get(..end).unwrap_or(path);
            let name = so_far.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            if name.is_empty() {
                continue;
            }
            // Always from the directory on: what is held may have `..` behind it.
            held = match self.resolve(so_far, flags) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&held, name, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => self.resolve(so_far, flags)?,
                        Err(cause) => return Err(cause),
                    }
                }
                answer => answer?,
            };
        }
        Ok(held)
    }

    /// Opens a directory that is relative to another one, unless it is from the root on.
    pub fn open_below(
        &self,
        base: BorrowedFd<'_>,
        path: &[u8],
        make: bool,
    ) -> Result<OwnedFd, Errno> {
        let base = rustix::fs::readlink(beneath::proc_path(base), Vec::new())?;
        let path = Path::new(OsStr::from_bytes(base.as_bytes())).join(OsStr::from_bytes(path));
        let path = path.as_os_str().as_bytes();
        if make { self.make(path) } else { self.open(path, OFlags::PATH | OFlags::DIRECTORY) }
    }

    /// The part of a path that is below the directory.
    fn below<'a>(&self, path: &'a [u8]) -> Result<&'a [u8], Errno> {
        if !path.starts_with(b"/") {
            return Ok(if path.is_empty() { b"." } else { path });
        }
        let own = self.path.strip_suffix(b"/").unwrap_or(&self.path);
        let rest = path.strip_prefix(own).ok_or(Errno::ACCESS)?;
        let below = match rest.iter().position(|byte| *byte != b'/') {
            Some(0) => return Err(Errno::ACCESS),
            Some(at) => rest.get(at..),
            None => None,
        };
        Ok(below.unwrap_or(b"."))
    }

    fn resolve(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        // The kernel refuses flags that mean nothing for a descriptor that only names a file.
        let terminal = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY };
        let flags = flags | OFlags::CLOEXEC | terminal;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..beneath::MAX_ATTEMPTS {
            let root = self.root.as_fd();
            match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                // What the kernel says means another file system to people.
                Err(Errno::XDEV) => return Err(Errno::ACCESS),
                answer => return answer,
            }
        }
        Err(Errno::AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// SEC-10.
    #[test]
    fn nothing_leads_out() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir_all(temp.path().join("root-2")).unwrap();
        std::fs::write(temp.path().join("secret"), "x").unwrap();
        symlink("../..", root.join("a/out")).unwrap();
        symlink(&root, root.join("absolute")).unwrap();
        symlink("a/b", root.join("in")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        let fence = Fence::new(&root).unwrap();
        let full = |path: &str| format!("{}/{path}", root.display()).into_bytes();
        for inside in [&b""[..], b".", b"a/b/", b"in", b"a/../a", b"a/b/../../a"] {
            fence.open(inside, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        }
        for inside in [full(""), full("a"), full("/in//"), root.as_os_str().as_bytes().to_vec()] {
            fence.open(&inside, OFlags::PATH | OFlags::DIRECTORY).unwrap();
        }
        let sibling = format!("{}-2", root.display()).into_bytes();
        let outside = [
            &b".."[..],
            b"../secret",
            b"a/../../secret",
            b"a/out/secret",
            b"absolute",
            b"magic",
            b"/etc/passwd",
            b"/",
            &sibling,
        ];
        for path in outside {
            assert_eq!(fence.open(path, OFlags::PATH).unwrap_err(), Errno::ACCESS, "{path:?}");
            assert_eq!(fence.stat(path, true).unwrap_err(), Errno::ACCESS, "{path:?}");
            assert_eq!(fence.make(path).unwrap_err(), Errno::ACCESS, "{path:?}");
        }
        assert!(fence.stat(b"absolute", false).is_ok(), "the symlink itself is inside");
        for path in [&b"../new"[..], b"a/../../new", b"a/out/new", b"absolute/new", b"/new"] {
            assert_eq!(fence.make(path).unwrap_err(), Errno::ACCESS, "{path:?}");
        }
        assert!(!temp.path().join("new").exists());
    }

    /// SEC-10.
    #[test]
    fn directories_are_made_inside() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("dir")).unwrap();
        let fence = Fence::new(&root).unwrap();
        for path in [&b"x/y/z"[..], b"x/y/z", b"x//y/../w/", b"dir/../v/u"] {
            fence.make(path).unwrap();
        }
        for made in ["x/y/z", "x/w", "v/u"] {
            assert!(root.join(made).is_dir(), "{made}");
        }
        let base = fence.open(b"dir", OFlags::PATH).unwrap();
        fence.open_below(base.as_fd(), b"../kept/a", true).unwrap();
        fence.open_below(base.as_fd(), b"../kept", false).unwrap();
        assert!(root.join("kept/a").is_dir());
        for out in [&b"../../kept"[..], b"/tmp"] {
            assert_eq!(fence.open_below(base.as_fd(), out, true).unwrap_err(), Errno::ACCESS);
        }
    }
}
