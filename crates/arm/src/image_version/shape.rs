//! The properties of an image version.

use crate::shape::{Kind, Shape};

pub(super) const SHAPE: Shape = Shape {
    name: "ResourceDefinition",
    fields: &[
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("properties", Kind::Object(&PROPERTIES)),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
        ("systemData", Kind::Dropped),
    ],
};

const PROPERTIES: Shape = Shape {
    name: "GalleryImageVersionProperties",
    fields: &[
        ("publishingProfile", Kind::Object(&PUBLISHING_PROFILE)),
        ("provisioningState", Kind::Dropped),
        ("storageProfile", Kind::Object(&STORAGE_PROFILE)),
        ("safetyProfile", Kind::Object(&SAFETY_PROFILE)),
        ("replicationStatus", Kind::Dropped),
        ("securityProfile", Kind::Kept),
        ("restore", Kind::Dropped),
        ("validationsProfile", Kind::Dropped),
        ("imageMetadataProfiles", Kind::Dropped),
    ],
};

const PUBLISHING_PROFILE: Shape = Shape {
    name: "GalleryImageVersionPublishingProfile",
    fields: &[
        ("targetRegions", Kind::List(&TARGET_REGION)),
        ("replicaCount", Kind::Typed),
        ("excludeFromLatest", Kind::Typed),
        ("publishedDate", Kind::Dropped),
        ("endOfLifeDate", Kind::Typed),
        ("storageAccountType", Kind::Typed),
        ("storageAccountStrategy", Kind::Kept),
        ("replicationMode", Kind::Typed),
        ("targetExtendedLocations", Kind::Kept),
    ],
};

const TARGET_REGION: Shape = Shape {
    name: "TargetRegion",
    fields: &[
        ("name", Kind::Typed),
        ("regionalReplicaCount", Kind::Typed),
        ("storageAccountType", Kind::Typed),
        ("encryption", Kind::Kept),
        ("excludeFromLatest", Kind::Typed),
        ("additionalReplicaSets", Kind::Kept),
    ],
};

const STORAGE_PROFILE: Shape = Shape {
    name: "GalleryImageVersionStorageProfile",
    fields: &[
        ("source", Kind::Object(&SOURCE)),
        ("osDiskImage", Kind::Object(&OS_DISK_IMAGE)),
        ("dataDiskImages", Kind::List(&DATA_DISK_IMAGE)),
    ],
};

const SOURCE: Shape = Shape {
    name: "GalleryArtifactVersionFullSource",
    fields: &[
        ("id", Kind::Typed),
        ("communityGalleryImageId", Kind::Typed),
        ("virtualMachineId", Kind::Typed),
    ],
};

const OS_DISK_IMAGE: Shape = Shape {
    name: "GalleryOSDiskImage",
    fields: &[
        ("sizeInGB", Kind::Dropped),
        ("hostCaching", Kind::Typed),
        ("source", Kind::Object(&DISK_SOURCE)),
    ],
};

const DATA_DISK_IMAGE: Shape = Shape {
    name: "GalleryDataDiskImage",
    fields: &[
        ("sizeInGB", Kind::Dropped),
        ("hostCaching", Kind::Typed),
        ("source", Kind::Object(&DISK_SOURCE)),
        ("lun", Kind::Typed),
    ],
};

const DISK_SOURCE: Shape = Shape {
    name: "GalleryDiskImageSource",
    fields: &[("id", Kind::Typed), ("uri", Kind::Typed), ("storageAccountId", Kind::Typed)],
};

const SAFETY_PROFILE: Shape = Shape {
    name: "GalleryImageVersionSafetyProfile",
    fields: &[
        ("allowDeletionOfReplicatedLocations", Kind::Typed),
        ("reportedForPolicyViolation", Kind::Dropped),
        ("policyViolations", Kind::Dropped),
        ("blockDeletionBeforeEndOfLife", Kind::Typed),
    ],
};
