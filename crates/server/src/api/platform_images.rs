//! The catalogue as Compute's marketplace shows it: publishers, offers, SKUs, versions; and VM sizes.
//!
//! An image has one version: the one that was made, or, before its first use, the one that would be made today.

use std::collections::BTreeMap;

use arm::ArmError;
use axum::Json;
use axum::extract::State;
use axum::http::Method;
use build::platform::PlatformImage;
use model::Region;
use model::vm_size::VM_SIZES;
use serde_json::{Value, json};

use crate::AppState;
use crate::http::error::ApiError;
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::jobs::make_platform_image::available_version;

pub(super) fn routes(routes: Routes) -> Routes {
    const PUBLISHERS: &str =
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers";
    const OFFERS: &str = "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers/{publisher}/artifacttypes/vmimage/offers";
    const SKUS: &str = "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers/{publisher}/artifacttypes/vmimage/offers/{offer}/skus";
    const VERSIONS: &str = "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers/{publisher}/artifacttypes/vmimage/offers/{offer}/skus/{sku}/versions";
    const VERSION: &str = "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers/{publisher}/artifacttypes/vmimage/offers/{offer}/skus/{sku}/versions/{version}";
    const SIZES: &str =
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/vmsizes";
    routes
        .on(Method::GET, PUBLISHERS, publishers)
        .on(Method::GET, OFFERS, offers)
        .on(Method::GET, SKUS, skus)
        .on(Method::GET, VERSIONS, versions)
        .on(Method::GET, VERSION, version)
        .on(Method::GET, SIZES, sizes)
}

/// The place that a path names.
struct Place<'a> {
    region: Region,
    publisher: Option<&'a str>,
    offer: Option<&'a str>,
    sku: Option<&'a str>,
    /// Id of the location, above the publishers.
    id: String,
}

impl<'a> Place<'a> {
    fn of(state: &AppState, path: &'a ArmPath) -> Result<Place<'a>, ApiError> {
        // Keys and values do not come in pairs here ("artifacttypes/vmimage" stands between): look by name.
        let after = |key: &str| {
            let at = (0..path.len()).find(|at| path.segment(*at).eq_ignore_ascii_case(key))?;
            Some(path.segment(at + 1)).filter(|value| !value.is_empty())
        };
        let location = path.segment(5);
        let region = state.config.region(location).ok_or_else(|| no_location(state, location))?.name.clone();
        let subscription = &state.config.subscription_id;
        let id = format!("/Subscriptions/{subscription}/Providers/Microsoft.Compute/Locations/{region}");
        let (publisher, offer, sku) = (after("publishers"), after("offers"), after("skus"));
        Ok(Place { region, publisher, offer, sku, id })
    }

    /// The images at this place; none is a 404.
    fn images<'s>(&self, state: &'s AppState) -> Result<Vec<&'s PlatformImage>, ApiError> {
        let fits =
            |wanted: Option<&str>, name: &str| wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(name));
        let images: Vec<_> = state
            .fabric
            .catalog()
            .images()
            .filter(|image| {
                fits(self.publisher, &image.publisher)
                    && fits(self.offer, &image.offer)
                    && fits(self.sku, &image.sku)
            })
            .collect();
        if images.is_empty() && self.publisher.is_some() { Err(self.not_found()) } else { Ok(images) }
    }

    fn not_found(&self) -> ApiError {
        let named: Vec<&str> = [self.publisher, self.offer, self.sku].into_iter().flatten().collect();
        let target = ["publisher", "offer", "sku"][named.len().clamp(1, 3) - 1];
        let message =
            format!("Artifact: VMImage was not found: '{}' in location '{}'.", named.join(":"), self.region);
        ArmError::new(404, "NotFound", message).with_target(target).into()
    }

    /// One entry of a list, as Compute writes it.
    fn entry(&self, below: &str, name: &str) -> Value {
        json!({ "location": self.region, "name": name, "id": format!("{}{below}", self.id) })
    }
}

fn no_location(state: &AppState, location: &str) -> ApiError {
    let names: Vec<&str> = state.config.regions.iter().map(|region| region.name.as_str()).collect();
    let message = format!(
        "The provided location '{location}' is not available. List of available regions is '{}'.",
        names.join(",")
    );
    ApiError::new(400, "NoRegisteredProviderFound", message)
}

/// Names without repetition, by lower case: the first spelling wins.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = BTreeMap::new();
    for name in names {
        found.entry(name.to_lowercase()).or_insert(name);
    }
    found.into_values().collect()
}

async fn publishers(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let place = Place::of(&state, &path)?;
    let names = distinct(place.images(&state)?.into_iter().map(|image| image.publisher.as_str()));
    Ok(Json(names.into_iter().map(|name| place.entry(&format!("/Publishers/{name}"), name)).collect()))
}

async fn offers(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let place = Place::of(&state, &path)?;
    let images = place.images(&state)?;
    let publisher = images.first().map_or("", |image| &image.publisher);
    let names = distinct(images.iter().map(|image| image.offer.as_str()));
    let above = format!("/Publishers/{publisher}/ArtifactTypes/VMImage/Offers");
    Ok(Json(names.into_iter().map(|name| place.entry(&format!("{above}/{name}"), name)).collect()))
}

async fn skus(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let place = Place::of(&state, &path)?;
    let images = place.images(&state)?;
    Ok(Json(images.into_iter().map(|image| place.entry(&sku_path(image), &image.sku)).collect()))
}

fn sku_path(image: &PlatformImage) -> String {
    let PlatformImage { publisher, offer, sku, .. } = image;
    format!("/Publishers/{publisher}/ArtifactTypes/VMImage/Offers/{offer}/Skus/{sku}")
}

async fn versions(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let place = Place::of(&state, &path)?;
    if query.get("$top") == Some("0") {
        return Ok(Json(json!([])));
    }
    let mut value = Vec::new();
    for image in place.images(&state)? {
        let name = available_version(&state, image).await?;
        value.push(place.entry(&format!("{}/Versions/{name}", sku_path(image)), &name));
    }
    Ok(Json(Value::Array(value)))
}

async fn version(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    let place = Place::of(&state, &path)?;
    let asked = path.segment(path.len() - 1);
    for image in place.images(&state)? {
        let name = available_version(&state, image).await?;
        if asked != name && !asked.eq_ignore_ascii_case("latest") {
            continue;
        }
        let mut entry = place.entry(&format!("{}/Versions/{name}", sku_path(image)), &name);
        entry["properties"] = json!({
            "hyperVGeneration": image.hyper_v_generation, "architecture": "x64",
            "osDiskImage": { "operatingSystem": "Linux" }, "dataDiskImages": [],
            "automaticOSUpgradeProperties": { "automaticOSUpgradeSupported": false },
            "features": [], "imageDeprecationStatus": { "imageState": "Active" },
        });
        return Ok(Json(entry));
    }
    Err(place.not_found())
}

/// The sizes that VMs and builds may name.
async fn sizes(State(state): State<AppState>, path: ArmPath) -> Result<Json<Value>, ApiError> {
    Place::of(&state, &path)?;
    let value: Vec<Value> = VM_SIZES
        .iter()
        .map(|size| {
            json!({
                "name": size.name, "numberOfCores": size.vcpus, "memoryInMB": size.memory_mib,
                "osDiskSizeInMB": 1_047_552, "resourceDiskSizeInMB": 0, "maxDataDiskCount": size.data_disks_max,
            })
        })
        .collect();
    Ok(Json(json!({ "value": value })))
}
