//! The properties of managed images (2024-07-01).

use crate::shape::{Kind, Shape};

/// The newest version whose properties the shapes have.
pub(super) const KNOWN_UNTIL: (u16, u8, u8) = (2024, 7, 1);

pub(super) const SHAPE: Shape = Shape {
    name: "ResourceDefinition",
    fields: &[
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("extendedLocation", Kind::Kept),
        ("properties", Kind::Object(&PROPERTIES)),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
        ("systemData", Kind::Dropped),
    ],
};

const PROPERTIES: Shape = Shape {
    name: "ImageProperties",
    fields: &[
        ("sourceVirtualMachine", Kind::Object(&SUB_RESOURCE)),
        ("storageProfile", Kind::Object(&STORAGE_PROFILE)),
        ("provisioningState", Kind::Dropped),
        ("hyperVGeneration", Kind::Typed),
    ],
};

const STORAGE_PROFILE: Shape = Shape {
    name: "ImageStorageProfile",
    fields: &[
        ("osDisk", Kind::Object(&OS_DISK)),
        ("dataDisks", Kind::List(&DATA_DISK)),
        ("zoneResilient", Kind::Typed),
    ],
};

const OS_DISK: Shape = Shape {
    name: "ImageOSDisk",
    fields: &[
        ("snapshot", Kind::Object(&SUB_RESOURCE)),
        ("managedDisk", Kind::Object(&SUB_RESOURCE)),
        ("blobUri", Kind::Typed),
        ("caching", Kind::Typed),
        ("diskSizeGB", Kind::Typed),
        ("storageAccountType", Kind::Typed),
        ("diskEncryptionSet", Kind::Kept),
        ("osType", Kind::Typed),
        ("osState", Kind::Typed),
    ],
};

const DATA_DISK: Shape = Shape {
    name: "ImageDataDisk",
    fields: &[
        ("snapshot", Kind::Object(&SUB_RESOURCE)),
        ("managedDisk", Kind::Object(&SUB_RESOURCE)),
        ("blobUri", Kind::Typed),
        ("caching", Kind::Typed),
        ("diskSizeGB", Kind::Typed),
        ("storageAccountType", Kind::Typed),
        ("diskEncryptionSet", Kind::Kept),
        ("lun", Kind::Typed),
    ],
};

const SUB_RESOURCE: Shape = Shape { name: "SubResource", fields: &[("id", Kind::Typed)] };
