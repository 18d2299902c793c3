//! What Google Cloud Storage answers, and what that means.

use std::collections::HashMap;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::storage::object::fault::{Meaning, broken_off, by_status, coded, text};
use crate::storage::object::metadata;
use crate::storage::object::xml::timestamp;
use crate::storage::remote::{Answer, Class, Fault, Thing, ThingKind, implied};

/// An object, as the server describes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Object {
    pub name: String,
    pub generation: String,
    /// A number, or one in a string.
    pub size: Value,
    pub crc32c: String,
    pub time_created: String,
    pub metadata: HashMap<String, Value>,
}

/// A page of a listing.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Page {
    /// What the answer is of.
    pub kind: String,
    pub items: Vec<Object>,
    pub prefixes: Vec<String>,
    pub next_page_token: Option<String>,
    pub error: Option<Value>,
}

impl Object {
    pub fn thing(&self) -> Answer<Thing> {
        let size = match &self.size {
            Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        };
        let size = size.ok_or_else(|| {
            Fault::new(Class::Violation, "the server does not tell the object's size")
        })?;
        let mut thing = Thing {
            kind: ThingKind::File,
            size,
            modified: timestamp(&self.time_created),
            tag: (!self.generation.is_empty()).then(|| self.generation.as_bytes().into()),
            ..implied()
        };
        metadata::GCS.read(&mut thing, |name| self.metadata.get(name)?.as_str());
        Ok(thing)
    }
}

/// Reads a page of a listing, and believes nothing else.
pub fn page_of(body: &[u8]) -> Answer<Page> {
    let mut page: Page = parsed(body).map_err(|_| broken_off())?;
    page.next_page_token = page.next_page_token.filter(|token| !token.is_empty());
    let says_something =
        !page.items.is_empty() || !page.prefixes.is_empty() || page.next_page_token.is_some();
    let is_listing = match page.kind.as_str() {
        "" => says_something,
        kind => kind == "storage#objects",
    };
    if is_listing && page.error.is_none() { Ok(page) } else { Err(broken_off()) }
}

pub fn parsed<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Answer<T> {
    let wrong = |_| Fault::new(Class::Violation, "the server's answer is not what it should be");
    serde_json::from_slice(body).map_err(wrong)
}

/// Why a request failed, by its answer.
pub fn refused(status: StatusCode, _: &HeaderMap, body: &[u8]) -> Fault {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let of = |path: &str| answer.pointer(path).and_then(Value::as_str);
    match of("/error/errors/0/reason") {
        Some(reason) => coded(MEANINGS, reason, of("/error/message").unwrap_or_default()),
        None => by_status(status),
    }
}

const MEANINGS: &[Meaning] = &[
    Meaning { codes: &["notFound"], class: Class::Missing, text: text::NO_OBJECT },
    Meaning {
        codes: &["authError", "expired"],
        class: Class::Credentials,
        text: "the credentials are wrong or have expired; log in again, or check \
               GOOGLE_APPLICATION_CREDENTIALS",
    },
    Meaning {
        codes: &["required"],
        class: Class::Credentials,
        text: "the bucket is not open to everybody; leave --anonymous out",
    },
    Meaning {
        codes: &["forbidden", "insufficientPermissions", "domainPolicy"],
        class: Class::Denied,
        text: text::DENIED,
    },
    Meaning {
        codes: &["accountDisabled", "userProjectAccountProblem", "projectAccountClosed"],
        class: Class::Credentials,
        text: "the project's account is closed; ask its owner",
    },
    Meaning { codes: &["quotaExceeded"], class: Class::Full, text: text::FULL },
    Meaning {
        codes: &["conditionNotMet", "notModified"],
        class: Class::Changed,
        text: text::OTHER_VERSION,
    },
    Meaning {
        codes: &["rateLimitExceeded", "userRateLimitExceeded", "backendError", "internalError"],
        class: Class::Busy,
        text: text::BUSY,
    },
    Meaning {
        codes: &["retentionPolicyNotMet", "objectUnderActiveHold"],
        class: Class::Denied,
        text: "the object is held by the bucket's retention policy",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listing_is_a_page() {
        let next = |body: &str| page_of(body.as_bytes()).map(|it| it.next_page_token);
        let kind = r#"{"kind":"storage#objects","nextPageToken":""}"#;
        assert_eq!(next(kind), Ok(None));
        assert_eq!(next(r#"{"prefixes":["a/"],"nextPageToken":"t"}"#), Ok(Some("t".to_owned())));
        let error = r#"{"kind":"storage#objects","error":{"code":500}}"#;
        for body in ["", "{}", "[]", "<html>", error, r#"{"kind":"x","prefixes":["a/"]}"#] {
            assert_eq!(next(body).unwrap_err().class, Class::Violation, "{body}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let body = br#"{"error":{"code":401,"message":"m","errors":[{"reason":"authError"}]}}"#;
        let fault = refused(StatusCode::UNAUTHORIZED, &HeaderMap::new(), body);
        assert_eq!(fault.class, Class::Credentials);
        assert!(fault.text.contains("log in again"), "{fault}");
        let fault = refused(StatusCode::PRECONDITION_FAILED, &HeaderMap::new(), b"<html>");
        assert_eq!(fault.class, Class::Changed);
    }
}
