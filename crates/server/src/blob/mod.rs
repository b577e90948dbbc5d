//! Azure's blob service: what the data plane of storage accounts and of disks share.
//!
//! ```text
//!   error.rs xml.rs query.rs range.rs body.rs about.rs conditions.rs    the protocol, for any blob
//!   page.rs  page/   page blobs: a sparse file, or an image shown as a VHD
//!   disk_access.rs   disks and snapshots behind signed URLs
//!
//!   route.rs         which requests are for blobs, and what each is about
//!   auth.rs  auth/   who may: SharedKey, SAS, tokens
//!   service.rs       what a request means, and the answer's common headers
//!     containers.rs list.rs blobs.rs blocks.rs copy.rs
//!   rows.rs          what the database keeps of containers and blobs (`store::blobs`)
//!   objects.rs       the files with their bytes: made, read, removed
//!   stored.rs        what is in such a file, and what is said of one that cannot be read
//!   local.rs         blobs as sources for our own work
//!   own.rs           reads of our own blobs by their URLs
//!   own_pages.rs     page blobs that the service itself writes
//! ```
//!
//! Bytes first, row after: an upload becomes a complete, durable file, and one transaction puts it in the place of what
//! was there. A reader sees the old blob or the new one.

mod about;
mod auth;
mod blobs;
mod blocks;
mod body;
mod conditions;
mod containers;
mod copy;
pub mod disk_access;
mod error;
mod list;
pub(crate) mod local;
pub(crate) mod objects;
pub(crate) mod own;
pub(crate) mod own_pages;
pub mod page;
mod query;
mod range;
pub(crate) mod route;
mod rows;
pub(crate) mod service;
pub(crate) mod stored;
mod xml;

pub use about::{About, BlobKind, ContentHeaders, Metadata};
pub use error::BlobError;
pub use query::BlobQuery;
pub use range::PAGE_BYTES;
