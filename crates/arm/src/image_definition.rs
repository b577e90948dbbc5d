//! `Microsoft.Compute/galleries/images`.

use model::VersionName;
use model::image_definition::{
    Architecture, Feature, HyperVGeneration, Identifier, ImageDefinition, ImageDefinitionSpec, PurchasePlan,
    Range,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api_version::ApiVersion;
use crate::common::{self, Context, Object, Parsed, WireTags};
use crate::error::ArmError;
use crate::names::{ARCHITECTURES, GENERATIONS, OS_STATES, OS_TYPES};
use crate::shape::{self, Kind, Shape, Strictness};
use crate::time;

const SHAPE: Shape = Shape {
    name: "ResourceDefinition",
    fields: &[
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("properties", Kind::Object(&PROPERTIES)),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
        ("systemData", Kind::Dropped),
    ],
};

const PROPERTIES: Shape = Shape {
    name: "GalleryImageProperties",
    fields: &[
        ("description", Kind::Typed),
        ("eula", Kind::Typed),
        ("privacyStatementUri", Kind::Typed),
        ("releaseNoteUri", Kind::Typed),
        ("osType", Kind::Typed),
        ("osState", Kind::Typed),
        ("hyperVGeneration", Kind::Typed),
        ("endOfLifeDate", Kind::Typed),
        ("identifier", Kind::Object(&IDENTIFIER)),
        ("recommended", Kind::Object(&RECOMMENDED)),
        ("disallowed", Kind::Object(&DISALLOWED)),
        ("purchasePlan", Kind::Object(&PURCHASE_PLAN)),
        ("provisioningState", Kind::Dropped),
        ("features", Kind::List(&FEATURE)),
        ("architecture", Kind::Typed),
        ("allowUpdateImage", Kind::Typed),
    ],
};

const IDENTIFIER: Shape = Shape {
    name: "GalleryImageIdentifier",
    fields: &[("publisher", Kind::Typed), ("offer", Kind::Typed), ("sku", Kind::Typed)],
};
const RECOMMENDED: Shape = Shape {
    name: "RecommendedMachineConfiguration",
    fields: &[("vCPUs", Kind::Object(&RANGE)), ("memory", Kind::Object(&RANGE))],
};
const RANGE: Shape = Shape { name: "ResourceRange", fields: &[("min", Kind::Typed), ("max", Kind::Typed)] };
const DISALLOWED: Shape = Shape { name: "Disallowed", fields: &[("diskTypes", Kind::Typed)] };
const PURCHASE_PLAN: Shape = Shape {
    name: "ImagePurchasePlan",
    fields: &[("name", Kind::Typed), ("publisher", Kind::Typed), ("product", Kind::Typed)],
};
const FEATURE: Shape = Shape {
    name: "GalleryImageFeature",
    fields: &[("name", Kind::Typed), ("value", Kind::Typed), ("startsAtVersion", Kind::Typed)],
};

/// The newest version whose properties the shape has (REFERENCE.md 7).
const KNOWN_UNTIL: (u16, u8, u8) = (2026, 3, 3);

#[derive(Deserialize)]
struct Wire {
    location: Option<String>,
    tags: Option<WireTags>,
    properties: Option<WireProperties>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireProperties {
    description: Option<String>,
    eula: Option<String>,
    privacy_statement_uri: Option<String>,
    release_note_uri: Option<String>,
    os_type: Option<String>,
    os_state: Option<String>,
    #[serde(rename = "hyperVGeneration")]
    hyper_v_generation: Option<String>,
    end_of_life_date: Option<String>,
    identifier: Option<WireIdentifier>,
    recommended: WireRecommended,
    disallowed: WireDisallowed,
    purchase_plan: Option<WirePurchasePlan>,
    features: Vec<WireFeature>,
    architecture: Option<String>,
    allow_update_image: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireIdentifier {
    publisher: String,
    offer: String,
    sku: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireRecommended {
    #[serde(rename = "vCPUs")]
    vcpus: Option<WireRange>,
    memory: Option<WireRange>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireRange {
    min: Option<i32>,
    max: Option<i32>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireDisallowed {
    disk_types: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WirePurchasePlan {
    name: Option<String>,
    publisher: Option<String>,
    product: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireFeature {
    name: String,
    value: String,
    starts_at_version: Option<String>,
}

/// Reads a PUT and checks what the definition alone can break.
///
/// # Errors
/// What is wrong with the body.
pub fn parse(
    body: Value,
    version: &ApiVersion,
    now: model::Timestamp,
) -> Result<Parsed<ImageDefinitionSpec>, ArmError> {
    let strictness = Strictness::compute(version, KNOWN_UNTIL);
    let mut read = shape::read(body, &SHAPE, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let location = common::location(wire.location.as_deref())?;
    let properties = wire.properties.ok_or_else(|| ArmError::missing_parameter("properties"))?;
    let required = |word: &Option<String>, name: &str| {
        word.clone().ok_or_else(|| ArmError::missing_parameter(&format!("galleryImage.properties.{name}")))
    };
    let identifier = properties
        .identifier
        .ok_or_else(|| ArmError::missing_parameter("galleryImage.properties.identifier"))?;
    let features = properties.features.into_iter().map(feature).collect::<Result<Vec<_>, _>>()?;
    let generation =
        GENERATIONS.parse_option(properties.hyper_v_generation.as_deref(), "properties.hyperVGeneration")?;
    let (generation, features) = defaults(version, generation, features);
    let end_of_life =
        properties.end_of_life_date.map(|text| time::parse(&text, "endOfLifeDate")).transpose()?;
    let data = ImageDefinitionSpec {
        location,
        tags: common::resource_tags(wire.tags, &mut read.extra)?,
        description: properties.description,
        eula: properties.eula,
        privacy_statement_uri: properties.privacy_statement_uri,
        release_note_uri: properties.release_note_uri,
        os_type: OS_TYPES.parse(&required(&properties.os_type, "osType")?, "properties.osType")?,
        os_state: OS_STATES.parse(&required(&properties.os_state, "osState")?, "properties.osState")?,
        hyper_v_generation: generation,
        architecture: ARCHITECTURES
            .parse_option(properties.architecture.as_deref(), "properties.architecture")?
            .unwrap_or(Architecture::X64),
        identifier: Identifier {
            publisher: identifier.publisher,
            offer: identifier.offer,
            sku: identifier.sku,
        },
        end_of_life,
        recommended_vcpus: properties.recommended.vcpus.map(range),
        recommended_memory_gib: properties.recommended.memory.map(range),
        disallowed_disk_types: properties.disallowed.disk_types,
        purchase_plan: properties.purchase_plan.map(|plan| PurchasePlan {
            name: plan.name,
            publisher: plan.publisher,
            product: plan.product,
        }),
        features,
        allow_update_image: properties.allow_update_image,
    };
    data.check(now)?;
    Ok(Parsed { data, extra: read.extra })
}

/// From 2025-03-03 a definition is of generation 2 and supports Trusted Launch unless it says `Standard`
/// (RULES.md 2B, Definition).
fn defaults(
    version: &ApiVersion,
    generation: Option<HyperVGeneration>,
    mut features: Vec<Feature>,
) -> (HyperVGeneration, Vec<Feature>) {
    if !version.is_at_least(2025, 3, 3) {
        return (generation.unwrap_or(HyperVGeneration::V1), features);
    }
    let generation = generation.unwrap_or(HyperVGeneration::V2);
    let says = features.iter().any(|feature| feature.name.eq_ignore_ascii_case("SecurityType"));
    if generation == HyperVGeneration::V2 && !says {
        features.push(Feature {
            name: "SecurityType".into(),
            value: "TrustedLaunchSupported".into(),
            starts_at_version: None,
        });
    }
    (generation, features)
}

fn feature(wire: WireFeature) -> Result<Feature, ArmError> {
    let starts_at_version =
        common::non_empty(wire.starts_at_version).map(|text| VersionName::parse(&text)).transpose()?;
    Ok(Feature { name: wire.name, value: wire.value, starts_at_version })
}

fn range(wire: WireRange) -> Range {
    Range { min: wire.min, max: wire.max }
}

/// An image definition as Compute answers it.
pub fn render(definition: &ImageDefinition, context: &Context<'_>) -> Value {
    let spec = &definition.spec;
    let features: Vec<Value> = spec
        .features
        .iter()
        .map(|feature| {
            let starts = feature.starts_at_version.map(|version| version.to_string());
            Object::new()
                .set("name", feature.name.as_str())
                .set("value", feature.value.as_str())
                .maybe("startsAtVersion", starts)
                .into()
        })
        .collect();
    let recommended = Object::new()
        .maybe("vCPUs", spec.recommended_vcpus.map(range_json))
        .maybe("memory", spec.recommended_memory_gib.map(range_json));
    let recommends = spec.recommended_vcpus.is_some() || spec.recommended_memory_gib.is_some();
    let disallows = !spec.disallowed_disk_types.is_empty();
    let plan = spec.purchase_plan.as_ref().map(|plan| {
        Object::new()
            .maybe("name", plan.name.as_deref())
            .maybe("publisher", plan.publisher.as_deref())
            .maybe("product", plan.product.as_deref())
    });
    let identifier = &spec.identifier;
    let properties = Object::new()
        .maybe("description", spec.description.as_deref())
        .maybe("eula", spec.eula.as_deref())
        .maybe("privacyStatementUri", spec.privacy_statement_uri.as_deref())
        .maybe("releaseNoteUri", spec.release_note_uri.as_deref())
        .set("hyperVGeneration", GENERATIONS.name(spec.hyper_v_generation))
        .set("architecture", ARCHITECTURES.name(spec.architecture))
        .maybe("features", (!features.is_empty()).then_some(features))
        .set("osType", OS_TYPES.name(spec.os_type))
        .set("osState", OS_STATES.name(spec.os_state))
        .set(
            "identifier",
            json!({ "publisher": identifier.publisher, "offer": identifier.offer, "sku": identifier.sku }),
        )
        .maybe("endOfLifeDate", spec.end_of_life.map(time::compute))
        .maybe("recommended", recommends.then_some(recommended))
        .maybe("disallowed", disallows.then(|| json!({ "diskTypes": spec.disallowed_disk_types })))
        .maybe("purchasePlan", plan)
        .maybe("allowUpdateImage", spec.allow_update_image)
        .set("provisioningState", definition.provisioning.name());
    common::compute_resource(context, &spec.location, &spec.tags, properties).into()
}

fn range_json(range: Range) -> Value {
    Object::new().maybe("min", range.min).maybe("max", range.max).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_id::ResourceId;
    use model::{ImageDefinitionName, Timestamp};

    fn body() -> Value {
        json!({"location": "eastus", "properties": {
            "osType": "Linux", "osState": "generalized", "disallowed": {},
            "identifier": {"publisher": "p", "offer": "o", "sku": "s"},
        }})
    }

    fn parse_at(body: Value, version: &str) -> Result<Parsed<ImageDefinitionSpec>, ArmError> {
        parse(body, &ApiVersion::parse(version).unwrap(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn defaults_follow_the_version() {
        let old = parse_at(body(), "2024-03-03").unwrap().data;
        assert_eq!((old.hyper_v_generation, old.features.len()), (HyperVGeneration::V1, 0));
        let new = parse_at(body(), "2025-03-03").unwrap().data;
        assert_eq!(
            (new.hyper_v_generation, new.features[0].value.as_str()),
            (HyperVGeneration::V2, "TrustedLaunchSupported")
        );
        let mut standard = body();
        standard["properties"]["features"] = json!([{"name": "SecurityType", "value": "Standard"}]);
        assert_eq!(parse_at(standard, "2025-03-03").unwrap().data.features.len(), 1);
    }

    #[test]
    fn a_definition_comes_back() {
        let parsed = parse_at(body(), "2024-03-03").unwrap();
        let definition = ImageDefinition::create(ImageDefinitionName::parse("d").unwrap(), parsed.data);
        let id = ResourceId::parse(
            "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/galleries/g/images/d",
        )
        .unwrap();
        insta::assert_json_snapshot!(render(&definition, &Context { id: &id, extra: &parsed.extra }), @r#"
        {
          "name": "d",
          "id": "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/galleries/g/images/d",
          "type": "Microsoft.Compute/galleries/images",
          "location": "eastus",
          "properties": {
            "hyperVGeneration": "V1",
            "architecture": "x64",
            "osType": "Linux",
            "osState": "Generalized",
            "identifier": {
              "publisher": "p",
              "offer": "o",
              "sku": "s"
            },
            "provisioningState": "Creating"
          }
        }
        "#);
    }

    #[test]
    fn refusals_name_the_property() {
        let refusal = |change: fn(&mut Value)| {
            let mut body = body();
            change(&mut body["properties"]);
            let error = parse_at(body, "2024-03-03").unwrap_err();
            (error.code, error.target.unwrap_or_default())
        };
        assert_eq!(
            refusal(|p| p["osType"] = json!("BeOS")),
            ("InvalidParameter".into(), "properties.osType".into())
        );
        assert_eq!(
            refusal(|p| p["osType"] = json!(null)),
            ("InvalidParameter".into(), "galleryImage.properties.osType".into())
        );
        assert_eq!(
            refusal(|p| p["identifier"]["sku"] = json!("a.")).1,
            "galleryImage.properties.identifier.sku"
        );
        assert_eq!(
            refusal(|p| p["recommended"] = json!({"vCPUs": {"min": "x"}})),
            ("InvalidRequestContent".into(), "properties.recommended.vCPUs.min".into())
        );
        assert_eq!(refusal(|p| p["colour"] = json!(1)), ("BadRequest".into(), "properties.colour".into()));
        assert_eq!(refusal(|p| p["endOfLifeDate"] = json!("1969-01-01")).1, "properties.endOfLifeDate");
    }
}
