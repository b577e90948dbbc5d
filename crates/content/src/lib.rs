//! Disk images as deduplicated, compressed, checksummed blocks in an object store, and the way back out of it: reads that
//! verify every byte, and an NBD export that QEMU boots from.
//!
//! The layout is in `docs/format.md`; this crate is its one implementation.
//!
//! ```text
//!   raw file, qcow2 overlays            another store
//!            │ put, commit                  │ replicate
//!            ▼                              ▼
//!   write/   blocks → dedup → frames → packs → index segment → manifest → reference
//!                                   │
//!   store    a folder, S3, Azure, GCS ◄┘      (the reference makes an image visible)
//!            │
//!   read/    Image: page → location → frame, verified → BlockCache (files shared by processes)
//!            │
//!   nbd/     read-only export on a Unix socket
//! ```
//!
//! Publishing and replicating cost what changed: a commit reads an overlay's allocated clusters only, and unchanged pages
//! are named again by hash.

mod error;
mod format;
mod framed;
mod gc;
mod id;
mod index;
mod location;
pub mod nbd;
mod objects;
mod read;
mod refs;
mod scrub;
mod seal;
mod served;
mod store;
mod write;

pub use error::{Error, Result};
pub use format::{BLOCK_BYTES, BLOCKS_PER_PAGE, MAX_PACK_BYTES};
pub use framed::{FramedError, FramedFile, FramedWriter};
pub use gc::{GcOptions, GcReport, GcStage};
pub use id::{BlockHash, ManifestId, PackId, PageId};
pub use location::StoreLocation;
pub use objects::{Credentials, StoreOptions};
pub use read::{BlockCache, BlockStatus, DamagedBlock, Image, ImageSource, VerifyReport};
pub use refs::StoredReference;
pub use scrub::{Affected, Damage, Need, StoreVerifyReport, VerifyOptions};
pub use seal::{Key, KeyId, KeyRing, PAGE_FILE_HEADER_BYTES, PageSeal};
pub use served::Served;
pub use store::{MAX_OWNER_BYTES, ManifestInfo, Store, StoreStats};
pub use write::{Bandwidth, Progress, PutReport, ReplicateReport, replicate, replicate_paced};

/// The largest disk that a store takes, 32 TiB: Azure's largest managed disk (RULES.md section 2).
pub const MAX_DISK_BYTES: u64 = disk::MAX_DISK_BYTES;
