//! Runs that were cut off, and the same command once more.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use blake3::hazmat::HasherExt as _;
use rustix::process::Signal;
use serde_json::Value;

use super::journal::{BARRIER, BEGIN, CHUNK_LEN, Journal};
use super::support::{
    PATIENCE, Ran, Running, World, assert_same, number, overwrite, set_mtime, until,
};

const CHUNK: u64 = 64 << 10;

/// How many chunks are to be noted before a run is cut off.
const NOTED: u64 = 100;

/// Sizes to try, as a machine may be too quick to be cut off in a small file.
fn sizes() -> impl Iterator<Item = u64> {
    [32 << 20, 128 << 20, 512 << 20, 2 << 30].into_iter().map(|size| size + 1000)
}

/// Copies `src/big` to `dst`, where an older file has the name, and sends a signal when [`NOTED`]
/// chunks are safe and the journal is as it should. `None` if it was too late for that.
fn try_to_cut_off(
    world: &World,
    (verb, size): (&str, u64),
    signal: Signal,
    is_due: impl Fn(&Path) -> bool,
) -> Option<Ran> {
    let (dst, old) = (world.path("dst"), "old content");
    world.write("src/big", size);
    world.text("dst/big", old);
    let mut command = world.fastsync();
    command.args([verb, "src/", "dst", "-c", "64K", "-p", "1", "--durability=none"]);
    let mut running = Running::start(&mut command);
    let is_noted = || {
        let Some(path) = Journal::find(&dst) else { return false };
        let len = fs::metadata(&path).map_or(0, |journal| journal.len());
        let is_long = len >= 64 + NOTED * CHUNK_LEN;
        // Its other records count in its length, so only reading it tells.
        is_long && Journal::read(&path).chunks().len() as u64 >= NOTED && is_due(&path)
    };
    assert!(until(PATIENCE, || is_noted() || running.is_over()));
    if !running.is_over() {
        running.signal(signal);
    }
    let ran = running.wait();
    if let Some(path) = Journal::find(&dst) {
        Journal::wait_for_writer(&path);
    }
    let is_cut_off =
        Journal::find(&dst).is_some() && fs::read(dst.join("big")).unwrap() == old.as_bytes();
    is_cut_off.then_some(ran)
}

/// The same with a file that is large enough. Returns its size.
fn cut_off(world: &World, verb: &str, signal: Signal) -> (u64, Ran) {
    let cut_off = sizes().find_map(|size| {
        let ran = try_to_cut_off(world, (verb, size), signal, |_| true);
        if ran.is_none() {
            fs::remove_dir_all(world.path("dst")).unwrap();
        }
        Some((size, ran?))
    });
    cut_off.expect("a file that is large enough to be cut off")
}

/// The same with SIGKILL. Returns the file's size and the journal that is left.
fn kill(world: &World, verb: &str) -> (u64, Journal) {
    let (size, ran) = cut_off(world, verb, Signal::KILL);
    assert!(ran.was_killed(), "{ran:?}");
    (size, Journal::of(&world.path("dst")))
}

fn again(world: &World, verb: &str, flags: &[&str]) -> Value {
    let arguments = [verb, "src/", "dst", "-c", "64K", "-p", "2"].into_iter();
    let summary = world.summary(arguments.chain(flags.iter().copied()));
    assert_same(world.path("src"), world.path("dst"));
    summary
}

fn resumed(summary: &Value) -> u64 {
    number(summary, "bytes_resumed")
}

fn sent(summary: &Value) -> u64 {
    number(summary, "bytes_sent")
}

fn temporary(world: &World, journal: &Journal) -> std::path::PathBuf {
    world.path("dst").join(journal.temporary(Path::new("big")))
}

/// ENTRY-11, JRN-11, END-5: what is there is not sent again, and in the end nothing is left over.
#[test]
fn a_killed_copy_goes_on_where_it_was() {
    for verb in ["push", "pull"] {
        let world = World::new();
        let (size, journal) = kill(&world, verb);
        let summary = again(&world, verb, &[]);
        assert_eq!(resumed(&summary), journal.chunks().len() as u64 * CHUNK);
        assert_eq!(resumed(&summary) + sent(&summary), size);
        assert_eq!(number(&summary, "done"), 1);
    }
}

/// JRN-1, JRN-4: what a killed run has noted is in its temporary file, and the journal is laid out as
/// specified.
#[test]
fn every_chunk_that_is_noted_was_written() {
    let world = World::new();
    let (size, journal) = kill(&world, "push");
    assert_eq!(journal.records[0].0, BEGIN);
    assert_eq!(journal.begun(), [(0, &b"big"[..])]);
    let path = temporary(&world, &journal);
    let inode = &journal.records[0].1[44..52];
    assert_eq!(fs::metadata(&path).unwrap().ino().to_le_bytes(), inode);
    assert_eq!(fs::metadata(&path).unwrap().len(), size);
    let file = File::open(path).unwrap();
    let mut data = vec![0; usize::try_from(CHUNK).unwrap()];
    assert!(journal.chunks().len() as u64 >= NOTED);
    for (index, value) in journal.chunks() {
        file.read_exact_at(&mut data, index * CHUNK).unwrap();
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(index * CHUNK).update(&data);
        assert_eq!(hasher.finalize_non_root(), value, "chunk {index}");
    }
    let state = fs::metadata(journal.path.parent().unwrap()).unwrap();
    assert_eq!(state.mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&journal.path).unwrap().mode() & 0o777, 0o600);
}

/// ENTRY-10, INT-7: nothing takes the file's name before all of it is there.
#[test]
fn the_old_file_stays_as_long_as_the_new_one_is_not_whole() {
    for verb in ["push", "pull"] {
        let world = World::new();
        let (_, journal) = kill(&world, verb);
        assert_eq!(fs::read(world.path("dst/big")).unwrap(), b"old content");
        assert!(temporary(&world, &journal).is_file());
        assert!(resumed(&again(&world, verb, &[])) > 0);
    }
}

#[test]
fn an_interrupt_ends_with_20_and_leaves_what_can_be_resumed() {
    for (verb, signal) in [("push", Signal::INT), ("pull", Signal::TERM)] {
        let world = World::new();
        let (size, ran) = cut_off(&world, verb, signal);
        ran.exits(20).says("the same command goes on from here");
        let summary = again(&world, verb, &[]);
        assert!(resumed(&summary) >= NOTED * CHUNK);
        assert_eq!(resumed(&summary) + sent(&summary), size);
    }
}

#[test]
fn without_resume_everything_is_sent_again() {
    for verb in ["push", "pull"] {
        let world = World::new();
        let (size, _) = kill(&world, verb);
        let summary = again(&world, verb, &["--no-resume"]);
        assert_eq!((resumed(&summary), sent(&summary)), (0, size));
    }
}

/// JRN-5: with verification a chunk counts only if it is still what it was.
#[test]
fn verification_finds_the_chunk_that_was_damaged() {
    for verb in ["push", "pull"] {
        let world = World::new();
        let (size, journal) = kill(&world, verb);
        let chunks = journal.chunks();
        let (index, _) = chunks[chunks.len() / 2];
        overwrite(&temporary(&world, &journal), index * CHUNK + 77, b"damaged on disk");
        let summary = again(&world, verb, &["--resume=verify"]);
        assert_eq!(resumed(&summary), (chunks.len() as u64 - 1) * CHUNK);
        assert_eq!(resumed(&summary) + sent(&summary), size);
    }
}

/// JRN-6.
#[test]
fn a_source_that_changed_begins_anew() {
    let changes: [fn(&World); 3] = [
        |world| set_mtime(&world.path("src/big"), 1_000_000_000, 5),
        |world| {
            // Size and time as before: only the change time tells.
            let path = world.path("src/big");
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            overwrite(&path, 5, b"other content");
            File::open(&path).unwrap().set_modified(time).unwrap();
        },
        |world| {
            File::options()
                .append(true)
                .open(world.path("src/big"))
                .unwrap()
                .set_len(7 << 20)
                .unwrap();
        },
    ];
    for change in changes {
        let world = World::new();
        kill(&world, "push");
        change(&world);
        let summary = again(&world, "push", &[]);
        assert_eq!(resumed(&summary), 0);
        assert_eq!(sent(&summary), fs::metadata(world.path("src/big")).unwrap().len());
    }
}

/// JRN-6: the temporary file is the one that was noted, and of its size.
#[test]
fn another_temporary_file_is_not_gone_on_with() {
    let world = World::new();
    let (size, journal) = kill(&world, "push");
    let path = temporary(&world, &journal);
    fs::copy(&path, world.path("copy")).unwrap();
    fs::rename(world.path("copy"), &path).unwrap();
    let summary = again(&world, "push", &[]);
    assert_eq!((resumed(&summary), sent(&summary)), (0, size));
    let world = World::new();
    let (size, journal) = kill(&world, "pull");
    File::options().write(true).open(temporary(&world, &journal)).unwrap().set_len(9).unwrap();
    let summary = again(&world, "pull", &[]);
    assert_eq!((resumed(&summary), sent(&summary)), (0, size));
}

/// JRN-7.
#[test]
fn a_journal_of_other_chunks_is_discarded_with_its_temporary_files() {
    let world = World::new();
    let (size, _) = kill(&world, "push");
    let summary = world.summary(["push", "src/", "dst", "-c", "128K"]);
    assert_eq!((resumed(&summary), sent(&summary)), (0, size));
    assert_same(world.path("src"), world.path("dst"));
}

/// JRN-7.
#[test]
fn temporary_files_of_what_is_gone_from_the_source_are_removed() {
    for verb in ["push", "pull"] {
        let world = World::new();
        kill(&world, verb);
        fs::rename(world.path("src/big"), world.path("big")).unwrap();
        fs::remove_file(world.path("dst/big")).unwrap();
        world.text("src/other", "the only one now");
        assert_eq!(resumed(&again(&world, verb, &[])), 0);
    }
}

/// JRN-3.
#[test]
fn what_is_behind_a_bad_record_does_not_count_and_what_is_before_does() {
    let world = World::new();
    let (_, journal) = kill(&world, "push");
    let at = 64 + 64 + 3 + 50 * CHUNK_LEN;
    overwrite(&journal.path, at + 20, b"!");
    let noted = Journal::read(&journal.path).chunks().len() as u64;
    assert!((40..60).contains(&noted), "{noted}");
    assert_eq!(resumed(&again(&world, "push", &[])), noted * CHUNK);
    let world = World::new();
    let (_, journal) = kill(&world, "pull");
    let file = File::options().write(true).open(&journal.path).unwrap();
    file.set_len(journal.len - 1).unwrap();
    let noted = journal.chunks().len() as u64 - 1;
    assert_eq!(resumed(&again(&world, "pull", &[])), noted * CHUNK);
}

/// JRN-5: after a reboot only what a barrier covers counts.
#[test]
fn after_a_reboot_only_what_was_synced_counts() {
    let world = World::new();
    let (size, mut journal) = kill(&world, "push");
    journal.set_boot([7; 16]);
    let summary = again(&world, "push", &[]);
    assert_eq!((resumed(&summary), sent(&summary)), (0, size));

    let world = World::new();
    let (size, mut journal) = kill(&world, "push");
    let covered = 31_u64;
    journal.append(BARRIER, &covered.to_le_bytes());
    journal.set_boot([7; 16]);
    let summary = again(&world, "push", &[]);
    // The first record is the file's beginning.
    assert_eq!(resumed(&summary), (covered - 1) * CHUNK);
    assert_eq!(resumed(&summary) + sent(&summary), size);
}

/// JRN-8.
#[test]
fn a_journal_leads_to_nothing_outside_of_the_destination() {
    let world = World::new();
    let (_, mut journal) = kill(&world, "push");
    let victim = world.path(journal.temporary(Path::new("victim")));
    fs::write(&victim, "precious").unwrap();
    let inode = fs::metadata(&victim).unwrap().ino();
    let begun = journal.records[0].1.clone();
    for (number, path) in (100_u32..).zip(["../victim", "../../dst/../victim", "/victim", "."]) {
        let mut body = begun[..56].to_vec();
        body[..4].copy_from_slice(&number.to_le_bytes());
        body[44..52].copy_from_slice(&inode.to_le_bytes());
        body[52..56].copy_from_slice(&u32::try_from(path.len()).unwrap().to_le_bytes());
        body.extend(path.bytes());
        journal.append(BEGIN, &body);
    }
    // The same within the destination: the name is the job's own, and nobody else's file has it.
    let stranger = world.path("dst").join(journal.temporary(Path::new("other")));
    fs::write(&stranger, "precious too").unwrap();
    let mut body = begun[..56].to_vec();
    body[..4].copy_from_slice(&200_u32.to_le_bytes());
    body[52..56].copy_from_slice(&5_u32.to_le_bytes());
    body.extend(b"other");
    journal.append(BEGIN, &body);
    world.summary(["push", "src/", "dst", "-c", "64K"]);
    assert_eq!(fs::read(victim).unwrap(), b"precious");
    assert!(!stranger.exists());
    assert_same(world.path("src"), world.path("dst"));
}

/// JRN-2: of a file that was discarded, the journal says that it is over.
#[test]
fn a_file_that_begins_anew_is_over_for_the_journal_before() {
    let world = World::new();
    let kill_twice = |size| {
        // The second time the source is another, so what there is of it is thrown away.
        let has_end = |path: &Path| !Journal::read(path).ended().is_empty();
        try_to_cut_off(&world, ("push", size), Signal::KILL, |_| true)?;
        try_to_cut_off(&world, ("push", size), Signal::KILL, has_end)
    };
    let ran = sizes().find_map(|size| {
        let _ = fs::remove_dir_all(world.path("dst"));
        kill_twice(size)
    });
    assert!(ran.expect("a file that is large enough").was_killed());
    let journal = Journal::of(&world.path("dst"));
    assert_eq!(journal.ended(), [0]);
    assert_eq!(journal.begun()[0], (0, &b"big"[..]));
    assert!(journal.begun().len() <= 2, "it was begun once in each run");
    again(&world, "push", &[]);
}
