//! Managed disks, and what snapshots share with them: PUT, PATCH, GET, lists, DELETE. Their bytes are moved by jobs.

pub(crate) mod access;
pub(crate) mod origin;

use arm::disk::Form;
use arm::resource_type::{DISKS, ResourceType, SNAPSHOTS};
use arm::{ApiVersion, Context, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use model::managed_disk::{DiskBytes, DiskKind, ManagedDisk};
use model::{DiskName, ProvisioningState};
use serde_json::Value;
use store::{Document, Filter, NewOperation, Operation, OperationFamily, StoreError, Tx};
use uuid::Uuid;

pub(crate) use access::BEGIN_ACCESS;

use super::galleries::{Write, check_region, check_version, deleted, find, group, id_of, missing, page};
use super::{Begun, column_state};
use crate::AppState;
use crate::blob::disk_access;
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Version};
use crate::http::lro::{self, PollHeaders};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::{self, JobKind, create_disk, delete_disk};

/// Type of a disk's row.
pub(crate) const TYPE: &str = "microsoft.compute/disks";
/// Kind of the operation of a DELETE.
const DELETE: &str = "disks.delete";

pub(super) fn routes(routes: Routes) -> Routes {
    const ALL: &str =
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks";
    const DISK: &str =
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks/{disk}";
    const BEGIN: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks/{disk}/begingetaccess";
    const END: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks/{disk}/endgetaccess";
    routes
        .on(Method::GET, "/subscriptions/{subscription}/providers/microsoft.compute/disks", list)
        .on(Method::GET, ALL, list)
        .on(Method::PUT, DISK, put)
        .on(Method::PATCH, DISK, patch)
        .on(Method::GET, DISK, get)
        .on(Method::DELETE, DISK, delete)
        .on(Method::POST, BEGIN, access::begin)
        .on(Method::POST, END, access::end)
}

/// Which of the two types a path is about.
pub(super) fn kind_of(path: &ArmPath) -> (DiskKind, ResourceType) {
    let is = |at: usize, name: &str| path.segment(at).eq_ignore_ascii_case(name);
    // `…/providers/Microsoft.Compute/{type}…`, below a subscription or below a group.
    let at = if is(4, "providers") { 6 } else { 4 };
    match is(at, "snapshots") {
        true => (DiskKind::Snapshot, SNAPSHOTS),
        false => (DiskKind::Disk, DISKS),
    }
}

pub(super) async fn put(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    write(&state, &path, &version, Write::Put(body)).await
}

pub(super) async fn patch(
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
    let (kind, ty) = kind_of(path);
    check_version(state, version, &ty)?;
    let id = id_of(path)?;
    let name = DiskName::parse(id.name())?;
    let (operation, body) = state
        .store
        .write(|tx| {
            Box::pin(async {
                let group = group(tx, &id).await?;
                let found = tx.get::<ManagedDisk>(&id.to_string()).await?;
                let body = match (&body, &found) {
                    (Write::Put(body), _) => body.clone(),
                    (Write::Patch(patch), Some(found)) => {
                        arm::apply_patch(render(found, Form::Whole)?, patch.clone())
                    }
                    (Write::Patch(_), None) => return Err(missing(tx, &id).await?),
                };
                let parsed = arm::disk::parse(kind, body, version)?;
                check_region(state, &parsed.data.location, &ty, "location")?;
                let now = tx.now().await?;
                let created = found.is_none();
                let mut document = match found {
                    Some(mut found) => {
                        found.data.update(parsed.data, now)?;
                        found.data.provisioning = found.data.provisioning.clone().update()?;
                        found
                    }
                    None => {
                        parsed.data.check(kind)?;
                        let disk = ManagedDisk::create(name.clone(), kind, parsed.data, Uuid::new_v4(), now);
                        let id = format!("{}/providers/{ty}/{name}", group.id);
                        let location = disk.spec.location.to_string();
                        Document::new(&id, &location, column_state(&disk.provisioning), disk)?
                    }
                };
                if document.data.bytes == DiskBytes::Pending {
                    // The job looks again: a source may go away in between.
                    origin::find(tx, state, &document).await?;
                }
                document.extra = parsed.extra;
                document.state = column_state(&document.data.provisioning);
                match created {
                    true => tx.insert(&mut document).await?,
                    false => tx.update(&mut document).await?,
                }
                let operation = begin(tx, &document, "disks.write").await?;
                let payload = create_disk::Payload { disk: document.id.clone() };
                jobs::enqueue(tx, JobKind::CreateDisk, &payload, &document.id, Some(&operation.id)).await?;
                Ok::<_, ApiError>((operation, render(&document, Form::Accepted)?))
            })
        })
        .await?;
    // az takes 200 and 202 alone (CLIENTS.md 3).
    let headers = lro::headers(&state.endpoint, &operation, version, PollHeaders::AsyncAndLocation);
    Ok((StatusCode::ACCEPTED, headers, Json(body)).into_response())
}

pub(super) async fn get(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &kind_of(&path).1)?;
    let id = id_of(&path)?;
    let document = state.store.read(|tx| Box::pin(async { find::<ManagedDisk>(tx, &id).await })).await?;
    Ok(Json(render(&document, Form::Whole)?))
}

pub(super) async fn list(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    let (_, ty) = kind_of(&path);
    check_version(&state, &version, &ty)?;
    let subscription = path.value("subscriptions")?;
    let group = path.find("resourcegroups");
    let above = group
        .map(|group| ResourceId::parse(&format!("/subscriptions/{subscription}/resourceGroups/{group}")));
    let filter = Filter {
        ty: Some(ty.to_string()),
        subscription: Some(subscription.to_owned()),
        resource_group: group.map(str::to_owned),
        ..Filter::default()
    };
    let whole = |document: &Document<ManagedDisk>| render(document, Form::Whole);
    page(&state, &path, &query, filter, above.transpose()?.as_ref(), whole).await
}

/// Its bytes are released by a job. Asking again while it runs gives the same operation.
pub(super) async fn delete(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    check_version(&state, &version, &kind_of(&path).1)?;
    let id = id_of(&path)?;
    let operation = state
        .store
        .write(|tx| {
            Box::pin(async {
                group(tx, &id).await?;
                let Some(mut found) = tx.get::<ManagedDisk>(&id.to_string()).await? else { return Ok(None) };
                let mut running = tx.operations_in_progress(&found.id).await?.into_iter();
                if let Some(running) = running.find(|operation| operation.kind == DELETE) {
                    return Ok(Some(running));
                }
                found.data.check_no_access(tx.now().await?)?;
                let operation = begin(tx, &found, DELETE).await?;
                start_deleting(tx, &mut found, Some(&operation.id)).await?;
                Ok::<_, ApiError>(Some(operation))
            })
        })
        .await?;
    Ok(deleted(&state, operation.as_ref(), &version))
}

/// Deletes a disk as part of its resource group's deletion. An access that is open ends with it.
///
/// # Errors
/// [`StoreError::Referenced`] while something uses it.
pub(crate) async fn begin_delete(tx: &mut Tx<'_>, key: &str) -> Result<Begun, StoreError> {
    let Some(mut found) = tx.get::<ManagedDisk>(key).await? else { return Ok(Begun::Deleted) };
    start_deleting(tx, &mut found, None).await?;
    Ok(Begun::Working)
}

/// Marks a disk as going away, ends its access, asks what works on it to stop, and enqueues the job that ends it.
async fn start_deleting(
    tx: &mut Tx<'_>,
    found: &mut Document<ManagedDisk>,
    operation: Option<&str>,
) -> Result<(), StoreError> {
    if let Some(link) = tx.links_to(&found.id).await?.into_iter().next() {
        return Err(StoreError::Referenced { key: found.key.clone(), by: link.from, kind: link.kind });
    }
    disk_access::forget(tx, found.data.access.take().as_ref()).await?;
    found.data.access_generation += 1;
    found.data.provisioning = ProvisioningState::Deleting;
    found.state = column_state(&found.data.provisioning);
    tx.update(found).await?;
    for job in tx.unfinished_jobs(&found.id).await? {
        if job.kind != JobKind::DeleteDisk.as_str() {
            tx.request_cancel(&job.id).await?;
        }
    }
    let payload = delete_disk::Payload { disk: found.id.clone() };
    jobs::enqueue(tx, JobKind::DeleteDisk, &payload, &found.id, operation).await?;
    Ok(())
}

/// Begins an operation of the disk family.
pub(super) async fn begin(
    tx: &mut Tx<'_>,
    document: &Document<ManagedDisk>,
    kind: &str,
) -> Result<Operation, StoreError> {
    tx.begin_operation(NewOperation {
        resource_id: document.id.clone(),
        kind: kind.to_owned(),
        family: OperationFamily::Disk,
        location: document.location.clone(),
    })
    .await
}

/// A disk or snapshot as an answer; also the result of the operation that made it.
pub(crate) fn render(document: &Document<ManagedDisk>, form: Form) -> Result<Value, ApiError> {
    let id = ResourceId::parse(&document.id)?;
    Ok(arm::disk::render(&document.data, form, &Context { id: &id, extra: &document.extra }))
}
