//! Marking a long history: ten thousand versions of one disk, as a nightly build of 27 years would leave them.
//!
//! The store is written directly, as docs/format.md describes it: real manifests, pages, references and index, and packs of
//! blocks that are holes, because marking reads tables and never blocks.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::json;

use super::inputs::Inputs;
use super::lab::{Lab, Noise};
use super::memory::peak;
use super::segments::{self, Entry, KIND_BLOCKS, Place};
use super::table::{Row, median};

const VERSIONS: usize = 10_000;
const DISK_BYTES: u64 = 30 << 30;
const BLOCKS_PER_PAGE: usize = 1024;
const PAGES: usize = (DISK_BYTES / (64 << 10)) as usize / BLOCKS_PER_PAGE;
/// What each version changes: 100 blocks of 64 KiB in four places.
const CHANGED_PAGES: usize = 4;
const CHANGED_BLOCKS: usize = 25;
const GOAL_S: f64 = 60.0;

const PACK_BYTES: u64 = 64 << 20;
const PACK_HEADER_BYTES: u32 = 32;
/// Frames of 16 blocks, each compressed to a little less than half.
const FRAME_BLOCKS: u8 = 16;
const FRAME_BYTES: u32 = 480 << 10;
const FRAMES_PER_PACK: u32 = PACK_BYTES as u32 / FRAME_BYTES - 1;
const KIND_PAGE: u8 = 2;
const KIND_MANIFEST: u8 = 3;

pub(super) fn run(lab: &Lab, _inputs: &Inputs) -> anyhow::Result<Vec<Row>> {
    let folder = lab.fresh("lineage")?;
    let region = folder.join("west");
    let text = region.display().to_string();
    // The store itself is made by the program.
    let seed = folder.join("seed.raw");
    fs::write(&seed, Noise::new(1).half(1 << 20)).context("cannot write a disk")?;
    lab.store(&["put", &seed.display().to_string(), "--region", &text])?;
    let versions = lab.count(VERSIONS);
    lab.say(&format!("a history of {versions} versions"));
    History::new(&region).write(versions).context("the history cannot be written")?;

    let (mut times, mut memory_kib, mut live) = (Vec::new(), 0, 0);
    for turn in 0..lab.runs() {
        lab.say(&format!("marking, run {}", turn + 1));
        let started = std::time::Instant::now();
        let (kib, report) = peak(&mut lab.command(&["gc", "--region", &text, "--dry-run"]))?;
        times.push(started.elapsed().as_secs_f64());
        memory_kib = memory_kib.max(kib);
        let report: serde_json::Value = serde_json::from_slice(&report).context("gc printed no JSON")?;
        ensure!(report["images"].as_u64() == Some(versions as u64 + 1), "gc saw other images: {report}");
        ensure!(report["packs_removed"].as_u64() == Some(0), "gc would remove what is needed: {report}");
        live = report["live"].as_u64().unwrap_or(0);
    }
    lab.fresh("lineage")?;
    let seconds = median(&times);
    Ok(vec![Row::goal(
        &format!(
            "GC mark of {versions} versions of one 30 GiB lineage ({:.1} million things live)",
            live as f64 / 1e6
        ),
        format!("{seconds:.1} s, {} MiB of anonymous memory", memory_kib / 1024),
        "60 s",
        seconds < GOAL_S,
        json!({ "seconds": times, "live": live, "anonymous_kib": memory_kib }),
    )])
}

/// A store's objects under construction.
struct History {
    region: PathBuf,
    noise: Noise,
    packs: Vec<[u8; 16]>,
    entries: Vec<Entry>,
    /// The pack of blocks that is being filled: its number, frames, and blocks of its last frame.
    blocks: (u32, u32, u8),
    /// The pack of tables that is being written, and its number.
    tables: Vec<u8>,
    tables_number: u32,
    frames: u32,
}

impl History {
    fn new(region: &Path) -> Self {
        let mut this = Self {
            region: region.to_owned(),
            noise: Noise::new(2),
            packs: Vec::new(),
            entries: Vec::new(),
            blocks: (0, FRAMES_PER_PACK, 0),
            tables: Vec::new(),
            tables_number: 0,
            frames: 0,
        };
        this.begin_tables();
        this
    }

    fn write(mut self, versions: usize) -> std::io::Result<()> {
        let mut disk: Vec<Vec<[u8; 32]>> = Vec::new();
        for _ in 0..PAGES {
            let mut page = Vec::with_capacity(BLOCKS_PER_PAGE);
            for _ in 0..BLOCKS_PER_PAGE {
                page.push(self.block()?);
            }
            disk.push(page);
        }
        let mut ids = Vec::new();
        for page in &disk {
            ids.push(self.page(page)?);
        }
        self.version(&ids)?;
        for _ in 1..versions {
            for _ in 0..CHANGED_PAGES {
                let number = self.below(PAGES);
                for _ in 0..CHANGED_BLOCKS {
                    let block = self.below(BLOCKS_PER_PAGE);
                    disk[number][block] = self.block()?;
                }
                ids[number] = self.page(&disk[number])?;
            }
            self.version(&ids)?;
        }
        self.end_tables()?;
        self.entries.sort_unstable();
        for (number, entries) in self.entries.chunks(segments::MAX_ENTRIES).enumerate() {
            segments::write(&self.region.join(format!("index/{number:032x}")), &self.packs, entries)?;
        }
        Ok(())
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.noise.next() % limit as u64) as usize
    }

    fn hash(&mut self) -> [u8; 32] {
        let mut hash = [0; 32];
        for part in hash.chunks_exact_mut(8) {
            part.copy_from_slice(&self.noise.next().to_le_bytes());
        }
        hash
    }

    /// A block that nobody will read: a hash, and a place in a pack of holes.
    fn block(&mut self) -> std::io::Result<[u8; 32]> {
        let (mut pack, mut frame, mut slot) = self.blocks;
        if frame == FRAMES_PER_PACK {
            pack = self.pack()?;
            let file = File::create(self.pack_path(pack))?;
            file.set_len(PACK_BYTES)?;
            (frame, slot) = (0, 0);
        }
        let hash = self.hash();
        let offset = PACK_HEADER_BYTES + frame * FRAME_BYTES;
        let place = Place { pack, offset, len: FRAME_BYTES, slot, count: FRAME_BLOCKS, kind: KIND_BLOCKS };
        self.entries.push(segments::entry(&hash, place));
        slot += 1;
        self.blocks = if slot == FRAME_BLOCKS { (pack, frame + 1, 0) } else { (pack, frame, slot) };
        Ok(hash)
    }

    fn page(&mut self, blocks: &[[u8; 32]]) -> std::io::Result<[u8; 32]> {
        let mut bytes = b"TTPAGE\0\x01".to_vec();
        bytes.extend_from_slice(&[0xff; BLOCKS_PER_PAGE / 8]);
        bytes.extend_from_slice(blocks.as_flattened());
        self.table(KIND_PAGE, &bytes)
    }

    fn version(&mut self, pages: &[[u8; 32]]) -> std::io::Result<()> {
        let mut bytes = b"TTMANIF\0".to_vec();
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        bytes.extend_from_slice(&(64_u32 << 10).to_le_bytes());
        bytes.extend_from_slice(&DISK_BYTES.to_le_bytes());
        bytes.extend_from_slice(&((pages.len() * BLOCKS_PER_PAGE) as u64).to_le_bytes());
        bytes.extend_from_slice(&(pages.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        for (number, page) in pages.iter().enumerate() {
            bytes.extend_from_slice(&(number as u32).to_le_bytes());
            bytes.extend_from_slice(&(BLOCKS_PER_PAGE as u32).to_le_bytes());
            bytes.extend_from_slice(page);
        }
        let manifest = blake3::Hash::from_bytes(self.table(KIND_MANIFEST, &bytes)?).to_hex();
        let folder = self.region.join("refs").join(manifest.as_str());
        fs::create_dir_all(&folder)?;
        let owner = blake3::hash(b"bench").to_hex();
        fs::write(
            folder.join(format!("{}-{:032x}", &owner[..32], 7)),
            r#"{"owner":"bench","created_unix_s":1}"#,
        )
    }

    /// Appends a table to the pack of tables as a frame of its own.
    fn table(&mut self, kind: u8, bytes: &[u8]) -> std::io::Result<[u8; 32]> {
        let len = 16 + 32 + bytes.len();
        if self.tables.len() + len > PACK_BYTES as usize {
            self.end_tables()?;
            self.begin_tables();
        }
        let hash = *blake3::hash(bytes).as_bytes();
        let place = Place {
            pack: self.tables_number,
            offset: self.tables.len() as u32,
            len: len as u32,
            slot: 0,
            count: 1,
            kind,
        };
        self.entries.push(segments::entry(&hash, place));
        self.tables.extend_from_slice(b"TTFR");
        self.tables.extend_from_slice(&[kind, 0, 1, 0]);
        self.tables.extend_from_slice(&self.frames.to_le_bytes());
        self.tables.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.tables.extend_from_slice(&hash);
        self.tables.extend_from_slice(bytes);
        self.frames += 1;
        Ok(hash)
    }

    fn begin_tables(&mut self) {
        let id = self.new_id();
        self.packs.push(id);
        self.tables_number = self.packs.len() as u32 - 1;
        self.frames = 0;
        self.tables.clear();
        self.tables.extend_from_slice(b"TTPACK\0\0");
        self.tables.extend_from_slice(&1_u32.to_le_bytes());
        self.tables.extend_from_slice(&0_u32.to_le_bytes());
        self.tables.extend_from_slice(&id);
    }

    fn end_tables(&mut self) -> std::io::Result<()> {
        self.make_folder(self.tables_number)?;
        File::create(self.pack_path(self.tables_number))?.write_all(&self.tables)
    }

    fn pack(&mut self) -> std::io::Result<u32> {
        let id = self.new_id();
        self.packs.push(id);
        let number = self.packs.len() as u32 - 1;
        self.make_folder(number)?;
        Ok(number)
    }

    fn new_id(&mut self) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(&self.hash()[..16]);
        id
    }

    fn make_folder(&self, number: u32) -> std::io::Result<()> {
        let path = self.pack_path(number);
        fs::create_dir_all(path.parent().unwrap_or(&self.region))
    }

    fn pack_path(&self, number: u32) -> PathBuf {
        let name = format!("{:032x}", u128::from_be_bytes(self.packs[number as usize]));
        self.region.join("packs").join(&name[..2]).join(&name)
    }
}
