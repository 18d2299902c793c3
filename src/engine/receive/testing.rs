//! A sink in memory that answers as it is told to and notes what it is asked, and a receiver on it
//! of which the sender is made by hand.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{Destination, ReceiverEnd};
use crate::engine::journal::{Begun, Journal};
use crate::engine::plan::lock;
use crate::engine::session::{Channels, Observer, SessionError};
use crate::engine::tests::{Half, PATIENCE, greet, options};
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{
    ByteRange, ChunkData, Digest, EntryId, RangeHasher, VerifiedChunk, VerifiedFile,
};
use crate::protocol::frame::Frame;
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::message::{
    Changes, Deleted, Deletions, Entry, Failure, FailureCode, Kind, Message, Metadata, Options,
    Outcome, Owner, Summary, Verdict,
};
use crate::protocol::session::{End, Role};
use crate::storage::{
    Left, NameSet, Operation, Placed, Receipt, Remembers, Removed, Reopened, Sink, StorageError,
    Token,
};
use crate::transport::FrameSender as _;
use crate::transport::memory::{self, MemoryReceiver, MemorySender};

/// A sink in memory. A clone is another handle on it.
#[derive(Clone)]
pub struct TestSink(Arc<Inside>);

pub struct Inside {
    pub orders: Orders,
    /// What it was asked, in order.
    log: Mutex<Vec<String>>,
    /// What is in its place, by name.
    pub files: Mutex<BTreeMap<String, Vec<u8>>>,
    pub complaints: Mutex<Vec<StorageError>>,
    /// How many small files are prepared and neither committed nor dropped.
    pub prepared: Arc<AtomicUsize>,
    /// How many there were at most.
    pub most_prepared: AtomicUsize,
    /// A permit for each call of a sort that is held up.
    pub gate: Semaphore,
}

/// How it behaves.
#[derive(Default)]
pub struct Orders {
    /// What [`Sink::place`] answers, by name; else everything is new.
    pub placed: HashMap<&'static str, Placed>,
    /// What [`Sink::place_compared`] answers to unequal and equal files.
    pub compared: Option<[Placed; 2]>,
    /// What is there already, by name: for comparing.
    pub existing: HashMap<&'static str, Vec<u8>>,
    /// What the source has, by name: it can copy if there is anything.
    pub source: HashMap<&'static str, Vec<u8>>,
    /// A copy of the first range is a copy of all.
    pub copies_whole: bool,
    /// What a later run may count on.
    pub remembers: Remembers,
    /// The chunks that a file has lost when it is reopened.
    pub lost: Vec<u64>,
    /// Calls that fail, by what they would be logged as.
    pub failing: Vec<&'static str>,
    /// Calls that wait for a permit of the gate, likewise.
    pub held: Vec<&'static str>,
    pub max_prepared: usize,
    pub deleted: Vec<Deleted>,
}

pub struct TestPrepared {
    data: Vec<u8>,
    count: Arc<AtomicUsize>,
}

impl Drop for TestPrepared {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
pub struct TestFile {
    name: String,
    data: Arc<Mutex<Vec<u8>>>,
}

impl TestSink {
    pub fn new(orders: Orders) -> Self {
        let max_prepared = orders.max_prepared.max(1);
        Self(Arc::new(Inside {
            orders: Orders { max_prepared, ..orders },
            log: Mutex::default(),
            files: Mutex::default(),
            complaints: Mutex::default(),
            prepared: Arc::default(),
            most_prepared: AtomicUsize::new(0),
            gate: Semaphore::new(0),
        }))
    }

    pub fn log(&self) -> Vec<String> {
        lock(&self.0.log).clone()
    }

    /// How many calls there were that are logged like this.
    pub fn count(&self, call: &str) -> usize {
        self.log().iter().filter(|logged| logged.starts_with(call)).count()
    }

    /// Where in the log this is, for the first time.
    #[track_caller]
    pub fn at(&self, call: &str) -> usize {
        let log = self.log();
        log.iter().position(|logged| logged == call).unwrap_or_else(|| panic!("{call}: {log:?}"))
    }

    fn note(&self, call: String) {
        lock(&self.0.log).push(call);
    }

    async fn call(&self, call: String) -> Result<(), StorageError> {
        if self.0.orders.held.iter().any(|held| call.starts_with(held)) {
            self.note(format!("held: {call}"));
            self.0.gate.acquire().await.unwrap().forget();
        }
        let is_failing = self.0.orders.failing.iter().any(|failing| call.starts_with(failing));
        self.note(call.clone());
        if is_failing { Err(broken(&call)) } else { Ok(()) }
    }

    fn prepared(&self, data: Vec<u8>) -> TestPrepared {
        let count = Arc::clone(&self.0.prepared);
        let before = count.fetch_add(1, Ordering::Relaxed);
        self.0.most_prepared.fetch_max(before + 1, Ordering::Relaxed);
        TestPrepared { data, count }
    }

    fn put(&self, entry: &Entry, data: Vec<u8>) {
        lock(&self.0.files).insert(name(entry), data);
    }
}

impl std::ops::Deref for TestSink {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.0
    }
}

pub fn name(entry: &Entry) -> String {
    String::from_utf8_lossy(entry.name.as_bytes()).into_owned()
}

pub fn broken(what: &str) -> StorageError {
    StorageError::io(Operation::Write, what.as_bytes())(std::io::Error::other("broken"))
}

fn changed(entry: &Entry) -> StorageError {
    StorageError::Changed { path: entry.name.as_bytes().to_vec() }
}

impl Sink for TestSink {
    fn removed(&self) -> Removed {
        Removed::default()
    }

    type File = TestFile;
    type Prepared = TestPrepared;

    fn learn_owners(&self, users: Vec<Owner>, groups: Vec<Owner>) {
        self.note(format!("owners {} {}", users.len(), groups.len()));
    }

    fn keep_root(&self, _: Metadata) -> Changes {
        Changes::NONE
    }

    async fn place(&self, entries: Vec<Arc<Entry>>) -> Vec<Result<Placed, StorageError>> {
        let mut answers = Vec::new();
        for entry in entries {
            let answer = self.call(format!("place {}", name(&entry))).await;
            let new = match entry.kind {
                Kind::File(_) => Placed::Wanted(Changes::CREATED_WITH_CONTENT),
                Kind::Unselected => Placed::Left,
                _ => Placed::Settled(Changes::CREATED_WITH_CONTENT),
            };
            let told = self.orders.placed.get(&*name(&entry)).copied();
            answers.push(answer.map(|()| told.unwrap_or(new)));
        }
        answers
    }

    async fn place_compared(
        &self,
        entry: Arc<Entry>,
        is_equal: bool,
    ) -> Result<Placed, StorageError> {
        self.call(format!("compared {} {is_equal}", name(&entry))).await?;
        let [unequal, equal] = self.orders.compared.unwrap_or([
            Placed::Wanted(Changes::CONTENT.with(Changes::CHECKSUM)),
            Placed::Settled(Changes::NONE),
        ]);
        Ok(if is_equal { equal } else { unequal })
    }

    async fn open_existing(&self, entry: Arc<Entry>) -> Result<TestFile, StorageError> {
        self.call(format!("open {}", name(&entry))).await?;
        let data = self.orders.existing.get(&*name(&entry)).cloned();
        let data = data.ok_or_else(|| broken("nothing there"))?;
        Ok(TestFile { name: name(&entry), data: Arc::new(Mutex::new(data)) })
    }

    async fn link(&self, entry: Arc<Entry>, leader: Arc<Entry>) -> Result<Placed, StorageError> {
        self.call(format!("link {} {}", name(&entry), name(&leader))).await?;
        Ok(Placed::Settled(Changes::CREATED.with(Changes::LINKED)))
    }

    fn complaints(&self) -> Vec<StorageError> {
        std::mem::take(&mut *lock(&self.complaints))
    }

    fn remembers(&self) -> Remembers {
        self.orders.remembers
    }

    fn syncs(&self) -> bool {
        true
    }

    fn lasts(&self) -> bool {
        true
    }

    async fn create(&self, entry: Arc<Entry>, _: Option<Digest>) -> Result<TestFile, StorageError> {
        self.call(format!("create {}", name(&entry))).await?;
        let data = vec![0; usize::try_from(entry.size()).unwrap()];
        let data = Arc::new(Mutex::new(data));
        Ok(TestFile { name: name(&entry), data })
    }

    async fn reopen(
        &self,
        entry: Arc<Entry>,
        left: Left,
    ) -> Result<Option<Reopened<TestFile>>, StorageError> {
        self.call(format!("reopen {} {}", name(&entry), left.receipts.len())).await?;
        let lost = self.orders.lost.clone();
        self.create(entry, None).await.map(|file| Some(Reopened { file, lost }))
    }

    fn identity(&self, _: &TestFile) -> Token {
        7.into()
    }

    async fn digest(
        &self,
        file: TestFile,
        range: ByteRange,
        pool: &Pool,
    ) -> Result<Digest, StorageError> {
        let _buffer = pool.take(1).await.unwrap();
        self.call(format!("digest {}", file.name)).await?;
        let data = lock(&file.data);
        let start = usize::try_from(range.offset()).unwrap();
        let mut hasher = RangeHasher::new(range);
        hasher.update(&data[start..start + range.len() as usize]);
        hasher.finish().map_err(|_| broken("short"))
    }

    async fn write(&self, file: TestFile, chunk: VerifiedChunk) -> Result<Receipt, StorageError> {
        self.call(format!("write {}", file.name)).await?;
        let start = usize::try_from(chunk.range().offset()).unwrap();
        if let ChunkData::Bytes(data) = chunk.data() {
            lock(&file.data)[start..start + data.len()].copy_from_slice(data);
        }
        Ok(Receipt::default())
    }

    async fn commit(
        &self,
        file: TestFile,
        entry: Arc<Entry>,
        _: Option<Digest>,
    ) -> Result<(), StorageError> {
        self.call(format!("commit {}", file.name)).await?;
        self.put(&entry, lock(&file.data).clone());
        Ok(())
    }

    async fn discard(&self, file: TestFile) -> Result<(), StorageError> {
        self.call(format!("discard {}", file.name)).await
    }

    async fn discard_left_over(&self, path: Vec<u8>, _: Token) {
        self.note(format!("left over {}", String::from_utf8_lossy(&path)));
    }

    async fn prepare_files(
        &self,
        files: Vec<(VerifiedFile, Arc<Entry>)>,
    ) -> Vec<Result<TestPrepared, StorageError>> {
        let mut answers = Vec::new();
        for (file, entry) in files {
            let answer = self.call(format!("prepare {}", name(&entry))).await;
            answers.push(answer.map(|()| self.prepared(file.data().to_vec())));
        }
        answers
    }

    async fn sync_prepared(&self) -> Result<(), StorageError> {
        self.call("sync prepared".to_owned()).await
    }

    fn max_prepared(&self) -> usize {
        self.orders.max_prepared
    }

    async fn commit_files(
        &self,
        files: Vec<(TestPrepared, Arc<Entry>)>,
    ) -> Vec<Result<(), StorageError>> {
        self.note(format!("group {}", files.len()));
        let mut answers = Vec::new();
        for (file, entry) in files {
            let answer = self.call(format!("commit {}", name(&entry))).await;
            answers.push(answer.map(|()| self.put(&entry, file.data.clone())));
        }
        answers
    }

    async fn sync_name(&self, entry: Arc<Entry>) -> Result<(), StorageError> {
        self.call(format!("sync name {}", name(&entry))).await
    }

    fn can_copy(&self) -> bool {
        !self.orders.source.is_empty()
    }

    async fn copy_files(
        &self,
        entries: Vec<Arc<Entry>>,
    ) -> Vec<Result<TestPrepared, StorageError>> {
        self.note(format!("copies {}", entries.len()));
        let mut answers = Vec::new();
        for entry in entries {
            let data = self.orders.source.get(&*name(&entry)).ok_or_else(|| changed(&entry));
            let answer = self.call(format!("copy {}", name(&entry))).await;
            answers.push(answer.and_then(|()| Ok(self.prepared(data?.clone()))));
        }
        answers
    }

    async fn copy_range(&self, file: TestFile, range: ByteRange) -> Result<bool, StorageError> {
        self.call(format!("range {} {}", file.name, range.offset())).await?;
        let source = self.orders.source.get(&*file.name);
        let source = source.ok_or_else(|| StorageError::Changed { path: b"source".to_vec() })?;
        let mut data = lock(&file.data);
        if self.orders.copies_whole {
            data.clone_from(source);
            return Ok(true);
        }
        let start = usize::try_from(range.offset()).unwrap();
        let end = start + range.len() as usize;
        data[start..end].copy_from_slice(&source[start..end]);
        Ok(false)
    }

    async fn confirm_copy(&self, file: TestFile) -> Result<(), StorageError> {
        self.call(format!("confirm {}", file.name)).await
    }

    async fn delete(
        &self,
        mut complete: Vec<EntryId>,
        names: NameSet,
        deleted: flume::Sender<Deleted>,
    ) -> Result<Deletions, StorageError> {
        complete.sort();
        let ids: Vec<u64> = complete.iter().map(|id| id.0).collect();
        let has = |name: &[u8]| names.contains(EntryId::ROOT, name);
        let known = [has(b"dir"), has(b"bad"), has(b"gone"), has(b"other")];
        for one in &self.orders.deleted {
            let _ = deleted.send_async(one.clone()).await;
        }
        self.call(format!("delete {ids:?} {known:?}")).await?;
        let done = self.orders.deleted.len() as u64;
        Ok(Deletions { done, over_limit: 2 })
    }

    async fn sync_files(&self, files: Vec<TestFile>) -> Result<(), StorageError> {
        for file in files {
            self.call(format!("sync {}", file.name)).await?;
        }
        Ok(())
    }

    async fn finish(&self) {
        self.note("finish".to_owned());
    }

    async fn sync_all(&self) -> Result<(), StorageError> {
        self.call("sync all".to_owned()).await
    }

    fn path(&self, entry: &Entry) -> Vec<u8> {
        entry.name.as_bytes().to_vec()
    }
}

/// A receiver into such a sink, that runs as it should; all that it hears is made by hand.
pub struct Hand {
    pub half: Half,
    pub channel: MemorySender,
    pub sink: TestSink,
    pub observer: Observer,
    /// What was heard and not asked for yet.
    heard: VecDeque<(EntryId, Answer)>,
    receiver: JoinHandle<Result<ReceiverEnd, SessionError>>,
    _arrive: flume::Sender<Result<(ChannelSlot, MemoryReceiver), SessionError>>,
}

impl Hand {
    pub async fn new(orders: Orders) -> Self {
        Self::with_options(orders, options()).await
    }

    pub async fn with_options(orders: Orders, options: Options) -> Self {
        Self::with_journal(orders, options, None, HashMap::new()).await
    }

    pub async fn with_journal(
        orders: Orders,
        options: Options,
        journal: Option<Journal>,
        begun: HashMap<Vec<u8>, Begun>,
    ) -> Self {
        let (near, far) = tokio::io::duplex(64 << 10);
        let mut half = Half::new(near, End::Client(Role::Sender));
        let mut agent = Half::new(far, End::Agent);
        greet(&mut half, &mut agent, &options).await;
        let sink = TestSink::new(orders);
        let observer = Observer::new(Arc::default(), None);
        let (arrive, arriving) = flume::unbounded();
        let (of_receiver, notes) = (sink.clone(), observer.clone());
        let receiver = tokio::spawn(agent.run(async move |inbox, outbox| {
            let channels: Channels<MemoryReceiver> = Channels::new(arriving, None);
            let destination = Destination { sink: of_receiver, journal, begun, stale: Vec::new() };
            super::run(destination, inbox, outbox, channels, options, notes).await
        }));
        let (channel, far) = memory::pair(64);
        arrive.send(Ok((ChannelSlot { channel: 0, generation: 1 }, far))).unwrap();
        Self { half, channel, sink, observer, heard: VecDeque::new(), receiver, _arrive: arrive }
    }

    pub fn announce(&self, entries: &[Entry]) {
        self.half.say(&Message::Entries(entries.to_vec()));
    }

    pub async fn send(&mut self, frame: Frame) {
        self.channel.send(&frame).await.unwrap();
    }

    /// The next verdicts and outcomes; other words are passed over.
    pub async fn answers(&mut self, count: usize) -> Vec<(EntryId, Answer)> {
        while self.heard.len() < count {
            match self.half.next().await {
                Message::Verdicts(more) => {
                    self.heard.extend(more.into_iter().map(|(id, verdict)| match verdict {
                        Verdict::Ended(outcome) => (id, Answer::End(outcome)),
                        verdict => (id, Answer::Verdict(verdict)),
                    }));
                }
                Message::Outcomes(more) => {
                    let ends = more.into_iter().map(|(id, end)| (id, Answer::End(end)));
                    self.heard.extend(ends);
                }
                Message::Written(_) | Message::Complaint(_) | Message::Have { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        self.heard.drain(..count).collect()
    }

    pub async fn answer(&mut self) -> (u64, Answer) {
        let (id, answer) = self.answers(1).await.remove(0);
        (id.0, answer)
    }

    /// The next of those that is the end of something.
    pub async fn end(&mut self) -> (u64, Outcome) {
        loop {
            if let (id, Answer::End(outcome)) = self.answer().await {
                return (id, outcome);
            }
        }
    }

    /// Waits until the sink's log has this so many times.
    pub async fn until(&self, call: &str, count: usize) {
        let waiting = async {
            while self.sink.count(call) < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("never: {call}; {:?}", self.sink.log()));
    }

    /// Says goodbye with these totals, and returns what the receiver thinks of it.
    pub async fn finish(mut self, totals: Summary) -> Result<ReceiverEnd, FailureCode> {
        self.half.say(&Message::SourceDone(totals));
        loop {
            match self.half.next().await {
                Message::ReceiverDone { .. } => break,
                Message::Abort(failure) => return Err(failure.code),
                _ => {}
            }
        }
        self.half.say(&Message::Finish { agreed: true });
        self.over().await
    }

    pub async fn over(self) -> Result<ReceiverEnd, FailureCode> {
        let ended = tokio::time::timeout(PATIENCE, self.receiver).await;
        let ended = ended.expect("the receiver hangs").expect("the receiver panicked");
        ended.map_err(|error| {
            let Some(failure) = error.to_tell() else { return FailureCode::Disconnected };
            assert!(!failure.text().contains("internal error"), "{failure}");
            failure.code
        })
    }

    pub async fn ends_as_violation(self, case: &str) {
        assert_eq!(self.over().await.err(), Some(FailureCode::Violation), "{case}");
    }
}

/// What the receiver says about an entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    Verdict(Verdict),
    End(Outcome),
}

impl Answer {
    #[track_caller]
    pub fn failure(&self) -> &Failure {
        match self {
            Self::End(Outcome::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }
}
