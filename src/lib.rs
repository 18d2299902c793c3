//! fastsync moves files between hosts: striped over many connections, verified on arrival,
//! resumable at any instant.
pub mod engine;
pub mod protocol;
pub mod ssh;
pub mod storage;
pub mod transport;
