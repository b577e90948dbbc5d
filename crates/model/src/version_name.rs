//! `Major.Minor.Patch`, the name of an image version.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::violation::{Rule, Violation};

/// Largest value of each part: a 32-bit signed integer (RULES.md 2B).
pub const VERSION_PART_MAX: u32 = i32::MAX as u32;

/// An image version's name. Orders numerically: `1.10.0` is newer than `1.9.0`.
///
/// Invariants: each part is at most [`VERSION_PART_MAX`] and is written without leading zeros, so that one
/// version has one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionName {
    major: u32,
    minor: u32,
    patch: u32,
}

impl VersionName {
    /// Reads `Major.Minor.Patch`.
    ///
    /// # Errors
    /// [`Violation`] in the words of RULES.md 2D, 16.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        let mut parts = text.split('.').map(part);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Some(major)), Some(Some(minor)), Some(Some(patch)), None) => {
                Ok(Self { major, minor, patch })
            }
            _ => Err(Violation::at(
                Rule::Name,
                "galleryImageVersionName",
                "The image version name is invalid. The image version name should follow \
                 Major(int).Minor(int).Patch(int) format, for e.g: 1.0.0, 2018.12.1 etc",
            )),
        }
    }

    /// Puts a version together; `None` if a part exceeds [`VERSION_PART_MAX`].
    pub fn new(major: u32, minor: u32, patch: u32) -> Option<Self> {
        let fits = [major, minor, patch].iter().all(|part| *part <= VERSION_PART_MAX);
        fits.then_some(Self { major, minor, patch })
    }

    /// First part.
    pub fn major(self) -> u32 {
        self.major
    }

    /// Second part.
    pub fn minor(self) -> u32 {
        self.minor
    }

    /// Third part.
    pub fn patch(self) -> u32 {
        self.patch
    }

    /// The same major and minor with the patch one higher; `None` at the end of the range.
    pub fn next_patch(self) -> Option<Self> {
        Self::new(self.major, self.minor, self.patch.checked_add(1)?)
    }
}

fn part(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    let value: u32 = if digits && canonical { text.parse().ok()? } else { return None };
    (value <= VERSION_PART_MAX).then_some(value)
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl std::str::FromStr for VersionName {
    type Err = Violation;

    fn from_str(text: &str) -> Result<Self, Violation> {
        Self::parse(text)
    }
}

impl Serialize for VersionName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VersionName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_three_plain_numbers_are_a_version() {
        for bad in [
            "",
            "1",
            "1.0",
            "1.0.0.0",
            "v1.0.0",
            "1..0",
            "01.0.0",
            "1.0.-1",
            "1.0.2147483648",
            "1.0.0 ",
            "latest",
        ] {
            assert!(VersionName::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(VersionName::parse("2018.12.2147483647").unwrap().next_patch(), None);
    }

    proptest! {
        #[test]
        fn text_round_trips_and_order_is_numeric(a in 0u32..=VERSION_PART_MAX, b in 0u32..=VERSION_PART_MAX, c in 0u32..=VERSION_PART_MAX, d in 0u32..=VERSION_PART_MAX) {
            let version = VersionName::new(a, b, c).unwrap();
            prop_assert_eq!(VersionName::parse(&version.to_string()).unwrap(), version);
            let other = VersionName::new(a, b, d).unwrap();
            prop_assert_eq!(version.cmp(&other), c.cmp(&d));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "[0-9.]{0,40}") {
            if let Ok(version) = VersionName::parse(&text) {
                prop_assert_eq!(version.to_string(), text);
            }
        }
    }
}
