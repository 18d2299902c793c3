//! Which files are transferred: times, sizes, checksums, and flags that pass over some.

use super::scene::{LONG_AGO, Scene};

/// Source and destination files that stand in every relation to each other.
fn relations() -> Scene {
    Scene::new(|site| {
        for (name, source, destination, later) in [
            ("same", "12345", Some("12345"), 0),
            ("content", "12345", Some("abcde"), 0),
            ("size", "123456", Some("12345"), 0),
            ("older", "12345", Some("abcde"), 100),
            ("older-size", "123456", Some("12345"), 100),
            ("newer", "12345", Some("abcde"), -100),
            ("newer-size", "123456", Some("12345"), -100),
            ("touched", "12345", Some("12345"), 100),
            ("a-second", "12345", Some("abcde"), 1),
            ("two-seconds", "12345", Some("abcde"), 2),
            ("sub/new", "12345", None, 0),
        ] {
            site.file(format!("src/{name}"), source);
            if let Some(text) = destination {
                site.file(format!("dst/{name}"), text);
                site.time(format!("src/{name}"), LONG_AGO, 0);
                site.time(format!("dst/{name}"), LONG_AGO - later, 0);
            }
        }
        site.file("dst/more", "more");
        site.symlink("new", "src/link");
        site.symlink("old", "dst/link");
        site.dir("src/sub/empty");
        site.dir("src/empty");
    })
}

/// UPD-1, UPD-3.
#[test]
fn each_flag_chooses_what_rsync_chooses() {
    for flags in [
        &[][..],
        &["-u"],
        &["--size-only"],
        &["-I"],
        &["--checksum"],
        &["--checksum", "-u"],
        &["--existing"],
        &["--ignore-existing"],
        &["--existing", "--ignore-existing"],
        &["--existing", "--delete"],
        &["--ignore-existing", "--delete"],
        &["--modify-window=1"],
        &["--modify-window=2"],
        &["--modify-window=-1"],
        &["--size-only", "-u"],
        &["--no-times"],
        &["--no-times", "--size-only"],
        &["-n"],
        &["--inplace"],
        &["--partial-dir=.part"],
    ] {
        relations().sync(&[flags, &["src/", "dst"]].concat()).exit(0);
    }
}

/// SEL-3.
#[test]
fn sizes_have_limits() {
    for flags in [
        &["--min-size=1000"][..],
        &["--min-size=1001"],
        &["--max-size=1000"],
        &["--max-size=999"],
        &["--min-size=1K", "--max-size=1M"],
        &["--max-size=1KB"],
        &["--max-size=1.5K"],
        &["--max-size=1K-1"],
        &["--max-size=100K", "--delete"],
        &["--min-size=1", "-H"],
    ] {
        let scene = Scene::new(|site| {
            for size in [0, 1, 999, 1000, 1001, 1023, 1024, 1536, 1537, 102_400, 102_401] {
                site.noise(format!("src/{size}"), size);
            }
            site.hard_link("src/1000", "src/sub/linked");
            site.dir("src/dir");
            site.symlink("0", "src/link");
            site.noise("dst/102401", 5);
            site.noise("dst/1", 5);
            site.noise("dst/more", 200_000);
        });
        scene.sync(&[flags, &["src/", "dst"]].concat()).exit(0);
    }
}

#[test]
fn a_checksum_finds_what_times_hide_and_copies_nothing_for_a_time() {
    let scene = Scene::new(|site| {
        for size in [100, 65_536, 300_000] {
            site.noise(format!("src/{size}"), size);
            site.noise(format!("dst/{size}"), size);
        }
        site.noise("src/same", 200_000);
        site.noise("src/touched", 200_000);
        for name in ["same", "touched"] {
            std::fs::create_dir_all(site.path("dst")).unwrap();
            std::fs::copy(site.path("src").join(name), site.path("dst").join(name)).unwrap();
        }
        site.time("dst/touched", 5, 0);
    });
    scene.sync(&["--checksum", "-i", "src/", "dst"]).exit(0).print(&[
        ">fc........ 100",
        ">fc........ 300000",
        ">fc........ 65536",
        ".f..t...... touched",
    ]);
    scene.assert_equal("src", "dst");
}

/// The file keeps its inode, and with it its other names.
///
/// UPD-6.
#[test]
fn inplace_writes_into_the_file_that_is_there() {
    let scene = Scene::new(|site| {
        for (new, old) in [(300_000, 500_000), (500_000, 300_000), (10, 20), (0, 20), (20, 0)] {
            site.noise(format!("src/{new}-{old}"), new);
            site.noise(format!("dst/{new}-{old}"), old);
            site.time(format!("dst/{new}-{old}"), 5, 5);
            site.hard_link(format!("dst/{new}-{old}"), format!("links/{new}-{old}"));
        }
        site.noise("src/new", 100_000);
        site.file("src/protected", "new");
        site.file("dst/protected", "old one");
        site.mode("dst/protected", 0o400);
    });
    scene.sync(&["--inplace", "src/", "dst"]).exit(0);
}

/// UPD-7.
#[test]
fn unchanged_files_are_linked_to_those_of_another_directory() {
    for flags in [
        &["-a"][..],
        &["-a", "-H"],
        &["-a", "--checksum"],
        &["-a", "-X"],
        &["-a", "--no-perms"],
        &["--size-only"],
    ] {
        let scene = Scene::new(|site| {
            for dir in ["src", "prev"] {
                site.files(&[&format!("{dir}/changed")]);
                site.file(format!("{dir}/same"), "same");
                site.noise(format!("{dir}/sub/large"), 200_000);
                site.file(format!("{dir}/other-mode"), "x");
                site.file(format!("{dir}/other-owner"), "x");
                site.file(format!("{dir}/other-xattr"), "x");
                site.file(format!("{dir}/other-time"), "x");
                site.file(format!("{dir}/linked"), "linked");
            }
            std::fs::copy(site.path("src/sub/large"), site.path("prev/sub/large")).unwrap();
            site.hard_link("src/linked", "src/sub/linked");
            site.hard_link("prev/linked", "prev/sub/linked");
            site.mode("prev/other-mode", 0o600);
            site.owner("prev/other-owner", 4, 5);
            site.xattr("prev/other-xattr", "user.a", b"b");
            site.time("prev/other-time", 5, 6);
            site.file("src/new", "new");
            site.file("prev/old", "old");
        });
        scene.sync(&[flags, &["--link-dest=../prev", "src/", "dst"]].concat()).exit(0);
    }
}

#[test]
fn of_several_directories_to_link_to_the_first_that_fits_is_taken() {
    let scene = Scene::new(|site| {
        site.files(&["none"]);
        for dir in ["src", "one", "two"] {
            site.file(format!("{dir}/both"), "both");
        }
        for dir in ["src", "two"] {
            site.file(format!("{dir}/sub/second"), "second");
        }
        site.file("one/sub/second", "other content");
    });
    scene.sync(&["-a", "--link-dest=../one", "--link-dest=../two", "src/", "dst"]).exit(0);
}
