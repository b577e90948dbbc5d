//! Makes the stores of all zones hold what the database wants there, and nothing that it does not.
//!
//! ```text
//!   actual: references of every zone ─┐  first, so that whatever is added meanwhile is not looked at
//!   desired: versions, VMs, images  ──┴▶ copies that are missing     a third zone, a zone that was away or lost
//!                                        copies in a zone too many   they stood in for one that was away
//!                                        references without an owner ended runs, versions that were deleted while a
//!                                                                    zone was away
//! ```
//!
//! It takes no input: it runs at the start, from time to time, and when a job has left something for later. Cut off
//! anywhere, it does the rest the next time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use content::{ManifestId, Store, StoredReference};
use futures::StreamExt;
use model::Region;
use model::image_version::{ImageVersion, PhysicalCopies, RegionReplication};
use model::placement::{CopyChanges, ZoneCopy};
use serde::Serialize;
use store::StoreError;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::desired::{Desired, Verdict, Want};
use super::gc::want_gc;
use crate::AppState;
use crate::copies::copy_to;
use crate::http::error::chain;

/// Regions that are worked on at the same time.
const REGIONS_AT_A_TIME: usize = 4;
/// At least this much lies between two passes, however often somebody asks.
const PAUSE: Duration = Duration::from_millis(500);
/// Failures that a report names; more are only counted.
const FAILURES_MAX: usize = 20;
/// Setting with the id that this database has in the stores.
const INSTALLATION: &str = "installation-id";

/// What a pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// Copies that were made, or found and referred to.
    copies_made: u64,
    /// Bytes that were sent for them.
    bytes_moved: u64,
    /// References that were removed.
    references_removed: u64,
    /// References whose owner is gone and that are too young to be removed.
    references_young: u64,
    /// References of others: the command line's, say.
    references_foreign: u64,
    /// Zones that could not be looked at, and why.
    zones_away: Vec<String>,
    /// What did not work.
    failures: Vec<String>,
}

impl Report {
    fn fail(&mut self, failure: String) {
        tracing::warn!(failure, "the stores are not as they should be");
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(failure);
        }
    }

    fn add(&mut self, other: Self) {
        self.copies_made += other.copies_made;
        self.bytes_moved += other.bytes_moved;
        self.references_removed += other.references_removed;
        self.references_young += other.references_young;
        self.references_foreign += other.references_foreign;
        self.zones_away.extend(other.zones_away);
        self.failures.extend(other.failures);
        self.failures.truncate(FAILURES_MAX);
    }
}

/// Runs passes until `stop`.
pub(crate) async fn follow(state: AppState, stop: CancellationToken) {
    let work = async {
        loop {
            match pass(&state).await {
                Ok(report) if report != Report::default() => tracing::info!(?report, "compared the stores"),
                Ok(_) => {}
                Err(error) => tracing::error!(error = chain(&error), "the stores cannot be compared"),
            }
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                () = state.fabric.reconcile.notified() => {}
                () = tokio::time::sleep(state.config.limits.reconcile_interval) => {}
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// A zone, as it was when the pass began.
enum Zone {
    /// It cannot be looked at.
    Away,
    /// Nobody needed it yet: there is no store.
    Unused,
    Looked(Looked),
}

/// A zone's references.
struct Looked {
    store: Store,
    references: Vec<StoredReference>,
    /// The same, to look one up.
    held: BTreeSet<(ManifestId, String)>,
    images: BTreeSet<ManifestId>,
}

impl Zone {
    fn looked(&self) -> Option<&Looked> {
        match self {
            Self::Looked(looked) => Some(looked),
            Self::Away | Self::Unused => None,
        }
    }
}

/// By region, its zones in their order.
type Actual = BTreeMap<Region, Vec<Zone>>;

/// One pass over all regions.
///
/// # Errors
/// The database's own; what the stores refuse is in the report.
pub(crate) async fn pass(state: &AppState) -> Result<Report, StoreError> {
    let _one_at_a_time = state.fabric.reconciling.lock().await;
    let mut report = Report::default();
    let actual = actual(state, &mut report).await;
    let desired = Desired::read(state).await?;
    let tasks = actual.keys().map(|region| fill_region(state, region, &actual, &desired));
    // Collected first: the compiler cannot see through a lazy iterator of borrowing futures that they are `Send`.
    let tasks: Vec<futures::future::BoxFuture<'_, _>> = tasks.map(|task| Box::pin(task) as _).collect();
    let mut filling = futures::stream::iter(tasks).buffer_unordered(REGIONS_AT_A_TIME);
    while let Some(done) = filling.next().await {
        let done: Result<Report, StoreError> = done;
        report.add(done?);
    }
    drop(filling);
    sweep(state, &actual, &desired, &mut report).await?;
    Ok(report)
}

async fn actual(state: &AppState, report: &mut Report) -> Actual {
    let mut actual = Actual::new();
    for region in state.config.regions.iter().map(|region| &region.name) {
        let zones = state.fabric.zones_in_use(region).await.unwrap_or_default();
        let mut looked = Vec::with_capacity(zones.len());
        for zone in zones {
            let references = match zone {
                None => {
                    looked.push(Zone::Unused);
                    continue;
                }
                Some(Ok(store)) => {
                    let read = store.references().await.map(|references| (store, references));
                    read.map_err(|error| chain(&error))
                }
                Some(Err(error)) => Err(chain(&error)),
            };
            looked.push(match references {
                Ok((store, references)) => Zone::Looked(Looked {
                    held: references.iter().map(|one| (one.manifest, one.owner.clone())).collect(),
                    images: references.iter().map(|one| one.manifest).collect(),
                    store,
                    references,
                }),
                Err(reason) => {
                    report.zones_away.push(reason);
                    Zone::Away
                }
            });
        }
        actual.insert(region.clone(), looked);
    }
    actual
}

/// Copies that a region lacks, and those that it has too many.
async fn fill_region(
    state: &AppState,
    region: &Region,
    actual: &Actual,
    desired: &Desired,
) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let Some(zones) = actual.get(region) else { return Ok(report) };
    // The fewest copies of any of a version's disks.
    let mut held: BTreeMap<&str, PhysicalCopies> = BTreeMap::new();
    for want in desired.wants.iter().filter(|want| want.region == *region) {
        let copies = place(state, want, zones, actual, &mut report).await;
        if let Some(version) = &want.version
            && !zones.iter().all(|zone| matches!(zone, Zone::Away))
        {
            let known = held.entry(version).or_insert(copies);
            known.held = known.held.min(copies.held);
        }
    }
    for (version, copies) in held {
        note_copies(state, version, region, copies).await?;
    }
    Ok(report)
}

/// Brings one image to where it shall be. Returns how many copies there are then.
async fn place(
    state: &AppState,
    want: &Want,
    zones: &[Zone],
    actual: &Actual,
    report: &mut Report,
) -> PhysicalCopies {
    let Want { region, manifest, owner, plan, .. } = want;
    let key = (*manifest, owner.clone());
    let mut copies: Vec<ZoneCopy> = zones
        .iter()
        .map(|zone| match zone {
            Zone::Away => ZoneCopy::Away,
            Zone::Looked(zone) if zone.held.contains(&key) => ZoneCopy::Held,
            Zone::Looked(_) | Zone::Unused => ZoneCopy::Missing,
        })
        .collect();
    let CopyChanges { add, remove } = plan.changes(&copies);
    for index in add {
        // Of this region first.
        let others = actual.iter().filter(|(other, _)| *other != region).flat_map(|(_, zones)| zones);
        let sources: Vec<Store> = zones
            .iter()
            .chain(others)
            .filter_map(Zone::looked)
            .filter(|zone| zone.images.contains(manifest))
            .map(|zone| zone.store.clone())
            .collect();
        // Opened, and made if need be, only now that it is needed.
        let copied = match state.fabric.zone(region, index).await {
            Ok(target) => copy_to(&state.fabric, &target, &sources, manifest, owner, |_| {}).await,
            Err(error) => Err(error.into()),
        };
        match copied {
            Ok(bytes) => {
                tracing::info!(%region, zone = index + 1, owner, bytes, "made a copy of an image");
                report.copies_made += 1;
                report.bytes_moved += bytes;
                copies[index] = ZoneCopy::Held;
            }
            Err(error) => report.fail(format!(
                "image {manifest} of {owner} cannot be brought to zone {} of region '{region}': {}",
                index + 1,
                chain(&error)
            )),
        }
    }
    for index in remove {
        let Some(zone) = zones.get(index).and_then(Zone::looked) else { continue };
        match zone.store.remove_ref(manifest, owner).await {
            Ok(()) => {
                report.references_removed += 1;
                copies[index] = ZoneCopy::Missing;
            }
            Err(error) => report.fail(format!("zone {} of region '{region}': {}", index + 1, chain(&error))),
        }
    }
    let held = copies.iter().filter(|copy| **copy == ZoneCopy::Held).count();
    PhysicalCopies { held, wanted: plan.wanted }
}

/// Writes into a version how many copies a region has.
async fn note_copies(
    state: &AppState,
    version: &str,
    region: &Region,
    copies: PhysicalCopies,
) -> Result<(), StoreError> {
    state
        .store
        .write(|tx| {
            Box::pin(async {
                let Some(mut document) = tx.get::<ImageVersion>(version).await? else { return Ok(()) };
                let complete = document
                    .data
                    .state
                    .regions()
                    .any(|(known, state)| known == region && *state == RegionReplication::Completed);
                // Somebody who is at work on it will note it.
                if !complete || document.state.is_busy() || document.data.copies.get(region) == Some(&copies)
                {
                    return Ok(());
                }
                document.data.copies.insert(region.clone(), copies);
                tx.update(&mut document).await
            })
        })
        .await
}

/// Removes references whose owner is gone.
async fn sweep(
    state: &AppState,
    actual: &Actual,
    desired: &Desired,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut strays = Vec::new();
    for (region, zones) in actual {
        for zone in zones.iter().filter_map(Zone::looked) {
            for reference in &zone.references {
                match desired.judge(state, region, &reference.manifest, &reference.owner).await? {
                    Verdict::Kept => {}
                    Verdict::Foreign => report.references_foreign += 1,
                    Verdict::Stray if !is_old(state, reference) => report.references_young += 1,
                    Verdict::Stray => strays.push((region, &zone.store, reference)),
                }
            }
        }
    }
    if strays.is_empty() {
        return Ok(());
    }
    let installation = installation(state).await?;
    // Filling may have taken long. Whoever is wanted again meanwhile keeps what there is.
    let now = Desired::read(state).await?;
    let mut freed = BTreeSet::new();
    for (region, store, StoredReference { manifest, owner, .. }) in strays {
        if now.judge(state, region, manifest, owner).await? != Verdict::Stray {
            continue;
        }
        match remove(store, manifest, owner, &installation).await {
            Ok(()) => {
                tracing::info!(%region, store = %store.location(), owner, %manifest, "removed a reference without an owner");
                report.references_removed += 1;
                freed.insert(region);
            }
            Err(reason) => report.fail(reason),
        }
    }
    let want = |region: Region| async move {
        state.store.write(|tx| Box::pin(async { want_gc(tx, &region).await })).await
    };
    for region in freed {
        want(region.clone()).await?;
    }
    Ok(())
}

async fn remove(store: &Store, manifest: &ManifestId, owner: &str, installation: &str) -> Result<(), String> {
    let keeper = store.claim(installation).await.map_err(|error| chain(&error))?;
    if keeper != installation {
        return Err(format!(
            "the references of {} are looked after by another installation ({keeper}), so that those without an owner here stay. \
             If that one is gone, remove the object 'keeper' from the store",
            store.location()
        ));
    }
    store.remove_ref(manifest, owner).await.map_err(|error| chain(&error))
}

fn is_old(state: &AppState, reference: &StoredReference) -> bool {
    let age = state.now().timestamp().saturating_sub_unsigned(reference.created_unix_s);
    u64::try_from(age).is_ok_and(|age| age >= state.config.limits.reference_grace.as_secs())
}

/// The id that this database has in the stores, made on first use.
async fn installation(state: &AppState) -> Result<String, StoreError> {
    let new = Uuid::new_v4().to_string();
    state
        .store
        .write(|tx| {
            Box::pin(async {
                if let Some(known) = tx.setting(INSTALLATION).await? {
                    return Ok(String::from_utf8_lossy(&known).into_owned());
                }
                tx.set_setting(INSTALLATION, new.as_bytes()).await?;
                Ok(new.clone())
            })
        })
        .await
}
