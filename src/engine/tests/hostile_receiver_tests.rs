//! A sender against a receiver that is made by hand and follows no rules.

use super::hostile_sender_tests::SenderByHand;
use super::*;

/// A sender that runs as it should, and a receiver that is made by hand.
struct ReceiverByHand {
    ground: Ground,
    half: Half,
    channel: MemoryReceiver,
    sender: JoinHandle<Result<SenderEnd, SessionError>>,
}

impl ReceiverByHand {
    async fn new(ground: Ground, max_open: u32) -> Self {
        let (near, far) = tokio::io::duplex(64 << 10);
        let mut client = Half::new(near, End::Client(Role::Sender));
        let mut half = Half::new(far, End::Agent);
        greet(&mut client, &mut half, &options()).await;
        let (arrive, arriving) = flume::unbounded();
        let source = LocalSource::open(&ground.source(), &options(), None).unwrap();
        let sender = tokio::spawn(client.run(async move |inbox, outbox| {
            let channels: Channels<MemorySender> = Channels::new(arriving, None);
            let observer = Observer::new(Arc::default(), None);
            send::run(source, inbox, outbox, channels, options(), max_open, observer).await
        }));
        let (near, channel) = memory::pair(64);
        // It may have given up already.
        let _ = arrive.send(Ok((ChannelSlot { channel: 0, generation: 1 }, near)));
        Self { ground, half, channel, sender }
    }

    /// With a chunked file `f` of three chunks and a small file `s`, as they were announced.
    async fn with_two() -> (Self, Entry, Entry) {
        let ground = Ground::new();
        ground.write("f", &noise(1, 2 * CHUNK + 1));
        ground.write("s", b"small");
        let mut hand = Self::new(ground, MAX_OPEN_ENTRIES).await;
        assert!(matches!(hand.half.next().await, Message::Sources { .. }));
        let mut entries = Vec::new();
        while entries.len() < 2 {
            match hand.half.next().await {
                Message::Entries(more) => entries.extend(more),
                other => panic!("{other:?}"),
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let small = entries.remove(1);
        (hand, entries.remove(0), small)
    }

    fn verdict(&self, entry: &Entry, verdict: Verdict) {
        self.half.say(&Message::Verdicts(vec![(entry.id, verdict)]));
    }

    fn done(&self, entries: &[&Entry]) {
        let outcomes =
            entries.iter().map(|entry| (entry.id, Outcome::Done(Changes::CONTENT))).collect();
        self.half.say(&Message::Outcomes(outcomes));
    }

    async fn frame(&mut self) -> Frame {
        let frame = tokio::time::timeout(PATIENCE, self.channel.receive(&Pool::new(1, 1))).await;
        frame.expect("no frame comes").unwrap()
    }

    async fn ended(self) -> Result<SenderEnd, FailureCode> {
        let ended = tokio::time::timeout(PATIENCE, self.sender).await;
        let ended = ended.expect("the sender hangs").expect("the sender panicked");
        ended.map_err(|error| {
            let failure = error.to_tell().expect("it was lost");
            assert!(!failure.text().contains("internal error"), "{failure}");
            failure.code
        })
    }

    async fn expect_violation(self, case: &str) {
        assert_eq!(self.ended().await.err(), Some(FailureCode::Violation), "{case}");
    }

    /// The next message of the sender that is not about a single file's end.
    async fn next_but_ends(&mut self) -> Message {
        loop {
            match self.half.next().await {
                Message::FileEnd { .. } => {}
                other => return other,
            }
        }
    }
}

/// What a receiver says, given the ids of `f` and `s`.
type Case = Box<dyn Fn(EntryId, EntryId) -> Vec<Message>>;

/// ENTRY-5, ENTRY-11, END-2: a receiver that says what cannot be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_makes_no_sense_ends_the_session() {
    let failed = || Outcome::Failed(Failure::new(FailureCode::Io, "no"));
    let have = |id, first, count| Message::Have {
        entry: id,
        first,
        values: vec![Digest::default(); count],
    };
    let none = EntryId(99);
    let need = |id| Message::Verdicts(vec![(id, Verdict::Need)]);
    let cases: Vec<(&str, Case)> = vec![
        ("a verdict on nothing", Box::new(move |_, _| vec![need(none)])),
        ("two verdicts", Box::new(move |f, _| vec![need(f), need(f)])),
        ("two verdicts on a small file", Box::new(move |_, s| vec![need(s), need(s)])),
        (
            "an outcome of nothing",
            Box::new(move |_, _| {
                vec![Message::Outcomes(vec![(none, Outcome::Done(Changes::CONTENT))])]
            }),
        ),
        (
            "two outcomes",
            Box::new(move |f, _| vec![Message::Outcomes(vec![(f, failed()), (f, failed())])]),
        ),
        ("a chunk behind the end", Box::new(move |f, _| vec![have(f, 2, 2)])),
        ("a chunk far behind", Box::new(move |f, _| vec![have(f, u64::MAX, 1)])),
        ("chunks that overlap", Box::new(move |f, _| vec![have(f, 0, 2), have(f, 1, 1)])),
        ("chunks of a small file", Box::new(move |_, s| vec![have(s, 0, 1)])),
        ("chunks of nothing", Box::new(move |_, _| vec![have(none, 0, 1)])),
        ("chunks after the verdict", Box::new(move |f, _| vec![need(f), have(f, 0, 1)])),
        (
            "an early end",
            Box::new(|_, _| {
                vec![Message::ReceiverDone {
                    summary: NOTHING,
                    durable: true,
                    deletions: Deletions::default(),
                }]
            }),
        ),
    ];
    for (case, messages) in cases {
        let (hand, f, s) = ReceiverByHand::with_two().await;
        for message in messages(f.id, s.id) {
            hand.half.say(&message);
        }
        hand.expect_violation(case).await;
    }
    // SES-8.
    for max_open in [0, MAX_OPEN_ENTRIES + 1, u32::MAX] {
        ReceiverByHand::new(Ground::new(), max_open).await.expect_violation("its window").await;
    }
}

/// ENTRY-13, INT-8, END-3, END-4: lies that cost the sender nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_lies_gets_no_more_than_it_may_ask_for() {
    let (mut hand, f, s) = ReceiverByHand::with_two().await;
    let chunk = |offset| Unit::Chunk { entry: f.id, version: 0, offset };
    let packed = Unit::Packed { entry: s.id, version: 0 };
    // Never sent, and never announced: both are ignored.
    let made_up = [
        chunk(0),
        chunk(7),
        chunk(u64::MAX),
        packed,
        Unit::Pack(77),
        Unit::Packed { entry: f.id, version: 0 },
    ];
    for _ in 0..300 {
        hand.half.say(&Message::Written(made_up.to_vec()));
        hand.half.say(&Message::Again(made_up.to_vec()));
    }
    hand.verdict(&f, Verdict::Need);
    hand.verdict(&s, Verdict::Need);
    let mut frames = Vec::new();
    for _ in 0..4 {
        frames.push(hand.frame().await);
    }
    let Some(Frame::Pack(sent)) = frames.iter().find(|frame| matches!(frame, Frame::Pack(_)))
    else {
        panic!("{frames:?}")
    };
    assert!(sent.payload.ends_with(b"small"));
    // Asked for without end, each comes three times more, and is withdrawn once.
    for _ in 0..300 {
        hand.half.say(&Message::Again(vec![chunk(0), packed]));
        tokio::task::yield_now().await;
    }
    let (mut again, pool) = (0, Pool::new(1, 1));
    let mut withdrawn = HashSet::new();
    while withdrawn.len() < 2 {
        // What is asked for before it was sent again is ignored.
        hand.half.say(&Message::Again(vec![chunk(0), packed]));
        tokio::select! {
            frame = hand.channel.receive(&pool) => again += usize::from(frame.is_ok()),
            message = hand.half.inbox.next() => match message.unwrap() {
                Message::Withdraw { entry, failure } => {
                    assert_eq!(failure.code, FailureCode::Verification);
                    assert!(withdrawn.insert(entry));
                }
                Message::FileEnd { .. } | Message::Listed(_) | Message::Ping => {}
                other => panic!("{other:?}"),
            },
        }
    }
    hand.half.say(&Message::Again(vec![chunk(0), packed]));
    let failed =
        |entry: &Entry| (entry.id, Outcome::Failed(Failure::new(FailureCode::Verification, "no")));
    hand.half.say(&Message::Outcomes(vec![failed(&f), failed(&s)]));
    let Message::SourceDone(summary) = hand.next_but_ends().await else { panic!() };
    assert_eq!((summary.done, summary.failed), (0, 2));
    // Three times each, however often it asked; that none is left out is seen above, where nothing
    // that is asked for crosses with what is sent.
    while !matches!(hand.frame().await, Frame::End) {
        again += 1;
    }
    assert!((1..=6).contains(&again), "{again}");
    let wrong = Summary { failed: 1, ..summary };
    hand.half.say(&Message::ReceiverDone {
        summary: wrong,
        durable: true,
        deletions: Deletions::default(),
    });
    assert_eq!(hand.half.next().await, Message::Finish { agreed: false });
    assert_eq!(hand.ended().await.err(), Some(FailureCode::Mismatch));
}

/// ENTRY-11: what the receiver has is not sent, and `FileEnd` comes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_the_receiver_has_are_not_sent() {
    let (mut hand, f, s) = ReceiverByHand::with_two().await;
    let data = noise(1, 2 * CHUNK + 1);
    let value = |index| {
        let range = ChunkSize::MIN.range(f.id, index, data.len() as u64).unwrap();
        let mut hasher = RangeHasher::new(range);
        hasher.update(&data[usize::try_from(index).unwrap() * CHUNK..]);
        hasher.finish().unwrap()
    };
    let values = vec![value(0), value(1)];
    hand.half.say(&Message::Have { entry: f.id, first: 0, values });
    hand.verdict(&s, Verdict::Ended(Outcome::Skipped));
    hand.verdict(&f, Verdict::Resume);
    let Frame::Chunk(last) = hand.frame().await else { panic!() };
    assert_eq!((last.range.offset(), last.range.len()), (2 * CHUNK as u64, 1));
    let root = Digest::of(&data);
    assert_eq!(hand.half.next().await, Message::FileEnd { entry: f.id, version: 0, root });
    hand.done(&[&f]);
    assert!(matches!(hand.half.next().await, Message::SourceDone(_)));
    hand.ground.assert_canary();
}

/// ENTRY-5, ENTRY-6, END-3: an end that crosses with a restart is about the version before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_crosses_with_a_restart_is_about_the_version_before() {
    let (mut hand, f, s) = ReceiverByHand::with_two().await;
    hand.verdict(&s, Verdict::Ended(Outcome::Skipped));
    hand.verdict(&f, Verdict::Need);
    let root = loop {
        if let Message::FileEnd { root, .. } = hand.half.next().await {
            break root;
        }
    };
    for _ in 0..3 {
        hand.frame().await;
    }
    // A copy was lost, say, and the sender finds another file when it reads it again.
    hand.ground.write("f", &noise(5, CHUNK));
    let unit = Unit::Chunk { entry: f.id, version: 0, offset: 0 };
    hand.half.say(&Message::Again(vec![unit]));
    let Message::Restart { entry, version: 1 } = hand.half.next().await else { panic!() };
    assert_eq!(entry.size(), CHUNK as u64);
    // But the receiver has put the first one in its place meanwhile.
    hand.done(&[&f]);
    let Message::SourceDone(summary) = hand.half.next().await else { panic!() };
    let mut expected = Totals::default();
    for (entry, fate, root) in [
        (&f, crate::protocol::manifest::Fate::Done, root),
        (&s, crate::protocol::manifest::Fate::Skipped, Digest::default()),
    ] {
        expected.add(&crate::protocol::manifest::FinalEntry {
            id: entry.id,
            parent: entry.parent,
            name: &entry.name,
            size: entry.size(),
            fate,
            root,
        });
    }
    assert_eq!(summary, Summary::from(expected));
    hand.half.say(&Message::ReceiverDone {
        summary,
        durable: false,
        deletions: Deletions::default(),
    });
    assert_eq!(hand.half.next().await, Message::Finish { agreed: true });
    hand.half.say(&Message::Closed);
    assert_eq!(hand.ended().await.unwrap().totals.done, 1);
}

/// SES-9: a peer that gives up is heard at any time, and is not answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_ends_both_roles_and_keeps_the_journal() {
    let full = Failure::new(FailureCode::DestinationFull, "full");
    let (hand, ..) = ReceiverByHand::with_two().await;
    hand.half.say(&Message::Abort(full.clone()));
    let ended = tokio::time::timeout(PATIENCE, hand.sender).await.unwrap().unwrap();
    assert!(ended.is_err_and(|error| error.to_tell().is_none()));
    let mut hand = SenderByHand::new().await;
    hand.wanted(&file(1, "f", 200_000)).await;
    let range = ChunkSize::MIN.range(EntryId(1), 0, 200_000).unwrap();
    hand.send(chunk(range, 0, &noise(1, CHUNK))).await;
    assert!(matches!(hand.half.next().await, Message::Written(_)));
    hand.half.say(&Message::Abort(full));
    let ended = tokio::time::timeout(PATIENCE, hand.receiver).await.unwrap().unwrap();
    assert!(ended.is_err_and(|error| error.to_tell().is_none()));
    assert!(hand.ground.path("dst/.fastsync").is_dir());
}
