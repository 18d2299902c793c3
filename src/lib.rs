//! fastsync moves files between hosts: striped over many connections, verified on arrival, and
//! resumable at any instant.
//!
//! # The journey of a chunk
//!
//! ```text
//!   sender                                                        receiver
//!
//!   storage   walk ──► Entry ───────── control channel ─────────► place ──► Verdict
//!                                      (ssh: engine/control)                   │
//!   engine    plan ◄───────────────────────────────────────────────────────────┘
//!               │ ByteRange
//!   storage   read, hash
//!               │ Chunk
//!   transport send ─────────────────── N data channels ─────────► receive
//!                                      (TLS: transport/channel)      │ Chunk
//!   protocol                                                      verify
//!                                                                    │ VerifiedChunk
//!   storage                                                       write
//!   engine                                                        journal, then
//!   storage                                                       commit (rename)
//! ```
//!
//! One value moves, and its type says how far it is: a [`ByteRange`](protocol::chunk::ByteRange)
//! becomes a [`Chunk`](protocol::chunk::Chunk) and, once its data matched its BLAKE3 value, a
//! [`VerifiedChunk`](protocol::chunk::VerifiedChunk); a sink takes nothing else.
//!
//! # The folders
//!
//! - [`protocol`]: what is said. Pure: no I/O, no clock, no tasks.
//! - [`storage`]: where bytes rest. [`transport`]: how bytes travel. The two never meet.
//! - [`ssh`]: a byte stream to a command on another host.
//! - [`engine`]: who does what when; the only place where storage meets transport.
//! - [`cli`]: what the user sees.
//!
//! # From a program
//!
//! The program `fastsync` is a thin layer over [`engine::run`], and other programs can do all that
//! it does. The other end is always a process: here it is the `fastsync` binary on this machine.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use fastsync::engine::job::{Job, Launch, Place, TransferConfig};
//! use fastsync::engine::{self, Watch};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), fastsync::engine::EngineError> {
//! let job = Job::push(vec!["/data/run7".into()], Place::Local("/backup/".into()))
//!     .with_config(TransferConfig { streams: 4, ..TransferConfig::default() })
//!     .with_launch(Launch { local_program: Some("/usr/bin/fastsync".into()), ..Launch::default() });
//! let (events, happened) = flume::unbounded();
//! let (_stop, stop) = tokio::sync::watch::channel(false);
//! let report = engine::run(job, Watch { progress: Arc::default(), events, stop }).await?;
//! println!("{} entries done, durable: {}", report.done, report.durable);
//! for event in happened.drain() {
//!     println!("{event:?}");
//! }
//! # Ok(())
//! # }
//! ```

pub mod cli;
pub mod engine;
pub mod protocol;
pub mod ssh;
pub mod storage;
pub mod transport;
