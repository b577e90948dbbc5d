//! Image definitions: what all versions under one name have in common.

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::gallery::check_location;
use crate::names::ImageDefinitionName;
use crate::provisioning::ProvisioningState;
use crate::region::Region;
use crate::tags::Tags;
use crate::version_name::VersionName;
use crate::violation::{Rule, Violation};

/// Longest publisher (RULES.md 2B).
pub const PUBLISHER_CHARS_MAX: usize = 128;
/// Longest offer and longest SKU (RULES.md 2B).
pub const OFFER_CHARS_MAX: usize = 64;
/// Most entries of `features` and of `disallowed.diskTypes`.
pub const LIST_ENTRIES_MAX: usize = 32;

/// The operating system family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OsType {
    /// Linux.
    Linux,
    /// Windows.
    Windows,
}

/// Whether the image still carries one machine's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OsState {
    /// Provisioned anew by each VM: an `osProfile` is required.
    Generalized,
    /// Boots as it is: an `osProfile` is refused.
    Specialized,
}

/// The firmware that the image starts under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HyperVGeneration {
    /// BIOS.
    V1,
    /// UEFI.
    V2,
}

/// The processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// x86-64.
    X64,
    /// 64-bit Arm.
    Arm64,
}

/// Publisher, offer and SKU: unique within a gallery.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identifier {
    /// Publisher.
    pub publisher: String,
    /// Offer.
    pub offer: String,
    /// SKU.
    pub sku: String,
}

impl PartialEq for Identifier {
    fn eq(&self, other: &Self) -> bool {
        self.publisher.eq_ignore_ascii_case(&other.publisher)
            && self.offer.eq_ignore_ascii_case(&other.offer)
            && self.sku.eq_ignore_ascii_case(&other.sku)
    }
}

impl Eq for Identifier {}

/// A recommended range; either end may be open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Least.
    pub min: Option<i32>,
    /// Most.
    pub max: Option<i32>,
}

/// A feature such as `SecurityType` = `TrustedLaunchSupported`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// First version that has it.
    pub starts_at_version: Option<VersionName>,
}

/// The marketplace plan under which the image is sold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurchasePlan {
    /// Plan.
    pub name: Option<String>,
    /// Publisher.
    pub publisher: Option<String>,
    /// Product.
    pub product: Option<String>,
}

/// What a user writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDefinitionSpec {
    /// Home region.
    pub location: Region,
    /// Tags.
    pub tags: Tags,
    /// Free text.
    pub description: Option<String>,
    /// Licence text or address.
    pub eula: Option<String>,
    /// Address.
    pub privacy_statement_uri: Option<String>,
    /// Address.
    pub release_note_uri: Option<String>,
    /// Operating system family; fixed.
    pub os_type: OsType,
    /// Generalized or specialized; fixed.
    pub os_state: OsState,
    /// Firmware; fixed.
    pub hyper_v_generation: HyperVGeneration,
    /// Processor; fixed.
    pub architecture: Architecture,
    /// Publisher, offer, SKU; fixed.
    pub identifier: Identifier,
    /// Informational: versions still deploy afterwards.
    pub end_of_life: Option<Timestamp>,
    /// Recommended number of vCPUs.
    pub recommended_vcpus: Option<Range>,
    /// Recommended memory in GiB.
    pub recommended_memory_gib: Option<Range>,
    /// Disk types that VMs from this image may not use.
    pub disallowed_disk_types: Vec<String>,
    /// Marketplace plan.
    pub purchase_plan: Option<PurchasePlan>,
    /// Features.
    pub features: Vec<Feature>,
    /// Must be true in a request that changes `features`.
    pub allow_update_image: Option<bool>,
}

/// An image definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDefinition {
    /// Its name.
    pub name: ImageDefinitionName,
    /// What was asked for.
    pub spec: ImageDefinitionSpec,
    /// Where it stands.
    pub provisioning: ProvisioningState,
}

impl ImageDefinition {
    /// A definition that was just accepted.
    pub fn create(name: ImageDefinitionName, spec: ImageDefinitionSpec) -> Self {
        Self { name, spec, provisioning: ProvisioningState::Creating }
    }

    /// Checks that a PUT over this definition leaves what may not change (RULES.md 2D, 6 and 7).
    ///
    /// # Errors
    /// The first property that was changed and may not be.
    pub fn check_update(&self, new: &ImageDefinitionSpec) -> Result<(), Violation> {
        let old = &self.spec;
        check_location("galleryImage", self.name.as_str(), &old.location, &new.location)?;
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        let fixed = [
            ("osType", old.os_type == new.os_type),
            ("osState", old.os_state == new.os_state),
            ("hyperVGeneration", old.hyper_v_generation == new.hyper_v_generation),
            ("architecture", old.architecture == new.architecture),
            ("identifier.publisher", same(&old.identifier.publisher, &new.identifier.publisher)),
            ("identifier.offer", same(&old.identifier.offer, &new.identifier.offer)),
            ("identifier.sku", same(&old.identifier.sku, &new.identifier.sku)),
            ("features", old.features == new.features || new.allow_update_image == Some(true)),
        ];
        match fixed.iter().find(|(_, kept)| !kept) {
            Some((property, _)) => Err(Violation::at(
                Rule::Immutable,
                format!("galleryImage.properties.{property}"),
                format!("Changing property 'galleryImage.properties.{property}' is not allowed"),
            )),
            None => Ok(()),
        }
    }
}

impl ImageDefinitionSpec {
    /// Checks the rules that this definition alone can break (RULES.md 2D, 9, 12, 13).
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self, now: Timestamp) -> Result<(), Violation> {
        let identifier = &self.identifier;
        check_identifier("publisher", &identifier.publisher, PUBLISHER_CHARS_MAX)?;
        check_identifier("offer", &identifier.offer, OFFER_CHARS_MAX)?;
        check_identifier("sku", &identifier.sku, OFFER_CHARS_MAX)?;
        check_end_of_life(self.end_of_life, now, "properties.endOfLifeDate")?;
        check_range("recommended.vCPUs", self.recommended_vcpus)?;
        check_range("recommended.memory", self.recommended_memory_gib)?;
        for (property, count) in
            [("features", self.features.len()), ("disallowed.diskTypes", self.disallowed_disk_types.len())]
        {
            if count > LIST_ENTRIES_MAX {
                let target = format!("properties.{property}");
                return Err(Violation::out_of_range(&target, count as i64, 0, LIST_ENTRIES_MAX as i64));
            }
        }
        Ok(())
    }

    /// Checks that the triple is free in the gallery (RULES.md 2D, 14). `others`: every other definition of it.
    ///
    /// # Errors
    /// The definition that has the triple.
    pub fn check_identifier_free<'a>(
        &self,
        others: impl IntoIterator<Item = (&'a ImageDefinitionName, &'a Identifier)>,
    ) -> Result<(), Violation> {
        for (name, identifier) in others {
            if *identifier == self.identifier {
                let Identifier { publisher, offer, sku } = identifier;
                return Err(Violation::at(
                    Rule::Conflict,
                    "galleryImage.properties.identifier",
                    format!(
                        "Gallery image: {name} identified by (publisher:{publisher}, offer:{offer}, sku:{sku}) already exists. \
                         Choose a different publisher, offer, sku combination."
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Checks that a source may become a version of this definition (RULES.md 2D, 25 to 27).
    ///
    /// # Errors
    /// The first property in which they differ. `id` names the source.
    pub fn check_source(&self, id: &str, source: &SourceTraits) -> Result<(), Violation> {
        let target = "properties.storageProfile.source.id";
        if source.os_state != self.os_state {
            return Err(Violation::at(
                Rule::Parameter,
                target,
                format!(
                    "Cannot create Gallery Image Version from: {id} since the OS State in the parent gallery image ({}) is not {}",
                    os_state(self.os_state),
                    os_state(source.os_state)
                ),
            ));
        }
        if source.hyper_v_generation != self.hyper_v_generation {
            return Err(Violation::at(
                Rule::Parameter,
                target,
                format!(
                    "The resource with id '{id}' has a different Hypervisor generation ['{:?}'] than the parent gallery image \
                     Hypervisor generation ['{:?}']",
                    source.hyper_v_generation, self.hyper_v_generation
                ),
            ));
        }
        if source.os_type != self.os_type {
            return Err(Violation::at(
                Rule::Parameter,
                target,
                format!(
                    "The resource with id '{id}' has a different OS type ['{:?}'] than the parent gallery image OS type \
                     generation ['{:?}']",
                    source.os_type, self.os_type
                ),
            ));
        }
        if source.architecture != self.architecture {
            return Err(Violation::at(
                Rule::Parameter,
                target,
                format!(
                    "The resource with id '{id}' has a different architecture ['{:?}'] than the parent gallery image \
                     architecture ['{:?}']",
                    source.architecture, self.architecture
                ),
            ));
        }
        Ok(())
    }
}

/// What a definition compares with a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTraits {
    /// Operating system family.
    pub os_type: OsType,
    /// Generalized or specialized.
    pub os_state: OsState,
    /// Firmware.
    pub hyper_v_generation: HyperVGeneration,
    /// Processor.
    pub architecture: Architecture,
}

/// RULES.md 2D, 12.
pub(crate) fn check_end_of_life(
    date: Option<Timestamp>,
    now: Timestamp,
    target: &str,
) -> Result<(), Violation> {
    match date {
        Some(date) if date <= now => {
            Err(Violation::at(Rule::Parameter, target, "EndOfLifeDate must be set to a future date."))
        }
        _ => Ok(()),
    }
}

/// RULES.md 2D, 9.
fn check_identifier(property: &str, value: &str, chars_max: usize) -> Result<(), Violation> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=chars_max).contains(&value.len()) && value.chars().all(allowed) && !value.ends_with('.') {
        return Ok(());
    }
    let target = format!("galleryImage.properties.identifier.{property}");
    let message = format!(
        "Asset name {target} is not valid. It cannot be empty. Allowed characters are uppercase or lowercase letters, \
         digits, hyphen(-), period (.), underscore (_). Names are not allowed to end with period(.). The length of the \
         name cannot exceed {chars_max} characters."
    );
    Err(Violation::at(Rule::Parameter, target, message))
}

/// RULES.md 2D, 13.
fn check_range(property: &str, range: Option<Range>) -> Result<(), Violation> {
    match range {
        Some(Range { min: Some(min), max: Some(max) }) if min > max => Err(Violation::at(
            Rule::Parameter,
            format!("properties.{property}"),
            format!(
                "The minimum value of {property} must not be greater than the maximum value of {property}."
            ),
        )),
        _ => Ok(()),
    }
}

fn os_state(state: OsState) -> &'static str {
    match state {
        OsState::Generalized => "Generalized",
        OsState::Specialized => "Specialized",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ImageDefinitionSpec {
        ImageDefinitionSpec {
            location: Region::parse("eastus").unwrap(),
            tags: Tags::default(),
            description: None,
            eula: None,
            privacy_statement_uri: None,
            release_note_uri: None,
            os_type: OsType::Linux,
            os_state: OsState::Generalized,
            hyper_v_generation: HyperVGeneration::V2,
            architecture: Architecture::X64,
            identifier: Identifier { publisher: "p".into(), offer: "o".into(), sku: "s".into() },
            end_of_life: None,
            recommended_vcpus: None,
            recommended_memory_gib: None,
            disallowed_disk_types: vec![],
            purchase_plan: None,
            features: vec![],
            allow_update_image: None,
        }
    }

    fn message(change: impl FnOnce(&mut ImageDefinitionSpec)) -> String {
        let mut changed = spec();
        change(&mut changed);
        let old = ImageDefinition::create(ImageDefinitionName::parse("d").unwrap(), spec());
        old.check_update(&changed).unwrap_err().message
    }

    #[test]
    fn fixed_properties_are_named() {
        assert_eq!(
            message(|s| s.os_state = OsState::Specialized),
            "Changing property 'galleryImage.properties.osState' is not allowed"
        );
        assert_eq!(
            message(|s| s.identifier.sku = "t".into()),
            "Changing property 'galleryImage.properties.identifier.sku' is not allowed"
        );
        assert!(
            message(|s| s.location = Region::parse("westus").unwrap())
                .contains("cannot be created in location westus")
        );
    }

    #[test]
    fn free_properties_and_features_with_leave_may_change() {
        let old = ImageDefinition::create(ImageDefinitionName::parse("d").unwrap(), spec());
        let mut new = spec();
        new.description = Some("x".into());
        new.identifier.publisher = "P".into();
        assert_eq!(old.check_update(&new), Ok(()));
        new.features.push(Feature { name: "a".into(), value: "b".into(), starts_at_version: None });
        assert!(old.check_update(&new).is_err());
        new.allow_update_image = Some(true);
        assert_eq!(old.check_update(&new), Ok(()));
    }

    #[test]
    fn a_specs_own_rules() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(spec().check(now), Ok(()));
        let bad = ImageDefinitionSpec { end_of_life: Some(now), ..spec() };
        assert_eq!(bad.check(now).unwrap_err().message, "EndOfLifeDate must be set to a future date.");
        let bad =
            ImageDefinitionSpec { recommended_vcpus: Some(Range { min: Some(4), max: Some(2) }), ..spec() };
        assert!(
            bad.check(now)
                .unwrap_err()
                .message
                .starts_with("The minimum value of recommended.vCPUs must not")
        );
        let mut bad = spec();
        bad.identifier.offer = "o".repeat(65);
        let error = bad.check(now).unwrap_err();
        assert!(error.message.ends_with("The length of the name cannot exceed 64 characters."));
        assert_eq!(error.target.as_deref(), Some("galleryImage.properties.identifier.offer"));
    }

    #[test]
    fn a_triple_is_taken_without_regard_to_case() {
        let name = ImageDefinitionName::parse("other").unwrap();
        let taken = Identifier { publisher: "P".into(), offer: "O".into(), sku: "S".into() };
        assert_eq!(
            spec().check_identifier_free([(&name, &taken)]).unwrap_err().message,
            "Gallery image: other identified by (publisher:P, offer:O, sku:S) already exists. Choose a different publisher, offer, sku combination."
        );
    }

    #[test]
    fn a_source_must_match() {
        let mut source = SourceTraits {
            os_type: OsType::Linux,
            os_state: OsState::Generalized,
            hyper_v_generation: HyperVGeneration::V1,
            architecture: Architecture::X64,
        };
        assert!(spec().check_source("/x", &source).unwrap_err().message.contains("generation ['V1'] than"));
        source.hyper_v_generation = HyperVGeneration::V2;
        assert_eq!(spec().check_source("/x", &source), Ok(()));
        source.os_state = OsState::Specialized;
        assert_eq!(
            spec().check_source("/x", &source).unwrap_err().message,
            "Cannot create Gallery Image Version from: /x since the OS State in the parent gallery image (Generalized) is not Specialized"
        );
    }
}
