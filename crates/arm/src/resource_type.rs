//! Types of resources.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A full type: `Microsoft.Compute/galleries/images`. Compares without case; known types are kept in Azure's
/// spelling.
#[derive(Debug, Clone)]
pub struct ResourceType(Cow<'static, str>);

/// A subscription.
pub const SUBSCRIPTIONS: ResourceType = ResourceType(Cow::Borrowed("Microsoft.Resources/subscriptions"));
/// A resource group.
pub const RESOURCE_GROUPS: ResourceType = ResourceType(Cow::Borrowed("Microsoft.Resources/resourceGroups"));
/// A gallery.
pub const GALLERIES: ResourceType = ResourceType(Cow::Borrowed("Microsoft.Compute/galleries"));
/// An image definition.
pub const GALLERY_IMAGES: ResourceType = ResourceType(Cow::Borrowed("Microsoft.Compute/galleries/images"));
/// An image version.
pub const GALLERY_IMAGE_VERSIONS: ResourceType =
    ResourceType(Cow::Borrowed("Microsoft.Compute/galleries/images/versions"));
/// A managed image.
pub const IMAGES: ResourceType = ResourceType(Cow::Borrowed("Microsoft.Compute/images"));
/// A managed disk.
pub const DISKS: ResourceType = ResourceType(Cow::Borrowed("Microsoft.Compute/disks"));
/// A snapshot.
pub const SNAPSHOTS: ResourceType = ResourceType(Cow::Borrowed("Microsoft.Compute/snapshots"));
/// A virtual machine.
pub const VIRTUAL_MACHINES: ResourceType = ResourceType(Cow::Borrowed("Microsoft.Compute/virtualMachines"));
/// An image template.
pub const IMAGE_TEMPLATES: ResourceType =
    ResourceType(Cow::Borrowed("Microsoft.VirtualMachineImages/imageTemplates"));
/// An output of a template's last run.
pub const RUN_OUTPUTS: ResourceType =
    ResourceType(Cow::Borrowed("Microsoft.VirtualMachineImages/imageTemplates/runOutputs"));
/// A storage account.
pub const STORAGE_ACCOUNTS: ResourceType = ResourceType(Cow::Borrowed("Microsoft.Storage/storageAccounts"));
/// A user's identity.
pub const USER_ASSIGNED_IDENTITIES: ResourceType =
    ResourceType(Cow::Borrowed("Microsoft.ManagedIdentity/userAssignedIdentities"));

const KNOWN: &[&ResourceType] = &[
    &GALLERY_IMAGE_VERSIONS,
    &GALLERY_IMAGES,
    &GALLERIES,
    &IMAGES,
    &DISKS,
    &SNAPSHOTS,
    &VIRTUAL_MACHINES,
    &RUN_OUTPUTS,
    &IMAGE_TEMPLATES,
    &STORAGE_ACCOUNTS,
    &USER_ASSIGNED_IDENTITIES,
];

impl ResourceType {
    /// A type, in Azure's spelling if it is known.
    pub fn new(text: String) -> Self {
        match KNOWN.iter().find(|known| known.0.eq_ignore_ascii_case(&text)) {
            Some(known) => (*known).clone(),
            None => Self(Cow::Owned(text)),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `Microsoft.Compute`.
    pub fn namespace(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// The type without its namespace: `galleries/images`.
    pub fn path(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, path)| path)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialEq for ResourceType {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for ResourceType {}

impl Hash for ResourceType {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_ascii_lowercase().hash(state);
    }
}
