//! Users and groups: names and numbers, in both directions.
//!
//! In: numbers as files have them, and names as another host has them. Out: the names of numbers
//! here, and the numbers that a peer's users and groups have here. The files of this host are asked
//! first, and `getent` for what they do not know, as only the C library can reach directories such
//! as LDAP.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::manifest::Escaped;
use crate::protocol::message::{Keep, Owner, Preserve};

/// No longer name is looked up, in bytes.
const MAX_NAME_LEN: usize = 256;

/// How often `getent` is started for users, and for groups: whoever has more than that to ask for
/// is no user of this host.
const MAX_LOOKUPS: u32 = 10_000;

/// How many names of a peer's users, and of its groups, are remembered.
const MAX_LEARNED: usize = 1 << 20;

/// What users and groups of this host are called. Every answer is looked up once.
#[derive(Debug)]
pub struct Names {
    users: Database,
    groups: Database,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            users: Database::new("/etc/passwd", "passwd"),
            groups: Database::new("/etc/group", "group"),
        }
    }
}

impl Names {
    pub fn user_name(&self, id: u32) -> Option<Vec<u8>> {
        self.users.name(id)
    }

    pub fn group_name(&self, id: u32) -> Option<Vec<u8>> {
        self.groups.name(id)
    }

    pub fn user_id(&self, name: &[u8]) -> Option<u32> {
        self.users.id(name)
    }

    pub fn group_id(&self, name: &[u8]) -> Option<u32> {
        self.groups.id(name)
    }
}

/// Names and numbers of one sort.
#[derive(Debug)]
struct Database {
    path: &'static str,
    /// What `getent` calls it.
    key: &'static str,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    is_read: bool,
    names: HashMap<u32, Option<Vec<u8>>>,
    ids: HashMap<Vec<u8>, Option<u32>>,
    lookups: u32,
}

impl Database {
    fn new(path: &'static str, key: &'static str) -> Self {
        Self { path, key, known: Mutex::default() }
    }

    fn name(&self, id: u32) -> Option<Vec<u8>> {
        let known = &mut *self.known();
        if let Some(name) = known.names.get(&id) {
            return name.clone();
        }
        let found = self.ask(known, id.to_string().as_bytes());
        let name = found.filter(|(_, found)| *found == id).map(|(name, _)| name);
        known.names.insert(id, name.clone());
        name
    }

    fn id(&self, name: &[u8]) -> Option<u32> {
        if !is_plausible(name) {
            return None;
        }
        let known = &mut *self.known();
        if let Some(id) = known.ids.get(name) {
            return *id;
        }
        let found = self.ask(known, name);
        // A name that looks like a number may have been taken for one.
        let id = found.filter(|(found, _)| found == name).map(|(_, id)| id);
        known.ids.insert(name.to_vec(), id);
        id
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is a single insertion, so a panic elsewhere spoils nothing.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.is_read {
            known.is_read = true;
            // Without the file, `getent` knows.
            let text = std::fs::read(self.path).unwrap_or_default();
            for (name, id) in text.split(|byte| *byte == b'\n').filter_map(parse_line) {
                known.names.entry(id).or_insert_with(|| Some(name.clone()));
                known.ids.entry(name).or_insert(Some(id));
            }
        }
        known
    }

    /// Asks for one name or number.
    fn ask(&self, known: &mut Known, what: &[u8]) -> Option<(Vec<u8>, u32)> {
        if known.lookups >= MAX_LOOKUPS {
            return None;
        }
        known.lookups += 1;
        let answer = Command::new("getent")
            .arg(self.key)
            .arg(std::ffi::OsStr::from_bytes(what))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        match answer {
            Ok(answer) if answer.status.success() => {
                answer.stdout.split(|byte| *byte == b'\n').find_map(parse_line)
            }
            Ok(_) => None,
            Err(_) => {
                known.lookups = MAX_LOOKUPS;
                None
            }
        }
    }
}

/// Whether a name can be one, and no option of `getent`.
fn is_plausible(name: &[u8]) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.len())
        && !name.starts_with(b"-")
        && !name.iter().any(|byte| matches!(byte, b':' | b'\n' | 0))
}

/// A line of passwd(5) or group(5): the name and the number.
fn parse_line(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = fields.next().filter(|name| is_plausible(name))?;
    let id = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
    Some((name.to_vec(), id))
}

/// Whom things are given to, at the receiver.
#[derive(Debug)]
pub struct Owners {
    names: Names,
    numeric_ids: bool,
    owner: Giving,
    group: Giving,
    /// Whether this process may give things to anybody.
    is_privileged: bool,
    /// The groups to which it may give what is its own.
    own_groups: Vec<u32>,
    users: Mutex<Learned>,
    groups: Mutex<Learned>,
}

/// How owners, or groups, are given.
#[derive(Clone, Copy, Debug)]
struct Giving {
    keep: Keep,
    /// The same for everything.
    fixed: Option<u32>,
}

/// What a peer calls its numbers, and which they are here.
#[derive(Debug, Default)]
struct Learned {
    names: HashMap<u32, Vec<u8>>,
    ids: HashMap<u32, u32>,
}

impl Owners {
    /// # Errors
    ///
    /// A sentence, if everything is to be given to somebody whom this host does not know.
    pub fn new(preserve: &Preserve) -> Result<Self, String> {
        let names = Names::default();
        let (owner, group) = &preserve.chown;
        let owner = Giving::new(preserve.owner, owner.as_deref(), "user", |it| names.user_id(it))?;
        let group =
            Giving::new(preserve.group, group.as_deref(), "group", |it| names.group_id(it))?;
        let mut own_groups: Vec<_> = rustix::process::getgroups()
            .unwrap_or_default()
            .into_iter()
            .map(rustix::process::Gid::as_raw)
            .collect();
        own_groups.push(rustix::process::getegid().as_raw());
        Ok(Self {
            names,
            numeric_ids: preserve.numeric_ids,
            owner,
            group,
            is_privileged: rustix::process::geteuid().is_root(),
            own_groups,
            users: Mutex::default(),
            groups: Mutex::default(),
        })
    }

    /// Takes note of a peer's names. Nothing is looked up before it is needed.
    pub fn learn(&self, users: Vec<Owner>, groups: Vec<Owner>) {
        for (learned, owners) in [(&self.users, users), (&self.groups, groups)] {
            let mut learned = lock(learned);
            for Owner { id, name } in owners {
                if learned.names.len() < MAX_LEARNED {
                    learned.names.entry(id).or_insert(name);
                }
            }
        }
    }

    /// The owner that something with this owner at the peer gets, if it gets one.
    pub fn owner(&self, id: u32) -> Option<u32> {
        self.owner.of(id, |id| self.user(id))
    }

    /// The group that something with this group at the peer gets, if it gets one.
    pub fn group(&self, id: u32) -> Option<u32> {
        self.group.of(id, |id| self.group_here(id))
    }

    /// The number here of a peer's user.
    pub fn user(&self, id: u32) -> u32 {
        self.here(&self.users, id, |name| self.names.user_id(name))
    }

    /// The number here of a peer's group.
    pub fn group_here(&self, id: u32) -> u32 {
        self.here(&self.groups, id, |name| self.names.group_id(name))
    }

    /// The superuser is nobody else's name anywhere, and a name that nobody has here stays the
    /// number that it was.
    fn here(
        &self,
        learned: &Mutex<Learned>,
        id: u32,
        look_up: impl Fn(&[u8]) -> Option<u32>,
    ) -> u32 {
        if self.numeric_ids || id == 0 {
            return id;
        }
        let mut learned = lock(learned);
        if let Some(here) = learned.ids.get(&id) {
            return *here;
        }
        let Some(name) = learned.names.get(&id) else { return id };
        let here = look_up(name).unwrap_or(id);
        learned.ids.insert(id, here);
        here
    }

    /// Whether giving something to this owner is tried at all.
    pub fn tries_owner(&self) -> bool {
        self.is_privileged || self.must_give_owner()
    }

    /// Whether giving something to this group is tried at all.
    pub fn tries_group(&self, group: u32) -> bool {
        self.may_give_group(group) || self.must_give_group()
    }

    /// Whether giving something to another owner will succeed, as far as we know.
    pub fn may_give_owner(&self) -> bool {
        self.is_privileged
    }

    /// Whether giving something of ours to this group will succeed, as far as we know.
    pub fn may_give_group(&self, group: u32) -> bool {
        self.is_privileged || self.own_groups.contains(&group)
    }

    /// Whether it is to be told if an owner could not be kept.
    pub fn must_give_owner(&self) -> bool {
        self.owner.is_a_must()
    }

    /// Whether it is to be told if a group could not be kept.
    pub fn must_give_group(&self) -> bool {
        self.group.is_a_must()
    }
}

impl Giving {
    fn new(
        keep: Keep,
        fixed: Option<&[u8]>,
        sort: &str,
        look_up: impl Fn(&[u8]) -> Option<u32>,
    ) -> Result<Self, String> {
        let Some(name) = fixed else { return Ok(Self { keep, fixed: None }) };
        let number = std::str::from_utf8(name).ok().and_then(|text| text.parse().ok());
        match look_up(name).or(number) {
            // To the kernel it means that nothing is to be changed.
            Some(u32::MAX) => Err(format!("no {sort} can have the number {}", u32::MAX)),
            Some(id) => Ok(Self { keep, fixed: Some(id) }),
            None => Err(format!("there is no {sort} called {} here", Escaped(name))),
        }
    }

    /// Whom something of a peer's is given to. The highest number is nobody's, and would tell the
    /// kernel to leave things as they are.
    fn of(self, id: u32, here: impl Fn(u32) -> u32) -> Option<u32> {
        let given = match self {
            Self { fixed: Some(fixed), .. } => fixed,
            Self { keep: Keep::No, .. } => return None,
            Self { .. } => here(id),
        };
        (given != u32::MAX).then_some(given)
    }

    fn is_a_must(self) -> bool {
        self.keep == Keep::Always || self.fixed.is_some()
    }
}

fn lock(learned: &Mutex<Learned>) -> MutexGuard<'_, Learned> {
    learned.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(id: u32, name: &[u8]) -> Owner {
        Owner { id, name: name.to_vec() }
    }

    #[test]
    fn the_superuser_is_known_by_name_and_number() {
        let names = Names::default();
        assert_eq!(names.user_name(0).as_deref(), Some(&b"root"[..]));
        assert_eq!((names.user_id(b"root"), names.group_id(b"root")), (Some(0), Some(0)));
        assert!(names.group_name(0).is_some());
    }

    #[test]
    fn what_nobody_is_called_has_no_number() {
        let names = Names::default();
        for name in [&b"nobody of this name"[..], b"", b"-h", b"a:b", b"0", &[b'x'; 300]] {
            assert_eq!(names.user_id(name), None, "{name:?}");
        }
        assert_eq!(names.user_name(u32::MAX - 7), None);
        assert!(names.users.known().lookups <= 3, "options and nonsense are not asked for");
    }

    #[test]
    fn lines_are_taken_apart() {
        assert_eq!(parse_line(b"a b:x:17:5::/:"), Some((b"a b".to_vec(), 17)));
        for bad in [&b""[..], b"name", b"name:x", b"name:x:y", b":x:1", b"+::::::", b"n:x:-1"] {
            assert_eq!(parse_line(bad), None);
        }
    }

    #[test]
    fn a_peers_numbers_are_translated_by_name() {
        let preserve = Preserve { owner: Keep::IfAllowed, ..Preserve::default() };
        let owners = Owners::new(&preserve).unwrap();
        owners.learn(vec![owner(77_777, b"root"), owner(88_888, b"nobody of this name")], vec![]);
        assert_eq!(owners.owner(77_777), Some(0));
        assert_eq!(owners.owner(88_888), Some(88_888), "no name here");
        assert_eq!(owners.owner(99_999), Some(99_999), "no name there");
        owners.learn(vec![owner(0, b"daemon")], vec![owner(5, b"root")]);
        assert_eq!(owners.owner(0), Some(0));
        assert_eq!((owners.group(5), owners.group_here(5)), (None, 0), "groups are not kept");
        let numeric = Preserve { numeric_ids: true, ..preserve };
        let owners = Owners::new(&numeric).unwrap();
        owners.learn(vec![owner(77_777, b"root")], vec![]);
        assert_eq!(owners.owner(77_777), Some(77_777));
    }

    #[test]
    fn everything_can_be_given_to_somebody() {
        let chown = |user: &[u8], group: &[u8]| Preserve {
            chown: (Some(user.to_vec()), Some(group.to_vec())),
            ..Preserve::default()
        };
        let owners = Owners::new(&chown(b"root", b"4711")).unwrap();
        assert_eq!((owners.owner(5), owners.group(5)), (Some(0), Some(4711)));
        assert!(owners.tries_owner() && owners.must_give_group());
        let error = Owners::new(&chown(b"no such user", b"0")).unwrap_err();
        assert!(error.contains("no such user"));
        let error = Owners::new(&chown(b"root", b"4294967295")).unwrap_err();
        assert_eq!(error, "no group can have the number 4294967295");
    }
}
