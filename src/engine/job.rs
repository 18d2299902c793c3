//! What is to be done: everything that the user meant, with every default filled in.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::measure::Measurement;
use crate::protocol::chunk::ChunkSize;
use crate::protocol::message::{
    Delete, Durability, Listen, Options, Preserve, Resume, Select, SocketOptions, Update,
};
pub use crate::storage::http::Expected;

/// One transfer between this machine and one other, within it, or between two others.
///
/// ```
/// use fastsync::engine::job::{Job, Place, TransferConfig};
///
/// let job = Job::push(vec!["/data/run7".into()], Place::remote("dtn", "/scratch/"))
///     .with_config(TransferConfig::wan_optimized());
/// assert_eq!(job.config.streams, 8);
/// ```
#[derive(Clone, Debug)]
pub struct Job {
    pub direction: Direction,
    /// Only these paths are meant: below the sources, as they are called at the destination.
    pub paths: Option<Vec<Vec<u8>>>,
    /// How to reach the other end.
    pub launch: Launch,
    pub config: TransferConfig,
    pub stores: ObjectStores,
}

/// Which way the data goes.
#[derive(Clone, Debug)]
pub enum Direction {
    /// From this machine, or through it from an endpoint.
    Push { sources: Sources, destination: Place },
    /// To this machine, or through it to an endpoint. All sources are on the one host of `launch`.
    Pull { sources: Vec<Vec<u8>>, host: Option<Host>, destination: Site },
    /// From one host to another, while this machine only watches. They may be the same.
    Between { sources: Vec<Vec<u8>>, source_host: Host, host: Host, destination: Vec<u8> },
    /// In this process: on this machine, and between it and endpoints.
    Copy { sources: Sources, destination: Site },
    /// Nowhere: every entry is told, and nothing is received.
    Inventory {
        sources: Vec<Vec<u8>>,
        at: At,
        /// Tell the BLAKE3 root of each file too.
        hash: bool,
    },
    /// Nowhere: what is left of what was never finished is told, and removed if that is meant.
    Clean(Clean),
    /// Nowhere: what it would do between this machine and another is measured.
    Measure {
        host: Option<Host>,
        /// At the other end, for temporary files; relative paths begin at the home directory.
        directory: Vec<u8>,
        measurement: Measurement,
    },
}

/// What this process reads itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Sources {
    Local(Vec<PathBuf>),
    /// At one endpoint.
    Endpoint {
        store: Store,
        paths: Vec<Vec<u8>>,
    },
}

/// Where this process writes itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Site {
    Local(PathBuf),
    Endpoint { store: Store, path: Vec<u8> },
}

/// A place without an agent, which this process reaches by itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Store {
    /// An SFTP server, by ssh. Relative paths begin where it says.
    Sftp(Host),
    /// A bucket of what speaks S3.
    S3(String),
    /// A bucket of Google Cloud Storage.
    Gcs(String),
    /// A container of Azure Blob Storage.
    Azure(String),
    /// A web server.
    Web(WebServer),
}

/// A web server, as its URLs name it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WebServer {
    /// It is spoken to in WebDAV.
    pub dav: bool,
    /// By TLS.
    pub secure: bool,
    pub host: Host,
    /// What every URL ends with, behind a question mark.
    pub query: Option<String>,
}

impl Store {
    /// What its locations begin with, as a user writes them.
    pub fn prefix(&self) -> String {
        match self {
            Self::Sftp(host) => format!("sftp://{host}"),
            Self::S3(bucket) => format!("s3://{bucket}"),
            Self::Gcs(bucket) => format!("gs://{bucket}"),
            Self::Azure(container) => format!("az://{container}"),
            Self::Web(server) => {
                let scheme = match (server.dav, server.secure) {
                    (false, false) => "http",
                    (false, true) => "https",
                    (true, false) => "webdav",
                    (true, true) => "webdavs",
                };
                format!("{scheme}://{}", server.host)
            }
        }
    }
}

/// What is to be done about uploads and transfers that nobody came back for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Clean {
    /// Everything in and below this directory is meant; without one, the journals of this machine.
    pub site: Option<Site>,
    /// Only what was left alone for so long.
    pub older_than: Duration,
    pub remove: bool,
}

/// Where something is that is only looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum At {
    Here,
    Host(Host),
    Store(Store),
}

/// Where the other end of a push is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// This machine: the receiver is started here, and all else is the same.
    Local(PathBuf),
    Remote {
        host: Host,
        path: Vec<u8>,
    },
}

impl Place {
    /// A path on another host.
    pub fn remote(host: impl Into<String>, path: impl Into<Vec<u8>>) -> Self {
        Self::Remote { host: Host { name: host.into(), user: None, port: None }, path: path.into() }
    }
}

/// A host as ssh is told about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host {
    /// A name that ssh knows: an alias of its configuration, a DNS name or an address.
    pub name: String,
    pub user: Option<String>,
    pub port: Option<u16>,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.name.contains(':') {
            write!(f, "[{}]", self.name)?;
        } else {
            f.write_str(&self.name)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// How object stores and web servers are reached.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ObjectStores {
    /// The server's URL, whatever it speaks; if `None`, that of its own kind below, or its maker's.
    pub endpoint: Option<String>,
    pub s3_endpoint: Option<String>,
    pub gcs_endpoint: Option<String>,
    pub azure_endpoint: Option<String>,
    /// The storage account of Azure's; that of the environment if `None`.
    pub azure_account: Option<String>,
    pub region: Option<String>,
    /// A section of the user's configuration of Amazon's tools.
    pub profile: Option<String>,
    /// Without credentials.
    pub anonymous: bool,
    /// Buckets are part of the path and not of the host's name; as it is usual there if `None`.
    pub path_style: Option<bool>,
    pub storage_class: Option<String>,
    /// How many requests at a time; 256 at object stores and 32 at web servers if `None`.
    pub requests: Option<u16>,
    /// A file of headers that web servers are sent.
    pub header_file: Option<PathBuf>,
    /// What the only file of a web server has to amount to.
    pub expected: Expected,
}

/// How the agent is started.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    pub ssh: Ssh,
    /// Arguments passed to ssh as they are, such as `-F FILE`, `-J HOST`, `-o OPTION`.
    pub ssh_arguments: Vec<OsString>,
    /// The agent's binary on the other host; if `None`, `fastsync` from the search path or, if there is
    /// none and `bootstrap` allows it, one that is brought along.
    pub agent_path: Option<String>,
    pub bootstrap: Bootstrap,
    /// The program that is brought along; the running one if `None`.
    pub agent_binary: Option<PathBuf>,
    /// This program, to be started as the agent on this machine; the running one if `None`.
    pub local_program: Option<PathBuf>,
    /// How long a login may take until an SFTP server answers; ten minutes if `None`, as a person may
    /// have to type something.
    pub login_patience: Option<Duration>,
}

/// What makes ssh connections.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Ssh {
    /// `ssh` from the search path, or the built-in client if there is none.
    #[default]
    Auto,
    /// `ssh` from the search path.
    System,
    /// The client that is part of this program.
    Builtin,
    /// A program that takes ssh's arguments.
    Program(PathBuf),
}

impl Ssh {
    /// What `--ssh` calls it, unless it goes without saying.
    pub fn flag(&self) -> Option<&OsStr> {
        match self {
            Self::Auto => None,
            Self::System => Some(OsStr::new("system")),
            Self::Builtin => Some(OsStr::new("builtin")),
            Self::Program(path) => Some(path.as_os_str()),
        }
    }
}

/// Whether the agent's program is brought along where it is missing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Bootstrap {
    /// It is stored in a cache directory of the other host, for this run and later ones.
    #[default]
    Allowed,
    /// Nothing is stored there, and nothing that was stored is used.
    Forbidden,
}

/// How to transfer. [`Default`] is what the command line does without flags.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TransferConfig {
    /// How many data channels.
    pub streams: u16,
    pub chunk_size: ChunkSize,
    /// Files below this size, in bytes, travel in packs.
    pub pack_threshold: u32,
    /// Memory for chunks at each end, in bytes; room for four chunks more than there are streams if `None`.
    pub buffer_size: Option<u64>,
    pub encrypt: bool,
    pub resume: Resume,
    pub durability: Durability,
    pub dry_run: bool,
    pub preserve: Preserve,
    pub select: Select,
    pub update: Update,
    pub delete: Option<Delete>,
    pub remove_source_files: bool,
    /// On one machine: read, hash and verify, instead of letting the kernel copy.
    pub verify: bool,
    /// The listening port is in this range, both ends included, whichever host listens.
    pub port_range: Option<(u16, u16)>,
    pub sockets: SocketOptions,
    pub reach: Reach,
    /// How often a lost connection is made again without progress in between.
    pub retries: u32,
    /// Where this process keeps what it has to remember of transfers to endpoints; nothing is if `None`,
    /// and they cannot be resumed.
    pub state_directory: Option<PathBuf>,
    /// Where no agent can be started, go on by SFTP.
    pub fallback: bool,
    /// The first pause before that; it doubles each time.
    pub retry_pause: Duration,
}

/// Which way the data takes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reach {
    pub transport: Transport,
    /// The agent dials, and this end listens.
    pub reverse: bool,
    /// Names or addresses of the other host for data, in place of those that ssh knows.
    pub data_addresses: Vec<String>,
    /// Names or addresses of this host that the agent may dial, in place of those that the system knows.
    pub listen_addresses: Vec<String>,
    /// How many ssh connections carry data where nothing else does, the first included: at most as
    /// many as streams; 8 if `None`.
    pub ssh_connections: Option<u16>,
}

/// What data channels run over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Transport {
    /// Whatever works: TCP, QUIC, TCP dialled by the agent, ssh.
    #[default]
    Auto,
    Tcp,
    Quic,
    /// The ssh connection itself, and further ones.
    Ssh,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            streams: 8,
            chunk_size: ChunkSize::DEFAULT,
            pack_threshold: 256 << 10,
            buffer_size: None,
            encrypt: true,
            resume: Resume::Trust,
            durability: Durability::Batch,
            dry_run: false,
            preserve: Preserve::default(),
            select: Select::default(),
            update: Update::default(),
            delete: None,
            remove_source_files: false,
            verify: false,
            port_range: None,
            sockets: SocketOptions::default(),
            reach: Reach::default(),
            retries: 5,
            state_directory: None,
            fallback: true,
            retry_pause: Duration::from_secs(1),
        }
    }
}

impl TransferConfig {
    /// For fast local networks: 16 MiB chunks, 32 streams.
    pub fn lan_optimized() -> Self {
        Self { streams: 32, ..Self::with_chunk_log2(24) }
    }

    /// For long distances: 4 MiB chunks, 8 streams, socket buffers of 16 MiB.
    pub fn wan_optimized() -> Self {
        let buffer = Some(16 << 20);
        let sockets = SocketOptions {
            send_buffer: buffer,
            receive_buffer: buffer,
            ..SocketOptions::default()
        };
        Self { sockets, ..Self::with_chunk_log2(22) }
    }

    /// For many small files: files below 10 MiB travel in packs, 64 streams.
    pub fn small_files_optimized() -> Self {
        Self {
            streams: 64,
            pack_threshold: 10 << 20,
            buffer_size: Some(192 << 20),
            ..Self::default()
        }
    }

    /// For machines with little memory: 1 MiB chunks, 4 streams, 4 MiB of buffers.
    pub fn low_memory() -> Self {
        Self { streams: 4, buffer_size: Some(4 << 20), ..Self::with_chunk_log2(20) }
    }

    /// For dedicated transfer nodes: 32 MiB chunks, 64 streams, 256 MiB of buffers.
    pub fn maximum_throughput() -> Self {
        Self { streams: 64, buffer_size: Some(256 << 20), ..Self::with_chunk_log2(25) }
    }

    fn with_chunk_log2(log2: u8) -> Self {
        let chunk_size = ChunkSize::from_log2(log2).unwrap_or(ChunkSize::DEFAULT);
        Self { chunk_size, ..Self::default() }
    }

    /// The part of it that both ends must agree on, as the wire carries it.
    pub fn to_options(&self, loopback: bool) -> Options {
        let mut options = Options {
            chunk_size: self.chunk_size,
            streams: self.streams.max(1),
            pack_threshold: self.pack_threshold,
            buffer_size: self
                .buffer_size
                .unwrap_or_else(|| (u64::from(self.streams) + 4) * self.chunk_size.bytes()),
            encrypt: self.encrypt,
            resume: self.resume,
            durability: self.durability,
            dry_run: self.dry_run,
            preserve: self.preserve.clone(),
            select: self.select.clone(),
            update: self.update.clone(),
            delete: self.delete,
            remove_source_files: self.remove_source_files,
            port_range: self.port_range,
            loopback,
            sockets: self.sockets.clone(),
            listen: self.reach.listen(loopback),
        };
        let enough = (u64::from(options.streams) + 4) * options.max_payload() as u64;
        options.buffer_size = self.buffer_size.unwrap_or(enough);
        options
    }
}

impl Reach {
    /// How the agent has to be ready for it.
    pub(super) fn listen(&self, is_local: bool) -> Listen {
        let is = |transport| self.transport == transport;
        let is_dialled = !self.reverse;
        Listen {
            tcp: is_dialled && (is(Transport::Auto) || is(Transport::Tcp)),
            quic: is_dialled && (is(Transport::Quic) || is(Transport::Auto) && !is_local),
            join: !is_local
                && self.ssh_connections != Some(1)
                && (is(Transport::Ssh) || is(Transport::Auto) && is_dialled),
        }
    }
}

impl Job {
    /// A push of local sources, with everything else at its default.
    pub fn push(sources: Vec<PathBuf>, destination: Place) -> Self {
        Self {
            direction: Direction::Push { sources: Sources::Local(sources), destination },
            paths: None,
            launch: Launch::default(),
            config: TransferConfig::default(),
            stores: ObjectStores::default(),
        }
    }

    /// A pull from a host, or from this machine if there is none.
    pub fn pull(host: Option<Host>, sources: Vec<Vec<u8>>, destination: PathBuf) -> Self {
        Self {
            direction: Direction::Pull { sources, host, destination: Site::Local(destination) },
            paths: None,
            launch: Launch::default(),
            config: TransferConfig::default(),
            stores: ObjectStores::default(),
        }
    }

    /// A copy within this machine.
    pub fn copy(sources: Vec<PathBuf>, destination: PathBuf) -> Self {
        Self {
            direction: Direction::Copy {
                sources: Sources::Local(sources),
                destination: Site::Local(destination),
            },
            paths: None,
            launch: Launch::default(),
            config: TransferConfig::default(),
            stores: ObjectStores::default(),
        }
    }

    /// The same job with another configuration.
    #[must_use]
    pub fn with_config(self, config: TransferConfig) -> Self {
        Self { config, ..self }
    }

    /// The same job with the agent started in another way.
    #[must_use]
    pub fn with_launch(self, launch: Launch) -> Self {
        Self { launch, ..self }
    }
}
