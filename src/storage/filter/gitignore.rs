//! `.gitignore` files.
//!
//! In: the content of a file, then paths. Out: whether it ignores them. The matching is that of the
//! crate `ignore`; what it reads differently from git is made equal first.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::MAX_RULE_LEN;
use super::error::Excess;
use super::wildcard::{Set, is_space};

/// The name of the files.
pub const NAME: &[u8] = b".gitignore";

/// The patterns of one file.
#[derive(Debug)]
pub struct Ignores {
    /// The path of its directory.
    base: Vec<u8>,
    patterns: Gitignore,
}

impl Ignores {
    /// Reads a file in the directory `base`, with no more than `room` patterns. `None` if there is
    /// no pattern in it.
    ///
    /// Lines that make no sense are passed over, as git never says a word about them.
    pub fn new(base: &[u8], content: &[u8], room: usize) -> Result<Option<Self>, Excess> {
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        let lines = content.split(|byte| *byte == b'\n').filter(|line| line.len() <= MAX_RULE_LEN);
        let lines: Vec<String> = lines.filter_map(translate).take(room + 1).collect();
        if lines.len() > room {
            return Err(Excess::Rules);
        }
        let mut builder = GitignoreBuilder::new("");
        builder.allow_unclosed_class(false);
        for line in lines {
            // An error is about this line, and leaves the builder as it was.
            let _ = builder.add_line(None, &line);
        }
        let patterns = builder.build().map_err(|_| Excess::Patterns)?;
        Ok((!patterns.is_empty()).then(|| Self { base: base.to_vec(), patterns }))
    }

    pub fn lines(&self) -> usize {
        self.patterns.len()
    }

    /// Whether a path is ignored, if the file says something about it.
    pub fn ignores(&self, path: &[u8], is_directory: bool) -> Option<bool> {
        let below = match &*self.base {
            b"" => path,
            base => path.strip_prefix(base)?.strip_prefix(b"/")?,
        };
        match self.patterns.matched(Path::new(OsStr::from_bytes(below)), is_directory) {
            Match::None => None,
            Match::Ignore(_) => Some(true),
            Match::Whitelist(_) => Some(false),
        }
    }
}

/// A line as the crate has to read it to do what git does; `None` if nothing can match it.
///
/// Where it is anchored is settled here, as git looks for any slash in it, and the crate would see
/// those that [`write_set`] adds.
fn translate(line: &[u8]) -> Option<String> {
    let line = trim(line.strip_suffix(b"\r").unwrap_or(line));
    if line.starts_with(b"#") {
        return None;
    }
    let (sign, pattern) = line.strip_prefix(b"!").map_or(("", line), |rest| ("!", rest));
    let (pattern, end) = pattern.strip_suffix(b"/").map_or((pattern, ""), |rest| (rest, "/"));
    let start = if pattern.contains(&b'/') { "/" } else { "**/" };
    let pattern = pattern.strip_prefix(b"/").unwrap_or(pattern);
    let body = match translate_pattern(pattern)? {
        body if body == "**" && start != "/" => "*".to_owned(),
        body => body,
    };
    (!body.is_empty()).then(|| [sign, start, &body, end].concat())
}

/// Braces are escaped, as they mean nothing to git. Sets are written anew: the crate knows no
/// `[:alpha:]` and no backslashes in them, and lets a negated one match a slash. A byte that is not
/// UTF-8 becomes `?`, as the crate takes text only.
fn translate_pattern(pattern: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'[' => {
                let set = Set::parse(&mut rest)?;
                let source = tail.get(..tail.len() - rest.len()).unwrap_or_default();
                write_set(set, source, &mut out);
            }
            b'\\' => {
                let (escaped, tail) = rest.split_first()?;
                rest = tail;
                write_literal(*escaped, &mut out);
            }
            b'{' | b'}' | b' ' | b'\t'..=b'\r' => write_literal(*byte, &mut out),
            // Three stars and more are two to git.
            b'*' if out.ends_with(b"**") => {}
            byte => out.push(*byte),
        }
    }
    let chunks = out.utf8_chunks();
    let parts = chunks.map(|part| [part.valid(), if part.invalid().is_empty() { "" } else { "?" }]);
    Some(parts.flatten().collect())
}

/// Without spaces at the end, unless a backslash is before them.
fn trim(line: &[u8]) -> &[u8] {
    let mut end = 0;
    let mut at = 0;
    while let Some(byte) = line.get(at) {
        at += if *byte == b'\\' { 2 } else { 1 };
        if *byte != b' ' {
            end = at;
        }
    }
    line.get(..end).unwrap_or(line)
}

/// White space goes into a set, as the crate would trim it at the end. A set cannot begin with
/// every byte, so this one begins with NUL, which no name has.
fn write_literal(byte: u8, out: &mut Vec<u8>) {
    if is_space(byte) {
        out.extend([b'[', 0, byte, b']']);
    } else {
        out.extend([b'\\', byte]);
    }
}

/// Writes a set, byte by byte. One beyond ASCII stays as it is; git and the crate both take it for
/// a set of bytes.
fn write_set(set: Set, source: &[u8], out: &mut Vec<u8>) {
    out.push(b'[');
    if !source.is_ascii() {
        out.extend_from_slice(source);
        return;
    }
    let is_negated = set.contains(0x80);
    out.extend(is_negated.then_some(b'!'));
    let has = |byte: u8| set.contains(byte) != is_negated;
    out.push(if has(b']') { b']' } else { 0 });
    out.extend((1..0x80).filter(|byte| has(*byte) && !matches!(byte, b']' | b'-')));
    out.extend(has(b'-').then_some(b'-'));
    out.push(b']');
}
