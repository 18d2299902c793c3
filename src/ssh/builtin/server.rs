//! The server's side of a connection, as this client sees it: who it says that it is, and what it
//! says besides.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use russh::Channel;
use russh::client::{ChannelOpenHandle, DisconnectReason, Handler, Msg, Session};
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate};

use super::error::Error;
use super::known_hosts::{KnownHosts, Names, Verdict, remember};
use super::settings::{Settings, told};
use super::terminal::{Terminal, shown};
use crate::ssh::process::Complaints;

/// What decides about a server, and hears it.
#[derive(Debug)]
pub struct Server {
    known: KnownHosts,
    names: Names,
    strictness: Strictness,
    /// Where a new key is added.
    file: Option<PathBuf>,
    /// Its names are hashed.
    is_hashed: bool,
    /// Nobody may be asked.
    is_batch: bool,
    complaints: Complaints,
    /// Why the server ended the connection, if it said so.
    pub farewell: Farewell,
}

/// What a server said when it ended the connection.
pub type Farewell = Arc<Mutex<Option<String>>>;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Strictness {
    Yes,
    Ask,
    AcceptNew,
    /// New keys are accepted without a question; changed ones are not, other than ssh has it.
    No,
}

impl Server {
    /// # Errors
    ///
    /// If a file with known hosts cannot be read, or a setting is not understood.
    pub fn new(settings: &Settings, is_batch: bool, complaints: Complaints) -> Result<Self, Error> {
        let strictness = match settings.value("stricthostkeychecking") {
            None | Some("ask") => Strictness::Ask,
            Some("yes" | "true") => Strictness::Yes,
            Some("accept-new") => Strictness::AcceptNew,
            Some("no" | "false" | "off") => Strictness::No,
            Some(other) => {
                let text = format!("StrictHostKeyChecking {other}: not understood");
                return Err(Error::Configuration(text));
            }
        };
        if let Some(file) = settings.value("revokedhostkeys").filter(|it| *it != "none") {
            let text = format!("the built-in ssh client does not know RevokedHostKeys {file}");
            return Err(Error::Configuration(text));
        }
        let (own, systems) = settings.known_hosts()?;
        let known = KnownHosts::read(&[&own[..], &systems].concat());
        let known = known.map_err(|(file, error)| {
            Error::HostKey(format!("cannot read the known hosts in {}: {error}", told(&file)))
        })?;
        let names = Names::new(&settings.host(), settings.port(), settings.value("hostkeyalias"));
        let farewell = Farewell::default();
        let file = own.into_iter().next();
        let is_hashed = settings.is_yes("hashknownhosts", false);
        Ok(Self { known, names, strictness, file, is_hashed, is_batch, complaints, farewell })
    }

    /// Which kinds of keys the server is asked for: those first that are known of it; and with a
    /// certificate, if an authority for it is known.
    pub fn algorithms(&self) -> (Vec<Algorithm>, Vec<Algorithm>) {
        let known = self.known.algorithms(&self.names);
        let is_known = |algorithm: &Algorithm| match algorithm {
            Algorithm::Rsa { .. } => known.iter().any(|it| matches!(it, Algorithm::Rsa { .. })),
            other => known.contains(other),
        };
        let all = russh::Preferred::DEFAULT.key;
        // SHA-1 is no proof of anything any more.
        let usable =
            || all.iter().filter(|it| !matches!(it, Algorithm::Rsa { hash: None })).cloned();
        let mut ordered: Vec<Algorithm> = usable().filter(is_known).collect();
        ordered.extend(usable().filter(|it| !is_known(it)));
        let has_authority = self.known.has_authority(&self.names);
        let certified = if has_authority { usable().collect() } else { Vec::new() };
        (ordered, certified)
    }

    async fn check(&self, shown: &PublicKeyOrCertificate) -> Result<(), Error> {
        let key = shown.public_key();
        let verdict = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                self.known.check(&self.names, key.key_data())
            }
            PublicKeyOrCertificate::Certificate(certificate) => {
                self.known.check_certificate(&self.names, certificate)
            }
        };
        let (name, kind) = (self.names.first(), key.algorithm());
        let fingerprint = key.fingerprint(HashAlg::Sha256);
        match verdict {
            Verdict::Known => Ok(()),
            Verdict::Unknown { others } => self.unknown(&key, &others).await,
            Verdict::Changed { place } => Err(Error::HostKey(format!(
                "The {kind} host key of {name} is not the one that is known from {place}: it is \
                 {fingerprint}. Somebody may be listening in, or the host has a new key; if its \
                 administrator confirms that, remove the line"
            ))),
            Verdict::Revoked { place } => Err(Error::HostKey(format!(
                "The {kind} host key of {name}, {fingerprint}, is revoked by {place}"
            ))),
            Verdict::Invalid { cause } => Err(Error::HostKey(format!(
                "{name} shows a certificate for its {kind} host key {fingerprint}, but {cause}"
            ))),
        }
    }

    async fn unknown(&self, key: &PublicKey, others: &[String]) -> Result<(), Error> {
        let (name, kind) = (self.names.first(), key.algorithm());
        let fingerprint = key.fingerprint(HashAlg::Sha256);
        let mut what = format!("No {kind} host key is known for {name}; it shows {fingerprint}");
        if !others.is_empty() {
            what = format!("{what}, and keys of other kinds are known from {}", others.join(", "));
        }
        let file = self.file.as_deref().map_or_else(|| "known_hosts".to_owned(), told);
        let how = format!("if that is right, add it to {file}, as `ssh-keyscan` prints it");
        let is_free = matches!(self.strictness, Strictness::AcceptNew | Strictness::No);
        if is_free && others.is_empty() {
            self.remember(key);
            return Ok(());
        }
        if self.strictness != Strictness::Ask || self.is_batch {
            return Err(Error::HostKey(format!("{what}; {how}")));
        }
        let Ok(mut terminal) = Terminal::open() else {
            return Err(Error::HostKey(format!(
                "{what}; there is no terminal to ask whether that is right; {how}"
            )));
        };
        let mut question =
            format!("{what}.\nIs that right, and do you want to connect (yes/no/fingerprint)? ");
        loop {
            let answer = terminal.ask(&question, true).await;
            let answer = answer.map_err(|error| Error::HostKey(format!("{what}; {error}")))?;
            match answer.trim() {
                text if text == "yes" || text == fingerprint.to_string() => {
                    self.remember(key);
                    return Ok(());
                }
                "no" | "" => return Err(Error::HostKey(format!("{what}; you said no"))),
                _ => "Please type `yes`, `no` or the fingerprint: ".clone_into(&mut question),
            }
        }
    }

    fn remember(&self, key: &PublicKey) {
        let Some(file) = &self.file else { return };
        // As with ssh, a file that cannot be written is no reason not to connect.
        if let Err(error) = remember(file, self.names.first(), self.is_hashed, key) {
            let text = format!("cannot add the host key to {}: {error}\n", told(file));
            self.complaints.add(text.as_bytes());
        }
    }
}

impl Handler for Server {
    type Error = Error;

    async fn auth_banner(&mut self, banner: &str, _: &mut Session) -> Result<(), Error> {
        self.complaints.add(format!("{}\n", shown(banner)).as_bytes());
        Ok(())
    }

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Error> {
        self.check(key).await.map(|()| true)
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Error>) -> Result<(), Error> {
        let text = match &reason {
            DisconnectReason::ReceivedDisconnect(said) => shown(&said.message),
            DisconnectReason::Error(error) => error.to_string(),
        };
        *self.farewell.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        match reason {
            DisconnectReason::ReceivedDisconnect(_) => Ok(()),
            DisconnectReason::Error(error) => Err(error),
        }
    }

    // Nothing that a server may open was asked for. A handle that is dropped refuses.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        Ok(())
    }
}
