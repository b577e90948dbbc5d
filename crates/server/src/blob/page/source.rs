//! A page blob as a disk that synchronous code reads.

use disk::{BlockSource, Extent, ExtentKind, Extents};

use super::PageFile;

impl BlockSource for PageFile {
    fn logical_size(&self) -> u64 {
        self.size()
    }

    fn extents(&self) -> Extents<'_> {
        let mut next = Some(0);
        Box::new(std::iter::from_fn(move || {
            let data = match self.pages.next_data(next.take()?, self.size()) {
                Ok(data) => data?,
                Err(error) => return Some(Err(source(error))),
            };
            next = Some(data.end);
            Some(Ok(Extent { start: data.start, len: data.end - data.start, kind: ExtentKind::Data }))
        }))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> disk::Result<usize> {
        let (len, size) = (buf.len() as u64, self.size());
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(disk::Error::OutOfRange { offset, len, size });
        }
        buf.copy_from_slice(&self.pages.read(offset..offset + len).map_err(source)?);
        Ok(buf.len())
    }
}

fn source(error: std::io::Error) -> disk::Error {
    disk::Error::Source { source: Box::new(error) }
}
