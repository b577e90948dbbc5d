//! The largest disk there is: 32 TiB, nearly all of it holes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::json;

use super::export::Export;
use super::inputs::Inputs;
use super::lab::{Lab, Noise, timed};
use super::table::{Row, median};

const DISK_BYTES: u64 = 32 << 40;
const BLOCK: u64 = 64 << 10;
/// Data at the beginning and at the end.
const DATA_BYTES: u64 = 16 << 20;
/// "Seconds, not minutes."
const GOAL_S: f64 = 10.0;
/// tmpfs: ext4 has no files of 16 TiB and more.
const FOLDER: &str = "/dev/shm";

pub(super) fn run(lab: &Lab, _inputs: &Inputs) -> anyhow::Result<Vec<Row>> {
    let disk = Sparse::make()?;
    let folder = lab.fresh("sparse")?;
    let (mut puts, mut opens) = (Vec::new(), Vec::new());
    for turn in 0..lab.runs() {
        let region = folder.join(format!("west-{turn}")).display().to_string();
        let (seconds, put) = lab.store(&["put", &disk.text(), "--region", &region])?;
        puts.push(seconds);
        ensure!(put["logical_bytes"].as_u64() == Some(DISK_BYTES), "the store has another size");
        let manifest = put["manifest"].as_str().context("a put without a manifest")?;
        let (seconds, last) = timed(|| {
            let export = Export::start(lab, &folder, &region, manifest)?;
            let mut last = Vec::new();
            export
                .connect()?
                .read_all([(DISK_BYTES - BLOCK, BLOCK as u32)], 1, |_, bytes| last = bytes.to_vec())?;
            Ok(last)
        })?;
        ensure!(last == disk.last, "the last block came back different");
        opens.push(seconds);
    }
    lab.fresh("sparse")?;
    let (put, open) = (median(&puts), median(&opens));
    Ok(vec![Row::goal(
        "32 TiB sparse disk (raw on tmpfs): put; open and read the last block",
        format!("{put:.2} s; {open:.2} s"),
        "seconds",
        put + open < GOAL_S,
        json!({ "put_s": puts, "open_s": opens }),
    )])
}

/// The disk, removed with this value.
struct Sparse {
    path: PathBuf,
    last: Vec<u8>,
}

impl Sparse {
    fn make() -> anyhow::Result<Self> {
        let path = Path::new(FOLDER).join(format!("tintype-bench-{}.raw", std::process::id()));
        let mut noise = Noise::new(32);
        let (first, end) = (noise.half(DATA_BYTES as usize), noise.half(DATA_BYTES as usize));
        let last = end[end.len() - BLOCK as usize..].to_vec();
        let this = Self { path, last };
        let file = File::create(&this.path).with_context(|| format!("cannot make {}", this.text()))?;
        file.set_len(DISK_BYTES)
            .and_then(|()| file.write_all_at(&first, 0))
            .and_then(|()| file.write_all_at(&end, DISK_BYTES - DATA_BYTES))
            .with_context(|| format!("cannot write {}", this.text()))?;
        Ok(this)
    }

    fn text(&self) -> String {
        self.path.display().to_string()
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("bench: cannot remove {}: {error}", self.text());
        }
    }
}
