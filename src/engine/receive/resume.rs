//! What an earlier run left of a file, taken up.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;

use super::Receiver;
use super::open::{Incomplete, Temporary};
use crate::engine::journal::{Begun, SourceIdentity, UNHASHED, Written};
use crate::engine::plan::lock;
use crate::engine::session::SessionError;
use crate::protocol::chunk::{ByteRange, Digest};
use crate::protocol::message::{Changes, Entry, Kind, Message, Resume, Verdict};
use crate::protocol::tree::RootBuilder;
use crate::storage::{Remembers, Reopened, Sink, Token};

impl<K: Sink> Receiver<K> {
    /// Prepares for a file in chunks, and tells the sender what is there of it.
    pub async fn expect(
        &self,
        entry: &Arc<Entry>,
        version: u16,
        changes: Changes,
    ) -> Result<(Arc<Incomplete<K::File>>, Verdict), SessionError> {
        let (file, kept) = self.incomplete(entry, version, changes).await?;
        let Some(kept) = kept else { return Ok((file, Verdict::Need)) };
        for (first, values) in runs(kept) {
            self.outbox.room().await;
            self.say(&Message::Have { entry: entry.id, first, values })?;
        }
        Ok((file, Verdict::Resume))
    }

    /// Prepares for a file in chunks. Returns also the chunks of an earlier run, if there was one.
    pub async fn incomplete(
        &self,
        entry: &Arc<Entry>,
        version: u16,
        changes: Changes,
    ) -> Result<Taken<K::File>, SessionError> {
        let count = self.options.chunk_size.count(entry.size());
        let mut tree = RootBuilder::new(count);
        let (temporary, mut taken) = (OnceCell::new(), None);
        let compared = lock(&self.open).at(entry.id, version).and_then(|it| it.compared);
        let begun = lock(&self.begun).remove(&self.sink.path(entry));
        if let Some(mut begun) = begun
            && let Some(Reopened { file, lost }) = self.take_up(entry, &begun).await?
        {
            let lost: HashSet<u64> = lost.into_iter().collect();
            begun.chunks.retain(|written| !lost.contains(&written.index));
            let kept = self.kept_chunks(entry, &file, begun.chunks).await;
            let mut bytes = 0;
            for (index, value) in &kept {
                tree.insert(*index, *value);
                let range = self.options.chunk_size.range(entry.id, *index, entry.size());
                bytes += range.map_or(0, |range| u64::from(range.len()));
            }
            self.observer.resumed(bytes);
            let _ = temporary.set(Temporary { file, number: begun.number });
            taken = Some(kept);
        }
        let incomplete = Incomplete {
            entry: Arc::clone(entry),
            version,
            changes,
            compared,
            temporary,
            tree: Mutex::new(tree),
            claimed: Mutex::new(HashSet::new()),
            end: Mutex::default(),
            is_abandoned: AtomicBool::new(false),
        };
        Ok((Arc::new(incomplete), taken))
    }

    /// Opens the temporary file of an earlier run, if all of JRN-6 holds.
    async fn take_up(
        &self,
        entry: &Arc<Entry>,
        begun: &Begun,
    ) -> Result<Option<Reopened<K::File>>, SessionError> {
        let Kind::File(kind) = entry.kind else { return Ok(None) };
        if begun.source == SourceIdentity::new(kind, entry.metadata.mtime) {
            // Whatever is wrong with it, the file can be sent anew.
            let reopened = self.sink.reopen(Arc::clone(entry), begun.left()).await;
            if let Ok(Some(reopened)) = reopened {
                return Ok(Some(reopened));
            }
        }
        self.sink.discard_left_over(self.sink.path(entry), begun.temporary.clone()).await;
        self.record(|journal| journal.end(begun.number))?;
        Ok(None)
    }

    /// The chunks of an earlier run that can be relied on, in order and once each.
    async fn kept_chunks(
        &self,
        entry: &Arc<Entry>,
        file: &K::File,
        chunks: Vec<Written>,
    ) -> Vec<(u64, Digest)> {
        let count = self.options.chunk_size.count(entry.size());
        // What is written in place may have been edited since.
        let is_checked = self.options.resume == Resume::Verify || self.options.update.in_place;
        // What was copied without being hashed proves nothing to anybody else.
        let needs_value = is_checked || !self.sink.can_copy();
        let may_be_lost = self.sink.remembers() == Remembers::Reread;
        let by_index: BTreeMap<u64, (Digest, bool)> = chunks
            .into_iter()
            .filter(|it| it.index < count && !(needs_value && it.value == UNHASHED))
            .map(|it| (it.index, (it.value, is_checked || may_be_lost && !it.is_synced)))
            .collect();
        let range = |index| self.options.chunk_size.range(entry.id, index, entry.size());
        let checked = by_index.iter().filter(|(_, (_, is_checked))| *is_checked);
        let checked: Vec<(u64, (ByteRange, Digest))> = checked
            .filter_map(|(index, (value, _))| Some((*index, (range(*index)?, *value))))
            .collect();
        let ranges = checked.iter().map(|(_, it)| *it).collect();
        let holds = self.sink.holds(file.clone(), ranges, &self.reading_pool).await;
        let held = checked.iter().zip(holds).filter(|(_, holds)| *holds);
        let held: HashSet<u64> = held.map(|((index, _), _)| *index).collect();
        let kept = by_index
            .into_iter()
            .filter(|(index, (_, is_checked))| !is_checked || held.contains(index));
        kept.map(|(index, (value, _))| (index, value)).collect()
    }

    /// Removes temporary files that are of no use.
    pub async fn discard_stale(&self, stale: Vec<(Vec<u8>, Token)>) {
        for (path, identity) in stale {
            self.sink.discard_left_over(path, identity).await;
        }
    }
}

/// A file in chunks, and those of an earlier run, if there was one.
type Taken<F> = (Arc<Incomplete<F>>, Option<Vec<(u64, Digest)>>);

/// Joins consecutive chunks, into pieces that fit a message.
fn runs(chunks: Vec<(u64, Digest)>) -> Vec<(u64, Vec<Digest>)> {
    let mut runs: Vec<(u64, Vec<Digest>)> = Vec::new();
    for (index, value) in chunks {
        match runs.last_mut() {
            Some((first, values))
                if *first + values.len() as u64 == index && values.len() < MAX_RUN =>
            {
                values.push(value);
            }
            _ => runs.push((index, vec![value])),
        }
    }
    runs
}

/// How many chunk values one message carries at the most: half of what its length allows.
const MAX_RUN: usize = 16_384;
