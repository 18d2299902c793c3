//! Copies to and from servers of WebDAV: nginx, which takes whole files, and Apache, which takes parts.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::Signal;

use super::support::{
    PATIENCE, Ran, Running, World, assert_same, assert_same_content, number, set_mtime, tree, until,
};
use super::webserver::{Answer, Asked, Tiny, Web, apache, nginx};

/// A location of this test's own, which is not there yet, and where that is here.
fn place(world: &World, server: &Web) -> (String, std::path::PathBuf) {
    let name = world.path("").file_name().unwrap().to_str().unwrap().to_owned();
    let below = if std::ptr::eq(server, nginx()) { "dav/" } else { "" };
    let location = format!("{}/{below}{name}", server.at("webdav"));
    (location, server.root.join(format!("{below}{name}")))
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

fn plant(world: &World) {
    for (n, size) in [0, 1, 300_000, 9_000_000, 20_000_000].into_iter().enumerate() {
        world.write(format!("src/sizes/{n}"), size);
    }
    for n in 0..100 {
        world.text(format!("src/many/{n}"), format!("small {n}"));
    }
    for name in ["with space", "%41#?&+", "-rf", "ümläut", "a'\"<>&amp;b", "x:y"] {
        world.text(Path::new("src/names").join(name), name);
    }
    world.dir("src/empty");
    // Longer ago than the second that servers without stored times know.
    let mut command = Command::new("find");
    command.arg(world.path("src")).args(["-exec", "touch", "-d", "@1000000000.5", "{}", "+"]);
    assert!(command.status().unwrap().success());
}

/// Names and content, and nothing of ours.
fn assert_same_data(wanted: &Path, found: &Path) {
    let level = |root: &Path| {
        // Where Apache keeps properties; its files have its own rights.
        let script = "find \"$1\" -depth -name .DAV -exec rm -r {} \\; && chmod -R u=rwX,go=rX \"$1\" \
                      && find \"$1\" -depth -exec touch -d @1000000000 {} +";
        let status = Command::new("sh").args(["-c", script, "sh"]).arg(root).status();
        assert!(status.unwrap().success());
    };
    let copies = World::new();
    for (name, root) in [("wanted", wanted), ("found", found)] {
        let copied = Command::new("cp").arg("-r").arg(root).arg(copies.path(name)).status();
        assert!(copied.unwrap().success());
        level(&copies.path(name));
    }
    assert_same(copies.path("wanted"), copies.path("found"));
}

fn a_tree_goes_there_and_comes_back(server: &Web, keeps_times: bool) {
    let world = World::new();
    plant(&world);
    let (there, at) = place(&world, server);
    let copy = || run(&world, ["cp", "src/", &there, "--json"]).exits(0).summary();
    let summary = copy();
    assert_eq!(summary["transport"], "webdav");
    assert_same_data(&world.path("src"), &at);
    let again = copy();
    assert_eq!((number(&again, "done"), number(&again, "bytes_sent")), (0, 0), "{again}");
    for flags in [&["check", "src", &there][..], &["check", "--checksum", "src", &there]] {
        run(&world, flags).exits(0);
    }
    run(&world, ["cp", &format!("{there}/"), "back"]).exits(0);
    assert_same_data(&world.path("src"), &world.path("back"));
    let time = |path: &str| fs::metadata(world.path(path)).unwrap().modified().unwrap();
    assert_eq!(time("src/many/7") == time("back/many/7"), keeps_times);
    if keeps_times {
        // A time is that of the file that it was noted for.
        fs::write(at.join("many/7"), "SMALL 7").unwrap();
        let again = copy();
        assert_eq!(number(&again, "done"), 1, "{again}");
    }
}

#[test]
fn a_tree_goes_to_nginx_and_comes_back() {
    a_tree_goes_there_and_comes_back(nginx(), false);
}

#[test]
fn a_tree_goes_to_apache_and_comes_back() {
    a_tree_goes_there_and_comes_back(apache(), true);
}

#[test]
fn sync_deletes_and_a_dry_run_does_nothing() {
    for server in [nginx(), apache()] {
        let world = World::new();
        plant(&world);
        let (there, at) = place(&world, server);
        let ran = run(&world, ["sync", "src/", &there, "-n"]).exits(0);
        assert!(!at.exists(), "{ran:?}");
        run(&world, ["sync", "src/", &there]).exits(0);
        fs::remove_dir_all(world.path("src/many")).unwrap();
        world.text("src/names/-rf", "another content");
        let sync = |flags: &[&str]| run(&world, [&["sync", "src/", &there, "-i"], flags].concat());
        let ran = sync(&["--delete", "-n"]).exits(0);
        assert!(ran.out.windows(9).any(|it| it == b"*deleting"), "{ran:?}");
        assert!(at.join("many/7").exists());
        sync(&["--delete"]).exits(0);
        assert_same_data(&world.path("src"), &at);
        let listed = run(&world, ["ls", &format!("{there}/")]).exits(0);
        assert_eq!(String::from_utf8_lossy(&listed.out), "empty\nnames\nsizes\n");
    }
}

/// JRN-12: what a server has acknowledged that takes parts is not sent again.
#[test]
fn a_killed_upload_goes_on_where_parts_are_taken() {
    let world = World::new();
    let size = 400 << 20;
    world.write("src/big", size);
    let (there, at) = place(&world, apache());
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
    let is_under_way = || journal().is_some_and(|it| it.len() > 64 + 200 + 5 * 70);
    assert!(until(PATIENCE, || is_under_way() || running.is_over()));
    running.signal(Signal::KILL);
    assert!(running.wait().was_killed());
    assert!(!at.join("big").exists(), "not before it is whole");
    let summary = start(&["--json"]).wait().exits(0).summary();
    assert!(number(&summary, "bytes_resumed") >= 24 << 20, "{summary}");
    assert_eq!(number(&summary, "bytes_resumed") + number(&summary, "bytes_sent"), size);
    assert_same_content(&world.path("src/big"), &at.join("big"));
    let left = tree(&at).into_keys().filter(|path| path.to_string_lossy().contains("fastsync"));
    assert_eq!(left.count(), 0);
    assert_eq!(tree(world.path("home/state/fastsync")).len(), 0, "nothing is left here");
}

/// Data goes from one server to another through here.
#[test]
fn data_goes_from_one_server_to_another() {
    let world = World::new();
    plant(&world);
    let ((one, _), (other, at)) = (place(&world, nginx()), place(&world, apache()));
    run(&world, ["cp", "src/", &one]).exits(0);
    run(&world, ["cp", &format!("{one}/"), &other]).exits(0);
    assert_same_data(&world.path("src"), &at);
}

/// Files by their paths, and when they were changed.
type Cloud = BTreeMap<String, (Vec<u8>, u64)>;

/// What ownCloud and its relatives do with times.
fn cloud(files: &Mutex<Cloud>, asked: &Asked) -> Answer {
    let mut files = files.lock().unwrap();
    let header = |name: &str| asked.headers.get(name).cloned().unwrap_or_default();
    let status = match &*asked.method {
        "PUT" if asked.headers.contains_key("content-range") => 501,
        "PUT" => {
            let mtime = header("x-oc-mtime").parse().unwrap_or(1_700_000_000);
            files.insert(asked.path.clone(), (asked.body.clone(), mtime));
            201
        }
        "MOVE" => {
            let file = files.remove(&asked.path).unwrap();
            let to = header("destination");
            files.insert(format!("/{}", to.splitn(4, '/').nth(3).unwrap()), file);
            201
        }
        "DELETE" => files.remove(&asked.path).map_or(404, |_| 204),
        "MKCOL" => 405,
        "PROPPATCH" => 207,
        "PROPFIND" => return found(&files, &asked.path),
        _ => match files.get(&asked.path) {
            Some((data, _)) => return Answer::file(asked, data),
            None => 404,
        },
    };
    Answer::status(status)
}

fn found(files: &Cloud, path: &str) -> Answer {
    let mut body = "<d:multistatus xmlns:d=\"DAV:\">".to_owned();
    let mut tell = |path: &str, of_it: String| {
        let whole = "<d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response>";
        body.extend(["<d:response><d:href>", path, "</d:href><d:propstat><d:prop>", &of_it]);
        body.extend(["</d:prop>", whole]);
    };
    let is_collection = path.ends_with('/') || path == "/d";
    if is_collection {
        tell("/d/", "<d:resourcetype><d:collection/></d:resourcetype>".to_owned());
    }
    for (name, (data, mtime)) in files.iter().filter(|(name, _)| is_collection || *name == path) {
        let time = UNIX_EPOCH + Duration::from_secs(*mtime);
        let time = httpdate::fmt_http_date(time);
        let len = data.len();
        tell(
            name,
            format!(
                "<d:getcontentlength>{len}</d:getcontentlength><d:getlastmodified>{time}</d:getlastmodified>"
            ),
        );
    }
    body.push_str("</d:multistatus>");
    let status = if body.contains("response") { 207 } else { 404 };
    Answer { body: body.into_bytes(), ..Answer::status(status) }
}

#[test]
fn times_go_with_the_file_where_the_server_takes_them() {
    let world = World::new();
    let files = Mutex::new(Cloud::new());
    let tiny = Tiny::start(move |asked| cloud(&files, asked));
    let there = tiny.at("/d").replace("http", "webdav");
    for (name, len) in [("small", 10), ("large", 3_000_000)] {
        set_mtime(&world.write(format!("src/{name}"), len), 1_234_567_890, 500_000_000);
    }
    let copy = || run(&world, ["cp", "src/", &there, "--json", "-c", "64K"]).exits(0).summary();
    assert_eq!(number(&copy(), "done"), 2);
    assert_eq!(number(&copy(), "done"), 0);
    set_mtime(&world.path("src/small"), 1_000_000_000, 0);
    assert_eq!(number(&copy(), "done"), 1, "it is another time, though not a later one");
    run(&world, ["cp", &format!("{there}/"), "back"]).exits(0);
    assert_same_content(&world.path("src/large"), &world.path("back/large"));
    let time = fs::metadata(world.path("back/large")).unwrap().modified().unwrap();
    assert_eq!(time, UNIX_EPOCH + Duration::from_secs(1_234_567_890));
    let asked = tiny.asked();
    assert!(asked.iter().all(|it| it.method != "PUT" || it.path.starts_with("/d/.fastsync-")));
}

/// Within one server, no data comes here.
#[test]
fn files_are_copied_by_their_server() {
    for server in [nginx(), apache()] {
        let world = World::new();
        plant(&world);
        let (there, at) = place(&world, server);
        run(&world, ["cp", "src/", &there]).exits(0);
        let copy = || {
            let arguments = ["cp", &format!("{there}/"), &format!("{there}-copy"), "--json"];
            run(&world, arguments).exits(0).summary()
        };
        let summary = copy();
        assert_eq!(number(&summary, "bytes_sent"), 0, "{summary}");
        assert_same_data(
            &at,
            &at.with_file_name(format!("{}-copy", at.file_name().unwrap().display())),
        );
        assert_eq!(number(&copy(), "done"), 0);
    }
}

#[test]
fn what_is_no_webdav_is_told() {
    let world = World::new();
    world.text("file", "x");
    let location = format!("{}/x", nginx().at("webdav"));
    let ran = run(&world, ["cp", "file", &location]);
    assert_ne!(ran.status.code(), Some(0));
    ran.says("WebDAV");
}
