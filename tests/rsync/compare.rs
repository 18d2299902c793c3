//! All that a copy has to keep of the files below a directory, and what differs between two such
//! directories, as lines to read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::support::content;

/// What there is below a directory.
pub type Snapshot = BTreeMap<PathBuf, Node>;

#[derive(Debug)]
pub struct Node {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    mtime: Time,
    /// All names of this file in the snapshot, when it has more than one.
    names: Vec<PathBuf>,
    /// With the access and default ACLs, as the kernel gives them.
    xattrs: BTreeMap<OsString, Vec<u8>>,
    allocated: u64,
}

#[derive(Debug, Eq, PartialEq)]
enum Kind {
    Directory,
    File { size: u64, content: blake3::Hash },
    Symlink { target: PathBuf },
    Fifo,
    Socket,
    CharDevice { number: u64 },
    BlockDevice { number: u64 },
}

#[derive(Debug, Eq, PartialEq)]
enum Time {
    /// Seconds and nanoseconds.
    At(i64, i64),
    /// Since the test began: nobody asked for this very time.
    Now,
}

/// Reads all below a directory. What was changed after `started` counts as changed now.
pub fn snapshot(root: &Path, started: SystemTime) -> Snapshot {
    let mut found = Snapshot::new();
    let mut inodes = HashMap::<_, Vec<PathBuf>>::new();
    walk(root, &mut |below, at| {
        let metadata = fs::symlink_metadata(at).unwrap();
        found.insert(below.to_owned(), Node::of(at, &metadata, started));
        if !metadata.is_dir() && metadata.nlink() > 1 {
            inodes.entry((metadata.dev(), metadata.ino())).or_default().push(below.to_owned());
        }
    });
    for mut names in inodes.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            found.get_mut(name).unwrap().names.clone_from(&names);
        }
    }
    found
}

impl Node {
    fn of(at: &Path, metadata: &fs::Metadata, started: SystemTime) -> Self {
        Self {
            kind: Kind::of(at, metadata),
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: Time::of(metadata, started),
            names: Vec::new(),
            xattrs: xattrs(at),
            allocated: metadata.blocks() * 512,
        }
    }
}

impl Kind {
    fn of(at: &Path, metadata: &fs::Metadata) -> Self {
        let (kind, number) = (metadata.file_type(), metadata.rdev());
        if kind.is_dir() {
            Self::Directory
        } else if kind.is_file() {
            Self::File { size: metadata.len(), content: content(at) }
        } else if kind.is_symlink() {
            Self::Symlink { target: fs::read_link(at).unwrap() }
        } else if kind.is_fifo() {
            Self::Fifo
        } else if kind.is_socket() {
            Self::Socket
        } else if kind.is_char_device() {
            Self::CharDevice { number }
        } else {
            Self::BlockDevice { number }
        }
    }
}

impl Time {
    fn of(metadata: &fs::Metadata, started: SystemTime) -> Self {
        let seconds = |time: SystemTime| {
            i64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
        };
        // The clock of a file system is a little slow.
        let now = seconds(started) - 2..=seconds(SystemTime::now());
        if now.contains(&metadata.mtime()) {
            Self::Now
        } else {
            Self::At(metadata.mtime(), metadata.mtime_nsec())
        }
    }
}

fn xattrs(at: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut list = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(at, &mut list[..]).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let read = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(at, name, &mut value[..]).unwrap();
        value.truncate(len);
        (OsString::from_vec(name.to_vec()), value)
    };
    names.map(read).collect()
}

/// Visits everything below a directory, and each directory after what is in it. Of the two paths
/// the first is below `root`, and the second is short enough for any call.
pub fn walk(root: &Path, visit: &mut dyn FnMut(&Path, &Path)) {
    descend(root, Path::new(""), visit);
}

fn descend(dir: &Path, below: &Path, visit: &mut dyn FnMut(&Path, &Path)) {
    let open = File::open(dir).unwrap();
    let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    let names = fs::read_dir(&short).unwrap().map(|entry| entry.unwrap().file_name());
    for name in names.collect::<BTreeSet<_>>() {
        let (at, below) = (short.join(&name), below.join(&name));
        if fs::symlink_metadata(&at).unwrap().is_dir() {
            descend(&at, &below, visit);
        }
        visit(&below, &at);
    }
}

/// What is not as it should be, a line for each point.
pub fn differences(wanted: &Snapshot, found: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for path in wanted.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
        let shown = path.as_os_str().as_bytes().escape_ascii();
        match (wanted.get(path), found.get(path)) {
            (Some(wanted), Some(found)) => {
                let points = wanted.differences(found);
                lines.extend(points.into_iter().map(|point| format!("{shown}: {point}")));
            }
            (Some(wanted), None) => lines.push(format!("{shown}: missing: {:?}", wanted.kind)),
            (None, found) => lines.push(format!("{shown}: too much: {:?}", found.unwrap().kind)),
        }
    }
    lines
}

impl Node {
    fn differences(&self, found: &Self) -> Vec<String> {
        let mut points = Vec::new();
        let mut compare = |what: &str, wanted: &dyn Debug, found: &dyn Debug| {
            let (wanted, found) = (format!("{wanted:?}"), format!("{found:?}"));
            if wanted != found {
                points.push(format!("{what} is {found}, not {wanted}"));
            }
        };
        compare("it", &self.kind, &found.kind);
        compare("mode", &format_args!("{:04o}", self.mode), &format_args!("{:04o}", found.mode));
        compare("owner", &self.owner, &found.owner);
        compare("mtime", &self.mtime, &found.mtime);
        compare("set of names", &self.names, &found.names);
        for name in self.xattrs.keys().chain(found.xattrs.keys()).collect::<BTreeSet<_>>() {
            let shown = |node: &Self| node.xattrs.get(name).map(|it| it.escape_ascii().to_string());
            compare(&name.to_string_lossy(), &shown(self), &shown(found));
        }
        if matches!(self.kind, Kind::File { .. }) && found.allocated > self.allocated + SLACK {
            points.push(format!("{} bytes allocated, not {}", found.allocated, self.allocated));
        }
        points
    }
}

/// How much more room a file may take than rsync's copy does: blocks of the file system's own.
const SLACK: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use super::super::scene::Scene;

    type Damage = fn(&super::super::scene::Site<'_>);

    /// Each kind of damage is seen, and is seen at the right place.
    #[test]
    fn every_difference_is_found() {
        let damages: &[(Damage, &str)] = &[
            (|site| site.file("new", ""), "new: too much: File"),
            (|site| site.remove("src/dir"), "src/dir/file: missing: File"),
            (|site| site.file("src/text", "TEXT"), "src/text: it is File"),
            (|site| site.mode("src/text", 0o4755), "src/text: mode is 4755, not 0644"),
            (|site| site.owner("src/text", 0, 7), "src/text: owner is (0, 7), not (0, 0)"),
            (|site| site.time("src/text", 5, 6), "src/text: mtime is At(5, 6), not At("),
            (|site| site.file("src/linked", "linked"), "src/link: set of names is []"),
            (|site| site.symlink("elsewhere", "src/symlink"), "src/symlink: it is Symlink"),
            (|site| site.xattr("src/text", "user.a", b"b"), "src/text: user.a is Some(\"b\")"),
            (|site| site.noise("src/sparse", 1 << 20), "src/sparse: 1048576 bytes allocated"),
            (|site| site.device("src/device", true, 1, 5), "src/device: it is CharDevice"),
        ];
        for (damage, line) in damages {
            let mut scene = Scene::new(|site| {
                site.file("src/dir/file", "file");
                site.file("src/text", "text");
                site.file("src/linked", "linked");
                site.hard_link("src/linked", "src/link");
                site.symlink("somewhere", "src/symlink");
                site.sparse("src/sparse", 1 << 20, &[]);
                site.device("src/device", true, 1, 3);
            });
            assert_eq!(scene.differences(), [""; 0]);
            scene.change_fastsync(damage);
            let found = scene.differences();
            assert!(found.iter().any(|it| it.starts_with(line)), "no {line:?} in {found:#?}");
        }
    }
}
