//! VMDK, VMware's format: one sparse file (`monolithicSparse`, `streamOptimized`), or a text descriptor that names
//! extents in other files (`monolithicFlat`, `twoGbMaxExtentSparse`, `twoGbMaxExtentFlat`).
//!
//! Source: VMware's "Virtual Disk Format 5.0". The names of other files come out of a file that anyone may have written,
//! so they are plain names in the descriptor's own folder, opened by [`extent_files`] outside of the process that parses.

mod descriptor;
mod sparse;

use std::path::{Path, PathBuf};

use crate::input::{Input, check_range};
use crate::raw::RawFile;
use crate::{BlockSource, Error, Extent, Extents, Result};
use descriptor::{Descriptor, Kind, MAX_DESCRIPTOR_BYTES};
use sparse::SparseExtent;

pub(crate) const SECTOR: u64 = 512;

/// The files that a descriptor names, in its folder and in its order; none for a VMDK in one file.
pub(crate) fn extent_files(input: &Input) -> Result<Vec<PathBuf>> {
    if sparse::is_sparse(input)? {
        return Ok(Vec::new());
    }
    let folder = input.path().parent().unwrap_or(Path::new(""));
    let names = read_descriptor(input)?.files().map(|name| folder.join(name)).collect();
    Ok(names)
}

/// Opens a VMDK: its file, then those that [`extent_files`] names.
pub(crate) fn open(mut inputs: Vec<Input>) -> Result<Box<dyn BlockSource>> {
    if inputs.is_empty() {
        return Err(Error::Chain { reason: "no file was given".to_owned() });
    }
    let first = inputs.remove(0);
    if sparse::is_sparse(&first)? {
        if !inputs.is_empty() {
            let reason = "it is one sparse file and needs no others";
            return Err(first.unsupported(reason.to_owned()));
        }
        return Ok(Box::new(SparseExtent::open_whole(first)?));
    }
    let descriptor = read_descriptor(&first)?;
    let named = descriptor.files().count();
    if named != inputs.len() {
        return Err(
            first.unsupported(format!("it names {named} other files, and {} were given", inputs.len()))
        );
    }
    let size = descriptor.bytes().ok_or_else(|| first.damaged("its extents' sizes overflow".to_owned()))?;
    first.check_size(size)?;
    let mut inputs = inputs.into_iter();
    let mut parts = Vec::new();
    let mut start = 0;
    for line in &descriptor.extents {
        let len = line.sectors * SECTOR;
        // The count was compared above.
        let file = line.file.as_ref().and_then(|_| inputs.next());
        let source: Option<Box<dyn BlockSource>> = match (&line.kind, file) {
            (Kind::Flat { offset_sectors }, Some(file)) => {
                let offset = offset_sectors.checked_mul(SECTOR);
                let offset =
                    offset.ok_or_else(|| first.damaged("an extent's offset overflows".to_owned()))?;
                Some(Box::new(RawFile::window(file, offset, len)?))
            }
            (Kind::Sparse, Some(file)) => Some(Box::new(SparseExtent::open_part(file, len)?)),
            _ => None,
        };
        parts.push(Part { start, len, source });
        start += len;
    }
    Ok(Box::new(Parts { size, parts }))
}

fn read_descriptor(input: &Input) -> Result<Descriptor> {
    if input.file_len() > MAX_DESCRIPTOR_BYTES {
        return Err(input.damaged(format!(
            "it is neither a sparse VMDK nor a descriptor: it does not begin with `KDMV`, and {} bytes are more than the \
             {MAX_DESCRIPTOR_BYTES} of the largest descriptor",
            input.file_len()
        )));
    }
    let mut text = vec![0; input.file_len() as usize];
    input.read_exact(0, &mut text)?;
    Descriptor::parse(&text).map_err(|refusal| refusal.about(input))
}

/// Extents one behind the other.
struct Parts {
    size: u64,
    parts: Vec<Part>,
}

struct Part {
    start: u64,
    len: u64,
    /// Zeros where there is none.
    source: Option<Box<dyn BlockSource>>,
}

impl BlockSource for Parts {
    fn logical_size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(self.parts.iter().flat_map(|part| {
            let extents = part.source.iter().flat_map(|source| source.extents());
            extents.map(|extent| extent.map(|extent| Extent { start: extent.start + part.start, ..extent }))
        }))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        check_range(offset, buf.len() as u64, self.size)?;
        let mut done = 0;
        let mut index = self.parts.partition_point(|part| part.start + part.len <= offset);
        while done < buf.len() {
            let part = &self.parts[index];
            let within = offset + done as u64 - part.start;
            let len = (part.len - within).min((buf.len() - done) as u64) as usize;
            let piece = &mut buf[done..done + len];
            match &part.source {
                None => piece.fill(0),
                Some(source) => {
                    source.read_onto(within, piece)?;
                }
            }
            done += len;
            index += 1;
        }
        Ok(buf.len())
    }
}
