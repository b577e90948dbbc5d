//! Tags: what users write on resources.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::violation::{Rule, Violation};

/// Most tags on one resource (ARM).
pub const TAGS_MAX: usize = 50;
/// Longest tag name in characters (ARM).
pub const TAG_NAME_CHARS_MAX: usize = 512;
/// Longest tag value in characters (ARM).
pub const TAG_VALUE_CHARS_MAX: usize = 256;

/// Tags of one resource. At most 50; names up to 512 characters and distinct without regard to case; values up
/// to 256 characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Tags(BTreeMap<String, String>);

impl Tags {
    /// Checks the limits.
    ///
    /// # Errors
    /// [`Violation`] that names the tag.
    pub fn new(tags: BTreeMap<String, String>) -> Result<Self, Violation> {
        if tags.len() > TAGS_MAX {
            return Err(refuse(format!(
                "The resource has {} tags. The maximum number of tags is {TAGS_MAX}.",
                tags.len()
            )));
        }
        let mut seen = std::collections::BTreeSet::new();
        for (name, value) in &tags {
            let shown: String = name.chars().take(60).collect();
            if name.is_empty()
                || name.chars().count() > TAG_NAME_CHARS_MAX
                || name.contains(['<', '>', '%', '&', '\\', '?', '/'])
            {
                return Err(refuse(format!(
                    "The tag name '{shown}' is invalid. Tag names can not be empty, have more than {TAG_NAME_CHARS_MAX} characters, or contain <, >, %, &, \\, ?, /."
                )));
            }
            if value.chars().count() > TAG_VALUE_CHARS_MAX {
                return Err(refuse(format!(
                    "The value of tag '{shown}' exceeds the maximum length of {TAG_VALUE_CHARS_MAX} characters."
                )));
            }
            if !seen.insert(name.to_lowercase()) {
                return Err(refuse(format!(
                    "The tag name '{shown}' occurs twice; tag names are case-insensitive."
                )));
            }
        }
        Ok(Self(tags))
    }

    /// Name and value of each tag, in order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of a tag; names compare without case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(candidate, _)| candidate.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(BTreeMap::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

fn refuse(message: String) -> Violation {
    Violation::at(Rule::Parameter, "tags", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold() {
        let many = (0..=TAGS_MAX).map(|n| (format!("t{n}"), String::new())).collect();
        assert!(Tags::new(many).unwrap_err().message.contains("51 tags"));
        let twice = BTreeMap::from([("Env".to_owned(), "a".to_owned()), ("env".to_owned(), "b".to_owned())]);
        assert!(Tags::new(twice).is_err());
        let tags = Tags::new(BTreeMap::from([("Env".to_owned(), "prod".to_owned())])).unwrap();
        assert_eq!(tags.get("ENV"), Some("prod"));
    }
}
