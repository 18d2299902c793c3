//! What all object stores have in common.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::fault::text::{DAMAGED, OTHER_VERSION};
use super::metadata::Names;
use super::pages::Pages;
use crate::protocol::manifest::Timestamp;
use crate::storage::http::client::{Call, Client, PROGRESS, fill, read_body};
use crate::storage::http::share::{self, Help};
use crate::storage::remote::{
    Answer, Class, Fault, Keeps, KeepsRoot, Kept, Key, Listed, Parts, Properties, Replaces, Thing,
    implied, nonce,
};
use crate::storage::{Remembers, Token};

/// Why a request failed, by its answer.
pub type Refused = fn(StatusCode, &HeaderMap, &[u8]) -> Fault;

/// A server, and how to understand its refusals.
#[derive(Clone, Debug)]
pub struct Server {
    pub client: Client,
    pub refused: Refused,
}

impl Server {
    /// Sends a request that is to succeed.
    pub async fn done(&self, call: &Call) -> Answer<reqwest::Response> {
        let response = self.client.send(call).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// Sends a request; `None` if what it is about is not there.
    pub async fn maybe(&self, call: &Call) -> Answer<Option<reqwest::Response>> {
        let response = self.client.send(call).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(response)),
            _ => Err(self.refusal(response).await),
        }
    }

    pub async fn refusal(&self, response: reqwest::Response) -> Fault {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read_body(response, MAX_PAGE_LEN).await.unwrap_or_default();
        (self.refused)(status, &headers, &body)
    }

    /// The body of the answer to a request that is to succeed. What changes nothing is asked again where
    /// its answer breaks off.
    pub async fn body(&self, call: &Call) -> Answer<Vec<u8>> {
        let attempts = if call.method == Method::GET { READ_ATTEMPTS } else { 1 };
        for _ in 1..attempts {
            match read_body(self.done(call).await?, MAX_PAGE_LEN).await {
                Err(fault) if fault.class == Class::Disconnected => {}
                answer => return answer,
            }
        }
        read_body(self.done(call).await?, MAX_PAGE_LEN).await
    }

    /// Reads part of an object.
    pub async fn read(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        let _reader = self.client.readers().begin(into.len()).await;
        self.read_part(file, offset, into).await
    }

    async fn read_part(&self, file: &Open, offset: u64, into: &mut [u8]) -> Answer<()> {
        let (mut done, mut idle) = (0, 0);
        while idle < READ_ATTEMPTS {
            let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) else {
                return Ok(());
            };
            let filled = self.range(file, offset + done as u64, rest, false).await?;
            done += filled;
            idle = if filled >= PROGRESS { 0 } else { idle + 1 };
        }
        if done == into.len() {
            return Ok(());
        }
        Err(Fault::new(Class::Disconnected, "the connection broke off again and again"))
    }

    /// Asks for part of an object, and returns how much of it came.
    async fn range(&self, file: &Open, first: u64, into: &mut [u8], once: bool) -> Answer<usize> {
        let last = (first + into.len() as u64).saturating_sub(1);
        if last >= file.size {
            return Err(Fault::new(Class::Changed, "it has no such part"));
        }
        let call = Call { once, ..Call::clone(&file.get) };
        let response = self.done(&call.header("range", &format!("bytes={first}-{last}"))).await?;
        if !file.is_version(response.headers()) {
            return Err(Fault::new(Class::Changed, OTHER_VERSION));
        }
        let range = response.headers().get(http::header::CONTENT_RANGE);
        let range = range.and_then(|it| it.to_str().ok());
        let has_ranges = range.is_some();
        let is_ours = match range {
            Some(range) => file.is_part(range, first, last)?,
            None => first == 0 && response.content_length() == Some(into.len() as u64),
        };
        if !is_ours {
            let text = "the server sends another part than it was asked for";
            return Err(Fault::new(Class::Violation, text));
        }
        if !has_ranges {
            return fill(response, into).await;
        }
        let help = Helper { server: self, file };
        share::fill(response, first, into, self.client.readers(), &help).await
    }

    /// Whether an object is still the version that was opened. Each part of it that was read is; it may
    /// have none.
    pub async fn confirm(&self, file: &Open) -> Answer<bool> {
        if file.size > 0 {
            return Ok(true);
        }
        match self.done(&file.look).await {
            Ok(response) => Ok(file.is_version(response.headers())),
            Err(fault) if fault.class == Class::Changed => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}

/// Reads more of an object.
struct Helper<'a> {
    server: &'a Server,
    file: &'a Open,
}

impl Help for Helper<'_> {
    fn read<'a>(&'a self, first: u64, into: &'a mut [u8]) -> BoxFuture<'a, bool> {
        let len = into.len();
        let reading = self.server.range(self.file, first, into, true);
        Box::pin(async move { reading.await.is_ok_and(|filled| filled == len) })
    }
}

/// An object that is being read.
#[derive(Clone, Debug)]
pub struct Open {
    get: Arc<Call>,
    look: Arc<Call>,
    size: u64,
    tag: Option<Box<[u8]>>,
    /// The header that says of an answer which version it is of.
    version: &'static str,
}

impl Open {
    /// An object that one request gets whole, and another looks at: both only if it is still the
    /// version that is meant. `version` is the header that tells.
    pub fn new(get: Call, look: Call, thing: &Thing, version: &'static str) -> Self {
        let (get, look, tag) = (Arc::new(get), Arc::new(look), thing.tag.clone());
        Self { get, look, size: thing.size, tag, version }
    }

    /// Whether an answer is of the version that is meant, as far as it tells: there are servers that do
    /// not look at a request's condition.
    fn is_version(&self, headers: &HeaderMap) -> bool {
        match (&self.tag, headers.get(self.version)) {
            (Some(tag), Some(found)) => bare(tag) == bare(found.as_bytes()),
            _ => true,
        }
    }

    /// Where the object is.
    pub fn url(&self) -> &str {
        &self.look.url
    }

    /// Whether a range is what was asked for, as `Content-Range` tells it (RFC 9110, section 14.4).
    ///
    /// # Errors
    ///
    /// [`Class::Changed`] if the object has another size by now.
    fn is_part(&self, range: &str, first: u64, last: u64) -> Answer<bool> {
        let Some((part, size)) = range.split_once('/') else { return Ok(false) };
        if size.parse().is_ok_and(|size: u64| size != self.size) {
            return Err(Fault::new(Class::Changed, "it has another size by now"));
        }
        Ok(part == format!("bytes {first}-{last}"))
    }
}

/// A tag without what says that it is weak, and without quotes, which listings may leave out.
fn bare(tag: &[u8]) -> &[u8] {
    let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
    tag.strip_prefix(b"\"").and_then(|tag| tag.strip_suffix(b"\"")).unwrap_or(tag)
}

/// A request that only the version that is meant answers.
pub fn if_tag(call: Call, header: &str, thing: &Thing) -> Call {
    match &thing.tag {
        Some(tag) => call.header(header, &String::from_utf8_lossy(tag)),
        None => call,
    }
}

/// What every store can do, and none of them has; the rest each says of itself.
pub fn properties(name: &'static str, requests: usize, base: &str) -> Properties {
    Properties {
        name,
        replaces: Replaces::Atomically,
        remembers: Remembers::Always,
        syncs: true,
        lasts: true,
        keeps: Keeps {
            times: Some(Duration::from_nanos(1)),
            time_range: (i64::MIN, i64::MAX),
            modes: true,
            symlinks: false,
            directories: false,
            directory_times: false,
            roots: KeepsRoot::ToTheEnd,
            any_bytes: false,
        },
        max_size: u64::MAX,
        parts: Parts { min_len: 0, max_count: u64::MAX, in_order: false },
        requests,
        lists_all: true,
        copies: true,
        encrypts: base.starts_with("https://"),
    }
}

/// Hands over a listing page by page. `page` gets what asks for the one that is due.
pub async fn pages<F: Future<Output = Answer<(Vec<Listed>, Option<String>)>>>(
    found: flume::Sender<Vec<Listed>>,
    page: impl Fn(Option<String>) -> F,
) -> Answer<()> {
    let mut pages = Pages::default();
    while !pages.is_over() {
        let (group, next) = page(pages.marker().map(str::to_owned)).await?;
        pages.turn(next, group.iter().map(name_of))?;
        if !group.is_empty() && found.send_async(group).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn name_of(listed: &Listed) -> &[u8] {
    match listed {
        Listed::Thing(key, _) | Listed::Unknown(key, _) => key.as_bytes(),
        Listed::Unusable { shown, .. } => shown,
    }
}

/// What a listing told of. A name that ends with a slash stands for a directory, whose marker may have
/// it too. `top` is how the store's own top is shown.
pub fn listed(top: &[u8], name: &[u8], thing: Thing) -> Option<Listed> {
    let without = name.strip_suffix(b"/").unwrap_or(name);
    if without.len() < name.len() && !without.ends_with(b"/") {
        return Key::new(without).ok().map(|key| Listed::Thing(key, implied()));
    }
    Some(match Key::new(without) {
        Ok(key) => Listed::Thing(key, thing),
        Err(reason) => Listed::Unusable { shown: [top, without].concat(), reason },
    })
}

/// What the keys in a directory begin with.
pub fn prefix_of(directory: &Key) -> Answer<String> {
    Ok(if directory.is_top() { String::new() } else { format!("{}/", text(directory)?) })
}

pub fn text(key: &Key) -> Answer<&str> {
    std::str::from_utf8(key.as_bytes())
        .map_err(|_| Fault::new(Class::Name, "the name is not UTF-8"))
}

/// A key as it stands in a path.
pub fn in_path(key: &Key) -> String {
    utf8_percent_encode(&String::from_utf8_lossy(key.as_bytes()), IN_PATH).to_string()
}

/// A text as it stands in a query, or as one name in a path.
pub fn in_query(text: &str) -> String {
    utf8_percent_encode(text, IN_QUERY).to_string()
}

/// A request with what is to be kept beside an object in its headers.
pub fn with_kept(mut call: Call, names: &Names, kept: &Kept) -> Call {
    for (name, value) in names.entries(kept) {
        call = call.header(&format!("{}{name}", names.header_prefix), &value);
    }
    call
}

/// The server's URL, without slashes at its end.
pub fn checked_url(url: &str) -> Answer<&str> {
    let url = url.trim_end_matches('/');
    match url.split_once("://") {
        Some((_, rest)) if rest.split('/').next().is_some_and(|it| it.contains('@')) => {
            let text = "the endpoint's URL has no place for a user and a password; see \
                        docs/CONFIGURATION.md for where credentials come from";
            Err(Fault::new(Class::Name, text))
        }
        Some(("http" | "https", rest)) if !rest.is_empty() => Ok(url),
        _ => Err(Fault::new(Class::Name, "the endpoint is no http:// or https:// URL")),
    }
}

/// Checks that a server has what was sent, as far as a header of its answer tells.
pub fn check_sum(headers: &HeaderMap, name: &str, sum: &str) -> Answer<()> {
    match headers.get(name) {
        Some(found) if found != sum => Err(Fault::new(Class::Violation, DAMAGED)),
        _ => Ok(()),
    }
}

/// The data of a file that goes up whole, once it has come.
#[derive(Clone, Debug, Default)]
pub struct Whole(Arc<Mutex<Vec<Bytes>>>);

impl Whole {
    pub fn set(&self, data: Vec<Bytes>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = data;
    }

    pub fn get(&self) -> Vec<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What names an upload in a journal, with the size that its file is to have; `id` is `None` of one that
/// goes up whole.
pub fn token(size: u64, id: Option<&str>) -> Token {
    let text = id.map(|id| format!("u{size}:{id}")).unwrap_or_default();
    Token::new(text.as_bytes()).unwrap_or_default()
}

/// The upload that a token names, and the size of its file.
pub fn id_of(token: &Token) -> Option<(u64, String)> {
    let text = std::str::from_utf8(token.as_bytes().strip_prefix(b"u")?).ok()?;
    let (size, id) = text.split_once(':').filter(|(_, id)| !id.is_empty())?;
    Some((size.parse().ok()?, id.to_owned()))
}

/// A name for an upload that no other has, and that says when it was begun.
pub fn upload_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:08x}{:08x}", now.as_secs() & 0xffff_ffff, nonce() & 0xffff_ffff)
}

/// When an upload was begun, by its name; `None` if that is no name of [`upload_id`].
pub fn begun(id: &str) -> Option<Timestamp> {
    let is_name = id.len() == 16 && id.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
    let seconds = i64::from_str_radix(id.get(..8)?, 16).ok()?;
    Timestamp::new(seconds, 0).filter(|_| is_name)
}

/// What stands for itself in a path: a slash does.
const IN_PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// What stands for itself in a query.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How many requests at a time unless somebody says otherwise. Small objects take round trips and
/// little else; a store that has too many of them says so.
pub const REQUESTS: usize = 256;

/// The longest answer that is no object, in bytes.
pub const MAX_PAGE_LEN: usize = 16 << 20;

/// How often in a row reading one part, or a page, is begun again where it broke off.
const READ_ATTEMPTS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::remote::ThingKind;

    #[test]
    fn a_slash_at_the_end_is_a_implied() {
        let file = Thing { kind: ThingKind::File, size: 3, ..implied() };
        let told = |name: &str| listed(b"gs://b/", name.as_bytes(), file.clone());
        let key = |name: &str| Key::new(name.as_bytes()).unwrap();
        assert_eq!(told("a/b"), Some(Listed::Thing(key("a/b"), file.clone())));
        assert_eq!(told("a/"), Some(Listed::Thing(key("a"), implied())));
        assert_eq!(told("/a/"), None);
        for name in ["a//", "a//b", "/a", "../x"] {
            let Some(Listed::Unusable { shown, .. }) = told(name) else { panic!("{name}") };
            assert!(shown.starts_with(b"gs://b/"));
        }
    }

    #[test]
    fn another_size_is_another_version() {
        let call = Call::new(Method::GET, "http://h/".to_owned());
        let file = Open::new(call.clone(), call, &Thing { size: 10, ..implied() }, "etag");
        assert_eq!(file.is_part("bytes 2-5/10", 2, 5), Ok(true));
        assert_eq!(file.is_part("bytes 2-5/*", 2, 5), Ok(true));
        assert_eq!(file.is_part("bytes 2-4/10", 2, 5), Ok(false));
        assert_eq!(file.is_part("2-5", 2, 5), Ok(false));
        assert_eq!(file.is_part("bytes 2-5/9", 2, 5).unwrap_err().class, Class::Changed);
    }

    #[test]
    fn another_tag_is_another_version() {
        let call = Call::new(Method::GET, "http://h/".to_owned());
        let thing = Thing { tag: Some(b"\"x\""[..].into()), ..implied() };
        let file = Open::new(call.clone(), call, &thing, "etag");
        let is_version = |tag: &'static str| {
            file.is_version(&HeaderMap::from_iter([(http::header::ETAG, tag.parse().unwrap())]))
        };
        assert!(is_version("\"x\"") && is_version("x") && is_version("W/\"x\""));
        assert!(!is_version("\"y\"") && !is_version(""));
        assert!(file.is_version(&HeaderMap::new()));
    }

    #[test]
    fn a_token_names_its_upload() {
        assert_eq!(id_of(&token(7, Some("x:y"))), Some((7, "x:y".to_owned())));
        assert_eq!(id_of(&token(7, None)), None);
        assert_eq!(id_of(&Token::from(7)), None);
    }

    #[test]
    fn an_upload_says_when_it_was_begun() {
        let (one, other) = (upload_id(), upload_id());
        assert_ne!(one, other);
        assert!(begun(&one).unwrap().seconds > 1_700_000_000);
        assert_eq!(begun("6553f100ffffffff"), Timestamp::new(1_700_000_000, 0));
        for text in ["", "6553f100", "6553f100fffffffg", "6553F100ffffffff", "measure-1234-567"] {
            assert_eq!(begun(text), None, "{text}");
        }
    }

    #[test]
    fn only_urls_of_http_are_endpoints() {
        assert_eq!(checked_url("https://h:1/x//").unwrap(), "https://h:1/x");
        for url in ["", "h", "ftp://h", "http://", "http:", "https://me:secret@h"] {
            assert!(checked_url(url).is_err(), "{url}");
        }
    }
}
