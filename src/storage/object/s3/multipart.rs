//! Uploads in parts at S3, request by request. S3 counts parts from 1, and all others here from 0.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;

use super::Inner;
use super::answers::{check_late_error, check_result};
use super::requests::{CHECKSUM, PART_OF_COPY, Version, checksum};
use crate::storage::http::client::{Call, read_body};
use crate::storage::object::pages::Pages;
use crate::storage::object::store::{MAX_PAGE_LEN, check_sum, in_path, in_query};
use crate::storage::object::upload::{Limits, Objects, PartStore};
use crate::storage::object::xml;
use crate::storage::remote::{Answer, Class, Fault, Kept, Key, all};
use crate::storage::{Receipt, Token};

impl Inner {
    async fn copied_part(&self, call: Call) -> Answer<Receipt> {
        let body = self.server.body(&call).await?;
        check_late_error(&body)?;
        receipt(xml::text_of(&body, "CopyPartResult/ETag").as_deref())
    }

    /// Fills an upload with another object, ends it, and lets no data pass through here.
    pub async fn copy_in_parts(&self, from: Version<'_>, to: &Key, id: &str) -> Answer<()> {
        let (size, max_parts) = (from.thing.size, self.limits.max_parts);
        let len = size.div_ceil(max_parts.max(1)).max(PART_OF_COPY);
        let copies: Vec<_> = (0..size.div_ceil(len))
            .map(async |number| {
                let (first, end) = (number * len, size.min((number + 1) * len));
                let call = Call::new(Method::PUT, self.part_url(to, id, number));
                let range = format!("bytes={first}-{}", end - 1);
                let call = from.source_of(call).header("x-amz-copy-source-range", &range);
                Ok((number, self.copied_part(call).await?))
            })
            .collect();
        let copied = all(copies, self.properties.requests).await;
        self.end_parts(to, id, copied.into_iter().collect::<Answer<_>>()?, None).await
    }

    fn part_url(&self, key: &Key, id: &str, number: u64) -> String {
        format!("{}?partNumber={}&uploadId={}", self.url(key), number + 1, in_query(id))
    }

    /// The parts of an upload; `None` if there is no such upload.
    pub async fn parts(&self, key: &Key, id: &str) -> Answer<Option<Vec<xml::Part>>> {
        let (mut found, mut pages) = (Vec::new(), Pages::default());
        while !pages.is_over() {
            let marker = pages.marker().unwrap_or_default();
            let url = format!("{}?uploadId={}{marker}", self.url(key), in_query(id));
            let response = self.server.maybe(&Call::new(Method::GET, url)).await?;
            let Some(response) = response else { return Ok(None) };
            let (parts, next) = xml::parts(&read_body(response, MAX_PAGE_LEN).await?)?;
            let next = next.map(|next| format!("&part-number-marker={}", in_query(&next)));
            pages.turn(next, parts.iter().map(|part| part.number.to_le_bytes()))?;
            found.extend(parts);
        }
        Ok(Some(found))
    }

    /// The page of the uploads to keys that begin with `prefix` that is due.
    pub async fn uploads(&self, prefix: &str, pages: &mut Pages) -> Answer<Vec<xml::Upload>> {
        let (base, prefix) = (&self.base, in_query(prefix));
        let marker = pages.marker().unwrap_or_default();
        let url = format!("{base}/?uploads&encoding-type=url&prefix={prefix}{marker}");
        let body = self.server.body(&Call::new(Method::GET, url)).await?;
        let (uploads, next) = xml::uploads(&body)?;
        let next = next.map(|(key, id)| {
            let key = in_query(&String::from_utf8_lossy(&key));
            format!("&key-marker={key}&upload-id-marker={}", in_query(&id))
        });
        pages.turn(next, uploads.iter().map(|it| [&it.key, it.id.as_bytes()].concat()))?;
        Ok(uploads)
    }
}

impl PartStore for Inner {
    fn limits(&self) -> Limits {
        self.limits
    }

    async fn put_whole(&self, key: &Key, data: Vec<Bytes>, kept: &Kept) -> Answer<()> {
        let checksum = checksum(&data);
        let call = Call::new(Method::PUT, self.url(key)).header(CHECKSUM, &checksum).body(data);
        let response = self.server.done(&self.with_kept(call, kept)).await?;
        check_sum(response.headers(), CHECKSUM, &checksum)
    }

    async fn begin_parts(&self, key: &Key, kept: Option<&Kept>) -> Answer<Arc<str>> {
        let mut call = Call::new(Method::POST, format!("{}?uploads", self.url(key)))
            .header("x-amz-checksum-algorithm", "CRC64NVME")
            .header("x-amz-checksum-type", "FULL_OBJECT");
        if let Some(kept) = kept {
            call = self.with_kept(call, kept);
        }
        let body = self.server.body(&call).await?;
        let id = xml::text_of(&body, "InitiateMultipartUploadResult/UploadId");
        let id = id.filter(|id| !id.is_empty() && id.len() <= Token::MAX_LEN / 2);
        let id = id.ok_or_else(|| Fault::new(Class::Violation, "the server gives no upload id"))?;
        Ok(id.into())
    }

    async fn write_part(
        &self,
        key: &Key,
        id: &str,
        number: u64,
        data: Vec<Bytes>,
    ) -> Answer<Receipt> {
        let checksum = checksum(&data);
        let call = Call::new(Method::PUT, self.part_url(key, id, number));
        let call = call.header(CHECKSUM, &checksum).body(data);
        let response = self.server.done(&call).await?;
        check_sum(response.headers(), CHECKSUM, &checksum)?;
        let tag = response.headers().get(http::header::ETAG).and_then(|it| it.to_str().ok());
        receipt(tag)
    }

    async fn copy_part(&self, key: &Key, id: &str, number: u64, from: &Key) -> Answer<Receipt> {
        let source = format!("/{}/{}", self.config.bucket, in_path(from));
        let call = Call::new(Method::PUT, self.part_url(key, id, number));
        self.copied_part(call.header("x-amz-copy-source", &source)).await
    }

    async fn end_parts(
        &self,
        key: &Key,
        id: &str,
        parts: Vec<(u64, Receipt)>,
        _: Option<&Kept>,
    ) -> Answer<()> {
        // What is kept was said when it was begun.
        let mut body = String::from("<CompleteMultipartUpload>");
        for (number, receipt) in parts {
            let tag = String::from_utf8_lossy(receipt.as_bytes());
            let tag = quick_xml::escape::escape(&*tag);
            body.push_str("<Part><PartNumber>");
            body.push_str(&(number + 1).to_string());
            body.push_str("</PartNumber><ETag>");
            body.push_str(&tag);
            body.push_str("</ETag></Part>");
        }
        body.push_str("</CompleteMultipartUpload>");
        let url = format!("{}?uploadId={}", self.url(key), in_query(id));
        let call = Call::new(Method::POST, url).body(vec![body.into()]);
        check_result(&self.server.body(&call).await?, "CompleteMultipartUploadResult")
    }

    async fn parts_there(&self, key: &Key, id: &str) -> Answer<Option<HashMap<u64, String>>> {
        let Some(parts) = self.parts(key, id).await? else { return Ok(None) };
        let numbered = |part: xml::Part| Some((part.number.checked_sub(1)?, part.tag));
        Ok(Some(parts.into_iter().filter_map(numbered).collect()))
    }

    async fn abort_parts(&self, key: &Key, id: &str) -> Answer<()> {
        let url = format!("{}?uploadId={}", self.url(key), in_query(id));
        self.server.maybe(&Call::new(Method::DELETE, url)).await.map(drop)
    }

    async fn objects(&self, prefix: &str, next: Option<&str>) -> Answer<Objects> {
        let page = self.page(prefix, "", next).await?;
        Ok((page.objects.into_iter().map(|it| (it.key, it.size)).collect(), page.next))
    }

    async fn begun(&self, prefix: &str) -> Answer<Vec<(Vec<u8>, String)>> {
        let (mut found, mut pages) = (Vec::new(), Pages::default());
        while !pages.is_over() {
            let uploads = self.uploads(prefix, &mut pages).await?;
            found.extend(uploads.into_iter().map(|it| (it.key, it.id)));
        }
        Ok(found)
    }

    async fn remove_all(&self, keys: Vec<Key>) -> Answer<()> {
        for group in keys.chunks(1000) {
            let removed = self.remove_group(&group.iter().collect::<Vec<_>>()).await;
            removed.into_iter().collect::<Answer<()>>()?;
        }
        Ok(())
    }
}

fn receipt(tag: Option<&str>) -> Answer<Receipt> {
    let receipt = tag.filter(|tag| !tag.is_empty()).and_then(|tag| Receipt::new(tag.as_bytes()));
    receipt.ok_or_else(|| Fault::new(Class::Violation, "the server gives no tag for a part"))
}
