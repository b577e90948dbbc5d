//! The pipeline end to end, on real guests: `tintype serve` as a process of its own, driven through the REST
//! API, and killed where it hurts. One test, because its parts share a server and a booted base.

#[path = "../../src/demo/arm.rs"]
mod arm;
mod base_image;
mod lab;

use std::time::Duration;

use lab::{HOME, Lab, OTHER, inline, template};
use serde_json::json;

/// A customizer that never ends by itself.
const ENDLESS: &str = "echo customizer-is-running; sleep 100000";

#[tokio::test(flavor = "multi_thread")]
async fn the_pipeline_on_real_guests() {
    let mut lab = Lab::start().await;
    a_failing_customizer_says_why_and_publishes_nothing(&lab).await;
    a_killed_server_leaves_nothing_of_its_build(&mut lab).await;
    a_failing_validation_publishes_nothing(&lab).await;
    a_good_template_is_published_in_both_regions(&lab).await;
    unchanged_steps_are_reused_when_asked_for(&lab).await;
    an_image_goes_out_as_a_vhd_and_comes_back_as_a_disk(&lab).await;
    replicas_are_physical_copies(&lab).await;
    a_vm_boots_with_every_object_of_one_zone_damaged(&lab).await;
    a_vm_outlives_its_server_but_not_its_vmhost(&mut lab).await;
    nothing_is_left(lab).await;
}

async fn a_failing_customizer_says_why_and_publishes_nothing(lab: &Lab) {
    let body = template(
        lab,
        json!([inline("says why", &["echo the disk is too blue", "exit 3"])]),
        json!([]),
        json!({}),
    );
    lab.put_template("fails", body).await;
    let error = lab.run("fails").await.unwrap_err().to_string();
    for part in ["customizer 'says why'", "status 3", "the disk is too blue"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    let shown = lab.get_template("fails").await;
    let run = &shown["properties"]["lastRunStatus"];
    assert_eq!(run["runState"], "Failed");
    assert!(run["message"].as_str().unwrap().contains("status 3"), "{run}");
    assert_eq!(lab.versions().await, Vec::<String>::new());
    assert_eq!(lab.run_directories(), 0);
}

async fn a_killed_server_leaves_nothing_of_its_build(lab: &mut Lab) {
    let body = template(lab, json!([inline("endless", &[ENDLESS])]), json!([]), json!({}));
    lab.put_template("endless", body).await;
    let operation = lab.begin_run("endless").await;
    lab.wait_for_log("endless", "customizer-is-running").await;
    assert!(lab.processes() >= 3, "server, vmhost and QEMU");
    lab.kill_server();
    lab.wait_until("the build's processes end with their lease", |lab| lab.processes() == 0).await;
    lab.restart_server().await;
    let (status, message) = lab.operation_end(&operation).await;
    assert_eq!(status, "Failed");
    assert!(message.contains("interrupted"), "{message}");
    let run = lab.get_template("endless").await["properties"]["lastRunStatus"].clone();
    assert_eq!(run["runState"], "Failed", "{run}");
    assert_eq!(lab.run_directories(), 0);
    assert_eq!(lab.versions().await, Vec::<String>::new());
}

async fn a_failing_validation_publishes_nothing(lab: &Lab) {
    let check = inline("is blue", &["echo it is red", "exit 7"]);
    lab.put_template("invalid", template(lab, json!([]), json!([check]), json!({}))).await;
    let error = lab.run("invalid").await.unwrap_err().to_string();
    for part in ["validation 'is blue'", "status 7", "it is red"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    assert_eq!(lab.versions().await, Vec::<String>::new());
    assert_eq!(lab.run_directories(), 0);
}

async fn a_good_template_is_published_in_both_regions(lab: &Lab) {
    let steps = json!([
        inline("first", &["echo one | sudo tee /etc/one"]),
        inline("second", &["echo two | sudo tee /etc/two"])
    ]);
    lab.put_template("good", template(lab, steps, json!([]), json!({}))).await;
    let report = lab.run("good").await.unwrap();
    assert_eq!(report["steps"].as_array().unwrap().len(), 2);
    assert_eq!(lab.versions().await, ["0.0.1"]);
    let version = lab.version("0.0.1").await;
    let status = &version["properties"]["replicationStatus"];
    assert_eq!(status["aggregatedState"], "Completed", "{status}");
    assert_eq!(status["summary"].as_array().unwrap().len(), 2);
    let outputs = lab.run_outputs("good").await;
    assert!(outputs[0]["properties"]["artifactId"].as_str().unwrap().ends_with("/versions/0.0.1"));
}

async fn unchanged_steps_are_reused_when_asked_for(lab: &Lab) {
    let steps = json!([
        inline("first", &["echo one | sudo tee /etc/one"]),
        inline("second", &["echo TWO | sudo tee /etc/two"])
    ]);
    let tags = json!({"tintype-reuse": "unchanged-steps"});
    let mut body = template(lab, steps, json!([]), tags);
    let distributors = body["properties"]["distribute"].as_array_mut().unwrap();
    distributors.push(json!({"type": "VHD", "runOutputName": "vhd"}));
    let image = format!("{}/providers/Microsoft.Compute/images/built", lab.group);
    distributors
        .push(json!({"type": "ManagedImage", "runOutputName": "image", "imageId": image, "location": OTHER}));
    lab.put_template("edited", body).await;
    let report = lab.run("edited").await.unwrap();
    let cached: Vec<_> =
        report["steps"].as_array().unwrap().iter().map(|step| step["cached"] == true).collect();
    assert_eq!(cached, [true, false], "{report}");
    assert!(lab.log("edited").await.contains("customizer 2 'second' has other content"));
    assert_eq!(lab.versions().await, ["0.0.1", "0.0.2"]);
    assert_eq!(report["images"], json!([{"id": image}]), "{report}");
    let outputs = lab.run_outputs("edited").await;
    assert!(outputs.iter().any(|output| output["properties"]["artifactId"] == image), "{outputs:?}");
}

async fn an_image_goes_out_as_a_vhd_and_comes_back_as_a_disk(lab: &Lab) {
    let outputs = lab.run_outputs("edited").await;
    let vhd = outputs.iter().find(|output| output["name"] == "vhd").unwrap();
    let uri = vhd["properties"]["artifactUri"].as_str().unwrap();
    let disk = lab.import_disk("from-vhd", uri).await;
    assert_eq!(disk["properties"]["diskState"], "Unattached", "{disk}");
    lab.publish_disk("from-vhd", "1.0.0").await;
    assert_eq!(lab.versions().await, ["0.0.1", "0.0.2", "1.0.0"]);
}

async fn replicas_are_physical_copies(lab: &Lab) {
    let status = lab.version("1.0.0").await["properties"]["replicationStatus"].clone();
    assert!(status.to_string().contains("2 physical copies"), "{status}");
    let stats = lab.stats(OTHER).await;
    let stored = |zone: usize| stats["zones"][zone]["stored_bytes"].as_u64().unwrap();
    let (one, both) = (stored(0), stats["stored_bytes"].as_u64().unwrap());
    assert_eq!(both, one + stored(1));
    assert!(one > 100 << 20 && one.abs_diff(stored(1)) < one / 100, "{stats}");
}

async fn a_vm_boots_with_every_object_of_one_zone_damaged(lab: &Lab) {
    lab.take_region_away(HOME);
    let identity = lab.damage_second_zone();
    lab.create_vm("vm1", "1.0.0", OTHER).await;
    assert_eq!(lab.power_state("vm1").await, "PowerState/running");
    let answer = lab.ssh("vm1", "cloud-init status --wait >/dev/null; hostname; cat /etc/one /etc/two; cat /etc/custom-data-was-here").await;
    assert_eq!(answer.lines().collect::<Vec<_>>(), ["vm1", "one", "TWO", "was here"]);
    lab.restore_identity_of_second_zone(&identity);
    let report = lab.repair(OTHER).await;
    println!("{report}");
    assert!(report["repaired"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["repaired"], report["damaged"], "{report}");
    let report = lab.repair(OTHER).await;
    assert_eq!(report["damaged"], 0, "{report}");
    lab.bring_region_back(HOME);
}

async fn a_vm_outlives_its_server_but_not_its_vmhost(lab: &mut Lab) {
    let before = lab.qemu_pids();
    assert_eq!(before.len(), 1);
    lab.kill_server();
    tokio::time::sleep(Duration::from_secs(1)).await;
    lab.restart_server().await;
    assert_eq!(lab.qemu_pids(), before, "the VM was restarted");
    assert_eq!(lab.power_state("vm1").await, "PowerState/running");
    assert_eq!(lab.ssh("vm1", "cat /etc/one").await.trim(), "one");
    lab.kill_vmhosts();
    lab.wait_until("QEMU dies with its vmhost", |lab| lab.qemu_pids().is_empty()).await;
    lab.wait_for_power_state("vm1", "PowerState/stopped").await;
}

async fn nothing_is_left(lab: Lab) {
    lab.delete_everything().await;
    assert_eq!(lab.run_directories(), 0);
    assert_eq!(lab.vm_directories(), 0);
    assert_eq!(lab.processes(), 1, "the server alone");
    lab.stop_server().await;
}
