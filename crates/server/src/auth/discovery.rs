//! What clients ask before they have a token: the cloud's endpoints, OpenID configuration, keys
//! (CLIENTS.md 2 has the bodies that real clients worked with).

use axum::extract::State;
use axum::http::Method;
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::AppState;
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Method::GET, "/metadata/endpoints", endpoints)
        .on(Method::GET, "/{tenant}/v2.0/.well-known/openid-configuration", configuration)
        .on(Method::GET, "/{tenant}/.well-known/openid-configuration", configuration)
        .on(Method::GET, "/{tenant}/discovery/v2.0/keys", keys)
        .on(Method::GET, "/{tenant}/discovery/keys", keys)
}

async fn endpoints(State(state): State<AppState>, Extension(query): Extension<Query>) -> Json<Value> {
    let url = state.endpoint.audience();
    let audiences = [url.as_str()];
    if query.get("api-version") == Some("2015-01-01") {
        return Json(json!({
            "galleryEndpoint": url, "graphEndpoint": url, "portalEndpoint": url,
            "authentication": { "loginEndpoint": url, "audiences": audiences },
        }));
    }
    let host = &state.config.public_host;
    Json(json!({
        "name": "tintype",
        "portal": format!("{url}portal"),
        "authentication": {
            "loginEndpoint": url, "audiences": audiences, "tenant": state.config.tenant_id, "identityProvider": "AAD",
        },
        "graphAudience": url, "microsoftGraphResourceId": url, "graph": url, "resourceManager": url, "gallery": url,
        "batch": url, "sqlManagement": url, "media": url, "activeDirectoryDataLake": url,
        "logAnalyticsResourceId": url, "appInsightsResourceId": url, "attestationResourceId": url,
        "synapseAnalyticsResourceId": url, "ossrdbmsResourceId": url,
        "suffixes": {
            "storage": host, "keyVaultDns": format!("vault.{host}"), "acrLoginServer": format!("azurecr.{host}"),
            "sqlServerHostname": format!("database.{host}"), "azureDataLakeStoreFileSystem": format!("dls.{host}"),
            "azureDataLakeAnalyticsCatalogAndJob": format!("dla.{host}"),
        },
    }))
}

/// `organizations` and `common` (asked by `az logout`) are answered with the one tenant.
async fn configuration(State(state): State<AppState>, Extension(path): Extension<ArmPath>) -> Json<Value> {
    let base = state.endpoint.url();
    let tenant = state.config.tenant_id;
    let under = match path.segment(0) {
        "adfs" => format!("{base}/adfs/oauth2"),
        _ => format!("{base}/{tenant}/oauth2/v2.0"),
    };
    Json(json!({
        "token_endpoint": format!("{under}/token"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "jwks_uri": format!("{base}/{tenant}/discovery/v2.0/keys"),
        "response_modes_supported": ["query", "fragment", "form_post"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "issuer": state.endpoint.issuer(),
        "authorization_endpoint": format!("{under}/authorize"),
        "device_authorization_endpoint": format!("{under}/devicecode"),
        "tenant_region_scope": null,
        "cloud_instance_name": state.config.public_host,
    }))
}

async fn keys(State(state): State<AppState>) -> Json<Value> {
    Json(state.keys.key_set(&state.endpoint.issuer()))
}
