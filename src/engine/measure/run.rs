//! One run: data over some channels for a while, from memory or a file to memory or a file. Both
//! ends use this, each for its half.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::protocol::buffer::Pool;
use crate::protocol::chunk::{Chunk, ChunkData, Digest};
use crate::protocol::frame::Frame;
use crate::protocol::measure::{Ran, Run};
use crate::protocol::message::{Failure, FailureCode};
use crate::storage::StorageError;
use crate::storage::local::{Scratch, micros, processor_time};
use crate::transport::TransportError;
use crate::transport::channel::Channel;

/// What this end's half of a run works on.
#[derive(Clone, Debug)]
pub enum Place {
    Memory,
    /// So many bytes of it are there to be sent.
    File(Arc<Scratch>, u64),
}

/// The channels that are still of use after a run, and what came of it.
pub type Outcome = (Vec<Channel>, Result<Ran, Failure>);

/// Sends.
pub async fn send(channels: Vec<Channel>, run: Run, place: Place) -> Outcome {
    let bytes = match &place {
        Place::Memory => run.bytes,
        Place::File(_, available) => run.bytes.min(*available),
    };
    let sending = Arc::new(Sending {
        payload: made_up(run.len as usize),
        pool: pool(channels.len(), &run),
        begun: Instant::now(),
        claimed: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        place,
        bytes,
        run: run.clone(),
    });
    let before = processor_time();
    let mut tasks = JoinSet::new();
    for mut channel in channels {
        let sending = Arc::clone(&sending);
        tasks.spawn(async move {
            let sent = sending.send_on(&mut channel).await;
            (channel, sent)
        });
    }
    let (channels, result) = gather(tasks, &run).await;
    let ran = Ran {
        bytes: sending.sent.load(Ordering::Relaxed),
        micros: micros(sending.begun.elapsed()),
        processor_micros: micros(processor_time().saturating_sub(before)),
    };
    (channels, result.map(|()| ran))
}

/// Receives.
pub async fn receive(channels: Vec<Channel>, run: Run, place: Place) -> Outcome {
    let receiving = Arc::new(Receiving {
        pool: pool(channels.len(), &run),
        first: OnceLock::new(),
        received: AtomicU64::new(0),
        place,
        run: run.clone(),
    });
    let (before, begun) = (processor_time(), Instant::now());
    let mut tasks = JoinSet::new();
    for mut channel in channels {
        let receiving = Arc::clone(&receiving);
        tasks.spawn(async move {
            let received = receiving.receive_on(&mut channel).await;
            (channel, received)
        });
    }
    let (channels, mut result) = gather(tasks, &run).await;
    if let (Place::File(file, _), Ok(())) = (&receiving.place, &result) {
        let file = Arc::clone(file);
        result = on_disk(move || file.sync()).await;
    }
    let received = receiving.received.load(Ordering::Relaxed);
    // When the first frame has come is known, but not when its first byte has.
    let (since, bytes) = match receiving.first.get() {
        Some(first) if received > run.len.into() => (*first, received - u64::from(run.len)),
        Some(_) | None => (begun, received),
    };
    let ran = Ran {
        bytes,
        micros: micros(since.elapsed()),
        processor_micros: micros(processor_time().saturating_sub(before)),
    };
    (channels, result.map(|()| ran))
}

/// Bytes that no link and no file system makes shorter.
pub fn made_up(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Runs what waits for a disk where waiting hurts nobody.
pub async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Failure> {
    match spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.to_failure()),
        Err(error) => Err(Failure::new(FailureCode::Io, error.to_string())),
    }
}

fn pool(channels: usize, run: &Run) -> Pool {
    Pool::new((2 * channels + 2).min(MAX_BUFFERS), run.len as usize)
}

/// Waits for the tasks of all channels, though not for ever: what hangs is given up with its channel.
async fn gather(
    mut tasks: JoinSet<(Channel, Result<(), Failure>)>,
    run: &Run,
) -> (Vec<Channel>, Result<(), Failure>) {
    let (mut channels, mut result) = (Vec::new(), Ok(()));
    let limit = Duration::from_millis(run.millis.into()) + GRACE;
    let all = async {
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok((channel, Ok(()))) => channels.push(channel),
                Ok((_, Err(failure))) => result = Err(failure),
                Err(error) => result = Err(Failure::new(FailureCode::Io, error.to_string())),
            }
        }
    };
    if timeout(limit, all).await.is_err() {
        let text = format!("the data of a run was not through after {} s", limit.as_secs());
        result = Err(Failure::new(FailureCode::Disconnected, text));
    }
    channels.sort_unstable_by_key(|channel| channel.slot.channel);
    (channels, result)
}

struct Sending {
    run: Run,
    place: Place,
    payload: Bytes,
    pool: Pool,
    begun: Instant,
    bytes: u64,
    /// How far the run has been given to channels, and how much of it has been sent.
    claimed: AtomicU64,
    sent: AtomicU64,
}

impl Sending {
    async fn send_on(&self, channel: &mut Channel) -> Result<(), Failure> {
        let mut next = self.next().await?;
        while let Some(frame) = next {
            // The next is read while this one is sent.
            let (sent, following) = tokio::join!(channel.send(&frame), self.next());
            sent.map_err(|error| lost(&error))?;
            self.sent.fetch_add(self.run.len.into(), Ordering::Relaxed);
            next = following?;
        }
        channel.send(&Frame::End).await.map_err(|error| lost(&error))
    }

    /// `None` when the time or the bytes are used up.
    async fn next(&self) -> Result<Option<Frame>, Failure> {
        if self.begun.elapsed() >= Duration::from_millis(self.run.millis.into()) {
            return Ok(None);
        }
        let len = u64::from(self.run.len);
        let offset = self.claimed.fetch_add(len, Ordering::Relaxed);
        if offset + len > self.bytes {
            return Ok(None);
        }
        let range = self.run.range(offset);
        let range = range.map_err(|it| Failure::new(FailureCode::Violation, it.to_string()))?;
        let data = match &self.place {
            Place::Memory => self.payload.clone(),
            Place::File(file, _) => {
                let buffer = self.pool.take(self.run.len as usize).await;
                let mut buffer = buffer.map_err(|error| lost(&error.into()))?;
                let file = Arc::clone(file);
                on_disk(move || file.read(&mut buffer, offset).map(|()| buffer.freeze())).await?
            }
        };
        let (version, digest, data) = (0, Digest::default(), ChunkData::Bytes(data));
        Ok(Some(Frame::Chunk(Chunk::received(range, version, digest, data))))
    }
}

struct Receiving {
    run: Run,
    place: Place,
    pool: Pool,
    /// When the first frame was there.
    first: OnceLock<Instant>,
    received: AtomicU64,
}

impl Receiving {
    async fn receive_on(&self, channel: &mut Channel) -> Result<(), Failure> {
        let mut last = None;
        loop {
            // One is written while the next one comes.
            let (frame, written) =
                tokio::join!(channel.receive(&self.pool), self.write(last.take()));
            written?;
            match frame.map_err(|error| lost(&error))? {
                Frame::Chunk(Chunk { range, data: ChunkData::Bytes(data), .. })
                    if self.run.range(range.offset()) == Ok(range) =>
                {
                    self.first.get_or_init(Instant::now);
                    let len = u64::from(range.len());
                    let before = self.received.fetch_add(len, Ordering::Relaxed);
                    if before + len > self.run.bytes || range.offset() + len > self.run.bytes {
                        return Err(broken("more data came than the run has"));
                    }
                    last = Some((data, range.offset()));
                }
                Frame::End => return Ok(()),
                _ => return Err(broken("a frame came that is not of the run")),
            }
        }
    }

    async fn write(&self, data: Option<(Bytes, u64)>) -> Result<(), Failure> {
        let (Place::File(file, _), Some((data, offset))) = (&self.place, data) else {
            return Ok(());
        };
        let file = Arc::clone(file);
        on_disk(move || file.write(&data, offset)).await
    }
}

fn lost(error: &TransportError) -> Failure {
    Failure::new(FailureCode::Disconnected, format!("a data channel was lost: {error}"))
}

fn broken(text: &str) -> Failure {
    Failure::new(FailureCode::Violation, text)
}

/// How many buffers one end takes for a run at the most.
const MAX_BUFFERS: usize = 64;

/// How much longer than it sends a run may take: what is under way has to arrive.
const GRACE: Duration = Duration::from_secs(15);
