//! Which names take part: exclude and include rules, files of rules, lists of names, depth.

use super::scene::Scene;

/// Names for patterns to be tried on.
fn names() -> Scene {
    Scene::new(|site| {
        site.files(&[
            "src/a",
            "src/a.c",
            "src/a.o",
            "src/b.c",
            "src/[x]",
            "src/star*",
            "src/UP.C",
            "src/dir/a",
            "src/dir/a.o",
            "src/dir/dir/a",
            "src/dir/dir/b.o",
            "src/foo/bar/baz/file",
            "src/foo/bar/file",
            "src/foo/file",
            "src/foo/baz",
            "src/bar/foo",
            "src/core",
            "src/sub/core/file",
            "src/sub/a\\b",
            "dst/a.o",
            "dst/more",
            "dst/foo/more.o",
        ]);
        site.dir("src/empty/dir");
        site.symlink("foo", "src/link");
    })
}

#[track_caller]
fn match_as_in_rsync(patterns: &[&str]) {
    for pattern in patterns {
        names().sync(&["--delete", &format!("--exclude={pattern}"), "src/", "dst"]);
    }
}

#[test]
fn names_and_paths_match_as_in_rsync() {
    match_as_in_rsync(&[
        "a", "/a", "*.o", "/*.o", "dir/", "dir", "/dir/", "/dir/*", "/dir/**", "/dir/***", "dir/a",
    ]);
}

#[test]
fn stars_match_as_in_rsync() {
    match_as_in_rsync(&[
        "/foo/*/file",
        "/foo/**/file",
        "foo/**",
        "**/foo",
        "**foo**",
        "foo/***",
        "/foo/bar/***",
        "bar/file",
        "*/file",
        "**/file",
        "/**/file",
    ]);
}

#[test]
fn brackets_and_backslashes_match_as_in_rsync() {
    match_as_in_rsync(&[
        "[ab].c",
        "[!a].c",
        "[^a].c",
        "[a-b].?",
        "[[:lower:]].c",
        "[[:upper:]]*",
        "\\[x\\]",
        "[[]x]",
        "star\\*",
        "a\\b",
        "a\\\\b",
    ]);
}

#[test]
fn what_matches_almost_all_matches_as_in_rsync() {
    match_as_in_rsync(&[
        "?", "??", "*", "**", "***", "*/", "link", "link/", "core", "core/", ".", "foo/baz/",
        "//a", "b*r", "/foo/b**", "/foo/b*z",
    ]);
}

/// SEL-1, SEL-2.
#[test]
fn the_first_rule_that_matches_decides() {
    for rules in [
        &["--include=a.o", "--exclude=*.o"][..],
        &["--exclude=*.o", "--include=a.o"],
        &["--include=*/", "--include=*.c", "--exclude=*"],
        &["--include=/foo/", "--include=/foo/bar/", "--include=/foo/bar/***", "--exclude=*"],
        &["--include=/foo/***", "--exclude=/*"],
        &["--include=dir/***", "--exclude=*"],
        &["--filter=- *.o", "--filter=+ *"],
        &["--filter=+ a.o", "--filter=exclude *.o"],
        &["--filter=include,r a.o", "--filter=-,s *.o"],
        &["--filter=-! */", "--delete"],
        &["--filter=-! *.c", "--include=*/"],
        &["--filter=- *.o", "--filter=!", "--filter=- *.c"],
        &["--exclude=*.o", "--filter=clear", "--exclude=core"],
        &["--filter=S a.o", "--filter=H *.o"],
        &["--exclude=/foo", "--include=/foo/bar/file"],
        &["--filter=-_*.o"],
    ] {
        names().sync(&[rules, &["src/", "dst"]].concat());
    }
}

#[test]
fn anchors_begin_at_the_root_of_the_transfer() {
    for (pattern, source) in [
        ("/a", "src/"),
        ("/src/a", "src/"),
        ("/a", "src"),
        ("/src/a", "src"),
        ("/src/foo/", "src"),
        ("src/", "src"),
        ("src/*.o", "src"),
        ("/foo", "src/foo"),
        ("/bar", "src/foo/"),
        ("foo/bar", "src/foo"),
    ] {
        names().sync(&[&format!("--exclude={pattern}"), source, "dst"]).exit(0);
    }
}

#[test]
fn rules_come_from_files() {
    let rules = "# a comment\n; another\n\n*.o\n+ keep\n- core\n  leading\n";
    for flags in [
        &["--exclude-from=rules"][..],
        &["--include-from=rules", "--exclude=*"],
        &["-0", "--exclude-from=zeroes"],
        &["--from0", "--exclude-from=zeroes"],
        &["--filter=merge merged"],
        &["--filter=. merged", "--exclude=a"],
        &["--filter=.- rules"],
        &["--filter=.+ rules", "--exclude=*"],
        &["--exclude-from=cleared"],
        &["--exclude-from=crlf"],
    ] {
        let scene = Scene::new(|site| {
            for name in
                ["a", "a.o", "keep", "core", "dir/a.o", "dir/keep.o", "  leading", "leading"]
            {
                site.file(format!("src/{name}"), name);
            }
            site.file("rules", rules);
            site.file("zeroes", "*.o\0core\0# not a comment\0");
            site.file("merged", "+ keep.o\n- *.o\n- /core\nexclude keep\n");
            site.file("cleared", "*.o\n!\ncore\n");
            site.file("crlf", "*.o\r\ncore\r\n");
        });
        scene.sync(&[flags, &["src/", "dst"]].concat());
    }
}

#[test]
fn a_file_of_rules_that_is_not_there_is_an_error() {
    for flag in ["--exclude-from=none", "--filter=merge none", "--files-from=none"] {
        let scene = names();
        let both = scene.run("sync", &[flag, "src/", "dst"]);
        for ran in [both.rsync, both.fastsync] {
            assert_ne!(ran.status.code(), Some(0), "{}", ran.err);
        }
        scene.holds("dst", &["a.o", "foo/", "foo/more.o", "more"]);
    }
}

/// Rules that lie among the files.
fn with_merge_files() -> Scene {
    Scene::new(|site| {
        for dir in ["", "one/", "one/below/", "two/"] {
            for name in ["a", "a.o", "b.o", "core", "keep.o"] {
                site.file(format!("src/{dir}{name}"), name);
            }
        }
        site.file("src/.rules", "- b.o\n- /core\n");
        site.file("src/one/.rules", "+ keep.o\n- *.o\n- /a\n");
        site.file("src/one/below/.rules", "!\n- core\n");
        site.file("src/.plain", "*.o\n# comment\n/core\n");
        site.file("src/one/.plain", "!\na\n");
        site.file("src/two/.words", "a core\n*.o");
        for name in ["src/one/.sides", "dst/one/.sides"] {
            site.file(name, "- *.o\n- a\n");
        }
        for name in ["dst/b.o", "dst/one/a.o", "dst/one/more", "dst/one/more.o", "dst/two/more.o"] {
            site.file(name, "at the destination");
        }
        site.file("dst/two/.rules", "P more.o\n");
    })
}

/// SEL-2.
#[test]
fn files_of_rules_in_directories_count_from_there_on() {
    for flags in [
        &["--filter=: .rules"][..],
        &["--filter=dir-merge .rules", "--delete-after"],
        &["--filter=:n .rules"],
        &["--filter=:n .rules", "--delete-after"],
        &["--filter=:e .rules"],
        &["--filter=:en .rules", "--delete-after"],
        &["--filter=:- .plain"],
        &["--filter=:- .plain", "--delete-after"],
        &["--filter=:n- .plain"],
        &["--filter=:+ .plain", "--exclude=b.o"],
        &["--filter=:-w .words"],
        &["--filter=:w- .words", "--filter=: .rules"],
        &["--filter=:s .sides", "--delete-after"],
        &["--filter=:r .sides", "--delete-after"],
        &["--filter=: .rules", "--exclude=a", "--delete-excluded", "--delete-after"],
        &["--exclude=keep.o", "--filter=: .rules"],
        &["--filter=: .rules", "--exclude=keep.o"],
        &["--filter=: .absent", "--exclude=a"],
        &["--exclude=/one/.rules", "--filter=: .rules"],
    ] {
        with_merge_files().sync(&[flags, &["src/", "dst"]].concat());
    }
}

/// SEL-4.
#[test]
fn a_list_says_what_is_copied() {
    for (list, flags) in [
        ("a\nfoo/file\n", &["--files-from=list"][..]),
        ("a\0foo/file\0foo/bar", &["--files-from=list", "-0"]),
        ("new\nline\0a\0", &["--files-from=list", "--from0"]),
        ("foo\n", &["--files-from=list"]),
        ("foo/\n", &["--files-from=list"]),
        ("foo\n", &["--files-from=list", "--recursive"]),
        ("foo/bar\nfoo/bar/baz/file\n", &["--files-from=list", "--recursive"]),
        ("# comment\n; comment\n\na\n", &["--files-from=list"]),
        ("/a\n/foo/file\n", &["--files-from=list"]),
        ("a\r\nfoo/file\r\n", &["--files-from=list"]),
        ("a\na\nfoo/file\nfoo/file\n", &["--files-from=list"]),
        ("empty\nlink\n", &["--files-from=list"]),
        ("a\nabsent\nfoo/file\n", &["--files-from=list"]),
    ] {
        let scene = Scene::new(|site| {
            site.files(&["src/a", "src/foo/file", "src/foo/bar/file", "src/foo/bar/baz/file"]);
            site.files(&["src/not-listed", "outside", "src/new\nline", "dst/foo/more", "dst/more"]);
            site.mode("src/foo", 0o750);
            site.mode("src/foo/bar", 0o711);
            site.time("src/foo", 1_000_000_000, 1);
            site.dir("src/empty");
            site.symlink("foo", "src/link");
            site.file("list", list);
        });
        scene.sync(&[flags, &["src/", "dst"]].concat());
    }
}
