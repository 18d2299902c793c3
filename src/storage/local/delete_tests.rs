//! Tests of deletion: what goes, and what stays.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fd::AsFd as _;
use rustix::fs::{Mode as FsMode, OFlags, RenameFlags};

use super::testing::{entry, file_kind, options, sink_with, tree};
use super::{LocalSink, LocalSource};
use super::{STATE_NAME, beneath};
use crate::protocol::chunk::EntryId;
use crate::protocol::message::{
    Backup, Delete, Deletions, Entry, Kind, MakeRoom, Options, Select, Update,
};
use crate::storage::{Found, NameSet, Sink as _, Source as _, StorageError};

fn deleting() -> Options {
    Options { delete: Some(Delete::default()), ..options() }
}

fn filtered(rules: &[&str]) -> Options {
    let filters = rules.iter().map(|rule| rule.as_bytes().to_vec()).collect();
    Options { select: Select { filters, ..Select::default() }, ..deleting() }
}

fn make(root: &Path, files: &[&str]) {
    for file in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }
}

fn directory(id: u64, parent: u64, name: &str) -> Arc<Entry> {
    entry(id, parent, name.as_bytes(), Kind::Directory)
}

/// The destination's directories that the source has too, and what else it has.
async fn announce(
    sink: &LocalSink,
    directories: &[(u64, u64, &str)],
    others: &[(u64, &str)],
) -> NameSet {
    let mut names = NameSet::default();
    for (_, parent, name) in directories {
        names.insert(EntryId(*parent), name.as_bytes());
    }
    for (parent, name) in others {
        names.insert(EntryId(*parent), name.as_bytes());
    }
    let entries = directories.iter().map(|(id, parent, name)| directory(*id, *parent, name));
    assert!(sink.place(entries.collect()).await.iter().all(Result::is_ok));
    names
}

/// Deletes, and returns the paths that were told.
async fn delete(
    sink: &LocalSink,
    complete: &[u64],
    names: &NameSet,
) -> (Result<Deletions, StorageError>, Vec<String>) {
    let (sender, told) = flume::unbounded();
    let complete = complete.iter().map(|id| EntryId(*id)).collect();
    let done = sink.delete(complete, names.clone(), sender).await;
    let told = told.into_iter().map(|it| {
        let slash = if it.is_directory { "/" } else { "" };
        String::from_utf8(it.path).unwrap() + slash
    });
    (done, told.collect())
}

#[tokio::test]
async fn what_the_source_does_not_have_goes() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    make(root, &["kept", "extra", "dir/kept", "dir/extra", "gone/a/b", "gone/c", "gone/a/d"]);
    symlink("kept", root.join("link")).unwrap();
    make(root, &[".fastsync/job/journal", "dir/.fastsync-00000000-0123456789abcdef"]);
    make(root, &["dir/.fastsync"]);
    fs::set_permissions(root.join("gone/a"), fs::Permissions::from_mode(0o500)).unwrap();
    let dry = Options { dry_run: true, ..deleting() };
    let expected = ["extra", "gone/a/b", "gone/a/d", "gone/a/", "gone/c", "gone/", "link"];
    let expected = [&expected[..], &["dir/.fastsync", "dir/extra"]].concat();
    for options in [dry, deleting()] {
        let before = tree(root);
        let sink = sink_with(root, &options);
        let names = announce(&sink, &[(1, 0, "dir")], &[(0, "kept"), (1, "kept")]).await;
        let (done, told) = delete(&sink, &[0, 1], &names).await;
        assert_eq!(told, expected);
        assert_eq!(done.unwrap(), Deletions { done: 9, over_limit: 0 });
        assert!(sink.complaints().is_empty());
        assert_eq!(options.dry_run, tree(root) == before);
    }
    let stay = [".fastsync", ".fastsync/job", ".fastsync/job/journal", "dir"];
    let stay = [&stay[..], &["dir/.fastsync-00000000-0123456789abcdef", "dir/kept", "kept"]];
    assert_eq!(tree(root), stay.concat());
    let plain = sink_with(root, &options());
    let (done, told) = delete(&plain, &[0], &NameSet::default()).await;
    assert_eq!((done.unwrap(), told.len()), (Deletions::default(), 0), "nobody asked for it");
}

/// DEL-2.
#[tokio::test]
async fn only_complete_directories_are_compared() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    make(root, &["extra", "a/extra", "a/b/extra", "c/extra"]);
    let sink = sink_with(root, &deleting());
    let directories = [(1, 0, "a"), (2, 1, "b"), (3, 0, "c")];
    let names = announce(&sink, &directories, &[(2, "x"), (3, "x")]).await;
    let (_, told) = delete(&sink, &[0, 2, 77], &names).await;
    assert_eq!(told, ["extra"], "b is in a, which is not complete");
    let (_, told) = delete(&sink, &[2, 3], &names).await;
    assert_eq!(told, ["c/extra"], "c was named by the operator, or its listing was complete");
    make(root, &["extra"]);
    let (_, told) = delete(&sink, &[1, 2], &names).await;
    assert_eq!(told, ["a/extra", "a/b/extra"]);
    assert_eq!(tree(root), ["a", "a/b", "c", "extra"]);
}

#[tokio::test]
async fn an_empty_source_empties_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    make(root, &["file", "dir/file"]);
    let sink = sink_with(root, &deleting());
    let (done, told) = delete(&sink, &[0], &NameSet::default()).await;
    let error = done.unwrap_err();
    assert!(matches!(error, StorageError::EmptySource { .. }));
    let text = error.to_string();
    assert!(
        text.starts_with("the source is empty, or all that it has is left out; nothing was"),
        "{text}"
    );
    assert!(text.ends_with("; --allow-empty-source deletes all the same"), "{text}");
    let names = announce(&sink, &[(1, 0, "dir")], &[]).await;
    let (done, _) = delete(&sink, &[1], &names).await;
    assert!(done.unwrap_err().to_string().contains("/dir; "), "a named source that is empty");
    assert_eq!((tree(root).len(), told.len()), (3, 0));
    let delete_all = Delete { allow_empty_source: true, ..Delete::default() };
    let sink = sink_with(root, &Options { delete: Some(delete_all), ..options() });
    let (done, _) = delete(&sink, &[0], &NameSet::default()).await;
    assert_eq!(done.unwrap().done, 3);
    assert_eq!(tree(root), [""; 0]);
    let sink = sink_with(root, &deleting());
    assert!(delete(&sink, &[0], &NameSet::default()).await.0.is_ok(), "there is nothing to lose");
}

#[tokio::test]
async fn no_more_than_the_limit_is_removed() {
    let temp = tempfile::tempdir().unwrap();
    make(temp.path(), &["a", "b", "dir/c", "dir/d", "e"]);
    let names = {
        let mut names = NameSet::default();
        names.insert(EntryId(0), b"other");
        names
    };
    for (dry_run, max, left) in [(true, 3, 6), (false, 0, 6), (false, 3, 3), (false, 3, 0)] {
        let there = tree(temp.path()).len() as u64;
        let limit = Delete { max: Some(max), ..Delete::default() };
        let options = Options { delete: Some(limit), dry_run, ..options() };
        let sink = sink_with(temp.path(), &options);
        let (done, told) = delete(&sink, &[0], &names).await;
        let expected = Deletions { done: max.min(there), over_limit: there - max.min(there) };
        assert_eq!((done.unwrap(), told.len() as u64), (expected, max.min(there)));
        assert_eq!(tree(temp.path()).len(), left, "{:?}", tree(temp.path()));
    }
}

#[tokio::test]
async fn filters_protect_and_hide() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    make(root, &["a.o", "b.c", "dir/a.o", "dir/b.c", "old/a.o", "old/b.c", "old/deep/c.c"]);
    make(root, &["rules/a.c", "rules/b.c"]);
    fs::write(root.join("rules/.rules"), b"- a.c\n").unwrap();
    let sink = sink_with(root, &filtered(&[": .rules", "- *.o"]));
    let directories = [(1, 0, "dir"), (2, 0, "rules")];
    let names = announce(&sink, &directories, &[(1, "x"), (2, ".rules")]).await;
    let (done, told) = delete(&sink, &[0, 1, 2], &names).await;
    assert_eq!(told, ["b.c", "old/b.c", "old/deep/c.c", "old/deep/", "dir/b.c", "rules/b.c"]);
    assert_eq!(done.unwrap().done, 6);
    assert!(sink.complaints().is_empty());
    let excluded = Delete { excluded: true, ..Delete::default() };
    let options = Options { delete: Some(excluded), ..filtered(&["- *.o", "P dir/a.o"]) };
    let sink = sink_with(root, &options);
    let names = announce(&sink, &directories, &[(1, "x"), (2, ".rules")]).await;
    let (_, told) = delete(&sink, &[0, 1, 2], &names).await;
    assert_eq!(told, ["a.o", "old/a.o", "old/", "rules/a.c"]);
    let refused = Options { ..filtered(&["nonsense"]) };
    let path = std::os::unix::ffi::OsStrExt::as_bytes(root.as_os_str());
    assert!(LocalSink::open(path, false, [0; 16], &refused).is_err());
}

/// Rules that cannot be read protect all that they might.
#[tokio::test]
async fn a_directory_whose_rules_cannot_be_used_stays_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    make(root, &["dir/extra", "dir/sub/extra", "old/extra", "z"]);
    fs::write(root.join("dir/.rules"), b"nonsense here\n").unwrap();
    fs::write(root.join("old/.rules"), b"nonsense here\n").unwrap();
    let sink = sink_with(root, &filtered(&[": .rules"]));
    let directories = [(1, 0, "dir"), (2, 1, "sub")];
    let names = announce(&sink, &directories, &[(1, ".rules"), (2, "x")]).await;
    let (done, told) = delete(&sink, &[0, 1, 2], &names).await;
    assert_eq!((told, done.unwrap().done), (vec!["z".to_owned()], 1));
    let complaints = sink.complaints();
    assert_eq!(complaints.len(), 2, "{complaints:?}");
}

#[tokio::test]
async fn backups_stay_and_what_is_deleted_becomes_one() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    let with = |directory: Option<&str>, suffix: &str| {
        let directory = directory.map(|it| it.as_bytes().to_vec());
        let backup = Some(Backup { directory, suffix: suffix.as_bytes().to_vec() });
        Options { update: Update { backup, ..Update::default() }, ..deleting() }
    };
    make(&root, &["file", "older~", "dir/file", "kept"]);
    let sink = sink_with(&root, &with(None, "~"));
    let names = announce(&sink, &[], &[(0, "kept")]).await;
    let (_, told) = delete(&sink, &[0], &names).await;
    assert_eq!(told, ["dir/file", "file"]);
    assert_eq!(tree(&root), ["dir", "dir/file~", "file~", "kept", "older~"]);

    fs::remove_dir_all(&root).unwrap();
    make(&root, &["file", "dir/file", "kept", "some/bak/older", "some/other"]);
    let sink = sink_with(&root, &with(Some("some/bak"), ""));
    let names = announce(&sink, &[], &[(0, "kept")]).await;
    let (done, told) = delete(&sink, &[0], &names).await;
    assert_eq!(told, ["dir/file", "dir/", "file", "some/other"]);
    assert_eq!(done.unwrap().done, 4);
    let kept = ["kept", "some", "some/bak", "some/bak/dir", "some/bak/dir/file", "some/bak/file"];
    let kept = [&kept[..], &["some/bak/older", "some/bak/some", "some/bak/some/other"]].concat();
    assert_eq!(tree(&root), kept);
    assert!(sink.complaints().is_empty());
}

#[tokio::test]
async fn what_is_mounted_stays() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    make(root, &["old/mounted/file", "old/file", "source/file"]);
    let mount = |args: &[&std::ffi::OsStr]| {
        std::process::Command::new(args[0])
            .args(&args[1..])
            .output()
            .is_ok_and(|it| it.status.success())
    };
    let (from, to) = (root.join("source"), root.join("old/mounted"));
    // Of the same file system, so that device numbers say nothing.
    if !mount(&["mount".as_ref(), "--bind".as_ref(), from.as_os_str(), to.as_os_str()]) {
        return;
    }
    let sink = sink_with(root, &deleting());
    let names = announce(&sink, &[], &[(0, "source")]).await;
    let (done, told) = delete(&sink, &[0], &names).await;
    assert!(mount(&["umount".as_ref(), to.as_os_str()]));
    assert_eq!((told, done.unwrap().done), (vec!["old/file".to_owned()], 1));
    let complaints = sink.complaints();
    assert!(complaints[0].to_string().contains("something is mounted there"), "{complaints:?}");
    assert!(from.join("file").exists());
}

#[tokio::test]
async fn a_deep_tree_is_removed() {
    // In memory if possible, as disks take long for this.
    let temp = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut dir = beneath::open_operator(temp.path(), OFlags::PATH).unwrap();
    for level in 0..3000 {
        rustix::fs::mkdirat(&dir, "d", FsMode::RWXU).unwrap();
        dir = beneath::open_child(dir.as_fd(), b"d", OFlags::PATH).unwrap();
        if level % 1000 == 0 {
            rustix::fs::mkdirat(&dir, "e", FsMode::RWXU).unwrap();
        }
    }
    let sink = sink_with(temp.path(), &deleting());
    let names = announce(&sink, &[], &[(0, "x")]).await;
    let (done, _) = delete(&sink, &[0], &names).await;
    assert_eq!(done.unwrap().done, 3003);
    assert_eq!(tree(temp.path()), [""; 0]);
}

/// Swaps two names again and again while something else runs.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapper {
    fn start(dir: &Path, one: &'static str, other: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let dir = beneath::open_operator(dir, OFlags::PATH).unwrap();
        let is_over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(&dir, one, &dir, other, RenameFlags::EXCHANGE);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// T74: what is outside of the root stays, whatever is swapped for symlinks to it.
#[tokio::test]
async fn symlinks_swapped_in_lead_nowhere() {
    let temp = tempfile::tempdir().unwrap();
    let (root, canary) = (temp.path().join("root"), temp.path().join("canary"));
    let precious: Vec<String> = (0..20).map(|n| format!("dir/sub/{n}")).collect();
    let all: Vec<&str> = precious.iter().map(String::as_str).collect();
    make(&canary, &all);
    let before = tree(&canary);
    let mut removed = 0;
    for _ in 0..60 {
        let _ = fs::remove_dir_all(&root);
        make(&root, &all);
        make(&root, &["kept/dir/sub/1", "kept/dir/sub/2"]);
        symlink(&canary, root.join("link")).unwrap();
        symlink(canary.join("dir"), root.join("kept/link")).unwrap();
        symlink(canary.join("dir/sub"), root.join("kept/dir/link")).unwrap();
        let sink = sink_with(&root, &deleting());
        let names = announce(&sink, &[(1, 0, "kept")], &[(1, "x")]).await;
        let _swappers = [
            Swapper::start(&root, "kept", "link"),
            Swapper::start(&root.join("kept"), "dir", "link"),
            Swapper::start(&root.join("kept/dir"), "sub", "link"),
        ];
        let (done, _) = delete(&sink, &[0, 1], &names).await;
        removed += done.map_or(0, |done| done.done);
        assert_eq!(tree(&canary), before);
    }
    assert!(removed > 0);
}

/// A directory that is moved out while it is emptied is left at once.
#[tokio::test]
async fn a_directory_moved_out_is_not_followed_up() {
    let temp = tempfile::tempdir().unwrap();
    let (root, outside) = (temp.path().join("root"), temp.path().join("outside"));
    let mut deep = String::from("old");
    for _ in 0..100 {
        deep.push_str("/d");
    }
    make(&outside, &["precious"]);
    for _ in 0..20 {
        let _ = fs::remove_dir_all(&root);
        make(&root, &[&format!("{deep}/file")]);
        let sink = sink_with(&root, &deleting());
        let names = announce(&sink, &[], &[(0, "x")]).await;
        let half = root.join(&deep[..(deep.len() / 2) | 1]);
        let target = outside.join("moved");
        let mover = std::thread::spawn(move || fs::rename(half, target));
        let _ = delete(&sink, &[0], &names).await;
        let _ = mover.join().unwrap();
        assert!(outside.join("precious").exists());
        let _ = fs::remove_dir_all(outside.join("moved"));
    }
}

/// A source that is inside of the destination is not lost, whatever it does not announce.
#[tokio::test]
async fn a_source_stays() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    make(root, &["src/file", "src/precious", "src/sub/precious", "old/deep/file"]);
    let source = LocalSource::open(&[root.join("src/")], &options(), None).unwrap();
    let all =
        Options { update: Update { make_room: MakeRoom::All, ..Update::default() }, ..deleting() };
    let sink = sink_with(root, &all).beside(&source);
    let names = announce(&sink, &[], &[(0, "file")]).await;
    let (_, told) = delete(&sink, &[0], &names).await;
    assert_eq!(told, ["old/deep/file", "old/deep/", "old/"]);
    let complaints = sink.complaints();
    assert!(complaints[0].to_string().contains("a source of this run"), "{complaints:?}");
    let file = entry(1, 0, b"src", file_kind(1));
    let placed = sink.create(Arc::clone(&file), None).await.unwrap();
    let made = sink.commit(placed, file, None).await;
    assert!(matches!(made, Err(StorageError::Conflict { .. })), "it does not give way: {made:?}");
    // What the source has under its own name comes into the source itself.
    let sink = sink_with(root, &all).beside(&source);
    let directories = [(1, 0, "src"), (2, 1, "sub")];
    let names = announce(&sink, &directories, &[(1, "file"), (2, "x")]).await;
    let (_, told) = delete(&sink, &[0, 1, 2], &names).await;
    assert_eq!((told.len(), sink.complaints().len()), (0, 1));
    let left = ["src", "src/file", "src/precious", "src/sub", "src/sub/precious"];
    assert_eq!(tree(root), left);
}

/// SEL-3: what is copied into itself would grow with each run.
#[tokio::test]
async fn a_destination_inside_of_its_source_is_not_found() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("src");
    make(&root, &["file", "to/here/old", "to/here/.fastsync/job/journal", "src/own"]);
    make(&root, &[".fastsync/job/journal", "other/.fastsync/file"]);
    let found = async |argument: &str, destination: &str| {
        let source = LocalSource::open(&[temp.path().join(argument)], &options(), None).unwrap();
        let (_sink, source) = {
            let source = source.awaiting_sink();
            (sink_with(&temp.path().join(destination), &options()).beside(&source), source)
        };
        let (sender, receiver) = flume::unbounded();
        source.walk(sender).await.unwrap();
        let (mut files, mut left_out) = (Vec::new(), 0);
        for found in receiver.into_iter().flatten() {
            match found {
                Found::Entry(entry) if entry.kind == Kind::Unselected => left_out += 1,
                Found::Entry(entry) if entry.kind != Kind::Directory => {
                    files.push(String::from_utf8(source.path(&entry)).unwrap());
                }
                _ => {}
            }
        }
        files.sort();
        (files, left_out)
    };
    let (files, left_out) = found("src", "src/to/here").await;
    let all = ["src/.fastsync/job/journal", "src/file", "src/other/.fastsync/file", "src/src/own"];
    assert_eq!((files, left_out), (all.map(str::to_owned).to_vec(), 1));
    let (files, left_out) = found("src", "src").await;
    let all = ["src/file", "src/other/.fastsync/file", "src/to/here/.fastsync/job/journal"];
    let all = [&all[..], &["src/to/here/old"]].concat();
    assert_eq!((files, left_out), (all.into_iter().map(str::to_owned).collect(), 1));
    let (files, left_out) = found("src/other", "src").await;
    assert_eq!((files, left_out), (vec!["other/.fastsync/file".to_owned()], 0));
}

/// What had to make room before counts too.
#[tokio::test]
async fn the_limit_is_one_for_all() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    make(root, &["x/a", "x/b", "more/c", "more/d"]);
    let limit = Delete { max: Some(3), ..Delete::default() };
    let update = Update { make_room: MakeRoom::All, ..Update::default() };
    let sink = sink_with(root, &Options { delete: Some(limit), update, ..options() });
    let file = entry(1, 0, b"x", file_kind(1));
    let made = sink.create(Arc::clone(&file), None).await.unwrap();
    sink.commit(made, file, None).await.unwrap();
    let names = announce(&sink, &[], &[(0, "x")]).await;
    let (done, told) = delete(&sink, &[0], &names).await;
    assert_eq!(done.unwrap(), Deletions { done: 1, over_limit: 2 });
    assert_eq!((told, tree(root).len()), (vec!["more/c".to_owned()], 3));
}

/// DEL-1: temporary names of the job itself are nothing that it could still need.
#[tokio::test]
async fn what_a_killed_run_left_is_no_extra_thing() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let sink = sink_with(root, &deleting());
    let left = String::from_utf8(sink.inner().temp_name(b"gone")).unwrap();
    make(root, &["kept", &format!("{left}/dir/file"), ".fastsync-00000000-0123456789abcdef"]);
    let names = announce(&sink, &[], &[(0, "kept")]).await;
    let (done, told) = delete(&sink, &[0], &names).await;
    assert_eq!((done.unwrap(), told.len()), (Deletions::default(), 0));
    assert_eq!(tree(root), [".fastsync-00000000-0123456789abcdef", "kept"]);
}

#[tokio::test]
async fn our_own_names_are_known() {
    use super::write::is_any_temp_name as is_ours;
    assert!(is_ours(b".fastsync-0123abcd-0123456789abcdef"));
    for other in [&b".fastsync-0123abcd-0123456789abcde"[..], b".fastsync-0123abc-0123456789abcdef"]
    {
        assert!(!is_ours(other));
    }
    assert!(!is_ours(STATE_NAME) && !is_ours(b".fastsync-0123abcg-0123456789abcdef"));
}
