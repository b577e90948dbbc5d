//! Everything that adds to a store.
//!
//! ```text
//!   put.rs        raw file │ overlays → runs of blocks → hashes, and frames where all is new, in order
//!   replicate.rs  another store       → frames that are missing here (copy.rs)
//!                        │
//!   writer.rs     dedup → frames of 16 neighbours → compress in the background
//!   pack.rs                       → packs → index segments, made durable in this order
//!   merge.rs                                  → fewer segments
//!   attempt.rs                                → the reference, if no collection took what it needs
//! ```

mod attempt;
mod bandwidth;
mod buffers;
mod copy;
mod merge;
mod pack;
mod pages;
mod process;
mod put;
mod replicate;
mod runs;
mod writer;

use std::sync::OnceLock;

use serde::Serialize;

use crate::ManifestId;

pub use bandwidth::Bandwidth;
pub use replicate::{ReplicateReport, replicate, replicate_paced};

pub(crate) use attempt::{Attempt, Record, given_up_path, writer_path};
pub(crate) use copy::{Unreadable, copy, copy_readable};
pub(crate) use pack::write_segment;
pub(crate) use writer::BlockWriter;

/// How far a put, commit or replication is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Position on the disk up to which it is done, in bytes.
    pub done_bytes: u64,
    /// The disk's size in bytes.
    pub total_bytes: u64,
}

/// What a put or commit did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PutReport {
    /// The image.
    pub manifest: ManifestId,
    /// The disk's size in bytes.
    pub logical_bytes: u64,
    /// Bytes of the disk in blocks that are not zeros.
    pub data_bytes: u64,
    /// Blocks that the store did not have.
    pub new_blocks: u64,
    /// Their plain size in bytes.
    pub new_blocks_bytes: u64,
    /// Bytes of the objects that this added: packs, segments, manifest.
    pub stored_bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Jobs that read, hash or compress at a time, beside each other. Each holds up to 2 MiB.
fn workers() -> usize {
    // Asking reads files of the cgroup, each time.
    static WORKERS: OnceLock<usize> = OnceLock::new();
    *WORKERS.get_or_init(|| std::thread::available_parallelism().map_or(2, usize::from).min(MAX_WORKERS))
}

const MAX_WORKERS: usize = 8;
