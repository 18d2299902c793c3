//! SES-1: however a stream is cut, the scanner finds the first magic and gives back what follows.
#![no_main]

use fastsync::protocol::handshake::{MAGIC, MAX_NOISE, MagicScanner};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u8, Vec<u8>)| {
    let (step, put, mut stream) = input;
    if put & 1 == 1 {
        // Chance seldom spells the magic; half of the inputs have one.
        let at = stream.len().min(usize::from(put) * 16);
        stream.splice(at..at, MAGIC);
    }
    let place = stream.windows(MAGIC.len()).position(|window| window == MAGIC);
    let mut scanner = MagicScanner::default();
    let mut rest: Option<Vec<u8>> = None;
    for piece in stream.chunks(usize::from(step).max(1)) {
        match &mut rest {
            Some(rest) => rest.extend_from_slice(piece),
            None => match scanner.push(piece) {
                Ok(found) => rest = found,
                Err(_) => {
                    assert!(place.is_none_or(|at| at > MAX_NOISE));
                    return;
                }
            },
        }
    }
    match place {
        Some(at) if at <= MAX_NOISE => {
            assert_eq!(rest.as_deref(), Some(&stream[at + MAGIC.len()..]));
            assert_eq!(scanner.noise(), &stream[..at]);
        }
        _ => assert_eq!(rest, None),
    }
});
