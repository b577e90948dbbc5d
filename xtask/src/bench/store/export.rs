//! How fast an export gives out what its cache holds.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::inputs::{Disk, Inputs};
use super::lab::{Lab, Noise, Running, data_extents, timed};
use super::nbd_client::NbdClient;
use super::table::{Row, median};

const DEPTH: usize = 32;
const SMALL_READ: u64 = 4096;
const LARGE_READ: u64 = 256 << 10;
const RANDOM_READS: usize = 400_000;
/// Random reads stay within so much data in the second figure: what the export's open files cover.
const WORKING_SET: u64 = 256 << 20;

pub(super) fn run(lab: &Lab, inputs: &Inputs) -> anyhow::Result<Vec<Row>> {
    let folder = lab.fresh("export")?;
    let region = folder.join("west").display().to_string();
    let (_, put) = lab.store(&["put", &inputs.v1.text(), "--region", &region])?;
    let manifest = put["manifest"].as_str().context("a put without a manifest")?;
    let export = Export::start(lab, &folder, &region, manifest)?;
    let disk = File::open(&inputs.v1.path).context("cannot open the disk")?;
    let extents = data_extents(&disk).context("cannot find the disk's data")?;

    lab.say("export: all data, cold and checked");
    let (cold, bytes) = timed(|| {
        let mut client = export.connect()?;
        Ok(client.read_all(sequential(&extents), DEPTH, |_, _| {})?)
    })?;
    check(&export, &disk, &inputs.v1, &extents)?;
    lab.say("export: sequential reads, warm");
    let mut rates = Vec::new();
    for _ in 0..lab.runs() {
        let mut client = export.connect()?;
        let (seconds, bytes) = timed(|| Ok(client.read_all(sequential(&extents), DEPTH, |_, _| {})?))?;
        rates.push(bytes as f64 / seconds / 1e9);
    }
    let rate = median(&rates);
    let mut rows = vec![Row::goal(
        "NBD export, warm, sequential",
        format!("{rate:.2} GB/s (cold: {:.2} GB/s)", bytes as f64 / cold / 1e9),
        "1 GB/s",
        rate >= 1.0,
        json!({ "gb_per_s": rates, "cold_s": cold, "bytes": bytes }),
    )];
    let all: u64 = extents.iter().map(|(start, end)| end - start).sum();
    for (work, within) in [("all of the data", all), ("256 MiB of the data", WORKING_SET)] {
        lab.say(&format!("export: random reads within {work}"));
        let places = random_places(&extents, within.min(all), lab.count(RANDOM_READS));
        let mut rates = Vec::new();
        for _ in 0..lab.runs() {
            let mut client = export.connect()?;
            let places = places.iter().copied();
            let (seconds, bytes) = timed(|| Ok(client.read_all(places, DEPTH, |_, _| {})?))?;
            rates.push((bytes / SMALL_READ) as f64 / seconds);
        }
        let rate = median(&rates);
        rows.push(Row::goal(
            &format!("NBD export, warm, random 4K at depth 32, within {work}"),
            format!("{:.0} thousand a second", rate / 1e3),
            "80 thousand",
            rate >= 80e3,
            json!({ "per_s": rates }),
        ));
    }
    rows.push(Row::shown(
        "… anonymous memory of the export after it",
        format!("{} MiB", export.anonymous_kib()? / 1024),
        Value::Null,
    ));
    drop(export);
    lab.fresh("export")?;
    Ok(rows)
}

/// A running export with a cache folder of its own.
pub(super) struct Export {
    running: Running,
    socket: PathBuf,
}

impl Export {
    pub(super) fn start(lab: &Lab, folder: &Path, region: &str, manifest: &str) -> anyhow::Result<Self> {
        let socket = folder.join("nbd.sock");
        let cache = folder.join("cache").display().to_string();
        let path = socket.display().to_string();
        let mut command =
            lab.command(&["export-nbd", manifest, "--region", region, "--socket", &path, "--cache", &cache]);
        let mut running = Running::start(command.stdout(Stdio::piped()))?;
        let stdout = running.child.stdout.take().context("the export has no output")?;
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready).context("cannot read what the export says")?;
        ensure!(!ready.is_empty(), "the export ended before it was ready");
        Ok(Self { running, socket })
    }

    pub(super) fn connect(&self) -> anyhow::Result<NbdClient> {
        NbdClient::connect(&self.socket).context("cannot connect to the export")
    }

    pub(super) fn pid(&self) -> u32 {
        self.running.child.id()
    }

    fn anonymous_kib(&self) -> anyhow::Result<u64> {
        super::memory::anonymous_kib(self.pid()).context("the export is gone")
    }
}

/// Every byte of the data, through the export, against the disk.
fn check(export: &Export, disk: &File, input: &Disk, extents: &[(u64, u64)]) -> anyhow::Result<()> {
    let mut client = export.connect()?;
    let mut expected = Vec::new();
    let mut wrong = None;
    client.read_all(sequential(extents), DEPTH, |offset, bytes| {
        expected.resize(bytes.len(), 0);
        if disk.read_exact_at(&mut expected, offset).is_err() || expected != bytes {
            wrong = wrong.or(Some(offset));
        }
    })?;
    ensure!(wrong.is_none(), "{} came back different at {wrong:?}", input.path.display());
    Ok(())
}

/// Large reads over all data, in order.
pub(super) fn sequential(extents: &[(u64, u64)]) -> impl Iterator<Item = (u64, u32)> {
    extents.iter().flat_map(|&(start, end)| {
        (start..end).step_by(LARGE_READ as usize).map(move |at| (at, LARGE_READ.min(end - at) as u32))
    })
}

/// Small reads anywhere in the first `within` bytes of the data.
fn random_places(extents: &[(u64, u64)], within: u64, count: usize) -> Vec<(u64, u32)> {
    let mut noise = Noise::new(7);
    let mut pages: Vec<u64> = Vec::new();
    for &(start, end) in extents {
        pages.extend((start..end).step_by(SMALL_READ as usize));
    }
    pages.truncate((within / SMALL_READ) as usize);
    (0..count).map(|_| (pages[(noise.next() % pages.len() as u64) as usize], SMALL_READ as u32)).collect()
}
