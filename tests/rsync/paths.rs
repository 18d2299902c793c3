//! What the arguments name: with and without a slash, several, one file, what is not there, depth,
//! other file systems.

use super::everything::deep;
use super::scene::Scene;
use super::support::World;

type Case = (&'static [&'static str], &'static str);

#[track_caller]
fn arrive(verb: &str, cases: &[Case]) {
    for (sources, destination) in cases {
        let scene = Scene::new(|site| {
            site.files(&["dir/a", "dir/sub/a", "file", "there/a", "other/b", "other/sub/c"]);
            site.file("old", "old file");
            site.symlink("there", "link");
        });
        let arguments = [sources, &[*destination][..]].concat();
        // A directory that was there and is only the place for the rest keeps its own time in `cp`.
        let arguments = [&["--omit-dir-times"], &arguments[..]].concat();
        let both = if verb == "cp" { scene.cp(&arguments) } else { scene.sync(&arguments) };
        both.exit(0);
    }
}

const DIRECTORIES: &[Case] = &[
    (&["dir"], "new"),
    (&["dir/"], "new"),
    (&["dir/."], "new"),
    (&["./dir"], "new/"),
    (&["dir/sub/.."], "new"),
    (&["dir"], "there"),
    (&["dir/"], "there"),
    (&["dir/"], "there/"),
    (&["dir//"], "there//"),
    (&["dir/sub"], "there"),
    (&["dir/sub/"], "there"),
    (&["dir"], "mk/path"),
    (&["dir/"], "mk/path/deep"),
    (&["dir/"], "link"),
    (&["dir/"], "link/"),
];

const FILES: &[Case] = &[
    (&["file"], "new"),
    (&["file"], "new/"),
    (&["file"], "there"),
    (&["file"], "there/"),
    (&["file"], "old"),
    (&["file"], "there/named"),
    (&["dir/sub/a"], "there"),
    (&["file"], "mk/path/named"),
    (&["file"], "mk/path/"),
    (&["file"], "link"),
    (&["link"], "new"),
    (&["link/"], "new"),
    (&["link"], "there"),
];

#[test]
fn a_slash_after_a_directory_means_its_contents() {
    arrive("sync", DIRECTORIES);
}

#[test]
fn cp_takes_a_slash_as_sync_does() {
    arrive("cp", DIRECTORIES);
}

#[test]
fn a_file_goes_into_a_directory_or_gets_a_name() {
    arrive("sync", FILES);
}

#[test]
fn cp_names_files_as_sync_does() {
    arrive("cp", FILES);
}

#[test]
fn cp_takes_several_sources() {
    arrive(
        "cp",
        &[
            (&["file", "dir"], "new"),
            (&["file", "dir/"], "new"),
            (&["file", "old"], "there"),
            (&["dir", "dir/sub"], "there"),
        ],
    );
}

#[test]
fn what_cannot_be_is_an_error() {
    for (sources, destination) in
        [(&["dir"][..], "file"), (&["dir/"], "file"), (&["file", "dir"], "other-file")]
    {
        let scene = Scene::new(|site| site.files(&["dir/a", "file", "other-file"]));
        let both = scene.run("cp", &[sources, &[destination]].concat());
        for ran in [&both.rsync, &both.fastsync] {
            assert_ne!(ran.status.code(), Some(0), "{sources:?} {destination}: {ran:?}");
        }
        assert_eq!(scene.differences(), [""; 0]);
    }
}

/// The first of two files with one name counts.
#[test]
fn of_two_sources_with_one_name_the_first_wins() {
    let scene = Scene::new(|site| {
        site.file("one/same", "first");
        site.file("two/same", "second");
        site.files(&["one/a", "two/b"]);
    });
    let both = scene.run("cp", &["one/", "two/", "dst"]);
    both.rsync.exits(0);
    // What cannot be copied is said, and never left out silently.
    both.fastsync.exits(23).says("has the same name at the destination");
    scene.reads("dst/same", "first");
    scene.reads("dst/b", "two/b");
}

#[test]
fn a_path_almost_as_long_as_the_system_allows() {
    let scene = Scene::new(|site| {
        site.file(std::path::Path::new("src").join(deep(17)).join("file"), "deep");
    });
    scene.sync(&["-a", "src/", "dst"]).exit(0);
    scene.assert_equal("src", "dst");
}

/// rsync gives up here.
#[test]
fn a_path_longer_than_the_system_takes_at_once() {
    let scene = Scene::new(|site| {
        site.dir("src");
        let halves = [site.path("src"), site.path("tail")];
        for half in &halves {
            std::fs::create_dir_all(half.join(deep(15))).unwrap();
        }
        site.file(std::path::Path::new("tail").join(deep(15)).join("file"), "very deep");
        std::fs::rename(&halves[1], halves[0].join(deep(15)).join("tail")).unwrap();
    });
    scene.fastsync("sync", &["-a", "src/", "dst"]).exits(0);
    scene.assert_equal("src", "dst");
}

#[test]
fn one_file_system_stops_at_mount_points() {
    const MOUNT: &str = "mount -t tmpfs none src/mounted && mkdir -p src/mounted/dir && \
                         echo inner > src/mounted/file && mount -t tmpfs none dst/there && \
                         echo old > dst/there/old && touch -d @1000 src/mounted src/mounted/*";
    for flags in [&["-x"][..], &["-x", "--delete"]] {
        let scene = Scene::with_mounts(MOUNT, |site| {
            site.files(&["src/a", "src/other/b", "dst/other/old", "src/there/new"]);
            site.dir("src/mounted");
            site.dir("dst/there");
        });
        scene.sync(&[flags, &["src/", "dst"]].concat());
        assert!(!scene.path("dst/mounted/file").exists());
    }
}

#[test]
fn one_file_system_takes_a_mount_point_that_was_named() {
    let scene = Scene::with_mounts(
        "mount -t tmpfs none src && mkdir src/dir && echo a > src/dir/file && \
         touch -d @1000 src/dir/file src/dir src",
        |site| site.dir("src"),
    );
    scene.sync(&["-x", "src/", "dst"]).exit(0);
    scene.reads("dst/dir/file", "a\n");
}

#[test]
fn without_it_mount_points_are_passed() {
    let scene = Scene::with_mounts(
        "mount -t tmpfs none src/mounted && echo a > src/mounted/file && \
         touch -d @1000 src/mounted/file src/mounted",
        |site| site.dir("src/mounted"),
    );
    scene.sync(&["src/", "dst"]).exit(0);
    scene.reads("dst/mounted/file", "a\n");
}

#[test]
fn a_source_that_is_not_there_is_an_error_and_the_others_are_copied() {
    let scene = Scene::new(|site| site.files(&["a", "b", "dst/old"]));
    let both = scene.run("cp", &["a", "absent", "b", "dst/"]);
    both.rsync.exits(23);
    assert_ne!(both.fastsync.status.code(), Some(0));
}

/// rsync's test "duplicates": the same source named over and over is one source.
#[test]
fn a_source_given_many_times_is_taken_once() {
    let scene = Scene::new(|site| {
        site.files(&["from/name1", "from/dir/below"]);
        site.symlink("name1", "from/name2");
        site.dir("to");
        site.dir("other");
    });
    let contents = ["from/"; 8];
    scene.sync(&[&["-i"][..], &contents, &["to"]].concat()).exit(0).print(&[
        ">f+++++++++ dir/below",
        ">f+++++++++ name1",
        "cL+++++++++ name2 -> name1",
        "cd+++++++++ dir/",
    ]);
    scene.assert_equal("from", "to");
    let named = ["from/name1", "from/name2", "from/dir", "from/name1", "from/dir"];
    scene.cp(&[&["-i"][..], &named, &["other/"]].concat()).exit(0).print(&[
        ">f+++++++++ dir/below",
        ">f+++++++++ name1",
        "cL+++++++++ name2 -> name1",
        "cd+++++++++ dir/",
    ]);
    scene.assert_equal("from", "other");
}

/// Where the names are the same and the things are not, the first is taken, and the others are told.
#[test]
fn of_two_sources_with_the_same_name_the_first_is_taken() {
    let world = World::new();
    world.text("a/dir/file", "from a");
    world.text("b/dir/file", "from b");
    world.text("b/dir/more", "from b");
    let ran = world.run(["cp", "a/dir", "b/dir", "to/"]).exits(23);
    ran.says("b/dir");
    assert_eq!(std::fs::read(world.path("to/dir/file")).unwrap(), b"from a");
    assert!(!world.path("to/dir/more").exists());
}
