//! ARM resource ids: the grammar, one parser, one spelling for keys.
//!
//! ```text
//!  /subscriptions/{s}[/resourceGroups/{rg}][/providers/{namespace}/{type}/{name}[/{type}/{name}]…]
//!  /providers/{namespace}/{type}/{name}[/{type}/{name}]…
//! ```

use std::fmt;
use std::hash::{Hash, Hasher};

use model::{
    GalleryName, ImageDefinitionName, ImageDefinitionRef, ImageVersionRef, ResourceGroupName, ResourceRef,
    SubscriptionId, VersionName, VersionSelector, Violation,
};

use crate::resource_type::{self, ResourceType};

/// Longest id that is accepted.
pub const RESOURCE_ID_BYTES_MAX: usize = 2048;
/// Longest single segment.
pub const SEGMENT_BYTES_MAX: usize = 260;
/// Most type and name pairs.
pub const NESTING_MAX: usize = 8;

/// An id that was taken apart.
///
/// Names keep the case in which they were written; keywords, the namespace and known types get their canonical
/// case. Two ids are equal when they differ in case only.
#[derive(Debug, Clone)]
pub struct ResourceId {
    subscription: Option<String>,
    resource_group: Option<String>,
    provider: Option<Provider>,
}

#[derive(Debug, Clone)]
struct Provider {
    namespace: String,
    /// Never empty.
    path: Vec<(String, String)>,
}

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{shown}' is not a resource id: {reason}")]
pub struct InvalidResourceId {
    shown: String,
    reason: &'static str,
}

impl ResourceId {
    /// Takes an id apart.
    ///
    /// # Errors
    /// [`InvalidResourceId`] with the reason.
    pub fn parse(text: &str) -> Result<Self, InvalidResourceId> {
        parse(text).map_err(|reason| InvalidResourceId {
            shown: text.chars().filter(|c| !c.is_control()).take(200).collect(),
            reason,
        })
    }

    /// The id of a resource group.
    pub fn resource_group_id(subscription: &SubscriptionId, group: &ResourceGroupName) -> Self {
        Self {
            subscription: Some(subscription.to_string()),
            resource_group: Some(group.to_string()),
            provider: None,
        }
    }

    /// The id of a top-level resource in this resource group or subscription, or of a child of this resource.
    /// `resource_type` is the full type: `Microsoft.Compute/galleries/images`.
    pub fn child(&self, resource_type: &ResourceType, name: &str) -> Self {
        let (namespace, types) =
            resource_type.as_str().split_once('/').unwrap_or((resource_type.as_str(), ""));
        let last = types.rsplit('/').next().unwrap_or(types);
        let mut path = self.provider.as_ref().map(|provider| provider.path.clone()).unwrap_or_default();
        path.push((last.to_owned(), name.to_owned()));
        let provider = Some(Provider { namespace: namespace.to_owned(), path });
        Self { provider, ..self.clone() }
    }

    /// The resource that this one is nested in, or its resource group.
    pub fn parent(&self) -> Option<Self> {
        let mut parent = self.clone();
        match parent.provider.as_mut() {
            Some(provider) if provider.path.len() > 1 => {
                provider.path.pop();
            }
            Some(_) => parent.provider = None,
            None => {
                parent.resource_group.take()?;
            }
        }
        (parent.subscription.is_some() || parent.provider.is_some()).then_some(parent)
    }

    /// The one spelling that ids are compared by and stored under: all lower case.
    pub fn key(&self) -> String {
        self.to_string().to_ascii_lowercase()
    }

    /// The subscription as it was written.
    pub fn subscription(&self) -> Option<&str> {
        self.subscription.as_deref()
    }

    /// The resource group as it was written.
    pub fn resource_group(&self) -> Option<&str> {
        self.resource_group.as_deref()
    }

    /// The last name: the resource's own.
    pub fn name(&self) -> &str {
        match (&self.provider, &self.resource_group, &self.subscription) {
            (Some(provider), ..) => provider.path.last().map_or("", |(_, name)| name),
            (None, Some(name), _) | (None, None, Some(name)) => name,
            (None, None, None) => "",
        }
    }

    /// Names from the outermost resource to this one, without group and subscription.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.provider.iter().flat_map(|provider| provider.path.iter().map(|(_, name)| name.as_str()))
    }

    /// The full type: `Microsoft.Compute/galleries/images`.
    pub fn resource_type(&self) -> ResourceType {
        match (&self.provider, &self.resource_group) {
            (Some(provider), _) => {
                let types: Vec<&str> = provider.path.iter().map(|(kind, _)| kind.as_str()).collect();
                ResourceType::new(format!("{}/{}", provider.namespace, types.join("/")))
            }
            (None, Some(_)) => resource_type::RESOURCE_GROUPS,
            (None, None) => resource_type::SUBSCRIPTIONS,
        }
    }

    /// The id as image builder spells it in its answers: `/resourcegroups/` in lower case (REFERENCE.md 5.3).
    pub fn to_image_builder_string(&self) -> String {
        self.to_string().replacen("/resourceGroups/", "/resourcegroups/", 1)
    }

    /// The id as a reference of the model.
    ///
    /// # Errors
    /// Never in practice: every id satisfies the reference's invariants.
    pub fn to_ref(&self) -> Result<ResourceRef, Violation> {
        ResourceRef::parse(&self.to_string(), "id")
    }

    /// Reads it as an image definition: `…/galleries/{g}/images/{d}`. `None` for another type or a bad name.
    pub fn to_image_definition(&self) -> Option<ImageDefinitionRef> {
        (self.resource_type() == resource_type::GALLERY_IMAGES).then_some(())?;
        self.definition_names()
    }

    /// Reads it as an image version: `…/galleries/{g}/images/{d}/versions/{v}`; a definition means its `latest`.
    /// `None` for another type or a bad name.
    pub fn to_image_version(&self) -> Option<ImageVersionRef> {
        if let Some(definition) = self.to_image_definition() {
            return Some(ImageVersionRef { definition, version: VersionSelector::Latest });
        }
        (self.resource_type() == resource_type::GALLERY_IMAGE_VERSIONS).then_some(())?;
        let version = if self.name().eq_ignore_ascii_case("latest") {
            VersionSelector::Latest
        } else {
            VersionSelector::Exact(VersionName::parse(self.name()).ok()?)
        };
        Some(ImageVersionRef { definition: self.definition_names()?, version })
    }

    fn definition_names(&self) -> Option<ImageDefinitionRef> {
        let mut names = self.names();
        Some(ImageDefinitionRef {
            subscription: SubscriptionId::parse(self.subscription()?).ok()?,
            resource_group: ResourceGroupName::parse(self.resource_group()?).ok()?,
            gallery: GalleryName::parse(names.next()?).ok()?,
            definition: ImageDefinitionName::parse(names.next()?).ok()?,
        })
    }
}

/// The id of an image definition.
pub fn image_definition_id(definition: &ImageDefinitionRef) -> ResourceId {
    ResourceId::resource_group_id(&definition.subscription, &definition.resource_group)
        .child(&resource_type::GALLERIES, definition.gallery.as_str())
        .child(&resource_type::GALLERY_IMAGES, definition.definition.as_str())
}

/// The id of an image version; `latest` stands as its name.
pub fn image_version_id(version: &ImageVersionRef) -> ResourceId {
    image_definition_id(&version.definition)
        .child(&resource_type::GALLERY_IMAGE_VERSIONS, &version.version.to_string())
}

fn parse(text: &str) -> Result<ResourceId, &'static str> {
    if text.len() > RESOURCE_ID_BYTES_MAX {
        return Err("it is longer than 2048 bytes");
    }
    let rest = text.strip_prefix('/').ok_or("it must start with '/'")?;
    let mut segments = rest.strip_suffix('/').unwrap_or(rest).split('/').peekable();
    let mut next = |keyword: &'static str| {
        segments.next_if(|segment| segment.eq_ignore_ascii_case(keyword))?;
        Some(segments.next().ok_or("it ends after a keyword").and_then(checked))
    };
    let subscription = next("subscriptions").transpose()?;
    let resource_group = if subscription.is_some() { next("resourceGroups").transpose()? } else { None };
    let namespace = next("providers").transpose()?;
    let provider = match namespace {
        None => None,
        Some(namespace) => {
            let rest: Vec<String> = segments.by_ref().map(checked).collect::<Result<_, _>>()?;
            Some(provider(namespace, &rest)?)
        }
    };
    if segments.next().is_some() {
        return Err(
            "expected /subscriptions/{id}[/resourceGroups/{name}][/providers/{namespace}/{type}/{name}…]",
        );
    }
    if subscription.is_none() && provider.is_none() {
        return Err("it must start with '/subscriptions/' or '/providers/'");
    }
    Ok(ResourceId { subscription, resource_group, provider })
}

fn provider(namespace: String, rest: &[String]) -> Result<Provider, &'static str> {
    if rest.is_empty() || !rest.len().is_multiple_of(2) {
        return Err("after the provider it must consist of pairs of a type and a name");
    }
    if rest.len() / 2 > NESTING_MAX {
        return Err("it is nested too deeply");
    }
    let written: Vec<&str> = rest.iter().step_by(2).map(String::as_str).collect();
    let canonical = ResourceType::new(format!("{namespace}/{}", written.join("/")));
    let mut canonical = canonical.as_str().split('/');
    let namespace = canonical.next().unwrap_or_default().to_owned();
    let names = rest.iter().skip(1).step_by(2).cloned();
    Ok(Provider { namespace, path: canonical.map(str::to_owned).zip(names).collect() })
}

fn checked(segment: &str) -> Result<String, &'static str> {
    if segment.is_empty() {
        return Err("it has an empty segment");
    }
    if segment.len() > SEGMENT_BYTES_MAX {
        return Err("a segment is longer than 260 bytes");
    }
    if segment.chars().any(|c| c.is_control() || matches!(c, '?' | '#' | '\\')) {
        return Err("a segment has a character that ids do not have");
    }
    Ok(segment.to_owned())
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subscription) = &self.subscription {
            write!(f, "/subscriptions/{subscription}")?;
        }
        if let Some(group) = &self.resource_group {
            write!(f, "/resourceGroups/{group}")?;
        }
        if let Some(provider) = &self.provider {
            write!(f, "/providers/{}", provider.namespace)?;
            for (kind, name) in &provider.path {
                write!(f, "/{kind}/{name}")?;
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for ResourceId {
    type Err = InvalidResourceId;

    fn from_str(text: &str) -> Result<Self, InvalidResourceId> {
        Self::parse(text)
    }
}

impl PartialEq for ResourceId {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ResourceId {}

impl Hash for ResourceId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VERSION: &str = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/Rg/providers/Microsoft.Compute/galleries/G/images/D/versions/1.0.0";

    #[test]
    fn an_id_is_taken_apart() {
        let id = ResourceId::parse(VERSION).unwrap();
        assert_eq!(id.to_string(), VERSION);
        assert_eq!(id.resource_type(), resource_type::GALLERY_IMAGE_VERSIONS);
        assert_eq!((id.name(), id.resource_group()), ("1.0.0", Some("Rg")));
        assert_eq!(id.names().collect::<Vec<_>>(), ["G", "D", "1.0.0"]);
        let definition = id.parent().unwrap();
        assert_eq!(definition.resource_type(), resource_type::GALLERY_IMAGES);
        assert_eq!(definition.child(&resource_type::GALLERY_IMAGE_VERSIONS, "1.0.0"), id);
        let group = definition.parent().unwrap().parent().unwrap();
        assert_eq!(group.resource_type(), resource_type::RESOURCE_GROUPS);
        assert_eq!(group.parent().unwrap().parent(), None);
    }

    #[test]
    fn case_differs_only_in_names() {
        let odd = VERSION
            .replace("resourceGroups", "RESOURCEGROUPS")
            .replace("Microsoft.Compute/galleries", "microsoft.compute/Galleries")
            .replace("/images/", "/Images/");
        let id = ResourceId::parse(&odd).unwrap();
        assert_eq!(id.to_string(), VERSION);
        assert_eq!(ResourceId::parse(&VERSION.to_uppercase()).unwrap(), id);
        assert!(id.key().contains("/galleries/g/images/d/"));
        assert!(id.to_image_builder_string().contains("/resourcegroups/Rg/"));
    }

    #[test]
    fn definitions_and_versions_are_recognised() {
        let id = ResourceId::parse(VERSION).unwrap();
        let version = id.to_image_version().unwrap();
        assert_eq!(image_version_id(&version), id);
        assert_eq!(id.to_image_definition(), None);
        let definition = id.parent().unwrap();
        assert_eq!(definition.to_image_version().unwrap().version, VersionSelector::Latest);
        let latest = ResourceId::parse(&VERSION.replace("1.0.0", "Latest")).unwrap();
        assert_eq!(latest.to_image_version().unwrap().version, VersionSelector::Latest);
        assert_eq!(ResourceId::parse(&VERSION.replace("1.0.0", "x")).unwrap().to_image_version(), None);
    }

    #[test]
    fn malformed_ids_are_refused() {
        let deep = format!("/providers/A{}", "/t/n".repeat(NESTING_MAX + 1));
        let long = format!("/subscriptions/{}", "x".repeat(SEGMENT_BYTES_MAX + 1));
        for bad in [
            "",
            "/",
            "x",
            "/subscriptions",
            "/subscriptions/",
            "/subscriptions//resourceGroups/a",
            "/resourceGroups/a",
            "/subscriptions/s/providers/N/type",
            "/subscriptions/s/providers/N",
            "/subscriptions/s/extra",
            "/subscriptions/s/resourceGroups/a\n",
            &deep,
            &long,
        ] {
            assert!(ResourceId::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_and_parses_again(text in "(/(subscriptions|resourceGroups|providers|galleries|[A-Za-z.0-9]{1,6})){0,10}") {
            if let Ok(id) = ResourceId::parse(&text) {
                prop_assert_eq!(id.key(), text.to_ascii_lowercase());
                prop_assert_eq!(ResourceId::parse(&id.to_string()).unwrap(), id);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,300}") {
            let _ = ResourceId::parse(&text).map(|id| (id.parent(), id.to_image_version(), id.key()));
        }
    }
}
