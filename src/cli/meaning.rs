//! What rsync's flags mean together: what is kept, chosen, replaced and deleted.

use std::os::unix::ffi::OsStrExt as _;

use super::UsageError;
use super::args::{Check, Transfer};
use super::flags::{Choosing, Comparing, Deleting, Keeping, Updating};
use super::rules::{Files, LeadsUp, Listed, listed_paths};
use crate::engine::job::TransferConfig;
use crate::protocol::manifest::Escaped;
use crate::protocol::message::{
    Backup, Compare, Delete, Durability, Keep, Links, MakeRoom, Preserve, Select, Update,
};

/// Fills in what the flags of a transfer say. `deleting` is there for `sync` alone. Returns the
/// only paths that are meant, if there is a list of them.
pub fn apply(
    config: &mut TransferConfig,
    transfer: &Transfer,
    deleting: Option<&Deleting>,
    files: &mut Files,
) -> Result<Option<Vec<Vec<u8>>>, UsageError> {
    let Transfer { keeping, choosing, comparing, updating, .. } = transfer;
    config.dry_run = transfer.dry_run;
    config.preserve = preserve(keeping)?;
    config.preserve.root |= deleting.is_some();
    config.select = select(choosing, files)?;
    config.update = update(comparing, updating, deleting)?;
    config.delete = deleting.map(delete).transpose()?.flatten();
    config.remove_source_files = updating.remove_source_files;
    config.verify = updating.verify;
    protect_backups(config);
    let paths = listed(transfer, config.delete.is_some(), files)?;
    config.select.has_paths = paths.is_some();
    config.select.whole_directories = transfer.recursive;
    check_together(config, updating)?;
    Ok(paths)
}

/// The same for `check A B`: what a dry run of `sync --delete` would look at.
pub fn apply_check(config: &mut TransferConfig, check: &Check) -> Result<(), UsageError> {
    config.dry_run = true;
    config.preserve = preserve(&check.keeping)?;
    // Whatever is there is compared.
    (config.preserve.devices, config.preserve.specials) = (true, true);
    config.select = select(&check.looking.choosing, &mut Files::default())?;
    let deleting = Deleting { force: true, ..Deleting::default() };
    config.update = update(&check.comparing, &Updating::default(), Some(&deleting))?;
    config.delete = Some(Delete { excluded: false, max: None, allow_empty_source: true });
    Ok(())
}

fn preserve(flags: &Keeping) -> Result<Preserve, UsageError> {
    if flags.acls && flags.no_perms {
        return Err(UsageError::new("--acls keeps permissions too, and --no-perms says not to"));
    }
    let permissions = !flags.no_perms;
    let times = !flags.no_times;
    let keep = |asked: bool, refused: bool| match (asked, refused) {
        (true, _) => Keep::Always,
        (false, false) if flags.archive => Keep::IfAllowed,
        (false, _) => Keep::No,
    };
    let both = flags.archive || flags.devices_specials;
    let chown = flags.chown.clone().unwrap_or_default();
    let chmod: Vec<_> = flags.chmod.iter().map(|changes| changes.0.as_str()).collect();
    Ok(Preserve {
        permissions,
        special_bits: permissions && (flags.archive || flags.perms || flags.acls),
        times,
        directory_times: times && !flags.omit_dir_times,
        owner: keep(flags.owner || chown.user.is_some(), flags.no_owner),
        group: keep(flags.group || chown.group.is_some(), flags.no_group),
        numeric_ids: flags.numeric_ids,
        chown: (chown.user, chown.group),
        chmod: chmod.join(",").into_bytes(),
        hard_links: flags.hard_links,
        attributes: flags.xattrs,
        acls: flags.acls,
        devices: flags.devices || (both && !flags.no_devices && !flags.no_devices_specials),
        specials: flags.specials || (both && !flags.no_specials && !flags.no_devices_specials),
        root: flags.archive,
    })
}

/// What is meant, without a list of paths.
pub fn select(flags: &Choosing, files: &mut Files) -> Result<Select, UsageError> {
    let links = match (flags.copy_links, flags.copy_unsafe_links, flags.safe_links) {
        (true, ..) => Links::Follow,
        (_, true, _) => Links::FollowUnsafe,
        (.., true) => Links::OnlySafe,
        (false, false, false) => Links::Keep,
    };
    let (min_size, max_size) = (flags.min_size.map(|it| it.0), flags.max_size.map(|it| it.0));
    if min_size > max_size && max_size.is_some() {
        return Err(UsageError::new("--min-size is more than --max-size: no file would be taken"));
    }
    Ok(Select {
        links,
        one_file_system: flags.one_file_system,
        filters: flags.rules.expand(flags.from0, &mut |name| files.read(name))?,
        gitignore: flags.gitignore,
        min_size,
        max_size,
        max_depth: flags.max_depth.map(|depth| depth.0),
        has_paths: false,
        whole_directories: false,
    })
}

fn update(
    comparing: &Comparing,
    flags: &Updating,
    deleting: Option<&Deleting>,
) -> Result<Update, UsageError> {
    let compare = match (comparing.checksum, comparing.size_only, flags.ignore_times) {
        (true, ..) => Compare::Checksum,
        (_, true, _) => Compare::SizeOnly,
        (.., true) => Compare::Always,
        (false, false, false) => Compare::Quick,
    };
    let make_room = match deleting {
        None => MakeRoom::Files,
        Some(flags) if flags.force || flags.delete || flags.delete_excluded => MakeRoom::All,
        Some(_) => MakeRoom::EmptyDirectories,
    };
    if flags.link_dest.len() > MAX_LINK_DESTS {
        let text = format!("--link-dest can be given {MAX_LINK_DESTS} times");
        return Err(UsageError::new(text));
    }
    Ok(Update {
        compare,
        modify_window: comparing.modify_window.map_or(0, |window| window.0),
        time_step: 0,
        keep_newer: flags.update,
        ignore_existing: flags.ignore_existing,
        existing_only: flags.existing,
        make_room,
        in_place: flags.inplace,
        backup: backup(flags)?,
        link_dest: flags.link_dest.iter().map(|dir| dir.as_bytes().to_vec()).collect(),
    })
}

fn backup(flags: &Updating) -> Result<Option<Backup>, UsageError> {
    let directory = flags.backup_dir.as_ref().map(|dir| dir.as_bytes().to_vec());
    let is_asked = flags.backup || directory.is_some();
    let Some(suffix) = &flags.suffix else {
        let suffix = if directory.is_some() { Vec::new() } else { b"~".to_vec() };
        return Ok(is_asked.then_some(Backup { directory, suffix }));
    };
    let suffix = suffix.as_bytes().to_vec();
    let wrong = |text: &str| Err(UsageError::new(text));
    if !is_asked {
        return wrong("--suffix is about backups, and neither --backup nor --backup-dir is there");
    }
    if suffix.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return wrong("--suffix is a part of a name, without slashes");
    }
    if suffix.is_empty() && directory.is_none() {
        return wrong("without a suffix, backups need a directory of their own: --backup-dir");
    }
    Ok(Some(Backup { directory, suffix }))
}

fn delete(flags: &Deleting) -> Result<Option<Delete>, UsageError> {
    if !flags.delete && !flags.delete_excluded {
        let needless = [
            (flags.max_delete.is_some(), "--max-delete"),
            (flags.allow_empty_source, "--allow-empty-source"),
        ];
        return match needless.iter().find(|(is_there, _)| *is_there) {
            Some((_, flag)) => {
                Err(UsageError::new(format!("{flag} means nothing without --delete")))
            }
            None => Ok(None),
        };
    }
    Ok(Some(Delete {
        excluded: flags.delete_excluded,
        max: flags.max_delete,
        allow_empty_source: flags.allow_empty_source,
    }))
}

/// As in rsync: backups that lie beside the files they were are not deleted by the next run.
fn protect_backups(config: &mut TransferConfig) {
    if matches!(&config.update.backup, Some(Backup { directory: None, .. })) {
        // They change the directories' times anyway.
        config.preserve.directory_times = false;
    }
    let Some(Delete { excluded: false, .. }) = config.delete else { return };
    if let Some(Backup { directory: None, suffix }) = &config.update.backup {
        config.select.filters.push([b"P *", &suffix[..]].concat());
    }
}

/// The paths that `--files-from` lists.
fn listed(
    transfer: &Transfer,
    deletes: bool,
    files: &mut Files,
) -> Result<Option<Vec<Vec<u8>>>, UsageError> {
    let Some(name) = &transfer.files_from else { return Ok(None) };
    if deletes {
        let text = "--delete needs whole directories, and --files-from gives single paths";
        return Err(UsageError::new(text));
    }
    if transfer.locations.len() != 2 {
        return Err(UsageError::new("--files-from takes one source, and a destination"));
    }
    let content = files.read(name.as_bytes()).map_err(|error| {
        let name = Escaped(name.as_bytes());
        UsageError::new(format!("cannot read the list of files {name}: {error}"))
    })?;
    let listed = listed_paths(&content, transfer.choosing.from0, transfer.recursive);
    match listed.map_err(|LeadsUp { number, path }| {
        let (list, path) = (Escaped(name.as_bytes()), Escaped(&path));
        let what = if transfer.choosing.from0 { "name" } else { "line" };
        UsageError::new(format!(
            "{list}, {what} {number}: {path} has `..` in it; paths are those below the source"
        ))
    })? {
        Listed::Everything => Ok(None),
        Listed::Paths(paths) => Ok(Some(paths)),
    }
}

/// What makes no sense together, whatever it means alone.
fn check_together(config: &TransferConfig, flags: &Updating) -> Result<(), UsageError> {
    let wrong = |text: &str| Err(UsageError::new(text));
    if config.update.in_place && config.update.backup.is_some() {
        return wrong("--inplace overwrites what --backup would keep");
    }
    if config.update.in_place && !config.update.link_dest.is_empty() {
        return wrong("--inplace would write into files that --link-dest shares with others");
    }
    if config.remove_source_files && config.durability == Durability::None {
        return wrong(
            "--remove-source-files removes only what is durably at the destination, and \
             durability is none",
        );
    }
    if config.update.existing_only && !config.update.link_dest.is_empty() {
        return wrong("--existing makes nothing new, so there is nothing for --link-dest to link");
    }
    if flags.partial_dir.as_ref().is_some_and(|dir| dir.is_empty()) {
        return wrong("--partial-dir is empty");
    }
    Ok(())
}

/// As many as rsync takes.
const MAX_LINK_DESTS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Arguments, Command};
    use clap::Parser as _;

    type Meant = (TransferConfig, Option<Vec<Vec<u8>>>);

    fn meant(typed: &str) -> Result<Meant, UsageError> {
        let typed: Vec<_> = ["fastsync"].into_iter().chain(typed.split(' ')).collect();
        let (transfer, deleting) = match Arguments::try_parse_from(&typed).unwrap().command {
            Command::Push(transfer) | Command::Cp(transfer) => (*transfer, None),
            Command::Sync(sync) => (sync.transfer, Some(sync.deleting)),
            other => panic!("{other:?}"),
        };
        let mut config = TransferConfig::default();
        let durability = transfer.connecting.settings.durability;
        config.durability = durability.map_or(Durability::Batch, |mode| mode.0);
        let paths = apply(&mut config, &transfer, deleting.as_ref(), &mut Files::default())?;
        Ok((config, paths))
    }

    fn preserved(flags: &str) -> Preserve {
        let typed = format!("cp {flags} a b");
        meant(&typed.replace("  ", " ")).unwrap().0.preserve
    }

    fn selected(flags: &str) -> Select {
        meant(&format!("cp {flags} a b")).unwrap().0.select
    }

    fn updated(flags: &str) -> Update {
        meant(&format!("sync {flags} a b")).unwrap().0.update
    }

    fn deleted(flags: &str) -> Option<Delete> {
        meant(&format!("sync {flags} a b")).unwrap().0.delete
    }

    #[track_caller]
    fn refused(typed: &str, needle: &str) {
        let error = meant(typed).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    }

    #[test]
    fn without_flags_nothing_changes() {
        for verb in ["push a h:", "cp a b"] {
            let (config, paths) = meant(verb).unwrap();
            assert_eq!((config, paths), (TransferConfig::default(), None), "{verb}");
        }
        let (config, _) = meant("sync a b").unwrap();
        assert_eq!(config.update.make_room, MakeRoom::EmptyDirectories);
        assert!(config.preserve.root && config.delete.is_none());
    }

    #[test]
    fn archive_is_the_sum_of_its_parts() {
        let archive = Preserve {
            special_bits: true,
            owner: Keep::IfAllowed,
            group: Keep::IfAllowed,
            devices: true,
            specials: true,
            root: true,
            ..Preserve::default()
        };
        assert_eq!(preserved("-a"), archive);
        let both = Preserve { devices: true, specials: true, ..Preserve::default() };
        for (flags, wanted) in [
            (
                "-aHAX",
                Preserve { hard_links: true, acls: true, attributes: true, ..archive.clone() },
            ),
            ("-aS --partial --links", archive.clone()),
            (
                "-a --no-perms",
                Preserve { permissions: false, special_bits: false, ..archive.clone() },
            ),
            ("-a --no-times", Preserve { times: false, directory_times: false, ..archive.clone() }),
            ("-aO", Preserve { directory_times: false, ..archive.clone() }),
            ("-a --no-o --no-g", Preserve { owner: Keep::No, group: Keep::No, ..archive.clone() }),
            ("-a --owner", Preserve { owner: Keep::Always, ..archive.clone() }),
            ("-a --no-D", Preserve { devices: false, specials: false, ..archive.clone() }),
            ("-a --no-devices", Preserve { devices: false, ..archive }),
            ("-D", both.clone()),
            ("--devices --specials", both),
            ("--perms", Preserve { special_bits: true, ..Preserve::default() }),
            ("--no-perms --perms", Preserve { special_bits: true, ..Preserve::default() }),
            ("-A", Preserve { special_bits: true, acls: true, ..Preserve::default() }),
            ("--no-owner --owner", Preserve { owner: Keep::Always, ..Preserve::default() }),
            ("--owner --no-owner", Preserve::default()),
            (
                "--chown=:g --chmod=u+r --chmod=D755",
                Preserve {
                    group: Keep::Always,
                    chown: (None, Some(b"g".into())),
                    chmod: b"u+r,D755".into(),
                    ..Preserve::default()
                },
            ),
        ] {
            assert_eq!(preserved(flags), wanted, "{flags}");
        }
    }

    #[test]
    fn choices_are_passed_on() {
        assert_eq!(selected("-L").links, Links::Follow);
        assert_eq!(selected("--copy-unsafe-links").links, Links::FollowUnsafe);
        assert_eq!(selected("--safe-links").links, Links::OnlySafe);
        let select = selected("-x --gitignore --min-size=1K --max-size=1MB --max-depth=2");
        let wanted = Select {
            one_file_system: true,
            gitignore: true,
            min_size: Some(1024),
            max_size: Some(1_000_000),
            max_depth: Some(2),
            ..Select::default()
        };
        assert_eq!(select, wanted);
        let select = selected("--exclude=*.o --include=x -f P_y");
        assert_eq!(select.filters, [&b"- *.o"[..], b"+ x", b"-r y"]);
    }

    #[test]
    fn updates_are_passed_on() {
        assert_eq!(updated("--checksum").compare, Compare::Checksum);
        assert_eq!(updated("--size-only").compare, Compare::SizeOnly);
        assert_eq!(updated("-I").compare, Compare::Always);
        let update = updated("-u --existing --inplace --modify-window=2 --partial-dir=p");
        let wanted = Update {
            keep_newer: true,
            existing_only: true,
            in_place: true,
            modify_window: 2,
            make_room: MakeRoom::EmptyDirectories,
            ..Update::default()
        };
        assert_eq!(update, wanted);
        assert_eq!(updated("--link-dest=a --link-dest=../b").link_dest, [&b"a"[..], b"../b"]);
        let backup = |flags| updated(flags).backup.map(|it| (it.directory, it.suffix));
        assert_eq!(backup("-b"), Some((None, b"~".into())));
        assert_eq!(backup("-b --suffix=.old"), Some((None, b".old".into())));
        assert_eq!(backup("--backup-dir=d"), Some((Some(b"d".into()), b"".into())));
        assert_eq!(backup("--partial"), None);
        let (config, _) = meant("cp --remove-source-files --verify a b").unwrap();
        assert!(config.remove_source_files && config.verify);
    }

    #[test]
    fn only_sync_deletes() {
        let plain = Delete::default();
        for flag in ["--delete", "--del", "--delete-before", "--delete-delay", "--delete-after"] {
            assert_eq!(deleted(flag), Some(plain), "{flag}");
        }
        let all = Delete { excluded: true, max: Some(3), allow_empty_source: true };
        assert_eq!(deleted("--delete-excluded --max-delete=3 --allow-empty-source"), Some(all));
        assert_eq!(updated("--delete").make_room, MakeRoom::All);
        assert_eq!((updated("--force").make_room, deleted("--force")), (MakeRoom::All, None));
        for verb in ["cp", "push", "pull"] {
            let typed = ["fastsync", verb, "--delete", "a", "b"];
            assert!(Arguments::try_parse_from(typed).is_err(), "{verb}");
        }
        let (config, _) = meant("sync --delete -b --exclude=x a b").unwrap();
        assert_eq!(config.select.filters, [&b"- x"[..], b"P *~"]);
        let (config, _) = meant("sync --delete --backup-dir=d a b").unwrap();
        assert!(config.select.filters.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        refused("sync --max-delete=1 a b", "without --delete");
        refused("sync --allow-empty-source a b", "without --delete");
        refused("sync --delete --files-from=x a b", "whole directories");
        refused("cp --files-from=x a b c", "one source");
        refused("cp --files-from=/nonexistent a b", "cannot read the list of files /nonexistent");
        refused("cp --inplace -b a b", "--inplace");
        refused("cp --inplace --link-dest=c a b", "--link-dest");
        refused("cp --existing --link-dest=c a b", "--existing");
        assert!(meant("cp --existing --ignore-existing a b").is_ok());
        refused("cp --remove-source-files --durability=none a b", "durability is none");
        refused("cp --suffix=x a b", "neither --backup");
        refused("cp -b --suffix=a/b a b", "without slashes");
        refused("cp -b --suffix= a b", "--backup-dir");
        refused("cp -A --no-perms a b", "--no-perms");
        refused("cp --min-size=2 --max-size=1 a b", "no file");
        for typed in ["cp -L --safe-links a b", "cp -I --checksum a b", "cp --size-only -I a b"] {
            let typed = ["fastsync"].into_iter().chain(typed.split(' '));
            assert!(Arguments::try_parse_from(typed).is_err());
        }
    }

    #[test]
    fn a_list_of_paths_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list");
        std::fs::write(&list, "a\n./b/\n").unwrap();
        let typed = format!("cp --files-from={} a b", list.display());
        let (config, paths) = meant(&typed).unwrap();
        assert_eq!(paths, Some(vec![b"a".into(), b"b".into()]));
        assert!(config.select.has_paths && !config.select.whole_directories);
        std::fs::write(&list, "a\n../b\n").unwrap();
        let error = meant(&typed).unwrap_err().to_string();
        assert!(error.contains("list, line 2: ../b has `..` in it"), "{error}");
        std::fs::write(&list, "a\n").unwrap();
        let (config, _) = meant(&typed.replace("cp", "cp -R")).unwrap();
        assert!(config.select.whole_directories);
    }
}
