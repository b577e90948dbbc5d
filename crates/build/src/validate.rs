//! Validation: the new image, booted afresh as a customer would boot it, in a VM of its own.

use std::path::Path;

use content::ManifestId;

use crate::error::{BuildError, Stage};
use crate::event::{Events, Phase, Stream};
use crate::request::{BuildRequest, Host};
use crate::run::run_step;
use crate::vm::{BuildVm, From};

/// Boots `image` and runs every validation; the first failure ends it.
pub(crate) async fn validate(
    run_dir: &Path,
    request: &BuildRequest,
    host: &Host,
    image: &ManifestId,
    build_boot_id: &str,
    events: &Events,
) -> Result<(), BuildError> {
    events.phase(Phase::Validating).await;
    events.line(Stream::Validation, "booting the new image in a validation VM").await;
    let dir = run_dir.join("validate");
    let machine = BuildVm::start(&dir, "validate", request, host, From::Image(image)).await?;
    let boot_id = boot_id(&machine).await?;
    if boot_id == build_boot_id {
        return Err(BuildError::Boot { reason: "the validation VM is the build VM (equal boot ids)".into() });
    }
    events.line(Stream::Validation, format!("validation VM is up, boot id {boot_id}")).await;
    for (n, step) in request.validations.iter().enumerate() {
        run_step(&machine, Stage::Validation, n, step, events).await?;
    }
    machine.session.close().await;
    machine.vm.power_off().await?;
    Ok(())
}

/// The guest kernel's name for this boot.
pub(crate) async fn boot_id(machine: &BuildVm) -> Result<String, BuildError> {
    let output = machine.session.exec("cat /proc/sys/kernel/random/boot_id", &[], None).await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
