//! Galleries: PUT, PATCH, GET, lists, DELETE; and what they share with the two types inside of them.
//!
//! A gallery and a definition are rows and nothing more, yet Azure answers as for work: 201 `Creating` or 200
//! `Updating` and an operation. So do we, with an operation that has ended when the client first asks for it.

use arm::operation::list_body;
use arm::resource_type::{GALLERIES, ResourceType};
use arm::{ApiVersion, ArmError, Context, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use model::gallery::Gallery;
use model::resource_group::ResourceGroup;
use model::{GalleryName, ProvisioningState, Region};
use serde::de::DeserializeOwned;
use serde_json::Value;
use store::{Document, Filter, NewOperation, Operation, OperationEnd, OperationFamily, StoreError, Tx};

use super::column_state;
use super::resources::next_link;
use crate::AppState;
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Version};
use crate::http::lro::{self, PollHeaders};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;

/// Most resources on a page.
const PAGE_ITEMS: u32 = 1000;

pub(super) fn routes(routes: Routes) -> Routes {
    const GALLERIES: &str =
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries";
    const GALLERY: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}";
    routes
        .on(Method::GET, "/subscriptions/{subscription}/providers/microsoft.compute/galleries", list)
        .on(Method::GET, GALLERIES, list)
        .on(Method::PUT, GALLERY, put)
        .on(Method::PATCH, GALLERY, patch)
        .on(Method::GET, GALLERY, get)
        .on(Method::DELETE, GALLERY, delete)
}

// ---- what the three types share ----

/// Refuses an api-version that Compute does not have.
pub(super) fn check_version(
    state: &AppState,
    version: &ApiVersion,
    resource_type: &ResourceType,
) -> Result<(), ApiError> {
    let location = state.config.regions.first().map_or("", |region| region.name.as_str());
    Ok(version.check(resource_type, location)?)
}

/// Refuses a region that this service does not have (RULES.md 2D, 3).
pub(super) fn check_region(
    state: &AppState,
    region: &Region,
    resource_type: &ResourceType,
    target: &str,
) -> Result<(), ApiError> {
    if state.config.region(region.as_str()).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = state.config.regions.iter().map(|region| region.name.as_str()).collect();
    let error = ArmError::location_not_available(region.as_str(), resource_type, &names);
    Err(error.with_target(target).into())
}

/// The path's resource group, which must exist and not be going away: what every change asks first.
pub(super) async fn group(tx: &mut Tx<'_>, id: &ResourceId) -> Result<Document<ResourceGroup>, ApiError> {
    let name = id.resource_group().unwrap_or_default();
    let group_id = format!("/subscriptions/{}/resourceGroups/{name}", id.subscription().unwrap_or_default());
    let group = tx.get::<ResourceGroup>(&group_id).await?;
    let group = group.ok_or_else(|| ArmError::resource_group_not_found(name))?;
    if group.state == store::ProvisioningState::Deleting {
        return Err(ArmError::resource_group_being_deleted(&group.name).into());
    }
    Ok(group)
}

/// The 404 that fits: the group, the resource above, or the resource itself.
pub(super) async fn missing(tx: &mut Tx<'_>, id: &ResourceId) -> Result<ApiError, StoreError> {
    let mut error = ApiError::from(ArmError::resource_not_found(id));
    let mut next = id.parent();
    // Up to the group; the subscription is no row. The last one that is missing is the outermost.
    while let Some(above) = next.filter(|above| above.resource_group().is_some()) {
        if !tx.exists(&above.to_string()).await? {
            error = match above.names().next() {
                None => ArmError::resource_group_not_found(above.name()).into(),
                Some(_) => ArmError::parent_resource_not_found(above.name()).into(),
            };
        }
        next = above.parent();
    }
    Ok(error)
}

/// The document under this id.
pub(super) async fn find<T: DeserializeOwned + Send>(
    tx: &mut Tx<'_>,
    id: &ResourceId,
) -> Result<Document<T>, ApiError> {
    match tx.get::<T>(&id.to_string()).await? {
        Some(document) => Ok(document),
        None => Err(missing(tx, id).await?),
    }
}

/// Begins an operation of the gallery family.
pub(super) async fn begin(
    tx: &mut Tx<'_>,
    id: &str,
    location: &str,
    kind: &str,
) -> Result<Operation, StoreError> {
    tx.begin_operation(NewOperation {
        resource_id: id.to_owned(),
        kind: kind.to_owned(),
        family: OperationFamily::Gallery,
        location: location.to_owned(),
    })
    .await
}

/// An operation that has done its work in this transaction.
pub(super) async fn done(
    tx: &mut Tx<'_>,
    id: &str,
    location: &str,
    kind: &str,
) -> Result<Operation, StoreError> {
    let operation = begin(tx, id, location, kind).await?;
    tx.end_operation(&operation.id, &OperationEnd::Succeeded(None)).await?;
    Ok(operation)
}

/// The answer to a PUT or PATCH.
pub(super) fn answer(
    state: &AppState,
    created: bool,
    operation: &Operation,
    version: &ApiVersion,
    body: Value,
) -> Response {
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    (status, lro::headers(&state.endpoint, operation, version, PollHeaders::Async), Json(body))
        .into_response()
}

/// The answer to a DELETE: `None` when there was nothing.
pub(super) fn deleted(state: &AppState, operation: Option<&Operation>, version: &ApiVersion) -> Response {
    match operation {
        Some(operation) => lro::accepted(&state.endpoint, operation, version, PollHeaders::AsyncAndLocation),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

/// Deletes a row that nothing is nested in, with an operation that has ended. `None`: it is not there.
pub(super) async fn delete_row(
    tx: &mut Tx<'_>,
    id: &ResourceId,
    kind: &str,
) -> Result<Option<Operation>, ApiError> {
    group(tx, id).await?;
    let Some(document) = tx.get::<Value>(&id.to_string()).await? else { return Ok(None) };
    tx.delete(&document.key).await?;
    Ok(Some(done(tx, &document.id, &document.location, kind).await?))
}

/// A page of what `filter` matches. `above`: the resource that the list is of, which must exist.
pub(super) async fn page<T: DeserializeOwned + Send>(
    state: &AppState,
    path: &ArmPath,
    query: &Query,
    filter: Filter,
    above: Option<&ResourceId>,
    render: impl Fn(&Document<T>) -> Result<Value, ApiError>,
) -> Result<Json<Value>, ApiError> {
    let top = query.get("$top").and_then(|top| top.parse().ok()).unwrap_or(PAGE_ITEMS);
    let after = query.get("$skiptoken").map(str::to_owned);
    let filter = Filter { after, limit: top.clamp(1, PAGE_ITEMS), ..filter };
    let listing = state
        .store
        .read(|tx| {
            Box::pin(async {
                if let Some(above) = above
                    && !tx.exists(&above.to_string()).await?
                {
                    // Seen from the list, the resource that is missing is the parent.
                    return Err(missing(tx, &above.child(&GALLERIES, "any")).await?);
                }
                Ok::<_, ApiError>(tx.list::<T>(&filter).await?)
            })
        })
        .await?;
    let value = listing.items.iter().map(render).collect::<Result<_, _>>()?;
    let next = listing.next.map(|next| next_link(state, path, query, &next));
    Ok(Json(list_body(value, next.as_deref())))
}

/// The id in the path.
pub(super) fn id_of(path: &ArmPath) -> Result<ResourceId, ApiError> {
    Ok(ResourceId::parse(&path.text())?)
}

// ---- galleries ----

async fn put(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    check_version(&state, &version, &GALLERIES)?;
    let name = GalleryName::parse(path.value("galleries")?)?;
    write(&state, &path, &version, &name, Write::Put(body)).await
}

async fn patch(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    check_version(&state, &version, &GALLERIES)?;
    let name = GalleryName::parse(path.value("galleries")?)?;
    write(&state, &path, &version, &name, Write::Patch(body)).await
}

/// A body and how it is meant.
pub(super) enum Write {
    /// All of the resource.
    Put(Value),
    /// What changes in a resource that exists.
    Patch(Value),
}

async fn write(
    state: &AppState,
    path: &ArmPath,
    version: &ApiVersion,
    name: &GalleryName,
    body: Write,
) -> Result<Response, ApiError> {
    let id = id_of(path)?;
    let (created, operation, body) = state
        .store
        .write(|tx| {
            Box::pin(async {
                let group = group(tx, &id).await?;
                let found = tx.get::<Gallery>(&id.to_string()).await?;
                let body = match (&body, &found) {
                    (Write::Put(body), _) => body.clone(),
                    (Write::Patch(patch), Some(found)) => arm::apply_patch(render(found)?, patch.clone()),
                    (Write::Patch(_), None) => return Err(missing(tx, &id).await?),
                };
                let parsed = arm::gallery::parse(body, version)?;
                check_region(state, &parsed.data.location, &GALLERIES, "location")?;
                let created = found.is_none();
                let mut document = match found {
                    Some(mut found) => {
                        found.data.check_update(&parsed.data)?;
                        found.data.spec = parsed.data;
                        found.data.provisioning = ProvisioningState::Updating;
                        found
                    }
                    None => {
                        let gallery = Gallery::create(name.clone(), parsed.data);
                        check_unique(tx, &id, name).await?;
                        let id = format!("{}/providers/{GALLERIES}/{name}", group.id);
                        let location = gallery.spec.location.to_string();
                        Document::new(&id, &location, column_state(&gallery.provisioning), gallery)?
                    }
                };
                document.extra = parsed.extra;
                let answer = render(&document)?;
                document.data.provisioning = document.data.provisioning.clone().succeed()?;
                document.state = column_state(&document.data.provisioning);
                match created {
                    true => tx.insert(&mut document).await?,
                    false => tx.update(&mut document).await?,
                }
                let operation = done(tx, &document.id, &document.location, "galleries.write").await?;
                Ok::<_, ApiError>((created, operation, answer))
            })
        })
        .await?;
    Ok(answer(state, created, &operation, version, body))
}

/// A gallery's name is unique in the subscription (RULES.md 2D, 5).
async fn check_unique(tx: &mut Tx<'_>, id: &ResourceId, name: &GalleryName) -> Result<(), ApiError> {
    let subscription = id.subscription().unwrap_or_default();
    let mut filter = Filter {
        ty: Some(GALLERIES.to_string()),
        subscription: Some(subscription.to_owned()),
        ..Filter::default()
    };
    loop {
        let listing = tx.list::<Gallery>(&filter).await?;
        if listing.items.iter().any(|other| other.data.name == *name) {
            let message = format!(
                "The gallery name {name} is not unique within the subscription {subscription}. Please pick another gallery name"
            );
            return Err(ArmError::conflict(message).with_target("galleryName").into());
        }
        match listing.next {
            Some(next) => filter.after = Some(next),
            None => return Ok(()),
        }
    }
}

async fn get(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &GALLERIES)?;
    let id = id_of(&path)?;
    let document = state.store.read(|tx| Box::pin(async { find::<Gallery>(tx, &id).await })).await?;
    Ok(Json(render(&document)?))
}

async fn list(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &GALLERIES)?;
    let subscription = path.value("subscriptions")?;
    let group = path.find("resourcegroups");
    let above = group
        .map(|group| ResourceId::parse(&format!("/subscriptions/{subscription}/resourceGroups/{group}")));
    let filter = Filter {
        ty: Some(GALLERIES.to_string()),
        subscription: Some(subscription.to_owned()),
        resource_group: group.map(str::to_owned),
        ..Filter::default()
    };
    page(&state, &path, &query, filter, above.transpose()?.as_ref(), render).await
}

/// 409 while it holds definitions (RULES.md 2D, 4).
async fn delete(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    check_version(&state, &version, &GALLERIES)?;
    let id = id_of(&path)?;
    let operation =
        state.store.write(|tx| Box::pin(async { delete_row(tx, &id, "galleries.delete").await })).await?;
    Ok(deleted(&state, operation.as_ref(), &version))
}

fn render(document: &Document<Gallery>) -> Result<Value, ApiError> {
    let id = ResourceId::parse(&document.id)?;
    Ok(arm::gallery::render(&document.data, &Context { id: &id, extra: &document.extra }))
}
