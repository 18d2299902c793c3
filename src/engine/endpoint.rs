//! Places without an agent, as this process reads and writes them: from a store's name to a source or
//! a sink.
//!
//! A session is the same whatever is at its ends. Its two halves run in this process, or one of them
//! at an agent, and the data passes through here.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncRead;

use super::client::{Failed, LAST_WORDS, absolute};
use super::control::{Inbox, Outbox};
use super::event::{Connection, Event};
use super::here::{self, Ready, Told};
use super::job::{
    At, Direction, Expected, Host, Job, ObjectStores, Place, Site, Sources, Store, WebServer,
};
use super::launch;
use super::plan::lock;
use super::receive::ReceiverEnd;
use super::send::{self, SenderEnd};
use super::session::{Channels, Observer, SessionError};
use super::{EngineError, inside};
use crate::protocol::chunk::ChunkSize;
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Durability, Failure, FailureCode, Keep, MAX_TIME_STEP, Options};
use crate::ssh::{Process, Started};
use crate::storage::http::{DavEndpoint, Login, WebConfig, WebEndpoint};
use crate::storage::local::{LocalSource, StateDir};
use crate::storage::object::{
    AzureConfig, AzureEndpoint, GcsConfig, GcsEndpoint, S3Config, S3Endpoint,
};
use crate::storage::remote::{Class, Endpoint, Fault, Key, RemoteSink, RemoteSource};
use crate::storage::sftp::{Dial, SftpEndpoint, Which, Wire};
use crate::storage::{AnyEndpoint, Operation, Source as _, StorageError};
use crate::transport::{FrameReceiver, FrameSender};

/// What this process reads.
#[derive(Debug)]
pub enum AnySource {
    Local(LocalSource),
    Remote(RemoteSource<AnyEndpoint>),
}

/// Where this process writes.
#[derive(Clone, Debug)]
pub enum AnyDestination {
    Local(PathBuf),
    Remote(Destination),
}

/// A place at an endpoint.
#[derive(Clone, Debug)]
pub struct Destination {
    endpoint: AnyEndpoint,
    key: Key,
    /// It was written as a directory.
    is_directory: bool,
    /// Where this end remembers what it has begun.
    state: Option<PathBuf>,
}

impl AnySource {
    /// Opens what is to be read.
    pub async fn open(
        sources: &Sources,
        options: &Options,
        job: &Job,
        observer: &Observer,
    ) -> Result<Self, EngineError> {
        match sources {
            Sources::Local(paths) => LocalSource::open(paths, options, job.paths.clone())
                .map(Self::Local)
                .map_err(EngineError::Source),
            Sources::Endpoint { store, paths } => {
                let endpoint = connect(store, None, job, observer).await?;
                let mut keys = Vec::with_capacity(paths.len());
                for path in paths {
                    let is_contents = means_contents(path);
                    let resolved = endpoint.resolve(path, is_contents).await;
                    keys.push((resolved.map_err(at_store(store, path))?, is_contents));
                }
                let source = RemoteSource::open(endpoint, keys, options, job.paths.clone()).await;
                let source = source.map_err(explain)?;
                if job.stores.expected != Expected::default() && !source.is_single_file() {
                    let text = "--expect-blake3 and --expect-sha256 are for one file";
                    return Err(EngineError::Usage(text.to_owned()));
                }
                Ok(Self::Remote(source))
            }
        }
    }

    /// Says how finely the source tells times, and leaves those of directories alone where it tells none.
    pub fn fit(&self, options: &mut Options) {
        let Self::Remote(from) = self else { return };
        let keeps = from.endpoint().properties().keeps;
        // Who keeps none has its own only, which HTTP tells in whole seconds.
        let step = keeps.times.unwrap_or(Duration::from_secs(1));
        if step > Duration::from_nanos(1) {
            options.update.time_step = u32::try_from(step.as_nanos()).unwrap_or(MAX_TIME_STEP);
        }
        options.preserve.directory_times &= keeps.directory_times;
    }

    /// Sends all of it, to the very end of the session.
    pub async fn send<R: AsyncRead + Unpin + Send, C: FrameSender>(
        &self,
        inbox: &mut Inbox<R>,
        outbox: Outbox,
        channels: Channels<C>,
        options: Options,
        max_open_entries: u32,
        observer: Observer,
    ) -> Result<SenderEnd, SessionError> {
        match self {
            Self::Local(source) => {
                let source = source.clone();
                let sending =
                    send::run(source, inbox, outbox, channels, options, max_open_entries, observer);
                Box::pin(sending).await
            }
            Self::Remote(source) => {
                let source = source.clone();
                let sending =
                    send::run(source, inbox, outbox, channels, options, max_open_entries, observer);
                Box::pin(sending).await
            }
        }
    }
}

impl AnyDestination {
    /// Connects to where it is to be written.
    pub async fn open(site: &Site, job: &Job, observer: &Observer) -> Result<Self, EngineError> {
        match site {
            Site::Local(path) => Ok(Self::Local(path.clone())),
            Site::Endpoint { store, path } => {
                let endpoint = connect(store, Some(path), job, observer).await?;
                let is_directory = means_contents(path);
                let key = endpoint.resolve(path, is_directory).await;
                let key = key.map_err(at_store(store, path))?;
                let state = job.config.state_directory.clone();
                Ok(Self::Remote(Destination { endpoint, key, is_directory, state }))
            }
        }
    }

    /// What is written in its order comes over one channel, as it was read.
    pub fn fit(&self, options: &mut Options) {
        if let Self::Remote(to) = self
            && to.endpoint.properties().parts.in_order
        {
            options.streams = 1;
        }
    }

    /// Receives there, to the very end of the session. Files of `near` are copied by their endpoint, if
    /// it is this one and can do that.
    #[expect(clippy::too_many_arguments, reason = "all that a session consists of")]
    pub async fn receive<R: AsyncRead + Unpin + Send, C: FrameReceiver>(
        self,
        job: [u8; 16],
        inbox: &mut Inbox<R>,
        outbox: Outbox,
        channels: Channels<C>,
        options: Options,
        observer: Observer,
        near: Option<RemoteSource<AnyEndpoint>>,
    ) -> Result<ReceiverEnd, SessionError> {
        match self {
            Self::Local(path) => {
                let path = path.as_os_str().as_bytes();
                let receiving =
                    here::receive_into(path, job, inbox, outbox, channels, options, observer, None);
                Box::pin(receiving).await
            }
            Self::Remote(destination) => {
                let receiving =
                    receive_at(destination, job, inbox, outbox, channels, options, observer, near);
                Box::pin(receiving).await
            }
        }
    }
}

/// Receives at an endpoint.
#[expect(clippy::too_many_arguments, reason = "all that a session consists of")]
async fn receive_at<R: AsyncRead + Unpin + Send, C: FrameReceiver>(
    destination: Destination,
    job: [u8; 16],
    inbox: &mut Inbox<R>,
    outbox: Outbox,
    channels: Channels<C>,
    options: Options,
    observer: Observer,
    near: Option<RemoteSource<AnyEndpoint>>,
) -> Result<ReceiverEnd, SessionError> {
    let Destination { endpoint, key, is_directory, state } = destination;
    let Told { single_file, root, .. } = here::sources(inbox).await?;
    let sink = RemoteSink::open(endpoint, key, is_directory, single_file, &options).await;
    let mut sink = sink.map_err(here::startup)?;
    if let Some(near) = near {
        sink = sink.with_source(&near);
    }
    here::keep_root(&sink, root, &options, &outbox, &observer)?;
    let state = match state.filter(|_| !options.dry_run) {
        Some(base) => Some(here::open_state(StateDir::of_client(base, job), inbox).await?),
        None => None,
    };
    // Nothing there depends on when this host was booted (JRN-12).
    let ready = Ready { sink, state, boot: [0; 16] };
    here::receive(ready, job, inbox, outbox, channels, options, observer).await
}

/// Finds an endpoint, and the key of a directory there.
pub async fn open(
    store: &Store,
    path: &[u8],
    job: &Job,
    observer: &Observer,
) -> Result<(AnyEndpoint, Key), EngineError> {
    let endpoint = connect(store, None, job, observer).await?;
    let key = endpoint.resolve(path, true).await.map_err(at_store(store, path))?;
    Ok((endpoint, key))
}

/// Finds an endpoint, with all that the user said about it. `destination` is where something is to be
/// written there, if it is.
async fn connect(
    store: &Store,
    destination: Option<&[u8]>,
    job: &Job,
    observer: &Observer,
) -> Result<AnyEndpoint, EngineError> {
    match store {
        Store::Sftp(host) => sftp(host, job, observer).await.map(Into::into),
        Store::S3(bucket) => {
            let endpoint = S3Endpoint::connect(s3(bucket, &job.stores)).await;
            endpoint.map(Into::into).map_err(at_store(store, b""))
        }
        Store::Gcs(bucket) => {
            let endpoint = GcsEndpoint::connect(gcs(bucket, &job.stores)).await;
            endpoint.map(Into::into).map_err(at_store(store, b""))
        }
        Store::Azure(container) => {
            let endpoint = AzureEndpoint::connect(azure(container, &job.stores)).await;
            endpoint.map(Into::into).map_err(at_store(store, b""))
        }
        Store::Web(server) => web(store, server, destination, job, observer).await,
    }
}

/// Connects to a host's SFTP server.
async fn sftp(host: &Host, job: &Job, observer: &Observer) -> Result<SftpEndpoint, EngineError> {
    let login = launch::login(&job.launch, host, observer).carrying_files().await;
    // Whose complaints tell why there is no connection.
    let first: Arc<Mutex<Option<Arc<Mutex<Process>>>>> = Arc::default();
    let noted = Arc::clone(&first);
    let dial: Dial = Arc::new(move |which| {
        let (login, noted) = (login.clone(), Arc::clone(&noted));
        Box::pin(async move {
            let started = Started::Subsystem("sftp");
            let mut process = match which {
                Which::First => login.start(started)?,
                Which::Further => login.start_further(started)?,
            };
            let streams = process.take_streams();
            let (input, output) = streams.ok_or(io::ErrorKind::BrokenPipe)?;
            let process = Arc::new(Mutex::new(process));
            if which == Which::First {
                *lock(&noted) = Some(Arc::clone(&process));
            }
            let (input, output) = (Box::new(output), Box::new(input));
            Ok(Wire { input, output, keeper: Box::new(process) })
        })
    });
    let streams = job.config.streams.min(AUTO_CONNECTIONS);
    let connections = job.config.reach.ssh_connections.unwrap_or(streams);
    let prefix = Store::Sftp(host.clone()).prefix();
    let syncs_all = job.config.durability == Durability::File;
    let patience = job.launch.login_patience.unwrap_or(launch::LOGIN_PATIENCE);
    let connected = tokio::select! {
        connected = SftpEndpoint::connect(dial, prefix, connections.into(), syncs_all) => connected,
        () = tokio::time::sleep(patience) => {
            Err(Fault::new(Class::Gone, "no SFTP server has answered"))
        }
        () = observer.asked_to_stop() => return Err(EngineError::Interrupted),
    };
    let process = lock(&first).take();
    match connected {
        Ok(endpoint) => Ok(endpoint),
        Err(fault) => Err(no_sftp(&host.name, &fault, process).await),
    }
}

fn s3(bucket: &str, stores: &ObjectStores) -> S3Config {
    let stores = stores.clone();
    S3Config {
        bucket: bucket.to_owned(),
        endpoint: stores.endpoint.or(stores.s3_endpoint),
        region: stores.region,
        profile: stores.profile,
        keys: None,
        anonymous: stores.anonymous,
        path_style: stores.path_style,
        storage_class: stores.storage_class,
        requests: stores.requests.map(usize::from),
        max_parts: None,
    }
}

fn gcs(bucket: &str, stores: &ObjectStores) -> GcsConfig {
    let stores = stores.clone();
    GcsConfig {
        bucket: bucket.to_owned(),
        endpoint: stores.endpoint.or(stores.gcs_endpoint),
        anonymous: stores.anonymous,
        storage_class: stores.storage_class,
        requests: stores.requests.map(usize::from),
    }
}

fn azure(container: &str, stores: &ObjectStores) -> AzureConfig {
    let stores = stores.clone();
    AzureConfig {
        container: container.to_owned(),
        account: stores.azure_account,
        keys: None,
        endpoint: stores.endpoint.or(stores.azure_endpoint),
        anonymous: stores.anonymous,
        storage_class: stores.storage_class,
        requests: stores.requests.map(usize::from),
        max_blocks: None,
    }
}

/// Finds a web server.
async fn web(
    store: &Store,
    server: &WebServer,
    destination: Option<&[u8]>,
    job: &Job,
    observer: &Observer,
) -> Result<AnyEndpoint, EngineError> {
    // What admits us to the one is not for the other to know.
    let is_netrc_only = destination.is_none() && writes_to_another(&job.direction, server);
    let name = &server.host.name;
    let config = WebConfig {
        secure: server.secure,
        host: if name.contains(':') { format!("[{name}]") } else { name.clone() },
        port: server.host.port,
        prefix: store.prefix(),
        query: server.query.clone(),
        login: Login {
            user: server.host.user.clone(),
            header_file: job.stores.header_file.clone(),
            is_netrc_only,
        },
        requests: job.stores.requests.map(usize::from),
        is_destination: destination.is_some(),
        is_dry_run: job.config.dry_run,
        expected: if destination.is_none() { job.stores.expected } else { Expected::default() },
        least_chunk: None,
    };
    let failed = at_store(store, destination.unwrap_or_default());
    if !server.dav {
        return WebEndpoint::new(config).map(Into::into).map_err(failed);
    }
    let key = destination.map(|path| Key::of_path(path).map_err(Fault::from));
    let connected = async { DavEndpoint::connect(config, key.transpose()?.as_ref()).await };
    let endpoint: DavEndpoint = connected.await.map_err(failed)?;
    if let Some(note) = endpoint.note() {
        observer.tell(Event::Note(note.to_owned()));
    }
    Ok(endpoint.into())
}

/// Whether the destination is another web server than this.
fn writes_to_another(direction: &Direction, server: &WebServer) -> bool {
    match direction {
        Direction::Copy {
            destination: Site::Endpoint { store: Store::Web(other), .. }, ..
        } => {
            (&other.host.name, other.host.port, other.secure)
                != (&server.host.name, server.host.port, server.secure)
        }
        _ => false,
    }
}

/// Why there is no connection to an SFTP server, by what ssh says.
async fn no_sftp(host: &str, fault: &Fault, process: Option<Arc<Mutex<Process>>>) -> EngineError {
    // Nobody else has it any more, as there is no connection.
    let process = process.and_then(Arc::into_inner).map(Mutex::into_inner);
    let complaints = match process {
        Some(Ok(mut process)) => {
            process.wait(LAST_WORDS).await;
            process.complaints()
        }
        _ => String::new(),
    };
    let said: Vec<_> = complaints.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
    let said = Escaped(said.join("; ").as_bytes()).to_string();
    let host = host.to_owned();
    if launch::is_refused(&complaints) {
        return EngineError::Authentication { host, cause: said };
    }
    if complaints.contains("subsystem request failed") {
        let text = format!("{host} has no SFTP server: {said}");
        return EngineError::Session(Failure::new(FailureCode::Startup, text));
    }
    let cause = if said.is_empty() { fault.to_string() } else { said };
    EngineError::Unreachable { place: host, cause }
}

/// Whether a path was written as that of a directory, or of what is in it.
fn means_contents(path: &[u8]) -> bool {
    path.is_empty() || path.ends_with(b"/") || path == b"." || path.ends_with(b"/.")
}

/// For `map_err` on what was done at an endpoint.
pub fn at_store(store: &Store, path: &[u8]) -> impl FnOnce(Fault) -> EngineError {
    let shown = [store.prefix().as_bytes(), b"/", path.strip_prefix(b"/").unwrap_or(path)].concat();
    move |fault| explain(StorageError::at(Operation::Open, &shown)(fault))
}

/// Why a source or destination at an endpoint cannot be used.
fn explain(error: StorageError) -> EngineError {
    match &error {
        StorageError::Endpoint { fault, path, .. } => {
            let host = Escaped(path).to_string();
            match fault.class {
                Class::Disconnected | Class::Gone => {
                    EngineError::Unreachable { place: host, cause: fault.to_string() }
                }
                Class::Credentials => {
                    EngineError::Credentials { place: host, cause: fault.to_string() }
                }
                _ => EngineError::Source(error),
            }
        }
        _ => EngineError::Source(error),
    }
}

/// What names a job's sources, so that the same command finds its journal again.
pub fn names_of_sources(sources: &Sources) -> Vec<Vec<u8>> {
    match sources {
        Sources::Local(paths) => {
            paths.iter().map(|path| absolute(path).as_os_str().as_bytes().to_vec()).collect()
        }
        Sources::Endpoint { store, paths } => {
            let prefix = store.prefix().into_bytes();
            std::iter::once(prefix).chain(paths.iter().cloned()).collect()
        }
    }
}

/// What names a job's destination.
pub fn name_of_site(site: &Site) -> Vec<u8> {
    match site {
        Site::Local(path) => absolute(path).as_os_str().as_bytes().to_vec(),
        Site::Endpoint { store, path } => [store.prefix().as_bytes(), b"/", path].concat(),
    }
}

/// How the data travels, for reports.
pub fn connection(source: &AnySource, destination: &AnyDestination, channels: u16) -> Connection {
    let endpoint = match (source, destination) {
        (_, AnyDestination::Remote(to)) => Some(&to.endpoint),
        (AnySource::Remote(from), AnyDestination::Local(_)) => Some(from.endpoint()),
        (AnySource::Local(_), AnyDestination::Local(_)) => None,
    };
    let (transport, peer, streams, encrypted) = match endpoint {
        Some(endpoint) => {
            let peer = Escaped(&endpoint.shown(&Key::default())).to_string();
            let properties = endpoint.properties();
            (properties.name, peer, endpoint.streams(channels), properties.encrypts)
        }
        None => (inside::TRANSPORT, "this machine".to_owned(), 1, false),
    };
    let reason = String::new();
    Connection { transport, streams, peer, encrypted, dialler: "client", reason }
}

/// Whether what is written there comes in parts that may not be small.
pub fn needs_large_parts(site: &Site) -> bool {
    matches!(site, Site::Endpoint { store: Store::S3(_), .. })
}

/// Whether an endpoint is one of the ends.
pub fn is_involved(direction: &Direction) -> bool {
    matches!(
        direction,
        Direction::Push { sources: Sources::Endpoint { .. }, .. }
            | Direction::Pull { destination: Site::Endpoint { .. }, .. }
    )
}

/// Leaves out what no endpoint keeps, and says so.
pub fn fit(options: &mut Options, needs_large_parts: bool, observer: &Observer) {
    if needs_large_parts && options.chunk_size.bytes() < ChunkSize::DEFAULT.bytes() {
        let text = "object stores take parts of 5 MiB and more; the chunk size is 8M";
        observer.tell(Event::Note(text.to_owned()));
        options.chunk_size = ChunkSize::DEFAULT;
    }
    let preserve = &mut options.preserve;
    let mut left = Vec::new();
    let mut leave = |is_on: &mut bool, what: &'static str| {
        if std::mem::take(is_on) {
            left.push(what);
        }
    };
    leave(&mut preserve.hard_links, "hard links");
    leave(&mut preserve.acls, "ACLs");
    leave(&mut preserve.attributes, "extended attributes");
    let mut owners = preserve.owner == Keep::Always || preserve.group == Keep::Always;
    (preserve.owner, preserve.group) = (Keep::No, Keep::No);
    leave(&mut owners, "owners and groups");
    if !left.is_empty() {
        let text = format!("not kept where no fastsync runs: {}", left.join(", "));
        observer.tell(Event::Note(text));
    }
}

/// The same job without an agent, if that is why it failed.
pub fn fallback(job: &Job, failed: &Failed) -> Option<Direction> {
    let is_agentless = matches!(failed.error, EngineError::AgentNotStartable { .. });
    if !is_agentless || failed.established || !job.config.fallback {
        return None;
    }
    match &job.direction {
        Direction::Push { sources, destination: Place::Remote { host, path } } => {
            let store = Store::Sftp(host.clone());
            let destination = Site::Endpoint { store, path: path.clone() };
            Some(Direction::Copy { sources: sources.clone(), destination })
        }
        Direction::Pull { sources, host: Some(host), destination } => {
            let store = Store::Sftp(host.clone());
            let sources = Sources::Endpoint { store, paths: sources.clone() };
            Some(Direction::Copy { sources, destination: destination.clone() })
        }
        Direction::Inventory { sources, at: At::Host(host), hash } => {
            let at = At::Store(Store::Sftp(host.clone()));
            Some(Direction::Inventory { sources: sources.clone(), at, hash: *hash })
        }
        _ => None,
    }
}

/// How many connections there are unless somebody says otherwise.
const AUTO_CONNECTIONS: u16 = 8;
