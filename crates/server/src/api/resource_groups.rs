//! Resource groups: PUT, GET, HEAD, PATCH, list, DELETE.

use arm::operation::list_body;
use arm::{ArmError, Context, Parsed, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use model::resource_group::ResourceGroup;
use model::{Region, ResourceGroupName, Tags};
use serde::Deserialize;
use serde_json::Value;
use store::{Document, Filter, NewOperation, OperationFamily, ProvisioningState, Tx};

use super::column_state;
use super::resources::next_link;
use crate::AppState;
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Version};
use crate::http::lro::{self, PollHeaders};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::{self, JobKind, delete_resource_group::Payload};

/// Type of a resource group's row.
pub(super) const TYPE: &str = "microsoft.resources/resourcegroups";
/// Most groups on a page.
const PAGE_ITEMS: u32 = 1000;

pub(super) fn routes(routes: Routes) -> Routes {
    const GROUPS: &str = "/subscriptions/{subscription}/resourcegroups";
    const GROUP: &str = "/subscriptions/{subscription}/resourcegroups/{group}";
    routes
        .on(Method::GET, GROUPS, list)
        .on(Method::PUT, GROUP, put)
        .on(Method::GET, GROUP, get)
        .on(Method::HEAD, GROUP, head)
        .on(Method::PATCH, GROUP, patch)
        .on(Method::DELETE, GROUP, delete)
}

/// 404 `ResourceGroupNotFound`, in ARM's words, unless the group exists. `az` reads the code.
pub(crate) async fn must_exist(tx: &mut Tx<'_>, group_id: &str) -> Result<(), ApiError> {
    if tx.exists(group_id).await? { Ok(()) } else { Err(not_found(group_id)) }
}

fn not_found(id: &str) -> ApiError {
    let name = id.rsplit('/').next().unwrap_or_default();
    ArmError::resource_group_not_found(name).into()
}

#[derive(Deserialize)]
struct PatchBody {
    tags: Option<Tags>,
}

async fn put(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let name = ResourceGroupName::parse(path.value("resourcegroups")?)?;
    let Parsed { data: spec, extra } = arm::resource_group::parse(body, &version)?;
    if state.config.region(spec.location.as_str()).is_none() {
        return Err(unknown_location(&state, &spec.location));
    }
    let id = format!("/subscriptions/{}/resourceGroups/{name}", state.config.subscription_id);
    let (created, document) = state
        .store
        .write(|tx| {
            Box::pin(async {
                let Some(mut found) = tx.get::<ResourceGroup>(&id).await? else {
                    let group = ResourceGroup::create(name.clone(), spec.clone());
                    let location = spec.location.as_str();
                    let mut new = Document::new(&id, location, column_state(&group.provisioning), group)?;
                    new.extra = extra.clone();
                    tx.insert(&mut new).await?;
                    return Ok((true, new));
                };
                refuse_deleting(&found)?;
                found.data.check_update(&spec).map_err(|violation| {
                    ApiError::new(409, "InvalidResourceGroupLocation", violation.message)
                })?;
                found.data.spec = spec.clone();
                found.extra = extra.clone();
                tx.update(&mut found).await?;
                Ok::<_, ApiError>((false, found))
            })
        })
        .await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(render(&document)?)).into_response())
}

fn unknown_location(state: &AppState, location: &Region) -> ApiError {
    let names: Vec<&str> = state.config.regions.iter().map(|region| region.name.as_str()).collect();
    let message = format!(
        "The provided location '{location}' is not available for resource group. List of available regions is '{}'.",
        names.join(",")
    );
    ApiError::new(400, "LocationNotAvailableForResourceGroup", message)
}

fn refuse_deleting(document: &Document<ResourceGroup>) -> Result<(), ApiError> {
    if document.state != ProvisioningState::Deleting {
        return Ok(());
    }
    Err(ArmError::resource_group_being_deleted(&document.name).into())
}

async fn find(state: &AppState, path: &ArmPath) -> Result<Option<Document<ResourceGroup>>, ApiError> {
    let id = path.text();
    Ok(state.store.read(|tx| Box::pin(async { tx.get::<ResourceGroup>(&id).await })).await?)
}

async fn get(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let document = find(&state, &path).await?.ok_or_else(|| not_found(&path.text()))?;
    Ok(Json(render(&document)?))
}

async fn head(State(state): State<AppState>, path: ArmPath) -> Result<StatusCode, ApiError> {
    let found = find(&state, &path).await?;
    Ok(if found.is_some() { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND })
}

/// Replaces the tags, if there are any in the body.
async fn patch(
    State(state): State<AppState>,
    path: ArmPath,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let body: PatchBody = serde_json::from_value(body)
        .map_err(|error| ArmError::invalid_request_content(&error.to_string()))?;
    let id = path.text();
    let document = state
        .store
        .write(|tx| {
            Box::pin(async {
                let mut found = tx.get::<ResourceGroup>(&id).await?.ok_or_else(|| not_found(&id))?;
                refuse_deleting(&found)?;
                if let Some(tags) = &body.tags {
                    found.data.spec.tags = tags.clone();
                    tx.update(&mut found).await?;
                }
                Ok::<_, ApiError>(found)
            })
        })
        .await?;
    Ok(Json(render(&document)?))
}

async fn list(State(state): State<AppState>, path: ArmPath, query: Query) -> Result<Json<Value>, ApiError> {
    let top = query.get("$top").and_then(|top| top.parse().ok()).unwrap_or(PAGE_ITEMS);
    let filter = Filter {
        ty: Some(TYPE.to_owned()),
        subscription: Some(path.value("subscriptions")?.to_owned()),
        after: query.get("$skiptoken").map(str::to_owned),
        limit: top.clamp(1, PAGE_ITEMS),
        ..Filter::default()
    };
    let listing = state.store.read(|tx| Box::pin(async { tx.list::<ResourceGroup>(&filter).await })).await?;
    let value = listing.items.iter().map(render).collect::<Result<_, _>>()?;
    let next = listing.next.map(|next| next_link(&state, &path, &query, &next));
    Ok(Json(list_body(value, next.as_deref())))
}

/// Everything in the group goes, by a job. Asking again while it runs gives the same operation.
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
                let mut group = tx.get::<ResourceGroup>(&id).await?.ok_or_else(|| not_found(&id))?;
                if let Some(running) = tx.operations_in_progress(&id).await?.into_iter().next() {
                    return Ok(running);
                }
                group.data.provisioning = group.data.provisioning.clone().delete()?;
                group.state = column_state(&group.data.provisioning);
                tx.update(&mut group).await?;
                let operation = tx
                    .begin_operation(NewOperation {
                        resource_id: group.id.clone(),
                        kind: "resourceGroups.delete".to_owned(),
                        family: OperationFamily::ResourceGroup,
                        location: group.location.clone(),
                    })
                    .await?;
                let payload = Payload { group: group.id.clone() };
                jobs::enqueue(tx, JobKind::DeleteResourceGroup, &payload, &group.id, Some(&operation.id))
                    .await?;
                Ok::<_, ApiError>(operation)
            })
        })
        .await?;
    Ok(lro::accepted(&state.endpoint, &operation, &version, PollHeaders::Location))
}

fn render(document: &Document<ResourceGroup>) -> Result<Value, ApiError> {
    let id = ResourceId::parse(&document.id)?;
    Ok(arm::resource_group::render(&document.data, &Context { id: &id, extra: &document.extra }))
}
