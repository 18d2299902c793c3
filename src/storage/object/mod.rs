//! Object stores.
//!
//! - `s3`: what speaks S3, `gcs`: Google Cloud Storage, `azure`: Azure Blob Storage; each as an
//!   [`Endpoint`](super::remote::Endpoint).
//! - `upload`: objects in parts, `stages`: in too many of them; `multipart`: the requests for that at S3,
//!   `blocks`: at Azure.
//! - `store`: what they have in common, `pages`: listings page by page. `xml`: answers of two of them. `metadata`: what is stored beside
//!   an object. `fault`: what refusals mean. `credentials`: who we are.

mod azure;
mod blocks;
mod credentials;
mod fault;
mod gcs;
pub mod metadata;
mod multipart;
mod pages;
mod s3;
mod stages;
mod store;
mod upload;
pub mod xml;

pub use azure::{AzureConfig, AzureEndpoint};
pub use credentials::AzureKeys;
pub use gcs::{GcsConfig, GcsEndpoint};
pub use s3::{S3Config, S3Endpoint, S3Keys};
