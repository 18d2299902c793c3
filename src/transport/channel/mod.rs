//! Data channels: [`dial()`] makes one, [`Listener`] accepts them, and either gives a [`Channel`],
//! whose two ends have shown each other who they are, on whatever byte stream.
//!
//! # Reading order
//!
//! 1. `byte_stream`: the byte streams that there are.
//! 2. `socket`: the options of a TCP socket, and how it is made.
//! 3. `handshake`: TLS, the proofs, the probe, and what the record layer begins with.
//! 4. `stream`: frames on a byte stream, sealed or with codes.
//! 5. `dial` and `listen`: how channels come about.
//!
//! Rules: `protocol-spec/06-security.md` and `protocol-spec/11-paths.md`.

mod byte_stream;
mod dial;
mod handshake;
mod listen;
pub(super) mod socket;
mod stream;

use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;

use self::stream::{FrameReader, FrameWriter};
use super::TransportError;
use super::tls::Identity;
use crate::protocol::buffer::Pool;
use crate::protocol::frame::Frame;
use crate::protocol::handshake::{ChannelKeys, ChannelSlot};
use crate::protocol::message::SocketOptions;

pub use self::byte_stream::{ByteStream, Pipe};
pub use self::dial::{dial, dial_on};
pub use self::listen::{Listener, Openings};
pub use self::socket::own_address;
pub use self::stream::{ChannelReceiver, ChannelSender};

/// What all channels of a session have in common.
#[derive(Clone, Debug)]
pub struct ChannelConfig {
    /// Who this end is.
    pub identity: Arc<Identity>,
    /// Who the other end is, in DER, as it said over ssh.
    pub peer_certificate: Vec<u8>,
    /// What the two proofs, and without TLS the frames' codes, are made with.
    pub keys: ChannelKeys,
    /// TLS; or else codes that authenticate, and plain data.
    pub encrypt: bool,
    pub sockets: SocketOptions,
    /// The longest payload that a frame may have, in bytes.
    pub max_payload: usize,
    /// How many channels the session may have: they are numbered from 0.
    pub channels: u16,
}

/// A connection whose ends have proved who they are. It becomes a sender or a receiver.
#[derive(Debug)]
pub struct Channel {
    /// Which channel it is, and its how many-th connection.
    pub slot: ChannelSlot,
    /// The other end's address, or what else it came by.
    pub peer: String,
    stream: ByteStream,
    writer: FrameWriter,
    reader: FrameReader,
    max_payload: usize,
}

impl Channel {
    /// Which sort of byte stream it runs on.
    pub fn carrier(&self) -> &ByteStream {
        &self.stream
    }

    /// Sends one frame on a channel that goes both ways in turns: to measure (MEASURE-6).
    ///
    /// # Errors
    ///
    /// If the connection broke. What it has not sent is lost then, or if this is dropped midway.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), TransportError> {
        self.writer.write(&mut self.stream, frame).await?;
        self.stream.flush().await.map_err(TransportError::io("send to the peer"))
    }

    /// Receives one, likewise.
    ///
    /// # Errors
    ///
    /// If the connection broke, or the peer broke a rule.
    pub async fn receive(&mut self, pool: &Pool) -> Result<Frame, TransportError> {
        self.reader.frame(&mut self.stream, pool, self.max_payload).await
    }

    /// Uses the channel to send.
    pub fn into_sender(self) -> ChannelSender {
        ChannelSender::new(self.stream, self.writer)
    }

    /// Uses the channel to receive.
    pub fn into_receiver(self) -> ChannelReceiver {
        ChannelReceiver::new(self.stream, self.reader, self.max_payload)
    }
}

#[cfg(test)]
mod tests;
