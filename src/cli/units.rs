//! Values as people write them: in flags, in the environment and in the configuration file alike.
//!
//! Each type is parsed from text in one place, so the three ways of setting a value cannot differ.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use thiserror::Error;

use crate::engine::job::Transport;
use crate::protocol::chunk::ChunkSize;
use crate::protocol::message::{Durability, Resume};

/// A text that is no value of the wanted kind, and what would be one.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{0}")]
pub struct ValueError(String);

impl ValueError {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// How many data channels: 1 to 256.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Streams(pub u16);

impl FromStr for Streams {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let streams = text.parse().ok().filter(|streams| (1..=MAX_STREAMS).contains(streams));
        let wrong = || ValueError(format!("{text} is not a number from 1 to {MAX_STREAMS}"));
        streams.map(Self).ok_or_else(wrong)
    }
}

/// How often something is tried again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Retries(pub u32);

impl FromStr for Retries {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = |_| ValueError(format!("{text} is not a number from 0 to {}", u32::MAX));
        text.parse().map(Self).map_err(wrong)
    }
}

/// How long something was left alone: `90s`, `15m`, `12h`, `7d`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Age(pub Duration);

impl FromStr for Age {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError(format!("{text} is not an age: write 90s, 15m, 12h or 7d"));
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let seconds: u64 = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(seconds).map(|it| Self(Duration::from_secs(it))).ok_or_else(wrong)
    }
}

/// A number of bytes: `512`, `64K`, `8MiB`. Units are binary.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            let units = "K, M, G or T (binary units; KiB, MiB and so on are the same)";
            ValueError(format!(
                "{text} is not a size: write a number of bytes, or one with {units}"
            ))
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let bytes = number.checked_mul(1 << shift);
        bytes.map(Self).ok_or_else(|| ValueError(format!("{text} is too large a size")))
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        let fits = |shift: &u32| self.0 != 0 && self.0.trailing_zeros() >= *shift;
        match units.iter().find(|(shift, _)| fits(shift)) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A size from 1 byte to `MAX`, such as a socket buffer's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limited<const MAX: u32>(pub u32);

impl<const MAX: u32> FromStr for Limited<MAX> {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let ByteSize(bytes) = text.parse()?;
        let size = u32::try_from(bytes).ok().filter(|size| (1..=MAX).contains(size));
        let wrong = || ValueError(format!("{text} is not a size up to {}", ByteSize(MAX.into())));
        size.map(Self).ok_or_else(wrong)
    }
}

/// The size of a kernel's socket buffer: at most 1 GiB.
pub type SocketSize = Limited<{ 1 << 30 }>;

/// Below which size files travel in packs: at most 64 MiB.
pub type PackThreshold = Limited<{ 64 << 20 }>;

/// A chunk size: a power of two from 64 KiB to 64 MiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkBytes(pub ChunkSize);

impl FromStr for ChunkBytes {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let ByteSize(bytes) = text.parse()?;
        let wrong = || {
            ValueError(format!(
                "{text} is not a power of two from {} to {}; {}",
                ByteSize(ChunkSize::MIN.bytes()),
                ByteSize(ChunkSize::MAX.bytes()),
                nearest_chunk_sizes(bytes)
            ))
        };
        ChunkSize::from_bytes(bytes).map(Self).ok_or_else(wrong)
    }
}

/// The valid chunk sizes next to one that is not, as the end of a sentence.
fn nearest_chunk_sizes(bytes: u64) -> String {
    let (min, max) = (ChunkSize::MIN.bytes(), ChunkSize::MAX.bytes());
    if bytes <= min || bytes >= max {
        return format!("the nearest is {}", ByteSize(bytes.clamp(min, max)));
    }
    let above = bytes.next_power_of_two();
    format!("the nearest are {} and {}", ByteSize(above / 2), ByteSize(above))
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "on" | "true" | "yes" | "1" => Ok(Self(true)),
            "off" | "false" | "no" | "0" => Ok(Self(false)),
            _ => Err(ValueError(format!("{text} is neither `on` nor `off`"))),
        }
    }
}

/// What to make of what an earlier run left: `on`, `verify` or `off`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ResumeMode(pub Resume);

impl FromStr for ResumeMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "verify" {
            return Ok(Self(Resume::Verify));
        }
        let wrong = |_| ValueError(format!("{text} is none of `on`, `verify` and `off`"));
        let Switch(on) = text.parse().map_err(wrong)?;
        Ok(Self(if on { Resume::Trust } else { Resume::Never }))
    }
}

/// When data must be on stable storage: `none`, `batch` or `file`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DurabilityMode(pub Durability);

impl FromStr for DurabilityMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "batch" => Ok(Self(Durability::Batch)),
            "file" => Ok(Self(Durability::File)),
            "none" => Ok(Self(Durability::None)),
            _ => Err(ValueError(format!("{text} is none of `none`, `batch` and `file`"))),
        }
    }
}

/// The one checksum there is. The key exists so that a file may say so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Checksum;

impl FromStr for Checksum {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError(format!("the checksum {text} is not known: there is `blake3`"));
        (text == "blake3").then_some(Self).ok_or_else(wrong)
    }
}

/// `LO:HI`, both included, or one port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortRange(pub u16, pub u16);

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (low, high) = text.split_once(':').unwrap_or((text, text));
        match (low.parse(), high.parse()) {
            (Ok(low), Ok(high)) if 0 < low && low <= high => Ok(Self(low, high)),
            _ => Err(ValueError(format!(
                "{text} is not a port range: write LO:HI with 1 <= LO <= HI <= 65535"
            ))),
        }
    }
}

/// What data channels run over: `auto`, `tcp`, `quic` or `ssh`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TransportMode(pub Transport);

impl FromStr for TransportMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "auto" => Ok(Self(Transport::Auto)),
            "tcp" => Ok(Self(Transport::Tcp)),
            "quic" => Ok(Self(Transport::Quic)),
            "ssh" => Ok(Self(Transport::Ssh)),
            _ => Err(ValueError(format!("{text} is none of `auto`, `tcp`, `quic` and `ssh`"))),
        }
    }
}

/// Names or addresses of a host, with commas between them, without ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addresses(pub Vec<String>);

impl FromStr for Addresses {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:%[]".contains(c);
        let names = text.split(',').map(|name| name.trim_matches(['[', ']']).to_owned());
        let names: Vec<String> = names.collect();
        if names.iter().all(|name| !name.is_empty() && name.chars().all(plain)) {
            Ok(Self(names))
        } else {
            Err(ValueError(format!("{text} is no list of addresses: write ADDRESS,ADDRESS")))
        }
    }
}

/// How many ssh connections carry data: `auto`, or 1 to 64.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SshConnections(pub Option<u16>);

impl FromStr for SshConnections {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "auto" {
            return Ok(Self(None));
        }
        let count = text.parse().ok().filter(|count| (1..=64).contains(count));
        let wrong = || ValueError(format!("{text} is neither `auto` nor a number from 1 to 64"));
        count.map(|count| Self(Some(count))).ok_or_else(wrong)
    }
}

/// Where a bucket's name stands in URLs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Addressing {
    Path,
    Host,
}

impl FromStr for Addressing {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "path" => Ok(Self::Path),
            "host" => Ok(Self::Host),
            _ => Err(ValueError(format!("{text} is neither `path` nor `host`"))),
        }
    }
}

/// How many requests at a time: 1 to 1024.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Requests(pub u16);

impl FromStr for Requests {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let count = text.parse().ok().filter(|count| (1..=1024).contains(count));
        let wrong = || ValueError(format!("{text} is not a number from 1 to 1024"));
        count.map(Self).ok_or_else(wrong)
    }
}

/// A hash of 32 bytes, in hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HexDigest(pub [u8; 32]);

impl FromStr for HexDigest {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = |_| ValueError(format!("{text} is not 64 hexadecimal digits"));
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(wrong)
    }
}

/// The name of a congestion control algorithm, as Linux allows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Congestion(pub String);

impl FromStr for Congestion {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let named = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let valid = (1..=MAX_CONGESTION_LEN).contains(&text.len()) && text.chars().all(named);
        let wrong = || ValueError(format!("{text} is no name of a congestion control"));
        valid.then(|| Self(text.into())).ok_or_else(wrong)
    }
}

/// Where the agent's binary is on the other host. It becomes part of a remote command line, so
/// nothing that a shell would obey may be in it (R2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentPath(pub String);

impl FromStr for AgentPath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%=:,~".contains(c);
        let valid = !text.is_empty() && !text.starts_with('-') && text.chars().all(plain);
        let wrong = || {
            let allowed = "letters, digits and any of / . _ - + @ % = : , ~";
            ValueError(format!("{text:?} cannot be the agent's path: use {allowed} only"))
        };
        valid.then(|| Self(text.into())).ok_or_else(wrong)
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProgressMode {
    /// A display on a terminal, plain lines elsewhere.
    Auto,
    Terminal,
    Plain,
    Json,
    None,
}

impl FromStr for ProgressMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "auto" => Ok(Self::Auto),
            "tty" => Ok(Self::Terminal),
            "plain" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            "none" => Ok(Self::None),
            _ => Err(ValueError(format!("{text} is none of auto, tty, plain, json and none"))),
        }
    }
}

/// Reads a TOML string, number or boolean through the same parser as a flag.
struct TextVisitor<T>(PhantomData<T>);

impl<T: FromStr<Err = ValueError>> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a whole number or a boolean")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<T, E> {
        self.visit_str(if on { "true" } else { "false" })
    }
}

macro_rules! deserialize_as_text {
    ($($type:ty),*) => {
        $(impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextVisitor(PhantomData))
            }
        })*
    };
}

deserialize_as_text!(Streams, Retries, ByteSize, ChunkBytes, Switch, ResumeMode, DurabilityMode);
deserialize_as_text!(TransportMode, Addresses, SshConnections, Addressing, Requests);
deserialize_as_text!(Checksum, PortRange, Congestion, AgentPath, SocketSize, PackThreshold);

const MAX_STREAMS: u16 = 256;

/// Linux's `TCP_CA_NAME_MAX` without the zero byte.
const MAX_CONGESTION_LEN: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Option<u64> {
        text.parse::<ByteSize>().ok().map(|size| size.0)
    }

    #[test]
    fn ages_have_units() {
        let seconds = |text: &str| text.parse::<Age>().map(|age| age.0.as_secs()).ok();
        assert_eq!(seconds("90s"), Some(90));
        assert_eq!((seconds("15m"), seconds("12h")), (Some(900), Some(43_200)));
        assert_eq!((seconds("7d"), seconds("0s")), (Some(604_800), Some(0)));
        for wrong in ["", "7", "d", "-1d", "1w", "7 d", "99999999999999999d"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_in_binary_units() {
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("512"), Some(512));
        assert_eq!(size("512B"), Some(512));
        assert_eq!(size("64K"), Some(65_536));
        assert_eq!(size("64k"), Some(65_536));
        assert_eq!(size("8MiB"), Some(8 << 20));
        assert_eq!(size("1G"), Some(1 << 30));
        assert_eq!(size("2tib"), Some(2 << 40));
        for wrong in
            ["", "K", "-1", "+1", "1.5M", "8MB", "8 M", "1X", "18446744073709551616", "9999999999T"]
        {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_chunk_size_names_the_nearest() {
        let error = |text: &str| text.parse::<ChunkBytes>().unwrap_err().to_string();
        assert!(error("10M").ends_with("the nearest are 8M and 16M"), "{}", error("10M"));
        assert!(error("1").ends_with("the nearest is 64K"));
        assert!(error("32K").ends_with("the nearest is 64K"));
        assert!(error("128M").ends_with("the nearest is 64M"));
        assert!(error("63M").ends_with("the nearest are 32M and 64M"));
        assert_eq!("64K".parse(), Ok(ChunkBytes(ChunkSize::MIN)));
        assert_eq!("64MiB".parse(), Ok(ChunkBytes(ChunkSize::MAX)));
    }

    #[test]
    fn numbers_keep_their_limits() {
        assert_eq!("1".parse(), Ok(Streams(1)));
        assert!("0".parse::<Streams>().is_err());
        assert!("257".parse::<Streams>().is_err());
        assert_eq!("1G".parse::<SocketSize>().unwrap().0, 1 << 30);
        assert!("2G".parse::<SocketSize>().is_err());
        assert!("0".parse::<PackThreshold>().is_err());
        assert!("65M".parse::<PackThreshold>().is_err());
    }

    #[test]
    fn port_ranges_go_upwards() {
        assert_eq!("5000:5100".parse(), Ok(PortRange(5000, 5100)));
        assert_eq!("5000".parse(), Ok(PortRange(5000, 5000)));
        for wrong in ["", ":", "0:5", "10:5", "5:", ":5", "5:70000", "5-6", "1:2:3"] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong}");
        }
    }

    /// R2.
    #[test]
    fn an_agent_path_has_nothing_for_a_shell() {
        assert!("~/bin/fastsync-0.1".parse::<AgentPath>().is_ok());
        for wrong in ["", "-x", "a b", "a;b", "$(id)", "a'b", "a\"b", "a\nb", "a`b", "a&b", "a*"] {
            assert!(wrong.parse::<AgentPath>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn words_are_the_documented_ones() {
        assert_eq!("verify".parse(), Ok(ResumeMode(Resume::Verify)));
        assert_eq!("on".parse(), Ok(ResumeMode(Resume::Trust)));
        assert_eq!("false".parse(), Ok(ResumeMode(Resume::Never)));
        assert_eq!("none".parse(), Ok(DurabilityMode(Durability::None)));
        assert_eq!("file".parse(), Ok(DurabilityMode(Durability::File)));
        assert_eq!("tty".parse(), Ok(ProgressMode::Terminal));
        assert!("md5".parse::<Checksum>().is_err());
        assert!("maybe".parse::<Switch>().is_err());
        assert!("a b".parse::<Congestion>().is_err());
    }
}
