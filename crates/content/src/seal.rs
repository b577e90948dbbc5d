//! Encryption at rest, as `docs/format.md` (Encryption) says: AES-256-GCM with a key for each pack and each other object,
//! derived from the region's key, so that no nonce is ever used twice with one key.
//!
//! ```text
//!   blocks → hashes → compressed frame ─ sealed here ─► pack ─► object store
//!   index segment ──────────────────────  sealed here ─────────► object store ─ opened ─► local mirror
//! ```

mod keys;
mod pages;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use bytes::Bytes;
use object_store::ObjectStoreExt;

pub use self::keys::{Key, KeyId, KeyRing};
pub use self::pages::{PAGE_FILE_HEADER_BYTES, PageSeal};
use crate::Error;
use crate::format::{FRAME_HEADER_BYTES, Location, PACK_HEADER_BYTES, le32, pack_key};
use crate::id::PackId;
use crate::store::{Store, pack_path};

/// Bytes that sealing adds to a frame: the tag.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes that sealing adds to another object.
pub(crate) const OBJECT_OVERHEAD_BYTES: usize = OBJECT_HEADER_BYTES + TAG_BYTES;

/// Version of what is authenticated along with a frame.
const VERSION: u32 = 1;
/// The flag of a sealed frame, in byte 7 of its header.
const FRAME_SEALED: u8 = 1;
const FLAGS_AT: usize = 7;
const PAYLOAD_LEN_AT: usize = 12;

const OBJECT_MAGIC: &[u8; 8] = b"TTSEAL\0\0";
const OBJECT_HEADER_BYTES: usize = 32;

/// Seals the frames of one new pack.
#[derive(Debug)]
pub(crate) struct FrameSealer {
    pack: PackId,
    key_id: KeyId,
    key: LessSafeKey,
}

impl FrameSealer {
    /// The key that it uses, for the pack's header.
    pub(crate) fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// Seals the encoded frame that `out` has from `start` to its end. Its number must be new to this pack.
    pub(crate) fn seal(&self, out: &mut Vec<u8>, start: usize) {
        let frame = &mut out[start..];
        let len = le32(frame, PAYLOAD_LEN_AT) + TAG_BYTES as u32;
        frame[PAYLOAD_LEN_AT..][..4].copy_from_slice(&len.to_le_bytes());
        frame[FLAGS_AT] |= FRAME_SEALED;
        let (header, content) = frame.split_at_mut(FRAME_HEADER_BYTES);
        let (nonce, data) = frame_context(&self.pack, header);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(data), content);
        // It fails for more than 64 GiB alone; a frame is a millionth of it.
        out.extend_from_slice(tag.expect("a frame is small").as_ref());
    }
}

/// Why something sealed was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotOpened {
    /// It is sealed, and there are no keys.
    NoKeys,
    /// It was changed; or it is a frame, which does not say its key, and that is not in the ring.
    NoKeyFits,
    /// It says that it is sealed with this key, which is not in the ring.
    KeyMissing(KeyId),
    /// Its header is not one.
    Unknown,
}

impl NotOpened {
    pub(crate) fn reason(self) -> String {
        let text = match self {
            Self::NoKeys => "it is encrypted, and the store's description does not say so",
            Self::NoKeyFits => "none of the store's keys opens it: it was changed",
            Self::KeyMissing(key_id) => {
                return format!("it is encrypted with key {key_id}, which was not given");
            }
            Self::Unknown => "it has flags that this program does not know",
        };
        text.to_owned()
    }
}

impl KeyRing {
    /// What seals the frames of a new pack.
    pub(crate) fn sealer(&self, pack: PackId) -> FrameSealer {
        let key = self.current();
        FrameSealer { pack, key_id: key.id(), key: derive(key, b"tintype pack\0", pack.as_bytes()) }
    }

    /// Seals the bytes of an object of this name, which has never had others.
    pub(crate) fn seal_object(&self, name: &str, bytes: &[u8]) -> Vec<u8> {
        let key = self.current();
        let mut sealed = Vec::with_capacity(bytes.len() + OBJECT_OVERHEAD_BYTES);
        sealed.extend_from_slice(OBJECT_MAGIC);
        sealed.extend_from_slice(&VERSION.to_le_bytes());
        sealed.extend_from_slice(&0_u32.to_le_bytes());
        sealed.extend_from_slice(key.id().as_bytes());
        let data = object_context(&sealed, name);
        sealed.extend_from_slice(bytes);
        let content = &mut sealed[OBJECT_HEADER_BYTES..];
        let tag = object_key(key, name).seal_in_place_separate_tag(zero_nonce(), Aad::from(data), content);
        // As above; the largest segment has 97 MiB.
        sealed.extend_from_slice(tag.expect("an object is small").as_ref());
        sealed
    }
}

/// The bytes of a frame as they were before they were sealed. One that was not sealed is as it is.
pub(crate) fn open_frame(keys: Option<&KeyRing>, pack: &PackId, bytes: Bytes) -> Result<Bytes, NotOpened> {
    // What is too short to be a frame is refused by who decodes it.
    let Some((header, content)) = bytes.split_at_checked(FRAME_HEADER_BYTES) else { return Ok(bytes) };
    match header[FLAGS_AT] {
        0 => return Ok(bytes),
        FRAME_SEALED => {}
        _ => return Err(NotOpened::Unknown),
    }
    let keys = keys.ok_or(NotOpened::NoKeys)?;
    for key in keys.all() {
        let key = derive(key, b"tintype pack\0", pack.as_bytes());
        let (nonce, data) = frame_context(pack, header);
        let mut content = content.to_vec();
        let Ok(plain) = key.open_in_place(nonce, Aad::from(data), &mut content) else { continue };
        let mut frame = Vec::with_capacity(bytes.len());
        frame.extend_from_slice(header);
        frame.extend_from_slice(plain);
        frame[FLAGS_AT] = 0;
        let len = le32(header, PAYLOAD_LEN_AT).saturating_sub(TAG_BYTES as u32);
        frame[PAYLOAD_LEN_AT..][..4].copy_from_slice(&len.to_le_bytes());
        return Ok(frame.into());
    }
    Err(NotOpened::NoKeyFits)
}

/// The bytes of an object as they were before they were sealed. One that was not sealed is as it is.
pub(crate) fn open_object(keys: Option<&KeyRing>, name: &str, bytes: Bytes) -> Result<Bytes, NotOpened> {
    let sealed =
        bytes.split_at_checked(OBJECT_HEADER_BYTES).filter(|(header, _)| header.starts_with(OBJECT_MAGIC));
    let Some((header, content)) = sealed else { return Ok(bytes) };
    if le32(header, 8) != VERSION {
        return Err(NotOpened::Unknown);
    }
    let mut key_id = [0; 16];
    key_id.copy_from_slice(&header[OBJECT_HEADER_BYTES - 16..]);
    let key_id = KeyId::from_bytes(key_id);
    let key = keys.and_then(|keys| keys.find(key_id)).ok_or(NotOpened::KeyMissing(key_id))?;
    let data = object_context(header, name);
    let mut content = content.to_vec();
    let opened = object_key(key, name).open_in_place(zero_nonce(), Aad::from(data), &mut content);
    let len = opened.map_err(|_| NotOpened::NoKeyFits)?.len();
    content.truncate(len);
    Ok(content.into())
}

impl Store {
    /// Says why a frame was not opened: its pack's header tells whether the key is missing, or the frame was changed.
    pub(crate) async fn not_opened(&self, why: NotOpened, location: &Location) -> Error {
        let Location { pack, offset, .. } = *location;
        let header = 0..u64::from(PACK_HEADER_BYTES) + 16;
        let key_id = match self.objects().get_range(&pack_path(&pack), header).await {
            Ok(header) => pack_key(&header),
            Err(_) => None,
        };
        match key_id
            .filter(|key_id| why != NotOpened::Unknown && !self.keys().is_some_and(|keys| keys.has(*key_id)))
        {
            Some(key_id) => Error::KeyNeeded { location: self.location().to_string(), key_id },
            None => Error::DamagedFrame { pack, offset, reason: why.reason() },
        }
    }
}

/// A frame's nonce is its number. What is authenticated with it: the pack, the version, and its header, which has the number.
fn frame_context(pack: &PackId, header: &[u8]) -> (Nonce, Vec<u8>) {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 4..].copy_from_slice(&header[8..12]);
    let data = [pack.as_bytes().as_slice(), &VERSION.to_le_bytes(), header].concat();
    (Nonce::assume_unique_for_key(nonce), data)
}

fn object_context(header: &[u8], name: &str) -> Vec<u8> {
    [header, name.as_bytes()].concat()
}

fn object_key(key: &Key, name: &str) -> LessSafeKey {
    derive(key, b"tintype object\0", name.as_bytes())
}

/// An object's key is for it alone.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

/// HKDF-SHA256 without a salt; `what` and `name` are its info.
pub(crate) fn derive(key: &Key, what: &[u8], name: &[u8]) -> LessSafeKey {
    let prk = Salt::new(HKDF_SHA256, &[]).extract(key.bytes());
    let info = [what, name];
    // It fails for more than 8160 bytes alone; a key has 32.
    let okm = prk.expand(&info, &AES_256_GCM).expect("a key is short");
    LessSafeKey::new(UnboundKey::from(okm))
}

/// As [`derive()`], bytes for another cipher; at most 255 times 32.
fn derive_bytes<const N: usize>(key: &Key, what: &[u8], name: &[u8]) -> [u8; N] {
    struct Bytes(usize);
    impl KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    let prk = Salt::new(HKDF_SHA256, &[]).extract(key.bytes());
    let mut bytes = [0; N];
    let info = [what, name];
    let okm = prk.expand(&info, Bytes(N)).and_then(|okm| okm.fill(&mut bytes));
    okm.expect("a few bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BLOCK_BYTES, EncodedFrame, Frame, compress};

    fn ring(seeds: &[u8]) -> KeyRing {
        let mut keys = seeds.iter().map(|seed| Key::from_bytes([*seed; 32]));
        KeyRing::new(keys.next().expect("a key"), keys.collect()).expect("ring")
    }

    fn frame() -> EncodedFrame {
        let plain: Vec<u8> = (0..2 * BLOCK_BYTES).map(|i| (i / 700) as u8).collect();
        let hashes = plain.chunks(BLOCK_BYTES).map(|b| *blake3::hash(b).as_bytes()).collect();
        compress(hashes, &plain)
    }

    fn sealed(keys: &KeyRing, pack: PackId, number: u32) -> Bytes {
        let mut out = b"before".to_vec();
        frame().write(number, &mut out);
        let sealer = keys.sealer(pack);
        sealer.seal(&mut out, 6);
        assert_eq!(out.len(), 6 + frame().len() as usize + TAG_BYTES);
        Bytes::from(out).slice(6..)
    }

    #[test]
    fn frames_open_as_they_were() {
        let pack = PackId::from_bytes([1; 16]);
        let mut plain = Vec::new();
        frame().write(3, &mut plain);
        let bytes = sealed(&ring(&[1]), pack, 3);
        // With the current key, and with an older one.
        for keys in [ring(&[1]), ring(&[2, 3, 1])] {
            let opened = open_frame(Some(&keys), &pack, bytes.clone()).expect("opens");
            assert_eq!(opened, plain);
            Frame::decode(&opened).expect("decodes");
        }
        assert_eq!(open_frame(None, &pack, plain.clone().into()).expect("as it is"), plain);
        assert_eq!(open_frame(None, &pack, bytes.clone()), Err(NotOpened::NoKeys));
        assert_eq!(open_frame(Some(&ring(&[2])), &pack, bytes.clone()), Err(NotOpened::NoKeyFits));
        // Not in another pack, and not under another number.
        let other = PackId::from_bytes([2; 16]);
        assert_eq!(open_frame(Some(&ring(&[1])), &other, bytes.clone()), Err(NotOpened::NoKeyFits));
        assert_ne!(bytes, sealed(&ring(&[1]), pack, 4));
    }

    #[test]
    fn every_flipped_bit_of_a_sealed_frame_is_noticed() {
        let pack = PackId::from_bytes([1; 16]);
        let keys = ring(&[1]);
        let good = sealed(&keys, pack, 3);
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << (at % 8);
            // Without its flag it is read as what was never sealed, and is not a frame then.
            let read = open_frame(Some(&keys), &pack, bad.into()).ok().map(|opened| Frame::decode(&opened));
            assert!(!matches!(read, Some(Ok(_))), "byte {at}");
        }
    }

    #[test]
    fn objects_open_as_they_were() {
        let keys = ring(&[1]);
        let sealed = Bytes::from(keys.seal_object("index/a", b"content"));
        assert_eq!(sealed.len(), 7 + OBJECT_OVERHEAD_BYTES);
        let rotated = ring(&[2, 1]);
        assert_eq!(open_object(Some(&rotated), "index/a", sealed.clone()).expect("opens"), "content");
        assert_eq!(open_object(None, "index/a", "plain".into()).expect("as it is"), "plain");
        let missing = Err(NotOpened::KeyMissing(keys.current().id()));
        assert_eq!(open_object(None, "index/a", sealed.clone()), missing);
        assert_eq!(open_object(Some(&ring(&[2])), "index/a", sealed.clone()), missing);
        assert_eq!(open_object(Some(&keys), "index/b", sealed.clone()), Err(NotOpened::NoKeyFits));
        for at in 0..sealed.len() {
            let mut bad = sealed.to_vec();
            bad[at] ^= 1;
            let opened = open_object(Some(&keys), "index/a", bad.into());
            assert!(opened.is_ok() == (at < 8), "byte {at}");
        }
    }
}
