//! Putting, getting and replicating the two disks, and other tools at the same.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::inputs::{Disk, Inputs};
use super::lab::{Caches, Lab, bytes_below, data_extents, drop_caches, sha256};
use super::peers::{Figures, PEERS, Peer, Times};
use super::table::{Row, median, mib};

const BLOCK: usize = 64 << 10;
/// Blocks that the store compresses together.
const FRAME_BLOCKS: usize = 16;
const LEVEL: i32 = 3;

/// What our own runs gave.
#[derive(Default)]
struct Ours {
    put: Figures,
    get1: Vec<f64>,
    get2: Vec<f64>,
    replicate2: Vec<f64>,
    data_bytes: u64,
    stored2_bytes: u64,
    moved_bytes: u64,
}

pub(super) fn run(lab: &Lab, inputs: &Inputs) -> anyhow::Result<Vec<Row>> {
    let mut ours = Ours::default();
    let mut peers: Vec<(Peer, Option<Figures>)> = Vec::new();
    for peer in PEERS.into_iter().filter(|_| lab.with_peers) {
        peers.push((peer, peer.is_installed().then(Figures::default)));
    }
    for turn in 0..lab.runs() {
        // By turns, so that whatever else the machine does is the same for all.
        for caches in Caches::BOTH {
            let state = caches.name();
            lab.say(&format!("put ({state}), get and replicate, turn {}", turn + 1));
            one_turn(lab, inputs, caches, &mut ours)?;
            for (peer, figures) in &mut peers {
                if let Some(figures) = figures.as_mut().filter(|_| turn == 0 || peer.has_goal()) {
                    lab.say(&format!("{} ({state}), turn {}", peer.name(), turn + 1));
                    peer.measure(lab, inputs, caches, figures)?;
                }
            }
        }
    }
    let changed = changed_blocks(&inputs.v1, &inputs.v2)?;
    let mut rows: Vec<Row> = peers.iter().map(|(peer, figures)| beside(*peer, figures.as_ref())).collect();
    let of = |wanted: Peer| {
        peers.iter().find(|(peer, _)| *peer == wanted).and_then(|(_, figures)| figures.as_ref())
    };

    let mut head = Vec::new();
    for caches in Caches::BOTH {
        for (peer, name, share) in [
            (Peer::QemuImg, "qemu-img", 0.5),
            (Peer::Borg, "borg", 1.0 / 10.0),
            (Peer::Restic, "restic", 1.0 / 15.0),
        ] {
            head.push(against(&ours, caches, name, share, of(peer)));
        }
    }
    let borg = of(Peer::Borg).map(|figures| figures.stored_bytes);
    let stored = format!("{:.1} MiB", mib(ours.put.stored_bytes));
    let value = json!({ "stored_bytes": ours.put.stored_bytes, "borg_bytes": borg });
    head.push(match borg {
        Some(borg) => Row::goal(
            "stored bytes of v1 + v2, everything included",
            format!("{stored}, {:.3} × borg's", ours.put.stored_bytes as f64 / borg as f64),
            "1.02 × borg's",
            ours.put.stored_bytes as f64 <= 1.02 * borg as f64,
            value,
        ),
        None => Row::shown("stored bytes of v1 + v2 (no borg here)", stored, value),
    });
    for caches in Caches::BOTH {
        let Times { first_s, second_s } = ours.put.of(caches);
        let (put1, put2) = (median(first_s), median(second_s));
        head.push(Row::goal(
            &format!("put v2 after v1, {}", caches.name()),
            format!("{put2:.2} s, {:.2} × put v1", put2 / put1),
            "0.35 × put v1, or 0.4 s",
            put2 <= 0.35 * put1 || put2 <= 0.4,
            json!({ "seconds": second_s }),
        ));
    }
    head.push(Row::goal(
        "… its new bytes",
        format!("{:.1} MiB, {:.2} × those blocks", mib(ours.stored2_bytes), ours.stored2_bytes as f64 / changed.alone as f64),
        "1.1 × its changed blocks, compressed one by one",
        ours.stored2_bytes as f64 <= 1.1 * changed.alone as f64,
        json!({ "stored_bytes": ours.stored2_bytes, "changed_blocks": changed.blocks, "compressed_alone": changed.alone }),
    ));
    head.push(Row::goal(
        "replicate v2 to a region that has v1: bytes moved",
        format!("{:.1} MiB, {:.3} ×", mib(ours.moved_bytes), ours.moved_bytes as f64 / changed.framed as f64),
        "1.05 × its changed blocks, compressed by sixteen",
        ours.moved_bytes as f64 <= 1.05 * changed.framed as f64,
        json!({ "bytes_moved": ours.moved_bytes, "compressed_framed": changed.framed }),
    ));
    let value = json!({ "get_v1": ours.get1, "get_v2": ours.get2, "replicate_v2": ours.replicate2 });
    head.push(Row::shown(
        "… get v1, get v2 (cold, SHA-256 equal each time), replicate v2",
        format!(
            "{:.2} s, {:.2} s, {:.2} s",
            median(&ours.get1),
            median(&ours.get2),
            median(&ours.replicate2)
        ),
        value,
    ));
    head.append(&mut rows);
    Ok(head)
}

/// A row that shows another tool.
fn beside(peer: Peer, figures: Option<&Figures>) -> Row {
    let turns = if peer.has_goal() { "" } else { " (one turn)" };
    let work = format!("beside it: {}{turns}", peer.name());
    let Some(Figures { cold, warm, stored_bytes }) = figures else {
        return Row::shown(&work, "not installed".to_owned(), Value::Null);
    };
    let shown = |times: &Times| format!("{:.2} s, {:.2} s", median(&times.first_s), median(&times.second_s));
    let text =
        format!("v1, v2 cold {}; warm {}; both {:.1} MiB", shown(cold), shown(warm), mib(*stored_bytes));
    let value = |times: &Times| json!({ "v1_s": times.first_s, "v2_s": times.second_s });
    Row::shown(&work, text, json!({ "cold": value(cold), "warm": value(warm), "stored_bytes": stored_bytes }))
}

/// One put of v1 into an empty store, v2 after it, each read back cold; then v2 to a store that has v1.
fn one_turn(lab: &Lab, inputs: &Inputs, caches: Caches, ours: &mut Ours) -> anyhow::Result<()> {
    let folder = lab.fresh("regions")?;
    let (west, east) = (folder.join("west").display().to_string(), folder.join("east").display().to_string());
    let mut manifests = Vec::new();
    for disk in [&inputs.v1, &inputs.v2] {
        caches.prepare(&disk.path)?;
        let (put, report) = lab.store(&["put", &disk.text(), "--region", &west, "--format", "raw"])?;
        let manifest = report["manifest"].as_str().context("a put without a manifest")?.to_owned();
        let get = cold_get(lab, &folder, &west, &manifest, disk)?;
        let times = ours.put.of_mut(caches);
        if manifests.is_empty() {
            times.first_s.push(put);
            ours.get1.push(get);
            ours.data_bytes = number(&report, "data_bytes")?;
        } else {
            times.second_s.push(put);
            ours.get2.push(get);
            ours.stored2_bytes = number(&report, "stored_bytes")?;
        }
        manifests.push(manifest);
    }
    ours.put.stored_bytes = bytes_below(Path::new(&west))?;
    lab.store(&["replicate", &manifests[0], "--from", &west, "--to", &east])?;
    let (seconds, report) = lab.store(&["replicate", &manifests[1], "--from", &west, "--to", &east])?;
    ours.replicate2.push(seconds);
    ours.moved_bytes = number(&report, "bytes_moved")?;
    lab.fresh("regions")?;
    Ok(())
}

fn cold_get(lab: &Lab, folder: &Path, region: &str, manifest: &str, disk: &Disk) -> anyhow::Result<f64> {
    let copy = folder.join("copy.raw");
    let text = copy.display().to_string();
    drop_caches()?;
    let (seconds, _) = lab.store(&["get", manifest, &text, "--region", region, "--format", "raw"])?;
    ensure!(sha256(&copy)? == disk.sha256, "{} did not come back as it went in", disk.path.display());
    std::fs::remove_file(&copy).context("cannot remove a copy")?;
    Ok(seconds)
}

/// A row that compares put v1 with another tool.
fn against(ours: &Ours, caches: Caches, name: &str, share: f64, theirs: Option<&Figures>) -> Row {
    let times = &ours.put.of(caches).first_s;
    let put = median(times);
    let work = format!("put v1 ({:.0} MiB of data), {}, against {name}", mib(ours.data_bytes), caches.name());
    let value = json!({ "seconds": times });
    let Some(theirs) = theirs.map(|figures| median(&figures.of(caches).first_s)) else {
        return Row::shown(&work, format!("{put:.2} s"), value);
    };
    let goal = if share < 0.5 {
        format!("{:.0} times faster ({:.2} s)", 1.0 / share, theirs * share)
    } else {
        format!("{share} × its time ({:.2} s)", theirs * share)
    };
    let measured = format!("{put:.2} s against {theirs:.2} s: {:.1} times faster", theirs / put);
    Row::goal(&work, measured, &goal, put <= share * theirs, value)
}

fn number(report: &Value, name: &str) -> anyhow::Result<u64> {
    report[name].as_u64().with_context(|| format!("the report has no {name}"))
}

/// Blocks of the second disk that the first does not have.
struct Changed {
    blocks: u64,
    /// Compressed bytes, each block by itself.
    alone: u64,
    /// Compressed bytes, sixteen neighbours together.
    framed: u64,
}

fn changed_blocks(before: &Disk, after: &Disk) -> anyhow::Result<Changed> {
    let mut known = HashSet::new();
    each_block(&before.path, |block| {
        known.insert(*blake3::hash(block).as_bytes());
        Ok(())
    })?;
    let mut changed = Changed { blocks: 0, alone: 0, framed: 0 };
    let mut frame = Vec::new();
    let compressed = |bytes: &[u8]| {
        Ok::<_, std::io::Error>(zstd::bulk::compress(bytes, LEVEL)?.len().min(bytes.len()) as u64)
    };
    each_block(&after.path, |block| {
        if known.insert(*blake3::hash(block).as_bytes()) {
            changed.blocks += 1;
            changed.alone += compressed(block)?;
            frame.extend_from_slice(block);
            if frame.len() == FRAME_BLOCKS * BLOCK {
                changed.framed += compressed(&frame)?;
                frame.clear();
            }
        }
        Ok(())
    })?;
    changed.framed += compressed(&frame)?;
    Ok(changed)
}

/// Every block of a disk that is not zeros. Disks are a multiple of a block here.
fn each_block(path: &Path, mut see: impl FnMut(&[u8]) -> std::io::Result<()>) -> anyhow::Result<()> {
    let mut walk = || -> std::io::Result<()> {
        let file = File::open(path)?;
        let mut buffer = vec![0; BLOCK];
        let mut next = 0;
        for (start, end) in data_extents(&file)? {
            let block = BLOCK as u64;
            for number in (start / block).max(next)..end.div_ceil(block) {
                file.read_exact_at(&mut buffer, number * block)?;
                if buffer.iter().any(|byte| *byte != 0) {
                    see(&buffer)?;
                }
                next = number + 1;
            }
        }
        Ok(())
    };
    walk().with_context(|| format!("cannot read {}", path.display()))
}
