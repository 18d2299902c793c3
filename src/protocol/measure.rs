//! What is said in a session that measures instead of transferring: requests of the client, and the
//! agent's answers.
//!
//! The agent holds every request to the limits here, whoever sent it: nothing runs or writes without
//! a bound, and what is written has no name.
//!
//! Rules: `protocol-spec/13-measure.md`.

use super::chunk::{ByteRange, EntryId, RangeError};
use super::handshake::ChannelSlot;
use super::manifest::Timestamp;
use super::message::{Decode, Encode, Failure};

/// From the client: one thing to measure, or the end. The agent answers each before the next comes.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Measure {
    /// What time is it?
    Clock,
    /// What are your system and your program like?
    System,
    /// How quick is the file system of the directory in Open?
    Disk(DiskLimits),
    /// Send or receive data on these channels.
    Run(Run),
    /// Forget all channels that are up.
    Release,
    /// That was all.
    Done,
}

/// The agent's answers.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub enum Measured {
    Clock(Timestamp),
    System(System),
    Disk(DiskSpeed),
    /// To a run, before its data: it may begin.
    Ready,
    /// To a run, after its data.
    Ran(Ran),
    Released,
    /// It is not allowed or not possible; the session goes on.
    Refused(Failure),
    Done,
}

/// How much a measurement of a file system may take.
#[derive(Clone, Copy, Debug, Encode, Decode, Eq, PartialEq)]
pub struct DiskLimits {
    /// The size of the temporary file, in bytes.
    pub bytes: u64,
    /// How many small files are made, one after the other.
    pub files: u32,
    /// For each of its three parts, in milliseconds.
    pub millis: u32,
}

impl DiskLimits {
    /// Names the first limit that is beyond the protocol's (MEASURE-5).
    pub fn check(&self) -> Result<(), &'static str> {
        if self.bytes > MAX_FILE_LEN || self.files > MAX_FILES {
            return Err("a file system is measured with at most 16 GiB and 100,000 files");
        }
        check_millis(self.millis)
    }
}

/// What a file system did.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct DiskSpeed {
    /// Bytes that were written and synced, and how long both took, in microseconds.
    pub written: u64,
    pub write_micros: u64,
    pub sync_micros: u64,
    /// The same bytes, read again after the cache was asked to forget them.
    pub read: u64,
    pub read_micros: u64,
    /// Files of 4 KiB that were made and written.
    pub files: u32,
    pub files_micros: u64,
}

/// Data from one end to the other for a while.
#[derive(Clone, Debug, Encode, Decode, Eq, PartialEq)]
pub struct Run {
    /// Stands in each of its frames, in the place of the entry.
    pub number: u64,
    pub toward_agent: bool,
    /// The agent's end of it is a temporary file, and not memory.
    pub on_disk: bool,
    /// The channels, each by its number and generation.
    pub channels: Vec<(u16, u32)>,
    /// How much one frame carries, in bytes.
    pub len: u32,
    /// How much all of them carry at the most, in bytes.
    pub bytes: u64,
    /// For how long the sender sends, in milliseconds.
    pub millis: u32,
}

impl Run {
    /// Names the first value that no correct client sends (MEASURE-5).
    pub fn check(&self, streams: u16) -> Result<(), &'static str> {
        if !(1..=usize::from(streams)).contains(&self.channels.len()) {
            return Err("a run uses from one to all of the session's channels");
        }
        let is_twice =
            |at: usize| self.channels.iter().take(at).any(|it| Some(it) == self.channels.get(at));
        if (0..self.channels.len()).any(is_twice) {
            return Err("a run uses each channel once");
        }
        let is_in_range = (MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&self.len);
        if !is_in_range || !self.len.is_power_of_two() {
            return Err("a frame of a run carries from 64 KiB to 1 MiB, a power of two");
        }
        if self.bytes > MAX_RUN_LEN || self.on_disk && self.bytes > MAX_FILE_LEN {
            return Err("a run carries at most 1 TiB, and at most 16 GiB from or to a file");
        }
        check_millis(self.millis)
    }

    pub fn slots(&self) -> impl Iterator<Item = ChannelSlot> {
        self.channels
            .iter()
            .map(|(channel, generation)| ChannelSlot { channel: *channel, generation: *generation })
    }

    /// What one of its frames carries.
    ///
    /// # Errors
    ///
    /// If there is no such range of a file.
    pub fn range(&self, offset: u64) -> Result<ByteRange, RangeError> {
        ByteRange::new(EntryId(self.number), offset, self.len, false)
    }
}

fn check_millis(millis: u32) -> Result<(), &'static str> {
    if millis <= MAX_MILLIS { Ok(()) } else { Err("nothing is measured for more than a minute") }
}

/// The agent's view of a run.
#[derive(Clone, Copy, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct Ran {
    /// What it received or sent, in bytes; of what it received, all after the first frame.
    pub bytes: u64,
    /// For how long: from the first frame to the last one, synced if it went to a file.
    pub micros: u64,
    /// The processor's time that its process took meanwhile, on all cores.
    pub processor_micros: u64,
}

/// The agent's host, as far as it matters for speed.
#[derive(Clone, Debug, Default, Encode, Decode, Eq, PartialEq)]
pub struct System {
    /// Where the program is; empty if the agent is restricted to a directory.
    pub program: String,
    /// The directory of Open as it is called from the root on; likewise.
    pub directory: String,
    pub processors: u32,
    /// Half of what the directory's file system has room for, in bytes; 0 if it cannot be written.
    pub room: u64,
    /// What one of them hashes, in bytes a second.
    pub hash_rate: u64,
    /// Settings of the network by the names that sysctl has for them, where the system tells.
    pub settings: Vec<(String, String)>,
}

/// The largest temporary file, in bytes: 16 GiB.
pub const MAX_FILE_LEN: u64 = 16 << 30;

/// The most small files of one measurement.
pub const MAX_FILES: u32 = 100_000;

/// The most that one run carries, in bytes: 1 TiB.
pub const MAX_RUN_LEN: u64 = 1 << 40;

/// The least and the most that one frame of a run carries, in bytes.
pub const MIN_FRAME_LEN: u32 = 64 << 10;
pub const MAX_FRAME_LEN: u32 = 1 << 20;

/// The longest that one thing is measured, in milliseconds.
pub const MAX_MILLIS: u32 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        let channels = vec![(0, 1), (1, 1)];
        let (len, bytes, millis) = (65_536, 1 << 30, 2000);
        Run { number: 1, toward_agent: true, on_disk: true, channels, len, bytes, millis }
    }

    /// MEASURE-5: nothing without a bound.
    #[test]
    fn what_goes_beyond_the_limits_is_named() {
        assert_eq!(run().check(2), Ok(()));
        assert!(run().check(1).is_err(), "more channels than the session has");
        assert!(Run { channels: Vec::new(), ..run() }.check(2).is_err());
        assert!(Run { channels: vec![(1, 1), (1, 1)], ..run() }.check(2).is_err());
        assert!(Run { len: 4095, ..run() }.check(2).is_err());
        assert!(Run { len: (1 << 20) + 1, ..run() }.check(2).is_err());
        assert!(Run { millis: 60_001, ..run() }.check(2).is_err());
        let bytes = MAX_FILE_LEN + 1;
        assert!(Run { bytes, ..run() }.check(2).is_err());
        assert!(Run { bytes, on_disk: false, ..run() }.check(2).is_ok());
        assert!(Run { bytes: MAX_RUN_LEN + 1, on_disk: false, ..run() }.check(2).is_err());
        let limits = DiskLimits { bytes: MAX_FILE_LEN, files: MAX_FILES, millis: MAX_MILLIS };
        assert_eq!(limits.check(), Ok(()));
        assert!(DiskLimits { bytes, ..limits }.check().is_err());
        assert!(DiskLimits { files: MAX_FILES + 1, ..limits }.check().is_err());
        assert!(DiskLimits { millis: MAX_MILLIS + 1, ..limits }.check().is_err());
    }

    #[test]
    fn frames_lie_where_their_offset_says() {
        let range = run().range(131_072).unwrap();
        assert_eq!((range.entry(), range.offset(), range.len()), (EntryId(1), 131_072, 65_536));
    }
}
