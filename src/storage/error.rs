//! What can go wrong between us and a file.

use std::fmt;
use std::io;

use thiserror::Error;

use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Failure, FailureCode};

/// A storage operation failed. Every variant names the path.
#[derive(Debug, Error)]
pub enum StorageError {
    /// The source is not what it was when it was found.
    #[error("{} changed while it was read", Escaped(path))]
    Changed { path: Vec<u8> },
    /// The source is gone.
    #[error("{} vanished before it could be read", Escaped(path))]
    Vanished { path: Vec<u8> },
    /// Something of another type has the name, and is not replaced.
    #[error(
        "cannot replace {}: {existing} is in the way; move it away or choose another destination",
        Escaped(path)
    )]
    Conflict { path: Vec<u8>, existing: &'static str },
    /// The entry's directory could not be made, so nothing can be put into it.
    #[error("cannot write {}: its directory could not be made", Escaped(path))]
    NoParent { path: Vec<u8> },
    /// The system refused an operation.
    #[error("cannot {operation} {}: {cause}", Escaped(path))]
    Io { operation: Operation, path: Vec<u8>, cause: io::Error },
}

impl StorageError {
    /// For `map_err`: `write(fd).map_err(StorageError::io(Operation::Write, path))`.
    pub fn io<E: Into<io::Error>>(operation: Operation, path: &[u8]) -> impl FnOnce(E) -> Self {
        move |cause| Self::Io { operation, path: path.to_vec(), cause: cause.into() }
    }

    /// Whether the destination has no room left, so that going on with other files is pointless.
    pub fn is_destination_full(&self) -> bool {
        matches!(self, Self::Io { cause, operation, .. } if *operation != Operation::Read
            && matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// The class of this failure, as the wire carries it.
    pub fn code(&self) -> FailureCode {
        match self {
            Self::Changed { .. } => FailureCode::Changed,
            Self::Vanished { .. } => FailureCode::Vanished,
            Self::Conflict { .. } | Self::NoParent { .. } => FailureCode::Conflict,
            Self::Io { .. } if self.is_destination_full() => FailureCode::DestinationFull,
            Self::Io { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => {
                FailureCode::Permission
            }
            Self::Io { .. } => FailureCode::Io,
        }
    }

    /// The failure as the peer is told.
    pub fn to_failure(&self) -> Failure {
        Failure::new(self.code(), self.to_string())
    }
}

/// What we were doing, named so that the message reads as a sentence: "cannot sync /a/b".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    Create,
    Link,
    List,
    Lock,
    Open,
    Read,
    Remove,
    Rename,
    SetMode,
    SetTimes,
    Stat,
    Sync,
    Write,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Link => "link",
            Self::List => "list",
            Self::Lock => "lock",
            Self::Open => "open",
            Self::Read => "read",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::SetMode => "set the mode of",
            Self::SetTimes => "set the times of",
            Self::Stat => "stat",
            Self::Sync => "sync",
            Self::Write => "write",
        })
    }
}
