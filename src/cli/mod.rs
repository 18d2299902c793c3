//! What the user sees: arguments become a job, the engine runs it, and its end becomes a summary
//! and an exit code. Nothing else in this crate prints.
//!
//! `args` is what was typed, `settings`, `config` and `location` say what it can mean, `job` puts
//! it together; `progress` watches, `screen` writes, and `report`, `summary` and `exit` conclude.

mod args;
mod config;
mod exit;
mod job;
mod location;
mod progress;
mod report;
mod screen;
mod settings;
mod signals;
mod summary;
mod text;
mod units;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser as _;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::engine::event::{Progress, Report};
use crate::engine::{self, EngineError, Watch};
use args::{Arguments, Command, Transfer};
use exit::Exit;
use job::{Plan, Verb};
use progress::{Monitor, Pacing, Tally};
use report::{ReportFile, json_line};
use screen::{Line, Screen};
use settings::Environment;
use summary::Summary;

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
    let code = match Arguments::try_parse().map(|arguments| arguments.command) {
        Ok(Command::Push(transfer)) => run_transfer(Verb::Push, *transfer),
        Ok(Command::Pull(transfer)) => run_transfer(Verb::Pull, *transfer),
        Ok(Command::Agent) => run_agent(),
        Err(error) => {
            // That help cannot be printed, because `head` has seen enough, is no failure.
            _ = error.print();
            if error.use_stderr() { exit::USAGE } else { exit::DONE }
        }
    };
    code.into()
}

/// Serves one session on standard input and output.
fn run_agent() -> u8 {
    match Runtime::new() {
        Ok(runtime) => {
            let code = runtime.block_on(engine::agent::run());
            // A thread waits for standard input for ever.
            runtime.shutdown_timeout(SHUTDOWN);
            code
        }
        Err(error) => {
            say(&format!("cannot start: {error}"));
            exit::STARTUP
        }
    }
}

/// From arguments to an exit code.
fn run_transfer(verb: Verb, transfer: Transfer) -> u8 {
    let environment = Environment(&|name| std::env::var_os(name));
    let plan = match job::plan(verb, transfer, &environment) {
        Ok(plan) => plan,
        Err(error) => {
            say(&error.to_string());
            return exit::USAGE;
        }
    };
    let report = match plan.display.report.as_deref().map(ReportFile::create).transpose() {
        Ok(report) => report,
        Err(error) => {
            say(&error.to_string());
            return exit::FILE;
        }
    };
    match Runtime::new()
        .and_then(|runtime| execute(&runtime, plan, report).map(|end| (runtime, end)))
    {
        Ok((runtime, (result, screen, tally))) => {
            let code = conclude(result, screen, &tally);
            // Work that hangs in the kernel, on a dead mount for instance, is left behind.
            runtime.shutdown_timeout(SHUTDOWN);
            code
        }
        Err(error) => {
            say(&format!("cannot start: {error}"));
            exit::STARTUP
        }
    }
}

type Ended = (Result<Report, EngineError>, Screen, Tally);

/// Runs the engine, with a monitor beside it and signals heeded.
fn execute(runtime: &Runtime, plan: Plan, report: Option<ReportFile>) -> io::Result<Ended> {
    let progress = Arc::new(Progress::default());
    let finished = Arc::new(AtomicBool::new(false));
    let (sender, events) = flume::bounded(MAX_EVENTS);
    let (stopper, stop) = watch::channel(false);
    let monitor = Monitor {
        screen: Screen::new(plan.display),
        report,
        progress: progress.clone(),
        events,
        stop: stop.clone(),
        finished: finished.clone(),
        tally: Tally::default(),
        pacing: Pacing::default(),
    };
    let monitor = thread::Builder::new().name("monitor".into()).spawn(|| monitor.run())?;
    let watch = Watch { progress, events: sender, stop };
    let result = runtime.block_on(async {
        let mut signals = JoinSet::new();
        signals.spawn(signals::heed(stopper.clone()));
        engine::run(plan.job, watch).await
    });
    finished.store(true, Ordering::Release);
    let (screen, tally) = monitor.join().map_err(|_| io::Error::other("the monitor panicked"))?;
    Ok((result, screen, tally))
}

/// Says how it ended, and returns the exit code.
fn conclude(result: Result<Report, EngineError>, mut screen: Screen, tally: &Tally) -> u8 {
    let output_code = show_output_errors(&mut screen, tally);
    let code = match result {
        Ok(report) => {
            let code = match exit::of_report(&report, tally.errors) {
                exit::DONE => output_code,
                code => code,
            };
            show_summary(&mut screen, code, &report, tally);
            code
        }
        Err(error) => {
            let Exit { code, hint } = Exit::of_error(&error);
            show_error(&mut screen, &error.to_string(), hint, code);
            code
        }
    };
    screen.flush();
    match screen.take_out_error() {
        Some(error) => {
            screen.error(&format!("cannot write to standard output: {error}"));
            if code == exit::DONE { exit::FILE } else { code }
        }
        None => code,
    }
}

/// Errors of our own output: [`exit::FILE`] if there are any.
fn show_output_errors(screen: &mut Screen, tally: &Tally) -> u8 {
    let Some(error) = &tally.report_error else { return exit::DONE };
    show_error(screen, &error.to_string(), None, exit::FILE);
    exit::FILE
}

fn show_summary(screen: &mut Screen, code: u8, report: &Report, tally: &Tally) {
    let would = (tally.would, tally.bytes_would);
    let summary = Summary::new(code, report, would, tally.connection.as_ref());
    if screen.is_json() {
        screen.json(&Line::Summary(&summary));
    } else if !screen.display.quiet {
        summary.lines().iter().for_each(|line| screen.err_line(line));
    }
    if screen.display.json
        && let Ok(line) = json_line(&summary)
    {
        screen.out_line(line.trim_end());
    }
}

/// An error, its hint, and with `--json` the same for programs.
fn show_error(screen: &mut Screen, text: &str, hint: Option<&str>, exit_code: u8) {
    let line = Line::Error { text, hint, exit_code };
    if screen.is_json() {
        screen.json(&line);
    } else {
        screen.error(text);
        if let Some(hint) = hint {
            screen.err_line(&format!("hint: {hint}"));
        }
    }
    if screen.display.json
        && let Ok(line) = json_line(&line)
    {
        screen.out_line(line.trim_end());
    }
}

/// An error before there is a screen.
fn say(text: &str) {
    _ = writeln!(io::stderr(), "fastsync: {}", text::shown(text));
}

/// How many events may wait to be shown before the engine waits for the screen.
const MAX_EVENTS: usize = 16_384;

/// How long is waited for work that was given up.
const SHUTDOWN: Duration = Duration::from_secs(1);
