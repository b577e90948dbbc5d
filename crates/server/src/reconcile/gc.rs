//! When zones are freed of what nothing needs, and when they are verified and repaired.
//!
//! Every zone remembers when each was last done, and with which result, in a setting under its store's id. A zone is due
//! after an interval, or some time after something was deleted in its region. One is also repaired soon after a read in
//! this process found damage in it, as when a disk is downloaded; virtual machines tell of theirs (`virtual_machines.rs`).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use model::Region;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::{StoreError, Tx};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::virtual_machines::REPAIR_PAUSE;
use crate::AppState;
use crate::http::error::chain;
use crate::jobs::look_after_store::{Task, begin_scheduled};

/// Longest time between two looks at what is due.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// What was done for a zone's store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Care {
    /// Since when somebody looks after it.
    pub(crate) since: DateTime<Utc>,
    pub(crate) last_gc: Option<Done>,
    pub(crate) last_verify: Option<Done>,
}

/// When something was done, and what came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) at: DateTime<Utc>,
    pub(crate) report: Value,
}

fn care_key(store: Uuid) -> String {
    format!("zone-care/{store}")
}

fn wanted_key(region: &Region) -> String {
    format!("gc-wanted/{region}")
}

/// What was done for a store, if anybody looked after it yet.
pub(crate) async fn care_of(tx: &mut Tx<'_>, store: Uuid) -> Result<Option<Care>, StoreError> {
    let bytes = tx.setting(&care_key(store)).await?;
    // One that cannot be read is as good as none: the zone's time begins anew.
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Changes what is remembered of a store.
pub(crate) async fn note_care(
    tx: &mut Tx<'_>,
    store: Uuid,
    change: impl FnOnce(&mut Care, DateTime<Utc>) + Send,
) -> Result<(), StoreError> {
    let now = tx.now().await?;
    let mut care = care_of(tx, store).await?.unwrap_or(Care { since: now, last_gc: None, last_verify: None });
    change(&mut care, now);
    let bytes = serde_json::to_vec(&care).unwrap_or_default();
    tx.set_setting(&care_key(store), &bytes).await
}

/// Says that something was deleted in a region: its zones are freed some time later. Call it in the transaction of the
/// deletion.
pub(crate) async fn want_gc(tx: &mut Tx<'_>, region: &Region) -> Result<(), StoreError> {
    // The first deletion counts, or a busy region would never be freed.
    if wanted_at(tx, region).await?.is_none() {
        let now = tx.now().await?.to_rfc3339();
        tx.set_setting(&wanted_key(region), now.as_bytes()).await?;
    }
    Ok(())
}

async fn wanted_at(tx: &mut Tx<'_>, region: &Region) -> Result<Option<DateTime<Utc>>, StoreError> {
    let text = tx.setting(&wanted_key(region)).await?.unwrap_or_default();
    Ok(str::from_utf8(&text).ok().and_then(|text| text.parse().ok()))
}

/// Enqueues what is due, until `stop`.
pub(crate) async fn follow(state: AppState, stop: CancellationToken) {
    let limits = &state.config.limits;
    let shortest = limits.gc_interval.min(limits.gc_delay).min(limits.verify_interval);
    let interval = shortest.clamp(Duration::from_secs(1), LOOK_INTERVAL_MAX);
    let mut found = Found::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        for region in state.config.regions.iter().map(|region| &region.name) {
            if let Err(error) = look(&state, region, &mut found).await {
                tracing::warn!(%region, error = chain(&error), "cannot look what its store needs");
            }
        }
    }
}

/// Damage that reads in this process found, by store.
#[derive(Default)]
struct Found(HashMap<Uuid, (u64, Instant)>);

impl Found {
    /// Whether reads failed since the last repair that was begun, and that is some time ago.
    fn is_news(&self, store: Uuid, damaged_reads: u64) -> bool {
        match self.0.get(&store) {
            None => damaged_reads > 0,
            // A store that was opened again counts from zero.
            Some((known, at)) => damaged_reads != *known && damaged_reads > 0 && at.elapsed() >= REPAIR_PAUSE,
        }
    }
}

async fn look(state: &AppState, region: &Region, found: &mut Found) -> Result<(), StoreError> {
    let zones = state.fabric.zones_in_use(region).await.unwrap_or_default();
    let stores = zones.into_iter().enumerate().filter_map(|(zone, store)| Some((zone, store?.ok()?)));
    let stores: Vec<(usize, content::Store)> = stores.collect();
    let damaged: Vec<(usize, Uuid, u64)> = stores
        .iter()
        .map(|(zone, store)| (*zone, store.id(), store.damaged_reads()))
        .filter(|(_, store, reads)| found.is_news(*store, *reads))
        .collect();
    let stores: Vec<(usize, Uuid)> = stores.iter().map(|(zone, store)| (*zone, store.id())).collect();
    state
        .store
        .write(|tx| {
            Box::pin(async {
                let limits = &state.config.limits;
                let now = tx.now().await?;
                let past = |at: DateTime<Utc>, interval: Duration| {
                    (now - at).to_std().is_ok_and(|age| age >= interval)
                };
                let wanted = wanted_at(tx, region).await?.is_some_and(|at| past(at, limits.gc_delay));
                for (zone, store) in &stores {
                    let Some(care) = care_of(tx, *store).await? else {
                        note_care(tx, *store, |_, _| {}).await?;
                        continue;
                    };
                    let last = |done: Option<&Done>| done.map_or(care.since, |done| done.at);
                    if wanted || past(last(care.last_gc.as_ref()), limits.gc_interval) {
                        let task = Task::CollectGarbage { dry_run: false };
                        begin_scheduled(tx, state, region, *zone, task).await?;
                    }
                    if past(last(care.last_verify.as_ref()), limits.verify_interval) {
                        begin_scheduled(tx, state, region, *zone, Task::Verify { repair: true }).await?;
                    }
                }
                for (zone, _, _) in &damaged {
                    begin_scheduled(tx, state, region, *zone, Task::Verify { repair: true }).await?;
                }
                if wanted && !stores.is_empty() {
                    tx.set_setting(&wanted_key(region), b"").await?;
                }
                Ok::<_, StoreError>(())
            })
        })
        .await?;
    for (zone, store, reads) in damaged {
        tracing::warn!(%region, zone = zone + 1, reads, "not all blocks could be read from this zone; repairing");
        found.0.insert(store, (reads, Instant::now()));
    }
    Ok(())
}
