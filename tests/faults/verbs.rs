//! Every way to transfer is killed at every stage: what is at the destination is then the old or the new,
//! what was replaced is in the backups, what was removed at the source is at the destination, and the
//! same command ends the work.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::common::{Ground, PATIENCE, Run, is_alive, noise, signal, until_deadline};

/// What has a name.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Thing {
    File(blake3::Hash),
    Symlink(PathBuf),
    Directory,
}

/// By path below a root, without what the program calls its own.
type Things = BTreeMap<PathBuf, Thing>;

/// A verb with its flags, and what those promise.
#[derive(Clone, Copy, Debug, Default)]
struct Case {
    verb: &'static str,
    flags: &'static [&'static str],
    /// Both ends are one process.
    is_alone: bool,
    deletes: bool,
    backs_up: bool,
    removes_sources: bool,
}

/// When a run is killed.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// It has a journal.
    Begun,
    /// So many hundredths of what is to arrive have arrived.
    Arrived(usize),
    /// Something was deleted at the destination.
    Deleted,
    /// Something was removed at the source.
    Removed,
}

/// Source and destination as they were, and what was found since.
struct Scene {
    ground: Ground,
    case: Case,
    new: Things,
    old: Things,
    inodes: BTreeMap<PathBuf, u64>,
}

impl Scene {
    fn new(case: Case) -> Self {
        let ground = Ground::new();
        let put = |path: &str, content: &[u8]| {
            let path = ground.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        for n in 0..SMALL {
            put(&format!("src/dir-{}/{n}", n % 5), &noise(n, 500));
            if n % 2 == 0 {
                put(&format!("dst/dir-{}/{n}", n % 5), &noise(n + 1000, 500));
            }
        }
        for (n, len) in [(1, 300_000), (2, 600_000), (3, 4_000_000)] {
            put(&format!("src/large-{n}"), &noise(n, len));
            put(&format!("dst/large-{n}"), &noise(n + 2000, len));
        }
        put("src/link-a", &noise(5, 2000));
        fs::hard_link(ground.path("src/link-a"), ground.path("src/link-b")).unwrap();
        put("dst/link-b", &noise(6, 2000));
        symlink("new", ground.path("src/now-symlink")).unwrap();
        put("dst/now-symlink", b"was a file");
        put("src/now-file", b"is a file");
        symlink("old", ground.path("dst/now-file")).unwrap();
        let value = noise(7, 100);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(ground.path("src/large-1"), "user.test", &value, flags).unwrap();
        if case.deletes {
            put("src/was-directory", b"is a file");
            put("dst/was-directory/below/file", b"was in a directory");
            put("src/now-directory/file", b"is in a directory");
            put("dst/now-directory", b"was a file");
            for n in 0..GONE as u64 {
                put(&format!("dst/gone/{n}"), &noise(n + 3000, 100));
            }
        }
        age(&ground.path("dst"));
        let (new, old) = (things(&ground.path("src")), things(&ground.path("dst")));
        let mut scene = Self { ground, case, new, old, inodes: BTreeMap::new() };
        scene.inodes = scene.inodes_now();
        scene
    }

    fn dst(&self) -> PathBuf {
        self.ground.path("dst")
    }

    fn start(&self) -> Run {
        let backups = format!("--backup-dir={}", self.ground.path("backups").display());
        let mut flags = [&["-p", "2", "--retries", "0"], self.case.flags].concat();
        if self.case.backs_up {
            flags.push(&backups);
        }
        Run::start(self.ground.command(self.case.verb, &flags))
    }

    /// The inodes of what has a path of the source.
    fn inodes_now(&self) -> BTreeMap<PathBuf, u64> {
        let inode = |path: &PathBuf| {
            let found = fs::symlink_metadata(self.dst().join(path)).ok()?;
            Some((path.clone(), found.ino()))
        };
        self.new.keys().filter_map(inode).collect()
    }

    fn is_reached(&self, stage: Stage) -> bool {
        let leaves = |(_, thing): &(&PathBuf, &Thing)| **thing != Thing::Directory;
        match stage {
            Stage::Begun => fs::read_dir(self.dst().join(".fastsync"))
                .is_ok_and(|jobs| jobs.flatten().any(|job| job.path().join("journal").exists())),
            Stage::Arrived(percent) => {
                let now = self.inodes_now();
                let paths = self.new.iter().filter(leaves).map(|(path, _)| path);
                let arrived = paths
                    .clone()
                    .filter(|path| {
                        now.get(*path).is_some_and(|it| self.inodes.get(*path) != Some(it))
                    })
                    .count();
                arrived * 100 >= paths.count() * percent
            }
            Stage::Deleted => {
                fs::read_dir(self.dst().join("gone")).map_or(0, Iterator::count) < GONE
            }
            Stage::Removed => {
                let paths = self.new.iter().filter(leaves).map(|(path, _)| path);
                let src = self.ground.path("src");
                paths.clone().any(|path| fs::symlink_metadata(src.join(path)).is_err())
            }
        }
    }

    /// Kills a run at its stage, and returns whether it had not ended by itself.
    fn kill(&self, stage: Stage, whom: usize) -> bool {
        let mut run = self.start();
        run.event("connected");
        let agent = (!self.case.is_alone).then(|| run.agent());
        let deadline = std::time::Instant::now() + PATIENCE;
        // Nothing sleeps here: the moment would have passed.
        while !self.is_reached(stage) && is_alive(run.pid()) && agent.is_none_or(is_alive) {
            assert!(std::time::Instant::now() < deadline, "{stage:?} does not come");
        }
        if agent.is_none() || !whom.is_multiple_of(3) {
            signal(run.pid(), Signal::KILL);
        }
        if let Some(agent) = agent.filter(|_| whom % 3 != 1) {
            signal(agent, Signal::KILL);
        }
        let (status, _) = run.end();
        if let Some(agent) = agent {
            let gone = until_deadline(Duration::from_secs(11), || (!is_alive(agent)).then_some(()));
            assert!(gone.is_some(), "the agent outlives its client");
        }
        status.signal() == Some(Signal::KILL.as_raw()) || status.code() == Some(30)
    }

    /// At any moment.
    fn problems(&self) -> Vec<String> {
        let now = things(&self.dst());
        let mut problems = Vec::new();
        let paths = self.old.keys().chain(self.new.keys()).chain(now.keys());
        let paths: std::collections::BTreeSet<_> = paths.collect();
        for path in paths {
            let (now, old, new) = (now.get(path), self.old.get(path), self.new.get(path));
            // Without deletion, what the source does not have stays as it was.
            let is_new = now == new && (self.case.deletes || new.is_some());
            if now != old && !is_new {
                problems.push(format!("{} is {now:?}, not {old:?} nor {new:?}", path.display()));
            }
        }
        if now.get(Path::new("was-directory")) == Some(&Thing::Directory)
            && !now.contains_key(Path::new("was-directory/below/file"))
        {
            problems.push("was-directory was emptied before there was another".into());
        }
        problems.extend(self.lost_backups(&now));
        if self.case.removes_sources {
            let left = things(&self.ground.path("src"));
            let is_lost = |(path, thing): &(&PathBuf, &Thing)| {
                !left.contains_key(*path) && now.get(*path) != Some(*thing)
            };
            let lost = self.new.iter().filter(is_lost);
            problems.extend(lost.map(|(path, _)| format!("{} is lost", path.display())));
        }
        problems
    }

    /// What was replaced or deleted, and is not among the backups as it was.
    fn lost_backups(&self, now: &Things) -> Vec<String> {
        if !self.case.backs_up {
            return Vec::new();
        }
        let backups = things(&self.ground.path("backups"));
        let is_lost = |(path, thing): &(&PathBuf, &Thing)| {
            **thing != Thing::Directory
                && now.get(*path) != Some(*thing)
                && backups.get(*path) != Some(*thing)
        };
        let lost = self.old.iter().filter(is_lost);
        lost.map(|(path, _)| format!("{} has no backup", path.display())).collect()
    }

    /// Runs it again, to its end, which is a good one.
    fn finish(&self) -> Vec<String> {
        let (status, lines) = self.start().end();
        if !status.success() {
            return vec![format!("the next run ends with {status}: {lines:?}")];
        }
        let now = things(&self.dst());
        let mut problems = self.problems();
        for (path, thing) in &self.new {
            if now.get(path) != Some(thing) {
                problems.push(format!("{} is {:?} at the end", path.display(), now.get(path)));
            }
        }
        if self.case.deletes {
            let more = now.keys().filter(|path| !self.new.contains_key(*path));
            problems.extend(more.map(|path| format!("{} is still there", path.display())));
        }
        let inode = |name: &str| fs::metadata(self.dst().join(name)).unwrap().ino();
        if inode("link-a") != inode("link-b") {
            problems.push("the hard links are no hard links".into());
        }
        for root in ["dst", "backups", "src"] {
            let own = own_names(&self.ground.path(root));
            problems.extend(own.iter().map(|path| format!("{} is left", path.display())));
        }
        problems
    }
}

/// Kills it at each stage, each time from the beginning.
#[track_caller]
fn kills(case: Case, stages: &[Stage]) {
    let (mut problems, mut missed) = (Vec::new(), Vec::new());
    for (whom, stage) in stages.iter().enumerate() {
        let scene = Scene::new(case);
        if !scene.kill(*stage, whom) {
            missed.push(*stage);
        }
        let found = scene.problems().into_iter().map(|it| format!("{stage:?}, killed: {it}"));
        problems.extend(found);
        let found = scene.finish().into_iter().map(|it| format!("{stage:?}, ended: {it}"));
        problems.extend(found);
    }
    assert!(problems.is_empty(), "{case:?}: {problems:#?}");
    assert!(missed.len() <= 1, "{case:?}: these runs ended before they were killed: {missed:?}");
}

const SYNC: Case = Case {
    verb: "sync",
    flags: &["-aHAXS", "--delete"],
    is_alone: true,
    deletes: true,
    backs_up: false,
    removes_sources: false,
};

#[test]
fn sync_within_a_process() {
    let stages =
        [Stage::Begun, Stage::Arrived(1), Stage::Arrived(50), Stage::Arrived(95), Stage::Deleted];
    kills(SYNC, &stages);
}

#[test]
fn sync_with_backups() {
    let case = Case { backs_up: true, ..SYNC };
    kills(case, &[Stage::Arrived(1), Stage::Arrived(50), Stage::Arrived(95), Stage::Deleted]);
}

#[test]
fn cp_that_removes_its_sources() {
    let flags: &[_] = &["-aHAX", "--remove-source-files"];
    let case = Case { verb: "cp", flags, is_alone: true, removes_sources: true, ..Case::default() };
    kills(case, &[Stage::Arrived(1), Stage::Arrived(95), Stage::Removed]);
}

#[test]
fn push_with_an_agent() {
    let case = Case { verb: "push", flags: &["-aHAX"], ..Case::default() };
    kills(case, &[Stage::Begun, Stage::Arrived(1), Stage::Arrived(50), Stage::Arrived(95)]);
}

#[test]
fn pull_with_an_agent() {
    let flags: &[_] = &["-aHAX", "--remove-source-files"];
    let case = Case { verb: "pull", flags, removes_sources: true, ..Case::default() };
    kills(case, &[Stage::Begun, Stage::Arrived(1), Stage::Arrived(50), Stage::Removed]);
}

/// What is below a root.
fn things(root: &Path) -> Things {
    let mut found = Things::new();
    visit(root, &mut |path, data| {
        let thing = if data.is_dir() {
            Thing::Directory
        } else if data.is_symlink() {
            Thing::Symlink(fs::read_link(path).unwrap())
        } else {
            Thing::File(blake3::hash(&fs::read(path).unwrap()))
        };
        let is_entered = !is_own(path);
        if is_entered {
            found.insert(path.strip_prefix(root).unwrap().to_owned(), thing);
        }
        is_entered
    });
    found
}

/// What the program has left of its own.
fn own_names(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    visit(root, &mut |path, _| {
        if is_own(path) {
            found.push(path.to_owned());
        }
        true
    });
    found
}

fn is_own(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".fastsync"))
}

/// Makes everything old, so that times tell old and new apart.
fn age(root: &Path) {
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    visit(root, &mut |path, data| {
        if data.is_file() {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        true
    });
}

/// Looks at everything below a root that need not exist; `look` says whether to enter a directory.
fn visit(root: &Path, look: &mut dyn FnMut(&Path, &fs::Metadata) -> bool) {
    let Ok(items) = fs::read_dir(root) else { return };
    for item in items {
        let path = item.unwrap().path();
        let data = fs::symlink_metadata(&path).unwrap();
        if look(&path, &data) && data.is_dir() {
            visit(&path, look);
        }
    }
}

/// How many small files the source has.
const SMALL: u64 = 80;

/// How many files are deleted.
const GONE: usize = 100;
