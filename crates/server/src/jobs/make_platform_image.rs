//! Makes a platform image on first use, and brings it to the regions that ask for it.
//!
//! ```text
//!   ensure_platform_image ── known and in the region? ── yes ─▶ PlatformContent
//!            ▲                        │ no
//!            └──── operation ended ◀──┴─ one operation and job per recipe; who comes later waits for the same
//! ```
//!
//! Images with equal recipes (the two generations of one disk) share the disk, so everything here is named by
//! the recipe's digest: the setting that remembers the image, the store's reference, the log, the operation.

mod download;
mod log;

use std::path::Path;
use std::time::Duration;

use build::platform::{PlatformImage, Recipe, bootstrap};
use content::ManifestId;
use model::Region;
use model::image_definition::HyperVGeneration;
use model::placement::CopyPlan;
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::{Job, NewOperation, Operation, OperationEnd, OperationFamily, OperationState, StoreError, Tx};

use self::log::{RunLog, logged};
use super::context::{JobContext, JobFailure};
use super::{JobKind, enqueue};
use crate::AppState;
use crate::copies::Bring;
use crate::http::error::chain;

/// Between two looks at an operation that somebody waits for.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a caller asks again after an operation of another caller, for another region, has ended.
const MAX_ROUNDS: usize = 16;

/// Which image, for which region.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) publisher: String,
    pub(crate) offer: String,
    pub(crate) sku: String,
    pub(crate) region: Region,
}

/// A platform image that is in the store of the region that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlatformContent {
    /// Such as "12.0.20261122": the third number is the day on which the disk was made.
    pub(crate) exact_version: String,
    /// Its firmware.
    pub(crate) generation: HyperVGeneration,
    /// Its disk.
    pub(crate) manifest: ManifestId,
    /// Size of the disk in bytes.
    pub(crate) logical_bytes: u64,
}

/// What is remembered of a recipe's disk, as a setting.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Day on which it was made, such as "20261122".
    made_on: String,
    pub(crate) manifest: ManifestId,
    logical_bytes: u64,
    /// Regions whose stores were given it.
    pub(crate) regions: Vec<Region>,
}

impl Record {
    /// The version of an image made by this recipe.
    pub(crate) fn version_of(&self, image: &PlatformImage) -> String {
        format!("{}.{}", image.version, self.made_on)
    }
}

/// The image in the store of `region`: at once if it is there, else once the operation that makes or brings it
/// has ended. `version` is `latest` or the exact version that was made.
///
/// # Errors
/// Cause and remedy, for a client: no such image or version, or why it could not be made.
pub(crate) async fn ensure_platform_image(
    state: &AppState,
    publisher: &str,
    offer: &str,
    sku: &str,
    version: &str,
    region: &Region,
) -> Result<PlatformContent, String> {
    let image = check_available(state, publisher, offer, sku, version).await?;
    for _ in 0..MAX_ROUNDS {
        let record = read_record(state, &image.recipe_digest()).await.map_err(|error| chain(&error))?;
        if let Some(record) = record {
            check_version(image, &record.version_of(image), version)?;
            let holding = state.fabric.holding(region, &record.manifest).await;
            if !holding.map_err(|error| chain(&error))?.is_empty() {
                return Ok(PlatformContent {
                    exact_version: record.version_of(image),
                    generation: generation(image),
                    manifest: record.manifest,
                    logical_bytes: record.logical_bytes,
                });
            }
        }
        let operation = state
            .store
            .write(|tx| Box::pin(async { begin(tx, state, image, region).await }))
            .await
            .map_err(|error| chain(&error))?;
        ended(state, &operation.id).await?;
    }
    Err(format!(
        "The platform image {publisher}:{offer}:{sku} did not come to region '{region}': other regions kept asking for it; try again."
    ))
}

/// The image's entry of the catalogue, if it has this version.
///
/// # Errors
/// Cause and remedy: no such image, or no such version of it.
pub(crate) async fn check_available<'s>(
    state: &'s AppState,
    publisher: &str,
    offer: &str,
    sku: &str,
    version: &str,
) -> Result<&'s PlatformImage, String> {
    let Some(image) = state.fabric.catalog().find(publisher, offer, sku) else {
        let shown: String = format!("{publisher}:{offer}:{sku}:{version}")
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
        return Err(format!(
            "The platform image '{shown}' is not available. Verify that all fields in the storage profile are correct; \
             the catalogue of this service lists what there is."
        ));
    };
    let there = available_version(state, image).await.map_err(|error| chain(&error))?;
    check_version(image, &there, version)?;
    Ok(image)
}

/// The one version that there is: the one that was made, or the one that would be made today.
///
/// # Errors
/// The database's own.
pub(crate) async fn available_version(state: &AppState, image: &PlatformImage) -> Result<String, StoreError> {
    let record = read_record(state, &image.recipe_digest()).await?;
    Ok(record
        .map_or_else(|| format!("{}.{}", image.version, today(state)), |record| record.version_of(image)))
}

fn today(state: &AppState) -> String {
    state.now().format("%Y%m%d").to_string()
}

fn check_version(image: &PlatformImage, there: &str, version: &str) -> Result<(), String> {
    if version.eq_ignore_ascii_case("latest") || version == there {
        return Ok(());
    }
    Err(no_version(image, version, &format!("there is {there}")))
}

fn no_version(image: &PlatformImage, version: &str, reason: &str) -> String {
    let PlatformImage { publisher, offer, sku, .. } = image;
    let shown: String = version.chars().filter(|c| !c.is_control()).take(80).collect();
    format!("The platform image '{publisher}:{offer}:{sku}:{shown}' is not available: {reason}.")
}

pub(crate) fn generation(image: &PlatformImage) -> HyperVGeneration {
    if image.hyper_v_generation == "V2" { HyperVGeneration::V2 } else { HyperVGeneration::V1 }
}

/// Waits for the end of an operation.
async fn ended(state: &AppState, operation: &str) -> Result<(), String> {
    loop {
        let found = state.store.read(|tx| Box::pin(async { tx.operation(operation).await })).await;
        match found.map_err(|error: StoreError| chain(&error))?.map(|operation| operation.state) {
            Some(OperationState::InProgress) => tokio::time::sleep(PAUSE).await,
            Some(OperationState::Ended { end: OperationEnd::Succeeded(_), .. }) => return Ok(()),
            Some(OperationState::Ended {
                end: OperationEnd::Failed(error) | OperationEnd::Canceled(error),
                ..
            }) => return Err(error["message"].as_str().unwrap_or_default().to_owned()),
            None => return Err(format!("operation {operation} is gone")),
        }
    }
}

/// Begins making the image, or gives the operation that is making it already.
pub(crate) async fn begin(
    tx: &mut Tx<'_>,
    state: &AppState,
    image: &PlatformImage,
    region: &Region,
) -> Result<Operation, StoreError> {
    let resource_id = operation_resource(state, &image.recipe_digest());
    if let Some(running) = tx.operations_in_progress(&resource_id).await?.into_iter().next() {
        return Ok(running);
    }
    let operation = tx
        .begin_operation(NewOperation {
            resource_id: resource_id.clone(),
            kind: "platformImages.make".to_owned(),
            family: OperationFamily::Compute,
            location: region.to_string(),
        })
        .await?;
    let payload = Payload {
        publisher: image.publisher.clone(),
        offer: image.offer.clone(),
        sku: image.sku.clone(),
        region: region.clone(),
    };
    enqueue(tx, JobKind::MakePlatformImage, &payload, &resource_id, Some(&operation.id)).await?;
    Ok(operation)
}

/// What operations and jobs of a recipe are about: no resource, but an id by which they are found. While
/// `operations_in_progress` lists one for it, the log [`run_id`] grows.
pub(crate) fn operation_resource(state: &AppState, digest: &str) -> String {
    format!("/subscriptions/{}/tintypePlatformImages/{digest}", state.config.subscription_id)
}

/// Name of a recipe's log, and of its reference in the stores.
pub(crate) fn run_id(digest: &str) -> String {
    format!("platform-{digest}")
}

fn setting_key(digest: &str) -> String {
    format!("platform-image/{digest}")
}

/// What is remembered of a recipe's disk, if it was made.
pub(crate) async fn read_record(state: &AppState, digest: &str) -> Result<Option<Record>, StoreError> {
    let key = setting_key(digest);
    let bytes = state.store.read(|tx| Box::pin(async { tx.setting(&key).await })).await?;
    // A record that cannot be read is as good as none: the image is made again.
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { publisher, offer, sku, region } = context.payload()?;
    let catalog = context.state.fabric.catalog();
    let Some(image) = catalog.find(&publisher, &offer, &sku).cloned() else {
        let message = format!("{publisher}:{offer}:{sku} is not in the catalogue any more.");
        return Err(JobFailure::permanent("ImageNotFound", message));
    };
    let digest = image.recipe_digest();
    let log = RunLog::new(run_id(&digest));
    let scratch = context.state.fabric.scratch_dir().join(&digest);
    let work = async {
        let made = provide(&context, &image, &region, &scratch, &log).await;
        if let Err(failure) = &made {
            log.line(&format!("failed: {}", failure.message));
        }
        made
    };
    let done = tokio::select! {
        done = logged(&context, &log, work) => done,
        () = context.stopping.cancelled() => Err(JobFailure::transient("InternalServerError", "the service stops")),
        () = context.cancel.cancelled() => Err(JobFailure::canceled()),
    };
    // What was half made is of no use; the next attempt starts from nothing.
    if let Err(error) = remove(&scratch).await {
        tracing::warn!(path = %scratch.display(), %error, "cannot remove the scratch folder");
    }
    let record = done?;
    let result = json!({
        "publisher": image.publisher, "offer": image.offer, "sku": image.sku, "version": record.version_of(&image),
        "manifest": record.manifest, "logicalBytes": record.logical_bytes, "runId": run_id(&digest),
    });
    let setting = serde_json::to_vec(&record)
        .map_err(|error| JobFailure::permanent("InternalServerError", error.to_string()))?;
    let end = OperationEnd::Succeeded(Some(result));
    context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                tx.set_setting(&setting_key(&digest), &setting).await?;
                context.finish_in(tx, &end).await
            })
        })
        .await?;
    Ok(())
}

/// Brings the image to the region: from another region that has it, else by making it.
async fn provide(
    context: &JobContext,
    image: &PlatformImage,
    region: &Region,
    scratch: &Path,
    log: &RunLog,
) -> Result<Record, JobFailure> {
    let digest = image.recipe_digest();
    let reference = run_id(&digest);
    let fabric = &context.state.fabric;
    if let Some(mut record) = read_record(&context.state, &digest).await? {
        if !fabric.holding(region, &record.manifest).await.map_err(transient)?.is_empty() {
            return Ok(record);
        }
        for from in record.regions.clone().into_iter().filter(|from| from != region) {
            // A region that is away is no obstacle while another has the image.
            let Ok(sources) = fabric.holding(&from, &record.manifest).await else { continue };
            if sources.is_empty() {
                continue;
            }
            log.line(&format!("copying from region '{from}' to '{region}'"));
            let plan = CopyPlan::everywhere(fabric.offers(region).map_err(transient)?, &digest);
            let (manifest, owner) = (&record.manifest, reference.as_str());
            let bring = Bring { fabric, region, plan: &plan, manifest, owner, sources: &sources };
            let progress = |percent| context.report(json!({ "step": "copy", "percent": percent }));
            let brought = bring.run(progress).await.map_err(transient)?;
            log.line(&format!("copied {} bytes", brought.bytes_moved));
            if !record.regions.contains(region) {
                record.regions.push(region.clone());
            }
            fabric.reconcile.notify_one();
            return Ok(record);
        }
        log.line("no region has the image any more; making it again");
    }
    make(context, image, region, scratch, log).await
}

async fn make(
    context: &JobContext,
    image: &PlatformImage,
    region: &Region,
    scratch: &Path,
    log: &RunLog,
) -> Result<Record, JobFailure> {
    let PlatformImage { publisher, offer, sku, .. } = image;
    log.line(&format!(
        "making {publisher}:{offer}:{sku} for region '{region}', attempt {}",
        context.job.attempts
    ));
    context.report(json!({ "step": "make" }));
    remove(scratch).await.map_err(transient)?;
    let disk = match &image.recipe {
        Recipe::Bootstrap(recipe) => {
            bootstrap(recipe, scratch, |line| log.line(line)).await.map_err(|error| {
                // Tools that are missing or fail do so again at once; a mirror that is away shows in their output.
                JobFailure::permanent(
                    "PlatformImageFailed",
                    format!("The image could not be made: {}", chain(&error)),
                )
            })?
        }
        Recipe::Download(recipe) => download::fetch_disk(&context.state, recipe, scratch, log).await?,
    };
    log.line("storing the disk");
    let reference = run_id(&image.recipe_digest());
    let progress = |progress: content::Progress| {
        context.report(
            json!({ "step": "store", "doneBytes": progress.done_bytes, "totalBytes": progress.total_bytes }),
        );
    };
    let mut stored =
        Err(JobFailure::transient("InternalServerError", "the region has no zone that can be used"));
    // In the first zone that takes it; the reconciler brings it to the others.
    for target in context.state.fabric.stores(region).await.map_err(transient)? {
        stored = target.put_raw(&disk, &reference, progress).await.map_err(transient);
        match &stored {
            Ok(_) => break,
            Err(failure) => log.line(&format!("not stored in {}: {}", target.location(), failure.message)),
        }
    }
    let report = stored?;
    context.state.fabric.reconcile.notify_one();
    log.line(&format!("stored as {}", report.manifest));
    Ok(Record {
        made_on: today(&context.state),
        manifest: report.manifest,
        logical_bytes: report.logical_bytes,
        regions: vec![region.clone()],
    })
}

fn transient(error: impl std::error::Error) -> JobFailure {
    JobFailure::transient("InternalServerError", chain(&error))
}

async fn remove(dir: &Path) -> std::io::Result<()> {
    match tokio::fs::remove_dir_all(dir).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Nothing is left: the next caller makes it from the start.
pub(super) async fn failed(_: &mut Tx<'_>, _: &Job, _: &JobFailure) -> Result<(), StoreError> {
    Ok(())
}
