//! Image definitions: PUT, PATCH, GET, list, DELETE.

use arm::resource_type::GALLERY_IMAGES;
use arm::{ApiVersion, ArmError, Context, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use chrono::DateTime;
use model::gallery::Gallery;
use model::image_definition::{Identifier, ImageDefinition, ImageDefinitionSpec};
use model::{ImageDefinitionName, ProvisioningState};
use serde_json::Value;
use store::{Document, Filter, Tx};

use super::column_state;
use super::galleries::{
    Write, answer, check_region, check_version, delete_row, deleted, done, find, group, id_of, missing, page,
};
use crate::AppState;
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Version};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    const DEFINITIONS: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images";
    const DEFINITION: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}";
    routes
        .on(Method::GET, DEFINITIONS, list)
        .on(Method::PUT, DEFINITION, put)
        .on(Method::PATCH, DEFINITION, patch)
        .on(Method::GET, DEFINITION, get)
        .on(Method::DELETE, DEFINITION, delete)
}

async fn put(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    write(&state, &path, &version, Write::Put(body)).await
}

async fn patch(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    write(&state, &path, &version, Write::Patch(body)).await
}

async fn write(
    state: &AppState,
    path: &ArmPath,
    version: &ApiVersion,
    body: Write,
) -> Result<Response, ApiError> {
    check_version(state, version, &GALLERY_IMAGES)?;
    let name = ImageDefinitionName::parse(path.value("images")?)?;
    let id = id_of(path)?;
    let (created, operation, body) = state
        .store
        .write(|tx| {
            Box::pin(async {
                group(tx, &id).await?;
                let gallery = gallery(tx, &id).await?;
                let found = tx.get::<ImageDefinition>(&id.to_string()).await?;
                let body = match (&body, &found) {
                    (Write::Put(body), _) => body.clone(),
                    (Write::Patch(patch), Some(found)) => arm::apply_patch(render(found)?, patch.clone()),
                    (Write::Patch(_), None) => return Err(missing(tx, &id).await?),
                };
                // A date that stays may pass; only a new one must be ahead.
                let parsed = arm::image_definition::parse(body, version, DateTime::<chrono::Utc>::MIN_UTC)?;
                if found.as_ref().is_none_or(|found| found.data.spec.end_of_life != parsed.data.end_of_life) {
                    parsed.data.check(tx.now().await?)?;
                }
                check_region(state, &parsed.data.location, &GALLERY_IMAGES, "location")?;
                check_identifier_free(tx, &gallery, &name, &parsed.data).await?;
                let created = found.is_none();
                let mut document = match found {
                    Some(mut found) => {
                        found.data.check_update(&parsed.data)?;
                        found.data.spec = parsed.data;
                        found.data.provisioning = ProvisioningState::Updating;
                        found
                    }
                    None => {
                        let definition = ImageDefinition::create(name.clone(), parsed.data);
                        let id = format!("{}/images/{name}", gallery.id);
                        let location = definition.spec.location.to_string();
                        Document::new(&id, &location, column_state(&definition.provisioning), definition)?
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
                let operation = done(tx, &document.id, &document.location, "imageDefinitions.write").await?;
                Ok::<_, ApiError>((created, operation, answer))
            })
        })
        .await?;
    Ok(answer(state, created, &operation, version, body))
}

async fn gallery(tx: &mut Tx<'_>, id: &ResourceId) -> Result<Document<Gallery>, ApiError> {
    let above = id.parent().ok_or_else(|| ApiError::internal("a definition's id without a gallery"))?;
    let gallery = tx.get::<Gallery>(&above.to_string()).await?;
    Ok(gallery.ok_or_else(|| ArmError::parent_resource_not_found(above.name()))?)
}

/// Publisher, offer and SKU are unique in a gallery (RULES.md 2D, 14).
async fn check_identifier_free(
    tx: &mut Tx<'_>,
    gallery: &Document<Gallery>,
    name: &ImageDefinitionName,
    spec: &ImageDefinitionSpec,
) -> Result<(), ApiError> {
    let mut filter = Filter { parent: Some(gallery.key.clone()), ..Filter::default() };
    loop {
        let listing = tx.list::<ImageDefinition>(&filter).await?;
        let others = listing.items.iter().filter(|other| other.data.name != *name);
        let others = others.map(|other| (&other.data.name, &other.data.spec.identifier));
        spec.check_identifier_free(others.collect::<Vec<(&ImageDefinitionName, &Identifier)>>())?;
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
    check_version(&state, &version, &GALLERY_IMAGES)?;
    let id = id_of(&path)?;
    let document = state.store.read(|tx| Box::pin(async { find::<ImageDefinition>(tx, &id).await })).await?;
    Ok(Json(render(&document)?))
}

async fn list(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &GALLERY_IMAGES)?;
    let text = path.text();
    let above = ResourceId::parse(text.rsplit_once('/').map_or("", |(above, _)| above))?;
    let filter = Filter { parent: Some(above.to_string()), ..Filter::default() };
    page(&state, &path, &query, filter, Some(&above), render).await
}

/// 409 while it holds versions (RULES.md 2D, 4).
async fn delete(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Response, ApiError> {
    check_version(&state, &version, &GALLERY_IMAGES)?;
    let id = id_of(&path)?;
    let operation = state
        .store
        .write(|tx| Box::pin(async { delete_row(tx, &id, "imageDefinitions.delete").await }))
        .await?;
    Ok(deleted(&state, operation.as_ref(), &version))
}

fn render(document: &Document<ImageDefinition>) -> Result<Value, ApiError> {
    let id = ResourceId::parse(&document.id)?;
    Ok(arm::image_definition::render(&document.data, &Context { id: &id, extra: &document.extra }))
}
