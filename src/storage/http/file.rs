//! Files of a web server: what is known of one before it is read, and reading it by ranges or, where
//! there are none, in one stream.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode, header};
use tokio::sync::Mutex as AsyncMutex;

use super::client::{Call, PROGRESS, fill, lost};
use super::digest::{Check, Claim, claim_of, of_fields};
use super::lock;
use super::looks::Look;
use super::share::{self, Help};
use super::site::{Reply, Site};
use super::stream::{Served, Stream};
use crate::protocol::manifest::Timestamp;
use crate::storage::remote::{Answer, Class, Fault, Key, Thing, ThingKind, nonce};

/// A file that is being read. A clone is another handle on it.
#[derive(Clone, Debug)]
pub struct Open {
    file: Arc<File>,
}

#[derive(Debug)]
struct File {
    /// Where it is asked for.
    url: String,
    /// Where the server has sent us on to.
    moved: Mutex<Option<String>>,
    thing: Thing,
    /// What ranges are asked for with, so that they are all of one version (RFC 9110, 13.1.5).
    strong_tag: OnceLock<String>,
    /// All that was read came with one answer.
    is_whole: AtomicBool,
    /// Something was read of which no strong tag tells the version.
    is_untagged: AtomicBool,
    /// The server has no ranges of it.
    is_sequential: AtomicBool,
    stream: AsyncMutex<Option<Stream>>,
    check: Mutex<Option<Check>>,
}

/// What became of asking for a range.
enum Ranged {
    All,
    /// This much was filled before it broke off.
    Some(usize),
    /// The server sends all of it.
    Whole(reqwest::Response),
}

impl File {
    fn url(&self) -> String {
        lock(&self.moved).clone().unwrap_or_else(|| self.url.clone())
    }

    fn take(&self, offset: u64, data: &[u8]) {
        if let Some(check) = &mut *lock(&self.check) {
            check.add(offset, data);
        }
    }

    /// Whether an answer has the strong tag that was asked for.
    fn is_tagged(&self, headers: &HeaderMap) -> bool {
        let tag = headers.get(header::ETAG).and_then(|it| it.to_str().ok());
        tag.is_some() && tag == self.strong_tag.get().map(String::as_str)
    }

    /// Whether all that was read is known to be of one version.
    fn is_of_one(&self) -> bool {
        let is_tagged =
            self.strong_tag.get().is_some() && !self.is_untagged.load(Ordering::Relaxed);
        self.is_whole.load(Ordering::Relaxed)
            || is_tagged && !self.is_sequential.load(Ordering::Relaxed)
    }

    /// Learns what the server says that the whole amounts to.
    fn learn(&self, claim: Option<Claim>) {
        let mut check = lock(&self.check);
        if check.is_none() {
            *check = Check::new(claim.into_iter().collect());
        }
    }
}

impl Site {
    /// What is known of a file; `None` if there is none. `is_directory` if the server redirects to the
    /// same with a slash.
    pub async fn look(&self, key: &Key) -> Answer<Option<Thing>> {
        let reply = self.send(Call::new(Method::HEAD, self.url(key))).await?;
        if reply.is_directory {
            return Ok(Some(directory_thing()));
        }
        let status = reply.status();
        match status.as_u16() {
            200..=299 => match head_length(self.readable(key, &reply)?) {
                Some(size) => {
                    let thing = self.file(size, reply.response.headers());
                    if size > SMALL {
                        self.looks().add(key, &thing, Look::of(&reply));
                    }
                    Ok(Some(thing))
                }
                None => self.measure(key).await,
            },
            404 | 410 => Ok(None),
            // Who may not be asked for the head may be asked for the body.
            400 | 403 | 405 | 501 => match self.measure(key).await {
                Err(fault) if fault.class == Class::Unsupported => Err(self.refused(&reply)),
                answer => answer,
            },
            _ => Err(self.refused(&reply)),
        }
    }

    /// Finds out how long a file is by beginning to read it, or by reading it.
    async fn measure(&self, key: &Key) -> Answer<Option<Thing>> {
        let call = Call::new(Method::GET, self.url(key)).header("range", "bytes=0-0");
        let mut reply = self.send(call).await?;
        let headers = match reply.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => self.readable(key, &reply)?.clone(),
            _ => reply.response.headers().clone(),
        };
        let size = match reply.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            StatusCode::PARTIAL_CONTENT => total(&headers),
            StatusCode::RANGE_NOT_SATISFIABLE => total(&headers).or(Some(0)),
            StatusCode::OK if length(&headers).is_some() => length(&headers),
            StatusCode::OK => Some(read_through(&mut reply.response).await?),
            _ => return Err(self.refused(&reply)),
        };
        let untold =
            || Fault::new(Class::Unsupported, "the server does not tell the file's length");
        Ok(Some(self.file(size.ok_or_else(untold)?, &headers)))
    }

    /// The headers of an answer that has a file as it is.
    fn readable<'a>(&self, key: &Key, reply: &'a Reply) -> Answer<&'a HeaderMap> {
        let headers = reply.response.headers();
        check_encoding(&self.url(key), headers).map(|()| headers)
    }

    fn file(&self, size: u64, headers: &HeaderMap) -> Thing {
        let root = self.config().expected.blake3;
        self.of_this_run(Thing { root, ..thing_of(ThingKind::File, size, headers) })
    }

    /// A file of which the server does not tell one version from another gets a tag and a time of this
    /// process: nothing that another one has read of it counts.
    pub fn of_this_run(&self, thing: Thing) -> Thing {
        if self.config().is_destination || thing.tag.is_some() || thing.modified.is_some() {
            return thing;
        }
        let (number, begun) = RUN.get_or_init(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
            (nonce(), Timestamp::new(seconds, since.subsec_nanos()))
        });
        let tag = [RUN_TAG, &number.to_le_bytes()[..]].concat();
        Thing { tag: Some(tag.into()), modified: *begun, ..thing }
    }

    /// Opens a file. Of a large one it asks what it is, unless it did so a moment ago, as parts of
    /// another version would be of no use.
    pub async fn open_file(&self, key: &Key, thing: &Thing) -> Answer<Open> {
        let claims = self.config().expected.sha256.map(Claim::sha256).into_iter().collect();
        let file = File {
            url: self.url(key),
            moved: Mutex::default(),
            thing: thing.clone(),
            strong_tag: OnceLock::new(),
            is_whole: AtomicBool::new(false),
            is_untagged: AtomicBool::new(false),
            is_sequential: AtomicBool::new(is_of_this_run(thing)),
            stream: AsyncMutex::default(),
            check: Mutex::new(Check::new(claims)),
        };
        if thing.size > SMALL {
            let look = match self.looks().take(key, thing) {
                None => self.look_at(&file).await?,
                known => known,
            };
            if let Some(Look { url, strong_tag, claim }) = look {
                file.learn(claim);
                *lock(&file.moved) = Some(url);
                if let Some(tag) = strong_tag {
                    let _ = file.strong_tag.set(tag);
                }
            }
        }
        Ok(Open { file: Arc::new(file) })
    }

    /// Asks what a file is by now; `None` if the server does not tell.
    async fn look_at(&self, file: &File) -> Answer<Option<Look>> {
        let reply = self.send(Call::new(Method::HEAD, file.url.clone())).await?;
        if reply.status() == StatusCode::NOT_FOUND {
            return Err(self.refused(&reply));
        }
        if !reply.status().is_success() {
            return Ok(None);
        }
        let headers = reply.response.headers();
        check_version(file, headers, head_length(headers))?;
        Ok(Some(Look::of(&reply)))
    }

    /// Reads exactly this much of a file.
    pub async fn read_file(&self, open: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        let _reader = self.readers().begin(into.len()).await;
        self.read_part(&open.file, offset, into).await?;
        open.file.take(offset, into);
        Ok(())
    }

    async fn read_part(&self, file: &File, offset: u64, into: &mut [u8]) -> Answer<()> {
        let (mut done, mut idle) = (0, 0);
        while idle < READ_ATTEMPTS {
            let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) else {
                return Ok(());
            };
            if file.is_sequential.load(Ordering::Relaxed) {
                return self.read_in_order(file, offset + done as u64, rest).await;
            }
            match self.range(file, offset + done as u64, rest, false).await? {
                Ranged::All => return Ok(()),
                Ranged::Some(filled) => {
                    done += filled;
                    idle = if filled >= PROGRESS { 0 } else { idle + 1 };
                }
                Ranged::Whole(response) => {
                    idle += 1;
                    file.is_sequential.store(true, Ordering::Relaxed);
                    file.stream.lock().await.get_or_insert_with(|| Stream::new(response));
                }
            }
        }
        Err(Fault::new(Class::Disconnected, "the connection broke off again and again"))
    }

    /// Asks for a range.
    async fn range(&self, file: &File, first: u64, into: &mut [u8], once: bool) -> Answer<Ranged> {
        let end = first + into.len() as u64;
        let is_whole = first == 0 && end == file.thing.size;
        let mut call = Call { once, ..Call::new(Method::GET, file.url()) };
        if !is_whole {
            call = call.header("range", &format!("bytes={first}-{}", end - 1));
            if let Some(tag) = file.strong_tag.get() {
                call = call.header("if-range", tag);
            }
        }
        let mut reply = self.send(call.clone()).await?;
        if !reply.status().is_success() && call.url != file.url && !once {
            // Where it was sent on to may have been for a while only.
            lock(&file.moved).take_if(|moved| *moved == call.url);
            reply = self.send(Call { url: file.url.clone(), ..call }).await?;
        }
        let headers = reply.response.headers().clone();
        match reply.status() {
            StatusCode::PARTIAL_CONTENT => {
                check_encoding(&file.url, &headers)?;
                check_version(file, &headers, total(&headers))?;
                if first_of(&headers) != Some(first) {
                    let text = "the server sends another part than it was asked for";
                    return Err(Fault::new(Class::Violation, text));
                }
                if !file.is_tagged(&headers) {
                    file.is_untagged.store(true, Ordering::Relaxed);
                }
                file.learn(claim_of(&headers, false));
            }
            StatusCode::OK => {
                check_encoding(&file.url, &headers)?;
                check_version(file, &headers, length(&headers))?;
                file.learn(claim_of(&headers, true));
                if !is_whole {
                    return Ok(Ranged::Whole(reply.response));
                }
            }
            StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(changed());
            }
            _ => return Err(self.refused(&reply)),
        }
        lock(&file.moved).get_or_insert_with(|| reply.url.to_string());
        let claim =
            headers.get("content-digest").and_then(|it| it.to_str().ok()).and_then(of_fields);
        let is_part = reply.status() == StatusCode::PARTIAL_CONTENT;
        let filled = if claim.is_some() || !is_part {
            fill(reply.response, into).await?
        } else {
            let help = Helper { site: self, file };
            share::fill(reply.response, first, into, self.readers(), &help).await?
        };
        if filled < into.len() {
            return Ok(Ranged::Some(filled));
        }
        match claim {
            Some(claim) if !claim.holds_for(into) => Ok(Ranged::Some(0)),
            _ => {
                file.is_whole.fetch_or(!is_part, Ordering::Relaxed);
                Ok(Ranged::All)
            }
        }
    }

    /// Reads from the one answer that there is, and begins it anew if need be.
    async fn read_in_order(&self, file: &File, offset: u64, into: &mut [u8]) -> Answer<()> {
        let mut done = 0;
        let mut stream = file.stream.lock().await;
        for _ in 0..READ_ATTEMPTS {
            if done == into.len() {
                return Ok(());
            }
            let current = match stream.take() {
                Some(current) => stream.insert(current),
                None => stream.insert(Stream::new(self.whole(file).await?)),
            };
            let rest = into.get_mut(done..).unwrap_or_default();
            match current.serve(offset + done as u64, rest).await {
                Served::All => return Ok(()),
                Served::Ended(_) => return Err(changed()),
                // The next answer may be another version, and nothing would tell.
                Served::Gone(_) | Served::Broken(_) if is_of_this_run(&file.thing) => {
                    *stream = None;
                    return Err(changed());
                }
                Served::Gone(filled) | Served::Broken(filled) => {
                    done += filled;
                    *stream = None;
                }
            }
        }
        Err(Fault::new(Class::Disconnected, "the connection broke off again and again"))
    }

    /// All of a file, from its beginning.
    async fn whole(&self, file: &File) -> Answer<reqwest::Response> {
        let reply = self.done(Call::new(Method::GET, file.url.clone())).await?;
        let headers = reply.response.headers();
        check_encoding(&file.url, headers)?;
        check_version(file, headers, length(headers))?;
        file.learn(claim_of(headers, true));
        Ok(reply.response)
    }

    /// Whether a file is what it was, and what it was said to amount to.
    pub async fn confirm_file(&self, open: &Open) -> Answer<bool> {
        let file = &*open.file;
        if let Some(stream) = &mut *file.stream.lock().await
            && !stream.ends_at(file.thing.size).await
        {
            return Ok(false);
        }
        if !file.is_of_one() {
            let reply = self.send(Call::new(Method::HEAD, file.url.clone())).await?;
            let headers = reply.response.headers();
            if matches!(reply.status(), StatusCode::NOT_FOUND | StatusCode::GONE) {
                return Err(self.refused(&reply));
            }
            let is_known = reply.status().is_success();
            if is_known && check_version(file, headers, head_length(headers)).is_err() {
                return Ok(false);
            }
        }
        self.check_claims(file).await.map(|()| true)
    }

    /// Holds a file against what it was said to amount to. What was not read, as it is at the
    /// destination already, is read for what the user has said, and not for what the server says.
    async fn check_claims(&self, file: &File) -> Answer<()> {
        let Some(mut check) = lock(&file.check).take() else { return Ok(()) };
        let (_, missing) = check.missing(file.thing.size);
        if missing > MAX_READ_AGAIN && self.config().expected.sha256.is_none() {
            return Ok(());
        }
        let mut buffer = vec![0; 1 << 20];
        loop {
            let (at, missing) = check.missing(file.thing.size);
            let len = usize::try_from(missing.min(buffer.len() as u64)).unwrap_or_default();
            let Some(piece) = buffer.get_mut(..len).filter(|it| !it.is_empty()) else { break };
            self.read_part(file, at, piece).await?;
            check.add(at, piece);
        }
        match check.broken() {
            None => Ok(()),
            Some(hash) => {
                let whose = if self.config().expected.sha256.is_some() {
                    "the expected one"
                } else {
                    "the server's"
                };
                let text = format!("its {} is not {whose}", hash.name());
                Err(Fault::new(Class::Corrupt, text))
            }
        }
    }
}

/// Reads more of a file.
struct Helper<'a> {
    site: &'a Site,
    file: &'a File,
}

impl Help for Helper<'_> {
    fn read<'a>(&'a self, first: u64, into: &'a mut [u8]) -> BoxFuture<'a, bool> {
        let reading = self.site.range(self.file, first, into, true);
        Box::pin(async move { matches!(reading.await, Ok(Ranged::All)) })
    }
}

/// Reads an answer to its end, and tells how long it was.
async fn read_through(response: &mut reqwest::Response) -> Answer<u64> {
    let mut size = 0;
    while let Some(piece) = response.chunk().await.map_err(|error| lost(&error))? {
        size += piece.len() as u64;
    }
    Ok(size)
}

/// Whether headers are those of the version that is being read.
fn check_version(file: &File, headers: &HeaderMap, size: Option<u64>) -> Answer<()> {
    let told = file.strong_tag.get().map(String::as_bytes);
    let is_same = match (file.thing.tag.as_deref().or(told), tag_of(headers)) {
        // What it has is of this process, and says nothing of the server's.
        _ if is_of_this_run(&file.thing) => true,
        (Some(known), Some(found)) => *known == *found,
        _ => match (file.thing.modified, modified(headers)) {
            (Some(known), Some(found)) => known == found,
            _ => true,
        },
    };
    if is_same && size.is_none_or(|size| size == file.thing.size) { Ok(()) } else { Err(changed()) }
}

/// What is compressed on the way is not the file, unless it is stored so, as its name says.
fn check_encoding(url: &str, headers: &HeaderMap) -> Answer<()> {
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else { return Ok(()) };
    let encoding = encoding.as_bytes().trim_ascii();
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let end = path.rsplit_once('.').map_or("", |(_, end)| end);
    if encoding.is_empty() || encoding.eq_ignore_ascii_case(b"identity") || PACKED.contains(&end) {
        return Ok(());
    }
    let text = "the server sends it compressed, though asked not to";
    Err(Fault::new(Class::Unsupported, text))
}

/// How names of files end that are compressed where they lie.
const PACKED: [&str; 8] = ["gz", "tgz", "svgz", "Z", "bz2", "xz", "zst", "br"];

/// Whether nothing but one answer is known to be of one version.
fn is_of_this_run(thing: &Thing) -> bool {
    thing.tag.as_deref().is_some_and(|tag| tag.starts_with(RUN_TAG))
}

/// How a tag begins that no server has sent: a header has no such byte.
const RUN_TAG: &[u8] = b"\0";

/// What tells this process from others, and when it was first needed.
static RUN: OnceLock<(u64, Option<Timestamp>)> = OnceLock::new();

fn changed() -> Fault {
    Fault::new(Class::Changed, "it is another version by now")
}

/// A directory of which nothing else is known.
pub fn directory_thing() -> Thing {
    thing_of(ThingKind::Directory, 0, &HeaderMap::new())
}

pub fn thing_of(kind: ThingKind, size: u64, headers: &HeaderMap) -> Thing {
    Thing {
        kind,
        size,
        mtime: None,
        modified: modified(headers),
        mode: None,
        owners: None,
        tag: tag_of(headers),
        root: None,
        target: None,
    }
}

fn tag_of(headers: &HeaderMap) -> Option<Box<[u8]>> {
    headers.get(header::ETAG)?.to_str().ok().map(|tag| opaque(tag).as_bytes().into())
}

/// A tag without the mark that it is weak: Apache's are for a second.
pub fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

fn modified(headers: &HeaderMap) -> Option<Timestamp> {
    headers.get(header::LAST_MODIFIED)?.to_str().ok().and_then(http_time)
}

/// A time as HTTP has it.
pub fn http_time(text: &str) -> Option<Timestamp> {
    let time = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Timestamp::new(i64::try_from(time.as_secs()).ok()?, 0)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// What the answer to HEAD tells of the length: servers that make no body for it say 0 of every file.
fn head_length(headers: &HeaderMap) -> Option<u64> {
    length(headers).filter(|length| *length > 0)
}

/// `bytes FIRST-LAST/TOTAL`, or `bytes */TOTAL`.
fn total(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.rsplit_once('/')?.1.trim().parse().ok()
}

fn first_of(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

/// Files above this size are asked about before they are read, in bytes.
const SMALL: u64 = 256 << 10;

/// How much is read again to hold a file against the server's own digest, in bytes.
const MAX_READ_AGAIN: u64 = 64 << 20;

/// How often reading a part is begun again where it broke off.
const READ_ATTEMPTS: u32 = 5;
