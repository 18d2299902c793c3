//! Which names the source has, in little memory.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use crate::protocol::chunk::EntryId;

/// Names with their directories, to tell what at a destination is not among them.
///
/// Eight bytes are kept of each, by a keyed hash that no peer knows. Two names that hash alike make
/// something stay that should have been deleted, at odds of 1 in 10^13 with a million names; the
/// other mistake is not possible.
#[derive(Clone, Debug, Default)]
pub struct NameSet {
    hasher: RandomState,
    known: HashSet<u64, BuildPassThrough>,
}

/// The values are hashes already.
type BuildPassThrough = std::hash::BuildHasherDefault<PassThrough>;

#[derive(Clone, Copy, Debug, Default)]
struct PassThrough(u64);

impl std::hash::Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

impl NameSet {
    pub fn insert(&mut self, directory: EntryId, name: &[u8]) {
        self.known.insert(self.hasher.hash_one((directory.0, name)));
        self.known.insert(self.hasher.hash_one((directory.0, NO_NAME)));
    }

    pub fn contains(&self, directory: EntryId, name: &[u8]) -> bool {
        self.known.contains(&self.hasher.hash_one((directory.0, name)))
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether there is any name in a directory.
    pub fn has_any_in(&self, directory: EntryId) -> bool {
        self.contains(directory, NO_NAME)
    }
}

/// Stands for all names of a directory; nothing is called that.
const NO_NAME: &[u8] = b"";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_its_directory() {
        let mut names = NameSet::default();
        assert!(names.is_empty());
        for id in 0..1000 {
            names.insert(EntryId(id), b"name");
        }
        assert!((0..1000).all(|id| names.contains(EntryId(id), b"name")));
        assert!(names.has_any_in(EntryId(999)) && !names.has_any_in(EntryId(1000)));
        assert!(!names.contains(EntryId(1000), b"name") && !names.contains(EntryId(1), b"nam"));
    }
}
