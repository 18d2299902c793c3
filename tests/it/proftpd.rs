//! Real SFTP servers of another family than OpenSSH's, on 127.0.0.1: `ProFTPD` with its module sftp. It
//! hashes files by itself (`check-file`), and can be told to do without OpenSSH's extensions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::sshd::{id, make_key, user};
use super::tools::{Server, serve};

/// A server, and the configuration with which ssh reaches it.
#[derive(Debug)]
pub struct ProFtpd {
    pub server: Server,
}

/// One with all that it can do, which the first call starts.
pub fn proftpd() -> &'static ProFtpd {
    static SERVER: OnceLock<ProFtpd> = OnceLock::new();
    SERVER.get_or_init(|| ProFtpd::start("proftpd", ""))
}

/// One that can do what the draft has, and nothing of OpenSSH's.
pub fn plain_proftpd() -> &'static ProFtpd {
    static SERVER: OnceLock<ProFtpd> = OnceLock::new();
    let extensions = "-checkFile -copyFile -fsync -hardlink -homeDirectory -posixRename \
                      -spaceAvailable -statvfs -vendorID -versionSelect -xattr";
    let settings = format!("SFTPExtensions {extensions}\n");
    SERVER.get_or_init(|| ProFtpd::start("proftpd-plain", &settings))
}

impl ProFtpd {
    fn start(name: &str, settings: &str) -> Self {
        for file in [SERVER, MODULE] {
            let found = Path::new(file).is_file();
            assert!(found, "{file} is missing; scripts/test installs ProFTPD");
        }
        let server = serve(name, |directory, port| {
            configure(directory, port, settings);
            let mut command = Command::new(SERVER);
            command.args(["--nodaemon", "--quiet", "--config"]).arg(directory.join("proftpd.conf"));
            command
        });
        Self { server }
    }

    /// The configuration for `ssh -F`. It knows the host `testhost`.
    pub fn config(&self) -> PathBuf {
        self.server.directory.join("ssh_config")
    }

    /// The requests that it was sent, one a line, such as `EXTENDED check-file-name`.
    pub fn requests(&self) -> String {
        fs::read_to_string(self.server.directory.join("requests")).unwrap()
    }
}

fn configure(directory: &Path, port: u16, settings: &str) {
    for key in ["host", "user"] {
        if !directory.join(key).exists() {
            make_key(&directory.join(key));
        }
    }
    // It reads keys as RFC 4716 has them.
    let mut export = Command::new("ssh-keygen");
    let exported = export.args(["-e", "-f"]).arg(directory.join("user.pub")).output().unwrap();
    fs::write(directory.join("keys"), exported.stdout).unwrap();
    let (at, user, group) = (directory.display(), user(), id("-gn"));
    let (uid, gid) = (id("-u"), id("-g"));
    fs::write(directory.join("users"), format!("{user}:x:{uid}:{gid}::{at}:/bin/sh\n")).unwrap();
    fs::write(directory.join("groups"), format!("{group}:x:{gid}:\n")).unwrap();
    for file in ["users", "groups"] {
        super::support::set_mode(&directory.join(file), 0o600);
    }
    let server = format!(
        "ServerName test\nServerType standalone\nDefaultAddress 127.0.0.1\nPort {port}\nUseIPv6 off\n\
         UseReverseDNS off\nWtmpLog off\nScoreboardFile none\nDelayEngine off\nControlsEngine off\n\
         PidFile {at}/pid\nSystemLog {at}/system\nMaxInstances none\nUser {user}\nGroup {group}\nRootLogin on\n\
         RequireValidShell off\nUseFtpUsers off\nAllowOverwrite on\nTimesGMT on\n\
         AuthUserFile {at}/users\nAuthGroupFile {at}/groups\nAuthOrder mod_auth_file.c\n\
         TransferLog none\nLogFormat request %r\nExtendedLog {at}/requests ALL request\n\
         LoadModule mod_sftp.c\nSFTPEngine on\nSFTPHostKey {at}/host\nSFTPLog {at}/sftp\n\
         SFTPAuthMethods publickey\nSFTPAuthorizedUserKeys file:{at}/keys\n{settings}"
    );
    fs::write(directory.join("proftpd.conf"), server).unwrap();
    let host_key = fs::read_to_string(directory.join("host.pub")).unwrap();
    fs::write(directory.join("known_hosts"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
    let client = format!(
        "Host testhost\nHostName 127.0.0.1\nPort {port}\nIdentityFile {at}/user\nIdentitiesOnly yes\n\
         IdentityAgent none\nUserKnownHostsFile {at}/known_hosts\nGlobalKnownHostsFile /dev/null\n\
         StrictHostKeyChecking yes\nBatchMode yes\n"
    );
    fs::write(directory.join("ssh_config"), client).unwrap();
}

const SERVER: &str = "/usr/sbin/proftpd";
const MODULE: &str = "/usr/lib/proftpd/mod_sftp.so";
