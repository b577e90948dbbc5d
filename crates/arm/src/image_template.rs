//! `Microsoft.VirtualMachineImages/imageTemplates`.
//!
//! Two dialects: from 2024-02-01 on case counts and unknown properties are refused; before, neither matters.
//! Every property up to 2025-10-01 has a field in the model except two that are kept: `optimize.workload` and
//! `additionalDataDisks`.

mod parse;
mod render;
mod shape;
mod steps;

pub use parse::{parse, parse_patch};
pub use render::render;

#[cfg(test)]
mod tests;
