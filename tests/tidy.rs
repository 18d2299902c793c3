//! Checks on the code itself: who imports whom, which words are not shipped, how files begin.

#![allow(clippy::unwrap_used)] // clippy.toml covers only #[test] functions, not their helpers

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A folder of `src` and what it may know.
struct Layer {
    name: &'static str,
    /// The folders whose content it may import, beside its own.
    below: &'static [&'static str],
    /// The crates that it may import.
    outside: &'static [&'static str],
}

const LAYERS: &[Layer] = &[
    Layer {
        name: "protocol",
        below: &[],
        outside: &["bincode", "blake3", "bytes", "flume", "memmap2", "thiserror"],
    },
    Layer {
        name: "storage",
        below: &["protocol"],
        outside: &[
            "base64",
            "blake3",
            "bytes",
            "crc_fast",
            "flume",
            "futures_util",
            "http",
            "httpdate",
            "ignore",
            "md5",
            "memmap2",
            "percent_encoding",
            "quick_xml",
            "reqsign_aws_v4",
            "reqsign_azure_storage",
            "reqsign_command_execute_tokio",
            "reqsign_core",
            "reqsign_file_read_tokio",
            "reqsign_google",
            "reqsign_http_send_reqwest",
            "reqwest",
            "rustix",
            "serde",
            "serde_json",
            "sha2",
            "thiserror",
            "tokio",
            "tokio_util",
        ],
    },
    Layer {
        name: "transport",
        below: &["protocol"],
        outside: &[
            "aws_lc_rs",
            "blake3",
            "bytes",
            "flume",
            "quinn",
            "rcgen",
            "rustix",
            "rustls",
            "socket2",
            "thiserror",
            "tokio",
        ],
    },
    Layer {
        name: "ssh",
        below: &[],
        outside: &["aws_lc_rs", "russh", "rustix", "thiserror", "tokio"],
    },
    Layer {
        name: "engine",
        below: &["protocol", "storage", "transport", "ssh"],
        outside: &["aws_lc_rs", "blake3", "bytes", "crc_fast", "flume", "thiserror", "tokio"],
    },
    Layer {
        name: "cli",
        below: &["protocol", "storage", "transport", "ssh", "engine"],
        outside: &[
            "blake3",
            "bytes",
            "clap",
            "etcetera",
            "flume",
            "indicatif",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "toml",
        ],
    },
];

/// Crates that one file keeps to itself.
const KEPT: &[(&str, &str)] = &[("bincode", "src/protocol/message.rs")];

/// What shipped code does not contain, and why.
const BANNED: &[(&str, &str)] = &[
    (".unwrap()", "a peer or a disk may make it panic"),
    (".expect(\"", "a peer or a disk may make it panic"),
    ("todo!(", "unfinished"),
    ("unimplemented!(", "unfinished"),
    ("dbg!(", "left over"),
    ("FIXME", "unfinished"),
    ("tokio::spawn(", "nobody would see the task fail; use a JoinSet"),
];

/// What only the command line may do.
const CLI_ONLY: &[&str] = &["println!(", "eprintln!(", "print!(", "eprint!("];

#[test]
fn layers_import_only_what_is_below_them() {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        let Some(layer) = layer_of(&path) else { continue };
        for (number, line) in code_lines(&text) {
            let ours = line.split("crate::").skip(1).map(first_word);
            let ours = ours.filter(|name| LAYERS.iter().any(|layer| layer.name == *name));
            for name in ours.filter(|name| *name != layer.name && !layer.below.contains(name)) {
                problems.push(at(&path, number, &format!("{} may not know {name}", layer.name)));
            }
            for name in crates_in(line).filter(|name| !layer.outside.contains(name)) {
                problems.push(at(&path, number, &format!("{} may not use {name}", layer.name)));
            }
            for (name, file) in KEPT.iter().filter(|(_, file)| path != Path::new(file)) {
                if crates_in(line).any(|found| found == *name) {
                    problems.push(at(&path, number, &format!("only {file} uses {name}")));
                }
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn shipped_code_is_free_of_what_is_banned() {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        let is_cli = path.starts_with("src/cli");
        for (number, line) in code_lines(&text) {
            for (word, why) in BANNED.iter().filter(|(word, _)| line.contains(word)) {
                problems.push(at(&path, number, &format!("`{word}`: {why}")));
            }
            for word in CLI_ONLY.iter().filter(|word| !is_cli && has_macro(line, word)) {
                problems.push(at(
                    &path,
                    number,
                    &format!("`{word}`: only the command line prints"),
                ));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let tests = files(Path::new("tests")).into_iter().map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    });
    let silent: Vec<String> = sources()
        .into_iter()
        .chain(tests)
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(silent.is_empty(), "these files do not open with `//!`: {silent:?}");
}

/// Tests stand at the end of a file, or in a file of their own with a name that says so; or the
/// other checks would pass over code after them.
#[test]
fn tests_are_where_the_checks_expect_them() {
    let mut problems = Vec::new();
    for (path, text) in all_sources() {
        if let Some(start) = inline_tests(&text) {
            let body = &text[start..];
            // Relies on rustfmt: the module ends at the first `}` in the first column.
            let end = body.find("\n}\n").map_or(body.len(), |end| end + 3);
            if !body[end..].trim().is_empty() {
                problems.push(format!("{}: code after the tests", path.display()));
            }
        }
        let mut is_test = false;
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(name) = line.strip_suffix(';').and_then(|line| line.split("mod ").nth(1))
                && ["", "pub ", "pub(crate) ", "pub(super) "]
                    .contains(&line.split("mod ").next().unwrap_or(""))
                && is_test != is_name_of_tests(name)
            {
                let name =
                    format!("`{name}`: only tests.rs, testing.rs and NAME_tests.rs are tests");
                problems.push(at(&path, number, &name));
            }
            is_test = line == "#[cfg(test)]" || is_test && line.starts_with("#[");
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The checks see what they should.
#[test]
fn the_checks_bite() {
    assert_eq!(crates_in("use tokio::io::{self};").collect::<Vec<_>>(), ["tokio"]);
    assert_eq!(crates_in("pub use rustix::fs;").collect::<Vec<_>>(), ["rustix"]);
    assert_eq!(crates_in("    let f = flume::bounded(1);").collect::<Vec<_>>(), ["flume"]);
    assert_eq!(crates_in("use crc_fast::digest::x;").collect::<Vec<_>>(), ["crc_fast"]);
    assert_eq!(crates_in("use std::io; use super::bytes::x;").count(), 0);
    let allowed = LAYERS.iter().flat_map(|layer| layer.outside);
    let unknown: Vec<_> =
        allowed.filter(|name| !DEPENDENCIES.iter().any(|found| found == *name)).collect();
    assert!(unknown.is_empty(), "allowed and no dependency: {unknown:?}");
    let text = "// .unwrap()\n#[cfg(test)]\nmod testing;\nlet a = 1; // dbg!(a)\n#[cfg(test)]\nmod tests {\n}\n";
    let lines: Vec<_> = code_lines(text).filter(|(_, line)| !line.starts_with('#')).collect();
    assert_eq!(lines, [(1, ""), (3, "mod testing;"), (4, "let a = 1;")]);
    assert!(has_macro("println!(\"\")", "println!("));
    assert!(!has_macro("eprintln!(\"\")", "println!("));
}

/// The dependencies of this package that a line of code names, at the front of a path.
fn crates_in(line: &str) -> impl Iterator<Item = &'static str> {
    DEPENDENCIES.iter().map(String::as_str).filter(move |name| names(line, name))
}

/// The crates that `Cargo.toml` lists under `[dependencies]`, as code spells them.
static DEPENDENCIES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let text = fs::read_to_string("Cargo.toml").unwrap();
    let section = text.split("\n[dependencies]\n").nth(1).unwrap();
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| Some(line.split_once(" = ")?.0.replace('-', "_"))).collect()
});

/// Whether `name::` stands in the line, not as the end of another word or path.
fn names(line: &str, name: &str) -> bool {
    line.match_indices(&format!("{name}::")).any(|(at, _)| {
        let before = &line[..at];
        !before.ends_with("::") && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

fn has_macro(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric()))
}

/// The lines of a file that are shipped, with their numbers, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let shipped = inline_tests(text).map_or(text, |end| &text[..end]);
    (1..).zip(shipped.lines()).map(|(number, line)| {
        let is_comment = line.trim_start().starts_with("//");
        (number, if is_comment { "" } else { line.split(" // ").next().unwrap_or("") })
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

/// Whether a file of this name holds nothing but tests and their helpers.
fn is_name_of_tests(name: &str) -> bool {
    name == "tests" || name == "testing" || name.ends_with("_tests")
}

fn layer_of(path: &Path) -> Option<&'static Layer> {
    let first = path.strip_prefix("src").ok()?.components().next()?;
    let name = Path::new(first.as_os_str()).file_stem()?;
    LAYERS.iter().find(|layer| name == layer.name)
}

fn at(path: &Path, number: usize, problem: &str) -> String {
    format!("{}:{number}: {problem}", path.display())
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("")
}

/// The files of `src` that are shipped.
fn sources() -> Vec<(PathBuf, String)> {
    let is_shipped = |(path, _): &(PathBuf, String)| {
        !path.components().any(|part| {
            Path::new(part.as_os_str())
                .file_stem()
                .is_some_and(|stem| is_name_of_tests(&stem.to_string_lossy()))
        })
    };
    all_sources().into_iter().filter(is_shipped).collect()
}

fn all_sources() -> Vec<(PathBuf, String)> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    files(Path::new("src")).into_iter().map(read).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                found.extend(files(&path));
            }
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
