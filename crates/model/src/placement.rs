//! In which zones of a region the physical copies of an image are.
//!
//! ```text
//!   LRS       first zone by definition, then the next ones; as many as replicas and zones     all of them count
//!   ZRS       all three zones                                                                two of them count
//!   Premium   as LRS; and hosts read the blocks ahead
//!   in place  wherever it is already (shallow versions, VMs, disks)                           one counts
//! ```
//!
//! The decision is made again whenever somebody asks: only the answer to it, which zones hold the image, is in the stores.

use crate::image_version::{ReplicationMode, StorageAccountType};
use crate::managed_disk::DiskSku;
use crate::violation::{Rule, Violation};

/// Most zones of one region.
pub const ZONES_MAX: usize = 3;
/// Zones that zone-redundant storage needs.
pub const ZRS_ZONES: usize = 3;
/// Of them, those that must hold an image before it is published.
const ZRS_ENOUGH: usize = 2;

/// What a region offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionZones {
    /// Number of its zones, 1 to [`ZONES_MAX`].
    pub count: usize,
    /// Whether zone-redundant storage is taken although there are fewer than three zones.
    pub zrs_fallback: bool,
}

/// Where the copies of an image are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlan {
    /// Every zone of the region, the most wanted first.
    pub order: Vec<usize>,
    /// Copies that there shall be.
    pub wanted: usize,
    /// Copies that make the image available; those behind are made later.
    pub enough: usize,
    /// Whether copies elsewhere than in the first zones are as good: nothing is moved for order's sake.
    pub in_place: bool,
    /// Whether the region's hosts read the image's blocks ahead.
    pub read_ahead: bool,
}

/// What is known of a copy in one zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneCopy {
    /// It is there.
    Held,
    /// It is not.
    Missing,
    /// The zone cannot be reached: it has what it had.
    Away,
}

/// What is to be done about a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyChanges {
    /// Zones that shall get a copy, the most wanted first.
    pub add: Vec<usize>,
    /// Zones that shall give theirs up.
    pub remove: Vec<usize>,
}

impl CopyPlan {
    /// The plan for a version of the image definition `definition` (any text that names it) in a region.
    ///
    /// # Errors
    /// When the region cannot keep what was asked for. `region` is how the message names it.
    pub fn of_version(
        zones: RegionZones,
        region: &str,
        definition: &str,
        storage: StorageAccountType,
        replicas: u32,
        mode: Option<ReplicationMode>,
    ) -> Result<Self, Violation> {
        let order = order(zones.count, definition);
        if mode == Some(ReplicationMode::Shallow) {
            return Ok(Self { in_place: true, ..Self::copies(order, 1) });
        }
        match storage {
            // The first sentence is Azure's (RULES.md 2D, 15).
            StorageAccountType::StandardZrs if zones.count < ZRS_ZONES && !zones.zrs_fallback => {
                Err(Violation::at(
                    Rule::Parameter,
                    "properties.publishingProfile.targetRegions.storageAccountType",
                    format!(
                        "ZRS storage account type is not supported in this region. 'Standard_ZRS' is not available in region {region}: it needs {ZRS_ZONES} zones, and \
                         the region has {}. Use 'Standard_LRS', or have the operator of this service add zones to the region or set \
                         'zrs_fallback' for it.",
                        zones.count
                    ),
                ))
            }
            StorageAccountType::StandardZrs => {
                let enough = zones.count.min(ZRS_ENOUGH);
                Ok(Self { enough, ..Self::copies(order, zones.count) })
            }
            StorageAccountType::StandardLrs => Ok(Self::copies(order, replicas as usize)),
            StorageAccountType::PremiumLrs | StorageAccountType::PremiumV2Lrs => {
                Ok(Self { read_ahead: true, ..Self::copies(order, replicas as usize) })
            }
        }
    }

    /// The plan for what every build and VM of a region may read, such as a platform image: one copy will do, and every
    /// zone gets one.
    #[must_use]
    pub fn everywhere(zones: RegionZones, name: &str) -> Self {
        Self { enough: 1, ..Self::copies(order(zones.count, name), zones.count) }
    }

    /// The plan for a disk or snapshot: one copy, where its bytes came from; in every zone if its SKU is zone-redundant,
    /// where a region has several.
    #[must_use]
    pub fn of_disk(zones: RegionZones, name: &str, sku: DiskSku) -> Self {
        match sku {
            DiskSku::StandardZrs | DiskSku::PremiumZrs | DiskSku::StandardSsdZrs => {
                Self::everywhere(zones, name)
            }
            DiskSku::StandardLrs
            | DiskSku::PremiumLrs
            | DiskSku::StandardSsdLrs
            | DiskSku::UltraSsdLrs
            | DiskSku::PremiumV2Lrs => Self { order: order(zones.count, name), ..Self::in_place(zones) },
        }
    }

    /// The plan for what stays where it is.
    #[must_use]
    pub fn in_place(zones: RegionZones) -> Self {
        Self { in_place: true, ..Self::copies((0..zones.count).collect(), 1) }
    }

    fn copies(order: Vec<usize>, wanted: usize) -> Self {
        let wanted = wanted.clamp(1, order.len().max(1));
        Self { order, wanted, enough: wanted, in_place: false, read_ahead: false }
    }

    /// What brings the copies of an image that is published to where they shall be; `copies` by zone. Nothing is copied
    /// because a zone is away: it will be back with what it has. What stood in for it meanwhile is given up only once all
    /// zones that shall hold the image do.
    #[must_use]
    pub fn changes(&self, copies: &[ZoneCopy]) -> CopyChanges {
        let copy = |zone: &usize| copies.get(*zone).copied().unwrap_or(ZoneCopy::Away);
        let missing = |zone: &&usize| copy(zone) == ZoneCopy::Missing;
        if self.in_place {
            let somewhere = self.order.iter().any(|zone| copy(zone) != ZoneCopy::Missing);
            let add = if somewhere { Vec::new() } else { self.order.iter().take(1).copied().collect() };
            return CopyChanges { add, remove: Vec::new() };
        }
        let (chosen, others) = self.order.split_at(self.wanted.min(self.order.len()));
        let settled = chosen.iter().all(|zone| copy(zone) == ZoneCopy::Held);
        let extra = others.iter().filter(|zone| settled && copy(zone) == ZoneCopy::Held);
        CopyChanges {
            add: chosen.iter().filter(missing).copied().collect(),
            remove: extra.copied().collect(),
        }
    }
}

/// All zones, beginning with the one that a name falls to: what has the same name shares its blocks.
fn order(count: usize, name: &str) -> Vec<usize> {
    let count = count.clamp(1, ZONES_MAX);
    let first = (hash(&name.to_ascii_lowercase()) % count as u64) as usize;
    (0..count).map(|turn| (first + turn) % count).collect()
}

/// FNV-1a of 64 bits, with its halves folded: the low bits of the sum alone are weak. It may never change, or the versions
/// that exist would be moved.
fn hash(text: &str) -> u64 {
    let sum = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    sum ^ (sum >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: RegionZones = RegionZones { count: 3, zrs_fallback: false };

    fn plan(zones: RegionZones, storage: StorageAccountType, replicas: u32) -> Result<CopyPlan, Violation> {
        CopyPlan::of_version(zones, "West Europe", "debian", storage, replicas, None)
    }

    #[test]
    fn lrs_has_as_many_copies_as_replicas_and_zones() {
        for (replicas, count, copies) in [(1, 1, 1), (1, 3, 1), (2, 3, 2), (100, 3, 3), (5, 1, 1)] {
            let zones = RegionZones { count, zrs_fallback: false };
            let plan = plan(zones, StorageAccountType::StandardLrs, replicas).unwrap();
            assert_eq!((plan.wanted, plan.enough, plan.order.len()), (copies, copies, count));
        }
    }

    #[test]
    fn a_definition_has_a_zone_and_definitions_are_spread() {
        let first = |name: &str| {
            CopyPlan::of_version(THREE, "x", name, StorageAccountType::StandardLrs, 1, None).unwrap().order[0]
        };
        assert_eq!(first("/Galleries/A/images/B"), first("/galleries/a/images/b"));
        let mut used = [0; 3];
        for number in 0..300 {
            used[first(&format!("/galleries/g/images/image-{number}"))] += 1;
        }
        assert!(used.iter().all(|zone| *zone > 60), "{used:?}");
    }

    #[test]
    fn zrs_needs_three_zones_or_a_fallback() {
        let two = RegionZones { count: 2, zrs_fallback: false };
        let refused = plan(two, StorageAccountType::StandardZrs, 1).unwrap_err();
        assert!(refused.message.contains("region West Europe: it needs 3 zones, and the region has 2"));
        let plan_of = |zones| plan(zones, StorageAccountType::StandardZrs, 1).unwrap();
        let zrs = plan_of(THREE);
        assert_eq!((zrs.wanted, zrs.enough), (3, 2));
        let two = plan_of(RegionZones { zrs_fallback: true, ..two });
        assert_eq!((two.wanted, two.enough), (2, 2));
        let one = plan_of(RegionZones { count: 1, zrs_fallback: true });
        assert_eq!((one.wanted, one.enough), (1, 1));
    }

    #[test]
    fn a_zone_that_is_away_is_stood_in_for_until_it_is_back() {
        use ZoneCopy::{Away, Held, Missing};
        let plan =
            CopyPlan { order: vec![1, 2, 0], ..plan(THREE, StorageAccountType::StandardLrs, 1).unwrap() };
        let nothing = CopyChanges::default();
        assert_eq!(plan.changes(&[Missing, Held, Missing]), nothing);
        assert_eq!(plan.changes(&[Missing, Away, Missing]), nothing, "it will be back with its copy");
        // Another zone took it while the first was away; that one comes back empty, is given its copy, the other's goes.
        assert_eq!(plan.changes(&[Missing, Away, Held]), nothing);
        let add = CopyChanges { add: vec![1], ..CopyChanges::default() };
        assert_eq!(plan.changes(&[Missing, Missing, Held]), add);
        let remove = CopyChanges { remove: vec![2], ..CopyChanges::default() };
        assert_eq!(plan.changes(&[Away, Held, Held]), remove);
    }

    #[test]
    fn zrs_fills_what_comes_back_and_removes_nothing() {
        use ZoneCopy::{Away, Held, Missing};
        let plan = plan(THREE, StorageAccountType::StandardZrs, 1).unwrap();
        assert_eq!(plan.changes(&[Held, Held, Away]), CopyChanges::default());
        assert_eq!(plan.changes(&[Held, Held, Missing]).add, [2]);
        assert_eq!(plan.changes(&[Held; 3]), CopyChanges::default());
    }

    #[test]
    fn what_is_in_place_stays() {
        use ZoneCopy::{Away, Held, Missing};
        let (lrs, mode) = (StorageAccountType::StandardLrs, Some(ReplicationMode::Shallow));
        let plan = CopyPlan::of_version(THREE, "x", "debian", lrs, 3, mode).unwrap();
        assert_eq!(plan.changes(&[Missing, Missing, Held]), CopyChanges::default());
        assert_eq!(plan.changes(&[Missing, Missing, Away]), CopyChanges::default());
        assert_eq!(plan.changes(&[Missing; 3]).add.len(), 1);
    }
}
