//! Everything asynchronous. To add a job: a variant of [`JobKind`], its lines in the four matches below,
//! and a file beside this one with its handler.

pub mod context;
pub(crate) mod delete_resource_group;
pub mod engine;

use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use store::{Job, NewJob, OperationEnd, StoreError, Tx};

use context::{JobContext, JobFailure};
use engine::Handlers;

/// The kinds of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Deletes a resource group and everything in it.
    DeleteResourceGroup,
}

/// What becomes of a job whose worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLost {
    /// Run it again: running it twice does what running it once does.
    Retry,
    /// Fail it, with this reason for the client.
    Fail(&'static str),
}

impl JobKind {
    /// Every kind.
    pub const ALL: [JobKind; 1] = [JobKind::DeleteResourceGroup];

    /// As the database names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::DeleteResourceGroup => "deleteResourceGroup",
        }
    }

    /// Reads a name from the database.
    #[must_use]
    pub fn parse(name: &str) -> Option<JobKind> {
        JobKind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// What becomes of it when its worker died.
    #[must_use]
    pub fn on_lost(self) -> OnLost {
        match self {
            JobKind::DeleteResourceGroup => OnLost::Retry,
        }
    }

    /// How often it is claimed at most.
    #[must_use]
    pub fn max_attempts(self) -> u32 {
        match self {
            JobKind::DeleteResourceGroup => 5,
        }
    }
}

/// Enqueues a job with its operation. Call it in the transaction that makes the change.
///
/// # Errors
/// The database's own.
pub async fn enqueue(
    tx: &mut Tx<'_>,
    kind: JobKind,
    payload: &(impl Serialize + Sync),
    resource_id: &str,
    operation_id: Option<&str>,
) -> Result<String, StoreError> {
    tx.enqueue(NewJob {
        kind: kind.as_str().to_owned(),
        payload: json!(payload),
        operation_id: operation_id.map(str::to_owned),
        resource_id: Some(resource_id.to_owned()),
        delay: std::time::Duration::ZERO,
        max_attempts: kind.max_attempts(),
    })
    .await
}

pub(crate) fn handlers() -> Handlers {
    Handlers {
        run: Arc::new(|kind, context| Box::pin(run(kind, context))),
        failed: |tx, kind, job, failure| Box::pin(failed(tx, kind, job, failure)),
    }
}

async fn run(kind: JobKind, context: JobContext) -> Result<(), JobFailure> {
    match kind {
        JobKind::DeleteResourceGroup => delete_resource_group::run(context).await,
    }
}

/// What a job that failed for good leaves behind, in the transaction that ends it. The engine itself ends
/// the job and its operation.
async fn failed(tx: &mut Tx<'_>, kind: JobKind, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    match kind {
        JobKind::DeleteResourceGroup => delete_resource_group::failed(tx, job, failure).await,
    }
}

/// Ends the operation of a job, if it has one that has not ended.
pub(crate) async fn end_operation(tx: &mut Tx<'_>, job: &Job, end: &OperationEnd) -> Result<(), StoreError> {
    let Some(id) = &job.operation_id else { return Ok(()) };
    match tx.end_operation(id, end).await {
        // A handler may have ended it in an earlier attempt.
        Err(StoreError::OperationEnded { .. }) => Ok(()),
        other => other,
    }
}
