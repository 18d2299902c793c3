//! QUIC: one connection for each data channel, with one stream in both directions.
//!
//! In: this end's identity and the peer's certificate, as for TCP. Out: a [`QuicStream`] and what a
//! proof on it is bound to. All connections of a listener share its one UDP port; each that dials has
//! a socket of its own, so that firewalls and equal-cost paths see as many flows as with TCP.
//!
//! QUIC's own defaults are for 100 Mbit/s over 100 ms; the windows here are for what fills a path.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming,
    MtuDiscoveryConfig, RecvStream, SendStream, TokioRuntime, TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::TransportError;
use super::channel::socket::ports;
use super::tls::{EXPORTER, SERVER_NAME};
use crate::protocol::message::SocketOptions;

/// A connection with its one stream. Dropping it closes the connection and takes back what the peer
/// does not have yet.
#[derive(Debug)]
pub struct QuicStream {
    send: SendStream,
    receive: RecvStream,
    connection: Connection,
    /// Of the end that dialled: the socket lives as long as the connection.
    _endpoint: Option<Endpoint>,
}

impl QuicStream {
    /// Waits until the peer's system has all that was written before the end.
    pub async fn arrived(&mut self) {
        let _ = self.send.stopped().await;
    }

    /// What a proof on this connection is bound to.
    pub fn binding(&self) -> Result<[u8; 32], TransportError> {
        let mut binding = [0; 32];
        self.connection
            .export_keying_material(&mut binding, EXPORTER, &[])
            .map_err(|_| TransportError::Tls("the connection exports no keys".to_owned()))?;
        Ok(binding)
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.get_mut().receive), cx, buf)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.get_mut().send), cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.get_mut().send), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.get_mut().send), cx)
    }
}

/// Connects to `address`, and opens the stream.
pub(super) async fn connect(
    address: SocketAddr,
    tls: &rustls::ClientConfig,
    options: &SocketOptions,
    channels: u16,
) -> Result<QuicStream, TransportError> {
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = endpoint(bind(local, options).map_err(failed)?, None)?;
    let crypto = QuicClientConfig::try_from(tls.clone())
        .map_err(|error| TransportError::Tls(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(options, channels)));
    let connecting = endpoint
        .connect_with(config, address, SERVER_NAME)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let connection = connecting.await.map_err(|error| connection_error(error, address))?;
    let opened = connection.open_bi().await;
    let (send, receive) = opened.map_err(|error| connection_error(error, address))?;
    Ok(QuicStream { send, receive, connection, _endpoint: Some(endpoint) })
}

/// Listens on a port of the range, or on any; on `preferred` if that is free, so that there is one
/// number to open in a firewall.
pub(super) fn listen(
    tls: &rustls::ServerConfig,
    preferred: Option<u16>,
    range: Option<(u16, u16)>,
    is_loopback: bool,
    options: &SocketOptions,
    channels: u16,
) -> Result<Endpoint, TransportError> {
    let crypto = QuicServerConfig::try_from(tls.clone())
        .map_err(|error| TransportError::Tls(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(options, channels)));
    config.max_incoming(MAX_INCOMING);
    let mut cause = io::Error::from(io::ErrorKind::InvalidInput);
    for port in preferred.into_iter().chain(ports(range)) {
        match bind_any(port, is_loopback, options) {
            Ok(socket) => return endpoint(socket, Some(config)),
            Err(error) => cause = error,
        }
    }
    let (low, high) = range.unwrap_or((0, 0));
    Err(TransportError::NoPort { low, high, cause })
}

/// Takes a connection whose first packet has come, and waits for its stream.
pub(super) async fn accept(incoming: Incoming) -> Result<QuicStream, TransportError> {
    let address = incoming.remote_address();
    let failed = |error| connection_error(error, address);
    let connection = incoming.accept().map_err(failed)?.await.map_err(failed)?;
    let (send, receive) = connection.accept_bi().await.map_err(failed)?;
    Ok(QuicStream { send, receive, connection, _endpoint: None })
}

fn endpoint(
    socket: std::net::UdpSocket,
    server: Option<quinn::ServerConfig>,
) -> Result<Endpoint, TransportError> {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(MAX_DATAGRAM)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime)).map_err(failed)
}

fn bind_any(
    port: u16,
    is_loopback: bool,
    options: &SocketOptions,
) -> io::Result<std::net::UdpSocket> {
    if is_loopback {
        return bind((Ipv4Addr::LOCALHOST, port).into(), options);
    }
    // This system may have no IPv6.
    bind((Ipv6Addr::UNSPECIFIED, port).into(), options)
        .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, port).into(), options))
}

fn bind(address: SocketAddr, options: &SocketOptions) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The system gives what it allows.
    socket.set_recv_buffer_size(options.receive_buffer.unwrap_or(SOCKET_BUFFER) as usize)?;
    socket.set_send_buffer_size(options.send_buffer.unwrap_or(SOCKET_BUFFER) as usize)?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn transport(options: &SocketOptions, channels: u16) -> TransportConfig {
    let window = (ALL_WINDOWS / u32::from(channels.max(1))).clamp(MIN_WINDOW, MAX_WINDOW);
    let mut config = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_DATAGRAM);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(window))
        .receive_window(VarInt::from_u32(window))
        .send_window(window.into())
        .send_fairness(false)
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MILLIS))))
        .keep_alive_interval(Some(KEEPALIVE))
        .mtu_discovery_config(Some(discovery))
        .enable_segmentation_offload(!options.no_offload)
        .congestion_controller_factory(congestion(options.congestion.as_deref()));
    config
}

/// Whether QUIC has a congestion control algorithm of this name; for others it takes BBR.
pub fn has_congestion(name: &str) -> bool {
    matches!(name, "bbr" | "cubic" | "reno" | "newreno")
}

/// The algorithm of this name, by the names that Linux has for TCP; BBR for any other.
fn congestion(name: Option<&str>) -> Arc<dyn ControllerFactory + Send + Sync + 'static> {
    match name {
        Some("cubic") => Arc::new(CubicConfig::default()),
        Some("reno" | "newreno") => Arc::new(NewRenoConfig::default()),
        _ => Arc::new(BbrConfig::default()),
    }
}

fn connection_error(error: ConnectionError, address: SocketAddr) -> TransportError {
    match error {
        ConnectionError::TimedOut => TransportError::TimedOut(address.to_string()),
        ConnectionError::TransportError(error) => TransportError::Tls(error.to_string()),
        error => failed(error.into()),
    }
}

fn failed(cause: io::Error) -> TransportError {
    TransportError::Io { operation: "use QUIC", cause }
}

/// How many bytes all connections of a session may have under way: 128 MiB, but not less than 4 MiB
/// and not more than 64 MiB each. It fills 10 Gbit/s over 100 ms.
const ALL_WINDOWS: u32 = 128 << 20;
const MIN_WINDOW: u32 = 4 << 20;
const MAX_WINDOW: u32 = 64 << 20;

/// What is asked of the system for each UDP socket, in bytes: at these rates, what the program does
/// not read in time is lost.
const SOCKET_BUFFER: u32 = 8 << 20;

/// The longest datagram, in bytes, where the path has room for it. Ten of them are handed to the
/// system at once, which must stay below 64 KiB, or it refuses all ten.
const MAX_DATAGRAM: u16 = 6400;

/// What the round trip is taken for until it has been measured: the first packet that is lost is
/// sent again after a multiple of it.
const INITIAL_RTT: Duration = Duration::from_millis(150);

/// After this long without a packet a connection is lost.
const IDLE_MILLIS: u32 = 30_000;
const KEEPALIVE: Duration = Duration::from_secs(5);

/// How many connections may wait to be accepted.
const MAX_INCOMING: usize = 256;
