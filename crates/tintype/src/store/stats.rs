//! `tintype store stats`.

use content::{StoreLocation, StoreStats};
use serde_json::json;

use super::output::{Output, size};
use super::{Ending, place};

/// Counts what a store holds. Reads every manifest, so it takes time by the number of images.
///
/// Examples:
///   tintype store stats --region /srv/images
///   tintype store stats --region /srv/images --json | jq .stored_bytes
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The store: a folder, or its URL.
    #[arg(long, value_name = "URL")]
    region: StoreLocation,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<Ending> {
    let store = place::to_read(&arguments.region).await?;
    let stats = store.stats().await?;
    let StoreStats { manifests, logical_bytes, packs, segments, indexed, stored_bytes } = stats;
    let value = json!({
        "location": store.location().to_string(),
        "id": store.id(),
        "owner": store.owner(),
        "images": manifests,
        "logical_bytes": logical_bytes,
        "stored_bytes": stored_bytes,
        "packs": packs,
        "segments": segments,
        "indexed": indexed,
    });
    output.result(&value, || {
        format!(
            "{} (owner {}, id {})\n  {manifests} images, {} of disk, stored in {}\n  {packs} packs, {segments} index \
             segments, {indexed} blocks and pages indexed",
            store.location(),
            store.owner(),
            store.id(),
            size(logical_bytes),
            size(stored_bytes),
        )
    });
    Ok(Ending::Done)
}
