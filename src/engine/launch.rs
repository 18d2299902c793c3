//! From a host's name to an agent that has introduced itself: logs in, looks for the agent's
//! program, brings it along if it is missing, and finds the agent's greeting. All in one login,
//! unless the login shell runs no `sh`.
//!
//! Rules: `protocol-spec/10-bootstrap.md`, SES-1.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::EngineError;
use super::client::AGENT_PATIENCE;
use super::control::{ControlError, Greeting, Inbox, Pulse};
use super::event::{Event, Installed};
use super::job::{Bootstrap, Host, Launch, Ssh};
use super::program::Executable;
use super::session::{Observer, SessionError};
use crate::protocol::bootstrap::{Program, Said, is_not_found, is_not_runnable};
use crate::protocol::handshake::{VERSIONS, common_version};
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Failure, FailureCode, Hello, Message};
use crate::protocol::session::End;
use crate::ssh::{self, Client, Input, Login, Output, Process, Resolved, Started};

/// What it takes to start an agent.
#[derive(Debug)]
pub struct Launcher<'a> {
    pub launch: &'a Launch,
    /// This machine if `None`.
    pub host: Option<&'a Host>,
    pub me: End,
    pub observer: &'a Observer,
}

/// An agent that has introduced itself.
#[derive(Debug)]
pub struct Launched {
    pub process: Process,
    pub stdin: Input,
    pub inbox: Inbox<Output>,
    pub greeting: AgentGreeting,
    /// How to log in once more.
    pub further: Option<Further>,
}

/// A further login to a host.
#[derive(Clone, Debug)]
pub struct Further {
    pub login: Login,
    /// What the login shell is to run.
    pub command: String,
    /// What ssh's configuration makes of the host's name, where that means something here.
    pub resolved: Option<Resolved>,
}

/// An agent's Hello, and its bytes as they travelled.
#[derive(Debug)]
pub struct AgentGreeting {
    pub hello: Hello,
    pub encoded: Vec<u8>,
}

/// Why there is no agent after an attempt.
#[derive(Debug)]
struct NoAgent {
    error: EngineError,
    /// The login shell did not even find `sh`.
    is_without_shell: bool,
}

/// Why an agent did not greet.
#[derive(Debug)]
enum Silence {
    Session(SessionError),
    /// It could not be started, and why.
    NotStartable(String),
}

impl From<ControlError> for Silence {
    fn from(error: ControlError) -> Self {
        Self::Session(error.into())
    }
}

impl Launcher<'_> {
    /// Starts an agent, wherever its program comes from.
    pub async fn launch(&self) -> Result<Launched, EngineError> {
        let executable = self.executable().await?;
        let first = match self.attempt(executable.as_ref()).await {
            Ok(launched) => return Ok(launched),
            Err(first) => first,
        };
        if executable.is_none() || !first.is_without_shell {
            return Err(first.error);
        }
        // A restricted shell may still run what its owner has put into its search path.
        self.attempt(None).await.map_err(|NoAgent { error, .. }| match error {
            EngineError::AgentNotStartable { host, cause } => {
                let more = "its login shell does not run `sh` either, with which fastsync would be \
                            brought along";
                EngineError::AgentNotStartable { host, cause: format!("{cause}; {more}") }
            }
            error => error,
        })
    }

    /// What may be brought along, if anything.
    async fn executable(&self) -> Result<Option<Executable>, EngineError> {
        let launch = self.launch;
        let is_wanted = self.host.is_some() && launch.agent_path.is_none();
        if !is_wanted || launch.bootstrap == Bootstrap::Forbidden {
            return Ok(None);
        }
        let opened = Executable::open(launch.agent_binary.as_deref()).await;
        match (opened, &launch.agent_binary) {
            (Ok(executable), _) => Ok(Some(executable)),
            (Err(error), Some(path)) => {
                let path = Escaped(path.as_os_str().as_encoded_bytes());
                let text = format!("cannot take {path} for the agent (--agent-binary): {error}");
                Err(EngineError::Usage(text))
            }
            // Without /proc it cannot be brought along; it may be there.
            (Err(_), None) => Ok(None),
        }
    }

    /// Logs in once.
    async fn attempt(&self, executable: Option<&Executable>) -> Result<Launched, NoAgent> {
        let certain = |error| NoAgent { error, is_without_shell: false };
        let host = self.host_name();
        let program = executable.map(|executable| &executable.program);
        let (mut process, login) = self.start(program).map_err(certain)?;
        let streams = process.take_streams().ok_or("its input and output could not be connected");
        let (mut stdin, stdout) = streams.map_err(|cause| certain(not_startable(&host, cause)))?;
        let mut inbox = Inbox::new(stdout, self.me, LOGIN_PATIENCE, Pulse::new());
        let resolved = async {
            match &login {
                Some(login) => login.resolved_host().await,
                None => None,
            }
        };
        let greeting = async {
            let greeting = self.greeting(&mut inbox, &mut stdin, executable);
            let (greeting, resolved) = tokio::join!(greeting, resolved);
            greeting.map(|greeting| (greeting, resolved))
        };
        let greeting = tokio::select! {
            greeting = greeting => greeting,
            () = self.observer.asked_to_stop() => {
                Err(Silence::Session(SessionError::interrupted()))
            }
        };
        let silence = match greeting {
            Ok((greeting, resolved)) => {
                let further = match program {
                    Some(program) => program.further_command(),
                    None => format!("{} --join", self.agent_command()),
                };
                let further = login.map(|login| Further { login, command: further, resolved });
                return Ok(Launched { process, stdin, inbox, greeting, further });
            }
            Err(silence) => silence,
        };
        drop((stdin, inbox));
        let status = process.wait(AGENT_PATIENCE).await;
        let (exit, complaints) = (status.and_then(|it| it.code()), process.complaints());
        Err(match silence {
            Silence::NotStartable(cause) => {
                certain(not_startable(&host, format!("{cause}{}", in_brackets(&complaints))))
            }
            Silence::Session(error) => NoAgent {
                is_without_shell: is_without_shell(&error, exit, &complaints),
                error: explain(&host, &error, exit, &complaints),
            },
        })
    }

    /// What starts an agent that is there.
    fn agent_command(&self) -> String {
        let agent = self.launch.agent_path.as_deref().unwrap_or("fastsync");
        format!("{} agent", ssh::quote(agent))
    }

    fn start(&self, program: Option<&Program>) -> Result<(Process, Option<Login>), EngineError> {
        let launch = self.launch;
        let not_startable = |cause: String| not_startable(&self.host_name(), cause);
        let Some(host) = self.host else {
            let program = match &launch.local_program {
                Some(program) => program.clone(),
                None => std::env::current_exe().map_err(|it| not_startable(it.to_string()))?,
            };
            let process = ssh::start_locally(program.as_os_str(), &["agent"]);
            return Ok((process.map_err(|it| not_startable(it.to_string()))?, None));
        };
        let login = self.login(host);
        let command = program.map_or_else(|| self.agent_command(), Program::remote_command);
        let process = login.start(Started::Command(&command)).map_err(|cause| {
            let Client::Program(program) = &login.client else {
                return not_startable(cause.to_string());
            };
            let program = Escaped(program.as_encoded_bytes());
            not_startable(format!("cannot run {program}: {cause}"))
        })?;
        Ok((process, Some(login)))
    }

    fn login(&self, host: &Host) -> Login {
        login(self.launch, host, self.observer)
    }

    /// What ssh's configuration makes of the host's name, where that means something here.
    pub async fn resolved_host(&self) -> Option<Resolved> {
        self.login(self.host?).resolved_host().await
    }

    /// Waits for an agent's greeting, and does what the other host needs for one.
    async fn greeting(
        &self,
        inbox: &mut Inbox<Output>,
        stdin: &mut Input,
        executable: Option<&Executable>,
    ) -> Result<AgentGreeting, Silence> {
        // What is not heard by a peer that has gone is no error here: the reading tells.
        let mut stored = Stored::default();
        let mut outdated = None;
        let mut was_asked = false;
        let mut greeting = inbox.find_greeting().await?;
        loop {
            let said = match (greeting, executable) {
                (Greeting::Magic { noise }, _) => {
                    self.tell_noise(&noise);
                    let agent = agent_greeting(inbox).await?;
                    let Err(error) = check_version(&agent.hello) else {
                        self.tell_stored(stored, &agent.hello);
                        return Ok(agent);
                    };
                    let abort = error.to_tell().and_then(|it| Message::Abort(it).encode().ok());
                    let _ = stdin.write_all(&abort.unwrap_or_default()).await;
                    if executable.is_none() || outdated.is_some() {
                        return Err(Silence::Session(error));
                    }
                    // If a script has started it, and not a rule of the host, it goes on now.
                    outdated = Some(error);
                    inbox.begin_again(self.me);
                    inbox.set_silence(AGENT_SILENCE);
                    greeting = match inbox.find_greeting().await {
                        Ok(greeting) => greeting,
                        Err(_) => return Err(outdated.map_or_else(ended, Silence::Session)),
                    };
                    continue;
                }
                (Greeting::Script(said), Some(executable)) => (said, executable),
                (Greeting::Script(_), None) => return Err(ended()),
            };
            greeting = match said {
                (Said::NoAgent { code, system, machine }, executable) => {
                    if outdated.is_none() && !is_not_runnable(code) {
                        let text = "what is called fastsync there ended with exit code";
                        return Err(Silence::NotStartable(format!("{text} {code}")));
                    }
                    check_machine(executable, &system, &machine)?;
                    if std::mem::replace(&mut was_asked, true) {
                        return Err(ended());
                    }
                    inbox.set_silence(LOGIN_PATIENCE);
                    let _ = stdin.write_all(&executable.program.second_step()).await;
                    match inbox.find_greeting().await {
                        Ok(greeting) => greeting,
                        Err(error) => {
                            return Err(outdated.map_or_else(|| error.into(), Silence::Session));
                        }
                    }
                }
                (Said::Send { directory }, executable)
                    if was_asked && stored.directory.is_none() =>
                {
                    stored.directory = Some(directory);
                    send(executable, inbox, stdin).await?
                }
                (Said::Arrived { digest }, executable)
                    if stored.directory.is_some() && stored.size == 0 =>
                {
                    if digest != executable.program.digest.to_string() {
                        let text = "the program that was sent there is not what it became there";
                        return Err(Silence::NotStartable(text.to_owned()));
                    }
                    stored.size = executable.program.size;
                    let _ = stdin.write_all(b"go\n").await;
                    inbox.find_greeting().await?
                }
                (Said::Send { .. } | Said::Arrived { .. }, _) => {
                    let text = "what runs there asks for what it was not offered";
                    return Err(Silence::NotStartable(text.to_owned()));
                }
                (Said::Cannot { why }, _) => {
                    let why = Escaped(why.as_bytes());
                    let text = format!("fastsync is not there and cannot be brought along: {why}");
                    return Err(Silence::NotStartable(text));
                }
            };
        }
    }

    fn tell_noise(&self, noise: &[u8]) {
        if !noise.is_empty() {
            let text = format!("the remote shell printed: {}", Escaped(noise));
            self.observer.tell(Event::Note(text));
        }
    }

    fn tell_stored(&self, stored: Stored, agent: &Hello) {
        // Somebody else may have been quicker, after the directory was named.
        let Some(path) = stored.directory.filter(|_| stored.size > 0) else { return };
        self.observer.tell(Event::Installed(Installed {
            version: Escaped(agent.build.as_bytes()).to_string(),
            host: self.host_name(),
            path: Escaped(path.as_bytes()).to_string(),
            size: stored.size,
        }));
    }

    fn host_name(&self) -> String {
        self.host.map_or_else(|| "this machine".to_owned(), |host| host.name.clone())
    }
}

/// How to log in to a host.
pub fn login(launch: &Launch, host: &Host, observer: &Observer) -> Login {
    let client = match &launch.ssh {
        Ssh::Program(program) => Client::Program(program.clone().into()),
        Ssh::Builtin => Client::Builtin,
        Ssh::Auto if !ssh::is_installed("ssh") => {
            let text = "there is no ssh program here; the built-in one logs in";
            observer.tell(Event::Note(text.to_owned()));
            Client::Builtin
        }
        Ssh::Auto | Ssh::System => Client::Program(OsString::from("ssh")),
    };
    Login {
        client,
        arguments: launch.ssh_arguments.clone(),
        host: host.name.clone(),
        user: host.user.clone(),
        port: host.port,
    }
}

/// Whether ssh's complaints say that it could not log in.
pub fn is_refused(complaints: &str) -> bool {
    let refusals = ["Permission denied", "Host key verification failed", "Too many authentication"];
    refusals.iter().any(|text| complaints.contains(text))
}

/// What was stored on the other host.
#[derive(Debug, Default)]
struct Stored {
    directory: Option<String>,
    /// In bytes; 0 as long as it has not arrived.
    size: u64,
}

/// Sends the program, and hears what is said meanwhile or after it.
async fn send(
    executable: &Executable,
    inbox: &mut Inbox<Output>,
    stdin: &mut Input,
) -> Result<Greeting, Silence> {
    let pulse = inbox.pulse().clone();
    let mut heard = std::pin::pin!(inbox.find_greeting());
    let mut sending = std::pin::pin!(executable.send(stdin, &pulse));
    let mut is_sent = false;
    loop {
        tokio::select! {
            heard = &mut heard => return Ok(heard?),
            sent = &mut sending, if !is_sent => {
                is_sent = true;
                // Where the other end takes no more, it says why.
                let is_theirs = |it: &io::Error| {
                    matches!(it.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
                };
                if let Some(error) = sent.err().filter(|error| !is_theirs(error)) {
                    let text = format!("the program cannot be brought along whole: {error}");
                    return Err(Silence::NotStartable(text));
                }
            }
        }
    }
}

async fn agent_greeting(inbox: &mut Inbox<Output>) -> Result<AgentGreeting, Silence> {
    inbox.set_silence(AGENT_SILENCE);
    match inbox.next_encoded().await? {
        (Message::Hello(hello), encoded) => Ok(AgentGreeting { hello, encoded }),
        _ => Err(Silence::Session(SessionError::violation("the agent did not introduce itself"))),
    }
}

pub fn check_version(theirs: &Hello) -> Result<(), SessionError> {
    if common_version(VERSIONS, theirs.versions).is_some() {
        return Ok(());
    }
    let text = format!(
        "this fastsync ({}) speaks protocol versions {}-{}, the agent ({}) {}-{}: install the same \
         version on both hosts",
        env!("CARGO_PKG_VERSION"),
        VERSIONS.0,
        VERSIONS.1,
        Escaped(theirs.build.as_bytes()),
        theirs.versions.0,
        theirs.versions.1
    );
    Err(SessionError::local(FailureCode::Version, text))
}

fn check_machine(executable: &Executable, system: &str, machine: &str) -> Result<(), Silence> {
    let own = executable.program.machine;
    if own.may_run_on(system, machine) {
        return Ok(());
    }
    Err(Silence::NotStartable(format!(
        "fastsync is not there, and this one is for Linux on {}, not for {} on {}; install one there \
         (--agent-path says where), or give a static one for that machine to be brought along: \
         --agent-binary FILE",
        own.name(),
        Escaped(system.as_bytes()),
        Escaped(machine.as_bytes()),
    )))
}

/// Turns what a session saw, ssh's exit code and its complaints into an error for people.
pub fn explain(
    host: &str,
    error: &SessionError,
    exit: Option<i32>,
    complaints: &str,
) -> EngineError {
    let said = in_brackets(complaints);
    let host = host.to_owned();
    let control = match error {
        SessionError::Local(failure) if failure.code == FailureCode::Interrupted => {
            return EngineError::Interrupted;
        }
        SessionError::Local(failure) if failure.code == FailureCode::Disconnected => {
            return EngineError::Disconnected { host, cause: failure.text().to_owned() };
        }
        SessionError::Local(failure) => return EngineError::Session(failure.clone()),
        SessionError::Mistrusted(failure) => return EngineError::Mistrusted(failure.clone()),
        SessionError::Control(control) => control,
    };
    match &**control {
        ControlError::NoAgent { noise } => explain_no_agent(host, noise, exit, complaints),
        ControlError::NoMagic(cause) => not_startable(&host, cause),
        ControlError::Aborted(failure) => EngineError::Session(failure.clone()),
        cause @ (ControlError::Ended | ControlError::Silent(_) | ControlError::Read(_)) => {
            EngineError::Disconnected { host, cause: format!("{cause}{said}") }
        }
        cause @ (ControlError::Message(_)
        | ControlError::Unexpected(_)
        | ControlError::Violation(_)) => {
            let text = format!("{host} and this end do not understand each other: {cause}{said}");
            EngineError::Session(Failure::new(FailureCode::Violation, text))
        }
    }
}

fn explain_no_agent(
    host: String,
    noise: &[u8],
    exit: Option<i32>,
    complaints: &str,
) -> EngineError {
    let said = Escaped(complaints.as_bytes()).to_string();
    match exit {
        Some(255) if is_refused(complaints) => EngineError::Authentication { host, cause: said },
        Some(255) if complaints.is_empty() => {
            let cause = "ssh ended with exit code 255 and said nothing: what ran there was killed, or \
                         LogLevel is QUIET, and -o LogLevel=ERROR lets it say why";
            EngineError::Disconnected { host, cause: cause.to_owned() }
        }
        Some(255) => EngineError::Disconnected { host, cause: said },
        None if complaints.is_empty() && noise.is_empty() => {
            let cause = "ssh was ended by a signal, or does not end, and nothing has answered";
            EngineError::Disconnected { host, cause: cause.to_owned() }
        }
        exit if is_not_found(exit, complaints) => {
            let text = format!("{said}; install fastsync there, or name it with --agent-path");
            not_startable(&host, text)
        }
        _ => {
            let noise = &noise[noise.len().saturating_sub(500)..];
            not_startable(&host, format!("no agent answered: {said}{}", Escaped(noise)))
        }
    }
}

/// Whether a login shell could not even run `sh`.
fn is_without_shell(error: &SessionError, exit: Option<i32>, complaints: &str) -> bool {
    let SessionError::Control(control) = error else { return false };
    let is_silent = matches!(&**control, ControlError::NoAgent { .. });
    is_silent && exit != Some(255) && is_not_found(exit, complaints)
}

fn not_startable(host: &str, cause: impl std::fmt::Display) -> EngineError {
    EngineError::AgentNotStartable { host: host.to_owned(), cause: cause.to_string() }
}

/// The other end went without a word.
fn ended() -> Silence {
    ControlError::NoAgent { noise: Vec::new() }.into()
}

fn in_brackets(complaints: &str) -> String {
    if complaints.is_empty() {
        return String::new();
    }
    format!(" ({})", Escaped(complaints.as_bytes()))
}

/// How long a person may take to log in, and an upload may make no progress.
pub const LOGIN_PATIENCE: Duration = Duration::from_mins(10);

/// How long the agent may be silent before the connection counts as lost (SES-7).
pub const AGENT_SILENCE: Duration = Duration::from_secs(30);
