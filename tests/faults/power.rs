//! Power that goes away: a file system of its own is shut down under the program, so that all that
//! was not synced is lost, and is mounted again.
//!
//! What the file system gave to its disk stays there, whether or not it asked for a flush: the loop
//! device has no cache that could be lost. ext4 writes a file out by itself when it takes the place
//! of another; XFS does not, and shows what was not synced as a file without its data.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::common::{Ground, PROGRAM, Run, is_alive, noise, signal, summary, until};

/// A file system in a file, mounted where only its holder and what runs [`Disk::inside`] see it.
/// With the holder it goes away, however the test ends.
struct Disk {
    ground: Ground,
    holder: Child,
}

impl Disk {
    fn new(kind: &str) -> Self {
        let ground = Ground::new();
        let image = ground.path("image");
        fs::create_dir(ground.path("disk")).unwrap();
        fs::File::create(&image).unwrap().set_len(IMAGE_SIZE).unwrap();
        let mkfs = Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image).status();
        assert!(mkfs.is_ok_and(|it| it.success()), "mkfs.{kind} failed; see scripts/test");
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "sh", "-c", "echo ready && exec cat"]);
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "mount namespaces are made by root");
        let disk = Self { ground, holder };
        disk.mount();
        fs::create_dir(disk.path("dst")).unwrap();
        disk
    }

    /// A program that sees the disk.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg(program);
        command
    }

    /// A path on the disk, for this process.
    fn path(&self, below: &str) -> PathBuf {
        let mount = self.ground.path("disk");
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(mount.strip_prefix("/").unwrap()).join(below)
    }

    fn mount(&self) {
        let mut command = self.inside("mount");
        command.args(["-o", "loop"]).args([self.ground.path("image"), self.ground.path("disk")]);
        assert!(command.status().unwrap().success(), "the disk cannot be mounted");
    }

    /// Whoever was killed may hold a file for a moment yet.
    fn unmount(&self) {
        let is_done = || {
            let mut command = self.inside("umount");
            let output = command.arg(self.ground.path("disk")).output().unwrap();
            output.status.success().then_some(())
        };
        until("the end of all users", is_done).expect("the disk stays busy");
    }

    fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// From now on nothing reaches the disk.
    fn cut(&self, is_log_kept: bool) {
        let shutdown = if is_log_kept { "shutdown -f" } else { "shutdown" };
        let mut command = self.inside("xfs_io");
        let output = command.args(["-x", "-c", shutdown]).arg(self.ground.path("disk")).output();
        let is_down = output.as_ref().is_ok_and(|it| it.status.success());
        assert!(is_down, "xfs_io cannot shut the disk down; see scripts/test: {output:?}");
    }

    fn push(&self, flags: &[&str]) -> Run {
        let mut command = self.inside(PROGRAM);
        command.args(["push", "--progress=json", "--json", "-c", "256K", "-p", "2"]).args(flags);
        command.arg(self.ground.path("src/")).arg(self.ground.path("disk/dst"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("XDG_CONFIG_HOME", self.ground.path("none"));
        Run::start(command)
    }

    /// Pushes to the end and expects that all of it is durable.
    fn push_durably(&self) {
        let (status, lines) = self.push(&[]).end();
        assert!(status.success(), "{status}: {lines:?}");
        assert_eq!(summary(&lines)["durable"], true);
    }

    /// Puts the old version at the destination, for good, and the new one at the source.
    fn fill(&self) {
        for file in files() {
            fs::write(self.ground.path("src").join(&file.name), file.new).unwrap();
            if let Some(old) = file.old {
                let path = self.path("dst").join(&file.name);
                fs::write(&path, old).unwrap();
                let long_ago =
                    std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
                let file = fs::File::options().write(true).open(path).unwrap();
                file.set_modified(long_ago).unwrap();
            }
        }
        self.remount();
    }

    /// Which version each file is, and a line for each that is neither.
    fn state(&self) -> State {
        let mut state = State::default();
        for file in files() {
            match (fs::read(self.path("dst").join(&file.name)), file.old) {
                (Ok(found), _) if found == file.new => state.new += 1,
                (Ok(found), Some(old)) if found == old => state.old += 1,
                (Err(_), None) => state.old += 1,
                (Ok(found), _) => {
                    let same = found.iter().zip(&file.new).take_while(|(a, b)| a == b).count();
                    let (size, wanted) = (found.len(), file.new.len());
                    let line = format!("{}: {same} of {size} bytes, not {wanted}", file.name);
                    state.torn.push(line);
                }
                (Err(error), Some(_)) => state.torn.push(format!("{}: {error}", file.name)),
            }
        }
        state
    }

    /// How many files have been replaced or made, as far as anybody can see.
    fn arrived(&self, before: &[Option<u64>]) -> usize {
        self.inodes().iter().zip(before).filter(|(now, before)| now != before).count()
    }

    fn inodes(&self) -> Vec<Option<u64>> {
        let inode = |name: &str| fs::symlink_metadata(self.path("dst").join(name)).ok();
        names().iter().map(|name| inode(name).map(|it| it.ino())).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[derive(Debug, Default)]
struct State {
    old: usize,
    new: usize,
    torn: Vec<String>,
}

struct TestFile {
    name: String,
    new: Vec<u8>,
    /// As long as the new one. Some files are new altogether.
    old: Option<Vec<u8>>,
}

/// Small ones of all sizes, some of several chunks, some that fill many.
fn files() -> impl Iterator<Item = TestFile> {
    names().into_iter().zip(0..).map(|(name, seed)| {
        let len = match usize::try_from(seed).unwrap() {
            large @ 0..2 => (6 << 20) + large,
            middle @ 2..8 => 100_000 * middle,
            small => 1 + small * 50,
        };
        let old = name.starts_with("old").then(|| noise(seed + 1_000_000, len));
        TestFile { name, new: noise(seed, len), old }
    })
}

/// Every third is new, the large ones among them.
fn names() -> Vec<String> {
    let name =
        |number| if number % 3 == 1 { format!("new-{number}") } else { format!("old-{number}") };
    (0..FILES).map(name).collect()
}

/// Cuts the power when so many of ten parts have arrived, and returns what is neither old nor new.
#[track_caller]
fn cut_during_a_run(kind: &str, is_log_kept: bool, tenth: usize) -> Vec<String> {
    let disk = Disk::new(kind);
    disk.fill();
    let before = disk.inodes();
    let mut run = disk.push(&["--retries", "0"]);
    run.event("connected");
    let agent = run.agent();
    let is_far = || disk.arrived(&before) * 10 >= tenth * FILES || !is_alive(agent);
    until("files", || is_far().then_some(())).expect("nothing comes");
    disk.cut(is_log_kept);
    signal(run.pid(), Signal::KILL);
    signal(agent, Signal::KILL);
    until("the end", || (!is_alive(agent)).then_some(())).expect("the agent lives");
    drop(run);
    disk.remount();
    let torn = disk.state().torn;
    disk.push_durably();
    assert_eq!(disk.state().new, FILES, "the next run finishes the work");
    torn
}

/// At every moment, a file under its final name is the old one or the new one.
#[track_caller]
fn cuts_during_runs(kind: &str, is_log_kept: bool) {
    let mut problems = Vec::new();
    for tenth in [0, 1, 5, 10] {
        let torn = cut_during_a_run(kind, is_log_kept, tenth);
        if let Some(first) = torn.first() {
            let count = torn.len();
            problems.push(format!("after {tenth} tenths {count} of {FILES}, as {first}"));
        }
    }
    assert!(problems.is_empty(), "{kind}: files neither old nor new: {problems:#?}");
}

/// Cuts the power when a run has said that all is durable.
#[track_caller]
fn cut_after_a_run(kind: &str, is_log_kept: bool) {
    let disk = Disk::new(kind);
    disk.fill();
    disk.push_durably();
    disk.cut(is_log_kept);
    disk.remount();
    let state = disk.state();
    assert_eq!(state.new, FILES, "{kind}, log kept: {is_log_kept}: {state:?}");
}

#[test]
fn on_xfs_a_cut_leaves_every_file_old_or_new() {
    cuts_during_runs("xfs", false);
}

#[test]
fn on_xfs_with_its_log_a_cut_leaves_every_file_old_or_new() {
    cuts_during_runs("xfs", true);
}

#[test]
fn on_ext4_a_cut_leaves_every_file_old_or_new() {
    cuts_during_runs("ext4", false);
}

#[test]
fn on_ext4_with_its_log_a_cut_leaves_every_file_old_or_new() {
    cuts_during_runs("ext4", true);
}

#[test]
fn what_was_reported_durable_survives_a_cut() {
    for kind in ["xfs", "ext4"] {
        for is_log_kept in [false, true] {
            cut_after_a_run(kind, is_log_kept);
        }
    }
}

/// The cut is one: a file that nobody synced loses its data, and one that was synced does not.
#[test]
fn a_cut_loses_what_was_not_synced() {
    for kind in ["xfs", "ext4"] {
        for is_log_kept in [false, true] {
            let disk = Disk::new(kind);
            fs::write(disk.path("dst/unsynced"), noise(1, 50_000)).unwrap();
            let mut synced = fs::File::create(disk.path("dst/synced")).unwrap();
            std::io::Write::write_all(&mut synced, &noise(2, 50_000)).unwrap();
            synced.sync_all().unwrap();
            drop(synced);
            disk.cut(is_log_kept);
            disk.remount();
            let read = |name: &str| fs::read(disk.path(name)).unwrap_or_default();
            assert_eq!(read("dst/unsynced").len(), 0, "{kind}, log kept: {is_log_kept}");
            assert!(read("dst/synced") == noise(2, 50_000), "{kind}, log kept: {is_log_kept}");
        }
    }
}

const FILES: usize = 300;

/// The least that XFS takes.
const IMAGE_SIZE: u64 = 320 << 20;
