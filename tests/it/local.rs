//! Copies on this machine: everything but ssh is as between two hosts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode};

use super::support::{
    QUICK, Running, World, assert_same, assert_same_content, number, set_mode, set_mtime, tree,
};

/// Sizes around the borders of packs (96 KiB, or 1 KiB) and of chunks (64 KiB).
const SIZES: &[u64] = &[
    0, 1, 1023, 1024, 1025, 65_535, 65_536, 65_537, 98_303, 98_304, 98_305, 131_071, 131_072,
    131_073, 1_000_000,
];

/// ENTRY-2, END-2, END-5, JRN-11.
#[test]
fn a_tree_arrives_byte_for_byte_with_its_names_modes_and_times() {
    let world = World::new();
    world.write_everything("in/src", SIZES);
    for (verb, threshold) in [("push", "96K"), ("pull", "96K"), ("push", "1K"), ("pull", "1K")] {
        let dst = format!("{verb}-{threshold}");
        let summary =
            world.summary([verb, "in/src", &dst, "-c", "64K", "--pack-threshold", threshold]);
        assert_same(world.path("in"), world.path(&dst));
        let entries = u64::try_from(tree(world.path("in")).len()).unwrap();
        assert_eq!(number(&summary, "done"), entries);
        assert_eq!((&summary["durable"], &summary["verified"]), (&true.into(), &true.into()));
    }
}

#[test]
fn a_second_run_transfers_nothing() {
    let world = World::new();
    world.write_everything("src", SIZES);
    for verb in ["push", "pull"] {
        world.summary([verb, "src/", "dst"]);
        let again = world.summary([verb, "src/", "dst"]);
        let entries = u64::try_from(tree(world.path("src")).len()).unwrap();
        assert_eq!((number(&again, "skipped"), number(&again, "done")), (entries, 0));
        assert_eq!((number(&again, "bytes_sent"), number(&again, "bytes_done")), (0, 0));
        assert_same(world.path("src"), world.path("dst"));
    }
}

#[test]
fn only_what_changed_is_transferred() {
    let world = World::new();
    for name in ["a", "b", "c", "d"] {
        world.write(Path::new("src").join(name), 300_000);
    }
    world.summary(["push", "src/", "dst"]);
    world.text("src/b", "shorter");
    set_mtime(&world.path("src/c"), 1_000_000_000, 7);
    set_mode(&world.path("src/d"), 0o640);
    let summary = world.summary(["push", "src/", "dst"]);
    assert_eq!((number(&summary, "done"), number(&summary, "skipped")), (3, 1));
    assert_eq!(number(&summary, "bytes_done"), 300_007);
    assert_same(world.path("src"), world.path("dst"));
}

/// ENTRY-1.
#[test]
fn a_slash_means_the_contents_and_a_missing_destination_is_a_name_or_a_directory() {
    let world = World::new();
    world.text("dir/file", "in a directory");
    world.text("file", "alone");
    world.dir("there");
    symlink("dir", world.path("link")).unwrap();
    world.text("old", "replaced");
    let cases: &[(&[&str], &str, &str)] = &[
        (&["dir"], "a", "a/dir/file"),
        (&["dir/"], "b", "b/file"),
        (&["dir/."], "c", "c/file"),
        (&["dir"], "there", "there/dir/file"),
        (&["dir/"], "there/", "there/file"),
        (&["file"], "new", "new"),
        (&["file"], "deep/er/new", "deep/er/new"),
        (&["file"], "slash/", "slash/file"),
        (&["file"], "there", "there/file"),
        (&["file"], "old", "old"),
        (&["file", "dir"], "two", "two/dir/file"),
        (&["link"], "l1", "l1"),
        (&["link/"], "l2", "l2/file"),
    ];
    for (verb, prefix) in [("push", "1"), ("pull", "2")] {
        world.text(format!("{prefix}/old"), "replaced");
        world.dir(format!("{prefix}/there"));
        for (sources, destination, made) in cases {
            let destination = format!("{prefix}/{destination}");
            let arguments = [verb].into_iter().chain(sources.iter().copied());
            world.summary(arguments.chain([destination.as_str()]).chain(QUICK));
            let made = world.path(prefix).join(made);
            assert!(fs::symlink_metadata(&made).is_ok(), "{sources:?} to {destination}");
        }
        let made = world.path(prefix);
        assert_same_content(&world.path("file"), &made.join("new"));
        assert_same_content(&world.path("file"), &made.join("old"));
        assert_eq!(fs::read_link(made.join("l1")).unwrap(), Path::new("dir"));
        assert!(made.join("two/file").is_file());
    }
}

#[test]
fn of_two_sources_with_one_name_the_second_is_refused() {
    let world = World::new();
    world.text("a/same", "first");
    world.text("b/same", "second");
    world.text("b/other", "other");
    for verb in ["push", "pull"] {
        let ran = world.run([verb, "a/same", "b/", verb]).exits(23);
        ran.says("b/same is left out").says("a/same has the same name at the destination");
        let found = tree(world.path(verb));
        assert_eq!(found.keys().collect::<Vec<_>>(), [Path::new("other"), Path::new("same")]);
        assert_eq!(fs::read(world.path(verb).join("same")).unwrap(), b"first");
    }
}

#[test]
fn a_source_that_is_not_there_makes_no_destination() {
    let world = World::new();
    world.text("file", "there");
    for sources in [&["missing"][..], &["missing/"], &["file/"]] {
        for verb in ["push", "pull"] {
            let arguments = [verb].into_iter().chain(sources.iter().copied());
            world.run(arguments.chain(["dst"])).exits(11).says("fastsync: cannot open ");
            assert!(!world.path("dst").exists(), "{verb} {sources:?}");
        }
    }
    // What is there of several is copied all the same.
    world.run(["push", "file", "missing", "dst"]).exits(23).says("cannot open missing");
    assert!(world.path("dst/file").exists());
}

/// INT-5.
#[test]
fn a_sparse_file_stays_sparse() {
    const SIZE: u64 = 10 << 30;
    let world = World::new();
    let path = world.text("src/sparse", "");
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(SIZE).unwrap();
    let islands = [0, (3 << 30) + 12_345, SIZE - 5];
    for at in islands {
        file.write_all_at(b"data!", at).unwrap();
    }
    drop(file);
    let summary = world.summary(["push", "src/", "dst"]);
    assert_eq!(number(&summary, "bytes_done"), SIZE);
    assert_eq!(number(&summary, "bytes_sent"), 3 * (48 + 4096), "holes need no data");
    let copy = File::open(world.path("dst/sparse")).unwrap();
    let metadata = copy.metadata().unwrap();
    assert_eq!(metadata.len(), SIZE);
    assert!(metadata.blocks() * 512 <= 3 * 4096 + 65_536, "{} blocks", metadata.blocks());
    for at in islands {
        let mut found = [0; 5];
        copy.read_exact_at(&mut found, at).unwrap();
        assert_eq!(&found, b"data!");
    }
    let mut found = [1; 5];
    copy.read_exact_at(&mut found, 1 << 30).unwrap();
    assert_eq!(found, [0; 5]);
}

/// INT-6: the root is what another program computes.
#[test]
fn the_report_has_the_roots_that_b3sum_prints() {
    let world = World::new();
    world.write_everything("src", SIZES);
    symlink("nowhere", world.path("src/link")).unwrap();
    for verb in ["push", "pull"] {
        let report = format!("{verb}.json");
        world.run([verb, "src/", verb, "-c", "64K", "-q", "--report", &report]).exits(0);
        let text = fs::read_to_string(world.path(&report)).unwrap();
        let mut found = BTreeMap::new();
        let lines: Vec<_> = text.lines().collect();
        let [first, entries @ .., last] = &lines[..] else { panic!("{text}") };
        assert!(first.starts_with("{\"job\":") && last.starts_with("{\"end\":"), "{text}");
        for line in entries {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["outcome"], "done");
            let path = match line["path_bytes"].as_str() {
                Some(digits) => bytes(digits),
                None => line["path"].as_str().unwrap().as_bytes().to_vec(),
            };
            let size = number(&line, "size");
            let twice = found.insert(path, (size, line["root"].as_str().unwrap().to_owned()));
            assert!(twice.is_none(), "{line} is there twice");
        }
        assert_eq!(found, b3sum(&world.path("src")));
    }
}

/// Size and root of each file below a directory, by the program `b3sum`.
fn b3sum(root: &Path) -> BTreeMap<Vec<u8>, (u64, String)> {
    let is_file = |path: &Path| fs::symlink_metadata(root.join(path)).unwrap().is_file();
    let files: Vec<_> = tree(root).into_keys().filter(|path| is_file(path)).collect();
    let mut command = Command::new("b3sum");
    command.current_dir(root).args(["--no-names", "--"]).args(&files);
    let output = command.output().expect("b3sum is missing; scripts/test installs it");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), files.len());
    let sized = files.iter().zip(text.lines()).map(|(path, sum)| {
        let size = fs::metadata(root.join(path)).unwrap().len();
        (path.as_os_str().as_bytes().to_vec(), (size, sum.to_owned()))
    });
    sized.collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let world = World::new();
    world.write("src/dir/new", 1000);
    world.write("src/same", 300_000);
    world.write("src/changed", 300_000);
    symlink("same", world.path("src/link")).unwrap();
    for verb in ["push", "pull"] {
        let dst = format!("dst-{verb}");
        let ran = world.run([verb, "-n", "src/", &dst]).exits(0);
        ran.says("5 entries");
        assert_eq!(ran.lines().len(), 5, "{ran:?}");
        assert!(!world.path(&dst).exists());
        world.summary([verb, "src/same", "src/changed", &format!("{dst}/")]);
        world.text(format!("{dst}/changed"), "old");
        let before = tree(world.path(&dst));
        let ran = world.run([verb, "--dry-run", "src/", &dst, "-q"]).exits(0);
        let mut lines = ran.lines();
        lines.sort_unstable();
        let routes = ["changed", "dir", "dir/new", "link"]
            .map(|path| format!("src/{path} -> {dst}/{path}").into_bytes());
        assert_eq!(lines, routes);
        let summary = world.summary([verb, "-n", "src/", &dst]);
        assert_eq!((number(&summary, "would"), number(&summary, "bytes_would")), (4, 301_000));
        assert_eq!((number(&summary, "done"), number(&summary, "skipped")), (0, 1));
        assert_eq!((&summary["dry_run"], &summary["durable"]), (&true.into(), &false.into()));
        assert_eq!(tree(world.path(&dst)), before);
    }
}

#[test]
fn one_stream_and_many_and_none_encrypted_bring_the_same() {
    let world = World::new();
    world.write_everything("src", SIZES);
    let cases: &[&[&str]] = &[
        &["--streams", "1"],
        &["--streams", "32"],
        &["--encrypt=off", "--streams", "3"],
        &["--durability=none"],
        &["--buffer-size", "1M", "--streams", "2"],
    ];
    for (number_of, flags) in cases.iter().enumerate() {
        for verb in ["push", "pull"] {
            let dst = format!("{verb}-{number_of}");
            let arguments = [verb, "src/", &dst, "-c", "64K"].into_iter();
            let summary = world.summary(arguments.chain(flags.iter().copied()));
            assert_same(world.path("src"), world.path(&dst));
            let is_open = flags[0] == "--encrypt=off";
            assert_eq!(summary["encrypted"], !is_open);
            assert_eq!(summary["transport"], if is_open { "tcp" } else { "tcp+tls" });
            assert_eq!(summary["durable"], flags[0] != "--durability=none");
        }
    }
}

/// ENTRY-8: a pack has a table of 4 bytes and 48 for each file, and a chunk is nothing but data.
#[test]
fn files_below_the_threshold_travel_in_packs_and_others_in_chunks() {
    let world = World::new();
    for (size, threshold, sent) in [
        (0, "64K", 52),
        (65_535, "64K", 65_535 + 52),
        (65_536, "64K", 65_536),
        (65_537, "64K", 65_537),
        (98_303, "96K", 98_303 + 52),
        (98_304, "96K", 98_304),
    ] {
        let name = format!("{size}-{threshold}");
        world.write(&name, size);
        for verb in ["push", "pull"] {
            let dst = format!("{verb}-{name}");
            let flags = ["-c", "64K", "--pack-threshold", threshold];
            let summary = world.summary([verb, &name, &dst].into_iter().chain(flags).chain(QUICK));
            assert_eq!(number(&summary, "bytes_sent"), sent, "{verb} {name}");
            assert_same_content(&world.path(&name), &world.path(&dst));
        }
    }
}

#[test]
fn a_deep_tree_arrives() {
    let world = World::new();
    let mut path = Path::new("src").to_owned();
    for level in 0..300 {
        path.push(format!("d{level}"));
    }
    world.write(path.join("file"), 10);
    set_mtime(&world.path(&path), 1_000_000_000, 1);
    for verb in ["push", "pull"] {
        world.summary([verb, "src", verb]);
        assert_same(world.path("src"), world.path(verb).join("src"));
    }
}

/// ENTRY-7: what cannot be read ends as failed at both ends, and the rest is done.
#[test]
fn what_may_not_be_read_is_listed_and_the_rest_arrives() {
    let world = World::new();
    for size in [10, 1_000_000] {
        set_mode(&world.write(format!("src/locked-{size}"), size), 0);
        world.write(format!("src/open-{size}"), size);
    }
    world.write("src/closed/file", 10);
    set_mode(&world.path("src/closed"), 0);
    for verb in ["push", "pull"] {
        let mut command = world.fastsync_without_rights();
        let ran = Running::start(command.args([verb, "src/", verb, "--json", "-q"])).wait();
        let ran = ran.exits(23);
        for name in ["locked-10", "locked-1000000", "closed"] {
            assert!(ran.err.contains(&format!("cannot open {name}: Permission denied")), "{ran:?}");
        }
        assert_eq!(ran.err.lines().count(), 3, "{}", ran.err);
        let summary = ran.summary();
        assert_eq!((number(&summary, "failed"), number(&summary, "complaints")), (2, 1));
        let found = tree(world.path(verb));
        let names: Vec<_> = found.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, ["closed", "open-10", "open-1000000"]);
    }
}

#[test]
fn what_is_no_file_is_listed_and_the_rest_arrives() {
    let world = World::new();
    world.text("src/file", "here");
    let fifo = world.path("src/fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.path("src/socket")).unwrap();
    for verb in ["push", "pull"] {
        let ran = world.run_json([verb, "src/", verb]).exits(23);
        ran.says("fifo").says("socket");
        assert_eq!((number(&ran.summary(), "failed"), number(&ran.summary(), "done")), (2, 1));
        assert_eq!(tree(world.path(verb)).len(), 1);
    }
}

#[test]
fn a_directory_in_the_place_of_a_file_is_not_replaced() {
    let world = World::new();
    for name in ["small", "large", "free"] {
        world.write(Path::new("src").join(name), if name == "small" { 5 } else { 300_000 });
    }
    symlink("x", world.path("src/link")).unwrap();
    world.text("src/dir/file", "below");
    for verb in ["push", "pull"] {
        for name in ["small", "large", "link"] {
            world.text(Path::new(verb).join(name).join("precious"), "kept");
        }
        world.text(Path::new(verb).join("dir"), "a file where a directory should be");
        let ran = world.run([verb, "src/", verb]).exits(23);
        for name in ["small", "large", "link"] {
            assert!(ran.err.contains(&format!("cannot replace {name}: a directory")), "{ran:?}");
            assert!(world.path(verb).join(name).join("precious").is_file());
        }
        assert!(ran.err.contains("cannot replace dir: a file is in the way"), "{ran:?}");
        assert_same_content(&world.path("src/free"), &world.path(verb).join("free"));
    }
}

/// ENTRY-10.
#[test]
fn who_has_the_old_file_open_keeps_reading_it() {
    let world = World::new();
    for (verb, size) in [("push", 5), ("pull", 5), ("push", 500_000), ("pull", 500_000)] {
        let name = format!("{verb}-{size}");
        world.write(format!("{name}/file"), size);
        let old = world.text(format!("to-{name}/file"), "old content");
        fs::hard_link(&old, world.path(format!("link-{name}"))).unwrap();
        let mut open = File::open(&old).unwrap();
        world.summary([verb, &format!("{name}/"), &format!("to-{name}")]);
        let mut found = String::new();
        open.read_to_string(&mut found).unwrap();
        assert_eq!(found, "old content");
        assert_eq!(fs::read(world.path(format!("link-{name}"))).unwrap(), b"old content");
        assert_same(world.path(&name), world.path(format!("to-{name}")));
    }
}

/// SEC-9: a symlink below a root is neither followed nor taken for a directory.
#[test]
fn symlinks_lead_neither_out_of_the_source_nor_out_of_the_destination() {
    let world = World::new();
    world.text("outside/secret", "do not send");
    world.text("src/dir/file", "new");
    world.text("src/file", "new");
    symlink("../outside", world.path("src/link")).unwrap();
    for verb in ["push", "pull"] {
        let dst = world.dir(verb);
        symlink("../outside", dst.join("dir")).unwrap();
        symlink("../outside/secret", dst.join("file")).unwrap();
        let ran = world.run([verb, "src/", verb]).exits(23);
        ran.says("cannot replace dir: a symlink").says("its directory could not be made");
        assert_eq!(tree(world.path("outside")).len(), 1, "something was written through the link");
        assert_eq!(fs::read(world.path("outside/secret")).unwrap(), b"do not send");
        assert_eq!(fs::read_link(dst.join("link")).unwrap(), Path::new("../outside"));
        assert_same_content(&world.path("src/file"), &dst.join("file"));
        assert!(!fs::symlink_metadata(dst.join("file")).unwrap().is_symlink());
    }
    // The root itself may be one.
    symlink("push", world.path("root")).unwrap();
    fs::remove_file(world.path("push/dir")).unwrap();
    world.summary(["push", "src/", "root/"]);
    assert_same(world.path("src"), world.path("push"));
}

#[test]
fn many_small_files_in_many_directories_arrive() {
    let world = World::new();
    for directory in 0..20_u64 {
        for file in 0..50 {
            world.write(format!("src/{directory}/{file}"), directory * 10 + file);
        }
    }
    for verb in ["push", "pull"] {
        let summary = world.summary([verb, "src/", verb].into_iter().chain(QUICK));
        assert_eq!(number(&summary, "done"), 20 + 20 * 50);
        assert_same(world.path("src"), world.path(verb));
    }
}
