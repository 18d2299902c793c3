//! Hard links, and what is said of them.

use super::testing::{Answer, Hand, Orders};
use crate::engine::tests::{entry, file, options, pack};
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{
    Changes, Entry, Failure, FailureCode, Kind, Message, Options, Outcome, Verdict,
};
use crate::storage::Placed;

fn linking() -> Options {
    let mut options = options();
    options.preserve.hard_links = true;
    options
}

fn leader(id: u64, name: &str, size: u64) -> Entry {
    Entry { is_linked: true, ..file(id, name, size) }
}

fn link(id: u64, name: &str, leader: u64) -> Entry {
    entry(id, 0, name, Kind::HardLink { leader: EntryId(leader) })
}

fn linked() -> Changes {
    Changes::CREATED.with(Changes::LINKED)
}

/// ENTRY-3: a link leads to an entry that was announced for that, and to nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_to_what_cannot_be_linked_to_end_the_session() {
    let directory = Entry { is_linked: true, ..entry(1, 0, "d", Kind::Directory) };
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("to nothing", vec![link(1, "l", 9)]),
        ("to itself", vec![link(1, "l", 1)]),
        ("to the root", vec![link(1, "l", 0)]),
        ("to a later entry", vec![link(1, "l", 2), leader(2, "f", 1)]),
        ("to an entry that is no leader", vec![file(1, "f", 1), link(2, "l", 1)]),
        ("to a directory", vec![directory]),
        ("to a link", vec![leader(1, "f", 1), Entry { is_linked: true, ..link(2, "l", 1) }]),
        ("to another link", vec![leader(1, "f", 1), link(2, "l", 1), link(3, "m", 2)]),
    ];
    for (case, entries) in cases {
        let hand = Hand::with_options(Orders::default(), linking()).await;
        hand.announce(&entries);
        hand.ends_as_violation(case).await;
    }
    let hand = Hand::new(Orders::default()).await;
    hand.announce(&[leader(1, "f", 1), link(2, "l", 1)]);
    hand.ends_as_violation("not asked for").await;
}

/// ENTRY-4, ENTRY-5: links wait for their leader and hold nothing else up; each ends once.
///
/// ENTRY-16.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_are_made_when_their_leader_is_there() {
    let mut hand = Hand::with_options(Orders::default(), linking()).await;
    hand.announce(&[leader(1, "f", 3), link(2, "l", 1), link(3, "m", 1), file(4, "g", 3)]);
    let need = || Answer::Verdict(Verdict::Need);
    assert_eq!(hand.answers(2).await, [(EntryId(1), need()), (EntryId(4), need())]);
    assert_eq!(hand.sink.count("link"), 0);
    hand.send(pack(1, &[(1, 0, b"abc")])).await;
    assert_eq!(hand.end().await, (1, Outcome::Done(Changes::CREATED_WITH_CONTENT)));
    let mut ends = vec![hand.end().await, hand.end().await];
    ends.sort_by_key(|(id, _)| *id);
    assert_eq!(ends, [(2, Outcome::Done(linked())), (3, Outcome::Done(linked()))]);
    assert!(hand.sink.at("commit f") < hand.sink.at("link l f"));
    // One that comes when its leader has ended long ago, and one whose leader was there before.
    hand.announce(&[link(5, "n", 1)]);
    assert_eq!(hand.end().await, (5, Outcome::Done(linked())));
    hand.send(pack(2, &[(4, 0, b"abc")])).await;
    assert_eq!(hand.end().await.0, 4);
}

/// ENTRY-5: a link to what is there already is made too, and in a dry run it would be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_to_what_was_there_are_made_too() {
    let placed = [("f", Placed::Settled(Changes::NONE))].into();
    let mut hand = Hand::with_options(Orders { placed, ..Orders::default() }, linking()).await;
    hand.announce(&[leader(1, "f", 3), link(2, "l", 1)]);
    assert_eq!(hand.end().await, (1, Outcome::Skipped));
    assert_eq!(hand.end().await, (2, Outcome::Done(linked())));
    let options = Options { dry_run: true, ..linking() };
    let mut hand = Hand::with_options(Orders::default(), options).await;
    hand.announce(&[leader(1, "f", 3), link(2, "l", 1)]);
    assert_eq!(hand.end().await, (1, Outcome::Would(Changes::CREATED_WITH_CONTENT)));
    assert_eq!(hand.end().await, (2, Outcome::Would(linked())));
}

/// ENTRY-5, ENTRY-7: links fail with their leader, whatever made it fail, and say which it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_fail_with_their_leader() {
    let failing = vec!["place bad", "prepare worse", "link n"];
    let mut hand = Hand::with_options(Orders { failing, ..Orders::default() }, linking()).await;
    hand.announce(&[leader(1, "bad", 3), link(2, "l", 1)]);
    assert_eq!(hand.end().await.0, 1);
    let (id, answer) = hand.answer().await;
    assert_eq!((id, answer.failure().code), (2, FailureCode::Io));
    assert!(answer.failure().text().contains("cannot link l to bad"), "{}", answer.failure());
    hand.announce(&[leader(3, "worse", 3), link(4, "m", 3)]);
    assert_eq!(hand.answer().await, (3, Answer::Verdict(Verdict::Need)));
    hand.send(pack(1, &[(3, 0, b"abc")])).await;
    assert_eq!(hand.end().await.0, 3);
    assert!(hand.answer().await.1.failure().text().contains("worse"));
    // Withdrawn ones, and the link itself.
    hand.announce(&[leader(5, "f", 3), link(6, "n", 5), link(7, "o", 5), link(8, "p", 5)]);
    assert_eq!(hand.answer().await, (5, Answer::Verdict(Verdict::Need)));
    let failure = Failure::new(FailureCode::Vanished, "gone");
    hand.half.say(&Message::Withdraw { entry: EntryId(8), failure: failure.clone() });
    assert_eq!(hand.end().await, (8, Outcome::Failed(failure.clone())));
    hand.half.say(&Message::Withdraw { entry: EntryId(5), failure });
    assert_eq!(hand.end().await.0, 5);
    assert_eq!(hand.answer().await.1.failure().code, FailureCode::Vanished);
    assert_eq!(hand.answer().await.1.failure().code, FailureCode::Vanished);
    hand.announce(&[leader(9, "q", 3), link(10, "n", 9)]);
    hand.answer().await;
    hand.send(pack(2, &[(9, 0, b"abc")])).await;
    assert_eq!(hand.end().await.0, 9);
    assert_eq!(hand.answer().await.1.failure().code, FailureCode::Io);
    assert_eq!(hand.sink.count("link"), 1);
}

/// ENTRY-4: as many links as may be open at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_links_wait_and_are_made() {
    let mut hand = Hand::with_options(Orders::default(), linking()).await;
    hand.announce(&[leader(1, "f", 3)]);
    hand.answer().await;
    let count = 20_000;
    let links: Vec<_> = (2..2 + count).map(|id| link(id, &format!("{id}"), 1)).collect();
    links.chunks(1000).for_each(|some| hand.announce(some));
    hand.send(pack(1, &[(1, 0, b"abc")])).await;
    let ends = hand.answers(1 + usize::try_from(count).unwrap()).await;
    assert_eq!(ends[0].0, EntryId(1));
    assert!(ends[1..].iter().all(|(_, end)| *end == Answer::End(Outcome::Done(linked()))));
}
