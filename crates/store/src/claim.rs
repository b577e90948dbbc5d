//! Claiming a job and keeping it. These run at READ COMMITTED on PostgreSQL and lock the one row that
//! they touch, so that eight workers do not make one another retry.

use std::time::Duration;

use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::cells::Cells;
use crate::jobs::job;
use crate::{Job, JobState, Store, StoreError};

/// Most kinds that a worker can ask for at once.
const MAX_KINDS: usize = 64;

/// A job that this worker now holds.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The job, in state `Running`.
    pub job: Job,
    /// What this worker must show with every change.
    pub fence: i64,
    /// The worker before let its lease run out: it died, or was paused.
    pub lost: bool,
}

/// What a heartbeat brings back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Somebody asked for the job to stop.
    pub cancel_requested: bool,
}

impl Store {
    /// Claims the oldest job of these kinds that is due or whose lease has run out, for `lease` from
    /// now by the database's clock. `None`: there is nothing to do.
    ///
    /// # Errors
    /// [`StoreError::Limit`] for more than 64 kinds; the database's own.
    pub async fn claim(
        &self,
        worker: &str,
        kinds: &[&str],
        lease: Duration,
    ) -> Result<Option<Claim>, StoreError> {
        if kinds.is_empty() {
            return Ok(None);
        }
        if kinds.len() > MAX_KINDS {
            return Err(StoreError::Limit { what: "kinds in one claim", limit: MAX_KINDS });
        }
        let places: Vec<String> = (0..kinds.len()).map(|i| format!("${}", i + 2)).collect();
        let find = format!(
            "SELECT id, state FROM jobs WHERE ((state = 'queued' AND run_after <= $1) OR \
             (state = 'running' AND lease_until < $1)) AND kind IN ({}) ORDER BY run_after, created_at, id LIMIT 1",
            places.join(", ")
        );
        let find = &find;
        self.write_row(|tx| {
            Box::pin(async move {
                let now = tx.now().await?;
                let sql = format!("{find}{}", tx.engine().lock_row());
                let query = sqlx::query(AssertSqlSafe(sql)).bind(now.timestamp_micros());
                let query = kinds.iter().fold(query, |query, kind| query.bind((*kind).to_owned()));
                let Some(row) = tx.fetch_optional("claim a job", query).await? else { return Ok(None) };
                let cells = Cells::new("jobs", "id", &row);
                let lost = cells.text("state")? == "running";
                let update = sqlx::query(
                    "UPDATE jobs SET state = 'running', lease_owner = $1, lease_until = $2, fence = fence + 1, \
                     attempts = attempts + 1 WHERE id = $3 RETURNING *",
                )
                .bind(worker.to_owned())
                .bind((now + lease).timestamp_micros())
                .bind(cells.text("id")?);
                let job = job(&tx.fetch_one("claim a job", update).await?)?;
                match &job.state {
                    JobState::Running(lease) => Ok(Some(Claim { fence: lease.fence, job, lost })),
                    other => Err(StoreError::inconsistent("jobs", "state", &job.id, format!("claimed but {other:?}"))),
                }
            })
        })
        .await
    }

    /// Keeps a job for `lease` more, and reports progress if there is any.
    ///
    /// # Errors
    /// [`StoreError::StaleFence`]: stop working, another worker has it.
    pub async fn heartbeat(
        &self,
        job: &str,
        fence: i64,
        lease: Duration,
        progress: Option<&Value>,
    ) -> Result<Heartbeat, StoreError> {
        self.write_row(|tx| {
            Box::pin(async move {
                let until = tx.now().await? + lease;
                let query = sqlx::query(
                    "UPDATE jobs SET lease_until = $1, progress = COALESCE($2, progress) \
                     WHERE id = $3 AND fence = $4 AND state = 'running' RETURNING id, cancel_requested",
                )
                .bind(until.timestamp_micros())
                .bind(progress.map(Value::to_string))
                .bind(job.to_owned())
                .bind(fence);
                match tx.fetch_optional("keep a job", query).await? {
                    Some(row) => {
                        let cancel_requested = Cells::new("jobs", "id", &row).flag("cancel_requested")?;
                        Ok(Heartbeat { cancel_requested })
                    }
                    None => Err(StoreError::StaleFence { job: job.to_owned(), fence }),
                }
            })
        })
        .await
    }
}
