//! What the user sees: arguments become a job, the engine runs it, and its end becomes a summary
//! and an exit code. Nothing else in this crate prints.
//!
//! `args` and `flags` are what was typed, `settings`, `config`, `location`, `rules` and `values` say
//! what it can mean, `meaning`, `job` and `look` put it together; `run` runs it, `progress` watches, and
//! `transfer`, `listing`, `manifest` and `check` are what the subcommands make of it, with `itemize`,
//! `mapping` and `stats`; `measuring`, `doctor` and `bench` show what was measured; `screen` writes, and `report`, `retry`, `summary` and `exit` conclude.

mod args;
mod bench;
mod check;
mod clean;
mod config;
mod doctor;
mod exit;
mod flags;
mod itemize;
mod job;
mod lines;
mod listing;
mod location;
mod look;
mod manifest;
mod mapping;
mod meaning;
mod measuring;
mod progress;
mod report;
mod retry;
mod rules;
mod run;
mod screen;
mod settings;
mod signals;
mod stats;
mod summary;
mod text;
mod transfer;
mod units;
mod values;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use clap::Parser as _;
use thiserror::Error;

use crate::engine;
use crate::engine::agent::{Access, Rights};
use crate::engine::measure::What;
use crate::protocol::manifest::Escaped;
use args::{
    Agent, Arguments, Check, Clean, Command, Connecting, Looking, Ls, Manifest, Measuring, Retry,
    Transfer,
};
use bench::Bench;
use check::{Comparison, ManifestCheck};
use clean::Leftovers;
use doctor::Doctor;
use flags::{Choosing, Deleting};
use job::{Plan, Verb};
use lines::LineError;
use listing::{Listing, Names, Prefix, Style};
use location::Location;
use look::Inventory;
use manifest::{BadManifest, Manifests};
use progress::Viewer;
use report::{CommandLine, ReportFile};
use retry::{Earlier, Unusable};
use rules::Files;
use run::{Kind, Session};
use screen::Screen;
use settings::Environment;
use transfer::Transfers;
use units::PortRange;

/// A command that cannot be carried out as it stands, and what to write instead.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let result = match Arguments::try_parse().map(|arguments| arguments.command) {
        Ok(Command::Push(transfer)) => run_transfer(Verb::Push, &transfer, None),
        Ok(Command::Pull(transfer)) => run_transfer(Verb::Pull, &transfer, None),
        Ok(Command::Cp(transfer)) => run_transfer(Verb::Cp, &transfer, None),
        Ok(Command::Sync(sync)) => run_transfer(Verb::Sync, &sync.transfer, Some(&sync.deleting)),
        Ok(Command::Ls(ls)) => run_ls(&ls),
        Ok(Command::Check(check)) => run_check(&check),
        Ok(Command::Manifest(manifest)) => run_manifest(&manifest),
        Ok(Command::Retry(retry)) => run_retry(&retry),
        Ok(Command::Clean(clean)) => run_clean(&clean),
        Ok(Command::Doctor(measuring)) => run_measuring(What::Everything, &measuring),
        Ok(Command::Bench(measuring)) => run_measuring(What::Speed, &measuring),
        Ok(Command::Agent(agent)) => run_agent(&agent),
        Err(error) => {
            // That help cannot be printed, because `head` has seen enough, is no failure.
            _ = error.print();
            Ok(if error.use_stderr() { exit::USAGE } else { exit::DONE })
        }
    };
    let code = result.unwrap_or_else(|Refusal { text, code }| {
        say(&text);
        code
    });
    code.into()
}

/// Why a command ended before anything was done.
#[derive(Debug)]
struct Refusal {
    text: String,
    code: u8,
}

impl Refusal {
    /// A file of this machine could not be read or written.
    fn file(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: exit::FILE }
    }
}

impl From<UsageError> for Refusal {
    fn from(error: UsageError) -> Self {
        Self { text: error.to_string(), code: exit::USAGE }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { text: format!("cannot start: {error}"), code: exit::STARTUP }
    }
}

const ENVIRONMENT: Environment<'static> = Environment(&|name| std::env::var_os(name));

fn run_transfer(
    verb: Verb,
    transfer: &Transfer,
    deleting: Option<&Deleting>,
) -> Result<u8, Refusal> {
    let mut files = Files::default();
    let plan = job::plan(verb, transfer, deleting, &ENVIRONMENT, &mut files)?;
    let name = plan.report.as_deref();
    let report = name.map(|name| ReportFile::create(name, &CommandLine::of_process()));
    let report = report.transpose().map_err(|error| Refusal::file(error.to_string()))?;
    let viewer = Transfers::new(report, &plan.job.config);
    run_plan(plan, Kind::Transfer, Box::new(viewer))
}

fn run_plan(plan: Plan, kind: Kind, viewer: Box<dyn Viewer>) -> Result<u8, Refusal> {
    let screen = Screen::new(plan.display);
    run::with_runtime(|runtime| {
        let session = Session { job: plan.job, screen, viewer };
        Ok(run::conclude(run::execute(runtime, session)?, kind).0)
    })
}

/// Runs the command of a report again.
fn run_retry(retry: &Retry) -> Result<u8, Refusal> {
    let shown = Escaped(retry.file.as_bytes());
    let unreadable = |error| Refusal::file(format!("cannot read the report {shown}: {error}"));
    let file = File::open(&retry.file).map_err(unreadable)?;
    let wrong = |UsageError(text)| UsageError(format!("cannot retry {shown}: {text}"));
    let earlier = Earlier::parse(BufReader::new(file)).map_err(|error| match error {
        Unusable::Unreadable(error) => unreadable(error),
        Unusable::Wrong(error) => wrong(error).into(),
    })?;
    if earlier.is_nothing_left() && earlier.not_deleted() > 0 {
        say(&transfer::not_deleted(earlier.not_deleted()));
        return Ok(exit::PARTIAL);
    }
    if earlier.is_nothing_left() {
        if !retry.output.quiet {
            _ = writeln!(io::stderr(), "note: nothing of {shown} failed, and nothing is done");
        }
        return Ok(exit::DONE);
    }
    // Names on this command line are relative to where it was typed.
    let mut retry = retry.clone();
    let name = absolute(&retry.file)?;
    if let Some(report) = retry.telling.report.as_mut().filter(|report| *report != "-") {
        *report = absolute(report)?;
    }
    let directory = earlier.directory().map_err(wrong)?;
    std::env::set_current_dir(&directory).map_err(|error| {
        let directory = Escaped(directory.as_os_str().as_bytes());
        Refusal::file(format!("cannot go to {directory}, where the command was run: {error}"))
    })?;
    let plan = earlier.plan(&retry, &ENVIRONMENT).map_err(wrong)?;
    let report = earlier.report(&plan, &name).map_err(|error| Refusal::file(error.to_string()))?;
    let viewer = Transfers::new(report, &plan.job.config).after(earlier.not_deleted());
    run_plan(plan, Kind::Transfer, Box::new(viewer))
}

fn absolute(name: &OsStr) -> Result<OsString, Refusal> {
    std::path::absolute(name).map(Into::into).map_err(|error| Refusal::file(error.to_string()))
}

fn run_ls(ls: &Ls) -> Result<u8, Refusal> {
    let style = Style {
        long: ls.long,
        zero: ls.zero,
        escapes: io::stdout().is_terminal(),
        sorted: !ls.recursive,
        names: Names::default(),
    };
    let depth = (!ls.recursive).then_some(1);
    let mut files = Files::default();
    let inventories = ls.locations.iter().map(|location| {
        let (choosing, connecting) = (&ls.looking.choosing, &ls.looking.connecting);
        look::plan_inventory(location, false, depth, choosing, connecting, &ENVIRONMENT, &mut files)
    });
    let inventories = inventories.collect::<Result<Vec<_>, _>>()?;
    let mut screen = Screen::new(job::quiet_display(&ls.looking.output, &ENVIRONMENT)?);
    let has_titles = ls.locations.len() > 1 && !ls.zero && !ls.looking.output.json;
    run::with_runtime(|runtime| {
        let mut worst = exit::DONE;
        for (number, (location, inventory)) in ls.locations.iter().zip(inventories).enumerate() {
            if has_titles {
                let empty_line = if number == 0 { "" } else { "\n" };
                screen.out_line(&format!("{empty_line}{}:", Escaped(location.as_bytes())));
            }
            let Inventory { job, prefix } = inventory;
            let is_local = matches!(Location::parse(location), Ok(Location::Local(_)));
            let names =
                if ls.long && is_local { Names::of_this_machine() } else { Names::default() };
            let style = Style { names, ..style.clone() };
            let listing = Listing::new(style, location.as_bytes().to_vec(), Prefix(prefix));
            let session = Session { job, screen, viewer: Box::new(listing) };
            let code;
            (code, screen) = run::conclude(run::execute(runtime, session)?, Kind::Data);
            worst = if worst == exit::DONE { code } else { worst };
        }
        Ok(worst)
    })
}

fn run_manifest(manifest: &Manifest) -> Result<u8, Refusal> {
    let Manifest { location, file, looking: Looking { choosing, connecting, output } } = manifest;
    let Inventory { job, prefix } = inventory_of(location, choosing, connecting)?;
    let display = job::quiet_display(output, &ENVIRONMENT)?;
    let file = file.as_ref().map(|name| {
        let shown = Escaped(name.as_bytes()).to_string();
        let made = File::create(name);
        let made = made.map_err(|error| Refusal::file(format!("cannot write {shown}: {error}")))?;
        let out: Box<dyn io::Write + Send> = Box::new(BufWriter::new(made));
        Ok::<_, Refusal>((out, shown))
    });
    let viewer = Manifests::new(Prefix(prefix), file.transpose()?);
    run_plan(Plan { job, display, report: None }, Kind::Data, Box::new(viewer))
}

fn run_check(check: &Check) -> Result<u8, Refusal> {
    if let [location, file] = &check.locations[..]
        && let Some(content) = manifest_content(location, file)?
    {
        return check_manifest(check, location, file, content);
    }
    let plan = look::plan_check(check, &ENVIRONMENT)?;
    run_plan(plan, Kind::Check, Box::new(Comparison))
}

/// The content of the second location if it is a manifest for the first.
fn manifest_content(location: &OsStr, file: &OsStr) -> Result<Option<impl BufRead>, Refusal> {
    let Location::Local(path) = Location::parse(file)? else { return Ok(None) };
    if !path.is_file() {
        return Ok(None);
    }
    let shown = Escaped(file.as_bytes());
    let unreadable = |error| Refusal::file(format!("cannot read {shown}: {error}"));
    let content = File::open(&path).map_err(unreadable)?;
    let mut head = Vec::new();
    (&content).take(manifest::HEAD_LEN).read_to_end(&mut head).map_err(unreadable)?;
    let is_directory = match Location::parse(location)? {
        Location::Local(path) => path.is_dir(),
        Location::Remote { path, .. } | Location::Endpoint { path, .. } => {
            mapping::last_name(&path).is_none()
        }
    };
    if manifest::is_manifest(&head) || is_directory && head.is_empty() {
        return Ok(Some(BufReader::new(io::Cursor::new(head).chain(content))));
    }
    if is_directory {
        let location = Escaped(location.as_bytes());
        let text = format!("{location} is a directory, and {shown} is neither one nor a manifest");
        return Err(UsageError(text).into());
    }
    Ok(None)
}

fn check_manifest(
    check: &Check,
    location: &OsStr,
    file: &OsStr,
    content: impl BufRead,
) -> Result<u8, Refusal> {
    let Looking { choosing, connecting, output } = &check.looking;
    let manifest = manifest::parse(content).map_err(|error| {
        let file = Escaped(file.as_bytes());
        match error {
            BadManifest::Line(LineError::Read(error)) => {
                Refusal::file(format!("cannot read {file}: {error}"))
            }
            error => UsageError(format!("{file}, {error}")).into(),
        }
    })?;
    let Inventory { job, prefix } = inventory_of(location, choosing, connecting)?;
    let display = job::display(output, &ENVIRONMENT)?;
    let viewer = ManifestCheck::new(Prefix(prefix), manifest);
    run_plan(Plan { job, display, report: None }, Kind::Check, Box::new(viewer))
}

/// A job that hashes all that is at a location.
fn inventory_of(
    location: &OsStr,
    choosing: &Choosing,
    connecting: &Connecting,
) -> Result<Inventory, UsageError> {
    let mut files = Files::default();
    look::plan_inventory(location, true, None, choosing, connecting, &ENVIRONMENT, &mut files)
}

fn run_clean(flags: &Clean) -> Result<u8, Refusal> {
    let plans = clean::plan(flags, &ENVIRONMENT)?;
    run::with_runtime(|runtime| {
        let mut worst = exit::DONE;
        for Plan { job, display, .. } in plans {
            let viewer = Box::new(Leftovers::new(flags, &job.direction));
            let session = Session { job, screen: Screen::new(display), viewer };
            let (code, _) = run::conclude(run::execute(runtime, session)?, Kind::Findings);
            worst = if worst == exit::DONE { code } else { worst };
        }
        Ok(worst)
    })
}

fn run_measuring(what: What, measuring: &Measuring) -> Result<u8, Refusal> {
    let (plan, subject) = measuring::plan(what, measuring, &ENVIRONMENT)?;
    let viewer: Box<dyn Viewer> = match what {
        What::Everything => Box::new(Doctor::new(subject)),
        What::Speed => Box::new(Bench::new(subject)),
    };
    run_plan(plan, Kind::Findings, viewer)
}

/// The end that another fastsync has started.
fn run_agent(agent: &Agent) -> Result<u8, Refusal> {
    if agent.digest {
        let digest = engine::program::own_digest()?;
        writeln!(io::stdout(), "{digest}")?;
        return Ok(exit::DONE);
    }
    if agent.cached {
        engine::program::settle();
    }
    if agent.join {
        return run::with_runtime(|runtime| Ok(runtime.block_on(engine::agent::join())));
    }
    let access = match (agent.read_only, agent.write_only) {
        (true, _) => Access::ReadOnly,
        (false, true) => Access::WriteOnly,
        (false, false) => Access::Both,
    };
    let rights = match &agent.root {
        Some(root) => Rights::within(root, access)
            .map_err(|error| Refusal { text: error.to_string(), code: exit::STARTUP })?,
        None => Rights::default(),
    };
    let ports: Option<PortRange> = ENVIRONMENT.value("FASTSYNC_PORT_RANGE")?;
    let rights = rights.with_ports(ports.map(|PortRange(low, high)| (low, high)));
    run::with_runtime(|runtime| Ok(runtime.block_on(engine::agent::run(rights))))
}

/// An error before there is a screen.
fn say(text: &str) {
    _ = writeln!(io::stderr(), "fastsync: {}", text::shown(text));
}
