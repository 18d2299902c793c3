//! Several connections to one server, and the handles of files on each of them.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::task::JoinSet;

use super::answer::handle;
use super::packet::{self, Answer, Request};
use super::session::{Awaited, Dial, Offers, Permit, Session, Which, gone, permit};
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
    /// A connection has less to do, or is new.
    freed: Notify,
    /// How many long requests a connection has at a time.
    room: usize,
    dialling: Mutex<JoinSet<()>>,
    /// How many more attempts there are to replace connections that were lost.
    redials: AtomicUsize,
    /// What was asked for and has to be done, unless it is answered.
    owed: Mutex<Vec<Owed>>,
}

#[derive(Debug)]
struct Owed {
    request: Request,
    answered: Awaited,
    /// It went another way than what it takes back, and may be there earlier.
    is_elsewhere: bool,
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
    /// [`Class::Gone`] if there is no server.
    pub async fn connect(dial: Dial, wanted: usize) -> Result<Self, Fault> {
        let wire = dial(Which::First).await;
        let wire = wire.map_err(|error| Fault::new(Class::Gone, error.to_string()))?;
        let first = Session::begin(wire, 0).await?;
        let offers = first.offers;
        let room = UNDER_WAY / offers.max_read.min(offers.max_write).max(1) as usize;
        let inner = Inner {
            dial,
            sessions: Mutex::new(vec![Arc::new(first)]),
            wanted,
            has_grown: AtomicBool::new(wanted < 2),
            next: AtomicUsize::new(1),
            offers,
            freed: Notify::new(),
            room: room.max(BUSY),
            dialling: Mutex::default(),
            redials: AtomicUsize::new(REDIALS),
            owed: Mutex::default(),
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
    /// [`Class::Gone`] if none is left.
    pub fn pick(&self) -> Result<Share, Fault> {
        self.choose(None).map_err(|fault| fault.unwrap_or_else(gone))
    }

    /// The connection that has least to do, once one has room for a long request. What waits is not bound to
    /// a connection yet, and so goes to new ones as soon as they are there.
    ///
    /// # Errors
    ///
    /// [`Class::Gone`] if none is left.
    pub async fn share(&self) -> Result<Share, Fault> {
        loop {
            let freed = self.inner.freed.notified();
            let mut freed = std::pin::pin!(freed);
            freed.as_mut().enable();
            match self.choose(Some(self.inner.room)) {
                Err(None) => freed.await,
                Err(Some(fault)) => {
                    // Whoever else waits is to hear of it too.
                    self.inner.freed.notify_waiters();
                    return Err(fault);
                }
                Ok(share) => return Ok(share),
            }
        }
    }

    /// The connection that has least to do; for a long request, if it has not as many already as it has room for.
    fn choose(&self, room: Option<usize>) -> Result<Share, Option<Fault>> {
        let mut sessions = lock(&self.inner.sessions);
        let before = sessions.len();
        sessions.retain(|session| !session.is_lost());
        // While another is left, so further logins work, and without a prompt.
        if !sessions.is_empty() {
            (sessions.len()..before).for_each(|_| self.redial());
        }
        let load = |session: &Arc<Session>| session.load.load(Ordering::Relaxed);
        let best = sessions.iter().min_by_key(|session| load(session)).cloned();
        let best = best.ok_or_else(|| Some(gone()))?;
        if load(&best) >= BUSY {
            self.expect_much();
        }
        if let Some(room) = room {
            if best.long.load(Ordering::Relaxed) >= room {
                return Err(None);
            }
            best.long.fetch_add(1, Ordering::Relaxed);
        }
        // While nobody else chooses: of many who come at the same time, each is to see the others.
        best.load.fetch_add(1, Ordering::Relaxed);
        Ok(Share { session: best, is_long: room.is_some(), inner: Arc::clone(&self.inner) })
    }

    /// Makes the other connections, of which there will be use. One that fails is done without.
    pub fn expect_much(&self) {
        if self.inner.has_grown.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut dialling = lock(&self.inner.dialling);
        for _ in 1..self.inner.wanted {
            let inner = Arc::downgrade(&self.inner);
            dialling.spawn(async move {
                dial_further(&inner).await;
            });
        }
    }

    /// Makes a connection in place of one that was lost, with pauses between attempts.
    fn redial(&self) {
        let inner = Arc::downgrade(&self.inner);
        lock(&self.inner.dialling).spawn(async move {
            let mut pause = REDIAL_PAUSE;
            loop {
                tokio::time::sleep(pause).await;
                let take = |left: usize| left.checked_sub(1);
                let may = inner.upgrade().is_some_and(|inner| {
                    inner.redials.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
                });
                if !may || dial_further(&inner).await.is_some() {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    /// Asks for what takes something back, without waiting. On the same connection it comes after that.
    pub fn owe(&self, session: &Arc<Session>, request: Request) {
        let other = if session.is_lost() { self.pick().ok() } else { None };
        let is_elsewhere = other.is_some();
        let answered = other.as_deref().unwrap_or(session).tell(request.clone(), None);
        let mut owed = lock(&self.inner.owed);
        owed.retain(|owed| owed.is_elsewhere || !owed.answered.has_come());
        owed.push(Owed { request, answered, is_elsewhere });
    }

    /// Waits until everything is answered that was asked on any connection that is left. What takes something
    /// back is asked for again where the connection was lost, for which another one is made if there is none.
    pub async fn settle(&self) {
        for round in 0..SETTLING {
            let mut left = Vec::new();
            let all = std::mem::take(&mut *lock(&self.inner.owed));
            for owed in all {
                let is_done = match owed.answered.await {
                    Ok(Answer::Status { code: packet::NO_SUCH_FILE, .. }) => !owed.is_elsewhere,
                    Ok(_) => true,
                    Err(_) => false,
                };
                if !is_done {
                    left.push(owed.request);
                }
            }
            if left.is_empty() {
                break;
            }
            // What is not there may yet come by a connection that was lost.
            tokio::time::sleep(SETTLING_PAUSE * round).await;
            if self.pick().is_err() {
                dial_further(&Arc::downgrade(&self.inner)).await;
            }
            let Ok(session) = self.pick() else { break };
            *lock(&self.inner.owed) = left
                .into_iter()
                .map(|request| {
                    let answered = session.tell(request.clone(), None);
                    Owed { request, answered, is_elsewhere: true }
                })
                .collect();
        }
        let sessions = lock(&self.inner.sessions).clone();
        for session in sessions {
            session.settle().await;
        }
    }

    /// How many connections there are to be when there is enough to do.
    pub fn wanted(&self) -> usize {
        self.inner.wanted
    }
}

/// Makes one more connection, without asking anybody anything; `None` if there is none.
async fn dial_further(inner: &Weak<Inner>) -> Option<()> {
    let dial = Arc::clone(&inner.upgrade()?.dial);
    let wire = dial(Which::Further).await.ok()?;
    let number = inner.upgrade()?.next.fetch_add(1, Ordering::Relaxed);
    let session = Session::begin(wire, number).await.ok()?;
    let inner = inner.upgrade()?;
    lock(&inner.sessions).push(Arc::new(session));
    inner.freed.notify_waiters();
    Some(())
}

/// A connection that has one more thing to do for as long as this lives.
#[derive(Debug)]
pub struct Share {
    session: Arc<Session>,
    is_long: bool,
    inner: Arc<Inner>,
}

impl Deref for Share {
    type Target = Arc<Session>;

    fn deref(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.session.load.fetch_sub(1, Ordering::Relaxed);
        if self.is_long {
            self.session.long.fetch_sub(1, Ordering::Relaxed);
            self.inner.freed.notify_one();
        }
    }
}

/// The handles of one file, on the connections that were used for it. They are closed with it.
#[derive(Debug, Default)]
pub struct Handles {
    opened: Mutex<HashMap<usize, Opened>>,
    /// That there may be any, where they are counted: until the server has closed all of them.
    permit: Mutex<Option<Permit>>,
}

type Opened = Arc<OnceCell<(Arc<Session>, Bytes)>>;

impl Handles {
    /// Handles that are counted.
    pub fn of(permit: Permit) -> Self {
        Self { opened: Mutex::default(), permit: Mutex::new(Some(permit)) }
    }

    /// Waits until they may be among `few`, if they are not yet.
    ///
    /// # Errors
    ///
    /// [`Class::Gone`] if none are handed out any more.
    pub async fn admit(&self, few: &Arc<Semaphore>) -> Result<(), Fault> {
        if lock(&self.permit).is_none() {
            let permit = permit(few).await?;
            lock(&self.permit).get_or_insert(permit);
        }
        Ok(())
    }

    /// The handle on a connection, which `open` gets if there is none yet.
    pub async fn on(&self, session: &Arc<Session>, open: Request) -> Result<Bytes, Fault> {
        let cell = Arc::clone(lock(&self.opened).entry(session.number).or_default());
        let get = async || Ok((Arc::clone(session), handle(session.call(open).await?)?));
        cell.get_or_try_init(get).await.map(|(_, handle)| handle.clone())
    }

    /// Closes all handles; what is read afterwards opens anew. The answers are worth waiting for where a failure
    /// to write shows so late.
    pub fn close(&self) -> Vec<Awaited> {
        let all = std::mem::take(&mut *lock(&self.opened));
        let all = all.into_values().filter_map(|cell| cell.get().cloned());
        let permit = lock(&self.permit).take();
        all.map(|(session, handle)| session.tell(Request::close(&handle), permit.clone())).collect()
    }

    /// All handles, those on connections that were lost too.
    pub fn all(&self) -> Vec<(Arc<Session>, Bytes)> {
        lock(&self.opened).values().filter_map(|cell| cell.get().cloned()).collect()
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is a single step, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many attempts there are to replace connections that were lost.
const REDIALS: usize = 64;

/// The pause before the first attempt, which doubles with each that fails.
const REDIAL_PAUSE: Duration = Duration::from_secs(2);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How often what takes something back is asked for again.
const SETTLING: u32 = 3;

/// How much longer each time is waited before that.
const SETTLING_PAUSE: Duration = Duration::from_millis(200);

/// With so much to do, a connection has enough.
const BUSY: usize = 16;

/// So much data may be under way on a connection, in bytes: more than ssh lets through in a round trip, and
/// little enough that not all of a file waits for the first of several connections.
const UNDER_WAY: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

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

    #[tokio::test]
    async fn what_one_connection_has_no_room_for_goes_to_others() {
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
        let busy: Vec<_> = (0..BUSY).map(|_| pool.pick().unwrap()).collect();
        assert!(busy.iter().all(|share| share.number == 0));
        assert_eq!(further.available_permits(), 0, "not before there is enough to do");
        drop(busy);
        // All that there is room for, and somebody who waits.
        let mut shares = Vec::new();
        for _ in 0..pool.inner.room {
            shares.push(pool.share().await.unwrap());
        }
        let _ = further.acquire_many(3).await.unwrap();
        let share = pool.share().await.unwrap();
        assert_ne!(share.number, 0, "which has most to do");
        while lock(&pool.inner.sessions).len() < 4 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..5).map(|_| pool.pick().unwrap().number).collect();
        assert!(!others.contains(&0));
        let kept: Vec<_> = (0..5).map(|_| pool.pick().unwrap()).collect();
        let mut numbers: Vec<_> = kept.iter().chain([&share]).map(|share| share.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 1, 2, 2, 3, 3], "each sees the others");
    }

    /// As long as another is left, and not for ever.
    #[tokio::test(start_paused = true)]
    async fn what_is_lost_is_dialled_again() {
        let dials = Arc::new(AtomicUsize::new(0));
        let fails = Arc::new(AtomicBool::new(false));
        let (counted, failing) = (Arc::clone(&dials), Arc::clone(&fails));
        let dial: Dial = Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            let fails = failing.load(Ordering::Relaxed);
            Box::pin(async move {
                if fails {
                    Err(std::io::ErrorKind::ConnectionRefused.into())
                } else {
                    Ok(silent().await)
                }
            })
        });
        let pool = Pool::connect(dial, 2).await.unwrap();
        let sessions = || lock(&pool.inner.sessions).clone();
        pool.expect_much();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(sessions().len(), 2);
        sessions()[0].lose();
        assert_eq!(pool.pick().unwrap().number, 1);
        assert_eq!(sessions().len(), 1, "not at once");
        tokio::time::sleep(REDIAL_PAUSE * 2).await;
        assert_eq!((sessions().len(), dials.load(Ordering::Relaxed)), (2, 3));
        fails.store(true, Ordering::Relaxed);
        sessions()[1].lose();
        drop(pool.pick().unwrap());
        tokio::time::sleep(Duration::from_hours(24)).await;
        assert_eq!((sessions().len(), dials.load(Ordering::Relaxed)), (1, 2 + REDIALS));
        // Nobody is asked for a first login again.
        sessions()[0].lose();
        assert!(pool.pick().is_err());
    }

    /// Who waits for room gets it from whoever is done.
    #[tokio::test]
    async fn room_is_handed_on() {
        let dial: Dial = Arc::new(|_| Box::pin(async { Ok(silent().await) }));
        let pool = Pool::connect(dial, 1).await.unwrap();
        let mut shares = Vec::new();
        for _ in 0..pool.inner.room {
            shares.push(pool.share().await.unwrap());
        }
        let _short: Vec<_> = (0..2).map(|_| pool.pick().unwrap()).collect();
        let mut waiting = [Box::pin(pool.share()), Box::pin(pool.share())];
        for waits in &mut waiting {
            assert!(futures_util::poll!(waits).is_pending());
        }
        shares.truncate(shares.len() - 2);
        for waits in waiting {
            shares.push(waits.await.unwrap());
        }
        assert!(futures_util::poll!(Box::pin(pool.share())).is_pending());
    }
}
