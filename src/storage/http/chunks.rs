//! Nextcloud's chunked upload, version 2 (its developer manual, "Chunked file upload").
//!
//! The chunks of a file are files of a folder, beside the user's own files, and are named by their
//! numbers. The server puts them together when the folder's `.file` is moved. A chunk is one part of the
//! file, or as many as it takes for it to be as long as the server wants it, which are held until then.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::client::Call;
use super::dav::{DavEndpoint, method, path_of};
use super::lock;
use crate::protocol::chunk::piece_len;
use crate::protocol::manifest::Timestamp;
use crate::storage::Receipt;
use crate::storage::remote::{Answer, Class, Fault, Key, Unfinished, is_temporary};

/// The folder of a file that is coming.
#[derive(Debug)]
pub struct Folder {
    key: Key,
    /// Where the file goes when it is whole.
    destination: String,
    size: u64,
    part_len: u64,
    /// How many parts a chunk is made of.
    parts_each: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Chunks that the server has.
    there: HashSet<u64>,
    /// Parts of those that are not complete.
    held: HashMap<u64, BTreeMap<u64, Vec<Bytes>>>,
}

/// A chunk that is complete: its number, counted from 0, and what is in it.
type Complete = (u64, Vec<Bytes>);

impl Folder {
    /// Plans a folder for a file of this temporary key. `None` if the server has none for it.
    ///
    /// # Errors
    ///
    /// If the file is too long.
    pub fn new(
        temporary: &Key,
        destination: String,
        size: u64,
        part_len: u64,
        least: u64,
    ) -> Answer<Option<Self>> {
        let Some(home) = home(temporary) else { return Ok(None) };
        // That of the temporary file, but for the dot, as no folder there is hidden.
        let name = temporary.name();
        let key = home.join(name.strip_prefix(b".").unwrap_or(name))?;
        let parts = size.div_ceil(part_len.max(1));
        let each = parts.div_ceil(MAX_COUNT).max(least.div_ceil(part_len.max(1))).max(1);
        if each > 1 && each.saturating_mul(part_len) > MAX_HELD {
            let text = format!(
                "it is too long for {MAX_COUNT} chunks of {} MiB, more of which is not held here",
                MAX_HELD >> 20
            );
            return Err(Fault::new(Class::Unsupported, text));
        }
        let state = Mutex::default();
        Ok(Some(Self { key, destination, size, part_len, parts_each: each, state }))
    }

    fn count(&self) -> u64 {
        self.size.div_ceil(self.len())
    }

    fn len(&self) -> u64 {
        self.part_len * self.parts_each
    }

    /// How long a chunk is; `None` if there is no such chunk.
    fn len_of(&self, chunk: u64) -> Option<u64> {
        piece_len(self.size, self.len(), chunk)
    }

    /// Takes a part, and gives the chunk that it completes. Nothing if the server has that already.
    fn take(&self, number: u64, pieces: Vec<Bytes>) -> Option<Complete> {
        let (chunk, part) = (number / self.parts_each, number % self.parts_each);
        let mut state = lock(&self.state);
        if state.there.contains(&chunk) {
            return None;
        }
        let parts = self.len_of(chunk)?.div_ceil(self.part_len);
        if parts == 1 {
            return Some((chunk, pieces));
        }
        // Copies, as the buffers that they are in are wanted elsewhere.
        let pieces = pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
        let held = state.held.entry(chunk).or_default();
        held.insert(part, pieces);
        if held.len() as u64 != parts {
            return None;
        }
        let pieces = state.held.remove(&chunk)?.into_values().flatten().collect();
        Some((chunk, pieces))
    }

    fn is_complete(&self) -> bool {
        lock(&self.state).there.len() as u64 == self.count()
    }
}

impl DavEndpoint {
    pub async fn make_folder(&self, folder: &Folder) -> Answer<()> {
        let call = Call::new(method("MKCOL"), self.site.directory_url(&folder.key));
        self.site.written(call.header("destination", &folder.destination)).await.map(drop)
    }

    /// Sends a part, or holds it until its chunk is complete.
    pub async fn write_chunk(
        &self,
        folder: &Folder,
        number: u64,
        pieces: Vec<Bytes>,
    ) -> Answer<()> {
        let Some((chunk, pieces)) = folder.take(number, pieces) else { return Ok(()) };
        let name = format!("{:05}", chunk + 1);
        let url = self.site.url(&folder.key.join(name.as_bytes())?);
        let call = Call::new(Method::PUT, url).body(pieces);
        self.site.written(self.of_folder(call, folder)).await?;
        lock(&folder.state).there.insert(chunk);
        Ok(())
    }

    fn of_folder(&self, call: Call, folder: &Folder) -> Call {
        let size = folder.size.to_string();
        call.header("destination", &folder.destination).header("oc-total-length", &size)
    }

    /// Looks for the chunks that an earlier process has sent: which of the parts that it noted are lost.
    /// `None` if the folder is not there, or is another's.
    pub async fn take_up_folder(
        &self,
        folder: &Folder,
        receipts: &[(u64, Receipt)],
    ) -> Answer<Option<Vec<u64>>> {
        let Some(chunks) = self.chunks(&folder.key).await? else { return Ok(None) };
        if chunks.iter().any(|it| folder.len_of(it.index).is_none()) {
            return Ok(None);
        }
        let mut state = lock(&folder.state);
        let whole = chunks.iter().filter(|it| folder.len_of(it.index) == Some(it.size));
        state.there.extend(whole.map(|it| it.index));
        let numbers = receipts.iter().map(|(number, _)| *number);
        let lost = numbers.filter(|number| !state.there.contains(&(number / folder.parts_each)));
        Ok(Some(lost.collect()))
    }

    /// Has the server put the chunks together.
    pub async fn assemble(
        &self,
        folder: &Folder,
        temporary: &Key,
        headers: &HeaderMap,
    ) -> Answer<()> {
        if !folder.is_complete() {
            return Err(Fault::new(Class::Other, "part of the file was never sent"));
        }
        let url = self.site.url(&folder.key.join(b".file")?);
        let mut call = self.of_folder(Call::new(method("MOVE"), url), folder).effort(folder.size);
        call.headers.extend(headers.clone());
        call.headers.insert("overwrite", HeaderValue::from_static("F"));
        for pause in PAUSES {
            let reply = self.site.send(call.clone()).await?;
            if reply.status().is_success() {
                return Ok(());
            }
            // It may have been another attempt, after one whose answer was lost.
            let found = self.find(temporary).await?;
            let is_there = found.is_some_and(|it| it.size == Some(folder.size));
            match reply.status() {
                // As long as the server is at it, it is locked.
                StatusCode::LOCKED => {}
                _ if is_there => return Ok(()),
                _ => return Err(self.site.refused_write(&reply)),
            }
            tokio::time::sleep(pause).await;
        }
        Err(Fault::new(Class::Busy, "the server is not done with putting the chunks together"))
    }

    pub async fn remove_folder(&self, folder: &Folder) -> Answer<()> {
        self.site.deleted(self.site.directory_url(&folder.key)).await
    }

    /// The chunks in a folder; `None` if there is no such folder.
    pub async fn chunks(&self, folder: &Key) -> Answer<Option<Vec<Chunk>>> {
        let Some(mut members) = self.ask(self.site.directory_url(folder), "1").await? else {
            return Ok(None);
        };
        let mut chunks = Vec::new();
        while let Some(member) = members.next().await? {
            let path = path_of(&member.href)?;
            let name = Key::new(&path).ok().filter(|it| it.parent().as_ref() == Some(folder));
            let number = name.and_then(|it| std::str::from_utf8(it.name()).ok()?.parse().ok());
            let Some(number) = number.filter(|it| (1..=MAX_COUNT).contains(it)) else { continue };
            if chunks.len() as u64 >= MAX_COUNT {
                return Err(Fault::new(Class::Violation, "the server has too many chunks"));
            }
            let size = member.size.unwrap_or_default();
            chunks.push(Chunk { index: number - 1, size, modified: member.modified });
        }
        Ok(Some(chunks))
    }

    /// The folders of ours that a user has, whichever of their files they were for.
    pub async fn left_folders(&self, directory: &Key) -> Answer<Vec<Unfinished>> {
        let Some(home) = home(&directory.join(b"-")?) else { return Ok(Vec::new()) };
        let Some(mut members) = self.ask(self.site.directory_url(&home), "1").await? else {
            return Ok(Vec::new());
        };
        let mut folders = Vec::new();
        while let Some(member) = members.next().await? {
            let key = Key::new(&path_of(&member.href)?).ok();
            let key = key.filter(|it| it.parent().as_ref() == Some(&home));
            let is_ours =
                |key: &Key| member.is_collection && is_temporary(&[b".", key.name()].concat());
            if let Some(key) = key.filter(is_ours) {
                folders.push((key, member.modified));
            }
        }
        let mut left = Vec::new();
        for (key, modified) in folders {
            let chunks = self.chunks(&key).await?.unwrap_or_default();
            let since = chunks.iter().map(|it| it.modified).max().unwrap_or(modified);
            let size = chunks.iter().map(|it| it.size).sum();
            left.push(Unfinished { key, token: None, size, since });
        }
        Ok(left)
    }

    /// Sends a file of one chunk, to find out whether the server takes any.
    pub async fn try_chunks(&self, temporary: &Key) -> Answer<bool> {
        let data = Bytes::from_static(b"abc");
        let (size, to) = (data.len() as u64, self.site.url(temporary));
        let Some(folder) = Folder::new(temporary, to, size, size, 0)? else { return Ok(false) };
        let tried = async {
            self.make_folder(&folder).await?;
            self.write_chunk(&folder, 0, vec![data.clone()]).await?;
            let is_listed = self.chunks(&folder.key).await?.is_some_and(|it| it.len() == 1);
            self.assemble(&folder, temporary, &HeaderMap::new()).await?;
            let now = self.site.body(Call::new(Method::GET, self.site.url(temporary))).await?;
            Ok(is_listed && now == data)
        };
        let tried = tried.await;
        for url in [self.site.directory_url(&folder.key), self.site.url(temporary)] {
            // What is left of it has a name of ours, and is no more than a few bytes.
            let _ = self.site.deleted(url).await;
        }
        tried
    }
}

/// What a server says of a chunk.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// Counted from 0.
    index: u64,
    size: u64,
    modified: Option<Timestamp>,
}

/// Where a user's folders are whose files are below `remote.php/dav/files/USER`.
pub fn home(key: &Key) -> Option<Key> {
    let path = key.as_bytes();
    let at = path.windows(FILES.len()).position(|it| it == FILES)?;
    let before = path.get(..at)?;
    if !(before.is_empty() || before.ends_with(b"/")) {
        return None;
    }
    let mut rest = path.get(at + FILES.len()..)?.split(|byte| *byte == b'/');
    let user = rest.next().filter(|user| !user.is_empty())?;
    // Below the user's own directory.
    rest.next()?;
    Key::new(&[before, UPLOADS, user].concat()).ok()
}

const FILES: &[u8] = b"remote.php/dav/files/";
const UPLOADS: &[u8] = b"remote.php/dav/uploads/";

/// How many chunks a file may have.
pub const MAX_COUNT: u64 = 10_000;

/// All chunks but the last are at least so long, in bytes.
pub const LEAST_LEN: u64 = 5_000_000;

/// The longest chunk of several parts, in bytes: they are in memory until all have come.
const MAX_HELD: u64 = 64 << 20;

/// The longest file, in bytes.
pub const MAX_SIZE: u64 = MAX_COUNT * MAX_HELD;

/// How long a server is waited for that is putting chunks together.
const PAUSES: [Duration; 8] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
    Duration::from_mins(1),
    Duration::from_mins(1),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &[u8]) -> Key {
        Key::new(path).unwrap()
    }

    fn folder(size: u64, part_len: u64, least: u64) -> Answer<Folder> {
        let temporary = key(b"remote.php/dav/files/me/d/.fastsync-0123abcd-0123456789abcdef");
        let folder = Folder::new(&temporary, String::new(), size, part_len, least)?;
        let folder = folder.unwrap();
        let path = b"remote.php/dav/uploads/me/fastsync-0123abcd-0123456789abcdef";
        assert_eq!(folder.key.as_bytes(), path);
        Ok(folder)
    }

    #[test]
    fn folders_are_beside_the_users_files() {
        for (path, wanted) in [
            (&b"remote.php/dav/files/me/x"[..], Some(&b"remote.php/dav/uploads/me"[..])),
            (b"cloud/remote.php/dav/files/a b/c/d", Some(b"cloud/remote.php/dav/uploads/a b")),
            (b"remote.php/dav/files/me", None),
            (b"xremote.php/dav/files/me/x", None),
            (b"remote.php/webdav/x", None),
        ] {
            assert_eq!(home(&key(path)), wanted.map(key), "{}", String::from_utf8_lossy(path));
        }
    }

    #[test]
    fn ten_thousand_chunks_suffice() {
        let (mib, gib) = (1 << 20, 1 << 30);
        for (size, part_len, len) in [
            (100 * mib, 8 * mib, 8 * mib),
            (100 * mib, 4 * mib, 8 * mib),
            (mib, 64 << 10, 77 * (64 << 10)),
            (100 * gib, 8 * mib, 16 * mib),
            (600 * gib, 8 * mib, 64 * mib),
            (600 * gib, 64 * mib, 64 * mib),
        ] {
            let folder = folder(size, part_len, LEAST_LEN).unwrap();
            assert_eq!(folder.len(), len);
            assert!(folder.count() <= MAX_COUNT && folder.len() >= LEAST_LEN);
            let lens = (0..folder.count()).map(|chunk| folder.len_of(chunk).unwrap());
            assert_eq!(lens.sum::<u64>(), size);
            assert_eq!(folder.len_of(folder.count()), None);
        }
        let fault = folder(700 * gib, 8 * mib, LEAST_LEN).unwrap_err();
        assert!(fault.text.contains("too long"), "{fault}");
    }

    #[test]
    fn parts_are_held_until_their_chunk_is_complete() {
        let folder = folder(9, 2, 4).unwrap();
        let part = |data: &'static [u8]| vec![Bytes::from_static(data)];
        assert_eq!(folder.take(3, part(b"67")), None);
        assert_eq!(folder.take(1, part(b"23")), None);
        assert_eq!(folder.take(1, part(b"23")), None, "the same once more");
        let (chunk, pieces) = folder.take(0, part(b"01")).unwrap();
        assert_eq!((chunk, &pieces.concat()[..]), (0, &b"0123"[..]));
        let (chunk, pieces) = folder.take(4, part(b"8")).unwrap();
        assert_eq!((chunk, &pieces.concat()[..]), (2, &b"8"[..]));
        lock(&folder.state).there.extend([0, 2]);
        assert_eq!(folder.take(0, part(b"01")), None, "the server has it");
        assert!(!folder.is_complete());
        assert_eq!(folder.take(2, part(b"45")).unwrap().1.concat(), b"4567");
    }
}
