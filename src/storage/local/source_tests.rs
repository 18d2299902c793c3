//! Tests of [`LocalSource`]: what it finds, what it says of it, and what it removes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode as FsMode};

use super::LocalSource;
use super::testing::{options, pool};
use crate::protocol::chunk::{ChunkSize, EntryId};
use crate::protocol::message::{
    Entry, Failure, FailureCode, FileKind, Keep, Kind, Links, Options, Special,
};
use crate::storage::{Found, Source as _, StorageError};

/// A directory to make things in, and to walk.
struct Ground(tempfile::TempDir);

impl Ground {
    /// Makes files, with their paths as content, and directories where a path ends in a slash.
    fn new(paths: &[&str]) -> Self {
        let ground = Self(tempfile::tempdir().unwrap());
        for path in paths {
            ground.make(path);
        }
        ground
    }

    fn make(&self, path: &str) {
        let full = self.path(path);
        if path.ends_with('/') {
            fs::create_dir_all(full).unwrap();
        } else {
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(full, path).unwrap();
        }
    }

    fn link(&self, path: &str, target: &str) {
        symlink(target, self.path(path)).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    async fn walk(&self, sources: &[&str]) -> Walked {
        self.walk_with(sources, &options()).await
    }

    async fn walk_with(&self, sources: &[&str], options: &Options) -> Walked {
        self.find(sources, options, None).await
    }

    async fn find(&self, sources: &[&str], options: &Options, paths: Option<&[&str]>) -> Walked {
        let sources: Vec<_> = sources.iter().map(|path| self.path(path)).collect();
        let paths = paths.map(|paths| paths.iter().map(|path| path.as_bytes().to_vec()).collect());
        let source = LocalSource::open(&sources, options, paths).unwrap();
        Walked::of(source).await
    }
}

/// What a walk came across.
struct Walked {
    source: LocalSource,
    found: Vec<Found>,
    result: Result<(), StorageError>,
}

impl Walked {
    async fn of(source: LocalSource) -> Self {
        let (sender, receiver) = flume::unbounded();
        let result = source.walk(sender).await;
        let walked = Self { source, found: receiver.into_iter().flatten().collect(), result };
        walked.check();
        walked
    }

    /// Identities rise, parents come first and are directories, names are unique (ENTRY-3).
    fn check(&self) {
        let mut names = std::collections::HashSet::new();
        let mut directories = vec![EntryId::ROOT];
        let mut last = EntryId::ROOT;
        for entry in self.entries() {
            assert!(entry.id > last && directories.contains(&entry.parent), "{entry:?}");
            assert!(names.insert((entry.parent, entry.name.clone())), "{entry:?}");
            last = entry.id;
            if entry.kind == Kind::Directory {
                directories.push(entry.id);
            }
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.found.iter().filter_map(|found| match found {
            Found::Entry(entry) => Some(entry),
            _ => None,
        })
    }

    fn path(&self, entry: &Entry) -> String {
        String::from_utf8(self.source.path(entry)).unwrap()
    }

    /// Every path with a letter for its kind, sorted, in one line.
    fn text(&self) -> String {
        let mut all: Vec<_> = self
            .entries()
            .map(|entry| {
                let kind = match &entry.kind {
                    Kind::Directory => "/".to_owned(),
                    Kind::File(_) => String::new(),
                    Kind::Symlink { .. } => "@".to_owned(),
                    Kind::Unsendable(_) => "!".to_owned(),
                    Kind::Special(_) => "|".to_owned(),
                    Kind::HardLink { leader } => format!("={}", leader.0),
                    Kind::Unselected => "-".to_owned(),
                };
                self.path(entry) + &kind
            })
            .collect();
        all.sort();
        all.join(" ")
    }

    fn entry(&self, path: &str) -> &Entry {
        self.entries().find(|entry| self.path(entry) == path).unwrap()
    }

    fn failure(&self, path: &str) -> &Failure {
        match &self.entry(path).kind {
            Kind::Unsendable(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    fn complaints(&self) -> Vec<&Failure> {
        let complaints = self.found.iter().filter_map(|found| match found {
            Found::Complaint(complaint) => Some(&complaint.failure),
            _ => None,
        });
        complaints.collect()
    }

    /// The paths of directories that were listed completely, sorted; `.` is ROOT.
    fn listed(&self) -> String {
        let path = |id: EntryId| match self.entries().find(|entry| entry.id == id) {
            Some(entry) => self.path(entry),
            None => ".".to_owned(),
        };
        let mut all: Vec<_> = self
            .found
            .iter()
            .filter_map(|found| match found {
                Found::Listed(id) => Some(path(*id)),
                _ => None,
            })
            .collect();
        all.sort();
        all.join(" ")
    }

    fn all(&self) -> Vec<Arc<Entry>> {
        self.entries().cloned().map(Arc::new).collect()
    }
}

fn with(change: impl FnOnce(&mut Options)) -> Options {
    let mut options = options();
    change(&mut options);
    options
}

fn links(links: Links) -> Options {
    with(|options| options.select.links = links)
}

/// Waits until the next change of a file gets another time than the last.
fn let_time_pass() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}

fn make_fifo(path: &Path) {
    let mode = FsMode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
}

#[tokio::test]
async fn names_are_bytes() {
    let ground = Ground::new(&[]);
    let mut names = vec![b"-rf".to_vec(), b"a\nb".to_vec(), b"\xff\xfe".to_vec(), vec![b'x'; 255]];
    for name in &names {
        fs::write(ground.0.path().join(OsStr::from_bytes(name)), b"").unwrap();
    }
    let walked = ground.walk(&[""]).await;
    let mut found: Vec<_> = walked.entries().map(|entry| walked.source.path(entry)).collect();
    found.sort();
    names.sort();
    assert_eq!(found, names);
    assert!(!walked.source.is_single_file());
}

#[tokio::test]
async fn special_files_are_told_and_never_opened() {
    let ground = Ground::new(&["dir/"]);
    make_fifo(&ground.path("dir/fifo"));
    ground.link("dir/link", "../nowhere");
    let _socket = std::os::unix::net::UnixListener::bind(ground.path("dir/socket")).unwrap();
    let walked = ground.walk(&["dir"]).await;
    assert_eq!(walked.text(), "dir/ dir/fifo! dir/link@ dir/socket!");
    assert_eq!(walked.entry("dir/link").kind, Kind::Symlink { target: b"../nowhere".to_vec() });
    for path in ["dir/fifo", "dir/socket"] {
        let failure = walked.failure(path);
        assert_eq!(failure.code, FailureCode::Unsupported);
        assert!(failure.text().contains("special files are not transferred without -D"));
    }
    assert_eq!(walked.listed(), "dir", "they are there, and said to be");
    let walked = ground.walk_with(&["dir/"], &with(|it| it.preserve.specials = true)).await;
    assert_eq!(walked.text(), "fifo| link@ socket|");
    assert_eq!(walked.entry("fifo").kind, Kind::Special(Special::Fifo));
    assert_eq!(walked.entry("socket").kind, Kind::Special(Special::Socket));
}

#[tokio::test]
async fn devices_have_numbers() {
    let source = |devices| {
        let options = with(|options| options.preserve.devices = devices);
        LocalSource::open(&["/dev/null".into()], &options, None).unwrap()
    };
    let walked = Walked::of(source(true)).await;
    let null = Special::CharacterDevice { major: 1, minor: 3 };
    assert_eq!(walked.entry("null").kind, Kind::Special(null));
    assert!(walked.source.is_single_file());
    assert!(Walked::of(source(false)).await.failure("null").text().contains("a device"));
}

/// ENTRY-1.
#[tokio::test]
async fn a_slash_decides_what_is_at_the_top() {
    let ground = Ground::new(&["dir/file"]);
    ground.link("link", "dir");
    let paths = async |name: &str, how| {
        let walked = ground.walk_with(&[name], &links(how)).await;
        (walked.source.is_single_file(), walked.text())
    };
    for (name, expected) in [
        ("dir", (false, "dir/ dir/file")),
        ("dir/", (false, "file")),
        ("dir/.", (false, "file")),
        ("link", (true, "link@")),
        ("link/", (false, "file")),
        ("dir/file", (true, "file")),
    ] {
        assert_eq!(paths(name, Links::Keep).await, (expected.0, expected.1.to_owned()), "{name}");
    }
    assert_eq!(paths("link", Links::Follow).await, (false, "link/ link/file".to_owned()));
}

#[tokio::test]
async fn no_two_entries_share_a_name_at_the_top() {
    let ground = Ground::new(&["a/same", "b/same", "c/same/"]);
    let walked = ground.walk(&["a/", "b/", "c/same"]).await;
    let entries: Vec<_> = walked.entries().collect();
    assert_eq!(entries.len(), 3);
    for (entry, own) in entries[1..].iter().zip(["b/same", "c/same"]) {
        let Kind::Unsendable(failure) = &entry.kind else { panic!("{entry:?}") };
        assert_eq!(failure.code, FailureCode::Conflict);
        assert!(failure.text().contains(own) && failure.text().contains("a/same"), "{failure}");
    }
}

/// T56. Root may open everything, so there is nothing to see for it.
#[tokio::test]
async fn a_directory_without_permission_is_told() {
    let ground = Ground::new(&["closed/file"]);
    fs::set_permissions(ground.path("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    let walked = ground.walk(&[""]).await;
    if !rustix::process::geteuid().is_root() {
        assert_eq!(walked.failure("closed").code, FailureCode::Permission);
        assert_eq!(walked.listed(), ".", "but nothing in it may be deleted");
    }
    fs::set_permissions(ground.path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn the_walk_ends_when_nobody_listens() {
    let ground = Ground::new(&[]);
    (0..100).for_each(|number| ground.make(&number.to_string()));
    let source = LocalSource::open(&[ground.path("")], &options(), None).unwrap();
    let (sender, receiver) = flume::bounded(1);
    drop(receiver);
    source.walk(sender).await.unwrap();
}

/// DEL-2.
#[tokio::test]
async fn complete_listings_are_told() {
    let ground = Ground::new(&["a/b/c/", "a/file", "b/x", "single"]);
    assert_eq!(ground.walk(&["a/"]).await.listed(), ". b b/c");
    assert_eq!(ground.walk(&["a"]).await.listed(), "a a/b a/b/c");
    assert_eq!(ground.walk(&["a/", "b/"]).await.listed(), ". b b/c");
    assert_eq!(ground.walk(&["a/", "single"]).await.listed(), ". b b/c");
    assert_eq!(ground.walk(&["single"]).await.listed(), "");
    let walked = ground.walk_with(&["a/"], &with(|it| it.select.max_depth = Some(1))).await;
    assert_eq!((&*walked.text(), &*walked.listed()), ("b/ file", "."));
    let walked = ground.walk_with(&["a/"], &with(|it| it.select.max_depth = Some(2))).await;
    assert_eq!((&*walked.text(), &*walked.listed()), ("b/ b/c/ file", ". b"));
    for source in ["a", "a/"] {
        let none = ground.walk_with(&[source], &with(|it| it.select.max_depth = Some(0))).await;
        assert_eq!((&*none.text(), &*none.listed()), ("", ""));
    }
}

#[tokio::test]
async fn a_missing_source_does_not_stop_the_others() {
    let ground = Ground::new(&["a/x", "a/gone"]);
    let walked = ground.walk(&["gone", "a/"]).await;
    assert!(walked.result.is_ok());
    assert_eq!(walked.text(), "gone gone~2! x", "what is there keeps its name");
    let failure = walked.failure("gone~2");
    assert_eq!(failure.code, FailureCode::Io);
    assert!(failure.text().contains("No such file"), "{failure}");
    assert_eq!(walked.listed(), "");
    let walked = ground.walk(&["none/", "a/"]).await;
    assert_eq!((&*walked.text(), &*walked.listed()), ("gone x", ""));
    let error = walked.result.unwrap_err();
    assert!(error.to_string().contains("none/"), "{error}");
    let walked = ground.walk(&["none/", "nothing/", "a/x"]).await;
    assert!(!walked.source.is_single_file());
    assert_eq!(walked.complaints().len(), 1, "the second error is not lost");
}

#[tokio::test]
async fn metadata_is_told() {
    let ground = Ground::new(&["dir/file"]);
    fs::set_permissions(ground.path("dir/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    let walked = ground.walk(&["dir"]).await;
    let expected = fs::metadata(ground.path("dir/file")).unwrap();
    let metadata = &walked.entry("dir/file").metadata;
    assert_eq!((metadata.owner, metadata.group), (expected.uid(), expected.gid()));
    assert_eq!(metadata.mode.bits(), 0o4751);
    assert_eq!(metadata.mtime.seconds, expected.mtime());
    assert_eq!(i64::from(metadata.mtime.nanoseconds()), expected.mtime_nsec());
    let owners = walked.found.iter().filter(|found| matches!(found, Found::Owners { .. }));
    assert_eq!(owners.count(), 0, "nobody asked");
}

#[tokio::test]
async fn owners_are_told_before_their_entries() {
    let ground = Ground::new(&["dir/a", "dir/b"]);
    if std::os::unix::fs::chown(ground.path("dir/b"), Some(1), Some(1)).is_err() {
        return; // only the superuser may
    }
    let options = with(|options| options.preserve.owner = Keep::IfAllowed);
    let walked = ground.walk_with(&["dir"], &options).await;
    let at = |test: &dyn Fn(&Found) -> bool| walked.found.iter().position(test).unwrap();
    let is_b = |it: &Found| matches!(it, Found::Entry(it) if it.name.as_bytes() == b"b");
    let owners = at(&|it| matches!(it, Found::Owners { .. }));
    assert!(owners < at(&is_b));
    let Found::Owners { users, groups } = &walked.found[owners] else { unreachable!() };
    assert!(users.len() == 1 && users[0].id == 1 && groups.is_empty());
}

#[tokio::test]
async fn attributes_are_told_if_asked_for() {
    let ground = Ground::new(&["dir/file"]);
    ground.link("dir/link", "file");
    for path in ["dir", "dir/file"] {
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(ground.path(path), "user.x", b"value", flags).is_err() {
            return; // this file system has none
        }
    }
    let value = |walked: &Walked, path: &str| {
        let attributes = walked.entry(path).metadata.attributes.iter();
        attributes.filter(|it| it.name == b"user.x").map(|it| it.value.clone()).next()
    };
    let asked = with(|options| {
        options.preserve.attributes = true;
        options.preserve.root = true;
    });
    for how in [Links::Keep, Links::Follow] {
        let asked = Options { select: links(how).select, ..asked.clone() };
        let walked = ground.walk_with(&["dir"], &asked).await;
        assert_eq!(value(&walked, "dir").as_deref(), Some(&b"value"[..]));
        assert_eq!(value(&walked, "dir/file").as_deref(), Some(&b"value"[..]));
        assert_eq!(value(&walked, "dir/link").is_some(), how == Links::Follow);
        assert!(walked.complaints().is_empty() && walked.source.root().is_none());
    }
    let root = ground.walk_with(&["dir/"], &asked).await.source.root().unwrap();
    assert!(root.attributes.iter().any(|it| it.name == b"user.x"));
    assert_eq!(value(&ground.walk(&["dir"]).await, "dir/file"), None);
}

#[tokio::test]
async fn the_root_is_told_of_the_first_contents() {
    let ground = Ground::new(&["a/", "b/"]);
    fs::set_permissions(ground.path("b"), fs::Permissions::from_mode(0o710)).unwrap();
    let asked = with(|options| options.preserve.root = true);
    let root = ground.walk_with(&["a", "b/", "a/"], &asked).await.source.root().unwrap();
    assert_eq!(root.mode.bits(), 0o710);
    assert!(ground.walk(&["b/"]).await.source.root().is_some(), "the sink decides");
    assert_eq!(ground.find(&["b/"], &asked, Some(&["x"])).await.source.root(), None);
    assert!(ground.find(&["b/"], &asked, Some(&["."])).await.source.root().is_some());
}

#[tokio::test]
async fn hard_links_lead_to_their_first_name() {
    let ground = Ground::new(&["a/1", "b/"]);
    for name in ["a/2", "b/3"] {
        fs::hard_link(ground.path("a/1"), ground.path(name)).unwrap();
    }
    ground.link("a/link", "x");
    fs::hard_link(ground.path("a/link"), ground.path("b/link")).unwrap();
    let kept = with(|options| options.preserve.hard_links = true);
    let walked = ground.walk_with(&[""], &kept).await;
    let leaders: Vec<_> = walked.entries().filter(|entry| entry.is_linked).collect();
    assert_eq!(leaders.len(), 2);
    let led = |entry: &&Entry| matches!(entry.kind, Kind::HardLink { leader } if leaders.iter().any(|it| it.id == leader && it.id < entry.id));
    assert_eq!(walked.entries().filter(led).count(), 3);
    let without = ground.walk(&[""]).await;
    assert_eq!(without.text(), "a/ a/1 a/2 a/link@ b/ b/3 b/link@");
    assert!(without.entries().all(|entry| !entry.is_linked));
    let small = with(|options| {
        options.preserve.hard_links = true;
        options.select.min_size = Some(100);
    });
    let walked = ground.walk_with(&["a"], &small).await;
    assert_eq!(walked.text(), "a/ a/1- a/2- a/link@", "nothing is led by what is not sent");
}

#[tokio::test]
async fn sizes_decide_about_files_only() {
    let ground = Ground::new(&["a", "bb", "ccc", "d/"]);
    ground.link("l", "a");
    let sizes = with(|options| {
        options.select.min_size = Some(2);
        options.select.max_size = Some(2);
    });
    let walked = ground.walk_with(&[""], &sizes).await;
    assert_eq!((&*walked.text(), &*walked.listed()), ("a- bb ccc- d/ l@", ". d"));
}

#[tokio::test]
async fn filters_hide() {
    let ground = Ground::new(&["a/x", "a/y", "a/b/x", "a/b/.rules", "a/b/z", "x/1", "other"]);
    fs::write(ground.path("a/b/.rules"), "- z\n- .rules").unwrap();
    let rules = |rules: &[&str]| {
        with(|it| it.select.filters = rules.iter().map(|rule| rule.as_bytes().to_vec()).collect())
    };
    let walked = ground.walk_with(&["", "other"], &rules(&["- x", "- other"])).await;
    assert_eq!(walked.text(), "a/ a/b/ a/b/.rules a/b/z a/y");
    assert_eq!(walked.listed(), ". a a/b");
    let walked = ground.walk_with(&["a"], &rules(&[": .rules"])).await;
    assert_eq!(walked.text(), "a/ a/b/ a/b/x a/x a/y");
    fs::remove_file(ground.path("a/b/.rules")).unwrap();
    ground.link("a/b/.rules", "/etc/passwd");
    let walked = ground.walk_with(&["a"], &rules(&[": .rules"])).await;
    assert_eq!((&*walked.text(), &*walked.listed()), ("a/ a/b/ a/x a/y", "a"));
    assert!(walked.result.unwrap_err().to_string().contains("a/b"));
    ground.link("dangling", "nowhere");
    let followed = with(|options| {
        options.select.filters = vec![b"- dangling".to_vec(), b"- a".to_vec()];
        options.select.links = Links::Follow;
    });
    let walked = ground.walk_with(&[""], &followed).await;
    assert_eq!(walked.text(), "other x/ x/1", "what is hidden cannot fail");
    assert!(LocalSource::open(&[ground.path("")], &rules(&["nonsense"]), None).is_err());
}

#[tokio::test]
async fn modes_are_changed() {
    let ground = Ground::new(&["dir/file"]);
    ground.link("dir/link", "file");
    let chmod = |text: &str| {
        with(|options| {
            options.preserve.chmod = text.as_bytes().to_vec();
            options.preserve.root = true;
        })
    };
    let walked = ground.walk_with(&["dir"], &chmod("D2750,F640")).await;
    let mode = |path: &str| walked.entry(path).metadata.mode.bits();
    assert_eq!((mode("dir"), mode("dir/file"), mode("dir/link")), (0o2750, 0o640, 0o777));
    let walked = ground.walk_with(&["dir/"], &chmod("D711")).await;
    assert_eq!(walked.source.root().unwrap().mode.bits(), 0o711);
    let error = LocalSource::open(&[ground.path("dir")], &chmod("u+q"), None).unwrap_err();
    assert!(error.to_string().contains("u+q"), "{error}");
}

#[tokio::test]
async fn symlinks_are_followed() {
    let ground = Ground::new(&["s/file", "s/dir/x", "out/y"]);
    for (path, target) in [
        ("s/to-file", "file"),
        ("s/to-dir", "dir"),
        ("s/to-out", "../out"),
        ("s/abs", "/etc/hostname-that-is-not-there"),
        ("s/dangling", "nowhere"),
        ("s/dir/up", ".."),
        ("s/dir/self", "."),
        ("s/loop", "loop"),
    ] {
        ground.link(path, target);
    }
    let walked = ground.walk_with(&["s/"], &links(Links::Follow)).await;
    assert_eq!(
        walked.text(),
        "abs! dangling! dir/ dir/self! dir/up! dir/x file loop! to-dir/ to-dir/self! to-dir/up! \
         to-dir/x to-file to-out/ to-out/y"
    );
    assert_eq!(walked.listed(), "dir to-dir to-out", "what leads nowhere may be an error");
    let failure = walked.failure("dangling");
    assert_eq!(failure.text(), "symlink dangling has no referent");
    assert_eq!(failure.code, FailureCode::Io);
    let text = walked.failure("dir/self").text();
    assert!(text.starts_with("dir/self leads back to dir, "), "{text}");
    assert!(walked.failure("dir/up").text().contains(&*ground.path("s/").to_string_lossy()));

    let walked = ground.walk_with(&["s/"], &links(Links::FollowUnsafe)).await;
    assert_eq!(
        walked.text(),
        "abs! dangling@ dir/ dir/self@ dir/up@ dir/x file loop@ to-dir@ to-file@ to-out/ to-out/y"
    );
    let walked = ground.walk_with(&["s"], &links(Links::FollowUnsafe)).await;
    assert!(walked.text().contains("s/to-out@"), "it stays below the top");

    let walked = ground.walk_with(&["s/"], &links(Links::OnlySafe)).await;
    assert_eq!(
        walked.text(),
        "abs- dangling@ dir/ dir/self@ dir/up@ dir/x file loop@ to-dir@ to-file@ to-out-"
    );
    assert_eq!(walked.listed(), ". dir");
}

#[tokio::test]
async fn what_a_symlink_leads_to_is_read() {
    let ground = Ground::new(&["s/", "target/deep/file"]);
    ground.link("s/file", "../target/deep/file");
    ground.link("s/dir", "../target");
    let walked = ground.walk_with(&["s/"], &links(Links::Follow)).await;
    assert_eq!(walked.text(), "dir/ dir/deep/ dir/deep/file file");
    for entry in walked.all().into_iter().filter(|entry| matches!(entry.kind, Kind::File(_))) {
        let file = walked.source.open(Arc::clone(&entry)).await.unwrap();
        let size = entry.size();
        let range = ChunkSize::DEFAULT.range(entry.id, 0, size).unwrap();
        walked.source.read(file.clone(), range, 0, &pool()).await.unwrap().verify().unwrap();
        walked.source.confirm(file).await.unwrap();
        let again = walked.source.look_again(Arc::clone(&entry)).await.unwrap();
        assert_eq!(again, *entry);
    }
    let entry = Arc::new(walked.entry("file").clone());
    fs::write(ground.path("target/deep/file"), "changed").unwrap();
    let opened = walked.source.open(Arc::clone(&entry)).await;
    assert!(matches!(opened, Err(StorageError::Changed { .. })));
    let again = walked.source.look_again(entry).await.unwrap();
    assert!(matches!(again.kind, Kind::File(FileKind { size: 7, .. })));
    // Not even the superuser's wish makes a kept symlink a file.
    let kept = ground.walk(&["s/"]).await;
    assert_eq!(kept.text(), "dir@ file@");
}

#[tokio::test]
async fn a_deep_directory_behind_a_symlink_is_opened_again() {
    let ground = Ground::new(&["s/"]);
    let levels: Vec<_> = (0..60).map(|level| format!("d{level}/")).collect();
    let deep = levels.concat();
    ground.make(&format!("target/{deep}file"));
    (0..80).for_each(|number| ground.make(&format!("target/other{number}/x")));
    ground.link("s/link", "../target");
    let walked = ground.walk_with(&["s/"], &links(Links::Follow)).await;
    let entry = walked.entry(&format!("link/{deep}file"));
    assert!(walked.source.open(Arc::new(entry.clone())).await.is_ok());
    assert!(walked.result.is_ok());
}

#[tokio::test]
async fn other_file_systems_are_not_entered() {
    // A directory of which most systems have a part mounted from elsewhere.
    let source = |paths: Option<Vec<Vec<u8>>>| {
        let options = with(|options| {
            options.select.one_file_system = true;
            options.select.whole_directories = true;
        });
        LocalSource::open(&["/dev/".into()], &options, paths).unwrap()
    };
    let device = |path: &str| fs::symlink_metadata(path).map(|it| it.dev()).ok();
    let mounts = ["pts", "shm", "mqueue"];
    let is_mount = |name: &str| {
        let own = device(&format!("/dev/{name}"));
        own.is_some() && own != device("/dev")
    };
    let mount = mounts.into_iter().find(|name| is_mount(name));
    let mount = mount.expect("something is mounted below /dev");
    let walked = Walked::of(source(None)).await;
    let id = walked.entry(mount).id;
    assert_eq!(walked.entry(mount).kind, Kind::Directory);
    assert!(walked.entries().all(|entry| entry.parent != id));
    assert!(!walked.listed().split(' ').any(|path| path == mount));
    let named = Walked::of(source(Some(vec![mount.as_bytes().to_vec()]))).await;
    assert_eq!(named.listed(), mount, "it was asked for");
}

#[tokio::test]
async fn only_what_was_asked_for_is_found() {
    let ground =
        Ground::new(&["s/a/b/c", "s/a/b/d", "s/a/x", "s/dir/sub/y", "s/dir/z", "s/file", "s/e/"]);
    let find = async |paths: &[&str], whole| {
        let options = with(|options| options.select.whole_directories = whole);
        ground.find(&["s/"], &options, Some(paths)).await
    };
    let walked = find(&["a//b/./c", "/file", "dir/", "file", "./a/b/c"], false).await;
    assert_eq!((&*walked.text(), &*walked.listed()), ("a/ a/b/ a/b/c dir/ file", ""));
    assert!(walked.complaints().is_empty());
    let walked = find(&["dir", "dir/sub/y", "a/b", "a/b/c"], false).await;
    assert_eq!(walked.text(), "a/ a/b/ a/b/c dir/ dir/sub/ dir/sub/y");
    let walked = find(&["dir", "dir/sub/y", "a/b", "a/b/c", "e"], true).await;
    assert_eq!(walked.text(), "a/ a/b/ a/b/c a/b/d dir/ dir/sub/ dir/sub/y dir/z e/");
    assert_eq!(walked.listed(), "a/b dir dir/sub e");
    assert_eq!(find(&["."], false).await.text(), "");
    let everything = find(&["file", "."], true).await;
    assert_eq!(everything.text(), ground.walk(&["s/"]).await.text());
    assert_eq!(everything.listed(), ". a a/b dir dir/sub e");
    assert_eq!(find(&[], true).await.text(), "");
    for entry in walked.all().into_iter().filter(|entry| matches!(entry.kind, Kind::File(_))) {
        walked.source.open(entry).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_asked_for_and_is_not_there_is_told() {
    let ground = Ground::new(&["s/a/x", "s/file"]);
    ground.link("s/link", "a");
    let paths =
        ["a/none", "gone/x", "gone/y", "file", "file/x", "../s/file", "link/x", "file2/x/y"];
    let walked = ground.find(&["s/"], &options(), Some(&paths)).await;
    assert_eq!(walked.text(), "a/ a/none! file file2! gone!");
    for path in ["a/none", "gone", "file2"] {
        assert_eq!(walked.failure(path).code, FailureCode::Io);
        assert!(walked.failure(path).text().contains("No such file"));
    }
    let texts: Vec<_> = walked.complaints().iter().map(|it| it.text()).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[0].starts_with("../s/file is no path below the source"));
    assert!(texts[1].starts_with("cannot stat file/x: Not a directory"), "{}", texts[1]);
    assert!(texts[2].starts_with("cannot stat link/x: Not a directory"), "{}", texts[2]);
    let walked = ground.find(&["s/"], &links(Links::Follow), Some(&["link/x"])).await;
    assert_eq!(walked.text(), "link/ link/x");
}

#[tokio::test]
async fn paths_are_looked_for_in_every_source() {
    let ground = Ground::new(&["a/1", "b/2", "b/both", "c/3", "a/both", "d"]);
    let sources = ["a/", "b/", "c", "d"];
    let paths = ["1", "2", "both", "c/3", "d", "none"];
    let walked = ground.find(&sources, &options(), Some(&paths)).await;
    assert_eq!(walked.text(), "1 2 both c/ c/3 d none!");
    for entry in walked.all().into_iter().filter(|entry| matches!(entry.kind, Kind::File(_))) {
        walked.source.open(entry).await.unwrap();
    }
    let walked = ground.find(&["c", "d"], &options(), Some(&["none/x", "c"])).await;
    assert_eq!(walked.text(), "c/ none!");
}

/// As rsync: the directories on the way are not filtered.
#[tokio::test]
async fn filters_apply_to_what_was_asked_for() {
    let ground = Ground::new(&["s/a/x", "s/a/y", "s/b/.rules", "s/b/x"]);
    fs::write(ground.path("s/b/.rules"), "- x").unwrap();
    let options =
        with(|it| it.select.filters = vec![b"- a".to_vec(), b"- y".to_vec(), b": .rules".to_vec()]);
    let walked = ground.find(&["s/"], &options, Some(&["a", "a/x", "a/y", "b/x"])).await;
    assert_eq!(walked.text(), "a/ a/x b/");
}

/// DEL-6, R37.
#[tokio::test]
async fn only_what_is_as_it_was_is_removed() {
    let ground = Ground::new(&["same", "touched", "other", "gone", "dir/", "replaced"]);
    ground.link("link", "same");
    ground.link("bent", "same");
    make_fifo(&ground.path("fifo"));
    let walked = ground.walk_with(&[""], &with(|it| it.preserve.specials = true)).await;
    let_time_pass();
    fs::set_permissions(ground.path("touched"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(ground.path("gone")).unwrap();
    fs::remove_file(ground.path("bent")).unwrap();
    ground.link("bent", "other");
    fs::remove_file(ground.path("replaced")).unwrap();
    make_fifo(&ground.path("replaced"));
    let entries = walked.all();
    let answers = walked.source.remove(entries.clone()).await;
    for (entry, answer) in entries.iter().zip(answers) {
        let path = walked.path(entry);
        match &*path {
            "same" | "link" | "other" | "fifo" => assert!(answer.is_ok(), "{path}: {answer:?}"),
            "gone" => assert!(matches!(answer, Err(StorageError::Vanished { .. })), "{answer:?}"),
            _ => {
                assert!(matches!(answer, Err(StorageError::Changed { .. })), "{path}: {answer:?}");
                assert!(fs::symlink_metadata(ground.path(&path)).is_ok());
            }
        }
        let is_there = fs::symlink_metadata(ground.path(&path)).is_ok();
        assert_eq!(is_there, matches!(&*path, "touched" | "bent" | "dir" | "replaced"));
    }
}

#[tokio::test]
async fn all_names_of_a_file_are_removed() {
    for hard_links in [false, true] {
        let ground = Ground::new(&["a", "other"]);
        for name in ["b", "c"] {
            fs::hard_link(ground.path("a"), ground.path(name)).unwrap();
        }
        let options = with(|options| {
            options.preserve.hard_links = hard_links;
            options.remove_source_files = true;
        });
        let walked = ground.walk_with(&[""], &options).await;
        let (others, names): (Vec<_>, Vec<_>) =
            walked.all().into_iter().partition(|entry| entry.name.as_bytes() == b"other");
        let first = walked.source.remove(names[..1].to_vec()).await;
        assert!(first[0].is_ok());
        let_time_pass();
        fs::set_permissions(ground.path("other"), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(walked.source.remove(names[1..].to_vec()).await.iter().all(Result::is_ok));
        assert!(walked.source.remove(others).await[0].is_err());
        assert_eq!(fs::read_dir(ground.path("")).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_name_that_was_touched_between_removals_stays() {
    let ground = Ground::new(&["a"]);
    fs::hard_link(ground.path("a"), ground.path("b")).unwrap();
    let walked = ground.walk(&[""]).await;
    let entries = walked.all();
    assert!(walked.source.remove(entries[..1].to_vec()).await[0].is_ok());
    let left = ground.path(&walked.path(&entries[1]));
    let_time_pass();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o600)).unwrap();
    let answer = walked.source.remove(entries[1..].to_vec()).await.remove(0);
    assert!(matches!(answer, Err(StorageError::Changed { .. })));
}

#[tokio::test]
async fn a_followed_symlink_is_removed_and_its_target_stays() {
    let ground = Ground::new(&["s/", "target"]);
    ground.link("s/link", "../target");
    let walked = ground.walk_with(&["s/"], &links(Links::Follow)).await;
    assert!(walked.source.remove(walked.all()).await[0].is_ok());
    assert!(fs::symlink_metadata(ground.path("s/link")).is_err());
    assert!(ground.path("target").exists());
}
