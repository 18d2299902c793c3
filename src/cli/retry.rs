//! `retry`: what an earlier run's report says that failed, and its command.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::Parser as _;
use serde::Deserialize;

use super::UsageError;
use super::args::{Arguments, Command, Retry, Transfer};
use super::flags::Deleting;
use super::job::{Plan, Verb, plan};
use super::lines::{LineError, Lines};
use super::mapping::last_name;
use super::report::{About, CommandLine, ReportError, ReportFile};
use super::rules::Files;
use super::settings::Environment;
use super::text::from_hex;
use crate::engine::job::{Direction, Sources};

/// What a report tells.
#[derive(Debug)]
pub struct Earlier {
    command: CommandLine,
    /// Paths of which something failed.
    failed: BTreeSet<Vec<u8>>,
    /// Something failed of which it is not known what at the source it was about.
    is_anywhere: bool,
    /// Hard links, and the paths that they were to be links of.
    links: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The lines on what could not be deleted.
    not_deleted: Vec<Vec<u8>>,
    /// The run came to its end: nothing else is left to do.
    is_complete: bool,
}

/// A line of a report, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Line {
    job: Option<CommandLine>,
    path: Option<String>,
    path_bytes: Option<String>,
    kind: Option<String>,
    target: Option<String>,
    target_bytes: Option<String>,
    #[serde(default)]
    linked: bool,
    outcome: Option<String>,
    about: Option<About>,
    end: Option<End>,
}

#[derive(Debug, Deserialize)]
struct End {
    complete: bool,
}

/// Why a report cannot be used.
#[derive(Debug)]
pub enum Unusable {
    Unreadable(io::Error),
    Wrong(UsageError),
}

impl From<LineError> for Unusable {
    fn from(error: LineError) -> Self {
        match error {
            LineError::Read(error) => Self::Unreadable(error),
            error @ LineError::TooLong { .. } => Self::Wrong(UsageError::new(error.to_string())),
        }
    }
}

impl Earlier {
    /// Reads a report. Its last line may have been cut off when the run was killed.
    pub fn parse(content: impl BufRead) -> Result<Self, Unusable> {
        let mut lines = Lines::new(content);
        let first = match lines.next()? {
            Some((_, line)) => serde_json::from_slice::<Line>(line).ok(),
            None => None,
        };
        let command = first.and_then(|line| line.job).ok_or_else(|| {
            let text = "it does not begin with the command that it is the report of";
            Unusable::Wrong(UsageError::new(text))
        })?;
        let mut earlier = Self {
            command,
            failed: BTreeSet::new(),
            is_anywhere: false,
            links: Vec::new(),
            not_deleted: Vec::new(),
            is_complete: false,
        };
        while let Some((_, line)) = lines.next()? {
            if line.is_empty() {
                continue;
            }
            let Ok(parsed) = serde_json::from_slice::<Line>(line) else { break };
            earlier.add(parsed, line);
        }
        earlier.add_links();
        Ok(earlier)
    }

    fn add(&mut self, line: Line, raw: &[u8]) {
        if let Some(end) = &line.end {
            self.is_complete = end.complete;
        }
        let is_failed = matches!(line.outcome.as_deref(), Some("failed" | "incomplete"));
        if is_failed && line.about == Some(About::Deletion) {
            return self.not_deleted.push(raw.to_vec());
        }
        let path = bytes(line.path, line.path_bytes.as_deref()).unwrap_or_default();
        if line.kind.as_deref() == Some("hard_link") {
            self.links.push((path.clone(), bytes(line.target, line.target_bytes.as_deref())));
        }
        // Another name of it may lead the others by now, and nobody says which.
        let is_leader = line.linked && line.kind.as_deref() != Some("hard_link");
        if is_failed && (line.about == Some(About::Run) || path.is_empty() || is_leader) {
            self.is_anywhere = true;
        } else if is_failed {
            self.failed.insert(path);
        }
    }

    /// A hard link is made of what is transferred with it, so both its ends are needed.
    fn add_links(&mut self) {
        let mut ends = Vec::new();
        for (path, target) in std::mem::take(&mut self.links) {
            match target {
                Some(target) if self.failed.contains(&path) => ends.push(target),
                Some(target) if self.failed.contains(&target) => ends.push(path),
                Some(_) => {}
                // Which names belong together nobody knows.
                None => self.is_anywhere |= !self.failed.is_empty(),
            }
        }
        self.failed.extend(ends);
    }

    pub fn is_nothing_left(&self) -> bool {
        self.is_complete && self.failed.is_empty() && !self.is_anywhere
    }

    /// How much could not be deleted, and is not deleted now.
    pub fn not_deleted(&self) -> usize {
        self.not_deleted.len()
    }

    /// The paths that are to be done again, if it is not all of them. `names` are those of the
    /// sources, unless what is in one of them is meant.
    fn paths(&self, names: Option<&[Vec<u8>]>) -> Option<Vec<Vec<u8>>> {
        // A single source may have another name at the destination.
        let is_of_source = |path: &Vec<u8>| match names {
            Some(names) => path
                .split(|it| *it == b'/')
                .next()
                .is_some_and(|first| names.iter().any(|name| name == first)),
            None => true,
        };
        let is_known =
            self.is_complete && !self.is_anywhere && self.failed.iter().all(is_of_source);
        is_known.then(|| self.failed.iter().cloned().collect())
    }

    /// The directory in which the command ran.
    pub fn directory(&self) -> Result<PathBuf, UsageError> {
        let directory = self.command.directory.to_os_string();
        directory.map(Into::into).ok_or_else(unreadable)
    }

    /// Puts the job together: the command's, restricted to what failed. The command's directory must
    /// be the current one.
    pub fn plan(&self, retry: &Retry, environment: &Environment<'_>) -> Result<Plan, UsageError> {
        let (verb, mut transfer, deleting) = self.transfer()?;
        // A list of files is of contents, whose paths are all possible.
        let is_listed = transfer.files_from.is_some();
        if is_listed && self.paths(None).is_some() {
            transfer.files_from = Some("/dev/null".into());
        }
        transfer.dry_run |= retry.dry_run;
        transfer.output = retry.output.clone();
        transfer.telling = retry.telling.clone();
        let mut files = Files::without_input();
        let mut plan = plan(verb, &transfer, deleting.as_ref(), environment, &mut files)?;
        let config = &mut plan.job.config;
        config.delete = None;
        if let Some(paths) = self.paths(names(&plan.job.direction).as_deref()) {
            config.select.has_paths = true;
            config.select.whole_directories = transfer.recursive || !is_listed;
            plan.job.paths = Some(paths);
        }
        Ok(plan)
    }

    /// Where the report of the new attempt goes: to `replaced`, unless another file is named.
    pub fn report(
        &self,
        plan: &Plan,
        replaced: &OsString,
    ) -> Result<Option<ReportFile>, ReportError> {
        let mut report = match &plan.report {
            Some(name) => ReportFile::create(name, &self.command)?,
            None if plan.job.config.dry_run => return Ok(None),
            None => ReportFile::replace(replaced, &self.command)?,
        };
        self.not_deleted.iter().try_for_each(|line| report.add_line(line))?;
        Ok(Some(report))
    }

    fn transfer(&self) -> Result<(Verb, Transfer, Option<Deleting>), UsageError> {
        let arguments = self.command.arguments.iter().map(super::report::Text::to_os_string);
        let arguments: Option<Vec<OsString>> =
            std::iter::once(Some("fastsync".into())).chain(arguments).collect();
        let arguments = arguments.ok_or_else(unreadable)?;
        let hidden = super::location::HIDDEN_QUERY.as_bytes();
        if arguments.iter().any(|argument| argument.as_encoded_bytes().ends_with(hidden)) {
            let text = "its URLs had queries, which no report has as they may be secrets; run the command \
                        itself again";
            return Err(UsageError::new(text));
        }
        let parsed = Arguments::try_parse_from(arguments);
        let parsed = parsed.map_err(|error| {
            let version = super::text::shown(&self.command.version);
            let error = error.to_string();
            let error = error.lines().next().unwrap_or_default();
            UsageError::new(format!(
                "its command, of fastsync {version}, is not understood: {error}"
            ))
        })?;
        match parsed.command {
            Command::Push(transfer) => Ok((Verb::Push, *transfer, None)),
            Command::Pull(transfer) => Ok((Verb::Pull, *transfer, None)),
            Command::Cp(transfer) => Ok((Verb::Cp, *transfer, None)),
            Command::Sync(sync) => Ok((Verb::Sync, sync.transfer, Some(sync.deleting))),
            Command::Ls(_)
            | Command::Check(_)
            | Command::Manifest(_)
            | Command::Retry(_)
            | Command::Clean(_)
            | Command::Doctor(_)
            | Command::Bench(_)
            | Command::Agent(_) => Err(UsageError::new("its command transfers nothing")),
        }
    }
}

/// A path as a line of a report has it.
fn bytes(text: Option<String>, hex: Option<&str>) -> Option<Vec<u8>> {
    hex.and_then(from_hex).or_else(|| text.map(String::into_bytes))
}

/// The names of the sources; `None` if what is in one of them is meant.
fn names(direction: &Direction) -> Option<Vec<Vec<u8>>> {
    let name = |path: &[u8]| last_name(path).map(<[u8]>::to_vec);
    match direction {
        Direction::Push { sources: Sources::Endpoint { paths, .. }, .. }
        | Direction::Copy { sources: Sources::Endpoint { paths, .. }, .. } => {
            paths.iter().map(|path| name(path)).collect()
        }
        Direction::Push { sources: Sources::Local(sources), .. }
        | Direction::Copy { sources: Sources::Local(sources), .. } => {
            sources.iter().map(|path| name(path.as_os_str().as_bytes())).collect()
        }
        Direction::Pull { sources, .. }
        | Direction::Between { sources, .. }
        | Direction::Inventory { sources, .. } => sources.iter().map(|path| name(path)).collect(),
        Direction::Measure { .. } | Direction::Clean(_) => None,
    }
}

fn unreadable() -> UsageError {
    UsageError::new("its first line is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::job::{Direction, Sources};
    use crate::protocol::message::MakeRoom;

    fn report(arguments: &str, lines: &str) -> String {
        let job = format!(r#"{{"version":"0.1.0","directory":"/","arguments":[{arguments}]}}"#);
        format!("{{\"job\":{job}}}\n{lines}")
    }

    fn read(content: &str) -> Result<Earlier, UsageError> {
        Earlier::parse(content.as_bytes()).map_err(|error| match error {
            Unusable::Wrong(error) => error,
            Unusable::Unreadable(error) => panic!("{error}"),
        })
    }

    fn planned(arguments: &str, lines: &str) -> Result<Plan, UsageError> {
        let environment =
            Environment(&|name| (name == "FASTSYNC_CONFIG").then(|| "/dev/null".into()));
        let earlier = read(&report(arguments, lines))?;
        earlier.plan(&Retry::default(), &environment)
    }

    const FAILED: &str = "{\"path\":\"d/a\",\"outcome\":\"failed\"}\n\
                          {\"path\":\"b\",\"outcome\":\"done\"}\n\
                          {\"path\":\"c\\\\xff\",\"path_bytes\":\"63ff\",\"outcome\":\"incomplete\"}\n\
                          {\"path\":\"d/a\",\"outcome\":\"failed\"}\n";
    const END: &str = "{\"end\":{\"complete\":true}}\n";

    #[test]
    fn only_what_failed_is_done_again_and_nothing_is_deleted() {
        let lines = format!("{FAILED}{END}");
        let plan = planned(r#""sync","--delete","-a","--report","r",{"bytes":"ff2f"},"b""#, &lines);
        let Plan { job, report, .. } = plan.unwrap();
        assert_eq!(job.paths, Some(vec![b"c\xff".into(), b"d/a".into()]));
        assert!(job.config.select.has_paths && job.config.select.whole_directories);
        assert_eq!((job.config.delete, report), (None, None));
        assert_eq!(job.config.update.make_room, MakeRoom::All);
        let Direction::Copy { sources: Sources::Local(sources), .. } = job.direction else {
            panic!("no copy")
        };
        assert_eq!(sources[0].as_os_str().as_encoded_bytes(), b"\xff/");
    }

    #[test]
    fn a_run_that_did_not_end_is_done_again_as_a_whole() {
        for lines in [FAILED.into(), format!("{FAILED}{{\"end\":{{\"compl")] {
            let job = planned(r#""sync","--delete","a","b""#, &lines).unwrap().job;
            assert!(job.paths.is_none() && job.config.delete.is_none());
        }
        let lines = format!("{{\"path\":\"\",\"outcome\":\"incomplete\"}}\n{END}");
        assert_eq!(planned(r#""cp","a","b""#, &lines).unwrap().job.paths, None);
    }

    #[test]
    fn a_list_of_files_is_not_read_again() {
        let lines = format!("{FAILED}{END}");
        let job = planned(r#""cp","--files-from","-","a","b""#, &lines).unwrap().job;
        assert_eq!(job.paths.unwrap().len(), 2);
        let error = planned(r#""cp","--files-from","-","a","b""#, FAILED).unwrap_err().to_string();
        assert!(error.contains("standard input"), "{error}");
    }

    #[test]
    fn what_cannot_be_run_again_is_refused() {
        let refused = |content: &str| read(content).unwrap_err().to_string();
        assert!(refused("").contains("does not begin with the command"));
        assert!(refused("{\"path\":\"a\"}\n").contains("does not begin with the command"));
        let refused = |arguments: &str| planned(arguments, END).unwrap_err().to_string();
        assert!(refused(r#""ls","a""#).contains("transfers nothing"));
        assert!(refused(r#""fly","a""#).contains("not understood"));
        assert!(refused(r#"{"bytes":"0"}"#).contains("damaged"));
        assert!(read(&report("", END)).unwrap().is_nothing_left());
        assert!(!read(&report("", "")).unwrap().is_nothing_left());
        let endless = report("", &"x".repeat(17 << 20));
        assert!(read(&endless).unwrap_err().to_string().contains("line 2 is longer"));
    }

    /// What is done again of these lines.
    fn paths(arguments: &str, lines: &[&str]) -> Option<Vec<String>> {
        let lines = lines.iter().map(|line| format!("{{{line}}}\n")).collect::<Vec<_>>().concat();
        let paths = planned(arguments, &format!("{lines}{END}")).unwrap().job.paths;
        paths.map(|it| it.into_iter().map(|path| String::from_utf8(path).unwrap()).collect())
    }

    #[test]
    fn what_is_not_known_to_be_of_the_source_is_all_of_it() {
        let new = r#""path":"new","outcome":"failed""#;
        let below = r#""path":"a/x","outcome":"failed""#;
        assert_eq!(paths(r#""cp","ff","dst/new""#, &[new]), None);
        assert_eq!(paths(r#""pull","h:d/ff","dst/new""#, &[new]), None);
        assert_eq!(paths(r#""cp","d/new","e""#, &[new]).unwrap(), ["new"]);
        assert_eq!(paths(r#""push","ff/","h:new""#, &[new]).unwrap(), ["new"]);
        assert_eq!(paths(r#""push","a","b","h:""#, &[below]).unwrap(), ["a/x"]);
        let anywhere = r#""path":"/tmp/dst","outcome":"incomplete","about":"run""#;
        assert_eq!(paths(r#""sync","--delete","a/","b""#, &[below, anywhere]), None);
    }

    #[test]
    fn what_could_not_be_deleted_is_no_path_of_the_source() {
        let line = r#""path":"m","outcome":"incomplete","about":"deletion""#;
        let below = r#""path":"x","outcome":"failed""#;
        assert_eq!(paths(r#""sync","--delete","a/","b""#, &[below, line]).unwrap(), ["x"]);
        let earlier = read(&report("", &format!("{{{line}}}\n{END}"))).unwrap();
        assert!(earlier.is_nothing_left());
        assert_eq!(earlier.not_deleted(), 1);
    }

    #[test]
    fn hard_links_are_done_again_with_what_they_are_links_of() {
        let link = |target: &str, outcome: &str| {
            format!(r#""path":"z","kind":"hard_link"{target},"outcome":"{outcome}""#)
        };
        let (known, unknown) = (r#","target":"leader""#, "");
        let leader = r#""path":"leader","kind":"file","outcome":"failed""#;
        let done = |lines: &[&str]| paths(r#""cp","-H","a/","b""#, lines);
        assert_eq!(done(&[&link(known, "failed")]).unwrap(), ["leader", "z"]);
        assert_eq!(done(&[&link(known, "done"), leader]).unwrap(), ["leader", "z"]);
        let other = r#""path":"x","kind":"file","outcome":"failed""#;
        assert_eq!(done(&[&link(known, "done"), other]).unwrap(), ["x"]);
        assert_eq!(done(&[&link(unknown, "failed")]), None);
        assert_eq!(done(&[&link(unknown, "done"), leader]), None);
        let linked = r#""path":"x","kind":"file","linked":true,"outcome":"failed""#;
        assert_eq!(done(&[linked]), None);
    }

    #[test]
    fn directories_of_a_list_are_taken_whole_only_if_they_were() {
        for (arguments, whole) in [
            (r#""cp","--files-from","-","a","b""#, false),
            (r#""cp","-R","--files-from","-","a","b""#, true),
            (r#""cp","a/","b""#, true),
        ] {
            let lines = format!("{{\"path\":\"d\",\"outcome\":\"failed\"}}\n{END}");
            let select = planned(arguments, &lines).unwrap().job.config.select;
            assert_eq!((select.has_paths, select.whole_directories), (true, whole));
        }
    }
}
