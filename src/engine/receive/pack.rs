//! Small files that came together: `pack.verify → sink.prepare_files`, and on to their group.

use std::sync::Arc;

use super::Receiver;
use super::group::Claimed;
use super::open::State;
use crate::engine::event::Event;
use crate::engine::plan::lock;
use crate::engine::session::SessionError;
use crate::protocol::chunk::{EntryId, Pack, PackError, VerifiedFile};
use crate::protocol::message::{Message, Unit};
use crate::storage::Sink;

impl<K: Sink> Receiver<K> {
    pub async fn take_pack(self: Arc<Self>, pack: Pack) -> Result<(), SessionError> {
        let unit = Unit::Pack(pack.number);
        let verified = tokio::task::spawn_blocking(move || pack.verify()).await;
        let pack = match verified.map_err(SessionError::bug)? {
            Ok(pack) => pack,
            Err(PackError::Digest) => {
                self.observer.tell(Event::Mismatch { what: format!("{unit:?}") });
                return self.say(&Message::Again(vec![unit]));
            }
            Err(error @ PackError::Table) => {
                return Err(SessionError::violation(error.to_string()));
            }
        };
        let (files, mismatched) = pack.into_parts();
        let again: Vec<Unit> = mismatched
            .into_iter()
            .map(|member| Unit::Packed { entry: member.entry, version: member.version })
            .collect();
        if !again.is_empty() {
            self.observer.tell(Event::Mismatch { what: format!("{again:?}") });
            self.say(&Message::Again(again))?;
        }
        let mut wanted = Vec::with_capacity(files.len());
        for file in files {
            if let Some(claimed) = self.claim_packed(&file)? {
                wanted.push((file, claimed));
            }
        }
        while !wanted.is_empty() {
            let rest = wanted.split_off(wanted.len().min(self.part_len()));
            self.prepare(std::mem::replace(&mut wanted, rest)).await?;
        }
        self.say(&Message::Written(vec![unit]))
    }

    async fn prepare(&self, wanted: Vec<(VerifiedFile, Claimed)>) -> Result<(), SessionError> {
        let permit = self.may_prepare(wanted.len()).await?;
        let (files, claimed): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .map(|(file, claimed)| ((file, Arc::clone(&claimed.entry)), claimed))
            .unzip();
        let prepared = self.sink.prepare_files(files).await;
        self.take_prepared(claimed, prepared, permit).await
    }

    /// Takes a packed file out of those that are awaited; `None` where it comes too late (FRAME-8).
    fn claim_packed(&self, file: &VerifiedFile) -> Result<Option<Claimed>, SessionError> {
        let member = file.member();
        let (id, version) = (member.entry, member.version);
        let mut open = lock(&self.open);
        let Some(incoming) = open.get_mut(id) else {
            self.check_announced(id)?;
            return Ok(None);
        };
        if incoming.version > version {
            return Ok(None);
        }
        let size = incoming.entry.size();
        let is_expected = incoming.version == version
            && self.options.is_packed(size)
            && size == u64::from(member.len);
        match incoming.state {
            State::Packed(changes) if is_expected => {
                incoming.state = State::Grouped;
                let entry = Arc::clone(&incoming.entry);
                Ok(Some(Claimed { entry, version, changes, root: Some(member.root) }))
            }
            // Another copy of it came before.
            State::Grouped if is_expected => Ok(None),
            _ => Err(unasked(id)),
        }
    }
}

fn unasked(id: EntryId) -> SessionError {
    SessionError::violation(format!("{id} came in a pack unasked"))
}
