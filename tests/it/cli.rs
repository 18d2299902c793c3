//! What the user types and reads: flags, configuration, output, exit codes.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::support::{FASTSYNC, PATIENCE, Running, World, assert_same, number, tree, until};

#[test]
fn help_and_version_are_data_and_no_error() {
    let world = World::new();
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["push", "--help"],
        &["pull", "-h"],
        &["cp", "--help"],
        &["sync", "--help"],
        &["ls", "--help"],
        &["check", "--help"],
        &["manifest", "--help"],
        &["retry", "--help"],
    ] {
        let ran = world.run(arguments).exits(0);
        assert!(ran.err.is_empty() && ran.out.len() > 200, "{ran:?}");
    }
    let ran = world.run(["--version"]).exits(0);
    assert_eq!(ran.out, format!("fastsync {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    let help = String::from_utf8(world.run(["push", "--help"]).out).unwrap();
    for flag in ["--streams", "--resume", "--encrypt", "--port-range", "--agent-path", "--report"] {
        assert!(help.contains(flag), "{flag}");
    }
    assert!(!help.contains("--delete"), "push deletes nothing");
    let help = String::from_utf8(world.run(["sync", "--help"]).out).unwrap();
    for flag in ["--delete", "--max-delete", "--archive", "--exclude", "--checksum", "--stats"] {
        assert!(help.contains(flag), "{flag}");
    }
}

#[test]
fn what_makes_no_sense_ends_with_1_and_changes_nothing() {
    let world = World::new();
    world.text("file", "x");
    world.text("bad.toml", "[global]\nstreems = 4\n");
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["move", "file", "dst"], "unrecognized"),
        (&["push", "--frobnicate", "file", "dst"], "--frobnicate"),
        (&["push", "file"], "a source and a destination"),
        (&["push", "a:x", "b:y"], "`fastsync cp` or `fastsync sync`"),
        (&["pull", "a:x", "b:y"], "`fastsync cp` or `fastsync sync`"),
        (&["push", "a:x", "dst"], "fastsync pull"),
        (&["pull", "file", "a:x"], "fastsync push"),
        (&["pull", "a:x", "b:y", "dst"], "one host"),
        (&["push", "-c", "10M", "file", "dst"], "the nearest are 8M and 16M"),
        (&["push", "-p", "0", "file", "dst"], "streams"),
        (&["push", "-p", "300", "file", "dst"], "streams"),
        (&["push", "--port-range", "9:8", "file", "dst"], "port-range"),
        (&["push", "--profile", "warp", "file", "dst"], "there is no profile"),
        (&["push", "--config", "missing.toml", "file", "dst"], "missing.toml"),
        (&["push", "--config", "bad.toml", "file", "dst"], "streems"),
        (&["push", "--no-resume", "--resume", "file", "dst"], "cannot be used with"),
        (&["push", "file", "s3://bucket/x"], "`fastsync cp` or `fastsync sync`"),
        (&["push", "file", "-oProxyCommand=x:y"], "destination"),
        (&["push", "file", "ho;st:x"], "signs of a shell"),
        (&["cp", "--delete", "file", "dst"], "--delete"),
        (&["push", "--delete", "file", "dst"], "--delete"),
        (&["sync", "--max-delete=1", "file", "dst"], "without --delete"),
        (&["sync", "--delete", "--files-from=file", "home", "dst"], "whole directories"),
        (&["cp", "--files-from=missing", "home", "dst"], "cannot read the list of files missing"),
        (&["cp", "--exclude-from=missing", "file", "dst"], "cannot read filter rules from missing"),
        (&["cp", "--inplace", "--backup", "file", "dst"], "--inplace"),
        (&["cp", "--remove-source-files", "--durability=none", "file", "dst"], "durability"),
        (&["cp", "--chmod=u+q", "file", "dst"], "no change of permissions"),
        (&["cp", "--max-size=5X", "file", "dst"], "not a size"),
        (&["cp", "--max-depth=0", "file", "dst"], "from 1 on"),
        (&["check", "file"], "two locations"),
        (&["check", "a", "b", "c"], "two locations"),
        (&["check", "home", "file"], "nor a manifest"),
        (&["retry", "file"], "does not begin with the command"),
    ];
    for (arguments, text) in cases {
        world.run(*arguments).exits(1).says(text);
        assert!(!world.path("dst").exists(), "{arguments:?}");
    }
    let mut command = world.fastsync();
    command.env("FASTSYNC_STREAMS", "many").args(["push", "file", "dst"]);
    Running::start(&mut command).wait().exits(1).says("FASTSYNC_STREAMS");
}

#[test]
fn json_is_for_programs() {
    let world = World::new();
    world.write("src/dir/large", 30_000_000);
    world.text("src/small", "x");
    let ran = world.run(["push", "src/", "dst", "--json", "--progress=json", "-v"]).exits(0);
    let data = ran.json();
    assert_eq!(data.len(), 1);
    let summary = &data[0];
    assert_eq!((number(summary, "exit_code"), number(summary, "bytes_done")), (0, 30_000_001));
    let events = ran.events();
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    // What is no data may be done before there is a way for data.
    assert_eq!(kinds.iter().filter(|kind| **kind == "connected").count(), 1);
    assert_eq!(kinds.last(), Some(&"summary"));
    // The destination's own directory has a line too.
    assert_eq!(kinds.iter().filter(|kind| **kind == "entry").count(), 4);
    let progress = events.iter().rfind(|event| event["event"] == "progress").unwrap();
    assert_eq!((number(progress, "bytes_done"), number(progress, "files_ended")), (30_000_001, 2));
    assert_eq!(progress["walk_done"], true);

    fs::remove_file(world.path("dst/small")).unwrap();
    world.text("dst/small/in the way", "");
    let ran = world.run(["push", "src/", "dst", "--json", "--progress=json"]).exits(23);
    let entry = ran.events().into_iter().find(|event| event["event"] == "entry").unwrap();
    assert_eq!((&entry["path"], &entry["outcome"]), (&"small".into(), &"failed".into()));
    assert_eq!(number(&ran.summary(), "exit_code"), 23);
    let ran = world.run(["pull", "missing", "new", "--json", "--progress=json"]).exits(11);
    assert_eq!(ran.events().pop().unwrap()["event"], "error");
    assert_eq!(number(&ran.summary(), "exit_code"), 11);
}

#[test]
fn quiet_is_silent_unless_something_fails() {
    let world = World::new();
    world.text("src/file", "x");
    let ran = world.run(["push", "-q", "src/", "dst"]).exits(0);
    assert!(ran.out.is_empty() && ran.err.is_empty(), "{ran:?}");
    world.text("src/dir", "a file");
    world.text("dst/dir/below", "");
    let ran = world.run(["push", "-q", "src/", "dst"]).exits(23);
    assert!(ran.out.is_empty() && ran.err.lines().count() == 1, "{ran:?}");
    assert!(ran.err.starts_with("fastsync: cannot replace dir"), "{ran:?}");
}

#[test]
fn verbose_names_what_is_done_and_twice_what_was_there() {
    let world = World::new();
    world.text("src/a\nb", "x");
    let ran = world.run(["push", "src/", "dst", "-v"]).exits(0);
    assert_eq!(ran.lines(), [&b"./"[..], b"a\\nb"]);
    assert!(ran.err.contains("1 entry done, 0 skipped, 0 failed"), "{ran:?}");
    assert!(world.run(["push", "src/", "dst", "-v"]).exits(0).out.is_empty());
    let ran = world.run(["push", "src/", "dst", "-vv"]).exits(0);
    assert_eq!(ran.lines(), [b"a\\nb is there already"]);
    let ran = world.run(["pull", "src/", "new", "--report", "-", "-q"]).exits(0);
    let lines = ran.json();
    assert_eq!((&lines[0]["job"]["arguments"][0], lines.len()), (&"pull".into(), 3));
    assert_eq!(lines[1]["path"], "a\nb");
}

#[test]
fn flags_prevail_over_the_environment_and_that_over_files() {
    let world = World::new();
    world.text("file", "x");
    let streams = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = world.fastsync();
        command.envs(variables.iter().copied()).args(["push", "file", "dst", "--json", "-q", "-n"]);
        number(&Running::start(command.args(flags)).wait().exits(0).summary(), "streams")
    };
    assert_eq!(streams(&[], &[]), 8);
    let config = "[global]\nparallel_streams = 2\n[profiles.mine]\nparallel_streams = 3\n";
    world.text("home/.config/fastsync/config.toml", config);
    assert_eq!(streams(&[], &[]), 2);
    assert_eq!(streams(&[], &["--profile", "mine"]), 3);
    assert_eq!(streams(&[("FASTSYNC_PROFILE", "mine")], &[]), 3);
    assert_eq!(streams(&[("FASTSYNC_STREAMS", "")], &[]), 2);
    assert_eq!(streams(&[("FASTSYNC_STREAMS", "4")], &["--profile", "mine"]), 4);
    assert_eq!(streams(&[("FASTSYNC_STREAMS", "4")], &["--streams", "5"]), 5);
    assert_eq!(streams(&[("FASTSYNC_CONFIG", "/dev/null")], &[]), 8);
    world.text("other.toml", "[global]\nparallel_streams = 6\n");
    assert_eq!(streams(&[("FASTSYNC_CONFIG", "/dev/null")], &["--config", "other.toml"]), 6);
    assert_eq!(streams(&[("XDG_CONFIG_HOME", "")], &[]), 2, "the default is below the home");
}

#[test]
fn profiles_go_by_both_names() {
    let world = World::new();
    world.write_everything("src", &[0, 100_000]);
    for (name, streams) in [
        ("lan", 32),
        ("lan_optimized", 32),
        ("wan", 8),
        ("wan_optimized", 8),
        ("small-files", 64),
        ("small_files_optimized", 64),
        ("low-memory", 4),
        ("low_memory", 4),
        ("max-throughput", 64),
        ("maximum_throughput", 64),
    ] {
        let flags = ["--profile", name, "--durability=none"];
        let summary = world.summary(["push", "src/", name].into_iter().chain(flags));
        assert_eq!(number(&summary, "streams"), streams, "{name}");
        assert_same(world.path("src"), world.path(name));
    }
}

#[test]
fn output_that_cannot_be_written_ends_with_11() {
    let world = World::new();
    world.text("src/file", "x");
    let ran = world.run(["push", "src/", "dst", "--report", "missing/report"]).exits(11);
    ran.says("cannot write the report missing/report");
    assert!(!world.path("dst").exists());
    world.run(["push", "src/", "dst", "--report", "/dev/full"]).exits(11).says("/dev/full");
    let mut command = Command::new(FASTSYNC);
    command
        .current_dir(world.path(""))
        .env("HOME", world.path("home"))
        .env_remove("XDG_CONFIG_HOME");
    let full = File::options().write(true).open("/dev/full").unwrap();
    command.args(["push", "src/", "new", "--json"]).stdout(full).stderr(Stdio::null());
    assert_eq!(command.status().unwrap().code(), Some(11));
    assert_same(world.path("src"), world.path("new"));
}

/// ENTRY-6, ENTRY-7, ENTRY-9: a file that is another each time it is read is begun anew twice, then
/// withdrawn, and never put in place. The kernel has such files: they are longer or shorter than
/// they say.
#[test]
fn files_that_change_each_time_they_are_read_end_with_24() {
    let world = World::new();
    world.text("calm", "x");
    for verb in ["push", "pull"] {
        let files = [verb, "/proc/version", "/sys/class/net/lo/mtu", "calm", verb];
        let ran = world.run_json(files.into_iter().chain(["-c", "64K", "--pack-threshold", "1K"]));
        let ran = ran.exits(24);
        ran.says("version changed while it was read").says("mtu changed while it was read");
        let found = tree(world.path(verb));
        assert_eq!(found.keys().collect::<Vec<_>>(), [Path::new("calm")]);
    }
}

/// ENTRY-9: what is appended to while it is read arrives as it was at one time, or not at all.
#[test]
fn a_file_that_grows_all_the_time_arrives_of_one_piece_or_not_at_all() {
    for verb in ["push", "pull"] {
        let world = World::new();
        let path = world.write("src/grows", 3_000_000);
        let mut file = File::options().append(true).open(&path).unwrap();
        let is_over = AtomicBool::new(false);
        let ran = thread::scope(|scope| {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    file.write_all(b"more").unwrap();
                }
            });
            let mut command = world.fastsync();
            command.args([verb, "src/", "dst", "-c", "64K", "--report", "report", "-q"]);
            let mut running = Running::start(&mut command);
            until(PATIENCE, || running.is_over());
            is_over.store(true, Ordering::Relaxed);
            running.wait()
        });
        let report = fs::read_to_string(world.path("report")).unwrap();
        let line = report.lines().nth(1).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if ran.status.success() {
            let arrived = fs::read(world.path("dst/grows")).unwrap();
            assert_eq!(arrived.len() as u64, number(&line, "size"));
            assert!(fs::read(&path).unwrap().starts_with(&arrived));
        } else {
            assert_eq!(ran.exits(24).out, b"");
            assert!(!world.path("dst/grows").exists());
        }
    }
}

#[test]
fn an_agent_without_a_client_ends() {
    let world = World::new();
    let ran = world.run(["agent"]);
    assert!(!ran.status.success() && ran.out.starts_with(b"\0\xf5FSYNC\x01\n"), "{ran:?}");
}
