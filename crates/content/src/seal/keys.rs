//! The keys of an encrypted store: one that new objects are sealed with, and older ones that still open what they sealed.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Keys of one ring. Each that does not fit costs a try.
const MAX_KEYS: usize = 16;
/// The largest file of keys.
const MAX_FILE_BYTES: u64 = 16 << 10;
/// Where the keys are if nobody says it: the path of a file, or the keys themselves, separated by commas.
const FILE_VARIABLE: &str = "TINTYPE_STORE_KEY_FILE";
const KEYS_VARIABLE: &str = "TINTYPE_STORE_KEY";

/// A key's name: the first 16 bytes of the BLAKE3 of its 32 bytes, as 32 hex digits in lower case. Tells nothing about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId([u8; 16]);

impl KeyId {
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for KeyId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0; 16];
        match hex::decode_to_slice(&text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err("a key id has 32 hex digits".to_owned()),
        }
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

/// A region's key: 32 bytes that nobody can guess, as `openssl rand -hex 32` makes them. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    id: KeyId,
    bytes: [u8; KEY_BYTES],
}

impl Key {
    /// Takes the bytes as they are.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
        Self { id: KeyId(id), bytes }
    }

    /// Its name.
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }
}

impl FromStr for Key {
    type Err = Error;

    /// Reads 64 hex digits, or base64 of 32 bytes. The error does not repeat the text.
    fn from_str(text: &str) -> Result<Self> {
        let decoded = match text.len() {
            64 => hex::decode(text).ok(),
            _ => STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok(),
        };
        let bytes = decoded.and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| Error::Key {
            reason: format!(
                "{} characters are not 32 bytes in hex or base64; `openssl rand -hex 32` makes some",
                text.len()
            ),
        })?;
        Ok(Self::from_bytes(bytes))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// What an encrypted store is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRing {
    current: Key,
    older: Vec<Key>,
}

impl KeyRing {
    /// `current` seals what is written; `older` ones only open what they sealed. 16 keys at most.
    pub fn new(current: Key, older: Vec<Key>) -> Result<Self> {
        if older.len() >= MAX_KEYS {
            return Err(Error::Key {
                reason: format!("{} are too many; {MAX_KEYS} are possible", older.len() + 1),
            });
        }
        Ok(Self { current, older })
    }

    /// Reads keys separated by lines or commas, the current one first. What follows a `#` on its line is a comment.
    pub fn from_text(text: &str) -> Result<Self> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let words = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty());
        let mut keys = words.map(str::parse).take(MAX_KEYS + 1).collect::<Result<Vec<Key>>>()?.into_iter();
        let current = keys.next().ok_or_else(|| Error::Key { reason: "there is none".to_owned() })?;
        Self::new(current, keys.collect())
    }

    /// Reads a file of them, which only its owner and group may read.
    pub fn from_file(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open the store's key file", path))?;
        let metadata = file.metadata().map_err(Error::io("read", path))?;
        let named = |reason: String| Error::Key { reason: format!("{}: {reason}", path.display()) };
        if metadata.permissions().mode() & 0o007 != 0 {
            return Err(named(
                "everybody on this host may read it; `chmod 600` it and use other keys".to_owned(),
            ));
        }
        let mut text = String::new();
        let read =
            file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(Error::io("read", path))?;
        if read as u64 > MAX_FILE_BYTES {
            return Err(named(format!("it is larger than {MAX_FILE_BYTES} bytes")));
        }
        Self::from_text(&text).map_err(|error| match error {
            Error::Key { reason } => named(reason),
            other => other,
        })
    }

    /// Those that `TINTYPE_STORE_KEY_FILE` or `TINTYPE_STORE_KEY` of this process's environment says, if one is set.
    pub fn from_env() -> Result<Option<Self>> {
        if let Some(path) = std::env::var_os(FILE_VARIABLE) {
            return Self::from_file(Path::new(&path)).map(Some);
        }
        match std::env::var(KEYS_VARIABLE) {
            Ok(text) => Self::from_text(&text).map(Some),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(Error::Key { reason: format!("{KEYS_VARIABLE} is not text") })
            }
        }
    }

    /// The one that seals.
    pub fn current(&self) -> &Key {
        &self.current
    }

    /// Whether a key of this id is in it.
    pub fn has(&self, id: KeyId) -> bool {
        self.find(id).is_some()
    }

    /// The one of this id.
    pub(crate) fn find(&self, id: KeyId) -> Option<&Key> {
        self.all().find(|key| key.id == id)
    }

    /// All of them, the current one first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.current).chain(&self.older)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_hex_and_base64() {
        let hex = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let key: Key = hex.parse().expect("hex");
        assert_eq!(base64.parse::<Key>().expect("base64"), key);
        assert_eq!(base64.trim_end_matches('=').parse::<Key>().expect("without padding"), key);
        assert_eq!(key.id().to_string(), blake3::hash(key.bytes()).to_hex()[..32]);
        assert_eq!(KeyId::try_from(key.id().to_string()).expect("id"), key.id());

        let other = "ff".repeat(32);
        let ring = KeyRing::from_text(&format!("# ours\n{hex} # now\n\n{other}\n")).expect("ring");
        assert_eq!(ring.current(), &key);
        assert!(ring.has(other.parse::<Key>().expect("hex").id()));
        assert_eq!(KeyRing::from_text(&format!("{hex},{other}")).expect("ring"), ring);
        let shown = format!("{ring:?}");
        assert!(!shown.contains("0102") && !shown.contains("ffff"), "{shown}");

        for wrong in ["", "# nothing", "abcd", &hex[1..], &format!("{hex}00"), &format!("{hex}\n").repeat(17)]
        {
            let error = KeyRing::from_text(wrong).expect_err(wrong).to_string();
            assert!(!error.contains("0102"), "{error}");
        }
    }

    #[test]
    fn a_key_file_is_not_for_everybody() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("key");
        std::fs::write(&path, "ff".repeat(32)).expect("write");
        let mode =
            |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        mode(0o600);
        KeyRing::from_file(&path).expect("ring");
        mode(0o604);
        let error = KeyRing::from_file(&path).expect_err("refused").to_string();
        assert!(error.contains("chmod"), "{error}");
    }
}
