//! A file that has more parts than an object may have.
//!
//! Its parts go up as those of several temporary objects beside it, the stages, in any order and as many
//! at a time as ever. At the end the server makes the object of the stages, each of which is one part of
//! it then, and the stages go. So the largest object needs no larger chunks, and no more memory, than
//! another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::pages::Pages;
use super::store::{begun, text, upload_id};
use super::upload::{Limits, PartStore};
use crate::protocol::chunk::{Digest, piece_len};
use crate::protocol::manifest::Timestamp;
use crate::storage::Receipt;
use crate::storage::remote::{Answer, Class, Fault, Kept, Key, OWN_PREFIX, Unfinished, all};

/// Such a file.
#[derive(Debug)]
pub struct Stages {
    key: Key,
    /// What tells this upload from any other, and is part of the stages' names.
    id: String,
    size: u64,
    part_len: u64,
    parts_each: u64,
    begun: Mutex<HashMap<u64, Arc<OnceCell<Stage>>>>,
}

#[derive(Clone, Debug)]
enum Stage {
    /// Under an upload's identifier.
    Coming(Arc<str>),
    /// All of it is an object.
    There,
}

impl Stages {
    /// Whether a journal's name is of such an upload.
    pub fn is_name(name: &str) -> bool {
        name.starts_with(MARK)
    }

    /// Plans stages for a file of `parts` parts.
    ///
    /// # Errors
    ///
    /// If even they would be too many.
    pub fn new(key: &Key, size: u64, parts: u64, limits: Limits) -> Answer<Self> {
        Self::called(key, upload_id(), size, parts, limits)
    }

    fn called(key: &Key, id: String, size: u64, parts: u64, limits: Limits) -> Answer<Self> {
        let Limits { max_parts, max_copy_len, .. } = limits;
        // Every part but the last has the same length, which is a power of two.
        let part_len = size.div_ceil(parts.max(1)).max(1).next_power_of_two();
        let parts_each = (max_copy_len / part_len).clamp(1, max_parts);
        if parts.div_ceil(parts_each) > max_parts {
            let text = "it is longer than an object may be in chunks of this size";
            return Err(Fault::new(Class::Unsupported, text));
        }
        let begun = Mutex::default();
        Ok(Self { key: key.clone(), id, size, part_len, parts_each, begun })
    }

    /// What a journal has to know to find it again.
    pub fn name(&self) -> String {
        let parts = self.size.div_ceil(self.part_len);
        format!("{MARK}{}-{parts}-{}", self.id, short(&self.key))
    }

    fn count(&self) -> u64 {
        self.size.div_ceil(self.stage_len())
    }

    fn stage_len(&self) -> u64 {
        self.part_len * self.parts_each
    }

    /// How long a stage is; `None` if there is no such stage.
    fn len_of(&self, stage: u64) -> Option<u64> {
        piece_len(self.size, self.stage_len(), stage)
    }

    fn stage_key(&self, stage: u64) -> Answer<Key> {
        let name = [OWN_PREFIX, self.id.as_bytes(), b"-", stage.to_string().as_bytes()].concat();
        Ok(self.key.parent().unwrap_or_default().join(&name)?)
    }

    /// What the stages' keys begin with.
    fn prefix(&self) -> Answer<String> {
        let first = self.stage_key(0)?;
        Ok(text(&first)?.trim_end_matches('0').to_owned())
    }

    /// The stage of this key.
    fn number(&self, key: &[u8]) -> Option<u64> {
        let number = std::str::from_utf8(key).ok()?.rsplit('-').next()?.parse().ok()?;
        self.stage_key(number).is_ok_and(|its| its.as_bytes() == key).then_some(number)
    }

    fn cell(&self, stage: u64) -> Arc<OnceCell<Stage>> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(begun.entry(stage).or_default())
    }

    /// Sends a part of the file, counted from 0.
    pub async fn write<S: PartStore>(
        &self,
        store: &S,
        number: u64,
        data: Vec<Bytes>,
    ) -> Answer<Receipt> {
        let (stage, key) = (number / self.parts_each, self.stage_key(number / self.parts_each)?);
        let cell = self.cell(stage);
        let begin = async || store.begin_parts(&key, None).await.map(Stage::Coming);
        match cell.get_or_try_init(begin).await? {
            Stage::Coming(id) => store.write_part(&key, id, number % self.parts_each, data).await,
            // It was there with all its parts, so this is one that the server has.
            Stage::There => Ok(Receipt::default()),
        }
    }

    /// Makes the object.
    pub async fn finish<S: PartStore>(
        &self,
        store: &S,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        let mut by_stage: BTreeMap<u64, Vec<(u64, Receipt)>> = BTreeMap::new();
        for (number, receipt) in receipts {
            let part = (number % self.parts_each, receipt);
            by_stage.entry(number / self.parts_each).or_default().push(part);
        }
        let completions: Vec<_> = by_stage
            .into_iter()
            .map(async |(stage, parts)| match self.cell(stage).get() {
                Some(Stage::Coming(id)) => {
                    store.end_parts(&self.stage_key(stage)?, id, parts, None).await
                }
                Some(Stage::There) => Ok(()),
                None => Err(Fault::new(Class::Other, "part of the file was never sent")),
            })
            .collect();
        let ended = all(completions, store.limits().requests).await;
        ended.into_iter().collect::<Answer<()>>()?;
        // Until then they stay, for the next run.
        self.join(store, kept).await?;
        self.remove_objects(store).await
    }

    /// Makes the object of the stages, in their order.
    async fn join<S: PartStore>(&self, store: &S, kept: &Kept) -> Answer<()> {
        let id = store.begin_parts(&self.key, Some(kept)).await?;
        let joined = async {
            let copies = (0..self.count()).map(async |stage| {
                let from = self.stage_key(stage)?;
                Ok((stage, store.copy_part(&self.key, &id, stage, &from).await?))
            });
            let parts = all(copies.collect(), store.limits().requests).await;
            let parts = parts.into_iter().collect::<Answer<_>>()?;
            store.end_parts(&self.key, &id, parts, Some(kept)).await
        };
        let joined = joined.await;
        if joined.is_err() {
            let _ = store.abort_parts(&self.key, &id).await;
        }
        joined
    }

    /// Looks for what an earlier process has sent: which chunks of those that it noted are lost. `None`
    /// if there is nothing at all.
    pub async fn resume<S: PartStore>(
        store: &S,
        key: &Key,
        size: u64,
        name: &str,
        receipts: &[(u64, Receipt)],
    ) -> Answer<Option<(Self, Vec<u64>)>> {
        let Some(found) = Self::named(key, size, name, store.limits()) else {
            return Ok(None);
        };
        let mut there = HashSet::new();
        for (stage, len) in found.objects(store).await? {
            if found.len_of(stage) == Some(len) {
                there.insert(stage);
            }
        }
        let mut coming: HashMap<u64, (String, HashMap<u64, String>)> = HashMap::new();
        for (stage, id) in found.uploads(store).await? {
            if there.contains(&stage) || found.len_of(stage).is_none() {
                continue;
            }
            let parts = store.parts_there(&found.stage_key(stage)?, &id).await?;
            let parts = parts.unwrap_or_default();
            // Where the answer to its beginning was lost, there may be another, which has nothing.
            if coming.get(&stage).is_none_or(|(_, known)| known.len() < parts.len()) {
                coming.insert(stage, (id, parts));
            }
        }
        if there.is_empty() && coming.is_empty() {
            return Ok(None);
        }
        let is_lost = |(number, receipt): &&(u64, Receipt)| {
            let (stage, part) = (number / found.parts_each, number % found.parts_each);
            let tag = coming.get(&stage).and_then(|(_, known)| known.get(&part));
            !there.contains(&stage) && tag.map(String::as_bytes) != Some(receipt.as_bytes())
        };
        let lost = receipts.iter().filter(is_lost).map(|(number, _)| *number).collect();
        let there = there.into_iter().map(|stage| (stage, Stage::There));
        let coming = coming.into_iter();
        let coming = coming.map(|(stage, (id, _))| (stage, Stage::Coming(id.into())));
        let cells = there.chain(coming).map(|(stage, it)| {
            let cell = OnceCell::new_with(Some(it));
            (stage, Arc::new(cell))
        });
        Ok(Some((Self { begun: Mutex::new(cells.collect()), ..found }, lost)))
    }

    /// The plan that a journal's name is of; `None` if that is of another file.
    fn named(key: &Key, size: u64, name: &str, limits: Limits) -> Option<Self> {
        let mut fields = name.strip_prefix(MARK)?.split('-');
        let (id, parts, of) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?);
        let found = Self::called(key, id.to_owned(), size, parts, limits).ok()?;
        let is_it = of == short(key) && found.name() == name;
        is_it.then_some(found)
    }

    /// Removes whatever there is of an upload of this name.
    pub async fn abandon<S: PartStore>(store: &S, key: &Key, name: &str) -> Answer<()> {
        let id = name.strip_prefix(MARK).and_then(|rest| rest.split('-').next());
        let Some(id) = id.filter(|_| name.ends_with(&short(key))) else { return Ok(()) };
        // Whatever its size is, the keys of its stages are these.
        let found = Self::called(key, id.to_owned(), 1, 1, store.limits())?;
        for (stage, upload) in found.uploads(store).await? {
            store.abort_parts(&found.stage_key(stage)?, &upload).await?;
        }
        found.remove_objects(store).await
    }

    async fn remove_objects<S: PartStore>(&self, store: &S) -> Answer<()> {
        let objects = self.objects(store).await?.into_iter();
        let keys = objects.map(|(stage, _)| self.stage_key(stage)).collect::<Answer<_>>()?;
        store.remove_all(keys).await
    }

    /// The stages that are objects, and their lengths.
    async fn objects<S: PartStore>(&self, store: &S) -> Answer<Vec<(u64, u64)>> {
        let prefix = self.prefix()?;
        let (mut found, mut pages) = (Vec::new(), Pages::default());
        while !pages.is_over() {
            let (objects, next) = store.objects(&prefix, pages.marker()).await?;
            pages.turn(next, objects.iter().map(|(key, _)| key))?;
            let objects = objects.into_iter();
            found.extend(objects.filter_map(|(key, size)| Some((self.number(&key)?, size))));
        }
        Ok(found)
    }

    /// The stages that are coming, and under which identifiers.
    async fn uploads<S: PartStore>(&self, store: &S) -> Answer<Vec<(u64, String)>> {
        let found = store.begun(&self.prefix()?).await?.into_iter();
        Ok(found.filter_map(|(key, id)| Some((self.number(&key)?, id))).collect())
    }
}

/// Gives all stages of a file the time of the newest: a stage that is complete is not written to while
/// others still come.
pub fn share_times(left: &mut [Unfinished]) {
    let mut newest: HashMap<(Option<Key>, Vec<u8>), Option<Timestamp>> = HashMap::new();
    for it in &*left {
        if let Some(file) = file_of(&it.key) {
            let newest = newest.entry(file).or_default();
            *newest = it.since.max(*newest);
        }
    }
    for it in left {
        if let Some(newest) = file_of(&it.key).and_then(|file| newest.get(&file)) {
            it.since = *newest;
        }
    }
}

/// Where a stage is, and the identifier of what it is part of; `None` if the key is that of no stage.
fn file_of(key: &Key) -> Option<(Option<Key>, Vec<u8>)> {
    let name = std::str::from_utf8(key.name().strip_prefix(OWN_PREFIX)?).ok()?;
    let (id, number) = name.split_once('-')?;
    begun(id)?;
    number.parse::<u64>().ok()?;
    Some((key.parent(), id.as_bytes().to_vec()))
}

/// What tells keys from each other in a journal's name.
fn short(key: &Key) -> String {
    Digest::of(key.as_bytes()).to_string().chars().take(16).collect()
}

/// What a name of such an upload begins with, and no identifier of a server's.
const MARK: &str = "stages/";

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Key {
        Key::new(path.as_bytes()).unwrap()
    }

    const S3: Limits = Limits { max_parts: 10_000, max_copy_len: 5 << 30, requests: 1 };
    const AZURE: Limits = Limits { max_parts: 50_000, max_copy_len: 4000 << 20, requests: 1 };
    const FEW: Limits = Limits { max_parts: 4, ..S3 };

    /// In chunks of 8 MiB.
    #[test]
    fn the_largest_object_fits() {
        let size = 5 << 40;
        let stages = Stages::new(&key("a/b"), size, size >> 23, S3).unwrap();
        assert_eq!((stages.part_len, stages.parts_each), (8 << 20, 640));
        assert_eq!(stages.count(), 1024);
        for limits in [S3, AZURE] {
            let largest = limits.max_size();
            let stages = Stages::new(&key("x"), largest, largest >> 23, limits).unwrap();
            assert_eq!(stages.count(), limits.max_parts);
            assert_eq!(stages.len_of(limits.max_parts - 1), Some(limits.max_copy_len));
            let more = Stages::new(&key("x"), largest + 1, (largest >> 23) + 1, limits);
            assert_eq!(more.unwrap_err().class, Class::Unsupported);
        }
        // About 190.7 TiB.
        assert_eq!(AZURE.max_size(), 50_000 * 4000 * 1024 * 1024);
    }

    /// One part more than an object may have makes a second stage, whatever the parts' length.
    #[test]
    fn borders_of_stages() {
        for chunk in [1_u64 << 16, 8 << 20, 64 << 20] {
            let each = (AZURE.max_copy_len / chunk).min(AZURE.max_parts);
            for (parts, count) in [(each, 1), (each + 1, 2), (each * 3, 3), (each * 3 + 1, 4)] {
                let stages = Stages::new(&key("x"), chunk * parts, parts, AZURE).unwrap();
                assert_eq!((stages.parts_each, stages.count()), (each, count), "{chunk}, {parts}");
                assert!(stages.stage_len() <= AZURE.max_copy_len);
            }
        }
    }

    #[test]
    fn a_name_is_of_one_file_of_one_size() {
        let (size, parts) = (100 << 20, 13);
        let stages = Stages::new(&key("a/b"), size, parts, FEW).unwrap();
        let name = stages.name();
        let again = Stages::named(&key("a/b"), size, &name, FEW).unwrap();
        assert_eq!((again.id.as_str(), again.count()), (stages.id.as_str(), 4));
        for (other, size) in [("a/c", size), ("b", size), ("a/b", size * 3)] {
            assert!(Stages::named(&key(other), size, &name, FEW).is_none(), "{other}");
        }
        for name in ["", "stages/", "stages/x", "stages/x-0-y", "stages/x-99999999999999999999-y"] {
            assert!(Stages::named(&key("a/b"), size, name, FEW).is_none(), "{name}");
        }
    }

    #[test]
    fn stages_are_as_old_as_the_newest() {
        let left = |path: &str, seconds| {
            let since = Timestamp::new(seconds, 0);
            Unfinished { key: key(path), token: None, size: 0, since }
        };
        let stage = |number: u64| format!("a/.fastsync-0123456789abcdef-{number}");
        let mut all = [
            left(&stage(0), 1),
            left("a/.fastsync-0123456789abcdee-0", 2),
            left(&stage(12), 9),
            left("a/b", 3),
        ];
        share_times(&mut all);
        let seconds = all.map(|it| it.since.unwrap().seconds);
        assert_eq!(seconds, [9, 2, 9, 3]);
    }

    #[test]
    fn a_stage_is_known_by_its_key() {
        let stages = Stages::new(&key("a/b"), 100 << 20, 13, FEW).unwrap();
        for number in 0..4 {
            let own = stages.stage_key(number).unwrap();
            assert_eq!(stages.number(own.as_bytes()), Some(number));
            assert!(own.as_bytes().starts_with(stages.prefix().unwrap().as_bytes()));
        }
        for other in [&b"a/b"[..], b"a/.fastsync-x-0", b""] {
            assert_eq!(stages.number(other), None);
        }
        let last = (100 << 20) - 3 * stages.stage_len();
        assert_eq!((stages.len_of(3), stages.len_of(4)), (Some(last), None));
        assert_eq!(stages.len_of(u64::MAX), None);
    }
}
