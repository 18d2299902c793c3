//! Keeps a client's data channels up: dials them, and dials anew those that are lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::session::{Channels, SessionError};
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::message::FailureCode;
use crate::transport::TransportError;
use crate::transport::tcp::{Channel, ChannelConfig, dial};

/// Dials the channels of one session.
#[derive(Debug)]
pub struct Dialler {
    config: Arc<ChannelConfig>,
    addresses: Arc<[SocketAddr]>,
    host: String,
    /// Nothing will be sent, so nothing need be dialled.
    idle: bool,
}

type Dialled = (ChannelSlot, Result<Channel, TransportError>);

impl Dialler {
    pub fn new(
        config: ChannelConfig,
        addresses: Vec<SocketAddr>,
        host: String,
        idle: bool,
    ) -> Self {
        Self { config: Arc::new(config), addresses: addresses.into(), host, idle }
    }

    /// The channels as they come up, and the future that dials them: it must be polled as long as
    /// they are in use, and never ends.
    pub fn channels<C>(
        self,
        take: impl Fn(Channel) -> C,
    ) -> (Channels<C>, impl Future<Output = ()>) {
        let (arrive, arriving) = flume::unbounded();
        let (gone, leaving) = flume::unbounded();
        let dialling = async move {
            let result = self.keep_up(&leaving, |slot, channel| {
                let _ = arrive.send(Ok((slot, take(channel))));
            });
            if let Err(error) = result.await {
                let _ = arrive.send(Err(error));
            }
            std::future::pending::<()>().await;
        };
        (Channels::new(arriving, Some(gone)), dialling)
    }

    async fn keep_up(
        &self,
        leaving: &flume::Receiver<ChannelSlot>,
        arrived: impl Fn(ChannelSlot, Channel),
    ) -> Result<(), SessionError> {
        if self.idle {
            return Ok(());
        }
        let mut dialling: JoinSet<Dialled> = JoinSet::new();
        for channel in 0..self.config.channels {
            self.dial(&mut dialling, ChannelSlot { channel, generation: 1 }, Duration::ZERO);
        }
        let mut up = 0_u32;
        let mut ever_up = false;
        // Since a channel came up last. Those that failed are dialled again at once, so "none is
        // being dialled" is never true, and cannot tell that all of them failed.
        let mut failures = 0_u32;
        let mut down_since = Instant::now();
        let mut pauses = vec![FIRST_PAUSE; self.config.channels.into()];
        loop {
            tokio::select! {
                Some(joined) = dialling.join_next() => {
                    let (slot, result) = joined.map_err(SessionError::bug)?;
                    let pause = pauses.get_mut(usize::from(slot.channel));
                    match (result, pause) {
                        (Ok(channel), pause) => {
                            up += 1;
                            ever_up = true;
                            failures = 0;
                            if let Some(pause) = pause {
                                *pause = FIRST_PAUSE;
                            }
                            arrived(slot, channel);
                        }
                        (Err(error), Some(pause)) => {
                            failures = failures.saturating_add(1);
                            if up == 0 {
                                self.check_hope(ever_up, failures, down_since, &error)?;
                            }
                            let next = ChannelSlot { generation: slot.generation + 1, ..slot };
                            self.dial(&mut dialling, next, *pause);
                            *pause = (*pause * 2).min(LAST_PAUSE);
                        }
                        (Err(_), None) => {}
                    }
                }
                Ok(slot) = leaving.recv_async() => {
                    up = up.saturating_sub(1);
                    if up == 0 {
                        down_since = Instant::now();
                    }
                    let next = ChannelSlot { generation: slot.generation + 1, ..slot };
                    self.dial(&mut dialling, next, FIRST_PAUSE);
                }
                // The session is over, and nobody would take another channel.
                else => return Ok(()),
            }
        }
    }

    fn dial(&self, dialling: &mut JoinSet<Dialled>, slot: ChannelSlot, pause: Duration) {
        let (config, addresses) = (Arc::clone(&self.config), Arc::clone(&self.addresses));
        dialling.spawn(async move {
            tokio::time::sleep(pause).await;
            (slot, dial(&addresses, slot, &config).await)
        });
    }

    /// Without any channel: gives up soon if there never was one, and later otherwise. A stranger
    /// who crowds the port out for a moment must not be the end of a session (SEC-8).
    fn check_hope(
        &self,
        ever_up: bool,
        failures: u32,
        down_since: Instant,
        error: &TransportError,
    ) -> Result<(), SessionError> {
        let tried: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let tried = if tried.is_empty() { "no known address".to_owned() } else { tried.join(", ") };
        let rounds = failures / u32::from(self.config.channels.max(1));
        let is_hopeless = rounds >= 3 || (rounds >= 1 && down_since.elapsed() > FIRST_PATIENCE);
        if !ever_up && is_hopeless {
            let text = format!(
                "no data channel to {} could be opened: tried {tried}: {error}; let TCP connections \
                 to that port through, or choose a range that is open with --port-range",
                self.host
            );
            return Err(SessionError::local(FailureCode::NoDataPath, text));
        }
        if ever_up && down_since.elapsed() > GIVE_UP_AFTER {
            let text = format!("no data channel to {tried} could be made again: {error}");
            return Err(SessionError::local(FailureCode::Disconnected, text));
        }
        Ok(())
    }
}

/// How long to wait before a lost channel is dialled anew; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// How long it may take until the first channel is up, if each has failed at least once.
const FIRST_PATIENCE: Duration = Duration::from_secs(9);

/// How long a session may be without any channel.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
