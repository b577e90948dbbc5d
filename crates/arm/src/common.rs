//! What every resource type shares on the wire.

use std::collections::BTreeMap;

use model::{Region, ResourceRef, Tags, Violation};
use serde_json::{Map, Value, json};

use crate::error::ArmError;
use crate::merge::add_extra;
use crate::resource_id::ResourceId;

/// A request that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed<T> {
    /// What the model has fields for.
    pub data: T,
    /// What Azure has and we only give back. Store it beside the data; hand it to `render` in [`Context`].
    pub extra: Map<String, Value>,
}

/// What `render` needs beside the resource.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The resource's id in the case in which it was created.
    pub id: &'a ResourceId,
    /// [`Parsed::extra`] of the request that made it.
    pub extra: &'a Map<String, Value>,
}

/// `location`, which must be there.
pub(crate) fn location(text: Option<&str>) -> Result<Region, ArmError> {
    match text {
        None | Some("") => Err(ArmError::location_required()),
        Some(text) => Ok(Region::parse(text)?),
    }
}

/// Tags as clients send them. A value may be null, which is the empty text.
pub(crate) type WireTags = BTreeMap<String, Option<String>>;

/// A resource's own `tags`, which need not be there. Azure answers `{}` to `{}` and nothing to nothing
/// (recorded); the model need not know, so the empty object is kept.
pub(crate) fn resource_tags(
    wire: Option<WireTags>,
    extra: &mut Map<String, Value>,
) -> Result<Tags, Violation> {
    if wire.as_ref().is_some_and(|tags| tags.is_empty()) {
        extra.insert("tags".to_owned(), json!({}));
    }
    tags(wire)
}

/// Any other tags.
pub(crate) fn tags(wire: Option<WireTags>) -> Result<Tags, Violation> {
    Tags::new(
        wire.unwrap_or_default().into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect(),
    )
}

/// Tags as they are answered.
pub(crate) fn tags_json(tags: &Tags) -> Value {
    Value::Object(tags.iter().map(|(name, value)| (name.to_owned(), json!(value))).collect())
}

/// A resource's own tags, unless there are none.
pub(crate) fn resource_tags_json(tags: &Tags) -> Option<Value> {
    (*tags != Tags::default()).then(|| tags_json(tags))
}

/// A reference to a resource, checked by ARM's grammar.
pub(crate) fn reference(text: &str, target: &str) -> Result<ResourceRef, ArmError> {
    let reference = ResourceRef::parse(text, target)?;
    match ResourceId::parse(text) {
        Ok(_) => Ok(reference),
        // RULES.md 2D, 23.
        Err(_) => Err(ArmError::new(
            400,
            "LinkedInvalidPropertyId",
            format!(
                "Property id {} at path '{target}' is invalid. Expect fully qualified resource Id that start with \
                 '/subscriptions/{{subscriptionId}}' or '/providers/{{resourceProviderNamespace}}/'",
                text.chars().filter(|c| !c.is_control()).take(300).collect::<String>()
            ),
        )
        .with_target(target)),
    }
}

/// The empty text is "absent" in many of image builder's and Compute's properties.
pub(crate) fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// An object under construction; absent values leave no trace.
#[derive(Debug, Default)]
pub(crate) struct Object(Map<String, Value>);

impl Object {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Sets a property.
    pub(crate) fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// Sets a property unless it is absent.
    pub(crate) fn maybe(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.set(name, value),
            None => self,
        }
    }

    /// Adds what was kept.
    pub(crate) fn with_extra(mut self, extra: &Map<String, Value>) -> Self {
        add_extra(&mut self.0, extra);
        self
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object.0)
    }
}

/// A resource of Microsoft.Compute: name, id, type, location, tags, properties, then what was kept.
pub(crate) fn compute_resource(
    context: &Context<'_>,
    location: &Region,
    tags: &Tags,
    properties: Object,
) -> Object {
    Object::new()
        .set("name", context.id.name())
        .set("id", context.id.to_string())
        .set("type", context.id.resource_type().as_str())
        .set("location", location.as_str())
        .maybe("tags", resource_tags_json(tags))
        .set("properties", properties)
        .with_extra(context.extra)
}
