//! What makes it last: barriers while data comes, and the last things in their order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncRead;

use super::delete::Listing;
use super::{Receiver, ReceiverEnd};
use crate::engine::control::{ControlError, Inbox};
use crate::engine::event::Event;
use crate::engine::journal::Journal;
use crate::engine::plan::lock;
use crate::engine::session::SessionError;
use crate::protocol::message::{Deletions, Durability, Message, Summary};
use crate::storage::{Remembers, Sink};

impl<K: Sink> Receiver<K> {
    /// Makes what was written hold across a reboot, now and then (JRN-5).
    pub async fn keep_barriers(self: Arc<Self>) -> Result<(), SessionError> {
        if self.journal.is_none() || !self.has_barriers() {
            return std::future::pending().await;
        }
        let mut last = 0;
        loop {
            tokio::time::sleep(BARRIER_INTERVAL).await;
            let records = self.journal.as_ref().map_or(0, Journal::records);
            if records != last {
                self.barrier().await?;
                last = records + 1;
            }
        }
    }

    /// A last barrier before the session is given up.
    pub async fn checkpoint(self: &Arc<Self>) -> Result<(), SessionError> {
        if self.journal.is_none() || !self.has_barriers() {
            return Ok(());
        }
        self.barrier().await
    }

    /// Whether it makes a difference that something was synced.
    fn has_barriers(&self) -> bool {
        let may_forget = match self.sink.remembers() {
            Remembers::UntilBoot | Remembers::Reread => self.sink.syncs(),
            Remembers::Always | Remembers::Nothing => false,
        };
        may_forget && self.options.durability != Durability::None
    }

    /// Syncs every file that has chunks in the journal, and only then says so in it.
    async fn barrier(self: &Arc<Self>) -> Result<(), SessionError> {
        let records = self.journal.as_ref().map_or(0, Journal::records);
        let files = lock(&self.open).incomplete();
        if !self.earlier_synced.load(Ordering::Acquire) {
            // What earlier runs wrote is in files that this one may not have opened yet.
            if self.sink.remembers() == Remembers::Reread && !lock(&self.begun).is_empty() {
                return Ok(());
            }
            if let Err(error) = self.sink.sync_all().await {
                return self.check_fatal(&error);
            }
            self.earlier_synced.store(true, Ordering::Release);
        }
        for file in files {
            let Some(made) = file.temporary.get().map(|made| made.file.clone()) else { continue };
            if let Err(error) = self.sink.sync_files(vec![made]).await {
                // The system says this once: a later sync of the same file would seem to succeed.
                self.fail(&file, &error).await?;
                return Ok(());
            }
        }
        let this = Arc::clone(self);
        let write = move || this.record(|journal| journal.barrier(records));
        tokio::task::spawn_blocking(write).await.map_err(SessionError::bug)?
    }

    /// Puts the last things in order; returns whether all of it is on stable storage.
    async fn settle(&self, listing: Option<Listing>) -> Result<(bool, Deletions), SessionError> {
        let left_over = std::mem::take(&mut *lock(&self.begun));
        let left_over =
            left_over.into_iter().map(|(path, begun)| (path, begun.temporary)).collect();
        self.discard_stale(left_over).await;
        let mut deletions = match listing {
            Some(listing) => self.delete(listing).await?,
            None => Deletions::default(),
        };
        self.sink.finish().await;
        if let Some(note) = self.sink.note() {
            self.observer.tell(Event::Note(note));
        }
        self.pass_on_complaints()?;
        self.sum_up_complaints()?;
        let made_room = *lock(&self.made_room);
        deletions.done += made_room.done;
        deletions.over_limit += made_room.over_limit;
        if self.options.durability == Durability::None || self.options.dry_run {
            return Ok((false, deletions));
        }
        self.sink.sync_all().await.map_err(|error| SessionError::storage(&error))?;
        Ok((self.sink.lasts(), deletions))
    }

    /// Everything has come: puts the last things in order and compares counts (END-2, END-3).
    pub async fn finish<R: AsyncRead + Unpin>(
        &self,
        theirs: Summary,
        listing: Option<Listing>,
        inbox: &mut Inbox<R>,
    ) -> Result<ReceiverEnd, SessionError> {
        let settling = self.settle(listing);
        let mut settling = std::pin::pin!(settling);
        let (durable, deletions) = loop {
            // A slow disk may take minutes: the peer is heard meanwhile, and either may give up.
            tokio::select! {
                settled = &mut settling => break settled?,
                message = inbox.next() => self.hear_last(message?)?,
                () = self.observer.asked_to_stop() => return Err(SessionError::interrupted()),
            }
        };
        let totals = *lock(&self.totals);
        let summary = Summary::from(totals);
        *lock(&self.is_done) = true;
        self.say(&Message::ReceiverDone { summary, durable, deletions })?;
        loop {
            match inbox.next().await? {
                Message::Finish { agreed: true } if summary == theirs => {
                    return Ok(ReceiverEnd { totals, durable, deletions });
                }
                Message::Finish { .. } => return Err(SessionError::mismatch(&theirs, &summary)),
                other => self.hear_last(other)?,
            }
        }
    }

    /// Takes what may still come when the sender is done: that it gives up, and what it could not do
    /// after that.
    fn hear_last(&self, message: Message) -> Result<(), SessionError> {
        match message {
            Message::Abort(failure) => Err(ControlError::Aborted(failure).into()),
            Message::Complaint(complaint) => {
                self.hear_complaint(complaint);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// How long a session that is given up may take to make what has come hold across a reboot.
pub const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(5);

/// How often what was written is made to hold across a reboot.
const BARRIER_INTERVAL: Duration = Duration::from_secs(5);
