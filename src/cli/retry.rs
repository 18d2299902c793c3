//! `retry`: what an earlier run's report says that failed, and its command.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser as _;
use serde::Deserialize;

use super::UsageError;
use super::args::{Arguments, Command, Retry, Transfer};
use super::flags::Deleting;
use super::job::{Plan, Verb, plan};
use super::report::{CommandLine, ReportError, ReportFile};
use super::rules::Files;
use super::settings::Environment;
use super::text::from_hex;

/// What a report tells.
#[derive(Debug)]
pub struct Earlier {
    command: CommandLine,
    /// Paths of which something failed.
    failed: Vec<Vec<u8>>,
    /// The run came to its end: nothing else is left to do.
    is_complete: bool,
}

/// A line of a report, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Line {
    job: Option<CommandLine>,
    path: Option<String>,
    path_bytes: Option<String>,
    outcome: Option<String>,
    end: Option<End>,
}

#[derive(Debug, Deserialize)]
struct End {
    complete: bool,
}

impl Earlier {
    /// Reads a report. Its last line may have been cut off when the run was killed.
    pub fn parse(content: &[u8]) -> Result<Self, UsageError> {
        let mut lines = content.split(|byte| *byte == b'\n');
        let first = lines.next().and_then(|line| serde_json::from_slice::<Line>(line).ok());
        let command = first.and_then(|line| line.job).ok_or_else(|| {
            UsageError::new("it does not begin with the command that it is the report of")
        })?;
        let mut earlier = Self { command, failed: Vec::new(), is_complete: false };
        for line in lines.filter(|line| !line.is_empty()) {
            let Ok(line) = serde_json::from_slice::<Line>(line) else { break };
            if let Some(end) = &line.end {
                earlier.is_complete = end.complete;
            }
            if matches!(line.outcome.as_deref(), Some("failed" | "incomplete")) {
                let bytes = line.path_bytes.as_deref().and_then(from_hex);
                earlier.failed.extend(bytes.or_else(|| line.path.map(String::into_bytes)));
            }
        }
        Ok(earlier)
    }

    pub fn is_nothing_left(&self) -> bool {
        self.is_complete && self.failed.is_empty()
    }

    /// The paths that are to be done again, if it is not all of them.
    fn paths(&self) -> Option<Vec<Vec<u8>>> {
        // What could not be listed may have no path, and then is anywhere.
        let is_known = self.is_complete && self.failed.iter().all(|path| !path.is_empty());
        is_known.then(|| {
            let mut paths = self.failed.clone();
            paths.sort_unstable();
            paths.dedup();
            paths
        })
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
        let paths = self.paths();
        if paths.is_some() && transfer.files_from.is_some() {
            // Its sources are read as they were then; which of its paths are meant is known.
            transfer.files_from = Some("/dev/null".into());
        }
        transfer.dry_run |= retry.dry_run;
        transfer.output = retry.output.clone();
        transfer.telling = retry.telling.clone();
        let mut files = Files::without_input();
        let mut plan = plan(verb, &transfer, deleting.as_ref(), environment, &mut files)?;
        let config = &mut plan.job.config;
        config.delete = None;
        if paths.is_some() {
            (config.select.has_paths, config.select.whole_directories) = (true, true);
            plan.job.paths = paths;
        }
        Ok(plan)
    }

    /// Where the report of the new attempt goes: to `replaced`, unless another file is named.
    pub fn report(
        &self,
        plan: &Plan,
        replaced: &OsString,
    ) -> Result<Option<ReportFile>, ReportError> {
        match &plan.report {
            Some(name) => ReportFile::create(name, &self.command).map(Some),
            None if plan.job.config.dry_run => Ok(None),
            None => ReportFile::replace(replaced, &self.command).map(Some),
        }
    }

    fn transfer(&self) -> Result<(Verb, Transfer, Option<Deleting>), UsageError> {
        let arguments = self.command.arguments.iter().map(super::report::Text::to_os_string);
        let arguments: Option<Vec<OsString>> =
            std::iter::once(Some("fastsync".into())).chain(arguments).collect();
        let parsed = Arguments::try_parse_from(arguments.ok_or_else(unreadable)?);
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
            | Command::Agent { .. } => Err(UsageError::new("its command transfers nothing")),
        }
    }
}

fn unreadable() -> UsageError {
    UsageError::new("its first line is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::job::Direction;
    use crate::protocol::message::MakeRoom;

    fn report(arguments: &str, lines: &str) -> String {
        let job = format!(r#"{{"version":"0.1.0","directory":"/","arguments":[{arguments}]}}"#);
        format!("{{\"job\":{job}}}\n{lines}")
    }

    fn planned(arguments: &str, lines: &str) -> Result<Plan, UsageError> {
        let environment =
            Environment(&|name| (name == "FASTSYNC_CONFIG").then(|| "/dev/null".into()));
        let earlier = Earlier::parse(report(arguments, lines).as_bytes())?;
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
        let plan = planned(r#""sync","--delete","-a","--report","r",{"bytes":"ff"},"b""#, &lines);
        let Plan { job, report, .. } = plan.unwrap();
        assert_eq!(job.paths, Some(vec![b"c\xff".into(), b"d/a".into()]));
        assert!(job.config.select.has_paths && job.config.select.whole_directories);
        assert_eq!((job.config.delete, report), (None, None));
        assert_eq!(job.config.update.make_room, MakeRoom::All);
        let Direction::Copy { sources, .. } = job.direction else { panic!("no copy") };
        assert_eq!(sources[0].as_os_str().as_encoded_bytes(), b"\xff");
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
        let refused = |content: &str| Earlier::parse(content.as_bytes()).unwrap_err().to_string();
        assert!(refused("").contains("does not begin with the command"));
        assert!(refused("{\"path\":\"a\"}\n").contains("does not begin with the command"));
        let refused = |arguments: &str| planned(arguments, END).unwrap_err().to_string();
        assert!(refused(r#""ls","a""#).contains("transfers nothing"));
        assert!(refused(r#""fly","a""#).contains("not understood"));
        assert!(refused(r#"{"bytes":"0"}"#).contains("damaged"));
        assert!(Earlier::parse(report("", END).as_bytes()).unwrap().is_nothing_left());
        assert!(!Earlier::parse(report("", "").as_bytes()).unwrap().is_nothing_left());
    }
}
