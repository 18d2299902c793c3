//! FRAME-1, FRAME-2: any 64 bytes are refused or are the only spelling of a header, and a range
//! that was accepted can be hashed.
#![no_main]

use bytes::Bytes;
use fastsync::protocol::chunk::{Chunk, ChunkData};
use fastsync::protocol::frame::{Body, Header, MAX_PACK_LEN};
use libfuzzer_sys::fuzz_target;

/// Longer chunks are not hashed here: they take time and teach nothing new.
const HASHED: usize = 256 << 10;

fuzz_target!(|bytes: [u8; Header::SIZE]| {
    let Ok(header) = Header::decode(&bytes) else { return };
    assert_eq!(header.encode(), bytes);
    let len = header.payload_len();
    assert!(len <= MAX_PACK_LEN as usize);
    if let Body::Chunk { range, version, digest, .. } = header.body
        && range.len() as usize <= HASHED
    {
        let data = ChunkData::Bytes(Bytes::from(vec![0; range.len() as usize]));
        let plain = Chunk::received(range, version, digest, data).verify();
        let hole = Chunk::received(range, version, digest, ChunkData::Hole).verify();
        assert_eq!(plain.is_ok(), hole.is_ok());
        assert!(Chunk::hole(range, version).verify().is_ok());
    }
});
