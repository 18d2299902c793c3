//! The end that listens: strangers knock, and none of them can hurt the session (R8).
//!
//! A connection that has not proved itself gets three seconds, a few kilobytes and no memory of
//! consequence. There are at most 64 of them for TCP and for QUIC; when one more comes, a random one of
//! its kind is dropped, so that whoever fills the places loses them again, and the peer, who tries again,
//! gets one. What comes inside ssh has places of its own, which no stranger takes. Nothing about them is
//! logged: they are counted.

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::rand;
use quinn::{Endpoint, Incoming};
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::byte_stream::ByteStream;
use super::handshake::{Halves, Protection, Register};
use super::{Channel, ChannelConfig, handshake, socket};
use crate::protocol::handshake::ChannelSlot;
use crate::transport::join::Meeting;
use crate::transport::tunnel::Tunnel;
use crate::transport::{TransportError, quic};

/// Which ways an end is open to the other.
#[derive(Debug, Default)]
pub struct Openings {
    pub tcp: bool,
    pub quic: bool,
    /// Where further processes of this host join.
    pub meeting: Option<Meeting>,
    /// The control channel, for streams inside it.
    pub tunnel: Option<Tunnel>,
}

/// Where data channels are accepted.
#[derive(Debug)]
pub struct Listener {
    tcp: Option<TcpListener>,
    quic: Option<Endpoint>,
    meeting: Option<Meeting>,
    tunnel: Option<Tunnel>,
    tls: Option<Arc<ServerConfig>>,
    config: ChannelConfig,
    refusal: Option<TransportError>,
    failures: Arc<AtomicU64>,
}

impl Listener {
    /// Listens on a port of the range, or on any; on loopback only if that is all that is needed.
    /// UDP has the number of TCP, if that is free. Ports that are all taken are no error here: other
    /// ways may be open. [`Self::refusal`] tells of them.
    ///
    /// # Errors
    ///
    /// If `config` has no usable identity, or asks for what this system cannot do.
    pub fn bind(
        openings: Openings,
        port_range: Option<(u16, u16)>,
        loopback: bool,
        config: ChannelConfig,
    ) -> Result<Self, TransportError> {
        let tls = config.identity.server_config(&config.peer_certificate)?;
        let mut refusal = None;
        let tcp = if openings.tcp {
            let socket = socket::listen(port_range, loopback, &config.sockets);
            unless_taken(socket, &mut refusal)?
        } else {
            None
        };
        let quic = if openings.quic {
            let taken = tcp.as_ref().and_then(port);
            let (sockets, channels) = (&config.sockets, config.channels);
            let endpoint = quic::listen(&tls, taken, port_range, loopback, sockets, channels);
            unless_taken(endpoint, &mut refusal)?
        } else {
            None
        };
        let Openings { meeting, tunnel, .. } = openings;
        let tls = config.encrypt.then_some(tls);
        let failures = Arc::default();
        Ok(Self { tcp, quic, meeting, tunnel, tls, config, refusal, failures })
    }

    /// Why it has no port for something that it should listen for.
    pub fn refusal(&self) -> Option<&TransportError> {
        self.refusal.as_ref()
    }

    /// The TCP port that the peer has to dial; 0 if there is none.
    pub fn port(&self) -> u16 {
        self.tcp.as_ref().and_then(port).unwrap_or(0)
    }

    /// The UDP port; 0 if there is none.
    pub fn udp_port(&self) -> u16 {
        let address = self.quic.as_ref().and_then(|endpoint| endpoint.local_addr().ok());
        address.map_or(0, |address| address.port())
    }

    /// The name of the meeting; empty if there is none.
    pub fn meeting(&self) -> Vec<u8> {
        self.meeting.as_ref().map(|meeting| meeting.name().to_vec()).unwrap_or_default()
    }

    /// How many connections came that were not our peer's, or failed; it goes on counting while the
    /// listener runs.
    pub fn failures(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.failures)
    }

    /// Accepts channels until nobody takes them out of `out` any more. A stranger never ends this.
    ///
    /// May be dropped at any time, which closes the sockets and ends all handshakes under way.
    pub async fn run(self, out: flume::Sender<Channel>) {
        let register = Register::new(self.config.keys.clone(), self.config.channels);
        let max_payload = self.config.max_payload;
        let door = Door { tls: self.tls.clone(), register, max_payload };
        let mut guests = Guests::new(door, Arc::clone(&self.failures));
        while !out.is_disconnected() {
            tokio::select! {
                arrival = self.next() => match arrival {
                    Some(arrival) => guests.welcome(arrival),
                    // No file descriptors left, or the peer is gone already: both pass.
                    None => sleep(BACK_OFF).await,
                },
                arrived = guests.next() => {
                    if let Some(channel) = arrived {
                        guests.hand_over(channel, &out);
                    }
                }
                // Nothing wakes this loop when the other end of `out` is dropped.
                () = sleep(GLANCE) => {}
            }
        }
    }

    /// Waits for the next connection, by whichever way. `None` if it could not be taken.
    async fn next(&self) -> Option<Arrival> {
        let tcp = async {
            match &self.tcp {
                Some(socket) => {
                    let (stream, peer) = socket.accept().await.ok()?;
                    Some(Arrival::Stream(ByteStream::Tcp(stream), shown(peer)))
                }
                None => pending().await,
            }
        };
        let quic = async {
            match &self.quic {
                Some(endpoint) => endpoint.accept().await.map(Arrival::Quic),
                None => pending().await,
            }
        };
        let joined = async {
            match &self.meeting {
                Some(meeting) => {
                    let stream = ByteStream::Unix(meeting.accept().await.ok()?);
                    Some(Arrival::Stream(stream, "a further login".to_owned()))
                }
                None => pending().await,
            }
        };
        let tunnelled = async {
            match &self.tunnel {
                Some(tunnel) => {
                    let stream = ByteStream::Tunnel(tunnel.accept().await);
                    Some(Arrival::Stream(stream, "the control channel".to_owned()))
                }
                None => pending().await,
            }
        };
        tokio::select! {
            arrival = tcp => arrival,
            arrival = quic => arrival,
            arrival = joined => arrival,
            arrival = tunnelled => arrival,
        }
    }
}

/// What was bound; or nothing, and the reason in `refusal`, where all ports are taken.
fn unless_taken<T>(
    bound: Result<T, TransportError>,
    refusal: &mut Option<TransportError>,
) -> Result<Option<T>, TransportError> {
    match bound {
        Ok(bound) => Ok(Some(bound)),
        Err(error @ TransportError::NoPort { .. }) => {
            *refusal = Some(error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn port(socket: &TcpListener) -> Option<u16> {
    socket.local_addr().ok().map(|address| address.port())
}

/// As people know it: an IPv4 address of a socket for both versions is one of IPv4.
fn shown(peer: SocketAddr) -> String {
    SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string()
}

/// Somebody who has proved nothing yet.
enum Arrival {
    Stream(ByteStream, String),
    Quic(Incoming),
}

/// Everything that a handshake needs.
struct Door {
    tls: Option<Arc<ServerConfig>>,
    register: Register,
    max_payload: usize,
}

/// The peer, whose path is not known to carry anything large yet.
struct Proven {
    stream: ByteStream,
    peer: String,
    slot: ChannelSlot,
    halves: Halves,
}

impl Proven {
    async fn probed(mut self, max_payload: usize) -> Result<Channel, TransportError> {
        handshake::answer_probe(&mut self.stream, &mut self.halves).await?;
        let Self { stream, peer, slot, halves: (writer, reader) } = self;
        Ok(Channel { slot, peer, stream, writer, reader, max_payload })
    }
}

impl Door {
    async fn open(self: Arc<Self>, arrival: Arrival) -> Result<Proven, TransportError> {
        let too_late = |_| Err(TransportError::TimedOut("a stranger".to_owned()));
        timeout(PATIENCE, self.prove(arrival)).await.unwrap_or_else(too_late)
    }

    async fn prove(&self, arrival: Arrival) -> Result<Proven, TransportError> {
        let (mut stream, peer, protection) = match arrival {
            Arrival::Stream(stream, peer) => {
                let protection = match (&stream, &self.tls) {
                    (ByteStream::Tcp(_), Some(tls)) => Protection::Tls(Arc::clone(tls)),
                    _ => Protection::Challenge,
                };
                (stream, peer, protection)
            }
            Arrival::Quic(incoming) => {
                let peer = shown(incoming.remote_address());
                let stream = quic::accept(incoming).await?;
                let binding = stream.binding()?;
                (ByteStream::Quic(stream), peer, Protection::Bound(binding))
            }
        };
        if let ByteStream::Tcp(stream) = &stream {
            socket::tune(&SockRef::from(stream))?;
        }
        let shaking = handshake::accept(&mut stream, protection, &self.register);
        let (slot, halves) = shaking.await?;
        Ok(Proven { stream, peer, slot, halves })
    }
}

/// The connections of one kind that have not proved anything yet. Dropping this closes them.
#[derive(Default)]
struct Strangers {
    proving: JoinSet<Result<Proven, TransportError>>,
    handles: Vec<AbortHandle>,
}

impl Strangers {
    /// Begins a handshake, in place of another one if there are too many.
    fn welcome(&mut self, door: Arc<Door>, arrival: Arrival) {
        if self.handles.len() >= MAX_STRANGERS {
            let victim = random_below(self.handles.len());
            self.handles.swap_remove(victim).abort();
        }
        self.handles.push(self.proving.spawn(door.open(arrival)));
    }

    fn are_crowded(&self) -> bool {
        self.handles.len() >= MAX_STRANGERS / 2
    }

    /// Waits for a handshake to end.
    async fn next(&mut self) -> Option<Proven> {
        let ended = match self.proving.join_next_with_id().await {
            Some(ended) => ended,
            None => pending().await,
        };
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        self.handles.retain(|handle| handle.id() != id);
        ended.ok()?.1.ok()
    }
}

/// The connections that have not proved anything yet, and the channels that wait to be taken.
///
/// Dropping this closes them all.
struct Guests {
    door: Arc<Door>,
    tcp: Strangers,
    quic: Strangers,
    /// What comes inside ssh, or from a process of the same user: never a stranger's victim.
    within: JoinSet<Result<Proven, TransportError>>,
    probing: JoinSet<Result<Channel, TransportError>>,
    /// Of each channel, the newest generation that was probed.
    newest: HashMap<u16, (u32, AbortHandle)>,
    waiting: JoinSet<()>,
    failures: Arc<AtomicU64>,
}

impl Guests {
    fn new(door: Door, failures: Arc<AtomicU64>) -> Self {
        Self {
            door: Arc::new(door),
            tcp: Strangers::default(),
            quic: Strangers::default(),
            within: JoinSet::new(),
            probing: JoinSet::new(),
            newest: HashMap::new(),
            waiting: JoinSet::new(),
            failures,
        }
    }

    /// Begins a handshake.
    fn welcome(&mut self, arrival: Arrival) {
        let door = Arc::clone(&self.door);
        match arrival {
            // An address that is not proved costs a stranger nothing: it has to answer first.
            Arrival::Quic(incoming)
                if self.quic.are_crowded() && !incoming.remote_address_validated() =>
            {
                let _ = incoming.retry();
            }
            Arrival::Quic(_) => self.quic.welcome(door, arrival),
            Arrival::Stream(ByteStream::Tcp(_), _) => self.tcp.welcome(door, arrival),
            // The peer alone gets here. Too many are its own fault, and the newest goes.
            Arrival::Stream(..) if self.within.len() >= MAX_WITHIN => {}
            Arrival::Stream(..) => {
                self.within.spawn(door.open(arrival));
            }
        }
    }

    /// Waits for a handshake to end. `None` if it failed, or has another step to go.
    async fn next(&mut self) -> Option<Channel> {
        let proven = tokio::select! {
            proven = self.tcp.next() => proven,
            proven = self.quic.next() => proven,
            Some(ended) = self.within.join_next() => ended.ok().and_then(Result::ok),
            Some(ended) = self.probing.join_next() => match ended {
                Ok(Ok(channel)) => return Some(channel),
                _ => None,
            },
        };
        match proven {
            Some(proven) => self.probe(proven),
            None => {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        None
    }

    /// Begins a probe. A newer connection of a channel replaces the one before it, however far that has
    /// come (SEC-5): else a peer could hold as many as it likes.
    fn probe(&mut self, proven: Proven) {
        let ChannelSlot { channel, generation } = proven.slot;
        if self.newest.get(&channel).is_some_and(|(newest, _)| *newest > generation) {
            return;
        }
        let probing = self.probing.spawn(proven.probed(self.door.max_payload));
        if let Some((_, older)) = self.newest.insert(channel, (generation, probing)) {
            older.abort();
        }
    }

    /// Gives a channel to the engine, and does not wait here if it is busy.
    fn hand_over(&mut self, channel: Channel, out: &flume::Sender<Channel>) {
        while self.waiting.try_join_next().is_some() {}
        if let Err(flume::TrySendError::Full(channel)) = out.try_send(channel) {
            let out = out.clone();
            self.waiting.spawn(async move {
                // If the engine is gone, nobody misses the channel.
                let _ = out.send_async(channel).await;
            });
        }
    }
}

fn random_below(len: usize) -> usize {
    let mut bytes = [0; 4];
    // Without random numbers it is the one that has been here longest.
    let _ = rand::fill(&mut bytes);
    usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(0).checked_rem(len).unwrap_or(0)
}

/// How many connections of a kind may be unproved at a time.
const MAX_STRANGERS: usize = 64;

/// The same for those that come inside ssh: as many as there may be streams of the tunnel
/// in any session (PATH-8).
const MAX_WITHIN: usize = 1024;

/// How long each of them may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long to wait after a connection could not be accepted.
const BACK_OFF: Duration = Duration::from_millis(50);

/// How often to look whether channels are still wanted.
const GLANCE: Duration = Duration::from_secs(1);
