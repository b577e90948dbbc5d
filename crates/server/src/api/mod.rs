//! The REST API: one file per resource, each with its routes, handlers and nothing else. To add a resource:
//! a file, its line in [`routes`], its type in `providers.rs`, and, if deleting it is work, an arm in
//! [`begin_delete`].

pub(crate) mod disks;
pub(crate) mod galleries;
pub(crate) mod image_definitions;
pub(crate) mod image_templates;
pub(crate) mod image_versions;
pub(crate) mod images;
mod locations;
pub(crate) mod platform_images;
pub mod providers;
mod resource_groups;
mod resources;
pub(crate) mod run_outputs;
pub(crate) mod runs;
pub(crate) mod snapshots;
pub(crate) mod storage_accounts;
mod stores;
mod subscriptions;
mod tenants;
pub(crate) mod virtual_machines;
pub(crate) mod vm_endpoints;

use serde_json::Value;
use store::{Document, StoreError, Tx};

use crate::http::lro;
use crate::http::routes::Routes;

/// Every route that needs a token.
pub(crate) fn routes(routes: Routes) -> Routes {
    let routes = tenants::routes(routes);
    let routes = subscriptions::routes(routes);
    let routes = locations::routes(routes);
    let routes = providers::routes(routes);
    let routes = resource_groups::routes(routes);
    let routes = resources::routes(routes);
    let routes = galleries::routes(routes);
    let routes = image_definitions::routes(routes);
    let routes = image_versions::routes(routes);
    let routes = disks::routes(routes);
    let routes = snapshots::routes(routes);
    let routes = images::routes(routes);
    let routes = image_templates::routes(routes);
    let routes = run_outputs::routes(routes);
    let routes = runs::routes(routes);
    let routes = virtual_machines::routes(routes);
    let routes = platform_images::routes(routes);
    let routes = storage_accounts::routes(routes);
    let routes = vm_endpoints::routes(routes);
    let routes = stores::routes(routes);
    lro::routes(routes)
}

/// The state column of a document, from the state in its data: set both, always together.
#[must_use]
pub fn column_state<F>(state: &model::ProvisioningState<F>) -> store::ProvisioningState {
    match state {
        model::ProvisioningState::Creating => store::ProvisioningState::Creating,
        model::ProvisioningState::Updating => store::ProvisioningState::Updating,
        model::ProvisioningState::Succeeded => store::ProvisioningState::Succeeded,
        model::ProvisioningState::Failed(_) => store::ProvisioningState::Failed,
        model::ProvisioningState::Canceled => store::ProvisioningState::Canceled,
        model::ProvisioningState::Deleting => store::ProvisioningState::Deleting,
    }
}

/// What [`begin_delete`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    /// The resource is gone.
    Deleted,
    /// A job deletes it; its state is `Deleting`.
    Working,
}

/// Deletes a resource as part of its group's deletion. Types whose deletion is work set their state to
/// `Deleting`, enqueue their job and return [`Begun::Working`]; the others are rows and nothing more.
///
/// # Errors
/// [`StoreError::HasChildren`] and [`StoreError::Referenced`]: not yet.
pub(crate) async fn begin_delete(
    tx: &mut Tx<'_>,
    document: &mut Document<Value>,
) -> Result<Begun, StoreError> {
    match document.ty.as_str() {
        virtual_machines::TYPE => virtual_machines::begin_delete(tx, &document.key).await,
        image_templates::TYPE => image_templates::begin_delete(tx, &document.id).await,
        image_versions::TYPE => image_versions::begin_delete(tx, &document.key).await,
        disks::TYPE | snapshots::TYPE => disks::begin_delete(tx, &document.key).await,
        images::TYPE => images::begin_delete(tx, &document.key).await,
        storage_accounts::TYPE => {
            storage_accounts::begin_delete(tx, document).await?;
            Ok(Begun::Deleted)
        }
        _ => {
            tx.delete(&document.key).await?;
            Ok(Begun::Deleted)
        }
    }
}
