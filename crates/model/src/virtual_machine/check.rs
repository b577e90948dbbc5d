//! Rules that a machine alone can break. Wording: Compute's own messages where they are known.

use super::{DiskCreateOption, LinuxConfiguration, OsConfiguration, OsProfile, VmSecrets, VmSpec};
use crate::image_definition::OsState;
use crate::violation::{Rule, Violation};
use crate::vm_size::{VM_SIZES, vm_size};

/// Most data disks of any machine.
pub const DATA_DISKS_MAX: usize = 64;
/// Most SSH keys.
pub const SSH_KEYS_MAX: usize = 100;
/// Longest custom or user data, in base64 (65,535 bytes of data).
pub const CUSTOM_DATA_BASE64_BYTES_MAX: usize = 87_380;
/// Longest SSH key.
const SSH_KEY_BYTES_MAX: usize = 16 * 1024;
/// Longest host name of Linux.
const COMPUTER_NAME_CHARS_MAX: usize = 64;
/// Longest user name of Linux.
const USERNAME_CHARS_MAX: usize = 64;
/// Largest OS disk.
const OS_DISK_GIB_MAX: u32 = 4095;
/// Names that Compute refuses for an administrator.
const FORBIDDEN_USERNAMES: &[&str] = &[
    "1",
    "123",
    "a",
    "actuser",
    "adm",
    "admin",
    "admin1",
    "admin2",
    "administrator",
    "aspnet",
    "backup",
    "console",
    "david",
    "guest",
    "john",
    "owner",
    "root",
    "server",
    "sql",
    "support",
    "support_388945a0",
    "sys",
    "test",
    "test1",
    "test2",
    "test3",
    "user",
    "user1",
    "user2",
    "user3",
    "user4",
    "user5",
    "video",
];

impl VmSpec {
    /// Checks every rule that needs nothing but the request.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self, secrets: &VmSecrets) -> Result<(), Violation> {
        let size = vm_size(&self.vm_size).ok_or_else(|| unknown_size(&self.vm_size))?;
        if self.data_disks.len() > size.data_disks_max as usize {
            return Err(Violation::at(
                Rule::NotAllowed,
                "dataDisks",
                format!(
                    "The maximum number of data disks allowed to be attached to a VM of this size is {}.",
                    size.data_disks_max
                ),
            ));
        }
        for (index, disk) in self.data_disks.iter().enumerate() {
            if self.data_disks[..index].iter().any(|other| other.lun == disk.lun) {
                return Err(parameter("dataDisk.lun", format!("A disk at LUN {} already exists.", disk.lun)));
            }
        }
        if self.image.is_none() && self.os_disk.create_option == DiskCreateOption::FromImage {
            return Err(parameter(
                "imageReference",
                "Required parameter 'imageReference' is missing (null).".into(),
            ));
        }
        if self.os_disk.size_gib.is_some_and(|gib| gib == 0 || gib > OS_DISK_GIB_MAX) {
            return Err(parameter(
                "osDisk.diskSizeGB",
                format!(
                    "The value of parameter osDisk.diskSizeGB is invalid. It must be between 1 and {OS_DISK_GIB_MAX}."
                ),
            ));
        }
        for (target, data) in [("customData", &secrets.custom_data), ("userData", &secrets.user_data)] {
            if let Some(data) = data {
                check_base64(target, data.expose())?;
            }
        }
        self.os_profile.as_ref().map_or(Ok(()), |profile| profile.check())
    }

    /// Checks the profile against the image's state (RULES.md 2D, 47).
    ///
    /// # Errors
    /// When a generalized image has no profile, or a specialized one has.
    pub fn check_for_image(&self, state: OsState) -> Result<(), Violation> {
        match (state, &self.os_profile) {
            (OsState::Generalized, None) => {
                Err(parameter("osProfile", "Required parameter 'osProfile' is missing (null)".into()))
            }
            (OsState::Specialized, Some(_)) => {
                Err(parameter("osProfile", "Parameter 'osProfile' is not allowed".into()))
            }
            _ => Ok(()),
        }
    }
}

impl OsProfile {
    fn check(&self) -> Result<(), Violation> {
        let name = &self.computer_name;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if name.is_empty()
            || name.len() > COMPUTER_NAME_CHARS_MAX
            || !name.chars().all(allowed)
            || name.ends_with(['-', '.'])
        {
            return Err(parameter(
                "computerName",
                format!(
                    "Linux host name cannot exceed {COMPUTER_NAME_CHARS_MAX} characters in length or contain the following \
                     characters: ` ~ ! @ # $ % ^ & * ( ) = + _ [ ] {{ }} \\\\ | ; : ' \\\" , < > / ?."
                ),
            ));
        }
        self.check_username()?;
        match &self.configuration {
            OsConfiguration::Linux(linux) => linux.check(self.has_password),
            OsConfiguration::Windows(_) | OsConfiguration::Unspecified if !self.has_password => Err(
                parameter("adminPassword", "Required parameter 'adminPassword' is missing (null).".into()),
            ),
            OsConfiguration::Windows(_) | OsConfiguration::Unspecified => Ok(()),
        }
    }

    fn check_username(&self) -> Result<(), Violation> {
        let name = &self.admin_username;
        if name.is_empty() {
            return Err(parameter(
                "adminUsername",
                "Required parameter 'adminUsername' is missing (null).".into(),
            ));
        }
        if FORBIDDEN_USERNAMES.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden)) {
            return Err(parameter(
                "adminUsername",
                format!(
                    "The Admin Username specified is not allowed. It is one of the names that Azure reserves: {}.",
                    FORBIDDEN_USERNAMES.join(", ")
                ),
            ));
        }
        let first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.len() > USERNAME_CHARS_MAX
            || !name.starts_with(first)
            || !name.chars().all(rest)
            || name.ends_with('.')
        {
            return Err(parameter(
                "adminUsername",
                format!(
                    "The Admin Username specified is not valid: start with a letter or '_', go on with letters, digits, '_', '-' and \
                     '.', do not end with '.', use at most {USERNAME_CHARS_MAX} characters."
                ),
            ));
        }
        Ok(())
    }
}

impl LinuxConfiguration {
    fn check(&self, has_password: bool) -> Result<(), Violation> {
        let target = "linuxConfiguration";
        if self.disable_password_authentication && self.ssh_public_keys.is_empty() {
            return Err(parameter(
                target,
                "Authentication using either SSH or by user name and password must be enabled in Linux profile.".into(),
            ));
        }
        if self.disable_password_authentication && has_password {
            return Err(parameter(
                "adminPassword",
                "adminPassword must not be specified when disablePasswordAuthentication is true.".into(),
            ));
        }
        if !self.disable_password_authentication && !has_password {
            return Err(parameter(
                "adminPassword",
                "Required parameter 'adminPassword' is missing (null).".into(),
            ));
        }
        if self.ssh_public_keys.len() > SSH_KEYS_MAX {
            let count = self.ssh_public_keys.len() as i64;
            return Err(Violation::out_of_range(
                "linuxConfiguration.ssh.publicKeys",
                count,
                0,
                SSH_KEYS_MAX as i64,
            ));
        }
        for key in &self.ssh_public_keys {
            let one_line = !key.key_data.trim_end().contains(['\n', '\r', '\0']);
            let two_words = key.key_data.split_ascii_whitespace().count() >= 2;
            if !one_line || !two_words || key.key_data.len() > SSH_KEY_BYTES_MAX {
                return Err(parameter(
                    "linuxConfiguration.ssh.publicKeys.keyData",
                    "The value of parameter linuxConfiguration.ssh.publicKeys.keyData is invalid.".into(),
                ));
            }
        }
        Ok(())
    }
}

/// Compute's answer to a size that it does not have.
fn unknown_size(name: &str) -> Violation {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    let sizes: Vec<&str> = VM_SIZES.iter().map(|size| size.name).collect();
    parameter(
        "vmSize",
        format!(
            "The value {shown} provided for the VM size is not valid. The valid sizes in the current region are: {}.",
            sizes.join(",")
        ),
    )
}

fn check_base64(target: &str, text: &str) -> Result<(), Violation> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    let well_formed = text.len().is_multiple_of(4)
        && padding <= 2
        && digits.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'));
    if well_formed && text.len() <= CUSTOM_DATA_BASE64_BYTES_MAX {
        return Ok(());
    }
    let name = if target == "customData" { "Custom data" } else { "User data" };
    Err(parameter(
        target,
        format!(
            "{name} in OSProfile must be in Base64 encoding and with a maximum length of {CUSTOM_DATA_BASE64_BYTES_MAX} characters."
        ),
    ))
}

fn parameter(target: &str, message: String) -> Violation {
    Violation::at(Rule::Parameter, target, message)
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    fn spec() -> VmSpec {
        let key = SshPublicKey { path: None, key_data: "ssh-ed25519 AAAA me@here".into() };
        VmSpec {
            location: Region::parse("eastus").unwrap(),
            tags: Tags::default(),
            vm_size: "standard_b1s".into(),
            image: Some(ImageReference::Resource(ResourceRef::parse("/x", "id").unwrap())),
            os_disk: VmDisk {
                name: None,
                create_option: DiskCreateOption::FromImage,
                caching: None,
                size_gib: None,
                storage_account_type: None,
                delete_option: None,
            },
            os_type: None,
            data_disks: vec![],
            os_profile: Some(OsProfile {
                computer_name: "vm1".into(),
                admin_username: "azureuser".into(),
                has_password: false,
                configuration: OsConfiguration::Linux(LinuxConfiguration {
                    disable_password_authentication: true,
                    ssh_public_keys: vec![key],
                    provision_vm_agent: true,
                }),
                allow_extension_operations: true,
                require_guest_provision_signal: true,
            }),
            secure_boot: None,
            vtpm: None,
        }
    }

    fn refusal(change: impl FnOnce(&mut VmSpec, &mut OsProfile)) -> String {
        let mut spec = spec();
        let mut profile = spec.os_profile.take().unwrap();
        change(&mut spec, &mut profile);
        spec.os_profile = Some(profile);
        spec.check(&VmSecrets::default()).unwrap_err().message
    }

    #[test]
    fn a_good_request_passes() {
        assert_eq!(spec().check(&VmSecrets::default()), Ok(()));
    }

    #[test]
    fn each_rule_has_its_message() {
        assert!(
            refusal(|spec, _| spec.vm_size = "Huge".into())
                .starts_with("The value Huge provided for the VM size is not valid.")
        );
        assert!(
            refusal(|_, profile| profile.computer_name = "a b".into())
                .starts_with("Linux host name cannot exceed")
        );
        assert!(
            refusal(|_, profile| profile.admin_username = "Root".into())
                .starts_with("The Admin Username specified is not allowed")
        );
        assert!(refusal(|_, profile| profile.admin_username = "a/b".into()).contains("is not valid"));
        assert!(
            refusal(|_, profile| profile.configuration = OsConfiguration::Linux(LinuxConfiguration {
                disable_password_authentication: true,
                ..Default::default()
            }))
            .starts_with("Authentication using either SSH or")
        );
        assert_eq!(
            refusal(|spec, _| spec.image = None),
            "Required parameter 'imageReference' is missing (null)."
        );
    }

    #[test]
    fn the_profile_fits_the_images_state() {
        assert_eq!(spec().check_for_image(OsState::Generalized), Ok(()));
        assert_eq!(
            spec().check_for_image(OsState::Specialized).unwrap_err().message,
            "Parameter 'osProfile' is not allowed"
        );
    }

    #[test]
    fn custom_data_is_bounded_base64_and_does_not_show() {
        let mut secrets =
            VmSecrets { custom_data: Some(Secret::new("I2Nsb3VkLWNvbmZpZwo=".into())), ..Default::default() };
        assert_eq!(spec().check(&secrets), Ok(()));
        assert!(!format!("{secrets:?}").contains("I2N"));
        for bad in ["not base64", "abc", "====", &"A".repeat(CUSTOM_DATA_BASE64_BYTES_MAX + 4)] {
            secrets.custom_data = Some(Secret::new(bad.into()));
            assert!(spec().check(&secrets).is_err(), "{bad:.20}");
        }
    }
}
