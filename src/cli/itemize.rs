//! What changed about an entry: in the eleven letters of `rsync -i`, and as words for programs.

use std::fmt::Write as _;

use crate::engine::event::{EntryKind, EntryReport};
use crate::protocol::manifest::{Escaped, is_obeyed};
use crate::protocol::message::{Changes, Outcome, Special};

/// What the letters depend on beside the entry.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Itemizer {
    /// 1 shows what changed, 2 unchanged entries too.
    pub level: u8,
    /// Files are sent to another host: `<` instead of `>`.
    pub is_sent: bool,
    /// Modification times are not kept: `T` instead of `t`.
    pub loses_times: bool,
}

impl Itemizer {
    /// The line for an entry, if it is to be shown; safe for a terminal.
    pub fn line(self, entry: &EntryReport) -> Option<String> {
        let changes = match &entry.outcome {
            Outcome::Done(changes) | Outcome::Would(changes) => *changes,
            Outcome::Skipped | Outcome::Left => Changes::NONE,
            Outcome::Failed(_) => return None,
        };
        // A file that --link-dest has found unchanged is no news, as for rsync.
        let is_found = entry.kind == EntryKind::File && changes.has(Changes::LINKED);
        if entry.kind == EntryKind::Other || self.level < 2 && (changes.is_empty() || is_found) {
            return None;
        }
        let letters = self.letters(entry.kind, changes);
        let path = named(&entry.path, entry.kind == EntryKind::Directory);
        let arrow = if entry.kind == EntryKind::HardLink { "=>" } else { "->" };
        let target = entry.target.as_ref().map(|target| format!(" {arrow} {}", octal(target)));
        Some(format!("{letters} {path}{}", target.unwrap_or_default()))
    }

    /// `YXcstpoguax`.
    fn letters(self, kind: EntryKind, changes: Changes) -> String {
        let is_file = kind == EntryKind::File;
        let action = if changes.has(Changes::LINKED) {
            'h'
        } else if is_file && changes.has(Changes::CONTENT) {
            if self.is_sent { '<' } else { '>' }
        } else if changes.has(Changes::CREATED_WITH_CONTENT) {
            'c'
        } else {
            '.'
        };
        let kind = match kind {
            EntryKind::Directory => 'd',
            EntryKind::Symlink => 'L',
            EntryKind::Special(Special::Fifo | Special::Socket) => 'S',
            EntryKind::Special(Special::CharacterDevice { .. } | Special::BlockDevice { .. }) => {
                'D'
            }
            EntryKind::File | EntryKind::HardLink | EntryKind::Other => 'f',
        };
        let is_found = is_file && action == 'h';
        let attributes = if changes.has(Changes::CREATED) && !is_found {
            "+".repeat(9)
        } else {
            self.attributes(is_file, action, changes)
        };
        format!("{action}{kind}{attributes}")
    }

    /// What comes after the first two letters for something that was there before.
    fn attributes(self, is_file: bool, action: char, changes: Changes) -> String {
        let is_replaced = changes.has(Changes::CONTENT);
        let is_changed = if is_file {
            changes.has(Changes::CHECKSUM)
        } else {
            is_replaced && !changes.has(Changes::LINKED)
        };
        let is_later = changes.has(Changes::TIME) && !self.loses_times;
        let time = match (is_later, self.loses_times && is_replaced) {
            (true, _) => 't',
            (_, true) => 'T',
            (false, false) => '.',
        };
        let letter = |change, letter| if changes.has(change) { letter } else { '.' };
        let letters = [
            if is_changed { 'c' } else { '.' },
            letter(Changes::SIZE, 's'),
            time,
            letter(Changes::PERMISSIONS, 'p'),
            letter(Changes::OWNER, 'o'),
            letter(Changes::GROUP, 'g'),
            '.',
            letter(Changes::ACL, 'a'),
            letter(Changes::ATTRIBUTES, 'x'),
        ];
        let is_silent = matches!(action, '.' | 'h' | 'c') && letters.iter().all(|it| *it == '.');
        if is_silent { " ".repeat(9) } else { letters.iter().collect() }
    }
}

/// The line for something that was removed.
pub fn deletion(path: &[u8], is_directory: bool) -> String {
    format!("*deleting   {}", named(path, is_directory))
}

/// A path as people read it: a slash behind a directory, and the source's own directory is `./`.
pub fn shown(path: &[u8], is_directory: bool) -> String {
    with_slash(Escaped(path).to_string(), is_directory)
}

/// The same as rsync writes it.
fn named(path: &[u8], is_directory: bool) -> String {
    with_slash(octal(path), is_directory)
}

fn with_slash(path: String, is_directory: bool) -> String {
    match (path.as_str(), is_directory) {
        ("" | ".", _) => "./".into(),
        (_, true) => path + "/",
        (_, false) => path,
    }
}

/// A name in rsync's manner: `\#012` for what is no text, and for a backslash that would look like
/// one of those. What a terminal obeys is written so too, where rsync knows only of control
/// characters below the blank.
fn octal(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    let escape = |out: &mut String, byte: u8| _ = write!(out, "\\#{byte:03o}");
    let mut at = 0;
    for part in path.utf8_chunks() {
        for c in part.valid().chars() {
            let rest = path.get(at + c.len_utf8()..).unwrap_or_default();
            let is_lookalike = c == '\\'
                && matches!(rest, [b'#', digits @ ..]
                    if digits.iter().take(3).filter(|it| it.is_ascii_digit()).count() == 3);
            if is_lookalike || c != '\t' && is_obeyed(c) {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| escape(&mut out, byte));
            } else {
                out.push(c);
            }
            at += c.len_utf8();
        }
        part.invalid().iter().for_each(|byte| escape(&mut out, *byte));
        at += part.invalid().len();
    }
    out
}

/// The changes as words.
pub fn words(changes: Changes) -> Vec<&'static str> {
    const WORDS: [(Changes, &str); 12] = [
        (Changes::CREATED, "created"),
        (Changes::TYPE, "type"),
        (Changes::CONTENT, "content"),
        (Changes::CHECKSUM, "checksum"),
        (Changes::SIZE, "size"),
        (Changes::TIME, "time"),
        (Changes::PERMISSIONS, "permissions"),
        (Changes::OWNER, "owner"),
        (Changes::GROUP, "group"),
        (Changes::ACL, "acl"),
        (Changes::ATTRIBUTES, "attributes"),
        (Changes::LINKED, "linked"),
    ];
    WORDS.iter().filter(|(change, _)| changes.has(*change)).map(|(_, word)| *word).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::protocol::manifest::Timestamp;
    use crate::protocol::message::{Failure, FailureCode, Metadata, Mode};

    /// An entry of five bytes.
    pub fn entry(path: &[u8], kind: EntryKind, outcome: Outcome) -> EntryReport {
        let mtime = Timestamp::new(-2, 500_000_000).unwrap();
        let metadata = Metadata { mode: Mode::from_raw(0o644), mtime, ..Metadata::default() };
        let size = if kind == EntryKind::File { 5 } else { 0 };
        let (path, is_linked) = (path.into(), false);
        EntryReport { path, kind, size, metadata, target: None, is_linked, root: None, outcome }
    }

    fn all(changes: &[Changes]) -> Changes {
        changes.iter().fold(Changes::NONE, |all, change| all.with(*change))
    }

    /// The lines are rsync's own, from runs with the same changes.
    #[test]
    fn lines_are_those_of_rsync() {
        use Changes as C;
        use EntryKind as K;
        let fifo = K::Special(Special::Fifo);
        let device = K::Special(Special::BlockDevice { major: 8, minor: 1 });
        let cases: &[(EntryKind, &[Changes], &str)] = &[
            (K::File, &[C::CREATED, C::CONTENT], ">f+++++++++ x"),
            (K::Directory, &[C::CREATED], "cd+++++++++ x/"),
            (K::Symlink, &[C::CREATED, C::CONTENT], "cL+++++++++ x"),
            (fifo, &[C::CREATED], "cS+++++++++ x"),
            (device, &[C::CREATED, C::CONTENT], "cD+++++++++ x"),
            (K::HardLink, &[C::CREATED, C::LINKED], "hf+++++++++ x"),
            (K::HardLink, &[C::LINKED], "hf          x"),
            (K::HardLink, &[C::LINKED, C::TIME], "hf..t...... x"),
            (K::File, &[C::CONTENT, C::SIZE, C::TIME], ">f.st...... x"),
            (K::File, &[C::CONTENT, C::CHECKSUM, C::TIME], ">fc.t...... x"),
            (K::File, &[C::CONTENT], ">f......... x"),
            (K::File, &[C::PERMISSIONS, C::OWNER, C::GROUP], ".f...pog... x"),
            (K::File, &[C::ACL, C::ATTRIBUTES], ".f.......ax x"),
            (K::Directory, &[C::TIME], ".d..t...... x/"),
            (K::Symlink, &[C::CONTENT, C::TIME], "cLc.t...... x"),
            (device, &[C::CONTENT], "cDc........ x"),
        ];
        let itemizer = Itemizer { level: 1, ..Itemizer::default() };
        for (kind, changes, wanted) in cases {
            for outcome in [Outcome::Done(all(changes)), Outcome::Would(all(changes))] {
                let line = itemizer.line(&entry(b"x", *kind, outcome));
                assert_eq!(line.as_deref(), Some(*wanted));
            }
        }
        let link = EntryReport {
            target: Some(b"a\nb".into()),
            ..entry(b"x", K::Symlink, Outcome::Done(C::CREATED_WITH_CONTENT))
        };
        assert_eq!(itemizer.line(&link).unwrap(), "cL+++++++++ x -> a\\#012b");
        let name = EntryReport {
            target: Some(b"a".into()),
            ..entry(b"x", K::HardLink, Outcome::Done(C::CREATED.with(C::LINKED)))
        };
        assert_eq!(itemizer.line(&name).unwrap(), "hf+++++++++ x => a");
        let root = entry(b"", K::Directory, Outcome::Done(C::TIME));
        assert_eq!(itemizer.line(&root).unwrap(), ".d..t...... ./");
        assert_eq!(deletion(b"d", true), "*deleting   d/");
        assert_eq!(deletion(b"f", false), "*deleting   f");
    }

    #[test]
    fn the_direction_and_lost_times_have_their_letters() {
        let itemizer = Itemizer { level: 1, is_sent: true, loses_times: true };
        let line = |kind, changes| itemizer.line(&entry(b"x", kind, Outcome::Done(changes)));
        let content = Changes::CONTENT;
        assert_eq!(line(EntryKind::File, content).unwrap(), "<f..T...... x");
        assert_eq!(line(EntryKind::Symlink, content).unwrap(), "cLc.T...... x");
        assert_eq!(line(EntryKind::File, Changes::PERMISSIONS).unwrap(), ".f...p..... x");
    }

    #[test]
    fn unchanged_entries_are_shown_when_asked_for_twice() {
        let line = |level, kind, outcome| {
            Itemizer { level, ..Itemizer::default() }.line(&entry(b"x", kind, outcome))
        };
        let found = || Outcome::Done(Changes::LINKED.with(Changes::CREATED));
        for outcome in [Outcome::Skipped, Outcome::Left, Outcome::Done(Changes::NONE), found()] {
            assert_eq!(line(1, EntryKind::File, outcome), None);
        }
        assert_eq!(line(2, EntryKind::File, Outcome::Skipped).unwrap(), ".f          x");
        assert_eq!(line(2, EntryKind::Directory, Outcome::Skipped).unwrap(), ".d          x/");
        assert_eq!(line(2, EntryKind::File, found()).unwrap(), "hf          x");
        assert_eq!(line(2, EntryKind::Other, Outcome::Left), None);
        let failed = Outcome::Failed(Failure::new(FailureCode::Io, "no"));
        assert_eq!(line(2, EntryKind::File, failed), None);
    }

    /// What rsync 3.5 itself prints for these names where the locale is C.UTF-8; of the last ones it
    /// escapes nothing.
    #[test]
    fn names_are_escaped_as_rsync_does() {
        for (name, wanted) in [
            (&b"new\nline"[..], "new\\#012line"),
            (b"back\\#012", "back\\#134#012"),
            (b"back\\x\\#01", "back\\x\\#01"),
            (b"caf\xe9", "caf\\#351"),
            ("caf\u{e9}".as_bytes(), "caf\u{e9}"),
            (b"esc\x1b", "esc\\#033"),
            (b"a\tb c", "a\tb c"),
            (b"del\x7f", "del\\#177"),
            ("n\u{85}".as_bytes(), "n\\#302\\#205"),
        ] {
            assert_eq!(octal(name), wanted);
        }
        let outcome = Outcome::Done(Changes::CREATED_WITH_CONTENT);
        let link = EntryReport {
            target: Some(b"t\n".into()),
            ..entry(b"l\n", EntryKind::Symlink, outcome)
        };
        let itemizer = Itemizer { level: 1, ..Itemizer::default() };
        assert_eq!(itemizer.line(&link).unwrap(), "cL+++++++++ l\\#012 -> t\\#012");
        assert_eq!(deletion(b"g\n", true), "*deleting   g\\#012/");
    }

    #[test]
    fn programs_get_words() {
        assert_eq!(words(Changes::NONE), [""; 0]);
        let changes = all(&[Changes::TIME, Changes::CONTENT, Changes::SIZE]);
        assert_eq!(words(changes), ["content", "size", "time"]);
    }
}
