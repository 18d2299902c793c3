//! Copies to and from Azure Blob Storage, as an emulator has it.

use super::emulators::{ACCOUNT, KEY, azure, shared_access_signature};
use super::objects::{Bucket, scenes};
use super::support::World;

fn endpoint() -> String {
    format!("http://127.0.0.1:{}/{ACCOUNT}", azure().port)
}

fn bucket() -> Bucket {
    Bucket {
        location: "az://bucket",
        name: "azure",
        environment: vec![
            ("AZURE_STORAGE_ACCOUNT", ACCOUNT.to_owned()),
            ("AZURE_STORAGE_KEY", KEY.to_owned()),
            ("AZURE_STORAGE_SERVICE_ENDPOINT", endpoint()),
            // Amazon's variables are not for it.
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1".to_owned()),
        ],
        upload: (200 << 20, 2 << 20),
    }
}

scenes!(bucket);

/// Without the account's key, and without its name.
#[test]
fn shared_access_signatures_and_connection_strings_are_enough() {
    let (world, bucket) = (World::new(), bucket());
    world.write("src/big", 3 << 20);
    let there = bucket.place(&world);
    let signature = shared_access_signature();
    let secret = signature.split("sig=").nth(1).unwrap();
    let signed = [
        ("AZURE_STORAGE_ACCOUNT", None),
        ("AZURE_STORAGE_KEY", None),
        ("AZURE_STORAGE_SAS_TOKEN", Some(&*signature)),
    ];
    bucket.run_with(&world, &["cp", "src/", &there, "-c", "1M"], &signed, &[secret]).exits(0);
    let text = format!("AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={}", endpoint());
    let connected = [
        ("AZURE_STORAGE_ACCOUNT", None),
        ("AZURE_STORAGE_KEY", None),
        ("AZURE_STORAGE_SERVICE_ENDPOINT", None),
        ("AZURE_STORAGE_CONNECTION_STRING", Some(&*text)),
    ];
    bucket.run_with(&world, &["check", "src", &there], &connected, &[KEY]).exits(0);
    // A server that is not there is told without the signature, which is part of the URL.
    let gone = [
        signed[0],
        signed[1],
        signed[2],
        ("AZURE_STORAGE_SERVICE_ENDPOINT", Some("http://127.0.0.1:1")),
    ];
    bucket.run_with(&world, &["ls", &there], &gone, &[secret]);
}

#[test]
fn what_goes_wrong_is_told_without_secrets() {
    let (world, bucket) = (World::new(), bucket());
    world.text("file", "x");
    world.text("dot.", "x");
    let there = bucket.place(&world);
    let wrong_key = "d3JvbmcgLSBzZWNyZXQ=";
    let run = |file: &str, location: &str, variables: &[(&str, Option<&str>)]| {
        bucket.run_with(&world, &["cp", file, location], variables, &[KEY, wrong_key])
    };
    let wrong = run("file", &there, &[("AZURE_STORAGE_KEY", Some(wrong_key))]);
    wrong.exits(44).says("AZURE_STORAGE_KEY");
    let nobody = [
        ("AZURE_STORAGE_KEY", None),
        // Where nobody tells who the machine is.
        ("PATH", Some("/nonexistent")),
        ("HTTP_PROXY", Some("http://127.0.0.1:1")),
        ("http_proxy", Some("http://127.0.0.1:1")),
        ("NO_PROXY", Some("127.0.0.1")),
    ];
    run("file", &there, &nobody).exits(44).says("AZURE_STORAGE_KEY");
    let broken = run("file", &there, &[("AZURE_STORAGE_KEY", Some("not - base64"))]).exits(44);
    broken.says("AZURE_STORAGE_KEY is no key");
    assert!(!broken.err.contains("not - base64"), "{broken:?}");
    run("file", "az://no-such-container/x", &[]).exits(44).says("no such container");
    run("file", "az://B/x", &[]).says("container");
    let nameless = [("AZURE_STORAGE_ACCOUNT", None), ("AZURE_STORAGE_SERVICE_ENDPOINT", None)];
    run("file", &there, &nameless).exits(44).says("--azure-account");
    run("dot.", &format!("{there}/"), &[]).exits(23).says("end with a dot");
    let ran = bucket.run(&world, ["cp", &format!("{there}/nothing"), "back"]);
    assert_ne!(ran.status.code(), Some(0));
    ran.says("nothing");
}
