//! Packed disk files: unpacked into a sparse temporary file before anything parses them.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;

use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;

use crate::input::Input;
use crate::{Error, MAX_DISK_BYTES, Packing, Result};

/// What unpacking may give: the largest disk, and what a format adds to it.
pub(crate) const MAX_UNPACKED_BYTES: u64 = MAX_DISK_BYTES + (1 << 30);
/// Bytes that are not zeros, for each packed byte. Deflate ends near 1,030; a disk that beats it is made of repetitions.
const MAX_RATIO: u64 = 1100;
/// Small files may pack better than that.
const RATIO_FREE_BYTES: u64 = 64 << 20;
/// Space that is left to others in the file system of the temporary file.
const SPACE_LEFT_BYTES: u64 = 512 << 20;
/// How often the space is looked at, and the work reported.
const REPORT_BYTES: u64 = 64 << 20;
/// Zeros are left out of the file in pieces of this size.
const PIECE: usize = 64 << 10;
/// Memory for xz's dictionary: `xz -9` needs 65 MiB to unpack.
const XZ_MEMORY_KIB: u32 = 160 << 10;
/// zstd's window, as a power of two: 128 MiB, what `zstd --ultra -22` and `--long` make.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Unpacks all of `input` into `out`, which is empty, and returns how many bytes that gave. `report` gets that number now
/// and then, and may stop the work.
pub(crate) fn unpack(
    packing: Packing,
    input: &Input,
    out: &File,
    report: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let packed = BufReader::with_capacity(PIECE, input.file());
    let damaged =
        |error: std::io::Error| input.damaged(format!("its {packing} data cannot be unpacked: {error}"));
    let mut reader: Box<dyn Read + '_> = match packing {
        Packing::None => Box::new(packed),
        Packing::Gzip => Box::new(MultiGzDecoder::new(packed)),
        Packing::Xz => Box::new(XzReader::new_mem_limit(packed, true, XZ_MEMORY_KIB)),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(damaged)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(damaged)?;
            Box::new(decoder)
        }
    };
    let (mut total, mut written, mut reported) = (0_u64, 0_u64, 0_u64);
    let most_written = input.file_len().saturating_mul(MAX_RATIO).saturating_add(RATIO_FREE_BYTES);
    let zeros = vec![0; PIECE];
    let mut piece = vec![0; PIECE];
    loop {
        let len = fill(&mut reader, &mut piece).map_err(damaged)?;
        let bytes = &piece[..len];
        if bytes != &zeros[..len] {
            out.write_all_at(bytes, total).map_err(|source| no_room(input, total, source))?;
            written += len as u64;
        }
        total += len as u64;
        if total > MAX_UNPACKED_BYTES {
            return Err(input.unsupported(format!("it unpacks to more than {MAX_UNPACKED_BYTES} bytes")));
        }
        if written > most_written {
            return Err(input.unsupported(format!(
                "its {} bytes unpack to more than {written}, over {MAX_RATIO} times as much; unpack it yourself if that is \
                 right",
                input.file_len()
            )));
        }
        if total - reported >= REPORT_BYTES {
            reported = total;
            report(total)?;
            check_space(input, out)?;
        }
        if len < PIECE {
            break;
        }
    }
    out.set_len(total).map_err(|source| no_room(input, total, source))?;
    Ok(total)
}

/// Reads until the buffer is full or the data ends.
fn fill(reader: &mut dyn Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match reader.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn check_space(input: &Input, out: &File) -> Result<()> {
    // A file system that does not say is not one that is full.
    let Ok(stat) = rustix::fs::fstatfs(out) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0));
    if free < SPACE_LEFT_BYTES {
        return Err(input.unsupported(format!(
            "unpacking it leaves only {free} bytes in the folder for temporary files; make room there, or use another one"
        )));
    }
    Ok(())
}

fn no_room(input: &Input, total: u64, source: std::io::Error) -> Error {
    input.unsupported(format!(
        "the temporary file that it is unpacked into could not be written at byte {total}: {source}"
    ))
}
