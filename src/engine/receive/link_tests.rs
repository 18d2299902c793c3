//! Hard links, and what is said of them.

use super::testing::{Answer, Hand, Orders};
use crate::engine::tests::{entry, file, options, pack};
use crate::protocol::chunk::{Digest, EntryId};
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

fn alone() -> Answer {
    Answer::Verdict(Verdict::Alone)
}

fn need() -> Answer {
    Answer::Verdict(Verdict::Need)
}

fn created() -> Outcome {
    Outcome::Done(Changes::CREATED_WITH_CONTENT)
}

fn restart(id: u64, name: &str) -> Message {
    Message::Restart { entry: file(id, name, 3), version: 1 }
}

/// ENTRY-16: where a leader failed, whatever made it fail, or is left alone, the first of its links
/// leads the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_without_a_leader_becomes_one() {
    let failing = vec!["place bad", "prepare worse"];
    let placed = [("left", Placed::Left)].into();
    let orders = Orders { placed, failing, ..Orders::default() };
    let mut hand = Hand::with_options(orders, linking()).await;
    hand.announce(&[leader(1, "bad", 3), link(2, "l", 1), link(3, "m", 1)]);
    assert_eq!(hand.end().await.0, 1);
    assert_eq!(hand.answer().await, (2, alone()));
    hand.half.say(&restart(2, "l"));
    assert_eq!(hand.answer().await, (2, need()));
    hand.send(pack(1, &[(2, 1, b"abc")])).await;
    assert_eq!(hand.end().await, (2, created()));
    assert_eq!(hand.end().await, (3, Outcome::Done(linked())));
    assert!(hand.sink.at("commit l") < hand.sink.at("link m l"));
    // One more, of which the first leader was lost long ago.
    hand.announce(&[link(4, "n", 1)]);
    assert_eq!(hand.end().await, (4, Outcome::Done(linked())));
    hand.announce(&[leader(5, "worse", 3), leader(6, "left", 3)]);
    hand.answers(2).await;
    hand.send(pack(2, &[(5, 0, b"abc")])).await;
    assert_eq!(hand.end().await.0, 5);
    for (id, leader) in [(7, 5), (8, 6)] {
        hand.announce(&[link(id, &format!("{id}"), leader)]);
        assert_eq!(hand.answer().await, (id, alone()));
    }
}

/// ENTRY-7, ENTRY-16: a link that is withdrawn leads nobody, and those behind it wait for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_for_a_link_that_fails_get_another_leader() {
    let mut hand = Hand::with_options(Orders::default(), linking()).await;
    let gone = || Failure::new(FailureCode::Vanished, "gone");
    let withdraw = |id| Message::Withdraw { entry: EntryId(id), failure: gone() };
    let links: Vec<Entry> = (2..7).map(|id| link(id, &format!("{id}"), 1)).collect();
    hand.announce(&[leader(1, "f", 3)]);
    hand.announce(&links);
    assert_eq!(hand.answer().await, (1, need()));
    // One that waits, the leader, one that was asked for, and one that was announced anew.
    hand.half.say(&withdraw(2));
    assert_eq!(hand.end().await, (2, Outcome::Failed(gone())));
    hand.half.say(&withdraw(1));
    assert_eq!(hand.end().await.0, 1);
    assert_eq!(hand.answer().await, (3, alone()));
    hand.half.say(&withdraw(3));
    assert_eq!(hand.end().await, (3, Outcome::Failed(gone())));
    assert_eq!(hand.answer().await, (4, alone()));
    hand.half.say(&restart(4, "4"));
    assert_eq!(hand.answer().await, (4, need()));
    hand.half.say(&withdraw(4));
    assert_eq!(hand.end().await, (4, Outcome::Failed(gone())));
    assert_eq!(hand.answer().await, (5, alone()));
    let target = b"x".to_vec();
    let entry = entry(5, 0, "5", Kind::Symlink { target });
    hand.half.say(&Message::Restart { entry, version: 1 });
    assert_eq!(hand.end().await, (5, created()));
    assert_eq!(hand.end().await, (6, Outcome::Done(linked())));
}

/// ENTRY-16: nothing else than what is said of a link in this state may be said of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_without_a_leader_is_announced_anew_or_withdrawn() {
    let (id, root) = (EntryId(2), Digest([1; 32]));
    let restarted = |kind| Message::Restart { entry: entry(2, 0, "l", kind), version: 1 };
    let wrong = [
        Message::FileEnd { entry: id, version: 0, root },
        Message::Root { entry: id, version: 0, root },
        restarted(Kind::Directory),
        restarted(Kind::HardLink { leader: EntryId(1) }),
        restarted(Kind::Unselected),
        Message::Restart { entry: file(2, "other", 3), version: 1 },
        Message::Restart { entry: file(2, "l", 3), version: 2 },
    ];
    for message in wrong {
        let failing = vec!["place bad"];
        let orders = Orders { failing, ..Orders::default() };
        let mut hand = Hand::with_options(orders, linking()).await;
        hand.announce(&[leader(1, "bad", 3), link(2, "l", 1)]);
        hand.answers(2).await;
        hand.half.say(&message);
        hand.ends_as_violation(&format!("{message:?}")).await;
    }
    // A link that was not asked for.
    let mut hand = Hand::with_options(Orders::default(), linking()).await;
    hand.announce(&[leader(1, "f", 3), link(2, "l", 1)]);
    assert_eq!(hand.answer().await, (1, need()));
    hand.half.say(&restart(2, "l"));
    hand.ends_as_violation("unasked").await;
}

/// ENTRY-5: a link that cannot be made fails by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_cannot_be_made_fails_alone() {
    let orders = Orders { failing: vec!["link n"], ..Orders::default() };
    let mut hand = Hand::with_options(orders, linking()).await;
    hand.announce(&[leader(9, "q", 3), link(10, "n", 9), link(11, "o", 9)]);
    hand.answer().await;
    hand.send(pack(2, &[(9, 0, b"abc")])).await;
    assert_eq!(hand.end().await, (9, created()));
    let mut ends = [hand.answer().await, hand.answer().await];
    ends.sort_by_key(|(id, _)| *id);
    assert_eq!(ends[0].1.failure().code, FailureCode::Io);
    assert_eq!(ends[1], (11, Answer::End(Outcome::Done(linked()))));
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
