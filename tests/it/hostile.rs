//! Object stores that misbehave: what they break off, mix up or refuse makes no wrong file, and removes
//! nothing.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use percent_encoding::percent_decode_str;

use super::objects::Bucket;
use super::support::{Ran, World, assert_same_content, number, set_mode};
use super::webserver::{Answer, Asked, Tiny};

/// What speaks S3, as well as a test needs it.
#[derive(Default)]
struct Store {
    objects: Mutex<BTreeMap<String, Object>>,
    /// Of the only upload that there is.
    parts: Mutex<BTreeMap<u64, Vec<u8>>>,
}

#[derive(Clone, Default)]
struct Object {
    data: Vec<u8>,
    headers: Vec<(&'static str, String)>,
}

impl Store {
    fn with(objects: &[(&str, &[u8])]) -> Arc<Self> {
        let store = Self::default();
        for (key, data) in objects {
            store.put(key, data);
        }
        Arc::new(store)
    }

    fn put(&self, key: &str, data: &[u8]) {
        let object = Object { data: data.to_vec(), ..Object::default() };
        self.objects.lock().unwrap().insert(key.to_owned(), object);
    }

    fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let key = path.strip_prefix("/bucket/").unwrap_or_default();
        match (&*asked.method, query) {
            ("GET", query) if query.starts_with("uploadId=") => self.list_parts(),
            ("GET", query) if query.contains("list-type") => self.list(query),
            ("GET" | "HEAD", _) => self.get(key, asked),
            ("POST", "uploads") => xml(
                "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
            ),
            ("PUT", query) if query.contains("partNumber=") => {
                let part = query["partNumber=".len()..].split('&').next().unwrap();
                self.parts.lock().unwrap().insert(part.parse().unwrap(), asked.body.clone());
                Answer::status(200).with("etag", tag_of(&asked.body))
            }
            ("POST", query) if query.starts_with("uploadId=") => {
                let whole =
                    self.parts.lock().unwrap().values().flatten().copied().collect::<Vec<_>>();
                self.put(key, &whole);
                xml(
                    "<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>",
                )
            }
            ("PUT", _) if asked.headers.contains_key("x-amz-copy-source") => {
                xml("<CopyObjectResult><ETag>\"x\"</ETag></CopyObjectResult>")
            }
            ("PUT", _) => {
                self.put(key, &asked.body);
                Answer::status(200).with("etag", tag_of(&asked.body))
            }
            ("DELETE", _) => Answer::status(204),
            _ => Answer::status(501),
        }
    }

    /// Everything that begins with a prefix, on one page.
    fn list(&self, query: &str) -> Answer {
        let prefix = query.split('&').find_map(|it| it.strip_prefix("prefix=")).unwrap_or_default();
        let prefix = percent_decode_str(prefix).decode_utf8().unwrap().into_owned();
        let mut prefixes = Vec::new();
        let mut text = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
        for (key, object) in &*self.objects.lock().unwrap() {
            let Some(below) = key.strip_prefix(&prefix) else { continue };
            match below.split_once('/') {
                Some((name, _)) if query.contains("delimiter") => prefixes.push(name.to_owned()),
                _ => text.push_str(&listed(key, &object.data)),
            }
        }
        prefixes.dedup();
        for name in prefixes {
            let prefix = format!("<Prefix>{prefix}{name}/</Prefix>");
            text.extend(["<CommonPrefixes>", &prefix, "</CommonPrefixes>"]);
        }
        xml(&(text + "</ListBucketResult>"))
    }

    fn list_parts(&self) -> Answer {
        let parts = self.parts.lock().unwrap();
        let part = |(number, data): (&u64, &Vec<u8>)| {
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", tag_of(data))
        };
        let parts: String = parts.iter().map(part).collect();
        xml(&format!("<ListPartsResult>{parts}</ListPartsResult>"))
    }

    fn get(&self, key: &str, asked: &Asked) -> Answer {
        let objects = self.objects.lock().unwrap();
        let Some(object) = objects.get(key) else { return Answer::status(404) };
        let tag = tag_of(&object.data);
        if asked.headers.get("if-match").is_some_and(|it| *it != tag) {
            return refused(412, "PreconditionFailed");
        }
        let mut answer = Answer::file(asked, &object.data).with("etag", tag);
        answer.headers.extend(object.headers.iter().cloned());
        answer
    }
}

fn xml(text: &str) -> Answer {
    Answer { body: text.into(), ..Answer::status(200) }
}

fn refused(status: u16, code: &str) -> Answer {
    Answer { status, ..xml(&format!("<Error><Code>{code}</Code><Message>m</Message></Error>")) }
}

fn tag_of(data: &[u8]) -> String {
    format!("\"{}\"", &blake3::hash(data).to_hex()[..32])
}

fn listed(key: &str, data: &[u8]) -> String {
    format!(
        "<Contents><Key>{key}</Key><Size>{}</Size><ETag>{}</ETag></Contents>",
        data.len(),
        tag_of(data)
    )
}

/// The program with a server in place of all three stores.
fn bucket(server: &Tiny) -> Bucket {
    let variable = |name, value: &str| (name, value.to_owned());
    Bucket {
        location: "s3://bucket",
        name: "s3",
        environment: vec![
            variable("AWS_ACCESS_KEY_ID", "key"),
            variable("AWS_SECRET_ACCESS_KEY", "secret"),
            variable("AWS_ENDPOINT_URL", &server.at("")),
            variable("STORAGE_EMULATOR_HOST", &server.at("")),
            variable("AZURE_STORAGE_ACCOUNT", "account"),
            variable("AZURE_STORAGE_KEY", "c2VjcmV0"),
            variable("AZURE_STORAGE_SERVICE_ENDPOINT", &server.at("/account")),
        ],
        upload: (0, 0),
    }
}

/// A page of a listing, in the words of the store that was asked.
fn page(asked: &Asked, names: &[String], next: &str) -> Answer {
    let one = |name: &String| match () {
        () if asked.path.contains("list-type") => listed(name, b"x"),
        () if asked.path.contains("/storage/v1/") => {
            format!("{{\"name\": \"{name}\", \"generation\": \"1\", \"size\": \"1\"}}")
        }
        () => format!("<Blob><Name>{name}</Name></Blob>"),
    };
    let all: Vec<String> = names.iter().map(one).collect();
    if asked.path.contains("list-type") {
        let next = format!("<NextContinuationToken>{next}</NextContinuationToken>");
        xml(&format!("<ListBucketResult>{}{next}</ListBucketResult>", all.concat()))
    } else if asked.path.contains("/storage/v1/") {
        let items = all.join(",");
        xml(&format!(
            "{{\"kind\": \"storage#objects\", \"items\": [{items}], \"nextPageToken\": \"{next}\"}}"
        ))
    } else {
        let blobs = format!("<Blobs>{}</Blobs>", all.concat());
        xml(&format!(
            "<EnumerationResults>{blobs}<NextMarker>{next}</NextMarker></EnumerationResults>"
        ))
    }
}

/// Lists at all three stores, of which `answer` gives each page by the marker that asks for it, for a
/// source and for a destination: it fails, and nothing is removed.
#[track_caller]
fn removes_nothing(why: &str, answer: impl Fn(&Asked, &str) -> Answer + Send + Sync + 'static) {
    let server = Tiny::start(move |asked| {
        let marker =
            |name: &str| Some(asked.path.split_once(name)?.1.split('&').next()?.to_owned());
        let names = ["continuation-token=", "pageToken=", "&marker="];
        let marker = names.into_iter().find_map(marker).unwrap_or_default();
        match &*asked.method {
            "GET" => answer(asked, &marker),
            "HEAD" => Answer::status(404),
            _ => Answer::status(200).with("etag", "\"x\""),
        }
    });
    let (world, bucket) = (World::new(), bucket(&server));
    world.text("src/file", "x");
    for location in ["s3://bucket/", "gs://bucket/", "az://bucket/"] {
        world.text("back/more", "x");
        for arguments in [
            &["ls", location][..],
            &["sync", "--delete", location, "back", "--retries=0"],
            &["sync", "--delete", "src/", location, "--retries=0"],
        ] {
            let ran = bucket.run(&world, arguments);
            assert!(!ran.status.success(), "{arguments:?}: {ran:?}");
            ran.says(location.trim_end_matches('/')).says(why);
        }
        assert!(world.path("back/more").exists());
    }
    let asked = server.asked();
    let is_removal = |it: &&Asked| it.method == "DELETE" || it.path.contains("?delete");
    assert_eq!(asked.iter().filter(is_removal).count(), 0, "{asked:?}");
}

#[test]
fn a_listing_that_breaks_off_removes_nothing() {
    for text in [
        "",
        "<html>Welcome</html>",
        "{\"kind\": \"storage#objects\", \"items\": [{\"name\": \"a\", ",
        "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        "<ListBucketResult><Contents><Key>a</Key></Contents>",
        "<EnumerationResults><Blobs><Blob><Name>a</Name></Blob>",
    ] {
        removes_nothing("", |_, _| xml(text));
    }
    // In the middle of an answer, and at the second page.
    removes_nothing("", |asked, _| Answer { is_cut: true, ..page(asked, &["a".to_owned()], "") });
    removes_nothing("403", |asked, marker| match marker {
        "" => page(asked, &["a".to_owned()], "t"),
        _ => Answer::status(403),
    });
}

#[test]
fn a_listing_without_an_end_removes_nothing() {
    // Two markers in turn; one for ever; others for ever, for the same page.
    removes_nothing("in circles", |asked, marker| match marker {
        "one" => page(asked, &["b".to_owned()], "two"),
        _ => page(asked, &["a".to_owned()], "one"),
    });
    removes_nothing("in circles", |asked, _| page(asked, &[], "same"));
    let count = AtomicUsize::new(0);
    removes_nothing("in circles", move |asked, _| {
        let next = count.fetch_add(1, Ordering::Relaxed).to_string();
        page(asked, &["a".to_owned(), "b".to_owned()], &next)
    });
}

/// What a server says last is what counts, whatever it said first.
#[test]
fn an_upload_without_a_result_is_none() {
    for body in [
        "",
        "<CompleteMultipartUploadResult/>",
        "<Error><Code>InternalError</Code></Error>",
        "<Error><Code>InvalidPart</Code></Error>",
    ] {
        let store = Store::with(&[]);
        let (answers, is_well) = (Arc::clone(&store), Arc::new(AtomicUsize::new(0)));
        let is_now = Arc::clone(&is_well);
        let server = Tiny::start(move |asked| {
            let is_end = asked.method == "POST" && asked.path.contains("?uploadId=");
            if is_end && is_now.load(Ordering::Relaxed) == 0 {
                xml(body)
            } else {
                answers.answer(asked)
            }
        });
        let (world, bucket) = (World::new(), bucket(&server));
        let file = world.write("file", 20 << 20);
        let copy = || bucket.run(&world, ["cp", "file", "s3://bucket/file", "--json"]);
        let ran = copy().exits(23);
        assert_eq!(number(&ran.summary(), "done"), 0, "{body}");
        is_well.store(1, Ordering::Relaxed);
        copy().exits(0);
        assert_eq!(store.objects.lock().unwrap()["file"].data, fs::read(file).unwrap(), "{body}");
    }
}

fn is_part(asked: &Asked) -> bool {
    asked.method == "PUT" && asked.path.contains("partNumber=")
}

/// What a store says of a part has to be so, as far as it says anything.
#[test]
fn a_part_that_arrived_as_another_is_an_error() {
    let copy = |location: &str, answer: fn(&Asked) -> Option<Answer>| {
        let store = Store::with(&[]);
        let server = Tiny::start(move |asked| answer(asked).unwrap_or_else(|| store.answer(asked)));
        let (world, bucket) = (World::new(), bucket(&server));
        world.write("file", 20 << 20);
        let ran = bucket.run(&world, ["cp", "file", &format!("{location}/file"), "--json"]);
        let ran = ran.exits(23);
        assert_eq!(number(&ran.summary(), "done"), 0);
        let asked = server.asked();
        let is_end = |it: &&Asked| it.path.contains("?uploadId=") && it.method == "POST";
        assert_eq!(asked.iter().filter(is_end).count(), 0, "{asked:?}");
        ran
    };
    copy("s3://bucket", |asked| is_part(asked).then(|| Answer::status(200))).says("tag");
    copy("s3://bucket", |asked| {
        let other = Answer::status(200).with("etag", "\"x\"");
        is_part(asked).then(|| other.with("x-amz-checksum-crc64nvme", "AAAAAAAAAAA="))
    })
    .says("damaged");
    copy("gs://bucket", |asked| {
        let object =
            "{\"name\": \"x\", \"generation\": \"1\", \"size\": \"1\", \"crc32c\": \"AAAAAA==\"}";
        Some(match &*asked.method {
            "POST" => xml(object),
            "GET" if asked.path.contains("prefix=") => page(asked, &[], ""),
            _ => Answer::status(404),
        })
    })
    .says("damaged");
    copy("az://bucket", |asked| {
        let other = Answer::status(201).with("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==");
        Some(match &*asked.method {
            "PUT" => other,
            "GET" => page(asked, &[], ""),
            _ => Answer::status(404),
        })
    })
    .says("damaged");
}

/// Only time and mode are corrected; what others said of the object stays.
#[test]
fn corrected_metadata_leaves_what_others_said() {
    let store = Store::with(&[("file", b"data")]);
    let said = [
        ("content-type", "text/plain"),
        ("cache-control", "no-store"),
        ("x-amz-meta-owner", "somebody"),
        ("x-amz-meta-fastsync-mtime", "1000000000.000000000"),
        ("x-amz-meta-fastsync-mode", "0600"),
        ("x-amz-storage-class", "GLACIER_IR"),
    ];
    let headers = said.map(|(name, value)| (name, value.to_owned())).to_vec();
    store.objects.lock().unwrap().get_mut("file").unwrap().headers = headers;
    let answers = Arc::clone(&store);
    let server = Tiny::start(move |asked| answers.answer(asked));
    let (world, bucket) = (World::new(), bucket(&server));
    let file = world.text("src/file", "data");
    set_mode(&file, 0o640);
    super::support::set_mtime(&file, 1_000_000_000, 0);
    bucket.run(&world, ["sync", "src/", "s3://bucket/"]).exits(0);
    let asked = server.asked();
    let written: Vec<_> = asked.iter().filter(|it| it.method == "PUT").collect();
    let [copy] = written[..] else { panic!("{written:?}") };
    let wanted = [
        ("x-amz-copy-source", "/bucket/file"),
        ("x-amz-metadata-directive", "REPLACE"),
        ("x-amz-copy-source-if-match", &tag_of(b"data")),
        ("x-amz-meta-fastsync-mode", "0640"),
    ];
    let others = said.into_iter().filter(|(name, _)| !name.ends_with("mode"));
    for (name, value) in wanted.into_iter().chain(others) {
        assert_eq!(copy.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
}

/// Parts of two versions never make one file.
#[test]
fn an_object_that_changes_begins_anew() {
    // A server that heeds the condition, and one that gives whatever it has.
    for heeds in [true, false] {
        let world = World::new();
        let [old, new] = ["old", "new"].map(|it| fs::read(world.write(it, 3 << 20)).unwrap());
        let store = Store::with(&[("x", &old)]);
        let parts = AtomicUsize::new(0);
        let server = Tiny::start(move |asked| {
            if asked.method == "GET" && asked.range().is_some() {
                if parts.fetch_add(1, Ordering::Relaxed) == 4 {
                    store.put("x", &new);
                }
                let mut asked = asked.clone();
                if !heeds {
                    asked.headers.remove("if-match");
                }
                return store.answer(&asked);
            }
            store.answer(asked)
        });
        let bucket = bucket(&server);
        bucket.run(&world, ["cp", "s3://bucket/x", "back", "-c", "64K"]).exits(0);
        assert_same_content(&world.path("new"), &world.path("back"));
    }
}

/// A server that has too much to do is asked again, for a while; then it is an error of what was asked.
#[test]
fn throttling_is_waited_for_and_not_for_ever() {
    let store = Store::with(&[]);
    let (answers, times) = (Arc::clone(&store), AtomicUsize::new(0));
    let server = Tiny::start(move |asked| {
        let is_slow = || times.fetch_add(1, Ordering::Relaxed) < 2;
        let is_busy = asked.path.contains("/never") || asked.path.contains("/slow") && is_slow();
        if asked.method == "PUT" && is_busy {
            return refused(503, "SlowDown");
        }
        answers.answer(asked)
    });
    let (world, bucket) = (World::new(), bucket(&server));
    world.text("slow", "x");
    bucket.run(&world, ["cp", "slow", "s3://bucket/slow"]).exits(0);
    for n in 0..80 {
        world.text(format!("src/never-{n:02}"), "x");
        world.text(format!("src/well-{n:02}"), "x");
    }
    let before = server.asked().len();
    let arguments = ["cp", "src/", "s3://bucket/", "--json", "--requests=25"];
    let ran = bucket.run(&world, arguments).exits(23);
    ran.says("too much to do (SlowDown)");
    let summary = ran.summary();
    assert_eq!((number(&summary, "done"), number(&summary, "failed")), (80, 80), "{summary}");
    assert!(store.keys().iter().all(|key| !key.contains("never")));
    // Each once, and what may be sent again: four for each request at a time, and a tenth of all.
    let asked = server.asked()[before..].iter().filter(|it| it.method == "PUT").count();
    assert!((200..=160 + 100 + 40).contains(&asked), "{asked}");
}

#[test]
fn expired_credentials_are_told_in_one_line() {
    let expires = |is_over: fn(&Asked) -> bool| {
        let store = Store::with(&[]);
        let server = Tiny::start(move |asked| {
            if is_over(asked) { refused(400, "ExpiredToken") } else { store.answer(asked) }
        });
        let (world, bucket) = (World::new(), bucket(&server));
        for n in 0..50 {
            world.text(format!("src/{n}"), "x");
        }
        let ran = bucket.run(&world, ["cp", "src/", "s3://bucket/"]);
        ran.says("the credentials have expired; log in again (ExpiredToken)");
        ran
    };
    let told = |ran: &Ran| ran.err.matches("ExpiredToken").count();
    let ran = expires(|_| true).exits(44);
    assert_eq!(told(&ran), 1, "{}", ran.err);
    // Nothing else will work either, so that it is not said fifty times.
    let ran = expires(|asked| asked.method == "PUT").exits(44);
    assert_eq!(told(&ran), 1, "{}", ran.err);
}
