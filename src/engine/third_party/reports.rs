//! What the agent at the source tells the client of its session: events and counters become messages
//! on a stream of their own, and those become events and counters again.
//!
//! The client may be slow, and a session has as many events as entries. So when much waits to be
//! taken, the other agent is not read ([`Paced`]): then no entry ends, the sender's window fills,
//! and its walk waits. Nothing else waits for the client (THIRD-5).

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use crate::engine::control::{ControlError, Inbox, Pulse};
use crate::engine::event::{Connection, EntryKind, EntryReport, Event, Progress};
use crate::engine::session::{Observer, SessionError};
use crate::protocol::message::{Deleted, MAX_TOLD_PATH_LEN, Message, Metadata, Outcome, Text};
use crate::protocol::third_party::{Carried, Connected, Counters, Ended, EndedKind, Told};

/// Whether so much waits for the client that nothing more is to happen.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    is_closed: bool,
    reader: Option<Waker>,
}

impl Gate {
    fn set_closed(&self, is_closed: bool) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.is_closed = is_closed;
        if !is_closed {
            waiting.reader.take().into_iter().for_each(Waker::wake);
        }
    }

    fn is_closed(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_closed
    }

    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.is_closed {
            return Poll::Ready(());
        }
        waiting.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A stream that is read while its gate is open.
#[derive(Debug)]
pub struct Paced<R> {
    reader: R,
    gate: Gate,
}

impl<R> Paced<R> {
    pub fn new(reader: R, gate: Gate) -> Self {
        Self { reader, gate }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Paced<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.gate.poll_open(cx) {
            Poll::Ready(()) => Pin::new(&mut self.reader).poll_read(cx, buf),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Tells the client what happens, until the session has ended and all is told.
///
/// # Errors
///
/// If the client takes no more.
pub async fn tell(
    happened: flume::Receiver<Event>,
    progress: &Progress,
    mut stream: impl AsyncWrite + Unpin,
    gate: &Gate,
    pulse: &Pulse,
    mut ended: oneshot::Receiver<()>,
) -> Result<(), SessionError> {
    let mut queue = Queue::default();
    let mut last = Counters::default();
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_ended = false;
    loop {
        queue.encode()?;
        gate.set_closed(queue.len() > MAX_WAITING);
        if has_ended && queue.len() == 0 {
            break;
        }
        tokio::select! {
            written = stream.write(queue.bytes()), if !queue.bytes().is_empty() => {
                queue.start += written.map_err(ControlError::Read)?;
            }
            Ok(event) = happened.recv_async() => queue.add(event),
            _ = &mut ended, if !has_ended => {
                has_ended = true;
                happened.try_iter().for_each(|event| queue.add(event));
                queue.push(Told::Progress(Box::new(counters(progress))));
            }
            _ = tick.tick() => {
                if gate.is_closed() {
                    // It is this end that does not listen.
                    pulse.beat();
                }
                let now = counters(progress);
                if now != last && queue.bytes().is_empty() {
                    last = now;
                    queue.push(Told::Progress(Box::new(now)));
                }
            }
        }
    }
    stream.shutdown().await.map_err(ControlError::Read)?;
    Ok(())
}

/// What waits to be told: first `encoded[start..]`, then what is not encoded yet.
#[derive(Debug, Default)]
struct Queue {
    encoded: Vec<u8>,
    start: usize,
    next: Vec<Told>,
    /// About how long that will be, in bytes.
    next_len: usize,
}

impl Queue {
    fn bytes(&self) -> &[u8] {
        self.encoded.get(self.start..).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.bytes().len() + self.next_len
    }

    fn add(&mut self, event: Event) {
        self.next.extend(told(event).inspect(|it| self.next_len += len(it)));
    }

    fn push(&mut self, told: Told) {
        self.next_len += len(&told);
        self.next.push(told);
    }

    /// Makes a message of what has gathered: at once if nothing waits before it, or when it is long.
    fn encode(&mut self) -> Result<(), SessionError> {
        let is_due = self.bytes().is_empty() || self.next_len > MAX_BATCH;
        if self.next.is_empty() || !is_due {
            return Ok(());
        }
        self.encoded.drain(..self.start);
        self.start = 0;
        let message = Message::Told(std::mem::take(&mut self.next));
        self.encoded.extend(message.encode().map_err(SessionError::bug)?);
        self.next_len = 0;
        Ok(())
    }
}

fn len(told: &Told) -> usize {
    let more = match told {
        Told::Ended(ended) => {
            let text = match &ended.outcome {
                Outcome::Failed(failure) => failure.text().len(),
                Outcome::Done(_) | Outcome::Skipped | Outcome::Left | Outcome::Would(_) => 0,
            };
            ended.path.len() + ended.target.as_ref().map_or(0, Vec::len) + text
        }
        Told::Deleted(deleted) => deleted.path.len(),
        Told::Complaint(complaint) => complaint.path().len() + complaint.failure.text().len(),
        Told::Connected(connected) => {
            connected.peer.as_str().len() + connected.reason.as_str().len()
        }
        Told::ChannelLost { cause: text, .. } | Told::Mismatch(text) | Told::Note(text) => {
            text.as_str().len()
        }
        Told::Progress(_) => 0,
    };
    more + 128
}

/// What the client is told of an event.
fn told(event: Event) -> Option<Told> {
    Some(match event {
        Event::Connected(connection) => Told::Connected(Box::new(Connected {
            carried: match connection.transport {
                "quic" => Carried::Quic,
                "ssh" => Carried::Tunnel,
                _ => Carried::Tcp,
            },
            encrypted: connection.encrypted,
            is_reversed: connection.dialler == "agent",
            streams: connection.streams,
            peer: Text::new(connection.peer),
            reason: Text::new(connection.reason),
        })),
        Event::Ended(report) => Told::Ended(Box::new(ended(report))),
        Event::Deleted { path, is_directory } => {
            Told::Deleted(Deleted { path: cut(path), is_directory })
        }
        Event::Complaint(complaint) => Told::Complaint(Box::new(complaint)),
        Event::ChannelLost { channel, cause } => {
            Told::ChannelLost { channel, cause: Text::new(cause) }
        }
        Event::Mismatch { what } => Told::Mismatch(Text::new(what)),
        Event::Note(text) => Told::Note(Text::new(text)),
        // Of logins and measurements, which are the client's own.
        Event::Installed(_) | Event::Retrying { .. } | Event::Found(_) | Event::Leftover(_) => {
            return None;
        }
    })
}

fn ended(report: EntryReport) -> Ended {
    let EntryReport { path, kind, size, metadata, target, is_linked, root, outcome } = report;
    Ended {
        path: cut(path),
        kind: match kind {
            EntryKind::Directory => EndedKind::Directory,
            EntryKind::File => EndedKind::File,
            EntryKind::Symlink => EndedKind::Symlink,
            EntryKind::Special(special) => EndedKind::Special(special),
            EntryKind::HardLink => EndedKind::HardLink,
            EntryKind::Other => EndedKind::Other,
        },
        size,
        metadata: Metadata { attributes: Vec::new(), ..metadata },
        target: target.map(cut),
        is_linked,
        root,
        outcome,
    }
}

fn cut(mut path: Vec<u8>) -> Vec<u8> {
    path.truncate(MAX_TOLD_PATH_LEN);
    path
}

fn counters(progress: &Progress) -> Counters {
    Counters {
        files_found: progress.files_found.get(),
        bytes_found: progress.bytes_found.get(),
        walk_done: progress.walk_done.load(Ordering::Relaxed),
        files_ended: progress.files_ended.get(),
        bytes_verified: progress.bytes_verified.get(),
        bytes_skipped: progress.bytes_skipped.get(),
        bytes_resumed: progress.bytes_resumed.get(),
        bytes_hashed: progress.bytes_hashed.get(),
        bytes_sent: progress.bytes_sent.get(),
        streams: progress.streams.get(),
        most_streams: progress.most_streams.get(),
    }
}

/// Hears what an agent tells, to the end of the stream.
///
/// # Errors
///
/// If it is not what a correct agent says, or the agent has fallen silent.
pub async fn hear<R: AsyncRead + Unpin>(
    mut inbox: Inbox<R>,
    observer: &Observer,
) -> Result<(), SessionError> {
    loop {
        let all = match inbox.next().await {
            Ok(Message::Told(all)) => all,
            Ok(other) => {
                return Err(SessionError::violation(format!("{} was told", other.label())));
            }
            Err(ControlError::Ended) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for (number, told) in all.into_iter().enumerate() {
            // Telling may wait for the screen, and must not keep a thread.
            if number % EVENTS_AT_ONCE == 0 {
                observer.room().await;
            }
            take(told, observer)?;
        }
    }
}

fn take(told: Told, observer: &Observer) -> Result<(), SessionError> {
    match told {
        Told::Connected(connected) => observer.connected(connection(*connected)),
        Told::Ended(ended) => {
            ended.check().map_err(SessionError::violation)?;
            let report = report(*ended);
            // The destination's own directory is no entry, and is not counted.
            if report.path == EntryReport::ROOT {
                observer.tell(Event::Ended(report));
            } else {
                observer.ended_elsewhere(report);
            }
        }
        Told::Deleted(Deleted { path, is_directory }) => {
            observer.tell(Event::Deleted { path, is_directory });
        }
        Told::Complaint(complaint) => observer.complain(*complaint),
        Told::ChannelLost { channel, cause } => {
            observer.tell(Event::ChannelLost { channel, cause: cause.into_string() });
        }
        Told::Mismatch(what) => observer.tell(Event::Mismatch { what: what.into_string() }),
        Told::Note(text) => observer.tell(Event::Note(text.into_string())),
        Told::Progress(counters) => count(&counters, &observer.progress),
    }
    Ok(())
}

fn connection(connected: Connected) -> Connection {
    let Connected { carried, encrypted, is_reversed, streams, peer, reason } = connected;
    Connection {
        transport: match (carried, encrypted) {
            (Carried::Tcp, true) => "tcp+tls",
            (Carried::Tcp, false) => "tcp",
            (Carried::Quic, _) => "quic",
            (Carried::Tunnel, _) => "ssh",
        },
        streams,
        peer: peer.into_string(),
        encrypted,
        dialler: if is_reversed { "destination" } else { "source" },
        reason: reason.into_string(),
    }
}

fn report(ended: Ended) -> EntryReport {
    let Ended { path, kind, size, metadata, target, is_linked, root, outcome } = ended;
    EntryReport {
        path,
        kind: match kind {
            EndedKind::Directory => EntryKind::Directory,
            EndedKind::File => EntryKind::File,
            EndedKind::Symlink => EntryKind::Symlink,
            EndedKind::Special(special) => EntryKind::Special(special),
            EndedKind::HardLink => EntryKind::HardLink,
            EndedKind::Other => EntryKind::Other,
        },
        size,
        metadata,
        target,
        is_linked,
        root,
        outcome,
    }
}

fn count(counters: &Counters, progress: &Progress) {
    progress.files_found.set(counters.files_found);
    progress.bytes_found.set(counters.bytes_found);
    progress.walk_done.store(counters.walk_done, Ordering::Relaxed);
    progress.files_ended.set(counters.files_ended);
    progress.bytes_verified.set(counters.bytes_verified);
    progress.bytes_skipped.set(counters.bytes_skipped);
    progress.bytes_resumed.set(counters.bytes_resumed);
    progress.bytes_hashed.set(counters.bytes_hashed);
    progress.bytes_sent.set(counters.bytes_sent);
    progress.streams.set(counters.streams);
    progress.most_streams.set(counters.most_streams);
}

/// How often the client is told how far all has come.
const INTERVAL: Duration = Duration::from_millis(200);

/// How much may wait for the client before the other agent is not read any more, in bytes.
const MAX_WAITING: usize = 4 << 20;

/// How much one message tells, in bytes, unless nothing waits before it.
const MAX_BATCH: usize = 64 << 10;

/// How many events are handed on before it is asked whether there is room for more.
const EVENTS_AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;
    use crate::protocol::chunk::Digest;
    use crate::protocol::manifest::Timestamp;
    use crate::protocol::message::{
        Attribute, Changes, Complaint, Failure, FailureCode, Mode, Outcome, Special,
    };

    fn report(path: &[u8], kind: EntryKind, outcome: Outcome) -> EntryReport {
        let attributes = vec![Attribute { name: b"user.a".to_vec(), value: vec![7; 1000] }];
        let mtime = Timestamp::new(5, 6).unwrap();
        EntryReport {
            path: path.to_vec(),
            kind,
            size: 1000,
            metadata: Metadata {
                mode: Mode::from_raw(0o640),
                mtime,
                owner: 1,
                group: 2,
                attributes,
            },
            target: (kind == EntryKind::Symlink).then(|| b"../x".to_vec()),
            is_linked: kind == EntryKind::File,
            root: Some(Digest([3; 32])),
            outcome,
        }
    }

    fn events() -> Vec<Event> {
        let failure = |code| Failure::new(code, "it broke");
        let device = EntryKind::Special(Special::BlockDevice { major: 8, minor: 1 });
        vec![
            Event::Connected(Connection {
                transport: "quic",
                streams: 3,
                peer: "192.0.2.1:5000".to_owned(),
                encrypted: true,
                dialler: "agent",
                reason: "no answer".to_owned(),
            }),
            Event::Ended(report(b".", EntryKind::Directory, Outcome::Done(Changes::TIME))),
            Event::Ended(report(
                b"a",
                EntryKind::File,
                Outcome::Done(Changes::CREATED_WITH_CONTENT),
            )),
            Event::Ended(report(b"b", EntryKind::Symlink, Outcome::Skipped)),
            Event::Ended(report(b"c", device, Outcome::Would(Changes::CREATED))),
            Event::Ended(report(b"d", EntryKind::HardLink, Outcome::Left)),
            Event::Ended(report(
                b"e",
                EntryKind::Other,
                Outcome::Failed(failure(FailureCode::Changed)),
            )),
            Event::Deleted { path: b"f".to_vec(), is_directory: true },
            Event::Complaint(Complaint::new(b"g".to_vec(), failure(FailureCode::Permission))),
            Event::ChannelLost { channel: 2, cause: "reset".to_owned() },
            Event::Mismatch { what: "chunk".to_owned() },
            Event::Note("note\u{1b}".to_owned()),
        ]
    }

    fn inbox<R: AsyncRead + Unpin>(reader: R) -> Inbox<R> {
        Inbox::of_reports(reader, Duration::from_secs(30), Pulse::new())
    }

    /// THIRD-4: the client shows what the sender's end would have shown, and counts as it.
    #[tokio::test]
    async fn what_is_told_is_what_happened() {
        let (near, far) = duplex(100);
        let (sender, happened) = flume::unbounded();
        let progress = Progress::default();
        progress.bytes_verified.add(1000);
        progress.walk_done.store(true, Ordering::Relaxed);
        for event in events() {
            sender.send(event).unwrap();
        }
        let (end, ended) = oneshot::channel();
        end.send(()).unwrap();
        let (gate, pulse) = (Gate::default(), Pulse::new());
        let telling = tell(happened, &progress, near, &gate, &pulse, ended);
        let (tells, shown) = flume::unbounded();
        let observer = Observer::new(Arc::default(), Some(tells));
        let (told, heard) = tokio::join!(telling, hear(inbox(far), &observer));
        told.unwrap();
        heard.unwrap();
        let mut wanted = events();
        for event in &mut wanted {
            match event {
                Event::Connected(connection) => connection.dialler = "destination",
                Event::Ended(report) => report.metadata.attributes.clear(),
                Event::Note(text) => *text = "note\\u{1b}".to_owned(),
                _ => {}
            }
        }
        let shown: Vec<Event> = shown.try_iter().collect();
        assert_eq!(format!("{shown:#?}"), format!("{wanted:#?}"));
        let tally = observer.tally();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((count(&tally.done), count(&tally.bytes_done)), (1, 1000), "and not the root");
        assert_eq!((count(&tally.would), count(&tally.failed_changed)), (1, 1));
        assert_eq!(count(&tally.complaints), 1);
        assert_eq!(observer.progress.bytes_verified.get(), 1000);
        assert!(observer.progress.walk_done.load(Ordering::Relaxed));
        assert_eq!(observer.connection().unwrap().transport, "quic");
    }

    /// THIRD-5: a client that takes nothing stops what happens, and nothing else; what waits is
    /// bounded, and the other agent is not taken for silent.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_waited_for() {
        let (near, mut far) = duplex(100);
        let (sender, happened) = flume::unbounded();
        let (_end, ended) = oneshot::channel();
        let (progress, gate, pulse) = (Progress::default(), Gate::default(), Pulse::new());
        let mut telling = Box::pin(tell(happened, &progress, near, &gate, &pulse, ended));
        let mut paced = Paced::new(&b"from the other agent"[..], gate.clone());
        let mut byte = [0];
        let soon = Duration::from_secs(1);
        let event = || Event::Deleted { path: vec![b'x'; 1000], is_directory: false };
        let mut sent = 0;
        while !gate.is_closed() {
            sender.send(event()).unwrap();
            sent += 1;
            let _ = tokio::time::timeout(Duration::from_micros(1), &mut telling).await;
            assert!(sent < 10_000, "it never closes");
        }
        assert!(sent > MAX_WAITING / 2000, "it closed at {sent}");
        assert!(tokio::time::timeout(soon, paced.read(&mut byte)).await.is_err());
        std::thread::sleep(Duration::from_millis(20));
        let _ = tokio::time::timeout(soon, &mut telling).await;
        assert!(pulse.silence() < Duration::from_millis(20));
        let mut taken = vec![0; 1 << 20];
        let reading = async {
            while gate.is_closed() {
                far.read_exact(&mut taken).await.unwrap();
            }
        };
        tokio::select! {
            () = reading => {}
            ended = &mut telling => panic!("{ended:?}"),
        }
        assert_eq!(paced.read(&mut byte).await.unwrap(), 1);
        drop(far);
        assert!(telling.await.is_err(), "nobody is told any more");
    }

    /// THIRD-4: whatever else is said on that stream ends the session.
    #[tokio::test]
    async fn nothing_else_is_heard() {
        let observer = Observer::new(Arc::default(), None);
        let ended = ended(report(b"", EntryKind::File, Outcome::Skipped));
        let long = Ended { path: vec![b'x'; MAX_TOLD_PATH_LEN + 1], ..ended.clone() };
        let zero = Ended { path: b"a\0b".to_vec(), ..ended.clone() };
        for message in [
            Message::Ping,
            Message::Closed,
            Message::Told(vec![Told::Ended(Box::new(ended))]),
            Message::Told(vec![Told::Ended(Box::new(long))]),
            Message::Told(vec![Told::Ended(Box::new(zero))]),
        ] {
            let bytes = message.encode().unwrap();
            let heard = hear(inbox(&bytes[..]), &observer).await;
            let told = heard.unwrap_err().to_tell().unwrap();
            assert_eq!(told.code, FailureCode::Violation, "{message:?}");
        }
        assert!(hear(inbox(&[][..]), &observer).await.is_ok());
    }

    /// THIRD-5: what the other agent says goes wrong is as long as it likes, and counts.
    #[test]
    fn long_texts_are_counted() {
        let failure = || Failure::new(FailureCode::Io, "x".repeat(2000));
        let events = [
            Event::Complaint(Complaint::new(b"a".to_vec(), failure())),
            Event::Ended(report(b"a", EntryKind::Other, Outcome::Failed(failure()))),
            Event::Note("x".repeat(2000)),
        ];
        for event in events {
            let mut queue = Queue::default();
            for _ in 0..1000 {
                queue.add(event.clone());
                queue.encode().unwrap();
            }
            assert!(queue.len() > 2_000_000, "{event:?}: {}", queue.len());
        }
    }

    /// THIRD-4: however long the names are, each message is within its limit.
    #[test]
    fn long_paths_are_cut_and_messages_are_split() {
        let mut queue = Queue::default();
        for _ in 0..40 {
            let mut report = report(&vec![b'x'; 100_000], EntryKind::Symlink, Outcome::Skipped);
            report.target = Some(vec![b'y'; 100_000]);
            queue.add(Event::Ended(report));
            queue.encode().unwrap();
        }
        while queue.len() > 0 {
            let (len, rest) = queue.bytes().split_first_chunk::<4>().unwrap();
            let len = u32::from_le_bytes(*len) as usize;
            let Message::Told(all) = Message::decode(&rest[..len]).unwrap() else { panic!() };
            for told in all {
                let Told::Ended(ended) = told else { panic!() };
                ended.check().unwrap();
            }
            queue.start += 4 + len;
            queue.encode().unwrap();
        }
    }
}
