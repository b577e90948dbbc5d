//! `tintype store put`.

use std::path::PathBuf;

use anyhow::ensure;
use content::{ManifestId, PutReport, StoreLocation};
use disk::{Format, Packing};
use serde_json::json;

use super::output::{Meter, Output, size};
use super::place::{self, Change};
use super::{Ending, format};

/// Puts a disk into a store: only blocks that it lacks are added.
///
/// Prints the image's manifest, by which every other command names it. The same disk has the same manifest
/// in every store. The store is made if there is none.
///
/// With --base, FILE is a qcow2 overlay of an image that the store has: only what it changed is read, in
/// time by what changed. A backing file named inside FILE is ignored.
///
/// With --backing, FILE is a qcow2 overlay of files: all of them are put as one disk. Names inside the files
/// are not followed, so each file of the chain is given, from the one that FILE lies on downwards.
///
/// Examples:
///   tintype store put disk.raw --region /srv/images
///   tintype store put disk.vhdx --region file:///srv/images
///   tintype store put download --format vmdk --packing xz --region /srv/images
///   manifest=$(tintype store put disk.raw --region /srv/images --json | jq -r .manifest)
///   tintype store put changes.qcow2 --format qcow2 --base "$manifest" --region /srv/images
///   tintype store put top.qcow2 --backing middle.qcow2 --backing base.qcow2 --region /srv/images
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The disk; must not change meanwhile.
    file: PathBuf,
    /// The store: a folder, or its URL.
    #[arg(long, value_name = "URL")]
    region: StoreLocation,
    /// Format of FILE: raw, vhd (vpc), vhdx, qcow2, vmdk. If it is not said: what the name of FILE says, else raw.
    #[arg(long)]
    format: Option<Format>,
    /// What FILE is packed in: none, gzip, xz, zstd. If it is not said: what its name says.
    #[arg(long)]
    packing: Option<Packing>,
    /// The image that FILE, a qcow2 overlay, lies on.
    #[arg(long, value_name = "MANIFEST")]
    base: Option<ManifestId>,
    /// The qcow2 file that FILE, a qcow2 overlay, lies on; given again, the one that this lies on.
    #[arg(long, value_name = "FILE", conflicts_with = "base")]
    backing: Vec<PathBuf>,
    /// Who refers to the image from now on (and owns the store, if this makes it). `store rm` takes it back.
    #[arg(long, value_name = "NAME", default_value = place::OWNER)]
    owner: String,
    #[command(flatten)]
    force: place::Force,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<Ending> {
    let Arguments { file, region, format, packing, base, backing, owner, force } = arguments;
    let meter = Meter::new("put");
    let is_overlay = |option: &str, format| {
        ensure!(
            format == Some(Format::Qcow2) && packing.is_none_or(|packing| packing == Packing::None),
            "{option} is for an overlay, and only qcow2 files are overlays: say --format qcow2, without --packing"
        );
        Ok(())
    };
    let report = match base {
        Some(base) => {
            is_overlay("--base", format)?;
            let changes = tokio::task::spawn_blocking(move || format::open_overlay(&file)).await??;
            let store = place::to_change(&region, Change::Put, force).await?;
            store.commit_source(&base, changes, &owner, |progress| meter.show(progress)).await?
        }
        None => {
            // First, so that a file which cannot be read leaves no new store behind.
            let source = match backing.is_empty() {
                true => tokio::task::spawn_blocking(move || format::open(&file, format, packing)).await??,
                false => {
                    is_overlay("--backing", format.or_else(|| format::named(&file)))?;
                    tokio::task::spawn_blocking(move || format::open_chain(&file, &backing)).await??
                }
            };
            let store = place::to_change_or_create(&region, &owner, Change::Put, force).await?;
            store.put_source(source, &owner, |progress| meter.show(progress)).await?
        }
    };
    drop(meter);
    let PutReport { manifest, logical_bytes, data_bytes, new_blocks_bytes, stored_bytes, seconds, .. } =
        report;
    let value = json!({
        "manifest": manifest,
        "logical_bytes": logical_bytes,
        "data_bytes": data_bytes,
        "new_blocks_bytes": new_blocks_bytes,
        "stored_bytes": stored_bytes,
        "seconds": seconds,
    });
    output.result(&value, || {
        format!(
            "{manifest}\n  disk {}, data {}, new {}, stored as {}, in {seconds:.2} s",
            size(logical_bytes),
            size(data_bytes),
            size(new_blocks_bytes),
            size(stored_bytes),
        )
    });
    Ok(Ending::Done)
}
