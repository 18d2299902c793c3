//! WebDAV (RFC 4918), as an endpoint.
//!
//! Files go to a temporary name and are moved from there to their own. How large ones are written, and
//! whether their times can be kept, differs from server to server: it is tried out at the destination.

use std::str::FromStr as _;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::client::Call;
use super::feed::Feeds;
use super::file::{Open, directory_thing};
use super::multistatus::{Member, Members, WANTED, is_all_done, set_last_modified, set_own};
use super::site::{Lists, Site, WebConfig};
use super::trial::{Can, Times, properties};
use super::upload::{GivenUp, Upload};
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::manifest::{Escaped, Timestamp};
use crate::protocol::message::Changes;
use crate::storage::object::metadata::parse_time;
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Kept, Key, Listed, Properties, Thing, ThingKind, Unfinished,
    all, pieces, temporary_files,
};
use crate::storage::{Left, Receipt, Token};

/// A server of WebDAV.
#[derive(Clone, Debug)]
pub struct DavEndpoint {
    pub site: Site,
    properties: Properties,
    pub can: Can,
    pub feeds: Feeds,
    pub given_up: Arc<GivenUp>,
    note: Option<String>,
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
            feeds: Feeds::default(),
            given_up: Arc::default(),
            note: None,
        };
        if let Some(key) = destination {
            (endpoint.can, endpoint.note) = if endpoint.site.config().is_dry_run {
                (Can::supposed(key)?, None)
            } else {
                endpoint.try_out(key).await?
            };
            endpoint.properties = properties(&endpoint.site, endpoint.can);
        }
        Ok(endpoint)
    }

    /// What people may want to know of the server.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
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
        let Some(mut members) = answer? else { return Ok(None) };
        let first = members.next().await?;
        // To the end, so that the connection serves again.
        for _ in 0..MAX_OTHERS {
            if members.next().await?.is_none() {
                return Ok(first.filter(|member| !member.is_missing()));
            }
        }
        Err(Fault::new(Class::Violation, "the server tells of more than it was asked about"))
    }

    /// Asks for what is known of a thing, and of what is in it; `None` if it is not there.
    pub async fn ask(&self, url: String, depth: &str) -> Answer<Option<Members>> {
        let call = Call::new(method("PROPFIND"), url)
            .header("depth", depth)
            .header("content-type", "application/xml; charset=\"utf-8\"")
            .body(vec![Bytes::from_static(WANTED.as_bytes())]);
        let reply = self.site.send(call).await?;
        match reply.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            StatusCode::MULTI_STATUS => Ok(Some(Members::new(reply.response))),
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

    pub async fn update(&self, url: String, body: String) -> Answer<()> {
        let call = Call::new(method("PROPPATCH"), url)
            .header("content-type", "application/xml; charset=\"utf-8\"")
            .body(vec![body.into()]);
        if is_all_done(&self.site.body(call).await?) {
            return Ok(());
        }
        Err(Fault::new(Class::Unsupported, "the server does not let this be changed"))
    }

    fn thing(&self, member: &Member) -> Answer<Thing> {
        if let Some(status) = &member.refusal {
            let text = format!("the server says of it: {}", Escaped(status.as_bytes()));
            return Err(Fault::new(Class::Other, text));
        }
        if member.is_collection {
            let is_by_header = self.can.times == Times::ByHeader;
            let mtime = if is_by_header { member.modified } else { own_time(member) };
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

    /// Tells what an answer has of a directory. `false` if nobody listens any more.
    async fn tell(
        &self,
        directory: &Key,
        groups: flume::Receiver<Vec<Member>>,
        found: &flume::Sender<Vec<Listed>>,
        below: &mut Vec<Key>,
    ) -> Answer<bool> {
        let mut is_ours = false;
        while let Ok(members) = groups.recv_async().await {
            let mut group = Vec::with_capacity(members.len());
            for member in members {
                let path = path_of(&member.href)?;
                let key = match Key::new(&path) {
                    Ok(key) if key == *directory => {
                        is_ours = self.thing(&member)?.kind == ThingKind::Directory;
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
                match self.thing(&member) {
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
        let Some(mut members) = self.ask(url.clone(), "1").await? else { return Ok(()) };
        members.next().await?;
        if members.next().await?.is_some() {
            return Err(Fault::new(Class::Exists, "there is something in it"));
        }
        self.site.deleted(url).await
    }
}

impl Lists for DavEndpoint {
    async fn list_one(
        &self,
        directory: &Key,
        found: &flume::Sender<Vec<Listed>>,
        below: &mut Vec<Key>,
    ) -> Answer<bool> {
        let members = self.ask(self.site.directory_url(directory), "1").await?;
        let missing = || Fault::new(Class::Missing, "there is no such directory");
        let members = members.ok_or_else(missing)?;
        let (groups, read) = flume::bounded(HELD);
        let telling = self.tell(directory, read, found, below);
        let (reading, told) = tokio::join!(members.in_groups(groups), telling);
        let told = told?;
        reading.map(|()| told)
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
        self.list_all(directory, deep, &found).await
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
        self.put_file(key, data, kept).await
    }

    async fn begin(&self, key: &Key, size: u64, parts: u64, kept: &Kept) -> Answer<Upload> {
        self.begin_file(key, size, parts, kept).await
    }

    fn token(&self, upload: &Upload) -> Token {
        upload.token()
    }

    async fn resume(
        &self,
        key: &Key,
        size: u64,
        left: &Left,
    ) -> Answer<Option<(Upload, Vec<u64>)>> {
        self.take_up(key, size, left).await
    }

    async fn write(
        &self,
        upload: &Upload,
        number: u64,
        range: ByteRange,
        data: ChunkData,
    ) -> Answer<Receipt> {
        self.write_part(upload, number, range, pieces(range, &data)).await
    }

    async fn reread(&self, upload: &Upload, offset: u64, into: &mut [u8]) -> Answer<()> {
        self.read_back(upload, offset, into).await
    }

    async fn finish(
        &self,
        upload: Upload,
        key: &Key,
        receipts: Vec<(u64, Receipt)>,
        kept: &Kept,
    ) -> Answer<()> {
        self.finish_file(upload, key, receipts, kept).await
    }

    async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
        self.abandon_file(key, token).await
    }

    async fn give_up(&self) {
        self.remove_given_up().await;
    }

    async fn unfinished(
        &self,
        directory: &Key,
        found: flume::Sender<Vec<Unfinished>>,
    ) -> Answer<()> {
        let folders = self.left_folders(directory).await?;
        if !folders.is_empty() && found.send_async(folders).await.is_err() {
            return Ok(());
        }
        temporary_files(self, directory, found).await
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
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                let text = "the server lets no directories be made there; make it first";
                Err(Fault::new(Class::Unsupported, text))
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
        let found = source.stat(from).await?;
        let is_same = found.is_some_and(|found| {
            (found.size, &found.tag, found.modified) == (thing.size, &thing.tag, thing.modified)
        });
        if !is_same {
            return Err(Fault::new(Class::Changed, "it is another version by now"));
        }
        self.copy_file(source, from, thing.size, to, kept).await
    }
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
pub fn path_of(href: &str) -> Answer<Vec<u8>> {
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
pub fn method(name: &str) -> Method {
    Method::from_str(name).unwrap_or_default()
}

/// How many things an answer about one may tell of besides.
const MAX_OTHERS: usize = 1000;

/// How many groups of a listing are held while nobody takes them. Behind that the server waits.
const HELD: usize = 256;

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
