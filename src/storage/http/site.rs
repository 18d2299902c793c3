//! One web server, as the user named it: its URLs, who we are there, and where it sends us on to.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::Url;

use super::auth::{self, Login};
use super::client::{Call, Client, read_body};
use super::looks::Looks;
use super::share::Readers;
use crate::protocol::chunk::Digest;
use crate::protocol::manifest::Escaped;
use crate::storage::remote::{Answer, Class, Fault, Key, Listed};

/// Which server, and as whom.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WebConfig {
    /// `https` and not `http`.
    pub secure: bool,
    /// A name or an address; that of IPv6 in brackets.
    pub host: String,
    pub port: Option<u16>,
    /// What locations begin with, as a user writes them.
    pub prefix: String,
    /// What every URL ends with, behind a question mark; it may be what admits us.
    pub query: Option<String>,
    pub login: Login,
    /// How many requests at a time; 32 if `None`.
    pub requests: Option<usize>,
    /// It is going to be written to.
    pub is_destination: bool,
    /// Nothing is to be written, not even to find out how.
    pub is_dry_run: bool,
    /// What the only file has to amount to.
    pub expected: Expected,
    /// How long the chunks of an upload are at the least, where there are such; as long as Nextcloud
    /// wants them if `None`.
    pub least_chunk: Option<u64>,
}

/// What a file has to amount to, as the user says.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Expected {
    pub blake3: Option<Digest>,
    pub sha256: Option<[u8; 32]>,
}

/// Sends requests to a server.
#[derive(Clone, Debug)]
pub struct Site {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    config: WebConfig,
    /// The scheme, host and port.
    base: Url,
    /// What tells who we are. For `base` only.
    headers: HeaderMap,
    /// What is known of files that were looked at last.
    looks: Looks,
}

/// An answer, and where it came from in the end.
#[derive(Debug)]
pub struct Reply {
    pub response: reqwest::Response,
    pub url: Url,
    /// The way led from a URL to the same with a slash behind: it is a directory's.
    pub is_directory: bool,
}

impl Reply {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

impl Site {
    /// Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// If it is no URL, or who we are cannot be found out.
    pub fn new(config: WebConfig) -> Answer<Self> {
        let scheme = if config.secure { "https" } else { "http" };
        let port = config.port.map(|port| format!(":{port}")).unwrap_or_default();
        let base = Url::parse(&format!("{scheme}://{}{port}/", config.host));
        let base =
            base.map_err(|error| Fault::new(Class::Name, format!("no such URL: {error}")))?;
        let host = config.host.trim_start_matches('[').trim_end_matches(']');
        let headers = auth::headers(&config.login, host)?;
        let client = Client::new(config.requests.unwrap_or(REQUESTS).max(1))?;
        let looks = Looks::default();
        Ok(Self { inner: Arc::new(Inner { client, config, base, headers, looks }) })
    }

    pub fn config(&self) -> &WebConfig {
        &self.inner.config
    }

    pub fn looks(&self) -> &Looks {
        &self.inner.looks
    }

    /// Those who read long parts of files here.
    pub fn readers(&self) -> &Readers {
        self.inner.client.readers()
    }

    pub fn requests(&self) -> usize {
        self.inner.config.requests.unwrap_or(REQUESTS).max(1)
    }

    /// Whether it is the same server, for the same user.
    pub fn is_same(&self, other: &Self) -> bool {
        let (one, other) = (&self.inner, &other.inner);
        let is_same_login = one.headers == other.headers && one.config.query == other.config.query;
        one.base == other.base && is_same_login
    }

    /// A key for people.
    pub fn shown(&self, key: &Key) -> Vec<u8> {
        [self.inner.config.prefix.as_bytes(), b"/", key.as_bytes()].concat()
    }

    /// A file's URL.
    pub fn url(&self, key: &Key) -> String {
        self.with_query(self.path(key))
    }

    /// A directory's URL, which ends with a slash.
    pub fn directory_url(&self, key: &Key) -> String {
        let path = self.path(key);
        self.with_query(if path.ends_with('/') { path } else { path + "/" })
    }

    fn path(&self, key: &Key) -> String {
        format!("{}{}", self.inner.base, percent_encode(key.as_bytes(), IN_PATH))
    }

    fn with_query(&self, url: String) -> String {
        match &self.inner.config.query {
            Some(query) => format!("{url}?{query}"),
            None => url,
        }
    }

    /// Sends a request, to wherever the server says that it is to go. Another server is not told who we
    /// are.
    ///
    /// # Errors
    ///
    /// If no answer came, or it leads nowhere.
    pub async fn send(&self, call: Call) -> Answer<Reply> {
        let wrong = |what: &str| Fault::new(Class::Violation, format!("the server {what}"));
        let mut url = Url::parse(&call.url).map_err(|_| wrong("names no valid URL"))?;
        let mut is_directory = false;
        for _ in 0..=MAX_REDIRECTS {
            let mut now = Call { url: url.to_string(), ..call.clone() };
            self.introduce(&url, &mut now.headers);
            let response = self.inner.client.send(&now).await?;
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let location = response.headers().get(header::LOCATION);
            let Some(location) = location.filter(|_| is_redirect) else {
                return Ok(Reply { response, url, is_directory });
            };
            let location = location.to_str().map_err(|_| wrong("redirects to no valid URL"))?;
            let next = url.join(location).map_err(|_| wrong("redirects to no valid URL"))?;
            if !matches!(next.scheme(), "http" | "https") {
                return Err(wrong("redirects to what is no http:// or https:// URL"));
            }
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(wrong("redirects to where nothing is encrypted"));
            }
            if !call.method.is_safe() && call.method.as_str() != "PROPFIND" {
                return Err(redirected_write());
            }
            is_directory |= next.path().strip_suffix('/') == Some(url.path());
            url = next;
        }
        Err(wrong("redirects again and again"))
    }

    /// Adds what tells who we are, if it is the server that we know.
    pub fn introduce(&self, url: &Url, headers: &mut HeaderMap) {
        // What is compressed on the way has neither the file's length nor its ranges.
        headers.insert(header::ACCEPT_ENCODING, header::HeaderValue::from_static("identity"));
        if url.origin() == self.inner.base.origin() {
            headers.extend(self.inner.headers.clone());
        }
    }

    /// What sends a request once, with a body that comes bit by bit.
    pub fn uploads(&self) -> &reqwest::Client {
        self.inner.client.uploads()
    }

    /// The same, for a request that is to succeed.
    pub async fn done(&self, call: Call) -> Answer<Reply> {
        let reply = self.send(call).await?;
        if reply.status().is_success() {
            return Ok(reply);
        }
        Err(self.refused(&reply))
    }

    /// A short answer to a request that is to succeed.
    pub async fn body(&self, call: Call) -> Answer<Vec<u8>> {
        read_body(self.done(call).await?.response, MAX_PAGE_LEN).await
    }

    /// The answer to a request that writes, and is to succeed.
    pub async fn written(&self, call: Call) -> Answer<Reply> {
        let reply = self.send(call).await?;
        if reply.status().is_success() { Ok(reply) } else { Err(self.refused_write(&reply)) }
    }

    /// Why a file was not written. Where there is no directory for it, not every server says so: nginx
    /// fails.
    pub async fn refused_file(&self, reply: &Reply) -> Fault {
        let fault = self.refused_write(reply);
        if !matches!(reply.status().as_u16(), 404 | 409 | 410 | 500) {
            return fault;
        }
        let mut directory = reply.url.clone();
        if let Ok(mut path) = directory.path_segments_mut() {
            path.pop().push("");
        }
        let call = Call { once: true, ..Call::new(Method::HEAD, directory.into()) };
        match self.send(call).await {
            Ok(found) if matches!(found.status().as_u16(), 404 | 410) => {
                let text = format!(
                    "the directory that it goes to is not there, and the server makes none ({}); make it \
                     first, or write webdav:// in place of http:// if the server speaks WebDAV",
                    reply.status().as_u16()
                );
                Fault::new(Class::NoDirectory, text)
            }
            _ => fault,
        }
    }

    /// Why nothing was written.
    pub fn refused_write(&self, reply: &Reply) -> Fault {
        match reply.status().as_u16() {
            // Nothing has vanished: it was never there.
            404 | 410 => Fault::new(Class::Other, "the directory that it goes to is not there"),
            405 | 501 => {
                Fault::new(Class::Unsupported, "the server does not let files be written there")
            }
            _ => self.refused(reply),
        }
    }

    /// Removes what has a URL. What is not there is no error.
    pub async fn deleted(&self, url: String) -> Answer<()> {
        let reply = self.send(Call::new(Method::DELETE, url)).await?;
        match reply.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(()),
            status if status.is_success() => Ok(()),
            _ => Err(self.refused(&reply)),
        }
    }

    /// Why a request failed, by its answer, and what to do about it.
    pub fn refused(&self, reply: &Reply) -> Fault {
        let is_known = reply.url.origin() == self.inner.base.origin();
        let has_login = is_known && self.inner.headers.contains_key(header::AUTHORIZATION);
        let wants = reply.header("www-authenticate").unwrap_or_default();
        let is_basic = wants.is_empty()
            || wants.to_ascii_lowercase().contains("basic")
            || wants.to_ascii_lowercase().contains("bearer");
        let (class, text) = match reply.status().as_u16() {
            401 if !is_basic => {
                let wants = Escaped(wants.split(' ').next().unwrap_or_default().as_bytes());
                (
                    Class::Credentials,
                    format!("the server wants a login by {wants}, which is not supported"),
                )
            }
            401 if has_login => {
                (Class::Credentials, "the server does not accept the password or token".to_owned())
            }
            401 => (
                Class::Credentials,
                format!(
                    "the server wants to know who asks; write USER@ before the host and set {}, or \
                     use ~/.netrc, {} or --header-file",
                    auth::PASSWORD,
                    auth::TOKEN
                ),
            ),
            407 => (
                Class::Credentials,
                "the proxy wants a login; write it to its URL in the environment".to_owned(),
            ),
            403 => (Class::Denied, "the server forbids it (403)".to_owned()),
            404 | 410 => (Class::Missing, "there is nothing of this name".to_owned()),
            405 | 501 => (
                Class::Unsupported,
                format!("the server cannot do this there ({})", reply.status()),
            ),
            409 => (Class::Other, "the directory that it goes to is not there (409)".to_owned()),
            412 => (Class::Changed, "it is another version by now".to_owned()),
            413 => (
                Class::Unsupported,
                "the server takes no files of this size (413); its limit can be raised there"
                    .to_owned(),
            ),
            423 => (Class::Denied, "somebody has locked it (423)".to_owned()),
            507 => (
                Class::Full,
                "the server has no room, or the quota is used up (507); make room".to_owned(),
            ),
            429 | 500..=599 => (
                Class::Busy,
                format!("the server has too much to do, or fails ({})", reply.status()),
            ),
            _ => (Class::Other, format!("the server says {}", reply.status())),
        };
        Fault::new(class, text)
    }
}

/// What lists directories one by one.
pub trait Lists: Sync {
    /// Lists one directory, and tells those in it. `false` if nobody listens any more.
    fn list_one(
        &self,
        directory: &Key,
        found: &flume::Sender<Vec<Listed>>,
        below: &mut Vec<Key>,
    ) -> impl Future<Output = Answer<bool>> + Send;

    /// Lists a directory, and if `deep` all that are below it.
    fn list_all(
        &self,
        directory: &Key,
        deep: bool,
        found: &flume::Sender<Vec<Listed>>,
    ) -> impl Future<Output = Answer<()>> + Send {
        async move {
            let mut waiting = vec![directory.clone()];
            while let Some(directory) = waiting.pop() {
                let mut below = Vec::new();
                if !self.list_one(&directory, found, &mut below).await? {
                    return Ok(());
                }
                if deep {
                    waiting.extend(below);
                }
            }
            Ok(())
        }
    }
}

/// What is written goes where the user said, and nowhere else.
pub fn redirected_write() -> Fault {
    let text = "the server redirects what is written; name the place that it leads to";
    Fault::new(Class::Unsupported, text)
}

/// What stands for itself in a path: a slash does.
const IN_PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// How many requests at a time unless somebody says otherwise.
const REQUESTS: usize = 32;

/// How often a server may send us on.
const MAX_REDIRECTS: usize = 10;

/// The longest answer that is no file and no listing, in bytes.
const MAX_PAGE_LEN: usize = 1 << 20;
