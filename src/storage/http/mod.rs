//! What speaks HTTP.
//!
//! - `client`: requests that are sent again when that is worth it.
//! - `site`: one web server, `auth` and `netrc`: who we are there.
//! - `file`: files that are read, by ranges or, where there are none, by one `stream`; `digest`: what
//!   servers say that files amount to.
//! - `web`: any web server as an [`Endpoint`](super::remote::Endpoint), by its `index` pages; `feed`:
//!   files that are written from their beginning to their end.
//! - `dav`: WebDAV as an endpoint, `multistatus`: its answers, `trial`: what a server can do.

mod auth;
pub mod client;
mod dav;
mod digest;
mod feed;
mod file;
mod index;
mod multistatus;
mod netrc;
mod site;
mod stream;
mod trial;
mod web;

pub use auth::Login;
pub use dav::DavEndpoint;
pub use site::{Expected, WebConfig};
pub use web::WebEndpoint;
