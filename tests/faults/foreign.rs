//! Strangers on the data port, garbage for the agent, and agents that are none.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fastsync::engine::job::{Job, Launch, Place, Reach, TransferConfig, Transport};
use fastsync::engine::{self, EngineError, Watch};
use fastsync::protocol::chunk::EntryId;
use fastsync::protocol::handshake::{MAGIC, hello};
use fastsync::protocol::manifest::Name;
use fastsync::protocol::message::{
    Accept, Entry, Failure, FailureCode, Hello, Kind, Message, Metadata, Open, Options, Secret,
    Task, Whereabouts,
};
use rustix::process::Signal;

use crate::common::{Ground, PROGRAM, Run, noise, signal, until_deadline};

/// SEC-8, R8, T62, T63: nobody who knocks is heard, and none of them stops a transfer.
#[test]
fn strangers_on_the_data_port_change_nothing() {
    let ground = Ground::with_files(32 << 20);
    let mut run = Run::start(ground.push(&["-p", "2", "--retries", "0"]));
    let peer = run.event("connected")["peer"].as_str().unwrap().to_owned();
    // While the client sleeps, its agent has only strangers.
    signal(run.pid(), Signal::STOP);
    let client_hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise(1, 507)].concat();
    let greetings = [
        noise(2, 100_000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        client_hello,
        vec![0; 3],
    ];
    let mut held = Vec::new();
    for greeting in &greetings {
        let mut stream = TcpStream::connect(&peer).unwrap();
        // It may be thrown out while it still talks.
        let _ = stream.write_all(greeting);
        held.push(stream);
    }
    for _ in 0..200 {
        drop(TcpStream::connect(&peer).unwrap());
    }
    held.extend((0..70).map(|_| TcpStream::connect(&peer).unwrap()));
    signal(run.pid(), Signal::CONT);
    let (status, lines) = run.end();
    assert!(status.success(), "{lines:?}");
    ground.assert_equal();
}

fn greeting() -> Vec<u8> {
    Message::Hello(hello([3; 32], vec![4; 40])).encode().unwrap()
}

fn open(destination: &Path, change: impl Fn(&mut Options)) -> Vec<u8> {
    let mut options = TransferConfig::default().to_options(true);
    change(&mut options);
    let task = Task::Receive { destination: destination.as_os_str().as_bytes().to_vec() };
    let open = Open { task, channel_secret: Secret([5; 32]), job: [6; 16], options };
    Message::Open(Box::new(open)).encode().unwrap()
}

/// An entry whose name was changed after it was encoded.
fn entry_named(name: &[u8]) -> Vec<u8> {
    let entry = Entry {
        id: EntryId(1),
        parent: EntryId::ROOT,
        name: Name::new(&vec![b'Q'; name.len()]).unwrap(),
        kind: Kind::Directory,
        is_linked: false,
        metadata: Metadata::default(),
    };
    let mut bytes = Message::Entries(vec![entry]).encode().unwrap();
    let at = bytes.windows(name.len()).position(|part| part.iter().all(|c| *c == b'Q')).unwrap();
    bytes[at..at + name.len()].copy_from_slice(name);
    bytes
}

/// SES-2, SES-3, SES-6, SES-8, ENTRY-2, T68, T73, T76, T78: an agent refuses, says so, and is gone.
#[test]
fn an_agent_that_is_fed_garbage_ends() {
    let ground = Ground::new();
    let dst = ground.path("dst");
    let start = [greeting(), open(&dst, |_| {})].concat();
    let sources =
        Message::Sources { single_file: false, root: None, whereabouts: Whereabouts::default() }
            .encode()
            .unwrap();
    let absurd = |change: fn(&mut Options)| [greeting(), open(&dst, change)].concat();
    let named = |name: &[u8]| [start.clone(), sources.clone(), entry_named(name)].concat();
    let source = [
        greeting(),
        Message::Open(Box::new(Open {
            task: Task::Send { sources: Vec::new() },
            channel_secret: Secret([5; 32]),
            job: [6; 16],
            options: TransferConfig::default().to_options(true),
        }))
        .encode()
        .unwrap(),
    ]
    .concat();
    let mut many = Message::Written(Vec::new()).encode().unwrap();
    // A list of 2^64 - 1 elements, none of which is there.
    many.splice(.., [&[10, 0, 0, 0, 14, 253][..], &[0xff; 8]].concat());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("noise", noise(1, 100_000)),
        ("no length", vec![0; 4]),
        ("a length over the limit", vec![1, 0, 16, 0]),
        ("the longest length", vec![0xff; 4]),
        ("a message that is cut off", greeting()[..50].to_vec()),
        ("two greetings", [greeting(), greeting()].concat()),
        ("noise after the greeting", [greeting(), noise(2, 5000)].concat()),
        ("a list without end", [greeting(), many.clone()].concat()),
        ("no streams", absurd(|options| options.streams = 0)),
        ("too many streams", absurd(|options| options.streams = u16::MAX)),
        ("packs of 4 GiB", absurd(|options| options.pack_threshold = u32::MAX)),
        ("port 0", absurd(|options| options.port_range = Some((0, 0)))),
        ("no port", absurd(|options| options.port_range = Some((9, 8)))),
        ("all memory", absurd(|options| options.buffer_size = 1 << 63)),
        ("nothing to send", source),
        ("the parent", named(b"..")),
        ("itself", named(b".")),
        ("a path", named(b"a/b")),
        ("a zero", named(b"a\0b")),
        ("a list without end later", [start.clone(), many].concat()),
        (
            "a message of the other role",
            [start.clone(), Message::Closed.encode().unwrap()].concat(),
        ),
    ];
    thread::scope(|scope| {
        for (case, bytes) in &cases {
            // Half of them hold the agent's input open.
            for stays in [false, true].into_iter().filter(|stays| !stays || *case != "all memory") {
                scope.spawn(move || ends_by_itself(case, bytes, stays));
            }
        }
    });
    assert!(!ground.path("b").exists() && !dst.join("a").exists());
}

fn ends_by_itself(case: &str, bytes: &[u8], stays: bool) {
    let mut agent = Command::new(PROGRAM)
        .arg("agent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = agent.stdin.take().unwrap();
    let (mut stdout, mut stderr) = (agent.stdout.take().unwrap(), agent.stderr.take().unwrap());
    // It may have had enough before the end.
    let _ = stdin.write_all(bytes);
    let held = stays.then_some(stdin);
    let mut peak = 0;
    let status = until_deadline(Duration::from_secs(20), || {
        let status = fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or_default());
        agent.try_wait().unwrap()
    });
    let Some(status) = status else {
        agent.kill().unwrap();
        panic!("{case}: the agent does not end, stays = {stays}");
    };
    drop(held);
    let (mut said, mut complained) = (Vec::new(), String::new());
    stdout.read_to_end(&mut said).unwrap();
    stderr.read_to_string(&mut complained).unwrap();
    assert!(said.starts_with(&MAGIC), "{case}: {complained}");
    assert!(status.code().is_some_and(|code| code != 0), "{case}: {status}");
    assert!(!complained.contains("panicked"), "{case}: {complained}");
    assert!(peak < 256 << 10, "{case}: {peak} KiB");
}

/// What a client makes of an agent that says this, and then waits or is gone.
async fn pushed_to(says: &[u8], waits: bool, config: TransferConfig) -> EngineError {
    let ground = Ground::with_files(1000);
    fs::write(ground.path("says"), says).unwrap();
    let wait = if waits { "cat > /dev/null" } else { "" };
    let script = format!("#!/bin/sh\ncat '{}'\n{wait}\n", ground.path("says").display());
    let program = ground.path("agent");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let launch = Launch { local_program: Some(program), ..Launch::default() };
    let job = Job::push(vec![ground.path("src/")], Place::Local(ground.path("dst")))
        .with_config(config)
        .with_launch(launch);
    let (events, _happened) = flume::unbounded();
    let (_stop, stop) = tokio::sync::watch::channel(false);
    let watch = Watch { progress: Arc::default(), events, stop };
    let ended = tokio::time::timeout(Duration::from_secs(75), engine::run(job, watch)).await;
    ended.expect("the client hangs").expect_err("the client is content")
}

fn config() -> TransferConfig {
    TransferConfig { retries: 0, streams: 1, ..TransferConfig::default() }
}

async fn code_of(says: Vec<u8>) -> Option<FailureCode> {
    match pushed_to(&says, true, config()).await {
        EngineError::Session(failure) => Some(failure.code),
        other => panic!("{other:?}"),
    }
}

fn agent_greeting(change: impl Fn(&mut Hello)) -> Vec<u8> {
    let mut hello = hello([3; 32], vec![4; 40]);
    change(&mut hello);
    [&MAGIC[..], &Message::Hello(hello).encode().unwrap()].concat()
}

/// SES-1, SES-5, T66, T67: what is no agent, or one of another age, is named as that.
#[tokio::test]
async fn what_is_no_agent_is_told_from_what_is_another() {
    let noise_only = pushed_to(&vec![b'x'; 100 << 10], true, config()).await;
    assert!(matches!(noise_only, EngineError::AgentNotStartable { .. }), "{noise_only:?}");
    let nothing = pushed_to(b"command not found\n", false, config()).await;
    assert!(matches!(nothing, EngineError::AgentNotStartable { .. }), "{nothing:?}");
    assert!(nothing.to_string().contains("command not found"), "{nothing}");
    let garbage = [&MAGIC[..], &noise(1, 5000)].concat();
    assert_eq!(code_of(garbage).await, Some(FailureCode::Violation));
    for versions in [(2, 9), (9, 1), (0, 0)] {
        let says = agent_greeting(|hello| hello.versions = versions);
        assert_eq!(code_of(says).await, Some(FailureCode::Version), "{versions:?}");
    }
    let gone = pushed_to(&agent_greeting(|_| {}), false, config()).await;
    assert!(matches!(gone, EngineError::Disconnected { .. }), "{gone:?}");
}

/// SES-6, SES-9.
#[tokio::test]
async fn an_agent_that_answers_something_else_is_refused() {
    let answer = |message: &Message| [agent_greeting(|_| {}), message.encode().unwrap()].concat();
    let accept = |change: fn(&mut Options)| {
        let mut options = config().to_options(true);
        change(&mut options);
        answer(&Message::Accept(Accept {
            options,
            port: 1,
            udp_port: 0,
            join: Vec::new(),
            addresses: Vec::new(),
            refusal: String::new(),
        }))
    };
    assert_eq!(code_of(accept(|options| options.streams = 2)).await, Some(FailureCode::Violation));
    let weaker = accept(|options| options.encrypt = false);
    assert_eq!(code_of(weaker).await, Some(FailureCode::Violation));
    // All is well with that answer; but nobody is there.
    let reach = Reach { transport: Transport::Tcp, ..Reach::default() };
    let only_tcp = TransferConfig { reach, ..config() };
    let unreachable = pushed_to(&accept(|_| {}), true, only_tcp).await;
    assert!(
        matches!(&unreachable, EngineError::Session(it) if it.code == FailureCode::NoDataPath),
        "{unreachable:?}"
    );
    let failure = Failure::new(FailureCode::Startup, "no room at the inn");
    assert_eq!(code_of(answer(&Message::Abort(failure))).await, Some(FailureCode::Startup));
    assert_eq!(code_of(answer(&Message::Closed)).await, Some(FailureCode::Violation));
}

/// SES-7: an agent that greets and then says nothing is given up after 30 seconds.
#[tokio::test]
async fn an_agent_that_falls_silent_is_given_up() {
    let silent = pushed_to(&agent_greeting(|_| {}), true, config()).await;
    assert!(matches!(silent, EngineError::Disconnected { .. }), "{silent:?}");
    assert!(silent.to_string().contains("30 seconds"), "{silent}");
}
