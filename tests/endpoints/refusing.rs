//! SFTP servers that refuse and lie: a real one, some of whose answers are made up on the way.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use fastsync::protocol::chunk::Digest;
use fastsync::storage::remote::{Class, Endpoint, Kept, RemoteSink};
use fastsync::storage::sftp::{Dial, SftpEndpoint, Wire};
use fastsync::storage::{Left, Sink};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::servers::support::{PATIENCE, until};
use crate::subject::key;
use crate::tools::*;

/// What is made up for a request, each without its length; `None` lets the server answer it. What is empty
/// is no answer.
type Answering = Arc<Mutex<dyn FnMut(&[u8]) -> Option<Vec<u8>> + Send>>;

/// One connection to OpenSSH's server, without any ssh, which cannot replace files at once.
async fn connect(answering: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SftpEndpoint {
    let answering: Answering = Arc::new(Mutex::new(answering));
    let dial: Dial = Arc::new(move |_| {
        let answering = Arc::clone(&answering);
        Box::pin(async move { Ok(between(answering)) })
    });
    SftpEndpoint::connect(dial, "sftp://test".to_owned(), 1, false).await.unwrap()
}

fn between(answering: Answering) -> Wire {
    let mut command = Command::new("/usr/lib/openssh/sftp-server");
    command.args(["-P", "posix-rename"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = command.kill_on_drop(true).spawn().unwrap();
    let (mut requests, mut answers) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
    let (input, mut towards_client) = tokio::io::duplex(1 << 20);
    let (mut from_client, output) = tokio::io::duplex(1 << 20);
    let (said, saying) = flume::unbounded::<Vec<u8>>();
    let mut tasks = JoinSet::new();
    let made_up = said.clone();
    tasks.spawn(async move {
        while let Some(packet) = packet(&mut from_client).await {
            let answer = (answering.lock().unwrap())(&packet[4..]);
            match answer {
                Some(answer) if answer.is_empty() => {}
                Some(answer) => {
                    let len = u32::try_from(answer.len()).unwrap().to_be_bytes();
                    let _ = made_up.send([&len[..], &answer].concat());
                }
                None => requests.write_all(&packet).await.unwrap(),
            }
        }
    });
    tasks.spawn(async move {
        while let Some(packet) = packet(&mut answers).await {
            let _ = said.send(packet);
        }
    });
    tasks.spawn(async move {
        while let Ok(packet) = saying.recv_async().await {
            if towards_client.write_all(&packet).await.is_err() {
                return;
            }
        }
    });
    Wire { input: Box::new(input), output: Box::new(output), keeper: Box::new((server, tasks)) }
}

/// The next packet, with its length.
async fn packet(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let len = from.read_u32().await.ok()?;
    let mut packet = len.to_be_bytes().to_vec();
    packet.resize(4 + len as usize, 0);
    from.read_exact(&mut packet[4..]).await.ok()?;
    Some(packet)
}

/// An answer to a request.
fn answer(kind: u8, request: &[u8], rest: &[u8]) -> Vec<u8> {
    [&[kind][..], &request[1..5], rest].concat()
}

fn status(code: u8, request: &[u8]) -> Vec<u8> {
    answer(101, request, &[0, 0, 0, code, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// Refuses the renames of these numbers, the first one being 1.
fn refusing(numbers: &'static [u32]) -> impl FnMut(&[u8]) -> Option<Vec<u8>> + Send {
    let mut count = 0;
    move |request| {
        count += u32::from(request[0] == RENAME);
        (request[0] == RENAME && numbers.contains(&count))
            .then(|| status(PERMISSION_DENIED, request))
    }
}

/// What is in a directory: names and contents.
fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|it| it.unwrap())
        // What is being removed may be gone by now.
        .filter_map(|it| Some((it.file_name().into_string().unwrap(), fs::read(it.path()).ok()?)))
        .collect();
    found.sort();
    found
}

/// The server itself refuses the first rename, as a file is there. Then the old file is to step aside, the new
/// one to take its place, and if it cannot, the old one to come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_replaced_is_not_lost() {
    let cases: [(&[u32], Option<&str>); 4] = [
        (&[], None),
        (&[2], Some("the old file is as it was")),
        (&[3], Some("the old file is back in its place")),
        (&[3, 4], Some("the old file is now")),
    ];
    for (refused, text) in cases {
        for is_large in [false, true] {
            let endpoint = connect(refusing(refused)).await;
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("file"), "old").unwrap();
            let at = directory.path().to_str().unwrap().trim_start_matches('/');
            let key = key(format!("{at}/file").as_bytes());
            let kept = Kept::default();
            let written = if is_large {
                let upload = endpoint.begin(&key, 3, 1, &kept).await.unwrap();
                let token = endpoint.token(&upload);
                let entry = file(1, 0, "file", 3);
                let data = fastsync::protocol::chunk::ChunkData::Bytes("new".into());
                endpoint.write(&upload, 0, range(&entry, 0), data).await.unwrap();
                let finished = endpoint.finish(upload, &key, Vec::new(), &kept).await;
                let is_there = contents(directory.path()).iter().any(|it| it.1 == b"new");
                assert!(is_there, "whoever wanted it decides what becomes of it");
                if finished.is_err() {
                    endpoint.abandon(&key, &token).await.unwrap();
                }
                finished
            } else {
                endpoint.put(&key, "new".into(), &kept).await
            };
            let is_one = || contents(directory.path()).len() == 1;
            assert!(until(PATIENCE, is_one), "{:?}", contents(directory.path()));
            let (name, data) = contents(directory.path()).pop().unwrap();
            let Some(text) = text else {
                written.unwrap();
                assert_eq!((&*name, &*data), ("file", &b"new"[..]));
                continue;
            };
            let fault = written.unwrap_err();
            assert_eq!((fault.class, &*data), (Class::Denied, &b"old"[..]), "{fault}");
            assert!(fault.to_string().contains(text), "{fault}");
            assert_eq!(name == "file", refused != [3, 4]);
            assert!(name == "file" || fault.to_string().contains(&name), "{fault}");
        }
    }
}

/// Of small files that nobody waits for any more, nothing is left there: neither files nor handles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_leaves_nothing() {
    let (seen, sees) = flume::unbounded();
    let counts: Arc<Mutex<[u32; 2]>> = Arc::default();
    let counted = Arc::clone(&counts);
    let endpoint = connect(move |request| {
        let mut counts = counted.lock().unwrap();
        counts[0] += u32::from(request[0] == OPEN);
        counts[1] += u32::from(request[0] == CLOSE);
        if request[0] == WRITE {
            // A file is there by now, and has no data yet.
            let _ = seen.send(());
        }
        None
    });
    let endpoint = endpoint.await;
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_str().unwrap().trim_start_matches('/').to_owned();
    let mut puts = JoinSet::new();
    for n in 0..100 {
        let (endpoint, key) = (endpoint.clone(), key(format!("{at}/{n}").as_bytes()));
        puts.spawn(async move { endpoint.put(&key, "data".into(), &Kept::default()).await });
    }
    sees.recv_async().await.unwrap();
    puts.shutdown().await;
    tokio::time::timeout(PATIENCE, endpoint.give_up()).await.unwrap();
    let left = contents(directory.path());
    let temporary = left.iter().find(|(name, _)| name.starts_with(".fastsync-"));
    assert_eq!(temporary, None);
    let [opened, closed] = *counts.lock().unwrap();
    assert!(opened > 0 && opened == closed, "{opened} and {closed}");
}

/// A listing that nobody takes holds up no other request, even if only one may be under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_that_nobody_takes_holds_up_nobody() {
    let (seen, sees) = flume::unbounded();
    let endpoint = connect(move |request| {
        let is_held = request[0] == LSTAT && request.ends_with(b"held");
        is_held.then(|| {
            seen.send(()).unwrap();
            Vec::new()
        })
    });
    let endpoint = endpoint.await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap().trim_start_matches('/').to_owned();
    (0..500).for_each(|n| fs::write(directory.path().join(n.to_string()), "").unwrap());
    let mut held = JoinSet::new();
    for _ in 0..63 {
        let (endpoint, key) = (endpoint.clone(), key(format!("{path}/held").as_bytes()));
        held.spawn(async move { endpoint.stat(&key).await });
        sees.recv_async().await.unwrap();
    }
    let (found, finds) = flume::bounded(0);
    let (lists, top) = (endpoint.clone(), key(path.as_bytes()));
    held.spawn(async move { lists.list(&top, false, found).await.map(|()| None) });
    finds.recv_async().await.unwrap();
    let top = key(path.as_bytes());
    let other = tokio::time::timeout(PATIENCE, endpoint.stat(&top));
    assert!(other.await.unwrap().unwrap().is_some());
}

/// A server that hashes, or says so: what it says unclearly is read back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_a_server_says_clearly_counts() {
    let size = 3 * CHUNK;
    let (entry, data) = (file(1, 0, "large", size), data(size, 7));
    let hash = |index| Sha256::digest(part(range(&entry, index), &data)).to_vec();
    let right: Vec<u8> = (0..3).flat_map(hash).collect();
    let wrong = [&right[..32], &[0; 32], &right[64..]].concat();

    let cases = [
        (Some(named(&right)), [true; 3], 0),
        (Some(named(&wrong)), [true, false, true], 0),
        (Some(named(&right[..64])), [true; 3], 3),
        (Some(named(&[&right[..], &right].concat())), [true; 3], 3),
        (Some(right.clone()), [true; 3], 3),
        (Some(Vec::new()), [true; 3], 3),
        (None, [true; 3], 3),
    ];
    for (told, wanted, are_read) in cases {
        let reads: Arc<Mutex<Vec<u64>>> = Arc::default();
        let noted = Arc::clone(&reads);
        let mut is_tried = false;
        let endpoint = connect(move |request| {
            if request[0] == READ {
                // Behind the number and the handle.
                let at = 9 + usize::from(request[8]);
                let offset = u64::from_be_bytes(request[at..at + 8].try_into().unwrap());
                noted.lock().unwrap().push(offset / CHUNK);
            }
            if !request.windows(15).any(|it| it == b"check-file-name") {
                return None;
            }
            if !std::mem::replace(&mut is_tried, true) {
                return Some(answer(EXTENDED_REPLY, request, &named(&[7; 32])));
            }
            let told = told.as_ref().map(|it| answer(EXTENDED_REPLY, request, it));
            Some(told.unwrap_or_else(|| status(UNSUPPORTED, request)))
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let top = key(directory.path().to_str().unwrap().trim_start_matches('/').as_bytes());
        let sink =
            async || RemoteSink::open(endpoint.clone(), top.clone(), true, false, &options()).await;
        let first = sink().await.unwrap();
        let upload = first.create(Arc::clone(&entry), None).await.unwrap();
        let mut receipts = Vec::new();
        for index in 0..3 {
            let receipt = first.write(upload.clone(), chunk(&entry, index, &data)).await.unwrap();
            receipts.push((index, receipt));
        }
        let left = Left { token: first.identity(&upload), receipts };
        let later = sink().await.unwrap();
        let reopened = later.reopen(Arc::clone(&entry), left).await.unwrap().unwrap();
        let ranges: Vec<(_, Digest)> = (0..3)
            .map(|index| range(&entry, index))
            .map(|range| (range, digest(range, part(range, &data))))
            .collect();
        assert_eq!(later.holds(reopened.file, ranges, &pool()).await, wanted);
        let mut reads = reads.lock().unwrap().clone();
        reads.sort_unstable();
        reads.dedup();
        assert_eq!(reads.len(), are_read);
    }
}

/// What `ProFTPD` says.
fn named(hashes: &[u8]) -> Vec<u8> {
    [b"\0\0\0\x06sha256", hashes].concat()
}

const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const WRITE: u8 = 6;
const READ: u8 = 5;
const LSTAT: u8 = 7;
const RENAME: u8 = 18;
const EXTENDED_REPLY: u8 = 201;
const PERMISSION_DENIED: u8 = 3;
const UNSUPPORTED: u8 = 8;
