//! Hard links and symlinks.

use super::scene::{Scene, assert_rsync_finds_nothing};

/// ENTRY-16.
#[test]
fn hard_links_within_and_across_directories() {
    let scene = Scene::new(|site| {
        for (name, size) in [("small", 10), ("large", 300_000), ("empty", 0)] {
            site.noise(format!("src/{name}"), size);
            for link in ["b/1", "a/2", "a/b/c/3", "4"] {
                site.hard_link(format!("src/{name}"), format!("src/{name}-{link}"));
            }
        }
        site.symlink("small", "src/symlink");
        site.hard_link("src/symlink", "src/below/symlink");
        site.fifo("src/fifo");
        site.hard_link("src/fifo", "src/below/fifo");
    });
    scene.sync(&["-H", "-D", "src/", "dst"]).exit(0);
    scene.assert_equal("src", "dst");
    assert_rsync_finds_nothing(&scene.path("src"), &scene.path("dst"));
}

#[test]
fn a_second_run_repairs_broken_links_and_breaks_wrong_ones() {
    let mut scene = Scene::new(|site| {
        for name in ["a", "b", "c", "d"] {
            site.noise(format!("src/{name}/1"), 1000);
            site.hard_link(format!("src/{name}/1"), format!("src/{name}/2"));
            site.hard_link(format!("src/{name}/1"), format!("src/other/{name}"));
        }
        site.files(&["src/single", "src/alone"]);
    });
    scene.sync(&["-H", "src/", "dst"]);
    scene.change(|site| {
        // One name of a set is a file of its own, with the right content.
        site.noise("dst/a/2", 1000);
        std::fs::copy(site.path("dst/a/1"), site.path("dst/a/2")).unwrap();
        // One is gone, one is another file.
        site.remove("dst/b/1");
        site.file("dst/other/b", "something else");
        // Files that should have nothing in common.
        site.file("dst/alone", "single");
        site.hard_link("dst/alone", "dst/single");
    });
    scene.sync(&["-H", "src/", "dst"]).exit(0);
    scene.sync(&["-H", "--checksum", "src/", "dst"]).exit(0);
}

#[test]
fn a_link_structure_that_changed_at_the_source_changes_at_the_destination() {
    let mut scene = Scene::new(|site| {
        site.files(&["src/a", "src/b", "src/sub/c"]);
        site.hard_link("src/a", "src/sub/d");
    });
    scene.sync(&["-H", "src/", "dst"]);
    scene.change(|site| {
        site.file("src/sub/d", "for itself");
        site.hard_link("src/b", "src/sub/c");
        site.hard_link("src/b", "src/new");
    });
    scene.sync(&["-H", "--delete", "src/", "dst"]).exit(0);
    scene.assert_equal("src", "dst");
}

#[test]
fn linked_files_that_change_stay_linked() {
    for flags in [&["-H"][..], &["-H", "--inplace"], &["-H", "--checksum"]] {
        let mut scene = Scene::new(|site| {
            site.noise("src/a", 200_000);
            site.hard_link("src/a", "src/sub/b");
            site.hard_link("src/a", "src/c");
        });
        scene.sync(&["-H", "src/", "dst"]);
        scene.change(|site| {
            std::fs::write(site.path("src/a"), "all three").unwrap();
        });
        scene.sync(&[flags, &["src/", "dst"]].concat()).exit(0);
        scene.assert_equal("src", "dst");
    }
}

#[test]
fn links_that_leave_the_source_are_files() {
    let scene = Scene::new(|site| {
        site.files(&["src/a", "outside"]);
        site.hard_link("outside", "src/b");
        site.hard_link("outside", "src/sub/c");
        site.hard_link("outside", "src/excluded");
    });
    scene.sync(&["-H", "--exclude=excluded", "src/", "dst"]).exit(0);
    scene.holds("dst", &["a", "b", "sub/", "sub/c"]);
}

#[test]
fn links_across_two_sources() {
    let scene = Scene::new(|site| {
        site.file("one/a", "linked");
        site.hard_link("one/a", "two/b");
    });
    scene.cp(&["-H", "one", "two", "dst/"]).exit(0);
    scene.holds("dst", &["one/", "one/a", "two/", "two/b"]);
}

#[test]
fn without_the_flag_links_are_files() {
    let scene = Scene::new(|site| {
        site.file("src/a", "linked");
        site.hard_link("src/a", "src/b");
    });
    scene.sync(&["src/", "dst"]).exit(0);
}

#[test]
fn symlinks_arrive_as_symlinks_and_replace_what_is_there() {
    let scene = Scene::new(|site| {
        for (name, target) in
            [("absolute", "/etc/passwd"), ("dangling", "no"), ("dir", "sub"), ("up", "../..")]
        {
            site.symlink(target, format!("src/{name}"));
        }
        site.files(&["src/sub/file", "src/was-a-link", "dst/absolute", "dst/sub/file"]);
        site.symlink("elsewhere", "dst/dangling");
        site.symlink("sub/file", "dst/was-a-link");
        site.dir("dst/dir");
        site.symlink("../src", "dst/kept");
    });
    scene.sync(&["src/", "dst"]).exit(0);
    scene.reads("dst/was-a-link", "src/was-a-link");
}

#[test]
fn a_link_where_a_directory_should_be_is_replaced() {
    let scene = Scene::new(|site| {
        site.files(&["src/dir/file", "outside/precious"]);
        site.symlink("../outside", "dst/dir");
    });
    scene.sync(&["src/", "dst"]).exit(0);
    scene.holds("outside", &["precious"]);
    scene.holds("dst", &["dir/", "dir/file"]);
}

/// Of links that lead out of the tree, one each.
fn with_unsafe_links() -> Scene {
    Scene::new(|site| {
        site.files(&["outside/file", "outside/dir/below", "src/inside", "src/sub/file"]);
        site.symlink("../inside", "src/sub/safe");
        site.symlink("sub", "src/safe-dir");
        site.symlink("../outside/file", "src/file");
        site.symlink("../outside/dir", "src/dir");
        site.symlink("../../outside/file", "src/sub/deeper");
        site.symlink("sub/../../outside/file", "src/crooked");
        site.symlink("sub/../inside", "src/crooked-and-safe");
        site.symlink("/etc/hostname", "src/absolute");
    })
}

#[test]
fn copy_links_follows_all() {
    let scene = with_unsafe_links();
    scene.sync(&["-L", "src/", "dst"]).exit(0);
    scene.reads("dst/dir/below", "outside/dir/below");
}

#[test]
fn copy_links_says_what_leads_nowhere() {
    let scene = Scene::new(|site| {
        site.files(&["src/file"]);
        site.symlink("nowhere", "src/dangling");
        site.symlink("itself", "src/itself");
    });
    scene.sync(&["-L", "src/", "dst"]).exit(23);
    scene.holds("dst", &["file"]);
}

/// SEL-3.
#[test]
fn copy_unsafe_links_follows_those_that_lead_out() {
    let scene = with_unsafe_links();
    scene.sync(&["--copy-unsafe-links", "src/", "dst"]).exit(0);
    scene.reads("dst/file", "outside/file");
    assert!(scene.path("dst/safe-dir").is_symlink());
}

#[test]
fn safe_links_leaves_those_out_that_lead_out() {
    let scene = with_unsafe_links();
    scene.sync(&["--safe-links", "src/", "dst"]).exit(0);
    let names = ["inside", "safe-dir", "sub/", "sub/file", "sub/safe"];
    let crooked = scene.path("dst/crooked-and-safe").is_symlink();
    let names = if crooked { [&["crooked-and-safe"], &names[..]].concat() } else { names.to_vec() };
    scene.holds("dst", &names);
}

/// SEL-3.
#[test]
fn safe_links_deletes_nothing_that_it_leaves_out() {
    let scene = with_unsafe_links();
    scene.sync(&["src/", "dst"]);
    scene.sync(&["--safe-links", "--delete", "src/", "dst"]).exit(0);
}
