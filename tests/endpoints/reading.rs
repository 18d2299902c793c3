//! Sources: what is found, and what was found and changed.

use std::collections::HashSet;
use std::sync::Arc;

use fastsync::protocol::chunk::{ByteRange, EntryId, Pack};
use fastsync::protocol::message::{Entry, FailureCode, Kind, Options, Select};
use fastsync::storage::{Placed, Sink, Source, StorageError};

use crate::subject::{Files, Subject};
use crate::tools::*;

const TREE: [&str; 9] = [
    "from/a",
    "from/a-b",
    "from/a.d/x",
    "from/b/c/d/e",
    "from/b/c/f",
    "from/b/g",
    "from/b0",
    "from/z/1",
    "from/z/2",
];

async fn plant(subject: &impl Subject) {
    for path in TREE {
        subject.write(path.as_bytes(), path.as_bytes()).await;
    }
}

pub async fn parents_come_first(subject: &impl Subject) {
    plant(subject).await;
    subject.write(b"elsewhere/x", b"x").await;
    subject.write(b"from0", b"x").await;
    let source = subject.source("from", &options()).await.unwrap();
    assert!(!source.is_single_file());
    let walked = Walked::new(&source).await;
    assert!(walked.told.is_empty(), "{:?}", walked.told);
    let mut known = HashSet::from([EntryId::ROOT]);
    let mut files = Files::new();
    for (number, entry) in (1..).zip(&walked.entries) {
        assert_eq!(entry.id, EntryId(number), "identities are counted from 1");
        assert!(known.contains(&entry.parent), "{:?} comes before its directory", entry.name);
        if entry.kind == Kind::Directory {
            known.insert(entry.id);
        } else {
            let path = [&b"from/"[..], &source.path(entry)].concat();
            files.insert(path, fetch(&source, entry).await.unwrap());
        }
    }
    let expected = TREE.map(|path| (path.as_bytes().to_vec(), path.as_bytes().to_vec()));
    assert_eq!(files, Files::from(expected));
    let listed: HashSet<_> = walked.listed.iter().copied().collect();
    assert_eq!((listed, walked.listed.len()), (known, 6), "all are complete, and said so once");
}

pub async fn selections(subject: &impl Subject) {
    plant(subject).await;
    let walk = async |select: Select| {
        let source = subject.source("from", &Options { select, ..options() }).await.unwrap();
        let walked = Walked::new(&source).await;
        let sent = walked.entries.iter().filter(|it| it.kind != Kind::Unselected);
        let mut paths: Vec<_> =
            sent.map(|it| String::from_utf8_lossy(&source.path(it)).into_owned()).collect();
        paths.sort();
        paths
    };
    let filters = vec![b"- c/".to_vec(), b"- *0".to_vec(), b"- /a*".to_vec()];
    let filtered = walk(Select { filters, ..Select::default() }).await;
    assert_eq!(filtered, ["b", "b/g", "z", "z/1", "z/2"]);
    let shallow = walk(Select { max_depth: Some(1), ..Select::default() }).await;
    assert_eq!(shallow, ["a", "a-b", "a.d", "b", "b0", "z"]);
    let sized = walk(Select { min_size: Some(8), max_size: Some(10), ..Select::default() }).await;
    assert_eq!(
        sized,
        ["a-b", "a.d", "a.d/x", "b", "b/c", "b/c/d", "b/c/f", "b/g", "z", "z/1", "z/2"]
    );
}

pub async fn what_changed_is_found_out(subject: &impl Subject) {
    let size = 2 * CHUNK;
    // Where nothing but size and time is told, that has to be another one.
    let new_size = if subject.tells_versions() { size } else { size - 1 };
    let (old, new) = (data(size, 1), data(new_size, 2));
    subject.write(b"from/large", &old).await;
    subject.write(b"from/small", b"old").await;
    let source = subject.source("from", &options()).await.unwrap();
    let walked = Walked::new(&source).await;
    let large = walked.find(&source, b"large").unwrap();
    let small = walked.find(&source, b"small").unwrap();
    let open = source.open(Arc::clone(&large)).await.unwrap();
    read(&source, &open, range(&large, 0)).await.unwrap();
    // The same size, if that may be, and the same time.
    subject.write(b"from/large", &new).await;
    subject.write(b"from/small", other_small(subject)).await;
    // What was read may well have been the old one all the time.
    let confirmed = source.confirm(open).await;
    let is_changed = matches!(confirmed, Err(StorageError::Changed { .. }));
    assert!(is_changed || subject.reads_old_versions() && confirmed.is_ok(), "{confirmed:?}");
    for entry in [&large, &small] {
        let error = fetch(&source, entry).await.unwrap_err();
        assert!(matches!(error, StorageError::Changed { .. }), "{error:?}");
    }
    let now = Arc::new(source.look_again(Arc::clone(&large)).await.unwrap());
    assert_eq!((now.id, now.parent, &now.name), (large.id, large.parent, &large.name));
    assert_eq!(fetch(&source, &now).await.unwrap(), new);
    // Beyond the end of a file that is shorter than it was.
    let beyond = ByteRange::new(now.id, 2 * CHUNK, 10, false).unwrap();
    let open = source.open(Arc::clone(&now)).await.unwrap();
    let error = read(&source, &open, beyond).await.unwrap_err();
    assert!(matches!(error, StorageError::Changed { .. }), "{error:?}");
}

/// What takes the place of three bytes.
fn other_small(subject: &impl Subject) -> &'static [u8] {
    if subject.tells_versions() { b"new" } else { b"newer" }
}

pub async fn what_is_gone_is_found_out(subject: &impl Subject) {
    plant(subject).await;
    let source = subject.source("from", &options()).await.unwrap();
    let walked = Walked::new(&source).await;
    let entry = walked.find(&source, b"b/g").unwrap();
    subject.remove(b"from/b/g").await;
    // It may be found out no sooner than when it is read.
    let opened = match source.open(Arc::clone(&entry)).await {
        Ok(open) => {
            let range = ByteRange::new(entry.id, 0, 1, false).unwrap();
            read(&source, &open, range).await.unwrap_err()
        }
        Err(error) => error,
    };
    for error in [
        opened,
        fetch(&source, &entry).await.unwrap_err(),
        source.look_again(Arc::clone(&entry)).await.unwrap_err(),
    ] {
        assert!(matches!(error, StorageError::Vanished { .. }), "{error:?}");
    }
    let nowhere = subject.source("nowhere", &options()).await;
    let error = nowhere.err().unwrap();
    assert_eq!(error.code(), FailureCode::Io, "what was named and never there: {error}");
}

pub async fn ranges_at_once(subject: &impl Subject) {
    let size = 5 * CHUNK + 3;
    let all = data(size, 4);
    subject.write(b"from/large", &all).await;
    let source = subject.source("from", &options()).await.unwrap();
    let entry = Walked::new(&source).await.entries.pop().unwrap();
    let open = source.open(Arc::clone(&entry)).await.unwrap();
    // More at a time than there are buffers.
    let mut reading = tokio::task::JoinSet::new();
    for index in (0..6).rev() {
        let (source, open, range) = (source.clone(), open.clone(), range(&entry, index));
        reading.spawn(async move { (range, read(&source, &open, range).await.unwrap()) });
    }
    while let Some(joined) = reading.join_next().await {
        let (range, found) = joined.unwrap();
        assert_eq!(found, part(range, &all));
    }
    source.confirm(open).await.unwrap();
}

pub async fn packs_without_some(subject: &impl Subject) {
    for number in 0..100 {
        let path = format!("from/{number:02}");
        subject.write(path.as_bytes(), &data(number * 7, number)).await;
    }
    let source = subject.source("from", &options()).await.unwrap();
    let mut entries = Walked::new(&source).await.entries;
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    for number in [0, 41, 42, 99] {
        subject.remove(format!("from/{number:02}").as_bytes()).await;
    }
    let len: u64 = entries.iter().map(|entry| entry.size()).sum();
    let room = Pack::table_len(entries.len()) + usize::try_from(len).unwrap();
    let files = entries.iter().map(|entry| (Arc::clone(entry), 3)).collect();
    let read = source.read_pack(5, files, pool().take(room).await.unwrap()).await;
    let mut failed: Vec<_> = read.failed.iter().map(|(id, _)| *id).collect();
    failed.sort();
    let expected = [0, 41, 42, 99].map(|number: usize| entries[number].id);
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(failed, expected);
    assert!(read.failed.iter().all(|(_, error)| matches!(error, StorageError::Vanished { .. })));
    let (files, wrong) = read.pack.unwrap().verify().unwrap().into_parts();
    assert_eq!((files.len(), wrong.len(), read.roots.len()), (96, 0, 96));
    for file in files {
        let at = entries.iter().position(|entry| entry.id == file.member().entry).unwrap();
        assert_eq!(file.data()[..], data(at as u64 * 7, at as u64));
        assert_eq!(file.member().version, 3);
    }
}

pub async fn removing_what_is_the_same(subject: &impl Subject) {
    for path in ["from/same", "from/changed", "from/d/same"] {
        subject.write(path.as_bytes(), b"old").await;
    }
    let source = subject.source("from", &options()).await.unwrap();
    let walked = Walked::new(&source).await;
    let new = other_small(subject);
    subject.write(b"from/changed", new).await;
    let paths = [&b"same"[..], b"changed", b"d/same"];
    let entries = paths.map(|path| walked.find(&source, path).unwrap());
    let removed = source.remove(entries.to_vec()).await;
    assert!(removed[0].is_ok() && removed[2].is_ok());
    assert!(matches!(removed[1], Err(StorageError::Changed { .. })));
    let left = Files::from([(b"from/changed".to_vec(), new.to_vec())]);
    assert_eq!(subject.files().await, left);
}

pub async fn a_round_trip_does_nothing_twice(subject: &impl Subject) {
    plant(subject).await;
    subject.write(b"from/b/large", &data(3 * CHUNK, 9)).await;
    let source = subject.source("from", &options()).await.unwrap();
    let walked = Walked::new(&source).await;
    for run in 0..2 {
        let sink = subject.sink("to", &options()).await.unwrap();
        for entry in &walked.entries {
            let placed = place(&sink, entry).await.unwrap();
            if matches!(placed, Placed::Wanted(_)) {
                assert_eq!(run, 0, "{:?}: {placed:?}", entry.name);
                let data = fetch(&source, entry).await.unwrap();
                send(&sink, entry, &data).await.unwrap();
            } else if run > 0 {
                assert_eq!(placed, Placed::Settled(fastsync::protocol::message::Changes::NONE));
            }
        }
        sink.finish().await;
        assert!(sink.complaints().is_empty());
    }
    let files = subject.files().await;
    for path in TREE {
        let copy = path.replacen("from", "to", 1);
        assert_eq!(files[copy.as_bytes()], files[path.as_bytes()]);
    }
    let copied = subject.source("to", &options()).await.unwrap();
    let again = Walked::new(&copied).await;
    assert_eq!(again.entries.len(), walked.entries.len());
    if subject.properties().keeps.times.is_some() {
        for entry in walked.entries.iter().filter(|entry| entry.kind != Kind::Directory) {
            let copy = again.find(&copied, &source.path(entry)).unwrap();
            assert_eq!(copy.metadata.mtime, entry.metadata.mtime, "{:?}", entry.name);
        }
    }
}

/// Where an endpoint copies by itself, it copies the version that was found, with all that is kept.
pub async fn what_is_there_is_copied(subject: &impl Subject) {
    let (large, small) = (data(2 * CHUNK + 7, 1), data(100, 2));
    subject.write(b"from/large", &large).await;
    subject.write(b"from/small", &small).await;
    subject.write(b"from/empty", b"").await;
    let source = subject.source("from", &options()).await.unwrap();
    let walked = Walked::new(&source).await;
    let sink = beside(subject, "to", &source).await;
    if !sink.can_copy() {
        return;
    }
    for entry in &walked.entries {
        assert!(matches!(place(&sink, entry).await.unwrap(), Placed::Wanted(_)));
        copy(&sink, entry).await.unwrap();
    }
    sink.finish().await;
    assert!(sink.complaints().is_empty());
    let files = subject.files().await;
    for (name, data) in [("large", &large), ("small", &small), ("empty", &Vec::new())] {
        assert_eq!(&files[format!("to/{name}").as_bytes()], data);
    }
    let sink = beside(subject, "to", &source).await;
    for entry in &walked.entries {
        let placed = place(&sink, entry).await.unwrap();
        assert_eq!(placed, Placed::Settled(fastsync::protocol::message::Changes::NONE));
    }
    if !subject.tells_versions() {
        return;
    }
    subject.write(b"from/large", &data(2 * CHUNK + 7, 3)).await;
    subject.write(b"from/small", &data(100, 4)).await;
    let sink = beside(subject, "other", &source).await;
    for entry in walked.entries.iter().filter(|entry| entry.size() > 0) {
        place(&sink, entry).await.unwrap();
        let error = copy(&sink, entry).await.unwrap_err();
        assert!(matches!(error, StorageError::Changed { .. }), "{error:?}");
    }
    assert!(!subject.files().await.keys().any(|path| path.starts_with(b"other/")));
}

async fn beside<S: Subject>(subject: &S, at: &str, source: &S::Source) -> S::Sink {
    S::beside(subject.sink(at, &options()).await.unwrap(), source)
}

/// Copies a file as the engine does, whole or in ranges.
async fn copy(sink: &impl Sink, entry: &Arc<Entry>) -> Result<(), StorageError> {
    if entry.size() < u64::from(THRESHOLD) {
        let prepared = sink.copy_files(vec![Arc::clone(entry)]).await.pop().unwrap()?;
        return sink.commit_files(vec![(prepared, Arc::clone(entry))]).await.pop().unwrap();
    }
    let file = sink.create(Arc::clone(entry), None).await?;
    assert!(sink.copy_range(file.clone(), range(entry, 0)).await?, "all of it");
    sink.confirm_copy(file.clone()).await?;
    sink.commit(file, Arc::clone(entry), None).await
}

/// What changes while it is walked is no reason to end: nobody who listens is no error either.
pub async fn certain_paths(subject: &impl Subject) {
    plant(subject).await;
    let source = subject.source("from", &options()).await.unwrap();
    let (sender, receiver) = flume::bounded(1);
    drop(receiver);
    source.walk(sender).await.unwrap();
}
