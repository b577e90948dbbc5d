//! Azure's words for the model's enums, both ways.

use model::image_definition::{Architecture, HyperVGeneration, OsState, OsType};
use model::image_template::OnError;
use model::image_version::{HostCaching, ReplicationMode, StorageAccountType};
use model::managed_disk::{AccessMode, CreateOption, DiskSku, NetworkAccessPolicy};
use model::virtual_machine::{DiskCreateOption, DiskDeleteOption};

use model::gallery::SharingPermissions;

use crate::error::ArmError;

/// Azure's words for the variants of one enum.
pub(crate) struct Names<T: 'static>(pub(crate) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Names<T> {
    /// Reads a word. Case does not count: Compute's clients send `fromImage` for `FromImage`.
    pub(crate) fn parse(&self, word: &str, target: &str) -> Result<T, ArmError> {
        self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, value)| *value).ok_or_else(
            || {
                let shown: String = word.chars().filter(|c| !c.is_control()).take(60).collect();
                let allowed: Vec<&str> = self.0.iter().map(|(name, _)| *name).collect();
                ArmError::invalid_parameter(
                    target,
                    format!(
                        "The value '{shown}' of parameter '{target}' is not allowed. Allowed values are: {}.",
                        allowed.join(", ")
                    ),
                )
            },
        )
    }

    /// Reads a word that may be absent.
    pub(crate) fn parse_option(&self, word: Option<&str>, target: &str) -> Result<Option<T>, ArmError> {
        word.map(|word| self.parse(word, target)).transpose()
    }

    /// The word for a variant.
    pub(crate) fn name(&self, value: T) -> &'static str {
        self.0.iter().find(|(_, known)| *known == value).map_or("", |(name, _)| name)
    }
}

pub(crate) const OS_TYPES: Names<OsType> = Names(&[("Windows", OsType::Windows), ("Linux", OsType::Linux)]);
pub(crate) const OS_STATES: Names<OsState> =
    Names(&[("Generalized", OsState::Generalized), ("Specialized", OsState::Specialized)]);
pub(crate) const GENERATIONS: Names<HyperVGeneration> =
    Names(&[("V1", HyperVGeneration::V1), ("V2", HyperVGeneration::V2)]);
pub(crate) const ARCHITECTURES: Names<Architecture> =
    Names(&[("x64", Architecture::X64), ("Arm64", Architecture::Arm64)]);
pub(crate) const PERMISSIONS: Names<SharingPermissions> = Names(&[
    ("Private", SharingPermissions::Private),
    ("Groups", SharingPermissions::Groups),
    ("Community", SharingPermissions::Community),
]);
pub(crate) const STORAGE_ACCOUNT_TYPES: Names<StorageAccountType> = Names(&[
    ("Standard_LRS", StorageAccountType::StandardLrs),
    ("Standard_ZRS", StorageAccountType::StandardZrs),
    ("Premium_LRS", StorageAccountType::PremiumLrs),
    ("PremiumV2_LRS", StorageAccountType::PremiumV2Lrs),
]);
pub(crate) const REPLICATION_MODES: Names<ReplicationMode> =
    Names(&[("Full", ReplicationMode::Full), ("Shallow", ReplicationMode::Shallow)]);
pub(crate) const CACHINGS: Names<HostCaching> = Names(&[
    ("None", HostCaching::None),
    ("ReadOnly", HostCaching::ReadOnly),
    ("ReadWrite", HostCaching::ReadWrite),
]);
pub(crate) const ON_ERRORS: Names<OnError> =
    Names(&[("cleanup", OnError::Cleanup), ("abort", OnError::Abort)]);
pub(crate) const ENABLED: Names<bool> = Names(&[("Enabled", true), ("Disabled", false)]);
pub(crate) const DISK_CREATE_OPTIONS: Names<DiskCreateOption> = Names(&[
    ("FromImage", DiskCreateOption::FromImage),
    ("Empty", DiskCreateOption::Empty),
    ("Attach", DiskCreateOption::Attach),
    ("Copy", DiskCreateOption::Copy),
    ("Restore", DiskCreateOption::Restore),
]);
pub(crate) const DISK_DELETE_OPTIONS: Names<DiskDeleteOption> =
    Names(&[("Delete", DiskDeleteOption::Delete), ("Detach", DiskDeleteOption::Detach)]);

pub(crate) const CREATE_OPTIONS: Names<CreateOption> = Names(&[
    ("Empty", CreateOption::Empty),
    ("Attach", CreateOption::Attach),
    ("FromImage", CreateOption::FromImage),
    ("Import", CreateOption::Import),
    ("Copy", CreateOption::Copy),
    ("Restore", CreateOption::Restore),
    ("Upload", CreateOption::Upload),
    ("CopyStart", CreateOption::CopyStart),
    ("ImportSecure", CreateOption::ImportSecure),
    ("UploadPreparedSecure", CreateOption::UploadPreparedSecure),
    ("CopyFromSanSnapshot", CreateOption::CopyFromSanSnapshot),
]);
pub(crate) const DISK_SKUS: Names<DiskSku> = Names(&[
    ("Standard_LRS", DiskSku::StandardLrs),
    ("Premium_LRS", DiskSku::PremiumLrs),
    ("StandardSSD_LRS", DiskSku::StandardSsdLrs),
    ("UltraSSD_LRS", DiskSku::UltraSsdLrs),
    ("Premium_ZRS", DiskSku::PremiumZrs),
    ("StandardSSD_ZRS", DiskSku::StandardSsdZrs),
    ("PremiumV2_LRS", DiskSku::PremiumV2Lrs),
]);
pub(crate) const SNAPSHOT_SKUS: Names<DiskSku> = Names(&[
    ("Standard_LRS", DiskSku::StandardLrs),
    ("Premium_LRS", DiskSku::PremiumLrs),
    ("Standard_ZRS", DiskSku::StandardZrs),
]);
pub(crate) const NETWORK_ACCESS_POLICIES: Names<NetworkAccessPolicy> = Names(&[
    ("AllowAll", NetworkAccessPolicy::AllowAll),
    ("AllowPrivate", NetworkAccessPolicy::AllowPrivate),
    ("DenyAll", NetworkAccessPolicy::DenyAll),
]);
pub(crate) const DIRECTORY_TOKENS: Names<bool> = Names(&[("AzureActiveDirectory", true), ("None", false)]);
/// `None`, which the specification has as well, is no access.
pub(crate) const ACCESS_MODES: Names<AccessMode> =
    Names(&[("Read", AccessMode::Read), ("Write", AccessMode::Write)]);
pub(crate) const FILE_FORMATS: Names<bool> = Names(&[("VHD", true), ("VHDX", false)]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_in_any_case_and_written_in_azures() {
        assert_eq!(DISK_CREATE_OPTIONS.parse("fromImage", "x").unwrap(), DiskCreateOption::FromImage);
        assert_eq!(DISK_CREATE_OPTIONS.name(DiskCreateOption::FromImage), "FromImage");
        let error = OS_TYPES.parse("BeOS", "properties.osType").unwrap_err();
        assert_eq!(
            error.message,
            "The value 'BeOS' of parameter 'properties.osType' is not allowed. Allowed values are: Windows, Linux."
        );
    }
}
