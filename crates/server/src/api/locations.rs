//! `GET /subscriptions/{id}/locations`: the configured regions.

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use serde_json::{Value, json};

use crate::http::routes::Routes;
use crate::{AppState, RegionConfig};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Method::GET, "/subscriptions/{subscription}/locations", list)
}

async fn list(State(state): State<AppState>) -> Json<Value> {
    let subscription = state.config.subscription_id.as_str();
    let locations: Vec<Value> =
        state.config.regions.iter().map(|region| location(subscription, region)).collect();
    Json(json!({ "value": locations }))
}

/// Shape as `az account list-locations` and `az image builder create` read it.
fn location(subscription: &str, region: &RegionConfig) -> Value {
    let (name, display) = (region.name.as_str(), region.name.display_name());
    json!({
        "id": format!("/subscriptions/{subscription}/locations/{name}"),
        "name": name,
        "type": "Region",
        "displayName": display,
        "regionalDisplayName": display,
        "metadata": {
            "regionType": "Physical", "regionCategory": "Recommended", "geography": display, "geographyGroup": display,
            "longitude": "0", "latitude": "0", "physicalLocation": display, "pairedRegion": [],
        },
    })
}
