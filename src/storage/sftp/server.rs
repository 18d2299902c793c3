//! What takes several requests, and connections that may be lost on the way.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::Semaphore;

use super::answer::{attributes, done, full, nonsense, refused};
use super::check::{self, Able, Checks};
use super::packet::{self, Answer as Said, Attributes, Request};
use super::pool::{Handles, Pool};
use super::session::{Session, answers, permit};
use crate::protocol::chunk::{ByteRange, ChunkSize};
use crate::protocol::manifest::{Escaped, Name};
use crate::storage::remote::{
    Answer, Class, Fault, Kept, Key, Listed, OWN_PREFIX, Properties, Thing, ThingKind, all, nonce,
};
use crate::storage::{Receipt, Token};

/// A server, and what is known of it.
#[derive(Debug)]
pub struct Server {
    pub pool: Pool,
    /// What its locations begin with: `sftp://host`.
    pub prefix: String,
    pub properties: Properties,
    pub checks: Checks,
    /// One permit for each small file that is being read or written: a server has few handles.
    pub small: Arc<Semaphore>,
    /// How many permits of this sort there are.
    pub most_small: u32,
    /// The same for what takes a handle without waiting for anything else that does: listings.
    pub listings: Arc<Semaphore>,
}

/// A request that takes back what was done, made unless all goes well: also when nobody waits for it any more.
#[derive(Debug)]
pub struct Undo<'a> {
    server: &'a Server,
    session: Arc<Session>,
    request: Option<Request>,
}

impl Undo<'_> {
    /// All went well.
    pub fn forget(mut self) {
        self.request = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.server.pool.owe(&self.session, request);
        }
    }
}

/// A file that is being read.
#[derive(Clone, Debug)]
pub struct Open {
    pub path: Arc<[u8]>,
    pub thing: Arc<Thing>,
    pub handles: Arc<Handles>,
}

/// A file that is coming.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Of the temporary file.
    pub path: Arc<[u8]>,
    pub nonce: u64,
    pub size: u64,
    /// This process has made it, so that it has zeros where nothing was written.
    pub is_fresh: bool,
    /// The server hashes by itself.
    pub has_receipts: bool,
    pub handles: Arc<Handles>,
}

impl Server {
    /// Asks whichever connection has least to do.
    pub async fn call(&self, request: Request) -> Answer<Said> {
        self.pool.pick()?.call(request).await
    }

    /// Asks what may be asked twice, on another connection if one is lost.
    pub async fn ask(&self, request: Request) -> Answer<Said> {
        loop {
            let session = self.pool.pick()?;
            match session.call(request.clone()).await {
                Err(_) if session.is_lost() => {}
                answer => return answer,
            }
        }
    }

    /// What the server can hash, which is found out at a file that is there.
    pub async fn can_check(&self, path: &[u8], size: u64) -> Able {
        // Servers need not name this extension in version 3 of the protocol, and ProFTPD does not. But one
        // that names none at all is not asked for what it may never have heard of.
        if size < check::TRIAL_LEN || !self.pool.offers().extensions {
            return Able::Nothing;
        }
        let find_out = async || match self.call(check::trial(path)).await {
            Ok(Said::Extended(answer)) => Able::of(answer),
            // A server that breaks the connection off at the question is not asked again.
            Ok(_) | Err(_) => Able::Nothing,
        };
        *self.checks.able.get_or_init(find_out).await
    }

    /// What a part can be checked by later, if the server hashes.
    pub async fn receipt(
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

    /// Which parts of a file that is coming hold what they have receipts for, as far as the server tells.
    pub async fn holds(
        &self,
        upload: &Upload,
        chunk_size: ChunkSize,
        parts: &[(ByteRange, Receipt)],
    ) -> Vec<Option<bool>> {
        let able = self.can_check(&upload.path, upload.size).await;
        let questions = check::questions(able, chunk_size, parts).into_iter();
        // Not on another connection if one is lost: the question may be why.
        let asked = questions.map(async |question| {
            let answer = self.call(question.request(&upload.path)).await;
            (question, answer)
        });
        let mut holds = vec![None; parts.len()];
        let mut answers = futures_util::stream::iter(asked).buffer_unordered(QUESTIONS);
        while let Some((question, answer)) = answers.next().await {
            let places = holds.get_mut(question.parts.clone()).unwrap_or_default();
            let asked = parts.get(question.parts.clone()).unwrap_or_default();
            if let Ok(Said::Extended(answer)) = answer {
                for (place, told) in places.iter_mut().zip(question.judge(answer, asked)) {
                    *place = told;
                }
            }
        }
        holds
    }

    /// Writes part of a file, on all connections and without those that are lost.
    pub async fn write_part(&self, upload: &Upload, offset: u64, data: Vec<Bytes>) -> Answer<()> {
        let pieces = cut(offset, data, self.pool.offers().max_write).into_iter();
        let writes = pieces.map(async |(at, piece)| {
            loop {
                let session = self.pool.share().await?;
                let written = async {
                    let handle = upload.handle_on(&session).await?;
                    done(session.call(Request::write(&handle, at, piece.clone())).await?)
                };
                match written.await {
                    Err(_) if session.is_lost() => {}
                    answer => return answer,
                }
            }
        });
        all(writes.collect(), usize::MAX).await.into_iter().collect()
    }

    pub async fn lstat(&self, path: &[u8]) -> Answer<Option<Thing>> {
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

    pub async fn with_target(&self, path: &[u8], thing: Thing) -> Thing {
        let said = self.ask(Request::readlink(path)).await;
        let target = match said {
            Ok(Said::Names(names)) if names.len() == 1 => Some(names[0].0.as_ref().into()),
            _ => None,
        };
        Thing { target, ..thing }
    }

    /// Refuses what there is no room for, where the server tells.
    pub async fn check_room(&self, directory: &[u8], size: u64) -> Answer<()> {
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
    pub async fn explain(&self, fault: Fault, path: &[u8]) -> Fault {
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

    /// Removes a temporary file unless all goes well. What cannot be removed is found by whoever cleans up.
    pub fn removing(&self, session: &Arc<Session>, path: &[u8]) -> Undo<'_> {
        self.undoing(session, Request::remove(path))
    }

    fn undoing(&self, session: &Arc<Session>, request: Request) -> Undo<'_> {
        Undo { server: self, session: Arc::clone(session), request: Some(request) }
    }

    /// Makes a temporary file of this size.
    pub async fn create(
        &self,
        session: &Arc<Session>,
        path: &[u8],
        size: u64,
        handles: &Handles,
    ) -> Answer<Bytes> {
        let mode = Attributes { permissions: Some(0o600), ..Attributes::default() };
        let flags = packet::FOR_WRITING | packet::CREATE | packet::EXCLUSIVE;
        let handle = handles.on(session, Request::open(path, flags, &mode)).await?;
        if size > 0 {
            let size = Attributes { size: Some(size), ..Attributes::default() };
            done(session.call(Request::fsetstat(&handle, &size)).await?)?;
        }
        Ok(handle)
    }

    /// Makes a file of all of its data, on one connection.
    pub async fn write_whole(
        &self,
        session: &Arc<Session>,
        path: &[u8],
        data: Bytes,
        kept: &Kept,
        handles: Handles,
    ) -> Answer<()> {
        let handle = self.create(session, path, 0, &handles).await?;
        let parts = cut(0, vec![data], session.offers.max_write).into_iter();
        let mut requests: Vec<_> =
            parts.map(|(at, part)| Request::write(&handle, at, part)).collect();
        requests.push(Request::fsetstat(&handle, &attributes(kept)));
        if self.properties.lasts {
            requests.push(Request::fsync(&handle));
        }
        let mut waiting = session.send_all(requests).await?;
        waiting.extend(handles.close());
        answers(waiting).await?.into_iter().try_for_each(done)
    }

    /// Gives a complete file its name.
    pub async fn put_in_place(&self, temporary: &[u8], key: &Key) -> Answer<()> {
        let path = path_of(key);
        if self.pool.offers().posix_rename {
            return self.rename_over(temporary, &path).await;
        }
        let renamed = done(self.call(Request::rename(temporary, &path)).await?);
        let Err(fault) = renamed else { return Ok(()) };
        let is_file = |thing: &Thing| thing.kind != ThingKind::Directory;
        let is_replaceable = self.lstat(&path).await?.as_ref().is_some_and(is_file)
            && self.lstat(temporary).await?.is_some();
        if is_replaceable { self.replace(temporary, key).await } else { Err(fault) }
    }

    /// Renames a temporary file, on another connection if one is lost.
    async fn rename_over(&self, temporary: &[u8], path: &[u8]) -> Answer<()> {
        let mut may_be_done = false;
        loop {
            let session = self.pool.pick()?;
            match session.call(Request::posix_rename(temporary, path)).await {
                Err(_) if session.is_lost() => may_be_done = true,
                // Nobody else knows of it, so whoever served the connection that was lost has renamed it.
                Ok(Said::Status { code: packet::NO_SUCH_FILE, .. })
                    if may_be_done && self.lstat(path).await?.is_some() =>
                {
                    return Ok(());
                }
                answer => return done(answer?),
            }
        }
    }

    /// The draft has no way to replace a file at once, so the old one steps aside until the new one is
    /// in its place.
    pub async fn replace(&self, temporary: &[u8], key: &Key) -> Answer<()> {
        let (path, aside) = (path_of(key), temporary_path(key, nonce()));
        let session = self.pool.pick()?;
        let undo = self.undoing(&session, Request::rename(&aside, &path));
        let rename = async |from: &[u8], to: &[u8]| {
            self.call(Request::rename(from, to)).await.and_then(done)
        };
        let failed = |fault: Fault, text: &str| {
            let text = format!("the server replaces no files by itself, and {fault}; {text}");
            Err(Fault::new(fault.class, text))
        };
        let stepped_aside = session.call(Request::rename(&path, &aside)).await;
        if let Err(fault) = stepped_aside.and_then(done) {
            if !session.is_lost() {
                undo.forget();
            }
            return failed(fault, "the old file is as it was: remove it, or choose another name");
        }
        let renamed = rename(temporary, &path).await;
        let is_back = renamed.is_err() && rename(&aside, &path).await.is_ok();
        undo.forget();
        if let Err(fault) = renamed {
            if is_back {
                return failed(fault, "the old file is back in its place");
            }
            let name = Escaped(&aside);
            return failed(fault, &format!("the old file is now {name}: move it back"));
        }
        // What cannot be removed is found by whoever cleans up.
        let _ = self.call(Request::remove(&aside)).await;
        Ok(())
    }

    /// Reads exactly this much of an open file, on all connections and without those that are lost.
    pub async fn read_part(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        let reads = pieces_of(offset, into, self.pool.offers().max_read);
        let reads = reads.map(async |(at, piece)| {
            loop {
                let session = self.pool.share().await?;
                let open = Request::open(&file.path, packet::FOR_READING, &Attributes::default());
                let read = async {
                    let handle = file.handles.on(&session, open).await?;
                    read_piece(&session, &handle, at, piece).await
                };
                match read.await {
                    Err(_) if session.is_lost() => {}
                    answer => return answer,
                }
            }
        });
        all(reads.collect(), usize::MAX).await.into_iter().collect()
    }

    /// The same by a handle.
    pub async fn read_handle(
        &self,
        session: &Session,
        handle: &Bytes,
        offset: u64,
        into: &mut [u8],
    ) -> Answer<()> {
        let reads = pieces_of(offset, into, session.offers.max_read)
            .map(|(at, piece)| read_piece(session, handle, at, piece));
        all(reads.collect(), usize::MAX).await.into_iter().collect()
    }

    /// Lists one directory, and hands groups over as they come.
    pub async fn list_one(
        &self,
        directory: &Key,
        found: &flume::Sender<Vec<Listed>>,
        below: &mut Vec<Key>,
    ) -> Answer<bool> {
        let path = path_of(directory);
        let handles = Handles::of(permit(&self.listings).await?);
        let session = self.pool.pick()?;
        let handle = handles.on(&session, Request::opendir(&path)).await?;
        let mut asked = VecDeque::new();
        loop {
            // Each is sent before anything else is waited for, as the last part may be handed over for long.
            while asked.len() < READDIRS {
                asked.push_back(session.send(Request::readdir(&handle)).await?);
            }
            let names = match asked.pop_front() {
                Some(said) => match said.await? {
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
                let key = Name::new(&name).map_err(Into::into);
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
    pub async fn with_targets(&self, group: Vec<Listed>) -> Vec<Listed> {
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

    pub fn shown(&self, key: &Key) -> Vec<u8> {
        [self.prefix.as_bytes(), b"/", key.as_bytes()].concat()
    }
}

impl Upload {
    /// The handle for writing on a connection.
    pub async fn handle_on(&self, session: &Arc<Session>) -> Answer<Bytes> {
        let request = Request::open(&self.path, packet::FOR_WRITING, &Attributes::default());
        self.handles.on(session, request).await
    }
}

pub fn path_of(key: &Key) -> Vec<u8> {
    [b"/", key.as_bytes()].concat()
}

pub fn parent_of(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        None | Some(0) => b"/",
        Some(at) => &path[..at],
    }
}

/// A name beside the file's own, which says whose it is: the hash tells files apart, as names may be
/// too long for more, and the nonce runs.
pub fn temporary_path(key: &Key, nonce: u64) -> Vec<u8> {
    let path = path_of(key);
    let hash = blake3::hash(key.name()).to_hex();
    let directory = parent_of(&path);
    let directory = if directory == b"/" { b"" } else { directory };
    let name = format!("{}-{nonce:016x}", hash.get(..16).unwrap_or_default());
    [directory, b"/", OWN_PREFIX, name.as_bytes()].concat()
}

pub fn nonce_of(token: &Token) -> Option<u64> {
    let bytes = token.as_bytes().strip_prefix(b"t")?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Room for data from there on, in parts of at most so many bytes, each with where it begins.
fn pieces_of(offset: u64, into: &mut [u8], max: u32) -> impl Iterator<Item = (u64, &mut [u8])> {
    into.chunks_mut(max.max(1) as usize).scan(offset, |at, piece| {
        let begins = *at;
        *at += piece.len() as u64;
        Some((begins, piece))
    })
}

/// Reads all of a part. A server may give less than it was asked for.
async fn read_piece(session: &Session, handle: &[u8], at: u64, piece: &mut [u8]) -> Answer<()> {
    let mut read = 0;
    while let Some(rest) = piece.get_mut(read..).filter(|rest| !rest.is_empty()) {
        let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let request = Request::read(handle, at + read as u64, len);
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
}

/// Cuts data from there on into parts of at most so many bytes, each with where it begins.
pub fn cut(offset: u64, data: Vec<Bytes>, max: u32) -> Vec<(u64, Vec<Bytes>)> {
    let mut parts: Vec<(u64, Vec<Bytes>)> = Vec::new();
    let (mut at, mut room) = (offset, 0);
    for mut piece in data {
        while !piece.is_empty() {
            if room == 0 {
                parts.push((at, Vec::new()));
                room = max.max(1) as usize;
            }
            let taken = piece.split_to(room.min(piece.len()));
            at += taken.len() as u64;
            room -= taken.len();
            if let Some((_, part)) = parts.last_mut() {
                part.push(taken);
            }
        }
    }
    parts
}

/// How many parts of one listing are asked for before the first has come.
const READDIRS: usize = 4;

/// How many questions about what the server has are asked at a time.
const QUESTIONS: usize = 16;

/// For a file of this size, in bytes, it is asked first whether there is room, and several connections are
/// worth making.
pub const LARGE: u64 = 64 << 20;

/// Where less room is left than this, in bytes, that is why a write failed.
const ALMOST_NOTHING: u64 = 1 << 20;
