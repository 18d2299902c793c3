//! A file that goes to a server in one request, from its beginning to its end.
//!
//! Its parts have to come in order; one that comes too early waits. The last byte goes when all of the
//! file is known to be right, so that no server has a whole file before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, header};
use reqwest::Url;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::task::JoinSet;

use super::client::{ANSWER_TIME, lost};
use super::lock;
use super::site::{Reply, Site, redirected_write};
use crate::storage::remote::{Answer, Class, Fault};

/// Requests under way, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Feeds(Arc<Mutex<HashMap<u64, Feed>>>);

impl Feeds {
    /// Keeps a request until it is over.
    pub fn keep(&self, number: u64, feed: &Feed) {
        lock(&self.0).insert(number, feed.clone());
    }

    /// Ends a request well.
    pub async fn finish(&self, number: u64, feed: &Feed) -> Answer<()> {
        lock(&self.0).remove(&number);
        feed.finish().await
    }

    /// Cuts off a request, if it is still under way.
    pub async fn cancel(&self, number: u64) {
        let feed = lock(&self.0).remove(&number);
        if let Some(feed) = feed {
            feed.cancel().await;
        }
    }
}

/// A request whose body is still coming. A clone is another handle on it; without any, it is cut off.
#[derive(Clone, Debug)]
pub struct Feed {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    parts: u64,
    wire: AsyncMutex<Wire>,
    state: Mutex<State>,
    moved: Notify,
}

#[derive(Debug)]
struct Wire {
    to: Option<flume::Sender<Bytes>>,
    last: Bytes,
    request: JoinSet<Answer<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// Which part is due.
    next: u64,
    failed: Option<Fault>,
}

impl Feed {
    /// Begins a request with a body of this size, in so many parts.
    pub fn begin(
        site: &Site,
        url: &str,
        size: u64,
        parts: u64,
        mut headers: HeaderMap,
    ) -> Answer<Self> {
        let url = Url::parse(url).map_err(|error| Fault::new(Class::Name, error.to_string()))?;
        let (to, from) = flume::bounded::<Bytes>(1);
        site.introduce(&url, &mut headers);
        headers.insert(header::CONTENT_LENGTH, size.into());
        let body = from.into_stream().map(Ok::<_, std::io::Error>);
        let request = site.uploads().request(Method::PUT, url.clone()).headers(headers);
        let request = request.body(reqwest::Body::wrap_stream(body));
        let site = site.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let response = request.send().await.map_err(|error| lost(&error))?;
            let reply = Reply { response, url, is_directory: false };
            match reply.status().as_u16() {
                200..=299 => Ok(()),
                300..=399 => Err(redirected_write()),
                code => Err(match site.refused_file(&reply).await {
                    // What has gone cannot be sent again from here: the session begins anew, later. That there
                    // is no directory need not be why a server fails.
                    Fault { class: Class::Busy, text } => Fault::new(Class::Disconnected, text),
                    Fault { class: Class::NoDirectory, text } if code >= 500 => {
                        Fault::new(Class::Disconnected, text)
                    }
                    fault => fault,
                }),
            }
        });
        let wire = Wire { to: Some(to), last: Bytes::new(), request: task };
        let (state, moved) = (Mutex::default(), Notify::new());
        Ok(Self { inner: Arc::new(Inner { parts, wire: AsyncMutex::new(wire), state, moved }) })
    }

    /// Takes a part when it is due. One that was taken before is not taken again.
    pub async fn write(&self, number: u64, pieces: Vec<Bytes>) -> Answer<()> {
        loop {
            let moved = self.inner.moved.notified();
            let mut moved = std::pin::pin!(moved);
            moved.as_mut().enable();
            {
                let state = self.state();
                match &state.failed {
                    Some(fault) => return Err(fault.clone()),
                    None if number <= state.next => break,
                    None => {}
                }
            }
            moved.await;
        }
        let mut wire = self.inner.wire.lock().await;
        if number < self.state().next {
            return Ok(());
        }
        let sent = wire.send(pieces, number + 1 == self.inner.parts).await;
        match &sent {
            Ok(()) => self.state().next = number + 1,
            Err(fault) => self.state().failed = Some(fault.clone()),
        }
        self.inner.moved.notify_waiters();
        sent
    }

    /// Sends what is left, and waits for the server's word.
    pub async fn finish(&self) -> Answer<()> {
        let mut wire = self.inner.wire.lock().await;
        let last = std::mem::take(&mut wire.last);
        let sent = if last.is_empty() { Ok(()) } else { wire.send(vec![last], false).await };
        wire.to = None;
        sent?;
        wire.answer(ANSWER_TIME).await
    }

    /// Cuts it off.
    pub async fn cancel(&self) {
        let fault = Fault::new(Class::Other, "it was given up");
        self.state().failed.get_or_insert(fault);
        self.inner.moved.notify_waiters();
        let mut wire = self.inner.wire.lock().await;
        wire.to = None;
        wire.request.shutdown().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }
}

impl Wire {
    /// Hands pieces to the request; of the last ones, all but one byte.
    async fn send(&mut self, mut pieces: Vec<Bytes>, is_last: bool) -> Answer<()> {
        if is_last && let Some(piece) = pieces.last_mut().filter(|it| !it.is_empty()) {
            // A copy, as the buffer that it is in is wanted elsewhere.
            self.last = Bytes::copy_from_slice(&piece.split_off(piece.len() - 1));
        }
        for piece in pieces.into_iter().filter(|it| !it.is_empty()) {
            let Some(to) = &self.to else { return self.answer(Duration::ZERO).await };
            match tokio::time::timeout(ANSWER_TIME, to.send_async(piece)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    self.answer(ANSWER_TIME).await?;
                    let text = "the server has answered before it had all";
                    return Err(Fault::new(Class::Violation, text));
                }
                Err(_) => return Err(Fault::new(Class::Disconnected, "the server fell silent")),
            }
        }
        Ok(())
    }

    async fn answer(&mut self, patience: Duration) -> Answer<()> {
        let gone = || Fault::new(Class::Disconnected, "the upload was cut off");
        match tokio::time::timeout(patience, self.request.join_next()).await {
            Ok(Some(Ok(answer))) => answer,
            Ok(Some(Err(_)) | None) => Err(gone()),
            Err(_) => Err(Fault::new(Class::Disconnected, "the server fell silent")),
        }
    }
}
