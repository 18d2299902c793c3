//! `check`: what is different between two locations, or between a location and a manifest.

use serde::Serialize;

use super::itemize::words;
use super::listing::Prefix;
use super::manifest::Manifest;
use super::progress::{Findings, Tally, Viewer};
use super::report::{json_line, json_path};
use super::screen::Screen;
use crate::engine::event::{EntryKind, EntryReport};
use crate::protocol::message::{Changes, Outcome};

/// Says what a dry run of `sync --delete` would do.
#[derive(Debug)]
pub struct Comparison;

impl Viewer for Comparison {
    fn entry(&mut self, entry: &EntryReport, screen: &mut Screen, tally: &mut Tally) {
        if entry.kind == EntryKind::Other {
            return;
        }
        match &entry.outcome {
            Outcome::Would(changes) | Outcome::Done(changes) if changes.has(Changes::TYPE) => {
                tell(Status::Different, &entry.path, vec!["type"], screen, tally);
            }
            Outcome::Would(changes) | Outcome::Done(changes) if changes.has(Changes::CREATED) => {
                tell(Status::Missing, &entry.path, Vec::new(), screen, tally);
            }
            Outcome::Would(changes) | Outcome::Done(changes) => {
                tell(Status::Different, &entry.path, what(*changes), screen, tally);
            }
            Outcome::Skipped | Outcome::Left => tally.findings.equal += 1,
            Outcome::Failed(_) => {}
        }
    }

    fn deleted(
        &mut self,
        path: &[u8],
        _is_directory: bool,
        screen: &mut Screen,
        tally: &mut Tally,
    ) {
        tell(Status::Extra, path, Vec::new(), screen, tally);
    }

    fn end(&mut self, _complete: bool, _screen: &mut Screen, tally: &mut Tally) {
        tally.findings.is_extra_wrong = true;
    }
}

/// What is different, in words: that content is to be transferred goes without saying where it is
/// known why.
fn what(changes: Changes) -> Vec<&'static str> {
    let why = Changes::SIZE.with(Changes::TIME).with(Changes::CHECKSUM);
    let changes = if changes.has(why) { changes.without(Changes::CONTENT) } else { changes };
    words(changes).into_iter().map(|it| if it == "checksum" { "content" } else { it }).collect()
}

/// Compares hashes with those of a manifest.
#[derive(Debug)]
pub struct ManifestCheck {
    prefix: Prefix,
    /// What was not come across yet.
    manifest: Manifest,
}

impl ManifestCheck {
    pub fn new(prefix: Prefix, manifest: Manifest) -> Self {
        Self { prefix, manifest }
    }
}

impl Viewer for ManifestCheck {
    fn entry(&mut self, entry: &EntryReport, screen: &mut Screen, tally: &mut Tally) {
        let Some(path) = self.prefix.strip(entry) else { return };
        if matches!(entry.outcome, Outcome::Failed(_)) {
            // It is there, and whether it is equal nobody knows.
            self.manifest.remove(path);
        }
        let (EntryKind::File, Some(root)) = (entry.kind, entry.root) else { return };
        match self.manifest.remove(path) {
            None => tell(Status::Extra, path, Vec::new(), screen, tally),
            Some(known) if known.size.is_some_and(|size| size != entry.size) => {
                tell(Status::Different, path, vec!["size"], screen, tally);
            }
            Some(known) if known.root != root => {
                tell(Status::Different, path, vec!["content"], screen, tally);
            }
            Some(_) => tally.findings.equal += 1,
        }
    }

    fn end(&mut self, complete: bool, screen: &mut Screen, tally: &mut Tally) {
        if !complete {
            return;
        }
        let mut missing: Vec<_> = self.manifest.drain().map(|(path, _)| path).collect();
        missing.sort_unstable();
        for path in missing {
            tell(Status::Missing, &path, Vec::new(), screen, tally);
        }
    }
}

/// What was found out of a path.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Different,
    Missing,
    Extra,
}

/// A finding, as programs read it.
#[derive(Debug, Serialize)]
struct FindingLine<'a> {
    path: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    status: Status,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<&'static str>,
}

/// Counts a finding and prints it.
fn tell(
    status: Status,
    path: &[u8],
    changes: Vec<&'static str>,
    screen: &mut Screen,
    tally: &mut Tally,
) {
    let (count, word) = match status {
        Status::Different => (&mut tally.findings.different, "different"),
        Status::Missing => (&mut tally.findings.missing, "missing"),
        Status::Extra => (&mut tally.findings.extra, "extra"),
    };
    *count += 1;
    if screen.display.json {
        let (path, path_bytes) = json_path(path);
        let line = FindingLine { path, path_bytes, status, changes };
        if let Ok(line) = json_line(&line) {
            screen.out_bytes(line.as_bytes());
        }
        return;
    }
    let what =
        if changes.is_empty() { String::new() } else { format!(" ({})", changes.join(", ")) };
    let path = super::itemize::shown(path, path.is_empty());
    screen.out_line(&format!("{word} {path}{what}"));
}

/// What a check came to.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub exit_code: u8,
    #[serde(flatten)]
    pub findings: Findings,
    pub failed: u64,
    pub seconds: f64,
}

impl Verdict {
    /// The line for people.
    pub fn line(&self) -> String {
        let Findings { equal, different, missing, extra, .. } = self.findings;
        let failed = match self.failed {
            0 => String::new(),
            count => format!("; {count} could not be checked"),
        };
        format!("{equal} equal, {different} different, {missing} missing, {extra} extra{failed}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_have_a_reason() {
        let changes = |changes: &[Changes]| {
            what(changes.iter().fold(Changes::NONE, |all, change| all.with(*change)))
        };
        assert_eq!(changes(&[Changes::CONTENT, Changes::SIZE, Changes::TIME]), ["size", "time"]);
        assert_eq!(changes(&[Changes::CONTENT, Changes::CHECKSUM]), ["content"]);
        assert_eq!(changes(&[Changes::CONTENT]), ["content"]);
        assert_eq!(changes(&[Changes::OWNER, Changes::LINKED]), ["owner", "linked"]);
    }

    #[test]
    fn a_verdict_reads_as_a_line() {
        let findings =
            Findings { equal: 5, different: 1, missing: 2, extra: 3, is_extra_wrong: true };
        let verdict = Verdict { exit_code: 40, findings, failed: 1, seconds: 0.5 };
        let line = "5 equal, 1 different, 2 missing, 3 extra; 1 could not be checked";
        assert_eq!(verdict.line(), line);
        let wanted = serde_json::json!({
            "exit_code": 40, "equal": 5, "different": 1, "missing": 2, "extra": 3, "failed": 1,
            "seconds": 0.5
        });
        assert_eq!(serde_json::to_value(&verdict).unwrap(), wanted);
    }

    #[test]
    fn what_is_extra_counts_only_between_locations() {
        let findings = Findings { extra: 1, ..Findings::default() };
        assert!(!findings.is_difference());
        assert!(Findings { is_extra_wrong: true, ..findings }.is_difference());
        assert!(Findings { missing: 1, ..Findings::default() }.is_difference());
    }
}
