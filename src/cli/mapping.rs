//! Which source becomes what at the destination, for dry runs: the arguments as they were typed, and
//! below them the paths that the engine tells.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::location::Location;
use crate::engine::event::{EntryKind, EntryReport};

/// The arguments of a transfer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Mapping {
    sources: Vec<Argument>,
    destination: Argument,
}

/// A location as it was typed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Argument {
    typed: Vec<u8>,
    is_local: bool,
    /// The last component, unless the argument stands for the contents of a directory.
    name: Option<Vec<u8>>,
}

/// Where an entry comes from and where it goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// `None` where several sources could have it.
    pub source: Option<Vec<u8>>,
    pub destination: Vec<u8>,
    /// If the destination, on another host, is a directory, this is in it.
    pub otherwise: Option<Vec<u8>>,
}

impl Mapping {
    /// `contents`: the source stands for what is in it, however it is written (`--files-from`).
    pub fn new(sources: &[OsString], destination: &OsStr, contents: bool) -> Self {
        let source = |typed: &OsString| {
            let argument = Argument::new(typed);
            if contents { Argument { name: None, ..argument } } else { argument }
        };
        Self {
            sources: sources.iter().map(source).collect(),
            destination: Argument::new(destination),
        }
    }

    pub fn route(&self, entry: &EntryReport) -> Route {
        let path = &entry.path;
        if let [Argument { typed, name: Some(name), .. }] = &self.sources[..]
            && entry.kind != EntryKind::Directory
            && !path.contains(&b'/')
        {
            return self.single(typed, name);
        }
        let source = self.sources.iter().filter_map(|source| source.source_of(path));
        let source = source.collect::<Vec<_>>();
        let source = match &source[..] {
            [only] => Some(only),
            several => several.iter().find(|(path, is_local)| *is_local && exists(path)),
        }
        .map(|(path, _)| path.clone());
        Route { source, destination: self.destination.join(path), otherwise: None }
    }

    /// Something that was deleted, at the destination.
    pub fn at_destination(&self, path: &[u8]) -> Vec<u8> {
        self.destination.join(path)
    }

    /// The only source, which is no directory: the destination may be its new name.
    fn single(&self, typed: &[u8], name: &[u8]) -> Route {
        let Argument { typed: destination, is_local, name: new_name } = &self.destination;
        let inside = self.destination.join(name);
        let (destination, otherwise) = match new_name {
            None => (inside, None),
            Some(_) if !is_local => (destination.clone(), Some(inside)),
            Some(_) if Path::new(OsStr::from_bytes(destination)).is_dir() => (inside, None),
            Some(_) => (destination.clone(), None),
        };
        Route { source: Some(typed.to_vec()), destination, otherwise }
    }
}

impl Argument {
    fn new(typed: &OsStr) -> Self {
        let (path, is_local) = match Location::parse(typed) {
            Ok(Location::Local(path)) => (path.into_os_string().as_bytes().to_vec(), true),
            Ok(Location::Remote { path, .. } | Location::Endpoint { path, .. }) => (path, false),
            Err(_) => (typed.as_bytes().to_vec(), true),
        };
        let name = last_name(&path).map(<[u8]>::to_vec);
        Self { typed: typed.as_bytes().to_vec(), is_local, name }
    }

    /// Where an entry of this path is, if it is of this source; and whether that is here.
    fn source_of(&self, path: &[u8]) -> Option<(Vec<u8>, bool)> {
        let Some(name) = &self.name else { return Some((self.join(path), self.is_local)) };
        let rest = path.strip_prefix(&name[..])?;
        let is_it = rest.is_empty() || rest.starts_with(b"/");
        is_it.then(|| ([&self.typed[..], rest].concat(), self.is_local))
    }

    fn join(&self, path: &[u8]) -> Vec<u8> {
        let is_open = self.typed.ends_with(b"/")
            || self.typed.is_empty()
            || !self.is_local && self.name.is_none() && self.typed.ends_with(b":");
        let slash: &[u8] = if is_open { b"" } else { b"/" };
        [&self.typed[..], slash, path].concat()
    }
}

/// The last component of a path; `None` where the contents of a directory are meant.
pub fn last_name(path: &[u8]) -> Option<&[u8]> {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    (!matches!(name, b"" | b"." | b"..")).then_some(name)
}

fn exists(path: &[u8]) -> bool {
    Path::new(OsStr::from_bytes(path)).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::itemize::tests::entry;
    use crate::protocol::message::{Changes, Outcome};

    fn route(sources: &[&str], destination: &str, path: &str, kind: EntryKind) -> Route {
        let sources: Vec<OsString> = sources.iter().map(Into::into).collect();
        let mapping = Mapping::new(&sources, destination.as_ref(), false);
        mapping.route(&entry(path.as_bytes(), kind, Outcome::Would(Changes::CREATED)))
    }

    #[track_caller]
    fn goes(sources: &[&str], destination: &str, path: &str, from: &str, to: &str) {
        let route = route(sources, destination, path, EntryKind::File);
        let source = route.source.map(|source| String::from_utf8(source).unwrap());
        assert_eq!((source.as_deref(), &route.destination[..]), (Some(from), to.as_bytes()));
        assert_eq!(route.otherwise, None);
    }

    #[test]
    fn directories_go_below_and_contents_into() {
        goes(&["a"], "dst", "a/x", "a/x", "dst/a/x");
        goes(&["a/"], "dst", "x/y", "a/x/y", "dst/x/y");
        goes(&["/p/a"], "h:", "a/x", "/p/a/x", "h:a/x");
        goes(&["h:a"], ".", "a/x", "h:a/x", "./a/x");
        goes(&["h:"], "dst/", "x", "h:x", "dst/x");
        goes(&["h:a/b/."], "dst/", "x", "h:a/b/./x", "dst/x");
        goes(&["ssh://h/a"], "/", "a/x", "ssh://h/a/x", "/a/x");
        goes(&["a", "/p/b"], "dst", "b", "/p/b", "dst/b");
        goes(&["a", "/p/b"], "h:dst", "a/b", "a/b", "h:dst/a/b");
    }

    #[test]
    fn a_single_file_takes_the_name_that_the_destination_gives() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().to_str().unwrap();
        goes(&["p/f"], there, "f", "p/f", &format!("{there}/f"));
        let new = format!("{there}/new");
        goes(&["p/f"], &new, "f", "p/f", &new);
        goes(&["p/f"], &new, "new", "p/f", &new);
        goes(&["p/f"], "h:dir/", "f", "p/f", "h:dir/f");
        goes(&["p/f"], "h:", "f", "p/f", "h:f");
        let unknown = route(&["p/f"], "h:x", "f", EntryKind::File);
        assert_eq!(unknown.destination, b"h:x");
        assert_eq!(unknown.otherwise.unwrap(), b"h:x/f");
        let directory = route(&["p/f"], "h:x", "f", EntryKind::Directory);
        assert_eq!((directory.destination, directory.otherwise), (b"h:x/f".into(), None));
    }

    #[test]
    fn of_several_sources_the_one_that_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| format!("{}/{name}/", directory.path().display());
        std::fs::create_dir_all(path("b")).unwrap();
        std::fs::write(path("b") + "x", "").unwrap();
        let (a, b) = (path("a"), path("b"));
        goes(&[&a, &b], "dst", "x", &format!("{b}x"), "dst/x");
        assert_eq!(route(&["h:a/", "h:b/"], "dst", "x", EntryKind::File).source, None);
    }
}
