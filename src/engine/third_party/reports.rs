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
use crate::protocol::message::{Deleted, MAX_TOLD_PATH_LEN, Message, Metadata, Text};
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
        Told::Ended(ended) => ended.path.len() + ended.target.as_ref().map_or(0, Vec::len),
        Told::Deleted(deleted) => deleted.path.len(),
        Told::Complaint(complaint) => complaint.path().len(),
        Told::Connected(_)
        | Told::ChannelLost { .. }
        | Told::Mismatch(_)
        | Told::Note(_)
        | Told::Progress(_) => 0,
    };
    more + 64
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
        Event::Installed(_) | Event::Retrying { .. } | Event::Found(_) => return None,
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
}

/// How often the client is told how far all has come.
const INTERVAL: Duration = Duration::from_millis(200);

/// How much may wait for the client before the other agent is not read any more, in bytes.
const MAX_WAITING: usize = 4 << 20;

/// How much one message tells, in bytes, unless nothing waits before it.
const MAX_BATCH: usize = 64 << 10;

/// How many events are handed on before it is asked whether there is room for more.
const EVENTS_AT_ONCE: usize = 256;
