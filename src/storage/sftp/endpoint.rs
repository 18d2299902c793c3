//! An SFTP server as an endpoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::answer::{attributes, check_target, done, nonsense, refused};
use super::check::{Able, Checks};
use super::packet::{self, Answer as Said, Attributes, Request};
use super::pool::{Handles, Pool};
use super::server::{LARGE, Open, Server, Upload, nonce_of, parent_of, path_of, temporary_path};
use super::session::{Dial, permit};
use crate::protocol::chunk::{ByteRange, ChunkData, ChunkSize};
use crate::protocol::message::Changes;
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Keeps, KeepsRoot, Kept, Key, Listed, Parts, Properties,
    Replaces, Thing, ThingKind, all, nonce, pieces,
};
use crate::storage::{Left, Receipt, Remembers, Token};

/// An SFTP server.
#[derive(Clone, Debug)]
pub struct SftpEndpoint {
    inner: Arc<Server>,
}

impl SftpEndpoint {
    /// Connects. `prefix` is what locations begin with, for people; `connections` is how many there are
    /// to be when there is enough to do. Small files are synced too if `syncs_all`, where the server can.
    ///
    /// # Errors
    ///
    /// [`Class::Gone`] if there is no SFTP server.
    pub async fn connect(
        dial: Dial,
        prefix: String,
        connections: usize,
        syncs_all: bool,
    ) -> Answer<Self> {
        let pool = Pool::connect(dial, connections.clamp(1, MAX_CONNECTIONS)).await?;
        let offers = pool.offers();
        let properties = Properties {
            name: "sftp",
            replaces: if offers.posix_rename { Replaces::Atomically } else { Replaces::ByRemoving },
            remembers: Remembers::Reread,
            syncs: offers.fsync,
            lasts: offers.fsync && syncs_all,
            keeps: Keeps {
                times: Some(Duration::from_secs(1)),
                time_range: (0, u32::MAX.into()),
                modes: true,
                symlinks: true,
                directories: true,
                directory_times: true,
                roots: KeepsRoot::Never,
                any_bytes: true,
            },
            max_size: u64::MAX,
            parts: Parts { min_len: 1, max_count: u64::MAX, in_order: false },
            requests: 64,
            lists_all: true,
            copies: false,
            encrypts: true,
        };
        let semaphore = |most: u32| Arc::new(Semaphore::new(most as usize));
        let most_small = share_of(2, offers.max_handles, SMALL_AT_ONCE);
        let inner = Server {
            pool,
            prefix,
            properties,
            checks: Checks::default(),
            small: semaphore(most_small),
            most_small,
            listings: semaphore(share_of(4, offers.max_handles, LISTINGS_AT_ONCE)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn real_path(&self, path: &[u8]) -> Answer<Vec<u8>> {
        match self.inner.call(Request::realpath(path)).await? {
            Said::Names(names) if names.len() == 1 && names[0].0.starts_with(b"/") => {
                Ok(names[0].0.to_vec())
            }
            other => Err(refused(other)),
        }
    }
}

impl Endpoint for SftpEndpoint {
    type Open = Open;
    type Upload = Upload;

    fn streams(&self, _: u16) -> u16 {
        u16::try_from(self.inner.pool.wanted()).unwrap_or(u16::MAX)
    }

    /// A path without a slash in front begins at the directory that the server starts in. At the end of
    /// a directory's, symlinks are followed.
    async fn resolve(&self, path: &[u8], is_directory: bool) -> Answer<Key> {
        let start = if path.starts_with(b"/") { Vec::new() } else { self.real_path(b".").await? };
        let names = path.split(|byte| *byte == b'/').filter(|it| !matches!(*it, b"" | b"."));
        let whole = [start.strip_prefix(b"/").unwrap_or(&start)].into_iter().chain(names);
        let whole: Vec<&[u8]> = whole.filter(|it| !it.is_empty()).collect();
        let path = [b"/", &whole.join(&b'/')[..]].concat();
        let has_parents = whole.iter().any(|name| *name == b"..");
        let real =
            if is_directory || has_parents { self.real_path(&path).await.ok() } else { None };
        if real.is_none() && has_parents {
            return Err(Fault::new(Class::Name, "the server does not tell where `..` leads"));
        }
        let path = real.unwrap_or(path);
        Ok(Key::new(path.strip_prefix(b"/").unwrap_or(&path))?)
    }

    fn properties(&self) -> &Properties {
        &self.inner.properties
    }

    fn shown(&self, key: &Key) -> Vec<u8> {
        self.inner.shown(key)
    }

    async fn stat(&self, key: &Key) -> Answer<Option<Thing>> {
        self.inner.lstat(&path_of(key)).await
    }

    async fn list(
        &self,
        directory: &Key,
        deep: bool,
        found: flume::Sender<Vec<Listed>>,
    ) -> Answer<()> {
        let mut waiting = vec![directory.clone()];
        while let Some(directory) = waiting.pop() {
            let mut below = Vec::new();
            if !self.inner.list_one(&directory, &found, &mut below).await? {
                return Ok(());
            }
            if deep {
                waiting.extend(below);
            }
        }
        Ok(())
    }

    async fn open(&self, key: &Key, thing: &Thing) -> Answer<Open> {
        if thing.size >= LARGE {
            self.inner.pool.expect_much();
        }
        let (path, thing) = (path_of(key).into(), Arc::new(thing.clone()));
        Ok(Open { path, thing, handles: Arc::default() })
    }

    async fn read(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        // Whoever reads a part of it only may wait for those who read the others.
        if file.thing.size < SMALL && into.len() as u64 == file.thing.size {
            file.handles.admit(&self.inner.small).await?;
        }
        self.inner.read_part(file, offset, into).await
    }

    async fn confirm(&self, file: &Open) -> Answer<bool> {
        let then = &file.thing;
        let is_same =
            |now: &Thing| (now.kind, now.size, now.mtime) == (then.kind, then.size, then.mtime);
        // Connections may have opened it at different times, and so different files.
        let now = file.handles.all().into_iter().map(async |(session, handle)| {
            match session.call(Request::fstat(&handle)).await {
                Ok(Said::Attributes(attributes)) => Ok(Some(is_same(&attributes.to_thing()))),
                Ok(other) => Err(refused(other)),
                // What was read on a connection that is lost can only be told by the file's name.
                Err(_) if session.is_lost() => Ok(None),
                Err(fault) => Err(fault),
            }
        });
        let told = futures_util::future::try_join_all(now).await?;
        if file.thing.size < SMALL {
            // The receiver may take its time, and others wait to be read.
            file.handles.close();
        }
        let are_same = told.iter().all(|it| it.unwrap_or(true));
        if !are_same || !told.is_empty() && told.iter().all(Option::is_some) {
            return Ok(are_same);
        }
        let now = self.inner.lstat(&file.path).await?;
        now.map(|now| is_same(&now)).ok_or_else(|| Fault::new(Class::Missing, "it is gone"))
    }

    async fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
        // Given back last, also if nobody waits any more.
        let counted = permit(&self.inner.small).await?;
        let path = path_of(key);
        loop {
            let session = self.inner.pool.pick()?;
            // Another one each time: whoever served a connection that is lost may still be writing.
            let temporary = temporary_path(key, nonce());
            let removing = self.inner.removing(&session, &temporary);
            let (data, handles) = (data.clone(), Handles::of(Arc::clone(&counted)));
            let written = self.inner.write_whole(&session, &temporary, data, kept, handles).await;
            let is_lost = written.is_err() && session.is_lost();
            let put = match written {
                Ok(()) => self.inner.put_in_place(&temporary, key).await,
                Err(fault) => Err(fault),
            };
            let Err(fault) = put else {
                removing.forget();
                return Ok(());
            };
            drop(removing);
            if !is_lost {
                return Err(self.inner.explain(fault, &path).await);
            }
        }
    }

    async fn begin(&self, key: &Key, size: u64, _: u64, _: &Kept) -> Answer<Upload> {
        if size >= LARGE {
            self.inner.pool.expect_much();
        }
        let path = path_of(key);
        self.inner.check_room(parent_of(&path), size).await?;
        let _counted = permit(&self.inner.small).await?;
        let nonce = nonce();
        let temporary = temporary_path(key, nonce);
        let session = self.inner.pool.pick()?;
        let removing = self.inner.removing(&session, &temporary);
        let handles = Handles::default();
        if let Err(fault) = self.inner.create(&session, &temporary, size, &handles).await {
            return Err(self.inner.explain(fault, &path).await);
        }
        let has_receipts = self.inner.can_check(&temporary, size).await != Able::Nothing;
        removing.forget();
        let (path, handles) = (temporary.into(), Arc::new(handles));
        let is_fresh = true;
        Ok(Upload { path, nonce, size, is_fresh, has_receipts, handles })
    }

    fn token(&self, upload: &Upload) -> Token {
        // Not 8 bytes, which would be taken for an inode's number.
        Token::new(&[&b"t"[..], &upload.nonce.to_le_bytes()].concat()).unwrap_or_default()
    }

    async fn resume(
        &self,
        key: &Key,
        size: u64,
        left: &Left,
    ) -> Answer<Option<(Upload, Vec<u64>)>> {
        let Some(nonce) = nonce_of(&left.token) else { return Ok(None) };
        let path = temporary_path(key, nonce);
        match self.inner.lstat(&path).await? {
            Some(thing) if thing.kind == ThingKind::File && thing.size == size => {}
            _ => return Ok(None),
        }
        let has_receipts = self.inner.can_check(&path, size).await != Able::Nothing;
        let (path, is_fresh) = (path.into(), false);
        let handles = Arc::default();
        let upload = Upload { path, nonce, size, is_fresh, has_receipts, handles };
        Ok(Some((upload, Vec::new())))
    }

    async fn write(
        &self,
        upload: &Upload,
        _: u64,
        range: ByteRange,
        data: ChunkData,
    ) -> Answer<Receipt> {
        let is_hole = matches!(data, ChunkData::Hole);
        let data = pieces(range, &data);
        let receipt = self.inner.receipt(upload, range, is_hole, data.clone());
        if is_hole && upload.is_fresh {
            return receipt.await;
        }
        let written = self.inner.write_part(upload, range.offset(), data);
        match tokio::join!(written, receipt) {
            (Ok(()), receipt) => receipt,
            (Err(fault), _) => Err(self.inner.explain(fault, &upload.path).await),
        }
    }

    async fn holds(
        &self,
        upload: &Upload,
        chunk_size: ChunkSize,
        parts: &[(ByteRange, Receipt)],
    ) -> Vec<Option<bool>> {
        self.inner.holds(upload, chunk_size, parts).await
    }

    async fn reread(&self, upload: &Upload, offset: u64, into: &mut [u8]) -> Answer<()> {
        let handles = Handles::of(permit(&self.inner.listings).await?);
        let session = self.inner.pool.pick()?;
        // Its own handles are for writing alone.
        let open = Request::open(&upload.path, packet::FOR_READING, &Attributes::default());
        let handle = handles.on(&session, open).await?;
        self.inner.read_handle(&session, &handle, offset, into).await
    }

    async fn sync(&self, upload: &Upload) -> Answer<()> {
        if !self.inner.properties.syncs {
            return Ok(());
        }
        let session = self.inner.pool.pick()?;
        let handle = upload.handle_on(&session).await?;
        done(session.call(Request::fsync(&handle)).await?)
    }

    async fn finish(
        &self,
        upload: Upload,
        key: &Key,
        _: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        let path = path_of(key);
        let finished = async {
            // A write that is still under way somewhere would change the time again.
            for closed in upload.handles.close() {
                // On a connection that is lost it is closed by the server.
                if let Ok(said) = closed.await {
                    done(said)?;
                }
            }
            let named = upload.path.as_ref();
            let size = match self.inner.lstat(named).await? {
                Some(thing) => thing.size,
                None => return Err(Fault::new(Class::Changed, "its temporary file is gone")),
            };
            if size != upload.size {
                return Err(Fault::new(Class::Changed, "its temporary file has another size"));
            }
            done(self.inner.call(Request::setstat(named, &attributes(kept))).await?)?;
            self.inner.put_in_place(named, key).await
        };
        match finished.await {
            Ok(()) => Ok(()),
            Err(fault) => Err(self.inner.explain(fault, &path).await),
        }
    }

    async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
        let Some(nonce) = nonce_of(token) else { return Ok(()) };
        match self.inner.call(Request::remove(&temporary_path(key, nonce))).await? {
            Said::Status { code: packet::OK | packet::NO_SUCH_FILE, .. } => Ok(()),
            other => Err(refused(other)),
        }
    }

    async fn make_directory(&self, key: &Key) -> Answer<()> {
        let path = path_of(key);
        let mode = Attributes { permissions: Some(0o700), ..Attributes::default() };
        let made = done(self.inner.call(Request::mkdir(&path, &mode)).await?);
        let Err(fault) = made else { return Ok(()) };
        match self.inner.lstat(&path).await {
            Ok(Some(thing)) if thing.kind == ThingKind::Directory => Ok(()),
            _ => Err(self.inner.explain(fault, &path).await),
        }
    }

    async fn make_symlink(&self, key: &Key, target: &[u8], kept: &Kept) -> Answer<()> {
        let _counted = permit(&self.inner.small).await?;
        let temporary = temporary_path(key, nonce());
        let requests = vec![Request::symlink(target, &temporary), Request::readlink(&temporary)];
        let session = self.inner.pool.pick()?;
        let removing = self.inner.removing(&session, &temporary);
        let answers = session.call_all(requests).await?;
        let mut answers = answers.into_iter();
        answers.next().map_or_else(|| Err(nonsense()), done)?;
        let named = async {
            check_target(target, answers.next())?;
            let kept = Kept { mode: None, ..*kept };
            if self.inner.pool.offers().lsetstat && kept.mtime.is_some() {
                let request = Request::lsetstat(&temporary, &attributes(&kept));
                done(self.inner.call(request).await?)?;
            }
            self.inner.put_in_place(&temporary, key).await
        };
        named.await?;
        removing.forget();
        Ok(())
    }

    async fn give_up(&self) {
        // Whoever was counted has ended, and asked for what is to be taken back.
        let _ = self.inner.small.acquire_many(self.inner.most_small).await;
        self.inner.pool.settle().await;
    }

    async fn set(&self, key: &Key, _: &Thing, kept: &Kept, changes: Changes) -> Answer<()> {
        let changed = Kept {
            mtime: kept.mtime.filter(|_| changes.has(Changes::TIME)),
            mode: kept.mode.filter(|_| changes.has(Changes::PERMISSIONS)),
            root: None,
        };
        done(self.inner.call(Request::setstat(&path_of(key), &attributes(&changed))).await?)
    }

    async fn remove(&self, things: Vec<(Key, ThingKind)>) -> Vec<Answer<()>> {
        let removals: Vec<_> = things
            .into_iter()
            .map(async |(key, kind)| {
                let path = path_of(&key);
                let request = match kind {
                    ThingKind::Directory => Request::rmdir(&path),
                    _ => Request::remove(&path),
                };
                match self.inner.call(request).await? {
                    Said::Status { code: packet::OK | packet::NO_SUCH_FILE, .. } => Ok(()),
                    other => Err(refused(other)),
                }
            })
            .collect();
        all(removals, self.inner.properties.requests).await
    }

    async fn copy(&self, _: &Self, _: &Key, _: &Thing, _: &Key, _: &Kept) -> Answer<()> {
        Err(Fault::new(Class::Unsupported, "the server does not copy files"))
    }
}

/// How many connections make sense.
const MAX_CONNECTIONS: usize = 16;

/// A file below this size, in bytes, is read in one go.
const SMALL: u64 = 1 << 20;

/// How many handles may be taken for one purpose at the same time: a share of those that there are, as all of
/// them may be at one connection, and others are for large files.
fn share_of(part: u64, max_handles: u64, most: u32) -> u32 {
    let share = u32::try_from(max_handles / part).unwrap_or(most);
    if max_handles == 0 { most } else { share.clamp(1, most) }
}

/// How many small files may have handles where the server has enough.
const SMALL_AT_ONCE: u32 = 256;

/// How many listings may be under way where the server has enough.
const LISTINGS_AT_ONCE: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_few_handles_has_some_left_for_others() {
        let handles = [0, 1, 2, 15, 1019, u64::MAX];
        let small = handles.map(|handles| share_of(2, handles, SMALL_AT_ONCE));
        assert_eq!(small, [256, 1, 1, 7, 256, 256]);
        let listings = handles.map(|handles| share_of(4, handles, LISTINGS_AT_ONCE));
        assert_eq!(listings, [64, 1, 1, 3, 64, 64]);
    }
}
