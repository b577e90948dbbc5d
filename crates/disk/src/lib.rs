//! Disk files as sparse sources of bytes, in and out.
//!
//! ```text
//!  content ── BlockSource ─┬─ Chain ── Qcow2 ×n     overlays of our own QEMU, bottom → top, the chain is given
//!                          ├─ RawFile               one file, SEEK_HOLE / SEEK_DATA
//!                          └─ sandbox::Reader ──▶ child process ── image: raw, VHD, VHDX, qcow2, VMDK; gzip, xz, zstd;
//!                                                          overlays that people give
//!  write ──▶ raw, VHD fixed and dynamic by ourselves; VHDX, qcow2, VMDK through qemu-img
//! ```
//!
//! Everything here is synchronous, follows no name found inside a file but a VMDK descriptor's plain ones, and treats file
//! content as hostile: a file either parses within the limits or is refused with the reason. Files from outside are
//! parsed in a child process with nothing but their descriptors ([`sandbox`]); [`image`] is what runs there. The format is
//! always declared, never probed: a guest can write any format's first bytes into its disk.

mod blocks;
mod chain;
mod error;
mod extent;
mod format;
pub mod image;
mod inflate;
mod input;
mod packed;
mod patches;
mod qcow2;
mod raw;
pub mod sandbox;
mod table;
pub mod vhd;
mod vhdx;
mod vmdk;
pub mod write;

pub use chain::{Chain, MAX_LAYERS};
pub use error::{Error, Result};
pub use extent::{BlockSource, Extent, ExtentKind, Extents};
pub use format::{Format, Packing, UnknownName};
pub use input::Input;
pub use qcow2::Qcow2;
pub use raw::RawFile;

/// The largest disk that is read, 32 TiB: Azure's largest managed disk (RULES.md section 2).
pub const MAX_DISK_BYTES: u64 = 32 << 40;
