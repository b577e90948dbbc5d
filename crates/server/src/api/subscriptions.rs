//! `GET /subscriptions` and `/subscriptions/{id}`: the one subscription. (That it is asked for is checked
//! for every path, in `http::front::check_scope`.)

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use serde_json::{Value, json};

use crate::AppState;
use crate::http::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Method::GET, "/subscriptions", list).on(Method::GET, "/subscriptions/{subscription}", get)
}

async fn list(State(state): State<AppState>) -> Json<Value> {
    Json(json!({ "value": [subscription(&state)], "count": { "type": "Total", "value": 1 } }))
}

async fn get(State(state): State<AppState>) -> Json<Value> {
    Json(subscription(&state))
}

fn subscription(state: &AppState) -> Value {
    let id = state.config.subscription_id.as_str();
    json!({
        "id": format!("/subscriptions/{id}"),
        "authorizationSource": "RoleBased",
        "managedByTenants": [],
        "subscriptionId": id,
        "tenantId": state.config.tenant_id,
        "displayName": state.config.subscription_name,
        "state": "Enabled",
        "subscriptionPolicies": {
            "locationPlacementId": "Public_2014-09-01", "quotaId": "PayAsYouGo_2014-09-01", "spendingLimit": "Off",
        },
    })
}
