//! An image's physical copies in a region: made, held and let go.
//!
//! ```text
//!   plan (model::placement) ──▶ bring: zone by zone, in the plan's order, until enough of them hold it
//!                                 │  a zone that cannot take it is passed over
//!                                 └─ blocks that are missing, from whichever store has them; then the reference
//! ```
//!
//! Everything here may be cut off anywhere and done again: what is there is found, and not sent twice. What is still
//! missing after `bring`, and what stood in for a zone that was away, is the reconciler's (`reconcile/references.rs`).

use content::{ManifestId, Store};
use futures::StreamExt;
use model::placement::CopyPlan;
use model::{Region, Violation};

use crate::fabric::{Fabric, FabricError};
use crate::http::error::chain;

/// Data of an image that is read ahead into this host's block cache at most.
const READ_AHEAD_BYTES_MAX: u64 = 2 << 30;
/// Bytes of one read ahead, and reads at a time.
const READ_BYTES: u64 = 1 << 20;
const READS: usize = 4;
/// Parts of one answer about zeros.
const STATUS_PARTS: usize = 4096;

/// Why an image could not be brought, held or let go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error(transparent)]
    Content(#[from] content::Error),
    /// The region cannot keep it as it was asked to.
    #[error("{}", .0.message)]
    Refused(Violation),
    /// There are not enough zones that can be used.
    #[error("{held} of {enough} copies are there; {source}")]
    TooFew { held: usize, enough: usize, source: Box<CopyError> },
}

impl CopyError {
    /// No zone that could be asked has the image.
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::Content(error) => matches!(error, content::Error::ManifestNotFound { .. }),
            Self::TooFew { source, .. } => source.is_not_found(),
            Self::Fabric(_) | Self::Refused(_) => false,
        }
    }

    /// Trying again does not help.
    pub(crate) fn is_permanent(&self) -> bool {
        use content::Error;
        let source: &Error = match self {
            Self::Fabric(FabricError::UnknownRegion(_)) | Self::Refused(_) => return true,
            Self::Fabric(FabricError::Store { source, .. }) => source,
            Self::Content(source) => source,
            Self::TooFew { source, .. } => return source.is_permanent(),
            Self::Fabric(_) => return false,
        };
        matches!(source, Error::Location { .. } | Error::Format { .. } | Error::OwnedByAnother { .. })
    }
}

/// An image that is to be in a region.
pub(crate) struct Bring<'a> {
    pub(crate) fabric: &'a Fabric,
    pub(crate) region: &'a Region,
    pub(crate) plan: &'a CopyPlan,
    pub(crate) manifest: &'a ManifestId,
    /// Who needs it there.
    pub(crate) owner: &'a str,
    /// Stores that may have its bytes, of any region; the region's own are looked at first.
    pub(crate) sources: &'a [Store],
}

/// What bringing an image did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Brought {
    /// Bytes that were sent.
    pub(crate) bytes_moved: u64,
    /// Zones that hold it for its owner now.
    pub(crate) held: usize,
}

impl Bring<'_> {
    /// Brings the image to as many zones as make it available. `progress` gets percent.
    ///
    /// # Errors
    /// When there are fewer such zones; what was copied stays.
    pub(crate) async fn run(&self, progress: impl Fn(u8) + Send + Sync) -> Result<Brought, CopyError> {
        let zones = self.fabric.zones(self.region).await?;
        let mut order = self.plan.order.clone();
        let mut local = Vec::new();
        for (zone, store) in zones.iter().enumerate() {
            let Ok(store) = store else { continue };
            if store.has_manifest(self.manifest).await.unwrap_or(false) {
                local.push((zone, store.clone()));
            }
        }
        if self.plan.in_place {
            order.sort_by_key(|zone| !local.iter().any(|(known, _)| known == zone));
        }
        let mut sources: Vec<Store> = local.iter().map(|(_, store)| store.clone()).collect();
        let known: Vec<_> = sources.iter().map(Store::id).collect();
        sources.extend(self.sources.iter().filter(|source| !known.contains(&source.id())).cloned());

        let mut zones: Vec<Option<Result<Store, FabricError>>> = zones.into_iter().map(Some).collect();
        let mut brought = Brought { bytes_moved: 0, held: 0 };
        let mut failed: Option<CopyError> = None;
        for (rank, zone) in order.into_iter().enumerate() {
            let Some(store) = zones.get_mut(zone).and_then(Option::take) else { continue };
            if brought.held >= self.plan.enough {
                // Those behind are made later; what is there already counts, and is held.
                if rank < self.plan.wanted
                    && let Ok(store) = store
                    && store.add_ref(self.manifest, self.owner).await.is_ok()
                {
                    brought.held += 1;
                }
                continue;
            }
            let held = brought.held;
            let share =
                |percent: u8| progress(((held * 100 + usize::from(percent)) / self.plan.enough) as u8);
            let done = match store {
                Ok(store) => copy_to(self.fabric, &store, &sources, self.manifest, self.owner, share).await,
                Err(error) => Err(error.into()),
            };
            match done {
                Ok(bytes) => {
                    brought.bytes_moved += bytes;
                    brought.held += 1;
                }
                Err(error) => {
                    if brought.held < self.plan.enough && self.plan.order.len() > 1 {
                        let (region, owner) = (self.region, self.owner);
                        tracing::warn!(%region, owner, error = chain(&error), "a zone was passed over");
                    }
                    // One that may pass is the better reason: then it is tried again.
                    if failed.as_ref().is_none_or(|known| known.is_permanent() || known.is_not_found()) {
                        failed = Some(error);
                    }
                }
            }
        }
        match failed {
            Some(source) if brought.held < self.plan.enough => Err(match self.plan.order.len() {
                1 => source,
                _ => CopyError::TooFew {
                    held: brought.held,
                    enough: self.plan.enough,
                    source: Box::new(source),
                },
            }),
            _ => Ok(brought),
        }
    }
}

/// Makes a copy in one store, from whichever source can give it. Returns the bytes that were sent.
pub(crate) async fn copy_to(
    fabric: &Fabric,
    target: &Store,
    sources: &[Store],
    manifest: &ManifestId,
    owner: &str,
    progress: impl Fn(u8) + Send + Sync,
) -> Result<u64, CopyError> {
    let missing = match target.add_ref(manifest, owner).await {
        Ok(()) => return Ok(0),
        Err(error @ content::Error::ManifestNotFound { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    let percent = |done: content::Progress| {
        progress((done.done_bytes.saturating_mul(100) / done.total_bytes.max(1)).min(100) as u8);
    };
    let mut failed = None;
    for source in sources.iter().filter(|source| source.id() != target.id()) {
        let copied =
            content::replicate_paced(source, target, manifest, owner, fabric.bandwidth(), &percent).await;
        match copied {
            Ok(report) => return Ok(report.bytes_moved),
            // Whether it is the source or the target that cannot be used: the next source shows.
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    Err(failed.unwrap_or(missing).into())
}

/// Lets `owner` refer to an image wherever the region has it, so that it stays readable from all these zones. Returns
/// their number.
///
/// # Errors
/// When no zone can be used or none has the image.
pub(crate) async fn hold(
    fabric: &Fabric,
    region: &Region,
    manifest: &ManifestId,
    owner: &str,
) -> Result<usize, CopyError> {
    let (mut held, mut failed) = (0, None::<CopyError>);
    for zone in fabric.zones(region).await? {
        let added = match zone {
            Ok(store) => store.add_ref(manifest, owner).await.map_err(CopyError::from),
            Err(error) => Err(error.into()),
        };
        match added {
            Ok(()) => held += 1,
            // A zone that cannot be asked may have it: that says more than that another does not.
            Err(error @ CopyError::Content(content::Error::ManifestNotFound { .. })) => {
                failed.get_or_insert(error);
            }
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if held == 0 => Err(error),
        _ => Ok(held),
    }
}

/// Removes `owner`'s references to an image in every zone of a region that can be used. A zone that is away keeps its own
/// until the reconciler finds it. A region that is not configured any more has nothing of ours.
///
/// # Errors
/// When no zone can be used, or one refuses.
pub(crate) async fn let_go(
    fabric: &Fabric,
    region: &Region,
    manifest: &ManifestId,
    owner: &str,
) -> Result<(), CopyError> {
    let stores = match fabric.stores(region).await {
        Err(FabricError::UnknownRegion(_)) => return Ok(()),
        stores => stores?,
    };
    for store in stores {
        store.remove_ref(manifest, owner).await?;
    }
    Ok(())
}

/// Reads an image's blocks into this host's block cache, as far as the bound goes, so that guests need not wait for the
/// store. For images on premium storage.
///
/// # Errors
/// The store's own; what was read stays in the cache.
pub(crate) async fn read_ahead(
    fabric: &Fabric,
    region: &Region,
    manifest: &ManifestId,
) -> Result<u64, CopyError> {
    let stores = fabric.holding(region, manifest).await?;
    let (folder, limit) = (fabric.block_cache_dir(), fabric.block_cache_bytes_max());
    let cache = tokio::task::spawn_blocking(move || content::BlockCache::open(&folder, limit)).await;
    let cache = cache.map_err(content::Error::from)??;
    let image = content::Image::open(&stores, manifest, std::sync::Arc::new(cache)).await?;
    let bound = READ_AHEAD_BYTES_MAX.min(limit / 4);
    let (mut at, mut ahead) = (0, 0);
    while at < image.size() && ahead < bound {
        let rest = image.size() - at;
        let mut wanted = Vec::new();
        for part in image.block_status(at, rest, STATUS_PARTS).await? {
            if !part.zero {
                let end = at + part.len.min(bound.saturating_sub(ahead));
                ahead += end - at;
                wanted.extend(
                    (at..end).step_by(READ_BYTES as usize).map(|from| (from, end.min(from + READ_BYTES))),
                );
            }
            at += part.len;
        }
        let reads = wanted.into_iter().map(|(from, to)| {
            let image = image.clone();
            async move { image.read_at(from, &mut vec![0; (to - from) as usize]).await }
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS);
        while let Some(read) = reads.next().await {
            read?;
        }
    }
    Ok(ahead)
}
