//! What `doctor` and `bench` have in common: what was meant, and how findings are called.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::UsageError;
use super::args::Measuring;
use super::job::{Plan, job, quiet_display};
use super::location::Location;
use super::settings::Environment;
use super::text::{bytes, plural, rate};
use crate::engine::job::{Direction, Job};
use crate::engine::measure::{End, Measurement, RunFound, What};
use crate::protocol::manifest::Escaped;
use crate::protocol::measure::DiskSpeed;
use crate::ssh;

/// What is measured, as the user calls it.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// The other host.
    pub host: String,
    /// The location as it was typed, with its colon.
    location: String,
    /// Flags that were given to reach it.
    connecting: Vec<String>,
}

impl Subject {
    /// A command that transfers something there, with these flags.
    pub fn command(&self, flags: &[String]) -> String {
        let words = ["fastsync", "push"].map(str::to_owned);
        let rest = ["SRC".to_owned(), self.location.clone()];
        let words = words.iter().chain(flags).chain(&self.connecting).chain(&rest);
        words.cloned().collect::<Vec<_>>().join(" ")
    }
}

/// Puts the job together.
pub fn plan(
    what: What,
    measuring: &Measuring,
    environment: &Environment<'_>,
) -> Result<(Plan, Subject), UsageError> {
    let typed = with_colon(measuring.location.clone());
    let Location::Remote { host, path } = Location::parse(&typed)? else {
        let shown = Escaped(measuring.location.as_bytes());
        let text =
            format!("{shown} is on this machine: write HOST, or HOST:DIR for a directory there");
        return Err(UsageError::new(text));
    };
    let directory = measuring.local_dir.clone().unwrap_or_else(|| ".".into());
    let directory = std::path::absolute(&directory).unwrap_or(directory);
    let measurement = Measurement {
        what,
        directory,
        streams: Vec::new(),
        duration: Duration::from_secs(measuring.duration.unwrap_or(2).into()),
        size: measuring.size.map(|size| size.0),
    };
    let name = host.name.clone();
    let direction = Direction::Measure { host: Some(host), directory: path, measurement };
    let mut job = job(direction, &measuring.connecting, None, environment)?;
    job.config.retries = 0;
    let is_limited = measuring.connecting.settings.streams.is_some();
    if let Direction::Measure { measurement, .. } = &mut job.direction {
        measurement.streams = match what {
            What::Everything => vec![1, job.config.streams],
            What::Speed if is_limited => up_to(job.config.streams),
            What::Speed => up_to(MOST_STREAMS),
        };
        measurement.streams.dedup();
    }
    let connecting = connecting(&job);
    let location = ssh::quote(&Escaped(typed.as_bytes()).to_string());
    let display = quiet_display(&measuring.output, environment)?;
    Ok((Plan { job, display, report: None }, Subject { host: name, location, connecting }))
}

/// A host may be written without its colon, where it can be nothing else.
fn with_colon(mut typed: OsString) -> OsString {
    let bytes = typed.as_bytes();
    if !bytes.contains(&b'/') && (!bytes.contains(&b':') || bytes.ends_with(b"]")) {
        typed.push(":");
    }
    typed
}

/// 1, 2, 4 and so on, and the last.
fn up_to(most: u16) -> Vec<u16> {
    let doubled = std::iter::successors(Some(1_u16), |count| count.checked_mul(2));
    doubled.take_while(|count| *count < most).chain([most]).collect()
}

/// The flags of a job by which it reaches its host.
fn connecting(job: &Job) -> Vec<String> {
    let shown = |bytes: &[u8]| ssh::quote(&Escaped(bytes).to_string());
    let launch = &job.launch;
    let mut flags: Vec<String> =
        launch.ssh_arguments.iter().map(|argument| shown(argument.as_bytes())).collect();
    // What ssh calls so is called otherwise here.
    for flag in &mut flags {
        match flag.as_str() {
            "-p" => "--ssh-port".clone_into(flag),
            "-i" => "--identity".clone_into(flag),
            _ => {}
        }
    }
    let mut add = |flag: &str, value: &[u8]| flags.push(format!("{flag} {}", shown(value)));
    if let Some(program) = launch.ssh.flag() {
        add("--ssh", program.as_bytes());
    }
    if let Some(path) = &launch.agent_path {
        add("--agent-path", path.as_bytes());
    }
    if let Some((low, high)) = job.config.port_range {
        add("--port-range", format!("{low}:{high}").as_bytes());
    }
    if !job.config.encrypt {
        add("--encrypt", b"off");
    }
    flags
}

/// A run for programs.
pub fn run_value(run: &RunFound) -> Value {
    json!({
        "direction": direction(run.from),
        "from": place(run.from_disk),
        "to": place(run.to_disk),
        "streams": run.streams,
        "bytes": run.bytes,
        "seconds": run.took.as_secs_f64(),
        "bytes_per_second": run.rate(),
        "processors_here": run.processors.0,
        "processors_there": run.processors.1,
    })
}

pub fn direction(from: End) -> &'static str {
    match from {
        End::Here => "to_host",
        End::There => "from_host",
    }
}

pub fn place(is_disk: bool) -> &'static str {
    if is_disk { "disk" } else { "memory" }
}

/// `1.20 GB/s`.
pub fn speed(rate: u64) -> String {
    format!("{}/s", bytes(rate))
}

/// What a file system did, for people.
pub fn disk_line(disk: &DiskSpeed) -> String {
    let synced = rate_of(disk.written, disk.write_micros.saturating_add(disk.sync_micros));
    let (read, files) = (rate_of(disk.read, disk.read_micros), files_a_second(disk));
    format!(
        "writes and syncs {}, reads {}, makes {} a second",
        speed(synced),
        speed(read),
        plural(files, "small file")
    )
}

/// The same for programs.
pub fn disk_value(disk: &DiskSpeed) -> Value {
    json!({
        "written": disk.written,
        "write_bytes_per_second":
            rate_of(disk.written, disk.write_micros.saturating_add(disk.sync_micros)),
        "write_seconds": seconds(disk.write_micros),
        "sync_seconds": seconds(disk.sync_micros),
        "read_bytes_per_second": rate_of(disk.read, disk.read_micros),
        "small_files_per_second": files_a_second(disk),
    })
}

fn rate_of(count: u64, micros: u64) -> u64 {
    rate(count, Duration::from_micros(micros))
}

fn files_a_second(disk: &DiskSpeed) -> u64 {
    rate_of(disk.files.into(), disk.files_micros)
}

pub fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

/// How many streams a benchmark goes up to.
const MOST_STREAMS: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Arguments, Command};
    use clap::Parser as _;

    // The machine's own configuration file has no say in tests.
    fn no_file(name: &str) -> Option<OsString> {
        (name == "FASTSYNC_CONFIG").then(|| "/dev/null".into())
    }

    fn planned(typed: &[&str]) -> Result<(Plan, Subject), UsageError> {
        let typed = std::iter::once(&"fastsync").chain(typed);
        let (what, measuring) = match Arguments::try_parse_from(typed).unwrap().command {
            Command::Doctor(measuring) => (What::Everything, measuring),
            Command::Bench(measuring) => (What::Speed, measuring),
            other => panic!("{other:?}"),
        };
        plan(what, &measuring, &Environment(&no_file))
    }

    fn measurement(typed: &[&str]) -> (String, Vec<u8>, Measurement) {
        let (plan, subject) = planned(typed).unwrap();
        let Direction::Measure { directory, measurement, .. } = plan.job.direction else {
            panic!("nothing is measured")
        };
        (subject.host, directory, measurement)
    }

    #[test]
    fn a_host_needs_no_colon() {
        for (typed, host, path) in [
            ("h", "h", ""),
            ("u@h", "h", ""),
            ("h:", "h", ""),
            ("h:/x", "h", "/x"),
            ("[::1]", "::1", ""),
            ("ssh://u@h:22/x", "h", "/x"),
        ] {
            let (name, directory, _) = measurement(&["doctor", typed]);
            assert_eq!((name.as_str(), directory.as_slice()), (host, path.as_bytes()), "{typed}");
        }
        for typed in ["./h", "/tmp"] {
            let error = planned(&["bench", typed]).unwrap_err().to_string();
            assert!(error.contains("is on this machine"), "{error}");
        }
    }

    #[test]
    fn streams_are_swept_up_to_what_is_asked_for() {
        let streams = |typed: &[&str]| measurement(typed).2.streams;
        assert_eq!(streams(&["doctor", "h"]), [1, 8]);
        assert_eq!(streams(&["doctor", "-p1", "h"]), [1]);
        assert_eq!(streams(&["bench", "h"]), [1, 2, 4, 8, 16]);
        assert_eq!(streams(&["bench", "-p6", "h"]), [1, 2, 4, 6]);
        assert_eq!(streams(&["bench", "-p1", "h"]), [1]);
        let (.., limited) = measurement(&["bench", "--duration=5", "--size=3M", "h"]);
        assert_eq!((limited.duration, limited.size), (Duration::from_secs(5), Some(3 << 20)));
    }

    #[test]
    fn the_command_reaches_the_host_in_the_same_way() {
        let typed = ["doctor", "-F", "a b", "--ssh-port=2222", "--port-range=50:60", "u@h"];
        let (_, subject) = planned(&typed).unwrap();
        let command = subject.command(&["-p4".to_owned()]);
        let flags = "-F 'a b' --ssh-port 2222 --port-range 50:60";
        assert_eq!(command, format!("fastsync push -p4 {flags} SRC u@h:"));
    }

    #[test]
    fn a_file_system_is_told_in_rates() {
        let disk = DiskSpeed {
            written: 10_000_000,
            write_micros: 500_000,
            sync_micros: 500_000,
            read: 10_000_000,
            read_micros: 100_000,
            files: 10,
            files_micros: 1_000_000,
        };
        let line = disk_line(&disk);
        let wanted = "writes and syncs 10.0 MB/s, reads 100 MB/s, makes 10 small files a second";
        assert_eq!(line, wanted);
        let value = disk_value(&disk);
        assert_eq!(value["write_bytes_per_second"], 10_000_000);
        assert_eq!(value["small_files_per_second"], 10);
    }
}
