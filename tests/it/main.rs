//! Runs the `fastsync` program as a user would: over real files, real sockets and a real sshd.
//!
//! One binary holds all of these tests: it links once, and shares [`support`] and [`sshd`]. Nothing
//! is skipped: where a program is missing, its tests fail and say how to get it.

#![allow(clippy::unwrap_used, clippy::expect_used)] // clippy.toml covers only #[test] functions

mod azure;
mod bootstrap;
mod builtin;
mod cli;
mod emulators;
mod far;
mod garage;
mod gcs;
mod hostile;
mod hostile_web;
mod journal;
mod local;
mod measure;
mod objects;
mod proftpd;
mod restricted;
mod resume;
mod retry;
mod s3;
mod secrets;
mod sftp;
mod ssh;
mod sshd;
mod support;
#[path = "../reach/terminal.rs"]
mod terminal;
mod third_party;
mod tools;
mod verbs;
mod web;
mod webdav;
mod webserver;
