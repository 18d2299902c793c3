//! What can go wrong between us and a file.

use std::fmt;
use std::io;

use thiserror::Error;

use super::remote::{Class, Fault};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Complaint, Failure, FailureCode};

/// A storage operation failed. Every variant names the path.
#[derive(Debug, Error)]
pub enum StorageError {
    /// The source is not what it was when it was found.
    #[error("{} changed while it was read", Escaped(path))]
    Changed { path: Vec<u8> },
    /// The source is gone.
    #[error("{} vanished before it could be read", Escaped(path))]
    Vanished { path: Vec<u8> },
    /// What was read is not what was stored as the file's root, or expected of it.
    #[error(
        "{} is not what its BLAKE3 root says, as it was stored or expected; it was damaged, or is another file",
        Escaped(path)
    )]
    Corrupt { path: Vec<u8> },
    /// Something of another type has the name, and is not replaced.
    #[error(
        "cannot replace {}: {existing} is in the way; move it away or choose another destination",
        Escaped(path)
    )]
    Conflict { path: Vec<u8>, existing: &'static str },
    /// The file at the destination is the one at the source, which was to be removed.
    #[error("{} is its own source, which therefore was not removed", Escaped(path))]
    SameFile { path: Vec<u8> },
    /// The destination and a source are not apart.
    #[error("cannot write to {}: it {how}; choose another destination", Escaped(path))]
    Overlap { path: Vec<u8>, how: &'static str },
    /// The entry's directory could not be made, so nothing can be put into it.
    #[error("cannot write {}: its directory could not be made", Escaped(path))]
    NoParent { path: Vec<u8> },
    /// An extended attribute or an ACL could not be kept.
    #[error("cannot set the attribute {} of {}: {cause}", Escaped(name), Escaped(path))]
    Attribute { name: Vec<u8>, path: Vec<u8>, cause: io::Error },
    /// The source has nothing, and the destination would lose all that it has.
    #[error(
        "the source is empty, or all that it has is left out; nothing was deleted at {}; \
         --allow-empty-source deletes all the same",
        Escaped(path)
    )]
    EmptySource { path: Vec<u8> },
    /// An endpoint refused an operation.
    #[error("cannot {operation} {}: {fault}", Escaped(path))]
    Endpoint { operation: Operation, path: Vec<u8>, fault: Fault },
    /// The system refused an operation.
    #[error("cannot {operation} {}: {cause}", Escaped(path))]
    Io { operation: Operation, path: Vec<u8>, cause: io::Error },
}

impl StorageError {
    /// For `map_err`: `write(fd).map_err(StorageError::io(Operation::Write, path))`.
    pub fn io<E: Into<io::Error>>(operation: Operation, path: &[u8]) -> impl FnOnce(E) -> Self {
        move |cause| Self::Io { operation, path: path.to_vec(), cause: cause.into() }
    }

    /// What it is about.
    pub fn path(&self) -> &[u8] {
        match self {
            Self::Changed { path }
            | Self::Vanished { path }
            | Self::Corrupt { path }
            | Self::Conflict { path, .. }
            | Self::NoParent { path }
            | Self::SameFile { path }
            | Self::Overlap { path, .. }
            | Self::Attribute { path, .. }
            | Self::EmptySource { path }
            | Self::Endpoint { path, .. }
            | Self::Io { path, .. } => path,
        }
    }

    /// For `map_err`: `endpoint.stat(key).await.map_err(StorageError::at(Operation::Stat, path))`.
    pub fn at(operation: Operation, path: &[u8]) -> impl FnOnce(Fault) -> Self {
        move |fault| Self::Endpoint { operation, path: path.to_vec(), fault }
    }

    /// Whether going on with other files is pointless: there is no room left, or nobody there.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Endpoint { fault, .. } => fault.is_fatal(),
            _ => self.code() == FailureCode::DestinationFull,
        }
    }

    /// Whether the other end has to be connected to anew before anything else works.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Endpoint { fault, .. } if fault.class == Class::Gone)
    }

    /// Whether who we are at an endpoint is not believed, or not any more.
    pub fn is_mistrusted(&self) -> bool {
        matches!(self, Self::Endpoint { fault, .. } if fault.class == Class::Credentials)
    }

    /// The class of this failure, as the wire carries it.
    pub fn code(&self) -> FailureCode {
        match self {
            Self::Changed { .. } => FailureCode::Changed,
            Self::Vanished { .. } => FailureCode::Vanished,
            Self::Corrupt { .. } => FailureCode::Verification,
            Self::Conflict { .. }
            | Self::SameFile { .. }
            | Self::Overlap { .. }
            | Self::NoParent { .. }
            | Self::EmptySource { .. } => FailureCode::Conflict,
            Self::Endpoint { fault, .. } => fault.class.code(),
            Self::Io { cause, operation, .. }
                if *operation != Operation::Read && is_full(cause) =>
            {
                FailureCode::DestinationFull
            }
            Self::Io { cause, .. } | Self::Attribute { cause, .. }
                if cause.kind() == io::ErrorKind::PermissionDenied =>
            {
                FailureCode::Permission
            }
            Self::Io { .. } | Self::Attribute { .. } => FailureCode::Io,
        }
    }

    /// What both ends are told where an entry is in its place all the same.
    pub fn to_complaint(&self) -> Complaint {
        Complaint::new(self.path().to_vec(), self.to_failure())
    }

    /// The failure as the peer is told.
    pub fn to_failure(&self) -> Failure {
        Failure::new(self.code(), self.to_string())
    }
}

fn is_full(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What we were doing, named so that the message reads as a sentence: "cannot sync /a/b".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    BackUp,
    Create,
    Link,
    List,
    Lock,
    Open,
    Read,
    ReadAttributes,
    Remove,
    Rename,
    SetGroup,
    SetMode,
    SetOwner,
    SetTimes,
    Stat,
    Sync,
    Write,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BackUp => "back up",
            Self::Create => "create",
            Self::Link => "link",
            Self::List => "list",
            Self::Lock => "lock",
            Self::Open => "open",
            Self::Read => "read",
            Self::ReadAttributes => "read the attributes of",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::SetGroup => "set the group of",
            Self::SetMode => "set the mode of",
            Self::SetOwner => "set the owner of",
            Self::SetTimes => "set the times of",
            Self::Stat => "stat",
            Self::Sync => "sync",
            Self::Write => "write",
        })
    }
}
