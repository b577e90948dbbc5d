//! Brings an image version to every target region.
//!
//! ```text
//!   document: Replicating {regions} ─▶ drop regions that were taken out ─▶ fill the others, a few at a time
//!                                                                            │ each: blocks, then the reference,
//!                                                                            ▼ then Completed in the document
//!                                                       last one done: Ready or Failed, operation and job together
//! ```
//!
//! A region is Completed only after as many of its zones hold the version's reference as its storage account type needs
//! (`model::placement`), and the document is the only record of what is done, so a run that was cut off is simply run
//! again: what is there is found and not sent twice. What a zone that was away lacks, the reconciler adds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use content::ManifestId;
use futures::StreamExt;
use futures::future::BoxFuture;
use model::image_version::{ImageVersion, PhysicalCopies, RegionReplication, VersionContent, VersionState};
use model::placement::CopyPlan;
use model::{Failure, ManifestRef, Region};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use store::{Document, Job, OperationEnd, Placement, PlacementState, StoreError, Tx};

use super::context::{FailureKind, JobContext, JobFailure};
use crate::AppState;
use crate::api::image_versions::{column_state, copy_plan, wanted_placements};
use crate::copies::{self, Bring, Brought, CopyError};
use crate::http::error::chain;
use crate::reconcile::gc::want_gc;

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
    /// Regions that are complete, and may now want more copies than before.
    complete: Vec<Region>,
    /// How many copies each shall have, and where.
    plans: BTreeMap<Region, Result<CopyPlan, model::Violation>>,
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
    let sources = if work.missing.is_empty() { Vec::new() } else { sources(context, &work).await? };
    top_up(context, &work).await?;
    let filled = match work.missing.is_empty() {
        true => record(context, &work.version, Change::Nothing).await,
        false => fill_all(context, &work, &sources).await,
    };
    // Copies behind those that had to be there, and those that stand where they shall not stay.
    context.state.fabric.reconcile.notify_one();
    filled
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
    let plans = regions.keys().map(|region| {
        (region.clone(), copy_plan(&context.state.config, &document.data, document.parent.as_deref(), region))
    });
    Ok(Some(Work {
        plans: plans.collect(),
        complete: regions.iter().filter(|(_, state)| done(state)).map(|(region, _)| region.clone()).collect(),
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
                    if let Ok(region) = Region::parse(&placement.region) {
                        want_gc(tx, &region).await?;
                    }
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
) -> BoxFuture<'a, Result<(), CopyError>> {
    Box::pin(release_in(state, region, manifests, version))
}

async fn release_in(
    state: &AppState,
    region: &str,
    manifests: &[ManifestId],
    version: &str,
) -> Result<(), CopyError> {
    let Ok(region) = Region::parse(region) else { return Ok(()) };
    for manifest in manifests {
        copies::let_go(&state.fabric, &region, manifest, &version_reference(version)).await?;
    }
    Ok(())
}

/// The stores that have every disk.
async fn sources(context: &JobContext, work: &Work) -> Result<Vec<content::Store>, JobFailure> {
    let (mut found, mut reasons) = (Vec::new(), Vec::new());
    for region in &work.sources {
        let zones = match context.state.fabric.stores(region).await {
            Ok(zones) => zones,
            Err(error) => {
                reasons.push(chain(&error));
                continue;
            }
        };
        for store in zones {
            match has_all(&store, &work.manifests).await {
                Ok(true) => found.push(store),
                Ok(false) => reasons.push(format!("region '{region}' does not have it")),
                Err(error) => reasons.push(chain(&error)),
            }
        }
    }
    if !found.is_empty() {
        return Ok(found);
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

async fn has_all(store: &content::Store, manifests: &[ManifestId]) -> content::Result<bool> {
    for manifest in manifests {
        if !store.has_manifest(manifest).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the further copies of regions that are complete already and stay so: a greater replica count.
async fn top_up(context: &JobContext, work: &Work) -> Result<(), JobFailure> {
    // In a region of one zone there is nothing to add.
    let several = |region: &&Region| {
        work.plans.get(region).is_some_and(|plan| plan.as_ref().is_ok_and(|plan| plan.order.len() > 1))
    };
    for region in work.complete.iter().filter(several) {
        match fill(&context.state, work, &[], region, &AtomicU8::new(0)).await {
            Ok(filled) => record(context, &work.version, Change::ToppedUp { region, filled }).await?,
            Err(error) if error.is_permanent() || context.job.attempts >= REGION_ATTEMPTS_MAX => {
                // The region serves; the reconciler goes on trying.
                tracing::warn!(version = work.version, %region, error = chain(&error), "no further copies");
            }
            Err(error) => {
                let message = format!("region '{region}' cannot be given its copies now: {}", chain(&error));
                return Err(JobFailure::transient(CODE, message));
            }
        }
    }
    Ok(())
}

/// How far each region is, in percent; written by the copying tasks, read by the reports.
type Percents = BTreeMap<Region, Arc<AtomicU8>>;

async fn fill_all(context: &JobContext, work: &Work, sources: &[content::Store]) -> Result<(), JobFailure> {
    let percents: Percents = work.missing.iter().map(|region| (region.clone(), Arc::default())).collect();
    let mut tasks: Vec<BoxFuture<'_, (&Region, Result<Filled, CopyError>)>> = Vec::new();
    for (region, percent) in &percents {
        tasks.push(Box::pin(
            async move { (region, fill(&context.state, work, sources, region, percent).await) },
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
            Ok(filled) => record(context, &work.version, Change::Filled { region, filled }).await?,
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

/// What was done for a region.
#[derive(Debug, Clone, Copy)]
struct Filled {
    bytes_moved: u64,
    copies: PhysicalCopies,
}

/// Copies what a region lacks and refers to it.
async fn fill(
    state: &AppState,
    work: &Work,
    sources: &[content::Store],
    region: &Region,
    percent: &AtomicU8,
) -> Result<Filled, CopyError> {
    let plan = match work.plans.get(region) {
        Some(Ok(plan)) => plan,
        Some(Err(violation)) => return Err(CopyError::Refused(violation.clone())),
        None => return Err(crate::fabric::FabricError::UnknownRegion(region.clone()).into()),
    };
    let owner = version_reference(&work.version);
    let copies = PhysicalCopies { held: plan.wanted, wanted: plan.wanted };
    let mut filled = Filled { bytes_moved: 0, copies };
    for (index, manifest) in work.manifests.iter().enumerate() {
        let report = |disk: u8| {
            // Disks count alike, whatever their size: this is for people. 100 comes with Completed.
            let all = (index * 100 + usize::from(disk)) / work.manifests.len();
            percent.store(all.min(99) as u8, Ordering::Relaxed);
        };
        let bring = Bring { fabric: &state.fabric, region, plan, manifest, owner: &owner, sources };
        let Brought { bytes_moved, held } = bring.run(report).await?;
        filled.bytes_moved += bytes_moved;
        filled.copies.held = filled.copies.held.min(held);
        if plan.read_ahead
            && let Err(error) = copies::read_ahead(&state.fabric, region, manifest).await
        {
            // It is only slower.
            tracing::warn!(%region, error = chain(&error), "an image could not be read ahead");
        }
    }
    Ok(filled)
}

/// A change to the document and the placements.
enum Change<'a> {
    /// None: an update that had nothing to copy comes to its end.
    Nothing,
    Progress(&'a Percents),
    Filled {
        region: &'a Region,
        filled: Filled,
    },
    /// A complete region has the copies that it is to have now.
    ToppedUp {
        region: &'a Region,
        filled: Filled,
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
                let before = (document.data.state.clone(), document.data.copies.clone());
                document.data.state = apply(tx, &document, &change).await?;
                note_copies(&mut document.data, &change);
                if (&document.data.state, &document.data.copies) == (&before.0, &before.1) {
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

/// Keeps what is known of the copies in step with the regions.
fn note_copies(version: &mut ImageVersion, change: &Change<'_>) {
    if let Change::Filled { region, filled } | Change::ToppedUp { region, filled } = change {
        version.copies.insert((*region).clone(), filled.copies);
    }
    let ImageVersion { state, copies, .. } = version;
    copies.retain(|region, _| state.regions().any(|(known, _)| known == region));
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
        Change::Filled { region, filled } => {
            state = state.region(region, RegionReplication::Completed).map_err(refuse)?;
            if let Some(found) = placement(region) {
                let bytes_moved = found.bytes_moved.saturating_add(filled.bytes_moved);
                tx.put_placement(&Placement {
                    state: PlacementState::Completed,
                    progress: 100,
                    bytes_moved,
                    ..found
                })
                .await?;
            }
        }
        Change::ToppedUp { region, filled } if filled.bytes_moved > 0 => {
            if let Some(found) = placement(region) {
                let bytes_moved = found.bytes_moved.saturating_add(filled.bytes_moved);
                tx.put_placement(&Placement { bytes_moved, ..found }).await?;
            }
        }
        Change::ToppedUp { .. } => {}
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
