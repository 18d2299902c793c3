//! Both halves of a session in one process: copies within this machine, and looking at what is here.
//!
//! The control channel is a pipe in memory and data channels pass chunks as they are. All else is as
//! between two hosts, so that resuming, comparing and deleting are the same code.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{DuplexStream, ReadHalf};
use tokio::task::JoinSet;

use super::client::{Failed, SessionEnd, absolute, job_name};
use super::control::{Inbox, Outbox, Pulse, outbox};
use super::endpoint::{self, AnyDestination, AnySource};
use super::event::{Connection, Progress};
use super::job::{At, Direction, Job, Site, Sources};
use super::receive::ReceiverEnd;
use super::session::{Channels, Observer, SessionError};
use super::{EngineError, here, inventory};
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::message::{Failure, FailureCode, MAX_OPEN_ENTRIES, Message, Options};
use crate::protocol::session::Role;
use crate::storage::local::LocalSource;
use crate::transport::memory::{self, MemoryReceiver, MemorySender};

/// Copies files within this machine, and between it and endpoints.
pub async fn copy(
    job: &Job,
    sources: &Sources,
    destination: &Site,
    observer: &Observer,
) -> Result<SessionEnd, Failed> {
    match (sources, destination) {
        (Sources::Local(sources), Site::Local(destination)) => {
            copy_locally(job, sources, destination, observer).await
        }
        _ => carry(job, sources, destination, observer).await,
    }
}

/// Copies files within this machine, where the kernel can do it.
async fn copy_locally(
    job: &Job,
    sources: &[PathBuf],
    destination: &Path,
    observer: &Observer,
) -> Result<SessionEnd, Failed> {
    let options = options(job)?;
    let source = LocalSource::open(sources, &options, job.paths.clone());
    let source = source.map_err(|error| early(EngineError::Source(error)))?.awaiting_sink();
    let destination = absolute(destination);
    // What the kernel copied is in the journal without values, and of no use to another kind of job.
    let kind = if job.config.verify { "verified copy" } else { "copy" };
    let names = [kind.as_bytes().to_vec()].into_iter();
    let names = names
        .chain(sources.iter().map(|path| absolute(path).as_os_str().as_bytes().to_vec()))
        .chain([destination.as_os_str().as_bytes().to_vec()]);
    let name = job_name(&names.collect::<Vec<_>>());
    let near = here::Near { source: source.clone(), copies: !job.config.verify };
    observer.connected(Connection {
        transport: TRANSPORT,
        streams: options.streams,
        peer: "this machine".to_owned(),
        encrypted: false,
        dialler: "",
        reason: String::new(),
    });
    let receiving = options.clone();
    let source = AnySource::Local(source);
    let end = both(source, options, observer, async |inbox, outbox, channels, observer| {
        let path = destination.as_os_str().as_bytes();
        here::receive_into(path, name, inbox, outbox, channels, receiving, observer, Some(near))
            .await
    });
    let ReceiverEnd { totals, durable, deletions } = end.await?;
    Ok(SessionEnd { totals, durable, deletions })
}

/// Copies files from or to an endpoint.
async fn carry(
    job: &Job,
    sources: &Sources,
    destination: &Site,
    observer: &Observer,
) -> Result<SessionEnd, Failed> {
    let mut options = options(job)?;
    endpoint::fit(&mut options, endpoint::needs_large_parts(destination), observer);
    let names = endpoint::names_of_sources(sources).into_iter();
    let name = job_name(&names.chain([endpoint::name_of_site(destination)]).collect::<Vec<_>>());
    let source = AnySource::open(sources, &options, job, observer).await.map_err(early)?;
    let destination = AnyDestination::open(destination, job, observer).await.map_err(early)?;
    source.fit(&mut options);
    destination.fit(&mut options);
    let connection = endpoint::connection(&source, &destination, options.streams);
    let observer = &observer.clone().with_streams(connection.streams);
    observer.connected(connection);
    let receiving = options.clone();
    let near = match &source {
        AnySource::Remote(near) if !job.config.verify => Some(near.clone()),
        AnySource::Remote(_) | AnySource::Local(_) => None,
    };
    let end = both(source, options, observer, async |inbox, outbox, channels, observer| {
        destination.receive(name, inbox, outbox, channels, receiving, observer, near).await
    });
    let ReceiverEnd { totals, durable, deletions } = end.await?;
    Ok(SessionEnd { totals, durable, deletions })
}

/// Tells what there is on this machine, or at an endpoint.
pub async fn look(
    job: &Job,
    sources: &[Vec<u8>],
    at: &At,
    hash: bool,
    observer: &Observer,
) -> Result<SessionEnd, Failed> {
    let options = options(job)?;
    let sources = match at {
        At::Store(store) => Sources::Endpoint { store: store.clone(), paths: sources.to_vec() },
        At::Here | At::Host(_) => Sources::Local(
            sources.iter().map(|path| std::ffi::OsStr::from_bytes(path).into()).collect(),
        ),
    };
    let source = AnySource::open(&sources, &options, job, observer).await.map_err(early)?;
    both(source, options, observer, async |inbox, outbox, _channels, observer| {
        inventory::run(hash, inbox, outbox, observer).await
    })
    .await
}

/// How reports name the way that data takes here.
pub const TRANSPORT: &str = "memory";

fn early(error: EngineError) -> Failed {
    Failed { error, established: false }
}

fn options(job: &Job) -> Result<Options, Failed> {
    let mut options = job.config.to_options(true);
    options.select.has_paths = job.paths.is_some();
    options.dry_run |= matches!(job.direction, Direction::Inventory { .. });
    options.check().map_err(|text| early(EngineError::Usage(text.to_owned())))?;
    Ok(options)
}

/// Runs the sender and a receiver against each other. The receiver is the one that is observed.
async fn both<T>(
    source: AnySource,
    options: Options,
    observer: &Observer,
    receive: impl AsyncFnOnce(
        &mut Inbox<ReadHalf<DuplexStream>>,
        Outbox,
        Channels<MemoryReceiver>,
        Observer,
    ) -> Result<T, SessionError>,
) -> Result<T, Failed> {
    let (near, far) = tokio::io::duplex(PIPE_LEN);
    let (sender, receiver) = (Half::new(near, Role::Sender), Half::new(far, Role::Receiver));
    let (sending, receiving) = channels(options.streams);
    let quiet = Observer::new(Arc::new(Progress::default()), None);
    let send = sender.run(async |inbox, outbox| {
        source.send(inbox, outbox, sending, options, MAX_OPEN_ENTRIES, quiet).await
    });
    let observer = observer.clone();
    let receive =
        receiver.run(async |inbox, outbox| receive(inbox, outbox, receiving, observer).await);
    let (sent, received) = tokio::join!(send, receive);
    let error = match (sent, received) {
        (Ok(_), Ok(end)) => return Ok(end),
        // The one that failed by itself knows why; the other has only heard of it.
        (Err(error @ (SessionError::Local(_) | SessionError::Mistrusted(_))), _)
        | (Err(error), Ok(_))
        | (_, Err(error)) => error,
    };
    Err(Failed { error: explain(error), established: true })
}

fn explain(error: SessionError) -> EngineError {
    match error {
        SessionError::Local(failure) if failure.code == FailureCode::Interrupted => {
            EngineError::Interrupted
        }
        SessionError::Local(failure) if failure.code == FailureCode::Disconnected => {
            let (host, cause) = ("the other end".to_owned(), failure.text().to_owned());
            EngineError::Disconnected { host, cause }
        }
        SessionError::Local(failure) => EngineError::Session(failure),
        SessionError::Mistrusted(failure) => EngineError::Mistrusted(failure),
        SessionError::Control(error) => {
            let text = format!("internal error of fastsync: {error}");
            EngineError::Session(Failure::new(FailureCode::Violation, text))
        }
    }
}

/// As many data channels as there are streams.
fn channels(streams: u16) -> (Channels<MemorySender>, Channels<MemoryReceiver>) {
    let ((to_sender, sending), (to_receiver, receiving)) = (flume::unbounded(), flume::unbounded());
    for channel in 0..streams {
        let (sender, receiver) = memory::pair(CHANNEL_DEPTH);
        let slot = ChannelSlot { channel, generation: 1 };
        let _ = to_sender.send(Ok((slot, sender)));
        let _ = to_receiver.send(Ok((slot, receiver)));
    }
    (Channels::new(sending, None), Channels::new(receiving, None))
}

/// One end of the control channel.
struct Half {
    inbox: Inbox<ReadHalf<DuplexStream>>,
    outbox: Outbox,
    writer: JoinSet<std::io::Result<()>>,
}

impl Half {
    fn new(stream: DuplexStream, role: Role) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (outbox, writing) = outbox(writer);
        let inbox = Inbox::within_process(reader, role, SILENCE, Pulse::new());
        let mut writer = JoinSet::new();
        writer.spawn(writing);
        Self { inbox, outbox, writer }
    }

    /// Plays a role, and tells the other half if it fails.
    async fn run<T>(
        mut self,
        role: impl AsyncFnOnce(&mut Inbox<ReadHalf<DuplexStream>>, Outbox) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let result = role(&mut self.inbox, self.outbox.clone()).await;
        if let Some(failure) = result.as_ref().err().and_then(SessionError::to_tell) {
            let _ = self.outbox.say(&Message::Abort(failure));
        }
        drop(self.outbox);
        let _ = tokio::time::timeout(Duration::from_secs(2), self.writer.join_next()).await;
        result
    }
}

/// How many bytes of control messages are under way.
const PIPE_LEN: usize = 1 << 20;

/// How many chunks wait in a channel: none, as a chunk that waits is memory that is not read into.
const CHANNEL_DEPTH: usize = 1;

/// The other half is this very program; it cannot be lost.
const SILENCE: Duration = Duration::from_hours(24);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::engine::Watch;
    use crate::engine::event::{EntryReport, Event};
    use crate::engine::job::Direction;
    use crate::protocol::chunk::Digest;
    use crate::protocol::message::Outcome;

    /// Runs a job and returns what ended, by path.
    async fn run(job: Job) -> (crate::engine::event::Report, BTreeMap<Vec<u8>, EntryReport>) {
        let (events, told) = flume::unbounded();
        let (_stopper, stop) = tokio::sync::watch::channel(false);
        let watch = Watch { progress: Arc::default(), events, stop };
        let report = crate::engine::run(job, watch).await.unwrap();
        let ended = told.drain().filter_map(|event| match event {
            Event::Ended(report) => Some((report.path.clone(), report)),
            _ => None,
        });
        (report, ended.collect())
    }

    fn plant(root: &Path) {
        fs::create_dir_all(root.join("src/d")).unwrap();
        for n in 0..200 {
            fs::write(root.join(format!("src/d/{n}")), format!("small {n}").repeat(n)).unwrap();
        }
        fs::write(root.join("src/large"), vec![7; 3 << 20]).unwrap();
        std::os::unix::fs::symlink("large", root.join("src/link")).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_is_equal_and_a_second_one_does_nothing() {
        for verify in [true, false] {
            let temp = tempfile::tempdir().unwrap();
            plant(temp.path());
            let copy = || {
                let job = Job::copy(vec![temp.path().join("src/")], temp.path().join("dst"));
                let config = job.config.clone();
                job.with_config(crate::engine::job::TransferConfig { verify, ..config })
            };
            let (report, ended) = run(copy()).await;
            assert_eq!((report.done, report.skipped, report.failed), (203, 0, 0));
            assert_eq!(ended.len(), 204, "and the root");
            let read = |below: &str| fs::read(temp.path().join(below)).unwrap();
            assert_eq!(read("src/large"), read("dst/large"));
            assert_eq!(read("src/d/199"), read("dst/d/199"));
            let root = ended[&b"large"[..]].root;
            assert_eq!(root.is_some(), verify, "data is hashed only to be verified");
            let (report, _) = run(copy()).await;
            assert_eq!((report.done, report.failed), (0, 0));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_inventory_tells_every_root() {
        let temp = tempfile::tempdir().unwrap();
        plant(temp.path());
        let source = temp.path().join("src/").as_os_str().as_bytes().to_vec();
        let inventory = |hash| Job {
            direction: Direction::Inventory { sources: vec![source.clone()], at: At::Here, hash },
            ..Job::copy(Vec::new(), PathBuf::new())
        };
        let (report, ended) = run(inventory(true)).await;
        assert_eq!((report.would, report.failed), (203, 0));
        assert_eq!(ended[&b"large"[..]].root, Some(Digest::of(&vec![7; 3 << 20])));
        assert_eq!(ended[&b"d/3"[..]].root, Some(Digest::of(b"small 3small 3small 3")));
        assert_eq!(ended[&b"link"[..]].target.as_deref(), Some(&b"large"[..]));
        let (_, ended) = run(inventory(false)).await;
        assert!(ended.values().all(|entry| entry.root.is_none()));
        assert!(ended.values().all(|entry| matches!(entry.outcome, Outcome::Would(_))));
    }
}
