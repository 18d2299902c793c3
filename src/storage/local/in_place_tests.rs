//! Tests of writing into existing files.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::sync::Arc;

use rustix::fs::{FileType, Mode as FsMode};

use super::testing::{
    entry, file_kind, options, pool, sink_with, tree, verified_chunk, verified_file, write_files,
};
use super::write::{LocalSink, SinkFile};
use crate::protocol::chunk::{ByteRange, Chunk, ChunkSize, Digest};
use crate::protocol::message::{Backup, Entry, Options, Update};
use crate::storage::{Left, Sink as _, StorageError, Token};

fn in_place(backup: Option<Backup>) -> Options {
    Options { update: Update { in_place: true, backup, ..Update::default() }, ..options() }
}

fn chunk(entry: &Entry, index: u64) -> ByteRange {
    ChunkSize::from_bytes(1 << 20).unwrap().range(entry.id, index, entry.size()).unwrap()
}

async fn reopen(sink: &LocalSink, entry: &Arc<Entry>, token: impl Into<Token>) -> Option<SinkFile> {
    let left = Left { token: token.into(), receipts: Vec::new() };
    sink.reopen(Arc::clone(entry), left).await.unwrap().map(|reopened| reopened.file)
}

async fn write(sink: &LocalSink, entry: &Arc<Entry>, data: &[u8]) -> Result<(), StorageError> {
    let files = vec![(verified_file(entry.id, data), Arc::clone(entry))];
    write_files(sink, files).await.remove(0)
}

#[tokio::test]
async fn chunks_go_into_the_file_itself() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("file");
    fs::write(&path, vec![1; (3 << 20) + 5]).unwrap();
    fs::hard_link(&path, temp.path().join("second")).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let sink = sink_with(temp.path(), &in_place(None));
    let entry = entry(1, 0, b"file", file_kind(3 << 20));
    let file = sink.create(Arc::clone(&entry), None).await.unwrap();
    assert_eq!(sink.identity(&file).number(), Some(inode));
    sink.write(file.clone(), verified_chunk(chunk(&entry, 0), &vec![2; 1 << 20])).await.unwrap();
    let hole = Chunk::hole(chunk(&entry, 1), 0).verify().unwrap();
    sink.write(file.clone(), hole).await.unwrap();
    sink.discard(file).await.unwrap();
    assert_eq!(tree(temp.path()), ["file", "second"], "it is not ours to remove");

    assert!(reopen(&sink, &entry, inode + 1).await.is_none());
    let file = reopen(&sink, &entry, inode).await.unwrap();
    sink.write(file.clone(), verified_chunk(chunk(&entry, 2), &vec![3; 1 << 20])).await.unwrap();
    sink.commit(file, entry, None).await.unwrap();
    let expected = [vec![2; 1 << 20], vec![0; 1 << 20], vec![3; 1 << 20]].concat();
    assert!(fs::read(temp.path().join("second")).unwrap() == expected, "written through");
    let data = fs::metadata(&path).unwrap();
    assert_eq!((data.ino(), data.mode() & 0o777, data.mtime()), (inode, 0o644, 1_000_000));
}

#[tokio::test]
async fn a_file_that_is_shorter_gets_its_size_in_the_end() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("file"), b"").unwrap();
    let sink = sink_with(temp.path(), &in_place(None));
    let entry = entry(1, 0, b"file", file_kind(2 << 20));
    let file = sink.create(Arc::clone(&entry), None).await.unwrap();
    assert_eq!(fs::metadata(temp.path().join("file")).unwrap().len(), 0);
    sink.write(file.clone(), verified_chunk(chunk(&entry, 0), &vec![2; 1 << 20])).await.unwrap();
    let hole = Chunk::hole(chunk(&entry, 1), 0).verify().unwrap();
    let expected = hole.digest();
    sink.write(file.clone(), hole).await.unwrap();
    let digest: Digest = sink.digest(file.clone(), chunk(&entry, 1), &pool()).await.unwrap();
    assert_eq!(digest, expected);
    sink.commit(file, entry, None).await.unwrap();
    let content = fs::read(temp.path().join("file")).unwrap();
    assert!(content == [vec![2; 1 << 20], vec![0; 1 << 20]].concat());
}

/// UPD-6: an interruption leaves nothing half done under a name that did not exist.
#[tokio::test]
async fn a_new_file_gets_its_name_when_it_is_whole() {
    let temp = tempfile::tempdir().unwrap();
    let sink = sink_with(temp.path(), &in_place(None));
    let entry = entry(1, 0, b"file", file_kind(1 << 20));
    let file = sink.create(Arc::clone(&entry), None).await.unwrap();
    sink.write(file.clone(), verified_chunk(chunk(&entry, 0), &vec![2; 1 << 20])).await.unwrap();
    assert!(!temp.path().join("file").exists());
    let identity = sink.identity(&file);
    drop(file);
    let file = reopen(&sink, &entry, identity.clone()).await.unwrap();
    sink.commit(file, Arc::clone(&entry), None).await.unwrap();
    assert_eq!(tree(temp.path()), ["file"]);
    assert_eq!(fs::metadata(temp.path().join("file")).unwrap().len(), 1 << 20);
    let file = reopen(&sink, &entry, identity.clone()).await;
    assert!(file.is_some_and(|file| sink.identity(&file) == identity), "it has its name now");
}

#[tokio::test]
async fn small_files_are_written_into_too() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("file");
    fs::write(&path, b"a longer old content").unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let sink = sink_with(temp.path(), &in_place(None));
    write(&sink, &entry(1, 0, b"file", file_kind(3)), b"new").await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    write(&sink, &entry(2, 0, b"missing", file_kind(3)), b"new").await.unwrap();
    assert_eq!(tree(temp.path()), ["file", "missing"]);
    assert_eq!(fs::metadata(temp.path().join("missing")).unwrap().mode() & 0o777, 0o644);
}

#[tokio::test]
async fn symlinks_and_special_files_are_replaced_and_not_written_into() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(temp.path().join("canary"), b"stays").unwrap();
    let sink = sink_with(&root, &in_place(None));
    for (id, is_small) in [(1, true), (2, false)] {
        symlink("../canary", root.join("link")).unwrap();
        let mode = FsMode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, mode, 0).unwrap();
        assert!(fs::symlink_metadata(root.join("fifo")).unwrap().file_type().is_fifo());
        for (name, id) in [(&b"link"[..], id), (b"fifo", id + 10)] {
            let entry = entry(id, 0, name, file_kind(3));
            if is_small {
                write(&sink, &entry, b"new").await.unwrap();
            } else {
                let file = sink.create(Arc::clone(&entry), None).await.unwrap();
                sink.write(file.clone(), verified_chunk(chunk(&entry, 0), b"new")).await.unwrap();
                sink.commit(file, entry, None).await.unwrap();
            }
        }
        for name in ["link", "fifo"] {
            assert!(fs::symlink_metadata(root.join(name)).unwrap().is_file());
            assert_eq!(fs::read(root.join(name)).unwrap(), b"new");
            fs::remove_file(root.join(name)).unwrap();
        }
    }
    assert_eq!(fs::read(temp.path().join("canary")).unwrap(), b"stays");
    assert_eq!(tree(&root), [""; 0]);
}

#[tokio::test]
async fn a_backup_is_copied_before_anything_is_written() {
    let temp = tempfile::tempdir().unwrap();
    let backup = Backup { directory: None, suffix: b"~".to_vec() };
    let sink = sink_with(temp.path(), &in_place(Some(backup)));
    fs::write(temp.path().join("file"), b"old").unwrap();
    write(&sink, &entry(1, 0, b"file", file_kind(5)), b"newer").await.unwrap();
    assert_eq!(fs::read(temp.path().join("file~")).unwrap(), b"old");
    let large = entry(2, 0, b"file", file_kind(1 << 20));
    let file = sink.create(Arc::clone(&large), None).await.unwrap();
    sink.write(file.clone(), verified_chunk(chunk(&large, 0), &vec![5; 1 << 20])).await.unwrap();
    sink.commit(file, large, None).await.unwrap();
    assert_eq!(fs::read(temp.path().join("file~")).unwrap(), b"newer");
    assert_eq!(tree(temp.path()), ["file", "file~"]);
}
