//! Keys that may do one thing in one directory: `command="fastsync agent --root ..."` in
//! `authorized_keys`, over a real sshd.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::sshd::sshd;
use super::support::{FASTSYNC, Ran, Running, World, assert_same, assert_same_content, set_mode};

/// A key and what it may reach: `root` in a directory of its own, beside a secret.
struct Restricted<'a> {
    world: &'a World,
    config: PathBuf,
    root: PathBuf,
}

impl<'a> Restricted<'a> {
    fn new(world: &'a World, name: &str, flags: &str) -> Self {
        let root = world.dir(format!("{name}/root"));
        world.text(format!("{name}/secret"), "secret");
        world.text(format!("{name}/root/file"), "there");
        symlink("..", root.join("out")).unwrap();
        symlink("../secret", root.join("link")).unwrap();
        symlink(world.path(name), root.join("absolute")).unwrap();
        let command = format!("{FASTSYNC} agent --root {} {flags}", root.display());
        let config = sshd().allow(&world.path(name).join("key"), &command);
        Self { world, config, root }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = self.world.fastsync();
        Running::start(command.args(arguments).arg("-F").arg(&self.config)).wait()
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], text: &str) {
        self.run(arguments).exits(11).says(text);
    }

    /// Nothing happened outside.
    #[track_caller]
    fn is_whole(&self) {
        let outside = self.root.parent().unwrap();
        let mut names: Vec<_> =
            fs::read_dir(outside).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["key", "key.config", "key.pub", "root", "secret"]);
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    }
}

/// SEC-10.
#[test]
fn a_key_that_only_writes_can_only_write_there() {
    let world = World::new();
    world.write_everything("src", &[0, 300_000]);
    let key = Restricted::new(&world, "inbox", "--write-only");
    for destination in
        ["testhost:a", "testhost:~/b/c", &format!("testhost:{}/d", key.root.display())]
    {
        key.run(&["sync", "--delete", "src/", destination]).exits(0);
    }
    for name in ["a", "b/c", "d"] {
        assert_same(world.path("src"), key.root.join(name));
    }
    let outside = "outside of what the other host lets this key reach";
    key.refused(&["push", "src/", "testhost:/tmp/x"], outside);
    let sibling = format!("testhost:{}-2", key.root.display());
    key.refused(&["push", "src/", &sibling], outside);
    let read = "lets this key only write (--write-only)";
    key.refused(&["pull", "testhost:file", "back"], read);
    key.refused(&["ls", "testhost:"], read);
    key.refused(&["check", "testhost:a", "src"], read);
    assert!(!world.path("back").exists());
    key.is_whole();
}

/// SEC-10: whatever is on the way.
#[test]
fn nothing_leads_out_of_the_directory() {
    let world = World::new();
    world.write("src/new", 10);
    world.text("src/secret", "changed");
    let key = Restricted::new(&world, "both", "");
    for destination in ["..", "../new", "a/../../new", "out", "out/new", "absolute", "absolute/new"]
    {
        let ran = key.run(&["push", "src/", &format!("testhost:{destination}")]);
        assert!(!ran.status.success(), "{destination}: {ran:?}");
        ran.says("Permission denied");
        let ran = key.run(&["push", "src/secret", &format!("testhost:{destination}")]);
        assert!(!ran.status.success(), "{destination}: {ran:?}");
        key.is_whole();
    }
    for source in ["../secret", "out/secret", "absolute/secret", "out/", "a/../../secret"] {
        let ran = key.run(&["pull", &format!("testhost:{source}"), "back"]);
        assert!(!ran.status.success(), "{source}: {ran:?}");
        ran.says("Permission denied");
    }
    key.refused(&["pull", "testhost:/etc/passwd", "back"], "outside of what");
    // A symlink by its own name is what it is.
    key.run(&["pull", "testhost:link", "copied/"]).exits(0);
    assert_eq!(fs::read_link(world.path("copied/link")).unwrap(), Path::new("../secret"));
    // What follows them is refused, and what is listed is looked for below the source only.
    for flag in ["-L", "--copy-unsafe-links"] {
        key.refused(&["pull", flag, "testhost:link", "back"], "follow no symlinks");
    }
    world.text("list", "out/secret\nfile\n");
    let ran = key.run(&["pull", "--files-from=list", "testhost:", "listed"]);
    assert!(!ran.status.success(), "{ran:?}");
    assert!(world.path("listed/file").exists() && !world.path("listed/secret").exists());
    assert!(!world.path("listed/out/secret").exists());
    assert!(!world.path("back").exists());
}

/// SEC-10: of the other paths that a client may name.
#[test]
fn neither_links_nor_backups_nor_rules_leave_the_directory() {
    let world = World::new();
    let old = world.text("src/file", "old");
    let key = Restricted::new(&world, "inbox", "--write-only");
    key.run(&["push", "src/", "testhost:1"]).exits(0);
    // Beside the destination is inside.
    key.run(&["push", "--link-dest=../1", "src/", "testhost:2"]).exits(0);
    assert_eq!(inode(&key.root.join("1/file")), inode(&key.root.join("2/file")));
    let secrets = fs::copy(&old, key.root.parent().unwrap().join("file"));
    secrets.unwrap();
    for out in ["../..", "../out", "../absolute", "/tmp"] {
        let ran = key.run(&["push", "--link-dest", out, "src/", "testhost:3"]);
        assert!(!ran.status.success(), "{out}: {ran:?}");
    }
    fs::remove_file(key.root.parent().unwrap().join("file")).unwrap();
    world.text("src/file", "newer");
    key.run(&["push", "--backup-dir=../kept", "src/", "testhost:1"]).exits(0);
    assert_same_content(&world.text("old", "old"), &key.root.join("kept/file"));
    for (number, out) in ["../../kept", "../out/kept", "/tmp/kept"].iter().enumerate() {
        world.text("src/file", format!("newest {number}, and longer than the others"));
        let ran = key.run(&["push", "--backup-dir", out, "src/", "testhost:1"]);
        assert!(!ran.status.success(), "{out}: {ran:?}");
        assert_eq!(fs::read_to_string(key.root.join("1/file")).unwrap(), "newer");
    }
    assert!(!Path::new("/tmp/kept").exists());
    key.is_whole();

    let key = Restricted::new(&world, "outbox", "--read-only");
    world.text("outbox/root/tree/file", "x");
    symlink("../../secret", key.root.join("tree/.rules")).unwrap();
    let ran = key.run(&["pull", "--filter=dir-merge .rules", "testhost:tree/", "ruled"]);
    assert!(!ran.err.contains("secret") || ran.err.contains("symlink"), "{}", ran.err);
    let ran = key.run(&["pull", "--filter=dir-merge ../secret", "testhost:tree/", "ruled"]);
    assert!(!ran.status.success(), "{ran:?}");
}

/// PATH-11, SEC-10: a further login of such a key is another agent, which joins nothing; what goes inside
/// ssh goes inside the one connection, and no farther than otherwise.
#[test]
fn inside_ssh_a_key_may_do_the_same_and_no_more() {
    let world = World::new();
    world.write_everything("src", &[0, 3_000_000]);
    let both = Restricted::new(&world, "both", "");
    for client in ["--ssh=system", "--ssh=builtin"] {
        let run =
            |arguments: &[&str]| both.run(&[arguments, &[client, "--transport=ssh"]].concat());
        run(&["push", "src/", "testhost:there"]).exits(0);
        assert_same(world.path("src"), both.root.join("there"));
        run(&["pull", "testhost:there/", "back"]).exits(0);
        assert_same(world.path("src"), world.path("back"));
        run(&["push", "src/", "testhost:/tmp/x"]).exits(11).says("outside of what the other host");
        assert!(!run(&["pull", "testhost:out/secret", "out"]).status.success());
        run(&["push", "src/", "testhost:x", "--bootstrap=on", "--agent-binary=/bin/sh"]).exits(0);
        for name in ["there", "x"] {
            fs::remove_dir_all(both.root.join(name)).unwrap();
        }
        fs::remove_dir_all(world.path("back")).unwrap();
        both.is_whole();
    }
}

/// SEC-10.
#[test]
fn a_key_that_only_reads_changes_nothing() {
    let world = World::new();
    world.write("src/file", 10);
    let key = Restricted::new(&world, "outbox", "--read-only");
    key.run(&["pull", "testhost:file", "back"]).exits(0);
    assert_same_content(&key.root.join("file"), &world.path("back"));
    key.run(&["ls", "testhost:"]).exits(0);
    let write = "lets this key only read";
    key.refused(&["push", "src/file", "testhost:new"], write);
    key.refused(&["sync", "--delete", "src/", "testhost:"], write);
    key.refused(&["pull", "--remove-source-files", "testhost:file", "again"], write);
    assert!(key.root.join("file").exists() && !world.path("again").exists());
    key.is_whole();
}

/// Whatever the client asks ssh for; and the operator's mistakes are told.
#[test]
fn the_command_that_the_client_asks_for_is_ignored() {
    let world = World::new();
    world.write("file", 10);
    let key = Restricted::new(&world, "inbox", "--write-only");
    for flags in [&["--agent-path", "/bin/false"][..], &["--no-bootstrap"], &[]] {
        key.run(&[&["push", "file", "testhost:"], flags].concat()).exits(0);
    }
    let config = sshd().allow(
        &world.path("wrong-key"),
        &format!("{FASTSYNC} agent --root {}", world.path("nowhere").display()),
    );
    let mut command = world.fastsync();
    command.args(["push", "file", "testhost:", "-F"]).arg(config);
    Running::start(&mut command).wait().exits(42).says("nowhere: No such file");
    for flags in [&["--read-only"][..], &["--root", ".", "--read-only", "--write-only"]] {
        world.run([&["agent"], flags].concat()).exits(1);
    }
}

/// PATH-11: whatever a further login asked for, it would get another restricted agent.
#[test]
fn a_restricted_key_is_not_used_for_further_logins() {
    let world = World::new();
    world.write("file", 20_000_000);
    let key = Restricted::new(&world, "inbox", "--write-only");
    let flags = ["-v", "--transport=ssh", "--ssh-connections=3"];
    let ran = key.run(&[&["push", "file", "testhost:"], &flags[..]].concat()).exits(0);
    ran.says("2 streams over ssh");
    assert!(!ran.err.contains("further"), "{}", ran.err);
    assert_same_content(&world.path("file"), &key.root.join("file"));
}

fn inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).unwrap().ino()
}

/// SEC-10: what is read for rules would be told by their errors, and by what they delete.
#[test]
fn a_key_that_only_writes_reads_nothing() {
    let world = World::new();
    world.text("src/file", "there");
    world.text("inbox/root/private", "password=hunter2");
    let key = Restricted::new(&world, "inbox", "--write-only");
    let rules = "leave out --gitignore and merge rules";
    for filter in [": private", ":w private", "dir-merge,n private"] {
        let filter = format!("--filter={filter}");
        let sync = ["sync", "--delete", "-n", &filter, "src/", "testhost:"];
        let ran = key.run(&sync).exits(11);
        ran.says(rules);
        assert!(!ran.err.contains("hunter2"), "{}", ran.err);
    }
    key.refused(&["sync", "--delete", "--gitignore", "src/", "testhost:"], rules);
    key.refused(&["push", "--checksum", "src/", "testhost:"], "leave out --checksum");
    key.run(&["sync", "--delete", "--exclude=private", "src/", "testhost:kept"]).exits(0);
    assert_eq!(fs::read_to_string(key.root.join("private")).unwrap(), "password=hunter2");
}

/// SEC-10: with another account there, they would give the rights of this one.
#[test]
fn no_key_plants_programs_with_rights_or_devices() {
    let world = World::new();
    let program = world.text("src/program", "#!/bin/sh");
    let key = Restricted::new(&world, "inbox", "--write-only");
    set_mode(&program, 0o6755);
    let ran = key.run(&["push", "-a", "src/", "testhost:1"]).exits(23);
    ran.says("as this key may not make such programs");
    let mode = fs::metadata(key.root.join("1/program")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    // Nor where it is there already.
    key.run(&["push", "-a", "src/", "testhost:1"]).exits(23);
    let mode = fs::metadata(key.root.join("1/program")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    if rustix::process::geteuid().is_root() {
        set_mode(&program, 0o755);
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&program, "security.capability", &capability, flags).unwrap();
        key.run(&["push", "-aX", "src/", "testhost:2"]).exits(23).says("security.capability");
        let mut value = [0; 64];
        let copy = key.root.join("2/program");
        assert!(rustix::fs::getxattr(&copy, "security.capability", &mut value[..]).is_err());
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let (kind, null) = (rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        rustix::fs::mknodat(rustix::fs::CWD, world.path("src/null"), kind, mode, null).unwrap();
        key.run(&["push", "-a", "src/", "testhost:3"]).exits(23).says("null");
        assert!(!key.root.join("3/null").exists());
    }
    key.is_whole();
}

/// THIRD-3, SEC-10: a restricted key sends to another host what it may read, takes what it may write,
/// and dials nobody.
#[test]
fn restricted_keys_send_to_each_other() {
    let world = World::new();
    let outbox = Restricted::new(&world, "outbox", "--read-only");
    let inbox = Restricted::new(&world, "inbox", "--write-only");
    // `testhost` is the one, and `jump` the other.
    let both = |from: &Restricted<'_>, to: &Restricted<'_>, arguments: &[&str]| {
        let to = to.root.parent().unwrap().join("key");
        let own = format!("Host jump\nIdentityFile {}\n", to.display());
        let config = world.text("both", own + &fs::read_to_string(&from.config).unwrap());
        let mut command = world.fastsync();
        Running::start(command.args(arguments).arg("-F").arg(config)).wait()
    };
    for (flags, transport) in [(&["--transport=tcp"][..], "tcp+tls"), (&["--transport=ssh"], "ssh")]
    {
        let cp = [&["cp", "-q", "--json"], flags, &["testhost:file", "jump:copied"]].concat();
        let ran = both(&outbox, &inbox, &cp).exits(0);
        let dialler = if transport == "ssh" { "source" } else { "destination" };
        for words in
            [format!("\"transport\":\"{transport}\""), format!("\"dialler\":\"{dialler}\"")]
        {
            let out = String::from_utf8_lossy(&ran.out);
            assert!(out.contains(&words), "{words}: {out}");
        }
        assert_same_content(&outbox.root.join("file"), &inbox.root.join("copied"));
        fs::remove_file(inbox.root.join("copied")).unwrap();
    }
    let refused = |from: &Restricted<'_>, to: &Restricted<'_>, arguments: &[&str], text: &str| {
        both(from, to, &[&["cp"], arguments].concat()).exits(11).says(text);
    };
    let locations = ["testhost:file", "jump:x"];
    refused(&inbox, &outbox, &locations, "testhost: the other host lets this key only write");
    refused(&outbox, &outbox, &locations, "jump: the other host lets this key only read");
    let out = ["testhost:/etc/passwd", "jump:x"];
    refused(&outbox, &inbox, &out, "testhost: /etc/passwd is outside of what");
    refused(&outbox, &inbox, &["testhost:file", "jump:/tmp/x"], "jump: /tmp/x is outside of what");
    refused(&outbox, &inbox, &["-L", "testhost:link", "jump:x"], "testhost: the other host lets");
    let remove = ["--remove-source-files", "testhost:file", "jump:x"];
    refused(&outbox, &inbox, &remove, "testhost: the other host lets this key only read");
    outbox.is_whole();
    inbox.is_whole();
}
