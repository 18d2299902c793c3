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
    /// For [`Endpoint::abandon`]; `None` of a temporary file, which is removed as any other.
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
            let group: Vec<_> = group.into_iter().filter_map(temporary_file).collect();
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
    let is_ours = thing.kind == ThingKind::File && key.name().starts_with(OWN_PREFIX);
    let since = thing.modified.or(thing.mtime);
    is_ours.then_some(Unfinished { key, token: None, size: thing.size, since })
}

/// Removes what was left. The answers are in the order of what is to go.
pub async fn remove_unfinished<E: Endpoint>(endpoint: &E, left: &[Unfinished]) -> Vec<Answer<()>> {
    let removals: Vec<_> = left
        .iter()
        .map(async |it| match &it.token {
            Some(token) => endpoint.abandon(&it.key, token).await,
            None => {
                let removed = endpoint.remove(vec![(it.key.clone(), ThingKind::File)]).await;
                removed.into_iter().next().unwrap_or(Ok(()))
            }
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
