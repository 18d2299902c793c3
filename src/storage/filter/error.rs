//! What can be wrong with filter rules.

use std::fmt;
use std::io;

use thiserror::Error;

use super::{MAX_MERGES, MAX_NESTING, MAX_RULE_LEN, MAX_RULES, MAX_TEXT_LEN};
use crate::protocol::manifest::Escaped;

/// Filter rules cannot be used. Nothing is filtered by a part of them.
#[derive(Debug, Error)]
pub enum FilterError {
    /// A rule is wrong, or asks for what is not supported.
    #[error("filter rule `{}`{}: {problem}", Shown(rule), At(place.as_ref()))]
    Rule { rule: Vec<u8>, place: Option<Place>, problem: Problem },
    /// There is more than the limits allow.
    #[error("filter rules{}: {excess}", At(place.as_ref()))]
    Excess { place: Option<Place>, excess: Excess },
    /// A file of rules could not be read.
    #[error("cannot read filter rules from {}: {cause}", Escaped(file))]
    Read { file: Vec<u8>, cause: io::Error },
}

impl FilterError {
    /// For `map_err`: the same error, found in a file.
    pub fn within(file: &[u8], line: usize) -> impl FnOnce(Self) -> Self {
        move |error| {
            let here = || Some(Place { file: file.to_vec(), line });
            match error {
                Self::Rule { rule, place, problem } => {
                    Self::Rule { rule, place: place.or_else(here), problem }
                }
                Self::Excess { place, excess } => {
                    Self::Excess { place: place.or_else(here), excess }
                }
                Self::Read { file, cause } => Self::Read { file, cause },
            }
        }
    }

    /// For `map_err`: a problem of this rule.
    pub(super) fn rule(rule: &[u8]) -> impl FnOnce(Problem) -> Self {
        move |problem| Self::Rule { rule: rule.to_vec(), place: None, problem }
    }
}

impl From<Excess> for FilterError {
    fn from(excess: Excess) -> Self {
        Self::Excess { place: None, excess }
    }
}

/// Where a rule stands. Lines count from 1; in a file of words the line is the one of the word, in
/// one with NUL bytes it is the number of the rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    pub file: Vec<u8>,
    pub line: usize,
}

/// What is wrong with one rule.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Problem {
    #[error("no such kind of rule; write `- PATTERN` to exclude, `+ PATTERN` to include")]
    UnknownKind,
    #[error("modifier `{}` is not possible here", Escaped(&[*.0]))]
    Modifier(u8),
    #[error("a pattern or a file name is missing")]
    Incomplete,
    #[error("nothing may follow a clearing rule")]
    TrailingCharacters,
    #[error("it is longer than {MAX_RULE_LEN} bytes")]
    TooLong,
    #[error("it contains a NUL byte")]
    Nul,
    #[error("the merge rule already says which side its rules are for, so this one may not")]
    SideTwice,
    #[error("the list of CVS excludes is not built in; use `:C` for .cvsignore files")]
    CvsExcludes,
    #[error("rules for extended attributes are not supported")]
    Xattr,
    #[error("a file can be merged only by rules of the command line and of files that they name")]
    Merge,
    #[error(
        "per-directory files are looked for in the directories of the transfer only; give a name without slashes"
    )]
    MergePath,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Excess {
    #[error("more than {MAX_RULES} of them would apply at once")]
    Rules,
    #[error("more than {MAX_TEXT_LEN} bytes in one place")]
    Text,
    #[error("they are too large together")]
    Patterns,
    #[error("more than {MAX_MERGES} kinds of per-directory files")]
    Merges,
    #[error("files merge other files more than {MAX_NESTING} deep")]
    Nesting,
}

struct At<'a>(Option<&'a Place>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(place) => write!(f, " ({}, line {})", Escaped(&place.file), place.line),
            None => Ok(()),
        }
    }
}

/// As much of a rule as a message has room for.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_at_checked(SHOWN_LEN) {
            Some((start, rest)) if !rest.is_empty() => write!(f, "{}...", Escaped(start)),
            Some(_) | None => Escaped(self.0).fmt(f),
        }
    }
}

const SHOWN_LEN: usize = 120;
