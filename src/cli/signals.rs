//! Ctrl-C and its like: the first asks the engine to stop, the second leaves at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Lets writes beyond a limit on file sizes fail, which by default would kill this process
/// (setrlimit(2), `RLIMIT_FSIZE`). To be called within a runtime.
pub fn survive_file_size_limit() {
    // Without a listener it would be as before.
    let _ = signal(SignalKind::from_raw(SIGXFSZ));
}

/// The same number on every architecture that Linux runs on but MIPS and PA-RISC.
const SIGXFSZ: i32 = 25;

/// Heeds interrupt, terminate and hangup, but not those that were ignored when we were started,
/// as `nohup` does. Never returns if the first could be heeded.
pub async fn heed(stop: watch::Sender<bool>) {
    let ignored = std::fs::read_to_string("/proc/self/status")
        .map_or(0, |status| ignored_signals(&status).unwrap_or(0));
    let mut interrupt = listener(SignalKind::interrupt(), ignored);
    let mut terminate = listener(SignalKind::terminate(), ignored);
    let mut hangup = listener(SignalKind::hangup(), ignored);
    loop {
        tokio::select! {
            () = next(&mut interrupt) => {}
            () = next(&mut terminate) => {}
            () = next(&mut hangup) => {}
        }
        if stop.send_replace(true) {
            std::process::exit(super::exit::SIGNAL.into());
        }
    }
}

fn listener(kind: SignalKind, ignored: u64) -> Option<Signal> {
    let bit = u32::try_from(kind.as_raw_value() - 1).ok()?;
    if ignored.checked_shr(bit)? & 1 == 1 {
        return None;
    }
    signal(kind).ok()
}

async fn next(listener: &mut Option<Signal>) {
    let heard = match listener {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if heard.is_none() {
        std::future::pending::<()>().await;
    }
}

/// The `SigIgn` mask of a process: bit 0 is signal 1.
fn ignored_signals(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert_eq!(super::ignored_signals(status), Some(0x1001));
        assert_eq!(super::ignored_signals("Name:\tx\n"), None);
    }
}
