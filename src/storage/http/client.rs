//! Requests that are sent again when that is worth it.
//!
//! A request is a value, so that it can be made anew for each attempt: signed anew too, as a signature
//! holds for minutes only. What a server answers to the last attempt is the answer.

use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::lanes::Lanes;
use super::share::Readers;
use crate::storage::remote::{Class, Fault};

/// A request that can be made as often as need be.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    /// Encoded, and without a secret.
    pub url: String,
    pub headers: HeaderMap,
    pub body: Vec<Bytes>,
    /// How much the server has to move before it answers, in bytes, beside the body.
    pub effort: u64,
    /// It is not sent again.
    pub once: bool,
}

impl Call {
    pub fn new(method: Method, url: String) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Vec::new(), effort: 0, once: false }
    }

    /// The same for what keeps a server busy.
    #[must_use]
    pub fn effort(self, bytes: u64) -> Self {
        Self { effort: bytes, ..self }
    }

    /// The same with a header. What no header can have is left out.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            self.headers.insert(name, value);
        }
        self
    }

    /// The same with a header that nobody is to be shown.
    #[must_use]
    pub fn secret(self, name: &str, value: &str) -> Self {
        let mut call = self.header(name, value);
        if let Some(value) = call.headers.get_mut(name) {
            value.set_sensitive(true);
        }
        call
    }

    #[must_use]
    pub fn body(self, body: Vec<Bytes>) -> Self {
        Self { body, ..self }
    }

    fn body_len(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }
}

/// Puts into a request's headers who we are.
pub type Sign = Arc<
    dyn for<'a> Fn(&'a mut Parts) -> Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>>
        + Send
        + Sync,
>;

/// Sends requests to one server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// For requests with bodies: no answer comes before all of one has gone.
    uploads: reqwest::Client,
    sign: Option<Sign>,
    /// One for each request that has no answer yet.
    lanes: Lanes,
    budget: Arc<Budget>,
    readers: Readers,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// How much may be sent again: a part of what was sent, so that a server in trouble is not made to
/// answer everything many times.
#[derive(Debug, Default)]
struct Budget {
    /// How many may be sent again whatever was sent: all that are sent at once may be refused at once,
    /// and once more before they are fewer.
    free: u64,
    sent: AtomicU64,
    again: AtomicU64,
}

impl Budget {
    fn allows_another(&self) -> bool {
        let allowed = self.free + self.sent.load(Ordering::Relaxed) / 10;
        self.again.fetch_add(1, Ordering::Relaxed) < allowed
    }
}

impl Client {
    /// A client that sends so many requests at a time.
    ///
    /// # Errors
    ///
    /// If the system's certificates or proxy settings cannot be used.
    pub fn new(requests: usize) -> Result<Self, Fault> {
        let build = |builder: reqwest::ClientBuilder| {
            let built = builder.build();
            built.map_err(|error| Fault::new(Class::Other, format!("HTTP cannot be used: {error}")))
        };
        let http = build(builder().read_timeout(SILENCE))?;
        let uploads = build(builder().tcp_user_timeout(SILENCE))?;
        let (lanes, readers) = (Lanes::new(requests), Readers::new(requests));
        let free = FREE_RETRIES.max(4 * requests as u64);
        let budget = Arc::new(Budget { free, ..Budget::default() });
        Ok(Self { http, uploads, sign: None, lanes, budget, readers })
    }

    /// The same, with every request signed.
    #[must_use]
    pub fn signing(self, sign: Sign) -> Self {
        Self { sign: Some(sign), ..self }
    }

    /// What sends requests that are not signed.
    pub fn plain(&self) -> reqwest::Client {
        self.http.clone()
    }

    /// What sends requests with long bodies, once.
    pub fn uploads(&self) -> &reqwest::Client {
        &self.uploads
    }

    /// Those who read long parts of files with it.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Sends a request, again and again while the server has too much to do or is not there. The answer
    /// is what it said last, whatever that is.
    ///
    /// # Errors
    ///
    /// [`Class::Disconnected`] if no answer came; that of signing.
    pub async fn send(&self, call: &Call) -> Result<reqwest::Response, Fault> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            self.budget.sent.fetch_add(1, Ordering::Relaxed);
            let answer = {
                let _lane = self.lanes.enter().await;
                let answer = self.attempt(call).await?;
                if answer.as_ref().is_ok_and(|response| is_too_many(response.status())) {
                    self.lanes.refused();
                    self.readers.refused();
                }
                answer
            };
            let is_passing = match &answer {
                Ok(response) => is_passing(response.status()),
                Err(error) => !error.is_builder() && !is_mistrust(error),
            };
            // The budget is for what would be sent again, and for nothing else.
            let is_over = !is_passing || call.once || attempt >= ATTEMPTS;
            if is_over || !self.budget.allows_another() {
                return answer.map_err(|error| lost(&error));
            }
            let asked = answer.ok().and_then(|response| {
                let asked = response.headers().get(http::header::RETRY_AFTER)?;
                asked.to_str().ok()?.parse().ok().map(Duration::from_secs)
            });
            let asked = asked.unwrap_or_default().min(LONGEST_PAUSE);
            tokio::time::sleep(jitter(pause).max(asked)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(Fault::new(Class::Busy, "the server does not answer"))
    }

    async fn attempt(
        &self,
        call: &Call,
    ) -> Result<Result<reqwest::Response, reqwest::Error>, Fault> {
        let wrong = |error: &dyn std::fmt::Display| {
            Fault::new(Class::Other, format!("the request cannot be made: {error}"))
        };
        let request = http::Request::builder().method(&call.method).uri(&call.url).body(());
        let (mut parts, ()) = request.map_err(|error| wrong(&error))?.into_parts();
        parts.headers.clone_from(&call.headers);
        let has_body = matches!(call.method, Method::PUT | Method::POST | Method::PATCH)
            || !call.body.is_empty();
        if has_body {
            parts.headers.insert(http::header::CONTENT_LENGTH, call.body_len().into());
        }
        if let Some(sign) = &self.sign {
            sign(&mut parts).await?;
        }
        let body = match &call.body[..] {
            [] => reqwest::Body::from(Bytes::new()),
            [whole] => reqwest::Body::from(whole.clone()),
            pieces => {
                let pieces: Vec<Result<Bytes, std::io::Error>> =
                    pieces.iter().cloned().map(Ok).collect();
                reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
            }
        };
        let request = http::Request::from_parts(parts, body);
        let mut request = reqwest::Request::try_from(request).map_err(|error| wrong(&error))?;
        // The URL may have become a secret with the signature.
        if !has_body && call.effort == 0 {
            return Ok(self.http.execute(request).await.map_err(reqwest::Error::without_url));
        }
        let seconds = call.body_len() as u64 / SLOWEST + call.effort / SLOWEST_MOVE;
        *request.timeout_mut() = Some(ANSWER_TIME + Duration::from_secs(seconds));
        Ok(self.uploads.execute(request).await.map_err(reqwest::Error::without_url))
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .http1_only()
        .pool_max_idle_per_host(256)
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(10))
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("fastsync/", env!("CARGO_PKG_VERSION")))
}

/// Reads a body that may not be longer than so many bytes.
///
/// # Errors
///
/// If it is, or breaks off.
pub async fn read_body(mut response: reqwest::Response, max: usize) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| lost(&error.without_url()))? {
        if body.len() + piece.len() > max {
            return Err(Fault::new(Class::Violation, "the server's answer is far too long"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Fills `into` with a body, and returns how much came before it broke off. One that is longer is
/// [`Class::Violation`].
///
/// # Errors
///
/// As said.
pub async fn fill(mut response: reqwest::Response, into: &mut [u8]) -> Result<usize, Fault> {
    let mut filled = 0;
    while let Ok(Some(piece)) = response.chunk().await {
        let Some(place) = into.get_mut(filled..filled + piece.len()) else {
            return Err(Fault::new(Class::Violation, TOO_LONG));
        };
        place.copy_from_slice(&piece);
        filled += piece.len();
    }
    Ok(filled)
}

/// What is wrong with a body that is longer than what was asked for.
pub const TOO_LONG: &str = "the server sends more than it was asked for";

/// Whether the server has more requests than it wants.
fn is_too_many(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 503)
}

/// Whether another attempt may well succeed.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// What a request that got no answer is told as: by its innermost cause, which has no URL.
pub fn lost(error: &reqwest::Error) -> Fault {
    let text = innermost(error);
    if let Some(why) = text.strip_prefix(MISTRUST) {
        let text = format!(
            "the server's certificate is not to be trusted ({}); check this host's clock, or add \
             whoever signed it to the system's certificates (SSL_CERT_FILE names others)",
            why.trim_start_matches([':', ' '])
        );
        return Fault::new(Class::Credentials, text);
    }
    let what = if error.is_timeout() { "the server fell silent" } else { "the connection failed" };
    Fault::new(Class::Disconnected, format!("{what}: {text}"))
}

fn innermost(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

/// Whether it is the server's certificate, which is the same the next time.
fn is_mistrust(error: &reqwest::Error) -> bool {
    innermost(error).starts_with(MISTRUST)
}

/// How an error of rustls begins that is about a certificate.
const MISTRUST: &str = "invalid peer certificate";

/// Between nothing and all of a pause, so that not everybody comes back at once.
fn jitter(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(std::time::Instant::now());
    let share = u32::try_from(random % 1000).unwrap_or(500);
    pause * share / 1000
}

/// How long a connection waits for another request: less than servers wait, so that few close one at
/// which a request is on its way.
const IDLE: Duration = Duration::from_secs(4);

/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_mins(1);

/// How long a server may take for the answer to a body that it has.
pub const ANSWER_TIME: Duration = Duration::from_mins(5);

/// How many bytes of a body go in a second at the least, once that time is over.
const SLOWEST: u64 = 64 << 10;

/// How many bytes a server moves by itself in a second at the least, likewise.
const SLOWEST_MOVE: u64 = 8 << 20;

/// How much an answer has to bring, so that it was worth it to begin again where another broke off, in
/// bytes.
pub const PROGRESS: usize = 64 << 10;

/// How often a request is sent at the most.
const ATTEMPTS: u32 = 8;

/// How many requests may be sent again at the least, whatever was sent.
const FREE_RETRIES: u64 = 100;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
