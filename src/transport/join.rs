//! Byte streams of further logins: a process that ssh has started beside the agent carries its
//! input and output to the agent, over a socket that only this host has.
//!
//! The name of the socket is no secret: whoever connects has to prove itself like any dialler. It is
//! random, comes over ssh, and is in no command line (SEC-1). The process ends with either side of it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

/// Where further processes of this host join a session.
#[derive(Debug)]
pub struct Meeting {
    listener: UnixListener,
    name: Vec<u8>,
}

impl Meeting {
    /// Listens under a name, which is random.
    ///
    /// # Errors
    ///
    /// If this system has no sockets with abstract names: only Linux has.
    pub fn open(name: [u8; 16]) -> io::Result<Self> {
        let name = [b"fastsync-", &hex(name)[..]].concat();
        let listener = UnixListener::from_std(listen(&name)?)?;
        Ok(Self { listener, name })
    }

    /// What the others have to be told.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Waits for a process of the same user. What others connect is closed, and is no error, after which
    /// whoever accepts would pause.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let other = stream.peer_cred()?.uid();
            if other == rustix::process::geteuid().as_raw() {
                return Ok(stream);
            }
        }
    }
}

/// Reads the name of a meeting from the input, connects, and carries bytes until either side ends.
///
/// # Errors
///
/// If nobody listens there, or the name does not come within ten seconds.
pub async fn join(
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    greeting: &[u8],
) -> io::Result<()> {
    output.write_all(greeting).await?;
    output.flush().await?;
    let name = timeout(NAME_PATIENCE, read_name(&mut input)).await;
    let stream = connect(&name.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)?;
    let watched = stream.as_fd().try_clone_to_owned()?;
    let (mut from, mut to) = stream.into_split();
    let mut input = BufReader::with_capacity(PIECE, input);
    let upward = async {
        tokio::io::copy_buf(&mut input, &mut to).await?;
        to.shutdown().await
    };
    let downward = async {
        let mut piece = vec![0; PIECE];
        loop {
            let len = from.read(&mut piece).await?;
            if len == 0 {
                return output.flush().await;
            }
            output.write_all(piece.get(..len).unwrap_or_default()).await?;
            output.flush().await?;
        }
    };
    tokio::select! {
        done = upward => done,
        done = downward => done,
        () = until_hung_up(&watched) => Ok(()),
    }
}

/// The name, after its length in one byte.
async fn read_name(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut name = vec![0; input.read_u8().await?.into()];
    input.read_exact(&mut name).await?;
    Ok(name)
}

/// What the other end writes to name a meeting.
pub fn named(name: &[u8]) -> Vec<u8> {
    let len = u8::try_from(name.len()).unwrap_or(u8::MAX);
    [&[len][..], name.get(..len.into()).unwrap_or_default()].concat()
}

/// Waits until the agent is gone, and a moment longer: whoever is stuck in writing to the other side
/// does not see that.
async fn until_hung_up(socket: &OwnedFd) {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        sleep(Duration::from_secs(1)).await;
        let mut polled = [PollFd::new(socket, PollFlags::empty())];
        let gone = PollFlags::HUP | PollFlags::ERR;
        if poll(&mut polled, Some(&now)).is_err() || polled[0].revents().intersects(gone) {
            sleep(LAST_BYTES).await;
            return;
        }
    }
}

#[cfg(target_os = "linux")]
fn listen(name: &[u8]) -> io::Result<std::os::unix::net::UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&address(name)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(target_os = "linux")]
fn connect(name: &[u8]) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::connect_addr(&address(name)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(target_os = "linux")]
fn address(name: &[u8]) -> io::Result<std::os::unix::net::SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    std::os::unix::net::SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn listen(_: &[u8]) -> io::Result<std::os::unix::net::UnixListener> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn connect(_: &[u8]) -> io::Result<UnixStream> {
    Err(io::ErrorKind::Unsupported.into())
}

fn hex(bytes: [u8; 16]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()
}

/// How long the name may take to come.
const NAME_PATIENCE: Duration = Duration::from_secs(10);

/// How long the last bytes of an agent that is gone may take.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// How many bytes are carried at once.
const PIECE: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// PATH-11.
    #[tokio::test]
    async fn bytes_are_carried_until_either_side_ends() {
        let meeting = Meeting::open([7; 16]).unwrap();
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let (input, output) = tokio::io::split(far);
        let joining = join(input, output, b"hello");
        let other = async {
            let mut greeting = [0; 5];
            near.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, b"hello");
            near.write_all(&named(meeting.name())).await.unwrap();
            let mut stream = meeting.accept().await.unwrap();
            near.write_all(b"up").await.unwrap();
            let mut bytes = [0; 2];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            near.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"up");
            drop(stream);
        };
        let (joined, ()) = tokio::join!(joining, other);
        assert!(joined.is_ok(), "{joined:?}");
    }

    #[tokio::test]
    async fn where_nobody_listens_it_ends() {
        let name = named(b"fastsync-nobody");
        let joined = join(&name[..], tokio::io::sink(), b"").await;
        assert!(joined.is_err());
    }
}
