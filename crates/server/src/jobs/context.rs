//! What a handler is given, and how it says that it failed.

use std::sync::Arc;

use serde_json::{Value, json};
use store::{Job, JobEnd, OperationEnd, StoreError, Tx};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::end_operation;
use crate::AppState;
use crate::http::error::{ApiError, chain};

/// Why a job did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFailure {
    /// ARM error code for the operation.
    pub code: String,
    /// Cause and remedy.
    pub message: String,
    /// How it ends.
    pub kind: FailureKind,
}

/// How a failure ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Trying again may help: the job runs again until its attempts are used up.
    Transient,
    /// Trying again does not help.
    Permanent,
    /// It was canceled, and has taken back what it did.
    Canceled,
}

impl JobFailure {
    /// A failure that trying again does not mend.
    pub fn permanent(code: impl Into<String>, message: impl Into<String>) -> JobFailure {
        JobFailure { code: code.into(), message: message.into(), kind: FailureKind::Permanent }
    }

    /// A failure that may pass.
    pub fn transient(code: impl Into<String>, message: impl Into<String>) -> JobFailure {
        JobFailure { code: code.into(), message: message.into(), kind: FailureKind::Transient }
    }

    /// The end of a job that was asked to stop.
    #[must_use]
    pub fn canceled() -> JobFailure {
        let message = "The operation was canceled on request.".to_owned();
        JobFailure { code: "OperationCanceled".to_owned(), message, kind: FailureKind::Canceled }
    }

    /// ARM's error object.
    #[must_use]
    pub fn error_object(&self) -> Value {
        json!({ "code": self.code, "message": self.message })
    }
}

impl From<ApiError> for JobFailure {
    /// What the API would answer is what the operation says.
    fn from(error: ApiError) -> Self {
        let object = error.error_object();
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        match error.status().is_server_error() {
            true => JobFailure::transient(text("code"), text("message")),
            false => JobFailure::permanent(text("code"), text("message")),
        }
    }
}

impl From<StoreError> for JobFailure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Contention { .. } | StoreError::Database { .. } => {
                JobFailure::transient("InternalServerError", chain(&error))
            }
            other => JobFailure::permanent("InternalServerError", chain(&other)),
        }
    }
}

/// What a handler has to work with.
#[derive(Clone)]
pub struct JobContext {
    /// The service's parts.
    pub state: AppState,
    /// The job.
    pub job: Arc<Job>,
    /// Cancelled when somebody asked for the job to stop: take back what was done, and return
    /// [`JobFailure::canceled`].
    pub cancel: CancellationToken,
    /// Cancelled when the service stops: return soon, or be given up and run again later.
    pub stopping: CancellationToken,
    pub(super) fence: i64,
    pub(super) progress: watch::Sender<Option<Value>>,
}

impl JobContext {
    /// The job's payload.
    ///
    /// # Errors
    /// A permanent failure if it does not fit `T`.
    pub fn payload<T: serde::de::DeserializeOwned>(&self) -> Result<T, JobFailure> {
        T::deserialize(&self.job.payload).map_err(|e| {
            JobFailure::permanent(
                "InternalServerError",
                format!("the payload of job {} does not fit: {e}", self.job.id),
            )
        })
    }

    /// Sets the progress that the next heartbeat reports.
    pub fn report(&self, progress: Value) {
        self.progress.send_replace(Some(progress));
    }

    /// Makes sure that this worker still holds the job, and keeps it so until the commit. Call it first in
    /// every transaction.
    ///
    /// # Errors
    /// [`StoreError::StaleFence`]: pass it on, so that nothing is written.
    pub async fn hold(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        tx.hold_job(&self.job.id, self.fence).await
    }

    /// A last transaction of nothing but the end of the operation, succeeded with `result`, and of the job.
    ///
    /// # Errors
    /// As [`JobContext::finish_in`].
    pub async fn finish(&self, result: Option<Value>) -> Result<(), StoreError> {
        let end = OperationEnd::Succeeded(result);
        self.state.store.write(|tx| Box::pin(async { self.finish_in(tx, &end).await })).await
    }

    /// Ends operation and job inside a transaction of the handler's own.
    ///
    /// # Errors
    /// [`StoreError::StaleFence`]; the database's own.
    pub async fn finish_in(&self, tx: &mut Tx<'_>, end: &OperationEnd) -> Result<(), StoreError> {
        end_operation(tx, &self.job, end).await?;
        let job_end = match end {
            OperationEnd::Succeeded(_) => JobEnd::Succeeded,
            OperationEnd::Failed(error) => JobEnd::Failed(error.to_string()),
            OperationEnd::Canceled(_) => JobEnd::Canceled,
        };
        tx.end_job(&self.job.id, self.fence, &job_end).await
    }
}
