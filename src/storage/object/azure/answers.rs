//! What Azure's answers mean.

use http::{HeaderMap, StatusCode};

use crate::storage::object::fault::{Meaning, by_status, coded, text};
use crate::storage::object::{metadata, xml};
use crate::storage::remote::{Class, Fault, Thing, ThingKind, implied};

/// What a listing tells of a blob.
pub fn thing_of(blob: &xml::Blob) -> Thing {
    let metadata = |name: &str| {
        let found = blob.metadata.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    };
    // What stands for a directory where an account has them as things of their own.
    if metadata("hdi_isfolder") == Some("true") {
        return implied();
    }
    let tag = blob.tag.trim_matches('"');
    let mut thing = Thing {
        kind: ThingKind::File,
        size: blob.size,
        modified: metadata::http_date(&blob.modified),
        tag: (!tag.is_empty()).then(|| format!("\"{tag}\"").into_bytes().into()),
        ..implied()
    };
    metadata::AZURE.read(&mut thing, metadata);
    thing
}

/// How much of a copy is there already, in bytes.
pub fn copied(headers: &HeaderMap) -> Option<u64> {
    let progress = headers.get("x-ms-copy-progress")?.to_str().ok()?;
    progress.split_once('/')?.0.parse().ok()
}

/// Why a request failed, by its answer.
pub fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Fault {
    let code = headers.get("x-ms-error-code").and_then(|it| it.to_str().ok());
    match code.map(str::to_owned).or_else(|| xml::text_of(body, "Error/Code")) {
        Some(code) => {
            let message = xml::text_of(body, "Error/Message").unwrap_or_default();
            // Behind its first line it tells of the request, not of what is wrong.
            coded(MEANINGS, &code, message.lines().next().unwrap_or_default())
        }
        None => by_status(status),
    }
}

const MEANINGS: &[Meaning] = &[
    Meaning {
        codes: &["ContainerNotFound", "ContainerBeingDeleted"],
        class: Class::Credentials,
        text: "there is no such container; make it first, or check its name",
    },
    Meaning {
        codes: &["BlobNotFound", "ResourceNotFound"],
        class: Class::Missing,
        text: text::NO_OBJECT,
    },
    Meaning {
        codes: &["AuthenticationFailed", "InvalidAuthenticationInfo"],
        class: Class::Credentials,
        text: "the credentials are wrong or have expired; check AZURE_STORAGE_KEY or \
               AZURE_STORAGE_SAS_TOKEN, and this host's clock",
    },
    Meaning {
        codes: &["AuthorizationFailure"],
        class: Class::Credentials,
        text: "the credentials are wrong, or the account's firewall keeps this host out; check \
               AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or ask the owner",
    },
    Meaning {
        codes: &["NoAuthenticationInformation", "PublicAccessNotPermitted"],
        class: Class::Credentials,
        text: "the container is not open to everybody; leave --anonymous out",
    },
    Meaning {
        codes: &[
            "AuthorizationPermissionMismatch",
            "AuthorizationProtocolMismatch",
            "AuthorizationResourceTypeMismatch",
            "AuthorizationServiceMismatch",
            "AuthorizationSourceIPMismatch",
            "InsufficientAccountPermissions",
            "UnauthorizedBlobOverwrite",
        ],
        class: Class::Denied,
        text: text::DENIED,
    },
    Meaning {
        codes: &["AccountIsDisabled"],
        class: Class::Credentials,
        text: "the storage account is disabled; ask its owner",
    },
    Meaning {
        codes: &["ConditionNotMet", "SourceConditionNotMet", "TargetConditionNotMet"],
        class: Class::Changed,
        text: text::OTHER_VERSION,
    },
    Meaning { codes: &["Md5Mismatch"], class: Class::Busy, text: text::DAMAGED },
    Meaning {
        codes: &["ServerBusy", "InternalError", "OperationTimedOut"],
        class: Class::Busy,
        text: text::BUSY,
    },
    Meaning {
        codes: &["InvalidBlockList"],
        class: Class::Changed,
        text: "somebody else has written this blob, and the server dropped what was sent; run it again",
    },
    Meaning {
        codes: &["InvalidBlobOrBlock"],
        class: Class::Exists,
        text: "another program's unfinished upload to this name is in the way, for a week at most",
    },
    Meaning {
        codes: &["CannotVerifyCopySource"],
        class: Class::Denied,
        text: "the service may not read what was sent to it with these credentials; they need the \
               right to read",
    },
    Meaning {
        codes: &["BlobArchived"],
        class: Class::Denied,
        text: "the blob is in the archive; have it brought back first",
    },
    Meaning {
        codes: &["LeaseIdMissing", "BlobImmutableDueToPolicy", "SnapshotsPresent"],
        class: Class::Denied,
        text: "the blob is held by a lease, a policy or its snapshots",
    },
    Meaning {
        codes: &["InvalidResourceName", "OutOfRangeInput"],
        class: Class::Name,
        text: "the service does not take this name",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let body = b"<?xml version=\"1.0\"?><Error><Code>Strange</Code><Message>It is so.\nRequestId:1</Message></Error>";
        let fault = refused(StatusCode::BAD_REQUEST, &HeaderMap::new(), body);
        assert_eq!(fault.text, "the server says Strange: It is so.");
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-error-code", "AuthenticationFailed".parse().unwrap());
        let fault = refused(StatusCode::FORBIDDEN, &headers, b"");
        assert_eq!(fault.class, Class::Credentials);
        assert!(fault.text.contains("AZURE_STORAGE_KEY"), "{fault}");
    }
}
