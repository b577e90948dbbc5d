//! What a run of an image template left, one for each distributor.

use serde::{Deserialize, Serialize};

use crate::names::RunOutputName;
use crate::provisioning::ProvisioningState;
use crate::reference::ResourceRef;

/// What was distributed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Artifact {
    /// A managed image or an image version, by its id.
    Resource(ResourceRef),
    /// A VHD, by its address.
    Uri(String),
}

/// One output of the last run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOutput {
    /// The distributor's `runOutputName`.
    pub name: RunOutputName,
    /// What was distributed.
    pub artifact: Artifact,
    /// Where it stands.
    pub provisioning: ProvisioningState,
}
