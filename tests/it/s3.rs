//! Copies to and from an S3 server.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use rustix::process::Signal;

use super::garage::{ACCESS_KEY, BUCKET, SECRET_KEY, garage};
use super::sshd::sshd;
use super::support::{
    PATIENCE, Ran, Running, World, assert_same, assert_same_content, number, set_mode, tree, until,
};

/// A place of this test's own in the bucket.
fn place(world: &World) -> String {
    let name = world.path("").file_name().unwrap().to_str().unwrap().to_owned();
    format!("s3://{BUCKET}/{name}")
}

/// The program with credentials for the server.
fn fastsync(world: &World) -> Command {
    let mut command = world.fastsync();
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.env("AWS_REGION", "garage").env("XDG_STATE_HOME", world.path("home/state"));
    command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", garage().port));
    command
}

fn run<A: AsRef<OsStr>>(world: &World, arguments: impl IntoIterator<Item = A>) -> Ran {
    Running::start(fastsync(world).args(arguments)).wait()
}

/// What an object store keeps: files, their times and modes.
fn plant(world: &World) {
    for (n, size) in [0, 1, 300_000, 20_000_000].into_iter().enumerate() {
        world.write(format!("src/sizes/{n}"), size);
    }
    for n in 0..100 {
        world.text(format!("src/many/{n}"), format!("small {n}"));
    }
    for name in ["with space", "%41#?&+", "-rf", "a+b", "ümläut", "a'\"<>b"] {
        world.text(format!("src/names/{name}"), name);
    }
    set_mode(&world.path("src/sizes/1"), 0o640);
}

/// The same without what an object store has no place for: directories' own times.
fn assert_same_files(world: &World, one: &str, other: &str) {
    let mut touch = Command::new("find");
    touch.arg(world.path(one)).arg(world.path(other));
    touch.args(["-depth", "-type", "d", "-exec", "touch", "-d", "@1000000000", "{}", "+"]);
    assert!(touch.status().unwrap().success());
    assert_same(world.path(one), world.path(other));
}

#[test]
fn a_tree_goes_there_and_comes_back() {
    let world = World::new();
    plant(&world);
    let there = place(&world);
    let copy = || run(&world, ["cp", "src/", &there, "--json"]).exits(0).summary();
    let summary = copy();
    assert_eq!((&summary["transport"], &summary["durable"]), (&"s3".into(), &true.into()));
    let summary = copy();
    assert_eq!((number(&summary, "done"), number(&summary, "bytes_sent")), (0, 0));
    run(&world, ["cp", &format!("{there}/"), "back"]).exits(0);
    assert_same_files(&world, "src", "back");
    for flags in [&["check", "src", &there][..], &["check", "--checksum", "src", &there]] {
        run(&world, flags).exits(0);
    }
}

#[test]
fn an_object_gets_the_key_that_it_is_given() {
    let world = World::new();
    let (file, there) = (world.write("file", 700_000), place(&world));
    run(&world, ["cp", "file", &format!("{there}/new")]).exits(0);
    run(&world, ["cp", "file", &format!("{there}/dir/")]).exits(0);
    for key in ["new", "dir/file"] {
        run(&world, ["cp", &format!("{there}/{key}"), "back"]).exits(0);
        assert_same_content(&file, &world.path("back"));
        fs::remove_file(world.path("back")).unwrap();
    }
    let listed = run(&world, ["ls", "-R", &format!("{there}/")]).exits(0);
    assert_eq!(String::from_utf8_lossy(&listed.out), "dir\ndir/file\nnew\n");
}

#[test]
fn sync_deletes_and_a_dry_run_does_nothing() {
    let world = World::new();
    plant(&world);
    let there = place(&world);
    run(&world, ["sync", "src/", &there]).exits(0);
    fs::remove_dir_all(world.path("src/many")).unwrap();
    world.text("src/names/-rf", "another content");
    let sync = |flags: &[&str]| run(&world, [&["sync", "src/", &there, "-i"], flags].concat());
    let ran = sync(&["--delete", "-n"]).exits(0);
    assert!(ran.out.windows(9).any(|it| it == b"*deleting"), "{ran:?}");
    sync(&["--delete", "--max-delete=3"]).exits(25);
    sync(&["--delete"]).exits(0);
    run(&world, ["cp", &format!("{there}/"), "back"]).exits(0);
    assert_same_files(&world, "src", "back");
    fs::create_dir(world.path("nothing")).unwrap();
    let ran = run(&world, ["sync", "nothing/", &there, "--delete"]);
    assert_ne!(ran.status.code(), Some(0));
    run(&world, ["check", "src", &there]).exits(0);
}

/// JRN-12: what the server has acknowledged is not sent again.
#[test]
fn a_killed_upload_goes_on() {
    let world = World::new();
    let size = 400 << 20;
    world.write("src/big", size);
    let there = place(&world);
    let start = |flags: &[&str]| {
        let mut command = fastsync(&world);
        command.args(["cp", "src/", &there, "-c", "8M"]).args(flags);
        Running::start(&mut command)
    };
    let mut running = start(&[]);
    let jobs = world.path("home/state/fastsync/jobs");
    let journal = || {
        let job = fs::read_dir(&jobs).ok()?.next()?.ok()?.path();
        fs::metadata(job.join("journal")).ok()
    };
    // A header, an upload, and some parts.
    let is_under_way = || journal().is_some_and(|it| it.len() > 64 + 400 + 5 * 90);
    assert!(until(PATIENCE, || is_under_way() || running.is_over()));
    running.signal(Signal::KILL);
    assert!(running.wait().was_killed());
    assert!(run(&world, ["ls", &format!("{there}/")]).out.is_empty(), "not before it is whole");
    let summary = start(&["--json"]).wait().exits(0).summary();
    assert!(number(&summary, "bytes_resumed") >= 24 << 20, "{summary}");
    assert_eq!(number(&summary, "bytes_resumed") + number(&summary, "bytes_sent"), size);
    run(&world, ["cp", &format!("{there}/big"), "back"]).exits(0);
    assert_same_content(&world.path("src/big"), &world.path("back"));
    assert_eq!(tree(world.path("home/state/fastsync")).len(), 0, "nothing is left here");
}

#[test]
fn what_goes_wrong_is_told_without_secrets() {
    let world = World::new();
    world.text("file", "x");
    let there = place(&world);
    let with = |name: &str, value: &str, location: &str| {
        let ran = Running::start(fastsync(&world).env(name, value).args(["cp", "file", location]));
        let ran = ran.wait();
        assert!(!ran.err.contains(SECRET_KEY) && !ran.err.contains("wrong-secret"), "{}", ran.err);
        ran
    };
    let wrong = with("AWS_SECRET_ACCESS_KEY", "wrong-secret", &there);
    assert_ne!(wrong.status.code(), Some(0));
    let mut command = fastsync(&world);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    let ran = Running::start(command.args(["cp", "file", &there])).wait().exits(44);
    ran.says("AWS_ACCESS_KEY_ID");
    with("X", "x", "s3://no-such-bucket/x").exits(44).says("no such bucket");
    with("X", "x", "s3://B/x").says("bucket");
    let ran = run(&world, ["cp", &format!("{there}/nothing"), "back"]);
    assert_ne!(ran.status.code(), Some(0));
    ran.says("nothing");
    assert!(!world.path("back").exists());
}

/// From a host with an agent, data goes through here, and nothing is stored on the way.
#[test]
fn data_goes_through_here_between_a_host_and_a_store() {
    let world = World::new();
    plant(&world);
    let there = place(&world);
    let ssh = sshd().config();
    let from = world.remote("src/");
    let mut command = fastsync(&world);
    command.arg("cp").arg(from).arg(&there).arg("-F").arg(&ssh);
    Running::start(&mut command).wait().exits(0);
    let mut command = fastsync(&world);
    command.args(["cp", &format!("{there}/")]).arg(world.remote("back")).arg("-F").arg(&ssh);
    Running::start(&mut command).wait().exits(0);
    assert_same_files(&world, "src", "back");
}
