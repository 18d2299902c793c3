//! Tests of the sink as a whole: what is in the destination afterwards, and what is not.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};

use rustix::fd::AsFd as _;
use rustix::fs::{AtFlags, Mode as FsMode};

use super::super::testing::{
    CREATED, JOB, copy, copy_file, entry, file_kind, finish, options, pool, sink, size,
    verified_chunk, verified_file, walk, write_files,
};
use super::super::{beneath, only_mtime};
use super::*;
use crate::protocol::chunk::{Chunk, ChunkSize};
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{Changes, Kind, Mode, Preserve};
use crate::protocol::sparse::{Extent, Sparse};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|item| item.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn whole(entry: &Entry, size: u64) -> ByteRange {
    ChunkSize::DEFAULT.range(entry.id, 0, size).unwrap()
}

#[tokio::test]
async fn a_tree_arrives_with_its_modes_and_times() {
    let temp = tempfile::tempdir().unwrap();
    let from = temp.path().join("from");
    fs::create_dir_all(from.join("read only/empty")).unwrap();
    for (name, len) in [("zero", 0), ("small", 10), ("large", 2_500_000)] {
        let path = from.join("read only").join(name);
        fs::write(&path, vec![7; len]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4555)).unwrap();
        let old = only_mtime(Timestamp::new(-86_400, 123_456_789).unwrap());
        rustix::fs::futimens(fs::File::open(&path).unwrap(), &old).unwrap();
    }
    symlink("../nowhere", from.join("link")).unwrap();
    let late = only_mtime(Timestamp::new(5_000_000_000, 1).unwrap());
    rustix::fs::futimens(fs::File::open(from.join("read only")).unwrap(), &late).unwrap();
    fs::set_permissions(from.join("read only"), fs::Permissions::from_mode(0o555)).unwrap();

    let to = temp.path().join("to");
    copy(std::slice::from_ref(&from), &to, 1000).await;
    let dir = to.join("from/read only");
    assert_eq!(names(&dir), ["empty", "large", "small", "zero"]);
    for (name, len) in [("zero", 0), ("small", 10), ("large", 2_500_000)] {
        let path = dir.join(name);
        let data = fs::metadata(&path).unwrap();
        assert_eq!(data.mode() & 0o7777, 0o555, "setuid is not kept");
        assert_eq!((data.mtime(), data.mtime_nsec()), (-86_400, 123_456_789));
        assert_eq!(fs::read(path).unwrap(), vec![7; len]);
    }
    let data = fs::metadata(&dir).unwrap();
    assert_eq!((data.mode() & 0o7777, data.mtime()), (0o555, 5_000_000_000));
    assert_eq!(fs::read_link(to.join("from/link")).unwrap(), Path::new("../nowhere"));

    let (_, entries) = walk(std::slice::from_ref(&from)).await;
    let again = sink(&to).place(entries).await;
    assert!(
        again.iter().all(|placed| matches!(placed, Ok(Placed::Settled(Changes::NONE)))),
        "{again:?}"
    );
}

#[tokio::test]
async fn the_old_file_is_whole_until_the_rename() {
    let temp = tempfile::tempdir().unwrap();
    let (path, sink) = (temp.path().join("file"), sink(temp.path()));
    fs::write(&path, b"old").unwrap();
    let entry = entry(1, 0, b"file", file_kind(3));
    assert!(matches!(sink.place(vec![Arc::clone(&entry)]).await[0], Ok(Placed::Wanted(_))));
    let file = sink.create(Arc::clone(&entry), None).await.unwrap();
    sink.write(file.clone(), verified_chunk(whole(&entry, 3), b"new")).await.unwrap();
    let digest = sink.digest(file.clone(), whole(&entry, 3), &pool()).await.unwrap();
    assert_eq!(digest, Digest::of(b"new"));
    sink.sync_files(vec![file.clone()]).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    sink.commit(file, Arc::clone(&entry), None).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    let files = vec![(verified_file(entry.id, b"small"), entry)];
    write_files(&sink, files).await.remove(0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"small");
    assert_eq!(names(temp.path()), ["file"]);
}

/// T38, JRN-6.
#[tokio::test]
async fn only_the_very_temporary_file_is_reopened() {
    let temp = tempfile::tempdir().unwrap();
    let sink = sink(temp.path());
    let entry = entry(1, 0, b"file", file_kind(5));
    let identity = sink.identity(&sink.create(Arc::clone(&entry), None).await.unwrap());
    let path = temp.path().join(&names(temp.path())[0]);
    let left = |token: &Token| Left { token: token.clone(), receipts: Vec::new() };
    let reopen = async || sink.reopen(Arc::clone(&entry), left(&identity)).await.unwrap();
    assert!(reopen().await.is_some());
    let others = [(identity.number().unwrap() + 1).into(), Token::new(b"inode").unwrap()];
    for other in others {
        assert!(sink.reopen(Arc::clone(&entry), left(&other)).await.unwrap().is_none());
    }
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4).unwrap();
    assert!(reopen().await.is_none(), "another size");
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(5).unwrap();
    fs::hard_link(&path, temp.path().join("second")).unwrap();
    assert!(reopen().await.is_none(), "two names");
    fs::rename(temp.path().join("second"), temp.path().join("canary")).unwrap();
    fs::remove_file(&path).unwrap();
    symlink("canary", &path).unwrap();
    assert!(reopen().await.is_none(), "a symlink");
    sink.discard_left_over(b"file".to_vec(), identity.clone()).await;
    assert!(path.is_symlink(), "it is not ours to remove");
    let file = sink.create(Arc::clone(&entry), None).await.unwrap();
    assert_eq!(fs::read(temp.path().join("canary")).unwrap(), [0; 5]);
    sink.discard_left_over(b"../x/file".to_vec(), sink.identity(&file)).await;
    assert_eq!(names(temp.path()).len(), 2);
    sink.discard_left_over(b"file".to_vec(), sink.identity(&file)).await;
    sink.discard(file).await.unwrap();
    assert_eq!(names(temp.path()), ["canary"]);
}

#[tokio::test]
async fn a_temporary_file_that_was_swapped_is_not_committed() {
    let temp = tempfile::tempdir().unwrap();
    let sink = sink(temp.path());
    let entry = entry(1, 0, b"file", file_kind(5));
    let file = sink.create(Arc::clone(&entry), None).await.unwrap();
    let path = temp.path().join(&names(temp.path())[0]);
    fs::rename(&path, temp.path().join("kept")).unwrap();
    fs::write(&path, b"other").unwrap();
    assert!(sink.commit(file, entry, None).await.is_err());
    assert!(!temp.path().join("file").exists());
}

#[tokio::test]
async fn holes_stay_holes() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).unwrap();
    let file = fs::File::create(from.join("sparse")).unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_all_at(b"data", (5 << 20) + 17).unwrap();
    copy(&[from.join("")], &to, 0).await;
    let copied = fs::metadata(to.join("sparse")).unwrap();
    assert_eq!(copied.len(), 10 << 20);
    assert!(copied.blocks() * 512 <= 1 << 20, "{} blocks", copied.blocks());
    assert_eq!(fs::read(from.join("sparse")).unwrap(), fs::read(to.join("sparse")).unwrap());
}

/// T53, FRAME-10: holes as small as a block, at the size of chunks that the default has.
#[tokio::test]
async fn every_second_block_stays_a_hole() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).unwrap();
    let file = fs::File::create(from.join("sparse")).unwrap();
    file.set_len((3 << 20) + 4096 * 40 + 7).unwrap();
    for block in 0..(3 << 20) / 8192 {
        file.write_all_at(&[7; 4096], block * 8192).unwrap();
    }
    file.sync_all().unwrap();
    copy(&[from.join("")], &to, 0).await;
    fs::File::open(to.join("sparse")).unwrap().sync_all().unwrap();
    let [old, new] = [&from, &to].map(|dir| fs::metadata(dir.join("sparse")).unwrap());
    assert_eq!(fs::read(from.join("sparse")).unwrap(), fs::read(to.join("sparse")).unwrap());
    assert_eq!((new.len(), new.blocks()), (old.len(), old.blocks()));
    assert!(old.blocks() * 512 < old.len() * 6 / 10, "this file system has no holes");
}

#[tokio::test]
async fn holes_in_a_chunk_remove_what_an_earlier_version_wrote() {
    let temp = tempfile::tempdir().unwrap();
    let sink = sink(temp.path());
    let size: u32 = 1 << 20;
    let entry = entry(1, 0, b"file", file_kind(size.into()));
    let file = sink.create(Arc::clone(&entry), None).await.unwrap();
    let range = whole(&entry, size.into());
    sink.write(file.clone(), verified_chunk(range, &vec![1; 1 << 20])).await.unwrap();
    let extents = [(8192, 4096), (40_960, 8192)].map(|(start, len)| Extent { start, len });
    let mut expected = vec![0; 1 << 20];
    expected[8192..12_288].fill(2);
    expected[40_960..49_152].fill(2);
    let mut payload = vec![2; Sparse::payload_len(size, &extents).unwrap()];
    Sparse::write_table(size, Digest::of(&expected), &extents, &mut payload);
    let chunk = Chunk::sparse(range, 1, payload.into()).unwrap();
    sink.write(file.clone(), chunk.verify().unwrap()).await.unwrap();
    sink.commit(file, entry, None).await.unwrap();
    let path = temp.path().join("file");
    assert!(fs::read(&path).unwrap() == expected);
    fs::File::open(&path).unwrap().sync_all().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().blocks(), 12_288 / 512);
}

#[tokio::test]
async fn a_hole_removes_what_an_earlier_version_wrote() {
    let temp = tempfile::tempdir().unwrap();
    let sink = sink(temp.path());
    let size = 1 << 20;
    let entry = entry(1, 0, b"file", file_kind(size));
    let file = sink.create(Arc::clone(&entry), None).await.unwrap();
    let range = whole(&entry, size);
    sink.write(file.clone(), verified_chunk(range, &vec![1; 1 << 20])).await.unwrap();
    let hole = Chunk::hole(range, 1).verify().unwrap();
    sink.write(file.clone(), hole).await.unwrap();
    sink.commit(file, entry, None).await.unwrap();
    assert_eq!(fs::read(temp.path().join("file")).unwrap(), vec![0; 1 << 20]);
}

/// T72, T74.
#[tokio::test]
async fn a_directory_swapped_for_a_symlink_is_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let (root, canary) = (temp.path().join("root"), temp.path().join("canary"));
    fs::create_dir_all(root.join("there")).unwrap();
    fs::create_dir(&canary).unwrap();
    symlink(&canary, root.join("link")).unwrap();
    let sink = sink(&root);
    let directories = [&b"new"[..], b"there", b"link"].into_iter().zip(1..);
    let mut entries: Vec<_> =
        directories.map(|(name, id)| entry(id, 0, name, Kind::Directory)).collect();
    let placed = sink.place(entries.clone()).await;
    assert!(matches!(placed[0], Ok(Placed::Settled(CREATED))));
    assert!(matches!(placed[1], Ok(Placed::Settled(it)) if !it.has(CREATED)));
    assert!(matches!(placed[2], Err(StorageError::Conflict { .. })));
    for name in ["new", "there"] {
        fs::remove_dir(root.join(name)).unwrap();
        symlink(&canary, root.join(name)).unwrap();
    }
    entries.clear();
    for parent in 1..=3 {
        let file = entry(10 + parent, parent, b"file", file_kind(4));
        assert!(sink.create(Arc::clone(&file), None).await.is_err());
        let small = vec![(verified_file(file.id, b"data"), Arc::clone(&file))];
        assert!(write_files(&sink, small).await[0].is_err());
        entries.push(file);
        entries.push(entry(20 + parent, parent, b"dir", Kind::Directory));
        entries.push(entry(30 + parent, parent, b"l", Kind::Symlink { target: b"x".to_vec() }));
    }
    let placed = sink.place(entries).await;
    assert!(placed.iter().all(Result::is_err), "{placed:?}");
    assert!(matches!(placed[6], Err(StorageError::NoParent { .. })));
    assert!(!finish(&sink).await.is_empty());
    assert_eq!(names(&canary), [""; 0]);
}

/// T74.
#[tokio::test]
async fn swapping_a_directory_all_the_time_does_not_help() {
    let temp = tempfile::tempdir().unwrap();
    let (root, canary) = (temp.path().join("root"), temp.path().join("canary"));
    fs::create_dir_all(root.join("dir")).unwrap();
    fs::create_dir(&canary).unwrap();
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o705)).unwrap();
    symlink(&canary, root.join("link")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, root) =
            (Arc::clone(&stop), beneath::open_operator(&root, OFlags::PATH).unwrap());
        move || {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&root, "dir", &root, "link", flags).unwrap();
            }
        }
    });
    let mut placed = 0;
    for _ in 0..500 {
        let sink = sink(&root);
        let link = Kind::Symlink { target: b"x".to_vec() };
        let entries = [
            entry(1, 0, b"dir", Kind::Directory),
            entry(2, 1, b"sub", Kind::Directory),
            entry(3, 1, b"symlink", link),
            entry(4, 1, b"file", file_kind(4)),
        ];
        let answers = sink.place(entries.to_vec()).await;
        placed += answers.iter().filter(|answer| answer.is_ok()).count();
        let [.., file] = entries;
        let small = vec![(verified_file(file.id, b"data"), Arc::clone(&file))];
        write_files(&sink, small).await;
        if let Ok(open) = sink.create(Arc::clone(&file), None).await {
            let _ = sink.commit(open, file, None).await;
        }
        sink.finish().await;
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(placed > 0);
    assert_eq!(names(&canary), [""; 0]);
    assert_eq!(fs::metadata(&canary).unwrap().mode() & 0o7777, 0o705);
}

#[tokio::test]
async fn peers_cannot_choose_our_own_names() {
    let temp = tempfile::tempdir().unwrap();
    let sink = sink(temp.path());
    let own = sink.inner.temp_name(b"victim");
    for name in [STATE_NAME, &own] {
        for kind in [Kind::Directory, file_kind(1)] {
            let placed = sink.place(vec![entry(1, 0, name, kind)]).await.remove(0);
            assert!(matches!(placed, Err(StorageError::Conflict { .. })));
        }
    }
    let similar = entry(2, 0, b".fastsync-00000000-0123456789abcdef", file_kind(1));
    assert!(matches!(sink.place(vec![similar]).await[0], Ok(Placed::Wanted(_))));
}

#[tokio::test]
async fn directories_are_never_replaced_and_other_things_are() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("dir")).unwrap();
    fs::write(temp.path().join("file"), b"x").unwrap();
    symlink("file", temp.path().join("link")).unwrap();
    let sink = sink(temp.path());
    let link = |target: &[u8]| Kind::Symlink { target: target.to_vec() };
    let place = async |name: &[u8], kind| sink.place(vec![entry(1, 0, name, kind)]).await.remove(0);
    assert!(matches!(place(b"dir", file_kind(1)).await, Err(StorageError::Conflict { .. })));
    assert!(matches!(place(b"dir", link(b"x")).await, Err(StorageError::Conflict { .. })));
    assert!(matches!(place(b"file", Kind::Directory).await, Err(StorageError::Conflict { .. })));
    assert!(matches!(place(b"link", link(b"file")).await, Ok(Placed::Settled(Changes::TIME))));
    assert!(matches!(place(b"link", file_kind(1)).await, Ok(Placed::Wanted(_))));
    let changed = Changes::CONTENT.with(Changes::CHECKSUM);
    assert_eq!(place(b"link", link(b"else")).await.unwrap(), Placed::Settled(changed));
    assert!(
        matches!(place(b"file", link(b"else")).await, Ok(Placed::Settled(it)) if it == CREATED.with(Changes::TYPE))
    );
    let file = entry(2, 0, b"dir", file_kind(4));
    let small = vec![(verified_file(file.id, b"data"), file)];
    let written = write_files(&sink, small).await.remove(0);
    assert!(matches!(written, Err(StorageError::Conflict { .. })), "{written:?}");
    assert_eq!(names(temp.path()), ["dir", "file", "link"]);
}

#[tokio::test]
async fn both_ways_to_write_small_files_do_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let sink = sink(temp.path());
    for (id, no_unnamed, no_empty_path) in [(1, false, false), (2, false, true), (3, true, true)] {
        sink.inner.no_unnamed.store(no_unnamed, Ordering::Relaxed);
        sink.inner.no_empty_path.store(no_empty_path, Ordering::Relaxed);
        let entry = entry(id, 0, b"file", file_kind(4));
        for data in [&b"data"[..], b"more"] {
            let files = vec![(verified_file(entry.id, data), Arc::clone(&entry))];
            write_files(&sink, files).await.remove(0).unwrap();
            assert_eq!(fs::read(temp.path().join("file")).unwrap(), data);
        }
        let data = fs::metadata(temp.path().join("file")).unwrap();
        assert_eq!((data.mode() & 0o7777, data.mtime(), data.mtime_nsec()), (0o644, 1_000_000, 5));
        assert_eq!(names(temp.path()), ["file"]);
        fs::remove_file(temp.path().join("file")).unwrap();
    }
}

#[tokio::test]
async fn modes_and_times_are_kept_only_if_asked() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("old")).unwrap();
    fs::set_permissions(temp.path().join("old"), fs::Permissions::from_mode(0o500)).unwrap();
    let preserve = Preserve {
        permissions: false,
        times: false,
        directory_times: false,
        ..Preserve::default()
    };
    let plain = Options { preserve, ..options() };
    let sink = LocalSink::open(temp.path().as_os_str().as_bytes(), false, JOB, &plain).unwrap();
    let entry = |id, parent, name, kind| {
        let mut entry = Entry::clone(&entry(id, parent, name, kind));
        entry.metadata.mode = Mode::from_raw(0o7757);
        Arc::new(entry)
    };
    let entries = [entry(1, 0, b"old", Kind::Directory), entry(2, 0, b"new", Kind::Directory)];
    sink.place(entries.to_vec()).await;
    let mode = |name| fs::metadata(temp.path().join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("old"), mode("new")), (0o700, 0o700), "usable meanwhile");
    let file = entry(3, 1, b"file", file_kind(4));
    write_files(&sink, vec![(verified_file(file.id, b"data"), file)]).await.remove(0).unwrap();
    assert!(finish(&sink).await.is_empty());
    let umask = sink.inner.umask;
    assert_eq!((mode("old"), mode("new")), (0o500, 0o757 & !umask));
    assert_eq!(mode("old/file"), 0o757 & !umask);
    assert!(fs::metadata(temp.path().join("new")).unwrap().mtime() > 1_000_000);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir_all(from.join("dir/sub")).unwrap();
    fs::write(from.join("dir/sub/file"), b"x").unwrap();
    symlink("x", from.join("dir/link")).unwrap();
    let (_, entries) = walk(&[from.join("")]).await;
    let dry = Options { dry_run: true, ..options() };
    let open = || LocalSink::open(to.as_os_str().as_bytes(), false, JOB, &dry).unwrap();
    let all_would = async |sink: LocalSink| {
        let placed = sink.place(entries.clone()).await;
        assert!(finish(&sink).await.is_empty());
        placed.iter().all(|placed| matches!(placed, Ok(Placed::Wanted(it) | Placed::Settled(it)) if *it == CREATED))
    };
    assert!(all_would(open()).await);
    assert!(!to.exists());
    fs::create_dir(&to).unwrap();
    assert!(all_would(open()).await);
    assert_eq!(names(&to), [""; 0]);
    copy(&[from.join("")], &to, 10).await;
    assert!(!all_would(open()).await);
}

#[tokio::test]
async fn a_single_file_gets_the_name_of_the_destination() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("source");
    fs::write(&path, b"content").unwrap();
    let (source, entries) = walk(std::slice::from_ref(&path)).await;
    assert!(source.is_single_file());
    let destination = temp.path().join("to/renamed");
    let sink = LocalSink::open(destination.as_os_str().as_bytes(), true, JOB, &options()).unwrap();
    assert_eq!(sink.root_path(), temp.path().join("to"));
    assert!(matches!(sink.place(entries.clone()).await[0], Ok(Placed::Wanted(_))));
    copy_file(&source, &sink, &entries[0]).await.unwrap();
    assert_eq!(sink.path(&entries[0]), b"renamed");
    assert_eq!(names(&temp.path().join("to")), ["renamed"]);
    let second = entry(2, 0, b"second", file_kind(1));
    assert!(matches!(sink.place(vec![second]).await[0], Err(StorageError::Conflict { .. })));
}

/// T50.
#[tokio::test]
async fn a_tree_of_5000_levels_is_copied() {
    // In memory if possible, as disks take long for this.
    let temp = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let from = temp.path().join("from");
    fs::create_dir(&from).unwrap();
    let mut dir = beneath::open_operator(&from, OFlags::PATH).unwrap();
    for _ in 0..5000 {
        rustix::fs::mkdirat(&dir, "d", FsMode::RWXU).unwrap();
        dir = beneath::open_child(dir.as_fd(), b"d", OFlags::PATH).unwrap();
    }
    let file =
        beneath::open_name(dir.as_fd(), b"file", OFlags::CREATE | OFlags::WRONLY, FsMode::RUSR)
            .unwrap();
    write_all(file.as_fd(), b"deep", 0).unwrap();
    let to = temp.path().join("to");
    let sink = copy(&[from.join("")], &to, 10).await;
    let path = sink.inner.tree.path(EntryId(5000), b"file");
    let parent = sink.inner.tree.directory(EntryId(5000)).unwrap();
    assert_eq!(path.len(), 5000 * 2 + 4);
    let copied = rustix::fs::statat(&parent, "file", AtFlags::empty()).unwrap();
    assert_eq!(copied.st_size, 4);
}

/// Prints figures: `cargo test --release --lib storage -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "it measures, and takes a while"]
async fn measure_small_files() {
    const COUNT: usize = 20_000;
    let rate = |name: &str, start: std::time::Instant| {
        println!("{name}: {:?} for {COUNT} files", start.elapsed());
    };
    for place in ["/dev/shm", "/tmp"] {
        let temp = tempfile::tempdir_in(place).unwrap();
        let from = temp.path().join("from");
        for n in 0..COUNT {
            let dir = from.join((n % 100).to_string());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(n.to_string()), [n.to_le_bytes()[0]; 4096]).unwrap();
        }
        let start = std::time::Instant::now();
        let (source, entries) = walk(std::slice::from_ref(&from)).await;
        rate(&format!("{place} walk"), start);
        let files: Vec<_> = entries.iter().filter(|entry| size(entry).is_some()).cloned().collect();
        for (name, no_unnamed, no_empty_path) in [
            ("unnamed", false, false),
            ("unnamed by /proc", false, true),
            ("named", true, false),
            ("unnamed again", false, false),
            ("named again", true, false),
        ] {
            let sink = sink(&temp.path().join(name));
            sink.inner.no_unnamed.store(no_unnamed, Ordering::Relaxed);
            sink.inner.no_empty_path.store(no_empty_path, Ordering::Relaxed);
            let start = std::time::Instant::now();
            sink.place(entries.clone()).await;
            rate(&format!("{place} {name}: place"), start);
            let (mut reading, mut writing) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
            for batch in files.chunks(1000) {
                let members = batch.iter().map(|entry| (Arc::clone(entry), 0)).collect();
                let buffer = pool().take(8 << 20).await.unwrap();
                let start = std::time::Instant::now();
                let read = source.read_pack(0, members, buffer).await;
                reading += start.elapsed();
                let files = read.pack.unwrap().verify().unwrap().into_parts().0;
                let files = files.into_iter().zip(batch.iter().cloned()).collect();
                let start = std::time::Instant::now();
                let written = write_files(&sink, files).await;
                writing += start.elapsed();
                assert!(written.iter().all(Result::is_ok));
            }
            println!("  read_pack {reading:?}, write_files {writing:?}");
            assert!(finish(&sink).await.is_empty());
        }
    }
}
