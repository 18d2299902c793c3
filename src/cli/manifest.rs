//! `manifest`: the BLAKE3 hash of each file; and reading what it has written.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::lines::{LineError, Lines};
use super::listing::Prefix;
use super::progress::{Tally, Viewer};
use super::report::{json_line, json_path};
use super::screen::Screen;
use super::text::{from_hex, timestamp};
use crate::engine::event::{EntryKind, EntryReport};
use crate::protocol::chunk::Digest;
use crate::protocol::manifest::Escaped;

/// Prints a line for each file.
pub struct Manifests {
    prefix: Prefix,
    /// Where lines go instead of standard output, and what that is called.
    file: Option<(Box<dyn Write + Send>, String)>,
}

impl std::fmt::Debug for Manifests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifests").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Manifests {
    pub fn new(prefix: Prefix, file: Option<(Box<dyn Write + Send>, String)>) -> Self {
        Self { prefix, file }
    }

    fn write(&mut self, line: &[u8], screen: &mut Screen, tally: &mut Tally) {
        let Some((file, name)) = &mut self.file else { return screen.out_bytes(line) };
        if let Err(error) = file.write_all(line) {
            tally.output_error.get_or_insert(format!("cannot write {name}: {error}"));
        }
    }
}

impl Viewer for Manifests {
    fn entry(&mut self, entry: &EntryReport, screen: &mut Screen, tally: &mut Tally) {
        let (Some(root), Some(path)) = (entry.root, self.prefix.strip(entry)) else { return };
        if entry.kind != EntryKind::File {
            return;
        }
        if screen.display.json {
            let line = json_line(&ManifestLine::new(entry, path, root)).unwrap_or_default();
            return self.write(line.as_bytes(), screen, tally);
        }
        if let Some(line) = b3sum_line(path, root) {
            self.write(line.as_bytes(), screen, tally);
        } else {
            tally.errors += 1;
            let path = Escaped(path);
            screen.complain(&format!(
                "cannot write {path} in the manner of b3sum, as it is not valid UTF-8; use --json"
            ));
        }
    }

    fn end(&mut self, _complete: bool, _screen: &mut Screen, tally: &mut Tally) {
        let Some((file, name)) = &mut self.file else { return };
        if let Err(error) = file.flush() {
            tally.output_error.get_or_insert(format!("cannot write {name}: {error}"));
        }
    }
}

/// What `b3sum` prints for a file, with the end of the line. Names that are not valid UTF-8 are
/// `None`: b3sum cannot read them again.
fn b3sum_line(path: &[u8], root: Digest) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    if path.contains(['\\', '\n']) {
        let path = path.replace('\\', "\\\\").replace('\n', "\\n");
        return Some(format!("\\{root}  {path}\n"));
    }
    Some(format!("{root}  {path}\n"))
}

/// One file, as programs read it.
#[derive(Debug, Serialize)]
struct ManifestLine<'a> {
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    size: u64,
    mtime: String,
    root: String,
}

impl<'a> ManifestLine<'a> {
    fn new(entry: &EntryReport, path: &'a [u8], root: Digest) -> Self {
        let (path, path_bytes) = json_path(path);
        let mtime = timestamp(entry.metadata.mtime);
        Self { path, path_bytes, size: entry.size, mtime, root: root.to_string() }
    }
}

/// What a manifest says of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Known {
    pub root: Digest,
    pub size: Option<u64>,
}

/// The files of a manifest, by their paths.
pub type Manifest = HashMap<Vec<u8>, Known>;

/// Why something is no manifest.
#[derive(Debug, Error)]
pub enum BadManifest {
    /// A line is of another sort; lines count from 1.
    #[error("line {0}: this is no line of a manifest")]
    Foreign(u64),
    #[error(transparent)]
    Line(#[from] LineError),
}

/// Whether a file is a manifest, by how it begins.
pub fn is_manifest(head: &[u8]) -> bool {
    let Some(start) = head.iter().position(|byte| *byte != b'\n') else { return false };
    let head = head.get(start..).unwrap_or_default();
    match head.iter().position(|byte| *byte == b'\n') {
        Some(end) => read_line(head.get(..end).unwrap_or_default()).is_some(),
        // The first line of a report may be longer than what is looked at.
        None => read_line(head).is_some() || head.starts_with(b"{\"job\":"),
    }
}

/// How much of a file tells whether it is a manifest, in bytes.
pub const HEAD_LEN: u64 = 64 << 10;

/// Reads lines of b3sum, of `manifest --json`, or of a report.
pub fn parse(content: impl BufRead) -> Result<Manifest, BadManifest> {
    let mut manifest = Manifest::new();
    let mut lines = Lines::new(content);
    while let Some((number, line)) = lines.next()? {
        if line.is_empty() {
            continue;
        }
        match read_line(line).ok_or(BadManifest::Foreign(number))? {
            Line::File(path, known) => _ = manifest.insert(plain(&path), known),
            Line::Nothing => {}
        }
    }
    Ok(manifest)
}

/// The same path without `./` and doubled slashes, as `find . | xargs b3sum` writes them.
fn plain(path: &[u8]) -> Vec<u8> {
    let start: &[u8] = if path.starts_with(b"/") { b"/" } else { b"" };
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    [start, &parts.collect::<Vec<_>>().join(&b'/')].concat()
}

/// What a line says.
enum Line {
    File(Vec<u8>, Known),
    /// It is not about a file that has a hash.
    Nothing,
}

/// Likewise, as JSON has it.
#[derive(Debug, Deserialize)]
struct AnyLine {
    path: Option<String>,
    path_bytes: Option<String>,
    size: Option<u64>,
    root: Option<String>,
    outcome: Option<String>,
    job: Option<serde::de::IgnoredAny>,
    end: Option<serde::de::IgnoredAny>,
}

fn read_line(line: &[u8]) -> Option<Line> {
    if line.starts_with(b"{") { read_json_line(line) } else { read_b3sum_line(line) }
}

fn read_json_line(line: &[u8]) -> Option<Line> {
    let line: AnyLine = serde_json::from_slice(line).ok()?;
    let Some(path) = line.path else {
        return (line.job.is_some() || line.end.is_some()).then_some(Line::Nothing);
    };
    let path = match line.path_bytes {
        Some(bytes) => from_hex(&bytes)?,
        None => path.into_bytes(),
    };
    match line.root {
        Some(root) => {
            let root = Digest(from_hex(&root)?.try_into().ok()?);
            Some(Line::File(path, Known { root, size: line.size }))
        }
        // In a report, what was there already has no hash.
        None => line.outcome.is_some().then_some(Line::Nothing),
    }
}

fn read_b3sum_line(line: &[u8]) -> Option<Line> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (line, is_escaped) = match line.strip_prefix(b"\\") {
        Some(line) => (line, true),
        None => (line, false),
    };
    let (digits, path) = line.split_at_checked(64)?;
    let root = from_hex(std::str::from_utf8(digits).ok()?)?;
    let path = path.strip_prefix(b"  ").filter(|path| !path.is_empty())?;
    let path = if is_escaped { unescaped(path)? } else { path.to_vec() };
    Some(Line::File(path, Known { root: Digest(root.try_into().ok()?), size: None }))
}

fn unescaped(path: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = path.iter();
    let mut out = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next()? {
                b'\\' => b'\\',
                b'n' => b'\n',
                b'r' => b'\r',
                _ => return None,
            },
            byte => *byte,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::itemize;
    use crate::protocol::message::{Changes, Outcome};

    const ROOT: Digest = Digest([0xab; 32]);

    fn known(size: Option<u64>) -> Known {
        Known { root: ROOT, size }
    }

    /// What b3sum itself prints for such names.
    #[test]
    fn lines_are_those_of_b3sum_and_are_read_again() {
        let root = ROOT.to_string();
        for (path, wanted) in [
            (&b"d/a b"[..], format!("{root}  d/a b\n")),
            (b"a\nb", format!("\\{root}  a\\nb\n")),
            (b"c\\d", format!("\\{root}  c\\\\d\n")),
            ("caf\u{e9}".as_bytes(), format!("{root}  caf\u{e9}\n")),
        ] {
            let line = b3sum_line(path, ROOT).unwrap();
            assert_eq!(line, wanted);
            assert_eq!(parse(line.as_bytes()).unwrap()[path], known(None));
        }
        assert_eq!(b3sum_line(b"caf\xe9", ROOT), None);
    }

    #[test]
    fn json_lines_lose_nothing() {
        let outcome = Outcome::Would(Changes::NONE);
        let entry = itemize::tests::entry(b"caf\xe9", EntryKind::File, outcome);
        let line = json_line(&ManifestLine::new(&entry, &entry.path, ROOT)).unwrap();
        let wanted = format!(
            "{{\"path\":\"caf\\\\xe9\",\"path_bytes\":\"636166e9\",\"size\":5,\
             \"mtime\":\"-1.500000000\",\"root\":\"{ROOT}\"}}\n"
        );
        assert_eq!(line, wanted);
        assert_eq!(parse(line.as_bytes()).unwrap()[&b"caf\xe9"[..]], known(Some(5)));
    }

    #[test]
    fn a_report_is_a_manifest_of_what_it_has_hashes_of() {
        let text = format!(
            "{{\"job\":{{\"version\":\"1\",\"directory\":\"/\",\"arguments\":[]}}}}\n\
             {{\"path\":\"a\",\"size\":7,\"root\":\"{ROOT}\",\"outcome\":\"done\"}}\n\
             {{\"path\":\"b\",\"size\":7,\"root\":null,\"outcome\":\"skipped\"}}\n\
             {{\"end\":{{\"complete\":true}}}}\n"
        );
        let manifest = parse(text.as_bytes()).unwrap();
        assert_eq!((manifest.len(), manifest[&b"a"[..]]), (1, known(Some(7))));
    }

    #[test]
    fn what_is_no_manifest_is_found_out() {
        let line = format!("{ROOT}  a");
        assert!(is_manifest(line.as_bytes()) && is_manifest(format!("\n{line}\r\n").as_bytes()));
        for wrong in ["", "hello", "{}", "{\"path\":\"a\"}", &line[1..], &line[..66], "\\"] {
            assert!(!is_manifest(wrong.as_bytes()), "{wrong}");
        }
        let text = format!("{line}\n\nhello\n");
        assert!(matches!(parse(text.as_bytes()), Err(BadManifest::Foreign(3))));
        assert!(parse(format!("\\{ROOT}  a\\x").as_bytes()).is_err());
        let endless = std::io::BufReader::new(std::io::repeat(b'x'));
        assert!(matches!(parse(endless), Err(BadManifest::Line(LineError::TooLong { number: 1 }))));
    }

    #[test]
    fn the_beginning_of_a_report_is_enough() {
        assert!(is_manifest(b"{\"job\":{\"version\":\"0.1.0\",\"arguments\":[\"..."));
        assert!(!is_manifest(b"{\"jab\":{\"version"));
    }

    #[test]
    fn paths_are_the_same_however_they_are_written() {
        for written in ["a/b", "./a/b", "a//b", "././a/./b"] {
            let manifest = parse(format!("{ROOT}  {written}\n").as_bytes()).unwrap();
            assert!(manifest.contains_key(&b"a/b"[..]), "{written}");
        }
        let manifest = parse(format!("{ROOT}  /a//b\n").as_bytes()).unwrap();
        assert!(manifest.contains_key(&b"/a/b"[..]));
    }
}
