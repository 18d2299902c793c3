//! Keys that a server may be shown: those in files, and those that an agent keeps.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode as _;
use russh::keys::{Algorithm, Certificate, HashAlg, PrivateKey, PublicKey, decode_secret_key};
use tokio::net::UnixStream;

use super::error::Error;
use super::settings::{Settings, told};
use super::terminal::Terminal;

/// A connection to the agent.
pub type Agent = AgentClient<UnixStream>;

/// Something to log in with.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub key: PublicKey,
    pub certificate: Option<Certificate>,
    keeper: Keeper,
}

/// Who signs.
#[derive(Clone, Debug)]
enum Keeper {
    Agent(Box<AgentIdentity>),
    /// The key may be encrypted.
    File(PathBuf, Box<PrivateKey>),
}

/// What there is to log in with, in the order in which it is tried: keys of files that the agent
/// keeps too, other keys of the agent, keys of files.
#[derive(Debug, Default)]
pub struct Candidates {
    pub list: Vec<Candidate>,
    /// Why something is not among them.
    pub reasons: Vec<String>,
}

/// A key file, as far as it can be read without a passphrase.
struct KeyFile {
    path: PathBuf,
    public: PublicKey,
    private: Option<PrivateKey>,
}

impl Candidates {
    pub async fn find(settings: &Settings, agent: Option<&mut Agent>) -> Result<Self, Error> {
        let mut found = Self::default();
        let mut kept = Vec::new();
        if let Some(agent) = agent {
            match agent.request_identities().await {
                Ok(identities) => kept = identities,
                Err(error) => {
                    found.reasons.push(format!("the agent does not tell its keys: {error}"));
                }
            }
        }
        let (paths, are_named) = settings.identities()?;
        let mut files = Vec::new();
        for path in paths {
            match KeyFile::read(&path) {
                Ok(file) => files.extend(file),
                Err(reason) if are_named => found.reasons.push(reason),
                Err(_) => {}
            }
        }
        let certificates = certificates(settings, &files)?;
        let of_agent = |key: &PublicKey| {
            kept.iter().find(|it| {
                matches!(it, AgentIdentity::PublicKey { .. })
                    && it.public_key().key_data() == key.key_data()
            })
        };
        let mut of_files = Vec::new();
        for file in files {
            let keeper = match (of_agent(&file.public), file.private) {
                (Some(identity), _) => Keeper::Agent(Box::new(identity.clone())),
                (None, Some(private)) if matches!(private.algorithm(), Algorithm::Rsa { .. }) => {
                    let text = "is an RSA key, which is used through ssh-agent only: ssh-add";
                    found.reasons.push(format!("{0} {text} {0}", told(&file.path)));
                    continue;
                }
                (None, Some(private)) => Keeper::File(file.path, Box::new(private)),
                (None, None) => continue,
            };
            let list = match keeper {
                Keeper::Agent(_) => &mut found.list,
                Keeper::File(..) => &mut of_files,
            };
            let is_its = |it: &&Certificate| it.public_key() == file.public.key_data();
            let its = certificates.iter().filter(is_its).cloned().map(Some);
            for certificate in its.chain([None]) {
                let (key, keeper) = (file.public.clone(), keeper.clone());
                list.push(Candidate { key, certificate, keeper });
            }
        }
        if !settings.is_yes("identitiesonly", false) {
            for identity in kept {
                found.add_kept(identity);
            }
        }
        found.list.extend(of_files);
        Ok(found)
    }

    fn add_kept(&mut self, identity: AgentIdentity) {
        let key = identity.public_key().into_owned();
        let certificate = match &identity {
            AgentIdentity::Certificate { certificate, .. } => Some(certificate.clone()),
            AgentIdentity::PublicKey { .. } => None,
        };
        let is_usable = !matches!(key.algorithm(), Algorithm::Dsa | Algorithm::Other(_));
        let is_new = !self
            .list
            .iter()
            .any(|it| it.key.key_data() == key.key_data() && it.certificate == certificate);
        if is_usable && is_new {
            self.list.push(Candidate {
                key,
                certificate,
                keeper: Keeper::Agent(Box::new(identity)),
            });
        }
    }
}

impl KeyFile {
    /// `None` if there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, String> {
        let cannot = |cause: &dyn std::fmt::Display| format!("{}: {cause}", told(path));
        let public = || {
            let path = beside(path, ".pub");
            PublicKey::read_openssh_file(path).ok()
        };
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let found =
                    public().map(|public| Self { path: path.to_owned(), public, private: None });
                return Ok(found);
            }
            other => other.map_err(|error| cannot(&error))?,
        };
        if metadata.len() > MAX_KEY_LEN {
            return Err(cannot(&"it is too large for a key"));
        }
        let text = fs::read_to_string(path).map_err(|error| cannot(&error))?;
        if let Ok(public) = PublicKey::from_openssh(&text) {
            // The public half names a key of the agent.
            return Ok(Some(Self { path: path.to_owned(), public, private: None }));
        }
        let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
        if is_own && metadata.mode() & 0o077 != 0 {
            return Err(cannot(&"others may read this key; chmod 600 makes it usable"));
        }
        let private = PrivateKey::from_openssh(&text).or_else(|_| decode_secret_key(&text, None));
        let private = private.map_err(|error| match error {
            russh::keys::Error::KeyIsEncrypted => {
                cannot(&"it is encrypted in an old format; ssh-keygen -p renews it")
            }
            error => cannot(&error),
        })?;
        let public = PublicKey::new(private.public_key().key_data().clone(), "");
        Ok(Some(Self { path: path.to_owned(), public, private: Some(private) }))
    }
}

/// The certificates that lie beside the keys, and those that are named.
fn certificates(settings: &Settings, files: &[KeyFile]) -> Result<Vec<Certificate>, Error> {
    let named = settings.files("certificatefile")?;
    let beside = files.iter().map(|file| beside(&file.path, "-cert.pub"));
    let read = |path: PathBuf| Certificate::from_openssh(&fs::read_to_string(path).ok()?).ok();
    Ok(named.into_iter().chain(beside).filter_map(read).collect())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What signs for a candidate, once a server accepts it: only then a passphrase is asked for.
pub struct Signer<'a> {
    candidate: &'a Candidate,
    agent: Option<&'a mut Agent>,
    is_batch: bool,
}

impl<'a> Signer<'a> {
    pub fn new(candidate: &'a Candidate, agent: Option<&'a mut Agent>, is_batch: bool) -> Self {
        Self { candidate, agent, is_batch }
    }

    async fn sign(&mut self, hash: Option<HashAlg>, data: Vec<u8>) -> Result<Vec<u8>, Error> {
        let refused = |cause: String| Error::Configuration(cause);
        match (&self.candidate.keeper, &mut self.agent) {
            (Keeper::Agent(identity), Some(agent)) => {
                let signed = agent.sign_request(identity, hash, data).await;
                signed.map_err(|error| refused(format!("the agent does not sign: {error}")))
            }
            (Keeper::Agent(_), None) => Err(refused("there is no agent".to_owned())),
            (Keeper::File(path, key), _) => {
                let opened;
                let key = if key.is_encrypted() {
                    opened = unlock(path, key, self.is_batch).await?;
                    &opened
                } else {
                    &**key
                };
                signed(key, data).map_err(|cause| refused(format!("{}: {cause}", told(path))))
            }
        }
    }
}

impl russh::Signer for Signer<'_> {
    type Error = Error;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        hash: Option<HashAlg>,
        data: Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        self.sign(hash, data).await
    }
}

/// What was to be signed with its signature behind it (RFC 4252, section 7).
fn signed(key: &PrivateKey, mut data: Vec<u8>) -> Result<Vec<u8>, String> {
    let signature = key.try_sign(&data).map_err(|error| error.to_string())?;
    let mut encoded = Vec::new();
    signature.encode(&mut encoded).map_err(|error| error.to_string())?;
    encoded.encode(&mut data).map_err(|error| error.to_string())?;
    Ok(data)
}

async fn unlock(path: &Path, key: &PrivateKey, is_batch: bool) -> Result<PrivateKey, Error> {
    let refused = |cause: &str| Error::Configuration(format!("{}: {cause}", told(path)));
    if is_batch {
        return Err(refused("it has a passphrase, and nobody may be asked for it"));
    }
    let mut terminal = Terminal::open().map_err(|_| {
        refused("it has a passphrase, and there is no terminal to ask for it; use ssh-agent")
    })?;
    let question = format!("Enter passphrase for key '{}': ", told(path));
    for _ in 0..TRIES {
        let passphrase = terminal.ask(&question, false).await;
        let passphrase = passphrase.map_err(|error| refused(&error.to_string()))?;
        if passphrase.is_empty() {
            break;
        }
        // Its key derivation is slow on purpose.
        let locked = key.clone();
        let opened = tokio::task::spawn_blocking(move || locked.decrypt(passphrase)).await;
        if let Ok(Ok(opened)) = opened {
            return Ok(opened);
        }
    }
    Err(refused("no passphrase that opens it"))
}

/// How often a person may mistype a passphrase, as in ssh.
const TRIES: u32 = 3;

/// How long a file with a key may be, in bytes.
const MAX_KEY_LEN: u64 = 1 << 20;
