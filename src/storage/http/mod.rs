//! What speaks HTTP.
//!
//! - `client`: requests that are sent again when that is worth it.
//!   `lanes`: how many of them a server has at a time.
//! - `site`: one web server, `auth` and `netrc`: who we are there.
//! - `file`: files that are read, by ranges or, where there are none, by one `stream`; `looks`: what
//!   was asked of them a moment ago; `share`: several requests for a part that is slow to come;
//!   `digest`: what servers say that files amount to.
//! - `web`: any web server as an [`Endpoint`](super::remote::Endpoint), by its `index` pages; `feed`:
//!   files that are written from their beginning to their end.
//! - `dav`: WebDAV as an endpoint, `multistatus`: its answers, `trial`: what a server can do; `upload`:
//!   how files get there, `chunks`: by chunks in a folder, `sample`: whether what was sent is there.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod auth;
mod chunks;
pub mod client;
mod dav;
mod digest;
mod feed;
mod file;
mod index;
pub mod lanes;
mod looks;
mod multistatus;
mod netrc;
mod sample;
pub mod share;
mod site;
mod stream;
mod trial;
mod upload;
mod web;

pub use auth::Login;
pub use dav::DavEndpoint;
pub use site::{Expected, WebConfig};
pub use web::WebEndpoint;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is a single step, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
