//! Which of the things at a source are meant.
//!
//! In: the options, and the paths that were asked for, if any. Out: decisions about sizes, depths
//! and names, and the paths in an order in which every directory comes before what is in it.

use std::io;

use super::filter::{FilterOptions, Rules};
use super::{Operation, StorageError};
use crate::protocol::manifest::Name;
use crate::protocol::message::Options;

/// What is meant.
#[derive(Debug)]
pub struct Selection {
    /// `None` if nothing is filtered.
    pub rules: Option<Rules>,
    /// `None` if everything is meant.
    pub paths: Option<Paths>,
    /// Of a directory that was asked for, all of it.
    pub whole_directories: bool,
    pub one_file_system: bool,
    min_size: Option<u64>,
    max_size: Option<u64>,
    max_depth: Option<u32>,
}

impl Selection {
    /// # Errors
    ///
    /// If a rule of the filters has no meaning.
    pub fn new(options: &Options, paths: Option<Vec<Vec<u8>>>) -> Result<Self, StorageError> {
        let select = &options.select;
        let filters = FilterOptions {
            gitignore: select.gitignore,
            delete_excluded: options.delete.is_some_and(|delete| delete.excluded),
        };
        let rules = Rules::new(&select.filters, filters).map_err(|error| {
            StorageError::io(Operation::Read, b"the filter rules")(io::Error::other(error))
        })?;
        Ok(Self {
            rules: Some(rules).filter(|rules| !rules.is_empty()),
            paths: paths.map(Paths::new),
            whole_directories: select.whole_directories,
            one_file_system: select.one_file_system,
            min_size: select.min_size,
            max_size: select.max_size,
            max_depth: select.max_depth,
        })
    }

    /// Whether a file of this size, in bytes, is meant.
    pub fn takes_size(&self, size: u64) -> bool {
        self.min_size.is_none_or(|min| size >= min) && self.max_size.is_none_or(|max| size <= max)
    }

    /// Whether what is in a directory is meant that is so many levels below ROOT.
    pub fn enters(&self, depth: u32) -> bool {
        self.max_depth.is_none_or(|max| depth < max)
    }

    /// Whether only paths that were asked for are looked at, by their names.
    pub fn is_by_name(&self) -> bool {
        self.paths.as_ref().is_some_and(|paths| !(paths.has_top && self.whole_directories))
    }

    /// Whether the directory itself is meant whose contents are the source.
    pub fn has_top(&self) -> bool {
        self.paths.as_ref().is_none_or(|paths| paths.has_top)
    }
}

/// Paths from the top of the transfer, as [`Source::path`] gives them.
///
/// [`Source::path`]: crate::storage::Source::path
#[derive(Debug, Default)]
pub struct Paths {
    /// In the order of their components, each once.
    pub sorted: Vec<Vec<u8>>,
    /// What cannot be below the top.
    pub refused: Vec<Vec<u8>>,
    /// Whether the top itself is among them.
    has_top: bool,
}

impl Paths {
    fn new(paths: Vec<Vec<u8>>) -> Self {
        let mut answer = Self::default();
        for path in paths {
            match normal(&path) {
                None => answer.refused.push(path),
                Some(normal) if normal.is_empty() => answer.has_top = true,
                Some(normal) => answer.sorted.push(normal),
            }
        }
        answer.sorted.sort_unstable_by(|a, b| components(a).cmp(components(b)));
        answer.sorted.dedup();
        answer
    }
}

/// The names that a path consists of.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

/// A path without the slashes and dots that mean nothing; `None` if it is not below the top.
fn normal(path: &[u8]) -> Option<Vec<u8>> {
    let parts = components(path).filter(|part| !matches!(*part, b"" | b"."));
    let names = parts.map(|part| Name::new(part).ok().map(|_| part));
    names.collect::<Option<Vec<_>>>().map(|names| names.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart_by_what_they_mean() {
        let paths =
            ["b", "a/x", "./a//x/", "/a", "a-b", "a/../b", "..", "", ".", "b/.", "a/x\0", "a.b/c"];
        let paths = Paths::new(paths.iter().map(|path| path.as_bytes().to_vec()).collect());
        let sorted: Vec<_> =
            paths.sorted.iter().map(|path| path.escape_ascii().to_string()).collect();
        assert_eq!(sorted, ["a", "a/x", "a-b", "a.b/c", "b"]);
        assert_eq!(paths.refused, [&b"a/../b"[..], b"..", b"a/x\0"]);
        assert!(paths.has_top);
        assert!(!Paths::new(vec![b"a".to_vec()]).has_top);
    }
}
