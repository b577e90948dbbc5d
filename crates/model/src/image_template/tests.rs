//! A template's rules and the plan of its build.

use super::*;
use crate::build_plan::{BuildPlan, Step, ValidationSubject};
use crate::image_definition::OsType;
use crate::latest::VersionScheme;
use crate::names::{GalleryName, ImageDefinitionName, ResourceGroupName, SubscriptionId};
use crate::reference::ImageDefinitionRef;

fn shell(name: &str, line: &str) -> Customizer {
    let body = ScriptBody::Inline(vec![line.to_owned()]);
    Customizer { name: Some(name.to_owned()), kind: CustomizerKind::Shell(Script { body }) }
}

fn shared(name: &str) -> Distributor {
    Distributor {
        run_output_name: RunOutputName::parse(name).unwrap(),
        artifact_tags: Tags::default(),
        kind: DistributorKind::SharedImage {
            target: ImageTarget {
                definition: ImageDefinitionRef {
                    subscription: SubscriptionId::parse("00000000-0000-0000-0000-000000000000").unwrap(),
                    resource_group: ResourceGroupName::parse("rg").unwrap(),
                    gallery: GalleryName::parse("g").unwrap(),
                    definition: ImageDefinitionName::parse("d").unwrap(),
                },
                version: None,
            },
            placement: Placement::TargetRegions(vec![]),
            exclude_from_latest: false,
            versioning: Some(VersionScheme::Latest { major: None }),
        },
    }
}

fn spec() -> ImageTemplateSpec {
    ImageTemplateSpec {
        location: Region::parse("eastus").unwrap(),
        tags: Tags::default(),
        identity: TemplateIdentity::None,
        source: ImageSource::PlatformImage {
            publisher: "Debian".into(),
            offer: "debian-12".into(),
            sku: "12-gen2".into(),
            version: "latest".into(),
            plan: None,
        },
        customize: vec![shell("a", "true"), shell("b", "false")],
        validate: Some(Validation {
            validators: vec![Validator {
                name: None,
                kind: ValidatorKind::Shell(Script { body: ScriptBody::Inline(vec!["true".into()]) }),
            }],
            ..Default::default()
        }),
        distribute: vec![shared("out")],
        error_handling: None,
        build_timeout_minutes: 0,
        vm_profile: TemplateVmProfile::default(),
        staging_resource_group: None,
        optimize_vm_boot: None,
        auto_run: None,
        managed_resource_tags: None,
    }
}

fn refusal(change: impl FnOnce(&mut ImageTemplateSpec)) -> (String, String) {
    let mut spec = spec();
    change(&mut spec);
    let error = spec.check().unwrap_err();
    assert_eq!(error.rule, Rule::Template);
    (error.target.unwrap(), error.message)
}

#[test]
fn a_good_template_passes() {
    assert_eq!(spec().check(), Ok(()));
    assert_eq!(spec().build_timeout_minutes(), 240);
}

#[test]
fn refusals_name_the_property() {
    assert_eq!(refusal(|s| s.build_timeout_minutes = 5).0, "properties.buildTimeoutInMinutes");
    assert_eq!(refusal(|s| s.build_timeout_minutes = 961).0, "properties.buildTimeoutInMinutes");
    assert_eq!(refusal(|s| s.distribute.clear()).0, "properties.distribute");
    assert_eq!(refusal(|s| s.distribute.push(shared("OUT"))).0, "properties.distribute[1].runOutputName");
    let (target, _) = refusal(|s| {
        s.customize[1].kind = CustomizerKind::Shell(Script {
            body: ScriptBody::Uri { uri: "file:///etc/passwd".into(), sha256: None },
        });
    });
    assert_eq!(target, "properties.customize[1].scriptUri");
    let (target, _) = refusal(|s| {
        s.customize[0].kind = CustomizerKind::PowerShell(PowerShellScript {
            body: ScriptBody::Inline(vec![]),
            run_elevated: false,
            run_as_system: true,
            valid_exit_codes: None,
        });
    });
    assert_eq!(target, "properties.customize[0].runAsSystem");
    let (target, _) = refusal(|s| {
        s.vm_profile.network = Some(TemplateNetwork {
            subnet_id: Some("/s".into()),
            container_instance_subnet_id: Some("/c".into()),
            proxy_vm_size: Some("Standard_A1_v2".into()),
        });
    });
    assert_eq!(target, "properties.vmProfile.vnetConfig");
}

#[test]
fn steps_must_run_on_the_sources_system() {
    assert_eq!(spec().check_for_os(OsType::Linux), Ok(()));
    let error = spec().check_for_os(OsType::Windows).unwrap_err();
    assert_eq!(error.code, ProvisioningErrorCode::UnsupportedCustomizerType);
    assert_eq!(
        error.message,
        "Customizer 0 has the type 'Shell', which cannot run on Windows. Use PowerShell, File, WindowsRestart or WindowsUpdate instead."
    );
}

#[test]
fn a_build_is_planned_in_order() {
    let labels: Vec<String> = BuildPlan::new(&spec()).steps.iter().map(Step::label).collect();
    assert_eq!(
        labels,
        [
            "boot",
            "customize 0 (Shell \"a\")",
            "customize 1 (Shell \"b\")",
            "deprovision",
            "shut down",
            "commit",
            "validate 0 (Shell)",
            "distribute 0 (out)"
        ]
    );
    let stages: Vec<RunStage> = BuildPlan::new(&spec()).steps.iter().map(Step::stage).collect();
    assert!(stages.is_sorted());
}

#[test]
fn validating_the_source_builds_nothing() {
    let mut spec = spec();
    spec.validate.as_mut().unwrap().source_validation_only = true;
    let plan = BuildPlan::new(&spec);
    assert_eq!(plan.subject, ValidationSubject::Source);
    assert!(plan.validates());
    assert!(
        !plan.steps.iter().any(|step| matches!(step, Step::Boot | Step::Commit | Step::Customize { .. }))
    );
}

#[test]
fn a_patch_keeps_every_distribution_target() {
    let template = ImageTemplate::create(ImageTemplateName::parse("t").unwrap(), spec());
    let patch = ImageTemplatePatch { distribute: Some(vec![shared("other")]), ..Default::default() };
    let error = template.patched_spec(patch).unwrap_err();
    assert!(error.message.starts_with("Deleting a distribution target is not allowed"));
    let patch =
        ImageTemplatePatch { distribute: Some(vec![shared("out"), shared("other")]), ..Default::default() };
    assert_eq!(template.patched_spec(patch).unwrap().distribute.len(), 2);
}

#[test]
fn only_a_ready_template_runs_and_a_running_one_stays() {
    let now = Timestamp::UNIX_EPOCH;
    let mut template = ImageTemplate::create(ImageTemplateName::parse("t").unwrap(), spec());
    assert_eq!(
        template.clone().start_run(now).unwrap_err().to_string(),
        "cannot run an image template that is Creating"
    );
    template.provisioning = template.provisioning.succeed().unwrap();
    let template = template.start_run(now).unwrap();
    assert_eq!(template.check_delete().unwrap_err().rule, Rule::NotAllowed);
    assert_eq!(template.start_run(now).unwrap_err().to_string(), "cannot start a run that is Running");
}

#[test]
fn documents_round_trip() {
    let template = ImageTemplate::create(ImageTemplateName::parse("t").unwrap(), spec());
    let text = serde_json::to_string(&template).unwrap();
    assert_eq!(serde_json::from_str::<ImageTemplate>(&text).unwrap(), template);
}
