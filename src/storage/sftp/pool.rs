//! Several connections to one server, and the handles of files on each of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::answer::handle;
use super::packet::Request;
use super::session::{Dial, Offers, Session, Which};
use crate::storage::remote::{Class, Fault};

/// Connections to one server.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    dial: Dial,
    sessions: Mutex<Vec<Arc<Session>>>,
    /// How many there are to be when there is enough to do.
    wanted: usize,
    /// Further ones have been asked for.
    has_grown: AtomicBool,
    next: AtomicUsize,
    offers: Offers,
    dialling: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl Pool {
    /// Makes the first connection.
    ///
    /// # Errors
    ///
    /// [`Class::Disconnected`] if there is no server.
    pub async fn connect(dial: Dial, wanted: usize) -> Result<Self, Fault> {
        let wire = dial(Which::First).await;
        let wire = wire.map_err(|error| Fault::new(Class::Disconnected, error.to_string()))?;
        let first = Session::begin(wire, 0).await?;
        let offers = first.offers;
        let inner = Inner {
            dial,
            sessions: Mutex::new(vec![Arc::new(first)]),
            wanted,
            has_grown: AtomicBool::new(wanted < 2),
            next: AtomicUsize::new(1),
            offers,
            dialling: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the server can do. All connections are to the same one.
    pub fn offers(&self) -> Offers {
        self.inner.offers
    }

    /// The connection that has least to do. If all have much, further ones are made.
    ///
    /// # Errors
    ///
    /// [`Class::Disconnected`] if none is left.
    pub fn pick(&self) -> Result<Arc<Session>, Fault> {
        let best = {
            let mut sessions = lock(&self.inner.sessions);
            sessions.retain(|session| !session.is_lost());
            sessions.iter().min_by_key(|session| session.load()).cloned()
        };
        let gone = || Fault::new(Class::Disconnected, "the connection to the SFTP server was lost");
        let best = best.ok_or_else(gone)?;
        if best.load() >= BUSY && !self.inner.has_grown.swap(true, Ordering::AcqRel) {
            self.grow();
        }
        Ok(best)
    }

    /// Makes the other connections. One that fails is done without.
    fn grow(&self) {
        let mut dialling = lock(&self.inner.dialling);
        for _ in 1..self.inner.wanted {
            let inner = Arc::downgrade(&self.inner);
            let dial = Arc::clone(&self.inner.dial);
            dialling.spawn(async move {
                let Ok(wire) = dial(Which::Further).await else { return };
                let Some(number) =
                    inner.upgrade().map(|inner| inner.next.fetch_add(1, Ordering::Relaxed))
                else {
                    return;
                };
                let Ok(session) = Session::begin(wire, number).await else { return };
                if let Some(inner) = inner.upgrade() {
                    lock(&inner.sessions).push(Arc::new(session));
                }
            });
        }
    }

    /// How many connections there are to be when there is enough to do.
    pub fn wanted(&self) -> usize {
        self.inner.wanted
    }
}

/// The handles of one file, on the connections that were used for it. They are closed with it.
#[derive(Debug, Default)]
pub struct Handles(Mutex<HashMap<usize, Opened>>);

type Opened = Arc<tokio::sync::OnceCell<(Arc<Session>, Bytes)>>;

impl Handles {
    /// The handle on a connection, which `open` gets if there is none yet.
    pub async fn on(&self, session: &Arc<Session>, open: Request) -> Result<Bytes, Fault> {
        let cell = Arc::clone(lock(&self.0).entry(session.number).or_default());
        let get = async || Ok((Arc::clone(session), handle(session.call(open).await?)?));
        cell.get_or_try_init(get).await.map(|(_, handle)| handle.clone())
    }

    /// Takes note of a handle.
    pub fn keep(&self, session: &Arc<Session>, handle: Bytes) {
        let cell = Arc::new(tokio::sync::OnceCell::new_with(Some((Arc::clone(session), handle))));
        lock(&self.0).insert(session.number, cell);
    }

    /// All handles, which are not closed by this any more.
    pub fn take(&self) -> Vec<(Arc<Session>, Bytes)> {
        let all = std::mem::take(&mut *lock(&self.0));
        all.into_values().filter_map(|cell| cell.get().cloned()).collect()
    }

    /// All handles, those on connections that were lost too.
    pub fn all(&self) -> Vec<(Arc<Session>, Bytes)> {
        lock(&self.0).values().filter_map(|cell| cell.get().cloned()).collect()
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        for (session, handle) in self.take() {
            session.tell(Request::close(&handle));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is a single step, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// With so many requests waiting on it, a connection has enough to do.
const BUSY: usize = 16;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::storage::sftp::session::Wire;

    /// Of a server that says who it is, and then nothing more.
    async fn silent() -> Wire {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        // SSH_FXP_VERSION: 3, without extensions.
        far.write_all(&[0, 0, 0, 5, 2, 0, 0, 0, 3]).await.unwrap();
        let (input, output) = tokio::io::split(near);
        Wire { input: Box::new(input), output: Box::new(output), keeper: Box::new(far) }
    }

    /// One chunk that is written is one call, and many requests.
    #[tokio::test]
    async fn a_chunk_that_is_written_is_enough_to_do_for_one_connection() {
        let further = Arc::new(Semaphore::new(0));
        let made = Arc::clone(&further);
        let dial: Dial = Arc::new(move |which| {
            let made = Arc::clone(&made);
            Box::pin(async move {
                if which == Which::Further {
                    made.add_permits(1);
                }
                Ok(silent().await)
            })
        });
        let pool = Pool::connect(dial, 4).await.unwrap();
        let first = pool.pick().unwrap();
        let few = || (0..BUSY - 1).map(|n| Request::close(&n.to_le_bytes())).collect();
        let (session, requests) = (Arc::clone(&first), few());
        let mut calls = JoinSet::new();
        calls.spawn(async move { session.call_all(requests).await });
        while first.load() < BUSY - 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.pick().unwrap().number, 0);
        let (session, requests) = (Arc::clone(&first), few());
        calls.spawn(async move { session.call_all(requests).await });
        while first.load() < BUSY {
            tokio::task::yield_now().await;
        }
        assert_eq!(further.available_permits(), 0, "not before there is enough to do");
        pool.pick().unwrap();
        let _ = further.acquire_many(3).await.unwrap();
        while lock(&pool.inner.sessions).len() < 4 {
            tokio::task::yield_now().await;
        }
        assert_ne!(pool.pick().unwrap().number, 0, "which has most to do");
    }
}
