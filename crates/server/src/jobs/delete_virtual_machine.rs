//! Ends a VM and removes what it had: its process, its directory with disk and secrets, its hold on the image.
//! Doing it again does nothing.

use std::time::Duration;

use model::virtual_machine::VirtualMachine;
use model::{Failure, ProvisioningState};
use serde::{Deserialize, Serialize};
use store::{Job, OperationEnd, StoreError, Tx};
use vmhost::VmHandle;

use super::context::{JobContext, JobFailure};
use super::create_virtual_machine::image_reference;
use crate::AppState;
use crate::api::column_state;
use crate::copies::let_go;
use crate::http::error::chain;
use crate::reconcile::gc::want_gc;

/// How long it waits for the job that creates the VM, which was asked to stop. It then lets go of its worker
/// and comes again: the other job may need a worker to end.
const CREATION_ENDS: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the VM.
    pub(crate) vm: String,
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { vm: id } = context.payload()?;
    wait_for_creation(&context, &id).await?;
    let found =
        context.state.store.read(|tx| Box::pin(async { tx.get::<VirtualMachine>(&id).await })).await?;
    let Some(document) = found else { return Ok(()) };
    remove(&context.state, &document.data).await?;
    context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                if tx.exists(&id).await? {
                    tx.delete(&id).await?;
                    want_gc(tx, &document.data.spec.location).await?;
                }
                context.finish_in(tx, &OperationEnd::Succeeded(None)).await
            })
        })
        .await?;
    Ok(())
}

/// The job that creates the VM must not start it again behind this one's back.
async fn wait_for_creation(context: &JobContext, id: &str) -> Result<(), JobFailure> {
    let until = tokio::time::Instant::now() + CREATION_ENDS;
    loop {
        let jobs = context.state.store.read(|tx| Box::pin(async { tx.unfinished_jobs(id).await })).await?;
        if jobs.iter().all(|job| job.id == context.job.id) {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until || context.stopping.is_cancelled() {
            return Err(JobFailure::transient(
                "InternalServerError",
                "the VM's creation is still being stopped",
            ));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn remove(state: &AppState, vm: &VirtualMachine) -> Result<(), JobFailure> {
    let transient =
        |error: &dyn std::error::Error| JobFailure::transient("InternalServerError", chain(error));
    let dir = state.fabric.vm_dir(vm.vm_id);
    if dir.exists() {
        VmHandle::attach(&dir).power_off().await.map_err(|error| transient(&error))?;
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(transient(&error)),
            _ => {}
        }
    }
    let manifest = vm.image.as_ref().and_then(|image| image.os_disk.manifest.as_str().parse().ok());
    if let Some(manifest) = manifest {
        let released = let_go(&state.fabric, &vm.spec.location, &manifest, &image_reference(vm)).await;
        released.map_err(|error| transient(&error))?;
    }
    Ok(())
}

/// What is left can be deleted again.
pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<VirtualMachine>(key).await? else { return Ok(()) };
    document.data.provisioning =
        ProvisioningState::Failed(Failure::new(failure.code.clone(), failure.message.clone()));
    document.data.provisioning_changed = tx.now().await?;
    document.data.etag += 1;
    document.state = column_state(&document.data.provisioning);
    tx.update(&mut document).await
}
