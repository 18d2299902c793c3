//! Digests that servers send with what they send: `Repr-Digest` (RFC 9530), `Digest` (RFC 3230) and
//! `Content-MD5` (RFC 1864).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What a whole representation amounts to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Expected {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
    Md5([u8; 16]),
}

/// The strongest digest that is understood among these headers' values; `None` where there is none.
pub fn strongest(
    repr_digest: Option<&str>,
    digest: Option<&str>,
    content_md5: Option<&str>,
) -> Option<Expected> {
    let mut best: Option<Expected> = None;
    let mut consider = |found: Option<Expected>| {
        let strength = |it: &Expected| match it {
            Expected::Md5(_) => 0,
            Expected::Sha256(_) => 1,
            Expected::Sha512(_) => 2,
        };
        if let Some(found) = found
            && best.as_ref().is_none_or(|best| strength(best) < strength(&found))
        {
            best = Some(found);
        }
    };
    for member in repr_digest.into_iter().flat_map(|value| value.split(',')) {
        // A dictionary of byte sequences: `sha-256=:BASE64:` (RFC 8941).
        let Some((name, value)) = member.trim().split_once('=') else { continue };
        let value = value.split(';').next().unwrap_or_default().trim();
        let Some(value) = value.strip_prefix(':').and_then(|it| it.strip_suffix(':')) else {
            continue;
        };
        consider(Expected::parse(name, value));
    }
    for member in digest.into_iter().flat_map(|value| value.split(',')) {
        if let Some((name, value)) = member.trim().split_once('=') {
            consider(Expected::parse(name, value));
        }
    }
    consider(content_md5.and_then(|value| Expected::parse("md5", value.trim())));
    best
}

impl Expected {
    fn parse(name: &str, base64: &str) -> Option<Self> {
        let bytes = STANDARD.decode(base64).ok()?;
        match &*name.trim().to_ascii_lowercase() {
            "sha-256" => bytes.try_into().ok().map(Self::Sha256),
            "sha-512" => bytes.try_into().ok().map(|bytes| Self::Sha512(Box::new(bytes))),
            "md5" => bytes.try_into().ok().map(Self::Md5),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY_SHA256: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn the_strongest_that_is_known_counts() {
        let sha256 = strongest(Some(&format!("sha-256=:{EMPTY_SHA256}:")), None, None);
        let Some(Expected::Sha256(value)) = sha256.clone() else { panic!("{sha256:?}") };
        assert_eq!(&value[..4], [0xe3, 0xb0, 0xc4, 0x42]);
        let many = format!("md5=:1B2M2Y8AsgTpgAmY7PhCfg==:, sha-256=:{EMPTY_SHA256}:;x=1, crc=:AA==:");
        assert_eq!(strongest(Some(&many), None, Some("1B2M2Y8AsgTpgAmY7PhCfg==")), sha256);
        assert_eq!(strongest(None, Some(&format!("SHA-256={EMPTY_SHA256}")), None), sha256);
        let md5 = strongest(None, None, Some("1B2M2Y8AsgTpgAmY7PhCfg=="));
        assert!(matches!(md5, Some(Expected::Md5(_))));
    }

    #[test]
    fn what_is_no_digest_is_none() {
        for value in ["", "sha-256", "sha-256=::", "sha-256=:AAAA:", "sha-256=AAAA", "sha-256=:*:"] {
            assert_eq!(strongest(Some(value), None, None), None, "{value}");
        }
        assert_eq!(strongest(None, None, Some("AAAA")), None);
    }
}
