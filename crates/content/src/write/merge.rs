//! Merging index segments, so that a lookup asks few of them.
//!
//! Each pack comes with a segment of its own. Sixteen segments of about the same size become one, so a store of N packs has
//! about 16 × log₁₆ N. The new one is durable before an old one goes; whoever listed an old one lists again.

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

/// Merges what has become many. Called after a write; a failure leaves everything found.
pub(super) async fn merge_segments(store: &Store) -> Result<()> {
    while let Some(group) = choose(&store.index().segments()) {
        let segments = group.clone();
        let entries = tokio::task::spawn_blocking(move || {
            let mut entries = Vec::new();
            for segment in &segments {
                entries.extend(segment.read_all()?);
            }
            Ok::<_, Error>(entries)
        })
        .await??;
        write_segment(store, entries).await?;
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

/// Sixteen segments of one order of magnitude (to base 16), if there are as many and they fit one.
fn choose(segments: &[Arc<Segment>]) -> Option<Vec<Arc<Segment>>> {
    let order = |segment: &Segment| segment.entries().max(1).ilog2() / 4;
    (0..16).find_map(|wanted| {
        let group: Vec<_> =
            segments.iter().filter(|s| order(s) == wanted).take(MERGE_SEGMENTS).cloned().collect();
        let entries: u64 = group.iter().map(|segment| segment.entries()).sum();
        let packs: usize = group.iter().map(|segment| segment.packs().len()).sum();
        let fits = entries <= MAX_MERGED_ENTRIES && packs <= MAX_MERGED_PACKS;
        (group.len() == MERGE_SEGMENTS && fits).then_some(group)
    })
}
