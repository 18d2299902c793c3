//! The entries that are announced and have not ended, and how far each of them is.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;

use crate::engine::journal::FileNumber;
use crate::protocol::chunk::{Digest, EntryId};
use crate::protocol::message::{Changes, Entry, MAX_OPEN_ENTRIES};
use crate::protocol::tree::RootBuilder;

/// Everything that is open, by identity.
pub struct Open<F> {
    entries: HashMap<EntryId, Incoming<F>>,
    /// What they count for, each as it was announced first (ENTRY-4).
    weight: u64,
    /// What they count for beyond that since they were announced anew.
    grown: u64,
}

/// An entry that has not ended.
pub struct Incoming<F> {
    pub entry: Arc<Entry>,
    pub version: u16,
    pub state: State<F>,
    /// What the sender says that its data amounts to, once both ends have hashed it.
    pub compared: Option<Digest>,
    weight: u64,
    grown: u64,
}

pub enum State<F> {
    /// The sink is looking at what is there; a hard link waits for the entry that it leads to.
    Placing,
    /// It is a hard link without a leader: the sender is asked what it is by itself.
    Alone,
    /// Both ends hash what they have of it.
    Comparing(Comparison),
    /// It will come in a pack, and this is different about it at the destination.
    Packed(Changes),
    /// It comes in chunks.
    Chunked(Arc<Incomplete<F>>),
    /// The sink copies it without us; range by range if there is an incomplete file.
    Copying(Option<Arc<Incomplete<F>>>),
    /// It came in a pack, and waits with others to be put in its place.
    Grouped,
    /// It is whole and being put in its place.
    Committing(Arc<Incomplete<F>>),
}

/// What is known of a file that both ends hash.
#[derive(Clone, Copy, Debug, Default)]
pub struct Comparison {
    pub ours: Ours,
    pub theirs: Option<Digest>,
}

/// What the file at the destination amounts to.
#[derive(Clone, Copy, Debug, Default)]
pub enum Ours {
    #[default]
    Coming,
    /// It cannot be read, or need not be, and so is no equal of anything.
    Unreadable,
    Root(Digest),
}

/// A file of which chunks are still to come.
pub struct Incomplete<F> {
    pub entry: Arc<Entry>,
    pub version: u16,
    /// What is different about it at the destination.
    pub changes: Changes,
    /// What the sender says that its data amounts to, if it was asked before.
    pub compared: Option<Digest>,
    /// Made with the first chunk, so that files that wait hold nothing open.
    pub temporary: OnceCell<Temporary<F>>,
    /// For a copy it only counts chunks, of which nobody knows the values.
    pub tree: Mutex<RootBuilder>,
    /// Chunks that are being verified and written, so that two copies never are at once.
    pub claimed: Mutex<HashSet<u64>>,
    /// What the sender says the file's root is.
    pub end: Mutex<Option<Digest>>,
    /// Set when nothing more is to come of it, so that no temporary file is made any more.
    pub is_abandoned: AtomicBool,
}

#[derive(Clone)]
pub struct Temporary<F> {
    pub file: F,
    pub number: FileNumber,
}

impl<F> Default for Open<F> {
    fn default() -> Self {
        Self { entries: HashMap::new(), weight: 0, grown: 0 }
    }
}

impl<F> Open<F> {
    pub fn announce(&mut self, entry: Arc<Entry>) {
        let weight = weight(&entry);
        self.weight += weight;
        let id = entry.id;
        let state = State::Placing;
        let incoming = Incoming { entry, version: 0, state, compared: None, weight, grown: 0 };
        self.entries.insert(id, incoming);
    }

    /// Takes note of what a file is now. Its state stays as it is.
    pub fn renew(&mut self, entry: Arc<Entry>, version: u16) {
        let Some(known) = self.entries.get_mut(&entry.id) else { return };
        let grown = weight(&entry).saturating_sub(known.weight);
        self.grown = self.grown - known.grown + grown;
        (known.grown, known.version, known.compared) = (grown, version, None);
        known.entry = entry;
    }

    pub fn remove(&mut self, id: EntryId) -> Option<Incoming<F>> {
        let removed = self.entries.remove(&id)?;
        self.weight -= removed.weight;
        self.grown -= removed.grown;
        Some(removed)
    }

    /// Whether a peer that keeps the protocol cannot have announced all of this (ENTRY-4). What is
    /// announced anew may have become more than its sender had counted on, up to a limit of its own.
    pub fn is_over_limit(&self) -> bool {
        self.weight.max(self.grown) > u64::from(MAX_OPEN_ENTRIES)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, id: EntryId) -> Option<&Incoming<F>> {
        self.entries.get(&id)
    }

    pub fn get_mut(&mut self, id: EntryId) -> Option<&mut Incoming<F>> {
        self.entries.get_mut(&id)
    }

    /// The entry, if this is its version now.
    pub fn at(&mut self, id: EntryId, version: u16) -> Option<&mut Incoming<F>> {
        self.entries.get_mut(&id).filter(|incoming| incoming.version == version)
    }

    /// The files of which there may be a part on the disk.
    pub fn incomplete(&self) -> Vec<Arc<Incomplete<F>>> {
        self.entries.values().filter_map(|incoming| incoming.state.incomplete().cloned()).collect()
    }
}

impl<F> State<F> {
    /// The file of which there may be a part on the disk.
    pub fn incomplete(&self) -> Option<&Arc<Incomplete<F>>> {
        match self {
            Self::Chunked(file) | Self::Committing(file) | Self::Copying(Some(file)) => Some(file),
            Self::Placing
            | Self::Alone
            | Self::Comparing(_)
            | Self::Packed(_)
            | Self::Copying(None)
            | Self::Grouped => None,
        }
    }

    /// Whether its end is near, and does not depend on the sender any more.
    pub fn is_ending(&self) -> bool {
        matches!(self, Self::Copying(_) | Self::Grouped | Self::Committing(_))
    }
}

/// No single entry counts for more than all that may be open.
fn weight(entry: &Entry) -> u64 {
    entry.weight().min(MAX_OPEN_ENTRIES).into()
}
