//! What is remembered of a part that was sent, to be looked for when all are there.
//!
//! A server may say that it has written what it has not. A few bytes of each part are read again before
//! the file gets its name; they are the last that are not zero, which is what a file has where nothing
//! was written.

use bytes::Bytes;
use http::{Method, StatusCode};

use super::client::{Call, read_body};
use super::site::Site;
use crate::protocol::chunk::ByteRange;
use crate::storage::Receipt;
use crate::storage::remote::{Answer, Class, Fault, all};

/// Where a part ends, and some of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sample {
    /// Behind the last byte of the part.
    pub end: u64,
    /// Where `bytes` are.
    at: u64,
    /// None of a part of zeros.
    bytes: Vec<u8>,
}

impl Sample {
    pub fn of(range: ByteRange, pieces: &[Bytes]) -> Self {
        let mut end = range.offset() + u64::from(range.len());
        let whole = end;
        for piece in pieces.iter().rev() {
            let start = end - piece.len() as u64;
            if let Some(last) = piece.iter().rposition(|byte| *byte != 0) {
                let first = (last + 1).saturating_sub(LEN);
                let bytes = piece.get(first..=last).unwrap_or_default().to_vec();
                return Self { end: whole, at: start + first as u64, bytes };
            }
            end = start;
        }
        Self { end: whole, at: 0, bytes: Vec::new() }
    }

    /// The same of what needs not be looked for.
    #[must_use]
    pub fn without_bytes(self) -> Self {
        Self { at: 0, bytes: Vec::new(), ..self }
    }

    pub fn receipt(&self) -> Receipt {
        let receipt = [&self.end.to_le_bytes()[..], &self.at.to_le_bytes(), &self.bytes].concat();
        Receipt::new(&receipt).unwrap_or_default()
    }

    pub fn from_receipt(receipt: &Receipt) -> Option<Self> {
        let (end, rest) = receipt.as_bytes().split_first_chunk()?;
        let (at, bytes) = rest.split_first_chunk()?;
        let (end, at) = (u64::from_le_bytes(*end), u64::from_le_bytes(*at));
        let is_within = at.checked_add(bytes.len() as u64).is_some_and(|it| it <= end);
        is_within.then(|| Self { end, at, bytes: bytes.to_vec() })
    }
}

impl Site {
    /// Looks whether a server has of a file what was sent, as far as that is remembered.
    ///
    /// # Errors
    ///
    /// [`Class::Corrupt`] if it has not.
    pub async fn check_samples(&self, url: &str, receipts: &[(u64, Receipt)]) -> Answer<()> {
        let samples = receipts.iter().filter_map(|(_, receipt)| Sample::from_receipt(receipt));
        let samples: Vec<_> = samples.filter(|it| !it.bytes.is_empty()).collect();
        let checks = samples.iter().map(|sample| self.check_sample(url, sample)).collect();
        all(checks, self.requests()).await.into_iter().collect()
    }

    async fn check_sample(&self, url: &str, sample: &Sample) -> Answer<()> {
        let last = sample.at + sample.bytes.len() as u64 - 1;
        let call = Call::new(Method::GET, url.to_owned());
        let reply = self.send(call.header("range", &format!("bytes={}-{last}", sample.at))).await?;
        match reply.status() {
            StatusCode::PARTIAL_CONTENT => {
                let found = read_body(reply.response, LEN).await?;
                if found == sample.bytes { Ok(()) } else { Err(not_kept(sample)) }
            }
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NOT_FOUND => Err(not_kept(sample)),
            // It has no ranges, and all of it is not worth being read again.
            StatusCode::OK => Ok(()),
            _ => Err(self.refused(&reply)),
        }
    }
}

fn not_kept(sample: &Sample) -> Fault {
    let text = format!(
        "the server said that it has written what it has not, at byte {}; its file is removed",
        sample.at
    );
    Fault::new(Class::Corrupt, text)
}

/// How much of a part is remembered, in bytes.
const LEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::chunk::EntryId;

    #[test]
    fn the_last_bytes_that_are_not_zero_are_remembered() {
        let sample = |pieces: &[&'static [u8]]| {
            let pieces: Vec<_> = pieces.iter().map(|it| Bytes::from_static(it)).collect();
            let len = pieces.iter().map(Bytes::len).sum::<usize>();
            let range = ByteRange::new(EntryId(1), 0, u32::try_from(len).unwrap(), true).unwrap();
            let sample = Sample::of(range, &pieces);
            assert_eq!(Sample::from_receipt(&sample.receipt()).as_ref(), Some(&sample));
            assert_eq!(sample.end, len as u64);
            (sample.at, sample.bytes)
        };
        assert_eq!(sample(&[b"0123456789abcdefghij"]), (4, b"456789abcdefghij".to_vec()));
        assert_eq!(sample(&[b"ab", b"c\0", b"\0\0"]), (2, b"c".to_vec()));
        assert_eq!(sample(&[b"\0\0"]), (0, Vec::new()));
        for receipt in [&b""[..], &[1; 15], &[255; 17]] {
            assert_eq!(Sample::from_receipt(&Receipt::new(receipt).unwrap()), None);
        }
    }
}
