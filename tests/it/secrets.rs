//! What admits us to stores and servers is seen by them alone: it is in no message, report or journal, and in
//! no process's arguments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::support::{Ran, Running, World};
use super::webserver::{Answer, Asked, Tiny};

/// Looks for secrets wherever they may not be.
#[derive(Clone)]
struct Watch {
    secrets: Vec<&'static str>,
    /// Where journals and reports are.
    below: Vec<PathBuf>,
    /// What was found, and where.
    found: Arc<Mutex<Vec<String>>>,
    journals: Arc<Mutex<usize>>,
}

impl Watch {
    fn new(world: &World, secrets: &[&'static str]) -> Self {
        let below = ["home", "back/.fastsync", "report"].map(|it| world.path(it)).to_vec();
        let (found, journals) = (Arc::default(), Arc::default());
        Self { secrets: secrets.to_vec(), below, found, journals }
    }

    fn look_at(&self, place: &str, bytes: &[u8]) {
        for secret in &self.secrets {
            if bytes.windows(secret.len()).any(|it| it == secret.as_bytes()) {
                self.found.lock().unwrap().push(format!("{secret} in {place}"));
            }
        }
    }

    /// Looks at files that there are at this moment, and at all processes.
    fn look(&self) {
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let arguments = process.path().join("cmdline");
            let bytes = fs::read(&arguments).unwrap_or_default();
            self.look_at(&arguments.display().to_string(), &bytes);
        }
        for place in &self.below {
            self.look_below(place);
        }
    }

    fn look_below(&self, path: &Path) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            self.look_below(&entry.path());
        }
        let Ok(bytes) = fs::read(path) else { return };
        self.look_at(&path.display().to_string(), &bytes);
        *self.journals.lock().unwrap() += usize::from(path.ends_with("journal"));
    }

    /// Runs the program, which tells as much as it can.
    fn run(&self, world: &World, variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
        let mut command: Command = world.fastsync();
        command.env("XDG_STATE_HOME", world.path("home/state")).env("RUST_LOG", "trace");
        command.envs(variables.iter().copied()).args(arguments);
        command.args(["-vv", "--json", "--progress=json", "--report", "report", "--retries=0"]);
        let ran = Running::start(&mut command).wait();
        self.look_at("its output", &ran.out);
        self.look_at("its messages", ran.err.as_bytes());
        self.look_below(&world.path("report"));
        ran
    }

    #[track_caller]
    fn has_found_nothing(&self) {
        let found = self.found.lock().unwrap();
        assert!(found.is_empty(), "{found:#?}");
        assert!(*self.journals.lock().unwrap() > 0, "no journal was seen");
    }

    /// A server that looks around at every request.
    fn server(&self, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Tiny {
        let watch = self.clone();
        Tiny::start(move |asked| {
            watch.look();
            answer(asked)
        })
    }
}

/// Takes what is sent to any store in parts, and refuses what is called `refused`.
fn store(asked: &Asked) -> Answer {
    let text = |text: &str| Answer { body: text.into(), ..Answer::status(200) };
    if asked.path.contains("/refused") && asked.method != "HEAD" {
        let body = "<Error><Code>Strange</Code><Message>No.</Message></Error>";
        return Answer { status: 403, ..text(body) };
    }
    match (&*asked.method, &*asked.path) {
        ("HEAD", _) => Answer::status(404),
        ("GET", path) if path.contains("comp=list") => text("<EnumerationResults/>"),
        ("GET", _) => text("<ListBucketResult/>"),
        ("POST", path) if path.contains("uploads") => text(
            "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
        ),
        ("POST", _) => {
            text("<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")
        }
        _ => Answer::status(201).with("etag", "\"x\""),
    }
}

#[test]
fn credentials_of_object_stores_are_seen_by_them_alone() {
    let world = World::new();
    world.write("file", 30 << 20);
    let secrets = ["s3-secret-key-1", "s3-session-token-2", "c2VjcmV0LWtleS0z", "sas-signature-4"];
    let watch = Watch::new(&world, &secrets);
    let server = watch.server(store);
    let (at, account) = (server.at(""), server.at("/account"));
    let amazon = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", secrets[0]),
        ("AWS_SESSION_TOKEN", secrets[1]),
        ("AWS_ENDPOINT_URL", &at),
    ];
    let keyed = [
        ("AZURE_STORAGE_ACCOUNT", "account"),
        ("AZURE_STORAGE_KEY", secrets[2]),
        ("AZURE_STORAGE_SERVICE_ENDPOINT", &account),
    ];
    let token = format!("sv=2021-12-02&sp=rcwl&sig={}", secrets[3]);
    let signed = [
        ("AZURE_STORAGE_ACCOUNT", "account"),
        ("AZURE_STORAGE_SAS_TOKEN", &token),
        ("AZURE_STORAGE_SERVICE_ENDPOINT", &account),
    ];
    let text = format!("AccountName=account;AccountKey={};BlobEndpoint={account}", secrets[2]);
    let connected = [("AZURE_STORAGE_CONNECTION_STRING", &*text)];
    for (bucket, variables) in [
        ("s3://bucket", &amazon[..]),
        ("az://bucket", &keyed),
        ("az://bucket", &signed),
        ("az://bucket", &connected),
    ] {
        watch.run(&world, variables, &["cp", "file", &format!("{bucket}/file")]).exits(0);
        let refused = format!("{bucket}/refused");
        let ran = watch.run(&world, variables, &["cp", "file", &refused]);
        assert!(!ran.status.success());
    }
    let asked = server.asked();
    assert!(asked.iter().any(|it| it.path.contains(secrets[3])), "the server was told");
    watch.has_found_nothing();
}

#[test]
fn logins_to_web_servers_are_seen_by_them_alone() {
    let world = World::new();
    let data = fs::read(world.write("src", 3 << 20)).unwrap();
    let secrets = ["web-password-5", "web-token-6", "web-header-7", "netrc-password-8"];
    let watch = Watch::new(&world, &secrets);
    let server = watch.server(move |asked| match &*asked.method {
        "PUT" => Answer::status(201),
        _ if asked.path.contains("/refused") => {
            let said = asked.headers.get("authorization").cloned().unwrap_or_default();
            Answer { body: said.into(), ..Answer::status(403) }
        }
        _ => Answer::file(asked, &data).with("etag", "\"1\""),
    });
    let port = server.port;
    let user = format!("http://me@127.0.0.1:{port}");
    let plain = server.at("");
    world.text("headers", format!("X-Key: {}\n", secrets[2]));
    let copy = |at: &str, variables: &[(&str, &str)], flags: &[&str]| {
        for name in ["file", "refused"] {
            let location = format!("{at}/{name}");
            let arguments = [&["cp", &location, "back/", "-c", "64K"], flags].concat();
            let ran = watch.run(&world, variables, &arguments);
            assert_eq!(ran.status.success(), name == "file", "{ran:?}");
        }
        let _ = fs::remove_dir_all(world.path("back"));
    };
    copy(&user, &[("FASTSYNC_HTTP_PASSWORD", secrets[0])], &[]);
    copy(&plain, &[("FASTSYNC_HTTP_TOKEN", secrets[1])], &[]);
    copy(&plain, &[], &["--header-file", "headers"]);
    // Which is read where it may be, and so is looked for elsewhere.
    let netrc =
        world.text("netrc", format!("machine 127.0.0.1 login me password {}\n", secrets[3]));
    copy(&plain, &[("NETRC", netrc.to_str().unwrap())], &[]);
    watch.has_found_nothing();
}

/// A location's query may be what admits us: it is the command's argument, and goes nowhere else.
#[test]
fn queries_of_locations_go_nowhere_else() {
    let world = World::new();
    let data = fs::read(world.write("src", 3 << 20)).unwrap();
    let secret = "query-signature-9";
    let watch = Watch::new(&world, &[secret]);
    let within = watch.clone();
    let server = Tiny::start(move |asked| {
        within.below.iter().for_each(|place| within.look_below(place));
        if asked.path.contains("refused") {
            Answer::status(403)
        } else {
            Answer::file(asked, &data)
        }
    });
    for name in ["file", "refused"] {
        let location = server.at(&format!("/{name}?sig={secret}"));
        let ran = watch.run(&world, &[], &["cp", &location, "back/", "-c", "64K"]);
        assert_eq!(ran.status.success(), name == "file", "{ran:?}");
    }
    watch.has_found_nothing();
}

/// Whoever writes a password where everybody sees it is told so, and nothing is done with it.
#[test]
fn passwords_in_locations_and_endpoints_are_refused() {
    let world = World::new();
    world.text("file", "x");
    let server = Tiny::start(|_| Answer::status(500));
    let with_password = format!("http://me:typed-password@127.0.0.1:{}", server.port);
    let endpoint = ["cp", "file", "s3://bucket/x", "--endpoint", &with_password];
    for arguments in [
        &["cp", &with_password, "back"][..],
        &["cp", "file", &with_password],
        &["cp", "file", "sftp://me:typed-password@127.0.0.1/x"],
        &["cp", "webdav://me:typed-password@127.0.0.1/x", "back"],
        &endpoint,
        &["cp", "file", "gs://bucket/x", "--endpoint", &with_password],
        &["cp", "file", "az://bucket/x", "--azure-account=account", "--endpoint", &with_password],
    ] {
        let mut command = world.fastsync();
        command.args(arguments).args(["--report", "report"]).env("AWS_ACCESS_KEY_ID", "key");
        command.env("AWS_SECRET_ACCESS_KEY", "secret");
        let ran = Running::start(&mut command).wait();
        assert!(!ran.status.success(), "{ran:?}");
        ran.says("password");
        assert!(!ran.err.contains("typed-password"), "{}", ran.err);
        let report = fs::read_to_string(world.path("report")).unwrap_or_default();
        assert!(!report.contains("typed-password"), "{report}");
    }
    assert!(server.asked().is_empty(), "nobody was told it");
}
