//! `GET …/resources`: everything in a subscription or resource group, in ARM's generic shape.

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use serde_json::{Value, json};
use store::{Document, Filter};

use super::resource_groups;
use crate::AppState;
use crate::http::error::ApiError;
use crate::http::path::ArmPath;
use crate::http::query::{Query, encode};
use crate::http::routes::Routes;

/// Most resources on a page.
const PAGE_ITEMS: u32 = 1000;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Method::GET, "/subscriptions/{subscription}/resources", list).on(
        Method::GET,
        "/subscriptions/{subscription}/resourcegroups/{group}/resources",
        list,
    )
}

async fn list(State(state): State<AppState>, path: ArmPath, query: Query) -> Result<Json<Value>, ApiError> {
    let mut filter = match query.get("$filter") {
        Some(text) => parse_filter(text)?,
        None => Filter::default(),
    };
    filter.subscription = Some(path.value("subscriptions")?.to_owned());
    if let Some(group) = path.find("resourcegroups") {
        filter.resource_group = Some(group.to_owned());
    }
    filter.after = query.get("$skiptoken").map(str::to_owned);
    filter.limit = PAGE_ITEMS;
    let text = path.text();
    let group_id = path.find("resourcegroups").and_then(|_| text.rsplit_once('/')).map(|(id, _)| id);
    let listing = state
        .store
        .read(|tx| {
            Box::pin(async {
                if let Some(id) = group_id {
                    resource_groups::must_exist(tx, id).await?;
                }
                Ok::<_, ApiError>(tx.list::<Value>(&filter).await?)
            })
        })
        .await?;
    let value = listing.items.iter().filter(|item| item.ty != resource_groups::TYPE).map(render).collect();
    let next = listing.next.map(|next| next_link(&state, &path, &query, &next));
    Ok(Json(arm::operation::list_body(value, next.as_deref())))
}

/// The address of the page after `next`.
pub(super) fn next_link(state: &AppState, path: &ArmPath, query: &Query, next: &str) -> String {
    let mut url = format!("{}{}?", state.endpoint.url(), path.text().replace(' ', "%20"));
    for name in ["api-version", "$filter", "$expand", "$top"] {
        if let Some(value) = query.get(name) {
            url.push_str(&format!("{name}={}&", encode(value)));
        }
    }
    format!("{url}$skiptoken={}", encode(next))
}

/// The `$filter`s that clients send: `resourceGroup eq 'x'` and `resourceType eq 'y'`, joined by `and`.
fn parse_filter(text: &str) -> Result<Filter, ApiError> {
    let refuse = || {
        let shown: String = text.chars().take(200).collect();
        let message = format!(
            "Invalid $filter '{shown}': supported are resourceGroup eq '…' and resourceType eq '…', joined by 'and'."
        );
        ApiError::new(400, "InvalidFilterInQueryString", message)
    };
    let mut filter = Filter::default();
    let mut words = text.split_whitespace();
    loop {
        let (name, eq, value) = (words.next(), words.next(), words.next());
        let value = value.and_then(|v| v.strip_prefix('\'')?.strip_suffix('\'')).ok_or_else(refuse)?;
        if !eq.is_some_and(|eq| eq.eq_ignore_ascii_case("eq")) {
            return Err(refuse());
        }
        match name.unwrap_or_default().to_ascii_lowercase().as_str() {
            "resourcegroup" => filter.resource_group = Some(value.to_owned()),
            "resourcetype" => filter.ty = Some(value.to_owned()),
            _ => return Err(refuse()),
        }
        match words.next() {
            None => return Ok(filter),
            Some(and) if and.eq_ignore_ascii_case("and") => {}
            Some(_) => return Err(refuse()),
        }
    }
}

fn render(document: &Document<Value>) -> Value {
    let mut body = json!({
        "id": document.id,
        "name": document.name,
        "type": type_as_written(&document.id),
        "location": document.location,
        "provisioningState": document.state.as_str(),
        "createdTime": document.created_at,
        "changedTime": document.updated_at,
    });
    let tags = document.data.pointer("/spec/tags").or_else(|| document.data.get("tags"));
    if let Some(tags) = tags.filter(|tags| tags.as_object().is_some_and(|tags| !tags.is_empty())) {
        body["tags"] = tags.clone();
    }
    body
}

/// `Microsoft.Compute/galleries/images` from an id, in the case of the id.
fn type_as_written(id: &str) -> String {
    let segments: Vec<&str> = id.split('/').skip(1).collect();
    match segments.iter().rposition(|segment| segment.eq_ignore_ascii_case("providers")) {
        Some(at) => {
            let types: Vec<&str> = segments.iter().skip(at + 2).step_by(2).copied().collect();
            format!("{}/{}", segments.get(at + 1).unwrap_or(&""), types.join("/"))
        }
        None => "Microsoft.Resources/resourceGroups".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_parse_or_are_refused() {
        let filter =
            parse_filter("resourceGroup eq 'rg1' and resourceType EQ 'Microsoft.Compute/galleries'").unwrap();
        assert_eq!(filter.resource_group.as_deref(), Some("rg1"));
        assert_eq!(filter.ty.as_deref(), Some("Microsoft.Compute/galleries"));
        for bad in [
            "",
            "x eq 'y'",
            "resourceGroup eq y",
            "resourceGroup ne 'y'",
            "resourceGroup eq 'y' or",
            "resourceGroup eq 'y' and",
        ] {
            assert_eq!(parse_filter(bad).unwrap_err().status(), 400, "{bad}");
        }
    }

    #[test]
    fn types_come_from_ids() {
        let id = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/galleries/g/images/i";
        assert_eq!(type_as_written(id), "Microsoft.Compute/galleries/images");
        assert_eq!(
            type_as_written("/subscriptions/s/resourceGroups/rg"),
            "Microsoft.Resources/resourceGroups"
        );
    }
}
