//! Runs the engine, with a monitor beside it and signals heeded, and says how it ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::check::Verdict;
use super::exit::{self, Exit};
use super::progress::{Monitor, Pacing, Tally, Viewer};
use super::report::json_line;
use super::screen::{Line, Screen};
use super::stats::Stats;
use super::summary::Summary;
use super::{Refusal, signals};
use crate::engine::event::{Progress, Report};
use crate::engine::job::Job;
use crate::engine::{self, EngineError, Watch};

/// What the engine is to do, and who watches.
#[derive(Debug)]
pub struct Session {
    pub job: Job,
    pub screen: Screen,
    pub viewer: Box<dyn Viewer>,
}

/// What came of it.
#[derive(Debug)]
pub struct Ended {
    result: Result<Report, EngineError>,
    screen: Screen,
    tally: Tally,
    progress: Arc<Progress>,
    elapsed: Duration,
}

/// What is said at the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A summary of what was done.
    Transfer,
    /// What was found.
    Check,
    /// Nothing: data was asked for, and that is printed.
    Data,
    /// Likewise; with `--json`, errors are data too.
    Findings,
}

/// Makes the runtime for some work and leaves behind what hangs in the kernel, on a dead mount for
/// instance, or waits for standard input for ever.
pub fn with_runtime(work: impl FnOnce(&Runtime) -> Result<u8, Refusal>) -> Result<u8, Refusal> {
    let runtime = Runtime::new()?;
    runtime.block_on(async { signals::survive_file_size_limit() });
    let result = work(&runtime);
    runtime.shutdown_timeout(SHUTDOWN);
    result
}

/// Runs the engine to its end.
pub fn execute(runtime: &Runtime, session: Session) -> Result<Ended, Refusal> {
    let Session { job, screen, viewer } = session;
    let start = Instant::now();
    let progress = Arc::new(Progress::default());
    let finished = Arc::new(AtomicBool::new(false));
    let (sender, events) = flume::bounded(MAX_EVENTS);
    let (stopper, stop) = watch::channel(false);
    let monitor = Monitor {
        screen,
        viewer,
        progress: progress.clone(),
        events,
        stop: stop.clone(),
        finished: finished.clone(),
        tally: Tally::default(),
        pacing: Pacing::default(),
    };
    let monitor = thread::Builder::new().name("monitor".into()).spawn(|| monitor.run())?;
    let watch = Watch { progress: progress.clone(), events: sender, stop };
    let result = runtime.block_on(async {
        let mut signals = JoinSet::new();
        signals.spawn(signals::heed(stopper.clone()));
        engine::run(job, watch).await
    });
    finished.store(true, Ordering::Release);
    let ended = monitor.join().map_err(|_| io::Error::other("the monitor panicked"))?;
    let (mut screen, mut tally, mut viewer) = ended;
    viewer.end(result.is_ok(), &mut screen, &mut tally);
    Ok(Ended { result, screen, tally, progress, elapsed: start.elapsed() })
}

/// Says how it ended, and returns the exit code.
pub fn conclude(ended: Ended, kind: Kind) -> (u8, Screen) {
    let Ended { result, mut screen, tally, progress, elapsed } = ended;
    let output_code = show_output_error(&mut screen, &tally, kind);
    let code = match result {
        Ok(report) => {
            if report.over_limit > 0 {
                let kept = report.over_limit;
                screen.complain(&format!("--max-delete kept {kept} more from being deleted"));
            }
            let code = match exit::of_report(&report, tally.errors) {
                _ if tally.findings.is_difference() => exit::VERIFICATION,
                exit::DONE => output_code,
                code => code,
            };
            match kind {
                Kind::Transfer => show_summary(&mut screen, code, &report, &tally),
                Kind::Check => show_verdict(&mut screen, code, &report, &tally),
                Kind::Data | Kind::Findings => {}
            }
            code
        }
        Err(error) => {
            let Exit { code, hint } = Exit::of_error(&error);
            let partial = (kind == Kind::Transfer && tally.connection.is_some())
                .then(|| partial_summary(code, &tally, &progress, elapsed));
            show_failed_run(&mut screen, &error, Exit { code, hint }, partial.as_ref(), kind);
            code
        }
    };
    screen.flush();
    let code = match screen.take_out_error() {
        Some(error) => {
            screen.error(&format!("cannot write to standard output: {error}"));
            if code == exit::DONE { exit::FILE } else { code }
        }
        None => code,
    };
    (code, screen)
}

/// An error of our own output: [`exit::FILE`] if there is one.
fn show_output_error(screen: &mut Screen, tally: &Tally, kind: Kind) -> u8 {
    let Some(error) = &tally.output_error else { return exit::DONE };
    show_error(screen, error, Exit { code: exit::FILE, hint: None }, kind);
    exit::FILE
}

fn show_summary(screen: &mut Screen, code: u8, report: &Report, tally: &Tally) {
    let would = (tally.would, tally.bytes_would);
    let summary = Summary::new(code, report, would, tally.connection.as_ref());
    let stats = screen.display.stats.then(|| Stats::new(&tally.counts, report));
    let (quiet, json) = (screen.display.quiet, screen.display.json);
    if let Some(stats) = stats.as_ref().filter(|_| !quiet && !json) {
        stats.lines().iter().for_each(|line| screen.out_line(line));
        screen.flush();
    }
    let summary = summary.with_stats(stats);
    if screen.is_json() {
        screen.json(&Line::Summary(&summary));
    } else if !quiet {
        summary.lines().iter().for_each(|line| screen.err_line(line));
    }
    out_json(screen, &summary);
}

fn show_verdict(screen: &mut Screen, code: u8, report: &Report, tally: &Tally) {
    let failed = report.failed + report.complaints;
    let seconds = report.elapsed.as_secs_f64();
    let verdict = Verdict { exit_code: code, findings: tally.findings, failed, seconds };
    if screen.is_json() {
        screen.json(&Line::Verdict(&verdict));
    } else if !screen.display.quiet {
        screen.flush();
        screen.err_line(&verdict.line());
    }
    out_json(screen, &verdict);
}

/// What the monitor has counted, where the engine came to no report.
fn partial_summary(code: u8, tally: &Tally, progress: &Progress, elapsed: Duration) -> Summary {
    let connection = tally.connection.as_ref();
    let report = Report {
        bytes_sent: progress.bytes_sent.get(),
        bytes_skipped: progress.bytes_skipped.get(),
        bytes_resumed: progress.bytes_resumed.get(),
        streams: connection.map_or(0, |it| it.used(progress.most_streams.get())),
        transport: connection.map_or("", |it| it.transport),
        encrypted: connection.is_some_and(|it| it.encrypted),
        dialler: connection.map_or("", |it| it.dialler),
        reason: connection.map(|it| it.reason.clone()).unwrap_or_default(),
        elapsed,
        ..tally.counts.partial_report()
    };
    let would = (tally.would, tally.bytes_would);
    Summary::new(code, &report, would, connection).of_incomplete_run()
}

/// The error that ended a run; for people then, for programs first, what was done before it.
fn show_failed_run(
    screen: &mut Screen,
    error: &EngineError,
    exit: Exit,
    partial: Option<&Summary>,
    kind: Kind,
) {
    if let Some(summary) = partial {
        if screen.is_json() {
            screen.json(&Line::Summary(summary));
        }
        out_json(screen, summary);
    }
    show_error(screen, &error.to_string(), exit, kind);
    if let Some(summary) = partial.filter(|_| !screen.is_json() && !screen.display.quiet) {
        screen.err_line(&summary.partial_line());
    }
}

/// An error, its hint, and with `--json` the same for programs.
fn show_error(screen: &mut Screen, text: &str, exit: Exit, kind: Kind) {
    let Exit { code: exit_code, hint } = exit;
    let line = Line::Error { text, hint, exit_code };
    if screen.is_json() {
        screen.json(&line);
    } else {
        screen.error(text);
        if let Some(hint) = hint {
            screen.err_line(&format!("hint: {hint}"));
        }
    }
    if kind != Kind::Data {
        out_json(screen, &line);
    }
}

/// A line on standard output, if that has JSON.
fn out_json(screen: &mut Screen, line: &impl serde::Serialize) {
    if screen.display.json
        && let Ok(line) = json_line(line)
    {
        screen.out_line(line.trim_end());
    }
}

/// How many events may wait to be shown before the engine waits for the screen.
const MAX_EVENTS: usize = 16_384;

/// How long is waited for work that was given up.
const SHUTDOWN: Duration = Duration::from_secs(1);
