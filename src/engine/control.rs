//! The control channel: messages over a byte stream, in the order that the protocol allows.
//!
//! One task reads and one writes, and neither waits for the other: what is to be said goes into an
//! [`Outbox`], which never blocks. That cannot fill the memory, because everything said answers or
//! announces an entry, the number of open entries is limited (ENTRY-4), and a peer that makes this
//! end say more than that without listening is cut off. So each end always
//! drains what the other writes, and no cycle of waiting can form.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::protocol::bootstrap::{LineScanner, Said};
use crate::protocol::handshake::{MAGIC, MagicScanner, NoMagic};
use crate::protocol::message::{Dial, Failure, Message, MessageError};
use crate::protocol::session::{End, Role, State, Unexpected};
use crate::protocol::tunnel::{Record, RecordError};
use crate::transport::tunnel::Tunnel;

/// Reads messages and holds them to the protocol's order.
#[derive(Debug)]
pub struct Inbox<R> {
    reader: R,
    state: State,
    pulse: Pulse,
    /// How long the peer may be silent, in which it should have said [`Message::Ping`].
    silence: Duration,
    /// Bytes that came and were not used yet: `buffer[start..]`.
    buffer: Vec<u8>,
    start: usize,
    /// Messages that came while something else was awaited, with their bytes.
    kept: VecDeque<(Message, Vec<u8>)>,
    is_client: bool,
    aside: Option<Aside>,
}

/// Where what is about data channels goes, past whoever reads messages.
#[derive(Clone, Debug)]
pub struct Aside {
    pub tunnel: Tunnel,
    pub words: flume::Sender<Word>,
}

/// What the other end says about the ways of data channels.
#[derive(Debug)]
pub enum Word {
    /// To the agent.
    Dial(Dial),
    /// To the client.
    NotReached(Failure),
}

impl<R> Inbox<R> {
    /// From now on, records of the tunnel and words about data channels go aside.
    pub fn set_aside(&mut self, aside: Aside) {
        self.aside = Some(aside);
    }

    /// When the peer was last heard.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

impl<R: AsyncRead + Unpin> Inbox<R> {
    pub fn new(reader: R, me: End, silence: Duration, pulse: Pulse) -> Self {
        Self::in_state(reader, State::new(me), me != End::Agent, silence, pulse)
    }

    fn in_state(reader: R, state: State, is_client: bool, silence: Duration, pulse: Pulse) -> Self {
        let (buffer, start, kept, aside) = (Vec::new(), 0, VecDeque::new(), None);
        Self { reader, state, pulse, silence, buffer, start, kept, is_client, aside }
    }

    /// For two halves of one program, which have nothing to introduce and nothing to agree on.
    pub fn within_process(reader: R, role: Role, silence: Duration, pulse: Pulse) -> Self {
        Self::in_state(reader, State::Transferring { role }, false, silence, pulse)
    }

    /// For the stream on which an agent tells what it does with another one (THIRD-4).
    pub fn of_reports(reader: R, silence: Duration, pulse: Pulse) -> Self {
        Self::in_state(reader, State::Reports, true, silence, pulse)
    }

    /// The stream itself, and what was read of it and not used.
    pub fn into_parts(mut self) -> (Vec<u8>, R) {
        (self.buffer.split_off(self.start), self.reader)
    }

    /// From now on, the peer may be silent for this long.
    pub fn set_silence(&mut self, silence: Duration) {
        self.silence = silence;
    }

    /// Reads past the remote shell's noise to the agent's magic (SES-1), or to what the script says
    /// that looks for an agent (BOOT-2).
    pub async fn find_greeting(&mut self) -> Result<Greeting, ControlError> {
        let (mut magic, mut lines) = (MagicScanner::default(), LineScanner::default());
        loop {
            if self.buffer.is_empty() && self.read_more().await? == 0 {
                return Err(ControlError::NoAgent { noise: magic.noise().to_vec() });
            }
            let bytes = std::mem::take(&mut self.buffer);
            let greeted = magic.push(&bytes)?;
            // Whichever comes first: what is behind a line is for later.
            if let Some((said, end)) = lines.find(magic.noise()) {
                self.buffer = magic.noise().get(end..).unwrap_or_default().to_vec();
                if let Some(rest) = greeted {
                    self.buffer.extend_from_slice(&MAGIC);
                    self.buffer.extend_from_slice(&rest);
                }
                return Ok(Greeting::Script(said));
            }
            if let Some(rest) = greeted {
                self.buffer = rest;
                return Ok(Greeting::Magic { noise: magic.noise().to_vec() });
            }
        }
    }

    /// The peer is gone, and another one will greet on the same stream.
    pub fn begin_again(&mut self, me: End) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.state = State::new(me);
    }

    /// Waits for the next message that is legal now. `Ok(None)` cannot be: a stream that ends is an
    /// error, unless the protocol had ended before (END-6).
    pub async fn next(&mut self) -> Result<Message, ControlError> {
        Ok(self.next_encoded().await?.0)
    }

    /// The same, with the message's bytes, length included.
    pub async fn next_encoded(&mut self) -> Result<(Message, Vec<u8>), ControlError> {
        match self.kept.pop_front() {
            Some(kept) => Ok(kept),
            None => self.next_new().await,
        }
    }

    /// Waits for something else than a message, and hears the peer meanwhile: what is about data
    /// channels goes aside, and a peer that gives up or is lost ends the waiting. Other messages are
    /// kept for [`Self::next`]; when a few MiB of them wait, no more is read.
    pub async fn hear_during<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, ControlError> {
        let mut work = std::pin::pin!(work);
        let mut len = self.kept.iter().map(|(_, encoded)| encoded.len()).sum::<usize>();
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                message = self.next_new(), if len < MAX_KEPT => match message? {
                    (Message::Abort(failure), _) => return Err(ControlError::Aborted(failure)),
                    (Message::Ping, _) => {}
                    (message, encoded) => {
                        len += encoded.len();
                        self.kept.push_back((message, encoded));
                    }
                },
                // Whom nobody reads must not count as silent.
                () = tokio::time::sleep(PING_INTERVAL), if len >= MAX_KEPT => self.pulse.beat(),
            }
        }
    }

    async fn next_new(&mut self) -> Result<(Message, Vec<u8>), ControlError> {
        loop {
            let encoded = self.next_bytes().await?;
            let message = Message::decode(encoded.get(4..).unwrap_or_default())?;
            self.state = self.state.handle(&message)?;
            match (message, self.is_client) {
                (Message::Dial(dial), false) => self.put_aside(Word::Dial(dial))?,
                (Message::NotReached(failure), true) => {
                    self.put_aside(Word::NotReached(failure))?;
                }
                (message @ (Message::Dial(_) | Message::NotReached(_)), _) => {
                    let text = format!("{} came from the wrong end", message.label());
                    return Err(ControlError::Violation(text));
                }
                (message, _) => return Ok((message, encoded)),
            }
        }
    }

    fn put_aside(&self, word: Word) -> Result<(), ControlError> {
        let Some(aside) = &self.aside else {
            let text = "data channels were spoken of before the session was agreed on";
            return Err(ControlError::Violation(text.to_owned()));
        };
        if aside
            .words
            .try_send(word)
            .is_err_and(|error| matches!(error, flume::TrySendError::Full(_)))
        {
            let text = "more is said about data channels than there can be to say";
            return Err(ControlError::Violation(text.to_owned()));
        }
        Ok(())
    }

    /// Waits for a whole message, and hands on the records before it.
    async fn next_bytes(&mut self) -> Result<Vec<u8>, ControlError> {
        loop {
            let bytes = self.buffer.get(self.start..).unwrap_or_default();
            if let Some(prefix) = bytes.first_chunk() {
                if let Some(len) = Record::payload_len(*prefix) {
                    let len = Record::HEADER_LEN + len.map_err(broken_record)?;
                    if let Some(record) = bytes.get(..len) {
                        let Some(aside) = &self.aside else {
                            return Err(broken_record(RecordError::TooEarly));
                        };
                        let taken = Record::decode(record).and_then(|it| aside.tunnel.take(it));
                        taken.map_err(broken_record)?;
                        self.start += len;
                        continue;
                    }
                } else {
                    let len = u32::from_le_bytes(*prefix) as usize;
                    Message::check_len(len)?;
                    if let Some(message) = bytes.get(..4 + len) {
                        let message = message.to_vec();
                        self.start += 4 + len;
                        return Ok(message);
                    }
                }
            }
            if self.read_more().await? == 0 {
                return Err(ControlError::Ended);
            }
        }
    }

    async fn read_more(&mut self) -> Result<usize, ControlError> {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.reserve(64 << 10);
        loop {
            // Counted from the last sign of life: whoever waits for this may begin to wait anew.
            let (left, last) =
                (self.silence.saturating_sub(self.pulse.silence()), self.pulse.last());
            match tokio::time::timeout(left, self.reader.read_buf(&mut self.buffer)).await {
                Ok(read) => {
                    let len = read.map_err(ControlError::Read)?;
                    self.pulse.beat();
                    return Ok(len);
                }
                // A sign of life may have been noted meanwhile, such as that an upload goes on.
                Err(_) if self.pulse.last() != last => {}
                Err(_) => return Err(ControlError::Silent(self.silence)),
            }
        }
    }
}

/// What a client hears first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Greeting {
    /// An agent's, behind what the remote shell printed.
    Magic { noise: Vec<u8> },
    /// There is none yet.
    Script(Said),
}

/// When the peer was last heard, for a watchdog outside the runtime.
#[derive(Clone, Debug)]
pub struct Pulse {
    started: Instant,
    last: Arc<AtomicU64>,
}

impl Pulse {
    pub fn new() -> Self {
        Self { started: Instant::now(), last: Arc::default() }
    }

    /// Notes that the peer was heard, or must be taken as alive.
    pub fn beat(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
    }

    /// How long nothing has come.
    pub fn silence(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.last())
    }

    fn last(&self) -> Duration {
        Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// Takes what is to be said to the peer. Never blocks; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Outbox {
    queue: flume::Sender<Vec<u8>>,
    /// How many bytes wait to be written.
    waiting: Arc<AtomicUsize>,
}

impl Outbox {
    /// Says something. If the writer has ended, the session is ending anyway.
    ///
    /// # Errors
    ///
    /// If the message is too long, which is a bug of ours and better said than hung on; or if the
    /// peer makes this end say more and more, and does not listen.
    pub fn say(&self, message: &Message) -> Result<(), SayError> {
        if self.waiting.load(Ordering::Relaxed) > MAX_WAITING {
            return Err(SayError::NotHeard);
        }
        self.say_encoded(message.encode()?);
        Ok(())
    }

    /// The same for a message that is encoded already, and is said whatever waits before it.
    pub fn say_encoded(&self, message: Vec<u8>) {
        self.waiting.fetch_add(message.len(), Ordering::Relaxed);
        let _ = self.queue.send(message);
    }

    /// Waits until half of what may wait has been written. For those who say much at once and that
    /// nobody else waits for.
    pub async fn room(&self) {
        while self.waiting.load(Ordering::Relaxed) > MAX_WAITING / 2
            && !self.queue.is_disconnected()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Makes an outbox and the future that writes what it takes, with a ping whenever nothing else was
/// said for a while (SES-7). The future ends when every outbox is dropped and all is written.
pub fn outbox(writer: impl AsyncWrite + Unpin) -> (Outbox, impl Future<Output = io::Result<()>>) {
    outbox_with(writer, None)
}

/// The same beside a tunnel, whose records are written when there is nothing to say (PATH-10).
pub fn outbox_with(
    writer: impl AsyncWrite + Unpin,
    tunnel: Option<Tunnel>,
) -> (Outbox, impl Future<Output = io::Result<()>>) {
    let (sender, queue) = flume::unbounded();
    let waiting = Arc::new(AtomicUsize::new(0));
    let future = write_all(queue, Arc::clone(&waiting), tunnel, writer);
    (Outbox { queue: sender, waiting }, future)
}

async fn write_all(
    queue: flume::Receiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    tunnel: Option<Tunnel>,
    mut writer: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let ping = Message::Ping.encode().unwrap_or_default();
    let mut may_ping = false;
    loop {
        let record = async {
            match &tunnel {
                Some(tunnel) => tunnel.next_record().await,
                None => std::future::pending().await,
            }
        };
        let (mut bytes, mut said) = tokio::select! {
            biased;
            message = queue.recv_async() => match message {
                Ok(message) => {
                    let len = message.len();
                    (message, len)
                }
                Err(_) => return writer.shutdown().await,
            },
            record = record => (record, 0),
            () = tokio::time::sleep(PING_INTERVAL) => {
                if !may_ping {
                    continue;
                }
                (ping.clone(), 0)
            }
        };
        // Pings are legal only after the greetings: the first thing said is never one.
        may_ping = true;
        while bytes.len() < MAX_BATCH {
            let Ok(more) = queue.try_recv() else { break };
            bytes.extend_from_slice(&more);
            said += more.len();
        }
        while bytes.len() < MAX_RECORDS {
            let Some(more) = tunnel.as_ref().and_then(Tunnel::try_next_record) else { break };
            bytes.extend_from_slice(&more);
        }
        writer.write_all(&bytes).await?;
        writer.flush().await?;
        waiting.fetch_sub(said, Ordering::Relaxed);
    }
}

fn broken_record(error: RecordError) -> ControlError {
    ControlError::Violation(format!("{error} (PATH-8)"))
}

/// Something could not be said.
#[derive(Debug, Error)]
pub enum SayError {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the peer does not read what it made this end say")]
    NotHeard,
}

/// The control channel cannot go on.
#[derive(Debug, Error)]
pub enum ControlError {
    #[error("the connection ended")]
    Ended,
    #[error("nothing was heard for {} seconds", .0.as_secs())]
    Silent(Duration),
    #[error("cannot read from the connection: {0}")]
    Read(io::Error),
    #[error("no agent answered")]
    NoAgent { noise: Vec<u8> },
    #[error(transparent)]
    NoMagic(#[from] NoMagic),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Unexpected(#[from] Unexpected),
    /// The peer gave up.
    #[error("{0}")]
    Aborted(Failure),
    /// The peer broke a rule that is not about one message.
    #[error("the peer broke the protocol: {0}")]
    Violation(String),
}

/// How often an end says that it is alive when it has nothing else to say.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How much may wait to be written before a peer counts as one that does not listen, in bytes. What
/// an honest peer asks for is a fraction of it.
const MAX_WAITING: usize = if cfg!(test) { 8 << 20 } else { 96 << 20 };

/// How much may be kept of what a peer says while this end waits for something else, in bytes.
const MAX_KEPT: usize = 4 << 20;

/// How much is written at once, in bytes.
const MAX_BATCH: usize = 256 << 10;

/// How many bytes are written at once where records are among them: what is said next waits for them.
const MAX_RECORDS: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::handshake;
    use crate::protocol::session::Role;

    fn inbox(bytes: &[u8]) -> Inbox<&[u8]> {
        let silence = Duration::from_secs(5);
        Inbox::new(bytes, End::Client(Role::Sender), silence, Pulse::new())
    }

    fn hello() -> Vec<u8> {
        Message::Hello(handshake::hello([1; 32], vec![2; 10])).encode().unwrap()
    }

    /// SES-1, SES-2.
    #[tokio::test]
    async fn a_greeting_is_read_from_behind_noise() {
        let stream = [b"motd\n".to_vec(), MAGIC.to_vec(), hello()].concat();
        let mut inbox = inbox(&stream);
        let noise = b"motd\n".to_vec();
        assert_eq!(inbox.find_greeting().await.unwrap(), Greeting::Magic { noise });
        let (message, encoded) = inbox.next_encoded().await.unwrap();
        assert!(matches!(message, Message::Hello(_)) && encoded == hello());
        assert!(matches!(inbox.next().await, Err(ControlError::Ended)));
    }

    /// BOOT-2: whatever comes behind a line, in the same piece or later, is not lost.
    #[tokio::test]
    async fn a_scripts_lines_and_a_greeting_may_come_at_once() {
        let lines = b"motd\n@fastsync-boot send /a\n@fastsync-boot fail b\nmore\n";
        let stream = [&lines[..], &MAGIC, &hello()].concat();
        let mut inbox = inbox(&stream);
        for said in [Said::Send { directory: "/a".into() }, Said::Cannot { why: "b".into() }] {
            assert_eq!(inbox.find_greeting().await.unwrap(), Greeting::Script(said));
        }
        let noise = b"more\n".to_vec();
        assert_eq!(inbox.find_greeting().await.unwrap(), Greeting::Magic { noise });
        assert!(matches!(inbox.next().await.unwrap(), Message::Hello(_)));
        inbox.begin_again(End::Client(Role::Sender));
        assert!(matches!(inbox.find_greeting().await, Err(ControlError::NoAgent { .. })));
    }

    /// SES-3.
    #[tokio::test]
    async fn a_length_over_the_limit_is_refused_before_it_is_waited_for() {
        for len in [0, (1 << 20) + 1, u32::MAX >> 1] {
            let refused = inbox(&len.to_le_bytes()).next().await;
            assert!(matches!(refused, Err(ControlError::Message(MessageError::Length { .. }))));
        }
        let refused = inbox(&u32::MAX.to_le_bytes()).next().await;
        assert!(matches!(refused, Err(ControlError::Violation(_))), "no record is as long");
    }

    /// SES-4.
    #[tokio::test]
    async fn a_message_out_of_order_ends_the_session() {
        let refused = inbox(&Message::Closed.encode().unwrap()).next().await;
        assert!(matches!(refused, Err(ControlError::Unexpected(_))));
    }

    /// However much is queued at once, and however it is batched for writing.
    #[tokio::test]
    async fn nothing_that_was_said_is_lost() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (outbox, writing) = outbox(near);
        let count: u64 = 5000;
        for n in 0..count {
            let mut message = n.to_le_bytes().to_vec();
            message.resize(100 + usize::try_from(n % 7000).unwrap(), 0);
            message.splice(..0, u32::try_from(message.len()).unwrap().to_le_bytes());
            outbox.say_encoded(message);
        }
        drop(outbox);
        let reading = async {
            let mut far = tokio::io::BufReader::new(far);
            for n in 0..count {
                let len = far.read_u32_le().await.unwrap();
                let mut message = vec![0; len as usize];
                far.read_exact(&mut message).await.unwrap();
                assert_eq!(message[..8], n.to_le_bytes());
            }
        };
        let (written, ()) = tokio::join!(writing, reading);
        written.unwrap();
    }

    /// R44: a peer that does not listen cannot fill this end's memory.
    #[test]
    fn what_waits_to_be_heard_is_bounded() {
        let (outbox, _writing) = outbox(tokio::io::sink());
        let values = vec![crate::protocol::chunk::Digest::default(); 16_384];
        let entry = crate::protocol::chunk::EntryId(1);
        let message = Message::Have { entry, first: 0, values };
        let said = (0..1000).take_while(|_| outbox.say(&message).is_ok()).count();
        assert!((10..40).contains(&said), "{said}");
    }

    /// PATH-8, PATH-10: records travel between messages, which go first, and reach their stream.
    #[tokio::test]
    async fn records_and_messages_share_the_channel() {
        use crate::protocol::message::FailureCode;
        let (near, far) = tokio::io::duplex(1 << 20);
        let (client, agent) = (Tunnel::default(), Tunnel::default());
        client.allow(0, 1 << 18);
        agent.allow(2, 1 << 18);
        let mut stream = client.open();
        stream.write_all(b"data").await.unwrap();
        let (outbox, writing) = outbox_with(near, Some(client));
        let failure = Failure::new(FailureCode::Interrupted, "enough");
        outbox.say_encoded(hello());
        outbox.say_encoded(Message::Abort(failure).encode().unwrap());
        drop(outbox);
        let mut inbox = Inbox::new(far, End::Agent, Duration::from_secs(5), Pulse::new());
        let (words, _heard) = flume::bounded(1);
        inbox.set_aside(Aside { tunnel: agent.clone(), words });
        writing.await.unwrap();
        assert!(matches!(inbox.next().await.unwrap(), Message::Hello(_)));
        assert!(matches!(inbox.next().await.unwrap(), Message::Abort(_)));
        assert!(matches!(inbox.next().await, Err(ControlError::Ended)));
        let mut came = [0; 4];
        agent.accept().await.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"data");
    }

    /// JRN-9, PATH-4, SES-7: an end that waits for something hears where to dial, and that the peer gives up;
    /// the rest comes afterwards, in order.
    #[tokio::test(start_paused = true)]
    async fn an_end_that_waits_goes_on_hearing() {
        use crate::protocol::message::{Carrier, FailureCode, Owner};
        let (near, far) = tokio::io::duplex(1 << 20);
        let (outbox, writing) = outbox(near);
        let silence = Duration::from_secs(5);
        let mut inbox = Inbox::within_process(far, Role::Receiver, silence, Pulse::new());
        let (words, heard) = flume::bounded(1);
        inbox.set_aside(Aside { tunnel: Tunnel::default(), words });
        let owners = |name: &[u8]| {
            let users = vec![Owner { id: 1, name: name.to_vec() }];
            Message::Owners { users, groups: Vec::new() }
        };
        outbox.say(&owners(b"one")).unwrap();
        let dial = Dial { carrier: Carrier::Tcp, port: 1, addresses: Vec::new() };
        outbox.say(&Message::Dial(dial)).unwrap();
        outbox.say(&owners(b"two")).unwrap();
        let mut writing = std::pin::pin!(writing);
        let mut during = async |work: &mut (dyn Future<Output = ()> + Unpin)| {
            tokio::select! {
                result = inbox.hear_during(work) => result,
                _ = &mut writing => unreachable!(),
            }
        };
        let mut dialled = Box::pin(async { drop(heard.recv_async().await.unwrap()) });
        during(&mut dialled).await.unwrap();
        // Pings keep the peer alive for longer than it may be silent.
        let mut long = Box::pin(tokio::time::sleep(silence * 3));
        during(&mut long).await.unwrap();
        let failure = Failure::new(FailureCode::Interrupted, "enough");
        outbox.say(&Message::Abort(failure)).unwrap();
        let given_up = during(&mut std::future::pending()).await;
        assert!(matches!(given_up, Err(ControlError::Aborted(_))), "{given_up:?}");
        assert_eq!(inbox.next().await.unwrap(), owners(b"one"));
        assert_eq!(inbox.next().await.unwrap(), owners(b"two"));
    }

    /// R44: what is kept is bounded, and whoever is not read meanwhile is not taken for silent.
    #[tokio::test(start_paused = true)]
    async fn what_is_kept_while_waiting_is_bounded() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (outbox, writing) = outbox(near);
        let silence = Duration::from_secs(5);
        let mut inbox = Inbox::within_process(far, Role::Sender, silence, Pulse::new());
        let entry = crate::protocol::chunk::EntryId(1);
        let values = vec![crate::protocol::chunk::Digest::default(); 16_384];
        let message = Message::Have { entry, first: 0, values };
        let len = message.encode().unwrap().len();
        let count = 2 * MAX_KEPT / len;
        (0..count).for_each(|_| outbox.say(&message).unwrap());
        let mut writing = std::pin::pin!(writing);
        tokio::select! {
            done = inbox.hear_during(tokio::time::sleep(silence * 3)) => done.unwrap(),
            _ = &mut writing => unreachable!(),
        }
        let kept = inbox.kept.iter().map(|(_, encoded)| encoded.len()).sum::<usize>();
        assert!(kept < MAX_KEPT + len, "{kept}");
        assert!(inbox.pulse().silence() < silence);
        let reading = async {
            for _ in 0..count {
                assert_eq!(inbox.next().await.unwrap(), message);
            }
        };
        tokio::select! {
            () = reading => {}
            _ = &mut writing => unreachable!(),
        }
    }

    /// PATH-5: each of the two words comes from one end only, and PATH-8: records after Open only.
    #[tokio::test]
    async fn words_from_the_wrong_end_end_the_session() {
        use crate::protocol::message::{Carrier, FailureCode};
        let dial = Message::Dial(Dial { carrier: Carrier::Tcp, port: 1, addresses: Vec::new() });
        let bytes = dial.encode().unwrap();
        let silence = Duration::from_secs(5);
        let mut client = Inbox::within_process(&bytes[..], Role::Sender, silence, Pulse::new());
        client.is_client = true;
        assert!(matches!(client.next().await, Err(ControlError::Violation(_))));
        let failure = Failure::new(FailureCode::NoDataPath, "refused");
        let bytes = Message::NotReached(failure).encode().unwrap();
        let mut agent = Inbox::within_process(&bytes[..], Role::Sender, silence, Pulse::new());
        assert!(matches!(agent.next().await, Err(ControlError::Violation(_))));
        let early = crate::protocol::tunnel::Body::Open;
        let early = Record { stream: 1, body: early }.encode();
        assert!(matches!(inbox(&early).next().await, Err(ControlError::Violation(_))));
    }

    /// SES-7.
    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_pings_once_something_was_said() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (outbox, writing) = outbox(near);
        outbox.say_encoded(hello());
        let mut inbox =
            Inbox::new(far, End::Client(Role::Sender), Duration::from_secs(30), Pulse::new());
        let listen = async {
            assert!(matches!(inbox.next().await.unwrap(), Message::Hello(_)));
            assert!(matches!(inbox.next().await.unwrap(), Message::Ping));
            drop(outbox);
            loop {
                if let Err(error) = inbox.next().await {
                    return error;
                }
            }
        };
        let (_, end) = tokio::join!(writing, listen);
        assert!(matches!(end, ControlError::Ended));
    }
}
