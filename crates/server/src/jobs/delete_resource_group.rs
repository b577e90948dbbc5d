//! Deletes a resource group: first everything in it, from the leaves up, then the group.
//!
//! It looks at what is there, deletes what can be deleted, and looks again, so a crash only delays it. A
//! resource whose deletion is work (a VM) is a job of its own that [`api::begin_delete`] starts; this one waits.

use std::time::Duration;

use model::resource_group::ResourceGroup;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Document, Filter, Job, OperationEnd, ProvisioningState, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use crate::api::{self, Begun};

/// Between two looks while resources are being deleted by jobs of their own.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the group.
    pub(crate) group: String,
}

/// What one look found.
enum Look {
    /// The group is gone, and with it this job's work.
    Gone,
    /// Something was deleted, or is being deleted.
    Moving {
        /// Resources that were there.
        left: usize,
        /// Whether to look again at once.
        at_once: bool,
    },
    /// Nothing moves: why the first of what is left cannot be deleted.
    Stuck(StoreError),
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { group } = context.payload()?;
    loop {
        let look = context
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    context.hold(tx).await?;
                    look(tx, &context, &group).await
                })
            })
            .await?;
        match look {
            Look::Gone => return Ok(()),
            Look::Stuck(error) => {
                return Err(JobFailure::permanent("ResourceGroupDeletionBlocked", error.to_string()));
            }
            Look::Moving { left, at_once: true } => context.report(json!({ "resourcesLeft": left })),
            Look::Moving { left, at_once: false } => {
                context.report(json!({ "resourcesLeft": left }));
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = context.stopping.cancelled() => {
                        return Err(JobFailure::transient("InternalServerError", "the service stops"));
                    }
                }
            }
        }
    }
}

async fn look(tx: &mut Tx<'_>, context: &JobContext, group: &str) -> Result<Look, StoreError> {
    let Some(document) = tx.get::<Value>(group).await? else {
        context.finish_in(tx, &OperationEnd::Succeeded(None)).await?;
        return Ok(Look::Gone);
    };
    let in_group = Filter {
        subscription: Some(document.subscription.clone()),
        resource_group: Some(document.resource_group.clone()),
        ..Filter::default()
    };
    let mut members = tx.list::<Value>(&in_group).await?.items;
    members.retain(|member| member.key != document.key);
    if members.is_empty() {
        tx.delete(&document.key).await?;
        context.finish_in(tx, &OperationEnd::Succeeded(None)).await?;
        return Ok(Look::Gone);
    }
    // Longer ids are deeper: children before parents.
    members.sort_by_key(|member| std::cmp::Reverse(member.key.len()));
    let (mut deleted, mut working, mut stuck) = (0, 0, None);
    for member in &mut members {
        match delete_one(tx, member).await {
            Ok(Begun::Deleted) => deleted += 1,
            Ok(Begun::Working) => working += 1,
            Err(error @ (StoreError::HasChildren { .. } | StoreError::Referenced { .. })) => {
                stuck.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match stuck {
        Some(error) if deleted == 0 && working == 0 => Ok(Look::Stuck(error)),
        _ => Ok(Look::Moving { left: members.len() - deleted, at_once: deleted > 0 }),
    }
}

async fn delete_one(tx: &mut Tx<'_>, member: &mut Document<Value>) -> Result<Begun, StoreError> {
    if member.state == ProvisioningState::Deleting {
        return Ok(Begun::Working);
    }
    api::begin_delete(tx, member).await
}

/// The group stays, and can be used or deleted again.
pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, _: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut group) = tx.get::<ResourceGroup>(key).await? else { return Ok(()) };
    group.data.provisioning = model::ProvisioningState::Succeeded;
    group.state = api::column_state(&group.data.provisioning);
    tx.update(&mut group).await
}
