//! Two alike places, one for rsync and one for `fastsync`, and the run of both.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::compare::{Snapshot, differences, snapshot, walk};
use super::support::{FASTSYNC, Ran, Running, World, set_mode};

/// Two directories with the same content. Each program runs inside its own, so that the same
/// relative paths serve both, and sources, backups and whatever else are compared, too.
pub struct Scene {
    world: World,
    started: SystemTime,
    steps: i64,
    setup: Option<&'static str>,
}

impl Scene {
    /// Builds both places.
    pub fn new(build: impl Fn(&Site<'_>)) -> Self {
        let started = SystemTime::now();
        let mut scene = Self { world: World::new(), started, steps: 0, setup: None };
        for side in [RSYNC, OURS] {
            scene.world.dir(side);
        }
        scene.change(build);
        scene
    }

    /// A scene where each program runs in a mount namespace of its own, after these commands. As
    /// what is mounted there is gone afterwards, the names are kept in the file `seen`.
    pub fn with_mounts(setup: &'static str, build: impl Fn(&Site<'_>)) -> Self {
        Self { setup: Some(setup), ..Self::new(build) }
    }

    /// Changes both places alike. What it touches was last changed later than all before.
    pub fn change(&mut self, change: impl Fn(&Site<'_>)) {
        for side in [RSYNC, OURS] {
            self.change_side(side, &change);
        }
        self.steps += 1;
        let differences = self.differences();
        assert!(differences.is_empty(), "the places are not alike: {differences:#?}");
    }

    /// Changes one place only: for tests of the comparison itself.
    pub fn change_fastsync(&mut self, change: impl Fn(&Site<'_>)) {
        self.change_side(OURS, &change);
    }

    fn change_side(&self, side: &str, change: &dyn Fn(&Site<'_>)) {
        let root = self.world.path(side);
        let place = Site { root: &root, times: RefCell::default() };
        change(&place);
        place.stamp(self.started, LONG_AGO + 1000 * self.steps);
    }

    /// Runs both, `fastsync sync` with the given arguments, and wants the same of both.
    #[track_caller]
    pub fn sync<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Both {
        self.same("sync", arguments)
    }

    /// The same with `fastsync cp`.
    #[track_caller]
    pub fn cp<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Both {
        self.same("cp", arguments)
    }

    #[track_caller]
    fn same<A: AsRef<OsStr>>(&self, verb: &str, arguments: &[A]) -> Both {
        let both = self.run(verb, arguments);
        let shown: Vec<_> = arguments.iter().map(|it| it.as_ref().display().to_string()).collect();
        let lines = self.differences();
        let codes = [&both.rsync, &both.fastsync].map(|ran| ran.status.code());
        assert!(
            lines.is_empty() && codes[0] == codes[1],
            "fastsync {verb} {}: exit codes of rsync and fastsync: {codes:?}\n{}\n\n{}{}",
            shown.join(" "),
            lines.join("\n"),
            both.rsync.err,
            both.fastsync.err,
        );
        both
    }

    /// Runs both and compares nothing.
    pub fn run<A: AsRef<OsStr>>(&self, verb: &str, arguments: &[A]) -> Both {
        let start = |side, program, fixed: &[&str]| {
            let mut command = self.command(program);
            command.args(fixed).args(arguments).current_dir(self.world.path(side));
            Running::start(&mut command).wait()
        };
        let has = |flag: &str| arguments.iter().any(|it| it.as_ref() == flag);
        let mut ours = [&[verb], &OUR_FLAGS[..]].concat();
        // Sources are removed only when copies are durable.
        let removes = has("--remove-source-files");
        ours.push(if removes { "--durability=batch" } else { "--durability=none" });
        if !has("--no-perms") {
            // Special bits want to be asked for.
            ours.push("--perms");
        }
        Both { rsync: start(RSYNC, "rsync", RSYNC_FLAGS), fastsync: start(OURS, FASTSYNC, &ours) }
    }

    fn command(&self, program: &str) -> Command {
        let Some(setup) = self.setup else { return self.world.command(program) };
        let mut command = self.world.command("unshare");
        let script =
            format!("{setup} && \"$@\"; code=$?; find . ! -name seen | sort > seen; exit $code");
        command.args(["--mount", "sh", "-c", &script, "sh", program]);
        command
    }

    /// Only `fastsync`, for what rsync cannot do.
    pub fn fastsync<A: AsRef<OsStr>>(&self, verb: &str, arguments: &[A]) -> Ran {
        let mut command = self.world.fastsync();
        command.arg(verb).args(OUR_FLAGS).args(arguments).current_dir(self.world.path(OURS));
        Running::start(&mut command).wait()
    }

    /// What rsync and `fastsync` have made different.
    pub fn differences(&self) -> Vec<String> {
        differences(&self.snapshot(RSYNC), &self.snapshot(OURS))
    }

    fn snapshot(&self, below: impl AsRef<Path>) -> Snapshot {
        snapshot(&self.world.path(below), self.started)
    }

    /// A path in the place of `fastsync`.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.world.path(OURS).join(below)
    }

    /// What `fastsync` has made is what it was given.
    #[track_caller]
    pub fn assert_equal(&self, source: &str, destination: &str) {
        let ours = Path::new(OURS);
        let lines =
            differences(&self.snapshot(ours.join(source)), &self.snapshot(ours.join(destination)));
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }

    /// These are the names below a directory, of which those of directories end in a slash.
    #[track_caller]
    pub fn holds(&self, dir: &str, names: &[&str]) {
        let mut found = BTreeSet::new();
        walk(&self.path(dir), &mut |below, at| {
            let slash = if fs::symlink_metadata(at).unwrap().is_dir() { "/" } else { "" };
            found.insert(format!("{}{slash}", below.display()));
        });
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), names);
    }

    /// What a file of `fastsync` holds.
    #[track_caller]
    pub fn reads(&self, path: &str, text: &str) {
        let found = fs::read(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(String::from_utf8_lossy(&found), text, "{path}");
    }
}

/// rsync sees nothing that it would have to do, with every attribute that it knows.
#[track_caller]
pub fn assert_rsync_finds_nothing(source: &Path, destination: &Path) {
    let mut command = Command::new("rsync");
    command.args(["-aHAXSn", "--delete", "-i"]);
    // Both with a slash at the end.
    command.args([source.join(""), destination.join("")]);
    let ran = Running::start(&mut command).wait().exits(0);
    assert!(ran.out.is_empty(), "{}", String::from_utf8_lossy(&ran.out));
}

/// How both ended, and what they said.
pub struct Both {
    pub rsync: Ran,
    pub fastsync: Ran,
}

impl Both {
    /// Both ended with this code.
    #[track_caller]
    pub fn exit(&self, code: i32) -> &Self {
        for ran in [&self.rsync, &self.fastsync] {
            assert_eq!(ran.status.code(), Some(code), "{}", ran.err);
        }
        self
    }

    /// Both printed the same lines, in whatever order, and these. Left out is what differs on
    /// purpose: the line of the root itself, and which name of a file is the other's link.
    #[track_caller]
    pub fn print(&self, lines: &[&str]) -> &Self {
        let alike = |line: &str| {
            let is_link = line.starts_with("hf");
            let shown = if is_link { line.get(..11).unwrap_or(line) } else { line };
            (!line.ends_with(" ./")).then(|| shown.to_owned())
        };
        let sorted = |ran: &Ran| {
            let lines = ran.lines().into_iter().map(|line| line.escape_ascii().to_string());
            let mut lines: Vec<_> = lines.filter_map(|line| alike(&line)).collect();
            lines.sort_unstable();
            lines
        };
        assert_eq!(sorted(&self.fastsync), sorted(&self.rsync), "fastsync's and rsync's lines");
        let mut wanted: Vec<_> = lines.iter().filter_map(|line| alike(line)).collect();
        wanted.sort_unstable();
        assert_eq!(sorted(&self.rsync), wanted);
        self
    }
}

/// The place of one program while it is built. All paths are below it.
pub struct Site<'a> {
    root: &'a Path,
    times: RefCell<Vec<(PathBuf, Timespec)>>,
}

impl Site<'_> {
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The path of something new in a directory that is there.
    fn fresh(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => path,
        }
    }

    pub fn file(&self, path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
        fs::write(self.fresh(path), text).unwrap();
    }

    pub fn files(&self, paths: &[&str]) {
        for path in paths {
            self.file(path, path);
        }
    }

    /// A file of bytes that differ at every offset and for every name.
    pub fn noise(&self, path: impl AsRef<Path>, len: usize) {
        let mut bytes = vec![0; len];
        let name = path.as_ref().as_os_str().as_encoded_bytes();
        blake3::Hasher::new().update(name).finalize_xof().fill(&mut bytes);
        self.file(path, bytes);
    }

    /// A file with nothing but some data at these offsets.
    pub fn sparse(&self, path: impl AsRef<Path>, len: u64, islands: &[u64]) {
        let file = File::create(self.fresh(path)).unwrap();
        file.set_len(len).unwrap();
        for at in islands {
            file.write_all_at(&[b'd'; 4096], *at).unwrap();
        }
    }

    pub fn dir(&self, path: impl AsRef<Path>) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) {
        symlink(target, self.fresh(path)).unwrap();
    }

    /// Also of a symlink.
    pub fn hard_link(&self, old: impl AsRef<Path>, new: impl AsRef<Path>) {
        fs::hard_link(self.path(old), self.fresh(new)).unwrap();
    }

    pub fn fifo(&self, path: impl AsRef<Path>) {
        self.node(path, FileType::Fifo, 0);
    }

    pub fn socket(&self, path: impl AsRef<Path>) {
        self.node(path, FileType::Socket, 0);
    }

    pub fn device(&self, path: impl AsRef<Path>, is_char: bool, major: u32, minor: u32) {
        let kind = if is_char { FileType::CharacterDevice } else { FileType::BlockDevice };
        self.node(path, kind, rustix::fs::makedev(major, minor));
    }

    fn node(&self, path: impl AsRef<Path>, kind: FileType, device: u64) {
        let rights = Mode::from_raw_mode(0o640);
        let made = rustix::fs::mknodat(CWD, self.fresh(path), kind, rights, device);
        made.expect("nodes are made by root");
    }

    pub fn remove(&self, path: impl AsRef<Path>) {
        let path = self.path(path);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    pub fn mode(&self, path: impl AsRef<Path>, mode: u32) {
        set_mode(&self.path(path), mode);
    }

    /// To be called before `mode`, as it takes the setuid bit away.
    pub fn owner(&self, path: impl AsRef<Path>, user: u32, group: u32) {
        let changed = std::os::unix::fs::lchown(self.path(path), Some(user), Some(group));
        changed.expect("owners are changed by root");
    }

    /// Seconds before or after 1970, and nanoseconds. Whatever happens to the file later while it
    /// is built, this is its time in the end.
    pub fn time(&self, path: impl AsRef<Path>, seconds: i64, nanoseconds: u32) {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        self.times.borrow_mut().push((self.path(path), time));
    }

    pub fn xattr(&self, path: impl AsRef<Path>, name: &str, value: &[u8]) {
        let set = rustix::fs::lsetxattr(self.path(path), name, value, XattrFlags::empty());
        set.unwrap_or_else(|error| panic!("{name} cannot be set: {error}"));
    }

    /// An ACL for the owner, users and groups by number, the others. The mask is `rwx`.
    pub fn acl(&self, path: impl AsRef<Path>, which: Acl, users: &[(u32, u16)], group: (u32, u16)) {
        const NOBODY: u32 = u32::MAX;
        let mut entries = vec![(0x01, 7, NOBODY)];
        entries.extend(users.iter().map(|(user, may)| (0x02, *may, *user)));
        entries.extend([(0x04, 5, NOBODY), (0x08, group.1, group.0)]);
        entries.extend([(0x10, 7, NOBODY), (0x20, 1, NOBODY)]);
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, may, id) in entries {
            value.extend(u16::to_le_bytes(tag));
            value.extend(u16::to_le_bytes(may));
            value.extend(u32::to_le_bytes(id));
        }
        let name = match which {
            Acl::Access => "system.posix_acl_access",
            Acl::Default => "system.posix_acl_default",
        };
        self.xattr(path, name, &value);
    }

    /// Gives everything its time, so that two places built alike are alike.
    fn stamp(&self, started: SystemTime, otherwise: i64) {
        let at = |path: &Path, time| {
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        };
        let started = started.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let (started, now) = (i64::try_from(started).unwrap() - 2, i64::from(u32::MAX) / 2);
        walk(self.root, &mut |_, path| {
            if (started..now).contains(&fs::symlink_metadata(path).unwrap().mtime()) {
                at(path, Timespec { tv_sec: otherwise, tv_nsec: 123_456_789 });
            }
        });
        for (path, time) in self.times.borrow().iter() {
            at(path, *time);
        }
    }
}

#[derive(Clone, Copy)]
pub enum Acl {
    Access,
    Default,
}

/// When everything was last changed that has no time of its own.
pub const LONG_AGO: i64 = 1_600_000_000;

/// Where each program works.
const RSYNC: &str = "rsync";
const OURS: &str = "fastsync";

/// What `fastsync` does without being told.
const RSYNC_FLAGS: &[&str] = &["--recursive", "--links", "--perms", "--times", "--mkpath"];

/// Small chunks and packs, so that small files go every way.
const OUR_FLAGS: [&str; 6] = ["-R", "-p", "1", "-c", "64K", "--pack-threshold=96K"];
