//! The temporary objects that a large one is composed of: their names, checksums and receipts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum_combine};

use crate::storage::Receipt;
use crate::storage::object::store::{begun, prefix_of};
use crate::storage::remote::{Answer, Key, OWN_PREFIX};

/// An object that others are composed of.
#[derive(Clone, Debug)]
pub struct Piece {
    pub name: String,
    pub generation: String,
    pub sum: Sum,
}

/// The CRC-32C of so many bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sum {
    pub crc: u64,
    pub len: u64,
}

impl Piece {
    pub fn receipt(&self) -> String {
        format!("{} {:08x} {}", self.generation, self.sum.crc, self.sum.len)
    }

    pub fn of_receipt(name: String, receipt: &Receipt) -> Option<Self> {
        let text = std::str::from_utf8(receipt.as_bytes()).ok()?;
        let mut words = text.split(' ');
        let (generation, crc, len) = (words.next()?, words.next()?, words.next()?);
        let crc = u32::from_str_radix(crc, 16).ok()?.into();
        let sum = Sum { crc, len: len.parse().ok()? };
        Some(Self { name, generation: generation.to_owned(), sum })
    }
}

impl Sum {
    pub fn of(data: &[Bytes]) -> Self {
        let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
        for piece in data {
            digest.update(piece);
        }
        Self { crc: digest.finalize(), len: data.iter().map(|it| it.len() as u64).sum() }
    }

    /// That of both, one after the other.
    pub fn followed_by(self, next: Self) -> Self {
        let crc = checksum_combine(CrcAlgorithm::Crc32Iscsi, self.crc, next.crc, next.len);
        Self { crc, len: self.len + next.len }
    }

    /// As the server writes it: base64 of four bytes, the highest first.
    pub fn text(self) -> String {
        BASE64.encode(u32::try_from(self.crc).unwrap_or_default().to_be_bytes())
    }
}

/// Where a temporary object of an upload is: beside the upload's key.
pub fn part_name(key: &Key, id: &str, which: &str) -> Answer<String> {
    let prefix = prefix_of(&key.parent().unwrap_or_default())?;
    let own = String::from_utf8_lossy(OWN_PREFIX);
    Ok(format!("{prefix}{own}{id}-{which}"))
}

/// The upload that a temporary object is of, and a key beside which it is: which one it was to have is not
/// known.
pub fn upload_of(name: &str) -> Option<(Key, String)> {
    let key = Key::new(name.as_bytes()).ok()?;
    let own = std::str::from_utf8(key.name().strip_prefix(OWN_PREFIX)?).ok()?;
    let mut parts = own.splitn(3, '-');
    let (begun_at, hash, _) = (parts.next()?, parts.next()?, parts.next()?);
    let id = begun(begun_at).map(|_| format!("{begun_at}-{hash}"))?;
    let stem = [OWN_PREFIX, id.as_bytes()].concat();
    Some((key.parent()?.join(&stem).ok()?, id))
}

/// What tells the uploads to one key from those to others in its directory.
pub fn hash_of(key: &Key) -> String {
    blake3::hash(key.as_bytes()).to_hex().chars().take(16).collect()
}

/// So that they are listed in their order.
pub fn part_number(number: u64) -> String {
    format!("{number:08}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::object::store::upload_id;

    #[test]
    fn checksums_add_up() {
        let (one, other) = (Bytes::from_static(b"123"), Bytes::from_static(b"456789"));
        let whole = Sum::of(&[one.clone(), other.clone()]);
        // The check value of CRC-32C (iSCSI).
        assert_eq!((whole.crc, whole.text().as_str()), (0xe306_9283, "4waSgw=="));
        assert_eq!(Sum::of(&[one]).followed_by(Sum::of(&[other])), whole);
        assert_eq!(Sum::of(&[]).followed_by(whole), whole);
    }

    #[test]
    fn a_receipt_comes_back() {
        let sum = Sum { crc: 7, len: 9 };
        let piece = Piece { name: "x".into(), generation: "1700".into(), sum };
        let receipt = Receipt::new(piece.receipt().as_bytes()).unwrap();
        let found = Piece::of_receipt("x".into(), &receipt).unwrap();
        assert_eq!((found.generation.as_str(), found.sum), ("1700", sum));
        for text in ["", "1 2", "1 x 3", "1 2 x"] {
            assert!(
                Piece::of_receipt("x".into(), &Receipt::new(text.as_bytes()).unwrap()).is_none()
            );
        }
    }

    #[test]
    fn parts_are_beside_their_object() {
        let key = Key::new(b"a/b").unwrap();
        assert_eq!(part_name(&key, "id", &part_number(7)).unwrap(), "a/.fastsync-id-00000007");
        let key = Key::new(b"b").unwrap();
        assert_eq!(part_name(&key, "id", "").unwrap(), ".fastsync-id-");
    }

    #[test]
    fn temporary_objects_tell_their_upload() {
        let key = Key::new(b"a/b").unwrap();
        let id = format!("{}-{}", upload_id(), hash_of(&key));
        let name = part_name(&key, &id, &part_number(7)).unwrap();
        let (stem, found) = upload_of(&name).unwrap();
        assert_eq!(found, id);
        // Which is enough to find its other parts.
        assert_eq!(part_name(&stem, &id, "").unwrap(), part_name(&key, &id, "").unwrap());
        for name in ["a/b", ".fastsync-x-00000001", ".fastsync-0123456789abcdef"] {
            assert_eq!(upload_of(name), None, "{name}");
        }
    }
}
