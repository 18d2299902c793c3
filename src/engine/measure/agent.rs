//! The agent's part of a session that measures: one request after the other, each within the
//! protocol's limits and within what the host's operator allows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::run::{self, Place, made_up, on_disk};
use super::system;
use crate::engine::agent::Access;
use crate::engine::control::{ControlError, Inbox, Outbox};
use crate::engine::session::{Channels, SessionError, first_error};
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::measure::{DiskLimits, MAX_FRAME_LEN, Measure, Measured, Run};
use crate::protocol::message::{Failure, FailureCode, Message};
use crate::storage::local::{Scratch, disk_speed, room};
use crate::storage::{Operation, StorageError};
use crate::transport::channel::Channel;

/// What the agent measures, and what it may do.
#[derive(Debug)]
pub struct Grounds {
    pub directory: PathBuf,
    pub access: Access,
    /// It is confined to a directory, and tells nothing of what is outside of it.
    pub is_confined: bool,
    pub streams: u16,
}

/// Serves requests until the client has no more.
pub async fn serve<R: AsyncRead + Unpin>(
    grounds: Grounds,
    inbox: &mut Inbox<R>,
    outbox: Outbox,
    mut channels: Channels<Channel>,
) -> Result<(), SessionError> {
    let stop = Stop::default();
    let mut bench = Bench {
        grounds,
        outbox,
        up: HashMap::new(),
        waiting: None,
        work: JoinSet::new(),
        stop: Arc::clone(&stop.0),
    };
    let end = Instant::now() + SESSION;
    loop {
        let patience = bench.waiting.as_ref().map_or(end, |(_, until)| end.min(*until));
        tokio::select! {
            message = inbox.next() => match message? {
                Message::Measure(Measure::Done) => {
                    bench.say(Measured::Done)?;
                    return Ok(());
                }
                Message::Measure(request) => bench.begin(request)?,
                Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
                // The state machine lets nothing else through that means something here.
                _ => {}
            },
            Some(arrived) = channels.next() => {
                let (slot, channel) = arrived?;
                bench.keep(slot, channel);
                bench.begin_waiting();
            }
            Some(joined) = bench.work.join_next() => {
                let (channels, answer) = first_error(joined.map(Ok))?;
                for channel in channels {
                    bench.keep(channel.slot, channel);
                }
                bench.say(answer)?;
            }
            () = sleep_until(patience) => {
                if Instant::now() >= end {
                    let text = "nothing is measured for longer than an hour";
                    return Err(SessionError::local(FailureCode::Interrupted, text));
                }
                bench.waiting = None;
                let text = "the channels of a run did not come up at the other host";
                bench.say(Measured::Refused(Failure::new(FailureCode::NoDataPath, text)))?;
            }
        }
    }
}

/// Tells work on blocking threads that nobody waits for it any more.
#[derive(Debug, Default)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Bench {
    grounds: Grounds,
    outbox: Outbox,
    up: HashMap<(u16, u32), Channel>,
    /// A run of which channels are missing, and how long they may be.
    waiting: Option<(Run, Instant)>,
    work: JoinSet<(Vec<Channel>, Measured)>,
    stop: Arc<AtomicBool>,
}

impl Bench {
    fn say(&self, answer: Measured) -> Result<(), SessionError> {
        self.outbox.say(&Message::Measured(answer)).map_err(SessionError::from)
    }

    fn begin(&mut self, request: Measure) -> Result<(), SessionError> {
        if !self.work.is_empty() || self.waiting.is_some() {
            let text = "a request came before the one before it was answered (MEASURE-2)";
            return Err(SessionError::violation(text));
        }
        match request {
            Measure::Clock => self.say(Measured::Clock(system::now())),
            Measure::System => {
                let (path, tells_paths) =
                    (self.grounds.directory.clone(), !self.grounds.is_confined);
                let may_write = self.grounds.access.check_disk(false).is_ok();
                self.work.spawn(async move {
                    let mut system = system::system(path, tells_paths).await;
                    system.room = if may_write { system.room } else { 0 };
                    (Vec::new(), Measured::System(system))
                });
                Ok(())
            }
            Measure::Disk(limits) => {
                limits.check().map_err(SessionError::violation)?;
                if let Err(refusal) = self.grounds.access.check_disk(false) {
                    return self.say(Measured::Refused(refusal));
                }
                let (path, stop) = (self.grounds.directory.clone(), Arc::clone(&self.stop));
                self.work.spawn(async move {
                    let answer = disk(path, limits, stop).await;
                    (Vec::new(), answer.unwrap_or_else(Measured::Refused))
                });
                Ok(())
            }
            Measure::Run(run) => {
                run.check(self.grounds.streams).map_err(SessionError::violation)?;
                let access = self.grounds.access;
                if run.on_disk
                    && let Err(refusal) = access.check_disk(!run.toward_agent)
                {
                    return self.say(Measured::Refused(refusal));
                }
                self.waiting = Some((run, Instant::now() + CHANNELS));
                self.begin_waiting();
                Ok(())
            }
            Measure::Release => {
                self.up.clear();
                self.say(Measured::Released)
            }
            // It ends the session, and is not handed on.
            Measure::Done => Ok(()),
        }
    }

    /// Keeps a channel for runs to come. There is one of each number: the newest (SEC-5).
    fn keep(&mut self, slot: ChannelSlot, channel: Channel) {
        let is_older = |held: &(u16, u32)| held.0 == slot.channel && held.1 < slot.generation;
        let is_newer = |held: &(u16, u32)| held.0 == slot.channel && held.1 > slot.generation;
        self.up.retain(|held, _| !is_older(held));
        if !self.up.keys().any(is_newer) {
            self.up.insert((slot.channel, slot.generation), channel);
        }
    }

    /// Begins the run that waits for its channels, if they are all there.
    fn begin_waiting(&mut self) {
        let is_up = |run: &Run| run.channels.iter().all(|slot| self.up.contains_key(slot));
        let Some((run, _)) = self.waiting.take_if(|(run, _)| is_up(run)) else { return };
        let channels = run.channels.iter().filter_map(|slot| self.up.remove(slot)).collect();
        let (outbox, stop) = (self.outbox.clone(), Arc::clone(&self.stop));
        let directory = self.grounds.directory.clone();
        self.work.spawn(async move {
            let place = if run.on_disk {
                match prepare(&directory, &run, !run.toward_agent, stop).await {
                    Ok(place) => place,
                    Err(refusal) => return (channels, Measured::Refused(refusal)),
                }
            } else {
                Place::Memory
            };
            // A session that can say nothing is ending.
            let _ = outbox.say(&Message::Measured(Measured::Ready));
            let (channels, result) = if run.toward_agent {
                run::receive(channels, run, place).await
            } else {
                run::send(channels, run, place).await
            };
            (channels, result.map_or_else(Measured::Refused, Measured::Ran))
        });
    }
}

impl Access {
    /// Whether a temporary file may be written, and if `is_sent` its content sent.
    fn check_disk(self, is_sent: bool) -> Result<(), Failure> {
        let text = match (self, is_sent) {
            (Self::ReadOnly, _) => {
                "the other host lets this key only read (--read-only), so its disk is not measured, \
                 which writes a temporary file"
            }
            (Self::WriteOnly, true) => {
                "the other host lets this key only write (--write-only), so nothing is read from \
                 its disk"
            }
            (Self::WriteOnly, false) | (Self::Both, _) => return Ok(()),
        };
        Err(Failure::new(FailureCode::Permission, text))
    }
}

async fn disk(
    path: PathBuf,
    limits: DiskLimits,
    stop: Arc<AtomicBool>,
) -> Result<Measured, Failure> {
    let block = made_up(MAX_FRAME_LEN as usize);
    on_disk(move || disk_speed(&path, limits, &block, &stop)).await.map(Measured::Disk)
}

/// Makes the temporary file of a run, with content if it is to be sent.
pub async fn prepare(
    directory: &Path,
    run: &Run,
    is_sent: bool,
    stop: Arc<AtomicBool>,
) -> Result<Place, Failure> {
    let (directory, run) = (directory.to_owned(), run.clone());
    let block = made_up(run.len as usize);
    on_disk(move || {
        let file = Scratch::create(&directory)?;
        let mut available = 0;
        if is_sent {
            let limit = Duration::from_millis(run.millis.into());
            (available, ..) = file.fill(&block, run.bytes, limit, &stop)?;
            file.forget();
        } else if room(&directory)? < run.bytes {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            let path = directory.as_os_str().as_encoded_bytes();
            return Err(StorageError::io(Operation::Write, path)(full));
        }
        Ok(Place::File(Arc::new(file), available))
    })
    .await
}

/// The longest that a session measures.
const SESSION: Duration = Duration::from_hours(1);

/// How long the channels of a run may be missing: they are up at the other end.
const CHANNELS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::control::{Pulse, outbox};
    use crate::engine::job::TransferConfig;
    use crate::protocol::chunk::Digest;
    use crate::protocol::handshake::{ChannelKeys, hello};
    use crate::protocol::message::{Carrier, Open, Secret, SocketOptions, Task};
    use crate::protocol::session::End;
    use crate::transport::channel::{ChannelConfig, Listener, Openings, dial};
    use crate::transport::tls::Identity;

    /// What the agent answers to these requests, and how the session ends.
    async fn served(
        access: Access,
        requests: &[Measure],
    ) -> (Vec<Measured>, Result<(), SessionError>) {
        let temp = tempfile::tempdir().unwrap();
        let task = Task::Measure { directory: Vec::new() };
        let options = TransferConfig::default().to_options(true);
        let open = Open { task, channel_secret: Secret([0; 32]), job: [0; 16], options };
        let before = [Message::Hello(hello([0; 32], Vec::new())), Message::Open(Box::new(open))];
        let requests = requests.iter().cloned().map(Message::Measure);
        let said: Vec<u8> =
            before.into_iter().chain(requests).flat_map(|it| it.encode().unwrap()).collect();
        let silence = Duration::from_mins(1);
        let mut inbox = Inbox::new(&said[..], End::Agent, silence, Pulse::new());
        inbox.next().await.unwrap();
        inbox.next().await.unwrap();
        let mut answers = Vec::new();
        let (outbox, writing) = outbox(&mut answers);
        let directory = temp.path().to_owned();
        let grounds = Grounds { directory, access, is_confined: true, streams: 2 };
        let (_arrive, arriving) = flume::unbounded();
        let end = serve(grounds, &mut inbox, outbox, Channels::new(arriving, None)).await;
        writing.await.unwrap();
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        let (mut said, mut rest) = (Vec::new(), &answers[..]);
        while let Some((len, after)) = rest.split_first_chunk() {
            let (message, after) = after.split_at(u32::from_le_bytes(*len) as usize);
            match Message::decode(message).unwrap() {
                Message::Measured(answer) => said.push(answer),
                other => panic!("{other:?}"),
            }
            rest = after;
        }
        (said, end)
    }

    /// SEC-5: of each number, the newest is held, however many a client makes.
    #[tokio::test]
    async fn a_newer_channel_replaces_the_one_before_it() {
        let (own, theirs) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let config = |identity: Identity, peer_certificate: Vec<u8>| ChannelConfig {
            identity: Arc::new(identity),
            peer_certificate,
            keys: ChannelKeys::new(Secret([1; 32]), Digest([2; 32])),
            encrypt: true,
            sockets: SocketOptions::default(),
            max_payload: 1 << 20,
            channels: 1,
        };
        let certificates = (own.certificate().to_vec(), theirs.certificate().to_vec());
        let (own, theirs) = (config(own, certificates.1), config(theirs, certificates.0));
        let openings = Openings { tcp: true, ..Openings::default() };
        let listener = Listener::bind(openings, None, true, own).unwrap();
        let address = (std::net::Ipv4Addr::LOCALHOST, listener.port()).into();
        let (proven, accepted) = flume::unbounded();
        let mut tasks = JoinSet::new();
        tasks.spawn(listener.run(proven));
        let directory = PathBuf::new();
        let grounds = Grounds { directory, access: Access::Both, is_confined: false, streams: 1 };
        let (outbox, _writing) = outbox(Vec::new());
        let (up, work, stop) = (HashMap::new(), JoinSet::new(), Arc::default());
        let mut bench = Bench { grounds, outbox, up, waiting: None, work, stop };
        for generation in 1..4 {
            let slot = ChannelSlot { channel: 0, generation };
            let dialled = dial(Carrier::Tcp, &[address], slot, &theirs).await.unwrap();
            let channel = accepted.recv_async().await.unwrap();
            bench.keep(channel.slot, channel);
            assert_eq!(bench.up.keys().collect::<Vec<_>>(), [&(0, generation)]);
            if generation == 3 {
                // One that comes later than its successor.
                bench.keep(ChannelSlot { channel: 0, generation: 2 }, dialled);
                assert_eq!(bench.up.keys().collect::<Vec<_>>(), [&(0, 3)]);
            }
        }
    }

    fn run(on_disk: bool, toward_agent: bool, bytes: u64) -> Measure {
        let (number, channels, len, millis) = (1, vec![(0, 1)], 65_536, 1);
        Measure::Run(Run { number, toward_agent, on_disk, channels, len, bytes, millis })
    }
    #[track_caller]
    fn is_refused(answer: &Measured) -> bool {
        matches!(answer, Measured::Refused(failure) if failure.code == FailureCode::Permission)
    }

    fn is_violation(end: &Result<(), SessionError>) -> bool {
        let told = end.as_ref().err().and_then(SessionError::to_tell);
        told.is_some_and(|failure| failure.code == FailureCode::Violation)
    }

    /// MEASURE-2: each request has its answer, and Done the last one.
    #[tokio::test]
    async fn requests_are_answered_in_turn() {
        let (answers, end) =
            served(Access::Both, &[Measure::Clock, Measure::Release, Measure::Done]).await;
        let [Measured::Clock(time), Measured::Released, Measured::Done] = &answers[..] else {
            panic!("{answers:?}")
        };
        assert!(time.seconds > 1_700_000_000 && end.is_ok());
        // One that comes before the answer to the one before it.
        let limits = DiskLimits { bytes: 4096, files: 1, millis: 1000 };
        let (_, end) = served(Access::Both, &[Measure::Disk(limits), Measure::Clock]).await;
        assert!(is_violation(&end), "{end:?}");
    }

    /// MEASURE-5: whoever asks for more than anybody needs is no correct client.
    #[tokio::test]
    async fn what_is_beyond_the_limits_ends_the_session() {
        let limits = DiskLimits { bytes: 1 << 50, files: 1, millis: 1000 };
        for request in [Measure::Disk(limits), run(true, true, 1 << 50), run(false, true, 1 << 50)]
        {
            let (answers, end) = served(Access::Both, &[request, Measure::Done]).await;
            assert!(is_violation(&end) && answers.is_empty(), "{answers:?} {end:?}");
        }
    }

    /// MEASURE-4, MEASURE-7: nothing is written by one that only reads, and nothing is sent from the disk
    /// of one that only receives.
    #[tokio::test]
    async fn rights_are_not_widened() {
        let limits = DiskLimits { bytes: 4096, files: 1, millis: 1000 };
        let disk = Measure::Disk(limits);
        let (to, from) = (run(true, true, 1 << 20), run(true, false, 1 << 20));
        let (answers, end) =
            served(Access::ReadOnly, &[disk, to, from.clone(), Measure::Done]).await;
        assert!(answers.len() == 4 && answers.iter().take(3).all(is_refused), "{answers:?}");
        assert!(end.is_ok());
        let (answers, _) = served(Access::WriteOnly, &[from, Measure::Done]).await;
        assert!(is_refused(&answers[0]), "{answers:?}");
    }
}
