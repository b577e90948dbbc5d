//! VHDX's log, replayed into memory: the file stays as it is. Source: \[MS-VHDX\] 2.3.
//!
//! ```text
//! log:   … old ┃ entry n ┃ entry n+1 ┃ … ┃ entry n+m ┃ old …      a ring; sequence numbers go up by one
//!               ▲ tail, as entry n+m says        ▲ head
//! entry: header, descriptors (32 bytes each) │ data sectors, one for each data descriptor
//! ```
//!
//! What the entries between tail and head say, in order, is what the file would hold after the writer's next start.

use std::ops::Range;

use super::crc::Crc32c;
use super::header::OpenLog;
use super::{Guid, MIB, Region, le32, le64};
use crate::Result;
use crate::input::Input;
use crate::patches::{Content, Patches, SECTOR_BYTES};

/// The longest log that is replayed. Hyper-V and QEMU make 1 MiB, and QEMU on request a few.
const MAX_LOG_BYTES: u64 = 64 << 20;
/// Bytes whose checksum is taken in one search, for each byte of the log. Entries do not overlap in a sound log, and each
/// is looked at twice at most; old ones that were partly overwritten come on top.
const MAX_CHECKED_PER_BYTE: u64 = 8;
/// Descriptors that are replayed: the longest log has room for a quarter of it with data; zeros have none.
const MAX_DESCRIPTORS: u64 = 4 * MAX_LOG_BYTES / SECTOR_BYTES;
/// How much longer than the file the log may say it to be: the blocks that were being added.
const MAX_GROWTH: u64 = 1 << 30;
/// The identifier, the headers and what separates them are not the log's to change.
const FIRST_LOGGED: u64 = 192 << 10;
const ENTRY_HEADER_BYTES: u64 = 64;
const DESCRIPTOR_BYTES: u64 = 32;
/// Read at once while a checksum is taken.
const CHECKED_AT_ONCE: u64 = 64 << 10;

/// What a replay gives.
#[derive(Debug)]
pub(super) struct Replayed {
    pub(super) patches: Patches,
    /// The file's length afterwards.
    pub(super) file_len: u64,
}

/// Finds the active entries of a log, and what they change.
pub(super) fn replay(input: &Input, log: OpenLog) -> Result<Replayed> {
    if log.place.len > MAX_LOG_BYTES {
        return Err(input.unsupported(format!(
            "it was not closed cleanly, and its log has {} bytes; at most {MAX_LOG_BYTES} are replayed. Open it once in \
             what wrote it, or use `qemu-img check -f vhdx -r all`",
            log.place.len
        )));
    }
    let mut search = Search { input, log, unchecked: log.place.len * MAX_CHECKED_PER_BYTE };
    let active = search.active()?;
    let Some(head) = active.last() else {
        return Err(input.damaged(
            "it was not closed cleanly, and its log has no valid entry of the id that its header names: was it copied \
             while it was written?"
                .to_owned(),
        ));
    };
    if head.flushed_len > input.file_len() {
        return Err(input.damaged(format!(
            "its log says that it has at least {} bytes, and it has {}: was it cut off?",
            head.flushed_len,
            input.file_len()
        )));
    }
    let file_len = active.iter().fold(input.file_len(), |len, entry| len.max(entry.last_len));
    if file_len - input.file_len() > MAX_GROWTH {
        return Err(input.damaged(format!(
            "its log says that {file_len} bytes of it are in use, and it has {}",
            input.file_len()
        )));
    }
    let mut replay = Replay { input, log, patches: Patches::default(), descriptors: 0, file_len };
    for entry in &active {
        replay.entry(entry)?;
    }
    Ok(Replayed { patches: replay.patches, file_len })
}

/// The header of a valid entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where it begins in the log.
    at: u64,
    /// Bytes, a number of sectors.
    len: u64,
    /// Where the oldest entry that is needed begins.
    tail: u64,
    sequence: u64,
    descriptors: u64,
    /// The file is at least so long.
    flushed_len: u64,
    /// Everything that is in use ends before.
    last_len: u64,
}

impl OpenLog {
    /// Where byte `at` of the ring is in the file.
    fn file_offset(&self, at: u64) -> u64 {
        self.place.offset + at % self.place.len
    }
}

/// \[MS-VHDX\] 2.3.3.
struct Search<'a> {
    input: &'a Input,
    log: OpenLog,
    /// Bytes whose checksum may still be taken.
    unchecked: u64,
}

impl Search<'_> {
    /// The entries to replay, the oldest first; none if no sequence is complete.
    fn active(&mut self) -> Result<Vec<Entry>> {
        let mut active: Vec<Entry> = Vec::new();
        let mut at = 0;
        while at < self.log.place.len {
            let found = self.sequence(at)?;
            let Some(head) = found.last().copied() else {
                at += SECTOR_BYTES;
                continue;
            };
            // What begins between them ends with the same head, and is no better.
            at += found.iter().map(|entry| entry.len).sum::<u64>();
            if active.last().is_none_or(|best| head.sequence > best.sequence)
                && let Some(tail) = found.iter().position(|entry| entry.at == head.tail)
            {
                active = found[tail..].to_vec();
            }
        }
        Ok(active)
    }

    /// The valid entries from `at` on whose numbers follow each other.
    fn sequence(&mut self, mut at: u64) -> Result<Vec<Entry>> {
        let mut found: Vec<Entry> = Vec::new();
        let mut len = 0;
        while let Some(entry) = self.entry(at)? {
            len += entry.len;
            let follows =
                found.last().is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
            if !follows || len > self.log.place.len {
                break;
            }
            at = (at + entry.len) % self.log.place.len;
            found.push(entry);
        }
        Ok(found)
    }

    /// The entry at `at` of the log, unless what is there is none.
    fn entry(&mut self, at: u64) -> Result<Option<Entry>> {
        let mut header = [0; SECTOR_BYTES as usize];
        self.input.read_exact(self.log.file_offset(at), &mut header)?;
        let entry = Entry {
            at,
            len: u64::from(le32(&header, 8)),
            tail: u64::from(le32(&header, 12)),
            sequence: le64(&header, 16),
            descriptors: u64::from(le32(&header, 24)),
            flushed_len: le64(&header, 48),
            last_len: le64(&header, 56),
        };
        let sectors =
            |bytes: u64| bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES) && bytes <= self.log.place.len;
        let fits = sectors(entry.len)
            && (entry.tail == 0 || sectors(entry.tail))
            && descriptors_end(entry.descriptors) <= entry.len;
        if &header[..4] != b"loge" || Guid::at(&header, 32) != self.log.id || entry.sequence == 0 || !fits {
            return Ok(None);
        }
        Ok(self.checksum_holds(&entry, le32(&header, 4))?.then_some(entry))
    }

    fn checksum_holds(&mut self, entry: &Entry, stored: u32) -> Result<bool> {
        let Some(left) = self.unchecked.checked_sub(entry.len) else {
            return Err(self.input.damaged("the entries of its log overlap".to_owned()));
        };
        self.unchecked = left;
        if cfg!(fuzzing) {
            return Ok(true);
        }
        let mut crc = Crc32c::new();
        let mut buf = vec![0; CHECKED_AT_ONCE as usize];
        let mut done = 0;
        while done < entry.len {
            let until_wrap = self.log.place.len - (entry.at + done) % self.log.place.len;
            let part = &mut buf[..CHECKED_AT_ONCE.min(entry.len - done).min(until_wrap) as usize];
            self.input.read_exact(self.log.file_offset(entry.at + done), part)?;
            if done == 0 {
                part[4..8].fill(0);
            }
            crc.add(part);
            done += part.len() as u64;
        }
        Ok(crc.finish() == stored)
    }
}

/// Where an entry's data sectors begin.
fn descriptors_end(descriptors: u64) -> u64 {
    (ENTRY_HEADER_BYTES + descriptors * DESCRIPTOR_BYTES).next_multiple_of(SECTOR_BYTES)
}

struct Replay<'a> {
    input: &'a Input,
    log: OpenLog,
    patches: Patches,
    /// Looked at so far.
    descriptors: u64,
    file_len: u64,
}

impl Replay<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.descriptors += entry.descriptors;
        if self.descriptors > MAX_DESCRIPTORS {
            return Err(self.input.unsupported(format!(
                "it was not closed cleanly, and its log makes more than {MAX_DESCRIPTORS} changes; replay it with \
                 `qemu-img check -f vhdx -r all`"
            )));
        }
        let mut data_at = descriptors_end(entry.descriptors);
        let mut sector = [0; SECTOR_BYTES as usize];
        for number in 0..entry.descriptors {
            let at = ENTRY_HEADER_BYTES + number * DESCRIPTOR_BYTES;
            let within = (at % SECTOR_BYTES) as usize;
            if number == 0 || within == 0 {
                self.input.read_exact(self.log.file_offset(entry.at + at - within as u64), &mut sector)?;
            }
            let descriptor = &sector[within..within + DESCRIPTOR_BYTES as usize];
            let place = le64(descriptor, 16);
            if le64(descriptor, 24) != entry.sequence {
                return Err(self.broken(entry, format!("has a descriptor of entry {}", le64(descriptor, 24))));
            }
            match &descriptor[..4] {
                b"zero" => {
                    let range = self.target(entry, place, le64(descriptor, 8))?;
                    self.patches.put(range.start, range.end, Content::Zeros);
                }
                b"desc" => {
                    let range = self.target(entry, place, SECTOR_BYTES)?;
                    let content = self.data(entry, data_at, descriptor)?;
                    data_at += SECTOR_BYTES;
                    self.patches.put(range.start, range.end, content);
                }
                _ => return Err(self.broken(entry, "has a descriptor of no known kind".to_owned())),
            }
        }
        Ok(())
    }

    /// The stretch of the file that a descriptor changes.
    fn target(&self, entry: &Entry, start: u64, len: u64) -> Result<Range<u64>> {
        let sectors = start.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES) && len > 0;
        let end = start.checked_add(len).filter(|end| sectors && *end <= self.file_len);
        let Some(end) = end else {
            return Err(self.broken(
                entry,
                format!(
                    "changes {len} bytes at {start}, which are not sectors of a file of {} bytes",
                    self.file_len
                ),
            ));
        };
        let Region { offset, len } = self.log.place;
        if start < FIRST_LOGGED || (start < offset + len && end > offset) {
            return Err(self.broken(entry, format!("changes the headers or the log itself, at {start}")));
        }
        Ok(start..end)
    }

    fn data(&self, entry: &Entry, at: u64, descriptor: &[u8]) -> Result<Content> {
        if at + SECTOR_BYTES > entry.len {
            return Err(self.broken(entry, "has fewer data sectors than descriptors of them".to_owned()));
        }
        let at = self.log.file_offset(entry.at + at);
        let mut sector = [0; SECTOR_BYTES as usize];
        self.input.read_exact(at, &mut sector)?;
        let sequence =
            u64::from(le32(&sector, 4)) << 32 | u64::from(le32(&sector, SECTOR_BYTES as usize - 4));
        if &sector[..4] != b"data" || sequence != entry.sequence {
            return Err(self.broken(entry, format!("has no data sector of its own at {at} of the file")));
        }
        let (mut first, mut last) = ([0; 8], [0; 4]);
        first.copy_from_slice(&descriptor[8..16]);
        last.copy_from_slice(&descriptor[4..8]);
        Ok(Content::Sector { at, first, last })
    }

    fn broken(&self, entry: &Entry, what: String) -> crate::Error {
        self.input.damaged(format!("entry {} of its log {what}", entry.sequence))
    }
}

// A ring position fits the header's 32 bits, and a log of whole MiB is whole sectors.
const _: () = assert!(MAX_LOG_BYTES <= u32::MAX as u64 && MIB.is_multiple_of(SECTOR_BYTES));
