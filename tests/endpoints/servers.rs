//! The servers that [`super::served`] are on, as the tests of the program start them.

#![allow(dead_code, clippy::expect_used)] // they do more for the tests of the program

#[path = "../it/emulators.rs"]
pub mod emulators;
#[path = "../it/garage.rs"]
pub mod garage;
#[path = "../it/proftpd.rs"]
pub mod proftpd;
#[path = "../it/sshd.rs"]
pub mod sshd;
#[path = "../it/support.rs"]
pub mod support;
#[path = "../it/tools.rs"]
pub mod tools;
#[path = "../it/webserver.rs"]
pub mod webserver;
