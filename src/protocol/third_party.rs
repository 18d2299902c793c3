//! What is said in a session in which one agent sends to another: who the other one is, and what the
//! client is told of it.
//!
//! Rules: `protocol-spec/12-third-party.md`.

use super::chunk::Digest;
use super::message::{
    Complaint, Decode, Deleted, Encode, Metadata, Outcome, Special, Text, is_told_path,
};

/// The agent that receives, as the one that sends has to know it.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Peer {
    /// What the user calls the host that sends, and the one that receives: for messages.
    pub source_host: String,
    pub host: String,
    /// Where the other agent receives into.
    pub destination: Vec<u8>,
    /// Names and addresses under which the client knows its host, best first.
    pub addresses: Vec<String>,
    pub transport: Transport,
    /// The receiving agent dials.
    pub reverse: bool,
    /// Names or addresses of the receiving host for data, in place of all others.
    pub data_addresses: Vec<String>,
    /// Names or addresses of the sending host for the other one to dial, likewise.
    pub listen_addresses: Vec<String>,
}

/// What data channels may run over.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Transport {
    Auto,
    Tcp,
    Quic,
    /// The stream that the client carries.
    Tunnel,
}

impl Peer {
    /// Names the first value that no correct client sends (THIRD-1).
    pub fn check(&self) -> Result<(), &'static str> {
        let lists = [&self.addresses, &self.data_addresses, &self.listen_addresses];
        if lists.iter().any(|list| list.len() > MAX_ADDRESSES) {
            return Err("a host has more than 16 addresses");
        }
        let texts = lists.into_iter().flatten().chain([&self.source_host, &self.host]);
        if texts.into_iter().any(|text| !(1..=255).contains(&text.len())) {
            return Err("a host or an address has no name of at most 255 bytes");
        }
        Ok(())
    }
}

/// One thing that the client is told.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Told {
    /// A way for data has been found.
    Connected(Box<Connected>),
    /// An entry has ended.
    Ended(Box<Ended>),
    Deleted(Deleted),
    Complaint(Box<Complaint>),
    /// A data channel was lost and is being made again.
    ChannelLost {
        channel: u16,
        cause: Text,
    },
    /// Something did not match its digest, and is sent again.
    Mismatch(Text),
    /// Something that people may want to know.
    Note(Text),
    /// How far everything has come.
    Progress(Box<Counters>),
}

/// How the two agents are connected.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Connected {
    pub carried: Carried,
    pub encrypted: bool,
    /// The receiving agent has dialled.
    pub is_reversed: bool,
    pub streams: u16,
    /// The receiving end of the data channels.
    pub peer: Text,
    /// Why it is this way.
    pub reason: Text,
}

/// What data channels run over.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Carried {
    Tcp,
    Quic,
    /// The stream that the client carries.
    Tunnel,
}

/// How an entry ended.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Ended {
    /// Relative to the destination; `.` for its own directory, which is no entry.
    pub path: Vec<u8>,
    pub kind: EndedKind,
    pub size: u64,
    /// As it is at the source, without its attributes.
    pub metadata: Metadata,
    /// Where a symlink leads; of a hard link, the path of the entry that it is another name of.
    pub target: Option<Vec<u8>>,
    pub is_linked: bool,
    pub root: Option<Digest>,
    pub outcome: Outcome,
}

impl Ended {
    /// Names what no correct agent says (THIRD-4).
    pub fn check(&self) -> Result<(), &'static str> {
        let is_path = |path: &[u8]| !path.is_empty() && is_told_path(path);
        if !is_path(&self.path) || self.target.as_ref().is_some_and(|path| !is_told_path(path)) {
            return Err("a path that was told is none");
        }
        Ok(())
    }
}

/// What sort of thing an entry is.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub enum EndedKind {
    Directory,
    File,
    Symlink,
    Special(Special),
    HardLink,
    Other,
}

/// All counters since the beginning of the session.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct Counters {
    pub files_found: u64,
    pub bytes_found: u64,
    pub walk_done: bool,
    pub files_ended: u64,
    pub bytes_verified: u64,
    pub bytes_skipped: u64,
    pub bytes_resumed: u64,
    pub bytes_hashed: u64,
    pub bytes_sent: u64,
    /// Data channels that are up, and how many were at the same time at most.
    pub streams: u64,
    pub most_streams: u64,
}

/// How many streams of the tunnel such a session has: the other agent's control channel, and what the
/// client is told (THIRD-2).
pub const STREAMS: u16 = 2;

/// How many names and addresses a host may have.
pub const MAX_ADDRESSES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer {
            source_host: "a".into(),
            host: "b".into(),
            destination: b"/x".to_vec(),
            addresses: vec!["192.0.2.1".into(); 16],
            transport: Transport::Auto,
            reverse: false,
            data_addresses: Vec::new(),
            listen_addresses: vec!["c".repeat(255)],
        }
    }

    /// THIRD-1: both sides of every limit.
    #[test]
    fn hosts_have_names_and_few_addresses() {
        assert_eq!(peer().check(), Ok(()));
        assert!(Peer { addresses: vec!["192.0.2.1".into(); 17], ..peer() }.check().is_err());
        assert!(Peer { listen_addresses: vec!["c".repeat(256)], ..peer() }.check().is_err());
        assert!(Peer { data_addresses: vec![String::new()], ..peer() }.check().is_err());
        assert!(Peer { host: String::new(), ..peer() }.check().is_err());
        assert!(Peer { source_host: "a".repeat(256), ..peer() }.check().is_err());
    }
}
