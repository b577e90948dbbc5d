//! VHDX's two headers, of which the newer is current.

use super::{Guid, MIB, Region, checksum_holds, le32, le64};
use crate::Result;
use crate::input::Input;

const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4096;

/// What the current header says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    sequence: u64,
    version: u16,
    /// The id of the log's entries; zero when there is nothing to replay.
    log_id: Guid,
    log_version: u16,
    log: Region,
}

/// A log with something to replay: inside the file, a number of MiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenLog {
    pub(super) id: Guid,
    pub(super) place: Region,
}

impl Header {
    pub(super) fn read(input: &Input) -> Result<Self> {
        let mut current: Option<Self> = None;
        for at in HEADERS_AT {
            let mut bytes = vec![0; HEADER_BYTES];
            input.read_padded(at, &mut bytes)?;
            if &bytes[..4] != b"head" || !checksum_holds(&mut bytes) {
                continue;
            }
            let header = Self::parse(&bytes);
            if current.is_none_or(|other| header.sequence > other.sequence) {
                current = Some(header);
            }
        }
        match current {
            None => Err(input.damaged("neither of its headers has a valid checksum".to_owned())),
            Some(Self { version, .. }) if version != 1 => {
                Err(input.unsupported(format!("VHDX version {version}; 1 is read")))
            }
            Some(header) => Ok(header),
        }
    }

    fn parse(bytes: &[u8]) -> Self {
        Self {
            sequence: le64(bytes, 8),
            log_id: Guid::at(bytes, 48),
            log_version: u16::from_le_bytes([bytes[64], bytes[65]]),
            version: u16::from_le_bytes([bytes[66], bytes[67]]),
            log: Region { len: u64::from(le32(bytes, 68)), offset: le64(bytes, 72) },
        }
    }

    /// The log, if it was left open.
    pub(super) fn open_log(&self, input: &Input) -> Result<Option<OpenLog>> {
        if self.log_id == Guid::ZERO {
            return Ok(None);
        }
        if self.log_version != 0 {
            return Err(input.unsupported(format!(
                "it was not closed cleanly, and its log has version {}; 0 is replayed. Open it once in what wrote it",
                self.log_version
            )));
        }
        let Region { offset, len } = self.log;
        let aligned = offset.is_multiple_of(MIB) && offset >= MIB && len.is_multiple_of(MIB) && len > 0;
        if !aligned || offset.checked_add(len).is_none_or(|end| end > input.file_len()) {
            return Err(input.damaged(format!(
                "its log of {len} bytes is said to be at {offset}, which is no place in a file of {} bytes",
                input.file_len()
            )));
        }
        Ok(Some(OpenLog { id: self.log_id, place: self.log }))
    }
}
