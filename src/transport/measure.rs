//! What the system says of its network: settings, and how far away a peer is.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::timeout;

/// The settings that bound what a connection carries, by the names that `sysctl` has for them. Those
/// that this system does not have, or does not tell, are left out.
///
/// Source: tcp(7), socket(7), `/proc/sys/net`.
pub fn settings() -> Vec<(String, String)> {
    let read = |name: &&str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let text = std::fs::read_to_string(path).ok()?;
        let value = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        Some(((*name).to_owned(), value))
    };
    SETTINGS.iter().filter_map(read).collect()
}

/// How long it takes to connect to a port, which is one round trip; the shortest of a few.
/// `None` if it cannot be connected to.
pub async fn round_trip(peer: SocketAddr) -> Option<Duration> {
    let mut shortest: Option<Duration> = None;
    for _ in 0..CONNECTIONS {
        let begun = Instant::now();
        timeout(PATIENCE, TcpStream::connect(peer)).await.ok()?.ok()?;
        let took = begun.elapsed();
        shortest = Some(shortest.map_or(took, |shortest| shortest.min(took)));
    }
    shortest
}

const SETTINGS: &[&str] = &[
    "net.core.rmem_max",
    "net.core.wmem_max",
    "net.core.somaxconn",
    "net.core.default_qdisc",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_available_congestion_control",
];

/// How often a peer is connected to.
const CONNECTIONS: u32 = 3;

/// How long each may take.
const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn a_linux_tells_its_limits() {
        let settings = settings();
        let value = |name| settings.iter().find(|(known, _)| known == name).map(|(_, it)| it);
        let window = value("net.ipv4.tcp_rmem").unwrap();
        assert_eq!(
            window.split(' ').filter_map(|it| it.parse::<u64>().ok()).count(),
            3,
            "{window}"
        );
        assert!(!value("net.ipv4.tcp_congestion_control").unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_round_trip_is_timed_where_somebody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(round_trip(address).await.unwrap() > Duration::ZERO);
        drop(listener);
        assert_eq!(round_trip(address).await, None);
    }
}
