//! Any of the endpoints: which one it is turns out when the program runs.
//!
//! The engine knows this one only, so that it is compiled once for all of them.

use bytes::Bytes;

use super::http::{DavEndpoint, WebEndpoint};
use super::object::{AzureEndpoint, GcsEndpoint, S3Endpoint};
use super::remote::{
    Answer, Class, Endpoint, Fault, Kept, Key, Listed, Properties, Thing, ThingKind, Unfinished,
};
use super::sftp::SftpEndpoint;
use super::{Left, Receipt, Token};
use crate::protocol::chunk::{ByteRange, ChunkData, ChunkSize};
use crate::protocol::message::Changes;

/// Makes enums of the endpoints, of their open files and of their uploads, and hands every operation
/// to whichever it is.
macro_rules! any_endpoint {
    ($($which:ident($endpoint:ty)),* $(,)?) => {
        /// An endpoint of some sort.
        #[derive(Clone, Debug)]
        pub enum AnyEndpoint {
            $($which($endpoint),)*
        }

        /// A file of an [`AnyEndpoint`] that is being read.
        #[derive(Clone, Debug)]
        pub enum AnyOpen {
            $($which(<$endpoint as Endpoint>::Open),)*
        }

        /// A file of an [`AnyEndpoint`] that is coming.
        #[derive(Clone, Debug)]
        pub enum AnyUpload {
            $($which(<$endpoint as Endpoint>::Upload),)*
        }

        $(
            impl From<$endpoint> for AnyEndpoint {
                fn from(endpoint: $endpoint) -> Self {
                    Self::$which(endpoint)
                }
            }
        )*

        impl Endpoint for AnyEndpoint {
            type Open = AnyOpen;
            type Upload = AnyUpload;

            fn properties(&self) -> &Properties {
                match self {
                    $(Self::$which(it) => it.properties(),)*
                }
            }

            fn shown(&self, key: &Key) -> Vec<u8> {
                match self {
                    $(Self::$which(it) => it.shown(key),)*
                }
            }

            fn check(&self, key: &Key) -> Answer<()> {
                match self {
                    $(Self::$which(it) => it.check(key),)*
                }
            }

            fn streams(&self, channels: u16) -> u16 {
                match self {
                    $(Self::$which(it) => it.streams(channels),)*
                }
            }

            async fn resolve(&self, path: &[u8], is_directory: bool) -> Answer<Key> {
                match self {
                    $(Self::$which(it) => it.resolve(path, is_directory).await,)*
                }
            }

            async fn stat(&self, key: &Key) -> Answer<Option<Thing>> {
                match self {
                    $(Self::$which(it) => it.stat(key).await,)*
                }
            }

            async fn list(
                &self,
                directory: &Key,
                deep: bool,
                found: flume::Sender<Vec<Listed>>,
            ) -> Answer<()> {
                match self {
                    $(Self::$which(it) => it.list(directory, deep, found).await,)*
                }
            }

            async fn open(&self, key: &Key, thing: &Thing) -> Answer<AnyOpen> {
                match self {
                    $(Self::$which(it) => it.open(key, thing).await.map(AnyOpen::$which),)*
                }
            }

            async fn read(&self, file: &AnyOpen, offset: u64, into: &mut [u8]) -> Answer<()> {
                match (self, file) {
                    $((Self::$which(it), AnyOpen::$which(file)) => it.read(file, offset, into).await,)*
                    #[allow(unreachable_patterns)]
                    _ => Err(mixed_up()),
                }
            }

            async fn confirm(&self, file: &AnyOpen) -> Answer<bool> {
                match (self, file) {
                    $((Self::$which(it), AnyOpen::$which(file)) => it.confirm(file).await,)*
                    #[allow(unreachable_patterns)]
                    _ => Err(mixed_up()),
                }
            }

            async fn put(&self, key: &Key, data: Bytes, kept: &Kept) -> Answer<()> {
                match self {
                    $(Self::$which(it) => it.put(key, data, kept).await,)*
                }
            }

            async fn begin(
                &self,
                key: &Key,
                size: u64,
                parts: u64,
                kept: &Kept,
            ) -> Answer<AnyUpload> {
                match self {
                    $(Self::$which(it) => {
                        it.begin(key, size, parts, kept).await.map(AnyUpload::$which)
                    })*
                }
            }

            fn token(&self, upload: &AnyUpload) -> Token {
                match (self, upload) {
                    $((Self::$which(it), AnyUpload::$which(upload)) => it.token(upload),)*
                    #[allow(unreachable_patterns)]
                    _ => Token::default(),
                }
            }

            async fn resume(
                &self,
                key: &Key,
                size: u64,
                left: &Left,
            ) -> Answer<Option<(AnyUpload, Vec<u64>)>> {
                match self {
                    $(Self::$which(it) => {
                        let resumed = it.resume(key, size, left).await?;
                        Ok(resumed.map(|(upload, lost)| (AnyUpload::$which(upload), lost)))
                    })*
                }
            }

            async fn write(
                &self,
                upload: &AnyUpload,
                number: u64,
                range: ByteRange,
                data: ChunkData,
            ) -> Answer<Receipt> {
                match (self, upload) {
                    $((Self::$which(it), AnyUpload::$which(upload)) => {
                        it.write(upload, number, range, data).await
                    })*
                    #[allow(unreachable_patterns)]
                    _ => Err(mixed_up()),
                }
            }

            async fn reread(&self, upload: &AnyUpload, offset: u64, into: &mut [u8]) -> Answer<()> {
                match (self, upload) {
                    $((Self::$which(it), AnyUpload::$which(upload)) => {
                        it.reread(upload, offset, into).await
                    })*
                    #[allow(unreachable_patterns)]
                    _ => Err(mixed_up()),
                }
            }

            async fn holds(
                &self,
                upload: &AnyUpload,
                chunk_size: ChunkSize,
                parts: &[(ByteRange, Receipt)],
            ) -> Vec<Option<bool>> {
                match (self, upload) {
                    $((Self::$which(it), AnyUpload::$which(upload)) => {
                        it.holds(upload, chunk_size, parts).await
                    })*
                    #[allow(unreachable_patterns)]
                    _ => vec![None; parts.len()],
                }
            }

            async fn sync(&self, upload: &AnyUpload) -> Answer<()> {
                match (self, upload) {
                    $((Self::$which(it), AnyUpload::$which(upload)) => it.sync(upload).await,)*
                    #[allow(unreachable_patterns)]
                    _ => Err(mixed_up()),
                }
            }

            async fn finish(
                &self,
                upload: AnyUpload,
                key: &Key,
                receipts: Vec<(u64, Receipt)>,
                kept: &Kept,
            ) -> Answer<()> {
                match (self, upload) {
                    $((Self::$which(it), AnyUpload::$which(upload)) => {
                        it.finish(upload, key, receipts, kept).await
                    })*
                    #[allow(unreachable_patterns)]
                    _ => Err(mixed_up()),
                }
            }

            async fn abandon(&self, key: &Key, token: &Token) -> Answer<()> {
                match self {
                    $(Self::$which(it) => it.abandon(key, token).await,)*
                }
            }

            async fn give_up(&self) {
                match self {
                    $(Self::$which(it) => it.give_up().await,)*
                }
            }

            async fn unfinished(
                &self,
                directory: &Key,
                found: flume::Sender<Vec<Unfinished>>,
            ) -> Answer<()> {
                match self {
                    $(Self::$which(it) => it.unfinished(directory, found).await,)*
                }
            }

            async fn make_directory(&self, key: &Key) -> Answer<()> {
                match self {
                    $(Self::$which(it) => it.make_directory(key).await,)*
                }
            }

            async fn make_symlink(&self, key: &Key, target: &[u8], kept: &Kept) -> Answer<()> {
                match self {
                    $(Self::$which(it) => it.make_symlink(key, target, kept).await,)*
                }
            }

            async fn set(
                &self,
                key: &Key,
                thing: &Thing,
                kept: &Kept,
                changes: Changes,
            ) -> Answer<()> {
                match self {
                    $(Self::$which(it) => it.set(key, thing, kept, changes).await,)*
                }
            }

            async fn remove(&self, things: Vec<(Key, ThingKind)>) -> Vec<Answer<()>> {
                match self {
                    $(Self::$which(it) => it.remove(things).await,)*
                }
            }

            fn copies_from(&self, source: &Self) -> bool {
                match (self, source) {
                    $((Self::$which(it), Self::$which(source)) => it.copies_from(source),)*
                    #[allow(unreachable_patterns)]
                    _ => false,
                }
            }

            async fn copy(
                &self,
                source: &Self,
                from: &Key,
                thing: &Thing,
                to: &Key,
                kept: &Kept,
            ) -> Answer<()> {
                match (self, source) {
                    $((Self::$which(it), Self::$which(source)) => {
                        it.copy(source, from, thing, to, kept).await
                    })*
                    #[allow(unreachable_patterns)]
                    _ => Err(mixed_up()),
                }
            }
        }
    };
}

any_endpoint! {
    Sftp(SftpEndpoint),
    S3(S3Endpoint),
    Gcs(GcsEndpoint),
    Azure(AzureEndpoint),
    Web(WebEndpoint),
    Dav(DavEndpoint),
}

/// A file of one endpoint was handed to another: no caller can do that, and no data would be wrong.
fn mixed_up() -> Fault {
    Fault::new(Class::Other, "internal error of fastsync: the file is of another endpoint")
}
