//! Table `jobs`: work to be done, in the same database as the change that asks for it.
//!
//! ```text
//!            enqueue            claim (fence + 1)                  end_job
//!  (nothing) ───────▶ Queued ───────────────────▶ Running ─────────────────────▶ Succeeded | Failed | Canceled
//!                       ▲                          │  ▲ │
//!                       └───────── retry_job ──────┘  └─┘ claim again once the lease expired
//! ```
//!
//! Every change to a running job names the fence that its worker holds. A worker that was paused past
//! its lease finds its fence stale and changes nothing, because the error rolls its transaction back.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::cells::Cells;
use crate::path::key_of;
use crate::{StoreError, Tx};

/// Work to enqueue. The payload holds ids and intent, never rows.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Which handler runs it.
    pub kind: String,
    /// Its parameters.
    pub payload: Value,
    /// The operation that clients poll for it.
    pub operation_id: Option<String>,
    /// Id of the resource that it works on.
    pub resource_id: Option<String>,
    /// Not before this time from now.
    pub delay: Duration,
    /// How often it may be claimed.
    pub max_attempts: u32,
}

/// A job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Lower-case UUID.
    pub id: String,
    /// See [`NewJob::kind`].
    pub kind: String,
    /// See [`NewJob::payload`].
    pub payload: Value,
    /// See [`NewJob::operation_id`].
    pub operation_id: Option<String>,
    /// Key of the resource.
    pub resource_key: Option<String>,
    /// Where it is.
    pub state: JobState,
    /// How often it was claimed.
    pub attempts: u32,
    /// See [`NewJob::max_attempts`].
    pub max_attempts: u32,
    /// Somebody asked for it to stop.
    pub cancel_requested: bool,
    /// What the worker last reported.
    pub progress: Option<Value>,
    /// Why the last attempt did not work, for a job that waits to be retried or has failed.
    pub error: Option<String>,
    /// When it was enqueued.
    pub created_at: DateTime<Utc>,
}

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Waits for a worker.
    Queued {
        /// Not before.
        run_after: DateTime<Utc>,
    },
    /// A worker holds it.
    Running(Lease),
    /// Ended well.
    Succeeded {
        /// When.
        finished_at: DateTime<Utc>,
    },
    /// Ended badly.
    Failed {
        /// When.
        finished_at: DateTime<Utc>,
        /// Why.
        error: String,
    },
    /// Stopped on request.
    Canceled {
        /// When.
        finished_at: DateTime<Utc>,
    },
}

/// A worker's hold on a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The worker.
    pub owner: String,
    /// When others may take it (database time).
    pub until: DateTime<Utc>,
    /// Counts claims. Only the holder of the newest one may change anything.
    pub fence: i64,
}

/// How a job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEnd {
    /// Done.
    Succeeded,
    /// Failed for good.
    Failed(String),
    /// Stopped on request.
    Canceled,
}

impl Tx<'_> {
    /// Adds a job; returns its id.
    ///
    /// # Errors
    /// The database's own.
    pub async fn enqueue(&mut self, new: NewJob) -> Result<String, StoreError> {
        let id = Uuid::new_v4().to_string();
        let now = self.now().await?;
        let query = sqlx::query(
            "INSERT INTO jobs (id, kind, payload, operation_id, resource_key, state, run_after, attempts, \
             max_attempts, fence, cancel_requested, created_at) \
             VALUES ($1, $2, $3, $4, $5, 'queued', $6, 0, $7, 0, 0, $8)",
        )
        .bind(id.clone())
        .bind(new.kind)
        .bind(new.payload.to_string())
        .bind(new.operation_id)
        .bind(new.resource_id.as_deref().map(key_of))
        .bind((now + new.delay).timestamp_micros())
        .bind(i64::from(new.max_attempts.max(1)))
        .bind(now.timestamp_micros());
        self.execute("enqueue a job", query).await?;
        self.note_added_job();
        Ok(id)
    }

    /// The job with this id, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn job(&mut self, id: &str) -> Result<Option<Job>, StoreError> {
        let query = sqlx::query("SELECT * FROM jobs WHERE id = $1").bind(id.to_owned());
        self.fetch_optional("read a job", query).await?.as_ref().map(job).transpose()
    }

    /// Jobs of a resource that have not ended, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn unfinished_jobs(&mut self, resource_id: &str) -> Result<Vec<Job>, StoreError> {
        let query = sqlx::query(
            "SELECT * FROM jobs WHERE resource_key = $1 AND state IN ('queued', 'running') ORDER BY created_at, id",
        )
        .bind(key_of(resource_id));
        self.fetch_all("read jobs", query).await?.iter().map(job).collect()
    }

    /// Asks a job to stop; its worker sees it at the next heartbeat. Returns whether the job had not ended yet.
    ///
    /// # Errors
    /// The database's own.
    pub async fn request_cancel(&mut self, job: &str) -> Result<bool, StoreError> {
        // A queued job is made due, so that its handler runs soon and takes the change back.
        let now = self.now().await?.timestamp_micros();
        let query = sqlx::query(
            "UPDATE jobs SET cancel_requested = 1, run_after = CASE WHEN run_after > $1 THEN $1 ELSE run_after END \
             WHERE id = $2 AND state IN ('queued', 'running')",
        )
        .bind(now)
        .bind(job.to_owned());
        Ok(self.execute("request a cancel", query).await? > 0)
    }

    /// Makes sure that the worker still holds the job, and keeps it so until the commit. Call it in
    /// every transaction that a job's handler writes.
    ///
    /// # Errors
    /// [`StoreError::StaleFence`].
    pub async fn hold_job(&mut self, job: &str, fence: i64) -> Result<(), StoreError> {
        // An update, not a select: its row lock keeps claims out until the commit.
        let query =
            sqlx::query("UPDATE jobs SET fence = fence WHERE id = $1 AND fence = $2 AND state = 'running'")
                .bind(job.to_owned())
                .bind(fence);
        self.fenced(job, fence, "hold a job", query).await
    }

    /// Ends a job that the worker holds.
    ///
    /// # Errors
    /// [`StoreError::StaleFence`].
    pub async fn end_job(&mut self, job: &str, fence: i64, end: &JobEnd) -> Result<(), StoreError> {
        let now = self.now().await?.timestamp_micros();
        let (state, error) = match end {
            JobEnd::Succeeded => ("succeeded", None),
            JobEnd::Failed(error) => ("failed", Some(error.clone())),
            JobEnd::Canceled => ("canceled", None),
        };
        let query = sqlx::query(
            "UPDATE jobs SET state = $1, error = $2, finished_at = $3, lease_owner = NULL, lease_until = NULL \
             WHERE id = $4 AND fence = $5 AND state = 'running'",
        )
        .bind(state)
        .bind(error)
        .bind(now)
        .bind(job.to_owned())
        .bind(fence);
        self.fenced(job, fence, "end a job", query).await
    }

    /// Gives a job back to be claimed again after `delay`, with the reason.
    ///
    /// # Errors
    /// [`StoreError::StaleFence`].
    pub async fn retry_job(
        &mut self,
        job: &str,
        fence: i64,
        delay: Duration,
        why: &str,
    ) -> Result<(), StoreError> {
        let run_after = (self.now().await? + delay).timestamp_micros();
        let query = sqlx::query(
            "UPDATE jobs SET state = 'queued', error = $1, run_after = $2, lease_owner = NULL, lease_until = NULL \
             WHERE id = $3 AND fence = $4 AND state = 'running'",
        )
        .bind(why.to_owned())
        .bind(run_after)
        .bind(job.to_owned())
        .bind(fence);
        self.fenced(job, fence, "retry a job", query).await
    }

    async fn fenced(
        &mut self,
        job: &str,
        fence: i64,
        action: &'static str,
        query: sqlx::query::Query<'_, sqlx::Any, sqlx::any::AnyArguments>,
    ) -> Result<(), StoreError> {
        match self.execute(action, query).await? {
            0 => Err(StoreError::StaleFence { job: job.to_owned(), fence }),
            _ => Ok(()),
        }
    }
}

pub(crate) fn job(row: &AnyRow) -> Result<Job, StoreError> {
    let cells = Cells::new("jobs", "id", row);
    let name = cells.text("state")?;
    let error = cells.opt_text("error")?;
    let lease = (cells.opt_text("lease_owner")?, cells.opt_time("lease_until")?);
    let finished = cells.opt_time("finished_at")?;
    let state = match (name.as_str(), lease, finished) {
        ("queued", (None, None), None) => JobState::Queued { run_after: cells.time("run_after")? },
        ("running", (Some(owner), Some(until)), None) => {
            JobState::Running(Lease { owner, until, fence: cells.int("fence")? })
        }
        ("succeeded", (None, None), Some(finished_at)) => JobState::Succeeded { finished_at },
        ("failed", (None, None), Some(finished_at)) => {
            let error = error.clone().ok_or_else(|| cells.wrong("error", "a failed job has no error"))?;
            JobState::Failed { finished_at, error }
        }
        ("canceled", (None, None), Some(finished_at)) => JobState::Canceled { finished_at },
        (name, ..) => {
            return Err(cells.wrong("state", format!("'{name}' does not fit lease and finished_at")));
        }
    };
    Ok(Job {
        id: cells.text("id")?,
        kind: cells.text("kind")?,
        payload: cells.json("payload")?,
        operation_id: cells.opt_text("operation_id")?,
        resource_key: cells.opt_text("resource_key")?,
        state,
        attempts: cells.count("attempts")?,
        max_attempts: cells.count("max_attempts")?,
        cancel_requested: cells.flag("cancel_requested")?,
        progress: cells.opt_json("progress")?,
        error,
        created_at: cells.time("created_at")?,
    })
}
