//! Image templates: PUT, GET, PATCH, DELETE, lists, `run` and `cancel`.
//!
//! A template is immutable but for what PATCH may change (RULES.md 2A). What the template alone can break is
//! refused at once; what needs other resources or the network is found by the job that creates it, and ends in
//! `provisioningState: Failed` (REFERENCE.md 5.2).

use arm::operation::list_body;
use arm::resource_type::IMAGE_TEMPLATES;
use arm::{ArmError, Context, Parsed, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use model::image_template::{ImageTemplate, ImageTemplateSpec, LastRun};
use model::vm_size::vm_size;
use model::{ImageTemplateName, Rule, Violation};
use serde_json::Value;
use store::{Document, Filter, NewOperation, Operation, OperationFamily, StoreError, Tx};

use super::resources::next_link;
use super::runs::{self, RunEntry};
use super::{Begun, column_state, resource_groups};
use crate::AppState;
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Version};
use crate::http::lro::{self, PollHeaders};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::{
    self, JobKind, create_image_template, delete_image_template, run_image_template, vhd_target,
};

/// Type of a template's row.
pub(super) const TYPE: &str = "microsoft.virtualmachineimages/imagetemplates";
/// Most templates on a page.
const PAGE_ITEMS: u32 = 100;

pub(super) fn routes(routes: Routes) -> Routes {
    const ALL: &str = "/subscriptions/{subscription}/providers/microsoft.virtualmachineimages/imagetemplates";
    const IN_GROUP: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates";
    const ONE: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}";
    const RUN: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}/run";
    const CANCEL: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}/cancel";
    routes
        .on(Method::GET, ALL, list)
        .on(Method::GET, IN_GROUP, list)
        .on(Method::PUT, ONE, put)
        .on(Method::GET, ONE, get)
        .on(Method::PATCH, ONE, patch)
        .on(Method::DELETE, ONE, delete)
        .on(Method::POST, RUN, run)
        .on(Method::POST, CANCEL, cancel)
}

async fn put(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let name = ImageTemplateName::parse(path.value("imagetemplates")?)?;
    version.check(&IMAGE_TEMPLATES, body["location"].as_str().unwrap_or_default())?;
    let Parsed { data: mut spec, extra } = arm::image_template::parse(body, &version)?;
    check_offered(&state, &spec)?;
    vhd_target::accept(&state, &mut spec.distribute)?;
    let group = format!(
        "/subscriptions/{}/resourceGroups/{}",
        state.config.subscription_id,
        path.value("resourcegroups")?
    );
    let id = format!("{group}/providers/{}/{name}", IMAGE_TEMPLATES.as_str());
    let (document, operation) = state
        .store
        .write(|tx| {
            Box::pin(async {
                resource_groups::must_exist(tx, &group).await?;
                if tx.exists(&id).await? {
                    return Err(ArmError::template_update_not_supported().into());
                }
                let template = ImageTemplate::create(name.clone(), spec.clone());
                let location = spec.location.as_str();
                let mut new = Document::new(&id, location, column_state(&template.provisioning), template)?;
                new.extra = extra.clone();
                tx.insert(&mut new).await?;
                let operation = begin_create(tx, &new, "imageTemplates.create").await?;
                Ok::<_, ApiError>((new, operation))
            })
        })
        .await?;
    let headers = lro::headers(&state.endpoint, &operation, &version, PollHeaders::Async);
    Ok((StatusCode::CREATED, headers, Json(render(&document)?)).into_response())
}

/// What this server has to offer: regions and VM sizes.
fn check_offered(state: &AppState, spec: &ImageTemplateSpec) -> Result<(), ApiError> {
    if state.config.region(spec.location.as_str()).is_none() {
        let names: Vec<&str> = state.config.regions.iter().map(|region| region.name.as_str()).collect();
        return Err(ArmError::location_not_available(spec.location.as_str(), &IMAGE_TEMPLATES, &names).into());
    }
    check_size(spec)
}

fn check_size(spec: &ImageTemplateSpec) -> Result<(), ApiError> {
    match spec.vm_profile.vm_size.as_deref() {
        Some(name) if vm_size(name).is_none() => {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
            let message = format!(
                "vmSize '{shown}' is not a size that this server offers. Leave it out, or use one such as Standard_D2ds_v4."
            );
            Err(Violation::at(Rule::Template, "properties.vmProfile.vmSize", message).into())
        }
        _ => Ok(()),
    }
}

async fn get(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let id = path.text();
    let document = state.store.read(|tx| Box::pin(async { must_get(tx, &id).await })).await?;
    Ok(Json(render(&document)?))
}

async fn list(State(state): State<AppState>, path: ArmPath, query: Query) -> Result<Json<Value>, ApiError> {
    let group = path.find("resourcegroups");
    let filter = Filter {
        ty: Some(TYPE.to_owned()),
        subscription: Some(path.value("subscriptions")?.to_owned()),
        resource_group: group.map(str::to_owned),
        after: query.get("$skiptoken").map(str::to_owned),
        limit: PAGE_ITEMS,
        ..Filter::default()
    };
    let group_id =
        group.map(|name| format!("/subscriptions/{}/resourceGroups/{name}", state.config.subscription_id));
    let listing = state
        .store
        .read(|tx| {
            Box::pin(async {
                if let Some(id) = &group_id {
                    resource_groups::must_exist(tx, id).await?;
                }
                Ok::<_, ApiError>(tx.list::<ImageTemplate>(&filter).await?)
            })
        })
        .await?;
    let value = listing.items.iter().map(render).collect::<Result<_, _>>()?;
    let next = listing.next.map(|next| next_link(&state, &path, &query, &next));
    Ok(Json(list_body(value, next.as_deref())))
}

/// Checks again, by the job that creates templates, what the change touches.
async fn patch(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let mut patch = arm::image_template::parse_patch(body, &version)?;
    if let Some(distributors) = &mut patch.distribute {
        vhd_target::accept(&state, distributors)?;
    }
    let id = path.text();
    let operation = state
        .store
        .write(|tx| {
            Box::pin(async {
                let mut document = must_get(tx, &id).await?;
                refuse_running(&document.data, "updated")?;
                document.data.spec = document.data.patched_spec(patch.clone())?;
                check_size(&document.data.spec)?;
                document.data.provisioning = document.data.provisioning.clone().update()?;
                save(tx, &mut document).await?;
                Ok::<_, ApiError>(begin_create(tx, &document, "imageTemplates.update").await?)
            })
        })
        .await?;
    Ok(lro::accepted(&state.endpoint, &operation, &version, PollHeaders::AsyncAndLocation))
}

fn refuse_running(template: &ImageTemplate, what: &str) -> Result<(), ApiError> {
    if !template.last_run.as_ref().is_some_and(LastRun::is_active) {
        return Ok(());
    }
    let message = format!(
        "The image template '{}' can not be {what} while it is being run. Cancel the run or wait until it has ended.",
        template.name
    );
    Err(ArmError::operation_not_allowed(message).into())
}

async fn run(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    let id = path.text();
    let id = id.strip_suffix(path.segment(path.len() - 1)).unwrap_or(&id).trim_end_matches('/');
    let operation = state
        .store
        .write(|tx| {
            Box::pin(async {
                let mut document = must_get(tx, id).await?;
                begin_run(tx, &mut document).await
            })
        })
        .await?;
    Ok(lro::accepted(&state.endpoint, &operation, &version, PollHeaders::AsyncAndLocation))
}

/// Always 204, as recorded from Azure: the run ends when it has cleaned up, which the template shows.
async fn cancel(State(state): State<AppState>, path: ArmPath) -> Result<StatusCode, ApiError> {
    let id = path.text();
    let id = id.strip_suffix(path.segment(path.len() - 1)).unwrap_or(&id).trim_end_matches('/');
    state
        .store
        .write(|tx| {
            Box::pin(async {
                let mut document = must_get(tx, id).await?;
                Ok::<_, ApiError>(cancel_run(tx, &mut document).await?)
            })
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    let id = path.text();
    let operation = state
        .store
        .write(|tx| {
            Box::pin(async {
                let Some(mut document) = tx.get::<ImageTemplate>(&id).await? else { return Ok(None) };
                document.data.check_delete()?;
                if document.state == store::ProvisioningState::Deleting {
                    // Asking again while it is being deleted gives the same operation.
                    let running = tx.operations_in_progress(&id).await?.into_iter().next();
                    if running.is_some() {
                        return Ok(running);
                    }
                }
                if document.data.provisioning.is_busy() {
                    let message = format!(
                        "The image template '{}' is being created or updated. Wait until that has ended, and delete again.",
                        document.data.name
                    );
                    return Err(ArmError::operation_not_allowed(message).into());
                }
                Ok::<_, ApiError>(Some(start_delete(tx, &mut document).await?))
            })
        })
        .await?;
    Ok(match operation {
        Some(operation) => {
            lro::accepted(&state.endpoint, &operation, &version, PollHeaders::AsyncAndLocation)
        }
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Deletes a template as part of its group's deletion: cancels its run, waits until it is idle, then deletes.
///
/// # Errors
/// The database's own.
pub(crate) async fn begin_delete(tx: &mut Tx<'_>, id: &str) -> Result<Begun, StoreError> {
    let Some(mut document) = tx.get::<ImageTemplate>(id).await? else { return Ok(Begun::Deleted) };
    if document.data.last_run.as_ref().is_some_and(LastRun::is_active) {
        cancel_run(tx, &mut document).await?;
    } else if !document.state.is_busy() {
        start_delete(tx, &mut document).await?;
    }
    Ok(Begun::Working)
}

/// Begins a run, as an operation whose id is the run's.
///
/// # Errors
/// 409 while another run is under way or unless the template is ready.
pub(crate) async fn begin_run(
    tx: &mut Tx<'_>,
    document: &mut Document<ImageTemplate>,
) -> Result<Operation, ApiError> {
    let now = tx.now().await?;
    document.data = document.data.clone().start_run(now)?;
    save(tx, document).await?;
    let operation = begin_operation(tx, document, "imageTemplates.run").await?;
    let payload = run_image_template::Payload { template: document.id.clone() };
    jobs::enqueue(tx, JobKind::RunImageTemplate, &payload, &document.id, Some(&operation.id)).await?;
    let entry =
        RunEntry { run_id: operation.id.clone(), reuse: run_image_template::asks_reuse(&document.data.spec) };
    runs::remember(tx, &document.key, entry).await?;
    Ok(operation)
}

/// Writes a template back, its state column with it.
///
/// # Errors
/// The database's own.
pub(crate) async fn save(tx: &mut Tx<'_>, document: &mut Document<ImageTemplate>) -> Result<(), StoreError> {
    document.state = column_state(&document.data.provisioning);
    tx.update(document).await
}

async fn cancel_run(tx: &mut Tx<'_>, document: &mut Document<ImageTemplate>) -> Result<(), StoreError> {
    let Some(run) = document.data.last_run.clone() else { return Ok(()) };
    // Nothing is under way: there is nothing to cancel.
    let Ok(canceling) = run.clone().cancel() else { return Ok(()) };
    if canceling != run {
        document.data.last_run = Some(canceling);
        save(tx, document).await?;
    }
    for job in tx.unfinished_jobs(&document.id).await? {
        if job.kind == JobKind::RunImageTemplate.as_str() {
            tx.request_cancel(&job.id).await?;
        }
    }
    Ok(())
}

async fn start_delete(
    tx: &mut Tx<'_>,
    document: &mut Document<ImageTemplate>,
) -> Result<Operation, StoreError> {
    document.data.provisioning = model::ProvisioningState::Deleting;
    save(tx, document).await?;
    let operation = begin_operation(tx, document, "imageTemplates.delete").await?;
    let payload = delete_image_template::Payload { template: document.id.clone() };
    jobs::enqueue(tx, JobKind::DeleteImageTemplate, &payload, &document.id, Some(&operation.id)).await?;
    Ok(operation)
}

async fn begin_create(
    tx: &mut Tx<'_>,
    document: &Document<ImageTemplate>,
    kind: &str,
) -> Result<Operation, StoreError> {
    let operation = begin_operation(tx, document, kind).await?;
    let payload = create_image_template::Payload { template: document.id.clone() };
    jobs::enqueue(tx, JobKind::CreateImageTemplate, &payload, &document.id, Some(&operation.id)).await?;
    Ok(operation)
}

async fn begin_operation(
    tx: &mut Tx<'_>,
    document: &Document<ImageTemplate>,
    kind: &str,
) -> Result<Operation, StoreError> {
    tx.begin_operation(NewOperation {
        resource_id: document.id.clone(),
        kind: kind.to_owned(),
        family: OperationFamily::ImageBuilder,
        location: document.location.clone(),
    })
    .await
}

pub(super) async fn must_get(tx: &mut Tx<'_>, id: &str) -> Result<Document<ImageTemplate>, ApiError> {
    match tx.get::<ImageTemplate>(id).await? {
        Some(document) => Ok(document),
        None => Err(ArmError::resource_not_found(&ResourceId::parse(id)?).into()),
    }
}

/// The template as image builder answers it.
pub(crate) fn render(document: &Document<ImageTemplate>) -> Result<Value, ApiError> {
    let id = ResourceId::parse(&document.id)?;
    Ok(arm::image_template::render(&document.data, &Context { id: &id, extra: &document.extra }))
}
