//! What was meant by the subcommands that change nothing: `check`, `ls` and `manifest`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStringExt as _;

use super::UsageError;
use super::args::{Check, Connecting};
use super::flags::Choosing;
use super::job::{Plan, Verb, direction, display, end_with_slash, job, take_contents};
use super::location::Location;
use super::mapping::last_name;
use super::meaning;
use super::rules::Files;
use super::settings::Environment;
use crate::engine::job::{At, Direction, Job};

/// Puts the job of `check A B` together: a dry run that would make B like A.
pub fn plan_check(check: &Check, environment: &Environment<'_>) -> Result<Plan, UsageError> {
    let [a, b] = &check.locations[..] else {
        return Err(UsageError::new("two locations are compared with each other"));
    };
    let mut direction = direction(Verb::Sync, &check.locations)?;
    if is_compared_by_contents(a, b) {
        take_contents(&mut direction);
    }
    let mut job = job(direction, &check.looking.connecting, None, environment)?;
    meaning::apply_check(&mut job.config, check)?;
    // A second session would tell everything again.
    job.config.retries = 0;
    let display = display(&check.looking.output, environment)?;
    Ok(Plan { job, display, report: None })
}

/// Whether the first location is a directory, as far as that can be told from here.
fn is_compared_by_contents(a: &OsStr, b: &OsStr) -> bool {
    match (Location::parse(a), Location::parse(b)) {
        (Ok(Location::Local(path)), _) => path.is_dir(),
        (Ok(Location::Remote { .. } | Location::Endpoint { .. }), Ok(Location::Local(path))) => {
            !path.exists() || path.is_dir()
        }
        _ => false,
    }
}

/// A job that looks at one location: its paths are below [`Inventory::prefix`].
#[derive(Debug)]
pub struct Inventory {
    pub job: Job,
    /// What each path begins with where the location had to be asked for by its name, because only
    /// the other host knows whether it is a directory.
    pub prefix: Option<Vec<u8>>,
}

/// Puts the job of `ls`, `manifest` and `check LOCATION FILE` together. `depth` is how many levels
/// are looked at, unless the flags say less.
pub fn plan_inventory(
    location: &OsStr,
    hash: bool,
    depth: Option<u32>,
    choosing: &Choosing,
    connecting: &Connecting,
    environment: &Environment<'_>,
    files: &mut Files,
) -> Result<Inventory, UsageError> {
    let (at, source, prefix) = match Location::parse(location)? {
        Location::Local(path) => {
            let is_directory = path.is_dir();
            let mut path = path.into_os_string().into_vec();
            if is_directory {
                end_with_slash(&mut path);
            }
            (At::Here, path, None)
        }
        Location::Remote { host, path } => {
            let prefix = last_name(&path).map(<[u8]>::to_vec);
            (At::Host(host), path, prefix)
        }
        Location::Endpoint { store, path } => {
            let prefix = last_name(&path).map(<[u8]>::to_vec);
            (At::Store(store), path, prefix)
        }
    };
    let direction = Direction::Inventory { sources: vec![source], at, hash };
    let mut job = job(direction, connecting, None, environment)?;
    let config = &mut job.config;
    config.select = meaning::select(choosing, files)?;
    let depth = [depth, config.select.max_depth].into_iter().flatten().min();
    // A directory that is asked for by its name is a level itself.
    config.select.max_depth = depth.map(|depth| depth.saturating_add(prefix.is_some().into()));
    (config.preserve.devices, config.preserve.specials) = (true, true);
    // A second session would tell everything again.
    config.retries = 0;
    Ok(Inventory { job, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Arguments, Command};
    use crate::engine::job::Sources;
    use crate::protocol::message::Compare;
    use clap::Parser as _;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStrExt as _;

    // The machine's own configuration file has no say in tests.
    fn no_file(name: &str) -> Option<OsString> {
        (name == "FASTSYNC_CONFIG").then(|| "/dev/null".into())
    }

    fn planned(typed: &[&str]) -> Plan {
        let typed = std::iter::once(&"fastsync").chain(typed);
        let Command::Check(check) = Arguments::try_parse_from(typed).unwrap().command else {
            panic!("no check")
        };
        plan_check(&check, &Environment(&no_file)).unwrap()
    }

    #[test]
    fn a_check_is_a_dry_run_that_would_delete() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().to_str().unwrap();
        let plan = planned(&["check", "--checksum", here, "b"]);
        assert!(plan.job.config.dry_run && plan.job.config.delete.is_some());
        assert_eq!(plan.job.config.update.compare, Compare::Checksum);
        let Direction::Copy { sources: Sources::Local(sources), .. } = plan.job.direction else {
            panic!("no copy")
        };
        assert_eq!(sources[0].as_os_str().as_bytes(), format!("{here}/").as_bytes());
        let plan = planned(&["check", "h:a", here]);
        assert!(
            matches!(plan.job.direction, Direction::Pull { sources, .. } if sources[0] == b"a/")
        );
        let plan = planned(&["check", "h:a", "/dev/null"]);
        assert!(
            matches!(plan.job.direction, Direction::Pull { sources, .. } if sources[0] == b"a")
        );
    }

    #[test]
    fn an_inventory_is_of_contents_where_that_is_known() {
        let environment = Environment(&no_file);
        let planned = |location: &str, depth| {
            let (choosing, connecting) = (Choosing::default(), Connecting::default());
            let location = location.as_ref();
            let planned = plan_inventory(
                location,
                true,
                depth,
                &choosing,
                &connecting,
                &environment,
                &mut Files::default(),
            );
            let Inventory { job, prefix } = planned.unwrap();
            let Direction::Inventory { sources, .. } = job.direction else { panic!() };
            (sources[0].clone(), prefix, job.config.select.max_depth)
        };
        assert_eq!(planned("/etc", None), (b"/etc/".into(), None, None));
        assert_eq!(planned("/etc/passwd", Some(1)), (b"/etc/passwd".into(), None, Some(1)));
        assert_eq!(planned("h:a/b", Some(1)), (b"a/b".into(), Some(b"b".into()), Some(2)));
        assert_eq!(planned("h:a/b/", Some(1)), (b"a/b/".into(), None, Some(1)));
        assert_eq!(planned("h:", None), (b"".into(), None, None));
    }
}
