//! What a source holds where.

use crate::Result;

/// A stretch of a disk that a source says something about. What no extent covers, the source does not hold: zeros for a
/// whole disk, the base's bytes for an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// What is there.
    pub kind: ExtentKind,
}

impl Extent {
    /// The first byte after the extent.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// What an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that must be read (they may be zeros).
    Data,
    /// Zeros, explicitly: they hide the base's bytes.
    Zero,
}

/// The extents of a source: sorted, disjoint, inside the disk.
pub type Extents<'a> = Box<dyn Iterator<Item = Result<Extent>> + Send + 'a>;

/// A disk, or the changes to one, that can be read sparsely. Implemented by [`crate::RawFile`], [`crate::Chain`] and
/// [`crate::sandbox::Reader`], among others.
pub trait BlockSource: Send + Sync {
    /// The disk's size in bytes.
    fn logical_size(&self) -> u64;

    /// What this source holds, in order. The iterator ends after its first error.
    fn extents(&self) -> Extents<'_>;

    /// Copies the bytes that this source holds of `offset ..` into `buf`, leaves the others as they are, and returns how
    /// many it wrote. A caller who gets fewer than `buf.len()` fills `buf` from the base and calls again.
    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;
}
