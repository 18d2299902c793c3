//! Any web server, as an endpoint: files by their URLs, directories by their index pages, and PUT where
//! the server takes it.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use super::client::{Call, read_body};
use super::feed::{Feed, Feeds};
use super::file::{Open, directory_thing};
use super::index::{Link, is_index, links_of_html, links_of_json};
use super::site::{Lists, Site, WebConfig};
use crate::protocol::chunk::{ByteRange, ChunkData};
use crate::protocol::manifest::Name;
use crate::protocol::message::Changes;
use crate::storage::remote::{
    Answer, Class, Endpoint, Fault, Keeps, KeepsRoot, Kept, Key, KeyError, Listed, Parts,
    Properties, Replaces, Thing, ThingKind, all, nonce, pieces,
};
use crate::storage::{Left, Receipt, Remembers, Token};

/// A web server.
#[derive(Clone, Debug)]
pub struct WebEndpoint {
    site: Site,
    properties: Properties,
    feeds: Feeds,
}

/// A file that is coming.
#[derive(Clone, Debug)]
pub struct Upload {
    number: u64,
    feed: Feed,
}

impl WebEndpoint {
    /// Nothing is asked of the server yet.
    ///
    /// # Errors
    ///
    /// If who we are cannot be found out.
    pub fn new(config: WebConfig) -> Answer<Self> {
        let site = Site::new(config)?;
        let properties = Properties {
            name: "http",
            replaces: Replaces::Atomically,
            remembers: Remembers::Nothing,
            syncs: false,
            lasts: false,
            keeps: Keeps {
                times: None,
                time_range: (0, 0),
                modes: false,
                symlinks: false,
                directories: true,
                directory_times: false,
                roots: KeepsRoot::Never,
                any_bytes: true,
            },
            max_size: u64::MAX,
            parts: Parts { min_len: 0, max_count: u64::MAX, in_order: true },
            requests: site.requests(),
            lists_all: true,
            copies: false,
            encrypts: site.config().secure,
        };
        Ok(Self { site, properties, feeds: Feeds::default() })
    }

    /// The links of a directory's page, and whether they are all that is there.
    async fn links(&self, directory: &Key) -> Answer<(Vec<Link>, bool)> {
        let call = Call::new(Method::GET, self.site.directory_url(directory))
            .header("accept", "text/html, application/json;q=0.9, */*;q=0.1");
        let reply = self.site.send(call).await?;
        if matches!(reply.status(), StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED) {
            let text = "the server shows no index of this directory; name its files instead";
            return Err(Fault::new(Class::Unsupported, text));
        }
        if !reply.status().is_success() {
            return Err(self.site.refused(&reply));
        }
        let page = reply.url.path().to_owned();
        let kind = reply.header("content-type").unwrap_or_default().to_ascii_lowercase();
        if !kind.contains("html") && !kind.contains("json") {
            let text = "what the server has there is no index page; name the files instead";
            return Err(Fault::new(Class::Unsupported, text));
        }
        let body = read_body(reply.response, MAX_INDEX_LEN).await?;
        if let Some(links) = links_of_json(&body).filter(|_| kind.contains("json")) {
            return Ok((links, true));
        }
        let html = String::from_utf8_lossy(&body);
        Ok((links_of_html(&html, &page), is_index(&html)))
    }

    /// What a link leads to.
    async fn listed(&self, directory: &Key, link: &Link) -> Listed {
        let key = match Name::new(&link.name).map_err(KeyError::from) {
            Ok(name) => directory.child(&name),
            Err(reason) => Err(reason),
        };
        let key = match key {
            Ok(key) => key,
            Err(reason) => {
                let shown = [&self.site.shown(directory), &b"/"[..], &link.name].concat();
                return Listed::Unusable { shown, reason };
            }
        };
        if link.is_directory {
            return Listed::Thing(key, directory_thing());
        }
        match self.site.look(&key).await {
            Ok(Some(thing)) => Listed::Thing(key, thing),
            Ok(None) => {
                let text = "the index page has it, and the server has not";
                Listed::Unknown(key, Fault::new(Class::Missing, text))
            }
            Err(fault) => Listed::Unknown(key, fault),
        }
    }
}

impl Lists for WebEndpoint {
    async fn list_one(
        &self,
        directory: &Key,
        found: &flume::Sender<Vec<Listed>>,
        below: &mut Vec<Key>,
    ) -> Answer<bool> {
        let (links, is_all) = self.links(directory).await?;
        if !is_all && !self.site.config().is_destination {
            let itself = vec![Listed::Thing(directory.clone(), directory_thing())];
            if found.send_async(itself).await.is_err() {
                return Ok(false);
            }
        }
        for links in links.chunks(GROUP) {
            let looks = links.iter().map(|link| self.listed(directory, link)).collect();
            let group = all(looks, self.properties.requests).await;
            for listed in &group {
                match listed {
                    Listed::Thing(key, thing) if thing.kind == ThingKind::Directory => {
                        below.push(key.clone());
                    }
                    Listed::Unknown(_, fault) if fault.is_fatal() => return Err(fault.clone()),
                    Listed::Thing(..) | Listed::Unusable { .. } | Listed::Unknown(..) => {}
                }
            }
            if found.send_async(group).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Endpoint for WebEndpoint {
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
        let is_destination = self.site.config().is_destination;
        match self.site.look(key).await {
            Ok(None) if !is_destination => {
                // Some servers do not send from a directory's name on to the one with a slash.
                let call = Call::new(Method::HEAD, self.site.directory_url(key));
                let is_there = self.site.send(call).await?.status().is_success();
                Ok(is_there.then(directory_thing))
            }
            // Who may write and not look finds nothing there.
            Err(fault)
                if is_destination && matches!(fault.class, Class::Denied | Class::Unsupported) =>
            {
                Ok(None)
            }
            answer => answer,
        }
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

    async fn put(&self, key: &Key, data: Bytes, _: &Kept) -> Answer<()> {
        let call = Call::new(Method::PUT, self.site.url(key)).body(vec![data]);
        let reply = self.site.send(call).await?;
        if reply.status().is_success() {
            return Ok(());
        }
        Err(self.site.refused_file(&reply).await)
    }

    async fn begin(&self, key: &Key, size: u64, parts: u64, _: &Kept) -> Answer<Upload> {
        let feed = Feed::begin(&self.site, &self.site.url(key), size, parts, HeaderMap::new())?;
        let number = nonce();
        self.feeds.keep(number, &feed);
        Ok(Upload { number, feed })
    }

    fn token(&self, upload: &Upload) -> Token {
        Token::from(upload.number)
    }

    async fn resume(&self, _: &Key, _: u64, _: &Left) -> Answer<Option<(Upload, Vec<u64>)>> {
        Ok(None)
    }

    async fn write(
        &self,
        upload: &Upload,
        number: u64,
        range: ByteRange,
        data: ChunkData,
    ) -> Answer<Receipt> {
        upload.feed.write(number, pieces(range, &data)).await.map(|()| Receipt::default())
    }

    async fn finish(
        &self,
        upload: Upload,
        _: &Key,
        _: Vec<(u64, Receipt)>,
        _: &Kept,
    ) -> Answer<()> {
        self.feeds.finish(upload.number, &upload.feed).await
    }

    async fn abandon(&self, _: &Key, token: &Token) -> Answer<()> {
        if let Some(number) = token.number() {
            self.feeds.cancel(number).await;
        }
        Ok(())
    }

    async fn set(&self, _: &Key, _: &Thing, _: &Kept, _: Changes) -> Answer<()> {
        Ok(())
    }

    async fn remove(&self, things: Vec<(Key, ThingKind)>) -> Vec<Answer<()>> {
        let removals = things.iter().map(async |(key, kind)| match kind {
            ThingKind::Directory => {
                let text = "directories are removed by webdav:// only";
                Err(Fault::new(Class::Unsupported, text))
            }
            ThingKind::File | ThingKind::Symlink | ThingKind::Other => {
                self.site.deleted(self.site.url(key)).await
            }
        });
        all(removals.collect(), self.properties.requests).await
    }

    async fn copy(&self, _: &Self, _: &Key, _: &Thing, _: &Key, _: &Kept) -> Answer<()> {
        Err(Fault::new(Class::Unsupported, "web servers copy nothing"))
    }
}

/// The longest index page, in bytes.
const MAX_INDEX_LEN: usize = 16 << 20;

/// How many links of a page are looked at before they are told.
const GROUP: usize = 256;
