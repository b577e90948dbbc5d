//! `tintype store replicate`.

use content::{ManifestId, ReplicateReport, StoreLocation};
use serde_json::json;

use super::Ending;
use super::output::{Meter, Output, size};
use super::place::{self, Change};

/// Copies an image from one store to another: only blocks that the other lacks move.
///
/// The image is visible in the other store when all of it is there. Interrupted, the command goes on where
/// it was when it is run again. The other store is made if there is none.
///
/// Examples:
///   tintype store replicate MANIFEST --from /srv/west --to /srv/east
///   tintype store replicate MANIFEST --from /srv/west --to /srv/east --json | jq .bytes_moved
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The image, as `store put` and `store ls` print it.
    manifest: ManifestId,
    /// The store that has it.
    #[arg(long, value_name = "URL")]
    from: StoreLocation,
    /// The store that is to have it.
    #[arg(long, value_name = "URL")]
    to: StoreLocation,
    /// Who refers to the image there (and owns the store, if this makes it). `store rm` takes it back.
    #[arg(long, value_name = "NAME", default_value = place::OWNER)]
    owner: String,
    #[command(flatten)]
    force: place::Force,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<Ending> {
    let Arguments { manifest, from, to, owner, force } = arguments;
    let source = place::to_read(&from).await?;
    // First, so that an image which is not there leaves no new store behind.
    source.manifest_info(&manifest).await?;
    let target = place::to_change_or_create(&to, &owner, Change::Replicate, force).await?;
    let meter = Meter::new("replicate");
    let report =
        content::replicate(&source, &target, &manifest, &owner, |progress| meter.show(progress)).await?;
    drop(meter);
    let ReplicateReport { blocks_moved, bytes_moved, blocks_present, seconds } = report;
    let value = json!({
        "manifest": manifest,
        "blocks_moved": blocks_moved,
        "bytes_moved": bytes_moved,
        "blocks_present": blocks_present,
        "seconds": seconds,
    });
    output.result(&value, || {
        format!(
            "{manifest}\n  moved {} in {blocks_moved} blocks, {blocks_present} were there, in {seconds:.2} s",
            size(bytes_moved),
        )
    });
    Ok(Ending::Done)
}
