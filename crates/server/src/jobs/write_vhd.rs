//! Writes an image as a fixed VHD into a page blob, of this service or of any other that speaks Azure's protocol.
//!
//! ```text
//!   image ── ranges with data, in pieces of at most 4 MiB ──▶ pages (some at once) ──▶ footer, last
//! ```
//!
//! What holds no data is not sent: a new page blob is zeros. The footer comes last, so that an interrupted upload is no
//! VHD. The same image gives the same bytes, footer included, so doing it again changes nothing.

mod remote;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use content::{Image, ManifestId};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use model::Region;

use self::remote::RemotePages;
use super::vhd_target::{VhdTarget, own_refusal};
use crate::AppState;
use crate::blob::own_pages::{OwnBlob, OwnPages};
use crate::blob::page::serve::MAX_PUT_PAGE_BYTES;
use crate::blob::{BlobError, PAGE_BYTES, disk_access};
use crate::http::error::chain;

/// Longest silence of a server that is written to.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// Pieces that are read and sent at once; each is in memory as a whole.
const PIECES_AT_ONCE: usize = 4;
/// Bytes of an image that are looked at for one question about zeros.
const STATUS_BYTES: u64 = 1 << 30;
/// Parts of one such answer.
const STATUS_PARTS: usize = 4096;
/// A VHD's unique id.
const ID_BYTES: usize = 16;

/// An image as a fixed VHD. Clones are the same.
#[derive(Debug, Clone)]
struct Vhd {
    image: Image,
    /// Where the footer begins: the published size.
    footer_at: u64,
    footer: Bytes,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// Length of the blob.
    pub(crate) bytes: u64,
    /// Bytes of pages that were sent, footer included.
    pub(crate) sent_bytes: u64,
}

/// Where pages go.
enum Sink {
    Own(OwnBlob, OwnPages),
    Remote(RemotePages),
}

/// Writes an image of a region's store to `target`. `progress` hears how far into the disk the work is, of how many bytes.
///
/// # Errors
/// Cause and remedy, without secrets. A blob of this service is then as it was; another one may be there in part.
pub(crate) async fn write_vhd(
    state: &AppState,
    region: &Region,
    manifest: ManifestId,
    target: &VhdTarget,
    mut progress: impl FnMut(u64, u64),
) -> Result<Written, String> {
    let vhd = Vhd::new(disk_access::image(state, region, manifest).await?)?;
    let bytes = vhd.footer_at + PAGE_BYTES;
    let sink = Arc::new(Sink::open(state, target, bytes).await?);
    let sends = pieces(vhd.clone()).map(|range| {
        let (vhd, sink) = (vhd.clone(), Arc::clone(&sink));
        async move {
            let range = range?;
            let piece = vhd.read(range.clone()).await?;
            let sent = piece.len() as u64;
            sink.write(range.start, piece).await?;
            Ok::<_, String>((range.end, sent))
        }
        .boxed()
    });
    let mut sent = sends.buffered(PIECES_AT_ONCE);
    let mut sent_bytes = 0;
    while let Some((end, piece)) = sent.try_next().await? {
        sent_bytes += piece;
        progress(end, vhd.footer_at);
    }
    drop(sent);
    sink.write(vhd.footer_at, vhd.footer.clone()).await?;
    let sink = Arc::into_inner(sink).ok_or_else(|| "a piece is still being written".to_owned())?;
    sink.finish().await?;
    Ok(Written { bytes, sent_bytes: sent_bytes + PAGE_BYTES })
}

impl Vhd {
    fn new(image: Image) -> Result<Self, String> {
        let size = image.size();
        let footer_at = disk::vhd::published_size(size).ok_or_else(|| {
            let most = disk::vhd::MAX_PUBLISHED_BYTES;
            format!("a VHD for Azure has at most {most} bytes, and the disk has {size}")
        })?;
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&image.id().as_bytes()[..ID_BYTES]);
        let footer = disk::vhd::fixed_footer(footer_at, id);
        Ok(Self { image, footer_at, footer: Bytes::copy_from_slice(&footer) })
    }

    /// Whole pages of the disk; what lies behind its end is zeros.
    async fn read(&self, range: Range<u64>) -> Result<Bytes, String> {
        let mut piece = vec![0; (range.end - range.start) as usize];
        let len = (range.end.min(self.image.size()) - range.start) as usize;
        let read = self.image.read_at(range.start, &mut piece[..len]).await;
        read.map_err(|error| format!("the image cannot be read: {}", chain(&error)))?;
        Ok(piece.into())
    }

    /// The parts with data of the gigabyte at `at`, in whole pages, and where to go on.
    async fn data_from(&self, at: u64) -> Result<(VecDeque<Range<u64>>, u64), String> {
        let len = STATUS_BYTES.min(self.image.size() - at);
        let parts = self.image.block_status(at, len, STATUS_PARTS).await;
        let parts = parts.map_err(|error| format!("the image cannot be read: {}", chain(&error)))?;
        let (mut start, mut found) = (at, VecDeque::new());
        for part in parts {
            let end = start + part.len;
            if !part.zero {
                found.push_back(start..end.next_multiple_of(PAGE_BYTES));
            }
            start = end;
        }
        Ok((found, start))
    }
}

/// The ranges that hold data, none longer than a Put Page.
fn pieces(vhd: Vhd) -> BoxStream<'static, Result<Range<u64>, String>> {
    let ranges = stream::try_unfold((vhd, VecDeque::new(), 0), |(vhd, mut found, mut next)| async move {
        loop {
            let Some(range): Option<Range<u64>> = found.pop_front() else {
                if next >= vhd.image.size() {
                    return Ok(None);
                }
                (found, next) = vhd.data_from(next).await?;
                continue;
            };
            let end = range.end.min(range.start + MAX_PUT_PAGE_BYTES);
            if end < range.end {
                found.push_front(end..range.end);
            }
            return Ok(Some((range.start..end, (vhd, found, next))));
        }
    });
    ranges.boxed()
}

impl Sink {
    async fn open(state: &AppState, target: &VhdTarget, bytes: u64) -> Result<Self, String> {
        match target {
            VhdTarget::Own(blob) => {
                let pages = OwnPages::begin(state, blob, bytes).await;
                let pages = pages.map_err(|error| own_refusal(blob, &error))?;
                Ok(Sink::Own(blob.clone(), pages))
            }
            VhdTarget::Remote(url) => {
                RemotePages::create(state.fabric.outbound(), url, bytes).await.map(Sink::Remote)
            }
        }
    }

    async fn write(&self, at: u64, bytes: Bytes) -> Result<(), String> {
        match self {
            Sink::Own(blob, pages) => {
                pages.write(at, bytes).await.map_err(|error: BlobError| own_refusal(blob, &error))
            }
            Sink::Remote(pages) => pages.write(at, bytes).await,
        }
    }

    async fn finish(self) -> Result<(), String> {
        match self {
            Sink::Own(blob, pages) => pages.finish().await.map_err(|error| own_refusal(&blob, &error)),
            // Each page was durable when it was answered.
            Sink::Remote(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
