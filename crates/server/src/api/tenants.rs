//! `GET /tenants`: the one tenant.

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use serde_json::{Value, json};

use crate::AppState;
use crate::http::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Method::GET, "/tenants", list)
}

async fn list(State(state): State<AppState>) -> Json<Value> {
    let id = state.config.tenant_id;
    let tenant = json!({
        "id": format!("/tenants/{id}"), "tenantId": id, "displayName": state.config.subscription_name,
        "tenantCategory": "Home", "tenantType": "AAD",
    });
    Json(json!({ "value": [tenant] }))
}
