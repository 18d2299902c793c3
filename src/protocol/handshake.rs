//! How two ends find each other: the magic, the versions, the transcript, and how a data channel
//! proves whose it is. Pure: random bytes and exporters are handed in.
//!
//! Rules: `protocol-spec/02-session.md` and `protocol-spec/06-security.md`.

use thiserror::Error;

use super::chunk::Digest;
use super::message::{Hello, Secret};

/// What the agent's output begins with, after whatever the remote shell printed (SES-1).
pub const MAGIC: [u8; 9] = *b"\0\xf5FSYNC\x01\n";

/// How many bytes of noise may come before the magic, in bytes: 64 KiB.
pub const MAX_NOISE: usize = 64 << 10;

/// The protocol versions that this build speaks, oldest and newest.
pub const VERSIONS: (u16, u16) = (1, 1);

/// Looks for the magic in a remote shell's output.
///
/// Bytes go in as they come; once the magic has been seen, what came after it comes out.
#[derive(Debug, Default)]
pub struct MagicScanner {
    seen: Vec<u8>,
}

impl MagicScanner {
    /// Takes the next bytes. `Some` holds what followed the magic in them.
    ///
    /// # Errors
    ///
    /// If more than [`MAX_NOISE`] bytes came without it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, NoMagic> {
        let from = self.seen.len().saturating_sub(MAGIC.len() - 1);
        self.seen.extend_from_slice(bytes);
        let found = self.seen[from..].windows(MAGIC.len()).position(|window| window == MAGIC);
        match found.map(|at| from + at) {
            Some(at) if at <= MAX_NOISE => {
                let rest = self.seen.split_off(at + MAGIC.len());
                self.seen.truncate(at);
                Ok(Some(rest))
            }
            _ if self.seen.len() > MAX_NOISE + MAGIC.len() => Err(NoMagic),
            _ => Ok(None),
        }
    }

    /// What came before the magic, or instead of it.
    pub fn noise(&self) -> &[u8] {
        &self.seen
    }
}

/// The other host prints too much, and no agent answers.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{MAX_NOISE} bytes of output came from the remote shell, and no agent's greeting in them")]
pub struct NoMagic;

/// The newest version that both ends speak (SES-5).
pub fn common_version(mine: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let newest = mine.1.min(theirs.1);
    (theirs.0 <= theirs.1 && newest >= mine.0.max(theirs.0)).then_some(newest)
}

/// A digest of everything that both ends said before there were data channels (SEC-2).
///
/// Mixed into every channel's proof, so that a channel cannot belong to a session in which the ends
/// saw different greetings. Takes the encoded messages, lengths included.
pub fn transcript(agent_hello: &[u8], client_hello: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("fastsync 1 transcript");
    for part in [agent_hello, client_hello] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Digest(hasher.finalize().into())
}

/// Which end of a data channel proves itself. The two never compute the same proof (SEC-4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    Dialler,
    Listener,
}

/// What both ends of a data channel know and nobody else does.
#[derive(Clone, Debug)]
pub struct ChannelKeys {
    secret: Secret,
    transcript: Digest,
}

impl ChannelKeys {
    pub fn new(secret: Secret, transcript: Digest) -> Self {
        Self { secret, transcript }
    }

    /// The proof that one side gives for one connection (SEC-3).
    ///
    /// `binding` is the TLS exporter's value, or the listener's challenge where there is no TLS: a
    /// proof is good for one connection only.
    pub fn proof(&self, side: Side, slot: ChannelSlot, binding: &[u8; 32]) -> Digest {
        let label = match side {
            Side::Dialler => "fastsync 1 channel proof of the dialler",
            Side::Listener => "fastsync 1 channel proof of the listener",
        };
        self.derive(label, slot, binding)
    }

    /// The key that authenticates the frames of one direction of a channel without TLS (SEC-6).
    pub fn frame_key(&self, from: Side, slot: ChannelSlot, binding: &[u8; 32]) -> FrameKey {
        let label = match from {
            Side::Dialler => "fastsync 1 frame key of the dialler",
            Side::Listener => "fastsync 1 frame key of the listener",
        };
        FrameKey(self.derive(label, slot, binding).0)
    }

    fn derive(&self, label: &str, slot: ChannelSlot, binding: &[u8; 32]) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret.0);
        hasher.update(&(label.len() as u64).to_le_bytes());
        hasher.update(label.as_bytes());
        hasher.update(&self.transcript.0);
        hasher.update(&slot.encode());
        hasher.update(binding);
        Digest(hasher.finalize().into())
    }
}

/// Authenticates frame headers: a header holds its payload's digest, so this costs nothing for
/// each byte.
#[derive(Clone)]
pub struct FrameKey([u8; 32]);

impl FrameKey {
    /// The code that follows a header on a channel without TLS.
    pub fn code(&self, header: &[u8]) -> [u8; 32] {
        blake3::keyed_hash(&self.0, header).into()
    }

    /// Compares in constant time.
    pub fn is_valid(&self, header: &[u8], code: &[u8; 32]) -> bool {
        blake3::keyed_hash(&self.0, header) == blake3::Hash::from_bytes(*code)
    }
}

impl std::fmt::Debug for FrameKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrameKey")
    }
}

/// A place for a data channel, and how often it has been filled: a proof for a generation that was
/// used already is refused (SEC-5).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ChannelSlot {
    pub channel: u16,
    pub generation: u32,
}

impl ChannelSlot {
    fn encode(self) -> [u8; 6] {
        let [c0, c1] = self.channel.to_le_bytes();
        let [g0, g1, g2, g3] = self.generation.to_le_bytes();
        [c0, c1, g0, g1, g2, g3]
    }
}

/// The first thing on a data channel, from the end that dialled: which channel this is, and proof.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChannelHello {
    pub slot: ChannelSlot,
    pub proof: Digest,
}

impl ChannelHello {
    /// Encoded size in bytes: magic 4, version 2, channel 2, generation 4, proof 32.
    pub const SIZE: usize = 44;

    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[..4].copy_from_slice(b"FSCH");
        out[4..6].copy_from_slice(&1_u16.to_le_bytes());
        out[6..12].copy_from_slice(&self.slot.encode());
        out[12..].copy_from_slice(&self.proof.0);
        out
    }

    /// `None` where this is not a channel's greeting.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let (front, proof) = bytes.split_first_chunk::<12>()?;
        let [b'F', b'S', b'C', b'H', 1, 0, c0, c1, g0, g1, g2, g3] = *front else { return None };
        let slot = ChannelSlot {
            channel: u16::from_le_bytes([c0, c1]),
            generation: u32::from_le_bytes([g0, g1, g2, g3]),
        };
        Some(Self { slot, proof: Digest(proof.try_into().ok()?) })
    }
}

/// Compares two proofs in constant time.
pub fn proofs_match(one: Digest, other: Digest) -> bool {
    blake3::Hash::from_bytes(one.0) == blake3::Hash::from_bytes(other.0)
}

/// This end's greeting, made from random bytes and its certificate.
pub fn hello(nonce: [u8; 32], certificate: Vec<u8>) -> Hello {
    Hello {
        versions: VERSIONS,
        features: 0,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        nonce,
        certificate,
        max_open_entries: super::message::MAX_OPEN_ENTRIES,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// SES-1: noise of any length up to the limit, however the bytes are split.
    #[test]
    fn the_magic_is_found_behind_noise() {
        let mut stream = vec![b'x'; MAX_NOISE];
        stream.extend(MAGIC);
        stream.extend(b"rest");
        for step in [1, 7, 4096, 1 << 20] {
            let mut scanner = MagicScanner::default();
            let mut found = None;
            for piece in stream.chunks(step) {
                match &mut found {
                    None => found = scanner.push(piece).unwrap(),
                    Some(rest) => rest.extend_from_slice(piece),
                }
            }
            assert_eq!(found.as_deref(), Some(&b"rest"[..]), "step {step}");
            assert_eq!(scanner.noise().len(), MAX_NOISE);
        }
    }

    /// SES-1.
    #[test]
    fn too_much_noise_is_an_error_and_does_not_fill_the_memory() {
        let mut scanner = MagicScanner::default();
        let refused = (0..100).find_map(|_| scanner.push(&[b'x'; 4096]).err());
        assert_eq!(refused, Some(NoMagic));
        assert!(scanner.noise().len() < 2 * MAX_NOISE);
    }

    /// SES-5.
    #[test]
    fn versions_meet_at_the_newest_common_one() {
        assert_eq!(common_version((1, 3), (2, 5)), Some(3));
        assert_eq!(common_version((2, 5), (1, 3)), Some(3));
        assert_eq!(common_version((1, 1), (2, 3)), None);
        assert_eq!(common_version((4, 5), (2, 3)), None);
        assert_eq!(common_version((1, 5), (3, 2)), None, "a range that is upside down");
    }

    /// SEC-3, SEC-4: a proof holds for one side, channel, generation, connection and session.
    #[test]
    fn a_proof_is_good_for_one_thing_only() {
        let keys =
            |secret, transcript| ChannelKeys::new(Secret([secret; 32]), Digest([transcript; 32]));
        let slot = |channel, generation| ChannelSlot { channel, generation };
        let proofs = [
            keys(1, 1).proof(Side::Dialler, slot(1, 1), &[1; 32]),
            keys(1, 1).proof(Side::Listener, slot(1, 1), &[1; 32]),
            keys(1, 1).proof(Side::Dialler, slot(2, 1), &[1; 32]),
            keys(1, 1).proof(Side::Dialler, slot(1, 2), &[1; 32]),
            keys(1, 1).proof(Side::Dialler, slot(1, 1), &[2; 32]),
            keys(2, 1).proof(Side::Dialler, slot(1, 1), &[1; 32]),
            keys(1, 2).proof(Side::Dialler, slot(1, 1), &[1; 32]),
        ];
        for (n, one) in proofs.iter().enumerate() {
            for (m, other) in proofs.iter().enumerate() {
                assert_eq!(proofs_match(*one, *other), n == m, "{n} and {m}");
            }
        }
    }

    /// SEC-6.
    #[test]
    fn a_frame_code_covers_every_bit_of_the_header() {
        let key = FrameKey([7; 32]);
        let header = [3; 64];
        let code = key.code(&header);
        assert!(key.is_valid(&header, &code));
        for bit in 0..512 {
            let mut other = header;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.is_valid(&other, &code));
        }
    }

    proptest! {
        /// SEC-3.
        #[test]
        fn channel_hello_round_trips(channel: u16, generation: u32, proof: [u8; 32]) {
            let slot = ChannelSlot { channel, generation };
            let hello = ChannelHello { slot, proof: Digest(proof) };
            prop_assert_eq!(ChannelHello::decode(&hello.encode()), Some(hello));
        }

        #[test]
        fn any_greeting_is_decided(bytes: [u8; ChannelHello::SIZE]) {
            if let Some(hello) = ChannelHello::decode(&bytes) {
                prop_assert_eq!(hello.encode(), bytes);
            }
        }
    }
}
