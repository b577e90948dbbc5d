//! Builds, validates and distributes an image. The run's id is its operation's.
//!
//! ```text
//!   source (platform image made on first use) ─▶ build::run ─▶ publish versions and images, write VHDs ─▶ outputs, report
//!        Building                 Building, Customizing, Validating     Distributing         Succeeded
//! ```
//!
//! Nothing is published before the build and its validations have succeeded. Whatever ends a run, it leaves no VM
//! and no reference: `build::run` cleans up after itself, and a run of a killed server is undone at the next start.

mod distribute;
mod journal;
mod machine_size;
mod request;

use std::time::{Duration, Instant};

use build::{BuildOutput, Events, Reuse, Stream};
use futures::future::{BoxFuture, FutureExt};
use model::image_definition::HyperVGeneration;
use model::image_template::{ImageTemplate, ImageTemplateSpec, OnError, RunOutcome, RunStage};
use model::run_output::{Artifact, RunOutput};
use model::{ProvisioningState, ResourceRef};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Document, Job, OperationEnd, StoreError, Tx};
use tokio_util::sync::CancellationToken;

use self::distribute::{Distributed, Published};
use self::journal::Journal;
use super::context::{FailureKind, JobContext, JobFailure};
use super::create_image_template::group_name;
use super::{JobKind, OnLost};
use crate::api::image_templates::save;
use crate::api::run_outputs;
use crate::http::error::chain;

/// The tag by which a template asks that unchanged leading steps be taken from the step cache. Without it every
/// step runs: Azure's users rely on a run doing its work anew.
pub(crate) const REUSE_TAG: &str = "tintype-reuse";
/// The value of [`REUSE_TAG`] that asks for it.
pub(crate) const REUSE_UNCHANGED_STEPS: &str = "unchanged-steps";

/// Code of a run that failed.
const FAILED_CODE: &str = "ImageTemplateBuildError";
/// Events of a build that wait to be written; the build waits when there are more.
const EVENTS_MAX: usize = 1024;

/// Which template. The run is the job's operation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Its id.
    pub(crate) template: String,
}

/// Whether runs of this template ask for reuse.
pub(crate) fn asks_reuse(spec: &ImageTemplateSpec) -> bool {
    spec.tags.iter().any(|(name, value)| {
        name.eq_ignore_ascii_case(REUSE_TAG) && value.eq_ignore_ascii_case(REUSE_UNCHANGED_STEPS)
    })
}

/// A run under way.
struct Run {
    context: JobContext,
    run_id: String,
    template: Document<ImageTemplate>,
    /// Cancelled by the user or because the service stops.
    stop: CancellationToken,
    started: Instant,
}

/// A build that succeeded, and what is to be said of it.
struct Built {
    output: BuildOutput,
    /// `None`: the source has no versions.
    exact_version: Option<String>,
    /// The source's, and so the result's.
    generation: HyperVGeneration,
    /// When `buildTimeoutInMinutes` is over.
    deadline: tokio::time::Instant,
}

/// Boxed, like the larger parts below: the compiler cannot see through so many borrowing futures at once that
/// they are `Send`.
pub(super) fn run(context: JobContext) -> BoxFuture<'static, Result<(), JobFailure>> {
    Box::pin(run_template(context))
}

async fn run_template(context: JobContext) -> Result<(), JobFailure> {
    let Payload { template } = context.payload()?;
    let run_id = context
        .job
        .operation_id
        .clone()
        .ok_or_else(|| JobFailure::permanent("InternalServerError", "a run without an operation"))?;
    let found =
        context.state.store.read(|tx| Box::pin(async { tx.get::<ImageTemplate>(&template).await })).await;
    let Some(document) = found.map_err(give_up)? else {
        return Err(JobFailure::permanent("NotFound", "The image template was deleted."));
    };
    let stop = CancellationToken::new();
    let _watch = stop.clone().drop_guard();
    tokio::spawn(stop_with(stop.clone(), context.cancel.clone(), context.stopping.clone()));
    let run = Run { context, run_id, template: document, stop, started: Instant::now() };
    let mut journal = Journal::open(&run.context, &run.template, &run.run_id).map_err(give_up)?;
    let ended = run.work(&mut journal).boxed().await;
    if let Err(failure) = &ended {
        journal.line(Stream::Customization, &format!("the run ended: {}", failure.message));
    }
    journal.flush().await;
    ended
}

/// Ends with the run, whose guard cancels `stop`.
async fn stop_with(stop: CancellationToken, cancel: CancellationToken, stopping: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = stopping.cancelled() => {}
        () = stop.cancelled() => {}
    }
    stop.cancel();
}

/// A run is not tried again by itself: half of it may have been seen.
fn give_up(error: impl std::error::Error) -> JobFailure {
    JobFailure::permanent("InternalServerError", chain(&error))
}

impl Run {
    fn spec(&self) -> &ImageTemplateSpec {
        &self.template.data.spec
    }

    /// Why the run stopped, if it was told to.
    fn stopped(&self) -> Option<JobFailure> {
        if self.context.cancel.is_cancelled() {
            return Some(JobFailure {
                message: "The run was canceled on request.".to_owned(),
                ..JobFailure::canceled()
            });
        }
        if !self.context.stopping.is_cancelled() {
            return None;
        }
        let reason = match JobKind::RunImageTemplate.on_lost() {
            OnLost::Fail(reason) => reason,
            OnLost::Retry => "The service stopped.",
        };
        Some(JobFailure::permanent("OperationPreempted", reason))
    }

    async fn work(&self, journal: &mut Journal) -> Result<(), JobFailure> {
        let built = self.build(journal).boxed().await?;
        let region = &self.spec().location;
        let stores = self.context.state.fabric.stores(region).await.map_err(give_up)?;
        journal.stage(RunStage::Distributing).await;
        let distributed = distribute::distribute(self, &built, journal).boxed().await;
        let failure = self.stopped();
        distribute::release(&stores, &built.output.manifest, &self.run_id, &distributed, journal)
            .boxed()
            .await;
        journal.flush().await;
        if let Some(failure) = failure.filter(|_| distributed.iter().any(|one| one.published.is_err())) {
            return Err(failure);
        }
        self.finish(&built, &distributed).boxed().await.map_err(give_up)
    }

    /// Resolves the source and builds, with the log and the stages written beside it.
    async fn build(&self, journal: &mut Journal) -> Result<Built, JobFailure> {
        journal.stage(RunStage::Building).await;
        journal.line(
            Stream::Customization,
            &format!("run {} of image template {}", self.run_id, self.template.id),
        );
        let handling = self.spec().error_handling.unwrap_or_default();
        if [handling.on_customizer_error, handling.on_validation_error].contains(&Some(OnError::Abort)) {
            journal.line(
                Stream::Customization,
                "errorHandling 'abort' is not supported here: VMs are always removed",
            );
        }
        journal.flush().await;
        let source = tokio::select! {
            source = request::resolve_source(self, journal).boxed() => source?,
            () = self.stop.cancelled() => return Err(self.stopped().unwrap_or_else(JobFailure::canceled)),
        };
        let request = request::build_request(self, &source)?;
        let (fabric, base) = (&self.context.state.fabric, &request.base.manifest);
        let order = distribute::zone_order(self).map_err(give_up)?;
        let host = fabric.build_host(&self.spec().location, base, &order).await.map_err(give_up)?;
        let deadline = tokio::time::Instant::now() + request.timeout;
        let (events, receiver) = Events::channel(EVENTS_MAX);
        let building = async {
            let output = build::run(&request, &host, &events, &self.stop).await;
            // The journal ends when the build can send no more.
            drop(events);
            output
        };
        let (output, ()) = tokio::join!(building, journal.listen(receiver));
        match output {
            Ok(output) => {
                let (exact_version, generation) = (source.exact_version, source.generation);
                Ok(Built { output, exact_version, generation, deadline })
            }
            Err(build::BuildError::Cancelled) => Err(self.stopped().unwrap_or_else(JobFailure::canceled)),
            Err(error) => Err(JobFailure::permanent(FAILED_CODE, error.to_string())),
        }
    }

    /// The end of a run whose build succeeded: outputs, last run, report, operation and job in one transaction.
    async fn finish(&self, built: &Built, distributed: &[Distributed]) -> Result<(), StoreError> {
        let failures: Vec<&str> =
            distributed.iter().filter_map(|one| one.published.as_ref().err().map(String::as_str)).collect();
        let invalid = built.output.validation_failure.as_deref();
        let outcome = match (invalid, failures.len()) {
            (None, 0) => RunOutcome::Succeeded,
            (None, failed) if failed < distributed.len() => RunOutcome::PartiallySucceeded,
            _ => RunOutcome::Failed,
        };
        let message = invalid.into_iter().chain(failures.iter().copied()).collect::<Vec<_>>().join("\n");
        let report = self.report(built, distributed);
        let end = match outcome {
            RunOutcome::Succeeded => OperationEnd::Succeeded(Some(report)),
            _ => OperationEnd::Failed(json!({ "code": FAILED_CODE, "message": message, "report": report })),
        };
        self.context
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    self.context.hold(tx).await?;
                    if let Some(mut document) = tx.get::<ImageTemplate>(&self.template.id).await? {
                        document.data.resolved.exact_version = built.exact_version.clone();
                        end_last_run(tx, &mut document, outcome, &message).await?;
                        for one in distributed {
                            put_output(tx, &document, one).await?;
                        }
                    }
                    self.context.finish_in(tx, &end).await
                })
            })
            .await
    }

    fn report(&self, built: &Built, distributed: &[Distributed]) -> Value {
        let BuildOutput {
            manifest, logical_bytes, commit, steps, first_command_s, resumed, validate_s, ..
        } = &built.output;
        let versions: Vec<Value> = distributed
            .iter()
            .filter_map(|one| match &one.published {
                Ok(Published::Version(version)) => Some(version),
                _ => None,
            })
            .map(|version| {
                let regions: Vec<Value> = version
                    .regions
                    .iter()
                    .map(|(region, bytes)| json!({ "region": region, "bytesMoved": bytes }))
                    .collect();
                json!({ "id": version.id, "regions": regions })
            })
            .collect();
        let images: Vec<Value> = distributed
            .iter()
            .filter_map(|one| match &one.published {
                Ok(Published::Image(id)) => Some(json!({ "id": id })),
                _ => None,
            })
            .collect();
        let vhds: Vec<Value> = distributed
            .iter()
            .filter_map(|one| match &one.published {
                Ok(Published::Vhd(vhd)) => {
                    Some(json!({ "uri": vhd.uri, "bytes": vhd.bytes, "writtenBytes": vhd.sent_bytes }))
                }
                _ => None,
            })
            .collect();
        json!({
            "runId": self.run_id,
            "reuse": self.reuse() == Reuse::UnchangedSteps,
            "steps": steps,
            "firstCommandSeconds": first_command_s,
            "resumed": resumed,
            "validateSeconds": validate_s,
            "seconds": self.started.elapsed().as_secs_f64(),
            "manifest": manifest.to_string(),
            "logicalBytes": logical_bytes,
            "commit": {
                "newBlocks": commit.new_blocks,
                "newBlocksBytes": commit.new_blocks_bytes,
                "storedBytes": commit.stored_bytes,
                "seconds": commit.seconds,
            },
            "versions": versions,
            "images": images,
            "vhds": vhds,
        })
    }

    fn reuse(&self) -> Reuse {
        if asks_reuse(self.spec()) { Reuse::UnchangedSteps } else { Reuse::Nothing }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.spec().build_timeout_minutes()) * 60)
    }

    fn staging_dir(&self) -> Result<std::path::PathBuf, JobFailure> {
        staging_dir(&self.context, &self.template).ok_or_else(|| {
            JobFailure::permanent("InternalServerError", "The image template has no staging resource group.")
        })
    }
}

fn staging_dir(context: &JobContext, template: &Document<ImageTemplate>) -> Option<std::path::PathBuf> {
    let group = template.data.resolved.staging_resource_group.as_deref()?;
    Some(context.state.fabric.staging_dir(&group_name(group)))
}

async fn put_output(
    tx: &mut Tx<'_>,
    template: &Document<ImageTemplate>,
    one: &Distributed,
) -> Result<(), StoreError> {
    let id = match &one.published {
        Ok(Published::Version(version)) => Some(&version.id),
        Ok(Published::Image(id)) => Some(id),
        _ => None,
    };
    let artifact = match (id, &one.published) {
        (Some(id), _) => match ResourceRef::parse(id, "artifactId") {
            Ok(reference) => Artifact::Resource(reference),
            // The id was written by this service: it is a reference.
            Err(_) => return Ok(()),
        },
        (None, Ok(Published::Vhd(vhd))) => Artifact::Uri(vhd.uri.clone()),
        (None, _) => return Ok(()),
    };
    let output =
        RunOutput { name: one.run_output.clone(), artifact, provisioning: ProvisioningState::Succeeded };
    run_outputs::put(tx, &template.id, &template.location, output).await
}

async fn end_last_run(
    tx: &mut Tx<'_>,
    document: &mut Document<ImageTemplate>,
    outcome: RunOutcome,
    message: &str,
) -> Result<(), StoreError> {
    let now = tx.now().await?;
    let Some(run) = document.data.last_run.clone() else { return Ok(()) };
    // One that has ended stays as it ended.
    if let Ok(ended) = run.finish(outcome, message, now) {
        document.data.last_run = Some(ended);
        save(tx, document).await?;
    }
    Ok(())
}

/// The template shows how the run ended. What the run left on this host is removed by `build::run`, or, when the
/// service was killed, at its next start.
pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    let Some(template) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<ImageTemplate>(template).await? else { return Ok(()) };
    let outcome = match failure.kind {
        FailureKind::Canceled => RunOutcome::Canceled,
        FailureKind::Permanent | FailureKind::Transient => RunOutcome::Failed,
    };
    end_last_run(tx, &mut document, outcome, &failure.message).await
}
