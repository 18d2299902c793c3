//! What is replaced or deleted and kept under another name.

use super::scene::Scene;

fn with_old() -> Scene {
    Scene::new(|site| {
        site.files(&["src/changed", "src/dir/changed", "src/same", "src/new", "src/to-dir/file"]);
        site.file("src/to-file", "a file");
        site.symlink("new", "src/link");
        site.symlink("x", "src/to-link");
        for (name, text) in [
            ("changed", "old"),
            ("dir/changed", "old"),
            ("same", "src/same"),
            ("more", "more"),
            ("dir/deep/more", "more"),
            ("to-dir", "a file"),
            ("to-link", "a file"),
            ("kept~", "looks like a backup"),
        ] {
            site.file(format!("dst/{name}"), text);
        }
        site.symlink("old", "dst/link");
        site.mode("dst/changed", 0o640);
        site.owner("dst/dir/changed", 3, 4);
        site.time("dst/changed", 5, 6);
        site.file("dst/to-file", "old one");
    })
}

/// UPD-5.
#[test]
fn backups_get_the_names_that_rsync_gives_them() {
    for flags in [
        &["--backup"][..],
        &["-b"],
        &["--backup", "--suffix=.old"],
        &["--backup", "--delete"],
        &["--backup", "--delete", "--suffix=.old"],
        &["--backup", "--backup-dir=kept"],
        &["--backup", "--backup-dir=../kept"],
        &["--backup", "--backup-dir=../kept", "--delete"],
        &["--backup", "--backup-dir=../kept/deep", "--suffix=.old", "--delete"],
        &["--backup-dir=../kept", "-b", "-n"],
        &["--backup", "--existing"],
        &["--backup", "--suffix=.old", "--exclude=*.old", "--delete"],
    ] {
        with_old().sync(&[flags, &["src/", "dst"]].concat());
    }
}

#[test]
fn a_second_backup_replaces_the_first() {
    for flags in [
        &["--backup"][..],
        &["--backup", "--delete"],
        &["--backup", "--backup-dir=../kept"],
        &["--backup", "--backup-dir=../kept", "--delete"],
    ] {
        let mut scene = with_old();
        scene.sync(&[flags, &["src/", "dst"]].concat());
        scene.change(|site| {
            site.file("src/changed", "once more");
            site.remove("src/new");
        });
        scene.sync(&[flags, &["src/", "dst"]].concat());
        scene.reads("dst/changed", "once more");
    }
}

/// UPD-5.
#[test]
fn what_changes_its_type_again_and_again_is_kept_each_time() {
    let flags = ["-a", "--delete", "--backup-dir=../kept", "src/", "dst"];
    let mut scene = Scene::new(|site| {
        site.files(&["src/same", "dst/x/deep/file", "dst/x/file"]);
        site.file("src/x", "a file");
    });
    scene.sync(&flags).exit(0);
    scene.change(|site| {
        site.remove("src/x");
        site.file("src/x/other", "in a directory");
    });
    scene.sync(&flags).exit(0);
    scene.reads("kept/x", "a file");
    scene.change(|site| {
        site.remove("src/x");
        site.file("src/x", "a file again");
    });
    scene.sync(&flags).exit(0);
    scene.reads("kept/x/other", "in a directory");
}
