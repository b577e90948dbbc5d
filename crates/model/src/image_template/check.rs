//! Rules that a template alone can break.

use super::{
    Customizer, CustomizerKind, Distributor, DistributorKind, ImageTemplateSpec, Placement, PowerShellScript,
    ProvisioningError, ProvisioningErrorCode, ScriptBody, ValidatorKind,
};
use crate::image_definition::OsType;
use crate::violation::{Rule, Violation};

/// What 0 or nothing means (RULES.md 2A).
pub const BUILD_TIMEOUT_MINUTES_DEFAULT: u32 = 240;
/// Least build timeout other than 0 (RULES.md 2A).
pub const BUILD_TIMEOUT_MINUTES_MIN: u32 = 6;
/// Greatest build timeout (RULES.md 2A).
pub const BUILD_TIMEOUT_MINUTES_MAX: u32 = 960;
/// Most customizers.
pub const CUSTOMIZERS_MAX: usize = 256;
/// Most validators.
pub const VALIDATORS_MAX: usize = 256;
/// Most distributors.
pub const DISTRIBUTORS_MAX: usize = 64;
/// Most lines of an inline script.
pub const INLINE_LINES_MAX: usize = 10_000;
/// Most bytes of an inline script.
pub const INLINE_BYTES_MAX: usize = 512 * 1024;
/// Longest name of a customizer or validator.
pub const STEP_NAME_CHARS_MAX: usize = 256;
/// Longest address of a script or file.
const URI_BYTES_MAX: usize = 4096;
/// Longest path of a file in the machine.
const DESTINATION_BYTES_MAX: usize = 1024;
/// Largest OS disk.
const OS_DISK_GIB_MAX: u32 = 4095;

impl ImageTemplateSpec {
    /// Checks every rule that needs nothing but the template.
    ///
    /// # Errors
    /// The first rule broken, as [`Rule::Template`], with the path of the property.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_timeout()?;
        count("properties.customize", self.customize.len(), CUSTOMIZERS_MAX)?;
        for (index, step) in self.customize.iter().enumerate() {
            check_customizer(step, &format!("properties.customize[{index}]"))?;
        }
        if let Some(validate) = &self.validate {
            let path = "properties.validate.inVMValidations";
            count(path, validate.validators.len(), VALIDATORS_MAX)?;
            for (index, step) in validate.validators.iter().enumerate() {
                let path = format!("{path}[{index}]");
                check_step_name(step.name.as_deref(), &path)?;
                match &step.kind {
                    ValidatorKind::Shell(script) => check_script(&script.body, &path)?,
                    ValidatorKind::PowerShell(script) => check_powershell(script, &path)?,
                    ValidatorKind::File(file) => check_file(&file.source_uri, &file.destination, &path)?,
                }
            }
        }
        self.check_distributors()?;
        self.check_vm_profile()
    }

    /// Checks what depends on the source's operating system; found while the template is created.
    ///
    /// # Errors
    /// The first customizer or validator that cannot run there.
    pub fn check_for_os(&self, os: OsType) -> Result<(), ProvisioningError> {
        let refuse = |code, what: &str, name: &str, index: usize| ProvisioningError {
            code,
            message: format!(
                "{what} {index} has the type '{name}', which cannot run on {os:?}. Use {} instead.",
                match os {
                    OsType::Linux => "Shell or File",
                    OsType::Windows => "PowerShell, File, WindowsRestart or WindowsUpdate",
                }
            ),
        };
        for (index, step) in self.customize.iter().enumerate() {
            let runs = match &step.kind {
                CustomizerKind::File(_) => true,
                CustomizerKind::Shell(_) => os == OsType::Linux,
                CustomizerKind::PowerShell(_)
                | CustomizerKind::WindowsRestart { .. }
                | CustomizerKind::WindowsUpdate { .. } => os == OsType::Windows,
            };
            if !runs {
                let code = ProvisioningErrorCode::UnsupportedCustomizerType;
                return Err(refuse(code, "Customizer", step.kind.type_name(), index));
            }
        }
        for (index, step) in self.validate.iter().flat_map(|validate| &validate.validators).enumerate() {
            let runs = match &step.kind {
                ValidatorKind::File(_) => true,
                ValidatorKind::Shell(_) => os == OsType::Linux,
                ValidatorKind::PowerShell(_) => os == OsType::Windows,
            };
            if !runs {
                let code = ProvisioningErrorCode::UnsupportedValidatorType;
                return Err(refuse(code, "Validator", step.kind.type_name(), index));
            }
        }
        Ok(())
    }

    fn check_timeout(&self) -> Result<(), Violation> {
        match self.build_timeout_minutes {
            0 | BUILD_TIMEOUT_MINUTES_MIN..=BUILD_TIMEOUT_MINUTES_MAX => Ok(()),
            minutes => Err(template(
                "properties.buildTimeoutInMinutes",
                format!(
                    "buildTimeoutInMinutes is {minutes}. It must be 0, which means {BUILD_TIMEOUT_MINUTES_DEFAULT}, or between \
                     {BUILD_TIMEOUT_MINUTES_MIN} and {BUILD_TIMEOUT_MINUTES_MAX}."
                ),
            )),
        }
    }

    fn check_distributors(&self) -> Result<(), Violation> {
        let path = "properties.distribute";
        count(path, self.distribute.len(), DISTRIBUTORS_MAX)?;
        let validates_only = self.validate.as_ref().is_some_and(|validate| validate.source_validation_only);
        if self.distribute.is_empty() && !validates_only {
            return Err(template(path, "At least one distribution target is required.".into()));
        }
        for (index, distributor) in self.distribute.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let name = &distributor.run_output_name;
            if self.distribute[..index].iter().any(|other| other.run_output_name == *name) {
                return Err(template(
                    &format!("{path}.runOutputName"),
                    format!(
                        "The runOutputName '{name}' is used by two distribution targets. Give each its own name."
                    ),
                ));
            }
            check_distributor(distributor, &path)?;
        }
        Ok(())
    }

    fn check_vm_profile(&self) -> Result<(), Violation> {
        let profile = &self.vm_profile;
        if profile.os_disk_size_gib > OS_DISK_GIB_MAX {
            return Err(template(
                "properties.vmProfile.osDiskSizeGB",
                format!(
                    "osDiskSizeGB is {}. It must be at most {OS_DISK_GIB_MAX}.",
                    profile.os_disk_size_gib
                ),
            ));
        }
        let Some(network) = &profile.network else { return Ok(()) };
        let path = "properties.vmProfile.vnetConfig";
        if network.container_instance_subnet_id.is_some() && network.proxy_vm_size.is_some() {
            return Err(template(
                path,
                "proxyVmSize must not be specified together with containerInstanceSubnetId.".into(),
            ));
        }
        if network.container_instance_subnet_id.is_some() && network.subnet_id.is_none() {
            return Err(template(
                path,
                "containerInstanceSubnetId needs subnetId, a subnet of the same virtual network.".into(),
            ));
        }
        Ok(())
    }
}

fn check_customizer(step: &Customizer, path: &str) -> Result<(), Violation> {
    check_step_name(step.name.as_deref(), path)?;
    match &step.kind {
        CustomizerKind::Shell(script) => check_script(&script.body, path),
        CustomizerKind::PowerShell(script) => check_powershell(script, path),
        CustomizerKind::File(file) => check_file(&file.source_uri, &file.destination, path),
        CustomizerKind::WindowsRestart { .. } | CustomizerKind::WindowsUpdate { .. } => Ok(()),
    }
}

fn check_step_name(name: Option<&str>, path: &str) -> Result<(), Violation> {
    match name {
        Some(name) if name.chars().count() > STEP_NAME_CHARS_MAX => Err(template(
            &format!("{path}.name"),
            format!("The name at {path} has more than {STEP_NAME_CHARS_MAX} characters."),
        )),
        _ => Ok(()),
    }
}

fn check_script(body: &ScriptBody, path: &str) -> Result<(), Violation> {
    match body {
        ScriptBody::Uri { uri, .. } => check_uri(uri, &format!("{path}.scriptUri")),
        ScriptBody::Inline(lines) => {
            let bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
            if lines.len() > INLINE_LINES_MAX || bytes > INLINE_BYTES_MAX {
                return Err(template(
                    &format!("{path}.inline"),
                    format!(
                        "The inline script at {path} has {} lines and {bytes} bytes. At most {INLINE_LINES_MAX} lines and \
                         {INLINE_BYTES_MAX} bytes are allowed; use scriptUri for more.",
                        lines.len()
                    ),
                ));
            }
            Ok(())
        }
    }
}

fn check_powershell(script: &PowerShellScript, path: &str) -> Result<(), Violation> {
    if script.run_as_system && !script.run_elevated {
        return Err(template(
            &format!("{path}.runAsSystem"),
            format!("runAsSystem at {path} can only be true when runElevated is true."),
        ));
    }
    check_script(&script.body, path)
}

fn check_file(source_uri: &str, destination: &str, path: &str) -> Result<(), Violation> {
    check_uri(source_uri, &format!("{path}.sourceUri"))?;
    if destination.is_empty()
        || destination.len() > DESTINATION_BYTES_MAX
        || destination.chars().any(char::is_control)
    {
        return Err(template(
            &format!("{path}.destination"),
            format!(
                "destination at {path} must be a full path of at most {DESTINATION_BYTES_MAX} bytes, without control characters."
            ),
        ));
    }
    Ok(())
}

fn check_uri(uri: &str, path: &str) -> Result<(), Violation> {
    let scheme = ["https://", "http://"]
        .iter()
        .any(|scheme| uri.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let printable = uri.bytes().all(|b| b.is_ascii_graphic());
    if scheme && printable && uri.len() <= URI_BYTES_MAX {
        return Ok(());
    }
    Err(template(
        path,
        format!(
            "{path} must be an absolute http or https address of at most {URI_BYTES_MAX} printable ASCII characters."
        ),
    ))
}

fn check_distributor(distributor: &Distributor, path: &str) -> Result<(), Violation> {
    let (target, placement, versioning) = match &distributor.kind {
        DistributorKind::SharedImage { target, placement, versioning, .. } => (target, placement, versioning),
        DistributorKind::Vhd { uri: Some(address), .. } => return check_uri(address, &format!("{path}.uri")),
        DistributorKind::Vhd { uri: None, .. } | DistributorKind::ManagedImage { .. } => return Ok(()),
    };
    if target.version.is_some() && versioning.is_some() {
        return Err(template(
            &format!("{path}.versioning"),
            format!(
                "versioning at {path} can not be used when galleryImageId names a version. Leave one of them out."
            ),
        ));
    }
    if let Placement::TargetRegions(regions) = placement {
        for (index, region) in regions.iter().enumerate() {
            if regions[..index].iter().any(|other| other.region == region.region) {
                return Err(template(
                    &format!("{path}.targetRegions"),
                    "Duplicate regions are not allowed in target publishing regions".into(),
                ));
            }
            if !(1..=100).contains(&region.replica_count) {
                let target = format!("{path}.targetRegions[{index}].replicaCount");
                return Err(Violation {
                    rule: Rule::Template,
                    ..Violation::out_of_range(&target, region.replica_count.into(), 1, 100)
                });
            }
        }
    }
    Ok(())
}

fn count(path: &str, count: usize, max: usize) -> Result<(), Violation> {
    if count <= max {
        Ok(())
    } else {
        Err(template(path, format!("{path} has {count} entries. At most {max} are allowed.")))
    }
}

fn template(target: &str, message: String) -> Violation {
    Violation::at(Rule::Template, target, message)
}
