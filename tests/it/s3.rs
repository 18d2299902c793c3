//! Copies to and from an S3 server.

use std::os::unix::fs::symlink;

use rustix::fs::FileType;

use super::garage::{ACCESS_KEY, BUCKET, SECRET_KEY, garage};
use super::objects::{Bucket, assert_same_files, scenes};
use super::sshd::sshd;
use super::support::{Running, World, number};
use super::webserver::{Answer, Tiny};

fn bucket() -> Bucket {
    Bucket {
        location: "s3://bucket",
        name: "s3",
        environment: vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "garage".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", garage().port)),
        ],
        upload: (400 << 20, 8 << 20),
    }
}

scenes!(bucket);

#[test]
fn what_goes_wrong_is_told_without_secrets() {
    let (world, bucket) = (World::new(), bucket());
    assert!(bucket.location.ends_with(BUCKET));
    world.text("file", "x");
    let there = bucket.place(&world);
    let run = |location: &str, variables: &[(&str, Option<&str>)]| {
        let arguments = ["cp", "file", location];
        bucket.run_with(&world, &arguments, variables, &[SECRET_KEY, "wrong-secret"])
    };
    let wrong = run(&there, &[("AWS_SECRET_ACCESS_KEY", Some("wrong-secret"))]);
    assert_ne!(wrong.status.code(), Some(0));
    let nobody = [
        ("AWS_ACCESS_KEY_ID", None),
        ("AWS_SECRET_ACCESS_KEY", None),
        ("AWS_EC2_METADATA_DISABLED", Some("true")),
    ];
    run(&there, &nobody).exits(44).says("AWS_ACCESS_KEY_ID");
    // Empty variables count as not set.
    let empty = [nobody[2], ("AWS_ACCESS_KEY_ID", Some("")), ("AWS_SECRET_ACCESS_KEY", Some(""))];
    run(&there, &empty).exits(44).says("set AWS_ACCESS_KEY_ID and");
    run(&there, &[("AWS_PROFILE", Some("")), ("AWS_SESSION_TOKEN", Some(""))]).exits(0);
    for half in [None, Some("")] {
        let half = [nobody[2], ("AWS_SECRET_ACCESS_KEY", half)];
        run(&there, &half).exits(44).says("AWS_SECRET_ACCESS_KEY is not; set both");
    }
    run("s3://no-such-bucket/x", &[]).exits(44).says("no such bucket");
    run("s3://B/x", &[]).says("bucket");
    let ran = bucket.run(&world, ["cp", &format!("{there}/nothing"), "back"]);
    assert_ne!(ran.status.code(), Some(0));
    ran.says("nothing");
    assert!(!world.path("back").exists());
}

/// Nothing gives way to what is not kept; what to do is said.
#[test]
fn what_is_not_kept_is_told_and_removes_nothing() {
    let (world, bucket) = (World::new(), bucket());
    let there = bucket.place(&world);
    world.text("src/link", "a file");
    world.dir("src/empty/below");
    bucket.run(&world, ["cp", "src/", &there]).exits(0).says("note: directories without files");
    std::fs::remove_file(world.path("src/link")).unwrap();
    symlink("nowhere", world.path("src/link")).unwrap();
    bucket.run(&world, ["cp", "-a", "src/", &there]).exits(23).says("--copy-links");
    bucket.run(&world, ["cp", &format!("{there}/link"), "back"]).exits(0);
    std::fs::rename(world.path("back"), world.path("src/link")).unwrap();
    // Of what is not there to begin with, nothing is said.
    let ran = bucket.run(&world, ["check", "src", &there]).exits(0);
    let notes: Vec<_> = ran.err.lines().filter(|line| line.starts_with("note")).collect();
    assert_eq!(notes, ["note: directories without files are not kept there: 2"]);
    std::fs::remove_dir_all(world.path("src/empty")).unwrap();
    let ran = bucket.run(&world, ["check", "src", &there]).exits(0);
    assert!(!ran.err.contains("note"), "{}", ran.err);
    let fifo = rustix::fs::CWD;
    rustix::fs::mknodat(fifo, world.path("src/fifo"), FileType::Fifo, 0o644.into(), 0).unwrap();
    let ran = bucket.run(&world, ["check", "-D", "src", &there]).exits(23);
    ran.says("special files are made on hosts with fastsync only");
}

/// Progress and summary count what carries the data.
#[test]
fn streams_are_as_many_as_there_are_requests() {
    let (world, bucket) = (World::new(), bucket());
    world.write("src/large", 30 << 20);
    let flags = ["-p", "8", "--requests", "3", "--json", "--progress=json"];
    let ran = bucket.run(&world, [&["cp", "src/", &bucket.place(&world)], &flags[..]].concat());
    let ran = ran.exits(0);
    assert_eq!(number(&ran.summary(), "streams"), 3);
    let shown = ran.events().into_iter().rfind(|it| it["event"] == "progress").unwrap();
    assert_eq!(number(&shown, "streams"), 3, "{shown}");
}

/// The same as where nobody is let in from the beginning.
#[test]
fn credentials_that_expire_on_the_way_end_the_run() {
    let (world, bucket) = (World::new(), bucket());
    world.text("src/one", "x");
    world.text("src/two", "x");
    let server = Tiny::start(|asked| {
        let (status, body) = match &*asked.method {
            "GET" => (200, "<ListBucketResult></ListBucketResult>"),
            "HEAD" => (404, ""),
            _ => (400, "<Error><Code>ExpiredToken</Code></Error>"),
        };
        Answer { body: body.into(), ..Answer::status(status) }
    });
    let endpoint = [("AWS_ENDPOINT_URL", Some(&*server.at("")))];
    let ran = bucket.run_with(&world, &["cp", "src/", "s3://bucket/x"], &endpoint, &[SECRET_KEY]);
    let ran = ran.exits(44);
    assert_eq!(ran.err.matches("expired; log in again").count(), 1, "{}", ran.err);
}

/// From a host with an agent, data goes through here, and nothing is stored on the way.
#[test]
fn data_goes_through_here_between_a_host_and_a_store() {
    let (world, bucket) = (World::new(), bucket());
    bucket.plant(&world);
    let there = bucket.place(&world);
    let ssh = sshd().config();
    let from = world.remote("src/");
    let mut command = bucket.fastsync(&world);
    command.arg("cp").arg(from).arg(&there).arg("-F").arg(&ssh);
    Running::start(&mut command).wait().exits(0);
    let mut command = bucket.fastsync(&world);
    command.args(["cp", &format!("{there}/")]).arg(world.remote("back")).arg("-F").arg(&ssh);
    Running::start(&mut command).wait().exits(0);
    assert_same_files(&world, "src", "back");
}

/// Within one server, no data passes through here, unless it is asked for.
#[test]
fn objects_are_copied_by_the_server() {
    let (world, bucket) = (World::new(), bucket());
    bucket.plant(&world);
    world.write("src/large", 300 << 20);
    let (one, two) =
        (format!("{}/one", bucket.place(&world)), format!("{}/two", bucket.place(&world)));
    bucket.run(&world, ["cp", "src/", &one]).exits(0);
    let copy = |to: &str, flags: &[&str]| {
        let from = format!("{one}/");
        let arguments = ["cp", &from, to, "--report", "report", "--json"];
        let summary = bucket.run(&world, [&arguments[..], flags].concat()).exits(0).summary();
        let report = std::fs::read_to_string(world.path("report")).unwrap();
        let hashed = report.lines().filter(|line| line.contains("\"root\":\"")).count();
        (number(&summary, "done"), hashed)
    };
    let (done, hashed) = copy(&two, &[]);
    assert!(done > 100);
    assert_eq!(hashed, 0, "nothing was read here");
    let (done, _) = copy(&two, &[]);
    assert_eq!(done, 0, "times and modes are those of the source");
    bucket.run(&world, ["check", "--checksum", &format!("{one}/"), &format!("{two}/")]).exits(0);
    bucket.run(&world, ["cp", &format!("{two}/"), "back"]).exits(0);
    assert_same_files(&world, "src", "back");
    let (_, hashed) = copy(&format!("{one}-through-here"), &["--verify"]);
    assert!(hashed > 100);
}
