//! `/tintype/stores`: looking after a region's store, as `tintype store` does for one that no server uses. Ours; Azure has
//! no such thing.

use arm::ArmError;
use axum::Json;
use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use model::Region;
use serde_json::{Value, json};

use crate::AppState;
use crate::http::error::{ApiError, chain};
use crate::http::extract::Version;
use crate::http::lro::{self, PollHeaders};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::look_after_store::{Task, begin};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Method::GET, "/tintype/stores/{region}/stats", stats)
        .on(Method::POST, "/tintype/stores/{region}/gc", gc)
        .on(Method::POST, "/tintype/stores/{region}/verify", verify)
}

/// What the store holds.
async fn stats(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let region = region(&state, &path)?;
    let away = |error: &dyn std::error::Error| {
        let message = format!("The store of region '{region}' cannot be counted: {}", chain(error));
        ApiError::new(503, "StoreUnavailable", message)
    };
    let store = state.fabric.store(&region).await.map_err(|error| away(&error))?;
    let stats = store.stats().await.map_err(|error| away(&error))?;
    let content::StoreStats { manifests, logical_bytes, packs, segments, indexed, stored_bytes } = stats;
    Ok(Json(json!({
        "location": store.location().to_string(), "id": store.id(), "owner": store.owner(), "images": manifests,
        "logical_bytes": logical_bytes, "stored_bytes": stored_bytes, "packs": packs, "segments": segments,
        "indexed": indexed,
    })))
}

/// `?dryRun=true` only says what would be freed. 202 with an operation, whose output is the report.
async fn gc(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Response, ApiError> {
    let task = Task::CollectGarbage { dry_run: flag(&query, "dryRun")? };
    accept(&state, &path, task, &version).await
}

/// `?repair=true` takes what is damaged from the other regions. 202 with an operation, whose output is the report.
async fn verify(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Response, ApiError> {
    let task = Task::Verify { repair: flag(&query, "repair")? };
    accept(&state, &path, task, &version).await
}

async fn accept(
    state: &AppState,
    path: &ArmPath,
    task: Task,
    version: &arm::ApiVersion,
) -> Result<Response, ApiError> {
    let region = region(state, path)?;
    let operation = state.store.write(|tx| Box::pin(async { begin(tx, state, &region, task).await })).await?;
    Ok(lro::accepted(&state.endpoint, &operation, version, PollHeaders::AsyncAndLocation))
}

fn region(state: &AppState, path: &ArmPath) -> Result<Region, ApiError> {
    let name = path.segment(2);
    let known = state.config.region(name).map(|region| region.name.clone());
    known.ok_or_else(|| {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
        let names: Vec<_> = state.config.regions.iter().map(|region| region.name.as_str()).collect();
        let message = format!("'{shown}' is not a region of this service; these are: {}.", names.join(", "));
        ArmError::new(404, "RegionNotFound", message).into()
    })
}

fn flag(query: &Query, name: &str) -> Result<bool, ApiError> {
    match query.get(name) {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case("true") => Ok(true),
        Some(value) if value.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(ApiError::new(400, "InvalidParameter", format!("'{name}' is either true or false."))),
    }
}
