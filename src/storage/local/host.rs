//! What the engine must know of this host.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
    fn the_boot_has_a_name_that_stays() {
        assert_eq!(boot_id(), boot_id());
        assert_ne!(boot_id(), [0; 16]);
    }
}
