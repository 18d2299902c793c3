//! One tree with everything that a file system can hold.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::scene::{Acl, Scene, Site, assert_rsync_finds_nothing};
use super::support::awkward_names;

impl Site<'_> {
    /// Builds it below `root`.
    pub fn everything(&self, root: &str) {
        let root = Path::new(root);
        self.dir(root.join("empty/in/empty"));
        self.all_names(&root.join("names"));
        self.all_sizes(&root.join("sizes"));
        self.all_modes(&root.join("modes"));
        self.all_links(&root.join("links"));
        self.all_kinds(&root.join("kinds"));
        self.all_xattrs(&root.join("xattrs"));
        self.all_times(&root.join("times"));
        self.all_owners(&root.join("owners"));
        self.file(root.join(deep(14)).join("file"), "at the bottom");
    }

    fn all_names(&self, root: &Path) {
        let more: &[&[u8]] = &[b"-leading", b"trailing.", b".hidden", b"tab\t", b"\r", b"\\#012"];
        for name in
            more.iter().map(|name| OsStr::from_bytes(name).to_owned()).chain(awkward_names())
        {
            self.file(root.join("files").join(&name), name.as_bytes());
            self.file(root.join("directories").join(&name).join("file"), "file");
            self.symlink(&name, root.join("symlinks").join(&name));
        }
    }

    fn all_sizes(&self, root: &Path) {
        for size in [0, 1, 4095, 65_535, 65_536, 65_537, 98_303, 98_304, 98_305, 300_000, 1_000_000]
        {
            self.noise(root.join(size.to_string()), size);
        }
        let page = 4096;
        self.sparse(root.join("hole"), 1 << 20, &[]);
        self.sparse(root.join("hole-start"), 1 << 20, &[(1 << 20) - page]);
        self.sparse(root.join("hole-middle"), 1 << 20, &[0, (1 << 20) - page]);
        self.sparse(root.join("hole-end"), 1 << 20, &[0]);
        let every_other: Vec<_> = (0..64).map(|number| number * 2 * page).collect();
        self.sparse(root.join("holes"), 128 * page, &every_other);
        self.sparse(root.join("hole-odd-end"), (1 << 20) + 17, &[65_536 * 3]);
    }

    fn all_modes(&self, root: &Path) {
        for mode in [0o555, 0o700, 0o2775, 0o1777, 0o000, 0o500] {
            let dir = root.join(format!("dir-{mode:04o}"));
            self.file(dir.join("file"), "in it");
            self.dir(dir.join("below"));
            self.mode(self.path(dir), mode);
        }
        for mode in [0o000, 0o400, 0o444, 0o777, 0o4755, 0o2755, 0o6711, 0o1644] {
            let file = root.join(format!("file-{mode:04o}"));
            self.file(&file, "with a mode");
            self.mode(file, mode);
        }
    }

    fn all_links(&self, root: &Path) {
        self.file(root.join("one"), "linked");
        for name in ["two", "three", "below/four", "below/deeper/five"] {
            self.hard_link(root.join("one"), root.join(name));
        }
        self.noise(root.join("large"), 200_000);
        self.hard_link(root.join("large"), root.join("a-directory-before/large"));
        self.file(root.join("empty"), "");
        self.hard_link(root.join("empty"), root.join("empty-too"));
        self.symlink("one", root.join("symlink"));
        self.hard_link(root.join("symlink"), root.join("symlink-too"));
        self.hard_link(root.join("symlink"), root.join("below/symlink-too"));
        self.fifo(root.join("fifo"));
        self.hard_link(root.join("fifo"), root.join("fifo-too"));
        for (name, target) in [
            ("absolute", "/etc/passwd"),
            ("dangling", "no/where"),
            ("directory", "below"),
            ("up", "../../.."),
            ("itself", "itself"),
            ("slashes", ".//below//"),
        ] {
            self.symlink(target, root.join(name));
        }
        self.symlink(OsStr::from_bytes(b"\xff\n\x01"), root.join("bytes"));
        self.symlink("t".repeat(4000), root.join("long"));
    }

    fn all_kinds(&self, root: &Path) {
        self.fifo(root.join("fifo"));
        self.socket(root.join("socket"));
        self.device(root.join("null"), true, 1, 3);
        self.device(root.join("block"), false, 7, 200);
        self.device(root.join("large-numbers"), true, 4000, 1_000_000);
        for (name, mode) in [("fifo", 0o600), ("socket", 0o755), ("null", 0o666), ("block", 0o660)]
        {
            self.mode(root.join(name), mode);
        }
        self.owner(root.join("block"), 0, 6);
    }

    fn all_xattrs(&self, root: &Path) {
        self.file(root.join("file"), "with attributes");
        self.dir(root.join("dir"));
        self.symlink("file", root.join("symlink"));
        for name in ["file", "dir"] {
            self.xattr(root.join(name), "user.text", b"text");
            self.xattr(root.join(name), "user.empty", b"");
            self.xattr(root.join(name), "user.bytes", b"\0\n\xff");
            self.xattr(root.join(name), "user.long", &[b'l'; 2000]);
        }
        for name in ["file", "dir", "symlink"] {
            self.xattr(root.join(name), "trusted.note", b"by root");
        }
        self.file(root.join("capable"), "may bind to low ports");
        self.xattr(root.join("capable"), "security.capability", NET_BIND_SERVICE);
        self.file(root.join("capable-owned"), "with another owner");
        self.owner(root.join("capable-owned"), 1234, 2345);
        self.xattr(root.join("capable-owned"), "security.capability", NET_BIND_SERVICE);
        self.file(root.join("acl"), "for some");
        self.acl(root.join("acl"), Acl::Access, &[(1, 6), (54_321, 4)], (12_345, 0));
        self.dir(root.join("acls/below"));
        self.acl(root.join("acls"), Acl::Access, &[(2, 7)], (3, 5));
        self.acl(root.join("acls"), Acl::Default, &[(54_321, 7)], (5, 4));
        self.file(root.join("acls/plain"), "without one, where the directory gives one");
        rustix::fs::lremovexattr(self.path(root.join("acls/plain")), "system.posix_acl_access")
            .unwrap();
        self.mode(root.join("acls/plain"), 0o600);
        for name in ["file", "dir"] {
            self.mode(root.join(name), 0o444);
        }
    }

    fn all_times(&self, root: &Path) {
        for (seconds, nanoseconds) in [
            (-1, 500_000_000),
            (-1_000_000_000, 1),
            (0, 0),
            (1, 999_999_999),
            (2_147_483_648, 1),
            (4_000_000_000, 999_999_999),
        ] {
            let file = root.join(format!("file-{seconds}"));
            self.file(&file, "with a time");
            self.time(&file, seconds, nanoseconds);
            let dir = root.join(format!("dir-{seconds}"));
            self.file(dir.join("file"), "in a directory with a time");
            self.time(&dir, seconds, nanoseconds);
            let symlink = root.join(format!("symlink-{seconds}"));
            self.symlink("target", &symlink);
            self.time(&symlink, seconds, nanoseconds);
        }
    }

    fn all_owners(&self, root: &Path) {
        for (user, group) in [(0, 0), (1, 0), (1, 2), (54_321, 12_345), (4_000_000_000, 7)] {
            let name = format!("{user}-{group}");
            self.file(root.join(&name).join("file"), "owned");
            self.symlink("target", root.join(&name).join("symlink"));
            for path in [root.join(&name).join("file"), root.join(&name).join("symlink")] {
                self.owner(path, user, group);
            }
            self.owner(root.join(&name), user, group);
        }
        self.file(root.join("setuid"), "of another");
        self.owner(root.join("setuid"), 54_321, 12_345);
        self.mode(root.join("setuid"), 0o6755);
    }
}

/// A path of so many names of 200 bytes.
pub fn deep(levels: usize) -> PathBuf {
    (0..levels).map(|level| format!("{level:-<200}")).collect()
}

/// `cap_net_bind_service=ep`, as the kernel keeps it.
const NET_BIND_SERVICE: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

const EVERYTHING: &[&str] = &["-aHAXS"];

fn with<'a>(flags: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [flags, more].concat()
}

/// META-1, META-4, ENTRY-17.
#[test]
fn everything_arrives_as_it_was() {
    let scene = Scene::new(|site| site.everything("src"));
    scene.sync(&with(EVERYTHING, &["src/", "dst"])).exit(0);
    scene.assert_equal("src", "dst");
    assert_rsync_finds_nothing(&scene.path("src"), &scene.path("dst"));
    scene.cp(&with(EVERYTHING, &["src", "again/"])).exit(0);
    scene.assert_equal("src", "again/src");
}

/// Through the smallest way in, and a second run that has nothing to do.
#[test]
fn a_second_run_changes_nothing_and_says_nothing() {
    let scene = Scene::new(|site| site.everything("src"));
    scene.sync(&with(EVERYTHING, &["src/", "dst"]));
    scene.sync(&with(EVERYTHING, &["-i", "src/", "dst"])).exit(0).print(&[]);
    scene.sync(&with(EVERYTHING, &["-i", "--delete", "--checksum", "src/", "dst"])).print(&[]);
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_the_real_one_does() {
    let scene = Scene::new(|site| {
        site.everything("src");
        site.files(&["dst/more", "dst/names/files", "dst/links/one"]);
    });
    let run = |flag: &str| {
        let both = scene.run("sync", &with(EVERYTHING, &["--delete", flag, "src/", "dst"]));
        let mut lines: Vec<_> = both.fastsync.lines().into_iter().map(<[u8]>::to_vec).collect();
        lines.sort_unstable();
        assert_eq!(both.fastsync.status.code(), Some(0), "{}", both.fastsync.err);
        lines
    };
    let would = run("-in");
    scene.holds("dst", &["links/", "links/one", "more", "names/", "names/files"]);
    assert_eq!(run("-i"), would);
    scene.assert_equal("src", "dst");
}

/// Every attribute is put right where the content is there, and nothing else than attributes.
#[test]
fn attributes_are_repaired_where_content_is_equal() {
    let mut scene = Scene::new(|site| site.everything("src"));
    scene.sync(&with(EVERYTHING, &["src/", "dst"]));
    scene.change(|site| {
        for name in ["sizes/1", "modes/file-4755", "xattrs/file", "xattrs/capable", "owners/setuid"]
        {
            let path = Path::new("dst").join(name);
            site.owner(&path, 3, 4);
            site.xattr(&path, "user.too-much", b"x");
            site.mode(&path, 0o604);
        }
        for name in ["empty", "modes/dir-2775", "xattrs/acls", "xattrs/dir"] {
            let path = Path::new("dst").join(name);
            site.owner(&path, 5, 6);
            site.acl(&path, Acl::Access, &[(9, 7)], (9, 7));
            site.acl(&path, Acl::Default, &[(9, 7)], (9, 7));
            site.time(&path, 1_000_000_000, 1);
        }
        site.owner("dst/links/symlink", 7, 8);
        site.time("dst/links/absolute", 1_000_000_000, 1);
        site.mode("dst/kinds/fifo", 0o666);
        site.owner("dst/kinds/null", 7, 8);
    });
    scene.sync(&with(EVERYTHING, &["src/", "dst"])).exit(0);
    scene.assert_equal("src", "dst");
}

/// Each wish alone: what is not asked for does not come along.
#[track_caller]
fn arrives_with(flags: &[&str]) {
    let scene = Scene::new(|site| site.everything("src"));
    scene.sync(&with(flags, &["src/", "dst"])).exit(0);
}

/// META-1.
#[test]
fn without_wishes_there_are_no_owners_links_and_attributes() {
    arrives_with(&["-D"]);
}

#[test]
fn links_and_nothing_else() {
    arrives_with(&["-D", "-H"]);
}

#[test]
fn owners_or_groups_and_nothing_else() {
    arrives_with(&["-D", "--owner"]);
    arrives_with(&["-D", "--group"]);
}

#[test]
fn xattrs_and_nothing_else() {
    arrives_with(&["-D", "-X"]);
}

#[test]
fn acls_and_nothing_else() {
    arrives_with(&["-D", "-A"]);
}

#[test]
fn archive_with_and_without_times_of_directories() {
    arrives_with(&["-a"]);
    arrives_with(&["-a", "--omit-dir-times"]);
}

#[test]
fn numbers_of_owners_are_kept() {
    arrives_with(&["-aHAX", "--numeric-ids"]);
}
