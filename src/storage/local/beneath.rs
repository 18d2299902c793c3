//! The only system calls that resolve paths.
//!
//! Two sorts of path exist. The operator's own are resolved as any program does it, symlinks
//! included, unless the process is confined to a directory (`fence.rs`). Everything else is resolved below a held directory, without following a symlink and
//! without ever leaving that directory; all other files of this folder only use single names in a
//! directory that was opened here.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat, Timestamps};
use rustix::io::Errno;

use super::fence;

/// The longest piece of a path that is given to the kernel at once: below its 4096 with the zero.
const MAX_PIECE_LEN: usize = 4000;

/// How often an answer "try again" is believed: the kernel gives it when a rename ran meanwhile.
pub const MAX_ATTEMPTS: u32 = 1000;

/// Set when the kernel was found to be too old for `openat2`.
static OPENAT2_MISSING: AtomicBool = AtomicBool::new(false);

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the operator's directory. Symlinks are followed.
pub fn open_operator(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    if let Some(fence) = fence::of_process() {
        return fence.open(path.as_os_str().as_bytes(), flags | OFlags::DIRECTORY);
    }
    rustix::io::retry_on_intr(|| {
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty())
    })
}

/// Looks at the operator's path, either following a symlink at its end or not.
pub fn stat_operator(path: &Path, follow: bool) -> Result<Stat, Errno> {
    if let Some(fence) = fence::of_process() {
        return fence.stat(path.as_os_str().as_bytes(), follow);
    }
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    rustix::fs::statat(CWD, path, flags)
}

/// Makes the operator's directory, and those that it is in.
pub fn make_operator(path: &Path) -> std::io::Result<()> {
    match fence::of_process() {
        Some(fence) => Ok(fence.make(path.as_os_str().as_bytes()).map(drop)?),
        None => std::fs::create_dir_all(path),
    }
}

/// Opens a directory by its path below another: components joined by slashes, of any number.
///
/// # Errors
///
/// `ELOOP` or `ENOTDIR` if a component is a symlink, `EXDEV` if the path would lead out.
pub fn open_directory(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    open_by_piece(root, path, flags, open_piece)
}

/// The same, with symlinks on the way followed, wherever they lead: for the operator's own tree, if
/// the operator wants them followed.
pub fn open_directory_through(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    open_by_piece(root, path, flags | OFlags::DIRECTORY, open_through)
}

fn open_by_piece(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    open: fn(BorrowedFd<'_>, &[u8], OFlags) -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    let mut held: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let (piece, next) = split_piece(rest);
        let from = held.as_ref().map_or(root, AsFd::as_fd);
        let last = next.is_empty();
        let opened = open(from, piece, if last { flags } else { OFlags::PATH })?;
        if last {
            return Ok(opened);
        }
        held = Some(opened);
        rest = next;
    }
}

/// Opens what a name, or a path that one system call takes, leads to, with symlinks followed. As
/// with [`open_directory_through`], that is only for who wants it.
pub fn open_through(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::io::retry_on_intr(|| rustix::fs::openat(dir, path, flags, Mode::empty()))
}

/// Opens a directory by its name in another.
pub fn open_child(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    open_name(dir, name, flags | DIRECTORY, Mode::empty())
}

/// The same, but never what another file system or another part of one is mounted on.
///
/// # Errors
///
/// `EXDEV` if something is mounted there.
pub fn open_child_unmounted(
    dir: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    if !OPENAT2_MISSING.load(Ordering::Relaxed) {
        for _ in 0..MAX_ATTEMPTS {
            match rustix::fs::openat2(dir, name, flags | DIRECTORY, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOSYS | Errno::PERM) => break,
                answer => return answer,
            }
        }
    }
    let child = open_child(dir, name, flags)?;
    let (inside, outside) = (rustix::fs::fstat(&child)?, rustix::fs::fstat(dir)?);
    if inside.st_dev == outside.st_dev { Ok(child) } else { Err(Errno::XDEV) }
}

/// Opens the directory that a directory is in, if it is the one with this device and inode. For
/// going back up a way that was come down.
///
/// # Errors
///
/// `ESTALE` if it is another.
pub fn open_parent(dir: BorrowedFd<'_>, expected: (u64, u64)) -> Result<OwnedFd, Errno> {
    let parent = open_child(dir, b"..", OFlags::PATH)?;
    let stat = rustix::fs::fstat(&parent)?;
    if (stat.st_dev, stat.st_ino) == expected { Ok(parent) } else { Err(Errno::STALE) }
}

/// Opens the operator's directory, which is relative to another one, and makes what is missing of
/// it if asked to. Symlinks are followed.
pub fn open_operator_below(
    base: BorrowedFd<'_>,
    path: &[u8],
    make: bool,
) -> Result<OwnedFd, Errno> {
    if let Some(fence) = fence::of_process() {
        return fence.open_below(base, path, make);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |dir: BorrowedFd<'_>, name: &[u8]| {
        rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty()))
    };
    let mut held = open(base, if path.starts_with(b"/") { b"/" } else { b"." })?;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        held = match open(held.as_fd(), name) {
            Err(Errno::NOENT) if make => {
                match rustix::fs::mkdirat(&held, name, Mode::from_raw_mode(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => open(held.as_fd(), name)?,
                    Err(cause) => return Err(cause),
                }
            }
            answer => answer?,
        };
    }
    Ok(held)
}

/// Opens or makes a file by its name in a directory. Symlinks are not followed.
pub fn open_name(
    dir: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, flags, mode))
}

/// Sets the mode of what an `O_PATH` descriptor stands for, which `fchmod` refuses to do.
pub fn set_mode_of_path(file: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmodat(CWD, proc_path(file), Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Sets the times of what an `O_PATH` descriptor stands for, be it a symlink.
pub fn set_times_of_path(file: BorrowedFd<'_>, times: &Timestamps) -> Result<(), Errno> {
    rustix::fs::utimensat(CWD, proc_path(file), times, AtFlags::empty())
}

/// Gives a file without a name this one.
pub fn link_by_proc(file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::linkat(CWD, proc_path(file), dir, name, AtFlags::SYMLINK_FOLLOW)
}

/// Whether the system lets us give a name to a file without one, by its bare descriptor.
pub fn can_link(file: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> bool {
    // The name `.` exists in any directory, so that the answer to whoever may link is `EEXIST`.
    rustix::fs::linkat(file, c"", dir, c".", AtFlags::EMPTY_PATH) == Err(Errno::EXIST)
}

/// Whether the system lets us give a name to a file without one, by its descriptor in `/proc`.
pub fn can_link_by_proc(file: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> bool {
    link_by_proc(file, dir, b".") == Err(Errno::EXIST)
}

/// The path of an open descriptor. The kernel resolves it to the file itself, not to a name.
pub fn proc_path(file: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Splits off as many components as one system call takes.
fn split_piece(path: &[u8]) -> (&[u8], &[u8]) {
    let Some(window) = path.get(..MAX_PIECE_LEN).filter(|_| path.len() > MAX_PIECE_LEN) else {
        return (path, &[]);
    };
    // Names are at most 255 bytes long, so there always is a slash in the window.
    let at = window.iter().rposition(|byte| *byte == b'/').unwrap_or(window.len());
    let (piece, rest) = path.split_at(at);
    (piece, rest.strip_prefix(b"/").unwrap_or(rest))
}

fn open_piece(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    if OPENAT2_MISSING.load(Ordering::Relaxed) {
        return open_by_component(root, path, flags);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..MAX_ATTEMPTS {
        match rustix::fs::openat2(root, path, flags | DIRECTORY, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS) => {
                OPENAT2_MISSING.store(true, Ordering::Relaxed);
                return open_by_component(root, path, flags);
            }
            // Some sandboxes refuse the calls that they do not know.
            Err(Errno::PERM) => return open_by_component(root, path, flags),
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

/// What `openat2` does, one component at a time.
fn open_by_component(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut held: Option<OwnedFd> = None;
    let mut names = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = names.next() {
        // The kernel would take `..` for the parent, and an empty name is no name.
        if name.is_empty() || name == b".." {
            return Err(Errno::XDEV);
        }
        let from = held.as_ref().map_or(root, AsFd::as_fd);
        let flags = if names.peek().is_none() { flags } else { OFlags::PATH };
        held = Some(open_child(from, name, flags)?);
    }
    held.ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Open = fn(BorrowedFd<'_>, &[u8], OFlags) -> Result<OwnedFd, Errno>;

    #[test]
    fn nothing_outside_can_be_opened() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(temp.path().join("outside")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("out")).unwrap();
        std::os::unix::fs::symlink("a", root.join("in")).unwrap();
        let fd = open_operator(&root, OFlags::PATH).unwrap();
        for open in [open_piece as Open, open_by_component as Open] {
            assert!(open(fd.as_fd(), b"a/b", OFlags::RDONLY).is_ok());
            for bad in [&b"out"[..], b"in/b", b"../outside", b"a/../../outside", b"", b"/tmp"] {
                assert!(open(fd.as_fd(), bad, OFlags::RDONLY).is_err(), "{bad:?}");
            }
        }
    }

    #[test]
    fn a_long_path_is_split_between_components() {
        let path = [&[b'x'; 255][..]; 40].join(&b'/');
        let (mut rest, mut joined) = (&path[..], Vec::new());
        while !rest.is_empty() {
            let (piece, next) = split_piece(rest);
            assert!(piece.len() <= MAX_PIECE_LEN && !piece.ends_with(b"/"));
            joined.push(piece);
            rest = next;
        }
        assert_eq!(joined.join(&b'/'), path);
    }
}
