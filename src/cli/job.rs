//! What was meant: arguments, environment and configuration file become one job.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::UsageError;
use super::args::{Connecting, Output, Ssh, Transfer};
use super::config::Config;
use super::flags::{Deleting, Telling};
use super::itemize::Itemizer;
use super::location::{Location, absolute};
use super::mapping::Mapping;
use super::meaning;
use super::rules::Files;
use super::settings::{Environment, Settings};
use super::units::{ProgressMode, ResumeMode, Switch};
use crate::engine::job::{
    At, Bootstrap, Direction, Expected, Host, Job, Launch, Place, Site, Sources, Ssh as SshClient,
    Store, TransferConfig,
};
use crate::protocol::chunk::Digest;
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Compare, Resume};

/// A job, and what to show of it.
#[derive(Debug)]
pub struct Plan {
    pub job: Job,
    pub display: Display,
    /// Where the report goes; `-` is standard output.
    pub report: Option<OsString>,
}

/// What to show, with every default filled in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Display {
    /// Never [`ProgressMode::Auto`].
    pub progress: ProgressMode,
    pub quiet: bool,
    pub verbose: u8,
    pub json: bool,
    pub itemizer: Itemizer,
    pub stats: bool,
    /// The arguments of a dry run.
    pub mapping: Option<Mapping>,
}

impl Default for Display {
    fn default() -> Self {
        Self {
            progress: ProgressMode::None,
            quiet: false,
            verbose: 0,
            json: false,
            itemizer: Itemizer::default(),
            stats: false,
            mapping: None,
        }
    }
}

/// Which subcommand it was, of those that transfer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    Push,
    Pull,
    Cp,
    Sync,
}

/// Puts the job of a transfer together. `deleting` is there for `sync` alone.
pub fn plan(
    verb: Verb,
    transfer: &Transfer,
    deleting: Option<&Deleting>,
    environment: &Environment<'_>,
    files: &mut Files,
) -> Result<Plan, UsageError> {
    let locations = with_listed(transfer, files)?;
    let mut direction = direction(verb, &locations)?;
    if transfer.files_from.is_some() {
        take_contents(&mut direction);
    }
    let no_resume = transfer.no_resume.then_some(ResumeMode(Resume::Never));
    let mut job = job(direction, &transfer.connecting, no_resume, environment)?;
    job.paths = meaning::apply(&mut job.config, transfer, deleting, files)?;
    job.stores.expected = expected(transfer, &job.direction)?;
    if job.stores.expected != Expected::default() {
        // What is there already, and only looks equal, is not what was expected.
        job.config.update.compare = Compare::Always;
    }
    let mut display = display(&transfer.output, environment)?;
    tell(&mut display, &transfer.telling, &job);
    if job.config.dry_run {
        display.mapping = mapping(&locations, transfer.files_from.is_some());
    }
    Ok(Plan { job, display, report: transfer.telling.report.clone() })
}

/// The locations that were typed, with those of `--urls-from` before the destination.
fn with_listed(transfer: &Transfer, files: &mut Files) -> Result<Vec<OsString>, UsageError> {
    let mut locations = transfer.locations.clone();
    let Some(name) = &transfer.urls_from else { return Ok(locations) };
    let content = files.read(name.as_bytes()).map_err(|error| {
        let name = Escaped(name.as_bytes());
        UsageError::new(format!("cannot read the list of sources {name}: {error}"))
    })?;
    let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let listed = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    let destination = locations.pop();
    locations.extend(listed.map(|line| OsString::from_vec(line.to_vec())));
    locations.extend(destination);
    Ok(locations)
}

/// What the only source has to amount to.
fn expected(transfer: &Transfer, direction: &Direction) -> Result<Expected, UsageError> {
    let expected = Expected {
        blake3: transfer.expect_blake3.map(|digest| Digest(digest.0)),
        sha256: transfer.expect_sha256.map(|digest| digest.0),
    };
    let is_one = match direction {
        Direction::Copy { sources, .. } | Direction::Push { sources, .. } => {
            matches!(sources, Sources::Endpoint { store: Store::Web(_), paths } if paths.len() == 1)
        }
        _ => false,
    };
    if expected == Expected::default() || is_one {
        return Ok(expected);
    }
    let text = "--expect-blake3 and --expect-sha256 are for one file of a web server";
    Err(UsageError::new(text))
}

/// A job with its connection and the settings of all layers.
pub fn job(
    mut direction: Direction,
    connecting: &Connecting,
    resume: Option<ResumeMode>,
    environment: &Environment<'_>,
) -> Result<Job, UsageError> {
    let named = connecting.config.clone();
    let named = named.or_else(|| environment.raw("FASTSYNC_CONFIG").map(Into::into));
    let config = Config::load(named.as_deref())?;
    join_port(&mut direction, &connecting.ssh)?;
    let mut flags = connecting.settings.clone();
    flags.resume = resume.or(flags.resume);
    let host = host(&direction).map(|host| host.name.as_str());
    let settings = config.resolve(flags, Settings::from_environment(environment)?, host)?;
    let mut launch = launch(connecting.ssh.clone(), &settings, environment);
    if connecting.no_bootstrap {
        launch.bootstrap = Bootstrap::Forbidden;
    }
    let mut config: TransferConfig = settings.to_config();
    config.state_directory = super::config::state_directory();
    config.fallback = !connecting.no_fallback;
    if settings.streams.is_none() && reads_web(&direction) {
        config.streams = WEB_STREAMS;
    }
    let stores = settings.to_stores();
    Ok(Job { direction, paths: None, launch, config, stores })
}

/// Whether a web server is what is read.
fn reads_web(direction: &Direction) -> bool {
    let (Direction::Push { sources, .. } | Direction::Copy { sources, .. }) = direction else {
        return false;
    };
    matches!(sources, Sources::Endpoint { store: Store::Web(_), .. })
}

/// Which way the data goes, from locations alone.
pub fn direction(verb: Verb, typed: &[OsString]) -> Result<Direction, UsageError> {
    let Some((destination, sources)) = typed.split_last().filter(|(_, rest)| !rest.is_empty())
    else {
        let text = "a source and a destination are needed; there is only one location";
        return Err(UsageError::new(text));
    };
    let sources: Result<Vec<_>, _> = sources.iter().map(|typed| Location::parse(typed)).collect();
    let (sources, destination) = (sources?, Location::parse(destination)?);
    let is_at_store = |location: &Location| matches!(location, Location::Endpoint { .. });
    if sources.iter().any(is_at_store) || is_at_store(&destination) {
        return with_store(verb, sources, destination);
    }
    let is_remote = |location: &Location| matches!(location, Location::Remote { .. });
    let (far_source, far_destination) = (sources.iter().any(is_remote), is_remote(&destination));
    if far_source && far_destination {
        return between(verb, sources, destination);
    }
    let current = std::env::current_dir().map_err(|error| {
        UsageError::new(format!("cannot find out the current directory: {error}"))
    })?;
    match (verb, far_source, far_destination) {
        (Verb::Push, ..) | (Verb::Cp | Verb::Sync, _, true) => push(sources, destination, &current),
        (Verb::Pull, ..) | (Verb::Cp | Verb::Sync, true, _) => pull(sources, destination, &current),
        (Verb::Cp | Verb::Sync, false, false) => Ok(copy(sources, destination)),
    }
}

/// All locations are on this machine.
fn copy(sources: Vec<Location>, destination: Location) -> Direction {
    let path = |location| match location {
        Location::Local(path) => path,
        Location::Remote { path, .. } | Location::Endpoint { path, .. } => {
            OsString::from_vec(path).into()
        }
    };
    Direction::Copy {
        sources: Sources::Local(sources.into_iter().map(path).collect()),
        destination: Site::Local(path(destination)),
    }
}

/// A location is at an endpoint.
fn with_store(
    verb: Verb,
    sources: Vec<Location>,
    destination: Location,
) -> Result<Direction, UsageError> {
    if matches!(verb, Verb::Push | Verb::Pull) {
        let text = "push and pull need a fastsync at the other end; where none can run it is \
                    `fastsync cp` or `fastsync sync`";
        return Err(UsageError::new(text));
    }
    let destination = match destination {
        Location::Local(path) => Site::Local(path),
        Location::Endpoint { store, path } => Site::Endpoint { store, path },
        Location::Remote { host, path } => {
            let destination = Place::Remote { host, path };
            return Ok(Direction::Push { sources: here_or_at_store(sources)?, destination });
        }
    };
    if sources.iter().any(|source| matches!(source, Location::Remote { .. })) {
        let (sources, host) = on_one_host(sources, Path::new("/"))?;
        return Ok(Direction::Pull { sources, host, destination });
    }
    Ok(Direction::Copy { sources: here_or_at_store(sources)?, destination })
}

/// Sources that this process reads itself.
fn here_or_at_store(sources: Vec<Location>) -> Result<Sources, UsageError> {
    let (mut local, mut stored) = (Vec::new(), Vec::new());
    for source in sources {
        match source {
            Location::Local(path) => local.push(path),
            Location::Endpoint { store, path } => stored.push((store, path)),
            Location::Remote { .. } => return Err(UsageError::new(ONE_PLACE)),
        }
    }
    let Some((store, _)) = stored.first().cloned() else { return Ok(Sources::Local(local)) };
    if !local.is_empty() || stored.iter().any(|(other, _)| *other != store) {
        return Err(UsageError::new(ONE_PLACE));
    }
    let paths = stored.into_iter().map(|(_, path)| path).collect();
    Ok(Sources::Endpoint { store, paths })
}

/// The destination is on another host, and so is a source.
fn between(
    verb: Verb,
    sources: Vec<Location>,
    destination: Location,
) -> Result<Direction, UsageError> {
    if matches!(verb, Verb::Push | Verb::Pull) {
        let text = "push and pull copy from and to this machine; between two other hosts it is \
                    `fastsync cp` or `fastsync sync`";
        return Err(UsageError::new(text));
    }
    let (sources, source_host) = on_one_host(sources, Path::new("/"))?;
    match (source_host, destination) {
        (Some(source_host), Location::Remote { host, path }) => {
            Ok(Direction::Between { sources, source_host, host, destination: path })
        }
        _ => Err(UsageError::new("a location is on this machine")),
    }
}

fn push(
    sources: Vec<Location>,
    destination: Location,
    current: &Path,
) -> Result<Direction, UsageError> {
    let local = |source| match source {
        Location::Local(path) => Ok(path),
        Location::Remote { host, .. } => Err(UsageError::new(format!(
            "push copies from this machine, and a source is on {}; use `fastsync pull`, or write \
             ./{}:... if it is a file here",
            host.name, host.name
        ))),
        Location::Endpoint { .. } => Err(UsageError::new(ONE_PLACE)),
    };
    let sources = Sources::Local(sources.into_iter().map(local).collect::<Result<_, _>>()?);
    let destination = match destination {
        Location::Remote { host, path } => Place::Remote { host, path },
        Location::Local(path) => Place::Local(absolute(current, &path)),
        Location::Endpoint { .. } => return Err(UsageError::new(ONE_PLACE)),
    };
    Ok(Direction::Push { sources, destination })
}

fn pull(
    sources: Vec<Location>,
    destination: Location,
    current: &Path,
) -> Result<Direction, UsageError> {
    let destination = match destination {
        Location::Local(path) => Site::Local(path),
        Location::Endpoint { store, path } => Site::Endpoint { store, path },
        Location::Remote { host, .. } => {
            return Err(UsageError::new(format!(
                "pull copies to this machine, and the destination is on {}; use `fastsync push`",
                host.name
            )));
        }
    };
    let (sources, host) = on_one_host(sources, current)?;
    Ok(Direction::Pull { sources, host, destination })
}

/// The paths of locations that are all on one host; `None` is this machine.
fn on_one_host(
    sources: Vec<Location>,
    current: &Path,
) -> Result<(Vec<Vec<u8>>, Option<Host>), UsageError> {
    let mut hosts = Vec::new();
    let mut paths = Vec::new();
    for source in sources {
        let (host, path) = match source {
            Location::Local(path) => (None, absolute(current, &path).into_os_string().into_vec()),
            Location::Remote { host, path } => (Some(host), path),
            Location::Endpoint { .. } => return Err(UsageError::new(ONE_PLACE)),
        };
        hosts.push(host);
        paths.push(path);
    }
    if hosts.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(UsageError::new(ONE_PLACE));
    }
    Ok((paths, hosts.into_iter().next().flatten()))
}

/// The only source stands for what is in it, however it is written.
pub fn take_contents(direction: &mut Direction) {
    match direction {
        Direction::Push { sources: Sources::Endpoint { paths, .. }, .. }
        | Direction::Copy { sources: Sources::Endpoint { paths, .. }, .. } => {
            paths.iter_mut().for_each(end_with_slash);
        }
        Direction::Push { sources: Sources::Local(sources), .. }
        | Direction::Copy { sources: Sources::Local(sources), .. } => {
            for source in sources {
                let mut path = std::mem::take(source).into_os_string().into_vec();
                end_with_slash(&mut path);
                *source = OsString::from_vec(path).into();
            }
        }
        Direction::Pull { sources, .. }
        | Direction::Between { sources, .. }
        | Direction::Inventory { sources, .. } => {
            sources.iter_mut().for_each(end_with_slash);
        }
        Direction::Measure { .. } | Direction::Clean(_) => {}
    }
}

/// The home directory, which is empty on another host, ends with one already.
pub fn end_with_slash(path: &mut Vec<u8>) {
    if !path.is_empty() && !path.ends_with(b"/") {
        path.push(b'/');
    }
}

/// The other host, if there is one; of two, the one that receives.
fn host(direction: &Direction) -> Option<&Host> {
    match direction {
        Direction::Push { destination: Place::Remote { host, .. }, .. }
        | Direction::Between { host, .. }
        | Direction::Inventory { at: At::Host(host), .. } => Some(host),
        Direction::Push { destination: Place::Local(_), .. }
        | Direction::Copy { .. }
        | Direction::Clean(_)
        | Direction::Inventory { .. } => None,
        Direction::Pull { host, .. } | Direction::Measure { host, .. } => host.as_ref(),
    }
}

/// The port is given to ssh once: by the URL or by the flag.
fn join_port(direction: &mut Direction, ssh: &Ssh) -> Result<(), UsageError> {
    let hosts = match direction {
        Direction::Push { destination: Place::Remote { host, .. }, .. }
        | Direction::Inventory { at: At::Host(host), .. } => vec![host],
        Direction::Between { source_host, host, .. } => vec![source_host, host],
        Direction::Pull { host, .. } | Direction::Measure { host, .. } => host.iter_mut().collect(),
        Direction::Push { .. }
        | Direction::Copy { .. }
        | Direction::Clean(_)
        | Direction::Inventory { .. } => Vec::new(),
    };
    for host in hosts {
        let (Some(flag), Some(port)) = (ssh.port, host.port) else { continue };
        if flag != port {
            let text = format!("the URL says port {port} and --ssh-port says {flag}");
            return Err(UsageError::new(text));
        }
        host.port = None;
    }
    Ok(())
}

/// What makes ssh connections, by `--ssh`.
fn client(said: Option<PathBuf>) -> SshClient {
    match said {
        None => SshClient::Auto,
        Some(word) if word.as_os_str() == "system" => SshClient::System,
        Some(word) if word.as_os_str() == "builtin" => SshClient::Builtin,
        Some(program) => SshClient::Program(program),
    }
}

/// How the agent is started: ssh's flags in the form that ssh wants.
fn launch(ssh: Ssh, settings: &Settings, environment: &Environment<'_>) -> Launch {
    let mut arguments = Vec::new();
    let mut add = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
    ssh.config_file.into_iter().for_each(|file| add("-F", file));
    ssh.jump.into_iter().for_each(|host| add("-J", host));
    ssh.option.into_iter().for_each(|option| add("-o", option));
    ssh.port.into_iter().for_each(|port| add("-p", port.to_string().into()));
    ssh.identity.into_iter().for_each(|file| add("-i", file));
    Launch {
        ssh: client(ssh.program.or_else(|| environment.raw("FASTSYNC_SSH").map(PathBuf::from))),
        ssh_arguments: arguments,
        agent_path: settings.agent_path.clone().map(|path| path.0),
        bootstrap: match settings.bootstrap {
            Some(Switch(false)) => Bootstrap::Forbidden,
            Some(Switch(true)) | None => Bootstrap::Allowed,
        },
        agent_binary: settings.agent_binary.clone(),
        local_program: None,
        login_patience: None,
    }
}

pub fn display(output: &Output, environment: &Environment<'_>) -> Result<Display, UsageError> {
    let from_environment = environment.value("FASTSYNC_PROGRESS")?;
    let forced = output.progress.or(output.show_progress.then_some(ProgressMode::Auto));
    let hushed = output.quiet.then_some(ProgressMode::None);
    let progress = forced.or(hushed).or(from_environment).unwrap_or(ProgressMode::Auto);
    let dumb = environment.raw("TERM").is_none_or(|term| term.as_bytes() == b"dumb");
    let progress = match progress {
        ProgressMode::Auto if std::io::stderr().is_terminal() && !dumb => ProgressMode::Terminal,
        ProgressMode::Auto => ProgressMode::Plain,
        other => other,
    };
    let Output { quiet, verbose, json, .. } = *output;
    Ok(Display { progress, quiet, verbose, json, ..Display::default() })
}

/// The same where data on standard output is all that is asked for: progress only on a terminal.
pub fn quiet_display(
    output: &Output,
    environment: &Environment<'_>,
) -> Result<Display, UsageError> {
    let is_asked = output.show_progress || output.progress.is_some();
    let display = display(output, environment)?;
    Ok(match display.progress {
        ProgressMode::Plain if !is_asked => Display { progress: ProgressMode::None, ..display },
        _ => display,
    })
}

/// Takes over what is to be told of each entry.
fn tell(display: &mut Display, telling: &Telling, job: &Job) {
    let level = match (telling.itemize_changes, display.verbose) {
        (0, _) => 0,
        (1, 0..=1) => 1,
        _ => 2,
    };
    let is_sent = matches!(
        job.direction,
        Direction::Push { destination: Place::Remote { .. }, .. } | Direction::Between { .. }
    );
    let loses_times = !job.config.preserve.times;
    display.itemizer = Itemizer { level, is_sent, loses_times };
    display.stats = telling.stats;
}

const ONE_PLACE: &str =
    "all sources are on one host or at one endpoint, written alike; run one command for each";

fn mapping(locations: &[OsString], contents: bool) -> Option<Mapping> {
    let (destination, sources) = locations.split_last()?;
    Some(Mapping::new(sources, destination, contents))
}

/// How many requests a web server is read with: each is a connection of its own there, which losses
/// slow down one by one.
const WEB_STREAMS: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Arguments, Command};
    use clap::Parser as _;

    fn planned(typed: &[&str], variables: &[(&str, &str)]) -> Result<Plan, UsageError> {
        let typed = std::iter::once(&"fastsync").chain(typed);
        // The machine's own configuration file has no say in tests.
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            let own = found.map(|(_, value)| (*value).into());
            own.or_else(|| (name == "FASTSYNC_CONFIG").then(|| "/dev/null".into()))
        };
        let environment = Environment(&lookup);
        let (verb, transfer, deleting) = match Arguments::try_parse_from(typed).unwrap().command {
            Command::Push(transfer) => (Verb::Push, *transfer, None),
            Command::Pull(transfer) => (Verb::Pull, *transfer, None),
            Command::Cp(transfer) => (Verb::Cp, *transfer, None),
            Command::Sync(sync) => (Verb::Sync, sync.transfer, Some(sync.deleting)),
            other => panic!("{other:?}"),
        };
        plan(verb, &transfer, deleting.as_ref(), &environment, &mut Files::default())
    }

    #[track_caller]
    fn refused(typed: &[&str], needle: &str) {
        let error = planned(typed, &[]).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    }

    #[test]
    fn a_push_to_a_host() {
        let plan = planned(&["push", "a/", "/b", "u@h:/x"], &[]).unwrap();
        let Direction::Push { sources: Sources::Local(sources), destination } = plan.job.direction
        else {
            panic!()
        };
        assert_eq!(sources, [PathBuf::from("a/"), "/b".into()]);
        let host = Host { name: "h".into(), user: Some("u".into()), port: None };
        assert_eq!(destination, Place::Remote { host, path: b"/x".to_vec() });
    }

    #[test]
    fn a_pull_from_a_host_and_from_here() {
        let plan = planned(&["pull", "h:a", "h:/b/", "d"], &[]).unwrap();
        let Direction::Pull { sources, host, destination } = plan.job.direction else { panic!() };
        assert_eq!(sources, [b"a".to_vec(), b"/b/".to_vec()]);
        assert_eq!((host.unwrap().name, destination), ("h".into(), Site::Local("d".into())));
        let plan = planned(&["pull", "a", "/b/", "d"], &[]).unwrap();
        let Direction::Pull { sources, host, .. } = plan.job.direction else { panic!() };
        assert!(host.is_none() && sources[0].starts_with(b"/") && sources[0].ends_with(b"/a"));
        assert_eq!(sources[1], b"/b/");
    }

    #[test]
    fn cp_and_sync_go_where_their_locations_are() {
        for verb in ["cp", "sync"] {
            let direction =
                |typed: &[&str]| planned(&[&[verb], typed].concat(), &[]).unwrap().job.direction;
            let Direction::Copy { sources, destination } = direction(&["a/", "b", "c"]) else {
                panic!("no copy");
            };
            assert_eq!(sources, Sources::Local(vec!["a/".into(), "b".into()]));
            assert_eq!(destination, Site::Local("c".into()));
            assert!(matches!(direction(&["a", "h:b"]), Direction::Push { .. }));
            assert!(matches!(direction(&["h:a", "b"]), Direction::Pull { .. }));
            let Direction::Between { sources, source_host, host, destination } =
                direction(&["u@h:a/", "u@h:/b", "ssh://i:2222/c"])
            else {
                panic!("not between two hosts");
            };
            assert_eq!((sources, destination), (vec![b"a/".to_vec(), b"/b".into()], b"/c".into()));
            assert_eq!((&*source_host.name, source_host.user.as_deref()), ("h", Some("u")));
            assert_eq!((&*host.name, host.port), ("i", Some(2222)));
            refused(&[verb, "h:a", "i:b", "j:c"], "one host");
            refused(&[verb, "a", "i:b", "j:c"], "one host");
            refused(&[verb, "--ssh-port", "1", "h:a", "ssh://i:2/x"], "port 2");
            refused(&[verb, "h:a", "b", "c"], "one host");
        }
    }

    #[test]
    fn a_list_of_files_is_of_what_is_in_the_source() {
        for (typed, wanted) in [("a", "a/"), ("a/", "a/"), (".", "./")] {
            let plan = planned(&["cp", "--files-from=/dev/null", typed, "b"], &[]).unwrap();
            let Direction::Copy { sources: Sources::Local(sources), .. } = plan.job.direction
            else {
                panic!("no copy")
            };
            assert_eq!(sources[0].as_os_str(), wanted);
            assert_eq!(plan.job.paths, Some(Vec::new()));
        }
        let plan = planned(&["pull", "--files-from=/dev/null", "h:", "b"], &[]).unwrap();
        let Direction::Pull { sources, .. } = plan.job.direction else { panic!("no pull") };
        assert_eq!(sources, [b""]);
    }

    #[test]
    fn letters_and_mapping_follow_the_job() {
        let display = |typed: &[&str]| planned(typed, &[]).unwrap().display;
        let itemizer = |typed: &[&str]| {
            let Itemizer { level, is_sent, loses_times } = display(typed).itemizer;
            (level, is_sent, loses_times)
        };
        assert_eq!(itemizer(&["cp", "a", "b"]), (0, false, false));
        assert_eq!(itemizer(&["cp", "-i", "--no-times", "a", "h:"]), (1, true, true));
        assert_eq!(itemizer(&["cp", "-i", "h:a", "i:b"]), (1, true, false));
        assert_eq!(itemizer(&["push", "-ii", "a", "b"]), (2, false, false));
        assert_eq!(itemizer(&["push", "-i", "-vv", "a", "b"]), (2, false, false));
        assert!(display(&["cp", "a", "b"]).mapping.is_none());
        assert!(display(&["cp", "-n", "a", "b"]).mapping.is_some());
    }

    #[test]
    fn impossible_journeys_are_refused() {
        refused(&["push", "a"], "destination");
        refused(&["push", "h:a", "i:b"], "fastsync cp");
        refused(&["pull", "h:a", "h:b"], "fastsync cp");
        refused(&["push", "h:a", "b"], "fastsync pull");
        refused(&["pull", "a", "h:b"], "fastsync push");
        refused(&["pull", "h:a", "i:b", "c"], "one host");
        refused(&["pull", "h:a", "b", "c"], "one host");
        refused(&["push", "a", "ftp://b/x"], "not supported yet");
        refused(&["push", "a", "gs://b/x"], "fastsync cp");
        refused(&["push", "a", "https://b/x"], "fastsync cp");
        refused(&["cp", "--expect-sha256", &"0".repeat(64), "a", "b"], "web server");
        refused(&["push", "a", "s3://b/x"], "fastsync cp");
        refused(&["push", "--ssh-port", "1", "a", "ssh://h:2/x"], "port 2");
        refused(&["push", "--profile", "none", "a", "h:"], "profile");
    }

    #[test]
    fn ssh_gets_its_flags_in_its_own_form() {
        let typed = [
            "push",
            "-F",
            "f",
            "-J",
            "j",
            "-o",
            "A=b",
            "-o",
            "C=d",
            "--ssh-port",
            "22",
            "--identity",
            "k",
            "--agent-path",
            "/opt/f",
            "--ssh",
            "/s",
            "a",
            "ssh://h:22/x",
        ];
        let plan = planned(&typed, &[("FASTSYNC_SSH", "/t")]).unwrap();
        let wanted = ["-F", "f", "-J", "j", "-o", "A=b", "-o", "C=d", "-p", "22", "-i", "k"];
        assert_eq!(plan.job.launch.ssh_arguments, wanted);
        assert_eq!(plan.job.launch.ssh, SshClient::Program("/s".into()));
        assert_eq!(plan.job.launch.agent_path.as_deref(), Some("/opt/f"));
        assert_eq!(host(&plan.job.direction).unwrap().port, None);
        let plan = planned(&["push", "a", "h:"], &[("FASTSYNC_SSH", "/t")]).unwrap();
        assert_eq!(plan.job.launch.ssh, SshClient::Program("/t".into()));
        for (word, client) in [("builtin", SshClient::Builtin), ("system", SshClient::System)] {
            let plan = planned(&["push", "a", "h:", "--ssh", word], &[("FASTSYNC_SSH", "/t")]);
            assert_eq!(plan.unwrap().job.launch.ssh, client);
        }
        assert_eq!(planned(&["push", "a", "h:"], &[]).unwrap().job.launch.ssh, SshClient::Auto);
    }

    #[test]
    fn flags_prevail_over_the_environment() {
        let variables = [
            ("FASTSYNC_STREAMS", "3"),
            ("FASTSYNC_CHUNK_SIZE", "1M"),
            ("FASTSYNC_ENCRYPT", "off"),
            ("FASTSYNC_RESUME", "verify"),
            ("FASTSYNC_PORT_RANGE", "5000:5001"),
            ("FASTSYNC_RETRIES", ""),
            ("FASTSYNC_AGENT_PATH", "/opt/f"),
        ];
        let plan = planned(&["push", "-p4", "--no-resume", "-n", "a", "h:"], &variables).unwrap();
        let config = plan.job.config;
        assert_eq!((config.streams, config.chunk_size.bytes()), (4, 1 << 20));
        assert_eq!((config.encrypt, config.resume, config.dry_run), (false, Resume::Never, true));
        assert_eq!((config.port_range, config.retries), (Some((5000, 5001)), 5));
        assert_eq!(plan.job.launch.agent_path.as_deref(), Some("/opt/f"));
        let error = planned(&["push", "a", "h:"], &[("FASTSYNC_STREAMS", "many")]).unwrap_err();
        assert!(error.to_string().starts_with("FASTSYNC_STREAMS in the environment: many"));
    }

    #[test]
    fn web_servers_are_read_with_more_streams() {
        let streams = |typed: &[&str]| planned(typed, &[]).unwrap().job.config.streams;
        assert_eq!(streams(&["cp", "https://h/a", "b"]), 16);
        assert_eq!(streams(&["cp", "webdav://h/a", "h:b"]), 16);
        assert_eq!(streams(&["cp", "-p3", "https://h/a", "b"]), 3);
        assert_eq!(streams(&["cp", "a", "https://h/b"]), 8);
        assert_eq!(streams(&["cp", "s3://b/a", "b"]), 8);
    }

    #[test]
    fn progress_is_shown_as_asked() {
        let mode = |typed: &[&str], variables: &[(&str, &str)]| {
            let typed = [&["push"], typed, &["a", "h:"]].concat();
            planned(&typed, variables).unwrap().display.progress
        };
        let environment = [("FASTSYNC_PROGRESS", "none")];
        assert_eq!(mode(&[], &environment), ProgressMode::None);
        assert_eq!(mode(&["-P"], &environment), ProgressMode::Plain);
        assert_eq!(mode(&["-q"], &[]), ProgressMode::None);
        assert_eq!(mode(&["-q", "--progress=json"], &[]), ProgressMode::Json);
        assert_eq!(mode(&["--progress=tty"], &environment), ProgressMode::Terminal);
    }
}
