//! What speaks HTTP: requests that are sent again when that is worth it.

pub mod client;
