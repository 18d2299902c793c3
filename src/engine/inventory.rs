//! A receiver that wants nothing: it only tells what the sender has, with roots if asked for.
//!
//! For `ls`, `manifest` and checks against a manifest. To the sender it is any other receiver, so
//! that what it lists and hashes is what a transfer would see.

use std::collections::HashMap;

use tokio::io::AsyncRead;

use super::client::SessionEnd;
use super::control::{ControlError, Inbox, Outbox};
use super::event::EntryReport;
use super::send;
use super::session::{Observer, SessionError};
use crate::protocol::chunk::{Digest, EntryId};
use crate::protocol::manifest::{Fate, FinalEntry, Totals};
use crate::protocol::message::{
    Changes, Deletions, Entry, Kind, Message, Outcome, Summary, Verdict,
};

/// What is known while the sender tells.
struct Inventory {
    outbox: Outbox,
    observer: Observer,
    hash: bool,
    last: EntryId,
    /// Paths of directories, for those of what is in them.
    directories: HashMap<EntryId, Vec<u8>>,
    /// Paths of what others are hard links to.
    leaders: HashMap<EntryId, Vec<u8>>,
    /// Files of which the root is awaited.
    open: HashMap<EntryId, (Entry, u16)>,
    totals: Totals,
}

/// Hears all that a sender has to tell, to the end of the session.
pub async fn run<R: AsyncRead + Unpin>(
    hash: bool,
    inbox: &mut Inbox<R>,
    outbox: Outbox,
    observer: Observer,
) -> Result<SessionEnd, SessionError> {
    let mut inventory = Inventory {
        outbox,
        observer,
        hash,
        last: EntryId::ROOT,
        directories: HashMap::new(),
        leaders: HashMap::new(),
        open: HashMap::new(),
        totals: Totals::default(),
    };
    let observer = inventory.observer.clone();
    let mut stopped = std::pin::pin!(observer.asked_to_stop());
    loop {
        let message = tokio::select! {
            message = inbox.next() => message?,
            () = &mut stopped => return Err(SessionError::interrupted()),
        };
        match message {
            Message::Entries(entries) => {
                let mut verdicts = Vec::with_capacity(entries.len());
                for entry in entries {
                    verdicts.push(inventory.announced(entry)?);
                }
                inventory.say(&Message::Verdicts(verdicts))?;
            }
            Message::Root { entry, version, root } => inventory.hashed(entry, version, root)?,
            Message::Restart { entry, version } => inventory.restarted(entry, version)?,
            Message::Withdraw { entry, failure } => {
                if let Some((known, _)) = inventory.open.remove(&entry) {
                    let outcome = Outcome::Failed(failure);
                    inventory.end(&known, outcome.clone(), None);
                    inventory.say(&Message::Outcomes(vec![(entry, outcome)]))?;
                }
            }
            Message::Complaint(complaint) => observer.complain(complaint),
            Message::SourceDone(theirs) => {
                if !inventory.open.is_empty() {
                    let text = "the sender is done before all entries are";
                    return Err(SessionError::violation(text));
                }
                let summary = Summary::from(inventory.totals);
                let (durable, deletions) = (false, Deletions::default());
                inventory.say(&Message::ReceiverDone { summary, durable, deletions })?;
                inventory.agree(summary, &theirs, inbox).await?;
                return Ok(SessionEnd { totals: inventory.totals, durable, deletions });
            }
            Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
            // The state machine lets nothing else through that means something here.
            _ => {}
        }
    }
}

impl Inventory {
    fn say(&self, message: &Message) -> Result<(), SessionError> {
        self.outbox.say(message).map_err(SessionError::from)
    }

    fn announced(&mut self, entry: Entry) -> Result<(EntryId, Verdict), SessionError> {
        let id = entry.id;
        let is_known =
            entry.parent == EntryId::ROOT || self.directories.contains_key(&entry.parent);
        if id <= self.last || !is_known {
            return Err(SessionError::violation(format!("{id} is announced out of order")));
        }
        self.last = id;
        self.observer.found(&entry);
        if entry.kind == Kind::Directory {
            self.directories.insert(id, self.path(&entry));
        }
        if entry.is_linked {
            self.leaders.insert(id, self.path(&entry));
        }
        let outcome = match &entry.kind {
            Kind::File(_) if self.hash => {
                self.open.insert(id, (entry, 0));
                return Ok((id, Verdict::Hash));
            }
            Kind::Unsendable(failure) => Outcome::Failed(failure.clone()),
            _ => Outcome::Would(Changes::NONE),
        };
        self.end(&entry, outcome.clone(), None);
        Ok((id, Verdict::Ended(outcome)))
    }

    fn hashed(&mut self, id: EntryId, version: u16, root: Digest) -> Result<(), SessionError> {
        // What belongs to an older version crossed with a Restart.
        if self.open.get(&id).is_none_or(|(_, known)| *known != version) {
            return Ok(());
        }
        let Some((entry, _)) = self.open.remove(&id) else { return Ok(()) };
        let outcome = Outcome::Would(Changes::NONE);
        self.end(&entry, outcome.clone(), Some(root));
        self.say(&Message::Verdicts(vec![(id, Verdict::Ended(outcome))]))
    }

    fn restarted(&mut self, entry: Entry, version: u16) -> Result<(), SessionError> {
        let id = entry.id;
        let Some((known, known_version)) = self.open.get_mut(&id) else { return Ok(()) };
        let is_file = matches!(entry.kind, Kind::File(_));
        let is_same = known.parent == entry.parent && known.name == entry.name;
        if !is_file || !is_same || version != *known_version + 1 || version > send::MAX_RESTARTS {
            return Err(SessionError::violation(format!("{id} cannot begin anew like this")));
        }
        (*known, *known_version) = (entry, version);
        self.say(&Message::Verdicts(vec![(id, Verdict::Hash)]))
    }

    fn end(&mut self, entry: &Entry, outcome: Outcome, root: Option<Digest>) {
        self.totals.add(&FinalEntry {
            id: entry.id,
            parent: entry.parent,
            name: &entry.name,
            size: entry.size(),
            fate: Fate::from(&outcome),
            // Nothing was transferred (END-3).
            root: Digest::default(),
        });
        let leader = match entry.kind {
            Kind::HardLink { leader } => self.leaders.get(&leader).cloned(),
            _ => None,
        };
        let report = EntryReport::new(self.path(entry), entry, leader, root, outcome);
        self.observer.ended(report, true);
    }

    fn path(&self, entry: &Entry) -> Vec<u8> {
        let name = entry.name.as_bytes();
        match self.directories.get(&entry.parent) {
            Some(parent) => [parent, &b"/"[..], name].concat(),
            None => name.to_vec(),
        }
    }

    /// Hears whether both ends count alike, and ends the session.
    async fn agree<R: AsyncRead + Unpin>(
        &self,
        ours: Summary,
        theirs: &Summary,
        inbox: &mut Inbox<R>,
    ) -> Result<(), SessionError> {
        loop {
            match inbox.next().await? {
                Message::Finish { agreed: true } if ours == *theirs => {
                    return self.say(&Message::Closed);
                }
                Message::Finish { .. } => return Err(SessionError::mismatch(theirs, &ours)),
                Message::Complaint(complaint) => self.observer.complain(complaint),
                Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
                _ => {}
            }
        }
    }
}
