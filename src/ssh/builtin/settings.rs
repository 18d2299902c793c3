//! What ssh's configuration says about one host: asked from `ssh -G` where an ssh program is, and
//! read by [`super::config`] elsewhere.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::config::{self, Config};
use super::error::Error;
use crate::ssh::{Client, Login, is_installed};

/// The settings for one host. Keywords are in small letters, as `ssh -G` prints them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As the user calls the host.
    pub name: String,
    values: Values,
}

/// Each keyword with its values; of most, ssh takes the first value that it is given.
pub type Values = BTreeMap<String, Vec<String>>;

impl Settings {
    /// Finds the settings for a login.
    ///
    /// # Errors
    ///
    /// If a file or a flag says what the built-in client does not understand.
    pub async fn of(login: &Login) -> Result<Self, Error> {
        let values = if is_installed("ssh") {
            let told = login.told(OsStr::new("ssh")).await;
            let told = told.map_err(|error| Error::Configuration(format!("ssh -G: {error}")))?;
            told_values(&told)
        } else {
            Config::of_login(login)?.read()?
        };
        Ok(Self { name: login.host.clone(), values })
    }

    #[cfg(test)]
    pub fn new(name: &str, values: Values) -> Self {
        Self { name: name.to_owned(), values }
    }

    pub fn value(&self, keyword: &str) -> Option<&str> {
        self.values(keyword).next()
    }

    pub fn values(&self, keyword: &str) -> impl Iterator<Item = &str> {
        self.values.get(keyword).into_iter().flatten().map(String::as_str)
    }

    /// Whether a keyword says `yes`, or `otherwise` if it is not there.
    pub fn is_yes(&self, keyword: &str, otherwise: bool) -> bool {
        self.value(keyword).map_or(otherwise, |value| {
            ["yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
        })
    }

    fn number(&self, keyword: &str) -> Option<u64> {
        self.value(keyword)?.parse().ok()
    }

    pub fn host(&self) -> String {
        let host = self.value("hostname").unwrap_or("%h");
        host.replace("%%", "\0").replace("%h", &self.name).replace('\0', "%")
    }

    pub fn port(&self) -> u16 {
        self.number("port").and_then(|port| port.try_into().ok()).unwrap_or(22)
    }

    pub fn user(&self) -> String {
        self.value("user").map_or_else(config::local_user, str::to_owned)
    }

    /// After how long a silent server is asked whether it is there.
    pub fn alive_interval(&self) -> Option<Duration> {
        self.number("serveraliveinterval").filter(|it| *it > 0).map(Duration::from_secs)
    }

    /// How often it is asked before it counts as lost.
    pub fn alive_count(&self) -> usize {
        self.number("serveralivecountmax").and_then(|it| it.try_into().ok()).unwrap_or(3)
    }

    pub fn connect_timeout(&self) -> Duration {
        let asked = self.number("connecttimeout").filter(|it| *it > 0).map(Duration::from_secs);
        asked.unwrap_or(CONNECT_TIMEOUT)
    }

    /// How often a person may mistype.
    pub fn password_prompts(&self) -> u64 {
        self.number("numberofpasswordprompts").unwrap_or(3).clamp(1, 100)
    }

    /// The hosts to go through, the first one first.
    pub fn jumps(&self) -> Vec<&str> {
        match self.value("proxyjump") {
            None => Vec::new(),
            Some(none) if none.eq_ignore_ascii_case("none") => Vec::new(),
            Some(hosts) => hosts.split(',').map(str::trim).collect(),
        }
    }

    /// The command that connects in place of this client.
    ///
    /// # Errors
    ///
    /// If it has a token that means nothing.
    pub fn proxy_command(&self) -> Result<Option<String>, Error> {
        let is_one = |command: &&str| !command.eq_ignore_ascii_case("none");
        self.value("proxycommand").filter(is_one).map(|command| self.tokens(command)).transpose()
    }

    /// The files that a keyword names.
    ///
    /// # Errors
    ///
    /// If one has a token that means nothing.
    pub fn files(&self, keyword: &str) -> Result<Vec<PathBuf>, Error> {
        let named = self.values(keyword).filter(|name| !name.eq_ignore_ascii_case("none"));
        named.map(|name| self.file(name)).collect()
    }

    /// A path with what `~`, `%` and `${}` in it mean.
    ///
    /// # Errors
    ///
    /// If they mean nothing.
    pub fn file(&self, name: &str) -> Result<PathBuf, Error> {
        Ok(config::path(&self.tokens(&config::variables(name)?)?))
    }

    /// The files with keys, and whether they were named, so that one that is missing is worth a word.
    pub fn identities(&self) -> Result<(Vec<PathBuf>, bool), Error> {
        let named = self.files("identityfile")?;
        if self.values("identityfile").next().is_some() {
            return Ok((named, true));
        }
        let usual = ["id_rsa", "id_ecdsa", "id_ed25519"];
        Ok((usual.iter().map(|name| config::path(&format!("~/.ssh/{name}"))).collect(), false))
    }

    /// The files with known hosts: the user's, and the system's.
    pub fn known_hosts(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Error> {
        let files = |keyword: &str, usual: [&str; 2]| match self.value(keyword) {
            Some(_) => self.files(keyword),
            None => Ok(usual.iter().map(|name| config::path(name)).collect()),
        };
        Ok((
            files("userknownhostsfile", ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"])?,
            files(
                "globalknownhostsfile",
                ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"],
            )?,
        ))
    }

    /// Where the agent listens that keeps keys.
    pub fn agent(&self) -> Result<Option<PathBuf>, Error> {
        let of_environment =
            |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(match self.value("identityagent") {
            None | Some("SSH_AUTH_SOCK") => of_environment("SSH_AUTH_SOCK"),
            Some(none) if none.eq_ignore_ascii_case("none") => None,
            Some(name) => match name.strip_prefix('$').filter(|it| !it.starts_with('{')) {
                Some(variable) => of_environment(variable),
                None => Some(self.file(name)?),
            },
        })
    }

    /// What stands for `%` and a letter (`ssh_config(5)`, TOKENS).
    fn tokens(&self, text: &str) -> Result<String, Error> {
        let mut whole = String::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                whole.push(c);
                continue;
            }
            match rest.next() {
                Some('%') => whole.push('%'),
                Some('h') => whole.push_str(&self.host()),
                Some('n') => whole.push_str(&self.name),
                Some('p') => whole.push_str(&self.port().to_string()),
                Some('r') => whole.push_str(&self.user()),
                Some('u') => whole.push_str(&config::local_user()),
                Some('d') => whole.push_str(&config::path("~").display().to_string()),
                Some('i') => whole.push_str(&rustix::process::getuid().as_raw().to_string()),
                Some('k') => {
                    whole.push_str(self.value("hostkeyalias").unwrap_or(&self.name));
                }
                other => {
                    let token: String = ['%'].into_iter().chain(other).collect();
                    let text = format!("{text}: the built-in ssh client does not know {token}");
                    return Err(Error::Configuration(text));
                }
            }
        }
        Ok(whole)
    }

    /// How to log in to a jump host: with the same configuration file, and nothing else of the flags,
    /// as ssh does.
    ///
    /// # Errors
    ///
    /// If it is no `[user@]host[:port]`.
    pub fn jump(login: &Login, hop: &str, before: &[&str]) -> Result<Login, Error> {
        let wrong = || Error::Configuration(format!("{hop} is no jump host: [user@]host[:port]"));
        let text = hop.strip_prefix("ssh://").unwrap_or(hop);
        let (user, place) = match text.rsplit_once('@') {
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, text),
        };
        let (host, port) = match place.strip_prefix('[').and_then(|it| it.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            None => match place.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (place, None),
            },
        };
        let port = port.map(|port| port.parse().map_err(|_| wrong())).transpose()?;
        let user_is_wrong = user.as_ref().is_some_and(|it| it.is_empty() || it.starts_with('-'));
        if host.is_empty() || host.starts_with('-') || user_is_wrong {
            return Err(wrong());
        }
        let mut arguments = Vec::new();
        for (flag, value) in config::flags(&login.arguments)? {
            if flag == 'F' {
                arguments.extend([OsString::from("-F"), value]);
            }
        }
        if !before.is_empty() {
            arguments.extend(["-J".into(), before.join(",").into()]);
        }
        Ok(Login { client: Client::Builtin, arguments, host: host.to_owned(), user, port })
    }
}

/// What `ssh -G` printed.
fn told_values(text: &str) -> Values {
    let mut values = Values::new();
    for line in text.lines() {
        let Some((keyword, value)) = line.split_once(' ') else { continue };
        let found = values.entry(keyword.to_ascii_lowercase()).or_default();
        if keyword.ends_with("knownhostsfile") {
            found.extend(value.split_whitespace().map(str::to_owned));
        } else {
            found.push(value.to_owned());
        }
    }
    values
}

/// A path as it is told to people.
pub fn told(path: &Path) -> String {
    path.display().to_string()
}

/// How long a server may take to answer, unless `ConnectTimeout` says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_mins(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn login(arguments: &[&str]) -> Login {
        Login {
            client: Client::Builtin,
            arguments: arguments.iter().map(Into::into).collect(),
            host: "h".into(),
            user: None,
            port: None,
        }
    }

    #[test]
    fn what_ssh_tells_is_understood() {
        let settings = Settings::new(
            "alias",
            told_values(
                "user me\nhostname host.example\nport 2222\nidentityfile ~/.ssh/a\nidentityfile /b c\n\
                 userknownhostsfile /k1 /k2\nproxyjump one,two:3\nproxycommand nc %h %p %r %n %%\n\
                 identitiesonly yes\nserveraliveinterval 0\nidentityagent none\n",
            ),
        );
        assert_eq!((&*settings.host(), settings.port()), ("host.example", 2222));
        assert_eq!(settings.user(), "me");
        assert!(settings.identities().unwrap().0.ends_with(&["/b c".into()]));
        assert_eq!(settings.known_hosts().unwrap().0, [Path::new("/k1"), Path::new("/k2")]);
        assert_eq!(settings.jumps(), ["one", "two:3"]);
        let command = settings.proxy_command().unwrap().unwrap();
        assert_eq!(command, "nc host.example 2222 me alias %");
        assert!(settings.is_yes("identitiesonly", false) && settings.is_yes("nothing", true));
        assert_eq!((settings.alive_interval(), settings.agent().unwrap()), (None, None));
        assert_eq!(settings.alive_count(), 3, "as ssh has it");
        assert!(settings.file("/%Z").is_err() && settings.file("/%").is_err());
    }

    #[test]
    fn jump_hosts_are_read_as_ssh_reads_them() {
        let login = login(&["-F", "file", "-oPort=3", "-i", "key"]);
        for (hop, user, host, port) in [
            ("gate", None, "gate", None),
            ("me@gate:22", Some("me"), "gate", Some(22)),
            ("ssh://me@gate:22", Some("me"), "gate", Some(22)),
            ("[::1]:5", None, "::1", Some(5)),
            ("::1", None, "::1", None),
        ] {
            let jump = Settings::jump(&login, hop, &["a", "b"]).unwrap();
            let found = (jump.user.as_deref(), &*jump.host, jump.port);
            assert_eq!(found, (user, host, port), "{hop}");
            assert_eq!(jump.arguments, ["-F", "file", "-J", "a,b"]);
        }
        for hop in ["", "-x", "a:b", "@h", "-l@h", "[::1]5", "h:99999"] {
            assert!(Settings::jump(&login, hop, &[]).is_err(), "{hop}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_ssh_tells_panics(text: String, hop: String) {
            let settings = Settings::new("h", told_values(&text));
            let _ = (settings.host(), settings.port(), settings.identities(), settings.agent());
            let _ = (settings.proxy_command(), settings.known_hosts(), settings.jumps());
            let _ = (settings.file(&text), Settings::jump(&login(&[]), &hop, &[]));
        }
    }
}
