//! What a server's answers mean, and what it is told of files.

use bytes::Bytes;

use super::packet::{self, Answer as Said, Attributes};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::Mode;
use crate::storage::remote::{Answer, Class, Fault, Kept};

pub fn handle(said: Said) -> Answer<Bytes> {
    match said {
        Said::Handle(handle) => Ok(handle),
        other => Err(refused(other)),
    }
}

pub fn done(said: Said) -> Answer<()> {
    match said {
        Said::Status { code: packet::OK, .. } => Ok(()),
        other => Err(refused(other)),
    }
}

/// What an answer means that is not the one that was hoped for.
pub fn refused(said: Said) -> Fault {
    let Said::Status { code, text } = said else { return nonsense() };
    let said = Escaped(&text).to_string();
    match code {
        packet::NO_SUCH_FILE => Fault::new(Class::Missing, "there is nothing of this name"),
        packet::PERMISSION_DENIED => {
            Fault::new(Class::Denied, "the server allows it not to this user")
        }
        packet::UNSUPPORTED => Fault::new(Class::Unsupported, "the server cannot do this"),
        packet::OK | packet::EOF => nonsense(),
        _ if said.is_empty() => Fault::new(Class::Other, format!("the server failed, code {code}")),
        _ => Fault::new(Class::Other, format!("the server says: {said}")),
    }
}

/// Refuses a symlink that leads elsewhere than it was told to: some servers make targets absolute.
pub fn check_target(target: &[u8], said: Option<Said>) -> Answer<()> {
    match said {
        Some(Said::Names(names)) if names.len() == 1 && names[0].0 != target => {
            let made = Escaped(&names[0].0);
            let text = format!(
                "the server makes a link to {made} of it, as it keeps absolute targets only; with -L, what links lead to is copied"
            );
            Err(Fault::new(Class::Unsupported, text))
        }
        // Where links cannot be read, nobody can tell.
        _ => Ok(()),
    }
}

pub fn nonsense() -> Fault {
    Fault::new(Class::Violation, "the server answered what makes no sense")
}

pub fn full() -> Fault {
    Fault::new(Class::Full, "there is no room left on the server")
}

pub fn attributes(kept: &Kept) -> Attributes {
    let seconds = kept.mtime.and_then(|time| u32::try_from(time.seconds).ok());
    Attributes {
        permissions: kept.mode.map(Mode::bits),
        times: seconds.map(|seconds| (seconds, seconds)),
        ..Attributes::default()
    }
}
