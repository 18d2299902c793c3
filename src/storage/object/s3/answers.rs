//! What S3's answers mean.

use http::{HeaderMap, StatusCode};

use crate::storage::object::fault::{Meaning, by_status, coded, text};
use crate::storage::object::xml;
use crate::storage::remote::{Answer, Class, Fault, Thing, ThingKind, implied};

/// What a listing tells of an object.
pub fn thing_of(object: &xml::Object) -> Thing {
    Thing {
        kind: ThingKind::File,
        size: object.size,
        modified: object.modified,
        tag: (!object.tag.is_empty()).then(|| object.tag.as_bytes().into()),
        ..implied()
    }
}

/// The region that the bucket is in, if the server names it.
pub fn region_of(headers: &HeaderMap) -> Option<String> {
    let region = headers.get("x-amz-bucket-region")?.to_str().ok()?;
    Some(region.to_owned())
}

/// An error in an answer that began well.
pub fn check_late_error(body: &[u8]) -> Answer<()> {
    match xml::text_of(body, "Error/Code") {
        None => Ok(()),
        Some(code) => {
            Err(coded(MEANINGS, &code, &xml::text_of(body, "Error/Message").unwrap_or_default()))
        }
    }
}

/// Whether an answer says that an object was made: a server may say yes first and no at the end.
pub fn check_result(body: &[u8], root: &str) -> Answer<()> {
    check_late_error(body)?;
    match xml::text_of(body, &format!("{root}/ETag")) {
        Some(tag) if !tag.is_empty() => Ok(()),
        _ => {
            let text = "the server does not say that the object is there";
            Err(Fault::new(Class::Violation, text))
        }
    }
}

/// Why a request failed, by its answer.
pub fn refused(status: StatusCode, _: &HeaderMap, body: &[u8]) -> Fault {
    match xml::text_of(body, "Error/Code") {
        Some(code) => {
            let message = xml::text_of(body, "Error/Message").unwrap_or_default();
            coded(MEANINGS, &code, &message)
        }
        // An answer to HEAD has no text that could say more.
        None => by_status(status),
    }
}

pub const MEANINGS: &[Meaning] = &[
    Meaning { codes: &["NoSuchBucket"], class: Class::Credentials, text: text::NO_BUCKET },
    Meaning { codes: &["NoSuchKey"], class: Class::Missing, text: text::NO_OBJECT },
    Meaning {
        codes: &["InvalidAccessKeyId"],
        class: Class::Credentials,
        text: "the access key is not known to the server; check AWS_ACCESS_KEY_ID or --aws-profile",
    },
    Meaning {
        codes: &["SignatureDoesNotMatch"],
        class: Class::Credentials,
        text: "the secret key is not that of the access key; check AWS_SECRET_ACCESS_KEY",
    },
    Meaning {
        codes: &["ExpiredToken", "TokenRefreshRequired", "InvalidToken"],
        class: Class::Credentials,
        text: text::EXPIRED,
    },
    Meaning { codes: &["RequestTimeTooSkewed"], class: Class::Credentials, text: text::CLOCK },
    Meaning {
        codes: &["AccessDenied", "AllAccessDisabled", "Forbidden"],
        class: Class::Denied,
        text: text::DENIED,
    },
    Meaning {
        codes: &["QuotaExceeded", "InsufficientStorage", "EntityTooLargeForQuota"],
        class: Class::Full,
        text: text::FULL,
    },
    Meaning {
        codes: &["PermanentRedirect", "AuthorizationHeaderMalformed"],
        class: Class::Credentials,
        text: "the bucket is in another region; name it with --region",
    },
    Meaning {
        codes: &["PreconditionFailed", "InvalidRange"],
        class: Class::Changed,
        text: text::OTHER_VERSION,
    },
    Meaning {
        codes: &["BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"],
        class: Class::Busy,
        text: text::DAMAGED,
    },
    Meaning {
        codes: &["SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout"],
        class: Class::Busy,
        text: text::BUSY,
    },
    Meaning {
        codes: &["NotImplemented"],
        class: Class::Unsupported,
        text: "the server cannot do this",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_result_says_that_an_object_is_there() {
        let check = |body: &str| check_result(body.as_bytes(), "CopyObjectResult");
        assert_eq!(check("<CopyObjectResult><ETag>\"x\"</ETag></CopyObjectResult>"), Ok(()));
        for body in
            ["", "<CopyObjectResult/>", "<x><ETag>x</ETag></x>", "<CopyObjectResult><ETag/>"]
        {
            assert_eq!(check(body).unwrap_err().class, Class::Violation, "{body}");
        }
        let error = "<Error><Code>InternalError</Code></Error>";
        assert_eq!(check(error).unwrap_err().class, Class::Busy);
    }
}
