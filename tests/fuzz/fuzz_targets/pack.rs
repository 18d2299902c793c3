//! FRAME-8, INT-4: any payload is refused, or every byte of it belongs to the table or to one file.
//!
//! The table's digest is computed here, as a hostile sender would: chance does not find it.
#![no_main]

use bytes::Bytes;
use fastsync::protocol::chunk::{Digest, MAX_PACK_MEMBERS, Pack};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    // Counts over the limit are refused at once; most inputs should get further.
    if let [_, _, second, third, ..] = &mut bytes[..] {
        *second &= 1;
        *third = 0;
    }
    let count = bytes.first_chunk().map_or(0, |count| u32::from_le_bytes(*count));
    let table = bytes.get(..Pack::table_len(count as usize)).unwrap_or(&bytes);
    let pack =
        Pack { number: 1, digest: Digest::of(table), payload: Bytes::copy_from_slice(&bytes) };
    if let Ok(pack) = pack.verify() {
        let (files, mismatched) = pack.into_parts();
        assert_eq!(files.len() + mismatched.len(), count as usize);
        assert!(count <= MAX_PACK_MEMBERS);
        let held: usize = files.iter().map(|file| file.data().len()).sum();
        let wrong: usize = mismatched.iter().map(|member| member.len as usize).sum();
        assert_eq!(Pack::table_len(count as usize) + held + wrong, bytes.len());
        assert!(files.iter().all(|file| Digest::of(file.data()) == file.member().root));
    }
});
