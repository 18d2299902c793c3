//! Which entries take part: rsync's filter rules, and `.gitignore` files.
//!
//! In: rules as text, the content of per-directory files (which the caller reads), and paths. Out:
//! whether an entry is hidden from the transfer, or protected from deletion. No I/O happens here.
//!
//! [`expand`], [`option_rule`] and [`parse_file`] turn what the command line says into rules;
//! [`Rules`] compiles them; a [`Scope`] is what is in force in one directory, and decides.
//!
//! | File | What it holds |
//! | --- | --- |
//! | `text.rs` | rules from options and files |
//! | `rule.rs` | the grammar of one rule |
//! | `pattern.rs` | where in a path a pattern has to match |
//! | `wildcard.rs` | `*`, `**`, `?` and `[...]` |
//! | `scope.rs` | [`Scope`]: deciding, and per-directory files |
//! | `gitignore.rs` | `.gitignore` files |
//! | `chain.rs` | what directories inherit |
//! | `error.rs` | [`FilterError`] |
//!
//! # Rules
//!
//! The syntax and the meaning are those of rsync's `--filter`. The first rule that matches decides;
//! where none does, `.gitignore` files do if they are asked for; else the entry takes part. What is
//! in a directory that does not take part is not asked for.
//!
//! Different from rsync, on purpose:
//!
//! - A per-directory file may not merge a file (`.`), as that would let a tree name files outside of
//!   it, and has to have a name without slashes: `: /.rsync-filter` is refused, and parents of the
//!   transfer's root are not searched.
//! - Rules for extended attributes (`x`) and the built-in list of CVS excludes (`-C`) are refused;
//!   `:C` is not.
//! - In a per-directory file the directory's own name is never a pattern, even if it has wildcards.
//! - In a file that is split into words (`w`), `- foo` is one rule, as rsync's manual says.
//! - Per-directory files have lines, even if other files are separated by NUL bytes (`--from0`).
//! - A scope serves both sides, so a per-directory file for one side is read, and has to make sense,
//!   on both.
//! - A rule that is too long is an error and not dropped.
//!
//! # Limits
//!
//! Rules may come from a peer. A rule has at most [`MAX_RULE_LEN`] bytes, a job or a file
//! [`MAX_TEXT_LEN`], and no more than [`MAX_RULES`] rules apply in one directory, with those that it
//! inherits. Comparing takes at most a small multiple of pattern times path.

mod chain;
mod error;
mod gitignore;
mod pattern;
mod rule;
mod scope;
mod text;
mod wildcard;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use error::{Excess, FilterError, Place, Problem};
pub use scope::Scope;
pub use text::{expand, option_rule, parse_file};

use rule::{Format, Merge, Statement};
use scope::{Item, List};

/// The bytes of one rule: what the longest path that Linux takes needs.
pub const MAX_RULE_LEN: usize = 4096;

/// How many rules may be in force in one directory, lines of `.gitignore` files included.
pub const MAX_RULES: usize = 65_536;

/// The bytes of all rules of a job, and of one per-directory file.
pub const MAX_TEXT_LEN: usize = 4 << 20;

/// How many kinds of per-directory files may be looked for in one directory.
pub const MAX_MERGES: usize = 32;

/// How deep files may merge other files.
pub const MAX_NESTING: usize = 32;

/// What becomes of an entry that matches, where a pattern does not say it itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Prefix {
    Exclude,
    Include,
}

/// Whose decision it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Whether an entry is transferred.
    Sender,
    /// Whether an entry may be deleted.
    Receiver,
}

/// What applies to all rules of a job.
#[derive(Clone, Copy, Debug, Default)]
pub struct FilterOptions {
    /// Whether `.gitignore` files decide where no rule does. What they ignore is neither sent nor
    /// deleted. `.git` itself is like any other directory.
    pub gitignore: bool,
    /// Whether what is excluded gets deleted: rules that name no side, and `.gitignore` files, are
    /// then for the sender only.
    pub delete_excluded: bool,
}

/// All rules of a job, compiled. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Rules(Arc<Job>);

#[derive(Debug)]
struct Job {
    items: Vec<Item>,
    /// The per-directory files that the job's own rules name.
    merges: Vec<Arc<Merge>>,
    options: FilterOptions,
}

impl Rules {
    /// Compiles rules in `--filter` syntax, in order, after [`expand`].
    ///
    /// # Errors
    ///
    /// [`FilterError`] for a rule that cannot be understood or is not supported, and for more than
    /// the limits allow.
    pub fn new(texts: &[Vec<u8>], options: FilterOptions) -> Result<Self, FilterError> {
        if texts.len() > MAX_RULES {
            return Err(Excess::Rules.into());
        }
        if texts.iter().map(Vec::len).sum::<usize>() > MAX_TEXT_LEN {
            return Err(Excess::Text.into());
        }
        let mut merges = Vec::new();
        let mut list = List::new(&mut merges, options);
        for text in texts {
            let statement = Statement::parse(text, Format::default());
            let statement = statement.map_err(FilterError::rule(text))?;
            list.push(statement, text)?;
        }
        let items = list.finish().items;
        Ok(Self(Arc::new(Job { items, merges, options })))
    }

    /// Whether everything takes part.
    pub fn is_empty(&self) -> bool {
        self.0.items.is_empty() && !self.0.options.gitignore
    }

    /// Whether files in the tree are read for more rules.
    pub fn reads_files(&self) -> bool {
        !self.0.merges.is_empty() || self.0.options.gitignore
    }

    /// What is in force at the top of a transfer, before per-directory files are read. Rules for
    /// absolute paths (`/`) take the transfer's root for the root of the file system, as rsync does
    /// when it serves a module.
    pub fn root(&self) -> Scope {
        self.root_at(b"")
    }

    /// The same where rules for absolute paths shall see the root's own path. `path` is absolute
    /// and without `.` and `..`.
    pub fn root_at(&self, path: &[u8]) -> Scope {
        Scope::new(Arc::clone(&self.0), path)
    }
}
