//! The end of a run whose template asks for a VHD without an address: from a manifest in the store to the run output.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arm::ApiVersion;
use build::BuildOutput;
use model::image_template::ImageTemplate;
use model::resource_group::{ResourceGroup, ResourceGroupSpec};
use model::run_output::{Artifact, RunOutput};
use model::{ImageTemplateName, ResourceGroupName};
use serde_json::json;
use store::{Document, Job, JobState, ProvisioningState};
use tokio_util::sync::CancellationToken;

use super::super::super::{JobContext, put_output};
use super::super::{Published, distribute};
use super::*;
use crate::blob::local;
use crate::{AppState, Config};

const GROUP: &str = "/subscriptions/s/resourceGroups/stg";
const TEMPLATE: &str =
    "/subscriptions/s/resourceGroups/stg/providers/Microsoft.VirtualMachineImages/imageTemplates/t";
const RUN_ID: &str = "11111111-2222-3333-4444-555555555555";

#[tokio::test(flavor = "multi_thread")]
async fn a_run_leaves_a_vhd_in_the_staging_account() {
    let folder = tempfile::tempdir().unwrap();
    let state = AppState::for_tests(Config::new(folder.path())).await;
    let region = state.config.regions[0].name.clone();
    let body = json!({
        "location": region.as_str(), "identity": {"type": "None"}, "properties": {
            "source": {"type": "PlatformImage", "publisher": "p", "offer": "o", "sku": "s", "version": "latest"},
            "distribute": [{"type": "VHD", "runOutputName": "out"}],
        },
    });
    let version = ApiVersion::parse("2024-02-01").unwrap();
    let spec = arm::image_template::parse(body, &version).unwrap().data;
    let mut template = ImageTemplate::create(ImageTemplateName::parse("t").unwrap(), spec);
    template.resolved.staging_resource_group = Some(GROUP.to_owned());
    let inserted = state.store.write(|tx| {
        Box::pin(async {
            let spec = ResourceGroupSpec {
                location: region.clone(),
                tags: model::Tags::default(),
                managed_by: None,
            };
            let group = ResourceGroup::create(ResourceGroupName::parse("stg").unwrap(), spec);
            let location = region.as_str();
            tx.insert(&mut Document::new(GROUP, location, ProvisioningState::Succeeded, group)?).await?;
            let mut new = Document::new(TEMPLATE, location, ProvisioningState::Succeeded, template.clone())?;
            tx.insert(&mut new).await?;
            Ok::<_, store::StoreError>(new)
        })
    });
    let template = inserted.await.unwrap();

    let raw = folder.path().join("disk.raw");
    let mut disk = vec![0; 21 << 20];
    disk[9_000_000..9_000_100].fill(7);
    std::fs::write(&raw, &disk).unwrap();
    let store = state.fabric.store(&region).await.unwrap();
    let commit = store.put_raw(&raw, "test", |_| {}).await.unwrap();
    let job = Job {
        id: "j".to_owned(),
        kind: "test".to_owned(),
        payload: json!({}),
        operation_id: Some(RUN_ID.to_owned()),
        resource_key: None,
        state: JobState::Succeeded { finished_at: state.now() },
        attempts: 1,
        max_attempts: 1,
        cancel_requested: false,
        progress: None,
        error: None,
        created_at: state.now(),
    };
    let context = JobContext {
        state: state.clone(),
        job: Arc::new(job),
        cancel: CancellationToken::new(),
        stopping: CancellationToken::new(),
        fence: 1,
        progress: tokio::sync::watch::channel(None).0,
    };
    let stop = CancellationToken::new();
    let run = Run {
        context,
        run_id: RUN_ID.to_owned(),
        template: template.clone(),
        stop: stop.clone(),
        started: Instant::now(),
    };
    let built = Built {
        output: BuildOutput {
            manifest: commit.manifest,
            logical_bytes: commit.logical_bytes,
            commit,
            steps: Vec::new(),
            first_command_s: 0.0,
            resumed: false,
            validate_s: 0.0,
            validation_failure: None,
        },
        exact_version: Some("1.0.0".to_owned()),
        generation: model::image_definition::HyperVGeneration::V2,
        deadline: tokio::time::Instant::now() + Duration::from_secs(60),
    };
    let mut journal = Journal::open(&run.context, &template, RUN_ID).unwrap();
    let mut distributed = distribute(&run, &built, &mut journal).await;
    let one = distributed.pop().unwrap();
    let Ok(Published::Vhd(vhd)) = &one.published else {
        panic!("{:?}", one.published.as_ref().err());
    };
    assert_eq!(vhd.bytes, (21 << 20) + 512);
    let path = vhd.uri.strip_prefix("https://localhost:1").unwrap();
    assert!(path.ends_with(&format!("/vhds/out_{RUN_ID}.vhd")), "{path}");
    let files = local::files(&state, path).await.unwrap();
    let bytes = std::fs::read(&files[0]).unwrap();
    assert!(bytes[..21 << 20] == disk && bytes[21 << 20..].starts_with(b"conectix"));

    let stored: Result<_, store::StoreError> = state
        .store
        .write(|tx| {
            Box::pin(async {
                put_output(tx, &template, &one).await?;
                tx.get::<RunOutput>(&format!("{TEMPLATE}/runOutputs/out")).await
            })
        })
        .await;
    assert_eq!(stored.unwrap().unwrap().data.artifact, Artifact::Uri(vhd.uri.clone()));
    let log = state.fabric.staging_dir("stg").join("packerlogs").join(RUN_ID).join("customization.log");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("publishing 'out' as a VHD") && log.contains("is ready: 22020608 bytes"), "{log}");

    // A run that was stopped writes nothing.
    stop.cancel();
    let stopped = distribute(&run, &built, &mut journal).await.pop().unwrap();
    assert!(stopped.published.err().unwrap().contains("stopped"));
}
