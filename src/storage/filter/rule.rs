//! The grammar of one filter rule.
//!
//! In: a rule in the syntax of rsync's `--filter`. Out: a [`Statement`], and the text again.

use super::error::Problem;
use super::wildcard::is_space;
use super::{MAX_RULE_LEN, Prefix};

/// What a rule says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Statement {
    /// Forget the rules before this one.
    Clear,
    /// Decide on what matches.
    Match(Match),
    /// Read rules from a file, or from a file in each directory.
    Merge(Merge),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Match {
    pub action: Prefix,
    /// Applies to what does not match the pattern.
    pub is_negated: bool,
    pub modifiers: Modifiers,
    pub pattern: Vec<u8>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Merge {
    pub per_directory: bool,
    pub name: Vec<u8>,
    /// Whether files of this name are excluded.
    pub excludes_itself: bool,
    /// Whether subdirectories inherit the rules.
    pub is_inherited: bool,
    pub format: Format,
}

/// How a file of rules is read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Format {
    /// The file holds patterns for this action and nothing else.
    pub only: Option<Prefix>,
    pub splits_words: bool,
    /// As CVS reads a `.cvsignore`.
    pub is_cvs: bool,
    /// What every rule in it starts from.
    pub modifiers: Modifiers,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Modifiers {
    /// `/`: matched against the absolute path.
    pub is_absolute: bool,
    /// `p`: does not count in directories that are removed.
    pub is_perishable: bool,
    /// `s`: for the sender. With neither side given a rule is for both.
    pub sender: bool,
    /// `r`: for the receiver.
    pub receiver: bool,
}

impl Statement {
    /// Reads a rule as it stands in a file of this format; the command line is the default one.
    pub fn parse(text: &[u8], format: Format) -> Result<Self, Problem> {
        if text.len() > MAX_RULE_LEN {
            return Err(Problem::TooLong);
        }
        if text.contains(&0) {
            return Err(Problem::Nul);
        }
        if let Some(action) = format.only {
            return Self::of_pattern(text, action, format);
        }
        let (kind, rest) = Kind::parse(text).ok_or(Problem::UnknownKind)?;
        let head = Head::parse(kind, rest, format)?;
        head.into_statement()
    }

    fn of_pattern(text: &[u8], action: Prefix, format: Format) -> Result<Self, Problem> {
        match text {
            b"" => Err(Problem::Incomplete),
            b"!" if format.is_cvs => Ok(Self::Clear),
            _ => Ok(Self::Match(Match {
                action,
                is_negated: false,
                modifiers: format.modifiers,
                pattern: text.to_vec(),
            })),
        }
    }

    /// The rule for the command line, with all that it got from the file where it stood.
    pub fn to_text(&self) -> Vec<u8> {
        match self {
            Self::Clear => b"!".to_vec(),
            Self::Match(rule) => {
                let mut text = vec![rule.action.sign()];
                text.extend(rule.is_negated.then_some(b'!'));
                rule.modifiers.write(&mut text);
                text.push(b' ');
                [text, rule.pattern.clone()].concat()
            }
            Self::Merge(merge) => {
                let mut text = vec![if merge.per_directory { b':' } else { b'.' }];
                merge.write_modifiers(&mut text);
                text.push(b' ');
                [text, merge.name.clone()].concat()
            }
        }
    }
}

impl Merge {
    /// The rule that keeps files of this name out, if it is asked for.
    pub fn exclusion(&self) -> Option<Match> {
        let name = self.name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.excludes_itself.then(|| Match {
            action: Prefix::Exclude,
            is_negated: false,
            modifiers: Modifiers::default(),
            pattern: name.to_vec(),
        })
    }

    fn write_modifiers(&self, text: &mut Vec<u8>) {
        if self.format.is_cvs {
            text.push(b'C');
        } else {
            text.extend(self.format.only.map(Prefix::sign));
            text.extend(self.format.splits_words.then_some(b'w'));
            text.extend((!self.is_inherited).then_some(b'n'));
        }
        text.extend(self.excludes_itself.then_some(b'e'));
        self.format.modifiers.write(text);
    }
}

impl Modifiers {
    fn write(self, text: &mut Vec<u8>) {
        text.extend(self.is_absolute.then_some(b'/'));
        text.extend(self.is_perishable.then_some(b'p'));
        text.extend(self.sender.then_some(b's'));
        text.extend(self.receiver.then_some(b'r'));
    }

    fn has_side(self) -> bool {
        self.sender || self.receiver
    }
}

impl Prefix {
    fn sign(self) -> u8 {
        match self {
            Self::Exclude => b'-',
            Self::Include => b'+',
        }
    }
}

/// What a rule begins with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Match(Prefix),
    /// A rule for one side, whose name says so.
    Sided {
        action: Prefix,
        sender: bool,
    },
    Merge {
        per_directory: bool,
    },
    Clear,
}

const KINDS: &[(&[u8], u8, Kind)] = &[
    (b"exclude", b'-', Kind::Match(Prefix::Exclude)),
    (b"include", b'+', Kind::Match(Prefix::Include)),
    (b"merge", b'.', Kind::Merge { per_directory: false }),
    (b"dir-merge", b':', Kind::Merge { per_directory: true }),
    (b"hide", b'H', Kind::Sided { action: Prefix::Exclude, sender: true }),
    (b"show", b'S', Kind::Sided { action: Prefix::Include, sender: true }),
    (b"protect", b'P', Kind::Sided { action: Prefix::Exclude, sender: false }),
    (b"risk", b'R', Kind::Sided { action: Prefix::Include, sender: false }),
    (b"clear", b'!', Kind::Clear),
];

impl Kind {
    /// Takes the name of the rule off the front, and the comma that may follow it.
    fn parse(text: &[u8]) -> Option<(Self, &[u8])> {
        let ends_word = |rest: &[u8]| {
            rest.first().is_none_or(|byte| is_space(*byte) || matches!(byte, b'_' | b','))
        };
        let (kind, rest) = KINDS.iter().find_map(|(word, sign, kind)| {
            let long = text.strip_prefix(*word).filter(|rest| ends_word(rest));
            let rest = long.or_else(|| text.strip_prefix(&[*sign]))?;
            Some((*kind, rest))
        })?;
        Some((kind, rest.strip_prefix(b",").unwrap_or(rest)))
    }
}

/// A rule while its modifiers are read.
struct Head<'a> {
    kind: Kind,
    is_negated: bool,
    excludes_itself: bool,
    is_inherited: bool,
    format: Format,
    /// The pattern or the name.
    body: &'a [u8],
}

impl<'a> Head<'a> {
    fn parse(kind: Kind, rest: &'a [u8], container: Format) -> Result<Self, Problem> {
        let inherited = container.modifiers;
        let modifiers = Modifiers { sender: false, receiver: false, ..inherited };
        let format = Format { modifiers, ..Format::default() };
        let mut head = Self {
            kind,
            is_negated: false,
            excludes_itself: false,
            is_inherited: true,
            format,
            body: b"",
        };
        if kind == Kind::Clear {
            return if rest.is_empty() { Ok(head) } else { Err(Problem::TrailingCharacters) };
        }
        let end = rest.iter().position(|byte| matches!(byte, b' ' | b'_')).unwrap_or(rest.len());
        let (modifiers, body) = rest.split_at_checked(end).unwrap_or((rest, b""));
        head.body = body.get(1..).unwrap_or_default();
        modifiers.iter().try_for_each(|modifier| head.apply(*modifier))?;
        head.settle_sides(inherited)?;
        Ok(head)
    }

    fn apply(&mut self, modifier: u8) -> Result<(), Problem> {
        let is_merge = matches!(self.kind, Kind::Merge { .. });
        let is_sided = matches!(self.kind, Kind::Sided { .. });
        let is_plain = self.format.only.is_none();
        match modifier {
            b'/' => self.format.modifiers.is_absolute = true,
            b'p' => self.format.modifiers.is_perishable = true,
            b's' if !is_sided => self.format.modifiers.sender = true,
            b'r' if !is_sided => self.format.modifiers.receiver = true,
            b'!' if !is_merge => self.is_negated = true,
            b'-' if is_merge && is_plain => self.format.only = Some(Prefix::Exclude),
            b'+' if is_merge && is_plain => self.format.only = Some(Prefix::Include),
            b'e' if is_merge => self.excludes_itself = true,
            b'n' if is_merge => self.is_inherited = false,
            b'w' if is_merge => self.format.splits_words = true,
            b'C' if is_merge && is_plain => {
                self.format.only = Some(Prefix::Exclude);
                self.format.splits_words = true;
                self.format.is_cvs = true;
                self.is_inherited = false;
            }
            b'C' if !is_merge && !is_sided => return Err(Problem::CvsExcludes),
            b'x' => return Err(Problem::Xattr),
            other => return Err(Problem::Modifier(other)),
        }
        Ok(())
    }

    /// A side may be said by the file, by the name of the rule or by a modifier, in one place only.
    fn settle_sides(&mut self, inherited: Modifiers) -> Result<(), Problem> {
        let modifiers = &mut self.format.modifiers;
        if let Kind::Sided { sender, .. } = self.kind {
            (modifiers.sender, modifiers.receiver) = (sender, !sender);
        }
        if inherited.has_side() {
            if modifiers.has_side() {
                return Err(Problem::SideTwice);
            }
            (modifiers.sender, modifiers.receiver) = (inherited.sender, inherited.receiver);
        }
        Ok(())
    }

    fn into_statement(self) -> Result<Statement, Problem> {
        match self.kind {
            Kind::Clear => Ok(Statement::Clear),
            Kind::Match(action) | Kind::Sided { action, .. } => {
                if self.body.is_empty() {
                    return Err(Problem::Incomplete);
                }
                Ok(Statement::Match(Match {
                    action,
                    is_negated: self.is_negated,
                    modifiers: self.format.modifiers,
                    pattern: self.body.to_vec(),
                }))
            }
            Kind::Merge { per_directory } => {
                let name = match self.body {
                    b"" if self.format.is_cvs => CVS_NAME,
                    b"" => return Err(Problem::Incomplete),
                    name => name,
                };
                Ok(Statement::Merge(Merge {
                    per_directory,
                    name: name.to_vec(),
                    excludes_itself: self.excludes_itself,
                    is_inherited: self.is_inherited,
                    format: self.format,
                }))
            }
        }
    }
}

const CVS_NAME: &[u8] = b".cvsignore";
