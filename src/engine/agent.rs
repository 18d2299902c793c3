//! The end that the client started: does what it is told over its standard input and output, and
//! ends with its client.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, Stdin};
use tokio::task::JoinSet;

use super::client::absolute;
use super::control::{Aside, ControlError, Inbox, Outbox, Pulse, outbox_with};
use super::event::Progress;
use super::session::{Observer, SessionError};
use super::third_party::agent::Errand;
use super::{here, measure, reach, send, third_party};
use crate::protocol::chunk::Digest;
use crate::protocol::handshake::{self, ChannelKeys, MAGIC, VERSIONS, common_version, transcript};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{
    Accept, Compare, Failure, FailureCode, Hello, Links, Message, Open, Options, Task,
};
use crate::protocol::session::End;
use crate::protocol::tunnel;
use crate::ssh;
use crate::storage::StorageError;
use crate::storage::local::{LocalSource, confine, reads_rules};
use crate::transport::channel::{Channel, ChannelConfig, Listener, Openings};
use crate::transport::join::{self, Meeting};
use crate::transport::tls::Identity;
use crate::transport::tunnel::Tunnel;

/// What a client may ask for, as the host's operator has it (SEC-10).
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// Nothing outside of this directory; paths are relative to it, and not to the home directory.
    root: Option<PathBuf>,
    /// The same directory as the operator called it, symlinks included.
    named: PathBuf,
    access: Access,
    /// Ports on which this process may listen, both ends included.
    ports: Option<(u16, u16)>,
}

/// Which way data may go.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Access {
    #[default]
    Both,
    /// The agent only sends.
    ReadOnly,
    /// The agent only receives.
    WriteOnly,
}

impl Rights {
    /// Confines this process to a directory.
    ///
    /// # Errors
    ///
    /// If the directory cannot be entered, or the kernel cannot confine a process to it.
    pub fn within(root: &Path, access: Access) -> Result<Self, StorageError> {
        Ok(Self { root: Some(confine(root)?), named: absolute(root), access, ports: None })
    }

    /// The same with a range of ports, outside of which this process does not listen.
    #[must_use]
    pub fn with_ports(self, ports: Option<(u16, u16)>) -> Self {
        Self { ports, ..self }
    }

    /// Where to listen: on ports that both this host and the client want, if there are any, and on those of
    /// this host otherwise (PATH-2).
    fn ports(&self, wanted: Option<(u16, u16)>) -> Option<(u16, u16)> {
        let Some((low, high)) = self.ports else { return wanted };
        let both = wanted.map(|(from, to)| (low.max(from), high.min(to)));
        both.filter(|(low, high)| low <= high).or(self.ports)
    }

    /// Says why something that was asked for is not allowed.
    fn check(&self, task: &Task, options: &Options) -> Result<(), Failure> {
        let refused = |text: &str| Err(Failure::new(FailureCode::Permission, text));
        match (task, self.access) {
            (Task::Receive { .. }, Access::ReadOnly) => {
                refused("the other host lets this key only read (--read-only)")
            }
            (Task::Receive { .. }, Access::WriteOnly) if reads_rules(options) => refused(
                "the other host lets this key only write, and not have files there read for rules: \
                 leave out --gitignore and merge rules",
            ),
            (Task::Receive { .. }, Access::WriteOnly)
                if options.update.compare == Compare::Checksum =>
            {
                refused("the other host lets this key only write: leave out --checksum")
            }
            (Task::Send { .. } | Task::SendTo { .. }, Access::WriteOnly) => {
                refused("the other host lets this key only write (--write-only)")
            }
            (Task::Send { .. } | Task::SendTo { .. }, Access::ReadOnly)
                if options.remove_source_files =>
            {
                refused("the other host lets this key only read, and not remove source files")
            }
            (Task::Send { .. } | Task::SendTo { .. }, _)
                if self.root.is_some()
                    && matches!(options.select.links, Links::Follow | Links::FollowUnsafe) =>
            {
                refused(
                    "the other host lets this key follow no symlinks: leave out -L and the like",
                )
            }
            _ => Ok(()),
        }
    }

    /// What is to be sent, as the user meant it.
    fn sources(&self, sources: &[Vec<u8>]) -> Result<Vec<PathBuf>, SessionError> {
        if sources.is_empty() {
            return Err(SessionError::violation("there is nothing to send (SES-8)"));
        }
        let sources: Result<Vec<PathBuf>, _> = sources.iter().map(|path| self.path(path)).collect();
        sources.map_err(SessionError::Local)
    }

    /// A path as the user meant it: relative ones begin at the home directory, as for scp, or at
    /// what takes its place.
    fn path(&self, path: &[u8]) -> Result<PathBuf, Failure> {
        let Some(root) = &self.root else {
            return Ok(below(&std::env::home_dir().unwrap_or_default(), path));
        };
        for own in [root, &self.named] {
            let full = below(own, path);
            if let Ok(rest) = full.strip_prefix(own) {
                let slash = path.ends_with(b"/");
                let rest = [rest.as_os_str().as_bytes(), if slash { b"/" } else { b"" }].concat();
                return Ok(below(root, &rest));
            }
        }
        let text =
            format!("{} is outside of what the other host lets this key reach", Escaped(path));
        Err(Failure::new(FailureCode::Permission, text))
    }
}

/// Serves one session on standard input and output. Returns the process's exit code: 0 only if the
/// session came to its agreed end.
pub async fn run(rights: Rights) -> u8 {
    let pulse = Pulse::new();
    watch_over(pulse.clone());
    let inbox = Inbox::new(tokio::io::stdin(), End::Agent, CLIENT_SILENCE, pulse);
    let tunnel = Tunnel::default();
    let (outbox, writing) = outbox_with(tokio::io::stdout(), Some(tunnel.clone()));
    let mut writer = JoinSet::new();
    writer.spawn(writing);
    let mut is_wanted = true;
    let result = serve(&rights, inbox, outbox.clone(), tunnel, &mut is_wanted).await;
    if let Some(failure) = result.as_ref().err().and_then(SessionError::to_tell) {
        let _ = outbox.say(&Message::Abort(failure));
    }
    drop(outbox);
    let _ = tokio::time::timeout(Duration::from_secs(5), writer.join_next()).await;
    match result {
        Ok(()) => 0,
        Err(_) if is_wanted => FAILED_EXIT_CODE,
        Err(_) => NOT_WANTED_EXIT_CODE,
    }
}

/// Carries the bytes of a further login to the agent of the session that it names on its input.
/// Returns the process's exit code.
pub async fn join() -> u8 {
    u8::from(join::join(tokio::io::stdin(), tokio::io::stdout(), &MAGIC).await.is_err())
}

/// Ends the process when the client has been silent for too long, even if the runtime hangs (R12).
/// What is written is in the journal already.
fn watch_over(pulse: Pulse) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            if pulse.silence() > CLIENT_SILENCE {
                std::process::exit(SILENCE_EXIT_CODE);
            }
        }
    });
}

async fn serve(
    rights: &Rights,
    mut inbox: Inbox<Stdin>,
    outbox: Outbox,
    tunnel: Tunnel,
    is_wanted: &mut bool,
) -> Result<(), SessionError> {
    let identity = Identity::generate().map_err(SessionError::bug)?;
    let hello = handshake::hello(here::random()?, identity.certificate().to_vec());
    let hello = Message::Hello(hello).encode().map_err(SessionError::bug)?;
    outbox.say_encoded([&MAGIC[..], &hello].concat());
    let (theirs, their_bytes) = inbox.next_encoded().await?;
    let theirs = match theirs {
        Message::Hello(theirs) => theirs,
        Message::Abort(failure) => {
            *is_wanted = false;
            return Err(ControlError::Aborted(failure).into());
        }
        _ => return Err(SessionError::violation("the client did not introduce itself")),
    };
    if common_version(VERSIONS, theirs.versions).is_none() {
        let text = format!("the agent speaks protocol versions {}-{}", VERSIONS.0, VERSIONS.1);
        return Err(SessionError::local(FailureCode::Version, text));
    }
    let transcript = transcript(&hello, &their_bytes);
    match inbox.next().await? {
        Message::Open(open) => {
            open.options.check().map_err(SessionError::violation)?;
            let checked = rights.check(&open.task, &open.options);
            checked.map_err(|failure| refusal(&open.task, failure))?;
            let session = Introduced { client: theirs, identity, transcript, tunnel };
            obey(rights, *open, session, inbox, outbox).await
        }
        Message::Abort(failure) => Err(ControlError::Aborted(failure).into()),
        _ => Err(SessionError::violation("the client opened nothing")),
    }
}

/// What both ends know of each other before the client says what is to be done.
struct Introduced {
    client: Hello,
    identity: Identity,
    transcript: Digest,
    tunnel: Tunnel,
}

async fn obey(
    rights: &Rights,
    open: Open,
    session: Introduced,
    mut inbox: Inbox<Stdin>,
    outbox: Outbox,
) -> Result<(), SessionError> {
    let Introduced { client, identity, transcript, tunnel } = session;
    let options = open.options;
    if let Task::SendTo { sources, to } = &open.task {
        to.check().map_err(SessionError::violation)?;
        let sources = rights.sources(sources).map_err(|error| match error {
            SessionError::Local(failure) => refusal(&open.task, failure),
            error @ (SessionError::Control(_) | SessionError::Mistrusted(_)) => error,
        })?;
        let (to, job, addresses) = (to.as_ref().clone(), open.job, addresses());
        let ports = rights.ports(options.port_range);
        let errand = Errand { sources, to, job, options, addresses, ports };
        return third_party::agent::run(errand, tunnel, inbox, outbox).await;
    }
    tunnel.allow(tunnel::max_streams(options.streams), tunnel::window(options.streams));
    let (words, heard) = flume::bounded(MAX_WORDS);
    inbox.set_aside(Aside { tunnel: tunnel.clone(), words });
    let config = ChannelConfig {
        identity: Arc::new(identity),
        peer_certificate: client.certificate,
        keys: ChannelKeys::new(open.channel_secret, transcript),
        encrypt: options.encrypt,
        sockets: options.sockets.clone(),
        max_payload: options.max_payload(),
        channels: options.streams,
    };
    let openings = Openings {
        tcp: options.listen.tcp,
        quic: options.listen.quic,
        // A further login with a restricted key would run this again, and not what joins.
        meeting: meeting(options.listen.join && rights.root.is_none())?,
        tunnel: Some(tunnel),
    };
    // What stays on this host passes no firewall.
    let ports =
        if options.loopback { options.port_range } else { rights.ports(options.port_range) };
    let listener = Listener::bind(openings, ports, options.loopback, config.clone())
        .map_err(|error| SessionError::local(FailureCode::Startup, error.to_string()))?;
    let accept = Accept {
        options: options.clone(),
        port: listener.port(),
        udp_port: listener.udp_port(),
        join: listener.meeting(),
        addresses: addresses(),
        refusal: listener.refusal().map(ToString::to_string).unwrap_or_default(),
    };
    let observer = Observer::new(Arc::new(Progress::default()), None);
    match open.task {
        Task::Receive { destination } => {
            let destination = rights.path(&destination).map_err(SessionError::Local)?;
            outbox.say(&Message::Accept(accept)).map_err(SessionError::bug)?;
            let mut tasks = JoinSet::new();
            let (says, take) = (outbox.clone(), Channel::into_receiver);
            let channels = reach::agent::channels(listener, config, heard, says, &mut tasks, take);
            let path = destination.as_os_str().as_bytes();
            let (inbox, job) = (&mut inbox, open.job);
            here::receive_into(path, job, inbox, outbox, channels, options, observer, None).await?;
        }
        Task::Measure { directory } => {
            let grounds = measure::agent::Grounds {
                directory: rights.path(&directory).map_err(SessionError::Local)?,
                access: rights.access,
                is_confined: rights.root.is_some(),
                streams: options.streams,
            };
            outbox.say(&Message::Accept(accept)).map_err(SessionError::bug)?;
            let mut tasks = JoinSet::new();
            let (says, take) = (outbox.clone(), |channel| channel);
            let channels = reach::agent::channels(listener, config, heard, says, &mut tasks, take);
            measure::agent::serve(grounds, &mut inbox, outbox, channels).await?;
        }
        // It was begun above, and never comes here.
        Task::SendTo { .. } => return Err(SessionError::bug("no channels are sent to")),
        Task::Send { sources } => {
            let sources = rights.sources(&sources)?;
            let accept = Message::Accept(accept);
            let open = |paths| {
                LocalSource::open(&sources, &options, paths)
                    .map_err(|error| SessionError::Local(error.to_failure()))
            };
            let source = if options.select.has_paths {
                outbox.say(&accept).map_err(SessionError::bug)?;
                open(Some(paths(&mut inbox).await?))?
            } else {
                let source = open(None)?;
                outbox.say(&accept).map_err(SessionError::bug)?;
                source
            };
            let mut tasks = JoinSet::new();
            let (says, take) = (outbox.clone(), Channel::into_sender);
            let channels = reach::agent::channels(listener, config, heard, says, &mut tasks, take);
            let window = client.max_open_entries;
            send::run(source, &mut inbox, outbox, channels, options, window, observer).await?;
        }
    }
    Ok(())
}

/// Why something that was asked for is not allowed; with the host's name where there is another one.
fn refusal(task: &Task, failure: Failure) -> SessionError {
    SessionError::Local(match task {
        Task::SendTo { to, .. } => third_party::agent::of_host(&to.source_host, &failure),
        _ => failure,
    })
}

/// The client's list of what of the sources is meant (SEL-4).
pub async fn paths<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
) -> Result<Vec<Vec<u8>>, SessionError> {
    let (mut all, mut len) = (Vec::new(), 0);
    loop {
        match inbox.next().await? {
            Message::Paths { paths, last } => {
                len += paths.iter().map(|path| path.len() + 32).sum::<usize>();
                if len > MAX_PATHS_LEN {
                    let text = "the list of paths is longer than 256 MiB (SEL-4)";
                    return Err(SessionError::violation(text));
                }
                all.extend(paths);
                if last {
                    return Ok(all);
                }
            }
            Message::Abort(failure) => return Err(ControlError::Aborted(failure).into()),
            Message::Ping => {}
            other => {
                let text = format!("{} came before all paths", other.label());
                return Err(SessionError::violation(text));
            }
        }
    }
}

/// Where this host was reached: the address that the client's ssh connected to.
fn addresses() -> Vec<String> {
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    ssh::server_address(&connection).iter().map(ToString::to_string).collect()
}

/// A path below a directory, unless it begins at the root.
fn below(directory: &Path, path: &[u8]) -> PathBuf {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let below = path.strip_prefix("~").unwrap_or(path);
    // Joining would drop a trailing slash, which means something.
    let mut joined = directory.join(below).into_os_string();
    if path.as_os_str().as_bytes().ends_with(b"/") && !joined.as_bytes().ends_with(b"/") {
        joined.push("/");
    }
    joined.into()
}

/// Where further logins join, if this system has such places.
fn meeting(is_wanted: bool) -> Result<Option<Meeting>, SessionError> {
    let [name, _] = halves(here::random()?);
    Ok(if is_wanted { Meeting::open(name).ok() } else { None })
}

fn halves(bytes: [u8; 32]) -> [[u8; 16]; 2] {
    let mut halves = [[0; 16]; 2];
    halves.as_flattened_mut().copy_from_slice(&bytes);
    halves
}

/// How many words about data channels may wait: the client says one for each way.
const MAX_WORDS: usize = 64;

/// How much memory a list of paths may take, in bytes.
const MAX_PATHS_LEN: usize = 256 << 20;

/// How long the client may be silent (SES-7).
const CLIENT_SILENCE: Duration = Duration::from_secs(10);

/// The exit code of an agent whose client fell silent: a time-out, as rsync has it.
const SILENCE_EXIT_CODE: i32 = 30;

/// The exit code of an agent whose session failed: an error in a stream, as rsync has it. None of those
/// after which a script goes on (BOOT-2), as what is left on its input may be anything.
const FAILED_EXIT_CODE: u8 = 12;

/// The client said nothing but that it does not want this agent (BOOT-2): nothing of a session can be
/// left on its input, which a script may read from here on.
const NOT_WANTED_EXIT_CODE: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    /// PATH-2: the host's range prevails over a client that knows nothing of it.
    #[test]
    fn the_host_decides_on_which_ports_it_listens() {
        let ports = |own, wanted| Rights::default().with_ports(own).ports(wanted);
        assert_eq!(ports(None, None), None);
        assert_eq!(ports(None, Some((5, 9))), Some((5, 9)));
        assert_eq!(ports(Some((5, 9)), None), Some((5, 9)));
        assert_eq!(ports(Some((5, 9)), Some((8, 20))), Some((8, 9)));
        assert_eq!(ports(Some((5, 9)), Some((1, 65_535))), Some((5, 9)));
        assert_eq!(ports(Some((5, 9)), Some((10, 20))), Some((5, 9)));
    }
}
