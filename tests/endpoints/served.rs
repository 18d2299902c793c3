//! Places on real servers, which the tests start.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fastsync::protocol::manifest::{Name, Timestamp};
use fastsync::protocol::message::{Mode, Options};
use fastsync::storage::StorageError;
use fastsync::storage::http::{DavEndpoint, WebConfig};
use fastsync::storage::object::{
    AzureConfig, AzureEndpoint, AzureKeys, GcsConfig, GcsEndpoint, S3Config, S3Endpoint, S3Keys,
};
use fastsync::storage::remote::{
    Endpoint, Kept, Key, Listed, Properties, RemoteSink, RemoteSource, Thing, ThingKind,
};
use fastsync::storage::sftp::{Dial, SftpEndpoint, Wire};

use crate::servers::garage::{ACCESS_KEY, BUCKET, SECRET_KEY, garage};
use crate::servers::sshd::sftp_server;
use crate::servers::webserver::{CLOUD, USERS, Web, apache, nginx, sabredav};
use crate::servers::{self, emulators};
use crate::subject::{Files, Subject, WRITTEN, key};

/// A directory of this test's own at an endpoint.
pub struct Served<E> {
    endpoint: E,
    top: Key,
    tells_versions: bool,
    lists_hidden: bool,
    keeps_relative_links: bool,
    /// What the server keeps it in, if it is removed at the end.
    _directory: Option<tempfile::TempDir>,
}

/// A directory of a real OpenSSH server.
pub async fn sftp() -> Served<SftpEndpoint> {
    sftp_by(sftp_server().config()).await
}

/// A directory of `ProFTPD`.
pub async fn proftpd() -> Served<SftpEndpoint> {
    let served = sftp_by(servers::proftpd::proftpd().config()).await;
    Served { keeps_relative_links: false, ..served }
}

/// The same without any extension of the protocol.
pub async fn plain_proftpd() -> Served<SftpEndpoint> {
    let served = sftp_by(servers::proftpd::plain_proftpd().config()).await;
    Served { keeps_relative_links: false, ..served }
}

/// A directory of the server that ssh reaches with this configuration, with two connections to it.
async fn sftp_by(config: PathBuf) -> Served<SftpEndpoint> {
    let dial: Dial = Arc::new(move |_| {
        let config = config.clone();
        Box::pin(async move {
            let mut command = tokio::process::Command::new("ssh");
            command.arg("-F").arg(config).args(["-s", "testhost", "sftp"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
            let mut child = command.spawn()?;
            let (input, output) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
            let (input, output) = (Box::new(input), Box::new(output));
            Ok(Wire { input, output, keeper: Box::new(child) })
        })
    });
    let prefix = "sftp://testhost".to_owned();
    let endpoint = SftpEndpoint::connect(dial, prefix, 2, false).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let top = absolute(directory.path());
    let served = Served::new(endpoint, top);
    Served { tells_versions: false, _directory: Some(directory), ..served }
}

/// A prefix in the bucket of a real S3 server.
pub async fn s3() -> Served<S3Endpoint> {
    s3_with(None).await
}

/// The same, where an object may have two parts only.
pub async fn s3_of_few_parts() -> Served<S3Endpoint> {
    s3_with(Some(2)).await
}

async fn s3_with(max_parts: Option<u64>) -> Served<S3Endpoint> {
    let config = S3Config {
        bucket: BUCKET.to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{}", garage().port)),
        region: Some("garage".to_owned()),
        keys: Some(S3Keys { access: ACCESS_KEY.to_owned(), secret: SECRET_KEY.to_owned() }),
        max_parts,
        ..S3Config::default()
    };
    let endpoint = S3Endpoint::connect(config).await.unwrap();
    Served::new(endpoint, prefix())
}

/// A directory of nginx, which takes whole files.
pub async fn nginx_dav() -> Served<DavEndpoint> {
    Served { tells_versions: false, lists_hidden: false, ..dav(nginx(), b"dav/").await }
}

/// A directory of Apache, which takes files part by part.
pub async fn apache_dav() -> Served<DavEndpoint> {
    dav(apache(), b"").await
}

/// A directory of SabreDAV, which takes files part by part in its own way.
pub async fn sabredav_dav() -> Served<DavEndpoint> {
    dav(sabredav(), b"").await
}

/// A directory of what takes files by chunks, as Nextcloud does, but of any length.
pub async fn cloud_dav() -> Served<DavEndpoint> {
    dav(sabredav(), format!("{CLOUD}/{}/", USERS[1]).as_bytes()).await
}

async fn dav(server: &Web, below: &[u8]) -> Served<DavEndpoint> {
    let top = key(&[below, prefix().as_bytes()].concat());
    let config = WebConfig {
        host: "127.0.0.1".to_owned(),
        port: Some(server.port),
        prefix: server.at("webdav"),
        is_destination: true,
        least_chunk: Some(1),
        ..WebConfig::default()
    };
    let endpoint = DavEndpoint::connect(config, Some(&top)).await.unwrap();
    endpoint.make_directory(&top).await.unwrap();
    Served::new(endpoint, top)
}

/// A prefix in the bucket of an emulator of Google Cloud Storage.
pub async fn gcs() -> Served<GcsEndpoint> {
    let config = GcsConfig {
        bucket: emulators::BUCKET.to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{}", emulators::gcs().port)),
        // It takes one connection at a time, and 5 wait.
        requests: Some(4),
        ..GcsConfig::default()
    };
    let endpoint = GcsEndpoint::connect(config).await.unwrap();
    // It gives whatever version there is.
    Served { tells_versions: false, ..Served::new(endpoint, prefix()) }
}

/// A prefix in the container of an emulator of Azure Blob Storage.
pub async fn azure() -> Served<AzureEndpoint> {
    azure_with(None).await
}

/// The same, where a blob may have two blocks only.
pub async fn azure_of_few_blocks() -> Served<AzureEndpoint> {
    azure_with(Some(2)).await
}

async fn azure_with(max_blocks: Option<u64>) -> Served<AzureEndpoint> {
    let (port, account) = (emulators::azure().port, emulators::ACCOUNT);
    let config = AzureConfig {
        container: emulators::BUCKET.to_owned(),
        account: Some(account.to_owned()),
        endpoint: Some(format!("http://127.0.0.1:{port}/{account}")),
        keys: Some(AzureKeys { key: Some(emulators::KEY.to_owned()), sas: None }),
        max_blocks,
        ..AzureConfig::default()
    };
    let endpoint = AzureEndpoint::connect(config).await.unwrap();
    Served::new(endpoint, prefix())
}

/// A key that no other test has.
fn prefix() -> Key {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    key(format!("suite-{}-{number}", std::process::id()).as_bytes())
}

fn absolute(path: &Path) -> Key {
    key(path.to_str().unwrap().trim_start_matches('/').as_bytes())
}

impl<E: Endpoint> Served<E> {
    fn new(endpoint: E, top: Key) -> Self {
        Self {
            endpoint,
            top,
            tells_versions: true,
            lists_hidden: true,
            keeps_relative_links: true,
            _directory: None,
        }
    }

    fn key(&self, path: &[u8]) -> Key {
        self.top.join(path).unwrap()
    }

    async fn things(&self) -> Vec<(Key, Thing)> {
        let (sender, found) = flume::unbounded();
        match self.endpoint.list(&self.top, true, sender).await {
            Ok(()) => {}
            Err(fault) if fault.class == fastsync::storage::remote::Class::Missing => {}
            Err(fault) => panic!("{fault}"),
        }
        let things = found.into_iter().flatten().map(|listed| match listed {
            Listed::Thing(key, thing) => (key, thing),
            Listed::Unusable { shown, reason } => panic!("{shown:?}: {reason}"),
            Listed::Unknown(key, fault) => panic!("{key:?}: {fault}"),
        });
        things.collect()
    }

    async fn content(&self, key: &Key) -> Vec<u8> {
        let thing = self.endpoint.stat(key).await.unwrap().unwrap();
        let mut data = vec![0; usize::try_from(thing.size).unwrap()];
        if thing.kind == ThingKind::File && !data.is_empty() {
            let open = self.endpoint.open(key, &thing).await.unwrap();
            self.endpoint.read(&open, 0, &mut data).await.unwrap();
        }
        if thing.kind == ThingKind::File { data } else { Vec::new() }
    }

    fn below(&self, key: &Key) -> Vec<u8> {
        key.below(&self.top).unwrap().to_vec()
    }
}

impl<E: Endpoint> Subject for Served<E> {
    type Source = RemoteSource<E>;
    type Sink = RemoteSink<E>;

    fn properties(&self) -> Properties {
        *self.endpoint.properties()
    }

    async fn source(&self, at: &str, options: &Options) -> Result<Self::Source, StorageError> {
        let sources = vec![(self.key(at.as_bytes()), true)];
        RemoteSource::open(self.endpoint.clone(), sources, options, None).await
    }

    async fn sink(&self, at: &str, options: &Options) -> Result<Self::Sink, StorageError> {
        let at = self.key(at.as_bytes());
        RemoteSink::open(self.endpoint.clone(), at, true, false, options).await
    }

    fn beside(sink: Self::Sink, source: &Self::Source) -> Self::Sink {
        sink.with_source(source)
    }

    async fn write(&self, path: &[u8], data: &[u8]) {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let mut at = self.top.clone();
        for name in &names[..names.len() - 1] {
            at = at.child(&Name::new(name).unwrap()).unwrap();
            self.endpoint.make_directory(&at).await.unwrap();
        }
        let (mtime, mode) = (Timestamp::new(WRITTEN, 0), Some(Mode::from_raw(0o644)));
        let kept = Kept { mtime, mode, root: None };
        self.endpoint.put(&self.key(path), data.to_vec().into(), &kept).await.unwrap();
    }

    async fn remove(&self, path: &[u8]) {
        for answer in self.endpoint.remove(vec![(self.key(path), ThingKind::File)]).await {
            answer.unwrap();
        }
    }

    async fn files(&self) -> Files {
        let mut files = Files::new();
        for (key, thing) in self.things().await {
            if thing.kind != ThingKind::Directory {
                files.insert(self.below(&key), self.content(&key).await);
            }
        }
        files
    }

    async fn directories(&self) -> Vec<Vec<u8>> {
        let things = self.things().await.into_iter();
        let directories = things.filter(|(_, thing)| thing.kind == ThingKind::Directory);
        let mut found: Vec<_> = directories.map(|(key, _)| self.below(&key)).collect();
        found.sort();
        found
    }

    fn tells_versions(&self) -> bool {
        self.tells_versions
    }

    fn reads_old_versions(&self) -> bool {
        true
    }

    fn refuses(&self, name: &[u8]) -> bool {
        self.endpoint.check(&key(name)).is_err()
    }

    fn lists_hidden(&self) -> bool {
        self.lists_hidden
    }

    fn keeps_relative_links(&self) -> bool {
        self.keeps_relative_links
    }

    fn lose_part(&self, _: &str, _: u64) -> bool {
        false
    }
}
