//! Committing what a build changed: time by the change, not by the disk.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::inputs::Inputs;
use super::lab::{Lab, Noise, tool};
use super::table::{Row, median};

/// Pieces that a build changes, of a MiB each, all over the file system.
const PIECES: u64 = 70;
const PIECE_BYTES: u64 = 1 << 20;
/// The disks: the file system of the first lies at the beginning of the second.
const SMALL: u64 = 8 << 30;
const LARGE: u64 = 128 << 30;

pub(super) fn run(lab: &Lab, inputs: &Inputs) -> anyhow::Result<Vec<Row>> {
    let folder = lab.fresh("commit")?;
    let region = folder.join("west").display().to_string();
    let mut medians = Vec::new();
    for (name, bytes) in [("8 GiB", SMALL), ("128 GiB", LARGE)] {
        let disk = grown(&inputs.v1.path, &folder, bytes)?;
        let (_, put) = lab.store(&["put", &disk, "--region", &region])?;
        let base = put["manifest"].as_str().context("a put without a manifest")?.to_owned();
        let mut times = Vec::new();
        for turn in 0..lab.runs() {
            lab.say(&format!("commit on {name}, run {}", turn + 1));
            let overlay = overlay(&folder, bytes, bytes ^ turn as u64)?;
            let (seconds, _) =
                lab.store(&["put", &overlay, "--format", "qcow2", "--base", &base, "--region", &region])?;
            times.push(seconds);
        }
        std::fs::remove_file(&disk).context("cannot remove a disk")?;
        medians.push((median(&times), times));
    }
    lab.fresh("commit")?;
    let (small, large) = (&medians[0], &medians[1]);
    Ok(vec![Row::goal(
        "commit of an overlay, 70 MiB changed, on 128 GiB against 8 GiB",
        format!("{:.3} s against {:.3} s: {:.2} ×", large.0, small.0, large.0 / small.0),
        "1.5 ×",
        large.0 <= 1.5 * small.0,
        json!({ "on_128_gib_s": large.1, "on_8_gib_s": small.1 }),
    )])
}

/// A copy of a disk with room behind it.
pub(super) fn grown(disk: &Path, folder: &Path, bytes: u64) -> anyhow::Result<String> {
    let copy = folder.join(format!("{bytes}.raw")).display().to_string();
    tool("cp", &["--sparse=always", &disk.display().to_string(), &copy])?;
    let file = File::options().write(true).open(&copy).context("cannot open the copy")?;
    file.set_len(bytes).context("cannot grow the copy")?;
    Ok(copy)
}

/// A qcow2 file without a base, in which a build's worth of pieces was written.
fn overlay(folder: &Path, disk_bytes: u64, seed: u64) -> anyhow::Result<String> {
    let mut noise = Noise::new(seed);
    let path = folder.join("overlay.qcow2").display().to_string();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &path, &disk_bytes.to_string()])?;
    let mut commands = Vec::new();
    for number in 0..PIECES {
        let piece = folder.join(format!("piece-{number}"));
        std::fs::write(&piece, noise.half(PIECE_BYTES as usize)).context("cannot write a piece")?;
        // One in each stretch of the small disk, anywhere in it, at a sector.
        let stretch = SMALL / PIECES;
        let at = number * stretch + noise.next() % (stretch - PIECE_BYTES) / 512 * 512;
        commands.push(format!("write -q -s {} {at} {PIECE_BYTES}", piece.display()));
    }
    let mut arguments = vec!["-f", "qcow2"];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&path);
    tool("qemu-io", &arguments)?;
    Ok(path)
}
