//! Uploads in blocks at Azure, request by request.
//!
//! Blocks become a blob when their list is put in its place. Those that are in no list belong to a
//! blob's name, not to an upload, and vanish when anybody writes a blob of that name, or after a week. So
//! the identifiers of an upload's blocks begin with what only this upload has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{Method, StatusCode};

use super::Inner;
use super::requests::{CHECKSUM, call, checksum};
use crate::storage::Receipt;
use crate::storage::http::client::{Call, read_body};
use crate::storage::object::pages::Pages;
use crate::storage::object::store::{MAX_PAGE_LEN, begun, check_sum, in_query, token, upload_id};
use crate::storage::object::upload::{Limits, Objects, PartStore};
use crate::storage::object::xml;
use crate::storage::remote::{Answer, Kept, Key, Unfinished, all};

impl Inner {
    /// Blocks that are in no list yet, by their identifiers, and their sizes.
    pub async fn uncommitted(&self, key: &Key) -> Answer<HashMap<String, u64>> {
        let url = format!("{}?comp=blocklist&blocklisttype=uncommitted", self.url(key));
        let response = self.server.maybe(&call(Method::GET, url)).await?;
        let Some(response) = response else { return Ok(HashMap::new()) };
        xml::uncommitted_blocks(&read_body(response, MAX_PAGE_LEN).await?)
    }

    /// The names of which there are blocks without a list, and no blob.
    pub async fn names_without_blob(&self, prefix: &str) -> Answer<HashSet<String>> {
        // They look like empty blobs, and are not listed unless asked for.
        let there = self.empty(prefix, "").await?;
        let mut names = self.empty(prefix, "&include=uncommittedblobs").await?;
        names.retain(|name| !there.contains(name) && name.starts_with(prefix));
        Ok(names)
    }

    /// The names of all empty blobs, or of those too that are blocks without a list.
    async fn empty(&self, prefix: &str, query: &str) -> Answer<HashSet<String>> {
        let (mut names, mut pages) = (HashSet::new(), Pages::default());
        while !pages.is_over() {
            let page = self.page(prefix, query, pages.marker()).await?;
            pages.turn(page.next, page.all.iter().map(|blob| &blob.name))?;
            let empty = page.all.into_iter().filter(|blob| blob.size == 0);
            names.extend(empty.map(|blob| blob.name));
        }
        Ok(names)
    }

    /// What uploads have left under a name.
    pub async fn left(&self, name: &str) -> Answer<Vec<Unfinished>> {
        let key = Key::new(name.as_bytes())?;
        let mut uploads: HashMap<String, u64> = HashMap::new();
        for (block, size) in self.uncommitted(&key).await? {
            if let Some(id) = upload_of(&block) {
                *uploads.entry(id).or_default() += size;
            }
        }
        let left = uploads.into_iter().map(|(id, size)| Unfinished {
            key: key.clone(),
            token: Some(token(0, Some(&id))),
            size,
            since: begun(&id),
        });
        Ok(left.collect())
    }

    /// A request that makes a blob of blocks. Those that were sent last are meant, and after an answer
    /// that was lost, those that are in the blob already.
    fn block_list(&self, key: &Key, id: &str, numbers: impl Iterator<Item = u64>) -> Call {
        let mut body = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for number in numbers {
            body.push_str("<Latest>");
            body.push_str(&block_id(id, number));
            body.push_str("</Latest>");
        }
        body.push_str("</BlockList>");
        let body = vec![Bytes::from(body)];
        let checksum = checksum(&body);
        let url = format!("{}?comp=blocklist", self.url(key));
        call(Method::PUT, url).header(CHECKSUM, &checksum).body(body)
    }

    fn block_url(&self, key: &Key, id: &str, number: u64) -> String {
        let block = in_query(&block_id(id, number));
        format!("{}?comp=block&blockid={block}", self.url(key))
    }
}

impl PartStore for Inner {
    fn limits(&self) -> Limits {
        self.limits
    }

    async fn put_whole(&self, key: &Key, data: Vec<Bytes>, kept: &Kept) -> Answer<()> {
        let checksum = checksum(&data);
        let call = call(Method::PUT, self.url(key))
            .header("x-ms-blob-type", "BlockBlob")
            .header(CHECKSUM, &checksum)
            .body(data);
        let response = self.server.done(&self.with_kept(call, kept)).await?;
        check_sum(response.headers(), CHECKSUM, &checksum)
    }

    async fn begin_parts(&self, _: &Key, _: Option<&Kept>) -> Answer<Arc<str>> {
        Ok(upload_id().into())
    }

    async fn write_part(
        &self,
        key: &Key,
        id: &str,
        number: u64,
        data: Vec<Bytes>,
    ) -> Answer<Receipt> {
        let checksum = checksum(&data);
        let call = call(Method::PUT, self.block_url(key, id, number));
        let response = self.server.done(&call.header(CHECKSUM, &checksum).body(data)).await?;
        check_sum(response.headers(), CHECKSUM, &checksum)?;
        // Its identifier says everything about a block.
        Ok(Receipt::default())
    }

    async fn copy_part(&self, key: &Key, id: &str, number: u64, from: &Key) -> Answer<Receipt> {
        let (source, authorization) = self.link(from).await?;
        let url = self.block_url(key, id, number);
        let mut call = call(Method::PUT, url).secret("x-ms-copy-source", &source);
        if let Some(token) = authorization.as_ref().and_then(|it| it.to_str().ok()) {
            call = call.secret("x-ms-copy-source-authorization", token);
        }
        self.server.done(&call).await.map(|_| Receipt::default())
    }

    async fn end_parts(
        &self,
        key: &Key,
        id: &str,
        parts: Vec<(u64, Receipt)>,
        kept: Option<&Kept>,
    ) -> Answer<()> {
        let mut call = self.block_list(key, id, parts.iter().map(|(number, _)| *number));
        if let Some(kept) = kept {
            call = self.with_kept(call, kept);
        }
        self.server.done(&call).await.map(drop)
    }

    async fn parts_there(&self, key: &Key, id: &str) -> Answer<Option<HashMap<u64, String>>> {
        let found = self.uncommitted(key).await?;
        let number = |block: &String| Some((number_of(block, id)?, String::new()));
        let there: HashMap<_, _> = found.keys().filter_map(number).collect();
        Ok(Some(there).filter(|there| !there.is_empty()))
    }

    async fn abort_parts(&self, key: &Key, id: &str) -> Answer<()> {
        let found = self.uncommitted(key).await?;
        // Blocks go all at once or not at all, and those of others are not ours to remove.
        if found.is_empty() || !found.keys().all(|block| is_block_of(block, id)) {
            return Ok(());
        }
        // A blob of no blocks makes them go, if there is none that it would replace. Where there is one,
        // the server forgets them by itself.
        let call = self.block_list(key, id, std::iter::empty()).header("if-none-match", "*");
        let response = self.server.client.send(&call).await?;
        match response.status() {
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => return Ok(()),
            status if status.is_success() => {}
            _ => return Err(self.server.refusal(response).await),
        }
        let tag = response.headers().get(http::header::ETAG).and_then(|it| it.to_str().ok());
        self.remove(key, tag).await
    }

    async fn objects(&self, prefix: &str, next: Option<&str>) -> Answer<Objects> {
        let page = self.page(prefix, "", next).await?;
        Ok((page.all.into_iter().map(|it| (it.name.into_bytes(), it.size)).collect(), page.next))
    }

    async fn begun(&self, prefix: &str) -> Answer<Vec<(Vec<u8>, String)>> {
        let names: Vec<String> = self.names_without_blob(prefix).await?.into_iter().collect();
        let looks = names.iter().map(async |name| {
            let blocks = self.uncommitted(&Key::new(name.as_bytes())?).await?;
            let ids: HashSet<String> = blocks.keys().filter_map(|it| upload_of(it)).collect();
            Ok(ids.into_iter().map(|id| (name.clone().into_bytes(), id)).collect::<Vec<_>>())
        });
        let found = all(looks.collect(), self.limits.requests).await;
        let found: Answer<Vec<Vec<_>>> = found.into_iter().collect();
        Ok(found?.concat())
    }

    async fn remove_all(&self, keys: Vec<Key>) -> Answer<()> {
        let removals = keys.iter().map(|key| self.remove(key, None)).collect();
        all(removals, self.limits.requests).await.into_iter().collect()
    }
}

/// A block's identifier: all of a blob's have the same length.
fn block_id(id: &str, number: u64) -> String {
    BASE64.encode(format!("{id}-{number:07}"))
}

fn is_block_of(block: &str, id: &str) -> bool {
    BASE64.decode(block).is_ok_and(|block| block.starts_with(id.as_bytes()))
}

/// The number of a block of an upload.
fn number_of(block: &str, id: &str) -> Option<u64> {
    let block = String::from_utf8(BASE64.decode(block).ok()?).ok()?;
    block.strip_prefix(id)?.strip_prefix('-')?.parse().ok()
}

/// The upload of ours that a block is of.
fn upload_of(block: &str) -> Option<String> {
    let block = String::from_utf8(BASE64.decode(block).ok()?).ok()?;
    let (id, _) = block.split_once('-').filter(|(id, _)| begun(id).is_some())?;
    Some(id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_an_upload_are_told_from_others() {
        let (one, other) = ("0123456789abcdef", "fedcba9876543210");
        assert_eq!(upload_of(&block_id(one, 3)).as_deref(), Some(one));
        assert_eq!(upload_of(&BASE64.encode("00000001")), None);
        let block = block_id(one, 49_999);
        assert!(is_block_of(&block, one) && !is_block_of(&block, other));
        assert!(!is_block_of("no base64", one));
        assert_eq!((number_of(&block, one), number_of(&block, other)), (Some(49_999), None));
        assert_eq!(block.len(), block_id(other, 0).len());
        assert!(block.len() <= 64);
    }
}
