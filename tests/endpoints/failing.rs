//! Endpoints that fail and lie: what is told, and what is left alone.

use std::sync::Arc;
use std::time::Duration;

use fastsync::protocol::chunk::Digest;
use fastsync::protocol::message::{Delete, FailureCode, Kind, Options};
use fastsync::storage::memory::{FILES, Memory, OBJECTS, SERVER, STORE, Step};
use fastsync::storage::remote::{
    Class, Fault, Kept, Key, KeyError, Listed, RemoteSink, RemoteSource, Thing, ThingKind,
};
use fastsync::storage::{Sink, Source, StorageError};

use crate::subject::{InMemory, Subject, key};
use crate::tools::*;

fn denied() -> Fault {
    Fault::new(Class::Denied, "this is not yours")
}

/// Nothing is complete of which a listing failed, so that nothing is deleted for it.
#[tokio::test]
async fn a_failed_listing_completes_nothing() {
    for properties in [FILES, OBJECTS] {
        let subject = InMemory::new(properties);
        for path in ["from/a", "from/d/b", "from/d/e/c", "from/f/g"] {
            subject.write(path.as_bytes(), b"x").await;
        }
        let (failed, told) = if properties.keeps.directories { ("from/d", 1) } else { ("from", 1) };
        subject.0.fail(Step::List, Some(key(failed.as_bytes())), denied(), 1);
        let source = subject.source("from", &options()).await.unwrap();
        let walked = Walked::new(&source).await;
        assert_eq!(walked.told.len(), told, "{:?}", walked.told);
        assert!(walked.told[0].contains("this is not yours"));
        if properties.keeps.directories {
            let d = walked.find(&source, b"d").unwrap();
            assert!(!walked.listed.contains(&d.id) && walked.listed.len() == 2);
        } else {
            assert!(walked.listed.is_empty());
        }
    }
}

/// A listing of several pages that breaks off.
#[tokio::test]
async fn a_listing_that_breaks_off_completes_nothing() {
    for properties in [FILES, OBJECTS] {
        let subject = InMemory::new(properties);
        for number in 0..10 {
            subject.write(format!("from/{number}").as_bytes(), b"x").await;
        }
        let source = subject.source("from", &options()).await.unwrap();
        subject.0.fail_after(Step::List, 2, denied());
        let walked = Walked::new(&source).await;
        assert_eq!((walked.told.len(), walked.entries.len()), (1, 6));
        assert!(walked.listed.is_empty());
    }
}

/// Requests wait for each other, and a listing that is under way is one of them.
#[tokio::test]
async fn a_listing_keeps_nobody_waiting() {
    for properties in [FILES, OBJECTS, STORE] {
        let subject = InMemory::new(properties);
        subject.0.set_page(250);
        for number in 0..800 {
            subject.write(format!("from/{number}").as_bytes(), b"x").await;
        }
        let source = subject.source("from", &options()).await.unwrap();
        let walked = tokio::time::timeout(Duration::from_mins(1), Walked::new(&source)).await;
        assert_eq!(walked.expect("the walk stands still").entries.len(), 800);
    }
}

/// Keys that lead elsewhere are never paths.
#[tokio::test]
async fn a_lying_listing_leads_nowhere() {
    let thing = Thing {
        kind: ThingKind::File,
        size: 1 << 62,
        mtime: None,
        modified: None,
        mode: None,
        owners: None,
        tag: None,
        root: None,
        target: None,
    };
    for properties in [FILES, SERVER, OBJECTS, STORE] {
        let subject = InMemory::new(properties);
        subject.write(b"from/a", b"x").await;
        subject.write(b"to/extra", b"x").await;
        subject.write(b"outside", b"x").await;
        let reason = Key::new(b"from/../outside").unwrap_err();
        subject.0.plant(Listed::Unusable { shown: b"from/../outside".to_vec(), reason });
        subject
            .0
            .plant(Listed::Unusable { shown: vec![b'x'; 9000], reason: KeyError::Length(9000) });
        subject.0.plant(Listed::Thing(key(b"outside"), thing.clone()));
        let source = subject.source("from", &options()).await.unwrap();
        let walked = Walked::new(&source).await;
        let paths: Vec<_> = walked.entries.iter().map(|entry| source.path(entry)).collect();
        assert!(paths.contains(&b"a".to_vec()));
        let sent = |it: &&Arc<_>| {
            !matches!(
                AsRef::<fastsync::protocol::message::Entry>::as_ref(*it).kind,
                Kind::Unsendable(_)
            )
        };
        assert_eq!(walked.entries.iter().filter(sent).count(), 1, "{paths:?}");
        let deleting = Options { delete: Some(Delete::default()), ..options() };
        let sink = subject.sink("to", &deleting).await.unwrap();
        delete(&sink, &[0], names(&[(0, "other")])).await.unwrap();
        assert!(subject.0.get(&key(b"outside")).is_some());
        assert!(subject.0.get(&key(b"to/extra")).is_none());
    }
}

/// An object and a directory of one name: one of them is told of, and nothing is deleted for it.
#[tokio::test]
async fn a_file_and_a_directory_of_one_name() {
    for names in [["from/a", "from/a/b"], ["from/x/a", "from/x/a/b"]] {
        let subject = InMemory::new(OBJECTS);
        for path in names.iter().chain(&["from/a!", "from/z"]) {
            subject.write(path.as_bytes(), b"x").await;
        }
        let source = subject.source("from", &options()).await.unwrap();
        let walked = Walked::new(&source).await;
        let unsendable =
            walked.entries.iter().filter(|it| matches!(it.kind, Kind::Unsendable(_))).count();
        assert!(unsendable + walked.told.len() > 0, "it is said");
        let mut names: Vec<_> =
            walked.entries.iter().map(|entry| (entry.parent, entry.name.clone())).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "no two entries have one name");
        assert!(walked.find(&source, b"z").is_some());
    }
}

/// A directory is listed once for all that comes into it, however much that is at a time.
#[tokio::test]
async fn a_directory_is_listed_once() {
    for properties in [FILES, OBJECTS] {
        let subject = InMemory::new(properties);
        subject.0.set_page(10_000);
        for number in 0..200 {
            subject.write(format!("to/d/{number}").as_bytes(), b"x").await;
        }
        let sink = subject.sink("to", &options()).await.unwrap();
        let mut entries = vec![directory(1, 0, "d")];
        entries.extend((0..200).map(|number| file(number + 10, 1, &number.to_string(), 2)));
        let before = subject.0.count(Step::List);
        subject.0.hold(Step::List);
        let memory = subject.0.clone();
        let letting_go = async {
            // Whoever wants to list has had its turn by then.
            while memory.count(Step::List) == before {
                tokio::task::yield_now().await;
            }
            memory.release(Step::List);
        };
        let (placed, ()) = tokio::join!(sink.place(entries), letting_go);
        assert!(placed.iter().all(Result::is_ok));
        assert_eq!(subject.0.count(Step::List) - before, 2, "the top and the directory");
        assert!(subject.0.count(Step::Stat) < 5, "sizes tell that they are different");
    }
}

/// What fails for one file is that file's failure.
#[tokio::test]
async fn one_fails_and_the_others_do_not() {
    let subject = InMemory::new(FILES);
    let sink = subject.sink("to", &options()).await.unwrap();
    let entries: Vec<_> = (1..6).map(|id| file(id, 0, &id.to_string(), 1)).collect();
    assert!(sink.place(entries.clone()).await.iter().all(Result::is_ok));
    subject.0.fail(Step::Put, Some(key(b"to/3")), denied(), u64::MAX);
    let files = entries.iter().map(|it| (verified_file(it.id, b"x"), Arc::clone(it))).collect();
    let prepared = sink.prepare_files(files).await;
    let failed: Vec<_> = prepared.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, true, false, false]);
    let error = prepared.into_iter().nth(2).unwrap().unwrap_err();
    assert_eq!((error.code(), error.is_fatal()), (FailureCode::Permission, false));
    assert!(error.to_string().contains("this is not yours"), "{error}");
    let full = Fault::new(Class::Full, "the quota is used up");
    subject.0.fail(Step::Begin, None, full, 1);
    let error = sink.create(file(9, 0, "9", CHUNK), None).await.unwrap_err();
    assert!(error.is_fatal() && error.code() == FailureCode::DestinationFull);
}

/// What cannot be kept of a file whose data is right is a complaint.
#[tokio::test]
async fn metadata_that_cannot_be_set_fails_nothing() {
    let subject = InMemory::new(FILES);
    let sink = subject.sink("to", &options()).await.unwrap();
    let (parent, child) = (directory(1, 0, "d"), file(2, 1, "file", 1));
    place(&sink, &parent).await.unwrap();
    put(&sink, &child, b"x").await;
    subject.0.fail(Step::Set, None, denied(), u64::MAX);
    let mut other = child.as_ref().clone();
    other.metadata.mode = fastsync::protocol::message::Mode::from_raw(0o600);
    let sink = subject.sink("to", &options()).await.unwrap();
    place(&sink, &parent).await.unwrap();
    assert!(place(&sink, &Arc::new(other)).await.is_ok());
    assert_eq!(sink.complaints().len(), 1);
}

/// A second run that finds everything as it is to be asks for no more than listings.
#[tokio::test]
async fn a_run_with_nothing_to_do_changes_nothing() {
    let subject = InMemory::new(FILES);
    let entries = [directory(1, 0, "d"), directory(2, 1, "e"), file(3, 2, "file", 1)];
    for run in 0..2 {
        let before = subject.0.count(Step::Set);
        let sink = subject.sink("to", &options()).await.unwrap();
        for entry in &entries {
            put(&sink, entry, b"x").await;
        }
        sink.finish().await;
        let sets = subject.0.count(Step::Set) - before;
        assert_eq!(sets, if run == 0 { 2 } else { 0 });
    }
}

/// The root has to be known before the data comes where it can be kept only then.
#[tokio::test]
async fn roots_are_kept_where_they_can_be() {
    for properties in [FILES, SERVER, OBJECTS, STORE] {
        let subject = InMemory::new(properties);
        let sink = subject.sink("to", &options()).await.unwrap();
        let whole = data(2 * CHUNK, 3);
        let (large, small) = (file(1, 0, "large", 2 * CHUNK), file(2, 0, "small", 3));
        put(&sink, &large, &whole).await;
        put(&sink, &small, b"abc").await;
        let is_kept = properties.keeps.roots != fastsync::storage::remote::KeepsRoot::Never;
        for (name, data) in [("to/large", &whole[..]), ("to/small", b"abc")] {
            let (thing, _) = subject.0.get(&key(name.as_bytes())).unwrap();
            assert_eq!(thing.root, is_kept.then(|| Digest::of(data)), "{name}");
        }
        if properties.keeps.roots == fastsync::storage::remote::KeepsRoot::FromTheBeginning {
            let sink = subject.sink("new", &options()).await.unwrap();
            let placed = sink.place(vec![Arc::clone(&large)]).await.pop().unwrap().unwrap();
            let replaced = fastsync::storage::Existing::Replaced;
            assert_eq!(placed, fastsync::storage::Placed::Compare(replaced));
            let dry = Options { dry_run: true, ..options() };
            let sink = subject.sink("new", &dry).await.unwrap();
            let placed = sink.place(vec![Arc::clone(&large)]).await.pop().unwrap().unwrap();
            assert_eq!(placed, fastsync::storage::Placed::Wanted(CREATED), "nothing comes");
        }
    }
}

/// A stored root is a claim, and what was read is held against it.
#[tokio::test]
async fn what_is_not_as_its_stored_root_says_is_not_sent() {
    let memory = Memory::new(FILES);
    let kept = Kept { root: Some(Digest::of(b"other")), ..Kept::default() };
    memory.write_file(&key(b"from/file"), b"rotten", &kept);
    let sources = vec![(key(b"from"), true)];
    let source = RemoteSource::open(memory, sources, &options(), None).await.unwrap();
    let entry = Walked::new(&source).await.entries.pop().unwrap();
    let error = fetch(&source, &entry).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }));
    assert_eq!(error.code(), FailureCode::Verification);
}

/// A sender that announces a single file and sends several gives none of them its name.
#[tokio::test]
async fn only_one_gets_the_name_of_the_destination() {
    let memory = Memory::new(FILES);
    let options = options();
    let open = RemoteSink::open(memory.clone(), key(b"new/name"), false, true, &options);
    let sink = open.await.unwrap();
    put(&sink, &file(1, 0, "a", 1), b"1").await;
    let refused = place(&sink, &file(2, 0, "b", 1)).await.unwrap_err();
    assert_eq!(refused.code(), FailureCode::Conflict);
    assert!(memory.get(&key(b"new/name")).is_some());
}

/// Where a destination leads, as rsync has it.
#[tokio::test]
async fn destinations() {
    for properties in [FILES, OBJECTS] {
        let subject = InMemory::new(properties);
        subject.write(b"dir/x", b"x").await;
        subject.write(b"file", b"x").await;
        let put_at = async |at: &str, is_directory: bool, single: bool| {
            let at = key(at.as_bytes());
            let options = options();
            let open = RemoteSink::open(subject.0.clone(), at, is_directory, single, &options);
            put(&open.await?, &file(1, 0, "name", 2), b"22").await;
            Ok::<_, StorageError>(())
        };
        put_at("dir", false, true).await.unwrap();
        put_at("new", false, true).await.unwrap();
        put_at("made", true, true).await.unwrap();
        put_at("several/deep", false, false).await.unwrap();
        put_at("file", false, true).await.unwrap();
        assert!(put_at("file", false, false).await.is_err());
        let files = subject.files().await;
        let paths: Vec<_> = files.keys().map(|it| String::from_utf8_lossy(it)).collect();
        assert_eq!(paths, ["dir/name", "dir/x", "file", "made/name", "new", "several/deep/name"]);
        assert_eq!(files[&b"file"[..]], b"22");
    }
}

/// What is looked for by name, and what is not there.
#[tokio::test]
async fn paths_that_were_asked_for() {
    for properties in [FILES, OBJECTS] {
        let subject = InMemory::new(properties);
        for path in ["from/a/b/c", "from/a/b/d", "from/a/e", "from/f", "from/g/h"] {
            subject.write(path.as_bytes(), b"x").await;
        }
        let asked = ["a/b/c", "f", "none", "../f"].map(|path| path.as_bytes().to_vec()).to_vec();
        let sources = vec![(key(b"from"), true)];
        let options = options();
        let source = RemoteSource::open(subject.0.clone(), sources, &options, Some(asked));
        let source = source.await.unwrap();
        let walked = Walked::new(&source).await;
        let sent = walked.entries.iter().filter(|it| !matches!(it.kind, Kind::Unsendable(_)));
        let mut paths: Vec<_> = sent.map(|entry| source.path(entry)).collect();
        paths.sort();
        assert_eq!(paths, [&b"a"[..], b"a/b", b"a/b/c", b"f"]);
        let unsendable = walked.entries.len() - paths.len();
        assert_eq!(unsendable + walked.told.len(), 2, "both are told: {walked:?}");
    }
}

/// A journal of one upload is of no use for a thing that is held up, and nothing waits forever.
#[tokio::test]
async fn requests_are_made_at_the_same_time() {
    let subject = InMemory::new(FILES);
    let sink = subject.sink("to", &options()).await.unwrap();
    let entries: Vec<_> = (1..=8).map(|id| file(id, 0, &id.to_string(), 1)).collect();
    assert!(sink.place(entries.clone()).await.iter().all(Result::is_ok));
    subject.0.hold(Step::Put);
    let memory = subject.0.clone();
    let files = entries.iter().map(|it| (verified_file(it.id, b"x"), Arc::clone(it))).collect();
    let waiting = async {
        while memory.count(Step::Put) < 8 {
            tokio::task::yield_now().await;
        }
        memory.release(Step::Put);
    };
    let both = async { tokio::join!(sink.prepare_files(files), waiting) };
    let (prepared, ()) = tokio::time::timeout(Duration::from_mins(1), both).await.unwrap();
    assert!(prepared.iter().all(Result::is_ok));
}
