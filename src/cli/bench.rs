//! `fastsync bench`: a table of rates, and what bounds them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::measuring::{Subject, direction, place, run_value};
use super::progress::{Tally, Viewer};
use super::screen::Screen;
use super::text::{bytes, shown};
use crate::engine::event::EntryReport;
use crate::engine::measure::advice::Findings;
use crate::engine::measure::{End, Finding, RunFound};

/// Shows a benchmark.
#[derive(Debug)]
pub struct Bench {
    subject: Subject,
    found: Findings,
}

impl Bench {
    pub fn new(subject: Subject) -> Self {
        Self { subject, found: Findings::default() }
    }
}

impl Viewer for Bench {
    fn entry(&mut self, _entry: &EntryReport, _screen: &mut Screen, _tally: &mut Tally) {}

    fn found(&mut self, finding: Finding, screen: &mut Screen, tally: &mut Tally) {
        match &finding {
            Finding::Run(run) if screen.display.json => {
                let mut value = run_value(run);
                value["event"] = json!("run");
                screen.out_line(&value.to_string());
            }
            Finding::Run(run) => {
                if self.found.runs.is_empty() {
                    screen.out_line(&self.title());
                }
                screen.out_line(&self.row(run));
            }
            Finding::NotMeasured { what, why } => {
                tally.errors += 1;
                screen.complain(&format!("not measured: {what}: {why}"));
            }
            _ => {}
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

impl Bench {
    fn title(&self) -> String {
        let mut text = String::new();
        if let Some(chosen) = &self.found.chosen {
            let _ = writeln!(text, "over {} to {}", chosen.transport, shown(&chosen.peer));
        }
        let _ = write!(
            text,
            "{:<10} {:<16} {:>7} {:>12} {:>15} {:>15}",
            "direction", "from, to", "streams", "MB/s", "processors here", "there"
        );
        text
    }

    fn row(&self, run: &RunFound) -> String {
        let way = if run.from == End::Here { "to" } else { "from" };
        let places = format!("{}, {}", place(run.from_disk), place(run.to_disk));
        let (rate, (here, there)) = (run.rate(), run.processors);
        let (whole, tenth) = (rate / 1_000_000, rate % 1_000_000 / 100_000);
        let rate = format!("{whole}.{tenth}");
        let streams = run.streams;
        format!("{way:<10} {places:<16} {streams:>7} {rate:>12} {here:>15.2} {there:>15.2}")
    }

    fn conclusion(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for from in [End::Here, End::There] {
            let Some(bottleneck) = self.found.bottleneck(from) else { continue };
            let way = if from == End::Here { "to" } else { "from" };
            lines.push(format!("bottleneck {way} {}: {bottleneck}", self.subject.host));
        }
        if let Some(streams) = self.found.streams() {
            let under_way = self.found.under_way().unwrap_or_default();
            let under_way = bytes(under_way);
            lines.push(format!("{streams} streams are enough; {under_way} are under way at once"));
        }
        lines
    }

    fn value(&self, complete: bool) -> Value {
        let found = &self.found;
        json!({
            "event": "benchmark",
            "complete": complete,
            "host": self.subject.host,
            "transport": found.chosen.as_ref().map(|chosen| chosen.transport),
            "dialler": found.chosen.as_ref().map(|chosen| chosen.dialler),
            "encrypted": found.chosen.as_ref().map(|chosen| chosen.encrypted),
            "runs": found.runs.len(),
            "not_measured": found.not_measured.iter().map(|(what, why)| {
                json!({ "what": what, "error": why })
            }).collect::<Vec<_>>(),
            "streams": found.streams(),
            "bytes_under_way": found.under_way(),
            "bottleneck": {
                direction(End::Here): found.bottleneck(End::Here),
                direction(End::There): found.bottleneck(End::There),
            },
        })
    }
}
