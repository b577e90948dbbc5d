//! How long it takes until a VM could read its disk: from starting the export to a block in QEMU's hands.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;

use super::commit::grown;
use super::inputs::Inputs;
use super::lab::{Lab, Noise, Running, data_extents, tool};
use super::table::{Row, median, mib};

const DISKS: usize = 100;
const READ_BYTES: u64 = 4096;
const GIB: u64 = 1 << 30;

pub(super) fn run(lab: &Lab, inputs: &Inputs) -> anyhow::Result<Vec<Row>> {
    let folder = lab.fresh("ready")?;
    let region = folder.join("west").display().to_string();
    let mut rows = Vec::new();
    let mut overlays_bytes = 0;
    for (name, bytes) in [("8 GiB", 8 * GIB), ("1 TiB", 1024 * GIB)] {
        let disk = grown(&inputs.v1.path, &folder, bytes)?;
        let (_, put) = lab.store(&["put", &disk, "--region", &region])?;
        let manifest = put["manifest"].as_str().context("a put without a manifest")?.to_owned();
        lab.say(&format!("disks of {name}"));
        let (mut ready, mut local) = (Vec::new(), Vec::new());
        overlays_bytes = 0;
        let file = File::open(&disk).context("cannot open the disk")?;
        let extents = data_extents(&file).context("cannot find the disk's data")?;
        let mut noise = Noise::new(bytes);
        for number in 0..lab.count(DISKS) {
            let (start, end) = extents[(noise.next() % extents.len() as u64) as usize];
            let at = (start + noise.next() % (end - start)) / READ_BYTES * READ_BYTES;
            let mut expected = vec![0; READ_BYTES as usize];
            file.read_exact_at(&mut expected, at).context("cannot read the disk")?;
            let overlay = folder.join(format!("{number}.qcow2"));
            ready.push(over_export(lab, &folder, &region, &manifest, &overlay, bytes, at, &expected)?);
            overlays_bytes += overlay.metadata().context("no overlay")?.blocks() * 512;
            local.push(over_file(&folder, &disk, bytes, at, &expected)?);
        }
        std::fs::remove_file(&disk).context("cannot remove a disk")?;
        let (p50, base) = (median(&ready) * 1e3, median(&local) * 1e3);
        rows.push(Row::goal(
            &format!("disk ready, {name}, p50 of {}", ready.len()),
            format!("{p50:.0} ms (QEMU's tools on a local file alone: {base:.0} ms)"),
            "100 ms",
            p50 < 100.0,
            json!({ "seconds": ready, "local_seconds": local }),
        ));
    }
    let overlays = lab.count(DISKS);
    rows.push(Row::goal(
        &format!("{overlays} overlays of one version, on the disk"),
        format!("{:.1} MiB", mib(overlays_bytes)),
        "100 MiB",
        overlays_bytes < 100 << 20,
        json!({ "bytes": overlays_bytes }),
    ));
    lab.fresh("ready")?;
    Ok(rows)
}

/// Starts an export with a cold cache of its own, makes an overlay on it, and lets QEMU's block layer read one block.
#[expect(clippy::too_many_arguments, reason = "one disk, one place on it, and where everything lies")]
fn over_export(
    lab: &Lab,
    folder: &Path,
    region: &str,
    manifest: &str,
    overlay: &Path,
    disk_bytes: u64,
    at: u64,
    expected: &[u8],
) -> anyhow::Result<f64> {
    let socket = folder.join("nbd.sock").display().to_string();
    let cache = lab.fresh("ready-cache")?.display().to_string();
    let started = Instant::now();
    let mut command =
        lab.command(&["export-nbd", manifest, "--region", region, "--socket", &socket, "--cache", &cache]);
    let mut export = Running::start(command.stdout(Stdio::piped()))?;
    create(overlay, disk_bytes)?;
    let mut ready = String::new();
    let stdout = export.child.stdout.take().context("the export has no output")?;
    BufReader::new(stdout).read_line(&mut ready).context("cannot read what the export says")?;
    ensure!(!ready.is_empty(), "the export ended before it was ready");
    let base = format!(
        "driver=raw,backing.file.driver=nbd,backing.file.server.type=unix,backing.file.server.path={socket}"
    );
    let read = read_through(overlay, &base, at)?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(read == expected, "the block at {at} came back different");
    Ok(seconds)
}

/// The same tools with a local file in place of the export: what cannot be less.
fn over_file(folder: &Path, disk: &str, disk_bytes: u64, at: u64, expected: &[u8]) -> anyhow::Result<f64> {
    let overlay = folder.join("local.qcow2");
    let started = Instant::now();
    create(&overlay, disk_bytes)?;
    let read = read_through(
        &overlay,
        &format!("driver=raw,backing.file.driver=file,backing.file.filename={disk}"),
        at,
    )?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(read == expected, "the block at {at} of {disk} came back different");
    Ok(seconds)
}

fn create(overlay: &Path, disk_bytes: u64) -> anyhow::Result<()> {
    let path = overlay.display().to_string();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &path, &disk_bytes.to_string()]).map(drop)
}

/// One block through an overlay on `base`, by qemu-io, which is QEMU's block layer without a machine.
fn read_through(overlay: &Path, base: &str, at: u64) -> anyhow::Result<Vec<u8>> {
    let image = format!("driver=qcow2,file.driver=file,file.filename={},backing.{base}", overlay.display());
    let read = format!("read -v {at} {READ_BYTES}");
    let printed = tool("qemu-io", &["--image-opts", "-r", "-c", &read, &image])?;
    Ok(bytes_of_dump(&printed))
}

/// The bytes of qemu-io's dump: lines of `offset:  16 pairs of hex digits  text`.
fn bytes_of_dump(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let Some((offset, rest)) = line.split_once(":  ") else { continue };
        if offset.len() < 8 || u64::from_str_radix(offset, 16).is_err() {
            continue;
        }
        bytes.extend(rest.split(' ').take(16).map_while(|pair| u8::from_str_radix(pair, 16).ok()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps() {
        let text = "184400000:  54 54 00 ff 01 02 03 04 05 06 07 08 09 0a 0b 0c  TT..............\n\
                    read 16/16 bytes at offset 0\n16 bytes, 1 ops; 00.00 sec\n";
        assert_eq!(bytes_of_dump(text), [0x54, 0x54, 0, 255, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }
}
