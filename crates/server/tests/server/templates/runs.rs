//! Runs without a VM: failing, canceled, interrupted, and deleted under way.

use super::*;

/// A version with a few bytes, as if it had been published.
async fn add_version(lab: &Lab) -> String {
    let state = &lab.bed.server.state;
    let region = Region::parse(&lab.region()).expect("a region");
    let disk = lab.data_dir().join("disk.raw");
    std::fs::write(&disk, vec![7u8; 1 << 20]).expect("a disk");
    let store = state.fabric.store(&region).await.expect("a store");
    let report = store.put_raw(&disk, "version-test", |_| {}).await.expect("put");
    let id = format!("{}/images/gen2/versions/1.0.0", lab.gallery());
    let os_disk = model::content::DiskContent {
        manifest: ManifestRef::parse(&report.manifest.to_string()).expect("a manifest"),
        size_bytes: report.logical_bytes,
    };
    let spec = ImageVersionSpec {
        location: region.clone(),
        tags: model::Tags::default(),
        publishing: PublishingProfile {
            target_regions: vec![TargetRegion {
                region: region.clone(),
                replica_count: None,
                storage_account_type: None,
                exclude_from_latest: None,
            }],
            replica_count: 1,
            exclude_from_latest: false,
            storage_account_type: StorageAccountType::StandardLrs,
            replication_mode: None,
            end_of_life: None,
        },
        source: Some(VersionSource::ImageTemplate(ResourceRef::parse("/t", "id").expect("a reference"))),
        safety: SafetyProfile::default(),
    };
    let version_state = VersionState::Ready {
        content: VersionContent { os_disk, data_disks: Default::default() },
        regions: [(region, RegionReplication::Completed)].into(),
    };
    let name = VersionName::parse("1.0.0").expect("a name");
    let version = ImageVersion { state: version_state, ..ImageVersion::create(name, spec, state.now()) };
    let written: Result<(), StoreError> = state
        .store
        .write(|tx| {
            Box::pin(async {
                let location = version.spec.location.as_str();
                tx.insert(&mut Document::new(&id, location, ProvisioningState::Succeeded, version.clone())?)
                    .await
            })
        })
        .await;
    written.expect("insert");
    id
}

async fn gallery_template(lab: &Lab, version: &str) -> Value {
    let mut body = lab.template();
    body["properties"]["source"] =
        json!({"type": "SharedImageVersion", "imageVersionId": version.replace("1.0.0", "latest")});
    body["tags"]["tintype-reuse"] = json!("unchanged-steps");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_vm_cannot_start_fails_and_leaves_its_log() {
    let lab = Lab::start(Some("#!/bin/sh\nexit 3\n")).await;
    let version = add_version(&lab).await;
    assert_eq!(lab.create("t", gallery_template(&lab, &version).await).await["status"], "Succeeded");
    assert_eq!(lab.get("t").await["properties"]["source"]["exactVersion"], "1.0.0");
    let accepted = lab.bed.call("POST", &format!("{}/run?{BUILDER}", lab.id("t")), None).await;
    assert_eq!(accepted.status(), 202);
    let ended = lab.ended(&header(&accepted, "azure-asyncoperation")).await;
    assert_eq!(
        (ended["status"].as_str(), ended["error"]["code"].as_str()),
        (Some("Failed"), Some("ImageTemplateBuildError")),
        "{ended}"
    );
    let message = ended["error"]["message"].as_str().expect("a message");
    assert!(message.contains("the build VM failed") && message.contains("exit status: 3"), "{message}");
    let template = lab.get("t").await;
    let last = &template["properties"]["lastRunStatus"];
    assert_eq!(
        (&last["runState"], &last["message"]),
        (&json!("Failed"), &ended["error"]["message"]),
        "{last}"
    );
    assert!(last.get("runSubState").is_none() && last["endTime"] != "0001-01-01T00:00:00Z", "{last}");

    let (status, runs) =
        lab.bed.json("GET", &format!("/tintype/runs?template={}&{VERSION}", lab.id("T")), None).await;
    assert_eq!(status, 200, "{runs}");
    let run = &runs["value"][0];
    assert_eq!(
        (&run["status"], &run["reuse"], &run["error"]["code"]),
        (&json!("Failed"), &json!(true), &json!("ImageTemplateBuildError"))
    );
    let id = run["runId"].as_str().expect("an id");
    let (_, log) = lab.bed.json("GET", &format!("/tintype/runs/{id}/log?after=0&{VERSION}"), None).await;
    let chunks = log["chunks"].as_array().expect("chunks");
    let text: String = chunks.iter().map(|chunk| chunk["text"].as_str().expect("text")).collect();
    assert!(text.contains("the run ended") && text.contains(&format!("run {id}")), "{text}");
    let last = &chunks[chunks.len() - 1]["seq"];
    let (_, rest) =
        lab.bed.json("GET", &format!("/tintype/runs/{id}/log?after={last}&{VERSION}"), None).await;
    assert_eq!(rest, json!({"chunks": [], "ended": true}));
    let stream = lab
        .bed
        .request("GET", &format!("/tintype/runs/{id}/log?{VERSION}"))
        .bearer_auth(&lab.bed.token)
        .header("accept", "text/event-stream")
        .send()
        .await
        .expect("answers");
    assert_eq!(header(&stream, "content-type"), "text/event-stream");
    let stream = stream.text().await.expect("ends by itself");
    assert!(stream.starts_with("id: 1\ndata: ") && stream.ends_with("event: end\ndata:\n\n"), "{stream}");

    let staging =
        template["properties"]["exactStagingResourceGroup"].as_str().expect("a group").to_lowercase();
    let logs = lab
        .data_dir()
        .join("staging")
        .join(staging.rsplit('/').next().expect("a name"))
        .join("packerlogs")
        .join(id);
    assert_eq!(std::fs::read_to_string(logs.join("customization.log")).expect("the log"), text);
    assert_eq!(
        std::fs::read_dir(lab.data_dir().join("runs")).expect("a folder").count(),
        0,
        "nothing is left"
    );
    for (path, status) in
        [("/tintype/runs/none/log", 404), ("/tintype/runs", 400), ("/tintype/runs/x/log?after=-1", 400)]
    {
        let join = if path.contains('?') { '&' } else { '?' };
        assert_eq!(lab.bed.json("GET", &format!("{path}{join}{VERSION}"), None).await.0, status, "{path}");
    }
    let bare =
        lab.bed.request("GET", &format!("/tintype/runs/{id}/log?{VERSION}")).send().await.expect("answers");
    assert_eq!(bare.status(), 401);

    // autoRun: creating it is running it.
    let mut body = gallery_template(&lab, &version).await;
    body["properties"]["autoRun"] = json!({"state": "Enabled"});
    assert_eq!(lab.create("auto", body).await["status"], "Succeeded");
    assert!(lab.get("auto").await["properties"]["lastRunStatus"]["startTime"].is_string());
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_canceled() {
    // Neither appears nor ends, for as long as this test needs.
    let lab = Lab::start(Some("#!/bin/sh\nexec sleep 8\n")).await;
    let version = add_version(&lab).await;
    assert_eq!(lab.create("t", gallery_template(&lab, &version).await).await["status"], "Succeeded");
    let accepted = lab.bed.call("POST", &format!("{}/run?{BUILDER}", lab.id("t")), None).await;
    let poll = header(&accepted, "location");
    for (method, path) in [("DELETE", ""), ("PATCH", ""), ("POST", "/run")] {
        let body = (method == "PATCH").then(|| json!({"tags": {}}));
        let (status, body) = lab.bed.json(method, &format!("{}{path}?{BUILDER}", lab.id("t")), body).await;
        assert_eq!(
            (status, body["error"]["code"].as_str()),
            (409, Some("OperationNotAllowed")),
            "{method}: {body}"
        );
    }
    until_building(&lab).await;
    assert_eq!(lab.bed.call("POST", &format!("{}/cancel?{BUILDER}", lab.id("t")), None).await.status(), 204);
    let ended = lab.ended(&poll).await;
    assert_eq!(ended["status"], "Canceled", "{ended}");
    let last = &lab.get("t").await["properties"]["lastRunStatus"];
    assert_eq!(last["runState"], "Canceled", "{last}");
    assert_eq!(
        std::fs::read_dir(lab.data_dir().join("runs")).expect("a folder").count(),
        0,
        "nothing is left"
    );
    lab.bed.stop().await;
}

/// Until the VM is being started.
async fn until_building(lab: &Lab) {
    while std::fs::read_dir(lab.data_dir().join("runs")).expect("a folder").count() == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_the_service_does_not_survive_has_failed() {
    let lab = Lab::start(Some("#!/bin/sh\nexec sleep 8\n")).await;
    let version = add_version(&lab).await;
    assert_eq!(lab.create("t", gallery_template(&lab, &version).await).await["status"], "Succeeded");
    assert_eq!(lab.bed.call("POST", &format!("{}/run?{BUILDER}", lab.id("t")), None).await.status(), 202);
    until_building(&lab).await;
    let id = lab.id("t");
    let Lab { bed, .. } = lab;
    let Bed { server, folder, .. } = bed;
    let config = server.state.config.clone();
    server.shutdown().await;

    let server = server::Server::start(config).await.expect("starts again");
    let found = server.state.store.read(|tx| {
        Box::pin(async {
            Ok::<_, StoreError>((tx.get::<ImageTemplate>(&id).await?, tx.unfinished_jobs(&id).await?))
        })
    });
    let (template, jobs) = found.await.expect("read");
    let run = template.expect("the template").data.last_run.expect("a run");
    let LastRun::Ended(run) = run else { panic!("{run:?}") };
    assert_eq!(run.outcome, RunOutcome::Failed);
    assert!(run.message.contains("was interrupted: the service stopped"), "{}", run.message);
    assert!(jobs.is_empty(), "{jobs:?}");
    assert_eq!(
        std::fs::read_dir(folder.path().join("runs")).expect("a folder").count(),
        0,
        "nothing is left"
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_groups_deletion_cancels_runs_and_takes_staging_groups_along() {
    let lab = Lab::start(Some("#!/bin/sh\nexec sleep 8\n")).await;
    let version = add_version(&lab).await;
    assert_eq!(lab.create("t", gallery_template(&lab, &version).await).await["status"], "Succeeded");
    let staging =
        lab.get("t").await["properties"]["exactStagingResourceGroup"].as_str().expect("a group").to_owned();
    assert_eq!(lab.bed.call("POST", &format!("{}/run?{BUILDER}", lab.id("t")), None).await.status(), 202);
    until_building(&lab).await;
    let group = format!("{SUBSCRIPTION}/resourceGroups/rg?{VERSION}");
    let poll = header(&lab.bed.call("DELETE", &group, None).await, "location");
    let mut status = 202;
    for _ in 0..600 {
        status = lab.bed.call("GET", &poll, None).await.status().as_u16();
        if status != 202 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(status, 200);
    assert_eq!(lab.bed.json("GET", &group, None).await.0, 404);
    assert_eq!(lab.bed.json("GET", &format!("{staging}?{VERSION}"), None).await.0, 404);
    assert_eq!(std::fs::read_dir(lab.data_dir().join("staging")).expect("a folder").count(), 0);
    lab.bed.stop().await;
}
