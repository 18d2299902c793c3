//! What either end does on its own host, whichever role it plays: open the destination and its
//! journal, receive into it, and leave nothing behind.

use std::collections::HashMap;

use tokio::io::AsyncRead;

use super::control::{ControlError, Inbox, Outbox};
use super::event::{EntryReport, Event};
use super::journal::{Journal, Opened, Purpose};
use super::receive::{self, Destination, ReceiverEnd};
use super::session::{Channels, Observer, SessionError};
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{
    Changes, FailureCode, Message, Metadata, Options, Outcome, Resume, Whereabouts,
};
use crate::storage::local::{LocalSink, LocalSource, StateDir, boot_id};
use crate::storage::{Operation, Sink, StorageError};
use crate::transport::FrameReceiver;

/// A source in this process.
pub struct Near {
    pub source: LocalSource,
    /// Files are copied from it instead of being sent.
    pub copies: bool,
}

/// Receives into a path of this host, to the very end of the session, from a source in this process
/// if there is one.
#[expect(clippy::too_many_arguments, reason = "all that a session consists of")]
pub async fn receive_into<R: AsyncRead + Unpin + Send, C: FrameReceiver>(
    path: &[u8],
    job: [u8; 16],
    inbox: &mut Inbox<R>,
    outbox: Outbox,
    channels: Channels<C>,
    options: Options,
    observer: Observer,
    near: Option<Near>,
) -> Result<ReceiverEnd, SessionError> {
    let Told { single_file, root, whereabouts } = sources(inbox).await?;
    let mut sink = LocalSink::open(path, single_file, job, &options).map_err(startup)?;
    if let Some(Near { source, copies }) = near {
        sink = sink.beside(&source);
        if copies {
            sink = sink.with_source(source);
        }
    } else {
        sink = sink.apart_from(whereabouts).map_err(startup)?;
    }
    keep_root(&sink, root, &options, &outbox, &observer)?;
    let state =
        if options.dry_run { None } else { Some(open_state(sink.open_state(), inbox).await?) };
    let ready = Ready { sink, state, boot: boot_id() };
    receive(ready, job, inbox, outbox, channels, options, observer).await
}

/// A sink that is open, and all that belongs to it.
pub struct Ready<K> {
    pub sink: K,
    /// Where the journal is; without it, nothing can be resumed.
    pub state: Option<StateDir>,
    /// See [`Purpose::boot`].
    pub boot: [u8; 16],
}

/// Receives into an open sink, to the very end of the session.
pub async fn receive<K: Sink, R: AsyncRead + Unpin + Send, C: FrameReceiver>(
    ready: Ready<K>,
    job: [u8; 16],
    inbox: &mut Inbox<R>,
    outbox: Outbox,
    channels: Channels<C>,
    options: Options,
    observer: Observer,
) -> Result<ReceiverEnd, SessionError> {
    let Ready { sink, state, boot } = ready;
    let mut destination =
        Destination { sink, journal: None, begun: HashMap::default(), stale: Vec::new() };
    if let Some(state) = &state {
        let purpose = Purpose { job, chunk_size: options.chunk_size, boot };
        let file = state.journal().try_clone();
        let opened = file.and_then(|file| Journal::open(file, purpose));
        let opened = opened.map_err(StorageError::io(Operation::Open, b"the journal"));
        let Opened { journal, mut begun, mut stale } = opened.map_err(startup)?;
        if options.resume == Resume::Never {
            for (path, begun) in begun.drain() {
                journal.end(begun.number).map_err(|cause| {
                    startup(StorageError::io(Operation::Write, b"the journal")(cause))
                })?;
                stale.push((path, begun.temporary));
            }
        }
        destination = Destination { journal: Some(journal), begun, stale, ..destination };
    }
    let end = receive::run(destination, inbox, outbox.clone(), channels, options, observer).await?;
    if let Some(state) = state {
        state.remove().map_err(startup)?;
    }
    outbox.say(&Message::Closed).map_err(SessionError::bug)?;
    Ok(end)
}

/// Takes note of what the destination's own directory is to be like: before anything is made in it.
pub fn keep_root<K: Sink>(
    sink: &K,
    root: Option<Metadata>,
    options: &Options,
    outbox: &Outbox,
    observer: &Observer,
) -> Result<(), SessionError> {
    let Some(root) = root else { return Ok(()) };
    root.check().map_err(SessionError::violation)?;
    let changes = sink.keep_root(root.clone());
    tell_of_root(root, changes, options.dry_run, outbox, observer)
}

/// Tells both ends what is different about the destination's own directory (UPD-2).
fn tell_of_root(
    metadata: Metadata,
    changes: Changes,
    dry_run: bool,
    outbox: &Outbox,
    observer: &Observer,
) -> Result<(), SessionError> {
    if changes.is_empty() {
        return Ok(());
    }
    let outcome = if dry_run { Outcome::Would(changes) } else { Outcome::Done(changes) };
    outbox.say(&Message::Outcomes(vec![(EntryId::ROOT, outcome.clone())]))?;
    observer.tell(Event::Ended(EntryReport::of_root(metadata, outcome)));
    Ok(())
}

/// What a sender says of its sources.
pub struct Told {
    pub single_file: bool,
    pub root: Option<Metadata>,
    pub whereabouts: Whereabouts,
}

/// The sender's first word of its sources (ENTRY-1).
pub async fn sources<R: AsyncRead + Unpin>(inbox: &mut Inbox<R>) -> Result<Told, SessionError> {
    loop {
        match inbox.next().await? {
            Message::Sources { single_file, root, whereabouts } => {
                return Ok(Told { single_file, root, whereabouts });
            }
            Message::Ping => {}
            Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
            other => {
                let text = format!("{} came before Sources", other.label());
                return Err(SessionError::violation(text));
            }
        }
    }
}

/// Waits for the job's lock. The peer is heard meanwhile: it may give up, or speak of data channels.
pub async fn open_state<R: AsyncRead + Unpin>(
    opening: impl Future<Output = Result<StateDir, StorageError>>,
    inbox: &mut Inbox<R>,
) -> Result<StateDir, SessionError> {
    inbox.hear_during(opening).await?.map_err(startup)
}

/// An error before anything was transferred.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub fn startup(error: StorageError) -> SessionError {
    match error.code() {
        _ if error.is_mistrusted() => SessionError::storage(&error),
        FailureCode::DestinationFull | FailureCode::Disconnected => {
            SessionError::Local(error.to_failure())
        }
        _ => SessionError::local(FailureCode::Startup, error.to_string()),
    }
}

/// 32 bytes from the system's random generator.
pub fn random() -> Result<[u8; 32], SessionError> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| SessionError::bug("the system's random generator failed"))?;
    Ok(bytes)
}
