//! What the subcommands do: cp and sync on one machine, lists, checks, manifests and retries.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use super::support::{
    QUICK, Ran, Running, World, assert_same, number, overwrite, set_mode, set_mtime, tree,
};

/// The lines of its output as text, in the order of the alphabet.
#[track_caller]
fn sorted(ran: &Ran) -> Vec<String> {
    let lines = ran.lines().into_iter().map(|line| String::from_utf8(line.to_vec()).unwrap());
    let mut lines: Vec<_> = lines.collect();
    lines.sort_unstable();
    lines
}

/// Two directories of which the second is nearly like the first.
fn nearly_alike() -> World {
    let world = World::new();
    for dir in ["a", "b"] {
        world.write(Path::new(dir).join("same"), 100);
        world.write(Path::new(dir).join("dir/same"), 300_000);
        world.text(Path::new(dir).join("time"), "time");
        world.text(Path::new(dir).join("mode"), "mode");
    }
    for file in ["same", "dir/same"] {
        fs::copy(world.path("a").join(file), world.path("b").join(file)).unwrap();
    }
    for dir in ["a", "b"] {
        for file in ["same", "dir/same", "time", "mode", "dir", ""] {
            set_mtime(&world.path(dir).join(file), 1_000_000_000, 5);
        }
    }
    world
}

#[test]
fn cp_copies_on_one_machine_and_never_deletes() {
    let world = World::new();
    world.write_everything("src", &[0, 1, 100_000, 300_000, 20_000_000]);
    world.text("dst/more", "stays");
    for flags in [&[][..], &["--verify"], &["-R"], &["-a"], &["-S", "--partial"]] {
        let dst = format!("new{}", flags.concat());
        world.run(["cp", "src/", &dst].iter().chain(flags)).exits(0);
        assert_same(world.path("src"), world.path(&dst));
    }
    world.summary(["cp", "src", "dst"]);
    assert_same(world.path("src"), world.path("dst/src"));
    assert!(world.path("dst/more").exists());
    let again = world.summary(["cp", "src", "dst"]);
    assert_eq!((number(&again, "done"), number(&again, "bytes_sent")), (0, 0));
    world.summary(["cp", "src/sizes/1", "renamed"]);
    assert_eq!(fs::read(world.path("renamed")).unwrap().len(), 1);
    world.summary(["cp", "src/sizes/0", "src/sizes/1", "dst/two"]);
    assert_eq!(tree(world.path("dst/two")).len(), 2);
}

#[test]
fn sync_deletes_what_is_gone_and_no_more_than_it_may() {
    let world = World::new();
    for name in ["kept", "dir/kept", "x.o"] {
        world.text(Path::new("src").join(name), name);
    }
    for name in ["gone", "dir/gone", "gone-dir/below/file", "y.o"] {
        world.text(Path::new("dst").join(name), name);
    }
    let ran = world.run(["sync", "src/", "dst"]).exits(0);
    assert!(world.path("dst/gone").exists() && !ran.err.contains("deleted"), "{ran:?}");

    let ran = world.run(["sync", "--delete", "--exclude=*.o", "-n", "src/", "dst"]).exits(0);
    let wanted = [
        "deleting dst/dir/gone",
        "deleting dst/gone",
        "deleting dst/gone-dir/",
        "deleting dst/gone-dir/below/",
        "deleting dst/gone-dir/below/file",
    ];
    assert_eq!(sorted(&ran), wanted);
    assert!(world.path("dst/gone").exists());

    let limited = ["sync", "--delete", "--max-delete=1", "--exclude=*.o", "src/", "dst"];
    let ran = world.run(limited.iter().chain(&["--json"])).exits(25);
    let summary = ran.summary();
    assert_eq!((number(&summary, "deleted"), number(&summary, "over_limit")), (1, 4));
    ran.says("--max-delete");

    let summary = world.summary(["sync", "--delete", "--exclude=*.o", "src/", "dst"]);
    assert_eq!((number(&summary, "deleted"), number(&summary, "done")), (4, 0));
    assert!(world.path("dst/y.o").exists());
    world.summary(["sync", "--delete-excluded", "--exclude=*.o", "src/", "dst"]);
    assert!(!world.path("dst/y.o").exists() && !world.path("dst/x.o").exists());
}

#[test]
fn an_empty_source_deletes_nothing_unless_that_is_meant() {
    let world = World::new();
    world.dir("src");
    world.text("dst/precious", "x");
    world.run(["sync", "--delete", "src/", "dst"]);
    assert!(world.path("dst/precious").exists());
    assert!(!world.run(["sync", "--delete", "missing/", "dst"]).status.success());
    assert!(world.path("dst/precious").exists());
    world.run(["sync", "--delete", "--allow-empty-source", "src/", "dst"]).exits(0);
    assert!(!world.path("dst/precious").exists());
}

#[test]
fn a_source_that_cannot_be_listed_deletes_nothing_there() {
    let world = World::new();
    world.text("src/open/file", "x");
    world.text("src/closed/file", "x");
    world.text("dst/open/gone", "x");
    world.text("dst/closed/kept", "x");
    set_mode(&world.path("src/closed"), 0o000);
    let mut command = world.fastsync_without_rights();
    command.args(["sync", "--delete", "src/", "dst"]).args(QUICK);
    Running::start(&mut command).wait().exits(23);
    assert!(world.path("dst/closed/kept").exists() && !world.path("dst/open/gone").exists());
}

#[test]
fn letters_are_those_of_rsync() {
    let world = nearly_alike();
    set_mtime(&world.path("a/time"), 1_100_000_000, 0);
    set_mode(&world.path("a/mode"), 0o600);
    set_mode(&world.path("b/mode"), 0o644);
    world.text("a/new", "new");
    symlink("new", world.path("a/link")).unwrap();
    world.text("b/gone", "x");
    set_mtime(&world.path("b"), 1_000_000_000, 5);
    let wanted = ["*deleting   gone", ".f...p..... mode", ">f+++++++++ new", ">f..t...... time"];
    let wanted = wanted.map(String::from).into_iter().chain(["cL+++++++++ link -> new".into()]);
    let mut wanted: Vec<String> = wanted.collect();
    wanted.sort_unstable();
    let flags = ["sync", "--delete", "-Oi", "a/", "b"];
    for dry_run in [&["-n"][..], &[]] {
        let ran = world.run(flags.iter().chain(dry_run)).exits(0);
        let lines = sorted(&ran).into_iter().filter(|line| !line.ends_with(" ./"));
        assert_eq!(lines.collect::<Vec<_>>(), wanted, "{dry_run:?}");
    }
    assert!(world.run(flags).exits(0).out.is_empty());
    let ran = world.run(["sync", "-Oii", "a/", "b"]).exits(0);
    assert!(sorted(&ran).contains(&".f          dir/same".into()), "{ran:?}");
    let twin = world.run(["cp", "--json", "-i", "a/", "new"]).exits(0).json();
    let link = twin.iter().find(|line| line["path"] == "link").unwrap();
    assert_eq!((&link["kind"], &link["changes"][0]), (&"symlink".into(), &"created".into()));
}

#[test]
fn statistics_count_by_kind() {
    let world = World::new();
    world.write("src/dir/file", 1234);
    symlink("dir", world.path("src/link")).unwrap();
    world.text("dst/gone", "x");
    let arguments = ["sync", "--delete", "--stats", "src/", "dst"];
    let ran = world.run(arguments).exits(0);
    let text = String::from_utf8(ran.out).unwrap();
    for line in [
        "Number of files: 3 (reg: 1, dir: 1, link: 1)",
        "Number of created files: 3 (reg: 1, dir: 1, link: 1)",
        "Number of deleted files: 1",
        "Number of regular files transferred: 1",
        "Total transferred file size: 1,234 bytes",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let summary = world.summary(arguments);
    let stats = &summary["stats"];
    assert_eq!((number(stats, "total_size"), number(stats, "files_transferred")), (1234, 0));
    assert_eq!(number(&stats["found"], "symlinks"), 1);
}

#[test]
fn filters_sizes_and_lists_say_what_is_meant() {
    let world = World::new();
    for (name, size) in [("small.o", 10), ("large.o", 5000), ("small", 10), ("dir/large", 5000)] {
        world.write(Path::new("src").join(name), size);
    }
    world.text("rules", "# comment\n*.o\n");
    world.text("list", "dir/large\nsmall.o\n");
    world.text("zeroes", "dir\0small\0");
    let found = |dst: &str| {
        let names = tree(world.path(dst)).into_keys();
        names.map(|path| path.into_os_string().into_string().unwrap()).collect::<Vec<_>>()
    };
    for (number, (flags, wanted)) in [
        (&["--exclude=*.o"][..], &["dir", "dir/large", "small"][..]),
        (&["--include=small.o", "--exclude=*.o"], &["dir", "dir/large", "small", "small.o"]),
        (&["--exclude-from=rules"], &["dir", "dir/large", "small"]),
        (&["-f", "- /dir/"], &["large.o", "small", "small.o"]),
        (&["--max-size=1K"], &["dir", "small", "small.o"]),
        (&["--min-size=5000", "--max-size=5KB"], &["dir", "dir/large", "large.o"]),
        (&["--max-depth=1"], &["dir", "large.o", "small", "small.o"]),
        (&["--files-from=list"], &["dir", "dir/large", "small.o"]),
        (&["--files-from=zeroes", "-0"], &["dir", "small"]),
        (&["--files-from=zeroes", "-0", "-R"], &["dir", "dir/large", "small"]),
    ]
    .into_iter()
    .enumerate()
    {
        let dst = format!("dst{number}");
        world.summary(["cp", "src/", &dst].iter().chain(flags));
        assert_eq!(found(&dst), wanted, "{flags:?}");
    }
}

#[test]
fn sources_are_removed_once_they_have_arrived() {
    let world = World::new();
    world.write("src/dir/large", 1_000_000);
    world.text("src/small", "x");
    symlink("small", world.path("src/link")).unwrap();
    world.summary(["cp", "-n", "--remove-source-files", "src/", "dst"]);
    assert_eq!(tree(world.path("src")).len(), 4);
    world.summary(["cp", "--remove-source-files", "src/", "dst"]);
    assert_eq!(tree(world.path("src")).into_keys().collect::<Vec<_>>(), [Path::new("dir")]);
    assert_eq!(tree(world.path("dst")).len(), 4);
}

/// SEL-3: `push` without a host has a receiver of its own, which knows the sources by their inodes.
#[test]
fn two_processes_keep_sources_and_destination_apart() {
    let world = World::new();
    world.text("all/src/dir/file", "x");
    world.text("all/src/file", "y");
    symlink("file", world.path("all/src/link")).unwrap();
    let before = tree(world.path("all"));
    for (source, destination) in [("src", "src"), ("src", "src/dir"), ("src/", "src/dir")] {
        let (source, destination) = (format!("all/{source}"), format!("all/{destination}"));
        world.run(["push", &source, &destination]).exits(5).says("is inside of a source");
    }
    let remove = "--remove-source-files";
    world.run(["push", remove, "all/src/", "all/src"]).exits(5).says("is its own source");
    world.run(["push", remove, "all/src", "all/"]).exits(23).says("src is its own source");
    world
        .run(["push", remove, "all/src/link", "all/src/"])
        .exits(23)
        .says("link is its own source");
    assert_eq!(tree(world.path("all")), before);
}

/// ENTRY-18: programs read which path something is wrong with, whoever says so.
#[test]
fn complaints_have_paths() {
    let world = World::new();
    world.text("src/dir/file", "x");
    world.text("src/sub/locked/file", "x");
    for direction in ["push", "pull"] {
        let mut command = world.fastsync_without_rights();
        set_mode(&world.path("src/sub/locked"), 0o000);
        let dst = format!("dst-{direction}");
        let ran = Running::start(command.args([direction, "--progress=json", "-q", "src/", &dst]))
            .wait()
            .exits(23);
        set_mode(&world.path("src/sub/locked"), 0o755);
        let lines = ran.events();
        let paths: Vec<_> =
            lines.iter().filter(|it| it["event"] == "complaint").map(|it| &it["path"]).collect();
        assert_eq!(paths, ["sub/locked"], "{direction}: {ran:?}");
    }
}

/// UPD-2: what is there as something else is not missing.
#[test]
fn a_check_tells_of_another_type() {
    let world = World::new();
    world.text("a/file", "x");
    world.text("a/dir/below", "x");
    world.text("a/link", "x");
    world.text("b/file/inside", "x");
    world.text("b/dir", "x");
    symlink("file", world.path("b/link")).unwrap();
    let ran = world.run(["check", "a/", "b"]).exits(40);
    let wanted = [
        "different dir (type)",
        "different file (type)",
        "different link (type)",
        "extra file/inside",
        "missing dir/below",
    ];
    assert_eq!(sorted(&ran), wanted);
}

#[test]
fn ls_lists_what_is_there() {
    let world = World::new();
    world.text("d/b", "12345");
    world.text("d/a\nb", "");
    world.text("d/sub/below", "");
    symlink("nowhere", world.path("d/link")).unwrap();
    set_mode(&world.path("d/b"), 0o640);
    set_mtime(&world.path("d/b"), 1_000_000_000, 123_456_789);
    let ran = world.run(["ls", "d"]).exits(0);
    assert_eq!(ran.out, b"a\nb\nb\nlink\nsub\n");
    assert!(ran.err.is_empty(), "{ran:?}");
    assert_eq!(world.run(["ls", "--zero", "d/"]).exits(0).out, b"a\nb\0b\0link\0sub\0");
    assert_eq!(sorted(&world.run(["ls", "-R", "d"]).exits(0)).last().unwrap(), "sub/below");
    assert_eq!(world.run(["ls", "d/b", "d/sub"]).exits(0).out, b"d/b:\nb\n\nd/sub:\nbelow\n");
    let ran = world.run(["ls", "-l", "d/b"]).exits(0);
    let line = String::from_utf8(ran.out).unwrap();
    assert!(line.starts_with("-rw-r----- "), "{line}");
    assert!(line.ends_with(" 5 2001-09-09T01:46:40.123456789Z b\n"), "{line}");
    let lines = world.run(["ls", "--json", "d"]).exits(0).json();
    let link = lines.iter().find(|line| line["path"] == "link").unwrap();
    assert_eq!((&link["kind"], &link["target"]), (&"symlink".into(), &"nowhere".into()));
    let ran = world.run(["ls", "missing"]);
    assert!(!ran.status.success() && ran.err.contains("missing"), "{ran:?}");
}

#[test]
fn a_manifest_is_what_b3sum_prints_and_checks() {
    let world = World::new();
    for (name, size) in [("a", 0), ("dir/b c", 1000), ("dir/large", 3_000_000), ("e\\f", 1)] {
        world.write(Path::new("d").join(name), size);
    }
    world.text("d/new\nline", "x");
    symlink("a", world.path("d/link")).unwrap();
    let ran = world.run(["manifest", "d"]).exits(0);
    let mut command = Command::new("b3sum");
    let names = ["a", "dir/b c", "dir/large", "e\\f", "new\nline"];
    command.current_dir(world.path("d")).args(names);
    let wanted = command.output().expect("b3sum is missing; scripts/test installs it");
    let mut wanted: Vec<_> =
        String::from_utf8(wanted.stdout).unwrap().lines().map(str::to_owned).collect();
    wanted.sort_unstable();
    assert_eq!(sorted(&ran), wanted);

    world.run(["manifest", "--output", "sums", "d/"]).exits(0);
    let status = Command::new("b3sum")
        .current_dir(world.path("d"))
        .args(["--check", "--quiet", "../sums"])
        .status();
    assert!(status.unwrap().success());
    let ran = world.run(["check", "d", "sums"]).exits(0);
    assert!(ran.out.is_empty() && ran.err.contains("5 equal, 0 different"), "{ran:?}");
    let line = &world.run(["manifest", "--json", "d/dir/b c"]).exits(0).json()[0];
    assert_eq!((&line["path"], number(line, "size")), (&"b c".into(), 1000));
}

/// As `find . | xargs b3sum` writes it.
#[test]
fn paths_of_b3sum_may_begin_with_a_dot() {
    let world = World::new();
    world.text("d/dir/a", "x");
    let mut command = Command::new("b3sum");
    let written = command.current_dir(world.path("d")).args(["./dir//a"]).output();
    world.text("sums", written.expect("b3sum is missing; scripts/test installs it").stdout);
    world.run(["check", "d", "sums"]).exits(0).says("1 equal, 0 different, 0 missing, 0 extra");
}

/// A large second file is a file to compare with, and is not read into memory to find that out.
#[test]
fn whether_a_file_is_a_manifest_is_seen_by_its_beginning() {
    let world = World::new();
    for name in ["a", "b"] {
        fs::File::create(world.path(name)).unwrap().set_len(4 << 30).unwrap();
        set_mtime(&world.path(name), 1_000_000_000, 0);
    }
    let mut command = world.command("sh");
    let script = r#"ulimit -v 2000000 && exec "$0" check a b"#;
    command.args(["-c", script]).arg(world.fastsync().get_program());
    Running::start(&mut command).wait().exits(0).says("1 equal");
    let line = vec![b'x'; 17 << 20];
    let sum = world.run(["manifest", "a", "--max-size=1"]).exits(0);
    assert!(sum.out.is_empty());
    let manifest = [&b"{\"end\":{}}\n"[..], &line].concat();
    world.text("endless", manifest);
    world.run(["check", "a", "endless"]).exits(1).says("endless, line 2 is longer than 16 MiB");
    world.text("report", [&b"{\"job\":{"[..], &line].concat());
    world.run(["retry", "report"]).exits(1).says("line 1 is longer than 16 MiB");
}

#[test]
fn names_that_b3sum_cannot_read_are_named_and_json_has_them() {
    let world = World::new();
    world.text("d/good", "x");
    fs::write(world.path("d").join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "y").unwrap();
    let ran = world.run(["manifest", "d"]).exits(23);
    ran.says("caf\\xe9");
    assert_eq!(ran.lines().len(), 1);
    let ran = world.run(["manifest", "--json", "--output", "sums", "d"]).exits(0);
    assert!(ran.out.is_empty());
    world.run(["check", "d", "sums"]).exits(0).says("2 equal");
}

#[test]
fn a_check_against_a_manifest_finds_what_has_changed() {
    let world = World::new();
    for name in ["same", "rotten", "gone", "longer"] {
        world.write(Path::new("d").join(name), 1000);
    }
    world.run(["manifest", "--json", "--output", "sums", "d"]).exits(0);
    let mtime = fs::metadata(world.path("d/rotten")).unwrap();
    overwrite(&world.path("d/rotten"), 500, b"X");
    let nanoseconds = u32::try_from(mtime.mtime_nsec()).unwrap();
    set_mtime(&world.path("d/rotten"), mtime.mtime(), nanoseconds);
    world.text("d/longer", vec![0; 2000]);
    fs::remove_file(world.path("d/gone")).unwrap();
    world.text("d/more", "x");
    let ran = world.run(["check", "d", "sums"]).exits(40);
    let wanted =
        ["different longer (size)", "different rotten (content)", "extra more", "missing gone"];
    assert_eq!(sorted(&ran), wanted);
    ran.says("1 equal, 2 different, 1 missing, 1 extra");
    world.run(["manifest", "--output", "sums", "d"]).exits(0);
    world.text("d/new", "x");
    world.run(["check", "d", "sums"]).exits(0).says("1 extra");
}

#[test]
fn a_check_of_two_directories_says_what_sync_would_change() {
    let world = nearly_alike();
    let before = tree(world.path("b"));
    let ran = world.run(["check", "a", "b"]).exits(0);
    assert!(ran.out.is_empty() && ran.err.contains("0 different, 0 missing, 0 extra"), "{ran:?}");
    world.run(["check", "--checksum", "a", "b"]).exits(0);
    assert_eq!(tree(world.path("b")), before);

    // Only reading it shows this.
    overwrite(&world.path("b/dir/same"), 100_000, b"X");
    set_mtime(&world.path("b/dir/same"), 1_000_000_000, 5);
    world.run(["check", "a", "b"]).exits(0);
    let ran = world.run(["check", "--checksum", "a", "b"]).exits(40);
    assert_eq!(sorted(&ran), ["different dir/same (content)"]);

    set_mtime(&world.path("b/time"), 1_100_000_000, 0);
    set_mode(&world.path("b/mode"), 0o600);
    world.text("a/missing", "x");
    world.text("b/extra", "x");
    let ran = world.run(["check", "-O", "a/", "b", "--json", "-q"]).exits(40);
    let lines = ran.json();
    let status = |path: &str| {
        let line = lines.iter().find(|line| line["path"] == path);
        line.unwrap_or_else(|| panic!("no {path} in {lines:?}"))["status"].clone()
    };
    assert_eq!((status("missing"), status("extra")), ("missing".into(), "extra".into()));
    assert_eq!((status("time"), status("mode")), ("different".into(), "different".into()));
    let verdict = ran.summary();
    assert_eq!((number(&verdict, "exit_code"), number(&verdict, "different")), (40, 2));
    world.run(["check", "a/same", "b/same"]).exits(0);
    world.run(["check", "a/same", "b"]).exits(0);
    world.run(["check", "a", "nowhere"]).exits(40).says("missing");
}
