//! SEC-3: any 44 bytes are refused or are the only spelling of a greeting.
#![no_main]

use fastsync::protocol::handshake::ChannelHello;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; ChannelHello::SIZE]| {
    if let Some(hello) = ChannelHello::decode(&bytes) {
        assert_eq!(hello.encode(), bytes);
    }
});
