//! Reading a part of a file with more requests than one, where that one is slow.
//!
//! A transfer ends with its slowest connection, and by then the others have nothing to do. So half of
//! what is left of a part is asked for once more, over one of theirs, again and again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::client::TOO_LONG;
use super::lock;
use crate::storage::remote::{Answer, Class, Fault};

/// Those who read long parts at a server.
#[derive(Clone, Debug)]
pub struct Readers {
    /// Since when each of those who have read something does not read any more.
    idle: Arc<Mutex<VecDeque<Instant>>>,
    limit: usize,
}

/// One who reads, until it is dropped.
#[derive(Debug)]
pub struct Reader(Readers);

impl Drop for Reader {
    fn drop(&mut self) {
        let mut idle = lock(&self.0.idle);
        if idle.len() < self.0.limit {
            idle.push_back(Instant::now());
        }
    }
}

impl Readers {
    /// Nobody yet, and never more than so many who have nothing to do.
    pub fn new(limit: usize) -> Self {
        Self { idle: Arc::default(), limit }
    }

    /// Somebody begins to read a part of this length; short ones do not count.
    pub fn begin(&self, len: usize) -> Option<Reader> {
        if len < 2 * LEAST {
            return None;
        }
        lock(&self.idle).pop_front();
        Some(Reader(self.clone()))
    }

    /// A helper, if somebody has nothing to do for a while: between two parts nobody is idle.
    fn help(&self) -> Option<Reader> {
        let mut idle = lock(&self.idle);
        idle.pop_front_if(|since| since.elapsed() >= PATIENCE)?;
        Some(Reader(self.clone()))
    }
}

/// Asks for parts of one file.
pub trait Help: Sync {
    /// Reads exactly this much, with another request.
    fn read<'a>(&'a self, first: u64, into: &'a mut [u8]) -> BoxFuture<'a, Answer<()>>;
}

/// Fills `into` with the body of an answer that begins at `first`, as [`super::client::fill`] does.
/// Others help with the end of it; if the answer breaks off before that, what they have read does not
/// count.
///
/// # Errors
///
/// [`Class::Violation`] for a body that is longer; what stopped a helper.
pub async fn fill(
    mut response: reqwest::Response,
    first: u64,
    into: &mut [u8],
    readers: &Readers,
    help: &impl Help,
) -> Answer<usize> {
    let (mut filled, len) = (0, into.len());
    let mut room = into;
    let mut helpers = FuturesUnordered::new();
    let begun = Instant::now();
    loop {
        let is_cut = filled + room.len() < len;
        if room.is_empty() && is_cut {
            break;
        }
        if room.len() >= 2 * LEAST
            && is_slow(begun.elapsed(), filled, room.len())
            && let Some(reader) = readers.help()
        {
            let middle = room.len().div_ceil(2);
            let (near, far) = std::mem::take(&mut room).split_at_mut(middle);
            room = near;
            let first = first + (filled + middle) as u64;
            helpers.push(async move {
                let _reader = reader;
                help.read(first, far).await
            });
            continue;
        }
        tokio::select! {
            piece = response.chunk() => {
                let Ok(Some(piece)) = piece else { break };
                let taken = piece.len().min(room.len());
                if taken < piece.len() && !is_cut {
                    return Err(Fault::new(Class::Violation, TOO_LONG));
                }
                let (place, rest) = std::mem::take(&mut room).split_at_mut(taken);
                place.copy_from_slice(piece.get(..taken).unwrap_or_default());
                room = rest;
                filled += taken;
            }
            Some(helped) = helpers.next() => helped?,
            () = tokio::time::sleep(PATIENCE), if room.len() >= 2 * LEAST => {}
        }
    }
    let is_near_done = room.is_empty();
    // Nothing more is to come over this connection for what others read.
    drop(response);
    while let Some(helped) = helpers.next().await {
        helped?;
    }
    Ok(if is_near_done { len } else { filled })
}

/// Whether what is left takes long, if it comes as what was filled came.
fn is_slow(elapsed: Duration, filled: usize, left: usize) -> bool {
    let (filled, left) = (filled as u128, left as u128);
    elapsed >= PATIENCE && elapsed.as_millis() * left > LONG.as_millis() * filled
}

/// What is worth a request of its own, in bytes.
const LEAST: usize = 512 << 10;

/// How long somebody has nothing to do before it helps, and reads alone before it is helped.
const PATIENCE: Duration = Duration::from_millis(100);

/// How much longer a part has to take, so that help is worth the connection that it was to come over.
const LONG: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::Semaphore;

    use super::*;

    const LEN: usize = 4 * LEAST;
    const FIRST: u64 = 1 << 20;

    /// A file of which every byte tells where it stands.
    fn byte(at: u64) -> u8 {
        u8::try_from(at.wrapping_mul(0x9e37_79b9) >> 24 & 0xff).unwrap()
    }

    fn bytes(first: u64, len: usize) -> Vec<u8> {
        (first..first + len as u64).map(byte).collect()
    }

    /// Reads the file, and notes what of it.
    struct Library {
        read: Mutex<Vec<(u64, usize)>>,
        /// One permit for each reading.
        readings: Arc<Semaphore>,
        fails: bool,
    }

    impl Help for Library {
        fn read<'a>(&'a self, first: u64, into: &'a mut [u8]) -> BoxFuture<'a, Answer<()>> {
            lock(&self.read).push((first, into.len()));
            into.copy_from_slice(&bytes(first, into.len()));
            self.readings.add_permits(1);
            let fails = self.fails;
            Box::pin(async move {
                if fails { Err(Fault::new(Class::Changed, "it is another")) } else { Ok(()) }
            })
        }
    }

    impl Library {
        fn new(fails: bool) -> Self {
            Self { read: Mutex::default(), readings: Arc::new(Semaphore::new(0)), fails }
        }

        /// An answer that brings so much, and after the first help the rest.
        fn answer(&self, before: usize, after: usize) -> reqwest::Response {
            let all = Bytes::from(bytes(FIRST, before + after));
            let readings = Arc::clone(&self.readings);
            let body = futures_util::stream::iter([all.slice(..before), all.slice(before..)]);
            let body = body.enumerate().then(move |(number, piece)| {
                let readings = Arc::clone(&readings);
                async move {
                    if number > 0 {
                        readings.acquire().await.unwrap().forget();
                    }
                    Ok::<_, std::io::Error>(piece)
                }
            });
            http::Response::new(reqwest::Body::wrap_stream(body)).into()
        }
    }

    /// One who read something, and has nothing to do now.
    fn one_idle() -> Readers {
        let readers = Readers::new(4);
        drop(readers.begin(LEN));
        readers
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_what_is_left_goes_to_who_is_idle() {
        let (library, readers) = (Library::new(false), one_idle());
        let reader = readers.begin(LEN);
        drop(readers.begin(LEN));
        let mut into = vec![0; LEN];
        let response = library.answer(2 * LEAST, 2 * LEAST);
        let filled = fill(response, FIRST, &mut into, &readers, &library).await.unwrap();
        assert_eq!(filled, LEN);
        assert!(into == bytes(FIRST, LEN));
        let half = (FIRST + 3 * LEAST as u64, LEAST);
        assert_eq!(*lock(&library.read), [half]);
        drop(reader);
        assert_eq!(lock(&readers.idle).len(), 2, "the helper and the reader");
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_small_parts_or_goes_on_reading_does_not_help() {
        let (library, readers) = (Library::new(false), Readers::new(4));
        assert!(readers.begin(2 * LEAST - 1).is_none());
        drop(readers.begin(LEN));
        let _reader = readers.begin(LEN);
        let mut into = vec![0; LEN];
        let filled = fill(library.answer(LEN, 0), FIRST, &mut into, &readers, &library);
        // It waits for help, and there is none.
        let long = Duration::from_mins(1);
        assert!(tokio::time::timeout(long, filled).await.is_err());
        assert!(lock(&library.read).is_empty());
        library.readings.add_permits(1);
        let filled = fill(library.answer(LEN, 0), FIRST, &mut into, &readers, &library);
        assert_eq!(filled.await.unwrap(), LEN);
        assert!(into == bytes(FIRST, LEN));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_breaks_off_counts_to_there() {
        let (library, readers) = (Library::new(false), one_idle());
        let mut into = vec![0; LEN];
        let response = library.answer(LEAST, LEAST / 2);
        let filled = fill(response, FIRST, &mut into, &readers, &library).await.unwrap();
        assert_eq!(filled, LEAST + LEAST / 2);
        assert_eq!(lock(&library.read).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stops_a_helper_stops_the_reader() {
        let (library, readers) = (Library::new(true), one_idle());
        let mut into = vec![0; LEN];
        let response = library.answer(LEAST, LEN);
        let fault = fill(response, FIRST, &mut into, &readers, &library).await.unwrap_err();
        assert_eq!(fault.class, Class::Changed);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_was_asked_for_is_a_violation() {
        let (library, readers) = (Library::new(false), Readers::new(4));
        library.readings.add_permits(1);
        let mut into = vec![0; LEN];
        let fault = fill(library.answer(LEAST, LEN), FIRST, &mut into, &readers, &library).await;
        assert_eq!(fault.unwrap_err().class, Class::Violation);
    }
}
