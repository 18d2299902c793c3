//! Copies to and from an S3 server.

use super::garage::{ACCESS_KEY, BUCKET, SECRET_KEY, garage};
use super::objects::{Bucket, assert_same_files};
use super::sshd::sshd;
use super::support::{Running, World};

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

#[test]
fn a_tree_goes_there_and_comes_back() {
    bucket().a_tree_goes_there_and_comes_back();
}

#[test]
fn an_object_gets_the_key_that_it_is_given() {
    bucket().an_object_gets_the_key_that_it_is_given();
}

#[test]
fn sync_deletes_and_a_dry_run_does_nothing() {
    bucket().sync_deletes_and_a_dry_run_does_nothing();
}

#[test]
fn a_killed_upload_goes_on() {
    bucket().a_killed_upload_goes_on();
}

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
