//! Saved machine states: compressed, encrypted, and authenticated frame by frame before QEMU sees a byte.
//!
//! A state holds the guest's whole memory, so it is as secret as its disk. The container is
//! `magic, frame*`: a frame is a 4-byte little-endian length and an AES-256-GCM box over one zstd-compressed
//! chunk. Nonce = frame number, associated data = format and whether the frame is the last, so frames
//! cannot be reordered, cut off or moved to another file (each file has its own key).

use std::io::{self, Read, Write};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::MachineError;

const MAGIC: &[u8; 8] = b"TTSTATE1";
const CHUNK_BYTES: usize = 4 << 20;
/// Bound for a stored frame: incompressible data grows a little.
const FRAME_BYTES_MAX: usize = CHUNK_BYTES + (64 << 10);
/// Level 1: the guest waits while its memory is written.
const ZSTD_LEVEL: i32 = 1;

/// Key of one saved state. It is kept beside the cache entry, readable by the server alone.
#[derive(Clone, Serialize, Deserialize)]
pub struct StateKey([u8; 32]);

impl std::fmt::Debug for StateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StateKey(…)")
    }
}

impl StateKey {
    /// A new random key.
    ///
    /// # Errors
    /// When the operating system has no randomness.
    pub fn generate() -> Result<Self, MachineError> {
        let mut key = [0; 32];
        SystemRandom::new()
            .fill(&mut key)
            .map_err(|_| MachineError::State { reason: "no randomness for its key".into() })?;
        Ok(Self(key))
    }

    fn aead(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.0).expect("AES-256 keys have 32 bytes"))
    }
}

/// Copies a migration stream into the container. Returns the bytes written.
pub(crate) fn seal(mut from: impl Read, mut to: impl Write, key: &StateKey) -> io::Result<u64> {
    let aead = key.aead();
    to.write_all(MAGIC)?;
    let mut written = MAGIC.len() as u64;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    for number in 0.. {
        chunk.clear();
        from.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        let last = chunk.len() < CHUNK_BYTES;
        let mut frame = zstd::bulk::compress(&chunk, ZSTD_LEVEL)?;
        aead.seal_in_place_append_tag(nonce(number), associated(last), &mut frame)
            .map_err(|_| io::Error::other("encryption failed"))?;
        to.write_all(&u32::try_from(frame.len()).expect("bounded by FRAME_BYTES_MAX").to_le_bytes())?;
        to.write_all(&frame)?;
        written += 4 + frame.len() as u64;
        if last {
            break;
        }
    }
    to.flush()?;
    Ok(written)
}

/// Copies the container's verified content out.
pub(crate) fn open(mut from: impl Read, mut to: impl Write, key: &StateKey) -> Result<(), MachineError> {
    let bad = |reason: &str| MachineError::State { reason: reason.into() };
    let aead = key.aead();
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic).map_err(|_| bad("it is shorter than its header"))?;
    if &magic != MAGIC {
        return Err(bad("it does not begin with TTSTATE1"));
    }
    let mut frame = Vec::new();
    for number in 0.. {
        let mut length = [0; 4];
        from.read_exact(&mut length).map_err(|_| bad("it was cut off"))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(bad("a frame is longer than frames can be"));
        }
        frame.resize(length, 0);
        from.read_exact(&mut frame).map_err(|_| bad("it was cut off"))?;
        // The flag is not stored: try the common case first on a copy, since opening destroys the box.
        let mut copy = frame.clone();
        let (plain, last) = match aead.open_in_place(nonce(number), associated(false), &mut copy) {
            Ok(plain) => (&*plain, false),
            Err(_) => {
                let plain = aead
                    .open_in_place(nonce(number), associated(true), &mut frame)
                    .map_err(|_| bad("a frame was changed or belongs to another state"))?;
                (&*plain, true)
            }
        };
        let chunk =
            zstd::bulk::decompress(plain, CHUNK_BYTES).map_err(|_| bad("a frame does not decompress"))?;
        to.write_all(&chunk).map_err(MachineError::io("hand a saved state to QEMU"))?;
        if last {
            return to.flush().map_err(MachineError::io("hand a saved state to QEMU"));
        }
    }
    unreachable!("the loop ends with the last frame or an error")
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn associated(last: bool) -> Aad<[u8; 9]> {
    let mut data = [0; 9];
    data[..8].copy_from_slice(MAGIC);
    data[8] = u8::from(last);
    Aad::from(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(data: &[u8], key: &StateKey) -> Vec<u8> {
        let mut out = Vec::new();
        seal(data, &mut out, key).unwrap();
        out
    }

    #[test]
    fn what_goes_in_comes_out() {
        let key = StateKey::generate().unwrap();
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5] {
            let data: Vec<u8> = (0..length).map(|n| (n * 7 / 3) as u8).collect();
            let mut back = Vec::new();
            open(sealed(&data, &key).as_slice(), &mut back, &key).unwrap();
            assert!(back == data, "{length} bytes");
        }
    }

    #[test]
    fn damage_truncation_and_foreign_keys_are_refused() {
        let key = StateKey::generate().unwrap();
        let data = vec![7; CHUNK_BYTES + 100];
        let good = sealed(&data, &key);
        let refuse = |bytes: &[u8], key: &StateKey| {
            assert!(matches!(open(bytes, io::sink(), key), Err(MachineError::State { .. })));
        };
        refuse(&good, &StateKey::generate().unwrap());
        for cut in [0, 7, 8, 10, good.len() / 2, good.len() - 1] {
            refuse(&good[..cut], &key);
        }
        for at in [0, 9, 20, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            refuse(&bad, &key);
        }
    }
}
