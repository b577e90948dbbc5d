//! `api-version`: which are accepted, and how strictly each reads a body.
//!
//! One az installation mixes 26 versions and the SDKs send newer ones still (REFERENCE.md 6), so a version is
//! accepted by range and not by list: from the oldest that a provider had to the newest that we know of. The
//! list is for messages.
//!
//! | provider | unknown property |
//! |---|---|
//! | image builder ≥ 2024-02-01 | refused, case counts (RULES.md 2A, "field strictness") |
//! | image builder before | ignored, case does not count |
//! | compute, up to the newest version whose properties we know | refused: `Could not find member …` |
//! | compute, newer | kept and given back, so that a newer client loses nothing |
//! | resource groups | refused |

use std::fmt;

use crate::error::ArmError;
use crate::resource_type::ResourceType;

/// A version: a date, perhaps with a suffix such as `-preview`. Orders by date; a preview comes before its
/// release.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    date: Date,
    /// `~` for a release, because it sorts behind every suffix.
    suffix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Date {
    year: u16,
    month: u8,
    day: u8,
}

/// Longest suffix.
const SUFFIX_CHARS_MAX: usize = 20;
const RELEASE: &str = "~";

impl ApiVersion {
    /// Reads `yyyy-mm-dd[-suffix]`.
    ///
    /// # Errors
    /// [`ArmError`] `InvalidApiVersionParameter`.
    pub fn parse(text: &str) -> Result<Self, ArmError> {
        parse(text).ok_or_else(|| ArmError::invalid_api_version(text, RESOURCES.listed))
    }

    /// Whether it is this date's release or later. For constants: `version.is_at_least(2024, 2, 1)`.
    pub fn is_at_least(&self, year: u16, month: u8, day: u8) -> bool {
        self.date >= Date { year, month, day }
    }

    /// Checks that the provider of this type has this version.
    ///
    /// # Errors
    /// `InvalidResourceNamespace` for an unknown provider, `NoRegisteredProviderFound` for an unknown version.
    pub fn check(&self, resource_type: &ResourceType, location: &str) -> Result<(), ArmError> {
        let namespace = resource_type.namespace();
        let provider = provider(namespace).ok_or_else(|| ArmError::invalid_resource_namespace(namespace))?;
        if (provider.oldest..=provider.newest).contains(&self.date) {
            Ok(())
        } else {
            Err(ArmError::no_registered_provider(location, self, resource_type, provider.listed))
        }
    }

    /// The name of image builder's Go package of this version, as its messages show it: `v2024_02_01`.
    pub(crate) fn go_package(&self) -> String {
        format!("v{}", self.to_string().replace('-', "_"))
    }
}

/// The api-versions that a provider answers with when asked what it has, newest first; `None` for a provider
/// that we do not have.
pub fn listed_api_versions(namespace: &str) -> Option<&'static [&'static str]> {
    provider(namespace).map(|provider| provider.listed)
}

struct ProviderVersions {
    namespace: &'static str,
    oldest: Date,
    newest: Date,
    listed: &'static [&'static str],
}

const fn date(year: u16, month: u8, day: u8) -> Date {
    Date { year, month, day }
}

const RESOURCES: ProviderVersions = ProviderVersions {
    namespace: "Microsoft.Resources",
    oldest: date(2014, 4, 1),
    newest: date(2026, 12, 31),
    listed: &[
        "2025-04-01",
        "2024-11-01",
        "2024-03-01",
        "2023-07-01",
        "2022-12-01",
        "2022-09-01",
        "2021-04-01",
        "2020-10-01",
        "2020-06-01",
        "2019-11-01",
        "2019-10-01",
        "2018-05-01",
        "2016-06-01",
        "2015-01-01",
    ],
};

const COMPUTE: ProviderVersions = ProviderVersions {
    namespace: "Microsoft.Compute",
    oldest: date(2015, 6, 15),
    newest: date(2026, 12, 31),
    listed: &[
        "2026-04-01",
        "2026-03-03",
        "2026-03-02",
        "2025-12-03",
        "2025-11-01",
        "2025-04-01",
        "2025-03-03",
        "2025-01-02",
        "2024-11-01",
        "2024-07-01",
        "2024-03-03",
        "2024-03-02",
        "2024-03-01",
        "2023-10-02",
        "2023-09-01",
        "2023-07-03",
        "2023-07-01",
        "2023-04-02",
        "2023-03-01",
        "2022-11-01",
        "2022-08-03",
        "2022-08-01",
        "2022-07-01",
        "2022-03-03",
        "2022-03-02",
        "2022-03-01",
        "2022-01-03",
        "2021-10-01",
        "2021-07-01",
        "2020-09-30",
        "2020-05-01",
        "2019-12-01",
        "2019-04-01",
        "2019-03-01",
        "2018-10-01",
        "2018-06-01",
    ],
};

const IMAGE_BUILDER: ProviderVersions = ProviderVersions {
    namespace: "Microsoft.VirtualMachineImages",
    oldest: date(2018, 2, 1),
    newest: date(2026, 12, 31),
    listed: &[
        "2025-10-01",
        "2024-02-01",
        "2023-07-01",
        "2022-07-01",
        "2022-02-14",
        "2021-10-01",
        "2020-02-14",
        "2019-05-01-preview",
        "2019-02-01-preview",
        "2018-02-01-preview",
    ],
};

const STORAGE: ProviderVersions = ProviderVersions {
    namespace: "Microsoft.Storage",
    oldest: date(2015, 6, 15),
    newest: date(2026, 12, 31),
    listed: &[
        "2025-08-01",
        "2025-06-01",
        "2025-01-01",
        "2024-01-01",
        "2023-05-01",
        "2023-01-01",
        "2022-09-01",
        "2022-05-01",
        "2021-09-01",
        "2021-04-01",
        "2019-06-01",
        "2018-07-01",
        "2017-10-01",
        "2016-01-01",
        "2015-06-15",
    ],
};

fn provider(namespace: &str) -> Option<&'static ProviderVersions> {
    [&RESOURCES, &COMPUTE, &IMAGE_BUILDER, &STORAGE]
        .into_iter()
        .find(|provider| provider.namespace.eq_ignore_ascii_case(namespace))
}

fn parse(text: &str) -> Option<ApiVersion> {
    let (date, suffix) = (text.get(..10)?, text.get(10..)?);
    let mut parts = date.split('-');
    let mut number = |digits: usize| {
        let part =
            parts.next().filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()))?;
        part.parse::<u16>().ok()
    };
    let (year, month, day) = (number(4)?, number(2)?, number(2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || parts.next().is_some() {
        return None;
    }
    let suffix = match suffix {
        "" => RELEASE,
        _ => suffix.strip_prefix('-').filter(|suffix| {
            (1..=SUFFIX_CHARS_MAX).contains(&suffix.len())
                && suffix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
        })?,
    };
    let date = Date { year, month: month as u8, day: day as u8 };
    Some(ApiVersion { date, suffix: suffix.to_ascii_lowercase() })
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Date { year, month, day } = self.date;
        write!(f, "{year:04}-{month:02}-{day:02}")?;
        if self.suffix == RELEASE { Ok(()) } else { write!(f, "-{}", self.suffix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_type::{GALLERIES, IMAGE_TEMPLATES};
    use proptest::prelude::*;

    fn version(text: &str) -> ApiVersion {
        ApiVersion::parse(text).unwrap()
    }

    #[test]
    fn only_dates_are_versions() {
        for bad in [
            "",
            "latest",
            "2024-2-1",
            "2024-13-01",
            "2024-01-32",
            "2024-01-01-",
            "2024-01-01preview",
            "2024-01-0１",
            "+024-01-01",
        ] {
            assert_eq!(ApiVersion::parse(bad).unwrap_err().code, "InvalidApiVersionParameter", "{bad:?}");
        }
        assert_eq!(version("2019-05-01-Preview").to_string(), "2019-05-01-preview");
        assert!(version("2019-05-01-preview") < version("2019-05-01"));
    }

    #[test]
    fn ranges_decide_and_lists_are_in_the_message() {
        assert_eq!(version("2026-03-03").check(&GALLERIES, "eastus"), Ok(()));
        assert_eq!(version("2018-02-01-preview").check(&IMAGE_TEMPLATES, "eastus"), Ok(()));
        let error = version("2014-01-01").check(&GALLERIES, "eastus").unwrap_err();
        assert!(error.message.starts_with(
            "No registered resource provider found for location 'eastus' and API version '2014-01-01' for type 'galleries'. The supported api-versions are '2026-04-01, "
        ));
        let unknown = ResourceType::new("Microsoft.Nope/x".into());
        assert_eq!(version("2024-01-01").check(&unknown, "").unwrap_err().code, "InvalidResourceNamespace");
    }

    #[test]
    fn listed_versions_are_accepted() {
        for provider in [&RESOURCES, &COMPUTE, &IMAGE_BUILDER, &STORAGE] {
            for listed in provider.listed {
                let any = ResourceType::new(format!("{}/any", provider.namespace));
                assert_eq!(version(listed).check(&any, ""), Ok(()), "{listed}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,40}") {
            let _ = ApiVersion::parse(&text);
        }

        #[test]
        fn what_parses_prints_the_same(text in "20[0-9]{2}-0[1-9]-[12][0-9](-[a-z]{1,9})?") {
            prop_assert_eq!(version(&text).to_string(), text);
        }
    }
}
