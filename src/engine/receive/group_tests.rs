//! Small files that get their names together.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::testing::{Answer, Hand, Orders};
use crate::engine::tests::{CHUNK, NOTHING, chunk, file, options, pack, whole};
use crate::protocol::chunk::{Digest, EntryId};
use crate::protocol::frame::Frame;
use crate::protocol::message::{
    Changes, Durability, Entry, Failure, FailureCode, Message, Options, Outcome, Unit, Verdict,
};

const DONE: Outcome = Outcome::Done(Changes::CREATED_WITH_CONTENT);

fn with(durability: Durability) -> Options {
    Options { durability, ..options() }
}

fn orders(max_prepared: usize) -> Orders {
    Orders { max_prepared, ..Orders::default() }
}

fn files(ids: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    ids.map(|id| file(id, &format!("f{id}"), 3)).collect()
}

fn packed(number: u64, ids: std::ops::RangeInclusive<u64>) -> Frame {
    let members: Vec<(u64, u16, &[u8])> = ids.map(|id| (id, 0, &b"abc"[..])).collect();
    pack(number, &members)
}

async fn needed(hand: &mut Hand, entries: &[Entry]) {
    hand.announce(entries);
    for (_, answer) in hand.answers(entries.len()).await {
        assert_eq!(answer, Answer::Verdict(Verdict::Need));
    }
}

/// END-2: what is all that is left waits for no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_group_does_not_wait() {
    let mut hand = Hand::with_options(orders(1000), with(Durability::Batch)).await;
    let began = Instant::now();
    for round in 0..20 {
        let ids = round * 10 + 1..=round * 10 + 10;
        needed(&mut hand, &files(ids.clone())).await;
        hand.send(packed(round, ids)).await;
        assert!(hand.answers(10).await.iter().all(|(_, end)| *end == Answer::End(DONE)));
    }
    assert!(began.elapsed() < Duration::from_secs(4), "20 groups waited for a timer");
    assert_eq!(hand.sink.prepared.load(Ordering::Relaxed), 0);
    assert!(hand.sink.at("prepare f1") < hand.sink.at("sync prepared"));
    assert!(hand.sink.at("sync prepared") < hand.sink.at("commit f1"));
}

/// ENTRY-13: what is written is acknowledged before its group is, and the group is not kept waiting
/// for ever by what does not come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_gathered_for_a_while() {
    let mut hand = Hand::with_options(orders(1000), with(Durability::Batch)).await;
    needed(&mut hand, &files(1..=5)).await;
    let began = Instant::now();
    hand.send(packed(1, 1..=2)).await;
    assert_eq!(hand.half.next().await, Message::Written(vec![Unit::Pack(1)]));
    hand.send(packed(2, 3..=4)).await;
    assert_eq!(hand.half.next().await, Message::Written(vec![Unit::Pack(2)]));
    assert_eq!(hand.sink.count("commit"), 0);
    assert_eq!(hand.answers(4).await.len(), 4);
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    assert_eq!((hand.sink.count("sync prepared"), hand.sink.count("group 4")), (1, 1));
    // What ends in another way leaves the rest alone: then there is nothing to wait for.
    needed(&mut hand, &files(6..=6)).await;
    hand.send(packed(3, 6..=6)).await;
    assert_eq!(hand.half.next().await, Message::Written(vec![Unit::Pack(3)]));
    let failure = Failure::new(FailureCode::Vanished, "gone");
    hand.half.say(&Message::Withdraw { entry: EntryId(5), failure });
    assert_eq!((hand.end().await.0, hand.end().await.0), (5, 6));
}

/// A group is as large as the sink allows, and one gathers while another is synced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_bounded_and_overlap() {
    let orders = Orders { held: vec!["sync prepared"], ..orders(8) };
    let mut hand = Hand::with_options(orders, with(Durability::Batch)).await;
    needed(&mut hand, &files(1..=40)).await;
    hand.send(packed(1, 1..=20)).await;
    hand.send(packed(2, 21..=39)).await;
    // Another group is gathered while the first waits, and nothing is committed.
    hand.until("held: sync prepared", 1).await;
    hand.until("prepare", 8).await;
    assert_eq!(hand.sink.count("commit"), 0);
    hand.sink.gate.add_permits(100);
    assert_eq!(hand.answers(39).await.len(), 39);
    let most = hand.sink.most_prepared.load(Ordering::Relaxed);
    assert!((5..=8).contains(&most), "{most} were prepared and not committed");
    assert_eq!(hand.sink.prepared.load(Ordering::Relaxed), 0);
    hand.send(packed(3, 40..=40)).await;
    assert_eq!(hand.end().await, (40, DONE));
}

/// ENTRY-10: each file of a group ends by itself; all of it fails if it cannot be synced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_group_fail_alone_or_together() {
    let failing = vec!["prepare f2", "commit f3"];
    let orders = |failing| Orders { failing, ..orders(100) };
    let mut hand = Hand::with_options(orders(failing), with(Durability::Batch)).await;
    needed(&mut hand, &files(1..=4)).await;
    hand.send(packed(1, 1..=4)).await;
    let mut ends = hand.answers(4).await;
    ends.sort_by_key(|(id, _)| *id);
    for (id, end) in ends {
        assert_eq!(end == Answer::End(DONE), [1, 4].contains(&id.0), "{id}: {end:?}");
    }
    let failing = vec!["sync prepared"];
    let mut hand = Hand::with_options(orders(failing), with(Durability::Batch)).await;
    needed(&mut hand, &files(1..=4)).await;
    hand.send(packed(1, 1..=4)).await;
    for (_, end) in hand.answers(4).await {
        assert_eq!(end.failure().code, FailureCode::Io);
    }
    assert_eq!((hand.sink.count("commit"), hand.sink.prepared.load(Ordering::Relaxed)), (0, 0));
}

/// SES-9: a session that is given up drops what it has gathered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gathered_is_dropped_with_the_session() {
    for held in [vec![], vec!["sync prepared"]] {
        let orders = Orders { held, ..orders(100) };
        let mut hand = Hand::with_options(orders, with(Durability::Batch)).await;
        needed(&mut hand, &files(1..=4)).await;
        hand.send(packed(1, 1..=3)).await;
        assert_eq!(hand.half.next().await, Message::Written(vec![Unit::Pack(1)]));
        hand.half.say(&Message::Abort(Failure::new(FailureCode::Interrupted, "enough")));
        let sink = hand.sink.clone();
        assert_eq!(hand.over().await.err(), Some(FailureCode::Disconnected));
        assert_eq!(sink.prepared.load(Ordering::Relaxed), 0);
        assert_eq!(sink.count("commit") + sink.count("finish"), 0);
    }
}

/// END-2, ENTRY-5: what is gathered has not ended; nothing that the sender says changes that it will.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gathered_is_open_and_its_end_stands() {
    let gathered = async || {
        let orders = Orders { held: vec!["sync prepared"], ..orders(100) };
        let mut hand = Hand::with_options(orders, with(Durability::Batch)).await;
        needed(&mut hand, &files(1..=1)).await;
        hand.send(packed(1, 1..=1)).await;
        assert_eq!(hand.half.next().await, Message::Written(vec![Unit::Pack(1)]));
        hand
    };
    let hand = gathered().await;
    hand.half.say(&Message::SourceDone(NOTHING));
    hand.ends_as_violation("an early end").await;
    let mut hand = gathered().await;
    let failure = Failure::new(FailureCode::Vanished, "gone");
    hand.half.say(&Message::Withdraw { entry: EntryId(1), failure });
    hand.half.say(&Message::Restart { entry: file(1, "f1", 3), version: 1 });
    hand.send(packed(1, 1..=1)).await;
    assert_eq!(hand.half.next().await, Message::Written(vec![Unit::Pack(1)]));
    hand.sink.gate.add_permits(1);
    assert_eq!(hand.end().await, (1, DONE));
    assert_eq!(hand.sink.count("prepare"), 1);
}

/// END-2: each file with its name, or nothing at all, is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_as_durable_as_was_asked_for() {
    for (durability, chunked, small) in [
        (Durability::None, vec!["commit large"], vec!["commit small"]),
        (
            Durability::Batch,
            vec!["sync large", "commit large"],
            vec!["sync prepared", "commit small"],
        ),
        (
            Durability::File,
            vec!["sync large", "commit large", "sync name large"],
            vec!["commit small", "sync name small"],
        ),
    ] {
        let mut hand = Hand::with_options(orders(100), with(durability)).await;
        needed(&mut hand, &[file(1, "large", CHUNK as u64), file(2, "small", 3)]).await;
        hand.send(pack(1, &[(2, 0, b"abc")])).await;
        assert_eq!(hand.end().await, (2, DONE));
        hand.send(chunk(whole(1, CHUNK), 0, &vec![1; CHUNK])).await;
        let root = Digest::of(&vec![1; CHUNK]);
        hand.half.say(&Message::FileEnd { entry: EntryId(1), version: 0, root });
        assert_eq!(hand.end().await, (1, DONE));
        let log: Vec<_> = hand.sink.log();
        let kept = |name: &str| -> Vec<String> {
            let of_it = |call: &&String| {
                let is_sync = call.starts_with("sync") || call.starts_with("commit");
                is_sync && (call.ends_with(name) || name == "small" && call.ends_with("prepared"))
            };
            log.iter().filter(of_it).cloned().collect()
        };
        assert_eq!((kept("large"), kept("small")), (owned(&chunked), owned(&small)));
    }
    // A name that cannot be synced is none that was kept.
    let orders = Orders { failing: vec!["sync name"], ..orders(100) };
    let mut hand = Hand::with_options(orders, with(Durability::File)).await;
    needed(&mut hand, &[file(1, "small", 3)]).await;
    hand.send(pack(1, &[(1, 0, b"abc")])).await;
    assert_eq!(hand.answer().await.1.failure().code, FailureCode::Io);
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
