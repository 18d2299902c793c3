//! The configuration files of ssh, read plainly: `Host` with patterns, `Include`, and options.
//!
//! `Match`, which ssh itself decides in several passes, is refused with the file and the line.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::pattern::{any_matches, matches};
use super::settings::Values;
use crate::ssh::Login;

/// The configuration for one login.
#[derive(Debug)]
pub struct Config {
    host: String,
    values: Values,
    files: Vec<PathBuf>,
    /// The file must be there, as the user named it.
    is_named: bool,
}

impl Config {
    /// Takes what ssh's flags say; the files are still to be read.
    ///
    /// # Errors
    ///
    /// If a flag is not understood.
    pub fn of_login(login: &Login) -> Result<Self, Error> {
        let usual = || vec![path("~/.ssh/config"), PathBuf::from("/etc/ssh/ssh_config")];
        let mut config = Self {
            host: login.host.clone(),
            values: Values::new(),
            files: usual(),
            is_named: false,
        };
        for (flag, value) in flags(&login.arguments)? {
            let text = || {
                value.to_str().map(str::to_owned).ok_or_else(|| {
                    Error::Configuration(format!("-{flag} {} is not UTF-8", value.display()))
                })
            };
            match flag {
                'F' => {
                    config.is_named = value != "none";
                    let files = [PathBuf::from(&value)];
                    config.files = files.into_iter().filter(|_| value != "none").collect();
                }
                'J' => config.add("proxyjump", vec![text()?]),
                'i' => config.add("identityfile", vec![text()?]),
                'p' => config.add("port", vec![text()?]),
                'l' => config.add("user", vec![text()?]),
                _ => {
                    let text = text()?;
                    let wrong = || Error::Configuration(format!("-o {text}: not understood"));
                    let (keyword, rest) = split(&text).ok_or_else(wrong)?;
                    let arguments = words(rest).ok_or_else(wrong)?;
                    config.add_option(&keyword, rest, arguments);
                }
            }
        }
        login.user.iter().for_each(|user| config.add("user", vec![user.clone()]));
        login.port.iter().for_each(|port| config.add("port", vec![port.to_string()]));
        Ok(config)
    }

    /// Reads the files.
    ///
    /// # Errors
    ///
    /// If one cannot be read, or says what is not understood.
    pub fn read(mut self) -> Result<Values, Error> {
        for (number, file) in std::mem::take(&mut self.files).iter().enumerate() {
            let is_wanted = self.is_named && number == 0;
            self.read_file(file, is_wanted, 0)?;
        }
        Ok(self.values)
    }

    fn read_file(&mut self, file: &Path, is_wanted: bool, depth: u32) -> Result<(), Error> {
        let wrong = |cause: String| Error::Configuration(format!("{}: {cause}", file.display()));
        let text = match fs::read(file) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_wanted => return Ok(()),
            Err(error) => return Err(wrong(format!("cannot read it: {error}"))),
        };
        self.read_text(&text, file, depth)
    }

    fn read_text(&mut self, text: &str, file: &Path, depth: u32) -> Result<(), Error> {
        let mut is_meant = true;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |cause: &str| {
                Error::Configuration(format!("{} line {number}: {cause}", file.display()))
            };
            let (keyword, rest) = split(line).ok_or_else(|| wrong("it has no value"))?;
            let arguments = words(rest).ok_or_else(|| wrong("a quote is not closed"))?;
            match &*keyword {
                "host" => {
                    is_meant = any_matches(arguments.iter().map(String::as_str), &self.host);
                }
                "match" if arguments.len() == 1 && arguments[0].eq_ignore_ascii_case("all") => {
                    is_meant = true;
                }
                "match" => {
                    return Err(wrong(
                        "the built-in ssh client does not understand Match; give it a file without \
                         (-F), or install ssh",
                    ));
                }
                "include" if is_meant => {
                    if depth >= MAX_DEPTH {
                        return Err(wrong("files include each other too deeply"));
                    }
                    for name in &arguments {
                        for found in included(name, file).map_err(|cause| wrong(&cause))? {
                            self.read_file(&found, false, depth + 1)?;
                        }
                    }
                }
                _ if is_meant => self.add_option(&keyword, rest, arguments),
                _ => {}
            }
        }
        Ok(())
    }

    fn add_option(&mut self, keyword: &str, rest: &str, arguments: Vec<String>) {
        match keyword {
            "proxycommand" => self.add(keyword, vec![rest.to_owned()]),
            "userknownhostsfile" | "globalknownhostsfile" => self.add(keyword, arguments),
            _ => self.add(keyword, arguments.into_iter().take(1).collect()),
        }
    }

    /// Of most options the first value counts; files with keys add up.
    fn add(&mut self, keyword: &str, values: Vec<String>) {
        let is_list = ["identityfile", "certificatefile"].contains(&keyword);
        let other = ["proxyjump", "proxycommand"].into_iter().find(|it| *it != keyword);
        let is_proxy = keyword == "proxyjump" || keyword == "proxycommand";
        if is_proxy && other.is_some_and(|other| self.values.contains_key(other)) {
            return; // of these two, the first one counts
        }
        if is_list || !self.values.contains_key(keyword) {
            self.values.entry(keyword.to_owned()).or_default().extend(values);
        }
    }
}

/// ssh's flags with their values: `-F`, `-J`, `-i`, `-l`, `-o` and `-p`.
///
/// # Errors
///
/// If there is another one.
pub fn flags(arguments: &[OsString]) -> Result<Vec<(char, OsString)>, Error> {
    let mut found = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let wrong = |cause: &str| {
            Error::Configuration(format!("the built-in ssh client {cause} {}", argument.display()))
        };
        let bytes = argument.as_bytes();
        let flag = match bytes {
            [b'-', flag, ..] if b"FJilop".contains(flag) => char::from(*flag),
            _ => return Err(wrong("does not know")),
        };
        let value = match bytes.get(2..).filter(|value| !value.is_empty()) {
            Some(value) => OsStr::from_bytes(value).to_owned(),
            None => rest.next().cloned().ok_or_else(|| wrong("wants a value for"))?,
        };
        found.push((flag, value));
    }
    Ok(found)
}

/// `Keyword value` or `Keyword=value`: the keyword in small letters, and all behind it.
fn split(line: &str) -> Option<(String, &str)> {
    let end = line.find(|c: char| c.is_whitespace() || c == '=')?;
    let (keyword, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim();
    (!keyword.is_empty() && !rest.is_empty()).then(|| (keyword.to_ascii_lowercase(), rest))
}

/// The words of a line, of which some may stand in double quotes; `None` if a quote is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        found.push(word.to_owned());
        rest = after.trim_start();
    }
    Some(found)
}

/// The files that an `Include` means, in order. Wildcards are for names, not for directories.
fn included(name: &str, from: &Path) -> Result<Vec<PathBuf>, String> {
    let variables = variables(name).map_err(|error| error.to_string())?;
    let mut whole = path(&variables);
    if whole.is_relative() {
        let is_systems = from.starts_with("/etc/ssh");
        whole =
            if is_systems { Path::new("/etc/ssh").join(whole) } else { path("~/.ssh").join(whole) };
    }
    let has_wildcard = |text: &OsStr| text.as_bytes().iter().any(|byte| b"*?[".contains(byte));
    if !has_wildcard(whole.as_os_str()) {
        return Ok(vec![whole]);
    }
    let (Some(directory), Some(pattern)) = (whole.parent(), whole.file_name()) else {
        return Ok(Vec::new());
    };
    let pattern = pattern.to_string_lossy();
    if has_wildcard(directory.as_os_str()) || pattern.contains('[') {
        return Err(format!("the built-in ssh client does not understand the pattern {name}"));
    }
    let Ok(entries) = fs::read_dir(directory) else { return Ok(Vec::new()) };
    let is_meant = |name: &str| {
        matches(&pattern, name) && (!name.starts_with('.') || pattern.starts_with('.'))
    };
    let paths = entries.flatten().filter(|it| is_meant(&it.file_name().to_string_lossy()));
    let mut paths: Vec<PathBuf> = paths.map(|it| it.path()).collect();
    paths.sort();
    Ok(paths)
}

/// A text with what `${NAME}` in it stands for.
///
/// # Errors
///
/// If the environment has no such variable.
pub fn variables(text: &str) -> Result<String, Error> {
    let mut whole = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let wrong = |cause: &str| Error::Configuration(format!("{text}: {cause}"));
        let (name, behind) = after.split_once('}').ok_or_else(|| wrong("`}` is missing"))?;
        let is_name = !name.is_empty() && !name.contains(['=', '\0']);
        let value = is_name.then(|| std::env::var(name).ok()).flatten();
        whole.push_str(before);
        whole.push_str(&value.ok_or_else(|| wrong(&format!("there is no variable {name}")))?);
        rest = behind;
    }
    whole.push_str(rest);
    Ok(whole)
}

/// A path, in which a leading `~` is the home directory.
pub fn path(text: &str) -> PathBuf {
    let home = || std::env::home_dir().unwrap_or_else(|| PathBuf::from("/"));
    match text.strip_prefix('~') {
        Some("") => home(),
        Some(rest) if rest.starts_with('/') => home().join(rest.trim_start_matches('/')),
        _ => PathBuf::from(text),
    }
}

/// The user that runs this program.
pub fn local_user() -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut users = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = users.find(|fields| fields.get(2) == Some(&&*uid));
    let found = found.and_then(|fields| fields.first().map(|name| (*name).to_owned()));
    let of_environment = || ["LOGNAME", "USER"].iter().find_map(|name| std::env::var(name).ok());
    found.or_else(of_environment).unwrap_or(uid)
}

/// How deep files may include each other, as in ssh.
const MAX_DEPTH: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::Client;

    fn login(host: &str, arguments: &[&str]) -> Login {
        Login {
            client: Client::Builtin,
            arguments: arguments.iter().map(Into::into).collect(),
            host: host.into(),
            user: None,
            port: None,
        }
    }

    fn read(text: &str, host: &str, arguments: &[&str]) -> Result<Values, Error> {
        let mut config = Config::of_login(&login(host, arguments))?;
        config.read_text(text, Path::new("config"), 0)?;
        Ok(config.values)
    }

    #[track_caller]
    fn says(values: &Values, keyword: &str, wanted: &[&str]) {
        assert_eq!(values.get(keyword).map_or(&[][..], Vec::as_slice), wanted, "{values:?}");
    }

    #[test]
    fn the_first_value_that_is_meant_counts() {
        let text = "# global options come first\nPort=1\nHost a* !ab\n\tUser me\n  port 2\n\
                    IdentityFile \"/with space\"\nHost ab\nUser\tyou\nHost *\nUser = everybody\n\
                    HostName %h.example\nIdentityFile /second # why\n";
        let values = read(text, "ac", &[]).unwrap();
        says(&values, "user", &["me"]);
        says(&values, "port", &["1"]);
        says(&values, "identityfile", &["/with space", "/second"]);
        says(&values, "hostname", &["%h.example"]);
        says(&read(text, "ab", &[]).unwrap(), "user", &["you"]);
        says(&read(text, "x", &[]).unwrap(), "user", &["everybody"]);
        let flags = ["-oUser=flag", "-o", "Port 7", "-p", "8", "-i", "key", "-J", "gate"];
        let values = read(text, "ac", &flags).unwrap();
        says(&values, "user", &["flag"]);
        says(&values, "port", &["7"]);
        says(&values, "identityfile", &["key", "/with space", "/second"]);
        says(&values, "proxyjump", &["gate"]);
    }

    #[test]
    fn a_proxy_command_is_taken_whole_and_gives_way_to_what_came_first() {
        let text = "ProxyCommand nc -X \"a b\" %h %p\nProxyJump gate\n";
        let values = read(text, "h", &[]).unwrap();
        says(&values, "proxycommand", &["nc -X \"a b\" %h %p"]);
        says(&values, "proxyjump", &[]);
        says(&read(text, "h", &["-J", "x"]).unwrap(), "proxycommand", &[]);
    }

    #[test]
    fn what_is_not_understood_is_said_with_its_place() {
        let refused = |text: &str, words: &str| {
            let error = read(text, "h", &[]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused("User x\nMatch host h exec true\nUser me\n", "config line 2: the built-in");
        refused("\n\nUser\n", "config line 3: it has no value");
        refused("User \"me\n", "config line 1: a quote");
        refused("Include ${NO_SUCH_VARIABLE}/x\n", "NO_SUCH_VARIABLE");
        says(&read("Match all\nUser me\n", "h", &[]).unwrap(), "user", &["me"]);
        for arguments in [&["-A"][..], &["-o"], &["host"], &["-o", "User"]] {
            assert!(read("", "h", arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn files_include_each_other_within_limits() {
        let temp = tempfile::tempdir().unwrap();
        let at = temp.path().display();
        let write = |name: &str, text: &str| fs::write(temp.path().join(name), text).unwrap();
        write("10.conf", "Host b\nUser ten\n");
        write("20.conf", "User twenty\n");
        write(".hidden.conf", "User hidden\n");
        write("loop", &format!("Include {at}/loop\n"));
        let text = format!("Host a b\nInclude {at}/*.conf {at}/missing\nHost *\nPort 5\n");
        says(&read(&text, "b", &[]).unwrap(), "user", &["ten"]);
        let values = read(&text, "a", &[]).unwrap();
        says(&values, "user", &["twenty"]);
        says(&values, "port", &["5"]);
        says(&read(&text, "c", &[]).unwrap(), "user", &[]);
        let error = read(&format!("Include {at}/loop\n"), "h", &[]).unwrap_err().to_string();
        assert!(error.contains("too deeply"), "{error}");
        let named = format!("{at}/nowhere");
        let config = Config::of_login(&login("h", &["-F", &named])).unwrap();
        assert!(config.read().unwrap_err().to_string().contains("cannot read it"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text: String, option: String, host: String) {
            let text = text.replace("nclude", "");
            let _ = read(&text, &host, &["-o", &option]);
            let _ = (words(&text), split(&text), variables(&text), path(&text));
        }

        #[test]
        fn no_line_of_usual_words_panics(
            text in "((Host|Match|Port|User|=|\"|#|!|\\*|\\?|all| |\t|\n|x)){0,40}"
        ) {
            let _ = read(&text, "x", &[]);
        }
    }
}
