//! Hard links: other names of entries, made when those are in their places.
//!
//! A link waits for its leader without holding anything up: the sink goes on looking at other
//! entries, and a leader never waits for its links.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::Receiver;
use crate::engine::plan::lock;
use crate::engine::session::{SessionError, first_error};
use crate::protocol::chunk::EntryId;
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{
    Entry, Failure, FailureCode, Kind, Message, Metadata, Outcome, Verdict,
};
use crate::storage::{Placed, Sink};

/// The entries that others are links to, for as long as the session lasts, and who waits for them.
#[derive(Debug, Default)]
pub struct Links {
    leaders: HashMap<EntryId, Leader>,
    /// How many links wait.
    pub waiting: usize,
}

#[derive(Debug)]
enum Leader {
    /// It has not ended, and these wait for it.
    Coming(Vec<Arc<Entry>>),
    There(Arc<Entry>),
    Lost(Lost),
}

/// A leader that failed.
#[derive(Clone, Debug)]
pub struct Lost {
    path: Vec<u8>,
    code: FailureCode,
}

/// A link that can be made, or cannot any more.
#[derive(Debug)]
pub struct ToLink {
    entry: Arc<Entry>,
    leader: Result<Arc<Entry>, Lost>,
}

impl<K: Sink> Receiver<K> {
    /// Checks what is said of links, and takes note of leaders.
    pub fn announce_link(&self, entry: &Entry) -> Result<(), SessionError> {
        let id = entry.id;
        if let Kind::HardLink { leader } = entry.kind
            && !lock(&self.links).leaders.contains_key(&leader)
        {
            let text = format!("{id} is a link to {leader}, which is nothing to be linked to");
            return Err(SessionError::violation(text));
        }
        if !entry.is_linked || !self.options.preserve.hard_links {
            return Ok(());
        }
        if matches!(entry.kind, Kind::Directory | Kind::HardLink { .. }) {
            return Err(SessionError::violation(format!("{id} cannot be linked to")));
        }
        lock(&self.links).leaders.insert(id, Leader::Coming(Vec::new()));
        Ok(())
    }

    /// Hands a link on, now or when its leader has ended.
    pub fn link_or_wait(&self, entry: &Arc<Entry>, leader: EntryId) {
        let mut links = lock(&self.links);
        let entry = Arc::clone(entry);
        match links.leaders.get_mut(&leader) {
            Some(Leader::Coming(waiting)) => {
                waiting.push(entry);
                links.waiting += 1;
                drop(links);
                self.ended.notify_one();
            }
            Some(Leader::There(leader)) => {
                self.to_link.push(ToLink { entry, leader: Ok(Arc::clone(leader)) });
            }
            Some(Leader::Lost(lost)) => {
                self.to_link.push(ToLink { entry, leader: Err(lost.clone()) });
            }
            // It was checked when it was announced.
            None => {
                let lost = Lost { path: Vec::new(), code: FailureCode::Violation };
                self.to_link.push(ToLink { entry, leader: Err(lost) });
            }
        }
    }

    /// Lets go of the links that waited for this entry.
    pub fn leader_ended(&self, entry: &Entry, outcome: &Outcome) {
        let ended = match outcome {
            Outcome::Failed(failure) => {
                Err(Lost { path: self.sink.path(entry), code: failure.code })
            }
            _ => Ok(Arc::new(bare(entry))),
        };
        let mut links = lock(&self.links);
        let Some(leader) = links.leaders.get_mut(&entry.id) else { return };
        let now = match &ended {
            Ok(entry) => Leader::There(Arc::clone(entry)),
            Err(lost) => Leader::Lost(lost.clone()),
        };
        let Leader::Coming(waiting) = std::mem::replace(leader, now) else { return };
        links.waiting -= waiting.len();
        for entry in waiting {
            self.to_link.push(ToLink { entry, leader: ended.clone() });
        }
    }

    /// Makes links, a few at a time.
    pub async fn link_all(self: Arc<Self>) -> Result<(), SessionError> {
        let mut linking: JoinSet<Result<(), SessionError>> = JoinSet::new();
        loop {
            tokio::select! {
                first = self.to_link.next(), if linking.len() < LINKING_TASKS => {
                    let mut batch = vec![first];
                    while batch.len() < MAX_BATCH
                        && let Some(next) = self.to_link.try_next()
                    {
                        batch.push(next);
                    }
                    linking.spawn(Arc::clone(&self).link(batch));
                }
                Some(joined) = linking.join_next() => first_error(joined)?,
            }
        }
    }

    async fn link(self: Arc<Self>, batch: Vec<ToLink>) -> Result<(), SessionError> {
        let mut verdicts = Vec::with_capacity(batch.len());
        for ToLink { entry, leader } in batch {
            let id = entry.id;
            if lock(&self.open).get(id).is_none() {
                continue;
            }
            let outcome = match leader {
                Ok(leader) => match self.sink.link(Arc::clone(&entry), leader).await {
                    Ok(Placed::Settled(changes)) if changes.is_empty() => Outcome::Skipped,
                    Ok(Placed::Left) => Outcome::Left,
                    Ok(Placed::Settled(changes)) if self.options.dry_run => Outcome::Would(changes),
                    Ok(Placed::Settled(changes)) => Outcome::Done(changes),
                    Ok(Placed::Wanted(_) | Placed::Compare) => {
                        return Err(SessionError::bug("the sink asks for the data of a link"));
                    }
                    Err(error) => {
                        self.check_fatal(&error)?;
                        Outcome::Failed(error.to_failure())
                    }
                },
                Err(lost) => Outcome::Failed(lost.failure(&self.sink.path(&entry))),
            };
            if self.end(id, 0, &outcome, None) {
                verdicts.push((id, Verdict::Ended(outcome)));
            }
        }
        self.pass_on_complaints()?;
        self.say_in_pieces(verdicts, Verdict::estimated_len, Message::Verdicts)
    }
}

impl Lost {
    /// What that means for a link.
    fn failure(&self, link: &[u8]) -> Failure {
        let text = format!(
            "cannot link {} to {}, which failed itself",
            Escaped(link),
            Escaped(&self.path)
        );
        Failure::new(self.code, text)
    }
}

/// An entry without what only its own place needs: it is kept for the rest of the session.
fn bare(entry: &Entry) -> Entry {
    let Metadata { mode, mtime, owner, group, attributes: _ } = entry.metadata;
    let metadata = Metadata { mode, mtime, owner, group, attributes: Vec::new() };
    let (name, kind) = (entry.name.clone(), entry.kind.clone());
    Entry { id: entry.id, parent: entry.parent, name, kind, is_linked: true, metadata }
}

/// How many tasks make links, and how many links each of them makes before it says so.
const LINKING_TASKS: usize = 4;
const MAX_BATCH: usize = 64;
