//! Brings an image version to every target region.
//!
//! ```text
//!   document: Replicating {regions} ─▶ drop regions that were taken out ─▶ fill the others, a few at a time
//!                                                                            │ each: blocks, then the reference,
//!                                                                            ▼ then Completed in the document
//!                                                       last one done: Ready or Failed, operation and job together
//! ```
//!
//! A region is Completed only after its store holds the version's reference, and the document is the only record
//! of what is done, so a run that was cut off is simply run again: what is there is found and not sent twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use content::ManifestId;
use futures::StreamExt;
use futures::future::BoxFuture;
use model::image_version::{ImageVersion, RegionReplication, VersionContent, VersionState};
use model::{Failure, ManifestRef, Region};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use store::{Document, Job, OperationEnd, Placement, PlacementState, StoreError, Tx};

use super::context::{FailureKind, JobContext, JobFailure};
use crate::AppState;
use crate::api::image_versions::{column_state, wanted_placements};
use crate::fabric::FabricError;
use crate::http::error::chain;

/// Regions that are filled at the same time.
const REGIONS_AT_A_TIME: usize = 4;
/// Between two reports of progress into the document.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How often the job is tried before a region that cannot be filled is given up.
const REGION_ATTEMPTS_MAX: u32 = 4;
/// Azure's code for it, as the model writes it too.
const CODE: &str = "GalleryImageReplicationFailed";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the version.
    pub(crate) version: String,
    /// Region whose store has the bytes under somebody else's reference. `None`: only the version's own regions do.
    pub(crate) from: Option<Region>,
}

/// The name under which a version holds its bytes in every region's store.
pub(crate) fn version_reference(version_id: &str) -> String {
    let hash = Sha256::digest(store::key_of(version_id).as_bytes());
    format!("version-{}", hex::encode(&hash[..16]))
}

/// The content store's id of a manifest that a document names.
pub(crate) fn manifest_id(manifest: &ManifestRef) -> Result<ManifestId, JobFailure> {
    manifest.as_str().parse().map_err(|_| {
        JobFailure::permanent(
            "InternalServerError",
            format!("'{manifest}' is no manifest of the content store"),
        )
    })
}

/// The manifests of all disks.
pub(super) fn manifests(content: &VersionContent) -> Result<Vec<ManifestId>, JobFailure> {
    let disks = std::iter::once(&content.os_disk).chain(content.data_disks.values());
    disks.map(|disk| manifest_id(&disk.manifest)).collect()
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { version, from } = context.payload()?;
    bring_everywhere(&context, &version, from).await
}

/// What there is to do.
struct Work {
    /// Id of the version as written.
    version: String,
    manifests: Vec<ManifestId>,
    /// Where the bytes may be, likeliest first.
    sources: Vec<Region>,
    missing: Vec<Region>,
    /// Placements in regions that are no targets any more.
    dropped: Vec<Placement>,
}

/// The whole job, for a version whose bytes are in `from` or in one of its regions. Ends operation and job.
pub(super) async fn bring_everywhere(
    context: &JobContext,
    version: &str,
    from: Option<Region>,
) -> Result<(), JobFailure> {
    let Some(work) = look(context, version, from).await? else { return Ok(()) };
    drop_regions(context, &work).await?;
    if work.missing.is_empty() {
        record(context, &work.version, Change::Nothing).await?;
        return Ok(());
    }
    let source = source(context, &work).await?;
    fill_all(context, &work, &source).await
}

async fn look(context: &JobContext, version: &str, from: Option<Region>) -> Result<Option<Work>, JobFailure> {
    let found = context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let Some(document) = tx.get::<ImageVersion>(version).await? else { return Ok(None) };
                wanted_placements(tx, &document).await?;
                let placements = tx.placements(&document.id).await?;
                Ok::<_, StoreError>(Some((document, placements)))
            })
        })
        .await?;
    let Some((document, placements)) = found else { return Err(preempted(version)) };
    let VersionState::Replicating { content, regions, .. } = &document.data.state else {
        return match document.data.state {
            VersionState::Deleting { .. } => Err(preempted(version)),
            // An earlier attempt came to the end.
            _ => Ok(None),
        };
    };
    let done = |state: &RegionReplication| *state == RegionReplication::Completed;
    let mut sources: Vec<Region> = from.into_iter().collect();
    sources.extend(regions.iter().filter(|(_, state)| done(state)).map(|(region, _)| region.clone()));
    Ok(Some(Work {
        manifests: manifests(content)?,
        sources,
        missing: regions.iter().filter(|(_, state)| !done(state)).map(|(region, _)| region.clone()).collect(),
        dropped: placements
            .into_iter()
            .filter(|placement| !regions.keys().any(|region| region.as_str() == placement.region))
            .collect(),
        version: document.id,
    }))
}

fn preempted(version: &str) -> JobFailure {
    let message = format!("The image version {version} was deleted while it was being replicated.");
    JobFailure::permanent("OperationPreempted", message)
}

/// Lets go of the bytes in regions that were taken out of the profile. One that is away must not stop the others:
/// its placement stays, and is looked at again by the next update and by the deletion.
async fn drop_regions(context: &JobContext, work: &Work) -> Result<(), JobFailure> {
    for placement in &work.dropped {
        if let Err(error) = release(&context.state, &placement.region, &work.manifests, &work.version).await {
            tracing::warn!(
                version = work.version,
                region = placement.region,
                error = chain(&error),
                "not released"
            );
            continue;
        }
        context
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    context.hold(tx).await?;
                    tx.delete_placement(&work.version, &placement.region).await
                })
            })
            .await?;
    }
    Ok(())
}

/// Removes a version's references in a region's store. A region that is not configured any more has nothing of ours.
pub(super) fn release<'a>(
    state: &'a AppState,
    region: &'a str,
    manifests: &'a [ManifestId],
    version: &'a str,
) -> BoxFuture<'a, Result<(), FillError>> {
    Box::pin(release_in(state, region, manifests, version))
}

async fn release_in(
    state: &AppState,
    region: &str,
    manifests: &[ManifestId],
    version: &str,
) -> Result<(), FillError> {
    let Ok(region) = Region::parse(region) else { return Ok(()) };
    let store = match state.fabric.store(&region).await {
        Ok(store) => store,
        Err(FabricError::UnknownRegion(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for manifest in manifests {
        store.remove_ref(manifest, &version_reference(version)).await?;
    }
    Ok(())
}

/// Why a region could not be filled or released.
#[derive(Debug, thiserror::Error)]
pub(super) enum FillError {
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error(transparent)]
    Content(#[from] content::Error),
}

impl FillError {
    /// Trying again does not help.
    fn is_permanent(&self) -> bool {
        use content::Error;
        let source: &Error = match self {
            Self::Fabric(FabricError::UnknownRegion(_)) => return true,
            Self::Fabric(FabricError::Store { source, .. }) => source,
            Self::Content(source) => source,
            Self::Fabric(_) => return false,
        };
        matches!(source, Error::Location { .. } | Error::Format { .. } | Error::OwnedByAnother { .. })
    }
}

/// The first store that has every disk.
async fn source(context: &JobContext, work: &Work) -> Result<content::Store, JobFailure> {
    let mut reasons = Vec::new();
    for region in &work.sources {
        let complete = async {
            let store = context.state.fabric.store(region).await?;
            for manifest in &work.manifests {
                if !store.has_manifest(manifest).await? {
                    return Ok(None);
                }
            }
            Ok::<_, FillError>(Some(store))
        };
        match complete.await {
            Ok(Some(store)) => return Ok(store),
            Ok(None) => reasons.push(format!("region '{region}' does not have it")),
            Err(error) => reasons.push(chain(&error)),
        }
    }
    let message = format!(
        "The content of image version {} is in no region that can be read now ({}).",
        work.version,
        reasons.join("; ")
    );
    match context.job.attempts >= REGION_ATTEMPTS_MAX {
        true => Err(JobFailure::permanent(CODE, message)),
        false => Err(JobFailure::transient(CODE, message)),
    }
}

/// How far each region is, in percent; written by the copying tasks, read by the reports.
type Percents = BTreeMap<Region, Arc<AtomicU8>>;

async fn fill_all(context: &JobContext, work: &Work, source: &content::Store) -> Result<(), JobFailure> {
    let percents: Percents = work.missing.iter().map(|region| (region.clone(), Arc::default())).collect();
    let mut tasks: Vec<BoxFuture<'_, (&Region, Result<u64, FillError>)>> = Vec::new();
    for (region, percent) in &percents {
        tasks.push(Box::pin(
            async move { (region, fill(&context.state, work, source, region, percent).await) },
        ));
    }
    let mut filling = futures::stream::iter(tasks).buffer_unordered(REGIONS_AT_A_TIME);
    let mut reports = tokio::time::interval(REPORT_INTERVAL);
    let mut later: Option<JobFailure> = None;
    loop {
        // In this order: nothing may be reported after the last region has ended the job.
        let next = tokio::select! {
            biased;
            () = context.cancel.cancelled() => return Err(JobFailure::canceled()),
            () = context.stopping.cancelled() => {
                return Err(JobFailure::transient("InternalServerError", "the service stops"));
            }
            next = filling.next() => next,
            _ = reports.tick() => {
                record(context, &work.version, Change::Progress(&percents)).await?;
                continue;
            }
        };
        let Some((region, filled)) = next else { break };
        match filled {
            Ok(bytes_moved) => record(context, &work.version, Change::Filled { region, bytes_moved }).await?,
            Err(error) if error.is_permanent() || context.job.attempts >= REGION_ATTEMPTS_MAX => {
                let details = chain(&error);
                record(context, &work.version, Change::GivenUp { region, details }).await?;
            }
            Err(error) => {
                let message = format!("region '{region}' cannot be filled now: {}", chain(&error));
                later = Some(JobFailure::transient(CODE, message));
            }
        }
    }
    later.map_or(Ok(()), Err)
}

/// Copies what a region lacks and refers to it. Returns the bytes that were sent.
async fn fill(
    state: &AppState,
    work: &Work,
    source: &content::Store,
    region: &Region,
    percent: &AtomicU8,
) -> Result<u64, FillError> {
    let target = state.fabric.store(region).await?;
    let reference = version_reference(&work.version);
    let mut bytes_moved = 0;
    for (index, manifest) in work.manifests.iter().enumerate() {
        if target.id() == source.id() {
            target.add_ref(manifest, &reference).await?;
            continue;
        }
        let report = |progress: content::Progress| {
            // Disks count alike, whatever their size: this is for people. 100 comes with Completed.
            let disk = progress.done_bytes.saturating_mul(100) / progress.total_bytes.max(1);
            let all = (index as u64 * 100 + disk) / work.manifests.len() as u64;
            percent.store(all.min(99) as u8, Ordering::Relaxed);
        };
        bytes_moved += content::replicate(source, &target, manifest, &reference, report).await?.bytes_moved;
    }
    Ok(bytes_moved)
}

/// A change to the document and the placements.
enum Change<'a> {
    /// None: an update that had nothing to copy comes to its end.
    Nothing,
    Progress(&'a Percents),
    Filled {
        region: &'a Region,
        bytes_moved: u64,
    },
    GivenUp {
        region: &'a Region,
        details: String,
    },
}

/// Writes a change; when it was the last, ends operation and job with it.
async fn record(context: &JobContext, version: &str, change: Change<'_>) -> Result<(), JobFailure> {
    let written: Result<(), RecordError> = context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let Some(mut document) = tx.get::<ImageVersion>(version).await? else {
                    return Err(RecordError::Refused(preempted(version)));
                };
                if matches!(document.data.state, VersionState::Deleting { .. }) {
                    return Err(RecordError::Refused(preempted(version)));
                }
                let before = document.data.state.clone();
                document.data.state = apply(tx, &document, &change).await?;
                if document.data.state == before {
                    return Ok(());
                }
                document.state = column_state(&document.data.state);
                tx.update(&mut document).await?;
                match &document.data.state {
                    VersionState::Ready { .. } => {
                        context.finish_in(tx, &OperationEnd::Succeeded(None)).await?
                    }
                    VersionState::Failed { failure, .. } => {
                        let error = serde_json::json!({ "code": failure.code, "message": failure.message });
                        context.finish_in(tx, &OperationEnd::Failed(error)).await?;
                    }
                    _ => {}
                }
                Ok(())
            })
        })
        .await;
    written.map_err(|error| match error {
        RecordError::Store(error) => error.into(),
        RecordError::Refused(failure) => failure,
    })
}

enum RecordError {
    Store(StoreError),
    Refused(JobFailure),
}

impl From<StoreError> for RecordError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The state after a change, with its placement written.
async fn apply(
    tx: &mut Tx<'_>,
    document: &Document<ImageVersion>,
    change: &Change<'_>,
) -> Result<VersionState, RecordError> {
    let mut state = document.data.state.clone();
    let mut placements = tx.placements(&document.id).await?;
    let mut placement = |region: &Region| {
        placements
            .iter()
            .position(|known| known.region == region.as_str())
            .map(|at| placements.swap_remove(at))
    };
    let refuse = |error: model::InvalidTransition| {
        RecordError::Refused(JobFailure::permanent(
            "OperationPreempted",
            format!("{error}: it was changed meanwhile"),
        ))
    };
    match change {
        Change::Nothing => state = state.settle(),
        Change::Progress(percents) => {
            for (region, percent) in *percents {
                let progress = percent.load(Ordering::Relaxed);
                let replicating =
                    state.regions().find(|(known, _)| *known == region).map(|(_, state)| state.clone());
                let known = match replicating {
                    Some(RegionReplication::Replicating { progress_percent }) => progress_percent,
                    _ => continue,
                };
                if known >= progress {
                    continue;
                }
                state = state
                    .region(region, RegionReplication::Replicating { progress_percent: progress })
                    .map_err(refuse)?;
                if let Some(found) = placement(region) {
                    tx.put_placement(&Placement { state: PlacementState::Replicating, progress, ..found })
                        .await?;
                }
            }
        }
        Change::Filled { region, bytes_moved } => {
            state = state.region(region, RegionReplication::Completed).map_err(refuse)?;
            if let Some(found) = placement(region) {
                let bytes_moved = found.bytes_moved.saturating_add(*bytes_moved);
                tx.put_placement(&Placement {
                    state: PlacementState::Completed,
                    progress: 100,
                    bytes_moved,
                    ..found
                })
                .await?;
            }
        }
        Change::GivenUp { region, details } => {
            state = state
                .region(region, RegionReplication::Failed { details: details.clone() })
                .map_err(refuse)?;
            if let Some(found) = placement(region) {
                let failed = PlacementState::Failed { error: details.clone() };
                tx.put_placement(&Placement { state: failed, ..found }).await?;
            }
        }
    }
    Ok(state)
}

/// The version fails as a whole; regions that are complete still serve.
pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<ImageVersion>(key).await? else { return Ok(()) };
    // Canceled is what a deletion does: the document is the deletion's then.
    if failure.kind == FailureKind::Canceled {
        return Ok(());
    }
    let why = Failure::new(failure.code.clone(), failure.message.clone());
    if let Ok(state) = document.data.state.clone().fail(why) {
        document.data.state = state;
        document.state = column_state(&document.data.state);
        tx.update(&mut document).await?;
    }
    Ok(())
}
