//! The configuration file, the built-in profiles, and which layer prevails.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy as _;
use serde::Deserialize;
use toml::Spanned;

use super::UsageError;
use super::settings::Settings;
use crate::engine::job::TransferConfig;

/// What the configuration file says. Without a file it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    global: Settings,
    profiles: BTreeMap<String, Settings>,
    /// Patterns and what they bring, in the order of the file.
    hosts: Vec<(String, Settings)>,
}

/// The file as it is written; [`Config`] is what it means.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    global: Settings,
    profiles: BTreeMap<String, Settings>,
    host: BTreeMap<Spanned<String>, Settings>,
}

impl Config {
    /// Reads the file that was named, or the default one if there is one.
    pub fn load(named: Option<&Path>) -> Result<Self, UsageError> {
        let Some(path) = named.map(Path::to_path_buf).or_else(default_path) else {
            return Ok(Self::default());
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(error) if named.is_none() && is_absent(&error) => Ok(Self::default()),
            Err(error) => {
                let text = format!("cannot read the configuration file {}: {error}", shown(&path));
                Err(UsageError::new(text))
            }
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, UsageError> {
        let at = |error: &toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start).min(text.len());
            text.get(..start).unwrap_or_default().matches('\n').count() + 1
        };
        let file: File = toml::from_str(text).map_err(|error| {
            let (line, message) = (at(&error), error.message());
            UsageError::new(format!("{}, line {line}: {message}", shown(path)))
        })?;
        if let Some((name, _)) = file.profiles.iter().find(|(_, it)| it.profile.is_some()) {
            let text = format!("{}: profiles.{name} names a profile itself", shown(path));
            return Err(UsageError::new(text));
        }
        let mut hosts: Vec<_> = file.host.into_iter().collect();
        hosts.sort_by_key(|(pattern, _)| pattern.span().start);
        let hosts = hosts.into_iter().map(|(pattern, it)| (pattern.into_inner(), it)).collect();
        Ok(Self { global: file.global, profiles: file.profiles, hosts })
    }

    /// All layers in one: flags before the environment, the host's sections, the profile, and the
    /// global section.
    pub fn resolve(
        &self,
        flags: Settings,
        environment: Settings,
        host: Option<&str>,
    ) -> Result<Settings, UsageError> {
        let upper = flags.or(environment).or(self.for_host(host));
        let profile = upper.profile.as_ref().or(self.global.profile.as_ref());
        let profile = profile.map(|name| self.profile(name)).transpose()?.unwrap_or_default();
        Ok(upper.or(profile).or(self.global.clone()))
    }

    /// What all sections that match a host say together: the later one in the file prevails.
    fn for_host(&self, host: Option<&str>) -> Settings {
        let Some(host) = host else { return Settings::default() };
        let matching = self.hosts.iter().filter(|(pattern, _)| matches(pattern, host));
        matching.fold(Settings::default(), |lower, (_, section)| section.clone().or(lower))
    }

    /// A profile of the file, or else a built-in one.
    fn profile(&self, name: &str) -> Result<Settings, UsageError> {
        if let Some(profile) = self.profiles.get(name) {
            return Ok(profile.clone());
        }
        let unknown = || {
            let own: Vec<_> = self.profiles.keys().map(String::as_str).collect();
            let known = [&BUILT_IN.map(|it| it.name)[..], &own].concat().join(", ");
            UsageError::new(format!("there is no profile {name:?}; there are {known}"))
        };
        let found = BUILT_IN.iter().find(|it| name == it.name || name == it.alias);
        let make = found.ok_or_else(unknown)?.make;
        Ok(Settings::from_profile(&make()))
    }
}

/// A profile that is there without a file.
struct BuiltIn {
    name: &'static str,
    /// The name of the library's function.
    alias: &'static str,
    make: fn() -> TransferConfig,
}

const BUILT_IN: [BuiltIn; 5] = [
    BuiltIn { name: "lan", alias: "lan_optimized", make: TransferConfig::lan_optimized },
    BuiltIn { name: "wan", alias: "wan_optimized", make: TransferConfig::wan_optimized },
    BuiltIn {
        name: "small-files",
        alias: "small_files_optimized",
        make: TransferConfig::small_files_optimized,
    },
    BuiltIn { name: "low-memory", alias: "low_memory", make: TransferConfig::low_memory },
    BuiltIn {
        name: "max-throughput",
        alias: "maximum_throughput",
        make: TransferConfig::maximum_throughput,
    },
];

/// `~/.config/fastsync/config.toml`, or below `$XDG_CONFIG_HOME`.
fn default_path() -> Option<PathBuf> {
    let strategy = etcetera::base_strategy::choose_base_strategy().ok()?;
    Some(strategy.config_dir().join("fastsync").join("config.toml"))
}

/// `~/.local/state/fastsync`, or below `$XDG_STATE_HOME`: what is to be remembered of transfers to places
/// that have no room for it.
pub fn state_directory() -> Option<PathBuf> {
    let strategy = etcetera::base_strategy::choose_base_strategy().ok()?;
    Some(strategy.state_dir()?.join("fastsync"))
}

/// A default file that is not there; a parent that is a file counts too.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    crate::protocol::manifest::Escaped(path.as_os_str().as_bytes()).to_string()
}

/// Whether a pattern with `*` (any characters) and `?` (one character) is all of a name.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut from) = (0, 0);
    // The last star, and how much of the name it has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(c) if *c == '?' || c.eq_ignore_ascii_case(&name[from]) => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    at = star_at + 1;
                    from = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::units::{ChunkBytes, Streams};

    fn parse(text: &str) -> Result<Config, UsageError> {
        Config::parse(text, Path::new("/c.toml"))
    }

    fn streams(count: u16) -> Settings {
        Settings { streams: Some(Streams(count)), ..Settings::default() }
    }

    fn profile(name: &str) -> Settings {
        Settings { profile: Some(name.into()), ..Settings::default() }
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"
            [global]
            parallel_streams = 4
            chunk_size = "16M"
            buffer_size = 67108864
            checksum = "blake3"
            resume = "verify"
            [profiles.far]
            tcp_send_buffer = "16MiB"
            tcp_recv_buffer = "16M"
            pack_threshold = "1M"
            congestion = "bbr"
            [host."*.example.org"]
            agent_path = "/opt/fastsync"
            profile = "far"
            encrypt = false
            retries = 9
            port_range = "5000:5009"
            durability = "none"
            "#,
        );
        let host = Some("dtn.example.org");
        let none = Settings::default;
        let merged = config.unwrap().resolve(none(), none(), host).unwrap();
        assert_eq!(merged.agent_path.as_ref().unwrap().0, "/opt/fastsync");
        let config = merged.to_config();
        assert_eq!((config.streams, config.chunk_size.bytes()), (4, 16 << 20));
        assert_eq!((config.buffer_size, config.pack_threshold), (Some(64 << 20), 1 << 20));
        assert_eq!(config.resume, crate::protocol::message::Resume::Verify);
        assert_eq!(config.durability, crate::protocol::message::Durability::None);
        assert_eq!((config.encrypt, config.retries), (false, 9));
        assert_eq!(config.port_range, Some((5000, 5009)));
        assert_eq!(config.sockets.send_buffer, Some(16 << 20));
        assert_eq!(config.sockets.receive_buffer, Some(16 << 20));
        assert_eq!(config.sockets.congestion.as_deref(), Some("bbr"));
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let error = |text| parse(text).unwrap_err().to_string();
        let unknown = error("[global]\nparalel_streams = 4\n");
        assert!(
            unknown.starts_with("/c.toml, line 2: unknown field `paralel_streams`"),
            "{unknown}"
        );
        assert!(error("[globl]\n").contains("unknown field `globl`"));
        let size = error("[global]\n\n[profiles.x]\nchunk_size = \"10M\"\n");
        assert!(size.starts_with("/c.toml, line 4: 10M is not a power of two"), "{size}");
        assert!(error("[global]\nparallel_streams = 0").contains("line 2"));
        assert!(error("[global]\nparallel_streams = -1").contains("line 2"));
        assert!(error("[global]\nchecksum = \"md5\"").contains("blake3"));
        assert!(error("[profiles.x]\nprofile = \"lan\"").contains("profiles.x"));
        assert!(error("[global").contains("line 1"));
    }

    #[test]
    fn a_named_file_must_exist() {
        let missing = Config::load(Some(Path::new("/nonexistent/c.toml")));
        let text = missing.unwrap_err().to_string();
        assert!(text.contains("/nonexistent/c.toml"), "{text}");
    }

    /// Flag, environment, host, profile, global, default: each alone and above all below it.
    #[test]
    fn each_layer_prevails_over_those_below() {
        let config = parse(
            "[global]\nparallel_streams = 2\n[profiles.p]\nparallel_streams = 3\n\
             [host.\"h\"]\nparallel_streams = 4\n",
        );
        let (config, none) = (config.unwrap(), Settings::default);
        let resolved = |flags: Settings, environment: Settings, host| {
            config.resolve(flags, environment, host).unwrap().to_config().streams
        };
        assert_eq!(Config::default().resolve(none(), none(), None).unwrap().to_config().streams, 8);
        assert_eq!(resolved(none(), none(), None), 2);
        assert_eq!(resolved(profile("p"), none(), None), 3);
        assert_eq!(resolved(none(), profile("p"), None), 3);
        assert_eq!(resolved(profile("p"), none(), Some("h")), 4);
        assert_eq!(resolved(profile("p"), streams(5), Some("h")), 5);
        assert_eq!(resolved(streams(6).or(profile("p")), streams(5), Some("h")), 6);
        assert_eq!(resolved(none(), none(), Some("other")), 2);
    }

    #[test]
    fn the_profile_itself_has_the_same_precedence() {
        let config =
            parse("[global]\nprofile = \"lan\"\n[host.\"h\"]\nprofile = \"wan\"\n").unwrap();
        let none = Settings::default;
        let chunk = |flags, environment, host| {
            let settings = config.resolve(flags, environment, host).unwrap();
            settings.to_config().chunk_size.bytes() >> 20
        };
        assert_eq!(chunk(none(), none(), None), 16);
        assert_eq!(chunk(none(), none(), Some("h")), 4);
        assert_eq!(chunk(none(), profile("low-memory"), Some("h")), 1);
        assert_eq!(chunk(profile("max-throughput"), profile("low-memory"), Some("h")), 32);
    }

    #[test]
    fn later_host_sections_prevail() {
        let text = "[host.\"z*\"]\nparallel_streams = 1\nretries = 7\n\
                    [host.\"*\"]\nparallel_streams = 2\n[host.\"a*\"]\nparallel_streams = 3\n";
        let config = parse(text).unwrap();
        let resolved = |host| {
            let none = Settings::default;
            config.resolve(none(), none(), Some(host)).unwrap().to_config()
        };
        assert_eq!((resolved("zoo").streams, resolved("zoo").retries), (2, 7));
        assert_eq!((resolved("ape").streams, resolved("ape").retries), (3, 5));
    }

    #[test]
    fn built_in_profiles_are_those_of_the_library() {
        for BuiltIn { name, alias, make } in BUILT_IN {
            for name in [name, alias] {
                let settings = Config::default().profile(name).unwrap();
                assert_eq!(settings.to_config(), make(), "{name}");
            }
        }
        let error = Config::default().profile("warp").unwrap_err().to_string();
        assert!(error.contains("small-files"), "{error}");
    }

    #[test]
    fn an_own_profile_replaces_a_built_in_one() {
        let config = parse("[profiles.wan]\nchunk_size = \"2M\"\n").unwrap();
        let settings = config.profile("wan").unwrap();
        let chunk_size: ChunkBytes = "2M".parse().unwrap();
        assert_eq!(settings, Settings { chunk_size: Some(chunk_size), ..Settings::default() });
        assert_eq!(config.profile("wan_optimized").unwrap().streams, Some(Streams(8)));
    }

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "x"),
            ("a*c", "abbc"),
            ("a?c", "abc"),
            ("*.b.*", "a.b.b.c"),
            ("DTN", "dtn"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("", "x"), ("a", "ab"), ("?", ""), ("a*c", "abcd"), ("*x", "xy")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
