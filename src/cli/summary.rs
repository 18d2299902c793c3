//! What is said at the end.

use serde::Serialize;

use super::progress::WITHIN_MACHINE;
use super::stats::Stats;
use super::text::{bytes, duration, plural, rate};
use crate::engine::event::{Connection, Report};

/// What a transfer came to, for people ([`Summary::lines`]) and for programs (as JSON).
#[derive(Debug, Serialize)]
pub struct Summary {
    pub exit_code: u8,
    pub done: u64,
    pub skipped: u64,
    pub failed: u64,
    /// Of what is done: entries that are new, that only got other metadata, that were made hard links.
    pub created: u64,
    pub attributes_only: u64,
    pub linked: u64,
    /// What was removed at the destination (in a dry run: would be), and what stays there because of
    /// `--max-delete`.
    pub deleted: u64,
    pub over_limit: u64,
    /// In a dry run: entries that would be transferred, and their bytes.
    pub would: u64,
    pub bytes_would: u64,
    pub complaints: u64,
    pub bytes_done: u64,
    pub bytes_sent: u64,
    pub bytes_skipped: u64,
    pub bytes_resumed: u64,
    pub seconds: f64,
    pub bytes_per_second: u64,
    pub streams: u16,
    pub transport: &'static str,
    /// Which end dialled the other, `client` or `agent`, and why it was this way.
    pub dialler: &'static str,
    pub reason: String,
    pub peer: Option<String>,
    pub encrypted: bool,
    pub verified: bool,
    pub durable: bool,
    pub dry_run: bool,
    pub reconnects: u32,
    /// The run came to its end.
    pub complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
    /// Something came, and is not what was sent.
    #[serde(skip)]
    is_wrong: bool,
    #[serde(skip)]
    elapsed: std::time::Duration,
}

impl Summary {
    /// `would` is how many entries, and bytes, would be transferred.
    pub fn new(
        exit_code: u8,
        report: &Report,
        would: (u64, u64),
        connection: Option<&Connection>,
    ) -> Self {
        let moved = report.bytes_done.saturating_sub(report.bytes_resumed);
        Self {
            exit_code,
            done: report.done,
            skipped: report.skipped,
            failed: report.failed,
            created: report.created,
            attributes_only: report.attributes_only,
            linked: report.linked,
            deleted: report.deleted,
            over_limit: report.over_limit,
            would: would.0,
            bytes_would: would.1,
            complaints: report.complaints,
            bytes_done: report.bytes_done,
            bytes_sent: report.bytes_sent,
            bytes_skipped: report.bytes_skipped,
            bytes_resumed: report.bytes_resumed,
            seconds: report.elapsed.as_secs_f64(),
            bytes_per_second: rate(moved, report.elapsed),
            streams: report.streams,
            transport: report.transport,
            dialler: report.dialler,
            reason: report.reason.clone(),
            peer: connection.map(|connection| connection.peer.clone()),
            encrypted: report.encrypted,
            verified: !report.dry_run && report.failed_verification == 0 && moved_any(report),
            durable: report.durable && !report.dry_run,
            dry_run: report.dry_run,
            reconnects: report.reconnects,
            complete: true,
            stats: None,
            is_wrong: report.failed_verification > 0,
            elapsed: report.elapsed,
        }
    }

    /// One to three lines for people.
    pub fn lines(&self) -> Vec<String> {
        if self.dry_run {
            let entries = if self.would == 1 { "entry" } else { "entries" };
            return vec![format!(
                "dry run, nothing was changed: {} {entries} ({}) would be transferred, {} skipped, \
                 {} failed{}",
                self.would,
                bytes(self.bytes_would),
                self.skipped,
                self.failed,
                self.deletions()
            )];
        }
        let mut lines = vec![self.counts(), self.means()];
        if self.complaints > 0 {
            let times = plural(self.complaints, "time");
            lines.push(format!("{times} something could not be listed or kept: see above"));
        }
        lines
    }

    #[must_use]
    pub fn with_stats(self, stats: Option<Stats>) -> Self {
        Self { stats, ..self }
    }

    /// The same of a run that an error has ended.
    #[must_use]
    pub fn of_incomplete_run(self) -> Self {
        Self { complete: false, verified: false, ..self }
    }

    /// What was done before an error ended the run.
    pub fn partial_line(&self) -> String {
        format!("before that: {}", self.counts())
    }

    fn deletions(&self) -> String {
        let word = if self.dry_run { "would be deleted" } else { "deleted" };
        match (self.deleted, self.over_limit) {
            (0, 0) => String::new(),
            (deleted, 0) => format!(", {deleted} {word}"),
            (deleted, kept) => format!(", {deleted} {word}, {kept} not because of --max-delete"),
        }
    }

    fn counts(&self) -> String {
        let entries = if self.done == 1 { "entry" } else { "entries" };
        let parts = [
            (self.attributes_only, plural(self.attributes_only, "change") + " of metadata only"),
            (self.linked, plural(self.linked, "hard link")),
        ];
        let parts: Vec<_> =
            parts.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect();
        let parts =
            if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        format!(
            "{} {entries} done{parts}, {} skipped, {} failed{}; {} in {} ({}/s)",
            self.done,
            self.skipped,
            self.failed,
            self.deletions(),
            bytes(self.bytes_done),
            duration(self.elapsed),
            bytes(self.bytes_per_second)
        )
    }

    /// What is proved of the data: nothing of what was skipped (INT-9).
    fn proof(&self) -> &'static str {
        match (self.verified, self.bytes_sent > 0) {
            (true, _) => "verified (BLAKE3)",
            _ if self.is_wrong => "NOT ALL VERIFIED",
            (false, true) if self.bytes_done > 0 => "NOT ALL VERIFIED",
            (false, false) if self.is_within_machine() && self.bytes_done > 0 => {
                "copied by the kernel, not verified"
            }
            (false, _) => "nothing to verify",
        }
    }

    fn is_within_machine(&self) -> bool {
        self.transport == WITHIN_MACHINE
    }

    fn means(&self) -> String {
        let peer = self.peer.as_ref().map(|peer| format!(" to {}", super::text::shown(peer)));
        let reconnects = match self.reconnects {
            0 => String::new(),
            count => format!(", reconnected {}", plural(count.into(), "time")),
        };
        let way = if self.is_within_machine() {
            "within this machine".to_owned()
        } else {
            let streams = plural(self.streams.into(), "stream");
            let is_by_it = matches!(self.dialler, "agent" | "destination");
            let by = if is_by_it { ", dialled by it" } else { "" };
            format!("{streams} over {}{}{by}", self.transport, peer.unwrap_or_default())
        };
        format!(
            "sent {}, resumed {}, skipped {}; {way}{reconnects}; {}, {}",
            bytes(self.bytes_sent),
            bytes(self.bytes_resumed),
            bytes(self.bytes_skipped),
            self.proof(),
            if self.durable { "durable" } else { "not synced to stable storage" }
        )
    }
}

/// Whether any data has come in this run that could be verified. Empty files have none.
fn moved_any(report: &Report) -> bool {
    report.bytes_sent > 0 && (report.bytes_done > 0 || report.failed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report() -> Report {
        Report {
            done: 12,
            skipped: 3,
            bytes_done: 1_070_000_000,
            bytes_sent: 1_070_000_000,
            bytes_skipped: 12_000,
            streams: 8,
            transport: "tcp+tls",
            encrypted: true,
            durable: true,
            elapsed: Duration::from_millis(2_100),
            ..Report::default()
        }
    }

    #[test]
    fn people_read_what_was_done_and_how() {
        let peer = "10.99.0.2".to_owned();
        let (dialler, reason) = ("client", "first choice".to_owned());
        let transport = "tcp+tls";
        let connection =
            Connection { transport, streams: 8, peer, encrypted: true, dialler, reason };
        let lines = Summary::new(0, &report(), (0, 0), Some(&connection)).lines();
        assert_eq!(
            lines,
            [
                "12 entries done, 3 skipped, 0 failed; 1.07 GB in 2.1 s (509 MB/s)",
                "sent 1.07 GB, resumed 0 B, skipped 12.0 kB; 8 streams over tcp+tls to 10.99.0.2; \
                 verified (BLAKE3), durable"
            ]
        );
    }

    #[test]
    fn nothing_is_promised_that_was_not_reached() {
        let bad = Report { durable: false, failed_verification: 1, reconnects: 2, ..report() };
        let lines = Summary::new(40, &bad, (0, 0), None).lines();
        assert!(
            lines[1]
                .ends_with("reconnected 2 times; NOT ALL VERIFIED, not synced to stable storage")
        );
        let dry = Report { dry_run: true, done: 0, ..report() };
        let summary = Summary::new(0, &dry, (1, 5), None);
        assert!(!summary.verified && !summary.durable);
        assert!(summary.lines()[0].contains("1 entry (5 B) would be transferred"));
    }

    #[test]
    fn what_has_not_arrived_is_not_called_verified() {
        let failed = Report { done: 0, failed: 1, bytes_done: 0, ..report() };
        let summary = Summary::new(23, &failed, (0, 0), None);
        assert!(!summary.verified);
        let line = &summary.lines()[1];
        assert!(line.contains("; nothing to verify, "), "{line}");
        let empty = Report { bytes_done: 0, ..report() };
        assert!(Summary::new(0, &empty, (0, 0), None).verified, "files without any data");
    }

    #[test]
    fn other_changes_are_named_where_there_are_any() {
        let changed =
            Report { attributes_only: 1, linked: 2, deleted: 3, over_limit: 4, ..report() };
        let lines = Summary::new(25, &changed, (0, 0), None).lines();
        let wanted = "12 entries done (1 change of metadata only, 2 hard links), 3 skipped, \
                      0 failed, 3 deleted, 4 not because of --max-delete; 1.07 GB in 2.1 s";
        assert!(lines[0].starts_with(wanted), "{}", lines[0]);
        let dry = Report { dry_run: true, deleted: 3, ..report() };
        let lines = Summary::new(0, &dry, (1, 5), None).lines();
        assert!(lines[0].ends_with("0 failed, 3 would be deleted"), "{}", lines[0]);
    }

    #[test]
    fn what_the_kernel_copied_is_not_called_verified() {
        let copied = Report { bytes_sent: 0, transport: "memory", ..report() };
        let lines = Summary::new(0, &copied, (0, 0), None).lines();
        let wanted = "within this machine; copied by the kernel, not verified, durable";
        assert!(lines[1].ends_with(wanted), "{}", lines[1]);
        let sent = Report { transport: "memory", ..report() };
        let lines = Summary::new(0, &sent, (0, 0), None).lines();
        assert!(lines[1].ends_with("within this machine; verified (BLAKE3), durable"));
    }

    #[test]
    fn programs_read_one_object() {
        let line = serde_json::to_value(Summary::new(0, &report(), (0, 0), None)).unwrap();
        assert_eq!((&line["done"], &line["durable"]), (&12.into(), &true.into()));
        assert_eq!(line["bytes_per_second"], 509_523_809);
        assert!(line["peer"].is_null() && line.get("elapsed").is_none());
    }
}
