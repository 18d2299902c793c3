//! What uploads and transfers have left that nobody came back for: at an endpoint, in a directory of this
//! machine, or among its journals.

use std::time::{SystemTime, UNIX_EPOCH};

use super::EngineError;
use super::client::{Failed, SessionEnd};
use super::endpoint;
use super::event::{Event, Leftover, LeftoverOutcome};
use super::job::{Clean, Job, Site};
use super::session::Observer;
use crate::protocol::manifest::{Timestamp, Totals};
use crate::protocol::message::Deletions;
use crate::storage::local::{self, LeftBehind};
use crate::storage::remote::{Endpoint as _, Fault, Key, Unfinished, remove_unfinished};
use crate::storage::{AnyEndpoint, StorageError};

/// Tells what is left, and removes it if that is meant.
pub async fn clean(job: &Job, clean: &Clean, observer: &Observer) -> Result<SessionEnd, Failed> {
    let cleaned = async {
        match &clean.site {
            None => {
                let base = job.config.state_directory.clone();
                let left: Look = Box::new(move |tell| match base {
                    Some(base) => local::journals_left_behind(&base, tell),
                    None => Ok(()),
                });
                clean_local(left, clean, observer).await
            }
            Some(Site::Local(path)) => {
                let path = path.clone();
                clean_local(Box::new(move |tell| local::left_behind(&path, tell)), clean, observer)
                    .await
            }
            Some(Site::Endpoint { store, path }) => {
                let (endpoint, key) = endpoint::open(store, path, job, observer).await?;
                let cleaning = clean_endpoint(&endpoint, &key, clean, observer);
                tokio::select! {
                    cleaned = cleaning => cleaned.map_err(endpoint::at_store(store, path)),
                    () = observer.asked_to_stop() => Err(EngineError::Interrupted),
                }
            }
        }
    };
    cleaned.await.map_err(|error| Failed { error, established: false })?;
    let (totals, deletions) = (Totals::default(), Deletions::default());
    Ok(SessionEnd { totals, durable: true, deletions })
}

async fn clean_endpoint(
    endpoint: &AnyEndpoint,
    directory: &Key,
    clean: &Clean,
    observer: &Observer,
) -> Result<(), Fault> {
    let now = now();
    let (found, finds) = flume::bounded::<Vec<Unfinished>>(GROUPS);
    let removing = async {
        while let Ok(group) = finds.recv_async().await {
            let (old, young): (Vec<_>, Vec<_>) =
                group.into_iter().partition(|it| it.is_older(clean.older_than, now));
            let young = young.into_iter().map(|it| (it, LeftoverOutcome::Kept));
            let old: Vec<_> = if clean.remove {
                let answers = remove_unfinished(endpoint, &old).await;
                old.into_iter().zip(answers.into_iter().map(LeftoverOutcome::of)).collect()
            } else {
                old.into_iter().map(|it| (it, LeftoverOutcome::Found)).collect()
            };
            for (it, outcome) in young.chain(old) {
                let place = endpoint.shown(&it.key);
                let leftover = Leftover { place, size: it.size, since: it.since, outcome };
                observer.tell(Event::Leftover(leftover));
            }
        }
    };
    let (answer, ()) = tokio::join!(endpoint.unfinished(directory, found), removing);
    answer
}

/// Looks for what was left on this machine.
type Look = Box<dyn FnOnce(&mut dyn FnMut(LeftBehind<'_>)) -> Result<(), StorageError> + Send>;

async fn clean_local(look: Look, clean: &Clean, observer: &Observer) -> Result<(), EngineError> {
    let (clean, observer, now) = (clean.clone(), observer.clone(), now());
    let mut tell = move |left: LeftBehind<'_>| {
        let age = now.seconds.saturating_sub(left.modified.seconds);
        let is_old = u64::try_from(age).unwrap_or_default() >= clean.older_than.as_secs();
        let outcome = match (is_old, clean.remove) {
            (false, _) => LeftoverOutcome::Kept,
            (true, false) => LeftoverOutcome::Found,
            (true, true) => LeftoverOutcome::of(left.remove()),
        };
        let (place, size, since) = (left.path, left.size, Some(left.modified));
        observer.tell(Event::Leftover(Leftover { place, size, since, outcome }));
    };
    let looked = tokio::task::spawn_blocking(move || look(&mut tell)).await;
    let looked = looked.map_err(|error| EngineError::Usage(error.to_string()))?;
    looked.map_err(EngineError::Source)
}

fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(i64::try_from(now.as_secs()).unwrap_or_default(), 0).unwrap_or_default()
}

/// How many groups may wait to be told of.
const GROUPS: usize = 16;
