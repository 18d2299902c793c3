//! Why there is no connection, in the words that ssh has for it: what reads them knows those.

use std::io;

use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    /// The configuration or a flag, and what is wrong with it.
    #[error("{0}")]
    Configuration(String),
    #[error("connect to host {host} port {port}: {cause}")]
    Connect { host: String, port: u16, cause: io::Error },
    /// The server is not who it should be, or nobody can say.
    #[error("{0}\nHost key verification failed.")]
    HostKey(String),
    /// The server lets this user not in.
    #[error("{user}@{host}: Permission denied ({methods}){}.", in_brackets(.reasons))]
    Denied { user: String, host: String, methods: String, reasons: Vec<String> },
    #[error("{host}: {cause}")]
    Lost { host: String, cause: String },
    #[error("{0}")]
    Protocol(#[from] russh::Error),
}

impl From<russh::SendError> for Error {
    fn from(_: russh::SendError) -> Self {
        Self::Protocol(russh::Error::SendError)
    }
}

fn in_brackets(reasons: &[String]) -> String {
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}
