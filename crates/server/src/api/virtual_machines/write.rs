//! PUT and PATCH of a virtual machine.

use std::path::Path;

use arm::resource_type::VIRTUAL_MACHINES;
use arm::virtual_machine::{Expand, ParsedVm, parse};
use arm::{ApiVersion, ArmError};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::resource_group::ResourceGroup;
use model::virtual_machine::{VirtualMachine, VmSecrets, VmSpec};
use model::{ProvisioningState, ResourceGroupName, Tags, VmName};
use serde::Deserialize;
use serde_json::Value;
use store::{Document, NewOperation, Operation, OperationFamily, Tx};
use uuid::Uuid;

use super::{not_found, render, vm_id};
use crate::AppState;
use crate::api::column_state;
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Version};
use crate::http::lro::{self, PollHeaders};
use crate::http::path::ArmPath;
use crate::jobs::create_virtual_machine::{Payload, check_image, secrets};
use crate::jobs::{self, JobKind};

/// What a PUT came to.
struct Put {
    document: Document<VirtualMachine>,
    created: bool,
    /// The VM is new, or is tried again: a job runs. `None`: tags and what is only kept were replaced.
    operation: Option<Operation>,
}

pub(super) async fn put(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let name = VmName::parse(path.value("virtualmachines")?)?;
    ResourceGroupName::parse(path.value("resourcegroups")?)?;
    let mut parsed = parse(&name, body, &version)?;
    check_location(&state, &parsed.data)?;
    let id = vm_id(&path)?;
    let before = state.store.read(|tx| Box::pin(async { tx.get::<VirtualMachine>(&id).await })).await?;
    if let Some(before) = &before {
        keep_password(&mut parsed, &before.data.spec);
    }
    parsed.data.check(&parsed.secrets)?;
    refuse_data_disks(&parsed.data)?;
    // Before the document, so that there is never a document whose secrets were lost. A VM that is there has its
    // own already, unless its creation is to be tried again.
    let again = before.as_ref().is_some_and(|before| is_retried(&before.data));
    let new_id = before.as_ref().map_or_else(Uuid::new_v4, |before| before.data.vm_id);
    let dir = state.fabric.vm_dir(new_id);
    if again {
        keep_secrets(&mut parsed.secrets, &dir);
    }
    if before.is_none() || again {
        secrets::write(&dir, &parsed.secrets)
            .map_err(|error| ApiError::internal(format!("cannot write secrets: {error}")))?;
    }
    let done = state
        .store
        .write(|tx| Box::pin(async { put_in(tx, &state, &id, new_id, &name, &parsed, &version).await }))
        .await;
    let used = done.as_ref().is_ok_and(|put| put.document.data.vm_id == new_id);
    if before.is_none() && !used {
        // Refused, or somebody else was faster: these secrets are nobody's.
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(path = %dir.display(), %error, "cannot remove the directory of a refused VM");
        }
    }
    let Put { document, created, operation } = done?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let body = Json(render(&document, None, Expand::default())?);
    Ok(match operation {
        Some(operation) => {
            (status, lro::headers(&state.endpoint, &operation, &version, PollHeaders::Async), body)
                .into_response()
        }
        None => (status, body).into_response(),
    })
}

/// A creation that failed or was canceled is tried again by the next PUT.
fn is_retried(vm: &VirtualMachine) -> bool {
    matches!(vm.provisioning, ProvisioningState::Failed(_) | ProvisioningState::Canceled)
}

async fn put_in(
    tx: &mut Tx<'_>,
    state: &AppState,
    id: &str,
    new_id: Uuid,
    name: &VmName,
    parsed: &ParsedVm,
    version: &ApiVersion,
) -> Result<Put, ApiError> {
    let group_id = id.split("/providers/").next().unwrap_or_default();
    let group = tx.get::<ResourceGroup>(group_id).await?;
    let group = group
        .ok_or_else(|| ArmError::resource_group_not_found(group_id.rsplit('/').next().unwrap_or_default()))?;
    if group.state == store::ProvisioningState::Deleting {
        return Err(ArmError::resource_group_being_deleted(&group.name).into());
    }
    let Some(mut found) = tx.get::<VirtualMachine>(id).await? else {
        check_image(tx, state, &parsed.data).await?;
        let now = tx.now().await?;
        let vm = VirtualMachine::create(name.clone(), parsed.data.clone(), new_id, now);
        // The group's name in the case in which the group was made, as ARM shows it.
        let id = format!("{}/providers/Microsoft.Compute/virtualMachines/{name}", group.id);
        let mut document =
            Document::new(&id, parsed.data.location.as_str(), column_state(&vm.provisioning), vm)?;
        document.extra = parsed.extra.clone();
        tx.insert(&mut document).await?;
        let operation = begin_create(tx, &document).await?;
        return Ok(Put { document, created: true, operation: Some(operation) });
    };
    if found.state.is_busy() {
        return Err(busy(&found));
    }
    check_unchanged(&found, &parsed.data, version)?;
    found.extra = parsed.extra.clone();
    found.data.spec.tags = parsed.data.tags.clone();
    found.data.etag += 1;
    if !is_retried(&found.data) {
        tx.update(&mut found).await?;
        return Ok(Put { document: found, created: false, operation: None });
    }
    check_image(tx, state, &found.data.spec).await?;
    found.data.provisioning = found.data.provisioning.clone().update()?;
    found.data.provisioning_changed = tx.now().await?;
    found.state = column_state(&found.data.provisioning);
    tx.update(&mut found).await?;
    let operation = begin_create(tx, &found).await?;
    Ok(Put { document: found, created: false, operation: Some(operation) })
}

async fn begin_create(tx: &mut Tx<'_>, document: &Document<VirtualMachine>) -> Result<Operation, ApiError> {
    let operation = tx
        .begin_operation(NewOperation {
            resource_id: document.id.clone(),
            kind: "virtualMachines.create".to_owned(),
            family: OperationFamily::Compute,
            location: document.location.clone(),
        })
        .await?;
    let payload = Payload { vm: document.id.clone() };
    jobs::enqueue(tx, JobKind::CreateVirtualMachine, &payload, &document.id, Some(&operation.id)).await?;
    Ok(operation)
}

pub(super) fn busy(document: &Document<VirtualMachine>) -> ApiError {
    let message = format!(
        "Operation on VM '{}' is not allowed since the VM is in provisioning state '{}'; wait until that has ended.",
        document.name, document.state
    );
    ApiError::new(409, "OperationNotAllowed", message)
}

fn check_location(state: &AppState, spec: &VmSpec) -> Result<(), ApiError> {
    if state.config.region(spec.location.as_str()).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = state.config.regions.iter().map(|region| region.name.as_str()).collect();
    Err(ArmError::location_not_available(spec.location.as_str(), &VIRTUAL_MACHINES, &names).into())
}

fn refuse_data_disks(spec: &VmSpec) -> Result<(), ApiError> {
    if spec.data_disks.is_empty() {
        return Ok(());
    }
    let message = "Data disks are not implemented: leave storageProfile.dataDisks empty.";
    Err(ArmError::new(501, "NotImplemented", message).with_target("dataDisks").into())
}

/// A client that sends back what it was shown (`az vm update`) has no password to send.
fn keep_password(parsed: &mut ParsedVm, before: &VmSpec) {
    if let (Some(profile), Some(before)) = (&mut parsed.data.os_profile, &before.os_profile)
        && parsed.secrets.admin_password.is_none()
    {
        profile.has_password = before.has_password;
    }
}

/// What it was not sent again stays what it was.
fn keep_secrets(new: &mut VmSecrets, dir: &Path) {
    let Ok(old) = secrets::read(dir) else { return };
    new.admin_password = new.admin_password.take().or(old.admin_password);
    new.custom_data = new.custom_data.take().or(old.custom_data);
    new.user_data = new.user_data.take().or(old.user_data);
}

/// Only tags may change. What is sent back as it was shown, with the defaults that we filled in, is no change.
fn check_unchanged(
    found: &Document<VirtualMachine>,
    new: &VmSpec,
    version: &ApiVersion,
) -> Result<(), ApiError> {
    let old = &found.data.spec;
    let shown = render(found, None, Expand::default())?;
    let mut shown = parse(&found.data.name, shown, version)?;
    keep_password(&mut shown, old);
    match changed_property([old, &shown.data], new) {
        None => Ok(()),
        Some("location") => {
            let message = format!(
                "The resource '{}' already exists in location '{}' in resource group '{}'. A resource with the same \
                 name cannot be created in location '{}'. Please select a new resource name.",
                found.name, old.location, found.resource_group, new.location
            );
            Err(ApiError::new(409, "InvalidResourceLocation", message))
        }
        Some("vmSize") => {
            let message = "Resizing a virtual machine is not implemented: delete it and create it anew.";
            Err(ArmError::new(501, "NotImplemented", message).with_target("vmSize").into())
        }
        Some(property) => {
            let message = format!("Changing property '{property}' is not allowed.");
            Err(ArmError::new(409, "PropertyChangeNotAllowed", message).with_target(property).into())
        }
    }
}

/// The first property but tags that is neither as stored nor as shown.
fn changed_property(old: [&VmSpec; 2], new: &VmSpec) -> Option<&'static str> {
    let same = |same: fn(&VmSpec, &VmSpec) -> bool| old.iter().any(|old| same(old, new));
    let properties = [
        ("location", same(|old, new| old.location == new.location)),
        ("vmSize", same(|old, new| old.vm_size.eq_ignore_ascii_case(&new.vm_size))),
        ("imageReference", same(|old, new| old.image == new.image)),
        ("osDisk", same(|old, new| old.os_disk == new.os_disk)),
        ("osDisk.osType", same(|old, new| old.os_type == new.os_type)),
        ("dataDisks", same(|old, new| old.data_disks == new.data_disks)),
        ("osProfile", same(|old, new| old.os_profile == new.os_profile)),
        ("securityProfile", same(|old, new| old.secure_boot == new.secure_boot && old.vtpm == new.vtpm)),
    ];
    properties.into_iter().find(|(_, same)| !same).map(|(property, _)| property)
}

#[derive(Deserialize)]
struct PatchBody {
    tags: Option<Tags>,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

/// Replaces the tags; nothing else can be changed.
pub(super) async fn patch(
    State(state): State<AppState>,
    path: ArmPath,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let body: PatchBody = serde_json::from_value(body)
        .map_err(|error| ArmError::invalid_request_content(&error.to_string()))?;
    if let Some(property) = body.others.iter().find(|(_, value)| !value.is_null()).map(|(name, _)| name) {
        let shown: String = property.chars().filter(|c| !c.is_control()).take(80).collect();
        let message = format!("Changing '{shown}' by PATCH is not implemented: only tags can be changed.");
        return Err(ArmError::new(501, "NotImplemented", message).with_target(shown).into());
    }
    let id = vm_id(&path)?;
    let document = state
        .store
        .write(|tx| {
            Box::pin(async {
                let mut found = tx.get::<VirtualMachine>(&id).await?.ok_or_else(|| not_found(&path))?;
                if found.state.is_busy() {
                    return Err(busy(&found));
                }
                if let Some(tags) = &body.tags {
                    found.data.spec.tags = tags.clone();
                    found.data.etag += 1;
                    tx.update(&mut found).await?;
                }
                Ok::<_, ApiError>(found)
            })
        })
        .await?;
    Ok(Json(render(&document, None, Expand::default())?))
}
