//! Who we are at a web server: by a password or a token of the environment, by the user's netrc file,
//! or by headers that stand in a file. Never by the command line, which everybody can read.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::netrc;
use crate::storage::remote::{Answer, Class, Fault};

/// Where to look for what proves who we are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Login {
    /// The user of the URL.
    pub user: Option<String>,
    /// A file of headers, one a line.
    pub header_file: Option<PathBuf>,
    /// What the environment says is meant for another server.
    pub is_netrc_only: bool,
}

/// The headers that are sent to a host, and to no other.
///
/// # Errors
///
/// [`Class::Credentials`] if a file cannot be read, or there is no password for the URL's user. No
/// message has any of a secret.
pub fn headers(login: &Login, host: &str) -> Answer<HeaderMap> {
    let mut headers = match login.header_file.as_deref().filter(|_| !login.is_netrc_only) {
        Some(path) => read_headers(path)?,
        None => HeaderMap::new(),
    };
    if headers.contains_key(AUTHORIZATION) {
        return Ok(headers);
    }
    let variable = |name: &str| {
        let value = std::env::var(name).ok().filter(|it| !it.is_empty());
        value.filter(|_| !login.is_netrc_only)
    };
    let value = match (&login.user, variable(PASSWORD), variable(TOKEN)) {
        (Some(user), Some(password), _) => Some(basic(user, &password)),
        (None, _, Some(token)) => Some(format!("Bearer {token}")),
        (user, ..) => match by_netrc(host, user.as_deref())? {
            Some(found) => Some(basic(&found.login, &found.password)),
            None if user.is_some() => {
                let text = format!(
                    "there is no password for this user; set {PASSWORD}, or write it to ~/.netrc"
                );
                return Err(Fault::new(Class::Credentials, text));
            }
            None => None,
        },
    };
    if let Some(value) = value {
        let wrong = |_| Fault::new(Class::Credentials, "no header can have this password or token");
        let mut value = HeaderValue::from_str(&value).map_err(wrong)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

fn basic(user: &str, password: &str) -> String {
    let pair = format!("{user}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// What the user's netrc file says of a host.
fn by_netrc(host: &str, user: Option<&str>) -> Answer<Option<netrc::Credentials>> {
    let named = std::env::var_os("NETRC").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".netrc"));
    let Some(path) = named.or_else(home) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => netrc::look_up(&text, host, user),
        // Whoever has none has no need of it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let text = format!("{} cannot be read: {error}", path.display());
            Err(Fault::new(Class::Credentials, text))
        }
    }
}

/// Reads `Name: value` from each line.
fn read_headers(path: &Path) -> Answer<HeaderMap> {
    let wrong = |what: &str| {
        Fault::new(Class::Credentials, format!("the file of headers {} {what}", path.display()))
    };
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    let mut headers = HeaderMap::new();
    for line in text.lines().map(str::trim).filter(|it| !it.is_empty() && !it.starts_with('#')) {
        let header = line.split_once(':').and_then(|(name, value)| {
            let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        });
        let (name, mut value) = header.ok_or_else(|| wrong("has a line that is no header"))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

pub const PASSWORD: &str = "FASTSYNC_HTTP_PASSWORD";
pub const TOKEN: &str = "FASTSYNC_HTTP_TOKEN";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_a_file_are_read_and_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "# mine\nAuthorization: Bearer secret\n\nX-Key:  value \n").unwrap();
        let header_file = Some(file.path().to_owned());
        let login = Login { header_file, ..Login::default() };
        let found = headers(&login, "host").unwrap();
        assert_eq!((found["authorization"].as_bytes(), found.len()), (&b"Bearer secret"[..], 2));
        assert!(!format!("{found:?}").contains("secret"));
        std::fs::write(&file, "Authorization secret\n").unwrap();
        let error = headers(&login, "host").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
        let elsewhere = Login { is_netrc_only: true, ..login };
        assert!(headers(&elsewhere, "no-such-host.invalid").is_ok(), "not even read");
    }
}
