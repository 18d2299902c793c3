//! Sockets: how they are made, and which options they have (R17).
//!
//! Buffer sizes are left to the system unless somebody asks, because setting them turns off its own
//! tuning. Those that decide the window's scale are set before a connection begins.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use aws_lc_rs::rand;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::protocol::message::SocketOptions;
use crate::transport::TransportError;

/// Connects to `address`.
pub(super) async fn connect(
    address: SocketAddr,
    options: &SocketOptions,
) -> Result<TcpStream, TransportError> {
    let socket = open(Domain::for_address(address))?;
    prepare(&socket, options)?;
    tune(&SockRef::from(&socket))?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(address);
    connecting.await.map_err(TransportError::io("connect to the peer"))
}

/// Listens on one port of the range, or on any: on both IP versions where the system has both.
pub(super) fn listen(
    range: Option<(u16, u16)>,
    is_loopback: bool,
    options: &SocketOptions,
) -> Result<TcpListener, TransportError> {
    let (low, high) = range.unwrap_or((0, 0));
    let mut cause = io::Error::from(io::ErrorKind::InvalidInput);
    for port in ports(range) {
        match listen_on(port, is_loopback, options) {
            Err(TransportError::Io { cause: refusal, .. }) if is_about_the_port(&refusal) => {
                cause = refusal;
            }
            decided => return decided,
        }
    }
    Err(TransportError::NoPort { low, high, cause })
}

/// The address of this host from which it would reach another. Nothing is sent.
pub fn own_address(towards: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = match towards {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((towards, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Sets what every connection needs, once it is there or before.
pub(super) fn tune(socket: &SockRef<'_>) -> Result<(), TransportError> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| set_limits(socket))
        .map_err(TransportError::io("set the options of a socket"))
}

/// All ports of the range, from a random one on, so that two sessions rarely ask for the same; 0,
/// which stands for any, if there is no range.
pub(in crate::transport) fn ports(range: Option<(u16, u16)>) -> impl Iterator<Item = u16> {
    let (low, high) = range.unwrap_or((0, 0));
    let mut start = [0; 4];
    // Without random numbers the search starts at the lowest port, and still finds one.
    let _ = rand::fill(&mut start);
    let count = (u32::from(high) + 1).saturating_sub(u32::from(low));
    let start = u32::from_le_bytes(start).checked_rem(count).unwrap_or(0);
    (0..count).filter_map(move |n| u16::try_from(u32::from(low) + (start + n) % count).ok())
}

fn listen_on(
    port: u16,
    is_loopback: bool,
    options: &SocketOptions,
) -> Result<TcpListener, TransportError> {
    if is_loopback {
        return bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), options);
    }
    match bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), options) {
        // This system has no IPv6.
        Err(TransportError::Io { cause, .. }) if !is_about_the_port(&cause) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), options)
        }
        decided => decided,
    }
}

fn bind(address: SocketAddr, options: &SocketOptions) -> Result<TcpListener, TransportError> {
    let socket = open(Domain::for_address(address))?;
    // What is accepted later inherits these.
    prepare(&socket, options)?;
    let bound = || {
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)
    };
    bound().map_err(TransportError::io("listen for data channels"))?;
    TcpListener::from_std(socket.into()).map_err(TransportError::io("listen for data channels"))
}

fn is_about_the_port(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

fn open(domain: Domain) -> Result<Socket, TransportError> {
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
        .map_err(TransportError::io("open a socket"))?;
    socket.set_nonblocking(true).map_err(TransportError::io("open a socket"))?;
    Ok(socket)
}

fn prepare(socket: &Socket, options: &SocketOptions) -> Result<(), TransportError> {
    let mut set = Ok(());
    if let Some(len) = options.send_buffer {
        set = set.and_then(|()| socket.set_send_buffer_size(len as usize));
    }
    if let Some(len) = options.receive_buffer {
        set = set.and_then(|()| socket.set_recv_buffer_size(len as usize));
    }
    set.map_err(TransportError::io("set the size of a socket's buffers"))?;
    options.congestion.as_deref().map_or(Ok(()), |name| set_congestion(socket, name))
}

fn set_congestion(socket: &Socket, name: &str) -> Result<(), TransportError> {
    #[cfg(target_os = "linux")]
    let set = socket.set_tcp_congestion(name.as_bytes());
    #[cfg(not(target_os = "linux"))]
    let set = socket.local_addr().and(Err::<(), _>(io::ErrorKind::Unsupported.into()));
    set.map_err(|cause| {
        let cause = match cause.kind() {
            io::ErrorKind::NotFound => io::Error::new(
                io::ErrorKind::NotFound,
                format!("this system has no algorithm named {name:?}"),
            ),
            // Not of that kind: nothing is wrong with the port.
            io::ErrorKind::PermissionDenied => io::Error::other(format!(
                "only root may use {name:?} here; sysctl net.ipv4.tcp_allowed_congestion_control lists \
                 those for everybody"
            )),
            kind => io::Error::new(kind, format!("{name:?}: {cause}")),
        };
        TransportError::Io { operation: "set the congestion control algorithm", cause }
    })
}

/// Bounds how long data may wait for the peer's system to acknowledge it, or to take any of it; and
/// how much data may wait here, since all of it is lost with the connection.
#[cfg(target_os = "linux")]
fn set_limits(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(PATIENCE))?;
    socket.set_tcp_notsent_lowat(UNSENT)
}

#[cfg(not(target_os = "linux"))]
fn set_limits(_: &SockRef<'_>) -> io::Result<()> {
    Ok(())
}

/// How long a connection may be idle before the peer's system is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// R12: no progress for this long is a loss. Linux counts a peer that is alive but keeps its window
/// shut as no progress, too.
#[cfg(target_os = "linux")]
const PATIENCE: Duration = Duration::from_secs(30);

/// How many bytes may wait in a socket without being under way, so that the path stays full and not
/// much more is queued: 1 MiB. It costs no throughput on loopback.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 1 << 20;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn all_ports_of_a_range_are_tried_once() {
        assert_eq!(ports(None).collect::<Vec<_>>(), [0]);
        assert_eq!(ports(Some((9, 8))).count(), 0);
        assert_eq!(ports(Some((0, u16::MAX))).collect::<HashSet<_>>().len(), 65_536);
        let mut some: Vec<u16> = ports(Some((65_530, 65_535))).collect();
        some.sort_unstable();
        assert_eq!(some, [65_530, 65_531, 65_532, 65_533, 65_534, 65_535]);
    }

    #[tokio::test]
    async fn a_range_that_is_taken_is_an_error_and_one_free_port_is_found() {
        let options = SocketOptions::default();
        let taken = listen(None, true, &options).unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = listen(Some((port, port)), true, &options);
        assert!(matches!(refused, Err(TransportError::NoPort { low, .. }) if low == port));
        assert!(matches!(listen(Some((2, 1)), true, &options), Err(TransportError::NoPort { .. })));
        let (low, high) = (port.saturating_sub(20), port.saturating_add(20));
        let other = listen(Some((low, high)), true, &options).unwrap();
        assert!((low..=high).contains(&other.local_addr().unwrap().port()));
    }

    #[tokio::test]
    async fn both_ip_versions_reach_a_listener() {
        let options = SocketOptions::default();
        let listener = listen(None, false, &options).unwrap();
        let address = listener.local_addr().unwrap();
        let port = address.port();
        assert!(connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), &options).await.is_ok());
        if address.is_ipv6() {
            let local = connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port)), &options).await;
            assert!(local.is_ok() || TcpListener::bind("[::1]:0").await.is_err());
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_connection_has_its_options() {
        let (send_buffer, receive_buffer) = (Some(100_000), Some(120_000));
        let options = SocketOptions { send_buffer, receive_buffer, ..SocketOptions::default() };
        let listener = listen(None, true, &options).unwrap();
        let dialled = connect(listener.local_addr().unwrap(), &options).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (dialled, accepted) = (SockRef::from(&dialled), SockRef::from(&accepted));
        for socket in [&dialled, &accepted] {
            // Linux doubles what it is asked for.
            assert_eq!(socket.send_buffer_size().unwrap(), 200_000);
            assert_eq!(socket.recv_buffer_size().unwrap(), 240_000);
        }
        assert!(dialled.tcp_nodelay().unwrap());
        assert!(dialled.keepalive().unwrap());
        assert_eq!(dialled.tcp_user_timeout().unwrap(), Some(PATIENCE));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn an_unknown_congestion_control_is_named() {
        let congestion = Some("nonsense".to_owned());
        let options = SocketOptions { congestion, ..SocketOptions::default() };
        let refused = listen(None, true, &options).unwrap_err().to_string();
        assert!(
            refused.contains("congestion control") && refused.contains("nonsense"),
            "{refused}"
        );
        let known = Some("reno".to_owned());
        let options = SocketOptions { congestion: known, ..SocketOptions::default() };
        assert!(listen(None, true, &options).is_ok());
    }
}
