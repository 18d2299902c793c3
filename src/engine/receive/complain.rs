//! What could not be kept of entries whose content is there: told to the user and to the sender.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Receiver;
use crate::engine::session::SessionError;
use crate::protocol::message::{Complaint, Failure, FailureCode, Message};
use crate::storage::Sink;

/// How many complaints there were, of both ends.
#[derive(Debug, Default)]
pub struct Complaints {
    told: AtomicU64,
    /// Those that were only counted.
    more: AtomicU64,
}

impl<K: Sink> Receiver<K> {
    /// Tells both ends, unless there were too many already.
    pub fn complain(&self, complaint: Complaint) -> Result<(), SessionError> {
        if self.is_told() {
            self.observer.complain(complaint.clone());
            self.say(&Message::Complaint(complaint))?;
        }
        Ok(())
    }

    /// The sender could not do something about an entry, or list a directory (ENTRY-14).
    pub fn hear_complaint(&self, complaint: Complaint) {
        if self.is_told() {
            self.observer.complain(complaint);
        }
    }

    /// Counts a complaint, and returns whether it is one of those that are told.
    fn is_told(&self) -> bool {
        let is_told = self.complaints.told.fetch_add(1, Ordering::Relaxed) < MAX_COMPLAINTS;
        if !is_told {
            self.complaints.more.fetch_add(1, Ordering::Relaxed);
        }
        is_told
    }

    /// Tells both ends what the sink could not keep since the last time, and what it had to remove.
    pub fn pass_on_complaints(&self) -> Result<(), SessionError> {
        self.tell_removed()?;
        self.sink.complaints().iter().try_for_each(|error| self.complain(error.to_complaint()))
    }

    /// Says how many complaints there were beyond those that were told.
    pub fn sum_up_complaints(&self) -> Result<(), SessionError> {
        let more = self.complaints.more.swap(0, Ordering::Relaxed);
        if more == 0 {
            return Ok(());
        }
        let text = format!("{more} more complaints were counted and are not listed");
        let complaint = Complaint::new(Vec::new(), Failure::new(FailureCode::Io, text));
        self.observer.complain(complaint.clone());
        self.say(&Message::Complaint(complaint))
    }
}

/// How many complaints are told one by one.
pub const MAX_COMPLAINTS: u64 = 10_000;
