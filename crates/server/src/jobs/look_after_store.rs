//! Frees what the stores of a region do not need, checks and repairs what they need, or brings copies to where they shall
//! be. One of a kind runs for a region at a time; who asks meanwhile gets the operation that is under way.
//!
//! Zones are done one after the other. What was asked for covers all zones of the region; what is due by time
//! (`reconcile/gc.rs`) is a job for each zone.

use content::{Affected, GcOptions, GcStage, Store, VerifyOptions};
use model::Region;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use store::{Job, NewOperation, Operation, OperationFamily, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use super::{JobKind, enqueue};
use crate::AppState;
use crate::http::error::chain;
use crate::reconcile::gc::{Done, note_care};
use crate::reconcile::{owners, references};

/// Damaged parts that an operation's output names, and for each the images that need it; more are only counted.
const DAMAGES_MAX: usize = 100;
const NEEDS_MAX: usize = 20;
/// References to damaged images that an operation's output names: all that there are, on any server of today.
const AFFECTED_MAX: usize = 20_000;
/// Damaged parts, and references to damaged images, that are remembered of the last verification.
const REMEMBERED_DAMAGES_MAX: usize = 10;

/// The parts of a report that may be long.
const LISTS: [&str; 2] = ["damages", "affected"];

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "task")]
pub(crate) enum Task {
    CollectGarbage {
        dry_run: bool,
    },
    Verify {
        repair: bool,
    },
    /// Compares the stores of all regions with the database.
    Reconcile,
}

impl Task {
    /// Kind of its operation: tasks that differ in it may run beside each other.
    fn operation_kind(self) -> &'static str {
        match self {
            Self::CollectGarbage { dry_run: false } => "stores.gc",
            Self::CollectGarbage { dry_run: true } => "stores.gcDryRun",
            Self::Verify { repair: false } => "stores.verify",
            Self::Verify { repair: true } => "stores.repair",
            Self::Reconcile => "stores.reconcile",
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Payload {
    region: Region,
    /// Index of the only zone to look after; `None`: all.
    #[serde(default)]
    zone: Option<usize>,
    #[serde(flatten)]
    task: Task,
}

/// No resource, but an id by which the operations and jobs of a store are found.
fn resource(state: &AppState, region: &Region) -> String {
    format!("/subscriptions/{}/tintypeStores/{region}", state.config.subscription_id)
}

/// Begins a task for all zones, or gives the operation of the same one that is under way.
///
/// # Errors
/// The database's own.
pub(crate) async fn begin(
    tx: &mut Tx<'_>,
    state: &AppState,
    region: &Region,
    task: Task,
) -> Result<Operation, StoreError> {
    let kind = task.operation_kind();
    let resource_id = resource(state, region);
    let running = tx.operations_in_progress(&resource_id).await?;
    if let Some(same) = running.into_iter().find(|operation| operation.kind == kind) {
        return Ok(same);
    }
    let operation = tx
        .begin_operation(NewOperation {
            resource_id: resource_id.clone(),
            kind: kind.to_owned(),
            family: OperationFamily::Compute,
            location: region.to_string(),
        })
        .await?;
    let payload = Payload { region: region.clone(), zone: None, task };
    enqueue(tx, JobKind::LookAfterStore, &payload, &resource_id, Some(&operation.id)).await?;
    Ok(operation)
}

/// Enqueues a task for one zone, unless the same waits or runs already.
///
/// # Errors
/// The database's own.
pub(crate) async fn begin_scheduled(
    tx: &mut Tx<'_>,
    state: &AppState,
    region: &Region,
    zone: usize,
    task: Task,
) -> Result<(), StoreError> {
    let resource_id = format!("{}/{zone}/{}", resource(state, region), task.operation_kind());
    if tx.unfinished_jobs(&resource_id).await?.is_empty() {
        let payload = Payload { region: region.clone(), zone: Some(zone), task };
        enqueue(tx, JobKind::LookAfterStore, &payload, &resource_id, None).await?;
    }
    Ok(())
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { region, zone, task } = context.payload()?;
    // Given up in the middle, a collection or repair is finished by the next one.
    let report = tokio::select! {
        report = work(&context, &region, zone, task) => report?,
        () = context.stopping.cancelled() => {
            return Err(JobFailure::transient("InternalServerError", "the service stops"));
        }
        () = context.cancel.cancelled() => return Err(JobFailure::canceled()),
    };
    Ok(context.finish(Some(report)).await?)
}

/// What was done in one zone: its index, where it is, and the report or why there is none.
struct InZone {
    zone: usize,
    location: Option<String>,
    report: Result<Value, String>,
}

async fn work(
    context: &JobContext,
    region: &Region,
    only: Option<usize>,
    task: Task,
) -> Result<Value, JobFailure> {
    if task == Task::Reconcile {
        return Ok(json!(references::pass(&context.state).await?));
    }
    let zones = context.state.fabric.zones(region).await.map_err(|error| away(region, &chain(&error)))?;
    let zones: Vec<_> = zones.into_iter().map(|zone| zone.map_err(|error| chain(&error))).collect();
    let mut done = Vec::new();
    for (zone, store) in zones.iter().enumerate().filter(|(zone, _)| only.is_none_or(|only| only == *zone)) {
        let location = store.as_ref().ok().map(|store| store.location().to_string());
        let report = match store {
            Ok(store) => in_zone(context, region, &zones, store, task).await?,
            Err(reason) => Err(reason.clone()),
        };
        done.push(InZone { zone, location, report });
    }
    if done.iter().all(|one| one.report.is_err()) {
        let reasons: Vec<&str> =
            done.iter().filter_map(|one| one.report.as_ref().err().map(String::as_str)).collect();
        return Err(away(region, &reasons.join("; ")));
    }
    Ok(output(done))
}

/// Does the task in one store, and remembers it. The inner error is the store's.
async fn in_zone(
    context: &JobContext,
    region: &Region,
    zones: &[Result<Store, String>],
    store: &Store,
    task: Task,
) -> Result<Result<Value, String>, JobFailure> {
    let report = match task {
        Task::CollectGarbage { dry_run } => {
            let options = GcOptions { dry_run, ..GcOptions::default() };
            let report = store.gc(&options, |stage, done, total| {
                let stage = match stage {
                    GcStage::Marking => "mark",
                    GcStage::Moving => "move",
                    GcStage::Removing => "remove",
                };
                context.report(json!({ "step": stage, "done": done, "total": total }));
            });
            report.await.map(|report| json!(report))
        }
        Task::Verify { repair } => {
            let mut replicas: Vec<Store> =
                zones.iter().flatten().filter(|other| repair && other.id() != store.id()).cloned().collect();
            let regions = context.state.config.regions.iter().map(|other| &other.name);
            for other in regions.filter(|other| repair && *other != region) {
                // A region that is away cannot help, and does not hinder.
                match context.state.fabric.stores(other).await {
                    Ok(others) => replicas.extend(others),
                    Err(error) => {
                        tracing::warn!(region = %other, error = chain(&error), "no help for a repair")
                    }
                }
            }
            let options = VerifyOptions { replicas, repair };
            let report = store.verify_all(&options, |done, total| {
                context.report(json!({ "step": "verify", "done": done, "total": total }));
            });
            match report.await {
                Ok(mut report) => {
                    report.damages.truncate(DAMAGES_MAX);
                    for damage in &mut report.damages {
                        damage.needed_by.truncate(NEEDS_MAX);
                    }
                    let affected = affected(context, std::mem::take(&mut report.affected)).await?;
                    let mut report = json!(report);
                    report["affected"] = affected.into();
                    Ok(report)
                }
                Err(error) => Err(error),
            }
        }
        Task::Reconcile => Ok(Value::Null),
    };
    let report = match report {
        Ok(report) => report,
        Err(error) => return Ok(Err(chain(&error))),
    };
    tracing::info!(%region, store = %store.location(), ?task, report = %without_damages(&report), "looked after a store");
    remember(context, store, task, &report).await?;
    Ok(Ok(report))
}

/// Every reference to a damaged image, with the resource that it is of.
async fn affected(context: &JobContext, images: Vec<Affected>) -> Result<Vec<Value>, StoreError> {
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let resources = owners::resources(&context.state).await?;
    let references = images.iter().flat_map(|image| {
        let Affected { manifest, owners, places } = image;
        owners.iter().map(move |owner| (manifest, owner, places))
    });
    let entries = references.map(|(manifest, owner, places)| {
        json!({ "resourceId": resources.get(owner), "owner": owner, "manifest": manifest, "places": places })
    });
    Ok(entries.take(AFFECTED_MAX).collect())
}

async fn remember(context: &JobContext, store: &Store, task: Task, report: &Value) -> Result<(), StoreError> {
    let mut short = report.clone();
    for list in LISTS {
        if let Some(Value::Array(list)) = short.get_mut(list) {
            list.truncate(REMEMBERED_DAMAGES_MAX);
        }
    }
    context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                note_care(tx, store.id(), |care, at| {
                    let done = Some(Done { at, report: short.clone() });
                    match task {
                        Task::CollectGarbage { dry_run: false } => care.last_gc = done,
                        Task::Verify { .. } => care.last_verify = done,
                        Task::CollectGarbage { dry_run: true } | Task::Reconcile => {}
                    }
                })
                .await
            })
        })
        .await
}

fn without_damages(report: &Value) -> Value {
    let mut report = report.clone();
    if let Value::Object(fields) = &mut report {
        fields.retain(|name, _| !LISTS.contains(&name.as_str()));
    }
    report
}

/// What the zones' reports say together, and each of them.
fn output(done: Vec<InZone>) -> Value {
    let mut all = Map::new();
    let mut zones = Vec::new();
    for InZone { zone, location, report } in done {
        let mut entry = json!({ "zone": zone + 1, "location": location });
        match report {
            Ok(mut report) => {
                for affected in report["affected"].as_array_mut().into_iter().flatten() {
                    affected["zone"] = (zone + 1).into();
                }
                for (name, value) in report.as_object().into_iter().flatten() {
                    add(&mut all, name, value);
                }
                entry["report"] = without_damages(&report);
            }
            Err(reason) => entry["error"] = reason.into(),
        }
        zones.push(entry);
    }
    all.insert("zones".to_owned(), zones.into());
    all.into()
}

/// Counts add up; images are mostly the same ones in each zone.
fn add(all: &mut Map<String, Value>, name: &str, value: &Value) {
    let Some(known) = all.get_mut(name) else {
        all.insert(name.to_owned(), value.clone());
        return;
    };
    let counts = (known.as_u64(), value.as_u64());
    match (&mut *known, counts, value) {
        (_, (Some(before), Some(more)), _) if name == "images" => *known = before.max(more).into(),
        (_, (Some(before), Some(more)), _) => *known = (before + more).into(),
        (Value::Array(before), _, Value::Array(more)) => {
            let most = if name == "affected" { AFFECTED_MAX } else { DAMAGES_MAX };
            before.extend(more.iter().take(most.saturating_sub(before.len())).cloned());
        }
        (Value::Number(before), _, Value::Number(more)) => {
            *known = json!(before.as_f64().unwrap_or_default() + more.as_f64().unwrap_or_default());
        }
        _ => {}
    }
}

fn away(region: &Region, reason: &str) -> JobFailure {
    let message = format!("The store of region '{region}' cannot be looked after: {reason}");
    JobFailure::transient("StoreUnavailable", message)
}

/// Nothing is left: what a collection began, the next one finishes.
pub(super) async fn failed(_: &mut Tx<'_>, _: &Job, _: &JobFailure) -> Result<(), StoreError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reports_of_zones_add_up() {
        let zone = |zone, report| InZone { zone, location: Some(format!("/{zone}")), report };
        let first = json!({"dry_run": true, "images": 3, "bytes_removed": 5, "seconds": 0.5, "damages": [1]});
        let second =
            json!({"dry_run": true, "images": 2, "bytes_removed": 6, "seconds": 0.25, "damages": [2]});
        let hurt = |owner: String| json!({"resourceId": null, "owner": owner, "manifest": "m", "places": 1});
        let many: Vec<Value> = (0..150).map(|owner| hurt(owner.to_string())).collect();
        let (mut first, mut second) = (first, second);
        first["affected"] = many.clone().into();
        second["affected"] = many.into();
        let all = output(vec![zone(0, Ok(first)), zone(1, Ok(second)), zone(2, Err("away".to_owned()))]);
        assert_eq!(
            (&all["dry_run"], &all["images"], &all["bytes_removed"]),
            (&json!(true), &json!(3), &json!(11))
        );
        assert_eq!((&all["seconds"], &all["damages"]), (&json!(0.75), &json!([1, 2])));
        let affected = all["affected"].as_array().unwrap();
        assert_eq!(
            (affected.len(), &affected[0]["zone"], &affected[299]["zone"]),
            (300, &json!(1), &json!(2))
        );
        assert_eq!(
            all["zones"][1]["report"],
            json!({"dry_run": true, "images": 2, "bytes_removed": 6, "seconds": 0.25})
        );
        assert_eq!((&all["zones"][2]["zone"], &all["zones"][2]["error"]), (&json!(3), &json!("away")));
    }
}
