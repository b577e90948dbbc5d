//! `tintype store verify`.

use content::{Damage, Progress, StoreLocation, StoreVerifyReport, VerifyOptions};

use super::Ending;
use super::output::{Meter, Output, size};
use super::place::{self, Change};

/// Reads and checks everything that the images of a store need, past every cache.
///
/// What is damaged is named, with every image that needs it. With --repair it is taken from the replicas.
/// Exit status 1 if damage is left.
///
/// Examples:
///   tintype store verify --region /srv/west
///   tintype store verify --region /srv/west --json | jq .damages
///   tintype store verify --region /srv/west --replica /srv/east --repair
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The store: a folder, or its URL.
    #[arg(long, value_name = "URL")]
    region: StoreLocation,
    /// Another store that may have what is damaged here; can be given several times.
    #[arg(long, value_name = "URL")]
    replica: Vec<StoreLocation>,
    /// Take what is damaged from the replicas, and remove the damaged copies.
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    force: place::Force,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<Ending> {
    let Arguments { region, replica, repair, force } = arguments;
    let store = match repair {
        true => place::to_change(&region, Change::Repair, force).await?,
        false => place::to_read(&region).await?,
    };
    let mut replicas = Vec::with_capacity(replica.len());
    for location in &replica {
        replicas.push(place::to_read(location).await?);
    }
    let meter = Meter::counting();
    meter.name("verify");
    let report = store
        .verify_all(&VerifyOptions { replicas, repair }, |done, total| {
            meter.show(Progress { done_bytes: done, total_bytes: total });
        })
        .await?;
    drop(meter);
    let sound = match repair {
        true => report.damaged == report.repaired && report.damaged_references == report.repaired_references,
        false => report.damaged == 0 && report.copies_damaged() == 0,
    };
    output.result(&serde_json::to_value(&report)?, || text(&report, sound));
    Ok(if sound { Ending::Done } else { Ending::Damaged })
}

fn text(report: &StoreVerifyReport, sound: bool) -> String {
    let StoreVerifyReport { images, needed, bytes_read, damaged, repaired, seconds, .. } = report;
    let mut lines: Vec<String> = report.damages.iter().map(describe).collect();
    if lines.len() < *damaged as usize {
        lines.push(format!("and {} more", *damaged as usize - lines.len()));
    }
    lines.extend(
        [
            (report.damaged_segments, "damaged index segments"),
            (report.reindexed_packs, "packs indexed anew"),
            (report.damaged_references, "damaged references: their images stay, their owners are not known"),
            (report.repaired_references, "references repaired"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}")),
    );
    let end = match (sound, *damaged) {
        (true, 0) => "all sound".to_owned(),
        (true, _) => format!("{damaged} damaged, all repaired"),
        (false, 0) => {
            let copies = report.copies_damaged();
            format!("{copies} objects damaged, and nothing that images need; --repair mends the store")
        }
        (false, _) if *repaired > 0 => {
            format!("{damaged} damaged, {repaired} repaired; no replica has the rest: put its images again")
        }
        (false, _) => format!(
            "{damaged} damaged; repair from another region with --replica URL --repair, or put the images again"
        ),
    };
    lines.push(format!(
        "{images} images, {needed} blocks and tables, {} read in {seconds:.2} s: {end}",
        size(*bytes_read)
    ));
    lines.join("\n")
}

fn describe(damage: &Damage) -> String {
    let Damage { hash, reason, repaired, needed_by } = damage;
    let repaired = if *repaired { " (repaired)" } else { "" };
    let mut text = format!("{hash}{repaired}: {reason}");
    for need in needed_by {
        let at = need.disk_offset.map_or_else(String::new, |offset| format!(" at byte {offset}"));
        text += &format!("\n  needed by image {}{at} ({})", need.manifest, need.owners.join(", "));
    }
    text
}
