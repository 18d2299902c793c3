//! What every storage has to do, whatever it is: sources and sinks of this machine, of endpoints in
//! memory that can do more and less, and of real servers.

#![allow(clippy::unwrap_used)] // clippy.toml covers only #[test] functions, not their helpers

mod conformance;
mod deleting;
mod failing;
mod placing;
mod reading;
mod refusing;
mod served;
mod servers;
mod subject;
mod tools;

/// Holds a sort of storage against every check.
macro_rules! conforms {
    ($name:ident, $subject:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::{served, subject::*};
            #[allow(unused_imports)]
            use fastsync::storage::memory::{FILES, OBJECTS, SERVER, STORE};

            conforms!(@checks $subject, conformance:
                files_of_every_size, deep_and_wide_trees, names_of_every_sort,
                nothing_is_seen_before_it_is_whole, two_at_once, a_later_process_goes_on,
                what_is_not_the_same_upload_is_not_taken_up, our_own_names_are_refused,
                a_tampered_journal_leads_nowhere);
            conforms!(@checks $subject, placing:
                what_is_equal_is_left, sizes_and_times_and_modes, no_stored_time, by_checksum,
                by_choice, a_dry_run_touches_nothing, other_types_are_in_the_way,
                other_types_give_way, metadata_alone_is_corrected, directories_get_their_times,
                symlinks, what_cannot_be_made_is_refused);
            conforms!(@checks $subject, deleting:
                what_the_source_lacks_goes, filters_protect, no_more_than_the_limit,
                an_empty_source_deletes_nothing, incomplete_directories_stay,
                a_dry_run_only_tells, other_jobs_files_stay, the_top_is_told_once);
            conforms!(@checks $subject, reading:
                parents_come_first, selections, what_changed_is_found_out, what_is_gone_is_found_out,
                ranges_at_once, packs_without_some, removing_what_is_the_same,
                a_round_trip_does_nothing_twice, what_is_there_is_copied, certain_paths);
        }
    };
    (@checks $subject:expr, $file:ident: $($check:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                crate::$file::$check(&$subject).await;
            }
        )*
    };
}

conforms!(local, Local::new());
conforms!(files, InMemory::new(FILES));
conforms!(server, InMemory::new(SERVER));
conforms!(objects, InMemory::new(OBJECTS));
conforms!(store, InMemory::new(STORE));
conforms!(sftp, served::sftp().await);
conforms!(proftpd, served::proftpd().await);
conforms!(plain_proftpd, served::plain_proftpd().await);
conforms!(s3, served::s3().await);
conforms!(s3_of_few_parts, served::s3_of_few_parts().await);
conforms!(gcs, served::gcs().await);
conforms!(azure, served::azure().await);
conforms!(azure_of_few_blocks, served::azure_of_few_blocks().await);
conforms!(dav_whole, served::nginx_dav().await);
conforms!(dav_parts, served::apache_dav().await);
conforms!(dav_patches, served::sabredav_dav().await);
conforms!(dav_chunks, served::cloud_dav().await);
