//! Transfers between two other hosts, of which a third one is the client: what is the same as for a
//! push. Both hosts are one server here; tests/reach has a network between them.

use std::ffi::OsString;
use std::fs;

use super::support::{World, assert_same, set_mode};

impl World {
    /// A path of this world at the host that sends, and at the one that receives.
    fn at_both(&self, source: &str, destination: &str) -> [OsString; 2] {
        let location = |host: &str, path: &str| {
            let mut location = OsString::from(format!("{host}:"));
            location.push(self.path(path));
            if path.ends_with('/') {
                location.push("/");
            }
            location
        };
        [location("testhost", source), location("jump", destination)]
    }
}

/// THIRD-6: exit codes are those of a push, and what fails is told.
#[test]
fn exit_codes_are_those_of_a_push() {
    let world = World::new();
    world.write_everything("src", &[0, 10, 300_000]);
    world.dir("dst");
    world.text("dst/extra", "goes");
    let [source, destination] = world.at_both("src/", "dst");
    let run = |flags: &[&str]| {
        let flags = flags.iter().map(Into::into);
        world.run_ssh(flags.chain([source.clone(), destination.clone()]))
    };
    run(&["sync", "--delete", "--max-delete=0"]).exits(25).says("--max-delete kept 1 more");
    run(&["sync", "--delete", "-v"]).exits(0).says("connected to 127.0.0.1:");
    assert_same(world.path("src"), world.path("dst"));
    run(&["check"]).exits(0);
    world.text("dst/more", "stays");
    run(&["check"]).exits(40);
    run(&["cp", "--data-addr=127.0.0.9", "--transport=tcp", "--streams=0"]).exits(1);
    let [missing, _] = world.at_both("nowhere", "");
    let ran = world.run_ssh(["cp".into(), missing.clone(), source, destination.clone()]).exits(23);
    ran.says("nowhere");
    world.run_ssh(["cp".into(), missing, destination]).exits(11).says("testhost: cannot open");
}

/// SEL-4: a list of paths travels to the host that has them; and a failed entry is tried once more.
#[test]
fn lists_and_retries_work_as_for_a_push() {
    let world = World::new();
    for name in ["src/a", "src/b", "src/below/c", "src/below/d"] {
        world.text(name, name);
    }
    world.text("list", "a\nbelow/c\n");
    let [source, destination] = world.at_both("src/", "dst");
    let run = |flags: &[&str]| {
        let flags = flags.iter().map(Into::into);
        world.run_ssh(flags.chain([source.clone(), destination.clone()]))
    };
    run(&["cp", "--files-from=list"]).exits(0);
    assert!(world.path("dst/a").exists() && world.path("dst/below/c").exists());
    assert!(!world.path("dst/b").exists() && !world.path("dst/below/d").exists());
    // Something that nothing gives way to.
    fs::create_dir_all(world.path("dst/b/in the way")).unwrap();
    run(&["cp", "--report=report"]).exits(23).says("b");
    fs::remove_dir_all(world.path("dst/b")).unwrap();
    world.run(["retry", "report"]).exits(0);
    assert_same(world.path("src"), world.path("dst"));
    set_mode(&world.path("dst/a"), 0o600);
    let ran = run(&["cp", "-n", "-i"]).exits(0);
    let out = String::from_utf8_lossy(&ran.out);
    assert!(out.contains(".f...p..... a"), "{out}");
    world.text("src/new", "new");
    let ran = run(&["cp", "-n", "-i"]).exits(0);
    let out = String::from_utf8_lossy(&ran.out);
    assert!(out.contains("<f+++++++++ new"), "{out}");
}
