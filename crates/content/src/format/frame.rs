//! Frames of a pack: neighbouring blocks compressed together, or one page.

use std::cell::RefCell;

use super::{BLOCK_BYTES, hash_at, le32};
use crate::id::PackId;
use crate::seal::KeyId;

const PACK_MAGIC: &[u8; 8] = b"TTPACK\0\0";
const PACK_VERSION: u32 = 1;
pub(crate) const PACK_HEADER_BYTES: u32 = 32;
/// The flag of a pack whose frames are sealed (`seal.rs`).
const PACK_SEALED: u32 = 1;

pub(crate) const FRAME_MAGIC: &[u8; 4] = b"TTFR";
pub(crate) const FRAME_HEADER_BYTES: usize = 16;
/// The most blocks of one frame: 16 compress nearly as well as any more would, and a random read costs at most 1 MiB.
pub(crate) const MAX_FRAME_BLOCKS: usize = 16;
/// A put spends most of its time here. Of a Debian disk, level 1 makes 9 % more bytes than level 3 in half of the time, and
/// still fewer than borg at level 3 (docs/benchmarks.md).
const ZSTD_LEVEL: i32 = 1;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Blocks,
    Page,
    /// The root of a disk.
    Manifest,
}

impl FrameKind {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Blocks => 1,
            Self::Page => 2,
            Self::Manifest => 3,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Blocks),
            2 => Some(Self::Page),
            3 => Some(Self::Manifest),
            _ => None,
        }
    }
}

/// How a payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Plain,
    Zstd,
}

/// A frame that is ready to be appended to any pack.
#[derive(Debug)]
pub(crate) struct EncodedFrame {
    pub(crate) kind: FrameKind,
    pub(crate) codec: Codec,
    pub(crate) hashes: Vec<[u8; 32]>,
    pub(crate) payload: Vec<u8>,
}

impl EncodedFrame {
    /// One page, plain: hashes do not compress.
    pub(crate) fn page(id: [u8; 32], bytes: Vec<u8>) -> Self {
        Self { kind: FrameKind::Page, codec: Codec::Plain, hashes: vec![id], payload: bytes }
    }

    /// One manifest, plain as well: it is a table of hashes.
    pub(crate) fn manifest(id: [u8; 32], bytes: Vec<u8>) -> Self {
        Self { kind: FrameKind::Manifest, codec: Codec::Plain, hashes: vec![id], payload: bytes }
    }

    /// A verified frame of another pack, without compressing it again. `bytes` are what it was decoded from.
    pub(crate) fn as_stored(frame: Frame, bytes: &[u8]) -> Self {
        let payload = bytes[FRAME_HEADER_BYTES + 32 * frame.hashes.len()..].to_vec();
        Self { kind: frame.kind, codec: frame.codec, hashes: frame.hashes, payload }
    }

    /// Its length in a pack.
    pub(crate) fn len(&self) -> u32 {
        // A manifest is the largest, at most 20 MiB.
        (FRAME_HEADER_BYTES + 32 * self.hashes.len() + self.payload.len()) as u32
    }

    /// Appends the frame as the pack's frame number `number`.
    pub(crate) fn write(&self, number: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head(number));
        out.extend_from_slice(&self.payload);
    }

    /// What stands before the payload in the pack's frame number `number`.
    pub(crate) fn head(&self, number: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + 32 * self.hashes.len());
        out.extend_from_slice(FRAME_MAGIC);
        let codec = match self.codec {
            Codec::Plain => 0,
            Codec::Zstd => 1,
        };
        out.extend_from_slice(&[self.kind.to_byte(), codec, self.hashes.len() as u8, 0]);
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        for hash in &self.hashes {
            out.extend_from_slice(hash);
        }
        out
    }
}

/// The header of a pack: [`PACK_HEADER_BYTES`], and 16 more if its frames are sealed with this key.
pub(crate) fn pack_header(id: PackId, key: Option<KeyId>) -> Vec<u8> {
    let mut header = Vec::with_capacity(PACK_HEADER_BYTES as usize + 16);
    header.extend_from_slice(PACK_MAGIC);
    header.extend_from_slice(&PACK_VERSION.to_le_bytes());
    header.extend_from_slice(&key.map_or(0, |_| PACK_SEALED).to_le_bytes());
    header.extend_from_slice(id.as_bytes());
    header.extend(key.iter().flat_map(|key| key.as_bytes()));
    header
}

/// The key that a pack is sealed with, from its first bytes; `None` if it is not sealed, or its header is damaged.
pub(crate) fn pack_key(header: &[u8]) -> Option<KeyId> {
    let (header, key) = header.split_at_checked(PACK_HEADER_BYTES as usize)?;
    let sealed = header.starts_with(PACK_MAGIC) && le32(header, 12) & PACK_SEALED != 0;
    key.first_chunk::<16>().filter(|_| sealed).map(|key| KeyId::from_bytes(*key))
}

/// Where the first frame of a pack is, from the pack's bytes.
pub(crate) fn pack_frames_at(pack: &[u8]) -> usize {
    // A key's id in the header is none of a frame: where the header is damaged, frames are looked for behind it.
    PACK_HEADER_BYTES as usize + if pack_key(pack).is_some() { 16 } else { 0 }
}

/// How long the frame is that these bytes begin with, if they are a frame's; sealed or not.
pub(crate) fn frame_len(bytes: &[u8]) -> Option<usize> {
    let header =
        bytes.first_chunk::<FRAME_HEADER_BYTES>().filter(|header| header.starts_with(FRAME_MAGIC))?;
    let count = usize::from(header[6]);
    (count <= MAX_FRAME_BLOCKS).then(|| FRAME_HEADER_BYTES + 32 * count + le32(header, 12) as usize)
}

/// Compresses the plaintext of a frame of blocks. Costs about 2 ms for 1 MiB: call it where blocking is allowed.
pub(crate) fn compress(hashes: Vec<[u8; 32]>, plain: &[u8]) -> EncodedFrame {
    // Setting a compressor up costs about as much as compressing a frame, and so does fresh memory for what it may write.
    thread_local! {
        static COMPRESSOR: RefCell<Option<(zstd::bulk::Compressor<'static>, Vec<u8>)>> =
            RefCell::new(zstd::bulk::Compressor::new(ZSTD_LEVEL).ok().map(|compressor| (compressor, Vec::new())));
    }
    let smaller = COMPRESSOR.with_borrow_mut(|compressor| {
        let (compressor, packed) = compressor.as_mut()?;
        packed.clear();
        packed.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let len = compressor.compress_to_buffer(plain, packed).ok()?;
        (len < plain.len()).then(|| packed[..len].to_vec())
    });
    let (codec, payload) = match smaller {
        Some(packed) => (Codec::Zstd, packed),
        None => (Codec::Plain, plain.to_vec()),
    };
    EncodedFrame { kind: FrameKind::Blocks, codec, hashes, payload }
}

/// A frame whose every byte was verified: `plain` is what `hashes` say.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) codec: Codec,
    pub(crate) hashes: Vec<[u8; 32]>,
    pub(crate) plain: Vec<u8>,
}

impl Frame {
    /// Decodes and verifies the bytes of one frame. The error says what is wrong with them. Costs about 1 ms for a full
    /// frame: call it where blocking is allowed.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < FRAME_HEADER_BYTES || &bytes[..4] != FRAME_MAGIC {
            return Err("it does not begin as a frame does".to_owned());
        }
        let kind = FrameKind::from_byte(bytes[4]).ok_or_else(|| format!("unknown kind {}", bytes[4]))?;
        let codec = match bytes[5] {
            0 => Codec::Plain,
            1 => Codec::Zstd,
            other => return Err(format!("unknown codec {other}")),
        };
        let count = usize::from(bytes[6]);
        let most = if kind == FrameKind::Blocks { MAX_FRAME_BLOCKS } else { 1 };
        if count == 0 || count > most {
            return Err(format!("it says that it has {count} blocks"));
        }
        let payload_at = FRAME_HEADER_BYTES + 32 * count;
        if le32(bytes, 12) as usize != bytes.len().saturating_sub(payload_at) {
            return Err(format!("its {} bytes are not as many as its header says", bytes.len()));
        }
        let hashes: Vec<_> = (0..count).map(|i| hash_at(bytes, FRAME_HEADER_BYTES + 32 * i)).collect();
        let payload = &bytes[payload_at..];
        let plain = match codec {
            Codec::Plain => payload.to_vec(),
            Codec::Zstd => zstd::bulk::decompress(payload, count * BLOCK_BYTES)
                .map_err(|error| format!("it does not decompress ({error})"))?,
        };
        match kind {
            FrameKind::Blocks => verify_blocks(&hashes, &plain)?,
            FrameKind::Page | FrameKind::Manifest if blake3::hash(&plain) != hashes[0] => {
                return Err("the table in it has another hash than its id".to_owned());
            }
            FrameKind::Page | FrameKind::Manifest => {}
        }
        Ok(Self { kind, codec, hashes, plain })
    }
}

/// Checks that `plain` is exactly the blocks of these hashes.
pub(crate) fn verify_blocks(hashes: &[[u8; 32]], plain: &[u8]) -> Result<(), String> {
    if plain.len() != hashes.len() * BLOCK_BYTES {
        return Err(format!("it holds {} bytes, not {} blocks", plain.len(), hashes.len()));
    }
    for (slot, (hash, block)) in hashes.iter().zip(plain.chunks_exact(BLOCK_BYTES)).enumerate() {
        if blake3::hash(block) != *hash {
            return Err(format!("block {slot} in it has another hash than its id"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let plain: Vec<u8> = (0..2 * BLOCK_BYTES).map(|i| (i / 700) as u8).collect();
        let hashes = plain.chunks(BLOCK_BYTES).map(|b| *blake3::hash(b).as_bytes()).collect();
        let mut bytes = Vec::new();
        compress(hashes, &plain).write(7, &mut bytes);
        bytes
    }

    #[test]
    fn frames_round_trip() {
        let bytes = frame();
        assert!(bytes.len() < BLOCK_BYTES);
        let frame = Frame::decode(&bytes).expect("decodes");
        assert_eq!((frame.codec, frame.hashes.len(), frame.plain.len()), (Codec::Zstd, 2, 2 * BLOCK_BYTES));
    }

    /// Every flipped bit is noticed, but for the two fields that carry nothing for a reader: the reserved byte and the
    /// frame's number.
    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = frame();
        for at in 0..good.len() {
            if at == 7 || (8..12).contains(&at) {
                continue;
            }
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            if let Ok(frame) = Frame::decode(&bad) {
                // A bit that the decompressor ignores; then the bytes are right nevertheless.
                assert_eq!(frame.plain, Frame::decode(&good).expect("good").plain, "byte {at}");
            }
        }
        assert!(Frame::decode(&good[..good.len() - 1]).is_err());
        assert!(Frame::decode(&[]).is_err());
    }
}
