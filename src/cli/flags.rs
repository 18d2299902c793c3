//! What was typed of rsync's flags, in groups that several subcommands share.

use std::ffi::OsString;

use clap::{ArgAction, Args};

use super::rules::Rules;
use super::values::{Depth, ModeChanges, Ownership, SizeLimit, Window};

/// What is kept of an entry beside its content.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Metadata")]
pub struct Keeping {
    /// Keep all of the usual: permissions with their special bits, times, symlinks, owner and
    /// group as far as allowed, devices and specials
    #[arg(short, long)]
    pub archive: bool,
    /// Copy symlinks as symlinks, which is the default
    #[arg(short, long)]
    pub links: bool,
    /// Keep permissions with setuid, setgid and sticky bits; permissions without those are the default
    #[arg(long, overrides_with = "no_perms")]
    pub perms: bool,
    /// Do not keep permissions
    #[arg(long, alias = "no-p")]
    pub no_perms: bool,
    /// Keep modification times, which is the default
    #[arg(long, overrides_with = "no_times")]
    pub times: bool,
    /// Do not keep modification times
    #[arg(long, alias = "no-t")]
    pub no_times: bool,
    /// Do not keep modification times of directories
    #[arg(short = 'O', long)]
    pub omit_dir_times: bool,
    /// Keep owners; what cannot be kept counts as an error
    #[arg(long, overrides_with = "no_owner")]
    pub owner: bool,
    /// Do not keep owners
    #[arg(long, alias = "no-o")]
    pub no_owner: bool,
    /// Keep groups; what cannot be kept counts as an error
    #[arg(long, overrides_with = "no_group")]
    pub group: bool,
    /// Do not keep groups
    #[arg(long, alias = "no-g")]
    pub no_group: bool,
    /// Keep devices and specials: the same as --devices --specials
    #[arg(short = 'D', overrides_with = "no_devices_specials")]
    pub devices_specials: bool,
    /// Neither devices nor specials
    #[arg(long = "no-D", id = "no_devices_specials", hide = true)]
    pub no_devices_specials: bool,
    /// Keep devices
    #[arg(long, overrides_with = "no_devices")]
    pub devices: bool,
    /// Do not make devices
    #[arg(long)]
    pub no_devices: bool,
    /// Keep FIFOs and sockets
    #[arg(long, overrides_with = "no_specials")]
    pub specials: bool,
    /// Do not make FIFOs and sockets
    #[arg(long)]
    pub no_specials: bool,
    /// Keep hard links among what is transferred
    #[arg(short = 'H', long)]
    pub hard_links: bool,
    /// Keep POSIX ACLs; implies --perms
    #[arg(short = 'A', long)]
    pub acls: bool,
    /// Keep extended attributes
    #[arg(short = 'X', long)]
    pub xattrs: bool,
    /// Accepted and needless: holes always stay holes
    #[arg(short = 'S', long)]
    pub sparse: bool,
    /// Keep owners and groups by number, even where both hosts know the name
    #[arg(long)]
    pub numeric_ids: bool,
    /// Give everything this owner and group
    #[arg(long, value_name = "USER:GROUP")]
    pub chown: Option<Ownership>,
    /// Change permissions of what is sent, as chmod does; may be repeated
    #[arg(long, value_name = "CHANGES")]
    pub chmod: Vec<ModeChanges>,
}

/// Which of the things at the source are meant.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which files")]
pub struct Choosing {
    /// Copy what symlinks lead to
    #[arg(short = 'L', long, group = "treatment_of_links")]
    pub copy_links: bool,
    /// Copy what symlinks that lead out of the tree lead to
    #[arg(long, group = "treatment_of_links")]
    pub copy_unsafe_links: bool,
    /// Leave out symlinks that lead out of the tree
    #[arg(long, group = "treatment_of_links")]
    pub safe_links: bool,
    /// Stay on the file systems of the sources
    #[arg(short = 'x', long)]
    pub one_file_system: bool,
    #[command(flatten)]
    pub rules: Rules,
    /// Names in files of --files-from, --exclude-from, --include-from end with a NUL byte
    #[arg(short = '0', long)]
    pub from0: bool,
    /// Leave out what .gitignore files name
    #[arg(long)]
    pub gitignore: bool,
    /// Leave out smaller files; such as 10K, 1.5MB, 1M+1
    #[arg(long, value_name = "SIZE")]
    pub min_size: Option<SizeLimit>,
    /// Leave out larger files
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub max_size: Option<SizeLimit>,
    /// Go down so many levels; 1 is what lies directly in the source
    #[arg(long, value_name = "N")]
    pub max_depth: Option<Depth>,
}

/// When two files count as equal.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "What is there already")]
pub struct Comparing {
    /// Compare contents, by hashing both, instead of sizes and times
    #[arg(long, group = "comparison")]
    pub checksum: bool,
    /// Compare sizes only
    #[arg(long, group = "comparison")]
    pub size_only: bool,
    /// Times that differ by no more than so many seconds are equal [default: 0]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub modify_window: Option<Window>,
}

/// What is done about what the destination has already.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "What is there already")]
pub struct Updating {
    /// Leave alone what is newer at the destination
    #[arg(short, long)]
    pub update: bool,
    /// Transfer everything, even if size and time are equal
    #[arg(short = 'I', long, group = "comparison")]
    pub ignore_times: bool,
    /// Leave alone what exists at the destination
    #[arg(long)]
    pub ignore_existing: bool,
    /// Make nothing new at the destination
    #[arg(long)]
    pub existing: bool,
    /// Hard-link files that are equal below DIR, which is relative to the destination; may be repeated
    #[arg(long, value_name = "DIR")]
    pub link_dest: Vec<OsString>,
    /// Write into existing files instead of replacing them
    #[arg(long)]
    pub inplace: bool,
    /// Keep what is replaced or deleted, under another name
    #[arg(short, long)]
    pub backup: bool,
    /// Keep it below DIR, which is relative to the destination; implies --backup
    #[arg(long, value_name = "DIR")]
    pub backup_dir: Option<OsString>,
    /// What the other name ends in [default: ~, or nothing with --backup-dir]
    #[arg(long, value_name = "SUFFIX", allow_hyphen_values = true)]
    pub suffix: Option<OsString>,
    /// Accepted and needless: what was transferred is always kept for the next run
    #[arg(long)]
    pub partial: bool,
    /// Accepted and without effect: that is kept in .fastsync at the destination
    #[arg(long, value_name = "DIR")]
    pub partial_dir: Option<OsString>,
    /// Remove each source file that is durably at the destination
    #[arg(long)]
    pub remove_source_files: bool,
    /// On one machine: read, hash and verify all data instead of letting the kernel copy it
    #[arg(long)]
    pub verify: bool,
}

/// Removing what the source does not have: `sync` only.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Deletion")]
pub struct Deleting {
    /// Delete what the source does not have, after everything is transferred
    #[arg(
        long,
        aliases = ["del", "delete-before", "delete-during", "delete-delay", "delete-after"]
    )]
    pub delete: bool,
    /// Delete what filters leave out too; implies --delete
    #[arg(long)]
    pub delete_excluded: bool,
    /// Delete no more than so many things; exit code 25 if there are more
    #[arg(long, value_name = "N")]
    pub max_delete: Option<u64>,
    /// Delete even if the source is empty
    #[arg(long)]
    pub allow_empty_source: bool,
    /// Let directories that are not empty give way to other things; --delete does too
    #[arg(long)]
    pub force: bool,
}

/// What of each entry is printed.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Output")]
pub struct Telling {
    /// Print what changes of each entry, in rsync's letters; twice, unchanged entries too
    #[arg(short, long, action = ArgAction::Count)]
    pub itemize_changes: u8,
    /// Print counts at the end, as rsync words them
    #[arg(long)]
    pub stats: bool,
    /// Write one JSON line a file: path, size, mtime, root, outcome; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub report: Option<OsString>,
}
