//! A scratch world with sources and destinations, the program to run between them, and trees to
//! compare.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

pub const FASTSYNC: &str = env!("CARGO_BIN_EXE_fastsync");

/// A directory of its own for one test, with a home in it that has no configuration.
pub struct World {
    root: TempDir,
}

impl World {
    pub fn new() -> Self {
        let root = tempfile::Builder::new().prefix("it-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let world = Self { root: root.expect("a scratch directory below target/tmp") };
        fs::create_dir(world.path("home")).unwrap();
        world
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Writes `len` bytes that differ at every offset and for every name, and returns their path.
    pub fn write(&self, name: impl AsRef<Path>, len: u64) -> PathBuf {
        let path = self.path(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut bytes = blake3::Hasher::new()
            .update(name.as_ref().as_os_str().as_encoded_bytes())
            .finalize_xof();
        let mut file = File::create(&path).unwrap();
        let mut piece = vec![0; 1 << 20];
        let mut left = len;
        while left > 0 {
            let now = usize::try_from(left.min(1 << 20)).unwrap();
            bytes.fill(&mut piece[..now]);
            file.write_all(&piece[..now]).unwrap();
            left -= now as u64;
        }
        path
    }

    pub fn text(&self, name: impl AsRef<Path>, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A program of a few lines, for `/bin/sh`.
    pub fn script(&self, name: &str, lines: &str) -> PathBuf {
        let path = self.text(name, format!("#!/bin/sh\n{lines}\n"));
        set_mode(&path, 0o755);
        path
    }

    /// The program, in this world: nobody's configuration and environment have a say.
    pub fn fastsync(&self) -> Command {
        self.command(FASTSYNC)
    }

    /// Any program, in this world.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.root.path());
        command.env("HOME", self.path("home")).env("XDG_CONFIG_HOME", self.path("home/.config"));
        command.env_remove("RUST_LOG").env_remove("SSH_CONNECTION").env_remove("SSH_AUTH_SOCK");
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"FASTSYNC_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// The program without root's right to read everything, whoever runs the tests.
    pub fn fastsync_without_rights(&self) -> Command {
        if !rustix::process::geteuid().is_root() {
            return self.fastsync();
        }
        let mut command = self.command("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", FASTSYNC]);
        command
    }

    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        Running::start(self.fastsync().args(arguments)).wait()
    }

    /// Runs what has to succeed, silently, and returns its summary.
    #[track_caller]
    pub fn summary<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Value {
        self.run_json(arguments).exits(0).summary()
    }

    /// Runs with `--json -q`.
    pub fn run_json<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        let mut command = self.fastsync();
        Running::start(command.args(arguments).args(["--json", "-q"])).wait()
    }
}

impl Drop for World {
    /// Makes every directory removable again, for those who are not root.
    fn drop(&mut self) {
        let mut pending = vec![self.root.path().to_owned()];
        while let Some(dir) = pending.pop() {
            let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            let directories = entries.filter(|it| it.file_type().is_ok_and(|kind| kind.is_dir()));
            pending.extend(directories.map(|it| it.path()));
        }
    }
}

/// A process under way. It is killed when it takes too long, or is dropped.
pub struct Running {
    child: Child,
    out: Option<JoinHandle<Vec<u8>>>,
    err: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.unwrap_or_else(|error| {
            let program = command.get_program().display();
            panic!("{program} cannot be started: {error}; see scripts/test")
        });
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, out: Some(collect(out)), err: Some(collect(err)) }
    }

    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// As Ctrl-C does at a terminal: all that are in its process group, which it is to lead.
    pub fn signal_group(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The processes that it has started, and those that they have.
    pub fn descendants(&self) -> Vec<u32> {
        let (mut found, mut pending) = (Vec::new(), vec![self.child.id()]);
        while let Some(parent) = pending.pop() {
            for task in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten()
            {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                let children = children.split_whitespace().map(|id| id.parse::<u32>().unwrap());
                let children: Vec<u32> = children.collect();
                found.extend(&children);
                pending.extend(children);
            }
        }
        found
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Ran {
        let is_over = until(PATIENCE, || self.is_over());
        if !is_over {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        let mut take = |stream: fn(&mut Self) -> &mut Option<JoinHandle<Vec<u8>>>| {
            stream(&mut self).take().unwrap().join().unwrap()
        };
        let (out, err) = (take(|it| &mut it.out), take(|it| &mut it.err));
        let ran = Ran { status, out, err: String::from_utf8(err).expect("messages are UTF-8") };
        assert!(is_over, "it did not end within {PATIENCE:?}:\n{}", ran.err);
        ran
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Looks again and again whether something has happened, at most for so long.
pub fn until(limit: Duration, mut has_happened: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if has_happened() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// For tests with many runs that are not about the way the data takes.
pub const QUICK: [&str; 3] = ["-p", "1", "--durability=none"];

/// How long anything may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// How a process ended and what it wrote.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub out: Vec<u8>,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        let out = String::from_utf8_lossy(&self.out);
        assert_eq!(self.status.code(), Some(code), "{}\n{out}{}", self.status, self.err);
        self
    }

    /// It was killed, and so did not end by itself before.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::KILL.as_raw())
    }

    /// Its message has this text.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.err.contains(text), "no {text:?} in:\n{}", self.err);
        self
    }

    pub fn lines(&self) -> Vec<&[u8]> {
        self.out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect()
    }

    /// The lines of its output as JSON.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_slice(line).expect("a line of JSON");
        self.lines().into_iter().map(parse).collect()
    }

    /// What `--progress=json` wrote to standard error.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        self.err.lines().map(parse).collect()
    }

    /// The last line of `--json`.
    #[track_caller]
    pub fn summary(&self) -> Value {
        self.json().pop().expect("a summary")
    }
}

/// What there is below a directory.
pub type Tree = BTreeMap<PathBuf, Node>;

#[derive(Debug, Eq, PartialEq)]
pub struct Node {
    what: What,
    /// Seconds and nanoseconds.
    mtime: (i64, i64),
}

#[derive(Debug, Eq, PartialEq)]
enum What {
    Directory { mode: u32 },
    File { mode: u32, size: u64, content: blake3::Hash },
    Symlink { target: PathBuf },
    Other,
}

/// Reads all that is below a directory, which is not part of it itself.
pub fn tree(root: impl AsRef<Path>) -> Tree {
    let root = root.as_ref();
    let mut tree = Tree::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let node = Node::of(&path);
            if matches!(node.what, What::Directory { .. }) {
                pending.push(path.clone());
            }
            tree.insert(path.strip_prefix(root).unwrap().to_owned(), node);
        }
    }
    tree
}

impl Node {
    fn of(path: &Path) -> Self {
        let metadata = fs::symlink_metadata(path).unwrap();
        let (kind, mode) = (metadata.file_type(), metadata.mode() & 0o7777);
        let what = if kind.is_dir() {
            What::Directory { mode }
        } else if kind.is_symlink() {
            What::Symlink { target: fs::read_link(path).unwrap() }
        } else if kind.is_file() {
            What::File { mode, size: metadata.len(), content: content(path) }
        } else {
            What::Other
        };
        Self { what, mtime: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// The hash of a file's bytes.
pub fn content(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut File::open(path).unwrap(), &mut hasher).unwrap();
    hasher.finalize()
}

/// Two trees are equal in names, content, modes, times and targets. As nothing may be in the one
/// that is not in the other, this also says that nothing of ours was left behind.
#[track_caller]
pub fn assert_same(wanted: impl AsRef<Path>, found: impl AsRef<Path>) {
    let (wanted, found) = (tree(wanted), tree(found));
    assert!(!wanted.is_empty(), "there was nothing to compare");
    let missing = wanted.iter().filter(|(path, node)| found.get(*path) != Some(node));
    let more = found.iter().filter(|(path, node)| wanted.get(*path) != Some(node));
    let (missing, more): (Vec<_>, Vec<_>) = (missing.collect(), more.collect());
    assert!(missing.is_empty() && more.is_empty(), "wanted: {missing:#?}\nfound: {more:#?}");
}

/// Two directories hold the same names with the same bytes.
#[track_caller]
pub fn assert_same_content(wanted: &Path, found: &Path) {
    assert_eq!(content(wanted), content(found), "{} {}", wanted.display(), found.display());
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Sets when a file or directory was last changed: seconds before or after 1970.
pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: u32) {
    let (epoch, whole) = (SystemTime::UNIX_EPOCH, Duration::from_secs(seconds.unsigned_abs()));
    let time = if seconds < 0 { epoch - whole } else { epoch + whole };
    let time = time + Duration::from_nanos(nanoseconds.into());
    File::open(path).unwrap().set_modified(time).unwrap();
}

/// Changes bytes in the middle of a file.
pub fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// A number of a summary.
#[track_caller]
pub fn number(summary: &Value, key: &str) -> u64 {
    summary[key].as_u64().unwrap_or_else(|| panic!("no {key} in {summary}"))
}

/// Names that a file system allows and programs stumble over.
pub fn awkward_names() -> Vec<OsString> {
    let bytes: &[&[u8]] = &[
        b"a\nnewline",
        b"caf\xe9",
        b"-rf",
        b" space ",
        b"'quote\"",
        b"$(touch pwned)",
        b"back\\slash",
        b"`tick`",
        b"semi;colon",
        b"*?[]",
        b"...",
        b"h:x",
        b"~",
        b"\x1b[31m",
        b"\xff\xfe\x01",
    ];
    let long = vec![b'n'; 255];
    bytes.iter().map(|name| name.to_vec()).chain([long]).map(OsString::from_vec).collect()
}

impl World {
    /// Makes a tree of everything that is to arrive: sizes around each border, names, modes, times,
    /// symlinks.
    pub fn write_everything(&self, name: &str, sizes: &[u64]) {
        let root = Path::new(name);
        for size in sizes {
            self.write(root.join(format!("sizes/{size}")), *size);
        }
        for name in awkward_names() {
            self.write(root.join("names").join(&name), 100);
            self.write(root.join("directories").join(&name).join("file"), 7);
        }
        self.dir(root.join("empty"));
        for (name, mode) in [("0400", 0o400), ("0755", 0o755), ("0600", 0o600), ("0666", 0o666)] {
            set_mode(&self.write(root.join("modes").join(name), 5), mode);
        }
        let times = [(-1, 500_000_000), (-1_000_000_000, 1), (0, 0), (4_000_000_000, 999_999_999)];
        for (seconds, nanoseconds) in times {
            let file = self.write(root.join(format!("times/{seconds}")), 9);
            set_mtime(&file, seconds, nanoseconds);
        }
        let links = self.dir(root.join("links"));
        for (name, target) in [("dangling", "nowhere"), ("absolute", "/etc"), ("up", "../sizes")] {
            symlink(target, links.join(name)).unwrap();
        }
        symlink(OsString::from_vec(b"\xff\n".to_vec()), links.join("bytes")).unwrap();
        self.write(root.join("read-only/below/file"), 10);
        set_mode(&self.path(root.join("read-only/below")), 0o500);
        set_mtime(&self.path(root.join("read-only/below")), 1_000_000_000, 123_456_789);
        set_mode(&self.path(root.join("read-only")), 0o555);
        set_mtime(&self.path(root.join("empty")), -2, 1);
    }
}
