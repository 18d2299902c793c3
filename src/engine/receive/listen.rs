//! What the sender says: checked here, and handed on to whoever does it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinSet;

use super::Receiver;
use super::delete::Listing;
use super::open::{Incomplete, State};
use super::place::ToPlace;
use crate::engine::control::ControlError;
use crate::engine::plan::lock;
use crate::engine::send::MAX_RESTARTS;
use crate::engine::session::SessionError;
use crate::protocol::chunk::{Digest, EntryId, MAX_FILE_LEN};
use crate::protocol::message::{Entry, Failure, Kind, Message, Outcome, Owner, Summary};
use crate::storage::{NameSet, Sink};

/// Takes the sender's messages. Decides nothing that could make it wait.
pub struct Listener<K: Sink> {
    receiver: Arc<Receiver<K>>,
    /// Every directory, and whether all that is in it has been announced.
    directories: HashMap<EntryId, bool>,
    /// Every name that was announced, if something may be deleted.
    names: Option<NameSet>,
    /// How many users and groups have been named.
    users: usize,
    groups: usize,
}

impl<K: Sink> Listener<K> {
    pub fn new(receiver: Arc<Receiver<K>>) -> Self {
        let names = receiver.options.delete.is_some().then(NameSet::default);
        let directories = HashMap::from([(EntryId::ROOT, false)]);
        Self { receiver, directories, names, users: 0, groups: 0 }
    }

    /// What the source has, when all has been said; `None` if nothing may be deleted.
    pub fn into_listing(self) -> Option<Listing> {
        let is_listed = |(id, is_listed): (EntryId, bool)| is_listed.then_some(id);
        let listed = self.directories.into_iter().filter_map(is_listed).collect();
        self.names.map(|names| Listing { listed, names })
    }

    /// Returns the sender's summary once it is done.
    pub fn hear(
        &mut self,
        message: Message,
        chores: &mut JoinSet<Result<(), SessionError>>,
    ) -> Result<Option<Summary>, SessionError> {
        match message {
            Message::Owners { users, groups } => self.named(users, groups)?,
            Message::Entries(entries) => self.announced(entries)?,
            Message::Listed(directories) => self.listed(&directories)?,
            Message::Root { entry, version, root } => {
                self.receiver.root_told(entry, version, root)?;
            }
            Message::FileEnd { entry, version, root } => {
                if let Some(file) = self.receiver.file_end(entry, version, root)? {
                    chores.spawn(Arc::clone(&self.receiver).complete(file));
                }
            }
            Message::Restart { entry, version } => {
                if let Some((old, entry)) = self.restarted(entry, version)? {
                    chores.spawn(Arc::clone(&self.receiver).begin_anew(old, entry, version));
                }
            }
            Message::Withdraw { entry, failure } => {
                if let Some(old) = self.receiver.withdrawn(entry, failure)? {
                    chores.spawn(Arc::clone(&self.receiver).discard_old(old));
                }
            }
            Message::Complaint(complaint) => self.receiver.hear_complaint(complaint),
            Message::SourceDone(summary) => {
                if !lock(&self.receiver.open).is_empty() {
                    return Err(SessionError::violation(
                        "the sender is done before all entries are",
                    ));
                }
                return Ok(Some(summary));
            }
            Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
            Message::Sources { .. } => {
                return Err(SessionError::violation("Sources came twice (ENTRY-1)"));
            }
            // The state machine lets nothing else through in this role.
            Message::Ping
            | Message::Hello(_)
            | Message::Open(_)
            | Message::Accept(_)
            | Message::Finish { .. }
            | Message::Verdicts(_)
            | Message::Have { .. }
            | Message::Written(_)
            | Message::Again(_)
            | Message::Outcomes(_)
            | Message::ReceiverDone { .. }
            | Message::Deleted(_)
            | Message::Paths { .. }
            | Message::Dial(_)
            | Message::NotReached(_)
            | Message::Measure(_)
            | Message::Measured(_)
            | Message::Told(_)
            | Message::Closed => {}
        }
        Ok(None)
    }

    /// What owners and groups are called (META-3): for the entries after this, so it goes the same
    /// way as they do.
    fn named(&mut self, users: Vec<Owner>, groups: Vec<Owner>) -> Result<(), SessionError> {
        self.users += users.len();
        self.groups += groups.len();
        if self.users.max(self.groups) > MAX_OWNERS {
            return Err(SessionError::violation(
                "more owners are named than there may be (META-3)",
            ));
        }
        let is_valid = |owner: &Owner| {
            let is_part = |byte: &u8| ![0, b':'].contains(byte);
            (1..=255).contains(&owner.name.len()) && owner.name.iter().all(is_part)
        };
        if !users.iter().chain(&groups).all(is_valid) {
            return Err(SessionError::violation("an owner has no valid name (META-3)"));
        }
        self.receiver.to_place.push(ToPlace::Owners { users, groups });
        Ok(())
    }

    /// Checks what the sender announces (ENTRY-3, ENTRY-4) and hands it to the sink.
    fn announced(&mut self, entries: Vec<Entry>) -> Result<(), SessionError> {
        let receiver = Arc::clone(&self.receiver);
        let mut batch = Vec::with_capacity(entries.len());
        let mut open = lock(&receiver.open);
        for entry in entries {
            self.check(&entry)?;
            receiver.last_id.store(entry.id.0, Ordering::Relaxed);
            if entry.kind == Kind::Directory {
                self.directories.insert(entry.id, false);
            }
            if let Some(names) = &mut self.names {
                names.insert(entry.parent, entry.name.as_bytes());
            }
            receiver.observer.found(&entry);
            let entry = Arc::new(entry);
            open.announce(Arc::clone(&entry));
            batch.push((entry, 0));
        }
        if open.is_over_limit() {
            return Err(SessionError::violation("more entries are open than this end allows"));
        }
        drop(open);
        receiver.to_place.push(ToPlace::Entries(batch));
        Ok(())
    }

    fn check(&self, entry: &Entry) -> Result<(), SessionError> {
        let id = entry.id;
        let violation = |what: &str| Err(SessionError::violation(format!("{id} {what}")));
        if id.0 <= self.receiver.last_id.load(Ordering::Relaxed) {
            return violation("is announced out of order");
        }
        match self.directories.get(&entry.parent) {
            None => return violation("has no directory"),
            Some(true) => return violation("is in a directory that was listed to its end (DEL-2)"),
            Some(false) => {}
        }
        if let Err(text) = entry.metadata.check() {
            return violation(&format!("cannot be: {text}"));
        }
        if matches!(entry.kind, Kind::File(file) if file.size > MAX_FILE_LEN) {
            return violation("is too large");
        }
        self.receiver.announce_link(entry)
    }

    /// All that is in these directories has been announced (DEL-2).
    fn listed(&mut self, directories: &[EntryId]) -> Result<(), SessionError> {
        for id in directories {
            let Some(is_listed) = self.directories.get_mut(id) else {
                let text = format!("{id} was listed, and is no directory (DEL-2)");
                return Err(SessionError::violation(text));
            };
            *is_listed = true;
        }
        Ok(())
    }

    /// The file is another one now (ENTRY-6). Returns what had come of the earlier one, which has to
    /// be gone before the new one is looked at: both have the same temporary name.
    fn restarted(
        &self,
        mut entry: Entry,
        version: u16,
    ) -> Result<Option<Begin<K::File>>, SessionError> {
        let mut open = lock(&self.receiver.open);
        let Some(known) = open.get_mut(entry.id) else { return Ok(None) };
        let is_same_place = known.entry.parent == entry.parent && known.entry.name == entry.name;
        let is_file = matches!(entry.kind, Kind::File(file) if file.size <= MAX_FILE_LEN);
        let is_asked_for = match known.state {
            State::Alone => {
                is_file || matches!(entry.kind, Kind::Symlink { .. } | Kind::Special(_))
            }
            _ => is_file && matches!(known.entry.kind, Kind::File(_)),
        };
        let is_valid = entry.metadata.check().is_ok();
        let was_placed = !matches!(known.state, State::Placing | State::Copying(_));
        let is_next = version <= MAX_RESTARTS && version == known.version + 1;
        if !is_same_place || !is_asked_for || !is_valid || !was_placed || !is_next {
            return Err(SessionError::violation(format!(
                "{} cannot begin anew like this",
                entry.id
            )));
        }
        if matches!(known.state, State::Grouped) {
            // It is whole, and its end is on its way: that is about the version that came.
            return Ok(None);
        }
        // A version that is on its way to its place has the same temporary name: the task that does
        // it goes on with this one afterwards.
        let old = match known.state {
            State::Committing(_) => None,
            _ => Some(std::mem::replace(&mut known.state, State::Placing)),
        };
        // Who is a link to it has been said before. What was a link may lead others now.
        entry.is_linked = known.entry.is_linked || matches!(old, Some(State::Alone));
        let entry = Arc::new(entry);
        open.renew(Arc::clone(&entry), version);
        if open.is_over_limit() {
            return Err(SessionError::violation("more entries are open than this end allows"));
        }
        Ok(old.map(|old| (old.incomplete().cloned(), entry)))
    }
}

/// A file that begins anew, and what had come of its earlier version.
type Begin<F> = (Option<Arc<Incomplete<F>>>, Arc<Entry>);

impl<K: Sink> Receiver<K> {
    /// The sender has read all of a file. Returns the file if it may be complete.
    fn file_end(
        &self,
        id: EntryId,
        version: u16,
        root: Digest,
    ) -> Result<Option<Arc<Incomplete<K::File>>>, SessionError> {
        let open = lock(&self.open);
        let Some(incoming) = open.get(id) else { return Ok(None) };
        match &incoming.state {
            State::Chunked(file) if incoming.version == version => {
                *lock(&file.end) = Some(root);
                Ok(Some(Arc::clone(file)))
            }
            State::Committing(_) => Ok(None),
            _ if version < incoming.version => Ok(None),
            State::Chunked(_)
            | State::Packed(_)
            | State::Placing
            | State::Alone
            | State::Comparing(_)
            | State::Copying(_)
            | State::Grouped => {
                Err(SessionError::violation(format!("{id} ends before it was asked for")))
            }
        }
    }

    /// The sender cannot send an entry (ENTRY-7). Returns what had come of it.
    fn withdrawn(
        &self,
        id: EntryId,
        failure: Failure,
    ) -> Result<Option<Arc<Incomplete<K::File>>>, SessionError> {
        let withdrawn = {
            let mut open = lock(&self.open);
            if open.get(id).is_some_and(|known| known.state.is_ending()) {
                return Ok(None);
            }
            let Some(withdrawn) = open.remove(id) else { return Ok(None) };
            withdrawn
        };
        let outcome = Outcome::Failed(failure);
        self.count(&withdrawn, &outcome, None);
        self.say(&Message::Outcomes(vec![(id, outcome)]))?;
        Ok(withdrawn.state.incomplete().cloned())
    }

    async fn discard_old(
        self: Arc<Self>,
        file: Arc<Incomplete<K::File>>,
    ) -> Result<(), SessionError> {
        self.discard(&file).await
    }

    /// Throws away what had come of an earlier version, and looks at the new one after that.
    async fn begin_anew(
        self: Arc<Self>,
        old: Option<Arc<Incomplete<K::File>>>,
        entry: Arc<Entry>,
        version: u16,
    ) -> Result<(), SessionError> {
        if let Some(old) = old {
            self.discard(&old).await?;
        }
        self.to_place.push(ToPlace::Entries(vec![(entry, version)]));
        Ok(())
    }
}

/// How many users, and how many groups, a session has names for (META-3).
const MAX_OWNERS: usize = 65_536;
