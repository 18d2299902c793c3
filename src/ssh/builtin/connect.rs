//! From a login to a connection that is logged in: straight, through jump hosts, or through a command.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, Handle};
use russh::{Preferred, SshId, cipher, compression};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::auth::Authentication;
use super::error::Error;
use super::server::{Farewell, Server};
use super::settings::Settings;
use crate::ssh::process::Complaints;
use crate::ssh::{ALIVE_INTERVAL, Login};

/// A connection that is logged in. Dropping it ends it.
pub struct Connection {
    pub handle: Handle<Server>,
    pub settings: Settings,
    pub farewell: Farewell,
    /// What it goes through.
    _below: Below,
}

/// What carries a connection, and has to live as long.
enum Below {
    Nothing,
    Jump { _connection: Box<Connection> },
    Command { _child: Child, complaining: JoinSet<()> },
}

impl Below {
    /// Why a command ended tends to come a moment after it has.
    async fn hear_last_words(&mut self) {
        if let Self::Command { complaining, .. } = self {
            let _ = timeout(LAST_WORDS, complaining.join_next()).await;
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("settings", &self.settings).finish_non_exhaustive()
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send + 'a>>;

/// Connects and logs in.
///
/// # Errors
///
/// If no server is reached, it is not who it should be, or does not let this user in.
pub fn connect<'a>(
    login: &'a Login,
    is_batch: bool,
    complaints: &'a Complaints,
    depth: u32,
) -> Connecting<'a> {
    Box::pin(async move {
        let settings = Settings::of(login).await?;
        let server = Server::new(&settings, is_batch, complaints.clone())?;
        let farewell = Arc::clone(&server.farewell);
        let config = Arc::new(config(&settings, &server));
        let (stream, mut below) = reach(login, &settings, is_batch, complaints, depth).await?;
        let mut handle = match client::connect_stream(config, stream, server).await {
            Ok(handle) => handle,
            Err(error) => {
                below.hear_last_words().await;
                return Err(error);
            }
        };
        Authentication::new(&mut handle, &settings, &farewell, is_batch).run().await?;
        Ok(Connection { handle, settings, farewell, _below: below })
    })
}

async fn reach(
    login: &Login,
    settings: &Settings,
    is_batch: bool,
    complaints: &Complaints,
    depth: u32,
) -> Result<(Box<dyn Stream>, Below), Error> {
    let (host, port) = (settings.host(), settings.port());
    let failed = |cause: io::Error| Error::Connect { host: host.clone(), port, cause };
    if let Some((hop, before)) = settings.jumps().split_last() {
        if depth >= MAX_JUMPS {
            let text = format!("more than {MAX_JUMPS} jump hosts lead to each other, at {hop}");
            return Err(Error::Configuration(text));
        }
        let jump = Settings::jump(login, hop, before)?;
        let connection = connect(&jump, is_batch, complaints, depth + 1).await?;
        let channel =
            connection.handle.channel_open_direct_tcpip(host.clone(), port.into(), "127.0.0.1", 0);
        let channel = channel.await.map_err(|error| {
            failed(io::Error::other(format!("the jump host {hop} does not get there: {error}")))
        })?;
        let below = Below::Jump { _connection: Box::new(connection) };
        return Ok((Box::new(channel.into_stream()), below));
    }
    if let Some(command) = settings.proxy_command()? {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("exec {command}")).kill_on_drop(true);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if is_batch {
            shell.process_group(0);
        }
        let mut child = shell.spawn().map_err(failed)?;
        let streams = child.stdin.take().zip(child.stdout.take());
        let (input, output) = streams.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        let mut complaining = JoinSet::new();
        if let Some(stderr) = child.stderr.take() {
            complaining.spawn(complaints.clone().collect(stderr));
        }
        let stream = tokio::io::join(output, input);
        let below = Below::Command { _child: child, complaining };
        return Ok((Box::new(stream), below));
    }
    let stream = dial(settings, &host, port).await.map_err(failed)?;
    Ok((Box::new(stream), Below::Nothing))
}

/// Dials the addresses of a host in turn.
async fn dial(settings: &Settings, host: &str, port: u16) -> io::Result<TcpStream> {
    let family = settings.value("addressfamily").unwrap_or("any").to_lowercase();
    let from = settings.value("bindaddress").map(str::parse::<IpAddr>).transpose();
    let from = from.map_err(|_| io::Error::other("BindAddress is no IP address"))?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        if family == "inet" && !address.is_ipv4() || family == "inet6" && !address.is_ipv6() {
            continue;
        }
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = from
            && let Err(error) = socket.bind((from, 0).into())
        {
            last = error;
            continue;
        }
        let dialled = socket.connect(address);
        match timeout(settings.connect_timeout(), dialled).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn config(settings: &Settings, server: &Server) -> client::Config {
    let (key, host_key_certificates) = server.algorithms();
    let ciphers = [
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_192_CTR,
        cipher::AES_128_CTR,
    ];
    let preferred = Preferred {
        key: key.into(),
        host_key_certificates: host_key_certificates.into(),
        cipher: ciphers.to_vec().into(),
        compression: vec![compression::NONE].into(),
        ..Preferred::DEFAULT
    };
    let client_id = format!("SSH-2.0-fastsync_{}", env!("CARGO_PKG_VERSION"));
    client::Config {
        client_id: SshId::Standard(client_id.into()),
        window_size: WINDOW,
        maximum_packet_size: MAX_PACKET,
        preferred,
        keepalive_interval: settings.alive_interval().or(Some(ALIVE_INTERVAL)),
        keepalive_max: settings.alive_count(),
        nodelay: true,
        ..client::Config::default()
    }
}

/// How much a server may send ahead, in bytes: with ssh's own 2 MiB, a long path would carry no more
/// than that in a round trip.
const WINDOW: u32 = 32 << 20;

/// The largest packet that the library takes, in bytes.
const MAX_PACKET: u32 = 65_535;

/// How long what a command says after its end is waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How many jump hosts may follow each other.
const MAX_JUMPS: u32 = 16;
