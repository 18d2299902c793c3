//! The two halves of a transfer against each other in one process, and each of them against a peer
//! that follows no rules: lost channels, damaged data, sources that change, and lies.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

use super::control::{Inbox, Outbox, Pulse, outbox};
use super::event::{Event, Progress};
use super::receive::ReceiverEnd;
use super::send::SenderEnd;
use super::session::{Channels, Observer, SessionError};
use super::{here, send};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{
    ByteRange, Chunk, ChunkData, ChunkSize, Digest, EntryId, Pack, PackMember, RangeHasher,
};
use crate::protocol::frame::Frame;
use crate::protocol::handshake::{self, ChannelSlot};
use crate::protocol::manifest::{Name, Timestamp, Totals};
use crate::protocol::message::{
    Accept, Durability, Entry, Failure, FailureCode, FileKind, Kind, MAX_OPEN_ENTRIES, Message,
    Mode, Open, Options, Outcome, Resume, Secret, SocketOptions, Stamp, Summary, Task, Unit,
    Verdict,
};
use crate::protocol::session::{End, Role};
use crate::storage::local::LocalSource;
use crate::transport::memory::{self, CutSwitch, MemoryReceiver, MemorySender};
use crate::transport::{FrameReceiver as _, FrameSender, TransportError};

const JOB: [u8; 16] = [0x5a; 16];
const CHUNK: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_mins(1);

fn options() -> Options {
    Options {
        chunk_size: ChunkSize::MIN,
        streams: 1,
        pack_threshold: 4096,
        buffer_size: 64 << 20,
        encrypt: false,
        resume: Resume::Trust,
        durability: Durability::None,
        dry_run: false,
        preserve_mode: true,
        preserve_times: true,
        port_range: None,
        loopback: true,
        sockets: SocketOptions::default(),
    }
}

/// Bytes that no two seeds share.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// A directory with `src`, `dst` and an `outside` that nobody may touch.
struct Ground(tempfile::TempDir);

impl Ground {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        for name in ["src", "outside"] {
            fs::create_dir(temp.path().join(name)).unwrap();
        }
        fs::write(temp.path().join("outside/canary"), b"alive").unwrap();
        Self(temp)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn write(&self, below: &str, data: &[u8]) {
        let path = self.path("src").join(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    /// The contents of `src`, with a trailing slash.
    fn source(&self) -> Vec<PathBuf> {
        vec![self.path("src/")]
    }

    /// Files of every sort: empty, small, of one chunk, of many, sparse; directories and symlinks.
    fn plant(&self) {
        for n in 0..40 {
            self.write(&format!("small/{n}"), &noise(n, usize::try_from(n).unwrap() * 101));
        }
        for (n, len) in [4095, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 9 * CHUNK + 5].iter().enumerate()
        {
            self.write(&format!("large/{n}"), &noise(1000 + n as u64, *len));
        }
        let sparse = fs::File::create(self.path("src/large/sparse")).unwrap();
        sparse.write_all_at(b"end", 5 * CHUNK as u64).unwrap();
        fs::create_dir_all(self.path("src/empty/deep")).unwrap();
        symlink("../outside/canary", self.path("src/link")).unwrap();
    }

    fn assert_equal(&self) {
        assert_eq!(tree(&self.path("src")), tree(&self.path("dst")));
        self.assert_canary();
    }

    fn assert_canary(&self) {
        let outside: Vec<_> = tree(&self.path("outside")).into_keys().collect();
        assert_eq!(outside, [Path::new("canary")]);
        assert_eq!(fs::read(self.path("outside/canary")).unwrap(), b"alive");
        let here: HashSet<_> =
            fs::read_dir(self.0.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
        assert!(here.iter().all(|name| ["src", "dst", "outside"].iter().any(|ours| name == ours)));
    }
}

type Look = (u32, i64, i64, Vec<u8>);

/// Everything below a directory: mode, mtime, and content or target.
fn tree(root: &Path) -> BTreeMap<PathBuf, Look> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for item in fs::read_dir(&dir).unwrap() {
            let path = item.unwrap().path();
            let data = fs::symlink_metadata(&path).unwrap();
            let content = if data.is_symlink() {
                fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else if data.is_file() {
                fs::read(&path).unwrap()
            } else {
                left.push(path.clone());
                Vec::new()
            };
            let below = path.strip_prefix(root).unwrap().to_owned();
            found.insert(below, (data.mode(), data.mtime(), data.mtime_nsec(), content));
        }
    }
    found
}

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
        tokio::time::timeout(PATIENCE, self.run_for_ever()).await.expect("the session hangs")
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
        let source = LocalSource::open(&self.ground.source()).unwrap();
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
            here::receive_into(path, JOB, inbox, outbox, channels, options, observer).await
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

/// One end of a control channel.
struct Half {
    inbox: Inbox<ReadHalf<DuplexStream>>,
    outbox: Outbox,
    writer: JoinHandle<std::io::Result<()>>,
}

impl Half {
    fn new(stream: DuplexStream, me: End) -> Self {
        let (reader, writer): (_, WriteHalf<_>) = tokio::io::split(stream);
        let (outbox, writing) = outbox(writer);
        let inbox = Inbox::new(reader, me, PATIENCE, Pulse::new());
        Self { inbox, outbox, writer: tokio::spawn(writing) }
    }

    /// Plays a role, and tells the peer if it fails, as client and agent do.
    async fn run<T>(
        mut self,
        role: impl AsyncFnOnce(&mut Inbox<ReadHalf<DuplexStream>>, Outbox) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let result = role(&mut self.inbox, self.outbox.clone()).await;
        if let Some(failure) = result.as_ref().err().and_then(SessionError::to_tell) {
            let _ = self.outbox.say(&Message::Abort(failure));
        }
        drop(self.outbox);
        let _ = tokio::time::timeout(Duration::from_secs(1), self.writer).await;
        result
    }

    /// The next message that is not a ping.
    async fn next(&mut self) -> Message {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.inbox.next()).await;
            let message = next.expect("the peer is silent").expect("the peer went away");
            if !matches!(message, Message::Ping) {
                return message;
            }
        }
    }

    fn say(&self, message: &Message) {
        self.outbox.say_encoded(message.encode().unwrap());
    }
}

/// Takes both ends through the greetings, as a push does.
async fn greet(client: &mut Half, agent: &mut Half, options: &Options) {
    let hello = Message::Hello(handshake::hello([1; 32], vec![1]));
    let task = Task::Receive { destination: Vec::new() };
    let open = Open { task, channel_secret: Secret([1; 32]), job: JOB, options: options.clone() };
    let accept = Accept { options: options.clone(), port: 1, addresses: Vec::new() };
    client.say(&hello);
    client.say(&Message::Open(Box::new(open)));
    agent.say(&hello);
    agent.say(&Message::Accept(accept));
    for half in [client, agent] {
        half.next().await;
        half.next().await;
    }
}

fn damaged(frame: Frame) -> Frame {
    let flip = |data: &[u8]| {
        let mut data = data.to_vec();
        *data.last_mut().unwrap() ^= 1;
        data.into()
    };
    match frame {
        Frame::Chunk(chunk) => {
            let data = match &chunk.data {
                ChunkData::Bytes(data) => ChunkData::Bytes(flip(data)),
                ChunkData::Hole => {
                    return Frame::Chunk(Chunk { digest: Digest([9; 32]), ..chunk });
                }
            };
            Frame::Chunk(Chunk { data, ..chunk })
        }
        Frame::Pack(pack) => Frame::Pack(Pack { payload: flip(&pack.payload), ..pack }),
        other => other,
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
                    Frame::Ready | Frame::End => return vec![frame],
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

/// A receiver that runs as it should, and everything that it hears and gets is made by hand.
struct SenderByHand {
    ground: Ground,
    half: Half,
    channel: MemorySender,
    arrive: flume::Sender<Result<(ChannelSlot, MemoryReceiver), SessionError>>,
    receiver: JoinHandle<Result<ReceiverEnd, SessionError>>,
    /// The receiver's.
    observer: Observer,
}

impl SenderByHand {
    async fn new() -> Self {
        Self::before_sources(Ground::new()).await.with_sources()
    }

    fn with_sources(self) -> Self {
        self.half.say(&Message::Sources { single_file: false });
        self
    }

    async fn before_sources(ground: Ground) -> Self {
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
            here::receive_into(path, JOB, inbox, outbox, channels, options(), observer).await
        }));
        let (channel, far) = memory::pair(64);
        arrive.send(Ok((ChannelSlot { channel: 0, generation: 1 }, far))).unwrap();
        Self { ground, half, channel, arrive, receiver, observer }
    }

    fn announce(&self, entries: &[Entry]) {
        self.half.say(&Message::Entries(entries.to_vec()));
    }

    /// The verdicts on this many entries.
    async fn verdicts(&mut self, count: usize) -> Vec<(EntryId, Verdict)> {
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
    async fn wanted(&mut self, entry: &Entry) {
        self.announce(std::slice::from_ref(entry));
        assert_eq!(self.verdicts(1).await, [(entry.id, Verdict::Need)]);
    }

    async fn send(&mut self, frame: Frame) {
        self.channel.send(&frame).await.unwrap();
    }

    async fn outcome(&mut self) -> (EntryId, Outcome) {
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
    async fn finish(mut self, totals: Summary, agreed: bool) -> Result<ReceiverEnd, FailureCode> {
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

    async fn error_or_end(self) -> Result<ReceiverEnd, FailureCode> {
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
    fn is_violation(ended: &Result<ReceiverEnd, FailureCode>, case: &str) {
        assert_eq!(ended.as_ref().err(), Some(&FailureCode::Violation), "{case}");
    }
}

fn entry(id: u64, parent: u64, name: &str, kind: Kind) -> Entry {
    Entry {
        id: EntryId(id),
        parent: EntryId(parent),
        name: Name::new(name.as_bytes()).unwrap(),
        kind,
        mode: Mode::from_raw(0o644),
        mtime: Timestamp::new(1_000_000, 5).unwrap(),
    }
}

fn file(id: u64, name: &str, size: u64) -> Entry {
    entry(id, 0, name, Kind::File(FileKind { size, stamp: Stamp::default() }))
}

fn chunk(range: ByteRange, version: u16, data: &[u8]) -> Frame {
    let mut hasher = RangeHasher::new(range);
    hasher.update(data);
    let digest = hasher.finish().unwrap_or_default();
    Frame::Chunk(Chunk { range, version, digest, data: ChunkData::Bytes(data.to_vec().into()) })
}

fn whole(id: u64, len: usize) -> ByteRange {
    ByteRange::new(EntryId(id), 0, u32::try_from(len).unwrap(), true).unwrap()
}

fn pack(number: u64, members: &[(u64, u16, &[u8])]) -> Frame {
    let table: Vec<_> = members
        .iter()
        .map(|(id, version, data)| PackMember {
            entry: EntryId(*id),
            version: *version,
            len: u32::try_from(data.len()).unwrap(),
            root: Digest::of(data),
        })
        .collect();
    let mut payload = vec![0; Pack::table_len(table.len())];
    for (_, _, data) in members {
        payload.extend_from_slice(data);
    }
    let digest = Pack::write_table(&table, &mut payload);
    Frame::Pack(Pack { number, digest, payload: payload.into() })
}

const NOTHING: Summary = Summary { done: 0, skipped: 0, failed: 0, bytes: 0, digest: [0; 32] };

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
    assert_eq!(hand.outcome().await, (EntryId(7), Outcome::Done));
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
    assert_eq!(hand.outcome().await, (EntryId(1), Outcome::Done));
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
    hand.half.say(&Message::Complaint { entry: EntryId::ROOT, failure });
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
    assert_eq!(hand.outcome().await, (EntryId(1), Outcome::Done));
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
        let source = LocalSource::open(&ground.source()).unwrap();
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
        let outcomes = entries.iter().map(|entry| (entry.id, Outcome::Done)).collect();
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
            Box::new(move |_, _| vec![Message::Outcomes(vec![(none, Outcome::Done)])]),
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
            Box::new(|_, _| vec![Message::ReceiverDone { summary: NOTHING, durable: true }]),
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
                Message::FileEnd { .. } | Message::Ping => {}
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
    hand.half.say(&Message::ReceiverDone { summary: wrong, durable: true });
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
    hand.half.say(&Message::ReceiverDone { summary, durable: false });
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
