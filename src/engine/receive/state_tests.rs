//! Every state of a file against everything that a sender can say of it, and the limits of what it
//! may announce.

use super::counted_root;
use super::testing::{Answer, Hand, Orders};
use crate::engine::tests::{CHUNK, chunk, entry, file, options, pack, whole};
use crate::protocol::chunk::{Digest, EntryId};
use crate::protocol::message::{
    Attribute, Changes, Durability, Entry, Failure, FailureCode, Kind, Message, Metadata, Options,
    Outcome, Owner, Special, Verdict,
};
use crate::storage::{Existing, Placed};

/// How far the file with id 1 is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Placing,
    Comparing,
    Packed,
    Chunked,
    CopyingSmall,
    CopyingLarge,
    Grouped,
    Committing,
    Ended,
}

const STAGES: [Stage; 9] = [
    Stage::Placing,
    Stage::Comparing,
    Stage::Packed,
    Stage::Chunked,
    Stage::CopyingSmall,
    Stage::CopyingLarge,
    Stage::Grouped,
    Stage::Committing,
    Stage::Ended,
];

/// What the sender says of it then.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Word {
    FileEnd,
    Root,
    Restart,
    Withdraw,
    Chunk,
    Pack,
    Done,
}

const WORDS: [Word; 7] =
    [Word::FileEnd, Word::Root, Word::Restart, Word::Withdraw, Word::Chunk, Word::Pack, Word::Done];

/// What comes of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Effect {
    /// The session ends.
    Violation,
    /// The session goes on.
    Goes,
}

#[expect(clippy::match_same_arms, reason = "the order of the arms is the table")]
fn expected(stage: Stage, word: Word) -> Effect {
    use Effect::{Goes, Violation};
    match (stage, word) {
        // Whatever is said of what has ended may have crossed with that.
        (Stage::Ended, _) => Goes,
        (_, Word::Done) => Violation,
        (_, Word::Withdraw) => Goes,
        (Stage::Comparing, Word::Root | Word::Restart) => Goes,
        (Stage::Packed, Word::Pack | Word::Restart) => Goes,
        (Stage::Chunked, Word::FileEnd | Word::Chunk | Word::Restart) => Goes,
        (Stage::Grouped, Word::Pack | Word::Restart) => Goes,
        (Stage::Committing, Word::FileEnd | Word::Chunk | Word::Restart) => Goes,
        _ => Violation,
    }
}

const LARGE: usize = CHUNK;

impl Stage {
    fn is_small(self) -> bool {
        matches!(self, Self::Packed | Self::CopyingSmall | Self::Grouped | Self::Ended)
    }

    fn data(self) -> Vec<u8> {
        vec![7; if self.is_small() { 3 } else { LARGE }]
    }

    fn entry(self) -> Entry {
        file(1, "f", self.data().len() as u64)
    }

    /// A receiver with the file at this stage, and nothing else open.
    async fn reach(self) -> Hand {
        let mut orders = Orders { max_prepared: 100, ..Orders::default() };
        match self {
            Self::Placing => orders.held = vec!["place"],
            Self::Comparing => {
                orders.placed = [("f", Placed::Compare(Existing::Unread))].into();
                orders.held = vec!["open"];
            }
            Self::CopyingSmall | Self::CopyingLarge => {
                orders.source = [("f", self.data())].into();
                orders.held = vec!["copy", "range"];
            }
            Self::Grouped => orders.held = vec!["sync prepared"],
            Self::Committing => orders.held = vec!["sync f"],
            Self::Packed | Self::Chunked | Self::Ended => {}
        }
        let options = Options { durability: Durability::Batch, ..options() };
        let mut hand = Hand::with_options(orders, options).await;
        hand.announce(&[self.entry()]);
        if matches!(self, Self::CopyingSmall | Self::CopyingLarge) {
            hand.until("place f", 1).await;
            // Its state is set by the time that anything behind it in the queue has its answer.
            hand.announce(&[entry(2, 0, "d", Kind::Directory)]);
            assert_eq!(hand.end().await.0, 2);
        } else if self != Self::Placing {
            hand.answers(1).await;
        }
        if matches!(self, Self::Grouped | Self::Ended) {
            hand.send(pack(1, &[(1, 0, &self.data())])).await;
            assert!(matches!(hand.half.next().await, Message::Written(_)));
        }
        if self == Self::Ended {
            hand.end().await;
        }
        if self == Self::Committing {
            let data = self.data();
            hand.send(chunk(whole(1, data.len()), 0, &data)).await;
            assert!(matches!(hand.half.next().await, Message::Written(_)));
            let root = Digest::of(&data);
            hand.half.say(&Message::FileEnd { entry: EntryId(1), version: 0, root });
            hand.until("held: sync f", 1).await;
        }
        hand
    }
}

impl Word {
    async fn say(self, stage: Stage, hand: &mut Hand) {
        let (entry, version, data) = (EntryId(1), 0, stage.data());
        let root = Digest::of(&data);
        match self {
            Self::FileEnd => hand.half.say(&Message::FileEnd { entry, version, root }),
            Self::Root => hand.half.say(&Message::Root { entry, version, root }),
            Self::Restart => hand.half.say(&Message::Restart { entry: stage.entry(), version: 1 }),
            Self::Withdraw => {
                let failure = Failure::new(FailureCode::Vanished, "gone");
                hand.half.say(&Message::Withdraw { entry, failure });
            }
            Self::Chunk => hand.send(chunk(whole(1, data.len()), 0, &data)).await,
            Self::Pack => hand.send(pack(9, &[(1, 0, &data)])).await,
            Self::Done => hand.half.say(&Message::SourceDone(crate::engine::tests::NOTHING)),
        }
    }
}

/// ENTRY-5, ENTRY-6, ENTRY-7, ENTRY-9, FRAME-7, END-2: and whatever goes on comes to one end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_can_be_said_at_every_stage() {
    for stage in STAGES {
        for word in WORDS {
            let case = format!("{word:?} while {stage:?}");
            let mut hand = stage.reach().await;
            word.say(stage, &mut hand).await;
            if expected(stage, word) == Effect::Violation {
                hand.ends_as_violation(&case).await;
                continue;
            }
            if word == Word::Done {
                continue;
            }
            // The receiver is still there and listens.
            hand.announce(&[entry(5, 0, "last", Kind::Directory)]);
            hand.sink.gate.add_permits(100);
            let mut ends = Vec::new();
            loop {
                let (id, answer) = hand.answer().await;
                if let Answer::End(outcome) = answer {
                    ends.push((id, outcome));
                }
                if ends.iter().any(|(id, _)| *id == 5) {
                    break;
                }
            }
            let of_it = ends.iter().filter(|(id, _)| *id == 1).count();
            assert!(of_it <= 1, "{case}: {ends:?}");
        }
    }
}

/// ENTRY-7: what is on its way to its place ends as that goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawal_that_comes_too_late_is_ignored() {
    for stage in STAGES {
        let mut hand = stage.reach().await;
        Word::Withdraw.say(stage, &mut hand).await;
        if stage == Stage::Ended {
            continue;
        }
        let is_late = matches!(
            stage,
            Stage::CopyingSmall | Stage::CopyingLarge | Stage::Grouped | Stage::Committing
        );
        if is_late {
            hand.sink.gate.add_permits(100);
        }
        let (_, outcome) = hand.end().await;
        assert_eq!(matches!(outcome, Outcome::Done(_)), is_late, "{stage:?}: {outcome:?}");
    }
}

/// ENTRY-6: a new version of a file that is being put in its place is looked at after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_while_committing_waits_for_that() {
    let mut hand = Stage::Committing.reach().await;
    Word::Restart.say(Stage::Committing, &mut hand).await;
    // It was heard when what was said after it is answered.
    hand.announce(&[entry(2, 0, "d", Kind::Directory)]);
    assert_eq!(hand.end().await.0, 2);
    hand.sink.gate.add_permits(100);
    assert_eq!(hand.answer().await, (1, Answer::Verdict(Verdict::Need)));
    assert_eq!(hand.sink.count("commit f"), 1);
}

/// META-3: names of owners are bounded, and told to the sink before the entries after them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_are_learned_in_order_and_bounded() {
    let owner = |id: u32, len: usize| Owner { id, name: vec![b'a'; len] };
    let owners = |count: u32| (0..count).map(|id| owner(id, 1)).collect::<Vec<_>>();
    let mut hand = Hand::new(Orders::default()).await;
    hand.announce(&[file(1, "before", 3)]);
    hand.half.say(&Message::Owners { users: vec![owner(1, 255)], groups: owners(2) });
    hand.announce(&[file(2, "after", 3)]);
    hand.answers(2).await;
    let at = |call: &str| hand.sink.at(call);
    assert!(at("place before") < at("owners 1 2") && at("owners 1 2") < at("place after"));
    for (case, users, groups) in
        [("no name", vec![owner(1, 0)], vec![]), ("a name too long", vec![], vec![owner(1, 256)])]
    {
        let hand = Hand::new(Orders::default()).await;
        hand.half.say(&Message::Owners { users, groups });
        hand.ends_as_violation(case).await;
    }
    for groups in [false, true] {
        let mut hand = Hand::new(Orders::default()).await;
        let say = |hand: &Hand, count| {
            let (users, groups) =
                if groups { (vec![], owners(count)) } else { (owners(count), vec![]) };
            hand.half.say(&Message::Owners { users, groups });
        };
        (0..2).for_each(|_| say(&hand, 32_768));
        hand.announce(&[file(1, "f", 3)]);
        hand.answers(1).await;
        say(&hand, 1);
        hand.ends_as_violation("too many").await;
    }
}

/// ENTRY-4: an entry counts for what it is, first and anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_entries_count_for_more() {
    let link = |id, len| entry(id, 0, &format!("{id}"), Kind::Symlink { target: vec![b'x'; len] });
    let held = || Orders { held: vec!["place"], ..Orders::default() };
    // 65,536 KiB and one for each of them are over the limit.
    let hand = Hand::new(held()).await;
    (1..=128).for_each(|id| hand.announce(&[link(id, 512 << 10)]));
    hand.ends_as_violation("too heavy").await;
    let mut hand = Hand::new(held()).await;
    (1..=127).for_each(|id| hand.announce(&[link(id, 512 << 10)]));
    hand.sink.gate.add_permits(1000);
    hand.answers(127).await;
    // Room is free again when they have ended.
    (201..=327).for_each(|id| hand.announce(&[link(id, 512 << 10)]));
    hand.answers(127).await;
    // What is announced anew has a limit of its own.
    let heavy = |id: u64| {
        let mut entry = file(id, &format!("{id}"), 3);
        let attribute = |n: u64| {
            let name = format!("user.{n}").into_bytes();
            Attribute { name, value: vec![0; 64 << 10] }
        };
        entry.metadata.attributes = (0..7).map(attribute).collect();
        entry
    };
    let mut hand = Hand::new(Orders::default()).await;
    let light: Vec<_> = (1..=160).map(|id| file(id, &format!("{id}"), 3)).collect();
    hand.announce(&light);
    hand.answers(160).await;
    for id in 1..=160 {
        hand.half.say(&Message::Restart { entry: heavy(id), version: 1 });
    }
    hand.ends_as_violation("grown too heavy").await;
}

/// META-2: metadata that no correct sender says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_cannot_be_ends_the_session() {
    let attribute = |name: &str| Attribute { name: name.into(), value: vec![] };
    let with = |attributes| {
        let f = file(1, "f", 3);
        Entry { metadata: Metadata { attributes, ..f.metadata.clone() }, ..f }
    };
    for (case, attributes) in [
        ("no name", vec![attribute("")]),
        ("out of order", vec![attribute("user.b"), attribute("user.a")]),
    ] {
        let hand = Hand::new(Orders::default()).await;
        hand.announce(&[with(attributes.clone())]);
        hand.ends_as_violation(case).await;
        let mut hand = Hand::new(Orders::default()).await;
        hand.announce(&[file(1, "f", 3)]);
        hand.answers(1).await;
        hand.half.say(&Message::Restart { entry: with(attributes), version: 1 });
        hand.ends_as_violation(case).await;
    }
}

/// SEC-9: what was not asked for is not made; what is not meant is not touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn special_files_need_to_be_asked_for() {
    let device = Special::CharacterDevice { major: 1, minor: 3 };
    let entries = [
        entry(1, 0, "fifo", Kind::Special(Special::Fifo)),
        entry(2, 0, "device", Kind::Special(device)),
        entry(3, 0, "unselected", Kind::Unselected),
    ];
    for (specials, devices) in [(false, false), (true, false), (false, true)] {
        let mut options = options();
        (options.preserve.specials, options.preserve.devices) = (specials, devices);
        let mut hand = Hand::with_options(Orders::default(), options).await;
        hand.announce(&entries);
        let ends = hand.answers(3).await;
        for ((_, end), is_asked_for) in ends.iter().zip([specials, devices]) {
            if is_asked_for {
                assert_eq!(*end, Answer::End(Outcome::Done(Changes::CREATED_WITH_CONTENT)));
            } else {
                assert_eq!(end.failure().code, FailureCode::Unsupported);
            }
        }
        assert_eq!(ends[2].1, Answer::End(Outcome::Left));
        assert_eq!(hand.sink.count("place"), 1 + usize::from(specials) + usize::from(devices));
    }
}

/// END-3.
#[test]
fn a_root_is_counted_if_its_data_came() {
    let root = Digest([7; 32]);
    let failed = Outcome::Failed(Failure::new(FailureCode::Io, "no"));
    let done = Outcome::Done(Changes::CONTENT.with(Changes::TIME));
    assert_eq!(counted_root(&done, Some(root)), root);
    assert_eq!(counted_root(&done, None), Digest::default());
    let others = [Outcome::Done(Changes::TIME), Outcome::Skipped, failed];
    for other in others.into_iter().chain([Outcome::Would(Changes::CONTENT)]) {
        assert_eq!(counted_root(&other, Some(root)), Digest::default());
    }
}
