//! What a WebDAV server can do, which is tried out.

use std::time::Duration;

use bytes::Bytes;
use http::Method;

use super::client::Call;
use super::dav::{DavEndpoint, own_time, temporary};
use super::multistatus::Sent;
use super::site::Site;
use super::web::random;
use crate::protocol::manifest::Timestamp;
use crate::storage::Remembers;
use crate::storage::remote::{
    Answer, Endpoint as _, Keeps, KeepsRoot, Key, Parts, Properties, Replaces, ThingKind,
};

/// What a server turned out to be able to do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Can {
    /// It takes parts of a file: `Content-Range` with PUT (RFC 9110, 14.5), as Apache does.
    pub write_parts: bool,
    pub times: Times,
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
    Properties {
        name: "webdav",
        replaces: Replaces::ByRemoving,
        remembers: if can.write_parts { Remembers::Reread } else { Remembers::Nothing },
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
        max_size: u64::MAX,
        parts: Parts { min_len: 1, max_count: u64::MAX, in_order: !can.write_parts },
        requests: site.requests(),
        lists_all: true,
        copies: true,
        encrypts: site.config().secure,
    }
}

impl DavEndpoint {
    /// Writes two small files to where something is to be written, or above if that is not there yet.
    pub async fn try_out(&self, destination: &Key) -> Answer<Can> {
        let mut at = destination.clone();
        while let Some(parent) = at.parent() {
            match self.stat(&at).await? {
                Some(thing) if thing.kind == ThingKind::Directory => break,
                _ => at = parent,
            }
        }
        let below = at.join(b"-")?;
        let (first, second) = (temporary(&below, random())?, temporary(&below, random())?);
        let tried = self.try_with(&first, &second).await;
        for key in [&first, &second] {
            // What is left of it has a name of ours, and is no more than a few bytes.
            let _ = self.site.deleted(self.site.url(key)).await;
        }
        tried
    }

    async fn try_with(&self, first: &Key, second: &Key) -> Answer<Can> {
        let mut can = Can::default();
        let mtime = Timestamp::new(1_000_000_000, 123_000_000).unwrap_or_default();
        let url = self.site.url(first);
        let put = |data: &'static str| {
            Call::new(Method::PUT, url.clone()).body(vec![Bytes::from_static(data.as_bytes())])
        };
        let call = put("0123").header("x-oc-mtime", &mtime.seconds.to_string());
        self.site.written(call).await?;
        let found = self.find(first).await?;
        if found.and_then(|it| it.modified).is_some_and(|it| it.seconds == mtime.seconds) {
            can.times = Times::ByHeader;
        }
        // A server that does not know this header takes it for the whole, or refuses it.
        let part = self.site.send(put("ab").header("content-range", "bytes 1-2/4")).await?;
        if part.status().is_success() {
            let now = self.site.body(Call::new(Method::GET, url.clone())).await?;
            can.write_parts = now == b"0ab3";
        }
        if can.times == Times::Never && self.set_property(first, mtime).await.is_ok() {
            let found = self.find(first).await?.unwrap_or_default();
            let sent = Sent { size: found.size.unwrap_or_default(), since: found.modified };
            self.move_to(first, second, sent).await?;
            let kept = self.find(second).await?.and_then(|member| own_time(&member));
            if kept == Some(mtime) {
                can.times = Times::AsProperty;
            }
        }
        Ok(can)
    }
}
