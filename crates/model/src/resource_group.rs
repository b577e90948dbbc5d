//! Resource groups.

use serde::{Deserialize, Serialize};

use crate::names::ResourceGroupName;
use crate::provisioning::ProvisioningState;
use crate::region::Region;
use crate::tags::Tags;
use crate::violation::{Rule, Violation};

/// What a user writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceGroupSpec {
    /// Where the group's metadata is said to be; its members may be elsewhere.
    pub location: Region,
    /// Tags.
    pub tags: Tags,
    /// Id of a resource that owns the group (the staging group of an image template).
    pub managed_by: Option<String>,
}

/// A resource group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceGroup {
    /// Its name.
    pub name: ResourceGroupName,
    /// What was asked for.
    pub spec: ResourceGroupSpec,
    /// Where it stands.
    pub provisioning: ProvisioningState,
}

impl ResourceGroup {
    /// A group exists as soon as it is accepted.
    pub fn create(name: ResourceGroupName, spec: ResourceGroupSpec) -> Self {
        Self { name, spec, provisioning: ProvisioningState::Succeeded }
    }

    /// Checks that a PUT over this group leaves what may not change.
    ///
    /// # Errors
    /// The location of a group is fixed.
    pub fn check_update(&self, new: &ResourceGroupSpec) -> Result<(), Violation> {
        if self.spec.location == new.location {
            return Ok(());
        }
        Err(Violation::at(
            Rule::Conflict,
            "location",
            format!(
                "Invalid resource group location '{}'. The Resource group already exists in location '{}'.",
                new.location, self.spec.location
            ),
        ))
    }
}
