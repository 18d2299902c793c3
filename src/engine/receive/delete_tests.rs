//! Deleting, and complaints.

use std::sync::atomic::Ordering;

use super::complain::MAX_COMPLAINTS;
use super::testing::{Hand, Orders, broken};
use crate::engine::plan::lock;
use crate::engine::tests::{NOTHING, entry, file, options};
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{
    Complaint, Delete, Deleted, Deletions, Entry, Failure, FailureCode, Kind, Message, Options,
};

fn deleting() -> Options {
    Options { delete: Some(Delete::default()), ..options() }
}

fn directory(id: u64, name: &str) -> Entry {
    entry(id, 0, name, Kind::Directory)
}

fn listed(ids: &[u64]) -> Message {
    Message::Listed(ids.iter().map(|id| EntryId(*id)).collect())
}

/// Everything that the receiver says after the sender is done, up to its own end.
async fn last_words(hand: &mut Hand) -> Vec<Message> {
    hand.half.say(&Message::SourceDone(NOTHING));
    let mut words = Vec::new();
    loop {
        let next = hand.half.next().await;
        let is_last = matches!(next, Message::ReceiverDone { .. } | Message::Abort(_));
        words.push(next);
        if is_last {
            return words;
        }
    }
}

/// R38: directories that were not announced, and entries that come after a listing's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_that_cannot_be_end_the_session() {
    let cases: Vec<(&str, Vec<Entry>, Message)> = vec![
        ("nothing", vec![], listed(&[1])),
        ("a file", vec![file(1, "f", 3)], listed(&[1])),
        ("among others", vec![directory(1, "dir")], listed(&[0, 1, 2])),
    ];
    for options in [deleting(), options()] {
        for (case, entries, message) in &cases {
            let hand = Hand::with_options(Orders::default(), options.clone()).await;
            hand.announce(entries);
            hand.half.say(message);
            hand.ends_as_violation(case).await;
        }
    }
    for (parent, options) in [(0, deleting()), (1, deleting()), (1, options())] {
        let hand = Hand::with_options(Orders::default(), options).await;
        hand.announce(&[directory(1, "dir")]);
        hand.half.say(&listed(&[parent]));
        hand.announce(&[Entry { parent: EntryId(parent), ..file(2, "f", 3) }]);
        hand.ends_as_violation("an entry after its directory's end").await;
    }
}

/// R38: deletion goes by complete directories and by every name that was announced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_complete_directories_are_deleted_from() {
    let deleted: Vec<Deleted> = (0..3000)
        .map(|n| Deleted { path: format!("{n}").into_bytes(), is_directory: n % 2 == 0 })
        .collect();
    let orders =
        Orders { deleted: deleted.clone(), failing: vec!["place bad"], ..Orders::default() };
    let mut hand = Hand::with_options(orders, deleting()).await;
    let gone = Failure::new(FailureCode::Permission, "no");
    hand.announce(&[
        directory(1, "dir"),
        directory(2, "bad"),
        entry(3, 0, "gone", Kind::Unsendable(gone.clone())),
        directory(4, "unlisted"),
    ]);
    hand.answers(4).await;
    hand.half.say(&listed(&[1, 2]));
    hand.half.say(&Message::Complaint(Complaint::new(Vec::new(), gone)));
    hand.half.say(&listed(&[0]));
    let words = last_words(&mut hand).await;
    let told: Vec<Deleted> = words
        .iter()
        .filter_map(|word| match word {
            Message::Deleted(deleted) => Some(deleted.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(told, deleted);
    let Some(Message::ReceiverDone { deletions, .. }) = words.last() else { panic!() };
    assert_eq!(*deletions, Deletions { done: 3000, over_limit: 2 });
    // Not `bad`, which could not be made; of all names, one was not announced.
    assert_eq!(hand.sink.count("delete [0, 1] [true, true, true, false]"), 1);
    let log = hand.sink.log();
    assert!(
        log.iter().position(|call| call == "finish")
            > log.iter().position(|call| call.starts_with("delete"))
    );
}

/// R38: nothing is deleted unasked, nor in a session that is given up; that it fails is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_is_the_last_thing_and_fails_alone() {
    let mut hand = Hand::new(Orders::default()).await;
    hand.half.say(&listed(&[0]));
    last_words(&mut hand).await;
    assert_eq!(hand.sink.count("delete"), 0);
    let hand = Hand::with_options(Orders::default(), deleting()).await;
    hand.half.say(&listed(&[0]));
    hand.half.say(&Message::Abort(Failure::new(FailureCode::Io, "enough")));
    let sink = hand.sink.clone();
    hand.over().await.unwrap_err();
    assert_eq!(sink.count("delete"), 0);
    let orders = Orders { failing: vec!["delete"], ..Orders::default() };
    let mut hand = Hand::with_options(orders, deleting()).await;
    let words = last_words(&mut hand).await;
    assert!(
        matches!(&words[0], Message::Complaint(it) if it.path().starts_with(b"delete")),
        "{words:?}"
    );
    assert!(matches!(words.last(), Some(Message::ReceiverDone { .. })));
    assert_eq!(hand.sink.count("finish"), 1);
}

/// SES-9: a sender that gives up while things are being deleted is heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sender_is_heard_while_the_last_things_are_done() {
    let orders = Orders { held: vec!["delete"], ..Orders::default() };
    let hand = Hand::with_options(orders, deleting()).await;
    hand.half.say(&Message::SourceDone(NOTHING));
    let failure = Failure::new(FailureCode::Io, "a source could not be removed");
    hand.half.say(&Message::Complaint(Complaint::new(Vec::new(), failure.clone())));
    hand.half.say(&Message::Abort(failure));
    let observer = hand.observer.clone();
    assert_eq!(hand.over().await.err(), Some(FailureCode::Disconnected));
    assert_eq!(observer.tally().complaints.load(Ordering::Relaxed), 1);
}

/// ENTRY-10: what could not be kept is told with its entry, and too much of it only counted.
///
/// META-5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complaints_are_told_up_to_a_limit() {
    let mut hand = Hand::new(Orders::default()).await;
    lock(&hand.sink.complaints).push(broken("d"));
    hand.announce(&[directory(1, "d")]);
    let Message::Complaint(complaint) = hand.half.next().await else { panic!() };
    let failure = &complaint.failure;
    assert_eq!((failure.code, failure.text()), (FailureCode::Io, "cannot write d: broken"));
    assert_eq!(complaint.path(), b"d");
    hand.answers(1).await;
    let more = 500 + usize::try_from(MAX_COMPLAINTS).unwrap();
    lock(&hand.sink.complaints).extend((0..more).map(|_| broken("d")));
    // The sender's count as well.
    let failure = Failure::new(FailureCode::Io, "no");
    for _ in 0..10 {
        hand.half.say(&Message::Complaint(Complaint::new(Vec::new(), failure.clone())));
    }
    let words = last_words(&mut hand).await;
    let told = words.iter().filter(|word| matches!(word, Message::Complaint(_))).count();
    let limit = usize::try_from(MAX_COMPLAINTS).unwrap();
    assert_eq!(told, limit - 11 + 1);
    let Some(Message::Complaint(complaint)) = words.iter().rev().nth(1) else { panic!() };
    let failure = &complaint.failure;
    assert!(failure.text().starts_with("511 more"), "{failure}");
    let counted = hand.observer.tally().complaints.load(Ordering::Relaxed);
    assert_eq!(counted, MAX_COMPLAINTS + 1);
}
