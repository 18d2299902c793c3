//! What is stored beside an object: modification time, mode, and the BLAKE3 root of its content.

use std::time::UNIX_EPOCH;

use http::HeaderMap;

use crate::protocol::chunk::Digest;
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::Mode;
use crate::storage::remote::{Kept, Thing, ThingKind};

pub const MTIME: &str = "x-amz-meta-fastsync-mtime";
pub const MODE: &str = "x-amz-meta-fastsync-mode";
pub const ROOT: &str = "x-amz-meta-fastsync-blake3";

/// What rclone stores: seconds, with a fraction.
const RCLONE_MTIME: &str = "x-amz-meta-mtime";

/// The headers for what is to be kept.
pub fn headers(kept: &Kept) -> Vec<(&'static str, String)> {
    let mut headers = Vec::new();
    if let Some(mtime) = kept.mtime {
        headers.push((MTIME, format!("{}.{:09}", mtime.seconds, mtime.nanoseconds())));
    }
    if let Some(mode) = kept.mode {
        headers.push((MODE, format!("{:04o}", mode.bits())));
    }
    if let Some(root) = kept.root {
        headers.push((ROOT, root.to_string()));
    }
    headers
}

/// An object, by the headers of an answer to HEAD.
pub fn thing(headers: &HeaderMap) -> Option<Thing> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let size = text("content-length")?.trim().parse().ok()?;
    let modified = text("last-modified").and_then(|it| httpdate::parse_http_date(it).ok());
    let modified = modified.and_then(|it| it.duration_since(UNIX_EPOCH).ok());
    let modified = modified
        .and_then(|it| Timestamp::new(i64::try_from(it.as_secs()).ok()?, it.subsec_nanos()));
    Some(Thing {
        kind: ThingKind::File,
        size,
        mtime: text(MTIME).or_else(|| text(RCLONE_MTIME)).and_then(parse_time),
        modified,
        mode: text(MODE)
            .and_then(|it| u32::from_str_radix(it, 8).ok())
            .filter(|bits| *bits <= 0o7777)
            .map(Mode::from_raw),
        owners: None,
        tag: text("etag").map(|it| it.as_bytes().into()),
        root: text(ROOT).and_then(parse_digest),
        target: None,
    })
}

/// Seconds since 1970, with a fraction of at most nine digits that count.
fn parse_time(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let digits = fraction.get(..fraction.len().min(9))?;
    let nanoseconds = match digits {
        "" => 0,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{digits:0<9}").parse().ok()?
        }
        _ => return None,
    };
    Timestamp::new(seconds, nanoseconds)
}

fn parse_digest(text: &str) -> Option<Digest> {
    blake3::Hash::from_hex(text).ok().map(|hash| Digest(*hash.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let kept = Kept {
            mtime: Timestamp::new(-5, 7),
            mode: Some(Mode::from_raw(0o640)),
            root: Some(Digest([0xab; 32])),
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers(&kept) {
            map.insert(name, value.parse().unwrap());
        }
        map.insert("content-length", "12".parse().unwrap());
        map.insert("etag", "\"x\"".parse().unwrap());
        map.insert("last-modified", "Tue, 24 Nov 2026 12:00:00 GMT".parse().unwrap());
        let found = thing(&map).unwrap();
        assert_eq!((found.mtime, found.mode, found.root), (kept.mtime, kept.mode, kept.root));
        assert_eq!((found.size, found.tag.as_deref()), (12, Some(&b"\"x\""[..])));
        assert_eq!(found.modified.unwrap().seconds, 1_795_521_600);
    }

    #[test]
    fn other_texts_are_no_times() {
        assert_eq!(parse_time("1.5"), Timestamp::new(1, 500_000_000));
        assert_eq!(parse_time("1612345678.1234567891"), Timestamp::new(1_612_345_678, 123_456_789));
        for text in ["", "x", "1.x", "1.-5", "1e5", "."] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}
