//! Who does what when: the only place where storage meets transport.

pub mod agent;
mod clean;
mod client;
mod control;
mod endpoint;
pub mod event;
mod here;
mod inside;
mod inventory;
pub mod job;
mod journal;
mod launch;
pub mod measure;
mod plan;
pub mod program;
mod reach;
mod receive;
mod send;
mod session;
mod third_party;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

/// What a command line needs of storage: the syntax of filter rules and of `--chmod`.
pub use crate::storage::filter;
pub use crate::storage::local::chmod;

use crate::protocol::message::{Failure, Resume};
use crate::storage;
use event::{Event, Progress, Report};
use job::{At, Direction, Job};
use session::Observer;

/// Why a transfer as a whole did not succeed. Single entries that failed are in the [`Report`].
#[derive(Debug, Error)]
pub enum EngineError {
    /// The job makes no sense as it is.
    #[error("{0}")]
    Usage(String),
    /// The source cannot be used at all, such as a path that does not exist.
    #[error("{0}")]
    Source(storage::StorageError),
    /// ssh could not log in.
    #[error("cannot log in to {host}: {cause}")]
    Authentication { host: String, cause: String },
    /// Who we are was not believed at an endpoint, or there is no such place for us.
    #[error("cannot use {place}: {cause}")]
    Credentials { place: String, cause: String },
    /// Who we are was not believed any more when something was under way there.
    #[error("{0}")]
    Mistrusted(Failure),
    /// The agent could not be started, or is no fastsync.
    #[error("cannot start fastsync on {host}: {cause}")]
    AgentNotStartable { host: String, cause: String },
    /// No connection to an endpoint could be made.
    #[error("cannot reach {place}: {cause}")]
    Unreachable { place: String, cause: String },
    /// The session ended before its end: the connection was lost, or the peer fell silent.
    #[error("the connection to {host} was lost: {cause}")]
    Disconnected { host: String, cause: String },
    /// This end or the other gave the session up, and why.
    #[error("{0}")]
    Session(Failure),
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Where a caller sees what happens and says that it should stop.
#[derive(Clone, Debug)]
pub struct Watch {
    pub progress: Arc<Progress>,
    pub events: flume::Sender<Event>,
    /// Set to `true` to stop at the next safe point.
    pub stop: tokio::sync::watch::Receiver<bool>,
}

/// Runs a job to its end, making lost connections again as the job allows.
///
/// # Errors
///
/// If the transfer as a whole failed; entries that failed by themselves are counted in the report.
pub async fn run(mut job: Job, watch: Watch) -> Result<Report, EngineError> {
    let started = Instant::now();
    storage::local::raise_file_limit();
    let observer = Observer::new(Arc::clone(&watch.progress), Some(watch.events.clone()))
        .stoppable(watch.stop.clone());
    let mut bytes_sent = 0;
    let mut bytes_resumed = None;
    let mut reconnects = 0;
    let mut tries_left = job.config.retries;
    let mut pause = job.config.retry_pause;
    // Why there is no agent, as long as it is not known whether there is an SFTP server.
    let mut agentless = None;
    let end = loop {
        observer.begin_session();
        let result = match &job.direction {
            Direction::Copy { sources, destination } => {
                Box::pin(inside::copy(&job, sources, destination, &observer)).await
            }
            Direction::Inventory { sources, at: at @ (At::Here | At::Store(_)), hash } => {
                Box::pin(inside::look(&job, sources, at, *hash, &observer)).await
            }
            Direction::Between { sources, source_host, host, destination } => {
                let route = third_party::client::Route { sources, source_host, host, destination };
                Box::pin(third_party::client::run_session(&job, route, &observer)).await
            }
            Direction::Clean(clean) => Box::pin(clean::clean(&job, clean, &observer)).await,
            Direction::Push { .. }
            | Direction::Pull { .. }
            | Direction::Inventory { .. }
            | Direction::Measure { .. } => Box::pin(client::run_session(&job, &observer)).await,
        };
        bytes_sent += watch.progress.bytes_sent.get();
        // What a later session resumes was written by an earlier one of this very run.
        bytes_resumed.get_or_insert(watch.progress.bytes_resumed.get());
        let failed = match result {
            Ok(end) => break end,
            Err(failed) => without_agent(failed, &mut agentless, &mut job, &observer)?,
        };
        let Some(failed) = failed else { continue };
        if watch.progress.bytes_verified.get() > 0 {
            (tries_left, pause) = (job.config.retries, job.config.retry_pause);
            if job.config.resume == Resume::Never {
                // What earlier runs left is gone; what this run has written is to go on from.
                job.config.resume = Resume::Trust;
            }
        }
        if *watch.stop.borrow() {
            // ssh hears the same Ctrl-C, and may be the first to go.
            return Err(EngineError::Interrupted);
        }
        let is_about_the_way = matches!(
            failed.error,
            EngineError::Disconnected { .. } | EngineError::Unreachable { .. }
        );
        let is_worth_it =
            is_about_the_way && (failed.established || reconnects > 0) && tries_left > 0;
        if !is_worth_it {
            return Err(failed.error);
        }
        tries_left -= 1;
        reconnects += 1;
        let cause = failed.error.to_string();
        observer.tell(Event::Retrying { cause, attempt: reconnects, pause });
        if wait_or_stop(pause, &watch).await {
            return Err(EngineError::Interrupted);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    let connection = observer.connection();
    let tally = observer.tally();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    // What earlier sessions of this run did was there already for the last one.
    let done_before = count(&tally.done).saturating_sub(end.totals.done);
    Ok(Report {
        done: count(&tally.done),
        skipped: end.totals.skipped.saturating_sub(done_before + count(&tally.would)),
        would: count(&tally.would),
        failed: end.totals.failed,
        created: count(&tally.created),
        attributes_only: count(&tally.attributes_only),
        linked: count(&tally.linked),
        deleted: end.deletions.done,
        over_limit: end.deletions.over_limit,
        failed_changed: count(&tally.failed_changed),
        failed_verification: count(&tally.failed_verification),
        complaints: count(&tally.complaints),
        bytes_done: count(&tally.bytes_done),
        bytes_sent,
        bytes_skipped: watch.progress.bytes_skipped.get(),
        bytes_resumed: bytes_resumed.unwrap_or_default(),
        streams: connection
            .as_ref()
            .map_or(job.config.streams, |it| it.used(watch.progress.most_streams.get())),
        transport: connection.as_ref().map_or("none", |it| it.transport),
        dialler: connection.as_ref().map_or("", |it| it.dialler),
        encrypted: connection.as_ref().is_some_and(|it| it.encrypted),
        reason: connection.map(|it| it.reason).unwrap_or_default(),
        durable: end.durable,
        dry_run: job.config.dry_run,
        reconnects,
        elapsed: started.elapsed(),
    })
}

/// Goes on by SFTP where there is no agent, if that is why a session failed; else returns why it did.
/// `agentless` is why there is no agent, as long as it is not known whether there is an SFTP server.
fn without_agent(
    failed: client::Failed,
    agentless: &mut Option<EngineError>,
    job: &mut Job,
    observer: &Observer,
) -> Result<Option<client::Failed>, EngineError> {
    match agentless.take() {
        // Nobody who has no agent in mind wants to hear of SFTP alone.
        Some(EngineError::AgentNotStartable { host, cause }) if !failed.established => {
            let cause = format!("{cause}; nor is there SFTP: {}", failed.error);
            Err(EngineError::AgentNotStartable { host, cause })
        }
        _ => {
            let Some(direction) = endpoint::fallback(job, &failed) else {
                return Ok(Some(failed));
            };
            observer.tell(Event::Note(format!(
                "{}; going on by SFTP, which only this end verifies (--no-fallback forbids it)",
                failed.error
            )));
            job.direction = direction;
            // It has been logged in to a moment ago.
            job.launch.login_patience = Some(AGAIN_PATIENCE);
            *agentless = Some(failed.error);
            Ok(None)
        }
    }
}

/// Waits; `true` if the user asked to stop meanwhile.
async fn wait_or_stop(pause: Duration, watch: &Watch) -> bool {
    let mut stop = watch.stop.clone();
    tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok_and(|stop| stop.is_ok())
}

/// How long a second login may take, after one that brought no agent.
const AGAIN_PATIENCE: Duration = Duration::from_secs(30);

/// The longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
