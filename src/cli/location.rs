//! `[user@]host:path`, `ssh://user@host:port/path`, or a path on this machine.
//!
//! As scp and rsync read it: a `/` before the first `:` means local, `./a:b` escapes, IPv6
//! addresses stand in brackets. Paths are bytes; hosts are checked here once, because ssh and the
//! commands of its configuration get them as arguments (R2).

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use super::UsageError;
use crate::engine::job::{Host, Store, WebServer};
use crate::protocol::manifest::Escaped;

/// Where something is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Location {
    Local(PathBuf),
    /// A path on another host; relative paths begin at the user's home directory.
    Remote {
        host: Host,
        path: Vec<u8>,
    },
    /// A path at a place where no fastsync runs.
    Endpoint {
        store: Store,
        path: Vec<u8>,
    },
}

impl Location {
    /// Reads what was typed.
    pub fn parse(typed: &OsStr) -> Result<Self, UsageError> {
        let bytes = typed.as_bytes();
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(refuse(bytes, "a location is not empty and has no zero bytes"));
        }
        if let Some((scheme, rest)) = split_scheme(bytes) {
            return Self::parse_url(bytes, scheme, rest);
        }
        let Some(colon) = host_end(bytes) else {
            reject_bare_address(bytes)?;
            return Ok(Self::Local(typed.into()));
        };
        let (user, name) = split_user(&bytes[..colon]);
        let host =
            Host { name: host_name(bytes, name)?, user: user_name(bytes, user)?, port: None };
        let path = &bytes[colon + 1..];
        if path.starts_with(b":") {
            return Err(refuse(
                bytes,
                "the path begins with a colon; write HOST:./:NAME for such a path, and \
                 [ADDRESS]:PATH for an IPv6 address",
            ));
        }
        Ok(Self::Remote { host, path: home_relative(bytes, path)? })
    }

    fn parse_url(typed: &[u8], scheme: &[u8], rest: &[u8]) -> Result<Self, UsageError> {
        if let Some((make, what)) = object_store(scheme) {
            // Keys are taken as they are: a percent sign is one.
            let (bucket, key) = match rest.iter().position(|byte| *byte == b'/') {
                Some(slash) => (&rest[..slash], &rest[slash + 1..]),
                None => (rest, &b""[..]),
            };
            let bucket = std::str::from_utf8(bucket).ok().filter(|it| !it.is_empty());
            let bucket = bucket.ok_or_else(|| {
                refuse(typed, &format!("there is no {what} behind {}://", Escaped(scheme)))
            })?;
            return Ok(Self::Endpoint { store: make(bucket.to_owned()), path: key.to_vec() });
        }
        if let Some((dav, secure)) = web_scheme(scheme) {
            return Self::parse_web(typed, rest, dav, secure);
        }
        let is_sftp = scheme.eq_ignore_ascii_case(b"sftp");
        if !is_sftp && !scheme.eq_ignore_ascii_case(b"ssh") {
            let scheme = Escaped(scheme);
            let text = format!(
                "{scheme}:// locations are not supported yet; write a path, [user@]host:path, \
                 ssh://user@host:port/path, sftp://user@host:port/path, s3://bucket/key, \
                 gs://bucket/key, az://container/blob, or a URL of http, https, webdav or webdavs"
            );
            return Err(UsageError::new(text));
        }
        let slash = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(slash);
        let (user, name_and_port) = split_user(authority);
        let user = user.map(|user| percent_decode(typed, user)).transpose()?;
        if user.as_deref().is_some_and(|user| user.contains(&b':')) {
            // It is not shown again.
            return Err(UsageError::new(
                "a password has no place in a URL on a command line, which everybody can read; ssh \
                 asks for it",
            ));
        }
        // Nothing behind the colon is no port, as in scp's way to write a path.
        let name_and_port = match name_and_port.strip_suffix(b":") {
            Some(name) if is_sftp => name,
            _ => name_and_port,
        };
        let (name, port) = split_port(typed, name_and_port)?;
        let host =
            Host { name: host_name(typed, name)?, user: user_name(typed, user.as_deref())?, port };
        let path = percent_decode(typed, path)?;
        let path = match path.strip_prefix(b"/~") {
            Some(rest) if rest.is_empty() || rest.starts_with(b"/") => without_slashes(rest).into(),
            Some(_) => return Err(refuse(typed, OTHER_HOME)),
            None => path,
        };
        if path.contains(&0) {
            return Err(refuse(typed, "a path has no zero bytes"));
        }
        if is_sftp {
            return Ok(Self::Endpoint { store: Store::Sftp(host), path });
        }
        Ok(Self::Remote { host, path })
    }

    /// A URL of the web. What is behind a `#` is for those who look at pages.
    fn parse_web(typed: &[u8], rest: &[u8], dav: bool, secure: bool) -> Result<Self, UsageError> {
        let rest = rest.split(|byte| *byte == b'#').next().unwrap_or_default();
        let (rest, query) = match rest.iter().position(|byte| *byte == b'?') {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        let slash = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(slash);
        let (user, name_and_port) = split_user(authority);
        let user = user.map(|user| percent_decode(typed, user)).transpose()?;
        if user.as_deref().is_some_and(|user| user.contains(&b':')) {
            // It is not shown again.
            return Err(UsageError::new(
                "a password has no place in a URL on a command line, which everybody can read; set \
                 FASTSYNC_HTTP_PASSWORD, or write it to ~/.netrc",
            ));
        }
        let (name, port) = split_port(typed, name_and_port)?;
        let host =
            Host { name: host_name(typed, name)?, user: user_name(typed, user.as_deref())?, port };
        let query = query.map(std::str::from_utf8).transpose();
        let is_in_query = |query: &&str| query.bytes().all(|byte| byte.is_ascii_graphic());
        let query = query.ok().filter(|query| query.as_ref().is_none_or(is_in_query));
        let query = query.ok_or_else(|| refuse(typed, "what is behind the ? is not encoded"))?;
        let query = query.filter(|query| !query.is_empty()).map(str::to_owned);
        let path = percent_decode(typed, without_slashes(path))?;
        if path.contains(&0) {
            return Err(refuse(typed, "a path has no zero bytes"));
        }
        let store = Store::Web(WebServer { dav, secure, host, query });
        Ok(Self::Endpoint { store, path })
    }
}

/// Whether a scheme is of WebDAV, and whether it is encrypted, if it is one of the web.
fn web_scheme(scheme: &[u8]) -> Option<(bool, bool)> {
    match &*scheme.to_ascii_lowercase() {
        b"http" => Some((false, false)),
        b"https" => Some((false, true)),
        b"webdav" | b"dav" => Some((true, false)),
        b"webdavs" | b"davs" => Some((true, true)),
        _ => None,
    }
}

/// What makes a store of a bucket's name.
type MakeStore = fn(String) -> Store;

/// The object store that a scheme means, and how buckets are called there.
fn object_store(scheme: &[u8]) -> Option<(MakeStore, &'static str)> {
    match scheme.to_ascii_lowercase().as_slice() {
        b"s3" => Some((Store::S3, "bucket")),
        b"gs" => Some((Store::Gcs, "bucket")),
        b"az" => Some((Store::Azure, "container")),
        _ => None,
    }
}

/// `SCHEME` and what follows `SCHEME://`.
fn split_scheme(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(3).position(|window| window == b"://")?;
    let in_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let valid = bytes[0].is_ascii_alphabetic() && bytes[..end].iter().all(in_scheme);
    valid.then(|| (&bytes[..end], &bytes[end + 3..]))
}

/// Where the colon is that ends the host, if there is one.
fn host_end(bytes: &[u8]) -> Option<usize> {
    let bracketed = bytes.starts_with(b"[")
        || bytes
            .windows(2)
            .position(|window| window == b"@[")
            .is_some_and(|at| !bytes[..at].iter().any(|byte| matches!(byte, b'/' | b':')));
    let before_slash = bytes.split(|byte| *byte == b'/').next()?;
    if bracketed {
        return before_slash.windows(2).position(|window| window == b"]:").map(|at| at + 1);
    }
    before_slash.iter().position(|byte| *byte == b':')
}

/// `[::1]` without a colon after it would be a local name, which nobody means.
fn reject_bare_address(bytes: &[u8]) -> Result<(), UsageError> {
    let inside = bytes.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    let inside = inside.and_then(|inside| std::str::from_utf8(inside).ok());
    if inside.is_some_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Err(refuse(bytes, "write [ADDRESS]:PATH for a host, ./[ADDRESS] for a file"));
    }
    Ok(())
}

/// Splits at the last `@`, since names of users may contain one.
fn split_user(bytes: &[u8]) -> (Option<&[u8]>, &[u8]) {
    match bytes.iter().rposition(|byte| *byte == b'@') {
        Some(at) => (Some(&bytes[..at]), &bytes[at + 1..]),
        None => (None, bytes),
    }
}

/// Splits `host:port` and `[address]:port`.
fn split_port<'a>(typed: &[u8], bytes: &'a [u8]) -> Result<(&'a [u8], Option<u16>), UsageError> {
    let after_address = bytes.iter().rposition(|byte| *byte == b']').unwrap_or(0);
    let Some(colon) = bytes[after_address..].iter().position(|byte| *byte == b':') else {
        return Ok((bytes, None));
    };
    let colon = after_address + colon;
    let digits = std::str::from_utf8(&bytes[colon + 1..]).unwrap_or_default();
    let port = digits.parse().ok().filter(|port| *port != 0 && !digits.starts_with('+'));
    let port = port.ok_or_else(|| refuse(typed, "the port is not a number from 1 to 65535"))?;
    Ok((&bytes[..colon], Some(port)))
}

/// A host without its brackets, refused where ssh or a shell could take it for something else.
fn host_name(typed: &[u8], name: &[u8]) -> Result<String, UsageError> {
    let inside = name.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    let name = inside.unwrap_or(name);
    let text = std::str::from_utf8(name).unwrap_or_default();
    if text.is_empty() {
        return Err(refuse(typed, "there is no host before the colon; write ./PATH for a file"));
    }
    if text.starts_with('-') || text.chars().any(|c| is_unsafe(c) || "\\[]@".contains(c)) {
        return Err(refuse(
            typed,
            "a host does not begin with - and has no blanks, quotes or signs of a shell",
        ));
    }
    if text.contains(':') && inside.is_none() {
        return Err(refuse(typed, "an IPv6 address stands in brackets: [ADDRESS]:PATH"));
    }
    Ok(text.into())
}

/// The user, likewise. A backslash is allowed: `DOMAIN\user`.
fn user_name(typed: &[u8], user: Option<&[u8]>) -> Result<Option<String>, UsageError> {
    let Some(user) = user else { return Ok(None) };
    let text = std::str::from_utf8(user).unwrap_or_default();
    if text.is_empty()
        || text.starts_with('-')
        || text.ends_with('\\')
        || text.chars().any(is_unsafe)
    {
        return Err(refuse(
            typed,
            "a user does not begin with - and has no blanks, quotes or signs of a shell",
        ));
    }
    Ok(Some(text.into()))
}

fn is_unsafe(c: char) -> bool {
    c.is_control() || c.is_whitespace() || "'\"`$;&<>|(){}*?!#,".contains(c)
}

/// Takes a leading `~/` away, which no remote shell will.
fn home_relative(typed: &[u8], path: &[u8]) -> Result<Vec<u8>, UsageError> {
    match path.strip_prefix(b"~") {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => Ok(without_slashes(rest).into()),
        Some(_) => Err(refuse(typed, OTHER_HOME)),
        None => Ok(path.into()),
    }
}

fn without_slashes(path: &[u8]) -> &[u8] {
    let slashes = path.iter().take_while(|byte| **byte == b'/').count();
    &path[slashes..]
}

fn percent_decode(typed: &[u8], bytes: &[u8]) -> Result<Vec<u8>, UsageError> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let digits = tail.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let wrong = || refuse(typed, "in a URL, % begins two hexadecimal digits; write %25 for it");
        out.push(byte.ok_or_else(wrong)?);
        rest = &tail[2..];
    }
    Ok(out)
}

fn refuse(typed: &[u8], why: &str) -> UsageError {
    UsageError::new(format!("{}: {why}", Escaped(&without_secrets(typed))))
}

/// What was typed, without what admits us to a server that it is the URL of: a password, and a query
/// unless it is of an object store, whose keys are taken as they are.
pub fn without_secrets(typed: &[u8]) -> Cow<'_, [u8]> {
    let Some((scheme, rest)) = split_scheme(typed).filter(|(it, _)| object_store(it).is_none())
    else {
        return typed.into();
    };
    let (rest, query) = match rest.iter().position(|byte| *byte == b'?') {
        Some(at) if web_scheme(scheme).is_some() => (&rest[..at], HIDDEN_QUERY.as_bytes()),
        _ => (rest, &b""[..]),
    };
    let slash = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(slash);
    let (user, host) = split_user(authority);
    let user = match user.map(|user| user.split(|byte| *byte == b':').collect::<Vec<_>>()) {
        Some(parts) if parts.len() > 1 => [parts[0], b":(not shown)@"].concat(),
        _ => authority[..authority.len() - host.len()].to_vec(),
    };
    [scheme, b"://", &user, host, path, query].concat().into()
}

/// What stands for the query of a URL.
pub const HIDDEN_QUERY: &str = "?(not shown)";

/// A path from this machine's current directory, spelled out: an agent that runs here may start
/// elsewhere. A trailing slash, which has a meaning, stays.
pub fn absolute(current: &std::path::Path, path: &std::path::Path) -> PathBuf {
    if path.is_absolute() {
        return path.into();
    }
    let mut bytes = current.as_os_str().as_bytes().to_vec();
    if !bytes.ends_with(b"/") {
        bytes.push(b'/');
    }
    bytes.extend_from_slice(path.as_os_str().as_bytes());
    OsString::from_vec(bytes).into()
}

const OTHER_HOME: &str = "the home directory of another user is not looked up; write its path, or \
                          ./~NAME for a file of that name";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Location, UsageError> {
        Location::parse(OsStr::from_bytes(bytes))
    }

    fn remote(name: &str, user: Option<&str>, port: Option<u16>, path: &[u8]) -> Location {
        let host = Host { name: name.into(), user: user.map(Into::into), port };
        Location::Remote { host, path: path.into() }
    }

    #[track_caller]
    fn is_remote(typed: &str, name: &str, user: Option<&str>, port: Option<u16>, path: &str) {
        assert_eq!(parse(typed.as_bytes()), Ok(remote(name, user, port, path.as_bytes())));
    }

    #[test]
    fn local_paths() {
        for typed in [
            "a",
            "/a:b",
            "./a:b",
            "../x:y/z",
            "dir/a:b",
            "a/",
            ".",
            "~x",
            "[a]",
            "[a:b].txt",
            "[a]/b:c",
            "a@[b]",
            "-rf",
            "a//b://c",
        ] {
            assert_eq!(parse(typed.as_bytes()), Ok(Location::Local(typed.into())), "{typed}");
        }
        let bytes = b"caf\xe9/\xff:x";
        assert_eq!(parse(bytes), Ok(Location::Local(OsStr::from_bytes(bytes).into())));
    }

    #[test]
    fn hosts_with_paths() {
        is_remote("h:/a", "h", None, None, "/a");
        is_remote("h:", "h", None, None, "");
        is_remote("h:a:b", "h", None, None, "a:b");
        is_remote("C:/x", "C", None, None, "/x");
        is_remote("u@h:a/b/", "h", Some("u"), None, "a/b/");
        is_remote("u@x.org@h:/", "h", Some("u@x.org"), None, "/");
        is_remote("DOM\\u@h:x", "h", Some("DOM\\u"), None, "x");
        is_remote("h:~/x", "h", None, None, "x");
        is_remote("h:~", "h", None, None, "");
        is_remote("h:./~x", "h", None, None, "./~x");
        is_remote("h:$(id) 'x'\n", "h", None, None, "$(id) 'x'\n");
        assert_eq!(parse(b"h:\xff/\xfe"), Ok(remote("h", None, None, b"\xff/\xfe")));
    }

    #[test]
    fn addresses_in_brackets() {
        is_remote("[::1]:/a:b", "::1", None, None, "/a:b");
        is_remote("u@[fe80::1%eth0]:a", "fe80::1%eth0", Some("u"), None, "a");
        is_remote("[h]:x", "h", None, None, "x");
        assert!(parse(b"[::1]").is_err());
        assert!(parse(b"::1:/x").is_err());
        assert!(parse(b"fe80::1:/x").is_err());
    }

    #[test]
    fn urls() {
        is_remote("ssh://u@h:2222/a/b", "h", Some("u"), Some(2222), "/a/b");
        is_remote("SSH://h/", "h", None, None, "/");
        is_remote("ssh://h", "h", None, None, "");
        is_remote("ssh://h/~/x", "h", None, None, "x");
        is_remote("ssh://h/~", "h", None, None, "");
        is_remote("ssh://u@[::1]:22/x", "::1", Some("u"), Some(22), "/x");
        is_remote("ssh://[::1]/x", "::1", None, None, "/x");
        is_remote("ssh://h/a%20b%25", "h", None, None, "/a b%");
        for wrong in [
            "ssh://",
            "ssh:///x",
            "ssh://h:0/x",
            "ssh://h:x/",
            "ssh://h:99999/x",
            "ssh://u:pw@h/x",
            "ssh://h/~u/x",
            "ssh://h/%zz",
            "ssh://h/%2",
            "ssh://h/%00",
            "ssh://::1/x",
            "ssh://-oProxyCommand=x/y",
            "ssh://h:+5/x",
            "ssh://u%0a@h/x",
            "ssh://h/%+1",
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_of_object_stores_are_taken_as_they_are() {
        for (scheme, store) in [
            ("s3", Store::S3("b".into())),
            ("GS", Store::Gcs("b".into())),
            ("az", Store::Azure("b".into())),
        ] {
            for (typed, path) in [("b", ""), ("b/", ""), ("b/a%20b/?x", "a%20b/?x")] {
                let wanted = Location::Endpoint { store: store.clone(), path: path.into() };
                assert_eq!(parse(format!("{scheme}://{typed}").as_bytes()), Ok(wanted));
            }
            assert!(parse(format!("{scheme}:///x").as_bytes()).is_err());
        }
    }

    #[test]
    fn other_schemes_are_for_later() {
        for typed in ["ftp://h/x", "host://x"] {
            let error = parse(typed.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("not supported yet"), "{error}");
        }
    }

    #[test]
    fn urls_of_the_web() {
        let server = |name: &str, user: Option<&str>, port, query: Option<&str>| {
            let host = Host { name: name.into(), user: user.map(Into::into), port };
            WebServer { dav: false, secure: true, host, query: query.map(Into::into) }
        };
        for (typed, store, path) in [
            ("https://h/a%20b%3f/", server("h", None, None, None), "a b?/"),
            ("HTTPS://me@[::1]:8443", server("::1", Some("me"), Some(8443), None), ""),
            ("https://h//x?a=b%20#top", server("h", None, None, Some("a=b%20")), "x"),
        ] {
            let path = path.as_bytes().to_vec();
            let location = Location::Endpoint { store: Store::Web(store), path };
            assert_eq!(parse(typed.as_bytes()), Ok(location), "{typed}");
        }
        for (typed, prefix) in
            [("webdav://h/x", "webdav://h"), ("davs://u@h:1/", "webdavs://u@h:1")]
        {
            let Ok(Location::Endpoint { store, .. }) = parse(typed.as_bytes()) else {
                panic!("{typed}")
            };
            assert_eq!(store.prefix(), prefix);
        }
        for wrong in
            ["https:///x", "https://h/%zz", "https://h:0/", "https://h/?a b", "https://h/%00"]
        {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let error = parse(b"https://me:secret@h/x").unwrap_err().to_string();
        assert!(error.contains("FASTSYNC_HTTP_PASSWORD") && !error.contains("secret"), "{error}");
    }

    /// R2, T83.
    #[test]
    fn hosts_that_ssh_or_a_shell_would_misread_are_refused() {
        for wrong in [
            "-oProxyCommand=x:/y",
            "u@-h:/y",
            "-u@h:/y",
            "a b:/y",
            "a'b:/y",
            "a\"b:/y",
            "a\nb:/y",
            "$(id):/y",
            "a`id`:/y",
            "h;id:/y",
            "u$x@h:/y",
            "u'@h:/y",
            "@h:/y",
            "u@:/y",
            ":/y",
            ":",
            "a\x1b:/y",
            "a\u{a0}b:/y",
            "[]:x",
            "",
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert!(parse(b"h\xff:/x").is_err());
        assert!(parse(b"h:~user/x").is_err());
        assert!(parse(b"a\0b").is_err());
    }

    #[test]
    fn relative_paths_keep_their_trailing_slash() {
        let current = std::path::Path::new("/w");
        assert_eq!(absolute(current, "a/".as_ref()).as_os_str(), "/w/a/");
        assert_eq!(absolute(current, ".".as_ref()).as_os_str(), "/w/.");
        assert_eq!(absolute(current, "/x".as_ref()).as_os_str(), "/x");
    }
}
