//! What is said at the end.

use serde::Serialize;

use super::text::{bytes, duration, plural, rate};
use crate::engine::event::{Connection, Report};

/// What a transfer came to, for people ([`Summary::lines`]) and for programs (as JSON).
#[derive(Debug, Serialize)]
pub struct Summary {
    pub exit_code: u8,
    pub done: u64,
    pub skipped: u64,
    pub failed: u64,
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
    pub peer: Option<String>,
    pub encrypted: bool,
    pub verified: bool,
    pub durable: bool,
    pub dry_run: bool,
    pub reconnects: u32,
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
            peer: connection.map(|connection| connection.peer.clone()),
            encrypted: report.encrypted,
            verified: !report.dry_run && report.failed_verification == 0 && moved_any(report),
            durable: report.durable && !report.dry_run,
            dry_run: report.dry_run,
            reconnects: report.reconnects,
            elapsed: report.elapsed,
        }
    }

    /// One to three lines for people.
    pub fn lines(&self) -> Vec<String> {
        if self.dry_run {
            let entries = if self.would == 1 { "entry" } else { "entries" };
            return vec![format!(
                "dry run, nothing was changed: {} {entries} ({}) would be transferred, {} skipped, \
                 {} failed",
                self.would,
                bytes(self.bytes_would),
                self.skipped,
                self.failed
            )];
        }
        let mut lines = vec![self.counts(), self.means()];
        if self.complaints > 0 {
            let times = plural(self.complaints, "time");
            lines.push(format!("{times} something could not be listed or kept: see above"));
        }
        lines
    }

    fn counts(&self) -> String {
        let entries = if self.done == 1 { "entry" } else { "entries" };
        format!(
            "{} {entries} done, {} skipped, {} failed; {} in {} ({}/s)",
            self.done,
            self.skipped,
            self.failed,
            bytes(self.bytes_done),
            duration(self.elapsed),
            bytes(self.bytes_per_second)
        )
    }

    /// What is proved of the data: nothing of what was skipped (INT-9).
    fn proof(&self) -> &'static str {
        match (self.verified, self.bytes_sent > 0) {
            (true, _) => "verified (BLAKE3)",
            (false, true) => "NOT ALL VERIFIED",
            (false, false) => "nothing to verify",
        }
    }

    fn means(&self) -> String {
        let peer = self.peer.as_ref().map(|peer| format!(" to {}", super::text::shown(peer)));
        let reconnects = match self.reconnects {
            0 => String::new(),
            count => format!(", reconnected {}", plural(count.into(), "time")),
        };
        format!(
            "sent {}, resumed {}, skipped {}; {} over {}{}{reconnects}; {}, {}",
            bytes(self.bytes_sent),
            bytes(self.bytes_resumed),
            bytes(self.bytes_skipped),
            plural(self.streams.into(), "stream"),
            self.transport,
            peer.unwrap_or_default(),
            self.proof(),
            if self.durable { "durable" } else { "not synced to stable storage" }
        )
    }
}

/// Whether any data was there to be verified in this run.
fn moved_any(report: &Report) -> bool {
    report.bytes_sent > 0
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
        let connection = Connection { transport: "tcp+tls", streams: 8, peer, encrypted: true };
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
    fn programs_read_one_object() {
        let line = serde_json::to_value(Summary::new(0, &report(), (0, 0), None)).unwrap();
        assert_eq!((&line["done"], &line["durable"]), (&12.into(), &true.into()));
        assert_eq!(line["bytes_per_second"], 509_523_809);
        assert!(line["peer"].is_null() && line.get("elapsed").is_none());
    }
}
