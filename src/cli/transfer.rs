//! What push, pull, cp, sync and retry show of the entries, and their report.

use super::itemize;
use super::mapping::Route;
use super::progress::{Tally, Viewer};
use super::report::{About, EntryLine, PathLine, ReportError, ReportFile, json_line};
use super::screen::Screen;
use super::text::plural;
use crate::engine::event::EntryReport;
use crate::engine::job::TransferConfig;
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Failure, Outcome};

/// Prints what `-v`, `-n` and `-i` ask for, and writes the report.
#[derive(Debug)]
pub struct Transfers {
    report: Option<ReportFile>,
    /// Whether what cannot be removed can only be something at the destination.
    deletes: bool,
    /// How much an earlier run could not delete, which this one does not delete either.
    not_deleted: usize,
}

impl Transfers {
    pub fn new(report: Option<ReportFile>, config: &TransferConfig) -> Self {
        let deletes = config.delete.is_some() && !config.remove_source_files;
        Self { report, deletes, not_deleted: 0 }
    }

    /// A second attempt, after one that could not delete so many things.
    #[must_use]
    pub fn after(self, not_deleted: usize) -> Self {
        Self { not_deleted, ..self }
    }

    /// Adds to the report, which is given up at the first error.
    fn note(
        &mut self,
        tally: &mut Tally,
        add: impl FnOnce(&mut ReportFile) -> Result<(), ReportError>,
    ) {
        if let Some(Err(error)) = self.report.as_mut().map(add) {
            self.report = None;
            tally.output_error.get_or_insert(error.to_string());
        }
    }
}

impl Viewer for Transfers {
    fn entry(&mut self, entry: &EntryReport, screen: &mut Screen, tally: &mut Tally) {
        self.note(tally, |report| report.add(entry));
        if matches!(entry.outcome, Outcome::Would(_)) {
            tally.would += 1;
            tally.bytes_would += entry.size;
        }
        if is_shown(entry, screen) {
            print(entry, screen);
        }
    }

    fn deleted(&mut self, path: &[u8], is_directory: bool, screen: &mut Screen, tally: &mut Tally) {
        let display = &screen.display;
        let line = PathLine::deleted(path, is_directory, display.mapping.is_some());
        self.note(tally, |report| report.add_path(&line));
        let is_asked = display.mapping.is_some() || display.itemizer.level > 0;
        if !is_asked && (display.verbose == 0 || screen.is_json()) {
            return;
        }
        if display.json {
            if let Ok(line) = json_line(&line) {
                screen.out_line(line.trim_end());
            }
            return;
        }
        let line = match &display.mapping {
            _ if display.itemizer.level > 0 => itemize::deletion(path, is_directory),
            mapping => {
                let path = mapping.as_ref().map_or(path.to_vec(), |it| it.at_destination(path));
                format!("deleting {}", itemize::shown(&path, is_directory))
            }
        };
        screen.out_line(&line);
    }

    fn complaint(&mut self, path: &[u8], failure: &Failure, tally: &mut Tally) {
        let about = About::of_complaint(path, failure, self.deletes);
        self.note(tally, |report| report.add_path(&PathLine::complaint(path, about, failure)));
    }

    fn end(&mut self, complete: bool, screen: &mut Screen, tally: &mut Tally) {
        if self.not_deleted > 0 {
            tally.errors += 1;
            screen.complain(&not_deleted(self.not_deleted));
        }
        if let Some(Err(error)) = self.report.take().map(|report| report.finish(complete)) {
            tally.output_error.get_or_insert(error.to_string());
        }
    }
}

/// What is said of deletions that failed in an earlier run.
pub fn not_deleted(count: usize) -> String {
    let what = plural(count as u64, "deletion");
    format!(
        "{what} that failed then: not tried again, as retry never deletes; run the command itself"
    )
}

/// Whether an entry has a line on standard output.
fn is_shown(entry: &EntryReport, screen: &Screen) -> bool {
    let display = &screen.display;
    if display.itemizer.level > 0 {
        return display.itemizer.line(entry).is_some();
    }
    // With JSON events, -v is about those.
    let verbose = if screen.is_json() { 0 } else { display.verbose };
    match entry.outcome {
        Outcome::Would(_) => true,
        Outcome::Done(_) => verbose > 0,
        Outcome::Skipped | Outcome::Left => verbose > 1,
        Outcome::Failed(_) => false,
    }
}

fn print(entry: &EntryReport, screen: &mut Screen) {
    let display = &screen.display;
    let is_planned = matches!(entry.outcome, Outcome::Would(_));
    let mapping = display.mapping.as_ref().filter(|_| is_planned);
    let route = mapping.map(|mapping| mapping.route(entry));
    if display.json {
        let line = EntryLine::new(entry);
        let line = match &route {
            Some(route) => line.on(route),
            None => line,
        };
        if let Ok(line) = json_line(&line) {
            screen.out_line(line.trim_end());
        }
        return;
    }
    let path = itemize::shown(&entry.path, entry.path.is_empty());
    let line = match (display.itemizer.line(entry), route, &entry.outcome) {
        (Some(line), ..) if display.itemizer.level > 0 => line,
        (_, Some(route), _) => shown_route(&route),
        (_, None, Outcome::Skipped) => format!("{path} is there already"),
        (_, None, Outcome::Left) => format!("{path} is left alone"),
        (_, None, _) => path,
    };
    screen.out_line(&line);
}

fn shown_route(route: &Route) -> String {
    let destination = Escaped(&route.destination);
    let source = match &route.source {
        Some(source) => format!("{} -> ", Escaped(source)),
        None => String::new(),
    };
    match &route.otherwise {
        Some(inside) => {
            let inside = Escaped(inside);
            format!("{source}{destination} ({inside} if {destination} is a directory)")
        }
        None => format!("{source}{destination}"),
    }
}
