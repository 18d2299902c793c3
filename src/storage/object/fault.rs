//! What the refusals of object stores mean, and what to do about them.

use http::StatusCode;

use crate::protocol::manifest::Escaped;
use crate::storage::remote::{Class, Fault};

/// Codes of a server's that mean the same.
#[derive(Debug)]
pub struct Meaning {
    pub codes: &'static [&'static str],
    pub class: Class,
    /// What it is and, where there is something to do about it, what.
    pub text: &'static str,
}

/// What a code means. One that is not known is told with the server's own words.
pub fn coded(meanings: &[Meaning], code: &str, message: &str) -> Fault {
    if let Some(meaning) = meanings.iter().find(|it| it.codes.contains(&code)) {
        return Fault::new(meaning.class, format!("{} ({code})", meaning.text));
    }
    let (code, message) = (Escaped(code.as_bytes()), Escaped(message.trim().as_bytes()));
    Fault::new(Class::Other, format!("the server says {code}: {message}"))
}

/// What an answer without a code means.
pub fn by_status(status: StatusCode) -> Fault {
    let class = match status.as_u16() {
        401 => Class::Credentials,
        403 => Class::Denied,
        404 => Class::Missing,
        // There is no such precondition, or no such range, any more.
        412 | 416 => Class::Changed,
        429 | 500..=599 => Class::Busy,
        _ => Class::Other,
    };
    Fault::new(class, format!("the server says {status}"))
}

/// A listing that has an end where it should go on, or none at all.
pub fn broken_off() -> Fault {
    Fault::new(Class::Violation, "the server breaks its listing off")
}

/// What every store says in codes of its own.
pub mod text {
    pub const NO_BUCKET: &str = "there is no such bucket; make it first, or check its name";
    pub const NO_OBJECT: &str = "there is no such object";
    pub const DENIED: &str =
        "these credentials do not allow it, or the secret key is wrong; ask the owner";
    pub const EXPIRED: &str = "the credentials have expired; log in again";
    pub const OTHER_VERSION: &str = "it is another version by now";
    pub const DAMAGED: &str = "the data was damaged on its way";
    pub const BUSY: &str = "the server has too much to do";
    pub const FULL: &str = "the quota is used up; make room or have it raised";
    pub const CLOCK: &str = "this host's clock is wrong; set it, with NTP for example";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_is_told_as_it_is() {
        let known = Meaning { codes: &["A", "B"], class: Class::Full, text: "it is full" };
        let fault = coded(&[known], "B", "whatever");
        assert_eq!(fault, Fault::new(Class::Full, "it is full (B)"));
        let fault = coded(&[], "C", "so\nwhat ");
        assert_eq!(fault, Fault::new(Class::Other, "the server says C: so\\nwhat"));
    }
}
