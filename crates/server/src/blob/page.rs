//! Page blobs: bytes under random writes of 512-byte pages. A blob of an account and a disk that is uploaded are sparse
//! files; a disk that is read is an image of the region's store, shown as the fixed VHD that Azure shows.
//!
//! [`serve`] is the HTTP side of both. Who may ask, and what is told beside the bytes ([`About`](super::About)), is the
//! caller's.

mod file;
pub mod serve;
mod source;

use std::io;
use std::ops::Range;

use axum::http::StatusCode;
use bytes::Bytes;
use content::Image;
use futures::StreamExt;
use futures::stream;

pub use file::{PageFile, PageName};

use super::body::Bytestream;
use super::error::BlobError;
use super::range::PAGE_BYTES;

/// Largest page blob, Azure's limit of 8 TiB and more for disks: what a VHD of the largest disk needs (RULES.md 2).
pub const MAX_PAGE_BLOB_BYTES: u64 = content::MAX_DISK_BYTES + PAGE_BYTES;
/// Bytes of one piece of an answer: what one download holds in memory.
const PIECE_BYTES: u64 = 512 * 1024;
/// Bytes of an image that are looked at for one question about zeros.
const STATUS_BYTES: u64 = 1 << 30;
/// Parts of one such answer.
const STATUS_PARTS: usize = 4096;

/// The bytes of a page blob. Clones are the same blob.
#[derive(Debug, Clone)]
pub enum PageBlob {
    /// A sparse file, written until it is sealed.
    File(PageFile),
    /// An image of a store as a fixed VHD, never written.
    Image(PageImage),
}

/// An image and the footer that makes it a fixed VHD of a size that Azure takes. What lies between is zeros.
#[derive(Debug, Clone)]
pub struct PageImage {
    image: Image,
    /// The published size.
    footer_at: u64,
    footer: Bytes,
}

impl PageImage {
    /// `unique_id` is the footer's.
    ///
    /// # Errors
    /// 409 when the disk is larger than Azure's largest.
    pub fn new(image: Image, unique_id: [u8; 16]) -> Result<Self, BlobError> {
        let size = image.size();
        let footer_at = disk::vhd::published_size(size).ok_or_else(|| {
            let most = disk::vhd::MAX_PUBLISHED_BYTES;
            let message = format!("A VHD for Azure has at most {most} bytes, and the disk has {size}.");
            BlobError::new(StatusCode::CONFLICT, "OperationNotAllowedOnDisk", message)
        })?;
        let footer = disk::vhd::fixed_footer(footer_at, unique_id);
        Ok(Self { image, footer_at, footer: Bytes::copy_from_slice(&footer) })
    }

    async fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let size = self.image.size();
        let footer_at = self.footer_at;
        let mut piece = vec![0; (range.end - range.start) as usize];
        if range.start < size {
            let len = (range.end.min(size) - range.start) as usize;
            self.image.read_at(range.start, &mut piece[..len]).await.map_err(io::Error::other)?;
        }
        if range.end > footer_at {
            let from = range.start.max(footer_at);
            let footer = &self.footer[(from - footer_at) as usize..(range.end - footer_at) as usize];
            piece[(from - range.start) as usize..].copy_from_slice(footer);
        }
        Ok(piece.into())
    }

    /// The stretches of data in `range`, at most `max`, and where to go on if there may be more.
    async fn data(&self, range: Range<u64>, max: usize) -> Result<(Vec<Range<u64>>, Option<u64>), BlobError> {
        let failed = |error: content::Error| BlobError::internal(crate::http::error::chain(&error));
        let (size, footer_at) = (self.image.size(), self.footer_at);
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end.min(size) {
            let len = STATUS_BYTES.min(range.end.min(size) - at);
            for part in self.image.block_status(at, len, STATUS_PARTS).await.map_err(failed)? {
                let next = at + part.len;
                if !part.zero && !add(&mut found, at..next, max) {
                    return Ok((found, Some(at)));
                }
                at = next;
            }
        }
        // The end of the disk may lie inside a page.
        if let Some(last) = found.last_mut() {
            last.end = last.end.next_multiple_of(PAGE_BYTES);
        }
        let footer = range.start.max(footer_at)..range.end;
        if footer.start < footer.end && !add(&mut found, footer.clone(), max) {
            return Ok((found, Some(footer.start)));
        }
        Ok((found, None))
    }
}

/// Adds a stretch, joined to the last one if it touches it; `false` when there is no place for another.
fn add(found: &mut Vec<Range<u64>>, new: Range<u64>, max: usize) -> bool {
    if let Some(last) = found.last_mut().filter(|last| last.end >= new.start) {
        last.end = last.end.max(new.end);
        return true;
    }
    if found.len() == max {
        return false;
    }
    found.push(new);
    true
}

impl PageBlob {
    /// Length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            PageBlob::File(file) => file.size(),
            PageBlob::Image(image) => image.footer_at + PAGE_BYTES,
        }
    }

    /// Writes whole pages. They are durable when this returns.
    ///
    /// # Errors
    /// When the blob is sealed or an image; the file system's own.
    pub async fn write(&self, at: u64, bytes: Bytes) -> Result<(), BlobError> {
        self.writable()?.write(at, bytes).await
    }

    /// Makes whole pages zero, and gives their space back.
    ///
    /// # Errors
    /// As [`PageBlob::write`].
    pub async fn clear(&self, range: Range<u64>) -> Result<(), BlobError> {
        self.writable()?.clear(range).await
    }

    fn writable(&self) -> Result<&PageFile, BlobError> {
        match self {
            PageBlob::File(file) => Ok(file),
            PageBlob::Image(_) => Err(file::sealed()),
        }
    }

    /// The stretches of `range` that hold data, at most `max`, and where to go on if there may be more. A stretch may
    /// hold zeros: files are known by blocks of their file system, images by blocks of 64 KiB.
    ///
    /// # Errors
    /// The file system's or the store's own.
    pub async fn data(
        &self,
        range: Range<u64>,
        max: usize,
    ) -> Result<(Vec<Range<u64>>, Option<u64>), BlobError> {
        match self {
            PageBlob::File(file) => file.data(range, max).await,
            PageBlob::Image(image) => image.data(range, max).await,
        }
    }

    async fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        match self {
            PageBlob::File(file) => file.read(range).await,
            PageBlob::Image(image) => image.read(range).await,
        }
    }

    /// The bytes of `range`, which must lie inside, piece by piece.
    pub(super) fn stream(&self, range: Range<u64>) -> Bytestream {
        let blob = self.clone();
        let pieces = stream::try_unfold((blob, range), |(blob, range)| async move {
            if range.start >= range.end {
                return Ok(None);
            }
            let next = range.end.min(range.start + PIECE_BYTES);
            let piece = blob.read(range.start..next).await.inspect_err(|error| {
                tracing::error!(%error, at = range.start, "a page blob cannot be read");
            })?;
            Ok(Some((piece, (blob, next..range.end))))
        });
        pieces.boxed()
    }
}

#[cfg(test)]
mod tests;
