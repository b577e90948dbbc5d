//! Files of pages that are written in place, in any order: AES-256-XTS for each page of 512 bytes, under a key for the file
//! alone (`docs/format.md`, Page files).
//!
//! This hides what is in the file, and nothing more: there is no place for a tag that could change together with its page in
//! one durable step, so that a page which was changed on the disk reads as other bytes, and one that was put back to what it
//! was earlier reads as what it was.

use std::fmt;

use aes::Aes256;
use aes::cipher::KeyInit;
use xts_mode::{Xts128, get_tweak_default};

use super::{Key, KeyRing, derive_bytes};
use crate::format::le32;
use crate::framed::{FramedError, choose_key};

/// Bytes in front of the first page: a block of a file system, so that holes stay holes.
pub const PAGE_FILE_HEADER_BYTES: usize = 4096;
/// Bytes of a page.
const PAGE_BYTES: usize = 512;

const MAGIC: &[u8; 8] = b"TTPAGES\0";
const VERSION: u32 = 1;
const SEALED: u32 = 1;
const KEY_ID_AT: usize = 16;
const SALT_AT: usize = 32;
const SALT_BYTES: usize = 16;
const CHECKSUM_AT: usize = 64;

/// How the pages of one file are stored: encrypted, or as they are.
pub struct PageSeal {
    cipher: Option<Xts128<Aes256>>,
}

impl PageSeal {
    /// For a new file, encrypted with the ring's current key if there is one; and the file's header. `name` says what the file
    /// is; only who knows it can open the file.
    #[must_use]
    pub fn new(keys: Option<&KeyRing>, name: &[u8]) -> (Self, [u8; PAGE_FILE_HEADER_BYTES]) {
        let key = keys.map(KeyRing::current);
        let mut header = [0; PAGE_FILE_HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&key.map_or(0, |_| SEALED).to_le_bytes());
        if let Some(key) = key {
            header[KEY_ID_AT..][..16].copy_from_slice(key.id().as_bytes());
        }
        header[SALT_AT..][..SALT_BYTES].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        let checksum = checksum(&header, name);
        header[CHECKSUM_AT..][..32].copy_from_slice(&checksum);
        (Self::of(key, &header, name), header)
    }

    /// For a file with this header. With keys it must be encrypted, with one of them; without it must not be.
    ///
    /// # Errors
    /// What is wrong with the header.
    pub fn open(
        header: &[u8; PAGE_FILE_HEADER_BYTES],
        keys: Option<&KeyRing>,
        name: &[u8],
    ) -> Result<Self, FramedError> {
        if !header.starts_with(MAGIC) {
            return Err(FramedError::Form("it does not begin as a file of pages does".to_owned()));
        }
        if header[CHECKSUM_AT..][..32] != checksum(header, name) {
            return Err(FramedError::Damaged("its header was changed, or it belongs elsewhere".to_owned()));
        }
        let flags = le32(header, 12);
        if le32(header, 8) != VERSION || flags & !SEALED != 0 {
            return Err(FramedError::Form("its version or its flags are not known".to_owned()));
        }
        let key = choose_key(keys, flags & SEALED != 0, &header[KEY_ID_AT..])?;
        Ok(Self::of(key, header, name))
    }

    fn of(key: Option<&Key>, header: &[u8], name: &[u8]) -> Self {
        let cipher = key.map(|key| {
            let info = [&header[SALT_AT..][..SALT_BYTES], name].concat();
            let bytes: [u8; 64] = derive_bytes(key, b"tintype pages\0", &info);
            let (data, tweak) = bytes.split_at(32);
            // Both halves have 32 bytes.
            let cipher = |half| Aes256::new_from_slice(half).expect("a key of 32 bytes");
            Xts128::new(cipher(data), cipher(tweak))
        });
        Self { cipher }
    }

    /// Whether pages are encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.cipher.is_some()
    }

    /// Makes whole pages, the first of them number `first`, what the file is to hold.
    pub fn encrypt(&self, first: u64, pages: &mut [u8]) {
        if let Some(cipher) = &self.cipher {
            cipher.encrypt_area(pages, PAGE_BYTES, first.into(), get_tweak_default);
        }
    }

    /// The other way. A page that the file has as zeros was never written, or cleared: it is zeros. (That a page of anything is
    /// encrypted to zeros has a chance of 2⁻⁴⁰⁹⁶.)
    pub fn decrypt(&self, first: u64, pages: &mut [u8]) {
        let Some(cipher) = &self.cipher else { return };
        for (number, page) in (first..).zip(pages.chunks_mut(PAGE_BYTES)) {
            if page.iter().any(|byte| *byte != 0) {
                cipher.decrypt_sector(page, get_tweak_default(number.into()));
            }
        }
    }
}

impl fmt::Debug for PageSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageSeal").field("encrypted", &self.is_encrypted()).finish_non_exhaustive()
    }
}

fn checksum(header: &[u8; PAGE_FILE_HEADER_BYTES], name: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(&header[..CHECKSUM_AT]).update(name).finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(seeds: &[u8]) -> KeyRing {
        let mut keys = seeds.iter().map(|seed| Key::from_bytes([*seed; 32]));
        KeyRing::new(keys.next().expect("a key"), keys.collect()).expect("ring")
    }

    #[test]
    fn pages_open_as_they_were_in_their_place_alone() {
        let (seal, header) = PageSeal::new(Some(&ring(&[1])), b"one");
        let plain: Vec<u8> = (0..4 * PAGE_BYTES).map(|at| (at % 251) as u8).collect();
        let mut pages = plain.clone();
        seal.encrypt(7, &mut pages);
        assert!(pages.chunks(PAGE_BYTES).zip(plain.chunks(PAGE_BYTES)).all(|(a, b)| a != b));
        for keys in [ring(&[1]), ring(&[2, 1])] {
            let again = PageSeal::open(&header, Some(&keys), b"one").expect("opens");
            let mut one = pages[PAGE_BYTES..2 * PAGE_BYTES].to_vec();
            again.decrypt(8, &mut one);
            assert_eq!(one, plain[PAGE_BYTES..2 * PAGE_BYTES]);
            again.decrypt(8, &mut pages[..PAGE_BYTES].to_vec());
        }
        let mut elsewhere = pages[..PAGE_BYTES].to_vec();
        seal.decrypt(8, &mut elsewhere);
        assert_ne!(elsewhere, plain[..PAGE_BYTES]);
        // The same bytes are others in another file.
        let (other, _) = PageSeal::new(Some(&ring(&[1])), b"one");
        let mut others = plain.clone();
        other.encrypt(7, &mut others);
        assert_ne!(others, pages);
        // Holes are zeros.
        let mut hole = [0; PAGE_BYTES];
        seal.decrypt(1, &mut hole);
        assert_eq!(hole, [0; PAGE_BYTES]);
    }

    #[test]
    fn headers_are_checked() {
        let key = ring(&[1]);
        let ((_, sealed), (_, plain)) = (PageSeal::new(Some(&key), b"one"), PageSeal::new(None, b"one"));
        assert!(!PageSeal::open(&plain, None, b"one").expect("opens").is_encrypted());
        assert!(matches!(PageSeal::open(&sealed, None, b"one"), Err(FramedError::KeyMissing(_))));
        assert!(matches!(
            PageSeal::open(&sealed, Some(&ring(&[2])), b"one"),
            Err(FramedError::KeyMissing(_))
        ));
        assert!(matches!(PageSeal::open(&plain, Some(&key), b"one"), Err(FramedError::Form(_))));
        assert!(matches!(PageSeal::open(&sealed, Some(&key), b"two"), Err(FramedError::Damaged(_))));
        assert!(matches!(PageSeal::open(&[7; 4096], None, b"one"), Err(FramedError::Form(_))));
        for at in 0..96 {
            let mut bad = sealed;
            bad[at] ^= 1;
            assert!(PageSeal::open(&bad, Some(&key), b"one").is_err(), "byte {at}");
        }
    }
}
