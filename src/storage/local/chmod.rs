//! Changes of permission bits, as `rsync --chmod` takes them.
//!
//! In: the operator's text, such as `Du=rwx,go=rX,F644`. Out: what it makes of a mode.

/// A list of changes, made one after the other. Empty, it changes nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Chmod {
    changes: Vec<Change>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Change {
    only: Option<Only>,
    action: Action,
    /// Whose permissions: the execute bits of those that are named.
    who: u32,
    /// Whose permissions are taken, if any: how far its bits are shifted to the left.
    copied: Option<u32>,
    /// Permissions of one class, three bits.
    permissions: u32,
    /// The bits above permissions, and which of them are taken away first.
    special: u32,
    cleared: u32,
    /// Whether execution is for directories, and for what somebody may execute already.
    keeps_x: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Only {
    Directories,
    Others,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Action {
    Add,
    Remove,
    Assign,
    /// All bits, by a number.
    #[default]
    Set,
}

const ALL: u32 = 0o7777;
const EVERYBODY: u32 = 0o111;

/// Reads a text in rsync's syntax: changes separated by commas, each an octal number or
/// `[ugoa][+-=][rwxXst]` or `[ugoa][+-=][ugo]`, with a `D` or `F` in front if it is for directories
/// or for everything else.
///
/// # Errors
///
/// A sentence that names the part which is wrong.
pub fn parse(text: &[u8]) -> Result<Chmod, String> {
    let change = |part: &[u8]| {
        Change::parse(part).ok_or_else(|| {
            let (part, text) = (part.escape_ascii(), text.escape_ascii());
            format!("`{part}` in `{text}` is no change of permissions, such as `go-w` or `D755`")
        })
    };
    let changes = text.split(|byte| *byte == b',').map(change).collect::<Result<_, _>>()?;
    Ok(Chmod { changes })
}

impl Chmod {
    /// What becomes of a mode's permission bits. Bits of the umask are left alone where a change
    /// does not say whose bits it means, as by chmod(1).
    pub fn apply(&self, mode: u32, is_directory: bool, umask: u32) -> u32 {
        let executes = is_directory || mode & EVERYBODY != 0;
        let changes = self.changes.iter().filter(|change| match change.only {
            Some(Only::Directories) => is_directory,
            Some(Only::Others) => !is_directory,
            None => true,
        });
        changes.fold(mode & ALL, |mode, change| change.apply(mode, executes, umask))
    }

    /// Whether the umask makes a difference.
    pub fn needs_umask(&self) -> bool {
        self.changes.iter().any(|change| change.who == 0 && change.action != Action::Set)
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl Change {
    fn parse(part: &[u8]) -> Option<Self> {
        let mut change = Self::default();
        let mut rest = part;
        let mut owner_bits = 0;
        loop {
            let (first, next) = rest.split_first()?;
            match first {
                b'D' if change.only != Some(Only::Others) => {
                    change.only = Some(Only::Directories);
                }
                b'F' if change.only != Some(Only::Directories) => change.only = Some(Only::Others),
                b'u' => (change.who, owner_bits) = (change.who | 0o100, owner_bits | 0o4000),
                b'g' => (change.who, owner_bits) = (change.who | 0o010, owner_bits | 0o2000),
                b'o' => change.who |= 0o001,
                b'a' => (change.who, owner_bits) = (EVERYBODY, 0o6000),
                b'0'..=b'7' if change.who == 0 => return change.number(rest),
                b'+' => return change.symbols(Action::Add, owner_bits, next),
                b'-' => return change.symbols(Action::Remove, owner_bits, next),
                b'=' => return change.symbols(Action::Assign, owner_bits, next),
                _ => return None,
            }
            rest = next;
        }
    }

    fn number(self, digits: &[u8]) -> Option<Self> {
        let mut value = 0;
        for digit in digits {
            value = match digit {
                b'0'..=b'7' => value * 8 + u32::from(digit - b'0'),
                _ => return None,
            };
            if value > ALL {
                return None;
            }
        }
        Some(Self { special: value, ..self })
    }

    fn symbols(mut self, action: Action, owner_bits: u32, letters: &[u8]) -> Option<Self> {
        self.action = action;
        if let [class @ (b'u' | b'g' | b'o')] = letters {
            self.copied = Some(match class {
                b'u' => 6,
                b'g' => 3,
                _ => 0,
            });
            if action == Action::Assign {
                let named =
                    |class, bit| if self.who == 0 || self.who & class != 0 { bit } else { 0 };
                self.cleared = named(0o100, 0o4000) | named(0o010, 0o2000) | named(0o001, 0o1000);
            }
            return Some(self);
        }
        for letter in letters {
            match letter {
                b'r' => self.permissions |= 4,
                b'w' => self.permissions |= 2,
                b'x' => self.permissions |= 1,
                b'X' => (self.permissions, self.keeps_x) = (self.permissions | 1, true),
                b's' if owner_bits == 0 => self.special |= 0o4000,
                b's' => self.special |= owner_bits,
                b't' => self.special |= 0o1000,
                _ => return None,
            }
        }
        // Without `s` and `t`, `=` with letters leaves such bits alone.
        if action == Action::Assign && self.special != 0 {
            self.cleared = owner_bits;
        }
        Some(self)
    }

    fn apply(self, mode: u32, executes: bool, umask: u32) -> u32 {
        let Self { who, special, cleared, .. } = self;
        let (classes, spared) = if who == 0 { (EVERYBODY, umask) } else { (who, 0) };
        let permissions = self.copied.map_or(self.permissions, |shift| mode >> shift & 7);
        let mut bits = (classes * permissions) & !spared | special;
        if self.keeps_x && !executes && self.action != Action::Remove {
            bits &= !EVERYBODY;
        }
        match self.action {
            Action::Add => mode | bits,
            Action::Remove => mode & !bits,
            Action::Assign => mode & !((classes * 7) | cleared) | bits,
            Action::Set => special,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(text: &str, mode: u32) -> u32 {
        parse(text.as_bytes()).unwrap().apply(mode, false, 0o022)
    }

    /// What rsync 3.5 makes of them under a umask of 022.
    #[test]
    fn it_does_what_rsync_does() {
        let cases = [
            ("644", 0o4751, 0o644),
            ("04755", 0, 0o4755),
            ("F600", 0o755, 0o600),
            ("D700", 0o755, 0o755),
            ("go-w,+x", 0o622, 0o711),
            ("a+X", 0o640, 0o640),
            ("a+X", 0o650, 0o751),
            ("g=u", 0o751, 0o771),
            ("g=u", 0o4751, 0o4771),
            ("g-u", 0o751, 0o701),
            ("go=u", 0o640, 0o666),
            ("=u", 0o751, 0o755),
            ("+u", 0o640, 0o644),
            ("F=g", 0o751, 0o555),
            ("Dg=u", 0o751, 0o751),
            ("a=g", 0o640, 0o444),
            ("u=rwxs,g=u", 0o751, 0o4771),
            ("g=u,o=g", 0o751, 0o777),
            ("u=g", 0o7751, 0o3551),
            ("g=u", 0o7751, 0o5771),
            ("o=u", 0o7751, 0o6757),
            ("go=u", 0o7751, 0o4777),
            ("ug=o", 0o7751, 0o1111),
            ("u=u", 0o7751, 0o3751),
            ("a=g", 0o7751, 0o555),
            ("=u", 0o7751, 0o755),
            ("-u", 0o7751, 0o7000),
            ("u=s,g=u", 0o6755, 0o4005),
            ("=", 0o640, 0),
            ("+", 0o640, 0o640),
            ("u+s,g+s,+t", 0o755, 0o7755),
            ("+s", 0o755, 0o4755),
            ("ug-s", 0o6755, 0o755),
            ("ug=rx", 0o6755, 0o6555),
            ("ug=rxs", 0o2755, 0o6555),
            ("u=s", 0o2755, 0o6055),
            ("u=t", 0o4755, 0o1055),
            ("ug=t", 0o6755, 0o1005),
            ("go=t", 0o6755, 0o5700),
            ("a=s", 0o755, 0o6000),
            ("=s", 0o755, 0o4000),
            ("=rs", 0o6755, 0o6444),
            ("a-X", 0o755, 0o644),
            ("u=X", 0o744, 0o144),
        ];
        for (text, before, after) in cases {
            assert_eq!(apply(text, before), after, "{text} on {before:o}");
        }
        let both = parse(b"D755,F644").unwrap();
        assert_eq!((both.apply(0o700, true, 0), both.apply(0o700, false, 0)), (0o755, 0o644));
        assert_eq!(parse(b"a+X").unwrap().apply(0o600, true, 0), 0o711);
        assert!(parse(b"=u").unwrap().needs_umask() && !both.needs_umask());
        assert_eq!(Chmod::default().apply(0o4755, true, 0o777), 0o4755);
    }

    #[test]
    fn what_rsync_refuses_is_refused() {
        let wrong = [
            "", ",", "u=rw,", "D", "u+r+w", "u644", "648", "17777", "DF=r", "FD=r", "g=ur", "g=us",
            "u=gs", "x", "u", "r+u", "u+q", "6x",
        ];
        for text in wrong {
            assert!(parse(text.as_bytes()).unwrap_err().contains(text), "{text}");
        }
    }
}
