//! What an image's bytes are.

use serde::{Deserialize, Serialize};

use crate::reference::ManifestRef;

/// Bytes in one GiB.
pub const GIB: u64 = 1 << 30;

/// One disk's content in the content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskContent {
    /// Its manifest.
    pub manifest: ManifestRef,
    /// Size that the guest sees, in bytes.
    pub size_bytes: u64,
}

impl DiskContent {
    /// Size in GiB, rounded up, as Azure states it.
    pub fn size_gib(&self) -> u64 {
        self.size_bytes.div_ceil(GIB)
    }
}
