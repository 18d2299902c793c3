//! SES-2, SES-3: any bytes are refused or are a message that survives another round.
#![no_main]

use fastsync::protocol::message::Message;
use fastsync::protocol::session::{End, Role, State};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::decode(bytes) else { return };
    let encoded = message.encode().expect("what decodes is no longer when encoded again");
    assert!(encoded.len() - 4 <= bytes.len(), "the shortest spelling is the longest");
    assert_eq!(Message::decode(&encoded[4..]).expect("our own encoding"), message);
    for me in [End::Agent, End::Client(Role::Sender), End::Client(Role::Receiver)] {
        let _ = State::new(me).handle(&message);
    }
});
