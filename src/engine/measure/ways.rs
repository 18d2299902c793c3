//! Each way for data, one at a time: opened, or why not. A transfer takes the first that works
//! (`engine/reach`); here all are tried.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::control::{Outbox, Word};
use crate::engine::job::{Reach, Transport};
use crate::engine::measure::WayFound;
use crate::engine::reach::Way;
use crate::engine::reach::client::{AUTO_LANES, Known, WITHIN_CONTROL, ways};
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::message::{Carrier, Dial, Message};
use crate::transport::TransportError;
use crate::transport::channel::{
    ByteStream, Channel, ChannelConfig, Listener, Openings, dial, dial_on,
};

/// All that it takes to open a way.
pub struct Ways {
    known: Known,
    config: Arc<ChannelConfig>,
    words: flume::Receiver<Word>,
    pub outbox: Outbox,
    generation: u32,
    /// The listener for channels that the agent dials.
    listening: JoinSet<()>,
}

impl Ways {
    pub fn new(
        known: Known,
        config: ChannelConfig,
        words: flume::Receiver<Word>,
        outbox: Outbox,
    ) -> Self {
        let (config, listening) = (Arc::new(config), JoinSet::new());
        Self { known, config, words, outbox, generation: 0, listening }
    }

    /// The ways that a transfer would try, in its order.
    pub fn in_order(&self) -> Vec<Way> {
        ways(&self.known.reach, self.known.is_local).into_iter().map(|(way, _)| way).collect()
    }

    /// All ways that there are, unless the user wants a certain one. The tunnel is the last: it makes
    /// an agent that still dials stop.
    pub fn all(&self) -> Vec<Way> {
        let Reach { transport, reverse, .. } = self.known.reach;
        let is_open = transport == Transport::Auto && !reverse && !self.known.is_local;
        if !is_open {
            return self.in_order();
        }
        let (tcp, quic) = (Carrier::Tcp, Carrier::Quic);
        vec![
            Way::Dialled(tcp),
            Way::Dialled(quic),
            Way::Reversed(tcp),
            Way::Reversed(quic),
            Way::Tunnel,
        ]
    }

    pub fn is_encrypted(&self, way: Way) -> bool {
        way.is_encrypted(self.config.encrypt)
    }

    pub fn transport(&self, way: Way) -> &'static str {
        way.transport(self.config.encrypt)
    }

    pub fn host(&self) -> &str {
        &self.known.host
    }

    /// Tries a way, with one channel if that is enough.
    pub async fn try_way(&mut self, way: Way) -> WayFound {
        let begun = Instant::now();
        let opened = self.open(way, 1).await;
        let result = opened.and_then(|channels| {
            let first = channels.first().ok_or("no channel came up")?;
            Ok((begun.elapsed(), first.peer.clone()))
        });
        WayFound {
            transport: match way {
                Way::Dialled(Carrier::Tcp) | Way::Reversed(Carrier::Tcp) => "tcp",
                Way::Dialled(Carrier::Quic) | Way::Reversed(Carrier::Quic) => "quic",
                Way::Tunnel => "ssh",
            },
            dialler: way.dialler(),
            name: match way {
                Way::Dialled(_) => format!("{way} from this host to the other one"),
                Way::Reversed(_) | Way::Tunnel => way.to_string(),
            },
            result,
        }
    }

    /// Whether ssh logs in again without asking: then more than one connection carries data inside ssh.
    pub async fn try_further_login(&mut self) -> WayFound {
        let begun = Instant::now();
        let result = match self.known.lanes.clone() {
            Some(lanes) => lanes.connect().await.map(|_| (begun.elapsed(), String::new())),
            None => Err("not asked for".to_owned()),
        };
        let name = "further ssh connections".to_owned();
        WayFound { transport: "ssh", dialler: "client", name, result }
    }

    /// Opens channels on a way: as many as are wanted, or fewer inside ssh.
    pub async fn open(&mut self, way: Way, streams: u16) -> Result<Vec<Channel>, String> {
        self.listening = JoinSet::new();
        let mut channels = match way {
            Way::Dialled(carrier) => self.dial(carrier, streams).await?,
            Way::Reversed(carrier) => self.be_dialled(carrier, streams).await?,
            Way::Tunnel => self.tunnel(streams).await?,
        };
        channels.sort_unstable_by_key(|channel| channel.slot.channel);
        channels.truncate(streams.into());
        Ok(channels)
    }

    async fn dial(&mut self, carrier: Carrier, streams: u16) -> Result<Vec<Channel>, String> {
        let addresses = match carrier {
            Carrier::Tcp => self.known.tcp.clone(),
            Carrier::Quic => self.known.quic.clone(),
        };
        if addresses.is_empty() {
            return Err("the other host's address is not known here (--data-addr names one)".into());
        }
        let generation = self.next_generation();
        let mut dialling = JoinSet::new();
        for channel in 0..streams {
            let (addresses, config) = (addresses.clone(), Arc::clone(&self.config));
            let slot = ChannelSlot { channel, generation };
            dialling.spawn(async move { dial(carrier, &addresses, slot, &config).await });
        }
        collect(dialling).await.map_err(|error| format!("{}: {error}", shown(&addresses)))
    }

    async fn tunnel(&mut self, streams: u16) -> Result<Vec<Channel>, String> {
        let asked = self.known.reach.ssh_connections.unwrap_or(AUTO_LANES);
        let lanes = self.known.lanes.clone().filter(|_| asked > 1);
        let count = if lanes.is_some() { asked } else { WITHIN_CONTROL }.min(streams);
        let generation = self.next_generation();
        let (mut dialling, mut channels) = (JoinSet::new(), Vec::new());
        for channel in 0..count {
            let slot = ChannelSlot { channel, generation };
            let config = Arc::clone(&self.config);
            let lanes = lanes.clone().filter(|_| channel > 0);
            let tunnel = self.known.tunnel.clone();
            dialling.spawn(async move {
                let (stream, name) = match lanes {
                    Some(lanes) => {
                        let stream = lanes.connect().await.map_err(TransportError::Tls)?;
                        (stream, "a further login")
                    }
                    None => (ByteStream::Tunnel(tunnel.open()), "the ssh connection"),
                };
                dial_on(stream, name, slot, &config).await
            });
        }
        let mut why = "no channel came up".to_owned();
        while let Some(joined) = dialling.join_next().await {
            match joined {
                Ok(Ok(channel)) => channels.push(channel),
                // Without further logins there is the first connection.
                Ok(Err(error)) => why = error.to_string(),
                Err(error) => why = error.to_string(),
            }
        }
        if channels.is_empty() { Err(why) } else { Ok(channels) }
    }

    /// Listens, has the agent dial, and takes what comes. The agent dials all channels of the session.
    async fn be_dialled(&mut self, carrier: Carrier, streams: u16) -> Result<Vec<Channel>, String> {
        let (tcp, quic) = (carrier == Carrier::Tcp, carrier == Carrier::Quic);
        let openings = Openings { tcp, quic, ..Openings::default() };
        let (config, range) = ((*self.config).clone(), self.known.port_range);
        let listener = Listener::bind(openings, range, self.known.is_local, config);
        let listener = listener.map_err(|error| error.to_string())?;
        if let Some(refusal) = listener.refusal() {
            return Err(refusal.to_string());
        }
        let port = if tcp { listener.port() } else { listener.udp_port() };
        let (proven, accepted) = flume::unbounded();
        self.listening.spawn(listener.run(proven));
        let dial = Dial { carrier, port, addresses: self.known.own.clone() };
        self.outbox.say(&Message::Dial(dial.clone())).map_err(|error| error.to_string())?;
        let mut came: HashMap<u16, Channel> = HashMap::new();
        let own = self.known.own.join(", ");
        let mut why = format!("no answer from the other host, which was told {own}, port {port}");
        let all = usize::from(self.config.channels);
        // A channel of the way that was tried before may reach the agent after these words, which it
        // then takes for the way that works; it is told once more.
        let mut tell_again = std::pin::pin!(tokio::time::sleep(PATIENCE / 3));
        let mut is_told = false;
        let outbox = &self.outbox;
        let waiting = async {
            while came.len() < all {
                tokio::select! {
                    () = &mut tell_again, if !is_told => {
                        is_told = true;
                        if came.is_empty() && outbox.say(&Message::Dial(dial.clone())).is_err() {
                            return;
                        }
                    }
                    Ok(channel) = accepted.recv_async() => {
                        came.insert(channel.slot.channel, channel);
                    }
                    Ok(Word::NotReached(failure)) = self.words.recv_async() => {
                        // One of an earlier attempt may still come.
                        if failure.text().contains(&format!(":{port}")) {
                            failure.text().clone_into(&mut why);
                            return;
                        }
                    }
                    else => return,
                }
            }
        };
        let _ = timeout(PATIENCE, waiting).await;
        if came.len() >= streams.into() { Ok(came.into_values().collect()) } else { Err(why) }
    }

    fn next_generation(&mut self) -> u32 {
        self.generation += 1;
        self.generation
    }
}

async fn collect(
    mut dialling: JoinSet<Result<Channel, TransportError>>,
) -> Result<Vec<Channel>, String> {
    let mut channels = Vec::new();
    while let Some(joined) = dialling.join_next().await {
        let channel = joined.map_err(|error| error.to_string())?;
        channels.push(channel.map_err(|error| error.to_string())?);
    }
    Ok(channels)
}

fn shown(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// How long the agent may take to dial.
const PATIENCE: Duration = Duration::from_millis(8500);
