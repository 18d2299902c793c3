//! Copies from web servers, and to those that take PUT.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use rustix::process::Signal;

use super::support::{
    PATIENCE, Ran, Running, World, assert_same, assert_same_content, content, number, set_mode,
    set_mtime, until,
};
use super::webserver::{Answer, Asked, PASSWORD, Tiny, USER, Web, apache, nginx, python};

/// A directory of this test's own in what a server serves.
fn place(world: &World, server: &Web, below: &str) -> String {
    let name = world.path("").file_name().unwrap().to_str().unwrap().to_owned();
    let name = format!("{below}{name}");
    fs::create_dir_all(server.root.join(&name)).unwrap();
    name
}

fn fastsync(world: &World) -> Command {
    let mut command = world.fastsync();
    command.env("XDG_STATE_HOME", world.path("home/state"));
    command.env_remove("http_proxy").env_remove("HTTP_PROXY").env_remove("NETRC");
    command
}

fn run<A: AsRef<OsStr>>(world: &World, arguments: impl IntoIterator<Item = A>) -> Ran {
    Running::start(fastsync(world).args(arguments)).wait()
}

/// A tree with whole seconds, as HTTP has them, and the modes that new files get.
fn plant(root: &Path) {
    let world = World::new();
    for (n, size) in [0, 1, 300_000, 9_000_000].into_iter().enumerate() {
        world.write(format!("src/sizes/{n}"), size);
    }
    for n in 0..300 {
        world.text(format!("src/many/{n}"), format!("small {n}"));
    }
    for name in ["with space", "%41#?&+", "-rf", "ümläut", "a'\"<>&amp;b", "x:y"] {
        world.text(Path::new("src/names").join(name), name);
    }
    let copied = Command::new("cp").arg("-r").arg(world.path("src/.")).arg(root).status();
    assert!(copied.unwrap().success());
    with_whole_seconds(root);
}

/// Directories have no times of their own there.
fn with_whole_seconds(root: &Path) {
    let mut command = Command::new("find");
    command.arg(root).args(["-depth", "-exec", "touch", "-h", "-d", "@1000000000", "{}", "+"]);
    assert!(command.status().unwrap().success());
}

fn assert_same_files(wanted: &Path, found: &Path) {
    for root in [wanted, found] {
        let mut command = Command::new("find");
        command.arg(root).args(["-depth", "-type", "d"]);
        command.args(["-exec", "touch", "-d", "@1000000000", "{}", "+"]);
        assert!(command.status().unwrap().success());
    }
    assert_same(wanted, found);
}

/// The first file shows it, and nothing else is sent; what has not arrived is not called verified.
#[test]
fn a_directory_that_put_does_not_make_is_told_once() {
    let cases = [
        (apache().at("http"), &["src/", "src/large"][..]),
        // Why it fails with a large file could be another reason, for which it is tried again.
        (format!("{}/plain", nginx().at("http")), &["src/many/"]),
    ];
    for (at, sources) in cases {
        let world = World::new();
        for n in 0..300 {
            world.text(format!("src/many/{n}"), "small");
        }
        world.write("src/large", 3_000_000);
        for source in sources {
            let ran = run(&world, ["cp", *source, &format!("{at}/missing/dir/")]).exits(11);
            let told = ran.err.matches("make it first, or write webdav://").count();
            assert_eq!(told, 1, "{}", ran.err);
            assert!(!ran.err.contains("(BLAKE3)"), "{}", ran.err);
        }
    }
}

/// All that has its directory arrives.
#[test]
fn one_directory_that_put_does_not_make_keeps_nothing_else() {
    let (world, server) = (World::new(), apache());
    for n in 0..300 {
        world.text(format!("src/missing/{n}"), "small");
        world.text(format!("src/there/{n}"), "small");
    }
    world.write("src/missing/large", 3_000_000);
    world.write("src/there/large", 3_000_000);
    let name = place(&world, server, "");
    let at_server = server.root.join(&name).join("there");
    fs::create_dir(&at_server).unwrap();
    // The server may run as somebody else.
    set_mode(&at_server, 0o777);
    let there = format!("{}/{name}/", server.at("http"));
    let ran = run(&world, ["cp", "src/", &there]).exits(23);
    let diff = Command::new("diff").arg("-r").arg(world.path("src/there")).arg(&at_server).status();
    assert!(diff.unwrap().success());
    ran.says("make it first, or write webdav://");
}

/// A server that has failed is asked once more, also where it knows of no directories.
#[test]
fn a_server_that_fails_once_gets_the_file_all_the_same() {
    let world = World::new();
    world.write("file", 3_000_000);
    let has_failed = AtomicBool::new(false);
    let tiny = Tiny::start(move |asked| match asked.method.as_str() {
        "PUT" if !has_failed.swap(true, Ordering::Relaxed) => Answer::status(500),
        "PUT" => Answer::status(201),
        _ => Answer::status(404),
    });
    run(&world, ["cp", "file", &tiny.at("/new/x")]).exits(0).says("connection lost");
}

/// Nothing of such a file is left from one session for the next one.
#[test]
fn a_server_that_fails_again_and_again_is_given_up() {
    let world = World::new();
    world.write("file", 3_000_000);
    let tiny = Tiny::start(|asked| Answer::status(if asked.method == "PUT" { 500 } else { 403 }));
    let ran = run(&world, ["cp", "file", &tiny.at("/x"), "--retries", "2"]).exits(30);
    assert_eq!(ran.err.matches("connection lost").count(), 2, "{}", ran.err);
}

#[test]
fn a_tree_comes_by_index_pages() {
    let world = World::new();
    let server = nginx();
    let name = place(&world, server, "");
    plant(&server.root.join(&name));
    for at in [format!("{name}/"), format!("json/{name}/")] {
        let there = format!("{}/{at}", server.at("http"));
        let copy = || run(&world, ["cp", &there, "back", "--json"]).exits(0).summary();
        let summary = copy();
        assert_eq!((&summary["transport"], &summary["encrypted"]), (&"http".into(), &false.into()));
        assert_same_files(&server.root.join(&name), &world.path("back"));
        let now = fs::metadata(world.path("back/many")).unwrap().modified().unwrap();
        let again = copy();
        assert_eq!((number(&again, "done"), number(&again, "bytes_sent")), (0, 0));
        let later = fs::metadata(world.path("back/many")).unwrap().modified().unwrap();
        assert_eq!(now, later, "nobody knows the times of directories");
        run(&world, ["check", &there, "back"]).exits(0);
        fs::write(world.path("back/more"), "x").unwrap();
        run(&world, ["check", &there, "back"]).exits(40);
        run(&world, ["sync", "--delete", "-n", &there, "back"]).exits(0);
        assert!(world.path("back/more").exists());
        run(&world, ["sync", "--delete", &there, "back"]).exits(0);
        assert_same_files(&server.root.join(&name), &world.path("back"));
        fs::remove_dir_all(world.path("back")).unwrap();
    }
    let listed = run(&world, ["ls", "-R", &format!("{}/{name}/", server.at("http"))]).exits(0);
    assert!(String::from_utf8_lossy(&listed.out).contains("many/299\n"));
}

/// HTTP tells times in whole seconds, those of what was not made that way too.
#[test]
fn parts_of_seconds_are_no_change() {
    let world = World::new();
    let server = nginx();
    let name = place(&world, server, "");
    world.text("src/one", "one");
    set_mtime(&world.path("src/one"), 1_000_000_000, 999_999_999);
    let at_server = server.root.join(&name);
    let copied = Command::new("cp").arg("-a").arg(world.path("src/.")).arg(&at_server).status();
    assert!(copied.unwrap().success());
    let there = format!("{}/{name}/", server.at("http"));
    run(&world, ["check", &there, "src"]).exits(0);
    let summary = run(&world, ["sync", &there, "src", "--json"]).exits(0).summary();
    assert_eq!((number(&summary, "done"), number(&summary, "bytes_sent")), (0, 0));
    set_mtime(&at_server.join("one"), 1_000_000_001, 0);
    run(&world, ["check", &there, "src"]).exits(40);
}

/// A server without ranges gives each file in one stream, however many channels ask for its chunks.
#[test]
fn a_server_without_ranges_gives_one_stream() {
    let world = World::new();
    world.write("src/large", 40_000_000);
    world.write("src/other", 5_000_000);
    with_whole_seconds(&world.path("src"));
    let server = python(&world.path("src"));
    let there = server.at("http");
    run(&world, ["cp", &format!("{there}/"), "back", "-c", "256K", "-p", "8"]).exits(0);
    assert_same_files(&world.path("src"), &world.path("back"));
    run(&world, ["cp", &format!("{there}/large"), "one", "-c", "64K"]).exits(0);
    assert_same_content(&world.path("src/large"), &world.path("one"));
}

#[test]
fn redirects_are_followed_and_strangers_are_not_told_who_asks() {
    let world = World::new();
    let data = fs::read(world.write("src", 3_000_000)).unwrap();
    let stranger = Tiny::start(move |asked| Answer::file(asked, &data).with("etag", "\"1\""));
    let to = format!("http://127.0.0.2:{}/final?key=1", stranger.port);
    let first = Tiny::start(move |asked| match &*asked.path {
        "/begin" => Answer::status(302).with("location", "/middle"),
        "/middle" => Answer::status(307).with("location", to.clone()),
        _ => Answer::status(404),
    });
    let mut command = fastsync(&world);
    command.env("FASTSYNC_HTTP_TOKEN", "secret").args(["cp", &first.at("/begin"), "back"]);
    Running::start(command.args(["-c", "256K"])).wait().exits(0);
    assert_same_content(&world.path("src"), &world.path("back"));
    assert!(first.asked().iter().all(|it| it.headers["authorization"] == "Bearer secret"));
    let asked = stranger.asked();
    assert!(asked.iter().all(|it| !it.headers.contains_key("authorization")));
    let ranges = asked.iter().filter(|it| it.range().is_some()).count();
    assert!(ranges >= 10 && asked.iter().all(|it| it.path == "/final?key=1"), "{asked:?}");
    assert!(first.asked().len() < 10, "the parts are asked for where the way led to");
}

/// Where a strong tag tells the version of each part, nobody asks for the head again and again.
#[test]
fn a_tagged_file_is_asked_about_once() {
    let world = World::new();
    let data = fs::read(world.write("src", 2_000_000)).unwrap();
    let tiny = Tiny::start(move |asked| match &*asked.path {
        "/weak" => Answer::file(asked, &data).with("etag", "W/\"1\""),
        // The parts do not say of which version they are.
        "/late" if asked.method == "HEAD" => Answer::file(asked, &data),
        "/strong" | "/late" => Answer::file(asked, &data).with("etag", "\"1\""),
        "/silent" if asked.method == "HEAD" => Answer::file(asked, &data).with("etag", "\"1\""),
        _ => Answer::file(asked, &data),
    });
    // Of a file without a tag one answer only is known to be of one version.
    for (path, heads, count) in
        [("/strong", 1, 8), ("/weak", 2, 8), ("/silent", 2, 8), ("/late", 2, 1)]
    {
        let _ = fs::remove_file(world.path("back"));
        run(&world, ["cp", &tiny.at(path), "back", "-c", "256K"]).exits(0);
        assert_same_content(&world.path("src"), &world.path("back"));
        let asked = tiny.asked().into_iter().filter(|it| it.path == path);
        let (head, parts): (Vec<_>, Vec<_>) = asked.partition(|it| it.method == "HEAD");
        assert_eq!((head.len(), parts.len()), (heads, count), "{path}");
        let is_strong = matches!(path, "/strong" | "/silent");
        assert!(parts.iter().all(|it| it.headers.contains_key("if-range") == is_strong), "{path}");
    }
}

/// A connection that stands still does not keep a file: what it was to bring comes over another. Where
/// the server does not want that, it is waited for.
#[test]
fn a_part_that_is_slow_to_come_is_shared() {
    let world = World::new();
    let data = fs::read(world.write("src", 16 << 20)).unwrap();
    for refusal in [None, Some(403), Some(404), Some(416), Some(503), Some(200)] {
        let (to_slow, again) = std::sync::mpsc::channel();
        let again = Mutex::new(again);
        let at_half: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            let _ = again.lock().unwrap().recv_timeout(PATIENCE);
        });
        let (data, is_first) = (data.clone(), AtomicBool::new(true));
        let tiny = Tiny::start(move |asked| {
            let answer = Answer::file(asked, &data).with("etag", "\"1\"");
            match asked.range() {
                Some((LAST_PART, 16_777_215)) => {
                    Answer { at_half: Some(Arc::clone(&at_half)), ..answer }
                }
                Some((first, _)) if first > LAST_PART => {
                    let _ = to_slow.send(());
                    // What is left of it is asked for once more.
                    match refusal.filter(|_| is_first.swap(false, Ordering::Relaxed)) {
                        None => answer,
                        Some(200) => Answer { body: data.clone(), ..Answer::status(200) },
                        Some(status) => Answer::status(status),
                    }
                }
                _ => answer,
            }
        });
        let _ = fs::remove_file(world.path("back"));
        let ran = run(&world, ["cp", &tiny.at("/x"), "back", "-c", "4M"]);
        let asked = tiny.asked();
        let helped = asked.iter().filter_map(Asked::range).filter(|(first, _)| *first > LAST_PART);
        assert!(helped.count() > 0, "{refusal:?}: nobody has helped");
        ran.exits(0);
        assert_same_content(&world.path("src"), &world.path("back"));
    }
}

/// Where the last part of 4 MiB begins.
const LAST_PART: usize = 12 << 20;

/// What went well before does not count against what is busy for once.
#[test]
fn one_refusal_after_many_answers_is_nothing() {
    let world = World::new();
    let is_first = AtomicBool::new(true);
    let tiny = Tiny::start(move |asked| match &*asked.path {
        "/d" => Answer::status(301).with("location", "/d/"),
        "/d/" => {
            let links: Vec<_> = (0..300).map(|n| format!("<a href=\"{n}\">{n}</a>\n")).collect();
            let page = format!("<title>Index of /d</title>{}", links.concat());
            Answer { body: page.into(), ..Answer::status(200) }.with("content-type", "text/html")
        }
        "/d/299" if asked.method == "GET" && is_first.swap(false, Ordering::Relaxed) => {
            Answer::status(503)
        }
        path => Answer::file(asked, path.as_bytes()).with("etag", "\"1\""),
    });
    run(&world, ["cp", &tiny.at("/d/"), "back"]).exits(0);
    assert_eq!(fs::read(world.path("back/299")).unwrap(), b"/d/299");
}

/// A server with few places for many requests is asked for less at a time, and nothing is given up.
#[test]
fn a_server_with_few_places_is_not_overrun() {
    let world = World::new();
    let data = fs::read(world.write("src", 32 << 20)).unwrap();
    let (busy, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let refusals = Arc::clone(&refused);
    let tiny = Tiny::start(move |asked| {
        if asked.method == "HEAD" {
            return Answer::file(asked, &data).with("etag", "\"1\"");
        }
        if busy.fetch_add(1, Ordering::SeqCst) >= 2 {
            busy.fetch_sub(1, Ordering::SeqCst);
            refused.fetch_add(1, Ordering::SeqCst);
            return Answer::status(503);
        }
        let busy = Arc::clone(&busy);
        // It takes its time, as a server that is far away.
        let at_half: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            busy.fetch_sub(1, Ordering::SeqCst);
        });
        Answer { at_half: Some(at_half), ..Answer::file(asked, &data).with("etag", "\"1\"") }
    });
    run(&world, ["cp", &tiny.at("/x"), "back", "-c", "1M"]).exits(0);
    assert_same_content(&world.path("src"), &world.path("back"));
    assert!(refusals.load(Ordering::SeqCst) > 0, "it was never too much");
}

/// Where the way to a file leads to URLs that hold for a while only, all readers find the next one.
#[test]
fn ways_that_end_are_asked_for_again() {
    let world = World::new();
    let data = fs::read(world.write("src", 8 << 20)).unwrap();
    let uses = Mutex::new(Vec::new());
    let tiny = Tiny::start(move |asked| {
        let mut uses = uses.lock().unwrap();
        if asked.path == "/begin" {
            uses.push(0);
            return Answer::status(302).with("location", format!("/{}", uses.len() - 1));
        }
        // Each way is good for three requests.
        let used: &mut u32 = &mut uses[asked.path[1..].parse::<usize>().unwrap()];
        *used += 1;
        let is_good = *used <= 3;
        drop(uses);
        if is_good { Answer::file(asked, &data).with("etag", "\"1\"") } else { Answer::status(403) }
    });
    run(&world, ["cp", &tiny.at("/begin"), "back", "-c", "256K"]).exits(0);
    assert_same_content(&world.path("src"), &world.path("back"));
}

/// Parts of two versions never make one file.
#[test]
fn a_file_that_changes_begins_anew() {
    let world = World::new();
    let old = fs::read(world.write("old", 2_000_000)).unwrap();
    let new = fs::read(world.write("new", 2_000_000)).unwrap();
    let parts = AtomicUsize::new(0);
    let tiny = Tiny::start(move |asked| {
        let is_old = parts.load(Ordering::Relaxed) < 3;
        let (data, tag) = if is_old { (&old, "\"old\"") } else { (&new, "\"new\"") };
        if asked.method == "HEAD" {
            return Answer { body: data.clone(), ..Answer::status(200) }.with("etag", tag);
        }
        parts.fetch_add(1, Ordering::Relaxed);
        let is_asked_for = asked.headers.get("if-range").is_none_or(|it| it == tag);
        if is_asked_for {
            return Answer::file(asked, data).with("etag", tag);
        }
        Answer { body: data.clone(), ..Answer::status(200) }.with("etag", tag)
    });
    run(&world, ["cp", &tiny.at("/x"), "back", "-c", "256K"]).exits(0);
    assert_same_content(&world.path("new"), &world.path("back"));
}

#[test]
fn digests_are_checked() {
    let world = World::new();
    let data = fs::read(world.write("src", 1_500_000)).unwrap();
    let sha256 = Command::new("sha256sum").arg(world.path("src")).output().unwrap().stdout;
    let sha256 = String::from_utf8(sha256).unwrap()[..64].to_owned();
    let bytes: Vec<u8> =
        (0..32).map(|n| u8::from_str_radix(&sha256[2 * n..][..2], 16).unwrap()).collect();
    let right = base64::engine::general_purpose::STANDARD.encode(bytes);
    let wrong = base64::engine::general_purpose::STANDARD.encode([7; 32]);
    let small = b"small".to_vec();
    let tiny = Tiny::start(move |asked| {
        let data = if asked.path.contains("small") { &small } else { &data };
        let answer = Answer::file(asked, data);
        match &*asked.path {
            "/right" => answer.with("repr-digest", format!("sha-256=:{right}:")),
            "/wrong" => answer.with("repr-digest", format!("sha-256=:{wrong}:")),
            "/old" => answer.with("digest", format!("SHA-256={wrong}")),
            "/small" => answer.with("content-md5", "AAAAAAAAAAAAAAAAAAAAAA=="),
            "/small-part" => answer.with("content-digest", format!("sha-256=:{wrong}:")),
            _ => answer,
        }
    });
    let copy = |path: &str, flags: &[&str]| {
        let _ = fs::remove_file(world.path("back"));
        let ran = run(&world, [&["cp", &tiny.at(path), "back", "-c", "256K"], flags].concat());
        assert_eq!(ran.status.success(), world.path("back").exists(), "{}", ran.err);
        ran
    };
    copy("/right", &[]).exits(0);
    copy("/wrong", &[]).exits(40).says("SHA-256");
    copy("/old", &[]).exits(40).says("SHA-256");
    copy("/small", &[]).exits(40).says("MD5");
    let blake3 = content(&world.path("src")).to_hex().to_string();
    let other = "0".repeat(64);
    copy("/x", &["--expect-sha256", &sha256, "--expect-blake3", &blake3]).exits(0);
    copy("/x", &["--expect-sha256", &other]).exits(40).says("expected");
    copy("/x", &["--expect-blake3", &other]).exits(40).says("BLAKE3");
    copy("/small", &["--expect-blake3", &other]).exits(40);
    copy("/x", &["--expect-sha256", "xyz"]).exits(1);
    run(&world, ["cp", "src", "back", "--expect-sha256", &sha256]).exits(1);
}

#[test]
fn who_asks_is_told_and_never_shown() {
    let world = World::new();
    let server = nginx();
    let name = place(&world, server, "private/");
    fs::write(server.root.join(&name).join("file"), "x").unwrap();
    let port = server.port;
    let with_user = format!("http://{USER}@127.0.0.1:{port}/{name}/file");
    let without = format!("{}/{name}/file", server.at("http"));
    let copy = |location: &str, variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = fastsync(&world);
        command.envs(variables.iter().copied()).args(["cp", location, "back"]).args(flags);
        let ran = Running::start(&mut command).wait();
        assert!(!ran.err.contains("pass word") && !ran.err.contains("wrong-secret"), "{}", ran.err);
        ran
    };
    copy(&without, &[], &[]).exits(44).says("FASTSYNC_HTTP_PASSWORD");
    copy(&with_user, &[], &[]).exits(44).says("no password");
    copy(&with_user, &[("FASTSYNC_HTTP_PASSWORD", "wrong-secret")], &[]).exits(44).says("password");
    copy(&with_user, &[("FASTSYNC_HTTP_PASSWORD", PASSWORD)], &[]).exits(0);
    world.text("home/.netrc", format!("machine 127.0.0.1 login {USER} password \"{PASSWORD}\"\n"));
    fs::remove_file(world.path("back")).unwrap();
    copy(&without, &[], &[]).exits(0);
    fs::remove_file(world.path("home/.netrc")).unwrap();
    fs::remove_file(world.path("back")).unwrap();
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let headers = world.text("headers", format!("Authorization: Basic {basic}\n"));
    copy(&without, &[], &["--header-file", headers.to_str().unwrap()]).exits(0);
    copy(&format!("http://{USER}:wrong-secret@127.0.0.1/x"), &[], &[]).exits(1);
}

#[test]
fn certificates_are_those_that_the_system_trusts() {
    let world = World::new();
    let server = nginx();
    let name = place(&world, server, "");
    fs::write(server.root.join(&name).join("file"), "x").unwrap();
    let (good, expired) = server.secure.unwrap();
    let copy = |port: u16, trusts: bool| {
        let mut command = fastsync(&world);
        if trusts {
            command.env("SSL_CERT_FILE", server.authority());
        }
        let location = format!("https://127.0.0.1:{port}/{name}/file");
        Running::start(command.args(["cp", &location, "back", "--json"])).wait()
    };
    copy(good, false).exits(44).says("certificate");
    copy(expired, true).exits(44).says("xpired");
    assert!(!world.path("back").exists());
    let summary = copy(good, true).exits(0).summary();
    assert_eq!(summary["encrypted"], true);
}

#[test]
fn a_busy_server_is_asked_again_and_a_missing_file_is_told() {
    let world = World::new();
    let data = fs::read(world.write("src", 700_000)).unwrap();
    let (times, puts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let tiny = Tiny::start(move |asked| match &*asked.path {
        "/busy" if times.fetch_add(1, Ordering::Relaxed) % 3 != 2 => {
            Answer::status(503).with("retry-after", "0")
        }
        "/busy" => Answer::file(asked, &data),
        "/full" if asked.method == "PUT" => Answer::status(507),
        "/put" if asked.method == "PUT" && puts.fetch_add(1, Ordering::Relaxed) == 0 => {
            Answer::status(503)
        }
        "/put" if asked.method == "PUT" => Answer::status(201),
        "/forbidden" => Answer::status(403),
        _ => Answer::status(404),
    });
    run(&world, ["cp", &tiny.at("/busy"), "back"]).exits(0);
    assert_same_content(&world.path("src"), &world.path("back"));
    let missing = run(&world, ["cp", &tiny.at("/nothing"), "other"]);
    assert_ne!(missing.status.code(), Some(0));
    missing.says("nothing of this name");
    assert_ne!(
        run(&world, ["cp", &tiny.at("/forbidden"), "other"]).says("403").status.code(),
        Some(0)
    );
    assert!(!world.path("other").exists());
    run(&world, ["cp", "src", &tiny.at("/full")]).exits(41).says("507");
    run(&world, ["cp", "src", &tiny.at("/put")]).exits(0);
    let put = tiny.asked().pop().unwrap();
    assert_eq!((&*put.method, put.body.len()), ("PUT", 700_000));
    run(&world, ["cp", "src", "http://127.0.0.1:1/x", "--retries", "0"]).says("127.0.0.1");
}

/// A server that tells no length, and none that can be asked for the head alone.
#[test]
fn a_length_that_is_not_told_is_found_out() {
    let world = World::new();
    let data = fs::read(world.write("src", 1_000_000)).unwrap();
    let chunked = Answer { body: data.clone(), is_chunked: true, ..Answer::status(200) };
    let tiny = Tiny::start(move |asked| match (&*asked.path, &*asked.method) {
        ("/unknown", _) => chunked.clone(),
        ("/signed", "HEAD") => Answer::status(403),
        ("/signed", _) => Answer::file(asked, &data),
        _ => Answer::status(404),
    });
    for path in ["/unknown", "/signed"] {
        run(&world, ["cp", &tiny.at(path), "back", "-c", "64K"]).exits(0);
        assert_same_content(&world.path("src"), &world.path("back"));
        fs::remove_file(world.path("back")).unwrap();
    }
}

/// What a server says of a file that is not so, or says of it nowhere.
#[test]
fn what_servers_get_wrong_makes_no_wrong_file() {
    let world = World::new();
    let data = fs::read(world.write("src", 1_500_000)).unwrap();
    let wrong = base64::engine::general_purpose::STANDARD.encode([7; 32]);
    let longer =
        Answer { body: [&data[..], b"x"].concat(), is_chunked: true, ..Answer::status(200) };
    let tiny = Tiny::start(move |asked| {
        let file = Answer::file(asked, &data);
        match (&*asked.path, &*asked.method) {
            ("/no-body", "HEAD") => Answer::status(200).with("etag", "\"1\""),
            ("/packed" | "/packed.gz", _) => file.with("content-encoding", "gzip"),
            ("/digest", "GET") => {
                file.with("etag", "\"1\"").with("repr-digest", format!("sha-256=:{wrong}:"))
            }
            ("/no-body" | "/digest", _) => file.with("etag", "\"1\""),
            ("/longer", "GET") => longer.clone(),
            ("/moved", "PUT") => Answer::status(307).with("location", "/elsewhere"),
            ("/moved", _) => Answer::status(404),
            _ => file,
        }
    });
    let copy = |path: &str| run(&world, ["cp", &tiny.at(path), "back", "-c", "64K", "--json"]);
    let refuses = |path: &str, why: &str| {
        let ran = copy(path);
        ran.says(why);
        assert!(!ran.status.success() && !world.path("back").exists(), "{path}: {}", ran.err);
    };
    refuses("/packed", "compressed");
    refuses("/digest", "SHA-256");
    refuses("/longer", "changed while it was read");
    run(&world, ["cp", "src", &tiny.at("/moved")]).exits(23).says("redirects what is written");
    assert!(tiny.asked().iter().all(|it| it.path != "/elsewhere"));
    for path in ["/no-body", "/packed.gz", "/untold"] {
        copy(path).exits(0);
        assert_same_content(&world.path("src"), &world.path("back"));
    }
    assert!(tiny.asked().iter().all(|it| it.path != "/untold" || it.range().is_none()));
    assert_eq!(number(&copy("/untold").exits(0).summary(), "done"), 1, "it may be another one");
}

#[test]
fn a_page_that_is_no_index_removes_nothing() {
    let world = World::new();
    let is_index = Arc::new(AtomicUsize::new(0));
    let asked_for = Arc::clone(&is_index);
    let tiny = Tiny::start(move |asked| match &*asked.path {
        "/d/" => {
            let title = ["Our files", "Index of /d/"][asked_for.load(Ordering::Relaxed)];
            let page = format!("<title>{title}</title><a href=\"a\">a</a>");
            Answer { body: page.into(), ..Answer::status(200) }.with("content-type", "text/html")
        }
        "/d/a" => Answer::file(asked, b"a").with("etag", "\"1\""),
        _ => Answer::status(404),
    });
    world.text("back/more", "x");
    let sync = || run(&world, ["sync", "--delete", &tiny.at("/d/"), "back"]).exits(0);
    sync();
    assert!(world.path("back/a").exists() && world.path("back/more").exists());
    is_index.store(1, Ordering::Relaxed);
    sync();
    assert!(!world.path("back/more").exists());
}

#[test]
fn files_are_put() {
    let world = World::new();
    let server = nginx();
    let name = place(&world, server, "put/");
    set_mtime(&world.write("large_file.bin", 20_000_000), 1_000_000_000, 0);
    let at = format!("{}/{name}", server.at("http"));
    let put = || {
        let location = format!("{at}/new/file.bin");
        run(&world, ["cp", "--profile", "wan", "large_file.bin", &location, "--json"])
            .exits(0)
            .summary()
    };
    assert_eq!(number(&put(), "done"), 1);
    let there = server.root.join(&name);
    assert_same_content(&world.path("large_file.bin"), &there.join("new/file.bin"));
    assert_eq!(number(&put(), "done"), 0, "it is as long, and newer");
    // Large and small ones at the same time, each large one in one request.
    for n in 0..40 {
        world.write(format!("src/{n}"), n * 100_000);
    }
    run(&world, ["cp", "src/", &format!("{at}/tree"), "-c", "64K"]).exits(0);
    run(&world, ["cp", &format!("{at}/tree/"), "back"]).exits(0);
    for n in 0..40 {
        assert_same_content(&world.path(format!("src/{n}")), &world.path(format!("back/{n}")));
    }
    fs::remove_file(world.path("src/7")).unwrap();
    run(&world, ["sync", "--delete", "src/", &format!("{at}/tree")]).exits(0);
    assert!(!there.join("tree/7").exists() && there.join("tree/8").exists());
    let refused = run(&world, ["cp", "large_file.bin", &format!("{}/x", server.at("http"))]);
    refused.says("does not let files be written");
    assert_ne!(refused.status.code(), Some(0));
}

#[test]
fn sources_come_from_a_list_of_urls() {
    let world = World::new();
    let server = nginx();
    let name = place(&world, server, "");
    let at = format!("{}/{name}", server.at("http"));
    let mut list = String::from("# a list\n\n");
    for n in 0..20 {
        fs::write(server.root.join(&name).join(format!("f {n}")), format!("{n}")).unwrap();
        writeln!(list, "{at}/f%20{n}").unwrap();
    }
    world.text("list", list);
    run(&world, ["cp", "--urls-from", "list", "back/"]).exits(0);
    assert_eq!(fs::read_dir(world.path("back")).unwrap().count(), 20);
    assert_eq!(fs::read(world.path("back/f 7")).unwrap(), b"7");
}

/// A download that was killed goes on, and begins anew if the file is another one by then.
#[test]
fn a_killed_download_goes_on_with_the_same_file_only() {
    let world = World::new();
    let server = nginx();
    let name = place(&world, server, "slow/");
    let size = 100 << 20;
    let file = server.root.join(&name).join("big");
    fs::rename(world.write("big", size), &file).unwrap();
    set_mtime(&file, 1_000_000_000, 0);
    let start = |from: &str| {
        let mut command = fastsync(&world);
        command.args(["cp", from, "back/", "-c", "1M", "-p", "4", "--json"]);
        Running::start(&mut command)
    };
    let slow = format!("{}/{name}/big", server.at("http"));
    let kill = || {
        let mut running = start(&slow);
        let is_under_way = || {
            let mut journals = fs::read_dir(world.path("back/.fastsync")).into_iter().flatten();
            let journal =
                journals.find_map(|job| fs::metadata(job.ok()?.path().join("journal")).ok());
            journal.is_some_and(|it| it.len() > 64 + 400 + 8 * 53)
        };
        assert!(until(PATIENCE, || is_under_way() || running.is_over()));
        running.signal(Signal::KILL);
        assert!(running.wait().was_killed());
    };
    kill();
    let summary = start(&slow).wait().exits(0).summary();
    assert!(number(&summary, "bytes_resumed") >= 4 << 20, "{summary}");
    assert_eq!(number(&summary, "bytes_resumed") + number(&summary, "bytes_sent"), size);
    assert_same_content(&file, &world.path("back/big"));
    fs::remove_dir_all(world.path("back")).unwrap();
    kill();
    fs::rename(world.write("other", size), &file).unwrap();
    set_mtime(&file, 1_000_000_001, 0);
    let summary = start(&slow).wait().exits(0).summary();
    assert_eq!(number(&summary, "bytes_resumed"), 0, "{summary}");
    assert_same_content(&file, &world.path("back/big"));
}

/// What names no user or has a token is for the destination, where both ends are web servers.
#[test]
fn a_token_is_for_the_destination() {
    let world = World::new();
    let source = Tiny::start(|asked| Answer::file(asked, b"data"));
    let written = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&written);
    let destination = Tiny::start(move |asked| {
        if asked.method == "PUT" {
            kept.lock().unwrap().clone_from(&asked.body);
            return Answer::status(201);
        }
        Answer::status(404)
    });
    let mut command = fastsync(&world);
    command.env("FASTSYNC_HTTP_TOKEN", "secret");
    command.args(["cp", &source.at("/a"), &destination.at("/b")]);
    Running::start(&mut command).wait().exits(0);
    assert_eq!(*written.lock().unwrap(), b"data");
    assert!(source.asked().iter().all(|it| !it.headers.contains_key("authorization")));
    assert!(destination.asked().iter().all(|it| it.headers.contains_key("authorization")));
}
