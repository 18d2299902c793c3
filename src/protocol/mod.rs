//! What is said: the wire protocol, and nothing about how it travels.
//!
//! This module is pure. It opens no socket, reads no file and asks for no time: bytes and messages
//! go in, bytes and decisions come out. Everything in it can be tested on one thread.
//!
//! # Reading order
//!
//! 1. [`chunk`]: what is moved, and how data becomes verified data.
//! 2. [`sparse`]: a chunk with holes in it.
//! 3. [`buffer`]: the page-aligned memory that chunks live in.
//! 4. [`tree`]: how the chunks' values merge, in any order, into the file's BLAKE3 root.
//! 5. [`manifest`]: names that cannot leave their directory, times, the digest of a whole transfer.
//! 6. [`frame`]: data channels: the fixed header in front of every chunk.
//! 7. [`message`]: the control channel's messages; the only file that knows a serializer.
//! 8. [`session`]: which message may come when.
//! 9. [`handshake`]: the magic, the transcript, and how a data channel proves whose it is.
//! 10. [`bootstrap`]: how an agent that is not there is brought along.
//! 11. [`tunnel`]: what travels between messages where data has no way of its own.
//! 12. [`measure`]: requests and answers of a session that measures.
//! 13. [`third_party`]: what a client is told while one agent sends to another.
//!
//! The specification is in `protocol-spec/`. Where this code and the specification disagree, the
//! code is wrong.

pub mod bootstrap;
pub mod buffer;
pub mod chunk;
pub mod frame;
pub mod handshake;
pub mod manifest;
pub mod measure;
pub mod message;
#[cfg(test)]
mod message_tests;
pub mod session;
pub mod sparse;
pub mod third_party;
pub mod tree;
pub mod tunnel;
