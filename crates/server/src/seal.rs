//! Secrets in the database: sealed with AES-256-GCM by a key that lies in the data folder, so that a copy of the database
//! alone gives nothing away.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::secret_file;

/// First byte of what is sealed: the form of the rest (nonce, ciphertext, tag).
const FORM: u8 = 1;
/// Length of the key in bytes.
const KEY_BYTES: usize = 32;

/// Why secrets cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The key file holds something else.
    #[error(
        "{path} holds no sealing key (64 hexadecimal digits); restore it: without it, account keys are lost"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The key of another data folder, or a changed database.
    #[error("a sealed secret cannot be opened; is {path} the key that it was sealed with?")]
    Open {
        /// The key file.
        path: PathBuf,
    },
    /// The cryptographic library refused.
    #[error("a secret cannot be sealed")]
    Seal,
}

/// Seals and opens.
#[derive(Debug)]
pub(crate) struct Sealer {
    path: PathBuf,
    key: LessSafeKey,
}

impl Sealer {
    /// Loads `{data_dir}/keys/seal.key`, or makes it.
    ///
    /// # Errors
    /// [`SealError`].
    pub(crate) fn load(data_dir: &Path) -> Result<Self, SealError> {
        let folder = data_dir.join("keys");
        let path = folder.join("seal.key");
        let file = |source| SealError::File { path: path.clone(), source };
        secret_file::create_folder(&folder).map_err(file)?;
        let text = match secret_file::read(&path).map_err(file)? {
            Some(text) => text,
            None => {
                let text = hex::encode(rand::random::<[u8; KEY_BYTES]>());
                secret_file::create(&path, &text).map_err(file)?;
                text
            }
        };
        let key = hex::decode(text.trim()).ok().and_then(|key| UnboundKey::new(&AES_256_GCM, &key).ok());
        let key = key.ok_or_else(|| SealError::Damaged { path: path.clone() })?;
        Ok(Self { path, key: LessSafeKey::new(key) })
    }

    /// Seals a secret. `purpose` says what it is the secret of; nothing sealed for one purpose opens for another.
    ///
    /// # Errors
    /// [`SealError::Seal`].
    pub(crate) fn seal(&self, purpose: &str, secret: &[u8]) -> Result<String, SealError> {
        // Random nonces collide after 2^32 seals, which is more keys than anyone has accounts.
        let nonce = rand::random::<[u8; NONCE_LEN]>();
        let mut sealed = secret.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| SealError::Seal)?;
        Ok(STANDARD.encode([&[FORM], &nonce[..], &sealed].concat()))
    }

    /// Opens what was sealed for `purpose`.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub(crate) fn open(&self, purpose: &str, sealed: &str) -> Result<Vec<u8>, SealError> {
        let open = || {
            let bytes = STANDARD.decode(sealed).ok()?;
            let (form, rest) = bytes.split_first()?;
            let (nonce, body) = rest.split_at_checked(NONCE_LEN).filter(|_| *form == FORM)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut body = body.to_vec();
            let aad = Aad::from(purpose.as_bytes());
            Some(self.key.open_in_place(nonce, aad, &mut body).ok()?.to_vec())
        };
        open().ok_or_else(|| SealError::Open { path: self.path.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_for_the_same_purpose() {
        let folder = tempfile::tempdir().unwrap();
        let sealer = Sealer::load(folder.path()).unwrap();
        let sealed = sealer.seal("a", b"secret").unwrap();
        assert_ne!(sealed, sealer.seal("a", b"secret").unwrap());
        assert!(!sealed.contains("secret"));
        let again = Sealer::load(folder.path()).unwrap();
        assert_eq!(again.open("a", &sealed).unwrap(), b"secret");
        assert!(again.open("b", &sealed).is_err());
        for at in [0, 5, 20] {
            let mut changed = STANDARD.decode(&sealed).unwrap();
            changed[at] ^= 1;
            assert!(again.open("a", &STANDARD.encode(changed)).is_err(), "byte {at}");
        }
        assert!(again.open("a", "").is_err());
        let other = tempfile::tempdir().unwrap();
        assert!(Sealer::load(other.path()).unwrap().open("a", &sealed).is_err());
        std::fs::write(folder.path().join("keys/seal.key"), "short").unwrap();
        assert!(Sealer::load(folder.path()).unwrap_err().to_string().contains("64 hexadecimal digits"));
    }
}
