//! Measures what lies between this machine and another, and moves no files: the ways that data can
//! take, what they carry, and what the file systems at both ends do.
//!
//! It is a session like others up to the channels. Then the client asks for one thing after the other
//! (`client`), and the agent does it within limits of its own (`agent`). `ways` tries each way for data,
//! `run` sends and receives, [`advice`] concludes.
//!
//! Rules: `protocol-spec/13-measure.md`.

pub mod advice;
pub(super) mod agent;
pub(super) mod client;
mod run;
mod system;
pub(super) mod ways;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use super::job::Ssh;
use crate::protocol::chunk::ChunkSize;
use crate::protocol::measure::{DiskSpeed, MAX_FILE_LEN, MAX_MILLIS, System};
use crate::protocol::message::{Hello, Options};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub what: What,
    /// On this machine, for temporary files.
    pub directory: PathBuf,
    /// Numbers of streams to try, in ascending order.
    pub streams: Vec<u16>,
    /// For how long each run sends: at most a minute.
    pub duration: Duration,
    /// How much each run may carry, in bytes, if not as much as there is time for. What goes to a
    /// file system or comes from one is at most 16 GiB, and 1 GiB if this says nothing.
    pub size: Option<u64>,
}

/// Which of the two questions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// What works and what does not: every way, both clocks, both systems.
    Everything,
    /// How quick it is: memory and file systems in each direction, with each number of streams.
    Speed,
}

impl Measurement {
    /// Makes a session's options those of one that measures.
    pub(super) fn adjust(&self, options: &mut Options) {
        options.chunk_size = ChunkSize::from_log2(FRAME_LOG2).unwrap_or(ChunkSize::MIN);
        options.pack_threshold = 0;
        options.streams = self.streams.iter().copied().max().unwrap_or(1);
    }

    fn millis(&self) -> u32 {
        u32::try_from(self.duration.as_millis()).unwrap_or(MAX_MILLIS).min(MAX_MILLIS)
    }

    fn file_len(&self) -> u64 {
        self.size.unwrap_or(FILE_LEN).min(MAX_FILE_LEN)
    }
}

/// Something that was found out.
#[derive(Clone, Debug)]
pub enum Finding {
    /// ssh logged in, and the agent greeted.
    Login {
        program: String,
        took: Duration,
    },
    Agent(Agent),
    /// How much the other host's clock is ahead, in microseconds, and how uncertain that is.
    Clock {
        ahead_micros: i64,
        uncertain_micros: u64,
    },
    /// How long there and back takes: through ssh, and on the way of the data where that is known.
    RoundTrip {
        ssh: Duration,
        data: Option<Duration>,
    },
    System {
        end: End,
        system: System,
    },
    Way(WayFound),
    /// The way that a transfer would take, and why if it is not the first.
    Chosen(Connection),
    Disk {
        end: End,
        directory: String,
        speed: Result<DiskSpeed, String>,
    },
    Run(RunFound),
    /// What was to be measured and could not be.
    NotMeasured {
        what: String,
        why: String,
    },
}

/// Which end something is about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum End {
    Here,
    There,
}

impl End {
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Here => Self::There,
            Self::There => Self::Here,
        }
    }
}

/// What the agent says of itself.
#[derive(Clone, Debug)]
pub struct Agent {
    pub version: String,
    pub platform: String,
    /// The protocol versions that it speaks.
    pub versions: (u16, u16),
}

/// What became of one way for data.
#[derive(Clone, Debug)]
pub struct WayFound {
    /// `tcp`, `quic` or `ssh`, which `--transport` takes.
    pub transport: &'static str,
    /// `client` or `agent`.
    pub dialler: &'static str,
    /// For people.
    pub name: String,
    /// How long it took until the first channel was up, and at which address; or why there is none.
    pub result: Result<(Duration, String), String>,
}

/// The way that was measured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connection {
    pub transport: &'static str,
    pub dialler: &'static str,
    pub peer: String,
    pub encrypted: bool,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct RunFound {
    /// Which end sends.
    pub from: End,
    /// Whether it reads a file, and the other end writes one.
    pub from_disk: bool,
    pub to_disk: bool,
    pub streams: u16,
    pub bytes: u64,
    pub took: Duration,
    /// Processors that each end kept busy, here and there.
    pub processors: (f64, f64),
}

impl RunFound {
    /// In bytes a second.
    pub fn rate(&self) -> u64 {
        system::per_second(self.bytes, self.took)
    }
}

impl Finding {
    pub(super) fn login(ssh: &Ssh, took: Duration) -> Self {
        let program = ssh.flag().unwrap_or(OsStr::new("ssh"));
        Self::Login { program: program.display().to_string(), took }
    }

    pub(super) fn agent(hello: &Hello) -> Self {
        Self::Agent(Agent {
            version: hello.build.clone(),
            platform: hello.platform.clone(),
            versions: hello.versions,
        })
    }
}

/// The binary logarithm of how much a frame carries at the most: 1 MiB.
const FRAME_LOG2: u8 = 20;

/// The size of a temporary file, in bytes, if nobody says another one.
const FILE_LEN: u64 = 1 << 30;
