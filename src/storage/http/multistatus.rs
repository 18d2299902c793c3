//! What WebDAV says of things (RFC 4918): answers to PROPFIND, and the questions.

use super::file::{http_time, opaque};
use crate::protocol::manifest::Timestamp;
use crate::storage::object::xml::fields;
use crate::storage::remote::Answer;

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

/// Reads an answer to PROPFIND. What the server could not tell is not there.
pub fn members(xml: &[u8]) -> Answer<Vec<Member>> {
    let (mut members, mut member, mut part) = (Vec::new(), Member::default(), Member::default());
    let mut is_told = true;
    fields(xml, |(path, text)| {
        let Some(path) = path.strip_prefix("multistatus/response/") else { return };
        let text = text.trim();
        let value = || Some(text.to_owned()).filter(|text| !text.is_empty());
        match path {
            "href" => text.clone_into(&mut member.href),
            "status" => member.refusal = value().filter(|it| !is_success(it)),
            "propstat/prop/resourcetype/collection" => part.is_collection = true,
            "propstat/prop/getcontentlength" => part.size = text.parse().ok(),
            "propstat/prop/getlastmodified" => part.modified = http_time(text),
            "propstat/prop/getetag" => part.tag = value().map(|tag| opaque(&tag).to_owned()),
            "propstat/prop/fastsync-mtime" => part.mtime = value(),
            "propstat/status" => is_told = is_success(text),
            "propstat/" => {
                let told = std::mem::take(&mut part);
                if std::mem::replace(&mut is_told, true) {
                    member.is_collection |= told.is_collection;
                    member.size = told.size.or(member.size);
                    member.modified = told.modified.or(member.modified);
                    member.tag = told.tag.or(member.tag.take());
                    member.mtime = told.mtime.or(member.mtime.take());
                }
            }
            "" => members.push(std::mem::take(&mut member)),
            _ => {}
        }
    })?;
    Ok(members)
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

/// Asks for what [`members`] reads.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        #[test]
        fn any_answer_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = members(&bytes);
            let _ = is_all_done(&bytes);
        }
    }
}
