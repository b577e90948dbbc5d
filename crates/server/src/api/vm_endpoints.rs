//! What Azure has no API for: the way into a VM's SSH from this host, and making a platform image ahead of use.

use arm::ResourceId;
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use model::virtual_machine::VirtualMachine;
use serde_json::{Value, json};
use vmhost::{VmError, VmHandle};

use crate::AppState;
use crate::http::error::{ApiError, chain};
use crate::http::extract::Version;
use crate::http::lro::{self, PollHeaders};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::make_platform_image::{begin, run_id};

/// The guest's port.
const SSH: u16 = 22;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Method::GET, "/tintype/virtualmachines/ssh", ssh).on(
        Method::POST,
        "/tintype/platformimages/{publisher}/{offer}/{sku}/make",
        make,
    )
}

/// `?id=<VM>` → `{"address":"127.0.0.1:port"}`: a loopback port of the host of the service that leads to the
/// guest's SSH for as long as the VM runs.
async fn ssh(State(state): State<AppState>, query: Query) -> Result<Json<Value>, ApiError> {
    let id = query.get("id").unwrap_or_default();
    let parsed = ResourceId::parse(id)?;
    let found = state.store.read(|tx| Box::pin(async { tx.get::<Value>(id).await })).await?;
    let found = found.filter(|found| found.ty == super::virtual_machines::TYPE);
    let found = found.ok_or_else(|| arm::ArmError::resource_not_found(&parsed))?;
    let vm: VirtualMachine = serde_json::from_value(found.data).map_err(ApiError::internal)?;
    let handle = VmHandle::attach(&state.fabric.vm_dir(vm.vm_id));
    let address = handle.forward(SSH).await.map_err(|error| match error {
        VmError::Ended(ended) => {
            let message = format!("The virtual machine '{}' does not run: {ended}.", found.name);
            ApiError::new(409, "OperationNotAllowed", message)
        }
        error => ApiError::internal(chain(&error)),
    })?;
    Ok(Json(json!({ "address": address.to_string() })))
}

/// `?location=<region>` (default: the first) → 202 with an operation and `{"runId":…}`, whose log
/// `/tintype/runs/{runId}/log` streams. A recipe that is being made already answers with the operation that makes it.
async fn make(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Response, ApiError> {
    let (publisher, offer, sku) = (path.segment(2), path.segment(3), path.segment(4));
    let Some(image) = state.fabric.catalog().find(publisher, offer, sku) else {
        let message = format!("The platform image '{publisher}:{offer}:{sku}' is not in the catalogue.");
        return Err(ApiError::new(404, "PlatformImageNotFound", message));
    };
    let region = match query.get("location") {
        None => state.config.regions.first(),
        Some(name) => state.config.region(name),
    };
    let region = region.ok_or_else(|| {
        ApiError::new(
            400,
            "LocationNotAvailable",
            "The location in the query is not a region of this service.",
        )
    })?;
    let operation =
        state.store.write(|tx| Box::pin(async { begin(tx, &state, image, &region.name).await })).await?;
    let headers = lro::headers(&state.endpoint, &operation, &version, PollHeaders::AsyncAndLocation);
    let body = Json(json!({ "runId": run_id(&image.recipe_digest()) }));
    Ok((StatusCode::ACCEPTED, headers, body).into_response())
}
