//! The report file: one JSON line a file, for programs.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufWriter, Write};

use serde::Serialize;

use super::text::{hex, shown, timestamp};
use crate::engine::event::{EntryKind, EntryReport};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::Outcome;

/// One entry, as programs read it.
#[derive(Debug, Serialize)]
pub struct EntryLine<'a> {
    /// The path itself if it is valid UTF-8, else as it is shown on a screen.
    pub path: Cow<'a, str>,
    /// The bytes of a path that is not valid UTF-8, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    pub size: u64,
    pub mtime: String,
    pub root: Option<String>,
    pub outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl<'a> EntryLine<'a> {
    pub fn new(entry: &'a EntryReport) -> Self {
        let (path, path_bytes) = json_path(&entry.path);
        let (outcome, error) = match &entry.outcome {
            Outcome::Done => ("done", None),
            Outcome::Skipped => ("skipped", None),
            Outcome::Would => ("would", None),
            Outcome::Failed(failure) => ("failed", Some(shown(failure.text()))),
        };
        Self {
            path,
            path_bytes,
            size: entry.size,
            mtime: timestamp(entry.mtime),
            root: entry.root.map(|root| root.to_string()),
            outcome,
            error,
        }
    }
}

/// A path as text, and its bytes in hexadecimal where text cannot say it.
pub fn json_path(path: &[u8]) -> (Cow<'_, str>, Option<String>) {
    match std::str::from_utf8(path) {
        Ok(text) => (text.into(), None),
        Err(_) => (Escaped(path).to_string().into(), Some(hex(path))),
    }
}

/// Writes the report. After a lost connection the engine looks at every entry again, so it is
/// remembered what was written already.
pub struct ReportFile {
    name: String,
    out: Box<dyn Write + Send>,
    hasher: RandomState,
    /// Hashes of the paths that have a line.
    written: HashSet<u64>,
    /// Lines of failed entries, held back because another attempt may still succeed.
    failed: HashMap<u64, String>,
}

impl std::fmt::Debug for ReportFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReportFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ReportFile {
    /// Makes the file, or takes standard output for `-`.
    pub fn create(name: &OsStr) -> Result<Self, ReportError> {
        if name == "-" {
            return Ok(Self::new("on standard output".into(), Box::new(io::stdout())));
        }
        let shown = Escaped(name.as_encoded_bytes()).to_string();
        match std::fs::File::create(name) {
            Ok(file) => Ok(Self::new(shown, Box::new(BufWriter::new(file)))),
            Err(cause) => Err(ReportError { name: shown, cause }),
        }
    }

    fn new(name: String, out: Box<dyn Write + Send>) -> Self {
        let (written, failed) = (HashSet::new(), HashMap::new());
        Self { name, out, hasher: RandomState::new(), written, failed }
    }

    /// Takes note of an entry that has ended: all files, and whatever failed.
    pub fn add(&mut self, entry: &EntryReport) -> Result<(), ReportError> {
        let failed = matches!(entry.outcome, Outcome::Failed(_));
        if entry.kind != EntryKind::File && !failed {
            return Ok(());
        }
        let hash = self.hasher.hash_one(&entry.path);
        // What was transferred in an earlier attempt is found at its place by the next one. Only
        // a file that was transferred anew, because it changed, gets a second line.
        if entry.outcome == Outcome::Skipped && self.written.contains(&hash) {
            return Ok(());
        }
        let line = json_line(&EntryLine::new(entry)).map_err(|cause| self.error(cause))?;
        if failed && self.failed.len() < MAX_HELD_BACK {
            self.failed.insert(hash, line);
            return Ok(());
        }
        self.failed.remove(&hash);
        self.written.insert(hash);
        self.out.write_all(line.as_bytes()).map_err(|cause| self.error(cause))
    }

    /// Writes what is left.
    pub fn finish(mut self) -> Result<(), ReportError> {
        let failed = std::mem::take(&mut self.failed);
        let written = failed.values().try_for_each(|line| self.out.write_all(line.as_bytes()));
        written.and_then(|()| self.out.flush()).map_err(|cause| self.error(cause))
    }

    fn error(&self, cause: io::Error) -> ReportError {
        ReportError { name: self.name.clone(), cause }
    }
}

/// A value as one line of JSON.
pub fn json_line(value: &impl Serialize) -> io::Result<String> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    Ok(line)
}

/// The report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report {name}: {cause}")]
pub struct ReportError {
    name: String,
    cause: io::Error,
}

/// How many failed entries are held back at the most; further ones are written at once.
const MAX_HELD_BACK: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::chunk::Digest;
    use crate::protocol::manifest::Timestamp;
    use crate::protocol::message::{Failure, FailureCode};
    use serde_json::Value;

    fn entry(path: &[u8], outcome: Outcome) -> EntryReport {
        let mtime = Timestamp::new(-2, 500_000_000).unwrap();
        let root = (outcome == Outcome::Done).then_some(Digest([0xab; 32]));
        EntryReport { path: path.into(), kind: EntryKind::File, size: 7, mtime, root, outcome }
    }

    fn failed() -> Outcome {
        Outcome::Failed(Failure::new(FailureCode::Io, "cannot read \x1bx"))
    }

    fn lines(entries: &[EntryReport]) -> Vec<Value> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report");
        let mut report = ReportFile::create(path.as_os_str()).unwrap();
        for entry in entries {
            report.add(entry).unwrap();
        }
        report.finish().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_says_everything() {
        let lines = lines(&[entry(b"d/a\n\"b", Outcome::Done), entry(b"x", failed())]);
        let root = "ab".repeat(32);
        let done = serde_json::json!({
            "path": "d/a\n\"b", "size": 7, "mtime": "-1.500000000", "root": root, "outcome": "done"
        });
        let failed = serde_json::json!({
            "path": "x", "size": 7, "mtime": "-1.500000000", "root": null, "outcome": "failed",
            "error": "cannot read \\u{1b}x"
        });
        assert_eq!(lines, [done, failed]);
    }

    #[test]
    fn paths_that_are_not_utf8_lose_nothing() {
        let lines = lines(&[entry(b"caf\xe9", Outcome::Would)]);
        assert_eq!(lines[0]["path"], "caf\\xe9");
        assert_eq!(lines[0]["path_bytes"], "636166e9");
    }

    #[test]
    fn directories_are_left_out_unless_they_failed() {
        let directory =
            |outcome| EntryReport { kind: EntryKind::Directory, ..entry(b"d", outcome) };
        assert!(lines(&[directory(Outcome::Done), directory(Outcome::Skipped)]).is_empty());
        assert_eq!(lines(&[directory(failed())]).len(), 1);
    }

    #[test]
    fn a_file_has_one_line_though_the_session_reconnects() {
        let outcomes = |entries: &[EntryReport]| {
            let lines = lines(entries);
            lines.iter().map(|line| line["outcome"].clone()).collect::<Vec<_>>()
        };
        let a = |outcome| entry(b"a", outcome);
        assert_eq!(outcomes(&[a(Outcome::Done), a(Outcome::Skipped)]), ["done"]);
        assert_eq!(outcomes(&[a(Outcome::Skipped), a(Outcome::Skipped)]), ["skipped"]);
        assert_eq!(outcomes(&[a(failed()), a(failed())]), ["failed"]);
        assert_eq!(outcomes(&[a(failed()), a(Outcome::Done)]), ["done"]);
    }

    #[test]
    fn a_report_that_cannot_be_made_is_an_error() {
        let error = ReportFile::create("/nonexistent/report".as_ref()).unwrap_err().to_string();
        assert!(error.starts_with("cannot write the report /nonexistent/report: "), "{error}");
        if let Ok(mut full) = ReportFile::create("/dev/full".as_ref()) {
            full.add(&entry(b"a", Outcome::Done)).unwrap();
            assert!(full.finish().is_err());
        }
    }
}
