//! The vectors of `protocol-spec/vectors` against the codec, both ways: it makes these bytes, and
//! it reads these bytes.

#![allow(clippy::unwrap_used)] // clippy.toml covers only #[test] functions, not their helpers

use std::collections::BTreeMap;
use std::fs;

use bytes::Bytes;
use fastsync::protocol::chunk::{
    ByteRange, Chunk, ChunkData, ChunkSize, Digest, EntryId, Pack, PackMember, RangeHasher,
};
use fastsync::protocol::frame::{Frame, Header};
use fastsync::protocol::handshake::{
    ChannelHello, ChannelKeys, ChannelSlot, MAGIC, MagicScanner, Side, transcript,
};
use fastsync::protocol::manifest::{Fate, FinalEntry, Name, Timestamp, Totals};
use fastsync::protocol::measure::{Measure, Measured, Ran, Run, System};
use fastsync::protocol::message::{
    Accept, Attribute, Backup, Carrier, Changes, Compare, Complaint, Delete, Deleted, Deletions,
    Dial, Durability, Entry, Failure, FailureCode, FileKind, Hello, Keep, Kind, Links, Listen,
    MakeRoom, Message, Metadata, Mode, Open, Options, Outcome, Owner, Preserve, Resume, Secret,
    Select, SocketOptions, SourceKind, SourceNode, Special, Stamp, Summary, Task, Text, Unit,
    Update, Verdict, Whereabouts,
};
use fastsync::protocol::sparse::{Extent, Sparse};
use fastsync::protocol::third_party::{
    Carried, Connected, Counters, Ended, EndedKind, Peer, Told, Transport,
};
use fastsync::protocol::tree::RootBuilder;
use fastsync::protocol::tunnel::{Body, Record};

/// FRAME-1, FRAME-6.
#[test]
fn frame_headers() {
    let vectors = Vectors::read("frames");
    for (name, header) in [
        ("ready", Frame::Ready.header(0)),
        ("chunk", chunk_frame().header(2)),
        ("hole", Frame::Chunk(Chunk::hole(whole_range(), 0)).header(3)),
        ("pack", Frame::Pack(pack()).header(4)),
        ("end", Frame::End.header(5)),
        ("probe", Frame::Probe.header(0)),
        ("sparse", Frame::Chunk(sparse()).header(6)),
    ] {
        let bytes = vectors.get(name);
        assert_eq!(hex(&header.encode()), hex(bytes), "{name}");
        assert_eq!(Header::decode(bytes.try_into().unwrap()), Ok(header), "{name}");
    }
    // INT-5: the digest of a hole is that of its zeros.
    let zeros = Digest::of(&vec![0; 65_536]);
    assert_eq!(vectors.get("hole")[32..], zeros.0);
}

/// FRAME-10.
#[test]
fn the_table_of_a_chunk_with_holes() {
    let vectors = Vectors::read("frames");
    let chunk = sparse();
    let ChunkData::Sparse(sparse) = &chunk.data else { panic!("{chunk:?}") };
    assert_eq!(hex(sparse.payload()), hex(vectors.get("sparse payload")));
    let header = Header::decode(vectors.get("sparse").try_into().unwrap()).unwrap();
    let payload = Bytes::copy_from_slice(vectors.get("sparse payload"));
    assert_eq!(header.payload_len(), payload.len());
    let Frame::Chunk(decoded) = header.with(payload).unwrap() else { panic!("{header:?}") };
    assert_eq!((decoded.range, decoded.version), (chunk.range, chunk.version));
    let verified = decoded.verify().unwrap();
    assert_eq!(hex(&verified.digest().0), hex(&chunk.digest.0));
}

/// FRAME-8, INT-4.
#[test]
fn the_table_of_a_pack() {
    let vectors = Vectors::read("frames");
    let pack = pack();
    assert_eq!(hex(&pack.payload), hex(vectors.get("pack payload")));
    assert_eq!(Digest::of(&vectors.get("pack payload")[..100]), pack.digest);
    let (files, mismatched) = pack.verify().unwrap().into_parts();
    let files: Vec<(u64, &[u8])> =
        files.iter().map(|file| (file.member().entry.0, &file.data()[..])).collect();
    assert_eq!(files, [(3, &b"hello"[..]), (4, b"")]);
    assert!(mismatched.is_empty());
}

/// SEC-2, SEC-3, SEC-4, SEC-6, FRAME-9: what two implementations must agree on before a data channel
/// carries anything.
#[test]
fn channel_handshake() {
    let vectors = Vectors::read("channel");
    let messages = Vectors::read("messages");
    let digest = transcript(messages.get("Hello agent"), messages.get("Hello client"));
    assert_eq!(hex(&digest.0), hex(vectors.get("transcript")));
    let keys = ChannelKeys::new(Secret([0x11; 32]), digest);
    let slot = ChannelSlot { channel: 3, generation: 258 };
    let binding = [0x22; 32];
    let proof = keys.proof(Side::Dialler, slot, &binding);
    let hello = ChannelHello { slot, proof };
    assert_eq!(hex(&hello.encode()), hex(vectors.get("hello")));
    assert_eq!(ChannelHello::decode(vectors.get("hello").try_into().unwrap()), Some(hello));
    let answer = keys.proof(Side::Listener, slot, &binding);
    assert_eq!(hex(&answer.0), hex(vectors.get("answer")));
    let header = chunk_frame().header(2).encode();
    for (name, side) in [("code dialler", Side::Dialler), ("code listener", Side::Listener)] {
        let key = keys.frame_key(side, slot, &binding);
        assert_eq!(hex(&key.code(&header)), hex(vectors.get(name)), "{name}");
        assert!(key.is_valid(&header, vectors.get(name).try_into().unwrap()));
    }
}

/// SEC-3 by hand, from the specification alone: the order and the widths of what is hashed.
#[test]
fn a_proof_is_what_the_specification_says() {
    let vectors = Vectors::read("channel");
    let label = b"fastsync 1 channel proof of the dialler";
    let mut input = (label.len() as u64).to_le_bytes().to_vec();
    input.extend(label);
    input.extend(vectors.get("transcript"));
    input.extend(3_u16.to_le_bytes());
    input.extend(258_u32.to_le_bytes());
    input.extend([0x22; 32]);
    let proof = blake3::keyed_hash(&[0x11; 32], &input);
    assert_eq!(hex(proof.as_bytes()), hex(&vectors.get("hello")[12..]));
}

/// PATH-8.
#[test]
fn records_of_the_tunnel() {
    let vectors = Vectors::read("tunnel");
    for (name, stream, body) in [
        ("open", 1, Body::Open),
        ("data", 1, Body::Data(b"hello")),
        ("window", 258, Body::Window(1 << 20)),
        ("close", 1, Body::Close),
        ("reset", 2, Body::Reset),
    ] {
        let record = Record { stream, body };
        assert_eq!(hex(&record.encode()), hex(vectors.get(name)), "{name}");
        assert_eq!(Record::decode(vectors.get(name)), Ok(record), "{name}");
    }
}

/// SES-2, SES-10: every message, with its length in front.
#[test]
fn control_messages() {
    let vectors = Vectors::read("messages");
    let messages = messages();
    for (name, message) in &messages {
        let bytes = vectors.get(name);
        assert_eq!(hex(&message.encode().unwrap()), hex(bytes), "{name}");
        let len = u32::from_le_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(len as usize, bytes.len() - 4, "{name}");
        assert_eq!(Message::decode(&bytes[4..]).unwrap(), *message, "{name}");
    }
    assert_eq!(vectors.0.len(), messages.len(), "a vector that nothing is compared with");
    let mut labels: Vec<&str> = messages.iter().map(|(_, message)| message.label()).collect();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), 30, "every message has a vector");
}

/// SES-1.
#[test]
fn the_magic() {
    let vectors = Vectors::read("start");
    assert_eq!(hex(&MAGIC), hex(vectors.get("magic")));
    let mut scanner = MagicScanner::default();
    let rest = scanner.push(vectors.get("noise")).unwrap().unwrap();
    assert_eq!((scanner.noise(), &rest[..]), (&b"Welcome!\n\0\xf5FSY\n"[..], &[1, 2][..]));
}

/// INT-1, INT-2, INT-6: the chunks of a file, and the root that `b3sum` prints.
#[test]
fn digests_of_chunks_and_files() {
    let vectors = Vectors::read("digests");
    let data: Vec<u8> = (0..131_073_u32).map(|n| (n % 251) as u8).collect();
    let size = ChunkSize::MIN;
    let count = size.count(data.len() as u64);
    let mut builder = RootBuilder::new(count);
    for index in (0..count).rev() {
        let range = size.range(EntryId(1), index, data.len() as u64).unwrap();
        let mut hasher = RangeHasher::new(range);
        hasher.update(&data[usize::try_from(range.offset()).unwrap()..]);
        let digest = hasher.finish().unwrap();
        assert_eq!(hex(&digest.0), hex(vectors.get(&format!("chunk {index}"))));
        builder.insert(index, digest);
    }
    assert_eq!(hex(&builder.root().unwrap().0), hex(vectors.get("root")));
    assert_eq!(hex(&Digest::of(&data).0), hex(vectors.get("root")));
    assert_eq!(hex(&RootBuilder::new(0).root().unwrap().0), hex(vectors.get("empty")));
}

/// END-3.
#[test]
fn manifest_digest() {
    let vectors = Vectors::read("manifest");
    let mut totals = Totals::default();
    assert_eq!(hex(&totals.digest.0), hex(vectors.get("none")));
    let names: Vec<Name> =
        ["run7", "data", "log"].iter().map(|name| Name::new(name.as_bytes()).unwrap()).collect();
    let entry = |id: u64, parent, size, fate, root| FinalEntry {
        id: EntryId(id),
        parent: EntryId(parent),
        name: &names[usize::try_from(id).unwrap() - 1],
        size,
        fate,
        root: Digest(root),
    };
    totals.add(&entry(1, 0, 0, Fate::Done, [0; 32]));
    assert_eq!(hex(&totals.digest.0), hex(vectors.get("one")));
    totals.add(&entry(2, 1, 131_073, Fate::Done, [0xff; 32]));
    totals.add(&entry(3, 1, 9, Fate::Failed, [0; 32]));
    assert_eq!(hex(&totals.digest.0), hex(vectors.get("three")));
    let summary = Summary::from(totals);
    assert_eq!((summary.done, summary.skipped, summary.failed, summary.bytes), (2, 0, 1, 131_073));
}

fn chunk_frame() -> Frame {
    let range = ByteRange::new(EntryId(7), 1 << 32, 65_536, false).unwrap();
    let data = ChunkData::Bytes(Bytes::from(vec![0; 65_536]));
    Frame::Chunk(Chunk::received(range, 1, Digest([0xab; 32]), data))
}

fn whole_range() -> ByteRange {
    ByteRange::new(EntryId(8), 0, 65_536, true).unwrap()
}

/// Seventeen blocks of hole and then five bytes.
fn sparse() -> Chunk {
    let range = ByteRange::new(EntryId(9), 1 << 17, 17 * 4096 + 5, false).unwrap();
    let extents = [Extent { start: 17 * 4096, len: 5 }];
    let mut hasher = RangeHasher::new(range);
    hasher.update_zeros(extents[0].start.into());
    hasher.update(b"hello");
    let table_len = Sparse::table_len(1);
    let mut payload = vec![0; table_len];
    Sparse::write_table(range.len(), hasher.finish().unwrap(), &extents, &mut payload);
    payload.extend(b"hello");
    Chunk::sparse(range, 0, payload.into()).unwrap()
}

fn pack() -> Pack {
    let member = |entry, data: &[u8]| PackMember {
        entry: EntryId(entry),
        version: 0,
        len: u32::try_from(data.len()).unwrap(),
        root: Digest::of(data),
    };
    let mut payload = vec![0; Pack::table_len(2)];
    let digest = Pack::write_table(&[member(3, b"hello"), member(4, b"")], &mut payload);
    payload.extend(b"hello");
    Pack { number: 1, digest, payload: payload.into() }
}

/// A message of every kind, in the order of their numbers; [`messages`] names what is in them.
#[expect(clippy::too_many_lines, reason = "a list")]
fn messages() -> Vec<(&'static str, Message)> {
    let hello = |fill: u8| {
        Message::Hello(Hello {
            versions: (1, 1),
            features: 0,
            build: "0.1.0".to_owned(),
            platform: "linux/x86_64".to_owned(),
            nonce: [fill; 32],
            certificate: vec![0x30, fill],
            max_open_entries: 65_536,
        })
    };
    let options = |port_range, congestion: Option<&str>| Options {
        chunk_size: ChunkSize::DEFAULT,
        streams: 8,
        pack_threshold: 262_144,
        buffer_size: 96 << 20,
        encrypt: true,
        resume: Resume::Verify,
        durability: Durability::Batch,
        dry_run: false,
        preserve: Preserve::default(),
        select: Select::default(),
        update: Update::default(),
        delete: None,
        remove_source_files: false,
        port_range,
        loopback: false,
        sockets: SocketOptions {
            send_buffer: Some(16 << 20),
            receive_buffer: None,
            congestion: congestion.map(str::to_owned),
            no_offload: congestion.is_some(),
        },
        listen: Listen { tcp: true, quic: congestion.is_some(), join: true },
    };
    let open = |task, options| {
        let (channel_secret, job) = (Secret([0x11; 32]), [0x33; 16]);
        Message::Open(Box::new(Open { task, channel_secret, job, options }))
    };
    let time = |seconds, nanoseconds| Timestamp::new(seconds, nanoseconds).unwrap();
    let entry = |id, parent, name: &[u8], kind| Entry {
        id: EntryId(id),
        parent: EntryId(parent),
        name: Name::new(name).unwrap(),
        kind,
        is_linked: false,
        metadata: Metadata {
            mode: Mode::from_raw(0o644),
            mtime: time(-1, 999_999_999),
            ..Metadata::default()
        },
    };
    let file = |size| {
        Kind::File(FileKind {
            size,
            stamp: Stamp { inode: 1 << 32, ctime: time(1_700_000_000, 250) },
        })
    };
    let failure = |code, text: &str| Failure::new(code, text);
    let summary = Summary { done: 2, skipped: 1, failed: 0, bytes: 131_073, digest: [0xee; 32] };
    let chunk = Unit::Chunk { entry: EntryId(2), version: 0, offset: 8 << 20 };
    let packed = Unit::Packed { entry: EntryId(3), version: 1 };
    vec![
        ("Hello agent", hello(0xa1)),
        ("Hello client", hello(0xc1)),
        (
            "Open Receive",
            open(
                Task::Receive { destination: b"/scratch/".to_vec() },
                options(Some((5000, 5010)), None),
            ),
        ),
        (
            "Open Send",
            open(
                Task::Send { sources: vec![b"a".to_vec(), vec![0xff]] },
                unusual(options(None, Some("bbr"))),
            ),
        ),
        (
            "Accept",
            Message::Accept(Accept {
                options: options(Some((5000, 5010)), None),
                port: 5003,
                udp_port: 5004,
                join: b"fastsync-7".to_vec(),
                addresses: vec!["192.0.2.7".to_owned(), "2001:db8::7".to_owned()],
                refusal: "no port".to_owned(),
            }),
        ),
        ("Abort", Message::Abort(failure(FailureCode::Mismatch, "the ends disagree"))),
        ("Ping", Message::Ping),
        (
            "Sources",
            Message::Sources { single_file: true, root: None, whereabouts: Whereabouts::default() },
        ),
        (
            "Sources root",
            Message::Sources {
                single_file: false,
                root: Some(kept_metadata()),
                whereabouts: Whereabouts {
                    boot: [0xa5; 16],
                    nodes: vec![
                        SourceNode { device: 2049, inode: 131_073, kind: SourceKind::Contents },
                        SourceNode { device: 2049, inode: 5, kind: SourceKind::Other },
                    ],
                },
            },
        ),
        (
            "Entries",
            Message::Entries(vec![
                entry(1, 0, b"run7", Kind::Directory),
                entry(2, 1, b"data", file(131_073)),
                entry(3, 1, b"\xff\n", Kind::Symlink { target: b"../x".to_vec() }),
                entry(
                    300,
                    1,
                    b"tape",
                    Kind::Unsendable(failure(FailureCode::Unsupported, "a FIFO")),
                ),
            ]),
        ),
        (
            "Entries kinds",
            Message::Entries(vec![
                entry(5, 1, b"pipe", Kind::Special(Special::Fifo)),
                entry(6, 1, b"gate", Kind::Special(Special::Socket)),
                entry(
                    7,
                    1,
                    b"null",
                    Kind::Special(Special::CharacterDevice { major: 1, minor: 3 }),
                ),
                entry(
                    8,
                    1,
                    b"disk",
                    Kind::Special(Special::BlockDevice { major: 259, minor: 1 << 20 }),
                ),
                Entry {
                    is_linked: true,
                    metadata: kept_metadata(),
                    ..entry(9, 1, b"one", file(250))
                },
                entry(10, 1, b"two", Kind::HardLink { leader: EntryId(9) }),
                entry(11, 1, b"core", Kind::Unselected),
            ]),
        ),
        ("FileEnd", Message::FileEnd { entry: EntryId(300), version: 1, root: Digest([0xcd; 32]) }),
        ("Restart", Message::Restart { entry: entry(2, 1, b"data", file(250)), version: 1 }),
        (
            "Withdraw",
            Message::Withdraw {
                entry: EntryId(2),
                failure: failure(FailureCode::Changed, "it changed"),
            },
        ),
        ("SourceDone", Message::SourceDone(summary)),
        ("Finish", Message::Finish { agreed: true }),
        (
            "Verdicts",
            Message::Verdicts(vec![
                (EntryId(1), Verdict::Ended(Outcome::Done(Changes::CONTENT))),
                (EntryId(2), Verdict::Need),
                (EntryId(251), Verdict::Resume),
                (EntryId(65_536), Verdict::Ended(Outcome::Would(all_changes()))),
                (EntryId(65_537), Verdict::Hash),
                (EntryId(65_538), Verdict::Alone),
            ]),
        ),
        (
            "Have",
            Message::Have {
                entry: EntryId(2),
                first: 1,
                values: vec![Digest([0xa0; 32]), Digest([0xa1; 32])],
            },
        ),
        ("Written", Message::Written(vec![chunk, Unit::Pack(1)])),
        ("Again", Message::Again(vec![chunk, packed])),
        (
            "Outcomes",
            Message::Outcomes(vec![
                (EntryId(2), Outcome::Done(Changes::CREATED_WITH_CONTENT)),
                (EntryId(3), Outcome::Skipped),
                (EntryId(4), Outcome::Failed(failure(FailureCode::Io, "é"))),
                (EntryId(5), Outcome::Left),
            ]),
        ),
        (
            "Complaint",
            Message::Complaint(Complaint::new(
                b"run7/data".to_vec(),
                failure(FailureCode::Permission, "cannot set the mode of data"),
            )),
        ),
        (
            "ReceiverDone",
            Message::ReceiverDone {
                summary,
                durable: true,
                deletions: Deletions { done: 3, over_limit: 251 },
            },
        ),
        ("Closed", Message::Closed),
        (
            "Owners",
            Message::Owners {
                users: vec![owner(0, b"root"), owner(1000, b"ana")],
                groups: vec![owner(70_000, b"\xff lab")],
            },
        ),
        ("Listed", Message::Listed(vec![EntryId(1), EntryId::ROOT])),
        ("Root", Message::Root { entry: EntryId(2), version: 1, root: Digest([0xdc; 32]) }),
        ("Deleted", Message::Deleted(vec![deleted(b"run7/old", true), deleted(b"\n", false)])),
        (
            "Paths",
            Message::Paths { paths: vec![b"run7/data".to_vec(), b"log".to_vec()], last: true },
        ),
        (
            "Dial",
            Message::Dial(Dial {
                carrier: Carrier::Quic,
                port: 5005,
                addresses: vec!["192.0.2.9".to_owned()],
            }),
        ),
        ("NotReached", Message::NotReached(failure(FailureCode::NoDataPath, "refused"))),
        // MEASURE-2.
        (
            "Measure",
            Message::Measure(Measure::Run(Run {
                number: 7,
                toward_agent: true,
                on_disk: false,
                channels: vec![(0, 1), (3, 300)],
                len: 65_536,
                bytes: 1 << 30,
                millis: 2000,
            })),
        ),
        (
            "Measured",
            Message::Measured(Measured::Ran(Ran {
                bytes: 1 << 20,
                micros: 500,
                processor_micros: 250,
            })),
        ),
        (
            "Measured System",
            Message::Measured(Measured::System(System {
                program: "/x".to_owned(),
                directory: String::new(),
                processors: 2,
                room: 5,
                hash_rate: 9,
                settings: vec![("a".to_owned(), "1 2".to_owned())],
            })),
        ),
        // THIRD-1.
        (
            "Open SendTo",
            open(
                Task::SendTo {
                    sources: vec![b"/a/".to_vec()],
                    to: Box::new(Peer {
                        source_host: "dtn1".to_owned(),
                        host: "dtn2".to_owned(),
                        destination: b"/b".to_vec(),
                        addresses: vec!["192.0.2.9".to_owned()],
                        transport: Transport::Quic,
                        reverse: true,
                        data_addresses: Vec::new(),
                        listen_addresses: vec!["dtn1-data".to_owned()],
                    }),
                },
                options(Some((5000, 5010)), None),
            ),
        ),
        ("Told", Message::Told(told())),
    ]
}

/// THIRD-4: one of each.
fn told() -> Vec<Told> {
    vec![
        Told::Connected(Box::new(Connected {
            carried: Carried::Tcp,
            encrypted: true,
            is_reversed: false,
            streams: 8,
            peer: Text::new("192.0.2.9:5000"),
            reason: Text::new("first choice"),
        })),
        Told::Ended(Box::new(Ended {
            path: b"run7/data".to_vec(),
            kind: EndedKind::File,
            size: 300,
            metadata: Metadata {
                mode: Mode::from_raw(0o644),
                mtime: Timestamp::new(1, 2).unwrap(),
                owner: 3,
                group: 4,
                attributes: Vec::new(),
            },
            target: None,
            is_linked: false,
            root: Some(Digest([0xdc; 32])),
            outcome: Outcome::Done(Changes::CREATED_WITH_CONTENT),
        })),
        Told::Deleted(Deleted { path: b"old".to_vec(), is_directory: true }),
        Told::Complaint(Box::new(Complaint::new(
            b"x".to_vec(),
            Failure::new(FailureCode::Permission, "no"),
        ))),
        Told::ChannelLost { channel: 3, cause: Text::new("reset") },
        Told::Mismatch(Text::new("chunk")),
        Told::Note(Text::new("note")),
        Told::Progress(Box::new(Counters {
            files_found: 1,
            bytes_found: 2,
            walk_done: true,
            files_ended: 3,
            bytes_verified: 4,
            bytes_skipped: 5,
            bytes_resumed: 6,
            bytes_hashed: 7,
            bytes_sent: 8,
            streams: 9,
            most_streams: 10,
        })),
    ]
}

/// Options with another value than usual wherever that says something.
fn unusual(options: Options) -> Options {
    let preserve = Preserve {
        permissions: true,
        special_bits: true,
        times: true,
        directory_times: false,
        owner: Keep::IfAllowed,
        group: Keep::Always,
        numeric_ids: true,
        chown: (Some(b"ana".to_vec()), None),
        chmod: b"go-w".to_vec(),
        hard_links: true,
        attributes: true,
        acls: true,
        devices: true,
        specials: true,
        root: true,
    };
    let select = Select {
        links: Links::OnlySafe,
        one_file_system: true,
        filters: vec![b"- *.o".to_vec(), b"+ /keep/".to_vec()],
        gitignore: true,
        min_size: Some(1),
        max_size: Some(1 << 40),
        max_depth: Some(300),
        has_paths: false,
        whole_directories: true,
    };
    let update = Update {
        compare: Compare::Checksum,
        modify_window: 2,
        time_step: 1_000_000_000,
        keep_newer: true,
        ignore_existing: false,
        existing_only: true,
        make_room: MakeRoom::All,
        in_place: true,
        backup: Some(Backup { directory: Some(b"../old".to_vec()), suffix: b"~".to_vec() }),
        link_dest: vec![b"../yesterday".to_vec()],
    };
    let delete = Some(Delete { excluded: true, max: Some(1000), allow_empty_source: true });
    Options { preserve, select, update, delete, remove_source_files: true, ..options }
}

fn kept_metadata() -> Metadata {
    let attribute =
        |name: &[u8], value: &[u8]| Attribute { name: name.to_vec(), value: value.to_vec() };
    Metadata {
        mode: Mode::from_raw(0o4755),
        mtime: Timestamp::new(1_700_000_000, 1).unwrap(),
        owner: 1000,
        group: 70_000,
        attributes: vec![
            attribute(b"system.posix_acl_access", &[2, 0, 0, 0]),
            attribute(b"user.empty", b""),
        ],
    }
}

fn all_changes() -> Changes {
    [
        Changes::CREATED_WITH_CONTENT,
        Changes::SIZE,
        Changes::TIME,
        Changes::PERMISSIONS,
        Changes::OWNER,
        Changes::GROUP,
        Changes::ACL,
        Changes::ATTRIBUTES,
        Changes::LINKED,
        Changes::CHECKSUM,
    ]
    .into_iter()
    .fold(Changes::NONE, Changes::with)
}

fn owner(id: u32, name: &[u8]) -> Owner {
    Owner { id, name: name.to_vec() }
}

fn deleted(path: &[u8], is_directory: bool) -> Deleted {
    Deleted { path: path.to_vec(), is_directory }
}

/// A file of vectors, by name.
struct Vectors(BTreeMap<String, Vec<u8>>);

impl Vectors {
    fn read(file: &str) -> Self {
        let path = format!("{}/protocol-spec/vectors/{file}.hex", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).unwrap();
        let mut vectors = BTreeMap::new();
        let mut name = String::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(next) = line.strip_prefix('@') {
                next.clone_into(&mut name);
                assert!(vectors.insert(name.clone(), Vec::new()).is_none(), "{name} comes twice");
                continue;
            }
            let digits: Vec<u8> = line.bytes().filter(u8::is_ascii_hexdigit).collect();
            let bytes: &mut Vec<u8> = vectors.entry(name.clone()).or_default();
            for pair in digits.chunks(2) {
                let pair = std::str::from_utf8(pair).unwrap();
                bytes.push(u8::from_str_radix(pair, 16).unwrap());
            }
        }
        Self(vectors)
    }

    fn get(&self, name: &str) -> &[u8] {
        self.0.get(name).unwrap_or_else(|| panic!("no vector {name}"))
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
