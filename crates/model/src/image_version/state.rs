//! The life of an image version: created, replicated, ready.
//!
//! ```text
//!  Creating ──stored──▶ Replicating ──all regions done──▶ Ready ──retarget──▶ Replicating
//!      │                     │ a region failed
//!      └─────fail──────▶   Failed ──retarget──▶ Replicating        any ──delete──▶ Deleting
//! ```
//!
//! A region counts as holding the version only when it is `Completed`: `latest` and VM creation look at that
//! (DESIGN.md, invariant 8).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::content::DiskContent;
use crate::provisioning::{Failure, InvalidTransition};
use crate::region::Region;

/// The bytes of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionContent {
    /// OS disk.
    pub os_disk: DiskContent,
    /// Data disks by LUN.
    pub data_disks: BTreeMap<u8, DiskContent>,
}

/// Where one region stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionReplication {
    /// Blocks are on their way.
    Replicating {
        /// 0 to 100.
        progress_percent: u8,
    },
    /// Every block is there.
    Completed,
    /// Given up.
    Failed {
        /// Why.
        details: String,
    },
}

/// Azure's one word for all regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateReplication {
    /// Nothing to tell yet.
    Unknown,
    /// Some region is not done.
    InProgress,
    /// All are done.
    Completed,
    /// Some region failed and none is under way.
    Failed,
}

/// State of an image version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    /// Accepted; its bytes are not in the home region yet.
    Creating,
    /// Its bytes are stored; regions are being filled.
    Replicating {
        /// The bytes.
        content: VersionContent,
        /// Every target region.
        regions: BTreeMap<Region, RegionReplication>,
        /// Whether it was ready before, which ARM calls `Updating`.
        updating: bool,
    },
    /// In every target region.
    Ready {
        /// The bytes.
        content: VersionContent,
        /// Every target region, completed.
        regions: BTreeMap<Region, RegionReplication>,
    },
    /// Not in every target region; those that are complete still serve.
    Failed {
        /// Why.
        failure: Failure,
        /// The bytes, if it came to that.
        content: Option<VersionContent>,
        /// Target regions as far as they came.
        regions: BTreeMap<Region, RegionReplication>,
    },
    /// Going away: `latest` and new VMs no longer see it.
    Deleting {
        /// The bytes, if it had any: what must be released.
        content: Option<VersionContent>,
    },
}

impl VersionState {
    /// The bytes are in the home region; the others have to be filled.
    ///
    /// # Errors
    /// Unless `Creating`.
    pub fn stored(
        self,
        content: VersionContent,
        home: &Region,
        targets: &[Region],
    ) -> Result<Self, InvalidTransition> {
        if self != Self::Creating {
            return Err(self.refuse("store the content of"));
        }
        let regions = targets.iter().map(|region| (region.clone(), start(region == home))).collect();
        Ok(Self::Replicating { content, regions, updating: false }.settle())
    }

    /// The publishing profile changed, or a failed version is tried again. Completed regions stay completed.
    ///
    /// # Errors
    /// Unless `Ready`, or `Failed` with content.
    pub fn retarget(self, targets: &[Region]) -> Result<Self, InvalidTransition> {
        let (content, before) = match self {
            Self::Ready { content, regions } | Self::Failed { content: Some(content), regions, .. } => {
                (content, regions)
            }
            other => return Err(other.refuse("change the regions of")),
        };
        let done = |region: &Region| before.get(region) == Some(&RegionReplication::Completed);
        let regions = targets.iter().map(|region| (region.clone(), start(done(region)))).collect();
        // Ready at once when nothing has to be copied; the operation still takes one step through Updating.
        Ok(Self::Replicating { content, regions, updating: true })
    }

    /// A region came further. When the last one is done the version is ready, or failed.
    ///
    /// # Errors
    /// Unless `Replicating` to that region, and when a completed region would go back.
    pub fn region(self, region: &Region, progress: RegionReplication) -> Result<Self, InvalidTransition> {
        match self {
            Self::Replicating { content, mut regions, updating }
                if regions
                    .get(region)
                    .is_some_and(|known| *known != RegionReplication::Completed || progress == *known) =>
            {
                regions.insert(region.clone(), progress);
                Ok(Self::Replicating { content, regions, updating }.settle())
            }
            other => Err(other.refuse("report a region of")),
        }
    }

    /// Ends an update that had nothing to copy.
    #[must_use]
    pub fn settle(self) -> Self {
        let Self::Replicating { content, regions, updating } = self else { return self };
        if regions.values().any(|region| matches!(region, RegionReplication::Replicating { .. })) {
            return Self::Replicating { content, regions, updating };
        }
        let failed = regions.iter().find_map(|(region, state)| match state {
            RegionReplication::Failed { details } => Some((region, details)),
            _ => None,
        });
        match failed {
            None => Self::Ready { content, regions },
            Some((region, details)) => {
                let failure = Failure::new(
                    "GalleryImageReplicationFailed",
                    format!("Replication failed in region {} due to '{details}'", region.display_name()),
                );
                Self::Failed { failure, content: Some(content), regions }
            }
        }
    }

    /// It came to nothing.
    ///
    /// # Errors
    /// Unless `Creating` or `Replicating`.
    pub fn fail(self, failure: Failure) -> Result<Self, InvalidTransition> {
        match self {
            Self::Creating => Ok(Self::Failed { failure, content: None, regions: BTreeMap::new() }),
            Self::Replicating { content, regions, .. } => {
                Ok(Self::Failed { failure, content: Some(content), regions })
            }
            other => Err(other.refuse("fail")),
        }
    }

    /// Deletion was accepted. Repeating it is allowed: a failed deletion is retried.
    #[must_use]
    pub fn delete(self) -> Self {
        match self {
            Self::Creating => Self::Deleting { content: None },
            Self::Replicating { content, .. } | Self::Ready { content, .. } => {
                Self::Deleting { content: Some(content) }
            }
            Self::Failed { content, .. } | Self::Deleting { content } => Self::Deleting { content },
        }
    }

    /// The bytes, in the states that have them.
    pub fn content(&self) -> Option<&VersionContent> {
        match self {
            Self::Creating => None,
            Self::Replicating { content, .. } | Self::Ready { content, .. } => Some(content),
            Self::Failed { content, .. } | Self::Deleting { content } => content.as_ref(),
        }
    }

    /// Target regions and where they stand; empty before the bytes are stored.
    pub fn regions(&self) -> impl Iterator<Item = (&Region, &RegionReplication)> {
        let regions = match self {
            Self::Replicating { regions, .. }
            | Self::Ready { regions, .. }
            | Self::Failed { regions, .. } => Some(regions),
            Self::Creating | Self::Deleting { .. } => None,
        };
        regions.into_iter().flatten()
    }

    /// Whether a VM in `region` can start from it now.
    pub fn is_available_in(&self, region: &Region) -> bool {
        self.content().is_some()
            && self.regions().any(|(known, state)| known == region && *state == RegionReplication::Completed)
    }

    /// One word for all regions.
    pub fn aggregate(&self) -> AggregateReplication {
        match self {
            Self::Creating | Self::Deleting { .. } => AggregateReplication::Unknown,
            Self::Replicating { .. } => AggregateReplication::InProgress,
            Self::Ready { .. } => AggregateReplication::Completed,
            Self::Failed { .. } => AggregateReplication::Failed,
        }
    }

    /// ARM's word for the state.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating | Self::Replicating { updating: false, .. } => "Creating",
            Self::Replicating { updating: true, .. } => "Updating",
            Self::Ready { .. } => "Succeeded",
            Self::Failed { .. } => "Failed",
            Self::Deleting { .. } => "Deleting",
        }
    }

    fn refuse(&self, event: &'static str) -> InvalidTransition {
        InvalidTransition { what: "an image version", from: self.name(), event }
    }
}

fn start(done: bool) -> RegionReplication {
    if done { RegionReplication::Completed } else { RegionReplication::Replicating { progress_percent: 0 } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::ManifestRef;

    fn region(name: &str) -> Region {
        Region::parse(name).unwrap()
    }

    fn content() -> VersionContent {
        let os_disk = DiskContent { manifest: ManifestRef::parse("m1").unwrap(), size_bytes: 1 };
        VersionContent { os_disk, data_disks: BTreeMap::new() }
    }

    fn two_regions() -> VersionState {
        let targets = [region("eastus"), region("westus")];
        VersionState::Creating.stored(content(), &region("eastus"), &targets).unwrap()
    }

    #[test]
    fn one_region_is_ready_at_once() {
        let state = VersionState::Creating.stored(content(), &region("eastus"), &[region("eastus")]).unwrap();
        assert!(matches!(state, VersionState::Ready { .. }));
    }

    #[test]
    fn a_region_serves_when_it_is_complete() {
        let state = two_regions();
        assert_eq!(state.aggregate(), AggregateReplication::InProgress);
        assert!(state.is_available_in(&region("eastus")) && !state.is_available_in(&region("westus")));
        let state =
            state.region(&region("westus"), RegionReplication::Replicating { progress_percent: 40 }).unwrap();
        let state = state.region(&region("westus"), RegionReplication::Completed).unwrap();
        assert_eq!((state.name(), state.aggregate()), ("Succeeded", AggregateReplication::Completed));
        assert!(state.is_available_in(&region("westus")));
    }

    #[test]
    fn a_failed_region_can_be_tried_again() {
        let failed = RegionReplication::Failed { details: "disk full".into() };
        let state = two_regions().region(&region("westus"), failed).unwrap();
        let VersionState::Failed { failure, .. } = &state else { panic!("{state:?}") };
        assert_eq!(failure.message, "Replication failed in region West US due to 'disk full'");
        assert!(state.is_available_in(&region("eastus")));
        let state = state.retarget(&[region("eastus"), region("westus")]).unwrap();
        let state = state.region(&region("westus"), RegionReplication::Completed).unwrap();
        assert_eq!(state.name(), "Succeeded");
    }

    #[test]
    fn refusals_name_state_and_event() {
        let error = two_regions().retarget(&[]).unwrap_err();
        assert_eq!(error.to_string(), "cannot change the regions of an image version that is Creating");
        assert!(two_regions().region(&region("uksouth"), RegionReplication::Completed).is_err());
        assert!(
            two_regions()
                .region(&region("eastus"), RegionReplication::Failed { details: String::new() })
                .is_err()
        );
        assert!(two_regions().delete().fail(Failure::new("a", "b")).is_err());
    }

    #[test]
    fn documents_round_trip() {
        for state in [VersionState::Creating, two_regions(), two_regions().delete()] {
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<VersionState>(&text).unwrap(), state);
        }
    }
}
