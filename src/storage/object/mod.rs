//! Object stores.
//!
//! - `s3`: what speaks S3, `gcs`: Google Cloud Storage, `azure`: Azure Blob Storage; each as an
//!   [`Endpoint`](super::remote::Endpoint), beside its `requests` and what its `answers` mean.
//! - `upload`: objects in parts, `stages`: in too many of them; what that is at S3 is in `s3/multipart`, at
//!   Azure in `azure/blocks`. At Google's it is another matter: `gcs/parts`.
//! - `store`: what they have in common, `pages`: listings page by page. `xml`: answers of two of them. `metadata`: what is stored beside
//!   an object. `fault`: what refusals mean. `credentials`: who we are.

mod azure;
mod credentials;
mod fault;
mod gcs;
pub mod metadata;
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
