//! Data channels over TCP: [`dial()`] makes one, [`Listener`] accepts them, and either gives a
//! [`Channel`], whose two ends have shown each other who they are.
//!
//! # Reading order
//!
//! 1. `socket`: the options of a socket, and how it is made.
//! 2. `handshake`: TLS, the proofs, and what the record layer begins with.
//! 3. `stream`: frames on a connection, sealed or with codes.
//! 4. `dial` and `listen`: how connections come about.
//!
//! Rules: `protocol-spec/06-security.md`.

mod dial;
mod handshake;
mod listen;
mod socket;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use self::stream::{FrameReader, FrameWriter};
use super::tls::Identity;
use crate::protocol::handshake::{ChannelKeys, ChannelSlot};
use crate::protocol::message::SocketOptions;

pub use self::dial::dial;
pub use self::listen::Listener;
pub use self::stream::{TcpReceiver, TcpSender};

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
    /// The other end's address.
    pub peer: SocketAddr,
    stream: TcpStream,
    writer: FrameWriter,
    reader: FrameReader,
    max_payload: usize,
}

impl Channel {
    /// Uses the channel to send.
    pub fn into_sender(self) -> TcpSender {
        TcpSender::new(self.stream, self.writer)
    }

    /// Uses the channel to receive.
    pub fn into_receiver(self) -> TcpReceiver {
        TcpReceiver::new(self.stream, self.reader, self.max_payload)
    }
}

#[cfg(test)]
mod tests;
