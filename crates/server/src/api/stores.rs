//! `/tintype/stores`: looking after a region's store, as `tintype store` does for one that no server uses. Ours; Azure has
//! no such thing.

use std::collections::BTreeSet;

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
use crate::reconcile::gc::care_of;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Method::GET, "/tintype/stores/{region}/stats", stats)
        .on(Method::POST, "/tintype/stores/{region}/gc", gc)
        .on(Method::POST, "/tintype/stores/{region}/verify", verify)
        .on(Method::POST, "/tintype/stores/{region}/reconcile", reconcile)
}

/// What the region's stores hold: together, and each zone with what was last done for it.
async fn stats(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let region = region(&state, &path)?;
    let stores = state.fabric.zones(&region).await.map_err(|error| away(&region, &error))?;
    let (mut zones, mut images, mut sums) = (Vec::new(), BTreeSet::new(), content::StoreStats::default());
    let (mut counted, mut first) = (None, None);
    for (zone, store) in stores.into_iter().enumerate() {
        let entry = match store {
            Ok(store) => match count(&state, &store).await {
                Ok((entry, stats, of_zone)) => {
                    sums.packs += stats.packs;
                    sums.segments += stats.segments;
                    sums.indexed += stats.indexed;
                    sums.stored_bytes += stats.stored_bytes;
                    sums.logical_bytes = sums.logical_bytes.max(stats.logical_bytes);
                    images.extend(of_zone);
                    counted.get_or_insert(store);
                    entry
                }
                Err(error) => {
                    first.get_or_insert(away(&region, &error));
                    json!({ "error": chain(&error) })
                }
            },
            Err(error) => {
                first.get_or_insert(away(&region, &error));
                json!({ "error": chain(&error) })
            }
        };
        let Value::Object(mut entry) = entry else { continue };
        entry.insert("zone".to_owned(), (zone + 1).into());
        zones.push(entry);
    }
    let Some(store) = counted else {
        return Err(first.unwrap_or_else(|| ApiError::internal("a region without zones")));
    };
    Ok(Json(json!({
        "region": region, "location": store.location().to_string(), "id": store.id(), "owner": store.owner(),
        "images": images.len(), "logical_bytes": sums.logical_bytes, "stored_bytes": sums.stored_bytes,
        "packs": sums.packs, "segments": sums.segments, "indexed": sums.indexed, "zones": zones,
    })))
}

type Counted = (Value, content::StoreStats, BTreeSet<content::ManifestId>);

async fn count(state: &AppState, store: &content::Store) -> Result<Counted, content::Error> {
    let stats = store.stats().await?;
    let images = store.images().await?.into_keys().collect();
    let id = store.id();
    // Its absence only shows that nobody knows.
    let care = state.store.read(|tx| Box::pin(async { care_of(tx, id).await })).await.ok().flatten();
    let content::StoreStats { manifests, logical_bytes, packs, segments, indexed, stored_bytes } = stats;
    let entry = json!({
        "location": store.location().to_string(), "id": id, "owner": store.owner(), "images": manifests,
        "logical_bytes": logical_bytes, "stored_bytes": stored_bytes, "packs": packs, "segments": segments,
        "indexed": indexed, "last_gc": care.as_ref().and_then(|care| care.last_gc.as_ref()),
        "last_verify": care.as_ref().and_then(|care| care.last_verify.as_ref()),
    });
    Ok((entry, stats, images))
}

fn away(region: &Region, error: &dyn std::error::Error) -> ApiError {
    let message = format!("The store of region '{region}' cannot be counted: {}", chain(error));
    ApiError::new(503, "StoreUnavailable", message)
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

/// Compares the stores of all regions with what the database wants in them, now rather than at the next interval.
async fn reconcile(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    accept(&state, &path, Task::Reconcile, &version).await
}

/// `?repair=true` takes what is damaged from the other zones and regions. 202 with an operation, whose output is the report.
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
