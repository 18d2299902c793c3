//! How many handles a connection may have, as its server's answers show it.
//!
//! A server that has none left may say no more than that it failed. So what cannot be opened while others
//! are open is tried again, once fewer are. How many there may be is what there was, and one more now and
//! then: nobody knows whether that was the reason, nor for how long it holds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The handles of one connection.
#[derive(Debug)]
pub struct Quota {
    counts: Mutex<Counts>,
    /// Whoever comes first is let in first.
    door: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Debug)]
struct Counts {
    open: usize,
    /// How many are asked for.
    opening: usize,
    most: usize,
    /// How many were got since `most` was changed.
    got: usize,
    changed: Instant,
    is_lost: bool,
}

/// May ask for a handle.
#[derive(Debug)]
pub struct Admitted<'a> {
    quota: &'a Quota,
    has_asked: bool,
    /// Others are open, or asked for.
    pub has_others: bool,
    /// Nothing has been closed for so long that waiting once more is of no use.
    pub is_last: bool,
}

impl Admitted<'_> {
    /// It is asked for: the answer is what counts from here on.
    pub fn asks(mut self) {
        self.has_asked = true;
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if !self.has_asked {
            self.quota.change(|counts| counts.opening = counts.opening.saturating_sub(1));
        }
    }
}

impl Default for Quota {
    fn default() -> Self {
        let (open, opening, got, is_lost) = (0, 0, 0, false);
        let counts =
            Counts { open, opening, most: usize::MAX, got, changed: Instant::now(), is_lost };
        Self {
            counts: Mutex::new(counts),
            door: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        }
    }
}

impl Quota {
    /// Waits until there may be one more.
    pub async fn admit(&self) -> Admitted<'_> {
        let _first = self.door.lock().await;
        let mut is_last = false;
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            let deadline = {
                let mut counts = self.lock();
                let has_others = counts.open + counts.opening > 0;
                if counts.open + counts.opening < counts.most || counts.is_lost || is_last {
                    counts.opening += 1;
                    return Admitted { quota: self, has_asked: false, has_others, is_last };
                }
                counts.changed + PATIENCE
            };
            is_last = tokio::time::timeout_at(deadline, changed).await.is_err();
        }
    }

    /// One was opened.
    pub fn opened(&self) {
        self.change(|counts| {
            counts.opening = counts.opening.saturating_sub(1);
            counts.open += 1;
            counts.got += 1;
            counts.changed = Instant::now();
            if counts.open > counts.most {
                (counts.most, counts.got) = (counts.open, 0);
            } else if counts.got >= counts.most {
                (counts.most, counts.got) = (counts.most.saturating_add(1), 0);
            }
        });
    }

    /// One was not opened; if not `for_good`, it may be for the number of them.
    pub fn refused(&self, for_good: bool) {
        self.change(|counts| {
            counts.opening = counts.opening.saturating_sub(1);
            // Answers may come in another order: those that are still asked for may be open by now.
            let most = counts.open.max(1);
            if !for_good && counts.open + counts.opening > 0 && most < counts.most {
                (counts.most, counts.got) = (most, 0);
                counts.changed = Instant::now();
            }
        });
    }

    pub fn closed(&self) {
        self.change(|counts| {
            counts.open = counts.open.saturating_sub(1);
            counts.changed = Instant::now();
        });
    }

    /// Nobody waits for anything any more.
    pub fn lose(&self) {
        self.change(|counts| counts.is_lost = true);
    }

    /// Whether any are open, or asked for.
    pub fn has_any(&self) -> bool {
        let counts = self.lock();
        counts.open + counts.opening > 0
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // No change is seen half done, so a panic elsewhere spoils nothing.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long it is waited for a change among what is open. Whoever has the others may wait for this one.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn count(quota: &Quota) -> usize {
        let mut count = 0;
        while let Some(admitted) = quota.admit().now_or_never() {
            admitted.asks();
            count += 1;
            assert!(count < 1000);
        }
        (0..count).for_each(|_| quota.refused(true));
        count
    }

    async fn open(quota: &Quota) {
        quota.admit().await.asks();
        quota.opened();
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_as_there_were_when_one_was_refused_and_one_more_later() {
        let quota = Quota::default();
        for _ in 0..20 {
            open(&quota).await;
        }
        assert!(quota.admit().await.has_others);
        quota.admit().await.asks();
        quota.refused(true);
        quota.admit().await.asks();
        quota.refused(false);
        assert_eq!(count(&quota), 0);
        quota.closed();
        assert_eq!(count(&quota), 1);
        drop(quota.admit().await);
        assert_eq!(count(&quota), 1, "who goes away takes no place");
        for _ in 0..20 {
            open(&quota).await;
            quota.closed();
        }
        assert_eq!(count(&quota), 2);
    }

    /// What was opened shows how many there may be, whenever it is told.
    #[tokio::test]
    async fn a_refusal_may_be_told_first() {
        let quota = Quota::default();
        for _ in 0..5 {
            quota.admit().await.asks();
        }
        quota.refused(false);
        assert_eq!(count(&quota), 0);
        (0..4).for_each(|_| quota.opened());
        assert_eq!(count(&quota), 0);
        (0..2).for_each(|_| quota.closed());
        assert_eq!(count(&quota), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let quota = Quota::default();
        open(&quota).await;
        quota.admit().await.asks();
        quota.refused(false);
        let begun = Instant::now();
        assert!(quota.admit().await.is_last);
        assert!(begun.elapsed() >= PATIENCE);
        let begun = Instant::now();
        assert!(quota.admit().await.is_last);
        assert!(begun.elapsed() < PATIENCE, "nor one after the other");
        quota.lose();
        assert!(!quota.admit().await.is_last);
    }

    #[tokio::test]
    async fn the_only_one_is_refused_for_another_reason() {
        let quota = Quota::default();
        let admitted = quota.admit().await;
        assert!(!admitted.has_others);
        admitted.asks();
        quota.refused(false);
        assert!(!quota.has_any());
        assert!(!quota.admit().await.has_others);
    }
}
