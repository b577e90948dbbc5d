//! Merging index segments, so that a lookup asks few of them.
//!
//! Each pack comes with a segment of its own. Sixteen segments of about the same size become one, until they are full: a
//! store of N packs has about 16 × log₁₆ N, and those that are at least half full. The new one is durable before an old one
//! goes; whoever listed an old one lists again.

use std::sync::Arc;

use object_store::ObjectStoreExt;

use super::pack::write_segment;
use crate::format::MAX_SEGMENT_ENTRIES;
use crate::index::Segment;
use crate::store::{Store, segment_path};
use crate::{Error, Result};

/// Segments of about one size that are merged into one.
const MERGE_SEGMENTS: usize = 16;
/// The most entries of a merged segment: bounds the memory of a merge to about 200 MB.
const MAX_MERGED_ENTRIES: u64 = MAX_SEGMENT_ENTRIES;
/// The most packs that a merged segment names (the format's limit).
const MAX_MERGED_PACKS: usize = 65_536;

/// Merges what has become many. Called after each pack; a failure leaves everything found.
pub(super) async fn merge_segments(store: &Store) -> Result<()> {
    while let Some(group) = choose(&store.index().segments(), size) {
        let (segments, index) = (group.clone(), Arc::clone(store.index()));
        let entries = tokio::task::spawn_blocking(move || {
            let mut entries = Vec::new();
            for segment in &segments {
                let read = segment.read_all();
                if let Err(Error::DamagedObject { reason, .. }) = &read {
                    // The next merge does without it.
                    index.distrust(segment, reason);
                }
                entries.extend(read?);
            }
            Ok::<_, Error>(entries)
        });
        write_segment(store, entries.await??).await?;
        for segment in &group {
            let path = segment_path(segment.name());
            match store.objects().delete(&path).await {
                // Another process merged the same ones.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(Error::objects("remove", &path)(error)),
            }
        }
        store.refresh().await?;
    }
    Ok(())
}

/// What a segment has: entries, and packs that they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    entries: u64,
    packs: usize,
}

fn size(segment: &Arc<Segment>) -> Size {
    Size { entries: segment.entries(), packs: segment.packs().len() }
}

/// Whether all of it fits one segment.
fn fits(size: Size) -> bool {
    size.entries <= MAX_MERGED_ENTRIES && size.packs <= MAX_MERGED_PACKS
}

/// Sixteen segments of one order of magnitude (to base 16); or fewer, where there is no room for sixteen.
fn choose<S: Clone>(segments: &[S], size: impl Fn(&S) -> Size) -> Option<Vec<S>> {
    let order = |segment: &S| size(segment).entries.max(1).ilog2() / 4;
    (0..16).find_map(|wanted| {
        let mut alike: Vec<_> = segments.iter().filter(|segment| order(segment) == wanted).collect();
        alike.sort_by_key(|segment| size(segment).entries);
        let mut sum = Size { entries: 0, packs: 0 };
        let group: Vec<_> = alike
            .iter()
            .take(MERGE_SEGMENTS)
            .map_while(|segment| {
                let Size { entries, packs } = size(segment);
                sum = Size { entries: sum.entries + entries, packs: sum.packs + packs };
                fits(sum).then(|| (*segment).clone())
            })
            .collect();
        let no_room = group.len() < alike.len();
        (group.len() == MERGE_SEGMENTS || no_room && group.len() > 1).then_some(group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(segments: &mut Vec<Size>) {
        while let Some(group) = choose(segments, |size| *size) {
            for gone in &group {
                let place = segments.iter().position(|segment| segment == gone).expect("one of them");
                segments.remove(place);
            }
            let sum = |of: fn(&Size) -> u64| group.iter().map(of).sum::<u64>();
            segments.push(Size {
                entries: sum(|size| size.entries),
                packs: sum(|size| size.packs as u64) as usize,
            });
            assert!(fits(*segments.last().expect("one")));
        }
    }

    /// Over 60 TiB of different blocks, or the many small packs of commits.
    #[test]
    fn segments_stay_few_whatever_a_store_grows_to() {
        for (packs, entries) in [(40_000, 25_000), (40_000, 3), (45_000, 65_536 / 3)] {
            let mut segments = Vec::new();
            let (mut all, mut most) = (0, 0);
            for _ in 0..packs {
                segments.push(Size { entries, packs: 1 });
                merge(&mut segments);
                all += entries;
                most = most.max(segments.len());
            }
            assert_eq!(segments.iter().map(|size| size.entries).sum::<u64>(), all);
            let full = all / (MAX_MERGED_ENTRIES / 2) + packs / (MAX_MERGED_PACKS as u64 / 2);
            assert!(most as u64 <= full + 6 * 16, "{most} segments of {packs} packs with {entries}");
        }
    }
}
