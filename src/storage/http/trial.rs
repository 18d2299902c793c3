//! What a WebDAV server can do, which is tried out.

use std::time::Duration;

use bytes::Bytes;
use http::Method;

use super::chunks::{self, LEAST_LEN, MAX_COUNT, MAX_SIZE};
use super::client::Call;
use super::dav::{DavEndpoint, own_time};
use super::multistatus::Sent;
use super::site::Site;
use super::upload::{Way, partial_update, temporary};
use crate::protocol::manifest::Timestamp;
use crate::storage::Remembers;
use crate::storage::remote::{
    Answer, Endpoint as _, Keeps, KeepsRoot, Key, Parts, Properties, Replaces, ThingKind, nonce,
};

/// What a server turned out to be able to do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Can {
    pub way: Way,
    pub times: Times,
}

impl Can {
    /// What can be told of a server without writing anything there.
    pub fn supposed(destination: &Key) -> Answer<Self> {
        let is_cloud = chunks::home(&destination.join(b"-")?).is_some();
        let times = if is_cloud { Times::ByHeader } else { Times::Never };
        Ok(Self { times, way: Way::Whole })
    }
}

/// How a server keeps the time of a file's last change.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Times {
    #[default]
    Never,
    /// By a header with the file, in seconds: ownCloud and its relatives.
    ByHeader,
    /// As a property that means nothing to it, beside the tag of the file that it is of.
    AsProperty,
}

/// What the engine is told of it.
pub fn properties(site: &Site, can: Can) -> Properties {
    let step = match can.times {
        Times::Never => None,
        Times::ByHeader => Some(Duration::from_secs(1)),
        Times::AsProperty => Some(Duration::from_nanos(1)),
    };
    let first = if can.times == Times::ByHeader { 1 } else { i64::MIN };
    let remembers = match can.way {
        Way::Whole => Remembers::Nothing,
        Way::ContentRange | Way::PartialUpdate => Remembers::Reread,
        Way::Chunks => Remembers::Always,
    };
    let (min_len, max_count) = match can.way {
        Way::Whole | Way::ContentRange | Way::PartialUpdate => (1, u64::MAX),
        Way::Chunks => (u32::try_from(LEAST_LEN).unwrap_or(u32::MAX), MAX_COUNT),
    };
    Properties {
        name: "webdav",
        replaces: Replaces::ByRemoving,
        remembers,
        syncs: false,
        lasts: false,
        keeps: Keeps {
            times: step,
            time_range: (first, i64::MAX),
            modes: false,
            symlinks: false,
            directories: true,
            directory_times: true,
            roots: KeepsRoot::Never,
            any_bytes: false,
        },
        max_size: if can.way == Way::Chunks { MAX_SIZE } else { u64::MAX },
        parts: Parts { min_len, max_count, in_order: can.way == Way::Whole },
        requests: site.requests(),
        lists_all: true,
        copies: true,
        encrypts: site.config().secure,
    }
}

impl DavEndpoint {
    /// Writes small files to where something is to be written, or above if that is not there yet. Tells
    /// what people may want to know of it, too.
    pub async fn try_out(&self, destination: &Key) -> Answer<(Can, Option<String>)> {
        let mut at = destination.clone();
        while let Some(parent) = at.parent() {
            match self.stat(&at).await? {
                Some(thing) if thing.kind == ThingKind::Directory => break,
                _ => at = parent,
            }
        }
        let below = at.join(b"-")?;
        let (first, second) = (temporary(&below, nonce())?, temporary(&below, nonce())?);
        let tried = self.try_with(&first, &second).await;
        for key in [&first, &second] {
            // What is left of it has a name of ours, and is no more than a few bytes.
            let _ = self.site.deleted(self.site.url(key)).await;
        }
        tried
    }

    async fn try_with(&self, first: &Key, second: &Key) -> Answer<(Can, Option<String>)> {
        let mut can = Can::default();
        let mtime = Timestamp::new(1_000_000_000, 123_000_000).unwrap_or_default();
        let call = put(self.site.url(first), "0123");
        self.site.written(call.header("x-oc-mtime", &mtime.seconds.to_string())).await?;
        let found = self.find(first).await?;
        if found.and_then(|it| it.modified).is_some_and(|it| it.seconds == mtime.seconds) {
            can.times = Times::ByHeader;
        }
        let note;
        (can.way, note) = self.try_ways(first, second).await?;
        if can.times == Times::Never && self.set_property(first, mtime).await.is_ok() {
            let found = self.find(first).await?.unwrap_or_default();
            let sent = Sent { size: found.size.unwrap_or_default(), since: found.modified };
            self.move_to(first, second, sent).await?;
            let kept = self.find(second).await?.and_then(|member| own_time(&member));
            if kept == Some(mtime) {
                can.times = Times::AsProperty;
            }
        }
        Ok((can, note))
    }

    /// Finds out how the server takes a large file; `first` is there, with four bytes.
    async fn try_ways(&self, first: &Key, second: &Key) -> Answer<(Way, Option<String>)> {
        let mut note = None;
        if let Some(folders) = chunks::home(second) {
            let why = match self.try_chunks(second).await {
                Ok(true) => return Ok((Way::Chunks, None)),
                Err(fault) if fault.is_fatal() => return Err(fault),
                Ok(false) => "it does not keep them".to_owned(),
                Err(fault) => fault.text,
            };
            let folders = String::from_utf8_lossy(&self.shown(&folders)).into_owned();
            note = Some(format!(
                "{folders}: the server takes no chunks there ({why}); large files go another way"
            ));
        }
        let url = self.site.url(first);
        if self.offers_partial_update(&url).await? && self.try_partial_update(&url).await? {
            return Ok((Way::PartialUpdate, note));
        }
        // A server that does not know this header takes it for the whole, or refuses it.
        self.site.written(put(url.clone(), "0123")).await?;
        let part = put(url.clone(), "ab").header("content-range", "bytes 1-2/4");
        let is_taken = self.site.send(part).await?.status().is_success();
        let way =
            if is_taken && self.has(&url, b"0ab3").await? { Way::ContentRange } else { Way::Whole };
        Ok((way, note))
    }

    async fn offers_partial_update(&self, url: &str) -> Answer<bool> {
        let reply = self.site.send(Call::new(Method::OPTIONS, url.to_owned())).await?;
        let features = reply.response.headers().get_all("dav").iter();
        let mut features = features.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(','));
        Ok(reply.status().is_success() && features.any(|it| it.trim() == "sabredav-partialupdate"))
    }

    /// Within a file, and behind its end, as parts come in any order.
    async fn try_partial_update(&self, url: &str) -> Answer<bool> {
        for (first, last, data) in [(6, 7, "cd"), (1, 2, "ab")] {
            let call = partial_update(url.to_owned(), first, last);
            let call = call.body(vec![Bytes::from_static(data.as_bytes())]);
            if !self.site.send(call).await?.status().is_success() {
                return Ok(false);
            }
        }
        self.has(url, b"0ab3\0\0cd").await
    }

    async fn has(&self, url: &str, data: &[u8]) -> Answer<bool> {
        Ok(self.site.body(Call::new(Method::GET, url.to_owned())).await? == data)
    }
}

fn put(url: String, data: &'static str) -> Call {
    Call::new(Method::PUT, url).body(vec![Bytes::from_static(data.as_bytes())])
}
