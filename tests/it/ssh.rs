//! Copies over a real ssh connection.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::sshd::{free_port, sshd, user};
use super::support::{
    QUICK, Ran, Running, World, assert_same, assert_same_content, awkward_names, number, tree,
    until,
};

const SIZES: &[u64] = &[0, 1, 65_536, 300_000, 9_000_000];

/// SES-1, END-5.
#[test]
fn a_tree_goes_there_and_comes_back() {
    let world = World::new();
    world.write_everything("src", SIZES);
    let there = world.remote("there");
    let ran = world.run_ssh(["push".into(), "src/".into(), there.clone(), "--json".into()]);
    let summary = ran.exits(0).summary();
    assert_eq!((&summary["transport"], number(&summary, "streams")), (&"tcp+tls".into(), 8));
    assert_same(world.path("src"), world.path("there"));
    let mut contents = there;
    contents.push("/");
    world.run_ssh(["pull".into(), contents, "back".into()]).exits(0);
    assert_same(world.path("src"), world.path("back"));
}

#[test]
fn every_form_of_a_location_leads_there() {
    let world = World::new();
    let (server, name) = (sshd(), world.path("").file_name().unwrap().to_owned());
    let name = name.to_str().unwrap();
    let root = world.path("").display().to_string();
    let root = root.trim_end_matches('/');
    let (user, port) = (user(), server.port);
    let cases = [
        (format!("testhost:{root}/1"), world.path("1")),
        (format!("{user}@testhost:{root}/2"), world.path("2")),
        (format!("ssh://{user}@127.0.0.1:{port}{root}/4%20%25"), world.path("4 %")),
        (format!("testhost:{name}/5"), server.home().join(name).join("5")),
        (format!("testhost:~/{name}/6"), server.home().join(name).join("6")),
        (format!("ssh://testhost/~/{name}/7"), server.home().join(name).join("7")),
        (format!("testhost:./{name}/8"), server.home().join(name).join("8")),
    ];
    let file = world.write("file", 100_000);
    for client in ["--ssh=builtin", "--ssh=system"] {
        for (location, path) in &cases {
            world.run_ssh(["push", client, "file", location].into_iter().chain(QUICK)).exits(0);
            assert_same_content(&file, path);
            fs::remove_file(path).unwrap();
        }
    }
    for (location, _) in &cases {
        world.run_ssh(["push", "file", location].into_iter().chain(QUICK)).exits(0);
    }
    for (location, _) in cases.iter().step_by(2) {
        world.run_ssh(["pull", location, "back"].into_iter().chain(QUICK)).exits(0);
        assert_same_content(&file, &world.path("back"));
        fs::remove_file(world.path("back")).unwrap();
    }
    // Without a path it is the home directory.
    fs::rename(&file, world.path(name)).unwrap();
    fs::remove_dir_all(server.home().join(name)).unwrap();
    world.run_ssh(["push", name, "testhost:"]).exits(0);
    assert_same_content(&world.path(name), &server.home().join(name));
    fs::remove_file(server.home().join(name)).unwrap();
}

/// What a host is called here is ssh's business: aliases, `Match`, `Include`, users and ports.
#[test]
fn the_configuration_of_ssh_says_what_a_host_is() {
    let world = World::new();
    let (server, user) = (sshd(), user());
    let config = format!(
        "Host *.alias\nUser {user}\nMatch originalhost deep.alias user {user}\nHostName localhost\n\
         Port {port}\nMatch originalhost 2.alias exec \"true\"\nHostName 127.0.0.1\nPort {port}\n\
         Host *\nHostKeyAlias [127.0.0.1]:{port}\nInclude {base}\n",
        port = server.port,
        base = server.config().display(),
    );
    let config = world.text("config", config);
    let file = world.write("file", 1000);
    let root = world.path("").display().to_string();
    let root = root.trim_end_matches('/');
    for (number, location) in [
        format!("deep.alias:{root}/0"),
        format!("{user}@2.alias:{root}/1"),
        format!("ssh://2.alias:{}{root}/2", server.port),
        format!("ssh://{user}@deep.alias{root}/3"),
    ]
    .iter()
    .enumerate()
    {
        for client in ["--ssh=system", "--ssh=builtin"] {
            let mut command = world.fastsync();
            command.args(["push", client, "file", location, "-F"]).arg(&config).args(QUICK);
            Running::start(&mut command).wait().exits(0);
            assert_same_content(&file, &world.path(number.to_string()));
            fs::remove_file(world.path(number.to_string())).unwrap();
        }
    }
}

#[test]
fn paths_never_pass_through_a_shell() {
    let world = World::new();
    let hostile =
        Path::new("a 'b' \"c\" $(touch pwned) `touch pwned` ; touch pwned \\ *\nnew line");
    world.write_everything("src", &[10]);
    world.run_ssh(["push".into(), "src/".into(), world.remote(hostile)]).exits(0);
    assert_same(world.path("src"), world.path(hostile));
    let names = awkward_names();
    let sources = names.iter().map(|name| world.remote(hostile.join("names").join(name)));
    let arguments = [OsString::from("pull")].into_iter().chain(sources).chain(["back/".into()]);
    world.run_ssh(arguments).exits(0);
    assert_same(world.path("src/names"), world.path("back"));
    assert!(!sshd().home().join("pwned").exists() && !world.path("pwned").exists());
}

/// SEC-1: the remote command is a constant, and nothing of the job is in the agent's environment.
#[test]
fn the_agents_command_line_and_environment_tell_nothing() {
    let world = World::new();
    let log = world.path("log");
    let agent = world.script(
        "agent",
        &format!("{{ printf '%s\\n' \"$0 $*\"; env; }} >'{}'; exec fastsync \"$@\"", log.display()),
    );
    world.text("confidential-source", "data");
    let agent = agent.to_str().unwrap();
    let secret = sshd().home().join("confidential-destination");
    let flags = ["--agent-path", agent];
    let push = ["push", "confidential-source", "testhost:confidential-destination"];
    world.run_ssh(push.into_iter().chain(flags)).exits(0);
    let told = fs::read_to_string(&log).unwrap();
    assert_eq!(told.lines().next(), Some(&*format!("{agent} agent")));
    assert!(!told.contains("confidential"), "{told}");
    let pull = ["pull", "testhost:confidential-destination", "confidential-back"];
    world.run_ssh(pull.into_iter().chain(flags)).exits(0);
    assert!(!fs::read_to_string(&log).unwrap().contains("confidential"));
    fs::remove_file(secret).unwrap();
}

/// Pushes a file with an agent of these lines.
fn push_with(world: &World, name: &str, lines: &str) -> Ran {
    world.write("src/file", 100_000);
    let agent = world.script(name, lines);
    let destination = world.remote("dst");
    let push = ["push".into(), "src/".into(), destination, "--retries=0".into()];
    world.run_ssh(push.into_iter().chain(["--agent-path".into(), agent.into_os_string()]))
}

#[test]
fn the_agent_is_found_where_the_user_says() {
    let world = World::new();
    push_with(&world, "some-where/agent_1.0", "exec fastsync \"$@\"").exits(0);
    assert_same(world.path("src"), world.path("dst"));
    let own = sshd().home().join("bin/agent");
    fs::copy(world.path("some-where/agent_1.0"), own).unwrap();
    let push = ["push".into(), "src/".into(), world.remote("home"), "--agent-path".into()];
    world.run_ssh(push.into_iter().chain(["~/bin/agent".into()])).exits(0);
    assert_same(world.path("src"), world.path("home"));
    // What a login shell could take for something else is refused before anything is started.
    for agent in ["/opt/fast sync", "$(touch pwned)", "-x", ""] {
        world.run_ssh(["push", "src/", "testhost:x", &format!("--agent-path={agent}")]).exits(1);
    }
}

/// SES-1.
#[test]
fn noise_before_the_greeting_is_skipped_up_to_a_limit() {
    let world = World::new();
    let noise = |len| format!("head -c {len} /dev/zero | tr '\\0' x; exec fastsync \"$@\"");
    let ran = push_with(&world, "noisy", &format!("echo Welcome; {}", noise(60 << 10)));
    ran.exits(0).says("note: the remote shell printed: Welcome");
    assert_same(world.path("src"), world.path("dst"));
    let begin = Instant::now();
    push_with(&world, "noisier", &noise(100 << 10)).exits(42).says("hint: fastsync must be on");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

#[test]
fn what_is_no_agent_is_said_to_be_none() {
    let world = World::new();
    for lines in ["exit 0", "echo 'This account is locked.'; exit 1", "echo oops >&2; exit 7"] {
        push_with(&world, "no-agent", lines).exits(42).says("cannot start fastsync on testhost");
    }
    push_with(&world, "locked", "echo 'This account is locked.'").exits(42).says("is locked");
    push_with(&world, "failing", "echo oops >&2; exit 7").exits(42).says("oops");
    let missing = ["push", "src/", "testhost:x", "--agent-path", "/nowhere/fastsync"];
    let ran = world.run_ssh(missing).exits(42);
    ran.says("/nowhere/fastsync");
    ran.says("--agent-path").says("hint: fastsync must be on the other host");
    assert!(!world.path("dst").exists());
}

/// END-6: files in place and a session that agreed are not enough.
#[test]
fn an_agent_that_ends_badly_is_no_success() {
    let world = World::new();
    let ran = push_with(&world, "bad-end", "fastsync \"$@\"; exit 3").exits(30);
    ran.says("run the same command again");
    assert_same(world.path("src"), world.path("dst"));
    push_with(&world, "good-end", "fastsync \"$@\"").exits(0);
}

#[test]
fn who_cannot_log_in_is_told_so() {
    let world = World::new();
    world.text("file", "x");
    let stranger = sshd().config_of_a_stranger();
    let mut command = world.fastsync();
    command.args(["push", "file", "testhost:x", "-F"]).arg(stranger);
    let ran = Running::start(&mut command).wait().exits(44);
    ran.says("cannot log in to testhost").says("Permission denied").says("hint: ");
    world.run_ssh(["push", "file", "nobody-of-this-name@testhost:x"]).exits(44);
    let quiet = ["push", "file", "nobody-of-this-name@testhost:x", "-o", "LogLevel=QUIET"];
    world.run_ssh(quiet).exits(30).says("-o LogLevel=ERROR lets it say why");
    let unknown = ["push", "file", "testhost:x", "-o", "UserKnownHostsFile=/dev/null"];
    world.run_ssh(unknown).exits(44).says("Host key verification failed");
}

#[test]
fn a_server_that_is_not_there_is_a_lost_connection() {
    let world = World::new();
    world.text("file", "x");
    let port = free_port().to_string();
    let ran = world.run_ssh(["push", "file", "127.0.0.1:x", "--ssh-port", &port]).exits(30);
    ran.says("Connection refused");
    world.run_ssh(["pull", "127.0.0.1:x", "y", "--ssh-port", &port]).exits(30);
    assert!(!world.path("y").exists());
    let mut command = world.fastsync();
    command.args(["push", "file", "testhost:x", "--ssh", "/nowhere/ssh"]);
    Running::start(&mut command).wait().exits(42).says("cannot run /nowhere/ssh");
}

#[test]
fn flags_of_ssh_reach_it() {
    let world = World::new();
    world.text("file", "over a jump host");
    let (port, key) = (sshd().port.to_string(), sshd().config().with_file_name("user"));
    let hosts = sshd().config().with_file_name("known_hosts");
    let destination = |name| format!("127.0.0.1:{}", world.path(name).display());
    let known = format!("UserKnownHostsFile={}", hosts.display());
    let mut command = world.fastsync();
    command.args(["push", "file", &destination("plain"), "-F", "/dev/null", "--identity"]);
    command.arg(key).args(["--ssh-port", &port, "-o", &known, "-oBatchMode=yes"]);
    Running::start(&mut command).wait().exits(0);
    assert_same_content(&world.path("file"), &world.path("plain"));
    let jump = format!("testhost:{}", world.path("jumped").display());
    world.run_ssh(["push", "file", &jump, "-J", "jump"]).exits(0);
    assert_same_content(&world.path("file"), &world.path("jumped"));
}

/// Where data channels went, by `--progress=json`.
fn peer_port(ran: &Ran) -> u16 {
    let events = ran.events();
    let connected = events.iter().find(|event| event["event"] == "connected").unwrap();
    let peer = connected["peer"].as_str().unwrap();
    peer.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn the_agent_listens_where_the_user_allows_it() {
    let world = World::new();
    world.text("file", "x");
    let destination = format!("testhost:{}", world.path("dst").display());
    let low = free_port().min(u16::MAX - 20);
    let (high, range) = (low + 20, format!("{low}:{}", low + 20));
    let push = ["push", "file", &destination, "--progress=json", "--port-range", &range];
    let ran = world.run_ssh(push).exits(0);
    assert!((low..=high).contains(&peer_port(&ran)), "{ran:?}");

    let squatter = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
    let taken = squatter.local_addr().unwrap().port().to_string();
    let destination = format!("testhost:{}", world.path("other").display());
    let push = ["push", "file", &destination, "--port-range", &taken];
    let only_tcp = push.into_iter().chain(["--transport=tcp"]);
    world.run_ssh(only_tcp).exits(43).says(&format!("{taken}:{taken}"));
    // Other ways are left.
    world.run_ssh(push).exits(0);
    assert_same_content(&world.path("file"), &world.path("other"));
    world.run(["push", "file", "local", "--port-range", &taken]).exits(0);
    assert_same_content(&world.path("file"), &world.path("local"));
}

/// PATH-2: what the environment there says goes before what is asked for; what it says wrongly, never.
#[test]
fn the_agent_listens_where_its_host_allows_it() {
    let world = World::new();
    world.text("file", "x");
    let low = free_port().min(u16::MAX - 40);
    let range = |from: u16| format!("{}:{}", low + from, low + from + 9);
    let agent = format!("FASTSYNC_PORT_RANGE={} exec fastsync \"$@\"", range(10));
    let agent = world.script("agent", &agent);
    let flags = ["--progress=json", "--transport=tcp", "--agent-path", agent.to_str().unwrap()];
    let there = |name: &str| format!("testhost:{}", world.path(name).display());
    for (name, asked, first) in
        [("none", None, 10), ("other", Some(25), 10), ("some", Some(15), 15)]
    {
        let there = there(name);
        let asked = asked.map(|from| format!("--port-range={}", range(from)));
        let push = ["push", "file", &there].into_iter().chain(flags).chain(asked.as_deref());
        let ran = world.run_ssh(push).exits(0);
        let port = peer_port(&ran);
        assert!((low + first..low + 20).contains(&port), "{name}: {port} of {low}");
    }
    let wrong = world.script("wrong", "FASTSYNC_PORT_RANGE=9:8 exec fastsync \"$@\"");
    let there = there("wrong");
    let push = ["push", "file", &there, "--agent-path", wrong.to_str().unwrap()];
    world.run_ssh(push).exits(42).says("FASTSYNC_PORT_RANGE in the environment: 9:8 is not a");
}

#[test]
fn without_encryption_the_data_arrives_too() {
    let world = World::new();
    world.write_everything("src", SIZES);
    let there = format!("testhost:{}", world.path("there").display());
    let flags = ["--encrypt=off", "--json", "-q"];
    let ran = world.run_ssh(["push", "src/", &there].into_iter().chain(flags)).exits(0);
    assert_eq!(
        (&ran.summary()["encrypted"], &ran.summary()["transport"]),
        (&false.into(), &"tcp".into())
    );
    assert_same(world.path("src"), world.path("there"));
    let from = format!("{there}/");
    world.run_ssh(["pull", &from, "back"].into_iter().chain(flags)).exits(0);
    assert_same(world.path("src"), world.path("back"));
}

#[test]
fn an_address_that_leads_nowhere_is_no_obstacle_unless_there_is_no_other() {
    let world = World::new();
    // Nothing listens there, but the host's name leads to where the agent is.
    let elsewhere = "SSH_CONNECTION='1.2.3.4 5 127.0.0.9 6' exec fastsync \"$@\"";
    push_with(&world, "elsewhere", elsewhere).exits(0);
    let lost = world.script("lost", "unset SSH_CONNECTION; exec fastsync \"$@\"");
    let destination = format!("testhost:{}", world.path("lost-dst").display());
    let jump = ["push", "src/", &destination, "-J", "jump", "--transport=tcp", "--agent-path"];
    let ran = world.run_ssh(jump.into_iter().chain([lost.to_str().unwrap()])).exits(43);
    ran.says("open TCP ports of a range (--port-range) of testhost for this host");
    ran.says("leave out --transport to let the data go inside ssh");
}

#[test]
fn a_missing_source_at_the_other_end_is_told() {
    let world = World::new();
    let missing = world.remote("missing");
    let ran = world.run_ssh(["pull".into(), missing, "dst".into()]).exits(11);
    ran.says("cannot open ").says("missing: No such file");
    assert!(!world.path("dst").exists());
}

#[test]
fn sections_for_a_host_apply_to_it() {
    let world = World::new();
    world.text("file", "x");
    let config = "[global]\nparallel_streams = 2\n[host.\"test*\"]\nparallel_streams = 5\n";
    world.text("home/.config/fastsync/config.toml", config);
    let there = format!("testhost:{}", world.path("there").display());
    let ran = world.run_ssh(["push", "file", &there, "--json"]).exits(0);
    assert_eq!(number(&ran.summary(), "streams"), 5);
    assert_eq!(number(&world.summary(["push", "file", "here"]), "streams"), 2);
}

/// SEL-3: the host is this one, though nothing in its name says so.
#[test]
fn a_source_at_the_destination_is_not_deleted() {
    let world = World::new();
    for direction in ["push", "pull"] {
        world.text("all/src/dir/file", "x");
        world.text("all/src/precious", "y");
        world.text("all/old", "z");
        let all = server_path(&world, "all");
        let (from, to) = match direction {
            "push" => ("all/src/".to_owned(), all),
            _ => (format!("{all}/src/"), "all".to_owned()),
        };
        let ran = world.run_ssh(["sync", "--delete", &from, &to]).exits(23);
        ran.says("a source of this run");
        assert!(!world.path("all/old").exists());
        assert_eq!(tree(world.path("all/src")).len(), 3);
        assert_same(world.path("all/src/dir"), world.path("all/dir"));
        fs::remove_dir_all(world.path("all")).unwrap();
    }
}

fn server_path(world: &World, name: &str) -> String {
    format!("testhost:{}", world.path(name).display())
}

/// A login that hangs does not outlive the program: neither ssh nor what it started for a jump host.
#[test]
fn a_login_that_hangs_ends_with_the_program() {
    let world = World::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    world.text("file", "x");
    for jump in [&[][..], &["-J", "silent"]] {
        let config = format!(
            "Host silent\nHostName 127.0.0.1\nPort {port}\nHost behind\nHostName 127.0.0.1\n\
             Host *\nUserKnownHostsFile /dev/null\n"
        );
        let config = world.text("config", config);
        let host = if jump.is_empty() { "silent:" } else { "behind:" };
        let mut command = world.fastsync();
        command.args(["push", "file", host, "-F"]).arg(&config).args(jump);
        let running = Running::start(&mut command);
        let (_held, _) = silent.accept().unwrap();
        let started = running.descendants();
        assert!(started.len() > jump.len() / 2, "{started:?}");
        running.signal(Signal::KILL);
        assert!(running.wait().was_killed());
        let is_gone = |id: &u32| {
            let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            status.is_empty() || status.contains(") Z ")
        };
        assert!(until(Duration::from_secs(15), || started.iter().all(is_gone)), "{started:?}");
    }
}
