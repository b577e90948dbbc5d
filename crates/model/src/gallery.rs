//! Compute galleries.

use serde::{Deserialize, Serialize};

use crate::names::{GalleryName, SubscriptionId};
use crate::provisioning::ProvisioningState;
use crate::region::Region;
use crate::tags::Tags;
use crate::violation::{Rule, Violation};

/// With whom a gallery may be shared. Fixed when the gallery is made (RULES.md 2B, Sharing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharingPermissions {
    /// Role assignments only.
    Private,
    /// Subscriptions and tenants by id.
    Groups,
    /// Everyone.
    Community,
}

/// What a user writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GallerySpec {
    /// Home region.
    pub location: Region,
    /// Tags.
    pub tags: Tags,
    /// Free text; the one property that may change.
    pub description: Option<String>,
    /// `None`: never shared, which is `Private`.
    pub sharing: Option<SharingPermissions>,
    /// `None`: never asked for.
    pub soft_delete: Option<bool>,
}

/// A gallery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gallery {
    /// Its name.
    pub name: GalleryName,
    /// What was asked for.
    pub spec: GallerySpec,
    /// Where it stands.
    pub provisioning: ProvisioningState,
}

impl Gallery {
    /// A gallery that was just accepted.
    pub fn create(name: GalleryName, spec: GallerySpec) -> Self {
        Self { name, spec, provisioning: ProvisioningState::Creating }
    }

    /// `identifier.uniqueName`: `{subscription}-{NAME}` (REFERENCE.md 5.3).
    pub fn unique_name(&self, subscription: &SubscriptionId) -> String {
        format!("{subscription}-{}", self.name.as_str().to_ascii_uppercase())
    }

    /// Checks that a PUT over this gallery leaves what may not change.
    ///
    /// # Errors
    /// The location and the sharing permissions are fixed.
    pub fn check_update(&self, new: &GallerySpec) -> Result<(), Violation> {
        check_location("gallery", self.name.as_str(), &self.spec.location, &new.location)?;
        let old = self.spec.sharing.unwrap_or(SharingPermissions::Private);
        match new.sharing {
            Some(sharing) if sharing != old => Err(Violation::at(
                Rule::Immutable,
                "properties.sharingProfile.permissions",
                "Changing property 'gallery.properties.sharingProfile.permissions' is not allowed",
            )),
            _ => Ok(()),
        }
    }
}

/// RULES.md 2D, 6: a name is taken in another region. `what` starts the target: `gallery.location`.
pub(crate) fn check_location(what: &str, name: &str, old: &Region, new: &Region) -> Result<(), Violation> {
    if old == new {
        return Ok(());
    }
    Err(Violation::at(
        Rule::Conflict,
        format!("{what}.location"),
        format!(
            "The resource {name} already exists in location {old}. A resource with the same name cannot be created in \
             location {new}. Please select a new resource name"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(location: &str) -> GallerySpec {
        GallerySpec {
            location: Region::parse(location).unwrap(),
            tags: Tags::default(),
            description: None,
            sharing: None,
            soft_delete: None,
        }
    }

    #[test]
    fn unique_name_is_upper_case() {
        let gallery = Gallery::create(GalleryName::parse("My_Gallery").unwrap(), spec("eastus"));
        let subscription = SubscriptionId::parse("0b1f6471-1bf0-4dda-aec3-cb9272f09590").unwrap();
        assert_eq!(gallery.unique_name(&subscription), "0b1f6471-1bf0-4dda-aec3-cb9272f09590-MY_GALLERY");
    }

    #[test]
    fn location_and_sharing_are_fixed() {
        let gallery = Gallery::create(GalleryName::parse("g").unwrap(), spec("eastus"));
        assert!(gallery.check_update(&spec("East US")).is_ok());
        assert_eq!(gallery.check_update(&spec("westus")).unwrap_err().rule, Rule::Conflict);
        let shared = GallerySpec { sharing: Some(SharingPermissions::Groups), ..spec("eastus") };
        assert_eq!(gallery.check_update(&shared).unwrap_err().rule, Rule::Immutable);
        let private = GallerySpec { sharing: Some(SharingPermissions::Private), ..spec("eastus") };
        assert!(gallery.check_update(&private).is_ok());
    }
}
