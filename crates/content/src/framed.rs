//! Files in frames that are checked one by one: what we keep on disks beside the objects of stores. With keys each frame is
//! encrypted, without it has a checksum; the layout is the same (`docs/format.md`, Framed files).
//!
//! ```text
//!   header   64 bytes   magic, version, flags, frame size, key id, salt
//!   frame*   size bytes and 16 of tag or checksum; the last one is shorter, or as long
//! ```
//!
//! A frame counts in its own file, under its own number and as the last one or not alone, so that bytes which were changed,
//! moved, cut off or appended are noticed. Reading a range reads the frames that it touches.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use uuid::Uuid;

use crate::format::le32;
use crate::seal::{Key, KeyId, KeyRing, derive};

const MAGIC: &[u8; 8] = b"TTFRAMES";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
/// The flag of a file whose frames are encrypted.
const SEALED: u32 = 1;
const KEY_ID_AT: usize = 24;
const SALT_AT: usize = 40;
const SALT_BYTES: usize = 16;
/// What is added to each frame: a tag or a checksum.
const CHECK_BYTES: usize = 16;
/// Sizes that a frame may have.
const FRAME_BYTES: std::ops::RangeInclusive<usize> = 512..=1 << 20;
/// Bytes of a file that are read at a time.
const READ_BYTES: u64 = 1 << 20;

/// Why a framed file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FramedError {
    /// The operating system's own.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It was made by another program, by another version, or with encryption where there is none or the other way round.
    #[error("it is not in the form that is expected here: {0}")]
    Form(String),
    /// Its key is not in the ring.
    #[error("it is encrypted with key {0}, which was not given")]
    KeyMissing(KeyId),
    /// Its bytes are not what they were when they were written.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

impl From<FramedError> for io::Error {
    fn from(error: FramedError) -> Self {
        match error {
            FramedError::Io(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// How the frames of one file are protected.
#[derive(Debug)]
struct Frames {
    size: usize,
    /// BLAKE3 of the header and the file's name: authenticated along with each frame.
    context: [u8; 32],
    key: Option<LessSafeKey>,
}

impl Frames {
    fn new(header: &[u8; HEADER_BYTES], key: Option<&Key>, name: &[u8]) -> Self {
        let context = *blake3::Hasher::new().update(header).update(name).finalize().as_bytes();
        let info = || [&header[SALT_AT..][..SALT_BYTES], name].concat();
        let key = key.map(|key| derive(key, b"tintype file\0", &info()));
        Self { size: le32(header, 16) as usize, context, key }
    }

    /// Appends the tag or checksum of the frame in `bytes`, which is encrypted if there is a key.
    fn close(&self, number: u64, last: bool, bytes: &mut Vec<u8>) {
        match &self.key {
            Some(key) => {
                let tag = key.seal_in_place_separate_tag(nonce(number), self.data(number, last), bytes);
                // It fails for more than 64 GiB alone.
                bytes.extend_from_slice(tag.expect("a frame is small").as_ref());
            }
            None => bytes.extend_from_slice(&self.checksum(number, last, bytes)),
        }
    }

    /// The content of a stored frame, into `out`, which is as long and not to be used if it is not the frame.
    fn open(&self, number: u64, last: bool, stored: &[u8], out: &mut [u8]) -> Result<(), FramedError> {
        let damaged = |what| Err(FramedError::Damaged(format!("frame {number} of it {what}")));
        let Some((content, check)) = stored.split_at_checked(out.len()) else {
            return damaged("was cut off");
        };
        match &self.key {
            Some(key) => {
                let data = self.data(number, last);
                match key.open_separate_gather(nonce(number), data, content, check, out) {
                    Ok(()) => Ok(()),
                    Err(_) => damaged("does not open with the file's key"),
                }
            }
            None if self.checksum(number, last, content) == check => {
                out.copy_from_slice(content);
                Ok(())
            }
            None => damaged("has another checksum than its bytes"),
        }
    }

    fn data(&self, number: u64, last: bool) -> Aad<[u8; 41]> {
        let mut data = [0; 41];
        data[..32].copy_from_slice(&self.context);
        data[32..40].copy_from_slice(&number.to_le_bytes());
        data[40] = u8::from(last);
        Aad::from(data)
    }

    fn checksum(&self, number: u64, last: bool, content: &[u8]) -> [u8; CHECK_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.context);
        hasher.update(content).update(&number.to_le_bytes()).update(&[u8::from(last)]);
        let mut checksum = [0; CHECK_BYTES];
        checksum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_BYTES]);
        checksum
    }
}

/// The key of a file whose header says that it is sealed, with the key of this id; `None` for one that is not, where there are
/// no keys.
pub(crate) fn choose_key<'a>(
    keys: Option<&'a KeyRing>,
    sealed: bool,
    id: &[u8],
) -> Result<Option<&'a Key>, FramedError> {
    match (sealed, keys) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(FramedError::Form("it is not encrypted, and everything here is".to_owned())),
        (true, keys) => {
            let id = KeyId::from_bytes(id.first_chunk().copied().unwrap_or_default());
            keys.and_then(|keys| keys.find(id)).map(Some).ok_or(FramedError::KeyMissing(id))
        }
    }
}

/// A frame's number. The key is for this file alone (its salt is random), and each frame is sealed once: no nonce is used
/// twice with one key.
fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Writes a framed file from its beginning to its end.
#[derive(Debug)]
pub struct FramedWriter<W> {
    out: W,
    frames: Frames,
    number: u64,
    /// The frame that is being filled: it may be the last one.
    pending: Vec<u8>,
}

impl<W: Write> FramedWriter<W> {
    /// Begins a file with frames of `frame_bytes` (512 bytes to 1 MiB), encrypted with the ring's current key if there is one.
    /// `name` says what the file is; only who knows it can read the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(mut out: W, keys: Option<&KeyRing>, name: &[u8], frame_bytes: usize) -> io::Result<Self> {
        let size = frame_bytes.clamp(*FRAME_BYTES.start(), *FRAME_BYTES.end());
        let key = keys.map(KeyRing::current);
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&key.map_or(0, |_| SEALED).to_le_bytes());
        header[16..20].copy_from_slice(&(size as u32).to_le_bytes());
        if let Some(key) = key {
            header[KEY_ID_AT..][..16].copy_from_slice(key.id().as_bytes());
        }
        header[SALT_AT..][..SALT_BYTES].copy_from_slice(Uuid::new_v4().as_bytes());
        out.write_all(&header)?;
        let pending = Vec::with_capacity(size + CHECK_BYTES);
        Ok(Self { out, frames: Frames::new(&header, key, name), number: 0, pending })
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// Those of `out`; then the file is of no use.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.pending.len() == self.frames.size {
                self.flush(false)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.frames.size - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Writes what is left. Gives `out` back, which is not flushed.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush(true)?;
        Ok(self.out)
    }

    fn flush(&mut self, last: bool) -> io::Result<()> {
        self.frames.close(self.number, last, &mut self.pending);
        self.out.write_all(&self.pending)?;
        self.pending.clear();
        self.number += 1;
        Ok(())
    }
}

/// A framed file that is whole, open for reading. Nothing of it is given out before it was checked.
#[derive(Debug)]
pub struct FramedFile {
    file: File,
    frames: Frames,
    /// Of the content.
    len: u64,
    /// The last frame's number.
    last: u64,
}

impl FramedFile {
    /// Opens a file of this name. With keys it must be encrypted, with one of them; without it must not be, so that nobody
    /// puts a file that anybody can make in the place of an encrypted one. Blocking.
    ///
    /// # Errors
    /// Whatever is wrong with its header or its length.
    pub fn open(file: File, keys: Option<&KeyRing>, name: &[u8]) -> Result<Self, FramedError> {
        let stored = file.metadata()?.len();
        let mut header = [0; HEADER_BYTES];
        let form = |reason: &str| Err(FramedError::Form(reason.to_owned()));
        if stored < HEADER_BYTES as u64 {
            return form("it is too short, or was cut off");
        }
        file.read_exact_at(&mut header, 0)?;
        let (version, flags, size) = (le32(&header, 8), le32(&header, 12), le32(&header, 16) as usize);
        if !header.starts_with(MAGIC) {
            return form("it does not begin as a framed file does");
        }
        if version != VERSION || flags & !SEALED != 0 || !FRAME_BYTES.contains(&size) {
            return form("its version or its flags are not known");
        }
        let key = choose_key(keys, flags & SEALED != 0, &header[KEY_ID_AT..])?;
        let (body, whole) = (stored - HEADER_BYTES as u64, (size + CHECK_BYTES) as u64);
        let count = body.div_ceil(whole);
        let last_bytes = body.checked_sub(count.saturating_sub(1) * whole + CHECK_BYTES as u64);
        // Only a file without content has a frame without any.
        if last_bytes.is_none_or(|bytes| bytes == 0 && count > 1) {
            return Err(FramedError::Damaged(format!("{stored} bytes are no number of frames")));
        }
        let len = body - count * CHECK_BYTES as u64;
        let opened = Self { file, frames: Frames::new(&header, key, name), len, last: count - 1 };
        if len == 0 {
            // Nobody reads it, and it may be what was left of a longer one.
            let mut check = [0; CHECK_BYTES];
            opened.file.read_exact_at(&mut check, HEADER_BYTES as u64)?;
            opened.frames.open(0, true, &check, &mut [])?;
        }
        Ok(opened)
    }

    /// Bytes of the content.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Fills `buf` with the content from `at`. After an error `buf` is not to be used. Blocking.
    ///
    /// # Errors
    /// The file system's own; damage in what was read; a range that is not inside.
    pub fn read_exact_at(&self, buf: &mut [u8], at: u64) -> Result<(), FramedError> {
        let mut done = 0;
        while done < buf.len() {
            let from = at + done as u64;
            let to = ((from + READ_BYTES) / READ_BYTES * READ_BYTES).min(at + buf.len() as u64);
            let part = &mut buf[done..][..(to - from) as usize];
            let stored = self.stored(from..to)?;
            let mut bytes = vec![0; (stored.end - stored.start) as usize];
            self.file.read_exact_at(&mut bytes, stored.start).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => FramedError::Damaged("it was cut off".to_owned()),
                _ => FramedError::Io(error),
            })?;
            self.decode(from, &bytes, part)?;
            done += part.len();
        }
        Ok(())
    }

    /// The file, for reads of what [`Self::stored`] says.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Which bytes of the file [`Self::decode`] needs for a range of the content that is not empty.
    pub(crate) fn stored(&self, range: Range<u64>) -> Result<Range<u64>, FramedError> {
        if range.end > self.len || range.start >= range.end {
            return Err(FramedError::Damaged(format!("it ends after {} bytes", self.len)));
        }
        let (first, last) =
            (range.start / self.frames.size as u64, (range.end - 1) / self.frames.size as u64);
        Ok(self.frame_at(first)..self.frame_at(last) + (self.content(last) + CHECK_BYTES) as u64)
    }

    /// Checks these bytes of the file, and gives the content from `at` out of them.
    pub(crate) fn decode(&self, at: u64, stored: &[u8], buf: &mut [u8]) -> Result<(), FramedError> {
        let size = self.frames.size;
        let (mut number, mut within) = (at / size as u64, (at % size as u64) as usize);
        let mut frames = stored.chunks(size + CHECK_BYTES);
        let mut rest = buf;
        let mut scratch = Vec::new();
        while !rest.is_empty() {
            let frame = frames.next().unwrap_or_default();
            let (content, last) = (self.content(number), number == self.last);
            let (now, later) = rest.split_at_mut(rest.len().min(content.saturating_sub(within)));
            if now.len() == content {
                self.frames.open(number, last, frame, now)?;
            } else {
                scratch.resize(content, 0);
                self.frames.open(number, last, frame, &mut scratch)?;
                now.copy_from_slice(&scratch[within..][..now.len()]);
            }
            if now.is_empty() {
                return Err(FramedError::Damaged(format!("it ends after {} bytes", self.len)));
            }
            (rest, number, within) = (later, number + 1, 0);
        }
        Ok(())
    }

    fn frame_at(&self, number: u64) -> u64 {
        HEADER_BYTES as u64 + number * (self.frames.size + CHECK_BYTES) as u64
    }

    /// Bytes of content in a frame.
    fn content(&self, number: u64) -> usize {
        match number.cmp(&self.last) {
            std::cmp::Ordering::Less => self.frames.size,
            std::cmp::Ordering::Equal => (self.len - self.last * self.frames.size as u64) as usize,
            std::cmp::Ordering::Greater => 0,
        }
    }
}

#[cfg(test)]
mod tests;
