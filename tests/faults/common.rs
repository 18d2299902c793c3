//! A place to work in, the program as a child, and what /proc tells about it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_fastsync");

/// How long anything may take before the test counts it as a hang.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A directory with `src` and, later, `dst`.
pub struct Ground(pub tempfile::TempDir);

impl Ground {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("src")).unwrap();
        Self(temp)
    }

    /// One large file, one of two chunks, some small ones.
    pub fn with_files(large: usize) -> Self {
        let ground = Self::new();
        fs::write(ground.path("src/large"), noise(1, large)).unwrap();
        fs::write(ground.path("src/two"), noise(2, 500_000)).unwrap();
        for n in 0..20 {
            fs::write(ground.path(&format!("src/{n}")), noise(n, 1000)).unwrap();
        }
        ground
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    /// A push of `src/` to `dst`, in chunks of 256 KiB.
    pub fn push(&self, flags: &[&str]) -> Command {
        self.command("push", flags)
    }

    /// The same with another verb.
    pub fn command(&self, verb: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args([verb, "--progress=json", "--json", "-c", "256K"]).args(flags);
        command.arg(self.path("src/")).arg(self.path("dst"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_remove("FASTSYNC_STREAMS").env("XDG_CONFIG_HOME", self.path("none"));
        command
    }

    /// Pushes to the end, which must be a good one, and returns the summary.
    #[track_caller]
    pub fn finish(&self, flags: &[&str]) -> Value {
        let mut run = Run::start(self.push(flags));
        let (status, lines) = run.end();
        assert!(status.success(), "{status}: {lines:?}");
        self.assert_equal();
        summary(&lines)
    }

    #[track_caller]
    pub fn assert_equal(&self) {
        let (src, dst) = (tree(&self.path("src")), tree(&self.path("dst")));
        assert!(src.keys().eq(dst.keys()), "{:?}\n{:?}", src.keys(), dst.keys());
        for (name, content) in &src {
            assert!(dst.get(name) == Some(content), "{} differs", name.display());
        }
    }

    pub fn size(&self) -> u64 {
        tree(&self.path("src")).values().map(|content| content.len() as u64).sum()
    }
}

/// Bytes that no two seeds share.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// The files below a directory, with their contents.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for item in fs::read_dir(&dir).unwrap() {
            let path = item.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                left.push(path);
            } else {
                let below = path.strip_prefix(root).unwrap().to_owned();
                found.insert(below, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The line that sums up a run.
#[track_caller]
pub fn summary(lines: &[Value]) -> Value {
    let summary = lines.iter().rfind(|line| line["event"] == "summary");
    summary.unwrap_or_else(|| panic!("no summary: {lines:?}")).clone()
}

/// A running client. Dropping it kills it.
pub struct Run {
    child: Child,
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

impl Run {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines() {
                let Ok(line) = line else { return };
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let mut stdout = child.stdout.take().unwrap();
        thread::spawn(move || std::io::copy(&mut stdout.by_ref(), &mut std::io::sink()));
        Self { child, lines, seen: Vec::new() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The agent, once there is one.
    pub fn agent(&self) -> u32 {
        let pid = self.pid();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let tasks = format!("/proc/{pid}/task");
        until("an agent", || {
            // Any of the client's threads may have started it.
            let threads = fs::read_dir(&tasks).ok()?;
            threads.filter_map(Result::ok).find_map(|thread| {
                let children = fs::read_to_string(thread.path().join("children")).ok()?;
                children.split_whitespace().next()?.parse().ok()
            })
        })
        .unwrap_or_else(|| panic!("{path}"))
    }

    /// Waits for an event.
    #[track_caller]
    pub fn event(&mut self, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("no {name}: {:?}", self.seen));
            self.seen.push(line.clone());
            if line["event"] == name {
                return line;
            }
        }
    }

    /// Waits for its end, which must come.
    #[track_caller]
    pub fn end(&mut self) -> (ExitStatus, Vec<Value>) {
        let child = &mut self.child;
        let status = until("the end", || child.try_wait().unwrap());
        let status = status.unwrap_or_else(|| panic!("it hangs: {:?}", self.seen));
        // An agent that outlives its client holds no pipe of it.
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        (status, self.seen.clone())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks again and again, as long as a test has patience.
pub fn until<T>(_what: &str, look: impl FnMut() -> Option<T>) -> Option<T> {
    until_deadline(PATIENCE, look)
}

pub fn until_deadline<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may be gone already.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether a process is there and not only waited for.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// How much of the destination is written, by its blocks.
pub fn written(dst: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(items) = fs::read_dir(dst) else { return 0 };
    items.filter_map(|item| item.ok()?.metadata().ok()).map(|data| data.blocks() * 512).sum()
}
