//! The properties of a virtual machine. Whole branches that we only give back are not looked into.

use crate::shape::{Kind, Shape};

pub(super) const SHAPE: Shape = Shape {
    name: "ResourceDefinition",
    fields: &[
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("plan", Kind::Kept),
        ("properties", Kind::Object(&PROPERTIES)),
        ("identity", Kind::Kept),
        ("zones", Kind::Kept),
        ("extendedLocation", Kind::Kept),
        ("resources", Kind::Dropped),
        ("managedBy", Kind::Dropped),
        ("etag", Kind::Dropped),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
        ("systemData", Kind::Dropped),
    ],
};

const PROPERTIES: Shape = Shape {
    name: "VirtualMachineProperties",
    fields: &[
        ("hardwareProfile", Kind::Object(&HARDWARE_PROFILE)),
        ("scheduledEventsPolicy", Kind::Kept),
        ("storageProfile", Kind::Object(&STORAGE_PROFILE)),
        ("additionalCapabilities", Kind::Kept),
        ("osProfile", Kind::Object(&OS_PROFILE)),
        ("networkProfile", Kind::Kept),
        ("securityProfile", Kind::Object(&SECURITY_PROFILE)),
        ("diagnosticsProfile", Kind::Kept),
        ("availabilitySet", Kind::Kept),
        ("virtualMachineScaleSet", Kind::Kept),
        ("proximityPlacementGroup", Kind::Kept),
        ("priority", Kind::Kept),
        ("evictionPolicy", Kind::Kept),
        ("billingProfile", Kind::Kept),
        ("host", Kind::Kept),
        ("hostGroup", Kind::Kept),
        ("provisioningState", Kind::Dropped),
        ("instanceView", Kind::Dropped),
        ("licenseType", Kind::Kept),
        ("vmId", Kind::Dropped),
        ("extensionsTimeBudget", Kind::Kept),
        ("platformFaultDomain", Kind::Kept),
        ("scheduledEventsProfile", Kind::Kept),
        ("userData", Kind::Typed),
        ("capacityReservation", Kind::Kept),
        ("applicationProfile", Kind::Kept),
        ("timeCreated", Kind::Dropped),
    ],
};

const HARDWARE_PROFILE: Shape =
    Shape { name: "HardwareProfile", fields: &[("vmSize", Kind::Typed), ("vmSizeProperties", Kind::Kept)] };

const STORAGE_PROFILE: Shape = Shape {
    name: "StorageProfile",
    fields: &[
        ("imageReference", Kind::Object(&IMAGE_REFERENCE)),
        ("osDisk", Kind::Object(&OS_DISK)),
        ("dataDisks", Kind::List(&DATA_DISK)),
        ("diskControllerType", Kind::Kept),
    ],
};

const IMAGE_REFERENCE: Shape = Shape {
    name: "ImageReference",
    fields: &[
        ("id", Kind::Typed),
        ("publisher", Kind::Typed),
        ("offer", Kind::Typed),
        ("sku", Kind::Typed),
        ("version", Kind::Typed),
        ("exactVersion", Kind::Dropped),
        ("sharedGalleryImageId", Kind::Typed),
        ("communityGalleryImageId", Kind::Typed),
    ],
};

const OS_DISK: Shape = Shape {
    name: "OSDisk",
    fields: &[
        ("osType", Kind::Typed),
        ("encryptionSettings", Kind::Kept),
        ("name", Kind::Typed),
        ("vhd", Kind::Kept),
        ("image", Kind::Kept),
        ("caching", Kind::Typed),
        ("writeAcceleratorEnabled", Kind::Kept),
        ("diffDiskSettings", Kind::Kept),
        ("createOption", Kind::Typed),
        ("diskSizeGB", Kind::Typed),
        ("managedDisk", Kind::Object(&MANAGED_DISK)),
        ("deleteOption", Kind::Typed),
    ],
};

const DATA_DISK: Shape = Shape {
    name: "DataDisk",
    fields: &[
        ("lun", Kind::Typed),
        ("name", Kind::Typed),
        ("vhd", Kind::Kept),
        ("image", Kind::Kept),
        ("caching", Kind::Typed),
        ("writeAcceleratorEnabled", Kind::Kept),
        ("createOption", Kind::Typed),
        ("diskSizeGB", Kind::Typed),
        ("managedDisk", Kind::Object(&MANAGED_DISK)),
        ("sourceResource", Kind::Kept),
        ("toBeDetached", Kind::Kept),
        ("diskIOPSReadWrite", Kind::Kept),
        ("diskMBpsReadWrite", Kind::Kept),
        ("detachOption", Kind::Kept),
        ("deleteOption", Kind::Typed),
    ],
};

const MANAGED_DISK: Shape = Shape {
    name: "ManagedDiskParameters",
    fields: &[
        ("id", Kind::Kept),
        ("storageAccountType", Kind::Typed),
        ("diskEncryptionSet", Kind::Kept),
        ("securityProfile", Kind::Kept),
    ],
};

const OS_PROFILE: Shape = Shape {
    name: "OSProfile",
    fields: &[
        ("computerName", Kind::Typed),
        ("adminUsername", Kind::Typed),
        ("adminPassword", Kind::Typed),
        ("customData", Kind::Typed),
        ("windowsConfiguration", Kind::Object(&WINDOWS_CONFIGURATION)),
        ("linuxConfiguration", Kind::Object(&LINUX_CONFIGURATION)),
        ("secrets", Kind::Kept),
        ("allowExtensionOperations", Kind::Typed),
        ("requireGuestProvisionSignal", Kind::Typed),
    ],
};

const WINDOWS_CONFIGURATION: Shape = Shape {
    name: "WindowsConfiguration",
    fields: &[
        ("provisionVMAgent", Kind::Typed),
        ("enableAutomaticUpdates", Kind::Typed),
        ("timeZone", Kind::Kept),
        // Holds passwords for automatic logon.
        ("additionalUnattendContent", Kind::Dropped),
        ("patchSettings", Kind::Kept),
        ("winRM", Kind::Kept),
        ("enableVMAgentPlatformUpdates", Kind::Kept),
    ],
};

const LINUX_CONFIGURATION: Shape = Shape {
    name: "LinuxConfiguration",
    fields: &[
        ("disablePasswordAuthentication", Kind::Typed),
        ("ssh", Kind::Object(&SSH_CONFIGURATION)),
        ("provisionVMAgent", Kind::Typed),
        ("patchSettings", Kind::Kept),
        ("enableVMAgentPlatformUpdates", Kind::Kept),
    ],
};

const SSH_CONFIGURATION: Shape =
    Shape { name: "SshConfiguration", fields: &[("publicKeys", Kind::List(&SSH_PUBLIC_KEY))] };
const SSH_PUBLIC_KEY: Shape =
    Shape { name: "SshPublicKey", fields: &[("path", Kind::Typed), ("keyData", Kind::Typed)] };

const SECURITY_PROFILE: Shape = Shape {
    name: "SecurityProfile",
    fields: &[
        ("uefiSettings", Kind::Object(&UEFI_SETTINGS)),
        ("encryptionAtHost", Kind::Kept),
        ("securityType", Kind::Kept),
        ("encryptionIdentity", Kind::Kept),
        ("proxyAgentSettings", Kind::Kept),
    ],
};

const UEFI_SETTINGS: Shape = Shape {
    name: "UefiSettings",
    fields: &[("secureBootEnabled", Kind::Typed), ("vTpmEnabled", Kind::Typed)],
};
