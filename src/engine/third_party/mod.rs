//! A transfer between two other hosts. This program runs three times:
//!
//! - the client logs in to both, carries the bytes of the receiving agent's control channel to the
//!   sending agent and back, and shows what it is told ([`client`]);
//! - the agent at the source is that agent's client, as for a push ([`agent`]), and tells what
//!   happens ([`reports`]);
//! - the agent at the destination notices nothing.
//!
//! Rules: `protocol-spec/12-third-party.md`.

pub mod agent;
pub mod client;
mod reports;

use tokio::io::AsyncRead;

use super::control::{ControlError, Inbox};
use super::session::SessionError;
use crate::protocol::message::Message;

/// Hears the other end until it gives up or says what does not fit.
async fn listen<R: AsyncRead + Unpin>(inbox: &mut Inbox<R>) -> SessionError {
    loop {
        match inbox.next().await {
            Ok(Message::Ping) => {}
            Ok(Message::Abort(failure)) => return ControlError::Aborted(failure).into(),
            Ok(other) => {
                let text = format!("{} has no meaning now", other.label());
                return SessionError::violation(text);
            }
            Err(error) => return error.into(),
        }
    }
}
