//! Hosts as a user may find them: with any login shell, any home, any search path, and no fastsync.
//!
//! Each is a key of its own for the one test server, which runs a script instead of the account's
//! shell. What the script makes of the command is what the login shell there would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::sshd::sshd;
use super::support::{FASTSYNC, QUICK, Ran, Running, World};

pub struct Far<'a> {
    world: &'a World,
    name: String,
    config: PathBuf,
    /// What a pushed file is called.
    target: String,
}

/// The program as it is released: without what a debugger needs, which is most of it.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let path = sshd().dir().join("stripped");
        let status = Command::new("strip").arg("-o").arg(&path).arg(FASTSYNC).status();
        assert!(status.expect("strip is missing; see scripts/test").success());
        path
    })
}

impl<'a> Far<'a> {
    /// A host of this name whose login shell is a program, with `lines` run before it.
    pub fn new(world: &'a World, name: &str, shell: &str, lines: &str) -> Self {
        let home = world.dir(format!("{name}/home"));
        world.dir(format!("{name}/bin"));
        let top = world.path(name);
        let script = world.script(
            &format!("{name}/shell"),
            &format!(
                "top='{}'; HOME='{}'; PATH=\"$top/bin:/usr/bin:/bin\"; export HOME PATH\n\
                 echo \"$SSH_ORIGINAL_COMMAND\" >>\"$top/logins\"\n{lines}\n\
                 {shell} -c \"$SSH_ORIGINAL_COMMAND\"\n\
                 code=$?; find \"$HOME\" /tmp/fastsync* -xdev -type f >\"$top/files\" 2>/dev/null\n\
                 exit $code",
                top.display(),
                home.display(),
            ),
        );
        let config = sshd().allow(&top.join("key"), script.to_str().unwrap());
        Self { world, name: name.to_owned(), config, target: "arrived".into() }
    }

    /// The same where file systems can be mounted that nobody else sees; `/tmp` is one of them.
    pub fn with_mounts(world: &'a World, name: &str, mounts: &str) -> Self {
        let again = "if [ -z \"$INSIDE\" ]; then INSIDE=1 exec unshare -m -- \"$0\"; fi";
        // The host itself may be below `/tmp`, and then has to be there again. The kernel knows the way
        // to what is hidden, by the working directory; the path leads elsewhere by then.
        let tmp = "(cd \"$top\" && mount -t tmpfs -o mode=1777 none /tmp && \
                   mkdir -p \"$top\" && mount --no-canonicalize --bind . \"$top\") || exit 99";
        let lines = format!("{again}\n{tmp}\n{mounts}");
        Self::new(world, name, "/bin/sh", &lines)
    }

    /// The same host, with another destination.
    pub fn beside(&self, target: &str) -> Self {
        let (name, config) = (self.name.clone(), self.config.clone());
        Self { world: self.world, name, config, target: target.into() }
    }

    /// Puts a program into its search path.
    pub fn has(&self, name: &str, lines: &str) -> &Self {
        self.world.script(&format!("{}/bin/{name}", self.name), lines);
        self
    }

    pub fn command(&self, flags: &[&str]) -> Command {
        self.command_of(program(), flags)
    }

    pub fn command_of(&self, program: &Path, flags: &[&str]) -> Command {
        if !self.world.path("file").exists() {
            self.world.write("file", 300_000);
        }
        let mut command = self.world.command(program.to_str().unwrap());
        let destination = format!("testhost:{}", self.path(&self.target).display());
        command.args(["push", "file", &destination, "-F"]).arg(&self.config);
        command.args(QUICK).arg("--retries=0").args(flags);
        command
    }

    /// Pushes a file there, and checks that it is there if it should be.
    #[track_caller]
    pub fn push(&self, flags: &[&str], code: i32) -> Ran {
        let ran = Running::start(&mut self.command(flags)).wait().exits(code);
        if code == 0 {
            self.arrived();
        }
        ran
    }

    #[track_caller]
    pub fn arrived(&self) {
        super::support::assert_same_content(&self.world.path("file"), &self.path(&self.target));
        fs::remove_file(self.path(&self.target)).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.world.path(&self.name).join(name)
    }

    /// The remote commands so far, one for each login.
    pub fn logins(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("logins")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Programs, and whatever else there is, in its usual cache directory.
    pub fn cached(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("home/.cache/fastsync"));
        let mut paths: Vec<_> =
            entries.into_iter().flatten().map(|it| it.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// The files that were in its home and below `/tmp` at the end of the last login.
    pub fn files(&self) -> String {
        fs::read_to_string(self.path("files")).unwrap()
    }
}
