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
use super::lanes::{Lane, Lanes};
use super::lock;
use crate::storage::remote::{Answer, Class, Fault};

/// Those who read long parts at a server.
#[derive(Clone, Debug)]
pub struct Readers {
    /// Since when each of those who have read something does not read any more.
    idle: Arc<Mutex<VecDeque<Instant>>>,
    lanes: Lanes,
}

/// One who reads, until it is dropped.
#[derive(Debug)]
pub struct Reader {
    readers: Readers,
    _lane: Lane,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut idle = lock(&self.readers.idle);
        if idle.len() < self.readers.lanes.most {
            idle.push_back(Instant::now());
        }
    }
}

impl Readers {
    /// Nobody yet, and never more than so many at a time.
    pub fn new(limit: usize) -> Self {
        Self { idle: Arc::default(), lanes: Lanes::new(limit) }
    }

    /// Waits until somebody may read a part of this length; short ones do not count.
    pub async fn begin(&self, len: usize) -> Option<Reader> {
        if len < 2 * LEAST {
            return None;
        }
        let lane = self.lanes.enter().await;
        lock(&self.idle).pop_front();
        Some(self.reader(lane))
    }

    /// The server has refused a request for having too many: there will be fewer readers, and no helpers
    /// for a while.
    pub fn refused(&self) {
        self.lanes.refused();
        lock(&self.idle).clear();
    }

    /// A helper, if somebody has nothing to do for a while: between two parts nobody is idle.
    fn help(&self) -> Option<Reader> {
        let mut idle = lock(&self.idle);
        idle.front().filter(|since| since.elapsed() >= PATIENCE)?;
        let lane = self.lanes.try_enter()?;
        idle.pop_front();
        Some(self.reader(lane))
    }

    fn reader(&self, lane: Lane) -> Reader {
        Reader { readers: self.clone(), _lane: lane }
    }
}

/// Asks for parts of one file.
pub trait Help: Sync {
    /// Tries once to read exactly this much, with another request. Whether that was done.
    fn read<'a>(&'a self, first: u64, into: &'a mut [u8]) -> BoxFuture<'a, bool>;
}

/// Fills `into` with the body of an answer that begins at `first`, and returns how much of it was filled
/// without a gap before it broke off. Others help with its end; what they could not read is for the
/// caller to ask for.
///
/// # Errors
///
/// [`Class::Violation`] for a body that is longer.
pub async fn fill(
    mut response: reqwest::Response,
    first: u64,
    into: &mut [u8],
    readers: &Readers,
    help: &impl Help,
) -> Answer<usize> {
    let (mut filled, mut room) = (0, into);
    let mut helpers = FuturesUnordered::new();
    // How much each helper reads, and whether it has; the last of them reads what comes first.
    let mut helped: Vec<(usize, bool)> = Vec::new();
    let begun = Instant::now();
    loop {
        let is_cut = !helped.is_empty();
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
            let (number, first) = (helped.len(), first + (filled + middle) as u64);
            helped.push((far.len(), false));
            helpers.push(async move {
                let is_done = help.read(first, far).await;
                drop(reader);
                (number, is_done)
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
            Some((number, is_done)) = helpers.next() => note(&mut helped, number, is_done, readers),
            () = tokio::time::sleep(PATIENCE), if room.len() >= 2 * LEAST => {}
        }
    }
    if !room.is_empty() {
        return Ok(filled);
    }
    // Nothing more is to come over this connection: others read it.
    drop(response);
    while let Some((number, is_done)) = helpers.next().await {
        note(&mut helped, number, is_done, readers);
    }
    let done = helped.iter().rev().take_while(|(_, is_done)| *is_done);
    Ok(filled + done.map(|(len, _)| len).sum::<usize>())
}

fn note(helped: &mut [(usize, bool)], number: usize, is_done: bool, readers: &Readers) {
    if let Some(one) = helped.get_mut(number) {
        one.1 = is_done;
    }
    if !is_done {
        // Whatever it is, it is no help.
        lock(&readers.idle).clear();
    }
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
        fn read<'a>(&'a self, first: u64, into: &'a mut [u8]) -> BoxFuture<'a, bool> {
            lock(&self.read).push((first, into.len()));
            into.copy_from_slice(&bytes(first, into.len()));
            self.readings.add_permits(1);
            Box::pin(std::future::ready(!self.fails))
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
    async fn one_idle() -> Readers {
        let readers = Readers::new(4);
        drop(readers.begin(LEN).await);
        readers
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_what_is_left_goes_to_who_is_idle() {
        let (library, readers) = (Library::new(false), one_idle().await);
        let reader = readers.begin(LEN).await;
        drop(readers.begin(LEN).await);
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
        assert!(readers.begin(2 * LEAST - 1).await.is_none());
        drop(readers.begin(LEN).await);
        let _reader = readers.begin(LEN).await;
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
        let (library, readers) = (Library::new(false), one_idle().await);
        let mut into = vec![0; LEN];
        let response = library.answer(LEAST, LEAST / 2);
        let filled = fill(response, FIRST, &mut into, &readers, &library).await.unwrap();
        assert_eq!(filled, LEAST + LEAST / 2);
        assert_eq!(lock(&library.read).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_helper_could_not_read_is_left() {
        let (library, readers) = (Library::new(true), one_idle().await);
        let mut into = vec![0; LEN];
        let response = library.answer(2 * LEAST, 2 * LEAST);
        let filled = fill(response, FIRST, &mut into, &readers, &library).await.unwrap();
        assert_eq!(filled, 3 * LEAST);
        assert!(into[..filled] == bytes(FIRST, filled));
        assert_eq!(lock(&library.read).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_helps_where_the_server_refuses_requests() {
        let (library, readers) = (Library::new(false), one_idle().await);
        readers.refused();
        library.readings.add_permits(1);
        let mut into = vec![0; LEN];
        let response = library.answer(LEAST, LEN - LEAST);
        let filled = fill(response, FIRST, &mut into, &readers, &library).await;
        assert_eq!(filled.unwrap(), LEN);
        assert!(lock(&library.read).is_empty());
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
