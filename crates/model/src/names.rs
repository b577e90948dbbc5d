//! Names of resources: one type per kind, each with its own rule.
//!
//! All names keep the case in which they were written and compare without it, because ARM does (DESIGN.md,
//! invariant 11). The only way in is `parse`; a document in the store passes through it too.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::violation::{Rule, Violation};

/// Longest resource group name (ARM common types v5).
pub const RESOURCE_GROUP_NAME_CHARS_MAX: usize = 90;
/// Longest gallery or image definition name (REFERENCE.md 4).
pub const GALLERY_NAME_CHARS_MAX: usize = 80;
/// Longest image template or run output name (REFERENCE.md 4).
pub const TEMPLATE_NAME_CHARS_MAX: usize = 64;
/// Longest disk, snapshot or managed image name (Azure's limit).
pub const DISK_NAME_CHARS_MAX: usize = 80;
/// Longest virtual machine name (Azure's limit for Linux).
pub const VM_NAME_CHARS_MAX: usize = 64;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(String);

        impl $name {
            /// Checks the rule of this kind of name.
            ///
            /// # Errors
            /// [`Violation`] with [`Rule::Name`] and Azure's wording.
            pub fn parse(text: &str) -> Result<Self, Violation> {
                $check(text)?;
                Ok(Self(text.to_owned()))
            }

            /// The name in the case in which it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.eq_ignore_ascii_case(&other.0)
            }
        }

        impl Eq for $name {}

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.to_ascii_lowercase().hash(state);
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.0.to_ascii_lowercase().cmp(&other.0.to_ascii_lowercase())
            }
        }

        impl std::str::FromStr for $name {
            type Err = Violation;

            fn from_str(text: &str) -> Result<Self, Violation> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A resource group: 1 to 90 of `A-Z a-z 0-9 _ - . ( )`, not ending in `.`.
    ResourceGroupName,
    check_resource_group
);
name!(
    /// A gallery: 1 to 80 of `A-Z a-z 0-9 _ .`, first and last a letter or digit (RULES.md 2B; 2D, 1 and 2).
    GalleryName,
    check_gallery
);
name!(
    /// An image definition: 1 to 80 of `A-Z a-z 0-9 _ - .`, first a letter or digit, last not `-` or `.`
    /// (RULES.md 2D, 8).
    ImageDefinitionName,
    check_image_definition
);
name!(
    /// An image template: 1 to 64 of `A-Z a-z 0-9 - _ .` (RULES.md 2A).
    ImageTemplateName,
    check_image_template
);
name!(
    /// A distributor's run output: same rule as a template's name (RULES.md 2A).
    RunOutputName,
    check_run_output
);
name!(
    /// A virtual machine: 1 to 64 of `A-Z a-z 0-9 _ - .`, first a letter or digit, last not `-` or `.`.
    VmName,
    check_vm
);
name!(
    /// A managed disk, a snapshot or a managed image: 1 to 80 of `A-Z a-z 0-9 _ - .`, first a letter, a digit or `_`, last
    /// not `-` or `.`.
    DiskName,
    check_disk
);
name!(
    /// A subscription: a UUID with hyphens.
    SubscriptionId,
    check_subscription
);

fn check_resource_group(text: &str) -> Result<(), Violation> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '(' | ')');
    let fits =
        length_fits(text, RESOURCE_GROUP_NAME_CHARS_MAX) && text.chars().all(allowed) && !text.ends_with('.');
    fits.then_some(()).ok_or_else(|| {
        Violation::at(
            Rule::Name,
            "resourceGroupName",
            format!(
                "The provided resource group name '{}' has these invalid characters or an invalid length. The name can only be \
                 a letter, digit, '-', '.', '(', ')' or '_', up to {RESOURCE_GROUP_NAME_CHARS_MAX} characters, and can not end with '.'.",
                shown(text)
            ),
        )
    })
}

fn check_gallery(text: &str) -> Result<(), Violation> {
    if let Some(last @ ('.' | '_')) = text.chars().last() {
        return Err(trailing(text, last));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let fits = length_fits(text, GALLERY_NAME_CHARS_MAX)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(allowed);
    fits.then_some(()).ok_or_else(|| {
        Violation::at(
            Rule::Name,
            "galleryName",
            "Gallery name is invalid. Allowed characters are English alphanumeric characters, with underscores, and \
             periods allowed in the middle, up to 80 characters total. All other special characters, including dashes, \
             are disallowed.",
        )
    })
}

fn check_image_definition(text: &str) -> Result<(), Violation> {
    check_entity(text, "galleryImageName", GALLERY_NAME_CHARS_MAX)
}

fn check_vm(text: &str) -> Result<(), Violation> {
    check_entity(text, "vmName", VM_NAME_CHARS_MAX)
}

fn check_disk(text: &str) -> Result<(), Violation> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let fits = length_fits(text, DISK_NAME_CHARS_MAX)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(allowed)
        && !text.ends_with(['-', '.']);
    fits.then_some(()).ok_or_else(|| {
        let rest = DISK_NAME_CHARS_MAX - 1;
        Violation::at(
            Rule::Name,
            "diskName",
            format!(
                r"The entity name {} is invalid according to its validation rule: ^[\w][\w-._]{{0,{rest}}}(?<![-.])$",
                shown(text)
            ),
        )
    })
}

fn check_entity(text: &str, target: &str, chars_max: usize) -> Result<(), Violation> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let fits = length_fits(text, chars_max)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(allowed)
        && !text.ends_with(['-', '.']);
    fits.then_some(()).ok_or_else(|| {
        let rest = chars_max - 1;
        Violation::at(
            Rule::Name,
            target,
            format!(
                r"The entity name {} is invalid according to its validation rule: ^[^_\W][\w-._]{{0,{rest}}}(?<![-.])$",
                shown(text)
            ),
        )
    })
}

fn check_image_template(text: &str) -> Result<(), Violation> {
    check_builder_name(text, "imageTemplateName")
}

fn check_run_output(text: &str) -> Result<(), Violation> {
    check_builder_name(text, "runOutputName")
}

fn check_builder_name(text: &str, target: &str) -> Result<(), Violation> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = length_fits(text, TEMPLATE_NAME_CHARS_MAX) && text.chars().all(allowed);
    fits.then_some(()).ok_or_else(|| {
        Violation::at(
            Rule::Name,
            target,
            format!(
                "{target} '{}' is invalid. It must match the pattern '^[A-Za-z0-9-_.]{{1,64}}$'.",
                shown(text)
            ),
        )
    })
}

fn check_subscription(text: &str) -> Result<(), Violation> {
    let hyphenated = text.len() == 36 && uuid::Uuid::try_parse(text).is_ok();
    hyphenated.then_some(()).ok_or_else(|| {
        Violation::at(
            Rule::Name,
            "subscriptionId",
            format!("The provided subscription identifier '{}' is malformed or invalid.", shown(text)),
        )
    })
}

fn length_fits(text: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&text.len())
}

/// RULES.md 2D, 2.
fn trailing(name: &str, last: char) -> Violation {
    Violation::at(
        Rule::Name,
        "galleryName",
        format!(
            "The provided resource name {} has these invalid trailing characters: {last}. The name can not end with characters: {last}",
            shown(name)
        ),
    )
}

/// A hostile name, cut so that it can stand in a message.
fn shown(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 120;
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(parse: impl Fn(&str) -> bool, good: &[&str], bad: &[&str]) {
        for name in good {
            assert!(parse(name), "{name:?} should be a valid name");
        }
        for name in bad {
            assert!(!parse(name), "{name:?} should be refused");
        }
    }

    #[test]
    fn each_kind_has_its_rule() {
        let long = "a".repeat(81);
        check(
            |n| ResourceGroupName::parse(n).is_ok(),
            &["rg", "clitest.rg000001", "a(b)-c_d"],
            &["", "rg.", "a/b", "a b"],
        );
        check(
            |n| GalleryName::parse(n).is_ok(),
            &["g", "my_Gallery.1", "gallery_000003"],
            &["", "my-gallery", "_g", "g.", "g_", ".g", &long, "gäl"],
        );
        check(
            |n| ImageDefinitionName::parse(n).is_ok(),
            &["debian-12", "a_", "1"],
            &["", "_x", "x-", "x.", "-x", &long, "a/b"],
        );
        check(|n| ImageTemplateName::parse(n).is_ok(), &["-", "t.1_2-3"], &["", "a b", &"a".repeat(65), "ä"]);
        check(|n| VmName::parse(n).is_ok(), &["vm1", "web-01"], &["", "_vm", "vm-", &"v".repeat(65)]);
        check(
            |n| SubscriptionId::parse(n).is_ok(),
            &["00000000-0000-0000-0000-000000000000"],
            &["", "{subscription-id}", "00000000000000000000000000000000"],
        );
    }

    #[test]
    fn messages_are_azures() {
        assert_eq!(
            GalleryName::parse("g.").unwrap_err().message,
            "The provided resource name g. has these invalid trailing characters: .. The name can not end with characters: ."
        );
        assert_eq!(
            ImageDefinitionName::parse("_d").unwrap_err().message,
            r"The entity name _d is invalid according to its validation rule: ^[^_\W][\w-._]{0,79}(?<![-.])$"
        );
    }

    proptest! {
        #[test]
        fn case_never_matters_and_is_kept(text in "[A-Za-z][A-Za-z0-9]{0,20}") {
            let name = GalleryName::parse(&text).unwrap();
            let other = GalleryName::parse(&text.to_ascii_uppercase()).unwrap();
            prop_assert_eq!(&name, &other);
            prop_assert_eq!(name.as_str(), text.as_str());
            prop_assert_eq!(name.cmp(&other), std::cmp::Ordering::Equal);
            let mut both = std::collections::HashSet::new();
            both.insert(name);
            both.insert(other);
            prop_assert_eq!(both.len(), 1);
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
            let _ = (GalleryName::parse(&text), ImageDefinitionName::parse(&text), SubscriptionId::parse(&text));
            if let Ok(name) = ResourceGroupName::parse(&text) {
                prop_assert!(name.as_str().len() <= RESOURCE_GROUP_NAME_CHARS_MAX);
            }
        }
    }
}
