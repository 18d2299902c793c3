//! The client's part of a session that measures: what it asks for, in which order, and what it
//! makes of the answers.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncRead;

use super::agent::prepare;
use super::run::{self, Place, made_up, on_disk};
use super::ways::Ways;
use super::{Connection, End, Finding, Measurement, RunFound, WayFound, What, system};
use crate::engine::control::{ControlError, Inbox};
use crate::engine::event::Event;
use crate::engine::reach::Way;
use crate::engine::session::{Observer, SessionError};
use crate::protocol::manifest::Timestamp;
use crate::protocol::measure::{
    DiskLimits, MAX_FRAME_LEN, MAX_RUN_LEN, Measure, Measured, Ran, Run,
};
use crate::protocol::message::{Carrier, Failure, FailureCode, Message};
use crate::storage::local::disk_speed;
use crate::transport::channel::Channel;
use crate::transport::measure::round_trip;

/// Measures to the end of the session.
pub async fn run<R: AsyncRead + Unpin>(
    measurement: &Measurement,
    inbox: &mut Inbox<R>,
    ways: Ways,
    observer: Observer,
) -> Result<(), SessionError> {
    let (tell, answers) = flume::bounded(MAX_ANSWERS);
    // What the tunnel carries comes with the messages, so they are always read.
    let listening = async {
        loop {
            match inbox.next().await? {
                Message::Measured(Measured::Done) => return Ok(()),
                Message::Measured(answer) => tell.try_send(answer).map_err(|_| unasked())?,
                Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
                // The state machine lets nothing else through that means something here.
                _ => {}
            }
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    let _on_drop = OnDrop(Arc::clone(&stop));
    let mut examiner = Examiner {
        measurement,
        ways,
        answers,
        observer,
        stop,
        way: Way::Tunnel,
        channels: Vec::new(),
        number: 0,
        frame_len: FIRST_FRAME_LEN,
        rooms: (0, 0),
        failed: Vec::new(),
    };
    let asking = async {
        match measurement.what {
            What::Everything => examiner.examine().await?,
            What::Speed => examiner.compare().await?,
        }
        examiner.ways.outbox.say(&Message::Measure(Measure::Done)).map_err(SessionError::from)
    };
    tokio::try_join!(listening, asking).map(|_| ())
}

/// Tells work on blocking threads that nobody waits for it any more.
struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Examiner<'a> {
    measurement: &'a Measurement,
    ways: Ways,
    answers: flume::Receiver<Measured>,
    observer: Observer,
    stop: Arc<AtomicBool>,
    /// The way that is measured, and the channels that are up on it.
    way: Way,
    channels: Vec<Channel>,
    /// Of the last run.
    number: u64,
    frame_len: u32,
    /// How much may be written here and there, in bytes.
    rooms: (u64, u64),
    /// Ways that do not work, and why.
    failed: Vec<String>,
}

/// Which way a run goes, and what is at its ends.
#[derive(Clone, Copy, Debug)]
struct Route {
    from: End,
    from_disk: bool,
    to_disk: bool,
}

impl Examiner<'_> {
    /// All that a diagnosis has.
    async fn examine(&mut self) -> Result<(), SessionError> {
        let ssh = self.clocks().await?;
        self.systems().await?;
        let mut working = Vec::new();
        for way in self.ways.all() {
            self.release().await?;
            let found = self.try_way(way).await;
            if let Ok((_, peer)) = &found.result {
                working.push((way, peer.clone()));
            }
            self.tell(Finding::Way(found));
        }
        let further = self.ways.try_further_login().await;
        self.tell(Finding::Way(further));
        let order = self.ways.in_order();
        let chosen = order.iter().find_map(|way| working.iter().find(|(it, _)| it == way));
        let Some((way, peer)) = chosen else { return Err(self.no_way()) };
        self.choose(*way, peer).await?;
        let data = match (way, peer.parse::<SocketAddr>()) {
            (Way::Dialled(Carrier::Tcp), Ok(peer)) => round_trip(peer).await,
            _ => None,
        };
        self.tell(Finding::RoundTrip { ssh, data });
        self.calibrate().await?;
        for from in [End::Here, End::There] {
            for streams in self.streams() {
                let route = Route { from, from_disk: false, to_disk: false };
                let found = self.run(route, streams, MAX_RUN_LEN, self.measurement.millis());
                let found = found.await?.map_err(SessionError::Local)?;
                self.tell(Finding::Run(found));
            }
        }
        self.disks().await
    }

    /// All that a benchmark has.
    async fn compare(&mut self) -> Result<(), SessionError> {
        let ssh = self.clocks().await?;
        self.systems().await?;
        let mut found = None;
        for way in self.ways.in_order() {
            self.release().await?;
            let tried = self.try_way(way).await;
            let peer = tried.result.as_ref().ok().map(|(_, peer)| peer.clone());
            self.tell(Finding::Way(tried));
            if let Some(peer) = peer {
                found = Some((way, peer));
                break;
            }
        }
        let Some((way, peer)) = found else { return Err(self.no_way()) };
        self.choose(way, &peer).await?;
        self.tell(Finding::RoundTrip { ssh, data: None });
        self.calibrate().await?;
        for (from_disk, to_disk) in [(false, false), (false, true), (true, false)] {
            for from in [End::Here, End::There] {
                self.sweep(Route { from, from_disk, to_disk }).await?;
            }
        }
        Ok(())
    }

    /// One route with each number of streams.
    async fn sweep(&mut self, route: Route) -> Result<(), SessionError> {
        let bytes = match route {
            Route { from_disk: false, to_disk: false, .. } => {
                self.measurement.size.unwrap_or(MAX_RUN_LEN).min(MAX_RUN_LEN)
            }
            Route { from, from_disk, .. } => {
                let end = if from_disk { from } else { from.other() };
                let room = if end == End::Here { self.rooms.0 } else { self.rooms.1 };
                // An end that has no room may have a better reason, and says it.
                let room = if room == 0 { u64::MAX } else { room };
                self.measurement.file_len().min(room)
            }
        };
        for streams in self.streams() {
            match self.run(route, streams, bytes, self.measurement.millis()).await? {
                Ok(found) => self.tell(Finding::Run(found)),
                Err(failure) if route.from_disk || route.to_disk => {
                    let (what, why) = (route.to_string(), failure.text().to_owned());
                    self.tell(Finding::NotMeasured { what, why });
                    return Ok(());
                }
                Err(failure) => return Err(SessionError::Local(failure)),
            }
        }
        Ok(())
    }

    fn tell(&self, finding: Finding) {
        self.observer.tell(Event::Found(Box::new(finding)));
    }

    fn no_way(&self) -> SessionError {
        let tried = self.failed.join("; ");
        let text = format!("no data channel to {} could be opened: {tried}", self.ways.host());
        SessionError::local(FailureCode::NoDataPath, text)
    }

    async fn try_way(&mut self, way: Way) -> WayFound {
        let found = self.ways.try_way(way).await;
        if let Err(why) = &found.result {
            self.failed.push(format!("{}: {why}", found.name));
        }
        found
    }

    fn streams(&self) -> Vec<u16> {
        let up = u16::try_from(self.channels.len()).unwrap_or(u16::MAX);
        let mut streams: Vec<u16> = self.measurement.streams.iter().map(|it| up.min(*it)).collect();
        streams.dedup();
        streams
    }

    fn say(&self, request: Measure) -> Result<(), SessionError> {
        self.ways.outbox.say(&Message::Measure(request)).map_err(SessionError::from)
    }

    async fn answer(&self) -> Result<Measured, SessionError> {
        let answer = self.answers.recv_async().await;
        answer.map_err(|_| SessionError::bug("nobody hears the agent"))
    }

    async fn ask(&self, request: Measure) -> Result<Measured, SessionError> {
        self.say(request)?;
        self.answer().await
    }

    /// Compares the clocks, and returns how long there and back takes through ssh.
    async fn clocks(&self) -> Result<Duration, SessionError> {
        let mut best: Option<(Duration, i64)> = None;
        for _ in 0..CLOCKS {
            let (begun, before) = (Instant::now(), micros_of(system::now()));
            let Measured::Clock(theirs) = self.ask(Measure::Clock).await? else {
                return Err(unasked());
            };
            let took = begun.elapsed();
            let half = i64::try_from(took.as_micros() / 2).unwrap_or(i64::MAX);
            let ahead = micros_of(theirs).saturating_sub(before.saturating_add(half));
            if best.is_none_or(|(best, _)| took < best) {
                best = Some((took, ahead));
            }
        }
        let (ssh, ahead_micros) = best.unwrap_or_default();
        let uncertain_micros = u64::try_from(ssh.as_micros() / 2).unwrap_or(u64::MAX).max(1);
        self.tell(Finding::Clock { ahead_micros, uncertain_micros });
        Ok(ssh)
    }

    async fn systems(&mut self) -> Result<(), SessionError> {
        let Measured::System(theirs) = self.ask(Measure::System).await? else {
            return Err(unasked());
        };
        let own = system::system(self.measurement.directory.clone(), true).await;
        self.rooms = (own.room, theirs.room);
        for (end, system) in [(End::Here, own), (End::There, theirs)] {
            self.tell(Finding::System { end, system });
        }
        Ok(())
    }

    async fn disks(&self) -> Result<(), SessionError> {
        let limits = DiskLimits {
            bytes: self.measurement.size.unwrap_or(DISK_LEN).min(self.measurement.file_len()),
            files: SMALL_FILES,
            millis: self.measurement.millis(),
        };
        let (own, stop) = (self.measurement.directory.clone(), Arc::clone(&self.stop));
        let block = made_up(MAX_FRAME_LEN as usize);
        let speed = on_disk(move || disk_speed(&own, limits, &block, &stop)).await;
        let speed = speed.map_err(|failure| failure.text().to_owned());
        let directory = self.measurement.directory.display().to_string();
        self.tell(Finding::Disk { end: End::Here, directory, speed });
        let speed = match self.ask(Measure::Disk(limits)).await? {
            Measured::Disk(speed) => Ok(speed),
            Measured::Refused(failure) => Err(failure.text().to_owned()),
            _ => return Err(unasked()),
        };
        self.tell(Finding::Disk { end: End::There, directory: String::new(), speed });
        Ok(())
    }

    async fn release(&mut self) -> Result<(), SessionError> {
        self.channels.clear();
        match self.ask(Measure::Release).await? {
            Measured::Released => Ok(()),
            _ => Err(unasked()),
        }
    }

    /// Opens all channels on the way that is measured from here on.
    async fn choose(&mut self, way: Way, peer: &str) -> Result<(), SessionError> {
        self.way = way;
        self.reopen().await?;
        self.tell(Finding::Chosen(Connection {
            transport: self.ways.transport(way),
            dialler: way.dialler(),
            peer: if way == Way::Tunnel { self.ways.host().to_owned() } else { peer.to_owned() },
            encrypted: self.ways.is_encrypted(way),
        }));
        Ok(())
    }

    async fn reopen(&mut self) -> Result<(), SessionError> {
        self.release().await?;
        let streams = self.measurement.streams.iter().copied().max().unwrap_or(1);
        let channels = self.ways.open(self.way, streams).await;
        self.channels = channels.map_err(|why| {
            SessionError::local(FailureCode::NoDataPath, format!("{}: {why}", self.way))
        })?;
        Ok(())
    }

    /// A short run, to find out how much a frame may carry: on a slow path one that is as long as on a
    /// quick one would take longer than the run.
    async fn calibrate(&mut self) -> Result<(), SessionError> {
        let route = Route { from: End::Here, from_disk: false, to_disk: false };
        let streams = self.streams().first().copied().unwrap_or(1);
        let found = self.run(route, streams, CALIBRATION_LEN, CALIBRATION_MILLIS).await?;
        let found = found.map_err(SessionError::Local)?;
        self.frame_len = frame_len(found.rate());
        Ok(())
    }

    /// One run; once more on new channels if those that were up are lost.
    async fn run(
        &mut self,
        route: Route,
        streams: u16,
        bytes: u64,
        millis: u32,
    ) -> Result<Result<RunFound, Failure>, SessionError> {
        let first = self.try_run(route, streams, bytes, millis).await?;
        match &first {
            Err(failure) if failure.code == FailureCode::Disconnected => {
                self.reopen().await?;
                self.try_run(route, streams, bytes, millis).await
            }
            _ => Ok(first),
        }
    }

    async fn try_run(
        &mut self,
        route: Route,
        streams: u16,
        bytes: u64,
        millis: u32,
    ) -> Result<Result<RunFound, Failure>, SessionError> {
        if self.channels.len() < streams.into() {
            self.reopen().await?;
        }
        self.number += 1;
        let rest = self.channels.split_off(self.channels.len().min(streams.into()));
        let channels = std::mem::replace(&mut self.channels, rest);
        let (toward_agent, number, len) = (route.from == End::Here, self.number, self.frame_len);
        let (own_disk, on_disk) = if toward_agent {
            (route.from_disk, route.to_disk)
        } else {
            (route.to_disk, route.from_disk)
        };
        let slots = channels.iter().map(|it| (it.slot.channel, it.slot.generation)).collect();
        let run = Run { number, toward_agent, on_disk, channels: slots, len, bytes, millis };
        let place = self.own_place(own_disk, &run).await;
        let place = match place {
            Ok(place) => place,
            Err(failure) => {
                self.give_back(channels);
                return Ok(Err(failure));
            }
        };
        match self.ask(Measure::Run(run.clone())).await? {
            Measured::Ready => {}
            Measured::Refused(failure) => {
                self.give_back(channels);
                return Ok(Err(failure));
            }
            _ => return Err(unasked()),
        }
        let (channels, own) = if toward_agent {
            run::send(channels, run, place).await
        } else {
            run::receive(channels, run, place).await
        };
        self.give_back(channels);
        let theirs = match self.answer().await? {
            Measured::Ran(ran) => Ok(ran),
            Measured::Refused(failure) => Err(failure),
            _ => return Err(unasked()),
        };
        Ok(own.and_then(|own| theirs.map(|theirs| found(route, streams, &own, &theirs))))
    }

    fn give_back(&mut self, channels: Vec<Channel>) {
        self.channels.extend(channels);
        self.channels.sort_unstable_by_key(|channel| channel.slot.channel);
    }

    async fn own_place(&self, is_disk: bool, run: &Run) -> Result<Place, Failure> {
        if !is_disk {
            return Ok(Place::Memory);
        }
        let directory: &Path = &self.measurement.directory;
        prepare(directory, run, run.toward_agent, Arc::clone(&self.stop)).await
    }
}

fn found(route: Route, streams: u16, own: &Ran, theirs: &Ran) -> RunFound {
    let received = if route.from == End::Here { theirs } else { own };
    let share = |ran: &Ran| {
        // Enough for a share: it is shown with two digits.
        #[expect(clippy::cast_precision_loss, reason = "it is a share of some seconds")]
        let share = ran.processor_micros as f64 / ran.micros.max(1) as f64;
        share
    };
    RunFound {
        from: route.from,
        from_disk: route.from_disk,
        to_disk: route.to_disk,
        streams,
        bytes: received.bytes,
        took: Duration::from_micros(received.micros.max(1)),
        processors: (share(own), share(theirs)),
    }
}

/// How much a frame carries where so much passes in a second: what takes about 50 ms.
fn frame_len(rate: u64) -> u32 {
    let wanted = u32::try_from(rate / 20).unwrap_or(u32::MAX);
    let wanted = wanted.clamp(FIRST_FRAME_LEN, MAX_FRAME_LEN);
    1 << wanted.ilog2()
}

fn micros_of(time: Timestamp) -> i64 {
    time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanoseconds() / 1000))
}

fn unasked() -> SessionError {
    SessionError::violation("the agent answered something that it was not asked")
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = |is_disk| if is_disk { "disk" } else { "memory" };
        let (from, to) = match self.from {
            End::Here => ("this host's", "the other host's"),
            End::There => ("the other host's", "this host's"),
        };
        write!(f, "{from} {} to {to} {}", place(self.from_disk), place(self.to_disk))
    }
}

/// How many answers one request can have.
const MAX_ANSWERS: usize = 2;

/// How often the clocks are compared; the quickest answer counts.
const CLOCKS: u32 = 8;

/// How much a frame carries in the first run, in bytes.
const FIRST_FRAME_LEN: u32 = 64 << 10;

/// How much the first run carries, in bytes, and for how long, in milliseconds.
const CALIBRATION_LEN: u64 = 256 << 20;
const CALIBRATION_MILLIS: u32 = 300;

/// How much a file system has to write for a diagnosis, in bytes, and how many small files to make.
const DISK_LEN: u64 = 256 << 20;
const SMALL_FILES: u32 = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_long_as_the_path_is_quick() {
        assert_eq!(frame_len(0), 65_536);
        assert_eq!(frame_len(4_000_000), 131_072);
        assert_eq!(frame_len(u64::MAX), 1 << 20);
        // MEASURE-5: a range of a file can begin at any multiple of it.
        for rate in (0..30).map(|n| 777_777 * n) {
            assert!(frame_len(rate).is_power_of_two());
        }
    }

    #[test]
    fn a_clock_is_compared_in_microseconds() {
        let time = Timestamp::new(-2, 5_000).unwrap();
        assert_eq!(micros_of(time), -1_999_995);
    }
}
