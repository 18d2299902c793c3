//! `clean`: what was left that nobody came back for.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::UsageError;
use super::args::Clean as Flags;
use super::job::{Plan, job, quiet_display};
use super::location::Location;
use super::progress::{Tally, Viewer};
use super::report::{json_line, json_path};
use super::screen::Screen;
use super::settings::Environment;
use super::text::{bytes, date, plural};
use crate::engine::event::{EntryReport, Leftover, LeftoverOutcome};
use crate::engine::job::{Clean, Direction, Site, Store};
use crate::protocol::manifest::{Escaped, Timestamp};

/// Puts the jobs together: one for each location.
pub fn plan(flags: &Flags, environment: &Environment<'_>) -> Result<Vec<Plan>, UsageError> {
    let mut sites = Vec::new();
    for typed in &flags.locations {
        sites.push(Some(match Location::parse(typed)? {
            Location::Local(path) => Site::Local(path),
            Location::Endpoint { store, path } => Site::Endpoint { store, path },
            Location::Remote { host, .. } => {
                let text = format!(
                    "other hosts are not cleaned from here; write sftp://{host}/PATH, or run \
                     fastsync clean there"
                );
                return Err(UsageError::new(text));
            }
        }));
    }
    if sites.is_empty() {
        sites.push(None);
    }
    let older_than = flags.older_than.map_or(OLDER_THAN, |age| age.0);
    let plans = sites.into_iter().map(|site| {
        let clean = Clean { site, older_than, remove: flags.delete };
        let mut job = job(Direction::Clean(clean), &flags.connecting, None, environment)?;
        // A second session would tell everything again.
        job.config.retries = 0;
        let display = quiet_display(&flags.output, environment)?;
        Ok(Plan { job, display, report: None })
    });
    plans.collect()
}

/// Lists what is left.
#[derive(Debug)]
pub struct Leftovers {
    remove: bool,
    older_than: Duration,
    /// Where a server may hide what is left.
    is_web: bool,
    /// What is old enough, and its bytes; what is not; what was removed.
    old: u64,
    bytes: u64,
    young: u64,
    removed: u64,
}

impl Leftovers {
    pub fn new(flags: &Flags, direction: &Direction) -> Self {
        let older_than = flags.older_than.map_or(OLDER_THAN, |age| age.0);
        let is_web = matches!(
            direction,
            Direction::Clean(Clean { site: Some(Site::Endpoint { store: Store::Web(_), .. }), .. })
        );
        Self { remove: flags.delete, older_than, is_web, old: 0, bytes: 0, young: 0, removed: 0 }
    }
}

impl Viewer for Leftovers {
    fn entry(&mut self, _: &EntryReport, _: &mut Screen, _: &mut Tally) {}

    fn leftover(&mut self, left: Leftover, screen: &mut Screen, tally: &mut Tally) {
        match &left.outcome {
            LeftoverOutcome::Kept => self.young += 1,
            LeftoverOutcome::Removed => self.removed += 1,
            LeftoverOutcome::Found | LeftoverOutcome::Failed(_) => {}
        }
        if left.outcome != LeftoverOutcome::Kept {
            self.old += 1;
            self.bytes += left.size;
            if screen.display.json {
                if let Ok(line) = json_line(&Line::new(&left)) {
                    screen.out_bytes(line.as_bytes());
                }
            } else {
                screen.out_line(&line(&left));
            }
        }
        if let LeftoverOutcome::Failed(error) = &left.outcome {
            tally.errors += 1;
            screen.complain(&format!("cannot remove {}: {error}", Escaped(&left.place)));
        }
    }

    fn end(&mut self, complete: bool, screen: &mut Screen, _: &mut Tally) {
        if !complete {
            return;
        }
        let (count, size) = (plural(self.old, "leftover"), bytes(self.bytes));
        let mut parts = vec![match (self.old, self.remove) {
            (0, _) if self.is_web => {
                "nothing is left that the server lists; nginx, for one, lists no name that begins \
                 with a dot, as those of temporary files do"
                    .to_owned()
            }
            (0, _) => "nothing is left".to_owned(),
            (_, false) => format!("{count}, {size}; --delete removes what is listed"),
            (_, true) => format!("{} of {count} removed, {size}", self.removed),
        }];
        if self.young > 0 {
            let age = age(self.older_than);
            parts.push(format!("{} younger than {age} stay (--older-than)", self.young));
        }
        screen.note(&parts.join("; "));
    }
}

/// One leftover, as programs read it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    size: u64,
    since: Option<String>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn new(left: &'a Leftover) -> Self {
        let (path, path_bytes) = json_path(&left.place);
        let (outcome, error) = match &left.outcome {
            LeftoverOutcome::Kept => ("kept", None),
            LeftoverOutcome::Found => ("found", None),
            LeftoverOutcome::Removed => ("removed", None),
            LeftoverOutcome::Failed(error) => ("failed", Some(&**error)),
        };
        Self { path, path_bytes, size: left.size, since: left.since.map(date), outcome, error }
    }
}

fn line(left: &Leftover) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = |it: Timestamp| now.saturating_sub(Duration::from_secs(it.seconds.unsigned_abs()));
    let age = left.since.map_or("?".to_owned(), |it| age(since(it)));
    format!("{age:>5} {:>9}  {}", bytes(left.size), Escaped(&left.place))
}

/// `7d`, `12h`, `15m`, `90s`: whole units.
fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What is younger may be under way.
const OLDER_THAN: Duration = Duration::from_hours(7 * 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_whole_units() {
        let told = |seconds| age(Duration::from_secs(seconds));
        assert_eq!((told(90), told(900)), ("90s".to_owned(), "15m".to_owned()));
        assert_eq!((told(43_200), told(604_800)), ("12h".to_owned(), "7d".to_owned()));
    }

    #[test]
    fn programs_read_what_is_left() {
        let since = Timestamp::new(0, 0);
        let outcome = LeftoverOutcome::Failed("no".to_owned());
        let left = Leftover { place: b"s3://b/k".to_vec(), size: 5, since, outcome };
        let wanted = "{\"path\":\"s3://b/k\",\"size\":5,\"since\":\"1970-01-01T00:00:00.000000000Z\",\
                      \"outcome\":\"failed\",\"error\":\"no\"}\n";
        assert_eq!(json_line(&Line::new(&left)).unwrap(), wanted);
    }
}
