//! What the source does not have.

use fastsync::protocol::message::{Delete, FailureCode, Options, Select};
use fastsync::storage::{NameSet, Sink};

use crate::subject::Subject;
use crate::tools::*;

fn deleting(delete: Delete) -> Options {
    Options { delete: Some(delete), ..options() }
}

/// Files whose names tell what becomes of them.
async fn plant(subject: &impl Subject) {
    for path in ["to/keep", "to/extra", "to/d/keep", "to/d/extra", "to/gone/a", "to/gone/b/c"] {
        subject.write(path.as_bytes(), b"data").await;
    }
}

async fn paths(subject: &impl Subject) -> Vec<String> {
    subject.files().await.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

/// What is told of a tree that goes: directories only where they are things of their own.
fn told(subject: &impl Subject, all: &[&str]) -> Vec<String> {
    let has_directories = subject.properties().keeps.directories;
    let is_told = |path: &&&str| has_directories || !path.ends_with('/');
    let mut told: Vec<_> =
        all.iter().filter(is_told).map(|path| path.trim_end_matches('/').to_owned()).collect();
    told.sort();
    told
}

pub async fn what_the_source_lacks_goes(subject: &impl Subject) {
    plant(subject).await;
    let sink = subject.sink("to", &deleting(Delete::default())).await.unwrap();
    place(&sink, &directory(1, 0, "d")).await.unwrap();
    let names = names(&[(0, "keep"), (0, "d"), (1, "keep")]);
    let (deleted, over) = delete(&sink, &[0, 1], names).await.unwrap();
    let all = ["extra", "d/extra", "gone/a", "gone/b/c", "gone/b/", "gone/"];
    assert_eq!((deleted, over), (told(subject, &all), 0));
    assert_eq!(paths(subject).await, ["to/d/keep", "to/keep"]);
    if subject.properties().keeps.directories {
        assert_eq!(subject.directories().await, [&b"to"[..], b"to/d"]);
    }
    assert!(sink.complaints().is_empty());
}

pub async fn filters_protect(subject: &impl Subject) {
    plant(subject).await;
    subject.write(b"to/gone/b/precious", b"data").await;
    let select =
        Select { filters: vec![b"- precious".to_vec(), b"P /extra".to_vec()], ..Select::default() };
    let options = Options { select, ..deleting(Delete::default()) };
    let sink = subject.sink("to", &options).await.unwrap();
    place(&sink, &directory(1, 0, "d")).await.unwrap();
    let names = names(&[(0, "keep"), (0, "d"), (1, "keep")]);
    let (deleted, _) = delete(&sink, &[0, 1], names).await.unwrap();
    assert_eq!(deleted, ["d/extra", "gone/a", "gone/b/c"]);
    let left = ["to/d/keep", "to/extra", "to/gone/b/precious", "to/keep"];
    assert_eq!(paths(subject).await, left);
    assert!(sink.complaints().is_empty());
}

pub async fn no_more_than_the_limit(subject: &impl Subject) {
    plant(subject).await;
    let limited = Delete { max: Some(2), ..Delete::default() };
    let sink = subject.sink("to", &deleting(limited)).await.unwrap();
    place(&sink, &directory(1, 0, "d")).await.unwrap();
    let all = told(subject, &["extra", "d/extra", "gone/a", "gone/b/c", "gone/b/", "gone/"]).len();
    let names = names(&[(0, "keep"), (0, "d"), (1, "keep")]);
    let (deleted, over) = delete(&sink, &[0, 1], names).await.unwrap();
    assert_eq!((deleted.len(), over), (2, (all - 2) as u64));
    assert!(sink.complaints().is_empty());
}

pub async fn an_empty_source_deletes_nothing(subject: &impl Subject) {
    plant(subject).await;
    let before = paths(subject).await;
    let sink = subject.sink("to", &deleting(Delete::default())).await.unwrap();
    let refused = delete(&sink, &[0], NameSet::default()).await.unwrap_err();
    assert_eq!(refused.code(), FailureCode::Conflict);
    assert_eq!(paths(subject).await, before);
    // Also a directory that was named.
    place(&sink, &directory(1, 0, "d")).await.unwrap();
    let refused = delete(&sink, &[1], names(&[(0, "d")])).await.unwrap_err();
    assert_eq!(refused.code(), FailureCode::Conflict);
    assert_eq!(paths(subject).await, before);
    let allowed = Delete { allow_empty_source: true, ..Delete::default() };
    let sink = subject.sink("to", &deleting(allowed)).await.unwrap();
    delete(&sink, &[0], NameSet::default()).await.unwrap();
    assert!(subject.files().await.is_empty());
}

/// DEL-2: nor does what is below them go.
pub async fn incomplete_directories_stay(subject: &impl Subject) {
    for path in ["to/a/extra", "to/a/b/extra", "to/a/b/keep", "to/keep"] {
        subject.write(path.as_bytes(), b"data").await;
    }
    let before = paths(subject).await;
    let sink = subject.sink("to", &deleting(Delete::default())).await.unwrap();
    place(&sink, &directory(1, 0, "a")).await.unwrap();
    place(&sink, &directory(2, 1, "b")).await.unwrap();
    let known = [(0, "keep"), (0, "a"), (1, "b"), (2, "keep")];
    let (deleted, _) = delete(&sink, &[0, 2], names(&known)).await.unwrap();
    assert!(deleted.is_empty(), "{deleted:?}");
    assert_eq!(paths(subject).await, before);
}

pub async fn a_dry_run_only_tells(subject: &impl Subject) {
    plant(subject).await;
    let before = paths(subject).await;
    let options = Options { dry_run: true, ..deleting(Delete::default()) };
    let sink = subject.sink("to", &options).await.unwrap();
    for entry in [directory(1, 0, "d"), directory(2, 0, "new"), directory(3, 2, "new")] {
        place(&sink, &entry).await.unwrap();
    }
    let known = [(0, "keep"), (0, "d"), (0, "new"), (1, "keep"), (2, "new"), (3, "file")];
    let (deleted, _) = delete(&sink, &[0, 1, 2, 3], names(&known)).await.unwrap();
    let all = ["extra", "d/extra", "gone/a", "gone/b/c", "gone/b/", "gone/"];
    assert_eq!(deleted, told(subject, &all));
    assert_eq!(paths(subject).await, before);
    assert!(sink.complaints().is_empty());
}

/// What another job has not completed is not to be lost, nor any state.
pub async fn other_jobs_files_stay(subject: &impl Subject) {
    if !subject.lists_hidden() {
        return;
    }
    plant(subject).await;
    let ours = ["to/.fastsync-01234567-0123456789abcdef", "to/.fastsync/jobs"];
    for path in ours {
        subject.write(path.as_bytes(), b"data").await;
    }
    let sink = subject.sink("to", &deleting(Delete::default())).await.unwrap();
    delete(&sink, &[0], names(&[(0, "keep")])).await.unwrap();
    let mut expected = ours.to_vec();
    expected.push("to/keep");
    expected.sort_unstable();
    assert_eq!(paths(subject).await, expected);
}

/// However much is known of the destination's own directory.
pub async fn the_top_is_told_once(subject: &impl Subject) {
    plant(subject).await;
    let sink = subject.sink("to", &deleting(Delete::default())).await.unwrap();
    sink.keep_root(directory(1, 0, "-").metadata.clone());
    let (deleted, _) = delete(&sink, &[0], names(&[(0, "keep"), (0, "d")])).await.unwrap();
    let all = ["extra", "gone/a", "gone/b/c", "gone/b/", "gone/"];
    assert_eq!(deleted, told(subject, &all));
    assert!(sink.complaints().is_empty());
}
