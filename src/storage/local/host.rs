//! What the engine must know of this host.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::ClockId;

/// Tells one boot of this host from another: after a reboot, the page cache of the last one is lost.
///
/// Source: random(4), `/proc/sys/kernel/random/boot_id`. Where the system does not say, every call
/// gives another one, so that nothing is trusted that was not synced.
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).filter_map(|d| u8::try_from(d).ok()).collect();
    let mut id = [0; 16];
    let pairs = digits.as_chunks::<2>().0;
    if pairs.len() < id.len() {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        return now.as_nanos().to_le_bytes();
    }
    for (byte, pair) in id.iter_mut().zip(pairs) {
        *byte = pair[0] << 4 | pair[1];
    }
    id
}

/// How much of the processors' time this process has had, on all of them together.
pub fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Raises the number of files that may be open to what the system allows this user.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // A lower limit works too; there is nothing to be said about it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_processor_time() {
        let before = processor_time();
        while processor_time() < before + Duration::from_millis(5) {
            std::hint::black_box(boot_id());
        }
    }

    #[test]
    fn the_boot_has_a_name_that_stays() {
        assert_eq!(boot_id(), boot_id());
        assert_ne!(boot_id(), [0; 16]);
    }
}
