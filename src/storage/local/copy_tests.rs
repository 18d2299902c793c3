//! Tests of copying from a source on this machine.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use super::testing::{finish, options, sink_with, size, tree, walk};
use super::{LocalSink, LocalSource};
use crate::protocol::chunk::ChunkSize;
use crate::protocol::message::{Entry, Options, Update};
use crate::storage::{Placed, Sink as _, StorageError};

async fn commit(sink: &LocalSink, entries: &[Arc<Entry>]) -> Vec<Result<(), StorageError>> {
    let mut done = Vec::new();
    for (copied, entry) in sink.copy_files(entries.to_vec()).await.into_iter().zip(entries) {
        done.push(match copied {
            Ok(file) => sink.commit_files(vec![(file, Arc::clone(entry))]).await.remove(0),
            Err(error) => Err(error),
        });
    }
    done
}

async fn copy_large(sink: &LocalSink, entry: &Arc<Entry>) -> Result<bool, StorageError> {
    let file = sink.create(Arc::clone(entry), None).await?;
    let (size, chunks) = (size(entry).unwrap(), ChunkSize::from_bytes(1 << 20).unwrap());
    let mut is_cloned = false;
    for index in 0..chunks.count(size) {
        let range = chunks.range(entry.id, index, size).unwrap();
        is_cloned = sink.copy_range(file.clone(), range).await?;
        if is_cloned {
            break;
        }
    }
    sink.confirm_copy(file.clone()).await?;
    sink.commit(file, Arc::clone(entry), None).await?;
    Ok(is_cloned)
}

/// Copies a tree, files below a MiB at once.
async fn copy(from: &Path, to: &Path, options: &Options) -> (LocalSource, Vec<Arc<Entry>>) {
    let (source, entries) = walk(&[from.join("")]).await;
    let sink = sink_with(to, options).with_source(source.clone());
    assert!(sink.can_copy());
    for (entry, placed) in entries.iter().zip(sink.place(entries.clone()).await) {
        match (size(entry), placed.unwrap()) {
            (Some(0..1_000_000), Placed::Wanted(_)) => {
                commit(&sink, std::slice::from_ref(entry)).await.remove(0).unwrap();
            }
            (Some(_), Placed::Wanted(_)) => {
                copy_large(&sink, entry).await.unwrap();
            }
            _ => {}
        }
    }
    assert!(finish(&sink).await.is_empty());
    (source, entries)
}

fn make_tree(from: &Path) {
    fs::create_dir_all(from.join("dir")).unwrap();
    for (name, len) in [("empty", 0), ("small", 10), ("medium", 500_000), ("large", 5_000_001)] {
        let data: Vec<u8> = (0..len).map(|n: u32| n.to_le_bytes()[(n % 3) as usize]).collect();
        fs::write(from.join("dir").join(name), data).unwrap();
    }
    for (name, len) in [("sparse small", 500_000), ("sparse large", 10 << 20)] {
        let file = fs::File::create(from.join(name)).unwrap();
        file.set_len(len).unwrap();
        file.write_all_at(b"data", len / 2).unwrap();
    }
    fs::set_permissions(from.join("dir/small"), fs::Permissions::from_mode(0o440)).unwrap();
}

fn assert_equal(from: &Path, to: &Path) {
    assert_eq!(tree(from), tree(to));
    for path in tree(from) {
        let (a, b) = (from.join(&path), to.join(&path));
        let (before, after) = (fs::metadata(&a).unwrap(), fs::metadata(&b).unwrap());
        let look = |it: &fs::Metadata| (it.mode(), it.mtime(), it.mtime_nsec());
        assert_eq!(look(&before), look(&after), "{path}");
        if before.is_file() {
            assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{path}");
        }
        if path.starts_with("sparse") {
            assert!(after.blocks() * 512 <= 1 << 17, "{path}: {} blocks", after.blocks());
        }
    }
}

/// The places of this machine that are of different file systems.
fn places() -> Vec<tempfile::TempDir> {
    let places = ["/dev/shm", "/var/tmp"].map(tempfile::tempdir_in);
    places.into_iter().filter_map(Result::ok).collect()
}

#[tokio::test]
async fn a_tree_is_copied_within_and_between_file_systems() {
    for source in places() {
        for target in places() {
            let (from, to) = (source.path().join("from"), target.path().join("to"));
            make_tree(&from);
            copy(&from, &to, &options()).await;
            assert_equal(&from, &to);
        }
    }
}

#[tokio::test]
async fn files_are_copied_into_existing_ones() {
    for target in places() {
        let (from, to) = (target.path().join("from"), target.path().join("to"));
        make_tree(&from);
        fs::create_dir_all(to.join("dir")).unwrap();
        for path in ["sparse small", "sparse large", "dir/medium", "dir/large"] {
            fs::write(to.join(path), vec![9; 6_000_000]).unwrap();
        }
        let update = Update { in_place: true, ..Update::default() };
        copy(&from, &to, &Options { update, ..options() }).await;
        assert_equal(&from, &to);
    }
}

#[tokio::test]
async fn a_source_that_changed_is_not_copied() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    make_tree(&from);
    let (source, entries) = walk(&[from.join("")]).await;
    let sink = sink_with(&to, &options()).with_source(source);
    sink.place(entries.clone()).await;
    let named = |name: &str| {
        let found = entries.iter().find(|entry| entry.name.as_bytes() == name.as_bytes());
        Arc::clone(found.unwrap())
    };
    fs::write(from.join("dir/small"), b"other").unwrap();
    fs::remove_file(from.join("dir/empty")).unwrap();
    let copied = commit(&sink, &[named("small"), named("empty"), named("medium")]).await;
    assert!(matches!(copied[0], Err(StorageError::Changed { .. })), "{copied:?}");
    assert!(matches!(copied[1], Err(StorageError::Vanished { .. })), "{copied:?}");
    assert!(copied[2].is_ok());

    let file = sink.create(named("large"), None).await.unwrap();
    let large = ChunkSize::DEFAULT.range(named("large").id, 0, 5_000_001).unwrap();
    sink.copy_range(file.clone(), large).await.unwrap();
    let opened = fs::OpenOptions::new().append(true).open(from.join("dir/large")).unwrap();
    std::io::Write::write_all(&mut &opened, b"more").unwrap();
    let confirmed = sink.confirm_copy(file.clone()).await;
    assert!(matches!(confirmed, Err(StorageError::Changed { .. })), "{confirmed:?}");
    sink.discard(file).await.unwrap();
    assert_eq!(tree(&to), ["dir", "dir/medium"]);
}

/// Runs where somebody mounted a file system that shares blocks, and named it.
#[tokio::test]
async fn blocks_are_shared_where_they_can_be() {
    let Some(place) = std::env::var_os("FASTSYNC_TEST_REFLINK") else { return };
    let temp = tempfile::tempdir_in(place).unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    make_tree(&from);
    let (source, entries) = copy(&from, &to, &options()).await;
    assert_equal(&from, &to);
    let large = entries.iter().find(|entry| entry.name.as_bytes() == b"large").unwrap();
    let sink = sink_with(&to, &options()).with_source(source);
    sink.place(entries.clone()).await;
    assert!(copy_large(&sink, large).await.unwrap());
}

/// Prints figures: `cargo test --lib copy_tests -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, and takes a while"]
async fn measure_against_cp() {
    const COUNT: usize = 20_000;
    for place in ["/dev/shm", "/var/tmp"] {
        for len in [1000, 10_000, 50_000] {
            let temp = tempfile::tempdir_in(place).unwrap();
            let from = temp.path().join("from");
            for n in 0..COUNT {
                let dir = from.join((n % 100).to_string());
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join(n.to_string()), vec![n.to_le_bytes()[0]; len]).unwrap();
            }
            rustix::fs::sync();
            let mut best = [f64::MAX; 2];
            for round in 0..5 {
                let to = temp.path().join(format!("cp {round}"));
                let start = std::time::Instant::now();
                let done = std::process::Command::new("cp").arg("-a").args([&from, &to]).status();
                assert!(done.unwrap().success());
                best[0] = best[0].min(start.elapsed().as_secs_f64());
                rustix::fs::sync();
                let to = temp.path().join(format!("ours {round}"));
                let start = std::time::Instant::now();
                copy_in_two_threads(&from, &to).await;
                best[1] = best[1].min(start.elapsed().as_secs_f64());
                rustix::fs::sync();
            }
            println!(
                "{place}, {COUNT} files of {len} bytes: cp -a {:.3} s, copy_files {:.3} s",
                best[0], best[1]
            );
        }
        measure_large(place).await;
    }
}

async fn copy_in_two_threads(from: &Path, to: &Path) {
    let (source, entries) = walk(&[from.join("")]).await;
    let sink = sink_with(to, &options()).with_source(source);
    sink.place(entries.clone()).await;
    let files: Vec<_> = entries.into_iter().filter(|entry| size(entry).is_some()).collect();
    let mut tasks = tokio::task::JoinSet::new();
    let (queue, next) = flume::unbounded();
    files.chunks(256).for_each(|batch| queue.send(batch.to_vec()).unwrap());
    drop(queue);
    for _ in 0..2 {
        let (sink, next) = (sink.clone(), next.clone());
        tasks.spawn(async move {
            while let Ok(batch) = next.try_recv() {
                let copied = sink.copy_files(batch.clone()).await;
                let copied = copied.into_iter().map(Result::unwrap).zip(batch).collect();
                assert!(sink.commit_files(copied).await.iter().all(Result::is_ok));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    sink.finish().await;
}

async fn measure_large(place: &str) {
    let temp = tempfile::tempdir_in(place).unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("large"), vec![7; 512 << 20]).unwrap();
    rustix::fs::sync();
    let (source, entries) = walk(&[from.join("")]).await;
    for can_copy in [true, false] {
        let sink = sink_with(&to, &options()).with_source(source.clone());
        if !can_copy {
            let device = fs::metadata(&from).unwrap().dev();
            sink.inner().pairs.forbid((device, device));
        }
        let start = std::time::Instant::now();
        copy_large(&sink, &entries[0]).await.unwrap();
        println!("{place}, 512 MiB, by the kernel: {can_copy}, {:?}", start.elapsed());
        fs::remove_dir_all(&to).unwrap();
    }
}
