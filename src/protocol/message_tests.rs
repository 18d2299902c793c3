//! Tests of the control messages: what is encoded is decoded, and whatever a peer sends is decided.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::chunk::{ChunkSize, Digest, EntryId};
use super::manifest::{Name, Timestamp};
use super::measure::{DiskLimits, Measure, Measured, Ran, Run, System};
use super::message::*;
use super::third_party::{
    Carried, Connected, Counters, Ended, EndedKind, Peer, Told, Transport as Allowed,
};

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn id() -> impl Strategy<Value = EntryId> {
    // Both sides of every width that a number can have.
    let edges = [0, 250, 251, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX];
    prop_oneof![any::<u64>(), prop::sample::select(edges.to_vec())].prop_map(EntryId)
}

/// What is said in a session that measures.
fn measuring() -> impl Strategy<Value = Message> {
    let limits = (any::<u64>(), any::<u32>(), any::<u32>());
    let disk = limits.prop_map(|(bytes, files, millis)| DiskLimits { bytes, files, millis });
    let run = (any::<(u64, bool, bool, u32, u64, u32)>(), vec(any::<(u16, u32)>(), 0..9));
    let run = run.prop_map(|((number, toward_agent, on_disk, len, bytes, millis), channels)| Run {
        number,
        toward_agent,
        on_disk,
        channels,
        len,
        bytes,
        millis,
    });
    let system = (any::<(String, String, u32, u64, u64)>(), vec(any::<(String, String)>(), 0..9));
    let system =
        system.prop_map(|((program, directory, processors, room, hash_rate), settings)| System {
            program,
            directory,
            processors,
            room,
            hash_rate,
            settings,
        });
    let ran = any::<(u64, u64, u64)>().prop_map(|(bytes, micros, processor_micros)| Ran {
        bytes,
        micros,
        processor_micros,
    });
    prop_oneof![
        Just(Message::Measure(Measure::Clock)),
        disk.prop_map(|disk| Message::Measure(Measure::Disk(disk))),
        run.prop_map(|run| Message::Measure(Measure::Run(run))),
        system.prop_map(|system| Message::Measured(Measured::System(system))),
        time().prop_map(|time| Message::Measured(Measured::Clock(time))),
        ran.prop_map(|ran| Message::Measured(Measured::Ran(ran))),
    ]
}

fn text() -> impl Strategy<Value = Text> {
    any::<String>().prop_map(Text::new)
}

/// What is told of a session between two agents.
fn told() -> BoxedStrategy<Told> {
    let carried = prop::sample::select(vec![Carried::Tcp, Carried::Quic, Carried::Tunnel]);
    let connected = (carried, any::<(bool, bool, u16)>(), text(), text());
    let connected =
        connected.prop_map(|(carried, (encrypted, is_reversed, streams), peer, reason)| {
            Connected { carried, encrypted, is_reversed, streams, peer, reason }
        });
    let kind = prop_oneof![
        Just(EndedKind::Directory),
        Just(EndedKind::File),
        Just(EndedKind::Symlink),
        special().prop_map(EndedKind::Special),
        Just(EndedKind::HardLink),
        Just(EndedKind::Other),
    ];
    let target = prop::option::of(bytes(50));
    let known = (any::<(u64, bool)>(), prop::option::of(digest()), outcome());
    let ended = (bytes(50), kind, metadata(), target, known).prop_map(
        |(path, kind, metadata, target, ((size, is_linked), root, outcome))| Ended {
            path,
            kind,
            size,
            metadata,
            target,
            is_linked,
            root,
            outcome,
        },
    );
    let complaint = ("[^\0]{0,40}", failure());
    let complaint =
        complaint.prop_map(|(path, failure)| Complaint::new(path.into_bytes(), failure));
    let counters = any::<([u64; 10], bool)>().prop_map(|(all, walk_done)| {
        let [files_found, bytes_found, files_ended, bytes_verified, bytes_skipped, ..] = all;
        let [.., bytes_resumed, bytes_hashed, bytes_sent, streams, most_streams] = all;
        Counters {
            files_found,
            bytes_found,
            walk_done,
            files_ended,
            bytes_verified,
            bytes_skipped,
            bytes_resumed,
            bytes_hashed,
            bytes_sent,
            streams,
            most_streams,
        }
    });
    prop_oneof![
        connected.prop_map(|it| Told::Connected(Box::new(it))),
        ended.prop_map(|it| Told::Ended(Box::new(it))),
        deleted().prop_map(Told::Deleted),
        complaint.prop_map(|it| Told::Complaint(Box::new(it))),
        (any::<u16>(), text()).prop_map(|(channel, cause)| Told::ChannelLost { channel, cause }),
        text().prop_map(Told::Mismatch),
        text().prop_map(Told::Note),
        counters.prop_map(|it| Told::Progress(Box::new(it))),
    ]
    .boxed()
}

fn peer() -> impl Strategy<Value = Peer> {
    let transports = [Allowed::Auto, Allowed::Tcp, Allowed::Quic, Allowed::Tunnel];
    let texts = any::<(String, String, bool, [Vec<String>; 3])>();
    (texts, bytes(50), prop::sample::select(transports.to_vec())).prop_map(
        |((source_host, host, reverse, lists), destination, transport)| {
            let [addresses, data_addresses, listen_addresses] = lists;
            Peer {
                source_host,
                host,
                destination,
                addresses,
                transport,
                reverse,
                data_addresses,
                listen_addresses,
            }
        },
    )
}

fn time() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0..1_000_000_000_u32).prop_filter_map("a time", |(s, n)| Timestamp::new(s, n))
}

fn name() -> impl Strategy<Value = Name> {
    vec(any::<u8>(), 1..=Name::MAX_LEN)
        .prop_filter_map("not a name", |bytes| Name::new(&bytes).ok())
}

fn failure() -> BoxedStrategy<Failure> {
    let codes = [
        FailureCode::Permission,
        FailureCode::Vanished,
        FailureCode::Changed,
        FailureCode::Verification,
        FailureCode::DestinationFull,
        FailureCode::Io,
        FailureCode::Conflict,
        FailureCode::Unsupported,
        FailureCode::Violation,
        FailureCode::Version,
        FailureCode::Startup,
        FailureCode::Interrupted,
        FailureCode::Disconnected,
        FailureCode::NoDataPath,
        FailureCode::Mismatch,
    ];
    (prop::sample::select(codes.to_vec()), any::<String>())
        .prop_map(|(code, text)| Failure::new(code, text))
        .boxed()
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

fn special() -> impl Strategy<Value = Special> {
    prop_oneof![
        Just(Special::Fifo),
        Just(Special::Socket),
        any::<(u32, u32)>().prop_map(|(major, minor)| Special::CharacterDevice { major, minor }),
        any::<(u32, u32)>().prop_map(|(major, minor)| Special::BlockDevice { major, minor }),
    ]
}

fn kind() -> BoxedStrategy<Kind> {
    prop_oneof![
        Just(Kind::Directory),
        (any::<(u64, u64)>(), time()).prop_map(|((size, inode), ctime)| {
            Kind::File(FileKind { size, stamp: Stamp { inode, ctime } })
        }),
        bytes(300).prop_map(|target| Kind::Symlink { target }),
        failure().prop_map(Kind::Unsendable),
        special().prop_map(Kind::Special),
        id().prop_map(|leader| Kind::HardLink { leader }),
        Just(Kind::Unselected),
    ]
    .boxed()
}

/// Attributes in the order of their names, which are all different.
fn attributes() -> impl Strategy<Value = Vec<Attribute>> {
    let name = vec(1..=u8::MAX, 1..=255);
    proptest::collection::btree_map(name, bytes(300), 0..6).prop_map(|attributes| {
        attributes.into_iter().map(|(name, value)| Attribute { name, value }).collect()
    })
}

fn metadata() -> BoxedStrategy<Metadata> {
    (0..=0o7777_u32, time(), any::<(u32, u32)>(), attributes())
        .prop_map(|(mode, mtime, (owner, group), attributes)| Metadata {
            mode: Mode::from_raw(mode),
            mtime,
            owner,
            group,
            attributes,
        })
        .boxed()
}

fn entry() -> BoxedStrategy<Entry> {
    (id(), id(), name(), kind(), any::<bool>(), metadata())
        .prop_map(|(id, parent, name, kind, is_linked, metadata)| Entry {
            id,
            parent,
            name,
            kind,
            is_linked,
            metadata,
        })
        .boxed()
}

fn whereabouts() -> impl Strategy<Value = Whereabouts> {
    const KINDS: &[SourceKind] = &[SourceKind::Other, SourceKind::Directory, SourceKind::Contents];
    let node = (any::<u64>(), any::<u64>(), prop::sample::select(KINDS))
        .prop_map(|(device, inode, kind)| SourceNode { device, inode, kind });
    (any::<[u8; 16]>(), vec(node, 0..4)).prop_map(|(boot, nodes)| Whereabouts { boot, nodes })
}

fn owners() -> BoxedStrategy<Vec<Owner>> {
    let byte = (1..=u8::MAX).prop_filter("a colon", |byte| *byte != b':');
    let owner = (any::<u32>(), vec(byte, 1..=255)).prop_map(|(id, name)| Owner { id, name });
    vec(owner, 0..5).boxed()
}

fn deleted() -> BoxedStrategy<Deleted> {
    (vec(name(), 1..4), any::<bool>())
        .prop_map(|(names, is_directory)| {
            let names: Vec<_> = names.iter().map(Name::as_bytes).collect();
            Deleted { path: names.join(&b'/'), is_directory }
        })
        .boxed()
}

fn deletions() -> impl Strategy<Value = Deletions> {
    any::<(u64, u64)>().prop_map(|(done, over_limit)| Deletions { done, over_limit })
}

fn changes() -> impl Strategy<Value = Changes> {
    prop::sample::subsequence(CHANGES.to_vec(), 0..=CHANGES.len())
        .prop_map(|some| some.into_iter().fold(Changes::NONE, Changes::with))
}

/// Every change, by the number of its bit.
const CHANGES: [Changes; 11] = [
    Changes::CREATED,
    Changes::CONTENT,
    Changes::SIZE,
    Changes::TIME,
    Changes::PERMISSIONS,
    Changes::OWNER,
    Changes::GROUP,
    Changes::ACL,
    Changes::ATTRIBUTES,
    Changes::LINKED,
    Changes::CHECKSUM,
];

fn unit() -> impl Strategy<Value = Unit> {
    prop_oneof![
        (id(), any::<(u16, u64)>()).prop_map(|(entry, (version, offset))| Unit::Chunk {
            entry,
            version,
            offset
        }),
        any::<u64>().prop_map(Unit::Pack),
        (id(), any::<u16>()).prop_map(|(entry, version)| Unit::Packed { entry, version }),
    ]
}

fn outcome() -> BoxedStrategy<Outcome> {
    prop_oneof![
        changes().prop_map(Outcome::Done),
        Just(Outcome::Skipped),
        changes().prop_map(Outcome::Would),
        failure().prop_map(Outcome::Failed),
        Just(Outcome::Left),
    ]
    .boxed()
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Need),
        Just(Verdict::Resume),
        outcome().prop_map(Verdict::Ended),
        Just(Verdict::Hash),
        Just(Verdict::Alone),
    ]
}

fn summary() -> impl Strategy<Value = Summary> {
    any::<([u64; 4], [u8; 32])>().prop_map(|([done, skipped, failed, bytes], digest)| Summary {
        done,
        skipped,
        failed,
        bytes,
        digest,
    })
}

fn sockets() -> impl Strategy<Value = SocketOptions> {
    any::<(Option<u32>, Option<u32>, Option<String>, bool)>().prop_map(
        |(send_buffer, receive_buffer, congestion, no_offload)| SocketOptions {
            send_buffer,
            receive_buffer,
            congestion,
            no_offload,
        },
    )
}

/// Any of these.
fn one_of<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(values.to_vec())
}

fn preserve() -> BoxedStrategy<Preserve> {
    let keep = || one_of(&[Keep::No, Keep::IfAllowed, Keep::Always]);
    let chown = (prop::option::of(bytes(20)), prop::option::of(bytes(20)));
    (any::<[bool; 11]>(), keep(), keep(), chown, bytes(20))
        .prop_map(|(flags, owner, group, chown, chmod)| {
            let [permissions, special_bits, times, directory_times, numeric_ids, rest @ ..] = flags;
            let [hard_links, attributes, acls, devices, specials, root] = rest;
            Preserve {
                permissions,
                special_bits,
                times,
                directory_times,
                owner,
                group,
                numeric_ids,
                chown,
                chmod,
                hard_links,
                attributes,
                acls,
                devices,
                specials,
                root,
            }
        })
        .boxed()
}

fn select() -> BoxedStrategy<Select> {
    let links = one_of(&[Links::Keep, Links::Follow, Links::FollowUnsafe, Links::OnlySafe]);
    let limits = any::<(Option<u64>, Option<u64>, Option<u32>)>();
    (links, vec(bytes(20), 0..4), limits, any::<[bool; 4]>())
        .prop_map(|(links, filters, (min_size, max_size, max_depth), flags)| {
            let [one_file_system, gitignore, has_paths, whole_directories] = flags;
            Select {
                links,
                one_file_system,
                filters,
                gitignore,
                min_size,
                max_size,
                max_depth,
                has_paths,
                whole_directories,
            }
        })
        .boxed()
}

fn update() -> BoxedStrategy<Update> {
    let compare = [Compare::Quick, Compare::SizeOnly, Compare::Checksum, Compare::Always];
    let room = [MakeRoom::Files, MakeRoom::EmptyDirectories, MakeRoom::All];
    let backup = (prop::option::of(bytes(20)), bytes(20))
        .prop_map(|(directory, suffix)| Backup { directory, suffix });
    let lists = (prop::option::of(backup), vec(bytes(20), 0..3));
    let times = (any::<u32>(), 0..=MAX_TIME_STEP);
    (one_of(&compare), times, any::<[bool; 4]>(), one_of(&room), lists)
        .prop_map(|(compare, times, flags, make_room, (backup, link_dest))| {
            let (modify_window, time_step) = times;
            let [keep_newer, ignore_existing, existing_only, in_place] = flags;
            Update {
                compare,
                modify_window,
                time_step,
                keep_newer,
                ignore_existing,
                existing_only,
                make_room,
                in_place,
                backup,
                link_dest,
            }
        })
        .boxed()
}

fn delete() -> impl Strategy<Value = Delete> {
    any::<(bool, Option<u64>, bool)>().prop_map(|(excluded, max, allow_empty_source)| Delete {
        excluded,
        max,
        allow_empty_source,
    })
}

fn options() -> BoxedStrategy<Options> {
    let resume = one_of(&[Resume::Trust, Resume::Verify, Resume::Never]);
    let durability = one_of(&[Durability::None, Durability::Batch, Durability::File]);
    let chunk_size = (16..=26_u8).prop_filter_map("a size", ChunkSize::from_log2);
    let numbers = any::<(u16, u32, u64, Option<(u16, u16)>)>();
    let parts = (preserve(), select(), update(), prop::option::of(delete()), sockets());
    (chunk_size, numbers, resume, durability, any::<[bool; 7]>(), parts)
        .prop_map(|(chunk_size, numbers, resume, durability, flags, parts)| {
            let (streams, pack_threshold, buffer_size, port_range) = numbers;
            let [encrypt, dry_run, loopback, remove_source_files, tcp, quic, join] = flags;
            let (preserve, select, update, delete, sockets) = parts;
            Options {
                chunk_size,
                streams,
                pack_threshold,
                buffer_size,
                encrypt,
                resume,
                durability,
                dry_run,
                preserve,
                select,
                update,
                delete,
                remove_source_files,
                port_range,
                loopback,
                sockets,
                listen: Listen { tcp, quic, join },
            }
        })
        .boxed()
}

fn greeting() -> BoxedStrategy<Hello> {
    let numbers = any::<((u16, u16), u64, u32)>();
    let texts = any::<(String, String)>();
    (numbers, texts, any::<[u8; 32]>(), vec(any::<u8>(), 0..400))
        .prop_map(
            |((versions, features, max_open_entries), (build, platform), nonce, certificate)| {
                Hello { versions, features, build, platform, nonce, certificate, max_open_entries }
            },
        )
        .boxed()
}

fn opening() -> BoxedStrategy<Open> {
    let path = || vec(any::<u8>(), 0..100);
    let task = prop_oneof![
        path().prop_map(|destination| Task::Receive { destination }),
        vec(path(), 0..5).prop_map(|sources| Task::Send { sources }),
        path().prop_map(|directory| Task::Measure { directory }),
        (vec(path(), 0..5), peer())
            .prop_map(|(sources, to)| Task::SendTo { sources, to: Box::new(to) }),
    ];
    (task, any::<[u8; 32]>(), any::<[u8; 16]>(), options())
        .prop_map(|(task, secret, job, options)| Open {
            task,
            channel_secret: Secret(secret),
            job,
            options,
        })
        .boxed()
}

/// Any message, with any valid values.
fn message() -> BoxedStrategy<Message> {
    let accept = (options(), any::<(u16, u16, Vec<u8>, Vec<String>, String)>()).prop_map(
        |(options, told)| {
            let (port, udp_port, join, addresses, refusal) = told;
            Message::Accept(Accept { options, port, udp_port, join, addresses, refusal })
        },
    );
    let start = prop_oneof![
        greeting().prop_map(Message::Hello),
        opening().prop_map(|open| Message::Open(Box::new(open))),
        accept,
        failure().prop_map(Message::Abort),
        Just(Message::Ping),
    ];
    let sender = prop_oneof![
        (any::<bool>(), prop::option::of(metadata()), whereabouts()).prop_map(
            |(single_file, root, whereabouts)| Message::Sources { single_file, root, whereabouts }
        ),
        vec(entry(), 0..8).prop_map(Message::Entries),
        (id(), any::<u16>(), digest()).prop_map(|(entry, version, root)| Message::FileEnd {
            entry,
            version,
            root
        }),
        (entry(), any::<u16>()).prop_map(|(entry, version)| Message::Restart { entry, version }),
        (id(), failure()).prop_map(|(entry, failure)| Message::Withdraw { entry, failure }),
        summary().prop_map(Message::SourceDone),
        any::<bool>().prop_map(|agreed| Message::Finish { agreed }),
        (owners(), owners()).prop_map(|(users, groups)| Message::Owners { users, groups }),
        vec(id(), 0..8).prop_map(Message::Listed),
        (id(), any::<u16>(), digest()).prop_map(|(entry, version, root)| Message::Root {
            entry,
            version,
            root
        }),
    ];
    let receiver = prop_oneof![
        vec((id(), verdict()), 0..8).prop_map(Message::Verdicts),
        (id(), any::<u64>(), vec(digest(), 0..8))
            .prop_map(|(entry, first, values)| Message::Have { entry, first, values }),
        vec(unit(), 0..8).prop_map(Message::Written),
        vec(unit(), 0..8).prop_map(Message::Again),
        vec((id(), outcome()), 0..8).prop_map(Message::Outcomes),
        ("[^\0]{0,40}", failure()).prop_map(|(path, failure)| {
            Message::Complaint(Complaint::new(path.into_bytes(), failure))
        }),
        (summary(), any::<bool>(), deletions()).prop_map(|(summary, durable, deletions)| {
            Message::ReceiverDone { summary, durable, deletions }
        }),
        Just(Message::Closed),
        vec(deleted(), 0..5).prop_map(Message::Deleted),
        (vec(bytes(100), 0..8), any::<bool>())
            .prop_map(|(paths, last)| Message::Paths { paths, last }),
        any::<(bool, u16, Vec<String>)>().prop_map(|(is_tcp, port, addresses)| {
            let carrier = if is_tcp { Carrier::Tcp } else { Carrier::Quic };
            Message::Dial(Dial { carrier, port, addresses })
        }),
        failure().prop_map(Message::NotReached),
    ];
    let told = vec(told(), 0..6).prop_map(Message::Told);
    let end = [start.boxed(), sender.boxed(), receiver.boxed(), measuring().boxed(), told.boxed()];
    prop::strategy::Union::new(end).boxed()
}

proptest! {
    /// SES-2, SES-10: what we encode, we decode, and every part of it is needed.
    #[test]
    fn round_trips(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = message.encode().unwrap();
        let (len, body) = bytes.split_at(4);
        prop_assert_eq!(u32::from_le_bytes(len.try_into().unwrap()) as usize, body.len());
        prop_assert_eq!(&Message::decode(body).unwrap(), &message);
        prop_assert!(Message::decode(&body[..cut.index(body.len())]).is_err());
        let longer = [body, &[0]].concat();
        prop_assert!(matches!(Message::decode(&longer), Err(MessageError::Trailing)));
    }

    /// SES-2: whatever a peer sends, we decide, and what we accept we could have said.
    #[test]
    fn any_input_is_decided(kind in 0_u8..30, mut bytes in vec(any::<u8>(), 1..600)) {
        bytes[0] = kind;
        if let Ok(message) = Message::decode(&bytes) {
            let again = message.encode().unwrap();
            prop_assert!(again.len() - 4 <= bytes.len());
            prop_assert_eq!(Message::decode(&again[4..]).unwrap(), message);
        }
    }

    /// SES-10: a wrong bit is refused or makes a valid message. Numbers have longer forms, so it
    /// may even be the same message.
    #[test]
    fn a_flipped_bit_makes_a_message_or_none(
        message in message(),
        bit in any::<prop::sample::Index>(),
    ) {
        let mut bytes = message.encode().unwrap().split_off(4);
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Message::decode(&bytes) {
            let again = other.encode().unwrap();
            prop_assert_eq!(Message::decode(&again[4..]).unwrap(), other);
        }
    }
}

/// The encoding of a directory `a` up to its attributes, which are still to come.
const DIRECTORY: [u8; 11] = [1, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 0];

/// The encoding of options that have no lists, texts and flags, with this chunk size.
fn plain_options(chunk_log2: u8) -> Vec<u8> {
    let mut bytes = vec![0; 54];
    bytes[..2].copy_from_slice(&[chunk_log2, 1]);
    bytes
}

/// SES-3: a count that the message cannot hold costs neither much time nor much memory.
#[test]
fn counts_that_lie_are_refused_at_once() {
    let counts = [1_u64 << 20, 1 << 24, 1 << 31, 1 << 32, 1 << 48, u64::MAX / 48, u64::MAX];
    let mut hostile = Vec::new();
    for count in counts {
        let count = [&[253][..], &count.to_le_bytes()].concat();
        // Entries, Verdicts, Written, Again, Outcomes, Owners, Listed, Deleted, Paths, Told: a list
        // directly after the number.
        for kind in [6, 12, 14, 15, 16, 20, 21, 23, 24, 29] {
            hostile.push([&[kind][..], &count].concat());
        }
        hostile.push([&[13, 1, 0][..], &count].concat()); // the values of Have
        hostile.push([&[1, 1][..], &count].concat()); // the sources of Open
        hostile.push([&[1, 1, 1][..], &count].concat()); // the first source of Open
        hostile.push([&[6, 1, 1, 0][..], &count].concat()); // the name of an entry
        hostile.push([&[3, 0][..], &count].concat()); // the text of a failure
        hostile.push([&[20, 0][..], &count].concat()); // the groups of Owners
        hostile.push([&[20, 1, 0][..], &count].concat()); // the first user's name
        hostile.push([&[23, 1][..], &count].concat()); // the path of something deleted
        hostile.push([&[24, 1][..], &count].concat()); // the first of Paths
        hostile.push([&[25, 0, 1][..], &count].concat()); // the addresses of Dial
        hostile.push([&[29, 1, 6][..], &count].concat()); // a note that was told
        hostile.push([&[29, 1, 1][..], &count].concat()); // the path of what was told
        hostile.push([&[1, 3, 0, 1, b'a', 1, b'b', 0][..], &count].concat()); // a Peer's addresses
        hostile.push([&[5, 0, 1, 0, 0, 0, 0, 0][..], &count].concat()); // the root's attributes
        let entry = [&[6, 1][..], &DIRECTORY[..]].concat();
        hostile.push([&entry[..], &count].concat()); // an entry's attributes
        hostile.push([&entry[..], &[1], &count].concat()); // the name of one
        hostile.push([&entry[..], &[1, 1, b'n'], &count].concat()); // the value of one
        let open = [&[1, 0, 0][..], &[0; 48], &plain_options(16)[..]].concat();
        for at in [3 + 48 + 17, 3 + 48 + 26, 3 + 48 + 41] {
            hostile.push([&open[..at], &count].concat()); // chmod, filters, link_dest
        }
    }
    let start = Instant::now();
    for bytes in &hostile {
        assert!(Message::decode(bytes).is_err(), "{bytes:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// SES-3, META-2: attributes take far more memory than bytes, so there may not be too many; and a
/// message that is full of those that there may be is not taken for an attack.
#[test]
fn attributes_are_counted_before_they_take_memory() {
    let with = |count: u32, attributes: &[u8]| {
        [&[6, 1][..], &DIRECTORY, &[252], &count.to_le_bytes(), attributes].concat()
    };
    // Half a million attributes of which there is nothing.
    assert!(Message::decode(&with(500_000, &vec![0; 1_000_000])).is_err());
    assert!(Message::decode(&with(16_384, &vec![0; 1_000_000])).is_err());
    let names = |count: u16| -> Vec<u8> {
        let name = |n: u16| [2, n.to_be_bytes()[0] + 1, n.to_be_bytes()[1], 0];
        let names = (0..).filter(|n: &u16| n.to_be_bytes()[1] != 0);
        names.take(count.into()).flat_map(name).collect()
    };
    assert!(Message::decode(&with(16_384, &names(16_384))).is_ok());
    assert!(Message::decode(&with(16_385, &names(16_385))).is_err());
    // As many entries with as many attributes as fit.
    let each =
        [&DIRECTORY[..], &[255 - 5], &(1..=250).flat_map(|n| [1, n, 0]).collect::<Vec<u8>>()];
    let each = each.concat();
    let count = (MAX_MESSAGE_LEN - 6) / each.len();
    let bytes = [&[6, 252][..], &u32::try_from(count).unwrap().to_le_bytes(), &each.repeat(count)];
    match Message::decode(&bytes.concat()).unwrap() {
        Message::Entries(entries) => assert_eq!(entries.len(), count),
        other => panic!("{other:?}"),
    }
}

/// SES-3: a list of the shortest elements that fills a message is not taken for an attack.
#[test]
fn the_longest_lists_of_the_shortest_elements_are_accepted() {
    let full = |front: &[u8], element: &[u8], back: &[u8]| {
        let count = (MAX_MESSAGE_LEN - front.len() - back.len() - 5) / element.len();
        let count_bytes = u32::try_from(count).unwrap().to_le_bytes();
        let bytes = [front, &[252], &count_bytes, &element.repeat(count), back].concat();
        (Message::decode(&bytes).unwrap(), count)
    };
    let Message::Verdicts(verdicts) = full(&[12], &[1, 0], &[]).0 else { panic!() };
    assert_eq!(verdicts.len(), (MAX_MESSAGE_LEN - 6) / 2);
    let back = [&[0; 48], &plain_options(16)[..]].concat();
    assert!(matches!(full(&[1, 1], &[0], &back).0, Message::Open(_)), "sources without a byte");
    let [before, after] =
        [[&[1, 0, 0][..], &[0; 48], &plain_options(16)[..26]].concat(), vec![0; 27]];
    let (Message::Open(open), count) = full(&before, &[0], &after) else { panic!() };
    assert_eq!(open.options.select.filters.len(), count, "filters without a byte");
    let entry = [&DIRECTORY[..], &[0]].concat();
    for (front, element) in [
        (&[6][..], &entry[..]),
        (&[14], &[1, 0]),
        (&[16], &[1, 1]),
        (&[20], &[0, 1, b'a']),
        (&[20, 0], &[0, 1, b'a']),
        (&[21], &[0]),
        (&[23], &[1, b'a', 0]),
        (&[24], &[0]),
        (&[29], &[6, 0]),
        (&[29], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ] {
        let back: &[u8] = match front {
            [20 | 24] => &[0],
            _ => &[],
        };
        full(front, element, back);
    }
}

/// SES-3: both sides of the limit.
#[test]
fn lengths_are_limited() {
    for (len, allowed) in
        [(0, false), (1, true), (MAX_MESSAGE_LEN, true), (MAX_MESSAGE_LEN + 1, false)]
    {
        assert_eq!(Message::check_len(len).is_ok(), allowed, "{len}");
    }
    assert!(Message::check_len(u32::MAX as usize).is_err());
    assert!(matches!(Message::decode(&[]), Err(MessageError::Length { len: 0 })));
    let message = |len| Message::Entries(vec![entry_with(Kind::Symlink { target: vec![0; len] })]);
    let overhead = message(1 << 16).encode().unwrap().len() - 4 - (1 << 16);
    assert!(message(MAX_MESSAGE_LEN - overhead).encode().is_ok());
    let refused = message(MAX_MESSAGE_LEN - overhead + 1).encode();
    let len = MAX_MESSAGE_LEN + 1;
    assert!(matches!(refused, Err(MessageError::Length { len: found }) if found == len));
}

fn entry_with(kind: Kind) -> Entry {
    Entry {
        id: EntryId(1),
        parent: EntryId::ROOT,
        name: Name::new(b"a").unwrap(),
        kind,
        is_linked: false,
        metadata: Metadata::default(),
    }
}

/// Entries with one entry of these parts, each already encoded.
fn raw_entry(name: &[u8], kind: &[u8], mode: &[u8], mtime: &[u8]) -> Vec<u8> {
    [&[6, 1, 1, 0][..], name, kind, &[0], mode, mtime, &[0, 0, 0]].concat()
}

/// SES-10, ENTRY-2, ERR-1: a value out of its range makes the message invalid.
#[test]
fn values_out_of_range_are_refused() {
    let second = [252, 0x00, 0xca, 0x9a, 0x3b]; // 1,000,000,000
    let below = [252, 0xff, 0xc9, 0x9a, 0x3b];
    let ok = |name: &[u8], kind: &[u8], mode: &[u8], mtime: &[u8]| {
        Message::decode(&raw_entry(name, kind, mode, mtime)).is_ok()
    };
    assert!(ok(&[1, b'a'], &[0], &[0], &[0, 0]));
    let long = [&[251, 0, 1][..], &[b'x'; 256]].concat();
    for name in [&[0][..], &[1, b'.'], &[2, b'.', b'.'], &[3, b'a', b'/', b'b'], &[1, 0], &long] {
        assert!(!ok(name, &[0], &[0], &[0, 0]), "name {name:?}");
    }
    assert!(ok(&[1, b'a'], &[0], &[251, 0xff, 0x0f], &[0, 0]), "mode 7777");
    assert!(!ok(&[1, b'a'], &[0], &[251, 0x00, 0x10], &[0, 0]), "mode 10000");
    assert!(ok(&[1, b'a'], &[0], &[0], &[&[0][..], &below].concat()));
    assert!(!ok(&[1, b'a'], &[0], &[0], &[&[0][..], &second].concat()), "a whole second");
    let file = |nanoseconds: &[u8]| [&[1, 0, 0, 0][..], nanoseconds].concat();
    assert!(ok(&[1, b'a'], &file(&below), &[0], &[0, 0]));
    assert!(!ok(&[1, b'a'], &file(&second), &[0], &[0, 0]), "a whole second of the ctime");
    for (kind, is_ok) in [
        (&[4, 0][..], true),
        (&[4, 3, 8, 1], true),
        (&[4, 4], false),
        (&[5, 1], true),
        (&[6], true),
        (&[7], false),
    ] {
        assert_eq!(ok(&[1, b'a'], kind, &[0], &[0, 0]), is_ok, "kind {kind:?}");
    }
    let all_changes = [251, 0xff, 0x0f];
    let outcome = |changes: &[u8]| Message::decode(&[&[16, 1, 1, 0][..], changes].concat());
    assert!(outcome(&all_changes).is_ok());
    assert!(outcome(&[251, 0x00, 0x10]).is_err(), "a change that does not exist");
    assert!(Message::decode(&[16, 1, 1, 4]).is_ok(), "Left");
    assert!(Message::decode(&[16, 1, 1, 5]).is_err(), "an outcome that does not exist");
    assert!(Message::decode(&[12, 1, 1, 4]).is_ok(), "Alone");
    assert!(Message::decode(&[12, 1, 1, 5]).is_err(), "a verdict that does not exist");
    assert!(Message::decode(&[3, 14, 0]).is_ok(), "Abort with the last code");
    assert!(Message::decode(&[3, 15, 0]).is_err(), "a code that does not exist");
    assert!(Message::decode(&[3, 0, 1, 0xff]).is_err(), "a text that is no text");
    assert!(Message::decode(&[5, 2, 0]).is_err(), "a bool that is neither");
    assert!(Message::decode(&[24, 0, 1]).is_ok(), "the last message");
    assert!(Message::decode(&[25, 0, 1]).is_err(), "a message that does not exist");
}

/// META-3, DEL-5: names of owners, and paths of what was deleted.
#[test]
fn owners_and_deleted_paths_have_names() {
    let owner = |name: &[u8]| {
        let users = vec![Owner { id: 7, name: name.to_vec() }];
        let bytes = Message::Owners { users, groups: Vec::new() }.encode().unwrap();
        Message::decode(&bytes[4..]).is_ok()
    };
    assert!(owner(b"a") && owner(b"DOMAIN\\some one") && owner(&[b'x'; 255]));
    assert!(!owner(b"") && !owner(b"a:b") && !owner(b"a\0") && !owner(&[b'x'; 256]));
    let deleted = |path: &[u8]| {
        let deleted = Deleted { path: path.to_vec(), is_directory: false };
        let bytes = Message::Deleted(vec![deleted]).encode().unwrap();
        Message::decode(&bytes[4..]).is_ok()
    };
    assert!(deleted(b"a") && deleted(b"a/b\n/...") && deleted(&vec![b'x'; MAX_TOLD_PATH_LEN]));
    assert!(!deleted(b"") && !deleted(b"a\0") && !deleted(&vec![b'x'; MAX_TOLD_PATH_LEN + 1]));
}

/// ENTRY-18: a path that is told is cut, and never refused for its length.
#[test]
fn a_complaint_has_a_path_of_limited_length() {
    let complaint = |path: &[u8]| {
        let failure = Failure::new(FailureCode::Io, "no");
        Message::Complaint(Complaint::new(path.to_vec(), failure))
    };
    let long = complaint(&vec![b'x'; MAX_TOLD_PATH_LEN + 1]);
    assert_eq!(long, complaint(&vec![b'x'; MAX_TOLD_PATH_LEN]));
    let decoded = |message: &Message| Message::decode(&message.encode().unwrap()[4..]);
    assert_eq!(decoded(&long).unwrap(), long);
    assert_eq!(decoded(&complaint(b"")).unwrap(), complaint(b""));
    assert!(decoded(&complaint(b"a\0")).is_err());
    let mut bytes = complaint(&vec![b'x'; MAX_TOLD_PATH_LEN]).encode().unwrap();
    // One more byte than it may have: the length is the u32 after the type's byte.
    bytes[6..10].copy_from_slice(&u32::try_from(MAX_TOLD_PATH_LEN + 1).unwrap().to_le_bytes());
    bytes.insert(10, b'x');
    assert!(Message::decode(&bytes[4..]).is_err());
}

/// SEL-3: a peer cannot make this end remember more sources than that.
#[test]
fn whereabouts_are_limited() {
    let node = SourceNode { device: 1, inode: 2, kind: SourceKind::Other };
    let is_ok = |count| {
        let whereabouts = Whereabouts { boot: [1; 16], nodes: vec![node; count] };
        let sources = Message::Sources { single_file: false, root: None, whereabouts };
        Message::decode(&sources.encode().unwrap()[4..]).is_ok()
    };
    assert!(is_ok(MAX_SOURCE_NODES) && !is_ok(MAX_SOURCE_NODES + 1));
}

/// META-2: both sides of every limit, and the order.
#[test]
fn attributes_are_limited() {
    let is_ok = |attributes: Vec<(&[u8], usize)>| {
        let of =
            |(name, len): (&[u8], usize)| Attribute { name: name.to_vec(), value: vec![0; len] };
        let attributes = attributes.into_iter().map(of).collect();
        let metadata = Metadata { attributes, ..Metadata::default() };
        let sources = Message::Sources {
            single_file: false,
            root: Some(metadata.clone()),
            whereabouts: Whereabouts::default(),
        };
        let decoded = Message::decode(&sources.encode().unwrap()[4..]);
        assert_eq!(decoded.is_ok(), metadata.check().is_ok());
        decoded.is_ok()
    };
    assert!(is_ok(vec![(b"user.a", 0), (b"user.b", MAX_ATTRIBUTE_LEN)]));
    assert!(!is_ok(vec![(b"user.a", MAX_ATTRIBUTE_LEN + 1)]), "a long value");
    assert!(!is_ok(vec![(b"user.b", 1), (b"user.a", 1)]), "out of order");
    assert!(!is_ok(vec![(b"user.a", 1), (b"user.a", 1)]), "twice");
    assert!(is_ok(vec![(&[b'x'; 255], 1)]) && !is_ok(vec![(&[b'x'; 256], 1)]));
    assert!(!is_ok(vec![(b"", 1)]) && !is_ok(vec![(b"user.\0", 1)]));
    let names = *b"abcdefgh";
    let all = |rest| -> Vec<(&[u8], usize)> {
        let lens = [MAX_ATTRIBUTE_LEN - 1; 7].into_iter().chain([rest]);
        names.iter().map(std::slice::from_ref).zip(lens).collect()
    };
    assert!(is_ok(all(MAX_ATTRIBUTE_LEN - 1)));
    assert!(!is_ok(all(MAX_ATTRIBUTE_LEN)), "512 KiB and 1");
}

/// ENTRY-4: what takes more memory counts for more.
#[test]
fn entries_have_weights() {
    let attribute = |n: u16, len| Attribute { name: n.to_be_bytes().to_vec(), value: vec![0; len] };
    let weight = |kind, attributes| {
        let mut entry = entry_with(kind);
        entry.metadata.attributes = attributes;
        entry.weight()
    };
    let link = |len| Kind::Symlink { target: vec![b'x'; len] };
    assert_eq!(weight(Kind::Directory, Vec::new()), 1);
    assert_eq!([1023, 1024, 4095].map(|len| weight(link(len), Vec::new())), [1, 2, 4]);
    let failure = |len| Kind::Unsendable(Failure::new(FailureCode::Io, "x".repeat(len)));
    assert_eq!([1023, 2048].map(|len| weight(failure(len), Vec::new())), [1, 3]);
    assert_eq!(weight(link(500), vec![attribute(1, 1024 - 500 - 128 - 2)]), 2);
    assert_eq!(weight(link(500), vec![attribute(1, 1024 - 500 - 128 - 3)]), 1);
    let empty = (0..16_384).map(|n| attribute(n, 0)).collect();
    assert_eq!(weight(Kind::Directory, empty), 1 + 16_384 * 130 / 1024, "they take room as well");
}

/// SES-8: both sides of every limit.
#[test]
fn options_are_limited() {
    let good = || match Message::decode(&[&[1, 0, 0][..], &[0; 48], &plain_options(16)].concat()) {
        Ok(Message::Open(open)) => open.options,
        other => panic!("{other:?}"),
    };
    let is_ok = |change: &dyn Fn(&mut Options)| {
        let mut options = good();
        change(&mut options);
        options.check().is_ok()
    };
    assert!(is_ok(&|_| {}));
    assert!(!is_ok(&|it| it.streams = 0) && !is_ok(&|it| it.streams = MAX_STREAMS + 1));
    assert!(!is_ok(&|it| it.pack_threshold = MAX_PACK_THRESHOLD + 1));
    assert!(
        !is_ok(&|it| it.port_range = Some((0, 9))) && !is_ok(&|it| it.port_range = Some((9, 8)))
    );
    let filters = |len: usize| vec![vec![b'x'; len / 2 - 8]; 2];
    assert!(is_ok(&|it| it.select.filters = filters(MAX_FILTERS_LEN)));
    assert!(!is_ok(&|it| it.select.filters = filters(MAX_FILTERS_LEN + 2)));
    let path = |len: usize| vec![b'x'; len];
    for (len, allowed) in [(0, false), (1, true), (4096, true), (4097, false)] {
        assert_eq!(is_ok(&|it| it.update.link_dest = vec![path(1), path(len)]), allowed, "{len}");
        let backup = Backup { directory: Some(path(len)), suffix: Vec::new() };
        assert_eq!(is_ok(&|it| it.update.backup = Some(backup.clone())), allowed, "{len}");
    }
    assert!(is_ok(&|it| it.update.link_dest = vec![path(9); 20]));
    assert!(!is_ok(&|it| it.update.link_dest = vec![path(9); 21]));
    assert!(!is_ok(&|it| it.update.link_dest = vec![b"a\0".to_vec()]));
    let backup = |directory: Option<&[u8]>, suffix: &[u8]| {
        let backup = Backup { directory: directory.map(<[u8]>::to_vec), suffix: suffix.to_vec() };
        is_ok(&|it| it.update.backup = Some(backup.clone()))
    };
    assert!(backup(None, b"~") && backup(None, &[b'x'; 255]) && backup(Some(b"old"), b""));
    assert!(!backup(None, b"") && !backup(None, &[b'x'; 256]) && !backup(Some(b"old"), b"/x"));
    assert!(!backup(None, b"a/b") && !backup(None, b"a\0"));
    assert!(is_ok(&|it| it.update.time_step = MAX_TIME_STEP));
    assert!(!is_ok(&|it| it.update.time_step = MAX_TIME_STEP + 1));
    assert!(is_ok(&|it| it.preserve.chmod = path(4096)));
    assert!(!is_ok(&|it| it.preserve.chmod = path(4097)));
    assert!(is_ok(&|it| it.preserve.chown = (Some(path(255)), Some(b"0".to_vec()))));
    for name in [&b""[..], b"a:b", b"a\0", &[b'x'; 256]] {
        assert!(!is_ok(&|it| it.preserve.chown.0 = Some(name.to_vec())), "{name:?}");
        assert!(!is_ok(&|it| it.preserve.chown.1 = Some(name.to_vec())), "{name:?}");
    }
    assert!(is_ok(&|it| it.delete = Some(Delete::default())));
    assert!(!is_ok(&|it| (it.delete, it.select.has_paths) = (Some(Delete::default()), true)));
    let removes =
        |durability| is_ok(&|it| (it.remove_source_files, it.durability) = (true, durability));
    assert!(!removes(Durability::None) && removes(Durability::Batch) && removes(Durability::File));
}

/// UPD-2: each change is a bit of its own.
#[test]
fn changes_are_bits() {
    for (bit, change) in CHANGES.into_iter().enumerate() {
        let bytes = Message::Outcomes(vec![(EntryId(1), Outcome::Done(change))]).encode().unwrap();
        let number = 1_u16 << bit;
        let wire = if number < 251 {
            number.to_le_bytes()[..1].to_vec()
        } else {
            [&[251][..], &number.to_le_bytes()].concat()
        };
        assert_eq!(bytes[4..], [&[16, 1, 1, 0][..], &wire].concat());
        assert!(!Changes::NONE.has(change) && change.has(change) && !change.is_empty());
        assert!(change.without(change).is_empty());
    }
}

/// SES-10: the chunk size is refused outside its limits, and nothing else about the message is.
#[test]
fn chunk_sizes_out_of_range_are_refused() {
    for log2 in 0..=u8::MAX {
        // Open: Receive into "".
        let bytes = [&[1, 0, 0][..], &[0; 48], &plain_options(log2)].concat();
        assert_eq!(Message::decode(&bytes).is_ok(), (16..=26).contains(&log2), "{log2}");
    }
}

/// SES-10: longer forms of a number are read; a number too wide for its field is not.
#[test]
fn numbers_have_longer_forms_and_limits() {
    let file_end = |version: &[u8]| [&[7, 1][..], version, &[0; 32]].concat();
    let plain = Message::decode(&file_end(&[5])).unwrap();
    assert_eq!(Message::decode(&file_end(&[251, 5, 0])).unwrap(), plain);
    assert!(Message::decode(&file_end(&[252, 5, 0, 0, 0])).is_err());
    for first in [254, 255] {
        assert!(Message::decode(&[&[7, first][..], &[0; 60]].concat()).is_err());
    }
}

/// ERR-3: a text is cut where a character ends, and is always a text.
#[test]
fn long_texts_are_cut() {
    for extra in 0..4 {
        let text = "x".repeat(extra) + &"€".repeat(MAX_TEXT_LEN);
        let failure = Failure::new(FailureCode::Io, text);
        assert!((MAX_TEXT_LEN - 2..=MAX_TEXT_LEN).contains(&failure.text().len()));
        assert!(failure.text().ends_with('€'));
    }
}

/// ERR-2: what a peer wrote about a failure is shown on one line, and obeyed by no terminal.
#[test]
fn a_peers_text_can_be_shown() {
    let failure = Failure::new(FailureCode::Io, "gone\r\n\u{1b}[2Jall \u{202e}well");
    let bytes = Message::Abort(failure).encode().unwrap();
    let Message::Abort(failure) = Message::decode(&bytes[4..]).unwrap() else { panic!() };
    assert_eq!(failure.text(), "gone\\r\\n\\u{1b}[2Jall \\u{202e}well");
}
