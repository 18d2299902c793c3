//! Files of which both ends say what they amount to.

use std::sync::Arc;

use super::testing::{Answer, Hand, Orders};
use crate::engine::event::Progress;
use crate::engine::tests::{CHUNK, chunk, file, noise, options, pack};
use crate::protocol::chunk::{ChunkSize, Digest, EntryId};
use crate::protocol::manifest::{Fate, FinalEntry, Totals};
use crate::protocol::message::{
    Changes, Entry, Failure, FailureCode, Message, Options, Outcome, Summary, Verdict,
};
use crate::storage::{Existing, Placed};

fn different() -> Changes {
    Changes::CONTENT.with(Changes::CHECKSUM)
}

/// Everything is to be compared, and this is there.
fn orders(existing: &[(&'static str, Vec<u8>)]) -> Orders {
    let placed =
        existing.iter().map(|(name, _)| (*name, Placed::Compare(Existing::Unread))).collect();
    Orders { placed, existing: existing.iter().cloned().collect(), ..Orders::default() }
}

fn root(id: u64, version: u16, data: &[u8]) -> Message {
    Message::Root { entry: EntryId(id), version, root: Digest::of(data) }
}

async fn asked(hand: &mut Hand, entries: &[Entry]) {
    hand.announce(entries);
    for (id, answer) in hand.answers(entries.len()).await {
        assert_eq!(answer, Answer::Verdict(Verdict::Hash), "{id}");
    }
}

fn counted(entry: &Entry, fate: Fate, root: Digest) -> Summary {
    let mut totals = Totals::default();
    let (id, parent, name, size) = (entry.id, entry.parent, &entry.name, entry.size());
    totals.add(&FinalEntry { id, parent, name, size, fate, root });
    totals.into()
}

/// ENTRY-5, END-3: equal data is not sent, and is counted without a root.
///
/// ENTRY-15.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_data_is_not_sent() {
    for len in [0, 1, CHUNK, CHUNK + 1, 20 * CHUNK + 7] {
        let data = noise(1, len);
        for (equal, outcome, fate) in [
            (Placed::Settled(Changes::NONE), Outcome::Skipped, Fate::Skipped),
            (Placed::Settled(Changes::TIME), Outcome::Done(Changes::TIME), Fate::Done),
            (Placed::Settled(Changes::CONTENT), Outcome::Done(Changes::CONTENT), Fate::Done),
        ] {
            let compared = Some([Placed::Left, equal]);
            let orders = Orders { compared, ..orders(&[("f", data.clone())]) };
            let mut hand = Hand::new(orders).await;
            let entry = file(1, "f", len as u64);
            asked(&mut hand, std::slice::from_ref(&entry)).await;
            hand.half.say(&root(1, 0, &data));
            assert_eq!(hand.end().await, (1, outcome));
            assert_eq!(hand.sink.count("compared f true"), 1);
            let progress: Arc<Progress> = Arc::clone(&hand.observer.progress);
            assert_eq!(progress.bytes_hashed.get(), len as u64);
            hand.finish(counted(&entry, fate, Digest::default())).await.unwrap();
        }
    }
}

/// ENTRY-5, END-3: other data is sent, in a pack or in chunks, and counted with its root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_data_is_sent() {
    let (old, new) = (noise(1, CHUNK + 1), noise(2, CHUNK + 1));
    let mut hand = Hand::new(orders(&[("f", old.clone())])).await;
    let entry = file(1, "f", CHUNK as u64 + 1);
    asked(&mut hand, std::slice::from_ref(&entry)).await;
    hand.half.say(&root(1, 0, &new));
    assert_eq!(hand.answer().await, (1, Answer::Verdict(Verdict::Need)));
    for index in 0..2 {
        let range = ChunkSize::MIN.range(EntryId(1), index, CHUNK as u64 + 1).unwrap();
        let at = usize::try_from(range.offset()).unwrap();
        hand.send(chunk(range, 0, &new[at..(at + CHUNK).min(new.len())])).await;
    }
    let end = Message::FileEnd { entry: EntryId(1), version: 0, root: Digest::of(&new) };
    hand.half.say(&end);
    assert_eq!(hand.end().await, (1, Outcome::Done(different())));
    hand.finish(counted(&entry, Fate::Done, Digest::of(&new))).await.unwrap();
    let mut hand = Hand::new(orders(&[("f", b"old".to_vec())])).await;
    asked(&mut hand, &[file(1, "f", 3)]).await;
    hand.half.say(&root(1, 0, b"new"));
    assert_eq!(hand.answer().await, (1, Answer::Verdict(Verdict::Need)));
    hand.send(pack(1, &[(1, 0, b"new")])).await;
    assert_eq!(hand.end().await, (1, Outcome::Done(different())));
    // In a dry run it is only said.
    let options = Options { dry_run: true, ..options() };
    let mut hand = Hand::with_options(orders(&[("f", b"old".to_vec())]), options).await;
    asked(&mut hand, &[file(1, "f", 3)]).await;
    hand.half.say(&root(1, 0, b"new"));
    assert_eq!(hand.end().await, (1, Outcome::Would(different())));
}

/// ENTRY-5: what cannot be read here is no equal of anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_hashed_is_sent() {
    for failing in ["open f", "digest f"] {
        let orders = Orders { failing: vec![failing], ..orders(&[("f", noise(1, 9 * CHUNK))]) };
        let mut hand = Hand::new(orders).await;
        asked(&mut hand, &[file(1, "f", 9 * CHUNK as u64)]).await;
        hand.half.say(&root(1, 0, &noise(1, 9 * CHUNK)));
        assert_eq!(hand.answer().await, (1, Answer::Verdict(Verdict::Need)), "{failing}");
        assert_eq!(hand.sink.count("compared f false"), 1);
    }
}

/// T21: as many files as may be open are hashed with few buffers, while data comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashing_takes_no_buffers_from_what_comes() {
    let mut existing: Vec<(&'static str, Vec<u8>)> = Vec::new();
    for n in 0..300_u64 {
        existing.push((format!("{n}").leak(), noise(n, 2 * CHUNK)));
    }
    let options = Options { buffer_size: 1, ..options() };
    let mut hand = Hand::with_options(orders(&existing), options).await;
    let entries: Vec<_> = (1..=300)
        .map(|id| file(id, &format!("{}", id - 1), 2 * CHUNK as u64))
        .chain([file(301, "small", 3)])
        .collect();
    hand.announce(&entries);
    hand.answers(301).await;
    hand.send(pack(1, &[(301, 0, b"abc")])).await;
    for id in 1..=300 {
        hand.half.say(&root(id, 0, &existing[usize::try_from(id).unwrap() - 1].1));
    }
    let ends = hand.answers(301).await;
    let skipped = ends.iter().filter(|(_, end)| *end == Answer::End(Outcome::Skipped)).count();
    assert_eq!(skipped, 300);
}

/// ENTRY-6, ENTRY-7: the file changes, or cannot be read, while either end hashes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_ends_with_its_version() {
    let data = noise(1, 4 * CHUNK);
    let held = || Orders { held: vec!["digest"], ..orders(&[("f", noise(1, 4 * CHUNK))]) };
    let f = file(1, "f", data.len() as u64);
    // It is another one, and is hashed anew; what was said of the first one is dropped.
    let mut hand = Hand::new(held()).await;
    asked(&mut hand, std::slice::from_ref(&f)).await;
    hand.half.say(&Message::Restart { entry: f.clone(), version: 1 });
    assert_eq!(hand.answer().await, (1, Answer::Verdict(Verdict::Hash)));
    hand.half.say(&root(1, 0, b"old"));
    hand.half.say(&root(1, 1, &data));
    hand.sink.gate.add_permits(100);
    assert_eq!(hand.end().await, (1, Outcome::Skipped));
    assert_eq!((hand.sink.count("compared f true"), hand.sink.count("compared")), (1, 1));
    // Its root may cross with that end; one that was never announced has none.
    hand.half.say(&root(1, 1, &data));
    hand.half.say(&root(2, 0, &data));
    hand.ends_as_violation("never announced").await;
    // It cannot be sent, whatever this end finds.
    let mut hand = Hand::new(held()).await;
    asked(&mut hand, std::slice::from_ref(&f)).await;
    let failure = Failure::new(FailureCode::Vanished, "gone");
    hand.half.say(&Message::Withdraw { entry: EntryId(1), failure: failure.clone() });
    assert_eq!(hand.end().await, (1, Outcome::Failed(failure)));
    hand.sink.gate.add_permits(100);
    hand.half.say(&root(1, 0, &data));
    hand.announce(&[file(2, "g", 3)]);
    assert_eq!(hand.answer().await, (2, Answer::Verdict(Verdict::Need)));
    assert_eq!(hand.sink.count("compared"), 0);
}

/// ENTRY-5: roots that nobody asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_nobody_asked_for_ends_the_session() {
    for (case, version, times) in [("twice", 0, 2), ("of a later version", 1, 1)] {
        let orders = Orders { held: vec!["digest"], ..orders(&[("f", vec![0; 9])]) };
        let mut hand = Hand::new(orders).await;
        asked(&mut hand, &[file(1, "f", 9)]).await;
        for _ in 0..times {
            hand.half.say(&root(1, version, b"x"));
        }
        hand.ends_as_violation(case).await;
    }
    let mut hand = Hand::new(orders(&[("f", vec![0; 9])])).await;
    asked(&mut hand, &[file(1, "f", 9)]).await;
    hand.half.say(&root(1, 0, b"x"));
    assert_eq!(hand.answer().await, (1, Answer::Verdict(Verdict::Need)));
    hand.half.say(&root(1, 0, b"x"));
    hand.ends_as_violation("after the verdict").await;
}
