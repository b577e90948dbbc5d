//! Creates or updates a template: makes its staging resource group, checks what it refers to, and fetches its
//! scripts and files, so that a run uses the very bytes that were submitted.
//!
//! ```text
//!   staging group ─▶ source ─▶ distributors ─▶ scripts and files ─▶ Succeeded (─▶ run, if autoRun)
//!        └────────────┴────────────┴──────────────┴──▶ Failed with provisioningError, as Azure does
//! ```

mod references;
mod staging;
pub(crate) mod staging_account;

use futures::future::BoxFuture;
use model::image_template::{ImageTemplate, ProvisioningError, ProvisioningErrorCode, ResolvedTemplate};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::{Document, Job, OperationEnd, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use crate::api::image_templates::{begin_run, render, save};

pub(crate) use staging::{STAGED_BYTES_MAX, group_name, staged_file};

/// Which template.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Its id.
    pub(crate) template: String,
}

/// Why creating does not go on.
enum Stop {
    /// The template is wrong: it ends as `Failed`, and trying again does not help.
    Refused(ProvisioningError),
    /// The service could not do its work.
    Job(JobFailure),
}

impl From<ProvisioningError> for Stop {
    fn from(error: ProvisioningError) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Job(error.into())
    }
}

fn refuse(code: ProvisioningErrorCode, message: impl Into<String>) -> Stop {
    Stop::Refused(ProvisioningError { code, message: message.into() })
}

/// Boxed: the compiler cannot see through so many borrowing futures at once that they are `Send`.
pub(super) fn run(context: JobContext) -> BoxFuture<'static, Result<(), JobFailure>> {
    Box::pin(create(context))
}

async fn create(context: JobContext) -> Result<(), JobFailure> {
    let Payload { template } = context.payload()?;
    let found =
        context.state.store.read(|tx| Box::pin(async { tx.get::<ImageTemplate>(&template).await })).await?;
    let Some(document) = found.filter(|document| document.data.provisioning.is_busy()) else { return Ok(()) };
    let work = prepare(&context, &document);
    let prepared = tokio::select! {
        prepared = work => prepared,
        () = context.stopping.cancelled() => {
            return Err(JobFailure::transient("InternalServerError", "the service stops"));
        }
    };
    match prepared {
        Ok(resolved) => Ok(succeed(&context, &template, &resolved).await?),
        Err(Stop::Refused(error)) => Ok(end_refused(&context, &template, &error).await?),
        Err(Stop::Job(failure)) => Err(failure),
    }
}

async fn prepare(context: &JobContext, document: &Document<ImageTemplate>) -> Result<ResolvedTemplate, Stop> {
    let spec = &document.data.spec;
    let mut resolved = document.data.resolved.clone();
    let group = staging::ensure_group(context, &document.id).await?;
    resolved.staging_resource_group = Some(group.clone());
    let source = references::check_source(context, spec).await?;
    spec.check_for_os(source.traits.os_type)?;
    references::check_unsupported(spec)?;
    references::check_distributors(context, spec, &source.traits).await?;
    resolved.exact_version = source.exact_version;
    staging::fetch_all(context, spec, &group, &mut resolved.checksums).await?;
    Ok(resolved)
}

async fn succeed(
    context: &JobContext,
    template: &str,
    resolved: &ResolvedTemplate,
) -> Result<(), JobFailure> {
    let written: Result<(), StoreError> = context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let end = OperationEnd::Succeeded(None);
                if let Some(mut document) = tx.get::<ImageTemplate>(template).await?
                    && let Ok(done) = document.data.provisioning.clone().succeed()
                {
                    document.data.provisioning = done;
                    document.data.resolved = resolved.clone();
                    save(tx, &mut document).await?;
                    if document.data.spec.auto_run == Some(true)
                        && let Err(error) = begin_run(tx, &mut document).await
                    {
                        tracing::warn!(template, error = %error.error_object(), "autoRun did not begin a run");
                    }
                }
                context.finish_in(tx, &end).await
            })
        })
        .await;
    Ok(written?)
}

/// The template stays, as `Failed`; the operation fails with the same code and message.
async fn end_refused(
    context: &JobContext,
    template: &str,
    error: &ProvisioningError,
) -> Result<(), JobFailure> {
    let written: Result<(), StoreError> = context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let code = write_failed(tx, template, error.clone()).await?;
                let end = OperationEnd::Failed(json!({ "code": code, "message": error.message }));
                context.finish_in(tx, &end).await
            })
        })
        .await;
    Ok(written?)
}

/// Writes the failure; gives Azure's word for its code.
async fn write_failed(
    tx: &mut Tx<'_>,
    template: &str,
    error: ProvisioningError,
) -> Result<String, StoreError> {
    const OTHER: &str = "Other";
    let Some(mut document) = tx.get::<ImageTemplate>(template).await? else { return Ok(OTHER.to_owned()) };
    if let Ok(failed) = document.data.provisioning.clone().fail(error) {
        document.data.provisioning = failed;
        save(tx, &mut document).await?;
    }
    let shown = render(&document).unwrap_or_default();
    let code = shown["properties"]["provisioningError"]["provisioningErrorCode"].as_str();
    Ok(code.unwrap_or(OTHER).to_owned())
}

pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    let Some(template) = &job.resource_key else { return Ok(()) };
    let error =
        ProvisioningError { code: ProvisioningErrorCode::ServerError, message: failure.message.clone() };
    write_failed(tx, template, error).await.map(|_| ())
}
