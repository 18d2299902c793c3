//! A file at S3 that has more parts than an object may have.
//!
//! Its parts go up as those of several temporary objects beside it, the stages, in any order and as many
//! at a time as ever. At the end the server makes the object of the stages, each of which is one part of
//! it then, and the stages go. So a file of 5 TiB needs no larger chunks, and no more memory, than another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::pages::Pages;
use super::s3::{Inner, MAX_COPY_LEN};
use super::store::{begun, check_count, text, upload_id};
use crate::protocol::chunk::Digest;
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
    pub fn new(key: &Key, size: u64, parts: u64, max_parts: u64) -> Answer<Self> {
        Self::called(key, upload_id(), size, parts, max_parts)
    }

    fn called(key: &Key, id: String, size: u64, parts: u64, max_parts: u64) -> Answer<Self> {
        // Every part but the last has the same length, which is a power of two.
        let part_len = size.div_ceil(parts.max(1)).max(1).next_power_of_two();
        let parts_each = (MAX_COPY_LEN / part_len).clamp(1, max_parts);
        check_count(parts.div_ceil(parts_each), max_parts)?;
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
        let before = self.stage_len().checked_mul(stage)?;
        self.size.checked_sub(before).filter(|rest| *rest > 0).map(|it| it.min(self.stage_len()))
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
    pub async fn write(&self, inner: &Inner, number: u64, data: Vec<Bytes>) -> Answer<Receipt> {
        let (stage, key) = (number / self.parts_each, self.stage_key(number / self.parts_each)?);
        let cell = self.cell(stage);
        let begin = async || inner.begin_upload(&key, None).await.map(Stage::Coming);
        match cell.get_or_try_init(begin).await? {
            Stage::Coming(id) => {
                inner.write_part(&key, id, number % self.parts_each + 1, data).await
            }
            // It was there with all its parts, so this is one that the server has.
            Stage::There => Ok(Receipt::default()),
        }
    }

    /// Makes the object.
    pub async fn finish(
        &self,
        inner: &Inner,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        let mut by_stage: BTreeMap<u64, Vec<(u64, Receipt)>> = BTreeMap::new();
        for (number, receipt) in receipts {
            let part = (number % self.parts_each + 1, receipt);
            by_stage.entry(number / self.parts_each).or_default().push(part);
        }
        let requests = inner.properties.requests;
        let completions: Vec<_> = by_stage
            .into_iter()
            .map(async |(stage, parts)| match self.cell(stage).get() {
                Some(Stage::Coming(id)) => inner.complete(&self.stage_key(stage)?, id, parts).await,
                Some(Stage::There) => Ok(()),
                None => Err(Fault::new(Class::Other, "part of the file was never sent")),
            })
            .collect();
        all(completions, requests).await.into_iter().collect::<Answer<()>>()?;
        let id = inner.begin_upload(&self.key, Some(kept)).await?;
        let made = async {
            let copies: Vec<_> = (0..self.count())
                .map(async |stage| {
                    let from = self.stage_key(stage)?;
                    let receipt = inner.copy_part(&self.key, &id, stage + 1, &from).await?;
                    Ok((stage + 1, receipt))
                })
                .collect();
            let parts: Answer<Vec<_>> = all(copies, requests).await.into_iter().collect();
            inner.complete(&self.key, &id, parts?).await
        };
        if let Err(fault) = made.await {
            // The stages stay for the next run.
            let _ = inner.abort(&self.key, &id).await;
            return Err(fault);
        }
        self.remove_objects(inner).await
    }

    /// Looks for what an earlier process has sent: which chunks of those that it noted are lost. `None`
    /// if there is nothing at all.
    pub async fn resume(
        inner: &Inner,
        key: &Key,
        size: u64,
        name: &str,
        receipts: &[(u64, Receipt)],
    ) -> Answer<Option<(Self, Vec<u64>)>> {
        let Some(found) = Self::named(key, size, name, inner.properties.parts.max_count) else {
            return Ok(None);
        };
        let mut there = HashSet::new();
        for (stage, len) in found.objects(inner).await? {
            if found.len_of(stage) == Some(len) {
                there.insert(stage);
            }
        }
        let (mut coming, mut known) = (HashMap::new(), HashMap::new());
        for (stage, id) in found.uploads(inner).await? {
            if there.contains(&stage) || found.len_of(stage).is_none() {
                continue;
            }
            let parts = inner.parts(&found.stage_key(stage)?, &id).await?.unwrap_or_default();
            for part in parts {
                let number = stage * found.parts_each + part.number.saturating_sub(1);
                known.insert(number, part.tag);
            }
            coming.insert(stage, id);
        }
        if there.is_empty() && coming.is_empty() {
            return Ok(None);
        }
        let is_lost = |(number, receipt): &&(u64, Receipt)| {
            let tag = known.get(number).map(String::as_bytes);
            !there.contains(&(number / found.parts_each)) && tag != Some(receipt.as_bytes())
        };
        let lost = receipts.iter().filter(is_lost).map(|(number, _)| *number).collect();
        let there = there.into_iter().map(|stage| (stage, Stage::There));
        let coming = coming.into_iter().map(|(stage, id)| (stage, Stage::Coming(id.into())));
        let cells = there.chain(coming).map(|(stage, it)| {
            let cell = OnceCell::new_with(Some(it));
            (stage, Arc::new(cell))
        });
        Ok(Some((Self { begun: Mutex::new(cells.collect()), ..found }, lost)))
    }

    /// The plan that a journal's name is of; `None` if that is of another file.
    fn named(key: &Key, size: u64, name: &str, max_parts: u64) -> Option<Self> {
        let mut fields = name.strip_prefix(MARK)?.split('-');
        let (id, parts, of) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?);
        let found = Self::called(key, id.to_owned(), size, parts, max_parts).ok()?;
        let is_it = of == short(key) && found.name() == name;
        is_it.then_some(found)
    }

    /// Removes whatever there is of an upload of this name.
    pub async fn abandon(inner: &Inner, key: &Key, name: &str) -> Answer<()> {
        let id = name.strip_prefix(MARK).and_then(|rest| rest.split('-').next());
        let Some(id) = id.filter(|_| name.ends_with(&short(key))) else { return Ok(()) };
        // Whatever its size is, the keys of its stages are these.
        let found = Self::called(key, id.to_owned(), 1, 1, 1)?;
        let uploads = found.uploads(inner).await?;
        for (stage, upload) in uploads {
            inner.abort(&found.stage_key(stage)?, &upload).await?;
        }
        found.remove_objects(inner).await
    }

    async fn remove_objects(&self, inner: &Inner) -> Answer<()> {
        let objects = self.objects(inner).await?;
        let keys: Answer<Vec<Key>> =
            objects.into_iter().map(|(stage, _)| self.stage_key(stage)).collect();
        let keys = keys?;
        for group in keys.chunks(1000) {
            let removed = inner.remove_group(&group.iter().collect::<Vec<_>>()).await;
            removed.into_iter().collect::<Answer<()>>()?;
        }
        Ok(())
    }

    /// The stages that are objects, and their lengths.
    async fn objects(&self, inner: &Inner) -> Answer<Vec<(u64, u64)>> {
        let (prefix, mut found, mut pages) = (self.prefix()?, Vec::new(), Pages::default());
        while !pages.is_over() {
            let page = inner.page(&prefix, "", pages.marker()).await?;
            pages.turn(page.next, page.objects.iter().map(|it| &it.key))?;
            let stages = page.objects.iter();
            found.extend(stages.filter_map(|it| Some((self.number(&it.key)?, it.size))));
        }
        Ok(found)
    }

    /// The stages that are coming, and under which identifiers.
    async fn uploads(&self, inner: &Inner) -> Answer<Vec<(u64, String)>> {
        let (prefix, mut found, mut pages) = (self.prefix()?, Vec::new(), Pages::default());
        while !pages.is_over() {
            let stages = inner.uploads(&prefix, &mut pages).await?.into_iter();
            found.extend(stages.filter_map(|it| Some((self.number(&it.key)?, it.id))));
        }
        Ok(found)
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

    /// 5 TiB in chunks of 8 MiB.
    #[test]
    fn the_largest_object_fits() {
        let size = 5 << 40;
        let stages = Stages::new(&key("a/b"), size, size >> 23, 10_000).unwrap();
        assert_eq!((stages.part_len, stages.parts_each), (8 << 20, 640));
        assert_eq!(stages.count(), 1024);
        let largest = (MAX_COPY_LEN >> 16 << 16) * 10_000;
        assert!(Stages::new(&key("x"), largest, largest >> 23, 10_000).is_ok());
        assert!(Stages::new(&key("x"), largest + 1, (largest >> 23) + 1, 10_000).is_err());
    }

    #[test]
    fn a_name_is_of_one_file_of_one_size() {
        let (size, parts) = (100 << 20, 13);
        let stages = Stages::new(&key("a/b"), size, parts, 4).unwrap();
        let name = stages.name();
        let again = Stages::named(&key("a/b"), size, &name, 4).unwrap();
        assert_eq!((again.id.as_str(), again.count()), (stages.id.as_str(), 4));
        for (other, size) in [("a/c", size), ("b", size), ("a/b", size * 3)] {
            assert!(Stages::named(&key(other), size, &name, 4).is_none(), "{other}");
        }
        for name in ["", "stages/", "stages/x", "stages/x-0-y", "stages/x-99999999999999999999-y"] {
            assert!(Stages::named(&key("a/b"), size, name, 4).is_none(), "{name}");
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
        let stages = Stages::new(&key("a/b"), 100 << 20, 13, 4).unwrap();
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
