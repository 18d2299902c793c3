//! Rules from the command line and from the files that it names.
//!
//! In: `--filter` texts, and the content of files, which the caller reads. Out: rules that
//! [`Rules::new`] takes, without merge rules, or the statements of a per-directory file.
//!
//! [`Rules::new`]: super::Rules::new

use std::io;

use super::error::{Excess, FilterError, Problem};
use super::rule::{Format, Merge, Statement};
use super::wildcard::is_space;
use super::{MAX_NESTING, MAX_RULE_LEN, MAX_RULES, MAX_TEXT_LEN, Prefix};

/// The rule that `--exclude=PATTERN` or `--include=PATTERN` stands for. As in rsync the pattern may
/// begin with `- ` or `+ `, which decides, and a lone `!` clears; an empty one says nothing.
pub fn option_rule(pattern: &[u8], default: Prefix) -> Option<Vec<u8>> {
    let says_itself = pattern == b"!" || pattern.starts_with(b"- ") || pattern.starts_with(b"+ ");
    let prefix: &[u8] = match default {
        _ if says_itself => b"",
        Prefix::Exclude => b"- ",
        Prefix::Include => b"+ ",
    };
    (!pattern.is_empty()).then(|| [prefix, pattern].concat())
}

/// The rules of an `--exclude-from` or `--include-from` file, a pattern on each line. Lines end
/// with LF, CR or both, or with a NUL byte (`--from0`); those that begin with `#` or `;` are
/// comments.
pub fn parse_file(content: &[u8], nul_separated: bool, default: Prefix) -> Vec<Vec<u8>> {
    let entries = Entries::new(content, nul_separated, Format::default());
    entries.filter_map(|(_, pattern)| option_rule(pattern, default)).collect()
}

/// The rules that one `--filter` text stands for: itself, or the content of the file that it
/// merges, with the modifiers of the merge rule in each rule, and of the files merged there.
///
/// `read` is called with file names as they are written, which are relative to the working
/// directory also within files; rsync means standard input by `-`.
///
/// # Errors
///
/// [`FilterError`] for a rule that cannot be understood, a file that cannot be read, and for more
/// rules than [`Rules::new`] takes.
///
/// [`Rules::new`]: super::Rules::new
pub fn expand(
    text: &[u8],
    nul_separated: bool,
    read: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
) -> Result<Vec<Vec<u8>>, FilterError> {
    let mut expansion = Expansion { nul_separated, read, texts: Vec::new(), len: 0, files: 0 };
    expansion.add_text(text, Format::default(), 0)?;
    Ok(expansion.texts)
}

struct Expansion<'a> {
    nul_separated: bool,
    read: &'a mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    texts: Vec<Vec<u8>>,
    /// The bytes in `texts`.
    len: usize,
    /// How many files were read, so that files that merge each other come to an end.
    files: usize,
}

impl Expansion<'_> {
    fn add_text(&mut self, text: &[u8], format: Format, depth: usize) -> Result<(), FilterError> {
        match Statement::parse(text, format).map_err(FilterError::rule(text))? {
            Statement::Merge(merge) if !merge.per_directory => self.merge(&merge, depth),
            statement => self.push(statement.to_text()),
        }
    }

    fn merge(&mut self, merge: &Merge, depth: usize) -> Result<(), FilterError> {
        if depth >= MAX_NESTING {
            return Err(Excess::Nesting.into());
        }
        self.files += 1;
        if self.files > MAX_RULES {
            return Err(Excess::Rules.into());
        }
        if let Some(exclusion) = merge.exclusion() {
            self.push(Statement::Match(exclusion).to_text())?;
        }
        let content = (self.read)(&merge.name)
            .map_err(|cause| FilterError::Read { file: merge.name.clone(), cause })?;
        for (line, text) in Entries::new(&content, self.nul_separated, merge.format) {
            self.add_text(text, merge.format, depth + 1)
                .map_err(FilterError::within(&merge.name, line))?;
        }
        Ok(())
    }

    fn push(&mut self, text: Vec<u8>) -> Result<(), FilterError> {
        if text.len() > MAX_RULE_LEN {
            return Err(FilterError::rule(&text)(Problem::TooLong));
        }
        self.len += text.len();
        if self.texts.len() >= MAX_RULES {
            return Err(Excess::Rules.into());
        }
        if self.len > MAX_TEXT_LEN {
            return Err(Excess::Text.into());
        }
        self.texts.push(text);
        Ok(())
    }
}

/// The rules of a file, each with its line: without comments, and without anything empty.
pub struct Entries<'a> {
    rest: &'a [u8],
    line: usize,
    nul_separated: bool,
    splits_words: bool,
    /// Whether rules have prefixes, which may be parted from their patterns by a space.
    has_prefixes: bool,
}

impl<'a> Entries<'a> {
    pub fn new(content: &'a [u8], nul_separated: bool, format: Format) -> Self {
        Self {
            rest: content,
            line: 1,
            nul_separated,
            splits_words: format.splits_words,
            has_prefixes: format.only.is_none(),
        }
    }

    fn ends_at(&self, byte: u8) -> bool {
        let ends_line = if self.nul_separated { byte == 0 } else { matches!(byte, b'\n' | b'\r') };
        ends_line || self.splits_words && is_space(byte)
    }

    fn end_from(&self, start: usize) -> usize {
        let rest = self.rest.get(start..).unwrap_or_default();
        let len = rest.iter().position(|byte| self.ends_at(*byte)).unwrap_or(rest.len());
        start + len
    }

    /// Where the entry at the front ends. Between words, `- foo` is one entry.
    fn end(&self) -> usize {
        let end = self.end_from(0);
        let word = self.rest.get(..end).unwrap_or_default();
        let is_parted = self.splits_words
            && self.has_prefixes
            && self.rest.get(end) == Some(&b' ')
            && Statement::parse(word, Format::default()) == Err(Problem::Incomplete);
        if is_parted { self.end_from(end + 1) } else { end }
    }

    /// Goes past the byte that ended an entry.
    fn pass(&mut self, tail: &'a [u8]) {
        let Some((byte, after)) = tail.split_first() else {
            self.rest = tail;
            return;
        };
        let ends_line = match byte {
            0 => self.nul_separated,
            b'\n' => !self.nul_separated,
            b'\r' => !self.nul_separated && after.first() != Some(&b'\n'),
            _ => false,
        };
        self.line += usize::from(ends_line);
        self.rest = after;
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (entry, tail) = self.rest.split_at_checked(self.end())?;
            if entry.is_empty() && tail.is_empty() {
                return None;
            }
            let line = self.line;
            self.pass(tail);
            let is_comment = !self.splits_words && matches!(entry.first(), Some(b'#' | b';'));
            if !entry.is_empty() && !is_comment {
                return Some((line, entry));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(rules: &[Vec<u8>]) -> Vec<String> {
        rules.iter().map(|rule| String::from_utf8(rule.clone()).unwrap()).collect()
    }

    fn expanded(text: &str, files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let mut read = |name: &[u8]| {
            let found = files.iter().find(|(file, _)| file.as_bytes() == name);
            let found = found.map(|(_, content)| content.as_bytes().to_vec());
            found.ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        let rules = expand(text.as_bytes(), false, &mut read);
        rules.map(|rules| texts(&rules)).map_err(|error| error.to_string())
    }

    #[test]
    fn an_option_becomes_a_rule() {
        let cases = [
            ("*.o", Prefix::Exclude, Some("- *.o")),
            ("*.c", Prefix::Include, Some("+ *.c")),
            ("+ *.c", Prefix::Exclude, Some("+ *.c")),
            ("- *.o", Prefix::Include, Some("- *.o")),
            ("-s *.o", Prefix::Exclude, Some("- -s *.o")),
            ("!", Prefix::Exclude, Some("!")),
            ("!x", Prefix::Exclude, Some("- !x")),
            (" a b ", Prefix::Exclude, Some("-  a b ")),
            ("", Prefix::Exclude, None),
        ];
        for (pattern, default, expected) in cases {
            let rule = option_rule(pattern.as_bytes(), default);
            assert_eq!(rule.as_deref(), expected.map(str::as_bytes), "{pattern}");
        }
    }

    #[test]
    fn a_file_of_patterns_is_split_as_rsync_does() {
        let content = b"# comment\n;comment\r\na b\r\n\n\rc\rd #e\n #f\n+ g\n!";
        let rules = parse_file(content, false, Prefix::Exclude);
        assert_eq!(texts(&rules), ["- a b", "- c", "- d #e", "-  #f", "+ g", "!"]);

        let rules = parse_file(b"#a\0b\nc\0\0;d\0e", true, Prefix::Include);
        assert_eq!(texts(&rules), ["+ b\nc", "+ e"]);
    }

    #[test]
    fn a_rule_that_merges_nothing_stays() {
        for text in ["- a", "+ a b", "-/!sp _a", ":n- .rules", ":eC .cvs", "!"] {
            let rules = expanded(text, &[]).unwrap();
            let again = expanded(&rules[0], &[]).unwrap();
            assert_eq!(rules, again, "{text}");
        }
        assert_eq!(expanded("exclude,!s_*.c", &[]).unwrap(), ["-!s *.c"]);
        assert_eq!(expanded("dir-merge,wne- x", &[]).unwrap(), [":-wne x"]);
        assert_eq!(expanded(":C", &[]).unwrap(), [":C .cvsignore"]);
        assert_eq!(expanded("protect x", &[]).unwrap(), ["-r x"]);
    }

    #[test]
    fn a_merge_rule_becomes_the_rules_of_its_file() {
        let cases: &[(&str, &str, &[&str])] = &[
            (". f", "- a\n#- b\n\n+ c\n", &["- a", "+ c"]),
            ("merge f", "!\n:s .r\nP x", &["!", ":s .r", "-r x"]),
            (".- f", "a\n- b\n!\n", &["- a", "- - b", "- !"]),
            (".+ f", "a\n", &["+ a"]),
            (".-w f", " a  #b\n\tc ", &["- a", "- #b", "- c"]),
            (".w f", "- foo + bar -_x exclude,s y", &["- foo", "+ bar", "- x", "-s y"]),
            (".s f", "- a\n:n .r\n", &["-s a", ":ns .r"]),
            (".p/ f", "- a\n+ b\n", &["-/p a", "+/p b"]),
            (".e dir/f", "- a", &["- f", "- a"]),
            (".C f", "a !\n! b", &["- a", "!", "!", "- b"]),
        ];
        for (rule, content, expected) in cases {
            let files = [("f", *content), ("dir/f", *content)];
            assert_eq!(expanded(rule, &files).unwrap(), *expected, "{rule}");
        }
        let nested = [("a", "- 1\n.s b\n- 4"), ("b", "- 2\n- 3")];
        assert_eq!(expanded(". a", &nested).unwrap(), ["- 1", "-s 2", "-s 3", "- 4"]);
    }

    #[test]
    fn an_error_names_the_file_and_the_line() {
        let files = [("a", "- 1\n\n. b\n"), ("b", "#\r\nfoo\r\n"), ("c", ". c\n. c"), ("d", ". x")];
        let error = expanded(". a", &files).unwrap_err();
        assert!(error.contains("`foo` (b, line 2)"), "{error}");
        let error = expanded(". c", &files).unwrap_err();
        assert!(error.contains("(c, line 1)") && error.contains("32 deep"), "{error}");
        let error = expanded(". d", &files).unwrap_err();
        assert!(error.contains("from x"), "{error}");
        let error = expanded(".s a", &[("a", "H b")]).unwrap_err();
        assert!(error.contains("side"), "{error}");
    }

    /// Files that name each other twice would otherwise be read more than 4,000,000,000 times.
    #[test]
    fn merging_ends() {
        let mut read = |name: &[u8]| {
            let next = String::from_utf8(name.to_vec()).unwrap() + "x";
            Ok(if next.len() > 30 { Vec::new() } else { format!(". {next}\n. {next}").into() })
        };
        let error = expand(b". x", false, &mut read).unwrap_err();
        assert!(error.to_string().contains("65536"), "{error}");

        let many = "- a\n".repeat(MAX_RULES + 1);
        assert!(expanded(". f", &[("f", &many)]).is_err());
        let long = format!("- {}\n", "a".repeat(4000)).repeat(2000);
        assert!(expanded(". f", &[("f", &long)]).is_err());
    }
}
