//! Tier, operations and megabytes a second: what Azure sells with a size. Nothing is throttled here; clients show the
//! figures, and `az disk update` sends them back.

use super::{DiskSku, DiskSpec};

/// Azure's figures for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Performance {
    /// Operations a second.
    pub iops: u64,
    /// Megabytes a second.
    pub mbps: u64,
    /// Premium SSD: `P4`.
    pub tier: Option<String>,
}

/// Premium SSD: tier, its size in GiB, operations, megabytes.
const PREMIUM: &[(u32, u64, u64, u64)] = &[
    (1, 4, 120, 25),
    (2, 8, 120, 25),
    (3, 16, 120, 25),
    (4, 32, 120, 25),
    (6, 64, 240, 50),
    (10, 128, 500, 100),
    (15, 256, 1100, 125),
    (20, 512, 2300, 150),
    (30, 1024, 5000, 200),
    (40, 2048, 7500, 250),
    (50, 4096, 7500, 250),
    (60, 8192, 16_000, 500),
    (70, 16_384, 18_000, 750),
    (80, 32_767, 20_000, 900),
];
/// Standard SSD: size in GiB, operations, megabytes.
const STANDARD_SSD: &[(u64, u64, u64)] =
    &[(4096, 500, 100), (8192, 2000, 400), (16_384, 4000, 600), (32_767, 6000, 750)];
/// Standard HDD.
const STANDARD: &[(u64, u64, u64)] = &[(4096, 500, 60), (8192, 1300, 300), (32_767, 2000, 500)];
/// Where nothing was asked of a SKU that is sold by operations: Premium SSD v2's free ones.
const SOLD_BY_FIGURES: (u64, u64) = (3000, 125);

impl Performance {
    pub(super) fn of(spec: &DiskSpec, gib: u64) -> Self {
        match spec.sku.unwrap_or(DiskSku::StandardLrs) {
            DiskSku::PremiumLrs | DiskSku::PremiumZrs => premium(gib, spec.tier.as_deref()),
            DiskSku::StandardSsdLrs | DiskSku::StandardSsdZrs => plain(STANDARD_SSD, gib),
            DiskSku::StandardLrs | DiskSku::StandardZrs => plain(STANDARD, gib),
            DiskSku::UltraSsdLrs | DiskSku::PremiumV2Lrs => Self {
                iops: spec.iops.unwrap_or(SOLD_BY_FIGURES.0),
                mbps: spec.mbps.unwrap_or(SOLD_BY_FIGURES.1),
                tier: None,
            },
        }
    }
}

/// The tier of the size, or the higher one that was asked for.
fn premium(gib: u64, asked: Option<&str>) -> Performance {
    let by_size = PREMIUM.iter().position(|row| gib <= row.1).unwrap_or(PREMIUM.len() - 1);
    let by_name =
        |name: &str| PREMIUM.iter().position(|row| name.eq_ignore_ascii_case(&format!("P{}", row.0)));
    let row = PREMIUM[by_size.max(asked.and_then(by_name).unwrap_or(0))];
    Performance { iops: row.2, mbps: row.3, tier: Some(format!("P{}", row.0)) }
}

fn plain(table: &[(u64, u64, u64)], gib: u64) -> Performance {
    let row = table.iter().find(|row| gib <= row.0).or(table.last()).copied().unwrap_or((0, 0, 0));
    Performance { iops: row.1, mbps: row.2, tier: None }
}
