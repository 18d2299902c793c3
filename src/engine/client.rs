//! The end that the user started: logs in, starts the agent, opens the data channels, and plays its
//! role until the end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncRead;
use tokio::task::JoinSet;

use super::control::{Aside, ControlError, Inbox, Outbox, Word, outbox_with};
use super::endpoint::{self, AnyDestination, AnySource};
use super::event::Event;
use super::job::{At, Direction, Host, Job, Place, Reach, Transport};
use super::launch::{self, AgentGreeting, Further, Launched, Launcher};
use super::measure::{Finding, Measurement};
use super::reach::client::{Known, own_addresses};
use super::reach::lanes::Lanes;
use super::receive::ReceiverEnd;
use super::send::SenderEnd;
use super::session::{Observer, SessionError};
use super::{EngineError, here, inventory, measure, reach, receive};
use crate::protocol::handshake::{self, ChannelKeys, transcript};
use crate::protocol::manifest::{Escaped, Totals};
use crate::protocol::message::{Accept, Deletions, Message, Open, Options, Secret, Task};
use crate::protocol::session::{End, Role};
use crate::protocol::tunnel;
use crate::storage::local::is_confined;
use crate::transport::channel::{Channel, ChannelConfig};
use crate::transport::quic::has_congestion;
use crate::transport::tls::Identity;
use crate::transport::tunnel::Tunnel;

/// How one session ended.
#[derive(Clone, Copy, Debug)]
pub struct SessionEnd {
    pub totals: Totals,
    pub durable: bool,
    pub deletions: Deletions,
}

/// How far a session got before it failed decides whether it is worth another try.
#[derive(Debug)]
pub struct Failed {
    pub error: EngineError,
    /// The agent had answered.
    pub established: bool,
}

/// Runs one session of a job.
pub async fn run_session(job: &Job, observer: &Observer) -> Result<SessionEnd, Failed> {
    let early = |error| Failed { error, established: false };
    let plan = Plan::new(job, observer).await.map_err(early)?;
    let (host, me) = (plan.host.as_ref(), plan.end());
    let begun = Instant::now();
    let launched = Launcher { launch: &job.launch, host, me, observer }.launch().await;
    let launched = launched.map_err(early)?;
    let Launched { mut process, stdin, inbox, greeting, further } = launched;
    if let LocalEnd::Measurement(_) = plan.local {
        let found = Finding::login(&job.launch.ssh, begun.elapsed());
        observer.tell(Event::Found(Box::new(found)));
        observer.tell(Event::Found(Box::new(Finding::agent(&greeting.hello))));
    }
    let tunnel = Tunnel::default();
    let (outbox, writing) = outbox_with(stdin, Some(tunnel.clone()));
    let mut writer = JoinSet::new();
    writer.spawn(writing);
    let resolved = further.as_ref().and_then(|further| further.resolved.as_ref());
    let addresses: Vec<String> = resolved.map(|it| it.host.clone()).into_iter().collect();
    let mut session = Session {
        plan,
        inbox,
        outbox,
        further,
        tunnel,
        observer: observer.clone(),
        established: false,
    };
    let playing = session.play(greeting, &addresses, observer.asked_to_stop());
    let result = Box::pin(playing).await;
    let Session { plan, inbox, outbox, established, .. } = session;
    drop(outbox);
    // A peer that does not read any more must not keep us: it is told if it can be.
    let _ = tokio::time::timeout(LAST_WORDS, writer.join_next()).await;
    writer.abort_all();
    drop(inbox);
    let status = process.wait(AGENT_PATIENCE).await;
    let failed = |error| Failed { error, established };
    match result {
        Ok(end) if status.is_some_and(|status| status.success()) => Ok(end),
        Ok(_) => Err(failed(ended_oddly(plan.host_name()))),
        Err(error) => {
            let exit = status.and_then(|status| status.code());
            Err(failed(launch::explain(&plan.host_name(), &error, exit, &process.complaints())))
        }
    }
}

/// Whether QUIC knows the congestion control that is asked for, if it is to be QUIC.
pub fn check_congestion(options: &Options, reach: &Reach) -> Result<(), EngineError> {
    let congestion = options.sockets.congestion.as_deref().unwrap_or("bbr");
    if reach.transport != Transport::Quic || has_congestion(congestion) {
        return Ok(());
    }
    Err(EngineError::Usage(format!(
        "QUIC has no congestion control named {congestion:?}: it has bbr, cubic and reno"
    )))
}

/// An agent's process that failed after its session had not.
pub fn ended_oddly(host: String) -> EngineError {
    let cause = "it ended without saying that all is well; run the same command again to check";
    EngineError::Disconnected { host, cause: cause.to_owned() }
}

/// What the job comes to for this end.
#[derive(Debug)]
pub struct Plan {
    pub host: Option<Host>,
    /// The source, if this end sends; the destination, if it receives.
    pub local: LocalEnd,
    pub task: Task,
    pub job: [u8; 16],
    pub options: Options,
    /// What of the sources is meant, for an agent that sends.
    pub paths: Option<Vec<Vec<u8>>>,
    pub reach: Reach,
    /// Where the user calls this host by a name, because the user is at another one.
    pub relayed: Option<Relayed>,
}

/// This host, for a user who is at another one and carries the control channel.
#[derive(Clone, Debug)]
pub struct Relayed {
    pub name: String,
    /// Where it was reached, as text.
    pub addresses: Vec<String>,
    /// On which ports it listens, if the other one dials.
    pub ports: Option<(u16, u16)>,
}

#[derive(Debug)]
pub enum LocalEnd {
    Source(AnySource),
    Destination(AnyDestination),
    /// Nothing is received.
    Inventory {
        hash: bool,
    },
    /// Likewise; channels are measured.
    Measurement(Measurement),
}

impl Plan {
    async fn new(job: &Job, observer: &Observer) -> Result<Self, EngineError> {
        let mut options = job.config.to_options(false);
        options.select.has_paths = job.paths.is_some();
        if endpoint::is_involved(&job.direction) {
            let needs_large_parts = match &job.direction {
                Direction::Pull { destination, .. } => endpoint::needs_large_parts(destination),
                _ => false,
            };
            endpoint::fit(&mut options, needs_large_parts, observer);
        }
        let (host, local, task, names) = match &job.direction {
            Direction::Push { sources, destination } => {
                options.check().map_err(|text| EngineError::Usage(text.to_owned()))?;
                let source = AnySource::open(sources, &options, job, observer).await?;
                source.fit(&mut options);
                let (host, path) = match destination {
                    Place::Local(path) => (None, absolute(path).as_os_str().as_bytes().to_vec()),
                    Place::Remote { host, path } => (Some(host.clone()), path.clone()),
                };
                let mut names = endpoint::names_of_sources(sources);
                names.push(path.clone());
                (host, LocalEnd::Source(source), Task::Receive { destination: path }, names)
            }
            Direction::Pull { sources, host, destination } => {
                let sources: Vec<Vec<u8>> = match host {
                    Some(_) => sources.clone(),
                    None => sources.iter().map(|path| absolute_bytes(path)).collect(),
                };
                let from = host.as_ref().map_or("", |host| &host.name).as_bytes().to_vec();
                let names = sources.iter().cloned();
                let names = names.chain([from, endpoint::name_of_site(destination)]).collect();
                let local = AnyDestination::open(destination, job, observer).await?;
                local.fit(&mut options);
                let local = LocalEnd::Destination(local);
                (host.clone(), local, Task::Send { sources }, names)
            }
            Direction::Inventory { sources, at, hash } => {
                let (local, sources) = (LocalEnd::Inventory { hash: *hash }, sources.clone());
                let host = match at {
                    At::Host(host) => Some(host.clone()),
                    At::Here | At::Store(_) => None,
                };
                (host, local, Task::Send { sources }, Vec::new())
            }
            Direction::Measure { host, directory, measurement } => {
                measurement.adjust(&mut options);
                let task = Task::Measure { directory: directory.clone() };
                (host.clone(), LocalEnd::Measurement(measurement.clone()), task, Vec::new())
            }
            Direction::Copy { .. } | Direction::Between { .. } | Direction::Clean(_) => {
                return Err(EngineError::Usage("this end neither sends nor receives".to_owned()));
            }
        };
        options.loopback = host.is_none();
        options.listen = job.config.reach.listen(host.is_none());
        options.dry_run |= matches!(local, LocalEnd::Inventory { .. });
        options.check().map_err(|text| EngineError::Usage(text.to_owned()))?;
        check_congestion(&options, &job.config.reach)?;
        let paths = job.paths.clone().filter(|_| matches!(task, Task::Send { .. }));
        let reach = job.config.reach.clone();
        let job = job_name(&names);
        Ok(Self { host, local, task, job, options, paths, reach, relayed: None })
    }

    fn role(&self) -> Role {
        match self.local {
            LocalEnd::Source(_) | LocalEnd::Measurement(_) => Role::Sender,
            LocalEnd::Destination(_) | LocalEnd::Inventory { .. } => Role::Receiver,
        }
    }

    fn end(&self) -> End {
        match self.local {
            LocalEnd::Measurement(_) => End::Examiner,
            _ => End::Client(self.role()),
        }
    }

    fn host_name(&self) -> String {
        self.host.as_ref().map_or_else(|| "this machine".to_owned(), |host| host.name.clone())
    }
}

/// A session in the making, and under way.
pub struct Session<R> {
    pub plan: Plan,
    pub inbox: Inbox<R>,
    pub outbox: Outbox,
    /// How to log in once more.
    pub further: Option<Further>,
    pub tunnel: Tunnel,
    pub observer: Observer,
    pub established: bool,
}

impl<R: AsyncRead + Unpin + Send> Session<R> {
    /// Runs the session to its end, or until this end is to stop, and tells the agent if it fails.
    /// `addresses`: names and addresses under which this end knows the agent's host.
    pub async fn play(
        &mut self,
        greeting: AgentGreeting,
        addresses: &[String],
        stopped: impl Future<Output = ()>,
    ) -> Result<SessionEnd, SessionError> {
        // A receiver stops by itself, because it has something to put in order first.
        let grace = match self.plan.role() {
            Role::Sender => Duration::ZERO,
            Role::Receiver => receive::CHECKPOINT_PATIENCE + Duration::from_secs(1),
        };
        let stopped = async {
            stopped.await;
            tokio::time::sleep(grace).await;
        };
        let result = tokio::select! {
            result = self.run(greeting, addresses) => result,
            () = stopped => Err(SessionError::interrupted()),
        };
        if let Some(failure) = result.as_ref().err().and_then(SessionError::to_tell) {
            let _ = self.outbox.say(&Message::Abort(failure));
        }
        result
    }

    async fn run(
        &mut self,
        greeting: AgentGreeting,
        addresses: &[String],
    ) -> Result<SessionEnd, SessionError> {
        let AgentGreeting { hello: theirs, encoded: their_bytes } = greeting;
        let identity = Identity::generate().map_err(SessionError::bug)?;
        let mine = handshake::hello(here::random()?, identity.certificate().to_vec());
        let mine = Message::Hello(mine).encode().map_err(SessionError::bug)?;
        let transcript = transcript(&their_bytes, &mine);
        let channel_secret = Secret(here::random()?);
        let open = Open {
            task: self.plan.task.clone(),
            channel_secret: channel_secret.clone(),
            job: self.plan.job,
            options: self.plan.options.clone(),
        };
        self.outbox.say_encoded(mine);
        self.outbox.say(&Message::Open(Box::new(open))).map_err(SessionError::bug)?;
        let accept = accepted(&mut self.inbox, &self.plan.options).await?;
        self.established = true;
        tell_paths(&self.outbox, self.plan.paths.take())?;
        if let LocalEnd::Inventory { hash } = self.plan.local {
            let (outbox, observer) = (self.outbox.clone(), self.observer.clone());
            return inventory::run(hash, &mut self.inbox, outbox, observer).await;
        }
        let config = ChannelConfig {
            identity: Arc::new(identity),
            peer_certificate: theirs.certificate,
            keys: ChannelKeys::new(channel_secret, transcript),
            encrypt: self.plan.options.encrypt,
            sockets: self.plan.options.sockets.clone(),
            max_payload: self.plan.options.max_payload(),
            channels: self.plan.options.streams,
        };
        let known = self.known(accept, addresses).await;
        let (words, heard) = flume::bounded(MAX_WORDS);
        let streams = self.plan.options.streams;
        self.tunnel.allow(0, tunnel::window(streams));
        self.inbox.set_aside(Aside { tunnel: self.tunnel.clone(), words });
        let transfer = self.transfer(config, known, heard, theirs.max_open_entries);
        Box::pin(transfer).await
    }

    /// Where to dial, and what else there is to try.
    async fn known(&self, accept: Accept, addresses: &[String]) -> Known {
        let reach = self.plan.reach.clone();
        let is_careful = addresses.is_empty();
        let resolved = addresses_of(addresses).await;
        let node = one_of_several(&resolved, &accept.addresses);
        let hosts = self.agent_addresses(&accept, resolved).await;
        let at = |port: u16| -> Vec<SocketAddr> {
            let mut hosts = if port > 0 { hosts.clone() } else { Vec::new() };
            for host in &mut hosts {
                host.set_port(port);
            }
            hosts
        };
        let is_local = self.plan.host.is_none();
        let further = self.further.clone().filter(|_| !accept.join.is_empty());
        let own = if is_local {
            vec![Ipv4Addr::LOCALHOST.to_string()]
        } else if reach.listen_addresses.is_empty() {
            let mut own = own_addresses(&hosts.iter().map(SocketAddr::ip).collect::<Vec<_>>());
            let reached = self.plan.relayed.iter().flat_map(|it| &it.addresses);
            own.extend(reached.filter(|it| !own.contains(it)).cloned().collect::<Vec<_>>());
            own
        } else {
            let own = addresses_of(&reach.listen_addresses).await;
            own.iter().map(|address| address.ip().to_string()).collect()
        };
        Known {
            tcp: at(accept.port),
            quic: at(accept.udp_port),
            own,
            port_range: match &self.plan.relayed {
                Some(relayed) => relayed.ports,
                None => self.plan.options.port_range,
            },
            is_local,
            tunnel: self.tunnel.clone(),
            lanes: further.map(|Further { login, command, resolved }| {
                let login = match node.zip(resolved) {
                    Some((node, resolved)) => login.at(node, &resolved),
                    None => login,
                };
                Lanes::new(login, command, accept.join, is_careful)
            }),
            host: self.plan.host_name(),
            own_name: self.plan.relayed.as_ref().map(|it| it.name.clone()),
            idle: self.plan.options.dry_run,
            refusal: Escaped(accept.refusal.as_bytes()).to_string(),
            reach,
        }
    }

    /// What the user says; or what the host's name means here, and the address that ssh reached.
    async fn agent_addresses(&self, accept: &Accept, resolved: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let named = &self.plan.reach.data_addresses;
        if !named.is_empty() {
            return addresses_of(named).await;
        }
        if self.plan.host.is_none() {
            return vec![(Ipv4Addr::LOCALHOST, 0).into()];
        }
        in_order(resolved, &accept.addresses)
    }

    async fn transfer(
        &mut self,
        config: ChannelConfig,
        known: Known,
        words: flume::Receiver<Word>,
        max_open_entries: u32,
    ) -> Result<SessionEnd, SessionError> {
        let options = self.plan.options.clone();
        let (outbox, observer) = (self.outbox.clone(), self.observer.clone());
        let (says, tells) = (outbox.clone(), observer.clone());
        match &self.plan.local {
            LocalEnd::Source(source) => {
                let take = Channel::into_sender;
                let (channels, dialling) =
                    reach::client::channels(known, config, words, says, tells, take);
                let inbox = &mut self.inbox;
                let sending =
                    source.send(inbox, outbox, channels, options, max_open_entries, observer);
                let end = alongside(sending, dialling).await?;
                let SenderEnd { totals, durable, deletions } = end;
                Ok(SessionEnd { totals, durable, deletions })
            }
            LocalEnd::Destination(destination) => {
                let take = Channel::into_receiver;
                let (channels, dialling) =
                    reach::client::channels(known, config, words, says, tells, take);
                let (inbox, job) = (&mut self.inbox, self.plan.job);
                let receiving = destination
                    .clone()
                    .receive(job, inbox, outbox, channels, options, observer, None);
                let end = alongside(receiving, dialling).await?;
                let ReceiverEnd { totals, durable, deletions } = end;
                Ok(SessionEnd { totals, durable, deletions })
            }
            LocalEnd::Inventory { .. } => Err(SessionError::bug("an inventory has no channels")),
            LocalEnd::Measurement(measurement) => {
                let ways = measure::ways::Ways::new(known, config, words, outbox);
                measure::client::run(measurement, &mut self.inbox, ways, observer).await?;
                let (totals, deletions) = (Totals::default(), Deletions::default());
                Ok(SessionEnd { totals, durable: false, deletions })
            }
        }
    }
}

/// Waits for an agent's consent to these options.
pub async fn accepted<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
    options: &Options,
) -> Result<Accept, SessionError> {
    loop {
        match inbox.next().await? {
            Message::Accept(accept) if accept.options == *options => return Ok(accept),
            Message::Accept(_) => {
                return Err(SessionError::violation("the agent accepted other options (SES-6)"));
            }
            Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
            _ => {}
        }
    }
}

/// Tells an agent that sends what of the sources is meant (SEL-4).
pub fn tell_paths(outbox: &Outbox, paths: Option<Vec<Vec<u8>>>) -> Result<(), SessionError> {
    let Some(all) = paths else { return Ok(()) };
    let (mut paths, mut len) = (Vec::new(), 0);
    for path in all {
        len += path.len() + 8;
        paths.push(path);
        if len > MAX_PATHS_LEN {
            let paths = std::mem::take(&mut paths);
            outbox.say_encoded(encoded(&Message::Paths { paths, last: false })?);
            len = 0;
        }
    }
    outbox.say_encoded(encoded(&Message::Paths { paths, last: true })?);
    Ok(())
}

/// Where to dial, best first: of what the host's name means, the address that the agent says ssh
/// reached, for a name may stand for several hosts; then the others; then what else the agent says,
/// which is all that there is behind a jump host. The agent cannot have this end dial anything that
/// no other host can be (PATH-2).
fn in_order(resolved: Vec<SocketAddr>, told: &[String]) -> Vec<SocketAddr> {
    let told: Vec<IpAddr> =
        told.iter().take(MAX_TOLD).filter_map(|text| text.parse().ok()).collect();
    let is_told = |address: &SocketAddr| told.contains(&address.ip());
    let (mut addresses, others): (Vec<_>, Vec<_>) = resolved.into_iter().partition(is_told);
    addresses.extend(others);
    for address in told {
        let is_known = addresses.iter().any(|known| known.ip() == address);
        if !is_known && may_be_another_host(address) {
            addresses.push((address, 0).into());
        }
    }
    addresses
}

/// The address that ssh reached, if the host's name has several of its kind: then they may be those of
/// several hosts, and further logins have to go to this one (PATH-12).
fn one_of_several(resolved: &[SocketAddr], told: &[String]) -> Option<IpAddr> {
    let told = told.iter().take(MAX_TOLD).filter_map(|text| text.parse::<IpAddr>().ok());
    let mut known = told.filter(|told| resolved.iter().any(|address| address.ip() == *told));
    known.find(|told| {
        let kin = resolved.iter().filter(|address| address.is_ipv4() == told.is_ipv4());
        kin.count() > 1
    })
}

fn may_be_another_host(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let is_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !is_local && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

/// What names and addresses lead to, with port 0. An address keeps its scope. For a key that is
/// restricted, no name is looked up (THIRD-3).
pub async fn addresses_of(names: &[String]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for name in names {
        if is_confined() && name.parse::<IpAddr>().is_err() {
            continue;
        }
        let found = tokio::net::lookup_host((name.as_str(), 0)).await;
        for address in found.into_iter().flatten() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

fn encoded(message: &Message) -> Result<Vec<u8>, SessionError> {
    message.encode().map_err(SessionError::bug)
}

/// Runs a role beside the task that keeps its channels up, which never ends by itself.
async fn alongside<T>(
    role: impl Future<Output = Result<T, SessionError>>,
    dialling: impl Future<Output = ()>,
) -> Result<T, SessionError> {
    tokio::select! {
        result = role => result,
        () = async { dialling.await; std::future::pending().await } => {
            Err(SessionError::bug("the dialler ended"))
        }
    }
}

/// Names a job by what is copied where, so that the same command finds its journal again.
pub fn job_name(names: &[Vec<u8>]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("fastsync 1 job");
    for name in names {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
    }
    let mut job = [0; 16];
    hasher.finalize_xof().fill(&mut job);
    job
}

/// The path from the root on. A slash or a dot at its end stays, as a slash: they mean something.
pub fn absolute(path: &std::path::Path) -> PathBuf {
    let mut absolute =
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).into_os_string();
    let bytes = path.as_os_str().as_bytes();
    let means_contents = bytes == b"." || bytes.ends_with(b"/.") || bytes.ends_with(b"/");
    if means_contents && !absolute.as_bytes().ends_with(b"/") {
        absolute.push("/");
    }
    absolute.into()
}

fn absolute_bytes(path: &[u8]) -> Vec<u8> {
    let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
    absolute(path).into_os_string().as_bytes().to_vec()
}

/// How many of the addresses that an agent tells of itself are looked at.
const MAX_TOLD: usize = 2;

/// How many words about data channels may wait.
const MAX_WORDS: usize = 64;

/// How much one message says of a list of paths, in bytes: a path is at most 4,096 long.
const MAX_PATHS_LEN: usize = 512 << 10;

/// How long the last words to an agent may take to be written.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long the agent may take to end.
pub const AGENT_PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(resolved: &[&str], told: &[&str]) -> Vec<String> {
        let resolved = resolved.iter().map(|text| text.parse().unwrap()).collect();
        let told: Vec<String> = told.iter().map(|&text| text.to_owned()).collect();
        in_order(resolved, &told).iter().map(ToString::to_string).collect()
    }

    /// PATH-2: a name that stands for several hosts leads to the one that ssh reached, and a translated
    /// address comes after the one that is known to work.
    #[test]
    fn the_address_that_ssh_reached_is_dialled_first() {
        let nodes = ["192.0.2.1:0", "192.0.2.2:0"];
        assert_eq!(shown(&nodes, &["192.0.2.2"]), ["192.0.2.2:0", "192.0.2.1:0"]);
        assert_eq!(shown(&["192.0.2.1:0"], &["10.0.0.1"]), ["192.0.2.1:0", "10.0.0.1:0"]);
        assert_eq!(shown(&[], &["10.0.0.1"]), ["10.0.0.1:0"]);
    }

    /// PATH-12: both addresses of a host that has one of each kind are its own.
    #[test]
    fn further_logins_are_held_to_the_node_that_ssh_reached() {
        let node = |resolved: &[&str], told: &[&str]| {
            let resolved: Vec<SocketAddr> =
                resolved.iter().map(|text| text.parse().unwrap()).collect();
            let told: Vec<String> = told.iter().map(|&text| text.to_owned()).collect();
            one_of_several(&resolved, &told).map(|node| node.to_string())
        };
        let nodes = ["192.0.2.1:0", "192.0.2.2:0", "[2001:db8::1]:0"];
        assert_eq!(node(&nodes, &["192.0.2.2"]).as_deref(), Some("192.0.2.2"));
        assert_eq!(node(&nodes, &["2001:db8::1"]), None);
        assert_eq!(node(&nodes, &["10.0.0.1"]), None, "a translated address");
        assert_eq!(node(&nodes[1..], &["192.0.2.2"]), None);
        assert_eq!(node(&nodes, &[]), None);
    }

    /// An agent that lies has nothing on this host or its links dialled, nor many addresses at all.
    #[test]
    fn an_agent_cannot_choose_what_is_dialled() {
        let lies = ["127.0.0.1", "::1", "0.0.0.0", "fe80::1", "169.254.1.1", "224.0.0.1", "what"];
        for lie in lies {
            assert_eq!(shown(&["192.0.2.1:0"], &[lie]), ["192.0.2.1:0"], "{lie}");
        }
        assert_eq!(shown(&[], &["::ffff:127.0.0.1"]), Vec::<String>::new());
        assert_eq!(shown(&[], &["10.0.0.1", "10.0.0.2", "10.0.0.3"]).len(), 2);
        // Unless it is where ssh has been, too.
        assert_eq!(shown(&["127.0.0.1:0"], &["127.0.0.1"]), ["127.0.0.1:0"]);
        assert_eq!(shown(&["[fe80::1%2]:0"], &["fe80::1"]), ["[fe80::1%2]:0"]);
    }
}
