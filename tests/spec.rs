//! The specification and the tests that cite it: no rule without a test, no citation without a rule.

#![allow(clippy::unwrap_used)] // clippy.toml covers only #[test] functions, not their helpers

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rules that no test cites yet. A rule leaves this list with its first test, and none is added
/// without a reason.
const NOT_YET: &[&str] = &[];

/// What the numbers of rules begin with.
const FAMILIES: [&str; 16] = [
    "SES", "ENTRY", "FRAME", "INT", "JRN", "SEC", "ERR", "END", "META", "SEL", "UPD", "DEL",
    "BOOT", "PATH", "MEASURE", "THIRD",
];

#[test]
fn every_rule_is_tested_and_every_citation_has_a_rule() {
    let rules = rules();
    let mut cited = BTreeSet::new();
    let mut problems = Vec::new();
    let sources = files(Path::new("src"), "rs").into_iter().map(|path| (path, false));
    let tests = files(Path::new("tests"), "rs").into_iter().map(|path| (path, true));
    for (path, is_test) in sources.chain(tests).filter(|(path, _)| !path.ends_with("spec.rs")) {
        let text = fs::read_to_string(&path).unwrap();
        // Where tests stand in `src` is checked by tests/tidy.rs.
        let stem = path.file_stem().unwrap().to_string_lossy();
        let is_test = is_test || ["tests", "testing"].contains(&&*stem) || stem.ends_with("_tests");
        let shipped = if is_test { 0 } else { inline_tests(&text).unwrap_or(text.len()) };
        for (at, rule) in citations(&text) {
            if !rules.contains_key(&rule) {
                problems.push(format!("{}: there is no rule {rule}", path.display()));
            }
            if at >= shipped {
                cited.insert(rule);
            }
        }
    }
    for (rule, file) in &rules {
        match (cited.contains(rule), NOT_YET.contains(&rule.as_str())) {
            (false, false) => problems.push(format!("{file}: no test cites {rule}")),
            (true, true) => problems.push(format!("{rule} has a test: take it out of NOT_YET")),
            _ => {}
        }
    }
    for rule in NOT_YET.iter().filter(|rule| !rules.contains_key(**rule)) {
        problems.push(format!("NOT_YET: there is no rule {rule}"));
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The specification speaks of its own rules, of its own files, and of nothing that is not there.
#[test]
fn the_specification_refers_to_what_exists() {
    let rules = rules();
    let mut problems = Vec::new();
    let spec = Path::new("protocol-spec");
    let readme = fs::read_to_string(spec.join("README.md")).unwrap();
    for path in files(spec, "md") {
        let text = fs::read_to_string(&path).unwrap();
        for (_, rule) in citations(&text).filter(|(_, rule)| !rules.contains_key(rule)) {
            problems.push(format!("{}: there is no rule {rule}", path.display()));
        }
        for word in text.split(|c: char| c.is_whitespace() || "`()[],:;".contains(c)) {
            let named = word.trim_end_matches('.');
            let is_vector = named.starts_with("vectors/") && named.ends_with("hex");
            let is_section = named.starts_with('0') && named.ends_with("md");
            if (is_vector || is_section) && !spec.join(named).is_file() {
                problems.push(format!("{}: there is no file {named}", path.display()));
            }
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        if name != "README.md" && !readme.contains(&format!("({name})")) {
            problems.push(format!("README.md does not list {name}"));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// Every rule, by number, with the file that defines it: a line that begins with the number and two
/// spaces or more.
fn rules() -> BTreeMap<String, String> {
    let mut rules = BTreeMap::new();
    for path in files(Path::new("protocol-spec"), "md") {
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines() {
            let Some((rule, rest)) = line.split_once(' ') else { continue };
            let is_rule = citations(rule).any(|(at, found)| at == 0 && found == rule);
            if is_rule && (rest.starts_with(' ') || rule.len() >= 8) {
                let file = path.display().to_string();
                let twice = rules.insert(rule.to_owned(), file);
                assert!(twice.is_none(), "{rule} is defined twice");
            }
        }
    }
    assert!(rules.len() > 50, "the specification was not found");
    rules
}

/// Every number of a rule in a text, with its place.
fn citations(text: &str) -> impl Iterator<Item = (usize, String)> {
    FAMILIES.iter().flat_map(move |family| {
        text.match_indices(family).filter_map(move |(at, _)| {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || "-_".contains(c)) {
                return None;
            }
            let digits = text[at + family.len()..].strip_prefix('-')?;
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            (end > 0).then(|| (at, format!("{family}-{}", &digits[..end])))
        })
    })
}

/// Where the tests at the end of a file begin.
fn inline_tests(text: &str) -> Option<usize> {
    const ATTRIBUTE: &str = "#[cfg(test)]\n";
    let mut found = text.match_indices(ATTRIBUTE).map(|(at, _)| at);
    found.find(|at| {
        let next = text[at + ATTRIBUTE.len()..].lines().find(|line| !line.starts_with("#["));
        next.is_some_and(|line| line.ends_with("mod tests {") && !line.starts_with(' '))
    })
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}
