//! Fetches a template's scripts and checks its references.

use serde::{Deserialize, Serialize};
use store::{Job, StoreError, Tx};

use super::context::{JobContext, JobFailure};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {}

pub(super) async fn run(_context: JobContext) -> Result<(), JobFailure> {
    Err(JobFailure::permanent("NotImplemented", "not written yet"))
}

pub(super) async fn failed(_tx: &mut Tx<'_>, _job: &Job, _failure: &JobFailure) -> Result<(), StoreError> {
    Ok(())
}
