//! The end that dials: all of the peer's addresses, one shortly after the other, and the first that
//! turns out to be the peer wins.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::byte_stream::ByteStream;
use super::handshake::Protection;
use super::{Channel, ChannelConfig, handshake, socket};
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::message::Carrier;
use crate::transport::{TransportError, quic};

/// Connects one data channel.
///
/// An address wins when the peer behind it has proved who it is, since something else may listen
/// there. May be dropped at any time; but the generation may be used up then.
///
/// # Errors
///
/// The most telling of all attempts' errors.
pub async fn dial(
    carrier: Carrier,
    addresses: &[SocketAddr],
    slot: ChannelSlot,
    config: &ChannelConfig,
) -> Result<Channel, TransportError> {
    let tls = if config.encrypt || carrier == Carrier::Quic {
        Some(config.identity.client_config(&config.peer_certificate)?)
    } else {
        None
    };
    let attempts = Attempts {
        waiting: addresses.iter().copied().collect(),
        running: JoinSet::new(),
        dialler: Dialler { carrier, tls, config: config.clone(), slot },
    };
    let names = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let first = timeout(TOTAL, attempts.first()).await;
    first.unwrap_or(Err(TransportError::TimedOut(names)))
}

/// Makes a data channel of a byte stream that leads to the peer, and that ssh protects.
///
/// # Errors
///
/// If the peer does not prove itself, or does not answer.
pub async fn dial_on(
    mut stream: ByteStream,
    peer: &str,
    slot: ChannelSlot,
    config: &ChannelConfig,
) -> Result<Channel, TransportError> {
    let proving = handshake::dial(&mut stream, Protection::Challenge, &config.keys, slot);
    let proven = timeout(ATTEMPT, proving).await;
    let too_late = |_| Err(TransportError::TimedOut(peer.to_owned()));
    up(stream, proven.unwrap_or_else(too_late)?, peer.to_owned(), slot, config).await
}

/// The last step: a channel that carries as much as a path must.
async fn up(
    mut stream: ByteStream,
    mut halves: handshake::Halves,
    peer: String,
    slot: ChannelSlot,
    config: &ChannelConfig,
) -> Result<Channel, TransportError> {
    handshake::probe(&mut stream, &mut halves).await?;
    let (writer, reader) = halves;
    Ok(Channel { slot, peer, stream, writer, reader, max_payload: config.max_payload })
}

/// Attempts under way. Dropping this ends them.
struct Attempts {
    waiting: VecDeque<SocketAddr>,
    running: JoinSet<Result<Channel, TransportError>>,
    dialler: Dialler,
}

impl Attempts {
    /// Begins one attempt after the other, sooner if one failed, until one succeeds.
    async fn first(mut self) -> Result<Channel, TransportError> {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "the peer gave no address");
        let mut worst = TransportError::Io { operation: "dial the peer", cause };
        self.start_next();
        while !self.running.is_empty() {
            tokio::select! {
                Some(result) = self.running.join_next() => {
                    match result.unwrap_or_else(lost) {
                        Ok(channel) => return Ok(channel),
                        Err(error) if rank(&error) >= rank(&worst) => worst = error,
                        Err(_) => {}
                    }
                    self.start_next();
                }
                () = sleep(STAGGER), if !self.waiting.is_empty() => self.start_next(),
            }
        }
        Err(worst)
    }

    fn start_next(&mut self) {
        if let Some(address) = self.waiting.pop_front() {
            self.running.spawn(self.dialler.clone().connect(address));
        }
    }
}

/// What every attempt needs.
#[derive(Clone)]
struct Dialler {
    carrier: Carrier,
    tls: Option<Arc<ClientConfig>>,
    config: ChannelConfig,
    slot: ChannelSlot,
}

impl Dialler {
    async fn connect(self, peer: SocketAddr) -> Result<Channel, TransportError> {
        let (name, slot, config) = (peer.to_string(), self.slot, self.config.clone());
        let proven = timeout(ATTEMPT, self.prove(peer)).await;
        let too_late = |_| Err(TransportError::TimedOut(name.clone()));
        let (stream, halves) = proven.unwrap_or_else(too_late)?;
        up(stream, halves, name, slot, &config).await
    }

    async fn prove(
        self,
        peer: SocketAddr,
    ) -> Result<(ByteStream, handshake::Halves), TransportError> {
        let sockets = &self.config.sockets;
        let (mut stream, protection) = match (self.carrier, self.tls) {
            (Carrier::Quic, Some(tls)) => {
                let stream = quic::connect(peer, &tls, sockets, self.config.channels).await?;
                let protection = Protection::Bound(stream.binding()?);
                (ByteStream::Quic(stream), protection)
            }
            (_, tls) => {
                let protection = tls.map_or(Protection::Challenge, Protection::Tls);
                (ByteStream::Tcp(socket::connect(peer, sockets).await?), protection)
            }
        };
        let proving = handshake::dial(&mut stream, protection, &self.config.keys, self.slot);
        let halves = proving.await?;
        Ok((stream, halves))
    }
}

fn lost(error: JoinError) -> Result<Channel, TransportError> {
    Err(TransportError::Io { operation: "dial the peer", cause: io::Error::other(error) })
}

/// How far an attempt came: the farther, the more its error tells.
fn rank(error: &TransportError) -> u8 {
    match error {
        TransportError::Io { .. } => 0,
        TransportError::TimedOut(_) => 1,
        TransportError::Closed => 2,
        TransportError::Tls(_) => 3,
        TransportError::NoBulk => 5,
        _ => 4,
    }
}

/// How long one address has the line for itself.
const STAGGER: Duration = Duration::from_millis(250);

/// How long one address may take up to the proofs.
const ATTEMPT: Duration = Duration::from_secs(3);

/// How long all addresses may take.
const TOTAL: Duration = Duration::from_secs(8);
