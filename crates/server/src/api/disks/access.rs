//! `beginGetAccess` and `endGetAccess`: URLs for a disk's bytes, one at a time.

use std::sync::Arc;
use std::time::Duration;

use arm::{ArmError, ResourceId};
use axum::extract::State;
use axum::response::Response;
use chrono::TimeDelta;
use content::KeyRing;
use model::managed_disk::{AccessMode, DiskAccess, DiskBytes, ManagedDisk};
use store::OperationEnd;
use uuid::Uuid;

use super::super::galleries::{check_version, find, group};
use super::{begin as begin_operation, kind_of};
use crate::AppState;
use crate::blob::disk_access::{self, SasKey};
use crate::http::error::{ApiError, chain};
use crate::http::extract::{JsonBody, Version};
use crate::http::lro::{self, PollHeaders};
use crate::http::path::ArmPath;
use crate::jobs::{self, JobKind, commit_disk_upload};

/// Kind of the operation that grants an access: its result is signed when it is told.
pub(crate) const BEGIN_ACCESS: &str = "disks.beginGetAccess";
/// Kind of the operation that ends one.
const END_ACCESS: &str = "disks.endGetAccess";

pub(in crate::api) async fn begin(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    check_version(&state, &version, &kind_of(&path).1)?;
    let request = arm::disk::parse_access(body, &version)?;
    let id = above(&path)?;
    let keys = match request.mode {
        AccessMode::Read => None,
        AccessMode::Write => upload_keys(&state, &id).await?,
    };
    let operation = state
        .store
        .write(|tx| {
            Box::pin(async {
                group(tx, &id).await?;
                let mut found = find::<ManagedDisk>(tx, &id).await?;
                let now = tx.now().await?;
                let lifetime = TimeDelta::from_std(Duration::from_secs(request.seconds));
                let expires = lifetime.ok().and_then(|lifetime| now.checked_add_signed(lifetime));
                let expires = expires.ok_or_else(|| {
                    ArmError::invalid_parameter("durationInSeconds", "The access would end beyond all dates.")
                })?;
                let access = DiskAccess { id: Uuid::new_v4(), mode: request.mode, granted: now, expires };
                let before = found.data.access.clone();
                found.data.grant(access.clone(), now)?;
                if let (AccessMode::Write, DiskBytes::Upload { bytes }) = (request.mode, &found.data.bytes) {
                    // Here, so that without the file nothing is granted, and no disk that is gone gets a file.
                    let made =
                        state.disk_exports.begin_upload(found.data.unique_id, *bytes, keys.clone()).await;
                    made.map_err(|error| ApiError::new(507, "InsufficientStorage", error.to_string()))?;
                }
                disk_access::forget(tx, before.as_ref()).await?;
                disk_access::remember(tx, access.id, &found.key).await?;
                tx.update(&mut found).await?;
                let operation = begin_operation(tx, &found, BEGIN_ACCESS).await?;
                let result = SasKey::unsigned_result(state.endpoint.url(), &found.data, &access);
                tx.end_operation(&operation.id, &OperationEnd::Succeeded(Some(result))).await?;
                Ok::<_, ApiError>(operation)
            })
        })
        .await?;
    Ok(lro::accepted(&state.endpoint, &operation, &version, PollHeaders::AsyncAndLocation))
}

/// What the file of a disk's upload is encrypted with.
async fn upload_keys(state: &AppState, id: &ResourceId) -> Result<Option<Arc<KeyRing>>, ApiError> {
    let disk = state
        .store
        .read(|tx| {
            Box::pin(async {
                group(tx, id).await?;
                find::<ManagedDisk>(tx, id).await
            })
        })
        .await?;
    let keys = state.fabric.blob_keys(&disk.data.spec.location).await;
    keys.map_err(|error| ApiError::internal(chain(&error)))
}

pub(in crate::api) async fn end(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    check_version(&state, &version, &kind_of(&path).1)?;
    let id = above(&path)?;
    let operation = state
        .store
        .write(|tx| {
            Box::pin(async {
                group(tx, &id).await?;
                let mut found = find::<ManagedDisk>(tx, &id).await?;
                let ended = found.data.access.clone();
                let uploaded = found.data.end_access()?;
                disk_access::forget(tx, ended.as_ref()).await?;
                tx.update(&mut found).await?;
                let operation = begin_operation(tx, &found, END_ACCESS).await?;
                match ended.filter(|_| uploaded) {
                    Some(access) => {
                        let payload =
                            commit_disk_upload::Payload { disk: found.id.clone(), access: access.id };
                        let operation = Some(operation.id.as_str());
                        jobs::enqueue(tx, JobKind::CommitDiskUpload, &payload, &found.id, operation).await?;
                    }
                    None => tx.end_operation(&operation.id, &OperationEnd::Succeeded(None)).await?,
                }
                Ok::<_, ApiError>(operation)
            })
        })
        .await?;
    Ok(lro::accepted(&state.endpoint, &operation, &version, PollHeaders::AsyncAndLocation))
}

/// The disk that the action is of.
fn above(path: &ArmPath) -> Result<arm::ResourceId, ApiError> {
    let text = path.text();
    let (disk, _action) = text.rsplit_once('/').unwrap_or_default();
    Ok(arm::ResourceId::parse(disk)?)
}
