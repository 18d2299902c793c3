//! What is removed: at the destination what is not at the source, and at the source what arrived.

use super::scene::Scene;

fn with_more() -> Scene {
    Scene::new(|site| {
        site.files(&["src/kept", "src/dir/kept", "src/dir/src-only", "src/keep.o"]);
        site.files(&["dst/kept", "dst/dir/kept", "dst/dir/more", "dst/dir/deep/er/more"]);
        site.files(&["dst/more", "dst/more.o", "dst/gone/file", "dst/gone/file.o"]);
        site.files(&["dst/excluded-dir/file", "dst/dir/a.o", "outside/file"]);
        site.dir("dst/empty/in/empty");
        site.symlink("../outside", "dst/link");
        site.fifo("dst/fifo");
        site.file("dst/closed/file", "");
        site.mode("dst/closed", 0o500);
    })
}

#[test]
fn without_delete_nothing_is_removed() {
    with_more().sync(&["src/", "dst"]).exit(0);
}

/// DEL-1.
#[test]
fn delete_removes_what_is_not_at_the_source() {
    let scene = with_more();
    scene.sync(&["--delete", "src/", "dst"]).exit(0);
    scene.holds("dst", &["dir/", "dir/kept", "dir/src-only", "keep.o", "kept"]);
    scene.holds("outside", &["file"]);
}

/// DEL-1.
#[test]
fn what_is_excluded_is_not_deleted_unless_asked_for() {
    for flags in [
        &["--delete", "--exclude=*.o"][..],
        &["--delete-excluded", "--exclude=*.o"],
        &["--delete", "--delete-excluded", "--exclude=*.o", "--exclude=/excluded-dir"],
        &["--delete", "--exclude=/excluded-dir/"],
        &["--delete", "--exclude=/gone/*"],
        &["--delete", "--exclude=/dir/"],
        &["--delete-excluded", "--exclude=/dir/"],
        &["--delete", "--include=*/", "--include=kept", "--exclude=*"],
        &["--delete-excluded", "--include=*/", "--include=kept", "--exclude=*"],
        &["--delete", "--max-size=3"],
    ] {
        with_more().sync(&[flags, &["src/", "dst"]].concat());
    }
}

#[test]
fn protect_and_risk_rule_what_is_deleted_alone() {
    for flags in [
        &["--delete", "--filter=P *.o"][..],
        &["--delete", "--filter=protect /gone/"],
        &["--delete", "--filter=R /gone/**", "--filter=P /gone/**", "--filter=P /more"],
        &["--delete", "--filter=risk more.o", "--filter=P *.o"],
        &["--delete", "--filter=H *.o"],
        &["--delete", "--filter=hide *.o", "--filter=P a.o"],
        &["--delete", "--filter=S keep.o", "--filter=H *.o"],
        &["--delete", "--filter=-s *.o"],
        &["--delete", "--filter=-r *.o"],
        &["--delete-excluded", "--filter=-r *.o", "--exclude=more"],
        &["--delete-excluded", "--filter=P *.o", "--exclude=kept"],
    ] {
        with_more().sync(&[flags, &["src/", "dst"]].concat());
    }
}

#[test]
fn delete_says_what_it_does_and_a_dry_run_the_same() {
    let lines = [
        "*deleting   closed/",
        "*deleting   closed/file",
        "*deleting   dir/a.o",
        "*deleting   dir/deep/",
        "*deleting   dir/deep/er/",
        "*deleting   dir/deep/er/more",
        "*deleting   dir/more",
        "*deleting   empty/",
        "*deleting   empty/in/",
        "*deleting   empty/in/empty/",
        "*deleting   excluded-dir/",
        "*deleting   excluded-dir/file",
        "*deleting   fifo",
        "*deleting   gone/",
        "*deleting   gone/file",
        "*deleting   gone/file.o",
        "*deleting   link",
        "*deleting   more",
        "*deleting   more.o",
    ];
    let scene = with_more();
    let flags = ["--delete", "--existing", "--omit-dir-times", "src/", "dst"];
    scene.sync(&[&["-ni"], &flags[..]].concat()).exit(0).print(&lines);
    scene.sync(&[&["-i"], &flags[..]].concat()).exit(0).print(&lines);
}

/// Which ones go is not said, but how many.
#[test]
fn deletions_have_a_limit() {
    for (limit, code, left) in [("0", 25, 5), ("2", 25, 3), ("4", 25, 1), ("5", 0, 0), ("9", 0, 0)]
    {
        let scene = Scene::new(|site| {
            site.files(&["src/a", "dst/1", "dst/2", "dst/3", "dst/4", "dst/5"]);
        });
        let limit = format!("--max-delete={limit}");
        scene.run("sync", &["--delete", &limit, "src/", "dst"]).exit(code);
        let there = std::fs::read_dir(scene.path("dst")).unwrap().count();
        assert_eq!(there, left + 1, "{limit}: the rest is transferred all the same");
    }
}

/// DEL-3.
#[test]
fn only_directories_that_were_transferred_are_cleaned() {
    let scene = Scene::new(|site| {
        site.files(&["src/one/a", "src/two/b", "dst/one/old", "dst/two/old", "dst/other/old"]);
        site.files(&["dst/old"]);
    });
    scene.cp(&["src/one", "dst/"]).exit(0);
    scene.sync(&["--delete", "src/one", "dst/"]).exit(0);
    let names = ["old", "one/", "one/a", "other/", "other/old", "two/", "two/old"];
    scene.holds("dst", &names);
}

/// Nothing is deleted where the source could not be read.
#[test]
fn an_error_at_the_source_stops_deletion() {
    let scene = Scene::new(|site| {
        site.files(&["src/a", "dst/old"]);
        site.symlink("itself", "src/itself");
    });
    scene.sync(&["-L", "--delete", "src/", "dst"]).exit(23);
    scene.holds("dst", &["a", "old"]);
}

/// DEL-4.
#[test]
fn an_empty_source_empties_the_destination() {
    let scene = Scene::new(|site| {
        site.dir("src");
        site.files(&["dst/a", "dst/dir/b"]);
    });
    let rsync = scene.run("sync", &["--delete", "src/", "dst"]).rsync;
    assert_eq!(rsync.status.code(), Some(0));
    scene.fastsync("sync", &["--delete", "--allow-empty-source", "src/", "dst"]).exits(0);
    scene.holds("dst", &[]);
}

#[test]
fn what_arrived_is_removed_from_the_source() {
    for flags in [
        &["-a"][..],
        &["-aH"],
        &["-n"],
        &["--exclude=*.o"],
        &["--existing"],
        &["--ignore-existing"],
        &["-u"],
        &["--max-size=100"],
    ] {
        let scene = Scene::new(|site| {
            site.files(&["src/a", "src/dir/b", "src/c.o", "src/there", "src/same", "src/older"]);
            site.noise("src/large", 300_000);
            site.dir("src/empty");
            site.symlink("a", "src/link");
            site.hard_link("src/a", "src/dir/linked");
            site.file("dst/there", "old");
            site.file("dst/same", "src/same");
            site.file("dst/older", "newer");
            site.time("src/older", 5, 5);
        });
        scene.sync(&[flags, &["--remove-source-files", "src/", "dst"]].concat()).exit(0);
    }
}
