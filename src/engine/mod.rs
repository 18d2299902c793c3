//! Who does what when: the only place where storage meets transport.

pub mod event;
pub mod job;

use std::sync::Arc;

use thiserror::Error;

use crate::protocol::message::Failure;
use event::{Event, Progress, Report};
use job::Job;

/// Why a transfer as a whole did not succeed. Single entries that failed are in the [`Report`].
#[derive(Debug, Error)]
pub enum EngineError {
    /// The job makes no sense as it is.
    #[error("{0}")]
    Usage(String),
    /// The source cannot be used at all, such as a path that does not exist.
    #[error("{0}")]
    Source(crate::storage::StorageError),
    /// ssh could not log in.
    #[error("cannot log in to {host}: {cause}")]
    Authentication { host: String, cause: String },
    /// The agent could not be started, or is no fastsync.
    #[error("cannot start fastsync on {host}: {cause}")]
    AgentNotStartable { host: String, cause: String },
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
pub async fn run(_job: Job, _watch: Watch) -> Result<Report, EngineError> {
    Err(EngineError::Interrupted)
}
