//! What was typed: subcommands and flags, and nothing of what they mean together.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::flags::{Choosing, Comparing, Deleting, Keeping, Telling, Updating};
use super::settings::Settings;
use super::units::{Age, ByteSize, HexDigest, ProgressMode};

/// Move files between hosts: striped over many connections, verified with BLAKE3, resumable
#[derive(Debug, Parser)]
#[command(name = "fastsync", version, max_term_width = 100, args_override_self = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy files and directories from this machine
    ///
    /// A trailing slash on a source means its contents. A destination without a host is on this
    /// machine, and `host:` is the home directory there.
    #[command(override_usage = "fastsync push [OPTIONS] SRC... [USER@]HOST:PATH")]
    Push(Box<Transfer>),
    /// Copy files and directories to this machine
    ///
    /// All sources are on one host. A trailing slash on a source means its contents.
    #[command(override_usage = "fastsync pull [OPTIONS] [USER@]HOST:PATH... DST")]
    Pull(Box<Transfer>),
    /// Copy files and directories from anywhere to anywhere; nothing is ever deleted
    ///
    /// Sources or destination may be on another host, or both, or all on this machine. Between two
    /// other hosts, data goes straight from one to the other where it can. Directories are taken
    /// whole, with or without -R. A trailing slash on a source means its contents.
    #[command(override_usage = "fastsync cp [OPTIONS] SRC... DST")]
    Cp(Box<Transfer>),
    /// Make a destination like its source; with --delete, remove what the source does not have
    ///
    /// A trailing slash on a source means its contents: `sync --delete a/ b` makes b like a, and
    /// `sync --delete a b` makes b/a like a.
    #[command(override_usage = "fastsync sync [OPTIONS] SRC... DST")]
    Sync(Box<Sync>),
    /// List what is at a location
    #[command(override_usage = "fastsync ls [OPTIONS] LOCATION...")]
    Ls(Box<Ls>),
    /// Compare two locations, or a location with a manifest, and change nothing
    ///
    /// `check A B` says what a sync from A to B would have to change: contents of directories, or
    /// single files. `check LOCATION FILE` compares hashes with those in FILE, which `manifest`,
    /// `b3sum` or --report has written. Exit code 40 if anything is missing or different.
    #[command(override_usage = "fastsync check [OPTIONS] A B\n       \
                                fastsync check [OPTIONS] LOCATION MANIFEST-FILE")]
    Check(Box<Check>),
    /// Print the BLAKE3 hash of each file, as b3sum does, or as JSON lines
    ///
    /// Paths are relative to the directory, so that `b3sum --check` in it understands them.
    #[command(override_usage = "fastsync manifest [OPTIONS] LOCATION")]
    Manifest(Box<Manifest>),
    /// Run the command of a report again, for what failed then
    ///
    /// REPORT is what --report has written. It is replaced when the run has come to its end. Nothing
    /// is deleted.
    #[command(override_usage = "fastsync retry [OPTIONS] REPORT")]
    Retry(Box<Retry>),
    /// List what uploads and transfers have left that nobody came back for, and remove it with --delete
    ///
    /// At object stores: uploads that were neither finished nor given up, of whatever program where
    /// the store does not tell. At SFTP servers and in directories of this machine: temporary files and
    /// journals of fastsync. Without a LOCATION: this machine's journals of transfers to places where no
    /// fastsync runs.
    #[command(override_usage = "fastsync clean [OPTIONS] [LOCATION...]")]
    Clean(Box<Clean>),
    /// Find out what works between this machine and another, how quick it is, and what to change
    ///
    /// Checks ssh, the agent, versions and clocks, every way that data can take and in which direction,
    /// what one stream and several carry, the system's limits for sockets, and the file systems at both
    /// ends: on HOST that of DIR, or of the home directory. Nothing is left behind. Ends with the command
    /// line to use.
    #[command(override_usage = "fastsync doctor [OPTIONS] [USER@]HOST[:DIR]")]
    Doctor(Box<Measuring>),
    /// Measure memory to memory, memory to disk and disk to memory, in both directions
    ///
    /// Each with 1, 2, 4, 8 and 16 streams, or up to what --streams says. Nothing is left behind.
    #[command(override_usage = "fastsync bench [OPTIONS] [USER@]HOST[:DIR]")]
    Bench(Box<Measuring>),
    /// Serve one session on standard input and output; started by fastsync itself on the other host
    #[command(hide = true)]
    Agent(Agent),
}

/// The flags of the agent.
#[derive(Args, Clone, Debug, Default)]
pub struct Agent {
    /// Print the BLAKE3 hash of this program, and serve nothing
    #[arg(long, exclusive = true)]
    pub digest: bool,
    /// This program was brought along, and is started in the directory where it was stored
    #[arg(long)]
    pub cached: bool,
    /// Reach nothing outside of DIR, and take paths as relative to it
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Only send
    #[arg(long, requires = "root")]
    pub read_only: bool,
    /// Only receive
    #[arg(long, requires = "root", conflicts_with = "read_only")]
    pub write_only: bool,
    /// Carry the bytes of a further login to the agent of a session
    #[arg(long, conflicts_with = "digest")]
    pub join: bool,
}

/// The flags of push, pull and cp.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = AFTER_HELP)]
pub struct Transfer {
    /// Sources, and the destination last
    #[arg(value_name = "LOCATION", required = true)]
    pub locations: Vec<OsString>,
    /// Say what would be transferred, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Needless, as directories are always taken whole, but for those that --files-from names
    #[arg(short = 'R', long)]
    pub recursive: bool,
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub choosing: Choosing,
    /// Transfer only the paths in FILE, one a line, relative to the source; `-` is standard input
    #[arg(long, value_name = "FILE", help_heading = "Which files")]
    pub files_from: Option<OsString>,
    /// Further sources from FILE, one location a line, such as URLs; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "files_from", help_heading = "Which files")]
    pub urls_from: Option<OsString>,
    /// The BLAKE3 hash of the only source, a file of a web server
    #[arg(long, value_name = "HEX", help_heading = "Web servers")]
    pub expect_blake3: Option<HexDigest>,
    /// The SHA-256 hash of the only source, a file of a web server
    #[arg(long, value_name = "HEX", help_heading = "Web servers")]
    pub expect_sha256: Option<HexDigest>,
    #[command(flatten)]
    pub comparing: Comparing,
    #[command(flatten)]
    pub updating: Updating,
    #[command(flatten)]
    pub connecting: Connecting,
    /// Throw away what an interrupted run left
    #[arg(long, conflicts_with = "resume", help_heading = "Transfer")]
    pub no_resume: bool,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub telling: Telling,
}

/// The flags of sync.
#[derive(Args, Clone, Debug, Default)]
pub struct Sync {
    #[command(flatten)]
    pub transfer: Transfer,
    #[command(flatten)]
    pub deleting: Deleting,
}

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = AFTER_HELP)]
pub struct Ls {
    /// Directories, of which the contents are listed, or files
    #[arg(value_name = "LOCATION", required = true)]
    pub locations: Vec<OsString>,
    /// Mode, owner, group, size and modification time (UTC) too
    #[arg(short, long)]
    pub long: bool,
    /// What is in directories below too, in the order in which it is found
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// End each line with a NUL byte, and escape nothing
    #[arg(long)]
    pub zero: bool,
    #[command(flatten)]
    pub looking: Looking,
}

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = AFTER_HELP)]
pub struct Check {
    /// Two locations, or a location and the file with its manifest
    #[arg(value_name = "LOCATION", required = true)]
    pub locations: Vec<OsString>,
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub comparing: Comparing,
    #[command(flatten)]
    pub looking: Looking,
}

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = AFTER_HELP)]
pub struct Manifest {
    /// A directory, or a file
    #[arg(value_name = "LOCATION")]
    pub location: OsString,
    /// Write to FILE instead of standard output
    #[arg(long = "output", value_name = "FILE")]
    pub file: Option<OsString>,
    #[command(flatten)]
    pub looking: Looking,
}

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = AFTER_HELP)]
pub struct Retry {
    /// The report of an earlier run
    #[arg(value_name = "REPORT")]
    pub file: OsString,
    /// Say what would be transferred, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub telling: Telling,
}

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = AFTER_HELP)]
pub struct Clean {
    /// Directories; what is below them is meant too
    #[arg(value_name = "LOCATION")]
    pub locations: Vec<OsString>,
    /// Remove what is listed
    #[arg(long)]
    pub delete: bool,
    /// Leave alone what was worked on since: 90s, 15m, 12h, 7d [default: 7d]
    #[arg(long, value_name = "AGE")]
    pub older_than: Option<Age>,
    #[command(flatten)]
    pub connecting: Connecting,
    #[command(flatten)]
    pub output: Output,
}

/// The flags of doctor and bench.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = AFTER_HELP)]
pub struct Measuring {
    /// The other host, and a directory there for temporary files
    #[arg(value_name = "HOST")]
    pub location: OsString,
    /// A directory of this machine for temporary files [default: the current one]
    #[arg(long, value_name = "DIR")]
    pub local_dir: Option<PathBuf>,
    /// For how many seconds each thing is measured, 1 to 60 [default: 2]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..=60))]
    pub duration: Option<u16>,
    /// How much each run carries at the most, and writes to a disk [default: what there is time for;
    /// to a disk 1G for bench, 256M for doctor]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,
    #[command(flatten)]
    pub connecting: Connecting,
    #[command(flatten)]
    pub output: Output,
}

/// The flags that ls, check and manifest share.
#[derive(Args, Clone, Debug, Default)]
pub struct Looking {
    #[command(flatten)]
    pub choosing: Choosing,
    #[command(flatten)]
    pub connecting: Connecting,
    #[command(flatten)]
    pub output: Output,
}

/// How the other end is reached, and the data with it.
#[derive(Args, Clone, Debug, Default)]
pub struct Connecting {
    #[command(flatten)]
    pub settings: Settings,
    /// Configuration file [default: ~/.config/fastsync/config.toml]
    #[arg(long, value_name = "FILE", help_heading = "Transfer")]
    pub config: Option<PathBuf>,
    /// Store nothing on the other host, and use nothing that was stored there
    #[arg(long, conflicts_with_all = ["bootstrap", "agent_binary"], help_heading = "Transfer")]
    pub no_bootstrap: bool,
    /// Where no fastsync can be started on the other host, do not go on by SFTP
    #[arg(long, help_heading = "Transfer")]
    pub no_fallback: bool,
    #[command(flatten)]
    pub ssh: Ssh,
}

/// How ssh is called.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "SSH")]
pub struct Ssh {
    /// Configuration file of ssh
    #[arg(short = 'F', value_name = "FILE")]
    pub config_file: Option<OsString>,
    /// Hosts to go through
    #[arg(short = 'J', value_name = "HOST")]
    pub jump: Option<OsString>,
    /// Option of ssh; may be repeated
    #[arg(short = 'o', value_name = "OPTION")]
    pub option: Vec<OsString>,
    /// Port of the ssh server
    #[arg(
        long = "ssh-port",
        value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub port: Option<u16>,
    /// Private key for ssh; may be repeated
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<OsString>,
    /// What logs in: `system`, `builtin`, or an ssh program [default: system, or builtin without ssh]
    #[arg(long = "ssh", value_name = "CLIENT")]
    pub program: Option<PathBuf>,
}

/// What is shown and where.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// Show progress even where the environment says otherwise, or with -q
    #[arg(short = 'P')]
    pub show_progress: bool,
    /// How to show progress: auto, tty, plain, json or none [default: auto]
    #[arg(long, value_name = "HOW")]
    pub progress: Option<ProgressMode>,
    /// No progress, notes and summary; errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print each entry as it is done; twice, those that were there already too
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Print what goes to standard output, and the summary, as JSON lines
    #[arg(long)]
    pub json: bool,
}

const AFTER_HELP: &str = "\
Sizes are in binary units: 64K, 8M, 1G. Settings also come from FASTSYNC_* variables and from the \
configuration file; a flag prevails. Exit codes: 0 all done, 1 usage, 23 some entries failed, \
24 source vanished or changed, 25 --max-delete reached, 30 connection lost, 40 verification failed \
or a difference found, 41 destination full, 42 agent not startable, 43 no data path, \
44 authentication; the rest is in docs/CONFIGURATION.md, and docs/RSYNC.md compares with rsync.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::units::ResumeMode;
    use crate::protocol::message::Resume;
    use clap::CommandFactory as _;

    fn push(typed: &[&str]) -> Transfer {
        let typed = ["fastsync", "push"].iter().chain(typed);
        match Arguments::try_parse_from(typed).unwrap().command {
            Command::Push(transfer) => *transfer,
            other => panic!("{other:?}"),
        }
    }

    fn refused(typed: &[&str]) -> String {
        Arguments::try_parse_from(typed).unwrap_err().to_string()
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_anywhere() {
        let transfer = push(&["a", "-n", "b", "-p", "16", "h:/x", "-rP", "-c", "16M", "-vv"]);
        assert_eq!(transfer.locations, ["a", "b", "h:/x"]);
        assert!(transfer.dry_run && transfer.output.show_progress);
        assert_eq!(transfer.connecting.settings.streams.unwrap().0, 16);
        assert_eq!(transfer.connecting.settings.resume, Some(ResumeMode(Resume::Trust)));
        assert_eq!(transfer.output.verbose, 2);
        assert_eq!(push(&["--", "-a", "h:"]).locations, ["-a", "h:"]);
    }

    #[test]
    fn resume_takes_no_location_for_its_value() {
        assert_eq!(push(&["-r", "verify", "h:"]).locations, ["verify", "h:"]);
        assert_eq!(push(&["--resume", "a", "h:"]).locations, ["a", "h:"]);
        let verify = push(&["--resume=verify", "a", "h:"]);
        assert_eq!(verify.connecting.settings.resume, Some(ResumeMode(Resume::Verify)));
        assert!(push(&["--no-resume", "a", "h:"]).no_resume);
        assert!(!refused(&["fastsync", "push", "--no-resume", "-r", "a", "b"]).is_empty());
    }

    #[test]
    fn ssh_flags_are_kept_as_they_are() {
        let ssh = push(&["-F", "f", "-J", "j", "-o", "A=b", "-oC=d", "--identity", "k", "a", "h:"])
            .connecting
            .ssh;
        assert_eq!((ssh.config_file.unwrap(), ssh.jump.unwrap()), ("f".into(), "j".into()));
        assert_eq!(
            (ssh.option, ssh.identity),
            (vec!["A=b".into(), "C=d".into()], vec!["k".into()])
        );
    }

    #[test]
    fn errors_say_what_would_be_right() {
        let error = refused(&["fastsync", "push", "-c", "10M", "a", "h:"]);
        assert!(error.contains("the nearest are 8M and 16M"), "{error}");
        assert!(refused(&["fastsync", "push", "--progress=loud", "a", "h:"]).contains("plain"));
        refused(&["fastsync", "push"]);
        refused(&["fastsync", "agent", "--option"]);
    }

    #[test]
    fn names_need_not_be_utf8() {
        use std::os::unix::ffi::OsStringExt as _;
        let name = OsString::from_vec(b"caf\xe9".to_vec());
        let typed = ["fastsync".into(), "pull".into(), name.clone(), "d".into()];
        let Command::Pull(transfer) = Arguments::try_parse_from(typed).unwrap().command else {
            panic!("not a pull");
        };
        assert_eq!(transfer.locations[0], name);
    }
}
