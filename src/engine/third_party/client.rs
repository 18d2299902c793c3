//! The client of a transfer between two other hosts: logs in to both, carries bytes between their
//! agents, and shows what it is told.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, sink, split};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::listen;
use super::reports::hear;
use crate::engine::EngineError;
use crate::engine::client::{
    AGENT_PATIENCE, Failed, LAST_WORDS, SessionEnd, accepted, addresses_of, check_congestion,
    ended_oddly, job_name, tell_paths,
};
use crate::engine::control::{Aside, ControlError, Inbox, Outbox, outbox_with};
use crate::engine::here;
use crate::engine::job::{Host, Job, Reach, Transport};
use crate::engine::launch::{self, AGENT_SILENCE, Launched, Launcher};
use crate::engine::session::{Observer, SessionError};
use crate::protocol::handshake;
use crate::protocol::manifest::{ManifestDigest, Totals};
use crate::protocol::message::{FailureCode, Message, Open, Options, Secret, Task};
use crate::protocol::session::{End, Role};
use crate::protocol::third_party::{MAX_ADDRESSES, Peer, STREAMS, Transport as Allowed};
use crate::protocol::tunnel;
use crate::ssh::{Input, Output, Process};
use crate::transport::tunnel::{Tunnel, TunnelStream};

/// From where to where.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    pub sources: &'a [Vec<u8>],
    pub source_host: &'a Host,
    pub host: &'a Host,
    pub destination: &'a [u8],
}

/// Why a session did not come to its end.
enum Broken {
    /// The receiving agent could not be started.
    NotStarted(EngineError),
    /// The sending agent is lost, or says what went wrong.
    Session(SessionError),
}

impl<E: Into<SessionError>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self::Session(error.into())
    }
}

/// Runs one session of a job between two other hosts.
pub async fn run_session(
    job: &Job,
    route: Route<'_>,
    observer: &Observer,
) -> Result<SessionEnd, Failed> {
    let early = |error| Failed { error, established: false };
    let mut open = open(job, route).map_err(early)?;
    let launcher = |host, me| Launcher { launch: &job.launch, host: Some(host), me, observer };
    let receiver = launcher(route.host, End::Client(Role::Sender));
    // Before any agent waits for this end, as looking a name up may take a while.
    if let Task::SendTo { to, .. } = &mut open.task {
        to.addresses = tokio::select! {
            addresses = known_addresses(&receiver) => addresses,
            () = observer.asked_to_stop() => return Err(early(EngineError::Interrupted)),
        };
    }
    // The sending agent first: it can be kept waiting, and the other one hears nothing before the
    // sender's Hello.
    let launched = launcher(route.source_host, End::Relay).launch().await.map_err(early)?;
    let Launched { process, stdin, inbox, .. } = launched;
    let tunnel = Tunnel::default();
    let (outbox, writing) = outbox_with(stdin, Some(tunnel.clone()));
    let mut writer = JoinSet::new();
    writer.spawn(writing);
    let mut relay = Relay {
        inbox,
        outbox,
        tunnel,
        observer,
        sender: process,
        receiver: None,
        carrying: JoinSet::new(),
    };
    let result = tokio::select! {
        result = relay.run(open, job.paths.clone(), &receiver) => result,
        () = observer.asked_to_stop() => Err(SessionError::interrupted().into()),
    };
    let told = match &result {
        Err(Broken::Session(error)) => error.to_tell(),
        Err(Broken::NotStarted(_)) => SessionError::interrupted().to_tell(),
        Ok(_) => None,
    };
    if let Some(failure) = told {
        let _ = relay.outbox.say(&Message::Abort(failure));
    }
    let established = relay.receiver.is_some();
    relay.end(&mut writer, route, result).await.map_err(|error| Failed { error, established })
}

/// What the sending agent is to be told, but for where the other host is.
fn open(job: &Job, route: Route<'_>) -> Result<Open, EngineError> {
    let mut options: Options = job.config.to_options(false);
    options.select.has_paths = job.paths.is_some();
    options.listen = job.config.reach.listen(false);
    options.listen.join = false;
    options.check().map_err(|text| EngineError::Usage(text.to_owned()))?;
    check_congestion(&options, &job.config.reach)?;
    let Reach { transport, reverse, data_addresses, listen_addresses, .. } = &job.config.reach;
    let to = Peer {
        source_host: route.source_host.name.clone(),
        host: route.host.name.clone(),
        destination: route.destination.to_vec(),
        addresses: Vec::new(),
        transport: match transport {
            Transport::Auto => Allowed::Auto,
            Transport::Tcp => Allowed::Tcp,
            Transport::Quic => Allowed::Quic,
            Transport::Ssh => Allowed::Tunnel,
        },
        reverse: *reverse,
        data_addresses: data_addresses.clone(),
        listen_addresses: listen_addresses.clone(),
    };
    to.check().map_err(|text| EngineError::Usage(text.to_owned()))?;
    let names = route.sources.iter().cloned().chain([
        to.source_host.clone().into_bytes(),
        to.host.clone().into_bytes(),
        to.destination.clone(),
    ]);
    Ok(Open {
        job: job_name(&names.collect::<Vec<_>>()),
        task: Task::SendTo { sources: route.sources.to_vec(), to: Box::new(to) },
        // There are no data channels to this end.
        channel_secret: Secret([0; 32]),
        options,
    })
}

/// A session under way.
struct Relay<'a> {
    inbox: Inbox<Output>,
    outbox: Outbox,
    tunnel: Tunnel,
    observer: &'a Observer,
    sender: Process,
    receiver: Option<Process>,
    carrying: JoinSet<()>,
}

impl Relay<'_> {
    async fn run(
        &mut self,
        open: Open,
        paths: Option<Vec<Vec<u8>>>,
        receiver: &Launcher<'_>,
    ) -> Result<SessionEnd, Broken> {
        let options = open.options.clone();
        let hello = handshake::hello(here::random()?, Vec::new());
        self.outbox.say_encoded(Message::Hello(hello).encode().map_err(SessionError::bug)?);
        self.outbox.say(&Message::Open(Box::new(open)))?;
        accepted(&mut self.inbox, &options).await?;
        tell_paths(&self.outbox, paths)?;
        let launched = tokio::select! {
            launched = receiver.launch() => launched.map_err(Broken::NotStarted)?,
            error = listen(&mut self.inbox) => return Err(error.into()),
        };
        let Launched { process, stdin, inbox, greeting, .. } = launched;
        self.receiver = Some(process);
        self.tunnel.allow(0, tunnel::window(STREAMS));
        // Nothing is said about data channels here, which the agents have with each other.
        let (words, _) = flume::bounded(1);
        self.inbox.set_aside(Aside { tunnel: self.tunnel.clone(), words });
        let (control, mut reports) = (self.tunnel.open(), self.tunnel.open());
        let (rest, stdout) = inbox.into_parts();
        self.carry(control, [greeting.encoded, rest].concat(), stdout, stdin);
        let pulse = self.inbox.pulse().clone();
        let observer = self.observer;
        let hearing = async move {
            reports.shutdown().await.map_err(ControlError::Read)?;
            hear(Inbox::of_reports(reports, AGENT_SILENCE, pulse), observer).await
        };
        let mut hearing = std::pin::pin!(hearing);
        let (mut is_heard, mut end) = (false, None);
        loop {
            if let Some(end) = end.filter(|_| is_heard) {
                return Ok(end);
            }
            tokio::select! {
                message = self.inbox.next(), if end.is_none() => match message? {
                    Message::ReceiverDone { summary, durable, deletions } => {
                        let totals = Totals {
                            done: summary.done,
                            skipped: summary.skipped,
                            failed: summary.failed,
                            bytes: summary.bytes,
                            digest: ManifestDigest(summary.digest),
                        };
                        end = Some(SessionEnd { totals, durable, deletions });
                    }
                    Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
                    // The state machine lets nothing else through.
                    _ => {}
                },
                heard = &mut hearing, if !is_heard => {
                    heard?;
                    is_heard = true;
                }
            }
        }
    }

    /// Carries what the receiving agent writes to the sending one, and back (THIRD-2).
    fn carry(&mut self, stream: TunnelStream, first: Vec<u8>, stdout: Output, stdin: Input) {
        let (reader, writer) = split(stream);
        self.carrying.spawn(async move {
            let mut stdout = stdout;
            let _ = carry_on(first.as_slice().chain(&mut stdout), writer).await;
        });
        self.carrying.spawn(async move {
            let _ = carry_on(reader, stdin).await;
        });
    }

    /// Lets both agents end, and says how it was.
    async fn end(
        self,
        writer: &mut JoinSet<std::io::Result<()>>,
        route: Route<'_>,
        result: Result<SessionEnd, Broken>,
    ) -> Result<SessionEnd, EngineError> {
        let Self { mut inbox, outbox, mut sender, mut receiver, mut carrying, .. } = self;
        let has_said_all = match &result {
            Ok(_) => true,
            Err(Broken::Session(SessionError::Control(error))) => {
                matches!(**error, ControlError::Aborted(_))
            }
            Err(_) => false,
        };
        // The end of its input lets an agent end that has nothing more to say. Any other still has to
        // tell the receiving one, and that comes this way.
        let outbox = Some(outbox).filter(|_| !has_said_all);
        let last_words = async { while inbox.next().await.is_ok() {} };
        let _ = timeout(LAST_WORDS, last_words).await;
        let last_words = async { while carrying.join_next().await.is_some() {} };
        let _ = timeout(LAST_WORDS, last_words).await;
        carrying.abort_all();
        drop(outbox);
        let _ = timeout(LAST_WORDS, writer.join_next()).await;
        writer.abort_all();
        drop(inbox);
        let receiving = async {
            match &mut receiver {
                Some(process) => process.wait(AGENT_PATIENCE).await,
                None => None,
            }
        };
        let (status, receivers) = tokio::join!(sender.wait(AGENT_PATIENCE), receiving);
        let complaints = sender.complaints();
        let (sender, host) = (&route.source_host.name, &route.host.name);
        let is_well = |status: &std::process::ExitStatus| status.success();
        let error = match result {
            Ok(_) if !status.as_ref().is_some_and(is_well) => {
                return Err(ended_oddly(sender.clone()));
            }
            Ok(_) if !receivers.as_ref().is_some_and(is_well) => {
                return Err(ended_oddly(host.clone()));
            }
            Ok(end) => return Ok(end),
            Err(Broken::NotStarted(error)) => return Err(error),
            Err(Broken::Session(error)) => error,
        };
        let exit = status.and_then(|status| status.code());
        let explained = launch::explain(sender, &error, exit, &complaints);
        let EngineError::Session(failure) = &explained else { return Err(explained) };
        if failure.code != FailureCode::Disconnected {
            return Err(explained);
        }
        // The sending agent lost the other one, of whose end this end may know more.
        let mut cause = failure.text().to_owned();
        if let Some(process) = receiver.filter(|_| !receivers.as_ref().is_some_and(is_well)) {
            let (exit, complaints) = (receivers.and_then(|it| it.code()), process.complaints());
            let lost = ControlError::Ended.into();
            let explained = launch::explain(host, &lost, exit, &complaints);
            if matches!(explained, EngineError::Disconnected { .. }) && !complaints.is_empty() {
                return Err(explained);
            }
        }
        if let Some(rest) = cause.strip_prefix(&format!("{host}: ")) {
            cause = rest.to_owned();
        }
        Err(EngineError::Disconnected { host: host.clone(), cause })
    }
}

/// Copies a stream to its end, and ends the other one with it. If nobody takes it any more, the rest is
/// read all the same, so that whoever writes it can end.
async fn carry_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let Ok(len @ 1..) = from.read(&mut buffer).await else { return to.shutdown().await };
        if to.write_all(buffer.get(..len).unwrap_or_default()).await.is_err() {
            drop(to);
            return copy(&mut from, &mut sink()).await.map(drop);
        }
    }
}

/// Names and addresses under which the receiving host is known here.
async fn known_addresses(receiver: &Launcher<'_>) -> Vec<String> {
    let Some(resolved) = receiver.resolved_host().await else { return Vec::new() };
    let name = resolved.host;
    let found = addresses_of(std::slice::from_ref(&name)).await;
    let found = found.iter().map(|it| it.ip().to_string()).filter(|it| *it != name);
    let mut addresses: Vec<String> = [name.clone()].into_iter().chain(found).collect();
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

/// How much is carried at once, in bytes.
const BUFFER_LEN: usize = 64 << 10;
