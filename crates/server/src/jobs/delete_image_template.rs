//! Deletes a template with its run outputs, its runs' logs and its staging group. A group that the user made
//! beforehand stays; only what the service put into it goes.

use futures::future::BoxFuture;
use model::ProvisioningState;
use model::image_template::{ImageTemplate, ProvisioningError, ProvisioningErrorCode};
use model::resource_group::ResourceGroup;
use serde::{Deserialize, Serialize};
use store::{Document, Job, OperationEnd, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use super::create_image_template::{group_name, staging_account};
use crate::api::image_templates::save;
use crate::api::{run_outputs, runs};

/// Tags that the service put on a group of the user's.
const OWN_TAGS: [&str; 4] = ["createdBy", "imageTemplateName", "imageTemplateResourceGroupName", "usedBy"];

/// Which template.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Its id.
    pub(crate) template: String,
}

/// Boxed: the compiler cannot see through so many borrowing futures at once that they are `Send`.
pub(super) fn run(context: JobContext) -> BoxFuture<'static, Result<(), JobFailure>> {
    Box::pin(delete(context))
}

async fn delete(context: JobContext) -> Result<(), JobFailure> {
    let Payload { template } = context.payload()?;
    let found =
        context.state.store.read(|tx| Box::pin(async { tx.get::<ImageTemplate>(&template).await })).await?;
    let group = found.and_then(|document| document.data.resolved.staging_resource_group);
    if let Some(group) = &group {
        let dir = context.state.fabric.staging_dir(&group_name(group));
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("cannot remove {}: {error}", dir.display());
                return Err(JobFailure::transient("InternalServerError", message));
            }
            _ => {}
        }
    }
    let end = OperationEnd::Succeeded(None);
    let written: Result<(), StoreError> = context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                if let Some(document) = tx.get::<ImageTemplate>(&template).await? {
                    remove(tx, &document, group.as_deref()).await?;
                }
                context.finish_in(tx, &end).await
            })
        })
        .await;
    Ok(written?)
}

async fn remove(
    tx: &mut Tx<'_>,
    document: &Document<ImageTemplate>,
    group: Option<&str>,
) -> Result<(), StoreError> {
    for output in run_outputs::of_template(tx, &document.id).await? {
        tx.delete(&output.id).await?;
    }
    runs::forget(tx, &document.key).await?;
    if let Some(group) = group {
        release(tx, document, group).await?;
    }
    tx.delete(&document.id).await
}

/// Deletes the staging group, or takes the service's tags off one that was there before.
async fn release(tx: &mut Tx<'_>, document: &Document<ImageTemplate>, group: &str) -> Result<(), StoreError> {
    staging_account::remove(tx, group).await?;
    let Some(mut group) = tx.get::<ResourceGroup>(group).await? else { return Ok(()) };
    let owned =
        group.data.spec.managed_by.as_deref().is_some_and(|owner| owner.eq_ignore_ascii_case(&document.id));
    if owned {
        return match tx.delete(&group.key).await {
            // Somebody put something into it: it is theirs now.
            Err(StoreError::HasChildren { .. } | StoreError::Referenced { .. }) => Ok(()),
            other => other,
        };
    }
    let kept = group
        .data
        .spec
        .tags
        .iter()
        .filter(|(tag, _)| !OWN_TAGS.iter().any(|own| own.eq_ignore_ascii_case(tag)));
    let kept = kept.map(|(tag, value)| (tag.to_owned(), value.to_owned())).collect();
    // Fewer of valid tags are valid.
    if let Ok(tags) = model::Tags::new(kept) {
        group.data.spec.tags = tags;
        tx.update(&mut group).await?;
    }
    Ok(())
}

/// The template stays as `Failed`, and can be deleted again.
pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    let Some(template) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<ImageTemplate>(template).await? else { return Ok(()) };
    let error =
        ProvisioningError { code: ProvisioningErrorCode::ServerError, message: failure.message.clone() };
    document.data.provisioning = ProvisioningState::Failed(error);
    save(tx, &mut document).await
}
