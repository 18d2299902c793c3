//! `retry`: what failed is done again, and nothing else.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::Value;

use super::support::{QUICK, Running, World, set_mode};

/// The lines of a report.
#[track_caller]
fn report(world: &World, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(world.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn retry_does_again_what_failed_and_nothing_else() {
    let world = World::new();
    world.text("src/good", "good");
    world.text("src/dir/bad", "bad");
    world.text("src/worse", "worse");
    world.text("dst/gone", "x");
    world.text("dst/dir/bad/in the way", "x");
    world.text("dst/worse/in the way", "x");
    let report = |name: &str| report(&world, name);
    world.run(["cp", "src/", "dst", "--report", "report", "-q"]).exits(23);
    let lines = report("report");
    assert_eq!((lines.len(), &lines[0]["job"]["arguments"][1]), (5, &"src/".into()));
    assert_eq!(lines[4], serde_json::json!({ "end": { "complete": true } }));

    fs::remove_dir_all(world.path("dst/dir/bad")).unwrap();
    world.text("src/later", "is none of its business");
    // From elsewhere: the command runs where it ran.
    let mut command = world.fastsync();
    command.current_dir(world.path("home")).args(["retry", "-v", "../report"]);
    Running::start(&mut command).wait().exits(23).says("worse");
    assert!(world.path("dst/dir/bad").is_file() && !world.path("dst/later").exists());
    let outcomes: Vec<_> = report("report").iter().map(|it| it["outcome"].clone()).collect();
    assert_eq!(outcomes[1..3], ["done", "failed"]);

    fs::remove_dir_all(world.path("dst/worse")).unwrap();
    world.run(["retry", "-n", "report"]).exits(0);
    assert!(!world.path("dst/worse").exists());
    world.run(["retry", "report", "--report", "another"]).exits(0);
    assert_eq!(fs::read(world.path("dst/worse")).unwrap(), b"worse");
    assert!(report("another")[1]["path"] == "worse" && report("report").len() == 4);
    world.run(["retry", "another"]).exits(0).says("nothing of another failed");
    assert!(world.path("dst/gone").exists());
    world.run(["retry", "missing"]).exits(11).says("cannot read the report missing");
}

/// Its report has no end, so that all of it is done again, and nothing is deleted.
#[test]
fn a_run_that_was_cut_off_is_retried_as_a_whole() {
    let world = World::new();
    world.text("src/a", "a");
    world.text("dst/gone", "x");
    let ran = world.run(["sync", "-n", "--delete", "src/", "dst", "--report", "report"]).exits(0);
    assert!(!ran.lines().is_empty());
    let text = fs::read_to_string(world.path("report")).unwrap();
    let first = text.lines().next().unwrap().replace("\"-n\",", "");
    world.text("report", format!("{first}\n{{\"path\":\"a\",\"outc"));
    world.run(["retry", "report"]).exits(0);
    assert_eq!(fs::read(world.path("dst/a")).unwrap(), b"a");
    assert!(world.path("dst/gone").exists());
}

/// The report has the new name, which the source does not have.
#[test]
fn a_renamed_file_that_could_not_be_read_is_done_again() {
    for verb in ["cp", "push", "pull"] {
        let world = World::new();
        world.text("src/ff", "x");
        set_mode(&world.path("src/ff"), 0);
        let mut command = world.fastsync_without_rights();
        command.args([verb, "src/ff", "dst/new", "--report", "r"]).args(QUICK);
        Running::start(&mut command).wait().exits(23);
        let lines = report(&world, "r");
        assert_eq!(lines.last().unwrap()["end"]["complete"], true);
        let path = if verb == "push" { "ff" } else { "new" };
        assert_eq!((&lines[1]["path"], &lines[1]["outcome"]), (&path.into(), &"failed".into()));
        set_mode(&world.path("src/ff"), 0o600);
        world.run(["retry", "r"]).exits(0);
        assert_eq!(fs::read(world.path("dst/new")).unwrap(), b"x", "{verb}");
    }
}

/// That it was empty is about all of it.
#[test]
fn an_empty_source_that_was_filled_since_is_done_again() {
    for verb in [&["sync"][..], &["sync", "--verify"]] {
        let world = World::new();
        world.dir("src");
        world.text("dst/precious", "x");
        let ran = world.run(verb.iter().chain(&["--delete", "src/", "dst", "--report", "r"]));
        ran.exits(23).says("the source is empty");
        assert_eq!(report(&world, "r")[1]["about"], "run");
        world.text("src/new", "y");
        world.run(["retry", "r"]).exits(0);
        assert_eq!(fs::read(world.path("dst/new")).unwrap(), b"y");
        assert!(world.path("dst/precious").exists());
    }
}

/// It never deletes, says so, and forgets nothing.
#[test]
fn a_deletion_that_failed_is_named_and_stays_in_the_report() {
    let world = World::new();
    world.text("src/file", "x");
    world.text("dst/gone/file", "x");
    world.text("dst/bad/in the way", "x");
    let mut command = world.command("unshare");
    let script = r#"mount --bind dst/gone dst/gone && exec "$0" "$@""#;
    command.args(["--mount", "sh", "-c", script]).arg(world.fastsync().get_program());
    command.args(["sync", "--delete", "--exclude=bad", "--report=r", "src/", "dst"]).args(QUICK);
    Running::start(&mut command).wait().exits(23).says("cannot remove gone");
    let lines = report(&world, "r");
    let line = lines.iter().find(|line| line["path"] == "gone").unwrap();
    assert_eq!(line["about"], "deletion");
    world.text("src/bad", "x");
    let before = fs::read(world.path("r")).unwrap();
    world.run(["retry", "r"]).exits(23).says("1 deletion that failed then");
    assert_eq!(fs::read(world.path("r")).unwrap(), before);
    assert!(world.path("dst/gone").exists());

    // With something else to do, that is done, and the deletion stays to be told.
    let end = r#"{"path":"bad","outcome":"failed"}"#;
    let text = String::from_utf8(before).unwrap().replace("{\"end\"", &format!("{end}\n{{\"end\""));
    world.text("r", text.replace("\"--exclude=bad\",", ""));
    let ran = world.run(["retry", "--json", "r"]).exits(23);
    ran.says("1 deletion that failed then");
    assert_eq!(ran.json().last().unwrap()["exit_code"], 23);
    assert!(world.path("dst/bad").is_file() && world.path("dst/gone").exists());
    world.run(["retry", "r"]).exits(23).says("1 deletion that failed then");
}

#[test]
fn a_list_of_files_means_the_same_again() {
    let world = World::new();
    world.text("src/dir/below", "x");
    world.text("src/file", "x");
    world.text("list", "dir\nfile\n");
    world.text("dst/dir", "in the way");
    world.text("dst/file/in the way", "x");
    world.run(["cp", "--files-from=list", "src", "dst", "--report", "r"]).exits(23);
    fs::remove_dir_all(world.path("dst")).unwrap();
    let text = fs::read_to_string(world.path("r")).unwrap();
    let failed = r#"{"path":"dir","kind":"directory","outcome":"failed"}"#;
    world.text("r", text.replace("{\"end\"", &format!("{failed}\n{{\"end\"")));
    world.run(["retry", "r"]).exits(0);
    assert!(world.path("dst/dir").is_dir() && !world.path("dst/dir/below").exists());
    assert!(world.path("dst/file").is_file());
}

#[test]
fn a_hard_link_that_failed_is_a_hard_link_again() {
    for verb in [&["cp"][..], &["push"], &["pull"], &["cp", "--verify"]] {
        let world = World::new();
        world.text("src/a", "x");
        fs::hard_link(world.path("src/a"), world.path("src/b")).unwrap();
        for name in ["a", "b"] {
            world.text(std::path::Path::new("dst").join(name).join("in the way"), "x");
            let flags = ["-aH", "src/", "dst", "--report", "r"];
            world.run(verb.iter().chain(&flags)).exits(23);
            fs::remove_dir_all(world.path("dst").join(name)).unwrap();
            world.run(["retry", "r"]).exits(0);
            let [a, b] = ["a", "b"].map(|it| fs::metadata(world.path("dst").join(it)).unwrap());
            assert_eq!((a.ino(), a.nlink()), (b.ino(), 2), "{verb:?} {name}");
            fs::remove_dir_all(world.path("dst")).unwrap();
        }
    }
}
