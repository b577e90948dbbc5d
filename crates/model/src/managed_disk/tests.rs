use std::collections::BTreeMap;

use super::*;

fn creation(option: CreateOption) -> CreationData {
    CreationData {
        option,
        image: None,
        gallery_image: None,
        source_uri: None,
        source_resource: None,
        storage_account: None,
        upload_bytes: None,
    }
}

fn spec(creation: CreationData, size_gib: Option<u64>) -> DiskSpec {
    DiskSpec {
        location: Region::parse("eastus").unwrap(),
        tags: Tags::new(BTreeMap::new()).unwrap(),
        sku: None,
        os_type: None,
        hyper_v_generation: None,
        architecture: None,
        creation,
        size_gib,
        iops: None,
        mbps: None,
        tier: None,
        incremental: None,
        network_access: None,
        public_network_access: None,
        directory_tokens: None,
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_timestamp(seconds, 0).unwrap()
}

fn disk(bytes: DiskBytes) -> ManagedDisk {
    let spec = spec(creation(CreateOption::Empty), Some(1));
    let name = DiskName::parse("d").unwrap();
    let disk = ManagedDisk::create(name, DiskKind::Disk, spec, Uuid::nil(), at(0));
    ManagedDisk { bytes, provisioning: ProvisioningState::Succeeded, ..disk }
}

fn stored() -> DiskBytes {
    DiskBytes::Stored(DiskContent { manifest: ManifestRef::parse("m").unwrap(), size_bytes: GIB })
}

fn access(mode: AccessMode, expires: i64) -> DiskAccess {
    DiskAccess { id: Uuid::nil(), mode, granted: at(0), expires: at(expires) }
}

#[test]
fn bad_input_is_refused_with_its_property() {
    let upload = |bytes| CreationData { upload_bytes: bytes, ..creation(CreateOption::Upload) };
    let uri = |uri: &str| CreationData { source_uri: Some(uri.to_owned()), ..creation(CreateOption::Import) };
    let image =
        |image: DiskImageReference| CreationData { image: Some(image), ..creation(CreateOption::FromImage) };
    let shared = DiskImageReference {
        shared_gallery_id: Some("/SharedGalleries/x".into()),
        ..DiskImageReference::default()
    };
    let both = CreationData {
        gallery_image: Some(DiskImageReference::default()),
        ..image(DiskImageReference::default())
    };
    let long = format!("https://x/{}", "y".repeat(5000));
    let table = [
        (creation(CreateOption::Empty), None, "diskSizeGB", "is missing"),
        (creation(CreateOption::Empty), Some(0), "diskSizeGB", "between 1 and 32767"),
        (creation(CreateOption::Empty), Some(32_768), "diskSizeGB", "between 1 and 32767"),
        (upload(None), None, "creationData.uploadSizeBytes", "is missing"),
        (upload(Some(UPLOAD_BYTES_MIN - 512)), None, "creationData.uploadSizeBytes", "out of range"),
        (upload(Some(UPLOAD_BYTES_MAX + 1)), None, "creationData.uploadSizeBytes", "out of range"),
        (
            upload(Some(UPLOAD_BYTES_MIN + 512)),
            None,
            "creationData.uploadSizeBytes",
            "must be a multiple of MiB",
        ),
        (upload(Some(UPLOAD_BYTES_MIN)), Some(1), "diskSizeGB", "not allowed with createOption 'Upload'"),
        (creation(CreateOption::Import), None, "creationData.sourceUri", "is missing"),
        (uri("https://x/\u{1}"), None, "creationData.sourceUri", "control character"),
        (uri(&long), None, "creationData.sourceUri", "4096 bytes"),
        (creation(CreateOption::Copy), None, "creationData.sourceResourceId", "is missing"),
        (creation(CreateOption::FromImage), None, "creationData.imageReference", "is missing"),
        (image(DiskImageReference::default()), None, "creationData.imageReference.id", "is missing"),
        (image(shared), None, "creationData.imageReference", "shared and community"),
        (both, None, "creationData", "Only one of"),
        (
            creation(CreateOption::CopyStart),
            None,
            "creationData.createOption",
            "'CopyStart' is not supported for a disk",
        ),
        (creation(CreateOption::Attach), None, "creationData.createOption", "'Attach' is not supported"),
        (
            creation(CreateOption::Restore),
            None,
            "creationData.createOption",
            "Empty, Upload, Import, Copy, FromImage",
        ),
    ];
    for (creation, size, target, part) in table {
        let option = creation.option;
        let violation = spec(creation, size).check(DiskKind::Disk).unwrap_err();
        assert_eq!(violation.target.as_deref(), Some(target), "{option:?} {size:?}");
        assert!(violation.message.contains(part), "{option:?} {size:?}: {violation}");
    }
    let snapshot = spec(upload(Some(UPLOAD_BYTES_MIN)), None).check(DiskKind::Snapshot).unwrap_err();
    assert!(snapshot.message.contains("not supported for a snapshot"), "{snapshot}");
}

#[test]
fn origins_are_read() {
    let upload = CreationData { upload_bytes: Some(UPLOAD_BYTES_MAX), ..creation(CreateOption::Upload) };
    assert_eq!(upload.origin(DiskKind::Disk).unwrap(), DiskOrigin::Upload { bytes: UPLOAD_BYTES_MAX });
    let copy = CreationData {
        source_resource: Some("subscriptions/s/x".into()),
        ..creation(CreateOption::CopyStart)
    };
    let source = ResourceRef::parse("/subscriptions/s/x", "id").unwrap();
    assert_eq!(copy.origin(DiskKind::Snapshot).unwrap(), DiskOrigin::Copy { source, far: true });
    let id = "/Subscriptions/s/Providers/Microsoft.Compute/Locations/westus/Publishers/P/ArtifactTypes/VMImage/Offers/O/Skus/K/Versions/1.2.3";
    let image = DiskImageReference { id: Some(id.into()), lun: None, ..DiskImageReference::default() };
    let from = CreationData { image: Some(image), ..creation(CreateOption::FromImage) };
    let part = |text: &str| text.to_owned();
    let id =
        ImageId::Platform { publisher: part("P"), offer: part("O"), sku: part("K"), version: part("1.2.3") };
    assert_eq!(from.origin(DiskKind::Disk).unwrap(), DiskOrigin::Image { id, lun: None });
}

#[test]
fn one_access_at_a_time_and_each_ends_the_one_before() {
    let mut disk = disk(stored());
    disk.grant(access(AccessMode::Read, 100), at(0)).unwrap();
    assert_eq!(disk.grant(access(AccessMode::Read, 100), at(99)).unwrap_err().rule, Rule::Conflict);
    assert!(disk.check_no_access(at(99)).unwrap_err().message.contains("EndGetAccess"));
    assert!(disk.check_no_access(at(100)).is_ok(), "it has expired");
    disk.grant(access(AccessMode::Read, 300), at(100)).unwrap();
    assert_eq!(disk.access_generation, 2);
    assert!(!disk.end_access().unwrap());
    assert!(!disk.end_access().unwrap(), "ending nothing is no error");
    assert_eq!((disk.access_generation, disk.access), (4, None));
}

#[test]
fn only_an_upload_is_written_and_only_content_is_read() {
    let mut upload = disk(DiskBytes::Upload { bytes: UPLOAD_BYTES_MIN });
    assert_eq!(upload.grant(access(AccessMode::Read, 9), at(0)).unwrap_err().rule, Rule::NotAllowed);
    upload.grant(access(AccessMode::Write, 9), at(0)).unwrap();
    assert!(upload.end_access().unwrap(), "it is to be stored");
    assert_eq!(upload.bytes, DiskBytes::Committing { bytes: UPLOAD_BYTES_MIN });
    assert_eq!(upload.end_access().unwrap_err().rule, Rule::Conflict);
    assert_eq!(disk(stored()).grant(access(AccessMode::Write, 9), at(0)).unwrap_err().rule, Rule::NotAllowed);
    for (denied, part) in [
        (DiskSpec { network_access: Some(NetworkAccessPolicy::DenyAll), ..disk(stored()).spec }, "DenyAll"),
        (
            DiskSpec { network_access: Some(NetworkAccessPolicy::AllowPrivate), ..disk(stored()).spec },
            "private endpoints",
        ),
        (DiskSpec { public_network_access: Some(false), ..disk(stored()).spec }, "publicNetworkAccess"),
        (DiskSpec { directory_tokens: Some(true), ..disk(stored()).spec }, "dataAccessAuthMode"),
    ] {
        let mut disk = ManagedDisk { spec: denied, ..disk(stored()) };
        let violation = disk.grant(access(AccessMode::Read, 9), at(0)).unwrap_err();
        assert!(violation.message.contains(part), "{violation}");
    }
}

#[test]
fn a_disk_grows_and_never_shrinks() {
    let mut disk = disk(stored());
    let sized = |gib| DiskSpec { size_gib: Some(gib), ..spec(creation(CreateOption::Empty), None) };
    disk.update(sized(3), at(0)).unwrap();
    assert_eq!(disk.grows_to(), Some(3 * GIB));
    let small = || {
        DiskBytes::Stored(DiskContent { manifest: ManifestRef::parse("s").unwrap(), size_bytes: 20 << 20 })
    };
    let mut asked = ManagedDisk { spec: sized(1), bytes: small(), ..disk.clone() };
    assert_eq!(asked.grows_to(), Some(GIB), "what was asked for, and not what is rounded up to it");
    let mut rounded = ManagedDisk { spec: DiskSpec { size_gib: None, ..sized(1) }, ..asked.clone() };
    rounded.update(sized(1), at(0)).unwrap();
    assert_eq!(rounded.grows_to(), None, "rounding is no growth");
    asked.update(sized(1), at(0)).unwrap();
    assert_eq!(asked.grows_to(), Some(GIB));
    let big = DiskContent { manifest: ManifestRef::parse("m").unwrap(), size_bytes: 3 * GIB };
    disk.bytes = DiskBytes::Stored(big);
    assert_eq!(disk.grows_to(), None);
    let violation = disk.update(sized(2), at(0)).unwrap_err();
    assert!(violation.message.contains("cannot be resized down to 2 GB"), "{violation}");
    disk.access = Some(access(AccessMode::Read, 100));
    assert_eq!(disk.update(sized(4), at(0)).unwrap_err().rule, Rule::NotAllowed);
    assert!(disk.update(sized(3), at(0)).is_ok(), "tags and the like may change meanwhile");
    let copied = CreationData { source_resource: Some("/x/y".into()), ..creation(CreateOption::Copy) };
    assert_eq!(disk.update(spec(copied, Some(3)), at(0)).unwrap_err().rule, Rule::Immutable);
}

#[test]
fn the_query_of_a_source_is_a_secret() {
    let data = |uri: &str| CreationData { source_uri: Some(uri.into()), ..creation(CreateOption::Import) };
    let mut signed = data("https://a.example/x.vhd?sig=secret");
    assert_eq!(signed.shown_uri(), Some("https://a.example/x.vhd"));
    assert!(signed.is_same(&data("https://a.example/x.vhd")), "clients send back what they read");
    assert!(!signed.is_same(&data("https://a.example/y.vhd")));
    signed.forget_secret();
    assert_eq!(signed.source_uri.as_deref(), Some("https://a.example/x.vhd"));
}

#[test]
fn figures_are_azures() {
    let of = |sku, gib, tier: Option<&str>| {
        let mut spec = spec(creation(CreateOption::Empty), Some(gib));
        (spec.sku, spec.tier) = (Some(sku), tier.map(str::to_owned));
        let found = Performance::of(&spec, gib);
        (found.iops, found.mbps, found.tier)
    };
    let tier = |name: &str| Some(name.to_owned());
    // Recorded: 1, 10 and 20 GiB of Premium_LRS, 10 GiB of Standard_LRS.
    assert_eq!(of(DiskSku::PremiumLrs, 1, None), (120, 25, tier("P1")));
    assert_eq!(of(DiskSku::PremiumLrs, 10, Some("P1")), (120, 25, tier("P3")));
    assert_eq!(of(DiskSku::PremiumLrs, 20, None), (120, 25, tier("P4")));
    assert_eq!(of(DiskSku::PremiumLrs, 128, Some("P30")), (5000, 200, tier("P30")));
    assert_eq!(of(DiskSku::StandardLrs, 10, Some("P1")), (500, 60, None));
    assert_eq!(of(DiskSku::PremiumLrs, 32_767, None).2, tier("P80"));
}
