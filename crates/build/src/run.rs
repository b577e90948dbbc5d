//! One run, from a request to a new image.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use vmhost::{Ended, StateKey, VmError};

use crate::cache::{Entry, Snapshot};
use crate::deprovision::deprovision;
use crate::error::{BuildError, Stage, StepFailure};
use crate::event::{Events, Phase, Stream};
use crate::explain::{Plan, rights_digest};
use crate::key::StepKey;
use crate::request::{BuildOutput, BuildRequest, Host, Reuse, Step, StepAction, StepReport};
use crate::undo::{run_reference, undo_run};
use crate::validate::{boot_id, validate};
use crate::vm::{BuildVm, From};

/// How long a deprovisioned guest may take to power itself off.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(120);
/// Where a script is put in the guest, as Packer does.
const SCRIPT_PATH: &str = "/tmp/tintype-script.sh";

/// Builds an image. Whatever happens, no VM, socket or file of the run is left when this returns; a run
/// that is killed is cleaned by [`undo_run`].
///
/// # Errors
/// See [`BuildError`]. The image exists only when this returns `Ok`.
pub async fn run(
    request: &BuildRequest,
    host: &Host,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<BuildOutput, BuildError> {
    undo_run(&host.runs_dir, &request.run_id).await?;
    let dir = host.runs_dir.join(&request.run_id);
    std::fs::create_dir_all(&dir).map_err(BuildError::io("make the run's directory"))?;
    let result = tokio::select! {
        result = tokio::time::timeout(request.timeout, build(&dir, request, host, events)) => {
            result.unwrap_or(Err(BuildError::TimedOut { limit: request.timeout }))
        }
        () = cancel.cancelled() => Err(BuildError::Cancelled),
    };
    if let Err(error) = &result {
        events.line(Stream::Customization, format!("the run failed: {error}")).await;
    }
    undo_run(&host.runs_dir, &request.run_id).await?;
    result
}

async fn build(
    dir: &Path,
    request: &BuildRequest,
    host: &Host,
    events: &Events,
) -> Result<BuildOutput, BuildError> {
    let started = Instant::now();
    events.phase(Phase::Building).await;
    let plan = plan(request, host);
    explain(&plan, request, host, events).await;
    let (mut machine, done) = start(dir, request, host, &plan, events).await?;
    let first_boot_id = boot_id(&machine).await?;
    let first_command_s = started.elapsed().as_secs_f64();
    let resumed = done.is_some();
    let done = match done {
        Some(done) => done,
        None => {
            keep(&mut machine, request, host, &plan.keys[0], events).await;
            0
        }
    };
    events.phase(Phase::Customizing).await;
    let mut steps = Vec::new();
    for (n, step) in request.steps.iter().enumerate() {
        let began = Instant::now();
        let cached = n < done;
        if cached {
            let line = format!("customizer {} '{}': unchanged, from the step cache", n + 1, step.name);
            events.line(Stream::Customization, line).await;
        } else {
            run_step(&machine, Stage::Customizer, n, step, events).await?;
            keep(&mut machine, request, host, &plan.keys[n + 1], events).await;
        }
        let seconds = if cached { 0.0 } else { began.elapsed().as_secs_f64() };
        steps.push(StepReport { name: step.name.clone(), cached, seconds });
    }
    events.line(Stream::Customization, "deprovisioning").await;
    deprovision(&machine.session, events).await?;
    powered_off(&machine).await?;
    let commit = commit(&machine.layers, request, host, events).await?;
    let validating = Instant::now();
    let validation_failure = if request.validations.is_empty() {
        None
    } else {
        match validate(dir, request, host, &commit.manifest, &first_boot_id, events).await {
            Ok(()) => None,
            Err(error) => {
                events.line(Stream::Validation, error.to_string()).await;
                if !request.continue_on_validation_failure {
                    for store in &host.stores {
                        store.remove_ref(&commit.manifest, &run_reference(&request.run_id)).await?;
                    }
                    return Err(error);
                }
                Some(error.to_string())
            }
        }
    };
    let validate_s = if request.validations.is_empty() { 0.0 } else { validating.elapsed().as_secs_f64() };
    Ok(BuildOutput {
        manifest: commit.manifest,
        logical_bytes: commit.logical_bytes,
        commit,
        steps,
        first_command_s,
        resumed,
        validate_s,
        validation_failure,
    })
}

/// Keys of the machine after the boot and after each customizer.
struct Keys {
    keys: Vec<StepKey>,
    plan: Plan,
}

fn plan(request: &BuildRequest, host: &Host) -> Keys {
    let mut keys = vec![StepKey::booted(request, host)];
    for step in &request.steps {
        keys.push(keys[keys.len() - 1].after(&step.digest()));
    }
    Keys { keys, plan: Plan::of(request, host) }
}

/// Says what changed since the last run, and remembers this one.
async fn explain(keys: &Keys, request: &BuildRequest, host: &Host, events: &Events) {
    let digest = rights_digest(&request.rights);
    if request.reuse == Reuse::UnchangedSteps {
        let line = match host.cache.last_plan(&digest) {
            None => "step cache: no run before this one may share its steps".to_owned(),
            Some(last) => match keys.plan.first_change(&last) {
                Some(change) => format!("step cache: {change}"),
                None => "step cache: nothing changed since the last run".to_owned(),
            },
        };
        events.line(Stream::Customization, line).await;
    }
    host.cache.remember_plan(&digest, &keys.plan);
}

/// The build VM, and how many customizers it has behind it if it was resumed.
async fn start(
    dir: &Path,
    request: &BuildRequest,
    host: &Host,
    plan: &Keys,
    events: &Events,
) -> Result<(BuildVm, Option<usize>), BuildError> {
    let reusable = match request.reuse {
        Reuse::Nothing => 0,
        Reuse::UnchangedSteps => request.steps.len(),
    };
    let found = (0..=reusable).rev().find_map(|n| Some((n, host.cache.find(&plan.keys[n])?)));
    let base = &request.base.manifest;
    if let Some((done, snapshot)) = found {
        let pinned = host.cache.pin(&snapshot, dir)?;
        events
            .line(Stream::Customization, format!("resuming a saved machine after {done} customizers"))
            .await;
        let vm_dir = dir.join("build");
        match BuildVm::start(&vm_dir, "build", request, host, From::Snapshot(base, &pinned)).await {
            Ok(machine) => return Ok((machine, Some(done))),
            Err(error) => {
                let line = format!("the saved machine cannot be resumed, booting its disk instead: {error}");
                events.line(Stream::Customization, line).await;
            }
        }
        return Ok((boot_cached_disk(dir, request, host, base, &pinned).await?, Some(done)));
    }
    events.line(Stream::Customization, format!("booting {}", request.base.name)).await;
    let machine = BuildVm::start(&dir.join("build"), "build", request, host, From::Image(base)).await?;
    Ok((machine, None))
}

/// The disk of a snapshot whose machine state does not fit: slower, but the same content.
async fn boot_cached_disk(
    dir: &Path,
    request: &BuildRequest,
    host: &Host,
    base: &content::ManifestId,
    snapshot: &Snapshot,
) -> Result<BuildVm, BuildError> {
    vmhost::VmHandle::attach(&dir.join("build")).power_off().await?;
    BuildVm::start(&dir.join("build-disk"), "build", request, host, From::CachedDisk(base, snapshot)).await
}

/// Puts the machine as it is into the step cache. A run does not fail because it could not be cached.
async fn keep(machine: &mut BuildVm, request: &BuildRequest, host: &Host, key: &StepKey, events: &Events) {
    if let Err(error) = try_keep(machine, request, host, key).await {
        events.line(Stream::Customization, format!("step cache: this step was not kept: {error}")).await;
    }
}

async fn try_keep(
    machine: &mut BuildVm,
    request: &BuildRequest,
    host: &Host,
    key: &StepKey,
) -> Result<(), BuildError> {
    let synced = machine.session.exec("sync", &[], None).await?;
    if synced.exit_status != Some(0) {
        return Err(BuildError::Boot { reason: "sync failed in the guest".into() });
    }
    let frozen: Vec<PathBuf> = machine.layers.clone();
    let state = host.cache.state_for_insert(machine.vm.dir());
    let state_key = StateKey::generate()?;
    machine.freeze(request.disk_bytes, Some((&state, &state_key))).await?;
    let entry = Entry {
        layer_count: frozen.len(),
        state_key,
        builder_key: machine.key.clone(),
        identity: machine.identity.clone(),
    };
    host.cache.insert(key, &entry, &frozen, &state)
}

/// Runs one customizer or validation.
pub(crate) async fn run_step(
    machine: &BuildVm,
    stage: Stage,
    n: usize,
    step: &Step,
    events: &Events,
) -> Result<(), BuildError> {
    let (stream, word) = match stage {
        Stage::Validation => (Stream::Validation, "validation"),
        Stage::Customizer | Stage::Deprovision => (Stream::Customization, "customizer"),
    };
    events.line(stream, format!("(telemetry) Starting {word} {} '{}'", n + 1, step.name)).await;
    let log = Some((events, stream));
    let session = &machine.session;
    let output = match &step.action {
        StepAction::File { content, destination } => {
            // No sudo: Image Builder's file customizer writes as the login user too (RULES.md 2A).
            session.exec(&format!("cat > {}", quote(destination)), content, log).await?
        }
        StepAction::Shell { script } => {
            let put = format!("umask 077; cat > {SCRIPT_PATH} && chmod 0755 {SCRIPT_PATH}");
            let put = session.exec(&put, script, None).await?;
            if put.exit_status == Some(0) {
                // A script with an interpreter line is executed, any other text is given to sh.
                let run = if script.starts_with(b"#!") {
                    SCRIPT_PATH.to_owned()
                } else {
                    format!("sh {SCRIPT_PATH}")
                };
                session.exec(&format!("{run}; s=$?; rm -f {SCRIPT_PATH}; exit $s"), &[], log).await?
            } else {
                put
            }
        }
    };
    if output.exit_status == Some(0) {
        events.line(stream, format!("(telemetry) ending {word} {} '{}'", n + 1, step.name)).await;
        return Ok(());
    }
    Err(BuildError::Step(StepFailure {
        stage,
        step: step.name.clone(),
        exit_status: output.exit_status,
        last_lines: output.last_lines,
    }))
}

async fn powered_off(machine: &BuildVm) -> Result<(), BuildError> {
    match machine.vm.wait_ended(POWER_OFF_TIMEOUT).await? {
        Ended::GuestPoweredOff => Ok(()),
        other => Err(BuildError::Vm(VmError::Ended(other))),
    }
}

/// Stores the clusters that changed since the base, in the first zone that takes them.
async fn commit(
    layers: &[PathBuf],
    request: &BuildRequest,
    host: &Host,
    events: &Events,
) -> Result<content::PutReport, BuildError> {
    let owner = run_reference(&request.run_id);
    let mut failed = None;
    let mut committed = None;
    for store in &host.stores {
        match store.commit_overlay(&request.base.manifest, layers, &owner, |_| {}).await {
            Ok(report) => {
                committed = Some(report);
                break;
            }
            Err(error) => {
                let line = format!("cannot commit to {}: {error}", store.location());
                events.line(Stream::Customization, line).await;
                failed = Some(error);
            }
        }
    }
    let report = match (committed, failed) {
        (Some(report), _) => report,
        (None, Some(error)) => return Err(error.into()),
        (None, None) => return Err(BuildError::Boot { reason: "the region has no store".to_owned() }),
    };
    let line = format!(
        "committed: {} new blocks, {} bytes stored, in {:.1} s",
        report.new_blocks, report.stored_bytes, report.seconds
    );
    events.line(Stream::Customization, line).await;
    Ok(report)
}

/// Quotes a path for the guest's shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn quoting_leaves_nothing_to_the_shell() {
        assert_eq!(quote("/tmp/a b"), "'/tmp/a b'");
        assert_eq!(quote("/tmp/$(reboot)'x"), r"'/tmp/$(reboot)'\''x'");
    }
}
