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

/// How long the word of a server that it uses a store holds, in seconds. It says so each minute.
const SERVED_S: u64 = 300;

/// For commands that change a store.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Force {
    /// Change the store although a server said within the last 5 minutes that it uses it: that server is gone.
    #[arg(long)]
    force: bool,
}

/// The store at `location`, to read.
pub(super) async fn to_read(location: &StoreLocation) -> anyhow::Result<Store> {
    Ok(Store::open_read_only(location).await?)
}

/// The store at `location`, to change; whoever owns it, unless a server uses it now.
pub(super) async fn to_change(
    location: &StoreLocation,
    change: Change,
    force: Force,
) -> anyhow::Result<Store> {
    refuse_if_locked(location, change)?;
    take_over(&Store::open_read_only(location).await?, change, force).await
}

/// The store at `location`, for what needs the rights to change it and does not; also when a server uses it.
pub(super) async fn to_plan(location: &StoreLocation) -> anyhow::Result<Store> {
    let owner = Store::open_read_only(location).await?.owner().to_owned();
    Ok(Store::open_or_create(location, &owner).await?)
}

/// As [`to_change`]; made, for `owner`, where there is none.
pub(super) async fn to_change_or_create(
    location: &StoreLocation,
    owner: &str,
    change: Change,
    force: Force,
) -> anyhow::Result<Store> {
    refuse_if_locked(location, change)?;
    match Store::open_read_only(location).await {
        Err(content::Error::NotAStore { .. }) => Ok(Store::open_or_create(location, owner).await?),
        Ok(store) => take_over(&store, change, force).await,
        Err(error) => Err(error.into()),
    }
}

/// The same store, to change.
async fn take_over(store: &Store, change: Change, force: Force) -> anyhow::Result<Store> {
    refuse_if_served(store, change, force).await?;
    Ok(Store::open_or_create(store.location(), store.owner()).await?)
}

/// A folder's server is known by a lock, which goes with its process.
fn refuse_if_locked(location: &StoreLocation, change: Change) -> anyhow::Result<()> {
    let Some(folder) = location.as_folder() else { return Ok(()) };
    let Some(holder) = server::store_lock::holder(folder)? else { return Ok(()) };
    anyhow::bail!(
        "the server (pid {}) uses this store for region {}; use its API: {}. Or stop the server first",
        holder.pid,
        holder.region,
        instead(change, &holder.region),
    )
}

/// Any other's by its word, which it may not have taken back.
async fn refuse_if_served(store: &Store, change: Change, force: Force) -> anyhow::Result<()> {
    let served = store.served().await?.filter(|served| !force.force && served.age_s() < SERVED_S);
    let Some(served) = served else { return Ok(()) };
    let url = served.url.as_ref().map(|url| format!(" at {url}")).unwrap_or_default();
    anyhow::bail!(
        "a server{url} said {} s ago that it uses this store for region {}; use its API: {}. If it is gone, wait until {SERVED_S} s \
         have passed, or say --force",
        served.age_s(),
        served.region,
        instead(change, &served.region),
    )
}

/// What to ask a server for.
fn instead(change: Change, region: &str) -> String {
    let routes = "galleries/G/images/I/versions/V";
    match change {
        Change::Put => format!(
            "create an image version from the disk (PUT …/{routes}), or put it into another store and replicate from there"
        ),
        Change::Replicate => format!("add the region to the version's targetRegions (PATCH …/{routes})"),
        Change::Remove => format!("delete the version or image that refers to it (DELETE …/{routes})"),
        Change::Repair => format!("POST /tintype/stores/{region}/verify?repair=true"),
        Change::CollectGarbage => {
            format!("POST /tintype/stores/{region}/gc (a --dry-run is allowed here)")
        }
    }
}
