//! The report file, for programs and for `retry`: the command, then one JSON line a file, then how it
//! ended.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::itemize::words;
use super::location::without_secrets;
use super::mapping::Route;
use super::text::{from_hex, hex, shown, timestamp};
use crate::engine::event::{EntryKind, EntryReport};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Failure, Outcome, Special};

/// One entry, as programs read it.
#[derive(Debug, Serialize)]
pub struct EntryLine<'a> {
    /// The path itself if it is valid UTF-8, else as it is shown on a screen.
    pub path: Cow<'a, str>,
    /// The bytes of a path that is not valid UTF-8, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    pub kind: &'static str,
    pub size: u64,
    pub mtime: String,
    pub root: Option<String>,
    /// Where a symlink leads, or what a hard link is a link of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<String>,
    /// It has hard links among what is transferred.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub linked: bool,
    pub outcome: &'static str,
    /// What was changed, or would be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// In a dry run: where it comes from and where it goes, as on a screen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
}

impl<'a> EntryLine<'a> {
    pub fn new(entry: &'a EntryReport) -> Self {
        let (path, path_bytes) = json_path(&entry.path);
        let (target, target_bytes) = entry.target.as_deref().map(json_path).unzip();
        let (outcome, changes, error) = match &entry.outcome {
            Outcome::Done(changes) => ("done", words(*changes), None),
            Outcome::Skipped => ("skipped", Vec::new(), None),
            Outcome::Left => ("left", Vec::new(), None),
            Outcome::Would(changes) => ("would", words(*changes), None),
            Outcome::Failed(failure) => ("failed", Vec::new(), Some(shown(failure.text()))),
        };
        Self {
            path,
            path_bytes,
            kind: kind(entry.kind),
            size: entry.size,
            mtime: timestamp(entry.metadata.mtime),
            root: entry.root.map(|root| root.to_string()),
            target,
            target_bytes: target_bytes.flatten(),
            linked: entry.is_linked,
            outcome,
            changes,
            error,
            source: None,
            destination: None,
        }
    }

    /// The same line with where the entry comes from and goes to.
    #[must_use]
    pub fn on(self, route: &Route) -> Self {
        let shown = |path: &Vec<u8>| Escaped(path).to_string();
        let source = route.source.as_ref().map(shown);
        Self { source, destination: Some(shown(&route.destination)), ..self }
    }
}

/// What sort of thing an entry is, for programs.
pub fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory => "directory",
        EntryKind::File => "file",
        EntryKind::Symlink => "symlink",
        EntryKind::Special(Special::Fifo) => "fifo",
        EntryKind::Special(Special::Socket) => "socket",
        EntryKind::Special(Special::CharacterDevice { .. }) => "character_device",
        EntryKind::Special(Special::BlockDevice { .. }) => "block_device",
        EntryKind::HardLink => "hard_link",
        EntryKind::Other => "other",
    }
}

/// Something that is known by its path alone, as programs read it.
#[derive(Debug, Serialize)]
pub struct PathLine<'a> {
    pub path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_directory: Option<bool>,
    pub outcome: &'static str,
    /// If it is not about something of the source, or it is not known of what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<About>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a complaint is about, if not about what has its path at the source.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// Something that was to be deleted at the destination.
    Deletion,
    /// The run, or nobody knows what of it.
    Run,
}

impl About {
    /// What a complaint is about. `deletes`: what stays is not what a source file could not give up.
    pub fn of_complaint(path: &[u8], failure: &Failure, deletes: bool) -> Option<Self> {
        let text = failure.text();
        let is_deletion = text.starts_with("cannot remove ") || text.starts_with("cannot back up ");
        if deletes && is_deletion {
            return Some(Self::Deletion);
        }
        // What cannot be removed may be at either end. The destination itself has an absolute path,
        // and what the other end complains of may have the number of an entry.
        let is_numbered = path
            .strip_prefix(b"entry ")
            .is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit));
        let is_unknown = path.is_empty() || path.starts_with(b"/") || is_numbered || is_deletion;
        is_unknown.then_some(Self::Run)
    }
}

impl<'a> PathLine<'a> {
    /// Something that was removed, or in a dry run would be.
    pub fn deleted(path: &'a [u8], is_directory: bool, dry_run: bool) -> Self {
        let (path, path_bytes) = json_path(path);
        let outcome = if dry_run { "would_delete" } else { "deleted" };
        let is_directory = Some(is_directory);
        Self { path, path_bytes, is_directory, outcome, about: None, error: None }
    }

    /// Something of which not all could be listed or kept.
    pub fn complaint(path: &'a [u8], about: Option<About>, failure: &Failure) -> Self {
        let (path, path_bytes) = json_path(path);
        let error = Some(shown(failure.text()));
        Self { path, path_bytes, is_directory: None, outcome: "incomplete", about, error }
    }
}

/// A path as text, and its bytes in hexadecimal where text cannot say it.
pub fn json_path(path: &[u8]) -> (Cow<'_, str>, Option<String>) {
    match std::str::from_utf8(path) {
        Ok(text) => (text.into(), None),
        Err(_) => (Escaped(path).to_string().into(), Some(hex(path))),
    }
}

/// The command that a report is of: enough to run it again.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CommandLine {
    pub version: String,
    /// The working directory.
    pub directory: Text,
    /// What came after the program's name.
    pub arguments: Vec<Text>,
}

impl CommandLine {
    /// That of this process.
    pub fn of_process() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            directory: Text::new(std::env::current_dir().unwrap_or_default().into_os_string()),
            arguments: std::env::args_os().skip(1).map(|it| Text::new(told(&it))).collect(),
        }
    }
}

/// An argument as it is told, whether a location or a flag with a URL behind it.
fn told(argument: &OsStr) -> OsString {
    let bytes = argument.as_bytes();
    let flag = bytes.iter().position(|byte| *byte == b'=').filter(|_| bytes.starts_with(b"--"));
    let (flag, value) = bytes.split_at(flag.map_or(0, |at| at + 1));
    OsString::from_vec([flag, &without_secrets(value)].concat())
}

/// Bytes that are mostly text: a string, or `{"bytes": "ff00"}` where that cannot be.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Text {
    Plain(String),
    Hex { bytes: String },
}

impl Default for Text {
    fn default() -> Self {
        Self::Plain(String::new())
    }
}

impl Text {
    pub fn new(text: OsString) -> Self {
        match text.into_string() {
            Ok(text) => Self::Plain(text),
            Err(text) => Self::Hex { bytes: hex(text.as_bytes()) },
        }
    }

    /// `None` if the digits are no digits.
    pub fn to_os_string(&self) -> Option<OsString> {
        match self {
            Self::Plain(text) => Some(text.into()),
            Self::Hex { bytes } => from_hex(bytes).map(OsString::from_vec),
        }
    }
}

/// The first line of a report.
#[derive(Debug, Serialize)]
struct JobLine<'a> {
    job: &'a CommandLine,
}

/// The last line of a report.
#[derive(Debug, Serialize)]
struct EndLine {
    end: End,
}

#[derive(Debug, Serialize)]
struct End {
    /// Every entry was told.
    complete: bool,
}

/// Writes the report. After a lost connection the engine looks at every entry again, so it is
/// remembered what was written already.
pub struct ReportFile {
    name: String,
    out: Box<dyn Write + Send>,
    /// What is written, and what it becomes if the run comes to its end.
    replacing: Option<(PathBuf, PathBuf)>,
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
    pub fn create(name: &OsStr, command: &CommandLine) -> Result<Self, ReportError> {
        if name == "-" {
            let report = Self::new("on standard output".into(), Box::new(io::stdout()));
            return report.begun(command);
        }
        let shown = Escaped(name.as_encoded_bytes()).to_string();
        match std::fs::File::create(name) {
            Ok(file) => Self::new(shown, Box::new(BufWriter::new(file))).begun(command),
            Err(cause) => Err(ReportError { name: shown, cause }),
        }
    }

    /// Writes beside a report, which is replaced once the run has come to its end: until then it is
    /// what the next attempt begins with.
    pub fn replace(name: &OsStr, command: &CommandLine) -> Result<Self, ReportError> {
        let mut beside = name.to_os_string();
        beside.push(".new");
        let report = Self::create(&beside, command)?;
        let name_shown = Escaped(name.as_encoded_bytes()).to_string();
        Ok(Self { name: name_shown, replacing: Some((beside.into(), name.into())), ..report })
    }

    fn new(name: String, out: Box<dyn Write + Send>) -> Self {
        let (written, failed) = (HashSet::new(), HashMap::new());
        Self { name, out, replacing: None, hasher: RandomState::new(), written, failed }
    }

    fn begun(mut self, command: &CommandLine) -> Result<Self, ReportError> {
        self.write(&JobLine { job: command })?;
        // Buffered data that cannot be written shows here, before anything is transferred.
        self.out.flush().map_err(|cause| self.error(cause))?;
        Ok(self)
    }

    /// Takes note of an entry that has ended: all files, and whatever failed.
    pub fn add(&mut self, entry: &EntryReport) -> Result<(), ReportError> {
        let failed = matches!(entry.outcome, Outcome::Failed(_));
        if !matches!(entry.kind, EntryKind::File | EntryKind::HardLink) && !failed {
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

    /// Takes note of something else.
    pub fn add_path(&mut self, line: &PathLine<'_>) -> Result<(), ReportError> {
        self.write(line)
    }

    /// Takes over a line of an earlier report.
    pub fn add_line(&mut self, line: &[u8]) -> Result<(), ReportError> {
        let written = self.out.write_all(line).and_then(|()| self.out.write_all(b"\n"));
        written.map_err(|cause| self.error(cause))
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), ReportError> {
        let line = json_line(line).map_err(|cause| self.error(cause))?;
        self.out.write_all(line.as_bytes()).map_err(|cause| self.error(cause))
    }

    /// Writes what is left. `complete`: every entry was told.
    pub fn finish(mut self, complete: bool) -> Result<(), ReportError> {
        let failed = std::mem::take(&mut self.failed);
        let written = failed.values().try_for_each(|line| self.out.write_all(line.as_bytes()));
        written.map_err(|cause| self.error(cause))?;
        self.write(&EndLine { end: End { complete } })?;
        self.out.flush().map_err(|cause| self.error(cause))?;
        let replaced = match &self.replacing {
            Some((beside, name)) if complete => std::fs::rename(beside, name),
            Some((beside, _)) => std::fs::remove_file(beside),
            None => Ok(()),
        };
        replaced.map_err(|cause| self.error(cause))
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
    use crate::cli::itemize;
    use crate::protocol::chunk::Digest;
    use crate::protocol::message::{Changes, FailureCode};
    use serde_json::Value;

    #[test]
    fn secrets_stay_out_of_reports() {
        let kept = |argument: &str| told(argument.as_ref()).into_string().unwrap();
        for (argument, start) in [
            ("HTTPS://h/a?sig=secret", "HTTPS://h/a?"),
            ("--endpoint=https://me:secret@h", "--endpoint=https://me:"),
            ("davs://m@e:secret@h/a?secret", "davs://m@e:"),
        ] {
            let kept = kept(argument);
            assert!(kept.starts_with(start) && !kept.contains("secret"), "{kept}");
        }
        for other in ["a?b", "s3://b/a?b", "--exclude=?", "http://me@h/a", "sftp://h:1/a?b@c:d"] {
            assert_eq!(kept(other), other);
        }
    }

    fn entry(path: &[u8], outcome: Outcome) -> EntryReport {
        let root = matches!(outcome, Outcome::Done(_)).then_some(Digest([0xab; 32]));
        EntryReport { root, ..itemize::tests::entry(path, EntryKind::File, outcome) }
    }

    fn done() -> Outcome {
        Outcome::Done(Changes::CREATED_WITH_CONTENT)
    }

    fn failed() -> Outcome {
        Outcome::Failed(Failure::new(FailureCode::Io, "cannot read \x1bx"))
    }

    fn read(path: &std::path::Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The lines between the first and the last.
    fn lines(entries: &[EntryReport]) -> Vec<Value> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report");
        let mut report = ReportFile::create(path.as_os_str(), &CommandLine::default()).unwrap();
        for entry in entries {
            report.add(entry).unwrap();
        }
        report.finish(true).unwrap();
        let mut lines = read(&path);
        assert_eq!(lines.pop().unwrap(), serde_json::json!({ "end": { "complete": true } }));
        assert_eq!(lines.remove(0)["job"]["arguments"], Value::Array(Vec::new()));
        lines
    }

    #[test]
    fn a_line_says_everything() {
        let lines = lines(&[entry(b"d/a\n\"b", done()), entry(b"x", failed())]);
        let root = "ab".repeat(32);
        let done = serde_json::json!({
            "path": "d/a\n\"b", "kind": "file", "size": 5, "mtime": "-1.500000000", "root": root,
            "outcome": "done", "changes": ["created", "content"]
        });
        let failed = serde_json::json!({
            "path": "x", "kind": "file", "size": 5, "mtime": "-1.500000000", "root": null,
            "outcome": "failed", "error": "cannot read \\u{1b}x"
        });
        assert_eq!(lines, [done, failed]);
    }

    #[test]
    fn paths_that_are_not_utf8_lose_nothing() {
        let lines = lines(&[entry(b"caf\xe9", Outcome::Would(Changes::CREATED))]);
        assert_eq!(lines[0]["path"], "caf\\xe9");
        assert_eq!(lines[0]["path_bytes"], "636166e9");
    }

    #[test]
    fn arguments_that_are_not_utf8_lose_nothing() {
        for (bytes, json) in [(&b"caf\xe9"[..], r#"{"bytes":"636166e9"}"#), (b"a\n", r#""a\n""#)] {
            let text = Text::new(OsString::from_vec(bytes.into()));
            assert_eq!(serde_json::to_string(&text).unwrap(), json);
            let again: Text = serde_json::from_str(json).unwrap();
            assert_eq!(again.to_os_string().unwrap().as_bytes(), bytes);
        }
    }

    #[test]
    fn directories_are_left_out_unless_they_failed() {
        let directory =
            |outcome| EntryReport { kind: EntryKind::Directory, ..entry(b"d", outcome) };
        assert!(lines(&[directory(done()), directory(Outcome::Skipped)]).is_empty());
        assert_eq!(lines(&[directory(failed())]).len(), 1);
    }

    #[test]
    fn a_file_has_one_line_though_the_session_reconnects() {
        let outcomes = |entries: &[EntryReport]| {
            let lines = lines(entries);
            lines.iter().map(|line| line["outcome"].clone()).collect::<Vec<_>>()
        };
        let a = |outcome| entry(b"a", outcome);
        assert_eq!(outcomes(&[a(done()), a(Outcome::Skipped)]), ["done"]);
        assert_eq!(outcomes(&[a(Outcome::Skipped), a(Outcome::Skipped)]), ["skipped"]);
        assert_eq!(outcomes(&[a(failed()), a(failed())]), ["failed"]);
        assert_eq!(outcomes(&[a(failed()), a(done())]), ["done"]);
    }

    #[test]
    fn deletions_and_complaints_have_lines_too() {
        let line = |line: &PathLine<'_>| serde_json::to_value(line).unwrap();
        let deleted = line(&PathLine::deleted(b"d\xff", true, false));
        let wanted = serde_json::json!({
            "path": "d\\xff", "path_bytes": "64ff", "is_directory": true, "outcome": "deleted"
        });
        assert_eq!(deleted, wanted);
        assert_eq!(line(&PathLine::deleted(b"d", false, true))["outcome"], "would_delete");
        let failure = Failure::new(FailureCode::Permission, "no");
        let complaint = line(&PathLine::complaint(b"x", None, &failure));
        assert_eq!(
            (&complaint["outcome"], &complaint["error"]),
            (&"incomplete".into(), &"no".into())
        );
        let complaint = line(&PathLine::complaint(b"x", Some(About::Deletion), &failure));
        assert_eq!(complaint["about"], "deletion");
    }

    #[test]
    fn complaints_say_if_they_are_not_about_the_source() {
        use crate::storage::{Operation, StorageError};
        let about = |error: StorageError, deletes| {
            About::of_complaint(error.path(), &error.to_failure(), deletes)
        };
        let io = |operation, path: &[u8]| {
            StorageError::io(operation, path)(io::Error::from(io::ErrorKind::PermissionDenied))
        };
        for operation in [Operation::Remove, Operation::BackUp] {
            assert_eq!(about(io(operation, b"m"), true), Some(About::Deletion));
            assert_eq!(about(io(operation, b"m"), false), Some(About::Run));
        }
        assert_eq!(about(io(Operation::SetTimes, b"d/x"), true), None);
        let empty = StorageError::EmptySource { path: b"/dst".to_vec() };
        assert_eq!(about(empty, true), Some(About::Run));
        for path in ["", "/dst", "entry 12"] {
            assert_eq!(about(io(Operation::List, path.as_bytes()), true), Some(About::Run));
        }
        for path in ["entry ", "entry 1a", "x"] {
            assert_eq!(about(io(Operation::List, path.as_bytes()), true), None);
        }
    }

    #[test]
    fn a_hard_link_has_what_it_is_a_link_of() {
        let link = EntryReport {
            kind: EntryKind::HardLink,
            target: Some(b"caf\xe9".to_vec()),
            ..entry(b"z", failed())
        };
        let line = &lines(&[link])[0];
        assert_eq!(
            (&line["target"], &line["target_bytes"]),
            (&"caf\\xe9".into(), &"636166e9".into())
        );
    }

    #[test]
    fn a_report_is_replaced_only_by_a_complete_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report");
        std::fs::write(&path, "old\n").unwrap();
        for complete in [false, true] {
            let mut report =
                ReportFile::replace(path.as_os_str(), &CommandLine::default()).unwrap();
            report.add(&entry(b"a", done())).unwrap();
            report.finish(complete).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text == "old\n", !complete);
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        }
        assert_eq!(read(&path).len(), 3);
    }

    #[test]
    fn a_report_that_cannot_be_made_is_an_error() {
        let create = |name: &str| ReportFile::create(name.as_ref(), &CommandLine::default());
        let error = create("/nonexistent/report").unwrap_err().to_string();
        assert!(error.starts_with("cannot write the report /nonexistent/report: "), "{error}");
        assert!(create("/dev/full").is_err());
    }
}
