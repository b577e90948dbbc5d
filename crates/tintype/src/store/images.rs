//! `tintype store ls` and `tintype store rm`: which images there are, and who keeps them.

use anyhow::bail;
use content::{ManifestId, StoreLocation};
use serde_json::json;

use super::Ending;
use super::output::{Output, size};
use super::place::{self, Change};

/// Lists the images of a store, with their sizes and the owners who refer to them.
///
/// Examples:
///   tintype store ls --region /srv/images
///   tintype store ls --region /srv/images --json | jq -r '.images[].manifest'
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Ls {
    /// The store: a folder, or its URL.
    #[arg(long, value_name = "URL")]
    region: StoreLocation,
}

pub(super) async fn ls(arguments: Ls, output: Output) -> anyhow::Result<Ending> {
    let store = place::to_read(&arguments.region).await?;
    let mut images = Vec::new();
    let mut lines = Vec::new();
    for (manifest, owners) in store.images().await? {
        let info = match store.manifest_info(&manifest).await {
            Ok(info) => info,
            // Removed since it was listed.
            Err(content::Error::ManifestNotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let owners = Vec::from_iter(owners);
        let data_bytes = info.data_blocks * content::BLOCK_BYTES as u64;
        let (logical, data) = (size(info.logical_bytes), size(data_bytes));
        lines.push(format!("{manifest}  {logical:>10}  {data:>10}  {}", owners.join(", ")));
        images.push(json!({
            "manifest": manifest,
            "logical_bytes": info.logical_bytes,
            "data_bytes": data_bytes,
            "owners": owners,
        }));
    }
    output.result(&json!({ "images": images }), || {
        if lines.is_empty() {
            return "the store has no images".to_owned();
        }
        lines.insert(0, format!("{:64}  {:>10}  {:>10}  {}", "MANIFEST", "DISK", "DATA", "OWNERS"));
        lines.join("\n")
    });
    Ok(Ending::Done)
}

/// Removes the reference to an image that `store put` made.
///
/// The image is gone when nobody refers to it any more; garbage collection then frees what no other image
/// needs.
///
/// Examples:
///   tintype store rm MANIFEST --region /srv/images
///   tintype store rm MANIFEST --region /srv/images --owner nightly
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Rm {
    /// The image, as `store put` and `store ls` print it.
    manifest: ManifestId,
    /// The store: a folder, or its URL.
    #[arg(long, value_name = "URL")]
    region: StoreLocation,
    /// Whose reference.
    #[arg(long, value_name = "NAME", default_value = place::OWNER)]
    owner: String,
    #[command(flatten)]
    force: place::Force,
}

pub(super) async fn rm(arguments: Rm, output: Output) -> anyhow::Result<Ending> {
    let Rm { manifest, region, owner, force } = arguments;
    let store = place::to_change(&region, Change::Remove, force).await?;
    let mut owners = store.refs(&manifest).await?;
    let Some(place) = owners.iter().position(|known| *known == owner) else {
        if owners.is_empty() {
            bail!("the store at {} has no image {manifest}; `store ls` lists those it has", store.location());
        }
        bail!("`{owner}` does not refer to {manifest}; {} do: say --owner NAME", owners.join(", "));
    };
    store.remove_ref(&manifest, &owner).await?;
    owners.remove(place);
    let value = json!({ "manifest": manifest, "owner": owner, "owners_left": owners });
    output.result(&value, || match owners.is_empty() {
        true => format!("{manifest}\n  nobody refers to it any more: it is gone, and gc frees its space"),
        false => format!("{manifest}\n  still kept by {}", owners.join(", ")),
    });
    Ok(Ending::Done)
}
