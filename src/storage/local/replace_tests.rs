//! Tests of giving what is complete its final name, and of backups.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{FileType, Mode as FsMode, OFlags};

use super::beneath;
use super::testing::{entry, file_kind, options, sink_with, tree, verified_file, write_files};
use super::write::LocalSink;
use crate::protocol::message::{Backup, Delete, Entry, Kind, MakeRoom, Options, Update};
use crate::storage::{Sink as _, StorageError};

fn open(path: &Path) -> OwnedFd {
    beneath::open_operator(path, OFlags::PATH).unwrap()
}

fn with(make_room: MakeRoom, backup: Option<(Option<&str>, &str)>) -> Options {
    let backup = backup.map(|(directory, suffix)| Backup {
        directory: directory.map(|directory| directory.as_bytes().to_vec()),
        suffix: suffix.as_bytes().to_vec(),
    });
    Options { update: Update { make_room, backup, ..Update::default() }, ..options() }
}

/// Makes something under the temporary name of `name`, and puts it in its place.
fn put(
    sink: &LocalSink,
    root: &Path,
    name: &str,
    make: impl FnOnce(&Path),
) -> Result<(), StorageError> {
    let inner = sink.inner();
    let temp = inner.temp_name(name.as_bytes());
    make(&root.join(std::str::from_utf8(&temp).unwrap()));
    let entry = entry(1, 0, name.as_bytes(), file_kind(1));
    inner.put_in_place(open(root).as_fd(), &temp, name.as_bytes(), &entry)
}

async fn write(sink: &LocalSink, entry: &Arc<Entry>, data: &[u8]) -> Result<(), StorageError> {
    let files = vec![(verified_file(entry.id, data), Arc::clone(entry))];
    write_files(sink, files).await.remove(0)
}

#[test]
fn anything_but_directories_replaces_anything_but_directories() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let sink = sink_with(root, &with(MakeRoom::Files, None));
    let path = root.join("name");
    put(&sink, root, "name", |path| fs::write(path, b"file").unwrap()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"file");
    put(&sink, root, "name", |path| symlink("target", path).unwrap()).unwrap();
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("target"));
    let fifo = |path: &Path| {
        let mode = FsMode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).unwrap();
    };
    put(&sink, root, "name", fifo).unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
    put(&sink, root, "name", |path| fs::write(path, b"again").unwrap()).unwrap();
    fs::hard_link(&path, root.join("second")).unwrap();
    put(&sink, root, "name", |path| fs::hard_link(root.join("second"), path).unwrap()).unwrap();
    assert_eq!(tree(root), ["name", "second"], "two names of one file: the temporary one is gone");
    put(&sink, root, "dir", |path| fs::create_dir(path).unwrap()).unwrap();
    let made = put(&sink, root, "name", |path| fs::create_dir(path).unwrap());
    assert!(matches!(made, Err(StorageError::Conflict { existing: "a file", .. })), "{made:?}");
    let made = put(&sink, root, "dir", |path| fs::write(path, b"x").unwrap());
    assert!(
        matches!(made, Err(StorageError::Conflict { existing: "a directory", .. })),
        "{made:?}"
    );
    assert_eq!(tree(root), ["dir", "name", "second"]);
}

#[test]
fn an_empty_directory_gives_way_and_a_full_one_does_not() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let sink = sink_with(root, &with(MakeRoom::EmptyDirectories, None));
    fs::create_dir(root.join("empty")).unwrap();
    fs::create_dir(root.join("full")).unwrap();
    fs::write(root.join("full/file"), b"x").unwrap();
    put(&sink, root, "empty", |path| fs::write(path, b"new").unwrap()).unwrap();
    assert_eq!(fs::read(root.join("empty")).unwrap(), b"new");
    let made = put(&sink, root, "full", |path| fs::write(path, b"new").unwrap());
    assert!(matches!(made, Err(StorageError::Conflict { .. })));
    put(&sink, root, "empty", |path| fs::create_dir(path).unwrap()).unwrap();
    assert_eq!(tree(root), ["empty", "full", "full/file"]);
    assert!(root.join("empty").is_dir());
}

#[tokio::test]
async fn a_full_directory_gives_way_with_all_that_is_in_it() {
    let temp = tempfile::tempdir().unwrap();
    let (root, canary) = (temp.path().join("root"), temp.path().join("canary"));
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), b"stays").unwrap();
    fs::write(root.join("dir/sub/file"), b"x").unwrap();
    symlink(&canary, root.join("dir/link")).unwrap();
    fs::set_permissions(root.join("dir/sub"), fs::Permissions::from_mode(0o500)).unwrap();
    let sink = sink_with(&root, &with(MakeRoom::All, None));
    let file = entry(1, 0, b"dir", file_kind(3));
    write(&sink, &file, b"new").await.unwrap();
    assert_eq!(fs::read(root.join("dir")).unwrap(), b"new");
    assert_eq!((tree(&root), tree(&canary)), (vec!["dir".into()], vec!["file".into()]));
    assert!(sink.complaints().is_empty());
}

#[tokio::test]
async fn what_a_killed_run_left_under_the_temporary_name_does_not_matter() {
    let temp = tempfile::tempdir().unwrap();
    let sink = sink_with(temp.path(), &with(MakeRoom::All, None));
    let left = sink.inner().temp_name(b"file");
    let left = temp.path().join(std::str::from_utf8(&left).unwrap());
    let file = entry(1, 0, b"file", file_kind(3));
    fs::create_dir_all(left.join("old/dir")).unwrap();
    let made = sink.create(Arc::clone(&file), None).await.unwrap();
    sink.discard(made).await.unwrap();
    fs::write(temp.path().join("file"), b"old").unwrap();
    fs::create_dir(&left).unwrap();
    write(&sink, &file, b"new").await.unwrap();
    assert_eq!(tree(temp.path()), ["file"]);
    let cautious = sink_with(temp.path(), &with(MakeRoom::Files, None));
    fs::create_dir_all(left.join("full")).unwrap();
    let made = cautious.create(Arc::clone(&file), None).await.unwrap();
    cautious.discard(made).await.unwrap();
    let link = entry(2, 0, b"file", Kind::Symlink { target: b"target".to_vec() });
    fs::create_dir_all(left.join("full")).unwrap();
    assert!(cautious.place(vec![link]).await.remove(0).is_ok());
    assert_eq!(tree(temp.path()), ["file"]);
}

/// Entries that a killed run had begun may be gone from the source when the next one comes.
#[tokio::test]
async fn temporary_names_of_a_killed_run_are_swept() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    fs::create_dir(root.join("dir")).unwrap();
    let plant = |sink: &LocalSink| {
        let name = |of: &[u8]| String::from_utf8(sink.inner().temp_name(of)).unwrap();
        fs::create_dir_all(root.join(name(b"a")).join("old/dir")).unwrap();
        symlink("target", root.join("dir").join(name(b"b"))).unwrap();
        fs::write(root.join("dir/.fastsync-00000000-0123456789abcdef"), b"another's").unwrap();
    };
    let dir = entry(1, 0, b"dir", Kind::Directory);
    let first = sink_with(root, &with(MakeRoom::Files, None));
    plant(&first);
    let state = first.open_state().await.unwrap();
    first.place(vec![Arc::clone(&dir)]).await;
    first.finish().await;
    assert_eq!(tree(root).iter().filter(|path| path.contains(".fastsync-abab")).count(), 4);
    // It is killed.
    std::io::Write::write_all(&mut state.journal(), b"begun").unwrap();
    drop((first, state));
    let second = sink_with(root, &with(MakeRoom::Files, None));
    let state = second.open_state().await.unwrap();
    second.place(vec![dir]).await;
    second.finish().await;
    state.remove().unwrap();
    assert!(second.complaints().is_empty());
    assert_eq!(tree(root), ["dir", "dir/.fastsync-00000000-0123456789abcdef"]);
}

/// What cannot go keeps the name that it had.
#[tokio::test]
async fn a_directory_that_cannot_be_removed_gets_its_name_back() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let sink = sink_with(root, &with(MakeRoom::All, None));
    for path in ["dir/a", "dir/b"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    let set = |attribute: &str| {
        let mut chattr = std::process::Command::new("chattr");
        let run = chattr.arg(attribute).arg(root.join("dir/b")).output();
        run.is_ok_and(|it| it.status.success())
    };
    if !set("+i") {
        return;
    }
    let made = write(&sink, &entry(1, 0, b"dir", file_kind(3)), b"new").await;
    assert!(set("-i"));
    assert!(made.unwrap_err().to_string().starts_with("cannot remove dir/b"));
    assert_eq!(tree(root), ["dir", "dir/b"]);
    assert_eq!(sink.removed().deleted.len(), 1);
}

#[tokio::test]
async fn what_gives_way_is_counted_and_told() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let limited = |max, dry_run| {
        let delete = Some(Delete { max: Some(max), ..Delete::default() });
        Options { dry_run, delete, ..with(MakeRoom::All, None) }
    };
    for path in ["x/dir", "y"] {
        fs::create_dir_all(root.join(path)).unwrap();
        fs::write(root.join(path).join("file"), b"old").unwrap();
    }
    let files = [entry(1, 0, b"x", file_kind(3)), entry(2, 0, b"y", file_kind(3))];
    let dry = sink_with(root, &limited(2, true));
    let placed = dry.place(files.to_vec()).await;
    assert!(placed[0].is_ok() && matches!(placed[1], Err(StorageError::Conflict { .. })));
    let sink = sink_with(root, &limited(2, false));
    write(&sink, &files[0], b"new").await.unwrap();
    let refused = write(&sink, &files[1], b"new").await.unwrap_err().to_string();
    assert!(refused.contains("more in it than may still be deleted"), "{refused}");
    assert_eq!(tree(root), ["x", "y", "y/file"]);
    for sink in [dry, sink] {
        let removed = sink.removed();
        let paths: Vec<_> = removed.deleted.iter().map(|it| it.path.as_slice()).collect();
        assert_eq!(paths, [&b"x/dir/file"[..], b"x/dir"], "and not the name that is used again");
        assert_eq!((removed.over_limit, sink.removed().deleted.len()), (1, 0));
    }
}

#[tokio::test]
async fn what_changes_its_type_again_and_again_is_backed_up_each_time() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    let kept = temp.path().join("kept");
    fs::create_dir_all(root.join("x/sub")).unwrap();
    fs::write(root.join("x/sub/file"), b"1").unwrap();
    let options = with(MakeRoom::All, Some((Some("../kept"), "")));
    let file = entry(1, 0, b"x", file_kind(1));
    write(&sink_with(&root, &options), &file, b"2").await.unwrap();
    assert_eq!(tree(&kept), ["x", "x/sub", "x/sub/file"]);
    let directory = entry(1, 0, b"x", Kind::Directory);
    let sink = sink_with(&root, &options);
    assert!(sink.place(vec![directory]).await.remove(0).is_ok());
    assert_eq!((tree(&kept), fs::read(kept.join("x")).unwrap()), (vec!["x".into()], b"2".into()));
    fs::write(root.join("x/other"), b"3").unwrap();
    write(&sink_with(&root, &options), &file, b"4").await.unwrap();
    assert_eq!(fs::read(kept.join("x/other")).unwrap(), b"3");
    assert_eq!((tree(&root), tree(&kept)), (vec!["x".into()], vec!["x".into(), "x/other".into()]));
}

#[test]
fn backups_cannot_be_what_they_are_of() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().to_str().unwrap();
    let open = |directory, suffix| {
        let options = with(MakeRoom::Files, Some((Some(directory), suffix)));
        LocalSink::open(root.as_bytes(), false, [0; 16], &options)
    };
    for directory in [".", "./", root, "../."] {
        let is_refused = directory != "../.";
        assert_eq!(open(directory, "").is_err(), is_refused, "{directory}");
        assert!(open(directory, "~").is_ok());
    }
}

#[tokio::test]
async fn backups_beside_are_second_names() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let sink = sink_with(root, &with(MakeRoom::Files, Some((None, "~"))));
    let file = entry(1, 0, b"file", file_kind(1));
    write(&sink, &file, b"1").await.unwrap();
    assert_eq!(tree(root), ["file"], "nothing was replaced");
    let inode = fs::metadata(root.join("file")).unwrap().ino();
    write(&sink, &file, b"2").await.unwrap();
    assert_eq!(fs::read(root.join("file~")).unwrap(), b"1");
    assert_eq!(fs::metadata(root.join("file~")).unwrap().ino(), inode);
    write(&sink, &file, b"3").await.unwrap();
    assert_eq!(fs::read(root.join("file~")).unwrap(), b"2", "an older backup is replaced");
    fs::remove_file(root.join("file~")).unwrap();
    fs::hard_link(root.join("file"), root.join("file~")).unwrap();
    write(&sink, &file, b"4").await.unwrap();
    assert_eq!(fs::read(root.join("file~")).unwrap(), b"3", "a backup that a killed run made");
    symlink("target", root.join("link")).unwrap();
    put(&sink, root, "link", |path| fs::write(path, b"x").unwrap()).unwrap();
    assert_eq!(fs::read_link(root.join("link~")).unwrap(), Path::new("target"));
    assert_eq!(tree(root), ["file", "file~", "link", "link~"]);
    fs::create_dir(root.join("other~")).unwrap();
    fs::write(root.join("other"), b"old").unwrap();
    let failed = put(&sink, root, "other", |path| fs::write(path, b"new").unwrap());
    assert!(failed.unwrap_err().to_string().starts_with("cannot back up other"));
    assert_eq!(fs::read(root.join("other")).unwrap(), b"old");
}

#[tokio::test]
async fn backups_in_a_directory_keep_their_paths_and_who_may_see_them() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o710)).unwrap();
    fs::write(root.join("a/b/file"), b"old").unwrap();
    let sink = sink_with(&root, &with(MakeRoom::Files, Some((Some("../kept/of"), ".1"))));
    let a = entry(1, 0, b"a", Kind::Directory);
    let b = entry(2, 1, b"b", Kind::Directory);
    let file = entry(3, 2, b"file", file_kind(3));
    assert!(sink.place(vec![a, b]).await.iter().all(Result::is_ok));
    write(&sink, &file, b"new").await.unwrap();
    let kept = temp.path().join("kept/of");
    assert_eq!(fs::read(kept.join("a/b/file.1")).unwrap(), b"old");
    assert_eq!(fs::metadata(kept.join("a")).unwrap().mode() & 0o777, 0o710);
    assert_eq!(tree(&root), ["a", "a/b", "a/b/file"]);
    fs::remove_dir_all(kept.join("a")).unwrap();
    fs::create_dir(temp.path().join("canary")).unwrap();
    symlink(temp.path().join("canary"), kept.join("a")).unwrap();
    let fresh = sink_with(&root, &with(MakeRoom::Files, Some((Some("../kept/of"), ".1"))));
    let b = entry(2, 1, b"b", Kind::Directory);
    let a = entry(1, 0, b"a", Kind::Directory);
    fresh.place(vec![a, b]).await;
    write(&fresh, &file, b"odd").await.unwrap();
    assert_eq!(fs::read(root.join("a/b/file")).unwrap(), b"odd");
    assert_eq!(fs::read(kept.join("a/b/file.1")).unwrap(), b"new");
    assert!(!kept.join("a").is_symlink(), "an older backup, which is replaced and not followed");
    assert_eq!(tree(&temp.path().join("canary")), [""; 0]);
}

/// A backup on another file system is a copy, and nothing is missing meanwhile.
#[tokio::test]
async fn backups_go_to_another_file_system() {
    let temp = tempfile::tempdir().unwrap();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return };
    if fs::metadata(temp.path()).unwrap().dev() == fs::metadata(other.path()).unwrap().dev() {
        return;
    }
    let root = temp.path();
    let directory = other.path().join("kept");
    let backup = Some((directory.to_str(), ""));
    let sink = sink_with(root, &with(MakeRoom::Files, backup));
    fs::write(root.join("file"), b"old").unwrap();
    fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
    let mtime = fs::metadata(root.join("file")).unwrap().modified().unwrap();
    write(&sink, &entry(1, 0, b"file", file_kind(3)), b"new").await.unwrap();
    let copy = fs::metadata(directory.join("file")).unwrap();
    assert_eq!((copy.mode() & 0o777, copy.modified().unwrap()), (0o640, mtime));
    assert_eq!(fs::read(directory.join("file")).unwrap(), b"old");
    symlink("target", root.join("link")).unwrap();
    let failed = put(&sink, root, "link", |path| fs::write(path, b"x").unwrap());
    assert!(failed.unwrap_err().to_string().contains("on another file system"));
    assert!(root.join("link").is_symlink());
    assert_eq!(tree(root), ["file", "link"]);
}

#[tokio::test]
async fn a_directory_that_gives_way_is_backed_up_as_a_whole() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    let sink = sink_with(root, &with(MakeRoom::All, Some((None, "~"))));
    let file = entry(1, 0, b"dir", file_kind(3));
    write(&sink, &file, b"new").await.unwrap();
    assert_eq!(tree(root), ["dir", "dir~", "dir~/sub"]);
    fs::remove_file(root.join("dir")).unwrap();
    fs::create_dir_all(root.join("dir/more")).unwrap();
    let made = write(&sink, &file, b"new").await;
    assert!(matches!(made, Err(StorageError::Conflict { .. })), "{made:?}");
    assert_eq!(tree(root), ["dir", "dir/more", "dir~", "dir~/sub"]);
}
