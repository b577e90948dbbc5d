//! The pure domain of Tintype: names, resources, states, rules and plans.
//!
//! Nothing here does IO, reads a clock, draws a random number or looks at the environment: the present
//! moment and every id are parameters. That keeps each rule testable as a table and lets `server`, `build`
//! and `store` share one vocabulary.
//!
//! ```text
//!   arm (wire JSON) ──parse──▶ *Spec ──check──▶ resource = name + spec + state ──▶ store (document)
//!                                                      │
//!                               build_plan ◀───────────┘ (typed steps in order)
//! ```
//!
//! - A **spec** is what a user may write (`GallerySpec`, `ImageTemplateSpec`, …). A PUT replaces it whole.
//! - A **state** is an enum whose variants own the data of that state; a transition consumes it and may
//!   refuse with [`InvalidTransition`].
//! - A rule that a user broke is a [`Violation`]: rule, message, target. `arm` turns it into an HTTP answer.
//!
//! To add a resource type, add one file here and one in `arm`; nothing else in this crate changes.

pub mod build_plan;
pub mod content;
pub mod gallery;
pub mod image_definition;
pub mod image_template;
pub mod image_version;
pub mod latest;
pub mod managed_disk;
pub mod managed_image;
pub mod names;
pub mod operation;
pub mod placement;
pub mod provisioning;
pub mod reference;
pub mod region;
pub mod resource_group;
pub mod run_output;
pub mod storage_account;
pub mod tags;
pub mod version_name;
pub mod violation;
pub mod virtual_machine;
pub mod vm_size;

pub use names::{
    DiskName, GalleryName, ImageDefinitionName, ImageTemplateName, ResourceGroupName, RunOutputName,
    SubscriptionId, VmName,
};
pub use provisioning::{Failure, InvalidTransition, ProvisioningState};
pub use reference::{ImageDefinitionRef, ImageVersionRef, ManifestRef, ResourceRef, VersionSelector};
pub use region::Region;
pub use tags::Tags;
pub use version_name::VersionName;
pub use violation::{Rule, Violation};

/// A moment, always in UTC. Handed in by the caller; this crate never asks for it.
pub type Timestamp = chrono::DateTime<chrono::Utc>;
