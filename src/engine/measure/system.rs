//! What one end is like: its program, its processors, its network's settings, its clock.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::run::made_up;
use crate::protocol::chunk::Digest;
use crate::protocol::manifest::{Escaped, Timestamp};
use crate::protocol::measure::System;
use crate::storage::local::room;
use crate::transport::measure::settings;

/// Describes this end, where files would go into the directory; without any paths if those are nobody's
/// business.
pub async fn system(directory: PathBuf, tells_paths: bool) -> System {
    let path = directory.clone();
    let room = tokio::task::spawn_blocking(move || room(&path).unwrap_or_default());
    let hash_rate = tokio::task::spawn_blocking(hash_rate).await.unwrap_or_default();
    let shown = |path: PathBuf| Escaped(path.as_os_str().as_encoded_bytes()).to_string();
    let program = tells_paths.then(std::env::current_exe).and_then(Result::ok);
    let directory = tells_paths.then_some(directory);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    System {
        program: program.map(shown).unwrap_or_default(),
        directory: directory.map(shown).unwrap_or_default(),
        processors: u32::try_from(processors).unwrap_or(u32::MAX),
        room: room.await.unwrap_or_default(),
        hash_rate,
        settings: settings(),
    }
}

/// This end's clock.
pub fn now() -> Timestamp {
    let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let seconds = i64::try_from(time.as_secs()).unwrap_or_default();
    Timestamp::new(seconds, time.subsec_nanos()).unwrap_or_default()
}

/// What one processor hashes of data that is not in its cache any more, in bytes a second.
fn hash_rate() -> u64 {
    let data = made_up(HASHED);
    let (begun, mut rounds) = (Instant::now(), 0_u64);
    while begun.elapsed() < ENOUGH {
        std::hint::black_box(Digest::of(&data));
        rounds += 1;
    }
    per_second(rounds * data.len() as u64, begun.elapsed())
}

/// A rate, in bytes a second.
pub fn per_second(bytes: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

/// How much is hashed at once, in bytes: a chunk of the default size.
const HASHED: usize = 8 << 20;

/// How long.
const ENOUGH: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_in_bytes_a_second() {
        assert_eq!(per_second(3_000_000, Duration::from_millis(1500)), 2_000_000);
        assert_eq!(per_second(1, Duration::ZERO), 1_000_000);
        assert_eq!(per_second(u64::MAX, Duration::ZERO), u64::MAX);
    }

    /// MEASURE-3: one who may not know is told no path.
    #[tokio::test]
    async fn paths_are_told_only_if_they_may_be() {
        let told = system("/tmp".into(), true).await;
        assert_eq!(told.directory, "/tmp");
        assert!(!told.program.is_empty() && told.hash_rate > 0 && told.processors > 0);
        let kept = system("/tmp".into(), false).await;
        assert_eq!((kept.program, kept.directory), (String::new(), String::new()));
    }
}
