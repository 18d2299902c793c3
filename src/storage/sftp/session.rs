//! One connection to an SFTP server: many requests under way, each with a number, and their answers in
//! any order.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use super::packet::{self, Answer, MAX_PACKET_LEN, Request};
use crate::storage::remote::{Class, Fault};

/// A byte stream to a server.
pub struct Wire {
    pub input: Box<dyn AsyncRead + Send + Unpin>,
    pub output: Box<dyn AsyncWrite + Send + Unpin>,
    /// Lives as long as the connection, such as the process that makes it.
    pub keeper: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

/// Makes a connection: the first one, at which somebody may be asked for something, or a further one.
pub type Dial =
    Arc<dyn Fn(Which) -> Pin<Box<dyn Future<Output = io::Result<Wire>> + Send>> + Send + Sync>;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    First,
    Further,
}

/// A connection that has been made.
#[derive(Debug)]
pub struct Session {
    /// Tells it from others.
    pub number: usize,
    asked: Arc<Asked>,
    /// One permit for each request that may be under way.
    window: Arc<Semaphore>,
    /// How much it has to do, as those who use it count that.
    pub load: AtomicUsize,
    /// How much of it are long requests.
    pub long: AtomicUsize,
    pub offers: Offers,
    _tasks: JoinSet<()>,
}

/// What a server can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offers {
    pub posix_rename: bool,
    pub fsync: bool,
    pub statvfs: bool,
    /// Times of symlinks can be set.
    pub lsetstat: bool,
    /// It names any at all.
    pub extensions: bool,
    /// The longest read and write, in bytes.
    pub max_read: u32,
    pub max_write: u32,
    /// How many handles a connection may have; 0 if it does not say.
    pub max_handles: u64,
}

/// One of few, which is given back when the last of those who share it is done.
pub type Permit = Arc<OwnedSemaphorePermit>;

/// Waits for one of few.
///
/// # Errors
///
/// [`Class::Gone`] if none are handed out any more.
pub async fn permit(few: &Arc<Semaphore>) -> Result<Permit, Fault> {
    Arc::clone(few).acquire_owned().await.map(Arc::new).map_err(|_| gone())
}

/// What was asked and is not answered.
#[derive(Debug)]
struct Asked {
    outgoing: flume::Sender<(Request, u32)>,
    pending: Mutex<Pending>,
    next: AtomicU32,
    /// Everything is answered, or nothing more will be.
    settled: Notify,
}

/// Who waits for what.
#[derive(Debug, Default)]
struct Pending {
    /// With what is given back when the answer has come.
    waiting: HashMap<u32, (oneshot::Sender<Answer>, Option<Permit>)>,
    is_lost: bool,
}

impl Asked {
    /// Sends a request. `permit` is held until its answer is there.
    fn ask(&self, request: Request, permit: Option<Permit>) -> oneshot::Receiver<Answer> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let mut pending = lock(&self.pending);
        if !pending.is_lost && self.outgoing.send((request, number)).is_ok() {
            pending.waiting.insert(number, (answer, permit));
        }
        answered
    }

    /// Closes what nobody knows of any more: whoever asked has gone, and a server has few handles.
    fn disown(&self, answer: Answer, permit: Option<Permit>) {
        if let Answer::Handle(handle) = answer {
            self.ask(Request::close(&handle), permit);
        }
    }

    /// Hands an answer to whoever waits for it.
    fn answer(&self, number: u32, answer: Answer) -> io::Result<()> {
        let waiting = lock(&self.pending).waiting.remove(&number);
        // An answer to nothing: no other from this server can be believed.
        let (waiting, permit) = waiting.ok_or(io::ErrorKind::InvalidData)?;
        if let Err(answer) = waiting.send(answer) {
            self.disown(answer, permit);
        }
        if lock(&self.pending).waiting.is_empty() {
            self.settled.notify_waiters();
        }
        Ok(())
    }

    /// Everybody who waits hears that nothing will come.
    fn lose(&self) {
        let mut pending = lock(&self.pending);
        pending.is_lost = true;
        pending.waiting.clear();
        self.settled.notify_waiters();
    }
}

/// An answer that will come.
#[derive(Debug)]
pub struct Awaited {
    answered: oneshot::Receiver<Answer>,
    asked: Arc<Asked>,
}

impl Awaited {
    pub fn has_come(&self) -> bool {
        !self.answered.is_empty()
    }
}

impl Future for Awaited {
    /// [`Class::Gone`] if the connection is lost.
    type Output = Result<Answer, Fault>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answered).poll(context).map_err(|_| gone())
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        // From here on whoever brings the answer sees that nobody waits. It may be there already.
        self.answered.close();
        if let Ok(answer) = self.answered.try_recv() {
            self.asked.disown(answer, None);
        }
    }
}

impl Session {
    /// Introduces us, and learns what the server can do.
    ///
    /// # Errors
    ///
    /// [`Class::Gone`] if it does not answer as an SFTP server does.
    pub async fn begin(wire: Wire, number: usize) -> Result<Self, Fault> {
        let Wire { mut input, mut output, keeper } = wire;
        let begun = async {
            output.write_all(&packet::init()).await?;
            output.flush().await?;
            next_packet(&mut input).await
        };
        let extensions = match begun.await {
            Ok(packet) => packet::version(&packet).ok_or_else(|| lost("it is no SFTP server"))?,
            Err(error) => return Err(lost(&format!("the server ended the connection ({error})"))),
        };
        let (outgoing, requests) = flume::unbounded();
        let asked = Arc::new(Asked {
            outgoing,
            pending: Mutex::default(),
            next: AtomicU32::new(0),
            settled: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&asked);
        tasks.spawn(async move {
            let _keeper = keeper;
            let _ = tokio::join!(write_all(requests, output, &shared), read_all(input, &shared));
        });
        let has = |name: &[u8]| extensions.iter().any(|extension| extension == name);
        let offers = Offers {
            posix_rename: has(packet::POSIX_RENAME),
            fsync: has(packet::FSYNC),
            statvfs: has(packet::STATVFS),
            lsetstat: has(packet::LSETSTAT),
            extensions: !extensions.is_empty(),
            max_read: SAFE_LEN,
            max_write: SAFE_LEN,
            max_handles: 0,
        };
        let mut session = Self {
            number,
            asked,
            window: Arc::new(Semaphore::new(WINDOW)),
            load: AtomicUsize::new(0),
            long: AtomicUsize::new(0),
            offers,
            _tasks: tasks,
        };
        if has(packet::LIMITS)
            && let Answer::Extended(answer) = session.call(Request::limits()).await?
            && let Some((read, write, handles)) = packet::limits(&answer)
        {
            let fit = |limit: u64| {
                let most = u64::from(MAX_LEN);
                let len = if limit == 0 { most } else { limit.min(most) };
                u32::try_from(len).unwrap_or(SAFE_LEN).max(1024)
            };
            (session.offers.max_read, session.offers.max_write) = (fit(read), fit(write));
            session.offers.max_handles = handles;
        }
        Ok(session)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    ///
    /// [`Class::Gone`] if the connection is lost.
    pub async fn call(&self, request: Request) -> Result<Answer, Fault> {
        self.send(request).await?.await
    }

    /// Sends requests one directly after the other, which the server carries out in this order, and waits
    /// for all answers.
    ///
    /// # Errors
    ///
    /// [`Class::Gone`] if the connection is lost.
    pub async fn call_all(&self, requests: Vec<Request>) -> Result<Vec<Answer>, Fault> {
        answers(self.send_all(requests).await?).await
    }

    /// The same without waiting, for [`answers`].
    ///
    /// # Errors
    ///
    /// [`Class::Gone`] if the connection is lost.
    pub async fn send_all(&self, requests: Vec<Request>) -> Result<Vec<Awaited>, Fault> {
        let mut waiting = Vec::with_capacity(requests.len());
        for request in requests {
            waiting.push(self.send(request).await?);
        }
        Ok(waiting)
    }

    /// Sends a request as soon as it may be sent. Whoever waits for that is to be polled: others wait behind.
    ///
    /// # Errors
    ///
    /// [`Class::Gone`] if the connection is lost.
    pub async fn send(&self, request: Request) -> Result<Awaited, Fault> {
        let permit = permit(&self.window).await?;
        Ok(self.tell(request, Some(permit)))
    }

    /// Sends a request at once, whose answer is there for whoever wants to know. `permit` is held until it is.
    pub fn tell(&self, request: Request, permit: Option<Permit>) -> Awaited {
        let answered = self.asked.ask(request, permit);
        Awaited { answered, asked: Arc::clone(&self.asked) }
    }

    /// Waits until everything is answered that was asked, or the connection is lost.
    pub async fn settle(&self) {
        loop {
            let settled = self.asked.settled.notified();
            let mut settled = std::pin::pin!(settled);
            settled.as_mut().enable();
            if lock(&self.asked.pending).waiting.is_empty() {
                return;
            }
            settled.await;
        }
    }

    #[cfg(test)]
    pub fn lose(&self) {
        self.asked.lose();
    }

    pub fn is_lost(&self) -> bool {
        lock(&self.asked.pending).is_lost
    }
}

/// Waits for what was asked.
///
/// # Errors
///
/// [`Class::Gone`] if the connection is lost.
pub async fn answers(waiting: Vec<Awaited>) -> Result<Vec<Answer>, Fault> {
    let mut answers = Vec::with_capacity(waiting.len());
    for answered in waiting {
        answers.push(answered.await?);
    }
    Ok(answers)
}

async fn write_all(
    requests: flume::Receiver<(Request, u32)>,
    mut output: Box<dyn AsyncWrite + Send + Unpin>,
    asked: &Asked,
) -> io::Result<()> {
    let written = async {
        while let Ok((request, number)) = requests.recv_async().await {
            let head = request.head(number);
            output.write_all(&head).await?;
            for piece in &request.data {
                output.write_all(piece).await?;
            }
            if requests.is_empty() {
                output.flush().await?;
            }
        }
        output.shutdown().await
    };
    let result = written.await;
    if result.is_err() {
        asked.lose();
    }
    result
}

async fn read_all(input: Box<dyn AsyncRead + Send + Unpin>, asked: &Asked) -> io::Result<()> {
    // Many small answers come at a time; what is longer than this goes past the buffer.
    let mut input = BufReader::with_capacity(SMALL_ANSWERS, input);
    let read = async {
        loop {
            let packet = next_packet(&mut input).await?;
            let parsed = Answer::parse(packet);
            let (number, answer) = parsed.ok_or(io::ErrorKind::InvalidData)?;
            asked.answer(number, answer)?;
        }
    };
    let result: io::Result<()> = read.await;
    asked.lose();
    result
}

async fn next_packet(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let len = input.read_u32().await? as usize;
    if !(1..=MAX_PACKET_LEN).contains(&len) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what came is no packet"));
    }
    let mut packet = BytesMut::with_capacity(len);
    let mut rest = input.take(len as u64);
    while rest.read_buf(&mut packet).await? > 0 {}
    if packet.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(packet.freeze())
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    // Every change is a single step, so a panic elsewhere spoils nothing.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn gone() -> Fault {
    lost("the connection to the SFTP server was lost")
}

fn lost(text: &str) -> Fault {
    Fault::new(Class::Gone, text)
}

/// How much of small answers is read at a time, in bytes.
const SMALL_ANSWERS: usize = 16 << 10;

/// How many requests may be under way on one connection.
const WINDOW: usize = 64;

/// What every server takes and gives at a time, in bytes (the draft, section 3).
const SAFE_LEN: u32 = 32 << 10;

/// What is asked for at a time where the server allows it: with its head it stays below OpenSSH's
/// longest packet.
const MAX_LEN: u32 = 255 << 10;
