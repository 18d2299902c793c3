//! Copies to and from Google Cloud Storage, as an emulator has it.

use super::emulators::{gcs, objects};
use super::objects::{Bucket, scenes};
use super::support::World;

fn bucket() -> Bucket {
    Bucket {
        location: "gs://bucket",
        name: "gcs",
        environment: vec![
            ("STORAGE_EMULATOR_HOST", format!("127.0.0.1:{}", gcs().port)),
            // Amazon's variables are not for it.
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1".to_owned()),
            // The emulator takes one connection at a time, and 5 wait.
            ("FASTSYNC_REQUESTS", "4".to_owned()),
        ],
        // 40 parts are composed in two steps.
        upload: (20 << 20, 512 << 10),
    }
}

scenes!(bucket);

#[test]
fn a_composed_object_leaves_no_parts() {
    let (world, bucket) = (World::new(), bucket());
    world.write("src/big", 17 << 20);
    let there = bucket.place(&world);
    bucket.run(&world, ["cp", "src/", &there, "-c", "512K"]).exits(0);
    let prefix = there.strip_prefix("gs://bucket/").unwrap();
    let listed = objects(prefix);
    assert!(listed.contains("fastsync-blake3") && !listed.contains(".fastsync-"), "{listed}");
    assert_eq!(listed.matches("storage#object\"").count(), 1, "{listed}");
}

#[test]
fn what_goes_wrong_is_told_without_secrets() {
    let (world, bucket) = (World::new(), bucket());
    let key = r#"{"type": "service_account", "client_email": "a@b", "private_key": "top-secret"}"#;
    world.text("key.json", key);
    world.text("file", "x");
    let there = bucket.place(&world);
    let run = |location: &str, variables: &[(&str, Option<&str>)]| {
        bucket.run_with(&world, &["cp", "file", location], variables, &["top-secret"])
    };
    run("gs://no-such-bucket/x", &[]).exits(44).says("no such bucket");
    run("gs://B/x", &[]).says("bucket");
    let elsewhere = [("GCE_METADATA_HOST", Some("127.0.0.1:1")), ("STORAGE_EMULATOR_HOST", None)];
    run(&there, &elsewhere).exits(44).says("GOOGLE_APPLICATION_CREDENTIALS");
    let broken = [elsewhere[0], elsewhere[1], ("GOOGLE_APPLICATION_CREDENTIALS", Some("key.json"))];
    run(&there, &broken).exits(44);
    let ran = bucket.run(&world, ["cp", &format!("{there}/nothing"), "back"]);
    assert_ne!(ran.status.code(), Some(0));
    ran.says("nothing");
}
