//! The loop that runs jobs.
//!
//! ```text
//!   claim ─▶ handler task ──────────────▶ Ok: end the job (and operation) unless the handler did
//!              ▲   beside it: heartbeat      Err: retry later, or end both as failed (handlers.failed)
//!              │   (lease, cancel)           panic: failed, with its message
//!              └── aborted when the lease is lost: another worker has the job
//! ```
//!
//! Every transaction of a handler begins with [`JobContext::hold`](super::context::JobContext::hold), which a worker that lost its lease cannot
//! pass. Its last one writes the result, the end of the operation and of the job together:
//! [`JobContext::finish_in`](super::context::JobContext::finish_in).

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use store::{Claim, Job, JobEnd, OperationEnd, StoreError, Tx, TxFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::context::{FailureKind, JobContext, JobFailure};
use super::{JobKind, Lane, OnLost, end_operation};
use crate::AppState;
use crate::http::error::chain;
use crate::http::front::panic_text;

/// Longest pause before a job is tried again.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(300);
/// Pause after the database refused a claim.
const CLAIM_PAUSE: Duration = Duration::from_secs(2);

/// The engine's times; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long a claim holds without a heartbeat.
    pub lease: Duration,
    /// Between heartbeats: also how soon a cancel is seen.
    pub heartbeat: Duration,
    /// Between looks for jobs that other processes added or lost.
    pub poll: Duration,
    /// Before the first retry; doubles with each attempt.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            lease: Duration::from_secs(20),
            heartbeat: Duration::from_secs(2),
            poll: Duration::from_secs(1),
            retry: Duration::from_secs(2),
        }
    }
}

/// A function that runs one job.
pub type Run = dyn Fn(JobKind, JobContext) -> BoxFuture<'static, Result<(), JobFailure>> + Send + Sync;

/// What runs the jobs: [`super::handlers`], or a test's own.
#[derive(Clone)]
pub struct Handlers {
    /// Runs one job.
    pub run: Arc<Run>,
    /// Writes what a job that failed for good leaves behind.
    pub failed:
        for<'t, 'x> fn(&'t mut Tx<'x>, JobKind, &'t Job, &'t JobFailure) -> TxFuture<'t, (), StoreError>,
}

/// The running loop.
pub struct Engine {
    stopping: CancellationToken,
    abandon: CancellationToken,
    claims: [tokio::task::JoinHandle<()>; Lane::ALL.len()],
    running: TaskTracker,
}

impl Engine {
    /// Starts claiming jobs.
    #[must_use]
    pub fn start(state: AppState, handlers: Handlers, timing: Timing) -> Engine {
        let worker = Worker {
            name: format!("{}/{}", std::process::id(), uuid::Uuid::new_v4()),
            state,
            handlers,
            timing,
            stopping: CancellationToken::new(),
            abandon: CancellationToken::new(),
            running: TaskTracker::new(),
        };
        Engine {
            stopping: worker.stopping.clone(),
            abandon: worker.abandon.clone(),
            running: worker.running.clone(),
            claims: Lane::ALL.map(|lane| tokio::spawn(worker.clone().claim_until_stopped(lane))),
        }
    }

    /// Claims nothing more and waits for running jobs; those that have not ended after `limit` are given up
    /// with their lease let go, so that the next start claims them at once.
    pub async fn stop(self, limit: Duration) {
        self.stopping.cancel();
        for claims in self.claims {
            if let Err(error) = claims.await {
                tracing::error!(%error, "a claiming task panicked");
            }
        }
        self.running.close();
        if tokio::time::timeout(limit, self.running.wait()).await.is_err() {
            self.abandon.cancel();
            self.running.wait().await;
        }
    }
}

#[derive(Clone)]
struct Worker {
    name: String,
    state: AppState,
    handlers: Handlers,
    timing: Timing,
    stopping: CancellationToken,
    abandon: CancellationToken,
    running: TaskTracker,
}

/// How the supervision of a handler ended.
enum Ended {
    Returned(Result<(), JobFailure>),
    /// Another worker has the job, or may have: nothing may be written any more.
    Lost,
    Abandoned,
}

impl Worker {
    /// Claims jobs of one lane; `limits.jobs` of them run at the same time.
    async fn claim_until_stopped(self, lane: Lane) {
        let free = Arc::new(Semaphore::new(self.state.config.limits.jobs));
        let kinds = lane.kinds();
        loop {
            // Listen before looking, or a job added in between would wait for the next poll.
            let added = self.state.store.job_added();
            let permit = tokio::select! {
                () = self.stopping.cancelled() => return,
                permit = free.clone().acquire_owned() => permit,
            };
            // The semaphore is never closed.
            let Ok(permit) = permit else { return };
            match self.state.store.claim(&self.name, &kinds, self.timing.lease).await {
                Ok(Some(claim)) => self.spawn(claim, permit),
                Ok(None) => {
                    drop(permit);
                    tokio::select! {
                        () = self.stopping.cancelled() => return,
                        () = added => {}
                        () = tokio::time::sleep(self.timing.poll) => {}
                    }
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "cannot claim jobs");
                    tokio::select! {
                        () = self.stopping.cancelled() => return,
                        () = tokio::time::sleep(CLAIM_PAUSE) => {}
                    }
                }
            }
        }
    }

    fn spawn(&self, claim: Claim, permit: OwnedSemaphorePermit) {
        let worker = self.clone();
        self.running.spawn(async move {
            let job = claim.job.id.clone();
            if let Err(error) = worker.work(claim).await {
                // The lease runs out and the job is claimed again.
                tracing::error!(job, error = chain(&error), "the end of a job could not be written");
            }
            drop(permit);
        });
    }

    async fn work(&self, claim: Claim) -> Result<(), StoreError> {
        let Claim { job, fence, lost } = claim;
        let Some(kind) = JobKind::parse(&job.kind) else {
            return Err(StoreError::Inconsistent {
                table: "jobs",
                column: "kind",
                row: job.id,
                reason: format!("'{}' is no kind, yet it was claimed", job.kind),
            });
        };
        tracing::info!(job = job.id, kind = kind.as_str(), attempt = job.attempts, lost, "job claimed");
        if let Some(failure) = refusal(kind, &job, lost) {
            return self.fail(kind, &job, fence, &failure).await;
        }
        let job = Arc::new(job);
        let ended = self.supervise(kind, job.clone(), fence).await;
        match ended {
            Ended::Returned(Ok(())) => self.end_if_open(&job, fence).await,
            Ended::Returned(Err(failure)) => {
                let again = failure.kind == FailureKind::Transient && job.attempts < job.max_attempts;
                if again {
                    self.retry(&job, fence, &failure).await
                } else {
                    self.fail(kind, &job, fence, &failure).await
                }
            }
            Ended::Lost => {
                tracing::warn!(job = job.id, "the lease was lost; another worker has the job");
                Ok(())
            }
            Ended::Abandoned => {
                tracing::warn!(
                    job = job.id,
                    "given up, because the service stops; it runs again at the next start"
                );
                self.state.store.heartbeat(&job.id, fence, Duration::ZERO, None).await.map(|_| ())
            }
        }
    }

    /// Runs the handler in a task of its own, with heartbeats beside it.
    async fn supervise(&self, kind: JobKind, job: Arc<Job>, fence: i64) -> Ended {
        let cancel = CancellationToken::new();
        if job.cancel_requested {
            cancel.cancel();
        }
        let progress = watch::Sender::new(None);
        let mut reports = progress.subscribe();
        let context = JobContext {
            state: self.state.clone(),
            job: job.clone(),
            cancel: cancel.clone(),
            stopping: self.stopping.clone(),
            fence,
            progress,
        };
        let mut handler = tokio::spawn((self.handlers.run)(kind, context));
        let mut held_until = tokio::time::Instant::now() + self.timing.lease;
        let mut beats = tokio::time::interval(self.timing.heartbeat);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ended = loop {
            tokio::select! {
                returned = &mut handler => break Ended::Returned(outcome(returned)),
                () = self.abandon.cancelled() => break Ended::Abandoned,
                _ = beats.tick() => {}
            }
            let report = if reports.has_changed().unwrap_or(false) {
                reports.borrow_and_update().clone()
            } else {
                None
            };
            let asked = tokio::time::Instant::now();
            match self.state.store.heartbeat(&job.id, fence, self.timing.lease, report.as_ref()).await {
                Ok(beat) => {
                    held_until = asked + self.timing.lease;
                    if beat.cancel_requested {
                        cancel.cancel();
                    }
                }
                // The handler may have ended the job itself and be about to return.
                Err(StoreError::StaleFence { .. }) => {
                    match tokio::time::timeout(self.timing.heartbeat, &mut handler).await {
                        Ok(returned) => break Ended::Returned(outcome(returned)),
                        Err(_) => break Ended::Lost,
                    }
                }
                Err(error) => {
                    tracing::warn!(job = job.id, error = chain(&error), "heartbeat failed");
                    if tokio::time::Instant::now() >= held_until {
                        break Ended::Lost;
                    }
                }
            }
        };
        if !handler.is_finished() {
            handler.abort();
            // Wait for its destructors, so that nothing of it runs when the job is claimed again.
            let _cancelled_or_done: Result<_, _> = handler.await;
        }
        ended
    }

    /// Ends job and operation as succeeded, unless the handler did so itself.
    async fn end_if_open(&self, job: &Job, fence: i64) -> Result<(), StoreError> {
        let end = OperationEnd::Succeeded(None);
        let written: Result<(), StoreError> = self
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    tx.end_job(&job.id, fence, &JobEnd::Succeeded).await?;
                    end_operation(tx, job, &end).await
                })
            })
            .await;
        match written {
            Err(StoreError::StaleFence { .. }) => Ok(()),
            other => other,
        }
    }

    async fn retry(&self, job: &Job, fence: i64, failure: &JobFailure) -> Result<(), StoreError> {
        let doublings = job.attempts.saturating_sub(1).min(16);
        let delay = self.timing.retry.saturating_mul(1 << doublings).min(MAX_RETRY_DELAY);
        tracing::warn!(job = job.id, ?delay, cause = failure.message, "job will be tried again");
        self.state
            .store
            .write(|tx| Box::pin(async { tx.retry_job(&job.id, fence, delay, &failure.message).await }))
            .await
    }

    /// Ends a job that does not work: what it leaves behind, its operation, and itself, in one transaction.
    async fn fail(
        &self,
        kind: JobKind,
        job: &Job,
        fence: i64,
        failure: &JobFailure,
    ) -> Result<(), StoreError> {
        tracing::warn!(job = job.id, code = failure.code, cause = failure.message, "job failed");
        let error = failure.error_object();
        let (operation, job_end) = match failure.kind {
            FailureKind::Canceled => (OperationEnd::Canceled(error), JobEnd::Canceled),
            FailureKind::Transient | FailureKind::Permanent => {
                (OperationEnd::Failed(error), JobEnd::Failed(failure.message.clone()))
            }
        };
        let left_behind = self.handlers.failed;
        self.state
            .store
            .write(|tx| {
                Box::pin(async {
                    tx.hold_job(&job.id, fence).await?;
                    left_behind(tx, kind, job, failure).await?;
                    end_operation(tx, job, &operation).await?;
                    tx.end_job(&job.id, fence, &job_end).await
                })
            })
            .await
    }
}

/// Why a claimed job is not run: its worker died, and the kind does not allow another try.
fn refusal(kind: JobKind, job: &Job, lost: bool) -> Option<JobFailure> {
    if !lost {
        return None;
    }
    match kind.on_lost() {
        OnLost::Fail(reason) => Some(JobFailure::permanent("OperationPreempted", reason)),
        OnLost::Retry if job.attempts > job.max_attempts => Some(JobFailure::permanent(
            "InternalServerError",
            format!(
                "The service stopped {} times while it worked on this; not tried again.",
                job.max_attempts
            ),
        )),
        OnLost::Retry => None,
    }
}

fn outcome(returned: Result<Result<(), JobFailure>, tokio::task::JoinError>) -> Result<(), JobFailure> {
    match returned {
        Ok(result) => result,
        Err(error) if error.is_panic() => {
            let panic = error.into_panic();
            let message = format!("The service has failed internally: {}", panic_text(&*panic));
            Err(JobFailure::permanent("InternalServerError", message))
        }
        Err(_) => Err(JobFailure::transient("InternalServerError", "The job's task was stopped.")),
    }
}

#[cfg(test)]
mod tests;
