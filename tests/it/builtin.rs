//! The built-in ssh client against a real sshd: keys, agents, certificates, prompts, and who the
//! server is.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::far::Far;
use super::sshd::{sshd, user};
use super::support::{
    FASTSYNC, QUICK, Ran, Running, World, assert_same, assert_same_content, set_mode, until,
};
use super::terminal::converse;

const SIZES: &[u64] = &[0, 1, 65_536, 9_000_000];

impl World {
    /// Runs the program with the built-in client and a configuration of ssh.
    fn run_builtin<A: AsRef<OsStr>>(
        &self,
        config: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Ran {
        let mut command = self.fastsync();
        command.args(arguments).args(["--ssh=builtin", "-F"]).arg(config);
        Running::start(&mut command).wait()
    }

    /// A configuration for the test server with these lines before all others.
    fn config(&self, name: &str, lines: &str) -> PathBuf {
        let usual = fs::read_to_string(sshd().config()).unwrap();
        self.text(name, format!("{lines}\n{usual}"))
    }

    /// Pushes a file, which must arrive.
    #[track_caller]
    fn pushes(&self, config: &Path) {
        let _ = fs::remove_file(self.path("there"));
        let file = self.write("file", 100_000);
        let push = ["push".into(), "file".into(), self.remote("there")];
        self.run_builtin(config, push.into_iter().chain(QUICK.map(Into::into))).exits(0);
        assert_same_content(&file, &self.path("there"));
    }

    /// Pushes a file, which must be refused.
    #[track_caller]
    fn is_refused(&self, config: &Path) -> Ran {
        self.write("file", 10);
        let ran = self.run_builtin(config, ["push".into(), "file".into(), self.remote("no")]);
        let ran = ran.exits(44);
        assert!(!self.path("no").exists());
        ran
    }

    /// Makes a key that the server lets in.
    fn make_key(&self, name: &str, flags: &[&str]) -> PathBuf {
        let key = self.path(name);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-C", "test", "-f"]).arg(&key).args(flags);
        assert!(command.status().unwrap().success(), "ssh-keygen {flags:?}");
        sshd().authorize(&fs::read_to_string(key.with_extension("pub")).unwrap());
        key
    }
}

/// The same lines that [`super::sshd`] has for its own key.
fn with_key(key: &Path) -> String {
    format!("Host *\nIdentityFile \"{}\"\nHost *\n", key.display())
}

/// The usual configuration without the key that it names.
fn config_without_key(world: &World, name: &str, lines: &str) -> PathBuf {
    let usual = fs::read_to_string(sshd().config()).unwrap();
    let kept = usual.lines().filter(|line| {
        !["IdentityFile", "IdentitiesOnly", "IdentityAgent"].iter().any(|it| line.starts_with(it))
    });
    let kept: Vec<_> = kept.collect();
    world.text(name, format!("{lines}\n{}\n", kept.join("\n")))
}

#[test]
fn a_tree_goes_there_and_comes_back() {
    let world = World::new();
    world.write_everything("src", SIZES);
    let config = sshd().config();
    for (name, flags) in [("auto", &["--json"][..]), ("ssh", &["--json", "--transport=ssh"])] {
        let there = world.remote(name);
        let mut contents = there.clone();
        contents.push("/");
        let add = |words: [std::ffi::OsString; 3]| {
            words.into_iter().chain(flags.iter().map(Into::into)).collect::<Vec<_>>()
        };
        let ran = world.run_builtin(&config, add(["push".into(), "src/".into(), there]));
        let summary = ran.exits(0).summary();
        let transport = if name == "ssh" { "ssh" } else { "tcp+tls" };
        assert_eq!(summary["transport"], transport);
        assert_same(world.path("src"), world.path(name));
        let back = format!("{name}-back");
        world.run_builtin(&config, add(["pull".into(), contents, back.clone().into()])).exits(0);
        assert_same(world.path("src"), world.path(back));
    }
}

/// Its own reading of the configuration counts, as nobody else is there to ask.
#[test]
fn without_an_ssh_program_the_builtin_client_is_used() {
    let world = World::new();
    let file = world.write("file", 100_000);
    let nothing = world.dir("no programs");
    let main = world.config("main", "");
    let included = world
        .text("with=equals", format!("Host alias\nHostName=127.0.0.1\nPort = {}\n", sshd().port));
    let config = world.text(
        "config",
        format!("Include \"{}\"\nInclude {}\n", included.display(), main.display()),
    );
    let push = |host: &str, to: &str, flags: &[&str]| {
        let mut command = world.fastsync();
        command.env("PATH", &nothing).args(["push", "file"]);
        command.arg(format!("{host}:{}", world.path(to).display()));
        command.arg("-F").arg(&config).args(flags).args(QUICK);
        Running::start(&mut command).wait()
    };
    push("testhost", "1", &[]).exits(0).says("note: there is no ssh program here");
    assert_same_content(&file, &world.path("1"));
    push("alias", "2", &["--ssh=builtin"]).exits(0);
    assert_same_content(&file, &world.path("2"));
    push("testhost", "3", &["-J", "jump,alias"]).exits(0);
    assert_same_content(&file, &world.path("3"));
    push("testhost", "4", &["--ssh=system"]).exits(42).says("cannot run ssh");
    push("testhost", "5", &["-o", "Port"]).exits(30).says("-o Port: not understood");
    fs::write(&config, "Match host testhost exec true\nUser me\n").unwrap();
    push("testhost", "6", &[]).exits(30).says("config line 1: the built-in ssh client does not");
}

#[test]
fn keys_in_files_let_in() {
    let world = World::new();
    for (kind, flags) in [
        ("ed25519", &["-t", "ed25519", "-N", ""][..]),
        ("p256", &["-t", "ecdsa", "-b", "256", "-N", ""]),
        ("p521", &["-t", "ecdsa", "-b", "521", "-N", ""]),
    ] {
        let key = world.make_key(&format!("key {kind}"), flags);
        let config =
            config_without_key(&world, kind, &format!("{}IdentityAgent none\n", with_key(&key)));
        world.pushes(&config);
    }
}

#[test]
fn who_cannot_log_in_is_told_why() {
    let world = World::new();
    let ran = world.is_refused(&sshd().config_of_a_stranger());
    ran.says("cannot log in to testhost").says("Permission denied (publickey)").says("hint: ");
    let key = world.make_key("rsa", &["-t", "rsa", "-b", "2048", "-N", ""]);
    let lines = format!("{}IdentityAgent none\n", with_key(&key));
    let config = config_without_key(&world, "rsa.config", &lines);
    world.is_refused(&config).says("rsa is an RSA key").says("ssh-agent");
    let key = world.make_key("open", &["-t", "ed25519", "-N", ""]);
    set_mode(&key, 0o644);
    let lines = format!("{}IdentityAgent none\n", with_key(&key));
    let config = config_without_key(&world, "open.config", &lines);
    world.is_refused(&config).says("chmod 600");
    let key = world.make_key("locked", &["-t", "ed25519", "-N", "the passphrase"]);
    let lines = format!("{}IdentityAgent none\nBatchMode no\n", with_key(&key));
    let config = config_without_key(&world, "locked.config", &lines);
    let mut command = world.command("setsid");
    command.args([FASTSYNC, "push", "file", "testhost:no", "--ssh=builtin", "-F"]).arg(config);
    let ran = Running::start(&mut command).wait().exits(44);
    ran.says("it has a passphrase, and there is no terminal");
}

/// An agent of its own, until it is dropped.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(keys: &[&Path]) -> Self {
        // Below target/ the path would be too long for a socket.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let socket = std::env::temp_dir().join(format!("it-agent-{process}-{count}"));
        let mut command = Command::new("ssh-agent");
        command.args(["-D", "-a"]).arg(&socket).stdout(Stdio::null());
        let agent = Self { child: command.spawn().unwrap(), socket };
        assert!(until(Duration::from_secs(10), || agent.socket.exists()));
        for key in keys {
            let mut command = Command::new("ssh-add");
            command.arg("-q").arg(key).env("SSH_AUTH_SOCK", &agent.socket);
            assert!(command.status().unwrap().success(), "ssh-add");
        }
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// RSA keys too, of which the file would not be used.
#[test]
fn an_agent_lets_in() {
    let world = World::new();
    let rsa = world.make_key("rsa", &["-t", "rsa", "-b", "2048", "-N", ""]);
    let stranger = sshd().dir().join("stranger");
    let agent = Agent::start(&[&stranger, &rsa]);
    let config = |name: &str, lines: &str| {
        let socket = format!("IdentityAgent {}\n", agent.socket.display());
        config_without_key(&world, name, &format!("Host *\n{socket}{lines}"))
    };
    world.pushes(&config("any", ""));
    let only = |key: &Path| format!("IdentitiesOnly yes\nIdentityFile {}\n", key.display());
    world.pushes(&config("named", &only(&rsa)));
    world.pushes(&config("public", &only(&rsa.with_extension("pub"))));
    world.is_refused(&config("other", &only(&stranger)));
    let config = config_without_key(&world, "environment", "");
    let mut command = world.fastsync();
    command.env("SSH_AUTH_SOCK", &agent.socket).args(["push", "file"]).arg(world.remote("5"));
    command.args(["--ssh=builtin", "-F"]).arg(config);
    Running::start(&mut command).wait().exits(0);
}

/// A certificate beside its key, and one that the agent keeps.
#[test]
fn certificates_let_in() {
    let world = World::new();
    let authority = world.path("authority");
    let key = world.path("key");
    let run = |program: &str, arguments: &[&OsStr]| {
        let status = Command::new(program).args(arguments).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    };
    for path in [&authority, &key] {
        run(
            "ssh-keygen",
            &[
                "-q".as_ref(),
                "-t".as_ref(),
                "ed25519".as_ref(),
                "-N".as_ref(),
                "".as_ref(),
                "-f".as_ref(),
                path.as_ref(),
            ],
        );
    }
    let public = fs::read_to_string(authority.with_extension("pub")).unwrap();
    sshd().authorize(&format!("cert-authority {public}"));
    let lines = format!("{}IdentityAgent none\n", with_key(&key));
    let config = config_without_key(&world, "file.config", &lines);
    world.is_refused(&config);
    let user = user();
    let certify = ["-q", "-I", "test", "-n", &user, "-s"].map(OsStr::new);
    let public = key.with_extension("pub");
    run("ssh-keygen", &[&certify[..], &[authority.as_ref(), public.as_ref()]].concat());
    world.pushes(&config);
    let agent = Agent::start(&[&key]);
    let lines = format!("Host *\nIdentityAgent {}\n", agent.socket.display());
    world.pushes(&config_without_key(&world, "agent.config", &lines));
}

#[test]
fn an_unknown_host_is_never_accepted_silently() {
    let world = World::new();
    let known = world.path("known hosts/file");
    let config = |name: &str, checking: &str| {
        let lines = format!(
            "Host *\nUserKnownHostsFile \"{}\"\nStrictHostKeyChecking {checking}\n",
            known.display()
        );
        world.config(name, &lines)
    };
    // ssh -G prints such a name without its quotes, so this is the own reading of it.
    let nothing = world.dir("none");
    let push = |config: &Path| {
        world.write("file", 10);
        let mut command = world.fastsync();
        command.env("PATH", &nothing).args(["push", "file"]).arg(world.remote("there"));
        command.args(["--ssh=builtin", "-F"]).arg(config).args(QUICK);
        Running::start(&mut command).wait()
    };
    for checking in ["yes", "ask"] {
        let ran = push(&config(checking, checking)).exits(44);
        ran.says("No ssh-ed25519 host key is known for [127.0.0.1]:").says("SHA256:");
        ran.says("add it to").says("Host key verification failed");
        assert!(!known.exists() && !world.path("there").exists());
    }
    push(&config("new", "accept-new")).exits(0);
    let line = fs::read_to_string(&known).unwrap();
    let key = fs::read_to_string(sshd().dir().join("host.pub")).unwrap();
    let words: Vec<_> = key.split(' ').take(2).collect();
    assert_eq!(line, format!("[127.0.0.1]:{} {}\n", sshd().port, words.join(" ")));
    push(&config("yes", "yes")).exits(0);
}

/// Names that nobody can read in the file, as ssh-keygen writes them.
#[test]
fn a_hashed_name_is_known_and_its_changed_key_refused() {
    let world = World::new();
    let hashed = |name: &str, key: &str| {
        let key = fs::read_to_string(sshd().dir().join(key)).unwrap();
        let known = world.text(name, format!("[127.0.0.1]:{} {key}", sshd().port));
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-H", "-f"]).arg(&known).stderr(Stdio::null());
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "ssh-keygen -H");
        assert!(!fs::read_to_string(&known).unwrap().contains("127.0.0.1"));
        let lines = format!("Host *\nUserKnownHostsFile {}\n", known.display());
        world.config(&format!("{name}.config"), &lines)
    };
    world.pushes(&hashed("own", "host.pub"));
    world.is_refused(&hashed("other", "stranger.pub")).says("Host key verification failed");
}

#[test]
fn a_changed_key_is_always_refused() {
    let world = World::new();
    let other = fs::read_to_string(sshd().dir().join("stranger.pub")).unwrap();
    let known = world.text("known", format!("# a comment\n[127.0.0.1]:{} {other}", sshd().port));
    let config = |checking: &str| {
        let file = format!("UserKnownHostsFile {}", known.display());
        world.config(
            &format!("{checking}.config"),
            &format!("Host *\n{file}\nStrictHostKeyChecking {checking}\n"),
        )
    };
    for checking in ["yes", "ask", "accept-new", "no"] {
        let ran = world.is_refused(&config(checking));
        ran.says(&format!("{} line 2", known.display())).says("Host key verification failed");
    }
    let own = fs::read_to_string(sshd().dir().join("host.pub")).unwrap();
    fs::write(&known, format!("[127.*]:* {own}@revoked * {own}")).unwrap();
    world.is_refused(&config("no")).says("is revoked by");
}

/// An authority is enough to know a host, if it is the one for this name.
#[test]
fn a_host_certificate_makes_a_host_known() {
    let world = World::new();
    let authority = fs::read_to_string(sshd().dir().join("authority.pub")).unwrap();
    let known = world.text("known", format!("@cert-authority [127.*]:* {authority}"));
    let file = format!("Host *\nUserKnownHostsFile {}\n", known.display());
    world.pushes(&world.config("config", &file));
    let other = world.text("other", format!("@cert-authority [10.*]:* {authority}"));
    let file = format!("Host *\nUserKnownHostsFile {}\n", other.display());
    world.is_refused(&world.config("config", &file)).says("No ssh-ed25519 host key is known");
    let alias = format!("HostKeyAlias elsewhere\nUserKnownHostsFile {}\n", known.display());
    fs::write(&known, format!("@cert-authority elsewhere {authority}")).unwrap();
    world.is_refused(&world.config("config", &format!("Host *\n{alias}"))).says("other hosts");
}

#[test]
fn a_person_is_asked_for_a_passphrase_and_about_a_host() {
    let world = World::new();
    let key = world.make_key("locked", &["-t", "ed25519", "-N", "the passphrase"]);
    let known = world.path("known");
    let lines = format!(
        "{}IdentityAgent none\nBatchMode no\nStrictHostKeyChecking ask\nUserKnownHostsFile {}\n",
        with_key(&key),
        known.display()
    );
    let config = config_without_key(&world, "config", &lines);
    world.write("file", 10);
    let run = |answers: &[(&str, &str)]| {
        let mut command = world.command("timeout");
        command.args(["-s", "KILL", "100", "setsid", "-c", "-w", FASTSYNC, "push", "file"]);
        command.arg(world.remote("there")).args(["--ssh=builtin", "-F"]).arg(&config);
        let (output, screen) = converse(command, answers);
        (output.status.code(), screen)
    };
    let host = "(yes/no/fingerprint)? ";
    let (code, screen) = run(&[(host, "no")]);
    assert_eq!(code, Some(44), "{screen}");
    assert!(!known.exists());
    let asked = [
        (host, "maybe"),
        ("Please type", "yes"),
        ("passphrase", "wrong"),
        ("passphrase", "the passphrase"),
    ];
    let (code, screen) = run(&asked);
    assert_eq!(code, Some(0), "{screen}");
    assert!(!screen.contains("the passphrase"), "{screen}");
    let begin = Instant::now();
    let (code, screen) = run(&[("passphrase", "\x03")]);
    assert_eq!(code, Some(20), "{screen}");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let (code, screen) = run(&[("passphrase", "the passphrase")]);
    assert_eq!(code, Some(0), "{screen}");
    assert!(!screen.contains(host), "{screen}");
}

#[test]
fn other_hosts_and_commands_lead_there() {
    let world = World::new();
    world.pushes(&world.config("jump", "Host testhost\nProxyJump jump,jump\nHost *"));
    let proxy = format!("ProxyCommand ssh -F {} -W %h:%p jump", sshd().config().display());
    world.pushes(&world.config("proxy", &format!("Host testhost\n{proxy}\nHost *")));
    let config =
        world.config("dead", "Host testhost\nProxyCommand echo no way >&2; exit 1\nHost *");
    let push = ["push".into(), "file".into(), world.remote("no")];
    world.run_builtin(&config, push).exits(30).says("no way");
    let alias = format!(
        "Host nobody\nMatch originalhost testhost exec true\nHostName localhost\n\
         HostKeyAlias [127.0.0.1]:{}\nHost *",
        sshd().port
    );
    world.pushes(&world.config("match", &alias));
    let config = world.config("loop", "Host *\nProxyJump jump\n");
    let push = ["push".into(), "file".into(), world.remote("no")];
    world.run_builtin(&config, push).exits(30).says("jump hosts lead to each other");
    let push = ["push", "file", "testhost:no", "-o", "Port=1", "-o", "ServerAliveInterval=5"];
    let ran = world.run_builtin(&sshd().config(), push).exits(30);
    ran.says("connect to host 127.0.0.1 port 1: ").says("refused");
}

/// BOOT-5: megabytes go up the same stream, through whatever shell there is.
#[test]
fn a_host_without_fastsync_gets_it_over_the_builtin_client() {
    let world = World::new();
    let far = Far::new(&world, "host", "/usr/bin/tcsh", "");
    far.push(&["--ssh=builtin"], 0).says("note: installed fastsync");
    assert!(!far.push(&["--ssh=builtin"], 0).err.contains("installed"));
    assert_eq!((far.cached().len(), far.logins().len()), (1, 2));
}
