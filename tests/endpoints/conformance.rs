//! Writing: sizes, trees, names, what is seen when, and going on in a later process.

use std::sync::Arc;

use fastsync::protocol::chunk::Digest;
use fastsync::protocol::message::{FailureCode, Kind};
use fastsync::storage::{Left, Placed, Receipt, Remembers, Sink, Token};

use crate::subject::{Files, Subject};
use crate::tools::*;

pub async fn files_of_every_size(subject: &impl Subject) {
    let threshold = u64::from(THRESHOLD);
    let sizes =
        [0, 1, threshold - 1, threshold, threshold + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 1];
    let sink = subject.sink("to", &options()).await.unwrap();
    let mut expected = Files::new();
    for (id, size) in (1..).zip(sizes) {
        let (entry, data) = (file(id, 0, &format!("of {size}"), size), data(size, id));
        assert_eq!(place(&sink, &entry).await.unwrap(), Placed::Wanted(CREATED));
        if size < threshold {
            send(&sink, &entry, &data).await.unwrap();
        } else {
            // In any order, and more than once.
            let root = Some(Digest::of(&data));
            let upload = sink.create(Arc::clone(&entry), root).await.unwrap();
            let mut parts: Vec<u64> = (0..size.div_ceil(CHUNK)).collect();
            if !subject.properties().parts.in_order {
                parts.reverse();
            }
            for index in parts {
                sink.write(upload.clone(), chunk(&entry, index, &data)).await.unwrap();
                sink.write(upload.clone(), chunk(&entry, index, &data)).await.unwrap();
            }
            sink.sync_files(vec![upload.clone()]).await.unwrap();
            sink.commit(upload, Arc::clone(&entry), root).await.unwrap();
        }
        expected.insert([b"to/", entry.name.as_bytes()].concat(), data);
    }
    sink.finish().await;
    sink.sync_all().await.unwrap();
    assert!(sink.complaints().is_empty());
    assert_eq!(subject.files().await, expected);
    let source = subject.source("to", &options()).await.unwrap();
    let walked = Walked::new(&source).await;
    assert_eq!(walked.entries.len(), sizes.len());
    for entry in &walked.entries {
        let path = [b"to/", entry.name.as_bytes()].concat();
        assert_eq!(fetch(&source, entry).await.unwrap(), expected[&path]);
    }
}

pub async fn deep_and_wide_trees(subject: &impl Subject) {
    let sink = subject.sink("to", &options()).await.unwrap();
    let mut entries: Vec<_> = (1..=40).map(|id| directory(id, id - 1, "deep")).collect();
    entries.push(file(41, 40, "bottom", 6));
    entries.push(directory(42, 0, "wide"));
    entries.extend((100..2100).map(|id| file(id, 42, &format!("{id}"), 4)));
    for batch in entries.chunks(512) {
        for placed in sink.place(batch.to_vec()).await {
            assert!(!matches!(placed.unwrap(), Placed::Left | Placed::Compare(_)));
        }
    }
    let content = |id: u64, size: u64| data(size, id);
    for batch in entries[40..].chunks(512) {
        let files = batch.iter().filter(|entry| entry.kind != Kind::Directory);
        let files =
            files.map(|it| (verified_file(it.id, &content(it.id.0, it.size())), Arc::clone(it)));
        for (prepared, entry) in sink
            .prepare_files(files.collect())
            .await
            .into_iter()
            .zip(batch.iter().filter(|entry| entry.kind != Kind::Directory))
        {
            let files = vec![(prepared.unwrap(), Arc::clone(entry))];
            sink.commit_files(files).await.pop().unwrap().unwrap();
        }
    }
    sink.finish().await;
    assert!(sink.complaints().is_empty());
    let files = subject.files().await;
    assert_eq!(files.len(), 2001);
    let bottom = format!("to/{}bottom", "deep/".repeat(40));
    assert_eq!(files[bottom.as_bytes()], content(41, 6));
    assert_eq!(files[&b"to/wide/2099"[..]], content(2099, 4));
    let source = subject.source("to", &options()).await.unwrap();
    let walked = Walked::new(&source).await;
    assert_eq!((walked.entries.len(), walked.told), (2042, Vec::new()));
    assert_eq!(walked.listed.len(), 42, "all are complete: the top, 40 deep ones, the wide one");
}

pub async fn names_of_every_sort(subject: &impl Subject) {
    let long = "x".repeat(255);
    let mut names: Vec<&[u8]> = vec![
        b" ",
        b"a b",
        b"%41%2f",
        b"+",
        b"#?&=",
        b"new\nline",
        b"-rf",
        b".hidden",
        b"...",
        b"~",
        "e\u{301}".as_bytes(),
        "\u{e9}".as_bytes(),
        b"'\"`$(x)",
        b"*",
        b"back\\slash",
        b"a:b",
        long.as_bytes(),
    ];
    let broken: &[u8] = b"\xff\xfe";
    let sink = subject.sink("", &options()).await.unwrap();
    let mut expected = Files::new();
    names.push(broken);
    names.retain(|name| !name.starts_with(b".") || subject.lists_hidden());
    for (id, name) in (1..).zip(names) {
        let size = u64::try_from(name.len()).unwrap();
        let kind = file(id, 0, "-", size).kind.clone();
        let entry = entry(id, 0, name, kind);
        if subject.refuses(name) {
            let refused = place(&sink, &entry).await.unwrap_err();
            assert_eq!(refused.code(), FailureCode::Unsupported, "{refused}");
            continue;
        }
        put(&sink, &entry, name).await;
        expected.insert(name.to_vec(), name.to_vec());
    }
    assert_eq!(subject.files().await, expected);
    let source = subject.source("", &options()).await.unwrap();
    let walked = Walked::new(&source).await;
    assert_eq!((walked.entries.len(), &walked.told[..]), (expected.len(), &[][..]));
    for entry in &walked.entries {
        assert_eq!(fetch(&source, entry).await.unwrap(), expected[entry.name.as_bytes()]);
    }
}

pub async fn nothing_is_seen_before_it_is_whole(subject: &impl Subject) {
    subject.write(b"to/old", b"as it was").await;
    let before = subject.files().await;
    let sink = subject.sink("to", &options()).await.unwrap();
    let size = 2 * CHUNK + 5;
    for (id, name) in [(1, "new"), (2, "old")] {
        let (entry, data) = (file(id, 0, name, size), data(size, id));
        assert!(matches!(place(&sink, &entry).await.unwrap(), Placed::Wanted(_)));
        for is_kept in [false, true] {
            let root = Some(Digest::of(&data));
            let upload = sink.create(Arc::clone(&entry), root).await.unwrap();
            for index in 0..3 {
                sink.write(upload.clone(), chunk(&entry, index, &data)).await.unwrap();
            }
            let mut now = subject.files().await;
            now.retain(|path, _| {
                !is_temporary(path) && path != b"to/new" || id == 1 && path == b"to/new"
            });
            if id == 1 {
                assert_eq!(now, before, "nothing is there before it is committed");
            } else {
                assert_eq!(now[&b"to/old"[..]], b"as it was");
            }
            if is_kept {
                sink.commit(upload, Arc::clone(&entry), root).await.unwrap();
            } else {
                sink.discard(upload).await.unwrap();
                assert!(!subject.files().await.keys().any(|path| is_temporary(path)));
            }
        }
        assert_eq!(subject.files().await[format!("to/{name}").as_bytes()], data);
    }
}

pub async fn two_at_once(subject: &impl Subject) {
    let size = 2 * CHUNK;
    let entry = file(1, 0, "same", size);
    let mut versions = Vec::new();
    let (one, other) = (
        subject.sink("to", &options()).await.unwrap(),
        subject.sink("to", &options()).await.unwrap(),
    );
    for (sink, seed) in [(&one, 1), (&other, 2)] {
        let data = data(size, seed);
        place(sink, &entry).await.unwrap();
        send(sink, &entry, &data).await.unwrap();
        versions.push(data);
    }
    assert_eq!(subject.files().await[&b"to/same"[..]], versions[1]);
}

pub async fn a_later_process_goes_on(subject: &impl Subject) {
    if subject.properties().remembers == Remembers::Nothing {
        return;
    }
    let size = 3 * CHUNK + 9;
    let (entry, data) = (file(1, 0, "large", size), data(size, 7));
    let root = Some(Digest::of(&data));
    let first = subject.sink("to", &options()).await.unwrap();
    place(&first, &entry).await.unwrap();
    let upload = first.create(Arc::clone(&entry), root).await.unwrap();
    let mut receipts = Vec::new();
    for number in [3, 0, 1] {
        let receipt = first.write(upload.clone(), chunk(&entry, number, &data)).await.unwrap();
        receipts.push((number, receipt));
    }
    first.sync_files(vec![upload.clone()]).await.unwrap();
    let left = Left { token: first.identity(&upload), receipts };
    drop((first, upload));
    let can_lose = subject.lose_part("to/large", 1);

    let later = subject.sink("to", &options()).await.unwrap();
    assert!(matches!(place(&later, &entry).await.unwrap(), Placed::Wanted(_)));
    let reopened = later.reopen(Arc::clone(&entry), left).await.unwrap().unwrap();
    let upload = reopened.file;
    match later.remembers() {
        Remembers::Always => {
            let lost: &[u64] = if can_lose { &[1] } else { &[] };
            assert_eq!(reopened.lost, lost, "what is lost is told");
            assert!(later.digest(upload.clone(), range(&entry, 0), &pool()).await.is_err());
        }
        Remembers::Reread | Remembers::UntilBoot => {
            for number in [3, 0, 1] {
                let range = range(&entry, number);
                let found = later.digest(upload.clone(), range, &pool()).await.unwrap();
                let is_there = found == digest(range, part(range, &data));
                assert_eq!(is_there, !(can_lose && number == 1), "part {number}");
            }
            let written = [0, 1, 3].map(|number| range(&entry, number));
            let ranges = written.map(|range| (range, digest(range, part(range, &data))));
            let holds = later.holds(upload.clone(), ranges.to_vec(), &pool()).await;
            assert_eq!(holds, [true, !can_lose, true]);
        }
        Remembers::Nothing => panic!("then nothing is taken up"),
    }
    for number in [1, 2] {
        later.write(upload.clone(), chunk(&entry, number, &data)).await.unwrap();
    }
    later.commit(upload, Arc::clone(&entry), root).await.unwrap();
    assert_eq!(subject.files().await, Files::from([(b"to/large".to_vec(), data)]));
}

pub async fn what_is_not_the_same_upload_is_not_taken_up(subject: &impl Subject) {
    let size = 2 * CHUNK;
    let (entry, data) = (file(1, 0, "large", size), data(size, 7));
    let sink = subject.sink("to", &options()).await.unwrap();
    place(&sink, &entry).await.unwrap();
    let upload = sink.create(Arc::clone(&entry), None).await.unwrap();
    let receipt = sink.write(upload.clone(), chunk(&entry, 0, &data)).await.unwrap();
    let token = sink.identity(&upload);
    let left = |token: Token| Left { token, receipts: vec![(0, receipt.clone())] };
    let other = Token::new(b"something else").unwrap();
    for token in [other, Token::default(), Token::from(u64::MAX)] {
        assert!(sink.reopen(Arc::clone(&entry), left(token)).await.unwrap().is_none());
    }
    for other in [file(1, 0, "large", size + 1), file(2, 0, "another", size)] {
        assert!(sink.reopen(other, left(token.clone())).await.unwrap().is_none());
    }
    let remembers = subject.properties().remembers != Remembers::Nothing;
    let reopened = sink.reopen(Arc::clone(&entry), left(token.clone())).await.unwrap();
    assert_eq!(reopened.is_some(), remembers);
    sink.discard_left_over(b"large".to_vec(), Token::from(u64::MAX)).await;
    let reopened = sink.reopen(Arc::clone(&entry), left(token.clone())).await.unwrap();
    assert_eq!(reopened.is_some(), remembers);
    sink.discard_left_over(b"large".to_vec(), token.clone()).await;
    assert!(sink.reopen(Arc::clone(&entry), left(token)).await.unwrap().is_none());
    assert!(subject.files().await.is_empty());
}

/// No peer may choose a name that a job gives to what is not complete, nor that of its state.
pub async fn our_own_names_are_refused(subject: &impl Subject) {
    subject.write(b"to/keep", b"x").await;
    let sink = subject.sink("to", &options()).await.unwrap();
    for (id, name) in [(1, ".fastsync"), (2, ".fastsync-abababab-0123456789abcdef")] {
        for entry in [file(id, 0, name, 1), directory(id, 0, name)] {
            let refused = place(&sink, &entry).await.unwrap_err();
            assert_eq!(refused.code(), FailureCode::Conflict, "{refused}");
        }
    }
    assert_eq!(subject.files().await.len(), 1);
}

pub async fn a_tampered_journal_leads_nowhere(subject: &impl Subject) {
    subject.write(b"outside", b"x").await;
    let sink = subject.sink("to", &options()).await.unwrap();
    for path in [&b"../outside"[..], b"/outside", b"", b"a/../../outside", b"x\0", b".."] {
        for token in [Token::default(), Token::from(1)] {
            sink.discard_left_over(path.to_vec(), token).await;
        }
    }
    assert_eq!(subject.files().await, Files::from([(b"outside".to_vec(), b"x".to_vec())]));
    assert!(Receipt::default().is_empty());
}
