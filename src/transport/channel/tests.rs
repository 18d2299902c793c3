//! Both ends of a channel in one process, over loopback, with strangers in between.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{ByteRange, Chunk, ChunkData, Digest, EntryId, Pack};
use crate::protocol::frame::{Body, Frame, FrameError, Header};
use crate::protocol::handshake::{ChannelHello, Side};
use crate::protocol::message::{Carrier, Secret};
use crate::protocol::sparse::{Extent, Sparse};
use crate::protocol::tunnel::Record;
use crate::transport::join::Meeting;
use crate::transport::record::{Opener, Sealer};
use crate::transport::tls;
use crate::transport::tunnel::Tunnel;
use crate::transport::{FrameReceiver, FrameSender, TransportError};

const MIB: usize = 1 << 20;

fn slot(channel: u16, generation: u32) -> ChannelSlot {
    ChannelSlot { channel, generation }
}

/// The configurations of a session's two ends.
fn configs(encrypt: bool) -> (ChannelConfig, ChannelConfig) {
    let [one, other] = [(); 2].map(|()| Arc::new(Identity::generate().unwrap()));
    let config = |identity: &Arc<Identity>, peer: &Identity| ChannelConfig {
        identity: Arc::clone(identity),
        peer_certificate: peer.certificate().to_vec(),
        keys: ChannelKeys::new(Secret([1; 32]), Digest([2; 32])),
        encrypt,
        sockets: SocketOptions::default(),
        max_payload: 64 * MIB,
        channels: 4,
    };
    (config(&one, &other), config(&other, &one))
}

/// A listener that runs until this is dropped.
struct Session {
    dialler: ChannelConfig,
    address: SocketAddr,
    channels: flume::Receiver<Channel>,
    failures: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Session {
    fn start(encrypt: bool) -> Self {
        let (dialler, config) = configs(encrypt);
        Self::start_with(dialler, config)
    }

    fn start_with(dialler: ChannelConfig, config: ChannelConfig) -> Self {
        Self::start_open(dialler, config, Openings { tcp: true, ..Openings::default() })
    }

    fn start_open(dialler: ChannelConfig, config: ChannelConfig, openings: Openings) -> Self {
        let listener = Listener::bind(openings, None, true, config).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.port()));
        let failures = listener.failures();
        let (out, channels) = flume::unbounded();
        let mut tasks = JoinSet::new();
        tasks.spawn(listener.run(out));
        Self { dialler, address, channels, failures, tasks }
    }

    async fn dial(&self, slot: ChannelSlot) -> Result<Channel, TransportError> {
        dial(Carrier::Tcp, &[self.address], slot, &self.dialler).await
    }

    /// Both ends of a channel, the dialler's first.
    async fn channel(&self, slot: ChannelSlot) -> (Channel, Channel) {
        let dialled = self.dial(slot).await.unwrap();
        (dialled, self.channels.recv_async().await.unwrap())
    }

    /// Waits until so many strangers were turned away.
    async fn failed(&self, count: u64) {
        while self.failures.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn chunk(data: Bytes) -> Frame {
    let len = u32::try_from(data.len()).unwrap();
    let range = ByteRange::new(EntryId(5), 0, len, true).unwrap();
    Frame::Chunk(Chunk::received(range, 3, Digest([9; 32]), ChunkData::Bytes(data)))
}

/// A MiB with 20 KiB of data in two extents.
fn sparse() -> Frame {
    let range = ByteRange::new(EntryId(5), 0, 1 << 20, true).unwrap();
    let extents = [(4096, 8192), ((1 << 20) - 12_288, 12_288)];
    let extents = extents.map(|(start, len)| Extent { start, len });
    let len = Sparse::payload_len(range.len(), &extents).unwrap();
    let mut payload = bytes(len).to_vec();
    Sparse::write_table(range.len(), Digest([9; 32]), &extents, &mut payload);
    Frame::Chunk(Chunk::sparse(range, 3, payload.into()).unwrap())
}

fn bytes(len: usize) -> Bytes {
    (0..len).map(|n| u8::try_from((n ^ (n >> 8)) & 0xff).unwrap()).collect()
}

/// Frames of many lengths, around the limits of records and buffers.
fn frames() -> Vec<Frame> {
    let hole = Frame::Chunk(Chunk::hole(ByteRange::new(EntryId(1), 0, 100, false).unwrap(), 0));
    let pack = Frame::Pack(Pack { number: 7, digest: Digest([3; 32]), payload: bytes(4) });
    let lens = [1, 2, 63, 64, 65, 16_319, 16_320, 16_383, 16_384, 16_385, 65_535, 65_536, 524_287];
    let lens = lens.into_iter().chain([524_288, 8 * MIB, 3, 3 * MIB + 1]);
    [hole, pack, sparse()].into_iter().chain(lens.map(|len| chunk(bytes(len)))).collect()
}

fn same(one: &Frame, other: &Frame) -> bool {
    one.header(0) == other.header(0) && one.payload() == other.payload()
}

/// FRAME-5, T08: whatever is sent arrives, in either direction.
#[tokio::test]
async fn frames_of_all_lengths_arrive() {
    for encrypt in [true, false] {
        let session = Session::start(encrypt);
        for flip in [false, true] {
            let (dialled, accepted) = session.channel(slot(0, flip.into())).await;
            assert_eq!((dialled.slot, dialled.slot), (accepted.slot, slot(0, flip.into())));
            let (from, to) = if flip { (accepted, dialled) } else { (dialled, accepted) };
            let (mut sender, mut receiver) = (from.into_sender(), to.into_receiver());
            let pool = Pool::new(1, 8 * MIB);
            let frames = frames();
            let send = async {
                for frame in &frames {
                    sender.send(frame).await.unwrap();
                }
                sender.finish().await.unwrap();
                assert!(sender.send(&Frame::End).await.is_err(), "nothing comes after the end");
            };
            let receive = async {
                for frame in &frames {
                    let found = receiver.receive(&pool).await.unwrap();
                    assert!(same(frame, &found), "{:?}", found.header(0));
                }
                assert!(matches!(receiver.receive(&pool).await, Ok(Frame::End)));
                assert!(matches!(receiver.receive(&pool).await, Err(TransportError::Closed)));
            };
            tokio::join!(send, receive);
        }
    }
}

/// PATH-1, PATH-3, PATH-7: the same frames on QUIC and inside the tunnel, in either direction.
#[tokio::test]
async fn other_byte_streams_carry_the_same_frames() {
    for is_quic in [true, false] {
        let (near, far) = configs(true);
        let (client, agent) = (Tunnel::default(), Tunnel::default());
        client.allow(0, 1 << 20);
        agent.allow(8, 1 << 20);
        let tunnel = Some(agent.clone());
        let openings = Openings { quic: true, tunnel, ..Openings::default() };
        let listener = Listener::bind(openings, None, true, far).unwrap();
        assert_eq!(listener.port(), 0);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.udp_port()));
        let (out, channels) = flume::unbounded();
        let mut tasks = JoinSet::new();
        tasks.spawn(listener.run(out));
        let between = client.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    up = between.next_record() => agent.take(Record::decode(&up).unwrap()),
                    down = agent.next_record() => between.take(Record::decode(&down).unwrap()),
                }
                .unwrap();
            }
        });
        for flip in [false, true] {
            let slot = slot(0, flip.into());
            let dialled = if is_quic {
                dial(Carrier::Quic, &[address], slot, &near).await.unwrap()
            } else {
                let stream = ByteStream::Tunnel(client.open());
                dial_on(stream, "the agent", slot, &near).await.unwrap()
            };
            let accepted = channels.recv_async().await.unwrap();
            let (from, to) = if flip { (accepted, dialled) } else { (dialled, accepted) };
            let (mut sender, mut receiver) = (from.into_sender(), to.into_receiver());
            let pool = Pool::new(1, 8 * MIB);
            let frames = frames();
            let send = async {
                for frame in &frames {
                    sender.send(frame).await.unwrap();
                }
                sender.finish().await.unwrap();
            };
            let receive = async {
                for frame in &frames {
                    assert!(same(frame, &receiver.receive(&pool).await.unwrap()));
                }
                assert!(matches!(receiver.receive(&pool).await, Ok(Frame::End)));
            };
            tokio::join!(send, receive);
        }
    }
}

/// PATH-3, SEC-7: without the pinned certificates nobody gets through QUIC either, nor without the
/// secret.
#[tokio::test]
async fn quic_takes_nobody_else() {
    let (stranger, _) = configs(true);
    let (near, far) = configs(true);
    let openings = Openings { quic: true, ..Openings::default() };
    let listener = Listener::bind(openings, None, true, far).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.udp_port()));
    let (out, channels) = flume::unbounded();
    let mut tasks = JoinSet::new();
    tasks.spawn(listener.run(out));
    let keys = ChannelKeys::new(Secret([8; 32]), Digest([2; 32]));
    let wrong_secret = ChannelConfig { keys, ..near.clone() };
    let wrong_self = ChannelConfig { identity: stranger.identity, ..near.clone() };
    let peer_certificate = stranger.peer_certificate;
    let wrong_peer = ChannelConfig { peer_certificate, ..near.clone() };
    for config in [wrong_self, wrong_peer, wrong_secret] {
        assert!(dial(Carrier::Quic, &[address], slot(0, 0), &config).await.is_err());
    }
    assert!(channels.is_empty());
    dial(Carrier::Quic, &[address], slot(0, 0), &near).await.unwrap();
}

/// PATH-7, FRAME-6: a dialler that says that it is ready before it has sent as much as a path must carry.
#[tokio::test]
async fn a_channel_without_a_probe_is_none() {
    let session = Session::start(false);
    let keys = session.dialler.keys.clone();
    let mut stream = TcpStream::connect(session.address).await.unwrap();
    let mut binding = [0; 32];
    stream.read_exact(&mut binding).await.unwrap();
    let proof = keys.proof(Side::Dialler, slot(0, 0), &binding);
    stream.write_all(&ChannelHello { slot: slot(0, 0), proof }.encode()).await.unwrap();
    stream.read_exact(&mut [0; 32]).await.unwrap();
    let header = Frame::Ready.header(0).encode();
    let code = keys.frame_key(Side::Dialler, slot(0, 0), &binding).code(&header);
    stream.write_all(&[&header[..], &code].concat()).await.unwrap();
    session.failed(1).await;
    assert!(session.channels.is_empty());
}

/// SEC-5: a connection that has proved itself and no more gives way to a newer one of its channel.
#[tokio::test]
async fn a_connection_that_is_not_probed_yet_is_replaced() {
    let session = Session::start(false);
    let mut streams = Vec::new();
    for generation in 0..3 {
        streams.push(proved_by_hand(&session, slot(0, generation)).await);
    }
    session.failed(2).await;
    let (mut newest, coded) = streams.pop().unwrap();
    probe_by_hand(&mut newest, coded).await;
    assert_eq!(session.channels.recv_async().await.unwrap().slot, slot(0, 2));
    for (mut older, _) in streams {
        assert!(!matches!(older.read(&mut [0]).await, Ok(1..)), "it is closed");
    }
}

/// SEC-7: TLS itself stops them, and the listener goes on.
#[tokio::test]
async fn a_wrong_pin_is_refused() {
    let (_, stranger) = configs(true);
    let (good, config) = configs(true);
    let wrong_self = ChannelConfig { identity: stranger.identity, ..good.clone() };
    let peer_certificate = stranger.peer_certificate;
    let session = Session::start_with(good.clone(), config);
    for config in [wrong_self, ChannelConfig { peer_certificate, ..good }] {
        let refused = dial(Carrier::Tcp, &[session.address], slot(0, 0), &config).await;
        assert!(matches!(refused, Err(TransportError::Tls(_))), "{refused:?}");
    }
    session.failed(2).await;
    session.channel(slot(0, 0)).await;
}

/// T64: the right certificate and the wrong secret, in both modes.
#[tokio::test]
async fn a_wrong_proof_is_refused() {
    for encrypt in [true, false] {
        let session = Session::start(encrypt);
        let keys = ChannelKeys::new(Secret([8; 32]), Digest([2; 32]));
        let config = ChannelConfig { keys, ..session.dialler.clone() };
        assert!(dial(Carrier::Tcp, &[session.address], slot(0, 0), &config).await.is_err());
        session.failed(1).await;
        assert!(session.dial(slot(4, 0)).await.is_err(), "there are channels 0 to 3");
        session.channel(slot(3, 0)).await;
    }
}

/// SEC-4: the dialler does not talk to a listener that cannot prove itself.
#[tokio::test]
async fn a_listener_must_prove_itself() {
    let (config, _) = configs(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pretend = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[0; 32]).await.unwrap();
        let mut hello = [0; ChannelHello::SIZE];
        stream.read_exact(&mut hello).await.unwrap();
        // The best it can do without the secret: give the dialler's own proof back.
        stream.write_all(&hello[12..]).await.unwrap();
        stream.read(&mut [0]).await
    };
    let addresses = [address];
    let (refused, rest) =
        tokio::join!(dial(Carrier::Tcp, &addresses, slot(0, 0), &config), pretend);
    assert!(matches!(refused, Err(TransportError::Proof(_))));
    assert_eq!(rest.ok(), Some(0), "not even a frame came");
}

/// T64: a generation is good for one connection.
#[tokio::test]
async fn a_generation_cannot_be_used_again() {
    for encrypt in [true, false] {
        let session = Session::start(encrypt);
        session.channel(slot(1, 4)).await;
        for generation in [4, 3] {
            assert!(session.dial(slot(1, generation)).await.is_err());
        }
        session.channel(slot(1, 5)).await;
        session.channel(slot(2, 4)).await;
    }
}

/// T62: whatever strangers say, the peer gets through.
#[tokio::test]
async fn a_storm_of_strangers_does_not_matter() {
    let hello: &[u8] = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00";
    let huge: &[u8] = b"\x17\x03\x03\xff\xff";
    let greetings = [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 1000][..], hello, huge, &[], b"\x16\x03"];
    for encrypt in [true, false] {
        let session = Session::start(encrypt);
        let mut storm = JoinSet::new();
        for n in 0..200 {
            let (address, greeting) = (session.address, greetings[n % greetings.len()].to_vec());
            storm.spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let _ = stream.write_all(&greeting).await;
                let _ = stream.shutdown().await;
                // Until the listener has had enough of it.
                while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {}
            });
        }
        let channels = async {
            for channel in 0..4 {
                let mut generation = 0;
                while session.dial(slot(channel, generation)).await.is_err() {
                    generation += 1;
                }
            }
        };
        channels.await;
        while storm.join_next().await.is_some() {}
        session.failed(200).await;
        session.channel(slot(0, 1000)).await;
    }
}

/// T63: those who hold all places and say nothing lose them.
#[tokio::test]
async fn squatters_do_not_keep_the_peer_out() {
    let session = Session::start(true);
    let mut squatters = Vec::new();
    for _ in 0..80 {
        let mut squatter = TcpStream::connect(session.address).await.unwrap();
        squatter.write_all(b"\x16\x03\x01").await.unwrap();
        squatters.push(squatter);
    }
    session.failed(80 - 64).await;
    let mut generation = 0;
    while session.dial(slot(0, generation)).await.is_err() {
        generation += 1;
        assert!(generation < 20);
    }
    // After three seconds nobody is left.
    session.failed(80).await;
}

/// SEC-8: whoever fills the port's places takes none from what comes inside ssh.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn squatters_do_not_drop_what_comes_inside_ssh() {
    use std::os::linux::net::SocketAddrExt as _;
    let meeting = Meeting::open([9; 16]).unwrap();
    let place = std::os::unix::net::SocketAddr::from_abstract_name(meeting.name()).unwrap();
    let (dialler, config) = configs(true);
    let openings = Openings { tcp: true, meeting: Some(meeting), ..Openings::default() };
    let session = Session::start_open(dialler, config, openings);
    let mut joined = Vec::new();
    for _ in 0..4 {
        let stream = std::os::unix::net::UnixStream::connect_addr(&place).unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        // The challenge is there: its handshake has begun.
        stream.readable().await.unwrap();
        joined.push(stream);
    }
    let mut squatters = Vec::new();
    for _ in 0..400 {
        squatters.push(TcpStream::connect(session.address).await.unwrap());
    }
    session.failed(400 - 64).await;
    for (channel, stream) in (0..).zip(joined) {
        let stream = ByteStream::Unix(stream);
        dial_on(stream, "a further login", slot(channel, 0), &session.dialler).await.unwrap();
    }
}

/// PATH-2: ports that are all taken are no reason to give up.
#[tokio::test]
async fn a_listener_without_a_port_says_so() {
    let (dialler, config) = configs(true);
    let session = Session::start(true);
    let port = session.address.port();
    let openings = Openings { tcp: true, ..Openings::default() };
    let listener = Listener::bind(openings, Some((port, port)), true, config).unwrap();
    let refusal = listener.refusal().map(ToString::to_string).unwrap();
    assert_eq!(listener.port(), 0);
    assert!(refusal.contains(&format!("{port}:{port}")), "{refusal}");
    let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let openings = Openings { quic: true, ..Openings::default() };
    let listener = Listener::bind(openings, Some((port, port)), true, dialler).unwrap();
    assert_eq!((listener.udp_port(), listener.refusal().is_some()), (0, true));
    drop(udp);
}

/// The peer listens at the second address; at the first somebody else does, and says nothing.
#[tokio::test]
async fn the_address_that_is_the_peer_wins() {
    let session = Session::start(true);
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = other.local_addr().unwrap();
    let begin = Instant::now();
    let addresses = [closed, silent, session.address];
    let channel = dial(Carrier::Tcp, &addresses, slot(0, 0), &session.dialler).await.unwrap();
    assert_eq!(channel.peer, session.address.to_string());
    assert!(begin.elapsed() < Duration::from_secs(3), "the silent one was not waited for");
    let refused = dial(Carrier::Tcp, &[closed], slot(0, 1), &session.dialler).await;
    assert!(matches!(refused, Err(TransportError::Io { .. })));
    let timed_out = dial(Carrier::Tcp, &[silent, closed], slot(0, 1), &session.dialler).await;
    assert!(matches!(timed_out, Err(TransportError::TimedOut(_))), "{timed_out:?}");
    assert!(dial(Carrier::Tcp, &[], slot(0, 1), &session.dialler).await.is_err());
}

/// T12: a connection that ends without being finished was lost.
#[tokio::test]
async fn an_end_without_the_end_frame_is_a_loss() {
    for encrypt in [true, false] {
        let session = Session::start(encrypt);
        let (dialled, accepted) = session.channel(slot(0, 0)).await;
        let (mut sender, mut receiver) = (dialled.into_sender(), accepted.into_receiver());
        let pool = Pool::new(1, MIB);
        sender.send(&chunk(bytes(10))).await.unwrap();
        drop(sender);
        assert!(receiver.receive(&pool).await.is_ok());
        for _ in 0..2 {
            assert!(matches!(receiver.receive(&pool).await, Err(TransportError::Closed)));
        }
    }
}

/// An idle sender learns that the peer is gone, and may stop waiting for it at any time.
#[tokio::test]
async fn an_idle_sender_notices_a_loss() {
    let session = Session::start(true);
    let (dialled, accepted) = session.channel(slot(0, 0)).await;
    let (mut sender, mut receiver) = (dialled.into_sender(), accepted.into_receiver());
    let pool = Pool::new(1, MIB);
    tokio::select! {
        biased;
        _ = sender.closed() => panic!("nothing happened"),
        () = tokio::task::yield_now() => {}
    }
    sender.send(&chunk(bytes(10))).await.unwrap();
    assert!(receiver.receive(&pool).await.is_ok());
    drop(receiver);
    assert!(!sender.closed().await.is_violation());
}

/// FRAME-3: a length over the limit is refused though not one byte of it came, and with the pool empty.
#[tokio::test]
async fn a_frame_over_the_limit_takes_no_buffer() {
    for encrypt in [true, false] {
        let (near, far) = configs(encrypt);
        let session = Session::start_with(near, ChannelConfig { max_payload: 1000, ..far });
        for (generation, buffer_len, limit) in [(0, MIB, 1000), (1, 900, 900)] {
            let (dialled, accepted) = session.channel(slot(0, generation)).await;
            let (mut sender, mut receiver) = (dialled.into_sender(), accepted.into_receiver());
            let pool = Pool::new(1, buffer_len);
            sender.send(&chunk(bytes(limit))).await.unwrap();
            let held = receiver.receive(&pool).await.unwrap();
            sender.send(&chunk(bytes(limit + 1))).await.unwrap();
            let refused = receiver.receive(&pool).await.unwrap_err();
            let expected = FrameError::TooLong { len: limit + 1, limit };
            assert!(matches!(refused, TransportError::Frame(error) if error == expected));
            assert!(refused.is_violation());
            drop(held);
        }
    }
}

/// A frame whose payload is not what its header says would break all that follow it.
#[tokio::test]
async fn a_frame_with_a_wrong_length_is_not_sent() {
    let session = Session::start(true);
    let (dialled, _accepted) = session.channel(slot(0, 0)).await;
    let mut sender = dialled.into_sender();
    let mut frame = chunk(bytes(10));
    let Frame::Chunk(chunk) = &mut frame else { unreachable!() };
    chunk.data = ChunkData::Bytes(bytes(9));
    assert!(matches!(sender.send(&frame).await, Err(TransportError::Io { .. })));
}

/// Plays a dialler without TLS by hand, up to a receiver that has read its `Ready`.
async fn by_hand(
    session: &Session,
) -> (TcpStream, impl Fn(Header) -> [u8; 96] + use<>, ChannelReceiver) {
    let (mut stream, coded) = proved_by_hand(session, slot(0, 0)).await;
    probe_by_hand(&mut stream, &coded).await;
    let channel = session.channels.recv_async().await.unwrap();
    (stream, coded, channel.into_receiver())
}

/// The same up to the proofs.
async fn proved_by_hand(
    session: &Session,
    slot: ChannelSlot,
) -> (TcpStream, impl Fn(Header) -> [u8; 96] + use<>) {
    let keys = session.dialler.keys.clone();
    let mut stream = TcpStream::connect(session.address).await.unwrap();
    let mut binding = [0; 32];
    stream.read_exact(&mut binding).await.unwrap();
    let proof = keys.proof(Side::Dialler, slot, &binding);
    stream.write_all(&ChannelHello { slot, proof }.encode()).await.unwrap();
    let mut answer = [0; 32];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, keys.proof(Side::Listener, slot, &binding).0);
    let key = keys.frame_key(Side::Dialler, slot, &binding);
    let coded = move |header: Header| {
        let mut out = [0; 96];
        out[..64].copy_from_slice(&header.encode());
        let code = key.code(&out[..64]);
        out[64..].copy_from_slice(&code);
        out
    };
    (stream, coded)
}

/// Plays the dialler's part of the probe.
async fn probe_by_hand(stream: &mut TcpStream, coded: impl Fn(Header) -> [u8; 96]) {
    stream.write_all(&coded(Frame::Probe.header(0))).await.unwrap();
    stream.write_all(Frame::Probe.payload()).await.unwrap();
    let mut answer = vec![0; 96 + Frame::Probe.payload().len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..64], Frame::Probe.header(0).encode());
    stream.write_all(&coded(Frame::Ready.header(1))).await.unwrap();
}

/// SEC-6: without TLS, a header is not looked at before its code has been checked.
#[tokio::test]
async fn a_header_with_a_wrong_bit_is_not_authentic() {
    let pool = Pool::new(1, MIB);
    for byte in 0..96 {
        let session = Session::start(false);
        let (mut stream, coded, mut receiver) = by_hand(&session).await;
        let mut bytes = coded(Frame::End.header(2));
        bytes[byte] ^= 1 << (byte % 8);
        stream.write_all(&bytes).await.unwrap();
        let refused = receiver.receive(&pool).await;
        assert!(matches!(refused, Err(TransportError::NotAuthentic)), "byte {byte}");
    }
}

/// FRAME-10: damage to a table ends the channel, a table that lies the session; and data is for
/// others to look at.
#[tokio::test]
async fn a_wrong_table_of_a_sparse_chunk_is_no_frame() {
    let pool = Pool::new(1, MIB);
    for (at, lies, is_ok) in
        [(0, false, false), (41, false, false), (41, true, false), (99, false, true)]
    {
        let session = Session::start(false);
        let (mut stream, coded, mut receiver) = by_hand(&session).await;
        let frame = sparse();
        let mut payload = frame.payload().to_vec();
        payload[at] ^= 1;
        let mut header = frame.header(2);
        if let (Body::Sparse { digest, .. }, true) = (&mut header.body, lies) {
            *digest = Digest::of(&payload[..Sparse::table_len(2)]);
        }
        stream.write_all(&[&coded(header)[..], &payload].concat()).await.unwrap();
        match receiver.receive(&pool).await {
            Ok(_) => assert!(is_ok, "byte {at}"),
            Err(error) => assert_eq!((error.is_violation(), false), (lies, is_ok), "{error}"),
        }
    }
}

/// T69: gaps, repetitions, and a second `Ready`.
#[tokio::test]
async fn frames_out_of_order_are_violations() {
    let pool = Pool::new(1, MIB);
    for found in [0, 1, 3, u64::MAX] {
        let session = Session::start(false);
        let (mut stream, coded, mut receiver) = by_hand(&session).await;
        stream.write_all(&coded(Frame::End.header(found))).await.unwrap();
        let refused = receiver.receive(&pool).await.unwrap_err();
        let expected = FrameError::Sequence { expected: 2, found };
        assert!(matches!(refused, TransportError::Frame(error) if error == expected));
    }
    let session = Session::start(false);
    let (mut stream, coded, mut receiver) = by_hand(&session).await;
    stream.write_all(&coded(Frame::Ready.header(2))).await.unwrap();
    assert!(receiver.receive(&pool).await.unwrap_err().is_violation());
}

/// What is tampered with on its way fails, and nothing of it comes out.
#[tokio::test]
async fn a_changed_record_ends_the_channel() {
    let session = Session::start(true);
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = (relay.local_addr().unwrap(), session.address);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { tamper(relay, far).await });
    let mut sender =
        dial(Carrier::Tcp, &[near], slot(0, 0), &session.dialler).await.unwrap().into_sender();
    let mut receiver = session.channels.recv_async().await.unwrap().into_receiver();
    let pool = Pool::new(2, 8 * MIB);
    let refused = loop {
        let frame = chunk(bytes(MIB));
        let (_, outcome) = tokio::join!(sender.send(&frame), receiver.receive(&pool));
        match outcome {
            Ok(found) => assert!(same(&frame, &found)),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, TransportError::NotAuthentic), "{refused}");
}

/// Passes everything on, and flips one bit far behind the handshake.
async fn tamper(relay: TcpListener, far: SocketAddr) -> io::Result<()> {
    let (near, _) = relay.accept().await?;
    let far = TcpStream::connect(far).await?;
    let ((mut from, mut back), (mut answers, mut to)) = (near.into_split(), far.into_split());
    let forward = async {
        let (mut buffer, mut seen) = (vec![0; 64 << 10], 0);
        loop {
            let len = from.read(&mut buffer).await?;
            if len == 0 {
                return to.shutdown().await;
            }
            if let Some(place) = (3 * MIB + 777_usize).checked_sub(seen).filter(|at| *at < len) {
                buffer[place] ^= 0x10;
            }
            seen += len;
            to.write_all(&buffer[..len]).await?;
        }
    };
    let (there, _) = tokio::join!(forward, tokio::io::copy(&mut answers, &mut back));
    there
}

/// SEC-7: the format is TLS': a peer that lets rustls do everything understands us, and we understand it.
#[tokio::test]
async fn a_stock_rustls_peer_speaks_with_us() {
    let session = Session::start(true);
    let (config, keys) = (&session.dialler, &session.dialler.keys);
    let client = config.identity.client_config(&config.peer_certificate).unwrap();
    let connector = tokio_rustls::TlsConnector::from(client);
    let socket = TcpStream::connect(session.address).await.unwrap();
    let mut stream = connector.connect(tls::server_name().unwrap(), socket).await.unwrap();
    let label = b"EXPORTER-fastsync-channel";
    let binding = stream.get_ref().1.export_keying_material([0; 32], label, None).unwrap();
    let proof = keys.proof(Side::Dialler, slot(0, 0), &binding);
    stream.write_all(&ChannelHello { slot: slot(0, 0), proof }.encode()).await.unwrap();
    let mut answer = [0; 32];
    stream.read_exact(&mut answer).await.unwrap();
    stream.write_all(&Frame::Probe.header(0).encode()).await.unwrap();
    stream.write_all(Frame::Probe.payload()).await.unwrap();
    let mut answer = vec![0; Header::SIZE + Frame::Probe.payload().len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..Header::SIZE], Frame::Probe.header(0).encode());
    stream.write_all(&Frame::Ready.header(1).encode()).await.unwrap();
    let channel = session.channels.recv_async().await.unwrap();

    let frame = chunk(bytes(MIB));
    let mut wire = frame.header(2).encode().to_vec();
    wire.extend(frame.payload());
    let pool = Pool::new(1, MIB);
    let Channel { stream: socket, mut writer, reader, .. } = channel;
    let ByteStream::Tcp(socket) = socket else { panic!("{socket:?}") };
    let (mut our_read, mut our_write) = socket.into_split();
    let send = async {
        stream.write_all(&wire).await.unwrap();
        stream.flush().await.unwrap();
        wire[8] = 1;
        let mut back = vec![0; wire.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, wire);
    };
    let receive = async {
        let mut reader = reader;
        let found = reader.frame(&mut our_read, &pool, MIB).await.unwrap();
        assert!(same(&frame, &found));
        writer.write(&mut our_write, &found).await.unwrap();
    };
    tokio::join!(send, receive);
}

/// Records that are cut in another way than ours come out the same.
#[tokio::test]
async fn the_borders_of_records_do_not_matter() {
    for step in [1, 63, 64, 65, 700, 16_384] {
        let (client, server) = tls::tests::connected(0);
        let secrets = client.dangerous_extract_secrets().unwrap().tx;
        let mut sealer = Sealer::new(secrets).unwrap();
        let opener = Opener::new(server.dangerous_extract_secrets().unwrap().rx).unwrap();
        let frames = [chunk(bytes(20_000)), chunk(bytes(1)), chunk(bytes(16_384)), Frame::End];
        let mut plain = Vec::new();
        for (frame, n) in frames.iter().zip(0..) {
            plain.extend(frame.header(n).encode());
            plain.extend(frame.payload());
        }
        let (mut wire, mut record) = (Vec::new(), vec![0; 20_000]);
        for piece in plain.chunks(step) {
            let len = sealer.seal(piece, &mut record).unwrap();
            wire.extend_from_slice(&record[..len]);
        }
        let (mut reader, pool) = (FrameReader::with_records(opener), Pool::new(1, MIB));
        let mut wire = &wire[..];
        for frame in &frames {
            assert!(same(frame, &reader.frame(&mut wire, &pool, MIB).await.unwrap()));
        }
        assert!(matches!(reader.frame(&mut wire, &pool, MIB).await, Err(TransportError::Closed)));
    }
}

/// Prints what one connection carries; run it in release mode, with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_one_connection() {
    const CHUNKS: u32 = 512;
    let pool = Pool::new(4, 8 * MIB);
    for encrypt in [true, false, true, false, true, false] {
        let session = Session::start(encrypt);
        let (dialled, accepted) = session.channel(slot(0, 0)).await;
        let (mut sender, mut receiver) = (dialled.into_sender(), accepted.into_receiver());
        let (frame, begin, cpu) = (chunk(bytes(8 * MIB)), Instant::now(), cpu_seconds());
        let sending = tokio::spawn(async move {
            for _ in 0..CHUNKS {
                sender.send(&frame).await.unwrap();
            }
            sender.finish().await.unwrap();
        });
        while !matches!(receiver.receive(&pool).await.unwrap(), Frame::End) {}
        sending.await.unwrap();
        let gib = f64::from(CHUNKS) * 8.0 / 1024.0;
        let (wall, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        println!("encrypt {encrypt}: {:.2} GiB/s, {:.2} CPU-s/GiB", gib / wall, cpu / gib);
        drop(session.tasks);
    }
}

fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(now).unwrap().as_secs_f64()
}
