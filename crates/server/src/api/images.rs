//! Managed images: PUT, PATCH, GET, lists, DELETE. Their bytes are moved by jobs.

mod publish;
pub(crate) mod source;

use arm::resource_type::IMAGES;
use arm::{ApiVersion, ArmError, Context, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use model::image_version::VersionContent;
use model::managed_image::{ImageBytes, ImageStorage, ManagedImage};
use model::{DiskName, ProvisioningState, Region};
use serde_json::Value;
use store::{Document, Filter, NewOperation, Operation, OperationFamily, StoreError, Tx};
use uuid::Uuid;

pub(crate) use publish::{NewImage, publish_from_run, wait_ready};

use super::galleries::{
    Write, answer, check_region, check_version, deleted, find, group, id_of, missing, page,
};
use super::{Begun, column_state};
use crate::AppState;
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Version};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::{self, JobKind, create_managed_image, delete_managed_image};

/// Type of an image's row.
pub(crate) const TYPE: &str = "microsoft.compute/images";
/// Kind of the operation of a DELETE.
const DELETE: &str = "images.delete";

pub(super) fn routes(routes: Routes) -> Routes {
    const ALL: &str =
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/images";
    const IMAGE: &str =
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/images/{image}";
    routes
        .on(Method::GET, "/subscriptions/{subscription}/providers/microsoft.compute/images", list)
        .on(Method::GET, ALL, list)
        .on(Method::PUT, IMAGE, put)
        .on(Method::PATCH, IMAGE, patch)
        .on(Method::GET, IMAGE, get)
        .on(Method::DELETE, IMAGE, delete)
}

async fn put(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    write(&state, &path, &version, Write::Put(body)).await
}

async fn patch(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    write(&state, &path, &version, Write::Patch(body)).await
}

async fn write(
    state: &AppState,
    path: &ArmPath,
    version: &ApiVersion,
    body: Write,
) -> Result<Response, ApiError> {
    check_version(state, version, &IMAGES)?;
    let id = id_of(path)?;
    let name = DiskName::parse(id.name())?;
    let (created, operation, body) = state
        .store
        .write(|tx| {
            Box::pin(async {
                let group = group(tx, &id).await?;
                let found = tx.get::<ManagedImage>(&id.to_string()).await?;
                let body = match (&body, &found) {
                    (Write::Put(body), _) => body.clone(),
                    (Write::Patch(patch), Some(found)) => arm::apply_patch(render(found)?, patch.clone()),
                    (Write::Patch(_), None) => return Err(missing(tx, &id).await?),
                };
                let parsed = arm::managed_image::parse(body, version)?;
                check_region(state, &parsed.data.location, &IMAGES, "location")?;
                let created = found.is_none();
                let mut document = match found {
                    Some(mut found) => {
                        found.data.provisioning = found.data.provisioning.clone().update()?;
                        found.data.update(parsed.data)?;
                        found
                    }
                    None => {
                        let now = tx.now().await?;
                        let image = ManagedImage::create(name.clone(), parsed.data, Uuid::new_v4(), now);
                        let id = format!("{}/providers/{IMAGES}/{name}", group.id);
                        let location = image.spec.location.to_string();
                        Document::new(&id, &location, column_state(&image.provisioning), image)?
                    }
                };
                if document.data.bytes == ImageBytes::Pending {
                    // The job looks again: a source may go away in between.
                    document.data.facts = source::find(tx, state, &document.data).await?.facts;
                }
                document.extra = parsed.extra;
                document.state = column_state(&document.data.provisioning);
                match created {
                    true => tx.insert(&mut document).await?,
                    false => tx.update(&mut document).await?,
                }
                let operation = begin(tx, &document, "images.write").await?;
                start_creating(tx, &document, Some(&operation.id)).await?;
                Ok::<_, ApiError>((created, operation, render(&document)?))
            })
        })
        .await?;
    Ok(answer(state, created, &operation, version, body))
}

async fn start_creating(
    tx: &mut Tx<'_>,
    document: &Document<ManagedImage>,
    operation: Option<&str>,
) -> Result<(), StoreError> {
    let payload = create_managed_image::Payload { image: document.id.clone() };
    jobs::enqueue(tx, JobKind::CreateManagedImage, &payload, &document.id, operation).await?;
    Ok(())
}

async fn get(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &IMAGES)?;
    let id = id_of(&path)?;
    let document = state.store.read(|tx| Box::pin(async { find::<ManagedImage>(tx, &id).await })).await?;
    Ok(Json(render(&document)?))
}

async fn list(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &IMAGES)?;
    let subscription = path.value("subscriptions")?;
    let group = path.find("resourcegroups");
    let above = group
        .map(|group| ResourceId::parse(&format!("/subscriptions/{subscription}/resourceGroups/{group}")));
    let filter = Filter {
        ty: Some(IMAGES.to_string()),
        subscription: Some(subscription.to_owned()),
        resource_group: group.map(str::to_owned),
        ..Filter::default()
    };
    page(&state, &path, &query, filter, above.transpose()?.as_ref(), render).await
}

/// Its bytes are released by a job. Asking again while it runs gives the same operation.
async fn delete(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    check_version(&state, &version, &IMAGES)?;
    let id = id_of(&path)?;
    let operation = state
        .store
        .write(|tx| {
            Box::pin(async {
                group(tx, &id).await?;
                let Some(mut found) = tx.get::<ManagedImage>(&id.to_string()).await? else { return Ok(None) };
                let mut running = tx.operations_in_progress(&found.id).await?.into_iter();
                if let Some(running) = running.find(|operation| operation.kind == DELETE) {
                    return Ok(Some(running));
                }
                let operation = begin(tx, &found, DELETE).await?;
                start_deleting(tx, &mut found, Some(&operation.id)).await?;
                Ok::<_, ApiError>(Some(operation))
            })
        })
        .await?;
    Ok(deleted(&state, operation.as_ref(), &version))
}

/// Deletes an image as part of its resource group's deletion.
///
/// # Errors
/// [`StoreError::Referenced`] while something uses it.
pub(crate) async fn begin_delete(tx: &mut Tx<'_>, key: &str) -> Result<Begun, StoreError> {
    let Some(mut found) = tx.get::<ManagedImage>(key).await? else { return Ok(Begun::Deleted) };
    start_deleting(tx, &mut found, None).await?;
    Ok(Begun::Working)
}

/// Marks an image as going away, asks what works on it to stop, and enqueues the job that ends it.
async fn start_deleting(
    tx: &mut Tx<'_>,
    found: &mut Document<ManagedImage>,
    operation: Option<&str>,
) -> Result<(), StoreError> {
    if let Some(link) = tx.links_to(&found.id).await?.into_iter().next() {
        return Err(StoreError::Referenced { key: found.key.clone(), by: link.from, kind: link.kind });
    }
    found.data.provisioning = ProvisioningState::Deleting;
    found.state = column_state(&found.data.provisioning);
    tx.update(found).await?;
    for job in tx.unfinished_jobs(&found.id).await? {
        if job.kind != JobKind::DeleteManagedImage.as_str() {
            tx.request_cancel(&job.id).await?;
        }
    }
    let payload = delete_managed_image::Payload { image: found.id.clone() };
    jobs::enqueue(tx, JobKind::DeleteManagedImage, &payload, &found.id, operation).await?;
    Ok(())
}

async fn begin(
    tx: &mut Tx<'_>,
    document: &Document<ManagedImage>,
    kind: &str,
) -> Result<Operation, StoreError> {
    tx.begin_operation(NewOperation {
        resource_id: document.id.clone(),
        kind: kind.to_owned(),
        family: OperationFamily::Compute,
        location: document.location.clone(),
    })
    .await
}

fn render(document: &Document<ManagedImage>) -> Result<Value, ApiError> {
    let id = ResourceId::parse(&document.id)?;
    Ok(arm::managed_image::render(&document.data, &Context { id: &id, extra: &document.extra }))
}

/// An image that something can be made from.
pub(crate) struct UsableImage {
    /// Its id as written.
    pub(crate) id: String,
    /// The image.
    pub(crate) image: ManagedImage,
    /// Its disks' profile.
    pub(crate) storage: ImageStorage,
    /// Its bytes, which are in the region's store.
    pub(crate) content: VersionContent,
}

/// The image with this id, as `region` sees it.
///
/// # Errors
/// 404 unless there is one in that region; 409 while it has no content.
pub(crate) async fn usable(
    tx: &mut Tx<'_>,
    id: &str,
    region: &Region,
    target: &str,
) -> Result<UsableImage, ApiError> {
    let found = tx.get::<ManagedImage>(id).await?.filter(|found| found.data.spec.location == *region);
    let Some(document) = found else {
        let message = format!("The Image '{id}' cannot be found in '{region}' region.");
        return Err(ArmError::not_found(message).with_target(target).into());
    };
    let image = document.data;
    let gone = image.provisioning == ProvisioningState::Deleting;
    let content = image.content().filter(|_| !gone).cloned();
    match (content, image.spec.storage.clone()) {
        (Some(content), Some(storage)) => Ok(UsableImage { id: document.id, image, storage, content }),
        _ => {
            let state = image.provisioning.name();
            let message = format!(
                "The Image '{id}' has no content: it is in state '{state}'. Wait until its creation has ended, or create it anew."
            );
            Err(ArmError::operation_not_allowed(message).with_target(target).into())
        }
    }
}
