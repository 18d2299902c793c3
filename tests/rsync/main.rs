//! Runs the same copy with rsync and with `fastsync`, from the same files to the same files, and
//! compares everything that either leaves behind.
//!
//! rsync says what is right: a test builds two alike places ([`scene::Scene`]), lets each program
//! work in one of them, and [`compare`] lists what differs, byte by byte and attribute by attribute.
//! Devices, owners and `trusted.*` attributes need root.

#![allow(clippy::unwrap_used, clippy::expect_used)] // clippy.toml covers only #[test] functions

mod attributes;
mod backups;
mod choosing;
mod compare;
mod deleting;
mod everything;
mod filters;
mod itemize;
mod links;
mod paths;
mod scene;
#[allow(dead_code)] // most of it serves tests/it
#[path = "../it/support.rs"]
mod support;
mod types;
