//! How to transfer, as far as somebody has said so: one struct for flags, environment and
//! configuration file, and the order in which they prevail.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde::Deserialize;

use super::UsageError;
use super::units::{
    Addresses, Addressing, AgentPath, ByteSize, Checksum, ChunkBytes, Congestion, DurabilityMode,
    Limited, PackThreshold, PortRange, Requests, ResumeMode, Retries, SocketSize, SshConnections,
    Streams, Switch, TransportMode, ValueError,
};
use crate::engine::job::{Expected, ObjectStores, TransferConfig};

/// Every setting is optional: `None` leaves it to the next layer.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Transfer")]
pub struct Settings {
    /// How many data channels to open [default: 8; from web servers: 16]
    #[arg(short = 'p', long, value_name = "N")]
    #[serde(rename = "parallel_streams")]
    pub streams: Option<Streams>,
    /// Chunk size, a power of two from 64K to 64M [default: 8M]
    #[arg(short, long, value_name = "SIZE")]
    pub chunk_size: Option<ChunkBytes>,
    /// Memory for chunks at each end [default: four chunks more than streams]
    #[arg(long, value_name = "SIZE")]
    pub buffer_size: Option<ByteSize>,
    /// Files below this size travel in packs [default: 256K]
    #[arg(long, value_name = "SIZE")]
    pub pack_threshold: Option<PackThreshold>,
    /// Encrypt data channels with TLS 1.3, on or off [default: on]
    #[arg(long, value_name = "SWITCH")]
    pub encrypt: Option<Switch>,
    /// Go on from what an interrupted run left: on, verify (reads it again) or off [default: on]
    #[arg(
        short,
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "on"
    )]
    pub resume: Option<ResumeMode>,
    /// Sync data to stable storage: none, batch (before success is reported) or file (each
    /// before the next) [default: batch]
    #[arg(long, value_name = "WHEN")]
    pub durability: Option<DurabilityMode>,
    /// How often to make a lost connection again without progress in between [default: 5]
    #[arg(long, value_name = "N")]
    pub retries: Option<Retries>,
    /// Ports on which either host may listen for data channels, TCP and UDP
    #[arg(long, value_name = "LO:HI")]
    pub port_range: Option<PortRange>,
    /// What data channels run over: tcp, quic, ssh (inside the ssh connection and further ones), or
    /// auto, which takes the first of them that works [default: auto]
    #[arg(long, value_name = "NAME")]
    pub transport: Option<TransportMode>,
    /// Let the other host dial this one
    #[arg(
        long,
        value_name = "SWITCH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "on"
    )]
    pub reverse: Option<Switch>,
    /// Where the other host is dialled for data, if not where ssh finds it
    #[arg(long, value_name = "ADDRESS,..")]
    pub data_addr: Option<Addresses>,
    /// Where the other host may dial this one for data
    #[arg(long, value_name = "ADDRESS,..")]
    pub listen_addr: Option<Addresses>,
    /// How many ssh connections carry data where nothing else does: auto, or 1 for the session's own
    /// [default: auto]
    #[arg(long, value_name = "N")]
    pub ssh_connections: Option<SshConnections>,
    /// Hand QUIC datagrams to the kernel many at a time, on or off [default: on]
    #[arg(long, value_name = "SWITCH")]
    pub quic_gso: Option<Switch>,
    /// Send buffer of data channels [default: left to the kernel]
    #[arg(long, value_name = "SIZE")]
    pub tcp_send_buffer: Option<SocketSize>,
    /// Receive buffer of data channels [default: left to the kernel]
    #[arg(long, value_name = "SIZE")]
    pub tcp_recv_buffer: Option<SocketSize>,
    /// Congestion control of data channels, such as bbr [default: the kernel's; QUIC: bbr]
    #[arg(long, value_name = "NAME")]
    pub congestion: Option<Congestion>,
    /// Settings by name: lan, wan, small-files, low-memory, max-throughput, or your own
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// The fastsync program on the other host [default: fastsync, from its search path]
    #[arg(long, value_name = "PATH")]
    pub agent_path: Option<AgentPath>,
    /// Where it has none, store this program in a cache directory there, on or off [default: on]
    #[arg(long, value_name = "SWITCH")]
    pub bootstrap: Option<Switch>,
    /// The program to store there, for another kind of machine [default: this one]
    #[arg(long, value_name = "FILE")]
    pub agent_binary: Option<PathBuf>,
    /// The URL of the server, if it is not Amazon's, Google's or Microsoft's
    #[arg(long, value_name = "URL", help_heading = "Object stores")]
    pub endpoint: Option<String>,
    /// Files and the environment only: each kind of store has its own.
    #[arg(skip)]
    pub s3_endpoint: Option<String>,
    #[arg(skip)]
    pub gcs_endpoint: Option<String>,
    #[arg(skip)]
    pub azure_endpoint: Option<String>,
    /// The storage account of az:// containers [default: what the environment says]
    #[arg(long, value_name = "NAME", help_heading = "Object stores")]
    pub azure_account: Option<String>,
    /// The region of S3 buckets [default: what the environment or the server says]
    #[arg(long, value_name = "NAME", help_heading = "Object stores")]
    pub region: Option<String>,
    /// A section of ~/.aws/config and ~/.aws/credentials
    #[arg(long, value_name = "NAME", help_heading = "Object stores")]
    pub aws_profile: Option<String>,
    /// Use no credentials, on or off [default: off]
    #[arg(long, value_name = "SWITCH", num_args = 0..=1, require_equals = true,
        default_missing_value = "on", help_heading = "Object stores")]
    pub anonymous: Option<Switch>,
    /// Where a bucket's name stands in URLs: path or host [default: host for Amazon's, else path]
    #[arg(long, value_name = "WHERE", help_heading = "Object stores")]
    pub addressing: Option<Addressing>,
    /// The storage class of new objects
    #[arg(long, value_name = "NAME", help_heading = "Object stores")]
    pub storage_class: Option<String>,
    /// How many requests at a time [default: 256; web servers: 32]
    #[arg(long, value_name = "N", help_heading = "Object stores")]
    pub requests: Option<Requests>,
    /// Headers that web servers are sent, one a line: Authorization, and others that tell who asks
    #[arg(long, value_name = "FILE", help_heading = "Web servers")]
    pub header_file: Option<PathBuf>,
    /// Files only: there is one checksum, and so no flag for it.
    #[arg(skip)]
    pub checksum: Option<Checksum>,
}

impl Settings {
    /// What `FASTSYNC_*` variables say.
    pub fn from_environment(environment: &Environment<'_>) -> Result<Self, UsageError> {
        Ok(Self {
            streams: environment.value("FASTSYNC_STREAMS")?,
            chunk_size: environment.value("FASTSYNC_CHUNK_SIZE")?,
            buffer_size: environment.value("FASTSYNC_BUFFER_SIZE")?,
            pack_threshold: environment.value("FASTSYNC_PACK_THRESHOLD")?,
            encrypt: environment.value("FASTSYNC_ENCRYPT")?,
            resume: environment.value("FASTSYNC_RESUME")?,
            durability: environment.value("FASTSYNC_DURABILITY")?,
            retries: environment.value("FASTSYNC_RETRIES")?,
            port_range: environment.value("FASTSYNC_PORT_RANGE")?,
            transport: environment.value("FASTSYNC_TRANSPORT")?,
            reverse: environment.value("FASTSYNC_REVERSE")?,
            data_addr: environment.value("FASTSYNC_DATA_ADDR")?,
            listen_addr: environment.value("FASTSYNC_LISTEN_ADDR")?,
            ssh_connections: environment.value("FASTSYNC_SSH_CONNECTIONS")?,
            quic_gso: environment.value("FASTSYNC_QUIC_GSO")?,
            tcp_send_buffer: environment.value("FASTSYNC_TCP_SEND_BUFFER")?,
            tcp_recv_buffer: environment.value("FASTSYNC_TCP_RECV_BUFFER")?,
            congestion: environment.value("FASTSYNC_CONGESTION")?,
            profile: environment.text("FASTSYNC_PROFILE")?,
            agent_path: environment.value("FASTSYNC_AGENT_PATH")?,
            bootstrap: environment.value("FASTSYNC_BOOTSTRAP")?,
            agent_binary: environment.raw("FASTSYNC_AGENT_BINARY").map(Into::into),
            endpoint: environment.text("FASTSYNC_ENDPOINT")?,
            s3_endpoint: environment
                .text("AWS_ENDPOINT_URL_S3")?
                .or(environment.text("AWS_ENDPOINT_URL")?),
            gcs_endpoint: environment.text("STORAGE_EMULATOR_HOST")?.map(with_scheme),
            azure_endpoint: environment.text("AZURE_STORAGE_SERVICE_ENDPOINT")?,
            azure_account: environment.text("FASTSYNC_AZURE_ACCOUNT")?,
            region: environment
                .text("FASTSYNC_REGION")?
                .or(environment.text("AWS_REGION")?)
                .or(environment.text("AWS_DEFAULT_REGION")?),
            aws_profile: environment
                .text("FASTSYNC_AWS_PROFILE")?
                .or(environment.text("AWS_PROFILE")?),
            anonymous: environment.value("FASTSYNC_ANONYMOUS")?,
            addressing: environment.value("FASTSYNC_ADDRESSING")?,
            storage_class: environment.text("FASTSYNC_STORAGE_CLASS")?,
            requests: environment.value("FASTSYNC_REQUESTS")?,
            header_file: environment.raw("FASTSYNC_HEADER_FILE").map(Into::into),
            checksum: None,
        })
    }

    /// What a built-in profile says: its streams and chunk size always, the rest where it is not
    /// what everybody gets.
    pub fn from_profile(profile: &TransferConfig) -> Self {
        let default = TransferConfig::default();
        let threshold = profile.pack_threshold;
        Self {
            streams: Some(Streams(profile.streams)),
            chunk_size: Some(ChunkBytes(profile.chunk_size)),
            buffer_size: profile.buffer_size.map(ByteSize),
            pack_threshold: (threshold != default.pack_threshold).then_some(Limited(threshold)),
            tcp_send_buffer: profile.sockets.send_buffer.map(Limited),
            tcp_recv_buffer: profile.sockets.receive_buffer.map(Limited),
            ..Self::default()
        }
    }

    /// These settings, and where they are silent the lower layer's.
    #[must_use]
    pub fn or(self, lower: Self) -> Self {
        Self {
            streams: self.streams.or(lower.streams),
            chunk_size: self.chunk_size.or(lower.chunk_size),
            buffer_size: self.buffer_size.or(lower.buffer_size),
            pack_threshold: self.pack_threshold.or(lower.pack_threshold),
            encrypt: self.encrypt.or(lower.encrypt),
            resume: self.resume.or(lower.resume),
            durability: self.durability.or(lower.durability),
            retries: self.retries.or(lower.retries),
            port_range: self.port_range.or(lower.port_range),
            transport: self.transport.or(lower.transport),
            reverse: self.reverse.or(lower.reverse),
            data_addr: self.data_addr.or(lower.data_addr),
            listen_addr: self.listen_addr.or(lower.listen_addr),
            ssh_connections: self.ssh_connections.or(lower.ssh_connections),
            quic_gso: self.quic_gso.or(lower.quic_gso),
            tcp_send_buffer: self.tcp_send_buffer.or(lower.tcp_send_buffer),
            tcp_recv_buffer: self.tcp_recv_buffer.or(lower.tcp_recv_buffer),
            congestion: self.congestion.or(lower.congestion),
            profile: self.profile.or(lower.profile),
            agent_path: self.agent_path.or(lower.agent_path),
            bootstrap: self.bootstrap.or(lower.bootstrap),
            agent_binary: self.agent_binary.or(lower.agent_binary),
            endpoint: self.endpoint.or(lower.endpoint),
            s3_endpoint: self.s3_endpoint.or(lower.s3_endpoint),
            gcs_endpoint: self.gcs_endpoint.or(lower.gcs_endpoint),
            azure_endpoint: self.azure_endpoint.or(lower.azure_endpoint),
            azure_account: self.azure_account.or(lower.azure_account),
            region: self.region.or(lower.region),
            aws_profile: self.aws_profile.or(lower.aws_profile),
            anonymous: self.anonymous.or(lower.anonymous),
            addressing: self.addressing.or(lower.addressing),
            storage_class: self.storage_class.or(lower.storage_class),
            requests: self.requests.or(lower.requests),
            header_file: self.header_file.or(lower.header_file),
            checksum: self.checksum.or(lower.checksum),
        }
    }

    /// How object stores and web servers are reached.
    pub fn to_stores(&self) -> ObjectStores {
        ObjectStores {
            endpoint: self.endpoint.clone(),
            s3_endpoint: self.s3_endpoint.clone(),
            gcs_endpoint: self.gcs_endpoint.clone(),
            azure_endpoint: self.azure_endpoint.clone(),
            azure_account: self.azure_account.clone(),
            region: self.region.clone(),
            profile: self.aws_profile.clone(),
            anonymous: self.anonymous.is_some_and(|switch| switch.0),
            path_style: self.addressing.map(|it| it == Addressing::Path),
            storage_class: self.storage_class.clone(),
            requests: self.requests.map(|it| it.0),
            header_file: self.header_file.clone(),
            expected: Expected::default(),
        }
    }

    /// The engine's configuration, with the defaults where nothing was said.
    pub fn to_config(&self) -> TransferConfig {
        let mut config = TransferConfig::default();
        set(&mut config.streams, self.streams.map(|streams| streams.0));
        set(&mut config.chunk_size, self.chunk_size.map(|size| size.0));
        set(&mut config.pack_threshold, self.pack_threshold.map(|size| size.0));
        set(&mut config.encrypt, self.encrypt.map(|switch| switch.0));
        set(&mut config.resume, self.resume.map(|mode| mode.0));
        set(&mut config.durability, self.durability.map(|mode| mode.0));
        set(&mut config.retries, self.retries.map(|retries| retries.0));
        config.buffer_size = self.buffer_size.map(|size| size.0);
        config.port_range = self.port_range.map(|range| (range.0, range.1));
        config.sockets.send_buffer = self.tcp_send_buffer.map(|size| size.0);
        config.sockets.receive_buffer = self.tcp_recv_buffer.map(|size| size.0);
        config.sockets.congestion = self.congestion.clone().map(|name| name.0);
        config.sockets.no_offload = self.quic_gso == Some(Switch(false));
        let reach = &mut config.reach;
        set(&mut reach.transport, self.transport.map(|mode| mode.0));
        set(&mut reach.reverse, self.reverse.map(|switch| switch.0));
        set(&mut reach.data_addresses, self.data_addr.clone().map(|list| list.0));
        set(&mut reach.listen_addresses, self.listen_addr.clone().map(|list| list.0));
        set(&mut reach.ssh_connections, self.ssh_connections.map(|count| count.0));
        config
    }
}

/// Google's emulators are often told as a host and a port only.
fn with_scheme(host: String) -> String {
    if host.contains("://") { host } else { format!("http://{host}") }
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// The environment, behind a function so that tests have their own.
pub struct Environment<'a>(pub &'a dyn Fn(&str) -> Option<OsString>);

impl std::fmt::Debug for Environment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Environment")
    }
}

impl Environment<'_> {
    /// A variable's bytes. An empty variable is one that is not set.
    pub fn raw(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// A variable's value, parsed as the flag's would be.
    pub fn value<T: FromStr<Err = ValueError>>(&self, name: &str) -> Result<Option<T>, UsageError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let wrong = |error| UsageError::new(format!("{name} in the environment: {error}"));
        text.parse().map(Some).map_err(wrong)
    }

    fn text(&self, name: &str) -> Result<Option<String>, UsageError> {
        let wrong = |_| UsageError::new(format!("{name} in the environment is not valid UTF-8"));
        self.raw(name).map(|value| value.into_string().map_err(wrong)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::job::{Reach, Transport};
    use crate::protocol::message::{Durability, Resume, SocketOptions};

    #[test]
    fn every_variable_reaches_its_setting() {
        let variables = [
            ("FASTSYNC_STREAMS", "3"),
            ("FASTSYNC_CHUNK_SIZE", "1M"),
            ("FASTSYNC_BUFFER_SIZE", "64M"),
            ("FASTSYNC_PACK_THRESHOLD", "1M"),
            ("FASTSYNC_ENCRYPT", "off"),
            ("FASTSYNC_RESUME", "verify"),
            ("FASTSYNC_DURABILITY", "none"),
            ("FASTSYNC_RETRIES", "7"),
            ("FASTSYNC_PORT_RANGE", "5000:5001"),
            ("FASTSYNC_TRANSPORT", "quic"),
            ("FASTSYNC_REVERSE", "on"),
            ("FASTSYNC_DATA_ADDR", "10.0.0.7,[fd00::7]"),
            ("FASTSYNC_LISTEN_ADDR", "data.example.org"),
            ("FASTSYNC_SSH_CONNECTIONS", "3"),
            ("FASTSYNC_QUIC_GSO", "off"),
            ("FASTSYNC_TCP_SEND_BUFFER", "2M"),
            ("FASTSYNC_TCP_RECV_BUFFER", "4M"),
            ("FASTSYNC_CONGESTION", "bbr"),
            ("FASTSYNC_PROFILE", "wan"),
            ("FASTSYNC_AGENT_PATH", "/opt/f"),
            ("FASTSYNC_BOOTSTRAP", "off"),
            ("FASTSYNC_AGENT_BINARY", "/opt/g"),
        ];
        let lookup = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
        };
        let settings = Settings::from_environment(&Environment(&lookup)).unwrap();
        assert_eq!(settings.profile.as_deref(), Some("wan"));
        assert_eq!(settings.agent_path.as_ref().unwrap().0, "/opt/f");
        assert_eq!(settings.bootstrap, Some(Switch(false)));
        assert_eq!(settings.agent_binary.as_deref(), Some("/opt/g".as_ref()));
        let wanted = TransferConfig {
            streams: 3,
            chunk_size: "1M".parse::<ChunkBytes>().unwrap().0,
            buffer_size: Some(64 << 20),
            pack_threshold: 1 << 20,
            encrypt: false,
            resume: Resume::Verify,
            durability: Durability::None,
            retries: 7,
            port_range: Some((5000, 5001)),
            sockets: SocketOptions {
                send_buffer: Some(2 << 20),
                receive_buffer: Some(4 << 20),
                congestion: Some("bbr".into()),
                no_offload: true,
            },
            reach: Reach {
                transport: Transport::Quic,
                reverse: true,
                data_addresses: vec!["10.0.0.7".into(), "fd00::7".into()],
                listen_addresses: vec!["data.example.org".into()],
                ssh_connections: Some(3),
            },
            ..TransferConfig::default()
        };
        assert_eq!(settings.to_config(), wanted);
        // As an upper layer it prevails in everything; as a lower one it fills every gap.
        assert_eq!(settings.clone().or(Settings::default()), settings);
        assert_eq!(Settings::default().or(settings.clone()), settings);
    }

    /// What Amazon's tools are told leads no data of others elsewhere.
    #[test]
    fn each_kind_of_store_has_its_own_endpoint() {
        let lookup = |name: &str| match name {
            "AWS_ENDPOINT_URL" => Some("http://s3.example.org".into()),
            "STORAGE_EMULATOR_HOST" => Some("localhost:9023".into()),
            "FASTSYNC_AZURE_ACCOUNT" => Some("account".into()),
            _ => None,
        };
        let stores = Settings::from_environment(&Environment(&lookup)).unwrap().to_stores();
        assert_eq!(stores.endpoint, None);
        assert_eq!(stores.s3_endpoint.as_deref(), Some("http://s3.example.org"));
        assert_eq!(stores.gcs_endpoint.as_deref(), Some("http://localhost:9023"));
        assert_eq!((stores.azure_endpoint, stores.azure_account), (None, Some("account".into())));
    }

    #[test]
    fn nothing_said_is_the_default() {
        let settings = Settings::from_environment(&Environment(&|_| Some("".into()))).unwrap();
        assert_eq!(settings.to_config(), TransferConfig::default());
    }
}
