//! Image versions: PUT, PATCH, GET with `$expand=ReplicationStatus`, list, DELETE. Their bytes are moved by jobs.

mod publish;
mod resolve;
mod source;

use arm::image_version::Expand;
use arm::resource_type::GALLERY_IMAGE_VERSIONS;
use arm::{ApiVersion, Context, Parsed, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use chrono::{DateTime, Utc};
use model::image_definition::ImageDefinition;
use model::image_template::TemplateTargetRegion;
use model::image_version::{
    ImageVersion, ImageVersionSpec, PublishingProfile, RegionReplication, StorageAccountType, VersionSource,
    VersionState,
};
use model::placement::{CopyPlan, RegionZones};
use model::{Region, VersionName, Violation};
use serde_json::Value;
use store::{Document, Filter, Placement, PlacementState, StoreError, Tx};

pub(crate) use publish::{NewVersion, existing_versions, publish_from_run, wait_ready};
pub(crate) use resolve::resolve_gallery_image;
pub(crate) use source::{SourceDisk, SourceDisks, check_size, source_disks};

use super::Begun;
use super::galleries::{
    Write, answer, begin, check_region, check_version, deleted, find, group, id_of, missing, page,
};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Version};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::{self, JobKind, create_image_version, delete_image_version, replicate_image_version};
use crate::{AppState, Config, RegionConfig};

/// Kind of the operation of a DELETE.
const DELETE: &str = "imageVersions.delete";

/// Type of a version's row.
pub(crate) const TYPE: &str = "microsoft.compute/galleries/images/versions";

pub(super) fn routes(routes: Routes) -> Routes {
    const VERSIONS: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}/versions";
    const VERSION: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}/versions/{version}";
    routes
        .on(Method::GET, VERSIONS, list)
        .on(Method::PUT, VERSION, put)
        .on(Method::PATCH, VERSION, patch)
        .on(Method::GET, VERSION, get)
        .on(Method::DELETE, VERSION, delete)
}

/// The state column of a version.
pub(crate) fn column_state(state: &VersionState) -> store::ProvisioningState {
    match state {
        VersionState::Creating | VersionState::Replicating { updating: false, .. } => {
            store::ProvisioningState::Creating
        }
        VersionState::Replicating { updating: true, .. } => store::ProvisioningState::Updating,
        VersionState::Ready { .. } => store::ProvisioningState::Succeeded,
        VersionState::Failed { .. } => store::ProvisioningState::Failed,
        VersionState::Deleting { .. } => store::ProvisioningState::Deleting,
    }
}

/// Where a version's copies in a region shall be.
///
/// # Errors
/// When the region cannot keep it so.
pub(crate) fn copy_plan(
    config: &Config,
    version: &ImageVersion,
    definition: Option<&str>,
    region: &Region,
) -> Result<CopyPlan, Violation> {
    plan_in(config, &version.spec.publishing, definition.unwrap_or_default(), region)
}

fn plan_in(
    config: &Config,
    profile: &PublishingProfile,
    definition: &str,
    region: &Region,
) -> Result<CopyPlan, Violation> {
    let target = profile.target_regions.iter().find(|target| target.region == *region);
    let storage =
        target.map_or(profile.storage_account_type, |target| profile.storage_account_type_in(target));
    let replicas = target.map_or(profile.replica_count, |target| profile.replicas_in(target));
    let name = region.display_name();
    let offers = offers(config, region);
    CopyPlan::of_version(offers, name, definition, storage, replicas, profile.replication_mode)
}

/// What a region offers. One that is not configured any more refuses when its stores are asked for.
fn offers(config: &Config, region: &Region) -> RegionZones {
    let known = config.regions.iter().find(|known| known.name == *region);
    known.map_or(RegionZones { count: 1, zrs_fallback: true }, RegionConfig::offers)
}

/// Refuses a region of a template that could not keep what it will be given.
///
/// # Errors
/// As [`check_copies`].
pub(crate) fn check_template_region(config: &Config, target: &TemplateTargetRegion) -> Result<(), Violation> {
    let storage = target.storage_account_type.unwrap_or(StorageAccountType::StandardLrs);
    let (region, replicas) = (&target.region, target.replica_count);
    let offers = offers(config, region);
    CopyPlan::of_version(offers, region.display_name(), "", storage, replicas, None).map(drop)
}

/// Refuses what the regions cannot keep.
///
/// # Errors
/// The first region that cannot keep its copies as it is asked to.
pub(crate) fn check_copies(config: &Config, profile: &PublishingProfile) -> Result<(), Violation> {
    profile
        .target_regions
        .iter()
        .try_for_each(|target| plan_in(config, profile, "", &target.region).map(drop))
}

/// Writes a pending placement for every region that a version is yet to reach. Bytes that were sent are kept in it.
pub(crate) async fn wanted_placements(
    tx: &mut Tx<'_>,
    document: &Document<ImageVersion>,
) -> Result<(), StoreError> {
    let Some(content) = document.data.state.content() else { return Ok(()) };
    let known = tx.placements(&document.id).await?;
    for (region, state) in document.data.state.regions() {
        let found = known.iter().find(|placement| placement.region == region.as_str());
        let under_way = found.is_some_and(|placement| {
            matches!(placement.state, PlacementState::Pending | PlacementState::Replicating)
        });
        if *state == RegionReplication::Completed || under_way {
            continue;
        }
        tx.put_placement(&Placement {
            version_key: document.key.clone(),
            region: region.to_string(),
            manifest: content.os_disk.manifest.to_string(),
            state: PlacementState::Pending,
            bytes_moved: found.map_or(0, |placement| placement.bytes_moved),
            progress: 0,
        })
        .await?;
    }
    Ok(())
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
    check_version(state, version, &GALLERY_IMAGE_VERSIONS)?;
    let name = VersionName::parse(path.value("versions")?)?;
    let id = id_of(path)?;
    let (created, operation, body) = state
        .store
        .write(|tx| {
            Box::pin(async {
                group(tx, &id).await?;
                let definition = definition(tx, &id).await?;
                let found = tx.get::<ImageVersion>(&id.to_string()).await?;
                let body = match (&body, &found) {
                    (Write::Put(body), _) => body.clone(),
                    (Write::Patch(patch), Some(found)) => {
                        arm::apply_patch(render(found, Expand::default())?, patch.clone())
                    }
                    (Write::Patch(_), None) => return Err(missing(tx, &id).await?),
                };
                let parsed = arm::image_version::parse(body, version)?;
                check_regions(state, &parsed.data)?;
                let (created, document, job) = match found {
                    None => {
                        let document = create(tx, state, &definition, name, parsed).await?;
                        (true, document, JobKind::CreateImageVersion)
                    }
                    Some(found) => {
                        let (document, job) = update(tx, state, found, parsed).await?;
                        (false, document, job)
                    }
                };
                let operation = begin(tx, &document.id, &document.location, "imageVersions.write").await?;
                let (id, operation_id) = (&document.id, Some(operation.id.as_str()));
                if job == JobKind::CreateImageVersion {
                    let payload = create_image_version::Payload { version: id.clone() };
                    jobs::enqueue(tx, job, &payload, id, operation_id).await?;
                } else {
                    let payload = replicate_image_version::Payload { version: id.clone(), from: None };
                    jobs::enqueue(tx, job, &payload, id, operation_id).await?;
                }
                Ok::<_, ApiError>((created, operation, render(&document, Expand::default())?))
            })
        })
        .await?;
    Ok(answer(state, created, &operation, version, body))
}

fn check_regions(state: &AppState, spec: &ImageVersionSpec) -> Result<(), ApiError> {
    check_region(state, &spec.location, &GALLERY_IMAGE_VERSIONS, "location")?;
    let target = "properties.publishingProfile.targetRegions";
    let mut regions = spec.publishing.target_regions.iter();
    regions.try_for_each(|wanted| check_region(state, &wanted.region, &GALLERY_IMAGE_VERSIONS, target))?;
    Ok(check_copies(&state.config, &spec.publishing)?)
}

async fn definition(tx: &mut Tx<'_>, id: &ResourceId) -> Result<Document<ImageDefinition>, ApiError> {
    let above = id.parent().ok_or_else(|| ApiError::internal("a version's id without a definition"))?;
    match tx.get::<ImageDefinition>(&above.to_string()).await? {
        Some(definition) => Ok(definition),
        // Names the outermost that is missing: the gallery, or the definition.
        None => Err(missing(tx, id).await?),
    }
}

async fn create(
    tx: &mut Tx<'_>,
    state: &AppState,
    definition: &Document<ImageDefinition>,
    name: VersionName,
    parsed: Parsed<ImageVersionSpec>,
) -> Result<Document<ImageVersion>, ApiError> {
    let now = tx.now().await?;
    parsed.data.check(now)?;
    let location = parsed.data.location.to_string();
    let version = ImageVersion::create(name, parsed.data, now);
    let id = format!("{}/versions/{name}", definition.id);
    let mut document = Document::new(&id, &location, column_state(&version.state), version)?;
    document.extra = parsed.extra;
    // The job looks again: a source may go away in between.
    source_disks(tx, state, &document).await?;
    tx.insert(&mut document).await?;
    Ok(document)
}

/// What a PUT over a version changes, and the job that carries it out.
async fn update(
    tx: &mut Tx<'_>,
    state: &AppState,
    mut found: Document<ImageVersion>,
    parsed: Parsed<ImageVersionSpec>,
) -> Result<(Document<ImageVersion>, JobKind), ApiError> {
    let before = found.data.spec.publishing.end_of_life;
    let spec = found.data.updated_spec(parsed.data)?;
    // A date that stays may pass; only a new one must be ahead.
    let now = if spec.publishing.end_of_life == before { DateTime::<Utc>::MIN_UTC } else { tx.now().await? };
    spec.check(now)?;
    let targets: Vec<Region> =
        spec.publishing.target_regions.iter().map(|target| target.region.clone()).collect();
    let start_again = is_nowhere(&found.data);
    found.data.spec = spec;
    found.extra = parsed.extra;
    found.data.state = match start_again {
        true => VersionState::Creating,
        false => found.data.state.clone().retarget(&targets)?,
    };
    found.state = column_state(&found.data.state);
    if start_again {
        source_disks(tx, state, &found).await?;
    }
    tx.update(&mut found).await?;
    wanted_placements(tx, &found).await?;
    let job = if start_again { JobKind::CreateImageVersion } else { JobKind::ReplicateImageVersion };
    Ok((found, job))
}

/// Whether a version failed before any region had its bytes, and can be made again from its source.
fn is_nowhere(version: &ImageVersion) -> bool {
    let failed = matches!(version.state, VersionState::Failed { .. });
    let from_run = matches!(version.spec.source, Some(VersionSource::ImageTemplate(_)));
    failed && !from_run && version.state.regions().all(|(_, state)| *state != RegionReplication::Completed)
}

async fn get(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &GALLERY_IMAGE_VERSIONS)?;
    let expand = Expand::parse(query.get("$expand"))?;
    let id = id_of(&path)?;
    let document = state.store.read(|tx| Box::pin(async { find::<ImageVersion>(tx, &id).await })).await?;
    Ok(Json(render(&document, expand)?))
}

async fn list(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &GALLERY_IMAGE_VERSIONS)?;
    let text = path.text();
    let above = ResourceId::parse(text.rsplit_once('/').map_or("", |(above, _)| above))?;
    let filter = Filter { parent: Some(above.to_string()), ..Filter::default() };
    page(&state, &path, &query, filter, Some(&above), |document| render(document, Expand::default())).await
}

/// Its bytes are released by a job. Asking again while it runs gives the same operation.
async fn delete(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    check_version(&state, &version, &GALLERY_IMAGE_VERSIONS)?;
    let id = id_of(&path)?;
    let operation = state
        .store
        .write(|tx| {
            Box::pin(async {
                group(tx, &id).await?;
                let Some(mut found) = tx.get::<ImageVersion>(&id.to_string()).await? else { return Ok(None) };
                let mut running = tx.operations_in_progress(&found.id).await?.into_iter();
                if let Some(running) = running.find(|operation| operation.kind == DELETE) {
                    return Ok(Some(running));
                }
                found.data.check_delete(tx.now().await?)?;
                let operation = begin(tx, &found.id, &found.location, DELETE).await?;
                start_deleting(tx, &mut found, Some(&operation.id)).await?;
                Ok::<_, ApiError>(Some(operation))
            })
        })
        .await?;
    Ok(deleted(&state, operation.as_ref(), &version))
}

/// Deletes a version as part of its resource group's deletion.
///
/// # Errors
/// [`StoreError::Referenced`] while something uses it, or its safety profile keeps it.
pub(crate) async fn begin_delete(tx: &mut Tx<'_>, key: &str) -> Result<Begun, StoreError> {
    let Some(mut found) = tx.get::<ImageVersion>(key).await? else { return Ok(Begun::Deleted) };
    if let Err(violation) = found.data.check_delete(tx.now().await?) {
        return Err(StoreError::Referenced {
            key: found.key.clone(),
            by: found.key,
            kind: violation.message,
        });
    }
    start_deleting(tx, &mut found, None).await?;
    Ok(Begun::Working)
}

/// Marks a version as going away, asks what works on it to stop, and enqueues the job that ends it, unless there is
/// one.
async fn start_deleting(
    tx: &mut Tx<'_>,
    found: &mut Document<ImageVersion>,
    operation: Option<&str>,
) -> Result<(), StoreError> {
    if let Some(link) = tx.links_to(&found.id).await?.into_iter().next() {
        return Err(StoreError::Referenced { key: found.key.clone(), by: link.from, kind: link.kind });
    }
    found.data.state = found.data.state.clone().delete();
    found.state = column_state(&found.data.state);
    tx.update(found).await?;
    for job in tx.unfinished_jobs(&found.id).await? {
        if job.kind != JobKind::DeleteImageVersion.as_str() {
            tx.request_cancel(&job.id).await?;
        }
    }
    let payload = delete_image_version::Payload { version: found.id.clone() };
    jobs::enqueue(tx, JobKind::DeleteImageVersion, &payload, &found.id, operation).await?;
    Ok(())
}

fn render(document: &Document<ImageVersion>, expand: Expand) -> Result<Value, ApiError> {
    let id = ResourceId::parse(&document.id)?;
    let context = Context { id: &id, extra: &document.extra };
    Ok(arm::image_version::render(&document.data, expand, &context))
}

#[cfg(test)]
mod tests;
