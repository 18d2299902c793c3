//! WebDAV (RFC 4918), as an endpoint.
//!
//! Files go to a temporary name and are moved from there to their own. How large ones are written, and
//! whether their times can be kept, differs from server to server: it is tried out at the destination.

use std::str::FromStr as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::client::Call;
use super::feed::Feed;
use super::file::{Open, http_time};
use super::multistatus::{Member, Sent, WANTED, is_all_done, members, set_last_modified, set_own};
use super::site::{MAX_PAGE_LEN, Site, WebConfig};
use super::trial::{Can, Times, properties};
use super::web::{Uploads, directory_thing, lock, random};
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::manifest::{Escaped, Timestamp};
use crate::protocol::message::Changes;
use crate::storage::object::metadata::parse_time;
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Kept, Key, Listed, OWN_PREFIX, Properties, Thing, ThingKind,
    all, pieces,
};
use crate::storage::{Left, Receipt, Token};

/// A server of WebDAV.
#[derive(Clone, Debug)]
pub struct DavEndpoint {
    pub site: Site,
    properties: Properties,
    can: Can,
    uploads: Uploads,
}

/// A file that is coming.
#[derive(Clone, Debug)]
pub struct Upload {
    number: u64,
    temporary: Key,
    size: u64,
    /// `None` where the server takes parts.
    feed: Option<Feed>,
}

impl DavEndpoint {
    /// Finds the server, and finds out what it can do where something is to be written.
    ///
    /// # Errors
    ///
    /// [`Class::Credentials`] and others, with what to do about it.
    pub async fn connect(config: WebConfig, destination: Option<&Key>) -> Answer<Self> {
        let site = Site::new(config)?;
        let mut endpoint = Self {
            properties: properties(&site, Can::default()),
            site,
            can: Can::default(),
            uploads: Uploads::default(),
        };
        if let Some(key) = destination {
            endpoint.can = endpoint.try_out(key).await?;
            endpoint.properties = properties(&endpoint.site, endpoint.can);
        }
        Ok(endpoint)
    }

    /// What the server says of one thing; `None` if it is not there.
    pub async fn find(&self, key: &Key) -> Answer<Option<Member>> {
        let answer = match self.ask(self.site.url(key), "0").await {
            // Where a server's WebDAV begins, the slash at its end may be part of its name.
            Err(fault) if fault.class == Class::Unsupported => {
                self.ask(self.site.directory_url(key), "0").await
            }
            answer => answer,
        };
        Ok(answer?.into_iter().next().filter(|member| !member.is_missing()))
    }

    /// Asks for what is known of a thing, and of what is in it.
    async fn ask(&self, url: String, depth: &str) -> Answer<Vec<Member>> {
        let call = Call::new(method("PROPFIND"), url)
            .header("depth", depth)
            .header("content-type", "application/xml; charset=\"utf-8\"")
            .body(vec![Bytes::from_static(WANTED.as_bytes())]);
        let reply = self.site.send(call).await?;
        match reply.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Vec::new()),
            StatusCode::MULTI_STATUS => {
                members(&super::client::read_body(reply.response, MAX_PAGE_LEN).await?)
            }
            StatusCode::OK | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                let text = "the server speaks no WebDAV there; it may be http:// or https://";
                Err(Fault::new(Class::Unsupported, text))
            }
            _ => Err(self.site.refused(&reply)),
        }
    }

    /// Notes a time beside a file, which counts as long as the file has this tag.
    pub async fn set_property(&self, key: &Key, mtime: Timestamp) -> Answer<()> {
        let (tag, url) = match self.find(key).await? {
            Some(member) if member.is_collection => (String::new(), self.site.directory_url(key)),
            Some(Member { tag: Some(tag), .. }) => (tag, self.site.url(key)),
            _ => return Err(Fault::new(Class::Unsupported, "the server gives files no tags")),
        };
        let value = format!("{}.{:09} {tag}", mtime.seconds, mtime.nanoseconds());
        self.update(url, set_own(value.trim_end())).await
    }

    async fn update(&self, url: String, body: String) -> Answer<()> {
        let call = Call::new(method("PROPPATCH"), url)
            .header("content-type", "application/xml; charset=\"utf-8\"")
            .body(vec![body.into()]);
        if is_all_done(&self.site.body(call).await?) {
            return Ok(());
        }
        Err(Fault::new(Class::Unsupported, "the server does not let this be changed"))
    }

    /// Gives a file another name, in place of another file that has it.
    pub async fn move_to(&self, from: &Key, to: &Key, sent: Sent) -> Answer<()> {
        // With `Overwrite: T` a server removes a directory too, and all that is in it.
        let mut reply = self.site.send(self.leading("MOVE", from, to, "F")).await?;
        if reply.status() == StatusCode::PRECONDITION_FAILED {
            if self.find(to).await?.is_some_and(|it| it.is_collection) {
                return Err(Fault::new(Class::Exists, "a directory has this name"));
            }
            reply = self.site.send(self.leading("MOVE", from, to, "T")).await?;
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

    fn thing(&self, member: &Member) -> Answer<Thing> {
        if let Some(status) = &member.refusal {
            let text = format!("the server says of it: {}", Escaped(status.as_bytes()));
            return Err(Fault::new(Class::Other, text));
        }
        if member.is_collection {
            let mtime = own_time(member);
            return Ok(Thing { mtime, modified: member.modified, ..directory_thing() });
        }
        let untold =
            || Fault::new(Class::Unsupported, "the server does not tell the file's length");
        let size = member.size.ok_or_else(untold)?;
        let mtime = match self.can.times {
            Times::ByHeader => member.modified,
            Times::Never | Times::AsProperty => own_time(member)
                // It was noted for a file that somebody has replaced since.
                .or_else(|| member.modified.filter(|_| member.mtime.is_some())),
        };
        let tag = member.tag.as_ref().map(|tag| tag.as_bytes().into());
        let root = self.site.config().expected.blake3;
        let modified = member.modified;
        let thing =
            Thing { kind: ThingKind::File, size, mtime, modified, tag, root, ..directory_thing() };
        Ok(self.site.of_this_run(thing))
    }

    /// Lists one directory. `false` if nobody listens any more.
    async fn list_one(
        &self,
        directory: &Key,
        found: &flume::Sender<Vec<Listed>>,
        below: &mut Vec<Key>,
    ) -> Answer<bool> {
        let members = self.ask(self.site.directory_url(directory), "1").await?;
        if members.is_empty() {
            return Err(Fault::new(Class::Missing, "there is no such directory"));
        }
        let mut is_ours = false;
        for members in members.chunks(256) {
            let mut group = Vec::with_capacity(members.len());
            for member in members {
                let path = path_of(&member.href)?;
                let key = match Key::new(&path) {
                    Ok(key) if key == *directory => {
                        is_ours = self.thing(member)?.kind == ThingKind::Directory;
                        continue;
                    }
                    Ok(key) if key.parent().as_ref() == Some(directory) => key,
                    Ok(_) => {
                        let text = "the server tells of other places than it was asked about";
                        return Err(Fault::new(Class::Violation, text));
                    }
                    Err(reason) => {
                        group.push(Listed::Unusable { shown: path, reason });
                        continue;
                    }
                };
                match self.thing(member) {
                    Ok(thing) => {
                        if thing.kind == ThingKind::Directory {
                            below.push(key.clone());
                        }
                        group.push(Listed::Thing(key, thing));
                    }
                    Err(fault) => group.push(Listed::Unknown(key, fault)),
                }
            }
            if found.send_async(group).await.is_err() {
                return Ok(false);
            }
        }
        if is_ours {
            Ok(true)
        } else {
            Err(Fault::new(Class::Violation, "the server tells of another place"))
        }
    }

    async fn remove_one(&self, key: &Key, kind: ThingKind) -> Answer<()> {
        if kind != ThingKind::Directory {
            return self.site.deleted(self.site.url(key)).await;
        }
        // The server would remove all that is in it.
        let url = self.site.directory_url(key);
        if self.ask(url.clone(), "1").await?.len() > 1 {
            return Err(Fault::new(Class::Exists, "there is something in it"));
        }
        self.site.deleted(url).await
    }
}

impl Endpoint for DavEndpoint {
    type Open = Open;
    type Upload = Upload;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn shown(&self, key: &Key) -> Vec<u8> {
        self.site.shown(key)
    }

    async fn stat(&self, key: &Key) -> Answer<Option<Thing>> {
        if key.is_top() {
            return Ok(Some(directory_thing()));
        }
        self.find(key).await?.map(|member| self.thing(&member)).transpose()
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
            if !self.list_one(&directory, &found, &mut below).await? {
                return Ok(());
            }
            if deep {
                waiting.extend(below);
            }
        }
        Ok(())
    }

    async fn open(&self, key: &Key, thing: &Thing) -> Answer<Open> {
        self.site.open_file(key, thing).await
    }

    async fn read(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        self.site.read_file(file, offset, into).await
    }

    async fn confirm(&self, file: &Open) -> Answer<bool> {
        self.site.confirm_file(file).await
    }

    async fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
        let temporary = temporary(key, random())?;
        let put = async {
            let size = data.len() as u64;
            let mut call = Call::new(Method::PUT, self.site.url(&temporary)).body(vec![data]);
            call.headers = self.headers(kept);
            let reply = self.site.written(call).await?;
            let since = match self.can.times {
                Times::ByHeader => kept.mtime.and_then(|it| Timestamp::new(it.seconds, 0)),
                Times::Never | Times::AsProperty => reply.header("date").and_then(http_time),
            };
            self.put_in_place(&temporary, key, Sent { size, since }, kept).await
        };
        let done = put.await;
        self.or_remove(&temporary, done).await
    }

    async fn begin(&self, key: &Key, size: u64, parts: u64, kept: &Kept) -> Answer<Upload> {
        let number = random();
        let temporary = temporary(key, number)?;
        let url = self.site.url(&temporary);
        if self.can.write_parts {
            if parts > 1 {
                self.site.written(Call::new(Method::PUT, url)).await?;
            }
            return Ok(Upload { number, temporary, size, feed: None });
        }
        let feed = Feed::begin(&self.site, &url, size, parts, self.headers(kept))?;
        lock(&self.uploads).insert(number, feed.clone());
        Ok(Upload { number, temporary, size, feed: Some(feed) })
    }

    fn token(&self, upload: &Upload) -> Token {
        let (number, size) = (upload.number.to_le_bytes(), upload.size.to_le_bytes());
        Token::new(&[number, size].concat()).unwrap_or_default()
    }

    async fn resume(
        &self,
        key: &Key,
        size: u64,
        left: &Left,
    ) -> Answer<Option<(Upload, Vec<u64>)>> {
        let Some((number, known)) = token_of(&left.token) else { return Ok(None) };
        if known != size || !self.can.write_parts {
            return Ok(None);
        }
        let temporary = temporary(key, number)?;
        let Some(found) = self.find(&temporary).await?.and_then(|it| it.size) else {
            return Ok(None);
        };
        // Its length is as far as the last part reaches.
        let receipts = left.receipts.iter();
        let ends = receipts.map(|(number, end)| (*number, end_of(end)));
        let lost = ends.filter(|(_, end)| end.is_none_or(|end| end > found));
        let lost = lost.map(|(number, _)| number).collect();
        Ok(Some((Upload { number, temporary, size, feed: None }, lost)))
    }

    async fn write(
        &self,
        upload: &Upload,
        number: u64,
        range: ByteRange,
        data: ChunkData,
    ) -> Answer<Receipt> {
        let data = pieces(range, &data);
        if let Some(feed) = &upload.feed {
            return feed.write(number, data).await.map(|()| Receipt::default());
        }
        let end = range.offset() + u64::from(range.len());
        let mut call = Call::new(Method::PUT, self.site.url(&upload.temporary)).body(data);
        if u64::from(range.len()) < upload.size {
            let place = format!("bytes {}-{}/{}", range.offset(), end - 1, upload.size);
            call = call.header("content-range", &place);
        }
        self.site.written(call).await?;
        Ok(Receipt::new(&end.to_le_bytes()).unwrap_or_default())
    }

    async fn reread(&self, upload: &Upload, offset: u64, into: &mut [u8]) -> Answer<()> {
        let found = self.find(&upload.temporary).await?;
        let found = found.ok_or_else(|| Fault::new(Class::Missing, "it is gone"))?;
        let open = self.site.open_file(&upload.temporary, &self.thing(&found)?).await?;
        self.site.read_file(&open, offset, into).await
    }

    async fn finish(
        &self,
        upload: Upload,
        key: &Key,
        _: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        let finish = async {
            if let Some(feed) = &upload.feed {
                lock(&self.uploads).remove(&upload.number);
                feed.finish().await?;
            }
            let found = self.find(&upload.temporary).await?;
            if found.as_ref().and_then(|it| it.size) != Some(upload.size) {
                let text = "the server has another length of it than was sent";
                return Err(Fault::new(Class::Corrupt, text));
            }
            let since = found.and_then(|it| it.modified);
            self.put_in_place(&upload.temporary, key, Sent { size: upload.size, since }, kept).await
        };
        let done = finish.await;
        self.or_remove(&upload.temporary, done).await
    }

    async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
        let Some((number, _)) = token_of(token) else { return Ok(()) };
        let feed = lock(&self.uploads).remove(&number);
        if let Some(feed) = feed {
            feed.cancel().await;
        }
        let temporary = temporary(key, number)?;
        self.site.deleted(self.site.url(&temporary)).await
    }

    async fn make_directory(&self, key: &Key) -> Answer<()> {
        let call = Call::new(method("MKCOL"), self.site.directory_url(key));
        let reply = self.site.send(call).await?;
        match reply.status() {
            status if status.is_success() => Ok(()),
            StatusCode::METHOD_NOT_ALLOWED
                if self.stat(key).await?.is_some_and(|it| it.kind == ThingKind::Directory) =>
            {
                Ok(())
            }
            _ => Err(self.site.refused_write(&reply)),
        }
    }

    async fn set(&self, key: &Key, thing: &Thing, kept: &Kept, _: Changes) -> Answer<()> {
        let Some(mtime) = kept.mtime else { return Ok(()) };
        match self.can.times {
            Times::Never => Ok(()),
            Times::AsProperty => self.set_property(key, mtime).await,
            Times::ByHeader => {
                let url = match thing.kind {
                    ThingKind::Directory => self.site.directory_url(key),
                    ThingKind::File | ThingKind::Symlink | ThingKind::Other => self.site.url(key),
                };
                self.update(url, set_last_modified(mtime.seconds)).await
            }
        }
    }

    async fn remove(&self, things: Vec<(Key, ThingKind)>) -> Vec<Answer<()>> {
        let removals = things.iter().map(|(key, kind)| self.remove_one(key, *kind));
        all(removals.collect(), self.properties.requests).await
    }

    fn copies_from(&self, source: &Self) -> bool {
        self.site.is_same(&source.site)
    }

    async fn copy(
        &self,
        source: &Self,
        from: &Key,
        thing: &Thing,
        to: &Key,
        kept: &Kept,
    ) -> Answer<()> {
        let temporary = temporary(to, random())?;
        let copy = async {
            let found = source.stat(from).await?;
            let is_same = found.is_some_and(|found| {
                (found.size, &found.tag, found.modified) == (thing.size, &thing.tag, thing.modified)
            });
            if !is_same {
                return Err(Fault::new(Class::Changed, "it is another version by now"));
            }
            self.site.written(source.leading("COPY", from, &temporary, "T")).await?;
            let copied = self.find(&temporary).await?;
            if copied.as_ref().and_then(|it| it.size) != Some(thing.size) {
                return Err(Fault::new(Class::Changed, "it is another version by now"));
            }
            if let Some(mtime) = kept.mtime.filter(|_| self.can.times == Times::ByHeader) {
                self.update(self.site.url(&temporary), set_last_modified(mtime.seconds)).await?;
            }
            let since = match self.can.times {
                Times::ByHeader => kept.mtime.and_then(|it| Timestamp::new(it.seconds, 0)),
                Times::Never | Times::AsProperty => copied.and_then(|it| it.modified),
            };
            self.put_in_place(&temporary, to, Sent { size: thing.size, since }, kept).await
        };
        let done = copy.await;
        self.or_remove(&temporary, done).await
    }
}

/// The name that a file has before it is complete, by its own.
pub fn temporary(key: &Key, number: u64) -> Answer<Key> {
    let hash = blake3::hash(key.as_bytes()).to_hex();
    let own = format!("{}-{number:016x}", hash.get(..8).unwrap_or_default());
    let name = [OWN_PREFIX, own.as_bytes()].concat();
    Ok(key.parent().unwrap_or_default().join(&name)?)
}

/// An upload's number and size.
fn token_of(token: &Token) -> Option<(u64, u64)> {
    let (number, size) = token.as_bytes().split_first_chunk()?;
    Some((u64::from_le_bytes(*number), u64::from_le_bytes(size.try_into().ok()?)))
}

/// Where a part ends, by the receipt for it.
fn end_of(receipt: &Receipt) -> Option<u64> {
    receipt.as_bytes().try_into().ok().map(u64::from_le_bytes)
}

/// The time that was noted beside a file, if it was for the file that is there now.
pub fn own_time(member: &Member) -> Option<Timestamp> {
    let (time, tag) = match member.mtime.as_deref()?.split_once(' ') {
        Some((time, tag)) => (time, Some(tag)),
        None => (member.mtime.as_deref()?, None),
    };
    let is_current = member.is_collection || tag.is_some() && tag == member.tag.as_deref();
    parse_time(time).filter(|_| is_current)
}

/// The decoded path of a member, without slashes at its ends.
fn path_of(href: &str) -> Answer<Vec<u8>> {
    let path = match Url::parse(href) {
        Ok(url) => url.path().to_owned(),
        Err(_) => href.to_owned(),
    };
    let path: Vec<u8> = percent_decode_str(&path).collect();
    let inner = path.strip_prefix(b"/").ok_or_else(|| {
        Fault::new(Class::Violation, "the server tells of something that is no path")
    })?;
    Ok(inner.strip_suffix(b"/").unwrap_or(inner).to_vec())
}

/// A method that only WebDAV has. All of these are valid names.
fn method(name: &str) -> Method {
    Method::from_str(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_members_are_decoded() {
        for (href, path) in [
            ("/a%20b/", &b"a b"[..]),
            ("http://h:1/x/%C3%BC", "x/\u{fc}".as_bytes()),
            ("/", b""),
            ("/a%25", b"a%"),
        ] {
            assert_eq!(path_of(href).unwrap(), path, "{href}");
        }
        assert!(path_of("a").is_err());
    }

    #[test]
    fn a_time_counts_for_the_file_that_it_was_noted_for() {
        let time = Timestamp::new(5, 500_000_000);
        let mut member = Member {
            tag: Some("\"x y\"".into()),
            mtime: Some("5.500000000 \"x y\"".into()),
            ..Member::default()
        };
        assert_eq!(own_time(&member), time);
        member.tag = Some("\"other\"".into());
        assert_eq!(own_time(&member), None);
        let directory =
            Member { is_collection: true, mtime: Some("5.5".into()), ..Member::default() };
        assert_eq!(own_time(&directory), time);
    }
}
