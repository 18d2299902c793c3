//! Web servers that take what they do not keep, give what they do not have, or say what is not so.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use rustix::process::Signal;

use super::support::{PATIENCE, Running, World, assert_same_content, until};
use super::webdav::{Cloud, cloud, run};
use super::webserver::{Answer, Asked, Tiny};

/// A server that offers PATCH, and writes what `writes` says.
fn patched(files: &Mutex<Cloud>, asked: &Asked, writes: impl Fn(usize) -> bool) -> Answer {
    match &*asked.method {
        "OPTIONS" => Answer::status(200).with("dav", "1, sabredav-partialupdate"),
        "PATCH" => {
            let (first, last) =
                asked.headers["x-update-range"]["bytes=".len()..].split_once('-').unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            let mut files = files.lock().unwrap();
            let (data, _) = files.get_mut(&asked.path).unwrap();
            data.resize(data.len().max(last + 1), 0);
            if writes(first) {
                data[first..=last].copy_from_slice(&asked.body);
            }
            Answer::status(204)
        }
        _ => cloud(files, asked),
    }
}

fn has(files: &Mutex<Cloud>, path: &str) -> Option<Vec<u8>> {
    files.lock().unwrap().get(path).map(|(data, _)| data.clone())
}

#[test]
fn a_server_that_writes_no_parts_gets_whole_files() {
    for offers in [true, false] {
        let (world, files) = (World::new(), Mutex::new(Cloud::new()));
        let data = fs::read(world.write("src/big", 1_000_000)).unwrap();
        let files = Arc::new(files);
        let kept = Arc::clone(&files);
        let tiny = Tiny::start(move |asked| patched(&kept, asked, |_| offers));
        let there = tiny.at("/d").replace("http", "webdav");
        run(&world, ["cp", "src/", &there, "-c", "64K"]).exits(0);
        assert!(has(&files, "/d/big").unwrap() == data);
        let patches = tiny.asked().iter().filter(|it| it.method == "PATCH").count();
        assert_eq!(patches > 2, offers, "{patches}");
    }
}

/// It has proved to write parts, and then says so without doing it.
#[test]
fn a_part_that_was_not_written_is_missed() {
    let (world, files) = (World::new(), Arc::new(Mutex::new(Cloud::new())));
    world.write("src/big", 1_000_000);
    files.lock().unwrap().insert("/d/big".to_owned(), (b"as it was".to_vec(), 1_000_000_000));
    let kept = Arc::clone(&files);
    let tiny = Tiny::start(move |asked| patched(&kept, asked, |first| first != 3 << 16));
    let there = tiny.at("/d").replace("http", "webdav");
    run(&world, ["cp", "src/", &there, "-c", "64K"]).exits(40).says("has written what it has not");
    assert_eq!(has(&files, "/d/big").unwrap(), b"as it was");
    assert_eq!(files.lock().unwrap().len(), 1, "nothing else is left");
}

/// Somebody makes a directory where a file is about to go.
#[test]
fn a_directory_is_not_moved_over() {
    let (world, files) = (World::new(), Mutex::new(Cloud::new()));
    world.text("src/name", "x");
    let is_there = AtomicBool::new(false);
    let tiny = Tiny::start(move |asked| match (&*asked.method, &*asked.path) {
        ("MOVE", _) if asked.headers["destination"].ends_with("/name") => {
            is_there.store(true, Ordering::Relaxed);
            Answer::status(if asked.headers["overwrite"] == "F" { 412 } else { 204 })
        }
        ("PROPFIND", "/d/name") if is_there.load(Ordering::Relaxed) => {
            let body = "<d:multistatus xmlns:d=\"DAV:\"><d:response><d:href>/d/name</d:href>\
                        <d:propstat><d:prop><d:resourcetype><d:collection/></d:resourcetype></d:prop>\
                        <d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response></d:multistatus>";
            Answer { body: body.into(), ..Answer::status(207) }
        }
        _ => cloud(&files, asked),
    });
    let there = tiny.at("/d").replace("http", "webdav");
    run(&world, ["cp", "src/", &there]).exits(23).says("a directory has this name");
    let asked = tiny.asked();
    let moves = asked
        .iter()
        .filter(|it| it.headers.get("destination").is_some_and(|it| it.ends_with("/name")));
    assert_eq!(moves.count(), 1, "and never with leave to replace it");
}

/// What has come when a run ends, and has no name of its own yet, is removed.
#[test]
fn an_upload_that_ends_early_leaves_no_small_files() {
    let (world, files) = (World::new(), Arc::new(Mutex::new(Cloud::new())));
    for n in 0..50 {
        world.text(format!("src/{n}"), "small");
    }
    let (moving, moves) = mpsc::channel();
    let (moving, there) = (Mutex::new(moving), Arc::clone(&files));
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let tiny = Tiny::start(move |asked| {
        if asked.method == "MOVE" && gets_its_name(asked) {
            let _ = moving.lock().unwrap().send(());
            until(PATIENCE, || over.load(Ordering::Relaxed));
            return Answer::status(404);
        }
        cloud(&there, asked)
    });
    let mut command = world.fastsync();
    command.args(["cp", "src/", &tiny.at("/d").replace("http", "webdav")]);
    let running = Running::start(&mut command);
    moves.recv().unwrap();
    running.signal(Signal::INT);
    running.wait().exits(20);
    let left: Vec<String> = files.lock().unwrap().keys().cloned().collect();
    is_over.store(true, Ordering::Relaxed);
    assert!(left.is_empty(), "{left:?}");
}

/// Whether a file of this test gets its name, and not one with which something is tried out.
fn gets_its_name(asked: &Asked) -> bool {
    asked.headers["destination"].rsplit('/').next().is_some_and(|name| name.parse::<u32>().is_ok())
}

/// What is written goes nowhere else, and what is read is what was listed.
#[test]
fn webdav_is_no_way_around() {
    let (world, files) = (World::new(), Arc::new(Mutex::new(Cloud::new())));
    world.text("src/name", "x");
    let data = fs::read(world.write("large", 3_000_000)).unwrap();
    for name in ["packed", "version", "fine"] {
        files.lock().unwrap().insert(format!("/d/{name}"), (data.clone(), 1_000_000_000));
    }
    let tiny = Tiny::start(move |asked| match (&*asked.method, &*asked.path) {
        ("PUT", _) => Answer::status(307).with("location", "/elsewhere"),
        ("GET" | "HEAD", "/d/packed") => cloud(&files, asked).with("content-encoding", "gzip"),
        // Another version from the second megabyte on, and nobody asks whether it is wanted.
        ("GET", "/d/version") if asked.range().is_some_and(|it| it.0 >= 1 << 20) => {
            cloud(&files, asked).with("etag", "\"b\"")
        }
        (_, "/d/version") => cloud(&files, asked).with("etag", "\"a\""),
        ("HEAD", _) => Answer::status(200),
        _ => cloud(&files, asked),
    });
    let there = tiny.at("/d").replace("http", "webdav");
    run(&world, ["cp", "src/", &there]).exits(11).says("redirects what is written");
    assert!(tiny.asked().iter().all(|it| it.path != "/elsewhere"));
    let copy = |name: &str| run(&world, ["cp", &format!("{there}/{name}"), "back", "-c", "256K"]);
    copy("packed").says("compressed");
    copy("version").says("changed while it was read");
    assert!(!world.path("back").exists());
    copy("fine").exits(0);
    assert_same_content(&world.path("large"), &world.path("back"));
}

/// What a web server has of a file is of one version, whether or not it looks at `If-Range`.
#[test]
fn ranges_of_another_version_are_refused() {
    let world = World::new();
    let data = fs::read(world.write("src", 3_000_000)).unwrap();
    let tiny = Tiny::start(move |asked| {
        let is_later = asked.range().is_some_and(|it| it.0 >= 1 << 20);
        Answer::file(asked, &data).with("etag", ["\"a\"", "\"b\""][usize::from(is_later)])
    });
    let ran = run(&world, ["cp", &tiny.at("/x"), "back", "-c", "256K"]);
    ran.says("changed while it was read");
    assert!(!ran.status.success() && !world.path("back").exists());
}
