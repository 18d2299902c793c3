//! TLS 1.3 records, sealed and opened here once rustls has done the handshake (RFC 8446, section 5).
//!
//! In: the traffic secrets of one direction, and plaintext or a record. Out: a record or plaintext,
//! written straight to where it shall lie. No socket: `channel::stream` moves the bytes. rustls' own
//! record layer reads 16 KiB at a time and copies them three times, which costs twice the processor
//! time of this one; the bytes on the wire are the same, and the tests let rustls read ours.
//!
//! Only application data is understood. A channel has no other use for a record: it is closed
//! without an alert, and its keys are not updated but replaced, together with the channel.

use std::fmt;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce,
    UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

use super::TransportError;

/// The most plaintext that one record carries, in bytes.
pub const MAX_PLAINTEXT: usize = 16 << 10;

/// Type 1, version 2, length 2.
pub const HEADER_LEN: usize = 5;

/// What a record adds to its plaintext: header, inner type, tag.
pub const OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;

/// How much longer a record's body is than the inner plaintext, which ends with the inner type.
pub const TAG_LEN: usize = 16;

/// Turns plaintext into records.
pub struct Sealer {
    key: LessSafeKey,
    nonces: Nonces,
}

impl Sealer {
    /// Goes on after the `sequence` records that rustls sealed with these secrets.
    pub fn new(
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, TransportError> {
        let (key, nonces) = prepare(sequence, &secrets)?;
        Ok(Self { key, nonces })
    }

    /// Writes `plaintext` as one record to the front of `out`, and returns the record's length.
    ///
    /// `plaintext` is at most [`MAX_PLAINTEXT`] long, and `out` at least [`OVERHEAD`] longer.
    ///
    /// # Errors
    ///
    /// [`TransportError::Worn`] if the key has sealed all it may.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut [u8]) -> Result<usize, TransportError> {
        let header = header(plaintext.len());
        let (front, rest) = out.split_at_mut_checked(HEADER_LEN).ok_or_else(no_room)?;
        let (body, rest) = rest.split_at_mut_checked(plaintext.len()).ok_or_else(no_room)?;
        let end = rest.get_mut(..1 + TAG_LEN).ok_or_else(no_room)?;
        front.copy_from_slice(&header);
        let nonce = self.nonces.next().ok_or(TransportError::Worn)?;
        self.key
            .seal_out_of_place_scatter(
                nonce,
                Aad::from(header),
                plaintext,
                body,
                &[APPLICATION_DATA],
                end,
            )
            .map_err(|_| TransportError::NotAuthentic)?;
        Ok(plaintext.len() + OVERHEAD)
    }

    /// Whether half of what the key may seal has been sealed.
    pub fn is_worn(&self) -> bool {
        self.nonces.sequence >= MAX_RECORDS / 2
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("records", &self.nonces.sequence).finish_non_exhaustive()
    }
}

/// Turns records into plaintext.
///
/// After an error nothing more may be opened.
pub struct Opener {
    key: LessSafeKey,
    nonces: Nonces,
}

impl Opener {
    /// Goes on after the `sequence` records that rustls opened with these secrets.
    pub fn new(
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, TransportError> {
        let (key, nonces) = prepare(sequence, &secrets)?;
        Ok(Self { key, nonces })
    }

    /// How long the body is that follows this header.
    ///
    /// # Errors
    ///
    /// If it is the header of anything but application data that is not empty.
    pub fn body_len(header: [u8; HEADER_LEN]) -> Result<usize, TransportError> {
        let [kind, major, minor, high, low] = header;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let is_right = [kind, major, minor] == [APPLICATION_DATA, 3, 3] && BODY_LENS.contains(&len);
        is_right.then_some(len).ok_or(TransportError::NotAuthentic)
    }

    /// Opens a record where it lies, and returns how much plaintext is now at the front of `body`.
    pub fn open_in_place(
        &mut self,
        header: [u8; HEADER_LEN],
        body: &mut [u8],
    ) -> Result<usize, TransportError> {
        let nonce = self.nonces.next().ok_or(TransportError::NotAuthentic)?;
        let inner = self
            .key
            .open_in_place(nonce, Aad::from(header), body)
            .map_err(|_| TransportError::NotAuthentic)?;
        plaintext_len(inner)
    }

    /// Opens a record to the front of `out`, and returns how much plaintext is now there.
    ///
    /// `out` is exactly [`TAG_LEN`] shorter than `body`; what it holds after the plaintext, or after
    /// an error, is of no use.
    pub fn open_into(
        &mut self,
        header: [u8; HEADER_LEN],
        body: &[u8],
        out: &mut [u8],
    ) -> Result<usize, TransportError> {
        let split = body.split_at_checked(out.len());
        let (ciphertext, tag) = split.ok_or(TransportError::NotAuthentic)?;
        let nonce = self.nonces.next().ok_or(TransportError::NotAuthentic)?;
        self.key
            .open_separate_gather(nonce, Aad::from(header), ciphertext, tag, out)
            .map_err(|_| TransportError::NotAuthentic)?;
        plaintext_len(out)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("records", &self.nonces.sequence).finish_non_exhaustive()
    }
}

/// Counts records, and makes each one's nonce of its number (RFC 8446, section 5.3).
struct Nonces {
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Nonces {
    /// `None` when the key is used up.
    fn next(&mut self) -> Option<Nonce> {
        if self.sequence >= MAX_RECORDS {
            return None;
        }
        let mut nonce = self.iv;
        let low = nonce.iter_mut().skip(NONCE_LEN - size_of::<u64>());
        low.zip(self.sequence.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        self.sequence += 1;
        Some(Nonce::assume_unique_for_key(nonce))
    }
}

fn prepare(
    sequence: u64,
    secrets: &ConnectionTrafficSecrets,
) -> Result<(LessSafeKey, Nonces), TransportError> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
        Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
        Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
        Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
        _ => return Err(TransportError::Tls("a cipher that we did not offer".to_owned())),
    };
    let unusable = || TransportError::Tls("secrets of the wrong length".to_owned());
    let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unusable())?;
    let iv = iv.as_ref().try_into().map_err(|_| unusable())?;
    Ok((LessSafeKey::new(key), Nonces { iv, sequence }))
}

fn header(plaintext_len: usize) -> [u8; HEADER_LEN] {
    // Plaintext is at most 16 KiB; if it were not, `seal` would make a record that nobody accepts.
    let len = u16::try_from(plaintext_len + 1 + TAG_LEN).unwrap_or(u16::MAX);
    let [high, low] = len.to_be_bytes();
    [APPLICATION_DATA, 3, 3, high, low]
}

/// The inner type is the last byte. Padding, which we never send, would make it a zero.
fn plaintext_len(inner: &[u8]) -> Result<usize, TransportError> {
    match inner.split_last() {
        Some((&APPLICATION_DATA, plaintext)) => Ok(plaintext.len()),
        _ => Err(TransportError::NotAuthentic),
    }
}

fn no_room() -> TransportError {
    let cause = std::io::Error::from(std::io::ErrorKind::InvalidInput);
    TransportError::Io { operation: "seal a record into a buffer that is too short", cause }
}

/// The type of a record that carries data, inside as outside.
const APPLICATION_DATA: u8 = 0x17;

/// A body holds at least one byte of plaintext: empty records would be a way to keep us busy.
const BODY_LENS: std::ops::RangeInclusive<usize> = 2 + TAG_LEN..=MAX_PLAINTEXT + 1 + TAG_LEN;

/// How many records one key may protect: 128 GiB, below the 2^24.5 records of RFC 8446, 5.5.
const MAX_RECORDS: u64 = 1 << 23;

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::super::tls::tests::connected;
    use super::*;

    /// One direction of ours.
    fn pair(suite: usize) -> (Sealer, Opener) {
        let (client, server) = connected(suite);
        let sealer = Sealer::new(client.dangerous_extract_secrets().unwrap().tx).unwrap();
        (sealer, Opener::new(server.dangerous_extract_secrets().unwrap().rx).unwrap())
    }

    fn seal(sealer: &mut Sealer, plaintext: &[u8]) -> Vec<u8> {
        let mut record = vec![0; plaintext.len() + OVERHEAD];
        assert_eq!(sealer.seal(plaintext, &mut record).unwrap(), record.len());
        record
    }

    /// Opens with both functions, which must agree.
    fn open(opener: &mut Opener, record: &[u8]) -> Result<Vec<u8>, TransportError> {
        let (header, body) = record.split_first_chunk().unwrap();
        let len = Opener::body_len(*header)?;
        if len != body.len() {
            return Err(TransportError::NotAuthentic);
        }
        let (mut in_place, mut out) = (body.to_vec(), vec![0; len - TAG_LEN]);
        let there = opener.open_into(*header, body, &mut out);
        opener.nonces.sequence -= 1;
        let here = opener.open_in_place(*header, &mut in_place);
        assert_eq!(here.is_ok(), there.is_ok());
        in_place.truncate(here?);
        out.truncate(there?);
        assert_eq!(in_place, out);
        Ok(out)
    }

    fn data(len: usize) -> Vec<u8> {
        (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    #[test]
    fn every_cipher_round_trips() {
        for suite in 0..3 {
            let (mut sealer, mut opener) = pair(suite);
            for len in [1, 2, 63, 64, 1000, MAX_PLAINTEXT - 1, MAX_PLAINTEXT] {
                let record = seal(&mut sealer, &data(len));
                assert_eq!(open(&mut opener, &record).unwrap(), data(len), "{suite}: {len}");
            }
        }
    }

    /// The format is TLS': what we seal, rustls opens, and the other way round, both ways.
    #[test]
    fn rustls_and_we_understand_each_other() {
        for suite in 0..3 {
            for flip in [false, true] {
                let (client, server) = connected(suite);
                let (ours, mut theirs) = if flip { (server, client) } else { (client, server) };
                let secrets = ours.dangerous_extract_secrets().unwrap();
                let mut sealer = Sealer::new(secrets.tx).unwrap();
                let mut opener = Opener::new(secrets.rx).unwrap();
                for len in [1, 100, MAX_PLAINTEXT] {
                    let record = seal(&mut sealer, &data(len));
                    let mut wire = &record[..];
                    while !wire.is_empty() {
                        theirs.read_tls(&mut wire).unwrap();
                        theirs.process_new_packets().unwrap();
                    }
                    let mut out = vec![0; len];
                    theirs.reader().read_exact(&mut out).unwrap();
                    assert_eq!(out, data(len));

                    theirs.writer().write_all(&data(len)).unwrap();
                    let mut wire = Vec::new();
                    theirs.write_tls(&mut wire).unwrap();
                    assert_eq!(open(&mut opener, &wire).unwrap(), data(len));
                }
            }
        }
    }

    #[test]
    fn one_wrong_bit_anywhere_is_noticed() {
        for suite in 0..3 {
            let (mut sealer, mut opener) = pair(suite);
            let record = seal(&mut sealer, &data(40));
            for bit in 0..8 * record.len() {
                let mut wrong = record.clone();
                wrong[bit / 8] ^= 1 << (bit % 8);
                let refused = open(&mut opener, &wrong);
                assert!(matches!(refused, Err(TransportError::NotAuthentic)), "bit {bit}");
                opener.nonces.sequence = 0;
            }
            assert!(open(&mut opener, &record).is_ok());
        }
    }

    #[test]
    fn records_cannot_be_repeated_swapped_or_left_out() {
        let (mut sealer, mut opener) = pair(0);
        let [first, second] = [1, 2].map(|len| seal(&mut sealer, &data(len)));
        assert!(open(&mut opener, &second).is_err());
        opener.nonces.sequence = 0;
        assert!(open(&mut opener, &first).is_ok());
        assert!(open(&mut opener, &first).is_err());
    }

    /// Alerts and key updates are authentic, and still nothing that a channel carries.
    #[test]
    fn only_application_data_is_accepted() {
        let refused = |result| matches!(result, Err(TransportError::NotAuthentic));
        let (mut client, server) = connected(0);
        let mut opener = Opener::new(server.dangerous_extract_secrets().unwrap().rx).unwrap();
        let mut wire = Vec::new();
        client.refresh_traffic_keys().unwrap();
        client.write_tls(&mut wire).unwrap();
        assert!(refused(open(&mut opener, &wire)), "a key update");

        let (mut client, server) = connected(0);
        let mut opener = Opener::new(server.dangerous_extract_secrets().unwrap().rx).unwrap();
        wire.clear();
        client.send_close_notify();
        client.write_tls(&mut wire).unwrap();
        assert!(refused(open(&mut opener, &wire)), "an alert");

        let (mut sealer, mut opener) = pair(0);
        let empty = seal(&mut sealer, &[]);
        assert!(refused(open(&mut opener, &empty)), "nothing");
        for kind in [20, 21, 22, 24] {
            assert!(Opener::body_len([kind, 3, 3, 0, 40]).is_err());
        }
        let too_long = header(MAX_PLAINTEXT + 1);
        assert!(Opener::body_len(too_long).is_err());
    }

    #[test]
    fn a_key_wears_out() {
        let (mut sealer, mut opener) = pair(0);
        let mut out = [0; 1 + OVERHEAD];
        sealer.nonces.sequence = MAX_RECORDS / 2 - 1;
        assert!(!sealer.is_worn());
        sealer.seal(&[1], &mut out).unwrap();
        assert!(sealer.is_worn());
        sealer.nonces.sequence = MAX_RECORDS - 1;
        sealer.seal(&[1], &mut out).unwrap();
        assert!(matches!(sealer.seal(&[1], &mut out), Err(TransportError::Worn)));
        opener.nonces.sequence = MAX_RECORDS - 1;
        assert!(open(&mut opener, &out).is_ok());
        assert!(opener.nonces.next().is_none());
    }

    #[test]
    fn a_buffer_that_is_too_short_is_an_error() {
        let (mut sealer, _) = pair(0);
        for len in 0..10 + OVERHEAD {
            assert!(sealer.seal(&[0; 10], &mut vec![0; len]).is_err());
        }
    }
}
