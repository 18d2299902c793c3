//! What is there already: what is equal, what is in the way, and what is put right.

use std::sync::Arc;

use fastsync::protocol::chunk::Digest;
use fastsync::protocol::message::{
    Changes, Compare, FailureCode, Kind, MakeRoom, Metadata, Mode, Options, Preserve, Special,
    Update,
};
use fastsync::storage::remote::KeepsRoot;
use fastsync::storage::{Existing, Placed, Sink};

use crate::subject::Subject;
use crate::tools::*;

const SETTLED: Placed = Placed::Settled(Changes::NONE);

pub async fn what_is_equal_is_left(subject: &impl Subject) {
    let keeps = subject.properties().keeps;
    let entries = [directory(1, 0, "d"), file(2, 1, "small", 5), file(3, 1, "large", CHUNK + 1)];
    for run in 0..2 {
        let sink = subject.sink("to", &options()).await.unwrap();
        for entry in &entries {
            let placed = put(&sink, entry, &data(entry.size(), entry.id.0)).await;
            let is_seen = entry.kind != Kind::Directory || keeps.directories;
            assert_eq!(placed == SETTLED, run > 0 || !is_seen, "{placed:?} in run {run}");
        }
        sink.finish().await;
        assert!(sink.complaints().is_empty());
    }
}

pub async fn sizes_and_times_and_modes(subject: &impl Subject) {
    let keeps = subject.properties().keeps;
    let original = file(1, 0, "file", 10);
    let first = subject.sink("to", &options()).await.unwrap();
    put(&first, &original, &[1; 10]).await;
    let sink = subject.sink("to", &options()).await.unwrap();
    match place(&sink, &file(1, 0, "file", 11)).await.unwrap() {
        Placed::Wanted(it) => {
            assert!(it.has(Changes::SIZE) && it.has(Changes::CONTENT));
            assert!(!it.has(Changes::CREATED));
        }
        placed => panic!("{placed:?}"),
    }
    if keeps.times.is_some() {
        let placed = place(&sink, &later(&original, 5)).await.unwrap();
        assert!(
            matches!(placed, Placed::Wanted(it) if it.has(Changes::TIME) && !it.has(Changes::SIZE))
        );
        let windowed = updating(Update { modify_window: 5, ..Update::default() });
        let sink = subject.sink("to", &windowed).await.unwrap();
        assert_eq!(place(&sink, &later(&original, 5)).await.unwrap(), SETTLED);
        let placed = place(&sink, &later(&original, 6)).await.unwrap();
        assert!(matches!(placed, Placed::Wanted(_)), "{placed:?}");
    }
    let mut other = original.as_ref().clone();
    other.metadata.mode = Mode::from_raw(0o600);
    let placed = place(&sink, &Arc::new(other.clone())).await.unwrap();
    let expected = if keeps.modes { Changes::PERMISSIONS } else { Changes::NONE };
    assert_eq!(placed, Placed::Settled(expected));
    let sink = subject.sink("to", &options()).await.unwrap();
    assert_eq!(place(&sink, &Arc::new(other.clone())).await.unwrap(), SETTLED);
    let preserve = Preserve { permissions: false, ..Preserve::default() };
    let sink = subject.sink("to", &Options { preserve, ..options() }).await.unwrap();
    assert_eq!(place(&sink, &original).await.unwrap(), SETTLED, "modes are not kept");
}

/// Where only the time of writing is known, a file is equal that was written after its source.
pub async fn no_stored_time(subject: &impl Subject) {
    let original = file(1, 0, "file", 10);
    let first = subject.sink("to", &options()).await.unwrap();
    put(&first, &original, &[1; 10]).await;
    let sink = subject.sink("to", &options()).await.unwrap();
    let newer = later(&original, 1_000_000_000);
    assert!(matches!(place(&sink, &newer).await.unwrap(), Placed::Wanted(_)));
    let older = place(&sink, &later(&original, -5)).await.unwrap();
    assert_eq!(older == SETTLED, subject.properties().keeps.times.is_none(), "{older:?}");
}

pub async fn by_checksum(subject: &impl Subject) {
    let update = Update { compare: Compare::Checksum, ..Update::default() };
    let keeps = subject.properties().keeps;
    for (entry, id) in [(file(1, 0, "small", 10), 1), (file(2, 0, "large", CHUNK + 1), 2)] {
        let data = data(entry.size(), id);
        let first = subject.sink("to", &options()).await.unwrap();
        put(&first, &entry, &data).await;
        let sink = subject.sink("to", &updating(update.clone())).await.unwrap();
        let placed = place(&sink, &later(&entry, 9)).await.unwrap();
        if keeps.roots == KeepsRoot::Never {
            assert_eq!(placed, Placed::Compare(Existing::Unread));
            let existing = sink.open_existing(Arc::clone(&entry)).await.unwrap();
            for index in 0..entry.size().div_ceil(CHUNK) {
                let range = range(&entry, index);
                let found = sink.digest(existing.clone(), range, &pool()).await.unwrap();
                assert_eq!(found, digest(range, part(range, &data)));
            }
        } else {
            assert_eq!(placed, Placed::Compare(Existing::Root(Digest::of(&data))));
        }
        let is_time = Changes::TIME.when(keeps.times.is_some());
        let equal = sink.place_compared(later(&entry, 9), true).await.unwrap();
        assert_eq!(equal, Placed::Settled(is_time));
        let unequal = sink.place_compared(Arc::clone(&entry), false).await.unwrap();
        assert!(matches!(unequal, Placed::Wanted(it) if it.has(Changes::CHECKSUM)));
        // Of another size it need not be read.
        let other = file(entry.id.0, 0, std::str::from_utf8(entry.name.as_bytes()).unwrap(), 11);
        assert!(matches!(place(&sink, &other).await.unwrap(), Placed::Wanted(_)));
    }
}

pub async fn by_choice(subject: &impl Subject) {
    let original = file(1, 0, "file", 10);
    let first = subject.sink("to", &options()).await.unwrap();
    put(&first, &original, &[1; 10]).await;
    let place_with = async |update: Update, entry: &Arc<_>| {
        let sink = subject.sink("to", &updating(update)).await.unwrap();
        place(&sink, entry).await.unwrap()
    };
    let with = |compare| Update { compare, ..Update::default() };
    let always = place_with(with(Compare::Always), &original).await;
    assert!(matches!(always, Placed::Wanted(_)));
    let times = Changes::TIME.when(subject.properties().keeps.times.is_some());
    let by_size = place_with(with(Compare::SizeOnly), &later(&original, 3)).await;
    assert_eq!(by_size, Placed::Settled(times));
    let bigger = file(1, 0, "file", 11);
    let ignoring = Update { ignore_existing: true, ..Update::default() };
    assert_eq!(place_with(ignoring.clone(), &bigger).await, Placed::Left);
    assert!(matches!(place_with(ignoring, &file(2, 0, "no", 11)).await, Placed::Wanted(_)));
    let existing = Update { existing_only: true, ..Update::default() };
    assert_eq!(place_with(existing.clone(), &file(2, 0, "no", 11)).await, Placed::Left);
    assert!(matches!(place_with(existing.clone(), &bigger).await, Placed::Wanted(_)));
    let sink = subject.sink("to", &updating(existing)).await.unwrap();
    let missing = vec![directory(3, 0, "none"), file(4, 3, "in", 1)];
    for placed in sink.place(missing).await {
        assert_eq!(placed.unwrap(), Placed::Left, "neither it nor anything in it");
    }
    let newer = Update { keep_newer: true, ..Update::default() };
    assert_eq!(place_with(newer.clone(), &later(&bigger, -100)).await, Placed::Left);
    let much_later = later(&bigger, 1_000_000_000);
    assert!(matches!(place_with(newer, &much_later).await, Placed::Wanted(_)));
}

pub async fn a_dry_run_touches_nothing(subject: &impl Subject) {
    subject.write(b"to/same", b"12345").await;
    subject.write(b"to/other", b"123").await;
    let (files, directories) = (subject.files().await, subject.directories().await);
    let dry = Options { dry_run: true, ..options() };
    for at in ["to", "nowhere/at/all"] {
        let sink = subject.sink(at, &dry).await.unwrap();
        let entries = vec![
            directory(1, 0, "d"),
            file(2, 1, "in", 7),
            file(3, 0, "other", 7),
            file(4, 0, "new", CHUNK * 2),
        ];
        for (placed, entry) in sink.place(entries.clone()).await.into_iter().zip(&entries) {
            match placed.unwrap() {
                Placed::Wanted(it) => assert!(it.has(Changes::CONTENT), "{entry:?}"),
                Placed::Settled(_) => assert_eq!(entry.kind, Kind::Directory),
                placed => panic!("{placed:?} of {entry:?}"),
            }
        }
        sink.finish().await;
        assert!(sink.complaints().is_empty());
        assert_eq!(
            (subject.files().await, subject.directories().await),
            (files.clone(), directories.clone())
        );
    }
}

pub async fn other_types_are_in_the_way(subject: &impl Subject) {
    subject.write(b"to/file", b"12345").await;
    subject.write(b"to/dir/in", b"123").await;
    let before = subject.files().await;
    let sink = subject.sink("to", &options()).await.unwrap();
    let entries = vec![directory(1, 0, "file"), file(2, 1, "below", 1), file(3, 0, "dir", 7)];
    let placed = sink.place(entries).await;
    for placed in placed {
        assert_eq!(placed.unwrap_err().code(), FailureCode::Conflict);
    }
    let update = Update { make_room: MakeRoom::EmptyDirectories, ..Update::default() };
    let sink = subject.sink("to", &updating(update)).await.unwrap();
    let refused = match place(&sink, &file(3, 0, "dir", 7)).await {
        Err(error) => error,
        Ok(_) => send(&sink, &file(3, 0, "dir", 7), &[0; 7]).await.unwrap_err(),
    };
    assert_eq!(refused.code(), FailureCode::Conflict, "it is not empty: {refused}");
    assert_eq!(subject.files().await, before);
}

pub async fn other_types_give_way(subject: &impl Subject) {
    subject.write(b"to/file", b"12345").await;
    subject.write(b"to/dir/in", b"123").await;
    subject.write(b"to/dir/deep/in", b"123").await;
    let update = Update { make_room: MakeRoom::All, ..Update::default() };
    let entries = vec![directory(1, 0, "file"), file(2, 1, "below", 1), file(3, 0, "dir", 7)];
    let dry = Options { dry_run: true, ..updating(update.clone()) };
    let sink = subject.sink("to", &dry).await.unwrap();
    let before = subject.files().await;
    for placed in sink.place(entries.clone()).await {
        placed.unwrap();
    }
    assert_eq!(subject.files().await, before);
    let sink = subject.sink("to", &updating(update)).await.unwrap();
    for (placed, entry) in sink.place(entries.clone()).await.into_iter().zip(&entries) {
        let placed = placed.unwrap();
        let is_other = entry.id.0 != 2;
        match placed {
            Placed::Wanted(it) | Placed::Settled(it) => assert_eq!(it.has(Changes::TYPE), is_other),
            placed => panic!("{placed:?}"),
        }
    }
    send(&sink, &entries[1], b"1").await.unwrap();
    send(&sink, &entries[2], b"1234567").await.unwrap();
    let files = subject.files().await;
    let paths: Vec<_> = files.keys().map(|path| String::from_utf8_lossy(path)).collect();
    assert_eq!(paths, ["to/dir", "to/file/below"]);
    let mut removed: Vec<_> = sink.removed().deleted.into_iter().map(|it| it.path).collect();
    removed.retain(|path| path.ends_with(b"in"));
    removed.sort();
    assert_eq!(removed, [&b"dir/deep/in"[..], b"dir/in"], "what went is told");
}

pub async fn metadata_alone_is_corrected(subject: &impl Subject) {
    let keeps = subject.properties().keeps;
    let original = file(1, 0, "file", 10);
    let first = subject.sink("to", &options()).await.unwrap();
    put(&first, &original, &[1; 10]).await;
    let by_size = updating(Update { compare: Compare::SizeOnly, ..Update::default() });
    let mut changed = later(&original, 3).as_ref().clone();
    changed.metadata.mode = Mode::from_raw(0o640);
    let changed = Arc::new(changed);
    let sink = subject.sink("to", &by_size).await.unwrap();
    let expected =
        Changes::TIME.when(keeps.times.is_some()).with(Changes::PERMISSIONS.when(keeps.modes));
    assert_eq!(place(&sink, &changed).await.unwrap(), Placed::Settled(expected));
    let sink = subject.sink("to", &by_size).await.unwrap();
    assert_eq!(place(&sink, &changed).await.unwrap(), SETTLED, "it was done");
    let source = subject.source("to", &options()).await.unwrap();
    let found = Walked::new(&source).await.entries.pop().unwrap();
    if keeps.times.is_some() {
        assert_eq!(found.metadata.mtime, changed.metadata.mtime);
    }
    if keeps.modes {
        assert_eq!(found.metadata.mode, changed.metadata.mode);
    }
    assert_eq!(fetch(&source, &found).await.unwrap(), [1; 10]);
}

pub async fn directories_get_their_times(subject: &impl Subject) {
    let keeps = subject.properties().keeps;
    let (above, below) = (directory(1, 0, "above"), later(&directory(2, 1, "below"), 3));
    let sink = subject.sink("to", &options()).await.unwrap();
    for entry in [&above, &below] {
        place(&sink, entry).await.unwrap();
    }
    put(&sink, &file(3, 2, "file", 3), b"123").await;
    sink.finish().await;
    assert!(sink.complaints().is_empty());
    let sink = subject.sink("to", &options()).await.unwrap();
    for entry in [&above, &below] {
        assert_eq!(place(&sink, entry).await.unwrap(), SETTLED);
    }
    if keeps.directories {
        let source = subject.source("to", &options()).await.unwrap();
        let walked = Walked::new(&source).await;
        let found = walked.find(&source, b"above/below").unwrap();
        assert!(keeps.times.is_none() || found.metadata.mtime == below.metadata.mtime);
        if !keeps.modes {
            return;
        }
        // What is the root's own stays, unless it is asked for.
        let metadata = Metadata { mode: Mode::from_raw(0o711), ..above.metadata.clone() };
        sink.keep_root(metadata);
        sink.finish().await;
        let source = subject.source("to", &options()).await.unwrap();
        assert_ne!(source_root(&source).mode, Mode::from_raw(0o711));
    }
}

fn source_root(source: &impl fastsync::storage::Source) -> Metadata {
    source.root().unwrap()
}

pub async fn symlinks(subject: &impl Subject) {
    let link = |target: &[u8]| entry(1, 0, b"link", Kind::Symlink { target: target.to_vec() });
    let sink = subject.sink("to", &options()).await.unwrap();
    if !subject.properties().keeps.symlinks {
        let refused = place(&sink, &link(b"a")).await.unwrap_err();
        assert_eq!(refused.code(), FailureCode::Unsupported);
        return;
    }
    let (one, another): (&[u8], &[u8]) = if subject.keeps_relative_links() {
        (b"a", b"../b")
    } else {
        let refused = place(&sink, &link(b"a")).await.unwrap_err();
        assert_eq!(refused.code(), FailureCode::Unsupported);
        assert!(subject.files().await.is_empty(), "no other link is made of it");
        (b"/a", b"/b")
    };
    assert_eq!(place(&sink, &link(one)).await.unwrap(), Placed::Settled(CREATED));
    let sink = subject.sink("to", &options()).await.unwrap();
    assert_eq!(place(&sink, &link(one)).await.unwrap(), SETTLED);
    let changed = place(&sink, &link(another)).await.unwrap();
    assert!(matches!(changed, Placed::Settled(it) if it.has(Changes::CONTENT)));
    let source = subject.source("to", &options()).await.unwrap();
    let walked = Walked::new(&source).await;
    assert_eq!(walked.entries[0].kind, Kind::Symlink { target: another.to_vec() });
}

pub async fn what_cannot_be_made_is_refused(subject: &impl Subject) {
    let sink = subject.sink("to", &options()).await.unwrap();
    let leader = file(1, 0, "leader", 3);
    put(&sink, &leader, b"123").await;
    if subject.properties().name != "local" {
        let link = entry(2, 0, b"link", Kind::HardLink { leader: leader.id });
        let refused = sink.link(link, leader).await.unwrap_err();
        assert_eq!(refused.code(), FailureCode::Unsupported);
        let refused = place(&sink, &entry(3, 0, b"fifo", Kind::Special(Special::Fifo))).await;
        assert_eq!(refused.unwrap_err().code(), FailureCode::Unsupported);
    }
    for placed in sink.place(vec![file(5, 99, "lost", 3)]).await {
        assert_eq!(placed.unwrap_err().code(), FailureCode::Conflict, "its directory is unknown");
    }
    assert_eq!(subject.files().await.len(), 1);
}
