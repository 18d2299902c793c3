//! Counts of what was found and done, for `--stats` and for runs that do not come to their end.

use serde::Serialize;

use super::text::{duration, grouped};
use crate::engine::event::{EntryKind, EntryReport, Report};
use crate::protocol::message::{Changes, Outcome, Special};

/// How many entries of each kind. A further name of a file counts as a file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Kinds {
    pub regular: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub devices: u64,
    pub specials: u64,
}

impl Kinds {
    fn add(&mut self, kind: EntryKind) {
        let count = match kind {
            EntryKind::File | EntryKind::HardLink => &mut self.regular,
            EntryKind::Directory => &mut self.directories,
            EntryKind::Symlink => &mut self.symlinks,
            EntryKind::Special(Special::Fifo | Special::Socket) => &mut self.specials,
            EntryKind::Special(Special::CharacterDevice { .. } | Special::BlockDevice { .. }) => {
                &mut self.devices
            }
            EntryKind::Other => return,
        };
        *count += 1;
    }

    /// `5 (reg: 3, dir: 2)`, as rsync has it.
    fn shown(&self) -> String {
        let kinds = [
            (self.regular, "reg"),
            (self.directories, "dir"),
            (self.symlinks, "link"),
            (self.devices, "dev"),
            (self.specials, "special"),
        ];
        shown(&kinds)
    }
}

/// A sum and its parts.
fn shown(kinds: &[(u64, &str)]) -> String {
    let parts = kinds.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<_> = parts.map(|(count, name)| format!("{name}: {}", grouped(*count))).collect();
    let all = grouped(kinds.iter().map(|(count, _)| count).sum());
    if parts.is_empty() { all } else { format!("{all} ({})", parts.join(", ")) }
}

/// What the engine has told so far. In a dry run, what would be done counts as done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    found: Kinds,
    created: Kinds,
    deleted_directories: u64,
    deleted_others: u64,
    transferred: u64,
    total_size: u64,
    transferred_size: u64,
    done: u64,
    skipped: u64,
    failed: u64,
    attributes_only: u64,
    linked: u64,
    /// What was done before the connection was made again, and is found at its place since.
    done_before: u64,
}

impl Counts {
    pub fn add(&mut self, entry: &EntryReport) {
        self.found.add(entry.kind);
        self.total_size += entry.size;
        match &entry.outcome {
            Outcome::Done(changes) | Outcome::Would(changes) => self.changed(entry, *changes),
            Outcome::Skipped | Outcome::Left => self.skipped += 1,
            Outcome::Failed(_) => self.failed += 1,
        }
    }

    fn changed(&mut self, entry: &EntryReport, changes: Changes) {
        self.done += 1;
        if changes.has(Changes::CREATED) {
            self.created.add(entry.kind);
        }
        self.linked += u64::from(changes.has(Changes::LINKED));
        let anew = Changes::CREATED_WITH_CONTENT.with(Changes::LINKED);
        self.attributes_only += u64::from(!changes.has(anew));
        if entry.kind == EntryKind::File && changes.has(Changes::CONTENT) {
            self.transferred += 1;
            self.transferred_size += entry.size;
        }
    }

    pub fn add_deleted(&mut self, is_directory: bool) {
        *(if is_directory { &mut self.deleted_directories } else { &mut self.deleted_others }) += 1;
    }

    /// Every entry will be told again.
    pub fn begin_again(&mut self) {
        (self.found, self.total_size) = (Kinds::default(), 0);
        (self.skipped, self.failed, self.done_before) = (0, 0, self.done);
    }

    /// What was done, of a run that did not come to its end.
    pub fn partial_report(&self) -> Report {
        Report {
            done: self.done,
            skipped: self.skipped.saturating_sub(self.done_before),
            failed: self.failed,
            bytes_done: self.transferred_size,
            attributes_only: self.attributes_only,
            linked: self.linked,
            deleted: self.deleted_directories + self.deleted_others,
            ..Report::default()
        }
    }
}

/// What `--stats` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    pub found: Kinds,
    pub created: Kinds,
    pub deleted: u64,
    pub deleted_directories: u64,
    pub files_transferred: u64,
    pub total_size: u64,
    pub transferred_size: u64,
    /// Payload that was sent, repetitions included.
    pub literal_bytes: u64,
    /// Of partial files, what was there already.
    pub matched_bytes: u64,
    pub attributes_only: u64,
    pub hard_links: u64,
    #[serde(skip)]
    report: Report,
}

impl Stats {
    pub fn new(counts: &Counts, report: &Report) -> Self {
        Self {
            found: counts.found,
            created: counts.created,
            deleted: counts.deleted_directories + counts.deleted_others,
            deleted_directories: counts.deleted_directories,
            files_transferred: counts.transferred,
            total_size: counts.total_size,
            transferred_size: counts.transferred_size,
            literal_bytes: report.bytes_sent,
            matched_bytes: report.bytes_resumed,
            attributes_only: counts.attributes_only,
            hard_links: counts.linked,
            report: report.clone(),
        }
    }

    /// The lines that rsync has too are worded as there.
    pub fn lines(&self) -> Vec<String> {
        let deleted =
            [(self.deleted - self.deleted_directories, "other"), (self.deleted_directories, "dir")];
        let size = |name: &str, count| format!("{name}: {} bytes", grouped(count));
        let number = |name: &str, count| format!("{name}: {}", grouped(count));
        vec![
            format!("Number of files: {}", self.found.shown()),
            format!("Number of created files: {}", self.created.shown()),
            format!("Number of deleted files: {}", shown(&deleted)),
            number("Number of regular files transferred", self.files_transferred),
            size("Total file size", self.total_size),
            size("Total transferred file size", self.transferred_size),
            size("Literal data", self.literal_bytes),
            size("Matched data", self.matched_bytes),
            number("Number of hard links made", self.hard_links),
            number("Number of files with changed attributes only", self.attributes_only),
            number("Number of files that failed", self.report.failed),
            number("Number of reconnections", self.report.reconnects.into()),
            format!("Elapsed time: {}", duration(self.report.elapsed)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::itemize::tests::entry;
    use crate::protocol::message::{Failure, FailureCode};

    fn counts() -> Counts {
        let mut counts = Counts::default();
        let created = Changes::CREATED;
        for (kind, outcome) in [
            (EntryKind::Directory, Outcome::Done(created)),
            (EntryKind::File, Outcome::Done(Changes::CREATED_WITH_CONTENT)),
            (EntryKind::File, Outcome::Done(Changes::TIME)),
            (EntryKind::File, Outcome::Skipped),
            (EntryKind::HardLink, Outcome::Done(created.with(Changes::LINKED))),
            (EntryKind::Symlink, Outcome::Would(created)),
            (EntryKind::Special(Special::Fifo), Outcome::Left),
            (EntryKind::Other, Outcome::Failed(Failure::new(FailureCode::Io, "no"))),
        ] {
            counts.add(&entry(b"x", kind, outcome));
        }
        counts.add_deleted(true);
        counts.add_deleted(false);
        counts
    }

    #[test]
    fn lines_are_worded_as_in_rsync() {
        let report = Report { bytes_sent: 1_234_567, bytes_resumed: 9, ..Report::default() };
        let lines = Stats::new(&counts(), &report).lines();
        assert_eq!(
            lines[..10],
            [
                "Number of files: 7 (reg: 4, dir: 1, link: 1, special: 1)",
                "Number of created files: 4 (reg: 2, dir: 1, link: 1)",
                "Number of deleted files: 2 (other: 1, dir: 1)",
                "Number of regular files transferred: 1",
                "Total file size: 15 bytes",
                "Total transferred file size: 5 bytes",
                "Literal data: 1,234,567 bytes",
                "Matched data: 9 bytes",
                "Number of hard links made: 1",
                "Number of files with changed attributes only: 1",
            ]
        );
        let none = Stats::new(&Counts::default(), &Report::default()).lines();
        assert_eq!(
            (&none[0][..], &none[2][..]),
            ("Number of files: 0", "Number of deleted files: 0")
        );
    }

    #[test]
    fn nothing_counts_twice_though_the_session_reconnects() {
        let mut counts = counts();
        counts.begin_again();
        for _ in 0..7 {
            counts.add(&entry(b"x", EntryKind::File, Outcome::Skipped));
        }
        let report = counts.partial_report();
        assert_eq!((report.done, report.skipped, report.failed, report.deleted), (5, 2, 0, 2));
        assert_eq!(Stats::new(&counts, &report).found.regular, 7);
    }
}
