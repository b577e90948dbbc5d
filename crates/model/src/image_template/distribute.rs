//! Distributors: where the result of a build goes.

use serde::{Deserialize, Serialize};

use crate::image_version::StorageAccountType;
use crate::latest::VersionScheme;
use crate::names::RunOutputName;
use crate::reference::{ImageDefinitionRef, ResourceRef};
use crate::region::Region;
use crate::tags::Tags;
use crate::version_name::VersionName;

/// The image definition, and the version if the user fixed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTarget {
    /// The definition.
    pub definition: ImageDefinitionRef,
    /// `None`: numbered by the versioning scheme.
    pub version: Option<VersionName>,
}

/// One region of a shared image distributor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateTargetRegion {
    /// The region.
    pub region: Region,
    /// 1 by default.
    pub replica_count: u32,
    /// `None`: Standard_LRS.
    pub storage_account_type: Option<StorageAccountType>,
}

/// The regions that a shared image goes to. The two spellings exclude each other (RULES.md 2A).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// The older spelling.
    ReplicationRegions {
        /// `replicationRegions`; may be empty, which is the definition's own region.
        regions: Vec<Region>,
        /// `storageAccountType`.
        storage_account_type: Option<StorageAccountType>,
    },
    /// `targetRegions`.
    TargetRegions(Vec<TemplateTargetRegion>),
}

/// What a distributor makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistributorKind {
    /// A managed image.
    ManagedImage {
        /// Its id.
        image: ResourceRef,
        /// Its region.
        location: Region,
    },
    /// An image version.
    SharedImage {
        /// Of which definition.
        target: ImageTarget,
        /// In which regions.
        placement: Placement,
        /// Whether `latest` skips it.
        exclude_from_latest: bool,
        /// `None`: not written, which is `Latest`.
        versioning: Option<VersionScheme>,
    },
    /// A VHD.
    Vhd {
        /// `None`: in the staging storage account, lost with the template. Without its query, once accepted.
        uri: Option<String>,
        /// The query of `uri`, a SAS, sealed: this crate never sees it.
        sealed_query: Option<String>,
    },
}

/// One distributor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distributor {
    /// Distinct within the template.
    pub run_output_name: RunOutputName,
    /// Tags of the artifact.
    pub artifact_tags: Tags,
    /// What it makes.
    pub kind: DistributorKind,
}

impl Placement {
    /// The regions with their replicas and redundancy. `home` stands in when none is written.
    pub fn target_regions(&self, home: &Region) -> Vec<TemplateTargetRegion> {
        let region = |region: &Region, storage_account_type| TemplateTargetRegion {
            region: region.clone(),
            replica_count: 1,
            storage_account_type,
        };
        match self {
            Self::TargetRegions(regions) if regions.is_empty() => vec![region(home, None)],
            Self::TargetRegions(regions) => regions.clone(),
            Self::ReplicationRegions { regions, storage_account_type } if regions.is_empty() => {
                vec![region(home, *storage_account_type)]
            }
            Self::ReplicationRegions { regions, storage_account_type } => {
                regions.iter().map(|name| region(name, *storage_account_type)).collect()
            }
        }
    }
}
