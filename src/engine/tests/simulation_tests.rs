//! The two halves of a transfer against each other in one process: lost channels, damaged data,
//! sources that change.

use super::*;

/// What happens to a frame on its way: it may be changed, lost, or become several.
type Fault = Box<dyn FnMut(Frame) -> Vec<Frame> + Send>;

/// A memory channel with such a fault.
struct Faulty {
    inner: MemorySender,
    fault: Fault,
}

impl FrameSender for Faulty {
    async fn send(&mut self, frame: &Frame) -> Result<(), TransportError> {
        for frame in (self.fault)(frame.clone()) {
            self.inner.send(&frame).await?;
        }
        Ok(())
    }

    async fn closed(&mut self) -> TransportError {
        self.inner.closed().await
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        self.inner.finish().await
    }
}

type Cuts = Arc<Mutex<Vec<CutSwitch>>>;

/// One session between honest ends, over channels that may not be.
struct Rig<'a> {
    ground: &'a Ground,
    options: Options,
    depth: usize,
    max_open: u32,
    fault: Box<dyn Fn(ChannelSlot) -> Fault + Send + Sync>,
    /// The channels that are up, for whoever wants to cut them.
    cuts: Cuts,
}

struct Ended {
    sent: Result<SenderEnd, SessionError>,
    received: Result<ReceiverEnd, SessionError>,
    events: Vec<Event>,
    progress: Arc<Progress>,
}

impl<'a> Rig<'a> {
    fn new(ground: &'a Ground) -> Self {
        Self {
            ground,
            options: options(),
            depth: 4,
            max_open: MAX_OPEN_ENTRIES,
            fault: Box::new(|_| Box::new(|frame| vec![frame])),
            cuts: Cuts::default(),
        }
    }

    fn with_fault(mut self, fault: impl Fn(ChannelSlot) -> Fault + Send + Sync + 'static) -> Self {
        self.fault = Box::new(fault);
        self
    }

    async fn run(self) -> Ended {
        let session = Box::pin(self.run_for_ever());
        tokio::time::timeout(PATIENCE, session).await.expect("the session hangs")
    }

    async fn run_for_ever(self) -> Ended {
        let (near, far) = tokio::io::duplex(64 << 10);
        let mut client = Half::new(near, End::Client(Role::Sender));
        let mut agent = Half::new(far, End::Agent);
        greet(&mut client, &mut agent, &self.options).await;
        let (gone, leaving) = flume::unbounded::<ChannelSlot>();
        let (to_sender, sending) = flume::unbounded();
        let (to_receiver, receiving) = flume::unbounded();
        let (told, events) = flume::unbounded();
        let progress = Arc::<Progress>::default();
        let source = LocalSource::open(&self.ground.source(), &self.options, None).unwrap();
        let observer = Observer::new(Arc::clone(&progress), Some(told));
        let (depth, fault, cuts) = (self.depth, self.fault, self.cuts);
        let connect = |slot: ChannelSlot| {
            let (sender, receiver) = memory::pair(depth);
            cuts.lock().unwrap().push(sender.cut_switch());
            let _ = to_receiver.send(Ok((slot, receiver)));
            let _ = to_sender.send(Ok((slot, Faulty { inner: sender, fault: fault(slot) })));
        };
        (0..self.options.streams).for_each(|n| connect(ChannelSlot { channel: n, generation: 1 }));
        let dialling = async {
            while let Ok(slot) = leaving.recv_async().await {
                connect(ChannelSlot { generation: slot.generation + 1, ..slot });
            }
            std::future::pending::<()>().await;
        };
        let pushing = client.run(async |inbox, outbox| {
            let channels = Channels::new(sending, Some(gone));
            let options = self.options.clone();
            send::run(source, inbox, outbox, channels, options, self.max_open, observer).await
        });
        let path = self.ground.path("dst");
        let taking = agent.run(async |inbox, outbox| {
            let channels: Channels<MemoryReceiver> = Channels::new(receiving, None);
            let observer = Observer::new(Arc::default(), None);
            let path = path.as_os_str().as_bytes();
            let options = self.options.clone();
            here::receive_into(path, JOB, inbox, outbox, channels, options, observer, None).await
        });
        let both = async { tokio::join!(pushing, taking) };
        let (sent, received) = tokio::select! {
            both = both => both,
            () = dialling => unreachable!(),
        };
        Ended { sent, received, events: events.drain().collect(), progress }
    }
}

impl Ended {
    /// Both ends say that all went well, and the same.
    #[track_caller]
    fn totals(&self) -> Totals {
        let sent = self.sent.as_ref().expect("the sender failed").totals;
        assert_eq!(sent, self.received.as_ref().expect("the receiver failed").totals);
        sent
    }

    fn mismatches(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Mismatch { .. })).count()
    }

    /// The entries that failed, by path, and why.
    fn failed(&self) -> Vec<(String, FailureCode)> {
        let failed = |event: &Event| match event {
            Event::Ended(report) => match &report.outcome {
                Outcome::Failed(failure) => {
                    Some((String::from_utf8_lossy(&report.path).into_owned(), failure.code))
                }
                _ => None,
            },
            _ => None,
        };
        self.events.iter().filter_map(failed).collect()
    }
}

/// ENTRY-8, ENTRY-9, ENTRY-10, END-1, END-2, END-5, INT-7, JRN-11.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_arrives_over_any_number_of_channels() {
    for streams in 1..=3 {
        let ground = Ground::new();
        ground.plant();
        let mut rig = Rig::new(&ground);
        rig.options.streams = streams;
        let ended = rig.run().await;
        let totals = ended.totals();
        assert_eq!((totals.skipped, totals.failed), (0, 0));
        assert_eq!(totals.done, 40 + 7 + 4 + 1);
        ground.assert_equal();
        assert_eq!(ended.mismatches(), 0);
        let again = Rig::new(&ground).run().await;
        // Every file, directory and symlink is there.
        assert_eq!((again.totals().done, again.totals().skipped), (0, totals.done));
        assert_eq!(again.progress.bytes_sent.get(), 0);
    }
}

/// INT-3, INT-4, INT-8: what was damaged on its way is sent once more, and nothing else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_damaged_on_its_way_is_sent_again() {
    for every in [1, 2, 5] {
        let ground = Ground::new();
        ground.plant();
        let (count, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(HashSet::new())));
        let hit = Arc::clone(&count);
        let mut rig = Rig::new(&ground).with_fault(move |_| {
            let (count, seen) = (Arc::clone(&hit), Arc::clone(&seen));
            let mut number = 0;
            Box::new(move |frame| {
                let key = match &frame {
                    Frame::Chunk(chunk) => (chunk.range.entry().0, chunk.range.offset()),
                    Frame::Pack(pack) => (0, pack.number),
                    Frame::Probe | Frame::Ready | Frame::End => return vec![frame],
                };
                number += 1;
                // A pack's last member comes again in a pack of its own: that one passes.
                let is_first = key.1 == 1 || key.0 != 0;
                if number % every == 0 && is_first && seen.lock().unwrap().insert(key) {
                    count.fetch_add(1, Ordering::Relaxed);
                    return vec![damaged(frame)];
                }
                vec![frame]
            })
        });
        rig.options.streams = 2;
        let ended = rig.run().await;
        assert_eq!(ended.totals().failed, 0);
        ground.assert_equal();
        let count = count.load(Ordering::Relaxed);
        assert!(count > 0 && ended.mismatches() == count, "{count} of {}", ended.mismatches());
    }
}

/// INT-8, ENTRY-7: four attempts, and only the damaged entry fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_matches_fails_after_four_attempts() {
    let ground = Ground::new();
    ground.plant();
    let unlucky = noise(1005, 9 * CHUNK + 5);
    let (small, attempts) = (noise(39, 39 * 101), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&attempts);
    let mut rig = Rig::new(&ground).with_fault(move |_| {
        let (unlucky, small, attempts) = (unlucky.clone(), small.clone(), Arc::clone(&counted));
        Box::new(move |frame| match frame {
            Frame::Chunk(chunk) => {
                let at = usize::try_from(chunk.range.offset()).unwrap();
                let is_hit = matches!(&chunk.data, ChunkData::Bytes(data)
                    if at == 3 * CHUNK && unlucky[at..].starts_with(data));
                if is_hit {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    vec![damaged(Frame::Chunk(chunk))]
                } else {
                    vec![Frame::Chunk(chunk)]
                }
            }
            Frame::Pack(mut pack) => {
                let at = pack.payload.windows(small.len()).position(|part| part == small);
                if let Some(at) = at {
                    let mut payload = pack.payload.to_vec();
                    payload[at] ^= 1;
                    pack.payload = payload.into();
                    attempts.fetch_add(100, Ordering::Relaxed);
                }
                vec![Frame::Pack(pack)]
            }
            other => vec![other],
        })
    });
    rig.options.streams = 2;
    let ended = rig.run().await;
    let totals = ended.totals();
    assert_eq!((totals.failed, totals.done), (2, 50));
    let mut failed = ended.failed();
    failed.sort_by(|a, b| a.0.cmp(&b.0));
    let verification = FailureCode::Verification;
    assert_eq!(failed, [("large/5".into(), verification), ("small/39".into(), verification)]);
    assert_eq!(attempts.load(Ordering::Relaxed), 404, "{:?}", ended.events);
    for gone in ["large/5", "small/39"] {
        fs::remove_file(ground.path("src").join(gone)).unwrap();
    }
    let names = |side| tree(&ground.path(side)).into_keys().collect::<Vec<_>>();
    assert_eq!(names("src"), names("dst"));
}

/// R20, T08, T10, FRAME-6: a lost channel costs what was under way on it, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_that_are_cut_are_replaced_and_all_arrives() {
    for all_at_once in [false, true] {
        let ground = Ground::new();
        ground.plant();
        ground.write("huge", &noise(7, 60 * CHUNK));
        let passed = Arc::new(AtomicUsize::new(0));
        let cuts = Cuts::default();
        let lines = Arc::clone(&cuts);
        let mut rig = Rig::new(&ground).with_fault(move |slot| {
            let (passed, lines) = (Arc::clone(&passed), Arc::clone(&lines));
            Box::new(move |frame| {
                let count = passed.fetch_add(1, Ordering::Relaxed);
                let mut lines = lines.lock().unwrap();
                if all_at_once && [5, 25, 45].contains(&count) {
                    lines.drain(..).for_each(|line| line.cut());
                } else if !all_at_once && count % 7 == 6 && slot.generation < 6 {
                    let line = count % lines.len().max(1);
                    lines[line].cut();
                }
                vec![frame]
            })
        });
        rig.cuts = cuts;
        rig.options.streams = 3;
        let ended = rig.run().await;
        assert_eq!(ended.totals().failed, 0);
        ground.assert_equal();
        let lost =
            ended.events.iter().filter(|event| matches!(event, Event::ChannelLost { .. })).count();
        assert!(lost >= 3, "{lost}");
    }
}

/// INT-6, ENTRY-13, FRAME-8, T71: late copies on other channels change nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_come_late_and_elsewhere_change_nothing() {
    let ground = Ground::new();
    ground.plant();
    let old = Arc::new(Mutex::new(Vec::<Frame>::new()));
    let mut rig = Rig::new(&ground).with_fault(move |_| {
        let old = Arc::clone(&old);
        Box::new(move |frame| {
            let mut old = old.lock().unwrap();
            old.push(frame.clone());
            let late = old[(old.len() * 7919) % old.len().max(1)].clone();
            let older = old[old.len() / 2].clone();
            vec![older, frame.clone(), late, frame]
        })
    });
    rig.options.streams = 3;
    let ended = rig.run().await;
    assert_eq!(ended.totals().failed, 0);
    ground.assert_equal();
    assert_eq!(ended.mismatches(), 0);
}

/// T21, ENTRY-4: nothing waits for itself with every queue at its shortest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_smallest_queues_do_not_deadlock() {
    for (streams, max_open, files) in [(3, MAX_OPEN_ENTRIES, 2500), (2, 3, 300), (1, 1, 60)] {
        let ground = Ground::new();
        for n in 0..files {
            let len = if n % 10 == 0 { 2 * CHUNK } else { 50 };
            ground.write(&format!("{}/{n}", n % 7), &noise(n, len));
        }
        let mut rig = Rig::new(&ground);
        rig.options.streams = streams;
        rig.options.buffer_size = 1;
        rig.depth = 1;
        rig.max_open = max_open;
        let ended = rig.run().await;
        assert_eq!(ended.totals().done, files + 7);
        ground.assert_equal();
    }
}

/// Changes the source whenever the first chunk of `f` passes.
async fn with_changing_source(
    change: impl Fn(&Path, u64) + Send + Sync + 'static,
) -> (Ground, Ended) {
    let ground = Ground::new();
    ground.write("f", &noise(1, 10 * CHUNK));
    ground.write("other", &noise(2, 2 * CHUNK));
    ground.write("small", b"small");
    let path = ground.path("src/f");
    let (change, times) = (Arc::new(change), Arc::new(AtomicU64::new(0)));
    let rig = Rig::new(&ground).with_fault(move |_| {
        let (change, path, times) = (Arc::clone(&change), path.clone(), Arc::clone(&times));
        Box::new(move |frame| {
            if let Frame::Chunk(chunk) = &frame
                && chunk.range.offset() == 0
                && chunk.range.entry() != EntryId(0)
                && !chunk.range.is_whole()
                && is_of(&path, chunk)
            {
                change(&path, times.fetch_add(1, Ordering::Relaxed));
            }
            vec![frame]
        })
    });
    let ended = rig.run().await;
    ground.assert_canary();
    (ground, ended)
}

/// Whether a chunk is the beginning of this file.
fn is_of(path: &Path, chunk: &Chunk) -> bool {
    let ChunkData::Bytes(data) = &chunk.data else { return false };
    fs::read(path).is_ok_and(|content| content.starts_with(data))
}

/// ENTRY-6, INT-9, T41 to T44: what arrives is one state of the source, and never a mixture.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_changes_once_is_read_again() {
    let rewritten = |path: &Path, len: usize| {
        let mtime = fs::metadata(path).unwrap().modified().unwrap();
        fs::write(path, noise(50, len)).unwrap();
        let file = fs::File::open(path).unwrap();
        file.set_modified(mtime + Duration::from_secs(1)).unwrap();
    };
    for len in [10 * CHUNK, 10 * CHUNK + 1, 5 * CHUNK, CHUNK, 100, 0] {
        let change = move |path: &Path, time: u64| {
            if time == 0 {
                rewritten(path, len);
            }
        };
        let (ground, ended) = with_changing_source(change).await;
        assert_eq!(ended.totals().failed, 0, "{len}");
        ground.assert_equal();
    }
    let replace = |path: &Path, time: u64| {
        if time == 0 {
            let other = path.parent().unwrap().parent().unwrap().join("new");
            fs::write(&other, noise(60, 10 * CHUNK)).unwrap();
            let mtime = fs::metadata(path).unwrap().modified().unwrap();
            fs::File::open(&other).unwrap().set_modified(mtime).unwrap();
            fs::rename(&other, path).unwrap();
        }
    };
    let (ground, ended) = with_changing_source(replace).await;
    assert_eq!(ended.totals().failed, 0);
    assert_eq!(fs::read(ground.path("dst/f")).unwrap(), noise(60, 10 * CHUNK));
}

/// ENTRY-6, ENTRY-7: and what changes each time is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_never_rests_or_goes_away_fails() {
    type Change = fn(&Path, u64);
    let cases: [(Change, FailureCode); 4] = [
        (
            |path, time| {
                fs::write(path, noise(time + 70, (11 + usize::try_from(time).unwrap()) * CHUNK))
                    .unwrap();
            },
            FailureCode::Changed,
        ),
        (
            |path, _| {
                fs::remove_file(path).unwrap();
                symlink("../outside/canary", path).unwrap();
            },
            FailureCode::Changed,
        ),
        (
            |path, _| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            },
            FailureCode::Changed,
        ),
        (|path, _| fs::remove_file(path).unwrap(), FailureCode::Vanished),
    ];
    for (case, (change, code)) in cases.into_iter().enumerate() {
        let (ground, ended) = with_changing_source(change).await;
        assert_eq!(ended.totals().failed, 1, "case {case}");
        assert_eq!(ended.failed(), [("f".to_owned(), code)], "case {case}");
        let names: Vec<_> = tree(&ground.path("dst")).into_keys().collect();
        assert_eq!(names, [Path::new("other"), Path::new("small")], "case {case}");
    }
}
