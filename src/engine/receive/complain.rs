//! What could not be kept of entries whose content is there: told to the user and to the sender.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Receiver;
use crate::engine::session::SessionError;
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{Failure, FailureCode, Message};
use crate::storage::Sink;

/// How many complaints there were, of both ends.
#[derive(Debug, Default)]
pub struct Complaints {
    told: AtomicU64,
    /// Those that were only counted.
    more: AtomicU64,
}

impl<K: Sink> Receiver<K> {
    /// Tells the user, unless there were too many already. Returns whether it did.
    pub fn complain(&self, path: Vec<u8>, failure: Failure) -> bool {
        if self.complaints.told.fetch_add(1, Ordering::Relaxed) >= MAX_COMPLAINTS {
            self.complaints.more.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.observer.complain(path, failure);
        true
    }

    /// The sender could not do something about an entry, or list a directory (ENTRY-14).
    pub fn hear_complaint(&self, id: EntryId, failure: Failure) {
        let path = {
            let open = super::lock(&self.open);
            open.get(id).map(|incoming| std::sync::Arc::clone(&incoming.entry))
        };
        let path = match path {
            Some(entry) => self.sink.path(&entry),
            None if id == EntryId::ROOT => Vec::new(),
            None => format!("{id}").into_bytes(),
        };
        self.complain(path, failure);
    }

    /// Tells both ends what the sink could not keep since the last time, and what it had to remove.
    pub fn pass_on_complaints(&self) -> Result<(), SessionError> {
        self.tell_removed()?;
        for (entry, error) in self.sink.complaints() {
            let failure = error.to_failure();
            if self.complain(error.path().to_vec(), failure.clone()) {
                self.say(&Message::Complaint { entry, failure })?;
            }
        }
        Ok(())
    }

    /// Says how many complaints there were beyond those that were told.
    pub fn sum_up_complaints(&self) -> Result<(), SessionError> {
        let more = self.complaints.more.swap(0, Ordering::Relaxed);
        if more == 0 {
            return Ok(());
        }
        let text = format!("{more} more complaints were counted and are not listed");
        let failure = Failure::new(FailureCode::Io, text);
        self.observer.complain(Vec::new(), failure.clone());
        self.say(&Message::Complaint { entry: EntryId::ROOT, failure })
    }
}

/// How many complaints are told one by one.
pub const MAX_COMPLAINTS: u64 = 10_000;
