//! Compressed clusters: raw deflate data, or one Zstandard frame.

use std::sync::{Mutex, PoisonError};

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;
use crate::Result;
use crate::inflate::{Wrapping, inflate};
use crate::input::Input;

/// The largest window that a frame may ask for, as a power of two. A cluster has at most 2 MiB, so that more is of no
/// use to an honest writer, and would be memory for another.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// The last unpacked cluster, which readers in order use several times.
#[derive(Debug)]
pub(super) struct Unpacked {
    compression: Compression,
    cluster_bytes: usize,
    /// Where the data was, and what it gave.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

impl Unpacked {
    pub(super) fn new(compression: Compression, cluster_bytes: usize) -> Self {
        Self { compression, cluster_bytes, last: Mutex::new(None) }
    }

    /// Fills `buf` from `within` the cluster whose compressed data is in the `len` bytes at `at`.
    pub(super) fn read(&self, input: &Input, at: u64, len: u64, within: usize, buf: &mut [u8]) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = match last.take() {
            Some((place, cluster)) if place == at => cluster,
            previous => {
                let mut cluster = previous.map_or_else(|| vec![0; self.cluster_bytes], |(_, bytes)| bytes);
                let mut data = vec![0; len as usize];
                // The last sector that the entry counts need not be in the file.
                input.read_padded(at, &mut data)?;
                let unpacked = match self.compression {
                    Compression::Zlib => inflate(&data, &mut cluster, Wrapping::Bare),
                    Compression::Zstd => unpack_zstd(&data, &mut cluster),
                };
                if unpacked != Some(self.cluster_bytes) {
                    return Err(input.damaged(format!("the compressed cluster at {at} does not unpack")));
                }
                cluster
            }
        };
        buf.copy_from_slice(&cluster[within..within + buf.len()]);
        *last = Some((at, cluster));
        Ok(())
    }
}

fn unpack_zstd(data: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut decoder = Decoder::new().ok()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).ok()?;
    let mut input = InBuffer::around(data);
    let mut output = OutBuffer::around(out);
    loop {
        let before = (input.pos(), output.pos());
        let hint = decoder.run(&mut input, &mut output).ok()?;
        let written = output.pos();
        // 0: the frame is complete. Without progress there is no more data, or no more room.
        if hint == 0 || (input.pos(), written) == before {
            return Some(written);
        }
    }
}
