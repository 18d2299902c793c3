//! Data channels inside the control channel: many byte streams on one, each with a window of its own.
//!
//! In: bytes that a stream's owner writes, and records that came. Out: records for whoever writes the
//! control channel, and bytes for the stream's owner. No I/O and no task of its own: the control
//! channel's reader hands records in ([`Tunnel::take`]) and its writer takes them out
//! ([`Tunnel::next_record`]).
//!
//! A stream may send no more than its window allows, so that a reader of the control channel never
//! has to wait for the owner of a stream, and what it holds is bounded. A stream has one record
//! waiting at a time, and streams take turns.
//!
//! Rules: `protocol-spec/11-paths.md`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::protocol::tunnel::{Body, MAX_DATA_LEN, Record, RecordError};

/// All streams of one control channel. Clones are the same tunnel.
#[derive(Clone, Debug, Default)]
pub struct Tunnel(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when there is something to write.
    waiting: Notify,
    /// Told when a stream was opened by the peer.
    opened: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// How many bytes a stream may send ahead; 0 until the session has been agreed on.
    window: u32,
    /// How many streams the peer may have open.
    max_streams: usize,
    streams: HashMap<u32, Stream>,
    /// The highest number of a stream so far.
    last: u32,
    /// Streams of the peer that nobody has taken yet.
    arrived: VecDeque<u32>,
    /// Records that go before all data, which are small.
    urgent: VecDeque<Vec<u8>>,
    /// Streams with something to write, in the order of their turns.
    turns: VecDeque<u32>,
}

/// One end of one stream.
#[derive(Debug)]
struct Stream {
    /// How much may still be sent.
    credit: u32,
    /// A record that waits for its turn.
    outgoing: Option<Vec<u8>>,
    /// This end sends nothing more; `is_closed` once it has said so.
    is_closing: bool,
    is_closed: bool,
    /// What came and was not read yet, and where the first of it begins.
    incoming: VecDeque<Vec<u8>>,
    start: usize,
    /// How much of the peer's window is taken by what came.
    held: u32,
    /// What was read and the peer has not been told of.
    consumed: u32,
    /// The peer sends nothing more.
    is_over: bool,
    /// The peer has given the stream up.
    is_reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Stream {
    fn new(window: u32) -> Self {
        Self {
            credit: window,
            outgoing: None,
            is_closing: false,
            is_closed: false,
            incoming: VecDeque::new(),
            start: 0,
            held: 0,
            consumed: 0,
            is_over: false,
            is_reset: false,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

impl Tunnel {
    /// Lets there be streams: so many at once, each with a window of so many bytes.
    pub fn allow(&self, max_streams: usize, window: u32) {
        let mut state = self.state();
        (state.max_streams, state.window) = (max_streams, window);
    }

    /// Opens a stream.
    pub fn open(&self) -> TunnelStream {
        let mut state = self.state();
        state.last += 1;
        let (number, window) = (state.last, state.window);
        state.streams.insert(number, Stream::new(window));
        state.urgent.push_back(Record { stream: number, body: Body::Open }.encode());
        drop(state);
        self.0.waiting.notify_one();
        TunnelStream { tunnel: self.clone(), number }
    }

    /// Waits for a stream that the peer opens.
    pub async fn accept(&self) -> TunnelStream {
        loop {
            let opened = self.0.opened.notified();
            if let Some(number) = self.state().arrived.pop_front() {
                return TunnelStream { tunnel: self.clone(), number };
            }
            opened.await;
        }
    }

    /// Takes a record that came.
    ///
    /// # Errors
    ///
    /// If it is none that a correct peer sends (PATH-8, PATH-9).
    pub fn take(&self, record: Record<'_>) -> Result<(), RecordError> {
        let mut state = self.state();
        let number = record.stream;
        if state.window == 0 {
            return Err(RecordError::TooEarly);
        }
        if state.urgent.len() > MAX_URGENT {
            return Err(RecordError::NotHeard);
        }
        if record.body == Body::Open {
            if number != state.last.wrapping_add(1) {
                return Err(RecordError::Number(number));
            }
            if state.streams.len() >= state.max_streams {
                return Err(RecordError::TooMany);
            }
            let window = state.window;
            state.last = number;
            state.streams.insert(number, Stream::new(window));
            state.arrived.push_back(number);
            drop(state);
            self.0.opened.notify_one();
            return Ok(());
        }
        if number == 0 || number > state.last {
            return Err(RecordError::Number(number));
        }
        let window = state.window;
        // What comes for a stream that this end has given up was on its way.
        let Some(stream) = state.streams.get_mut(&number) else { return Ok(()) };
        match record.body {
            Body::Open => {}
            Body::Data(_) | Body::Close if stream.is_over => return Err(RecordError::AfterClose),
            Body::Data(data) => {
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                if len > window.saturating_sub(stream.held) {
                    return Err(RecordError::OverWindow);
                }
                stream.held += len;
                match stream.incoming.back_mut() {
                    // Many small records take no more memory than few large ones.
                    Some(last) if last.len() + data.len() <= MAX_DATA_LEN => {
                        last.extend_from_slice(data);
                    }
                    _ => stream.incoming.push_back(data.to_vec()),
                }
                stream.reader.take().into_iter().for_each(Waker::wake);
            }
            Body::Window(more) => {
                stream.credit = stream.credit.checked_add(more).ok_or(RecordError::OverWindow)?;
                if stream.credit > window {
                    return Err(RecordError::OverWindow);
                }
                stream.writer.take().into_iter().for_each(Waker::wake);
            }
            Body::Close => {
                stream.is_over = true;
                stream.reader.take().into_iter().for_each(Waker::wake);
            }
            Body::Reset => {
                stream.is_reset = true;
                stream.wake();
            }
        }
        Ok(())
    }

    /// Waits for the next record to write. May be dropped at any time.
    pub async fn next_record(&self) -> Vec<u8> {
        loop {
            if let Some(record) = self.try_next_record() {
                return record;
            }
            // A permit is kept if it was told before this.
            self.0.waiting.notified().await;
        }
    }

    /// The next record to write, if there is one.
    pub fn try_next_record(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        if let Some(record) = state.urgent.pop_front() {
            return Some(record);
        }
        while let Some(number) = state.turns.pop_front() {
            let Some(stream) = state.streams.get_mut(&number) else { continue };
            if let Some(record) = stream.outgoing.take() {
                stream.writer.take().into_iter().for_each(Waker::wake);
                if stream.is_closing {
                    state.turns.push_back(number);
                }
                return Some(record);
            }
            if stream.is_closing && !stream.is_closed {
                stream.is_closed = true;
                stream.writer.take().into_iter().for_each(Waker::wake);
                return Some(Record { stream: number, body: Body::Close }.encode());
            }
        }
        None
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream. Dropping it gives it up, unless both ends have closed it.
#[derive(Debug)]
pub struct TunnelStream {
    tunnel: Tunnel,
    number: u32,
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut guard = self.tunnel.state();
        let state = &mut *guard;
        let Some(stream) = state.streams.get_mut(&self.number) else { return gone() };
        let mut read = 0;
        while let Some(piece) = stream.incoming.front() {
            let rest = piece.get(stream.start..).unwrap_or_default();
            let len = rest.len().min(buf.remaining());
            if len == 0 && !rest.is_empty() {
                break;
            }
            buf.put_slice(rest.get(..len).unwrap_or_default());
            read += len;
            stream.start += len;
            if len == rest.len() {
                stream.incoming.pop_front();
                stream.start = 0;
            }
        }
        if read > 0 {
            let read = u32::try_from(read).unwrap_or(u32::MAX);
            stream.held = stream.held.saturating_sub(read);
            stream.consumed += read;
            if stream.consumed >= state.window / 4 && !stream.is_over {
                let body = Body::Window(std::mem::take(&mut stream.consumed));
                state.urgent.push_back(Record { stream: self.number, body }.encode());
                drop(guard);
                self.tunnel.0.waiting.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        if stream.is_reset {
            return gone();
        }
        if stream.is_over || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut guard = self.tunnel.state();
        let state = &mut *guard;
        let Some(stream) = state.streams.get_mut(&self.number) else { return gone() };
        if stream.is_reset || stream.is_closing {
            return gone();
        }
        let len = buf.len().min(MAX_DATA_LEN).min(stream.credit as usize);
        if stream.outgoing.is_some() || (len == 0 && !buf.is_empty()) {
            stream.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        let data = buf.get(..len).unwrap_or_default();
        stream.credit -= u32::try_from(len).unwrap_or(stream.credit);
        stream.outgoing = Some(Record { stream: self.number, body: Body::Data(data) }.encode());
        state.turns.push_back(self.number);
        drop(guard);
        self.tunnel.0.waiting.notify_one();
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = self.tunnel.state();
        let state = &mut *guard;
        let Some(stream) = state.streams.get_mut(&self.number) else { return gone() };
        if stream.is_reset {
            return gone();
        }
        if stream.is_closed {
            return Poll::Ready(Ok(()));
        }
        if !stream.is_closing {
            stream.is_closing = true;
            state.turns.push_back(self.number);
        }
        stream.writer = Some(cx.waker().clone());
        drop(guard);
        self.tunnel.0.waiting.notify_one();
        Poll::Pending
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        let mut state = self.tunnel.state();
        let Some(stream) = state.streams.remove(&self.number) else { return };
        state.turns.retain(|number| *number != self.number);
        if stream.is_reset || (stream.is_closed && stream.is_over) {
            return;
        }
        let body = Body::Reset;
        state.urgent.push_back(Record { stream: self.number, body }.encode());
        drop(state);
        self.tunnel.0.waiting.notify_one();
    }
}

/// How many records may wait that answer what the peer does: each is some dozens of bytes, and a peer
/// that reads leaves but a few for each stream.
const MAX_URGENT: usize = if cfg!(test) { 1 << 10 } else { 1 << 16 };

fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const WINDOW: u32 = 256 << 10;

    /// The client's tunnel and the agent's.
    fn pair() -> (Tunnel, Tunnel) {
        let (client, agent) = (Tunnel::default(), Tunnel::default());
        client.allow(0, WINDOW);
        agent.allow(2, WINDOW);
        (client, agent)
    }

    /// Carries records both ways until nothing is left to carry.
    fn carry(one: &Tunnel, other: &Tunnel) -> Result<usize, RecordError> {
        let mut carried = 0;
        loop {
            let before = carried;
            for (from, to) in [(one, other), (other, one)] {
                while let Some(record) = from.try_next_record() {
                    to.take(Record::decode(&record)?)?;
                    carried += 1;
                }
            }
            if carried == before {
                return Ok(carried);
            }
        }
    }

    async fn carry_on(one: Tunnel, other: Tunnel) {
        loop {
            carry(&one, &other).unwrap();
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_their_end() {
        let (client, agent) = pair();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(carry_on(client.clone(), agent.clone()));
        for _ in 0..3 {
            let (mut near, mut far) = (client.open(), agent.accept().await);
            let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
            let send = async {
                near.write_all(&bytes).await.unwrap();
                near.shutdown().await.unwrap();
                let mut back = Vec::new();
                near.read_to_end(&mut back).await.unwrap();
                assert_eq!(back, b"thanks");
            };
            let receive = async {
                let mut came = Vec::new();
                far.read_to_end(&mut came).await.unwrap();
                assert!(came == bytes);
                far.write_all(b"thanks").await.unwrap();
                far.shutdown().await.unwrap();
            };
            tokio::join!(send, receive);
        }
    }

    /// PATH-9: a stream that nobody reads holds no more than its window, and stops no other.
    #[tokio::test]
    async fn who_does_not_read_stops_one_stream_only() {
        let (client, agent) = pair();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(carry_on(client.clone(), agent.clone()));
        let (mut stuck, mut near) = (client.open(), client.open());
        let (stuck_far, mut far) = (agent.accept().await, agent.accept().await);
        let mut sent = 0;
        let piece = vec![7; 50_000];
        let patience = std::time::Duration::from_millis(100);
        while let Ok(written) = tokio::time::timeout(patience, stuck.write(&piece)).await {
            sent += written.unwrap();
        }
        assert_eq!(sent, WINDOW as usize);
        near.write_all(b"hello").await.unwrap();
        let mut came = [0; 5];
        far.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"hello");
        drop(stuck_far);
        assert!(stuck.write_all(&[0]).await.is_err(), "it was given up");
    }

    /// R44: what a peer makes this end answer does not gather without end, if the peer does not read it.
    #[tokio::test]
    async fn answers_that_nobody_reads_are_bounded() {
        let agent = Tunnel::default();
        agent.allow(2, WINDOW);
        let mut opened = 0;
        let refused = loop {
            opened += 1;
            assert!(opened < 10_000);
            let open = Record { stream: opened, body: Body::Open };
            if let Err(error) = agent.take(open) {
                break error;
            }
            let mut stream = agent.accept().await;
            stream.write_all(b"challenge").await.unwrap();
            assert!(agent.state().turns.len() <= 2, "what is dropped has no turn");
        };
        assert_eq!(refused, RecordError::NotHeard);
    }

    /// PATH-8, PATH-9: what no correct peer sends is refused.
    #[test]
    fn a_peer_that_breaks_the_rules_is_found_out() {
        let agent = Tunnel::default();
        let record = |stream, body| Record { stream, body };
        let hello = Body::Data(b"hello");
        assert_eq!(agent.take(record(1, Body::Open)), Err(RecordError::TooEarly));
        agent.allow(2, WINDOW);
        assert_eq!(agent.take(record(1, hello)), Err(RecordError::Number(1)));
        assert_eq!(agent.take(record(2, Body::Open)), Err(RecordError::Number(2)));
        assert_eq!(agent.take(record(1, Body::Open)), Ok(()));
        assert_eq!(agent.take(record(1, Body::Open)), Err(RecordError::Number(1)));
        assert_eq!(agent.take(record(2, Body::Open)), Ok(()));
        assert_eq!(agent.take(record(3, Body::Open)), Err(RecordError::TooMany));
        assert_eq!(agent.take(record(1, Body::Window(1))), Err(RecordError::OverWindow));
        let piece = vec![0; MAX_DATA_LEN];
        for _ in 0..WINDOW as usize / MAX_DATA_LEN {
            assert_eq!(agent.take(record(1, Body::Data(&piece))), Ok(()));
        }
        assert_eq!(agent.take(record(1, hello)), Err(RecordError::OverWindow));
        assert_eq!(agent.take(record(2, Body::Close)), Ok(()));
        assert_eq!(agent.take(record(2, hello)), Err(RecordError::AfterClose));
        let (client, _) = pair();
        assert_eq!(client.take(record(1, Body::Open)), Err(RecordError::TooMany));
    }
}
