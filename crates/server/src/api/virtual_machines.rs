//! Virtual machines: PUT, GET, PATCH, DELETE, lists, the instance view; power actions are in `power.rs`.
//!
//! What can be refused at once is: a size, an image or a version that there is not, what this service does not
//! do (501). The rest is a job's, and ends in the VM's state. The OS disk is part of the VM and goes with it.

mod power;
mod write;

use arm::operation::list_body;
use arm::virtual_machine::{Expand, instance_view};
use arm::{ArmError, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use model::ProvisioningState;
use model::virtual_machine::{VirtualMachine, VmSecrets};
use serde_json::Value;
use store::{Document, Filter, NewOperation, Operation, OperationFamily, StoreError, Tx};

use super::resource_groups::must_exist;
use super::resources::next_link;
use super::{Begun, column_state};
use crate::AppState;
use crate::http::error::ApiError;
use crate::http::extract::Version;
use crate::http::lro::{self, PollHeaders};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::create_virtual_machine::secrets;
use crate::jobs::{self, JobKind, delete_virtual_machine};

/// Type of a VM's row.
pub(crate) const TYPE: &str = "microsoft.compute/virtualmachines";
/// Most VMs on a page.
const PAGE_ITEMS: u32 = 500;

pub(super) fn routes(routes: Routes) -> Routes {
    const ALL: &str = "/subscriptions/{subscription}/providers/microsoft.compute/virtualmachines";
    const GROUP: &str =
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines";
    const VM: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}";
    const INSTANCE_VIEW: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}/instanceview";
    const ACTION: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}/{action}";
    routes
        .on(Method::GET, ALL, list)
        .on(Method::GET, GROUP, list)
        .on(Method::PUT, VM, write::put)
        .on(Method::GET, VM, get)
        .on(Method::PATCH, VM, write::patch)
        .on(Method::DELETE, VM, delete)
        .on(Method::GET, INSTANCE_VIEW, get_instance_view)
        .on(Method::POST, ACTION, power::act)
}

fn not_found(path: &ArmPath) -> ApiError {
    let id = vm_id(path).and_then(|id| Ok(ResourceId::parse(&id)?));
    id.map_or_else(|error| error, |id| ArmError::resource_not_found(&id).into())
}

/// The id of the VM that a path is about, whatever follows its name.
fn vm_id(path: &ArmPath) -> Result<String, ApiError> {
    let (subscription, group) = (path.value("subscriptions")?, path.value("resourcegroups")?);
    let name = path.value("virtualmachines")?;
    Ok(format!(
        "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Compute/virtualMachines/{name}"
    ))
}

async fn find(state: &AppState, path: &ArmPath) -> Result<Document<VirtualMachine>, ApiError> {
    let id = vm_id(path)?;
    let found = state.store.read(|tx| Box::pin(async { tx.get::<VirtualMachine>(&id).await })).await?;
    found.ok_or_else(|| not_found(path))
}

async fn get(State(state): State<AppState>, path: ArmPath, query: Query) -> Result<Json<Value>, ApiError> {
    let expand = Expand::parse(query.get("$expand"))?;
    let document = find(&state, &path).await?;
    let secrets =
        if expand.user_data { secrets::read(&state.fabric.vm_dir(document.data.vm_id)).ok() } else { None };
    Ok(Json(render(&document, secrets.as_ref(), expand)?))
}

async fn get_instance_view(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    Ok(Json(instance_view(&find(&state, &path).await?.data)))
}

async fn list(State(state): State<AppState>, path: ArmPath, query: Query) -> Result<Json<Value>, ApiError> {
    let group = path.find("resourcegroups").map(str::to_owned);
    let subscription = path.value("subscriptions")?.to_owned();
    let group_id =
        group.as_ref().map(|group| format!("/subscriptions/{subscription}/resourceGroups/{group}"));
    let filter = Filter {
        ty: Some(TYPE.to_owned()),
        subscription: Some(subscription),
        resource_group: group,
        after: query.get("$skiptoken").map(str::to_owned),
        limit: PAGE_ITEMS,
        ..Filter::default()
    };
    let listing = state
        .store
        .read(|tx| {
            Box::pin(async {
                if let Some(id) = &group_id {
                    must_exist(tx, id).await?;
                }
                Ok::<_, ApiError>(tx.list::<VirtualMachine>(&filter).await?)
            })
        })
        .await?;
    let value =
        listing.items.iter().map(|vm| render(vm, None, Expand::default())).collect::<Result<_, _>>()?;
    let next = listing.next.map(|next| next_link(&state, &path, &query, &next));
    Ok(Json(list_body(value, next.as_deref())))
}

/// 202 and a job; 204 when there is none. Asking again while it runs gives the same operation.
async fn delete(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    let id = vm_id(&path)?;
    let operation = state
        .store
        .write(|tx| {
            Box::pin(async {
                let Some(mut document) = tx.get::<VirtualMachine>(&id).await? else { return Ok(None) };
                if document.data.provisioning == ProvisioningState::Deleting {
                    let running = tx.operations_in_progress(&id).await?;
                    let running = running.into_iter().find(|operation| operation.kind == DELETE);
                    if let Some(running) = running {
                        return Ok(Some(running));
                    }
                }
                begin(tx, &mut document).await.map(Some)
            })
        })
        .await
        .map_err(ApiError::from)?;
    Ok(match operation {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(operation) => {
            lro::accepted(&state.endpoint, &operation, &version, PollHeaders::AsyncAndLocation)
        }
    })
}

/// Kind of the operation that deletes a VM.
const DELETE: &str = "virtualMachines.delete";

/// Sets the VM to `Deleting`, stops what creates it and enqueues the job.
async fn begin(tx: &mut Tx<'_>, document: &mut Document<VirtualMachine>) -> Result<Operation, StoreError> {
    for job in tx.unfinished_jobs(&document.id).await? {
        tx.request_cancel(&job.id).await?;
    }
    document.data.provisioning = ProvisioningState::Deleting;
    document.data.provisioning_changed = tx.now().await?;
    document.data.etag += 1;
    document.state = column_state(&document.data.provisioning);
    tx.update(document).await?;
    let operation = tx
        .begin_operation(NewOperation {
            resource_id: document.id.clone(),
            kind: DELETE.to_owned(),
            family: OperationFamily::Compute,
            location: document.location.clone(),
        })
        .await?;
    let payload = delete_virtual_machine::Payload { vm: document.id.clone() };
    jobs::enqueue(tx, JobKind::DeleteVirtualMachine, &payload, &document.id, Some(&operation.id)).await?;
    Ok(operation)
}

/// A VM's part in the deletion of its group, for [`super::begin_delete`].
pub(crate) async fn begin_delete(tx: &mut Tx<'_>, key: &str) -> Result<Begun, StoreError> {
    let Some(mut document) = tx.get::<VirtualMachine>(key).await? else { return Ok(Begun::Deleted) };
    begin(tx, &mut document).await?;
    Ok(Begun::Working)
}

pub(super) fn render(
    document: &Document<VirtualMachine>,
    secrets: Option<&VmSecrets>,
    expand: Expand,
) -> Result<Value, ApiError> {
    let id = ResourceId::parse(&document.id)?;
    let context = arm::Context { id: &id, extra: &document.extra };
    Ok(arm::virtual_machine::render(&document.data, secrets, expand, &context))
}
