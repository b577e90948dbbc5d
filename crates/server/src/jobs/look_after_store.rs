//! Frees what a region's store does not need, or checks and repairs what it needs. One of a kind runs for a region at a
//! time; who asks meanwhile gets the operation that is under way.

use content::{GcOptions, GcStage, VerifyOptions};
use model::Region;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Job, NewOperation, Operation, OperationFamily, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use super::{JobKind, enqueue};
use crate::AppState;
use crate::http::error::chain;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "task")]
pub(crate) enum Task {
    CollectGarbage { dry_run: bool },
    Verify { repair: bool },
}

impl Task {
    /// Kind of its operation: tasks that differ in it may run beside each other.
    fn operation_kind(self) -> &'static str {
        match self {
            Self::CollectGarbage { dry_run: false } => "stores.gc",
            Self::CollectGarbage { dry_run: true } => "stores.gcDryRun",
            Self::Verify { repair: false } => "stores.verify",
            Self::Verify { repair: true } => "stores.repair",
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Payload {
    region: Region,
    #[serde(flatten)]
    task: Task,
}

/// Begins a task, or gives the operation of the same one that is under way.
///
/// # Errors
/// The database's own.
pub(crate) async fn begin(
    tx: &mut Tx<'_>,
    state: &AppState,
    region: &Region,
    task: Task,
) -> Result<Operation, StoreError> {
    let kind = task.operation_kind();
    // No resource, but an id by which the operations of a store are found.
    let resource_id = format!("/subscriptions/{}/tintypeStores/{region}", state.config.subscription_id);
    let running = tx.operations_in_progress(&resource_id).await?;
    if let Some(same) = running.into_iter().find(|operation| operation.kind == kind) {
        return Ok(same);
    }
    let operation = tx
        .begin_operation(NewOperation {
            resource_id: resource_id.clone(),
            kind: kind.to_owned(),
            family: OperationFamily::Compute,
            location: region.to_string(),
        })
        .await?;
    let payload = Payload { region: region.clone(), task };
    enqueue(tx, JobKind::LookAfterStore, &payload, &resource_id, Some(&operation.id)).await?;
    Ok(operation)
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { region, task } = context.payload()?;
    // Given up in the middle, a collection or repair is finished by the next one.
    let report = tokio::select! {
        report = work(&context, &region, task) => report?,
        () = context.stopping.cancelled() => {
            return Err(JobFailure::transient("InternalServerError", "the service stops"));
        }
        () = context.cancel.cancelled() => return Err(JobFailure::canceled()),
    };
    Ok(context.finish(Some(report)).await?)
}

async fn work(context: &JobContext, region: &Region, task: Task) -> Result<Value, JobFailure> {
    let fabric = &context.state.fabric;
    let store = fabric.store(region).await.map_err(|error| away(region, &error))?;
    let failed = |error: content::Error| away(region, &error);
    match task {
        Task::CollectGarbage { dry_run } => {
            let options = GcOptions { dry_run, ..GcOptions::default() };
            let report = store
                .gc(&options, |stage, done, total| {
                    let stage = match stage {
                        GcStage::Marking => "mark",
                        GcStage::Moving => "move",
                        GcStage::Removing => "remove",
                    };
                    context.report(json!({ "step": stage, "done": done, "total": total }));
                })
                .await
                .map_err(failed)?;
            Ok(json!(report))
        }
        Task::Verify { repair } => {
            let mut replicas = Vec::new();
            for other in context.state.config.regions.iter().filter(|other| repair && other.name != *region) {
                // A region that is away cannot help, and does not hinder.
                match fabric.store(&other.name).await {
                    Ok(replica) => replicas.push(replica),
                    Err(error) => tracing::warn!(region = %other.name, %error, "no help for a repair"),
                }
            }
            let report = store
                .verify_all(&VerifyOptions { replicas, repair }, |done, total| {
                    context.report(json!({ "step": "verify", "done": done, "total": total }));
                })
                .await
                .map_err(failed)?;
            Ok(json!(report))
        }
    }
}

fn away(region: &Region, error: &dyn std::error::Error) -> JobFailure {
    let message = format!("The store of region '{region}' cannot be looked after: {}", chain(error));
    JobFailure::transient("StoreUnavailable", message)
}

/// Nothing is left: what a collection began, the next one finishes.
pub(super) async fn failed(_: &mut Tx<'_>, _: &Job, _: &JobFailure) -> Result<(), StoreError> {
    Ok(())
}
