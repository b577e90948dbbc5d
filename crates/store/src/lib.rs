//! Everything that Tintype must remember: resources, the links between them, operations, jobs,
//! run logs, settings, where versions are placed, and what the blobs of storage accounts are. One SQLite file, or PostgreSQL when there is
//! more than one server or worker.
//!
//! ```text
//!   Store::connect(url) ── migrations, forward only, under a lock
//!     │
//!     ├─ read(|tx| …)     one snapshot
//!     ├─ write(|tx| …)    BEGIN IMMEDIATE | SERIALIZABLE + bounded retry; the closure may run again
//!     └─ claim, heartbeat leases by the database's clock, with a fencing token
//! ```
//!
//! Why closures: a serializable transaction may have to run twice, so its body must be something that
//! can be called twice. Do no remote IO inside, and keep effects for after the commit.
//!
//! ```no_run
//! # use store::{Document, ProvisioningState, Store, StoreError};
//! # async fn demo(store: &Store) -> Result<(), StoreError> {
//! let id = "/subscriptions/s/resourceGroups/rg";
//! store
//!     .write(|tx| {
//!         Box::pin(async {
//!             let mut group = Document::new(id, "eastus", ProvisioningState::Succeeded, serde_json::json!({}))?;
//!             tx.insert(&mut group).await
//!         })
//!     })
//!     .await
//! # }
//! ```
//!
//! Why `sqlx::Any`: one SQL text, one suite. Only TEXT, BIGINT, BLOB and `$n` behave alike on both
//! engines through it, so nothing else is used (JSON is TEXT, booleans are BIGINT).

mod blobs;
mod cells;
mod claim;
mod document;
mod engine;
mod error;
mod jobs;
mod links;
mod logs;
mod migrate;
mod operations;
mod path;
mod placements;
mod resources;
mod settings;
mod store;
mod tx;

pub use blobs::{BlobKey, BlobPage, BlobPart, BlobRow, ContainerRow};
pub use claim::{Claim, Heartbeat};
pub use document::{Document, ProvisioningState};
pub use error::StoreError;
pub use jobs::{Job, JobEnd, JobState, Lease, NewJob};
pub use links::Link;
pub use logs::{LogChunk, MAX_LOG_CHUNK_BYTES, MAX_LOG_CHUNKS_PER_RUN};
pub use operations::{NewOperation, Operation, OperationEnd, OperationFamily, OperationState};
pub use path::{MAX_ID_BYTES, key_of};
pub use placements::{Placement, PlacementState};
pub use resources::{Filter, Listing, MAX_PAGE_ITEMS};
pub use store::{MAX_WRITE_ATTEMPTS, Store, TxFuture};
pub use tx::Tx;
