//! A byte stream to a command on another host, or on this one.
//!
//! The user's own `ssh` program makes the connection, so that its configuration, jump hosts, agents
//! and second factors work as they do everywhere else. Where there is none, or if it is asked for,
//! the client in `builtin` does. This module imports nothing of ours: what the bytes mean is the caller's business.

mod builtin;
mod process;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Command;

pub use process::{Input, Output, Process};

/// What makes ssh connections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Client {
    /// A program that takes ssh's arguments.
    Program(OsString),
    /// This program itself.
    Builtin,
}

/// What is to be started on another host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Started<'a> {
    /// A command line, which the login shell parses.
    Command(&'a str),
    /// What the server knows by this name, such as `sftp` (RFC 4254, section 6.5).
    Subsystem(&'a str),
}

/// How to start something on another host.
#[derive(Clone, Debug)]
pub struct Login {
    pub client: Client,
    /// Passed to ssh as they are, before the host.
    pub arguments: Vec<OsString>,
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
}

/// What ssh's configuration makes of a host's name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolved {
    /// The name or address that ssh connects to.
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
    /// What it is called among the known hosts (`HostKeyAlias` in `ssh_config(5)`).
    pub alias: Option<String>,
}

impl Login {
    /// Logs in and starts something.
    ///
    /// # Errors
    ///
    /// If the ssh program cannot be started; whether it can log in shows later.
    pub fn start(&self, started: Started<'_>) -> io::Result<Process> {
        match &self.client {
            Client::Program(program) => {
                Self::finish(self.complete(Command::new(program)), &self.host, started)
            }
            Client::Builtin => Ok(builtin::start(self.clone(), started, false)),
        }
    }

    fn finish(mut command: Command, host: &str, started: Started<'_>) -> io::Result<Process> {
        command.args(["-T", "-x", "-a", "-e", "none"]);
        // Whatever the user's configuration says about these, a session needs a plain byte stream.
        for option in
            ["RequestTTY=no", "RemoteCommand=none", "ClearAllForwardings=yes", "Compression=no"]
        {
            command.arg("-o").arg(option);
        }
        let last = match started {
            Started::Command(line) => line,
            Started::Subsystem(name) => {
                command.arg("-s");
                name
            }
        };
        command.arg("--").arg(host).arg(last);
        Process::start_guarded(command)
    }

    /// Logs in once more and starts something, without asking anybody anything and on a connection of
    /// its own.
    ///
    /// # Errors
    ///
    /// If the ssh program cannot be started; whether it can log in shows later.
    pub fn start_further(&self, started: Started<'_>) -> io::Result<Process> {
        let program = match &self.client {
            Client::Program(program) => program,
            Client::Builtin => return Ok(builtin::start(self.clone(), started, true)),
        };
        let mut command = Command::new(program);
        // Before the user's own: of each option, ssh takes the first value that it is given.
        for option in ["BatchMode=yes", "ControlMaster=no", "ControlPath=none"] {
            command.arg("-o").arg(option);
        }
        let mut command = self.complete(command);
        // A jump host is another ssh process, which does not know of BatchMode: whom it asks says nothing.
        command.env("SSH_ASKPASS_REQUIRE", "force").env("SSH_ASKPASS", "/bin/false");
        // What ends a run at a terminal, Ctrl-C, is for us alone: there is something to put in order first. The
        // first login may ask somebody, and has to be in the foreground.
        command.process_group(0);
        Self::finish(command, &self.host, started)
    }

    /// The same host, if its name stands for several ones, of which this is the address of one. It is
    /// still known by its name.
    #[must_use]
    pub fn at(&self, address: IpAddr, resolved: &Resolved) -> Self {
        let Resolved { host, user, port, alias } = resolved;
        let known_as = match (alias, port) {
            (Some(alias), _) => alias.clone(),
            (None, Some(port)) if *port != DEFAULT_PORT => format!("[{host}]:{port}"),
            (None, _) => host.clone(),
        };
        // Of each option, the first value counts. What the configuration says about the name may not be
        // said about the address.
        let options = [format!("-oHostName={address}"), format!("-oHostKeyAlias={known_as}")];
        let arguments = options.into_iter().map(Into::into).chain(self.arguments.iter().cloned());
        Self {
            arguments: arguments.collect(),
            user: self.user.clone().or_else(|| user.clone()),
            port: self.port.or(*port),
            ..self.clone()
        }
    }

    /// What the host's name means, as ssh's configuration has it; `None` behind a jump host or a
    /// proxy, where it means something only there.
    pub async fn resolved_host(&self) -> Option<Resolved> {
        let program = match &self.client {
            Client::Program(program) => program,
            Client::Builtin => return builtin::resolved_host(self).await,
        };
        let text = self.told(program).await.ok()?;
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
                .map(str::to_owned)
        };
        let is_proxied = ["proxyjump", "proxycommand"]
            .iter()
            .any(|key| value(key).is_some_and(|setting| setting != "none"));
        let host = value("hostname").filter(|_| !is_proxied)?;
        let port = value("port").and_then(|port| port.parse().ok());
        Some(Resolved { host, user: value("user"), port, alias: value("hostkeyalias") })
    }

    /// The same for connections that carry files themselves: with the ciphers first that this machine's
    /// processor is quickest with, of those that the configuration allows, and an end to a server that has
    /// fallen silent. ssh prefers another cipher of its own accord, and waits for ever.
    pub async fn carrying_files(mut self) -> Self {
        let Client::Program(program) = &self.client else { return self };
        let Ok(text) = self.told(program).await else { return self };
        let setting = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let mut options = Vec::new();
        if let Some(ciphers) = setting("ciphers ").filter(|_| has_aes()).and_then(fast_first) {
            options.push(format!("Ciphers={ciphers}"));
        }
        if setting("serveraliveinterval ").is_some_and(|it| it.trim() == "0") {
            options.push(format!("ServerAliveInterval={}", ALIVE_INTERVAL.as_secs()));
        }
        // One that has stopped may still be connected to, and never say who it is.
        if setting("connecttimeout ").is_some_and(|it| matches!(it.trim(), "none" | "0")) {
            options.push(format!("ConnectTimeout={}", CONNECT_TIMEOUT.as_secs()));
        }
        // What the user has said in the arguments stands before it, and prevails.
        self.arguments.extend(options.into_iter().flat_map(|it| ["-o".into(), it.into()]));
        self
    }

    /// What the ssh program says that its configuration is for this host (`ssh -G`). It is asked once for
    /// all logins of this process that are alike.
    async fn told(&self, program: &OsStr) -> io::Result<Arc<str>> {
        static TOLD: Mutex<BTreeMap<Vec<OsString>, Arc<str>>> = Mutex::new(BTreeMap::new());
        // Every change is a single step, so a panic elsewhere spoils nothing.
        let told = || TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = self.complete(Command::new(program));
        command.arg("-G").arg("--").arg(&self.host).stdin(Stdio::null());
        let words = command.as_std();
        let question: Vec<OsString> =
            std::iter::once(words.get_program()).chain(words.get_args()).map(Into::into).collect();
        if let Some(answer) = told().get(&question) {
            return Ok(Arc::clone(answer));
        }
        command.kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(5), command.output()).await;
        let output = output.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if !output.status.success() {
            let complaints = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(io::Error::other(complaints));
        }
        let answer: Arc<str> = String::from_utf8_lossy(&output.stdout).into();
        let mut told = told();
        if told.len() >= MAX_TOLD {
            told.clear();
        }
        told.insert(question, Arc::clone(&answer));
        Ok(answer)
    }

    fn complete(&self, mut command: Command) -> Command {
        command.args(&self.arguments);
        if let Some(user) = &self.user {
            command.arg("-l").arg(user);
        }
        if let Some(port) = self.port {
            command.arg("-p").arg(port.to_string());
        }
        command
    }
}

/// After how long a silent server is asked whether it is there, where ssh's configuration does not say.
pub const ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How long a server may take to introduce itself, where ssh's configuration does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_mins(1);

/// A list of ciphers with AES-GCM in front, if there is any reason to change it.
fn fast_first(allowed: &str) -> Option<String> {
    let is_fast = |cipher: &&str| cipher.starts_with("aes") && cipher.contains("-gcm@");
    let (fast, rest): (Vec<&str>, Vec<&str>) = allowed.trim().split(',').partition(is_fast);
    let ordered = [fast, rest].concat().join(",");
    (ordered != allowed.trim()).then_some(ordered)
}

/// Whether this machine's processor does AES by itself.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

/// Whether the search path has this program.
pub fn is_installed(program: &str) -> bool {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories).any(|directory| is_program(&directory.join(program)))
}

/// Starts a program of this machine in the same way.
///
/// # Errors
///
/// If it cannot be started.
pub fn start_locally(program: &OsStr, arguments: &[&str]) -> io::Result<Process> {
    let mut command = Command::new(program);
    command.args(arguments);
    Process::start(command)
}

/// Quotes a word for a POSIX shell, and for the C shells too.
///
/// A leading `~/` stays outside the quotes, so that it means the home directory.
pub fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    let (home, rest) = match word.strip_prefix("~/") {
        Some(rest) => ("~/", rest),
        None => ("", word),
    };
    if !rest.is_empty() && rest.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("{home}'{}'", rest.replace('\'', r"'\''"))
}

/// Where ssh servers listen (RFC 4253, section 4.1).
const DEFAULT_PORT: u16 = 22;

/// For how many sorts of logins it is remembered what the configuration says of them.
const MAX_TOLD: usize = 256;

/// The address of the server that ssh connected to, from `SSH_CONNECTION`: client address, client
/// port, server address, server port (ssh(1), ENVIRONMENT).
pub fn server_address(ssh_connection: &str) -> Option<IpAddr> {
    ssh_connection.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// The address that the client has for the server, from `SSH_CONNECTION`.
pub fn client_address(ssh_connection: &str) -> Option<IpAddr> {
    ssh_connection.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_remote_shell_as_they_are() {
        assert_eq!(quote("fastsync"), "fastsync");
        assert_eq!(quote("/opt/fast sync/bin"), "'/opt/fast sync/bin'");
        assert_eq!(quote("~/bin/fastsync"), "~/bin/fastsync");
        assert_eq!(quote("~/my bin/$(x)"), "~/'my bin/$(x)'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }

    /// One of several hosts is known by the name of all.
    #[test]
    fn a_login_can_be_held_to_an_address() {
        let login = Login {
            client: Client::Builtin,
            arguments: vec!["-J".into(), "x".into()],
            host: "cluster".to_owned(),
            user: Some("me".to_owned()),
            port: None,
        };
        let resolved = |port, alias: Option<&str>| Resolved {
            host: "login.example".to_owned(),
            user: Some("other".to_owned()),
            port: Some(port),
            alias: alias.map(str::to_owned),
        };
        let address = "192.0.2.7".parse().unwrap();
        let at = |port, alias| login.at(address, &resolved(port, alias));
        let held = at(22, None);
        assert_eq!(held.arguments[..2], ["-oHostName=192.0.2.7", "-oHostKeyAlias=login.example"]);
        assert_eq!(held.arguments[2..], ["-J", "x"]);
        assert_eq!((held.user.as_deref(), held.port), (Some("me"), Some(22)));
        assert_eq!(at(2222, None).arguments[1], "-oHostKeyAlias=[login.example]:2222");
        assert_eq!(at(2222, Some("own")).arguments[1], "-oHostKeyAlias=own");
    }

    /// Nothing is allowed that was not, and nothing left out.
    #[test]
    fn fast_ciphers_come_first() {
        let default = "chacha20-poly1305@openssh.com,aes128-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com";
        let ordered = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr";
        assert_eq!(fast_first(default).as_deref(), Some(ordered));
        for allowed in [ordered, "chacha20-poly1305@openssh.com", ""] {
            assert_eq!(fast_first(allowed), None);
        }
    }

    #[test]
    fn the_server_that_answered_is_known() {
        let address = server_address("10.99.0.1 40000 10.99.0.2 22");
        assert_eq!(address, Some("10.99.0.2".parse().unwrap()));
        let address = client_address("10.99.0.1 40000 10.99.0.2 22");
        assert_eq!(address, Some("10.99.0.1".parse().unwrap()));
        assert_eq!(server_address("fe80::1 4 fe80::2 22"), Some("fe80::2".parse().unwrap()));
        assert_eq!(server_address("what"), None);
    }

    /// Each way of logging in is asked for once, and another one anew.
    #[tokio::test]
    async fn the_configuration_is_asked_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        let script = format!("echo x >>'{}'; echo hostname \"$3\"", asked.display());
        let login = |host: &str| Login {
            client: Client::Program("sh".into()),
            arguments: vec!["-c".into(), script.clone().into(), "ssh".into()],
            host: host.to_owned(),
            user: None,
            port: None,
        };
        for host in ["one", "one", "two", "one"] {
            let resolved = login(host).resolved_host().await.unwrap();
            assert_eq!(resolved.host, host);
        }
        assert_eq!(std::fs::read(asked).unwrap(), b"x\nx\n");
    }

    #[tokio::test]
    async fn a_silent_server_is_not_waited_for_for_ever() {
        let arguments = async |interval: &str, timeout: &str| {
            let script =
                format!("echo serveraliveinterval {interval}; echo connecttimeout {timeout}");
            let login = Login {
                client: Client::Program("sh".into()),
                arguments: vec!["-c".into(), script.into()],
                host: "host".to_owned(),
                user: None,
                port: None,
            };
            login.carrying_files().await.arguments.split_off(2)
        };
        // How often it is asked is left to ssh, whose default is also the built-in client's.
        let alive = ["-o", "ServerAliveInterval=15"];
        let connects = ["-o", "ConnectTimeout=60"];
        assert_eq!(arguments("0", "none").await, [&alive[..], &connects].concat());
        assert_eq!(arguments("300", "none").await, connects, "what somebody has said holds");
        assert!(arguments("300", "5").await.is_empty());
    }

    #[tokio::test]
    async fn a_command_is_a_byte_stream_with_complaints() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut process =
            start_locally("sh".as_ref(), &["-c", "cat; echo no >&2; exit 3"]).unwrap();
        let (mut stdin, mut stdout) = process.take_streams().unwrap();
        stdin.write_all(b"hello").await.unwrap();
        drop(stdin);
        let mut echoed = Vec::new();
        stdout.read_to_end(&mut echoed).await.unwrap();
        let status = process.wait(Duration::from_secs(10)).await.unwrap();
        assert_eq!((&echoed[..], status.code()), (&b"hello"[..], Some(3)));
        assert_eq!(process.complaints(), "no");
    }
}
