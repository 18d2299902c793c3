//! The requests to S3 that are about whole objects, and what is said of them there.

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method};

use super::Inner;
use super::answers::{MEANINGS, check_late_error, check_result};
use crate::storage::http::client::Call;
use crate::storage::object::fault::coded;
use crate::storage::object::store::{if_tag, in_path, in_query, token, with_kept};
use crate::storage::object::{metadata, xml};
use crate::storage::remote::{Answer, Class, Fault, Kept, Key, Thing, Unfinished};

impl Inner {
    pub fn url(&self, key: &Key) -> String {
        format!("{}/{}", self.base, in_path(key))
    }

    pub async fn head(&self, key: &Key) -> Answer<Option<Thing>> {
        let response = self.server.maybe(&Call::new(Method::HEAD, self.url(key))).await?;
        let Some(response) = response else { return Ok(None) };
        let thing = metadata::S3.thing(response.headers());
        thing.map(Some).ok_or_else(|| {
            Fault::new(Class::Violation, "the server does not tell the object's size")
        })
    }

    pub async fn page(&self, prefix: &str, query: &str, next: Option<&str>) -> Answer<xml::Page> {
        let prefix = in_query(prefix);
        let more = next.map(|next| format!("&continuation-token={}", in_query(next)));
        let more = more.unwrap_or_default();
        let url =
            format!("{}/?list-type=2&encoding-type=url&prefix={prefix}{query}{more}", self.base);
        xml::page(&self.server.body(&Call::new(Method::GET, url)).await?)
    }

    pub fn with_kept(&self, call: Call, kept: &Kept) -> Call {
        let call = with_kept(call, &metadata::S3, kept);
        match &self.config.storage_class {
            Some(class) => call.header("x-amz-storage-class", class),
            None => call,
        }
    }

    /// What there is of an upload.
    pub async fn left(&self, upload: &xml::Upload) -> Answer<Option<Unfinished>> {
        let Ok(key) = Key::new(&upload.key) else { return Ok(None) };
        let parts = self.parts(&key, &upload.id).await?;
        Ok(parts.map(|parts| Unfinished {
            key,
            token: Some(token(0, Some(&upload.id))),
            size: parts.iter().map(|part| part.size).sum(),
            since: parts.iter().map(|part| part.modified).max().flatten().max(upload.begun),
        }))
    }

    /// Copies an object onto itself or elsewhere, with the metadata that a request to there has.
    pub async fn copy_object(&self, from: Version<'_>, call: Call) -> Answer<()> {
        if from.thing.size > MAX_COPY_LEN {
            let text = "objects of more than 5 GiB cannot be copied at once";
            return Err(Fault::new(Class::Unsupported, text));
        }
        let call = from.source_of(call.header("x-amz-metadata-directive", "REPLACE"));
        let body = self.server.body(&call).await?;
        check_result(&body, "CopyObjectResult")
    }

    /// Removes up to 1,000 objects with one request.
    pub async fn remove_group(&self, keys: &[&Key]) -> Vec<Answer<()>> {
        let mut body = String::from("<Delete><Quiet>true</Quiet>");
        for key in keys {
            let name = String::from_utf8_lossy(key.as_bytes());
            let name = quick_xml::escape::escape(&*name);
            body.push_str("<Object><Key>");
            body.push_str(&name);
            body.push_str("</Key></Object>");
        }
        body.push_str("</Delete>");
        let body = vec![Bytes::from(body)];
        let checksum = checksum(&body);
        let call = Call::new(Method::POST, format!("{}/?delete", self.base))
            .header(CHECKSUM, &checksum)
            .header("content-type", "application/xml")
            .body(body);
        let answer = async {
            let body = self.server.body(&call).await?;
            check_late_error(&body)?;
            xml::not_removed(&body)
        };
        let left = match answer.await {
            Ok(left) => left,
            Err(fault) => return keys.iter().map(|_| Err(fault.clone())).collect(),
        };
        let is_left =
            |key: &&&Key| left.iter().find(|(name, ..)| name.as_bytes() == key.as_bytes());
        keys.iter()
            .map(|key| match is_left(&key) {
                None => Ok(()),
                Some((_, code, message)) => Err(coded(MEANINGS, code, message)),
            })
            .collect()
    }
}

/// An object as it was found.
#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    pub bucket: &'a str,
    pub key: &'a Key,
    pub thing: &'a Thing,
}

impl Version<'_> {
    /// Makes it the source of a copy, as long as it is still this version.
    pub fn source_of(self, call: Call) -> Call {
        let source = format!("/{}/{}", self.bucket, in_path(self.key));
        let call = call.header("x-amz-copy-source", &source);
        if_tag(call, "x-amz-copy-source-if-match", self.thing)
    }
}

/// A request with what an answer says of an object, so that it stays so.
pub fn with_found(mut call: Call, found: &HeaderMap) -> Call {
    for (name, value) in found {
        let is_kept = DESCRIBED_BY.contains(&name.as_str())
            || name.as_str().starts_with(metadata::S3.header_prefix);
        if let Some(value) = value.to_str().ok().filter(|_| is_kept) {
            call = call.header(name.as_str(), value);
        }
    }
    call
}

/// The CRC-64/NVME of data, as headers have it.
pub fn checksum(data: &[Bytes]) -> String {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    for piece in data {
        digest.update(piece);
    }
    base64::engine::general_purpose::STANDARD.encode(digest.finalize().to_be_bytes())
}

/// What is said of an object beside metadata of users' own.
const DESCRIBED_BY: &[&str] = &[
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
    "x-amz-storage-class",
    "x-amz-website-redirect-location",
];

pub const CHECKSUM: &str = "x-amz-checksum-crc64nvme";

/// What is larger is copied in parts, many at a time, of at least this length, in bytes.
pub const PART_OF_COPY: u64 = 256 << 20;

/// The longest object that can be copied with one request, in bytes.
pub const MAX_COPY_LEN: u64 = 5 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_said_of_an_object_stays() {
        let names = ["content-type", "x-amz-storage-class", "x-amz-meta-other", "etag", "date"];
        let found = names.iter().map(|name| (name.parse().unwrap(), "x".parse().unwrap()));
        let found: HeaderMap = found.collect();
        let call = Call::new(Method::PUT, "http://h/".to_owned());
        let kept = with_found(call, &found).headers;
        let is_kept = names.map(|name| kept.contains_key(name));
        assert_eq!(is_kept, [true, true, true, false, false]);
    }
}
