//! A real OpenSSH server on 127.0.0.1, with keys, users' home and client configuration of its own.
//!
//! One serves all tests of this binary. It runs below a shell that waits for the end of its
//! standard input and then stops the server and removes its files, so that nothing is left however
//! this process ends.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::support::{FASTSYNC, Ran, Running, World, until};

#[derive(Debug)]
pub struct Sshd {
    dir: PathBuf,
    pub port: u16,
    /// Ends when this process does; see the module's documentation.
    _keeper: Child,
}

/// The server, which the first call starts.
pub fn sshd() -> &'static Sshd {
    static SSHD: OnceLock<Sshd> = OnceLock::new();
    SSHD.get_or_init(|| Sshd::start("sshd", ""))
}

/// Another one, which serves files by SFTP too.
pub fn sftp_server() -> &'static Sshd {
    static SSHD: OnceLock<Sshd> = OnceLock::new();
    SSHD.get_or_init(|| Sshd::start("sftp", "Subsystem sftp /usr/lib/openssh/sftp-server\n"))
}

impl Sshd {
    fn start(name: &str, settings: &str) -> Self {
        for program in [SERVER, "/usr/bin/ssh", "/usr/bin/ssh-keygen"] {
            let found = Path::new(program).is_file();
            assert!(found, "{program} is missing; scripts/test installs OpenSSH before the tests");
        }
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").expect("sshd needs /run/sshd; see scripts/test");
        }
        // Somebody else may take the port between our choice and the server's start.
        (0..5)
            .find_map(|attempt| Self::try_start(name, settings, attempt))
            .expect("the last attempt panics")
    }

    fn try_start(name: &str, settings: &str, attempt: u32) -> Option<Self> {
        let name = format!("{name}-{}-{attempt}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(dir.join("home/bin")).unwrap();
        fs::create_dir(dir.join("bin")).unwrap();
        std::os::unix::fs::symlink(FASTSYNC, dir.join("bin/fastsync")).unwrap();
        for key in ["host", "user", "stranger", "authority"] {
            make_key(&dir.join(key));
        }
        let certify = ["-q", "-s", "authority", "-I", "host", "-h", "-n", "*.0.0.1", "host.pub"];
        let certified = Command::new("ssh-keygen").args(certify).current_dir(&dir).status();
        assert!(certified.unwrap().success(), "ssh-keygen failed");
        fs::copy(dir.join("user.pub"), dir.join("authorized_keys")).unwrap();
        let port = free_port();
        write_configurations(&dir, port, settings);
        let mut keeper = keep(&dir);
        let mut is_over = || keeper.try_wait().unwrap().is_some();
        until(Duration::from_secs(20), || answers(port) || is_over());
        if is_over() {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(attempt < 4, "sshd does not start; see scripts/test. It says:\n{log}");
            return None;
        }
        Some(Self { dir, port, _keeper: keeper })
    }

    /// The configuration for `ssh -F`. It knows the hosts `testhost` and `jump`.
    pub fn config(&self) -> PathBuf {
        self.dir.join("ssh_config")
    }

    /// The same with a key that the server does not know.
    pub fn config_of_a_stranger(&self) -> PathBuf {
        self.dir.join("stranger_config")
    }

    /// Where keys and programs may lie as long as the server runs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lets in whoever has a new key, to run nothing but this command. Returns the configuration for
    /// `ssh -F` with this key.
    pub fn allow(&self, key: &Path, command: &str) -> PathBuf {
        make_key(key);
        let public = fs::read_to_string(key.with_extension("pub")).unwrap();
        self.authorize(&format!("restrict,command=\"{command}\" {public}"));
        let configuration = fs::read_to_string(self.config()).unwrap();
        let own = format!("IdentityFile {}/user\n", self.dir.display());
        let configuration =
            configuration.replace(&own, &format!("IdentityFile {}\n", key.display()));
        let path = key.with_extension("config");
        fs::write(&path, configuration).unwrap();
        path
    }

    /// Adds a line to the keys that may log in.
    pub fn authorize(&self, line: &str) {
        let file = fs::OpenOptions::new().append(true).open(self.dir.join("authorized_keys"));
        file.unwrap().write_all(format!("{}\n", line.trim_end()).as_bytes()).unwrap();
    }

    /// The home directory at the other end.
    pub fn home(&self) -> PathBuf {
        self.dir.join("home")
    }
}

impl World {
    /// Runs the program with ssh's configuration for the test server.
    pub fn run_ssh<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        let mut command = self.fastsync();
        command.args(arguments).arg("-F").arg(sshd().config());
        Running::start(&mut command).wait()
    }

    /// `testhost:` and a path of this world.
    pub fn remote(&self, name: impl AsRef<Path>) -> std::ffi::OsString {
        let mut location = std::ffi::OsString::from("testhost:");
        location.push(self.path(name));
        location
    }
}

/// A port that was free just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The user that runs the tests, who is the only one that can log in.
pub fn user() -> String {
    id("-un")
}

/// What `id` says of this process.
pub fn id(question: &str) -> String {
    let output = Command::new("id").arg(question).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Makes a key pair that no passphrase protects.
pub fn make_key(path: &Path) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path);
    assert!(command.status().unwrap().success(), "ssh-keygen failed");
}

fn write_configurations(dir: &Path, port: u16, settings: &str) {
    let at = dir.display();
    let server = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {at}/host\nHostCertificate {at}/host-cert.pub\nPidFile {at}/pid\n\
         AuthorizedKeysFile {at}/authorized_keys\nStrictModes no\nUsePAM no\n\
         PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         MaxStartups 100:30:200\nLogLevel ERROR\n{settings}\
         SetEnv HOME={at}/home PATH={at}/bin:/usr/bin:/bin\n"
    );
    fs::write(dir.join("sshd_config"), server).unwrap();
    let host_key = fs::read_to_string(dir.join("host.pub")).unwrap();
    fs::write(dir.join("known_hosts"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
    for (name, key) in [("ssh_config", "user"), ("stranger_config", "stranger")] {
        let client = format!(
            "Host testhost jump\nHostName 127.0.0.1\nPort {port}\n\
             Host *\nIdentityFile {at}/{key}\nIdentitiesOnly yes\nIdentityAgent none\n\
             UserKnownHostsFile {at}/known_hosts\nGlobalKnownHostsFile /dev/null\n\
             StrictHostKeyChecking yes\nBatchMode yes\n"
        );
        fs::write(dir.join(name), client).unwrap();
    }
}

/// Starts the server below a shell that outlives this process for a moment.
fn keep(dir: &Path) -> Child {
    let mut command = Command::new("/bin/sh");
    let script = "exec 3<&0; dir=$1; shift; \"$@\" & server=$!; \
                  (cat >/dev/null; kill $server; rm -rf \"$dir\") <&3 & wait $server";
    command.args(["-c", script, "sh"]).arg(dir);
    command.args([SERVER, "-D", "-f"]).arg(dir.join("sshd_config"));
    command.arg("-E").arg(dir.join("log"));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// Whether an ssh server greets on the port.
fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"SSH-"
}

/// sshd wants to be called by its full path.
const SERVER: &str = "/usr/sbin/sshd";
