//! Filter rules in the order in which they were typed, and the files that they name.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use super::UsageError;
use crate::engine::filter::{self, Prefix};
use crate::protocol::manifest::Escaped;

/// All of `--filter`, `--exclude`, `--include`, `--exclude-from` and `--include-from`, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules(Vec<(Flag, OsString)>);

/// Which of the flags it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flag {
    Filter,
    Pattern(Prefix),
    File(Prefix),
}

/// Each flag with its name, its value and what it is for.
const FLAGS: [(Flag, &str, &str, &str); 5] = [
    (Flag::Filter, "filter", "RULE", "Add a rule, as for `rsync --filter`; may be repeated"),
    (Flag::Pattern(Prefix::Exclude), "exclude", "PATTERN", "Leave out what matches"),
    (Flag::Pattern(Prefix::Include), "include", "PATTERN", "Do not leave out what matches"),
    (Flag::File(Prefix::Exclude), "exclude-from", "FILE", "Read patterns of --exclude from a file"),
    (Flag::File(Prefix::Include), "include-from", "FILE", "Read patterns of --include from a file"),
];

impl FromArgMatches for Rules {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut found = Vec::new();
        for (flag, name, ..) in FLAGS {
            let values = matches.get_many::<OsString>(name).into_iter().flatten();
            let places = matches.indices_of(name).into_iter().flatten();
            found.extend(places.zip(values).map(|(place, value)| (place, flag, value.clone())));
        }
        found.sort_by_key(|(place, ..)| *place);
        Ok(Self(found.into_iter().map(|(_, flag, value)| (flag, value)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Rules {
    fn augment_args(command: Command) -> Command {
        let args = FLAGS.map(|(flag, name, value, help)| {
            let arg = Arg::new(name).long(name).value_name(value).help(help);
            let arg = arg.action(ArgAction::Append).value_parser(OsStringValueParser::new());
            // A rule begins with `- `, and a pattern may begin with anything.
            let arg = arg.allow_hyphen_values(true);
            if flag == Flag::Filter { arg.short('f') } else { arg }
        });
        command.args(args)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl Rules {
    /// The rules as texts of `--filter`, without any that name a file. `read` gives the content of
    /// a file, by its name as it was typed.
    pub fn expand(
        &self,
        nul_separated: bool,
        read: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, UsageError> {
        let mut texts = Vec::new();
        for (flag, value) in &self.0 {
            let value = value.as_bytes();
            match flag {
                Flag::Filter => {
                    let rules = filter::expand(value, nul_separated, read);
                    texts.extend(rules.map_err(|error| UsageError::new(error.to_string()))?);
                }
                Flag::Pattern(prefix) => texts.extend(filter::option_rule(value, *prefix)),
                Flag::File(prefix) => {
                    let content = read(value).map_err(|error| {
                        let file = Escaped(value);
                        UsageError::new(format!("cannot read filter rules from {file}: {error}"))
                    })?;
                    texts.extend(filter::parse_file(&content, nul_separated, *prefix));
                }
            }
        }
        Ok(texts)
    }
}

/// Files that the command line names, and standard input for `-`, which can be read once.
#[derive(Debug, Default)]
pub struct Files {
    is_input_read: bool,
    is_input_gone: bool,
}

impl Files {
    /// Standard input is not what it was when the command was first given.
    pub fn without_input() -> Self {
        Self { is_input_read: false, is_input_gone: true }
    }

    pub fn read(&mut self, name: &[u8]) -> io::Result<Vec<u8>> {
        if name != b"-" {
            return std::fs::read(Path::new(std::ffi::OsStr::from_bytes(name)));
        }
        if self.is_input_gone {
            return Err(io::Error::other("what standard input was then is gone"));
        }
        if std::mem::replace(&mut self.is_input_read, true) {
            return Err(io::Error::other("standard input was read already"));
        }
        let mut content = Vec::new();
        io::stdin().read_to_end(&mut content).map(|_| content)
    }
}

/// What a list of paths comes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Listed {
    /// The source itself is among them.
    Everything,
    Paths(Vec<Vec<u8>>),
}

/// A line of a list that leads up, and maybe out of the source; lines count from 1.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeadsUp {
    pub number: usize,
    pub path: Vec<u8>,
}

/// The paths of a `--files-from` file, relative to the source. As in rsync leading slashes are
/// dropped; lines that begin with `#` or `;` are comments, unless names end with NUL bytes.
///
/// The source itself, `.`, is everything if directories are taken whole, and says nothing else.
///
/// # Errors
///
/// If a path has a `..` in it: what that means depends on symlinks, and rsync and the shell do not
/// agree on it.
pub fn listed_paths(
    content: &[u8],
    nul_separated: bool,
    whole_directories: bool,
) -> Result<Listed, LeadsUp> {
    let end = if nul_separated { 0 } else { b'\n' };
    let mut paths = Vec::new();
    for (number, line) in (1..).zip(content.split(|byte| *byte == end)) {
        // As in rsync, either of both ends a line.
        for path in line.split(|byte| !nul_separated && *byte == b'\r') {
            let is_comment = !nul_separated && matches!(path.first(), Some(b'#' | b';'));
            if path.is_empty() || is_comment {
                continue;
            }
            let Some(path) = cleaned(path) else {
                return Err(LeadsUp { number, path: path.to_vec() });
            };
            if !path.is_empty() {
                paths.push(path);
            } else if whole_directories {
                return Ok(Listed::Everything);
            }
        }
    }
    Ok(Listed::Paths(paths))
}

/// A path without empty components and `.`; `None` if it has a `..`.
fn cleaned(path: &[u8]) -> Option<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let parts: Vec<_> = parts.collect();
    (!parts.contains(&&b".."[..])).then(|| parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(arguments: &[&str]) -> Rules {
        let command = Rules::augment_args(Command::new("x").no_binary_name(true));
        Rules::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
    }

    fn expanded(arguments: &[&str]) -> Result<Vec<Vec<u8>>, UsageError> {
        typed(arguments).expand(false, &mut |name| match name {
            b"list" => Ok(b"# no\n*.o\n+ keep\n".to_vec()),
            _ => Err(io::ErrorKind::NotFound.into()),
        })
    }

    #[test]
    fn rules_keep_the_order_in_which_they_were_typed() {
        let rules = expanded(&[
            "--include=a",
            "-f",
            "- b",
            "--exclude",
            "-c",
            "--exclude-from=list",
            "--filter=+ d",
            "--include",
            "e",
        ]);
        let wanted = ["+ a", "- b", "- -c", "- *.o", "+ keep", "+ d", "+ e"];
        assert_eq!(rules.unwrap(), wanted.map(|rule| rule.as_bytes().to_vec()));
        let error = expanded(&["--include-from", "missing"]).unwrap_err().to_string();
        assert!(error.starts_with("cannot read filter rules from missing: "), "{error}");
    }

    #[test]
    fn a_list_of_paths_stays_below_the_source() {
        let paths = |content: &[u8], nul| listed_paths(content, nul, false).unwrap();
        let wanted = ["a", "b/c", "d", "e f"].map(|path| path.as_bytes().to_vec());
        let content = b"/a\n#x\n;y\n\n./b//c/\r\nd\n.\ne f\n";
        assert_eq!(paths(content, false), Listed::Paths(wanted.into()));
        assert_eq!(paths(b"#a\0b\nc\0", true), Listed::Paths(vec![b"#a".into(), b"b\nc".into()]));
        assert_eq!(listed_paths(b"a\n./\n", false, true), Ok(Listed::Everything));
        for (content, nul, number) in
            [(&b"a\n..\n"[..], false, 2), (b"\n#..\na/../b\n", false, 3), (b"x\0../d", true, 2)]
        {
            assert_eq!(listed_paths(content, nul, true).unwrap_err().number, number);
        }
        assert!(listed_paths(b"..a\na..\n", false, false).is_ok());
    }

    #[test]
    fn standard_input_is_read_once() {
        let mut files = Files::without_input();
        assert!(files.read(b"-").is_err());
        let mut files = Files { is_input_read: true, ..Files::default() };
        assert!(files.read(b"-").unwrap_err().to_string().contains("already"));
    }
}
