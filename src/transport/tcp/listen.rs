//! The end that listens: strangers knock, and none of them can hurt the session (R8).
//!
//! A connection that has not proved itself gets three seconds, a few kilobytes and no memory of
//! consequence. There are at most 64 of them; when one more comes, a random one is dropped, so that
//! whoever fills the places loses them again, and the peer, who tries again, gets one. Nothing about
//! them is logged: they are counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::rand;
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::handshake::Register;
use super::{Channel, ChannelConfig, handshake, socket};
use crate::protocol::message::SocketOptions;
use crate::transport::TransportError;

/// A socket that data channels are accepted on.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    port: u16,
    failures: Arc<AtomicU64>,
}

impl Listener {
    /// Listens on a port of the range, or on any; on loopback only if that is all that is needed.
    ///
    /// # Errors
    ///
    /// [`TransportError::NoPort`] if all ports of the range are taken.
    pub fn bind(
        port_range: Option<(u16, u16)>,
        loopback: bool,
        options: &SocketOptions,
    ) -> Result<Self, TransportError> {
        let socket = socket::listen(port_range, loopback, options)?;
        let address = socket.local_addr().map_err(TransportError::io("listen on a port"))?;
        Ok(Self { socket, port: address.port(), failures: Arc::default() })
    }

    /// The port that the peer has to dial.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections came that were not our peer's, or failed; it goes on counting while the
    /// listener runs.
    pub fn failures(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.failures)
    }

    /// Accepts channels until nobody takes them out of `out` any more.
    ///
    /// May be dropped at any time, which closes the socket and ends all handshakes under way.
    ///
    /// # Errors
    ///
    /// Only if `config` has no usable identity. A stranger never ends this.
    pub async fn run(
        self,
        config: ChannelConfig,
        out: flume::Sender<Channel>,
    ) -> Result<(), TransportError> {
        let tls = if config.encrypt {
            Some(config.identity.server_config(&config.peer_certificate)?)
        } else {
            None
        };
        let register = Register::new(config.keys, config.channels);
        let door = Door { tls, register, max_payload: config.max_payload };
        let mut guests = Guests::new(door, self.failures);
        while !out.is_disconnected() {
            tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, peer)) => guests.welcome(stream, peer),
                    // No file descriptors left, or the peer is gone already: both pass.
                    Err(_) => sleep(BACK_OFF).await,
                },
                Some(channel) = guests.next() => guests.hand_over(channel, &out),
                // Nothing wakes this loop when the other end of `out` is dropped.
                () = sleep(GLANCE) => {}
            }
        }
        Ok(())
    }
}

/// Everything that a handshake needs.
struct Door {
    tls: Option<Arc<ServerConfig>>,
    register: Register,
    max_payload: usize,
}

impl Door {
    async fn open(
        self: Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
    ) -> Result<Channel, TransportError> {
        socket::tune(&SockRef::from(&stream))?;
        let shaking = handshake::accept(&mut stream, self.tls.clone(), &self.register);
        let shaken = timeout(PATIENCE, shaking).await;
        let too_late = |_| Err(TransportError::TimedOut(peer.to_string()));
        let (slot, (writer, reader)) = shaken.unwrap_or_else(too_late)?;
        Ok(Channel { slot, peer, stream, writer, reader, max_payload: self.max_payload })
    }
}

/// The connections that have not proved anything yet, and the channels that wait to be taken.
///
/// Dropping this closes them all.
struct Guests {
    door: Arc<Door>,
    strangers: JoinSet<Result<Channel, TransportError>>,
    handles: Vec<AbortHandle>,
    waiting: JoinSet<()>,
    failures: Arc<AtomicU64>,
}

impl Guests {
    fn new(door: Door, failures: Arc<AtomicU64>) -> Self {
        let (strangers, waiting) = (JoinSet::new(), JoinSet::new());
        Self { door: Arc::new(door), strangers, handles: Vec::new(), waiting, failures }
    }

    /// Begins a handshake, in place of another one if there are too many.
    fn welcome(&mut self, stream: TcpStream, peer: SocketAddr) {
        if self.handles.len() >= MAX_STRANGERS {
            let victim = random_below(self.handles.len());
            self.handles.swap_remove(victim).abort();
        }
        let handle = self.strangers.spawn(Arc::clone(&self.door).open(stream, peer));
        self.handles.push(handle);
    }

    /// Waits for a handshake to end. `None` if there is none, or it failed.
    async fn next(&mut self) -> Option<Channel> {
        loop {
            let ended: Result<(Id, _), JoinError> = self.strangers.join_next_with_id().await?;
            let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
            self.handles.retain(|handle| handle.id() != id);
            if let Ok((_, Ok(channel))) = ended {
                return Some(channel);
            }
            self.failures.fetch_add(1, Ordering::Relaxed);
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

/// How many connections may be unproved at a time.
const MAX_STRANGERS: usize = 64;

/// How long each of them may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long to wait after a connection could not be accepted.
const BACK_OFF: Duration = Duration::from_millis(50);

/// How often to look whether channels are still wanted.
const GLANCE: Duration = Duration::from_secs(1);
