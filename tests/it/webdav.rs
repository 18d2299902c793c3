//! Copies to and from servers of WebDAV: nginx, which takes whole files, and others, which take parts.

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
use super::webserver::{Answer, Asked, CLOUD, Tiny, Web, apache, nginx, sabredav};

/// A server, and where files may be put there.
type Server = (&'static Web, String);

fn nginx_dav() -> Server {
    (nginx(), "dav/".to_owned())
}

fn apache_dav() -> Server {
    (apache(), String::new())
}

fn sabre_dav() -> Server {
    (sabredav(), String::new())
}

/// What takes chunks in folders, as Nextcloud does.
fn cloud_dav(user: &str) -> Server {
    (sabredav(), format!("{CLOUD}/{user}/"))
}

/// A location of this test's own, which is not there yet, and where that is here.
fn place(world: &World, (server, below): &Server) -> (String, std::path::PathBuf) {
    let name = world.path("").file_name().unwrap().to_str().unwrap().to_owned();
    let location = format!("{}/{below}{name}", server.at("webdav"));
    (location, server.root.join(format!("{below}{name}")))
}

fn fastsync(world: &World) -> Command {
    let mut command = world.fastsync();
    command.env("XDG_STATE_HOME", world.path("home/state"));
    command.env_remove("http_proxy").env_remove("HTTP_PROXY").env_remove("NETRC");
    command
}

pub fn run<A: AsRef<OsStr>>(world: &World, arguments: impl IntoIterator<Item = A>) -> Ran {
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

/// When a file was changed may be kept to the nanosecond, in seconds, or not at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Times {
    Exact,
    Seconds,
    Lost,
}

fn a_tree_goes_there_and_comes_back(server: &Server, times: Times) {
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
    let lost = time("src/many/7").duration_since(time("back/many/7")).ok();
    let wanted = [(Times::Exact, Duration::ZERO), (Times::Seconds, Duration::from_millis(500))];
    assert_eq!(wanted.iter().find(|it| Some(it.1) == lost).map_or(Times::Lost, |it| it.0), times);
    if times != Times::Lost {
        // A time is that of the file that it was noted for.
        fs::write(at.join("many/7"), "SMALL 7").unwrap();
        let again = copy();
        assert_eq!(number(&again, "done"), 1, "{again}");
    }
}

#[test]
fn a_tree_goes_to_nginx_and_comes_back() {
    a_tree_goes_there_and_comes_back(&nginx_dav(), Times::Lost);
}

#[test]
fn a_tree_goes_to_apache_and_comes_back() {
    a_tree_goes_there_and_comes_back(&apache_dav(), Times::Exact);
}

#[test]
fn a_tree_goes_to_sabredav_and_comes_back() {
    a_tree_goes_there_and_comes_back(&sabre_dav(), Times::Exact);
}

#[test]
fn a_tree_goes_by_chunks_and_comes_back() {
    a_tree_goes_there_and_comes_back(&cloud_dav("me"), Times::Seconds);
}

#[test]
fn sync_deletes_and_a_dry_run_does_nothing() {
    for server in [nginx_dav(), apache_dav(), cloud_dav("me")] {
        let world = World::new();
        plant(&world);
        let (there, at) = place(&world, &server);
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

/// An upload of one file, which is killed as soon as nine parts are noted: some are held here.
fn kill_upload(world: &World, there: &str, chunk: &str) {
    let mut running = upload(world, there, chunk);
    let jobs = world.path("home/state/fastsync/jobs");
    let journal = || {
        let job = fs::read_dir(&jobs).ok()?.next()?.ok()?.path();
        fs::metadata(job.join("journal")).ok()
    };
    let is_under_way = || journal().is_some_and(|it| it.len() > 64 + 200 + 9 * 95);
    assert!(until(PATIENCE, || is_under_way() || running.is_over()));
    running.signal(Signal::KILL);
    assert!(running.wait().was_killed());
}

fn upload(world: &World, there: &str, chunk: &str) -> Running {
    let mut command = fastsync(world);
    Running::start(command.args(["cp", "src/", there, "-p", "2", "-c", chunk, "--json"]))
}

/// JRN-12: what a server has acknowledged that takes parts is not sent again.
fn a_killed_upload_goes_on(server: &Server, size: u64, chunk: &str) {
    let world = World::new();
    world.write("src/big", size);
    let (there, at) = place(&world, server);
    kill_upload(&world, &there, chunk);
    assert!(!at.join("big").exists(), "not before it is whole");
    let summary = upload(&world, &there, chunk).wait().exits(0).summary();
    assert!(number(&summary, "bytes_resumed") >= 16 << 20, "{summary}");
    assert_eq!(number(&summary, "bytes_resumed") + number(&summary, "bytes_sent"), size);
    assert_same_content(&world.path("src/big"), &at.join("big"));
    let left = tree(&at).into_keys().filter(|path| path.to_string_lossy().contains("fastsync"));
    assert_eq!(left.count(), 0);
    assert_eq!(tree(world.path("home/state/fastsync")).len(), 0, "nothing is left here");
}

#[test]
fn a_killed_upload_goes_on_at_apache() {
    a_killed_upload_goes_on(&apache_dav(), 400 << 20, "8M");
}

#[test]
fn a_killed_upload_goes_on_at_sabredav() {
    a_killed_upload_goes_on(&sabre_dav(), 100 << 20, "4M");
}

/// Two parts make a chunk, as the server takes none that are shorter than five megabytes.
#[test]
fn a_killed_upload_goes_on_by_chunks() {
    a_killed_upload_goes_on(&cloud_dav("me"), 100 << 20, "4M");
}

/// What is in a folder of chunks is no file of the user's, and is found all the same.
#[test]
fn chunks_that_nobody_came_back_for_are_cleaned_up() {
    let world = World::new();
    world.write("src/big", 100 << 20);
    let (there, at) = place(&world, &cloud_dav("tidy"));
    kill_upload(&world, &there, "8M");
    let folders = at.ancestors().nth(3).unwrap().join("uploads/tidy");
    let other = folders.join("another-program");
    fs::create_dir(&other).unwrap();
    let clean = |flags: &[&str]| run(&world, [&["clean", &there], flags].concat()).exits(0);
    clean(&[]).says("younger");
    let listed = clean(&["--older-than", "0s"]);
    assert!(String::from_utf8_lossy(&listed.out).contains("uploads/tidy/fastsync-"), "{listed:?}");
    assert_eq!(fs::read_dir(&folders).unwrap().count(), 2);
    clean(&["--older-than", "0s", "--delete"]).says("1 of 1");
    assert!(other.exists() && fs::read_dir(&folders).unwrap().count() == 1);
    // The journal knows of chunks that are gone.
    let summary = upload(&world, &there, "8M").wait().exits(0).summary();
    assert_eq!(number(&summary, "bytes_resumed"), 0, "{summary}");
    assert_same_content(&world.path("src/big"), &at.join("big"));
}

#[test]
fn where_no_chunks_are_taken_files_go_another_way() {
    let world = World::new();
    world.write("src/big", 20_000_000);
    let (there, at) = place(&world, &cloud_dav("alone"));
    run(&world, ["cp", "src/", &there]).exits(0).says("takes no chunks");
    assert_same_content(&world.path("src/big"), &at.join("big"));
}

/// Data goes from one server to another through here.
#[test]
fn data_goes_from_one_server_to_another() {
    let world = World::new();
    plant(&world);
    let ((one, _), (other, at)) = (place(&world, &nginx_dav()), place(&world, &apache_dav()));
    run(&world, ["cp", "src/", &one]).exits(0);
    run(&world, ["cp", &format!("{one}/"), &other]).exits(0);
    assert_same_data(&world.path("src"), &at);
}

/// Files by their paths, and when they were changed.
pub type Cloud = BTreeMap<String, (Vec<u8>, u64)>;

/// What ownCloud and its relatives do with times.
pub fn cloud(files: &Mutex<Cloud>, asked: &Asked) -> Answer {
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
    for server in [nginx_dav(), apache_dav(), sabre_dav(), cloud_dav("me")] {
        let world = World::new();
        plant(&world);
        let (there, at) = place(&world, &server);
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

/// What a server does not list, nobody can call gone.
#[test]
fn what_the_server_hides_is_not_called_gone() {
    let world = World::new();
    let (there, at) = place(&world, &nginx_dav());
    fs::create_dir(&at).unwrap();
    fs::write(at.join(".fastsync-0123456789abcdef"), "x").unwrap();
    run(&world, ["clean", &there, "--older-than", "0s"]).exits(0).says("that the server lists");
}

#[test]
fn directories_that_cannot_be_made_are_told() {
    let world = World::new();
    world.text("src/file", "x");
    let there = format!("{}/plain/missing/", nginx().at("webdav"));
    run(&world, ["cp", "src/", &there]).exits(5).says("make it first");
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
