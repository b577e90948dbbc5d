//! Publishes a built image to every target, and waits until it is there: a run ends when its versions and images are ready.

mod vhd;

use std::collections::BTreeSet;

use arm::resource_id::image_definition_id;
use build::Stream;
use content::{ManifestId, Store};
use futures::FutureExt;
use model::content::DiskContent;
use model::image_template::{Distributor, DistributorKind};
use model::image_version::VersionContent;
use model::latest::{VersionScheme, next_version};
use model::placement::CopyPlan;
use model::{ManifestRef, Region, ResourceRef, RunOutputName, VersionName};
use store::{StoreError, Tx};

pub(super) use self::vhd::PublishedVhd;
use super::journal::Journal;
use super::{Built, Run};
use crate::api::image_versions::{NewVersion, existing_versions, publish_from_run, wait_ready};
use crate::api::images::{self, NewImage};
use crate::fabric::FabricError;
use crate::http::error::{ApiError, chain};

/// What became of one distributor.
pub(super) struct Distributed {
    pub(super) run_output: RunOutputName,
    /// What is there, or why it is not ready.
    pub(super) published: Result<Published, String>,
    /// It was published, and its way goes on although the run does not wait for it any more.
    in_flight: bool,
}

/// What a distributor made.
pub(super) enum Published {
    /// A version.
    Version(PublishedVersion),
    /// A managed image, by its id.
    Image(String),
    /// A VHD.
    Vhd(PublishedVhd),
}

/// What is under way for a distributor.
enum Begun {
    /// The version with this id is being replicated.
    Version(String),
    /// The managed image with this id is brought to its region.
    Image(String),
    /// A VHD, written once every version is on its way.
    Vhd,
}

/// A version that is in all its regions.
pub(super) struct PublishedVersion {
    pub(super) id: String,
    /// Regions, with the bytes that were moved to each.
    pub(super) regions: Vec<(String, u64)>,
}

/// Publishes to all targets, then waits for all: replications go on beside each other and beside the writing of VHDs.
pub(super) async fn distribute(run: &Run, built: &Built, journal: &mut Journal) -> Vec<Distributed> {
    let mut begun = Vec::new();
    for distributor in &run.spec().distribute {
        let published = if run.stop.is_cancelled() {
            Err("The run was stopped before this target was published.".to_owned())
        } else {
            match &distributor.kind {
                DistributorKind::Vhd { .. } => Ok(Begun::Vhd),
                DistributorKind::ManagedImage { image, location } => {
                    publish_image(run, built, distributor, image, location).await.map(Begun::Image)
                }
                DistributorKind::SharedImage { .. } => {
                    publish(run, built, distributor).await.map(Begun::Version)
                }
            }
        };
        let line = match &published {
            Ok(Begun::Version(id) | Begun::Image(id)) => format!("publishing {id}"),
            Ok(Begun::Vhd) => format!("publishing '{}' as a VHD", distributor.run_output_name),
            Err(error) => format!("'{}' could not be published: {error}", distributor.run_output_name),
        };
        journal.line(Stream::Customization, &line);
        begun.push((distributor, published));
    }
    journal.flush().await;
    let mut distributed = Vec::new();
    for (distributor, begun) in begun {
        let run_output = distributor.run_output_name.clone();
        let replicating = matches!(begun, Ok(Begun::Version(_) | Begun::Image(_)));
        let published = match begun {
            Ok(Begun::Version(id)) => wait(run, built, id).await.map(Published::Version),
            Ok(Begun::Image(id)) => wait_image(run, built, id).await.map(Published::Image),
            Ok(Begun::Vhd) => {
                vhd::publish(run, built, distributor, journal).boxed().await.map(Published::Vhd)
            }
            Err(error) => Err(error),
        };
        let gave_up = run.stop.is_cancelled() || tokio::time::Instant::now() >= built.deadline;
        let in_flight = replicating && published.is_err() && gave_up;
        let line = match &published {
            Ok(Published::Version(version)) => {
                format!("{} is ready in {} regions", version.id, version.regions.len())
            }
            Ok(Published::Image(id)) => format!("{id} is ready"),
            Ok(Published::Vhd(vhd)) => {
                format!("{} is ready: {} bytes, of which {} were written", vhd.uri, vhd.bytes, vhd.sent_bytes)
            }
            Err(error) => format!("'{run_output}' was not distributed: {error}"),
        };
        journal.line(Stream::Customization, &line);
        distributed.push(Distributed { run_output, published, in_flight });
    }
    distributed
}

async fn publish(run: &Run, built: &Built, distributor: &Distributor) -> Result<String, String> {
    let DistributorKind::SharedImage { target, placement, exclude_from_latest, versioning } =
        &distributor.kind
    else {
        return Err("this is no SharedImage".to_owned());
    };
    let definition_id = image_definition_id(&target.definition).to_string();
    let manifest = ManifestRef::parse(&built.output.manifest.to_string()).ok_or("the image has no name")?;
    let source_template =
        ResourceRef::parse(&run.template.id, "id").map_err(|violation| violation.message)?;
    let os_disk = DiskContent { manifest, size_bytes: built.output.logical_bytes };
    let content = VersionContent { os_disk, data_disks: Default::default() };
    let source_version = built.exact_version.as_deref().and_then(|name| VersionName::parse(name).ok());
    let published = run.context.state.store.write(|tx| {
        Box::pin(async {
            run.context.hold(tx).await?;
            let home = definition_region(tx, &definition_id, run).await?;
            let (name, major) = match (target.version, versioning) {
                (Some(version), _) => (Some(version), None),
                (None, Some(VersionScheme::Source)) => {
                    let existing = existing_versions(tx, &definition_id).await?;
                    (Some(next_version(existing, VersionScheme::Source, source_version)?), None)
                }
                (None, Some(VersionScheme::Latest { major })) => (None, *major),
                (None, None) => (None, None),
            };
            let new = NewVersion {
                definition_id: definition_id.clone(),
                name,
                major,
                home: run.spec().location.clone(),
                targets: placement.target_regions(&home),
                exclude_from_latest: *exclude_from_latest,
                tags: distributor.artifact_tags.clone(),
                source_template: source_template.clone(),
                content: content.clone(),
            };
            publish_from_run(tx, &run.context.state.config, new).await
        })
    });
    published
        .await
        .map_err(|error: ApiError| error.error_object()["message"].as_str().unwrap_or_default().to_owned())
}

async fn publish_image(
    run: &Run,
    built: &Built,
    distributor: &Distributor,
    image: &ResourceRef,
    location: &Region,
) -> Result<String, String> {
    let manifest = ManifestRef::parse(&built.output.manifest.to_string()).ok_or("the image has no name")?;
    let new = NewImage {
        id: image.as_str().to_owned(),
        location: location.clone(),
        tags: distributor.artifact_tags.clone(),
        hyper_v_generation: built.generation,
        content: DiskContent { manifest, size_bytes: built.output.logical_bytes },
        from: run.spec().location.clone(),
    };
    let published = run.context.state.store.write(|tx| {
        Box::pin(async {
            run.context.hold(tx).await?;
            images::publish_from_run(tx, new.clone()).await
        })
    });
    published
        .await
        .map_err(|error: ApiError| error.error_object()["message"].as_str().unwrap_or_default().to_owned())
}

async fn wait_image(run: &Run, built: &Built, id: String) -> Result<String, String> {
    let waiting = images::wait_ready(&run.context.state, &id, &run.stop);
    let ready = tokio::time::timeout_at(built.deadline, waiting).await;
    ready.unwrap_or_else(|_| {
        let minutes = run.spec().build_timeout_minutes();
        Err(format!("'{id}' was not ready within {minutes} minutes (buildTimeoutInMinutes); its way goes on"))
    })?;
    Ok(id)
}

/// The zones of the run's region as the first definition that it publishes to wants them, so that its result is where its
/// other versions are.
pub(super) fn zone_order(run: &Run) -> Result<Vec<usize>, FabricError> {
    let offers = run.context.state.fabric.offers(&run.spec().location)?;
    let definition = run.spec().distribute.iter().find_map(|distributor| match &distributor.kind {
        DistributorKind::SharedImage { target, .. } => {
            Some(image_definition_id(&target.definition).to_string())
        }
        DistributorKind::ManagedImage { .. } | DistributorKind::Vhd { .. } => None,
    });
    Ok(CopyPlan::everywhere(offers, &definition.unwrap_or_default()).order)
}

/// Where a version goes when the template names no region: to that of the definition.
async fn definition_region(tx: &mut Tx<'_>, id: &str, run: &Run) -> Result<model::Region, StoreError> {
    let definition = tx.get::<model::image_definition::ImageDefinition>(id).await?;
    Ok(definition.map_or_else(|| run.spec().location.clone(), |document| document.data.spec.location))
}

async fn wait(run: &Run, built: &Built, id: String) -> Result<PublishedVersion, String> {
    let state = &run.context.state;
    let ready = tokio::time::timeout_at(built.deadline, wait_ready(state, &id, &run.stop)).await;
    ready.unwrap_or_else(|_| {
        let minutes = run.spec().build_timeout_minutes();
        Err(format!("'{id}' was not everywhere within {minutes} minutes (buildTimeoutInMinutes); its replication goes on"))
    })?;
    let placements = state.store.read(|tx| Box::pin(async { tx.placements(&id).await })).await;
    let placements = placements.map_err(|error: StoreError| chain(&error))?;
    let regions = placements.into_iter().map(|placement| (placement.region, placement.bytes_moved)).collect();
    Ok(PublishedVersion { id, regions })
}

/// Drops the run's hold on the image, which its versions hold by now. If a target is still on its way and nobody else
/// holds the image, the run's reference stays: without it the version's replication would lose its source.
pub(super) async fn release(
    stores: &[Store],
    manifest: &ManifestId,
    run_id: &str,
    distributed: &[Distributed],
    journal: &mut Journal,
) {
    let own = format!("run-{run_id}");
    let released = async {
        if distributed.iter().any(|one| one.in_flight) {
            let mut owners = BTreeSet::new();
            for store in stores {
                owners.extend(store.refs(manifest).await?);
            }
            if owners.iter().all(|owner| *owner == own) {
                return Ok(());
            }
        }
        for store in stores {
            store.remove_ref(manifest, &own).await?;
        }
        Ok(())
    };
    let released: content::Result<()> = released.await;
    if let Err(error) = released {
        journal.line(
            Stream::Customization,
            &format!("the run's reference to {manifest} was not removed: {}", chain(&error)),
        );
    }
}
