//! FRAME-10: any payload is refused, or its parts are exactly the chunk that its table speaks of.
//!
//! The table's digest is computed here, as a hostile sender would: chance does not find it.
#![no_main]

use bytes::Bytes;
use fastsync::protocol::chunk::Digest;
use fastsync::protocol::sparse::{Part, Sparse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    // Counts over the limit are refused at once, and few numbers are multiples of a block: most
    // inputs should get further.
    if let Some(count) = bytes.get_mut(4..8) {
        count[0] &= 7;
        count[1..].fill(0);
    }
    for word in bytes.iter_mut().skip(40).take(56).step_by(4) {
        *word = 0;
    }
    let count = bytes.get(4).copied().unwrap_or_default();
    let table = bytes.get(..Sparse::table_len(count.into())).unwrap_or(&bytes);
    let claimed = Digest::of(table);
    let Ok(sparse) = Sparse::parse(Bytes::copy_from_slice(&bytes), claimed) else { return };
    let (mut all, mut data) = (0, Vec::new());
    for part in sparse.parts() {
        all += part.len();
        if let Part::Data(part) = part {
            data.extend_from_slice(part);
        }
    }
    assert_eq!(all, u64::from(sparse.len()));
    assert_eq!([sparse.table(), &data].concat(), bytes);
});
