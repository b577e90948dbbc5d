//! One suite, both engines. Each function of `suite/` takes an empty database.

mod suite;
mod support;

macro_rules! both {
    ($($module:ident::$name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::suite::$module::$name(crate::support::Bed::new(crate::support::Kind::Sqlite).await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::suite::$module::$name(crate::support::Bed::new(crate::support::Kind::Postgres).await).await;
            })*
        }
    };
}

both! {
    blobs::names_order_by_bytes_and_page,
    blobs::objects_are_named_or_garbage,
    documents::round_trip_keeps_everything,
    documents::ids_compare_without_case,
    documents::insert_refuses_twice_and_orphans,
    documents::update_compares_the_generation,
    documents::delete_refuses_parents_and_targets,
    documents::lists_filter_and_page,
    documents::the_database_enforces_foreign_keys,
    documents::nonsense_in_a_row_is_named,
    transactions::errors_and_reads_leave_nothing,
    transactions::increments_are_not_lost,
    transactions::write_skew_is_impossible,
    transactions::settings_logs_and_placements,
    transactions::logs_are_bounded,
    operations::an_operation_ends_once,
    jobs::eight_workers_never_share_a_job,
    jobs::a_stale_fence_changes_nothing,
    jobs::a_lease_that_is_kept_is_not_lost,
    jobs::retry_delay_and_cancel,
    jobs::a_committed_job_wakes_workers,
    migrations::run_once_however_often_asked,
    migrations::refuse_newer_and_edited_schemas,
}
