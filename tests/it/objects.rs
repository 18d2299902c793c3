//! Copies to and from object stores: what holds for all of them.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use rustix::process::Signal;

use super::support::{
    PATIENCE, Ran, Running, World, assert_same, assert_same_content, number, set_mode, tree, until,
};

/// The scenes of every store, of which `$bucket` has one.
macro_rules! scenes {
    ($bucket:ident: $($scene:ident)*) => {
        $(#[test]
        fn $scene() {
            $bucket().$scene();
        })*
    };
    ($bucket:ident) => {
        crate::objects::scenes!($bucket:
            a_tree_goes_there_and_comes_back
            an_object_gets_the_key_that_it_is_given
            sync_deletes_and_a_dry_run_does_nothing
            a_killed_upload_goes_on
            what_nobody_came_back_for_is_cleaned_up
        );
    };
}

pub(crate) use scenes;

/// A bucket of some store, and how the program gets there.
pub struct Bucket {
    /// `s3://bucket`.
    pub location: &'static str,
    /// What reports call the store.
    pub name: &'static str,
    pub environment: Vec<(&'static str, String)>,
    /// How much an upload has that takes long enough to be killed, and its parts, in bytes.
    pub upload: (u64, u64),
}

impl Bucket {
    /// A place of a test's own in the bucket.
    pub fn place(&self, world: &World) -> String {
        let name = world.path("").file_name().unwrap().to_str().unwrap().to_owned();
        format!("{}/{name}", self.location)
    }

    /// The program with credentials for the server.
    pub fn fastsync(&self, world: &World) -> Command {
        let mut command = world.fastsync();
        command.env("XDG_STATE_HOME", world.path("home/state"));
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        command
    }

    pub fn run<A: AsRef<OsStr>>(
        &self,
        world: &World,
        arguments: impl IntoIterator<Item = A>,
    ) -> Ran {
        Running::start(self.fastsync(world).args(arguments)).wait()
    }

    pub fn a_tree_goes_there_and_comes_back(&self) {
        let world = World::new();
        self.plant(&world);
        let there = self.place(&world);
        let copy = || self.run(&world, ["cp", "src/", &there, "--json"]).exits(0).summary();
        let summary = copy();
        let told = (&summary["transport"], &summary["durable"]);
        assert_eq!(told, (&self.name.into(), &true.into()));
        let summary = copy();
        assert_eq!((number(&summary, "done"), number(&summary, "bytes_sent")), (0, 0));
        self.run(&world, ["cp", &format!("{there}/"), "back"]).exits(0);
        assert_same_files(&world, "src", "back");
        for flags in [&["check", "src", &there][..], &["check", "--checksum", "src", &there]] {
            self.run(&world, flags).exits(0);
        }
    }

    pub fn an_object_gets_the_key_that_it_is_given(&self) {
        let world = World::new();
        let (file, there) = (world.write("file", 700_000), self.place(&world));
        self.run(&world, ["cp", "file", &format!("{there}/new")]).exits(0);
        self.run(&world, ["cp", "file", &format!("{there}/dir/")]).exits(0);
        for key in ["new", "dir/file"] {
            self.run(&world, ["cp", &format!("{there}/{key}"), "back"]).exits(0);
            assert_same_content(&file, &world.path("back"));
            fs::remove_file(world.path("back")).unwrap();
        }
        let listed = self.run(&world, ["ls", "-R", &format!("{there}/")]).exits(0);
        assert_eq!(String::from_utf8_lossy(&listed.out), "dir\ndir/file\nnew\n");
        let listed = self.run(&world, ["ls", &format!("{}/", self.location)]).exits(0);
        let name = there.rsplit('/').next().unwrap();
        assert!(String::from_utf8_lossy(&listed.out).lines().any(|line| line == name));
    }

    pub fn sync_deletes_and_a_dry_run_does_nothing(&self) {
        let world = World::new();
        self.plant(&world);
        let there = self.place(&world);
        self.run(&world, ["sync", "src/", &there]).exits(0);
        fs::remove_dir_all(world.path("src/many")).unwrap();
        world.text("src/names/-rf", "another content");
        // Only what is kept beside it is another.
        set_mode(&world.path("src/sizes/0"), 0o600);
        let sync =
            |flags: &[&str]| self.run(&world, [&["sync", "src/", &there, "-i"], flags].concat());
        let ran = sync(&["--delete", "-n"]).exits(0);
        assert!(ran.out.windows(9).any(|it| it == b"*deleting"), "{ran:?}");
        sync(&["--delete", "--max-delete=3"]).exits(25);
        sync(&["--delete"]).exits(0);
        self.run(&world, ["cp", &format!("{there}/"), "back"]).exits(0);
        assert_same_files(&world, "src", "back");
        fs::create_dir(world.path("nothing")).unwrap();
        let ran = self.run(&world, ["sync", "nothing/", &there, "--delete"]);
        assert_ne!(ran.status.code(), Some(0));
        self.run(&world, ["check", "src", &there]).exits(0);
    }

    /// Starts a copy of `src/`, in parts.
    fn start(&self, world: &World, flags: &[&str]) -> Running {
        let mut command = self.fastsync(world);
        command.args(["cp", "src/", &self.place(world), "-c", &self.upload.1.to_string()]);
        Running::start(command.args(flags))
    }

    /// Kills a copy of a large file when some of its parts are there.
    fn kill_upload(&self, world: &World) {
        world.write("src/big", self.upload.0);
        let mut running = self.start(world, &[]);
        let jobs = world.path("home/state/fastsync/jobs");
        let journal = || {
            let job = fs::read_dir(&jobs).ok()?.next()?.ok()?.path();
            fs::metadata(job.join("journal")).ok()
        };
        // A header, an upload, and some parts.
        let is_under_way = || journal().is_some_and(|it| it.len() > 64 + 400 + 5 * 90);
        assert!(until(PATIENCE, || is_under_way() || running.is_over()));
        running.signal(Signal::KILL);
        assert!(running.wait().was_killed());
        let listed = self.run(world, ["ls", &format!("{}/", self.place(world))]);
        assert!(listed.out.is_empty(), "not before it is whole");
    }

    /// JRN-12: what the server has acknowledged is not sent again.
    pub fn a_killed_upload_goes_on(&self) {
        let (world, (size, part)) = (World::new(), self.upload);
        self.kill_upload(&world);
        let summary = self.start(&world, &["--json"]).wait().exits(0).summary();
        assert!(number(&summary, "bytes_resumed") >= 3 * part, "{summary}");
        assert_eq!(number(&summary, "bytes_resumed") + number(&summary, "bytes_sent"), size);
        let there = self.place(&world);
        self.run(&world, ["cp", &format!("{there}/big"), "back"]).exits(0);
        assert_same_content(&world.path("src/big"), &world.path("back"));
        assert_eq!(tree(world.path("home/state/fastsync")).len(), 0, "nothing is left here");
    }

    pub fn what_nobody_came_back_for_is_cleaned_up(&self) {
        let world = World::new();
        self.kill_upload(&world);
        let there = format!("{}/", self.place(&world));
        let clean = |flags: &[&str]| {
            let ran = self.run(&world, [&["clean"], flags].concat()).exits(0);
            (String::from_utf8_lossy(&ran.out).lines().count(), ran)
        };
        // It may still be under way.
        let (count, ran) = clean(&[&there, "--delete"]);
        assert_eq!(count, 0, "{ran:?}");
        ran.says("1 younger than 7d");
        let (count, ran) = clean(&[&there, "--older-than=0s"]);
        assert_eq!(count, 1, "{ran:?}");
        ran.says("--delete");
        assert_eq!(clean(&[&there, "--older-than=0s", "--delete"]).0, 1);
        assert_eq!(clean(&[&there, "--older-than=0s"]).0, 0);
        // Its journal is here, and of no use.
        assert_eq!(clean(&["--older-than=0s"]).0, 1);
        let summary = self.start(&world, &["--json"]).wait().exits(0).summary();
        assert_eq!(number(&summary, "bytes_resumed"), 0);
        self.run(&world, ["check", "src", &there]).exits(0);
        assert_eq!(clean(&["--older-than=0s", "--delete"]).0, 0);
    }

    /// Runs a copy of a file with other variables; nothing that it says has a secret.
    pub fn run_with(
        &self,
        world: &World,
        arguments: &[&str],
        variables: &[(&str, Option<&str>)],
        secrets: &[&str],
    ) -> Ran {
        let mut command = self.fastsync(world);
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let ran = Running::start(command.args(arguments)).wait();
        for secret in secrets {
            assert!(!ran.err.contains(secret), "{}", ran.err);
        }
        ran
    }

    /// What an object store keeps: files, their times and modes.
    pub fn plant(&self, world: &World) {
        let large = usize::try_from(self.upload.1 * 5 / 2).unwrap();
        for (n, size) in [0, 1, 300_000, large].into_iter().enumerate() {
            world.write(format!("src/sizes/{n}"), size as u64);
        }
        for n in 0..100 {
            world.text(format!("src/many/{n}"), format!("small {n}"));
        }
        for name in ["with space", "%41#?&+", "-rf", "a+b", "ümläut", "a'\"<>b"] {
            world.text(format!("src/names/{name}"), name);
        }
        set_mode(&world.path("src/sizes/1"), 0o640);
    }
}

/// The same without what an object store has no place for: directories' own times.
pub fn assert_same_files(world: &World, one: &str, other: &str) {
    let mut touch = Command::new("find");
    touch.arg(world.path(one)).arg(world.path(other));
    touch.args(["-depth", "-type", "d", "-exec", "touch", "-d", "@1000000000", "{}", "+"]);
    assert!(touch.status().unwrap().success());
    assert_same(world.path(one), world.path(other));
}
