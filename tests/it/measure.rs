//! `doctor` and `bench` over a real sshd: all parts are there, nothing is left, and a restricted key
//! can do no more than before.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::sshd::sshd;
use super::support::{FASTSYNC, Ran, Running, World, until};

/// Quick, as far as that goes.
const BRIEF: [&str; 4] = ["--duration=1", "--size=1M", "-q", "--json"];

/// `doctor` or `bench` of a directory, with one of its own at this end.
fn measure(world: &World, verb: &str, flags: &[&str]) -> Ran {
    world.dir("there");
    world.dir("here");
    let there = world.remote("there").into_string().unwrap();
    let arguments = [&[verb, &there, "--local-dir=here"], &BRIEF[..], flags].concat();
    world.run_ssh(arguments)
}

#[track_caller]
fn assert_empty(directory: &Path) {
    let left: Vec<_> = fs::read_dir(directory).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// MEASURE-3, MEASURE-4, MEASURE-6: every part of a diagnosis has a plausible value.
#[test]
fn a_diagnosis_has_every_part() {
    let world = World::new();
    let ran = measure(&world, "doctor", &["-p3"]).exits(0);
    let diagnosis = ran.summary();
    assert_eq!(diagnosis["complete"], true, "{diagnosis}");
    assert!(number(&diagnosis["ssh"]["login_seconds"]) > 0.0);
    assert_eq!(diagnosis["agent"]["version"], diagnosis["version"]);
    assert_eq!(diagnosis["agent"]["protocol"], diagnosis["protocol"]);
    assert!(diagnosis["agent"]["path"].as_str().unwrap().ends_with("fastsync"));
    // It is one machine with one clock.
    let (ahead, uncertain) =
        (&diagnosis["clock"]["ahead_seconds"], &diagnosis["clock"]["uncertainty_seconds"]);
    assert!(number(ahead).abs() <= number(uncertain) + 0.1, "{diagnosis}");
    assert!(number(&diagnosis["round_trip"]["ssh_seconds"]) > 0.0);
    assert!(number(&diagnosis["round_trip"]["data_seconds"]) > 0.0);
    let ways = diagnosis["ways"].as_array().unwrap();
    assert_eq!(ways.len(), 6, "{diagnosis}");
    assert!(ways.iter().all(|way| way["works"] == true), "{diagnosis}");
    assert_eq!(diagnosis["measured"]["transport"], "tcp+tls");
    let runs = diagnosis["runs"].as_array().unwrap();
    let found: Vec<_> = runs.iter().map(|run| (&run["direction"], &run["streams"])).collect();
    let (to, from) = (&Value::from("to_host"), &Value::from("from_host"));
    let (one, three) = (&Value::from(1), &Value::from(3));
    assert_eq!(found, [(to, one), (to, three), (from, one), (from, three)]);
    assert!(runs.iter().all(|run| number(&run["bytes_per_second"]) > 0.0), "{diagnosis}");
    for end in ["here", "there"] {
        let (system, disk) = (&diagnosis["systems"][end], &diagnosis["disks"][end]);
        assert!(number(&system["hash_bytes_per_second"]) > 0.0, "{system}");
        for name in ["tcp_rmem", "tcp_wmem", "tcp_congestion_control"] {
            let name = format!("net.ipv4.{name}");
            assert!(system["settings"][&name].is_string(), "no {name}: {system}");
        }
        assert_eq!(disk["written"], 1 << 20, "{disk}");
        assert!(number(&disk["small_files_per_second"]) > 0.0, "{disk}");
        assert!(number(&disk["read_bytes_per_second"]) > 0.0, "{disk}");
        assert_empty(&world.path(end));
    }
    let recommended = diagnosis["recommended"].as_str().unwrap();
    assert!(recommended.starts_with("fastsync push -p"), "{recommended}");
    assert!(
        recommended.contains(" -F ") && recommended.contains(" SRC testhost:"),
        "{recommended}"
    );
}

#[test]
fn a_diagnosis_is_for_people_too() {
    let world = World::new();
    let arguments = ["doctor", "testhost", "--duration=1", "--size=1M", "-p1"];
    let ran = world.run_ssh(arguments).exits(0);
    let text = String::from_utf8(ran.out).unwrap();
    for label in ["ssh ", "agent ", "clock ", "round trip ", "works ", "disk ", "recommended "] {
        assert!(text.lines().any(|line| line.starts_with(label)), "no {label:?} in:\n{text}");
    }
}

/// MEASURE-6, MEASURE-7: each of the six routes with each number of streams, over each way.
#[test]
fn a_benchmark_has_every_route() {
    let world = World::new();
    for transport in ["--transport=auto", "--transport=ssh"] {
        let ran = measure(&world, "bench", &["-p2", transport]).exits(0);
        let lines = ran.json();
        let (summary, runs) = lines.split_last().unwrap();
        assert_eq!((&summary["event"], &summary["complete"]), (&"benchmark".into(), &true.into()));
        assert_eq!(runs.len(), 12, "{runs:?}");
        for run in runs {
            assert_eq!(run["event"], "run");
            assert!(number(&run["bytes"]) > 0.0 && number(&run["bytes"]) <= 1_048_576.0, "{run}");
        }
        let to_disk = runs.iter().filter(|run| run["to"] == "disk").count();
        let from_disk = runs.iter().filter(|run| run["from"] == "disk").count();
        assert_eq!((to_disk, from_disk), (4, 4));
        assert!(summary["bottleneck"]["to_host"].is_string(), "{summary}");
        for end in ["here", "there"] {
            assert_empty(&world.path(end));
        }
    }
}

#[test]
fn what_cannot_be_measured_has_its_exit_code() {
    let world = World::new();
    let mut command = world.fastsync();
    command.args(["doctor", "testhost", "--json", "-q", "-F"]).arg(sshd().config_of_a_stranger());
    let ran = Running::start(&mut command).wait().exits(44);
    let lines = ran.json();
    assert_eq!((&lines[0]["complete"], &lines[1]["exit_code"]), (&false.into(), &44.into()));
    let ran = world.run_ssh(["bench", "testhost", "--agent-path=/nowhere/fastsync"]).exits(42);
    assert!(ran.out.is_empty());
    world.run_ssh(["doctor", "./here"]).exits(1).says("is on this machine");
    // MEASURE-1: a directory that is not there is not made.
    let there = world.remote("none").into_string().unwrap();
    let ran = world.run_ssh([&["bench", &there, "-p1"], &BRIEF[..]].concat()).exits(23);
    ran.says("cannot open");
    assert!(!world.path("none").exists());
}

/// MEASURE-5: nothing is left when the client is killed while the agent writes.
#[test]
fn a_killed_client_leaves_nothing() {
    let world = World::new();
    let (there, _) = (world.dir("there"), world.dir("here"));
    let mut command = world.fastsync();
    command.args(["bench", "-p1", "--duration=5", "--local-dir=here", "-q", "-F"]);
    command.arg(sshd().config()).arg(world.remote("there"));
    let running = Running::start(&mut command);
    let patience = Duration::from_mins(1);
    assert!(until(patience, || is_written_to(&there)), "nothing is written");
    running.signal(Signal::KILL);
    assert!(running.wait().was_killed());
    assert!(until(Duration::from_secs(20), || !is_written_to(&there)), "it goes on");
    assert_empty(&there);
    assert_empty(&world.path("here"));
}

/// Whether any process has a file without a name open in the directory.
fn is_written_to(directory: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let files = processes.filter_map(|it| fs::read_dir(it.path().join("fd")).ok());
    let mut targets = files.flatten().flatten().filter_map(|it| fs::read_link(it.path()).ok());
    targets.any(|target| target.starts_with(directory) && target != directory)
}

/// SEC-10, MEASURE-3, MEASURE-4, MEASURE-7: measuring gives a restricted key no right.
#[test]
fn a_restricted_key_can_do_no_more() {
    let world = World::new();
    let root = world.dir("keys/root");
    let bench = |flags: &str, arguments: &[&str]| {
        let key = world.path(format!("keys/key{}", flags.trim_start_matches('-')));
        let command = format!("{FASTSYNC} agent --root {} {flags}", root.display());
        let config = match key.with_extension("config") {
            config if config.exists() => config,
            _ => sshd().allow(&key, &command),
        };
        let mut command = world.fastsync();
        command.args(arguments).args(BRIEF).args(["-p1", "-F"]).arg(config);
        Running::start(&mut command).wait()
    };
    let read = bench("--read-only", &["doctor", "testhost"]).exits(0).summary();
    let why = read["disks"]["there"]["error"].as_str().unwrap();
    assert!(why.contains("only read (--read-only)"), "{why}");
    assert_eq!(read["systems"]["there"]["program"], "");
    assert_eq!(read["systems"]["there"]["directory"], "");
    let ran = bench("--read-only", &["bench", "testhost"]).exits(23);
    ran.says("only read (--read-only)");
    let rows = |ran: &Ran| ran.json().iter().filter(|line| line["event"] == "run").count();
    assert_eq!(rows(&ran), 4, "memory both ways, and this host's disk");
    let ran = bench("--write-only", &["bench", "testhost"]).exits(23);
    ran.says("only write (--write-only)");
    assert_eq!(rows(&ran), 5);
    let written = bench("--write-only", &["doctor", "testhost"]).exits(0).summary();
    assert_eq!(written["disks"]["there"]["written"], 1 << 20);
    for outside in ["testhost:/tmp", "testhost:.."] {
        let ran = bench("--write-only", &["doctor", outside]);
        let refused = ran.status.code() == Some(11);
        let is_not_measured =
            || ran.summary()["disks"]["there"]["error"].as_str().unwrap().contains("denied");
        assert!(refused || is_not_measured(), "{outside}: {ran:?}");
    }
    assert_empty(&root);
}
