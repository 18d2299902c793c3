//! Two hosts and the network between them: `near`, where the program is started, and `far`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::network::{add_host, connect};

pub const FASTSYNC: &str = env!("CARGO_BIN_EXE_fastsync");

/// Both ways to log in.
pub const CLIENTS: [&str; 2] = ["--ssh=system", "--ssh=builtin"];

/// How long anything may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Two hosts with a tree to copy. Dropping it takes all away.
pub struct Hosts {
    dir: tempfile::TempDir,
    pub near: String,
    pub far: String,
    servers: Vec<Child>,
    /// Commands that change what a server sees of the file system, which is for it alone.
    before: String,
    /// A third host, through which alone `near` reaches the servers; see [`Hosts::and_gate`].
    pub gate: Option<String>,
    /// A third host with a server, from which files come; see [`Hosts::and_source`].
    pub source: Option<String>,
}

impl Hosts {
    /// Two hosts that reach each other over IPv4 and IPv6, with a server that lets `near` in.
    pub fn new() -> Self {
        Self::with_server("")
    }

    /// The same with more lines for the server's configuration.
    pub fn with_server(lines: &str) -> Self {
        Self::with_services(lines, |_| String::new())
    }

    /// The same with a second factor: the server also wants a code, and notes how often it was given
    /// one in `codes`.
    pub fn with_second_factor() -> Self {
        let lines = "UsePAM yes\nKbdInteractiveAuthentication yes\n\
                     AuthenticationMethods publickey,keyboard-interactive";
        Self::with_services(lines, |hosts| hosts.ask_for("246810"))
    }

    /// The same where a password is all that lets in.
    pub fn with_password() -> Self {
        let lines = "UsePAM yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\n\
                     AuthenticationMethods password";
        Self::with_services(lines, |hosts| hosts.ask_for("246810"))
    }

    /// The same with a second account, `guest`, with the number 12345; on another port too.
    pub fn with_guest() -> Self {
        Self::with_services("Port 2222", Self::let_guest_in)
    }

    fn with_services(lines: &str, before: impl FnOnce(&Self) -> String) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (near, far) = (name("n", number), name("f", number));
        let dir = tempfile::Builder::new().prefix("reach-").tempdir().unwrap();
        let (servers, before_serving, gate, source) = (Vec::new(), String::new(), None, None);
        let mut hosts = Self { dir, near, far, servers, before: before_serving, gate, source };
        for host in [&hosts.near, &hosts.far] {
            add_host(host);
        }
        connect(&hosts.far, &hosts.near, "wan", 0);
        hosts.make_tree();
        hosts.prepare(lines);
        hosts.before = before(&hosts);
        hosts.serve(&hosts.far.clone());
        hosts
    }

    /// A program of these lines.
    pub fn script(&self, name: &str, lines: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// The commands after which there is one more account, whose home is `guest`.
    fn let_guest_in(&self) -> String {
        let at = self.dir.path().display();
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(self.path("guest")).unwrap();
        std::os::unix::fs::chown(self.path("guest"), Some(12345), Some(12345)).unwrap();
        let accounts = fs::read_to_string("/etc/passwd").unwrap();
        let guest = format!("guest:x:12345:12345::{at}/guest:/bin/sh\n");
        fs::write(self.path("passwd"), accounts + &guest).unwrap();
        // The program may lie where that account may not look.
        fs::remove_file(self.path("bin/fastsync")).unwrap();
        fs::write(self.path("bin/fastsync"), "").unwrap();
        format!("mount --bind {at}/passwd /etc/passwd\nmount --bind {FASTSYNC} {at}/bin/fastsync")
    }

    /// The command after which PAM asks for a code.
    fn ask_for(&self, code: &str) -> String {
        let at = self.dir.path().display();
        let check =
            format!("code=$(tr -d '\\0')\necho asked >>{at}/codes\ntest \"$code\" = {code}");
        self.script("check", &check);
        let pam = format!(
            "auth required pam_exec.so expose_authtok quiet {at}/check\nauth required pam_permit.so\n\
             account required pam_permit.so\nsession required pam_permit.so\n"
        );
        fs::write(self.path("pam"), pam).unwrap();
        format!("mount --bind {at}/pam /etc/pam.d/sshd")
    }

    /// The same with a jump host, `gate`, to the server `inner`, that is on a network of its own; and to
    /// `inner-source`, if there is a source.
    pub fn and_gate(mut self) -> Self {
        let gate = self.near.replace("fsr", "fsg");
        add_host(&gate);
        self.gate = Some(gate.clone());
        connect(&gate, &self.near, "out", 1);
        connect(&gate, &self.far, "in", 2);
        if let Some(source) = &self.source {
            connect(&gate, source, "src", 5);
        }
        self.serve(&gate);
        self
    }

    /// The same with a third host, `source`, that reaches the server and is reached by both others.
    pub fn and_source(mut self) -> Self {
        let source = self.near.replace("fsr", "fss");
        add_host(&source);
        self.source = Some(source.clone());
        connect(&source, &self.near, "near", 3);
        connect(&source, &self.far, "far", 4);
        for (server, via) in [("10.78.0.2/32", "10.78.4.1"), ("fd78::2/128", "fd78:4::1")] {
            run("ip", &["-n", &source, "route", "add", server, "via", via]);
        }
        self.serve(&source);
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make_tree(&self) {
        fs::create_dir_all(self.path("src/below")).unwrap();
        let noise = |seed: u8, len: usize| {
            let mut bytes = vec![0; len];
            blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
            bytes
        };
        fs::write(self.path("src/large"), noise(0, 30_000_000)).unwrap();
        for n in 1..20 {
            fs::write(self.path(&format!("src/below/{n}")), noise(n, 5000)).unwrap();
        }
    }

    /// Keys and configurations for the servers and for `near`; `lines` come first, and so prevail.
    fn prepare(&self, lines: &str) {
        fs::create_dir_all("/run/sshd").unwrap();
        fs::create_dir(self.path("bin")).unwrap();
        std::os::unix::fs::symlink(FASTSYNC, self.path("bin/fastsync")).unwrap();
        for key in ["host", "user"] {
            let file = self.path(key).display().to_string();
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &file]);
        }
        fs::copy(self.path("user.pub"), self.path("authorized_keys")).unwrap();
        let at = self.dir.path().display().to_string();
        let server = format!(
            "{lines}\nPort 22\nHostKey {at}/host\nPidFile none\nAuthorizedKeysFile {at}/authorized_keys\n\
             StrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n\
             LogLevel ERROR\nSetEnv PATH={at}/bin:/usr/bin:/bin\n"
        );
        fs::write(self.path("sshd_config"), server).unwrap();
        let client = format!(
            "Host far\nHostName 10.78.0.2\nHost far6\nHostName fd78::2\nHost gate\nHostName 10.78.1.2\n\
             Host second\nHostName 10.78.2.2\nHost source\nHostName 10.78.3.2\nHost inner\nHostName 10.78.2.1\n\
             Host inner-source\nHostName 10.78.5.1\nHost source6\nHostName fd78:3::2\nHost *\nUser root\n\
             IdentityFile {at}/user\nIdentitiesOnly yes\nIdentityAgent none\n\
             StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
        );
        fs::write(self.path("ssh_config"), client).unwrap();
    }

    /// Starts a server on a host, which has a mount namespace of its own.
    fn serve(&mut self, host: &str) {
        let mut command = self.on(host, "/bin/sh");
        let script = format!("{}\nexec /usr/sbin/sshd -D -f \"$1\" -E \"$2\"", self.before);
        command.args(["-ec", &script, "sh"]).arg(self.path("sshd_config")).arg(self.path("log"));
        self.servers.push(command.stdin(Stdio::null()).spawn().unwrap());
        let answers = until(Duration::from_secs(20), || {
            let mut listening = self.on(host, "ss");
            let output = listening.args(["-Hltn", "sport", "=", ":22"]).output().unwrap();
            !output.stdout.is_empty()
        });
        assert!(answers, "sshd does not start; see scripts/test. It says:\n{}", self.log());
    }

    /// A program on one of the hosts.
    pub fn on(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host]);
        let names = self.path("names");
        if host == self.near && names.exists() {
            // `ip` has given it a mount namespace of its own.
            let script = "mount --bind \"$0\" /etc/hosts; exec \"$@\"";
            command.args(["/bin/sh", "-ec", script]).arg(names);
        }
        command.arg(program);
        command.env("HOME", self.dir.path()).env("XDG_CONFIG_HOME", self.path("none"));
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"FASTSYNC_") {
                command.env_remove(name);
            }
        }
        command.env_remove("SSH_AUTH_SOCK").env_remove("SSH_CONNECTION");
        command
    }

    /// A push of the tree, with `-q --json`, to `far:` or what else the server is called.
    pub fn push(&self, flags: &[&str], server: &str) -> Command {
        self.push_with(self.on(&self.near, FASTSYNC), flags, server)
    }

    /// ssh on `near`.
    pub fn ssh(&self) -> Command {
        let mut command = self.on(&self.near, "ssh");
        command.arg("-F").arg(self.path("ssh_config"));
        command
    }

    /// The same to any location.
    pub fn push_to(&self, flags: &[&str], location: &str) -> Command {
        self.finish_push(self.on(&self.near, FASTSYNC), flags, location)
    }

    fn push_with(&self, command: Command, flags: &[&str], server: &str) -> Command {
        let location = format!("{server}:{}", self.path("dst").display());
        self.finish_push(command, flags, &location)
    }

    fn finish_push(&self, mut command: Command, flags: &[&str], location: &str) -> Command {
        command.args(["push", "-q", "--json", "--durability=none", "-F"]);
        command.arg(self.path("ssh_config")).args(flags);
        command.arg(format!("{}/", self.path("src").display())).arg(location);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A transfer of the tree between two servers, with `-q --json`: `verb` is `cp` or `sync`.
    pub fn between(&self, verb: &str, flags: &[&str], from: &str, to: &str) -> Command {
        let mut command = self.on(&self.near, FASTSYNC);
        self.finish_between(&mut command, verb, flags, from, to);
        command
    }

    fn finish_between(
        &self,
        command: &mut Command,
        verb: &str,
        flags: &[&str],
        from: &str,
        to: &str,
    ) {
        command.args([verb, "-q", "--json", "--durability=none", "-F"]);
        command.arg(self.path("ssh_config")).args(flags);
        command.arg(format!("{from}:{}/", self.path("src").display()));
        command.arg(format!("{to}:{}", self.path("dst").display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    /// The same at a terminal, where a person could be asked.
    pub fn between_at_terminal(&self, flags: &[&str], from: &str, to: &str) -> Command {
        let mut command = self.at_terminal();
        self.finish_between(&mut command, "cp", flags, from, to);
        command
    }

    /// The same from `near` to `far`.
    pub fn synced(&self, flags: &[&str]) -> Output {
        let mut command = self.on(&self.near, FASTSYNC);
        command.args(["sync", "-q", "--json", "--durability=none", "-F"]);
        command.arg(self.path("ssh_config")).args(flags);
        command.arg(format!("{}/", self.path("src").display()));
        command.arg(format!("far:{}", self.path("dst").display()));
        command.output().unwrap()
    }

    /// Copies from `source` to `far`, which must succeed within the time, and returns the summary.
    #[track_caller]
    pub fn copied(&self, flags: &[&str], limit: Duration) -> Value {
        self.copied_between(flags, ["source", "far"], limit)
    }

    /// The same between hosts of other names.
    #[track_caller]
    pub fn copied_between(&self, flags: &[&str], [from, to]: [&str; 2], limit: Duration) -> Value {
        let _ = fs::remove_dir_all(self.path("dst"));
        let begin = Instant::now();
        let output = self.between("cp", flags, from, to).output().unwrap();
        let took = begin.elapsed();
        assert!(output.status.success(), "{flags:?}: {}", said(&output));
        self.assert_same("dst");
        assert!(took < limit, "{flags:?}: it took {took:?}");
        summary(&output)
    }

    /// The same at a terminal, where a person could be asked.
    pub fn push_at_terminal(&self, flags: &[&str], server: &str) -> Command {
        self.push_with(self.at_terminal(), flags, server)
    }

    fn at_terminal(&self) -> Command {
        let mut command = self.on(&self.near, "timeout");
        command.args(["-s", "KILL", "100", "setsid", "-c", "-w", FASTSYNC]);
        command
    }

    /// What the servers say.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// How often the server was given a code.
    pub fn codes(&self) -> usize {
        fs::read_to_string(self.path("codes")).unwrap_or_default().lines().count()
    }

    /// `doctor` or `bench`, with `-q --json`, of the server.
    pub fn measure(&self, verb: &str, flags: &[&str]) -> Output {
        let mut command = self.on(&self.near, FASTSYNC);
        command.args([verb, "-q", "--json", "--duration=1", "--size=1M", "-F"]);
        command.arg(self.path("ssh_config")).args(flags);
        command.arg("--local-dir").arg(self.path("src"));
        command.arg(format!("far:{}", self.path("src").display()));
        command.output().unwrap()
    }

    /// Pushes, which must succeed within the time, and returns the summary.
    #[track_caller]
    pub fn pushed(&self, flags: &[&str], server: &str, limit: Duration) -> Value {
        let _ = fs::remove_dir_all(self.path("dst"));
        let begin = Instant::now();
        let output = self.push(flags, server).output().unwrap();
        let took = begin.elapsed();
        assert!(output.status.success(), "{flags:?}: {}", said(&output));
        self.assert_same("dst");
        assert!(took < limit, "{flags:?}: it took {took:?}");
        summary(&output)
    }

    /// Pulls the tree back, which must succeed, and returns the summary.
    #[track_caller]
    pub fn pulled(&self, flags: &[&str]) -> Value {
        let _ = fs::remove_dir_all(self.path("back"));
        let mut command = self.on(&self.near, FASTSYNC);
        command.args(["pull", "-q", "--json", "--durability=none", "-F"]);
        command.arg(self.path("ssh_config")).args(flags);
        command.arg(format!("far:{}/", self.path("src").display())).arg(self.path("back"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{flags:?}: {}", said(&output));
        self.assert_same("back");
        summary(&output)
    }

    #[track_caller]
    pub fn assert_same(&self, name: &str) {
        let mut command = Command::new("diff");
        let output = command.arg("-r").arg(self.path("src")).arg(self.path(name)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// The processes of `far` that run the program, with their command lines.
    pub fn agents(&self) -> Vec<(u32, String)> {
        programs_on(&self.far)
    }

    /// The same of `source`.
    pub fn source_agents(&self) -> Vec<(u32, String)> {
        programs_on(self.source.as_ref().unwrap())
    }

    /// What runs on `near`, with its command lines: what was started there, and what that has started.
    pub fn on_near(&self) -> Vec<(u32, String)> {
        processes_on(&self.near)
    }

    /// What runs on `far` and `source` for a login: all but the servers themselves.
    pub fn logins(&self) -> Vec<(u32, String)> {
        let hosts = [&self.far].into_iter().chain(&self.source);
        let mut found: Vec<_> = hosts.flat_map(|host| processes_on(host)).collect();
        found.retain(|(pid, _)| self.servers.iter().all(|server| server.id() != *pid));
        found
    }
}

fn processes_on(host: &str) -> Vec<(u32, String)> {
    let output = Command::new("ip").args(["netns", "pids", host]).output().unwrap();
    let pids = String::from_utf8(output.stdout).unwrap();
    let pids = pids.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.map(|pid| (pid, command_line(pid))).collect()
}

fn programs_on(host: &str) -> Vec<(u32, String)> {
    let program = fs::canonicalize(FASTSYNC).unwrap();
    let is_ours =
        |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
    processes_on(host).into_iter().filter(|(pid, _)| is_ours(pid)).collect()
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for mut server in self.servers.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
        for host in self.all() {
            let _ = Command::new("ip").args(["netns", "del", host]).status();
        }
    }
}

fn name(host: &str, number: u32) -> String {
    format!("fsr{}{host}{number}", std::process::id())
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Runs what has to succeed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; see scripts/test"));
    assert!(output.status.success(), "{program} {arguments:?}: {}; are you root?", said(&output));
}

pub fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// The last line of `--json`.
#[track_caller]
pub fn summary(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_else(|| panic!("{}", said(output)));
    serde_json::from_str(line).unwrap()
}

/// Looks again and again whether something has happened, at most for so long.
pub fn until(limit: Duration, mut has_happened: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !has_happened() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// How much there is below a directory, in bytes.
pub fn size(root: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let items = fs::read_dir(root).into_iter().flatten().flatten();
    items.filter_map(|item| item.metadata().ok()).map(|it| it.blocks() * 512).sum()
}
