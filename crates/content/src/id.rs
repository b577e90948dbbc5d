//! Names: what is content-addressed is named by BLAKE3, what is not by 128 random bits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 32-byte BLAKE3 id, written as 64 lower-case hex digits. Each kind is its own type.
macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            pub(crate) fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The hash itself.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hash_id! {
    /// A block's id: the hash of its 64 KiB of plaintext.
    BlockHash
}
hash_id! {
    /// A page's id: the hash of its encoding.
    PageId
}
hash_id! {
    /// An image's id: the hash of its manifest. The same disk has the same id in every store.
    #[derive(Serialize, Deserialize)]
    #[serde(try_from = "String", into = "String")]
    ManifestId
}

/// A text that is not an id.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an id: an image's has 64 hex digits in lower case")]
pub struct ParseIdError(String);

impl FromStr for ManifestId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        match blake3::Hash::from_hex(text) {
            Ok(hash) if lower => Ok(Self::from_bytes(*hash.as_bytes())),
            _ => Err(ParseIdError(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for ManifestId {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ManifestId> for String {
    fn from(id: ManifestId) -> Self {
        id.to_string()
    }
}

/// A pack's id: 16 random bytes, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId([u8; 16]);

impl PackId {
    /// A new pack's id: the first half is its writer's, the rest is random.
    pub(crate) fn of_writer(writer: &WriterId) -> Self {
        let mut id = uuid::Uuid::new_v4().into_bytes();
        id[..8].copy_from_slice(&writer.0[..8]);
        Self(id)
    }

    /// Whether this writer made the pack.
    pub(crate) fn is_of(&self, writer: &WriterId) -> bool {
        self.0[..8] == writer.0[..8]
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PackId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex16(text).map(Self)
    }
}

/// The id of one write that is under way: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct WriterId([u8; 16]);

impl WriterId {
    pub(crate) fn random() -> Self {
        Self(uuid::Uuid::new_v4().into_bytes())
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for WriterId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex16(text).map(Self)
    }
}

/// 32 hex digits in lower case.
fn parse_hex16(text: &str) -> Result<[u8; 16], ParseIdError> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match u128::from_str_radix(text, 16) {
        Ok(number) if digits => Ok(number.to_be_bytes()),
        _ => Err(ParseIdError(text.chars().take(80).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = ManifestId::of(b"x");
        assert_eq!(id.to_string().parse::<ManifestId>().expect("an id"), id);
        for wrong in ["", "xyz", &id.to_string()[1..], &id.to_string().to_uppercase()] {
            assert!(wrong.parse::<ManifestId>().is_err(), "{wrong}");
        }
        assert_eq!(PackId::from_bytes([1; 16]).to_string(), "01".repeat(16));
    }
}
