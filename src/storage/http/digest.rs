//! Digests that servers send with what they send: `Repr-Digest` and `Content-Digest` (RFC 9530),
//! `Digest` (RFC 3230) and `Content-MD5` (RFC 1864).
//!
//! These hashes know no parts, and the parts of a file are read in about their order only. What comes
//! too early is held for a while.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use sha2::digest::DynDigest;
use sha2::{Sha256, Sha512};

/// What something amounts to, by one of the hashes that servers use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claim {
    hash: Hash,
    value: Box<[u8]>,
}

/// From the weakest to the strongest.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Hash {
    Md5,
    Sha256,
    Sha512,
}

impl Hash {
    /// By its name in a header.
    fn of_name(name: &str) -> Option<Self> {
        match &*name.trim().to_ascii_lowercase() {
            "md5" => Some(Self::Md5),
            "sha-256" => Some(Self::Sha256),
            "sha-512" => Some(Self::Sha512),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::Sha256 => "SHA-256",
            Self::Sha512 => "SHA-512",
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    fn hasher(self) -> Hasher {
        match self {
            Self::Md5 => Hasher::Md5(md5::Context::new()),
            Self::Sha256 => Hasher::Sha(Box::new(Sha256::default())),
            Self::Sha512 => Hasher::Sha(Box::new(Sha512::default())),
        }
    }
}

enum Hasher {
    Md5(md5::Context),
    Sha(Box<dyn DynDigest + Send>),
}

impl Hasher {
    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Md5(context) => context.consume(data),
            Self::Sha(digest) => digest.update(data),
        }
    }

    fn finalize(self) -> Box<[u8]> {
        match self {
            Self::Md5(context) => context.finalize().0.into(),
            Self::Sha(digest) => digest.finalize(),
        }
    }
}

impl Claim {
    /// A claim of 32 bytes.
    pub fn sha256(value: [u8; 32]) -> Self {
        Self { hash: Hash::Sha256, value: Box::new(value) }
    }

    fn parse(name: &str, base64: &str) -> Option<Self> {
        let hash = Hash::of_name(name)?;
        let value = STANDARD.decode(base64).ok()?;
        (value.len() == hash.len()).then(|| Self { hash, value: value.into() })
    }

    /// Whether some data is what is claimed, all of it being there.
    pub fn holds_for(&self, data: &[u8]) -> bool {
        let mut hasher = self.hash.hasher();
        hasher.update(data);
        hasher.finalize() == self.value
    }
}

/// The strongest claim that is understood in a header of RFC 9530, `sha-256=:BASE64:` (RFC 8941).
pub fn of_fields(value: &str) -> Option<Claim> {
    let members = value.split(',').filter_map(|member| {
        let (name, value) = member.trim().split_once('=')?;
        let value = value.split(';').next().unwrap_or_default().trim();
        Claim::parse(name, value.strip_prefix(':')?.strip_suffix(':')?)
    });
    members.max_by_key(|claim| claim.hash)
}

/// What the headers of an answer say that a whole file amounts to, if the answer has all of it, or is
/// to HEAD; those of a part tell less of the whole.
pub fn claim_of(headers: &HeaderMap, is_whole: bool) -> Option<Claim> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let repr = text("repr-digest");
    if is_whole {
        strongest(repr.or(text("content-digest")), text("digest"), text("content-md5"))
    } else {
        // The others are about the part.
        strongest(repr, None, None)
    }
}

/// The strongest claim about a whole file that is understood among these headers' values.
fn strongest(
    repr_digest: Option<&str>,
    digest: Option<&str>,
    content_md5: Option<&str>,
) -> Option<Claim> {
    let instance = digest.into_iter().flat_map(|value| value.split(',')).filter_map(|member| {
        let (name, value) = member.trim().split_once('=')?;
        Claim::parse(name, value)
    });
    let md5 = content_md5.and_then(|value| Claim::parse("md5", value.trim()));
    let all = repr_digest.and_then(of_fields).into_iter().chain(instance).chain(md5);
    all.max_by_key(|claim| claim.hash)
}

/// Hashes a file as it comes, to hold it against claims.
pub struct Check {
    claims: Vec<(Claim, Hasher)>,
    /// How much of it was hashed.
    done: u64,
    /// What came too early, by its offset.
    held: BTreeMap<u64, Vec<u8>>,
    held_len: usize,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Check {
    /// `None` where there is nothing to be checked.
    pub fn new(claims: Vec<Claim>) -> Option<Self> {
        let claims: Vec<_> = claims.into_iter().map(|it| (it.hash.hasher(), it)).collect();
        let claims: Vec<_> = claims.into_iter().map(|(hasher, claim)| (claim, hasher)).collect();
        let (held, held_len) = (BTreeMap::new(), 0);
        (!claims.is_empty()).then_some(Self { claims, done: 0, held, held_len })
    }

    /// Takes some of the file. What cannot be held is missing in the end.
    pub fn add(&mut self, offset: u64, data: &[u8]) {
        if offset > self.done {
            if self.held_len + data.len() <= MAX_HELD && !self.held.contains_key(&offset) {
                self.held_len += data.len();
                self.held.insert(offset, data.to_vec());
            }
            return;
        }
        self.hash(offset, data);
        while let Some(first) = self.held.first_entry().filter(|it| *it.key() <= self.done) {
            let (offset, data) = first.remove_entry();
            self.held_len -= data.len();
            self.hash(offset, &data);
        }
    }

    fn hash(&mut self, offset: u64, data: &[u8]) {
        let known = usize::try_from(self.done - offset).unwrap_or(usize::MAX);
        let Some(new) = data.get(known..) else { return };
        for (_, hasher) in &mut self.claims {
            hasher.update(new);
        }
        self.done += new.len() as u64;
    }

    /// Where it cannot go on, and how much is missing from there on, of a file of this size.
    pub fn missing(&self, size: u64) -> (u64, u64) {
        (self.done, size.saturating_sub(self.done + self.held_len as u64))
    }

    /// The claim that is not true, once nothing is missing.
    pub fn broken(self) -> Option<Hash> {
        let mut claims = self.claims.into_iter();
        claims.find_map(|(claim, hasher)| (hasher.finalize() != claim.value).then_some(claim.hash))
    }
}

/// How much is held of one file, in bytes.
const MAX_HELD: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;

    const EMPTY_SHA256: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn the_strongest_that_is_known_counts() {
        let sha256 = strongest(Some(&format!("sha-256=:{EMPTY_SHA256}:")), None, None);
        assert!(sha256.as_ref().unwrap().holds_for(b""));
        assert!(!sha256.as_ref().unwrap().holds_for(b"x"));
        let many =
            format!("md5=:1B2M2Y8AsgTpgAmY7PhCfg==:, sha-256=:{EMPTY_SHA256}:;x=1, crc=:AA==:");
        assert_eq!(strongest(Some(&many), None, Some("1B2M2Y8AsgTpgAmY7PhCfg==")), sha256);
        assert_eq!(strongest(None, Some(&format!("SHA-256={EMPTY_SHA256}")), None), sha256);
        let md5 = strongest(None, None, Some("1B2M2Y8AsgTpgAmY7PhCfg=="));
        assert!(md5.unwrap().holds_for(b""));
    }

    #[test]
    fn parts_may_come_in_any_order_and_twice() {
        let data: Vec<u8> = (0..100).collect();
        let claim = || Claim::sha256(Sha256::digest(&data).into());
        let mut check = Check::new(vec![claim()]).unwrap();
        for at in [50_u8, 75, 50, 0, 0, 25, 75] {
            check.add(at.into(), &data[at.into()..][..25]);
        }
        assert_eq!((check.missing(100), check.broken()), ((100, 0), None));
        let mut check = Check::new(vec![claim()]).unwrap();
        check.add(25, &data[25..]);
        assert_eq!(check.missing(100), (0, 25));
        check.add(0, &[0; 25]);
        assert_eq!(check.broken(), Some(Hash::Sha256));
        assert!(Check::new(Vec::new()).is_none());
    }

    #[test]
    fn what_is_no_digest_is_none() {
        for value in ["", "sha-256", "sha-256=::", "sha-256=:AAAA:", "sha-256=AAAA", "sha-256=:*:"]
        {
            assert_eq!(strongest(Some(value), None, None), None, "{value}");
        }
        assert_eq!(strongest(None, None, Some("AAAA")), None);
    }
}
