//! What happens when processes die, disks fill up, journals rot and strangers knock: the program as
//! a whole, on this machine, with its agent as a child process.

#![allow(clippy::unwrap_used, clippy::expect_used)] // clippy.toml covers only #[test] functions, not their helpers

mod common;
mod foreign;
mod kills;
mod power;
mod storage;
mod verbs;
