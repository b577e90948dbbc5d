//! Buffers of one frame's plaintext that are used again. A new one costs more than reading into it: each of its pages is
//! found, zeroed and mapped by the kernel, one fault at a time.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::format::{BLOCK_BYTES, MAX_FRAME_BLOCKS};

/// Bytes of each.
pub(super) const BUFFER_BYTES: usize = MAX_FRAME_BLOCKS * BLOCK_BYTES;
/// Buffers that wait to be used again, at most. A write has fewer at a time (`workers`).
const MAX_WAITING: usize = 64;

/// The buffers of one write. Cloning is cheap; clones share them.
#[derive(Clone, Default)]
pub(super) struct Buffers {
    waiting: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// A buffer of `len` bytes, at most [`BUFFER_BYTES`]. What they are is left over from its last use: of the same write,
    /// hence of the same disk.
    pub(super) fn take(&self, len: usize) -> Buffer {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = waiting.pop().unwrap_or_else(|| vec![0; BUFFER_BYTES]);
        drop(waiting);
        Buffer { len: len.min(bytes.len()), bytes, home: self.clone() }
    }
}

/// One of them, which goes back when it is dropped.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Buffers,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut waiting = self.home.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MAX_WAITING {
            waiting.push(std::mem::take(&mut self.bytes));
        }
    }
}
