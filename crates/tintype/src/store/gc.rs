//! `tintype store gc`.

use std::time::Duration;

use content::{GcOptions, GcReport, GcStage, Progress, StoreLocation};

use super::Ending;
use super::output::{Meter, Output, size};
use super::place::{self, Change};

/// Frees what no image of a store needs any more.
///
/// Safe beside writers, and to be interrupted at any point: the next run finishes what this one began. With
/// --dry-run it only says what it would free.
///
/// Examples:
///   tintype store gc --region /srv/images --dry-run
///   tintype store gc --region /srv/images --json | jq .bytes_removed
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The store: a folder, or its URL.
    #[arg(long, value_name = "URL")]
    region: StoreLocation,
    /// Change nothing.
    #[arg(long)]
    dry_run: bool,
    /// A writer that was silent for so long is taken for dead; if it is not, it begins anew.
    #[arg(long, value_name = "SECONDS", default_value_t = GcOptions::default().writer_timeout.as_secs())]
    writer_timeout: u64,
    #[command(flatten)]
    force: place::Force,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<Ending> {
    let Arguments { region, dry_run, writer_timeout, force } = arguments;
    let store = match dry_run {
        true => place::to_plan(&region).await?,
        false => place::to_change(&region, Change::CollectGarbage, force).await?,
    };
    let options = GcOptions { dry_run, writer_timeout: Duration::from_secs(writer_timeout) };
    let meter = Meter::counting();
    let report = store
        .gc(&options, |stage, done, total| {
            meter.name(match stage {
                GcStage::Marking => "mark",
                GcStage::Moving => "move",
                GcStage::Removing => "remove",
            });
            meter.show(Progress { done_bytes: done, total_bytes: total });
        })
        .await?;
    drop(meter);
    let GcReport { images, live, packs, packs_removed, bytes_removed, bytes_moved, seconds, .. } = report;
    let damaged = match report.packs_damaged {
        0 => String::new(),
        packs => format!("\n  {packs} packs stay for damage: `tintype store verify` names the images"),
    };
    output.result(&serde_json::to_value(report)?, || {
        let did = if dry_run { "would free" } else { "freed" };
        format!(
            "{images} images need {live} blocks and tables\n  {did} {} ({packs_removed} of {packs} packs), after moving {} \
             out of them, in {seconds:.2} s{damaged}",
            size(bytes_removed),
            size(bytes_moved),
        )
    });
    Ok(Ending::Done)
}
