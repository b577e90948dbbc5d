//! From a template to a build request: the source's disk, and every script's bytes as they were at submission.

use std::path::Path;

use build::{BaseImage, BuildRequest, Step, StepAction, Stream};
use content::ManifestId;
use model::content::GIB;
use model::image_definition::HyperVGeneration;
use model::image_template::{
    Customizer, CustomizerKind, FileCopy, ImageSource, ResolvedTemplate, Script, ScriptBody, Sha256,
    TemplateIdentity, Validator, ValidatorKind,
};
use sha2::Digest;
use vmhost::identity::Generation;

use super::journal::Journal;
use super::machine_size::build_machine_size;
use super::{FAILED_CODE, Run, give_up};
use crate::api::image_versions::resolve_gallery_image;
use crate::api::images;
use crate::jobs::context::JobFailure;
use crate::jobs::create_image_template::{STAGED_BYTES_MAX, staged_file};
use crate::jobs::make_platform_image::ensure_platform_image;

/// The disk that a build starts from.
pub(super) struct SourceDisk {
    /// `None`: a managed image, which has no versions.
    pub(super) exact_version: Option<String>,
    pub(super) generation: HyperVGeneration,
    manifest: ManifestId,
    bytes: u64,
    name: String,
}

/// The source's disk in the store of the template's region. A platform image is made if it is not there yet.
pub(super) async fn resolve_source(run: &Run, journal: &mut Journal) -> Result<SourceDisk, JobFailure> {
    let region = &run.spec().location;
    let state = &run.context.state;
    match &run.spec().source {
        ImageSource::PlatformImage { publisher, offer, sku, version, .. } => {
            let name = format!("{publisher}:{offer}:{sku}:{version}");
            journal.line(
                Stream::Customization,
                &format!("resolving {name}; it is made now if it is used for the first time"),
            );
            journal.flush().await;
            let image = ensure_platform_image(state, publisher, offer, sku, version, region)
                .await
                .map_err(|message| JobFailure::permanent(FAILED_CODE, message))?;
            Ok(SourceDisk {
                name: format!("{publisher}:{offer}:{sku}:{}", image.exact_version),
                exact_version: Some(image.exact_version),
                generation: image.generation,
                manifest: image.manifest,
                bytes: image.logical_bytes,
            })
        }
        ImageSource::SharedImageVersion(reference) => {
            let resolved =
                state.store.read(|tx| Box::pin(async { resolve_gallery_image(tx, reference, region).await }));
            let image = resolved.await.map_err(|error| {
                let message = error.error_object()["message"].as_str().unwrap_or_default().to_owned();
                JobFailure::permanent(FAILED_CODE, message)
            })?;
            let disk = &image.content.os_disk;
            Ok(SourceDisk {
                name: image.version_id.clone(),
                exact_version: Some(image.exact.to_string()),
                generation: image.definition.spec.hyper_v_generation,
                manifest: disk.manifest.as_str().parse().map_err(give_up)?,
                bytes: disk.size_bytes,
            })
        }
        ImageSource::ManagedImage(id) => {
            let target = "properties.source.imageId";
            let found = state
                .store
                .read(|tx| Box::pin(async { images::usable(tx, id.as_str(), region, target).await }));
            let found = found.await.map_err(|error| {
                let message = error.error_object()["message"].as_str().unwrap_or_default().to_owned();
                JobFailure::permanent(FAILED_CODE, message)
            })?;
            let disk = &found.content.os_disk;
            Ok(SourceDisk {
                name: found.id.clone(),
                exact_version: None,
                generation: found.image.hyper_v_generation(),
                manifest: disk.manifest.as_str().parse().map_err(give_up)?,
                bytes: disk.size_bytes,
            })
        }
    }
}

pub(super) fn build_request(run: &Run, source: &SourceDisk) -> Result<BuildRequest, JobFailure> {
    let spec = run.spec();
    let (dir, resolved) = (run.staging_dir()?, &run.template.data.resolved);
    let size = build_machine_size(spec.vm_profile.vm_size.as_deref(), source.generation);
    let validate = spec.validate.clone().unwrap_or_default();
    let customizers = spec.customize.iter().enumerate();
    let validators = validate.validators.iter().enumerate();
    Ok(BuildRequest {
        run_id: run.run_id.clone(),
        name: run.template.name.clone(),
        base: BaseImage {
            manifest: source.manifest,
            name: source.name.clone(),
            generation: match source.generation {
                HyperVGeneration::V1 => Generation::V1,
                HyperVGeneration::V2 => Generation::V2,
            },
        },
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        disk_bytes: source.bytes.max(u64::from(spec.vm_profile.os_disk_size_gib) * GIB),
        steps: customizers
            .map(|(index, step)| customizer(step, index, &dir, resolved))
            .collect::<Result<_, _>>()?,
        validations: validators
            .map(|(index, step)| validator(step, index, &dir, resolved))
            .collect::<Result<_, _>>()?,
        continue_on_validation_failure: validate.continue_distribute_on_failure,
        rights: rights(run),
        reuse: run.reuse(),
        timeout: run.timeout(),
    })
}

/// Who may see a cached machine: templates of one subscription with one identity.
fn rights(run: &Run) -> String {
    let identity = match &run.spec().identity {
        TemplateIdentity::None => "none".to_owned(),
        TemplateIdentity::UserAssigned(id) => id.as_str().to_ascii_lowercase(),
    };
    format!("{}\n{identity}", run.template.subscription)
}

fn customizer(
    step: &Customizer,
    index: usize,
    dir: &Path,
    resolved: &ResolvedTemplate,
) -> Result<Step, JobFailure> {
    let name = name(step.name.as_deref(), step.kind.type_name(), index);
    let action = match &step.kind {
        CustomizerKind::Shell(script) => shell(script, dir, resolved),
        CustomizerKind::File(file) => copy(file, dir, resolved),
        CustomizerKind::PowerShell(_)
        | CustomizerKind::WindowsRestart { .. }
        | CustomizerKind::WindowsUpdate { .. } => Err(windows(&name)),
    };
    Ok(Step { action: action?, name })
}

fn validator(
    step: &Validator,
    index: usize,
    dir: &Path,
    resolved: &ResolvedTemplate,
) -> Result<Step, JobFailure> {
    let name = name(step.name.as_deref(), step.kind.type_name(), index);
    let action = match &step.kind {
        ValidatorKind::Shell(script) => shell(script, dir, resolved),
        ValidatorKind::File(file) => copy(file, dir, resolved),
        ValidatorKind::PowerShell(_) => Err(windows(&name)),
    };
    Ok(Step { action: action?, name })
}

fn name(own: Option<&str>, kind: &str, index: usize) -> String {
    match own {
        Some(own) if !own.is_empty() => own.to_owned(),
        _ => format!("{kind} #{}", index + 1),
    }
}

/// The creation refuses these: no source is Windows.
fn windows(name: &str) -> JobFailure {
    JobFailure::permanent(FAILED_CODE, format!("The step '{name}' runs on Windows only."))
}

fn shell(script: &Script, dir: &Path, resolved: &ResolvedTemplate) -> Result<StepAction, JobFailure> {
    let script = match &script.body {
        ScriptBody::Inline(lines) => inline(lines),
        ScriptBody::Uri { uri, .. } => staged(uri, dir, resolved)?,
    };
    Ok(StepAction::Shell { script })
}

/// As Packer's shell provisioner joins inline commands: the first that fails ends the script.
fn inline(lines: &[String]) -> Vec<u8> {
    let mut script = String::from("#!/bin/sh -e\n");
    for line in lines {
        script.push_str(line);
        script.push('\n');
    }
    script.into_bytes()
}

fn copy(file: &FileCopy, dir: &Path, resolved: &ResolvedTemplate) -> Result<StepAction, JobFailure> {
    let content = staged(&file.source_uri, dir, resolved)?;
    Ok(StepAction::File { content, destination: file.destination.clone() })
}

/// The bytes that were fetched at submission, checked again: the staging folder is only a folder.
fn staged(uri: &str, dir: &Path, resolved: &ResolvedTemplate) -> Result<Vec<u8>, JobFailure> {
    let shown = crate::jobs::fetch::shown(uri);
    let lost = |reason: String| {
        let message = format!(
            "The content of '{shown}', fetched when the template was submitted, is {reason}. Create the template anew."
        );
        JobFailure::permanent(FAILED_CODE, message)
    };
    let sum = resolved.checksums.get(uri).ok_or_else(|| lost("not known".to_owned()))?;
    let path = staged_file(dir, sum);
    let length = std::fs::metadata(&path).map_err(|error| lost(format!("gone: {error}")))?.len();
    if length > STAGED_BYTES_MAX {
        return Err(lost("damaged".to_owned()));
    }
    let bytes = std::fs::read(&path).map_err(|error| lost(format!("gone: {error}")))?;
    if Sha256::new(sha2::Sha256::digest(&bytes).into()) != *sum {
        return Err(lost("damaged".to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_commands_stop_at_the_first_failure() {
        let script = inline(&["false".into(), "echo reached".into()]);
        assert_eq!(script, b"#!/bin/sh -e\nfalse\necho reached\n");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, script).unwrap();
        let output = std::process::Command::new("sh").arg("-e").arg(&path).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
    }

    #[test]
    fn staged_bytes_must_be_those_of_the_submission() {
        let folder = tempfile::tempdir().unwrap();
        let sum = Sha256::new(sha2::Sha256::digest(b"echo hi\n").into());
        let mut resolved = ResolvedTemplate::default();
        let uri = "https://example.com/a.sh?sig=secret";
        resolved.checksums.insert(uri.to_owned(), sum);
        let path = staged_file(folder.path(), &sum);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "echo hi\n").unwrap();
        assert_eq!(staged(uri, folder.path(), &resolved).unwrap(), b"echo hi\n");
        std::fs::write(&path, "echo ho\n").unwrap();
        let error = staged(uri, folder.path(), &resolved).unwrap_err().message;
        assert!(error.contains("damaged") && !error.contains("secret"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(staged(uri, folder.path(), &resolved).unwrap_err().message.contains("gone"));
    }

    #[test]
    fn steps_without_a_name_are_counted() {
        assert_eq!(name(None, "Shell", 1), "Shell #2");
        assert_eq!(name(Some("install"), "Shell", 1), "install");
    }
}
