//! Storage accounts: where scripts, VHDs and logs lie as blobs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::gallery::check_location;
use crate::provisioning::ProvisioningState;
use crate::region::Region;
use crate::tags::Tags;
use crate::violation::{Rule, Violation};

/// Shortest name of an account (Azure).
pub const ACCOUNT_NAME_CHARS_MIN: usize = 3;
/// Longest name of an account (Azure).
pub const ACCOUNT_NAME_CHARS_MAX: usize = 24;

/// An account's name: 3 to 24 of `a-z 0-9`, unique in the service, because it is part of URLs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorageAccountName(String);

impl StorageAccountName {
    /// Checks the rule.
    ///
    /// # Errors
    /// [`Rule::Name`], in Azure's words.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        if Self::fits(text) {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
        Err(Violation::at(
            Rule::Name,
            "accountName",
            format!(
                "{shown} is not a valid storage account name. Storage account name must be between {ACCOUNT_NAME_CHARS_MIN} and \
                 {ACCOUNT_NAME_CHARS_MAX} characters in length and use numbers and lower-case letters only."
            ),
        ))
    }

    /// Whether a text could be an account's name.
    pub fn fits(text: &str) -> bool {
        (ACCOUNT_NAME_CHARS_MIN..=ACCOUNT_NAME_CHARS_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StorageAccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for StorageAccountName {
    type Error = Violation;

    fn try_from(text: String) -> Result<Self, Violation> {
        Self::parse(&text)
    }
}

impl From<StorageAccountName> for String {
    fn from(name: StorageAccountName) -> Self {
        name.0
    }
}

/// How Azure would replicate and price the account. Here it is only said again: bytes lie once, in the region's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageSku {
    /// `Standard_LRS`.
    StandardLrs,
    /// `Standard_GRS`.
    StandardGrs,
    /// `Standard_RAGRS`.
    StandardRagrs,
    /// `Standard_ZRS`.
    StandardZrs,
    /// `Standard_GZRS`.
    StandardGzrs,
    /// `Standard_RAGZRS`.
    StandardRagzrs,
    /// `Premium_LRS`.
    PremiumLrs,
    /// `Premium_ZRS`.
    PremiumZrs,
}

/// Kinds of accounts that have blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageKind {
    /// General purpose, first version.
    Storage,
    /// General purpose.
    StorageV2,
    /// Blobs only.
    BlobStorage,
    /// Premium block blobs.
    BlockBlobStorage,
}

/// What a user writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageAccountSpec {
    /// Region whose store has the bytes.
    pub location: Region,
    /// Tags.
    pub tags: Tags,
    /// Replication and price.
    pub sku: StorageSku,
    /// Kind.
    pub kind: StorageKind,
    /// Whether plain HTTP is refused.
    pub https_only: bool,
    /// Whether account keys, and SAS signed with them, are accepted.
    pub shared_key_access: bool,
}

/// One of an account's two keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedKey {
    /// The key, sealed: this crate never sees it.
    pub sealed: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Which of the two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyName {
    /// `key1`.
    Key1,
    /// `key2`.
    Key2,
}

impl KeyName {
    /// Both, in order.
    pub const ALL: [KeyName; 2] = [KeyName::Key1, KeyName::Key2];
}

/// A storage account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageAccount {
    /// Its name.
    pub name: StorageAccountName,
    /// What was asked for.
    pub spec: StorageAccountSpec,
    /// `key1`.
    pub key1: SealedKey,
    /// `key2`.
    pub key2: SealedKey,
    /// When it was made.
    pub created_at: Timestamp,
    /// Where it stands.
    pub provisioning: ProvisioningState,
}

impl StorageAccount {
    /// An account exists as soon as it is accepted.
    pub fn create(
        name: StorageAccountName,
        spec: StorageAccountSpec,
        [key1, key2]: [SealedKey; 2],
        now: Timestamp,
    ) -> Self {
        Self { name, spec, key1, key2, created_at: now, provisioning: ProvisioningState::Succeeded }
    }

    /// One of its keys.
    pub fn key(&self, name: KeyName) -> &SealedKey {
        match name {
            KeyName::Key1 => &self.key1,
            KeyName::Key2 => &self.key2,
        }
    }

    /// Puts another key in the place of one.
    pub fn set_key(&mut self, name: KeyName, key: SealedKey) {
        match name {
            KeyName::Key1 => self.key1 = key,
            KeyName::Key2 => self.key2 = key,
        }
    }

    /// Checks that a PUT over this account leaves what may not change.
    ///
    /// # Errors
    /// The location and the kind are fixed; but `Storage` may become `StorageV2`, as on Azure.
    pub fn check_update(&self, new: &StorageAccountSpec) -> Result<(), Violation> {
        check_location("storageAccount", self.name.as_str(), &self.spec.location, &new.location)?;
        let kept = self.spec.kind == new.kind
            || (self.spec.kind == StorageKind::Storage && new.kind == StorageKind::StorageV2);
        if kept {
            return Ok(());
        }
        Err(Violation::at(
            Rule::Immutable,
            "kind",
            "The property 'kind' of a storage account can only be changed from Storage to StorageV2",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parts_of_urls() {
        for good in ["abc", "a1b2c3", "abcdefghijklmnopqrstuvwx"] {
            assert_eq!(StorageAccountName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "ab", "Abc", "a-b-c", "abcdefghijklmnopqrstuvwxy", "äbc", "a/b", "a.b"] {
            assert_eq!(StorageAccountName::parse(bad).unwrap_err().rule, Rule::Name, "{bad}");
        }
        assert!(serde_json::from_str::<StorageAccountName>("\"A/b\"").is_err());
    }

    #[test]
    fn location_and_kind_are_fixed() {
        let spec = StorageAccountSpec {
            location: Region::parse("eastus").unwrap(),
            tags: Tags::default(),
            sku: StorageSku::StandardLrs,
            kind: StorageKind::Storage,
            https_only: true,
            shared_key_access: true,
        };
        let key = |text: &str| SealedKey { sealed: text.to_owned(), created_at: Timestamp::UNIX_EPOCH };
        let name = StorageAccountName::parse("abc").unwrap();
        let mut account =
            StorageAccount::create(name, spec.clone(), [key("1"), key("2")], Timestamp::UNIX_EPOCH);
        let changed = |change: fn(&mut StorageAccountSpec)| {
            let mut spec = spec.clone();
            change(&mut spec);
            account.check_update(&spec).map_err(|violation| violation.rule)
        };
        assert_eq!(changed(|spec| spec.sku = StorageSku::PremiumLrs), Ok(()));
        assert_eq!(changed(|spec| spec.kind = StorageKind::StorageV2), Ok(()));
        assert_eq!(changed(|spec| spec.kind = StorageKind::BlobStorage), Err(Rule::Immutable));
        assert_eq!(changed(|spec| spec.location = Region::parse("westus").unwrap()), Err(Rule::Conflict));
        account.set_key(KeyName::Key2, key("3"));
        assert_eq!(KeyName::ALL.map(|name| account.key(name).sealed.as_str()), ["1", "3"]);
    }
}
