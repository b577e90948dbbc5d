//! Makes a VM's disk, starts it and waits for its agent.
//!
//! ```text
//!   image as the region sees it ─▶ reference in the region's store ─▶ vmhost ─▶ Running ─▶ the agent's report
//! ```
//!
//! The VM is a process of its own that outlives the server. A job that runs again finds it by its directory and
//! goes on waiting; one that finds none starts over with a fresh disk, because nobody has used the VM yet.
//!
//! Secrets never enter the database: the PUT writes them to the VM's directory ([`secrets`]), from where they go
//! into the specification that the VM's process reads.

mod agent;
mod image;
pub(crate) mod secrets;
mod spec;

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use model::virtual_machine::{PowerState, VirtualMachine};
use model::{Failure, ProvisioningState};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::{Document, Job, OperationEnd, StoreError, Tx};
use vmhost::{Ended, Phase, Provisioning, VmError, VmHandle, VmStatus};

pub(crate) use agent::agent_report;
pub(crate) use image::check as check_image;

use super::context::{FailureKind, JobContext, JobFailure};
use crate::api::column_state;
use crate::copies::{hold, let_go};
use crate::http::error::chain;

/// End of the console that a failure shows, in characters.
const CONSOLE_CHARS_MAX: usize = 1500;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the VM.
    pub(crate) vm: String,
}

/// The reference by which a VM holds its image in the region's store.
pub(crate) fn image_reference(vm: &VirtualMachine) -> String {
    format!("vm-{}", vm.vm_id)
}

/// By which VMs spread over the zones that hold their image.
pub(crate) fn reading_turn(vm: &VirtualMachine) -> u64 {
    // An id is random in its last bytes.
    u64::from(vm.vm_id.as_bytes()[15])
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { vm: id } = context.payload()?;
    tokio::select! {
        done = create(&context, &id) => done,
        () = context.cancel.cancelled() => Err(JobFailure::canceled()),
        // The VM stays; the job is claimed again and finds it.
        () = context.stopping.cancelled() => Err(JobFailure::transient("InternalServerError", "the service stops")),
    }
}

async fn create(context: &JobContext, id: &str) -> Result<(), JobFailure> {
    let vm = change(context, id, |_| {}).await?;
    let dir = context.state.fabric.vm_dir(vm.vm_id);
    let handle = VmHandle::attach(&dir);
    let (handle, started) = match handle.status().await {
        Ok(status) => (handle, status.started_at),
        Err(VmError::Ended(_)) => (launch(context, id, &vm, &dir).await?, Utc::now()),
        Err(error) => return Err(JobFailure::transient("InternalServerError", chain(&error))),
    };
    let provisioned = wait(context, id, &vm, &handle, started).await;
    if let Err((failure, over)) = provisioned {
        if over {
            change(context, id, |vm| set_power(vm, PowerState::Stopped)).await?;
        }
        return Err(failure);
    }
    let status = handle.status().await.ok();
    finish(context, id, status.as_ref()).await
}

/// Everything up to a running process.
async fn launch(
    context: &JobContext,
    id: &str,
    vm: &VirtualMachine,
    dir: &Path,
) -> Result<VmHandle, JobFailure> {
    let fabric = &context.state.fabric;
    let internal = |what: &str, error: &dyn std::error::Error| {
        JobFailure::transient("InternalServerError", format!("cannot {what}: {}", chain(error)))
    };
    context.report(json!({ "step": "image" }));
    let source = image::resolve(&context.state, &vm.spec).await?;
    let region = &vm.spec.location;
    let reference = image_reference(vm);
    // Held for as long as the VM lives, wherever the region has it: its disk reads the image lazily.
    hold(fabric, region, &source.manifest, &reference)
        .await
        .map_err(|error| internal("hold the image", &error))?;
    if let Some(before) = &vm.image
        && before.os_disk != source.image.os_disk
        && let Ok(manifest) = before.os_disk.manifest.as_str().parse()
    {
        let_go(fabric, region, &manifest, &reference)
            .await
            .map_err(|error| internal("let go of an image", &error))?;
    }
    let turn = if source.read_ahead { 0 } else { reading_turn(vm) };
    let places = fabric.reading_places(region, &source.manifest, turn).await;
    let places = places.map_err(|error| internal("find the image", &error))?;
    let secrets = secrets::read(dir).map_err(|error| internal("read the VM's secrets", &error))?;
    let accelerator = fabric.accelerator().await.map_err(|error| internal("use QEMU", &error))?;
    let spec = spec::vm_spec(fabric, id, vm, &source, places, &secrets, accelerator)
        .map_err(|reason| JobFailure::permanent("InvalidParameter", reason))?;
    match tokio::fs::remove_file(dir.join(&spec.overlay)).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(internal("remove the disk of an earlier attempt", &error));
        }
        _ => {}
    }
    change(context, id, |vm| {
        vm.image = Some(source.image.clone());
        set_power(vm, PowerState::Starting);
    })
    .await?;
    context.report(json!({ "step": "start" }));
    VmHandle::spawn(fabric.program(), dir, &spec).await.map_err(|error| match error {
        VmError::Ended(ended) => JobFailure::permanent(
            "InternalExecutionError",
            format!("The virtual machine could not be started: {ended}."),
        ),
        other => internal("start the virtual machine", &other),
    })
}

/// Waits for the guest; the flag says that the VM is over.
async fn wait(
    context: &JobContext,
    id: &str,
    vm: &VirtualMachine,
    handle: &VmHandle,
    started: DateTime<Utc>,
) -> Result<(), (JobFailure, bool)> {
    let limit = context.state.config.limits.provisioning_timeout;
    // The time counts from the VM's start, not from this attempt's.
    let left = |now: DateTime<Utc>| limit.saturating_sub((now - started).to_std().unwrap_or_default());
    let name = &vm.name;
    let failure = |error: VmError| match error {
        VmError::Timeout { .. } => (timed_out(name.as_str(), limit), false),
        VmError::Ended(ended) => (over(name.as_str(), &ended, handle), true),
        other => (JobFailure::transient("InternalServerError", chain(&other)), false),
    };
    let running = |status: &VmStatus| matches!(status.phase, Phase::Running).then_some(());
    handle.wait_for("the guest's start", left(Utc::now()), running).await.map_err(failure)?;
    change(context, id, |vm| set_power(vm, PowerState::Running)).await.map_err(|failure| (failure, false))?;
    let signal = vm.spec.os_profile.as_ref().is_some_and(|profile| profile.require_guest_provision_signal);
    if !signal {
        return Ok(());
    }
    context.report(json!({ "step": "provision" }));
    let heard = |status: &VmStatus| match &status.provisioning {
        Provisioning::Ready { .. } => Some(Ok(())),
        Provisioning::Failed { text } => Some(Err(text.clone())),
        Provisioning::Silent | Provisioning::InProgress { .. } => None,
    };
    let outcome = handle.wait_for("the guest's report", left(Utc::now()), heard).await.map_err(failure)?;
    outcome.map_err(|text| (refused_by_guest(name.as_str(), &text), false))
}

/// Azure's words; the VM runs on, as Azure's does.
fn timed_out(name: &str, limit: Duration) -> JobFailure {
    let message = format!(
        "OS Provisioning for VM '{name}' did not finish in the allotted time ({} s). The VM may still finish \
         provisioning successfully. Please check provisioning state later. Also, make sure the image has been \
         properly prepared (generalized).",
        limit.as_secs()
    );
    JobFailure::permanent("OSProvisioningTimedOut", message)
}

fn refused_by_guest(name: &str, text: &str) -> JobFailure {
    let message = format!("OS provisioning for VM '{name}' failed: the guest's agent reported: {text}");
    JobFailure::permanent("OSProvisioningClientError", message)
}

fn over(name: &str, ended: &Ended, handle: &VmHandle) -> JobFailure {
    let console = handle.serial_tail();
    let skip = console.chars().count().saturating_sub(CONSOLE_CHARS_MAX);
    let console: String = console.chars().skip(skip).collect();
    let code = match ended {
        Ended::StartFailed { .. } | Ended::QemuFailed { .. } | Ended::Lost => "InternalExecutionError",
        Ended::GuestPoweredOff | Ended::PoweredOff | Ended::LeaseExpired => "OSProvisioningInternalError",
    };
    let message = format!(
        "VM '{name}' ended before its guest reported ready: {ended}. The end of its console:\n{console}"
    );
    JobFailure::permanent(code, message)
}

async fn finish(context: &JobContext, id: &str, status: Option<&VmStatus>) -> Result<(), JobFailure> {
    let end = OperationEnd::Succeeded(None);
    context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let mut document = find(tx, id).await?;
                let now = tx.now().await?;
                document.data.agent = status.and_then(agent_report);
                document.data =
                    document.data.clone().provisioned(now).map_err(|refusal| {
                        JobFailure::permanent("InternalServerError", refusal.to_string())
                    })?;
                document.state = column_state(&document.data.provisioning);
                tx.update(&mut document).await?;
                context.finish_in(tx, &end).await?;
                Ok(())
            })
        })
        .await
}

fn set_power(vm: &mut VirtualMachine, power: PowerState) {
    *vm = vm.clone().powered(power);
}

/// Changes the VM while this worker holds the job; gives it back as it is then.
async fn change(
    context: &JobContext,
    id: &str,
    apply: impl Fn(&mut VirtualMachine) + Send + Sync,
) -> Result<VirtualMachine, JobFailure> {
    context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let mut document = find(tx, id).await?;
                let before = document.data.clone();
                apply(&mut document.data);
                if document.data != before {
                    tx.update(&mut document).await?;
                }
                Ok(document.data)
            })
        })
        .await
}

/// The VM, unless somebody deletes it: then there is nothing to create.
async fn find(tx: &mut Tx<'_>, id: &str) -> Result<Document<VirtualMachine>, JobFailure> {
    tx.get::<VirtualMachine>(id)
        .await?
        .filter(|document| document.data.provisioning != ProvisioningState::Deleting)
        .ok_or_else(JobFailure::canceled)
}

/// The VM stays as `Failed` with the reason; DELETE removes it, PUT tries again.
pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<VirtualMachine>(key).await? else { return Ok(()) };
    if !document.data.provisioning.is_busy() {
        return Ok(());
    }
    let now = tx.now().await?;
    document.data.provisioning = match failure.kind {
        FailureKind::Canceled => ProvisioningState::Canceled,
        FailureKind::Transient | FailureKind::Permanent => {
            ProvisioningState::Failed(Failure::new(failure.code.clone(), failure.message.clone()))
        }
    };
    document.data.provisioning_changed = now;
    document.data.etag += 1;
    document.state = column_state(&document.data.provisioning);
    tx.update(&mut document).await
}
