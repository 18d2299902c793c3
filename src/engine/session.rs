//! What both ends of a session share: the channels that arrive, what is observed, how it fails.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinError;

use super::control::{ControlError, SayError};
use super::event::{Connection, EntryReport, Event, Progress};
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::message::{
    Changes, Complaint, Entry, Failure, FailureCode, Kind, Outcome, Summary,
};
use crate::storage::StorageError;
use crate::transport::TransportError;

/// The data channels of a session as they come up, whoever dials them.
#[derive(Debug)]
pub struct Channels<C> {
    arriving: flume::Receiver<Result<(ChannelSlot, C), SessionError>>,
    /// Told of channels that are gone, so that they can be dialled anew.
    gone: Option<flume::Sender<ChannelSlot>>,
    closed: bool,
}

impl<C> Channels<C> {
    pub fn new(
        arriving: flume::Receiver<Result<(ChannelSlot, C), SessionError>>,
        gone: Option<flume::Sender<ChannelSlot>>,
    ) -> Self {
        Self { arriving, gone, closed: false }
    }

    /// The next channel that is up; `None` if there will be no more.
    pub async fn next(&mut self) -> Option<Result<(ChannelSlot, C), SessionError>> {
        self.arriving.recv_async().await.ok()
    }

    /// No channel is needed any more: those that end are not replaced.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// A channel's task has ended. Only a broken rule, or a failure of this end, ends the session.
    pub fn ended(&self, end: ChannelEnd, observer: &Observer) -> Result<(), SessionError> {
        match end.how {
            HowEnded::Failed(error) => return Err(error),
            HowEnded::Lost(error) if error.is_violation() => {
                return Err(SessionError::violation(error.to_string()));
            }
            HowEnded::Lost(error) if !self.closed => {
                let channel = end.slot.channel;
                observer.tell(Event::ChannelLost { channel, cause: error.to_string() });
            }
            HowEnded::Lost(_) | HowEnded::Finished => {}
        }
        if let Some(gone) = self.gone.as_ref().filter(|_| !self.closed) {
            let _ = gone.send(end.slot);
        }
        Ok(())
    }
}

/// The newest connection of each channel: an older one gives way to it (SEC-5).
#[derive(Debug, Default)]
pub struct Newest(HashMap<u16, oneshot::Sender<()>>);

impl Newest {
    /// Notes a connection, and ends the one before it.
    pub fn replace(&mut self, slot: ChannelSlot) -> Replaced {
        let (newest, replaced) = oneshot::channel();
        self.0.insert(slot.channel, newest);
        Replaced(replaced)
    }
}

/// Tells a connection that there is a newer one of its channel.
#[derive(Debug)]
pub struct Replaced(oneshot::Receiver<()>);

impl Replaced {
    pub async fn wait(self) {
        let _ = self.0.await;
    }
}

/// How the task of one channel ended.
#[derive(Debug)]
pub struct ChannelEnd {
    slot: ChannelSlot,
    how: HowEnded,
}

#[derive(Debug)]
enum HowEnded {
    Finished,
    Lost(TransportError),
    Failed(SessionError),
}

impl ChannelEnd {
    /// The sender had nothing more for it.
    pub fn finished(slot: ChannelSlot) -> Self {
        Self { slot, how: HowEnded::Finished }
    }

    /// The channel broke; the session goes on.
    pub fn lost(slot: ChannelSlot, error: TransportError) -> Self {
        Self { slot, how: HowEnded::Lost(error) }
    }

    /// Something happened on it that ends the session.
    pub fn failed(slot: ChannelSlot, error: SessionError) -> Self {
        Self { slot, how: HowEnded::Failed(error) }
    }
}

/// Where an end notes what happens: for the user at the client, for nobody at the agent.
#[derive(Clone, Debug)]
pub struct Observer {
    pub progress: Arc<Progress>,
    events: Option<flume::Sender<Event>>,
    tally: Arc<Tally>,
    stop: Option<watch::Receiver<bool>>,
    connection: Arc<Mutex<Option<Connection>>>,
    /// What carries the data is not one for each channel.
    has_own_streams: bool,
}

/// What the final report needs and totals do not have.
#[derive(Debug, Default)]
pub struct Tally {
    pub done: AtomicU64,
    pub bytes_done: AtomicU64,
    pub would: AtomicU64,
    pub created: AtomicU64,
    pub attributes_only: AtomicU64,
    pub linked: AtomicU64,
    pub failed_changed: AtomicU64,
    pub failed_verification: AtomicU64,
    pub complaints: AtomicU64,
}

impl Observer {
    pub fn new(progress: Arc<Progress>, events: Option<flume::Sender<Event>>) -> Self {
        let (tally, connection) = (Arc::default(), Arc::default());
        Self { progress, events, tally, stop: None, connection, has_own_streams: false }
    }

    /// The same where so many connections or requests carry the data, however many channels there are.
    #[must_use]
    pub fn with_streams(self, streams: u16) -> Self {
        self.progress.streams.set(streams.into());
        Self { has_own_streams: true, ..self }
    }

    /// The same, and it hears when the user asks to stop.
    #[must_use]
    pub fn stoppable(self, stop: watch::Receiver<bool>) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// Waits until the user asks to stop.
    pub async fn asked_to_stop(&self) {
        if let Some(mut stop) = self.stop.clone()
            && stop.wait_for(|stop| *stop).await.is_ok()
        {
            return;
        }
        // Nobody is there who could say so.
        std::future::pending::<()>().await;
    }

    /// Another session of the same run begins: what failed in the last one may succeed now.
    pub fn begin_session(&self) {
        self.progress.reset();
        for counter in
            [&self.tally.failed_changed, &self.tally.failed_verification, &self.tally.complaints]
        {
            counter.store(0, Ordering::Relaxed);
        }
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    pub fn tell(&self, event: Event) {
        if let Some(events) = &self.events {
            let _ = events.send(event);
        }
    }

    /// A way for data has been found.
    pub fn connected(&self, connection: Connection) {
        let mut last = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(connection.clone());
        drop(last);
        self.tell(Event::Connected(connection));
    }

    /// The last way that was found.
    pub fn connection(&self) -> Option<Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn found(&self, entry: &Entry) {
        if matches!(entry.kind, Kind::File(_)) {
            self.progress.files_found.add(1);
            self.progress.bytes_found.add(entry.size());
        }
    }

    pub fn resumed(&self, bytes: u64) {
        self.progress.bytes_resumed.add(bytes);
    }

    /// An entry has ended. `is_packed`: its bytes were not counted chunk by chunk.
    pub fn ended(&self, report: EntryReport, is_packed: bool) {
        if report.kind == super::event::EntryKind::File {
            self.progress.files_ended.add(1);
        }
        match &report.outcome {
            Outcome::Done(changes) if changes.has(Changes::CONTENT) => {
                if is_packed {
                    self.progress.bytes_verified.add(report.size);
                }
            }
            Outcome::Done(_) | Outcome::Skipped | Outcome::Left | Outcome::Would(_) => {
                self.progress.bytes_skipped.add(report.size);
            }
            Outcome::Failed(_) => {}
        }
        self.ended_elsewhere(report);
    }

    /// The same where another end has moved the counters of progress.
    pub fn ended_elsewhere(&self, report: EntryReport) {
        let tally = &self.tally;
        let count = |counter: &AtomicU64, applies: bool| {
            counter.fetch_add(applies.into(), Ordering::Relaxed);
        };
        match &report.outcome {
            Outcome::Done(changes) => {
                count(&tally.done, true);
                count(&tally.created, changes.has(Changes::CREATED));
                count(&tally.linked, changes.has(Changes::LINKED));
                let is_new = Changes::CREATED.with(Changes::CONTENT).with(Changes::LINKED);
                count(&tally.attributes_only, !changes.has(is_new));
                if changes.has(Changes::CONTENT) {
                    tally.bytes_done.fetch_add(report.size, Ordering::Relaxed);
                }
            }
            Outcome::Skipped | Outcome::Left => {}
            Outcome::Would(_) => count(&tally.would, true),
            Outcome::Failed(failure) => match failure.code {
                FailureCode::Changed | FailureCode::Vanished => {
                    count(&tally.failed_changed, true);
                }
                FailureCode::Verification => count(&tally.failed_verification, true),
                _ => {}
            },
        }
        self.tell(Event::Ended(report));
    }

    /// Waits until there is room for some hundred events, so that telling them does not wait.
    pub async fn room(&self) {
        let is_full = |events: &flume::Sender<Event>| {
            let is_half_full = events.capacity().is_some_and(|room| events.len() > room / 2);
            is_half_full && !events.is_disconnected()
        };
        while self.events.as_ref().is_some_and(is_full) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub fn complain(&self, complaint: Complaint) {
        self.tally.complaints.fetch_add(1, Ordering::Relaxed);
        self.tell(Event::Complaint(complaint));
    }

    pub fn stream_up(&self) {
        if self.has_own_streams {
            return;
        }
        self.progress.streams.add(1);
        self.progress.most_streams.raise(self.progress.streams.get());
    }

    pub fn stream_down(&self) {
        if !self.has_own_streams {
            self.progress.streams.subtract(1);
        }
    }
}

/// Why a session ended before its end.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The control channel broke, or the peer broke a rule, or gave up.
    #[error(transparent)]
    Control(#[from] Arc<ControlError>),
    /// This end gives up, and tells the peer why.
    #[error("{0}")]
    Local(Failure),
    /// The same, as who we are at an endpoint is not believed any more.
    #[error("{0}")]
    Mistrusted(Failure),
}

impl Clone for SessionError {
    fn clone(&self) -> Self {
        match self {
            Self::Control(error) => Self::Control(Arc::clone(error)),
            Self::Local(failure) => Self::Local(failure.clone()),
            Self::Mistrusted(failure) => Self::Mistrusted(failure.clone()),
        }
    }
}

impl From<ControlError> for SessionError {
    fn from(error: ControlError) -> Self {
        Self::Control(Arc::new(error))
    }
}

impl From<SayError> for SessionError {
    fn from(error: SayError) -> Self {
        match error {
            SayError::Message(error) => Self::bug(error),
            SayError::NotHeard => Self::violation(error.to_string()),
        }
    }
}

impl SessionError {
    pub fn violation(text: impl Into<String>) -> Self {
        ControlError::Violation(text.into()).into()
    }

    pub fn local(code: FailureCode, text: impl Into<String>) -> Self {
        Self::Local(Failure::new(code, text))
    }

    /// What is wrong with where this end reads or writes.
    pub fn storage(error: &StorageError) -> Self {
        let failure = error.to_failure();
        if error.is_mistrusted() { Self::Mistrusted(failure) } else { Self::Local(failure) }
    }

    /// The user asked to stop.
    pub fn interrupted() -> Self {
        Self::local(FailureCode::Interrupted, "interrupted by the user")
    }

    /// Something that cannot be unless this program is wrong: said, and never a panic.
    pub fn bug(error: impl std::fmt::Display) -> Self {
        Self::local(FailureCode::Violation, format!("internal error of fastsync: {error}"))
    }

    /// The ends count differently: nothing that this session said can be relied on.
    pub fn mismatch(sender: &Summary, receiver: &Summary) -> Self {
        let count = |summary: &Summary| {
            format!(
                "{} done, {} skipped, {} failed, {} bytes",
                summary.done, summary.skipped, summary.failed, summary.bytes
            )
        };
        let text = format!(
            "the ends disagree on what was transferred: the sender counts {}; the receiver {}; run \
             the same command again",
            count(sender),
            count(receiver)
        );
        Self::local(FailureCode::Mismatch, text)
    }

    /// What the peer should be told; `None` where it knows, or cannot hear.
    pub fn to_tell(&self) -> Option<Failure> {
        match self {
            // What was dialled in this network is none of the peer's business.
            Self::Local(failure) if failure.code == FailureCode::NoDataPath => {
                Some(Failure::new(failure.code, "no data channel could be opened"))
            }
            Self::Local(failure) | Self::Mistrusted(failure) => Some(failure.clone()),
            Self::Control(error) => match &**error {
                ControlError::Ended
                | ControlError::Silent(_)
                | ControlError::Read(_)
                | ControlError::NoAgent { .. }
                | ControlError::NoMagic(_)
                | ControlError::Aborted(_) => None,
                ControlError::Message(error) => Some(broken(error)),
                ControlError::Unexpected(error) => Some(broken(error)),
                ControlError::Violation(text) => Some(broken(text)),
            },
        }
    }
}

fn broken(what: &impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::Violation, format!("the peer broke the protocol: {what}"))
}

/// Unpacks what a task returned; a task that panicked is a bug of ours, and ends the session.
pub fn first_error<T>(
    joined: Result<Result<T, SessionError>, JoinError>,
) -> Result<T, SessionError> {
    joined.map_err(SessionError::bug)?
}
