//! How bytes travel: data channels, and nothing of files.
//!
//! A channel carries frames in one direction after its handshake; on either side it is one of the
//! two traits below. [`channel`] makes one of any byte stream, and dials and listens; [`quic`] and
//! [`tunnel`] are byte streams beside TCP, and [`join`] brings those of further logins; [`tls`] gives
//! a TCP connection its keys, [`record`] seals and opens frames on them, [`memory`] is a channel
//! inside this process.

pub mod channel;
pub mod join;
pub mod measure;
pub mod memory;
pub mod quic;
pub mod record;
pub mod tls;
pub mod tunnel;

use std::io;

use thiserror::Error;

use crate::protocol::buffer::{BufferError, Pool};
use crate::protocol::frame::{Frame, FrameError};

/// The sending half of a data channel.
pub trait FrameSender: Send + 'static {
    /// Sends one frame, and returns when it is handed to the system.
    ///
    /// Must not be dropped midway: part of a frame would have been sent, so that every later call
    /// fails with [`TransportError::Closed`].
    fn send(&mut self, frame: &Frame) -> impl Future<Output = Result<(), TransportError>> + Send;

    /// Waits until the peer has closed the channel or it broke: an idle sender learns of a loss by
    /// this. May be dropped and called again.
    fn closed(&mut self) -> impl Future<Output = TransportError> + Send;

    /// Sends [`Frame::End`] and closes this direction.
    fn finish(&mut self) -> impl Future<Output = Result<(), TransportError>> + Send;

    /// Whether the channel's keys have done half of what they may, so that it should be replaced by
    /// one of the next generation. The other half is room for what is under way.
    fn is_worn(&self) -> bool {
        false
    }
}

/// The receiving half of a data channel.
pub trait FrameReceiver: Send + 'static {
    /// Receives one frame into a buffer of the pool, which is taken before the payload is read.
    ///
    /// Must not be dropped midway: part of a frame would be lost, so that every later call fails.
    ///
    /// # Errors
    ///
    /// [`TransportError::Closed`] if the channel ends without [`Frame::End`].
    fn receive(
        &mut self,
        pool: &Pool,
    ) -> impl Future<Output = Result<Frame, TransportError>> + Send;
}

/// A data channel failed. Only the units that were under way on it are lost.
#[derive(Debug, Error)]
pub enum TransportError {
    #[error("the peer closed the channel")]
    Closed,
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("a record or frame is not authentic")]
    NotAuthentic,
    #[error("the channel has carried all that its keys may protect")]
    Worn,
    #[error("the peer is not who it should be: {0}")]
    Proof(&'static str),
    #[error("TLS handshake failed: {0}")]
    Tls(String),
    #[error("no answer from {0} in time")]
    TimedOut(String),
    #[error("small packets pass, but 64 KiB did not go there and back in time")]
    NoBulk,
    #[error("no port to listen on {}: {cause}", shown(*low, *high))]
    NoPort { low: u16, high: u16, cause: io::Error },
    #[error("cannot {operation}: {cause}")]
    Io { operation: &'static str, cause: io::Error },
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

fn shown(low: u16, high: u16) -> String {
    match (low, high) {
        (0, 0) => "at all".to_owned(),
        (low, high) => format!("in the range {low}:{high}"),
    }
}

impl TransportError {
    /// For `map_err`: `stream.read(..).await.map_err(TransportError::io("read from the peer"))`.
    pub fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { operation, cause }
    }

    /// Whether the peer, who proved who it is, broke a rule: then the session must end, not only
    /// the channel.
    pub fn is_violation(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Buffer(BufferError::TooLong { .. }))
    }
}
