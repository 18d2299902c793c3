//! The byte streams that a channel can run on. What is said on them is the same for all.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::transport::quic::QuicStream;
use crate::transport::tunnel::TunnelStream;

/// An ordered stream of bytes in both directions.
#[derive(Debug)]
pub enum ByteStream {
    Tcp(TcpStream),
    Quic(QuicStream),
    /// A part of the control channel.
    Tunnel(TunnelStream),
    /// From a process on this host that carries the bytes of a further login.
    Unix(UnixStream),
    /// The input and output of a process.
    Pipe(Pipe),
}

/// The ends of a process' input and output, and what keeps the process alive.
pub struct Pipe {
    pub reader: Box<dyn AsyncRead + Send + Sync + Unpin>,
    pub writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// Dropped with the stream.
    pub owner: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pipe")
    }
}

impl ByteStream {
    /// Closes the direction in which this end writes, so that what was written still arrives even if
    /// the stream is dropped after this.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.shutdown().await?;
        if let Self::Quic(stream) = self {
            // Dropping a connection of QUIC takes back what the peer does not have yet.
            let _ = tokio::time::timeout(LAST_BYTES, stream.arrived()).await;
        }
        Ok(())
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Quic(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Pipe(pipe) => Pin::new(&mut pipe.reader).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Quic(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tunnel(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Pipe(pipe) => Pin::new(&mut pipe.writer).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Pipe(pipe) => Pin::new(&mut pipe.writer).poll_write_vectored(cx, bufs),
            other @ (Self::Quic(_) | Self::Tunnel(_)) => {
                let first = bufs.iter().find(|buf| !buf.is_empty());
                Pin::new(other).poll_write(cx, first.map_or(&[], |buf| buf))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Quic(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Pipe(pipe) => Pin::new(&mut pipe.writer).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Quic(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Pipe(pipe) => Pin::new(&mut pipe.writer).poll_shutdown(cx),
        }
    }
}

/// How long is waited for the last bytes of a connection of QUIC to be acknowledged.
const LAST_BYTES: Duration = Duration::from_secs(2);
