//! Jobs: claims, leases, fences.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use store::{Claim, Job, JobEnd, JobState, NewJob, Store, StoreError};

use crate::support::Bed;

const LONG: Duration = Duration::from_secs(60);
/// Long enough that a busy machine comes to the next statement within it.
const SHORT: Duration = Duration::from_secs(1);
const MARGIN: Duration = Duration::from_millis(50);

async fn enqueue(store: &Store, n: u32, delay: Duration) -> String {
    store
        .write(|tx| {
            Box::pin(async move {
                tx.enqueue(NewJob {
                    kind: "test".to_owned(),
                    payload: json!({ "n": n }),
                    operation_id: None,
                    resource_id: Some("/Subscriptions/S".to_owned()),
                    delay,
                    max_attempts: 3,
                })
                .await
            })
        })
        .await
        .expect("enqueue")
}

async fn job(store: &Store, id: &str) -> Job {
    store.read(|tx| Box::pin(async { tx.job(id).await })).await.expect("read").expect("there")
}

async fn claim(store: &Store, worker: &str, lease: Duration) -> Option<Claim> {
    store.claim(worker, &["other", "test"], lease).await.expect("claim")
}

async fn end(store: &Store, claim: &Claim, end: JobEnd) -> Result<(), StoreError> {
    store.write(|tx| Box::pin(async { tx.end_job(&claim.job.id, claim.fence, &end).await })).await
}

pub(crate) async fn eight_workers_never_share_a_job(bed: Bed) {
    const JOBS: u32 = 200;
    let store = bed.store().await;
    for n in 0..JOBS {
        enqueue(&store, n, Duration::ZERO).await;
    }
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = store.clone();
        workers.spawn(async move {
            let name = format!("worker{n}");
            let mut claimed = Vec::new();
            while let Some(claim) = claim(&store, &name, LONG).await {
                assert!(!claim.lost);
                assert_eq!((claim.fence, claim.job.attempts), (1, 1));
                end(&store, &claim, JobEnd::Succeeded).await.expect("end");
                claimed.push(claim.job.id);
            }
            claimed
        });
    }
    let mut claims: HashMap<String, u32> = HashMap::new();
    while let Some(claimed) = workers.join_next().await {
        for id in claimed.expect("worker") {
            *claims.entry(id).or_default() += 1;
        }
    }
    // SKIP LOCKED may let a worker see nothing while others still hold the last rows; none is left over, though.
    assert_eq!(claims.len(), JOBS as usize);
    assert!(claims.values().all(|&n| n == 1), "claimed twice: {claims:?}");
}

pub(crate) async fn a_stale_fence_changes_nothing(bed: Bed) {
    let store = bed.store().await;
    let id = enqueue(&store, 1, Duration::ZERO).await;
    let paused = claim(&store, "paused", SHORT).await.expect("claim");
    assert_eq!(claim(&store, "eager", LONG).await.map(|c| c.job.id), None, "the lease still holds");
    tokio::time::sleep(SHORT + MARGIN).await;
    let taken = claim(&store, "eager", LONG).await.expect("the lease ran out");
    assert_eq!(
        (taken.job.id.as_str(), taken.lost, taken.fence, taken.job.attempts),
        (id.as_str(), true, 2, 2)
    );

    let write = store
        .write(|tx| {
            Box::pin(async {
                tx.set_setting("by", b"paused").await?;
                tx.end_job(&id, paused.fence, &JobEnd::Succeeded).await
            })
        })
        .await;
    assert!(matches!(&write, Err(StoreError::StaleFence { fence: 1, .. })), "{write:?}");
    let setting = store.read(|tx| Box::pin(async { tx.setting("by").await })).await.expect("read");
    assert_eq!(setting, None, "rolled back with it");
    let beat = store.heartbeat(&id, paused.fence, LONG, None).await;
    assert!(matches!(beat, Err(StoreError::StaleFence { .. })), "{beat:?}");
    let hold = store.write(|tx| Box::pin(async { tx.hold_job(&id, paused.fence).await })).await;
    assert!(matches!(hold, Err(StoreError::StaleFence { .. })), "{hold:?}");
    let retry = store.write(|tx| Box::pin(async { tx.retry_job(&id, paused.fence, LONG, "x").await })).await;
    assert!(matches!(retry, Err(StoreError::StaleFence { .. })), "{retry:?}");
    assert!(matches!(job(&store, &id).await.state, JobState::Running(lease) if lease.owner == "eager"));

    store.write(|tx| Box::pin(async { tx.hold_job(&id, taken.fence).await })).await.expect("holds");
    end(&store, &taken, JobEnd::Failed("boom".to_owned())).await.expect("end");
    assert!(matches!(job(&store, &id).await.state, JobState::Failed { error, .. } if error == "boom"));
    let twice = end(&store, &taken, JobEnd::Succeeded).await;
    assert!(matches!(twice, Err(StoreError::StaleFence { .. })), "{twice:?}");

    bed.raw("UPDATE jobs SET finished_at = NULL").await;
    let bad = store.read(|tx| Box::pin(async { tx.job(&id).await })).await;
    assert!(matches!(bad, Err(StoreError::Inconsistent { table: "jobs", column: "state", .. })), "{bad:?}");
}

pub(crate) async fn a_lease_that_is_kept_is_not_lost(bed: Bed) {
    const LEASE: Duration = Duration::from_secs(1);
    let store = bed.store().await;
    let id = enqueue(&store, 1, Duration::ZERO).await;
    let held = claim(&store, "a", LEASE).await.expect("claim");
    for step in 0..6 {
        tokio::time::sleep(LEASE / 4).await;
        let progress = (step == 1).then(|| json!({"step": "boot"}));
        let beat = store.heartbeat(&id, held.fence, LEASE, progress.as_ref()).await;
        assert!(!beat.expect("held").cancel_requested);
        assert!(claim(&store, "b", LONG).await.is_none(), "step {step}");
    }
    assert_eq!(job(&store, &id).await.progress, Some(json!({"step": "boot"})));
}

pub(crate) async fn retry_delay_and_cancel(bed: Bed) {
    let store = bed.store().await;
    let id = enqueue(&store, 1, LONG).await;
    assert!(claim(&store, "a", LONG).await.is_none(), "not due yet");
    let cancel =
        async || store.write(|tx| Box::pin(async { tx.request_cancel(&id).await })).await.expect("cancel");
    assert!(cancel().await);
    let canceled = claim(&store, "a", LONG).await.expect("a canceled job is due at once");
    assert!(canceled.job.cancel_requested);
    assert!(store.heartbeat(&id, canceled.fence, LONG, None).await.expect("held").cancel_requested);
    end(&store, &canceled, JobEnd::Canceled).await.expect("end");
    assert!(!cancel().await, "it has ended");
    assert!(matches!(job(&store, &id).await.state, JobState::Canceled { .. }));

    let id = enqueue(&store, 2, Duration::ZERO).await;
    assert_eq!(store.claim("a", &["unknown"], LONG).await.expect("claim").map(|c| c.job.id), None);
    let first = claim(&store, "a", LONG).await.expect("claim");
    store
        .write(|tx| Box::pin(async { tx.retry_job(&id, first.fence, SHORT, "later").await }))
        .await
        .expect("retry");
    let waiting = job(&store, &id).await;
    assert!(matches!(waiting.state, JobState::Queued { .. }));
    assert_eq!(waiting.error.as_deref(), Some("later"));
    let unfinished = store.read(|tx| Box::pin(async { tx.unfinished_jobs("/subscriptions/s").await })).await;
    assert_eq!(unfinished.expect("jobs").len(), 1);
    assert!(claim(&store, "a", LONG).await.is_none());
    tokio::time::sleep(SHORT + MARGIN).await;
    let second = claim(&store, "a", LONG).await.expect("due");
    assert_eq!((second.lost, second.job.attempts, second.fence), (false, 2, 2));
}

pub(crate) async fn a_committed_job_wakes_workers(bed: Bed) {
    let store = bed.store().await;
    let added = store.job_added();
    tokio::pin!(added);
    let quiet = tokio::time::timeout(MARGIN, &mut added).await;
    assert!(quiet.is_err(), "nothing was added");
    enqueue(&store, 1, Duration::ZERO).await;
    tokio::time::timeout(LONG, added).await.expect("woken");
}
