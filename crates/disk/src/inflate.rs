//! Deflate data in memory, as qcow2's and VMDK's compressed clusters are.

use flate2::{Decompress, FlushDecompress, Status};

/// What is around the deflate data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrapping {
    /// Nothing (qcow2).
    Bare,
    /// zlib's header and checksum (VMDK).
    Zlib,
}

/// Unpacks `data` into `out`, and returns how many bytes that gave. What follows the end of the data is not looked at:
/// both formats pad to sectors. `None`: it is no deflate data, or it gives more than `out` holds.
pub(crate) fn inflate(data: &[u8], out: &mut [u8], wrapping: Wrapping) -> Option<usize> {
    let mut decompress = Decompress::new(wrapping == Wrapping::Zlib);
    let status = decompress.decompress(data, out, FlushDecompress::Finish).ok()?;
    let written = decompress.total_out() as usize;
    match status {
        Status::StreamEnd => Some(written),
        // The data's last block may end behind what fits; qemu takes a full cluster for the end as well.
        Status::Ok | Status::BufError => (written == out.len()).then_some(written),
    }
}
