//! The properties of an image template. Type names are those of image builder's Go package.

use crate::shape::{Kind, Shape, Variants};

pub(super) const TEMPLATE: Shape = Shape {
    name: "ImageTemplate",
    fields: &[
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("identity", Kind::Object(&IDENTITY)),
        ("properties", Kind::Object(&PROPERTIES)),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
        ("systemData", Kind::Dropped),
    ],
};

/// A PATCH (RULES.md 2A, "PATCH may change").
pub(super) const PATCH: Shape = Shape {
    name: "ImageTemplateUpdateParameters",
    fields: &[
        ("tags", Kind::Typed),
        ("identity", Kind::Object(&IDENTITY)),
        ("properties", Kind::Object(&PATCH_PROPERTIES)),
    ],
};

const PATCH_PROPERTIES: Shape = Shape {
    name: "ImageTemplateUpdateParametersProperties",
    fields: &[("distribute", Kind::ListOf(&DISTRIBUTORS)), ("vmProfile", Kind::Object(&VM_PROFILE))],
};

const IDENTITY: Shape = Shape {
    name: "ImageTemplateIdentity",
    fields: &[("type", Kind::Typed), ("userAssignedIdentities", Kind::Typed)],
};

const PROPERTIES: Shape = Shape {
    name: "ImageTemplateProperties",
    fields: &[
        ("source", Kind::OneOf(&SOURCES)),
        ("customize", Kind::ListOf(&CUSTOMIZERS)),
        ("optimize", Kind::Object(&OPTIMIZE)),
        ("validate", Kind::Object(&VALIDATE)),
        ("distribute", Kind::ListOf(&DISTRIBUTORS)),
        ("errorHandling", Kind::Object(&ERROR_HANDLING)),
        ("provisioningState", Kind::Dropped),
        ("provisioningError", Kind::Dropped),
        ("lastRunStatus", Kind::Dropped),
        ("buildTimeoutInMinutes", Kind::Typed),
        ("vmProfile", Kind::Object(&VM_PROFILE)),
        ("stagingResourceGroup", Kind::Typed),
        ("exactStagingResourceGroup", Kind::Dropped),
        ("autoRun", Kind::Object(&AUTO_RUN)),
        ("managedResourceTags", Kind::Typed),
        ("additionalDataDisks", Kind::Kept),
    ],
};

const SOURCES: Variants = Variants {
    tag: "type",
    shapes: &[
        ("PlatformImage", &PLATFORM_IMAGE),
        ("ManagedImage", &MANAGED_IMAGE_SOURCE),
        ("SharedImageVersion", &SHARED_IMAGE_VERSION),
    ],
};

const PLATFORM_IMAGE: Shape = Shape {
    name: "ImageTemplatePlatformImageSource",
    fields: &[
        ("type", Kind::Typed),
        ("publisher", Kind::Typed),
        ("offer", Kind::Typed),
        ("sku", Kind::Typed),
        ("version", Kind::Typed),
        ("exactVersion", Kind::Dropped),
        ("planInfo", Kind::Object(&PLAN_INFO)),
    ],
};

const PLAN_INFO: Shape = Shape {
    name: "PlatformImagePurchasePlan",
    fields: &[("planName", Kind::Typed), ("planProduct", Kind::Typed), ("planPublisher", Kind::Typed)],
};

const MANAGED_IMAGE_SOURCE: Shape = Shape {
    name: "ImageTemplateManagedImageSource",
    fields: &[("type", Kind::Typed), ("imageId", Kind::Typed)],
};

const SHARED_IMAGE_VERSION: Shape = Shape {
    name: "ImageTemplateSharedImageVersionSource",
    fields: &[("type", Kind::Typed), ("imageVersionId", Kind::Typed), ("exactVersion", Kind::Dropped)],
};

const CUSTOMIZERS: Variants = Variants {
    tag: "type",
    shapes: &[
        ("Shell", &SHELL_CUSTOMIZER),
        ("File", &FILE_CUSTOMIZER),
        ("PowerShell", &POWERSHELL_CUSTOMIZER),
        ("WindowsRestart", &RESTART_CUSTOMIZER),
        ("WindowsUpdate", &UPDATE_CUSTOMIZER),
    ],
};

const VALIDATORS: Variants = Variants {
    tag: "type",
    shapes: &[("Shell", &SHELL_VALIDATOR), ("File", &FILE_VALIDATOR), ("PowerShell", &POWERSHELL_VALIDATOR)],
};

const SHELL: &[(&str, Kind)] = &[
    ("type", Kind::Typed),
    ("name", Kind::Typed),
    ("scriptUri", Kind::Typed),
    ("sha256Checksum", Kind::Typed),
    ("inline", Kind::Typed),
];
const SHELL_CUSTOMIZER: Shape = Shape { name: "ImageTemplateShellCustomizer", fields: SHELL };
const SHELL_VALIDATOR: Shape = Shape { name: "ImageTemplateShellValidator", fields: SHELL };

const FILE: &[(&str, Kind)] = &[
    ("type", Kind::Typed),
    ("name", Kind::Typed),
    ("sourceUri", Kind::Typed),
    ("sha256Checksum", Kind::Typed),
    ("destination", Kind::Typed),
];
const FILE_CUSTOMIZER: Shape = Shape { name: "ImageTemplateFileCustomizer", fields: FILE };
const FILE_VALIDATOR: Shape = Shape { name: "ImageTemplateFileValidator", fields: FILE };

const POWERSHELL: &[(&str, Kind)] = &[
    ("type", Kind::Typed),
    ("name", Kind::Typed),
    ("scriptUri", Kind::Typed),
    ("sha256Checksum", Kind::Typed),
    ("inline", Kind::Typed),
    ("runElevated", Kind::Typed),
    ("runAsSystem", Kind::Typed),
    ("validExitCodes", Kind::Typed),
];
const POWERSHELL_CUSTOMIZER: Shape = Shape { name: "ImageTemplatePowerShellCustomizer", fields: POWERSHELL };
const POWERSHELL_VALIDATOR: Shape = Shape { name: "ImageTemplatePowerShellValidator", fields: POWERSHELL };

const RESTART_CUSTOMIZER: Shape = Shape {
    name: "ImageTemplateRestartCustomizer",
    fields: &[
        ("type", Kind::Typed),
        ("name", Kind::Typed),
        ("restartCommand", Kind::Typed),
        ("restartCheckCommand", Kind::Typed),
        ("restartTimeout", Kind::Typed),
    ],
};

const UPDATE_CUSTOMIZER: Shape = Shape {
    name: "ImageTemplateWindowsUpdateCustomizer",
    fields: &[
        ("type", Kind::Typed),
        ("name", Kind::Typed),
        ("searchCriteria", Kind::Typed),
        ("filters", Kind::Typed),
        ("updateLimit", Kind::Typed),
    ],
};

const OPTIMIZE: Shape = Shape {
    name: "ImageTemplatePropertiesOptimize",
    fields: &[("vmBoot", Kind::Object(&VM_BOOT)), ("workload", Kind::Kept)],
};
const VM_BOOT: Shape =
    Shape { name: "ImageTemplatePropertiesOptimizeVMBoot", fields: &[("state", Kind::Typed)] };

const VALIDATE: Shape = Shape {
    name: "ImageTemplatePropertiesValidate",
    fields: &[
        ("continueDistributeOnFailure", Kind::Typed),
        ("sourceValidationOnly", Kind::Typed),
        ("inVMValidations", Kind::ListOf(&VALIDATORS)),
    ],
};

const DISTRIBUTORS: Variants = Variants {
    tag: "type",
    shapes: &[("ManagedImage", &MANAGED_IMAGE), ("SharedImage", &SHARED_IMAGE), ("VHD", &VHD)],
};

const MANAGED_IMAGE: Shape = Shape {
    name: "ImageTemplateManagedImageDistributor",
    fields: &[
        ("type", Kind::Typed),
        ("runOutputName", Kind::Typed),
        ("artifactTags", Kind::Typed),
        ("imageId", Kind::Typed),
        ("location", Kind::Typed),
    ],
};

const SHARED_IMAGE: Shape = Shape {
    name: "ImageTemplateSharedImageDistributor",
    fields: &[
        ("type", Kind::Typed),
        ("runOutputName", Kind::Typed),
        ("artifactTags", Kind::Typed),
        ("galleryImageId", Kind::Typed),
        ("replicationRegions", Kind::Typed),
        ("excludeFromLatest", Kind::Typed),
        ("storageAccountType", Kind::Typed),
        ("targetRegions", Kind::List(&TARGET_REGION)),
        ("versioning", Kind::OneOf(&VERSIONERS)),
        ("replicationMode", Kind::Kept),
    ],
};

const VHD: Shape = Shape {
    name: "ImageTemplateVhdDistributor",
    fields: &[
        ("type", Kind::Typed),
        ("runOutputName", Kind::Typed),
        ("artifactTags", Kind::Typed),
        ("uri", Kind::Typed),
    ],
};

const TARGET_REGION: Shape = Shape {
    name: "TargetRegion",
    fields: &[("name", Kind::Typed), ("replicaCount", Kind::Typed), ("storageAccountType", Kind::Typed)],
};

const VERSIONERS: Variants =
    Variants { tag: "scheme", shapes: &[("Latest", &LATEST_VERSIONER), ("Source", &SOURCE_VERSIONER)] };
const LATEST_VERSIONER: Shape =
    Shape { name: "DistributeVersionerLatest", fields: &[("scheme", Kind::Typed), ("major", Kind::Typed)] };
const SOURCE_VERSIONER: Shape =
    Shape { name: "DistributeVersionerSource", fields: &[("scheme", Kind::Typed)] };

const ERROR_HANDLING: Shape = Shape {
    name: "ImageTemplatePropertiesErrorHandling",
    fields: &[("onCustomizerError", Kind::Typed), ("onValidationError", Kind::Typed)],
};

const VM_PROFILE: Shape = Shape {
    name: "ImageTemplateVMProfile",
    fields: &[
        ("vmSize", Kind::Typed),
        ("osDiskSizeGB", Kind::Typed),
        ("userAssignedIdentities", Kind::Typed),
        ("vnetConfig", Kind::Object(&VNET_CONFIG)),
    ],
};

const VNET_CONFIG: Shape = Shape {
    name: "VirtualNetworkConfig",
    fields: &[
        ("subnetId", Kind::Typed),
        ("containerInstanceSubnetId", Kind::Typed),
        ("proxyVmSize", Kind::Typed),
    ],
};

const AUTO_RUN: Shape = Shape { name: "ImageTemplateAutoRun", fields: &[("state", Kind::Typed)] };
