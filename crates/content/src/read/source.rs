//! An image as a disk that synchronous code reads, such as the writers of disk formats.

use disk::{BlockSource, Extent, ExtentKind, Extents};
use tokio::runtime::Handle;

use super::image::Image;
use crate::Error;

/// Bytes that are looked at for one question about zeros.
const STATUS_BYTES: u64 = 1 << 30;
/// Parts of one answer.
const MAX_PARTS: usize = 4096;

/// An [`Image`] as a [`BlockSource`]. Its methods block on the runtime: call them where blocking is allowed
/// (`spawn_blocking`, or a thread of their own), never from a task.
#[derive(Debug)]
pub struct ImageSource {
    image: Image,
    runtime: Handle,
}

impl ImageSource {
    /// Reads `image` on `runtime`, which must outlive this.
    pub fn new(image: Image, runtime: Handle) -> Self {
        Self { image, runtime }
    }

    /// The parts that hold data of the gigabyte at `at`, and where to go on.
    fn data_from(&self, at: u64) -> disk::Result<(Vec<Extent>, u64)> {
        let len = STATUS_BYTES.min(self.image.size() - at);
        let parts = self.runtime.block_on(self.image.block_status(at, len, MAX_PARTS)).map_err(source)?;
        let mut start = at;
        let mut extents = Vec::new();
        for part in parts {
            if !part.zero {
                extents.push(Extent { start, len: part.len, kind: ExtentKind::Data });
            }
            start += part.len;
        }
        Ok((extents, start))
    }
}

impl BlockSource for ImageSource {
    fn logical_size(&self) -> u64 {
        self.image.size()
    }

    fn extents(&self) -> Extents<'_> {
        let mut next = 0;
        let mut failed = false;
        let windows = std::iter::from_fn(move || {
            if failed || next >= self.image.size() {
                return None;
            }
            Some(match self.data_from(next) {
                Ok((extents, end)) => {
                    next = end;
                    extents.into_iter().map(Ok).collect::<Vec<_>>()
                }
                Err(error) => {
                    failed = true;
                    vec![Err(error)]
                }
            })
        });
        Box::new(windows.flatten())
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> disk::Result<usize> {
        self.runtime.block_on(self.image.read_at(offset, buf)).map_err(source)?;
        Ok(buf.len())
    }
}

fn source(error: Error) -> disk::Error {
    disk::Error::Source { source: Box::new(error) }
}
