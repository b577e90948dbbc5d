//! Azure's blob service: what the data plane of storage accounts and of disks share.
//!
//! ```text
//!   error.rs xml.rs query.rs range.rs body.rs about.rs conditions.rs    the protocol, for any blob
//!   page.rs  page/   page blobs: a sparse file, or an image shown as a VHD
//!   disk_access.rs   disks and snapshots behind signed URLs
//! ```

mod about;
mod body;
mod conditions;
pub mod disk_access;
mod error;
pub mod page;
mod query;
mod range;
mod xml;

pub use about::{About, BlobKind, ContentHeaders, Metadata};
pub use error::BlobError;
pub use query::BlobQuery;
pub use range::PAGE_BYTES;
