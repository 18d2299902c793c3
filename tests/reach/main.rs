//! Which way data takes through firewalls: two hosts that are network namespaces, a real ssh server on
//! one, packet filters on both.
//!
//! Needs root, as the namespaces do; scripts/test installs the rest.

#![allow(clippy::unwrap_used, clippy::expect_used)] // clippy.toml covers only #[test] functions, not their helpers

mod doctor;
mod hosts;
mod kills;
mod logins;
mod network;
mod nodes;
mod terminal;
mod third_party;
mod ways;
