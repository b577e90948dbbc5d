//! `tintype demo`: the whole pipeline on this machine, through the REST API alone.
//!
//! A server of its own, two regions, a platform image, a template, three builds, a VM from the region that
//! the image was replicated to, and a count of what is left. It knows nothing that a client would not know,
//! but for the folders of its own server: it takes one region away while a VM starts from the other.

mod arm;
mod guest;
mod leftovers;
mod report;
mod scene;
mod script_server;
mod server_process;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use arm::{Arm, COMPUTE, GALLERY, IMAGE_BUILDER, RESOURCES};
use guest::Guest;
use report::{Figures, Report};
use scene::Scene;
use script_server::ScriptServer;
use server_process::ServerProcess;

/// Shows the whole pipeline: builds a golden image, publishes and replicates it, boots a VM from it.
///
/// Needs root (bootstrapping a Debian image does), QEMU, and the distribution's package mirror. Takes about
/// ten minutes on two cores without KVM. The last line is one JSON object; exit status 1 if a step fails.
///
/// Examples:
///   tintype demo
///   tintype demo --json | jq .second_build_s
///   tintype demo --dir /var/tmp/demo --keep
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Folder for everything that the demo makes; must not exist.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Leave the folder when done.
    #[arg(long)]
    keep: bool,
    /// Print the last line only.
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(arguments: Arguments) -> ExitCode {
    let report = Report::new(arguments.json);
    match crate::block_on(run(&arguments, &report)) {
        Ok(figures) => {
            report.table();
            println!("{}", figures.line());
            if figures.leftovers == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            report.table();
            println!("{}", json!({"demo": "failed", "error": format!("{error:#}")}));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments, report: &Report) -> anyhow::Result<Figures> {
    let dir = match &arguments.dir {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("tintype-demo-{}", std::process::id())),
    };
    std::fs::create_dir(&dir).with_context(|| format!("cannot make the demo's folder {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let result = play(&dir, report).await;
    if arguments.keep {
        report.say(&format!("kept {}", dir.display()));
    } else {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    result
}

async fn play(dir: &Path, report: &Report) -> anyhow::Result<Figures> {
    let scripts = ScriptServer::start().await?;
    let server = ServerProcess::start(dir, scripts.address()).await?;
    let played = act(dir, report, &scripts, &server).await;
    // Stopped before the folder goes, and whatever happened.
    let stopped = server.stop().await;
    if played.is_err() {
        end_vms(dir).await;
    }
    let mut figures = played?;
    stopped?;
    figures.leftovers += leftovers::count_processes(dir)?;
    Ok(figures)
}

/// A demo that failed half way leaves no VM running: they outlive their server on purpose.
async fn end_vms(dir: &Path) {
    for vm in std::fs::read_dir(dir.join("data/vms")).into_iter().flatten().flatten() {
        if let Err(error) = ::vmhost::VmHandle::attach(&vm.path()).power_off().await {
            eprintln!("cannot end the VM in {}: {error}", vm.path().display());
        }
    }
}

async fn act(
    dir: &Path,
    report: &Report,
    scripts: &ScriptServer,
    server: &ServerProcess,
) -> anyhow::Result<Figures> {
    let arm = Arm::log_in(&server.url, &server.ca, &server.credentials).await?;
    report.say(&format!("the server answers at {}", server.url));
    let scene = Scene::new(&arm, dir, scripts);

    let step = report.step("platform image");
    let bootstrap_s = platform_image(&arm, report).await?;
    step.done_stored(scene.stored_bytes()?);

    let step = report.step("resource group, gallery, definition");
    arm.put(&scene.group, RESOURCES, json!({"location": scene::HOME})).await?;
    arm.put(&scene.gallery, GALLERY, json!({"location": scene::HOME, "properties": {}})).await?;
    arm.put(&scene.definition, GALLERY, scene.definition_body()).await?;
    step.done();

    let step = report.step("first build");
    arm.put(&scene.template("first"), IMAGE_BUILDER, scene.template_body(Asks::Nothing)?).await?;
    let first = build(&arm, report, &scene, "first").await?;
    ensure!(first.steps_cached() == 0, "the first build found cached steps");
    let versions = versions(&arm, &scene).await?;
    ensure!(versions.len() == 1, "one build made {} versions", versions.len());
    let version = versions[0].clone();
    let regions = replicated(&arm, &version.id).await?;
    ensure!(regions == [scene::HOME, scene::OTHER], "the version is in {regions:?}");
    step.done_moved(scene.stored_bytes()?, first.moved_bytes());

    let step = report.step("VM from the second region");
    let vm_ready_s = boot_from_second_region(&arm, dir, report, &scene, &version.id).await?;
    step.done();

    let step = report.step("second build, last step edited, reuse asked for");
    scene.edit_last_script(scripts);
    arm.put(&scene.template("second"), IMAGE_BUILDER, scene.template_body(Asks::UnchangedSteps)?).await?;
    let second = build(&arm, report, &scene, "second").await?;
    ensure!(second.steps_cached() == 2, "{} of 2 unchanged steps were cached", second.steps_cached());
    step.done_moved(scene.stored_bytes()?, second.moved_bytes());

    let step = report.step("third build, reuse not asked for");
    let third = build(&arm, report, &scene, "first").await?;
    ensure!(third.steps_cached() == 0, "a run that did not ask for reuse used cached steps");
    step.done_moved(scene.stored_bytes()?, third.moved_bytes());

    let mut figures = Figures {
        bootstrap_s,
        first_build_s: first.seconds,
        second_build_s: second.seconds,
        second_validate_s: second.number("validateSeconds"),
        resume_s: second.number("firstCommandSeconds"),
        steps_cached: second.steps_cached(),
        version: version.name,
        regions,
        replicated_bytes: first.moved_bytes() + second.moved_bytes() + third.moved_bytes(),
        stored_bytes: scene.stored_bytes()?,
        logical_bytes: [&first, &second, &third].iter().map(|run| run.number("logicalBytes") as u64).sum(),
        vm_ready_s,
        leftovers: 0,
    };
    let step = report.step("deleting everything");
    delete_everything(&arm, &scene).await?;
    figures.leftovers = leftovers::count_resources(&arm, &scene).await? + leftovers::count_files(dir)?;
    step.done();
    Ok(figures)
}

/// What a template asks of the step cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Nothing,
    UnchangedSteps,
}

/// Makes the platform image and follows its log; gives the seconds that it took.
async fn platform_image(arm: &Arm, report: &Report) -> anyhow::Result<f64> {
    let started = Instant::now();
    let make = format!("/tintype/platformImages/{}/make", scene::PLATFORM_IMAGE.join("/"));
    let making = arm.send(Method::POST, &make, COMPUTE, None).await?;
    let run = making.body["runId"].as_str().context("making a platform image has no log")?.to_owned();
    let following = report.follow_run(arm, run);
    let made = making.finish(arm).await;
    following.stop().await;
    made?;
    Ok(started.elapsed().as_secs_f64())
}

/// A finished run of a template.
struct Run {
    seconds: f64,
    report: Value,
}

impl Run {
    fn number(&self, key: &str) -> f64 {
        self.report[key].as_f64().unwrap_or_default()
    }

    fn steps_cached(&self) -> usize {
        let steps = self.report["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
        steps.iter().filter(|step| step["cached"] == true).count()
    }

    /// Compressed bytes that went to other regions.
    fn moved_bytes(&self) -> u64 {
        let versions = self.report["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let regions = versions.iter().flat_map(|version| version["regions"].as_array().into_iter().flatten());
        regions.filter_map(|region| region["bytesMoved"].as_u64()).sum()
    }
}

/// Runs a template and shows its log meanwhile.
async fn build(arm: &Arm, report: &Report, scene: &Scene, name: &str) -> anyhow::Result<Run> {
    let started = Instant::now();
    let template = scene.template(name);
    let following = report.follow_newest_run(arm, &template);
    let ran = arm.post(&format!("{template}/run"), IMAGE_BUILDER).await;
    following.stop().await;
    ran.with_context(|| format!("the build of template '{name}' failed"))?;
    let seconds = started.elapsed().as_secs_f64();
    let runs =
        arm.get(&format!("/tintype/runs?template={}", arm::percent_encode(&template)), COMPUTE).await?;
    Ok(Run { seconds, report: runs["value"][0]["report"].clone() })
}

#[derive(Clone)]
struct Version {
    id: String,
    name: String,
}

async fn versions(arm: &Arm, scene: &Scene) -> anyhow::Result<Vec<Version>> {
    let list = arm.get(&format!("{}/versions", scene.definition), GALLERY).await?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a version without id or name");
    list["value"]
        .as_array()
        .context("no list of versions")?
        .iter()
        .map(|version| Ok(Version { id: text(&version["id"])?, name: text(&version["name"])? }))
        .collect()
}

/// The regions that hold a version, by their plain names.
async fn replicated(arm: &Arm, version: &str) -> anyhow::Result<Vec<String>> {
    let version = arm.get(&format!("{version}?$expand=ReplicationStatus"), GALLERY).await?;
    let status = &version["properties"]["replicationStatus"];
    ensure!(status["aggregatedState"] == "Completed", "replication is {}", status["aggregatedState"]);
    let regions = status["summary"].as_array().context("no replication summary")?;
    let plain = |name: &str| name.replace(' ', "").to_lowercase();
    let mut regions: Vec<_> =
        regions.iter().filter_map(|region| region["region"].as_str()).map(plain).collect();
    // The order of the scene, whatever the order of the answer.
    regions.sort_by_key(|region| region != scene::HOME);
    Ok(regions)
}

/// Creates a VM in the second region while the first one is away; gives the seconds to the guest's Ready.
async fn boot_from_second_region(
    arm: &Arm,
    dir: &Path,
    report: &Report,
    scene: &Scene,
    version: &str,
) -> anyhow::Result<f64> {
    let guest = Guest::prepare(dir)?;
    let (home, away) = (scene.region_dir(scene::HOME), dir.join("regions/away"));
    std::fs::rename(&home, &away).context("cannot take the first region away")?;
    report.say("the first region's folder is away: every byte must come from the second");
    let proven = async {
        let started = Instant::now();
        arm.put(&scene.vm, COMPUTE, scene.vm_body(version, &guest)?).await?;
        let ready_s = started.elapsed().as_secs_f64();
        report.say(&format!("the guest reported ready after {ready_s:.1} s"));
        let ssh = arm
            .get(&format!("/tintype/virtualMachines/ssh?id={}", arm::percent_encode(&scene.vm)), COMPUTE)
            .await?;
        let address = ssh["address"].as_str().context("no SSH address")?.to_owned();
        guest.prove(&address, scene, report).await?;
        anyhow::Ok(ready_s)
    }
    .await;
    // The VM must not see its region's neighbour come back half way: it is over for this one first.
    std::fs::rename(&away, &home).context("cannot bring the first region back")?;
    proven
}

async fn delete_everything(arm: &Arm, scene: &Scene) -> anyhow::Result<()> {
    arm.delete(&scene.vm, COMPUTE).await?;
    for name in ["first", "second"] {
        arm.delete(&scene.template(name), IMAGE_BUILDER).await?;
    }
    for version in versions(arm, scene).await? {
        arm.delete(&version.id, GALLERY).await?;
    }
    arm.delete(&scene.definition, GALLERY).await?;
    arm.delete(&scene.gallery, GALLERY).await?;
    arm.delete(&scene.group, RESOURCES).await
}
