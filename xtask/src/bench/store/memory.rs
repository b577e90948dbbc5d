//! Anonymous memory of put, get and export beside an index of 16 million blocks.
//!
//! The index is synthetic: segments as docs/format.md describes them, of hashes that no disk has, for a pack that is never
//! read. What they cost is what an index of that size costs.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use super::export::{Export, sequential};
use super::inputs::Inputs;
use super::lab::{Lab, Noise, data_extents};
use super::segments::{self, KIND_BLOCKS, Place};
use super::table::Row;

const SEGMENTS: u64 = 8;
const SEGMENT_ENTRIES: u64 = segments::MAX_ENTRIES as u64;
const GOAL_KIB: u64 = 256 << 10;
/// Reads of the export under way.
const DEPTH: usize = 32;
const SAMPLE_EVERY: Duration = Duration::from_millis(5);

pub(super) fn run(lab: &Lab, inputs: &Inputs) -> anyhow::Result<Vec<Row>> {
    let folder = lab.fresh("memory")?;
    let region = folder.join("west");
    let text = region.display().to_string();
    // A small image first, so that the store is there.
    let seed = folder.join("seed.raw");
    fs::write(&seed, Noise::new(1).half(1 << 20)).context("cannot write a disk")?;
    lab.store(&["put", &seed.display().to_string(), "--region", &text])?;
    lab.say("an index of 16 million blocks");
    for number in 0..SEGMENTS {
        write_segment(&region.join(format!("index/{:032x}", number + 1)), number)?;
    }
    let (_, stats) = lab.store(&["stats", "--region", &text])?;
    let indexed = stats["indexed"].as_u64().unwrap_or(0);
    ensure!(indexed >= SEGMENTS * SEGMENT_ENTRIES, "the store sees only {indexed} indexed blocks");

    lab.say("put, get and export beside it");
    let (put_kib, put) = peak(&mut lab.command(&["put", &inputs.v1.text(), "--region", &text]))?;
    let put: serde_json::Value = serde_json::from_slice(&put).context("put printed no JSON")?;
    let manifest = put["manifest"].as_str().context("a put without a manifest")?;
    let copy = folder.join("copy.raw").display().to_string();
    let (get_kib, _) = peak(&mut lab.command(&["get", manifest, &copy, "--region", &text]))?;
    fs::remove_file(&copy).context("cannot remove a copy")?;
    let export_kib = {
        let export = Export::start(lab, &folder, &text, manifest)?;
        let disk = File::open(&inputs.v1.path).context("cannot open the disk")?;
        let extents = data_extents(&disk).context("cannot find the disk's data")?;
        let mut client = export.connect()?;
        let (peak, read) = sampled(export.pid(), || client.read_all(sequential(&extents), DEPTH, |_, _| {}));
        read.context("cannot read through the export")?;
        peak
    };
    lab.fresh("memory")?;
    let worst = put_kib.max(get_kib).max(export_kib);
    let text = [put_kib, get_kib, export_kib].map(|kib| format!("{} MiB", kib / 1024)).join(", ");
    let value =
        json!({ "put_kib": put_kib, "get_kib": get_kib, "export_kib": export_kib, "indexed": indexed });
    Ok(vec![Row::goal(
        &format!(
            "anonymous memory of put, get, export at {:.1} million indexed blocks",
            indexed as f64 / 1e6
        ),
        text,
        "256 MiB each",
        worst < GOAL_KIB,
        value,
    )])
}

/// Runs a command to its end; the most anonymous memory that it had, and what it printed.
pub(super) fn peak(command: &mut Command) -> anyhow::Result<(u64, Vec<u8>)> {
    let child = command.stdout(Stdio::piped()).spawn().context("cannot start tintype")?;
    let (peak, output) = sampled(child.id(), || child.wait_with_output().context("cannot wait for tintype"));
    let output = output?;
    ensure!(output.status.success(), "tintype ended with {}", output.status);
    ensure!(peak > 0, "no sample was taken");
    Ok((peak, output.stdout))
}

/// Looks at a process's memory while something happens. The most, in KiB.
fn sampled<T>(pid: u32, work: impl FnOnce() -> T) -> (u64, T) {
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(anonymous_kib(pid).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(SAMPLE_EVERY);
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    });
    (most.into_inner(), result)
}

/// `RssAnon` of a process; `None` when it is gone.
pub(super) fn anonymous_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A segment of [`SEGMENT_ENTRIES`] hashes in one pack.
fn write_segment(path: &Path, seed: u64) -> anyhow::Result<()> {
    let mut noise = Noise::new(seed + 1);
    let step = u64::MAX / SEGMENT_ENTRIES;
    let mut entries = Vec::with_capacity(SEGMENT_ENTRIES as usize);
    for number in 0..SEGMENT_ENTRIES {
        let mut hash = [0; 32];
        // Sorted, and as uniform as hashes are.
        hash[..8].copy_from_slice(&(number * step + noise.next() % step).to_be_bytes());
        for part in hash[8..].chunks_exact_mut(8) {
            part.copy_from_slice(&noise.next().to_le_bytes());
        }
        let (frame, slot) = ((number / 16 % 60_000) as u32, (number % 16) as u8);
        let place =
            Place { pack: 0, offset: 32 + frame * 1024, len: 1024, slot, count: 16, kind: KIND_BLOCKS };
        entries.push(segments::entry(&hash, place));
    }
    segments::write(path, &[[seed as u8 ^ 0xa5; 16]], &entries)
        .with_context(|| format!("cannot write {}", path.display()))
}
