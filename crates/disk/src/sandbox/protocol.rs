//! What the parent and the reader say to each other: one message a datagram, small, in fixed binary form, little endian.
//! Data goes through a memory file beside it. The parent treats the reader as hostile once it has seen the disk.

use std::ops::Range;

use crate::{Extent, ExtentKind, Format, Packing};

/// The longest message.
pub(super) const MAX_MESSAGE: usize = 48 << 10;
/// Bytes of one read, and of the memory file.
pub(super) const CHUNK: usize = 1 << 20;
/// Extents of one answer; 17 bytes each. The parts of one read are fewer and shorter: no format has units of less than 512
/// bytes.
pub(super) const MAX_EXTENTS: usize = 2048;
/// Files in one message; the kernel takes 253.
pub(super) const FILES_PER_MESSAGE: usize = 128;
/// Text of an error.
const MAX_REASON: usize = 4096;

/// The first message: what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) format: Format,
    pub(super) packing: Packing,
    /// What the files leave out is the base's, instead of zeros.
    pub(super) overlay: bool,
    /// Files that follow, [`FILES_PER_MESSAGE`] in a message: the memory file, the temporary file if the input is packed,
    /// and the disk's.
    pub(super) files: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// The extents that begin at or after a place.
    Extents { from: u64 },
    /// Bytes into the memory file, at most [`CHUNK`].
    Read { offset: u64, len: u32 },
}

/// What the kernel took of the restrictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// Everything that this kernel's Landlock has is forbidden.
    Full,
    /// An older Landlock, which forbids less.
    Partial,
    /// The kernel has none; seccomp and the limits alone confine the reader.
    Absent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Unpacking goes on; so many bytes so far.
    Working {
        bytes: u64,
    },
    Opened {
        size: u64,
        landlock: Landlock,
    },
    /// Extents in order; `more` if the disk may have others behind them.
    Extents {
        extents: Vec<Extent>,
        more: bool,
    },
    /// Which parts of what was asked for the disk holds, and the memory file now: sorted, disjoint.
    Read {
        covered: Vec<Range<u32>>,
    },
    Failed {
        kind: Failure,
        reason: String,
    },
}

/// Which kind of [`crate::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Damaged,
    Unsupported,
    Chain,
    Other,
}

impl Setup {
    pub(super) fn encode(self) -> Vec<u8> {
        let format = Format::ALL.iter().position(|format| *format == self.format).unwrap_or(0) as u8;
        let packing = match self.packing {
            Packing::None => 0,
            Packing::Gzip => 1,
            Packing::Xz => 2,
            Packing::Zstd => 3,
        };
        let files = self.files.to_le_bytes();
        vec![format, packing, u8::from(self.overlay), files[0], files[1]]
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let &[format, packing, overlay @ 0..=1, low, high] = bytes else { return None };
        let packing = match packing {
            0 => Packing::None,
            1 => Packing::Gzip,
            2 => Packing::Xz,
            3 => Packing::Zstd,
            _ => return None,
        };
        let format = *Format::ALL.get(usize::from(format))?;
        Some(Self { format, packing, overlay: overlay == 1, files: u16::from_le_bytes([low, high]) })
    }
}

impl Request {
    pub(super) fn encode(self) -> Vec<u8> {
        match self {
            Self::Extents { from } => [&[1][..], &from.to_le_bytes()].concat(),
            Self::Read { offset, len } => [&[2][..], &offset.to_le_bytes(), &len.to_le_bytes()].concat(),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let request = match reader.byte()? {
            1 => Self::Extents { from: reader.u64()? },
            2 => Self::Read { offset: reader.u64()?, len: reader.u32()? },
            _ => return None,
        };
        reader.0.is_empty().then_some(request)
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Working { bytes } => [&[1][..], &bytes.to_le_bytes()].concat(),
            Self::Opened { size, landlock } => {
                let landlock = match landlock {
                    Landlock::Full => 0,
                    Landlock::Partial => 1,
                    Landlock::Absent => 2,
                };
                [&[2][..], &size.to_le_bytes(), &[landlock]].concat()
            }
            Self::Extents { extents, more } => {
                let mut bytes = vec![3, u8::from(*more)];
                for extent in extents {
                    bytes.extend(extent.start.to_le_bytes());
                    bytes.extend(extent.len.to_le_bytes());
                    bytes.push(u8::from(extent.kind == ExtentKind::Zero));
                }
                bytes
            }
            Self::Read { covered } => {
                let bounds = covered.iter().flat_map(|range| [range.start, range.end]);
                [4].into_iter().chain(bounds.flat_map(u32::to_le_bytes)).collect()
            }
            Self::Failed { kind, reason } => {
                let kind = match kind {
                    Failure::Damaged => 0,
                    Failure::Unsupported => 1,
                    Failure::Chain => 2,
                    Failure::Other => 3,
                };
                // A character that is cut is replaced by the decoder.
                let end = reason.len().min(MAX_REASON);
                [&[5, kind][..], &reason.as_bytes()[..end]].concat()
            }
        }
    }

    /// `None`: no message that a sound reader sends.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let reply = match reader.byte()? {
            1 => Self::Working { bytes: reader.u64()? },
            2 => {
                let size = reader.u64()?;
                let landlock = match reader.byte()? {
                    0 => Landlock::Full,
                    1 => Landlock::Partial,
                    2 => Landlock::Absent,
                    _ => return None,
                };
                Self::Opened { size, landlock }
            }
            3 => {
                let more = reader.bool()?;
                let mut extents = Vec::new();
                while !reader.0.is_empty() {
                    let (start, len) = (reader.u64()?, reader.u64()?);
                    let kind = if reader.bool()? { ExtentKind::Zero } else { ExtentKind::Data };
                    extents.push(Extent { start, len, kind });
                }
                Self::Extents { extents, more }
            }
            4 => {
                let mut covered = Vec::new();
                while !reader.0.is_empty() {
                    covered.push(reader.u32()?..reader.u32()?);
                }
                Self::Read { covered }
            }
            5 => {
                let kind = match reader.byte()? {
                    0 => Failure::Damaged,
                    1 => Failure::Unsupported,
                    2 => Failure::Chain,
                    3 => Failure::Other,
                    _ => return None,
                };
                let reason = String::from_utf8_lossy(std::mem::take(&mut reader.0)).into_owned();
                Self::Failed { kind, reason }
            }
            _ => return None,
        };
        reader.0.is_empty().then_some(reply)
    }
}

/// Takes numbers from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take::<1>()?[0])
    }

    fn bool(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let setup = Setup { format: Format::Vmdk, packing: Packing::Xz, overlay: true, files: 515 };
        assert_eq!(Setup::decode(&setup.encode()), Some(setup));
        for request in [Request::Extents { from: 7 }, Request::Read { offset: u64::MAX, len: 9 }] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        let extents = (0..MAX_EXTENTS as u64)
            .map(|n| Extent { start: n * 9, len: 3, kind: ExtentKind::Zero })
            .collect();
        for reply in [
            Reply::Working { bytes: 3 },
            Reply::Opened { size: 9, landlock: Landlock::Partial },
            Reply::Extents { extents, more: true },
            Reply::Read { covered: (0..CHUNK as u32).step_by(1024).map(|at| at..at + 512).collect() },
            Reply::Failed { kind: Failure::Chain, reason: "why".to_owned() },
        ] {
            let bytes = reply.encode();
            assert!(bytes.len() <= MAX_MESSAGE);
            // No prefix is taken for another message, but for texts and lists, which may be shorter.
            let shortest = matches!(reply, Reply::Read { .. }).then(|| Reply::Read { covered: Vec::new() });
            assert_eq!(Reply::decode(&bytes), Some(reply));
            assert_eq!(Reply::decode(&bytes[..1]), shortest);
        }
        assert_eq!(Reply::decode(&[5, 9]), None);
        assert_eq!(Request::decode(&[1, 2, 3]), None);
    }
}
