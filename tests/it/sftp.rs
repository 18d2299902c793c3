//! Copies to and from an SFTP server, where no fastsync runs.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::proftpd::{plain_proftpd, proftpd};
use super::sshd::{free_port, sftp_server, user};
use super::support::{
    PATIENCE, Ran, Running, World, assert_same, assert_same_content, number, overwrite, set_mode,
    set_mtime, tree, until,
};

/// `sftp://testhost` and a path of this world.
fn at_server(world: &World, name: impl AsRef<Path>) -> OsString {
    let mut location = OsString::from("sftp://testhost");
    location.push(world.path(name));
    location
}

/// Runs the program with ssh's configuration for the server.
fn run<A: AsRef<OsStr>>(world: &World, arguments: impl IntoIterator<Item = A>) -> Ran {
    let mut command = world.fastsync();
    command.args(arguments).arg("-F").arg(sftp_server().config());
    command.env("XDG_STATE_HOME", world.path("home/state"));
    Running::start(&mut command).wait()
}

/// What an SFTP server keeps of times is whole seconds.
fn with_whole_seconds(root: &Path) {
    let mut command = std::process::Command::new("find");
    command.arg(root).args(["-depth", "-exec", "touch", "-h", "-d", "@1000000000", "{}", "+"]);
    assert!(command.status().unwrap().success());
}

fn plant(world: &World) {
    for (n, size) in [0, 1, 65_536, 300_000, 9_000_000].into_iter().enumerate() {
        world.write(format!("src/sizes/{n}"), size);
    }
    for n in 0..300 {
        world.text(format!("src/many/{n}"), format!("small {n}"));
    }
    for name in ["with space", "%41#?&+", "-rf", "new\nline", "ümläut"] {
        world.text(Path::new("src/names").join(name), name);
    }
    world.dir("src/empty");
    std::os::unix::fs::symlink("sizes/1", world.path("src/link")).unwrap();
    set_mode(&world.path("src/sizes/1"), 0o640);
    set_mode(&world.path("src/empty"), 0o750);
    with_whole_seconds(&world.path("src"));
}

/// What the server tells of times is only whole seconds, of what has its times from here too.
#[test]
fn parts_of_seconds_are_no_change_in_either_direction() {
    let world = World::new();
    world.text("src/d/one", "one");
    world.write("src/two", 300_000);
    for (n, path) in ["src/d/one", "src/two", "src/d", "src"].into_iter().enumerate() {
        set_mtime(&world.path(path), 1_000_000_000 + i64::try_from(n).unwrap(), 999_999_999);
    }
    let mut there = at_server(&world, "there");
    there.push("/");
    run(&world, ["sync".into(), "src/".into(), there.clone()]).exits(0);
    run(&world, ["check".into(), "src/".into(), there.clone()]).exits(0);
    run(&world, ["check".into(), there.clone(), "src/".into()]).exits(0);
    let back = ["sync".into(), there.clone(), "src/".into(), "--json".into()];
    let summary = run(&world, back.clone()).exits(0).summary();
    assert_eq!((number(&summary, "done"), number(&summary, "bytes_sent")), (0, 0));
    let times = |path: &str| {
        let about = fs::symlink_metadata(world.path(path)).unwrap();
        (about.mtime(), about.mtime_nsec())
    };
    assert_eq!(times("src/d/one"), (1_000_000_000, 999_999_999), "better than the server knows");
    assert_eq!(times("src/d"), (1_000_000_002, 999_999_999));
    // A second is a change, also where the size is the same.
    overwrite(&world.path("there/d/one"), 0, b"ONE");
    set_mtime(&world.path("there/d/one"), 1_000_000_001, 0);
    run(&world, ["check".into(), there.clone(), "src/".into()]).exits(40);
    run(&world, back).exits(0);
    assert_eq!(fs::read(world.path("src/d/one")).unwrap(), b"ONE");
    assert_eq!(times("src/d/one"), (1_000_000_001, 0));
}

#[test]
fn a_tree_goes_there_and_comes_back() {
    let world = World::new();
    plant(&world);
    let there = at_server(&world, "there");
    let copy = || run(&world, ["cp".into(), "src/".into(), there.clone(), "--json".into()]);
    let summary = copy().exits(0).summary();
    assert_eq!(summary["transport"], "sftp");
    assert_same(world.path("src"), world.path("there"));
    let summary = copy().exits(0).summary();
    assert_eq!((number(&summary, "done"), number(&summary, "bytes_sent")), (0, 0));
    assert_eq!(summary["durable"], false, "small files are not synced there");
    let each =
        ["cp".into(), "src/".into(), there.clone(), "--json".into(), "--durability=file".into()];
    assert_eq!(run(&world, each).exits(0).summary()["durable"], true);
    let mut contents = there.clone();
    contents.push("/");
    run(&world, ["cp".into(), contents, "back".into()]).exits(0);
    assert_same(world.path("src"), world.path("back"));
    for flags in [&[][..], &["--checksum"]] {
        let check = ["check".into(), OsString::from("src"), there.clone()];
        run(&world, check.into_iter().chain(flags.iter().map(Into::into))).exits(0);
    }
}

#[test]
fn a_single_file_gets_the_name_that_it_is_given() {
    let world = World::new();
    let file = world.write("file", 700_000);
    world.dir("dir");
    for (destination, path) in [("new", "new"), ("dir", "dir/file"), ("dir/", "dir/file")] {
        let mut location = at_server(&world, "");
        location.push(destination);
        run(&world, ["cp".into(), "file".into(), location]).exits(0);
        assert_same_content(&file, &world.path(path));
        fs::remove_file(world.path(path)).unwrap();
    }
    // A server starts in the user's home directory.
    let home = world.dir("there");
    let line = format!("cd '{}'; exec /usr/lib/openssh/sftp-server", home.display());
    let shell = world.script("shell", &line);
    let config = sftp_server().allow(&world.path("key"), shell.to_str().unwrap());
    let (user, port) = (user(), sftp_server().port);
    for location in [
        "sftp://testhost/~/a".to_owned(),
        format!("sftp://{user}@127.0.0.1:{port}/~/b"),
        format!("sftp://testhost:{}/c", home.display()),
        "sftp://testhost/~".to_owned(),
    ] {
        let mut command = world.fastsync();
        command.args(["cp", "file", &location]).arg("-F").arg(&config);
        Running::start(&mut command).wait().exits(0);
    }
    assert_eq!(tree(home).len(), 4);
    run(&world, ["cp".into(), at_server(&world, "file"), "back".into()]).exits(0);
    assert_same_content(&file, &world.path("back"));
}

#[test]
fn sync_deletes_and_a_dry_run_does_nothing() {
    let world = World::new();
    plant(&world);
    let there = at_server(&world, "there");
    run(&world, ["sync".into(), "src/".into(), there.clone()]).exits(0);
    fs::remove_dir_all(world.path("src/many")).unwrap();
    fs::remove_file(world.path("src/link")).unwrap();
    world.text("src/names/-rf", "another content");
    let before = tree(world.path("there"));
    let sync = |flags: &[&str]| {
        let command = ["sync".into(), "src/".into(), there.clone(), "-i".into()];
        run(&world, command.into_iter().chain(flags.iter().map(OsString::from)))
    };
    let ran = sync(&["--delete", "-n"]).exits(0);
    assert_eq!(tree(world.path("there")), before);
    assert!(ran.out.windows(9).any(|it| it == b"*deleting"), "{ran:?}");
    sync(&["--delete", "--max-delete=3"]).exits(25);
    sync(&["--delete"]).exits(0);
    with_whole_seconds(&world.path("src"));
    with_whole_seconds(&world.path("there"));
    assert_same(world.path("src"), world.path("there"));
    fs::create_dir(world.path("nothing")).unwrap();
    let empty = ["sync".into(), "nothing/".into(), there, "--delete".into()];
    assert_ne!(run(&world, empty).status.code(), Some(0));
    assert_same(world.path("src"), world.path("there"));
}

#[test]
fn what_is_there_is_listed() {
    let world = World::new();
    plant(&world);
    let mut location = at_server(&world, "src");
    location.push("/");
    let ran = run(&world, ["ls".into(), "-R".into(), "--zero".into(), location.clone()]).exits(0);
    let here = world.run(["ls", "-R", "--zero", "src/"]).exits(0);
    let sorted = |ran: &Ran| {
        let mut lines: Vec<_> = ran.out.split(|it| *it == 0).map(<[u8]>::to_vec).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&ran), sorted(&here));
    let there = run(&world, ["manifest".into(), location]).exits(0);
    let here = world.run(["manifest", "src/"]).exits(0);
    let sorted = |ran: &Ran| {
        let mut lines: Vec<_> = ran.lines().into_iter().map(<[u8]>::to_vec).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&there), sorted(&here));
}

/// A copy of `src/` to `there` by a server, which is killed and comes back.
struct Upload<'a> {
    world: &'a World,
    /// For `ssh -F`.
    config: PathBuf,
}

impl Upload<'_> {
    fn start(&self, flags: &[&str]) -> Running {
        let mut command = self.world.fastsync();
        command.args(["cp", "src/"]).arg(at_server(self.world, "there"));
        command.args(["-c", "1M", "-F"]).arg(&self.config).args(flags);
        Running::start(command.env("XDG_STATE_HOME", self.state()))
    }

    fn state(&self) -> PathBuf {
        self.world.path("home/state")
    }

    /// Begins, and kills the program when its journal has so many bytes.
    fn kill(&self, journal_len: u64) {
        let mut running = self.start(&[]);
        let journal = || {
            let job = fs::read_dir(self.state().join("fastsync/jobs")).ok()?.next()?.ok()?.path();
            fs::metadata(job.join("journal")).ok()
        };
        let is_under_way = || journal().is_some_and(|it| it.len() > journal_len);
        assert!(until(PATIENCE, || is_under_way() || running.is_over()));
        running.signal(Signal::KILL);
        assert!(running.wait().was_killed());
        assert!(!self.world.path("there/big").exists());
    }

    /// Goes on to the end, and returns how much was there already.
    fn go_on(&self, flags: &[&str]) -> u64 {
        let summary = self.start(flags).wait().exits(0).summary();
        let (resumed, sent) = (number(&summary, "bytes_resumed"), number(&summary, "bytes_sent"));
        let big = self.world.path("src/big");
        assert_eq!(resumed + sent, fs::metadata(&big).unwrap().len());
        assert_same_content(&big, &self.world.path("there/big"));
        assert_eq!(tree(self.world.path("there")).len(), 1, "nothing else is left there");
        assert_eq!(fs::read_dir(self.state().join("fastsync")).unwrap().count(), 0, "nor here");
        resumed
    }
}

/// JRN-12: what was written is read back, and not sent again.
#[test]
fn a_killed_upload_goes_on() {
    let world = World::new();
    world.write("src/big", 400 << 20);
    let upload = Upload { world: &world, config: sftp_server().config() };
    upload.kill(64 + 60 * 53);
    assert!(upload.go_on(&["--json"]) >= 50 << 20);
}

/// As if a connection had broken: the first, or all of them, once `is_under_way`.
fn cut_off(running: &Running, all: bool, is_under_way: impl FnMut() -> bool) {
    assert!(until(PATIENCE, is_under_way));
    let is_ssh =
        |id: &u32| fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|it| it.starts_with(b"ssh\0"));
    let mut ours: Vec<u32> = running.descendants().into_iter().filter(is_ssh).collect();
    ours.sort_unstable();
    assert!(!ours.is_empty());
    for id in ours.into_iter().take(if all { usize::MAX } else { 1 }) {
        let id = Pid::from_raw(id.try_into().unwrap()).unwrap();
        // It may have ended by itself.
        let _ = kill_process(id, Signal::KILL);
    }
}

/// Whoever loses connections goes on with the others, or connects anew, in both directions.
#[test]
fn lost_connections_lose_no_file() {
    let world = World::new();
    world.write("src/big", 100 << 20);
    for n in 0..1500 {
        world.text(format!("src/{}/{n}", n % 30), format!("small {n}"));
    }
    with_whole_seconds(&world.path("src"));
    let wanted = tree(world.path("src"));
    for (to, all) in [("up", false), ("up-anew", true), ("down", false), ("down-anew", true)] {
        world.dir(to);
        let (from, there) = if to.starts_with("up") {
            ("src/".into(), at_server(&world, to))
        } else {
            (at_server(&world, "src/"), to.into())
        };
        let mut command = world.fastsync();
        command.arg("cp").args([from, there]).arg("-F").arg(sftp_server().config());
        command.arg("--ssh-connections=4").env("XDG_STATE_HOME", world.path("home/state"));
        let running = Running::start(&mut command);
        cut_off(&running, all, || fs::read_dir(world.path(to)).unwrap().count() > 3);
        running.wait().exits(0);
        // What was begun on a connection that was lost may be left there under other names.
        let found = tree(world.path(to));
        let differs = |path: &&PathBuf| found.get(*path) != wanted.get(*path);
        assert_eq!(wanted.keys().find(differs), None, "{to}");
    }
}

/// While another one is left: it carries the rest of what is under way.
#[test]
fn a_lost_connection_is_made_again() {
    let world = World::new();
    let big = world.write("src/big", 8 << 20);
    // The rest is one hole, but for its end.
    overwrite(&big, 300 << 20, b"the end");
    let started = world.path("started");
    let line = format!("echo $$ >>{}; exec /usr/lib/openssh/sftp-server", started.display());
    let shell = world.script("shell", &line);
    let config = sftp_server().allow(&world.path("key"), shell.to_str().unwrap());
    let mut command = world.fastsync();
    command.arg("cp").arg(at_server(&world, "src/big")).args(["back", "-F"]).arg(config);
    command.arg("--ssh-connections=2").env("XDG_STATE_HOME", world.path("home/state"));
    let running = Running::start(&mut command);
    let has_it = |id: &Pid| {
        let mut open = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        open.any(|it| fs::read_link(it.path()).is_ok_and(|path| path == big))
    };
    let serving = || -> Vec<Pid> {
        let ids = fs::read_to_string(&started).unwrap_or_default();
        let ids = ids.lines().filter_map(|id| Pid::from_raw(id.parse().ok()?));
        ids.filter(has_it).collect()
    };
    assert!(until(PATIENCE, || serving().len() == 2));
    let (lost, other) = (serving()[0], serving()[1]);
    kill_process(other, Signal::STOP).unwrap();
    kill_process(lost, Signal::KILL).unwrap();
    let is_new = |id: &Pid| ![lost, other].contains(id);
    let has_another = until(PATIENCE, || serving().iter().any(is_new));
    kill_process(other, Signal::CONT).unwrap();
    assert!(has_another, "what is left has all to do");
    running.wait().exits(0);
    assert_same_content(&big, &world.path("back"));
}

/// What nobody would come back for goes, whatever ends a run; what can be taken up stays.
#[test]
fn an_upload_that_ends_early_leaves_no_small_files_under_way() {
    let world = World::new();
    for n in 0..6000 {
        world.text(format!("src/{n}"), format!("small {n}").repeat(100));
    }
    // At a terminal, Ctrl-C is for the ssh programs too.
    for (connections, is_for_all) in [(4, false), (4, true), (1, true)] {
        let there = world.dir(format!("there-{connections}-{is_for_all}"));
        let mut command = world.fastsync();
        command.args(["cp", "src/"]).arg(at_server(&world, &there)).arg("-F");
        command.arg(sftp_server().config()).arg(format!("--ssh-connections={connections}"));
        command.env("XDG_STATE_HOME", world.path("home/state")).process_group(0);
        let running = Running::start(&mut command);
        let names = || fs::read_dir(&there).unwrap().map(|it| it.unwrap().file_name());
        let is_temporary = |name: &OsString| name.to_string_lossy().starts_with(".fastsync-");
        assert!(until(PATIENCE, || names().count() > 500));
        let signal = if is_for_all { Running::signal_group } else { Running::signal };
        signal(&running, Signal::INT);
        running.wait().exits(20);
        assert_eq!(names().find(is_temporary), None, "{connections} {is_for_all}");
        assert!(names().count() < 6000, "it was stopped on the way");
    }
}

/// The same where the disk is full, which ends a run by itself.
#[test]
fn a_full_disk_there_holds_no_small_files_under_way() {
    let world = World::new();
    for n in 0..300 {
        world.write(format!("src/{n}"), 150_000);
    }
    let (there, left) = (world.dir("there"), world.path("left"));
    // One connection has the disk for itself, and tells of it at its end.
    let line = format!(
        "exec unshare -m sh -c 'mount -t tmpfs -o size=8m none {there}; \
         /usr/lib/openssh/sftp-server; ls -A {there} > {left}.new; mv {left}.new {left}'",
        there = there.display(),
        left = left.display(),
    );
    let shell = world.script("shell", &line);
    let config = sftp_server().allow(&world.path("key"), shell.to_str().unwrap());
    let mut command = world.fastsync();
    command.args(["cp", "src/"]).arg(at_server(&world, "there")).arg("-F").arg(config);
    command.arg("--ssh-connections=1").env("XDG_STATE_HOME", world.path("home/state"));
    Running::start(&mut command).wait().exits(41);
    assert!(until(PATIENCE, || left.exists()), "mounting needs root");
    let names = fs::read_to_string(&left).unwrap();
    assert!(names.lines().count() > 10, "{names}");
    assert_eq!(names.lines().find(|name| name.starts_with(".fastsync-")), None);
}

/// OpenSSH's server has as many handles as it may have files open, less five.
#[test]
fn few_handles_are_enough() {
    let world = World::new();
    for n in 0..3000 {
        world.text(format!("src/{}/{}/{n}", n % 20, n % 60), format!("small {n}"));
    }
    for n in 0..4 {
        world.write(format!("src/large/{n}"), 3 << 20);
        world.write(format!("src/middle/{n}"), 700_000);
    }
    with_whole_seconds(&world.path("src"));
    for most in [12, 20] {
        let line = format!("ulimit -n {}; exec /usr/lib/openssh/sftp-server", most + 5);
        let shell = world.script(&format!("{most}.sh"), &line);
        let config = sftp_server().allow(&world.path(most.to_string()), shell.to_str().unwrap());
        let copy = |from: OsString, to: OsString| {
            let mut command = world.fastsync();
            command.arg("cp").args([from, to]).arg("-F").arg(&config).arg("--ssh-connections=1");
            command.env("XDG_STATE_HOME", world.path("home/state"));
            Running::start(&mut command).wait().exits(0);
        };
        let (back, there) = (format!("back-{most}"), format!("there-{most}"));
        copy(at_server(&world, "src/"), (&back).into());
        assert_same(world.path("src"), world.path(back));
        copy("src/".into(), at_server(&world, &there));
        assert_same(world.path("src"), world.path(there));
    }
}

/// JRN-12: a server that hashes says whether it still has what was written. What somebody has altered
/// there is sent again.
#[test]
fn what_a_server_hashes_is_not_read_back() {
    let world = World::new();
    world.write("src/big", 300 << 20);
    let upload = Upload { world: &world, config: proftpd().config() };
    upload.kill(64 + 60 * 92);
    let left = fs::read_dir(world.path("there")).unwrap().next().unwrap().unwrap().path();
    for at in (0..60).step_by(10) {
        overwrite(&left, at << 20, b"altered");
    }
    let before = proftpd().requests().len();
    assert!(upload.go_on(&["--json", "--resume=verify"]) >= 30 << 20);
    let count = |request: &str| {
        let requests = proftpd().requests().split_off(before);
        requests
            .lines()
            .filter(|line| format!("{line} ").starts_with(&format!("{request} ")))
            .count()
    };
    // The first one finds out what it can do.
    assert!(count("EXTENDED check-file-name") > 1);
    assert_eq!(count("READ"), 0);
    let mut back = world.fastsync();
    back.args(["cp".into(), at_server(&world, "there/big"), "back".into()]);
    Running::start(back.arg("-F").arg(proftpd().config())).wait().exits(0);
    assert_same_content(&world.path("src/big"), &world.path("back"));
    assert!(count("READ") > 0, "what is read is seen there");
}

/// Some servers make them absolute, so that they would lead elsewhere.
#[test]
fn symlinks_that_a_server_would_change_are_told() {
    let world = World::new();
    world.text("src/file", "content");
    std::os::unix::fs::symlink("file", world.path("src/relative")).unwrap();
    std::os::unix::fs::symlink("/nowhere", world.path("src/absolute")).unwrap();
    let copy = |flags: &[&str]| {
        let mut command = world.fastsync();
        command.args(["cp", "-R", "src/"]).arg(at_server(&world, "there")).args(flags);
        Running::start(command.arg("-F").arg(proftpd().config())).wait()
    };
    copy(&[]).exits(23).says("relative").says("absolute targets only");
    let found: Vec<PathBuf> = tree(world.path("there")).into_keys().collect();
    assert_eq!(found, [Path::new("absolute"), Path::new("file")]);
    fs::remove_file(world.path("src/absolute")).unwrap();
    copy(&["-L"]).exits(0);
    assert_same_content(&world.path("src/file"), &world.path("there/relative"));
}

/// A server that can replace no file at once, and one that does not even rename any.
#[test]
fn an_old_file_stays_until_the_new_one_is_there() {
    let world = World::new();
    let sizes = [("small", 1000), ("large", 3 << 20)];
    for (name, size) in sizes {
        world.write(format!("src/{name}"), size);
    }
    let refusing = |name: &str, refused: &str| {
        let line = format!("exec /usr/lib/openssh/sftp-server -P {refused}");
        let shell = world.script(&format!("{name}.sh"), &line);
        sftp_server().allow(&world.path(name), shell.to_str().unwrap())
    };
    let copy = |config: PathBuf| {
        fs::remove_dir_all(world.dir("there")).unwrap();
        for (name, _) in sizes {
            world.text(format!("there/{name}"), "old");
        }
        let mut command = world.fastsync();
        command.args(["cp", "src/"]).arg(at_server(&world, "there")).arg("-F").arg(config);
        Running::start(&mut command).wait()
    };
    for config in [refusing("patient", "posix-rename"), plain_proftpd().config()] {
        copy(config).exits(0);
        for (name, _) in sizes {
            let [wanted, found] = ["src", "there"].map(|it| world.path(it).join(name));
            assert_same_content(&wanted, &found);
        }
        assert_eq!(tree(world.path("there")).len(), sizes.len(), "nothing else is left there");
    }
    let ran = copy(refusing("rigid", "posix-rename,rename")).exits(23);
    for (name, _) in sizes {
        ran.says(name).says("the old file is as it was");
        assert_eq!(fs::read(world.path("there").join(name)).unwrap(), b"old");
    }
    assert_eq!(tree(world.path("there")).len(), sizes.len(), "nothing else is left there");
}

/// There, and in a directory of this machine.
#[test]
fn what_nobody_came_back_for_is_cleaned_up() {
    let world = World::new();
    let left = "dir/below/.fastsync-0123456789abcdef-fedcba9876543210";
    let theirs = world.text("dir/.fastsync-notes", "not ours");
    let file = world.text("dir/file", "x");
    let here = world.path("dir").into_os_string();
    for place in [at_server(&world, "dir"), here] {
        let journal = format!("dir/.fastsync/{}/journal", "01".repeat(16));
        let is_here = !place.to_string_lossy().contains("://");
        let left = world.text(if is_here { &journal } else { left }, "left");
        let clean = |flags: &[&str]| {
            let flags = flags.iter().map(OsString::from);
            run(&world, ["clean".into(), place.clone()].into_iter().chain(flags)).exits(0)
        };
        assert!(clean(&["--delete"]).out.is_empty(), "it may still be under way");
        let listed = String::from_utf8_lossy(&clean(&["--older-than=0s"]).out).into_owned();
        assert!(listed.lines().count() == 1 && listed.contains(".fastsync"), "{listed}");
        clean(&["--older-than=0s", "--delete"]);
        assert!(!left.exists() && theirs.exists() && file.exists());
        assert!(clean(&["--older-than=0s"]).out.is_empty());
    }
}

#[test]
fn what_goes_wrong_is_told() {
    let world = World::new();
    world.text("file", "x");
    let port = free_port();
    let refused = run(&world, ["cp", "file", &format!("sftp://127.0.0.1:{port}/x")]).exits(30);
    refused.says("Connection refused");
    let mut command = world.fastsync();
    command
        .args(["cp", "file", "sftp://testhost/x", "-F"])
        .arg(sftp_server().config_of_a_stranger());
    Running::start(&mut command).wait().exits(44).says("Permission denied");
    let ran = run(&world, ["cp".into(), at_server(&world, "nowhere"), "x".into()]);
    assert_ne!(ran.status.code(), Some(0));
    ran.says("nowhere");
    assert!(!world.path("x").exists());
    let ran = run(&world, ["push", "file", "sftp://testhost/x"]).exits(1);
    ran.says("fastsync cp");
    let ran = run(&world, ["cp", "file", "sftp://u:secret@testhost/x"]).exits(1);
    ran.says("password");
}

/// As many sites have it.
#[test]
fn a_host_that_runs_nothing_else_is_reached_all_the_same() {
    let world = World::new();
    plant(&world);
    let shell = world.script(
        "shell",
        "case $SSH_ORIGINAL_COMMAND in */sftp-server) exec $SSH_ORIGINAL_COMMAND;; esac\n\
         echo This service allows sftp connections only.; exit 1",
    );
    let config = sftp_server().allow(&world.path("key"), shell.to_str().unwrap());
    let run = |arguments: &[&OsStr]| {
        let mut command = world.fastsync();
        command.args(arguments).arg("-F").arg(&config);
        Running::start(&mut command).wait()
    };
    let there = world.remote("there");
    run(&["push".as_ref(), "src/".as_ref(), &there]).exits(0).says("SFTP");
    assert_same(world.path("src"), world.path("there"));
    let contents = world.remote("there/");
    let ran = run(&["pull".as_ref(), &contents, "back".as_ref(), "--json".as_ref()]);
    assert_eq!(ran.exits(0).summary()["transport"], "sftp");
    assert_same(world.path("src"), world.path("back"));
    let again = world.remote("again");
    let ran = run(&["push".as_ref(), "src/".as_ref(), &again, "--no-fallback".as_ref()]);
    ran.exits(42).says("sftp connections only");
    assert!(!world.path("again").exists());
}
