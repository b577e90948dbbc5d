//! ARM on the wire: ids, api-versions, errors, and each resource's JSON ⇄ `model`.
//!
//! One file or folder per resource type, each with the same two functions:
//!
//! ```text
//!  parse(body, &ApiVersion, …) -> Result<Parsed<Spec>, ArmError>     request → model
//!  render(&Resource, &Context) -> Value                              model → answer, defaults filled as Azure does
//! ```
//!
//! A request is first read against a shape of the properties that Azure has: it refuses,
//! ignores or keeps unknown ones as the api-version wants ([`api_version`]), and splits what the model has a
//! field for from what is only kept ([`Parsed::extra`]) and given back by `render`. So a property that we do
//! not understand yet survives a GET and PUT, and no handler knows about it.
//!
//! To add a resource type: one file here with its shape, `parse` and `render`; its type in [`resource_type`].

pub mod api_version;
pub mod disk;
pub mod error;
pub mod gallery;
pub mod image_definition;
pub mod image_template;
pub mod image_version;
pub mod managed_image;
pub mod operation;
pub mod resource_group;
pub mod resource_id;
pub mod resource_type;
pub mod run_output;
pub mod storage_account;
pub mod time;
pub mod virtual_machine;

mod common;
mod merge;
mod names;
mod shape;

pub use api_version::ApiVersion;
pub use common::{Context, Parsed};
pub use error::{ArmError, ErrorDetail};
pub use merge::apply_patch;
pub use resource_id::ResourceId;
pub use resource_type::ResourceType;
