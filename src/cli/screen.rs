//! What is written to standard error and standard output while a transfer runs.
//!
//! Standard output carries data: what was asked for, such as listings, the paths of `-v`, `-n` and
//! `-i`, reports, and the summary of `--json`.
//! Standard error carries everything else, as text or, with `--progress=json`, as JSON lines.

use std::io::{self, BufWriter, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::check::Verdict;
use super::job::Display;
use super::progress::View;
use super::report::{EntryLine, json_line};
use super::summary::Summary;
use super::text::shown;
use super::units::ProgressMode;

/// One line on standard error with `--progress=json`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Line<'a> {
    Installed {
        version: &'a str,
        host: &'a str,
        path: &'a str,
        size: u64,
    },
    Connected {
        peer: &'a str,
        transport: &'a str,
        streams: u16,
        encrypted: bool,
        dialler: &'a str,
        reason: &'a str,
    },
    Progress(&'a View),
    Entry(&'a EntryLine<'a>),
    Deleted {
        path: &'a str,
        is_directory: bool,
    },
    Complaint {
        path: &'a str,
        error: &'a str,
    },
    Retrying {
        cause: &'a str,
        attempt: u32,
        pause_seconds: f64,
    },
    Warning {
        text: &'a str,
    },
    Note {
        text: &'a str,
    },
    Error {
        text: &'a str,
        hint: Option<&'a str>,
        exit_code: u8,
    },
    Summary(&'a Summary),
    Verdict(&'a Verdict),
}

/// Both outputs of the program.
pub struct Screen {
    pub display: Display,
    bar: Option<ProgressBar>,
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// The first error of standard output, after which nothing more is written to it.
    out_error: Option<io::Error>,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screen").field("display", &self.display).finish_non_exhaustive()
    }
}

impl Screen {
    pub fn new(display: Display) -> Self {
        let out = Box::new(BufWriter::new(io::stdout()));
        Self { display, bar: None, out, err: Box::new(io::stderr()), out_error: None }
    }

    /// The same without a terminal, for tests.
    #[cfg(test)]
    pub fn on(display: Display, out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self { display, bar: None, out, err, out_error: None }
    }

    pub fn is_json(&self) -> bool {
        self.display.progress == ProgressMode::Json
    }

    /// An error: shown whatever was asked for.
    pub fn error(&mut self, text: &str) {
        self.err_line(&format!("fastsync: {}", shown(text)));
    }

    /// The same where nothing else tells programs of it.
    pub fn complain(&mut self, text: &str) {
        if self.is_json() {
            self.json(&Line::Warning { text });
        } else {
            self.error(text);
        }
    }

    /// Something that was or will be mended.
    pub fn warning(&mut self, text: &str) {
        match (self.is_json(), self.display.quiet) {
            (true, _) => self.json(&Line::Warning { text }),
            (false, true) => {}
            (false, false) => self.err_line(&format!("warning: {}", shown(text))),
        }
    }

    /// Something that people may want to know.
    pub fn note(&mut self, text: &str) {
        match (self.is_json(), self.display.quiet) {
            (true, _) => self.json(&Line::Note { text }),
            (false, true) => {}
            (false, false) => self.err_line(&format!("note: {}", shown(text))),
        }
    }

    /// A line of JSON on standard error.
    pub fn json(&mut self, line: &Line<'_>) {
        if let Ok(line) = json_line(line) {
            self.err_line(line.trim_end());
        }
    }

    /// A line on standard error, which has to be safe for a terminal already. That it cannot be
    /// written is nothing that could be told to anybody.
    pub fn err_line(&mut self, line: &str) {
        let err = &mut self.err;
        let mut write = || _ = err.write_all(format!("{line}\n").as_bytes());
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// A line of data on standard output, which is buffered until [`Self::flush`].
    pub fn out_line(&mut self, line: &str) {
        self.out_bytes(format!("{line}\n").as_bytes());
    }

    /// Data on standard output, likewise.
    pub fn out_bytes(&mut self, data: &[u8]) {
        if self.out_error.is_none() {
            self.out_error = self.out.write_all(data).err();
        }
    }

    pub fn flush(&mut self) {
        if self.out_error.is_some() {
            return;
        }
        let out = &mut self.out;
        // A terminal may be the same one that the bar is on.
        self.out_error = match &self.bar {
            Some(bar) => bar.suspend(|| out.flush()),
            None => out.flush(),
        }
        .err();
    }

    /// Why standard output is incomplete, unless its reader just went away, as `head` does.
    pub fn take_out_error(&mut self) -> Option<io::Error> {
        self.out_error.take().filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
    }

    /// Shows where the transfer is.
    pub fn draw(&mut self, view: &View) {
        match (&self.bar, self.display.progress) {
            (Some(bar), _) => {
                bar.set_message(view.to_string());
                bar.update(|state| {
                    // Nothing of nothing would be drawn as a full bar.
                    state.set_len(view.bytes_found.max(1));
                    state.set_pos(view.bytes_done);
                });
            }
            (None, ProgressMode::Json) => self.json(&Line::Progress(view)),
            (None, ProgressMode::Plain) => self.err_line(&view.to_string()),
            (None, ProgressMode::Auto | ProgressMode::Terminal | ProgressMode::None) => {}
        }
    }

    /// Makes room for progress, where it is a display.
    pub fn open(&mut self) {
        if self.bar.is_none() && self.display.progress == ProgressMode::Terminal {
            self.bar = Some(terminal_bar());
        }
    }

    /// Takes the display away, so that what follows stands alone.
    pub fn close(&mut self) {
        self.flush();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn terminal_bar() -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(10);
    let bar = ProgressBar::with_draw_target(Some(1), target);
    let style = ProgressStyle::with_template("{wide_bar} {msg}");
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
