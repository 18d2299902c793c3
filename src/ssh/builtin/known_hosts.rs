//! The files of known hosts (sshd(8), "`SSH_KNOWN_HOSTS` FILE FORMAT"): who a server may be.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::known_hosts::HostPatterns;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};

use super::pattern::{any_matches, matches};

/// All lines of all files that were read.
#[derive(Debug, Default)]
pub struct KnownHosts {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    /// File and number, for people.
    place: String,
    marker: Marker,
    hosts: String,
    key: KeyData,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Marker {
    None,
    Authority,
    Revoked,
}

/// What is known about a server's key.
#[derive(Debug, Eq, PartialEq)]
pub enum Verdict {
    Known,
    /// Nothing, or other kinds of keys only, at the places that are told.
    Unknown {
        others: Vec<String>,
    },
    /// Another key of this kind is known, at this place.
    Changed {
        place: String,
    },
    /// The key was withdrawn, at this place.
    Revoked {
        place: String,
    },
    /// An authority signed it, but it does not hold, and why.
    Invalid {
        cause: String,
    },
}

impl KnownHosts {
    /// Reads files, of which some may not be there.
    ///
    /// # Errors
    ///
    /// If one is there and cannot be read, with its path.
    pub fn read(files: &[PathBuf]) -> Result<Self, (PathBuf, io::Error)> {
        let mut known = Self::default();
        for file in files {
            match fs::read(file) {
                Ok(text) => known.add(&String::from_utf8_lossy(&text), file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err((file.clone(), error)),
            }
        }
        Ok(known)
    }

    /// Lines that cannot be understood are passed over, as ssh does: they make nobody known.
    fn add(&mut self, text: &str, file: &Path) {
        for (number, line) in (1..).zip(text.lines()) {
            let place = || format!("{} line {number}", file.display());
            self.lines.extend(Line::parse(line, place));
        }
    }

    /// What is known about a key by which a server calls itself one of these names.
    pub fn check(&self, names: &Names, key: &KeyData) -> Verdict {
        if let Some(place) = self.revoked(names, key) {
            return Verdict::Revoked { place };
        }
        let verdict = self.check_name(names.first(), key);
        match (&verdict, names.without_port()) {
            (Verdict::Unknown { .. }, Some(name)) => match self.check_name(name, key) {
                Verdict::Known => Verdict::Known,
                _ => verdict,
            },
            _ => verdict,
        }
    }

    /// Where a key is withdrawn, under whichever name.
    fn revoked(&self, names: &Names, key: &KeyData) -> Option<String> {
        let mut lines = self.about(names.first()).chain(self.about(&names.plain));
        let is_it = |line: &&Line| line.marker == Marker::Revoked && line.key == *key;
        lines.find(is_it).map(|line| line.place.clone())
    }

    fn check_name(&self, name: &str, key: &KeyData) -> Verdict {
        let lines = || self.about(name).filter(|line| line.marker == Marker::None);
        if lines().any(|line| line.key == *key) {
            return Verdict::Known;
        }
        let algorithm = key.algorithm();
        match lines().find(|line| line.key.algorithm() == algorithm) {
            Some(line) => Verdict::Changed { place: line.place.clone() },
            None => Verdict::Unknown { others: lines().map(|line| line.place.clone()).collect() },
        }
    }

    /// What is known about a certificate. If no authority for the host signed it, its key has to be
    /// known itself.
    pub fn check_certificate(&self, names: &Names, certificate: &Certificate) -> Verdict {
        let authority = certificate.signature_key();
        for key in [authority, certificate.public_key()] {
            if let Some(place) = self.revoked(names, key) {
                return Verdict::Revoked { place };
            }
        }
        let mut authorities = self.about(names.first());
        if !authorities.any(|it| it.marker == Marker::Authority && it.key == *authority) {
            return self.check(names, certificate.public_key());
        }
        let invalid = |cause: &str| Verdict::Invalid { cause: cause.to_owned() };
        if certificate.cert_type() != CertType::Host {
            return invalid("it is no host's");
        }
        if !certificate.critical_options().is_empty() {
            return invalid("it has critical options, of which none are known");
        }
        let mut principals = certificate.valid_principals().iter();
        if !principals.any(|it| matches(&it.to_lowercase(), &names.plain)) {
            return invalid("it is for other hosts");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let fingerprint = authority.fingerprint(HashAlg::Sha256);
        match certificate.validate_at(now, [&fingerprint]) {
            Ok(()) => Verdict::Known,
            Err(_) => invalid("it is not valid now, or not signed as it says"),
        }
    }

    /// The kinds of keys that are known of a host, so that the server is asked for one of those.
    pub fn algorithms(&self, names: &Names) -> Vec<Algorithm> {
        let lines = self.about(names.first()).filter(|line| line.marker == Marker::None);
        lines.map(|line| line.key.algorithm()).collect()
    }

    pub fn has_authority(&self, names: &Names) -> bool {
        self.about(names.first()).any(|line| line.marker == Marker::Authority)
    }

    fn about(&self, name: &str) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.is_about(name))
    }
}

impl Line {
    fn parse(line: &str, place: impl FnOnce() -> String) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut hosts = words.next().filter(|word| !word.starts_with('#'))?;
        let marker = match hosts {
            "@cert-authority" => Marker::Authority,
            "@revoked" => Marker::Revoked,
            other if other.starts_with('@') => return None,
            _ => Marker::None,
        };
        if marker != Marker::None {
            hosts = words.next()?;
        }
        let (kind, key) = (words.next()?, words.next()?);
        let key = PublicKey::from_openssh(&format!("{kind} {key}")).ok()?;
        let (hosts, key) = (hosts.to_owned(), key.key_data().clone());
        Some(Self { place: place(), marker, hosts, key })
    }

    fn is_about(&self, name: &str) -> bool {
        if self.hosts.starts_with('|') {
            return is_hash_of(&self.hosts, name);
        }
        let hosts = self.hosts.to_lowercase();
        any_matches(hosts.split(','), name)
    }
}

/// Whether a hashed name is this one.
fn is_hash_of(hashed: &str, name: &str) -> bool {
    let Ok(HostPatterns::HashedName { salt, hash }) = hashed.parse() else { return false };
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    hmac::sign(&key, name.as_bytes()).as_ref() == hash
}

/// A name that nobody can read from the file.
fn hashed(name: &str) -> io::Result<String> {
    let mut salt = [0; 20];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| io::Error::other("no random numbers"))?;
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    let hash = hmac::sign(&key, name.as_bytes()).as_ref().try_into().map_err(io::Error::other)?;
    Ok(HostPatterns::HashedName { salt: salt.to_vec(), hash }.to_string())
}

/// What a server is called in the files of known hosts.
#[derive(Clone, Debug)]
pub struct Names {
    /// Without a port, in small letters.
    plain: String,
    /// With the port, if it is not the usual one.
    with_port: Option<String>,
}

impl Names {
    pub fn new(host: &str, port: u16, alias: Option<&str>) -> Self {
        let plain = alias.unwrap_or(host).to_lowercase();
        let needs_port = port != 22 && alias.is_none();
        Self { with_port: needs_port.then(|| format!("[{plain}]:{port}")), plain }
    }

    /// By which name a new key is stored.
    pub fn first(&self) -> &str {
        self.with_port.as_deref().unwrap_or(&self.plain)
    }

    fn without_port(&self) -> Option<&str> {
        self.with_port.as_ref().map(|_| &*self.plain)
    }
}

/// Adds a key to a file, which is made if it is not there.
///
/// # Errors
///
/// If it cannot be written.
pub fn remember(file: &Path, name: &str, is_hashed: bool, key: &PublicKey) -> io::Result<()> {
    let name = if is_hashed { hashed(name)? } else { name.to_owned() };
    let key = PublicKey::new(key.key_data().clone(), "");
    let key = key.to_openssh().map_err(io::Error::other)?;
    if let Some(directory) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let is_cut = fs::read(file).is_ok_and(|text| text.last().is_some_and(|last| *last != b'\n'));
    let line = format!("{}{name} {}\n", if is_cut { "\n" } else { "" }, key.trim_end());
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    file.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const B: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const C: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBGsX8/V4NYKYGrLXkrQRPYb6VCtZoQKUQCdqxTLOgPeTYEeIIIdQ4z6RNDaqSH2VXNMb4VGQh4Jzz6zPCC7gqlI=";

    fn known(text: &str) -> KnownHosts {
        let mut known = KnownHosts::default();
        known.add(text, Path::new("known"));
        known
    }

    fn key(text: &str) -> KeyData {
        PublicKey::from_openssh(text).unwrap().key_data().clone()
    }

    fn check(text: &str, host: &str, port: u16) -> Verdict {
        known(text).check(&Names::new(host, port, None), &key(A))
    }

    fn unknown() -> Verdict {
        Verdict::Unknown { others: Vec::new() }
    }

    #[test]
    fn names_patterns_ports_and_hashes_are_known() {
        for (hosts, host, port, is_known) in [
            ("h", "h", 22, true),
            ("h", "H", 22, true),
            ("other,h", "h", 22, true),
            ("hh", "h", 22, false),
            ("*.example", "a.example", 22, true),
            ("*.example,!b.example", "b.example", 22, false),
            ("[h]:2222", "h", 2222, true),
            ("[h]:2222", "h", 22, false),
            ("[*.example]:*", "a.example", 2222, true),
            // As ssh does: a key that is known without a port is known with one.
            ("h", "h", 2222, true),
            // printf h | openssl sha1 -hmac 01234567890123456789
            ("|1|MDEyMzQ1Njc4OTAxMjM0NTY3ODk=|y3nwBT8F0Ct4UdmQAkU4DyLPr5A=", "nobody", 22, false),
        ] {
            let verdict = check(&format!("{hosts} {A} comment\n"), host, port);
            assert_eq!(verdict == Verdict::Known, is_known, "{hosts} {host} {port}: {verdict:?}");
        }
        let names = Names::new("h", 2222, Some("Alias"));
        assert_eq!(names.first(), "alias");
        assert_eq!(known(&format!("alias\t{A}")).check(&names, &key(A)), Verdict::Known);
    }

    /// A line that `ssh-keygen -H` made of `host.example`.
    #[test]
    fn a_hashed_name_is_known() {
        let salt = [7; 20];
        let sign = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt),
            b"[host.example]:2222",
        );
        let hosts = HostPatterns::HashedName {
            salt: salt.to_vec(),
            hash: sign.as_ref().try_into().unwrap(),
        };
        let text = format!("{} {A}\n", hosts.to_string());
        assert!(text.starts_with("|1|BwcHBwcHBwcHBwcHBwcHBwcHBwc=|"), "{text}");
        assert_eq!(check(&text, "host.example", 2222), Verdict::Known);
        assert_eq!(check(&text, "host.example", 2223), unknown());
    }

    #[test]
    fn another_key_of_the_same_kind_has_changed() {
        let place = "known line 3".to_owned();
        assert_eq!(check(&format!("# h\n\nh {B}\n"), "h", 22), Verdict::Changed { place });
        assert_eq!(check(&format!("h {B}\nh {A}\n"), "h", 22), Verdict::Known);
        let others = vec!["known line 1".to_owned()];
        assert_eq!(check(&format!("h {C}\n"), "h", 22), Verdict::Unknown { others });
        assert_eq!(check("", "h", 22), unknown());
    }

    #[test]
    fn markers_are_obeyed() {
        let place = "known line 2".to_owned();
        let text = format!("h {A}\n@revoked * {A}\n");
        assert_eq!(check(&text, "h", 22), Verdict::Revoked { place: place.clone() });
        let text = format!("h {A}\n@revoked h {A}\n");
        assert_eq!(check(&text, "h", 2222), Verdict::Revoked { place });
        assert_eq!(check(&format!("@cert-authority h {A}\n"), "h", 22), unknown());
        assert_eq!(check(&format!("@unheard-of h {A}\n"), "h", 22), unknown());
        assert!(
            known(&format!("@cert-authority *.x {A}")).has_authority(&Names::new("a.x", 22, None))
        );
        let kinds = known(&format!("h {C}\n@cert-authority h {A}"));
        assert_eq!(kinds.algorithms(&Names::new("h", 22, None)), [key(C).algorithm()]);
    }

    #[test]
    fn what_is_remembered_is_known_and_destroys_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("new/known_hosts");
        remember(&file, "[h]:2222", true, &PublicKey::from_openssh(A).unwrap()).unwrap();
        assert!(fs::read_to_string(&file).unwrap().starts_with("|1|"));
        fs::write(&file, format!("{}x {B}", fs::read_to_string(&file).unwrap())).unwrap();
        remember(&file, "y", false, &PublicKey::from_openssh(C).unwrap()).unwrap();
        let known = KnownHosts::read(&[file, temp.path().join("missing")]).unwrap();
        for (name, port, text) in [("h", 2222, A), ("x", 22, B), ("y", 22, C)] {
            let verdict = known.check(&Names::new(name, port, None), &key(text));
            assert_eq!(verdict, Verdict::Known, "{name}");
        }
        assert!(KnownHosts::read(&[temp.path().to_owned()]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text: String, host: String, port: u16) {
            let names = Names::new(&host, port, None);
            let _ = known(&text).check(&names, &key(A));
            let _ = known(&format!("{text} {A}\n")).check(&names, &key(A));
            let _ = is_hash_of(&text, &host);
        }

        #[test]
        fn no_hash_panics(text in "\\|1?\\|?[A-Za-z0-9+/=|]{0,60}") {
            let _ = is_hash_of(&text, "h");
        }
    }
}
