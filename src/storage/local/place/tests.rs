//! Tests of what is done about existing things, and of metadata.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fd::AsFd as _;

use super::super::acl::Acl;
use super::super::acl::tests::value as acl;
use super::super::attributes::{self, ACCESS_ACL, DEFAULT_ACL};
use super::super::testing::{
    CREATED, JOB, entry, file_kind, finish, options, verified_file, write_files,
};
use super::super::{LocalSink, only_mtime};
use super::*;
use crate::protocol::chunk::{ByteRange, Digest, EntryId};
use crate::protocol::manifest::Timestamp;
use crate::protocol::message::{
    Attribute, Keep, Links, MakeRoom, Metadata, Mode, Options, Owner, Preserve, Special, Update,
};
use crate::storage::{Existing, Sink as _};

/// A destination, and a place beside it.
struct World {
    temp: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("to")).unwrap();
        Self { temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join("to").join(name)
    }

    fn sink(&self, options: &Options) -> LocalSink {
        let to = self.temp.path().join("to");
        LocalSink::open(to.as_os_str().as_bytes(), false, JOB, options).unwrap()
    }

    /// What one entry is answered, in a dry run and then really.
    async fn place(&self, options: &Options, entry: &Arc<Entry>) -> Placed {
        let dry = self.sink(&Options { dry_run: true, ..options.clone() });
        let before = self.picture();
        let told = dry.place(vec![Arc::clone(entry)]).await.remove(0).unwrap();
        assert!(finish(&dry).await.is_empty());
        assert_eq!(self.picture(), before, "a dry run changes nothing");
        let sink = self.sink(options);
        let placed = sink.place(vec![Arc::clone(entry)]).await.remove(0).unwrap();
        assert_eq!(told, placed, "a dry run tells what will be done");
        let complaints = finish(&sink).await;
        assert!(complaints.is_empty(), "{complaints:?}");
        placed
    }

    /// Everything about everything at the destination.
    fn picture(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![self.temp.path().to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for item in fs::read_dir(dir).unwrap() {
                let path = item.unwrap().path();
                let data = fs::symlink_metadata(&path).unwrap();
                // Whatever changes, this does.
                let changed = (data.ctime(), data.ctime_nsec());
                found.push(format!("{path:?} {} {changed:?}", data.ino()));
                if data.is_dir() {
                    dirs.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn settled(changes: Changes) -> Placed {
    Placed::Settled(changes)
}

/// A file with this content, and with the mode and time of entries made here.
fn write(path: &Path, data: &[u8]) {
    fs::write(path, data).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    set_time(path, usual());
}

fn set_time(path: &Path, time: Timestamp) {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &only_mtime(time), flags).unwrap();
}

/// The mtime of every entry made here.
fn usual() -> Timestamp {
    seconds(1_000_000)
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp::new(seconds, 5).unwrap()
}

fn with(entry: &Arc<Entry>, change: impl FnOnce(&mut Metadata)) -> Arc<Entry> {
    let mut entry = Entry::clone(entry);
    change(&mut entry.metadata);
    Arc::new(entry)
}

fn own(metadata: &mut Metadata) {
    metadata.owner = rustix::process::geteuid().as_raw();
    metadata.group = rustix::process::getegid().as_raw();
}

fn attribute(name: &[u8], value: &[u8]) -> Attribute {
    Attribute { name: name.to_vec(), value: value.to_vec() }
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(
        path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW,
        rustix::fs::Mode::empty(),
    )
    .unwrap()
}

fn attributes_of(path: &Path) -> Vec<Attribute> {
    let all = attributes::read(open(path).as_fd(), true, true).unwrap();
    all.into_iter().filter(|it| !it.name.starts_with(b"security.selinux")).collect()
}

fn set_attribute(path: &Path, name: &[u8], value: &[u8]) -> bool {
    attributes::set(open(path).as_fd(), name, value).is_ok()
}

fn updating(change: impl FnOnce(&mut Update)) -> Options {
    let mut options = options();
    change(&mut options.update);
    options
}

/// As `-aHAX` has it.
fn all() -> Options {
    let preserve = Preserve {
        special_bits: true,
        owner: Keep::IfAllowed,
        group: Keep::IfAllowed,
        attributes: true,
        acls: true,
        devices: true,
        specials: true,
        root: true,
        ..Preserve::default()
    };
    Options { preserve, ..options() }
}

fn list(paths: &World) -> Vec<String> {
    let items = fs::read_dir(paths.path("")).unwrap();
    let mut names: Vec<_> =
        items.map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_options_say_which_files_are_wanted() {
    let world = World::new();
    let path = world.path("file");
    let (old, new) = (seconds(900_000), seconds(1_100_000));
    let content = Changes::CONTENT;
    let time = content.with(Changes::TIME);
    let both = time.with(Changes::SIZE);
    let plain = |_: &mut Update| {};
    let compare = |compare| move |update: &mut Update| update.compare = compare;
    let newer = |update: &mut Update| update.keep_newer = true;
    let window = |update: &mut Update| update.modify_window = 100_000;
    let ignore = |update: &mut Update| update.ignore_existing = true;
    let existing = |update: &mut Update| update.existing_only = true;
    let checksum = Changes::CHECKSUM;
    for (options, size, mtime, expected) in [
        (updating(plain), 4, usual(), settled(Changes::NONE)),
        (updating(plain), 4, old, Placed::Wanted(time)),
        (updating(plain), 5, new, Placed::Wanted(both)),
        (updating(plain), 5, usual(), Placed::Wanted(content.with(Changes::SIZE))),
        (updating(compare(Compare::SizeOnly)), 4, usual(), settled(Changes::NONE)),
        (updating(compare(Compare::Always)), 4, usual(), Placed::Wanted(content)),
        (updating(compare(Compare::Checksum)), 4, old, Placed::Compare(Existing::Unread)),
        (updating(compare(Compare::Checksum)), 5, old, Placed::Wanted(both.with(checksum))),
        (updating(newer), 4, new, Placed::Left),
        (updating(newer), 4, old, Placed::Wanted(time)),
        (updating(newer), 4, usual(), settled(Changes::NONE)),
        (updating(window), 4, old, settled(Changes::NONE)),
        (updating(window), 4, seconds(899_999), Placed::Wanted(time)),
        (updating(ignore), 5, old, Placed::Left),
        (updating(existing), 5, old, Placed::Wanted(both)),
    ] {
        write(&path, &vec![7; size]);
        set_time(&path, mtime);
        let placed = world.place(&options, &entry(1, 0, b"file", file_kind(4))).await;
        assert_eq!(placed, expected, "{:?} {size} {mtime:?}", options.update);
    }
    fs::remove_file(&path).unwrap();
    let (file, link) = (file_kind(4), Kind::Symlink { target: b"x".to_vec() });
    for (options, expected) in
        [(updating(ignore), CREATED), (updating(newer), CREATED), (updating(plain), CREATED)]
    {
        let placed = world.place(&options, &entry(1, 0, b"file", file.clone())).await;
        assert_eq!(placed, Placed::Wanted(expected));
    }
    for kind in [file, link, Kind::Directory, Kind::Special(Special::Fifo)] {
        let mut options = updating(existing);
        options.preserve.specials = true;
        let placed = world.place(&options, &entry(1, 0, b"file", kind)).await;
        assert_eq!(placed, Placed::Left);
    }
    assert!(list(&world).is_empty());
}

#[tokio::test]
async fn nothing_is_made_in_a_directory_that_is_not_made() {
    let world = World::new();
    let options = updating(|update| update.existing_only = true);
    let entries = vec![
        entry(1, 0, b"dir", Kind::Directory),
        entry(2, 1, b"sub", Kind::Directory),
        entry(3, 2, b"file", file_kind(1)),
    ];
    for dry_run in [true, false] {
        let sink = world.sink(&Options { dry_run, ..options.clone() });
        let placed = sink.place(entries.clone()).await;
        assert!(placed.iter().all(|it| matches!(it, Ok(Placed::Left))), "{placed:?}");
        let (file, leader) = (entry(4, 2, b"l", file_kind(1)), Arc::clone(&entries[2]));
        assert_eq!(sink.link(file, leader).await.unwrap(), Placed::Left);
        assert!(finish(&sink).await.is_empty());
    }
    assert!(list(&world).is_empty());
}

#[tokio::test]
async fn a_time_of_equal_data_is_corrected() {
    let world = World::new();
    let path = world.path("file");
    write(&path, b"data");
    set_time(&path, seconds(5));
    let file = entry(1, 0, b"file", file_kind(4));
    let options = updating(|update| update.compare = Compare::SizeOnly);
    assert_eq!(world.place(&options, &file).await, settled(Changes::TIME));
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 1_000_000);
    assert_eq!(world.place(&options, &file).await, settled(Changes::NONE));
}

#[tokio::test]
async fn data_is_compared_before_it_is_wanted() {
    let world = World::new();
    let path = world.path("file");
    write(&path, b"data");
    set_time(&path, seconds(5));
    let file = entry(1, 0, b"file", file_kind(4));
    let options = updating(|update| update.compare = Compare::Checksum);
    let sink = world.sink(&options);
    assert_eq!(world.place(&options, &file).await, Placed::Compare(Existing::Unread));
    let open = sink.open_existing(Arc::clone(&file)).await.unwrap();
    let range = ByteRange::new(EntryId(1), 0, 4, true).unwrap();
    let digest = sink.digest(open, range, &super::super::testing::pool()).await.unwrap();
    assert_eq!(digest, Digest::of(b"data"));
    let wanted = sink.place_compared(Arc::clone(&file), false).await.unwrap();
    let changes = Changes::CONTENT.with(Changes::CHECKSUM).with(Changes::TIME);
    assert_eq!(wanted, Placed::Wanted(changes));
    let equal = sink.place_compared(Arc::clone(&file), true).await.unwrap();
    assert_eq!(equal, settled(Changes::TIME));
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 1_000_000);
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert!(sink.open_existing(file).await.is_err());
}

#[tokio::test]
async fn metadata_of_equal_files_is_corrected() {
    let world = World::new();
    let path = world.path("file");
    write(&path, b"data");
    let file = with(&entry(1, 0, b"file", file_kind(4)), own);
    let place = async |file: &Arc<Entry>, changes| {
        assert_eq!(world.place(&all(), file).await, settled(changes));
        assert_eq!(world.place(&all(), file).await, settled(Changes::NONE), "the second time");
    };
    place(&file, Changes::NONE).await;
    let file = with(&file, |it| it.mode = Mode::from_raw(0o4444));
    place(&file, Changes::PERMISSIONS).await;
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4444);
    if is_root() {
        let file = with(&file, |it| (it.owner, it.group) = (12_345, 23_456));
        place(&file, Changes::OWNER.with(Changes::GROUP)).await;
        let data = fs::metadata(&path).unwrap();
        assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (12_345, 23_456, 0o4444));
        place(&with(&file, own), Changes::OWNER.with(Changes::GROUP)).await;
    } else {
        // Not allowed, and not asked for with insistence.
        let file = with(&file, |it| it.group = 23_456);
        place(&file, Changes::NONE).await;
    }
    let (name, value) = (b"user.name", b"value");
    if !set_attribute(&world.path(""), name, value) {
        return;
    }
    let file = with(&file, |it| it.attributes = vec![attribute(name, value)]);
    place(&file, Changes::ATTRIBUTES).await;
    assert_eq!(attributes_of(&path), file.metadata.attributes);
    assert_eq!(
        fs::metadata(&path).unwrap().mode() & 0o7777,
        0o4444,
        "though it had to be writable"
    );
    let file = with(&file, |it| it.attributes = vec![attribute(b"user.other", b"")]);
    place(&file, Changes::ATTRIBUTES).await;
    assert_eq!(attributes_of(&path), file.metadata.attributes);
    let other = acl(&[(7, 7)], &[]);
    if !set_attribute(&world.path(""), DEFAULT_ACL, &other) {
        return;
    }
    let file = with(&file, |it| {
        it.mode = Mode::from_raw(0o640);
        it.attributes.insert(0, attribute(ACCESS_ACL, &other));
    });
    place(&file, Changes::ACL.with(Changes::PERMISSIONS)).await;
    let kept = attributes_of(&path);
    let mut told = Acl::parse(&kept[0].value).unwrap();
    assert_eq!((kept.len(), told.mode(), told.is_mode_only()), (2, 0o640, false));
    told.set_mode(0o670);
    assert_eq!(told.to_value(), other, "but for what the mode says");
    let file = with(&file, |it| it.attributes = vec![]);
    place(&file, Changes::ACL.with(Changes::ATTRIBUTES)).await;
    assert_eq!(attributes_of(&path), []);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
}

#[tokio::test]
async fn new_files_have_all_metadata_whatever_their_directory_hands_down() {
    let world = World::new();
    let handed_down = acl(&[(7, 7)], &[]);
    if !set_attribute(&world.path(""), DEFAULT_ACL, &handed_down) {
        return;
    }
    let sink = world.sink(&all());
    sink.learn_owners(vec![Owner { id: 4711, name: b"root".to_vec() }], vec![]);
    let own_acl = acl(&[(4711, 4)], &[]);
    let entries = [
        entry(1, 0, b"plain", file_kind(4)),
        with(&entry(2, 0, b"acl", file_kind(4)), |it| {
            it.mode = Mode::from_raw(0o6640);
            it.attributes = vec![attribute(ACCESS_ACL, &own_acl), attribute(b"user.x", b"y")];
        }),
        with(&entry(3, 0, b"dir", Kind::Directory), |it| it.mode = Mode::from_raw(0o2750)),
        with(&entry(4, 0, b"other", Kind::Directory), |it| {
            it.mode = Mode::from_raw(0o750);
            it.attributes = vec![attribute(DEFAULT_ACL, &own_acl), attribute(b"user.d", b"z")];
        }),
        entry(5, 0, b"fifo", Kind::Special(Special::Fifo)),
    ]
    .map(|entry| with(&entry, own));
    for placed in sink.place(entries.to_vec()).await {
        let expected = [settled(CREATED), Placed::Wanted(CREATED)];
        assert!(expected.contains(&placed.unwrap()));
    }
    let inside = with(&entry(6, 3, b"inside", file_kind(4)), own);
    for file in [&entries[0], &entries[1], &inside] {
        let file = (verified_file(file.id, b"data"), Arc::clone(file));
        write_files(&sink, vec![file]).await.remove(0).unwrap();
    }
    let complaints = finish(&sink).await;
    assert!(complaints.is_empty(), "{complaints:?}");
    for name in ["plain", "dir", "dir/inside", "fifo"] {
        assert_eq!(attributes_of(&world.path(name)), [], "{name}");
    }
    let mode = |name| fs::metadata(world.path(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("plain"), mode("acl"), mode("fifo")), (0o644, 0o6640, 0o644));
    assert_eq!((mode("dir"), mode("other")), (0o2750, 0o750));
    let mut here = Acl::parse(&own_acl).unwrap();
    here.translate(|_| 0, |_| 0);
    let found = attributes_of(&world.path("other"));
    assert_eq!(found, [attribute(DEFAULT_ACL, &here.to_value()), attribute(b"user.d", b"z")]);
    here.set_mode(0o640);
    let found = attributes_of(&world.path("acl"));
    assert_eq!(found, [attribute(ACCESS_ACL, &here.to_value()), attribute(b"user.x", b"y")]);
    let again = world.sink(&all());
    again.learn_owners(vec![Owner { id: 4711, name: b"root".to_vec() }], vec![]);
    for placed in again.place(entries.to_vec()).await {
        assert_eq!(placed.unwrap(), settled(Changes::NONE));
    }
}

#[tokio::test]
async fn without_their_acls_files_get_what_their_directory_hands_down() {
    let world = World::new();
    if !set_attribute(&world.path(""), DEFAULT_ACL, &acl(&[(7, 7)], &[])) {
        return;
    }
    for permissions in [true, false] {
        let mut options = options();
        options.preserve.permissions = permissions;
        let sink = world.sink(&options);
        let file = with(&entry(1, 0, b"file", file_kind(4)), |it| it.mode = Mode::from_raw(0o777));
        let files = vec![(verified_file(file.id, b"data"), file)];
        write_files(&sink, files).await.remove(0).unwrap();
        let path = world.path("file");
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode, if permissions { 0o777 } else { 0o670 }, "no umask where there is an ACL");
        assert_eq!(attributes_of(&path).len(), 1);
        fs::remove_file(path).unwrap();
    }
}

#[tokio::test]
async fn names_of_attributes_that_are_not_ours_to_set_are_not_set() {
    let world = World::new();
    let names = [
        &b"security."[..],
        b"system.nfs4_acl",
        b"system.posix_acl_default",
        b"trusted.x",
        b"weird",
    ];
    let file = with(&entry(1, 0, b"file", file_kind(4)), |it| {
        own(it);
        it.attributes = names.map(|name| attribute(name, b"value")).to_vec();
    });
    let sink = world.sink(&all());
    let files = vec![(verified_file(file.id, b"data"), file)];
    write_files(&sink, files).await.remove(0).unwrap();
    let complaints = finish(&sink).await;
    let found = attributes_of(&world.path("file"));
    if complaints.is_empty() {
        assert_eq!(found, [attribute(b"trusted.x", b"value")]);
    } else {
        let [StorageError::Attribute { name, .. }] = &complaints[..] else {
            panic!("{complaints:?}");
        };
        assert_eq!((&name[..], found), (&b"trusted.x"[..], vec![]));
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_complained_of() {
    let world = World::new();
    let mut options = all();
    options.preserve.owner = Keep::Always;
    let file = with(&entry(1, 0, b"file", file_kind(4)), |it| {
        it.owner = if is_root() { 4711 } else { 0 };
        it.mode = Mode::from_raw(0o4755);
        it.attributes = vec![attribute(ACCESS_ACL, b"no ACL")];
    });
    let sink = world.sink(&options);
    let files = vec![(verified_file(file.id, b"data"), Arc::clone(&file))];
    write_files(&sink, files).await.remove(0).unwrap();
    let mut complaints = finish(&sink).await.into_iter().map(|it| it.to_string());
    let mode = fs::metadata(world.path("file")).unwrap().mode() & 0o7777;
    if is_root() {
        assert_eq!(mode, 0o4755);
    } else {
        assert!(complaints.next().unwrap().contains("set the owner of file"));
        assert_eq!(mode, 0o755, "it is no program of root's");
    }
    assert!(complaints.next().unwrap().contains("system.posix_acl_access of file"));
    assert_eq!(complaints.next(), None);
}

#[tokio::test]
async fn directories_tell_what_changes() {
    let world = World::new();
    let path = world.path("dir");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    let dir = with(&entry(1, 0, b"dir", Kind::Directory), |it| {
        own(it);
        it.mode = Mode::from_raw(0o1755);
    });
    let both = Changes::PERMISSIONS.with(Changes::TIME);
    assert_eq!(world.place(&all(), &dir).await, settled(both));
    let data = fs::metadata(&path).unwrap();
    assert_eq!((data.mode() & 0o7777, data.mtime(), data.mtime_nsec()), (0o1755, 1_000_000, 5));
    assert_eq!(world.place(&all(), &dir).await, settled(Changes::NONE));
    let mut options = all();
    options.preserve.directory_times = false;
    set_time(&path, seconds(5));
    assert_eq!(world.place(&options, &dir).await, settled(Changes::NONE));
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 5);
    if set_attribute(&path, b"user.x", b"y") {
        assert_eq!(world.place(&options, &dir).await, settled(Changes::ATTRIBUTES));
        assert_eq!(attributes_of(&path), []);
    }
}

#[tokio::test]
async fn the_destination_itself_gets_metadata_in_the_end() {
    let world = World::new();
    let sink = world.sink(&all());
    let mut root = Metadata { mode: Mode::from_raw(0o2711), mtime: usual(), ..Metadata::default() };
    own(&mut root);
    sink.keep_root(root);
    let file = with(&entry(1, 0, b"file", file_kind(4)), own);
    let state = sink.open_state().await.unwrap();
    write_files(&sink, vec![(verified_file(file.id, b"data"), file)]).await.remove(0).unwrap();
    assert!(finish(&sink).await.is_empty());
    state.remove().unwrap();
    let data = fs::metadata(world.path("")).unwrap();
    assert_eq!((data.mode() & 0o7777, data.mtime()), (0o2711, 1_000_000), "and keeps it");
    assert_eq!(list(&world), ["file"]);
}

#[tokio::test]
async fn symlinks_are_corrected() {
    let world = World::new();
    let path = world.path("link");
    let link = |target: &[u8]| entry(1, 0, b"link", Kind::Symlink { target: target.to_vec() });
    let link = |target: &[u8]| with(&link(target), own);
    assert_eq!(world.place(&all(), &link(b"x")).await, settled(CREATED));
    assert_eq!(world.place(&all(), &link(b"x")).await, settled(Changes::NONE));
    set_time(&path, seconds(5));
    assert_eq!(world.place(&all(), &link(b"x")).await, settled(Changes::TIME));
    assert_eq!(fs::symlink_metadata(&path).unwrap().mtime(), 1_000_000);
    if is_root() {
        let foreign = with(&link(b"x"), |it| it.owner = 4711);
        assert_eq!(world.place(&all(), &foreign).await, settled(Changes::OWNER));
        assert_eq!(fs::symlink_metadata(&path).unwrap().uid(), 4711);
        assert_eq!(world.place(&all(), &link(b"x")).await, settled(Changes::OWNER));
        let named = with(&link(b"x"), |it| it.attributes = vec![attribute(b"trusted.x", b"y")]);
        if set_attribute(&path, b"trusted.a", b"b") {
            assert_eq!(world.place(&all(), &named).await, settled(Changes::ATTRIBUTES));
            assert_eq!(attributes_of(&path), named.metadata.attributes);
            assert_eq!(world.place(&all(), &link(b"x")).await, settled(Changes::ATTRIBUTES));
        }
    }
    let changes = Changes::CONTENT.with(Changes::CHECKSUM);
    assert_eq!(world.place(&all(), &link(b"y")).await, settled(changes));
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("y"));
    let mut safe = all();
    safe.select.links = Links::OnlySafe;
    assert_eq!(world.place(&safe, &link(b"../out")).await, Placed::Left);
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("y"));
    assert_eq!(list(&world), ["link"]);
}

#[tokio::test]
async fn special_files_are_made() {
    let world = World::new();
    let special = |special| with(&entry(1, 0, b"it", Kind::Special(special)), own);
    let place = async |kind, changes| {
        assert_eq!(world.place(&all(), &special(kind)).await, settled(changes));
        assert_eq!(world.place(&all(), &special(kind)).await, settled(Changes::NONE));
        let data = fs::symlink_metadata(world.path("it")).unwrap();
        assert_eq!((data.mode() & 0o7777, data.mtime()), (0o644, 1_000_000));
        data
    };
    assert!(place(Special::Fifo, CREATED).await.file_type().is_fifo());
    let replaced = CREATED.with(Changes::TYPE);
    assert!(place(Special::Socket, replaced).await.file_type().is_socket());
    let device = |minor| Special::CharacterDevice { major: 1, minor };
    if world.sink(&all()).place(vec![special(device(3))]).await.remove(0).is_err() {
        return; // devices need rights
    }
    let changes = Changes::CONTENT.with(Changes::CHECKSUM);
    let data = place(device(5), changes).await;
    assert_eq!((rustix::fs::major(data.rdev()), rustix::fs::minor(data.rdev())), (1, 5));
    let block = Special::BlockDevice { major: 7, minor: 300 };
    let data = place(block, replaced).await;
    assert_eq!((rustix::fs::major(data.rdev()), rustix::fs::minor(data.rdev())), (7, 300));
    assert_eq!(list(&world), ["it"]);
}

#[tokio::test]
async fn special_files_that_nobody_asked_for_are_refused() {
    let world = World::new();
    for special in [Special::Fifo, Special::CharacterDevice { major: 1, minor: 3 }] {
        let entries = vec![entry(1, 0, b"it", Kind::Special(special))];
        assert!(world.sink(&options()).place(entries).await.remove(0).is_err());
    }
    assert!(list(&world).is_empty());
}

#[tokio::test]
async fn hard_links_are_made_and_recognised() {
    let world = World::new();
    fs::create_dir(world.path("dir")).unwrap();
    let sink = world.sink(&options());
    let dry = world.sink(&Options { dry_run: true, ..options() });
    let dir = entry(1, 0, b"dir", Kind::Directory);
    for sink in [&sink, &dry] {
        sink.place(vec![Arc::clone(&dir)]).await.remove(0).unwrap();
    }
    let leader = entry(2, 1, b"leader", file_kind(4));
    let link = entry(3, 0, b"link", Kind::HardLink { leader: EntryId(2) });
    let new = settled(Changes::CREATED.with(Changes::LINKED));
    let answer = async |sink: &LocalSink| {
        sink.link(Arc::clone(&link), Arc::clone(&leader)).await.map_err(|error| error.to_string())
    };
    assert_eq!(answer(&dry).await, Ok(new), "the leader would be made");
    assert!(answer(&sink).await.unwrap_err().contains("link"), "there is no leader");
    write(&world.path("dir/leader"), b"data");
    assert_eq!(answer(&dry).await, Ok(new));
    assert!(!world.path("link").exists());
    assert_eq!(answer(&sink).await, Ok(new));
    let inode = |name| fs::symlink_metadata(world.path(name)).unwrap().ino();
    assert_eq!(inode("dir/leader"), inode("link"));
    assert_eq!(answer(&dry).await, Ok(settled(Changes::NONE)));
    assert_eq!(answer(&sink).await, Ok(settled(Changes::NONE)));
    fs::remove_file(world.path("link")).unwrap();
    write(&world.path("link"), b"longer");
    let changed = settled(Changes::LINKED.with(Changes::SIZE));
    assert_eq!(answer(&dry).await, Ok(changed));
    assert_eq!(answer(&sink).await, Ok(changed));
    assert_eq!(fs::read(world.path("link")).unwrap(), b"data");
    fs::remove_file(world.path("link")).unwrap();
    symlink("dir", world.path("link")).unwrap();
    assert_eq!(answer(&sink).await, Ok(new.with(Changes::TYPE)), "another type");
    fs::remove_file(world.path("dir/leader")).unwrap();
    symlink("x", world.path("dir/leader")).unwrap();
    let leader = entry(2, 1, b"leader", Kind::Symlink { target: b"x".to_vec() });
    assert_eq!(sink.link(link, leader).await.unwrap(), new.with(Changes::TYPE));
    assert_eq!(fs::read_link(world.path("link")).unwrap(), Path::new("x"));
    assert_eq!(list(&world), ["dir", "link"]);
}

#[tokio::test]
async fn equal_files_of_earlier_copies_are_linked() {
    let world = World::new();
    let earlier = world.temp.path().join("earlier");
    fs::create_dir_all(earlier.join("dir")).unwrap();
    write(&earlier.join("dir/file"), b"data");
    let mut options = updating(|update| {
        update.link_dest = vec![b"../nowhere".to_vec(), b"../earlier".to_vec()];
    });
    let entries = [entry(1, 0, b"dir", Kind::Directory), entry(2, 1, b"file", file_kind(4))];
    let path = world.path("dir/file");
    let place = async |options: &Options, dry_run| {
        let sink = world.sink(&Options { dry_run, ..options.clone() });
        (sink.place(entries.to_vec()).await.remove(1).unwrap(), sink)
    };
    let linked = settled(Changes::CREATED.with(Changes::LINKED));
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(place(&options, true).await.0, linked);
    assert!(!path.exists());
    assert_eq!(place(&options, false).await.0, linked);
    assert_eq!(inode(&path), inode(&earlier.join("dir/file")));
    fs::remove_file(&path).unwrap();
    options.update.compare = Compare::Checksum;
    for (is_equal, expected) in [(false, Placed::Wanted(CREATED)), (true, linked)] {
        let (placed, sink) = place(&options, false).await;
        assert_eq!(placed, Placed::Compare(Existing::Unread));
        sink.open_existing(Arc::clone(&entries[1])).await.unwrap();
        let placed = sink.place_compared(Arc::clone(&entries[1]), is_equal).await.unwrap();
        assert_eq!(placed, expected);
    }
    fs::remove_file(&path).unwrap();
    options.update.compare = Compare::Quick;
    fs::set_permissions(earlier.join("dir/file"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(place(&options, false).await.0, Placed::Wanted(CREATED), "another mode");
    assert_eq!(fs::metadata(earlier.join("dir/file")).unwrap().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn other_types_give_way_as_far_as_the_options_say() {
    let world = World::new();
    let (file, full, empty) = (world.path("file"), world.path("full"), world.path("empty"));
    let giving = |room| updating(|update| update.make_room = room);
    let link = || Kind::Symlink { target: b"x".to_vec() };
    let attempt = async |room, name: &[u8], kind| {
        fs::write(&file, b"data").unwrap();
        fs::create_dir_all(full.join("sub")).unwrap();
        let _ = fs::remove_file(&empty);
        fs::create_dir_all(&empty).unwrap();
        let options = giving(room);
        let item = entry(1, 0, name, kind);
        let dry = world.sink(&Options { dry_run: true, ..options.clone() });
        let told = dry.place(vec![Arc::clone(&item)]).await.remove(0);
        let done = world.sink(&options).place(vec![item]).await.remove(0);
        assert_eq!(told.as_ref().ok(), done.as_ref().ok());
        let _ = fs::remove_dir(&file);
        match done {
            Err(StorageError::Conflict { .. }) => None,
            placed => Some(placed.unwrap()),
        }
    };
    let replaced = CREATED.with(Changes::TYPE);
    let wanted = Some(Placed::Wanted(replaced));
    for room in [MakeRoom::Files, MakeRoom::EmptyDirectories, MakeRoom::All] {
        let gives = |least: MakeRoom, placed| {
            if room as u8 >= least as u8 { placed } else { None }
        };
        let made = Some(settled(replaced));
        assert_eq!(attempt(room, b"file", link()).await, made);
        fs::remove_file(&file).unwrap();
        let dir = attempt(room, b"file", Kind::Directory).await;
        assert_eq!(dir, gives(MakeRoom::EmptyDirectories, made));
        assert_eq!(
            attempt(room, b"empty", file_kind(1)).await,
            gives(MakeRoom::EmptyDirectories, wanted)
        );
        assert_eq!(attempt(room, b"full", file_kind(1)).await, gives(MakeRoom::All, wanted));
        assert_eq!(attempt(room, b"empty", link()).await, gives(MakeRoom::EmptyDirectories, made));
    }
    fs::remove_file(&file).unwrap();
    fs::write(&file, b"data").unwrap();
    let sink = world.sink(&giving(MakeRoom::All));
    let dir = with(&entry(1, 0, b"file", Kind::Directory), |it| it.mode = Mode::from_raw(0o755));
    sink.place(vec![dir]).await.remove(0).unwrap();
    let inside = entry(2, 1, b"inside", file_kind(4));
    write_files(&sink, vec![(verified_file(inside.id, b"data"), inside)]).await.remove(0).unwrap();
    assert!(finish(&sink).await.is_empty());
    assert_eq!(fs::read(file.join("inside")).unwrap(), b"data");
    assert_eq!(list(&world), ["empty", "file", "full"]);
}

#[tokio::test]
async fn a_name_that_nobody_has_is_refused_at_once() {
    let world = World::new();
    let mut options = options();
    options.preserve.chown = (Some(b"nobody of this name".to_vec()), None);
    let to = world.path("");
    let error = LocalSink::open(to.as_os_str().as_bytes(), false, JOB, &options).unwrap_err();
    assert!(error.to_string().contains("nobody of this name"), "{error}");
}

/// What cannot be put anywhere is named with all of its path.
#[tokio::test]
async fn what_is_in_a_directory_that_failed_is_named_in_full() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("a"), b"a file").unwrap();
    let sink = super::super::testing::sink(temp.path());
    let entries = vec![
        entry(1, 0, b"a", Kind::Directory),
        entry(2, 1, b"b", Kind::Directory),
        entry(3, 2, b"c", file_kind(1)),
    ];
    let placed = sink.place(entries).await;
    assert!(matches!(placed[0], Err(StorageError::Conflict { .. })));
    let text = placed[2].as_ref().unwrap_err().to_string();
    assert_eq!(text, "cannot write a/b/c: its directory could not be made");
    assert!(finish(&sink).await.is_empty());
}

#[tokio::test]
async fn a_directory_to_link_from_that_does_not_exist_is_named_once() {
    let temp = tempfile::tempdir().unwrap();
    let update = Update { link_dest: vec![b"../nowhere at all".to_vec()], ..Update::default() };
    let options = Options { update, ..options() };
    let sink = super::super::testing::sink_with(temp.path(), &options);
    let complaints = sink.complaints();
    assert!(complaints[0].to_string().starts_with("cannot open ../nowhere at all"));
    assert!(sink.complaints().is_empty());
}
