//! The properties of disks and snapshots (2024-03-02).

use crate::shape::{Kind, Shape};

/// The newest version whose properties the shapes have.
pub(super) const KNOWN_UNTIL: (u16, u8, u8) = (2024, 3, 2);

pub(super) const DISK: Shape = Shape {
    name: "ResourceDefinition",
    fields: &[
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("sku", Kind::Object(&SKU)),
        ("zones", Kind::Kept),
        ("extendedLocation", Kind::Kept),
        ("properties", Kind::Object(&DISK_PROPERTIES)),
        ("managedBy", Kind::Dropped),
        ("managedByExtended", Kind::Dropped),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
        ("systemData", Kind::Dropped),
    ],
};

pub(super) const SNAPSHOT: Shape = Shape {
    name: "ResourceDefinition",
    fields: &[
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("sku", Kind::Object(&SKU)),
        ("extendedLocation", Kind::Kept),
        ("properties", Kind::Object(&SNAPSHOT_PROPERTIES)),
        ("managedBy", Kind::Dropped),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
        ("systemData", Kind::Dropped),
    ],
};

const SKU: Shape = Shape { name: "DiskSku", fields: &[("name", Kind::Typed), ("tier", Kind::Dropped)] };

const DISK_PROPERTIES: Shape = Shape {
    name: "DiskProperties",
    fields: &[
        ("timeCreated", Kind::Dropped),
        ("osType", Kind::Typed),
        ("hyperVGeneration", Kind::Typed),
        ("purchasePlan", Kind::Kept),
        ("supportedCapabilities", Kind::Object(&SUPPORTED_CAPABILITIES)),
        ("creationData", Kind::Object(&CREATION_DATA)),
        ("diskSizeGB", Kind::Typed),
        ("diskSizeBytes", Kind::Dropped),
        ("uniqueId", Kind::Dropped),
        ("encryptionSettingsCollection", Kind::Kept),
        ("provisioningState", Kind::Dropped),
        ("diskIOPSReadWrite", Kind::Typed),
        ("diskMBpsReadWrite", Kind::Typed),
        ("diskIOPSReadOnly", Kind::Kept),
        ("diskMBpsReadOnly", Kind::Kept),
        ("diskState", Kind::Dropped),
        ("encryption", Kind::Kept),
        ("maxShares", Kind::Kept),
        ("shareInfo", Kind::Dropped),
        ("networkAccessPolicy", Kind::Typed),
        ("diskAccessId", Kind::Kept),
        ("burstingEnabledTime", Kind::Dropped),
        ("tier", Kind::Typed),
        ("burstingEnabled", Kind::Kept),
        ("propertyUpdatesInProgress", Kind::Dropped),
        ("supportsHibernation", Kind::Kept),
        ("securityProfile", Kind::Kept),
        ("completionPercent", Kind::Dropped),
        ("publicNetworkAccess", Kind::Typed),
        ("dataAccessAuthMode", Kind::Typed),
        ("optimizedForFrequentAttach", Kind::Kept),
        ("LastOwnershipUpdateTime", Kind::Dropped),
    ],
};

const SNAPSHOT_PROPERTIES: Shape = Shape {
    name: "SnapshotProperties",
    fields: &[
        ("timeCreated", Kind::Dropped),
        ("osType", Kind::Typed),
        ("hyperVGeneration", Kind::Typed),
        ("purchasePlan", Kind::Kept),
        ("supportedCapabilities", Kind::Object(&SUPPORTED_CAPABILITIES)),
        ("creationData", Kind::Object(&CREATION_DATA)),
        ("diskSizeGB", Kind::Typed),
        ("diskSizeBytes", Kind::Dropped),
        ("diskState", Kind::Dropped),
        ("uniqueId", Kind::Dropped),
        ("encryptionSettingsCollection", Kind::Kept),
        ("provisioningState", Kind::Dropped),
        ("incremental", Kind::Typed),
        ("incrementalSnapshotFamilyId", Kind::Dropped),
        ("encryption", Kind::Kept),
        ("networkAccessPolicy", Kind::Typed),
        ("diskAccessId", Kind::Kept),
        ("securityProfile", Kind::Kept),
        ("supportsHibernation", Kind::Kept),
        ("publicNetworkAccess", Kind::Typed),
        ("completionPercent", Kind::Dropped),
        ("copyCompletionError", Kind::Dropped),
        ("dataAccessAuthMode", Kind::Typed),
    ],
};

const SUPPORTED_CAPABILITIES: Shape = Shape {
    name: "SupportedCapabilities",
    fields: &[
        ("diskControllerTypes", Kind::Kept),
        ("acceleratedNetwork", Kind::Kept),
        ("architecture", Kind::Typed),
    ],
};

const CREATION_DATA: Shape = Shape {
    name: "CreationData",
    fields: &[
        ("createOption", Kind::Typed),
        ("storageAccountId", Kind::Typed),
        ("imageReference", Kind::Object(&IMAGE_DISK_REFERENCE)),
        ("galleryImageReference", Kind::Object(&IMAGE_DISK_REFERENCE)),
        ("sourceUri", Kind::Typed),
        ("sourceResourceId", Kind::Typed),
        ("sourceUniqueId", Kind::Dropped),
        ("uploadSizeBytes", Kind::Typed),
        ("logicalSectorSize", Kind::Kept),
        ("securityDataUri", Kind::Kept),
        ("performancePlus", Kind::Kept),
        ("elasticSanResourceId", Kind::Kept),
        ("provisionedBandwidthCopySpeed", Kind::Kept),
    ],
};

const IMAGE_DISK_REFERENCE: Shape = Shape {
    name: "ImageDiskReference",
    fields: &[
        ("id", Kind::Typed),
        ("sharedGalleryImageId", Kind::Typed),
        ("communityGalleryImageId", Kind::Typed),
        ("lun", Kind::Typed),
    ],
};

pub(super) const GRANT_ACCESS_DATA: Shape = Shape {
    name: "GrantAccessData",
    fields: &[
        ("access", Kind::Typed),
        ("durationInSeconds", Kind::Typed),
        ("getSecureVMGuestStateSAS", Kind::Typed),
        ("fileFormat", Kind::Typed),
    ],
};
