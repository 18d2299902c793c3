//! The client's part: it looks for a way, and keeps the channels on it up.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::lanes::Lanes;
use super::{FIRST_PAUSE, LAST_PAUSE, Way};
use crate::engine::control::{Outbox, Word};
use crate::engine::event::{Connection, Event};
use crate::engine::job::{Reach, Transport};
use crate::engine::session::{Channels, Observer, SessionError};
use crate::protocol::handshake::ChannelSlot;
use crate::protocol::message::{Carrier, Dial, FailureCode, Message};
use crate::storage::local::is_confined;
use crate::transport::TransportError;
use crate::transport::channel::{
    ByteStream, Channel, ChannelConfig, Listener, Openings, dial, dial_on, own_address,
};
use crate::transport::tunnel::Tunnel;

/// What the client knows of the ways to its agent.
#[derive(Debug)]
pub struct Known {
    /// What the user wants.
    pub reach: Reach,
    /// Where the agent listens for TCP, and for QUIC.
    pub tcp: Vec<SocketAddr>,
    pub quic: Vec<SocketAddr>,
    /// Addresses of this host for the agent to dial, as text.
    pub own: Vec<String>,
    /// Ports on which this end may listen.
    pub port_range: Option<(u16, u16)>,
    /// The agent is on this very machine.
    pub is_local: bool,
    pub tunnel: Tunnel,
    pub lanes: Option<Lanes>,
    /// For messages.
    pub host: String,
    /// What the user calls this host, if the user is at another one that carries the tunnel.
    pub own_name: Option<String>,
    /// Nothing will be sent, so nothing need be dialled.
    pub idle: bool,
    /// Why the agent listens on no port; empty if it says nothing.
    pub refusal: String,
}

/// The ways to try, and how long after the beginning each has its turn at the latest.
pub fn ways(reach: &Reach, is_local: bool) -> Vec<(Way, Duration)> {
    let (tcp, quic) = (Carrier::Tcp, Carrier::Quic);
    let ways: &[(Way, u64)] = match (reach.transport, reach.reverse) {
        (Transport::Auto | Transport::Tcp, true) => &[(Way::Reversed(tcp), 0)],
        (Transport::Quic, true) => &[(Way::Reversed(quic), 0)],
        (Transport::Auto, false) if is_local => &[(Way::Dialled(tcp), 0), (Way::Tunnel, 1000)],
        (Transport::Auto, false) => &[
            (Way::Dialled(tcp), 0),
            (Way::Dialled(quic), 1000),
            (Way::Reversed(tcp), 2000),
            (Way::Tunnel, 5000),
        ],
        (Transport::Tcp, false) => &[(Way::Dialled(tcp), 0), (Way::Reversed(tcp), 2000)],
        (Transport::Quic, false) => &[(Way::Dialled(quic), 0), (Way::Reversed(quic), 2000)],
        (Transport::Ssh, _) => &[(Way::Tunnel, 0)],
    };
    ways.iter().map(|(way, millis)| (*way, Duration::from_millis(*millis))).collect()
}

/// A key that is restricted dials nobody (THIRD-3).
fn without_dialling(ways: &mut Vec<(Way, Duration)>) {
    ways.retain(|(way, _)| !matches!(way, Way::Dialled(_)));
}

/// This host's own addresses, as text, from which it would reach the agent's.
pub fn own_addresses(agents: &[IpAddr]) -> Vec<String> {
    let mut own: Vec<IpAddr> = agents.iter().filter_map(|address| own_address(*address)).collect();
    own.dedup();
    own.iter().map(ToString::to_string).collect()
}

/// The channels as they come up, and the future that finds a way and keeps them up: it must be polled
/// as long as they are in use, and never ends.
pub fn channels<C>(
    known: Known,
    config: ChannelConfig,
    words: flume::Receiver<Word>,
    outbox: Outbox,
    observer: Observer,
    take: impl Fn(Channel) -> C,
) -> (Channels<C>, impl Future<Output = ()>) {
    let (arrive, arriving) = flume::unbounded();
    let (gone, leaving) = flume::unbounded();
    let searching = async move {
        if !known.idle {
            let mut search = Search::new(known, config, outbox, observer);
            let result = search.run(&leaving, &words, |slot, channel| {
                let _ = arrive.send(Ok((slot, take(channel))));
            });
            if let Err(error) = result.await {
                let _ = arrive.send(Err(error));
            }
        }
        std::future::pending::<()>().await;
    };
    (Channels::new(arriving, Some(gone)), searching)
}

/// One way, and how far it has come.
#[derive(Debug)]
struct Try {
    way: Way,
    /// When it begins at the latest.
    due: Instant,
    has_begun: bool,
    /// Channels that were dialled at first, and attempts that have failed since.
    dialled: u32,
    failures: u32,
    /// What happened last.
    error: Option<String>,
}

impl Try {
    /// How often all of it has failed.
    fn rounds(&self) -> u32 {
        self.failures / self.dialled.max(1)
    }
}

type Dialled = (Way, ChannelSlot, Result<Channel, TransportError>);

/// The search for a way, and what has become of the channels on it.
struct Search {
    known: Known,
    config: Arc<ChannelConfig>,
    outbox: Outbox,
    observer: Observer,
    begun: Instant,
    tries: Vec<Try>,
    decided: Option<Way>,
    dialling: JoinSet<Dialled>,
    handles: Vec<(Way, AbortHandle)>,
    generations: Vec<u32>,
    pauses: HashMap<(Way, u16), Duration>,
    /// The listener for channels that the agent dials.
    listening: JoinSet<()>,
    accepted: Option<flume::Receiver<Channel>>,
    up: u32,
    down_since: Instant,
}

impl Search {
    fn new(known: Known, config: ChannelConfig, outbox: Outbox, observer: Observer) -> Self {
        let begun = Instant::now();
        let mut ways = ways(&known.reach, known.is_local);
        if is_confined() {
            without_dialling(&mut ways);
        }
        let begin = |(way, after): (Way, Duration)| Try {
            way,
            due: begun + after,
            has_begun: false,
            dialled: 0,
            failures: 0,
            error: None,
        };
        Self {
            tries: ways.into_iter().map(begin).collect(),
            generations: vec![0; config.channels.into()],
            known,
            config: Arc::new(config),
            outbox,
            observer,
            begun,
            decided: None,
            dialling: JoinSet::new(),
            handles: Vec::new(),
            pauses: HashMap::new(),
            listening: JoinSet::new(),
            accepted: None,
            up: 0,
            down_since: begun,
        }
    }

    async fn run(
        &mut self,
        leaving: &flume::Receiver<ChannelSlot>,
        words: &flume::Receiver<Word>,
        arrived: impl Fn(ChannelSlot, Channel),
    ) -> Result<(), SessionError> {
        loop {
            self.begin_due();
            self.check_hope()?;
            let accepted = self.accepted.clone();
            let accepted = async {
                match &accepted {
                    Some(accepted) => accepted.recv_async().await,
                    None => std::future::pending().await,
                }
            };
            let look = self.next_look();
            let came = tokio::select! {
                Some(joined) = self.dialling.join_next() => match joined {
                    Ok((way, slot, Ok(channel))) => Some((way, slot, channel)),
                    Ok((way, slot, Err(error))) => {
                        self.failed(way, slot, &error);
                        None
                    }
                    Err(error) if error.is_cancelled() => None,
                    Err(error) => return Err(SessionError::bug(error)),
                },
                Ok(channel) = accepted => {
                    let way = self.tries.iter().find(|it| matches!(it.way, Way::Reversed(_)));
                    way.map(|it| (it.way, channel.slot, channel))
                }
                Ok(word) = words.recv_async() => {
                    self.heard(word);
                    None
                }
                Ok(slot) = leaving.recv_async() => {
                    self.lost(slot);
                    None
                }
                () = sleep_until(look) => None,
            };
            if let Some((way, slot, channel)) = came {
                if self.decided.is_none() {
                    self.decide(way, &channel);
                }
                if self.decided == Some(way) {
                    self.up += 1;
                    self.pauses.remove(&(way, slot.channel));
                    arrived(slot, channel);
                }
            }
        }
    }

    /// Begins the ways whose turn has come: by time, or because all before them have failed.
    fn begin_due(&mut self) {
        while self.decided.is_none() {
            let Some(next) = self.tries.iter().position(|it| !it.has_begun) else { return };
            let now = Instant::now();
            let are_over = self.tries.iter().take(next).all(|earlier| earlier.rounds() > 0);
            let Some(due) = self.tries.get(next).map(|it| it.due) else { return };
            if now < due && !are_over {
                return;
            }
            // Those after it wait as long as they would have waited for it.
            let early = due.saturating_duration_since(now);
            for later in self.tries.iter_mut().skip(next) {
                later.due -= early;
            }
            self.begin(next);
        }
    }

    fn begin(&mut self, place: usize) {
        let within_ssh = self.within_ssh();
        let Some(this) = self.tries.get_mut(place) else { return };
        this.has_begun = true;
        let way = this.way;
        let channels = match way {
            Way::Dialled(Carrier::Tcp) => self.config.channels,
            Way::Dialled(Carrier::Quic) => 1,
            // A login takes longer than anything else: there is nothing to wait for.
            Way::Tunnel => within_ssh,
            Way::Reversed(carrier) => {
                this.dialled = 1;
                if let Err(error) = self.listen(carrier) {
                    self.note(way, error.to_string());
                }
                return;
            }
        };
        this.dialled = if way == Way::Tunnel { 1 } else { channels.into() };
        for channel in 0..channels {
            self.dial(way, channel, Duration::ZERO);
        }
    }

    /// Listens, and tells the agent where.
    fn listen(&mut self, carrier: Carrier) -> Result<(), TransportError> {
        let (tcp, quic) = (carrier == Carrier::Tcp, carrier == Carrier::Quic);
        let openings = Openings { tcp, quic, ..Openings::default() };
        let config = (*self.config).clone();
        let listener =
            Listener::bind(openings, self.known.port_range, self.known.is_local, config)?;
        let port = if tcp { listener.port() } else { listener.udp_port() };
        if let Some(refusal) = listener.refusal() {
            self.note(Way::Reversed(carrier), refusal.to_string());
            return Ok(());
        }
        let (proven, accepted) = flume::unbounded();
        self.listening.spawn(listener.run(proven));
        self.accepted = Some(accepted);
        let dial = Dial { carrier, port, addresses: self.known.own.clone() };
        let _ = self.outbox.say(&Message::Dial(dial));
        Ok(())
    }

    fn dial(&mut self, way: Way, channel: u16, pause: Duration) {
        let Some(generation) = self.generations.get_mut(usize::from(channel)) else { return };
        *generation += 1;
        let slot = ChannelSlot { channel, generation: *generation };
        let config = Arc::clone(&self.config);
        let addresses = match way {
            Way::Dialled(carrier) => self.dialled(carrier).to_vec(),
            Way::Reversed(_) | Way::Tunnel => Vec::new(),
        };
        let tunnel = self.known.tunnel.clone();
        let lanes = self.known.lanes.clone().filter(|_| channel > 0);
        let handle = self.dialling.spawn(async move {
            tokio::time::sleep(pause).await;
            let result = match (way, lanes) {
                (Way::Dialled(carrier), _) => dial(carrier, &addresses, slot, &config).await,
                (Way::Tunnel, Some(lanes)) => match lanes.connect().await {
                    Ok(stream) => dial_on(stream, "a further login", slot, &config).await,
                    Err(text) => Err(TransportError::Tls(text)),
                },
                (Way::Tunnel, None) => {
                    let stream = ByteStream::Tunnel(tunnel.open());
                    dial_on(stream, "the agent", slot, &config).await
                }
                (Way::Reversed(_), _) => Err(TransportError::Closed),
            };
            (way, slot, result)
        });
        self.handles.retain(|(_, handle)| !handle.is_finished());
        self.handles.push((way, handle));
    }

    /// Where the agent listens.
    fn dialled(&self, carrier: Carrier) -> &[SocketAddr] {
        match carrier {
            Carrier::Tcp => &self.known.tcp,
            Carrier::Quic => &self.known.quic,
        }
    }

    /// The first channel has come up: its way it is, for all of them.
    fn decide(&mut self, way: Way, channel: &Channel) {
        self.decided = Some(way);
        self.handles.iter().filter(|(other, _)| *other != way).for_each(|(_, it)| it.abort());
        if !matches!(way, Way::Reversed(_)) {
            self.listening = JoinSet::new();
            self.accepted = None;
        }
        let streams = match way {
            Way::Tunnel => self.within_ssh(),
            Way::Dialled(_) | Way::Reversed(_) => self.config.channels,
        };
        if way == Way::Dialled(Carrier::Quic) {
            for channel in 1..streams {
                self.dial(way, channel, Duration::ZERO);
            }
        }
        let encrypt = self.config.encrypt;
        self.observer.connected(Connection {
            transport: way.transport(encrypt),
            streams,
            peer: match way {
                Way::Tunnel => self.known.host.clone(),
                Way::Dialled(_) | Way::Reversed(_) => channel.peer.clone(),
            },
            encrypted: way.is_encrypted(encrypt),
            dialler: way.dialler(),
            reason: self.reason(way),
        });
    }

    /// How many channels there are inside ssh.
    fn within_ssh(&self) -> u16 {
        let asked = self.known.reach.ssh_connections.unwrap_or(AUTO_LANES);
        let lanes = if self.known.lanes.is_some() { asked } else { 1 };
        self.config.channels.min(if lanes <= 1 { WITHIN_CONTROL } else { lanes })
    }

    /// Why it is this way.
    fn reason(&self, way: Way) -> String {
        let before: Vec<String> =
            self.tries.iter().take_while(|it| it.way != way).map(|it| self.outcome(it)).collect();
        // Only there the user's host is not one of the two.
        if way == Way::Tunnel && self.known.own_name.is_some() {
            let before =
                if before.is_empty() { "as asked for".to_owned() } else { before.join("; ") };
            return format!("{before}; data goes through the host of the client");
        }
        if before.is_empty() {
            let is_choice =
                self.known.reach.transport == Transport::Auto && !self.known.reach.reverse;
            return if is_choice { "first choice" } else { "as asked for" }.to_owned();
        }
        before.join("; ")
    }

    /// What a way has come to, for people.
    fn outcome(&self, this: &Try) -> String {
        let places = |addresses: &[SocketAddr]| {
            let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            names.join(", ")
        };
        let place = match this.way {
            Way::Dialled(carrier) => {
                let known = self.dialled(carrier);
                if known.is_empty() {
                    let why = match self.known.refusal.as_str() {
                        "" => "no address of it is known here; --data-addr names one",
                        refusal => refusal,
                    };
                    return format!("{}: {why}", this.way);
                }
                format!(" to {}", places(known))
            }
            Way::Reversed(_) | Way::Tunnel => String::new(),
        };
        let error = match (&this.error, this.has_begun) {
            (Some(error), _) => error.as_str(),
            (None, true) => "no answer",
            (None, false) => "not tried",
        };
        format!("{}{place}: {error}", self.name(this.way))
    }

    fn name(&self, way: Way) -> String {
        let (Some(own), Way::Reversed(carrier)) = (&self.known.own_name, way) else {
            return way.to_string();
        };
        format!("{} from {} to {own}", Way::Dialled(carrier), self.known.host)
    }

    fn failed(&mut self, way: Way, slot: ChannelSlot, error: &TransportError) {
        self.note(way, error.to_string());
        if self.decided.is_some_and(|decided| decided != way) {
            return;
        }
        if way == Way::Tunnel && slot.channel > 0 && self.known.lanes.is_some() {
            // No further login: what has connected stays, and the control channel carries the rest.
            if self.known.lanes.take().is_some() {
                let note = format!("no further ssh connections for data: {error}");
                self.observer.tell(Event::Note(note));
            }
            if slot.channel < WITHIN_CONTROL {
                self.dial(way, slot.channel, Duration::ZERO);
            }
            return;
        }
        if way == Way::Tunnel && slot.channel >= WITHIN_CONTROL {
            return;
        }
        let pause = self.pauses.entry((way, slot.channel)).or_insert(FIRST_PAUSE);
        let wait = *pause;
        *pause = (wait * 2).min(LAST_PAUSE);
        self.dial(way, slot.channel, wait);
    }

    fn note(&mut self, way: Way, error: String) {
        if let Some(this) = self.tries.iter_mut().find(|it| it.way == way) {
            this.failures = this.failures.saturating_add(1);
            this.error = Some(error);
        }
    }

    fn heard(&mut self, word: Word) {
        let way = self.tries.iter().find(|it| matches!(it.way, Way::Reversed(_)));
        if let (Word::NotReached(failure), Some(way)) = (word, way.map(|it| it.way)) {
            self.note(way, failure.text().to_owned());
        }
    }

    /// A channel is gone. Whoever dialled it dials it anew.
    fn lost(&mut self, slot: ChannelSlot) {
        self.up = self.up.saturating_sub(1);
        if self.up == 0 {
            self.down_since = Instant::now();
        }
        match self.decided {
            Some(way @ (Way::Dialled(_) | Way::Tunnel)) => {
                self.dial(way, slot.channel, FIRST_PAUSE);
            }
            Some(Way::Reversed(_)) | None => {}
        }
    }

    /// When to look again, if nothing happens.
    fn next_look(&self) -> Instant {
        let soon = Instant::now() + Duration::from_secs(1);
        let due = self.tries.iter().find(|it| !it.has_begun).map(|it| it.due);
        due.filter(|_| self.decided.is_none()).map_or(soon, |due| due.min(soon))
    }

    /// Without any channel: gives up soon if there never was one, and later otherwise. A stranger
    /// who crowds the port out for a moment must not be the end of a session (SEC-8).
    fn check_hope(&self) -> Result<(), SessionError> {
        if self.up > 0 {
            return Ok(());
        }
        if let Some(way) = self.decided {
            if self.down_since.elapsed() <= GIVE_UP_AFTER {
                return Ok(());
            }
            let tries = self.tries.iter().filter(|it| it.way == way);
            let tried: Vec<String> = tries.map(|it| self.outcome(it)).collect();
            let text = format!("no data channel could be made again: {}", tried.join("; "));
            return Err(SessionError::local(FailureCode::Disconnected, text));
        }
        let elapsed = self.begun.elapsed();
        let has_tunnel = self.tries.iter().any(|it| it.way == Way::Tunnel);
        let limit = if has_tunnel { TUNNEL_PATIENCE } else { PATIENCE };
        let rounds = self.tries.iter().map(Try::rounds).min().unwrap_or(0);
        // The agent may be waiting for its predecessor, and then it answers when that has ended.
        if elapsed < limit && (has_tunnel || rounds < 3) {
            return Ok(());
        }
        let tried: Vec<String> = self.tries.iter().map(|it| self.outcome(it)).collect();
        let text = format!(
            "no data channel to {} could be opened; tried {}; {}",
            self.known.host,
            tried.join("; "),
            self.remedy()
        );
        Err(SessionError::local(FailureCode::NoDataPath, text))
    }

    /// Which ports to open for what was tried, and what else the user can do.
    fn remedy(&self) -> String {
        let ports = match self.known.port_range {
            Some((low, high)) => format!("ports {low} to {high}"),
            None => "ports of a range (--port-range)".to_owned(),
        };
        let host = &self.known.host;
        let here = self.known.own_name.as_deref().unwrap_or("this host");
        let openings = self.tries.iter().filter_map(|it| match it.way {
            Way::Dialled(carrier) => {
                Some(format!("{} {ports} of {host} for {here}", protocol(carrier)))
            }
            Way::Reversed(carrier) => {
                Some(format!("{} {ports} of {here} for {host}", protocol(carrier)))
            }
            Way::Tunnel => None,
        });
        let openings = openings.collect::<Vec<_>>().join(", or ");
        let Reach { transport, reverse, .. } = self.known.reach;
        let asked: Vec<&str> =
            [(transport != Transport::Auto, "--transport"), (reverse, "--reverse")]
                .into_iter()
                .filter_map(|(is_asked, flag)| is_asked.then_some(flag))
                .collect();
        let inside = match (&asked[..], transport) {
            (_, Transport::Ssh) => return "leave out --transport to try other ways".to_owned(),
            ([], _) => String::new(),
            (asked, _) => {
                format!("; or leave out {} to let the data go inside ssh", asked.join(" and "))
            }
        };
        format!("open {openings}{inside}")
    }
}

/// What a firewall calls it.
fn protocol(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Tcp => "TCP",
        Carrier::Quic => "UDP",
    }
}

/// How many channels there are inside ssh if nobody says how many, as far as there are streams: the
/// control channel carries the first, and further logins the others.
pub const AUTO_LANES: u16 = 8;

/// How many channels the control channel carries where no further login is possible: while one reads
/// the next chunk from the disk, the other sends.
pub const WITHIN_CONTROL: u16 = 2;

/// How long it may take until the first channel is up.
const PATIENCE: Duration = Duration::from_millis(8500);

/// The same where there is nothing to wait for but the agent: it may be waiting for its predecessor.
const TUNNEL_PATIENCE: Duration = Duration::from_secs(40);

/// How long a session may be without any channel.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::ways as all_ways;
    use super::*;

    /// PATH-1, R9: what is tried in which order, and that nothing else is tried than what was asked for.
    #[test]
    fn each_wish_has_its_ways() {
        let ways = |transport, reverse, is_local| {
            let reach = Reach { transport, reverse, ..Reach::default() };
            all_ways(&reach, is_local).into_iter().map(|(way, _)| way).collect::<Vec<_>>()
        };
        let (tcp, quic) = (Way::Dialled(Carrier::Tcp), Way::Dialled(Carrier::Quic));
        let back = Way::Reversed(Carrier::Tcp);
        assert_eq!(ways(Transport::Auto, false, false), [tcp, quic, back, Way::Tunnel]);
        assert_eq!(ways(Transport::Auto, false, true), [tcp, Way::Tunnel]);
        assert_eq!(ways(Transport::Auto, true, false), [back]);
        assert_eq!(ways(Transport::Tcp, false, false), [tcp, back]);
        assert_eq!(ways(Transport::Tcp, true, true), [back]);
        assert_eq!(ways(Transport::Quic, false, false), [quic, Way::Reversed(Carrier::Quic)]);
        assert_eq!(ways(Transport::Ssh, false, true), [Way::Tunnel]);
    }

    /// THIRD-3: who may not dial is dialled, or uses what is there.
    #[test]
    fn a_restricted_sender_dials_nobody() {
        let ways = |transport| {
            let mut ways = all_ways(&Reach { transport, ..Reach::default() }, false);
            without_dialling(&mut ways);
            ways.into_iter().map(|(way, _)| way).collect::<Vec<_>>()
        };
        assert_eq!(ways(Transport::Auto), [Way::Reversed(Carrier::Tcp), Way::Tunnel]);
        assert_eq!(ways(Transport::Tcp), [Way::Reversed(Carrier::Tcp)]);
        assert_eq!(ways(Transport::Ssh), [Way::Tunnel]);
    }

    #[test]
    fn each_way_has_a_name_in_reports() {
        let tcp = Way::Dialled(Carrier::Tcp);
        assert_eq!((tcp.transport(true), tcp.transport(false)), ("tcp+tls", "tcp"));
        assert!(tcp.is_encrypted(true) && !tcp.is_encrypted(false));
        assert!(Way::Tunnel.is_encrypted(false));
        assert_eq!(Way::Reversed(Carrier::Quic).dialler(), "agent");
    }
}
