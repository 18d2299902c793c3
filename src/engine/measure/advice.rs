//! What follows from findings: settings to change, how many streams are enough, which flags a
//! transfer should have, and what it is that bounds it.

use std::time::Duration;

use super::{Agent, Connection, End, Finding, RunFound, WayFound};
use crate::protocol::measure::{DiskSpeed, System};

/// All findings, each in its place.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    pub login: Option<(String, Duration)>,
    pub agent: Option<Agent>,
    /// How much the other host's clock is ahead, and how uncertain that is, in microseconds.
    pub clock: Option<(i64, u64)>,
    pub round_trip: Option<(Duration, Option<Duration>)>,
    pub systems: Vec<(End, System)>,
    pub ways: Vec<WayFound>,
    pub chosen: Option<Connection>,
    pub disks: Vec<(End, String, Result<DiskSpeed, String>)>,
    pub runs: Vec<RunFound>,
    pub not_measured: Vec<(String, String)>,
}

/// A setting that is too small for the path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Setting {
    pub end: End,
    pub name: String,
    pub value: String,
    /// The command that changes it, until the next boot.
    pub command: String,
}

impl Findings {
    pub fn add(&mut self, finding: Finding) {
        match finding {
            Finding::Login { program, took } => self.login = Some((program, took)),
            Finding::Agent(agent) => self.agent = Some(agent),
            Finding::Clock { ahead_micros, uncertain_micros } => {
                self.clock = Some((ahead_micros, uncertain_micros));
            }
            Finding::RoundTrip { ssh, data } => self.round_trip = Some((ssh, data)),
            Finding::System { end, system } => self.systems.push((end, system)),
            Finding::Way(way) => self.ways.push(way),
            Finding::Chosen(connection) => self.chosen = Some(connection),
            Finding::Disk { end, directory, speed } => self.disks.push((end, directory, speed)),
            Finding::Run(run) => self.runs.push(run),
            Finding::NotMeasured { what, why } => self.not_measured.push((what, why)),
        }
    }

    pub fn system(&self, end: End) -> Option<&System> {
        self.systems.iter().find(|(it, _)| *it == end).map(|(_, system)| system)
    }

    /// Those from memory to memory that one end sends.
    fn memory(&self, from: End) -> impl Iterator<Item = &RunFound> {
        self.runs.iter().filter(move |run| run.from == from && !run.from_disk && !run.to_disk)
    }

    /// The smallest number of streams that carries nearly as much as any other, in both directions
    /// together.
    pub fn streams(&self) -> Option<u16> {
        let total = |streams: u16| -> u64 {
            let of = [End::Here, End::There].map(|from| {
                let runs = self.memory(from).filter(|run| run.streams == streams);
                runs.map(RunFound::rate).max().unwrap_or(0)
            });
            of[0].saturating_add(of[1])
        };
        let mut counts: Vec<u16> =
            self.memory(End::Here).chain(self.memory(End::There)).map(|it| it.streams).collect();
        counts.sort_unstable();
        counts.dedup();
        let best = counts.iter().map(|count| total(*count)).max()?;
        counts.into_iter().find(|count| total(*count) >= best / 10 * 9)
    }

    /// The flags that make a transfer what was measured to be best.
    pub fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> =
            self.streams().map(|streams| format!("-p{streams}")).into_iter().collect();
        let Some(chosen) = &self.chosen else { return flags };
        match (chosen.transport, chosen.dialler) {
            ("quic", _) => flags.push("--transport=quic".to_owned()),
            ("ssh", _) => flags.push("--transport=ssh".to_owned()),
            _ => {}
        }
        if chosen.dialler == "agent" {
            flags.push("--reverse".to_owned());
        }
        flags
    }

    /// How many bytes are under way on a full path: the best rate in either direction, times the
    /// round trip.
    pub fn under_way(&self) -> Option<u64> {
        let (ssh, data) = self.round_trip?;
        let best = [End::Here, End::There].into_iter().flat_map(|from| self.memory(from));
        let best = best.map(RunFound::rate).max()?;
        let bytes = u128::from(best) * data.unwrap_or(ssh).as_micros() / 1_000_000;
        Some(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// Settings that keep one stream from filling the path. A buffer is to hold twice what is under
    /// way: as much again waits to be read, or for an acknowledgement.
    pub fn settings(&self) -> Vec<Setting> {
        let Some(under_way) = self.under_way() else { return Vec::new() };
        let need = under_way.saturating_mul(2).min(LARGEST_BUFFER);
        let mut advice = Vec::new();
        for (end, system) in &self.systems {
            for (name, value) in &system.settings {
                if !BUFFERS.contains(&name.as_str()) {
                    continue;
                }
                // It may come from a peer, and the command is there to be pasted into a shell.
                let numbers: Result<Vec<u64>, _> = value.split(' ').map(str::parse).collect();
                let Some((most, before)) = numbers.as_deref().ok().and_then(|it| it.split_last())
                else {
                    continue;
                };
                if *most >= need {
                    continue;
                }
                let wanted = before.iter().copied().chain([need.next_power_of_two()]);
                let words: Vec<String> = wanted.map(|number| number.to_string()).collect();
                let command = format!("sysctl -w {name}=\"{}\"", words.join(" "));
                let (name, value) = (name.clone(), value.clone());
                advice.push(Setting { end: *end, name, value, command });
            }
        }
        advice
    }

    /// The congestion control of a sending end, where its buffers are large enough and one stream still
    /// carries much less than several: what is lost on the path slows it down.
    pub fn congestion(&self) -> Vec<Setting> {
        let is_tcp = |chosen: &Connection| chosen.transport.starts_with("tcp");
        if !self.chosen.as_ref().is_some_and(is_tcp) {
            return Vec::new();
        }
        let small = self.settings();
        let is_slow = |end: End| {
            let single = self.memory(end).min_by_key(|run| run.streams);
            let best = self.memory(end).max_by_key(|run| run.rate());
            single.zip(best).is_some_and(|(single, best)| single.rate() < best.rate() / 10 * 8)
        };
        let mut advice = Vec::new();
        for (end, system) in &self.systems {
            let value = |name| system.settings.iter().find(|it| it.0 == name).map(|it| &it.1);
            let Some(control) = value(CONGESTION).filter(|it| !it.contains("bbr")) else {
                continue;
            };
            if small.iter().any(|it| it.end == *end) || !is_slow(*end) {
                continue;
            }
            let available = value("net.ipv4.tcp_available_congestion_control");
            let is_there = available.is_some_and(|it| it.split(' ').any(|it| it == "bbr"));
            let load = if is_there { "" } else { "modprobe tcp_bbr && " };
            let command = format!("{load}sysctl -w {CONGESTION}=\"bbr\"");
            let (name, value) = (CONGESTION.to_owned(), control.clone());
            advice.push(Setting { end: *end, name, value, command });
        }
        advice
    }

    /// What bounds a transfer from one end to the other, in words.
    pub fn bottleneck(&self, from: End) -> Option<String> {
        let best = |from_disk: bool, to_disk: bool| {
            let runs = self.runs.iter().filter(|run| run.from == from);
            let runs = runs.filter(|run| (run.from_disk, run.to_disk) == (from_disk, to_disk));
            runs.max_by_key(|run| run.rate())
        };
        let path = best(false, false)?;
        let disk = |run: Option<&RunFound>, what: &str, end: End| {
            let rate = run.map(RunFound::rate).filter(|rate| *rate < path.rate() / 10 * 8)?;
            Some((rate, format!("{what} at {}", name(end))))
        };
        let reading = disk(best(true, false), "reading from the disk", from);
        let writing = disk(best(false, true), "writing to the disk", from.other());
        if let Some((_, text)) = [reading, writing].into_iter().flatten().min_by_key(|it| it.0) {
            return Some(text);
        }
        for (end, busy) in [(End::Here, path.processors.0), (End::There, path.processors.1)] {
            let processors = self.system(end).map_or(f64::INFINITY, |it| f64::from(it.processors));
            if busy >= processors * 0.85 {
                return Some(format!("the processors at {}", name(end)));
            }
        }
        let together: f64 = path.processors.0 + path.processors.1;
        let single = self.memory(from).min_by_key(|run| run.streams)?;
        let last = self.memory(from).max_by_key(|run| run.streams)?;
        Some(if last.streams == path.streams && path.rate() / 10 * 8 > single.rate() {
            "each stream by itself (its window, losses or one processor): more streams carry more"
                .to_owned()
        } else if path.streams == single.streams && together >= 1.5 {
            "the processor that one stream has at either end".to_owned()
        } else {
            "the network".to_owned()
        })
    }
}

fn name(end: End) -> &'static str {
    match end {
        End::Here => "this host",
        End::There => "the other host",
    }
}

/// The settings that bound how much one connection has under way; of three values, the last does.
const BUFFERS: &[&str] =
    &["net.core.rmem_max", "net.core.wmem_max", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"];

/// What decides how TCP takes losses, for connections that do not ask for anything else (tcp(7)).
const CONGESTION: &str = "net.ipv4.tcp_congestion_control";

/// The largest buffer that is advised, in bytes.
const LARGEST_BUFFER: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(from: End, streams: u16, rate: u64) -> RunFound {
        let (from_disk, to_disk, took) = (false, false, Duration::from_secs(1));
        RunFound { from, from_disk, to_disk, streams, bytes: rate, took, processors: (0.5, 0.5) }
    }

    fn findings(runs: &[RunFound]) -> Findings {
        let settings = [
            ("net.core.rmem_max", "212992"),
            ("net.ipv4.tcp_rmem", "4096 131072 6291456"),
            ("net.ipv4.tcp_congestion_control", "cubic"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let system = System { processors: 4, settings, ..System::default() };
        Findings {
            runs: runs.to_vec(),
            round_trip: Some((Duration::from_millis(120), Some(Duration::from_millis(100)))),
            systems: vec![(End::There, system)],
            ..Findings::default()
        }
    }

    #[test]
    fn as_few_streams_as_carry_nearly_all() {
        let runs = |rates: &[(u16, u64)]| {
            let both = |(streams, rate): &(u16, u64)| {
                [run(End::Here, *streams, *rate), run(End::There, *streams, *rate)]
            };
            findings(&rates.iter().flat_map(both).collect::<Vec<_>>()).streams()
        };
        assert_eq!(runs(&[]), None);
        assert_eq!(runs(&[(1, 100), (8, 105)]), Some(1));
        assert_eq!(runs(&[(1, 100), (2, 190), (4, 200), (8, 150)]), Some(2));
        assert_eq!(runs(&[(1, 100), (8, 800)]), Some(8));
    }

    #[test]
    fn flags_say_what_would_be_tried_last_by_itself() {
        let flags = |transport, dialler| {
            let (peer, encrypted) = (String::new(), true);
            let chosen = Some(Connection { transport, dialler, peer, encrypted });
            Findings { chosen, ..findings(&[run(End::Here, 4, 10)]) }.flags().join(" ")
        };
        assert_eq!(flags("tcp+tls", "client"), "-p4");
        assert_eq!(flags("tcp+tls", "agent"), "-p4 --reverse");
        assert_eq!(flags("quic", "client"), "-p4 --transport=quic");
        assert_eq!(flags("ssh", "client"), "-p4 --transport=ssh");
    }

    #[test]
    fn buffers_that_are_too_small_for_the_path_are_named() {
        // 100 ms at 100 MB/s are 10 MB under way.
        let found = findings(&[run(End::Here, 8, 100_000_000)]);
        assert_eq!(found.under_way(), Some(10_000_000));
        let commands: Vec<String> = found.settings().into_iter().map(|it| it.command).collect();
        assert_eq!(
            commands,
            [
                "sysctl -w net.core.rmem_max=\"33554432\"",
                "sysctl -w net.ipv4.tcp_rmem=\"4096 131072 33554432\"",
            ]
        );
        // At 10 MB/s TCP has enough.
        let found = findings(&[run(End::Here, 8, 10_000_000)]);
        let names: Vec<String> = found.settings().into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["net.core.rmem_max"]);
        assert!(findings(&[run(End::Here, 8, 10_000)]).settings().is_empty());
    }

    /// Only for an end that sends by TCP and is not held back by anything that is measured.
    #[test]
    fn another_congestion_control_is_advised_where_losses_slow_one_stream_down() {
        let found = |transport, single, control: &str, available: &str| {
            let runs = [run(End::There, 1, single), run(End::There, 8, 4_000_000)];
            let mut found = findings(&runs);
            let settings =
                [(CONGESTION, control), ("net.ipv4.tcp_available_congestion_control", available)];
            let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
            found.systems = vec![
                (End::Here, System { settings: settings.to_vec(), ..System::default() }),
                (End::There, System { settings: settings.to_vec(), ..System::default() }),
            ];
            let (dialler, peer) = ("client", String::new());
            found.chosen = Some(Connection { transport, dialler, peer, encrypted: true });
            let advice = found.congestion();
            assert!(advice.iter().all(|it| it.end == End::There), "the other one does not send");
            advice.into_iter().map(|it| it.command).collect::<Vec<_>>()
        };
        let command = "sysctl -w net.ipv4.tcp_congestion_control=\"bbr\"";
        assert_eq!(found("tcp+tls", 1_000_000, "cubic", "reno bbr cubic"), [command]);
        let load = format!("modprobe tcp_bbr && {command}");
        assert_eq!(found("tcp", 1_000_000, "$(reboot)", "reno cubic"), [load]);
        assert!(found("tcp+tls", 3_900_000, "cubic", "bbr").is_empty());
        assert!(found("tcp+tls", 1_000_000, "bbr", "bbr").is_empty());
        assert!(found("quic", 1_000_000, "cubic", "bbr").is_empty());
        let mut small = findings(&[run(End::There, 1, 10), run(End::There, 8, 100_000_000)]);
        let (dialler, peer) = ("client", String::new());
        small.chosen = Some(Connection { transport: "tcp", dialler, peer, encrypted: false });
        assert!(!small.settings().is_empty() && small.congestion().is_empty());
    }

    /// MEASURE-3: what a peer says is no part of a command, unless it is a number.
    #[test]
    fn nothing_of_a_peer_gets_into_a_command() {
        let mut found = findings(&[run(End::Here, 8, 100_000_000)]);
        let hostile = ["$(reboot) 131072 6291456", "4096 \"; reboot; \" 1", "", "1  2"];
        let settings = hostile.map(|it| ("net.ipv4.tcp_rmem".to_owned(), it.to_owned()));
        let system = System { settings: settings.to_vec(), ..System::default() };
        found.systems = vec![(End::There, system)];
        assert_eq!(found.settings(), []);
    }

    #[test]
    fn the_narrowest_place_is_named() {
        let here = |streams, rate| run(End::Here, streams, rate);
        let bottleneck = |runs: &[RunFound]| findings(runs).bottleneck(End::Here);
        assert_eq!(bottleneck(&[]), None);
        let path = here(8, 1000);
        let reading = RunFound { from_disk: true, ..here(8, 500) };
        let writing = RunFound { to_disk: true, ..here(8, 300) };
        let found = bottleneck(&[path, reading, writing]).unwrap();
        assert_eq!(found, "writing to the disk at the other host");
        let found = bottleneck(&[path, reading]).unwrap();
        assert_eq!(found, "reading from the disk at this host");
        let busy = RunFound { processors: (0.5, 3.9), ..path };
        assert_eq!(bottleneck(&[busy]).unwrap(), "the processors at the other host");
        assert_eq!(bottleneck(&[here(1, 990), path]).unwrap(), "the network");
        assert!(bottleneck(&[here(1, 100), path]).unwrap().contains("more streams"));
    }
}
