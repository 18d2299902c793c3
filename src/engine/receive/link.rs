//! Hard links: other names of entries, made when those are in their places.
//!
//! A link waits for its leader without holding anything up: the sink goes on looking at other
//! entries, and a leader never waits for its links.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::Receiver;
use super::open::State;
use crate::engine::plan::lock;
use crate::engine::session::{SessionError, first_error};
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{Entry, Kind, Message, Outcome, Verdict};
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
    /// It failed or is left alone; this link leads the others now, once there is one.
    Gone {
        successor: Option<EntryId>,
    },
}

/// A link that can be made.
#[derive(Debug)]
pub struct ToLink {
    entry: Arc<Entry>,
    leader: Arc<Entry>,
}

impl Links {
    /// Who leads now in place of this leader: itself, or the last of its successors.
    fn current(&mut self, leader: EntryId) -> EntryId {
        let mut last = leader;
        while let Some(Leader::Gone { successor: Some(next) }) = self.leaders.get(&last) {
            last = *next;
        }
        // The way is short the next time.
        if last != leader
            && let Some(Leader::Gone { successor }) = self.leaders.get_mut(&leader)
        {
            *successor = Some(last);
        }
        last
    }

    /// Makes a link the leader of all that would be links to another entry.
    fn succeed(&mut self, gone: EntryId, successor: EntryId, waiting: Vec<Arc<Entry>>) {
        self.leaders.insert(gone, Leader::Gone { successor: Some(successor) });
        self.leaders.insert(successor, Leader::Coming(waiting));
    }
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

    /// Hands a link on, now or when its leader has ended. Returns whether it has to do without one.
    pub fn link_or_wait(&self, entry: &Arc<Entry>, leader: EntryId) -> bool {
        let mut links = lock(&self.links);
        let leader = links.current(leader);
        match links.leaders.get_mut(&leader) {
            Some(Leader::Coming(waiting)) => {
                waiting.push(Arc::clone(entry));
                links.waiting += 1;
                drop(links);
                self.ended.notify_one();
                false
            }
            Some(Leader::There(leader)) => {
                let leader = Arc::clone(leader);
                self.to_link.push(ToLink { entry: Arc::clone(entry), leader });
                false
            }
            // That it is known was checked when it was announced.
            Some(Leader::Gone { .. }) | None => {
                links.succeed(leader, entry.id, Vec::new());
                true
            }
        }
    }

    /// Lets go of the links that waited for this entry.
    pub fn leader_ended(&self, entry: &Entry, outcome: &Outcome) {
        if !matches!(outcome, Outcome::Done(_) | Outcome::Skipped | Outcome::Would(_)) {
            return self.leader_gone(entry.id);
        }
        let mut links = lock(&self.links);
        let Some(known) = links.leaders.get_mut(&entry.id) else { return };
        let leader = Arc::new(entry.bare());
        let now = Leader::There(Arc::clone(&leader));
        let Leader::Coming(waiting) = std::mem::replace(known, now) else { return };
        links.waiting -= waiting.len();
        for entry in waiting {
            self.to_link.push(ToLink { entry, leader: Arc::clone(&leader) });
        }
    }

    /// Lets the first of the links that waited for an entry lead the others.
    fn leader_gone(&self, id: EntryId) {
        let mut links = lock(&self.links);
        let Some(Leader::Coming(waiting)) = links.leaders.get_mut(&id) else { return };
        let mut waiting = std::mem::take(waiting).into_iter();
        let Some(successor) = waiting.next() else {
            links.leaders.insert(id, Leader::Gone { successor: None });
            return;
        };
        links.waiting -= 1;
        links.succeed(id, successor.id, waiting.collect());
        self.to_promote.push(successor);
    }

    /// The path of what a hard link is another name of.
    pub fn leader_of(&self, entry: &Entry) -> Option<Vec<u8>> {
        let Kind::HardLink { leader } = entry.kind else { return None };
        let mut links = lock(&self.links);
        let leader = links.current(leader);
        match links.leaders.get(&leader) {
            Some(Leader::There(leader)) => Some(self.sink.path(leader)),
            _ => None,
        }
    }

    /// Asks the sender what a link is by itself, as there is nothing that it could be linked to
    /// (ENTRY-16).
    pub fn promote(&self, link: &Entry) -> Option<Verdict> {
        if let Some(known) = lock(&self.open).at(link.id, 0) {
            known.state = State::Alone;
            return Some(Verdict::Alone);
        }
        // It was withdrawn meanwhile.
        self.leader_gone(link.id);
        None
    }

    /// Asks for all links whose leaders have failed or are left alone.
    pub async fn promote_all(self: Arc<Self>) -> Result<(), SessionError> {
        loop {
            let link = self.to_promote.next().await;
            let verdict = self.promote(&link);
            let verdicts = verdict.map(|verdict| (link.id, verdict)).into_iter().collect();
            self.say_in_pieces(verdicts, Verdict::estimated_len, Message::Verdicts)?;
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
            let outcome = match self.sink.link(Arc::clone(&entry), leader).await {
                Ok(Placed::Settled(changes)) if changes.is_empty() => Outcome::Skipped,
                Ok(Placed::Left) => Outcome::Left,
                Ok(Placed::Settled(changes)) if self.options.dry_run => Outcome::Would(changes),
                Ok(Placed::Settled(changes)) => Outcome::Done(changes),
                Ok(Placed::Wanted(_) | Placed::Compare(_)) => {
                    return Err(SessionError::bug("the sink asks for the data of a link"));
                }
                Err(error) => {
                    self.check_fatal(&error)?;
                    Outcome::Failed(error.to_failure())
                }
            };
            if self.end(id, 0, &outcome, None) {
                verdicts.push((id, Verdict::Ended(outcome)));
            }
        }
        self.pass_on_complaints()?;
        self.say_in_pieces(verdicts, Verdict::estimated_len, Message::Verdicts)
    }
}

/// How many tasks make links, and how many links each of them makes before it says so.
const LINKING_TASKS: usize = 4;
const MAX_BATCH: usize = 64;
