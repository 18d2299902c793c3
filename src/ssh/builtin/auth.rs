//! Logging in: which methods a server wants, in which order they are tried, what a person is asked.

use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse, Prompt};
use russh::keys::{Algorithm, HashAlg};
use russh::{MethodKind, MethodSet};

use super::error::Error;
use super::keys::{Agent, Candidate, Candidates, Signer};
use super::server::{Farewell, Server};
use super::settings::Settings;
use super::terminal::Terminal;

/// A login under way.
pub struct Authentication<'a> {
    handle: &'a mut Handle<Server>,
    settings: &'a Settings,
    farewell: &'a Farewell,
    user: String,
    /// Nobody may be asked.
    is_batch: bool,
    agent: Option<Agent>,
    /// What was not tried yet, the next one last. Looked for when the server wants a key.
    candidates: Option<Vec<Candidate>>,
    /// How often each method with a prompt was tried since the last success in part.
    prompted: u64,
    over: Vec<MethodKind>,
    reasons: Vec<String>,
}

/// What a server answered: in, or with which methods to go on, and whether the last one counted.
enum Answer {
    Success,
    Failure { remaining: MethodSet, is_partial: bool },
}

impl From<AuthResult> for Answer {
    fn from(result: AuthResult) -> Self {
        match result {
            AuthResult::Success => Self::Success,
            AuthResult::Failure { remaining_methods: remaining, partial_success: is_partial } => {
                Self::Failure { remaining, is_partial }
            }
        }
    }
}

impl<'a> Authentication<'a> {
    pub fn new(
        handle: &'a mut Handle<Server>,
        settings: &'a Settings,
        farewell: &'a Farewell,
        is_batch: bool,
    ) -> Self {
        let user = settings.user();
        Self {
            handle,
            settings,
            farewell,
            user,
            is_batch: is_batch || settings.is_yes("batchmode", false),
            agent: None,
            candidates: None,
            prompted: 0,
            over: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// Logs in.
    ///
    /// # Errors
    ///
    /// If the server does not let this user in with anything that there is.
    pub async fn run(mut self) -> Result<(), Error> {
        let preferred = self.preferred();
        let mut remaining = match self.handle.authenticate_none(&self.user).await?.into() {
            Answer::Success => return Ok(()),
            Answer::Failure { remaining, .. } => remaining,
        };
        loop {
            self.check_connection()?;
            let is_next = |it: &&MethodKind| remaining.contains(it) && !self.over.contains(it);
            let Some(method) = preferred.iter().find(is_next).copied() else {
                return Err(self.denied(&remaining));
            };
            let answer = match method {
                MethodKind::PublicKey => self.with_next_key().await?,
                MethodKind::KeyboardInteractive => self.with_answers().await?,
                _ => self.with_password().await?,
            };
            match answer {
                None => self.over.push(method),
                Some(Answer::Success) => return Ok(()),
                Some(Answer::Failure { remaining: rest, is_partial }) => {
                    if is_partial {
                        self.prompted = 0;
                        self.over.clear();
                    }
                    // An empty list comes when the connection is gone.
                    self.check_connection()?;
                    remaining = rest;
                }
            }
        }
    }

    /// The methods that are known here and wanted by the user, in the user's order.
    fn preferred(&self) -> Vec<MethodKind> {
        let order = self.settings.value("preferredauthentications");
        let order = order.unwrap_or("publickey,keyboard-interactive,password");
        let setting = |method: &MethodKind| match method {
            MethodKind::PublicKey => self
                .settings
                .value("pubkeyauthentication")
                .is_none_or(|it| it != "no" && it != "false"),
            MethodKind::KeyboardInteractive => {
                !self.is_batch && self.settings.is_yes("kbdinteractiveauthentication", true)
            }
            MethodKind::Password => {
                !self.is_batch && self.settings.is_yes("passwordauthentication", true)
            }
            _ => false,
        };
        let methods = order.split(',').filter_map(|name| name.trim().parse().ok());
        methods.filter(setting).collect()
    }

    fn check_connection(&self) -> Result<(), Error> {
        if !self.handle.is_closed() {
            return Ok(());
        }
        Err(super::lost(self.settings, self.farewell))
    }

    fn denied(&mut self, remaining: &MethodSet) -> Error {
        let methods: Vec<&str> = remaining.iter().map(Into::into).collect();
        Error::Denied {
            user: std::mem::take(&mut self.user),
            host: self.settings.host(),
            methods: methods.join(","),
            reasons: std::mem::take(&mut self.reasons),
        }
    }

    async fn with_next_key(&mut self) -> Result<Option<Answer>, Error> {
        if self.candidates.is_none() {
            self.connect_agent().await?;
            let found = Candidates::find(self.settings, self.agent.as_mut()).await?;
            self.reasons.extend(found.reasons);
            self.candidates = Some(found.list.into_iter().rev().collect());
        }
        let Some(candidate) = self.candidates.as_mut().and_then(Vec::pop) else { return Ok(None) };
        let hash = match candidate.key.algorithm() {
            Algorithm::Rsa { .. } => match self.handle.best_supported_rsa_hash().await? {
                Some(Some(hash)) => Some(hash),
                None => Some(HashAlg::Sha512),
                Some(None) => {
                    let text = "the server takes RSA keys with SHA-1 only, which proves nothing";
                    self.reasons.push(text.to_owned());
                    return Box::pin(self.with_next_key()).await;
                }
            },
            _ => None,
        };
        let mut signer = Signer::new(&candidate, self.agent.as_mut(), self.is_batch);
        let (user, handle) = (&self.user, &mut *self.handle);
        let result = if let Some(certificate) = candidate.certificate.clone() {
            handle.authenticate_certificate_with(user, certificate, hash, &mut signer).await
        } else {
            let key = candidate.key.clone();
            handle.authenticate_publickey_with(user, key, hash, &mut signer).await
        };
        match result {
            Ok(result) => Ok(Some(result.into())),
            Err(Error::Configuration(reason)) => {
                self.reasons.push(reason);
                Box::pin(self.with_next_key()).await
            }
            Err(error) => Err(error),
        }
    }

    async fn connect_agent(&mut self) -> Result<(), Error> {
        let Some(path) = self.settings.agent()? else { return Ok(()) };
        match Agent::connect_uds(&path).await {
            Ok(mut agent) => {
                // For keys that are good for some hosts only; an agent without those refuses it.
                if let Some(binding) = self.handle.agent_session_binding() {
                    let _ = agent.bind_session(binding, false).await;
                }
                self.agent = Some(agent);
            }
            Err(error) => self.reasons.push(format!("no agent at {}: {error}", path.display())),
        }
        Ok(())
    }

    /// Whether one more prompt is allowed, and the terminal for it.
    fn terminal(&mut self, method: &str) -> Option<Terminal> {
        if self.prompted >= self.settings.password_prompts() {
            return None;
        }
        self.prompted += 1;
        let terminal = Terminal::open();
        if terminal.is_err() {
            self.reasons
                .push(format!("the server wants {method}, and there is no terminal to ask"));
        }
        terminal.ok()
    }

    async fn with_answers(&mut self) -> Result<Option<Answer>, Error> {
        let Some(mut terminal) = self.terminal("keyboard-interactive answers") else {
            return Ok(None);
        };
        let start = self.handle.authenticate_keyboard_interactive_start(&self.user, None);
        let mut response = start.await?;
        loop {
            let prompts = match response {
                KeyboardInteractiveAuthResponse::Success => return Ok(Some(Answer::Success)),
                KeyboardInteractiveAuthResponse::Failure {
                    remaining_methods: remaining,
                    partial_success: is_partial,
                } => return Ok(Some(Answer::Failure { remaining, is_partial })),
                KeyboardInteractiveAuthResponse::InfoRequest { name, instructions, prompts } => {
                    for text in [name, instructions].iter().filter(|text| !text.is_empty()) {
                        let text = format!("{}\n", text.trim_end());
                        terminal.write(&text).map_err(|error| no_answer(&error))?;
                    }
                    prompts
                }
            };
            let mut answers = Vec::new();
            for Prompt { prompt, echo } in prompts {
                // Jump hosts ask with the same words.
                let question = format!("({}@{}) {prompt}", self.user, self.settings.name);
                answers
                    .push(terminal.ask(&question, echo).await.map_err(|error| no_answer(&error))?);
            }
            response = self.handle.authenticate_keyboard_interactive_respond(answers).await?;
        }
    }

    async fn with_password(&mut self) -> Result<Option<Answer>, Error> {
        let Some(mut terminal) = self.terminal("a password") else { return Ok(None) };
        let question = format!("{}@{}'s password: ", self.user, self.settings.name);
        let password = terminal.ask(&question, false).await.map_err(|error| no_answer(&error))?;
        let result = self.handle.authenticate_password(&self.user, password).await?;
        Ok(Some(result.into()))
    }
}

fn no_answer(error: &std::io::Error) -> Error {
    Error::Configuration(format!("Permission denied: no answer from the terminal: {error}"))
}
