//! `fastsync doctor`: what was found, as it is found, and what to do about it.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::measuring::{Subject, disk_line, disk_value, run_value, seconds, speed};
use super::progress::{Tally, Viewer};
use super::screen::Screen;
use super::text::{plural, shown};
use crate::engine::event::EntryReport;
use crate::engine::measure::advice::Findings;
use crate::engine::measure::{End, Finding, RunFound, WayFound};
use crate::protocol::handshake::VERSIONS;
use crate::protocol::measure::System;

/// Shows a diagnosis.
#[derive(Debug)]
pub struct Doctor {
    subject: Subject,
    found: Findings,
}

impl Doctor {
    pub fn new(subject: Subject) -> Self {
        Self { subject, found: Findings::default() }
    }
}

impl Viewer for Doctor {
    fn entry(&mut self, _entry: &EntryReport, _screen: &mut Screen, _tally: &mut Tally) {}

    fn found(&mut self, finding: Finding, screen: &mut Screen, _tally: &mut Tally) {
        if !screen.display.json {
            let (label, text) = self.line(&finding);
            screen.out_line(&format!("{label:<12}{}", shown(&text)));
        }
        self.found.add(finding);
    }

    fn end(&mut self, complete: bool, screen: &mut Screen, _tally: &mut Tally) {
        if screen.display.json {
            screen.out_line(&self.value(complete).to_string());
        } else if complete {
            self.conclusion().iter().for_each(|line| screen.out_line(&shown(line)));
        }
    }
}

impl Doctor {
    /// What a finding is called, and what it says.
    fn line(&self, finding: &Finding) -> (&'static str, String) {
        let host = &self.subject.host;
        match finding {
            Finding::Login { program, took } => {
                ("ssh", format!("{program} logged in and the agent answered in {}", brief(*took)))
            }
            Finding::Agent(agent) => {
                let ((low, high), own) = (agent.versions, VERSIONS);
                let version = env!("CARGO_PKG_VERSION");
                let text = format!(
                    "{} on {}, protocol {low}-{high}; here fastsync {version}, protocol {}-{}",
                    agent.version, agent.platform, own.0, own.1
                );
                ("agent", text)
            }
            Finding::Clock { ahead_micros, uncertain_micros } => {
                let by = seconds(ahead_micros.unsigned_abs());
                let way = if *ahead_micros < 0 { "behind" } else { "ahead" };
                let uncertain = seconds(*uncertain_micros);
                ("clock", format!("{host} is {by:.4} s {way}, give or take {uncertain:.4} s"))
            }
            Finding::RoundTrip { ssh, data } => {
                let ssh = format!("{} through ssh", brief(*ssh));
                let data = data.map(|data| format!(", {} on the data's way", brief(data)));
                ("round trip", ssh + &data.unwrap_or_default())
            }
            Finding::System { end, system } => (self.end_name(*end), system_line(system)),
            Finding::Way(way) => way_line(way),
            Finding::Chosen(chosen) => {
                let open = if chosen.encrypted { "" } else { ", not encrypted" };
                let text =
                    format!("{} to {}{open}, from memory to memory", chosen.transport, chosen.peer);
                ("measured", text)
            }
            Finding::Disk { end, directory, speed } => {
                let directory = if directory.is_empty() {
                    self.found.system(*end).map_or("", |system| system.directory.as_str())
                } else {
                    directory
                };
                let text = match speed {
                    Ok(speed) => disk_line(speed),
                    Err(why) => format!("not measured: {why}"),
                };
                let text =
                    [self.end_name(*end), directory].join(" ").trim_end().to_owned() + ": " + &text;
                ("disk", text)
            }
            Finding::Run(run) => ("", self.run_line(run)),
            Finding::NotMeasured { what, why } => ("not measured", format!("{what}: {why}")),
        }
    }

    fn end_name(&self, end: End) -> &'static str {
        match end {
            End::Here => "here",
            End::There => "there",
        }
    }

    fn run_line(&self, run: &RunFound) -> String {
        let (host, streams) = (&self.subject.host, plural(run.streams.into(), "stream"));
        let way = if run.from == End::Here { "to" } else { "from" };
        let (here, there) = run.processors;
        let busy = format!("processors busy: {here:.1} here, {there:.1} there");
        format!("{way} {host} with {streams}: {} ({busy})", speed(run.rate()))
    }

    /// Findings about several things together, and the command.
    fn conclusion(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (way, from) in [("to", End::Here), ("from", End::There)] {
            if let Some(bottleneck) = self.found.bottleneck(from) {
                let host = &self.subject.host;
                lines.push(format!("{:<12}{way} {host}: {bottleneck}", "bottleneck"));
            }
        }
        for text in self.advice() {
            lines.push(format!("{:<12}{text}", "advice"));
        }
        lines.push(format!("{:<12}{}", "recommended", self.command()));
        lines
    }

    fn command(&self) -> String {
        self.subject.command(&self.found.flags())
    }

    fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        if let Some((ahead, uncertain)) = self.found.clock
            && ahead.unsigned_abs() > uncertain.saturating_add(CLOCK_TOLERANCE)
        {
            let by = seconds(ahead.unsigned_abs());
            advice.push(format!(
                "the clocks differ by {by:.1} s: set them, or -u may take the wrong file for the newer"
            ));
        }
        for setting in self.found.settings() {
            let under_way = super::text::bytes(self.found.under_way().unwrap_or_default());
            advice.push(format!(
                "{}: {} is {}, too little for one stream to fill this path ({under_way} are under \
                 way): {}",
                self.end_name(setting.end),
                setting.name,
                setting.value,
                setting.command
            ));
        }
        for setting in self.found.congestion() {
            advice.push(format!(
                "{}: {} is {}, and one stream carries much less than several: if packets are lost, this \
                 may help: {}",
                self.end_name(setting.end),
                setting.name,
                setting.value,
                setting.command
            ));
        }
        let is_dialled = |way: &&WayFound| way.transport == "tcp" && way.result.is_err();
        if let Some(way) = self.found.ways.iter().find(is_dialled) {
            advice.push(format!(
                "{} does not work: open a range of ports in that host's firewall, and name it with \
                 --port-range LO:HI",
                way.name
            ));
        }
        advice
    }

    /// All of it for programs.
    fn value(&self, complete: bool) -> Value {
        let found = &self.found;
        let systems: serde_json::Map<String, Value> = found
            .systems
            .iter()
            .map(|(end, system)| (self.end_name(*end).to_owned(), system_value(system)))
            .collect();
        let disks: serde_json::Map<String, Value> = found
            .disks
            .iter()
            .map(|(end, _, speed)| {
                let value = match speed {
                    Ok(speed) => disk_value(speed),
                    Err(why) => json!({ "error": why }),
                };
                (self.end_name(*end).to_owned(), value)
            })
            .collect();
        json!({
            "event": "diagnosis",
            "complete": complete,
            "host": self.subject.host,
            "ssh": found.login.as_ref().map(|(program, took)| {
                json!({ "program": program, "login_seconds": took.as_secs_f64() })
            }),
            "agent": found.agent.as_ref().map(|agent| json!({
                "version": agent.version,
                "platform": agent.platform,
                "protocol": [agent.versions.0, agent.versions.1],
                "path": found.system(End::There).map(|system| &system.program),
            })),
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": [VERSIONS.0, VERSIONS.1],
            "clock": found.clock.map(|(ahead, uncertain)| json!({
                "ahead_seconds": signed_seconds(ahead),
                "uncertainty_seconds": seconds(uncertain),
            })),
            "round_trip": found.round_trip.map(|(ssh, data)| json!({
                "ssh_seconds": ssh.as_secs_f64(),
                "data_seconds": data.map(|data| data.as_secs_f64()),
            })),
            "systems": systems,
            "ways": found.ways.iter().map(way_value).collect::<Vec<_>>(),
            "measured": found.chosen.as_ref().map(|chosen| json!({
                "transport": chosen.transport,
                "dialler": chosen.dialler,
                "peer": chosen.peer,
                "encrypted": chosen.encrypted,
            })),
            "runs": found.runs.iter().map(run_value).collect::<Vec<_>>(),
            "disks": disks,
            "bytes_under_way": found.under_way(),
            "bottleneck": {
                "to_host": found.bottleneck(End::Here),
                "from_host": found.bottleneck(End::There),
            },
            "advice": self.advice(),
            "recommended": complete.then(|| self.command()),
        })
    }
}

fn way_line(way: &WayFound) -> (&'static str, String) {
    match &way.result {
        Ok((took, peer)) if peer.is_empty() => {
            ("works", format!("{}, in {}", way.name, brief(*took)))
        }
        Ok((took, peer)) => ("works", format!("{}, in {}: {peer}", way.name, brief(*took))),
        Err(why) => ("fails", format!("{}: {why}", way.name)),
    }
}

fn way_value(way: &WayFound) -> Value {
    let (took, peer) = way.result.as_ref().ok().cloned().unzip();
    json!({
        "name": way.name,
        "transport": way.transport,
        "dialler": way.dialler,
        "works": way.result.is_ok(),
        "seconds": took.map(|took| took.as_secs_f64()),
        "peer": peer,
        "error": way.result.as_ref().err(),
    })
}

fn system_line(system: &System) -> String {
    let processors = plural(system.processors.into(), "processor");
    let mut text = format!("{processors}, each hashes {}", speed(system.hash_rate));
    for (name, value) in &system.settings {
        let name = name.rsplit('.').next().unwrap_or(name);
        if name != "tcp_available_congestion_control" {
            let _ = write!(text, ", {name} {value}");
        }
    }
    if !system.program.is_empty() {
        let _ = write!(text, "; program {}", system.program);
    }
    text
}

fn system_value(system: &System) -> Value {
    let settings: serde_json::Map<String, Value> =
        system.settings.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "program": system.program,
        "directory": system.directory,
        "processors": system.processors,
        "hash_bytes_per_second": system.hash_rate,
        "settings": settings,
    })
}

/// `12.3 ms`, `1.24 s`.
fn brief(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.2} s") }
}

fn signed_seconds(micros: i64) -> f64 {
    let by = seconds(micros.unsigned_abs());
    if micros < 0 { -by } else { by }
}

/// By how much clocks may differ without a word, in microseconds.
const CLOCK_TOLERANCE: u64 = 1_000_000;
