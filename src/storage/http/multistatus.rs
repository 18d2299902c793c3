//! What WebDAV says of things (RFC 4918): answers to PROPFIND, and the questions.

use std::fmt;
use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use quick_xml::reader::Reader;
use tokio::io::{AsyncReadExt as _, Take};
use tokio_util::io::StreamReader;

use super::client::lost;
use super::file::{http_time, opaque};
use crate::protocol::manifest::Timestamp;
use crate::storage::object::xml::{Field, Fields, fields, invalid};
use crate::storage::remote::{Answer, Class, Fault};

/// One thing that an answer is about.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Member {
    /// Its URL, or the path of it.
    pub href: String,
    /// The server tells nothing about it, and this status instead.
    pub refusal: Option<String>,
    pub is_collection: bool,
    pub size: Option<u64>,
    pub modified: Option<Timestamp>,
    pub tag: Option<String>,
    /// Our own property.
    pub mtime: Option<String>,
}

impl Member {
    /// How long what is known of it is, in bytes.
    fn weight(&self) -> usize {
        let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.href.len() + len(&self.refusal) + len(&self.tag) + len(&self.mtime)
    }

    /// The server says that it is not there.
    pub fn is_missing(&self) -> bool {
        let code = self.refusal.as_deref().and_then(|it| it.split_ascii_whitespace().nth(1));
        matches!(code, Some("404" | "410"))
    }
}

/// What a file is known by after it was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// In bytes.
    pub size: u64,
    /// By the server's clock, if it told; it is not older.
    pub since: Option<Timestamp>,
}

impl Sent {
    /// Whether that is what is there.
    pub fn is(self, member: &Member) -> bool {
        let is_new = match (self.since, member.modified) {
            (Some(since), Some(modified)) => modified >= since,
            _ => false,
        };
        !member.is_collection && member.size == Some(self.size) && is_new
    }
}

/// An answer to PROPFIND, which is read as it comes. What the server could not tell is not there.
pub struct Members {
    reader: Reader<Take<Body>>,
    event: Vec<u8>,
    fields: Fields,
    reading: Reading,
}

type Body = StreamReader<Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>, Bytes>;

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").finish_non_exhaustive()
    }
}

impl Members {
    pub fn new(response: reqwest::Response) -> Self {
        let told = |error: reqwest::Error| io::Error::other(lost(&error.without_url()).text);
        Self::of(response.bytes_stream().map(move |piece| piece.map_err(told)))
    }

    fn of(body: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        let body: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(body);
        let mut reader = Reader::from_reader(StreamReader::new(body).take(MAX_EVENT_LEN));
        reader.config_mut().check_end_names = true;
        let (event, fields) = (Vec::new(), Fields::default());
        Self { reader, event, fields, reading: Reading::default() }
    }

    /// The next one; `None` if there is no other.
    ///
    /// # Errors
    ///
    /// If the answer breaks off, or makes no sense.
    pub async fn next(&mut self) -> Answer<Option<Member>> {
        loop {
            self.event.clear();
            // No element makes us hold more than this.
            self.reader.get_mut().set_limit(MAX_EVENT_LEN);
            let event = self.reader.read_event_into_async(&mut self.event).await;
            let event = event.map_err(|error| match error {
                quick_xml::Error::Io(error) => Fault::new(Class::Disconnected, error.to_string()),
                _ => invalid(),
            })?;
            let reading = &mut self.reading;
            let goes_on = self.fields.go_on(&event, |field| reading.take(field))?;
            if let Some(member) = self.reading.whole.take() {
                return Ok(Some(member));
            }
            if !goes_on {
                return Ok(None);
            }
        }
    }
}

impl Members {
    /// Hands all of them over in groups, for as long as somebody takes them.
    pub async fn in_groups(mut self, groups: flume::Sender<Vec<Member>>) -> Answer<()> {
        let (mut group, mut weight) = (Vec::new(), 0);
        while let Some(member) = self.next().await? {
            weight += member.weight();
            group.push(member);
            if group.len() >= GROUP || weight >= GROUP_WEIGHT {
                weight = 0;
                if groups.send_async(std::mem::take(&mut group)).await.is_err() {
                    return Ok(());
                }
            }
        }
        let _ = groups.send_async(group).await;
        Ok(())
    }
}

/// What was read of an answer so far.
#[derive(Debug, Default)]
struct Reading {
    member: Member,
    part: Member,
    is_untold: bool,
    whole: Option<Member>,
}

impl Reading {
    fn take(&mut self, (path, text): Field<'_>) {
        let Some(path) = path.strip_prefix("multistatus/response/") else { return };
        let text = text.trim();
        let value = || Some(text.to_owned()).filter(|text| !text.is_empty());
        let Self { member, part, is_untold, whole } = self;
        match path {
            "href" => text.clone_into(&mut member.href),
            "status" => member.refusal = value().filter(|it| !is_success(it)),
            "propstat/prop/resourcetype/collection" => part.is_collection = true,
            "propstat/prop/getcontentlength" => part.size = text.parse().ok(),
            "propstat/prop/getlastmodified" => part.modified = http_time(text),
            "propstat/prop/getetag" => part.tag = value().map(|tag| opaque(&tag).to_owned()),
            "propstat/prop/fastsync-mtime" => part.mtime = value(),
            "propstat/status" => *is_untold = !is_success(text),
            "propstat/" => {
                let told = std::mem::take(part);
                if !std::mem::take(is_untold) {
                    member.is_collection |= told.is_collection;
                    member.size = told.size.or(member.size);
                    member.modified = told.modified.or(member.modified);
                    member.tag = told.tag.or(member.tag.take());
                    member.mtime = told.mtime.or(member.mtime.take());
                }
            }
            "" => *whole = Some(std::mem::take(member)),
            _ => {}
        }
    }
}

/// Whether all that PROPPATCH was to do was done.
pub fn is_all_done(xml: &[u8]) -> bool {
    let (mut has_any, mut is_done) = (false, true);
    let read = fields(xml, |(path, text)| {
        if path == "multistatus/response/propstat/status" || path == "multistatus/response/status" {
            has_any = true;
            is_done &= is_success(text);
        }
    });
    read.is_ok() && has_any && is_done
}

/// `HTTP/1.1 200 OK`
fn is_success(status: &str) -> bool {
    status.split_ascii_whitespace().nth(1).is_some_and(|code| code.starts_with('2'))
}

/// Asks for what [`Member`] has.
pub const WANTED: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\
    <D:propfind xmlns:D=\"DAV:\" xmlns:F=\"urn:fastsync:dav\"><D:prop><D:resourcetype/>\
    <D:getcontentlength/><D:getlastmodified/><D:getetag/><F:fastsync-mtime/></D:prop></D:propfind>";

/// Sets our own property.
pub fn set_own(mtime: &str) -> String {
    let value = quick_xml::escape::escape(mtime);
    update(&format!("<F:fastsync-mtime>{value}</F:fastsync-mtime>"))
}

/// Sets the time that ownCloud and its relatives keep, in seconds since 1970.
pub fn set_last_modified(seconds: i64) -> String {
    update(&format!("<D:lastmodified>{seconds}</D:lastmodified>"))
}

fn update(property: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><D:propertyupdate xmlns:D=\"DAV:\" \
         xmlns:F=\"urn:fastsync:dav\"><D:set><D:prop>{property}</D:prop></D:set></D:propertyupdate>"
    )
}

/// How many members are handed over at a time, and how many bytes of theirs are enough.
const GROUP: usize = 256;
const GROUP_WEIGHT: usize = 64 << 10;

/// The longest thing in an answer that is looked at as a whole, in bytes.
const MAX_EVENT_LEN: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads an answer that comes in pieces of this length.
    async fn members_in(xml: &[u8], len: usize) -> Answer<Vec<Member>> {
        let pieces: Vec<_> = xml.chunks(len).map(Bytes::copy_from_slice).map(Ok).collect();
        let mut members = Members::of(futures_util::stream::iter(pieces));
        let mut found = Vec::new();
        while let Some(member) = members.next().await? {
            found.push(member);
        }
        Ok(found)
    }

    fn members(xml: &[u8]) -> Answer<Vec<Member>> {
        let found = [1, 7, usize::MAX].map(|len| wait_for(members_in(xml, len)));
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
        found.into_iter().next().unwrap()
    }

    fn wait_for<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn what_servers_say_is_read() {
        let xml =
            br#"<?xml version="1.0"?><D:multistatus xmlns:D="DAV:" xmlns:x="urn:fastsync:dav">
            <D:response><D:href>/d/</D:href><D:propstat><D:prop><D:resourcetype><D:collection/>
            </D:resourcetype></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
            <D:response><D:href>/d/a%20b</D:href><D:propstat><D:prop>
            <D:getcontentlength>12</D:getcontentlength><D:getetag>&quot;x&quot;</D:getetag>
            <D:getlastmodified>Tue, 24 Nov 2026 12:00:00 GMT</D:getlastmodified></D:prop>
            <D:status>HTTP/1.1 200 OK</D:status></D:propstat><D:propstat><D:prop>
            <x:fastsync-mtime>lost</x:fastsync-mtime></D:prop>
            <D:status>HTTP/1.1 404 Not Found</D:status></D:propstat></D:response></D:multistatus>"#;
        let members = members(xml).unwrap();
        let directory = Member { href: "/d/".into(), is_collection: true, ..Member::default() };
        let file = Member {
            href: "/d/a%20b".into(),
            size: Some(12),
            modified: Timestamp::new(1_795_521_600, 0),
            tag: Some("\"x\"".into()),
            ..Member::default()
        };
        assert_eq!(members, [directory, file]);
    }

    #[test]
    fn what_was_there_before_is_not_what_was_sent() {
        let time = |seconds| Timestamp::new(seconds, 0);
        let member = Member { size: Some(3), modified: time(9), ..Member::default() };
        assert!(Sent { size: 3, since: time(9) }.is(&member));
        assert!(!Sent { size: 4, since: time(9) }.is(&member));
        assert!(!Sent { size: 3, since: time(10) }.is(&member));
        assert!(!Sent { size: 3, since: None }.is(&member));
        assert!(!Sent { size: 3, since: time(9) }.is(&Member { is_collection: true, ..member }));
    }

    #[test]
    fn what_cannot_be_told_has_a_status() {
        let answer = |status: &str| {
            let xml = format!(
                "<m:multistatus xmlns:m=\"DAV:\"><m:response><m:href>/x</m:href>\
                 <m:status>HTTP/1.1 {status}</m:status></m:response></m:multistatus>"
            );
            members(xml.as_bytes()).unwrap().remove(0)
        };
        assert_eq!(answer("200 OK").refusal, None);
        assert_eq!(answer("403 Forbidden").refusal.as_deref(), Some("HTTP/1.1 403 Forbidden"));
        assert!(!answer("403 Forbidden").is_missing());
        assert!(answer("404 Not Found").is_missing());
    }

    #[test]
    fn what_was_set_is_told() {
        let answer = |status: &str| {
            format!(
                "<m:multistatus xmlns:m=\"DAV:\"><m:response><m:href>/x</m:href><m:propstat><m:prop/>\
                 <m:status>HTTP/1.1 {status}</m:status></m:propstat></m:response></m:multistatus>"
            )
        };
        assert!(is_all_done(answer("200 OK").as_bytes()));
        assert!(!is_all_done(answer("403 Forbidden").as_bytes()));
        assert!(!is_all_done(b"<html>"));
        assert!(set_own("1.5 \"<x>\"").contains("&lt;x&gt;"));
    }

    /// A million entries take no more memory than one: each is handed over as it comes.
    #[test]
    fn an_answer_of_any_length_is_read() {
        let entry = "<response><href>/d/name</href></response>".repeat(100);
        let begun = Bytes::from_static(b"<multistatus>");
        let pieces = std::iter::repeat_n(Bytes::from(entry), 10_000);
        let pieces = std::iter::once(begun).chain(pieces).map(Ok);
        let mut members = Members::of(futures_util::stream::iter(pieces));
        let count = wait_for(async {
            let mut count = 0;
            loop {
                match members.next().await {
                    Ok(Some(_)) => count += 1,
                    end => return (count, end),
                }
            }
        });
        assert_eq!(count, (1_000_000, Err(invalid())), "it breaks off");
    }

    #[test]
    fn nothing_is_held_that_is_too_long() {
        let long = "x".repeat(65 << 10);
        for xml in [
            format!("<multistatus><response><href>{long}</href></response></multistatus>"),
            format!("<multistatus><response><{long}/></response></multistatus>"),
            format!(
                "<multistatus><response><href>{}</href></response></multistatus>",
                "&lt;".repeat(70_000)
            ),
            format!("<multistatus><!-- {long} --></multistatus>"),
            "<a>".repeat(10_000),
        ] {
            assert!(members(xml.as_bytes()).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_answer_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = members(&bytes);
            let _ = is_all_done(&bytes);
        }
    }
}
