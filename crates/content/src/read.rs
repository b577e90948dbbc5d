//! Everything that reads a store: images for guests, the cache that their reads go through, and verification.

mod cache;
mod copies;
mod frame_file;
mod image;
mod lru;
mod readahead;
mod source;
mod verify;

pub use cache::BlockCache;
pub use image::{BlockStatus, Image};
pub use source::ImageSource;
pub use verify::{DamagedBlock, VerifyReport};
