//! A region's name, in the one spelling that is compared.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::violation::{Rule, Violation};

/// Longest region name; Azure's longest today has 18 characters.
pub const REGION_CHARS_MAX: usize = 40;

/// A region in its programmatic name: lower case, no spaces (`"East US 2"` is `eastus2`).
///
/// Invariants: 1 to 40 of `a-z 0-9 _ -`. Equality is that of the normalised name, which is all that is kept:
/// Azure, too, answers with its own spelling and not with the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region(String);

impl Region {
    /// Normalises and checks.
    ///
    /// # Errors
    /// [`Violation`] when nothing or something else than letters, digits, `_`, `-` and spaces is left.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        let mut name = String::new();
        for c in text.chars().filter(|c| *c != ' ') {
            let allowed = c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            if !allowed || name.len() == REGION_CHARS_MAX {
                return Err(Self::invalid(text));
            }
            name.push(c.to_ascii_lowercase());
        }
        if name.is_empty() { Err(Self::invalid(text)) } else { Ok(Self(name)) }
    }

    /// The programmatic name, e.g. `eastus2`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that people read, e.g. `East US 2`; a region that Azure does not have is shown as it is named.
    pub fn display_name(&self) -> &str {
        DISPLAY_NAMES.iter().find(|(name, _)| *name == self.0).map_or(self.0.as_str(), |(_, display)| display)
    }

    fn invalid(text: &str) -> Violation {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(REGION_CHARS_MAX).collect();
        Violation::at(
            Rule::Parameter,
            "location",
            format!(
                "The provided location '{shown}' is not a region name: use letters, digits, '-' and '_', up to {REGION_CHARS_MAX} characters."
            ),
        )
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Region {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Region {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Azure's public regions: `targetRegions[].name` comes back under these names (REFERENCE.md 5.3).
const DISPLAY_NAMES: &[(&str, &str)] = &[
    ("australiacentral", "Australia Central"),
    ("australiaeast", "Australia East"),
    ("australiasoutheast", "Australia Southeast"),
    ("brazilsouth", "Brazil South"),
    ("canadacentral", "Canada Central"),
    ("canadaeast", "Canada East"),
    ("centralindia", "Central India"),
    ("centralus", "Central US"),
    ("eastasia", "East Asia"),
    ("eastus", "East US"),
    ("eastus2", "East US 2"),
    ("francecentral", "France Central"),
    ("germanywestcentral", "Germany West Central"),
    ("israelcentral", "Israel Central"),
    ("italynorth", "Italy North"),
    ("japaneast", "Japan East"),
    ("japanwest", "Japan West"),
    ("koreacentral", "Korea Central"),
    ("koreasouth", "Korea South"),
    ("mexicocentral", "Mexico Central"),
    ("newzealandnorth", "New Zealand North"),
    ("northcentralus", "North Central US"),
    ("northeurope", "North Europe"),
    ("norwayeast", "Norway East"),
    ("polandcentral", "Poland Central"),
    ("qatarcentral", "Qatar Central"),
    ("southafricanorth", "South Africa North"),
    ("southcentralus", "South Central US"),
    ("southeastasia", "Southeast Asia"),
    ("southindia", "South India"),
    ("spaincentral", "Spain Central"),
    ("swedencentral", "Sweden Central"),
    ("switzerlandnorth", "Switzerland North"),
    ("uaenorth", "UAE North"),
    ("uksouth", "UK South"),
    ("ukwest", "UK West"),
    ("westcentralus", "West Central US"),
    ("westeurope", "West Europe"),
    ("westindia", "West India"),
    ("westus", "West US"),
    ("westus2", "West US 2"),
    ("westus3", "West US 3"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_region_are_equal() {
        for spelling in ["eastus2", "East US 2", "EASTUS2", "east us2"] {
            assert_eq!(Region::parse(spelling).unwrap().as_str(), "eastus2");
        }
        assert_eq!(Region::parse("eastus2").unwrap().display_name(), "East US 2");
        assert_eq!(Region::parse("garage-1").unwrap().display_name(), "garage-1");
        for bad in ["", "   ", "a/b", "eäst", &"x".repeat(41)] {
            assert!(Region::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_display_name_parses_to_its_own_name() {
        for (name, display) in DISPLAY_NAMES {
            assert_eq!(Region::parse(display).unwrap().as_str(), *name);
        }
    }
}
