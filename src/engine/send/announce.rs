//! Telling the receiver what exists, as far ahead as its window allows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Announced, Sender, check_there, too_large};
use crate::engine::plan::lock;
use crate::engine::session::SessionError;
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{Entry, Kind, Message, Metadata};
use crate::storage::{Found, Source};

/// What was found and is not announced yet.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    /// About how long they are when encoded, in bytes.
    len: usize,
    /// What they take of the window.
    weight: u32,
    listed: Vec<EntryId>,
}

impl<S: Source> Sender<S> {
    /// Announces what the walk finds.
    pub(super) async fn announce_all(self: Arc<Self>) -> Result<(), SessionError> {
        let (found, finds) = flume::bounded(MAX_GROUPS);
        let source = self.source.clone();
        let walk = async move { source.walk(found).await };
        let announce = async {
            // Dropped with an error, so that the walk does not wait for anybody to take what it finds.
            let finds = finds;
            let mut batch = Batch::default();
            loop {
                // What waits is told before anything is waited for.
                let next = if let Ok(next) = finds.try_recv() {
                    next
                } else {
                    self.announce(&mut batch).await?;
                    let Ok(next) = finds.recv_async().await else { break };
                    next
                };
                for found in next {
                    self.take(found, &mut batch).await?;
                }
            }
            self.announce(&mut batch).await
        };
        let (walked, announced) = tokio::join!(walk, announce);
        announced?;
        if let Err(error) = walked {
            check_there(&error)?;
            // What could not be listed has no entry of its own, so the session cannot be a success.
            self.complain(error.to_complaint())?;
        }
        self.walk_done.store(true, Ordering::Release);
        self.observer.progress.walk_done.store(true, Ordering::Relaxed);
        self.ended.notify_waiters();
        self.ended.notify_one();
        Ok(())
    }

    async fn take(&self, found: Found, batch: &mut Batch) -> Result<(), SessionError> {
        match found {
            Found::Entry(mut entry) => {
                if self.options.is_too_large(entry.size()) {
                    entry.kind = Kind::Unsendable(too_large(&self.source.path(&entry)));
                }
                let weight = self.weight(&entry);
                let is_full = batch.entries.len() >= MAX_BATCH_ENTRIES
                    || batch.len >= MAX_BATCH_LEN
                    || batch.weight.saturating_add(weight) > self.max_open;
                if is_full {
                    self.announce(batch).await?;
                }
                batch.weight += weight;
                batch.len += entry.estimated_len();
                batch.entries.push(entry);
            }
            Found::Owners { users, groups } => self.say(&Message::Owners { users, groups })?,
            Found::Complaint(complaint) => self.complain(complaint)?,
            Found::Listed(directory) => {
                batch.listed.push(directory);
                if batch.listed.len() >= MAX_BATCH_ENTRIES {
                    self.announce(batch).await?;
                }
            }
        }
        Ok(())
    }

    async fn announce(&self, batch: &mut Batch) -> Result<(), SessionError> {
        let Batch { entries, weight, listed, .. } = std::mem::take(batch);
        if !entries.is_empty() {
            let permits = self.window.acquire_many(weight).await.map_err(SessionError::bug)?;
            permits.forget();
            {
                let mut open = lock(&self.open);
                for entry in &entries {
                    self.observer.found(entry);
                    if entry.is_linked {
                        lock(&self.leaders).insert(entry.id, Arc::new(entry.bare()));
                    }
                    let weight = self.weight(entry);
                    open.insert(entry.id, Announced::new(Arc::new(entry.clone()), weight));
                }
            }
            self.say(&Message::Entries(entries))?;
        }
        // A listing is complete when all that is in it has been announced (DEL-2).
        if listed.is_empty() { Ok(()) } else { self.say(&Message::Listed(listed)) }
    }

    /// What an entry takes of the receiver's window (ENTRY-4).
    fn weight(&self, entry: &Entry) -> u32 {
        entry.weight().min(self.max_open)
    }
}

impl Entry {
    /// What tells where it is and what it is like, without what only its own place needs: it is kept
    /// for the rest of the session.
    pub(in crate::engine) fn bare(&self) -> Self {
        let metadata = Metadata { attributes: Vec::new(), ..self.metadata };
        let (name, kind) = (self.name.clone(), self.kind.clone());
        Self { id: self.id, parent: self.parent, name, kind, is_linked: true, metadata }
    }

    /// About how long it is when encoded, in bytes.
    fn estimated_len(&self) -> usize {
        let more = match &self.kind {
            Kind::Symlink { target } => target.len(),
            Kind::Unsendable(failure) => failure.text().len(),
            _ => 0,
        };
        let attributes = &self.metadata.attributes;
        let more = more + self.metadata.attributes_len() + 20 * attributes.len();
        80 + self.name.as_bytes().len() + more
    }
}

/// How many entries one message announces at the most, and about how long it may get, in bytes.
const MAX_BATCH_ENTRIES: usize = 512;
const MAX_BATCH_LEN: usize = 256 << 10;

/// How many groups of finds wait to be announced before the walk does.
const MAX_GROUPS: usize = 16;
