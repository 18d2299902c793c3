//! Watches a transfer from a thread of its own: counters ten times a second, events as they come.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flume::{Receiver, RecvTimeoutError};
use serde::Serialize;
use tokio::sync::watch;

use super::report::{EntryLine, json_path};
use super::screen::{Line, Screen};
use super::stats::Counts;
use super::text::{bytes, duration, plural, rate};
use super::units::ProgressMode;
use crate::engine::event::{Connection, EntryReport, Event, Installed, Leftover, Progress};
use crate::engine::measure::Finding;
use crate::protocol::message::{Failure, Outcome};

/// What a subcommand makes of what the engine tells.
pub trait Viewer: fmt::Debug + Send {
    /// An entry has ended. That it failed was shown already.
    fn entry(&mut self, entry: &EntryReport, screen: &mut Screen, tally: &mut Tally);

    /// Something was removed, or would be.
    fn deleted(
        &mut self,
        _path: &[u8],
        _is_directory: bool,
        _screen: &mut Screen,
        _tally: &mut Tally,
    ) {
    }

    /// Something could not be listed or kept; it was shown already.
    fn complaint(&mut self, _path: &[u8], _failure: &Failure, _tally: &mut Tally) {}

    /// Something was measured.
    fn found(&mut self, _finding: Finding, _screen: &mut Screen, _tally: &mut Tally) {}

    /// Something is left of what was never finished.
    fn leftover(&mut self, _left: Leftover, _screen: &mut Screen, _tally: &mut Tally) {}

    /// The engine has returned. `complete`: it has told everything.
    fn end(&mut self, complete: bool, screen: &mut Screen, tally: &mut Tally);
}

/// Shows a run, and counts what the end needs to know.
#[derive(Debug)]
pub struct Monitor {
    pub screen: Screen,
    pub viewer: Box<dyn Viewer>,
    pub progress: Arc<Progress>,
    pub events: Receiver<Event>,
    /// Whether the user asked to stop.
    pub stop: watch::Receiver<bool>,
    /// Whether the engine has returned: its tasks may hold a sender of events a little longer.
    pub finished: Arc<AtomicBool>,
    pub tally: Tally,
    pub pacing: Pacing,
}

/// What a monitor has seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many error lines were shown.
    pub errors: u64,
    /// Entries that a dry run would transfer, and their bytes.
    pub would: u64,
    pub bytes_would: u64,
    pub counts: Counts,
    pub findings: Findings,
    /// The last connection.
    pub connection: Option<Connection>,
    /// Why a report or another file is incomplete.
    pub output_error: Option<String>,
}

/// What a check has found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Findings {
    pub equal: u64,
    pub different: u64,
    pub missing: u64,
    pub extra: u64,
    /// Whether what is extra counts as a difference.
    #[serde(skip)]
    pub is_extra_wrong: bool,
}

impl Findings {
    pub fn is_difference(&self) -> bool {
        self.different > 0 || self.missing > 0 || self.is_extra_wrong && self.extra > 0
    }
}

/// How far the showing is.
#[derive(Debug, Default)]
pub struct Pacing {
    meter: Meter,
    /// Whether data channels are open: before, ssh may be asking for a password, and nothing may
    /// be drawn over that.
    connected: bool,
    stop_shown: bool,
    /// When something was drawn last, since the start.
    drawn: Duration,
}

impl Monitor {
    /// Watches until the engine has returned and every event is shown.
    pub fn run(mut self) -> (Screen, Tally, Box<dyn Viewer>) {
        let start = Instant::now();
        let mut next_tick = start + TICK;
        loop {
            match self.events.recv_deadline(next_tick) {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) if self.finished.load(Ordering::Acquire) => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick(now - start);
            }
        }
        if self.screen.is_json() {
            let view = self.pacing.meter.view(start.elapsed(), &self.progress);
            self.screen.draw(&view);
        }
        self.screen.close();
        (self.screen, self.tally, self.viewer)
    }

    fn tick(&mut self, elapsed: Duration) {
        self.screen.flush();
        if *self.stop.borrow() && !self.pacing.stop_shown {
            self.pacing.stop_shown = true;
            self.show_stopping();
        }
        let view = self.pacing.meter.view(elapsed, &self.progress);
        if self.pacing.connected && elapsed >= self.pacing.drawn + self.draw_interval() {
            self.pacing.drawn = elapsed;
            self.screen.draw(&view);
        }
    }

    fn draw_interval(&self) -> Duration {
        match self.screen.display.progress {
            ProgressMode::Plain => Duration::from_secs(5),
            ProgressMode::Json => Duration::from_secs(1),
            ProgressMode::Auto | ProgressMode::Terminal | ProgressMode::None => TICK,
        }
    }

    fn show_stopping(&mut self) {
        let text = "stopping; press Ctrl-C again to leave at once";
        if self.screen.is_json() {
            self.screen.note(text);
        } else {
            self.screen.err_line(text);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Installed(installed) => self.installed(&installed),
            Event::Connected(connection) => self.connected(connection),
            Event::Ended(entry) => self.ended(&entry),
            Event::Deleted { path, is_directory } => self.deleted(&path, is_directory),
            Event::Complaint(complaint) => self.complaint(complaint.path(), &complaint.failure),
            Event::Retrying { cause, attempt, pause } => self.retrying(&cause, attempt, pause),
            Event::ChannelLost { channel, cause } => {
                if self.screen.display.verbose > 0 || self.screen.is_json() {
                    let text =
                        format!("data channel {channel} was lost and is made again: {cause}");
                    self.screen.warning(&text);
                }
            }
            Event::Mismatch { what } => {
                self.screen.warning(&format!("{what} did not match its digest and is sent again"));
            }
            Event::Found(finding) => {
                self.viewer.found(*finding, &mut self.screen, &mut self.tally);
            }
            Event::Leftover(left) => {
                self.viewer.leftover(left, &mut self.screen, &mut self.tally);
            }
            Event::Note(text) => {
                text.lines().filter(|line| !line.is_empty()).for_each(|it| self.screen.note(it));
            }
        }
    }

    fn installed(&mut self, installed: &Installed) {
        let Installed { version, host, path, size } = installed;
        if self.screen.is_json() {
            self.screen.json(&Line::Installed { version, host, path, size: *size });
        } else {
            let size = bytes(*size);
            self.screen.note(&format!("installed fastsync {version} at {host}:{path} ({size})"));
        }
    }

    fn connected(&mut self, connection: Connection) {
        let Connection { transport, streams, ref peer, encrypted, dialler, ref reason } =
            connection;
        if self.screen.is_json() {
            self.screen.json(&Line::Connected {
                peer,
                transport,
                streams,
                encrypted,
                dialler,
                reason,
            });
        } else if self.screen.display.verbose > 0 && transport != WITHIN_MACHINE {
            let streams = plural(streams.into(), "stream");
            let open = if encrypted { "" } else { ", not encrypted" };
            let by = match dialler {
                "agent" => ", dialled by the other host",
                "destination" => ", dialled by it",
                _ => "",
            };
            let reason = match super::text::shown(reason) {
                reason if reason.is_empty() => String::new(),
                reason => format!(" ({reason})"),
            };
            self.screen.note(&format!(
                "connected to {peer}: {streams} over {transport}{by}{open}{reason}"
            ));
        }
        self.tally.connection = Some(connection);
        self.pacing.connected = true;
        self.screen.open();
    }

    fn ended(&mut self, entry: &EntryReport) {
        if entry.path != EntryReport::ROOT {
            self.tally.counts.add(entry);
        }
        let (verbose, json) = (self.screen.display.verbose, self.screen.is_json());
        if let Outcome::Failed(failure) = &entry.outcome {
            self.tally.errors += 1;
            if !json {
                self.screen.error(failure.text());
            }
        }
        self.viewer.entry(entry, &mut self.screen, &mut self.tally);
        if json && (verbose > 0 || matches!(entry.outcome, Outcome::Failed(_))) {
            self.screen.json(&Line::Entry(&EntryLine::new(entry)));
        }
    }

    fn deleted(&mut self, path: &[u8], is_directory: bool) {
        self.tally.counts.add_deleted(is_directory);
        self.viewer.deleted(path, is_directory, &mut self.screen, &mut self.tally);
        if self.screen.is_json() && self.screen.display.verbose > 0 {
            let (path, _) = json_path(path);
            self.screen.json(&Line::Deleted { path: &path, is_directory });
        }
    }

    fn complaint(&mut self, path: &[u8], failure: &Failure) {
        self.tally.errors += 1;
        if self.screen.is_json() {
            let (path, _) = json_path(path);
            self.screen.json(&Line::Complaint { path: &path, error: failure.text() });
        } else {
            self.screen.error(failure.text());
        }
        self.viewer.complaint(path, failure, &mut self.tally);
    }

    fn retrying(&mut self, cause: &str, attempt: u32, pause: Duration) {
        self.pacing.connected = false;
        self.tally.counts.begin_again();
        self.screen.close();
        if self.screen.is_json() {
            let pause_seconds = pause.as_secs_f64();
            self.screen.json(&Line::Retrying { cause, attempt, pause_seconds });
        } else {
            let pause = duration(pause);
            let text = format!("connection lost: {cause}; attempt {attempt} begins in {pause}");
            self.screen.warning(&text);
        }
    }
}

/// Where a transfer is. Bytes are those that the receiver has verified, or had already.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct View {
    pub files_ended: u64,
    pub files_found: u64,
    pub bytes_done: u64,
    pub bytes_found: u64,
    /// Whether everything has been found.
    pub walk_done: bool,
    pub bytes_per_second: u64,
    pub eta_seconds: Option<u64>,
    pub streams: u64,
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.walk_done { "" } else { "+" };
        write!(f, "{}/{}{more} files, ", self.files_ended, self.files_found)?;
        write!(f, "{} of {}{more}, ", bytes(self.bytes_done), bytes(self.bytes_found))?;
        write!(f, "{}/s, ", bytes(self.bytes_per_second))?;
        if let Some(seconds) = self.eta_seconds {
            let (minutes, seconds) = (seconds / 60, seconds % 60);
            match minutes {
                0..60 => write!(f, "{minutes}:{seconds:02} left, ")?,
                _ => write!(f, "{}:{:02}:{seconds:02} left, ", minutes / 60, minutes % 60)?,
            }
        }
        f.write_str(&plural(self.streams, "stream"))
    }
}

/// Turns counters into a view that never goes backwards, though a new attempt may count again.
#[derive(Debug, Default)]
struct Meter {
    view: View,
    /// When how many bytes were verified, over the last seconds.
    samples: VecDeque<(Duration, u64)>,
}

impl Meter {
    fn view(&mut self, now: Duration, progress: &Progress) -> View {
        let verified = progress.bytes_verified.get();
        let there = progress.bytes_skipped.get().saturating_add(progress.bytes_resumed.get());
        let bytes_per_second = self.rate(now, verified);
        let view = &mut self.view;
        view.walk_done |= progress.walk_done.load(Ordering::Relaxed);
        view.files_found = view.files_found.max(progress.files_found.get());
        view.bytes_found = view.bytes_found.max(progress.bytes_found.get());
        let ended = progress.files_ended.get().min(view.files_found);
        let done = verified.saturating_add(there).min(view.bytes_found);
        view.files_ended = view.files_ended.max(ended);
        view.bytes_done = view.bytes_done.max(done);
        view.streams = progress.streams.get();
        view.bytes_per_second = bytes_per_second;
        let left = view.bytes_found - view.bytes_done;
        let known = view.walk_done && view.bytes_per_second > 0;
        view.eta_seconds = known.then(|| left.div_ceil(view.bytes_per_second.max(1)));
        view.clone()
    }

    /// Bytes a second over the last few seconds.
    fn rate(&mut self, now: Duration, verified: u64) -> u64 {
        self.samples.push_back((now, verified));
        while self.samples.len() > MAX_SAMPLES {
            self.samples.pop_front();
        }
        let (since, before) = self.samples.front().copied().unwrap_or((Duration::ZERO, 0));
        let (since, before) = if since == now { (Duration::ZERO, 0) } else { (since, before) };
        rate(verified.saturating_sub(before), now.saturating_sub(since))
    }
}

/// What the engine calls the way of data that stays on this machine, in this process.
pub const WITHIN_MACHINE: &str = "memory";

/// How often counters are read.
const TICK: Duration = Duration::from_millis(100);

/// Five seconds of ticks, over which the rate is taken.
const MAX_SAMPLES: usize = 50;

#[cfg(test)]
mod tests {
    use crate::engine::job::TransferConfig;
    use std::io::{self, Write};
    use std::sync::Mutex;

    use serde_json::Value;

    use super::*;
    use crate::cli::itemize;
    use crate::cli::itemize::Itemizer;
    use crate::cli::job::Display;
    use crate::cli::mapping::Mapping;
    use crate::cli::transfer::Transfers;
    use crate::engine::event::EntryKind;
    use crate::protocol::message::{Changes, Complaint, FailureCode};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn display(progress: ProgressMode, verbose: u8) -> Display {
        Display { progress, verbose, ..Display::default() }
    }

    /// What a monitor writes to standard output and standard error for these events.
    fn shown(display: Display, events: Vec<Event>) -> (String, String, Tally) {
        let (out, err) = (Buffer::default(), Buffer::default());
        let (sender, receiver) = flume::unbounded();
        for event in events {
            sender.send(event).unwrap();
        }
        drop(sender);
        let monitor = Monitor {
            screen: Screen::on(display, Box::new(out.clone()), Box::new(err.clone())),
            viewer: Box::new(Transfers::new(None, &TransferConfig::default())),
            progress: Arc::default(),
            events: receiver,
            stop: watch::channel(false).1,
            finished: Arc::default(),
            tally: Tally::default(),
            pacing: Pacing::default(),
        };
        let (mut screen, tally, _) = monitor.run();
        screen.flush();
        (out.text(), err.text(), tally)
    }

    fn ended(path: &[u8], outcome: Outcome) -> Event {
        Event::Ended(itemize::tests::entry(path, EntryKind::File, outcome))
    }

    fn failure() -> Failure {
        Failure::new(FailureCode::Io, "cannot write a\x1b: no")
    }

    fn all_kinds() -> Vec<Event> {
        let connection = Connection {
            transport: "tcp",
            streams: 2,
            peer: "h".into(),
            encrypted: false,
            dialler: "agent",
            reason: "as asked for".into(),
        };
        let (version, host, path) = ("1.2".into(), "h".into(), "/c".into());
        vec![
            Event::Installed(Installed { version, host, path, size: 9 << 20 }),
            Event::Connected(connection),
            ended(b"a\n", Outcome::Done(Changes::CREATED)),
            ended(b"b", Outcome::Skipped),
            ended(b"c\xff", Outcome::Would(Changes::CREATED)),
            ended(b"d", Outcome::Failed(failure())),
            Event::Deleted { path: b"g".into(), is_directory: true },
            Event::Complaint(Complaint::new(b"e".into(), failure())),
            Event::Retrying { cause: "gone".into(), attempt: 1, pause: Duration::from_secs(2) },
            Event::ChannelLost { channel: 1, cause: "reset".into() },
            Event::Mismatch { what: "a chunk of f".into() },
            Event::Note("motd\x07\nline".into()),
        ]
    }

    #[test]
    fn errors_are_shown_even_with_quiet() {
        let quiet = Display { quiet: true, ..display(ProgressMode::None, 0) };
        let (out, err, tally) = shown(quiet, all_kinds());
        assert_eq!(out, "c\\xff\n");
        assert_eq!(err, "fastsync: cannot write a\\u{1b}: no\n".repeat(2));
        assert_eq!((tally.errors, tally.would, tally.bytes_would), (2, 1, 5));
        assert_eq!(tally.connection.unwrap().peer, "h");
    }

    #[test]
    fn paths_are_data_and_messages_are_not() {
        let (out, err, _) = shown(display(ProgressMode::Plain, 2), all_kinds());
        assert_eq!(out, "a\\n\nb is there already\nc\\xff\ndeleting g/\n");
        assert!(err.contains("note: motd\\u{7}\nnote: line\n"), "{err}");
        assert!(
            err.contains("warning: connection lost: gone; attempt 1 begins in 2.0 s\n"),
            "{err}"
        );
        assert!(err.contains("note: connected to h: 2 streams over tcp, dialled by the other host, not encrypted (as asked for)\n"), "{err}");
        assert!(err.contains("note: installed fastsync 1.2 at h:/c (9.43 MB)\n"), "{err}");
        let (out, err, _) = shown(display(ProgressMode::Plain, 0), all_kinds());
        assert_eq!(out, "c\\xff\n");
        assert!(!err.contains("connected") && !err.contains("channel"), "{err}");
    }

    #[test]
    fn json_progress_is_json_on_every_line() {
        let (out, err, _) = shown(display(ProgressMode::Json, 0), all_kinds());
        assert_eq!(out, "c\\xff\n");
        let lines: Vec<Value> =
            err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        let wanted =
            "installed connected entry complaint retrying warning warning note note progress";
        assert_eq!(events.join(" "), wanted);
        assert_eq!((&lines[2]["path"], &lines[2]["outcome"]), (&"d".into(), &"failed".into()));
        let (_, err, _) = shown(display(ProgressMode::Json, 1), all_kinds());
        assert_eq!(err.matches("\"event\":\"entry\"").count(), 4);
        assert_eq!(err.matches("\"event\":\"deleted\"").count(), 1);
    }

    #[test]
    fn data_is_json_if_asked_for() {
        let json = Display { json: true, ..display(ProgressMode::None, 1) };
        let (out, _, _) = shown(json, all_kinds());
        let lines: Vec<Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["path"], &lines[1]["path_bytes"]), (&"a\n".into(), &"63ff".into()));
        assert_eq!((&lines[2]["path"], &lines[2]["outcome"]), (&"g".into(), &"deleted".into()));
        assert_eq!(lines[0]["changes"], serde_json::json!(["created"]));
    }

    #[test]
    fn itemized_lines_take_the_place_of_paths() {
        let itemized = |level, verbose| {
            let itemizer = Itemizer { level, ..Itemizer::default() };
            let display = Display { itemizer, ..display(ProgressMode::None, verbose) };
            shown(display, all_kinds()).0
        };
        let changed = "cf+++++++++ a\\#012\ncf+++++++++ c\\#377\n*deleting   g/\n";
        assert_eq!(itemized(1, 0), changed);
        assert_eq!(itemized(1, 1), changed);
        assert!(itemized(2, 0).contains(".f          b\n"));
    }

    #[test]
    fn a_dry_run_says_what_would_become_of_what() {
        let mapping = Mapping::new(&["src/".into()], "h:dst".as_ref(), false);
        let plain = Display { mapping: Some(mapping), ..display(ProgressMode::None, 0) };
        let (out, ..) = shown(plain.clone(), all_kinds());
        assert_eq!(out, "src/c\\xff -> h:dst/c\\xff\ndeleting h:dst/g/\n");
        let (out, ..) = shown(Display { json: true, ..plain }, all_kinds());
        let line: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
        assert_eq!(line["source"], "src/c\\xff");
        assert_eq!(line["destination"], "h:dst/c\\xff");
        assert!(out.contains("would_delete"));
    }

    #[test]
    fn nothing_goes_backwards_and_nothing_exceeds_what_was_found() {
        let (progress, mut meter) = (Progress::default(), Meter::default());
        progress.bytes_found.add(100);
        progress.files_found.add(2);
        progress.bytes_verified.add(60);
        progress.files_ended.add(1);
        let first = meter.view(Duration::from_secs(1), &progress);
        assert_eq!((first.bytes_done, first.bytes_per_second, first.eta_seconds), (60, 60, None));
        progress.bytes_verified.subtract(30);
        let second = meter.view(Duration::from_secs(2), &progress);
        assert_eq!((second.bytes_done, second.files_ended), (60, 1));
        // A new attempt finds what the first one transferred, and counts it as skipped.
        progress.bytes_verified.add(70);
        progress.bytes_skipped.add(60);
        progress.walk_done.store(true, Ordering::Relaxed);
        let third = meter.view(Duration::from_secs(3), &progress);
        assert_eq!((third.bytes_done, third.bytes_found, third.eta_seconds), (100, 100, Some(0)));
    }

    #[test]
    fn a_view_reads_as_a_line() {
        let mut view = View {
            files_ended: 3,
            files_found: 40,
            bytes_done: 1_070_000_000,
            bytes_found: 4_200_000_000,
            walk_done: true,
            bytes_per_second: 509_000_000,
            eta_seconds: Some(67),
            streams: 8,
        };
        let line = "3/40 files, 1.07 GB of 4.20 GB, 509 MB/s, 1:07 left, 8 streams";
        assert_eq!(view.to_string(), line);
        (view.walk_done, view.eta_seconds) = (false, None);
        assert_eq!(view.to_string(), "3/40+ files, 1.07 GB of 4.20 GB+, 509 MB/s, 8 streams");
    }
}
