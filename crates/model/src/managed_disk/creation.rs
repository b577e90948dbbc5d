//! Where a disk's bytes come from: what the user wrote, and what it means.
//!
//! The wire has one flat object for eleven ways. It is kept as it was written, because clients send back what they read;
//! [`CreationData::origin`] makes one typed value of it or says what is missing.

use serde::{Deserialize, Serialize};

use super::{DiskKind, resource};
use crate::reference::ResourceRef;
use crate::violation::{Rule, Violation};

/// Smallest VHD that is uploaded: 20 MiB and a footer (RULES.md 2.2).
pub const UPLOAD_BYTES_MIN: u64 = (20 << 20) + FOOTER_BYTES;
/// Largest VHD: 32,767 GiB and a footer (RULES.md 2.2).
pub const UPLOAD_BYTES_MAX: u64 = 35_183_298_347_520;
/// A VHD's footer.
pub const FOOTER_BYTES: u64 = 512;
/// Longest URI.
pub const URI_BYTES_MAX: usize = 4096;
const MIB: u64 = 1 << 20;

/// `createOption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreateOption {
    /// Zeros.
    Empty,
    /// A disk that is attached to a VM.
    Attach,
    /// From a platform image or a gallery image version.
    FromImage,
    /// From a VHD.
    Import,
    /// From a disk or snapshot.
    Copy,
    /// From a restore point.
    Restore,
    /// Written by the client.
    Upload,
    /// From a snapshot of another region.
    CopyStart,
    /// From a VHD with guest state.
    ImportSecure,
    /// Written by the client, with guest state.
    UploadPreparedSecure,
    /// From an Elastic SAN snapshot.
    CopyFromSanSnapshot,
}

/// An image that a disk is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImageReference {
    /// A platform image or a gallery image version.
    pub id: Option<String>,
    /// A shared gallery's image.
    pub shared_gallery_id: Option<String>,
    /// A community gallery's image.
    pub community_gallery_id: Option<String>,
    /// A data disk of it; `None`: its OS disk.
    pub lun: Option<u8>,
}

/// What the user wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreationData {
    /// Which way.
    pub option: CreateOption,
    /// `imageReference`.
    pub image: Option<DiskImageReference>,
    /// `galleryImageReference`.
    pub gallery_image: Option<DiskImageReference>,
    /// `sourceUri`; the query, which may hold a secret, goes once the bytes are stored.
    pub source_uri: Option<String>,
    /// `sourceResourceId`.
    pub source_resource: Option<String>,
    /// `storageAccountId`.
    pub storage_account: Option<String>,
    /// `uploadSizeBytes`.
    pub upload_bytes: Option<u64>,
}

/// Where the bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskOrigin {
    /// Zeros.
    Empty,
    /// The client uploads a VHD of so many bytes, footer included.
    Upload {
        /// Its length.
        bytes: u64,
    },
    /// A VHD at this address.
    Import(String),
    /// A disk or snapshot; from another region if `far`.
    Copy {
        /// The disk or snapshot.
        source: ResourceRef,
        /// `CopyStart`.
        far: bool,
    },
    /// An image.
    Image {
        /// Which.
        id: ImageId,
        /// A data disk of it; `None`: its OS disk.
        lun: Option<u8>,
    },
}

/// An image, by the kind of its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageId {
    /// A platform image version.
    Platform {
        /// Publisher.
        publisher: String,
        /// Offer.
        offer: String,
        /// SKU.
        sku: String,
        /// Version.
        version: String,
    },
    /// Anything else: a gallery image version.
    Resource(ResourceRef),
}

impl CreationData {
    /// What it means.
    ///
    /// # Errors
    /// What is missing, contradictory, or not done by this service.
    pub fn origin(&self, kind: DiskKind) -> Result<DiskOrigin, Violation> {
        match self.option {
            CreateOption::Empty => Ok(DiskOrigin::Empty),
            CreateOption::Upload if kind == DiskKind::Disk => self.upload(),
            CreateOption::Import => {
                let uri = required(self.source_uri.as_deref(), "creationData.sourceUri")?;
                if uri.len() > URI_BYTES_MAX || uri.chars().any(char::is_control) {
                    return Err(Violation::at(
                        Rule::Parameter,
                        "creationData.sourceUri",
                        format!("The source URI has more than {URI_BYTES_MAX} bytes or a control character."),
                    ));
                }
                Ok(DiskOrigin::Import(uri.to_owned()))
            }
            CreateOption::Copy => self.copy(false),
            CreateOption::CopyStart if kind == DiskKind::Snapshot => self.copy(true),
            CreateOption::FromImage if kind == DiskKind::Disk => self.image(),
            option => Err(Violation::at(
                Rule::Parameter,
                "creationData.createOption",
                format!(
                    "The createOption '{option:?}' is not supported for a {} by this service. Supported are: {}.",
                    kind.name(),
                    match kind {
                        DiskKind::Disk => "Empty, Upload, Import, Copy, FromImage",
                        DiskKind::Snapshot => "Empty, Import, Copy, CopyStart",
                    }
                ),
            )),
        }
    }

    /// Whether it says the same; queries of URIs do not count, because answers do not show them.
    pub fn is_same(&self, other: &Self) -> bool {
        let plain = |data: &Self| Self {
            source_uri: data.shown_uri().map(str::to_owned),
            source_resource: data.source_resource.as_ref().map(|id| id.to_ascii_lowercase()),
            ..data.clone()
        };
        plain(self) == plain(other)
    }

    /// The source's address without its query, which may hold a signature.
    pub fn shown_uri(&self) -> Option<&str> {
        self.source_uri.as_deref().map(|uri| uri.split(['?', '#']).next().unwrap_or_default())
    }

    /// Forgets the query of the source's address: it was used.
    pub fn forget_secret(&mut self) {
        self.source_uri = self.shown_uri().map(str::to_owned);
    }

    fn upload(&self) -> Result<DiskOrigin, Violation> {
        let target = "creationData.uploadSizeBytes";
        let bytes = required(self.upload_bytes, target)?;
        if !(UPLOAD_BYTES_MIN..=UPLOAD_BYTES_MAX).contains(&bytes) {
            let (min, max) = (UPLOAD_BYTES_MIN as i64, UPLOAD_BYTES_MAX as i64);
            return Err(Violation::out_of_range(target, i64::try_from(bytes).unwrap_or(i64::MAX), min, max));
        }
        let disk = bytes - FOOTER_BYTES;
        if !disk.is_multiple_of(MIB) {
            return Err(Violation::at(
                Rule::BadRequest,
                target,
                format!(
                    "The upload size in bytes {bytes} - {FOOTER_BYTES} bytes for the VHD footer ({disk} in this case) must be a \
                     multiple of MiB."
                ),
            ));
        }
        Ok(DiskOrigin::Upload { bytes })
    }

    fn copy(&self, far: bool) -> Result<DiskOrigin, Violation> {
        let target = "creationData.sourceResourceId";
        let id = required(self.source_resource.as_deref(), target)?;
        Ok(DiskOrigin::Copy { source: resource(id, target)?, far })
    }

    fn image(&self) -> Result<DiskOrigin, Violation> {
        let (reference, target) = match (&self.image, &self.gallery_image) {
            (Some(image), None) => (image, "creationData.imageReference"),
            (None, Some(image)) => (image, "creationData.galleryImageReference"),
            (Some(_), Some(_)) => {
                return Err(Violation::at(
                    Rule::Parameter,
                    "creationData",
                    "Only one of 'imageReference' and 'galleryImageReference' can be given.",
                ));
            }
            (None, None) => return Err(missing("creationData.imageReference")),
        };
        if reference.shared_gallery_id.is_some() || reference.community_gallery_id.is_some() {
            return Err(Violation::at(
                Rule::Parameter,
                target,
                format!(
                    "Images of shared and community galleries are not supported as '{target}' by this service: give the id of the \
                     gallery image version."
                ),
            ));
        }
        let id = required(reference.id.as_deref(), &format!("{target}.id"))?;
        let id = match platform_image(id) {
            Some(image) => image,
            None => ImageId::Resource(resource(id, &format!("{target}.id"))?),
        };
        Ok(DiskOrigin::Image { id, lun: reference.lun })
    }
}

/// `/Subscriptions/{s}/Providers/Microsoft.Compute/Locations/{l}/Publishers/{p}/ArtifactTypes/VMImage/Offers/{o}/Skus/{k}/Versions/{v}`.
fn platform_image(id: &str) -> Option<ImageId> {
    let parts: Vec<&str> = id.trim_matches('/').split('/').collect();
    let is = |at: usize, word: &str| parts.get(at).is_some_and(|part: &&str| part.eq_ignore_ascii_case(word));
    let keys = [
        (0, "subscriptions"),
        (2, "providers"),
        (3, "Microsoft.Compute"),
        (4, "locations"),
        (6, "publishers"),
        (8, "artifacttypes"),
        (9, "vmimage"),
        (10, "offers"),
        (12, "skus"),
        (14, "versions"),
    ];
    if parts.len() != 16 || !keys.iter().all(|(at, word)| is(*at, word)) {
        return None;
    }
    let part = |at: usize| parts[at].to_owned();
    Some(ImageId::Platform { publisher: part(7), offer: part(11), sku: part(13), version: part(15) })
}

fn required<T>(value: Option<T>, target: &str) -> Result<T, Violation> {
    value.ok_or_else(|| missing(target))
}

fn missing(target: &str) -> Violation {
    Violation::at(Rule::Parameter, target, format!("Required parameter '{target}' is missing (null)."))
}
