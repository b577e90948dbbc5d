//! Where a disk of an image comes from: what the user wrote, and what it means.

use serde::{Deserialize, Serialize};

use crate::managed_disk::{URI_BYTES_MAX, resource};
use crate::reference::ResourceRef;
use crate::violation::{Rule, Violation};

/// What the user wrote: one of the three, kept as it was written, because clients send back what they read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDiskSource {
    /// `blobUri`; the query, which may hold a secret, goes once the bytes are stored.
    pub blob_uri: Option<String>,
    /// `managedDisk.id`.
    pub managed_disk: Option<String>,
    /// `snapshot.id`.
    pub snapshot: Option<String>,
}

/// Where the bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageDiskOrigin {
    /// A VHD at this address.
    Vhd(String),
    /// A managed disk.
    Disk(ResourceRef),
    /// A snapshot.
    Snapshot(ResourceRef),
}

impl ImageDiskSource {
    /// What it means. `path` is the disk's, for messages.
    ///
    /// # Errors
    /// What is missing or contradictory.
    pub fn origin(&self, path: &str) -> Result<ImageDiskOrigin, Violation> {
        match (&self.blob_uri, &self.managed_disk, &self.snapshot) {
            (Some(uri), None, None) => {
                if uri.len() > URI_BYTES_MAX || uri.chars().any(char::is_control) {
                    return Err(Violation::at(
                        Rule::Parameter,
                        format!("{path}.blobUri"),
                        format!("The blob URI has more than {URI_BYTES_MAX} bytes or a control character."),
                    ));
                }
                Ok(ImageDiskOrigin::Vhd(uri.clone()))
            }
            (None, Some(id), None) => {
                resource(id, &format!("{path}.managedDisk.id")).map(ImageDiskOrigin::Disk)
            }
            (None, None, Some(id)) => {
                resource(id, &format!("{path}.snapshot.id")).map(ImageDiskOrigin::Snapshot)
            }
            _ => Err(Violation::at(
                Rule::Parameter,
                path,
                format!("Exactly one of 'blobUri', 'managedDisk' and 'snapshot' must be given for {path}."),
            )),
        }
    }

    /// Whether it says the same; queries of URIs do not count, because answers do not show them.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let plain = |source: &Self| {
            let id =
                |id: &Option<String>| id.as_deref().map(|id| id.trim_start_matches('/').to_ascii_lowercase());
            (source.shown_uri().map(str::to_owned), id(&source.managed_disk), id(&source.snapshot))
        };
        plain(self) == plain(other)
    }

    /// The address without its query, which may hold a signature.
    pub fn shown_uri(&self) -> Option<&str> {
        self.blob_uri.as_deref().map(|uri| uri.split(['?', '#']).next().unwrap_or_default())
    }

    /// Forgets the query of the address: it was used.
    pub(super) fn forget_secret(&mut self) {
        self.blob_uri = self.shown_uri().map(str::to_owned);
    }

    /// The property that is written, for messages.
    pub(super) fn property(&self) -> &'static str {
        match (&self.blob_uri, &self.managed_disk, &self.snapshot) {
            (_, Some(_), _) => "managedDisk",
            (_, _, Some(_)) => "snapshot",
            _ => "blobUri",
        }
    }
}
