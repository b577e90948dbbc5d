//! `Microsoft.Compute/virtualMachines`.
//!
//! The password, custom data and user data leave a request by [`ParsedVm::secrets`] and come back in no answer
//! (user data only on request).

mod instance_view;
mod parse;
mod render;
mod shape;

pub use instance_view::{instance_view, power_state_code};
pub use parse::{ParsedVm, parse};
pub use render::{Expand, render};

#[cfg(test)]
mod tests;
