//! A byte stream to a command on another host, or on this one.
//!
//! The user's own `ssh` program makes the connection, so that its configuration, jump hosts, agents
//! and second factors work as they do everywhere else. This module imports nothing of ours: what
//! the bytes mean is the caller's business.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::IpAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;

/// How to start a command on another host.
#[derive(Clone, Debug)]
pub struct Login {
    /// The ssh program.
    pub program: OsString,
    /// Passed to it as they are, before the host.
    pub arguments: Vec<OsString>,
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
}

impl Login {
    /// Starts `remote_command`, which the login shell of the other host parses.
    ///
    /// # Errors
    ///
    /// If the ssh program cannot be started; whether it can log in shows later.
    pub fn start(&self, remote_command: &str) -> io::Result<Process> {
        Self::finish(self.command(), &self.host, remote_command)
    }

    fn finish(mut command: Command, host: &str, remote_command: &str) -> io::Result<Process> {
        command.args(["-T", "-x", "-a", "-e", "none"]);
        // Whatever the user's configuration says about these, a session needs a plain byte stream.
        for option in
            ["RequestTTY=no", "RemoteCommand=none", "ClearAllForwardings=yes", "Compression=no"]
        {
            command.arg("-o").arg(option);
        }
        command.arg("--").arg(host).arg(remote_command);
        Process::start(command)
    }

    /// Logs in once more and starts `remote_command`, without asking anybody anything and on a
    /// connection of its own.
    ///
    /// # Errors
    ///
    /// If the ssh program cannot be started; whether it can log in shows later.
    pub fn start_further(&self, remote_command: &str) -> io::Result<Process> {
        let mut command = Command::new(&self.program);
        // Before the user's own: of each option, ssh takes the first value that it is given.
        for option in ["BatchMode=yes", "ControlMaster=no", "ControlPath=none"] {
            command.arg("-o").arg(option);
        }
        Self::finish(self.complete(command), &self.host, remote_command)
    }

    /// The name or address that ssh connects to, as its configuration resolves the host.
    pub async fn resolved_host(&self) -> Option<String> {
        let mut command = self.command();
        command.arg("-G").arg("--").arg(&self.host).stdin(Stdio::null()).stderr(Stdio::null());
        command.kill_on_drop(true);
        let output =
            tokio::time::timeout(Duration::from_secs(5), command.output()).await.ok()?.ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
                .map(str::to_owned)
        };
        // Behind a jump host or a proxy, the name means something only there.
        let is_proxied = ["proxyjump", "proxycommand"]
            .iter()
            .any(|key| value(key).is_some_and(|setting| setting != "none"));
        if is_proxied { None } else { value("hostname") }
    }

    fn command(&self) -> Command {
        self.complete(Command::new(&self.program))
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

/// The address of the server that ssh connected to, from `SSH_CONNECTION`: client address, client
/// port, server address, server port (ssh(1), ENVIRONMENT).
pub fn server_address(ssh_connection: &str) -> Option<IpAddr> {
    ssh_connection.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// The address that the client has for the server, from `SSH_CONNECTION`.
pub fn client_address(ssh_connection: &str) -> Option<IpAddr> {
    ssh_connection.split_ascii_whitespace().next()?.parse().ok()
}

/// A running command. Dropping it ends the command.
#[derive(Debug)]
pub struct Process {
    child: Child,
    complaints: Complaints,
    /// Owns the task that reads the command's standard error.
    tasks: JoinSet<()>,
}

impl Process {
    fn start(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        let mut child = command.spawn()?;
        let complaints = Complaints::default();
        let mut tasks = JoinSet::new();
        if let Some(stderr) = child.stderr.take() {
            tasks.spawn(complaints.clone().collect(stderr));
        }
        Ok(Self { child, complaints, tasks })
    }

    /// Takes the ends of the byte stream. `None` the second time.
    pub fn take_streams(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    /// The last of what the command wrote to its standard error.
    pub fn complaints(&self) -> String {
        self.complaints.text()
    }

    /// Waits until the command has ended; ends it after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let status = tokio::time::timeout(limit, self.child.wait()).await;
        let Ok(status) = status else {
            let _ = self.child.start_kill();
            return None;
        };
        // Whatever it said last is worth having; a grandchild may hold the pipe open for ever.
        let drain = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_millis(200), drain).await;
        status.ok()
    }
}

/// The last 32 KiB of a command's standard error.
#[derive(Clone, Debug, Default)]
struct Complaints(Arc<Mutex<VecDeque<u8>>>);

impl Complaints {
    const LIMIT: usize = 32 << 10;

    async fn collect(self, mut stderr: impl AsyncRead + Unpin) {
        let mut piece = [0; 4096];
        while let Ok(len @ 1..) = stderr.read(&mut piece).await {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(&piece[..len]);
            let excess = kept.len().saturating_sub(Self::LIMIT);
            kept.drain(..excess);
        }
    }

    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
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

    #[test]
    fn the_server_that_answered_is_known() {
        let address = server_address("10.99.0.1 40000 10.99.0.2 22");
        assert_eq!(address, Some("10.99.0.2".parse().unwrap()));
        let address = client_address("10.99.0.1 40000 10.99.0.2 22");
        assert_eq!(address, Some("10.99.0.1".parse().unwrap()));
        assert_eq!(server_address("fe80::1 4 fe80::2 22"), Some("fe80::2".parse().unwrap()));
        assert_eq!(server_address("what"), None);
    }

    #[tokio::test]
    async fn a_command_is_a_byte_stream_with_complaints() {
        use tokio::io::AsyncWriteExt as _;
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
