//! `Microsoft.Resources/resourceGroups`.

use model::resource_group::{ResourceGroup, ResourceGroupSpec};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api_version::ApiVersion;
use crate::common::{self, Context, Object, Parsed, WireTags};
use crate::error::ArmError;
use crate::shape::{self, Kind, Shape, Strictness};

const SHAPE: Shape = Shape {
    name: "ResourceGroupDefinition",
    fields: &[
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("managedBy", Kind::Typed),
        ("properties", Kind::Dropped),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
    ],
};

/// The newest version whose properties the shape has.
const KNOWN_UNTIL: (u16, u8, u8) = (2026, 12, 31);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    location: Option<String>,
    tags: Option<WireTags>,
    managed_by: Option<String>,
}

/// Reads a PUT.
///
/// # Errors
/// What is wrong with the body.
pub fn parse(body: Value, version: &ApiVersion) -> Result<Parsed<ResourceGroupSpec>, ArmError> {
    let strictness = Strictness::compute(version, KNOWN_UNTIL);
    let mut read = shape::read(body, &SHAPE, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let data = ResourceGroupSpec {
        location: common::location(wire.location.as_deref())?,
        tags: common::resource_tags(wire.tags, &mut read.extra)?,
        managed_by: common::non_empty(wire.managed_by),
    };
    Ok(Parsed { data, extra: read.extra })
}

/// A resource group as ARM answers it.
pub fn render(group: &ResourceGroup, context: &Context<'_>) -> Value {
    Object::new()
        .set("id", context.id.to_string())
        .set("name", group.name.as_str())
        .set("type", context.id.resource_type().as_str())
        .set("location", group.spec.location.as_str())
        .maybe("managedBy", group.spec.managed_by.as_deref())
        .maybe("tags", common::resource_tags_json(&group.spec.tags))
        .set("properties", json!({ "provisioningState": group.provisioning.name() }))
        .with_extra(context.extra)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_id::ResourceId;
    use model::ResourceGroupName;

    #[test]
    fn a_group_comes_back() {
        let version = ApiVersion::parse("2024-11-01").unwrap();
        let body = json!({"location": "East US 2", "tags": {"a": "b", "c": null}, "properties": {}});
        let parsed = parse(body, &version).unwrap();
        let group = ResourceGroup::create(ResourceGroupName::parse("Rg").unwrap(), parsed.data);
        let id = ResourceId::parse("/subscriptions/s/resourceGroups/Rg").unwrap();
        insta::assert_json_snapshot!(render(&group, &Context { id: &id, extra: &parsed.extra }), @r#"
        {
          "id": "/subscriptions/s/resourceGroups/Rg",
          "name": "Rg",
          "type": "Microsoft.Resources/resourceGroups",
          "location": "eastus2",
          "tags": {
            "a": "b",
            "c": ""
          },
          "properties": {
            "provisioningState": "Succeeded"
          }
        }
        "#);
        assert_eq!(parse(json!({}), &version).unwrap_err().code, "LocationRequired");
        assert_eq!(
            parse(json!({"location": "x", "lokation": 1}), &version).unwrap_err().code,
            "InvalidRequestContent"
        );
    }
}
