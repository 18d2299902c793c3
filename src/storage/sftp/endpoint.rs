//! An SFTP server as an endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::Semaphore;

use super::check::{self, Able, Checks};
use super::packet::{self, Answer as Said, Attributes, Request};
use super::pool::{Handles, Pool};
use super::session::{Dial, Session};
use crate::protocol::chunk::{ByteRange, ChunkData, ChunkSize};
use crate::protocol::message::Changes;
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Keeps, KeepsRoot, Kept, Key, Listed, OWN_PREFIX, Parts,
    Properties, Replaces, Thing, ThingKind, all, nonce, pieces,
};
use crate::storage::{Left, Receipt, Remembers, Token};

/// An SFTP server.
#[derive(Clone, Debug)]
pub struct SftpEndpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: Pool,
    /// What its locations begin with: `sftp://host`.
    prefix: String,
    properties: Properties,
    checks: Checks,
    /// One permit for each small file that is being read or written: a server has few handles.
    small: Semaphore,
}

/// A file that is being read.
#[derive(Clone, Debug)]
pub struct Open {
    path: Arc<[u8]>,
    thing: Arc<Thing>,
    handles: Arc<Handles>,
}

/// A file that is coming.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Of the temporary file.
    path: Arc<[u8]>,
    nonce: u64,
    size: u64,
    /// This process has made it, so that it has zeros where nothing was written.
    is_fresh: Arc<AtomicBool>,
    /// The server hashes by itself.
    has_receipts: bool,
    handles: Arc<Handles>,
}

impl SftpEndpoint {
    /// Connects. `prefix` is what locations begin with, for people; `connections` is how many there are
    /// to be when there is enough to do. Small files are synced too if `syncs_all`, where the server can.
    ///
    /// # Errors
    ///
    /// [`Class::Disconnected`] if there is no SFTP server.
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
            parts: Parts { min_len: 1, max_count: u64::MAX, in_order: false },
            requests: 64,
            lists_all: true,
            copies: false,
            encrypts: true,
        };
        let small = Semaphore::new(SMALL_AT_ONCE);
        Ok(Self {
            inner: Arc::new(Inner { pool, prefix, properties, checks: Checks::default(), small }),
        })
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

impl Inner {
    /// Asks whichever connection has least to do.
    async fn call(&self, request: Request) -> Answer<Said> {
        self.pool.pick()?.call(request).await
    }

    /// Asks what may be asked twice, on another connection if one is lost.
    async fn ask(&self, request: Request) -> Answer<Said> {
        loop {
            let session = self.pool.pick()?;
            match session.call(request.clone()).await {
                Err(_) if session.is_lost() => {}
                answer => return answer,
            }
        }
    }

    /// What the server can hash, which is found out at a file that is there.
    async fn can_check(&self, path: &[u8], size: u64) -> Able {
        // In version 3 of the protocol, no server names this extension. But one that does not name any is
        // not asked for what it may never have heard of.
        if size < check::TRIAL_LEN || !self.pool.offers().extensions {
            return Able::Nothing;
        }
        let find_out = async || match self.call(check::trial(path)).await? {
            Said::Extended(answer) => Ok(Able::of(answer)),
            _ => Ok::<_, Fault>(Able::Nothing),
        };
        self.checks.able.get_or_try_init(find_out).await.copied().unwrap_or(Able::Nothing)
    }

    /// What a part can be checked by later, if the server hashes.
    async fn receipt(
        &self,
        upload: &Upload,
        range: ByteRange,
        is_hole: bool,
        data: Vec<Bytes>,
    ) -> Answer<Receipt> {
        if !upload.has_receipts {
            return Ok(Receipt::default());
        }
        if is_hole {
            return Ok(self.checks.hole(range.len(), &data));
        }
        let hashed = tokio::task::spawn_blocking(move || check::receipt(&data)).await;
        hashed.map_err(|error| Fault::new(Class::Other, error.to_string()))
    }

    /// Writes part of a file, on another connection if one is lost.
    async fn write_part(&self, upload: &Upload, offset: u64, data: Vec<Bytes>) -> Answer<()> {
        loop {
            let session = self.pool.pick()?;
            let written = async {
                let handle = upload.handle_on(&session).await?;
                self.write_pieces(&session, &handle, offset, data.clone()).await
            };
            match written.await {
                Err(_) if session.is_lost() => {}
                answer => return answer,
            }
        }
    }

    async fn lstat(&self, path: &[u8]) -> Answer<Option<Thing>> {
        let said = self.ask(Request::lstat(path)).await?;
        let attributes = match said {
            Said::Attributes(attributes) => attributes,
            Said::Status { code: packet::NO_SUCH_FILE, .. } => return Ok(None),
            other => return Err(refused(other)),
        };
        let thing = attributes.to_thing();
        if thing.kind != ThingKind::Symlink {
            return Ok(Some(thing));
        }
        Ok(Some(self.with_target(path, thing).await))
    }

    async fn with_target(&self, path: &[u8], thing: Thing) -> Thing {
        let said = self.ask(Request::readlink(path)).await;
        let target = match said {
            Ok(Said::Names(names)) if names.len() == 1 => Some(names[0].0.as_ref().into()),
            _ => None,
        };
        Thing { target, ..thing }
    }

    /// Refuses what there is no room for, where the server tells.
    async fn check_room(&self, directory: &[u8], size: u64) -> Answer<()> {
        if !self.pool.offers().statvfs || size < LARGE {
            return Ok(());
        }
        let said = self.call(Request::statvfs(directory)).await?;
        let Said::Extended(answer) = said else { return Ok(()) };
        match packet::available(&answer) {
            Some(available) if available < size => Err(full()),
            _ => Ok(()),
        }
    }

    /// Tells more of a failure that the server did not give a reason for: a full disk, most often.
    async fn explain(&self, fault: Fault, path: &[u8]) -> Fault {
        if fault.class != Class::Other || !self.pool.offers().statvfs {
            return fault;
        }
        let Ok(Said::Extended(answer)) = self.call(Request::statvfs(parent_of(path))).await else {
            return fault;
        };
        match packet::available(&answer) {
            Some(available) if available < ALMOST_NOTHING => full(),
            _ => fault,
        }
    }

    async fn create(&self, session: &Session, path: &[u8], size: Option<u64>) -> Answer<Bytes> {
        let mode = Attributes { permissions: Some(0o600), ..Attributes::default() };
        let flags = packet::FOR_WRITING | packet::CREATE | packet::EXCLUSIVE;
        let handle = handle(session.call(Request::open(path, flags, &mode)).await?)?;
        if let Some(size) = size.filter(|size| *size > 0) {
            let size = Attributes { size: Some(size), ..Attributes::default() };
            done(session.call(Request::fsetstat(&handle, &size)).await?)?;
        }
        Ok(handle)
    }

    /// Writes data that is in pieces, with as many requests as it takes.
    async fn write_pieces(
        &self,
        session: &Arc<Session>,
        handle: &Bytes,
        offset: u64,
        data: Vec<Bytes>,
    ) -> Answer<()> {
        let requests = writes(session, handle, offset, data);
        session.call_all(requests).await?.into_iter().try_for_each(done)
    }

    /// Gives a complete file its name.
    async fn put_in_place(&self, temporary: &[u8], key: &Key) -> Answer<()> {
        let path = path_of(key);
        if self.pool.offers().posix_rename {
            return done(self.call(Request::posix_rename(temporary, &path)).await?);
        }
        let renamed = done(self.call(Request::rename(temporary, &path)).await?);
        let Err(fault) = renamed else { return Ok(()) };
        let is_file = |thing: &Thing| thing.kind != ThingKind::Directory;
        let is_replaceable = self.lstat(&path).await?.as_ref().is_some_and(is_file)
            && self.lstat(temporary).await?.is_some();
        if is_replaceable { self.replace(temporary, key).await } else { Err(fault) }
    }

    /// The draft has no way to replace a file at once, so the old one steps aside until the new one is
    /// in its place.
    async fn replace(&self, temporary: &[u8], key: &Key) -> Answer<()> {
        let (path, aside) = (path_of(key), temporary_path(key, nonce()));
        let rename = async |from: &[u8], to: &[u8]| {
            self.call(Request::rename(from, to)).await.and_then(done)
        };
        let failed = |fault: Fault, text: &str| {
            let text = format!("the server replaces no files by itself, and {fault}; {text}");
            Err(Fault::new(fault.class, text))
        };
        if let Err(fault) = rename(&path, &aside).await {
            return failed(fault, "the old file is as it was: remove it, or choose another name");
        }
        if let Err(fault) = rename(temporary, &path).await {
            if rename(&aside, &path).await.is_ok() {
                return failed(fault, "the old file is back in its place");
            }
            let name = crate::protocol::manifest::Escaped(&aside);
            return failed(fault, &format!("the old file is now {name}: move it back"));
        }
        // What cannot be removed is found by whoever cleans up.
        let _ = self.call(Request::remove(&aside)).await;
        Ok(())
    }

    /// Reads exactly this much of an open file.
    async fn read_on(
        &self,
        session: &Arc<Session>,
        file: &Open,
        offset: u64,
        into: &mut [u8],
    ) -> Answer<()> {
        let request = Request::open(&file.path, packet::FOR_READING, &Attributes::default());
        let handle = file.handles.on(session, request).await?;
        self.read_handle(session, &handle, offset, into).await
    }

    async fn read_handle(
        &self,
        session: &Arc<Session>,
        handle: &Bytes,
        offset: u64,
        into: &mut [u8],
    ) -> Answer<()> {
        let max = session.offers.max_read as usize;
        let reads: Vec<_> = into
            .chunks_mut(max)
            .scan(offset, |at, piece| {
                let begins = *at;
                *at += piece.len() as u64;
                Some((begins, piece))
            })
            .map(async |(at, piece)| {
                let mut read = 0;
                while let Some(rest) = piece.get_mut(read..).filter(|rest| !rest.is_empty()) {
                    let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
                    let request = Request::read(handle, at + read as u64, len);
                    // A server may give less than it was asked for.
                    let data = match session.call(request).await? {
                        Said::Data(data) if !data.is_empty() && data.len() <= rest.len() => data,
                        Said::Data(_) => return Err(nonsense()),
                        Said::Status { code: packet::EOF, .. } => {
                            return Err(Fault::new(Class::Changed, "it is shorter than it was"));
                        }
                        other => return Err(refused(other)),
                    };
                    if let Some(place) = rest.get_mut(..data.len()) {
                        place.copy_from_slice(&data);
                    }
                    read += data.len();
                }
                Ok(())
            })
            .collect();
        all(reads, usize::MAX).await.into_iter().collect()
    }

    /// Lists one directory, and hands groups over as they come.
    async fn list_one(
        &self,
        directory: &Key,
        found: &flume::Sender<Vec<Listed>>,
        below: &mut Vec<Key>,
    ) -> Answer<bool> {
        let path = path_of(directory);
        let session = self.pool.pick()?;
        let handle = handle(session.call(Request::opendir(&path)).await?)?;
        let handles = Handles::default();
        handles.keep(&session, handle.clone());
        let mut asked = FuturesOrdered::new();
        loop {
            while asked.len() < READDIRS {
                asked.push_back(session.call(Request::readdir(&handle)));
            }
            let names = match asked.next().await {
                Some(said) => match said? {
                    // A directory ends with EOF, and not with a packet of nothing.
                    Said::Names(names) if !names.is_empty() => names,
                    Said::Names(_) => return Err(nonsense()),
                    Said::Status { code: packet::EOF, .. } => return Ok(true),
                    other => return Err(refused(other)),
                },
                None => return Ok(true),
            };
            let mut group = Vec::with_capacity(names.len());
            for (name, attributes) in names {
                if matches!(&name[..], b"." | b"..") {
                    continue;
                }
                let key = crate::protocol::manifest::Name::new(&name).map_err(Into::into);
                match key.and_then(|name| directory.child(&name)) {
                    Ok(key) => group.push(Listed::Thing(key, attributes.to_thing())),
                    Err(reason) => {
                        let shown = [&self.shown(directory)[..], b"/", &name].concat();
                        group.push(Listed::Unusable { shown, reason });
                    }
                }
            }
            let group = self.with_targets(group).await;
            below.extend(group.iter().filter_map(|listed| match listed {
                Listed::Thing(key, thing) if thing.kind == ThingKind::Directory => {
                    Some(key.clone())
                }
                _ => None,
            }));
            if !group.is_empty() && found.send_async(group).await.is_err() {
                return Ok(false);
            }
        }
    }

    /// Finds out where symlinks lead.
    async fn with_targets(&self, group: Vec<Listed>) -> Vec<Listed> {
        let looks: Vec<_> = group
            .into_iter()
            .map(async |listed| match listed {
                Listed::Thing(key, thing) if thing.kind == ThingKind::Symlink => {
                    let thing = self.with_target(&path_of(&key), thing).await;
                    Listed::Thing(key, thing)
                }
                other => other,
            })
            .collect();
        all(looks, self.properties.requests).await
    }

    fn shown(&self, key: &Key) -> Vec<u8> {
        [self.prefix.as_bytes(), b"/", key.as_bytes()].concat()
    }
}

impl Endpoint for SftpEndpoint {
    type Open = Open;
    type Upload = Upload;

    fn streams(&self) -> u16 {
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
        let (path, thing) = (path_of(key).into(), Arc::new(thing.clone()));
        Ok(Open { path, thing, handles: Arc::default() })
    }

    async fn read(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        let _permit = if file.thing.size < SMALL {
            Some(self.inner.small.acquire().await.map_err(|_| nonsense())?)
        } else {
            None
        };
        loop {
            let session = self.inner.pool.pick()?;
            match self.inner.read_on(&session, file, offset, into).await {
                Err(fault) if fault.class == Class::Disconnected && session.is_lost() => {}
                answer => return answer,
            }
        }
    }

    async fn confirm(&self, file: &Open) -> Answer<bool> {
        let then = &file.thing;
        let is_same =
            |now: &Thing| (now.kind, now.size, now.mtime) == (then.kind, then.size, then.mtime);
        // Connections may have opened it at different times, and so different files.
        let (lost, open): (Vec<_>, Vec<_>) =
            file.handles.all().into_iter().partition(|(session, _)| session.is_lost());
        let now = open.iter().map(async |(session, handle)| {
            match session.call(Request::fstat(handle)).await? {
                Said::Attributes(attributes) => Ok(is_same(&attributes.to_thing())),
                other => Err(refused(other)),
            }
        });
        let are_same = futures_util::future::try_join_all(now).await?.into_iter().all(|it| it);
        if !are_same || lost.is_empty() && !open.is_empty() {
            return Ok(are_same);
        }
        let now = self.inner.lstat(&file.path).await?;
        now.map(|now| is_same(&now)).ok_or_else(|| Fault::new(Class::Missing, "it is gone"))
    }

    async fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
        let _permit = self.inner.small.acquire().await.map_err(|_| nonsense())?;
        let (path, session) = (path_of(key), self.inner.pool.pick()?);
        let temporary = temporary_path(key, nonce());
        let put = async {
            let handle = self.inner.create(&session, &temporary, None).await?;
            let handles = Handles::default();
            handles.keep(&session, handle.clone());
            let mut requests = writes(&session, &handle, 0, vec![data]);
            requests.push(Request::fsetstat(&handle, &attributes(kept)));
            if self.inner.properties.lasts {
                requests.push(Request::fsync(&handle));
            }
            requests.push(Request::close(&handle));
            handles.take();
            session.call_all(requests).await?.into_iter().try_for_each(done)?;
            self.inner.put_in_place(&temporary, key).await
        };
        match put.await {
            Ok(()) => Ok(()),
            Err(fault) => {
                session.tell(Request::remove(&temporary));
                Err(self.inner.explain(fault, &path).await)
            }
        }
    }

    async fn begin(&self, key: &Key, size: u64, _: u64, _: &Kept) -> Answer<Upload> {
        let path = path_of(key);
        self.inner.check_room(parent_of(&path), size).await?;
        let nonce = nonce();
        let temporary = temporary_path(key, nonce);
        let session = self.inner.pool.pick()?;
        let made = self.inner.create(&session, &temporary, Some(size)).await;
        let handle = match made {
            Ok(handle) => handle,
            Err(fault) => return Err(self.inner.explain(fault, &path).await),
        };
        let handles = Handles::default();
        handles.keep(&session, handle);
        let has_receipts = self.inner.can_check(&temporary, size).await != Able::Nothing;
        let (path, handles) = (temporary.into(), Arc::new(handles));
        let is_fresh = Arc::new(AtomicBool::new(true));
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
        let (path, is_fresh) = (path.into(), Arc::new(AtomicBool::new(false)));
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
        if is_hole && upload.is_fresh.load(Ordering::Relaxed) {
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
        let able = self.inner.can_check(&upload.path, upload.size).await;
        let questions = check::questions(able, chunk_size, parts).into_iter();
        let asked = questions.map(async |question| {
            let asked = parts.get(question.parts.clone()).unwrap_or_default();
            let answer = self.inner.ask(question.request(&upload.path)).await;
            (question, answer, asked)
        });
        let mut judged = vec![None; parts.len()];
        let mut answers = futures_util::stream::iter(asked).buffer_unordered(QUESTIONS);
        while let Some((question, answer, asked)) = answers.next().await {
            let Ok(Said::Extended(answer)) = answer else { continue };
            if let Some(places) = judged.get_mut(question.parts.clone()) {
                places.copy_from_slice(&question.judge(answer, asked));
            }
        }
        judged
    }

    async fn reread(&self, upload: &Upload, offset: u64, into: &mut [u8]) -> Answer<()> {
        let session = self.inner.pool.pick()?;
        // Its own handles are for writing alone.
        let path: &[u8] = &upload.path;
        let said = session.call(Request::open(path, packet::FOR_READING, &Attributes::default()));
        let handle = handle(said.await?)?;
        let handles = Handles::default();
        handles.keep(&session, handle.clone());
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
            for (session, handle) in upload.handles.take() {
                if !session.is_lost() {
                    done(session.call(Request::close(&handle)).await?)?;
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
        let temporary = temporary_path(key, nonce());
        let requests = vec![Request::symlink(target, &temporary), Request::readlink(&temporary)];
        let answers = self.inner.pool.pick()?.call_all(requests).await?;
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
        let named = named.await;
        if named.is_err() {
            let _ = self.inner.call(Request::remove(&temporary)).await;
        }
        named
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

impl Upload {
    /// The handle for writing on a connection.
    async fn handle_on(&self, session: &Arc<Session>) -> Answer<Bytes> {
        let request = Request::open(&self.path, packet::FOR_WRITING, &Attributes::default());
        self.handles.on(session, request).await
    }
}

pub fn handle(said: Said) -> Answer<Bytes> {
    match said {
        Said::Handle(handle) => Ok(handle),
        other => Err(refused(other)),
    }
}

fn done(said: Said) -> Answer<()> {
    match said {
        Said::Status { code: packet::OK, .. } => Ok(()),
        other => Err(refused(other)),
    }
}

/// What an answer means that is not the one that was hoped for.
fn refused(said: Said) -> Fault {
    let Said::Status { code, text } = said else { return nonsense() };
    let said = crate::protocol::manifest::Escaped(&text).to_string();
    match code {
        packet::NO_SUCH_FILE => Fault::new(Class::Missing, "there is nothing of this name"),
        packet::PERMISSION_DENIED => {
            Fault::new(Class::Denied, "the server allows it not to this user")
        }
        packet::UNSUPPORTED => Fault::new(Class::Unsupported, "the server cannot do this"),
        packet::OK | packet::EOF => nonsense(),
        _ if said.is_empty() => Fault::new(Class::Other, format!("the server failed, code {code}")),
        _ => Fault::new(Class::Other, format!("the server says: {said}")),
    }
}

/// Refuses a symlink that leads elsewhere than it was told to: some servers make targets absolute.
fn check_target(target: &[u8], said: Option<Said>) -> Answer<()> {
    match said {
        Some(Said::Names(names)) if names.len() == 1 && names[0].0 != target => {
            let made = crate::protocol::manifest::Escaped(&names[0].0);
            let text = format!(
                "the server makes a link to {made} of it, as it keeps absolute targets only; with -L, what links lead to is copied"
            );
            Err(Fault::new(Class::Unsupported, text))
        }
        // Where links cannot be read, nobody can tell.
        _ => Ok(()),
    }
}

fn nonsense() -> Fault {
    Fault::new(Class::Violation, "the server answered what makes no sense")
}

fn full() -> Fault {
    Fault::new(Class::Full, "there is no room left on the server")
}

fn attributes(kept: &Kept) -> Attributes {
    let seconds = kept.mtime.and_then(|time| u32::try_from(time.seconds).ok());
    Attributes {
        permissions: kept.mode.map(crate::protocol::message::Mode::bits),
        times: seconds.map(|seconds| (seconds, seconds)),
        ..Attributes::default()
    }
}

fn path_of(key: &Key) -> Vec<u8> {
    [b"/", key.as_bytes()].concat()
}

fn parent_of(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        None | Some(0) => b"/",
        Some(at) => &path[..at],
    }
}

/// A name beside the file's own, which says whose it is: the hash tells files apart, as names may be
/// too long for more, and the nonce runs.
fn temporary_path(key: &Key, nonce: u64) -> Vec<u8> {
    let path = path_of(key);
    let hash = blake3::hash(key.name()).to_hex();
    let directory = parent_of(&path);
    let directory = if directory == b"/" { b"" } else { directory };
    let name = format!("{}-{nonce:016x}", hash.get(..16).unwrap_or_default());
    [directory, b"/", OWN_PREFIX, name.as_bytes()].concat()
}

fn nonce_of(token: &Token) -> Option<u64> {
    let bytes = token.as_bytes().strip_prefix(b"t")?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// What writes data from there on.
fn writes(session: &Session, handle: &[u8], offset: u64, data: Vec<Bytes>) -> Vec<Request> {
    let parts = cut(data, session.offers.max_write as usize).into_iter();
    let writes = parts.scan(offset, |at, part| {
        let (begins, len) = (*at, part.iter().map(Bytes::len).sum::<usize>());
        *at += len as u64;
        Some(Request::write(handle, begins, part))
    });
    writes.collect()
}

/// Cuts pieces into groups of at most so many bytes.
fn cut(data: Vec<Bytes>, max: usize) -> Vec<Vec<Bytes>> {
    let mut groups: Vec<Vec<Bytes>> = Vec::new();
    let mut room = 0;
    for mut piece in data {
        while !piece.is_empty() {
            if room == 0 {
                groups.push(Vec::new());
                room = max.max(1);
            }
            let part = piece.split_to(room.min(piece.len()));
            room -= part.len();
            if let Some(group) = groups.last_mut() {
                group.push(part);
            }
        }
    }
    groups
}

/// How many connections make sense.
const MAX_CONNECTIONS: usize = 16;

/// How many parts of one listing are asked for before the first has come.
const READDIRS: usize = 4;

/// How many questions about what the server has are asked at a time.
const QUESTIONS: usize = 16;

/// A file below this size, in bytes, is read in one go.
const SMALL: u64 = 1 << 20;

/// How many small files may have handles at the same time.
const SMALL_AT_ONCE: usize = 256;

/// For a file of this size, in bytes, it is asked first whether there is room.
const LARGE: u64 = 64 << 20;

/// Where less room is left than this, in bytes, that is why a write failed.
const ALMOST_NOTHING: u64 = 1 << 20;
