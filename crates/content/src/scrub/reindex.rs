//! Making the index anew where it was damaged or lost, from the packs themselves: a frame says what it holds.

use std::collections::HashSet;

use bytes::Bytes;
use object_store::ObjectStoreExt;

use crate::format::{
    Entry, FRAME_MAGIC, Frame, Location, MAX_PACK_BYTES, MAX_SEGMENT_ENTRIES, frame_len, pack_frames_at,
    pack_key,
};
use crate::id::PackId;
use crate::objects::READ_ATTEMPTS;
use crate::seal::{KeyRing, open_frame};
use crate::store::{Store, pack_path, segment_path};
use crate::write::write_segment;
use crate::{Error, Result};

/// Places in a pack that look like a frame and are none, after which the rest of it is given up: a disk may hold anything.
const MAX_FALSE_FRAMES: u32 = 1000;
/// Entries that are gathered for one new segment; a pack adds at most as many as it may have.
const SEGMENT_ENTRIES: usize = MAX_SEGMENT_ENTRIES as usize / 2;
/// Packs that are gathered for one; the format allows twice as many.
const SEGMENT_PACKS: u32 = 32_768;

impl Store {
    /// Reads every pack that no whole segment names and has the index name what is whole in it; removes the segments that
    /// are damaged. Returns the packs that were read.
    ///
    /// A pack may be condemned, or of a writer that has not named it yet: entries more do no harm.
    pub(super) async fn rebuild_index(&self) -> Result<u64> {
        let damaged = self.index().damaged();
        let packs = self.list_packs().await?;
        let named: HashSet<PackId> =
            self.index().segments().iter().flat_map(|segment| segment.packs().to_vec()).collect();
        let (mut entries, mut gathered, mut read) = (Vec::new(), 0, 0);
        for (pack, bytes) in packs.into_iter().filter(|(pack, _)| !named.contains(pack)) {
            match self.scan_pack(pack, bytes).await {
                Ok(found) => entries.extend(found),
                // It stays without a name, and the next repair looks into it again.
                Err(error) if error.is_damage() => tracing::warn!(%error, "a pack is not indexed"),
                Err(error) => return Err(error),
            }
            read += 1;
            gathered += 1;
            if entries.len() >= SEGMENT_ENTRIES || gathered == SEGMENT_PACKS {
                write_segment(self, std::mem::take(&mut entries)).await?;
                gathered = 0;
            }
        }
        if !entries.is_empty() {
            write_segment(self, entries).await?;
        }
        for name in damaged {
            self.remove_object(&segment_path(&name)).await?;
        }
        self.refresh().await?;
        Ok(read)
    }

    /// Everything whole that a pack holds; nothing if it is gone. What came over a network and is not whole is asked for again:
    /// a pack that the index names in part is not looked into by the next repair.
    async fn scan_pack(&self, pack: PackId, bytes: u64) -> Result<Vec<Entry>> {
        let attempts = if self.location().as_folder().is_none() { READ_ATTEMPTS } else { 1 };
        let mut best = Vec::new();
        for _ in 0..attempts {
            let (entries, whole) = self.scan_once(pack, bytes).await?;
            if entries.len() >= best.len() {
                best = entries;
            }
            if whole {
                break;
            }
        }
        Ok(best)
    }

    /// The entries of one reading, and whether nothing in it was damaged.
    async fn scan_once(&self, pack: PackId, bytes: u64) -> Result<(Vec<Entry>, bool)> {
        let path = pack_path(&pack);
        if bytes > u64::from(MAX_PACK_BYTES) {
            tracing::warn!(%path, bytes, "not a pack: it is larger than one may be");
            return Ok((Vec::new(), true));
        }
        let got = match self.objects().get(&path).await {
            Ok(object) => object.bytes().await,
            Err(error) => Err(error),
        };
        let content = match got {
            Ok(content) => content,
            Err(object_store::Error::NotFound { .. }) => return Ok((Vec::new(), true)),
            Err(error) => return Err(Error::objects("read", &path)(error)),
        };
        let keys = self.keys().cloned();
        let missing = pack_key(&content).filter(|key| !keys.as_ref().is_some_and(|keys| keys.has(*key)));
        if let Some(key_id) = missing {
            return Err(Error::KeyNeeded { location: self.location().to_string(), key_id });
        }
        Ok(tokio::task::spawn_blocking(move || scan(pack, &content, keys.as_deref())).await?)
    }
}

/// The entries of the frames of a pack that are whole, wherever they are: the header of one before may be damaged.
/// Says as well whether all of them are.
fn scan(pack: PackId, content: &Bytes, keys: Option<&KeyRing>) -> (Vec<Entry>, bool) {
    let mut entries = Vec::new();
    let mut at = pack_frames_at(content);
    let mut damaged = 0;
    while let Some(len) = next_frame(content, &mut at) {
        let frame = open_frame(keys, &pack, content.slice(at..at + len));
        let frame = frame.map_err(|why| why.reason()).and_then(|bytes| Frame::decode(&bytes));
        match frame {
            Ok(frame) => {
                // A pack has less than 4 GiB, and a frame at most 16 blocks.
                let (offset, frame_len, count) = (at as u32, len as u32, frame.hashes.len() as u8);
                let location = Location { pack, offset, len: frame_len, slot: 0, count, kind: frame.kind };
                entries.extend(
                    frame
                        .hashes
                        .into_iter()
                        .zip(0..)
                        .map(|(hash, slot)| Entry { hash, location: Location { slot, ..location } }),
                );
                at += len;
            }
            Err(reason) => {
                tracing::warn!(%pack, at, reason, "a frame is not whole");
                at += 1;
                damaged += 1;
                if damaged == MAX_FALSE_FRAMES {
                    break;
                }
            }
        }
    }
    (entries, damaged == 0)
}

/// Moves `at` to the next place that looks like a frame, and returns its length.
fn next_frame(content: &[u8], at: &mut usize) -> Option<usize> {
    loop {
        let rest = content.get(*at..)?;
        *at += rest.windows(FRAME_MAGIC.len()).position(|window| window == FRAME_MAGIC)?;
        match frame_len(&content[*at..]).filter(|len| *len <= content.len() - *at) {
            Some(len) => return Some(len),
            None => *at += 1,
        }
    }
}
