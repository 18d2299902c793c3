//! What the source does not have is removed at the destination, after all else (DEL-1).
//!
//! Only what this end knows decides: which directories were announced to their end, and every name
//! in them. The sink goes by the destination's own listings.

use super::{MAX_PIECE_LEN, Receiver};
use crate::engine::event::Event;
use crate::engine::plan::lock;
use crate::engine::session::SessionError;
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{Deleted, Deletions, MAX_TOLD_PATH_LEN, Message};
use crate::storage::{NameSet, Removed, Sink};

/// What the source has.
#[derive(Debug)]
pub struct Listing {
    /// The directories of which everything has been announced, without an error.
    pub listed: Vec<EntryId>,
    /// Every name that was announced, whatever became of it.
    pub names: NameSet,
}

impl<K: Sink> Receiver<K> {
    /// Removes what the source does not have, and tells of it. That this fails is no reason to undo
    /// the rest.
    pub async fn delete(&self, listing: Listing) -> Result<Deletions, SessionError> {
        let Listing { listed, names } = listing;
        let failed = std::mem::take(&mut *lock(&self.failed_directories));
        let complete = listed.into_iter().filter(|id| !failed.contains(id)).collect();
        let (tell, deleted) = flume::bounded(QUEUE_LEN);
        let deleting = self.sink.delete(complete, names, tell);
        let (answer, told) = tokio::join!(deleting, self.tell_deleted(deleted));
        told?;
        self.pass_on_complaints()?;
        match answer {
            Ok(deletions) => Ok(deletions),
            Err(error) => {
                self.complain(error.to_complaint())?;
                Ok(Deletions::default())
            }
        }
    }

    /// Tells of what had to go for others since the last time, and counts it.
    pub fn tell_removed(&self) -> Result<(), SessionError> {
        let Removed { deleted, over_limit } = self.sink.removed();
        let mut made_room = lock(&self.made_room);
        made_room.done += deleted.len() as u64;
        made_room.over_limit += over_limit;
        drop(made_room);
        let (mut piece, mut len) = (Vec::new(), 0);
        for one in deleted {
            let one = self.tell_one(one);
            len += 16 + one.path.len();
            piece.push(one);
            if len > MAX_PIECE_LEN {
                self.say(&Message::Deleted(std::mem::take(&mut piece)))?;
                len = 0;
            }
        }
        if piece.is_empty() { Ok(()) } else { self.say(&Message::Deleted(piece)) }
    }

    /// Tells the user of one thing, and returns what the sender is told.
    fn tell_one(&self, one: Deleted) -> Deleted {
        let Deleted { mut path, is_directory } = one;
        self.observer.tell(Event::Deleted { path: path.clone(), is_directory });
        path.truncate(MAX_TOLD_PATH_LEN);
        Deleted { path, is_directory }
    }

    async fn tell_deleted(&self, deleted: flume::Receiver<Deleted>) -> Result<(), SessionError> {
        let (mut piece, mut len) = (Vec::new(), 0);
        while let Ok(one) = deleted.recv_async().await {
            let one = self.tell_one(one);
            len += 16 + one.path.len();
            piece.push(one);
            if len > MAX_PIECE_LEN || deleted.is_empty() {
                self.outbox.room().await;
                self.say(&Message::Deleted(std::mem::take(&mut piece)))?;
                len = 0;
            }
        }
        Ok(())
    }
}

/// How many deletions wait to be told of.
const QUEUE_LEN: usize = 1024;
