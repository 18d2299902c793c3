//! Where a thing is at an endpoint: a path from the endpoint's top.

use std::fmt;

use thiserror::Error;

use crate::protocol::manifest::{Escaped, Name, NameError};

/// Names joined by slashes, none of them empty, `.` or `..`. The endpoint's top is the empty key.
///
/// Listings are as little to be trusted as any peer: what is no key never becomes a path.
#[derive(Clone, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key(Box<[u8]>);

impl Key {
    /// The longest key, in bytes: Linux's `PATH_MAX`.
    pub const MAX_LEN: usize = 4096;

    /// Checks a path that has no slash at its ends.
    ///
    /// # Errors
    ///
    /// If it has a name that cannot be one, or is too long.
    pub fn new(path: &[u8]) -> Result<Self, KeyError> {
        if path.len() > Self::MAX_LEN {
            return Err(KeyError::Length(path.len()));
        }
        if !path.is_empty() {
            for name in path.split(|byte| *byte == b'/') {
                Name::new(name)?;
            }
        }
        Ok(Self(path.into()))
    }

    /// The same for a path that may have slashes at its end, as those of directories are written.
    ///
    /// # Errors
    ///
    /// As of [`Self::new`].
    pub fn of_path(path: &[u8]) -> Result<Self, KeyError> {
        let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
        Self::new(path.get(..end).unwrap_or_default())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the endpoint's top.
    pub fn is_top(&self) -> bool {
        self.0.is_empty()
    }

    /// What is called `name` in this directory.
    ///
    /// # Errors
    ///
    /// If that is too long.
    pub fn child(&self, name: &Name) -> Result<Self, KeyError> {
        self.join(name.as_bytes())
    }

    /// What has this path below this directory.
    ///
    /// # Errors
    ///
    /// As of [`Self::new`].
    pub fn join(&self, path: &[u8]) -> Result<Self, KeyError> {
        if self.is_top() || path.is_empty() {
            return Self::new(if path.is_empty() { &self.0 } else { path });
        }
        Self::new(&[&self.0, &b"/"[..], path].concat())
    }

    /// The directory that this is in; `None` of the top.
    pub fn parent(&self) -> Option<Self> {
        if self.is_top() {
            return None;
        }
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(Self(self.0[..end].into()))
    }

    /// What this is called in its directory; empty of the top.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or(&[])
    }

    /// The path from a directory on; `None` if this is not below it.
    pub fn below(&self, directory: &Self) -> Option<&[u8]> {
        if directory.is_top() {
            return Some(&self.0).filter(|path| !path.is_empty()).map(|path| &**path);
        }
        let rest = self.0.strip_prefix(&*directory.0)?;
        rest.strip_prefix(b"/")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.0))
    }
}

/// A path that no key can be.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum KeyError {
    #[error("a path of {0} bytes is longer than 4,096")]
    Length(usize),
    #[error(transparent)]
    Name(#[from] NameError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Key {
        Key::new(path.as_bytes()).unwrap()
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_key() {
        for path in ["/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\0b", "/"] {
            assert!(Key::new(path.as_bytes()).is_err(), "{path:?}");
        }
        assert!(Key::new(&[b'a'; 256]).is_err());
        assert!(Key::new(&b"a/".repeat(2049)[..4097]).is_err());
    }

    #[test]
    fn a_key_has_a_parent_and_a_name() {
        let deep = key("a/b/c");
        assert_eq!((deep.parent(), deep.name()), (Some(key("a/b")), &b"c"[..]));
        assert_eq!(key("a").parent(), Some(Key::default()));
        assert_eq!(Key::default().parent(), None);
        assert_eq!(key("a/b").join(b"c"), Ok(deep.clone()));
        assert_eq!(Key::of_path(b"a/b/c//"), Ok(deep.clone()));
        assert_eq!(Key::of_path(b"/"), Ok(Key::default()));
        assert!(Key::of_path(b"/a").is_err() && Key::of_path(b"a//b/").is_err());
        assert_eq!(Key::default().join(b"a"), Ok(key("a")));
        assert_eq!(key("a").join(b""), Ok(key("a")));
        assert_eq!(deep.below(&key("a")), Some(&b"b/c"[..]));
        assert_eq!(deep.below(&Key::default()), Some(&b"a/b/c"[..]));
        assert_eq!(key("ab").below(&key("a")), None);
        assert_eq!(key("a").below(&key("a")), None);
    }
}
