//! What is left of uploads that were not finished.

use std::time::Duration;

use super::{Answer, Endpoint, Key, Listed, OWN_PREFIX, ThingKind, all};
use crate::protocol::manifest::Timestamp;
use crate::storage::Token;

/// Something that an upload left, which no run may ever come back for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unfinished {
    /// The key that it was to have, or that of a temporary file.
    pub key: Key,
    /// For [`Endpoint::abandon`]; `None` of what is removed as any file is.
    pub token: Option<Token>,
    /// What is there of it, in bytes.
    pub size: u64,
    /// When it was written to last, or begun, if nothing else is known.
    pub since: Option<Timestamp>,
}

impl Unfinished {
    /// Whether it was left alone for so long, at a time. What has no time is of no age.
    pub fn is_older(&self, than: Duration, now: Timestamp) -> bool {
        let age = self.since.map(|since| now.seconds.saturating_sub(since.seconds));
        age.and_then(|age| u64::try_from(age).ok()).unwrap_or_default() >= than.as_secs()
    }
}

/// Temporary files of our own in a directory and below it, as a listing tells of them.
pub async fn temporary_files<E: Endpoint>(
    endpoint: &E,
    directory: &Key,
    found: flume::Sender<Vec<Unfinished>>,
) -> Answer<()> {
    let (listing, listed) = flume::bounded::<Vec<Listed>>(LISTED);
    // Ends the listing when nobody listens any more, as `listed` goes with it.
    let pick = async move {
        while let Ok(group) = listed.recv_async().await {
            let group = group.into_iter().filter_map(temporary_file);
            // What is removed for it is asked for by a user who named the directory, not by the server.
            let group: Vec<_> = group.filter(|it| it.key.below(directory).is_some()).collect();
            if !group.is_empty() && found.send_async(group).await.is_err() {
                return;
            }
        }
    };
    let (answer, ()) = tokio::join!(endpoint.list(directory, true, listing), pick);
    answer
}

fn temporary_file(listed: Listed) -> Option<Unfinished> {
    let Listed::Thing(key, thing) = listed else { return None };
    let is_ours = thing.kind == ThingKind::File && is_temporary(key.name());
    let since = thing.modified.or(thing.mtime);
    is_ours.then_some(Unfinished { key, token: None, size: thing.size, since })
}

/// Whether a name is one that a run gives to what is not complete yet, here or at an endpoint: a run or a
/// file, and a file, a run, or a number.
pub fn is_temporary(name: &[u8]) -> bool {
    let is_hex = |part: &[u8]| part.iter().all(u8::is_ascii_hexdigit);
    let mut parts = match name.strip_prefix(OWN_PREFIX) {
        Some(rest) => rest.split(|byte| *byte == b'-'),
        None => return false,
    };
    let (first, second, rest) = (parts.next(), parts.next(), parts.next());
    first.is_some_and(|it| matches!(it.len(), 8 | 16) && is_hex(it))
        && second.is_some_and(|it| (1..=16).contains(&it.len()) && is_hex(it))
        && rest.is_none()
}

/// Removes what was left. The answers are in the order of what is to go.
pub async fn remove_unfinished<E: Endpoint>(endpoint: &E, left: &[Unfinished]) -> Vec<Answer<()>> {
    let removals: Vec<_> = left
        .iter()
        .map(async |it| {
            if let Some(token) = &it.token {
                return endpoint.abandon(&it.key, token).await;
            }
            let removed = endpoint.remove(vec![(it.key.clone(), ThingKind::File)]).await;
            removed.into_iter().next().unwrap_or(Ok(()))
        })
        .collect();
    all(removals, endpoint.properties().requests).await
}

/// How many groups of a listing may wait.
const LISTED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_make_is_temporary() {
        for rest in [
            "0123abcd-0123456789abcdef",
            "0123456789abcdef-0123456789abcdef",
            "0123456789abcdef-12",
        ] {
            assert!(is_temporary(&[OWN_PREFIX, rest.as_bytes()].concat()), "{rest}");
        }
        for rest in ["", "notes", "0123abcd", "0123abcd-", "0123-0", "0123abcd-x", "0123abcd-0-1"] {
            assert!(!is_temporary(&[OWN_PREFIX, rest.as_bytes()].concat()), "{rest}");
        }
        assert!(!is_temporary(b"file") && !is_temporary(b"0123abcd-0123456789abcdef"));
    }

    #[test]
    fn what_has_no_time_is_of_no_age() {
        let left = |since| Unfinished { key: Key::default(), token: None, size: 0, since };
        let (now, day) = (Timestamp::new(1_000_000, 0).unwrap(), Duration::from_hours(24));
        assert!(left(Timestamp::new(1_000_000 - 86_400, 0)).is_older(day, now));
        assert!(!left(Timestamp::new(1_000_000 - 86_399, 0)).is_older(day, now));
        assert!(!left(Timestamp::new(2_000_000, 0)).is_older(day, now));
        assert!(!left(None).is_older(day, now));
        assert!(left(None).is_older(Duration::ZERO, now));
    }
}
