//! One kind of file in the place of another.

use super::scene::{Scene, Site};

type Make = fn(&Site<'_>, &str);

const KINDS: [(&str, Make); 6] = [
    ("file", |site, path| site.file(path, "a file")),
    ("empty-dir", |site, path| site.dir(path)),
    ("full-dir", |site, path| site.file(format!("{path}/below/file"), "in a directory")),
    ("symlink", |site, path| site.symlink("target", path)),
    ("fifo", |site, path| site.fifo(path)),
    ("device", |site, path| site.device(path, true, 1, 3)),
];

/// Every kind where every other one is.
fn all_pairs() -> Scene {
    Scene::new(|site| {
        for (new, make_new) in KINDS {
            for (old, make_old) in KINDS {
                make_new(site, &format!("src/{new}-for-{old}"));
                make_old(site, &format!("dst/{new}-for-{old}"));
            }
        }
    })
}

/// A directory with content gives way to nothing but a directory.
///
/// UPD-4.
#[test]
fn without_delete_a_full_directory_stays() {
    all_pairs().sync(&["-a", "src/", "dst"]).exit(23);
}

/// UPD-4.
#[test]
fn with_delete_everything_gives_way() {
    let scene = all_pairs();
    scene.sync(&["-a", "--delete", "src/", "dst"]).exit(0);
    scene.assert_equal("src", "dst");
}

#[test]
fn with_force_everything_gives_way_and_nothing_else_is_deleted() {
    let mut scene = all_pairs();
    scene.change(|site| site.files(&["dst/more"]));
    scene.sync(&["-a", "--force", "src/", "dst"]).exit(0);
    scene.reads("dst/more", "dst/more");
}

#[test]
fn a_device_with_another_number_is_made_anew() {
    let scene = Scene::new(|site| {
        site.device("src/device", true, 1, 3);
        site.device("dst/device", true, 1, 5);
        site.device("src/block", false, 7, 200);
        site.device("dst/block", true, 7, 201);
    });
    scene.sync(&["-D", "src/", "dst"]).exit(0);
    scene.assert_equal("src", "dst");
}

#[test]
fn without_devices_they_are_left_out() {
    for flags in [&[][..], &["--specials"], &["--devices"]] {
        let scene = Scene::new(|site| {
            site.file("src/file", "");
            site.fifo("src/fifo");
            site.socket("src/socket");
            site.device("src/device", true, 1, 3);
        });
        // What was not asked for and is left out is counted as failed.
        let both = scene.run("sync", &[flags, &["src/", "dst"]].concat());
        both.rsync.exits(0);
        both.fastsync.exits(23).says("not transferred without -D");
        assert_eq!(scene.differences(), [""; 0]);
    }
}

#[test]
fn excluded_content_keeps_a_directory_from_giving_way() {
    let scene = Scene::new(|site| {
        site.file("src/name", "a file");
        site.files(&["dst/name/kept", "dst/name/other"]);
    });
    // rsync removes the rest first; here all of it stays.
    let both = scene.run("sync", &["--delete", "--exclude=kept", "src/", "dst"]);
    both.fastsync.exits(23);
    scene.reads("dst/name/kept", "dst/name/kept");
}
