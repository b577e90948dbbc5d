//! References from one resource to another.
//!
//! Where the domain must look inside a reference it is a struct of names ([`ImageDefinitionRef`]); the grammar
//! of ARM ids lives in `arm` alone. Where it only carries the reference along it is a [`ResourceRef`].

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::names::{GalleryName, ImageDefinitionName, ResourceGroupName, SubscriptionId};
use crate::version_name::VersionName;
use crate::violation::{Rule, Violation};

/// Longest resource id that is accepted.
pub const RESOURCE_REF_BYTES_MAX: usize = 2048;
/// Longest manifest reference that is accepted.
pub const MANIFEST_REF_BYTES_MAX: usize = 256;

/// An id of some resource, carried but not looked into.
///
/// Invariants: starts with `/`, 2 to 2048 bytes, no control characters. Compares without case, keeps the case
/// that was written.
#[derive(Debug, Clone)]
pub struct ResourceRef(String);

impl ResourceRef {
    /// Checks the invariants.
    ///
    /// # Errors
    /// [`Violation`] with the given target.
    pub fn parse(text: &str, target: &str) -> Result<Self, Violation> {
        let fits = text.starts_with('/')
            && (2..=RESOURCE_REF_BYTES_MAX).contains(&text.len())
            && !text.chars().any(char::is_control);
        if fits {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        Err(Violation::at(
            Rule::Parameter,
            target,
            format!(
                "Property id {shown} at path '{target}' is invalid. Expect fully qualified resource Id that start with \
                 '/subscriptions/{{subscriptionId}}' or '/providers/{{resourceProviderNamespace}}/'"
            ),
        ))
    }

    /// The id in the case in which it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialEq for ResourceRef {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for ResourceRef {}

impl Hash for ResourceRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_ascii_lowercase().hash(state);
    }
}

impl Serialize for ResourceRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ResourceRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text, "id").map_err(serde::de::Error::custom)
    }
}

/// An image definition by the names of its four levels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageDefinitionRef {
    /// Subscription that owns the gallery.
    pub subscription: SubscriptionId,
    /// Resource group of the gallery.
    pub resource_group: ResourceGroupName,
    /// The gallery.
    pub gallery: GalleryName,
    /// The definition within it.
    pub definition: ImageDefinitionName,
}

/// Which version of a definition is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionSelector {
    /// The newest that the asking region may use, resolved when it is used.
    Latest,
    /// This one.
    Exact(VersionName),
}

impl fmt::Display for VersionSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Exact(version) => version.fmt(f),
        }
    }
}

/// A version of an image definition, or its `latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageVersionRef {
    /// The definition.
    pub definition: ImageDefinitionRef,
    /// The version within it.
    pub version: VersionSelector,
}

/// The content store's name of a disk's content: opaque here.
///
/// Invariants: 1 to 256 printable ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct ManifestRef(String);

impl ManifestRef {
    /// `None` unless the invariants hold.
    pub fn parse(text: &str) -> Option<Self> {
        let fits =
            (1..=MANIFEST_REF_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    /// The name as the content store wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ManifestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ManifestRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom("a manifest reference is 1 to 256 printable ASCII characters")
        })
    }
}
