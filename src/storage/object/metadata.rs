//! What is stored beside an object: modification time, mode, and the BLAKE3 root of its content.

use std::time::UNIX_EPOCH;

use http::HeaderMap;

use super::xml::timestamp;
use crate::protocol::chunk::Digest;
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::Mode;
use crate::storage::remote::{Kept, Thing, ThingKind, implied};

/// What it is called at a store.
#[derive(Debug)]
pub struct Names {
    /// What stands before a name where it is a header's.
    pub header_prefix: &'static str,
    pub mtime: &'static str,
    pub mode: &'static str,
    pub root: &'static str,
    /// Where other programs store the modification time.
    pub foreign_mtimes: &'static [&'static str],
}

pub const S3: Names = Names {
    header_prefix: "x-amz-meta-",
    mtime: "fastsync-mtime",
    mode: "fastsync-mode",
    root: "fastsync-blake3",
    // rclone's.
    foreign_mtimes: &["mtime"],
};

pub const GCS: Names = Names {
    header_prefix: "x-goog-meta-",
    // rclone's, and that of Google's own programs.
    foreign_mtimes: &["mtime", "goog-reserved-file-mtime"],
    ..S3
};

/// Names are identifiers of C# there, which have no hyphens.
pub const AZURE: Names = Names {
    header_prefix: "x-ms-meta-",
    mtime: "fastsync_mtime",
    mode: "fastsync_mode",
    root: "fastsync_blake3",
    foreign_mtimes: &["mtime"],
};

impl Names {
    /// What is to be kept, as names and values.
    pub fn entries(&self, kept: &Kept) -> Vec<(&'static str, String)> {
        let mut entries = Vec::new();
        if let Some(mtime) = kept.mtime {
            entries.push((self.mtime, format!("{}.{:09}", mtime.seconds, mtime.nanoseconds())));
        }
        if let Some(mode) = kept.mode {
            entries.push((self.mode, format!("{:04o}", mode.bits())));
        }
        if let Some(root) = kept.root {
            entries.push((self.root, root.to_string()));
        }
        entries
    }

    /// Reads what is kept of a thing.
    pub fn read<'a>(&self, thing: &mut Thing, value: impl Fn(&str) -> Option<&'a str>) {
        let own = value(self.mtime);
        let foreign = || self.foreign_mtimes.iter().find_map(|name| value(name));
        let parse = |text| parse_time(text).or_else(|| timestamp(text));
        thing.mtime = own.or_else(foreign).and_then(parse);
        thing.mode = value(self.mode)
            .and_then(|it| u32::from_str_radix(it, 8).ok())
            .filter(|bits| *bits <= 0o7777)
            .map(Mode::from_raw);
        thing.root = value(self.root).and_then(parse_digest);
    }

    /// An object, by the headers of an answer to HEAD.
    pub fn thing(&self, headers: &HeaderMap) -> Option<Thing> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut thing = Thing {
            kind: ThingKind::File,
            size: text("content-length")?.trim().parse().ok()?,
            modified: text("last-modified").and_then(http_date),
            tag: text("etag").map(|it| it.as_bytes().into()),
            ..implied()
        };
        self.read(&mut thing, |name| text(&format!("{}{name}", self.header_prefix)));
        Some(thing)
    }
}

/// A time as HTTP writes it (RFC 9110, section 5.6.7).
pub fn http_date(text: &str) -> Option<Timestamp> {
    let time = httpdate::parse_http_date(text.trim()).ok()?;
    let time = time.duration_since(UNIX_EPOCH).ok()?;
    Timestamp::new(i64::try_from(time.as_secs()).ok()?, time.subsec_nanos())
}

/// Seconds since 1970, with a fraction of at most nine digits that count.
pub fn parse_time(text: &str) -> Option<Timestamp> {
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
    use http::HeaderName;

    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let kept = Kept {
            mtime: Timestamp::new(-5, 7),
            mode: Some(Mode::from_raw(0o640)),
            root: Some(Digest([0xab; 32])),
        };
        for names in [S3, GCS, AZURE] {
            let mut map = HeaderMap::new();
            for (name, value) in names.entries(&kept) {
                let name = format!("{}{name}", names.header_prefix);
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                map.insert(name, value.parse().unwrap());
            }
            map.insert("content-length", "12".parse().unwrap());
            map.insert("etag", "\"x\"".parse().unwrap());
            map.insert("last-modified", "Tue, 24 Nov 2026 12:00:00 GMT".parse().unwrap());
            let found = names.thing(&map).unwrap();
            assert_eq!((found.mtime, found.mode, found.root), (kept.mtime, kept.mode, kept.root));
            assert_eq!((found.size, found.tag.as_deref()), (12, Some(&b"\"x\""[..])));
            assert_eq!(found.modified.unwrap().seconds, 1_795_521_600);
        }
    }

    #[test]
    fn times_of_other_programs_are_read() {
        let mtime = |name, text| {
            let mut thing = implied();
            GCS.read(&mut thing, |asked| (asked == name).then_some(text));
            thing.mtime
        };
        let wanted = Timestamp::new(1_795_521_600, 500_000_000);
        assert_eq!(mtime("mtime", "2026-11-24T12:00:00.5Z"), wanted);
        assert_eq!(mtime("mtime", "1795521600.5"), wanted);
        assert_eq!(mtime("goog-reserved-file-mtime", "12"), Timestamp::new(12, 0));
        assert_eq!(mtime("fastsync-mtime", "nonsense"), None);
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
