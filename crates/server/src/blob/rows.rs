//! What the rows of containers and blobs hold.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use store::BlobRow;

use super::about::{About, BlobKind, ContentHeaders, Copied, Metadata};

/// A container's data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ContainerData {
    /// Last change.
    pub(super) modified: DateTime<Utc>,
    /// `x-ms-meta-*`.
    pub(super) metadata: Metadata,
    /// Stored access policies, which SAS name.
    pub(super) policies: Vec<Policy>,
}

/// A stored access policy: what a SAS that names it does not say itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Policy {
    /// Its name.
    pub(super) id: String,
    /// `st`, as it was written.
    pub(super) start: Option<String>,
    /// `se`, as it was written.
    pub(super) expiry: Option<String>,
    /// `sp`.
    pub(super) permission: Option<String>,
}

/// A blob's data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BlobData {
    /// Type.
    pub(super) kind: BlobKind,
    /// Length in bytes.
    pub(super) bytes: u64,
    /// How its bytes are kept.
    pub(super) kept: Kept,
    /// Last change; of page blobs, of everything but their pages.
    pub(super) modified: DateTime<Utc>,
    /// Content headers.
    pub(super) content: ContentHeaders,
    /// `x-ms-meta-*`.
    pub(super) metadata: Metadata,
    /// Page blobs.
    pub(super) sequence_number: u64,
    /// The copy that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) copied: Option<Copied>,
}

/// How a blob's bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kept {
    /// In one object, never changed.
    Whole,
    /// In an object for each block.
    Parts {
        /// How many.
        count: u64,
    },
    /// In one sparse file that is written in place.
    Pages,
}

/// A blob as the database has it.
pub(super) type Row = BlobRow<BlobData>;

/// What is told of a blob.
pub(super) fn about(row: &Row) -> About {
    let data = &row.data;
    About {
        kind: data.kind,
        modified: data.modified,
        created: Some(row.created_at),
        content: data.content.clone(),
        metadata: data.metadata.clone(),
        sequence_number: data.sequence_number,
        copied: data.copied.clone(),
        append_blocks: match data.kept {
            Kept::Parts { count } => count,
            Kept::Whole | Kept::Pages => 0,
        },
    }
}
