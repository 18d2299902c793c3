//! How files get to a server of WebDAV: to a temporary name first, and from there to their own.
//!
//! Large ones go in one request, or part by part, in one of the [`Way`]s that the server has.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::sync::{RwLock, RwLockReadGuard};

use super::chunks::{Folder, LEAST_LEN};
use super::client::{Call, fill};
use super::dav::{DavEndpoint, method};
use super::feed::Feed;
use super::file::http_time;
use super::lock;
use super::multistatus::{Sent, set_last_modified};
use super::sample::Sample;
use super::trial::Times;
use crate::protocol::chunk::ByteRange;
use crate::protocol::manifest::Timestamp;
use crate::storage::remote::{Answer, Class, Fault, Kept, Key, OWN_PREFIX, all, nonce};
use crate::storage::{Left, Receipt, Token};

/// How a server takes a large file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Way {
    /// In one request.
    #[default]
    Whole,
    /// By PUT with `Content-Range` (RFC 9110, 14.5), as Apache does.
    ContentRange,
    /// By PATCH with `X-Update-Range`, as SabreDAV does (its documentation, "HTTP PATCH support").
    PartialUpdate,
    /// By chunks in a folder, as Nextcloud does.
    Chunks,
}

/// A file that is coming.
#[derive(Clone, Debug)]
pub struct Upload {
    number: u64,
    temporary: Key,
    size: u64,
    part_len: u64,
    /// What goes with all of its data.
    headers: HeaderMap,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    OneRequest(Feed),
    /// Into the temporary file, each where it belongs.
    InPlace,
    InFolder(Arc<Folder>),
}

/// What was begun and has not ended, as nobody waited for it any more.
#[derive(Debug, Default)]
pub struct GivenUp {
    left: Mutex<Vec<(Key, Token)>>,
    /// Read by all that has not ended yet.
    under_way: RwLock<()>,
}

/// What was begun at the server: unless it ends, it was given up.
struct Begun<'a> {
    given_up: &'a GivenUp,
    what: Option<(Key, Token)>,
    _under_way: RwLockReadGuard<'a, ()>,
}

impl Begun<'_> {
    fn end(mut self) {
        self.what = None;
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        lock(&self.given_up.left).extend(self.what.take());
    }
}

impl DavEndpoint {
    pub async fn put_file(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
        let (number, size) = (nonce(), data.len() as u64);
        let temporary = temporary(key, number)?;
        let put = async {
            let mut call = Call::new(Method::PUT, self.site.url(&temporary)).body(vec![data]);
            call.headers = self.headers(kept);
            let reply = self.site.written(call).await?;
            let since = match self.can.times {
                Times::ByHeader => in_seconds(kept),
                Times::Never | Times::AsProperty => reply.header("date").and_then(http_time),
            };
            self.put_in_place(&temporary, key, Sent { size, since }, kept).await
        };
        let begun = self.begun(key, token(number, size, size)).await;
        let done = put.await;
        let done = self.or_remove(&temporary, done).await;
        begun.end();
        done
    }

    pub async fn begin_file(
        &self,
        key: &Key,
        size: u64,
        parts: u64,
        kept: &Kept,
    ) -> Answer<Upload> {
        let headers = self.headers(kept);
        // Every part but the last has the same length, which is a power of two.
        let part_len = size.div_ceil(parts.max(1)).max(1).next_power_of_two();
        let number = nonce();
        let temporary = temporary(key, number)?;
        let url = self.site.url(&temporary);
        let upload = Upload { number, temporary, size, part_len, headers, how: How::InPlace };
        let begun = self.begun(key, upload.token()).await;
        let how = match self.can.way {
            Way::Whole => {
                let feed = Feed::begin(&self.site, &url, size, parts, upload.headers.clone())?;
                self.feeds.keep(number, &feed);
                How::OneRequest(feed)
            }
            Way::Chunks if parts > 1 => {
                let folder = self.folder(&upload)?;
                self.make_folder(&folder).await?;
                How::InFolder(folder)
            }
            Way::ContentRange | Way::PartialUpdate | Way::Chunks => {
                if parts > 1 {
                    self.site.written(upload.with_headers(Call::new(Method::PUT, url))).await?;
                }
                How::InPlace
            }
        };
        // From here on whoever has its token decides.
        begun.end();
        Ok(Upload { how, ..upload })
    }

    fn folder(&self, upload: &Upload) -> Answer<Arc<Folder>> {
        let destination = self.site.url(&upload.temporary);
        let least = self.site.config().least_chunk.unwrap_or(LEAST_LEN);
        let (size, part_len) = (upload.size, upload.part_len);
        let folder = Folder::new(&upload.temporary, destination, size, part_len, least)?;
        let nowhere = || Fault::new(Class::Unsupported, "the server has no folder for its chunks");
        folder.map(Arc::new).ok_or_else(nowhere)
    }

    /// Takes up what an earlier process began: which of its parts are lost.
    pub async fn take_up(
        &self,
        key: &Key,
        size: u64,
        left: &Left,
    ) -> Answer<Option<(Upload, Vec<u64>)>> {
        let Some((number, known, part_len)) = token_of(&left.token) else { return Ok(None) };
        if known != size || part_len == 0 {
            return Ok(None);
        }
        let (temporary, headers) = (temporary(key, number)?, HeaderMap::new());
        let upload = Upload { number, temporary, size, part_len, headers, how: How::InPlace };
        match self.can.way {
            Way::Whole => Ok(None),
            Way::Chunks => {
                let folder = self.folder(&upload)?;
                let lost = self.take_up_folder(&folder, &left.receipts).await?;
                Ok(lost.map(|lost| (Upload { how: How::InFolder(folder), ..upload }, lost)))
            }
            Way::ContentRange | Way::PartialUpdate => {
                let found = self.find(&upload.temporary).await?.and_then(|it| it.size);
                let Some(found) = found else { return Ok(None) };
                // Its length is as far as the last part reaches.
                let is_lost =
                    |receipt| Sample::from_receipt(receipt).is_none_or(|it| it.end > found);
                let lost = left.receipts.iter().filter(|(_, receipt)| is_lost(receipt));
                let lost = lost.map(|(number, _)| *number).collect();
                Ok(Some((upload, lost)))
            }
        }
    }

    pub async fn write_part(
        &self,
        upload: &Upload,
        number: u64,
        range: ByteRange,
        data: Vec<Bytes>,
    ) -> Answer<Receipt> {
        let sample = Sample::of(range, &data);
        match &upload.how {
            How::OneRequest(feed) => {
                feed.write(number, data).await?;
                return Ok(Receipt::default());
            }
            How::InFolder(folder) => self.write_chunk(folder, number, data).await?,
            How::InPlace if u64::from(range.len()) == upload.size => {
                let call = Call::new(Method::PUT, self.site.url(&upload.temporary)).body(data);
                self.site.written(upload.with_headers(call)).await?;
                return Ok(sample.without_bytes().receipt());
            }
            How::InPlace => {
                let (from, last) = (range.offset(), sample.end - 1);
                let url = self.site.url(&upload.temporary);
                let call = if self.can.way == Way::PartialUpdate {
                    partial_update(url, from, last)
                } else {
                    let place = format!("bytes {from}-{last}/{}", upload.size);
                    Call::new(Method::PUT, url).header("content-range", &place)
                };
                self.site.written(upload.with_headers(call.body(data))).await?;
            }
        }
        Ok(sample.receipt())
    }

    /// Reads what was written, of whatever version: requests of a run that was killed may still be
    /// written to it.
    pub async fn read_back(&self, upload: &Upload, offset: u64, into: &mut [u8]) -> Answer<()> {
        let last = (offset + into.len() as u64).saturating_sub(1);
        let call = Call::new(Method::GET, self.site.url(&upload.temporary));
        let reply = self.site.send(call.header("range", &format!("bytes={offset}-{last}"))).await?;
        let lacks = || Fault::new(Class::Missing, "the server has no such part of it");
        if reply.status() != StatusCode::PARTIAL_CONTENT {
            return Err(if reply.status() == StatusCode::OK {
                lacks()
            } else {
                self.site.refused(&reply)
            });
        }
        let len = into.len();
        if fill(reply.response, into).await? == len { Ok(()) } else { Err(lacks()) }
    }

    pub async fn finish_file(
        &self,
        upload: Upload,
        key: &Key,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        let (size, temporary) = (upload.size, &upload.temporary);
        let finish = async {
            match &upload.how {
                How::OneRequest(feed) => self.feeds.finish(upload.number, feed).await?,
                How::InPlace => {}
                How::InFolder(folder) => {
                    self.assemble(folder, temporary, &self.headers(kept)).await?;
                }
            }
            let found = self.find(temporary).await?;
            if found.as_ref().and_then(|it| it.size) != Some(size) {
                let text = "the server has another length of it than was sent";
                return Err(Fault::new(Class::Corrupt, text));
            }
            self.site.check_samples(&self.site.url(temporary), &receipts).await?;
            let mut since = found.and_then(|it| it.modified);
            if self.can.times == Times::ByHeader
                && in_seconds(kept).is_some_and(|it| since != Some(it))
            {
                since = self.set_modified(temporary, kept).await?;
            }
            self.put_in_place(temporary, key, Sent { size, since }, kept).await
        };
        let done = finish.await;
        self.or_remove(temporary, done).await
    }

    /// Corrects the time that a server keeps of a file, in seconds, and tells it.
    async fn set_modified(&self, key: &Key, kept: &Kept) -> Answer<Option<Timestamp>> {
        if let Some(mtime) = kept.mtime {
            self.update(self.site.url(key), set_last_modified(mtime.seconds)).await?;
        }
        Ok(in_seconds(kept))
    }

    pub async fn abandon_file(&self, key: &Key, token: &Token) -> Answer<()> {
        let Some((number, size, part_len)) = token_of(token) else { return Ok(()) };
        self.feeds.cancel(number).await;
        let (temporary, headers) = (temporary(key, number)?, HeaderMap::new());
        let upload = Upload { number, temporary, size, part_len, headers, how: How::InPlace };
        if let Ok(folder) = self.folder(&upload) {
            self.remove_folder(&folder).await?;
        }
        self.site.deleted(self.site.url(&upload.temporary)).await
    }

    /// Copies a file to a temporary name of another, and from there to its own.
    pub async fn copy_file(
        &self,
        source: &Self,
        from: &Key,
        size: u64,
        to: &Key,
        kept: &Kept,
    ) -> Answer<()> {
        let number = nonce();
        let temporary = temporary(to, number)?;
        let copy = async {
            let call = source.leading("COPY", from, &temporary, "T").effort(size);
            self.site.written(call).await?;
            let copied = self.find(&temporary).await?;
            if copied.as_ref().and_then(|it| it.size) != Some(size) {
                return Err(Fault::new(Class::Changed, "it is another version by now"));
            }
            let since = match self.can.times {
                Times::ByHeader => self.set_modified(&temporary, kept).await?,
                Times::Never | Times::AsProperty => copied.and_then(|it| it.modified),
            };
            self.put_in_place(&temporary, to, Sent { size, since }, kept).await
        };
        let begun = self.begun(to, token(number, size, size)).await;
        let done = copy.await;
        let done = self.or_remove(&temporary, done).await;
        begun.end();
        done
    }

    /// Notes what may be left there until it has come to its end.
    async fn begun(&self, key: &Key, token: Token) -> Begun<'_> {
        let given_up = &self.given_up;
        let under_way = given_up.under_way.read().await;
        Begun { given_up, what: Some((key.clone(), token)), _under_way: under_way }
    }

    /// Removes what was begun when nobody waited for its end any more.
    pub async fn remove_given_up(&self) {
        let _ = self.given_up.under_way.write().await;
        for round in 0..REMOVALS {
            let left = lock(&self.given_up.left).clone();
            if left.is_empty() {
                return;
            }
            // A request whose answer nobody waited for may be carried out later than this.
            tokio::time::sleep(REMOVAL_PAUSE * round).await;
            let removals = left.iter().map(|(key, token)| self.abandon_file(key, token));
            all(removals.collect(), self.site.requests()).await;
        }
    }

    fn headers(&self, kept: &Kept) -> HeaderMap {
        let mtime = kept.mtime.filter(|_| self.can.times == Times::ByHeader);
        let value = mtime.map(|it| HeaderValue::from(it.seconds));
        let named = value.map(|value| (HeaderName::from_static("x-oc-mtime"), value));
        named.into_iter().collect()
    }

    /// Puts a whole file that has a temporary name in its place.
    async fn put_in_place(
        &self,
        temporary: &Key,
        key: &Key,
        sent: Sent,
        kept: &Kept,
    ) -> Answer<()> {
        if let Some(mtime) = kept.mtime.filter(|_| self.can.times == Times::AsProperty) {
            self.set_property(temporary, mtime).await?;
        }
        self.move_to(temporary, key, sent).await
    }

    /// Does something for a file of a temporary name, which goes if that fails.
    async fn or_remove(&self, temporary: &Key, done: Answer<()>) -> Answer<()> {
        if done.is_err() {
            let _ = self.site.deleted(self.site.url(temporary)).await;
        }
        done
    }

    /// Gives a file another name, in place of another file that has it.
    pub async fn move_to(&self, from: &Key, to: &Key, sent: Sent) -> Answer<()> {
        // With `Overwrite: T` a server removes a directory too, and all that is in it.
        let moving = |overwrite| self.leading("MOVE", from, to, overwrite).effort(sent.size);
        let mut reply = self.site.send(moving("F")).await?;
        if reply.status() == StatusCode::PRECONDITION_FAILED {
            if self.find(to).await?.is_some_and(|it| it.is_collection) {
                return Err(Fault::new(Class::Exists, "a directory has this name"));
            }
            reply = self.site.send(moving("T")).await?;
        }
        match reply.status() {
            status if status.is_success() => Ok(()),
            // It may have been the second attempt, after one whose answer was lost.
            StatusCode::NOT_FOUND if self.find(to).await?.is_some_and(|it| sent.is(&it)) => Ok(()),
            _ => Err(self.site.refused_write(&reply)),
        }
    }

    fn leading(&self, name: &str, from: &Key, to: &Key, overwrite: &str) -> Call {
        let call = Call::new(method(name), self.site.url(from));
        call.header("destination", &self.site.url(to)).header("overwrite", overwrite)
    }
}

impl Upload {
    pub fn token(&self) -> Token {
        token(self.number, self.size, self.part_len)
    }

    fn with_headers(&self, mut call: Call) -> Call {
        call.headers.extend(self.headers.clone());
        call
    }
}

fn token(number: u64, size: u64, part_len: u64) -> Token {
    let numbers = [number, size, part_len];
    Token::new(&numbers.map(u64::to_le_bytes).concat()).unwrap_or_default()
}

/// An upload's number, its size, and the length of its parts.
fn token_of(token: &Token) -> Option<(u64, u64, u64)> {
    let (numbers, rest) = token.as_bytes().as_chunks();
    match (numbers, rest) {
        ([number, size, part_len], []) => Some((
            u64::from_le_bytes(*number),
            u64::from_le_bytes(*size),
            u64::from_le_bytes(*part_len),
        )),
        _ => None,
    }
}

/// Changes part of a file: `sabre.io/dav/http-patch`.
pub fn partial_update(url: String, first: u64, last: u64) -> Call {
    Call::new(Method::PATCH, url)
        .header("content-type", "application/x-sabredav-partialupdate")
        .header("x-update-range", &format!("bytes={first}-{last}"))
}

/// The name that a file has before it is complete, by its own.
pub fn temporary(key: &Key, number: u64) -> Answer<Key> {
    let hash = blake3::hash(key.as_bytes()).to_hex();
    let own = format!("{}-{number:016x}", hash.get(..8).unwrap_or_default());
    let name = [OWN_PREFIX, own.as_bytes()].concat();
    Ok(key.parent().unwrap_or_default().join(&name)?)
}

/// A time as servers that take it by a header have it.
fn in_seconds(kept: &Kept) -> Option<Timestamp> {
    kept.mtime.and_then(|it| Timestamp::new(it.seconds, 0))
}

/// How often what was given up is removed.
const REMOVALS: u32 = 2;

/// How much longer each time is waited before that.
const REMOVAL_PAUSE: Duration = Duration::from_millis(300);
