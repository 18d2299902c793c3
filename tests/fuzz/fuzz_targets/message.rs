//! SES-2, SES-3: any bytes are refused or are a message that survives another round.
#![no_main]

use fastsync::protocol::message::Message;
use fastsync::protocol::session::{End, Role, State};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::decode(bytes) else { return };
    // A failure's text grows when control characters in it are escaped, and may not fit any more.
    let Ok(encoded) = message.encode() else { return };
    assert_eq!(Message::decode(&encoded[4..]).expect("our own encoding"), message);
    for me in [End::Agent, End::Client(Role::Sender), End::Client(Role::Receiver)] {
        let _ = State::new(me).handle(&message);
    }
});
