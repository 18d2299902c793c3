//! A file's BLAKE3 root from its chunks' values, in whatever order they come.
//!
//! Chunks are complete subtrees (INT-1), so their chaining values merge pairwise into the values of
//! larger subtrees and at last into the root that `b3sum` prints: no second pass over the file, at
//! either end. Source: the BLAKE3 paper, section 2.1; `blake3::hazmat`.

use std::collections::HashMap;

use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::chunk::Digest;

/// Merges chunk values as they come. Holds at most one value for each gap between them.
#[derive(Debug)]
pub struct RootBuilder {
    chunks: u64,
    missing: u64,
    /// Values whose neighbour is not there yet, by level and place in it.
    pending: HashMap<(u32, u64), Digest>,
    /// One bit for each chunk that has its value, as far as the last of them.
    seen: Vec<u64>,
    root: Option<Digest>,
}

impl RootBuilder {
    /// Begins a file of `chunks` chunks. A file without any has no tree: its root is known.
    pub fn new(chunks: u64) -> Self {
        let root = (chunks == 0).then(|| Digest::of(&[]));
        Self { chunks, missing: chunks, pending: HashMap::new(), seen: Vec::new(), root }
    }

    /// How many chunks the file has.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// How many chunks have no value yet.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Whether this chunk has its value.
    pub fn has(&self, index: u64) -> bool {
        let word = usize::try_from(index / 64).ok().and_then(|word| self.seen.get(word));
        word.is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// The first chunk at or after `from` that has no value yet.
    pub fn next_missing(&self, from: u64) -> Option<u64> {
        let mut index = from;
        while index < self.chunks {
            let word = self.seen.get(usize::try_from(index / 64).ok()?).copied().unwrap_or(0);
            let gaps = !word >> (index % 64);
            if gaps != 0 {
                let found = index + u64::from(gaps.trailing_zeros());
                return (found < self.chunks).then_some(found);
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }

    /// Adds the value of chunk `index`: its chaining value, or the root if it is the only chunk.
    ///
    /// Returns whether it was new: a chunk that is known already, or that the file does not have,
    /// changes nothing (INT-6).
    pub fn insert(&mut self, index: u64, value: Digest) -> bool {
        if index >= self.chunks || self.has(index) {
            return false;
        }
        let Ok(word) = usize::try_from(index / 64) else { return false };
        if word >= self.seen.len() {
            // Taken as chunks come, not as they are announced (ENTRY-12).
            self.seen.resize(word + 1, 0);
        }
        if let Some(word) = self.seen.get_mut(word) {
            *word |= 1 << (index % 64);
        }
        self.missing -= 1;
        self.merge(index, value);
        true
    }

    /// The file's root, once every chunk is there.
    pub fn root(&self) -> Option<Digest> {
        self.root
    }

    /// Climbs from a chunk towards the root for as long as there is a neighbour to merge with.
    fn merge(&mut self, index: u64, value: Digest) {
        let (mut level, mut place, mut value) = (0_u32, index, value);
        let mut nodes = self.chunks;
        while nodes > 1 {
            let neighbour = place ^ 1;
            // The last node of an odd level has none, and stands for itself one level up.
            if neighbour < nodes {
                let Some(other) = self.pending.remove(&(level, neighbour)) else {
                    self.pending.insert((level, place), value);
                    return;
                };
                let (left, right) = if place < neighbour { (value, other) } else { (other, value) };
                value = Digest(if nodes == 2 {
                    merge_subtrees_root(&left.0, &right.0, Mode::Hash).into()
                } else {
                    merge_subtrees_non_root(&left.0, &right.0, Mode::Hash)
                });
            }
            (level, place, nodes) = (level + 1, place / 2, nodes.div_ceil(2));
        }
        self.root = Some(value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::chunk::{ChunkSize, EntryId, RangeHasher};

    fn values(data: &[u8]) -> Vec<Digest> {
        let len = data.len() as u64;
        (0..ChunkSize::MIN.count(len))
            .map(|index| {
                let range = ChunkSize::MIN.range(EntryId(1), index, len).unwrap();
                let mut hasher = RangeHasher::new(range);
                hasher.update(&data[usize::try_from(range.offset()).unwrap()..]);
                hasher.finish().unwrap()
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// INT-6: any length, any order, with repetitions: what b3sum prints.
        #[test]
        fn the_root_is_b3sums(
            len in 0_usize..1_400_000,
            order in any::<u64>(),
        ) {
            let data: Vec<u8> = (0..=250).cycle().take(len).collect();
            let values = values(&data);
            let mut builder = RootBuilder::new(values.len() as u64);
            let mut indices: Vec<usize> = (0..values.len()).collect();
            indices.sort_by_key(|n| (*n as u64 + 1).wrapping_mul(order | 1).rotate_left(29));
            for (done, index) in indices.iter().enumerate() {
                prop_assert_eq!(builder.missing(), (values.len() - done) as u64);
                prop_assert!(builder.insert(*index as u64, values[*index]));
                prop_assert!(!builder.insert(*index as u64, Digest([9; 32])), "a repetition");
            }
            prop_assert_eq!(builder.root(), Some(Digest::of(&data)));
            prop_assert!(builder.pending.is_empty());
        }
    }

    #[test]
    fn gaps_are_found_in_order() {
        let mut builder = RootBuilder::new(131);
        for index in 0..131 {
            if ![3, 64, 130].contains(&index) {
                builder.insert(index, Digest::default());
            }
        }
        let next = |from| builder.next_missing(from);
        assert_eq!([next(0), next(4), next(65), next(131)], [Some(3), Some(64), Some(130), None]);
        assert!(!builder.has(131) && builder.root().is_none());
    }
}
