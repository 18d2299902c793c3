//! Frames on a connection: each is a header and its payload, on one stream of plaintext.
//!
//! With TLS that stream is cut into records and sealed, many records to one write. Without, it is
//! sent as it is, and a code follows each header, which is checked before the header is looked at;
//! the payload's digest is in the header (SEC-6).
//!
//! In either case a payload goes from the frame to the socket's buffer with one copy that seals it,
//! or none, and comes back the same way.

use std::mem;
use std::ops::Range;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::byte_stream::ByteStream;
use crate::protocol::buffer::Pool;
use crate::protocol::frame::{Body, Frame, FrameError, Header, PROBE_LEN};
use crate::protocol::handshake::FrameKey;
use crate::protocol::sparse::SparseError;
use crate::transport::record::{self, Opener, Sealer};
use crate::transport::{FrameReceiver, FrameSender, TransportError};

/// The sending end of a channel. Dropping it breaks the channel, unless it was finished.
#[derive(Debug)]
pub struct ChannelSender {
    stream: ByteStream,
    writer: FrameWriter,
    /// Set while a frame is under way and after the last one: what comes then would be noise.
    is_over: bool,
}

impl ChannelSender {
    pub(super) fn new(stream: ByteStream, writer: FrameWriter) -> Self {
        Self { stream, writer, is_over: false }
    }
}

impl FrameSender for ChannelSender {
    async fn send(&mut self, frame: &Frame) -> Result<(), TransportError> {
        if mem::replace(&mut self.is_over, true) {
            return Err(TransportError::Closed);
        }
        self.writer.write(&mut self.stream, frame).await?;
        self.is_over = false;
        Ok(())
    }

    /// The peer sends nothing on a channel that it receives from, so anything that can be read is
    /// the end of it.
    async fn closed(&mut self) -> TransportError {
        match self.stream.read(&mut [0]).await {
            Ok(0) => TransportError::Closed,
            Ok(_) => TransportError::NotAuthentic,
            Err(cause) => TransportError::Io { operation: "wait for the peer", cause },
        }
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        self.send(&Frame::End).await?;
        self.is_over = true;
        self.stream.finish().await.map_err(TransportError::io("close a channel"))
    }

    fn is_worn(&self) -> bool {
        self.writer.is_worn()
    }
}

/// The receiving end of a channel.
#[derive(Debug)]
pub struct ChannelReceiver {
    stream: ByteStream,
    reader: FrameReader,
    max_payload: usize,
    /// Set while a frame is under way, and after the last one or an error.
    is_over: bool,
}

impl ChannelReceiver {
    pub(super) fn new(stream: ByteStream, reader: FrameReader, max_payload: usize) -> Self {
        Self { stream, reader, max_payload, is_over: false }
    }
}

impl FrameReceiver for ChannelReceiver {
    async fn receive(&mut self, pool: &Pool) -> Result<Frame, TransportError> {
        if mem::replace(&mut self.is_over, true) {
            return Err(TransportError::Closed);
        }
        let frame = self.reader.frame(&mut self.stream, pool, self.max_payload).await?;
        self.is_over = matches!(frame, Frame::End);
        Ok(frame)
    }
}

/// Writes frames, one after the other.
#[derive(Debug)]
pub(super) struct FrameWriter {
    protection: Sealing,
    sequence: u64,
}

/// How frames are protected on their way out.
#[derive(Debug)]
pub(super) enum Sealing {
    /// TLS records, gathered in a buffer of [`BATCH`] bytes.
    Records { sealer: Sealer, output: Vec<u8> },
    /// A code behind each header.
    Codes(FrameKey),
}

impl FrameWriter {
    /// Begins at frame 0, with records.
    pub(super) fn with_records(sealer: Sealer) -> Self {
        Self { protection: Sealing::Records { sealer, output: Vec::new() }, sequence: 0 }
    }

    /// Begins at frame 0, with codes.
    pub(super) fn with_codes(key: FrameKey) -> Self {
        Self { protection: Sealing::Codes(key), sequence: 0 }
    }

    /// Hands one frame to the system.
    pub(super) async fn write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        frame: &Frame,
    ) -> Result<(), TransportError> {
        let (header, payload) = (frame.header(self.sequence), frame.payload());
        if header.payload_len() != payload.len() {
            // Ours to avoid; but the peer would take what follows for the rest of this payload.
            let cause = std::io::ErrorKind::InvalidInput.into();
            let operation = "send a frame that is not as long as it says";
            return Err(TransportError::Io { operation, cause });
        }
        self.sequence += 1;
        match &mut self.protection {
            Sealing::Records { sealer, output } => {
                output.resize(BATCH, 0);
                write_records(stream, sealer, output, &header.encode(), payload).await
            }
            Sealing::Codes(key) => {
                let header = header.encode();
                let code = key.code(&header);
                let mut parts = Buf::chain(&header[..], &code[..]).chain(payload);
                stream.write_all_buf(&mut parts).await.map_err(TransportError::io(SEND))
            }
        }
    }

    fn is_worn(&self) -> bool {
        match &self.protection {
            Sealing::Records { sealer, .. } => sealer.is_worn(),
            Sealing::Codes(_) => false,
        }
    }
}

/// The header has a record of its own, so that those of the payload begin where a sector does, and
/// nothing has to be moved together first.
async fn write_records<S: AsyncWrite + Unpin>(
    stream: &mut S,
    sealer: &mut Sealer,
    output: &mut [u8],
    header: &[u8],
    payload: &[u8],
) -> Result<(), TransportError> {
    let mut used = sealer.seal(header, output)?;
    for piece in payload.chunks(record::MAX_PLAINTEXT) {
        if output.len() - used < record::MAX_PLAINTEXT + record::OVERHEAD {
            let full = output.get(..used).unwrap_or_default();
            stream.write_all(full).await.map_err(TransportError::io(SEND))?;
            used = 0;
        }
        used += sealer.seal(piece, output.get_mut(used..).unwrap_or_default())?;
    }
    let rest = output.get(..used).unwrap_or_default();
    stream.write_all(rest).await.map_err(TransportError::io(SEND))
}

/// Reads frames, one after the other.
#[derive(Debug)]
pub(super) struct FrameReader {
    protection: Opening,
    input: Input,
    sequence: u64,
}

/// How frames are protected on their way in.
#[derive(Debug)]
enum Opening {
    Records(Opener),
    Codes(FrameKey),
}

impl FrameReader {
    /// Begins at frame 0, with records.
    pub(super) fn with_records(opener: Opener) -> Self {
        Self { protection: Opening::Records(opener), input: Input::new(), sequence: 0 }
    }

    /// Begins at frame 0, with codes.
    pub(super) fn with_codes(key: FrameKey) -> Self {
        Self { protection: Opening::Codes(key), input: Input::new(), sequence: 0 }
    }

    /// Reads as much as a path must carry before it counts as one.
    pub(super) async fn probe<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
    ) -> Result<(), TransportError> {
        if self.header(stream).await?.body != Body::Probe {
            return Err(TransportError::Proof("its first frame is no probe"));
        }
        let mut payload = vec![0xff; PROBE_LEN];
        self.fill(stream, &mut payload).await?;
        let is_right = payload.iter().all(|byte| *byte == 0);
        if is_right { Ok(()) } else { Err(TransportError::NotAuthentic) }
    }

    /// Reads the frame that says that the channel is up.
    pub(super) async fn ready<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
    ) -> Result<(), TransportError> {
        match self.header(stream).await?.body {
            Body::Ready => Ok(()),
            _ => Err(TransportError::Proof("it does not say that it is ready")),
        }
    }

    /// Reads the next frame into a buffer of the pool.
    pub(super) async fn frame<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        pool: &Pool,
        max_payload: usize,
    ) -> Result<Frame, TransportError> {
        let header = self.header(stream).await?;
        if matches!(header.body, Body::Ready | Body::Probe) {
            return Err(FrameError::UnknownType(header.encode()[0]).into());
        }
        let (len, limit) = (header.payload_len(), max_payload.min(pool.buffer_len()));
        if len > limit {
            return Err(FrameError::TooLong { len, limit }.into());
        }
        if len == 0 {
            return Ok(header.with(Bytes::new())?);
        }
        let mut buffer = pool.take(len).await?;
        self.fill(stream, &mut buffer).await?;
        header.with(buffer.freeze()).map_err(|error| match error {
            // Damage, or without TLS a stranger's work: the next channel may do better.
            FrameError::Sparse(SparseError::Digest) => TransportError::NotAuthentic,
            error => error.into(),
        })
    }

    async fn header<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
    ) -> Result<Header, TransportError> {
        let mut bytes = [0; Header::SIZE];
        self.fill(stream, &mut bytes).await?;
        if let Opening::Codes(key) = &self.protection {
            let mut code = [0; 32];
            self.input.read(stream, &mut code).await?;
            if !key.is_valid(&bytes, &code) {
                return Err(TransportError::NotAuthentic);
            }
        }
        let header = Header::decode(&bytes)?;
        let (expected, found) = (self.sequence, header.sequence);
        if expected != found {
            return Err(FrameError::Sequence { expected, found }.into());
        }
        self.sequence += 1;
        Ok(header)
    }

    async fn fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        out: &mut [u8],
    ) -> Result<(), TransportError> {
        match &mut self.protection {
            Opening::Records(opener) => self.input.open(stream, opener, out).await,
            Opening::Codes(_) => self.input.read(stream, out).await,
        }
    }
}

/// What was read from a socket and is not used yet.
struct Input {
    /// Allocated when it is first needed.
    buffer: Vec<u8>,
    /// Where bytes as they came lie in the buffer.
    raw: Range<usize>,
    /// Where the rest of a record that was opened in place lies in the buffer.
    opened: Range<usize>,
}

impl Input {
    fn new() -> Self {
        Self { buffer: Vec::new(), raw: 0..0, opened: 0..0 }
    }

    /// Fills `out` with bytes as they came.
    async fn read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        out: &mut [u8],
    ) -> Result<(), TransportError> {
        let held = copy(&self.buffer, &mut self.raw, out);
        let rest = out.get_mut(held..).unwrap_or_default();
        if rest.len() >= DIRECT {
            return stream.read_exact(rest).await.map(|_| ()).map_err(read_error);
        }
        self.hold(stream, rest.len()).await?;
        copy(&self.buffer, &mut self.raw, rest);
        Ok(())
    }

    /// Fills `out` with plaintext: a record that `out` has room for is opened straight into it, and
    /// any other in place, so that its rest is there for the next call.
    async fn open<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        opener: &mut Opener,
        mut out: &mut [u8],
    ) -> Result<(), TransportError> {
        loop {
            let held = copy(&self.buffer, &mut self.opened, out);
            out = out.get_mut(held..).unwrap_or_default();
            if out.is_empty() {
                return Ok(());
            }
            let (header, body) = self.record(stream).await?;
            let start = body.start;
            let body = self.buffer.get_mut(body).unwrap_or_default();
            // The plaintext's type, which is opened with it, needs one byte more: the next record
            // writes over it.
            if let Some(room) = out.get_mut(..body.len().saturating_sub(record::TAG_LEN)) {
                let len = opener.open_into(header, body, room)?;
                out = out.get_mut(len..).unwrap_or_default();
            } else {
                let len = opener.open_in_place(header, body)?;
                self.opened = start..start + len;
            }
        }
    }

    /// Reads until a whole record is there, and passes over it: its header, and where its body is.
    async fn record<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
    ) -> Result<([u8; record::HEADER_LEN], Range<usize>), TransportError> {
        self.hold(stream, record::HEADER_LEN).await?;
        let raw = self.buffer.get(self.raw.clone()).unwrap_or_default();
        let header = *raw.first_chunk().ok_or(TransportError::Closed)?;
        let len = record::HEADER_LEN + Opener::body_len(header)?;
        self.hold(stream, len).await?;
        let body = self.raw.start + record::HEADER_LEN..self.raw.start + len;
        self.raw.start = body.end;
        Ok((header, body))
    }

    /// Reads until at least `wanted` raw bytes are there, which must be less than the buffer holds.
    async fn hold<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        wanted: usize,
    ) -> Result<(), TransportError> {
        while self.raw.len() < wanted {
            self.buffer.resize(INPUT, 0);
            self.buffer.copy_within(self.raw.clone(), 0);
            self.raw = 0..self.raw.len();
            let room = self.buffer.get_mut(self.raw.end..).unwrap_or_default();
            match stream.read(room).await.map_err(read_error)? {
                0 => return Err(TransportError::Closed),
                read => self.raw.end += read,
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Input");
        debug.field("raw", &self.raw).field("opened", &self.opened).finish_non_exhaustive()
    }
}

/// Moves as much from `range` of `buffer` to `out` as there is and fits, and returns how much.
fn copy(buffer: &[u8], range: &mut Range<usize>, out: &mut [u8]) -> usize {
    let held = buffer.get(range.clone()).unwrap_or_default();
    let len = held.len().min(out.len());
    if let (Some(place), Some(bytes)) = (out.get_mut(..len), held.get(..len)) {
        place.copy_from_slice(bytes);
    }
    range.start += len;
    len
}

/// A peer that vanishes is a channel that ended.
fn read_error(cause: std::io::Error) -> TransportError {
    match cause.kind() {
        std::io::ErrorKind::UnexpectedEof => TransportError::Closed,
        _ => TransportError::Io { operation: "receive from the peer", cause },
    }
}

const SEND: &str = "send to the peer";

/// How many bytes of records go to the system at once.
const BATCH: usize = 32 * (record::MAX_PLAINTEXT + record::OVERHEAD);

/// How many bytes are asked of the system at once.
const INPUT: usize = 512 << 10;

/// From this many bytes on, plain data is read where it shall be, without a copy in between.
const DIRECT: usize = 64 << 10;
