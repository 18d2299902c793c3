//! What the answers to HEAD have told, kept for a moment, so that nobody asks twice.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::digest::{Claim, claim_of};
use super::lock;
use super::site::Reply;
use crate::storage::remote::{Key, Thing};

/// What an answer to HEAD tells of a file, beside what a [`Thing`] has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Look {
    /// Where the server has sent us on to.
    pub url: String,
    pub strong_tag: Option<String>,
    pub claim: Option<Claim>,
}

impl Look {
    pub fn of(reply: &Reply) -> Self {
        let strong_tag = reply.header("etag").filter(|tag| !tag.starts_with("W/"));
        Self {
            url: reply.url.to_string(),
            strong_tag: strong_tag.map(ToOwned::to_owned),
            claim: claim_of(reply.response.headers(), true),
        }
    }

    fn len(&self) -> usize {
        self.url.len() + self.strong_tag.as_ref().map_or(0, String::len)
    }
}

/// Files that were looked at a moment ago.
#[derive(Debug, Default)]
pub struct Looks(Mutex<VecDeque<Looked>>);

#[derive(Debug)]
struct Looked {
    key: Key,
    thing: Thing,
    look: Look,
    at: Instant,
}

impl Looks {
    pub fn add(&self, key: &Key, thing: &Thing, look: Look) {
        if look.len() > MAX_LEN {
            return;
        }
        let mut looks = lock(&self.0);
        if looks.len() >= MAX_LOOKS {
            looks.pop_front();
        }
        looks.push_back(Looked {
            key: key.clone(),
            thing: thing.clone(),
            look,
            at: Instant::now(),
        });
    }

    /// Takes what is known of this version, if it was looked at a moment ago.
    pub fn take(&self, key: &Key, thing: &Thing) -> Option<Look> {
        let mut looks = lock(&self.0);
        let at = looks.iter().rposition(|it| it.key == *key)?;
        let looked = looks.remove(at)?;
        (looked.thing == *thing && looked.at.elapsed() < MOMENT).then_some(looked.look)
    }
}

/// How long what was seen holds.
const MOMENT: Duration = Duration::from_secs(5);

/// How many files are remembered at the most.
const MAX_LOOKS: usize = 1024;

/// How long a URL and a tag may be together, in bytes.
const MAX_LEN: usize = 8 << 10;
