//! What `-i` prints, line by line.

use super::scene::{Acl, Scene};

#[test]
fn what_is_new() {
    let scene = Scene::new(|site| {
        site.files(&["src/file", "src/dir/file"]);
        site.file("src/empty", "");
        site.dir("src/empty-dir");
        site.symlink("file", "src/link");
        site.fifo("src/fifo");
        site.socket("src/socket");
        site.device("src/null", true, 1, 3);
        site.dir("dst");
        site.time("dst", 5, 5);
    });
    scene.sync(&["-aHi", "src/", "dst"]).print(&[
        ".d..t...... ./",
        ">f+++++++++ dir/file",
        ">f+++++++++ empty",
        ">f+++++++++ file",
        "cD+++++++++ null",
        "cL+++++++++ link -> file",
        "cS+++++++++ fifo",
        "cS+++++++++ socket",
        "cd+++++++++ dir/",
        "cd+++++++++ empty-dir/",
    ]);
}

#[test]
fn what_has_changed() {
    let scene = Scene::new(|site| {
        for side in ["src", "dst"] {
            for name in ["size", "size-and-time", "time", "mode", "owner", "group", "xattr"] {
                site.file(format!("{side}/{name}"), "same");
            }
            for name in ["dir-mode", "dir-time", "dir-owner", "dir-acl", "dir-xattr"] {
                site.dir(format!("{side}/{name}"));
            }
            site.files(&[&format!("{side}/same-size")]);
            site.symlink("target", format!("{side}/link-time"));
            site.symlink("target", format!("{side}/link-owner"));
            site.symlink(side, format!("{side}/link-target"));
            site.fifo(format!("{side}/fifo-mode"));
            site.device(format!("{side}/device"), true, 1, if side == "src" { 3 } else { 5 });
        }
        site.file("dst/size", "another");
        site.file("dst/size-and-time", "another");
        for name in ["size-and-time", "time", "dir-time", "link-time", "same-size"] {
            site.time(format!("dst/{name}"), 5, 5);
        }
        for name in ["mode", "dir-mode", "fifo-mode"] {
            site.mode(format!("dst/{name}"), 0o700);
        }
        for name in ["owner", "dir-owner", "link-owner"] {
            site.owner(format!("dst/{name}"), 5, 0);
        }
        site.owner("dst/group", 0, 5);
        site.xattr("dst/xattr", "user.more", b"x");
        site.xattr("src/dir-xattr", "user.more", b"x");
        site.acl("src/dir-acl", Acl::Default, &[(4, 4)], (4, 4));
    });
    scene.sync(&["-aAXi", "src/", "dst"]).print(&[
        ".L....o.... link-owner -> target",
        ".L..t...... link-time -> target",
        ".S...p..... fifo-mode",
        ".d....o.... dir-owner/",
        ".d...p..... dir-mode/",
        ".d..t...... dir-time/",
        ".d.......a. dir-acl/",
        ".d........x dir-xattr/",
        ".f....o.... owner",
        ".f.....g... group",
        ".f...p..... mode",
        ".f........x xattr",
        ">f.s....... size",
        ">f.st...... size-and-time",
        ">f..t...... same-size",
        ">f..t...... time",
        "cDc........ device",
        "cLc........ link-target -> src",
    ]);
}

#[test]
fn what_the_flags_make_of_it() {
    for (flags, line) in [
        (&["-i"][..], &[">f..t...... a"][..]),
        (&["-i", "--no-times"], &[">f..T...... a"]),
        (&["-i", "--size-only"], &[".f..t...... a"]),
        (&["-i", "--checksum"], &[">fc.t...... a"]),
        (&["-i", "-u"], &[">f..t...... a"]),
        (&["-i", "-n"], &[">f..t...... a"]),
        (&["-i", "--inplace"], &[">f..t...... a"]),
        (&["-i", "--backup"], &[">f..t...... a"]),
        (&["-i", "--ignore-existing"], &[]),
        (&["-i", "-I"], &[">f..t...... a", ">f......... b"]),
        (&["-ii"], &[".d          ./", ".f          b", ">f..t...... a"]),
        (&["-i", "--chmod=F600"], &[">f..tp..... a", ".f...p..... b"]),
        (&["-i", "--chown=5:6"], &[".d....og... ./", ">f..t.og... a", ".f....og... b"]),
    ] {
        let scene = Scene::new(|site| {
            site.file("src/a", "1234");
            site.file("dst/a", "abcd");
            site.time("dst/a", 5, 5);
            site.files(&["src/b"]);
            site.file("dst/b", "src/b");
            site.time("src", 7, 7);
            site.time("dst", 7, 7);
        });
        scene.sync(&[flags, &["--omit-dir-times", "src/", "dst"]].concat()).exit(0).print(line);
    }
}

#[test]
fn what_is_deleted_and_what_takes_its_place() {
    let scene = Scene::new(|site| {
        site.files(&["src/to-file", "src/to-dir/file", "dst/more", "dst/gone/file"]);
        site.symlink("x", "src/to-link");
        site.files(&["dst/to-dir", "dst/to-link"]);
        site.symlink("x", "dst/link-gone");
    });
    scene.sync(&["-ai", "--omit-dir-times", "--delete", "src/", "dst"]).exit(0).print(&[
        "*deleting   gone/",
        "*deleting   gone/file",
        "*deleting   link-gone",
        "*deleting   more",
        ">f+++++++++ to-dir/file",
        ">f+++++++++ to-file",
        "cL+++++++++ to-link -> x",
        "cd+++++++++ to-dir/",
    ]);
}

/// What makes room is told, but for the name that is used again. DEL-5.
#[test]
fn what_is_in_a_directory_that_gives_way() {
    for flags in [&["-ai", "--delete"][..], &["-ain", "--delete"], &["-ai", "--force"]] {
        let scene = Scene::new(|site| {
            site.files(&["src/x", "dst/x/a", "dst/x/deep/b"]);
            site.symlink("x", "src/link");
            site.dir("dst/link/empty");
        });
        scene.sync(&[flags, &["--omit-dir-times", "src/", "dst"]].concat()).exit(0).print(&[
            "*deleting   link/empty/",
            "*deleting   x/a",
            "*deleting   x/deep/",
            "*deleting   x/deep/b",
            ">f+++++++++ x",
            "cL+++++++++ link -> x",
        ]);
    }
}

/// Which of the names brings the content is not said.
#[test]
fn links_that_are_new() {
    let scene = Scene::new(|site| {
        site.files(&["src/a", "src/z"]);
        site.hard_link("src/a", "src/sub/b");
        site.hard_link("src/a", "src/c");
        site.dir("dst");
    });
    let both = scene.sync(&["-aHi", "--omit-dir-times", "src/", "dst"]);
    for ran in [&both.rsync, &both.fastsync] {
        let mut starts: Vec<_> = ran.lines().into_iter().map(|line| &line[..11]).collect();
        starts.sort_unstable();
        let wanted: [&[u8]; 5] =
            [b">f+++++++++", b">f+++++++++", b"cd+++++++++", b"hf+++++++++", b"hf+++++++++"];
        assert_eq!(starts, wanted, "{ran:?}");
    }
}

#[test]
fn links_that_are_repaired() {
    let scene = Scene::new(|site| {
        for side in ["src", "dst"] {
            site.file(format!("{side}/a"), "linked");
        }
        site.hard_link("src/a", "src/b");
        site.hard_link("src/a", "src/c");
        site.file("dst/b", "linked");
        site.file("prev/d", "in another directory");
        site.file("src/d", "in another directory");
    });
    scene
        .sync(&["-aHi", "--omit-dir-times", "--link-dest=../prev", "src/", "dst"])
        .print(&["hf          b => a", "hf+++++++++ c => a"]);
}

#[test]
fn names_with_odd_bytes_are_escaped() {
    let scene = Scene::new(|site| {
        site.files(&[
            "src/new\nline",
            "src/tab\t",
            "src/back\\slash",
            "src/\\#012",
            "src/caf\u{e9}",
        ]);
        site.symlink("to\nline", "src/link");
        site.dir("dst");
    });
    let both = scene.run("sync", &["-ai", "--omit-dir-times", "src/", "dst"]);
    for ran in [&both.rsync, &both.fastsync] {
        assert_eq!(ran.lines().len(), 6, "a line for each: {ran:?}");
    }
}
