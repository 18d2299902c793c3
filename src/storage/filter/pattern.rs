//! Where in a path a pattern has to match.
//!
//! In: a pattern as it stands in a rule, then paths. Out: whether they match. What a path is
//! compared with depends on slashes and `**` in the pattern, as in rsync.

use super::wildcard::{Wildcard, has_wildcards};

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    reach: Reach,
    shape: Shape,
    /// Only directories match.
    is_for_directories: bool,
    /// Ends with `***`, so that `dir/***` matches the directory too.
    ends_with_three: bool,
}

/// Which part of the path the pattern is compared with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reach {
    /// The last component: the pattern has no slash and no `**`.
    Name,
    /// All of it, from the anchor: the pattern begins with a slash.
    Anchored,
    /// All of it, with a slash before: the pattern begins with `**`, and `**/a` matches `a`.
    Slashed,
    /// So many components at the end, as many as the pattern has.
    Tail(usize),
    /// Any number of components at the end: the pattern has a `**` further on.
    AnyTail,
}

#[derive(Clone, Debug)]
enum Shape {
    Literal(Box<[u8]>),
    Wild(Wildcard),
}

impl Pattern {
    pub fn new(text: &[u8]) -> Self {
        let stripped = text.strip_suffix(b"/").filter(|rest| !rest.is_empty());
        let pattern = stripped.unwrap_or(text);
        let is_deep = pattern.windows(2).any(|pair| pair == b"**");
        let components = pattern.split(|byte| *byte == b'/').count();
        let reach = match (pattern.first(), is_deep, components) {
            (Some(b'/'), _, _) => Reach::Anchored,
            (_, true, _) if pattern.starts_with(b"**") => Reach::Slashed,
            (_, true, _) => Reach::AnyTail,
            (_, false, 1) => Reach::Name,
            (_, false, components) => Reach::Tail(components),
        };
        let body = pattern.strip_prefix(b"/").unwrap_or(pattern);
        let shape = match reach {
            _ if !has_wildcards(pattern) => Shape::Literal(body.into()),
            Reach::AnyTail => Shape::Wild(Wildcard::after_any_slash(body)),
            Reach::Name | Reach::Anchored | Reach::Slashed | Reach::Tail(_) => {
                Shape::Wild(Wildcard::new(body))
            }
        };
        let ends_with_three = pattern.ends_with(b"***");
        Self { reach, shape, is_for_directories: stripped.is_some(), ends_with_three }
    }

    /// Whether a path matches. An anchor stands for the directory `base`, which has to be one of
    /// the path's parents, or empty for the root; `is_absolute` puts the root's own path in front
    /// and anchors there.
    pub fn matches(&self, subject: &Subject, base: &[u8], is_absolute: bool) -> bool {
        if self.is_for_directories && !subject.is_directory {
            return false;
        }
        let text = if is_absolute && subject.path_at > 1 && self.reach != Reach::Name {
            Some(subject.from(0))
        } else {
            self.relative(subject, if is_absolute { b"" } else { base })
        };
        let Some(text) = text else { return false };
        let text = if self.ends_with_three && subject.is_directory {
            text
        } else {
            text.strip_suffix(b"/").unwrap_or(text)
        };
        self.matches_text(text)
    }

    fn relative<'a>(&self, subject: &'a Subject, base: &[u8]) -> Option<&'a [u8]> {
        match self.reach {
            Reach::Name => Some(subject.from(subject.name_at)),
            Reach::Slashed => Some(subject.from(subject.path_at.saturating_sub(1))),
            Reach::Tail(_) | Reach::AnyTail => Some(subject.from(subject.path_at)),
            Reach::Anchored if base.is_empty() => Some(subject.from(subject.path_at)),
            Reach::Anchored => subject.from(subject.path_at).strip_prefix(base)?.strip_prefix(b"/"),
        }
    }

    fn matches_text(&self, text: &[u8]) -> bool {
        match (&self.shape, self.reach) {
            (Shape::Literal(literal), Reach::Tail(_)) => {
                let before = text.strip_suffix(&**literal);
                before.is_some_and(|before| before.is_empty() || before.ends_with(b"/"))
            }
            (Shape::Literal(literal), _) => **literal == *text,
            (Shape::Wild(wildcard), Reach::Tail(count)) => {
                last_components(text, count).is_some_and(|tail| wildcard.matches(tail))
            }
            (Shape::Wild(wildcard), _) => wildcard.matches(text),
        }
    }
}

/// The end of a path, with this many components; `None` if it has fewer.
fn last_components(path: &[u8], count: usize) -> Option<&[u8]> {
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    let mut starts = slashes.map(|(slash, _)| slash + 1).chain([0]);
    path.get(starts.nth(count.checked_sub(1)?)?..)
}

/// What patterns are compared with.
#[derive(Debug)]
pub struct Subject {
    /// The path of the transfer's root, a slash, the path in it, a slash.
    buffer: Vec<u8>,
    /// Where the path in the transfer begins.
    path_at: usize,
    /// Where its last component begins.
    name_at: usize,
    is_directory: bool,
}

impl Subject {
    /// `root` is the absolute path of the transfer's root without the slashes around it.
    pub fn new(root: &[u8], path: &[u8], is_directory: bool) -> Self {
        let buffer = [root, b"/", path, b"/"].concat();
        let path_at = root.len() + 1;
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let name_at = path_at + path.len() - name.len();
        Self { buffer, path_at, name_at, is_directory }
    }

    /// From an offset to the slash at the end.
    fn from(&self, offset: usize) -> &[u8] {
        self.buffer.get(offset..).unwrap_or_default()
    }
}
