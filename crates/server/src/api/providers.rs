//! Resource providers: which types there are, and in which api-versions. `az resource` and templates read it.

use arm::ArmError;
use arm::api_version::listed_api_versions;
use axum::Json;
use axum::extract::State;
use axum::http::Method;
use serde_json::{Value, json};

use crate::AppState;
use crate::http::error::ApiError;
use crate::http::path::ArmPath;
use crate::http::routes::Routes;

struct Provider {
    namespace: &'static str,
    types: &'static [&'static str],
}

/// What this service serves.
const PROVIDERS: &[Provider] = &[
    Provider {
        namespace: "Microsoft.Compute",
        types: &[
            "galleries",
            "galleries/images",
            "galleries/images/versions",
            "virtualMachines",
            "disks",
            "snapshots",
            "images",
            "locations/operations",
            "locations/capsOperations",
            "locations/DiskOperations",
        ],
    },
    Provider { namespace: "Microsoft.Resources", types: &["resourceGroups", "subscriptions"] },
    Provider { namespace: "Microsoft.Storage", types: &["storageAccounts", "checkNameAvailability"] },
    Provider {
        namespace: "Microsoft.VirtualMachineImages",
        types: &["imageTemplates", "imageTemplates/runOutputs", "locations/operations"],
    },
];

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(Method::GET, "/subscriptions/{subscription}/providers", list)
        .on(Method::GET, "/subscriptions/{subscription}/providers/{namespace}", get)
        .on(Method::POST, "/subscriptions/{subscription}/providers/{namespace}/register", get)
}

/// Whether the service has this namespace, in any case.
pub(crate) fn is_known(namespace: &str) -> bool {
    find(namespace).is_some()
}

fn find(namespace: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.namespace.eq_ignore_ascii_case(namespace))
}

async fn list(State(state): State<AppState>) -> Json<Value> {
    let providers: Vec<Value> = PROVIDERS.iter().map(|provider| render(&state, provider)).collect();
    Json(json!({ "value": providers }))
}

/// Also what registering answers: every provider is registered.
async fn get(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let namespace = path.value("providers")?;
    let Some(provider) = find(namespace) else {
        return Err(ArmError::invalid_resource_namespace(namespace).into());
    };
    Ok(Json(render(&state, provider)))
}

fn render(state: &AppState, provider: &Provider) -> Value {
    let locations: Vec<&str> = state.config.regions.iter().map(|region| region.name.display_name()).collect();
    let versions = listed_api_versions(provider.namespace).unwrap_or_default();
    let types: Vec<Value> = provider
        .types
        .iter()
        .map(|name| {
            json!({
                "resourceType": name, "locations": locations, "apiVersions": versions,
                "defaultApiVersion": versions.first(), "capabilities": "SupportsTags, SupportsLocation",
            })
        })
        .collect();
    json!({
        "id": format!("/subscriptions/{}/providers/{}", state.config.subscription_id, provider.namespace),
        "namespace": provider.namespace,
        "resourceTypes": types,
        "registrationState": "Registered",
        "registrationPolicy": "RegistrationRequired",
    })
}
