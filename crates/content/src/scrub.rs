//! Checking a whole store, and repairing it from replicas.
//!
//! Every frame that something visible needs is read once, pack by pack, past every cache. What turns out to be damaged is
//! named with every image that needs it. Repairing is freeing the damaged packs as garbage collection does, with the
//! replicas as further sources: what they have is copied from them, and the damaged bytes go. The index is made anew from the
//! packs (`reindex.rs`), and references from what others say of their owners (`references.rs`).

mod references;
mod reindex;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Instant;

use futures::{StreamExt, stream};
use serde::Serialize;

use crate::format::{BLOCKS_PER_PAGE, Location};
use crate::gc::mark::{Marked, half, load_page, load_root, mark};
use crate::gc::{GcReport, Room, tally};
use crate::id::{ManifestId, PackId};
use crate::store::{Store, block_bytes};
use crate::write::{Attempt, BlockWriter, copy};
use crate::{Error, Result};

/// Frames that are read at a time, up to 1 MiB each.
const MAX_READS: usize = 8;
/// Damaged parts that a report names, and places for each of them; more are only counted.
const MAX_NAMED: usize = 1000;
/// Frames between two reports of progress.
const REPORT_FRAMES: u64 = 64;

/// How a store is checked.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Other stores that may have what is damaged here.
    pub replicas: Vec<Store>,
    /// Whether to take it from them.
    pub repair: bool,
}

/// What checking a store found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StoreVerifyReport {
    /// Visible images.
    pub images: u64,
    /// Blocks, pages and manifests that they need.
    pub needed: u64,
    /// Frames that were read.
    pub frames: u64,
    /// Their bytes.
    pub bytes_read: u64,
    /// Frames that cannot be read, or are not what they should be; what was in them may be whole elsewhere.
    pub damaged_frames: u64,
    /// What is needed and has no undamaged copy here.
    pub damaged: u64,
    /// How much of that was repaired.
    pub repaired: u64,
    /// Index segments that are damaged. Repairing makes what was in them anew.
    pub damaged_segments: u64,
    /// Packs that no undamaged segment named, and that were read to name them again.
    pub reindexed_packs: u64,
    /// References that cannot be read. They keep their images; whose they are is not known.
    pub damaged_references: u64,
    /// How many of them were repaired.
    pub repaired_references: u64,
    /// The first thousand of what is needed and damaged.
    pub damages: Vec<Damage>,
    /// All images that need any of it, repaired or not.
    pub affected: Vec<Affected>,
    /// Wall time.
    pub seconds: f64,
}

impl StoreVerifyReport {
    /// What is damaged of which there is, or can be made, an undamaged copy in the store itself.
    pub fn copies_damaged(&self) -> u64 {
        self.damaged_frames + self.damaged_segments + self.damaged_references
    }
}

/// Something that is needed and damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The id of the block, page or manifest: 64 hex digits.
    pub hash: String,
    /// Why it cannot be read; names the pack.
    pub reason: String,
    /// Whether it was repaired.
    pub repaired: bool,
    /// Which images need it, and where.
    pub needed_by: Vec<Need>,
}

/// An image that needs something that was damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Affected {
    /// The image.
    pub manifest: ManifestId,
    /// Who refers to it.
    pub owners: Vec<String>,
    /// Damaged places of it.
    pub places: u64,
}

/// An image that needs something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The image.
    pub manifest: ManifestId,
    /// Who refers to it.
    pub owners: Vec<String>,
    /// Where on its disk, in bytes; the start of 64 MiB for a page, none for the manifest.
    pub disk_offset: Option<u64>,
}

impl Store {
    /// Reads and checks everything that visible images need. `progress` gets frames done and frames in all.
    pub async fn verify_all(
        &self,
        options: &VerifyOptions,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<StoreVerifyReport> {
        let started = Instant::now();
        if options.repair {
            self.check_writable()?;
        }
        let mut sources = vec![self.clone()];
        sources.extend_from_slice(&options.replicas);
        for store in &sources {
            store.refresh().await?;
        }
        let mut report = StoreVerifyReport {
            damaged_segments: self.index().check().await?.len() as u64,
            ..Default::default()
        };
        if options.repair {
            report.reindexed_packs = self.rebuild_index().await?;
        }
        let (damaged, repaired) = self.check_references(options).await?;
        (report.damaged_references, report.repaired_references) = (damaged, repaired);
        let roots = self.roots().await?;
        let mut marked = Marked::collecting_damage();
        mark(&sources, &roots, &mut marked, &|_, _, _| {}).await?;
        self.refresh().await?;

        report.images = roots.visible.len() as u64;
        report.needed = marked.len() as u64;
        let frames = tally::live_frames(self, &marked).await?;
        let checked = self.read_frames(&marked, frames, &mut report, &progress).await?;

        let lost = self.name_lost(&marked, &checked).await?;
        report.damaged = lost.len() as u64;
        let (mut needs, affected) = self.who_needs(&sources, &roots.visible, &lost).await?;
        report.affected = affected;
        let mut repaired = HashSet::new();
        if options.repair && (!lost.is_empty() || !checked.damaged.is_empty()) {
            repaired = self.repair(options, &lost, &checked, &mut marked).await?;
        }
        report.repaired = repaired.len() as u64;
        for (half, reason) in lost {
            if report.damages.len() == MAX_NAMED {
                break;
            }
            let Needs { hash, of } = needs.remove(&half).unwrap_or_default();
            let hash = hash.map_or_else(|| hex(&half), |hash| hex(&hash));
            report.damages.push(Damage { hash, reason, repaired: repaired.contains(&half), needed_by: of });
        }
        report.seconds = started.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Reads frames, and notes what they hold and which are damaged.
    async fn read_frames(
        &self,
        marked: &Marked,
        frames: Vec<Location>,
        report: &mut StoreVerifyReport,
        progress: &(impl Fn(u64, u64) + Send + Sync),
    ) -> Result<Checked> {
        let marks = marked.marks();
        let mut checked = Checked { whole: vec![false; marks.len()], damaged: HashMap::new() };
        let total = frames.len() as u64;
        let reads = frames.into_iter().map(|location| read_frame(self.clone(), location));
        let mut reads = stream::iter(reads).buffer_unordered(MAX_READS);
        while let Some((location, held)) = reads.next().await {
            report.frames += 1;
            report.bytes_read += u64::from(location.len);
            match held {
                Ok(hashes) => {
                    for hash in hashes {
                        if let Ok(mark) = marks.binary_search_by_key(&half(&hash), |mark| mark.half) {
                            checked.whole[mark] = true;
                        }
                    }
                }
                Err(error) => {
                    report.damaged_frames += 1;
                    checked.damaged.insert((location.pack, location.offset), error.to_string());
                }
            }
            if report.frames.is_multiple_of(REPORT_FRAMES) || report.frames == total {
                progress(report.frames, total);
            }
        }
        Ok(checked)
    }

    /// What is required and was in no undamaged frame, with the reason.
    async fn name_lost(&self, marked: &Marked, checked: &Checked) -> Result<BTreeMap<[u8; 16], String>> {
        let marks = marked.marks();
        let mut lost: BTreeMap<[u8; 16], String> = marks
            .iter()
            .zip(&checked.whole)
            .filter(|(mark, whole)| mark.required && !**whole)
            .map(|(mark, _)| {
                (mark.half, "no index segment names it: a segment or a pack was lost".to_owned())
            })
            .collect();
        for unreadable in &marked.unreadable {
            lost.insert(half(unreadable.hash.as_bytes()), unreadable.error.to_string());
        }
        if !lost.is_empty() {
            tally::locate(self, marked, |hash, location| {
                let reason = checked.damaged.get(&(location.pack, location.offset));
                if let (Some(entry), Some(reason)) = (lost.get_mut(&half(hash)), reason) {
                    entry.clone_from(reason);
                }
            })?;
        }
        Ok(lost)
    }

    /// Which images need what was lost, and where.
    async fn who_needs(
        &self,
        sources: &[Store],
        images: &BTreeSet<ManifestId>,
        lost: &BTreeMap<[u8; 16], String>,
    ) -> Result<(BTreeMap<[u8; 16], Needs>, Vec<Affected>)> {
        let mut needs: BTreeMap<[u8; 16], Needs> = BTreeMap::new();
        let mut affected: Vec<Affected> = Vec::new();
        if lost.is_empty() {
            return Ok((needs, affected));
        }
        let mut note = |hash: &[u8; 32], need: Need| {
            if lost.contains_key(&half(hash)) {
                match affected.last_mut().filter(|last| last.manifest == need.manifest) {
                    Some(last) => last.places += 1,
                    None => affected.push(Affected {
                        manifest: need.manifest,
                        owners: need.owners.clone(),
                        places: 1,
                    }),
                }
                let needs = needs.entry(half(hash)).or_default();
                needs.hash = Some(*hash);
                if needs.of.len() < MAX_NAMED {
                    needs.of.push(need);
                }
            }
        };
        for manifest in images {
            let owners = self.refs(manifest).await?;
            let at = |disk_offset| Need { manifest: *manifest, owners: owners.clone(), disk_offset };
            note(manifest.as_bytes(), at(None));
            // What cannot be read names nothing; it is in the report itself.
            let Ok(root) = load_root(sources.to_vec(), *manifest).await else { continue };
            for (number, entry) in root.pages {
                let first = u64::from(number) * BLOCKS_PER_PAGE as u64;
                note(entry.id.as_bytes(), at(Some(block_bytes(first))));
                let Ok(page) = load_page(sources.to_vec(), entry.id).await else { continue };
                for (index, hash) in page.present() {
                    if lost.contains_key(&half(hash.as_bytes())) {
                        note(hash.as_bytes(), at(Some(block_bytes(first + index as u64))));
                    }
                }
            }
        }
        Ok((needs, affected))
    }

    /// Copies what replicas have, and frees the packs with damaged frames out of which everything could be saved.
    async fn repair(
        &self,
        options: &VerifyOptions,
        lost: &BTreeMap<[u8; 16], String>,
        checked: &Checked,
        marked: &mut Marked,
    ) -> Result<HashSet<[u8; 16]>> {
        // Full hashes, as the replicas' indexes know them.
        let mut wanted = Vec::new();
        let mut repaired = HashSet::new();
        for replica in &options.replicas {
            tally::locate_halves(replica, lost.keys().copied(), |hash| {
                if repaired.insert(half(hash)) {
                    wanted.push((*hash, ()));
                }
            })?;
        }
        // Only what a replica can really give.
        let mut given = Vec::new();
        for (hash, ()) in wanted {
            let mut found = false;
            for replica in &options.replicas {
                found |= replica.load_by_hash(&hash).await.is_ok();
            }
            if found {
                given.push((hash, ()));
            } else {
                repaired.remove(&half(&hash));
            }
        }
        let attempt = Attempt::begin(self, None).await?;
        let mut writer = BlockWriter::new(&attempt);
        let copied = copy(&options.replicas, given, &mut writer).await;
        let written = match copied {
            Ok(()) => writer.finish().await.map(drop),
            Err(failed) => Err(*failed.error),
        };
        // Until the damaged packs are gone, the new ones are a living writer's: no collection takes them for copies.
        let freed = match written {
            Ok(()) => self.free_damaged(options, lost, &repaired, checked, marked).await,
            Err(error) => Err(error),
        };
        attempt.end().await?;
        freed.map(|()| repaired)
    }

    async fn free_damaged(
        &self,
        options: &VerifyOptions,
        lost: &BTreeMap<[u8; 16], String>,
        repaired: &HashSet<[u8; 16]>,
        checked: &Checked,
        marked: &mut Marked,
    ) -> Result<()> {
        // While a table is lost, nobody knows what it needs: then nothing is freed.
        if !marked.unreadable.is_empty() {
            return Ok(());
        }
        marked.refuse_damage();
        let mut victims: HashSet<PackId> = checked.damaged.keys().map(|(pack, _)| *pack).collect();
        // A pack with something that nobody else has stays: its disk may yet give it.
        tally::locate(self, marked, |hash, location| {
            if lost.contains_key(&half(hash)) && !repaired.contains(&half(hash)) {
                victims.remove(&location.pack);
            }
        })?;
        self.replace(
            &victims,
            &options.replicas,
            Room::Enough,
            marked,
            &mut GcReport::default(),
            &|_, _, _| {},
        )
        .await
    }
}

/// What reading the frames told.
struct Checked {
    /// For each mark, whether an undamaged frame holds it.
    whole: Vec<bool>,
    /// Damaged frames by pack and place, and why.
    damaged: HashMap<(PackId, u32), String>,
}

/// Who needs something that was lost.
#[derive(Default)]
struct Needs {
    hash: Option<[u8; 32]>,
    of: Vec<Need>,
}

async fn read_frame(store: Store, location: Location) -> (Location, Result<Vec<[u8; 32]>>) {
    let frame = store.load_frame(&location).await;
    let held = frame.and_then(|frame| match frame.kind == location.kind {
        true => Ok(frame.hashes),
        false => Err(Error::DamagedFrame {
            pack: location.pack,
            offset: location.offset,
            reason: "it is of another kind than the index says".to_owned(),
        }),
    });
    (location, held)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
