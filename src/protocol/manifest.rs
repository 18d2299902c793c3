//! What a transfer consists of: names that cannot leave their directory, times, and the digest by
//! which both ends compare the whole at its end.

use std::fmt;

use thiserror::Error;

use super::chunk::{Digest, EntryId};

/// One component of a path: bytes that name something in a directory, and nothing else.
///
/// Never empty, never `.` or `..`, without `/` and NUL, at most 255 bytes (ENTRY-2). A path is made
/// of an entry's name and its parents', so no path can leave the root.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name(Box<[u8]>);

impl Name {
    /// The longest name, in bytes: Linux's `NAME_MAX`.
    pub const MAX_LEN: usize = 255;

    /// Checks the bytes once, so that nobody downstream has to.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() || bytes.len() > Self::MAX_LEN {
            return Err(NameError::Length(bytes.len()));
        }
        if bytes == b"." || bytes == b".." || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(NameError::Content);
        }
        Ok(Self(bytes.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.0))
    }
}

/// These bytes do not name anything in a directory.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum NameError {
    #[error("a name of {0} bytes is not between 1 and 255 long")]
    Length(usize),
    #[error("a name is `.` or `..`, or contains a slash or a zero byte")]
    Content,
}

/// Shows bytes from a peer or a file system on one line, with nothing a terminal would obey.
///
/// Printable text stays as it is; control characters, invalid UTF-8 and backslashes become `\n`,
/// `\x1b` and the like.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.utf8_chunks() {
            for c in part.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    c if is_obeyed(c) => write!(f, "{}", c.escape_default())?,
                    c => fmt::Write::write_char(f, c)?,
                }
            }
            part.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

/// Whether a terminal would act on a character instead of showing it: control characters, and the
/// ones that reorder or hide the text around them, with which a name could pose as another
/// (Unicode's bidirectional controls, zero-width characters and soft hyphens).
pub fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A point in time as file systems keep it: seconds since 1970, which may be negative, and
/// nanoseconds below one second.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp {
    pub seconds: i64,
    nanoseconds: u32,
}

impl Timestamp {
    /// `None` where the nanoseconds are a second or more.
    pub fn new(seconds: i64, nanoseconds: u32) -> Option<Self> {
        (nanoseconds < 1_000_000_000).then_some(Self { seconds, nanoseconds })
    }

    /// Always below 1,000,000,000.
    pub fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }

    /// How many steps of this length, in nanoseconds, there are from 1970 until then, rounded down. There
    /// is no step shorter than a nanosecond.
    pub fn steps(self, step: u64) -> i128 {
        let whole = i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanoseconds);
        whole.div_euclid(i128::from(step.max(1)))
    }

    /// Whether this is all that is left of a time where times are kept in steps of this length, in
    /// nanoseconds.
    pub fn is_left_of(self, other: Self, step: u64) -> bool {
        self.steps(1) == other.steps(step) * i128::from(step.max(1))
    }
}

/// What became of an entry, as both ends count it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It is at the destination because of this session.
    Done,
    /// It was there already.
    Skipped,
    /// It is not there, or not whole, and an error says why.
    Failed,
}

/// Everything an end knows about a transfer, in a size that does not depend on it: compared at the
/// end, so that neither side can have missed, or made up, an entry (END-3).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    /// Directories, symlinks and files that are there because of this session.
    pub done: u64,
    pub skipped: u64,
    pub failed: u64,
    /// The sizes of the files that are done, in bytes.
    pub bytes: u64,
    pub digest: ManifestDigest,
}

impl Totals {
    /// Counts one entry, in its final state.
    pub fn add(&mut self, entry: &FinalEntry<'_>) {
        match entry.fate {
            Fate::Done => {
                self.done += 1;
                self.bytes = self.bytes.wrapping_add(entry.size);
            }
            Fate::Skipped => self.skipped += 1,
            Fate::Failed => self.failed += 1,
        }
        self.digest.add(entry);
    }

    /// How many entries were counted.
    pub fn entries(&self) -> u64 {
        self.done + self.skipped + self.failed
    }
}

/// An entry of which nothing will change any more.
#[derive(Clone, Copy, Debug)]
pub struct FinalEntry<'a> {
    pub id: EntryId,
    pub parent: EntryId,
    pub name: &'a Name,
    pub size: u64,
    pub fate: Fate,
    /// The file's root if it was transferred, else zeros.
    pub root: Digest,
}

/// The sum, modulo 2^256, of one BLAKE3 value for each entry: the same in whatever order the
/// entries end, and other if one is missing, extra or different (END-3).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ManifestDigest(pub [u8; 32]);

impl ManifestDigest {
    fn add(&mut self, entry: &FinalEntry<'_>) {
        let mut hasher = blake3::Hasher::new_derive_key("fastsync 1 manifest entry");
        hasher.update(&entry.id.0.to_le_bytes());
        hasher.update(&entry.parent.0.to_le_bytes());
        hasher.update(&entry.size.to_le_bytes());
        hasher.update(&[match entry.fate {
            Fate::Done => 0,
            Fate::Skipped => 1,
            Fate::Failed => 2,
        }]);
        hasher.update(&entry.root.0);
        hasher.update(entry.name.as_bytes());
        let mut carry = false;
        let value: [u8; 32] = hasher.finalize().into();
        let words = self.0.as_chunks_mut::<8>().0.iter_mut().zip(value.as_chunks::<8>().0);
        for (sum, addend) in words {
            let (partial, over) =
                u64::from_le_bytes(*sum).overflowing_add(u64::from_le_bytes(*addend));
            let (total, again) = partial.overflowing_add(u64::from(carry));
            *sum = total.to_le_bytes();
            carry = over || again;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ENTRY-2.
    #[test]
    fn names_cannot_leave_their_directory() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; 256]] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        for good in [&b"..."[..], b"-rf", b"a\nb", b"\xff\xfe", b" ", &[b'x'; 255]] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_shown() {
        let shown = Escaped(b"a\x1b[2J\n\\\xff\xc3\xa9\xe2\x80\xaeb").to_string();
        assert_eq!(shown, "a\\u{1b}[2J\\n\\\\\\xffé\\u{202e}b");
    }

    #[test]
    fn times_are_rounded_down() {
        let time = |seconds, nanoseconds| Timestamp::new(seconds, nanoseconds).unwrap();
        let second = 1_000_000_000;
        assert_eq!(time(-1, 999_999_999).steps(second), -1);
        assert!(time(-1, 0).is_left_of(time(-1, 1), second));
        assert!(!time(0, 0).is_left_of(time(-1, 1), second));
        assert!(time(7, 0).is_left_of(time(7, 999_999_999), second));
        assert!(!time(7, 1).is_left_of(time(7, 2), second), "this one is told as it is");
        assert!(time(6, 0).is_left_of(time(7, 5), 2 * second));
        for step in [0, 1] {
            assert!(time(7, 5).is_left_of(time(7, 5), step));
            assert!(!time(7, 4).is_left_of(time(7, 5), step));
        }
        assert!(time(i64::MIN, 0).is_left_of(time(i64::MIN, 0), 1));
        assert!(!time(0, 0).is_left_of(time(i64::MAX, 0), u64::MAX));
    }

    /// END-3.
    #[test]
    fn the_digest_depends_on_every_entry_and_on_no_order() {
        let names = [Name::new(b"a").unwrap(), Name::new(b"b").unwrap()];
        let entry = |n: usize, fate| FinalEntry {
            id: EntryId(n as u64 + 1),
            parent: EntryId::ROOT,
            name: &names[n],
            size: 7,
            fate,
            root: Digest([255; 32]),
        };
        let sum = |entries: &[FinalEntry<'_>]| {
            let mut totals = Totals::default();
            for entry in entries {
                totals.add(entry);
            }
            totals
        };
        let (a, b) = (entry(0, Fate::Done), entry(1, Fate::Skipped));
        assert_eq!(sum(&[a, b]), sum(&[b, a]));
        assert_ne!(sum(&[a, b]).digest, sum(&[a]).digest);
        assert_ne!(sum(&[a, b]).digest, sum(&[a, entry(1, Fate::Done)]).digest);
        assert_ne!(sum(&[a, b]).digest, sum(&[a, FinalEntry { size: 8, ..b }]).digest);
        let both = sum(&[a, b]);
        assert_eq!(
            (both.done, both.skipped, both.failed, both.bytes, both.entries()),
            (1, 1, 0, 7, 2)
        );
    }
}
