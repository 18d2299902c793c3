//! Exit codes and hints: the one place where an error becomes a number.
//!
//! The codes below 40 mean what they mean for rsync; 40 and up are our own.

use crate::engine::EngineError;
use crate::engine::event::Report;
use crate::protocol::message::FailureCode;

pub const DONE: u8 = 0;
pub const USAGE: u8 = 1;
pub const PROTOCOL: u8 = 2;
pub const STARTUP: u8 = 5;
pub const FILE: u8 = 11;
pub const SIGNAL: u8 = 20;
pub const PARTIAL: u8 = 23;
pub const CHANGED: u8 = 24;
pub const MAX_DELETE: u8 = 25;
pub const DISCONNECTED: u8 = 30;
pub const VERIFICATION: u8 = 40;
pub const DESTINATION_FULL: u8 = 41;
pub const AGENT_NOT_STARTABLE: u8 = 42;
pub const NO_DATA_PATH: u8 = 43;
pub const AUTHENTICATION: u8 = 44;

/// How the program ends if the transfer as a whole did not succeed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exit {
    pub code: u8,
    /// What the user may do about it.
    pub hint: Option<&'static str>,
}

impl Exit {
    pub fn of_error(error: &EngineError) -> Self {
        match error {
            EngineError::Usage(_) => Self::without_hint(USAGE),
            EngineError::Source(error) => Self::of_failure(error.code()),
            EngineError::Authentication { .. } => Self::with_hint(
                AUTHENTICATION,
                "check that ssh logs in there with the same user, port and options",
            ),
            // The error itself says what to do.
            EngineError::Credentials { .. } => Self::without_hint(AUTHENTICATION),
            EngineError::Mistrusted(_) => Self::with_hint(AUTHENTICATION, GO_ON),
            EngineError::AgentNotStartable { .. } => Self::with_hint(
                AGENT_NOT_STARTABLE,
                "fastsync must be on the other host, in its search path or where --agent-path says",
            ),
            EngineError::Unreachable { .. } => {
                Self::with_hint(DISCONNECTED, "check the name, the port and the way there")
            }
            EngineError::Disconnected { .. } => Self::with_hint(DISCONNECTED, GO_ON),
            EngineError::Session(failure) => Self::of_failure(failure.code),
            EngineError::Interrupted => Self::with_hint(SIGNAL, GO_ON),
        }
    }

    /// A failure that ended the session, at whichever end.
    fn of_failure(code: FailureCode) -> Self {
        match code {
            FailureCode::Permission
            | FailureCode::Io
            | FailureCode::Conflict
            | FailureCode::Unsupported => Self::without_hint(FILE),
            FailureCode::Vanished | FailureCode::Changed => Self::without_hint(CHANGED),
            FailureCode::Verification | FailureCode::Mismatch => Self::with_hint(
                VERIFICATION,
                "do not trust the destination before the same command has run without an error",
            ),
            FailureCode::DestinationFull => Self::with_hint(
                DESTINATION_FULL,
                "make room and run the same command again: it goes on from here",
            ),
            FailureCode::Violation => Self::without_hint(PROTOCOL),
            FailureCode::Version => {
                Self::with_hint(PROTOCOL, "install the same version of fastsync on both hosts")
            }
            FailureCode::Startup => Self::without_hint(STARTUP),
            FailureCode::Interrupted => Self::with_hint(SIGNAL, GO_ON),
            FailureCode::Disconnected => Self::with_hint(DISCONNECTED, GO_ON),
            // The error itself says what was tried, and what to open for it.
            FailureCode::NoDataPath => Self::without_hint(NO_DATA_PATH),
        }
    }

    fn with_hint(code: u8, hint: &'static str) -> Self {
        Self { code, hint: Some(hint) }
    }

    fn without_hint(code: u8) -> Self {
        Self { code, hint: None }
    }
}

/// The code of a transfer that came to its end. `errors` is how many error lines were shown:
/// after one of them it is never 0.
pub fn of_report(report: &Report, errors: u64) -> u8 {
    let changed = report.failed > 0 && report.failed_changed == report.failed;
    if report.failed_verification > 0 {
        VERIFICATION
    } else if changed && report.complaints == 0 {
        CHANGED
    } else if report.failed > 0 || report.complaints > 0 || errors > 0 {
        PARTIAL
    } else if report.over_limit > 0 {
        MAX_DELETE
    } else {
        DONE
    }
}

const GO_ON: &str = "the same command goes on from here, unless it says --no-resume";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::Failure;
    use crate::storage::{Operation, StorageError};

    #[test]
    fn each_failure_has_its_documented_code() {
        let code = |code| Exit::of_error(&EngineError::Session(Failure::new(code, "x"))).code;
        for (failure, wanted) in [
            (FailureCode::Permission, 11),
            (FailureCode::Io, 11),
            (FailureCode::Conflict, 11),
            (FailureCode::DestinationFull, 41),
            (FailureCode::Violation, 2),
            (FailureCode::Version, 2),
            (FailureCode::Startup, 5),
            (FailureCode::Interrupted, 20),
            (FailureCode::Disconnected, 30),
            (FailureCode::NoDataPath, 43),
            (FailureCode::Mismatch, 40),
            (FailureCode::Verification, 40),
        ] {
            assert_eq!(code(failure), wanted, "{failure:?}");
        }
    }

    #[test]
    fn each_error_has_its_documented_code() {
        let (host, cause) = (String::new, String::new);
        let code = |error| Exit::of_error(&error).code;
        assert_eq!(code(EngineError::Usage("x".into())), 1);
        assert_eq!(code(EngineError::Authentication { host: host(), cause: cause() }), 44);
        let expired = Failure::new(FailureCode::Permission, "x");
        assert_eq!(code(EngineError::Mistrusted(expired)), 44);
        assert_eq!(code(EngineError::AgentNotStartable { host: host(), cause: cause() }), 42);
        assert_eq!(code(EngineError::Unreachable { place: host(), cause: cause() }), 30);
        assert_eq!(code(EngineError::Disconnected { host: host(), cause: cause() }), 30);
        assert_eq!(code(EngineError::Interrupted), 20);
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        let missing = StorageError::io(Operation::Open, b"/x")(missing);
        assert_eq!(code(EngineError::Source(missing)), 11);
    }

    #[test]
    fn a_report_is_0_only_without_any_error() {
        let code = |failed, failed_changed, failed_verification, complaints, errors| {
            let report = Report {
                failed,
                failed_changed,
                failed_verification,
                complaints,
                ..Report::default()
            };
            of_report(&report, errors)
        };
        assert_eq!(code(0, 0, 0, 0, 0), 0);
        assert_eq!(code(0, 0, 0, 0, 1), 23);
        assert_eq!(code(0, 0, 0, 1, 1), 23);
        assert_eq!(code(2, 1, 0, 0, 2), 23);
        assert_eq!(code(2, 2, 0, 0, 2), 24);
        assert_eq!(code(2, 2, 0, 1, 3), 23);
        assert_eq!(code(2, 1, 1, 0, 2), 40);
        let limited = Report { over_limit: 1, ..Report::default() };
        assert_eq!(of_report(&limited, 0), 25);
        assert_eq!(of_report(&Report { failed: 1, ..limited }, 1), 23);
    }
}
