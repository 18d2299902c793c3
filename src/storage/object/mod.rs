//! Object stores.
//!
//! - `s3`: what speaks S3, as an [`Endpoint`](super::remote::Endpoint).
//! - `xml`: its answers. `metadata`: what is stored beside an object. `credentials`: who we are.

mod credentials;
mod metadata;
mod s3;
mod xml;

pub use s3::{S3Config, S3Endpoint, S3Keys};
