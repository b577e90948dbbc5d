//! What a template's run does with its result: a version of its own, and the wait until it is everywhere.

use std::time::Duration;

use arm::ArmError;
use futures::future::BoxFuture;
use model::image_definition::ImageDefinition;
use model::image_template::TemplateTargetRegion;
use model::image_version::{
    ImageVersion, ImageVersionSpec, PublishingProfile, RegionReplication, SafetyProfile, StorageAccountType,
    TargetRegion, VersionContent, VersionSource, VersionState,
};
use model::latest::{VersionScheme, next_version};
use model::{Region, ResourceRef, Tags, VersionName};
use store::{Document, Filter, MAX_PAGE_ITEMS, Tx};
use tokio_util::sync::CancellationToken;

use super::{check_copies, column_state, wanted_placements};
use crate::http::error::{ApiError, chain};
use crate::jobs::replicate_image_version::Payload;
use crate::jobs::{self, JobKind};
use crate::{AppState, Config};

/// Between two looks at a version that is on its way.
const PAUSE: Duration = Duration::from_millis(250);
/// Most versions of one definition (RULES.md 2B: 10,000 of a subscription in a region).
const VERSIONS_MAX: usize = 10_000;

/// A version to publish. Its bytes are in the store of `home`, under a reference that the caller holds until the
/// version is ready.
#[derive(Debug, Clone)]
pub(crate) struct NewVersion {
    /// Id of the image definition, in any case.
    pub(crate) definition_id: String,
    /// `None`: the next number, as `Latest` with `major` counts.
    pub(crate) name: Option<VersionName>,
    /// `None`: of all majors.
    pub(crate) major: Option<u32>,
    /// Region whose store has the bytes: where the run was.
    pub(crate) home: Region,
    /// As `Placement::target_regions` gives them; never empty.
    pub(crate) targets: Vec<TemplateTargetRegion>,
    /// Whether `latest` skips it.
    pub(crate) exclude_from_latest: bool,
    /// The distributor's `artifactTags`.
    pub(crate) tags: Tags,
    /// Id of the template.
    pub(crate) source_template: ResourceRef,
    /// The bytes.
    pub(crate) content: VersionContent,
}

/// Inserts the version and enqueues its replication, in the caller's transaction: the number is chosen in it, so
/// that two runs never get the same. Returns the version's id as written. No operation goes with it: the run has
/// its own.
///
/// # Errors
/// 404 when the definition is gone, 409 when the name is taken, 400 when the regions break a rule.
pub(crate) async fn publish_from_run(
    tx: &mut Tx<'_>,
    config: &Config,
    new: NewVersion,
) -> Result<String, ApiError> {
    let definition = tx
        .get::<ImageDefinition>(&new.definition_id)
        .await?
        .ok_or_else(|| ArmError::parent_resource_not_found(last(&new.definition_id)))?;
    let name = match new.name {
        Some(name) => name,
        None => {
            let scheme = VersionScheme::Latest { major: new.major };
            next_version(existing_versions(tx, &definition.id).await?, scheme, None)?
        }
    };
    let id = format!("{}/versions/{name}", definition.id);
    let spec = spec(&new, &definition.data);
    let now = tx.now().await?;
    spec.check(now)?;
    check_copies(config, &spec.publishing)?;
    let regions = spec.publishing.target_regions.iter().map(|target| {
        // Also the region that has the bytes: they are the version's own only under its own reference.
        (target.region.clone(), RegionReplication::Replicating { progress_percent: 0 })
    });
    let state =
        VersionState::Replicating { content: new.content, regions: regions.collect(), updating: false };
    let version = ImageVersion { state, ..ImageVersion::create(name, spec, now) };
    let location = version.spec.location.to_string();
    let mut document = Document::new(&id, &location, column_state(&version.state), version)?;
    tx.insert(&mut document).await?;
    wanted_placements(tx, &document).await?;
    let payload = Payload { version: document.id.clone(), from: Some(new.home) };
    jobs::enqueue(tx, JobKind::ReplicateImageVersion, &payload, &document.id, None).await?;
    Ok(document.id)
}

/// The version's home is the run's region if it goes there, else the definition's, else the first that it goes to:
/// a version's home must be among its targets (RULES.md 2D, 17).
fn spec(new: &NewVersion, definition: &ImageDefinition) -> ImageVersionSpec {
    let goes_to = |region: &Region| new.targets.iter().any(|target| target.region == *region);
    let location = [&new.home, &definition.spec.location].into_iter().find(|region| goes_to(region));
    let location = location.or(new.targets.first().map(|target| &target.region)).unwrap_or(&new.home).clone();
    let target_regions = new.targets.iter().map(|target| TargetRegion {
        region: target.region.clone(),
        replica_count: Some(target.replica_count),
        storage_account_type: target.storage_account_type,
        exclude_from_latest: None,
    });
    ImageVersionSpec {
        location,
        tags: new.tags.clone(),
        publishing: PublishingProfile {
            target_regions: target_regions.collect(),
            replica_count: 1,
            exclude_from_latest: new.exclude_from_latest,
            storage_account_type: StorageAccountType::StandardLrs,
            replication_mode: None,
            end_of_life: None,
        },
        source: Some(VersionSource::ImageTemplate(new.source_template.clone())),
        safety: SafetyProfile::default(),
    }
}

/// The names of all versions of a definition, those included that are being deleted: their names are still taken.
///
/// # Errors
/// 409 beyond 10,000 versions; the database's own.
pub(crate) async fn existing_versions(
    tx: &mut Tx<'_>,
    definition_id: &str,
) -> Result<Vec<VersionName>, ApiError> {
    Ok(all_versions(tx, definition_id).await?.into_iter().map(|version| version.data.name).collect())
}

/// All versions of a definition.
pub(super) async fn all_versions(
    tx: &mut Tx<'_>,
    definition_id: &str,
) -> Result<Vec<Document<ImageVersion>>, ApiError> {
    let mut filter =
        Filter { parent: Some(definition_id.to_owned()), limit: MAX_PAGE_ITEMS, ..Filter::default() };
    let mut versions = Vec::new();
    loop {
        let page = tx.list::<ImageVersion>(&filter).await?;
        versions.extend(page.items);
        if versions.len() > VERSIONS_MAX {
            let message = format!("An image definition has at most {VERSIONS_MAX} versions; delete some.");
            return Err(ApiError::new(409, "QuotaExceeded", message));
        }
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return Ok(versions),
        }
    }
}

/// Waits until a version is in all its regions. Until then the caller must keep its own reference to the bytes.
///
/// # Errors
/// Why it will not be: a region failed, the version was deleted, or `cancel` was cancelled.
pub(crate) fn wait_ready<'a>(
    state: &'a AppState,
    version_id: &'a str,
    cancel: &'a CancellationToken,
) -> BoxFuture<'a, Result<VersionContent, String>> {
    Box::pin(poll_until_ready(state, version_id, cancel))
}

async fn poll_until_ready(
    state: &AppState,
    version_id: &str,
    cancel: &CancellationToken,
) -> Result<VersionContent, String> {
    loop {
        let found = state.store.read(|tx| Box::pin(async { tx.get::<ImageVersion>(version_id).await })).await;
        match found.map_err(|error| chain(&error))?.map(|document| document.data.state) {
            Some(VersionState::Ready { content, .. }) => return Ok(content),
            Some(VersionState::Failed { failure, .. }) => return Err(failure.message),
            Some(VersionState::Creating | VersionState::Replicating { .. }) => {}
            Some(VersionState::Deleting { .. }) | None => {
                return Err(format!(
                    "The image version {version_id} was deleted while it was being published."
                ));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = cancel.cancelled() => return Err("The wait for the image version was canceled.".to_owned()),
        }
    }
}

fn last(id: &str) -> &str {
    id.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}
