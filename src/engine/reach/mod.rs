//! How data channels come about: which way bulk data takes, and who dials.
//!
//! The client decides. It tries its ways one after the other, each as soon as those before it have
//! failed or have had their time, and the first on which a channel has proved itself carries the whole
//! session:
//!
//! | Way | Who dials | Begins |
//! | --- | --- | --- |
//! | TCP | the client | at once |
//! | QUIC | the client | 1 s later, or when TCP was refused |
//! | TCP, reversed | the agent | 1 s later, or when QUIC has failed too |
//! | inside ssh | the client | 3 s later, or when all others have failed |
//!
//! [`client`] looks for the way and keeps its channels up, [`agent`] is ready for all of them, [`lanes`]
//! are further logins that carry channels beside the control channel.
//!
//! Rules: `protocol-spec/11-paths.md`.

pub mod agent;
pub mod client;
pub mod lanes;

use std::fmt;
use std::time::Duration;

use crate::protocol::message::Carrier;

/// A way for data channels.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Way {
    /// The client dials.
    Dialled(Carrier),
    /// The agent dials.
    Reversed(Carrier),
    /// Inside ssh.
    Tunnel,
}

impl Way {
    /// Such as `tcp+tls`, as reports have it.
    pub fn transport(self, encrypt: bool) -> &'static str {
        match self {
            Self::Dialled(Carrier::Tcp) | Self::Reversed(Carrier::Tcp) if encrypt => "tcp+tls",
            Self::Dialled(Carrier::Tcp) | Self::Reversed(Carrier::Tcp) => "tcp",
            Self::Dialled(Carrier::Quic) | Self::Reversed(Carrier::Quic) => "quic",
            Self::Tunnel => "ssh",
        }
    }

    /// Whether nobody on the network can read what is sent.
    pub fn is_encrypted(self, encrypt: bool) -> bool {
        encrypt || self.transport(encrypt) != "tcp"
    }

    /// Which end dials, as reports have it.
    pub fn dialler(self) -> &'static str {
        match self {
            Self::Dialled(_) | Self::Tunnel => "client",
            Self::Reversed(_) => "agent",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dialled(Carrier::Tcp) => "TCP",
            Self::Dialled(Carrier::Quic) => "QUIC",
            Self::Reversed(Carrier::Tcp) => "TCP from the other host to this one",
            Self::Reversed(Carrier::Quic) => "QUIC from the other host to this one",
            Self::Tunnel => "the ssh connection itself",
        })
    }
}

/// How long to wait before a channel that failed is dialled anew; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// How many addresses of the other end are tried.
const MAX_ADDRESSES: usize = 16;
