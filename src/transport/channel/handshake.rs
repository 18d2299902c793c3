//! How the two ends of a connection prove themselves, and what the frames begin with.
//!
//! | dialler                        |   | listener                        |
//! | ------------------------------ | - | ------------------------------- |
//! | TLS handshake, both certificates pinned; or | | a random challenge |
//! | `ChannelHello` with its proof  | → |                                 |
//! |                                | ← | its own proof                   |
//! | `Frame::Probe`, sealed by us   | → |                                 |
//! |                                | ← | `Frame::Probe`                  |
//! | `Frame::Ready`                 | → |                                 |
//!
//! The proofs are bound to the connection by TLS' exporter, or by the challenge. rustls speaks up to
//! the listener's proof, and our record layer from there on. Nothing can get stuck between the two:
//! neither end sends more before it has the other's answer, and rustls is given one whole record at
//! a time, so that it never holds a part of the next.
//!
//! The probes are what finds a path on which small packets pass and large ones do not, before
//! anything depends on it (R10).

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::rand;
use rustls::{
    ClientConfig, ClientConnection, Connection, ExtractedSecrets, ServerConfig, ServerConnection,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::byte_stream::ByteStream;
use super::stream::{FrameReader, FrameWriter};
use crate::protocol::chunk::Digest;
use crate::protocol::frame::Frame;
use crate::protocol::handshake::{ChannelHello, ChannelKeys, ChannelSlot, Side, proofs_match};
use crate::transport::TransportError;
use crate::transport::record::{Opener, Sealer};
use crate::transport::tls::{self, ALPN, EXPORTER, tls_error};

/// What the two directions of a connection go on with.
pub(super) type Halves = (FrameWriter, FrameReader);

/// What protects the bytes of a stream, and what the proofs on it are bound to.
pub(super) enum Protection<T> {
    /// TLS, done here.
    Tls(T),
    /// Nothing, or something below that has nothing to bind to: the listener sends a challenge.
    Challenge,
    /// Something below, such as QUIC, which gives this to bind to.
    Bound([u8; 32]),
}

/// The dialler's part, up to the proofs.
pub(super) async fn dial(
    stream: &mut ByteStream,
    protection: Protection<Arc<ClientConfig>>,
    keys: &ChannelKeys,
    slot: ChannelSlot,
) -> Result<Halves, TransportError> {
    match protection {
        Protection::Tls(config) => dial_with_tls(stream, config, keys, slot).await,
        Protection::Challenge => {
            let binding = receive(stream).await?;
            dial_plainly(stream, &binding, keys, slot).await
        }
        Protection::Bound(binding) => dial_plainly(stream, &binding, keys, slot).await,
    }
}

/// The listener's part, up to the proofs. Returns which channel this is.
pub(super) async fn accept(
    stream: &mut ByteStream,
    protection: Protection<Arc<ServerConfig>>,
    register: &Register,
) -> Result<(ChannelSlot, Halves), TransportError> {
    match protection {
        Protection::Tls(config) => accept_with_tls(stream, config, register).await,
        Protection::Challenge => {
            let mut binding = [0; 32];
            let no_random = |_| TransportError::Proof("this system has no random numbers");
            rand::fill(&mut binding).map_err(no_random)?;
            send(stream, &binding).await?;
            accept_plainly(stream, &binding, register).await
        }
        Protection::Bound(binding) => accept_plainly(stream, &binding, register).await,
    }
}

/// The dialler's probe, its answer, and the word that the channel is up.
pub(super) async fn probe(
    stream: &mut ByteStream,
    (writer, reader): &mut Halves,
) -> Result<(), TransportError> {
    let probing = async {
        writer.write(stream, &Frame::Probe).await?;
        stream.flush().await.map_err(TransportError::io(PROBE))?;
        reader.probe(stream).await?;
        writer.write(stream, &Frame::Ready).await?;
        stream.flush().await.map_err(TransportError::io(PROBE))
    };
    timeout(PROBE_PATIENCE, probing).await.unwrap_or(Err(TransportError::NoBulk))
}

/// The listener's answer to the probe.
pub(super) async fn answer_probe(
    stream: &mut ByteStream,
    (writer, reader): &mut Halves,
) -> Result<(), TransportError> {
    let answering = async {
        reader.probe(stream).await?;
        writer.write(stream, &Frame::Probe).await?;
        stream.flush().await.map_err(TransportError::io(PROBE))?;
        reader.ready(stream).await
    };
    timeout(PROBE_PATIENCE, answering).await.unwrap_or(Err(TransportError::NoBulk))
}

/// Which channels there may be, and the newest connection of each (SEC-5).
#[derive(Debug)]
pub(super) struct Register {
    keys: ChannelKeys,
    newest: Mutex<Vec<Option<u32>>>,
}

impl Register {
    pub(super) fn new(keys: ChannelKeys, channels: u16) -> Self {
        Self { keys, newest: Mutex::new(vec![None; usize::from(channels)]) }
    }

    /// Checks a greeting, and returns the listener's proof. A greeting passes once.
    fn admit(
        &self,
        hello: &[u8; ChannelHello::SIZE],
        binding: &[u8; 32],
    ) -> Result<(ChannelSlot, Digest), TransportError> {
        let refused = TransportError::Proof;
        let hello = ChannelHello::decode(hello).ok_or(refused("it sent no greeting"))?;
        let slot = hello.slot;
        if !proofs_match(hello.proof, self.keys.proof(Side::Dialler, slot, binding)) {
            return Err(refused("its proof is wrong"));
        }
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = newest.get_mut(usize::from(slot.channel));
        let newest = newest.ok_or(refused("there is no such channel"))?;
        if newest.is_some_and(|newest| slot.generation <= newest) {
            return Err(refused("its generation was used already"));
        }
        *newest = Some(slot.generation);
        Ok((slot, self.keys.proof(Side::Listener, slot, binding)))
    }
}

async fn dial_with_tls(
    stream: &mut ByteStream,
    config: Arc<ClientConfig>,
    keys: &ChannelKeys,
    slot: ChannelSlot,
) -> Result<Halves, TransportError> {
    let connection = ClientConnection::new(config, tls::server_name()?);
    let mut tls = Tls::new(stream, connection.map_err(|error| tls_error(&error))?.into());
    let binding = tls.handshake().await?;
    let proof = keys.proof(Side::Dialler, slot, &binding);
    tls.send(&ChannelHello { slot, proof }.encode()).await?;
    check_listener(Digest(tls.receive().await?), keys, slot, &binding)?;
    halves(tls.into_secrets()?)
}

async fn accept_with_tls(
    stream: &mut ByteStream,
    config: Arc<ServerConfig>,
    register: &Register,
) -> Result<(ChannelSlot, Halves), TransportError> {
    let connection = ServerConnection::new(config).map_err(|error| tls_error(&error))?;
    let mut tls = Tls::new(stream, connection.into());
    let binding = tls.handshake().await?;
    let (slot, proof) = register.admit(&tls.receive().await?, &binding)?;
    tls.send(&proof.0).await?;
    Ok((slot, halves(tls.into_secrets()?)?))
}

async fn dial_plainly(
    stream: &mut ByteStream,
    binding: &[u8; 32],
    keys: &ChannelKeys,
    slot: ChannelSlot,
) -> Result<Halves, TransportError> {
    let proof = keys.proof(Side::Dialler, slot, binding);
    send(stream, &ChannelHello { slot, proof }.encode()).await?;
    check_listener(Digest(receive(stream).await?), keys, slot, binding)?;
    let key = |side| keys.frame_key(side, slot, binding);
    let reader = FrameReader::with_codes(key(Side::Listener));
    Ok((FrameWriter::with_codes(key(Side::Dialler)), reader))
}

async fn accept_plainly(
    stream: &mut ByteStream,
    binding: &[u8; 32],
    register: &Register,
) -> Result<(ChannelSlot, Halves), TransportError> {
    let (slot, proof) = register.admit(&receive(stream).await?, binding)?;
    send(stream, &proof.0).await?;
    let key = |side| register.keys.frame_key(side, slot, binding);
    let reader = FrameReader::with_codes(key(Side::Dialler));
    Ok((slot, (FrameWriter::with_codes(key(Side::Listener)), reader)))
}

fn check_listener(
    answer: Digest,
    keys: &ChannelKeys,
    slot: ChannelSlot,
    binding: &[u8; 32],
) -> Result<(), TransportError> {
    if proofs_match(answer, keys.proof(Side::Listener, slot, binding)) {
        Ok(())
    } else {
        Err(TransportError::Proof("the listener's proof is wrong"))
    }
}

fn halves(secrets: ExtractedSecrets) -> Result<Halves, TransportError> {
    let writer = FrameWriter::with_records(Sealer::new(secrets.tx)?);
    Ok((writer, FrameReader::with_records(Opener::new(secrets.rx)?)))
}

async fn send(stream: &mut ByteStream, bytes: &[u8]) -> Result<(), TransportError> {
    stream.write_all(bytes).await.map_err(TransportError::io("greet the peer"))?;
    stream.flush().await.map_err(TransportError::io("greet the peer"))
}

async fn receive<const LEN: usize>(stream: &mut ByteStream) -> Result<[u8; LEN], TransportError> {
    let mut bytes = [0; LEN];
    fill(stream, &mut bytes).await?;
    Ok(bytes)
}

async fn fill(stream: &mut ByteStream, bytes: &mut [u8]) -> Result<(), TransportError> {
    match stream.read_exact(bytes).await {
        Ok(_) => Ok(()),
        Err(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(TransportError::Closed)
        }
        Err(cause) => Err(TransportError::Io { operation: "read the peer's greeting", cause }),
    }
}

/// rustls on a socket, for as long as the handshake and the proofs take.
struct Tls<'a> {
    stream: &'a mut ByteStream,
    connection: Connection,
    /// How many more bytes the peer may send before it has proved who it is (R8).
    budget: usize,
}

impl<'a> Tls<'a> {
    fn new(stream: &'a mut ByteStream, connection: Connection) -> Self {
        Self { stream, connection, budget: BUDGET }
    }

    /// Shakes hands, and returns what a proof on this connection is bound to.
    async fn handshake(&mut self) -> Result<[u8; 32], TransportError> {
        self.flush().await?;
        while self.connection.is_handshaking() {
            self.read_record().await?;
            self.flush().await?;
        }
        // A peer that offers no protocol at all gets past rustls.
        if self.connection.alpn_protocol() != Some(ALPN) {
            return Err(TransportError::Tls("the peer speaks no fastsync".to_owned()));
        }
        self.connection
            .export_keying_material([0; 32], EXPORTER, None)
            .map_err(|error| tls_error(&error))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        let written = self.connection.writer().write_all(bytes);
        written.map_err(TransportError::io("greet the peer"))?;
        self.flush().await
    }

    /// Receives `LEN` bytes, and makes sure that not one more has come.
    async fn receive<const LEN: usize>(&mut self) -> Result<[u8; LEN], TransportError> {
        let mut waiting = self.process()?;
        while waiting < LEN {
            self.read_record().await?;
            waiting = self.process()?;
        }
        let mut bytes = [0; LEN];
        let read = self.connection.reader().read_exact(&mut bytes);
        read.map_err(TransportError::io("read the peer's greeting"))?;
        if waiting == LEN { Ok(bytes) } else { Err(TransportError::NotAuthentic) }
    }

    /// Takes the connection away from rustls, which fails if there is anything left to send.
    fn into_secrets(mut self) -> Result<ExtractedSecrets, TransportError> {
        if self.process()? != 0 || self.connection.wants_write() {
            return Err(TransportError::NotAuthentic);
        }
        self.connection.dangerous_extract_secrets().map_err(|error| tls_error(&error))
    }

    /// Reads one whole record, and not a byte of the next.
    async fn read_record(&mut self) -> Result<(), TransportError> {
        let mut record = [0; HEADER_LEN + BUDGET];
        let (header, body) = record.split_at_mut(HEADER_LEN);
        fill(self.stream, header).await?;
        let len = match *header {
            [20..=23, 3, _, high, low] => usize::from(u16::from_be_bytes([high, low])),
            _ => return Err(TransportError::Tls("the peer speaks no TLS".to_owned())),
        };
        let too_much = || TransportError::Tls("the peer's handshake is too long".to_owned());
        self.budget = self.budget.checked_sub(HEADER_LEN + len).ok_or_else(too_much)?;
        fill(self.stream, body.get_mut(..len).ok_or_else(too_much)?).await?;
        let mut rest = record.get(..HEADER_LEN + len).unwrap_or_default();
        while !rest.is_empty() {
            let read = self.connection.read_tls(&mut rest);
            let is_stuck = read.map_err(TransportError::io("read a TLS record"))? == 0;
            if let Err(error) = self.process() {
                // Tells the peer why; if it cannot be told, it will see the end of the connection.
                let _ = self.flush().await;
                return Err(error);
            }
            if is_stuck {
                return Err(TransportError::Closed);
            }
        }
        Ok(())
    }

    /// Returns how many bytes of plaintext are waiting.
    fn process(&mut self) -> Result<usize, TransportError> {
        let state = self.connection.process_new_packets().map_err(|error| tls_error(&error))?;
        Ok(state.plaintext_bytes_to_read())
    }

    async fn flush(&mut self) -> Result<(), TransportError> {
        let mut output = Vec::new();
        while self.connection.wants_write() {
            let written = self.connection.write_tls(&mut output);
            written.map_err(TransportError::io("write a TLS record"))?;
        }
        send(self.stream, &output).await
    }
}

/// Of a record: type 1, version 2, length 2.
const HEADER_LEN: usize = 5;

/// How long the probes may take, which begin with what a new connection may send at once: on a path
/// of 600 ms that takes 3 seconds.
const PROBE_PATIENCE: Duration = Duration::from_secs(4);

const PROBE: &str = "probe the path";

/// How much one end of a handshake sends at most: ours need about 2 KiB.
const BUDGET: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::Secret;

    /// SEC-3 to SEC-5: a greeting must be right in every part, and passes once.
    #[test]
    fn a_register_admits_each_generation_once_and_in_order() {
        let keys = ChannelKeys::new(Secret([1; 32]), Digest([2; 32]));
        let others = ChannelKeys::new(Secret([3; 32]), Digest([2; 32]));
        let register = Register::new(keys.clone(), 2);
        let admit = |keys: &ChannelKeys, side, channel, generation, bound: u8| {
            let slot = ChannelSlot { channel, generation };
            let proof = keys.proof(side, slot, &[bound; 32]);
            register.admit(&ChannelHello { slot, proof }.encode(), &[7; 32]).is_ok()
        };
        assert!(!admit(&others, Side::Dialler, 1, 0, 7), "another session");
        assert!(!admit(&keys, Side::Listener, 1, 0, 7), "the wrong side");
        assert!(!admit(&keys, Side::Dialler, 1, 0, 8), "another connection");
        assert!(!admit(&keys, Side::Dialler, 2, 0, 7), "no such channel");
        assert!(admit(&keys, Side::Dialler, 1, 0, 7));
        assert!(!admit(&keys, Side::Dialler, 1, 0, 7), "again");
        assert!(admit(&keys, Side::Dialler, 1, 5, 7));
        assert!(!admit(&keys, Side::Dialler, 1, 4, 7), "older");
        assert!(admit(&keys, Side::Dialler, 0, 4, 7), "each channel for itself");
        assert!(register.admit(&[0; ChannelHello::SIZE], &[7; 32]).is_err());
    }
}
