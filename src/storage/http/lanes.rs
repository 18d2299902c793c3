//! How many may be under way at a server at a time: fewer once it refuses some, and more again while it
//! does not.
//!
//! Less at once by a quarter, and more step by step, as TCP does it (RFC 5681, 3.1): a server's limit
//! is not known, and may not be the same tomorrow.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::lock;

/// Places at a server. A clone is another handle on the same ones.
#[derive(Clone, Debug)]
pub struct Lanes {
    permits: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
    /// How many there are unless the server refuses some.
    pub most: usize,
}

#[derive(Debug)]
struct State {
    allowed: usize,
    /// How many of those under way are too many.
    excess: usize,
    /// How many there were at the most, or are allowed since there were too many.
    peak: usize,
    changed: Option<Instant>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Lane {
    permit: Option<OwnedSemaphorePermit>,
    lanes: Lanes,
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = lock(&self.lanes.state);
        if state.excess > 0
            && let Some(permit) = self.permit.take()
        {
            state.excess -= 1;
            permit.forget();
        }
        let is_due = state.changed.is_some_and(|changed| changed.elapsed() >= CALM);
        if is_due && state.allowed < self.lanes.most {
            let more = (self.lanes.most / 16).clamp(1, self.lanes.most - state.allowed);
            state.allowed += more;
            let spared = more.min(state.excess);
            state.excess -= spared;
            self.lanes.permits.add_permits(more - spared);
            state.changed = Some(Instant::now());
        }
    }
}

impl Lanes {
    /// So many places, until the server refuses some.
    pub fn new(most: usize) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        let state = State { allowed: most, excess: 0, peak: 0, changed: None };
        Self { permits: Arc::new(Semaphore::new(most)), state: Arc::new(Mutex::new(state)), most }
    }

    /// Waits for a place.
    pub async fn enter(&self) -> Lane {
        // Nobody closes the semaphore.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        self.lane(permit)
    }

    /// A place, if one is free.
    pub fn try_enter(&self) -> Option<Lane> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(self.lane(Some(permit)))
    }

    fn lane(&self, permit: Option<OwnedSemaphorePermit>) -> Lane {
        let mut state = lock(&self.state);
        let under_way = state.allowed + state.excess;
        let under_way = under_way.saturating_sub(self.permits.available_permits());
        state.peak = state.peak.max(under_way.min(state.allowed));
        Lane { permit, lanes: self.clone() }
    }

    /// The server has refused one for having too many. Those that are refused together count once.
    pub fn refused(&self) {
        let mut state = lock(&self.state);
        let is_told = state.changed.is_some_and(|changed| changed.elapsed() < TOGETHER);
        if is_told || state.peak == 0 {
            return;
        }
        let allowed = (state.peak.min(state.allowed) * 3 / 4).max(1);
        let fewer = state.allowed - allowed;
        // Those that wait before they come again count too, though they are not under way.
        (state.allowed, state.peak) = (allowed, allowed);
        state.excess += fewer - self.permits.forget_permits(fewer);
        state.changed = Some(Instant::now());
    }
}

/// How long what a server says may be about what was under way before it said so.
const TOGETHER: Duration = Duration::from_secs(1);

/// After how long without a refusal one more is tried.
const CALM: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// How many places there are by now.
    fn count(lanes: &Lanes) -> usize {
        let mut taken = Vec::new();
        while let Some(lane) = lanes.enter().now_or_never() {
            taken.push(lane);
        }
        taken.len()
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_leave_fewer_places_and_calm_brings_them_back() {
        let lanes = Lanes::new(16);
        let mut busy = Vec::new();
        for _ in 0..16 {
            busy.push(lanes.enter().await);
        }
        lanes.refused();
        lanes.refused();
        busy.truncate(12);
        assert_eq!(count(&lanes), 0, "12 are left, and all are taken");
        busy.pop();
        assert_eq!(count(&lanes), 1);
        for _ in 0..20 {
            tokio::time::advance(TOGETHER).await;
            lanes.refused();
        }
        busy.clear();
        assert_eq!(count(&lanes), 1, "never none");
        for wanted in 2..=16 {
            tokio::time::advance(CALM).await;
            drop(lanes.enter().await);
            assert_eq!(count(&lanes), wanted);
        }
        tokio::time::advance(CALM).await;
        drop(lanes.enter().await);
        assert_eq!(count(&lanes), 16, "never more");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_come_again_are_not_all_there_are() {
        let lanes = Lanes::new(64);
        lanes.refused();
        assert_eq!(count(&lanes), 64, "nobody was under way");
        lanes.refused();
        assert_eq!(count(&lanes), 48);
        tokio::time::advance(TOGETHER).await;
        let _first = lanes.enter().await;
        lanes.refused();
        assert_eq!(count(&lanes), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn few_that_are_refused_are_what_counts() {
        let lanes = Lanes::new(64);
        let busy: Vec<_> = [lanes.enter().await, lanes.enter().await].into();
        lanes.refused();
        drop(busy);
        assert_eq!(count(&lanes), 1);
    }
}
