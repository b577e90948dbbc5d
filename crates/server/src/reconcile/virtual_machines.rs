//! Finds virtual machines again after a restart, and notices when one has ended.
//!
//! A VM's process is the truth about its power state; the document follows it, at the start and every few
//! seconds. Work in hand (creation, deletion, power actions) is left to whoever does it.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use chrono::Utc;
use model::virtual_machine::{AgentReport, PowerState, VirtualMachine};
use model::{ProvisioningState, Region};
use store::{Document, Filter, StoreError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vmhost::{Phase, VmError, VmHandle, VmStatus};

use crate::AppState;
use crate::api::virtual_machines::TYPE;
use crate::http::error::chain;
use crate::jobs::create_virtual_machine::agent_report;
use crate::jobs::look_after_store::{Task, begin};

/// Between two repairs of a region, or a zone, because readers ask for them.
pub(super) const REPAIR_PAUSE: Duration = Duration::from_secs(600);
/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(4);
/// A power action ends within a minute; a state that says longer that one is under way was left by a server
/// that died.
const ACTION_MAX: chrono::TimeDelta = chrono::TimeDelta::minutes(2);

/// Ends and removes what is in the VMs' folder without a document: a PUT that was killed before its commit, or
/// a deletion after it. Called before requests are served, which add directories of their own.
pub(crate) async fn remove_strays(state: &AppState) -> Result<(), StoreError> {
    let known: BTreeSet<Uuid> = all(state).await?.into_iter().map(|vm| vm.data.vm_id).collect();
    let Ok(entries) = std::fs::read_dir(state.fabric.vms_dir()) else { return Ok(()) };
    for entry in entries.flatten() {
        let id = entry.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok());
        let Some(id) = id.filter(|id| !known.contains(id)) else { continue };
        let ended = VmHandle::attach(&entry.path()).power_off().await;
        let removed = ended
            .map_err(|error| chain(&error))
            .and_then(|_| std::fs::remove_dir_all(entry.path()).map_err(|error| error.to_string()));
        match removed {
            Ok(()) => tracing::info!(%id, "removed a VM that no document knows"),
            Err(error) => tracing::error!(%id, error, "cannot remove a VM that no document knows"),
        }
    }
    Ok(())
}

/// Follows the VMs until `stop`.
pub(crate) async fn follow(state: AppState, stop: CancellationToken) {
    let mut damage = Damage::default();
    loop {
        if let Err(error) = look(&state, &mut damage).await {
            tracing::warn!(error = chain(&error), "cannot look after the virtual machines");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn all(state: &AppState) -> Result<Vec<Document<VirtualMachine>>, StoreError> {
    let mut filter = Filter { ty: Some(TYPE.to_owned()), ..Filter::default() };
    let mut found = Vec::new();
    loop {
        let page =
            state.store.read(|tx| Box::pin(async { tx.list::<VirtualMachine>(&filter).await })).await?;
        found.extend(page.items);
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return Ok(found),
        }
    }
}

async fn look(state: &AppState, damage: &mut Damage) -> Result<(), StoreError> {
    for mut document in all(state).await? {
        let dir = state.fabric.vm_dir(document.data.vm_id);
        // Without a directory it is another host's.
        if !may_change(&document) || !dir.is_dir() {
            continue;
        }
        let Some(observed) = observe(&VmHandle::attach(&dir)).await else { continue };
        damage.note(state, &document.data, observed.damaged_reads).await?;
        let Some(changed) = follow_one(&document.data, &observed) else { continue };
        if document.data.power != changed.power {
            let reason = observed.agent.as_ref().map(|agent| agent.message.as_str()).unwrap_or_default();
            tracing::info!(vm = document.id, power = ?changed.power, reason, "a VM's power state changed");
        }
        document.data = changed;
        let written = state
            .store
            .write(|tx| {
                // The transaction may run again: the generation must then still be the one that was read.
                let mut document = document.clone();
                Box::pin(async move { tx.update(&mut document).await })
            })
            .await;
        match written {
            // Somebody was faster; the next look sees what is so then.
            Ok(()) | Err(StoreError::StaleDocument { .. } | StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn may_change(document: &Document<VirtualMachine>) -> bool {
    let settled = match document.data.provisioning {
        ProvisioningState::Succeeded | ProvisioningState::Failed(_) | ProvisioningState::Canceled => true,
        ProvisioningState::Creating | ProvisioningState::Updating | ProvisioningState::Deleting => false,
    };
    settled
        && match document.data.power {
            None => false,
            Some(PowerState::Starting | PowerState::Stopping | PowerState::Deallocating) => {
                Utc::now() - document.updated_at > ACTION_MAX
            }
            Some(PowerState::Running | PowerState::Stopped | PowerState::Deallocated) => true,
        }
}

/// What a VM's process says, or its absence.
struct Observed {
    power: PowerState,
    /// `None`: nothing new.
    agent: Option<AgentReport>,
    /// Blocks that one store could not give and another gave.
    damaged_reads: u64,
}

/// What VMs told of damaged stores.
#[derive(Default)]
struct Damage {
    told: HashMap<Uuid, u64>,
    repairs: HashMap<Region, Instant>,
}

impl Damage {
    /// Has a VM's region repaired when the VM tells of more damage than before.
    async fn note(&mut self, state: &AppState, vm: &VirtualMachine, damaged: u64) -> Result<(), StoreError> {
        let region = &vm.spec.location;
        let known = self.told.get(&vm.vm_id).copied().unwrap_or_default();
        let soon = self.repairs.get(region).is_some_and(|last| last.elapsed() < REPAIR_PAUSE);
        if damaged <= known || soon {
            return Ok(());
        }
        tracing::warn!(vm = %vm.name, %region, damaged, "a VM could not read all blocks from one zone; repairing");
        let task = Task::Verify { repair: true };
        state.store.write(|tx| Box::pin(async { begin(tx, state, region, task).await })).await?;
        self.told.insert(vm.vm_id, damaged);
        self.repairs.insert(region.clone(), Instant::now());
        Ok(())
    }
}

async fn observe(handle: &VmHandle) -> Option<Observed> {
    let not_ready = |message: String| AgentReport { version: None, ready: false, message, at: Utc::now() };
    match handle.status().await {
        Ok(status) => match &status.phase {
            Phase::Starting => Some(observed(PowerState::Starting, None, &status)),
            Phase::Running => Some(observed(PowerState::Running, agent_report(&status), &status)),
            Phase::DiskError { reason } => {
                let message =
                    format!("The virtual machine is paused, because its disk cannot be used: {reason}.");
                Some(observed(PowerState::Running, Some(not_ready(message)), &status))
            }
            // Its process is about to go; the next look finds it gone.
            Phase::Ended(_) => None,
        },
        Err(VmError::Ended(ended)) => {
            let message = format!("The virtual machine does not run: {ended}.");
            Some(Observed { power: PowerState::Stopped, agent: Some(not_ready(message)), damaged_reads: 0 })
        }
        Err(error) => {
            tracing::warn!(dir = %handle.dir().display(), error = chain(&error), "cannot ask a VM");
            None
        }
    }
}

fn observed(power: PowerState, agent: Option<AgentReport>, status: &VmStatus) -> Observed {
    Observed { power, agent, damaged_reads: status.damaged_reads }
}

/// The VM as it is now; `None` if nothing changed.
fn follow_one(vm: &VirtualMachine, observed: &Observed) -> Option<VirtualMachine> {
    // One that was told to give up its place does not run either, and keeps that state.
    let deallocated = vm.power == Some(PowerState::Deallocated) && observed.power == PowerState::Stopped;
    let power = if deallocated { vm.power } else { Some(observed.power) };
    let said = |agent: &Option<AgentReport>| {
        agent.as_ref().map(|agent| (agent.version.clone(), agent.ready, agent.message.clone()))
    };
    let news = observed.agent.is_some() && said(&observed.agent) != said(&vm.agent);
    if power == vm.power && !news {
        return None;
    }
    let agent = if news { observed.agent.clone() } else { vm.agent.clone() };
    Some(VirtualMachine { power, agent, etag: vm.etag + 1, ..vm.clone() })
}

#[cfg(test)]
mod tests {
    use model::virtual_machine::{DiskCreateOption, VmDisk, VmSpec};
    use model::{Region, Tags, Timestamp, VmName};

    use super::*;

    fn vm(power: PowerState) -> VirtualMachine {
        let os_disk = VmDisk {
            name: None,
            create_option: DiskCreateOption::Attach,
            caching: None,
            size_gib: None,
            storage_account_type: None,
            delete_option: None,
        };
        let spec = VmSpec {
            location: Region::parse("eastus").unwrap(),
            tags: Tags::default(),
            vm_size: "Standard_B1s".into(),
            image: None,
            os_disk,
            os_type: None,
            data_disks: Vec::new(),
            os_profile: None,
            secure_boot: None,
            vtpm: None,
        };
        VirtualMachine::create(VmName::parse("vm1").unwrap(), spec, Uuid::nil(), Timestamp::UNIX_EPOCH)
            .powered(power)
    }

    #[tokio::test]
    async fn a_vm_whose_process_was_killed_is_stopped_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let observed = observe(&VmHandle::attach(dir.path())).await.unwrap();
        let changed = follow_one(&vm(PowerState::Running), &observed).unwrap();
        assert_eq!(changed.power, Some(PowerState::Stopped));
        assert_eq!(
            changed.agent.as_ref().unwrap().message,
            "The virtual machine does not run: its vmhost process was killed."
        );
        assert!(follow_one(&changed, &observed).is_none(), "it is told once");
        let deallocated = follow_one(&vm(PowerState::Deallocated), &observed).unwrap();
        assert_eq!(deallocated.power, Some(PowerState::Deallocated));
    }

    #[tokio::test]
    async fn damage_that_a_vm_tells_of_is_repaired_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = AppState::for_tests(crate::Config::new(dir.path())).await;
        let (vm, mut damage) = (vm(PowerState::Running), Damage::default());
        let repairs = async || {
            let store = format!("/subscriptions/{}/tintypeStores/eastus", state.config.subscription_id);
            let found =
                state.store.read(|tx| Box::pin(async { tx.operations_in_progress(&store).await })).await;
            let found: Vec<store::Operation> = found.map_err(|error: StoreError| error).unwrap();
            found.iter().map(|operation| operation.kind.clone()).collect::<Vec<_>>()
        };
        damage.note(&state, &vm, 0).await.unwrap();
        assert!(repairs().await.is_empty());
        for told in [3, 3, 5] {
            damage.note(&state, &vm, told).await.unwrap();
            assert_eq!(repairs().await, ["stores.repair"]);
        }
    }

    #[test]
    fn a_vm_that_is_found_again_runs() {
        let observed = Observed { power: PowerState::Running, agent: None, damaged_reads: 0 };
        let changed = follow_one(&vm(PowerState::Stopped), &observed).unwrap();
        assert_eq!((changed.power, changed.etag), (Some(PowerState::Running), 3));
        assert!(follow_one(&changed, &observed).is_none());
    }
}
