//! Disk files as sparse sources of bytes: raw files, and chains of the qcow2 overlays that our own QEMU wrote.
//!
//! Everything here is synchronous, never follows a name found inside a file, and treats file content as hostile: a guest
//! can write whatever it likes into its overlay's data, and a crash can leave anything in the tables. A file either
//! parses within the limits below or is refused with the reason.
//!
//! ```text
//!  content ── BlockSource ──┬── RawFile            one file, SEEK_HOLE / SEEK_DATA
//!                           └── Chain ── Qcow2 ×n  overlays bottom → top, the chain is given, never read from headers
//! ```

mod chain;
mod error;
mod extent;
mod qcow2;
mod raw;

pub use chain::{Chain, MAX_LAYERS};
pub use error::{Error, Result};
pub use extent::{BlockSource, Extent, ExtentKind, Extents};
pub use qcow2::Qcow2;
pub use raw::RawFile;

/// The largest disk that is read, 32 TiB: Azure's largest managed disk (RULES.md section 2).
pub const MAX_DISK_BYTES: u64 = 32 << 40;
