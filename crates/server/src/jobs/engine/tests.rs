//! The engine with handlers of the test's own, on a real database.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use store::{JobState, NewOperation, OperationFamily, OperationState};

use super::*;
use crate::{Config, jobs};

const TIMING: Timing = Timing {
    lease: Duration::from_secs(5),
    heartbeat: Duration::from_millis(50),
    poll: Duration::from_millis(20),
    retry: Duration::from_millis(10),
};
const GROUP: &str = "/subscriptions/s/resourceGroups/rg";
const LIMIT: Duration = Duration::from_secs(10);

struct Bed {
    state: AppState,
    _folder: tempfile::TempDir,
}

impl Bed {
    async fn new() -> Bed {
        Bed::with_jobs(8).await
    }

    async fn with_jobs(jobs: usize) -> Bed {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path());
        config.limits.jobs = jobs;
        Bed { state: AppState::for_tests(config).await, _folder: folder }
    }

    /// A job with an operation; returns both ids.
    async fn enqueue(&self) -> (String, String) {
        let ids: Result<_, StoreError> = self
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    let new = NewOperation {
                        resource_id: GROUP.to_owned(),
                        kind: "test".to_owned(),
                        family: OperationFamily::Compute,
                        location: "eastus".to_owned(),
                    };
                    let operation = tx.begin_operation(new).await?.id;
                    let payload = json!({"n": 1});
                    let job =
                        jobs::enqueue(tx, JobKind::DeleteResourceGroup, &payload, GROUP, Some(&operation))
                            .await?;
                    Ok((job, operation))
                })
            })
            .await;
        ids.unwrap()
    }

    async fn job(&self, id: &str) -> Job {
        self.state.store.read(|tx| Box::pin(async { tx.job(id).await })).await.unwrap().unwrap()
    }

    async fn ended(&self, id: &str) -> Job {
        let ended = async {
            loop {
                let job = self.job(id).await;
                if !matches!(job.state, JobState::Queued { .. } | JobState::Running(_)) {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, ended).await.expect("the job ends")
    }

    async fn operation(&self, id: &str) -> OperationEnd {
        let operation =
            self.state.store.read(|tx| Box::pin(async { tx.operation(id).await })).await.unwrap().unwrap();
        match operation.state {
            OperationState::Ended { end, .. } => end,
            OperationState::InProgress => panic!("the operation has not ended"),
        }
    }

    async fn setting(&self, key: &str) -> Option<Vec<u8>> {
        self.state.store.read(|tx| Box::pin(async { tx.setting(key).await })).await.unwrap()
    }

    fn engine<R, F>(&self, run: R) -> Engine
    where
        R: Fn(JobContext) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), JobFailure>> + Send + 'static,
    {
        let handlers = Handlers {
            run: Arc::new(move |_, context| Box::pin(run(context))),
            failed: |tx, _, _, failure| {
                Box::pin(async { tx.set_setting("failed", failure.code.as_bytes()).await })
            },
        };
        Engine::start(self.state.clone(), handlers, TIMING)
    }
}

#[tokio::test]
async fn a_job_that_works_ends_with_its_operation() {
    let bed = Bed::new().await;
    let engine = bed.engine(|context| async move {
        assert_eq!(context.job.payload, json!({"n": 1}));
        context.report(json!({"half": true}));
        tokio::time::sleep(TIMING.heartbeat * 3).await;
        Ok(context.finish(Some(json!({"answer": 42}))).await?)
    });
    let (job, operation) = bed.enqueue().await;
    let ended = bed.ended(&job).await;
    assert!(matches!(ended.state, JobState::Succeeded { .. }));
    assert_eq!(ended.progress, Some(json!({"half": true})));
    assert_eq!(bed.operation(&operation).await, OperationEnd::Succeeded(Some(json!({"answer": 42}))));
    assert_eq!(bed.setting("failed").await, None);

    engine.stop(LIMIT).await;
    let (job, _) = bed.enqueue().await;
    tokio::time::sleep(TIMING.poll * 5).await;
    assert!(matches!(bed.job(&job).await.state, JobState::Queued { .. }), "a stopped engine claims nothing");
}

#[tokio::test]
async fn a_handler_that_just_returns_is_done() {
    let bed = Bed::new().await;
    let engine = bed.engine(|_| async { Ok(()) });
    let (job, operation) = bed.enqueue().await;
    assert!(matches!(bed.ended(&job).await.state, JobState::Succeeded { .. }));
    assert_eq!(bed.operation(&operation).await, OperationEnd::Succeeded(None));
    engine.stop(LIMIT).await;
}

#[tokio::test]
async fn failures_and_panics_end_in_the_operation() {
    let bed = Bed::new().await;
    let engine = bed.engine(|_| async { Err(JobFailure::permanent("NoSpace", "the disk is full")) });
    let (job, operation) = bed.enqueue().await;
    let ended = bed.ended(&job).await;
    assert!(
        matches!(&ended.state, JobState::Failed { error, .. } if error == "the disk is full"),
        "{ended:?}"
    );
    let expected = json!({"code": "NoSpace", "message": "the disk is full"});
    assert_eq!(bed.operation(&operation).await, OperationEnd::Failed(expected));
    assert_eq!(bed.setting("failed").await.as_deref(), Some(&b"NoSpace"[..]));
    engine.stop(LIMIT).await;

    let engine = bed.engine(|_| async { panic!("a bug of ours") });
    let (job, operation) = bed.enqueue().await;
    bed.ended(&job).await;
    let OperationEnd::Failed(error) = bed.operation(&operation).await else { panic!("it failed") };
    assert!(error["message"].as_str().is_some_and(|m| m.contains("a bug of ours")), "{error}");
    engine.stop(LIMIT).await;
}

#[tokio::test]
async fn transient_failures_are_tried_again_but_not_for_ever() {
    let bed = Bed::new().await;
    let engine = bed.engine(|context| async move {
        if context.job.attempts < 3 { Err(JobFailure::transient("Busy", "try again")) } else { Ok(()) }
    });
    let (job, _) = bed.enqueue().await;
    let ended = bed.ended(&job).await;
    assert!(matches!(ended.state, JobState::Succeeded { .. }));
    assert_eq!(ended.attempts, 3);
    engine.stop(LIMIT).await;

    let engine = bed.engine(|_| async { Err(JobFailure::transient("Busy", "try again")) });
    let (job, _) = bed.enqueue().await;
    let ended = bed.ended(&job).await;
    assert!(matches!(ended.state, JobState::Failed { .. }));
    assert_eq!(ended.attempts, JobKind::DeleteResourceGroup.max_attempts());
    engine.stop(LIMIT).await;
}

#[tokio::test]
async fn a_cancel_reaches_the_handler() {
    let bed = Bed::new().await;
    let engine = bed.engine(|context| async move {
        context.cancel.cancelled().await;
        Err(JobFailure::canceled())
    });
    let (job, operation) = bed.enqueue().await;
    tokio::time::sleep(TIMING.heartbeat).await;
    bed.state.store.write(|tx| Box::pin(async { tx.request_cancel(&job).await })).await.unwrap();
    assert!(matches!(bed.ended(&job).await.state, JobState::Canceled { .. }));
    assert!(matches!(bed.operation(&operation).await, OperationEnd::Canceled(_)));
    engine.stop(LIMIT).await;
}

#[tokio::test]
async fn a_dead_workers_job_runs_again_but_not_for_ever() {
    let bed = Bed::new().await;
    let (job, _) = bed.enqueue().await;
    let dead = bed.state.store.claim("dead", &[JobKind::DeleteResourceGroup.as_str()], TIMING.poll).await;
    assert_eq!(dead.unwrap().unwrap().job.id, job);
    let engine = bed.engine(|_| async { Ok(()) });
    let ended = bed.ended(&job).await;
    assert!(matches!(ended.state, JobState::Succeeded { .. }));
    assert_eq!(ended.attempts, 2);
    engine.stop(LIMIT).await;

    let (job, operation) = bed.enqueue().await;
    for _ in 0..JobKind::DeleteResourceGroup.max_attempts() {
        let kinds = [JobKind::DeleteResourceGroup.as_str()];
        assert!(bed.state.store.claim("dead", &kinds, Duration::ZERO).await.unwrap().is_some());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let engine = bed.engine(|_| async { Ok(()) });
    assert!(matches!(bed.ended(&job).await.state, JobState::Failed { .. }));
    let OperationEnd::Failed(error) = bed.operation(&operation).await else { panic!("it failed") };
    assert!(error["message"].as_str().is_some_and(|m| m.contains("stopped 5 times")), "{error}");
    engine.stop(LIMIT).await;
}

/// A handler whose lease was lost, as after a pause of its process, must not write afterwards, and is stopped.
#[tokio::test]
async fn a_lost_lease_stops_the_handler() {
    static WRITES: AtomicU32 = AtomicU32::new(0);
    // One job at a time, or this engine would claim the job itself.
    let bed = Bed::with_jobs(1).await;
    let engine = bed.engine(|context| async move {
        let store = &context.state.store;
        let taken = loop {
            // The engine's own heartbeat may come in between.
            store.heartbeat(&context.job.id, context.fence, Duration::ZERO, None).await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
            if let Some(taken) = store.claim("other", &[context.job.kind.as_str()], LIMIT).await? {
                break taken;
            }
        };
        let late = store.write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                tx.set_setting("late", b"x").await
            })
        });
        if late.await.is_ok() {
            WRITES.fetch_add(1, Ordering::SeqCst);
        }
        let held: Result<(), StoreError> = store
            .write(|tx| Box::pin(async { tx.end_job(&taken.job.id, taken.fence, &JobEnd::Succeeded).await }))
            .await;
        held?;
        std::future::pending::<()>().await;
        Ok(())
    });
    let (job, _) = bed.enqueue().await;
    assert!(matches!(bed.ended(&job).await.state, JobState::Succeeded { .. }));
    assert_eq!(WRITES.load(Ordering::SeqCst), 0);
    assert_eq!(bed.setting("late").await, None);
    tokio::time::timeout(LIMIT, engine.stop(LIMIT)).await.expect("the pending handler was stopped");
}

#[tokio::test]
async fn a_stop_gives_up_what_does_not_end_and_lets_it_be_claimed() {
    let bed = Bed::new().await;
    let engine = bed.engine(|_| async {
        std::future::pending::<()>().await;
        Ok(())
    });
    let (job, _) = bed.enqueue().await;
    tokio::time::sleep(TIMING.heartbeat).await;
    engine.stop(Duration::from_millis(50)).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let kinds = [JobKind::DeleteResourceGroup.as_str()];
    let again = bed.state.store.claim("next", &kinds, LIMIT).await.unwrap().expect("at once");
    assert_eq!((again.job.id, again.lost), (job, true));
}

#[tokio::test]
async fn no_more_jobs_run_than_allowed() {
    static RUNNING: AtomicU32 = AtomicU32::new(0);
    static MOST: AtomicU32 = AtomicU32::new(0);
    let bed = Bed::new().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(bed.enqueue().await.0);
    }
    let engine = bed.engine(|_| async {
        MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    });
    for id in ids {
        assert!(matches!(bed.ended(&id).await.state, JobState::Succeeded { .. }));
    }
    let most = MOST.load(Ordering::SeqCst) as usize;
    assert!(most > 1 && most <= bed.state.config.limits.jobs, "{most}");
    engine.stop(LIMIT).await;
}
