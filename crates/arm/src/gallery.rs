//! `Microsoft.Compute/galleries`.

use model::SubscriptionId;
use model::gallery::{Gallery, GallerySpec};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api_version::ApiVersion;
use crate::common::{self, Context, Object, Parsed, WireTags};
use crate::error::ArmError;
use crate::names::PERMISSIONS;
use crate::shape::{self, Kind, Shape, Strictness};

const SHAPE: Shape = Shape {
    name: "ResourceDefinition",
    fields: &[
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("properties", Kind::Object(&PROPERTIES)),
        ("identity", Kind::Kept),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
        ("systemData", Kind::Dropped),
    ],
};

const PROPERTIES: Shape = Shape {
    name: "GalleryProperties",
    fields: &[
        ("description", Kind::Typed),
        ("identifier", Kind::Dropped),
        ("provisioningState", Kind::Dropped),
        ("sharingProfile", Kind::Object(&SHARING_PROFILE)),
        ("softDeletePolicy", Kind::Object(&SOFT_DELETE_POLICY)),
        ("sharingStatus", Kind::Dropped),
    ],
};

const SHARING_PROFILE: Shape = Shape {
    name: "SharingProfile",
    fields: &[
        ("permissions", Kind::Typed),
        ("groups", Kind::Dropped),
        ("communityGalleryInfo", Kind::Object(&COMMUNITY_GALLERY_INFO)),
    ],
};

const COMMUNITY_GALLERY_INFO: Shape = Shape {
    name: "CommunityGalleryInfo",
    fields: &[
        ("publisherUri", Kind::Kept),
        ("publisherContact", Kind::Kept),
        ("eula", Kind::Kept),
        ("publicNamePrefix", Kind::Kept),
        ("communityGalleryEnabled", Kind::Dropped),
        ("publicNames", Kind::Dropped),
    ],
};

const SOFT_DELETE_POLICY: Shape = Shape {
    name: "SoftDeletePolicy",
    fields: &[
        ("isSoftDeleteEnabled", Kind::Typed),
        ("retentionPeriodInDays", Kind::Kept),
        ("gracePeriodInDays", Kind::Kept),
    ],
};

/// The newest version whose properties the shape has (REFERENCE.md 7).
const KNOWN_UNTIL: (u16, u8, u8) = (2026, 3, 3);

#[derive(Deserialize)]
struct Wire {
    location: Option<String>,
    tags: Option<WireTags>,
    #[serde(default)]
    properties: WireProperties,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireProperties {
    description: Option<String>,
    sharing_profile: WireSharingProfile,
    soft_delete_policy: WireSoftDeletePolicy,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireSharingProfile {
    permissions: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireSoftDeletePolicy {
    is_soft_delete_enabled: Option<bool>,
}

/// Reads a PUT.
///
/// # Errors
/// What is wrong with the body.
pub fn parse(body: Value, version: &ApiVersion) -> Result<Parsed<GallerySpec>, ArmError> {
    let strictness = Strictness::compute(version, KNOWN_UNTIL);
    let mut read = shape::read(body, &SHAPE, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let permissions = wire.properties.sharing_profile.permissions;
    let data = GallerySpec {
        location: common::location(wire.location.as_deref())?,
        tags: common::resource_tags(wire.tags, &mut read.extra)?,
        description: wire.properties.description,
        sharing: PERMISSIONS.parse_option(permissions.as_deref(), "properties.sharingProfile.permissions")?,
        soft_delete: wire.properties.soft_delete_policy.is_soft_delete_enabled,
    };
    Ok(Parsed { data, extra: read.extra })
}

/// A gallery as Compute answers it.
pub fn render(gallery: &Gallery, context: &Context<'_>) -> Value {
    let unique_name = match context.id.subscription().map(SubscriptionId::parse) {
        Some(Ok(subscription)) => gallery.unique_name(&subscription),
        _ => gallery.name.as_str().to_ascii_uppercase(),
    };
    let properties = Object::new()
        .maybe("description", gallery.spec.description.as_deref())
        .set("identifier", json!({ "uniqueName": unique_name }))
        .maybe(
            "sharingProfile",
            gallery.spec.sharing.map(|sharing| json!({ "permissions": PERMISSIONS.name(sharing) })),
        )
        .maybe(
            "softDeletePolicy",
            gallery.spec.soft_delete.map(|enabled| json!({ "isSoftDeleteEnabled": enabled })),
        )
        .set("provisioningState", gallery.provisioning.name());
    common::compute_resource(context, &gallery.spec.location, &gallery.spec.tags, properties).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_id::ResourceId;
    use model::GalleryName;

    #[test]
    fn a_gallery_comes_back_with_what_it_does_not_understand() {
        let version = ApiVersion::parse("2024-03-03").unwrap();
        let body = json!({
            "location": "West US", "identity": {"type": "SystemAssigned"},
            "properties": {
                "description": "d", "identifier": {}, "provisioningState": "Succeeded",
                "sharingProfile": {"permissions": "community", "communityGalleryInfo": {"eula": "e", "publicNames": ["x"]}}
            }
        });
        let parsed = parse(body, &version).unwrap();
        let gallery = Gallery::create(GalleryName::parse("My_Gallery").unwrap(), parsed.data);
        let id = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Compute/galleries/My_Gallery";
        insta::assert_json_snapshot!(render(&gallery, &Context { id: &ResourceId::parse(id).unwrap(), extra: &parsed.extra }), @r#"
        {
          "name": "My_Gallery",
          "id": "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Compute/galleries/My_Gallery",
          "type": "Microsoft.Compute/galleries",
          "location": "westus",
          "properties": {
            "description": "d",
            "identifier": {
              "uniqueName": "00000000-0000-0000-0000-000000000000-MY_GALLERY"
            },
            "sharingProfile": {
              "permissions": "Community",
              "communityGalleryInfo": {
                "eula": "e"
              }
            },
            "provisioningState": "Creating"
          },
          "identity": {
            "type": "SystemAssigned"
          }
        }
        "#);
    }
}
