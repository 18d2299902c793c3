//! Files at an SFTP server.
//!
//! - `packet`: bytes to requests and answers.
//! - `session`: one connection, with many requests under way.
//! - `pool`: several connections, and the handles of files on each.
//! - `answer`: what answers mean.
//! - `check`: what the server says of files' contents without sending them.
//! - `server`: what takes several requests.
//! - `endpoint`: what an [`Endpoint`](super::remote::Endpoint) has to offer, in requests.

mod answer;
mod check;
mod endpoint;
mod packet;
mod pool;
mod server;
mod session;

pub use endpoint::SftpEndpoint;
pub use session::{Dial, Which, Wire};
