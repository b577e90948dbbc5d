//! Outputs of a template's last run: GET and list.

use arm::operation::list_body;
use arm::{ArmError, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::Method;
use model::run_output::RunOutput;
use serde_json::Value;
use store::{Document, Filter, StoreError, Tx};

use super::column_state;
use super::image_templates::must_get;
use crate::AppState;
use crate::http::error::ApiError;
use crate::http::path::ArmPath;
use crate::http::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    const ALL: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}/runoutputs";
    const ONE: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}/runoutputs/{output}";
    routes.on(Method::GET, ALL, list).on(Method::GET, ONE, get)
}

/// All on one page: a template has at most 64 distributors.
async fn list(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let text = path.text();
    let template = text.rsplit_once('/').map_or(text.as_str(), |(template, _)| template);
    let outputs = state
        .store
        .read(|tx| {
            Box::pin(async {
                must_get(tx, template).await?;
                Ok::<_, ApiError>(of_template(tx, template).await?)
            })
        })
        .await?;
    let value = outputs.iter().map(render).collect::<Result<_, _>>()?;
    Ok(Json(list_body(value, None)))
}

async fn get(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let id = path.text();
    let found = state.store.read(|tx| Box::pin(async { tx.get::<RunOutput>(&id).await })).await?;
    match found {
        Some(document) => Ok(Json(render(&document)?)),
        None => Err(ArmError::resource_not_found(&ResourceId::parse(&id)?).into()),
    }
}

/// Every output of a template.
///
/// # Errors
/// The database's own.
pub(crate) async fn of_template(
    tx: &mut Tx<'_>,
    template: &str,
) -> Result<Vec<Document<RunOutput>>, StoreError> {
    let filter = Filter { parent: Some(template.to_owned()), ..Filter::default() };
    Ok(tx.list::<RunOutput>(&filter).await?.items)
}

/// Writes an output of a template, in place of one from an earlier run.
///
/// # Errors
/// The database's own.
pub(crate) async fn put(
    tx: &mut Tx<'_>,
    template: &str,
    location: &str,
    output: RunOutput,
) -> Result<(), StoreError> {
    let id = format!("{template}/runOutputs/{}", output.name);
    let state = column_state(&output.provisioning);
    match tx.get::<RunOutput>(&id).await? {
        Some(mut found) => {
            found.data = output;
            found.state = state;
            tx.update(&mut found).await
        }
        None => tx.insert(&mut Document::new(&id, location, state, output)?).await,
    }
}

fn render(document: &Document<RunOutput>) -> Result<Value, ApiError> {
    Ok(arm::run_output::render(&document.data, &ResourceId::parse(&document.id)?))
}
