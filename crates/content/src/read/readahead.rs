//! Noticing that an image is read in order.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Readers in order that are told apart: a guest reads several files at a time.
const STREAMS: usize = 8;
/// How far ahead of a reader frames are fetched.
const AHEAD_BYTES: u64 = 4 << 20;
/// Reads of one stream may come a little out of order, as an asynchronous client sends them.
const DISORDER_BYTES: u64 = 256 << 10;
/// A stream is one when it has read this much in order: a single read tells nothing.
const STREAM_BYTES: u64 = 128 << 10;

/// Decides what to fetch before it is asked for.
#[derive(Debug, Default)]
pub(super) struct Readahead {
    streams: Mutex<Vec<Stream>>,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    start: u64,
    end: u64,
    fetched_to: u64,
}

impl Readahead {
    /// Takes note of a read, and returns what should be fetched now, if it continues a stream that comes near to the end of
    /// what was fetched for it.
    pub(super) fn note(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(len);
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let place = streams.iter().position(|stream| stream.end.abs_diff(offset) <= DISORDER_BYTES);
        let mut stream = match place {
            Some(place) => streams.remove(place),
            None => Stream { start: offset, end, fetched_to: end },
        };
        stream.end = stream.end.max(end);
        stream.fetched_to = stream.fetched_to.max(stream.end);
        let in_order = place.is_some() && stream.end - stream.start >= STREAM_BYTES;
        let wanted = stream.end + AHEAD_BYTES;
        let fetch = (in_order && stream.fetched_to < stream.end + AHEAD_BYTES / 2)
            .then(|| std::mem::replace(&mut stream.fetched_to, wanted)..wanted);
        // The latest first, the longest unused goes.
        streams.insert(0, stream);
        streams.truncate(STREAMS);
        fetch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_in_order_fetches_each_byte_once() {
        let readahead = Readahead::default();
        let mut fetched_to = 0;
        for number in 0..1000 {
            let offset = number * (128 << 10);
            if let Some(range) = readahead.note(offset, 128 << 10) {
                assert!(range.start >= fetched_to && range.end > offset + (2 << 20), "{range:?}");
                fetched_to = range.end;
            }
            // Another reader, far away, does not disturb.
            assert_eq!(readahead.note((1 << 40) + number * (1 << 30), 4096), None);
        }
        assert!(fetched_to > 125 << 20);
    }

    #[test]
    fn random_reads_fetch_nothing() {
        let readahead = Readahead::default();
        for number in 0..1000_u64 {
            let offset = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
            assert_eq!(readahead.note(offset, 4096), None);
        }
    }
}
