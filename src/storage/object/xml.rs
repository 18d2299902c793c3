//! Answers of S3 and Azure.
//!
//! Only elements that are known are looked at, at most so deep; there are no entities but those of XML
//! itself, so nothing expands.

use std::collections::HashMap;

use percent_encoding::percent_decode_str;
use quick_xml::events::Event;
use quick_xml::reader::Reader;

use super::fault::broken_off;
use crate::protocol::manifest::Timestamp;
use crate::storage::remote::{Class, Fault};

/// An element with text, by the names of those around it, joined by slashes.
pub type Field<'a> = (&'a str, &'a str);

/// Goes through a document and hands over each element that has text, and each end of an element (with
/// an empty text and a slash behind its path).
pub fn fields(xml: &[u8], mut take: impl FnMut(Field<'_>)) -> Result<(), Fault> {
    let (mut reader, mut fields) = (Reader::from_reader(xml), Fields::default());
    while fields.go_on(&reader.read_event().map_err(|_| invalid())?, &mut take)? {}
    Ok(())
}

/// The same, event by event, for a document that comes bit by bit.
#[derive(Debug, Default)]
pub struct Fields {
    path: Vec<String>,
    text: String,
}

impl Fields {
    /// `false` if that was the end of the document.
    ///
    /// # Errors
    ///
    /// [`Class::Violation`] if it is not valid, or not over.
    pub fn go_on(
        &mut self,
        event: &Event<'_>,
        mut take: impl FnMut(Field<'_>),
    ) -> Result<bool, Fault> {
        let Self { path, text } = self;
        match event {
            Event::Start(start) => {
                let name = start.local_name();
                let name: &str = name.as_ref();
                if path.len() >= MAX_DEPTH || name.len() > MAX_NAME_LEN {
                    return Err(invalid());
                }
                path.push(name.to_owned());
                text.clear();
            }
            Event::Text(piece) => text.push_str(piece),
            Event::CData(piece) => text.push_str(piece),
            Event::GeneralRef(reference) => {
                let name: &str = reference;
                text.push(resolved(name).ok_or_else(invalid)?);
            }
            Event::Empty(empty) => {
                let name = empty.local_name();
                let name: &str = name.as_ref();
                if name.len() > MAX_NAME_LEN {
                    return Err(invalid());
                }
                path.push(name.to_owned());
                take((&path.join("/"), ""));
                path.pop();
            }
            Event::End(_) => {
                let whole = path.join("/");
                take((&whole, text));
                take((&format!("{whole}/"), ""));
                path.pop().ok_or_else(invalid)?;
                text.clear();
            }
            Event::Eof => return if path.is_empty() { Ok(false) } else { Err(invalid()) },
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::DocType(_) => return Err(invalid()),
        }
        if text.len() > MAX_TEXT_LEN { Err(invalid()) } else { Ok(true) }
    }
}

pub fn invalid() -> Fault {
    Fault::new(Class::Violation, "the server's answer is no valid XML")
}

/// Goes through a listing, whose outermost element is `root`.
fn listing(xml: &[u8], root: &str, mut take: impl FnMut(Field<'_>)) -> Result<(), Fault> {
    let mut is_listing = false;
    fields(xml, |(path, text)| {
        is_listing |= path.strip_suffix('/').unwrap_or(path) == root;
        take((path, text));
    })?;
    if is_listing { Ok(()) } else { Err(broken_off()) }
}

/// The references that XML itself has, and characters by their numbers.
fn resolved(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(digits) => u32::from_str_radix(digits, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

/// A page of a listing.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Page {
    pub objects: Vec<Object>,
    /// Beginnings of keys, up to a slash.
    pub prefixes: Vec<Vec<u8>>,
    /// How to ask for the next page.
    pub next: Option<String>,
}

/// An object in a listing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Object {
    pub key: Vec<u8>,
    pub size: u64,
    pub modified: Option<Timestamp>,
    pub tag: String,
}

/// Reads an answer to `ListObjectsV2`.
pub fn page(xml: &[u8]) -> Result<Page, Fault> {
    let mut page = Page::default();
    let mut object = Object::default();
    let (mut is_cut, mut is_encoded) = (None, false);
    listing(xml, "ListBucketResult", |(path, text)| match path {
        "ListBucketResult/Contents/Key" => object.key = text.into(),
        "ListBucketResult/Contents/Size" => object.size = text.trim().parse().unwrap_or_default(),
        "ListBucketResult/Contents/LastModified" => object.modified = timestamp(text),
        "ListBucketResult/Contents/ETag" => text.clone_into(&mut object.tag),
        "ListBucketResult/Contents/" => page.objects.push(std::mem::take(&mut object)),
        "ListBucketResult/CommonPrefixes/Prefix" => page.prefixes.push(text.into()),
        "ListBucketResult/EncodingType" => is_encoded = text == "url",
        "ListBucketResult/IsTruncated" => is_cut = Some(text.trim() == "true"),
        "ListBucketResult/NextContinuationToken" => {
            page.next = Some(text.to_owned()).filter(|it| !it.is_empty());
        }
        _ => {}
    })?;
    match is_cut {
        Some(true) if page.next.is_none() => return Err(broken_off()),
        Some(false) => page.next = None,
        Some(true) | None => {}
    }
    if is_encoded {
        page.objects.iter_mut().for_each(|it| decode(&mut it.key));
        page.prefixes.iter_mut().for_each(decode);
    }
    Ok(page)
}

/// Makes of a name that is encoded as in a URL what it is.
fn decode(name: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(name).replace('+', " ");
    *name = percent_decode_str(&text).collect();
}

/// A part of an upload.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Part {
    /// Counted from 1.
    pub number: u64,
    pub tag: String,
    pub size: u64,
    pub modified: Option<Timestamp>,
}

/// Reads an answer to `ListParts`: parts, and how to ask for the next page.
pub fn parts(xml: &[u8]) -> Result<(Vec<Part>, Option<String>), Fault> {
    let (mut parts, mut part) = (Vec::new(), Part::default());
    let (mut is_cut, mut marker) = (false, String::new());
    listing(xml, "ListPartsResult", |(path, text)| match path {
        "ListPartsResult/Part/PartNumber" => part.number = text.trim().parse().unwrap_or_default(),
        "ListPartsResult/Part/ETag" => text.clone_into(&mut part.tag),
        "ListPartsResult/Part/Size" => part.size = text.trim().parse().unwrap_or_default(),
        "ListPartsResult/Part/LastModified" => part.modified = timestamp(text),
        "ListPartsResult/Part/" => parts.push(std::mem::take(&mut part)),
        "ListPartsResult/IsTruncated" => is_cut = text == "true",
        "ListPartsResult/NextPartNumberMarker" => text.clone_into(&mut marker),
        _ => {}
    })?;
    if is_cut && marker.is_empty() {
        return Err(broken_off());
    }
    Ok((parts, is_cut.then_some(marker)))
}

/// A page of a listing of Azure's.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Blobs {
    pub all: Vec<Blob>,
    /// Beginnings of names, up to a slash.
    pub prefixes: Vec<String>,
    /// How to ask for the next page.
    pub next: Option<String>,
}

/// A blob in a listing of Azure's.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Blob {
    pub name: String,
    pub size: u64,
    pub modified: String,
    pub tag: String,
    pub metadata: Vec<(String, String)>,
}

/// Reads an answer to `List Blobs`.
pub fn blobs(xml: &[u8]) -> Result<Blobs, Fault> {
    let mut page = Blobs::default();
    let mut blob = Blob::default();
    listing(xml, "EnumerationResults", |(path, text)| {
        let Some(path) = path.strip_prefix("EnumerationResults/") else { return };
        match path {
            "Blobs/Blob/Name" => text.clone_into(&mut blob.name),
            "Blobs/Blob/Properties/Content-Length" => {
                blob.size = text.trim().parse().unwrap_or_default();
            }
            "Blobs/Blob/Properties/Last-Modified" => text.clone_into(&mut blob.modified),
            "Blobs/Blob/Properties/Etag" => text.clone_into(&mut blob.tag),
            "Blobs/Blob/" => page.all.push(std::mem::take(&mut blob)),
            "Blobs/BlobPrefix/Name" => page.prefixes.push(text.to_owned()),
            "NextMarker" => page.next = Some(text.to_owned()).filter(|it| !it.is_empty()),
            _ => {
                let name = path.strip_prefix("Blobs/Blob/Metadata/");
                if let Some(name) = name.filter(|name| !name.is_empty() && !name.ends_with('/')) {
                    blob.metadata.push((name.to_owned(), text.to_owned()));
                }
            }
        }
    })?;
    Ok(page)
}

/// Reads an answer to `Get Block List`: blocks that are in no list yet, by their identifiers, and their sizes.
pub fn uncommitted_blocks(xml: &[u8]) -> Result<HashMap<String, u64>, Fault> {
    let (mut blocks, mut block) = (HashMap::new(), (String::new(), 0));
    fields(xml, |(path, text)| match path {
        "BlockList/UncommittedBlocks/Block/Name" => text.clone_into(&mut block.0),
        "BlockList/UncommittedBlocks/Block/Size" => {
            block.1 = text.trim().parse().unwrap_or_default();
        }
        "BlockList/UncommittedBlocks/Block/" => {
            let (name, size) = std::mem::take(&mut block);
            blocks.insert(name, size);
        }
        _ => {}
    })?;
    Ok(blocks)
}

/// An upload in a listing of S3's.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Upload {
    pub key: Vec<u8>,
    pub id: String,
    pub begun: Option<Timestamp>,
}

/// A key and an upload.
pub type Behind = (Vec<u8>, String);

/// Reads an answer to `ListMultipartUploads`: uploads, and what the next page begins behind.
pub fn uploads(xml: &[u8]) -> Result<(Vec<Upload>, Option<Behind>), Fault> {
    let (mut uploads, mut upload) = (Vec::new(), Upload::default());
    let (mut is_cut, mut is_encoded) = (false, false);
    let mut next = (Vec::new(), String::new());
    listing(xml, "ListMultipartUploadsResult", |(path, text)| match path {
        "ListMultipartUploadsResult/Upload/Key" => upload.key = text.into(),
        "ListMultipartUploadsResult/Upload/UploadId" => text.clone_into(&mut upload.id),
        "ListMultipartUploadsResult/Upload/Initiated" => upload.begun = timestamp(text),
        "ListMultipartUploadsResult/Upload/" => uploads.push(std::mem::take(&mut upload)),
        "ListMultipartUploadsResult/IsTruncated" => is_cut = text == "true",
        "ListMultipartUploadsResult/EncodingType" => is_encoded = text == "url",
        "ListMultipartUploadsResult/NextKeyMarker" => next.0 = text.into(),
        "ListMultipartUploadsResult/NextUploadIdMarker" => text.clone_into(&mut next.1),
        _ => {}
    })?;
    if is_cut && next.0.is_empty() {
        return Err(broken_off());
    }
    if is_encoded {
        decode(&mut next.0);
        for upload in &mut uploads {
            decode(&mut upload.key);
        }
    }
    Ok((uploads, is_cut.then_some(next)))
}

/// The text of one element, by its path.
pub fn text_of(xml: &[u8], wanted: &str) -> Option<String> {
    let mut found = None;
    fields(xml, |(path, text)| {
        if path == wanted {
            found = Some(text.to_owned());
        }
    })
    .ok()?;
    found
}

/// The keys that could not be removed, each with why.
pub fn not_removed(xml: &[u8]) -> Result<Vec<(String, String, String)>, Fault> {
    let (mut all, mut one) = (Vec::new(), (String::new(), String::new(), String::new()));
    fields(xml, |(path, text)| match path {
        "DeleteResult/Error/Key" => text.clone_into(&mut one.0),
        "DeleteResult/Error/Code" => text.clone_into(&mut one.1),
        "DeleteResult/Error/Message" => text.clone_into(&mut one.2),
        "DeleteResult/Error/" => all.push(std::mem::take(&mut one)),
        _ => {}
    })?;
    Ok(all)
}

/// `2026-11-24T12:00:00.000Z` (RFC 3339, always UTC here).
pub fn timestamp(text: &str) -> Option<Timestamp> {
    let text = text.trim().strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let mut date = date.split('-').map(|it| it.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.split(':').map(|it| it.parse::<i64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let is_date =
        (0..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let is_time =
        (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second);
    if !is_date || !is_time {
        return None;
    }
    // Days since 1970 in the Gregorian calendar, with March as a year's first month.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era_day = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    let days = era_day - 719_468;
    let digits = fraction.get(..fraction.len().min(9))?;
    let nanoseconds = format!("{digits:0<9}").parse().ok()?;
    Timestamp::new(days * 86_400 + hour * 3600 + minute * 60 + second, nanoseconds)
}

/// How deep elements may be in each other.
const MAX_DEPTH: usize = 16;

/// The longest name of an element, in bytes.
const MAX_NAME_LEN: usize = 256;

/// The longest text of an element, in bytes.
const MAX_TEXT_LEN: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_listing_is_read() {
        let xml = br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
            <EncodingType>url</EncodingType>
            <IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b&#x21;</NextContinuationToken>
            <Contents><Key>a%20b</Key><LastModified>2026-11-24T12:00:00.250Z</LastModified>
            <ETag>&quot;x&quot;</ETag><Size>12</Size><StorageClass>STANDARD</StorageClass></Contents>
            <Contents><Key>c</Key><Size>0</Size></Contents>
            <CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes></ListBucketResult>"#;
        let page = page(xml).unwrap();
        assert_eq!(page.next.as_deref(), Some("a&b!"));
        assert_eq!(page.prefixes, [b"d/"]);
        let modified = Timestamp::new(1_795_521_600, 250_000_000);
        let first = Object { key: b"a b".into(), size: 12, modified, tag: "\"x\"".into() };
        assert_eq!(page.objects[0], first);
        assert_eq!((&*page.objects[1].key, page.objects.len()), (&b"c"[..], 2));
    }

    #[test]
    fn only_a_whole_listing_is_complete() {
        let cut = |xml: &str| page(xml.as_bytes()).map(|page| page.next).map_err(|it| it.class);
        assert_eq!(cut("<ListBucketResult/>"), Ok(None));
        let more = |cut, token| {
            format!(
                "<ListBucketResult><IsTruncated>{cut}</IsTruncated><NextContinuationToken>{token}</NextContinuationToken></ListBucketResult>"
            )
        };
        assert_eq!(cut(&more("true", "t")), Ok(Some("t".to_owned())));
        assert_eq!(cut(&more("false", "t")), Ok(None));
        for wrong in ["", "<Error><Code>InternalError</Code></Error>", "<html/>", &more("true", "")]
        {
            assert_eq!(cut(wrong), Err(Class::Violation), "{wrong}");
            assert!(blobs(wrong.as_bytes()).is_err(), "{wrong}");
            assert!(parts(wrong.as_bytes()).is_err(), "{wrong}");
            assert!(uploads(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_encoded_names_are_decoded() {
        let name = |encoding| {
            let xml = format!(
                "<ListBucketResult><Contents><Key>a+b%25</Key></Contents>{encoding}</ListBucketResult>"
            );
            page(xml.as_bytes()).unwrap().objects.remove(0).key
        };
        assert_eq!(name("<EncodingType>url</EncodingType>"), b"a b%");
        assert_eq!(name(""), b"a+b%25");
    }

    #[test]
    fn names_of_elements_are_short() {
        let long = "x".repeat(MAX_NAME_LEN + 1);
        assert!(fields(format!("<{long}/>").as_bytes(), |_| {}).is_err());
        assert!(fields(format!("<{long}></{long}>").as_bytes(), |_| {}).is_err());
    }

    #[test]
    fn parts_are_read() {
        let xml = b"<ListPartsResult><Part><PartNumber>2</PartNumber><ETag>\"x\"</ETag>
            <Size>5</Size><LastModified>1970-01-01T00:00:01Z</LastModified></Part>
            <IsTruncated>true</IsTruncated><NextPartNumberMarker>2</NextPartNumberMarker>
            </ListPartsResult>";
        let (parts, next) = parts(xml).unwrap();
        let modified = Timestamp::new(1, 0);
        let part = Part { number: 2, tag: "\"x\"".to_owned(), size: 5, modified };
        assert_eq!((parts, next.as_deref()), (vec![part], Some("2")));
    }

    #[test]
    fn uploads_are_read() {
        let xml = b"<ListMultipartUploadsResult><Upload><Key>a%20b</Key><UploadId>i</UploadId>
            <Initiated>1970-01-01T00:00:01Z</Initiated></Upload><IsTruncated>true</IsTruncated>
            <NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>j</NextUploadIdMarker>
            </ListMultipartUploadsResult>";
        let (uploads, next) = uploads(xml).unwrap();
        let upload = Upload { key: b"a%20b".into(), id: "i".into(), begun: Timestamp::new(1, 0) };
        assert_eq!((uploads, next), (vec![upload], Some((b"k".into(), "j".into()))));
    }

    #[test]
    fn blobs_are_read() {
        let xml = b"\xef\xbb\xbf<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs><Blob>
            <Name>a &amp; b</Name><Properties><Last-Modified>Tue, 24 Nov 2026 12:00:00 GMT</Last-Modified>
            <Etag>0x1</Etag><Content-Length>12</Content-Length></Properties>
            <Metadata><fastsync_mode>0644</fastsync_mode></Metadata></Blob><Blob><Name>c</Name>
            <Properties /><Metadata /></Blob><BlobPrefix><Name>d/</Name></BlobPrefix></Blobs>
            <NextMarker>m</NextMarker></EnumerationResults>";
        let page = blobs(xml).unwrap();
        assert_eq!((page.prefixes, page.next.as_deref()), (vec!["d/".to_owned()], Some("m")));
        let metadata = vec![("fastsync_mode".to_owned(), "0644".to_owned())];
        let modified = "Tue, 24 Nov 2026 12:00:00 GMT".to_owned();
        let first = Blob { name: "a & b".into(), size: 12, modified, tag: "0x1".into(), metadata };
        assert_eq!(page.all[0], first);
        assert_eq!(page.all[1], Blob { name: "c".into(), ..Blob::default() });
        assert_eq!(
            blobs(b"<EnumerationResults><NextMarker/></EnumerationResults>").unwrap().next,
            None
        );
    }

    #[test]
    fn blocks_are_read() {
        let xml = b"<BlockList><CommittedBlocks><Block><Name>x</Name></Block></CommittedBlocks>
            <UncommittedBlocks><Block><Name>y</Name><Size>1</Size></Block></UncommittedBlocks></BlockList>";
        assert_eq!(uncommitted_blocks(xml).unwrap(), HashMap::from([("y".to_owned(), 1)]));
    }

    #[test]
    fn what_could_expand_is_refused() {
        let bomb = b"<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><x>&b;</x>";
        assert!(fields(bomb, |_| {}).is_err());
        assert!(fields(b"<x>&unknown;</x>", |_| {}).is_err());
        assert!(fields("<x>".repeat(1000).as_bytes(), |_| {}).is_err());
        assert!(fields(b"<x>", |_| {}).is_err());
    }

    #[test]
    fn times_are_read() {
        let seconds = |text| timestamp(text).map(|it| it.seconds);
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2000-02-29T23:59:59.999Z"), Some(951_868_799));
        for text in ["", "2026-11-24", "2026-13-01T00:00:00Z", "2026-01-01T25:00:00Z", "xT0:0:0Z"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in any::<String>()) {
            let _ = page(&bytes);
            let _ = blobs(&bytes);
            let _ = fields(text.as_bytes(), |_| {});
            timestamp(&text);
        }
    }
}
