//! Reading every block of an image, from the store itself, to know that it is all there.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::format::{BLOCKS_PER_PAGE, FrameKind};
use crate::id::{BlockHash, ManifestId};
use crate::store::{Store, block_bytes};
use crate::{Error, Result};

/// Damaged blocks that a report names; more are only counted.
const MAX_NAMED: usize = 1000;

/// What verifying an image found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blocks of the disk that are not zeros.
    pub blocks: u64,
    /// Those which cannot be read, or are not what they should be.
    pub damaged_blocks: u64,
    /// The first thousand of them.
    pub damaged: Vec<DamagedBlock>,
}

/// A block that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedBlock {
    /// Where on the disk, in bytes.
    pub disk_offset: u64,
    /// Its id, 64 hex digits.
    pub block: String,
    /// Why; names the pack.
    pub reason: String,
}

impl Store {
    /// Reads and checks every block of a visible image, past every cache. A damaged block is part of the report; a damaged
    /// page or manifest is an error, because what it named is not known.
    pub async fn verify(&self, manifest: &ManifestId) -> Result<VerifyReport> {
        self.refresh().await?;
        let root = self.load_manifest(manifest).await?;
        let mut report = VerifyReport::default();
        for (number, entry) in &root.pages {
            let page = self.load_page(&entry.id).await?;
            let first = u64::from(*number) * BLOCKS_PER_PAGE as u64;
            let blocks: Vec<_> =
                page.present().map(|(index, hash)| (block_bytes(first + index as u64), hash)).collect();
            report.blocks += blocks.len() as u64;
            self.verify_blocks(blocks, &mut report).await?;
        }
        Ok(report)
    }

    async fn verify_blocks(&self, blocks: Vec<(u64, BlockHash)>, report: &mut VerifyReport) -> Result<()> {
        let store = self.clone();
        let located = tokio::task::spawn_blocking(move || {
            blocks
                .into_iter()
                .map(|(at, hash)| Ok((at, hash, store.index().find(hash.as_bytes())?)))
                .collect::<Result<Vec<_>>>()
        })
        .await??;
        let mut frames = BTreeMap::new();
        for (at, hash, location) in located {
            match location.filter(|location| location.kind == FrameKind::Blocks) {
                None => report.add(at, hash, &Error::NotIndexed { hash }),
                Some(location) => frames
                    .entry((location.pack, location.offset))
                    .or_insert_with(|| (location, Vec::new()))
                    .1
                    .push((at, hash, location.slot)),
            }
        }
        for (location, blocks) in frames.into_values() {
            let frame = self.load_frame(&location).await;
            for (at, hash, slot) in blocks {
                let whole = frame
                    .as_ref()
                    .is_ok_and(|frame| frame.hashes.get(usize::from(slot)) == Some(hash.as_bytes()));
                // Another pack may have it whole.
                if !whole && let Err(error) = self.load_by_hash(hash.as_bytes()).await {
                    report.add(at, hash, &error);
                }
            }
        }
        Ok(())
    }
}

impl VerifyReport {
    fn add(&mut self, disk_offset: u64, block: BlockHash, error: &Error) {
        self.damaged_blocks += 1;
        if self.damaged.len() < MAX_NAMED {
            let (block, reason) = (block.to_string(), error.to_string());
            self.damaged.push(DamagedBlock { disk_offset, block, reason });
        }
    }
}
