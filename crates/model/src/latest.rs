//! `latest`: which version it is, and which number comes next.

use serde::{Deserialize, Serialize};

use crate::image_version::{ImageVersion, VersionState};
use crate::region::Region;
use crate::version_name::{VERSION_PART_MAX, VersionName};
use crate::violation::{Rule, Violation};

/// The version that `latest` means in `region`: the highest by number that is not excluded there and is
/// complete there (RULES.md 2B). End of life does not matter; a version that is being deleted is not seen.
pub fn latest<'a>(
    versions: impl IntoIterator<Item = &'a ImageVersion>,
    region: &Region,
) -> Option<&'a ImageVersion> {
    let usable = |version: &&ImageVersion| {
        !matches!(version.state, VersionState::Deleting { .. })
            && version.state.is_available_in(region)
            && !version.spec.publishing.excluded_from_latest_in(region)
    };
    versions.into_iter().filter(usable).max_by_key(|version| version.name)
}

/// How a distributor numbers its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionScheme {
    /// One more than the highest, of all or of one major.
    Latest {
        /// `None`: of all.
        major: Option<u32>,
    },
    /// The source image's own number.
    Source,
}

/// The number of the next version (RULES.md 2A, Distribute).
///
/// `Latest` without any earlier version gives `0.0.1`, or `{major}.0.1`. `Source` gives the source's number, or
/// if that is taken the next free patch after it: a template that runs twice from one source must not collide
/// with itself.
///
/// # Errors
/// When the numbers are used up, or the source has no number of three parts.
pub fn next_version(
    existing: impl IntoIterator<Item = VersionName>,
    scheme: VersionScheme,
    source: Option<VersionName>,
) -> Result<VersionName, Violation> {
    let existing: Vec<VersionName> = existing.into_iter().collect();
    let next = match scheme {
        VersionScheme::Latest { major: None } => {
            existing.iter().max().map_or(VersionName::new(0, 0, 1), |highest| highest.next_patch())
        }
        VersionScheme::Latest { major: Some(major) } => existing
            .iter()
            .filter(|version| version.major() == major)
            .max()
            .map_or(VersionName::new(major, 0, 1), |highest| highest.next_patch()),
        VersionScheme::Source => {
            let source = source.ok_or_else(|| {
                exhausted(
                    "The source image has no version of the form Major.Minor.Patch from which to derive one.",
                )
            })?;
            if existing.contains(&source) {
                let sibling = |version: &&VersionName| {
                    (version.major(), version.minor()) == (source.major(), source.minor())
                };
                existing.iter().filter(sibling).max().and_then(|highest| highest.next_patch())
            } else {
                Some(source)
            }
        }
    };
    next.ok_or_else(|| {
        exhausted(&format!("No version number is left: a part may not exceed {VERSION_PART_MAX}."))
    })
}

fn exhausted(message: &str) -> Violation {
    Violation::at(Rule::Conflict, "properties.distribute.versioning", message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Timestamp;
    use crate::content::DiskContent;
    use crate::image_version::{RegionReplication, VersionContent, tests::spec};
    use crate::reference::ManifestRef;

    fn v(text: &str) -> VersionName {
        VersionName::parse(text).unwrap()
    }

    fn next(existing: &[&str], scheme: VersionScheme, source: Option<&str>) -> String {
        next_version(existing.iter().map(|name| v(name)), scheme, source.map(v)).unwrap().to_string()
    }

    #[test]
    fn numbering_follows_the_documented_table() {
        let all = ["0.1.1", "0.1.2", "1.0.0", "1.0.1", "1.1.0", "1.1.1", "1.2.0", "2.0.0", "2.0.1", "2.1.0"];
        for (major, expected) in
            [(None, "2.1.1"), (Some(2), "2.1.1"), (Some(1), "1.2.1"), (Some(0), "0.1.3"), (Some(7), "7.0.1")]
        {
            assert_eq!(next(&all, VersionScheme::Latest { major }, None), expected, "major {major:?}");
        }
        assert_eq!(next(&[], VersionScheme::Latest { major: None }, None), "0.0.1");
        assert_eq!(next(&[], VersionScheme::Latest { major: Some(3) }, None), "3.0.1");
    }

    #[test]
    fn source_numbering_never_collides() {
        assert_eq!(next(&[], VersionScheme::Source, Some("18.4.202401161")), "18.4.202401161");
        assert_eq!(next(&["1.2.3"], VersionScheme::Source, Some("1.2.3")), "1.2.4");
        assert_eq!(next(&["1.2.3", "1.2.9", "1.3.0"], VersionScheme::Source, Some("1.2.3")), "1.2.10");
        assert!(next_version([], VersionScheme::Source, None).is_err());
    }

    #[test]
    fn the_range_ends() {
        let last = v("1.0.2147483647");
        assert!(next_version([last], VersionScheme::Latest { major: None }, None).is_err());
    }

    fn published(name: &str, regions: &[&str], done: &[&str]) -> ImageVersion {
        let mut version = ImageVersion::create(v(name), spec(regions), Timestamp::UNIX_EPOCH);
        let state = |region: &&str| {
            if done.contains(region) {
                RegionReplication::Completed
            } else {
                RegionReplication::Replicating { progress_percent: 1 }
            }
        };
        let os_disk = DiskContent { manifest: ManifestRef::parse("m").unwrap(), size_bytes: 1 };
        version.state = VersionState::Replicating {
            content: VersionContent { os_disk, data_disks: BTreeMap::new() },
            regions: regions.iter().map(|name| (Region::parse(name).unwrap(), state(name))).collect(),
            updating: false,
        };
        version
    }

    #[test]
    fn latest_is_what_the_asking_region_has() {
        let (east, west) = (Region::parse("eastus").unwrap(), Region::parse("westus").unwrap());
        let mut versions = vec![
            published("1.9.0", &["eastus", "westus"], &["eastus", "westus"]),
            published("1.10.0", &["eastus", "westus"], &["eastus"]),
            ImageVersion::create(v("2.0.0"), spec(&["eastus"]), Timestamp::UNIX_EPOCH),
        ];
        let name = |versions: &[ImageVersion], region| {
            latest(versions, region).map(|version| version.name.to_string())
        };
        assert_eq!(name(&versions, &east).as_deref(), Some("1.10.0"));
        assert_eq!(name(&versions, &west).as_deref(), Some("1.9.0"));
        // The region's own word wins over the profile's.
        versions[1].spec.publishing.target_regions[0].exclude_from_latest = Some(true);
        assert_eq!(name(&versions, &east).as_deref(), Some("1.9.0"));
        versions[0].spec.publishing.exclude_from_latest = true;
        assert_eq!(name(&versions, &east), None);
        versions[0].spec.publishing.target_regions[0].exclude_from_latest = Some(false);
        assert_eq!(name(&versions, &east).as_deref(), Some("1.9.0"));
        versions[0].state = versions[0].state.clone().delete();
        assert_eq!(name(&versions, &east), None);
    }
}
