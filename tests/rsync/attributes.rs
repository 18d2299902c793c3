//! Modes, times, owners, ACLs, extended attributes, holes.

use super::scene::{Acl, Scene};

#[test]
fn chmod_changes_what_arrives() {
    for chmod in [
        "D755,F644",
        "u+w,go-rwx",
        "a+rX",
        "Du+s,Dg+s,Fo=",
        "F600",
        "ug=rwX,o-w",
        "D2750,Fa-x",
        "u=g",
        "-w",
        "o+t",
    ] {
        let scene = Scene::new(|site| {
            for (name, mode) in [("a", 0o600), ("b", 0o755), ("c", 0o4711), ("d", 0o066)] {
                site.file(format!("src/{name}"), name);
                site.mode(format!("src/{name}"), mode);
                site.file(format!("src/dir-{name}/file"), name);
                site.mode(format!("src/dir-{name}"), mode | 0o100);
            }
            site.files(&["dst/a", "dst/dir-a/file"]);
            site.symlink("a", "src/symlink");
        });
        scene.sync(&[&format!("--chmod={chmod}"), "src/", "dst"]).exit(0);
    }
}

#[test]
fn several_chmods_add_up() {
    let scene = Scene::new(|site| site.files(&["src/a", "src/dir/b"]));
    scene.sync(&["--chmod=go=", "--chmod=Fu-w", "--chmod=Do+x", "src/", "dst"]).exit(0);
}

#[test]
fn chown_changes_owners_by_number_and_by_name() {
    for chown in ["1234:2345", "1234", "1234:", ":2345", "daemon:daemon", "daemon:2345"] {
        let scene = Scene::new(|site| {
            site.files(&["src/a", "src/dir/b", "dst/a"]);
            site.symlink("a", "src/symlink");
            site.owner("src/dir", 77, 88);
            site.owner("src/dir/b", 1, 2);
            site.mode("src/a", 0o6755);
        });
        scene.sync(&[&format!("--chown={chown}"), "src/", "dst"]).exit(0);
    }
}

#[test]
fn permissions_are_kept_or_left_to_the_umask() {
    for flags in [&[][..], &["--no-perms"], &["--no-times"], &["--no-perms", "--chmod=F640"]] {
        let scene = Scene::new(|site| {
            for (name, mode) in [("a", 0o600), ("b", 0o777), ("c", 0o4755), ("d", 0o2771)] {
                site.file(format!("src/{name}"), name);
                site.file(format!("src/there-{name}"), "new content");
                site.file(format!("dst/there-{name}"), "old");
                site.dir(format!("src/dir-{name}"));
                for path in [format!("src/{name}"), format!("src/dir-{name}")] {
                    site.mode(path, mode);
                }
                site.mode(format!("src/there-{name}"), mode);
                site.mode(format!("dst/there-{name}"), 0o640);
            }
        });
        scene.sync(&[flags, &["src/", "dst"]].concat()).exit(0);
    }
}

#[test]
fn a_read_only_directory_is_filled_and_stays_read_only() {
    let scene = Scene::new(|site| {
        site.files(&["src/closed/a", "src/closed/below/b"]);
        site.mode("src/closed/below", 0o500);
        site.mode("src/closed", 0o555);
        site.file("dst/closed/old", "");
        site.mode("dst/closed", 0o500);
    });
    scene.sync(&["--delete", "src/", "dst"]).exit(0);
    scene.holds("dst", &["closed/", "closed/a", "closed/below/", "closed/below/b"]);
}

#[test]
fn a_time_alone_is_put_right_without_a_transfer() {
    let scene = Scene::new(|site| {
        site.files(&["src/a", "dst/a"]);
        site.time("src/a", -5, 999_999_999);
        site.file("src/dir/b", "");
        site.file("dst/dir/b", "");
        site.time("src/dir", 7_000_000_000, 1);
        site.symlink("x", "src/link");
        site.symlink("x", "dst/link");
        site.time("src/link", 5, 5);
    });
    scene.sync(&["src/", "dst"]).exit(0);
    scene.assert_equal("src", "dst");
}

#[test]
fn directory_times_are_kept_or_omitted() {
    for flags in [&[][..], &["--omit-dir-times"], &["--no-times"]] {
        let scene = Scene::new(|site| {
            site.files(&["src/new/a", "src/there/b", "dst/there/b"]);
            site.time("src/new", 1000, 1);
            site.time("src/there", 1000, 1);
            site.time("dst/there", 2000, 1);
            site.time("src", 3000, 1);
        });
        scene.sync(&[flags, &["src/", "dst"]].concat()).exit(0);
    }
}

#[test]
fn acls_are_made_changed_and_taken_away() {
    let scene = Scene::new(|site| {
        for side in ["src", "dst"] {
            for name in ["gone", "changed", "new", "default-gone", "default-changed", "default-new"]
            {
                site.file(format!("{side}/{name}/file"), "x");
                site.dir(format!("{side}/{name}/below"));
            }
        }
        for (path, which, user) in [
            ("dst/gone/file", Acl::Access, 4),
            ("dst/changed/file", Acl::Access, 4),
            ("src/changed/file", Acl::Access, 5),
            ("src/new/file", Acl::Access, 4),
            ("dst/default-gone", Acl::Default, 4),
            ("dst/default-changed", Acl::Default, 4),
            ("src/default-changed", Acl::Default, 5),
            ("src/default-new", Acl::Default, 4),
        ] {
            site.acl(path, which, &[(user, 6)], (user, 4));
        }
        site.file("src/default-new/made-later", "x");
        site.mode("src/default-new/made-later", 0o604);
    });
    scene.sync(&["-A", "src/", "dst"]).exit(0);
    scene.assert_equal("src", "dst");
}

/// A default ACL of the destination acts on new files as it does on any.
#[test]
fn default_acls_of_the_destination() {
    for flags in [&[][..], &["-A"], &["--no-perms"], &["-A", "--chmod=Fo-r"]] {
        let scene = Scene::new(|site| {
            site.files(&["src/a", "src/dir/b"]);
            site.mode("src/a", 0o640);
            site.mode("src/dir", 0o711);
            site.dir("dst");
            site.acl("dst", Acl::Default, &[(54_321, 7)], (12_345, 5));
        });
        scene.sync(&[flags, &["src/a", "src/dir", "dst/"]].concat());
    }
}

#[test]
fn xattrs_are_made_changed_and_taken_away() {
    let scene = Scene::new(|site| {
        for side in ["src", "dst"] {
            site.file(format!("{side}/file"), "same");
            site.dir(format!("{side}/dir"));
            site.symlink("x", format!("{side}/symlink"));
        }
        for name in ["file", "dir"] {
            site.xattr(format!("src/{name}"), "user.new", b"1");
            site.xattr(format!("src/{name}"), "user.changed", b"2");
            site.xattr(format!("dst/{name}"), "user.changed", b"3");
            site.xattr(format!("dst/{name}"), "user.gone", b"4");
        }
        site.xattr("src/symlink", "trusted.new", b"5");
        site.xattr("dst/symlink", "trusted.gone", b"6");
        site.file("src/other", "new content");
        site.xattr("src/other", "user.large", &[7; 3000]);
        site.file("dst/other", "old");
        site.xattr("dst/other", "user.gone", b"8");
    });
    scene.sync(&["-X", "src/", "dst"]).exit(0);
    scene.assert_equal("src", "dst");
}

#[test]
fn holes_are_found_and_made() {
    let page = 4096;
    for flags in [&["-S"][..], &["-S", "-I"], &["-S", "--inplace", "-I"]] {
        let scene = Scene::new(|site| {
            site.sparse("src/start", 1 << 20, &[(1 << 20) - page]);
            site.sparse("src/middle", 1 << 20, &[0, (1 << 20) - page]);
            site.sparse("src/end", 1 << 20, &[0]);
            site.sparse("src/all", 3 << 20, &[]);
            site.sparse("src/small", 20_000, &[8192]);
            site.sparse("src/odd", 1_000_001, &[page * 33]);
            site.sparse("src/alternating", 256 * page, &[0, 2 * page, 4 * page, 100 * page]);
            site.noise("dst/middle", 1 << 20);
            site.noise("dst/end", 2 << 20);
            site.sparse("dst/odd", 100, &[]);
        });
        scene.sync(&[flags, &["src/", "dst"]].concat()).exit(0);
    }
}
