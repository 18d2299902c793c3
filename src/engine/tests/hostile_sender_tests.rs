//! A receiver against a sender that is made by hand and follows no rules.

use super::*;

/// A receiver that runs as it should, and everything that it hears and gets is made by hand.
pub struct SenderByHand {
    pub ground: Ground,
    pub half: Half,
    pub channel: MemorySender,
    pub arrive: flume::Sender<Result<(ChannelSlot, MemoryReceiver), SessionError>>,
    pub receiver: JoinHandle<Result<ReceiverEnd, SessionError>>,
    /// The receiver's.
    pub observer: Observer,
}

impl SenderByHand {
    pub async fn new() -> Self {
        Self::before_sources(Ground::new()).await.with_sources()
    }

    pub fn with_sources(self) -> Self {
        self.half.say(&Message::Sources {
            single_file: false,
            root: None,
            whereabouts: Whereabouts::default(),
        });
        self
    }

    pub async fn before_sources(ground: Ground) -> Self {
        let (near, far) = tokio::io::duplex(64 << 10);
        let mut half = Half::new(near, End::Client(Role::Sender));
        let mut agent = Half::new(far, End::Agent);
        greet(&mut half, &mut agent, &options()).await;
        let (arrive, arriving) = flume::unbounded();
        let path = ground.path("dst");
        let observer = Observer::new(Arc::default(), None);
        let notes = observer.clone();
        let receiver = tokio::spawn(agent.run(async move |inbox, outbox| {
            let channels: Channels<MemoryReceiver> = Channels::new(arriving, None);
            let observer = notes;
            let path = path.as_os_str().as_bytes();
            here::receive_into(path, JOB, inbox, outbox, channels, options(), observer, None).await
        }));
        let (channel, far) = memory::pair(64);
        arrive.send(Ok((ChannelSlot { channel: 0, generation: 1 }, far))).unwrap();
        Self { ground, half, channel, arrive, receiver, observer }
    }

    pub fn announce(&self, entries: &[Entry]) {
        self.half.say(&Message::Entries(entries.to_vec()));
    }

    /// The verdicts on this many entries.
    pub async fn verdicts(&mut self, count: usize) -> Vec<(EntryId, Verdict)> {
        let mut verdicts = Vec::new();
        while verdicts.len() < count {
            match self.half.next().await {
                Message::Verdicts(more) => verdicts.extend(more),
                other => panic!("{other:?}"),
            }
        }
        verdicts
    }

    /// Announces one file, which the receiver wants.
    pub async fn wanted(&mut self, entry: &Entry) {
        self.announce(std::slice::from_ref(entry));
        assert_eq!(self.verdicts(1).await, [(entry.id, Verdict::Need)]);
    }

    pub async fn send(&mut self, frame: Frame) {
        self.channel.send(&frame).await.unwrap();
    }

    pub async fn outcome(&mut self) -> (EntryId, Outcome) {
        loop {
            match self.half.next().await {
                Message::Outcomes(mut outcomes) if outcomes.len() == 1 => {
                    return outcomes.remove(0);
                }
                Message::Written(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Says goodbye with these totals, and returns what the receiver thinks of it.
    pub async fn finish(
        mut self,
        totals: Summary,
        agreed: bool,
    ) -> Result<ReceiverEnd, FailureCode> {
        self.half.say(&Message::SourceDone(totals));
        loop {
            match self.half.next().await {
                Message::ReceiverDone { .. } => break,
                Message::Abort(failure) => return Err(failure.code),
                _ => {}
            }
        }
        self.half.say(&Message::Finish { agreed });
        self.error_or_end().await
    }

    pub async fn error_or_end(self) -> Result<ReceiverEnd, FailureCode> {
        let ended = tokio::time::timeout(PATIENCE, self.receiver).await;
        let ended = ended.expect("the receiver hangs").expect("the receiver panicked");
        self.ground.assert_canary();
        ended.map_err(|error| {
            let failure = error.to_tell().expect("it was lost");
            assert!(!failure.text().contains("internal error"), "{failure}");
            failure.code
        })
    }

    #[track_caller]
    pub fn is_violation(ended: &Result<ReceiverEnd, FailureCode>, case: &str) {
        assert_eq!(ended.as_ref().err(), Some(&FailureCode::Violation), "{case}");
    }
}

/// ENTRY-1, ENTRY-3, ENTRY-4, ENTRY-12, SES-4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_cannot_be_end_the_session() {
    let (dir, a, b) =
        (|id, name| entry(id, 0, name, Kind::Directory), file(1, "a", 9), file(2, "b", 9));
    let link = entry(1, 0, "link", Kind::Symlink { target: b"../outside".to_vec() });
    let below = |id, parent| entry(id, parent, "x", Kind::Directory);
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("falling ids", vec![b.clone(), a.clone()]),
        ("an id twice", vec![a.clone(), a.clone()]),
        ("the root's id", vec![dir(0, "a")]),
        ("no such parent", vec![below(2, 1)]),
        ("its own parent", vec![below(2, 2)]),
        ("a later parent", vec![below(2, 3), dir(3, "d")]),
        ("a file for a parent", vec![a.clone(), below(2, 1)]),
        ("a symlink for a parent", vec![link, below(2, 1)]),
        ("more than a file can have", vec![file(1, "a", 1 << 63)]),
        ("all bits", vec![file(1, "a", u64::MAX)]),
    ];
    for (case, entries) in cases {
        let hand = SenderByHand::new().await;
        hand.announce(&entries);
        SenderByHand::is_violation(&hand.error_or_end().await, case);
    }
    let hand = SenderByHand::new().await;
    for first in (1..).step_by(2000).take(33) {
        let many: Vec<_> = (first..first + 2000).map(|id| file(id, &format!("{id}"), 1)).collect();
        hand.announce(&many);
    }
    SenderByHand::is_violation(&hand.error_or_end().await, "too many");
    let hand = SenderByHand::new().await.with_sources();
    SenderByHand::is_violation(&hand.error_or_end().await, "Sources twice");
    let hand = SenderByHand::before_sources(Ground::new()).await;
    hand.announce(&[a]);
    SenderByHand::is_violation(&hand.error_or_end().await, "no Sources");
}

/// SEC-9, ENTRY-5, ENTRY-12, T70b, T72, T74: what can be refused entry by entry is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_may_not_be_fail_by_themselves() {
    let ground = Ground::new();
    fs::create_dir(ground.path("dst")).unwrap();
    symlink("../outside", ground.path("dst/trap")).unwrap();
    symlink("../outside/canary", ground.path("dst/file")).unwrap();
    let mut hand = SenderByHand::before_sources(ground).await.with_sources();
    hand.announce(&[
        entry(1, 0, "trap", Kind::Directory),
        Entry { parent: EntryId(1), ..file(2, "canary", 3) },
        Entry { parent: EntryId(1), ..file(3, "new", 100_000) },
        file(4, ".fastsync", 3),
        file(5, ".fastsync-5a5a5a5a-0123456789abcdef", 3),
        file(6, "huge", (1 << 63) - 1),
        file(7, "file", 3),
        entry(8, 0, "gone", Kind::Unsendable(Failure::new(FailureCode::Permission, "no"))),
    ]);
    let verdicts = hand.verdicts(8).await;
    let codes: Vec<_> = verdicts
        .iter()
        .map(|(_, verdict)| match verdict {
            Verdict::Ended(Outcome::Failed(failure)) => Some(failure.code),
            _ => None,
        })
        .collect();
    let conflict = Some(FailureCode::Conflict);
    assert_eq!(codes[0], conflict);
    assert!(codes[1].is_some() && codes[2].is_some(), "{codes:?}");
    assert_eq!(codes[3..6], [conflict, conflict, Some(FailureCode::Unsupported)]);
    assert_eq!((&verdicts[6].1, codes[7]), (&Verdict::Need, Some(FailureCode::Permission)));
    // What crosses with an end is dropped, and so is what comes after it.
    hand.half
        .say(&Message::Withdraw { entry: EntryId(6), failure: Failure::new(FailureCode::Io, "") });
    hand.half.say(&Message::FileEnd { entry: EntryId(6), version: 0, root: Digest::default() });
    hand.half.say(&Message::Restart { entry: file(6, "huge", 1), version: 1 });
    hand.send(chunk(whole(3, 100), 0, &[1; 100])).await;
    hand.send(pack(1, &[(7, 0, b"new"), (4, 0, b"bad"), (2, 0, b"bad")])).await;
    let done = Outcome::Done(Changes::CREATED_WITH_CONTENT.with(Changes::TYPE));
    assert_eq!(hand.outcome().await, (EntryId(7), done));
    let dst = hand.ground.path("dst");
    assert_eq!(fs::read(dst.join("file")).unwrap(), b"new");
    assert!(!fs::symlink_metadata(dst.join("file")).unwrap().is_symlink());
    assert_eq!(fs::read_dir(&dst).unwrap().count(), 3, "file, trap, and the journal");
    assert_eq!(hand.finish(NOTHING, true).await.err(), Some(FailureCode::Mismatch));
}

/// FRAME-7, FRAME-8, ENTRY-8: data that is not what was announced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_nobody_asked_for_ends_the_session() {
    let len = 2 * CHUNK + 100;
    let part = |id, index: u64| ChunkSize::MIN.range(EntryId(id), index, len as u64).unwrap();
    let range = |offset, len| ByteRange::new(EntryId(1), offset, len, false).unwrap();
    let (full, c) = (noise(1, CHUNK), u32::try_from(CHUNK).unwrap());
    let cases: Vec<(&str, Frame)> = vec![
        ("too short", chunk(range(0, 1024), 0, &full)),
        ("not the last", chunk(range(2 * CHUNK as u64, 99), 0, &full)),
        ("behind the end", chunk(range(4 * CHUNK as u64, c), 0, &full)),
        ("said to be whole", chunk(whole(1, CHUNK), 0, &full)),
        ("a later version", chunk(part(1, 0), 1, &full)),
        ("of a packed file", chunk(whole(2, 100), 0, &full)),
        ("never announced", chunk(part(9, 0), 0, &full)),
        ("of the root", chunk(part(0, 0), 0, &full)),
        ("in a pack", pack(1, &[(1, 0, &full)])),
        ("in a pack with a wrong length", pack(1, &[(2, 0, &full[..99])])),
        ("in a pack of a later version", pack(1, &[(2, 1, &full[..100])])),
        ("in a pack, never announced", pack(1, &[(9, 0, &full[..100])])),
        ("a hole too long", Frame::Chunk(Chunk::hole(range(0, 2 * c), 0))),
    ];
    for (case, frame) in cases {
        let mut hand = SenderByHand::new().await;
        hand.announce(&[file(1, "chunked", len as u64), file(2, "packed", 100)]);
        hand.verdicts(2).await;
        hand.send(frame).await;
        let names = tree(&hand.ground.path("dst")).into_keys();
        assert!(names.into_iter().all(|name| name.starts_with(".fastsync")), "{case}");
        SenderByHand::is_violation(&hand.error_or_end().await, case);
    }
}

/// ENTRY-6, ENTRY-9, END-2: words that do not fit what the receiver waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_that_do_not_fit_end_the_session() {
    let (chunked, packed) = (file(1, "chunked", 100_000), file(2, "packed", 100));
    let restart = |entry: &Entry, version| Message::Restart { entry: entry.clone(), version };
    let root = Digest::default();
    let cases: Vec<(&str, Message)> = vec![
        ("the same version", restart(&chunked, 0)),
        ("a version left out", restart(&chunked, 2)),
        ("another name", restart(&file(1, "other", 5), 1)),
        ("another parent", restart(&Entry { parent: EntryId(3), ..chunked.clone() }, 1)),
        ("another kind", restart(&entry(1, 0, "chunked", Kind::Directory), 1)),
        ("over all limits", restart(&file(1, "chunked", 1 << 63), 1)),
        ("the end of a packed file", Message::FileEnd { entry: EntryId(2), version: 0, root }),
        ("the end of a later version", Message::FileEnd { entry: EntryId(1), version: 1, root }),
        ("an early end", Message::SourceDone(NOTHING)),
    ];
    for (case, message) in cases {
        let mut hand = SenderByHand::new().await;
        hand.announce(&[chunked.clone(), packed.clone(), entry(3, 0, "d", Kind::Directory)]);
        hand.verdicts(3).await;
        hand.half.say(&message);
        SenderByHand::is_violation(&hand.error_or_end().await, case);
    }
    let mut hand = SenderByHand::new().await;
    hand.wanted(&chunked).await;
    for version in 1..=2 {
        hand.half.say(&restart(&chunked, version));
        assert_eq!(hand.verdicts(1).await[0].1, Verdict::Need);
    }
    hand.half.say(&restart(&chunked, 3));
    SenderByHand::is_violation(&hand.error_or_end().await, "a third restart");
}

/// ENTRY-6, ENTRY-13, INT-7, ENTRY-7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_is_dropped_and_never_put_in_place() {
    let (old, new) = (noise(1, CHUNK + 1), noise(2, CHUNK + 1));
    let part = |index| ChunkSize::MIN.range(EntryId(1), index, CHUNK as u64 + 1).unwrap();
    let mut hand = SenderByHand::new().await;
    hand.wanted(&file(1, "f", CHUNK as u64 + 1)).await;
    hand.send(chunk(part(0), 0, &old[..CHUNK])).await;
    assert!(matches!(hand.half.next().await, Message::Written(_)));
    hand.half.say(&Message::Restart { entry: file(1, "f", CHUNK as u64 + 1), version: 1 });
    hand.verdicts(1).await;
    hand.half.say(&Message::FileEnd { entry: EntryId(1), version: 0, root: Digest::of(&old) });
    hand.send(chunk(part(1), 0, &old[CHUNK..])).await;
    hand.send(chunk(part(0), 1, &new[..CHUNK])).await;
    let unit = |offset| Unit::Chunk { entry: EntryId(1), version: 1, offset };
    assert_eq!(hand.half.next().await, Message::Written(vec![unit(0)]));
    // Twice is once, and is acknowledged twice; what is damaged is not written.
    hand.send(chunk(part(0), 1, &new[..CHUNK])).await;
    assert_eq!(hand.half.next().await, Message::Written(vec![unit(0)]));
    hand.send(damaged(chunk(part(1), 1, &new[CHUNK..]))).await;
    assert_eq!(hand.half.next().await, Message::Again(vec![unit(CHUNK as u64)]));
    assert!(!hand.ground.path("dst/f").exists());
    hand.half.say(&Message::FileEnd { entry: EntryId(1), version: 1, root: Digest::of(&new) });
    hand.send(chunk(part(1), 1, &new[CHUNK..])).await;
    let done = Outcome::Done(Changes::CREATED_WITH_CONTENT);
    assert_eq!(hand.outcome().await, (EntryId(1), done));
    assert_eq!(fs::read(hand.ground.path("dst/f")).unwrap(), new);
    // A root that is not the one of the data, and a file that is withdrawn, leave nothing.
    let two = [file(2, "g", 5000), file(3, "h", 5000)];
    hand.announce(&two);
    hand.verdicts(2).await;
    hand.send(chunk(whole(2, 5000), 0, &new[..5000])).await;
    hand.half.say(&Message::FileEnd { entry: EntryId(2), version: 0, root: Digest::of(&old) });
    let (_, outcome) = hand.outcome().await;
    assert!(
        matches!(outcome, Outcome::Failed(failure) if failure.code == FailureCode::Verification)
    );
    hand.send(chunk(whole(3, 5000), 0, &new[..5000])).await;
    assert!(matches!(hand.half.next().await, Message::Written(_)));
    let failure = Failure::new(FailureCode::Io, "cannot read h");
    hand.half.say(&Message::Withdraw { entry: EntryId(3), failure: failure.clone() });
    assert_eq!(hand.outcome().await, (EntryId(3), Outcome::Failed(failure)));
    // END-3, END-4: and totals that are not the receiver's are no end.
    assert_eq!(hand.finish(NOTHING, true).await.err(), Some(FailureCode::Mismatch));
}

/// ENTRY-14: what the sender could not list is no success for the receiver either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_is_told_of_a_listing_that_failed() {
    let hand = SenderByHand::new().await;
    let failure = Failure::new(FailureCode::Io, "cannot list src/dir: Input/output error");
    hand.half.say(&Message::Complaint(Complaint::new(Vec::new(), failure)));
    let observer = hand.observer.clone();
    hand.finish(NOTHING, true).await.unwrap();
    assert_eq!(observer.tally().complaints.load(Ordering::Relaxed), 1);
}

/// SEC-5: a newer connection of a channel takes the older one's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_ends_the_older_one() {
    let mut hand = SenderByHand::new().await;
    hand.wanted(&file(1, "f", 100)).await;
    for generation in 2..50 {
        let (near, far) = memory::pair(1);
        hand.arrive.send(Ok((ChannelSlot { channel: 0, generation }, far))).unwrap();
        let mut old = std::mem::replace(&mut hand.channel, near);
        tokio::time::timeout(PATIENCE, old.closed()).await.expect("the older one stays");
    }
    hand.send(pack(1, &[(1, 0, &[5; 100])])).await;
    let done = Outcome::Done(Changes::CREATED_WITH_CONTENT);
    assert_eq!(hand.outcome().await, (EntryId(1), done));
}

/// T78: answers to a sender that does not read them do not fill the memory: it is cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_does_not_read_is_cut_off() {
    let hand = SenderByHand::new().await;
    let text = "x".repeat(2000);
    // Each entry is answered with its own 2000 bytes, so that the limit is soon reached.
    let gone = |id| {
        let failure = Failure::new(FailureCode::Io, text.clone());
        entry(id, 0, &format!("{id}"), Kind::Unsendable(failure))
    };
    for first in (1..).step_by(100).take(200) {
        hand.announce(&(first..first + 100).map(gone).collect::<Vec<_>>());
    }
    assert_eq!(hand.error_or_end().await.err(), Some(FailureCode::Violation));
}
