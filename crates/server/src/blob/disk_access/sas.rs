//! The signature of disk access URLs: HMAC-SHA256 with a key of this service, which never leaves its file.
//!
//! URLs are kept without their signature (an operation's result is a row of the database) and signed when they are told.

use std::path::Path;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::managed_disk::{AccessMode, DiskAccess, ManagedDisk};
use serde_json::{Value, json};

use super::super::BlobQuery;
use super::ExportsError;
use crate::http::query::encode;
use crate::secret_file;

/// Bytes of the key.
const KEY_BYTES: usize = 32;
/// `sv`: the version of Azure's service whose URLs these look like (recorded).
const SERVICE_VERSION: &str = "2018-03-28";
/// Begins what is signed, so that no signature for another purpose fits.
const PURPOSE: &str = "tintype disk access 1";
/// The name of every disk's blob, as on Azure (recorded).
const BLOB: &str = "abcd";

/// The key.
pub(crate) struct SasKey(hmac::Key);

impl SasKey {
    /// Loads `{data_dir}/keys/disk-access.hex`, or makes it.
    pub(super) fn load(data_dir: &Path) -> Result<Self, ExportsError> {
        let folder = data_dir.join("keys");
        let path = folder.join("disk-access.hex");
        let file = |source| ExportsError::File { path: path.clone(), source };
        secret_file::create_folder(&folder).map_err(file)?;
        let text = match secret_file::read(&path).map_err(file)? {
            Some(text) => text,
            None => {
                let text = hex::encode(rand::random::<[u8; KEY_BYTES]>());
                secret_file::create(&path, &text).map_err(file)?;
                text
            }
        };
        let bytes = hex::decode(text.trim()).ok().filter(|bytes| bytes.len() == KEY_BYTES);
        let bytes = bytes.ok_or(ExportsError::Damaged { path })?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The operation's result for an access, still without the signature. `base` is the service's address.
    pub(crate) fn unsigned_result(base: &str, disk: &ManagedDisk, access: &DiskAccess) -> Value {
        let url = format!(
            "{base}{}?sv={SERVICE_VERSION}&sr=b&si={}&sp={}&se={}",
            path(disk, access),
            access.id,
            permission(access),
            encode(&expiry(access)),
        );
        json!({ "unsignedAccess": { "url": url, "signed": self::text(&path(disk, access), disk, access) } })
    }

    /// Signs the result of an operation that granted an access; any other is left as it is.
    pub(crate) fn sign_result(&self, result: Value) -> Value {
        let unsigned = &result["unsignedAccess"];
        let (Some(url), Some(text)) = (unsigned["url"].as_str(), unsigned["signed"].as_str()) else {
            return result;
        };
        let signature = STANDARD.encode(hmac::sign(&self.0, text.as_bytes()));
        arm::disk::render_access(&format!("{url}&sig={}", encode(&signature)))
    }

    /// Checks the URL of a request against the access that its `si` names.
    ///
    /// # Errors
    /// What does not hold.
    pub(super) fn verify(
        &self,
        request_path: &str,
        query: &BlobQuery,
        disk: &ManagedDisk,
        access: &DiskAccess,
    ) -> Result<(), &'static str> {
        let said = |name: &str| query.get(name).unwrap_or_default();
        let own_path = path(disk, access);
        let same = request_path.eq_ignore_ascii_case(&own_path)
            && said("sv") == SERVICE_VERSION
            && said("sr") == "b"
            && said("sp") == permission(access)
            && said("se") == expiry(access);
        let signature = STANDARD.decode(said("sig")).unwrap_or_default();
        let text = self::text(&own_path, disk, access);
        match same && hmac::verify(&self.0, text.as_bytes(), &signature).is_ok() {
            true => Ok(()),
            false => Err("The signature does not fit the URL; use the URL as it was given out."),
        }
    }
}

/// `/md-{disk}/{access}/abcd`.
fn path(disk: &ManagedDisk, access: &DiskAccess) -> String {
    let short = |id: uuid::Uuid| id.simple().to_string()[..12].to_owned();
    format!("/{}{}/{}/{BLOB}", super::PREFIX, short(disk.unique_id), short(access.id))
}

fn permission(access: &DiskAccess) -> &'static str {
    match access.mode {
        AccessMode::Read => "r",
        AccessMode::Write => "rw",
    }
}

fn expiry(access: &DiskAccess) -> String {
    access.expires.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What is signed: everything that the URL says, and the disk's generation of accesses.
fn text(path: &str, disk: &ManagedDisk, access: &DiskAccess) -> String {
    let (permission, expiry) = (permission(access), expiry(access));
    let (id, generation) = (access.id, disk.access_generation);
    format!("{PURPOSE}\n{path}\n{SERVICE_VERSION}\nb\n{id}\n{permission}\n{expiry}\n{generation}")
}
