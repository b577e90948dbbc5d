//! What az sent to real Azure and what real Azure answered: the same request to us gives the same body.

use std::collections::{BTreeMap, HashMap};

use arm::{
    ApiVersion, Context, ResourceId, disk, gallery, image_definition, image_template, image_version,
    managed_image, resource_type,
};
use model::content::DiskContent;
use model::gallery::Gallery;
use model::image_definition::{Architecture, HyperVGeneration, ImageDefinition, OsType};
use model::image_template::{ImageSource, ImageTemplate, ResolvedIdentity, Sha256};
use model::image_version::{ImageVersion, VersionContent, VersionState};
use model::managed_disk::{AccessMode, DiskAccess, DiskBytes, DiskKind, ManagedDisk};
use model::managed_image::{ImageBytes, ManagedImage};
use model::{
    DiskName, GalleryName, ImageDefinitionName, ImageTemplateName, ManifestRef, ProvisioningState, Region,
    Timestamp, VersionName,
};
use serde_json::{Map, Value};

use crate::data::{azure, content};

/// What we hold between requests, as the server would in its store.
enum Held {
    Gallery(Gallery),
    Definition(Box<ImageDefinition>),
    Version(Box<ImageVersion>),
    Template(Box<ImageTemplate>),
    Disk(Box<ManagedDisk>),
    Image(Box<ManagedImage>),
}

#[derive(Default)]
struct World {
    held: HashMap<String, (ResourceId, Held, Map<String, Value>)>,
    compared: BTreeMap<String, usize>,
}

#[test]
fn recorded_answers_are_ours() {
    let Some(azure) = azure() else { return };
    let mut compared: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(azure.join("recordings"))
        .expect("recordings")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a recording");
        let exchanges: Vec<Value> = serde_json::from_str(&text).expect("a list of exchanges");
        let mut world = World::default();
        for exchange in &exchanges {
            if let Err(difference) = world.exchange(exchange) {
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                wrong.push(format!("{name} {}: {difference}", exchange["i"]));
            }
        }
        for (kind, count) in world.compared {
            *compared.entry(kind).or_default() += count;
        }
    }
    println!("{compared:?}");
    for kind in [
        resource_type::GALLERIES,
        resource_type::GALLERY_IMAGES,
        resource_type::GALLERY_IMAGE_VERSIONS,
        resource_type::IMAGE_TEMPLATES,
        resource_type::DISKS,
        resource_type::SNAPSHOTS,
        resource_type::IMAGES,
    ] {
        for method in ["PUT", "GET"] {
            let count = compared.get(&format!("{method} {kind}")).copied().unwrap_or_default();
            assert!(count > 0, "no recorded {method} of {kind} was compared");
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

impl World {
    fn exchange(&mut self, exchange: &Value) -> Result<(), String> {
        let (request, response) = (&exchange["request"], &exchange["response"]);
        let method = request["method"].as_str().unwrap_or_default();
        let uri = request["uri"].as_str().unwrap_or_default();
        let Some((path, query)) = uri.trim_start_matches("https://management.azure.com").split_once('?')
        else {
            return Ok(());
        };
        let Ok(id) = ResourceId::parse(path) else { return Ok(()) };
        let kind = id.resource_type();
        let ours = [
            resource_type::GALLERIES,
            resource_type::GALLERY_IMAGES,
            resource_type::GALLERY_IMAGE_VERSIONS,
            resource_type::IMAGE_TEMPLATES,
            resource_type::DISKS,
            resource_type::SNAPSHOTS,
            resource_type::IMAGES,
        ];
        let success = response["status"].as_u64().is_some_and(|status| status < 300);
        let expanded = query.contains('$') || query.contains("%24");
        if !ours.contains(&kind) || !success || expanded {
            return Ok(());
        }
        let version = query.split('&').find_map(|part| part.strip_prefix("api-version=")).unwrap_or_default();
        let version = ApiVersion::parse(version).map_err(|error| error.to_string())?;
        version.check(&kind, "eastus").map_err(|error| error.to_string())?;
        let expected = &response["body"];
        match method {
            // A VM cannot be captured here.
            "PUT" if !request["body"]["properties"]["sourceVirtualMachine"].is_null() => return Ok(()),
            "PUT" => self.put(&id, request["body"].clone(), &version)?,
            "GET" if self.held.contains_key(&id.key()) => self.settle(&id.key(), expected),
            _ => return Ok(()),
        }
        let (id, held, extra) = &self.held[&id.key()];
        let actual = match held {
            Held::Disk(disk) if method == "PUT" => {
                disk::render(disk, disk::Form::Accepted, &Context { id, extra })
            }
            held => render(id, held, extra),
        };
        let (expected, actual) = (masked(expected), masked(&actual));
        // A gallery that was shared meanwhile, a run that was started: other operations' effects.
        if method == "GET"
            && (expected["properties"].get("sharingProfile").is_some()
                || expected["properties"].get("lastRunStatus").is_some())
        {
            return Ok(());
        }
        *self.compared.entry(format!("{method} {kind}")).or_default() += 1;
        if expected == actual {
            Ok(())
        } else {
            Err(format!("{method} {path}\n    azure {expected}\n    ours  {actual}"))
        }
    }

    fn put(&mut self, id: &ResourceId, body: Value, version: &ApiVersion) -> Result<(), String> {
        let text = |error: arm::ArmError| error.to_string();
        let now = Timestamp::UNIX_EPOCH;
        let before = self.held.remove(&id.key());
        let (held, extra) = match (id.resource_type(), before) {
            (kind, before) if kind == resource_type::GALLERIES => {
                let parsed = gallery::parse(body, version).map_err(text)?;
                let name = GalleryName::parse(id.name()).map_err(|error| error.message)?;
                let mut gallery = Gallery::create(name, parsed.data);
                if let Some((_, Held::Gallery(old), _)) = before {
                    old.check_update(&gallery.spec).map_err(|error| error.message)?;
                    gallery.provisioning = ProvisioningState::Updating;
                }
                (Held::Gallery(gallery), parsed.extra)
            }
            (kind, _) if kind == resource_type::GALLERY_IMAGES => {
                let parsed = image_definition::parse(body, version, now).map_err(text)?;
                let name = ImageDefinitionName::parse(id.name()).map_err(|error| error.message)?;
                (Held::Definition(Box::new(ImageDefinition::create(name, parsed.data))), parsed.extra)
            }
            (kind, before) if kind == resource_type::GALLERY_IMAGE_VERSIONS => {
                let parsed = image_version::parse(body, version).map_err(text)?;
                let version = match before {
                    Some((_, Held::Version(old), _)) => {
                        let spec = old.updated_spec(parsed.data).map_err(|error| error.message)?;
                        spec.check(now).map_err(|error| error.message)?;
                        let targets: Vec<Region> = regions(&spec);
                        let state =
                            old.state.clone().retarget(&targets).map_err(|error| error.to_string())?;
                        ImageVersion { spec, state, ..*old }
                    }
                    _ => {
                        parsed.data.check(now).map_err(|error| error.message)?;
                        ImageVersion::create(
                            VersionName::parse(id.name()).map_err(|error| error.message)?,
                            parsed.data,
                            now,
                        )
                    }
                };
                (Held::Version(Box::new(version)), parsed.extra)
            }
            (kind, before) if kind == resource_type::DISKS || kind == resource_type::SNAPSHOTS => {
                let kind = if kind == resource_type::DISKS { DiskKind::Disk } else { DiskKind::Snapshot };
                let parsed = disk::parse(kind, body, version).map_err(text)?;
                parsed.data.check(kind).map_err(|error| error.message)?;
                let name = DiskName::parse(id.name()).map_err(|error| error.message)?;
                let mut disk = ManagedDisk::create(name, kind, parsed.data.clone(), uuid::Uuid::nil(), now);
                if let Some((_, Held::Disk(old), _)) = before {
                    disk = *old;
                    disk.update(parsed.data, now).map_err(|error| error.message)?;
                    disk.provisioning = ProvisioningState::Updating;
                }
                (Held::Disk(Box::new(disk)), parsed.extra)
            }
            (kind, _) if kind == resource_type::IMAGES => {
                let parsed = managed_image::parse(body, version).map_err(text)?;
                parsed.data.check().map_err(|error| error.message)?;
                let name = DiskName::parse(id.name()).map_err(|error| error.message)?;
                let image = ManagedImage::create(name, parsed.data, uuid::Uuid::nil(), now);
                (Held::Image(Box::new(image)), parsed.extra)
            }
            _ => {
                let parsed = image_template::parse(body, version).map_err(text)?;
                let name = ImageTemplateName::parse(id.name()).map_err(|error| error.message)?;
                (Held::Template(Box::new(ImageTemplate::create(name, parsed.data))), parsed.extra)
            }
        };
        self.held.insert(id.key(), (id.clone(), held, extra));
        Ok(())
    }

    /// Takes over what only real Azure can know: sizes, resolved versions, the time. Everything else is ours.
    fn settle(&mut self, key: &str, azure: &Value) {
        let Some((_, held, _)) = self.held.get_mut(key) else { return };
        let properties = &azure["properties"];
        let succeeded = properties["provisioningState"] == "Succeeded";
        match held {
            Held::Gallery(gallery) if succeeded => gallery.provisioning = ProvisioningState::Succeeded,
            Held::Definition(definition) if succeeded => {
                definition.provisioning = ProvisioningState::Succeeded
            }
            Held::Version(version) if succeeded => {
                if version.state == VersionState::Creating {
                    let home = version.spec.location.clone();
                    let state = version.state.clone().stored(
                        content(&properties["storageProfile"]),
                        &home,
                        std::slice::from_ref(&home),
                    );
                    version.state = state.expect("a version that is being created can be stored");
                }
                let regions: Vec<Region> =
                    version.state.regions().map(|(region, _)| region.clone()).collect();
                for region in regions {
                    let done = model::image_version::RegionReplication::Completed;
                    version.state = match version.state.clone() {
                        state @ VersionState::Replicating { .. } => {
                            state.region(&region, done).expect("a target region")
                        }
                        other => other,
                    };
                }
            }
            Held::Disk(disk) if succeeded => settle_disk(disk, properties),
            Held::Image(image) if succeeded => {
                image.provisioning = ProvisioningState::Succeeded;
                image.bytes = ImageBytes::Stored(image_content(&properties["storageProfile"]));
            }
            Held::Template(template) => {
                template.provisioning = if succeeded { ProvisioningState::Succeeded } else { return };
                resolve(template, azure);
            }
            _ => {}
        }
    }
}

fn settle_disk(disk: &mut ManagedDisk, properties: &Value) {
    disk.provisioning = ProvisioningState::Succeeded;
    disk.unique_id = properties["uniqueId"].as_str().and_then(|id| id.parse().ok()).expect("a uniqueId");
    disk.created = properties["timeCreated"].as_str().and_then(|at| at.parse().ok()).expect("a moment");
    let fact = |name: &str, value: &str| properties[name] == value;
    disk.facts.os_type = fact("osType", "Linux").then_some(OsType::Linux);
    disk.facts.hyper_v_generation = fact("hyperVGeneration", "V1").then_some(HyperVGeneration::V1);
    let x64 = properties["supportedCapabilities"]["architecture"] == "x64";
    disk.facts.architecture = x64.then_some(Architecture::X64);
    let source = properties["creationData"]["sourceUniqueId"].as_str();
    disk.facts.unique_id = source.and_then(|id| id.parse().ok());
    disk.bytes = match properties["diskSizeBytes"].as_u64() {
        Some(size_bytes) => {
            let manifest = ManifestRef::parse("m").expect("a reference");
            DiskBytes::Stored(DiskContent { manifest, size_bytes })
        }
        None => DiskBytes::Upload { bytes: disk.spec.creation.upload_bytes.expect("an upload") },
    };
    let active = properties["diskState"] == "ActiveSAS";
    let moment = Timestamp::UNIX_EPOCH;
    let access =
        DiskAccess { id: uuid::Uuid::nil(), mode: AccessMode::Read, granted: moment, expires: moment };
    disk.access = active.then_some(access);
}

fn image_content(storage: &Value) -> VersionContent {
    let disk = |disk: &Value| {
        let manifest = ManifestRef::parse("m").expect("a reference");
        DiskContent { manifest, size_bytes: disk["diskSizeGB"].as_u64().expect("a size") << 30 }
    };
    let data = storage["dataDisks"].as_array().expect("a list").iter();
    VersionContent {
        os_disk: disk(&storage["osDisk"]),
        data_disks: data.map(|data| (data["lun"].as_u64().expect("a LUN") as u8, disk(data))).collect(),
    }
}

fn regions(spec: &model::image_version::ImageVersionSpec) -> Vec<Region> {
    spec.publishing.target_regions.iter().map(|target| target.region.clone()).collect()
}

fn resolve(template: &mut ImageTemplate, azure: &Value) {
    let properties = &azure["properties"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if matches!(template.spec.source, ImageSource::PlatformImage { .. }) {
        template.resolved.exact_version = text(&properties["source"]["exactVersion"]);
    }
    template.resolved.staging_resource_group = text(&properties["exactStagingResourceGroup"]);
    for step in properties["customize"].as_array().into_iter().flatten() {
        let uri = text(&step["scriptUri"]).or_else(|| text(&step["sourceUri"]));
        if let (Some(uri), Some(sum)) = (uri, step["sha256Checksum"].as_str()) {
            template.resolved.checksums.insert(uri, Sha256::parse(sum, "x").expect("a checksum"));
        }
    }
    let identity =
        azure["identity"]["userAssignedIdentities"].as_object().and_then(|map| map.values().next().cloned());
    template.resolved.identity = identity.and_then(|identity| {
        Some(ResolvedIdentity {
            principal_id: text(&identity["principalId"])?,
            client_id: text(&identity["clientId"])?,
        })
    });
}

fn render(id: &ResourceId, held: &Held, extra: &Map<String, Value>) -> Value {
    let context = Context { id, extra };
    match held {
        Held::Gallery(gallery) => gallery::render(gallery, &context),
        Held::Definition(definition) => image_definition::render(definition, &context),
        Held::Version(version) => image_version::render(version, image_version::Expand::default(), &context),
        Held::Template(template) => image_template::render(template, &context),
        Held::Disk(disk) => disk::render(disk, disk::Form::Whole, &context),
        Held::Image(image) => managed_image::render(image, &context),
    }
}

/// Without what another server cannot match: the recorder replaced names and ids in paths but not in
/// `uniqueName`, the date is the server's, and community names and encryption come later.
fn masked(answer: &Value) -> Value {
    let mut answer = answer.clone();
    for pointer in ["/properties/identifier/uniqueName", "/properties/publishingProfile/publishedDate"] {
        if let Some(value) = answer.pointer_mut(pointer) {
            *value = Value::Null;
        }
    }
    if let Some(Value::Object(info)) = answer.pointer_mut("/properties/sharingProfile/communityGalleryInfo") {
        info.retain(|name, _| !matches!(name.as_str(), "communityGalleryEnabled" | "publicNames"));
    }
    let regions =
        answer.pointer_mut("/properties/publishingProfile/targetRegions").and_then(Value::as_array_mut);
    for region in regions.into_iter().flatten() {
        if let Some(Value::Object(disk)) = region.pointer_mut("/encryption/osDiskImage") {
            disk.remove("securityProfile");
        }
    }
    answer
}
