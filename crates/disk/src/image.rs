//! Whole disks in files that are open already, by the format that was declared.
//!
//! This is what the sandboxed reader ([`crate::sandbox`]) runs. It parses hostile bytes in the process that calls it, so
//! nothing but that reader, tests and fuzzers should.

use std::fs::File;

use crate::input::{Input, check_range};
use crate::packed::unpack;
use crate::vhdx::Vhdx;
use crate::{BlockSource, Chain, Error, Extents, Format, Packing, RawFile, Result, vhd, vmdk};

/// Opens the disk in `inputs`. One file, but for VMDK, whose descriptor is followed by the files that it names, and for
/// qcow2, where several files are a chain, the lowest first. A qcow2 that is an overlay is refused without those below.
pub fn open(format: Format, mut inputs: Vec<Input>) -> Result<Box<dyn BlockSource>> {
    match format {
        Format::Vmdk => return vmdk::open(inputs),
        Format::Qcow2 => return Ok(Box::new(Whole::open(inputs)?)),
        Format::Raw | Format::Vhd | Format::Vhdx => {}
    }
    match (inputs.pop(), inputs.len(), format) {
        (Some(input), 0, Format::Raw) => Ok(Box::new(RawFile::from_input(input)?)),
        (Some(input), 0, Format::Vhd) => vhd::open(input),
        (Some(input), 0, _) => Ok(Box::new(Vhdx::open(input)?)),
        _ => Err(Error::Chain { reason: format!("a {format} disk is one file") }),
    }
}

/// Opens a disk that is packed: unpacks all of it into `temporary`, an empty file, and opens that. `report` gets the bytes
/// that there are so far, now and then, and may stop the work with an error.
pub fn open_packed(
    format: Format,
    packing: Packing,
    packed: &Input,
    temporary: File,
    report: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Box<dyn BlockSource>> {
    let len = unpack(packing, packed, &temporary, report)?;
    open(format, vec![Input::of_known_len(packed.path().to_owned(), temporary, len)])
}

/// A chain with nothing below it: what no layer holds is zeros.
struct Whole(Chain);

impl Whole {
    fn open(inputs: Vec<Input>) -> Result<Self> {
        let chain = Chain::from_inputs(inputs)?;
        if let Some((lowest, name)) = chain.lowest_backing() {
            let shown: String = name.chars().take(200).collect();
            return Err(Error::Unsupported {
                path: lowest.to_owned(),
                reason: format!(
                    "it is an overlay of {shown:?}, which is not opened because the file says so; give the whole chain \
                     (`tintype store put FILE --backing …`), or put it into one file with `qemu-img convert -O qcow2`"
                ),
            });
        }
        Ok(Self(chain))
    }
}

impl BlockSource for Whole {
    fn logical_size(&self) -> u64 {
        self.0.logical_size()
    }

    fn extents(&self) -> Extents<'_> {
        self.0.extents()
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        check_range(offset, buf.len() as u64, self.logical_size())?;
        buf.fill(0);
        self.0.read_onto(offset, buf)?;
        Ok(buf.len())
    }
}
