//! Every PUT example of our types is accepted, and what it sets comes back.

use arm::{
    ApiVersion, ArmError, Context, ResourceId, disk, gallery, image_definition, image_template,
    image_version, managed_image, virtual_machine,
};
use model::content::DiskContent;
use model::gallery::Gallery;
use model::image_definition::{HyperVGeneration, ImageDefinition, OsType};
use model::image_template::ImageTemplate;
use model::image_version::ImageVersion;
use model::managed_disk::{DiskKind, ManagedDisk};
use model::managed_image::ManagedImage;
use model::virtual_machine::{ResolvedImage, VirtualMachine};
use model::{
    DiskName, GalleryName, ImageDefinitionName, ImageTemplateName, ManifestRef, Region, Timestamp,
    VersionName, VmName,
};
use serde_json::Value;

use crate::data::{azure, content, fill, fill_text, leaves};

/// A request's properties that no answer shows.
const WRITE_ONLY: &[&str] = &[
    "properties.osProfile.adminPassword",
    "properties.osProfile.customData",
    "properties.userData",
    "properties.osProfile.windowsConfiguration.additionalUnattendContent",
];

/// Leaves that only an example's answer has and ours does not have, with the reason.
const NOT_CLAIMED: &[(&str, &str)] = &[
    ("id", "examples spell ids in several ways"),
    ("name", "some examples name another resource than their path"),
    ("etag", "the server's"),
    ("properties.provisioningState", "examples show any state"),
    ("properties.vmId", "the server's"),
    ("properties.timeCreated", "the server's"),
    ("properties.publishingProfile.publishedDate", "the server's"),
    ("properties.safetyProfile.policyViolations", "nobody reports violations"),
    ("properties.safetyProfile.reportedForPolicyViolation", "nobody reports violations"),
    ("properties.validationsProfile", "no validations are executed"),
    (
        "properties.storageProfile.osDiskImage.hostCaching",
        "recordings say ReadWrite where examples say ReadOnly",
    ),
    (
        "properties.storageProfile.dataDisks",
        "names and storage types of data disks are chosen with the disks",
    ),
    ("properties.storageProfile.osDisk.managedDisk.storageAccountType", "chosen with the disk"),
    ("properties.purchasePlan", "an image's plan does not become its disks' here"),
    ("properties.supportedCapabilities.acceleratedNetwork", "platform images say nothing of it here"),
    ("properties.softDeletePolicy", "one example answers with a policy that it did not ask for"),
    (
        "properties.networkProfile.networkInterfaces",
        "made from configurations where only those were asked for",
    ),
    ("properties.osProfile.linuxConfiguration.ssh", "one example answers with a key that it did not ask for"),
    ("properties.osProfile.linuxConfiguration.disablePasswordAuthentication", "the same example"),
    ("identity", "ids of identities are the directory's"),
];

fn render(
    operation: &str,
    id: &ResourceId,
    body: Value,
    version: &ApiVersion,
    azure: &Value,
) -> Result<Value, ArmError> {
    let now = Timestamp::UNIX_EPOCH;
    Ok(match operation {
        "Galleries_CreateOrUpdate" => {
            let parsed = gallery::parse(body, version)?;
            let gallery = Gallery::create(GalleryName::parse(id.name())?, parsed.data);
            gallery::render(&gallery, &Context { id, extra: &parsed.extra })
        }
        "GalleryImages_CreateOrUpdate" => {
            let parsed = image_definition::parse(body, version, now)?;
            let definition = ImageDefinition::create(ImageDefinitionName::parse(id.name())?, parsed.data);
            image_definition::render(&definition, &Context { id, extra: &parsed.extra })
        }
        "GalleryImageVersions_CreateOrUpdate" => {
            let parsed = image_version::parse(body, version)?;
            let name = VersionName::parse(id.name())?;
            let mut image = ImageVersion::create(name, parsed.data, now);
            let storage = &azure["properties"]["storageProfile"];
            if storage["osDiskImage"]["sizeInGB"].is_u64() {
                let home = image.spec.location.clone();
                let stored = image.state.stored(content(storage), &home, std::slice::from_ref(&home));
                image.state = stored.expect("a new version can be stored");
            }
            image_version::render(
                &image,
                image_version::Expand::default(),
                &Context { id, extra: &parsed.extra },
            )
        }
        "VirtualMachineImageTemplates_CreateOrUpdate" => {
            let parsed = image_template::parse(body, version)?;
            let template = ImageTemplate::create(ImageTemplateName::parse(id.name())?, parsed.data);
            image_template::render(&template, &Context { id, extra: &parsed.extra })
        }
        "VirtualMachines_CreateOrUpdate" => {
            let name = VmName::parse(id.name())?;
            let parsed = virtual_machine::parse(&name, body, version)?;
            let mut vm = VirtualMachine::create(name, parsed.data, uuid::Uuid::nil(), now);
            vm.image = resolved_image(&azure["properties"]);
            virtual_machine::render(
                &vm,
                None,
                virtual_machine::Expand::default(),
                &Context { id, extra: &parsed.extra },
            )
        }
        "Images_CreateOrUpdate" => {
            let parsed = managed_image::parse(body, version)?;
            let name = DiskName::parse(id.name())?;
            let image = ManagedImage::create(name, parsed.data, uuid::Uuid::nil(), now);
            managed_image::render(&image, &Context { id, extra: &parsed.extra })
        }
        "Disks_CreateOrUpdate" => managed_disk(DiskKind::Disk, id, body, version, azure)?,
        "Snapshots_CreateOrUpdate" => managed_disk(DiskKind::Snapshot, id, body, version, azure)?,
        other => panic!("no renderer for {other}"),
    })
}

fn managed_disk(
    kind: DiskKind,
    id: &ResourceId,
    body: Value,
    version: &ApiVersion,
    azure: &Value,
) -> Result<Value, ArmError> {
    let parsed = disk::parse(kind, body, version)?;
    let name = DiskName::parse(id.name())?;
    let mut disk = ManagedDisk::create(name, kind, parsed.data, uuid::Uuid::nil(), Timestamp::UNIX_EPOCH);
    // The image tells it.
    if azure["properties"]["hyperVGeneration"] == "V1" {
        disk.facts.hyper_v_generation = Some(HyperVGeneration::V1);
    }
    Ok(disk::render(&disk, disk::Form::Whole, &Context { id, extra: &parsed.extra }))
}

/// What only the image can tell: the answer shows it.
fn resolved_image(properties: &Value) -> Option<ResolvedImage> {
    let os_disk = &properties["storageProfile"]["osDisk"];
    let windows =
        os_disk["osType"] == "Windows" || !properties["osProfile"]["windowsConfiguration"].is_null();
    let os_type = if windows { OsType::Windows } else { OsType::Linux };
    properties.get("storageProfile")?;
    let manifest = ManifestRef::parse("m").expect("a reference");
    let os_disk = DiskContent { manifest, size_bytes: os_disk["diskSizeGB"].as_u64().unwrap_or(30) << 30 };
    Some(ResolvedImage { exact_version: None, os_type, hyper_v_generation: HyperVGeneration::V2, os_disk })
}

const OPERATIONS: &[&str] = &[
    "Galleries_CreateOrUpdate",
    "GalleryImages_CreateOrUpdate",
    "GalleryImageVersions_CreateOrUpdate",
    "VirtualMachineImageTemplates_CreateOrUpdate",
    "VirtualMachines_CreateOrUpdate",
    "Images_CreateOrUpdate",
    "Disks_CreateOrUpdate",
    "Snapshots_CreateOrUpdate",
];

#[test]
fn examples_come_back() {
    let Some(azure) = azure() else { return };
    let text = std::fs::read_to_string(azure.join("cases.jsonl")).expect("cases.jsonl");
    let (mut cases, mut compared, mut wrong) = (0, 0, Vec::new());
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).expect("a case");
        let operation = case["operationId"].as_str().expect("operationId");
        if !OPERATIONS.contains(&operation) {
            continue;
        }
        cases += 1;
        let title = format!("{operation}: {}", case["title"].as_str().unwrap_or_default());
        let version = ApiVersion::parse(case["apiVersion"].as_str().expect("apiVersion")).expect("a version");
        let id = ResourceId::parse(&fill_text(case["path"].as_str().expect("path"))).expect("an id");
        let body = fill(case["body"].clone());
        let response = ["201", "200"].iter().find_map(|status| case["responses"].get(status));
        let response = response.map(|response| fill(response["body"].clone())).unwrap_or_default();
        // Their answers contradict the recorded ones (caching), which are compared whole.
        let response = if operation == "Images_CreateOrUpdate" { Value::Null } else { response };
        let answer = match render(operation, &id, body.clone(), &version, &response) {
            Ok(answer) => answer,
            Err(error) => {
                wrong.push(format!("{title}\n    refused: {error}"));
                continue;
            }
        };
        let mut compare = |what: &str, path: &str, expected: &Value| {
            let actual = at(&answer, path);
            compared += 1;
            if !actual.is_some_and(|actual| same(path, expected, actual)) {
                wrong.push(format!("{title}\n    {what} {path}: expected {expected}, got {actual:?}"));
            }
        };
        for (path, expected) in leaves(&body) {
            if !expected.is_null() && !WRITE_ONLY.iter().any(|skip| path.starts_with(skip)) {
                compare("request", &path, &expected);
            }
        }
        for (path, expected) in leaves(&response) {
            // Examples contradict themselves: what was asked for is compared above.
            let asked = at(&body, &path).is_some();
            let claimed = !NOT_CLAIMED.iter().any(|(skip, _)| {
                path == *skip
                    || path.starts_with(&format!("{skip}."))
                    || path.starts_with(&format!("{skip}["))
            });
            if claimed && !asked && !expected.is_null() {
                compare("answer", &path, &expected);
            }
        }
    }
    assert!(cases > 0, "cases.jsonl has no example of our types");
    assert!(wrong.is_empty(), "{} of {compared} leaves differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("{cases} examples, {compared} leaves compared");
}

/// The value at a path; a step into a missing list or object is `None`.
fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    // Identity maps have ids with dots and slashes as keys, so the walk tries the longest key first.
    if path.is_empty() {
        return Some(value);
    }
    match value {
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            let rest = path.strip_prefix(key.as_str())?;
            match rest.as_bytes().first() {
                None => Some(value),
                Some(b'.') => at(value, &rest[1..]),
                Some(b'[') => at(value, rest),
                Some(_) => None,
            }
        }),
        Value::Array(values) => {
            let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
            at(values.get(index.parse::<usize>().ok()?)?, rest.strip_prefix('.').unwrap_or(rest))
        }
        _ => None,
    }
}

/// Equality as Azure means it: regions by name, words without case, moments as moments, an empty list like none.
fn same(path: &str, expected: &Value, actual: &Value) -> bool {
    if expected == actual {
        return true;
    }
    let (Some(expected), Some(actual)) = (expected.as_str(), actual.as_str()) else { return false };
    let last = path.rsplit('.').next().unwrap_or(path);
    let region = last == "location" || (last == "name" && path.contains("targetRegions"));
    if region && Region::parse(expected).ok() == Region::parse(actual).ok() {
        return true;
    }
    let moment = |text| arm::time::parse(text, "x").ok();
    expected.eq_ignore_ascii_case(actual)
        || moment(expected).is_some_and(|expected| moment(actual) == Some(expected))
}
