//! Disks that are full, journals that rot, temporary files that somebody swapped.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use rustix::process::Signal;

use crate::common::{Ground, PROGRAM, Run, signal, until, written};

const LARGE: usize = 32 << 20;

/// A run that was killed halfway, so that there are a journal and a temporary file.
fn interrupted() -> Ground {
    let ground = Ground::with_files(LARGE);
    let mut run = Run::start(ground.push(&["-p", "2", "--retries", "0"]));
    run.event("connected");
    let (agent, dst) = (run.agent(), ground.path("dst"));
    until("data", || (written(&dst) >= 8 << 20).then_some(())).expect("nothing comes");
    signal(agent, Signal::KILL);
    run.end();
    ground
}

fn journal(ground: &Ground) -> std::path::PathBuf {
    let mut jobs = fs::read_dir(ground.path("dst/.fastsync")).unwrap();
    jobs.next().unwrap().unwrap().path().join("journal")
}

/// JRN-3, JRN-7, T36, T37.
#[test]
fn a_journal_that_rots_costs_time_and_nothing_else() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 5] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(bytes.len() / 2 + 3),
        |bytes| bytes[30] ^= 1,
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle..].fill(0xff);
        },
        |bytes| bytes.extend([0x5a; 5000]),
    ];
    for damage in damages {
        let ground = interrupted();
        let path = journal(&ground);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        ground.finish(&[]);
    }
}

/// JRN-6, JRN-8, SEC-9, T38.
#[test]
fn a_temporary_file_that_was_swapped_is_not_used() {
    for swap in 0..3 {
        let ground = interrupted();
        fs::write(ground.path("canary"), b"alive").unwrap();
        let items = fs::read_dir(ground.path("dst")).unwrap().map(|item| item.unwrap().path());
        let is_temp = |path: &std::path::PathBuf| {
            path.is_file() && path.to_string_lossy().contains("/.fastsync-")
        };
        let temps: Vec<_> = items.filter(is_temp).collect();
        assert!(!temps.is_empty());
        for temp in temps {
            let data = fs::read(&temp).unwrap();
            match swap {
                0 => {
                    fs::remove_file(&temp).unwrap();
                    symlink("../canary", &temp).unwrap();
                }
                1 => fs::write(ground.path("other"), vec![7; data.len()])
                    .and_then(|()| fs::rename(ground.path("other"), &temp))
                    .unwrap(),
                _ => fs::write(&temp, &data[..data.len() / 2]).unwrap(),
            }
        }
        let summary = ground.finish(&[]);
        assert_eq!(summary["bytes_resumed"], 0, "{swap}: {summary}");
        assert_eq!(fs::read(ground.path("canary")).unwrap(), b"alive");
    }
}

/// T26. (Of the journal's rules on one writer only the lock: there are no epochs yet.)
#[test]
fn two_of_the_same_job_do_not_disturb_each_other() {
    let ground = Ground::with_files(LARGE);
    let mut both = [Run::start(ground.push(&[])), Run::start(ground.push(&[]))];
    let ends = both.each_mut().map(|run| run.end());
    for (status, lines) in &ends {
        assert!(matches!(status.code(), Some(0 | 5)), "{status}: {lines:?}");
    }
    assert!(ends.iter().any(|(status, _)| status.success()));
    ground.assert_equal();
}

/// T27, T28: exit 41, and more room is all it takes.
#[test]
fn a_full_destination_is_exit_41_and_the_next_run_goes_on() {
    let ground = Ground::with_files(LARGE);
    fs::create_dir(ground.path("dst")).unwrap();
    let script = r#"
        mount -t tmpfs -o "$LIMIT" none "$1/dst" || exit 77
        "$0" push -q -p 2 -c 256K --retries 0 "$1/src/" "$1/dst" 2> "$1/first"
        echo $? > "$1/code"
        mount -o remount,size=200m,nr_inodes=10000 "$1/dst" || exit 78
        "$0" push -q -p 2 -c 256K --json "$1/src/" "$1/dst" > "$1/second" || exit 79
        diff -r "$1/src" "$1/dst"
    "#;
    for limit in ["size=20m", "size=100m,nr_inodes=15"] {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, PROGRAM]).arg(ground.0.path());
        let output = command.env("LIMIT", limit).output().unwrap();
        assert_ne!(output.status.code(), Some(77), "mounting needs root: {output:?}");
        assert!(output.status.success(), "{limit}: {output:?}");
        let read = |name| fs::read_to_string(ground.path(name)).unwrap();
        assert_eq!(read("code").trim(), "41", "{limit}: {}", read("first"));
        assert!(read("first").contains("make room"), "{limit}: {}", read("first"));
        let second: serde_json::Value =
            serde_json::from_str(read("second").lines().last().unwrap()).unwrap();
        assert!(
            limit.contains("nr_inodes") || second["bytes_resumed"].as_u64() > Some(0),
            "{second}"
        );
    }
}
