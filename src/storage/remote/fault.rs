//! What can go wrong at an endpoint.

use thiserror::Error;

use super::KeyError;
use crate::protocol::message::FailureCode;

/// An operation was refused, or could not be carried out. The text is one line: what happened and,
/// where there is something to do about it, what; never with a secret.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{text}")]
pub struct Fault {
    pub class: Class,
    pub text: String,
}

/// What a fault means for what was asked and for the rest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// There is nothing with this key.
    Missing,
    /// Something else has this key.
    Exists,
    /// It may not be read or written by this user.
    Denied,
    /// Who we are was not believed, or is not any more: nothing else will work either.
    Credentials,
    /// No room, or a quota is used up: nothing else will fit either.
    Full,
    /// The endpoint has too much to do, and still had after all retries.
    Busy,
    /// The file is not what it was.
    Changed,
    /// The file is not what it is said to be.
    Corrupt,
    /// The endpoint cannot do this.
    Unsupported,
    /// There is no directory for it, and none is made there.
    NoDirectory,
    /// The endpoint cannot have this name.
    Name,
    /// The connection was lost, and could not be made again.
    Disconnected,
    /// There is no connection to the endpoint any more, and no other file fares better: whoever runs the
    /// job connects anew.
    Gone,
    /// The endpoint says what makes no sense.
    Violation,
    Other,
}

impl Class {
    /// The class of failure of an entry to which this happens.
    pub fn code(self) -> FailureCode {
        match self {
            Self::Missing => FailureCode::Vanished,
            Self::Exists => FailureCode::Conflict,
            Self::Denied | Self::Credentials => FailureCode::Permission,
            Self::Full => FailureCode::DestinationFull,
            Self::Changed => FailureCode::Changed,
            Self::Corrupt => FailureCode::Verification,
            Self::Unsupported | Self::NoDirectory | Self::Name => FailureCode::Unsupported,
            Self::Disconnected | Self::Gone => FailureCode::Disconnected,
            Self::Busy | Self::Violation | Self::Other => FailureCode::Io,
        }
    }
}

impl Fault {
    pub fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into() }
    }

    /// Whether going on with other files is pointless.
    pub fn is_fatal(&self) -> bool {
        use Class::{Credentials, Disconnected, Full, Gone, NoDirectory};
        matches!(self.class, Credentials | Full | NoDirectory | Disconnected | Gone)
    }
}

impl From<KeyError> for Fault {
    fn from(error: KeyError) -> Self {
        Self::new(Class::Name, error.to_string())
    }
}
