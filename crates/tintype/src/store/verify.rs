//! `tintype store verify`.

use std::time::Instant;

use content::{ManifestId, StoreLocation};
use serde_json::json;

use super::output::Output;
use super::{Ending, place};

/// Reads and checks every block of the images of a store, past every cache.
///
/// Damaged blocks are listed, with the image and the place on its disk. Exit status 1 if there are any.
///
/// Examples:
///   tintype store verify --region /srv/images
///   tintype store verify MANIFEST --region /srv/images --json | jq .damaged
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The images to check; all of the store if none is named.
    manifests: Vec<ManifestId>,
    /// The store: a folder, or its URL.
    #[arg(long, value_name = "URL")]
    region: StoreLocation,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<Ending> {
    let started = Instant::now();
    let store = place::to_read(&arguments.region).await?;
    let images = match arguments.manifests.is_empty() {
        true => store.images().await?.into_keys().collect(),
        false => arguments.manifests,
    };
    let (mut blocks, mut damaged_blocks) = (0, 0);
    let (mut damaged, mut unreadable, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    for manifest in &images {
        let report = match store.verify(manifest).await {
            Ok(report) => report,
            Err(missing @ content::Error::ManifestNotFound { .. }) => return Err(missing.into()),
            // A page or the manifest itself: what it named is not known.
            Err(error) => {
                lines.push(format!("image {manifest} cannot be checked: {error}"));
                unreadable.push(json!({ "manifest": manifest, "reason": error.to_string() }));
                continue;
            }
        };
        blocks += report.blocks;
        damaged_blocks += report.damaged_blocks;
        for block in &report.damaged {
            lines.push(format!(
                "block {} at byte {} of image {manifest}: {}",
                block.block, block.disk_offset, block.reason
            ));
            damaged.push(json!({
                "manifest": manifest,
                "disk_offset": block.disk_offset,
                "block": block.block,
                "reason": block.reason,
            }));
        }
    }
    let sound = damaged_blocks == 0 && unreadable.is_empty();
    let value = json!({
        "images": images.len(),
        "blocks": blocks,
        "damaged_blocks": damaged_blocks,
        "damaged": damaged,
        "unreadable": unreadable,
        "seconds": started.elapsed().as_secs_f64(),
    });
    output.result(&value, || {
        lines.push(match sound {
            true => format!("{} images, {blocks} blocks: all sound", images.len()),
            false => format!(
                "{} images, {blocks} blocks: {damaged_blocks} damaged, {} images cannot be checked; put or replicate \
                 the images again from a good copy",
                images.len(),
                unreadable.len()
            ),
        });
        lines.join("\n")
    });
    Ok(if sound { Ending::Done } else { Ending::Damaged })
}
