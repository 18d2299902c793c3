//! Copies to and from an S3 server.

use super::garage::{ACCESS_KEY, BUCKET, SECRET_KEY, garage};
use super::objects::{Bucket, assert_same_files, scenes};
use super::sshd::sshd;
use super::support::{Running, World, number};

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
    run("s3://no-such-bucket/x", &[]).exits(44).says("no such bucket");
    run("s3://B/x", &[]).says("bucket");
    let ran = bucket.run(&world, ["cp", &format!("{there}/nothing"), "back"]);
    assert_ne!(ran.status.code(), Some(0));
    ran.says("nothing");
    assert!(!world.path("back").exists());
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
