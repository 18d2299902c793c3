//! The agent's part: it takes channels that the client dials, and dials the client when it is told to.
//!
//! It never decides. What it dials counts only until a channel of the client's has come up: then the
//! client has found another way (PATH-5).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{FIRST_PAUSE, LAST_PAUSE, MAX_ADDRESSES};
use crate::engine::control::{Outbox, Word};
use crate::engine::session::Channels;
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::message::{Carrier, Dial, Failure, FailureCode, Message};
use crate::ssh;
use crate::storage::local::is_confined;
use crate::transport::TransportError;
use crate::transport::channel::{Channel, ChannelConfig, Listener, dial};

/// The channels of a session as they come up, whoever dials them. The tasks keep them up.
pub fn channels<C: Send + 'static>(
    listener: Listener,
    config: ChannelConfig,
    words: flume::Receiver<Word>,
    outbox: Outbox,
    tasks: &mut JoinSet<()>,
    take: fn(Channel) -> C,
) -> Channels<C> {
    let (proven, accepted) = flume::unbounded::<Channel>();
    let (arrive, arriving) = flume::unbounded();
    let (gone, leaving) = flume::unbounded();
    tasks.spawn(listener.run(proven));
    tasks.spawn(async move {
        let mut dialler = Dialler::new(config, outbox);
        loop {
            let up = tokio::select! {
                Ok(channel) = accepted.recv_async() => {
                    dialler.stop();
                    Some(channel)
                }
                Ok(Word::Dial(dial)) = words.recv_async() => {
                    dialler.begin(&dial);
                    None
                }
                Some(joined) = dialler.dialling.join_next() => match joined {
                    Ok((slot, result)) => dialler.dialled(slot, result),
                    Err(_) => None,
                },
                Ok(slot) = leaving.recv_async() => {
                    dialler.lost(slot);
                    None
                }
                else => return,
            };
            if let Some(channel) = up {
                let _ = arrive.send(Ok((channel.slot, take(channel))));
            }
        }
    });
    Channels::new(arriving, Some(gone))
}

/// Dials the client, once it has said where.
struct Dialler {
    config: Arc<ChannelConfig>,
    outbox: Outbox,
    target: Option<(Carrier, Arc<[SocketAddr]>)>,
    dialling: JoinSet<(ChannelSlot, Result<Channel, TransportError>)>,
    pauses: Vec<Duration>,
    failures: u32,
}

impl Dialler {
    fn new(config: ChannelConfig, outbox: Outbox) -> Self {
        let pauses = vec![FIRST_PAUSE; config.channels.into()];
        let config = Arc::new(config);
        Self { config, outbox, target: None, dialling: JoinSet::new(), pauses, failures: 0 }
    }

    /// Dials all channels. What it did before counts no more.
    fn begin(&mut self, dial: &Dial) {
        self.stop();
        let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
        let addresses = targets(dial, is_confined(), &connection);
        self.target = Some((dial.carrier, addresses.into()));
        for channel in 0..self.config.channels {
            self.dial(ChannelSlot { channel, generation: 1 }, Duration::ZERO);
        }
    }

    fn stop(&mut self) {
        self.target = None;
        self.dialling = JoinSet::new();
        self.failures = 0;
    }

    fn dial(&mut self, slot: ChannelSlot, pause: Duration) {
        let Some((carrier, addresses)) = self.target.clone() else { return };
        let config = Arc::clone(&self.config);
        self.dialling.spawn(async move {
            tokio::time::sleep(pause).await;
            (slot, dial(carrier, &addresses, slot, &config).await)
        });
    }

    /// One attempt has ended. Returns the channel if it is one.
    fn dialled(
        &mut self,
        slot: ChannelSlot,
        result: Result<Channel, TransportError>,
    ) -> Option<Channel> {
        let pause = self.pauses.get_mut(usize::from(slot.channel))?;
        let error = match result {
            Ok(channel) => {
                *pause = FIRST_PAUSE;
                return Some(channel);
            }
            Err(error) => error,
        };
        let wait = *pause;
        *pause = (wait * 2).min(LAST_PAUSE);
        self.dial(ChannelSlot { generation: slot.generation + 1, ..slot }, wait);
        self.failures += 1;
        if self.failures.is_multiple_of(u32::from(self.config.channels)) {
            self.say_not_reached(&error);
        }
        None
    }

    fn lost(&mut self, slot: ChannelSlot) {
        // Of what the client dials, it chooses the generation.
        let generation = slot.generation.saturating_add(1);
        self.dial(ChannelSlot { generation, ..slot }, FIRST_PAUSE);
    }

    fn say_not_reached(&self, error: &TransportError) {
        let Some((_, addresses)) = &self.target else { return };
        let tried: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let tried = if tried.is_empty() { "no address".to_owned() } else { tried.join(", ") };
        let failure = Failure::new(FailureCode::NoDataPath, format!("{tried}: {error}"));
        let _ = self.outbox.say(&Message::NotReached(failure));
    }
}

/// What to dial: where the client says it is, and where ssh sees it. A key that is restricted reaches
/// no other host than the one that it comes from (SEC-10).
fn targets(dial: &Dial, is_confined: bool, ssh_connection: &str) -> Vec<SocketAddr> {
    let told = if is_confined { &[][..] } else { &dial.addresses[..] };
    let told = told.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let seen = ssh::client_address(ssh_connection);
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in told.chain(seen).map(|address| SocketAddr::from((address, dial.port))) {
        if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PATH-4, SEC-10.
    #[test]
    fn a_restricted_key_has_nothing_dialled_but_its_own_host() {
        let addresses = vec!["192.0.2.1".to_owned(), "what".to_owned(), "192.0.2.9".to_owned()];
        let dial = Dial { carrier: Carrier::Tcp, port: 7, addresses };
        let shown = |is_confined, connection| {
            let targets = targets(&dial, is_confined, connection);
            targets.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let connection = "192.0.2.9 40000 192.0.2.2 22";
        assert_eq!(shown(false, connection), ["192.0.2.1:7", "192.0.2.9:7"]);
        assert_eq!(shown(true, connection), ["192.0.2.9:7"]);
        assert_eq!(shown(true, ""), Vec::<String>::new());
    }

    #[test]
    fn no_more_is_dialled_than_a_few_addresses() {
        let addresses = (0..100).map(|n| format!("192.0.2.{n}")).collect();
        let dial = Dial { carrier: Carrier::Tcp, port: 7, addresses };
        assert_eq!(targets(&dial, false, "").len(), MAX_ADDRESSES);
    }
}
