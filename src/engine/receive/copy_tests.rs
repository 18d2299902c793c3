//! A sink that reaches the source by itself.

use std::collections::HashMap;

use super::testing::{Answer, Hand, Orders};
use crate::engine::journal::{Journal, Opened, Purpose, SourceIdentity, UNHASHED};
use crate::engine::plan::lock;
use crate::engine::tests::{CHUNK, JOB, file, noise, options};
use crate::protocol::chunk::{ChunkSize, Digest, EntryId};
use crate::protocol::manifest::{Fate, FinalEntry, Totals};
use crate::protocol::message::{
    Changes, Durability, Entry, FailureCode, Kind, Message, Options, Outcome, Resume, Verdict,
};
use crate::storage::Receipt;

const DONE: Outcome = Outcome::Done(Changes::CREATED_WITH_CONTENT);

fn orders(source: &[(&'static str, Vec<u8>)]) -> Orders {
    let source = source.iter().cloned().collect();
    Orders { source, max_prepared: 100, ..Orders::default() }
}

fn assert_has(hand: &Hand, name: &str, data: &[u8]) {
    assert!(lock(&hand.sink.files)[name] == data, "{name} has other content");
}

/// ENTRY-5, END-3: nothing is asked of the sender, and both ends count alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_copied_without_the_sender() {
    for durability in [Durability::None, Durability::Batch, Durability::File] {
        for copies_whole in [false, true] {
            let (large, one) = (noise(1, 20 * CHUNK + 7), noise(2, CHUNK));
            let source = [("large", large.clone()), ("one", one.clone()), ("small", b"abc".into())];
            let orders = Orders { copies_whole, ..orders(&source) };
            let mut hand = Hand::with_options(orders, Options { durability, ..options() }).await;
            let entries = [
                file(1, "large", large.len() as u64),
                file(2, "one", CHUNK as u64),
                file(3, "small", 3),
            ];
            hand.announce(&entries);
            for (id, end) in hand.answers(3).await {
                assert_eq!(end, Answer::End(DONE), "{id}");
            }
            assert_has(&hand, "large", &large);
            assert_has(&hand, "one", &one);
            assert_has(&hand, "small", b"abc");
            let ranges = if copies_whole { 1 } else { 21 };
            assert_eq!(hand.sink.count("range large"), ranges);
            assert!(hand.sink.at("confirm large") < hand.sink.at("commit large"));
            let verified = hand.observer.progress.bytes_verified.get();
            assert_eq!(verified, 21 * CHUNK as u64 + 7 + 3);
            let mut totals = Totals::default();
            for entry in &entries {
                totals.add(&FinalEntry {
                    id: entry.id,
                    parent: entry.parent,
                    name: &entry.name,
                    size: entry.size(),
                    fate: Fate::Done,
                    root: Digest::default(),
                });
            }
            hand.finish(totals.into()).await.unwrap();
        }
    }
}

/// Many small files go in batches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_are_copied_in_batches() {
    let mut source: Vec<(&'static str, Vec<u8>)> = Vec::new();
    for n in 0..2000_u32 {
        source.push((format!("{n}").leak(), n.to_le_bytes().to_vec()));
    }
    let options = Options { durability: Durability::Batch, ..options() };
    let mut hand = Hand::with_options(orders(&source), options).await;
    let entries: Vec<_> =
        (1..=2000).map(|id| file(id, source[usize::try_from(id).unwrap() - 1].0, 4)).collect();
    hand.announce(&entries);
    assert!(hand.answers(2000).await.iter().all(|(_, end)| *end == Answer::End(DONE)));
    assert!(hand.sink.count("copies") < 400, "{}", hand.sink.count("copies"));
    assert_has(&hand, "1999", &1999_u32.to_le_bytes());
}

/// INT-9: what changed, or cannot be read or written, fails by itself and leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_fails_leaves_nothing() {
    let large = noise(1, 9 * CHUNK);
    let source = [("a", large.clone()), ("b", large.clone()), ("c", large), ("small", vec![0; 3])];
    let failing = vec!["range a 262144", "confirm b", "create c", "copy small"];
    let mut hand = Hand::new(Orders { failing, ..orders(&source) }).await;
    let len = 9 * CHUNK as u64;
    let entries = [
        file(1, "a", len),
        file(2, "b", len),
        file(3, "c", len),
        file(4, "small", 3),
        file(5, "other", 3),
        file(6, "another", len),
    ];
    hand.announce(&entries);
    let mut ends = hand.answers(6).await;
    ends.sort_by_key(|(id, _)| *id);
    let codes: Vec<_> = ends.iter().map(|(_, end)| end.failure().code).collect();
    let (io, changed) = (FailureCode::Io, FailureCode::Changed);
    assert_eq!(codes, [io, io, io, io, changed, changed]);
    assert!(lock(&hand.sink.files).is_empty());
    assert!(hand.sink.count("discard a") >= 1 && hand.sink.count("discard b") >= 1);
}

/// JRN-4, JRN-6: what was copied before is not copied again; who goes on over a network does not rely
/// on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_copied_before_is_of_use_to_a_copy_only() {
    let data = noise(1, 3 * CHUNK);
    let entry = file(1, "f", 3 * CHUNK as u64);
    let value = |index: usize| Digest([u8::try_from(index).unwrap() + 1; 32]);
    for (copying, resume, copied, have) in [
        (true, Resume::Trust, vec![2], vec![]),
        (true, Resume::Verify, vec![0, 1, 2], vec![]),
        (false, Resume::Trust, vec![], vec![1]),
    ] {
        let (journal, begun) = left_over(&entry, &[(0, UNHASHED), (1, value(1))]);
        let source = if copying { vec![("f", data.clone())] } else { Vec::new() };
        let options = Options { resume, ..options() };
        let mut hand = Hand::with_journal(orders(&source), options, Some(journal), begun).await;
        hand.announce(std::slice::from_ref(&entry));
        if copying {
            assert_eq!(hand.end().await, (1, DONE));
        } else {
            let Message::Have { first, values, .. } = hand.half.next().await else { panic!() };
            let found: Vec<u64> = (first..).take(values.len()).collect();
            assert_eq!((found, values), (have, vec![value(1)]));
            assert_eq!(hand.answer().await, (1, Answer::Verdict(Verdict::Resume)));
        }
        let ranges: Vec<_> =
            hand.sink.log().into_iter().filter(|call| call.starts_with("range")).collect();
        let expected: Vec<_> = copied.iter().map(|n| format!("range f {}", n * CHUNK)).collect();
        assert_eq!(ranges.len(), expected.len());
        assert!(expected.iter().all(|range| ranges.contains(range)), "{ranges:?}");
    }
}

/// A journal in which an earlier run left these chunks of a file.
fn left_over(
    entry: &Entry,
    chunks: &[(u64, Digest)],
) -> (Journal, HashMap<Vec<u8>, crate::engine::journal::Begun>) {
    let file = tempfile::tempfile().unwrap();
    let purpose = Purpose { job: JOB, chunk_size: ChunkSize::MIN, boot: [1; 16] };
    let Opened { journal, .. } = Journal::open(file.try_clone().unwrap(), purpose).unwrap();
    let Kind::File(kind) = entry.kind else { panic!() };
    let source = SourceIdentity::new(kind, entry.metadata.mtime);
    let number = journal.begin(entry.name.as_bytes(), &source, &7.into()).unwrap();
    for (index, value) in chunks {
        journal.chunk(number, *index, *value, &Receipt::default()).unwrap();
    }
    drop(journal);
    let Opened { journal, begun, .. } = Journal::open(file, purpose).unwrap();
    (journal, begun)
}

/// A copy that is cut off is in the journal, chunk by chunk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_journaled() {
    let file_of_journal = tempfile::tempfile().unwrap();
    let purpose = Purpose { job: JOB, chunk_size: ChunkSize::MIN, boot: [1; 16] };
    let opened = Journal::open(file_of_journal.try_clone().unwrap(), purpose).unwrap();
    let orders = Orders { held: vec!["range f 131072"], ..orders(&[("f", noise(1, 3 * CHUNK))]) };
    let hand = Hand::with_journal(orders, options(), Some(opened.journal), HashMap::new()).await;
    hand.announce(&[file(1, "f", 3 * CHUNK as u64)]);
    hand.until("range f 65536", 1).await;
    hand.half.say(&Message::Abort(crate::protocol::message::Failure::new(
        FailureCode::Interrupted,
        "enough",
    )));
    hand.over().await.unwrap_err();
    let begun = Journal::open(file_of_journal, purpose).unwrap().begun;
    let chunks: Vec<_> = begun[&b"f"[..]].chunks.iter().map(|it| (it.index, it.value)).collect();
    assert!(chunks.contains(&(0, UNHASHED)) && chunks.len() <= 2, "{chunks:?}");
    assert!(!chunks.iter().any(|(index, _)| *index == 2));
    let _ = EntryId(1);
}
