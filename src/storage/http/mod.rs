//! What speaks HTTP.
//!
//! - `client`: requests that are sent again when that is worth it.
//! - `index`, `netrc`, `digest`: what there is to know about directories, passwords and digests.

pub mod client;
pub mod digest;
pub mod index;
pub mod netrc;
