//! Customizers and validators, both ways.

use model::image_template::{
    Customizer, CustomizerKind, FileCopy, PowerShellScript, ResolvedTemplate, Script, ScriptBody, Sha256,
    Validator, ValidatorKind,
};
use serde::Deserialize;
use serde_json::Value;

use super::parse::invalid;
use crate::common::{Object, non_empty};
use crate::error::ArmError;

/// Any customizer or validator: which properties may be there was checked against its shape.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct WireStep {
    r#type: Option<String>,
    name: Option<String>,
    script_uri: Option<String>,
    source_uri: Option<String>,
    destination: Option<String>,
    #[serde(rename = "sha256Checksum")]
    sha256_checksum: Option<String>,
    inline: Option<Vec<String>>,
    run_elevated: bool,
    run_as_system: bool,
    valid_exit_codes: Option<Vec<i32>>,
    restart_command: Option<String>,
    restart_check_command: Option<String>,
    restart_timeout: Option<String>,
    search_criteria: Option<String>,
    filters: Vec<String>,
    update_limit: u32,
}

pub(super) fn customizer(wire: WireStep, path: &str) -> Result<Customizer, ArmError> {
    let name = wire.name.clone();
    let kind = match wire.r#type.as_deref() {
        Some("Shell") => CustomizerKind::Shell(Script { body: script(&wire, path)? }),
        Some("File") => CustomizerKind::File(file(wire, path)?),
        Some("PowerShell") => CustomizerKind::PowerShell(powershell(wire, path)?),
        Some("WindowsRestart") => CustomizerKind::WindowsRestart {
            command: non_empty(wire.restart_command),
            check_command: non_empty(wire.restart_check_command),
            timeout: non_empty(wire.restart_timeout),
        },
        Some("WindowsUpdate") => CustomizerKind::WindowsUpdate {
            search_criteria: non_empty(wire.search_criteria),
            filters: wire.filters,
            update_limit: wire.update_limit,
        },
        other => {
            return Err(unknown_type(
                "customizer",
                other,
                path,
                "Shell, File, PowerShell, WindowsRestart, WindowsUpdate",
            ));
        }
    };
    Ok(Customizer { name, kind })
}

pub(super) fn validator(wire: WireStep, path: &str) -> Result<Validator, ArmError> {
    let name = wire.name.clone();
    let kind = match wire.r#type.as_deref() {
        Some("Shell") => ValidatorKind::Shell(Script { body: script(&wire, path)? }),
        Some("File") => ValidatorKind::File(file(wire, path)?),
        Some("PowerShell") => ValidatorKind::PowerShell(powershell(wire, path)?),
        other => return Err(unknown_type("validator", other, path, "Shell, File, PowerShell")),
    };
    Ok(Validator { name, kind })
}

pub(super) fn unknown_type(what: &str, found: Option<&str>, path: &str, known: &str) -> ArmError {
    let found = match found {
        Some(found) => format!(
            "The {what} type '{}' at {path} is not supported.",
            found.chars().take(60).collect::<String>()
        ),
        None => format!("The {what} at {path} has no type."),
    };
    invalid(&format!("{path}.type"), format!("{found} Supported types are: {known}."))
}

/// Exactly one of `scriptUri` and `inline` (REFERENCE.md 3).
fn script(wire: &WireStep, path: &str) -> Result<ScriptBody, ArmError> {
    let sha256 = checksum(wire.sha256_checksum.as_deref(), path)?;
    match (non_empty(wire.script_uri.clone()), wire.inline.clone().filter(|lines| !lines.is_empty())) {
        (Some(uri), None) => Ok(ScriptBody::Uri { uri, sha256 }),
        (None, Some(lines)) if sha256.is_none() => Ok(ScriptBody::Inline(lines)),
        (None, Some(_)) => Err(invalid(
            &format!("{path}.sha256Checksum"),
            format!("sha256Checksum at {path} is the checksum of scriptUri and can not be used with inline."),
        )),
        (Some(_), Some(_)) => {
            Err(invalid(path, format!("{path} has both scriptUri and inline. Use exactly one of them.")))
        }
        (None, None) => {
            Err(invalid(path, format!("{path} has neither scriptUri nor inline. Use exactly one of them.")))
        }
    }
}

fn powershell(wire: WireStep, path: &str) -> Result<PowerShellScript, ArmError> {
    Ok(PowerShellScript {
        body: script(&wire, path)?,
        run_elevated: wire.run_elevated,
        run_as_system: wire.run_as_system,
        valid_exit_codes: wire.valid_exit_codes,
    })
}

fn file(wire: WireStep, path: &str) -> Result<FileCopy, ArmError> {
    let missing =
        |name: &str| invalid(&format!("{path}.{name}"), format!("Missing field: {path} needs {name}."));
    Ok(FileCopy {
        sha256: checksum(wire.sha256_checksum.as_deref(), path)?,
        source_uri: non_empty(wire.source_uri).ok_or_else(|| missing("sourceUri"))?,
        destination: non_empty(wire.destination).ok_or_else(|| missing("destination"))?,
    })
}

/// The empty text is sent for "none" (recorded).
fn checksum(text: Option<&str>, path: &str) -> Result<Option<Sha256>, ArmError> {
    let text = text.filter(|text| !text.is_empty());
    Ok(text.map(|text| Sha256::parse(text, &format!("{path}.sha256Checksum"))).transpose()?)
}

pub(super) fn customizer_json(step: &Customizer, resolved: &ResolvedTemplate) -> Value {
    let object = Object::new().maybe("name", step.name.as_deref());
    match &step.kind {
        CustomizerKind::Shell(shell) => script_json(object, &shell.body, resolved),
        CustomizerKind::File(file) => file_json(object, file, resolved),
        CustomizerKind::PowerShell(script) => powershell_json(object, script, resolved),
        CustomizerKind::WindowsRestart { command, check_command, timeout } => object
            .maybe("restartCommand", command.as_deref())
            .maybe("restartCheckCommand", check_command.as_deref())
            .maybe("restartTimeout", timeout.as_deref()),
        CustomizerKind::WindowsUpdate { search_criteria, filters, update_limit } => object
            .maybe("searchCriteria", search_criteria.as_deref())
            .maybe("filters", (!filters.is_empty()).then(|| filters.clone()))
            .set("updateLimit", *update_limit),
    }
    .set("type", step.kind.type_name())
    .into()
}

pub(super) fn validator_json(step: &Validator, resolved: &ResolvedTemplate) -> Value {
    let object = Object::new().maybe("name", step.name.as_deref());
    match &step.kind {
        ValidatorKind::Shell(shell) => script_json(object, &shell.body, resolved),
        ValidatorKind::File(file) => file_json(object, file, resolved),
        ValidatorKind::PowerShell(script) => powershell_json(object, script, resolved),
    }
    .set("type", step.kind.type_name())
    .into()
}

fn script_json(object: Object, body: &ScriptBody, resolved: &ResolvedTemplate) -> Object {
    match body {
        ScriptBody::Inline(lines) => object.set("inline", lines.clone()),
        ScriptBody::Uri { uri, sha256 } => object
            .set("scriptUri", uri.as_str())
            .maybe("sha256Checksum", checksum_json(uri, *sha256, resolved)),
    }
}

fn powershell_json(object: Object, script: &PowerShellScript, resolved: &ResolvedTemplate) -> Object {
    script_json(object, &script.body, resolved)
        .set("runElevated", script.run_elevated)
        .set("runAsSystem", script.run_as_system)
        .maybe("validExitCodes", script.valid_exit_codes.clone())
}

fn file_json(object: Object, file: &FileCopy, resolved: &ResolvedTemplate) -> Object {
    object
        .set("sourceUri", file.source_uri.as_str())
        .maybe("sha256Checksum", checksum_json(&file.source_uri, file.sha256, resolved))
        .set("destination", file.destination.as_str())
}

/// What was written, else what was computed at submission (REFERENCE.md 5.3).
fn checksum_json(uri: &str, written: Option<Sha256>, resolved: &ResolvedTemplate) -> Option<String> {
    written.or_else(|| resolved.checksums.get(uri).copied()).map(|sum| sum.to_string())
}
