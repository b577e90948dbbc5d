//! What lives in which pack, from the index: one pass over the sorted segments beside the sorted marks.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Room;
use super::mark::{Mark, Marked, half};
use crate::format::{Entry, Location};
use crate::id::{BlockHash, PackId, WriterId};
use crate::store::Store;
use crate::{Error, Result};

/// A pack with a greater share of dead bytes than this goes, and what lives in it is packed anew (DESIGN.md).
const MAX_DEAD_PERCENT: u64 = 40;
/// Packs below this size are gathered into larger ones …
const SMALL_PACK_BYTES: u64 = 4 << 20;
/// … once there are this many of them.
const MIN_SMALL_PACKS: usize = 64;

/// What lives and what is dead in each pack, in compressed bytes; a frame's bytes count in equal parts for its blocks.
#[derive(Debug, Default)]
pub(super) struct Tally {
    packs: HashMap<PackId, Share>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    live: u64,
    dead: u64,
}

impl Tally {
    pub(super) fn live_bytes(&self, pack: &PackId) -> u64 {
        self.packs.get(pack).map_or(0, |share| share.live)
    }

    /// The packs that should go: those in which nothing lives, much is dead, or which are small and many.
    pub(super) fn choose(
        &self,
        packs: &BTreeMap<PackId, u64>,
        writers: &HashSet<WriterId>,
        condemned: &HashSet<PackId>,
        room: Room,
    ) -> HashSet<PackId> {
        let candidates = packs.iter().filter(|(pack, _)| {
            !condemned.contains(*pack) && !writers.iter().any(|writer| pack.is_of(writer))
        });
        let mut chosen = HashSet::new();
        let mut small = Vec::new();
        for (pack, size) in candidates {
            let Share { live, dead } = self.packs.get(pack).copied().unwrap_or_default();
            if live == 0 {
                chosen.insert(*pack);
            } else if room == Room::None {
                continue;
            } else if dead * 100 > (live + dead) * MAX_DEAD_PERCENT {
                chosen.insert(*pack);
            } else if *size < SMALL_PACK_BYTES {
                small.push(*pack);
            }
        }
        if small.len() >= MIN_SMALL_PACKS {
            chosen.extend(small);
        }
        chosen
    }
}

/// Counts. Everything that is marked must be in a pack that is there; otherwise the index or a pack was lost, and nothing
/// may be removed before that is repaired.
pub(super) async fn tally(store: &Store, marked: &Marked, packs: &BTreeMap<PackId, u64>) -> Result<Tally> {
    let (store, marks, packs) = (store.clone(), marked.marks(), packs.clone());
    tokio::task::spawn_blocking(move || tally_blocking(&store, &marks, &packs)).await?
}

fn tally_blocking(store: &Store, marked: &[Mark], packs: &BTreeMap<PackId, u64>) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut found = vec![false; marked.len()];
    pass(store, marked, |entry, mark| {
        if let Some(mark) = mark {
            found[mark] = true;
        }
        if !packs.contains_key(&entry.location.pack) {
            return;
        }
        let share = tally.packs.entry(entry.location.pack).or_default();
        let bytes = u64::from(entry.location.len) / u64::from(entry.location.count.max(1));
        match mark {
            Some(_) => share.live += bytes,
            None => share.dead += bytes,
        }
    })?;
    all_found(marked, &found)?;
    Ok(tally)
}

/// What a pack is to something that lives in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// It stays there.
    Safe,
    /// It must be copied out of it.
    Condemned,
    /// The pack is gone.
    None,
}

/// What lives in condemned packs alone.
pub(super) async fn stranded(
    store: &Store,
    marked: &Marked,
    home: impl Fn(&PackId) -> Home + Send + 'static,
) -> Result<Vec<[u8; 32]>> {
    let (store, marks) = (store.clone(), marked.marks());
    tokio::task::spawn_blocking(move || stranded_blocking(&store, &marks, home)).await?
}

fn stranded_blocking(
    store: &Store,
    marked: &[Mark],
    home: impl Fn(&PackId) -> Home,
) -> Result<Vec<[u8; 32]>> {
    let mut safe = vec![false; marked.len()];
    let mut candidates: Vec<(usize, [u8; 32], (PackId, u32))> = Vec::new();
    pass(store, marked, |entry, mark| {
        let Some(mark) = mark else { return };
        match home(&entry.location.pack) {
            Home::Safe => safe[mark] = true,
            Home::Condemned => {
                candidates.push((mark, entry.hash, (entry.location.pack, entry.location.offset)));
            }
            Home::None => {}
        }
    })?;
    // Neighbours stay together.
    candidates.sort_unstable_by_key(|(_, _, place)| *place);
    let mut stranded = Vec::new();
    for (mark, hash, _) in candidates {
        if !safe[mark] {
            safe[mark] = true;
            stranded.push(hash);
        }
    }
    all_found(marked, &safe)?;
    Ok(stranded)
}

fn all_found(marked: &[Mark], found: &[bool]) -> Result<()> {
    let lost = marked.iter().zip(found).find(|(mark, found)| mark.required && !**found);
    let Some((mark, _)) = lost else { return Ok(()) };
    let mut hash = [0; 32];
    hash[..16].copy_from_slice(&mark.half);
    Err(Error::NotIndexed { hash: BlockHash::from_bytes(hash) })
}

/// Every frame that holds something marked, in the order of the packs.
pub(crate) async fn live_frames(store: &Store, marked: &Marked) -> Result<Vec<Location>> {
    let (store, marks) = (store.clone(), marked.marks());
    tokio::task::spawn_blocking(move || {
        let mut frames = Vec::new();
        pass(&store, &marks, |entry, mark| {
            // One entry stands for its frame: the first slot of it that is needed.
            if mark.is_some() {
                frames.push(entry.location);
            }
        })?;
        frames.sort_unstable_by_key(|frame| (frame.pack, frame.offset));
        frames.dedup_by_key(|frame| (frame.pack, frame.offset));
        Ok(frames)
    })
    .await?
}

/// Visits every place of everything marked. Blocks on local files.
pub(crate) fn locate(
    store: &Store,
    marked: &Marked,
    mut visit: impl FnMut(&[u8; 32], &Location),
) -> Result<()> {
    pass(store, &marked.marks(), |entry, mark| {
        if mark.is_some() {
            visit(&entry.hash, &entry.location);
        }
    })
}

/// Visits what a store has of these, which come in order. Blocks on local files.
pub(crate) fn locate_halves(
    store: &Store,
    halves: impl Iterator<Item = [u8; 16]>,
    mut visit: impl FnMut(&[u8; 32]),
) -> Result<()> {
    let marks: Vec<Mark> = halves.map(|half| Mark { half, required: false }).collect();
    pass(store, &marks, |entry, mark| {
        if mark.is_some() {
            visit(&entry.hash);
        }
    })
}

/// Visits every entry of every segment, with the number of its mark if it is marked.
fn pass(store: &Store, marks: &[Mark], mut visit: impl FnMut(&Entry, Option<usize>)) -> Result<()> {
    for segment in store.index().segments().iter() {
        let mut next = 0;
        segment.visit(|entry| {
            let wanted = half(&entry.hash);
            while next < marks.len() && marks[next].half < wanted {
                next += 1;
            }
            let mark = (next < marks.len() && marks[next].half == wanted).then_some(next);
            visit(entry, mark);
        })?;
    }
    Ok(())
}
