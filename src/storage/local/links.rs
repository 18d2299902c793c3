//! Hard links, by inode, and symlinks that lead out of a transfer.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use rustix::fs::Stat;

use crate::protocol::chunk::EntryId;

/// Inodes of which some names were found and others were not yet.
#[derive(Debug, Default)]
pub struct HardLinks {
    /// By device and inode number: there may be millions of them, on few devices.
    devices: HashMap<u64, HashMap<u64, Candidate>>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Candidate {
    leader: EntryId,
    /// How many names are still to be found.
    left: u32,
    /// Tells an inode from another that got its number when it was gone.
    mark: u32,
}

/// What a name of an inode with several names is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Meeting {
    First,
    /// Another name of this entry.
    Again(EntryId),
}

impl HardLinks {
    /// Takes note of one of an inode's names: not of its only one.
    pub fn meet(&mut self, id: EntryId, stat: &Stat) -> Meeting {
        let mark = self.mark(stat);
        let inodes = self.devices.entry(stat.st_dev).or_default();
        if let Some(known) = inodes.get_mut(&stat.st_ino)
            && known.mark == mark
        {
            let leader = known.leader;
            known.left = known.left.saturating_sub(1);
            if known.left == 0 {
                inodes.remove(&stat.st_ino);
            }
            return Meeting::Again(leader);
        }
        let left = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX).saturating_sub(1);
        inodes.insert(stat.st_ino, Candidate { leader: id, left, mark });
        Meeting::First
    }

    fn mark(&self, stat: &Stat) -> u32 {
        let what = (stat.st_mode, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_rdev);
        u32::try_from(self.hasher.hash_one(what) >> 32).unwrap_or_default()
    }
}

/// Whether a symlink leads above the top of the transfer, or might: rsync's rule, to the letter.
/// `path` is the symlink's own path, from the top. A `..` behind anything else counts as leading
/// out, as what is before it may be a symlink.
pub fn is_unsafe(target: &[u8], path: &[u8]) -> bool {
    if target.is_empty() || target.starts_with(b"/") {
        return true;
    }
    let mut rest = target;
    while let Some(next) = rest.strip_prefix(b"../") {
        let slashes = next.iter().take_while(|byte| **byte == b'/').count();
        rest = next.get(slashes..).unwrap_or_default();
    }
    let ends_above = target.len() > 3 && target.ends_with(b"/..");
    if ends_above || rest.windows(4).any(|part| part == b"/../") {
        return true;
    }
    let parts = |path| <[u8]>::split(path, |byte: &u8| *byte == b'/').filter(|it| !it.is_empty());
    let mut depth = parts(path).count().saturating_sub(1);
    for part in parts(target).filter(|part| *part != b".") {
        match (part, depth) {
            (b"..", 0) => return true,
            (b"..", _) => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What rsync 3.5 answers.
    #[test]
    fn safe_is_what_stays_below_the_top() {
        for safe in ["..", "../", "../out/file", "./x", "x", "x/.", "..//x", ".././x", "..."] {
            assert!(!is_unsafe(safe.as_bytes(), b"a/link"), "{safe}");
        }
        let bad = [
            "",
            "/abs",
            "../../out",
            "x/../y",
            "a/..",
            "a/../../q",
            "a//..//b",
            "../../",
            "../..",
            ".././..",
            "./..",
            "./../x",
            ".//..",
        ];
        for bad in bad {
            assert!(is_unsafe(bad.as_bytes(), b"a/link"), "{bad}");
        }
        assert!(is_unsafe(b"../x", b"link"));
        assert!(!is_unsafe(b"../../out", b"s/a/link"));
    }

    #[test]
    fn an_inode_is_forgotten_when_all_its_names_were_met() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name| temp.path().join(name);
        std::fs::write(path("a"), b"x").unwrap();
        for name in ["b", "c"] {
            std::fs::hard_link(path("a"), path(name)).unwrap();
        }
        let stat = rustix::fs::stat(path("a")).unwrap();
        let mut links = HardLinks::default();
        assert_eq!(links.meet(EntryId(1), &stat), Meeting::First);
        let mut reused = stat;
        reused.st_size = 7;
        assert_eq!(links.meet(EntryId(2), &reused), Meeting::First, "another file by now");
        assert_eq!(links.meet(EntryId(3), &stat), Meeting::First);
        for id in 4..6 {
            assert_eq!(links.meet(EntryId(id), &stat), Meeting::Again(EntryId(3)));
        }
        assert_eq!(links.meet(EntryId(6), &stat), Meeting::First);
    }
}
