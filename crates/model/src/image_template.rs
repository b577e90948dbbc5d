//! Image templates: from a source image, by steps, to distributed images.
//!
//! Rules that the template alone can break are [`ImageTemplateSpec::check`] and are refused at once. Rules that
//! need another resource (the source, a gallery, a script's bytes, the identity) are found while the template
//! is being created and end in [`ProvisioningError`], as Azure does (REFERENCE.md 5.2).

mod check;
mod distribute;
mod run;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use check::{
    BUILD_TIMEOUT_MINUTES_DEFAULT, BUILD_TIMEOUT_MINUTES_MAX, BUILD_TIMEOUT_MINUTES_MIN, CUSTOMIZERS_MAX,
    DISTRIBUTORS_MAX, INLINE_BYTES_MAX, INLINE_LINES_MAX, STEP_NAME_CHARS_MAX, VALIDATORS_MAX,
};
pub use distribute::{Distributor, DistributorKind, ImageTarget, Placement, TemplateTargetRegion};
pub use run::{FinishedRun, LastRun, RUN_MESSAGE_CHARS_MAX, RunOutcome, RunStage};
pub use steps::{
    Customizer, CustomizerKind, FileCopy, PowerShellScript, Script, ScriptBody, Sha256, Validator,
    ValidatorKind,
};

use crate::Timestamp;
use crate::names::{ImageTemplateName, RunOutputName};
use crate::provisioning::{InvalidTransition, ProvisioningState};
use crate::reference::{ImageVersionRef, ResourceRef};
use crate::region::Region;
use crate::tags::Tags;
use crate::violation::{Rule, Violation};

/// What is customized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// An image of the catalogue.
    PlatformImage {
        /// Publisher.
        publisher: String,
        /// Offer.
        offer: String,
        /// SKU.
        sku: String,
        /// A version's number or `latest`, which is resolved when the build takes place.
        version: String,
        /// Marketplace plan.
        plan: Option<TemplatePlan>,
    },
    /// A managed image of the same subscription and region.
    ManagedImage(ResourceRef),
    /// An image version of the same region.
    SharedImageVersion(ImageVersionRef),
}

/// A marketplace plan: all three or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplatePlan {
    /// Plan.
    pub name: String,
    /// Product.
    pub product: String,
    /// Publisher.
    pub publisher: String,
}

/// The template's own identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateIdentity {
    /// None (any more).
    None,
    /// One identity of the user's.
    UserAssigned(ResourceRef),
}

/// The machine that builds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateVmProfile {
    /// `None`: Standard_D1_v2 for generation 1, Standard_D2ds_v4 for generation 2.
    pub vm_size: Option<String>,
    /// 0: the source's size. Only grows.
    pub os_disk_size_gib: u32,
    /// Identities of the build VM.
    pub user_assigned_identities: Vec<ResourceRef>,
    /// The user's network.
    pub network: Option<TemplateNetwork>,
}

/// The user's network for the build VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateNetwork {
    /// Subnet of the build VM.
    pub subnet_id: Option<String>,
    /// Subnet of the container that drives the build.
    pub container_instance_subnet_id: Option<String>,
    /// Size of the proxy VM; not with `container_instance_subnet_id`.
    pub proxy_vm_size: Option<String>,
}

/// What becomes of the build's machine after an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It goes.
    #[default]
    Cleanup,
    /// It stays for its owner to look at.
    Abort,
}

/// Error handling by phase. `None`: not written, which means [`OnError::Cleanup`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorHandling {
    /// After a customizer's error.
    pub on_customizer_error: Option<OnError>,
    /// After a validation's error.
    pub on_validation_error: Option<OnError>,
}

/// Validation of the built image in a machine of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validation {
    /// Distribute even when validation fails; the run is reported as failed all the same.
    pub continue_distribute_on_failure: bool,
    /// Validate the source, build nothing.
    pub source_validation_only: bool,
    /// The checks in order.
    pub validators: Vec<Validator>,
}

/// What a user writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTemplateSpec {
    /// Region of the build.
    pub location: Region,
    /// Tags.
    pub tags: Tags,
    /// Required on the wire.
    pub identity: TemplateIdentity,
    /// What is customized.
    pub source: ImageSource,
    /// Steps in order.
    pub customize: Vec<Customizer>,
    /// `None`: no `validate` was written.
    pub validate: Option<Validation>,
    /// Where the result goes.
    pub distribute: Vec<Distributor>,
    /// Error handling; `None`: not written.
    pub error_handling: Option<ErrorHandling>,
    /// 0: [`BUILD_TIMEOUT_MINUTES_DEFAULT`].
    pub build_timeout_minutes: u32,
    /// The machine that builds.
    pub vm_profile: TemplateVmProfile,
    /// `None`: one is made.
    pub staging_resource_group: Option<String>,
    /// `optimize.vmBoot.state`; `None`: not written.
    pub optimize_vm_boot: Option<bool>,
    /// `autoRun.state`; `None`: not written.
    pub auto_run: Option<bool>,
    /// Tags of everything that the build makes.
    pub managed_resource_tags: Option<Tags>,
}

/// Image builder's own codes for a template that could not be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "these are Azure's codes; the names are all there is to say")]
pub enum ProvisioningErrorCode {
    BadSourceType,
    BadPirSource,
    BadManagedImageSource,
    BadSharedImageVersionSource,
    BadCustomizerType,
    UnsupportedCustomizerType,
    NoCustomizerScript,
    BadValidatorType,
    UnsupportedValidatorType,
    NoValidatorScript,
    BadDistributeType,
    BadSharedImageDistribute,
    BadStagingResourceGroup,
    ServerError,
    Other,
}

/// Why a template could not be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisioningError {
    /// Azure's code.
    pub code: ProvisioningErrorCode,
    /// Cause and remedy.
    pub message: String,
}

/// An identity of Azure's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedIdentity {
    /// Object id.
    pub principal_id: String,
    /// Application id.
    pub client_id: String,
}

/// What became known while the template was created and run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedTemplate {
    /// What `latest` meant, last time.
    pub exact_version: Option<String>,
    /// Id of the staging resource group.
    pub staging_resource_group: Option<String>,
    /// SHA-256 of each fetched script and file by its address, taken at submission.
    pub checksums: BTreeMap<String, Sha256>,
    /// The identity, once looked up.
    pub identity: Option<ResolvedIdentity>,
}

/// An image template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTemplate {
    /// Its name.
    pub name: ImageTemplateName,
    /// What was asked for.
    pub spec: ImageTemplateSpec,
    /// Where it stands.
    pub provisioning: ProvisioningState<ProvisioningError>,
    /// What became known.
    pub resolved: ResolvedTemplate,
    /// The last run, if there was one.
    pub last_run: Option<LastRun>,
}

/// What a PATCH may change; `None` leaves it (RULES.md 2A).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageTemplatePatch {
    /// New identity.
    pub identity: Option<TemplateIdentity>,
    /// New tags, all of them.
    pub tags: Option<Tags>,
    /// New distributors, all of them.
    pub distribute: Option<Vec<Distributor>>,
    /// New build VM.
    pub vm_profile: Option<TemplateVmProfile>,
}

impl ImageTemplate {
    /// A template that was just accepted.
    pub fn create(name: ImageTemplateName, spec: ImageTemplateSpec) -> Self {
        Self {
            name,
            spec,
            provisioning: ProvisioningState::Creating,
            resolved: ResolvedTemplate::default(),
            last_run: None,
        }
    }

    /// The spec after a PATCH.
    ///
    /// # Errors
    /// When a distributor is missing from the new list, or the result breaks a rule.
    pub fn patched_spec(&self, patch: ImageTemplatePatch) -> Result<ImageTemplateSpec, Violation> {
        let mut spec = self.spec.clone();
        if let Some(distribute) = patch.distribute {
            for old in &spec.distribute {
                if !distribute.iter().any(|new| new.run_output_name == old.run_output_name) {
                    return Err(Violation::at(
                        Rule::Template,
                        "properties.distribute",
                        format!(
                            "Deleting a distribution target is not allowed. Distribute target with Runoutput name {} not found in \
                             the update request",
                            old.run_output_name
                        ),
                    ));
                }
            }
            spec.distribute = distribute;
        }
        spec.identity = patch.identity.unwrap_or(spec.identity);
        spec.tags = patch.tags.unwrap_or(spec.tags);
        spec.vm_profile = patch.vm_profile.unwrap_or(spec.vm_profile);
        spec.check()?;
        Ok(spec)
    }

    /// Begins a run.
    ///
    /// # Errors
    /// While another run is under way, or unless the template is ready.
    pub fn start_run(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        if self.provisioning != ProvisioningState::Succeeded {
            let from = self.provisioning.name();
            return Err(InvalidTransition { what: "an image template", from, event: "run" });
        }
        let last_run = Some(LastRun::start(self.last_run.as_ref(), now)?);
        Ok(Self { last_run, ..self })
    }

    /// Checks that it may be deleted now (RULES.md 2A).
    ///
    /// # Errors
    /// While a run is under way.
    pub fn check_delete(&self) -> Result<(), Violation> {
        match &self.last_run {
            Some(run) if run.is_active() => Err(Violation::of(
                Rule::NotAllowed,
                format!(
                    "The image template '{}' can not be deleted while it is being run. Cancel the run, wait until it has ended, and \
                     delete again.",
                    self.name
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The distributor with this run output name.
    pub fn distributor(&self, name: &RunOutputName) -> Option<&Distributor> {
        self.spec.distribute.iter().find(|distributor| distributor.run_output_name == *name)
    }
}

impl ImageTemplateSpec {
    /// How long a build may take.
    pub fn build_timeout_minutes(&self) -> u32 {
        if self.build_timeout_minutes == 0 {
            BUILD_TIMEOUT_MINUTES_DEFAULT
        } else {
            self.build_timeout_minutes
        }
    }

    /// Every address that is fetched at submission, with the checksum that it must have.
    pub fn fetched(&self) -> impl Iterator<Item = (&str, Option<&Sha256>)> {
        let customizers = self.customize.iter().filter_map(|step| step.kind.fetched());
        let validators = self
            .validate
            .iter()
            .flat_map(|validation| &validation.validators)
            .filter_map(|step| step.kind.fetched());
        customizers.chain(validators)
    }
}
