//! Opening a store by its place, and leaving alone what a live server uses.

use content::{Store, StoreLocation};

/// Who refers to what these commands put, unless the user says otherwise.
pub(super) const OWNER: &str = "cli";

/// What is wanted of a store, for the message when a server has it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Put,
    Replicate,
    Remove,
    CollectGarbage,
    Repair,
}

/// The store at `location`, to read.
pub(super) async fn to_read(location: &StoreLocation) -> anyhow::Result<Store> {
    Ok(Store::open_read_only(location).await?)
}

/// The store at `location`, to change; whoever owns it, unless a server uses it now.
pub(super) async fn to_change(location: &StoreLocation, change: Change) -> anyhow::Result<Store> {
    refuse_if_served(location, change)?;
    Ok(open_writable(location).await?)
}

/// The store at `location`, for what needs the rights to change it and does not; also when a server uses it.
pub(super) async fn to_plan(location: &StoreLocation) -> anyhow::Result<Store> {
    Ok(open_writable(location).await?)
}

/// As [`to_change`]; made, for `owner`, where there is none.
pub(super) async fn to_change_or_create(
    location: &StoreLocation,
    owner: &str,
    change: Change,
) -> anyhow::Result<Store> {
    refuse_if_served(location, change)?;
    match open_writable(location).await {
        Err(content::Error::NotAStore { .. }) => Ok(Store::open_or_create(location, owner).await?),
        opened => Ok(opened?),
    }
}

/// Opens a store in its owner's name.
async fn open_writable(location: &StoreLocation) -> content::Result<Store> {
    let owner = Store::open_read_only(location).await?.owner().to_owned();
    Store::open_or_create(location, &owner).await
}

fn refuse_if_served(location: &StoreLocation, change: Change) -> anyhow::Result<()> {
    let Some(folder) = location.as_folder() else { return Ok(()) };
    let Some(holder) = server::store_lock::holder(folder)? else { return Ok(()) };
    let routes = "galleries/G/images/I/versions/V";
    let instead = match change {
        Change::Put => format!(
            "create an image version from the disk (PUT …/{routes}), or put it into another store and replicate from there"
        ),
        Change::Replicate => format!("add the region to the version's targetRegions (PATCH …/{routes})"),
        Change::Remove => format!("delete the version or image that refers to it (DELETE …/{routes})"),
        Change::Repair => format!("POST /tintype/stores/{}/verify?repair=true", holder.region),
        Change::CollectGarbage => {
            format!("POST /tintype/stores/{}/gc (a --dry-run is allowed here)", holder.region)
        }
    };
    anyhow::bail!(
        "the server (pid {}) uses this store for region {}; use its API: {instead}. Or stop the server first",
        holder.pid,
        holder.region,
    )
}
