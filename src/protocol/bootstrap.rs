//! How a client brings the agent's program along: what is asked of a remote shell, and what its
//! answers mean. Pure: the program's bytes are read, sent and run elsewhere.
//!
//! Rules: `protocol-spec/10-bootstrap.md`.

use super::chunk::Digest;

/// A program that can be stored on another host, as far as it is known without running it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Program {
    /// Its length in bytes.
    pub size: u64,
    /// Its BLAKE3 value.
    pub digest: Digest,
    pub machine: Machine,
}

impl Program {
    /// What it is called where it is stored (BOOT-6).
    pub fn name(&self) -> String {
        let digest = self.digest.to_string();
        let digest = digest.get(..NAME_DIGITS).unwrap_or(&digest);
        format!("fastsync-{}-{}-{digest}", env!("CARGO_PKG_VERSION"), self.machine.name())
    }

    /// The command that looks for an agent on the other host, for any login shell (BOOT-1, BOOT-2).
    pub fn remote_command(&self) -> String {
        format!("sh -c '{}'", FIRST_STEP.replace("NAME", &self.name()).replace('\n', " "))
    }

    /// The command of a further login, which finds the program where the first one did (PATH-10).
    pub fn further_command(&self) -> String {
        let command = self.remote_command();
        command.replace("$f agent;", "$f agent --join;").replace("--cached;;", "--cached --join;;")
    }

    /// What the client answers to let the program be stored (BOOT-3): one line, and the script of
    /// which it tells the length.
    pub fn second_step(&self) -> Vec<u8> {
        let (name, size) = (self.name(), self.size);
        // What the shell keeps of it has no line end behind. Half a script must not be run.
        let (sent, kept) = (SECOND_STEP.len(), SECOND_STEP.trim_end().len());
        let line = format!(
            "name={name}; size={size}; uid=$u; script=$(head -c {sent}); \
             [ ${{#script}} = {kept} ] && eval \"$script\"\n"
        );
        [line.as_bytes(), SECOND_STEP.as_bytes()].concat()
    }
}

/// Whether a file's name is that of a stored program (BOOT-6).
pub fn is_name(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"fastsync-") else { return false };
    let mut parts = rest.rsplitn(2, |byte| *byte == b'-');
    let digest = parts.next().unwrap_or_default();
    let is_digest = digest.len() == NAME_DIGITS && digest.iter().all(u8::is_ascii_hexdigit);
    is_digest && parts.next().is_some_and(|front| front.contains(&b'-'))
}

/// Whether a file's name is that of an upload that has not come to its end (BOOT-5).
pub fn is_unfinished(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b".") else { return false };
    let mut dots = rest.iter().enumerate().filter(|(_, byte)| **byte == b'.');
    dots.any(|(at, _)| rest.get(..at).is_some_and(is_name))
}

/// The processor that a program is for, from its ELF header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Machine {
    /// What the other host calls it, and which other ones run its programs.
    Known(&'static [&'static str]),
    /// An ELF file for something else.
    Unknown,
}

impl Machine {
    /// Reads the first bytes of a program. `None` if it is no ELF file.
    pub fn of_program(header: &[u8]) -> Option<Self> {
        let header = header.first_chunk::<20>()?;
        let [0x7f, b'E', b'L', b'F', _, order, ..] = *header else { return None };
        let bytes = [header[18], header[19]];
        let machine =
            if order == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
        let known = MACHINES
            .iter()
            .find(|(number, its_order, _)| *number == machine && *its_order == order);
        Some(known.map_or(Self::Unknown, |(_, _, names)| Self::Known(names)))
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Known([name, ..]) => name,
            Self::Known([]) | Self::Unknown => "other",
        }
    }

    /// Whether a host that says this of itself (`uname -s`, `uname -m`) may be able to run it.
    pub fn may_run_on(self, system: &str, machine: &str) -> bool {
        let fits = match self {
            Self::Known(names) => names.contains(&machine),
            Self::Unknown => true,
        };
        system == "Linux" && fits
    }
}

/// What a script on the other host says in a line of its output.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Said {
    /// There is no agent, or `fastsync agent` ended with this code (BOOT-2).
    NoAgent { code: i32, system: String, machine: String },
    /// The program may come; it will be stored here.
    Send { directory: String },
    /// What the program that has arrived says its digest is.
    Arrived { digest: String },
    /// It cannot be done.
    Cannot { why: String },
}

impl Said {
    /// Reads a line, without its end. `None` if it is somebody else's.
    fn parse(line: &[u8]) -> Option<Self> {
        let at = line.windows(MARKER.len()).position(|window| window == MARKER.as_bytes())?;
        let text = String::from_utf8_lossy(line.get(at + MARKER.len()..)?).into_owned();
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let rest = rest.to_owned();
        Some(match word {
            "send" => Self::Send { directory: rest },
            "digest" => Self::Arrived { digest: rest },
            "fail" => Self::Cannot { why: rest },
            code => {
                let code = code.parse().ok()?;
                let (system, machine) = rest.split_once(' ').unwrap_or((&rest, ""));
                Self::NoAgent { code, system: system.to_owned(), machine: machine.to_owned() }
            }
        })
    }
}

/// Looks for a script's line in what comes before an agent's magic.
#[derive(Debug, Default)]
pub struct LineScanner {
    /// Where the first line begins that has not come to its end.
    line: usize,
}

impl LineScanner {
    /// Looks at all that has come so far. If it has a line of ours, says where the line ends: what
    /// comes behind is not looked at.
    pub fn find(&mut self, seen: &[u8]) -> Option<(Said, usize)> {
        while let Some(rest) = seen.get(self.line..)
            && let Some(len) = rest.iter().position(|byte| *byte == b'\n')
        {
            let line = rest.get(..len).unwrap_or_default();
            self.line += len + 1;
            if let Some(said) = Said::parse(line) {
                return Some((said, self.line));
            }
        }
        None
    }
}

/// Whether an exit code says that there is no such program, or that it cannot run there (BOOT-3).
pub fn is_not_runnable(code: i32) -> bool {
    matches!(code, 126 | 127)
}

/// Whether a login shell did not find the command: POSIX shells and fish end with 127, C shells
/// with 1, and restricted shells with whatever they like.
pub fn is_not_found(code: Option<i32>, complaints: &str) -> bool {
    let texts = ["ommand not found", "nknown command", "restricted", "not allowed"];
    matches!(code, Some(126 | 127)) || texts.iter().any(|text| complaints.contains(text))
}

/// What every line of the scripts begins with.
const MARKER: &str = "@fastsync-boot ";

/// How many digits of the digest are in a program's name: 128 bits.
const NAME_DIGITS: usize = 32;

/// BOOT-2. NAME stands for the program's name, and line ends for blanks. What `ls` says of the
/// directory is how a POSIX shell learns whose it is and who can write in it; it must not be the
/// `ls` of that directory, where the search path has the working directory.
const FIRST_STEP: &str = r#"f=fastsync; c=127; u=$(id -u);
if command -v $f >/dev/null 2>&1; then $f agent; c=$?;
case $c in 1|2|3|126|127) ;; *) exit $c;; esac;
$f --version >/dev/null 2>&1 || c=126; else n=NAME;
case :$PATH: in *:[.:0-9A-Z_a-z]*) PATH=/usr/bin:/bin:$PATH;; esac;
for d in "$FASTSYNC_AGENT_DIR" "$XDG_CACHE_HOME/$f" "$HOME/.cache/$f" "$TMPDIR/$f-$u"* /tmp/$f-$u*; do
if [ -x "$d/$n" ] && cd "$d"; then set -- $(ls -ldn .);
case "$1 $3" in d????-??-*" $u") case "$(./$n agent --digest </dev/null 2>&1)" in
${n##*-}*) exec ./$n agent --cached;; esac;; esac; fi; done; fi;
echo "@$f-boot $c $(uname -sm)"; case $c in 3|126|127) read -r s && eval "$s";; esac; exit $c"#;

const SECOND_STEP: &str = include_str!("bootstrap.sh");

/// ELF's numbers, the order of bytes (1: little-endian), and what `uname -m` calls the machines that
/// run such programs, their own first.
const MACHINES: &[(u16, u8, &[&str])] = &[
    (3, 1, &["i686", "i586", "i486", "i386", "x86_64"]),
    (21, 1, &["ppc64le"]),
    (21, 2, &["ppc64"]),
    (22, 2, &["s390x"]),
    (40, 1, &["armv7l", "armv6l", "armv8l", "aarch64"]),
    (62, 1, &["x86_64", "amd64"]),
    (183, 1, &["aarch64", "arm64"]),
    (243, 1, &["riscv64"]),
    (258, 1, &["loongarch64"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        let header = [&b"\x7fELF\x02\x01"[..], &[0; 12], &[62, 0]].concat();
        let machine = Machine::of_program(&header).unwrap();
        Program { size: 1000, digest: Digest([0xab; 32]), machine }
    }

    /// BOOT-1.
    #[test]
    fn every_login_shell_reads_the_same_command() {
        let command = program().remote_command();
        let script = command.strip_prefix("sh -c '").and_then(|it| it.strip_suffix('\'')).unwrap();
        assert!(command.len() < 1000, "{}", command.len());
        assert!(!script.contains(['\n', '\'', '\\', '!']), "{script}");
        assert!(!script.contains(MARKER), "an echo of the command must not look like the answer");
    }

    /// BOOT-3: as a shell takes it, which counts characters; and not if it was cut off on its way.
    #[test]
    fn half_a_script_is_not_run() {
        use std::io::Write as _;
        assert!(SECOND_STEP.is_ascii());
        let whole = program().second_step();
        // Without a line for an answer, the script has to end before it stores anything.
        for (len, is_run) in [(whole.len(), true), (whole.len() - 2, false), (1500, false)] {
            let home = tempfile::tempdir().unwrap();
            let mut child = std::process::Command::new("sh")
                .args(["-c", "u=$(id -u); read -r s && eval \"$s\""])
                .env_clear()
                .env("HOME", home.path())
                .env("PATH", std::env::var_os("PATH").unwrap())
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(&whole[..len]).unwrap();
            let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
            let is_offered = output.contains("@fastsync-boot send");
            assert_eq!(
                (is_offered, home.path().join(".cache").exists()),
                (is_run, is_run),
                "{output}"
            );
        }
    }

    /// BOOT-6.
    #[test]
    fn a_program_is_known_by_its_name() {
        let name = program().name();
        let digits = "ab".repeat(16);
        assert_eq!(name, format!("fastsync-{}-x86_64-{digits}", env!("CARGO_PKG_VERSION")));
        assert!(is_name(name.as_bytes()));
        for other in ["fastsync", "fastsync-0.1.0", &format!("fastsync-{digits}"), &name[..40]] {
            assert!(!is_name(other.as_bytes()), "{other}");
        }
        assert!(is_unfinished(format!(".{name}.host.17").as_bytes()));
        for other in [&name, ".fastsync-0123456789abcdef", &format!(".{name}")] {
            assert!(!is_unfinished(other.as_bytes()), "{other}");
        }
    }

    /// BOOT-2, BOOT-3.
    #[test]
    fn lines_are_found_among_noise() {
        let mut scanner = LineScanner::default();
        let all = b"motd\nno end@fastsync-boot 127 Linux x86_64\nmore";
        assert_eq!(scanner.find(&all[..20]), None);
        let (said, end) = scanner.find(all).unwrap();
        let no_agent =
            |code| Said::NoAgent { code, system: "Linux".into(), machine: "x86_64".into() };
        assert_eq!((said, &all[end..]), (no_agent(127), &b"more"[..]));
        assert_eq!(scanner.find(all), None);
        let said = |line: &str| LineScanner::default().find(format!("{line}\n").as_bytes());
        let said = |line| said(line).map(|(said, _)| said);
        assert_eq!(said("@fastsync-boot send /a b"), Some(Said::Send { directory: "/a b".into() }));
        assert_eq!(said("@fastsync-boot digest ff"), Some(Said::Arrived { digest: "ff".into() }));
        assert_eq!(said("@fastsync-boot fail no"), Some(Said::Cannot { why: "no".into() }));
        assert_eq!(said("@fastsync-boot what"), None);
        assert_eq!(said("@fastsync-boot"), None);
    }

    /// BOOT-3.
    #[test]
    fn a_program_for_another_machine_is_known_before_it_is_sent() {
        let machine = program().machine;
        assert!(machine.may_run_on("Linux", "x86_64"));
        assert!(!machine.may_run_on("Linux", "aarch64") && !machine.may_run_on("Darwin", "x86_64"));
        let big_endian = [&b"\x7fELF\x02\x02"[..], &[0; 12], &[0, 21]].concat();
        assert_eq!(Machine::of_program(&big_endian).unwrap().name(), "ppc64");
        let odd = [&b"\x7fELF\x02\x01"[..], &[0; 12], &[0xff, 0xff]].concat();
        assert!(Machine::of_program(&odd).unwrap().may_run_on("Linux", "odd"));
        assert_eq!(Machine::of_program(b"#!/bin/sh\necho hello world\n"), None);
    }

    #[test]
    fn shells_say_in_many_ways_that_there_is_nothing() {
        assert!(is_not_found(Some(127), "") && is_not_found(Some(1), "sh: Command not found."));
        assert!(is_not_found(Some(1), "rbash: sh: restricted"));
        assert!(!is_not_found(Some(1), "This account is locked.") && !is_not_found(None, ""));
        assert!(is_not_runnable(126) && is_not_runnable(127) && !is_not_runnable(2));
    }
}
