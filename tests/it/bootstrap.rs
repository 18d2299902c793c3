//! Hosts that have no fastsync, over a real sshd: it is brought along, once, in one login.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use fastsync::protocol::handshake::{MAGIC, hello};
use fastsync::protocol::message::{Failure, FailureCode, Message};

use super::far::{Far, program};
use super::support::{Running, World, set_mode, until};

/// Some of the runs are with the built-in client, to which nothing is different.
const BUILTIN: &str = "--ssh=builtin";

/// BOOT-2, BOOT-5, BOOT-6.
#[test]
fn a_host_without_fastsync_gets_it_once() {
    let world = World::new();
    let far = Far::new(&world, "host", "/bin/sh", "");
    let ran = far.push(&[], 0);
    let cached = far.cached();
    assert_eq!(cached.len(), 1, "{cached:?}");
    let directory = cached[0].parent().unwrap().display();
    ran.says(&format!("note: installed fastsync {}", env!("CARGO_PKG_VERSION")));
    ran.says(&format!(" at testhost:{directory} ("));
    let inode = fs::metadata(&cached[0]).unwrap().ino();
    assert_eq!(fs::read(&cached[0]).unwrap(), fs::read(program()).unwrap());
    assert_eq!(fs::metadata(cached[0].parent().unwrap()).unwrap().mode() & 0o777, 0o700);

    let ran = far.push(&[], 0);
    assert!(!ran.err.contains("installed"), "{ran:?}");
    assert_eq!(far.cached(), cached);
    assert_eq!(fs::metadata(&cached[0]).unwrap().ino(), inode);
    assert_eq!(far.logins().len(), 2, "one login for each run");

    fs::remove_file(&cached[0]).unwrap();
    let ran = far.push(&["--progress=json"], 0);
    let event = ran.events().into_iter().find(|event| event["event"] == "installed").unwrap();
    assert_eq!(
        (&event["host"], &event["size"]),
        (&"testhost".into(), &fs::metadata(program()).unwrap().len().into())
    );
}

/// BOOT-1.
#[test]
fn any_login_shell_will_do() {
    let world = World::new();
    for shell in ["/usr/bin/tcsh", "/usr/bin/bsd-csh", "/usr/bin/fish", "/bin/bash", "/bin/rbash"] {
        let name = shell.rsplit('/').next().unwrap();
        let far = Far::new(&world, name, shell, "");
        far.push(&[], 0).says("installed fastsync");
        assert!(!far.push(&[BUILTIN], 0).err.contains("installed"));
        assert_eq!((far.cached().len(), far.logins().len()), (1, 2), "{shell}");
    }
}

/// Without `sh` nothing can be brought along, but what the search path has is used.
#[test]
fn a_restricted_shell_runs_what_it_is_allowed_to() {
    let world = World::new();
    let far = Far::new(&world, "restricted", "/bin/rbash", "PATH=\"$top/bin\"");
    for flags in [&[BUILTIN][..], &[]] {
        let ran = far.push(flags, 42);
        ran.says("command not found").says("does not run `sh` either").says("--agent-path");
    }
    far.has("fastsync", &format!("exec {} \"$@\"", program().display()));
    far.push(&[], 0);
    far.push(&["--agent-path", "fastsync"], 0);
    assert_eq!(far.logins().len(), 2 + 2 + 2 + 1);
    assert!(far.cached().is_empty());
}

#[test]
fn noise_is_no_answer() {
    let world = World::new();
    let noise = "echo Welcome to fastsync; seq 10000; printf 'no end of line'";
    let far = Far::new(&world, "noisy", "/bin/sh", noise);
    far.push(&[BUILTIN], 0).says("installed fastsync");
    far.push(&[BUILTIN], 0).says("note: the remote shell printed: Welcome");
    far.push(&[], 0).says("note: the remote shell printed: Welcome");
    assert_eq!(far.logins().len(), 3);
}

/// BOOT-4.
#[test]
fn the_next_directory_is_taken_where_one_cannot_be_used() {
    let world = World::new();
    let tmp = "/tmp/fastsync-";
    let noexec = "mkdir -p $HOME/.cache; mount -t tmpfs -o noexec none $HOME/.cache";
    Far::with_mounts(&world, "noexec", noexec).push(&[], 0).says(tmp);
    let read_only = "mount -t tmpfs -o ro none $HOME";
    Far::with_mounts(&world, "read-only", read_only).push(&[BUILTIN], 0).says(tmp);
    let full = "mkdir -p $HOME/.cache; mount -t tmpfs -o size=1m none $HOME/.cache";
    Far::with_mounts(&world, "full", full).push(&[], 0).says(tmp);
    let taken = "mount -t tmpfs -o ro none $HOME; mkdir /tmp/fastsync-0; chown 1 /tmp/fastsync-0";
    let ran = Far::with_mounts(&world, "taken", taken).push(&[], 0);
    assert!(ran.err.contains("/tmp/fastsync-0-"), "{}", ran.err);
    let linked = "mount -t tmpfs -o ro none $HOME; mkdir -m 700 /tmp/x; ln -s x /tmp/fastsync-0";
    let ran = Far::with_mounts(&world, "linked", linked).push(&[], 0);
    assert!(ran.err.contains("/tmp/fastsync-0-"), "{}", ran.err);
    // As with a quota: `df` shows enough.
    let quota = "mkdir -p $HOME/.cache; mount -t tmpfs -o size=1m none $HOME/.cache; \
                 mkdir /tmp/df; printf '#!/bin/sh\necho; echo a b c 99999999 d\n' >/tmp/df/df; \
                 chmod 755 /tmp/df/df; export PATH=/tmp/df:$PATH";
    Far::with_mounts(&world, "quota", quota).push(&[], 0).says(tmp);
    let named = "mkdir /tmp/a; export FASTSYNC_AGENT_DIR=/tmp/a/b";
    Far::with_mounts(&world, "named", named).push(&[], 0).says("testhost:/tmp/a/b (");
    let named = "export XDG_CACHE_HOME='/tmp/a \"b'";
    Far::with_mounts(&world, "cache", named).push(&[], 0).says("testhost:/tmp/a \"b/fastsync (");
    let named = "mount -t tmpfs -o ro none $HOME; mkdir /tmp/t; export TMPDIR=/tmp/t";
    Far::with_mounts(&world, "temporary", named).push(&[], 0).says("testhost:/tmp/t/fastsync-0 (");
}

/// BOOT-4: neither for storing nor for starting.
#[test]
fn a_directory_that_others_can_write_in_is_not_used() {
    let world = World::new();
    let far = Far::with_mounts(&world, "open", "");
    let there = world.dir("open/home/.cache/fastsync");
    set_mode(&there, 0o770);
    far.push(&[], 0).says("testhost:/tmp/fastsync-");
    set_mode(&there, 0o700);
    far.push(&[], 0).says(".cache/fastsync (");
    assert_eq!(far.cached().len(), 1);
    set_mode(&there, 0o702);
    far.push(&[], 0).says("testhost:/tmp/fastsync-");
}

/// BOOT-4: whoever can write in `/tmp` has no commands run there, not even where the search path has
/// the working directory.
#[test]
fn commands_in_directories_of_others_are_not_run() {
    let world = World::new();
    let digest = blake3::hash(&fs::read(program()).unwrap()).to_hex();
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("fastsync-{version}-{}-{}", std::env::consts::ARCH, &digest[..32]);
    let trap = format!(
        "mount -t tmpfs -o ro none $HOME/.cache; mkdir -m 755 /tmp/fastsync-0; cd /tmp/fastsync-0; \
         printf '#!/bin/sh\necho $0 >>$HOME/trapped\n' >ls; chmod 755 ls; \
         for it in id df uname head wc chmod rm mv {name}; do cp ls $it; done; \
         cp -r . ../fastsync-0-x; chown -R 1:1 . ../fastsync-0-x; cd /"
    );
    for (host, path) in [("dot", ".:$PATH"), ("nothing", ":$PATH"), ("last", "$PATH:.")] {
        world.dir(format!("{host}/home/.cache"));
        let mounts = format!("{trap}; export PATH={path}");
        let far = Far::with_mounts(&world, host, &mounts);
        far.push(&[], 0).says("testhost:/tmp/fastsync-0-");
        assert!(!far.path("home/trapped").exists(), "{path}");
    }
}

#[test]
fn two_first_runs_at_once_both_end_well() {
    let world = World::new();
    let far = Far::new(&world, "host", "/bin/sh", "");
    let hosts = ["a", "b", "c"].map(|name| far.beside(name));
    let runs = [&far, &hosts[0], &hosts[1], &hosts[2]];
    let clients = [&[][..], &[BUILTIN], &[], &[BUILTIN]];
    let runs: Vec<_> = runs
        .iter()
        .zip(clients)
        .map(|(far, client)| Running::start(&mut far.command(client)))
        .collect();
    for run in runs {
        run.wait().exits(0);
    }
    [&far, &hosts[0], &hosts[1], &hosts[2]].into_iter().for_each(Far::arrived);
    assert_eq!((far.cached().len(), far.logins().len()), (1, 4));
}

/// BOOT-5: nothing is left behind.
#[test]
fn a_full_disk_is_told_and_stays_as_it_was() {
    let world = World::new();
    let full = "mount -t tmpfs -o size=1m none $HOME; mount -o remount,size=1m /tmp";
    let far = Far::with_mounts(&world, "full", full);
    let ran = far.push(&[], 42);
    ran.says("cannot start fastsync on testhost").says("it has no room: ").says("KiB are free");
    assert_eq!(far.files(), "");
    // Where it shows only in the writing, as with quotas.
    far.has("df", "printf 'a b c d e\\na 1 1 99999999 b\\n'");
    far.push(&[BUILTIN], 42).says("it has no room for ").says(" bytes");
    assert_eq!(far.files(), "");
}

/// BOOT-3.
#[test]
fn a_machine_of_another_kind_gets_nothing() {
    let world = World::new();
    let far = Far::new(&world, "other", "/bin/sh", "");
    far.has("uname", "[ \"$1\" = -sm ] && echo Linux riscv64 || exec /usr/bin/uname \"$@\"");
    let ran = far.push(&[], 42);
    ran.says("not for Linux on riscv64").says("--agent-path").says("--agent-binary FILE");
    far.has("uname", "echo FreeBSD amd64");
    far.push(&[BUILTIN], 42).says("not for FreeBSD on amd64");
    assert!(far.cached().is_empty());
}

#[test]
fn another_program_may_be_brought_along() {
    let world = World::new();
    let far = Far::new(&world, "host", "/bin/sh", "");
    let other = world.text("other", [&fs::read(program()).unwrap()[..], b"!"].concat());
    far.push(&["--agent-binary", "other"], 0).says("installed fastsync");
    assert_eq!(fs::read(&far.cached()[0]).unwrap(), fs::read(other).unwrap());
    // One that runs there and is no fastsync does not say what it should.
    let far = Far::new(&world, "odd", "/bin/sh", "");
    far.push(&["--agent-binary", "/bin/true"], 42).says("is not what it became there");
    far.push(&["--agent-binary", "/bin/false"], 42).says("the program does not run there");
    assert!(far.cached().is_empty(), "{:?}", far.cached());
    far.push(&["--agent-binary", "file"], 1).says("no program for Linux");
    far.push(&["--agent-binary", "nowhere"], 1).says("No such file");
}

/// BOOT-5.
#[test]
fn half_a_program_is_never_run() {
    let world = World::new();
    let far = Far::new(&world, "host", "/bin/sh", "");
    let cut = world.script("cut", "dd bs=4096 count=300 2>/dev/null | ssh \"$@\"");
    let ran = far.push(&["--ssh", cut.to_str().unwrap()], 42);
    ran.says("the program did not arrive whole");
    assert!(far.cached().is_empty(), "{:?}", far.cached());
    far.push(&[], 0).says("installed fastsync");
}

/// BOOT-5: nobody waits for the rest of a program that is not there any more at this end.
#[test]
fn a_program_that_is_cut_while_it_is_sent_is_told() {
    let world = World::new();
    let far = Far::new(&world, "host", "/bin/sh", "");
    let other = world.text("other", fs::read(program()).unwrap());
    let lines = format!(
        "case \"$*\" in *-G*) exit 1;; esac; echo \"@fastsync-boot 127 $(uname -sm)\"; read -r line; \
         : >'{}'; echo '@fastsync-boot send /tmp'; cat >/dev/null",
        other.display()
    );
    let cutting = world.script("cutting-ssh", &lines);
    let flags = ["--no-fallback", "--agent-binary", "other", "--ssh", cutting.to_str().unwrap()];
    far.push(&flags, 42).says("the program cannot be brought along whole");
}

#[test]
fn nothing_is_stored_where_that_is_forbidden() {
    let world = World::new();
    let far = Far::new(&world, "host", "/bin/sh", "");
    far.push(&["--no-bootstrap"], 42).says("not found").says("--agent-path");
    far.push(&["--bootstrap=off", BUILTIN], 42);
    world.text("home/.config/fastsync/config.toml", "[global]\nbootstrap = false\n");
    far.push(&[], 42);
    assert!(far.cached().is_empty());
    far.push(&["--bootstrap=on"], 0);
    // What was stored before is not used either.
    far.push(&["--no-bootstrap"], 42);
    assert!(far.logins().iter().filter(|command| *command == "fastsync agent").count() == 4);
}

/// BOOT-3.
#[test]
fn a_fastsync_that_speaks_another_version_is_passed_over() {
    let world = World::new();
    let far = Far::new(&world, "old", "/bin/sh", "");
    let old = Message::Hello(fastsync::protocol::message::Hello {
        versions: (100, 101),
        ..hello([1; 32], vec![2; 500])
    });
    world.text("old/hello", [&MAGIC[..], &old.encode().unwrap()].concat());
    let agent = "[ \"$1\" = agent ] || exit 0; cat \"$top/hello\"; dd bs=65536 count=1 of=/dev/null; exit 3";
    let agent = agent.replace("$top", &far.path("").display().to_string());
    far.has("fastsync", &agent);
    far.push(&[], 0).says("installed fastsync");
    far.push(&[], 0);
    assert_eq!(far.logins().len(), 2);
    far.push(&["--no-bootstrap"], 2).says(" 100-101: install the same version");
    far.push(&["--agent-path", "fastsync"], 2).says("install the same version");
}

/// BOOT-2, BOOT-3.
#[test]
fn what_is_there_and_cannot_run_is_replaced_and_what_fails_is_not() {
    let world = World::new();
    let far = Far::new(&world, "broken", "/bin/sh", "");
    far.has("fastsync", "echo 'libc.so.6: version GLIBC_2.99 not found' >&2; exit 1");
    far.push(&[], 0).says("installed fastsync");
    let far = Far::new(&world, "other-tool", "/bin/sh", "");
    far.has("fastsync", "[ \"$1\" = --version ] && exit; echo 'usage: fastsync FILE' >&2; exit 2");
    far.push(&[], 42).says("ended with exit code 2").says("usage: fastsync FILE");
    assert!(far.cached().is_empty());
}

/// BOOT-2: after these codes a script reads on and runs what it reads, and a session's bytes are none
/// of its lines.
#[test]
fn an_agent_whose_session_failed_is_not_taken_for_none() {
    let world = World::new();
    let hello = Message::Hello(hello([1; 32], vec![2; 500])).encode().unwrap();
    let failure = Failure::new(FailureCode::Version, "another version");
    let abort = Message::Abort(failure).encode().unwrap();
    let broken = [&hello[..], &[0xff; 100]].concat();
    for (input, code) in [(abort, 3), (vec![0xff; 100], 12), (Vec::new(), 12), (broken, 12)] {
        let mut command = world.fastsync();
        command.arg("agent").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut agent = command.spawn().unwrap();
        agent.stdin.take().unwrap().write_all(&input).unwrap();
        assert_eq!(agent.wait().unwrap().code(), Some(code), "{input:?}");
    }
}

/// BOOT-3: what runs there is sent the program once, and only if it was asked to take it.
#[test]
fn nobody_has_the_program_sent_again_and_again() {
    let world = World::new();
    let far = Far::new(&world, "greedy", "/bin/sh", "");
    let asked = "echo \"@fastsync-boot 127 $(uname -sm)\"; ";
    for before in ["", asked] {
        let lines = format!(
            "case \"$*\" in *-G*) exit 1;; esac; {before}yes '@fastsync-boot send /tmp' 2>/dev/null"
        );
        let greedy = world.script("greedy-ssh", &lines);
        let flags = ["--no-fallback", "--ssh", greedy.to_str().unwrap()];
        far.push(&flags, 42).says("asks for what it was not offered");
    }
}

/// BOOT-7.
#[test]
fn what_was_not_used_for_long_is_removed() {
    let world = World::new();
    let far = Far::new(&world, "host", "/bin/sh", "");
    let name = format!("fastsync-0.0.1-x86_64-{}", "0".repeat(32));
    let old = world.text(format!("host/home/.cache/fastsync/{name}"), "old");
    set_mode(old.parent().unwrap(), 0o700);
    let days = |days: u64| SystemTime::now() - Duration::from_hours(24 * days);
    let set = |days_ago| fs::File::open(&old).unwrap().set_modified(days(days_ago)).unwrap();
    set(29);
    far.push(&[], 0);
    assert_eq!(far.cached().len(), 2);
    set(31);
    far.push(&[], 0);
    assert!(until(Duration::from_secs(10), || far.cached().len() == 1));
    let own = fs::metadata(&far.cached()[0]).unwrap();
    assert!(own.modified().unwrap() > days(1));
}

/// BOOT-2: what was stored and is no program any more, or one for another machine, is stored anew.
#[test]
fn a_stored_program_that_cannot_run_is_replaced() {
    let world = World::new();
    let far = Far::new(&world, "spoilt", "/bin/sh", "");
    far.push(&[], 0).says("installed fastsync");
    let stored = far.cached().remove(0);
    for content in [&b""[..], &[0; 1000], b"#!/bin/sh\nexit 0\n", b"#!/bin/sh\ncat\n"] {
        fs::write(&stored, content).unwrap();
        far.push(&[], 0).says("installed fastsync");
        assert_eq!(far.cached().len(), 1);
        let ran = far.push(&[], 0);
        assert!(!ran.err.contains("installed"), "{}", ran.err);
    }
}
