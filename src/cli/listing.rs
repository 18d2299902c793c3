//! `ls`: what is at a location.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Serialize;

use super::progress::{Tally, Viewer};
use super::report::{json_line, json_path, kind};
use super::screen::Screen;
use super::text::{date, timestamp};
use crate::engine::event::{EntryKind, EntryReport};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Outcome, Special};

/// How entries are listed.
#[derive(Clone, Debug, Default)]
pub struct Style {
    pub long: bool,
    /// Lines end with a NUL byte.
    pub zero: bool,
    /// Names are escaped, as a terminal would obey some of them.
    pub escapes: bool,
    /// In the order of their names instead of the one in which they are found.
    pub sorted: bool,
    /// What owners and groups are called, where that is known.
    pub names: Names,
}

/// Prints entries.
#[derive(Debug)]
pub struct Listing {
    style: Style,
    /// As it was typed.
    location: Vec<u8>,
    prefix: Prefix,
    /// What waits to be sorted.
    held: Vec<EntryReport>,
}

impl Listing {
    pub fn new(style: Style, location: Vec<u8>, prefix: Prefix) -> Self {
        Self { style, location, prefix, held: Vec::new() }
    }

    fn print(&self, entry: &EntryReport, screen: &mut Screen) {
        let Some(path) = self.prefix.strip(entry) else { return };
        if screen.display.json {
            if let Ok(line) = json_line(&ListLine::new(entry, path, &self.location)) {
                screen.out_bytes(line.as_bytes());
            }
            return;
        }
        screen.out_bytes(&self.style.line(entry, path));
    }
}

impl Viewer for Listing {
    fn entry(&mut self, entry: &EntryReport, screen: &mut Screen, _tally: &mut Tally) {
        // What failed has no entry to list; the error was shown.
        if matches!(entry.outcome, Outcome::Failed(_)) || entry.kind == EntryKind::Other {
            return;
        }
        if self.style.sorted {
            self.held.push(entry.clone());
        } else {
            self.print(entry, screen);
        }
    }

    fn end(&mut self, _complete: bool, screen: &mut Screen, _tally: &mut Tally) {
        let mut held = std::mem::take(&mut self.held);
        held.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        for entry in &held {
            self.print(entry, screen);
        }
    }
}

/// What paths begin with, where a location had to be asked for by its name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Prefix(pub Option<Vec<u8>>);

impl Prefix {
    /// The path within the location; `None` for the directory that is the location itself.
    pub fn strip<'a>(&self, entry: &'a EntryReport) -> Option<&'a [u8]> {
        let path = &entry.path[..];
        let Some(name) = &self.0 else { return Some(path) };
        match path.strip_prefix(&name[..]) {
            Some(b"") if entry.kind == EntryKind::Directory => None,
            Some([b'/', rest @ ..]) => Some(rest),
            Some(_) | None => Some(path),
        }
    }
}

impl Style {
    fn line(&self, entry: &EntryReport, path: &[u8]) -> Vec<u8> {
        let mut line = Vec::new();
        if self.long {
            line.extend(self.columns(entry).into_bytes());
        }
        line.extend_from_slice(&self.name(path));
        if let Some(target) = entry.target.as_ref().filter(|_| self.long) {
            line.extend_from_slice(b" -> ");
            line.extend_from_slice(&self.name(target));
        }
        line.push(if self.zero { 0 } else { b'\n' });
        line
    }

    fn name<'a>(&self, name: &'a [u8]) -> Cow<'a, [u8]> {
        if self.escapes && !self.zero {
            Escaped(name).to_string().into_bytes().into()
        } else {
            name.into()
        }
    }

    /// What stands before the name, with a space behind.
    fn columns(&self, entry: &EntryReport) -> String {
        let metadata = &entry.metadata;
        let size = match entry.kind {
            EntryKind::Special(
                Special::CharacterDevice { major, minor } | Special::BlockDevice { major, minor },
            ) => format!("{major}, {minor}"),
            _ => entry.size.to_string(),
        };
        let owner = Names::of(&self.names.users, metadata.owner);
        let group = Names::of(&self.names.groups, metadata.group);
        let (mode, time) = (mode(entry.kind, metadata.mode.bits()), date(metadata.mtime));
        format!("{mode} {owner:<8} {group:<8} {size:>12} {time} ")
    }
}

/// `drwxr-xr-x`, as `ls -l` has it.
fn mode(kind: EntryKind, bits: u32) -> String {
    let kind = match kind {
        EntryKind::Directory => 'd',
        EntryKind::Symlink => 'l',
        EntryKind::Special(Special::Fifo) => 'p',
        EntryKind::Special(Special::Socket) => 's',
        EntryKind::Special(Special::CharacterDevice { .. }) => 'c',
        EntryKind::Special(Special::BlockDevice { .. }) => 'b',
        EntryKind::File | EntryKind::HardLink | EntryKind::Other => '-',
    };
    let classes = [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')];
    let classes = classes.map(|(shift, special, letter)| {
        let bit = |bit: u32, letter| if bits >> shift & bit != 0 { letter } else { '-' };
        let execute = match (bits & special != 0, bits >> shift & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, _) => bit(1, 'x'),
        };
        [bit(4, 'r'), bit(2, 'w'), execute]
    });
    std::iter::once(kind).chain(classes.into_iter().flatten()).collect()
}

/// What numbers of users and groups are called on this machine.
#[derive(Clone, Debug, Default)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Those of the files below `/etc`; others keep their numbers.
    pub fn of_this_machine() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self { users: parse(&read("/etc/passwd")), groups: parse(&read("/etc/group")) }
    }

    fn of(names: &HashMap<u32, String>, id: u32) -> Cow<'_, str> {
        match names.get(&id) {
            Some(name) => name.into(),
            None => id.to_string().into(),
        }
    }
}

/// The first and the third field of each line; of two with the same number, the first.
fn parse(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(id))) = (fields.next(), fields.nth(1).map(str::parse)) {
            names.entry(id).or_insert_with(|| super::text::shown(name));
        }
    }
    names
}

/// One entry, as programs read it.
#[derive(Debug, Serialize)]
struct ListLine<'a> {
    location: Cow<'a, str>,
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    kind: &'static str,
    size: u64,
    mtime: String,
    mode: String,
    owner: u32,
    group: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
}

impl<'a> ListLine<'a> {
    fn new(entry: &'a EntryReport, path: &'a [u8], location: &'a [u8]) -> Self {
        let (path, path_bytes) = json_path(path);
        let target = entry.target.as_deref().map(json_path);
        let (target, target_bytes) = target.map_or((None, None), |(it, bytes)| (Some(it), bytes));
        Self {
            location: json_path(location).0,
            path,
            path_bytes,
            kind: kind(entry.kind),
            size: entry.size,
            mtime: timestamp(entry.metadata.mtime),
            mode: format!("{:04o}", entry.metadata.mode.bits()),
            owner: entry.metadata.owner,
            group: entry.metadata.group,
            target,
            target_bytes,
            device: match entry.kind {
                EntryKind::Special(
                    Special::CharacterDevice { major, minor }
                    | Special::BlockDevice { major, minor },
                ) => Some((major, minor)),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::itemize;
    use crate::protocol::message::Changes;

    fn entry(path: &[u8], kind: EntryKind) -> EntryReport {
        itemize::tests::entry(path, kind, Outcome::Would(Changes::NONE))
    }

    #[test]
    fn modes_are_those_of_ls() {
        let device = EntryKind::Special(Special::CharacterDevice { major: 1, minor: 3 });
        for (kind, bits, wanted) in [
            (EntryKind::File, 0o644, "-rw-r--r--"),
            (EntryKind::File, 0o4755, "-rwsr-xr-x"),
            (EntryKind::File, 0o6644, "-rwSr-Sr--"),
            (EntryKind::Directory, 0o1777, "drwxrwxrwt"),
            (EntryKind::Directory, 0o1000, "d--------T"),
            (EntryKind::Symlink, 0o777, "lrwxrwxrwx"),
            (device, 0o600, "crw-------"),
        ] {
            assert_eq!(mode(kind, bits), wanted);
        }
    }

    #[test]
    fn names_are_escaped_for_terminals_only() {
        let line = |style: Style| style.line(&entry(b"a\n\xff", EntryKind::File), b"a\n\xff");
        assert_eq!(line(Style::default()), b"a\n\xff\n");
        assert_eq!(line(Style { escapes: true, ..Style::default() }), b"a\\n\\xff\n");
        assert_eq!(line(Style { escapes: true, zero: true, ..Style::default() }), b"a\n\xff\0");
    }

    #[test]
    fn long_lines_have_columns() {
        let names = Names {
            users: parse("root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\nbad\n"),
            groups: HashMap::new(),
        };
        let style = Style { long: true, names, ..Style::default() };
        let link = EntryReport { target: Some(b"t".into()), ..entry(b"l", EntryKind::Symlink) };
        let line = String::from_utf8(style.line(&link, b"l")).unwrap();
        let wanted = "lrw-r--r-- root     0                   0 \
                      1969-12-31T23:59:58.500000000Z l -> t\n";
        assert_eq!(line, wanted);
        let device = EntryKind::Special(Special::BlockDevice { major: 8, minor: 1 });
        let line = String::from_utf8(style.line(&entry(b"d", device), b"d")).unwrap();
        assert!(line.starts_with("brw-r--r-- root     0                8, 1 "), "{line}");
    }

    #[test]
    fn a_location_that_was_asked_for_by_its_name_is_taken_off() {
        let strip = |path: &[u8], kind| {
            let prefix = Prefix(Some(b"dir".into()));
            prefix.strip(&entry(path, kind)).map(<[u8]>::to_vec)
        };
        assert_eq!(strip(b"dir", EntryKind::Directory), None);
        assert_eq!(strip(b"dir/a/b", EntryKind::File), Some(b"a/b".into()));
        assert_eq!(strip(b"dir", EntryKind::File), Some(b"dir".into()));
        assert_eq!(strip(b"dirt", EntryKind::File), Some(b"dirt".into()));
        assert_eq!(Prefix(None).strip(&entry(b"dir", EntryKind::Directory)).unwrap(), b"dir");
    }

    #[test]
    fn programs_read_everything() {
        let link = EntryReport { target: Some(b"\xff".into()), ..entry(b"l", EntryKind::Symlink) };
        let line = serde_json::to_value(ListLine::new(&link, b"l", b"h:d")).unwrap();
        let wanted = serde_json::json!({
            "location": "h:d", "path": "l", "kind": "symlink", "size": 0, "mode": "0644",
            "mtime": "-1.500000000", "owner": 0, "group": 0, "target": "\\xff", "target_bytes": "ff"
        });
        assert_eq!(line, wanted);
    }
}
