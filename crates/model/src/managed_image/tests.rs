use super::*;

const DISK: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/d";

fn vhd(uri: &str) -> ImageDisk {
    let source = ImageDiskSource { blob_uri: Some(uri.to_owned()), ..ImageDiskSource::default() };
    ImageDisk { source, ..ImageDisk::default() }
}

fn disk(id: &str) -> ImageDisk {
    let source = ImageDiskSource { managed_disk: Some(id.to_owned()), ..ImageDiskSource::default() };
    ImageDisk { source, ..ImageDisk::default() }
}

fn spec(os: ImageDisk, data_disks: Vec<(u8, ImageDisk)>) -> ImageSpec {
    let os_disk = ImageOsDisk { os_type: OsType::Linux, os_state: OsState::Generalized, disk: os };
    ImageSpec {
        location: Region::parse("eastus").unwrap(),
        tags: Tags::default(),
        hyper_v_generation: None,
        source_vm: None,
        storage: Some(ImageStorage { os_disk, data_disks, zone_resilient: None }),
    }
}

fn content(name: &str) -> VersionContent {
    let manifest = ManifestRef::parse(name).unwrap();
    VersionContent { os_disk: DiskContent { manifest, size_bytes: 3 << 30 }, data_disks: BTreeMap::default() }
}

fn image(spec: ImageSpec) -> ManagedImage {
    ManagedImage::create(DiskName::parse("i").unwrap(), spec, Uuid::nil(), Timestamp::UNIX_EPOCH)
}

fn stored(spec: ImageSpec) -> ManagedImage {
    let provisioning = ProvisioningState::Succeeded;
    ManagedImage { bytes: ImageBytes::Stored(content("m")), provisioning, ..image(spec) }
}

#[test]
fn each_disk_has_one_source() {
    let good = spec(vhd("https://x/os.vhd?sig=1"), vec![(7, disk(DISK)), (1, disk(&DISK[1..]))]);
    let disk_id = ResourceRef::parse(DISK, "id").unwrap();
    let expected = [
        (None, ImageDiskOrigin::Vhd("https://x/os.vhd?sig=1".to_owned())),
        (Some(1), ImageDiskOrigin::Disk(disk_id.clone())),
        (Some(7), ImageDiskOrigin::Disk(disk_id)),
    ];
    assert_eq!(good.check().unwrap(), expected);
    let mut both = disk(DISK);
    both.source.snapshot = Some(DISK.to_owned());
    let sized = |gib| ImageDisk { size_gib: Some(gib), ..disk(DISK) };
    let many = (0..=DATA_DISKS_MAX as u8).map(|lun| (lun, disk(DISK))).collect();
    for (bad, target, part) in [
        (spec(ImageDisk::default(), vec![]), "storageProfile.osDisk", "Exactly one of"),
        (spec(both, vec![]), "storageProfile.osDisk", "Exactly one of"),
        (spec(vhd("https://x/\n"), vec![]), "storageProfile.osDisk.blobUri", "control character"),
        (spec(disk(DISK), vec![(1, disk(DISK)), (1, disk(DISK))]), "storageProfile.dataDisks.lun", "LUN 1"),
        (spec(disk(DISK), vec![(3, disk(""))]), "storageProfile.dataDisks[lun=3].managedDisk.id", "invalid"),
        (spec(sized(0), vec![]), "storageProfile.osDisk.diskSizeGB", "out of range"),
        (spec(disk(DISK), many), "storageProfile.dataDisks", "at most 64"),
        (ImageSpec { storage: None, ..spec(disk(DISK), vec![]) }, "storageProfile", "missing"),
    ] {
        let error = bad.check().unwrap_err();
        assert_eq!(error.target.as_deref(), Some(target), "{error}");
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn what_an_image_is_made_of_does_not_change() {
    let mut image = stored(spec(vhd("https://x/os.vhd?sig=1"), vec![]));
    // As a client reads it: without the secret, with the size.
    let mut read = spec(vhd("https://x/os.vhd"), vec![]);
    read.storage.as_mut().unwrap().os_disk.disk.size_gib = Some(3);
    read.storage.as_mut().unwrap().os_disk.disk.caching = Some(HostCaching::ReadWrite);
    read.hyper_v_generation = Some(HyperVGeneration::V1);
    read.tags = Tags::new([("a".to_owned(), "b".to_owned())].into()).unwrap();
    image.update(read.clone()).unwrap();
    assert_eq!(image.spec.tags, read.tags);
    assert_eq!(image.spec.storage.as_ref().unwrap().os_disk.disk.caching, Some(HostCaching::ReadWrite));
    type Change = fn(&mut ImageSpec);
    let changes: &[(&str, Change)] = &[
        ("hyperVGeneration", |spec| spec.hyper_v_generation = Some(HyperVGeneration::V2)),
        ("sourceVirtualMachine", |spec| spec.source_vm = Some(ResourceRef::parse(DISK, "id").unwrap())),
        ("storageProfile.osDisk.osType", |spec| {
            spec.storage.as_mut().unwrap().os_disk.os_type = OsType::Windows;
        }),
        ("storageProfile.osDisk.blobUri", |spec| {
            spec.storage.as_mut().unwrap().os_disk.disk = vhd("https://x/other.vhd");
        }),
        ("storageProfile.osDisk.diskSizeGB", |spec| {
            spec.storage.as_mut().unwrap().os_disk.disk.size_gib = Some(4);
        }),
        ("storageProfile.osDisk.storageAccountType", |spec| {
            spec.storage.as_mut().unwrap().os_disk.disk.storage = Some(DiskSku::PremiumLrs);
        }),
        ("storageProfile.zoneResilient", |spec| spec.storage.as_mut().unwrap().zone_resilient = Some(true)),
        ("storageProfile.dataDisks", |spec| {
            spec.storage.as_mut().unwrap().data_disks = vec![(0, disk(DISK))]
        }),
    ];
    for (property, change) in changes {
        let mut changed = read.clone();
        change(&mut changed);
        let error = image.update(changed).unwrap_err();
        assert_eq!((error.rule, error.target.as_deref()), (Rule::Immutable, Some(*property)), "{error}");
    }
    // One that failed has nothing to lose.
    let mut failed = ManagedImage { bytes: ImageBytes::Pending, ..image };
    failed.update(spec(disk(DISK), vec![])).unwrap();
    assert_eq!(failed.spec, spec(disk(DISK), vec![]));
    assert!(failed.update(spec(ImageDisk::default(), vec![])).is_err());
}

#[test]
fn a_run_renews_an_image_and_lets_go_of_what_it_was() {
    let mut image = stored(spec(vhd("https://x/os.vhd"), vec![]));
    let west = Region::parse("westus").unwrap();
    let built = |name: &str| ImageBytes::Built { content: content(name), from: west.clone() };
    let new = spec(ImageDisk::default(), vec![]);
    image.renew(new.clone(), SourceFacts::default(), built("n")).unwrap();
    assert_eq!((image.content(), image.retired.len()), (None, 1));
    // A run that failed is done again, and makes what was there before.
    image.renew(new.clone(), SourceFacts::default(), built("m")).unwrap();
    assert_eq!(image.retired, [ManifestRef::parse("n").unwrap()]);
    let far = ImageSpec { location: west.clone(), ..new };
    assert!(image.renew(far, SourceFacts::default(), built("o")).is_err());
}

#[test]
fn zone_resilience_is_for_all_disks() {
    let mut resilient = spec(disk(DISK), vec![(1, disk(DISK))]);
    assert_eq!(image(resilient.clone()).sku_of(Some(1)), DiskSku::StandardLrs);
    resilient.storage.as_mut().unwrap().os_disk.disk.storage = Some(DiskSku::PremiumLrs);
    assert_eq!(image(resilient.clone()).sku_of(None), DiskSku::PremiumLrs);
    resilient.storage.as_mut().unwrap().zone_resilient = Some(true);
    assert_eq!(image(resilient.clone()).sku_of(None), DiskSku::StandardZrs);
    assert_eq!(image(resilient).sku_of(Some(1)), DiskSku::StandardZrs);
}
